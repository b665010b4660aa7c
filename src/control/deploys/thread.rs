//! The thread that runs deploys: one poll for all of their checks, so that none waits for another.
//!
//! Whatever ends a deploy from outside (see [`super`]) is looked for every [`LOOK_EVERY`] while
//! there are deploys.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use mio::{Events, Poll, Token, Waker};

use super::{
    super::{
        change_error::SwitchError,
        changes::{Base, Begun},
        notices::notice,
        tasks::{Task, Tell},
        upstreams::{Probe, ProbeResult, Question, buffers},
    },
    board::{Deploy, Loaded},
    ending::{Client, Ending, Outcome},
    parts::DeployParts,
    plan::{self, Stage},
};
use crate::{
    app::{Endpoint, Upstreams},
    config::HostPolicy,
    duration::{milliseconds, nanoseconds},
    io::{BufferPool, Ready},
    logging::event,
};

/// How long one check may take.
pub(super) const CHECK_MAX: Duration = Duration::from_secs(5);

/// How often is looked whether something else ends a deploy.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A way to the thread.
#[derive(Clone)]
pub(super) struct Handle {
    messages: Sender<Message>,
    waker: Arc<Waker>,
    /// The thread has the other one.
    alive: Weak<()>,
}

enum Message {
    Begin(Box<Loaded>, Option<usize>, Client),
    /// What the operator says of the switch of a deploy.
    Switched(u64, Result<Begun, SwitchError>),
    /// There will be no more.
    End,
}

/// The state of the thread.
pub(super) struct Thread {
    poll: Poll,
    buffers: BufferPool,
    parts: DeployParts,
    /// To itself.
    handle: Handle,
    messages: Receiver<Message>,
    running: BTreeMap<u64, Running>,
    probes: HashMap<Token, RunningProbe>,
    next_number: u64,
    /// Held while the thread lives.
    _alive: Arc<()>,
}

/// A deploy that is under way.
struct Running {
    deploy: Arc<Deploy>,
    upstreams: Option<Arc<Upstreams>>,
    /// Of each upstream, the address that checks begin with.
    first_addresses: Vec<usize>,
    client: Client,
    /// The operator is asked for the switch.
    is_asked: bool,
}

struct RunningProbe {
    deploy: u64,
    index: usize,
    began_ns: u64,
    deadline_ns: u64,
    probe: Probe,
}

const WAKER: Token = Token(0);

impl Handle {
    /// Whether the thread is there; it can only have failed.
    pub(super) fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }

    pub(super) fn begin(&self, loaded: Loaded, quorum: Option<usize>, client: Client) {
        self.send(Message::Begin(Box::new(loaded), quorum, client));
    }

    pub(super) fn end(&self) {
        self.send(Message::End);
    }

    fn send(&self, message: Message) {
        // A thread that is gone has failed, which is in the log; its clients get a 500.
        drop(self.messages.send(message));
        drop(self.waker.wake());
    }
}

