//! The lines of a loop to another process, by which connections go or come.

use std::{collections::VecDeque, os::fd::OwnedFd};

use mio::Token;

/// What a loop needs to offer its connections.
#[derive(Default)]
pub(in super::super) struct Giving {
    pub(super) lines: Vec<GivingLine>,
    /// Connections that were at rest when they were put here.
    pub(super) queue: VecDeque<Token>,
}

/// A line of the old process.
pub(super) struct GivingLine {
    pub(super) socket: OwnedFd,
    pub(super) token: Token,
    /// An answer may be there, or the end.
    pub(super) ready: bool,
    /// The connections of the offer that is not answered.
    pub(super) offered: Vec<Token>,
}

impl Giving {
    /// An edge came for this token; it may be another's.
    pub(in super::super) fn on_ready(&mut self, token: Token) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.token == token) {
            line.ready = true;
        }
    }

    /// Edges may be lost: an answer may be there.
    pub(in super::super) fn look_anew(&mut self) {
        self.lines.iter_mut().for_each(|line| line.ready = true);
    }

    /// Whether there is something to do at once.
    pub(in super::super) fn has_work(&self) -> bool {
        let is_free = |line: &GivingLine| line.offered.is_empty() && !self.queue.is_empty();
        self.lines.iter().any(|line| line.ready || is_free(line))
    }
}

/// The lines by which offers come.
#[derive(Default)]
pub(in super::super) struct Taking(pub(super) Vec<TakingLine>);

/// A line of the new process.
pub(super) struct TakingLine {
    pub(super) socket: OwnedFd,
    pub(super) token: Token,
    /// An offer may be there, or the end.
    pub(super) ready: bool,
}

impl Taking {
    /// An edge came for this token; it may be another's.
    pub(in super::super) fn on_ready(&mut self, token: Token) {
        if let Some(line) = self.0.iter_mut().find(|line| line.token == token) {
            line.ready = true;
        }
    }

    /// Edges may be lost: an offer may be there.
    pub(in super::super) fn look_anew(&mut self) {
        self.0.iter_mut().for_each(|line| line.ready = true);
    }

    /// Whether there is something to do at once.
    pub(in super::super) fn has_work(&self) -> bool {
        self.0.iter().any(|line| line.ready)
    }
}
