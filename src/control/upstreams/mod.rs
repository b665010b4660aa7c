//! What is done for upstreams beside the loops: their checks, and the look-up of their names.
//!
//! Two threads for the whole process, begun with the first app that needs one of them: `checks`
//! waits for sockets only, `resolver` for the system's resolver, which can be slow and must hold up
//! no check. They hold no app: what is watched ends with its life. Results reach the loops by the
//! state of [`Upstreams`], never by a message. Changes are reported to operators, as are the
//! failures that loops report.

mod checks;
mod failure;
mod probe;
mod resolver;
#[cfg(test)]
mod tests;
mod watch;
mod watched;

pub(super) use failure::tell_failure;
pub(super) use probe::{Probe, ProbeResult, Question, buffers};
pub(super) use watch::UpstreamWatch;
