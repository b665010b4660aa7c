//! Answers from outside the loop: parking the exchange, and its deliveries.
//!
//! A delivery names its connection and its exchange; if that exchange isn't parked any more, the
//! delivery is dropped. A parked exchange has no deadline: the app may take its time, and its
//! [`Later`] shows whether the client is still there. A client that doesn't read a stream fast
//! enough loses its connection, so that it can't pile up memory (I9).

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    super::context::LoopContext,
    content::Body,
    outgoing::Outgoing,
    parked::Parked,
    state::{Answering, Exchange},
};
use crate::{
    app::{Delivery, Later, Waiting},
    http::{Fields, Response},
    logging::{End, event},
};

/// Unsent bytes above which a stream's client is too slow.
const STREAM_BYTES_MAX: u64 = 256 * 1024;

/// The result of a delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) enum Delivered {
    /// The exchange has ended, or waits for something else.
    #[default]
    Dropped,
    Taken,
}

impl Exchange {
    /// Parks the exchange, and gives the app a `Later` to answer it.
    pub(super) fn park_for_later(
        &mut self,
        start: Box<dyn FnOnce(Later) + Send>,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let waiting = Waiting::default();
        let later = Later::new(cx.deliveries.way_to(self.id(out)), &waiting);
        self.park(Parked::Later(waiting));
        out.progress();
        // However the function ends, dropping the `Later` answers.
        if catch_unwind(AssertUnwindSafe(|| start(later))).is_err() {
            event!(Error, "app_panicked", host = self.host(out));
        }
    }

    /// Something came from outside for this exchange.
    pub(in super::super) fn deliver(
        &mut self,
        delivery: Delivery,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Delivered {
        let Answering::Parked(parked) = &self.answering else { return Delivered::Dropped };
        let is_awaited = match **parked {
            Parked::Later(_) => matches!(delivery, Delivery::Response(_) | Delivery::Begin(_)),
            Parked::Stream { .. } => matches!(delivery, Delivery::Piece(_) | Delivery::End),
            _ => false,
        };
        if !is_awaited {
            return Delivered::Dropped;
        }
        match delivery {
            Delivery::Response(response) => {
                self.answering = Answering::Here;
                out.progress();
                self.respond(response, out, cx);
            }
            Delivery::Begin(head) => self.begin_stream(head, out, cx),
            Delivery::Piece(_)
                if out.io.outbox.unsent() + self.flight.queued_bytes() as u64
                    > STREAM_BYTES_MAX =>
            {
                out.abort(End::Aborted, &mut self.flight);
            }
            Delivery::Piece(piece) => {
                out.write_piece(&piece, &mut self.flight, cx);
                // An empty piece isn't progress.
                if !piece.is_empty() {
                    out.progress();
                }
            }
            Delivery::End => {
                self.answering = Answering::Here;
                out.end_response(&Fields::NONE, &mut self.flight, cx);
            }
        }
        Delivered::Taken
    }

    fn begin_stream(&mut self, head: Response<'_>, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
        if let Some(Parked::Later(waiting)) = self.unpark_if(|_| true) {
            self.park(Parked::Stream { _waiting: waiting });
        }
        out.progress();
        let body = Body::Pieces { length: None, has_date: false };
        out.write(head, body, &mut self.flight, cx);
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
            connection::{Connection, Next},
            test_support::{self, hosted_app, wait_readable},
        },
        http::RequestHead,
        io::Ready,
        message::ExchangeNumber,
        registry::NewApp,
    };

    /// Leaves every exchange to the test, which delivers without a `Later`.
    struct ForgetsLater;

    impl App for ForgetsLater {
        fn handle<'a>(&'a self, _request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
            Reply::Later(Box::new(std::mem::forget))
        }
    }

    fn response(text: &str) -> Delivery {
        Delivery::Response(Response::new(200).with_content(text))
    }

    fn piece(text: &str) -> Delivery {
        Delivery::Piece(text.into())
    }

    /// Delivers, and returns whether that queued bytes.
    fn deliver(
        number: ExchangeNumber,
        delivery: Delivery,
        connection: &mut Connection,
        cx: &mut LoopContext,
    ) -> bool {
        let before = connection.io.outbox.end();
        assert_eq!(connection.deliver(number, delivery, cx), Next::Wait);
        connection.io.outbox.end() > before
    }

    #[test]
    fn deliveries_for_another_exchange_or_out_of_order_are_dropped() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let new = NewApp {
            host: "a".into(),
            aliases: Vec::new(),
            app: hosted_app(Arc::new(ForgetsLater)),
        };
        let life = cx.view.registry().insert(new).unwrap();
        let (mut connection, mut peer) = test_support::connection(cx);
        let ready = Ready { readable: true, writable: true, ..Ready::default() };
        let [first, second] = [1, 2].map(ExchangeNumber);
        peer.write_all("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2).as_bytes()).unwrap();
        wait_readable(connection.socket());
        // Deliveries that come before their exchange.
        assert!(!deliver(first, response("early"), &mut connection, cx));
        assert_eq!(connection.on_ready(ready, cx), Next::Wait);
        assert!(!deliver(second, response("not yet"), &mut connection, cx));
        assert!(!deliver(first, piece("without a head"), &mut connection, cx));
        assert!(!deliver(first, Delivery::End, &mut connection, cx));
        assert!(deliver(first, response("one"), &mut connection, cx));
        assert_eq!(life.drain().active_connections(), 1, "the next exchange waits");
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
