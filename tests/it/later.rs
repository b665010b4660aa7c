//! Answers that other threads complete: later, as streams, for peers that leave, and during a stop.
//!
//! The app of these tests passes its exchanges to the test, which answers them.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use tidegate::{
    app::{App, Context, Later, Reply, Stream},
    http::{self, RequestHead},
    server::Verdict,
};

use crate::support::{Client, End, Lost, PATIENCE, Response, Site, get, post, wait_until};

/// How long to wait to see that nothing comes: long for a loop, short for a test.
const SILENCE: Duration = Duration::from_millis(50);

/// An app that passes its exchanges to the test. It answers `/now` at once and `/same` on the
/// loop's own thread; `/content` is passed on with its content; `/panic` panics.
struct Desk(Sender<Later>);

impl App for Desk {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        let desk = self.0.clone();
        match request.path() {
            "/now" => Reply::Full(ok("now")),
            "/content" => Reply::Collect(Box::new(move |content| {
                let content = content.to_vec();
                Reply::Later(Box::new(move |later| {
                    later.respond(http::Response::new(200).with_content(content));
                }))
            })),
            "/same" => Reply::Later(Box::new(|later| later.respond(ok("same")))),
            "/panic" => Reply::Later(Box::new(|_| panic!("the function panics, as asked"))),
            _ => Reply::Later(Box::new(move |later| drop(desk.send(later)))),
        }
    }
}

/// A site with a desk under `a.test`, and the exchanges that the desk passes on.
fn site(config: &str) -> (Site, Receiver<Later>) {
    let (sender, laters) = mpsc::channel();
    let site = Site::start(config, |server| {
        server.add_app("a.test", Desk(sender)).expect("the name is free");
    });
    (site, laters)
}

fn ok(content: &str) -> http::Response<'static> {
    http::Response::new(200).with_content(content)
}

fn next(laters: &Receiver<Later>) -> Later {
    laters.recv_timeout(PATIENCE).expect("an exchange")
}

fn begin(laters: &Receiver<Later>) -> Stream {
    let head = http::Response::new(200).with_field("Content-Type", "text/event-stream");
    next(laters).stream(head).expect("the loop is there")
}

fn text(response: &Response) -> (u16, &str) {
    (response.status, response.text())
}

// --- Whole answers

#[test]
fn another_thread_answers_and_the_connection_goes_on() {
    let (site, laters) = site("");
    let mut client = site.connect();
    for round in 0..20 {
        let content = format!("round {round}");
        client.send(get("a.test", "/"));
        let later = next(&laters);
        assert!(later.is_awaited());
        let answer = content.clone();
        thread::spawn(move || later.respond(ok(&answer)));
        let response = client.response();
        assert_eq!((text(&response), response.says_close()), ((200, &*content), false));
    }
    site.remove_drained("a.test");
}

#[test]
fn an_exchange_without_an_answer_is_a_500() {
    let (site, laters) = site("");
    let mut client = site.connect();
    client.send(get("a.test", "/"));
    drop(next(&laters));
    assert_eq!(client.response().status, 500);
    assert_eq!(client.exchange(get("a.test", "/panic")).status, 500);
    assert_eq!(text(&client.exchange(get("a.test", "/now"))), (200, "now"));
    site.remove_drained("a.test");
}

#[test]
fn an_answer_may_be_ready_before_the_app_returns() {
    let (site, _laters) = site("threads = 1");
    let mut client = site.connect();
    client.send(get("a.test", "/same").repeat(50));
    for _ in 0..50 {
        assert_eq!(text(&client.response()), (200, "same"));
    }
    site.remove_drained("a.test");
}

#[test]
fn the_content_comes_before_the_answer() {
    let (site, laters) = site("");
    let mut client = site.connect();
    client.send(post("a.test", "/", 2) + "<");
    assert!(laters.recv_timeout(SILENCE).is_err(), "the content is not complete");
    client.send(">");
    next(&laters).respond(ok("behind"));
    assert_eq!(text(&client.response()), (200, "behind"));
    assert_eq!(text(&client.exchange(post("a.test", "/content", 2) + "<>")), (200, "<>"));
}

