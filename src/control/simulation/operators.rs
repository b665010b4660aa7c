//! What operators ask of control, and how that is answered.
//!
//! A reload takes several questions, and anything may happen between two of them: so each stands
//! here as a phase. The operator's own code prepares and settles a reload; only its
//! thread, which waits, is scripted.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{
    super::{
        Answer, Begun, ChangeError, DrainApp, DrainName, DrainUpstream, DrainView, DrainWatch,
        Input, PutApp, PutMode, ReloadError, ReloadOptions, RemoveApp, Report, ResumeApp,
        ResumeUpstream, StopAsker, StopRequest, changes::LivesChanged, input::ReadyReload, load,
    },
    asked::{HOSTS, Question, QuestionOutcome, Reload},
    ledger::{Named, Said, State},
    new_process::{PID, Upgrade},
    world::World,
};
use crate::{
    acknowledgement::{Obeyed, acknowledgement},
    config::{AppConfig, Config},
    hosted::{HostedApp, Origin},
    registry::NewApp,
};

const URLS: [&str; 2] = ["http://127.0.0.1:9", "http://127.0.0.1:10"];

/// The apps that a config may have: two versions of an answer, two of a proxy, one broken.
fn templates() -> &'static [AppConfig] {
    static TEMPLATES: OnceLock<Vec<AppConfig>> = OnceLock::new();
    TEMPLATES.get_or_init(|| {
        let text = "
            [apps.one]\nrespond = { body = '1' }\n[apps.two]\nrespond = { body = '2' }
            drain_timeout = '700ms'
            [apps.three.proxy]\nupstreams = ['http://127.0.0.1:9', 'http://127.0.0.1:10']
            [apps.four.proxy]\nupstreams = ['http://127.0.0.1:9', 'http://127.0.0.1:10']
            balance = 'least_active'
            [apps.five]\nfiles = { root = '/nowhere/at/all' }\n";
        let config = Config::parse(text, "sim.toml".as_ref(), "/".as_ref());
        config.unwrap_or_else(|error| panic!("{error}")).apps
    })
}

impl World {
    fn template(&mut self, host: &str, may_break: bool) -> AppConfig {
        let count = templates().len() - usize::from(!may_break);
        AppConfig { host: host.to_owned(), ..self.random.pick(&templates()[..count]).clone() }
    }

    pub(super) fn new_app(&mut self, host: &str, origin: Origin) -> NewApp<HostedApp> {
        let config = self.template(host, false);
        load(&config, origin, self.registry.loops()).expect("it can be loaded")
    }

