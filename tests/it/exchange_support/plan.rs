//! Random valid requests, and the events that they must give.

use tidegate::http::{RequestHead, Version};

use super::Random;

/// A request: its bytes and its meaning.
#[derive(Debug)]
pub struct Plan {
    method: &'static str,
    target: String,
    host: Option<&'static str>,
    pub is_http10: bool,
    pub asks_keep_alive: bool,
    fields: Vec<(String, String)>,
    framing: Framing,
    pub content: Vec<u8>,
    /// Whether the connection stays open for the next request.
    pub keeps: bool,
    /// Whether the client expects a 100.
    pub holds_back: bool,
    /// The status of its answer.
    pub status: u16,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length,
    Chunked,
}

/// Some requests of one connection, with at most `content_max` bytes of content.
pub fn requests(random: &mut Random, content_max: usize) -> Vec<Plan> {
    let count = random.below(6) + 1;
    (0..count).map(|number| Plan::new(number, content_max, random)).collect()
}

/// The bytes of all requests.
pub fn wire(plans: &[Plan]) -> Vec<u8> {
    plans.iter().flat_map(|plan| plan.bytes.iter().copied()).collect()
}

/// The bytes of the requests that end at or before this offset.
pub fn whole_before(plans: &[Plan], offset: usize) -> usize {
    let ends = plans.iter().scan(0, |end, plan| {
        *end += plan.bytes.len();
        Some(*end)
    });
    ends.take_while(|end| *end <= offset).last().unwrap_or(0)
}

impl Plan {
    fn new(number: usize, content_max: usize, random: &mut Random) -> Self {
        let is_http10 = random.one_in(6);
        let framing = match random.below(3) {
            0 => Framing::None,
            1 if !is_http10 => Framing::Chunked,
            _ => Framing::Length,
        };
        let len = random.pick(&[0, 1, 2, 15, 16, 17, 300, 4096]).min(content_max);
        let len = if framing == Framing::None { 0 } else { len };
        let authority = random.pick(&["", "", "", "http://a.test", "HTTPS://b:8080"]);
        let host = match authority {
            "" => random.pick(&[Some("a.test"), Some("[::1]"), Some("b")]),
            "http://a.test" => Some("a.test"),
            _ => Some("b"),
        };
        let mut plan = Self {
            method: random.pick(&["GET", "HEAD", "POST", "PUT", "OPTIONS", "BREW"]),
            target: format!("{authority}/{number}{}", random.pick(&["", "?", "?a=b", "/%2f?c?d"])),
            host,
            is_http10,
            fields: Vec::new(),
            framing,
            content: (0..len).map(|_| random.pick(b"\r\n0123;:GET /HTTP\0\xff")).collect(),
            asks_keep_alive: false,
            keeps: !is_http10,
            holds_back: false,
            status: random.pick(&[200, 200, 200, 204, 206, 304]),
            bytes: Vec::new(),
        };
        plan.add_fields(random);
        plan.write(random);
        plan
    }

    pub fn has_content(&self) -> bool {
        self.framing == Framing::Chunked || !self.content.is_empty()
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Checks that the parsed head is the one that was sent.
    pub fn check_head(&self, head: &RequestHead<'_>) {
        assert_eq!(head.method().as_str(), self.method);
        assert_eq!(head.target(), self.target);
        assert!(head.path().starts_with('/'));
        assert_eq!(head.query().is_some(), self.target.contains('?'));
        assert_eq!(head.version() == Version::Http10, self.is_http10);
        assert_eq!(head.host().map(|host| host.name()), self.host);
        let fields: Vec<_> = head.fields().map(|(name, value)| (name, value.to_vec())).collect();
        let sent = self.fields.iter().map(|(name, value)| (name.as_str(), value.clone().into()));
        assert_eq!(fields, sent.collect::<Vec<_>>());
    }

    fn add_fields(&mut self, random: &mut Random) {
        // With an absolute-form target the field is checked but not used.
        let named = if self.target.starts_with('/') { self.host.unwrap_or("a") } else { "other" };
        self.add("Host", &format!("{named}{}", random.pick(&["", ":", ":80"])), random);
        match random.below(10) {
            0 => {
                self.add("Connection", "close", random);
                self.keeps = false;
            }
            1 => self.add("Connection", "upgrade, x", random),
            2..=5 => {
                self.add("Connection", "Keep-Alive", random);
                (self.asks_keep_alive, self.keeps) = (true, true);
            }
            _ => {}
        }
        match self.framing {
            Framing::None => {}
            Framing::Length => {
                let zeros = random.pick(&["", "", "00"]);
                self.add("Content-Length", &format!("{zeros}{}", self.content.len()), random);
            }
            Framing::Chunked => self.add("Transfer-Encoding", "chunked", random),
        }
        if random.one_in(5) {
            self.add("Expect", "100-continue", random);
            self.holds_back = !self.is_http10 && self.has_content();
        }
        for _ in 0..random.below(4) {
            self.add("X-A", random.pick(&["", "b", "b c\td", "\u{fc}", "Host: b"]), random);
        }
        for at in (1..self.fields.len()).rev() {
            self.fields.swap(at, random.below(at + 1));
        }
    }

    fn add(&mut self, name: &str, value: &str, random: &mut Random) {
        let name = match random.below(3) {
            0 => name.to_ascii_lowercase(),
            1 => name.to_ascii_uppercase(),
            _ => name.to_owned(),
        };
        self.fields.push((name, value.to_owned()));
    }

    fn write(&mut self, random: &mut Random) {
        let minor = if self.is_http10 { '0' } else { random.pick(&['1', '1', '1', '2', '9']) };
        let blank = random.pick(&["", "", "", "\r\n"]);
        let mut head = format!("{blank}{} {} HTTP/1.{minor}\r\n", self.method, self.target);
        for (name, value) in &self.fields {
            let space = [random.pick(&[" ", "", "\t "]), random.pick(&["", " \t"])];
            head += &format!("{name}:{}{value}{}\r\n", space[0], space[1]);
        }
        self.bytes = (head + "\r\n").into_bytes();
        match self.framing {
            Framing::None | Framing::Length => self.bytes.extend_from_slice(&self.content),
            Framing::Chunked => self.write_chunks(random),
        }
    }

    fn write_chunks(&mut self, random: &mut Random) {
        let mut rest = &self.content[..];
        let mut overhead = 0;
        while !rest.is_empty() {
            let most = random.pick(&[1, 5, 16, 300, 4096]).min(rest.len());
            let (chunk, behind) = rest.split_at(random.below(most) + 1);
            let extension = random.pick(&["", "", "", ";", ";a", ";a=\"b;\t\"", ";\u{fc}"]);
            // Many small chunks with extensions would exceed the limit on them.
            overhead += extension.len();
            let extension = if overhead > 500 { "" } else { extension };
            let size = match random.below(3) {
                0 => format!("{:X}", chunk.len()),
                1 => format!("{:016x}", chunk.len()),
                _ => format!("{:x}", chunk.len()),
            };
            self.bytes.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
            self.bytes.extend_from_slice(chunk);
            self.bytes.extend_from_slice(b"\r\n");
            rest = behind;
        }
        let last = random.pick(&["0", "000", "0;end"]);
        let trailers = random.pick(&["", "", "T: u\r\n", "Host: z\r\nContent-Length:9\r\n"]);
        self.bytes.extend_from_slice(format!("{last}\r\n{trailers}\r\n").as_bytes());
    }
}
