//! Shared by the sans-IO tests of the protocol: a scripted app, and random numbers from a seed.
//!
//! A [`Talk`] feeds the protocol and records a trace that does not depend on how the input was
//! split: adjacent pieces of content are joined, and output is recorded where it was written.

pub mod plan;

use std::{fmt, time::UNIX_EPOCH};

use tidegate::http::{
    Bytes, FieldTable, Fields, Limits, RequestHead, Response, ServerEvent, ServerPhase, Version,
    h1::{self, HeadTemplate},
};

/// The date of every answer.
pub const DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

/// The template of every response here.
pub fn opening() -> HeadTemplate {
    HeadTemplate::at(UNIX_EPOCH)
}

/// Fields of these lines, each ended by CRLF.
pub fn fields(lines: &str) -> Fields<'_> {
    Fields::from_lines(Bytes::Borrowed(lines.as_bytes()))
}

/// When the scripted app answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// As soon as it has the head; the client never gets a 100.
    AtOnce,
    /// As soon as it has the content.
    AfterContent,
    /// Like `AfterContent`, but only when the protocol has no further event.
    WhenWaiting,
    /// By [`Step::Answer`].
    WhenTold,
}

/// An input of the protocol.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Bytes of the peer.
    In(&'static str),
    /// The peer's last byte has come.
    Eof,
    TimeOut,
    CloseNow,
    CloseAfter,
    /// The app gives the answer that is owed.
    Answer,
    /// The head of that answer, for content whose length is not known.
    Begin,
    /// The head of that answer, for content of this length.
    BeginSized(u64),
    /// An interim response before it.
    Interim(u16),
    /// A 101 in place of it.
    Tunnel,
    /// A piece of that content.
    Piece(&'static str),
    /// The end of that content.
    End,
    /// The end of that content, with these trailer lines.
    EndWith(&'static str),
}

/// An item of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Request(String),
    Content(Vec<u8>),
    ContentEnd,
    Refused(u16),
    Output(Vec<u8>),
    /// The bytes of a piece of a stream, or of its end.
    Stream(Vec<u8>),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(request) => write!(f, "[{request}]"),
            Self::Content(content) => write!(f, "+{}", content.escape_ascii()),
            Self::ContentEnd => write!(f, "."),
            Self::Refused(status) => write!(f, "!{status}"),
            Self::Output(bytes) => write!(f, "<{}>", bytes.escape_ascii()),
            Self::Stream(bytes) => write!(f, "={}", bytes.escape_ascii()),
        }
    }
}

/// The protocol, the bytes that it has not read, and its trace.
pub struct Talk {
    exchange: h1::Server,
    limits: Limits,
    moment: Moment,
    input: Vec<u8>,
    /// The status of the answer that is owed.
    owed: Option<u16>,
    /// Whether it was refused or closed: then nothing may be read any more.
    over: bool,
    pub items: Vec<Item>,
}

impl Talk {
    pub fn new(moment: Moment, limits: Limits) -> Self {
        Self {
            exchange: h1::Server::new(),
            limits,
            moment,
            input: Vec::new(),
            owed: None,
            over: false,
            items: Vec::new(),
        }
    }

    /// The trace, with the phase at the end.
    pub fn trace(&self) -> String {
        let items: String = self.items.iter().map(|item| format!("{item} ")).collect();
        format!("{items}{:?}", self.exchange.phase())
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.take_events();
    }

    pub fn step(&mut self, step: Step) {
        let event = match step {
            Step::In(bytes) => return self.feed(bytes.as_bytes()),
            Step::Eof => self.exchange.receive_eof(),
            Step::TimeOut => self.exchange.time_out(),
            Step::CloseNow => {
                self.exchange.close_now();
                ServerEvent::NeedMore
            }
            Step::CloseAfter => {
                self.exchange.close_after();
                ServerEvent::NeedMore
            }
            Step::Answer => {
                self.respond();
                ServerEvent::NeedMore
            }
            Step::Begin
            | Step::BeginSized(_)
            | Step::Interim(_)
            | Step::Tunnel
            | Step::Piece(_)
            | Step::End
            | Step::EndWith(_) => {
                self.stream(step);
                ServerEvent::NeedMore
            }
        };
        if let ServerEvent::Refused(_, refused) = event {
            self.refused(refused.status);
        }
        self.take_events();
    }

