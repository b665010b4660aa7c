//! Typed reading of a TOML tree that collects problems instead of stopping at the first.
//!
//! The caller reads the keys of a [`Table`] one by one; keys that were never read are unknown. A
//! fault in one key never hides faults in others. A value after a fault may be a default: it is
//! dropped together with the whole configuration.

use std::ops::RangeInclusive;

use toml::de::{DeArray, DeTable, DeValue};

use super::{
    error::{Finding, Span},
    keys,
    repeats::Repeats,
    values::{Fault, Value, choice, nearest, string},
};

/// The size of an array that may be empty.
pub(super) const ANY_COUNT: RangeInclusive<usize> = 0..=usize::MAX;

/// The user's syntax, for the wording of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Toml,
    Json,
}

/// One of some words, or an array with the positions of its items.
pub(super) enum WordOrList<W, T> {
    Word(W),
    List(Vec<(T, Span)>),
}

/// A table being read.
pub(super) struct Table<'d, 'f> {
    /// The dotted path for messages; empty for the root.
    path: String,
    key: &'d str,
    /// Where the table is named.
    span: Span,
    entries: &'d DeTable<'d>,
    syntax: Syntax,
    known: Vec<&'static str>,
    /// Keys that are reported elsewhere.
    silent: Vec<&'d str>,
    /// Whether every key is allowed.
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
        let nowhere = ("", 0..0);
        Table::new(String::new(), nowhere, tree, Syntax::Toml, findings).read_all(read)
    }

    /// Reads an app's table that came as JSON. Paths are relative to it.
    pub(super) fn read_json<T>(
        host: &'d str,
        value: Value<'d>,
        findings: &'f mut Vec<Finding>,
        read: impl FnOnce(&mut Table<'d, '_>) -> T,
    ) -> Option<T> {
        let DeValue::Table(entries) = value.get_ref() else {
            let fault = no_table(Syntax::Json, host, value.get_ref());
            findings.push(fault.into_finding(host, value.span()));
            return None;
        };
        let name = (host, 0..0);
        Some(Table::new(String::new(), name, entries, Syntax::Json, findings).read_all(read))
    }

    fn new(
        path: String,
        (key, span): (&'d str, Span),
        entries: &'d DeTable<'d>,
        syntax: Syntax,
        findings: &'f mut Vec<Finding>,
    ) -> Self {
        let (known, silent) = (Vec::new(), Vec::new());
        Self { path, key, span, entries, syntax, known, silent, free: false, findings }
    }

    fn read_all<T>(mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let result = read(&mut self);
        self.report_unknown_keys();
        result
    }

    /// The table's name in messages: its dotted path, or the key of a root.
    pub(super) fn name(&self) -> String {
        if self.path.is_empty() { self.key.escape_debug().to_string() } else { self.path.clone() }
    }

    /// The syntax of the table.
    pub(super) fn syntax(&self) -> Syntax {
        self.syntax
    }

    /// The key of the table.
    pub(super) fn key(&self) -> &'d str {
        self.key
    }

    /// Where the table is named.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Reports a problem that the methods here can't find.
    pub(super) fn report(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The dotted path of a key in this table.
    pub(super) fn path_of(&self, key: &str) -> String {
        dotted_path(&self.path, key)
    }

    /// The position of a key, if it is present.
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

    /// The value of a key. The key counts as known from now on.
    fn value(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        self.entries.get(key)
    }

    /// Accepts a key that the caller reports itself.
    pub(super) fn accept(&mut self, key: &'d str) {
        self.silent.push(key);
    }

    /// Reads an optional key.
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

    /// Reads a required key.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value<'d>) -> Result<T, Fault>,
    ) -> Option<T> {
        self.require(key);
        self.optional(key, read)
    }

    /// Reports a required key if it is absent.
    pub(super) fn require(&mut self, key: &'static str) {
        if !self.entries.contains_key(key) {
            let message = format!("`{}` is missing", self.path_of(key));
            let help = format!("add `{key}`");
            self.report(Finding::new(self.span(), message).help(help).fragile());
        }
    }

    /// Reads an array of strings with `count` items, each by `read`, with their positions.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        count: RangeInclusive<usize>,
        read: impl Fn(&'d str) -> Result<T, Fault>,
    ) -> Option<Vec<(T, Span)>> {
        let items = self.optional(key, |value| array(value, count, "an array of strings"))?;
        let mut read_items = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let result = string(item).and_then(&read);
            let path = format!("{}[{index}]", self.path_of(key));
            read_items
                .extend(self.keep(&path, item.span(), result).map(|item_| (item_, item.span())));
        }
        Some(read_items)
    }

    /// Reads one of some words, or an array of strings like [`Table::list`].
    pub(super) fn word_or_list<W: Clone, T>(
        &mut self,
        key: &'static str,
        words: &[(&str, W)],
        read: impl Fn(&'d str) -> Result<T, Fault>,
    ) -> Option<WordOrList<W, T>> {
        if self.entries.get(key).is_some_and(|value| value.get_ref().is_str()) {
            let indices: Vec<_> =
                words.iter().enumerate().map(|(at, (word, _))| (*word, at)).collect();
            let chosen = self.optional(key, |value| choice(value, &indices))?;
            return Some(WordOrList::Word(words[chosen].1.clone()));
        }
        self.list(key, ANY_COUNT, read).map(WordOrList::List)
    }

    /// Reads an array of strings or tables with `count` items, with their positions.
    pub(super) fn strings_or_tables<T>(
        &mut self,
        key: &'static str,
        count: RangeInclusive<usize>,
        read: impl Fn(&'d str) -> Result<T, Fault>,
        read_table: impl Fn(&mut Table<'d, '_>) -> Option<T>,
        of_port: fn(u16) -> String,
    ) -> Option<Vec<(T, Span)>> {
        let wanted = "an array of strings and tables";
        let port_help = |value: &DeValue<'_>| Some(of_port(port(value)?));
        let items = self.optional(key, |value| {
            let help = port_help(value.get_ref());
            array(value, count, wanted).map_err(|fault| fault.help_or(help))
        })?;
        let mut read_items = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let (path, span) = (format!("{}[{index}]", self.path_of(key)), item.span());
            let read_item = match item.get_ref() {
                DeValue::Table(entries) => {
                    let place = (key, span.clone());
                    let table = Table::new(path, place, entries, self.syntax, self.findings);
                    table.read_all(&read_table)
                }
                DeValue::String(text) => self.keep(&path, span.clone(), read(text)),
                other => {
                    let fault = Fault::wrong_type("a string or a table", other);
                    let fault = fault.help_or(port_help(other));
                    self.keep(&path, span.clone(), Err(fault))
                }
            };
            read_items.extend(read_item.map(|item| (item, span)));
        }
        Some(read_items)
    }

    /// Reads a table of strings with any keys, in the order of the file. No two keys may be equal
    /// after `read_key`.
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

    /// Reads a nested table.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'d, '_>) -> T,
    ) -> Option<T> {
        self.table_meant(key, |_| None, read)
    }

    /// Reads a nested table. If the value is something else, suggests the table that was probably
    /// meant.
    pub(super) fn table_meant<T>(
        &mut self,
        key: &'static str,
        meant: impl FnOnce(&DeValue<'d>) -> Option<Meant>,
        read: impl FnOnce(&mut Table<'d, '_>) -> T,
    ) -> Option<T> {
        let value = self.value(key)?;
        let span = self.key_span(key)?;
        if !matches!(value.get_ref(), DeValue::Table(_))
            && let Some(meant) = meant(value.get_ref())
        {
            let (path, fault) = (self.path_of(key), no_table(self.syntax, "", value.get_ref()));
            let help = format!("write {}", inline(self.syntax, key, &meant));
            return self.keep(&path, value.span(), Err(fault.help(help)));
        }
        self.enter(key, span, value, read)
    }

    /// Reads every entry as a nested table, in the order of the file.
    pub(super) fn each_table(&mut self, mut read: impl FnMut(&mut Table<'d, '_>)) {
        self.free = true;
        for (key, span, value) in self.in_order() {
            self.enter(key, span, value, &mut read);
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
                let table = Table::new(path, (key, span), entries, self.syntax, self.findings);
                Some(table.read_all(read))
            }
            other => {
                let fault = no_table(self.syntax, &path, other);
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
            let near = nearest(key, self.known.iter().copied());
            let near = near.map(|known| format!("did you mean `{known}`?"));
            // In JSON, paths are relative to the app's table.
            let path = if self.syntax == Syntax::Json {
                dotted_path("apps.HOST", &self.path).replace('"', "")
            } else {
                self.path.clone()
            };
            let help = keys::advice(&path, key).or(near);
            let help = help.unwrap_or_else(|| format!("known keys: {}", self.known.join(", ")));
            let message = format!("unknown key `{}`", self.path_of(key));
            self.report(Finding::new(span, message).help(help));
        }
    }
}

