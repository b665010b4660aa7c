//! What has to be true. The oracle is told what was asked, what happened on loops, and what control
//! said to operators and askers, in that order; it fails when two of them do not agree.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    super::{DrainTicket, Verdict, drain_plan::CUT_GRACE},
    ledger::{Drain, Ledger, Named, State, Stop},
    scripted_loop::{Asked, Deed},
};
use crate::{
    hosted::{AppLife, Apps},
    message::ControlEvent,
    registry::AppId,
};

/// How late the scripted control thread may be for a deadline.
pub(super) const LATE_MAX: Duration = Duration::from_millis(20);

pub(super) struct Oracle {
    epoch: Instant,
    loops: usize,
    pub(super) names: HashMap<String, Named>,
    pub(super) default_app: Option<String>,
    lives: HashMap<u64, Ledger>,
    drains: HashMap<String, Drain>,
    /// Cut, and in flight, of each upstream of each life.
    upstreams: HashMap<(u64, String), (u64, u64)>,
    /// Upstreams that are out, by host.
    pub(super) out: Vec<(String, String)>,
    pub(super) stop: Option<Stop>,
    /// Loops that have not taken up since a stop was cancelled.
    pub(super) taking_up: Vec<usize>,
    tickets: Vec<(String, DrainTicket, Option<Verdict>)>,
    /// Of each loop that has died, how many exchanges it cut.
    died: Vec<Option<u64>>,
}

impl Oracle {
    pub(super) fn new(epoch: Instant, loops: usize) -> Self {
        Self {
            epoch,
            loops,
            names: HashMap::new(),
            default_app: None,
            lives: HashMap::new(),
            drains: HashMap::new(),
            upstreams: HashMap::new(),
            out: Vec::new(),
            stop: None,
            taking_up: Vec::new(),
            tickets: Vec::new(),
            died: vec![None; loops],
        }
    }

    /// What the answer to a request for a host has to be (I10).
    fn expected(&self, host: &str) -> Option<Named> {
        let wildcard = || self.names.get(&format!("*.{}", host.split_once('.')?.1));
        let default = || self.names.get(self.default_app.as_deref()?);
        self.names.get(host).or_else(wildcard).or_else(default).copied()
    }

    /// A request was asked of a loop.
    pub(super) fn on_asked(&mut self, host: &str, asked: &Asked) {
        let expected = self.expected(host);
        match asked {
            Asked::Unknown => assert_eq!(expected, None, "{host} is served"),
            Asked::Draining(life) => {
                let expected = expected.unwrap_or_else(|| panic!("{host} is unknown"));
                assert_eq!(expected.life, life.as_u64(), "{host} is refused by another life");
                assert_ne!(expected.state, State::Serving, "{host} is refused, and serves");
                self.life(*life).refused += 1;
            }
            Asked::Admitted { life, upstream } => {
                let expected = expected.unwrap_or_else(|| panic!("I10: {host} is unknown"));
                assert_eq!(expected.life, life.as_u64(), "I10: another life answers {host}");
                assert_eq!(expected.state, State::Serving, "I1: {host} does not serve");
                let ledger = self.life(*life);
                assert!(!ledger.is_draining, "I1: admitted after the drain has begun");
                ledger.admitted += 1;
                let app = ledger.host.clone();
                if let Some(url) = upstream {
                    let is_out = self.out.iter().any(|(host, out)| *host == app && out == url);
                    assert!(!is_out, "{url} of {app} is drained, and was chosen");
                    self.upstreams.entry((life.as_u64(), url.clone())).or_default().1 += 1;
                }
            }
        }
    }

    /// An exchange has ended by itself.
    pub(super) fn on_ended(&mut self, life: AppId, upstream: Option<(&str, &str)>) {
        self.life(life).ended += 1;
        if let Some((_, url)) = upstream {
            self.upstreams.entry((life.as_u64(), url.to_owned())).or_default().1 -= 1;
        }
    }

