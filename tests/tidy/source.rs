//! The files of a folder, prepared for checks: which parts are code, and which are product code.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One file of Rust.
pub(crate) struct Source {
    /// Relative to the folder that was read, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with comments and the insides of literals blanked, at the same places.
    pub(crate) code: String,
    /// The code with everything under `#[cfg(test)]` blanked too; empty for a file of tests.
    pub(crate) product: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = without_comments_and_literals(text);
        let product = if is_test_file(path) { String::new() } else { without_tests(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, product }
    }

    /// The module path of the file from the crate's root: `http/head.rs` is `[http, head]`.
    pub(crate) fn module(&self) -> Vec<&str> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let mut parts: Vec<&str> = stem.split('/').collect();
        if matches!(parts.last(), Some(&("mod" | "lib"))) {
            parts.pop();
        }
        parts
    }

    /// A complaint about the place of byte `at`.
    pub(crate) fn complain(&self, at: usize, what: &str) -> String {
        let line = self.text[..at].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }

    /// The places of `word` in `text` where it stands alone.
    pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        text.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let before = text[..*at].chars().next_back();
            let after = text[at + word.len()..].chars().next();
            !before.is_some_and(is_name_char) && !after.is_some_and(is_name_char)
        })
    }
}

/// All Rust files of a folder; none if there is no such folder.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(source(&root, &path));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn source(root: &Path, path: &PathBuf) -> Source {
    let text = fs::read_to_string(path).expect("a readable file");
    let relative = path.strip_prefix(root).expect("below the root");
    Source::new(relative.to_str().expect("a plain name"), &text)
}

/// Where a function's body opens; `None` for a declaration without one.
pub(crate) fn body(code: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, char) in code.char_indices() {
        match char {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '{' if depth == 0 => return Some(at),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// A module of tests in a file of its own: its parent declares it under `#[cfg(test)]`.
pub(crate) fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("/test_support.rs")
}

/// The length of the block that opens at the beginning of `code`.
pub(crate) fn closing(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, char) in code.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    code.len()
}

pub(crate) fn is_name_char(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// Blanks comments and the insides of string and character literals; what is left stays in place.
pub(crate) fn without_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = skipped(text, at);
        if length > 0 {
            blank(&mut code, &text[at..at + length]);
            at += length;
        } else {
            let char = text[at..].chars().next().unwrap_or(' ');
            code.push(char);
            at += char.len_utf8();
        }
    }
    code
}

/// As many bytes of blanks, with the line breaks kept.
fn blank(code: &mut String, text: &str) {
    code.extend(text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
}

/// How many bytes at `at` are a comment or a literal; 0 if none begins there.
fn skipped(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    let after_name = text[..at].chars().next_back().is_some_and(is_name_char);
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if rest.starts_with('\'') {
        return character(rest);
    }
    let raw = rest.trim_start_matches(['b', 'c']);
    let prefix = rest.len() - raw.len();
    if !after_name && prefix <= 1 && raw.starts_with('r') {
        let hashes = raw[1..].bytes().take_while(|byte| *byte == b'#').count();
        if raw[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let content = prefix + 2 + hashes;
            return rest[content..].find(&end).map_or(rest.len(), |at| content + at + end.len());
        }
    }
    0
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a literal that opens with `quote`, up to the next one that isn't escaped.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, char) in rest.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if char == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest[1..].chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(rest, '\''),
        _ => 0,
    }
}

/// Blanks each item behind a `cfg` that names `test`.
pub(crate) fn without_tests(code: &str) -> String {
    let mut product = String::with_capacity(code.len());
    let mut at = 0;
    let starts = ["#[cfg(test)]", "#[cfg(all(test"];
    while let Some(start) = starts.iter().filter_map(|start| code[at..].find(start)).min() {
        product.push_str(&code[at..at + start]);
        at += start;
        let attribute = code[at..].find(']').map_or(0, |end| end + 1);
        let item = &code[at + attribute..];
        let length = match body(item) {
            Some(open) => open + closing(&item[open..]),
            None => item.find(';').map_or(item.len(), |end| end + 1),
        };
        blank(&mut product, &code[at..at + attribute + length]);
        at += attribute + length;
    }
    product.push_str(&code[at..]);
    product
}
