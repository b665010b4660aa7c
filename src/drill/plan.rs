//! The plan of a drill: when each request is due, and the order of the actions.
//!
//! Pure: the same seed gives the same plan. The load is open-loop: no request waits for the answer
//! to another, so a stalled server gets as many requests as a healthy one. The gaps between
//! requests are exponential, like those between independent clients.

use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;

/// What is done to the server under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Action {
    /// Make it read its config again; with the drill's own server, one app has changed
    Reload,
    /// Replace the files of an app's certificate, and make the server read its config again; only
    /// for the drill's own server, with --tls
    Renew,
    /// Replace an app
    Replace,
    /// Remove an app, wait for its drain, add it again
    #[value(name = "remove+add")]
    RemoveAdd,
    /// Drain an app, wait for the end of the drain, resume the app
    #[value(name = "drain+resume")]
    DrainResume,
    /// Upgrade to a new process
    Upgrade,
    /// Send SIGTERM, wait for the exit, start the server again; only for the drill's own server
    #[value(name = "stop+start")]
    StopStart,
    /// Run the shell command of --command
    Command,
    /// Do nothing, for comparison
    Nothing,
}

impl Action {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Renew => "renew",
            Self::Replace => "replace",
            Self::RemoveAdd => "remove+add",
            Self::DrainResume => "drain+resume",
            Self::Upgrade => "upgrade",
            Self::StopStart => "stop+start",
            Self::Command => "command",
            Self::Nothing => "nothing",
        }
    }
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum ClientKind {
    /// Keeps its connections busy
    #[value(name = "keep-alive")]
    Kept,
    /// Keeps connections and pauses between requests, so that connections are often idle
    Paused,
    /// Uses a new connection for each request
    Fresh,
    /// Sends content, with a pause in the middle
    Post,
    /// Reads a large answer in small pieces
    Slow,
    /// Sends several requests at once on a kept connection (pipelining)
    Pipelined,
    /// Pauses between the requests of its connection, each time for a random time
    Thinking,
    /// Closes its connection before or during the answer
    Leaving,
}

impl ClientKind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Kept,
        Self::Paused,
        Self::Fresh,
        Self::Post,
        Self::Slow,
        Self::Pipelined,
        Self::Thinking,
        Self::Leaving,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kept => "keep-alive",
            Self::Paused => "with pauses",
            Self::Fresh => "one request",
            Self::Post => "POST",
            Self::Slow => "slow download",
            Self::Pipelined => "pipelined",
            Self::Thinking => "thinking",
            Self::Leaving => "leaving",
        }
    }

    /// How many requests it sends at once.
    pub(crate) fn batch(self) -> usize {
        if self == Self::Pipelined { 8 } else { 1 }
    }

    /// Its share of the batches, per mille. Thinking clients aren't planned: they pause instead.
    fn per_mille(self) -> u32 {
        match self {
            Self::Kept => 565,
            Self::Paused => 50,
            Self::Fresh => 200,
            Self::Post => 145,
            Self::Slow => 5,
            Self::Pipelined => 15,
            Self::Thinking => 0,
            Self::Leaving => 20,
        }
    }
}

/// A URL that the load requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) path: String,
    /// Large answers are for slow downloads.
    pub(crate) is_large: bool,
    /// How long the app delays its answer on purpose.
    pub(crate) delay: Duration,
}

/// A planned request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PlannedRequest {
    /// Counted from the drill's beginning.
    pub(crate) at: Duration,
    pub(crate) kind: ClientKind,
    /// The target's index.
    pub(crate) target: usize,
}

/// All requests of a drill: an endless iterator.
#[derive(Debug)]
pub(crate) struct Requests {
    rng: Rng,
    seconds: f64,
    /// Batches per second.
    rate: f64,
    kinds: Vec<ClientKind>,
    small: Vec<usize>,
    large: Vec<usize>,
}

impl Requests {
    /// Requests from clients of these kinds to `targets`, `rate` per second. Slow downloads use
    /// large targets, if there are any. Empty if all clients think.
    pub(crate) fn new(seed: u64, rate: u32, targets: &[Target], kinds: &[ClientKind]) -> Self {
        let of_size = |is_large: bool| -> Vec<usize> {
            (0..targets.len()).filter(|at| targets[*at].is_large == is_large).collect()
        };
        let (mut small, mut large) = (of_size(false), of_size(true));
        if large.is_empty() {
            large.clone_from(&small);
        } else if small.is_empty() {
            small.clone_from(&large);
        }
        let kinds: Vec<ClientKind> =
            ClientKind::ALL.into_iter().filter(|kind| kinds.contains(kind)).collect();
        let parts: u32 = kinds.iter().map(|kind| kind.per_mille()).sum();
        let requests: usize =
            kinds.iter().map(|kind| kind.per_mille() as usize * kind.batch()).sum();
        let rate = f64::from(rate) * f64::from(parts) / (requests.max(1) as f64);
        Self { rng: Rng::with_seed(seed), seconds: 0.0, rate, kinds, small, large }
    }

