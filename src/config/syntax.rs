//! Text → TOML tree, as far as it can be parsed, and the syntax errors.
//!
//! Owns the recovery: which errors are consequences of others, and which findings are reliable in a
//! file with syntax errors.

use std::mem;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Finding, Lines, Span},
    values::truth,
};

/// A file's tree and its syntax errors.
pub(super) struct Document<'t> {
    pub(super) tree: Spanned<DeTable<'t>>,
    errors: Vec<Finding>,
    lines: Lines<'t>,
    /// The lines with syntax errors, from 1, in order.
    broken_lines: Vec<usize>,
}

impl<'t> Document<'t> {
    /// Parses as much as possible.
    pub(super) fn parse(text: &'t str) -> Self {
        let (tree, errors) = DeTable::parse_recoverable(text);
        let mut errors: Vec<(Span, String)> = errors
            .iter()
            .map(|error| (error.span().unwrap_or_default(), error.message().to_owned()))
            .collect();
        errors.sort_by_key(|(span, _)| span.start);
        let lines = Lines::of(text);
        let broken_lines = errors.iter().map(|(span, _)| lines.line(span.start)).collect();
        Self { tree, errors: without_consequences(text, &lines, errors), lines, broken_lines }
    }

    /// Whether the text has syntax errors.
    pub(super) fn is_broken(&self) -> bool {
        !self.broken_lines.is_empty()
    }

    /// Merges the syntax errors with the findings about the tree.
    ///
    /// After a syntax error the tree contains guesses: a finding that touches a broken line or
    /// depends on the whole file waits for the next run.
    pub(super) fn join(&mut self, findings: Vec<Finding>) -> Vec<Finding> {
        let mut all = mem::take(&mut self.errors);
        let broken = &self.broken_lines;
        all.extend(findings.into_iter().filter(|finding| {
            let (first, last) = (finding.span.start, finding.span.end);
            let before = broken.partition_point(|line| *line < self.lines.line(first));
            let touches = broken.get(before).is_some_and(|line| *line <= self.lines.line(last));
            broken.is_empty() || !finding.fragile && !touches
        }));
        all
    }
}

const DUPLICATE: &str = "duplicate key";

/// For how many errors the first definition is looked up; each look-up parses the whole text.
const EXPLAINED_MAX: usize = 20;

/// Reduces the parser's errors to one finding per mistake.
fn without_consequences(
    text: &str,
    lines: &Lines<'_>,
    mut errors: Vec<(Span, String)>,
) -> Vec<Finding> {
    let unclosed = |message: &str| {
        message.starts_with("unclosed array") || message.starts_with("unclosed inline table")
    };
    // An array that is never closed swallows the rest of the file, and each of its lines gives an
    // error.
    let swallowed = errors.iter().any(|(_, message)| unclosed(message));
    let first = errors.iter().position(|(_, message)| message.starts_with("missing comma"));
    let swallows_at = first.filter(|_| swallowed);
    if let Some(at) = swallows_at {
        errors.truncate(at + 1);
    }
    let mut findings = Vec::new();
    let mut last_line = 0;
    let mut repeated_header = 0;
    for (index, (span, message)) in errors.into_iter().enumerate() {
        let line = lines.line(span.start);
        if message == DUPLICATE {
            let is_explained = index < EXPLAINED_MAX;
            let first = is_explained.then(|| first_definition(text, &span)).flatten();
            let is_inherited = match &first {
                Some(first) => first.start < repeated_header,
                None => !is_explained && repeated_header > 0,
            };
            if line_from(text, span.start).starts_with('[') {
                repeated_header = span.start;
            } else if is_inherited {
                // A repeated table was merged into one, so its keys are no mistakes of their own.
                continue;
            }
            findings.push(duplicate(text, span, first));
        } else if line != last_line {
            let mut finding = explained(text, span, &message);
            if swallows_at == Some(index) {
                finding = finding.help("a `]` or `}` may be missing before this place");
            }
            findings.push(finding);
            last_line = line;
        }
    }
    findings
}

