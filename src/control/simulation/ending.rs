//! The end of a run: the server stops, and nothing may be left open.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    super::{Input, StopAsker, StopRequest, Verdict},
    new_process::Upgrade,
    oracle::LATE_MAX,
    scripted_loop::ScriptedLoop,
    world::World,
};

/// How long the process may be there after its stop is over.
const END_MAX: Duration = Duration::from_secs(3);

/// So many rounds end every run.
const ROUNDS_MAX: usize = 4000;

impl World {
    /// What is under way comes to its end, and the server to a stop.
    pub(super) fn finish(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if !self.is_upgrade_under_way() || self.ended.is_some() {
                break;
            }
            self.do_all_that_is_there();
            self.go_on_with_upgrade();
            if self.ended.is_none() {
                self.pass_until(self.control.due());
            }
        }
        let hangs = self.is_upgrade_under_way() && self.ended.is_none();
        assert!(!hangs, "an upgrade never comes to its end");
        self.are_handshakes_pending.store(false, Ordering::Relaxed);
        let stays_stuck = self.random.one_in(4);
        if !stays_stuck {
            self.loops.iter().for_each(ScriptedLoop::recover);
        }
        if self.ended.is_none() {
            let (reason, timeout) = ("the end".to_owned(), None);
            self.send(Input::Stop(StopRequest { reason, timeout, by: StopAsker::Signal }));
        }
        for _ in 0..ROUNDS_MAX {
            if self.ended.is_some() {
                return self.check_end();
            }
            self.do_all_that_is_there();
            for _ in 0..3 {
                self.end_exchange();
            }
            if let Some((over, _)) = self.oracle.stop.as_ref().and_then(|stop| stop.over.clone()) {
                assert!(self.now <= over + END_MAX + LATE_MAX, "the process never ends");
            }
            if self.ended.is_none() {
                self.pass_until(self.control.due());
            }
        }
        panic!("no end of the stop");
    }

    fn check_end(&mut self) {
        let unread_stops = self.inputs.len();
        self.control.pass_unread_stops_on(&self.inputs);
        let (admitted, cut) = self.oracle.totals();
        let totals = self.control.lives.totals();
        assert_eq!(totals.requests_total, admitted, "requests are lost from the totals");
        let stop = self.oracle.stop.as_ref().and_then(|stop| stop.over.as_ref());
        let (_, verdict) = stop.expect("the stop is over");
        assert_eq!(self.ended.map(Verdict::name), Some(&**verdict), "the last verdict");
        assert!(!self.oracle.is_draining_anything(), "I2: a drain has no verdict");
        assert_eq!(totals.cut_total, cut, "what was cut is not in the totals");
        if self.loops.iter().all(ScriptedLoop::has_ended) {
            assert_eq!(self.oracle.in_flight(), 0, "I3: a count does not return to zero");
        }
        self.is_over = true;
        self.listen();
        let open = self.questions.iter().position(Option::is_some);
        assert_eq!(open, None, "a question has no answer");
        let unseen = self.watches.iter().position(Option::is_some);
        assert!(unseen.is_none_or(|watch| self.watches[watch] > Some(self.now)), "unseen");
        if let Upgrade::Serving(serving) = &self.upgrade {
            self.received_stops += serving.stops.try_iter().count();
        }
        assert!(self.passed_stops + unread_stops >= self.received_stops, "stops come from nowhere");
    }
}
