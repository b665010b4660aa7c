//! A whole connection: requests in any split give the same events and the same answers; what is
//! read keeps to what was announced, and what is written is read by a client as it was meant.

use std::time::UNIX_EPOCH;

use tidegate::http::{
    Bytes, FieldTable, Fields, Limits, Method, Refused, RequestContent, RequestHead, Response,
    ServerEvent, ServerPhase, Version,
    h1::{self, ClientEvent, ClientRequest, HeadTemplate},
};

use super::in_any_split;

pub fn check(data: &[u8]) {
    let Some((&[limits, signal, high, low, ways @ .., a, b, c, d], wire)) =
        data.split_first_chunk::<12>()
    else {
        return;
    };
    let limits = super::limits(limits);
    let at = super::place([high, low], wire.len());
    let outcome = in_any_split(wire, [a, b, c, d], |pieces| {
        let mut talk = Talk::new(limits, ways);
        let mut fed = 0;
        for piece in pieces {
            let before = at.saturating_sub(fed).min(piece.len());
            talk.feed(&piece[..before]);
            fed += before;
            if fed == at {
                talk.signal(signal);
            }
            talk.feed(&piece[before..]);
            fed += piece.len() - before;
        }
        talk.signal(signal);
        talk.finish()
    });
    outcome.check();
}

const CONTENT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n0\r\n\r\n";

#[derive(Debug, PartialEq)]
enum Item {
    Request(String),
    Content(Vec<u8>),
    ContentEnd,
    Refused(Refused),
    /// So much of the output was written here.
    Output(usize),
}

/// An answer, as a client has to read it.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    is_head: bool,
    content: Vec<u8>,
}

/// How a request is answered, from one byte.
#[derive(Clone, Copy, Debug)]
struct Way {
    kind: Kind,
    status: u16,
    len: usize,
    closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AtOnce,
    AfterContent,
    /// Begun at once, and ended behind the content.
    Stream,
    SizedStream,
    /// The client is told to go on, and hints, before it is answered.
    Interim,
    /// Instead of an answer, if the client speaks HTTP/1.1.
    Tunnel,
    /// Not before the signal.
    Held,
    HeldStream,
}

impl Way {
    fn new(byte: u8) -> Self {
        use Kind::{AfterContent, AtOnce, Held, HeldStream, Interim, SizedStream, Stream, Tunnel};
        let kinds = [AtOnce, AfterContent, Stream, SizedStream, Interim, Tunnel, Held, HeldStream];
        Self {
            kind: kinds[usize::from(byte & 7)],
            status: [200, 204, 304, 500][usize::from(byte >> 3 & 3)],
            len: [0, 1, 5, CONTENT.len()][usize::from(byte >> 5 & 3)],
            closes: byte & 0x80 != 0,
        }
    }

    fn content(self) -> &'static [u8] {
        &CONTENT[..self.len]
    }
}

/// What is due to the request that came out last.
#[derive(Clone, Copy, Debug)]
enum Due {
    Nothing,
    Answer(Way),
    EndOfStream(Way),
}

struct Talk {
    exchange: h1::Server,
    limits: Limits,
    ways: [u8; 4],
    unread: Vec<u8>,
    signalled: bool,
    /// Refused or closed.
    over: bool,
    due: Due,
    is_head: bool,
    is_http10: bool,
    announced: RequestContent,
    content_read: u64,
    requests: usize,
    seen: Outcome,
}

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    items: Vec<Item>,
    answers: Vec<Answer>,
    output: Vec<u8>,
    phase: Option<ServerPhase>,
    unread: usize,
    peer_is_done: bool,
}

impl Talk {
    fn new(limits: Limits, ways: [u8; 4]) -> Self {
        Self {
            exchange: h1::Server::new(),
            limits,
            ways,
            unread: Vec::new(),
            signalled: false,
            over: false,
            due: Due::Nothing,
            is_head: false,
            is_http10: false,
            announced: RequestContent::None,
            content_read: 0,
            requests: 0,
            seen: Outcome::default(),
        }
    }

    fn feed(&mut self, piece: &[u8]) {
        self.unread.extend_from_slice(piece);
        self.take_events();
    }

    /// What may happen to a connection beside its bytes; once.
    fn signal(&mut self, choice: u8) {
        if self.signalled {
            return;
        }
        self.signalled = true;
        let event = match choice % 5 {
            0 => ServerEvent::NeedMore,
            1 => self.exchange.receive_eof(),
            2 => self.exchange.time_out(),
            3 => {
                self.exchange.close_now();
                ServerEvent::NeedMore
            }
            _ => {
                self.exchange.close_after();
                ServerEvent::NeedMore
            }
        };
        if let ServerEvent::Refused(_, refused) = event {
            self.refused(refused);
        }
        self.take_events();
    }