    fn take_events(&mut self) {
        for _ in 0..2 * self.input.len() + 8 {
            let len = self.input.len();
            let mut fields = FieldTable::new();
            let (used, event) = self.exchange.next_event(&self.input, &mut fields, &self.limits);
            assert!(used <= len, "{used} of {len} bytes used: {}", self.trace());
            let reads = matches!(
                event,
                ServerEvent::Request(_, _, None)
                    | ServerEvent::Content(..)
                    | ServerEvent::ContentEnd(_)
            );
            assert!(!(reads && self.over), "read behind the end: {}", self.items.len());
            let waits = matches!(event, ServerEvent::NeedMore | ServerEvent::Closed);
            match event {
                ServerEvent::NeedMore => {}
                ServerEvent::Closed => self.over = true,
                ServerEvent::Request(_, head, None) => {
                    let (request, status) = (describe(&head), status_for(&head));
                    self.requested(request, status);
                }
                ServerEvent::Content(_, content) => {
                    let content = content.to_vec();
                    self.content(&content);
                }
                ServerEvent::ContentEnd(_) => self.content_end(),
                ServerEvent::Refused(_, refused) | ServerEvent::Request(_, _, Some(refused)) => {
                    self.refused(refused.status);
                }
            }
            self.input.drain(..used);
            if waits {
                let answers = self.moment == Moment::WhenWaiting && self.owed.is_some();
                if !answers || self.exchange.phase() != ServerPhase::Answer {
                    return;
                }
                self.respond();
            }
        }
        panic!("events without end: {}", self.trace());
    }

    fn requested(&mut self, request: String, status: u16) {
        assert_eq!(self.owed, None, "a request before the previous answer: {}", self.trace());
        self.items.push(Item::Request(request));
        self.owed = Some(status);
        if self.moment == Moment::AtOnce {
            return self.respond();
        }
        let mut out = Vec::new();
        self.exchange.send_continue(&mut out);
        if !out.is_empty() {
            self.items.push(Item::Output(out));
        }
        if self.moment == Moment::AfterContent && !self.exchange.reads_content() {
            self.respond();
        }
    }

    fn content(&mut self, piece: &[u8]) {
        assert!(!piece.is_empty());
        match self.items.last_mut() {
            Some(Item::Content(content)) => content.extend_from_slice(piece),
            _ => self.items.push(Item::Content(piece.to_vec())),
        }
    }

    fn content_end(&mut self) {
        self.items.push(Item::ContentEnd);
        if self.moment == Moment::AfterContent {
            self.respond();
        }
    }

    fn refused(&mut self, status: u16) {
        assert!(!self.over, "refused twice: {}", self.trace());
        self.items.push(Item::Refused(status));
        self.owed = Some(status);
        self.over = true;
        if matches!(self.moment, Moment::AtOnce | Moment::AfterContent) {
            self.respond();
        }
    }

    fn stream(&mut self, step: Step) {
        let mut out = Vec::new();
        let answer = |status| Response::new(status).with_field("X", "y");
        match step {
            Step::Begin => {
                let response = answer(self.owed.take().expect("an answer is owed"));
                self.exchange.begin_response(&response, None, &opening(), &mut out);
                return self.items.push(Item::Output(out));
            }
            Step::BeginSized(length) => {
                let response = answer(self.owed.take().expect("an answer is owed"));
                self.exchange.begin_response(&response, Some(length), &opening(), &mut out);
                return self.items.push(Item::Output(out));
            }
            Step::Interim(status) => {
                self.exchange.write_interim(status, &fields("X: y\r\n"), &mut out);
            }
            Step::Tunnel => {
                self.owed = None;
                self.exchange.begin_tunnel(&fields("Upgrade: z\r\n"), &mut out);
            }
            Step::Piece(piece) => self.exchange.write_piece(piece.as_bytes(), &mut out),
            Step::EndWith(trailers) => {
                self.exchange.end_response(&fields(trailers), &mut out);
            }
            _ => self.exchange.end_response(&Fields::NONE, &mut out),
        }
        self.items.push(Item::Stream(out));
    }

    fn respond(&mut self) {
        let Some(status) = self.owed.take() else { return };
        let content: &[u8] = if status == 202 { b"" } else { b"ok" };
        let response =
            Response::new(status).with_field("X", "y").with_content_bytes(Bytes::Borrowed(content));
        let mut out = Vec::new();
        if self.exchange.respond(&response, content.len() as u64, &opening(), &mut out) {
            assert!(!content.is_empty());
            out.extend_from_slice(content);
        }
        self.items.push(Item::Output(out));
    }
}

/// The status for a request: `/304` gets a 304, other paths without a status get a 200.
fn status_for(head: &RequestHead<'_>) -> u16 {
    let status = head.path().trim_start_matches('/').parse().unwrap_or(200);
    if (200..600).contains(&status) { status } else { 200 }
}

/// Method, path and query, host (`-` without), and the version if it is 1.0.
fn describe(head: &RequestHead<'_>) -> String {
    let query = head.query().map_or(String::new(), |query| format!("?{query}"));
    let host = head.host().map_or("-", |host| host.name());
    let version = if head.version() == Version::Http10 { " 1.0" } else { "" };
    format!("{} {}{query} {host}{version}", head.method().as_str(), head.path())
}

/// Random numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Offsets within `len` bytes to cut at, ascending.
    pub fn cuts(&mut self, len: usize) -> Vec<usize> {
        let count = self.below(8) + 1;
        let mut cuts: Vec<usize> = (0..count).map(|_| self.below(len + 1)).collect();
        cuts.sort_unstable();
        cuts
    }
}

/// The pieces of `bytes` between the cuts.
pub fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let starts = [0].into_iter().chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([bytes.len()]);
    starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect()
}