#[test]
fn pipelined_requests_wait_for_the_answer_before_them() {
    let (site, laters) = site("");
    let mut client = site.connect();
    client.send(get("a.test", "/1") + &get("a.test", "/2") + &get("a.test", "/now"));
    let first = next(&laters);
    assert!(laters.recv_timeout(SILENCE).is_err(), "the pipeline waits");
    first.respond(ok("first"));
    assert_eq!(text(&client.response()), (200, "first"));
    next(&laters).respond(ok("second"));
    assert_eq!(text(&client.response()), (200, "second"));
    assert_eq!(text(&client.response()), (200, "now"));
}

// --- Peers that leave

#[test]
fn an_answer_to_a_reset_connection_is_dropped() {
    // One loop: the next connection takes the place of the one that is gone.
    let (site, laters) = site("threads = 1");
    let mut client = site.connect();
    client.send(get("a.test", "/"));
    let late = next(&laters);
    client.reset();
    assert!(wait_until(PATIENCE, || !late.is_awaited()), "the exchange outlives its peer");
    let mut client = site.connect();
    client.send(get("a.test", "/"));
    let in_time = next(&laters);
    late.respond(ok("late"));
    assert!(client.stays_silent(SILENCE), "it got another connection's answer");
    in_time.respond(ok("in time"));
    assert_eq!(text(&client.response()), (200, "in time"));
    site.remove_drained("a.test");
}

#[test]
fn a_peer_that_only_closed_its_side_gets_its_answer() {
    let (site, laters) = site("");
    let mut client = site.connect();
    client.send(get("a.test", "/"));
    client.half_close();
    let later = next(&laters);
    assert!(client.stays_silent(SILENCE) && later.is_awaited());
    later.respond(ok("still here"));
    assert_eq!(text(&client.response()), (200, "still here"));
    client.expect_end();
}

// --- Streams

#[test]
fn a_stream_comes_in_pieces_and_the_connection_goes_on() {
    let (site, laters) = site("");
    let mut client = site.connect();
    client.send(get("a.test", "/") + &get("a.test", "/now"));
    let stream = begin(&laters);
    assert!(stream.send(b"one ".to_vec()) && stream.send(Vec::new()));
    client.buffer_at_least(b"HTTP/1.1 200 OK\r\n".len());
    assert!(stream.send(b"two".to_vec()));
    drop(stream);
    let response = client.response();
    assert_eq!(text(&response), (200, "one two"));
    assert_eq!(response.field("Transfer-Encoding"), Some("chunked"));
    assert_eq!((response.field("Content-Length"), response.says_close()), (None, false));
    assert_eq!(text(&client.response()), (200, "now"));
    site.remove_drained("a.test");
}

#[test]
fn a_stream_to_http_1_0_ends_with_the_connection() {
    let (site, laters) = site("");
    let mut client = site.connect();
    client.send("GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n");
    let stream = begin(&laters);
    assert!(stream.send(b"one ".to_vec()) && stream.send(b"two".to_vec()));
    drop(stream);
    let response = client.response();
    assert_eq!((text(&response), response.says_close()), ((200, "one two"), true));
    assert_eq!(response.field("Transfer-Encoding"), None);
    client.expect_end();
    site.remove_drained("a.test");
}

#[test]
fn a_stream_to_head_has_no_content() {
    let (site, laters) = site("");
    let mut client = site.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned() + &get("a.test", "/now"));
    let stream = begin(&laters);
    assert_eq!(client.response_to_head().field("Transfer-Encoding"), Some("chunked"));
    assert!(stream.send(b"unseen".to_vec()));
    assert!(client.stays_silent(SILENCE), "the next answer is behind the stream's end");
    drop(stream);
    assert_eq!(text(&client.response()), (200, "now"));
}

#[test]
fn a_stream_notices_that_its_peer_has_left() {
    let (site, laters) = site("[limits]\nwrite_timeout = \"100ms\"");
    for leave in [Client::reset as fn(Client), drop, |mut client: Client| {
        client.half_close();
        // The client got what was sent, but not the end of the content.
        assert!(matches!(client.try_response(false), Err(Lost::Ended(..))));
    }] {
        let mut client = site.connect();
        client.send(get("a.test", "/"));
        let stream = begin(&laters);
        assert!(stream.send(b"one".to_vec()));
        client.buffer_at_least(1);
        // A stream with nothing to send has no deadline.
        assert!(!wait_until(3 * SILENCE, || !stream.send(Vec::new())));
        leave(client);
        assert!(wait_until(PATIENCE, || !stream.send(Vec::new())), "the receiver is gone");
    }
    site.remove_drained("a.test");
}

