//! What the upstreams of a new life begin with: the state of the life before, and what the checks
//! of a deploy have found.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::{Upstreams, later};

impl Upstreams {
    /// Takes over the state of the previous life's upstreams with the same URLs: the results of
    /// checks if this life has checks, ejections if it ejects, and drains. What a deploy has just
    /// found by its own checks is not overwritten. Call it before the loops get this life.
    pub(crate) fn take_over(&self, old: &Self) {
        let is_checked = self.is_checked.load(Acquire);
        let health = self.config.health.is_some() && !is_checked;
        let ejection = self.config.eject_after != 0 && !is_checked;
        for endpoint in &self.endpoints {
            let same = old.endpoints.iter().find(|other| other.url() == endpoint.url());
            // An embedder's app may use the same upstreams in its next life.
            if let Some(same) = same.filter(|same| !std::ptr::eq(*same, endpoint)) {
                endpoint.take_over(same, health, ejection);
            }
        }
    }

    /// Begins with what the checks of a deploy have found: for each upstream why it is not ready,
    /// if it is not. Those that are ready begin their slow start. One that is not ready is down
    /// until health checks find it up; without health checks it is ejected. Call it before the
    /// loops get this life, and before [`Self::take_over`].
    pub(crate) fn begin_checked(&self, not_ready: &[Option<String>], now_ns: u64) {
        for (endpoint, reason) in self.endpoints.iter().zip(not_ready) {
            match reason {
                None => endpoint.resume(now_ns),
                Some(_) if self.config.health.is_some() => {
                    endpoint.set_health(reason.clone(), now_ns);
                }
                Some(_) => endpoint.eject(later(now_ns, self.config.eject_for)),
            }
        }
        self.is_checked.store(true, Release);
    }
}