    /// The way back from one question. Notices that operators got before stand before the answer.
    pub(super) fn answer<T: Send + 'static>(
        &mut self,
        question: Question,
        outcome: impl FnOnce(T) -> QuestionOutcome + Send + 'static,
    ) -> Answer<T> {
        let number = self.questions.len();
        self.note(|| format!("ask {number}: {question:?}"));
        self.questions.push(Some(question));
        let (said, notices) = (Arc::clone(&self.said), Arc::clone(&self.notices));
        Answer::new(move |answer| {
            let mut said = said.lock().expect("no run goes on behind a panic");
            said.extend(notices.take_held().into_iter().map(|(name, it)| Said::Notice(name, it)));
            said.push(Said::Answer(number, answer.map_or_else(QuestionOutcome::Refused, outcome)));
        })
    }

    /// An operator asks for something.
    pub(super) fn ask_something(&mut self) {
        let host = (*self.random.pick(&HOSTS)).to_owned();
        let url = (*self.random.pick(&URLS)).to_owned();
        let millis = self.random.below(2000) as u64;
        let timeout = self.random.one_in(2).then(|| Duration::from_millis(millis));
        let input = match self.random.below(24) {
            0..4 => {
                let mode = *self.random.pick(&[PutMode::Add, PutMode::Replace, PutMode::Either]);
                let app = self.new_app(&host, Origin::Admin);
                let question = Question::Put(host, mode);
                let answer =
                    self.answer(question, |begun: Begun| QuestionOutcome::Begun(begun.life));
                Input::Put(PutApp { app, mode, certificates: None, answer })
            }
            4..7 => {
                let answer = self.answer(Question::Remove(host.clone()), QuestionOutcome::Draining);
                Input::Remove(RemoveApp { host, timeout, answer })
            }
            7..10 => {
                let answer = self.answer(Question::Drain(host.clone()), QuestionOutcome::Draining);
                Input::Drain(DrainApp { host, timeout, answer })
            }
            10..13 => {
                let app = self.random.one_in(3).then(|| self.new_app(&host, Origin::Config));
                let answer = self.answer(Question::Resume(host.clone()), QuestionOutcome::Begun);
                Input::Resume(ResumeApp { host, app, answer })
            }
            13..16 => {
                let question = Question::DrainUpstream(host.clone());
                let answer = self.answer(question, |_| QuestionOutcome::UpstreamDraining);
                Input::DrainUpstream(DrainUpstream { host, url, timeout, answer })
            }
            16..18 => {
                let question = Question::ResumeUpstream(host.clone());
                let answer = self.answer(question, |_| QuestionOutcome::UpstreamResumed);
                Input::ResumeUpstream(ResumeUpstream { host, url, answer })
            }
            18..20 => return self.watch_something(),
            20..23 => return self.go_on_with_reload(),
            _ => return self.begin_upgrade(),
        };
        self.send(input);
    }

    fn watch_something(&mut self) {
        let names = [
            DrainName::Stop,
            "1".parse().expect("a name"),
            "3".parse().expect("a name"),
            "u1".parse().expect("a name"),
        ];
        let drain = *self.random.pick(&names);
        let until = self.now + Duration::from_millis(self.random.below(5000) as u64);
        let (said, number) = (Arc::clone(&self.said), self.watches.len());
        self.note(|| format!("watch {number}: {drain}"));
        self.watches.push(Some(until));
        let show = move |view: Option<DrainView>| {
            said.lock().expect("no run goes on behind a panic").push(Said::Shown(number, view));
        };
        self.send(Input::Watch(DrainWatch { drain, until, show: Box::new(show) }));
    }

    /// A stop is asked for, by one of those who may.
    pub(super) fn ask_to_stop(&mut self) {
        let millis = self.random.below(3000) as u64;
        let timeout = self.random.one_in(3).then(|| Duration::from_millis(millis));
        let by = match self.random.below(6) {
            0..4 => StopAsker::Signal,
            4 => StopAsker::Predecessor { cut: self.random.one_in(3) },
            _ => {
                let cuts = self.random.one_in(3);
                let answer = self.answer(Question::Stop, |_: DrainView| QuestionOutcome::Stopping);
                StopAsker::Admin { cuts, answer }
            }
        };
        self.note(|| "ask to stop".to_owned());
        self.send(Input::Stop(StopRequest { reason: "test".to_owned(), timeout, by }));
    }

    /// The next phase of the reload, or a new one.
    pub(super) fn go_on_with_reload(&mut self) {
        match std::mem::take(&mut self.reload) {
            Reload::None => {
                let allow_empty = self.random.one_in(3);
                // A config that is wrong reaches no further than the operator.
                if self.random.one_in(8) {
                    return;
                }
                let config = self.read_disk();
                let options = ReloadOptions { allow_empty, ..ReloadOptions::default() };
                self.reload = Reload::Read(Box::new(config), options);
                let report = |report| QuestionOutcome::Report(Box::new(report));
                let answer = self.answer(Question::ReportForReload, report);
                self.send(Input::Report(answer));
            }
            Reload::Prepared(prepared) => {
                let (prepared, changes) = *prepared;
                let (configured, all) = acknowledgement();
                self.reload = Reload::Given(Box::new(prepared), all);
                let answer = self.answer(Question::Reload, QuestionOutcome::Reloaded);
                let ready = ReadyReload { changes, configured, answer };
                self.send(Input::Reload(Box::new(ready)));
            }
            waits @ (Reload::Read(..) | Reload::Given(..)) => self.reload = waits,
        }
    }

    /// The config file, as chance left it: often much like before, sometimes cut off.
    fn read_disk(&mut self) -> Config {
        let mut config = self.operator.current.clone();
        if self.random.one_in(6) {
            config.apps.clear();
        }
        for host in HOSTS {
            let known = config.apps.iter().position(|app| app.host == host);
            match (known, self.random.below(5)) {
                (Some(index), 0) => drop(config.apps.remove(index)),
                (Some(index), 1) => config.apps[index] = self.template(host, true),
                (None, 0 | 1) => {
                    let app = self.template(host, true);
                    config.apps.push(app);
                }
                _ => {}
            }
        }
        let has_default = config.apps.iter().any(|app| app.host == "a.test");
        let default_app = (has_default && self.random.one_in(3)).then(|| "a.test".to_owned());
        config.server.default_app = default_app;
        config.server.drain_timeout =
            Duration::from_millis(500 * (1 + self.random.below(6) as u64));
        config.server.shutdown_delay = Duration::from_millis(100 * self.random.below(5) as u64);
        if self.random.one_in(3) {
            config.limits.headers += 1;
        }
        config
    }

    /// Control has answered.
    pub(super) fn on_answer(&mut self, number: usize, outcome: QuestionOutcome) {
        let question = self.questions[number].take();
        let question = question.unwrap_or_else(|| panic!("question {number} is answered twice"));
        if let QuestionOutcome::Refused(reason) = &outcome {
            self.note(|| format!("answer {number}: {question:?} is refused: {reason}"));
            self.check_refusal(&question, reason);
        } else {
            self.note(|| format!("answer {number}: {question:?} is done"));
            self.check_done(&question);
        }
        match outcome {
            QuestionOutcome::Begun(life) => self.oracle.on_begun(&life),
            QuestionOutcome::Draining(ticket) => self.oracle.on_ticket(ticket),
            QuestionOutcome::Report(report) if matches!(question, Question::ReportForReload) => {
                self.prepare_reload(&report);
            }
            QuestionOutcome::Report(report) => self.on_report_for_upgrade(*report),
            QuestionOutcome::Lives(lives) => self.start_new_process(&lives),
            QuestionOutcome::Reloaded(changed) => self.settle_reload(changed),
            QuestionOutcome::HandOverBegun(lives) => self.on_held(lives),
            QuestionOutcome::Refused(_) => match question {
                Question::Reload | Question::ReportForReload => self.reload = Reload::None,
                Question::ReportForUpgrade
                | Question::LivesForUpgrade
                | Question::BeginHandOver => self.upgrade = Upgrade::None,
                _ => {}
            },
            QuestionOutcome::UpstreamDraining
            | QuestionOutcome::UpstreamResumed
            | QuestionOutcome::Stopping => {}
        }
    }

    fn named(&self, host: &str) -> Option<Named> {
        self.oracle.names.get(host).copied()
    }

    /// Whether it may be refused for this reason.
    fn check_refusal(&self, question: &Question, reason: &ChangeError) {
        let state = |host: &str| self.named(host).map(|named| named.state);
        let is_right = match (question, reason) {
            (_, ChangeError::HandedOver(pid)) => *pid == PID && self.handed_over,
            (_, ChangeError::Ended) => self.is_over,
            (Question::Reload | Question::BeginHandOver, ChangeError::Stopping) => {
                self.oracle.stop.is_some()
            }
            (
                Question::Put(host, PutMode::Replace)
                | Question::Remove(host)
                | Question::Drain(host)
                | Question::Resume(host)
                | Question::DrainUpstream(host)
                | Question::ResumeUpstream(host),
                ChangeError::UnknownHost,
            ) => state(host).is_none(),
            (Question::Put(host, PutMode::Add), ChangeError::NameTaken(_)) => {
                matches!(state(host), Some(State::Serving | State::Paused))
            }
            (
                Question::Put(host, PutMode::Replace)
                | Question::Remove(host)
                | Question::Drain(host)
                | Question::Resume(host),
                ChangeError::BeingRemoved,
            ) => state(host) == Some(State::Removing),
            (Question::Resume(host), ChangeError::NotDrained) => {
                state(host) == Some(State::Serving)
            }
            (Question::ResumeUpstream(host), ChangeError::NotDrained)
            | (
                Question::DrainUpstream(host) | Question::ResumeUpstream(host),
                ChangeError::UnknownUpstream(_),
            ) => state(host).is_some(),
            _ => false,
        };
        assert!(is_right, "{question:?} is refused: {reason}");
    }

    /// Whether it may be done.
    fn check_done(&self, question: &Question) {
        let state = |host: &str| self.named(host).map(|named| named.state);
        let is_right = match question {
            Question::Put(_, PutMode::Either)
            | Question::Stop
            | Question::ReportForReload
            | Question::ReportForUpgrade
            | Question::LivesForUpgrade => true,
            // What it found before is in the names already.
            Question::Put(host, _) => state(host) == Some(State::Serving),
            Question::Remove(host) => matches!(state(host), Some(State::Removing) | None),
            Question::Drain(host) => state(host) == Some(State::Paused),
            Question::Resume(host) => state(host) == Some(State::Serving),
            Question::DrainUpstream(host) | Question::ResumeUpstream(host) => state(host).is_some(),
            Question::Reload | Question::BeginHandOver => self.oracle.stop.is_none(),
        };
        assert!(is_right, "{question:?} is done");
    }

    fn prepare_reload(&mut self, report: &Report) {
        let Reload::Read(config, options) = std::mem::take(&mut self.reload) else {
            panic!("a report for no reload");
        };
        let before = self.oracle.names.clone();
        let lives = self.registry.entries().len();
        let empties = |names: &std::collections::HashMap<String, Named>| {
            let stays = |host: &String| config.apps.iter().any(|app| app.host == *host);
            let is_leaving = |named: &Named| named.state == State::Removing;
            let mut known = names.iter().filter(|(_, named)| !is_leaving(named));
            known.clone().count() > 0 && !known.any(|(host, _)| stays(host))
        };
        let empties = empties(&before);
        match self.operator.prepare(report, *config, options) {
            Ok(prepared) => {
                assert!(options.allow_empty || !empties, "a config takes all apps away");
                self.reload = Reload::Prepared(Box::new(prepared));
            }
            Err(ReloadError::Emptied(_)) => assert!(empties && !options.allow_empty),
            Err(ReloadError::Change(ChangeError::Stopping)) => {
                assert!(self.oracle.stop.is_some() && !self.handed_over);
            }
            Err(ReloadError::Change(ChangeError::HandedOver(_))) => assert!(self.handed_over),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(self.registry.entries().len(), lives, "a reload that is prepared changes");
    }

    fn settle_reload(&mut self, changed: LivesChanged) {
        let Reload::Given(prepared, all) = std::mem::take(&mut self.reload) else {
            panic!("an answer to no reload");
        };
        for life in changed.begun.iter().flatten().flatten() {
            self.oracle.on_begun(life);
        }
        let done = self.operator.settle(*prepared, changed);
        self.oracle.default_app.clone_from(&self.operator.current.server.default_app);
        self.settings.push(all);
        // I8: what the reload does not name is as it was.
        for (host, before) in std::mem::take(&mut self.names_before) {
            let is_named = [&done.added, &done.changed, &done.removed];
            let is_named = is_named.iter().any(|hosts| hosts.contains(&host));
            // An app that was being removed, and is wanted again, begins with a 503.
            let fails = done.failed.iter().any(|(failed, _)| *failed == host);
            let is_named = is_named || fails && before.state == State::Removing;
            if !is_named {
                assert_eq!(self.named(&host), Some(before), "I8: {host} was changed: {done:?}");
            }
        }
    }

    /// Settings that all loops have taken are acknowledged.
    pub(super) fn check_acknowledged(&mut self) {
        for all in self.settings.drain(..) {
            assert_eq!(all.wait(Duration::ZERO), Obeyed::ByAll, "an acknowledgement is lost");
        }
    }
}
