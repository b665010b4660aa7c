//! The account of a drill: what became of each request, by action and by client.
//!
//! Pure: times come in, counted from the drill's beginning. Each request that was sent ends in
//! exactly one of seven ways, and the sums say so. It is booked under one action: the first that
//! ran while it was under way, else the last that ended before, else none. An answer was under way
//! from when it was due, for it may have had to wait; whatever else it came to, from when it was
//! sent. What was not answered while different actions ran is booked under neither, but apart.
//! An action is entered before it begins, so no outcome of it can be booked earlier.
//!
//! An answer counts as changed when it comes with another status than the target gave before the
//! first action: an app that a reload removed is answered, but by a 404. That is no loss, and no
//! answer as it was either.
//!
//! Latency counts from the moment a request was due, not from when it was sent: a request that had
//! to wait for its turn has waited. What the client or the app waits by design is taken off.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use super::{
    plan::{Action, ClientKind, Target},
    timeline::{LATENCY_MAX_US, Timeline},
};

/// More stories are counted, and not kept.
const STORIES_MAX: usize = 100_000;

/// The account.
#[derive(Debug)]
pub(crate) struct Ledger {
    targets: Vec<Target>,
    all: Group,
    clients: [Group; ClientKind::ALL.len()],
    actions: BTreeMap<Booking, Group>,
    runs: Vec<Run>,
    statuses: BTreeMap<u16, u64>,
    /// The status that each target had at first: to what has no content, and to a POST.
    expected: Vec<[Option<u16>; 2]>,
    /// How often other ones came: by target, whether to a POST, and status.
    changes: BTreeMap<(usize, bool, u16), u64>,
    stories: Vec<Told>,
    stories_left_out: u64,
    /// Why requests were not accepted: how far they were, and what the socket said.
    not_accepted: BTreeMap<(Phase, String), u64>,
    /// How late requests were looked at.
    lateness: Histogram<u64>,
    timeline: Timeline,
}

/// Where a request is booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Booking {
    /// Before any action.
    Before,
    Under(Action),
    /// It was not answered, and any of several actions may be why.
    Several,
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer that came whole, with its status; but a 503.
    Answered(u16),
    /// A 503 that came whole.
    Refused,
    /// No connection came about.
    NotAccepted(Story),
    /// A connection, and no byte of an answer.
    Lost(Story),
    /// An answer that began, and did not end whole.
    Truncated(Story),
    /// The client left before the end of the answer, as it meant to.
    Left,
}

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) phase: Phase,
    /// Bytes of the request that the kernel took.
    pub(crate) sent: u64,
    /// Bytes of the answer.
    pub(crate) received: u64,
    /// Requests that the connection had answered before.
    pub(crate) served: u64,
    /// How long connecting took, if it ended.
    pub(crate) connecting: Option<Duration>,
    /// What the socket said.
    pub(crate) said: String,
    /// The client's own; 0 if there was none.
    pub(crate) port: u16,
}

/// How far a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// All connections of its kind were in use.
    Queued,
    Connecting,
    Sending,
    Waiting,
    Reading,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "waiting for a connection",
            Self::Connecting => "connecting",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Reading => "reading",
        }
    }
}

/// A request that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) due: Duration,
    /// When it was sent, or would have been.
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    /// What the client waited by design.
    pub(crate) pause: Duration,
    pub(crate) kind: ClientKind,
    pub(crate) target: usize,
    pub(crate) outcome: Outcome,
}

/// Answers of a target that are other ones than at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed<'a> {
    pub(crate) target: &'a Target,
    /// Its place in the list of targets.
    pub(crate) at: usize,
    pub(crate) is_post: bool,
    pub(crate) before: Option<u16>,
    pub(crate) status: u16,
    pub(crate) count: u64,
}

/// The story of a request, with all around it.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) result: &'static str,
    pub(crate) due: Duration,
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    pub(crate) kind: ClientKind,
    pub(crate) target: usize,
    /// The place of the action in the list of runs.
    pub(crate) run: Option<usize>,
    pub(crate) story: Story,
}

/// An action that was done.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) action: Action,
    pub(crate) begun: Duration,
    pub(crate) ended: Option<Duration>,
    pub(crate) error: Option<String>,
    pub(crate) counts: Counts,
    pub(crate) worst_us: u64,
}

