//! The clients that wait for the end of a drain.

use std::time::Instant;

use super::drain_view::{DrainName, DrainView};

/// Shows a drain as soon as it has ended, at the latest at this time.
pub(crate) struct DrainWatch {
    pub(crate) drain: DrainName,
    pub(crate) until: Instant,
    /// Called with none if there is no such drain.
    pub(crate) show: Box<dyn FnOnce(Option<DrainView>) + Send>,
}

/// All that wait.
#[derive(Default)]
pub(super) struct Watchers(Vec<DrainWatch>);

impl Watchers {
    /// When the first of them has waited long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.iter().map(|watch| watch.until).min()
    }

    /// Waits for the end of this drain, which looks so now; shows it at once if it has ended, or
    /// if there is no time to wait.
    pub(super) fn add(&mut self, watch: DrainWatch, view: Option<DrainView>, now: Instant) {
        let is_over = view.as_ref().is_none_or(|view| view.verdict.is_some());
        if is_over || watch.until <= now {
            return (watch.show)(view);
        }
        self.0.push(watch);
    }

    /// A drain has ended so.
    pub(super) fn show_end(&mut self, view: &DrainView) {
        for watch in self.0.extract_if(.., |watch| watch.drain == view.name) {
            (watch.show)(Some(view.clone()));
        }
    }

    /// Those that have waited long enough.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<DrainWatch> {
        self.0.extract_if(.., |watch| watch.until <= now).collect()
    }
}
