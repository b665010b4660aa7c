//! The answers of an upstream: any split reads the same, heads and content are what a plain reader
//! has, and a connection is kept only behind a response whose end is beyond doubt.

use tidegate::http::{
    FieldTable, Limits, Refused, RequestContent, ResponseContent, ResponseHead, Version,
    h1::{self, ClientEvent, ClientRequest},
};

use super::{
    in_any_split,
    oracle::{self, Chunked, ChunkedEnd},
};

pub fn check(data: &[u8]) {
    let Some((&[choice, a, b, c, d], wire)) = data.split_first_chunk() else { return };
    let (asked, limits) = (Asked::new(choice), super::limits(choice >> 2));
    let ends = choice & 0x10 != 0;
    let talk = in_any_split(wire, [a, b, c, d], |pieces| {
        let mut talk = Talk::new(asked, limits);
        pieces.iter().for_each(|piece| talk.feed(piece));
        talk.end(ends);
        talk.seen
    });
    talk.check(wire, asked, ends);
}

/// What the upstream was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Get,
    Head,
    Upgrade,
    /// With content that waits for a 100 and is not sent.
    Put,
}

impl Asked {
    fn new(choice: u8) -> Self {
        [Self::Get, Self::Head, Self::Upgrade, Self::Put][usize::from(choice % 4)]
    }

    pub fn begin(self) -> h1::Client {
        let is_put = self == Self::Put;
        let request = ClientRequest {
            content: if is_put { RequestContent::Length(5) } else { RequestContent::None },
            is_head: self == Self::Head,
            upgrade: self == Self::Upgrade,
            expects_continue: is_put,
            close: false,
        };
        h1::Client::begin(&request, &mut b"X / HTTP/1.1\r\nHost: a\r\n".to_vec())
    }
}

#[derive(Debug, PartialEq)]
enum Item {
    /// An interim response or the final one, with the bytes up to its end.
    Head(usize, Seen),
    Content(Vec<u8>),
    /// With the bytes up to it, and the trailer lines.
    End(usize, Vec<u8>),
    Refused(Refused),
    Truncated,
}

/// A head as it came out.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    reason: String,
    is_http10: bool,
    content: ResponseContent,
    content_length: Option<u64>,
    fields: Vec<(String, Vec<u8>)>,
}

/// What came out, and whether the connection is kept.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    items: Vec<Item>,
    unread: usize,
    is_kept: bool,
    answered: bool,
}

struct Talk {
    exchange: h1::Client,
    limits: Limits,
    unread: Vec<u8>,
    used: usize,
    seen: Outcome,
}

impl Talk {
    fn new(asked: Asked, limits: Limits) -> Self {
        let (exchange, seen) = (asked.begin(), Outcome::default());
        Self { exchange, limits, unread: Vec::new(), used: 0, seen }
    }

    fn feed(&mut self, piece: &[u8]) {
        self.unread.extend_from_slice(piece);
        for _ in 0..2 * self.unread.len() + 4 {
            let mut fields = FieldTable::new();
            let (used, event) = self.exchange.next_event(&self.unread, &mut fields, &self.limits);
            let end = self.used + used;
            let item = match event {
                ClientEvent::NeedMore | ClientEvent::Closed => None,
                ClientEvent::Interim(head) => {
                    assert!(matches!(head.status(), 100 | 102..=199));
                    Some(Item::Head(end, Seen::of(&head)))
                }
                ClientEvent::Response(head) => {
                    assert!(head.status() >= 200 || head.is_upgraded());
                    Some(Item::Head(end, Seen::of(&head)))
                }
                ClientEvent::Content(bytes) => Some(Item::Content(bytes.to_vec())),
                ClientEvent::End => Some(Item::End(end, self.exchange.trailers().lines().to_vec())),
                ClientEvent::Refused(refused) => Some(Item::Refused(refused)),
                ClientEvent::Truncated => panic!("cut off without an end"),
            };
            self.used = end;
            self.unread.drain(..used);
            let Some(item) = item else { return };
            self.push(item);
        }
        panic!("events without end: {:?}", self.seen);
    }

    fn push(&mut self, item: Item) {
        let items = &mut self.seen.items;
        match (items.last_mut(), item) {
            (Some(Item::End(..) | Item::Refused(_) | Item::Truncated), item) => {
                panic!("{item:?} behind the end")
            }
            (_, Item::Content(piece)) if piece.is_empty() => panic!("a piece of nothing"),
            (Some(Item::Content(content)), Item::Content(piece)) => {
                content.extend_from_slice(&piece);
            }
            (_, item) => items.push(item),
        }
    }