#[test]
fn a_stream_that_its_peer_does_not_take_ends() {
    let (site, laters) = site("");
    let mut client = Client::connect_narrow(site.address());
    client.send(get("a.test", "/"));
    let stream = begin(&laters);
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    let ended = wait_until(PATIENCE, || {
        sent += piece.len();
        !stream.send(piece.clone())
    });
    assert!(ended, "{sent} bytes are held for a peer that reads nothing");
    let (rest, end) = client.read_to_end();
    assert!(rest.len() < sent && end != End::Open);
    site.remove_drained("a.test");
}

#[test]
fn a_stream_whose_peer_makes_no_progress_times_out() {
    let (site, laters) = site("[limits]\nwrite_timeout = \"100ms\"");
    let mut client = Client::connect_narrow(site.address());
    client.send(get("a.test", "/"));
    let stream = begin(&laters);
    // More than the kernel takes, in one piece, and nothing after it.
    assert!(stream.send(vec![b'x'; 16 * 1024 * 1024]));
    assert!(wait_until(PATIENCE, || !stream.send(Vec::new())), "the peer reads nothing");
    assert_ne!(client.read_to_end().1, End::Open);
    site.remove_drained("a.test");
}

// --- Drains and the stop

#[test]
fn a_drain_waits_for_later_answers() {
    let (site, laters) = site("");
    let (mut whole, mut streamed) = (site.connect(), site.connect());
    whole.send(get("a.test", "/"));
    let later = next(&laters);
    streamed.send(get("a.test", "/"));
    let stream = begin(&laters);
    let ticket = site.remove("a.test");
    assert_eq!(ticket.wait(SILENCE), None);
    later.respond(ok("whole"));
    assert_eq!(text(&whole.response()), (200, "whole"));
    assert_eq!(ticket.wait(SILENCE), None);
    drop(stream);
    assert_eq!(text(&streamed.response()), (200, ""));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
}

#[test]
fn a_deadline_cuts_exchanges_that_are_never_answered() {
    let (site, laters) = site("drain_timeout = \"100ms\"");
    let (mut whole, mut streamed) = (site.connect(), site.connect());
    whole.send(get("a.test", "/"));
    let later = next(&laters);
    streamed.send(get("a.test", "/"));
    let stream = begin(&laters);
    assert_eq!(site.remove("a.test").wait(PATIENCE), Some(Verdict::Cut(2)));
    assert!(!later.is_awaited() && !stream.send(b"x".to_vec()));
    assert!(matches!(whole.try_response(false), Err(Lost::Ended(..))));
    assert!(matches!(streamed.try_response(false), Err(Lost::Ended(..))));
}

#[test]
fn a_stop_lets_later_answers_finish() {
    // With one loop, the end of the idle connection means that the loop is gated.
    let (mut site, laters) = site("threads = 1");
    let (mut whole, mut streamed) = (site.connect(), site.connect());
    whole.send(get("a.test", "/"));
    let later = next(&laters);
    streamed.send(get("a.test", "/"));
    let stream = begin(&laters);
    streamed.buffer_at_least(1);
    let idle = site.connect();
    site.handle.stop("test");
    idle.expect_end();
    assert!(later.is_awaited() && stream.send(b"to the end".to_vec()));
    later.respond(ok("whole"));
    drop(stream);
    let response = whole.response();
    assert_eq!((text(&response), response.says_close()), ((200, "whole"), true));
    assert_eq!(text(&streamed.response()), (200, "to the end"));
    whole.expect_end();
    streamed.expect_end();
    assert_eq!(site.ended(), Verdict::Drained);
}

#[test]
fn an_answer_after_the_end_is_dropped() {
    let (mut site, laters) = site("");
    let mut client = site.connect();
    client.send(get("a.test", "/1"));
    let later = next(&laters);
    let begun = Instant::now();
    site.handle.stop("test");
    site.handle.stop("no patience");
    assert_eq!(site.ended(), Verdict::Cut(1));
    assert!(begun.elapsed() < PATIENCE);
    assert!(wait_until(PATIENCE, || !later.is_awaited()));
    later.respond(ok("too late"));
    assert!(matches!(client.try_response(false), Err(Lost::Ended(..))));
}
