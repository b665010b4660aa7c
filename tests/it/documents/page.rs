//! Parses a page of the documents: blocks, headings, links.

use std::{fs, path::Path};

/// The repository's folder.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Markdown file.
pub(crate) struct Page {
    /// Relative to the repository.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A fenced block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The line of its fence, from 1.
    pub(crate) line: usize,
    /// The info string of its fence: `sh no-run: it takes an hour`.
    pub(crate) info: String,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn read(path: &str) -> Self {
        let text = fs::read_to_string(Path::new(ROOT).join(path)).expect(path);
        Self { path: path.to_owned(), text }
    }

    /// Every page for users and contributors.
    pub(crate) fn all() -> Vec<Self> {
        let docs = fs::read_dir(Path::new(ROOT).join("docs")).expect("docs");
        let names = docs.map(|entry| entry.expect("an entry").file_name().into_string().unwrap());
        let mut paths: Vec<_> =
            names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
        paths.sort();
        let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md"];
        top.into_iter().map(str::to_owned).chain(paths).map(|path| Self::read(&path)).collect()
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut is_open = false;
        for (index, line) in self.text.lines().enumerate() {
            match line.strip_prefix("```") {
                Some("") if is_open => is_open = false,
                Some(info) => {
                    assert!(!is_open, "{}:{}: a fence in a block", self.path, index + 1);
                    is_open = true;
                    let info = info.to_owned();
                    blocks.push(Block { line: index + 1, info, text: String::new() });
                }
                None if is_open => {
                    let block = blocks.last_mut().expect("one is open");
                    block.text = format!("{}{line}\n", block.text);
                }
                None => {}
            }
        }
        assert!(!is_open, "{}: a block without an end", self.path);
        blocks
    }

    /// The text without its blocks; lines stay where they are.
    pub(crate) fn prose(&self) -> String {
        let mut is_open = false;
        let lines = self.text.lines().map(|line| {
            let is_fence = line.starts_with("```");
            is_open ^= is_fence;
            if is_open || is_fence { "" } else { line }
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The block in the section of this heading.
    pub(crate) fn block_under(&self, heading: &str) -> String {
        let at = self.text.lines().position(|line| line == heading).expect(heading);
        let blocks = self.blocks();
        blocks.into_iter().find(|block| block.line > at).expect("a block").text
    }

    /// What a link's `#fragment` can name.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let prose = self.prose();
        let headings = prose.lines().filter(|line| line.starts_with('#'));
        headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
    }

    /// The targets of all links and pictures.
    pub(crate) fn links(&self) -> Vec<String> {
        let prose = self.prose();
        let behind = prose.split("](").skip(1);
        behind.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
    }

    /// The code spans in the first cells of all tables.
    pub(crate) fn first_cells(&self) -> Vec<String> {
        let rows = self.text.lines().filter_map(|line| line.strip_prefix("| "));
        let cells = rows.filter_map(|row| row.split(" | ").next());
        cells.flat_map(code_spans).collect()
    }
}

/// The texts between backticks.
pub(crate) fn code_spans(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A heading as a fragment, by GitHub's rule.
fn anchor(heading: &str) -> String {
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
