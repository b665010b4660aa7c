//! When a loop has to check a connection again.
//!
//! Deadlines mostly move later (each answer renews the idle time). So a connection keeps its own
//! deadline, and the heap only holds when to check it: moving later costs nothing, and an early
//! check books the next one. Times are milliseconds of the loop's clock.

use std::{cmp::Reverse, collections::BinaryHeap};

use mio::Token;

/// The booked checks, soonest first.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(u64, Token)>>,
}

/// A connection's deadline, its soonest booked check, and the check behind that one, which is
/// reused: deadlines that move back and forth must not fill the heap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: u64,
    booked: u64,
    behind: u64,
}

impl Deadline {
    pub(super) fn never() -> Self {
        Self { at: u64::MAX, booked: u64::MAX, behind: u64::MAX }
    }

    /// When it is due.
    pub(super) fn at(&self) -> u64 {
        self.at
    }
}

impl Timers {
    /// Moves a deadline. Books a check only if none is booked before it.
    pub(super) fn set(&mut self, deadline: &mut Deadline, token: Token, at: u64) {
        deadline.at = at;
        if at < deadline.booked {
            deadline.behind = deadline.booked;
            deadline.booked = at;
            self.heap.push(Reverse((at, token)));
        }
    }

    /// The next check that is due.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<(u64, Token)> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(check_at)| check_at)
    }

    /// Whether this check means that the deadline has passed. A check that an earlier one replaced
    /// is ignored; an early check books the next one.
    pub(super) fn is_due(
        &mut self,
        deadline: &mut Deadline,
        token: Token,
        check_at: u64,
        now: u64,
    ) -> bool {
        if check_at != deadline.booked {
            return false;
        }
        deadline.booked = std::mem::replace(&mut deadline.behind, u64::MAX);
        if deadline.at > now {
            self.set(deadline, token, deadline.at);
            return false;
        }
        true
    }

    /// When the soonest check is due.
    pub(super) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token(7);

    #[test]
    fn a_deadline_that_moved_later_fires_once() {
        let (mut timers, mut deadline) = (Timers::default(), Deadline::never());
        timers.set(&mut deadline, TOKEN, 10);
        timers.set(&mut deadline, TOKEN, 30);
        let (check_at, token) = timers.pop_due(10).unwrap();
        assert!(!timers.is_due(&mut deadline, token, check_at, 10));
        assert_eq!(timers.pop_due(29), None);
        let (check_at, token) = timers.pop_due(30).unwrap();
        assert!(timers.is_due(&mut deadline, token, check_at, 30));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_deadline_that_moved_earlier_fires_in_time_and_once() {
        let (mut timers, mut deadline) = (Timers::default(), Deadline::never());
        timers.set(&mut deadline, TOKEN, 75);
        timers.set(&mut deadline, TOKEN, 10);
        let (check_at, token) = timers.pop_due(10).unwrap();
        assert!(timers.is_due(&mut deadline, token, check_at, 10));
        timers.set(&mut deadline, TOKEN, 90);
        let (check_at, token) = timers.pop_due(80).unwrap();
        assert!(!timers.is_due(&mut deadline, token, check_at, 80), "too early");
        assert_eq!(timers.next(), Some(90));
    }

    #[test]
    fn deadlines_that_move_back_and_forth_do_not_fill_the_heap() {
        let (mut timers, mut deadline) = (Timers::default(), Deadline::never());
        for now in 0..1000 {
            timers.set(&mut deadline, TOKEN, now + 75_000);
            timers.set(&mut deadline, TOKEN, now + 1);
            let (check_at, token) = timers.pop_due(now + 1).unwrap();
            assert!(timers.is_due(&mut deadline, token, check_at, now + 1));
        }
        assert!(timers.heap.len() <= 2, "{} entries", timers.heap.len());
    }
}
