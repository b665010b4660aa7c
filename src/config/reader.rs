//! Typed reading of a TOML tree that collects problems instead of stopping at the first.
//!
//! A [`Table`] is asked for its keys one by one; what nobody asked for is an unknown key. Faults of
//! one key never hide those of another. What is read after a fault may be a default: it is dropped
//! with the whole configuration.

use std::{
    collections::HashMap,
    fmt::Display,
    ops::{RangeFrom, RangeInclusive},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Finding, Span},
    units::{parse_duration, parse_size, show_duration, show_size},
};

/// A value and its place.
pub(super) type Value<'d> = &'d Spanned<DeValue<'d>>;

/// A table that is being read.
pub(super) struct Table<'d, 'f> {
    /// The dotted path for messages; empty for the root.
    path: String,
    key: &'d str,
    /// Where the table is named.
    span: Span,
    entries: &'d DeTable<'d>,
    known: Vec<&'static str>,
    /// Keys that are reported elsewhere.
    silent: Vec<&'d str>,
    /// Whether any key may stand.
    free: bool,
    findings: &'f mut Vec<Finding>,
}

impl<'d, 'f> Table<'d, 'f> {
    /// Reads the root of a tree.
    pub(super) fn read_root<T>(
        tree: &'d DeTable<'d>,
        findings: &'f mut Vec<Finding>,
        read: impl FnOnce(&mut Table<'d, '_>) -> T,
    ) -> T {
        Table::new(String::new(), ("", 0..0), tree, findings).read_all(read)
    }

    fn new(
        path: String,
        (key, span): (&'d str, Span),
        entries: &'d DeTable<'d>,
        findings: &'f mut Vec<Finding>,
    ) -> Self {
        Self { path, key, span, entries, known: vec![], silent: vec![], free: false, findings }
    }

    fn read_all<T>(mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let result = read(&mut self);
        self.report_unknown_keys();
        result
    }

    /// The dotted path, for messages.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The key of the table.
    pub(super) fn key(&self) -> &'d str {
        self.key
    }

    /// Where the table is named.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Reports a problem that no method here finds by itself.
    pub(super) fn report(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The dotted path of a key in this table.
    pub(super) fn path_of(&self, key: &str) -> String {
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let quoted = if !key.is_empty() && key.chars().all(bare) {
            key.to_owned()
        } else {
            format!("\"{}\"", key.escape_debug())
        };
        if self.path.is_empty() { quoted } else { format!("{}.{quoted}", self.path) }
    }

    /// Where a key stands, if it does.
    pub(super) fn key_span(&self, key: &str) -> Option<Span> {
        self.entries.get_key_value(key).map(|(key, _)| key.span())
    }

    /// The entries in the order of the file.
    pub(super) fn in_order(&self) -> Vec<(&'d str, Span, Value<'d>)> {
        let entries = self.entries.iter().map(|(key, value)| (&**key.get_ref(), key.span(), value));
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|(_, span, _)| span.start);
        entries
    }

    /// The value of a key, which is known from here on.
    fn value(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        self.entries.get(key)
    }

    /// A key of a later version: an error where it stands. Says whether it stands.
    pub(super) fn planned(&mut self, key: &'static str) -> bool {
        self.silent.push(key);
        let Some(span) = self.key_span(key) else { return false };
        let message = format!("`{}` is not supported yet", self.path_of(key));
        let help = format!("this version of Tidegate does not have `{key}`; remove it");
        self.report(Finding::new(span, message).help(help));
        true
    }

    /// Accepts a key that the caller reports by itself.
    pub(super) fn accept(&mut self, key: &'d str) {
        self.silent.push(key);
    }