    /// A loop has obeyed.
    pub(super) fn on_deed(&mut self, index: usize, deed: Deed, now: Instant, are_all_gated: bool) {
        match deed {
            Deed::Cut { life, upstream, by_all } => {
                self.life(life).cut += 1;
                if let Some((_, url)) = upstream {
                    let counts = self.upstreams.entry((life.as_u64(), url)).or_default();
                    *counts = (counts.0 + 1, counts.1 - 1);
                }
                // A loop that was stuck may cut for a stop that is cancelled by now.
                let is_of_stop = by_all && !self.taking_up.contains(&index);
                if let Some(stop) = self.stop.as_mut().filter(|_| is_of_stop) {
                    stop.cut_by_all += 1;
                }
                if by_all {
                    return;
                }
                let id = life.as_u64();
                let is_due = |drain: &Drain| {
                    let is_of = drain.life == id
                        || drain.upstream.as_ref().is_some_and(|(_, lives)| lives.contains(&id));
                    // Behind its end, what a loop obeys late.
                    let has_cut = drain.verdict.as_deref() == Some("cut");
                    is_of && (drain.deadline <= now || has_cut)
                };
                assert!(self.drains.values().any(is_due), "cut before any deadline");
            }
            // What a loop that was stuck obeys of a stop that is cancelled by now.
            Deed::Finished if self.taking_up.contains(&index) => {}
            Deed::Finished => {
                let is_late = self.stop.as_ref().is_none_or(|stop| stop.deadline <= now);
                assert!(are_all_gated || is_late, "a listener is closed before all are gated");
            }
        }
    }

    /// Control makes the loops cut everything. With nothing in flight it says so to no operator;
    /// what a loop still admits before it obeys is cut all the same.
    pub(super) fn on_cut_all(&mut self, now: Instant) {
        let in_flight = self.in_flight();
        if let Some(stop) = self.stop.as_mut().filter(|_| in_flight == 0) {
            stop.deadline = stop.deadline.min(now);
        }
    }

    /// Control is about to hear this of a loop.
    pub(super) fn on_report(&mut self, index: usize, event: &ControlEvent) {
        if matches!(event, ControlEvent::TookUp | ControlEvent::Died { .. }) {
            self.taking_up.retain(|taking_up| *taking_up != index);
        }
        if let ControlEvent::Died { cut, .. } = event {
            // The stop that begins by this counts it, too.
            self.died[index] = Some(*cut);
        }
        if self.taking_up.contains(&index) {
            return;
        }
        if let ControlEvent::Emptied { cut } | ControlEvent::Died { cut, .. } = event
            && let Some(stop) = &mut self.stop
        {
            stop.reported[index].get_or_insert(*cut);
        }
    }

    pub(super) fn on_ticket(&mut self, ticket: DrainTicket) {
        self.tickets.push((ticket.id().to_string(), ticket, None));
    }