/// What requests came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Answered, with another status than before the actions.
    pub(crate) changed: u64,
    pub(crate) left: u64,
    pub(crate) refused: u64,
    pub(crate) not_accepted: u64,
    pub(crate) lost: u64,
    pub(crate) truncated: u64,
}

impl Counts {
    /// All that ended.
    pub(crate) fn ended(&self) -> u64 {
        let Self { answered, changed, left, refused, not_accepted, lost, truncated, sent: _ } =
            self;
        answered + changed + left + refused + not_accepted + lost + truncated
    }

    /// Lost, whole or in part.
    pub(crate) fn failed(&self) -> u64 {
        self.lost + self.truncated
    }

    fn count(&mut self, outcome: &Outcome, is_changed: bool) {
        *match outcome {
            Outcome::Answered(_) if is_changed => &mut self.changed,
            Outcome::Answered(_) => &mut self.answered,
            Outcome::Left => &mut self.left,
            Outcome::Refused => &mut self.refused,
            Outcome::NotAccepted(_) => &mut self.not_accepted,
            Outcome::Lost(_) => &mut self.lost,
            Outcome::Truncated(_) => &mut self.truncated,
        } += 1;
    }
}

/// Requests that have something in common.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) counts: Counts,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Group {
    fn new() -> Self {
        Self { counts: Counts::default(), latency: histogram() }
    }

    fn add(&mut self, outcome: &Outcome, is_changed: bool, latency: Option<u64>) {
        self.counts.sent += 1;
        self.counts.count(outcome, is_changed);
        if let Some(latency) = latency {
            self.latency.saturating_record(latency);
        }
    }
}

