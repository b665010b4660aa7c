//! The checks of one deploy and what follows from them. Pure: `(event, now) → stage`; the states
//! are in [`super`]. Times are nanoseconds of the epoch.

use crate::{config::ReadyConfig, duration::nanoseconds};

/// Where a deploy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Checking,
    Ready,
    Switched,
    NotReady,
    Aborted,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckResult {
    /// Why it failed, if it did.
    pub(crate) fault: Option<String>,
    /// The status of the answer, if there was one.
    pub(crate) status: Option<u16>,
    /// How long it took.
    pub(crate) took_ns: u64,
    /// The first bytes of the answer's content.
    pub(crate) first: String,
}

/// The checks of one upstream.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamChecks {
    pub(crate) url: String,
    /// Good ones in a row, up to the last one.
    pub(crate) in_row: u32,
    /// How many there were.
    pub(crate) count: u64,
    pub(crate) last: Option<CheckResult>,
    /// When the last good one ended.
    good_ns: u64,
    due: Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    At(u64),
    /// A check has been under way since then.
    Running(u64),
}

/// The state of one deploy.
#[derive(Debug)]
pub(super) struct DeployPlan {
    rise: u32,
    interval_ns: u64,
    began_ns: u64,
    deadline_ns: u64,
    /// How many upstreams have to be ready.
    needed: usize,
    checks: Vec<UpstreamChecks>,
    stage: Stage,
    /// How long after the last good check it was switched.
    switched_after_ns: Option<u64>,
}

impl DeployPlan {
    /// A deploy of these upstreams, of which `needed` have to be ready. Without upstreams it is
    /// ready at once.
    pub(super) fn new(
        config: &ReadyConfig,
        urls: impl IntoIterator<Item = String>,
        needed: usize,
        now_ns: u64,
    ) -> Self {
        let check = |url| UpstreamChecks {
            url,
            in_row: 0,
            count: 0,
            last: None,
            good_ns: 0,
            due: Due::At(now_ns),
        };
        let mut plan = Self {
            rise: config.rise,
            interval_ns: nanoseconds(config.interval),
            began_ns: now_ns,
            deadline_ns: now_ns.saturating_add(nanoseconds(config.timeout)),
            needed,
            checks: urls.into_iter().map(check).collect(),
            stage: Stage::Checking,
            switched_after_ns: None,
        };
        plan.compare();
        plan
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    pub(super) fn needed(&self) -> usize {
        self.needed
    }

    pub(super) fn checks(&self) -> &[UpstreamChecks] {
        &self.checks
    }

    pub(super) fn is_ready(&self, checks: &UpstreamChecks) -> bool {
        checks.in_row >= self.rise
    }

    /// For how long it has been under way.
    pub(super) fn elapsed_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.began_ns)
    }

    /// Whether the deploy has no end yet: it can be aborted, and its checks go on.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Checking | Stage::Ready)
    }

    /// When something is due: a check, or the end of the time.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let checks = self.checks.iter().filter_map(|check| match check.due {
            Due::At(due) => Some(due),
            Due::Running(_) => None,
        });
        let deadline = (self.stage == Stage::Checking).then_some(self.deadline_ns);
        if self.is_open() { checks.chain(deadline).min() } else { None }
    }

    /// Whether a check of this upstream has to begin now. If so, it counts as under way.
    pub(super) fn begin_if_due(&mut self, index: usize, now_ns: u64) -> bool {
        let check = &mut self.checks[index];
        let begins = matches!(check.due, Due::At(due) if due <= now_ns);
        if begins {
            check.due = Due::Running(now_ns);
        }
        begins
    }

    /// A check has ended.
    pub(super) fn on_result(&mut self, index: usize, result: CheckResult, now_ns: u64) {
        let check = &mut self.checks[index];
        if let Due::Running(began) = check.due {
            check.due = Due::At(began.saturating_add(self.interval_ns).max(now_ns));
        }
        check.count += 1;
        if result.fault.is_none() {
            check.in_row = check.in_row.saturating_add(1);
            check.good_ns = now_ns;
        } else {
            check.in_row = 0;
        }
        check.last = Some(result);
        self.compare();
    }

    /// Time has passed. One that is ready has made it in time, and waits only for its switch.
    pub(super) fn on_time(&mut self, now_ns: u64) {
        if self.stage == Stage::Checking && now_ns >= self.deadline_ns {
            self.stage = Stage::NotReady;
        }
    }

    /// Whether the new life may take the old one's place. If so, nothing can abort it any more.
    pub(super) fn switch(&mut self, now_ns: u64) -> bool {
        let is_ready = self.stage == Stage::Ready;
        if is_ready {
            self.stage = Stage::Switched;
            let good = self.checks.iter().map(|check| check.good_ns).max();
            self.switched_after_ns = good.map(|good| now_ns.saturating_sub(good));
        }
        is_ready
    }

    /// Whether it is aborted by this call.
    pub(super) fn abort(&mut self) -> bool {
        let is_open = self.is_open();
        if is_open {
            self.stage = Stage::Aborted;
        }
        is_open
    }

    /// For each upstream why it is not ready, if it is not.
    pub(super) fn faults(&self, now_ns: u64) -> Vec<Option<String>> {
        let fault = |check: &UpstreamChecks| (!self.is_ready(check)).then(|| check.fault(now_ns));
        self.checks.iter().map(fault).collect()
    }

    /// How long after the last good check it was switched; none without a check.
    pub(super) fn switched_after_ns(&self) -> Option<u64> {
        self.switched_after_ns
    }

    fn compare(&mut self) {
        if self.is_open() {
            let ready = self.checks.iter().filter(|check| self.is_ready(check)).count();
            self.stage = if ready >= self.needed { Stage::Ready } else { Stage::Checking };
        }
    }
}