/// Keys of a table, with their values in a form that is valid in TOML and JSON.
pub(super) type Meant = Vec<(&'static str, String)>;

/// A string in a form that is valid in TOML and JSON.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

fn inline(syntax: Syntax, key: &str, meant: &Meant) -> String {
    let pairs = meant.iter().map(|(key, value)| match syntax {
        Syntax::Toml => format!("{key} = {value}"),
        Syntax::Json => format!("\"{key}\": {value}"),
    });
    let pairs = pairs.collect::<Vec<_>>().join(", ");
    match syntax {
        Syntax::Toml => format!("{key} = {{ {pairs} }}"),
        Syntax::Json => format!("\"{key}\": {{{pairs}}}"),
    }
}

/// The path of a key in the table `table`, in TOML syntax.
pub(super) fn dotted_path(table: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let quoted = if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        format!("\"{}\"", key.escape_debug())
    };
    if table.is_empty() { quoted } else { format!("{table}.{quoted}") }
}

/// An integer as a port.
fn port(value: &DeValue<'_>) -> Option<u16> {
    let DeValue::Integer(integer) = value else { return None };
    u16::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn array<'d>(
    value: Value<'d>,
    count: RangeInclusive<usize>,
    wanted: &str,
) -> Result<&'d DeArray<'d>, Fault> {
    match value.get_ref() {
        DeValue::Array(items) if items.len() < *count.start() => {
            Err(Fault::new(format!("must have at least {} entry", count.start())))
        }
        DeValue::Array(items) if items.len() > *count.end() => {
            Err(Fault::new(format!("must have at most {} entries", count.end())))
        }
        DeValue::Array(items) => Ok(items),
        other => {
            let meant = other.as_str().map(|text| format!("write [\"{}\"]", text.escape_debug()));
            Err(Fault::wrong_type(wanted, other).help_if(meant))
        }
    }
}

fn no_table(syntax: Syntax, path: &str, value: &DeValue<'_>) -> Fault {
    match syntax {
        Syntax::Toml => Fault::wrong_type("a table", value).help(format!("write [{path}]")),
        Syntax::Json => Fault::wrong_type("an object", value).help("write {…}"),
    }
}
