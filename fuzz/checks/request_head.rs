//! The first request head of a connection: any split reads the same, and a head that is taken
//! stands by the rules of RFC 9112, read once more.

use std::time::UNIX_EPOCH;

use tidegate::http::{
    FieldTable, Limits, Refused, RequestContent, RequestHead, Response, ServerEvent, Version,
    h1::{self, HeadTemplate},
};

use super::{in_any_split, oracle};

pub fn check(data: &[u8]) {
    let Some((&[limits, a, b, c, d], wire)) = data.split_first_chunk() else { return };
    let limits = super::limits(limits);
    match in_any_split(wire, [a, b, c, d], |pieces| read(pieces, &limits)) {
        Outcome::NeedMore => {
            let rest = wire.strip_prefix(b"\r\n").unwrap_or(wire);
            assert!(rest.len() < limits.head_bytes, "a head without a bound");
            assert!(!rest.windows(4).any(|end| end == b"\r\n\r\n"), "a whole head is not read");
        }
        Outcome::Refused(Refused { status, .. }) => {
            assert!([400, 413, 414, 417, 431, 501, 505].contains(&status), "{status}");
        }
        Outcome::Head(used, head) => {
            let bytes = &wire[..used];
            let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
            assert!(bytes.len() <= limits.head_bytes && head.fields.len() <= limits.fields);
            head.check(bytes);
        }
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    NeedMore,
    /// With the bytes up to its end.
    Head(usize, Box<Seen>),
    Refused(Refused),
}

/// A head as it came out, and whether its answer keeps the connection.
#[derive(Debug, PartialEq)]
struct Seen {
    method: String,
    target: String,
    path: String,
    query: Option<String>,
    host: Option<(String, Option<u16>)>,
    is_http10: bool,
    content: RequestContent,
    expects_continue: bool,
    fields: Vec<(String, Vec<u8>)>,
    keeps: bool,
}

fn read(pieces: &[&[u8]], limits: &Limits) -> Outcome {
    let (mut exchange, mut unread, mut done) = (h1::Server::new(), Vec::new(), 0);
    for piece in pieces {
        unread.extend_from_slice(piece);
        let mut fields = FieldTable::new();
        let (used, event) = exchange.next_event(&unread, &mut fields, limits);
        assert!(used <= unread.len());
        done += used;
        match event {
            ServerEvent::NeedMore => assert!(used == 0 || unread.starts_with(b"\r\n") && used == 2),
            ServerEvent::Request(_, head, None) => {
                let mut seen = Seen::of(&head);
                seen.keeps = keeps(&mut exchange);
                return Outcome::Head(done, Box::new(seen));
            }
            ServerEvent::Refused(_, refused) | ServerEvent::Request(_, _, Some(refused)) => {
                let mut fields = FieldTable::new();
                let behind = exchange.next_event(&unread, &mut fields, limits);
                assert!(matches!(behind, (0, ServerEvent::Closed)), "{behind:?} behind a refusal");
                return Outcome::Refused(refused);
            }
            event => panic!("{event:?} before a head"),
        }
        unread.drain(..used);
    }
    Outcome::NeedMore
}

fn keeps(exchange: &mut h1::Server) -> bool {
    let mut out = Vec::new();
    exchange.respond(&Response::new(204), 0, &HeadTemplate::at(UNIX_EPOCH), &mut out);
    !oracle::Head::read(&out).list("connection").contains(&b"close".to_vec())
}

impl Seen {
    fn of(head: &RequestHead<'_>) -> Self {
        Self {
            method: head.method().as_str().to_owned(),
            target: head.target().to_owned(),
            path: head.path().to_owned(),
            query: head.query().map(str::to_owned),
            host: head.host().map(|host| (host.name().to_owned(), host.port())),
            is_http10: head.version() == Version::Http10,
            content: head.content(),
            expects_continue: head.expects_continue(),
            fields: head.fields().map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
            keeps: false,
        }
    }

    /// It is what stands in its bytes, and these stand by the rules.
    fn check(&self, bytes: &[u8]) {
        let head = oracle::Head::read(bytes);
        let start_line = str::from_utf8(head.start_line).expect("a request line in ASCII");
        let [method, target, version] = start_line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{start_line}")
        };
        assert_eq!((&*self.method, &*self.target), (method, target));
        assert!(!method.is_empty() && method.bytes().all(oracle::is_token), "{method}");
        let minor = version.strip_prefix("HTTP/1.").expect("a version 1");
        assert!(minor.len() == 1 && minor.bytes().all(|digit| digit.is_ascii_digit()), "{version}");
        assert_eq!(self.is_http10, minor == "0");
        let fields = head.fields.iter().map(|(name, value)| (name.to_string(), value.to_vec()));
        assert_eq!(self.fields, fields.collect::<Vec<_>>());
        assert_eq!(self.content, head.framing(self.is_http10));
        let expects = head.all("expect").iter().any(|value| !value.is_empty());
        let expects = expects && !self.is_http10 && self.content.follows();
        assert_eq!(self.expects_continue, expects);
        assert_eq!(self.keeps, head.keeps_connection(self.is_http10) && !expects);
        self.check_target();
        self.check_host(&head);
    }

    /// RFC 9112 §3.2: the origin form, the absolute form of two schemes, or the asterisk.
    fn check_target(&self) {
        let target = &self.target;
        assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{target}");
        if target == "*" {
            assert_eq!((&*self.method, &*self.path, &self.query), ("OPTIONS", "*", &None));
            return;
        }
        let query = self.query.as_ref().map_or(String::new(), |query| format!("?{query}"));
        assert!(self.path.starts_with('/') && !self.path.contains('?'), "{}", self.path);
        if target.starts_with('/') {
            assert_eq!(*target, format!("{}{query}", self.path));
            return;
        }
        let (scheme, rest) = target.split_once("://").expect("a scheme");
        assert!(["http", "https"].contains(&&*scheme.to_ascii_lowercase()), "{scheme}");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let path = if rest[end..].starts_with('/') { &*self.path } else { "" };
        assert_eq!(rest[end..], format!("{path}{query}"));
        self.check_authority(&rest[..end]);
    }

    fn check_host(&self, head: &oracle::Head<'_>) {
        let hosts = head.all("host");
        assert!(hosts.len() == 1 || self.is_http10 && hosts.is_empty(), "{} Hosts", hosts.len());
        match hosts.first().copied() {
            _ if self.target.contains("://") && !self.target.starts_with('/') => {}
            None => assert_eq!(self.host, None),
            Some(b"") => assert_eq!((&*self.target, &self.host), ("*", &None)),
            Some(host) => self.check_authority(str::from_utf8(host).expect("a host in ASCII")),
        }
    }

    /// The host is the one of this text, which is a host and nothing else.
    fn check_authority(&self, authority: &str) {
        let (name, port) = self.host.as_ref().expect("a host");
        let behind = authority.strip_prefix(&**name).expect("its name");
        let is_literal = name.starts_with('[') && name.ends_with(']');
        let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        assert!(!name.is_empty() && (is_literal || name.bytes().all(is_name_byte)), "{name}");
        let behind = if is_literal { behind } else { behind.strip_prefix('.').unwrap_or(behind) };
        match port {
            None => assert!(["", ":"].contains(&behind), "{authority}"),
            Some(port) => {
                let digits = behind.strip_prefix(':').expect("a port");
                assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{authority}");
                assert_eq!(digits.parse(), Ok(*port), "{authority}");
            }
        }
    }
}
