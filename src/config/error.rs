//! The problems of a config file, and how they are shown.
//!
//! A [`Finding`] points into the text by byte offsets. A [`ConfigError`] holds all findings of one
//! file with lines and columns, and the rendered report. Other modules find the problems.

use std::{error::Error, fmt, iter, ops::Range, path::Path};

use annotate_snippets::{
    AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str as printable,
};

/// All problems of one config file. `Display` shows each with its line and a suggestion, up to
/// [`ConfigError::SHOWN_MAX`] problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
    report: String,
}

impl ConfigError {
    /// The most problems that are shown. More than that usually have one common cause.
    pub const SHOWN_MAX: usize = 100;

    /// All problems, in the order of the file; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Shows `findings` in `text`, the content of the file `name`.
    pub(super) fn new(name: &Path, text: &str, mut findings: Vec<Finding>) -> Self {
        sort(text, &mut findings);
        let name = name.display().to_string();
        let shown = findings.iter().take(Self::SHOWN_MAX);
        let mut reports: Vec<_> =
            shown.map(|finding| render(&name, text, finding, Level::ERROR)).collect();
        if findings.len() > reports.len() {
            reports.push(format!("error: {} more problems", findings.len() - reports.len()));
        }
        let lines = Lines::of(text);
        let problems = findings.into_iter().map(|finding| {
            let (line, column) = lines.line_and_column(finding.span.start);
            Problem { line, column, message: finding.message, help: finding.help }
        });
        Self { problems: problems.collect(), report: reports.join("\n\n") }
    }

    /// An error about the file `name` as a whole.
    pub(super) fn whole_file(name: &Path, reason: &dyn fmt::Display) -> Self {
        let message = format!("cannot read {}: {reason}", name.display());
        let report = renderer().render(&[Group::with_title(Level::ERROR.primary_title(&message))]);
        Self { problems: vec![Problem { line: 0, column: 0, message, help: None }], report }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report)
    }
}

impl Error for ConfigError {}

/// One problem in a config file or in an app's JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; 0 in JSON or if the file could not be read.
    pub line: usize,
    /// The column in characters, from 1; 0 in JSON or if the file could not be read.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// A suggestion, where the message doesn't contain one.
    pub help: Option<String>,
}

/// A range of the text, in bytes.
pub(super) type Span = Range<usize>;

/// A problem with its places in the text.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) label: Option<String>,
    pub(super) help: Option<String>,
    /// Related places, each with a label.
    pub(super) related: Vec<(Span, String)>,
    /// Whether a syntax error elsewhere may be the only cause.
    pub(super) fragile: bool,
}

impl Finding {
    pub(super) fn new(span: Span, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { span, message, label: None, help: None, related: Vec::new(), fragile: false }
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }

    pub(super) fn fragile(mut self) -> Self {
        self.fragile = true;
        self
    }
}

/// The offsets at which the lines of a text begin.
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let newlines = memchr::memchr_iter(b'\n', text.as_bytes());
        Self { text, starts: iter::once(0).chain(newlines.map(|at| at + 1)).collect() }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// The line and column of a byte, from 1.
    pub(super) fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.line(offset);
        (line, self.text[self.starts[line - 1]..offset].chars().count() + 1)
    }
}

/// Shows warnings in the order of the file.
pub(super) fn warnings(name: &Path, text: &str, mut findings: Vec<Finding>) -> Vec<String> {
    sort(text, &mut findings);
    let name = name.display().to_string();
    findings.iter().map(|finding| render(&name, text, finding, Level::WARNING)).collect()
}

/// Sorts findings in the order of the file.
fn sort(text: &str, findings: &mut [Finding]) {
    // There is no line to show after the last newline.
    let end = text.trim_end_matches(['\r', '\n']).len();
    for finding in &mut *findings {
        finding.span = finding.span.start.min(end)..finding.span.end.min(end);
    }
    findings.sort_by_key(|finding| (finding.span.start, finding.span.end));
}

fn renderer() -> Renderer {
    Renderer::plain()
}

fn render(name: &str, text: &str, finding: &Finding, level: Level<'_>) -> String {
    // The renderer panics on a span that splits a character.
    let inside =
        |span: &Span| text.floor_char_boundary(span.start)..text.ceil_char_boundary(span.end);
    let primary = AnnotationKind::Primary
        .span(inside(&finding.span))
        .label(finding.label.as_deref().map(printable));
    let related = finding
        .related
        .iter()
        .map(|(span, label)| AnnotationKind::Context.span(inside(span)).label(printable(label)));
    let snippet = Snippet::source(text).path(printable(name)).annotation(primary);
    let title = level.primary_title(&finding.message);
    let mut group = title.element(snippet.annotations(related));
    if let Some(help) = &finding.help {
        group = group.element(Level::HELP.message(printable(help)));
    }
    renderer().render(&[group])
}
