//! The ledger of a drill: the outcome of each request, by action and by client.
//!
//! Pure: times are parameters, counted from the drill's beginning.
//!
//! Each request ends in exactly one of eight ways, and the sums prove it. It is booked under one
//! action: the first that ran while the request was in flight, else the last that ended before,
//! else none. An answered request counts as in flight from the moment it was due, because it may
//! have had to wait; any other request counts from the moment it was sent. An unanswered request
//! that overlaps different actions is booked under [`Booking::Several`]. An action is entered
//! before it begins, so none of its outcomes is booked earlier.
//!
//! An answer counts as changed if its status differs from the status that the target gave before
//! the first action. Example: after a reload removed its app, a target answers 404. Nothing was
//! lost, but the answer has changed.
//!
//! A handshake is booked under an action likewise. One that fails takes all requests with it that
//! were to be sent over its connection.
//!
//! Latency counts from the moment a request was due, not from when it was sent: time spent waiting
//! for a connection is included. Pauses that the client or the app makes on purpose are subtracted.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use super::{
    handshakes::{EndedHandshake, Handshakes},
    outcome::{
        Booking, EndedRequest, FailedRequest, FailureDetails, RequestOutcome, RequestPhase, Tally,
    },
    plan::{Action, ClientKind, Target},
    timeline::{LATENCY_MAX_US, Timeline},
};
use crate::duration::microseconds;

/// Failures beyond this number are counted but not kept.
const FAILURES_MAX: usize = 100_000;

/// The ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    targets: Vec<Target>,
    all: Group,
    clients: [Group; ClientKind::ALL.len()],
    actions: BTreeMap<Booking, Group>,
    runs: Vec<Run>,
    statuses: BTreeMap<u16, u64>,
    /// Each target's first status, for requests without content and for POSTs.
    expected: Vec<[Option<u16>; 2]>,
    /// How often a different status came, by target, whether it was a POST, and status.
    changes: BTreeMap<(usize, bool, u16), u64>,
    failures: Vec<FailedRequest>,
    failures_left_out: u64,
    /// Requests that were not accepted, by phase and socket error.
    not_accepted: BTreeMap<(RequestPhase, String), u64>,
    /// How long after its due time each request was handled.
    lateness: Histogram<u64>,
    timeline: Timeline,
    handshakes: Handshakes,
}

/// Answers with a different status than the target's first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChangedStatus<'a> {
    pub(crate) target: &'a Target,
    /// The target's index.
    pub(crate) at: usize,
    pub(crate) is_post: bool,
    pub(crate) before: Option<u16>,
    pub(crate) status: u16,
    pub(crate) count: u64,
}

/// An action that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) action: Action,
    pub(crate) begun: Duration,
    pub(crate) ended: Option<Duration>,
    pub(crate) error: Option<String>,
    pub(crate) counts: Tally,
    pub(crate) worst_us: u64,
}

/// The requests of one client kind or action.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) counts: Tally,
    /// In microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Group {
    fn new() -> Self {
        Self { counts: Tally::default(), latency: histogram() }
    }

    fn add(&mut self, outcome: &RequestOutcome, is_changed: bool, latency: Option<u64>) {
        self.counts.sent += 1;
        self.counts.count(outcome, is_changed);
        if let Some(latency) = latency {
            self.latency.saturating_record(latency);
        }
    }
}

impl Ledger {
    /// An empty ledger for requests to `targets`. `column` is the width of a timeline column.
    pub(crate) fn new(targets: Vec<Target>, column: Duration) -> Self {
        Self {
            expected: vec![[None; 2]; targets.len()],
            changes: BTreeMap::new(),
            targets,
            all: Group::new(),
            clients: std::array::from_fn(|_| Group::new()),
            actions: BTreeMap::new(),
            runs: Vec::new(),
            statuses: BTreeMap::new(),
            failures: Vec::new(),
            failures_left_out: 0,
            not_accepted: BTreeMap::new(),
            lateness: histogram(),
            timeline: Timeline::new(column),
            handshakes: Handshakes::default(),
        }
    }

    /// Sets the status that a target gives before all actions.
    pub(crate) fn expect(&mut self, target: usize, status: u16) {
        self.expected[target][0] = Some(status);
    }

    /// Enters a request that is sent `late` after it was due.
    pub(crate) fn send(&mut self, kind: ClientKind, late: Duration) {
        self.all.counts.sent += 1;
        self.clients[kind as usize].counts.sent += 1;
        self.lateness.saturating_record(microseconds(late));
    }

    /// Enters an action that is about to begin.
    pub(crate) fn begin(&mut self, action: Action, begun: Duration) {
        let (counts, worst_us) = (Tally::default(), 0);
        self.runs.push(Run { action, begun, ended: None, error: None, counts, worst_us });
        self.actions.entry(Booking::Under(action)).or_insert_with(Group::new);
    }