    /// Reads a key that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value<'d>) -> Result<T, Fault>,
    ) -> Option<T> {
        let value = self.value(key)?;
        let result = read(value);
        self.keep(&self.path_of(key), value.span(), result)
    }

    /// Reads a key that has a default.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(Value<'d>) -> Result<T, Fault>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// Reads a key that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value<'d>) -> Result<T, Fault>,
    ) -> Option<T> {
        if !self.entries.contains_key(key) {
            let message = format!("`{}` is missing", self.path_of(key));
            let help = format!("add `{key}`");
            self.report(Finding::new(self.span(), message).help(help).fragile());
        }
        self.optional(key, read)
    }

    /// Reads an array of so many strings, each by `read`, with their places.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        count: RangeFrom<usize>,
        read: impl Fn(&'d str) -> Result<T, Fault>,
    ) -> Option<Vec<(T, Span)>> {
        let items = self.optional(key, |value| match value.get_ref() {
            DeValue::Array(items) if count.contains(&items.len()) => Ok(items),
            DeValue::Array(_) => {
                Err(Fault::new(format!("must have at least {} entry", count.start)))
            }
            other => Err(Fault::wrong_type("an array of strings", other).help_if(
                other.as_str().map(|text| format!("write [\"{}\"]", text.escape_debug())),
            )),
        })?;
        let mut read_items = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let result = string(item).and_then(&read);
            let path = format!("{}[{index}]", self.path_of(key));
            read_items
                .extend(self.keep(&path, item.span(), result).map(|item_| (item_, item.span())));
        }
        Some(read_items)
    }

    /// Reads a table of strings with free keys, in the order of the file. No two keys may be the
    /// same after `read_key`.
    pub(super) fn pairs(
        &mut self,
        key: &'static str,
        read_key: impl Fn(&'d str) -> Result<String, Fault>,
        read: impl Fn(&'d str) -> Result<String, Fault>,
    ) -> Vec<(String, String)> {
        let read_pairs = |table: &mut Table<'d, '_>| {
            table.free = true;
            let mut pairs = Vec::new();
            let mut seen = Repeats::default();
            for (key, span, value) in table.in_order() {
                let path = table.path_of(key);
                let name = table.keep(&path, span.clone(), read_key(key));
                let text = table.keep(&path, value.span(), string(value).and_then(&read));
                let (Some(name), Some(text)) = (name, text) else { continue };
                table.findings.extend(seen.add(&name.to_ascii_lowercase(), span));
                pairs.push((name, text));
            }
            pairs
        };
        self.table(key, read_pairs).unwrap_or_default()
    }

    /// Reads a table inside.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'d, '_>) -> T,
    ) -> Option<T> {
        let value = self.value(key)?;
        let span = self.key_span(key)?;
        self.enter(key, span, value, read)
    }

    /// Reads every entry as a table inside, in the order of the file.
    pub(super) fn each_table(&mut self, mut read: impl FnMut(&'d str, &mut Table<'d, '_>)) {
        self.free = true;
        for (key, span, value) in self.in_order() {
            self.enter(key, span, value, |table| read(key, table));
        }
    }

    fn enter<T>(
        &mut self,
        key: &'d str,
        span: Span,
        value: Value<'d>,
        read: impl FnOnce(&mut Table<'d, '_>) -> T,
    ) -> Option<T> {
        let path = self.path_of(key);
        match value.get_ref() {
            DeValue::Table(entries) => {
                Some(Table::new(path, (key, span), entries, self.findings).read_all(read))
            }
            other => {
                let fault = Fault::wrong_type("a table", other).help(format!("write [{path}]"));
                self.keep(&path, value.span(), Err(fault))
            }
        }
    }

    /// Turns a fault into a finding.
    pub(super) fn keep<T>(
        &mut self,
        path: &str,
        span: Span,
        result: Result<T, Fault>,
    ) -> Option<T> {
        result.map_err(|fault| self.findings.push(fault.into_finding(path, span))).ok()
    }

    fn report_unknown_keys(&mut self) {
        if self.free {
            return;
        }
        for (key, span, _) in self.in_order() {
            if self.known.contains(&key) || self.silent.contains(&key) {
                continue;
            }
            let help = nearest(key, self.known.iter().copied()).map_or_else(
                || format!("known keys: {}", self.known.join(", ")),
                |known| format!("did you mean `{known}`?"),
            );
            let message = format!("unknown key `{}`", self.path_of(key));
            self.report(Finding::new(span, message).help(help));
        }
    }
}

/// What is wrong with a value: the end of a sentence that begins with its key.
#[derive(Debug)]
pub(super) struct Fault {
    predicate: String,
    help: Option<String>,
    fragile: bool,
}

impl Fault {
    pub(super) fn new(predicate: impl Into<String>) -> Self {
        Self { predicate: predicate.into(), help: None, fragile: false }
    }

    fn wrong_type(wanted: &str, value: &DeValue<'_>) -> Self {
        Self::new(format!("must be {wanted}, not {}", type_name(value)))
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        self.help_if(Some(help.into()))
    }

    fn help_if(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }

    /// See [`Finding::fragile`].
    pub(super) fn fragile(mut self) -> Self {
        self.fragile = true;
        self
    }

    pub(super) fn into_finding(self, path: &str, span: Span) -> Finding {
        let mut finding = Finding::new(span, format!("`{path}` {}", self.predicate));
        finding.help = self.help;
        finding.fragile = self.fragile;
        finding
    }
}

/// Finds what is named twice.
#[derive(Default)]
pub(super) struct Repeats {
    seen: HashMap<String, Span>,
}

impl Repeats {
    /// Notes a name and its place; a finding with both places when it was noted before.
    pub(super) fn add(&mut self, name: &str, span: Span) -> Option<Finding> {
        if let Some(first) = self.seen.get(name) {
            let finding = Finding::new(span, format!("`{name}` stands twice"));
            return Some(finding.label("and again here").related(first.clone(), "first here"));
        }
        self.seen.insert(name.to_owned(), span);
        None
    }
}

pub(super) fn string<'d>(value: Value<'d>) -> Result<&'d str, Fault> {
    value.get_ref().as_str().ok_or_else(|| Fault::wrong_type("a string", value.get_ref()))
}

