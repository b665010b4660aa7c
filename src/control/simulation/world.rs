//! One run: control, what it reaches, and the chance that moves all of it.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::Receiver;

use super::{
    super::{
        Certificates, Control, Input, Listening, LoopReport, Notices, Operator, OperatorHost,
        Upgrader, Verdict, certificate_watch, listening::Sockets, tasks::Desk, upgrade::OnItsWay,
    },
    asked::{HOSTS, Question, Reload},
    board::{Board, Place},
    ledger::{Named, Said},
    new_process::{Upgrade, WayBack},
    oracle::{LATE_MAX, Oracle},
    random::Random,
    scripted_loop::{Asked, Deed, ScriptedLoop},
};
use crate::{
    config::Config,
    hosted::{Apps, Origin},
    message::{ControlEvent, ListenGroup, PublicSocket},
    registry::AppRegistry,
};

/// What can happen in one run at most.
const STEPS_MAX: usize = 90;

pub(super) struct World {
    pub(super) random: Random,
    pub(super) now: Instant,
    pub(super) registry: Arc<Apps>,
    pub(super) notices: Arc<Notices>,
    pub(super) control: Control,
    pub(super) inputs: Receiver<Input>,
    board: Board,
    pub(super) loops: Vec<ScriptedLoop>,
    pub(super) operator: Operator,
    pub(super) oracle: Oracle,
    pub(super) said: Arc<Mutex<Vec<Said>>>,
    pub(super) questions: Vec<Option<Question>>,
    /// Until when each is to be answered.
    pub(super) watches: Vec<Option<Instant>>,
    pub(super) reload: Reload,
    pub(super) upgrade: Upgrade,
    /// A run with many words of new processes: else few runs would come to the last ones.
    favours_upgrades: bool,
    pub(super) settings: Vec<crate::acknowledgement::Acknowledgements>,
    /// The names before the reload that control has taken in last.
    pub(super) names_before: HashMap<String, Named>,
    /// The addresses that the loops listen on.
    pub(super) sockets: Vec<SocketAddr>,
    /// What the operator listens on, held open.
    _public: Sockets,
    pub(super) handed_over: bool,
    pub(super) way_back: WayBack,
    pub(super) lost_successor: Option<Receiver<OnItsWay>>,
    pub(super) passed_stops: usize,
    pub(super) received_stops: usize,
    pub(super) are_handshakes_pending: Arc<AtomicBool>,
    pub(super) is_over: bool,
    pub(super) ended: Option<Verdict>,
    pub(super) trace: Vec<String>,
}

fn null() -> Arc<OwnedFd> {
    static NULL: OnceLock<Arc<OwnedFd>> = OnceLock::new();
    let open = || Arc::new(OwnedFd::from(File::open("/dev/null").expect("/dev/null")));
    Arc::clone(NULL.get_or_init(open))
}

fn sockets(address: SocketAddr, loops: usize) -> Sockets {
    let (group, options) = (Arc::new(ListenGroup::default()), Arc::default());
    let socket = |_| PublicSocket {
        address,
        socket: null(),
        is_kept: false,
        group: Arc::clone(&group),
        options: Arc::clone(&options),
    };
    (0..loops).map(socket).collect()
}

