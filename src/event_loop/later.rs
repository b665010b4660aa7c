//! Answers that come from outside the loop: parking for them, and what is delivered.
//!
//! A delivery names its connection and its exchange; one that comes for an exchange that is not
//! parked any more is dropped. What waits has no deadline: the app may take its time, and whoever
//! holds the [`Later`] sees whether the peer is still there. A peer that does not take what a
//! stream sends loses its connection, so that it cannot hold memory (I9).

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    LoopContext,
    answer::Parked,
    connection::{Connection, Fate},
};
use crate::{
    app::{Deliver, Delivery, Later, Waiting},
    http::Response,
    logging::event,
    message::{ExchangeNumber, LoopCommand},
};

/// An exchange whose answer comes from outside, or the rest of it.
pub(super) struct Awaited {
    number: ExchangeNumber,
    /// Goes with the exchange, and with that whoever answers sees that nobody waits any more.
    _waiting: Waiting,
}

/// Unsent bytes at which a stream's peer is too slow.
const STREAM_BYTES_MAX: u64 = 256 * 1024;

impl Connection {
    /// Parks the exchange and hands out the way to answer it.
    pub(super) fn park_for_later(
        &mut self,
        start: Box<dyn FnOnce(Later) + Send>,
        cx: &mut LoopContext,
    ) {
        let (number, waiting) = (cx.next_number(), Waiting::default());
        let (token, handle) = (self.token, cx.handle.clone());
        let deliver: Deliver = Box::new(move |delivery| {
            let sent = handle.send(LoopCommand::Deliver(token, number, delivery));
            sent.unwrap_or_else(|error| {
                event!(Error, "loop_not_woken", error:% = error);
                false
            })
        });
        let later = Later::new(deliver, &waiting);
        self.parked = Some(Box::new(Parked::Later(Awaited { number, _waiting: waiting })));
        self.wait_anew = true;
        // Whatever becomes of the function, the `Later` answers when it is dropped.
        if catch_unwind(AssertUnwindSafe(|| start(later))).is_err() {
            event!(Error, "app_panicked", host = self.app_host());
        }
    }

    /// Something came for an exchange that was parked here.
    pub(super) fn deliver(
        &mut self,
        number: ExchangeNumber,
        delivery: Delivery,
        cx: &mut LoopContext,
    ) -> Fate {
        let is_awaited = match self.parked.as_deref() {
            Some(Parked::Later(awaited)) => {
                awaited.number == number
                    && matches!(delivery, Delivery::Response(_) | Delivery::Begin(_))
            }
            Some(Parked::Stream(awaited)) => {
                awaited.number == number && matches!(delivery, Delivery::Piece(_) | Delivery::End)
            }
            _ => false,
        };
        if !is_awaited {
            return Fate::Keep;
        }
        match delivery {
            Delivery::Response(response) => {
                self.parked = None;
                self.wait_anew = true;
                self.respond(response, cx);
            }
            Delivery::Begin(head) => self.begin_stream(&head, cx),
            Delivery::Piece(_) if self.io.outbox.unsent() > STREAM_BYTES_MAX => return Fate::Gone,
            Delivery::Piece(piece) => {
                let mut out = self.io.outbox.buffer(&mut cx.buffers);
                self.exchange.write_piece(&piece, &mut out);
                drop(out);
                // Nothing is no sign of life.
                self.wait_anew |= !piece.is_empty();
            }
            Delivery::End => {
                self.parked = None;
                self.exchange.end_stream(&mut self.io.outbox.buffer(&mut cx.buffers));
                self.end_answer();
                // Not every end is something to send.
                self.end_sent_exchanges(cx);
            }
        }
        self.work(cx)
    }

    fn begin_stream(&mut self, head: &Response<'_>, cx: &mut LoopContext) {
        self.parked = match self.parked.take().map(|parked| *parked) {
            Some(Parked::Later(awaited)) => Some(Box::new(Parked::Stream(awaited))),
            parked => parked.map(Box::new),
        };
        self.wait_anew = true;
        self.write_head(head, None, cx);
    }

    /// Whether no answer is on its way.
    pub(super) fn is_settled(&self, cx: &LoopContext) -> bool {
        let is_awaited = matches!(self.parked.as_deref(), Some(Parked::Later(_)));
        // Who came just before another process took over has to be answered, too.
        let is_new = cx.closing.has_successor && self.is_new();
        self.io.outbox.is_empty() && !is_awaited && !is_new
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        sync::Arc,
    };

    use super::*;
    use crate::{
        app::{App, Context, Reply},
        event_loop::{
            io::Ready,
            test_support::{self, hosted_app, wait_readable},
        },
        http::RequestHead,
        registry::NewApp,
    };

    /// Leaves every exchange to the test, which delivers without its `Later`.
    struct Leaves;

    impl App for Leaves {
        fn handle<'a>(&'a self, _request: &RequestHead<'_>, _context: &Context) -> Reply<'a> {
            Reply::Later(Box::new(std::mem::forget))
        }
    }

    fn response(text: &str) -> Delivery {
        Delivery::Response(Response::new(200).with_content(text))
    }

    fn piece(text: &str) -> Delivery {
        Delivery::Piece(text.into())
    }

    /// Whether that had something sent.
    fn deliver(
        number: ExchangeNumber,
        delivery: Delivery,
        connection: &mut Connection,
        cx: &mut LoopContext,
    ) -> bool {
        let before = connection.io.outbox.end();
        assert_eq!(connection.deliver(number, delivery, cx), Fate::Keep);
        connection.io.outbox.end() > before
    }

    #[test]
    fn what_comes_for_another_exchange_or_out_of_turn_is_dropped() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let new =
            NewApp { host: "a".into(), aliases: Vec::new(), app: hosted_app(Arc::new(Leaves)) };
        let life = cx.view.registry().insert(new).unwrap();
        let (mut connection, mut peer) = test_support::connection(cx);
        let ready = Ready { readable: true, writable: true, ..Ready::default() };
        let [first, second] = [1, 2].map(ExchangeNumber);
        peer.write_all("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2).as_bytes()).unwrap();
        wait_readable(connection.socket());
        // The deliveries of nobody's exchange come before there is one.
        assert!(!deliver(first, response("early"), &mut connection, cx));
        assert_eq!(connection.on_ready(ready, cx), Fate::Keep);
        assert!(!deliver(second, response("not yet"), &mut connection, cx));
        assert!(!deliver(first, piece("without a head"), &mut connection, cx));
        assert!(!deliver(first, Delivery::End, &mut connection, cx));
        assert!(deliver(first, response("one"), &mut connection, cx));
        assert_eq!(life.drain().active_connections(), 1, "the next one waits");
        assert!(!deliver(first, response("twice"), &mut connection, cx));
        assert!(deliver(second, Delivery::Begin(Response::new(200)), &mut connection, cx));
        assert!(!deliver(first, piece("late"), &mut connection, cx));
        assert!(!deliver(second, response("within"), &mut connection, cx));
        assert!(deliver(second, piece("two"), &mut connection, cx));
        assert!(deliver(second, Delivery::End, &mut connection, cx));
        assert!(!deliver(second, piece("behind"), &mut connection, cx));
        assert_eq!(life.drain().active_connections(), 0);
        connection.abort(cx);
        let mut answers = String::new();
        peer.read_to_string(&mut answers).unwrap();
        assert!(answers.contains("\r\n\r\noneHTTP/1.1 200 OK\r\n"), "{answers}");
        assert!(answers.ends_with("\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"), "{answers}");
    }
}