    /// A target for a client whose requests aren't planned here.
    pub(crate) fn target(&mut self, kind: ClientKind) -> usize {
        // A client that leaves during an answer needs a large one.
        let takes_large =
            kind == ClientKind::Slow || (kind == ClientKind::Leaving && self.rng.bool());
        let targets = if takes_large { &self.large } else { &self.small };
        targets[self.rng.usize(..targets.len())]
    }

    fn kind(&mut self) -> Option<ClientKind> {
        let parts: u32 = self.kinds.iter().map(|kind| kind.per_mille()).sum();
        let mut drawn = self.rng.u32(..parts.max(1));
        self.kinds.iter().copied().find(|kind| match drawn.checked_sub(kind.per_mille()) {
            Some(left) => {
                drawn = left;
                false
            }
            None => true,
        })
    }
}

impl Iterator for Requests {
    type Item = PlannedRequest;

    fn next(&mut self) -> Option<PlannedRequest> {
        self.seconds -= (1.0 - self.rng.f64()).ln() / self.rate.max(f64::MIN_POSITIVE);
        let kind = self.kind()?;
        let target = self.target(kind);
        Some(PlannedRequest { at: Duration::from_secs_f64(self.seconds), kind, target })
    }
}

/// `count` of each action, in random order.
pub(crate) fn actions(seed: u64, kinds: &[Action], count: usize) -> Vec<Action> {
    let mut actions: Vec<Action> =
        kinds.iter().flat_map(|kind| std::iter::repeat_n(*kind, count)).collect();
    Rng::with_seed(seed).shuffle(&mut actions);
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, is_large: bool) -> Target {
        Target { host: host.to_owned(), path: "/".to_owned(), is_large, delay: Duration::ZERO }
    }

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        let targets = [target("a", false), target("b", false)];
        let plan = |seed| {
            Requests::new(seed, 1000, &targets, &ClientKind::ALL).take(500).collect::<Vec<_>>()
        };
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        let kinds = [Action::Reload, Action::StopStart, Action::Nothing];
        assert_eq!(actions(7, &kinds, 9), actions(7, &kinds, 9));
        assert_ne!(actions(7, &kinds, 9), actions(8, &kinds, 9));
    }

    #[test]
    fn requests_of_all_kinds_come_in_order_and_at_the_rate() {
        let targets = [target("a", false), target("big", true), target("b", false)];
        let requests = Requests::new(1, 2000, &targets, &ClientKind::ALL);
        let plan: Vec<PlannedRequest> = requests.take(20_000).collect();
        assert!(plan.is_sorted_by_key(|due| due.at));
        let seconds = plan[plan.len() - 1].at.as_secs_f64();
        let requests: usize = plan.iter().map(|due| due.kind.batch()).sum();
        let rate = requests as f64 / seconds;
        assert!((1800.0..2200.0).contains(&rate), "{rate}");
        for kind in ClientKind::ALL {
            let count = plan.iter().filter(|due| due.kind == kind).count();
            let expected = kind.per_mille() as usize * 20;
            assert!((expected / 2..=expected * 2).contains(&count), "{kind:?}: {count}");
        }
        let may_be_large = [ClientKind::Slow, ClientKind::Leaving];
        let is_right = |due: &PlannedRequest| may_be_large.contains(&due.kind) || due.target != 1;
        assert!(plan.iter().all(is_right), "large answers are for slow or leaving clients");
        assert!(plan.iter().all(|due| due.kind != ClientKind::Slow || due.target == 1));
    }

    #[test]
    fn fewer_kinds_of_clients_keep_the_rate() {
        let targets = [target("a", false)];
        let kinds = [ClientKind::Pipelined, ClientKind::Slow];
        let plan: Vec<PlannedRequest> =
            Requests::new(1, 2000, &targets, &kinds).take(2000).collect();
        assert!(plan.iter().all(|due| kinds.contains(&due.kind)));
        let requests: usize = plan.iter().map(|due| due.kind.batch()).sum();
        let rate = requests as f64 / plan[plan.len() - 1].at.as_secs_f64();
        assert!((1800.0..2200.0).contains(&rate), "{rate}");
        let only_thinking = Requests::new(1, 2000, &targets, &[ClientKind::Thinking]).next();
        assert_eq!(only_thinking, None);
    }

    #[test]
    fn without_large_answers_slow_downloads_read_small_ones() {
        let targets = [target("a", false)];
        let all = &ClientKind::ALL;
        assert!(Requests::new(1, 10, &targets, all).take(2000).all(|due| due.target == 0));
        let targets = [target("a", true)];
        assert!(Requests::new(1, 10, &targets, all).take(2000).all(|due| due.target == 0));
    }

    #[test]
    fn each_action_runs_as_often_as_requested() {
        let mut planned = actions(3, &[Action::Replace, Action::Reload], 40);
        assert!(!planned.is_sorted(), "the order is random");
        planned.sort();
        assert_eq!(planned[..40], [Action::Reload; 40]);
        assert_eq!(planned[40..], [Action::Replace; 40]);
        let shares: u32 = ClientKind::ALL.iter().map(|kind| kind.per_mille()).sum();
        assert_eq!(shares, 1000);
    }
}