    /// Enters the end of the last action.
    pub(crate) fn end(&mut self, ended: Duration, error: Option<String>) {
        if let Some(run) = self.runs.last_mut() {
            (run.ended, run.error) = (Some(ended), error);
        }
    }

    /// Enters a handshake that has succeeded.
    pub(super) fn shake(&mut self, handshake: &EndedHandshake) {
        let booking = self.booking(self.run(handshake.begun), true);
        self.handshakes.add(booking, handshake);
    }

    /// Enters a handshake that has failed.
    pub(super) fn fail_handshake(&mut self, begun: Duration, why: &str) {
        let booking = self.booking(self.run(begun), false);
        self.handshakes.add_failed(booking, why);
    }

    /// Enters the end of a request.
    pub(crate) fn record(&mut self, request: EndedRequest) {
        let EndedRequest { due, begun, ended, kind, target, ref outcome, .. } = request;
        let latency = self.latency(&request);
        let is_changed = self.is_changed(&request);
        let run = self.run(match outcome {
            RequestOutcome::Answered(_) => due,
            _ => begun,
        });
        // The latency of a slow download depends on its client alone.
        let alike = latency.filter(|_| kind != ClientKind::Slow);
        for group in [&mut self.all, &mut self.clients[kind as usize]] {
            group.counts.count(outcome, is_changed);
        }
        if let Some(latency) = latency {
            self.clients[kind as usize].latency.saturating_record(latency);
        }
        if let Some(latency) = alike {
            self.all.latency.saturating_record(latency);
            self.timeline.add(due, latency);
        }
        let booking = self.booking(run, matches!(outcome, RequestOutcome::Answered(_)));
        self.actions.entry(booking).or_insert_with(Group::new).add(outcome, is_changed, alike);
        if let Some(run) =
            run.filter(|_| booking != Booking::Several).and_then(|at| self.runs.get_mut(at))
        {
            run.counts.sent += 1;
            run.counts.count(outcome, is_changed);
            run.worst_us = run.worst_us.max(alike.unwrap_or(0));
        }
        let (result, details) = match request.outcome {
            RequestOutcome::Answered(status) => {
                *self.statuses.entry(status).or_default() += 1;
                return;
            }
            RequestOutcome::Left => return,
            RequestOutcome::Refused => return *self.statuses.entry(503).or_default() += 1,
            RequestOutcome::NotAccepted(FailureDetails { phase, said, .. }) => {
                *self.not_accepted.entry((phase, said)).or_default() += 1;
                return;
            }
            RequestOutcome::FailedHandshake(details) => ("failed_handshake", details),
            RequestOutcome::Lost(details) => ("lost", details),
            RequestOutcome::Truncated(details) => ("truncated", details),
        };
        self.timeline.add_loss(ended);
        if self.failures.len() == FAILURES_MAX {
            self.failures_left_out += 1;
        } else {
            self.failures.push(FailedRequest {
                result,
                due,
                begun,
                ended,
                kind,
                target,
                run,
                details,
            });
        }
    }

    pub(crate) fn all(&self) -> &Group {
        &self.all
    }

    pub(crate) fn client(&self, kind: ClientKind) -> &Group {
        &self.clients[kind as usize]
    }

    pub(crate) fn actions(&self) -> impl Iterator<Item = (Booking, &Group)> {
        self.actions.iter().map(|(booking, group)| (*booking, group))
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How often each status was received.
    pub(crate) fn statuses(&self) -> &BTreeMap<u16, u64> {
        &self.statuses
    }

    /// Answers with a different status than at first.
    pub(crate) fn changes(&self) -> impl Iterator<Item = ChangedStatus<'_>> {
        self.changes.iter().map(|((target, is_post, status), count)| ChangedStatus {
            target: &self.targets[*target],
            at: *target,
            is_post: *is_post,
            before: self.expected[*target][usize::from(*is_post)],
            status: *status,
            count: *count,
        })
    }

    /// Requests lost or truncated or without a handshake, and how many more were not kept.
    pub(crate) fn failures(&self) -> (&[FailedRequest], u64) {
        (&self.failures, self.failures_left_out)
    }

    /// How often requests were not accepted, by phase and socket error.
    pub(crate) fn not_accepted(&self) -> impl Iterator<Item = (RequestPhase, &str, u64)> {
        self.not_accepted.iter().map(|((phase, said), count)| (*phase, said.as_str(), *count))
    }

    /// The host of a target.
    pub(crate) fn host(&self, target: usize) -> &str {
        &self.targets[target].host
    }

    /// How long after its due time each request was handled, in microseconds.
    pub(crate) fn lateness(&self) -> &Histogram<u64> {
        &self.lateness
    }

