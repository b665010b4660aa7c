//! Names that may occur once.

use std::collections::HashMap;

use super::error::{Finding, Span};

/// Finds repeated names.
#[derive(Default)]
pub(super) struct Repeats {
    seen: HashMap<String, Span>,
}

impl Repeats {
    /// Adds a name and its position. Returns a finding with both positions if the name is repeated.
    pub(super) fn add(&mut self, name: &str, span: Span) -> Option<Finding> {
        if let Some(first) = self.seen.get(name) {
            let finding = Finding::new(span, format!("`{name}` is repeated"));
            return Some(finding.label("and again here").related(first.clone(), "first here"));
        }
        self.seen.insert(name.to_owned(), span);
        None
    }
}