    fn end(&mut self, ends: bool) {
        if ends {
            match self.exchange.receive_eof() {
                ClientEvent::End => self.push(Item::End(self.used, Vec::new())),
                ClientEvent::Truncated => self.push(Item::Truncated),
                ClientEvent::Closed => {}
                event => panic!("{event:?} at the end of the connection"),
            }
        }
        // Of what is refused, nobody cares how much was read.
        let is_refused = matches!(self.seen.items.last(), Some(Item::Refused(_)));
        self.seen.unread = if is_refused { 0 } else { self.unread.len() };
        self.seen.is_kept = self.exchange.reusable();
        self.seen.answered = self.exchange.answered();
        let is_whole = matches!(self.seen.items.last(), Some(Item::End(..)));
        assert_eq!(self.exchange.response_done(), is_whole);
    }
}

impl Seen {
    fn of(head: &ResponseHead<'_>) -> Self {
        Self {
            status: head.status(),
            reason: head.reason().to_owned(),
            is_http10: head.version() == Version::Http10,
            content: head.content(),
            content_length: head.content_length(),
            fields: head.fields().map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
        }
    }

    /// It is what stands in its bytes. Returns what these say of the connection.
    fn check(&self, bytes: &[u8], asked: Asked) -> bool {
        let head = oracle::Head::read_response(bytes);
        let (version, rest) = head.start_line.split_at(b"HTTP/1.1".len());
        let minor = version.strip_prefix(b"HTTP/1.").expect("a version 1");
        assert!(minor.iter().all(u8::is_ascii_digit));
        assert_eq!(self.is_http10, minor == b"0");
        let (code, reason) = rest.split_at(4);
        assert_eq!(code, format!(" {}", self.status).as_bytes());
        let reason = reason.strip_prefix(b" ").unwrap_or(reason);
        assert!(self.reason.is_empty() || self.reason.as_bytes() == reason, "{}", self.reason);
        let fields = head.fields.iter().map(|(name, value)| (name.to_string(), value.to_vec()));
        assert_eq!(self.fields, fields.collect::<Vec<_>>());
        let announced = head.framing(self.is_http10);
        let length = match announced {
            RequestContent::Length(length) => Some(length),
            RequestContent::None | RequestContent::Chunked => None,
        };
        assert_eq!(self.content_length, length);
        let has_none = matches!(self.status, 100..=199 | 204 | 304) || asked == Asked::Head;
        let content = match announced {
            _ if has_none => ResponseContent::None,
            RequestContent::None => ResponseContent::UntilClose,
            RequestContent::Length(length) => ResponseContent::Length(length),
            RequestContent::Chunked => ResponseContent::Chunked,
        };
        assert_eq!(self.content, content);
        let is_doubtful = matches!(self.status, 100..=199 | 204) && announced.follows();
        assert!(!is_doubtful || self.status == 204, "an interim response with content");
        if self.status == 101 {
            assert!(asked == Asked::Upgrade && !self.is_http10);
            assert!(head.all("upgrade").iter().any(|protocol| !protocol.is_empty()));
        }
        head.keeps_connection(self.is_http10) && !is_doubtful
    }
}

impl Outcome {
    fn check(&self, wire: &[u8], asked: Asked, ends: bool) {
        assert_eq!(self.answered, !wire.is_empty());
        let (mut at, mut framing, mut keeps) = (0, None, false);
        let mut content = &[][..];
        for item in &self.items {
            match item {
                Item::Head(end, seen) => {
                    assert_eq!(framing, None, "a head behind the final one");
                    keeps = seen.check(&wire[at..*end], asked);
                    at = *end;
                    if seen.status >= 200 || seen.status == 101 {
                        framing = Some(seen.content);
                    }
                }
                Item::Content(bytes) => content = bytes,
                Item::End(end, trailers) => {
                    let framing = framing.expect("an end behind a response");
                    check_content(framing, &wire[at..*end], content, trailers);
                    keeps &= framing != ResponseContent::UntilClose && *end == wire.len();
                }
                Item::Refused(refused) => assert!([431, 502].contains(&refused.status)),
                Item::Truncated => assert!(ends),
            }
        }
        let is_whole = matches!(self.items.last(), Some(Item::End(..)));
        // The content that was to be sent is not.
        assert_eq!(self.is_kept, is_whole && keeps && !ends && asked != Asked::Put);
        assert!(!self.is_kept || self.unread == 0);
    }
}

/// These bytes are this content.
fn check_content(framing: ResponseContent, bytes: &[u8], content: &[u8], trailers: &[u8]) {
    match framing {
        ResponseContent::None => assert!(bytes.is_empty() && content.is_empty()),
        ResponseContent::Length(length) => {
            assert_eq!((bytes, length), (content, content.len() as u64));
        }
        ResponseContent::UntilClose => assert_eq!(bytes, content),
        ResponseContent::Chunked => {
            let plain = Chunked::read_response(bytes);
            assert_eq!(plain.end, ChunkedEnd::Whole(bytes.len()));
            assert_eq!(plain.content, content);
            let mut all = plain.trailers.iter();
            let mut kept = trailers.split_inclusive(|byte| *byte == b'\n');
            assert!(kept.all(|line| all.any(|other| line.strip_suffix(b"\r\n") == Some(other))));
            return;
        }
    }
    assert!(trailers.is_empty());
}