    pub(crate) fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Whether the server answered, nothing was lost, and every action succeeded.
    pub(crate) fn is_clean(&self) -> bool {
        let Tally { answered, changed, refused, .. } = self.all.counts;
        let failed = self.runs.iter().any(|run| run.error.is_some());
        answered + changed + refused > 0 && self.all.counts.failed() == 0 && !failed
    }

    /// # Panics
    /// If a request has ended twice or not at all.
    pub(crate) fn assert_sums(&self) {
        let clients = self.clients.iter().map(|group| group.counts);
        let by_action = self.actions.values().map(|group| group.counts);
        for counts in clients.chain(by_action).chain([self.all.counts]) {
            assert_eq!(counts.sent, counts.ended(), "{counts:?}");
        }
        let by_action: u64 = self.actions.values().map(|group| group.counts.sent).sum();
        assert_eq!(by_action, self.all.counts.sent);
    }

    /// The index of the action that a request is booked under.
    fn run(&self, since: Duration) -> Option<usize> {
        let before = |run: &Run| run.ended.is_some_and(|ended| ended < since);
        let first = self.runs.partition_point(before);
        if first < self.runs.len() { Some(first) } else { first.checked_sub(1) }
    }

    /// `run`: the first action that overlaps the request. Later actions overlap it too: they have
    /// begun, and the request ends now.
    fn booking(&self, run: Option<usize>, has_succeeded: bool) -> Booking {
        let Some(run) = run else { return Booking::Before };
        let action = self.runs[run].action;
        let is_other = |other: &Run| other.action != action;
        match has_succeeded {
            false if self.runs[run..].iter().any(is_other) => Booking::Several,
            _ => Booking::Under(action),
        }
    }

    /// Whether the status differs from the first one. The first answer of all sets the expectation.
    fn is_changed(&mut self, request: &EndedRequest) -> bool {
        let RequestOutcome::Answered(status) = request.outcome else { return false };
        let is_post = request.kind == ClientKind::Post;
        let expected = &mut self.expected[request.target][usize::from(is_post)];
        let is_changed = *expected.get_or_insert(status) != status;
        if is_changed {
            *self.changes.entry((request.target, is_post, status)).or_default() += 1;
        }
        is_changed
    }

    /// The latency of an answered request, in microseconds.
    fn latency(&self, request: &EndedRequest) -> Option<u64> {
        let RequestOutcome::Answered(_) = request.outcome else { return None };
        let by_design = self.targets[request.target].delay + request.pause;
        Some(microseconds(request.ended.saturating_sub(request.due).saturating_sub(by_design)))
    }
}