impl UpstreamChecks {
    /// What is wrong with an upstream that is not ready.
    pub(crate) fn fault(&self, now_ns: u64) -> String {
        match (&self.last, self.due) {
            (Some(CheckResult { fault: Some(fault), .. }), _) => fault.clone(),
            (Some(_), _) => format!("good {} times in a row, which is too few", self.in_row),
            (None, Due::Running(began)) => {
                let ms = now_ns.saturating_sub(began) / 1_000_000;
                format!("no answer yet, after {ms} ms")
            }
            (None, Due::At(_)) => "not checked yet".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: u64 = 1_000_000;

    fn plan(upstreams: usize, needed: usize, rise: u32) -> DeployPlan {
        let interval = Duration::from_millis(250);
        let timeout = Duration::from_secs(30);
        let config = ReadyConfig { interval, timeout, rise, ..ReadyConfig::default() };
        let urls = (0..upstreams).map(|index| format!("http://u:{index}"));
        DeployPlan::new(&config, urls, needed, 0)
    }

    fn result(fault: Option<&str>) -> CheckResult {
        let fault = fault.map(str::to_owned);
        CheckResult { fault, status: Some(200), took_ns: MS, first: String::new() }
    }

    /// Begins the check that is due and ends it so, a millisecond later.
    fn check(plan: &mut DeployPlan, index: usize, now_ns: u64, fault: Option<&str>) {
        assert!(plan.begin_if_due(index, now_ns), "{index} is not due at {now_ns}");
        plan.on_result(index, result(fault), now_ns + MS);
    }

    #[test]
    fn without_an_upstream_it_is_ready_at_once() {
        let mut plan = plan(0, 0, 1);
        assert_eq!((plan.stage(), plan.due_ns()), (Stage::Ready, None));
        assert!(plan.switch(0));
        assert!(!plan.abort(), "what has switched cannot be aborted");
    }

    #[test]
    fn all_have_to_be_ready_at_the_same_time() {
        let mut plan = plan(2, 2, 1);
        check(&mut plan, 0, 0, None);
        check(&mut plan, 1, 0, Some("status 500"));
        assert_eq!(plan.stage(), Stage::Checking);
        assert!(!plan.switch(0));
        // The first one dies while the second one comes up.
        check(&mut plan, 0, 250 * MS, Some("connect: refused"));
        check(&mut plan, 1, 250 * MS, None);
        assert_eq!(plan.stage(), Stage::Checking);
        check(&mut plan, 0, 500 * MS, None);
        assert_eq!(plan.stage(), Stage::Ready);
        assert!(plan.switch(510 * MS));
        assert_eq!(plan.switched_after_ns(), Some(9 * MS));
    }

    #[test]
    fn one_that_dies_before_the_switch_takes_the_readiness_back() {
        let mut plan = plan(1, 1, 1);
        check(&mut plan, 0, 0, None);
        assert_eq!(plan.stage(), Stage::Ready);
        check(&mut plan, 0, 250 * MS, Some("connect: refused"));
        assert_eq!(plan.stage(), Stage::Checking);
        assert!(!plan.switch(0));
        check(&mut plan, 0, 500 * MS, None);
        assert!(plan.switch(0));
        assert_eq!(plan.due_ns(), None);
    }

    #[test]
    fn rise_counts_good_checks_in_a_row() {
        let mut plan = plan(1, 1, 3);
        for (step, fault) in [None, None, Some("status 503"), None, None].iter().enumerate() {
            check(&mut plan, 0, step as u64 * 250 * MS, *fault);
            assert_eq!(plan.stage(), Stage::Checking, "{step}");
        }
        assert_eq!(plan.faults(0), [Some("good 2 times in a row, which is too few".to_owned())]);
        check(&mut plan, 0, 1250 * MS, None);
        assert_eq!(plan.stage(), Stage::Ready);
    }

    #[test]
    fn a_quorum_does_not_wait_for_one_that_hangs() {
        let mut plan = plan(3, 2, 1);
        assert!(plan.begin_if_due(0, 0), "this check never ends");
        check(&mut plan, 1, 0, None);
        check(&mut plan, 2, 0, None);
        assert_eq!(plan.stage(), Stage::Ready);
        let faults = plan.faults(7 * MS);
        assert_eq!(faults, [Some("no answer yet, after 7 ms".to_owned()), None, None]);
    }

    #[test]
    fn the_time_ends_checks_but_not_what_is_ready() {
        let mut late = plan(1, 1, 1);
        check(&mut late, 0, 0, Some("status 500"));
        late.on_time(30_000 * MS - 1);
        assert_eq!((late.stage(), late.due_ns()), (Stage::Checking, Some(250 * MS)));
        late.on_time(30_000 * MS);
        assert_eq!((late.stage(), late.due_ns()), (Stage::NotReady, None));
        // A check that ends later changes nothing.
        late.on_result(0, result(None), 30_001 * MS);
        assert_eq!(late.stage(), Stage::NotReady);
        assert!(!late.switch(0) && !late.abort());
        let mut ready = plan(1, 1, 1);
        check(&mut ready, 0, 29_999 * MS, None);
        ready.on_time(30_001 * MS);
        assert_eq!(ready.stage(), Stage::Ready);
    }

    #[test]
    fn what_is_aborted_never_switches() {
        let mut plan = plan(1, 1, 1);
        check(&mut plan, 0, 0, None);
        assert!(plan.abort());
        assert!(!plan.switch(0) && !plan.abort());
        plan.on_result(0, result(None), 2 * MS);
        assert_eq!(plan.stage(), Stage::Aborted);
    }

    #[test]
    fn a_check_that_takes_longer_than_the_interval_is_followed_at_once() {
        let mut plan = plan(1, 1, 1);
        assert!(plan.begin_if_due(0, 0));
        assert!(!plan.begin_if_due(0, 10_000 * MS), "one check at a time");
        plan.on_result(0, result(Some("timeout")), 5_000 * MS);
        assert_eq!(plan.due_ns(), Some(5_000 * MS));
    }
}