    fn take_events(&mut self) {
        for _ in 0..4 * self.unread.len() + 8 {
            let unread = std::mem::take(&mut self.unread);
            let mut fields = FieldTable::new();
            let (used, event) = self.exchange.next_event(&unread, &mut fields, &self.limits);
            let is_read = matches!(
                event,
                ServerEvent::Request(_, _, None)
                    | ServerEvent::Content(..)
                    | ServerEvent::ContentEnd(_)
            );
            assert!(!(is_read && self.over), "{event:?} behind the end");
            let waits = matches!(event, ServerEvent::NeedMore | ServerEvent::Closed);
            match event {
                ServerEvent::NeedMore => {}
                ServerEvent::Closed => self.over = true,
                ServerEvent::Request(_, head, None) => self.requested(&head),
                ServerEvent::Content(_, piece) => self.content(piece),
                ServerEvent::ContentEnd(_) => self.content_end(),
                ServerEvent::Refused(_, refused) | ServerEvent::Request(_, _, Some(refused)) => {
                    self.refused(refused);
                }
            }
            self.unread = unread;
            self.unread.drain(..used);
            if waits && !self.go_on() {
                return;
            }
        }
        panic!("events without end: {:?}", self.seen);
    }

    fn requested(&mut self, head: &RequestHead<'_>) {
        assert!(matches!(self.due, Due::Nothing), "a request before the last one's answer");
        self.seen.items.push(Item::Request(format!("{head:?}")));
        self.is_head = head.method() == Method::Head;
        self.is_http10 = head.version() == Version::Http10;
        self.announced = head.content();
        self.content_read = 0;
        assert_eq!(self.exchange.reads_content(), self.announced.follows());
        let way = Way::new(self.ways[self.requests % self.ways.len()]);
        self.requests += 1;
        self.due = Due::Answer(way);
        if way.closes {
            self.exchange.close_after();
        }
        match way.kind {
            Kind::AtOnce => self.answer(way),
            Kind::Stream | Kind::SizedStream => self.begin_stream(way),
            Kind::Interim => {
                self.write(h1::Server::send_continue);
                self.write(|exchange, out| exchange.write_interim(103, &fields(b"X: y\r\n"), out));
            }
            Kind::AfterContent | Kind::Tunnel | Kind::Held | Kind::HeldStream => {}
        }
    }

    fn content(&mut self, piece: &[u8]) {
        assert!(!piece.is_empty() && self.announced.follows());
        self.content_read += piece.len() as u64;
        assert!(self.content_read <= self.limits.content_bytes);
        if let RequestContent::Length(length) = self.announced {
            assert!(self.content_read <= length, "more than was announced");
        }
        match self.seen.items.last_mut() {
            Some(Item::Content(content)) => content.extend_from_slice(piece),
            _ => self.seen.items.push(Item::Content(piece.to_vec())),
        }
    }

    fn content_end(&mut self) {
        if let RequestContent::Length(length) = self.announced {
            assert_eq!(self.content_read, length);
        }
        assert!(self.announced.follows());
        self.announced = RequestContent::None;
        self.seen.items.push(Item::ContentEnd);
    }

    fn refused(&mut self, refused: Refused) {
        assert!(!self.over, "refused behind the end");
        assert!(!matches!(self.due, Due::EndOfStream(_)), "refused within an answer");
        self.over = true;
        self.seen.items.push(Item::Refused(refused));
        self.answer(Way { kind: Kind::AtOnce, status: refused.status, len: 5, closes: false });
        assert_eq!(self.exchange.phase(), ServerPhase::Closed);
    }

    /// Does what is due when nothing more is read before it. Says whether there was anything.
    fn go_on(&mut self) -> bool {
        let phase = self.exchange.phase();
        assert_eq!(
            self.exchange.wants_input(),
            matches!(phase, ServerPhase::Head | ServerPhase::Content)
        );
        match self.due {
            Due::Nothing => {
                assert!(phase != ServerPhase::Answer, "an answer that nobody asked for");
                return false;
            }
            _ if phase == ServerPhase::Content => return false,
            Due::Answer(way) => {
                assert_eq!(phase, ServerPhase::Answer);
                match way.kind {
                    Kind::Held | Kind::HeldStream if !self.signalled => return false,
                    Kind::HeldStream => self.begin_stream(way),
                    Kind::Tunnel if !self.is_http10 => self.tunnel(),
                    _ => self.answer(way),
                }
            }
            Due::EndOfStream(_) => self.end_stream(),
        }
        true
    }

    fn write(&mut self, write: impl FnOnce(&mut h1::Server, &mut Vec<u8>)) {
        write(&mut self.exchange, &mut self.seen.output);
        self.seen.items.push(Item::Output(self.seen.output.len()));
    }

    fn answer(&mut self, way: Way) {
        let response = response(way.status);
        let content = way.content();
        let mut sends = false;
        self.write(|exchange, out| {
            sends = exchange.respond(&response, content.len() as u64, &opening(), out);
            out.extend_from_slice(if sends { content } else { b"" });
        });
        let has_content = !matches!(way.status, 204 | 304) && !content.is_empty();
        if !self.over {
            assert_eq!(sends, has_content && !self.is_head);
        }
        let is_head = if self.over { has_content && !sends } else { self.is_head };
        let content = if sends { content.to_vec() } else { Vec::new() };
        self.seen.answers.push(Answer { status: way.status, is_head, content });
        self.due = Due::Nothing;
    }

