//! Runs a connection when its socket is ready, its deadline has passed, or its exchange gets a
//! delivery.

use std::{io, time::Instant};

use mio::Token;
use smallvec::SmallVec;

use super::{
    super::{
        class::linger_windows,
        context::LoopContext,
        exchange::{Delivered, Exchange, Forwarding, Outgoing, Pumped, TimedOut},
        handshakes::FailedHandshake,
    },
    pipeline::PIPELINE_BYTES_MAX,
    state::{Connection, Next, Opening, State},
    waits::Wait,
};
use crate::{
    app::Delivery,
    http::{Protocol, ServerEvent, ServerPhase},
    io::{Flushed, InputBuffer, Ready, Received},
    message::ExchangeNumber,
};

/// Reads and writes of one connection before others get a turn.
const STEPS_PER_TURN: usize = 16;

impl Connection {
    /// An event came for the socket.
    pub(in super::super) fn on_ready(&mut self, ready: Ready, cx: &mut LoopContext) -> Next {
        self.io.ready.add(ready);
        self.work_on_event(cx)
    }

    /// An event for this exchange's connection to an upstream.
    pub(in super::super) fn on_upstream_ready(
        &mut self,
        number: ExchangeNumber,
        token: Token,
        ready: Ready,
        cx: &mut LoopContext,
    ) -> Next {
        let exchange = self.exchanges.iter_mut().find(|exchange| exchange.number == number);
        if let Some(forwarding) = exchange.and_then(Exchange::forwarding_mut) {
            forwarding.on_ready(token, ready);
        }
        self.work_on_event(cx)
    }

    /// Something came from outside for the exchange of this number.
    pub(in super::super) fn deliver(
        &mut self,
        number: ExchangeNumber,
        delivery: Delivery,
        cx: &mut LoopContext,
    ) -> Next {
        match self.with_exchange(number, |exchange, out| exchange.deliver(delivery, out, cx)) {
            Delivered::Dropped => Next::Wait,
            Delivered::Taken => self.work(cx),
        }
    }

    /// The deadline has passed.
    pub(in super::super) fn on_deadline(&mut self, cx: &mut LoopContext) -> Next {
        if self.is_offered() {
            // It gets its deadline back if it stays.
            return Next::Wait;
        }
        match self.waits.current() {
            Wait::Fresh | Wait::Idle => {
                if self.read_a_last_time(cx) == Next::Drop {
                    return Next::Drop;
                }
            }
            Wait::Head => self.time_out(cx),
            Wait::Content if self.waits.has_progressed(self.io.received_total()) => {}
            Wait::Content => self.time_out(cx),
            Wait::Answer => {
                let next = self.time_out_exchanges(cx);
                if next != Next::Wait {
                    return next;
                }
            }
            Wait::Sending if self.waits.has_progressed(self.io.outbox.sent_total()) => {}
            Wait::Sending | Wait::HalfClosed => return Next::Drop,
            Wait::Lingering => {
                let State::Lingering { windows } = &mut self.state else { return Next::Drop };
                *windows += 1;
                let is_over = *windows > linger_windows(self.class);
                if is_over || !self.waits.has_progressed(self.io.received_total()) {
                    return Next::Drop;
                }
            }
        }
        self.waits.end();
        self.work(cx)
    }

    /// I7: serves what came in since the last edge was handled; otherwise the connection closes.
    fn read_a_last_time(&mut self, cx: &mut LoopContext) -> Next {
        let received = self.receive(cx);
        let is_silent = !matches!(received, Ok(Received::Bytes(_)));
        if let State::Opening(before) = self.state {
            if let Err(error) = &received {
                self.fail_handshake_by(error, cx);
                return self.begin_linger(cx);
            }
            match self.open(cx) {
                Next::Wait => {}
                next => return next,
            }
            if let State::Opening(after) = self.state
                && (after != Opening::Handshake || before == after)
            {
                let is_closing = cx.closing.applies_to(self.class);
                self.fail_handshake(
                    match received {
                        Ok(Received::End) => FailedHandshake::CLIENT_GONE,
                        _ if is_closing => FailedHandshake::CLOSED,
                        _ => FailedHandshake::TIMEOUT,
                    },
                    cx,
                );
                return self.begin_linger(cx);
            }
        }
        match &mut self.state {
            State::Http(protocol) if is_silent => protocol.close_now(),
            State::Opening(_) | State::Http(_) | State::Lingering { .. } => {}
        }
        Next::Wait
    }

