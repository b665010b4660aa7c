//! What a drill is going to do: each request at the moment when it is due, each action in its turn.
//!
//! Pure: the same seed gives the same plan. An open loop: no request waits for the answer to
//! another one, so a server that stalls is asked as often as one that does not. The gaps between
//! requests are exponential, as those between strangers are.

use std::time::Duration;

use clap::ValueEnum;
use fastrand::Rng;

/// What is done to the server while it is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Action {
    /// Have it read its config again; of the drill's own server, one app has changed
    Reload,
    /// Put another app in the place of one
    Replace,
    /// Take an app away, wait for its drain, add it again
    #[value(name = "remove+add")]
    RemoveAdd,
    /// Drain an app, wait for the end, resume it
    #[value(name = "drain+resume")]
    DrainResume,
    /// Have a new process take over
    Upgrade,
    /// SIGTERM, wait for the end, start it again; for the drill's own server only
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientKind {
    /// Keeps its connections busy.
    Kept,
    /// Keeps connections, and pauses between requests: an idle connection is often met.
    Paused,
    /// One connection for each request.
    Fresh,
    /// Sends content, with a pause in its middle.
    Post,
    /// Reads a large answer in small pieces.
    Slow,
}

impl ClientKind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Kept, Self::Paused, Self::Fresh, Self::Post, Self::Slow];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kept => "keep-alive",
            Self::Paused => "with pauses",
            Self::Fresh => "one request",
            Self::Post => "POST",
            Self::Slow => "slow download",
        }
    }

    /// Its part of 1,000 requests.
    fn per_mille(self) -> u32 {
        match self {
            Self::Kept => 600,
            Self::Paused => 50,
            Self::Fresh => 200,
            Self::Post => 145,
            Self::Slow => 5,
        }
    }
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) path: String,
    /// For slow downloads alone.
    pub(crate) is_large: bool,
    /// How long the app holds its answer back by itself.
    pub(crate) delay: Duration,
}

/// A request to be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Due {
    /// Since the drill began.
    pub(crate) at: Duration,
    pub(crate) kind: ClientKind,
    /// The place in the list of targets.
    pub(crate) target: usize,
}

/// All requests of a drill, without end.
#[derive(Debug)]
pub(crate) struct Requests {
    rng: Rng,
    seconds: f64,
    rate: f64,
    small: Vec<usize>,
    large: Vec<usize>,
}

impl Requests {
    /// Requests to `targets`, `rate` in a second. Who downloads slowly takes what there is.
    pub(crate) fn new(seed: u64, rate: u32, targets: &[Target]) -> Self {
        let of_size = |is_large: bool| -> Vec<usize> {
            (0..targets.len()).filter(|at| targets[*at].is_large == is_large).collect()
        };
        let (mut small, mut large) = (of_size(false), of_size(true));
        if large.is_empty() {
            large.clone_from(&small);
        } else if small.is_empty() {
            small.clone_from(&large);
        }
        Self { rng: Rng::with_seed(seed), seconds: 0.0, rate: f64::from(rate), small, large }
    }

    fn kind(&mut self) -> ClientKind {
        let mut drawn = self.rng.u32(..1000);
        let kinds = ClientKind::ALL.into_iter();
        let mut found = kinds.skip_while(|kind| match drawn.checked_sub(kind.per_mille()) {
            Some(left) => {
                drawn = left;
                true
            }
            None => false,
        });
        found.next().unwrap_or(ClientKind::Kept)
    }
}

impl Iterator for Requests {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        self.seconds -= (1.0 - self.rng.f64()).ln() / self.rate;
        let kind = self.kind();
        let targets = if kind == ClientKind::Slow { &self.large } else { &self.small };
        let target = targets[self.rng.usize(..targets.len())];
        Some(Due { at: Duration::from_secs_f64(self.seconds), kind, target })
    }
}

/// `count` of each action, in an order that mixes them.
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
    fn a_seed_gives_its_plan_again() {
        let targets = [target("a", false), target("b", false)];
        let plan = |seed| Requests::new(seed, 1000, &targets).take(500).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        let kinds = [Action::Reload, Action::StopStart, Action::Nothing];
        assert_eq!(actions(7, &kinds, 9), actions(7, &kinds, 9));
        assert_ne!(actions(7, &kinds, 9), actions(8, &kinds, 9));
    }

    #[test]
    fn requests_come_at_their_rate_in_order_and_of_all_kinds() {
        let targets = [target("a", false), target("big", true), target("b", false)];
        let plan: Vec<Due> = Requests::new(1, 2000, &targets).take(20_000).collect();
        assert!(plan.is_sorted_by_key(|due| due.at));
        let seconds = plan[plan.len() - 1].at.as_secs_f64();
        assert!((9.0..11.0).contains(&seconds), "{seconds}");
        for kind in ClientKind::ALL {
            let count = plan.iter().filter(|due| due.kind == kind).count();
            let expected = kind.per_mille() as usize * 20;
            assert!((expected / 2..expected * 2).contains(&count), "{kind:?}: {count}");
        }
        let is_right = |due: &Due| (due.kind == ClientKind::Slow) == (due.target == 1);
        assert!(plan.iter().all(is_right), "large answers are for slow downloads, and only they");
    }

    #[test]
    fn without_large_answers_small_ones_are_read_slowly() {
        let targets = [target("a", false)];
        assert!(Requests::new(1, 10, &targets).take(2000).all(|due| due.target == 0));
        let targets = [target("a", true)];
        assert!(Requests::new(1, 10, &targets).take(2000).all(|due| due.target == 0));
    }

    #[test]
    fn each_action_is_done_as_often_as_asked() {
        let mut planned = actions(3, &[Action::Replace, Action::Reload], 40);
        assert!(!planned.is_sorted(), "they are mixed");
        planned.sort();
        assert_eq!(planned[..40], [Action::Reload; 40]);
        assert_eq!(planned[40..], [Action::Replace; 40]);
        let shares: u32 = ClientKind::ALL.iter().map(|kind| kind.per_mille()).sum();
        assert_eq!(shares, 1000);
    }
}
