//! The traffic: kinds of clients, each of which finds other mistakes of a server.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{
    ledger::{Failure, Kind, Ledger},
    support::{Client, End, Line, PATIENCE, Random, Response, Upstream, get, pattern, wait_until},
};

/// What the steady apps answer.
pub(crate) const STEADY: &str = "steady";
/// Bytes of the large file: enough to keep a slow reader busy for a while.
pub(crate) const LARGE_BYTES: usize = 600_000;
/// Hosts that operations add, replace, drain and remove.
pub(crate) const CHURNED: [&str; 4] = ["one.churn", "two.churn", "three.churn", "*.four.churn"];

/// What the clients of a round share.
pub(crate) struct Traffic<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) ledger: &'a Ledger,
    pub(crate) over: &'a AtomicBool,
}

type Run = fn(&Traffic<'_>, &mut Random);

/// All kinds, and how many clients each has.
pub(crate) const KINDS: &[(&str, usize, Run)] = &[
    ("keep-alive", 3, |clients, random| clients.keep_alive(random)),
    ("thinking", 6, |clients, random| clients.thinking(random)),
    ("one request", 2, |clients, random| clients.one_request(random)),
    ("pipelined", 2, |clients, random| clients.pipelined(random)),
    ("upload", 2, |clients, random| clients.upload(random)),
    ("slow download", 2, |clients, random| clients.slow_download(random)),
    ("leaves", 2, |clients, random| clients.leaves(random)),
    ("stream", 2, |clients, random| clients.stream(random)),
    ("half-close", 2, |clients, random| clients.half_close(random)),
    ("tunnel", 2, |clients, random| clients.tunnel(random)),
    ("churn", 2, |clients, random| clients.churn(random)),
    ("bad upstream", 1, |clients, random| clients.bad_upstream(random)),
];

/// A request that is under way.
struct Attempt {
    traffic: &'static str,
    began: Instant,
    idle: Duration,
}

impl Traffic<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// Waits, but not beyond the end of the round.
    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        wait_until(time, || Instant::now() >= end || !self.goes_on());
    }

    fn begin(&self, traffic: &'static str, since: Instant) -> Attempt {
        let began = Instant::now();
        Attempt { traffic, began, idle: began.duration_since(since) }
    }

    fn fail(&self, attempt: &Attempt, kind: Kind, story: String) {
        let Attempt { traffic, began, idle } = *attempt;
        let ended = Instant::now();
        self.ledger.fail(Failure { kind, traffic, began, ended, idle, story });
    }

    fn connect(&self, traffic: &'static str) -> Option<Client> {
        let attempt = self.begin(traffic, Instant::now());
        match Client::try_connect(self.address, PATIENCE) {
            Ok(client) => Some(client),
            Err(error) => {
                self.fail(&attempt, Kind::NotConnected, error.to_string());
                self.pause(Duration::from_millis(5));
                None
            }
        }
    }

    /// Reads an answer, which must have this content. Returns false if the connection is unusable.
    fn expect(&self, attempt: &Attempt, client: &mut Client, content: &[u8]) -> bool {
        let response = match client.try_response(false) {
            Ok(response) => response,
            Err(lost) => {
                self.ledger.leave(1);
                self.fail(attempt, Kind::Lost, format!("{lost:?}"));
                return false;
            }
        };
        if response.status == 200 && response.body == content {
            self.ledger.answer(1);
        } else {
            self.ledger.leave(1);
            let story = format!("{} with {} bytes", response.status, response.body.len());
            self.fail(attempt, Kind::Wrong, format!("{story}: {}", start_of(&response)));
        }
        !response.says_close()
    }

    /// Sends a request and expects this answer. Returns false if the connection is unusable.
    fn exchange(
        &self,
        attempt: &Attempt,
        client: &mut Client,
        request: &str,
        content: &[u8],
    ) -> bool {
        if let Err(error) = client.try_send(request.as_bytes()) {
            self.ledger.leave(1);
            self.fail(attempt, Kind::Lost, format!("send: {error}"));
            return false;
        }
        self.expect(attempt, client, content)
    }

    /// Whether an idle connection was closed. A client that sees that sends no request.
    fn is_closed(&self, client: &mut Client) -> bool {
        let is_closed = client.peek_end() != End::Open;
        if is_closed {
            self.ledger.close_idle();
        }
        is_closed
    }

    fn ask_again_and_again(
        &self,
        traffic: &'static str,
        random: &mut Random,
        requests: usize,
        pause: impl Fn(&mut Random) -> Duration,
    ) {
        while self.goes_on() {
            let Some(mut client) = self.connect(traffic) else { continue };
            let mut since = Instant::now();
            for _ in 0..1 + random.below(requests) {
                self.pause(pause(random));
                if !self.goes_on() || self.is_closed(&mut client) {
                    break;
                }
                let (host, content) = match random.below(6) {
                    0 => ("slow.steady", "slow"),
                    1 => ("files.steady", "small"),
                    2 => ("up.steady", "up"),
                    _ => ("a.steady", STEADY),
                };
                let attempt = self.begin(traffic, since);
                let request = get(host, "/");
                if !self.exchange(&attempt, &mut client, &request, content.as_bytes()) {
                    break;
                }
                since = Instant::now();
            }
        }
    }

    fn keep_alive(&self, random: &mut Random) {
        let pause = |random: &mut Random| random.milliseconds(0, 8);
        self.ask_again_and_again("keep-alive", random, 200, pause);
    }

    /// Pauses for longer than `idle_grace`, so that there are always idle connections.
    fn thinking(&self, random: &mut Random) {
        let pause = |random: &mut Random| random.milliseconds(100, 2500);
        self.ask_again_and_again("thinking", random, 20, pause);
    }

    fn one_request(&self, random: &mut Random) {
        while self.goes_on() {
            self.pause(random.milliseconds(0, 10));
            let Some(mut client) = self.connect("one request") else { continue };
            let attempt = self.begin("one request", Instant::now());
            let request = "GET / HTTP/1.1\r\nHost: a.steady\r\nConnection: close\r\n\r\n";
            self.exchange(&attempt, &mut client, request, STEADY.as_bytes());
        }
    }

    /// Sends all requests at once: the server has them all, so it has to answer all.
    fn pipelined(&self, random: &mut Random) {
        while self.goes_on() {
            let Some(mut client) = self.connect("pipelined") else { continue };
            for _ in 0..20 {
                self.pause(random.milliseconds(0, 30));
                if !self.goes_on() || self.is_closed(&mut client) {
                    break;
                }
                let first = random.below(3) == 0;
                let more = 1 + random.below(7);
                let mut requests = if first { get("slow.steady", "/") } else { String::new() };
                requests += &get("a.steady", "/").repeat(more);
                let attempt = self.begin("pipelined", Instant::now());
                let count = more + usize::from(first);
                if let Err(error) = client.try_send(requests.as_bytes()) {
                    self.ledger.leave(count as u64);
                    self.fail(&attempt, Kind::Lost, format!("send: {error}"));
                    break;
                }
                let content = |nth| if first && nth == 0 { "slow" } else { STEADY };
                let answered = (0..count)
                    .take_while(|nth| self.expect(&attempt, &mut client, content(*nth).as_bytes()))
                    .count();
                if answered < count {
                    // The last answer read has `close`, or failed and reports that itself.
                    let missing = count - answered - 1;
                    if missing > 0 {
                        self.ledger.leave(missing as u64);
                        self.fail(&attempt, Kind::Lost, format!("{missing} of {count} behind"));
                    }
                    break;
                }
            }
        }
    }

    /// Uploads to an upstream, in pieces with pauses, with a length or in chunks.
    fn upload(&self, random: &mut Random) {
        let content = pattern(40_000);
        while self.goes_on() {
            let Some(mut client) = self.connect("upload") else { continue };
            for _ in 0..10 {
                self.pause(random.milliseconds(0, 20));
                if !self.goes_on() || self.is_closed(&mut client) {
                    break;
                }
                let attempt = self.begin("upload", Instant::now());
                let content = &content[..1 + random.below(content.len())];
                let is_chunked = random.below(2) == 0;
                let framing = if is_chunked {
                    "Transfer-Encoding: chunked".to_owned()
                } else {
                    format!("Content-Length: {}", content.len())
                };
                let head = format!("POST /echo HTTP/1.1\r\nHost: up.steady\r\n{framing}\r\n\r\n");
                let mut sent = client.try_send(head.as_bytes());
                for piece in content.chunks(content.len().div_ceil(3)) {
                    self.pause(random.milliseconds(0, 15));
                    let size = format!("{:x}\r\n", piece.len());
                    let whole = match is_chunked {
                        true => [size.as_bytes(), piece, b"\r\n"].concat(),
                        false => piece.to_vec(),
                    };
                    sent = sent.and_then(|()| client.try_send(&whole));
                }
                if is_chunked {
                    sent = sent.and_then(|()| client.try_send(b"0\r\n\r\n"));
                }
                if let Err(error) = sent {
                    self.ledger.leave(1);
                    self.fail(&attempt, Kind::Lost, format!("send: {error}"));
                    break;
                }
                if !self.expect(&attempt, &mut client, content) {
                    break;
                }
            }
        }
    }

    fn slow_download(&self, random: &mut Random) {
        let content = pattern(LARGE_BYTES);
        while self.goes_on() {
            self.pause(random.milliseconds(0, 50));
            let attempt = self.begin("slow download", Instant::now());
            let read = self.read_slowly(random);
            match read {
                Err((kind, error)) => self.fail(&attempt, kind, error),
                Ok(answer) if answer.ends_with(&content) && answer.starts_with(b"HTTP/1.1 200") => {
                    self.ledger.answer(1);
                    continue;
                }
                Ok(answer) => {
                    self.fail(&attempt, Kind::Lost, format!("{} bytes", answer.len()));
                }
            }
            self.ledger.leave(1);
        }
    }

    fn read_slowly(&self, random: &mut Random) -> Result<Vec<u8>, (Kind, String)> {
        let lost = |error: std::io::Error| (Kind::Lost, error.to_string());
        let mut socket = TcpStream::connect_timeout(&self.address, PATIENCE)
            .map_err(|error| (Kind::NotConnected, error.to_string()))?;
        SockRef::from(&socket).set_recv_buffer_size(16 * 1024).map_err(lost)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(lost)?;
        let request = "GET /large HTTP/1.1\r\nHost: files.steady\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).map_err(lost)?;
        let (mut answer, mut piece) = (Vec::new(), vec![0; 24 * 1024]);
        loop {
            match socket.read(&mut piece).map_err(lost)? {
                0 => return Ok(answer),
                read => answer.extend_from_slice(&piece[..read]),
            }
            self.pause(random.milliseconds(0, 12));
        }
    }

    /// Leaves within a request or its answer, by an orderly close or by a reset.
    fn leaves(&self, random: &mut Random) {
        while self.goes_on() {
            self.pause(random.milliseconds(0, 30));
            let Some(mut client) = self.connect("leaves") else { continue };
            let (host, path) = match random.below(4) {
                0 => ("up.steady", "/stream"),
                1 => ("files.steady", "/large"),
                2 => ("up.steady", "/"),
                _ => ("slow.steady", "/"),
            };
            let request = get(host, path);
            let length =
                if random.below(3) == 0 { random.below(request.len()) } else { request.len() };
            self.ledger.leave(1);
            // It is about to leave: an error does not matter.
            let _ = client.try_send(&request.as_bytes()[..length]);
            self.pause(random.milliseconds(0, 60));
            if random.below(2) == 0 {
                client.reset();
            }
        }
    }

    fn stream(&self, random: &mut Random) {
        let content = stream_content();
        while self.goes_on() {
            let Some(mut client) = self.connect("stream") else { continue };
            for _ in 0..5 {
                self.pause(random.milliseconds(0, 20));
                if !self.goes_on() || self.is_closed(&mut client) {
                    break;
                }
                let attempt = self.begin("stream", Instant::now());
                let request = get("up.steady", "/stream");
                if !self.exchange(&attempt, &mut client, &request, content.as_bytes()) {
                    break;
                }
            }
        }
    }

    /// Closes its side after the request, and still expects the answer.
    fn half_close(&self, random: &mut Random) {
        while self.goes_on() {
            self.pause(random.milliseconds(0, 30));
            let attempt = self.begin("half-close", Instant::now());
            let connected = TcpStream::connect_timeout(&self.address, PATIENCE);
            let mut socket = match connected {
                Ok(socket) => socket,
                Err(error) => {
                    self.fail(&attempt, Kind::NotConnected, error.to_string());
                    continue;
                }
            };
            let mut answer = Vec::new();
            let result = socket
                .set_read_timeout(Some(PATIENCE))
                .and_then(|()| socket.write_all(get("a.steady", "/").as_bytes()))
                .and_then(|()| socket.shutdown(Shutdown::Write))
                .and_then(|()| socket.read_to_end(&mut answer));
            if result.is_ok() && answer.ends_with(STEADY.as_bytes()) {
                self.ledger.answer(1);
            } else {
                self.ledger.leave(1);
                self.fail(&attempt, Kind::Lost, format!("{result:?}, {} bytes", answer.len()));
            }
        }
    }

    /// A WebSocket, which is a tunnel for the server.
    fn tunnel(&self, random: &mut Random) {
        let upgrade = "GET /tunnel HTTP/1.1\r\nHost: up.steady\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        while self.goes_on() {
            self.pause(random.milliseconds(0, 50));
            let attempt = self.begin("tunnel", Instant::now());
            let connected = TcpStream::connect_timeout(&self.address, PATIENCE);
            let mut socket = match connected {
                Ok(socket) => socket,
                Err(error) => {
                    self.fail(&attempt, Kind::NotConnected, error.to_string());
                    continue;
                }
            };
            let mut talk = || {
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.write_all(upgrade.as_bytes())?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    socket.read_exact(&mut byte)?;
                    head.push(byte[0]);
                }
                for word in ["ping!", "again", "enough"] {
                    self.pause(random.milliseconds(0, 60));
                    socket.write_all(word.as_bytes())?;
                    let mut echo = vec![0; word.len()];
                    socket.read_exact(&mut echo)?;
                    if echo != word.as_bytes() {
                        return Err(std::io::Error::other("another echo"));
                    }
                }
                Ok(())
            };
            match talk() {
                Ok(()) => self.ledger.answer(1),
                Err(error) => {
                    self.ledger.leave(1);
                    self.fail(&attempt, Kind::Lost, error.to_string());
                }
            }
        }
    }

    /// Asks hosts that come and go, are drained and cut. Only the answer of another app is wrong.
    fn churn(&self, random: &mut Random) {
        while self.goes_on() {
            let Some(mut client) = self.connect("churn") else { continue };
            for _ in 0..1 + random.below(20) {
                self.pause(random.milliseconds(0, 10));
                if !self.goes_on() {
                    break;
                }
                let host = random.one(&CHURNED).replace('*', "any");
                let attempt = self.begin("churn", Instant::now());
                if client.try_send(get(&host, "/").as_bytes()).is_err() {
                    self.ledger.leave(1);
                    break;
                }
                match client.try_response(false) {
                    Ok(response) if response.status == 200 => {
                        self.ledger.answer(1);
                        if !response.text().starts_with("churn") {
                            self.fail(&attempt, Kind::Wrong, start_of(&response));
                        }
                    }
                    Ok(response) if [404, 503].contains(&response.status) => {}
                    Ok(response) => self.fail(&attempt, Kind::Wrong, start_of(&response)),
                    // A deadline may have cut it.
                    Err(_) => {
                        self.ledger.leave(1);
                        break;
                    }
                }
            }
        }
    }

    /// The upstream breaks off or sends malformed answers: the client gets an answer or an end.
    fn bad_upstream(&self, random: &mut Random) {
        while self.goes_on() {
            self.pause(random.milliseconds(0, 30));
            let Some(mut client) = self.connect("bad upstream") else { continue };
            let attempt = self.begin("bad upstream", Instant::now());
            if client.try_send(get("bad.steady", "/").as_bytes()).is_err() {
                self.ledger.leave(1);
                continue;
            }
            match client.try_response(false) {
                Ok(response) if [200, 502, 503, 504].contains(&response.status) => {
                    self.ledger.answer(1);
                }
                Ok(response) => self.fail(&attempt, Kind::Wrong, start_of(&response)),
                Err(_) => self.ledger.leave(1),
            }
        }
    }
}