impl Ledger {
    /// An empty account, for requests to `targets`; the picture of it has columns of `column`.
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
            stories: Vec::new(),
            stories_left_out: 0,
            not_accepted: BTreeMap::new(),
            lateness: histogram(),
            timeline: Timeline::new(column),
        }
    }

    /// What a target answers before all actions.
    pub(crate) fn expect(&mut self, target: usize, status: u16) {
        self.expected[target][0] = Some(status);
    }

    /// A request is sent, `late` after it was due.
    pub(crate) fn send(&mut self, kind: ClientKind, late: Duration) {
        self.all.counts.sent += 1;
        self.clients[kind as usize].counts.sent += 1;
        self.lateness.saturating_record(micros(late));
    }

    /// An action is about to begin.
    pub(crate) fn begin(&mut self, action: Action, begun: Duration) {
        let (counts, worst_us) = (Counts::default(), 0);
        self.runs.push(Run { action, begun, ended: None, error: None, counts, worst_us });
        self.actions.entry(Booking::Under(action)).or_insert_with(Group::new);
    }

    /// The last action has ended.
    pub(crate) fn end(&mut self, ended: Duration, error: Option<String>) {
        if let Some(run) = self.runs.last_mut() {
            (run.ended, run.error) = (Some(ended), error);
        }
    }

    /// A request has ended.
    pub(crate) fn record(&mut self, request: Ended) {
        let Ended { due, begun, ended, kind, target, ref outcome, .. } = request;
        let latency = self.latency(&request);
        let is_changed = self.is_changed(&request);
        let run = self.run(match outcome {
            Outcome::Answered(_) => due,
            _ => begun,
        });
        // How long a slow download takes is up to its client.
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
        let booking = self.booking(run, outcome);
        self.actions.entry(booking).or_insert_with(Group::new).add(outcome, is_changed, alike);
        if let Some(run) =
            run.filter(|_| booking != Booking::Several).and_then(|at| self.runs.get_mut(at))
        {
            run.counts.sent += 1;
            run.counts.count(outcome, is_changed);
            run.worst_us = run.worst_us.max(alike.unwrap_or(0));
        }
        let (result, story) = match request.outcome {
            Outcome::Answered(status) => {
                *self.statuses.entry(status).or_default() += 1;
                return;
            }
            Outcome::Left => return,
            Outcome::Refused => return *self.statuses.entry(503).or_default() += 1,
            Outcome::NotAccepted(Story { phase, said, .. }) => {
                *self.not_accepted.entry((phase, said)).or_default() += 1;
                return;
            }
            Outcome::Lost(story) => ("lost", story),
            Outcome::Truncated(story) => ("truncated", story),
        };
        self.timeline.add_loss(ended);
        if self.stories.len() == STORIES_MAX {
            self.stories_left_out += 1;
        } else {
            self.stories.push(Told { result, due, begun, ended, kind, target, run, story });
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

    /// How often each status came.
    pub(crate) fn statuses(&self) -> &BTreeMap<u16, u64> {
        &self.statuses
    }

    /// Answers with another status than at first: the target, whether to a POST, the status before
    /// and then, and how often.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Changed<'_>> {
        self.changes.iter().map(|((target, is_post, status), count)| Changed {
            target: &self.targets[*target],
            at: *target,
            is_post: *is_post,
            before: self.expected[*target][usize::from(*is_post)],
            status: *status,
            count: *count,
        })
    }

    /// What was lost or truncated, and how many more there are.
    pub(crate) fn stories(&self) -> (&[Told], u64) {
        (&self.stories, self.stories_left_out)
    }

    /// How often requests were not accepted, by how far they were and what the socket said.
    pub(crate) fn not_accepted(&self) -> impl Iterator<Item = (Phase, &str, u64)> {
        self.not_accepted.iter().map(|((phase, said), count)| (*phase, said.as_str(), *count))
    }

    /// The host of a target.
    pub(crate) fn host(&self, target: usize) -> &str {
        &self.targets[target].host
    }

    /// How late requests were looked at, in microseconds.
    pub(crate) fn lateness(&self) -> &Histogram<u64> {
        &self.lateness
    }

    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Whether there was a server, nothing was lost and every action worked.
    pub(crate) fn is_clean(&self) -> bool {
        let Counts { answered, changed, refused, .. } = self.all.counts;
        let failed = self.runs.iter().any(|run| run.error.is_some());
        answered + changed + refused > 0 && self.all.counts.failed() == 0 && !failed
    }

    /// # Panics
    /// When a request has ended twice, or not at all.
    pub(crate) fn assert_sums(&self) {
        let clients = self.clients.iter().map(|group| group.counts);
        let by_action = self.actions.values().map(|group| group.counts);
        for counts in clients.chain(by_action).chain([self.all.counts]) {
            assert_eq!(counts.sent, counts.ended(), "{counts:?}");
        }
        let by_action: u64 = self.actions.values().map(|group| group.counts.sent).sum();
        assert_eq!(by_action, self.all.counts.sent);
    }

    /// The action that a request is booked under.
    fn run(&self, since: Duration) -> Option<usize> {
        let before = |run: &Run| run.ended.is_some_and(|ended| ended < since);
        let first = self.runs.partition_point(before);
        if first < self.runs.len() { Some(first) } else { first.checked_sub(1) }
    }

    /// `run`: the first action that ran meanwhile; those behind it began before now, and so before
    /// the end of the request.
    fn booking(&self, run: Option<usize>, outcome: &Outcome) -> Booking {
        let Some(run) = run else { return Booking::Before };
        let action = self.runs[run].action;
        let is_other = |other: &Run| other.action != action;
        match outcome {
            Outcome::Answered(_) => Booking::Under(action),
            _ if self.runs[run..].iter().any(is_other) => Booking::Several,
            _ => Booking::Under(action),
        }
    }

    /// Whether an answer is another one than at first; the first one of all is what is expected.
    fn is_changed(&mut self, request: &Ended) -> bool {
        let Outcome::Answered(status) = request.outcome else { return false };
        let is_post = request.kind == ClientKind::Post;
        let expected = &mut self.expected[request.target][usize::from(is_post)];
        let is_changed = *expected.get_or_insert(status) != status;
        if is_changed {
            *self.changes.entry((request.target, is_post, status)).or_default() += 1;
        }
        is_changed
    }

    /// In microseconds, of what was answered.
    fn latency(&self, request: &Ended) -> Option<u64> {
        let Outcome::Answered(_) = request.outcome else { return None };
        let by_design = self.targets[request.target].delay + request.pause;
        Some(micros(request.ended.saturating_sub(request.due).saturating_sub(by_design)))
    }
}

/// Three digits of microseconds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("bounds of a histogram")
}