/// An operator without a thread, whose host binds what it is asked for.
fn operator(
    registry: &Arc<Apps>,
    notices: &Arc<Notices>,
    control: &Control,
    config: Config,
    public: &Sockets,
    desk: Arc<Desk>,
) -> Operator {
    let (loops, listen) = (registry.loops(), config.server.listen[0]);
    Operator {
        registry: Arc::clone(registry),
        control: control.sender().clone(),
        notices: Arc::clone(notices),
        reloads: Arc::default(),
        deploys: Arc::default(),
        service: Arc::default(),
        source: None,
        text: None,
        listening: vec![Listening::new(&listen, public)],
        current: config,
        logging: None,
        access: None,
        closing: Vec::new(),
        host: OperatorHost {
            bind: Box::new(move |address, _| Ok(sockets(address, loops))),
            try_bind: Box::new(|_| Err(io::ErrorKind::Unsupported.into())),
            renew_admin: Box::new(|| Ok(None)),
            set_connections: Box::new(|_| ()),
        },
        upgrader: Upgrader::new(
            true,
            (None, None),
            None,
            control.relay().clone(),
            Arc::new(|| None),
        ),
        desk,
        certificates: Certificates::new(SystemTime::UNIX_EPOCH).expect("random bytes"),
        watch: certificate_watch().0,
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (now, loops) = (Instant::now(), 1 + random.below(3));
        let favours_upgrades = random.one_in(3);
        let registry = Arc::new(AppRegistry::new(loops, None));
        let notices = Arc::<Notices>::default();
        notices.hold();
        let mut config = Config::parse("", "sim.toml".as_ref(), "/".as_ref()).expect("a config");
        config.server.drain_timeout = Duration::from_millis(500 * (1 + random.below(6) as u64));
        let desk = Arc::default();
        let (mut control, inputs) = Control::new(
            Arc::clone(&registry),
            Arc::clone(&notices),
            now,
            &config.server,
            Arc::clone(&desk),
        );
        let are_handshakes_pending = Arc::new(AtomicBool::new(false));
        let pending = Arc::clone(&are_handshakes_pending);
        control.listeners.handshakes = Box::new(move |_| pending.load(Ordering::Relaxed));
        let address = config.server.listen[0].address;
        let public = sockets(address, loops);
        let operator = operator(&registry, &notices, &control, config, &public, desk);
        let board = Board::new(loops);
        Self {
            random,
            now,
            loops: (0..loops).map(|index| ScriptedLoop::new(index, &registry, &board)).collect(),
            registry,
            notices,
            control,
            inputs,
            board,
            operator,
            oracle: Oracle::new(now, loops),
            said: Arc::default(),
            questions: Vec::new(),
            watches: Vec::new(),
            reload: Reload::None,
            upgrade: Upgrade::None,
            favours_upgrades,
            settings: Vec::new(),
            names_before: HashMap::new(),
            sockets: vec![address],
            _public: public,
            handed_over: false,
            way_back: WayBack::default(),
            lost_successor: None,
            passed_stops: 0,
            received_stops: 0,
            are_handshakes_pending,
            is_over: false,
            ended: None,
            trace: Vec::new(),
        }
    }

    pub(super) fn run(&mut self) {
        for host in HOSTS {
            if self.random.one_in(2) {
                let app = self.new_app(host, Origin::Config);
                self.control.load_app(app);
            }
        }
        self.control.begin(Box::new(self.board.clone()), self.sockets.clone(), self.now);
        self.listen();
        let steps = 10 + self.random.below(STEPS_MAX);
        for _ in 0..steps {
            if self.ended.is_some() {
                break;
            }
            self.step();
            self.listen();
        }
        self.finish();
    }

    fn step(&mut self) {
        if self.favours_upgrades && self.random.one_in(4) {
            return self.go_on_with_upgrade();
        }
        match self.random.below(100) {
            0..22 => self.request(),
            22..34 => self.end_exchange(),
            34..52 => self.loop_obeys(),
            52..70 => self.control_takes_in(),
            70..80 => self.pass_time(),
            80..92 => self.ask_something(),
            92..95 => self.disturb_a_loop(),
            95..97 => self.go_on_with_upgrade(),
            97 if self.random.one_in(2) => self.ask_to_stop(),
            97 => {
                let pending = self.random.one_in(2);
                self.are_handshakes_pending.store(pending, Ordering::Relaxed);
            }
            _ => self.settle(),
        }
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:6} ms: {}", self.oracle.millis(self.now), what());
        self.trace.push(line);
    }

    pub(super) fn send(&self, input: Input) {
        self.control.sender().send(input).expect("control keeps its inputs");
    }

    pub(super) fn sockets_of(&self, address: SocketAddr) -> Sockets {
        sockets(address, self.loops.len())
    }

    fn request(&mut self) {
        let hosts = ["a.test", "b.test", "c.test", "x.w.test", "unknown.test"];
        let host = *self.random.pick(&hosts);
        let index = self.random.below(self.loops.len());
        // A process that has let another one serve has connections still.
        if self.loops[index].is_reached() {
            let asked = self.loops[index].ask(host);
            let text = match &asked {
                Asked::Admitted { life, .. } => format!("admitted by {life}"),
                Asked::Draining(life) => format!("refused by {life}"),
                Asked::Unknown => "unknown".to_owned(),
            };
            self.note(|| format!("loop {index}: {host} is {text}"));
            self.oracle.on_asked(host, &asked);
        }
    }

    pub(super) fn end_exchange(&mut self) {
        let index = self.random.below(self.loops.len());
        let own = &mut self.loops[index];
        if own.is_awake() && !own.flights.is_empty() {
            let flight = own.flights.swap_remove(self.random.below(own.flights.len()));
            self.oracle.on_ended(flight.life(), flight.upstream());
            let life = flight.life();
            drop(flight);
            self.note(|| format!("loop {index}: an exchange of {life} ends"));
        }
    }

    fn loop_obeys(&mut self) {
        let index = self.random.below(self.loops.len());
        for _ in 0..=self.random.below(3) {
            self.obey(index);
        }
    }

    fn obey(&mut self, index: usize) {
        if !self.loops[index].is_awake() {
            return;
        }
        let mut deeds = Vec::new();
        let events = self.loops[index].obey(&mut deeds);
        self.take_deeds(index, deeds);
        for event in events {
            self.report(index, event);
        }
    }

    fn report(&mut self, index: usize, event: ControlEvent) {
        self.note(|| format!("loop {index} reports {event:?}"));
        self.send(Input::Loop(LoopReport { index, event }));
    }

    fn take_deeds(&mut self, index: usize, deeds: Vec<Deed>) {
        for deed in deeds {
            if let Deed::Cut { life, .. } = &deed {
                let life = *life;
                self.note(|| format!("an exchange of {life} is cut"));
            }
            let are_all_gated = self.loops.iter().all(|own| own.is_gated || own.has_ended());
            self.oracle.on_deed(index, deed, self.now, are_all_gated);
        }
    }

    /// Control's thread goes round once.
    fn control_takes_in(&mut self) {
        for _ in 0..=self.random.below(3) {
            self.take_in();
        }
    }

    fn take_in(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if self.inputs.is_empty() {
            self.control.refresh_routes();
        }
        let Ok(input) = self.inputs.try_recv() else { return };
        match &input {
            Input::Loop(LoopReport { index, event }) => self.oracle.on_report(*index, event),
            Input::Reload(_) => self.names_before.clone_from(&self.oracle.names),
            _ => {}
        }
        let expected = self.before_input(&input);
        self.ended = self.control.on_input(input, self.now);
        self.listen();
        self.check_expected(&expected);
        if self.ended.is_none() {
            self.ended = self.control.on_time_if_due(self.now);
            self.listen();
        }
    }

    /// Takes in what control has said, and checks it.
    pub(super) fn listen(&mut self) {
        let mut said = std::mem::take(&mut *self.said.lock().expect("no panic before"));
        let held = self.notices.take_held();
        said.extend(held.into_iter().map(|(name, fields)| Said::Notice(name, fields)));
        for said in said {
            match said {
                Said::Notice(name, fields) => {
                    self.note(|| format!("notice {name} {fields}"));
                    self.oracle.on_notice(name, &fields, self.now);
                    match name {
                        "upgrade_reverted" => self.handed_over = false,
                        "stop_passed_on" => self.passed_stops += 1,
                        "server_stop" => self.is_over = true,
                        _ => {}
                    }
                }
                Said::Answer(number, outcome) => self.on_answer(number, outcome),
                Said::Shown(number, view) => {
                    let until = self.watches[number].take();
                    let until = until.unwrap_or_else(|| panic!("watch {number} is shown twice"));
                    let is_over = view.is_none_or(|view| view.verdict.is_some());
                    assert!(is_over || until <= self.now || self.is_over, "it is shown too early");
                }
            }
        }
        let told_to_cut = |place: &mut Place| std::mem::take(&mut place.is_told_to_cut);
        if self.board.places().iter_mut().any(told_to_cut) {
            self.oracle.on_cut_all(self.now);
        }
        let is_late = |until: &&Instant| **until + LATE_MAX < self.now;
        let late = self.watches.iter().flatten().find(is_late);
        let is_unread = !self.inputs.is_empty();
        assert!(late.is_none() || is_unread, "a watch is not shown in time");
        self.oracle.check(&self.registry, self.now);
        self.check_upgrade_in_time();
    }

    /// Time goes to what control waits for, or not so far, some times over.
    fn pass_time(&mut self) {
        for _ in 0..=self.random.below(5) {
            let far = self.random.one_in(3);
            if !far {
                let millis = self.random.below(5) as u64;
                self.pass_until(self.now + Duration::from_millis(millis));
                continue;
            }
            // Control's thread and the loops do in no time what they can do.
            if self.random.one_in(2) {
                self.do_all_that_is_there();
            }
            while !self.inputs.is_empty() && self.ended.is_none() {
                self.take_in();
            }
            let late = Duration::from_millis(self.random.below(3) as u64);
            self.pass_until(self.control.due() + late);
        }
    }

    pub(super) fn pass_until(&mut self, until: Instant) {
        let due = self.upgrade_due().unwrap_or(until);
        // Not behind a deadline for more than control may be late.
        let latest = (self.control.due() + LATE_MAX / 2).max(self.now);
        self.now = until.min(due.max(self.now)).min(latest).max(self.now);
        if self.upgrade_due().is_some_and(|due| due <= self.now) {
            self.go_on_with_upgrade();
        }
        if self.ended.is_none() && self.control.due() <= self.now {
            self.ended = self.control.on_time(self.now);
        }
        self.listen();
    }

    /// Loops that are awake obey all their commands, and control gets their reports.
    pub(super) fn do_all_that_is_there(&mut self) {
        for _ in 0..200 {
            for index in 0..self.loops.len() {
                self.obey(index);
            }
            while !self.inputs.is_empty() && self.ended.is_none() {
                self.take_in();
            }
            if self.ended.is_some() {
                return;
            }
            self.control.refresh_routes();
            let places = self.board.places();
            let is_done = |place: &Place| {
                place.commands.is_empty() || place.turn.is_some() || place.has_ended
            };
            if places.iter().all(is_done) && self.inputs.is_empty() {
                return;
            }
        }
        panic!("control and the loops never come to rest");
    }

    /// All is done that can be; then what is gone is forgotten everywhere.
    fn settle(&mut self) {
        self.do_all_that_is_there();
        self.pass_until(self.control.due());
        let is_idle = matches!(self.reload, Reload::None) && self.ended.is_none();
        let are_all_awake = self.loops.iter().all(ScriptedLoop::is_awake);
        if are_all_awake && self.ended.is_none() {
            self.oracle.check_prompt();
        }
        let is_quiet =
            is_idle && are_all_awake && self.control.lives.drains.running().next().is_none();
        if is_quiet && !self.is_upgrade_under_way() {
            self.oracle.check_forgotten(&self.registry);
            self.check_acknowledged();
            self.check_let_go();
        }
    }

    fn disturb_a_loop(&mut self) {
        let index = self.random.below(self.loops.len());
        let now_ns = self.now.duration_since(self.control.cx.epoch).as_nanos() as u64;
        let what = self.random.below(10);
        let own = &mut self.loops[index];
        if own.is_stuck() {
            own.recover();
            return self.note(|| format!("loop {index} goes on"));
        }
        if !own.is_awake() {
            return;
        }
        match what {
            0 => {
                let mut deeds = Vec::new();
                let died = own.die(&mut deeds);
                self.take_deeds(index, deeds);
                let address = self.sockets[0];
                self.send(Input::Orphaned(vec![self.sockets_of(address).remove(0)]));
                self.report(index, died);
            }
            1 if !own.has_failed => {
                own.has_failed = true;
                self.report(index, ControlEvent::Failed { error: "panic: a bug".to_owned() });
            }
            _ => {
                own.stick(now_ns);
                self.note(|| format!("loop {index} is stuck"));
            }
        }
    }
}
