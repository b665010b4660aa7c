//! The watch over the loops: which one is stuck in a turn, and whose app holds it up.
//!
//! Each loop marks when it goes to work and when it sleeps. Control compares the marks about once a
//! second: a loop that is at work on one turn for longer than STUCK_AFTER is stuck, until the turn
//! ends. Two looks have to see the turn, and time before a look that came late doesn't count: a
//! process that was stopped, or had no CPU, and goes on has no loop that is stuck. Nothing here
//! ends a loop: the others go on, and a stop ends without it (I5).

use std::time::{Duration, Instant};

use super::{context::Context, lives::Lives, notices::notice, stuck_loop::StuckLoop};
use crate::{
    duration::{milliseconds, nanoseconds},
    hosted::AppLife,
    metrics::Turn,
};

/// How long a loop may be at work on one turn.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// The pause between two checks while no loop is suspected.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The pause between two checks of a loop that is stuck, or may be.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A look that is so late says that the whole process stood still.
const LATE: Duration = Duration::from_millis(500);

/// What a look at the loops found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoopChange {
    Stuck(usize, Turn),
    Recovered(usize, Turn),
}

/// What is known of the loops. Times are nanoseconds of their epoch.
#[derive(Debug, Default)]
pub(super) struct LoopWatch {
    loops: Vec<WatchedLoop>,
    due_ns: u64,
    /// When a look was late last.
    late_ns: u64,
}

#[derive(Debug, Default)]
struct WatchedLoop {
    /// The turn that the last look saw.
    turn: Option<Turn>,
    is_stuck: bool,
    /// Whose app holds a stuck loop, as it was found out first: the life may be gone later.
    host: Option<String>,
    is_dead: bool,
}

impl LoopWatch {
    pub(super) fn begin(loops: usize) -> Self {
        Self { loops: (0..loops).map(|_| WatchedLoop::default()).collect(), ..Self::default() }
    }

    /// A loop whose thread has ended within a turn is not stuck.
    pub(super) fn on_died(&mut self, index: usize) {
        self.loops[index] = WatchedLoop { is_dead: true, ..WatchedLoop::default() };
    }

    pub(super) fn is_dead(&self, index: usize) -> bool {
        self.loops[index].is_dead
    }

    /// A loop that is not dead.
    pub(super) fn first_alive(&self) -> Option<usize> {
        self.loops.iter().position(|watched| !watched.is_dead)
    }

    /// Compares the turns that the loops are at work on now with those of the last look.
    fn look(&mut self, now_ns: u64, turns: &[Option<Turn>]) -> Vec<LoopChange> {
        let mut changes = Vec::new();
        if self.due_ns > 0 && now_ns >= self.due_ns + nanoseconds(LATE) {
            self.late_ns = now_ns;
        }
        self.due_ns = now_ns + nanoseconds(LOOK_EVERY);
        for (index, (watched, &turn)) in self.loops.iter_mut().zip(turns).enumerate() {
            let is_same = |before: Turn| turn.is_some_and(|turn| turn.since_ns == before.since_ns);
            let before = watched.turn.take().filter(|_| !watched.is_dead);
            if let Some(before) = before.filter(|before| watched.is_stuck && !is_same(*before)) {
                (watched.is_stuck, watched.host) = (false, None);
                changes.push(LoopChange::Recovered(index, before));
            }
            watched.turn = turn;
            let Some(turn) = turn.filter(|_| !watched.is_dead) else { continue };
            let stuck_at = turn.since_ns.max(self.late_ns) + nanoseconds(STUCK_AFTER);
            if before.is_some_and(is_same) && stuck_at <= now_ns && !watched.is_stuck {
                watched.is_stuck = true;
                changes.push(LoopChange::Stuck(index, turn));
            }
            let next = stuck_at.max(now_ns + nanoseconds(LOOK_AGAIN));
            self.due_ns = self.due_ns.min(next);
        }
        changes
    }

    /// When [`LoopWatch::on_time`] has something to do.
    pub(super) fn due(&self, epoch: Instant) -> Instant {
        epoch + Duration::from_nanos(self.due_ns)
    }

    /// Looks at the loops, if it is time, and reports what has changed.
    pub(super) fn on_time(&mut self, cx: &Context, lives: &Lives, now: Instant) {
        if now < self.due(cx.epoch) {
            return;
        }
        let now_ns = cx.nanoseconds(now);
        let turns: Vec<_> = (0..cx.loops.count()).map(|index| cx.loops.turn(index)).collect();
        for change in self.look(now_ns, &turns) {
            match change {
                LoopChange::Stuck(index, turn) => {
                    self.loops[index].host = host_of(lives, turn);
                    let stuck = self.stuck_loop(lives, index, turn, now_ns);
                    notice!(
                        cx.notices,
                        Error,
                        "loop_stuck",
                        loop_index = index,
                        host = stuck.host.as_deref(),
                        id = stuck.life,
                        for_ms = milliseconds(stuck.time),
                    );
                }
                LoopChange::Recovered(index, turn) => {
                    let time = Duration::from_nanos(now_ns.saturating_sub(turn.since_ns));
                    let for_ms = milliseconds(time);
                    let notices = &cx.notices;
                    notice!(notices, Info, "loop_recovered", loop_index = index, for_ms = for_ms);
                }
            }
        }
    }

