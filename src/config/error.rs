//! What is wrong with a config file, and how it is shown.
//!
//! A [`Finding`] points into the text by bytes; a [`ConfigError`] is all findings of one file, with
//! lines and columns, and rendered. Never decides what is wrong.

use std::{error::Error, fmt, iter, ops::Range, path::Path};

use annotate_snippets::{
    AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str as printable,
};

/// All problems of one config file. `Display` shows each with its line and what would be right,
/// up to [`ConfigError::SHOWN_MAX`] of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
    report: String,
}

impl ConfigError {
    /// The most problems that are shown: of more, somebody fixes the cause and not each one.
    pub const SHOWN_MAX: usize = 100;

    /// All problems, in the order of the file; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Shows `findings` in `text`, the content of the file called `name`.
    pub(super) fn new(name: &Path, text: &str, mut findings: Vec<Finding>) -> Self {
        sort(text, &mut findings);
        let name = name.display().to_string();
        let shown = findings.iter().take(Self::SHOWN_MAX);
        let mut reports: Vec<_> =
            shown.map(|finding| render(&name, text, finding, Level::ERROR)).collect();
        if findings.len() > reports.len() {
            reports.push(format!("error: {} problems more", findings.len() - reports.len()));
        }
        let lines = Lines::of(text);
        let problems = findings.into_iter().map(|finding| {
            let (line, column) = lines.line_and_column(finding.span.start);
            Problem { line, column, message: finding.message, help: finding.help }
        });
        Self { problems: problems.collect(), report: reports.join("\n\n") }
    }

    /// An error of the file called `name` as a whole.
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

/// One thing that is wrong in a config file, or in an app's JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; 0 in JSON, and when the file could not be read at all.
    pub line: usize,
    /// The column in characters, from 1; 0 in JSON, and when the file could not be read at all.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right, where the message does not say it.
    pub help: Option<String>,
}

/// A place in the text, in bytes.
pub(super) type Span = Range<usize>;

/// A problem with its places in the text.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) label: Option<String>,
    pub(super) help: Option<String>,
    /// Other places that belong to it, each with its label.
    pub(super) related: Vec<(Span, String)>,
    /// Whether it may be nothing but the consequence of a syntax error elsewhere.
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

/// Where the lines of a text begin.
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let newlines = memchr::memchr_iter(b'\n', text.as_bytes());
        Self { text, starts: iter::once(0).chain(newlines.map(|at| at + 1)).collect() }
    }

    /// The line, from 1, that a byte is in.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// Line and column, from 1, of a byte.
    pub(super) fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.line(offset);
        (line, self.text[self.starts[line - 1]..offset].chars().count() + 1)
    }
}

/// Shows what is no error, in the order of the file.
pub(super) fn warnings(name: &Path, text: &str, mut findings: Vec<Finding>) -> Vec<String> {
    sort(text, &mut findings);
    let name = name.display().to_string();
    findings.iter().map(|finding| render(&name, text, finding, Level::WARNING)).collect()
}

/// Puts findings in the order of the file.
fn sort(text: &str, findings: &mut [Finding]) {
    // Behind the last newline is no line that could be shown.
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
    // A span that is not on the borders of characters would make the renderer panic.
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