    /// Runs the exchanges whose deadline has passed.
    fn time_out_exchanges(&mut self, cx: &mut LoopContext) -> Next {
        let by_ms = self.waits.deadline.at();
        for place in 0..self.exchanges.len() {
            let on_deadline = |exchange: &mut Exchange, out: &mut Outgoing<'_>| {
                exchange.on_deadline(by_ms, out, cx)
            };
            match self.with_exchange_at(place, on_deadline) {
                TimedOut::GoesOn => {}
                TimedOut::Cut => return self.cut_exchange(place, cx),
            }
        }
        Next::Wait
    }

    /// Cuts the exchanges that match.
    pub(in super::super) fn cut_exchanges(
        &mut self,
        which: impl Fn(&Exchange) -> bool,
        cx: &mut LoopContext,
    ) -> Next {
        let mut next = Next::Wait;
        for place in 0..self.exchanges.len() {
            if next == Next::Wait && which(&self.exchanges[place]) {
                next = self.cut_exchange(place, cx);
            }
        }
        next
    }

    /// Cuts one exchange, and with it the connection if its protocol has no other way.
    fn cut_exchange(&mut self, place: usize, cx: &mut LoopContext) -> Next {
        self.with_exchange_at(place, |exchange, out| exchange.cut(out, cx));
        let is_aborted = self.protocol().is_some_and(Protocol::is_aborted);
        if is_aborted { Next::Cut } else { Next::Wait }
    }

    fn time_out(&mut self, cx: &mut LoopContext) {
        if let State::Http(protocol) = &mut self.state
            && let ServerEvent::Refused(stream, refused) = protocol.time_out()
        {
            self.answer_refused(stream, refused, cx);
        }
    }

    /// Runs, unless its next turn is queued already: that turn comes after the events, and handles
    /// them.
    fn work_on_event(&mut self, cx: &mut LoopContext) -> Next {
        if self.turn.is_queued { Next::Wait } else { self.work(cx) }
    }

    /// Does what can be done now, up to a turn's worth.
    pub(in super::super) fn work(&mut self, cx: &mut LoopContext) -> Next {
        self.turn.begin(self.io.outbox.sent());
        let next = self.step_until_waiting(cx);
        if !matches!(next, Next::Drop | Next::Hold) {
            self.set_deadline(cx);
            self.release_buffers(cx);
            self.queue_for_offer(cx);
        }
        next
    }

    fn step_until_waiting(&mut self, cx: &mut LoopContext) -> Next {
        for _ in 0..STEPS_PER_TURN {
            if self.turn.is_over(self.io.outbox.sent()) {
                break;
            }
            if matches!(self.state, State::Lingering { .. }) {
                return self.read_out(cx);
            }
            if let State::Opening(_) = self.state {
                match self.open(cx) {
                    Next::Wait => {}
                    next => return next,
                }
            }
            let is_stalled = self.io.input.is_some() && self.process_input(cx);
            let pumped = match self.pump(cx) {
                Ok(pumped) => pumped,
                Err(next) => return next,
            };
            // The next request of a pipeline may be here already.
            let is_free = pumped == Pumped::Complete && self.io.has_input();
            match self.flush(cx) {
                Ok(Flushed::TurnOver) => return Next::Turn,
                Ok(Flushed::All | Flushed::Blocked) => {}
                Err(_) => return Next::Drop,
            }
            let is_sent = self.io.outbox.is_empty();
            if is_sent && self.is_in_phase(ServerPhase::Closed) {
                if self.begin_linger(cx) == Next::Drop {
                    return Next::Drop;
                }
                continue;
            }
            if is_free || (is_stalled && is_sent) {
                continue;
            }
            if pumped != Pumped::Nothing && self.has_more() {
                continue;
            }
            if is_stalled || !self.io.ready.readable || !self.wants_input(is_sent) {
                // No read or write would run into the error: a peer that resets while the app holds
                // its answer back has left (I3).
                return if self.io.ready.failed { Next::Drop } else { Next::Wait };
            }
            let is_handshaking = self.io.is_handshaking();
            if self.turn.has_read_enough() || (is_handshaking && !cx.tls.may_go_on()) {
                break;
            }
            let began = is_handshaking.then(Instant::now);
            let received = self.receive(cx);
            if let Some(began) = began {
                cx.tls.spend(began.elapsed());
            }
            match received {
                Ok(Received::Bytes(_)) => {}
                Ok(Received::Nothing) => return Next::Wait,
                Ok(Received::End | Received::Full) => {
                    if self.end_of_input(cx) == Next::Drop {
                        return Next::Drop;
                    }
                }
                Err(error) => return self.end_by(&error, cx),
            }
        }
        Next::Turn
    }

    /// Moves the bytes of the exchanges, to and from the client and upstreams.
    ///
    /// # Errors
    /// What the loop does instead: a request for an upstream is held back until the turn's other
    /// events are handled; or the connection has to end.
    fn pump(&mut self, cx: &mut LoopContext) -> Result<Pumped, Next> {
        let (mut most, mut place) = (Pumped::Nothing, 0);
        while let Some(exchange) = self.exchanges.get(place) {
            if exchange.is_moving() {
                let forwarding = exchange.forwarding();
                if cx.upstreams.holds_requests && forwarding.is_some_and(Forwarding::is_unsent) {
                    return Err(Next::Hold);
                }
                let pumped = self.with_exchange_at(place, |exchange, out| exchange.pump(out, cx));
                most = most.max(pumped);
            }
            place += 1;
        }
        if self.protocol().is_some_and(Protocol::is_aborted) { Err(Next::Drop) } else { Ok(most) }
    }

    /// Whether more bytes of the exchanges can be moved to the client.
    fn has_more(&self) -> bool {
        self.exchanges.iter().any(|exchange| exchange.has_more(&self.io.outbox))
    }

    /// Whether the peer's next bytes are read now.
    fn wants_input(&self, is_sent: bool) -> bool {
        let Some(protocol) = self.protocol() else { return true };
        let mut takes_content = true;
        for forwarding in self.forwardings() {
            takes_content &= forwarding.can_take_more();
            if forwarding.is_tunnel() {
                return takes_content;
            }
        }
        // Content is read while an answer is sent: a peer may send all of it before it reads.
        let reads_content = protocol.phase() == ServerPhase::Content;
        let beside = || reads_content && self.io.outbox.buffered() <= PIPELINE_BYTES_MAX;
        protocol.wants_input(takes_content) && (is_sent || beside())
    }

    fn receive(&mut self, cx: &mut LoopContext) -> io::Result<Received> {
        let received = self.io.receive(&mut cx.buffers)?;
        if let Received::Bytes(len) = received {
            self.turn.count_received(len);
        }
        Ok(received)
    }

    fn end_of_input(&mut self, cx: &mut LoopContext) -> Next {
        // Before the first request no answer is owed.
        let State::Http(protocol) = &mut self.state else { return Next::Drop };
        if let ServerEvent::Refused(stream, refused) = protocol.receive_eof() {
            self.answer_refused(stream, refused, cx);
        }
        Next::Wait
    }

    /// Receiving has failed.
    fn end_by(&mut self, error: &io::Error, cx: &mut LoopContext) -> Next {
        self.fail_handshake_by(error, cx);
        // The peer may have to read an alert first.
        let has_alert = self.io.is_tls() && self.exchanges.is_empty();
        if has_alert { self.begin_linger(cx) } else { Next::Drop }
    }

    fn flush(&mut self, cx: &mut LoopContext) -> io::Result<Flushed> {
        let flushed = self.io.flush(&mut cx.buffers)?;
        // An exchange may also end without bytes to send.
        self.end_sent_exchanges(cx);
        Ok(flushed)
    }

    fn release_buffers(&mut self, cx: &mut LoopContext) {
        self.io.release(&mut cx.buffers);
        if self.exchanges.is_empty() && self.exchanges.spilled() {
            self.exchanges = SmallVec::new();
        }
    }

    /// No more will be sent: closes our side, and reads the peer's to its end.
    pub(super) fn begin_linger(&mut self, cx: &mut LoopContext) -> Next {
        debug_assert!(self.exchanges.is_empty(), "lingering with an exchange in flight");
        let mut is_done = self.io.has_ended();
        if let Some(protocol) = self.protocol() {
            if protocol.ends_by_reset() {
                self.io.reset_at_close();
                return Next::Drop;
            }
            is_done |= protocol.peer_is_done() && !self.io.ready.readable;
        }
        // Closing the socket says that to a plain peer; TLS demands close_notify first.
        let is_said = is_done && !self.io.is_tls();
        if is_said || self.io.shutdown_write(&mut cx.buffers).is_err() {
            return Next::Drop;
        }
        if is_done && !self.io.has_unsent() {
            return Next::Drop;
        }
        self.state = State::Lingering { windows: 0 };
        if let Some(input) = self.io.input.take() {
            cx.buffers.give_input(input);
        }
        // Bytes may be there although no edge reported any; the first read shows.
        self.io.ready.readable = true;
        Next::Wait
    }

    fn read_out(&mut self, cx: &mut LoopContext) -> Next {
        // Under TLS a full socket may have delayed our close.
        if self.io.flush(&mut cx.buffers).is_err() {
            return Next::Drop;
        }
        while !self.turn.has_read_enough() {
            if !self.io.ready.readable {
                return Next::Wait;
            }
            match self.receive(cx) {
                Ok(Received::Bytes(_)) => self.io.input.as_mut().map_or((), InputBuffer::clear),
                Ok(Received::Nothing) => return Next::Wait,
                Ok(Received::End | Received::Full) | Err(_) => return Next::Drop,
            }
        }
        Next::Turn
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
        super::turn::{REQUESTS_PER_TURN, TURN_INPUT_BYTES},
        *,
    };
    use crate::{
        config::{AccessFormat, LogConfig},
        event_loop::test_support::{self, wait_readable},
        io::Mark,
        logging::AccessLog,
    };

    const READABLE: Ready =
        Ready { readable: true, writable: true, read_closed: false, failed: false };

    /// Sends requests for an unknown host in one piece, and runs the connection until all are
    /// answered.
    fn exchange(
        connection: &mut Connection,
        peer: &mut TcpStream,
        count: usize,
        cx: &mut LoopContext,
    ) {
        peer.write_all("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(count).as_bytes()).unwrap();
        wait_readable(connection.io.socket());
        let mut next = connection.on_ready(READABLE, cx);
        while next == Next::Turn {
            next = connection.work(cx);
        }
        assert_eq!((next, connection.waits_for()), (Next::Wait, Wait::Idle));
    }

    /// Advances time to the connection's deadline, as the loop does; `None` if it has none.
    fn run_to_deadline(connection: &mut Connection, cx: &mut LoopContext) -> Option<Next> {
        while let Some((check_at, token)) = cx.timers.pop_due(u64::MAX) {
            if cx.timers.is_due(&mut connection.waits.deadline, token, check_at, u64::MAX) {
                return Some(connection.on_deadline(cx));
            }
        }
        None
    }

    #[test]
    fn a_turn_answers_a_limited_part_of_a_pipeline_and_later_turns_the_rest() {
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
        let (mut next, mut turns) = (Next::Wait, 0);
        while queued(&connection) < (count + 1) * answer_bytes {
            if next == Next::Wait {
                wait_readable(connection.io.socket());
            }
            let before = queued(&connection);
            next = connection.on_ready(READABLE, cx);
            let answered = (queued(&connection) - before) / answer_bytes;
            assert!(answered <= REQUESTS_PER_TURN.into(), "{answered} in one turn");
            turns += 1;
            // There may be nothing to read.
            let _ = peer.read(&mut [0; 64 * 1024]);
        }
        assert_eq!(connection.waits_for(), Wait::Idle);
        assert!(turns >= count / u64::from(REQUESTS_PER_TURN), "{turns} turns");
    }

    #[test]
    fn a_turn_reads_a_limited_number_of_bytes_and_an_event_adds_no_turn() {
        const CONTENT_BYTES: usize = 2 * TURN_INPUT_BYTES as usize;
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::connection(cx);
        // The kernel takes all of it before the first turn.
        set_socket_send_buffer_size(&peer, CONTENT_BYTES).unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {CONTENT_BYTES}\r\n\r\n");
        peer.write_all(head.as_bytes()).unwrap();
        peer.write_all(&[b'x'; CONTENT_BYTES]).unwrap();
        let (mut next, mut full_turns) = (Next::Wait, 0);
        while connection.io.received_total() < CONTENT_BYTES as u64 {
            if next == Next::Wait {
                wait_readable(connection.io.socket());
            }
            let before = connection.io.received_total();
            next = connection.on_ready(READABLE, cx);
            let read = connection.io.received_total() - before;
            assert!(read < u64::from(TURN_INPUT_BYTES) + 64 * 1024, "{read} bytes in one turn");
            assert!(connection.io.input.is_none(), "nothing is kept between turns");
            if next == Next::Turn {
                full_turns += 1;
                connection.replace_queued(true);
                assert_eq!(connection.on_ready(READABLE, cx), Next::Wait);
                assert_eq!(
                    connection.io.received_total(),
                    before + read,
                    "its turn is still queued"
                );
                connection.replace_queued(false);
            }
        }
        assert!(full_turns > 0, "the content came in small pieces");
    }

    #[test]
    fn an_idle_connection_keeps_no_memory_of_its_pipelines_exchanges() {
        let path = Some("/dev/null".into());
        let log = LogConfig { access: AccessFormat::Json, access_path: path, ..Default::default() };
        let log = AccessLog::open(&log).unwrap().unwrap();
        // With an access log each request has a record of its own, and so its own entry in the
        // list.
        let mut running = test_support::running(Vec::new(), Some(log.for_loop()));
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::connection(cx);
        exchange(&mut connection, &mut peer, 300, cx);
        assert!(connection.exchanges.is_empty() && connection.io.input.is_none());
        assert!(!connection.exchanges.spilled(), "room for {}", connection.exchanges.capacity());
    }

    #[test]
    fn an_idle_connection_with_an_empty_line_in_its_last_read_still_has_a_deadline() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::connection(cx);
        exchange(&mut connection, &mut peer, 1, cx);
        peer.write_all(b"\r\n").unwrap();
        wait_readable(connection.io.socket());
        // The deadline passes before the event arrives. An empty line is no request: it stays idle.
        assert_eq!(run_to_deadline(&mut connection, cx), Some(Next::Wait));
        assert_eq!(connection.waits.current(), Wait::Idle);
        // I7: the next last read finds nothing.
        assert_eq!(run_to_deadline(&mut connection, cx), Some(Next::Wait));
        assert_eq!(connection.waits.current(), Wait::Lingering);
        let mut answers = String::new();
        peer.read_to_string(&mut answers).unwrap();
        assert_eq!(answers.matches("HTTP/1.1").count(), 1);
    }
}