    /// The loops that make no progress.
    pub(super) fn stuck(&self, cx: &Context, lives: &Lives, now: Instant) -> Vec<StuckLoop> {
        let now_ns = cx.nanoseconds(now);
        let stuck = self.loops.iter().enumerate().filter(|(_, watched)| watched.is_stuck);
        stuck
            .filter_map(|(index, watched)| {
                Some(self.stuck_loop(lives, index, watched.turn?, now_ns))
            })
            .collect()
    }

    /// What holds up a loop that has not obeyed.
    pub(super) fn held(
        &self,
        cx: &Context,
        lives: &Lives,
        index: usize,
        now: Instant,
    ) -> StuckLoop {
        let now_ns = cx.nanoseconds(now);
        let turn = cx.loops.turn(index).unwrap_or(Turn { since_ns: now_ns, life: None });
        self.stuck_loop(lives, index, turn, now_ns)
    }

    fn stuck_loop(&self, lives: &Lives, index: usize, turn: Turn, now_ns: u64) -> StuckLoop {
        let known = &self.loops[index];
        StuckLoop {
            index,
            host: known.host.clone().or_else(|| host_of(lives, turn)),
            life: turn.life,
            time: Duration::from_nanos(now_ns.saturating_sub(turn.since_ns)),
        }
    }
}

/// The host of the app that a turn asked last.
fn host_of(lives: &Lives, turn: Turn) -> Option<String> {
    let is_asked = |life: &AppLife| Some(life.id().as_u64()) == turn.life;
    lives.all().iter().find(|life| is_asked(life)).map(|life| life.host().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;

    fn turn(since_ns: u64) -> Option<Turn> {
        Some(Turn { since_ns, life: Some(7) })
    }

    #[test]
    fn a_turn_of_more_than_a_second_is_stuck_once_and_recovers_once() {
        let mut watch = LoopWatch::begin(2);
        let began = 300 * MS;
        assert_eq!(watch.look(SECOND, &[None, turn(began)]), []);
        assert_eq!(watch.due_ns, began + SECOND, "the look is in time");
        let stuck = LoopChange::Stuck(1, turn(began).expect("a turn"));
        assert_eq!(watch.look(watch.due_ns, &[None, turn(began)]), [stuck]);
        assert_eq!(watch.look(watch.due_ns, &[turn(SECOND), turn(began)]), []);
        let recovered = LoopChange::Recovered(1, turn(began).expect("a turn"));
        assert_eq!(watch.look(watch.due_ns, &[None, turn(9 * SECOND)]), [recovered]);
        assert_eq!(watch.look(watch.due_ns, &[None, None]), []);
    }

    #[test]
    fn many_short_turns_are_progress() {
        let mut watch = LoopWatch::begin(1);
        for second in 1..10 {
            assert_eq!(watch.look(second * SECOND, &[turn(second * SECOND - MS)]), []);
            assert_eq!(watch.due_ns, (second + 1) * SECOND - MS, "about once a second");
        }
        assert_eq!(watch.look(20 * SECOND, &[None]), []);
        assert_eq!(watch.due_ns, 21 * SECOND);
    }

    #[test]
    fn a_process_that_was_stopped_has_no_stuck_loop() {
        let mut watch = LoopWatch::begin(1);
        assert_eq!(watch.look(SECOND, &[None]), []);
        assert_eq!(watch.look(60 * SECOND, &[turn(SECOND)]), [], "no look saw it at work before");
        let again = 60 * SECOND + 250 * MS;
        assert_eq!(watch.look(again, &[turn(SECOND)]), [], "it has hardly had time to go on");
        let stuck = LoopChange::Stuck(0, turn(SECOND).expect("a turn"));
        assert_eq!(watch.look(watch.due_ns, &[turn(SECOND)]), [stuck], "it has had a second");
        assert_eq!(watch.due_ns, 61 * SECOND + 250 * MS);
    }

    #[test]
    fn a_loop_that_is_dead_is_not_stuck() {
        let mut watch = LoopWatch::begin(1);
        watch.look(SECOND, &[turn(1)]);
        watch.look(2 * SECOND, &[turn(1)]);
        watch.on_died(0);
        for second in 3..6 {
            assert_eq!(watch.look(second * SECOND, &[turn(1)]), []);
        }
    }
}