    fn begin_stream(&mut self, way: Way) {
        let response = response(way.status);
        let (one, other) = way.content().split_at(way.len / 2);
        let has_content = !matches!(way.status, 204 | 304);
        let length = (way.kind == Kind::SizedStream).then_some(way.len as u64);
        self.write(|exchange, out| {
            exchange.begin_response(&response, length, &opening(), out);
            [one, b"", other].into_iter().for_each(|piece| exchange.write_piece(piece, out));
        });
        let sends = has_content && !self.is_head;
        let content = if sends { way.content().to_vec() } else { Vec::new() };
        self.seen.answers.push(Answer { status: way.status, is_head: self.is_head, content });
        self.due = Due::EndOfStream(way);
    }

    fn tunnel(&mut self) {
        self.write(|exchange, out| {
            exchange.begin_tunnel(&fields(b"Upgrade: x\r\n"), out);
            exchange.write_piece(CONTENT, out);
            exchange.end_response(&Fields::NONE, out);
        });
        let (content, is_head) = (CONTENT.to_vec(), false);
        self.seen.answers.push(Answer { status: 101, is_head, content });
        self.due = Due::Nothing;
        assert_eq!(self.exchange.phase(), ServerPhase::Closed);
    }

    fn end_stream(&mut self) {
        self.write(|exchange, out| exchange.end_response(&fields(b"X: y\r\n"), out));
        self.due = Due::Nothing;
    }

    /// Ends an answer that is under way, which is possible at any time.
    fn finish(mut self) -> Outcome {
        if matches!(self.due, Due::EndOfStream(_)) {
            self.end_stream();
        }
        self.take_events();
        let phase = self.exchange.phase();
        self.seen.phase = Some(phase);
        // Of what is refused, nobody cares how much was read.
        self.seen.unread = if phase == ServerPhase::Closed { 0 } else { self.unread.len() };
        self.seen.peer_is_done = self.exchange.peer_is_done();
        self.seen
    }
}

impl Outcome {
    /// What was written is what a client reads, and nothing more.
    fn check(&self) {
        let mut rest = &self.output[..];
        for (index, answer) in self.answers.iter().enumerate() {
            let is_last = index + 1 == self.answers.len();
            let (closes, behind) = answer.read(rest);
            rest = behind;
            assert!(is_last || !closes, "an answer behind the last one");
            assert!(!closes || self.phase == Some(ServerPhase::Closed) || answer.status == 101);
        }
        // Only hints may stand before an answer that is still due.
        let mut upstream = begin(false, false);
        let (content, _) = take(&mut upstream, &mut rest);
        assert!(content.is_none() && rest.is_empty(), "{} bytes too much", rest.len());
    }
}

impl Answer {
    /// Reads it. Returns whether it says that the connection ends, and what stands behind it.
    fn read<'a>(&self, mut output: &'a [u8]) -> (bool, &'a [u8]) {
        let mut upstream = begin(self.is_head, self.status == 101);
        let (read, closes) = take(&mut upstream, &mut output);
        let (status, mut content) = read.expect("an answer");
        assert_eq!(status, self.status);
        if status == 101 {
            content = std::mem::take(&mut output).to_vec();
        } else if !upstream.response_done() {
            assert!(output.is_empty() && closes);
            assert!(matches!(upstream.receive_eof(), ClientEvent::End));
        }
        assert_eq!(content, self.content);
        (closes, output)
    }
}

/// Status and content of a response, if its head is there, and whether it says that it is the last.
fn take(upstream: &mut h1::Client, rest: &mut &[u8]) -> (Option<(u16, Vec<u8>)>, bool) {
    const LIMITS: Limits = Limits { head_bytes: 4096, fields: 64, content_bytes: 0 };
    let (mut response, mut closes) = (None, false);
    loop {
        let mut fields = FieldTable::new();
        let (used, event) = upstream.next_event(rest, &mut fields, &LIMITS);
        match event {
            ClientEvent::NeedMore | ClientEvent::Closed | ClientEvent::End => {
                *rest = &rest[used..];
                return (response, closes);
            }
            ClientEvent::Interim(head) => assert!([100, 103].contains(&head.status())),
            ClientEvent::Response(head) => {
                closes = head.field("connection") == Some(b"close");
                response = Some((head.status(), Vec::new()));
            }
            ClientEvent::Content(piece) => {
                response.as_mut().expect("a response").1.extend_from_slice(piece);
            }
            event => panic!("{event:?} of our own answers"),
        }
        *rest = &rest[used..];
    }
}

fn begin(is_head: bool, upgrade: bool) -> h1::Client {
    let request = ClientRequest {
        content: RequestContent::None,
        is_head,
        upgrade,
        expects_continue: false,
        close: false,
    };
    h1::Client::begin(&request, &mut b"X / HTTP/1.1\r\nHost: a\r\n".to_vec())
}

fn response(status: u16) -> Response<'static> {
    Response::new(status).with_field("X", "y")
}

fn opening() -> HeadTemplate {
    HeadTemplate::at(UNIX_EPOCH)
}

fn fields(lines: &[u8]) -> Fields<'_> {
    Fields::from_lines(Bytes::Borrowed(lines))
}