pub(super) fn boolean(value: Value<'_>) -> Result<bool, Fault> {
    let value = value.get_ref();
    value.as_bool().ok_or_else(|| Fault::wrong_type("true or false", value))
}

/// An integer in a range.
pub(super) fn integer<T>(value: Value<'_>, range: RangeInclusive<T>) -> Result<T, Fault>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    let wanted = format!("an integer from {} to {}", range.start(), range.end());
    let DeValue::Integer(integer) = value.get_ref() else {
        return Err(Fault::wrong_type(&wanted, value.get_ref()));
    };
    let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
    let number = number.and_then(|number| T::try_from(number).ok());
    let number = number.filter(|number| range.contains(number));
    number.ok_or_else(|| Fault::new(format!("must be {wanted}")))
}

/// A duration in a range.
pub(super) fn duration(
    value: Value<'_>,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Fault> {
    let text = quantity(value, "a duration", |n| format!("{n}s"))?;
    let duration = parse_duration(text)
        .map_err(|error| Fault::new("is no duration").help(error.to_string()))?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
    Err(Fault::new(format!("must be from {least} to {most}")))
}

/// A size in bytes, in a range.
pub(super) fn size(value: Value<'_>, range: RangeInclusive<u64>) -> Result<u64, Fault> {
    let text = quantity(value, "a size", |n| format!("{n}B"))?;
    let size =
        parse_size(text).map_err(|error| Fault::new("is no size").help(error.to_string()))?;
    if range.contains(&size) {
        return Ok(size);
    }
    let (least, most) = (show_size(*range.start()), show_size(*range.end()));
    Err(Fault::new(format!("must be from {least} to {most}")))
}

/// One of several words.
pub(super) fn choice<T: Copy>(value: Value<'_>, choices: &[(&str, T)]) -> Result<T, Fault> {
    let quoted: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let wanted = format!("one of {}", quoted.join(", "));
    let Some(text) = value.get_ref().as_str() else {
        return Err(Fault::wrong_type(&wanted, value.get_ref()));
    };
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
    found.ok_or_else(|| {
        let near = nearest(text, choices.iter().map(|(word, _)| *word));
        let help = near.map(|word| format!("did you mean \"{word}\"?"));
        Fault::new(format!("must be {wanted}")).help_if(help)
    })
}

/// The text of a number with a unit; a bare number gets told its likely unit.
fn quantity<'d>(
    value: Value<'d>,
    wanted: &str,
    suggest: impl Fn(u64) -> String,
) -> Result<&'d str, Fault> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text),
        DeValue::Integer(integer) => {
            let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
            let help = number.map(|number| format!("write \"{}\"", suggest(number)));
            Err(Fault::new(format!("must be {wanted} with its unit")).help_if(help))
        }
        other => Err(Fault::wrong_type(wanted, other)),
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The word that `text` was probably meant to be, if one is near enough.
pub(super) fn nearest<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let near = words.map(|word| (edit_distance(text, word), word)).min_by_key(|(steps, _)| *steps);
    near.filter(|(steps, word)| *steps <= 1 + word.len() / 4).map(|(_, word)| word)
}

/// Levenshtein's distance in characters, counting two swapped neighbours as one step.
fn edit_distance(from: &str, to: &str) -> usize {
    // Nothing this long is near a known word, and the table below is quadratic.
    if from.len() > 256 {
        return usize::MAX;
    }
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    rows[0] = (0..=to.len()).collect();
    for i in 1..=from.len() {
        rows[i][0] = i;
        for j in 1..=to.len() {
            let changed = usize::from(from[i - 1] != to[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            least = least.min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_another_word_finds_none() {
        let words = ["threads", "listen", "default_app", "drain_timeout"];
        for (text, word) in [
            ("thread", Some("threads")),
            ("lisetn", Some("listen")),
            ("default-app", Some("default_app")),
            ("drain_time", Some("drain_timeout")),
            ("port", None),
            ("", None),
            ("workers", None),
        ] {
            assert_eq!(nearest(text, words.into_iter()), word, "{text:?}");
        }
    }
}
