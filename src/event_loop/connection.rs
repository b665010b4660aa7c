//! One connection: its socket, its protocol state, its unread and unsent bytes, its deadlines.
//!
//! ```text
//!  fresh ──bytes──► head ◄────────────── idle      each wait ends by its own limit:
//!    │ no PROXY      │ complete            ▲         fresh, head   head_timeout       408 if begun
//!    ▼ header        ▼                     │ sent    content       body_timeout       408 if owed
//!   gone          content, app, sending ───┘         sending       write_timeout      gone
//!                    │ last answer sent              idle          keepalive_timeout  last read
//!                    ▼                               lingering     linger_timeout     gone
//!                 lingering ──peer closed──► gone
//! ```
//! Where a PROXY header comes first, a connection is fresh until a byte has come behind it. An
//! exchange is in flight from its complete head until the kernel has its last byte; the guards
//! are kept in [`InFlight`], in the order of the answers. Idle, a connection holds no buffer.
//! - I3, I6: every way out drops the guards; a cut is counted. I7: an idle connection is read once
//!   more before it is closed.
//! - Closing is half-close, then reading out: a close with unread bytes would reset the answer
//!   (RFC 9112 §9.6).

mod admit;
mod moving;
mod pipeline;
mod proxy_header;
mod waits;

use std::{io, os::fd::OwnedFd};

use mio::Token;
use smallvec::SmallVec;

use super::{
    LoopContext,
    class::linger_windows,
    exchange::{Delivered, Effect, Exchange, Forwarding, Outgoing, TimedOut},
    io::{Flushed, InputBuffer, Io, Ready, Received},
    listener::ConnectionPermit,
    timers::Deadline,
};
use crate::{
    app::{Delivery, OneUpstream, Peer},
    http::h1::{self, ServerEvent, ServerPhase},
    logging::End,
    message::{Class, ExchangeNumber},
    registry::AppId,
};
use moving::Place;
use pipeline::{PIPELINE_BYTES_MAX, Turn};
use waits::Wait;

/// A connection of one loop.
pub(super) struct Connection {
    pub(super) token: Token,
    pub(super) io: Io,
    pub(super) class: Class,
    pub(super) peer: Peer,
    pub(super) exchange: h1::Server,
    /// Those whose answer is not all with the kernel, in the order of their answers.
    pub(super) exchanges: SmallVec<[Exchange; 1]>,
    /// In the loop's list of those who have work left.
    pub(super) queued: bool,
    /// Bytes were left unread because answers have to go out first.
    stalled: bool,
    turn: Turn,
    place: Place,
    lingering: bool,
    /// Its last answer is not whole, and a mere end would not show that.
    resets_at_end: bool,
    /// The PROXY header, which names the peer, is not whole yet.
    awaits_proxy_header: bool,
    wait: Wait,
    /// A request came since the deadline was set: what is waited for now is a new wait.
    pub(super) wait_anew: bool,
    deadline: Deadline,
    /// Bytes of the peer's that were its PROXY header.
    header_bytes: u64,
    /// What the total of the wait's direction was when its window began.
    window_start: u64,
    windows: u8,
    permit: ConnectionPermit,
}

/// A connection as it was accepted.
pub(super) struct Newcomer {
    pub(super) class: Class,
    pub(super) socket: OwnedFd,
    pub(super) peer: Peer,
    pub(super) permit: ConnectionPermit,
    /// It begins with a PROXY header.
    pub(super) proxy_protocol: bool,
    /// What its peer sent first may have been dropped, and comes again.
    pub(super) is_deaf: bool,
}

/// What becomes of a connection after it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for its socket or its deadline.
    Keep,
    /// It has used up its turn and has more to do.
    Again,
    /// It has a request for an upstream, which waits for the turn's other events.
    Held,
    /// It is to be dropped.
    Gone,
    /// It is to be dropped, for a drain has no more patience.
    Cut,
}

/// Reads and writes of one connection before others get their turn.
const STEPS_PER_TURN: usize = 16;

impl Connection {
    pub(super) fn new(token: Token, newcomer: Newcomer, cx: &mut LoopContext) -> Self {
        let is_deaf = newcomer.is_deaf;
        let mut connection = Self::unwatched(token, newcomer);
        if connection.class == Class::Public {
            cx.counts.fresh += 1;
            cx.counts.accepted += 1;
        }
        connection.set_deadline(cx);
        if is_deaf {
            connection.wait_for_resent(cx);
        }
        connection.queue_at_rest(cx);
        connection
    }

