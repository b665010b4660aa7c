//! Seeded runs of the HTTP/1 server protocol against a model of the generated requests.
//!
//! A failing run prints its seed; `TIDEGATE_SEED=…` runs that one alone, and `TIDEGATE_RUNS=…`
//! changes how many there are.

use std::{env, thread};

use tidegate::http::{FieldTable, Limits, Response, ServerEvent, ServerPhase, h1};

use crate::exchange_support::{
    DATE, Item, Moment, Random, Step, Talk, opening, pieces,
    plan::{self, Plan},
};

/// The generator stays within these limits.
const LIMITS: Limits = Limits { head_bytes: 1024, fields: 16, content_bytes: 4096 };

const BASE_SEED: u64 = 0x7469_6465_6761_7465;

#[test]
fn valid_requests_come_out_once_in_order_and_whole() {
    for_each_seed(1000, |random| Simulation::new(random).run());
}

#[test]
fn broken_requests_end_alike_in_every_split() {
    for_each_seed(600, |random| {
        let plans = plan::requests(random, 64);
        let mut wire = plan::wire(&plans);
        let broken_at = break_somewhere(&mut wire, random);
        let limits = limits(random);
        check_splits(&wire, limits, random);
        // Requests that were complete before the break are read as usual.
        let whole = plan::whole_before(&plans, broken_at);
        let before = run(Moment::AfterContent, limits, &wire[..whole], &[]);
        let after = run(Moment::AfterContent, limits, &wire, &[]);
        assert!(after.items.starts_with(&before.items), "{}\n{}", before.trace(), after.trace());
    });
}

/// Beginnings, each with words that follow in random order.
const BABBLE: &[(&str, &str)] = &[
    ("", HEAD_WORDS),
    ("GET / HTTP/1.1\r\nHost: a\r\n", HEAD_WORDS),
    ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK_WORDS),
    ("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", CHUNK_WORDS),
];

const HEAD_WORDS: &str = "GET |HEAD /x |POST / |OPTIONS * |http://a/|HTTP/1.1\r\n|HTTP/1.0\r\n\
    |HTTP/1.3\r\n|GET / HTTP/1.1\r\nHost: a\r\n|Host: a\r\n|Content-Length: |A: b\r\n\
    |Content-Length: 3\r\n|Transfer-Encoding: chunked\r\n|Expect: 100-continue\r\n\
    |Connection: keep-alive\r\n|\r\n|\r\n|\r\n\r\n|\n|\r| |:|0|3\r\n|abc|\0";

const CHUNK_WORDS: &str = "3\r\n|abc|abc\r\n|0|0\r\n|fff|;|;a|;a=\"b\"|\r\n|\r\n|\r\n\r\n|\n|\r\
    |A: b\r\n|A:| |\0|GET / HTTP/1.0\r\n\r\n";

#[test]
fn no_bytes_do_harm() {
    for_each_seed(2000, |random| {
        let (beginning, words) = random.pick(BABBLE);
        let words: Vec<&str> = words.split('|').collect();
        let mut wire = beginning.as_bytes().to_vec();
        for _ in 0..random.below(16) {
            match random.below(12) {
                0 => wire.push(random.next() as u8),
                _ => wire.extend_from_slice(random.pick(&words).as_bytes()),
            }
        }
        let limits = limits(random);
        check_splits(&wire, limits, random);
    });
}

/// A connection's protocol, its peer, its app and its model, which act in random order.
struct Simulation<'r> {
    random: &'r mut Random,
    plans: Vec<Plan>,
    /// Bytes that the peer has not sent yet, and bytes that were not read yet.
    unsent: Vec<u8>,
    unread: Vec<u8>,
    exchange: h1::Server,
    model: Model,
}

/// The state of the protocol, derived from its input and output.
#[derive(Debug)]
struct Model {
    reading: Reading,
    owed: Option<u16>,
    keep: bool,
    /// Whether the client waits for a 100.
    holds_back: bool,
    /// The number of requests that were read, and that were answered.
    requests: usize,
    answered: usize,
    content: Vec<u8>,
    /// Whether the last event asked for bytes, and none came since.
    starved: bool,
    /// Whether the run was ended early: then not all requests have to be read.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Head,
    Content,
    Done,
    Closed,
}

