//! The text of a config together with its meaning, so that checks outside the parser can report
//! problems at their position: this machine may lack what a valid config names.
//!
//! A place is the path of a key: `["apps", "www.example.com", "files", "root"]`. Never decides what
//! is wrong.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{self, Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    ConfigError, admin,
    error::{self, Finding, Lines, Span},
    hosts::host_pattern,
    regular::read_regular,
    syntax::Document,
};

/// The name of standard input.
const STANDARD_INPUT: &str = "-";

/// The text of a config file, its name and its folder.
pub(crate) struct Source {
    /// The name in messages.
    name: PathBuf,
    text: String,
    /// The folder from which relative paths start.
    base: PathBuf,
}

/// A setting in a valid config that won't work as intended.
#[derive(Debug)]
pub(crate) struct Warning {
    place: Vec<String>,
    message: String,
    help: Option<String>,
}

impl Warning {
    pub(crate) fn new(place: &[&str], message: impl Into<String>) -> Self {
        let place = place.iter().map(|&key| key.to_owned()).collect();
        Self { place, message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Warnings, each rendered with its position.
pub(crate) struct Warnings(Vec<String>);

impl Warnings {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n\n"))
    }
}

impl Source {
    /// Reads a file; `-` is standard input, whose paths start from the working directory.
    ///
    /// # Errors
    /// If it cannot be read or is not UTF-8.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        if !Self::is_standard_input(path) {
            return Self::read_with(path, path, |path| fs::read(path));
        }
        Self::read_with(path, Path::new("(standard input)"), |_| {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).map(|_| bytes)
        })
    }

    /// Like [`Source::read`], but only for a regular file: opening another kind could block.
    ///
    /// # Errors
    /// Like there, and if it is another kind of file.
    pub(crate) fn read_regular(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with(path, path, read_regular)
    }

    fn read_with(
        path: &Path,
        name: &Path,
        read: impl FnOnce(&Path) -> io::Result<Vec<u8>>,
    ) -> Result<Self, ConfigError> {
        let whole_file = |error: io::Error| ConfigError::whole_file(name, &error);
        let bytes = read(path).map_err(whole_file)?;
        let absolute = path::absolute(path).map_err(whole_file)?;
        let base = absolute.parent().unwrap_or(&absolute).to_owned();
        let text = String::from_utf8(bytes).map_err(|error| {
            let end = error.utf8_error().valid_up_to();
            let finding = Finding::new(end..end, "the file is not UTF-8 from here on");
            let text = String::from_utf8_lossy(&error.as_bytes()[..end]);
            ConfigError::new(name, &text, vec![finding])
        })?;
        Ok(Self { name: name.to_owned(), text, base })
    }

    /// Whether this path means standard input.
    pub(crate) fn is_standard_input(path: &Path) -> bool {
        path == Path::new(STANDARD_INPUT)
    }

    /// The name in messages.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The folder from which relative paths start.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// An error at a place.
    pub(crate) fn error(&self, place: &[&str], message: String) -> ConfigError {
        let document = Document::parse(&self.text);
        let tree = document.tree.get_ref();
        let finding = Finding::new(span_of(tree, place), message);
        ConfigError::new(&self.name, &admin::hide_token(&self.text, tree), vec![finding])
    }

    /// The line of each place, from 1.
    pub(crate) fn lines<'p>(&self, places: impl Iterator<Item = &'p [String]>) -> Vec<usize> {
        let document = Document::parse(&self.text);
        let (tree, lines) = (document.tree.get_ref(), Lines::of(&self.text));
        let line = |place: &[String]| {
            let place: Vec<&str> = place.iter().map(String::as_str).collect();
            lines.line(span_of(tree, &place).start)
        };
        places.map(line).collect()
    }

    /// Renders warnings in the order of the file.
    pub(crate) fn show(&self, warnings: Vec<Warning>) -> Warnings {
        let document = Document::parse(&self.text);
        let tree = document.tree.get_ref();
        let finding = |Warning { place, message, help }: Warning| {
            let place: Vec<&str> = place.iter().map(String::as_str).collect();
            let mut finding = Finding::new(span_of(tree, &place), message);
            finding.help = help;
            finding
        };
        let findings = warnings.into_iter().map(finding).collect();
        Warnings(error::warnings(&self.name, &admin::hide_token(&self.text, tree), findings))
    }
}

/// The position of a place; if part of its path is absent, the position of the rest.
fn span_of(tree: &DeTable<'_>, place: &[&str]) -> Span {
    let mut span = 0..0;
    let mut table = Some(tree);
    let mut array = None;
    for (depth, key) in place.iter().enumerate() {
        let is_host = depth == 1 && place[0] == "apps";
        let is_meant = |name: &str| {
            name == *key || is_host && host_pattern(name).is_ok_and(|host| host == *key)
        };
        let entry = table.and_then(|table| table.iter().find(|(name, _)| is_meant(name.get_ref())));
        let item =
            array.and_then(|items: &toml::de::DeArray<'_>| items.get(key.parse::<usize>().ok()?));
        let Some(value) = entry.map(|(_, value)| value).or(item) else { break };
        let is_table = matches!(value.get_ref(), DeValue::Table(_));
        span = match entry {
            Some((name, _)) if is_table => name.span(),
            _ => value.span(),
        };
        table = value.get_ref().as_table();
        array = value.get_ref().as_array();
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_in_any_syntax_or_else_its_parent() {
        let text = "[server]\nlisten = ['127.0.0.1:1', { address = '127.0.0.1:2' }]\n\
                    [apps.\"A.test.\".proxy]\nupstreams = ['http://a', { url = 'http://b' }]\n\
                    [apps.b]\nfiles = { root = '.' }\n";
        let document = Document::parse(text);
        for (place, expected) in [
            (&["server"][..], "server"),
            (&["server", "listen"], "['127.0.0.1:1', { address = '127.0.0.1:2' }]"),
            (&["server", "listen", "0"], "'127.0.0.1:1'"),
            (&["server", "listen", "1", "address"], "'127.0.0.1:2'"),
            (&["apps", "a.test"], "\"A.test.\""),
            (&["apps", "a.test", "proxy", "upstreams", "1", "url"], "'http://b'"),
            (&["apps", "a.test", "proxy", "upstreams", "0", "url"], "'http://a'"),
            (&["apps", "b", "files", "root"], "'.'"),
            (&["apps", "b", "files", "index"], "files"),
            (&["log", "path"], ""),
        ] {
            assert_eq!(&text[span_of(document.tree.get_ref(), place)], expected, "{place:?}");
        }
    }
}