    /// What control has reported to operators.
    pub(super) fn on_notice(&mut self, name: &str, fields: &Value, now: Instant) {
        let text = |key: &str| fields[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| fields[key].as_u64().unwrap_or_default();
        let host = || text("host");
        match name {
            "app_added" | "app_replaced" | "app_resumed" | "app_loaded" => {
                self.serve(&host(), number("id"));
            }
            "app_removed" => {
                let removed = self.names.remove(&host());
                let removed = removed.unwrap_or_else(|| panic!("{} was unknown", host()));
                assert_eq!(removed.life, number("id"), "another life was removed");
                assert_eq!(removed.state, State::Removing, "a life is gone, and served");
                self.out.retain(|(app, _)| *app != host());
            }
            "app_drain_start" | "upstream_drain_start" => self.begin(fields, now),
            "app_drain_deadline" => {
                let drain = self.drains.get_mut(&text("drain")).expect("a drain that began");
                let moved = now + Duration::from_millis(number("remaining_ms"));
                // One that has passed does not move.
                drain.deadline = if moved == now { drain.deadline.min(now) } else { moved };
                self.mark(&text("cause"), &host(), number("id"));
            }
            "app_drained"
            | "app_drain_timeout"
            | "app_drain_cancelled"
            | "upstream_drained"
            | "upstream_drain_timeout"
            | "upstream_drain_cancelled" => self.end(fields, now),
            "upstream_resumed" => {
                let back = (host(), text("upstream"));
                self.out.retain(|out| *out != back);
            }
            "shutdown_graceful" => {
                let delay = if text("reason") == "upgrade" { 0 } else { number("delay_ms") };
                let time = Duration::from_millis(delay + number("drain_timeout_ms") + 1);
                assert!(self.stop.is_none(), "a stop begins within another");
                self.stop = Some(Stop {
                    deadline: now + time + LATE_MAX,
                    reported: self.died.clone(),
                    cut_by_all: 0,
                    over: None,
                });
            }
            "shutdown_deadline" => {
                let stop = self.stop.as_mut().expect("a stop");
                let time = Duration::from_millis(number("remaining_ms") + 1);
                stop.deadline = now + time + LATE_MAX;
            }
            "shutdown_cut" => {
                let stop = self.stop.as_mut().expect("a stop");
                stop.deadline = stop.deadline.min(now);
            }
            "shutdown_drained" | "shutdown_timeout_reached" | "shutdown_incomplete" => {
                self.end_stop(&text("verdict"), number("cut"), now);
            }
            "upgrade_reverted" => {
                let stop = self.stop.take().expect("a stop that is cancelled");
                assert!(stop.over.is_none(), "I2: a stop is over, and cancelled");
                self.taking_up = (0..self.loops).collect();
            }
            _ => {}
        }
    }

    /// A life has begun, by an answer.
    pub(super) fn on_begun(&mut self, life: &AppLife) {
        self.serve(life.host(), life.id().as_u64());
        if life.app().app.upstreams().is_none() {
            self.out.retain(|(app, _)| app != life.host());
        }
    }

    /// The host is served by this life now.
    fn serve(&mut self, host: &str, life: u64) {
        let before = self.names.insert(host.to_owned(), Named { life, state: State::Serving });
        // What was being removed took its upstreams' drains with it.
        if before.is_none_or(|before| before.state == State::Removing) {
            self.out.retain(|(app, _)| app != host);
        }
    }

    fn mark(&mut self, cause: &str, host: &str, life: u64) {
        if let Some(named) = self.names.get_mut(host).filter(|named| named.life == life) {
            match cause {
                "drain" => named.state = State::Paused,
                "remove" | "reload" => named.state = State::Removing,
                _ => {}
            }
        }
    }

    fn begin(&mut self, fields: &Value, now: Instant) {
        let text = |key: &str| fields[key].as_str().unwrap_or_default().to_owned();
        let (life, host) = (fields["id"].as_u64().expect("an id"), text("host"));
        let time = Duration::from_millis(fields["timeout_ms"].as_u64().expect("a time"));
        let active = fields["active_connections"].as_u64().expect("a count");
        let upstream = fields["upstream"].as_str().map(|url| {
            let lives = self.lives_with(&host, url, active);
            (url.to_owned(), lives)
        });
        match &upstream {
            Some((url, _)) => self.out.push((host, url.clone())),
            None => self.mark(&text("cause"), &host, life),
        }
        let deadline = now + time;
        let before = self.drains.get(&text("drain"));
        assert!(before.is_none_or(|it| it.verdict.is_some()), "{} begins twice", text("drain"));
        let mut drain = Drain {
            life,
            deadline,
            cut_before: 0,
            upstream,
            verdict: None,
            ended_at: None,
            is_again: before.is_some(),
        };
        let (cut, in_flight) = self.counts(&drain);
        assert_eq!(in_flight, active, "{} begins", text("drain"));
        drain.cut_before = cut;
        self.drains.insert(text("drain"), drain);
    }

    /// The lives of a host whose exchanges with an upstream are waited for: those that serve or
    /// drain, and as long as their memory is there those whose drain was cancelled.
    fn lives_with(&self, host: &str, url: &str, active: u64) -> Vec<u64> {
        let of_host = self.lives.iter().filter(|(_, ledger)| ledger.host == host);
        let all: Vec<_> = of_host.map(|(id, _)| *id).collect();
        let runs = |id: &u64| {
            let drain = self.drains.get(&id.to_string());
            self.names.get(host).is_some_and(|named| named.life == *id)
                || drain.is_some_and(|drain| drain.verdict.is_none())
        };
        let strict: Vec<_> = all.iter().copied().filter(runs).collect();
        let in_flight = |lives: &[u64]| {
            let key = |life: &u64| (*life, url.to_owned());
            lives
                .iter()
                .filter_map(|life| self.upstreams.get(&key(life)))
                .map(|it| it.1)
                .sum::<u64>()
        };
        if in_flight(&strict) == active { strict } else { all }
    }

    /// Cut so far, and in flight, of what a drain is about.
    fn counts(&self, drain: &Drain) -> (u64, u64) {
        let Some((url, lives)) = &drain.upstream else {
            let ledger = self.lives.get(&drain.life);
            return ledger.map(|ledger| (ledger.cut, ledger.in_flight())).unwrap_or_default();
        };
        let counts = lives.iter().filter_map(|life| self.upstreams.get(&(*life, url.clone())));
        counts.fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1))
    }

    fn end(&mut self, fields: &Value, now: Instant) {
        let name = fields["drain"].as_str().expect("a name");
        let verdict = fields["verdict"].as_str().expect("a verdict");
        let drain = self.drains.get(name).unwrap_or_else(|| panic!("I2: {name} never began"));
        assert_eq!(drain.verdict, None, "I2: {name} ends twice");
        assert!(now <= drain.deadline + CUT_GRACE + 2 * LATE_MAX, "I5: {name} ends late");
        let (cut, in_flight) = self.counts(drain);
        if verdict != "cancelled" {
            let lost = cut - drain.cut_before + in_flight;
            let expected = if lost == 0 { "drained" } else { "cut" };
            assert_eq!(verdict, expected, "the verdict of {name}: {lost} lost");
            assert_eq!(fields["cut"], lost, "the verdict of {name}");
            let is_given_up = self.may_give_up(drain, now);
            assert!(in_flight == 0 || is_given_up, "{name} ends before its exchanges do");
        }
        if drain.upstream.is_none()
            && let Some(ledger) = self.lives.get(&drain.life)
        {
            assert_eq!(fields["refused"], ledger.refused, "what {name} refused");
        }
        let drain = self.drains.get_mut(name).expect("it is there");
        (drain.verdict, drain.ended_at) = (Some(verdict.to_owned()), Some(now));
    }

    /// Whether a drain may end although exchanges are in flight.
    fn may_give_up(&self, drain: &Drain, now: Instant) -> bool {
        let is_cut = |drain: &Drain| matches!(drain.verdict.as_deref(), Some("cut" | "cancelled"));
        let of_life = self.drains.get(&drain.life.to_string());
        let stop = self.stop.as_ref();
        drain.is_again
            || drain.deadline + CUT_GRACE <= now
            || drain.upstream.is_some() && of_life.is_some_and(is_cut)
            || stop.is_some_and(|stop| stop.deadline <= now + 2 * LATE_MAX)
    }

    /// With nothing to be heard of loops: a drain goes on only for exchanges that are in flight.
    pub(super) fn check_prompt(&self) {
        for (name, drain) in self.drains.iter().filter(|(_, drain)| drain.verdict.is_none()) {
            assert!(self.counts(drain).1 > 0, "I2: {name} has nothing in flight, and goes on");
        }
    }

    fn end_stop(&mut self, verdict: &str, cut: u64, now: Instant) {
        let in_flight: u64 = self.in_flight();
        let held = self.held(now);
        let stop = self.stop.as_mut().expect("a stop");
        assert!(stop.over.is_none(), "I2: the stop ends twice");
        let latest = stop.deadline + CUT_GRACE + 2 * LATE_MAX;
        assert!(now <= latest, "I5: the stop ends late");
        let is_stuck = stop.reported.contains(&None);
        let reported: u64 = stop.reported.iter().flatten().sum();
        let lost = |held: u64| reported + if is_stuck { held.max(1) } else { 0 };
        let expected = lost(held.0)..=lost(held.1);
        assert!(expected.contains(&cut), "the stop cut {expected:?}, and says {cut}");
        assert_eq!(verdict, if cut == 0 { "drained" } else { "cut" }, "the verdict of the stop");
        assert!(verdict == "cut" || (stop.cut_by_all, in_flight) == (0, 0), "it says drained");
        stop.over = Some((now, verdict.to_owned()));
    }

    /// Exchanges in flight of lives that are not gone: at least, and at most, for drains may end in
    /// the same moment, and one that was cancelled ends in silence.
    fn held(&self, now: Instant) -> (u64, u64) {
        let (mut least, mut most) = (0, 0);
        for (id, ledger) in &self.lives {
            let is_named = self.names.values().any(|named| named.life == *id);
            let drain = self.drains.get(&id.to_string());
            if is_named || drain.is_some_and(|drain| drain.verdict.is_none()) {
                least += ledger.in_flight();
            }
            let is_silent = |drain: &Drain| drain.verdict.as_deref() == Some("cancelled");
            if is_named
                || drain.is_some_and(|it| it.ended_at.is_none_or(|at| at == now) || is_silent(it))
            {
                most += ledger.in_flight();
            }
        }
        (least, most)
    }

    /// After control has taken something in: all that has to hold at any time.
    pub(super) fn check(&mut self, registry: &Apps, now: Instant) {
        for life in registry.entries() {
            let ledger = self.lives.entry(life.id().as_u64()).or_default();
            if ledger.host.is_empty() {
                (ledger.life, ledger.host) = (Arc::downgrade(&life), life.host().to_owned());
            }
        }
        for (id, ledger) in &mut self.lives {
            let Some(life) = ledger.life.upgrade() else { continue };
            let state = life.drain();
            let is_current = registry.find(life.host()).is_some_and(|it| it.id() == life.id());
            assert!(is_current || state.draining(), "{id} has no name, and does not drain");
            assert!(state.draining() || !ledger.is_draining, "{id} drains no more");
            ledger.is_draining = state.draining();
            let counts = (state.requests(), state.cut(), state.active_connections());
            let expected = (ledger.admitted, ledger.cut, ledger.in_flight());
            assert_eq!(counts, expected, "I3, I4: the ledger of {id}");
        }
        for (name, drain) in self.drains.iter().filter(|(_, drain)| drain.verdict.is_none()) {
            let latest = drain.deadline + CUT_GRACE + 2 * LATE_MAX;
            assert!(now <= latest, "I5: {name} goes on behind its deadline");
        }
        if let Some(stop) = self.stop.as_ref().filter(|stop| stop.over.is_none()) {
            let latest = stop.deadline + CUT_GRACE + 2 * LATE_MAX;
            assert!(now <= latest, "I5: the stop goes on behind its deadline");
        }
        self.check_tickets();
    }

    /// A ticket has a verdict when its drain has ended, and only once (I2).
    fn check_tickets(&mut self) {
        for (name, ticket, given) in &mut self.tickets {
            if let Some(verdict) = ticket.wait(Duration::ZERO) {
                assert_eq!(*given, None, "I2: a ticket of {name} has two verdicts");
                *given = Some(verdict);
            }
            let said = self.drains.get(name.as_str()).and_then(|drain| drain.verdict.as_deref());
            let is_same = given.map(Verdict::name) == said;
            // A drain that was over may go on as a removal.
            assert!(is_same || given.is_some(), "{name}: {given:?} is not {said:?}");
        }
    }

    /// With nothing under way: what was removed is forgotten by all.
    pub(super) fn check_forgotten(&self, registry: &Apps) {
        let entries = registry.entries();
        for (id, ledger) in self.lives.iter().filter(|(_, ledger)| ledger.in_flight() == 0) {
            let is_named = entries.iter().any(|life| life.id().as_u64() == *id);
            assert!(is_named || ledger.life.strong_count() == 0, "{id} is gone, and held");
        }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.lives.values().map(Ledger::in_flight).sum()
    }

    /// Admitted and cut, of all lives.
    pub(super) fn totals(&self) -> (u64, u64) {
        self.lives
            .values()
            .fold((0, 0), |sum, ledger| (sum.0 + ledger.admitted, sum.1 + ledger.cut))
    }

    pub(super) fn is_draining_anything(&self) -> bool {
        self.drains.values().any(|drain| drain.verdict.is_none())
    }

    fn life(&mut self, id: AppId) -> &mut Ledger {
        self.lives.get_mut(&id.as_u64()).expect("a life that was seen")
    }

    /// Milliseconds since the run began, for the trace.
    pub(super) fn millis(&self, now: Instant) -> u128 {
        now.duration_since(self.epoch).as_millis()
    }
}