impl Thread {
    /// Begins the thread.
    pub(super) fn spawn(parts: DeployParts) -> io::Result<Handle> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (sender, messages) = crossbeam_channel::unbounded();
        let alive = Arc::new(());
        let handle = Handle { messages: sender, waker, alive: Arc::downgrade(&alive) };
        let own = Self {
            poll,
            buffers: buffers(),
            parts,
            handle: handle.clone(),
            messages,
            running: BTreeMap::new(),
            probes: HashMap::new(),
            next_number: 1,
            _alive: alive,
        };
        thread::Builder::new().name("deploys".into()).spawn(move || own.run())?;
        Ok(handle)
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    event!(Error, "deploys_failed", error:% = error);
                    return self.abort_all("the server cannot wait for its upstreams");
                }
            }
            for event in events.iter().filter(|event| event.token() != WAKER) {
                self.advance(event.token(), Ready::from(event));
            }
            while let Ok(message) = self.messages.try_recv() {
                match message {
                    Message::Begin(loaded, quorum, client) => self.begin(*loaded, quorum, client),
                    Message::Switched(number, done) => self.on_switched(number, done),
                    Message::End => return self.abort_all("the server has ended"),
                }
            }
            self.time_out_probes();
            let numbers: Vec<_> = self.running.keys().copied().collect();
            numbers.into_iter().for_each(|number| self.step(number));
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.running.is_empty() {
            return None;
        }
        let checks = self.running.values().filter_map(|own| own.deploy.plan(|plan| plan.due_ns()));
        let probes = self.probes.values().map(|running| running.deadline_ns);
        let due = checks.chain(probes).min();
        let until = due.map(|due| Duration::from_nanos(due.saturating_sub(self.now_ns())));
        Some(until.unwrap_or(LOOK_EVERY).min(LOOK_EVERY))
    }

    fn begin(&mut self, loaded: Loaded, quorum: Option<usize>, client: Client) {
        let upstreams = loaded.app.app.app.upstreams().map(Arc::clone);
        let count = upstreams.as_ref().map_or(0, |upstreams| upstreams.endpoints().len());
        let host = loaded.config.host.clone();
        let refuse = |client: Client, ending| {
            (client.respond)(client.later, Outcome { host: host.clone(), progress: None, ending });
        };
        if quorum.is_some_and(|quorum| quorum > count) {
            return refuse(client, Ending::TooMany(count));
        }
        let deploy = Arc::new(Deploy::new(loaded, quorum, self.parts.epoch));
        if let Err(other) = self.parts.board.add(&deploy) {
            return refuse(client, Ending::UnderWay(other.began()));
        }
        let (needed, upstream_count) = (deploy.plan(|plan| plan.needed()) as u64, count as u64);
        notice!(
            self.parts.notices,
            Info,
            "deploy_start",
            host = &*host,
            upstreams = upstream_count,
            needed = needed,
        );
        let first_addresses = vec![0; count];
        let running = Running { deploy, upstreams, first_addresses, client, is_asked: false };
        let number = self.next_number();
        self.running.insert(number, running);
    }

    /// Does for a deploy what is to be done now.
    fn step(&mut self, number: u64) {
        self.look_for_end(number);
        self.begin_checks(number);
        let now_ns = self.now_ns();
        let Some(running) = self.running.get_mut(&number) else { return };
        let stage = running.deploy.plan(|plan| {
            plan.on_time(now_ns);
            plan.stage()
        });
        match stage {
            Stage::Checking | Stage::Switched => {}
            Stage::Ready if running.is_asked => {}
            Stage::Ready => {
                running.is_asked = true;
                let deploy = Arc::clone(&running.deploy);
                let handle = self.handle.clone();
                let tell = move |done| handle.send(Message::Switched(number, done));
                self.parts.tasks.send(Task::Switch(deploy, Tell::new(tell)));
            }
            Stage::NotReady => self.end(number, Ending::NotReady),
            Stage::Aborted => {
                let reason = running.deploy.why_aborted().unwrap_or_default();
                self.end(number, Ending::Aborted(reason));
            }
        }
    }

    /// Aborts a deploy if something has happened that ends it.
    fn look_for_end(&self, number: u64) {
        let Some(Running { deploy, client, .. }) = self.running.get(&number) else { return };
        let life = self.parts.registry.find(deploy.host());
        let life = life.filter(|life| life.host() == deploy.host());
        if !client.later.is_awaited() {
            deploy.abort("the client that asked for it has left");
        } else if self.parts.stopping.load(Relaxed) {
            deploy.abort("the server is stopping");
        } else if Base::of(life.as_deref()) != deploy.base {
            deploy.abort("the app was changed meanwhile");
        }
    }

    fn begin_checks(&mut self, number: u64) {
        let now_ns = self.now_ns();
        let Some(running) = self.running.get(&number) else { return };
        let Some(upstreams) = running.upstreams.clone() else { return };
        let deploy = Arc::clone(&running.deploy);
        let ready = &upstreams.config().ready;
        for (index, endpoint) in upstreams.endpoints().iter().enumerate() {
            if !deploy.plan(|plan| plan.is_open() && plan.begin_if_due(index, now_ns)) {
                continue;
            }
            let first = self.running.get(&number).map_or(0, |own| own.first_addresses[index]);
            let token = Token(self.next_number() as usize);
            let host = asked_host(deploy.host(), &upstreams.config().host, endpoint);
            let question = Question { path: ready.path.as_deref(), host, agent: "tidegate-deploy" };
            let place = (token, self.poll.registry());
            match Probe::begin(endpoint, first, question, place, &mut self.buffers) {
                Ok(probe) => {
                    let deadline_ns = now_ns.saturating_add(nanoseconds(CHECK_MAX));
                    let (began_ns, deploy) = (now_ns, number);
                    let running = RunningProbe { deploy, index, began_ns, deadline_ns, probe };
                    self.probes.insert(token, running);
                    // A socket that is open at once may have no further event.
                    self.advance(token, Ready::default());
                }
                Err(fault) => {
                    let result = plan::CheckResult {
                        fault: Some(fault),
                        status: None,
                        took_ns: 0,
                        first: String::new(),
                    };
                    deploy.plan(|plan| plan.on_result(index, result, now_ns));
                }
            }
        }
    }

    fn advance(&mut self, token: Token, ready: Ready) {
        let Self { poll, buffers, probes, .. } = self;
        let Some(running) = probes.get_mut(&token) else { return };
        if let Some(result) = running.probe.advance(ready, buffers, poll.registry()) {
            self.end_probe(token, result);
        }
    }

    fn time_out_probes(&mut self) {
        let now_ns = self.now_ns();
        let is_late = |(_, running): &(&Token, &RunningProbe)| running.deadline_ns <= now_ns;
        let late: Vec<_> = self.probes.iter().filter(is_late).map(|(token, _)| *token).collect();
        for token in late {
            let fault = format!("no answer within {} s", CHECK_MAX.as_secs());
            let outcome = self.probes[&token].probe.outcome(&fault);
            self.end_probe(token, outcome);
        }
    }

    fn end_probe(&mut self, token: Token, result: ProbeResult) {
        let now_ns = self.now_ns();
        let Some(RunningProbe { deploy, index, began_ns, probe, .. }) = self.probes.remove(&token)
        else {
            return;
        };
        let Some(running) = self.running.get_mut(&deploy) else { return };
        let Some(upstreams) = &running.upstreams else { return };
        if result.is_err() {
            running.first_addresses[index] += 1;
        }
        let ready = &upstreams.config().ready;
        let status = result.as_ref().ok().copied().filter(|_| ready.path.is_some());
        let fault = match (result, status) {
            (Err(fault), _) => Some(fault),
            (Ok(_), Some(status)) if !ready.status.contains(&status) => {
                let to = probe.seen.location.as_deref().map(shown);
                let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
                Some(format!("status {status}{to}"))
            }
            (Ok(_), _) => None,
        };
        let took_ns = now_ns.saturating_sub(began_ns);
        let result = plan::CheckResult { fault, status, took_ns, first: shown(&probe.seen.first) };
        running.deploy.plan(|plan| plan.on_result(index, result, now_ns));
    }

    fn on_switched(&mut self, number: u64, done: Result<Begun, SwitchError>) {
        let Some(running) = self.running.get_mut(&number) else { return };
        match done {
            Ok(begun) => {
                let since = running.deploy.plan(|plan| plan.switched_after_ns());
                self.end(number, Ending::Switched(begun, since.map(Duration::from_nanos)));
            }
            // Its checks go on.
            Err(SwitchError::NotReady) => running.is_asked = false,
            Err(SwitchError::Put(error)) => {
                // The operator may not have begun.
                running.deploy.abort(String::new());
                self.end(number, Ending::Failed(error));
            }
        }
    }

    /// A deploy is over: tells its client, and the log.
    fn end(&mut self, number: u64, ending: Ending) {
        let Some(Running { deploy, client, .. }) = self.running.remove(&number) else { return };
        self.probes.retain(|_, probe| probe.deploy != number);
        self.parts.board.remove(deploy.host());
        let progress = deploy.progress();
        let elapsed_ms = milliseconds(Duration::from_nanos(progress.elapsed_ns));
        let (notices, host) = (&self.parts.notices, deploy.host());
        match &ending {
            Ending::Switched(begun, _) => notice!(
                notices,
                Info,
                "deploy_switched",
                host = host,
                id = begun.life.id().as_u64(),
                elapsed_ms = elapsed_ms,
            ),
            failed => {
                let reason = failed.reason(&progress);
                notice!(
                    notices,
                    Error,
                    "deploy_failed",
                    host = host,
                    reason = &*reason,
                    elapsed_ms = elapsed_ms
                );
            }
        }
        let outcome = Outcome { host: host.to_owned(), progress: Some(progress), ending };
        (client.respond)(client.later, outcome);
    }

    fn abort_all(&mut self, reason: &str) {
        let numbers: Vec<_> = self.running.keys().copied().collect();
        for number in numbers {
            self.running[&number].deploy.abort(reason);
            self.end(number, Ending::Aborted(reason.to_owned()));
        }
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.parts.epoch.elapsed())
    }

    fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

impl Drop for Thread {
    /// If it has panicked, no deploy stays on the board.
    fn drop(&mut self) {
        for running in self.running.values() {
            running.deploy.abort("a bug has ended it");
            self.parts.board.remove(running.deploy.host());
        }
    }
}

/// What a check asks for, so that the upstream answers as it would answer a client: the app's own
/// host, unless requests get another one.
fn asked_host<'a>(host: &'a str, policy: &'a HostPolicy, endpoint: &'a Endpoint) -> &'a str {
    match policy {
        HostPolicy::Fixed(host) => host,
        HostPolicy::Keep if !host.starts_with("*.") => host,
        HostPolicy::Keep | HostPolicy::Upstream => endpoint.authority(),
    }
}

/// Bytes of an upstream as one line of text.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}