    /// A connection that counts nowhere, and has no deadline.
    fn unwatched(token: Token, newcomer: Newcomer) -> Self {
        Self {
            token,
            io: Io::new(newcomer.socket, Ready { writable: true, ..Ready::default() }),
            class: newcomer.class,
            peer: newcomer.peer,
            exchange: h1::Server::new(),
            exchanges: SmallVec::new(),
            queued: false,
            stalled: false,
            turn: Turn::default(),
            place: Place::Ours,
            lingering: false,
            resets_at_end: false,
            awaits_proxy_header: newcomer.proxy_protocol,
            wait: Wait::Fresh,
            wait_anew: true,
            deadline: Deadline::never(),
            header_bytes: 0,
            window_start: 0,
            windows: 0,
            permit: newcomer.permit,
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        self.io.socket()
    }

    /// The socket told of changes.
    pub(super) fn on_ready(&mut self, ready: Ready, cx: &mut LoopContext) -> Fate {
        self.io.ready.add(ready);
        self.work_on_event(cx)
    }

    /// Works, unless there is work left from the last turn: its next one comes behind the events,
    /// and takes in what they told.
    pub(super) fn work_on_event(&mut self, cx: &mut LoopContext) -> Fate {
        if self.queued { Fate::Keep } else { self.work(cx) }
    }

    /// Does what can be done now, at most a turn's worth.
    pub(super) fn work(&mut self, cx: &mut LoopContext) -> Fate {
        self.begin_turn();
        let fate = self.step_until_waiting(cx);
        if !matches!(fate, Fate::Gone | Fate::Held) {
            self.set_deadline(cx);
            self.release_buffers(cx);
            self.queue_at_rest(cx);
        }
        fate
    }

    fn step_until_waiting(&mut self, cx: &mut LoopContext) -> Fate {
        for _ in 0..STEPS_PER_TURN {
            if self.is_turn_over() {
                break;
            }
            if self.lingering {
                return self.read_out(cx);
            }
            if self.take_input(cx) == Fate::Gone {
                return Fate::Gone;
            }
            let was_forwarding = match self.forwarding() {
                Some(forwarding) if cx.holds_requests && forwarding.is_unsent() => {
                    return Fate::Held;
                }
                forwarding => forwarding.is_some(),
            };
            if was_forwarding {
                self.with_exchange(|exchange, out| exchange.pump(out, cx));
            }
            // The next request of a pipeline may be here already.
            let is_free = was_forwarding && self.forwarding().is_none() && self.io.has_input();
            match self.flush(cx) {
                Ok(Flushed::TurnOver) => return Fate::Again,
                Ok(Flushed::All | Flushed::Blocked) => {}
                Err(_) => return Fate::Gone,
            }
            let sent = self.io.outbox.is_empty();
            if sent && self.exchange.phase() == ServerPhase::Closed {
                if self.begin_linger(cx) == Fate::Gone {
                    return Fate::Gone;
                }
                continue;
            }
            if is_free || (self.stalled && sent) {
                continue;
            }
            let forwarding = self.forwarding();
            if forwarding.is_some_and(|forwarding| forwarding.has_more(&self.io.outbox)) {
                continue;
            }
            let is_full = forwarding.is_some_and(|forwarding| !forwarding.takes_more());
            // Content is read beside the sending: a peer may send all of it before it reads.
            let beside =
                self.exchange.reads_content() && self.io.outbox.buffered() <= PIPELINE_BYTES_MAX;
            let wants_more = self.is_tunnel() || (self.exchange.wants_input() && (sent || beside));
            let wants_input = wants_more && !is_full;
            if self.stalled || !wants_input || !self.io.ready.readable {
                // Nothing is read or sent that would run into the error: whoever reset while the
                // app holds its answer back waits for it no more (I3).
                return if self.io.ready.failed { Fate::Gone } else { Fate::Keep };
            }
            if self.has_read_enough() {
                break;
            }
            match self.io.receive(&mut cx.buffers) {
                Ok(Received::Bytes(_)) => {}
                Ok(Received::Nothing) => return Fate::Keep,
                Ok(Received::End | Received::Full) => self.end_of_input(cx),
                Err(_) => return Fate::Gone,
            }
        }
        Fate::Again
    }

    /// How its last exchange is with an upstream, if it was passed on to one.
    pub(super) fn forwarding(&self) -> Option<&Forwarding> {
        self.exchanges.last().and_then(Exchange::forwarding)
    }

    /// Whether bytes go both ways as they come.
    pub(super) fn is_tunnel(&self) -> bool {
        self.forwarding().is_some_and(Forwarding::is_tunnel)
    }

    /// Lets the last exchange act, if there is one, and does what it wants of its connection.
    fn with_exchange<R: Default>(
        &mut self,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> R {
        let Some(exchange) = self.exchanges.last_mut() else { return R::default() };
        let mut out = Outgoing {
            io: &mut self.io,
            protocol: &mut self.exchange,
            token: self.token,
            class: self.class,
            peer: self.peer,
            has_next: self.turn.has_next,
            is_kept: self.place == Place::Kept,
            effect: Effect::default(),
        };
        let result = act(exchange, &mut out);
        self.wait_anew |= out.effect.progressed;
        self.resets_at_end |= out.effect.resets_at_end;
        result
    }

    /// The connection that its exchange has to an upstream told of changes.
    pub(super) fn on_upstream_ready(
        &mut self,
        token: Token,
        ready: Ready,
        cx: &mut LoopContext,
    ) -> Fate {
        if let Some(forwarding) = self.exchanges.last_mut().and_then(Exchange::forwarding_mut) {
            forwarding.on_ready(token, ready);
        }
        self.work_on_event(cx)
    }

    /// Something came from outside for the exchange of this number.
    pub(super) fn deliver(
        &mut self,
        number: ExchangeNumber,
        delivery: Delivery,
        cx: &mut LoopContext,
    ) -> Fate {
        match self.with_exchange(|exchange, out| exchange.deliver(number, delivery, out, cx)) {
            Delivered::Dropped => Fate::Keep,
            Delivered::TooSlow => Fate::Gone,
            Delivered::Taken => self.work(cx),
        }
    }

    /// Whether no answer is on its way.
    pub(super) fn is_settled(&self, cx: &LoopContext) -> bool {
        let is_awaited = self.exchanges.last().is_some_and(Exchange::awaits_delivery);
        // A peer that came just before another process took over has to be answered, too.
        let is_new = cx.closing.has_successor && self.is_new();
        self.io.outbox.is_empty() && !is_awaited && !is_new
    }

    fn end_of_input(&mut self, cx: &mut LoopContext) {
        if let ServerEvent::Refused(refused) = self.exchange.receive_eof() {
            self.answer_refused(refused, cx);
        }
    }

    fn flush(&mut self, cx: &mut LoopContext) -> io::Result<Flushed> {
        let flushed = self.io.flush()?;
        // Not every end of an answer is something to send.
        self.end_sent_exchanges(cx);
        Ok(flushed)
    }

    /// The deadline has come.
    pub(super) fn on_deadline(&mut self, cx: &mut LoopContext) -> Fate {
        if self.is_offered() {
            // It has its deadline again when it stays.
            return Fate::Keep;
        }
        match self.wait {
            // I7: what came in since the last edge was handled is served; else it is closed.
            Wait::Fresh | Wait::Idle => {
                let is_silent = !matches!(self.io.receive(&mut cx.buffers), Ok(Received::Bytes(_)));
                if self.awaits_proxy_header && self.read_proxy_header(cx) == Fate::Gone {
                    return Fate::Gone;
                }
                if is_silent || self.awaits_proxy_header {
                    self.exchange.close_now();
                }
            }
            Wait::Head => self.time_out(cx),
            Wait::Content if self.moves(self.io.received_total()) => {}
            Wait::Content => self.time_out(cx),
            Wait::App => self.with_exchange(|exchange, out| exchange.on_due(out, cx)),
            Wait::Upstream => {
                match self.with_exchange(|exchange, out| exchange.on_upstream_deadline(out, cx)) {
                    TimedOut::GoesOn => {}
                    TimedOut::Idle => return Fate::Gone,
                    TimedOut::Cut => return Fate::Cut,
                }
            }
            Wait::Sending if self.moves(self.io.outbox.sent_total()) => {}
            Wait::Sending | Wait::HalfClosed => return Fate::Gone,
            Wait::Lingering => {
                self.windows += 1;
                if self.windows > linger_windows(self.class)
                    || !self.moves(self.io.received_total())
                {
                    return Fate::Gone;
                }
            }
        }
        self.wait_anew = true;
        self.work(cx)
    }

    fn time_out(&mut self, cx: &mut LoopContext) {
        if let ServerEvent::Refused(refused) = self.exchange.time_out() {
            self.answer_refused(refused, cx);
        }
    }

    pub(super) fn deadline_mut(&mut self) -> &mut Deadline {
        &mut self.deadline
    }

    fn release_buffers(&mut self, cx: &mut LoopContext) {
        self.io.release(&mut cx.buffers);
        if self.exchanges.is_empty() && self.exchanges.spilled() {
            self.exchanges = SmallVec::new();
        }
    }

    /// Nothing more will be said: closes our side, and reads out the peer's.
    fn begin_linger(&mut self, cx: &mut LoopContext) -> Fate {
        debug_assert!(self.exchanges.is_empty(), "lingering with an exchange in flight");
        if self.resets_at_end {
            self.io.reset_at_close();
            return Fate::Gone;
        }
        let at_end = self.io.has_ended();
        let is_done = self.exchange.peer_is_done() && !self.io.ready.readable;
        if at_end || is_done || self.io.shutdown_write().is_err() {
            return Fate::Gone;
        }
        self.lingering = true;
        if let Some(input) = self.io.input.take() {
            cx.buffers.give_input(input);
        }
        // A connection that was never readable may have bytes all the same: the first read tells.
        self.io.ready.readable = true;
        Fate::Keep
    }

    fn read_out(&mut self, cx: &mut LoopContext) -> Fate {
        while !self.has_read_enough() {
            if !self.io.ready.readable {
                return Fate::Keep;
            }
            match self.io.receive(&mut cx.buffers) {
                Ok(Received::Bytes(_)) => self.io.input.as_mut().map_or((), InputBuffer::clear),
                Ok(Received::Nothing) => return Fate::Keep,
                Ok(Received::End | Received::Full) | Err(_) => return Fate::Gone,
            }
        }
        Fate::Again
    }

    /// Whether an exchange of this life is in flight here.
    pub(super) fn serves(&self, life: AppId) -> bool {
        self.exchanges.iter().any(|exchange| exchange.flight.life() == Some(life))
    }

    /// Whether its exchange is with this upstream.
    pub(super) fn is_with(&self, upstream: &OneUpstream) -> bool {
        self.exchanges.last().is_some_and(|exchange| exchange.is_with(upstream))
    }

    /// Lets go of exchanges whose last byte is with the kernel.
    fn end_sent_exchanges(&mut self, cx: &mut LoopContext) {
        let sent = self.io.outbox.sent();
        let ended = self.exchanges.iter().take_while(|exchange| exchange.flight.end <= sent);
        let ended = ended.count();
        if ended == 0 {
            return;
        }
        // About 25 ns for what a send(2) has sent, which takes a microsecond at least.
        let now_ns = cx.clock.read_ns();
        for exchange in self.exchanges.drain(..ended) {
            exchange.flight.end(sent, End::Complete, now_ns, cx);
        }
    }

    /// The connection is going: what is in flight does not reach its end.
    pub(super) fn abort(self, cx: &mut LoopContext) {
        self.end_all(End::Aborted, cx);
    }

    /// Ends what is in flight because a deadline passed. Returns how many exchanges that cut; those
    /// of one app that wait on one connection are one.
    pub(super) fn cut(self, cx: &mut LoopContext) -> u64 {
        if let Some(forwarding) = self.forwarding() {
            forwarding.count_cut();
        }
        self.end_all(End::Cut, cx)
    }

    /// Returns how many exchanges of a life that cut.
    fn end_all(mut self, how: End, cx: &mut LoopContext) -> u64 {
        let sent = self.io.outbox.sent();
        // First: the one who hears of the end finds that no peer waits any more.
        self.with_exchange(|exchange, out| exchange.abandon(out, cx));
        let now_ns = cx.clock.read_ns();
        let ends =
            self.exchanges.drain(..).map(|exchange| exchange.flight.end(sent, how, now_ns, cx));
        let cut = ends.filter(|is_cut| *is_cut).count() as u64;
        self.uncount(cx);
        cut
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::{
        super::io::Mark,
        pipeline::{REQUESTS_PER_TURN, TURN_INPUT_BYTES},
        *,
    };
    use crate::{
        config::{AccessFormat, LogConfig},
        event_loop::test_support::{self, wait_readable},
        logging::AccessLog,
    };

    const READABLE: Ready =
        Ready { readable: true, writable: true, read_closed: false, failed: false };

    /// Sends requests for no app's host in one piece, and has them answered.
    fn exchange(
        connection: &mut Connection,
        peer: &mut TcpStream,
        count: usize,
        cx: &mut LoopContext,
    ) {
        peer.write_all("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(count).as_bytes()).unwrap();
        wait_readable(connection.io.socket());
        let mut fate = connection.on_ready(READABLE, cx);
        while fate == Fate::Again {
            fate = connection.work(cx);
        }
        assert_eq!((fate, connection.waits_for()), (Fate::Keep, Wait::Idle));
    }

    /// Lets time pass until the connection's deadline, as the loop does; `None` if it has none.
    fn come_to_deadline(connection: &mut Connection, cx: &mut LoopContext) -> Option<Fate> {
        while let Some((look, token)) = cx.timers.pop_due(u64::MAX) {
            if cx.timers.is_due(&mut connection.deadline, token, look, u64::MAX) {
                return Some(connection.on_deadline(cx));
            }
        }
        None
    }

    #[test]
    fn a_turn_answers_so_many_requests_of_a_pipeline_and_the_next_ones_the_rest() {
        const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let count = 64 * 1024 / REQUEST.len() as u64;
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::connection(cx);
        exchange(&mut connection, &mut peer, 1, cx);
        let queued = |connection: &Connection| connection.io.outbox.end().bytes_since(Mark::START);
        let answer_bytes = queued(&connection);
        peer.write_all(REQUEST.repeat(count as usize).as_bytes()).unwrap();
        peer.set_nonblocking(true).unwrap();
        let (mut fate, mut turns) = (Fate::Keep, 0);
        while queued(&connection) < (count + 1) * answer_bytes {
            if fate == Fate::Keep {
                wait_readable(connection.io.socket());
            }
            let before = queued(&connection);
            fate = connection.on_ready(READABLE, cx);
            let answered = (queued(&connection) - before) / answer_bytes;
            assert!(answered <= REQUESTS_PER_TURN.into(), "{answered} in one turn");
            turns += 1;
            // There is not always something to read.
            let _ = peer.read(&mut [0; 64 * 1024]);
        }
        assert_eq!(connection.waits_for(), Wait::Idle);
        assert!(turns >= count / u64::from(REQUESTS_PER_TURN), "{turns} turns");
    }

    #[test]
    fn a_turn_reads_so_many_bytes_and_an_event_gives_no_second_one() {
        const CONTENT_BYTES: usize = 2 * TURN_INPUT_BYTES as usize;
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::connection(cx);
        // The kernel takes it all before the first turn.
        set_socket_send_buffer_size(&peer, CONTENT_BYTES).unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {CONTENT_BYTES}\r\n\r\n");
        peer.write_all(head.as_bytes()).unwrap();
        peer.write_all(&[b'x'; CONTENT_BYTES]).unwrap();
        let (mut fate, mut full_turns) = (Fate::Keep, 0);
        while connection.io.received_total() < CONTENT_BYTES as u64 {
            if fate == Fate::Keep {
                wait_readable(connection.io.socket());
            }
            let before = connection.io.received_total();
            fate = connection.on_ready(READABLE, cx);
            let read = connection.io.received_total() - before;
            assert!(read < TURN_INPUT_BYTES + 64 * 1024, "{read} bytes in one turn");
            assert!(connection.io.input.is_none(), "nothing is kept between turns");
            if fate == Fate::Again {
                full_turns += 1;
                connection.queued = true;
                assert_eq!(connection.on_ready(READABLE, cx), Fate::Keep);
                assert_eq!(connection.io.received_total(), before + read, "its turn is to come");
                connection.queued = false;
            }
        }
        assert!(full_turns > 0, "the content came in small pieces");
    }

    #[test]
    fn an_idle_connection_holds_no_list_of_the_requests_it_once_pipelined() {
        let path = Some("/dev/null".into());
        let log = LogConfig { access: AccessFormat::Json, access_path: path, ..Default::default() };
        let log = AccessLog::open(&log).unwrap().unwrap();
        // With an access log each request has its own line, and with it its own place in the list.
        let mut running = test_support::running(Vec::new(), Some(log.for_loop()));
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::connection(cx);
        exchange(&mut connection, &mut peer, 300, cx);
        assert!(connection.exchanges.is_empty() && connection.io.input.is_none());
        assert!(!connection.exchanges.spilled(), "room for {}", connection.exchanges.capacity());
    }

    #[test]
    fn an_idle_connection_whose_last_read_finds_an_empty_line_still_has_a_deadline() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::connection(cx);
        exchange(&mut connection, &mut peer, 1, cx);
        peer.write_all(b"\r\n").unwrap();
        wait_readable(connection.io.socket());
        // The deadline comes before the event does. An empty line is no request: it stays idle.
        assert_eq!(come_to_deadline(&mut connection, cx), Some(Fate::Keep));
        assert_eq!((connection.wait, connection.lingering), (Wait::Idle, false));
        // I7: the next last read finds nothing.
        assert_eq!(come_to_deadline(&mut connection, cx), Some(Fate::Keep));
        assert!(connection.lingering);
        let mut answers = String::new();
        peer.read_to_string(&mut answers).unwrap();
        assert_eq!(answers.matches("HTTP/1.1").count(), 1);
    }
}