/// The parser's message, extended where it says too little.
fn explained(text: &str, span: Span, message: &str) -> Finding {
    let (message, expected) = match message.split_once(", expected ") {
        Some((message, expected)) => (message, Some(format!("expected {expected}"))),
        None => (message, None),
    };
    if let Some(finding) = typographic(text, &span) {
        return finding;
    }
    if message == "string values must be quoted" {
        return match text.get(span.clone()).unwrap_or_default().trim() {
            "" => Finding::new(span, "the value is missing"),
            value => {
                let line = line_from(text, span.start);
                let key = line.split('=').next().unwrap_or_default().trim();
                let help = match truth(value).filter(|_| BOOLEANS.iter().any(|b| key.ends_with(b)))
                {
                    Some(truth) => format!("write {truth}"),
                    None => format!("write \"{value}\""),
                };
                Finding::new(span, message).help(help)
            }
        };
    }
    let mut finding = Finding::new(span, message);
    finding.help = expected;
    finding
}

/// Boolean keys; for other keys, `off` is a word.
const BOOLEANS: [&str; 4] = ["enabled", "precompressed", "proxy_protocol", "self_signed"];

/// Quotes as word processors write them.
const TYPOGRAPHIC: [char; 10] = [
    '\u{201c}', '\u{201d}', '\u{201e}', '\u{201f}', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}',
    '\u{ab}', '\u{bb}',
];

/// A typographic quote at a syntax error, and the text with straight quotes.
fn typographic(text: &str, span: &Span) -> Option<Finding> {
    let line_end = text[span.start..].find('\n').map_or(text.len(), |length| span.start + length);
    let line = &text[span.start..line_end];
    let first = line.find(TYPOGRAPHIC)?;
    // After an ordinary string or a comment they are no mistake.
    if line[..first].contains(['"', '\'', '#']) {
        return None;
    }
    let inside = &line[first..].trim_start_matches(TYPOGRAPHIC);
    let length = inside.find(TYPOGRAPHIC).unwrap_or(inside.len());
    let start = span.start + first;
    let end = text.len().min(start + line[first..].chars().next().map_or(0, char::len_utf8));
    let finding = Finding::new(start..end, "this is a typographic quote");
    Some(finding.help(format!("write \"{}\"", inside[..length].escape_debug())))
}

fn duplicate(text: &str, span: Span, first: Option<Span>) -> Finding {
    let key = text.get(span.clone()).unwrap_or_default();
    let finding = Finding::new(span, format!("`{key}` is defined twice"));
    match first {
        Some(first) => finding.label("and again here").related(first, "defined here"),
        None => finding.label("defined before"),
    }
}

/// Where the duplicate key at `span` was defined first.
///
/// The parser doesn't report it. So the duplicate is renamed and the text is parsed again: the
/// first definition is then found by its name.
fn first_definition(text: &str, span: &Span) -> Option<Span> {
    const RENAMED: &str = "renamed-duplicate";
    let named = text.get(span.clone())?;
    let line_end = text[span.end..].find('\n').map_or(text.len(), |length| span.end + length);
    let renamed = [&text[..span.start], RENAMED, &text[span.end..line_end]].concat();
    let probe = format!("{named} = 0");
    let probe = DeTable::parse(&probe).ok()?.into_inner();
    let key = probe.keys().next()?.get_ref();

    let tree = DeTable::parse_recoverable(&renamed).0.into_inner();
    let mut tables = vec![&tree];
    while let Some(table) = tables.pop() {
        if table.keys().any(|k| k.span().start == span.start && k.get_ref() == RENAMED) {
            let first = table.keys().find(|k| k.get_ref() == key)?.span();
            return (first.end <= span.start).then_some(first);
        }
        for value in table.values() {
            match value.get_ref() {
                DeValue::Table(inner) => tables.push(inner),
                DeValue::Array(items) => {
                    tables.extend(items.iter().filter_map(|item| item.get_ref().as_table()));
                }
                _ => {}
            }
        }
    }
    None
}

/// The line of `offset`, without leading spaces.
fn line_from(text: &str, offset: usize) -> &str {
    let start = text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
    text[start..].trim_start()
}