impl<'r> Simulation<'r> {
    fn new(random: &'r mut Random) -> Self {
        let plans = plan::requests(random, 4096);
        let unsent = plan::wire(&plans);
        let model = Model {
            reading: Reading::Head,
            owed: None,
            keep: true,
            holds_back: false,
            requests: 0,
            answered: 0,
            content: Vec::new(),
            starved: false,
            ended: false,
        };
        Self { random, plans, unsent, unread: Vec::new(), exchange: h1::Server::new(), model }
    }

    fn run(mut self) {
        let ends_at = if self.random.one_in(3) { self.random.below(60) } else { usize::MAX };
        let mut turns = 0;
        while !self.is_over() {
            if turns == ends_at {
                self.end_early();
            }
            match self.random.below(8) {
                0 => self.send(),
                1 if self.model.owed.is_some() => self.respond(),
                2 if self.random.one_in(40) => self.close_after(),
                3 if self.model.owed.is_some() && self.random.one_in(2) => self.send_continue(),
                _ => self.next_event(),
            }
            self.check_phase();
            turns += 1;
            assert!(turns < 100_000, "no end: {:?}", self.model);
        }
        self.check_outcome();
        self.exchange.receive_eof();
        assert_eq!(self.exchange.phase(), ServerPhase::Closed);
        assert!(!self.exchange.wants_input());
    }

    fn is_over(&self) -> bool {
        let model = &self.model;
        let nothing_left = self.unsent.is_empty() && model.starved;
        model.owed.is_none() && (nothing_left || model.reading == Reading::Closed)
    }

    fn send(&mut self) {
        let most = self.random.pick(&[1, 3, 40, 10_000]);
        let len = (self.random.below(most) + 1).min(self.unsent.len());
        self.unread.extend(self.unsent.drain(..len));
        self.model.starved &= len == 0;
    }

    fn next_event(&mut self) {
        let Self { exchange, model, plans, unread, .. } = self;
        let mut fields = FieldTable::new();
        let len = unread.len();
        let (used, event) = exchange.next_event(unread, &mut fields, &LIMITS);
        assert!(used <= len);
        match event {
            ServerEvent::NeedMore => model.starved = true,
            ServerEvent::Closed => assert_eq!(model.reading, Reading::Closed),
            ServerEvent::Refused(_, refused) | ServerEvent::Request(_, _, Some(refused)) => {
                panic!("{refused:?} after {model:?}");
            }
            ServerEvent::Request(_, head, None) => {
                assert_eq!((model.reading, model.owed), (Reading::Head, None));
                let plan = &plans[model.requests];
                plan.check_head(&head);
                model.requests += 1;
                model.owed = Some(plan.status);
                model.keep &= plan.keeps;
                model.holds_back = plan.holds_back;
                model.content.clear();
                let reads = plan.has_content();
                model.reading = if reads { Reading::Content } else { Reading::Done };
            }
            ServerEvent::Content(_, content) => {
                assert_eq!(model.reading, Reading::Content);
                assert!(!content.is_empty());
                model.holds_back = false;
                model.content.extend_from_slice(content);
                assert!(plans[model.requests - 1].content.starts_with(&model.content));
            }
            ServerEvent::ContentEnd(_) => {
                assert_eq!(model.reading, Reading::Content);
                assert_eq!(model.content, plans[model.requests - 1].content);
                model.holds_back = false;
                model.reading = Reading::Done;
                model.settle();
            }
        }
        unread.drain(..used);
        self.model.starved &= used == 0;
    }