/// Whole microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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

    fn story(phase: Phase) -> Story {
        let said = "reset".to_owned();
        Story { phase, sent: 40, received: 0, served: 0, connecting: None, said, port: 7 }
    }

    fn ended(due: u32, end: u32, outcome: Outcome) -> Ended {
        let (kind, target, pause) = (ClientKind::Kept, 0, Duration::ZERO);
        let (due, ended) = (due * MS, end * MS);
        Ended { due, begun: due, ended, pause, kind, target, outcome }
    }

    fn record(ledger: &mut Ledger, request: Ended) {
        ledger.send(request.kind, Duration::ZERO);
        ledger.record(request);
    }

    #[test]
    fn every_request_ends_in_one_way() {
        let mut ledger = ledger();
        assert!(!ledger.is_clean(), "nothing was answered");
        record(&mut ledger, ended(1, 2, Outcome::Answered(200)));
        record(&mut ledger, ended(1, 2, Outcome::Answered(404)));
        record(&mut ledger, ended(1, 2, Outcome::Refused));
        record(&mut ledger, ended(1, 2, Outcome::NotAccepted(story(Phase::Connecting))));
        assert!(ledger.is_clean());
        record(&mut ledger, ended(1, 2, Outcome::Lost(story(Phase::Waiting))));
        record(&mut ledger, ended(1, 2, Outcome::Truncated(story(Phase::Reading))));
        record(&mut ledger, ended(1, 2, Outcome::Left));
        ledger.assert_sums();
        let counts = ledger.all().counts;
        assert_eq!((counts.sent, counts.answered, counts.failed()), (7, 1, 2));
        assert_eq!((counts.changed, counts.left), (1, 1));
        assert_eq!(ledger.client(ClientKind::Kept).counts, counts);
        assert_eq!(ledger.client(ClientKind::Post).counts, Counts::default());
        assert_eq!(ledger.statuses(), &BTreeMap::from([(200, 1), (404, 1), (503, 1)]));
        let results: Vec<_> = ledger.stories().0.iter().map(|told| told.result).collect();
        assert_eq!(results, ["lost", "truncated"]);
        let not_accepted: Vec<_> = ledger.not_accepted().collect();
        assert_eq!(not_accepted, [(Phase::Connecting, "reset", 1)]);
        assert!(!ledger.is_clean());
    }

    #[test]
    fn an_answer_of_another_status_than_at_first_is_changed_and_not_lost() {
        let mut ledger = ledger();
        ledger.expect(0, 200);
        record(&mut ledger, ended(1, 2, Outcome::Answered(404)));
        record(&mut ledger, ended(2, 3, Outcome::Answered(404)));
        record(&mut ledger, ended(3, 4, Outcome::Answered(200)));
        // A POST has its own, which comes first.
        let post =
            |status| Ended { kind: ClientKind::Post, ..ended(4, 5, Outcome::Answered(status)) };
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
    fn a_request_is_booked_under_the_action_that_met_it() {
        let mut ledger = ledger();
        record(&mut ledger, ended(1, 2, Outcome::Answered(200)));
        ledger.begin(Action::Reload, 10 * MS);
        // Due before the action, and met by it.
        record(&mut ledger, ended(5, 12, Outcome::Refused));
        ledger.end(20 * MS, None);
        // Due after its end.
        record(&mut ledger, ended(25, 26, Outcome::Answered(200)));
        ledger.begin(Action::StopStart, 30 * MS);
        ledger.end(40 * MS, None);
        ledger.begin(Action::Replace, 50 * MS);
        // Due while the server was stopped, and answered behind the next action's begin.
        record(&mut ledger, ended(35, 1035, Outcome::Answered(200)));
        ledger.end(51 * MS, Some("why".to_owned()));
        // Due while the server was stopped, and sent later.
        record(&mut ledger, Ended { begun: 60 * MS, ..ended(35, 61, Outcome::Refused) });
        // Sent while the server was stopped.
        record(&mut ledger, ended(35, 61, Outcome::Refused));
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
        record(&mut ledger, ended(100, 130, Outcome::Answered(200)));
        let delayed = Ended { target: 1, pause: 10 * MS, ..ended(0, 35, Outcome::Answered(200)) };
        record(&mut ledger, delayed);
        let slow = Ended { kind: ClientKind::Slow, ..ended(0, 400, Outcome::Answered(200)) };
        record(&mut ledger, slow);
        record(&mut ledger, ended(0, 9000, Outcome::Refused));
        let latency = &ledger.all().latency;
        assert_eq!((latency.len(), latency.min() / 10, latency.max() / 100), (2, 500, 300));
        assert_eq!(ledger.client(ClientKind::Slow).latency.len(), 1);
    }
}