/// A histogram with three significant digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("bounds of a histogram")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ledger() -> Ledger {
        let target = |delay| Target {
            host: "a.test".to_owned(),
            path: "/".to_owned(),
            is_large: false,
            delay,
        };
        Ledger::new(vec![target(Duration::ZERO), target(20 * MS)], 100 * MS)
    }

    fn details(phase: RequestPhase) -> FailureDetails {
        let said = "reset".to_owned();
        FailureDetails { phase, sent: 40, received: 0, served: 0, connecting: None, said, port: 7 }
    }

    fn ended(due: u32, end: u32, outcome: RequestOutcome) -> EndedRequest {
        let (kind, target, pause) = (ClientKind::Kept, 0, Duration::ZERO);
        let (due, ended) = (due * MS, end * MS);
        EndedRequest { due, begun: due, ended, pause, kind, target, outcome }
    }

    fn record(ledger: &mut Ledger, request: EndedRequest) {
        ledger.send(request.kind, Duration::ZERO);
        ledger.record(request);
    }

    #[test]
    fn every_request_ends_in_one_way() {
        let mut ledger = ledger();
        assert!(!ledger.is_clean(), "nothing was answered");
        record(&mut ledger, ended(1, 2, RequestOutcome::Answered(200)));
        record(&mut ledger, ended(1, 2, RequestOutcome::Answered(404)));
        record(&mut ledger, ended(1, 2, RequestOutcome::Refused));
        record(
            &mut ledger,
            ended(1, 2, RequestOutcome::NotAccepted(details(RequestPhase::Connecting))),
        );
        assert!(ledger.is_clean());
        record(&mut ledger, ended(1, 2, RequestOutcome::Lost(details(RequestPhase::Waiting))));
        record(&mut ledger, ended(1, 2, RequestOutcome::Truncated(details(RequestPhase::Reading))));
        record(&mut ledger, ended(1, 2, RequestOutcome::Left));
        ledger.assert_sums();
        let counts = ledger.all().counts;
        assert_eq!((counts.sent, counts.answered, counts.failed()), (7, 1, 2));
        assert_eq!((counts.changed, counts.left), (1, 1));
        assert_eq!(ledger.client(ClientKind::Kept).counts, counts);
        assert_eq!(ledger.client(ClientKind::Post).counts, Tally::default());
        assert_eq!(ledger.statuses(), &BTreeMap::from([(200, 1), (404, 1), (503, 1)]));
        let results: Vec<_> = ledger.failures().0.iter().map(|failed| failed.result).collect();
        assert_eq!(results, ["lost", "truncated"]);
        let not_accepted: Vec<_> = ledger.not_accepted().collect();
        assert_eq!(not_accepted, [(RequestPhase::Connecting, "reset", 1)]);
        assert!(!ledger.is_clean());
    }

    #[test]
    fn an_answer_with_a_new_status_is_changed_and_not_lost() {
        let mut ledger = ledger();
        ledger.expect(0, 200);
        record(&mut ledger, ended(1, 2, RequestOutcome::Answered(404)));
        record(&mut ledger, ended(2, 3, RequestOutcome::Answered(404)));
        record(&mut ledger, ended(3, 4, RequestOutcome::Answered(200)));
        // A POST has its own expected status: that of the first answer.
        let post = |status| EndedRequest {
            kind: ClientKind::Post,
            ..ended(4, 5, RequestOutcome::Answered(status))
        };
        record(&mut ledger, post(405));
        record(&mut ledger, post(405));
        record(&mut ledger, post(502));
        ledger.assert_sums();
        let counts = ledger.all().counts;
        assert_eq!((counts.answered, counts.changed, counts.failed()), (3, 3, 0));
        let changes: Vec<_> = ledger
            .changes()
            .map(|changed| (changed.is_post, changed.before, changed.status, changed.count))
            .collect();
        assert_eq!(changes, [(false, Some(200), 404, 2), (true, Some(405), 502, 1)]);
        assert!(ledger.is_clean());
    }

    #[test]
    #[should_panic(expected = "sent: 1, answered: 0")]
    fn a_request_without_an_end_is_noticed() {
        let mut ledger = ledger();
        ledger.send(ClientKind::Fresh, Duration::ZERO);
        ledger.assert_sums();
    }

    #[test]
    fn a_request_is_booked_under_the_action_that_overlaps_it() {
        let mut ledger = ledger();
        record(&mut ledger, ended(1, 2, RequestOutcome::Answered(200)));
        ledger.begin(Action::Reload, 10 * MS);
        // PlannedRequest before the action and still in flight during it.
        record(&mut ledger, ended(5, 12, RequestOutcome::Refused));
        ledger.end(20 * MS, None);
        // PlannedRequest after the action's end.
        record(&mut ledger, ended(25, 26, RequestOutcome::Answered(200)));
        ledger.begin(Action::StopStart, 30 * MS);
        ledger.end(40 * MS, None);
        ledger.begin(Action::Replace, 50 * MS);
        // PlannedRequest while the server was stopped, answered after the next action's beginning.
        record(&mut ledger, ended(35, 1035, RequestOutcome::Answered(200)));
        ledger.end(51 * MS, Some("why".to_owned()));
        // PlannedRequest while the server was stopped, sent later.
        record(
            &mut ledger,
            EndedRequest { begun: 60 * MS, ..ended(35, 61, RequestOutcome::Refused) },
        );
        // Sent while the server was stopped.
        record(&mut ledger, ended(35, 61, RequestOutcome::Refused));
        ledger.assert_sums();
        let sent = |booking| {
            ledger.actions().find(|(own, _)| *own == booking).map(|(_, group)| group.counts.sent)
        };
        assert_eq!((sent(Booking::Before), sent(Booking::Several)), (Some(1), Some(1)));
        assert_eq!(sent(Booking::Under(Action::Reload)), Some(2));
        assert_eq!(sent(Booking::Under(Action::StopStart)), Some(1));
        assert_eq!(sent(Booking::Under(Action::Replace)), Some(1));
        assert_eq!(ledger.runs()[0].counts.refused, 1);
        assert_eq!(ledger.runs()[1].worst_us, 1_000_000);
        assert!(!ledger.is_clean(), "an action failed");
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        let mut ledger = ledger();
        record(&mut ledger, ended(100, 130, RequestOutcome::Answered(200)));
        let delayed = EndedRequest {
            target: 1,
            pause: 10 * MS,
            ..ended(0, 35, RequestOutcome::Answered(200))
        };
        record(&mut ledger, delayed);
        let slow =
            EndedRequest { kind: ClientKind::Slow, ..ended(0, 400, RequestOutcome::Answered(200)) };
        record(&mut ledger, slow);
        record(&mut ledger, ended(0, 9000, RequestOutcome::Refused));
        let latency = &ledger.all().latency;
        assert_eq!((latency.len(), latency.min() / 10, latency.max() / 100), (2, 500, 300));
        assert_eq!(ledger.client(ClientKind::Slow).latency.len(), 1);
    }
}