    fn respond(&mut self) {
        let status = self.model.owed.take().expect("a status");
        self.model.keep &= !self.model.holds_back;
        let keep = self.model.keep;
        if !keep && self.model.reading != Reading::Done {
            self.model.reading = Reading::Closed;
        }
        let number = self.model.answered.to_string();
        self.model.answered += 1;
        let response = Response::new(status).with_field("Number", &number);
        let length = self.random.below(3) as u64;
        let mut out = b"before".to_vec();
        let has_content = self.exchange.respond(&response, length, &opening(), &mut out);
        self.model.settle();
        self.model.starved = false;

        let plan = self.model.requests.checked_sub(1).map(|last| &self.plans[last]);
        let text = String::from_utf8(out).expect("an answer in ASCII");
        let (head, end) = text.split_at(text.len() - 4);
        assert_eq!(end, "\r\n\r\n");
        assert!(head.starts_with(&format!("beforeHTTP/1.1 {status} ")), "{head}");
        assert!(head.contains(&format!("\r\nDate: {DATE}\r\nNumber: {number}")), "{head}");
        let allows_content = !matches!(status, 204 | 304);
        let counts = head.contains(&format!("\r\nContent-Length: {length}"));
        assert_eq!(counts, allows_content, "{head}");
        assert_eq!(head.contains("\r\nConnection: close"), !keep, "{head}");
        if let Some(plan) = plan.filter(|_| status < 400) {
            assert_eq!(has_content, allows_content && length > 0 && !plan.is_head(), "{head}");
            let says_keep = keep && plan.asks_keep_alive;
            assert_eq!(head.contains("\r\nConnection: keep-alive"), says_keep, "{head}");
        }
    }

    fn send_continue(&mut self) {
        let mut out = Vec::new();
        self.exchange.send_continue(&mut out);
        let said = if self.model.holds_back { "HTTP/1.1 100 Continue\r\n\r\n" } else { "" };
        assert_eq!(out.escape_ascii().to_string(), said.as_bytes().escape_ascii().to_string());
        self.model.holds_back = false;
    }

    fn close_after(&mut self) {
        self.exchange.close_after();
        self.model.keep = false;
        self.model.ended = true;
    }

    /// Ends the run early: the peer closes or is too slow, or the server stops. Nothing more is
    /// sent.
    fn end_early(&mut self) {
        self.model.ended = true;
        self.unsent.clear();
        let model = &mut self.model;
        let owed = model.owed.is_some();
        let event = match self.random.below(3) {
            0 => {
                self.exchange.close_now();
                if model.reading == Reading::Head {
                    model.reading = Reading::Closed;
                }
                return;
            }
            1 => self.exchange.receive_eof(),
            _ => self.exchange.time_out(),
        };
        match (event, model.reading) {
            (ServerEvent::Refused(_, refused), Reading::Content) if owed => {
                model.owed = Some(refused.status);
                model.reading = Reading::Closed;
            }
            (ServerEvent::Refused(_, refused), Reading::Head | Reading::Done) => {
                assert_eq!(refused.status, 408);
                model.owed = Some(408);
                model.reading = Reading::Closed;
            }
            (ServerEvent::Closed, Reading::Content) => {
                assert!(!owed, "a request was lost: {model:?}");
                model.reading = Reading::Closed;
            }
            (ServerEvent::Closed, Reading::Done) => {}
            (ServerEvent::Closed, _) => model.reading = Reading::Closed,
            (event, _) => panic!("{event:?} after {model:?}"),
        }
        model.keep = false;
    }

    fn check_phase(&self) {
        let model = &self.model;
        let phase = match (model.reading, model.owed) {
            (Reading::Head, _) => ServerPhase::Head,
            (Reading::Content, _) => ServerPhase::Content,
            (Reading::Done, _) | (Reading::Closed, Some(_)) => ServerPhase::Answer,
            (Reading::Closed, None) => ServerPhase::Closed,
        };
        assert_eq!(self.exchange.phase(), phase, "{model:?}");
        let wants = matches!(model.reading, Reading::Head | Reading::Content);
        assert_eq!(self.exchange.wants_input(), wants, "{model:?}");
        assert_eq!(self.exchange.reads_content(), model.reading == Reading::Content, "{model:?}");
    }

