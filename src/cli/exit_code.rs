//! The exit codes of commands.

/// Done or drained.
pub(super) const DONE: u8 = 0;
/// Failed.
pub(super) const FAILED: u8 = 1;
/// Usage or config error.
pub(super) const USAGE: u8 = 2;
/// A deadline, or a second signal, cut exchanges.
pub(super) const CUT: u8 = 3;
