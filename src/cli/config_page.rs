//! tidegate.toml(5): the man page of the config.
//!
//! Made from one source: the block in docs/configuration.md that has every key with its default and
//! a short explanation. A test compares that block with the parser. This module only does the
//! layout.

use clap::{Args, ValueEnum};
use roff::{Roff, bold, roman};

use super::{DONE, failure::Failure, pages, show};

const CONFIGURATION: &str = include_str!("../../docs/configuration.md");

/// What `man` takes.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The man page to print
    #[arg(value_enum, default_value_t = Page::Tidegate)]
    page: Page,
}

/// A man page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Page {
    /// tidegate(1): the commands
    Tidegate,
    /// tidegate.toml(5): the config
    Toml,
}

impl Man {
    pub(super) fn run(&self, command: clap::Command) -> Result<u8, Failure> {
        if self.page == Page::Tidegate {
            return pages::man(command);
        }
        show::print(&config_page())?;
        Ok(DONE)
    }
}

/// A part of the block.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'t> {
    /// `[server]`, and the comment after it.
    Table(&'t str, String),
    Key {
        /// `threads = 0`, as written.
        setting: String,
        is_default: bool,
        about: String,
    },
    /// A comment line of its own.
    Remark(&'t str),
}

/// The block that has every key.
fn block() -> &'static str {
    let behind = CONFIGURATION.split_once("\n## Every key\n").map_or("", |(_, behind)| behind);
    let behind = behind.split_once("```toml\n").map_or("", |(_, behind)| behind);
    behind.split_once("```").map_or("", |(block, _)| block)
}

/// Splits the block into its parts.
fn pieces(block: &str) -> Vec<Piece<'_>> {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let indented = line.starts_with(' ');
        if let (true, Some(Piece::Key { setting, about, .. })) = (indented, pieces.last_mut()) {
            // Continues the previous key: its comment or its value.
            match line.trim_start().strip_prefix("# ") {
                Some(more) => *about = format!("{about} {}", more.trim()).trim().to_owned(),
                None => *setting = format!("{setting} {}", line.trim()),
            }
            continue;
        }
        let (text, about) = split_comment(line.strip_prefix("# ").unwrap_or(line));
        pieces.push(match text {
            text if text.starts_with('[') => Piece::Table(text, about.to_owned()),
            text if text.contains(" = ") => Piece::Key {
                setting: squeezed(text),
                is_default: !line.starts_with('#'),
                about: about.to_owned(),
            },
            _ => Piece::Remark(line.trim_start_matches("# ")),
        });
    }
    pieces
}

/// Splits a line into the setting and its comment.
fn split_comment(line: &str) -> (&str, &str) {
    match line.split_once("  # ").or_else(|| line.split_once(" # ")) {
        Some((text, about)) => (text.trim(), about.trim()),
        None => (line.trim(), ""),
    }
}

/// Removes the blanks that align columns.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn config_page() -> String {
    let mut page = Roff::new();
    let version = concat!("tidegate ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["tidegate.toml", "5", "", version, "File formats"]);
    page.control("SH", ["NAME"]);
    page.text([roman("tidegate.toml - the config of tidegate(1)")]);
    page.control("SH", ["DESCRIPTION"]);
    for text in [
        "tidegate(1) reads its config from ./config.toml, or from the file that --config names; \
         the Debian package has it at /etc/tidegate/config.toml. It is TOML. Paths in it are \
         relative to the file. Durations are written as \"500ms\", \"30s\" or \"1m30s\", sizes as \
         \"16KiB\". An unknown key is an error.",
        "tidegate check reports every mistake in it, and what this machine lacks for it. tidegate \
         reload --dry-run says what a reload would do; tidegate reload, or SIGHUP, applies it.",
        "Below is every key with its default. A key marked (example) has no default.",
    ] {
        page.text([roman(text)]);
        page.control("PP", []);
    }
    for piece in pieces(block()) {
        match piece {
            Piece::Table(name, about) => {
                page.control("SH", [name]);
                if !about.is_empty() {
                    page.text([roman(about)]);
                }
            }
            Piece::Key { setting, is_default, about } => {
                page.control("TP", []);
                let mark = if is_default { "" } else { "  (example)" };
                page.text([bold(setting), roman(mark)]);
                page.text([roman(about)]);
            }
            Piece::Remark(text) => {
                page.control("PP", []);
                page.text([roman(text)]);
            }
        }
    }
    page.control("SH", ["EXAMPLE"]);
    page.control("nf", []);
    for line in EXAMPLE.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("tidegate"), roman("(1)")]);
    page.to_roff()
}

const EXAMPLE: &str = r#"[server]
listen = ["0.0.0.0:80", "[::]:80"]

[apps."www.example.com"]
aliases = ["example.com"]
files = { root = "/srv/www" }

[apps."shop.example.com".proxy]
upstreams = ["http://127.0.0.1:9000", "http://127.0.0.1:9001"]
health = { path = "/up" }
"#;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_block_is_split_into_tables_keys_and_remarks() {
        let block = "[a]    # of it\nx = 1   # one,\n        # and more\n# y = \"#\"   # two\n\
                     # exactly one:\nz  = { a = 1,\n      b = 2 }\n";
        let key = |setting: &str, is_default, about: &str| Piece::Key {
            setting: setting.to_owned(),
            is_default,
            about: about.to_owned(),
        };
        let expected = [
            Piece::Table("[a]", "of it".to_owned()),
            key("x = 1", true, "one, and more"),
            key("y = \"#\"", false, "two"),
            Piece::Remark("exactly one:"),
            key("z = { a = 1, b = 2 }", true, ""),
        ];
        assert_eq!(pieces(block), expected);
        assert!(pieces(super::block()).len() > 60, "{}", super::block());
    }

    #[test]
    fn the_example_is_a_valid_config() {
        let config = Config::parse(EXAMPLE, Path::new("example"), Path::new("/"));
        assert_eq!(config.unwrap_or_else(|error| panic!("{error}")).apps.len(), 2);
    }
}
