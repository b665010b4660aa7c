//! The way to close listeners without resetting anybody, as a pure machine: (event, now) → step.
//!
//! ```text
//! gating ──all loops gated──► settling ──no handshake, or SETTLE_MAX──► over
//! ```
//! No listener is closed before all of them are gated, for a SYN may be for any of them, nor while
//! a handshake that began before the gate is under way: its client would be reset. Handshakes that
//! never end hold it up for SETTLE_MAX.

use std::time::{Duration, Instant};

/// The closing of some listeners of all loops.
#[derive(Debug)]
pub(super) struct GatePlan {
    /// Loops that have not gated.
    open: Vec<bool>,
    settling: Option<Settling>,
}

#[derive(Clone, Copy, Debug)]
struct Settling {
    look: Instant,
    give_up: Instant,
}

/// The pause between two checks for handshakes. During the first, packets arrive that were on their
/// way through the kernel when the gate fell.
pub(super) const SETTLE: Duration = Duration::from_millis(2);

/// How long handshakes may take. The third packet comes a round trip after the second. If it is
/// lost, the request brings it again, after a second at the earliest.
pub(super) const SETTLE_MAX: Duration = Duration::from_millis(1500);

impl GatePlan {
    /// This many loops have the order to gate.
    pub(super) fn begin(loops: usize) -> Self {
        Self { open: vec![true; loops], settling: None }
    }

    /// A loop has gated, or is gone.
    pub(super) fn on_gated(&mut self, index: usize, now: Instant) {
        self.open[index] = false;
        if self.settling.is_none() && !self.open.contains(&true) {
            self.settling = Some(Settling { look: now + SETTLE, give_up: now + SETTLE_MAX });
        }
    }

    /// When it is time to look for handshakes, and say so by [`GatePlan::on_handshakes`].
    pub(super) fn look(&self) -> Option<Instant> {
        self.settling.map(|settling| settling.look)
    }

    /// Whether handshakes are under way. True when the listeners can be closed.
    pub(super) fn on_handshakes(&mut self, pending: bool, now: Instant) -> bool {
        let Some(settling) = &mut self.settling else { return false };
        settling.look = now + SETTLE;
        !pending || now >= settling.give_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_looked_for_before_all_loops_have_gated() {
        let (mut plan, now) = (GatePlan::begin(2), Instant::now());
        plan.on_gated(0, now);
        assert_eq!(plan.look(), None, "loop 1 is not gated");
        assert!(!plan.on_handshakes(false, now));
        plan.on_gated(1, now);
        assert_eq!(plan.look(), Some(now + SETTLE), "packets may be on their way");
        assert!(plan.on_handshakes(false, now + SETTLE));
    }

    #[test]
    fn handshakes_hold_it_up_but_not_for_ever() {
        let (mut plan, now) = (GatePlan::begin(1), Instant::now());
        plan.on_gated(0, now);
        let late = now + SETTLE_MAX / 2;
        assert!(!plan.on_handshakes(true, late));
        assert_eq!(plan.look(), Some(late + SETTLE));
        plan.on_gated(0, late);
        assert!(plan.on_handshakes(true, now + SETTLE_MAX));
    }
}