    fn check_outcome(&self) {
        let model = &self.model;
        // A refusal between exchanges has its own answer.
        let own_answers = usize::from(model.ended);
        let answers = model.requests..=model.requests + own_answers;
        assert!(answers.contains(&model.answered), "{model:?}");
        if model.ended {
            return;
        }
        if model.keep {
            assert_eq!((model.requests, model.reading), (self.plans.len(), Reading::Head));
            assert!(self.unread.is_empty());
        } else {
            let last = &self.plans[model.requests - 1];
            assert!(!last.keeps || last.holds_back, "closed without a reason: {model:?}");
        }
    }
}

impl Model {
    fn settle(&mut self) {
        if self.reading == Reading::Done && self.owed.is_none() {
            self.reading = if self.keep { Reading::Head } else { Reading::Closed };
        }
    }
}

/// Random limits, often so low that they are reached.
fn limits(random: &mut Random) -> Limits {
    Limits {
        head_bytes: random.pick(&[64, 90, LIMITS.head_bytes]),
        fields: random.pick(&[2, LIMITS.fields]),
        content_bytes: random.pick(&[2, 15, LIMITS.content_bytes]),
    }
}

/// Checks that all splits of the same bytes give the same trace, also if the peer closes
/// afterwards.
fn check_splits(wire: &[u8], limits: Limits, random: &mut Random) {
    for moment in [Moment::AtOnce, Moment::AfterContent, Moment::WhenWaiting] {
        let whole = trace(moment, limits, wire, &[]);
        let each: Vec<usize> = (1..wire.len()).collect();
        let by_chance = (0..4).map(|_| random.cuts(wire.len()));
        for cuts in by_chance.chain([each]) {
            let cut = trace(moment, limits, wire, &cuts);
            let bytes = wire.escape_ascii();
            assert!(whole == cut, "{moment:?}, cut at {cuts:?}: {bytes}\n{whole:?}\n{cut:?}");
        }
    }
}

fn trace(moment: Moment, limits: Limits, wire: &[u8], cuts: &[usize]) -> (String, String) {
    let mut talk = run(moment, limits, wire, cuts);
    let open = talk.trace();
    talk.step(Step::Eof);
    let refusals = talk.items.iter().filter(|item| matches!(item, Item::Refused(_))).count();
    assert!(refusals <= 1, "{}", talk.trace());
    (open, talk.trace())
}

fn run(moment: Moment, limits: Limits, wire: &[u8], cuts: &[usize]) -> Talk {
    let mut talk = Talk::new(moment, limits);
    pieces(wire, cuts).into_iter().for_each(|piece| talk.feed(piece));
    talk
}

/// Changes, drops, adds or repeats bytes. Returns their position.
fn break_somewhere(wire: &mut Vec<u8>, random: &mut Random) -> usize {
    let at = random.below(wire.len());
    let byte = match random.below(3) {
        0 => random.next() as u8,
        _ => random.pick(b"\r\n\0 \t:;,0159afHx/*#\x7f\xff"),
    };
    match random.below(4) {
        0 => wire[at] = byte,
        1 => wire.insert(at, byte),
        2 => drop(wire.remove(at)),
        _ => {
            let end = at + random.below((wire.len() - at).min(32));
            let again = wire[at..end].to_vec();
            wire.splice(at..at, again);
        }
    }
    at
}

/// Runs with `count` seeds, or with the seed in the environment.
fn for_each_seed(count: u64, run: impl Fn(&mut Random)) {
    let asked = |name| env::var(name).ok().map(|text| text.parse().expect("a number"));
    let count = asked("TIDEGATE_RUNS").unwrap_or(count);
    let seeds = match asked("TIDEGATE_SEED") {
        Some(seed) => seed..=seed,
        None => BASE_SEED..=BASE_SEED + count - 1,
    };
    for seed in seeds {
        let shown = ShownOnPanic(seed);
        run(&mut Random::new(seed));
        drop(shown);
    }
}

struct ShownOnPanic(u64);

impl Drop for ShownOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("to run this again: TIDEGATE_SEED={}", self.0);
        }
    }
}