/// The upstream of `up.steady`.
pub(crate) fn good_upstream() -> Upstream {
    Upstream::by_head(|asked, line| {
        let mut asked = asked.clone();
        match asked.target() {
            "/stream" => {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                line.send(head);
                let parts = stream_parts();
                for part in &parts {
                    rest(Duration::from_millis(10));
                    line.send(format!("{:x}\r\n{part}\r\n", part.len()));
                }
                line.send("0\r\n\r\n");
            }
            "/tunnel" => {
                line.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n",
                );
                echo(line);
                line.close();
            }
            "/echo" => {
                if line.read_content(&mut asked) {
                    line.answer(200, &asked.content);
                } else {
                    line.close();
                }
            }
            _ => line.answer(200, "up"),
        }
    })
}

/// The upstream of `bad.steady`: its answers are bad in different ways, and some are good.
pub(crate) fn bad_upstream() -> Upstream {
    Upstream::by_head(|_, line| {
        match line.turn() % 7 {
            0 => line.answer(200, "good for once"),
            1 => line.reset(),
            2 => line.close(),
            3 => {
                line.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all of it");
                line.close();
            }
            4 => {
                line.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx");
                line.close();
            }
            5 => {
                line.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
                );
                line.reset();
            }
            _ => {
                line.send("garbage\r\n\r\n");
                line.close();
            }
        };
    })
}

fn stream_parts() -> Vec<String> {
    (0..5).map(|part| format!("part {part}; ")).collect()
}

fn stream_content() -> String {
    stream_parts().concat()
}

fn echo(line: &mut Line) {
    loop {
        let bytes = line.read_some();
        if bytes.is_empty() || !line.send(bytes) {
            return;
        }
    }
}

fn rest(time: Duration) {
    let end = Instant::now() + time;
    wait_until(time, || Instant::now() >= end);
}

fn start_of(response: &Response) -> String {
    format!("{} {}", response.status, response.text().chars().take(120).collect::<String>())
}
