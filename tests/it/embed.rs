//! The library as an embedder uses it: its own apps, added and removed while others serve; counts
//! that return to zero, exact verdicts, a stop that ends.
//!
//! Clients keep exchanges in flight: by content without its last byte, or by not reading the
//! answer. So no test depends on the speed of the machine.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tidegate::{
    app::{App, Context, Reply, Segment},
    http::{self, RequestHead},
    server::{ChangeError, DrainTicket, Verdict},
};

use crate::support::{
    Act, Client, End, Held, Lost, PATIENCE, Response, Site, Stage, Stuck, get, logged, pattern,
    post, wait_until,
};

const MS: Duration = Duration::from_millis(1);

fn text(response: &Response) -> (u16, &str) {
    (response.status, response.text())
}

fn is_running(ticket: &DrainTicket) -> bool {
    ticket.wait(Duration::ZERO).is_none()
}

/// Fails the test unless the answer says that the app drains.
fn assert_draining(response: &Response) {
    assert_eq!(response.status, 503);
    let retry_after: u64 = response.field("Retry-After").expect("Retry-After").parse().expect("s");
    assert!((1..=30).contains(&retry_after), "Retry-After: {retry_after}");
    let document = format!("{{\"error\":\"Service draining\",\"retry_after_s\":{retry_after}}}");
    assert_eq!(response.text(), document);
    assert!(!response.says_close(), "the connection may serve other apps");
}

/// Fails the test unless the server ends the connection without a response.
fn assert_cut(mut client: Client) {
    let lost = client.try_response(false);
    assert!(matches!(lost, Err(Lost::Ended(..))), "{lost:?}");
}

/// Reads a connection whose answer is cut to its end. Returns the number of bytes.
fn read_rest(mut client: Client) -> (usize, End) {
    let (rest, end) = client.read_to_end();
    (rest.len(), end)
}

// --- Apps come and go

#[test]
fn one_app_is_removed_while_another_serves() {
    let (a, b) = (Stage::new("a"), Stage::new("b"));
    let site = Site::with_stages("", &[("a.test", &a), ("b.test", &b)]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic: Vec<_> = (0..2).map(|_| scope.spawn(|| undisturbed(&site, &stop))).collect();
        let mut kept = site.connect();
        assert_eq!(text(&kept.exchange(get("a.test", "/"))), (200, "a"));
        let held = Held::begin_all(&site, "a.test", &a, 3);
        let ticket = site.remove("a.test");
        for _ in 0..3 {
            assert_draining(&kept.exchange(get("a.test", "/")));
            assert_draining(&site.connect().exchange(get("a.test", "/")));
        }
        assert!(is_running(&ticket));
        let mut ended: Vec<Client> = held.into_iter().map(|held| held.end("a")).collect();
        assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
        assert_eq!(ticket.wait(Duration::ZERO), None, "a verdict is given once");
        ended.push(kept);
        for client in &mut ended {
            assert_eq!(client.exchange(get("a.test", "/")).status, 404);
            assert_eq!(text(&client.exchange(get("b.test", "/"))), (200, "b"));
        }
        stop.store(true, SeqCst);
        for thread in traffic {
            assert!(thread.join().expect("the other app is undisturbed") > 0);
        }
    });
    assert_eq!(a.asked(), 4, "I1: a draining app is not asked");
}

/// Asks the other app on one connection, until `stop`. Returns how often.
fn undisturbed(site: &Site, stop: &AtomicBool) -> usize {
    let mut client = site.connect();
    let mut answers = 0;
    while !stop.load(SeqCst) {
        let response = client.exchange(get("b.test", "/"));
        assert_eq!((text(&response), response.says_close()), ((200, "b"), false));
        answers += 1;
    }
    answers
}

#[test]
fn a_request_whose_head_is_complete_after_the_removal_is_not_admitted() {
    let a = Stage::new("a");
    let site = Site::with_stages("", &[("a.test", &a)]);
    let held = Held::begin_all(&site, "a.test", &a, 1);
    let mut client = site.connect();
    let request = get("a.test", "/");
    client.send(&request[..20]);
    let ticket = site.remove("a.test");
    client.send(&request[20..]);
    assert_draining(&client.response());
    held.into_iter().for_each(|held| drop(held.end("a")));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
}

#[test]
fn remove_and_add_the_same_host_while_an_old_exchange_runs() {
    let (old, new, third) = (Stage::new("old"), Stage::new("new"), Stage::new("third"));
    let site = Site::with_stages("", &[("a.test", &old)]);
    let old_held = Held::begin_all(&site, "a.test", &old, 2);
    let old_ticket = site.remove("a.test");
    let mut client = site.connect();
    assert_draining(&client.exchange(get("a.test", "/")));
    site.handle.add_app("a.test", new.clone()).expect("a draining life gives its name away");
    assert_eq!(text(&client.exchange(get("a.test", "/"))), (200, "new"));
    assert_eq!(text(&site.connect().exchange(get("a.test", "/"))), (200, "new"));
    let new_held = Held::begin_all(&site, "a.test", &new, 3);
    let new_ticket = site.remove("a.test");
    assert_draining(&client.exchange(get("a.test", "/")));
    assert!(is_running(&old_ticket) && is_running(&new_ticket));
    old_held.into_iter().for_each(|held| drop(held.end("old")));
    assert_eq!(old_ticket.wait(PATIENCE), Some(Verdict::Drained));
    // I4: the end of the old life affects neither the count nor the name of the new one.
    assert_draining(&client.exchange(get("a.test", "/")));
    assert!(is_running(&new_ticket));
    new_held.into_iter().for_each(|held| drop(held.end("new")));
    assert_eq!(new_ticket.wait(PATIENCE), Some(Verdict::Drained));
    assert_eq!(client.exchange(get("a.test", "/")).status, 404);
    site.handle.add_app("a.test", third).expect("the name is free");
    assert_eq!(text(&client.exchange(get("a.test", "/"))), (200, "third"));
    site.remove_drained("a.test");
}

#[test]
fn a_new_life_may_end_before_the_old_one() {
    let (old, new, third) = (Stage::new("old"), Stage::new("new"), Stage::new("third"));
    let site = Site::with_stages("", &[("a.test", &old)]);
    let mut held = Held::begin_all(&site, "a.test", &old, 1);
    let old_ticket = site.remove("a.test");
    site.handle.add_app("a.test", new.clone()).expect("the name is free");
    let mut client = site.connect();
    assert_eq!(text(&client.exchange(get("a.test", "/"))), (200, "new"));
    site.remove_drained("a.test");
    assert_eq!(client.exchange(get("a.test", "/")).status, 404, "the old life lost its name");
    assert!(is_running(&old_ticket));
    site.handle.add_app("a.test", third.clone()).expect("the name is free");
    let third_held = Held::begin_all(&site, "a.test", &third, 1);
    // The same connection: its next request belongs to the life that has the name then.
    let mut client = held.remove(0).end("old");
    assert_eq!(old_ticket.wait(PATIENCE), Some(Verdict::Drained));
    assert_eq!(text(&client.exchange(get("a.test", "/"))), (200, "third"));
    third_held.into_iter().for_each(|held| drop(held.end("third")));
    site.remove_drained("a.test");
}

#[test]
fn an_app_that_was_removed_is_dropped_while_its_connections_stay() {
    let alive = Arc::new(());
    let gone = Arc::downgrade(&alive);
    let site = Site::start("", |server| {
        let app = Act(move |_: &RequestHead<'_>, _: &Context<'_>| {
            let _ = &alive;
            Reply::Full(http::Response::new(204))
        });
        server.add_app("a.test", app).expect("the name is free");
    });
    let mut clients: Vec<Client> = (0..8).map(|_| site.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.exchange(get("a.test", "/")).status, 204);
    }
    site.remove_drained("a.test");
    // This needs no request: the loops are notified.
    assert!(wait_until(PATIENCE, || gone.strong_count() == 0), "the app stays in memory");
    for client in &mut clients {
        assert_eq!(client.exchange(get("a.test", "/")).status, 404);
    }
}

#[test]
fn names_are_held_by_one_app_and_removed_by_their_own() {
    let config = "[apps.\"main.test\"]\naliases = [\"alias.test\", \"*.alias.test\"]\n\
                  respond = { body = \"main\" }";
    let a = Stage::new("a");
    let mut site = Site::start(config, |server| {
        server.add_app("UPPER.test", a.clone()).expect("the name is free");
        let taken = server.add_app("alias.test", a.clone()).expect_err("an alias is taken too");
        assert_eq!(taken.to_string(), "the name alias.test is served by the app main.test");
    });
    let handle = site.handle.clone();
    for name in ["main.test", "alias.test", "*.alias.test", "MAIN.test"] {
        match handle.add_app(name, a.clone()) {
            Err(ChangeError::NameTaken(taken)) => {
                let lower = name.to_ascii_lowercase();
                assert_eq!((&*taken.name, &*taken.by), (&*lower, "main.test"));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    for name in ["alias.test", "*.alias.test", "x.alias.test", "unknown.test", ""] {
        assert_eq!(handle.remove_app(name).unwrap_err(), ChangeError::UnknownHost, "{name}");
    }
    let mut client = site.connect();
    assert_eq!(text(&client.exchange(get("upper.TEST", "/"))), (200, "a"));
    let held = Held::begin_all(&site, "upper.test", &a, 1);
    let ticket = site.remove("Upper.Test");
    assert_eq!(handle.remove_app("upper.test").unwrap_err(), ChangeError::BeingRemoved);
    held.into_iter().for_each(|held| drop(held.end("a")));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
    assert_eq!(handle.remove_app("upper.test").unwrap_err(), ChangeError::UnknownHost);
    site.remove_drained("main.test");
    for name in ["main.test", "alias.test", "x.alias.test"] {
        assert_eq!(client.exchange(get(name, "/")).status, 404, "{name}");
    }
    drop(client);
    handle.stop("end");
    assert_eq!(site.ended(), Verdict::Drained);
    assert_eq!(handle.remove_app("main.test").unwrap_err(), ChangeError::Ended);
    assert_eq!(handle.add_app("main.test", a), Err(ChangeError::Ended));
    handle.stop("a stop of what has ended does nothing");
}

#[test]
fn an_app_that_is_removed_before_the_server_runs_is_never_served() {
    let mut ticket = None;
    let site = Site::start("", |server| {
        server.add_app("a.test", Stage::new("old")).expect("the name is free");
        server.add_app("b.test", Stage::new("b")).expect("the name is free");
        ticket = Some(server.remove_app("a.test").expect("the app is there"));
        drop(server.remove_app("b.test").expect("the app is there"));
        server.add_app("b.test", Stage::new("new")).expect("a draining life gives its name away");
    });
    let mut client = site.connect();
    assert_eq!(ticket.expect("set").wait(PATIENCE), Some(Verdict::Drained));
    assert_eq!(client.exchange(get("a.test", "/")).status, 404);
    assert_eq!(text(&client.exchange(get("b.test", "/"))), (200, "new"));
}

#[test]
fn a_wildcard_serves_what_has_no_name_of_its_own() {
    let stages = ["all", "exact", "deep"].map(Stage::new);
    let names = ["*.wild.test", "x.wild.test", "*.deep.wild.test"];
    let named: Vec<_> = names.into_iter().zip(&stages).collect();
    let site = Site::with_stages("", &named);
    let mut client = site.connect();
    let mut ask = |host| {
        let response = client.exchange(get(host, "/"));
        (response.status, response.text().to_owned())
    };
    for (host, name) in [
        ("y.wild.test", "all"),
        ("x.wild.test", "exact"),
        ("X.Wild.Test:8080", "exact"),
        ("a.x.wild.test", "all"),
        ("q.deep.wild.test", "deep"),
        ("deep.wild.test.", "all"),
    ] {
        assert_eq!(ask(host), (200, name.to_owned()), "{host}");
    }
    assert_eq!(ask("wild.test").0, 404);
    assert_eq!(site.connect().exchange(get(".wild.test", "/")).status, 400);
    site.remove_drained("x.wild.test");
    assert_eq!(ask("x.wild.test").1, "all", "the wildcard names this host too");
    site.remove_drained("*.wild.test");
    for host in ["x.wild.test", "y.wild.test", "a.x.wild.test"] {
        assert_eq!(ask(host).0, 404, "{host}");
    }
    assert_eq!(ask("q.deep.wild.test").1, "deep");
}

#[test]
fn a_default_app_answers_for_unknown_and_removed_hosts_until_it_leaves() {
    let config = "default_app = \"main.test\"\n\
                  [apps.\"main.test\"]\nrespond = { body = \"main\" }";
    let a = Stage::new("a");
    let site = Site::start(config, |server| {
        server.add_app("a.test", a.clone()).expect("the name is free");
    });
    let mut client = site.connect();
    assert_eq!(text(&client.exchange(get("unknown.test", "/"))), (200, "main"));
    assert_eq!(
        text(&client.exchange("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")).1,
        "main"
    );
    let held = Held::begin_all(&site, "a.test", &a, 1);
    let ticket = site.remove("a.test");
    assert_draining(&client.exchange(get("a.test", "/")));
    held.into_iter().for_each(|held| drop(held.end("a")));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
    assert_eq!(text(&client.exchange(get("a.test", "/"))), (200, "main"));
    site.remove_drained("main.test");
    for host in ["unknown.test", "main.test", "a.test"] {
        assert_eq!(client.exchange(get(host, "/")).status, 404, "I10: {host}");
    }
    site.handle.add_app("main.test", a).expect("the name is free");
    assert_eq!(text(&client.exchange(get("unknown.test", "/"))), (200, "a"));
}

// --- Deadlines and verdicts

#[test]
fn the_deadline_of_an_app_cuts_the_remaining_exchanges() {
    let (a, b) = (Stage::new("a"), Stage::new("b"));
    let stages: [(&str, &Stage); 2] = [("cut.test", &a), ("b.test", &b)];
    let site = Site::with_stages("drain_timeout = \"250ms\"", &stages);
    let other = Held::begin_all(&site, "b.test", &b, 1);
    let mut kept = site.connect();
    assert_eq!(kept.exchange(get("cut.test", "/")).status, 200);
    let held = Held::begin_all(&site, "cut.test", &a, 3);
    let mut delayed = site.connect();
    delayed.send(get("cut.test", "/after/60000"));
    let mut download = Client::connect_narrow(site.address());
    download.send(get("cut.test", "/large"));
    a.wait_asked(6);
    let begun = Instant::now();
    let ticket = site.remove("cut.test");
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Cut(5)));
    assert!(begun.elapsed() >= 249 * MS, "{:?}", begun.elapsed());
    held.into_iter().for_each(|held| assert_cut(held.0));
    assert_cut(delayed);
    assert!(read_rest(download).0 < Stage::LARGE);
    assert_eq!(kept.exchange(get("cut.test", "/")).status, 404);
    other.into_iter().for_each(|held| drop(held.end("b")));
    assert_eq!(
        logged("cut.test"),
        ["app_added", "app_drain_start", "app_drain_cut", "app_drain_timeout", "app_removed"],
        "I2"
    );
    // A new life has its own counts.
    site.handle.add_app("cut.test", Stage::new("new")).expect("the name is free");
    assert_eq!(text(&kept.exchange(get("cut.test", "/"))), (200, "new"));
    site.remove_drained("cut.test");
}

#[test]
fn a_deadline_of_nothing_cuts_at_once() {
    let a = Stage::new("a");
    let site = Site::with_stages("drain_timeout = \"0s\"", &[("a.test", &a)]);
    let held = Held::begin_all(&site, "a.test", &a, 2);
    assert_eq!(site.remove("a.test").wait(PATIENCE), Some(Verdict::Cut(2)));
    held.into_iter().for_each(|held| assert_cut(held.0));
}

#[test]
fn the_verdict_follows_the_last_byte() {
    let (a, file) = (Stage::new("a"), temporary_file(&pattern(Stage::LARGE)));
    let site = Site::with_stages("", &[("a.test", &a)]);
    site.handle.add_app("files.test", large_file(file)).expect("the name is free");
    let mut delays = Vec::new();
    for host in ["a.test", "files.test"] {
        let mut client = Client::connect_narrow(site.address());
        client.send(get(host, "/large"));
        client.buffer_at_least(1);
        let ticket = site.remove(host);
        // The kernel's buffers hold less than the other half.
        client.buffer_at_least(Stage::LARGE / 2);
        assert!(is_running(&ticket), "{host}: drained before the last byte is sent");
        delays.push(delay_of_verdict(&ticket, || {
            assert_eq!(client.response().body.len(), Stage::LARGE);
        }));
    }
    for _ in 0..20 {
        site.handle.add_app("a.test", a.clone()).expect("the name is free");
        let mut held = Held::begin_all(&site, "a.test", &a, 1);
        let (ticket, held) = (site.remove("a.test"), held.remove(0));
        delays.push(delay_of_verdict(&ticket, || drop(held.end("a"))));
    }
    delays.sort_unstable();
    println!("behind the client's last byte: {:?}", &delays);
    assert!(delays.iter().all(|delay| *delay < Duration::from_secs(1)), "{delays:?}");
}

/// How long after the end of `read` the drain is over; zero if it was over before.
fn delay_of_verdict(ticket: &DrainTicket, read: impl FnOnce()) -> Duration {
    thread::scope(|scope| {
        let drained = scope.spawn(|| (ticket.wait(PATIENCE), Instant::now()));
        read();
        let end = Instant::now();
        let (verdict, at) = drained.join().expect("no panic");
        assert_eq!(verdict, Some(Verdict::Drained));
        at.saturating_duration_since(end)
    })
}

#[test]
fn what_one_deadline_cut_is_not_in_the_verdict_of_another_app() {
    let (a, b) = (Stage::new("a"), Stage::new("b"));
    let stages: [(&str, &Stage); 2] = [("a.test", &a), ("b.test", &b)];
    let site = Site::with_stages("drain_timeout = \"50ms\"", &stages);
    let both = get("a.test", "/bulk") + &get("b.test", "/bulk");
    // Answers of both apps wait on one connection for a client that doesn't read: the cut of one
    // ends all of them. The kernel decides how much of an answer its buffers take.
    let cut = (0..20).any(|_| {
        let mut client = Client::connect_narrow(site.address());
        client.send(both.repeat(1000));
        wait_settled(|| a.asked());
        let verdict = site.remove("a.test").wait(PATIENCE).expect("a verdict");
        site.handle.add_app("a.test", a.clone()).expect("the name is free");
        if verdict == Verdict::Drained {
            return false;
        }
        // When the connection ends, all exchanges on it are counted.
        client.read_to_end();
        true
    });
    assert!(cut, "no answer had to wait");
    site.remove_drained("b.test");
}

/// Waits until a growing number stops growing.
fn wait_settled(number: impl Fn() -> usize) {
    let (mut last, mut since) = (number(), Instant::now());
    let settled = wait_until(PATIENCE, || {
        let now = number();
        if now != last || now == 0 {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > 50 * MS
    });
    assert!(settled, "it does not stop growing");
}

#[test]
fn pipelined_apps_keep_their_order_and_their_own_counts() {
    let (a, b) = (Stage::new("a"), Stage::new("b"));
    let site = Site::with_stages("", &[("a.test", &a), ("b.test", &b)]);
    // A's answer is sent, B's is owed: A's drain doesn't wait for B, nor the other way round.
    let mut client = site.connect();
    client.send(get("a.test", "/") + &post("b.test", "/content", 2) + "<");
    b.wait_asked(1);
    site.remove_drained("a.test");
    let ticket = site.remove("b.test");
    assert_eq!(text(&client.response()), (200, "a"));
    assert!(is_running(&ticket));
    // Later requests on the same connection find neither app.
    client.send(">".to_owned() + &get("a.test", "/") + &get("b.test", "/"));
    assert_eq!(text(&client.response()), (200, "b<>"));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
    assert_eq!(client.response().status, 404);
    assert!(matches!(client.response().status, 404 | 503), "the last byte may not be counted yet");
}

#[test]
fn a_request_that_waits_behind_another_app_is_not_in_flight() {
    let (a, b) = (Stage::new("a"), Stage::new("b"));
    let site = Site::with_stages("", &[("a.test", &a), ("b.test", &b)]);
    let mut client = Client::connect_narrow(site.address());
    client.send(get("b.test", "/large") + &get("a.test", "/") + &get("b.test", "/"));
    b.wait_asked(1);
    site.remove_drained("a.test");
    let large = client.response();
    assert_eq!((large.status, large.body.len()), (200, Stage::LARGE));
    assert_eq!(client.response().status, 404);
    assert_eq!(text(&client.response()), (200, "b"));
    assert_eq!(a.asked(), 0);
    site.remove_drained("b.test");
}

#[test]
fn pipelined_requests_of_a_life_that_leaves_are_refused_in_order() {
    let (old, new) = (Stage::new("old"), Stage::new("new"));
    let site = Site::with_stages("", &[("a.test", &old)]);
    let mut client = Client::connect_narrow(site.address());
    client.send(get("a.test", "/large") + &get("a.test", "/"));
    old.wait_asked(1);
    let ticket = site.remove("a.test");
    assert!(is_running(&ticket));
    assert_eq!(client.response().body.len(), Stage::LARGE);
    assert!(matches!(client.response().status, 404 | 503));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
    // The same, but by then another app has the name.
    site.handle.add_app("a.test", old.clone()).expect("the name is free");
    client.send(get("a.test", "/large") + &get("a.test", "/"));
    old.wait_asked(2);
    let ticket = site.remove("a.test");
    site.handle.add_app("a.test", new).expect("the name is free");
    assert_eq!(client.response().body.len(), Stage::LARGE);
    assert_eq!(text(&client.response()), (200, "new"));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
    site.remove_drained("a.test");
}

#[test]
fn an_app_may_replace_or_remove_itself_while_it_answers() {
    for (path, next) in [("/replace", 200), ("/remove", 503)] {
        let (sender, tickets) = mpsc::channel();
        let site = Site::start("threads = 1", |server| {
            let (handle, sender) = (server.handle(), Mutex::new(sender));
            let app = Act(move |request: &RequestHead<'_>, _: &Context<'_>| {
                let ticket = handle.remove_app("a.test").expect("it is there");
                sender.lock().expect("no panic").send(ticket).expect("the test waits");
                if request.path() == "/replace" {
                    handle.add_app("a.test", Stage::new("new")).expect("the name is free");
                }
                Reply::Full(http::Response::new(200).with_content("old"))
            });
            server.add_app("a.test", app).expect("the name is free");
        });
        // The second request is read before the first answer is sent.
        let mut client = site.connect();
        client.send(get("a.test", path) + &get("a.test", "/"));
        assert_eq!(text(&client.response()), (200, "old"));
        let response = client.response();
        assert_eq!(response.status, next, "{path}");
        assert!(next != 200 || response.text() == "new");
        let ticket = tickets.recv_timeout(PATIENCE).expect("a ticket");
        assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained), "{path}");
    }
}

#[test]
fn many_slow_exchanges_are_all_answered_or_refused() {
    let a = Stage::new("a");
    let site = Site::with_stages("threads = 4", &[("a.test", &a)]);
    let statuses = thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| ask_until_unknown(&site, 50))).collect();
        wait_until(PATIENCE, || a.asked() >= 150);
        let ticket = site.remove("a.test");
        assert_draining_or_gone(&site);
        assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
        assert_eq!(site.connect().exchange(get("a.test", "/")).status, 404);
        let lists = asking.into_iter().map(|thread| thread.join().expect("every answer is whole"));
        lists.flatten().collect::<Vec<u16>>()
    });
    let count = |status| statuses.iter().filter(|own| **own == status).count();
    println!("200: {}, 503: {}, 404: {}", count(200), count(503), count(404));
    assert_eq!(count(200), a.asked(), "admitted requests were answered");
    assert_eq!(count(404), 200, "each connection lives to the end");
    assert_eq!(count(200) + count(503) + count(404), statuses.len());
}

fn assert_draining_or_gone(site: &Site) {
    assert!(matches!(site.connect().exchange(get("a.test", "/")).status, 503 | 404), "I1");
}

/// Asks for a slow answer on this many connections at once, repeatedly until the host is unknown.
/// Returns all statuses. On each connection 200 comes before 503, and 503 before 404.
fn ask_until_unknown(site: &Site, connections: usize) -> Vec<u16> {
    let mut clients: Vec<Client> = (0..connections).map(|_| site.connect()).collect();
    let mut lasts = vec![200; connections];
    let mut statuses = Vec::new();
    let rank = |status| [200, 503, 404].iter().position(|own| *own == status).expect("a status");
    while !clients.is_empty() {
        for client in &mut clients {
            client.send(get("a.test", "/after/100"));
        }
        for (client, last) in clients.iter_mut().zip(&mut lasts) {
            let response = client.response();
            assert!(rank(response.status) >= rank(*last), "{} behind {last}", response.status);
            assert!(response.status != 200 || response.text() == "a");
            *last = response.status;
            statuses.push(response.status);
        }
        let mut at = lasts.iter();
        clients.retain(|_| at.next() != Some(&404));
        lasts.retain(|last| *last != 404);
    }
    statuses
}

// --- Apps that fail, clients that leave

#[test]
fn a_panic_in_an_app_is_a_500_and_the_count_returns_to_zero() {
    for (host, path) in [("now.test", "/panic"), ("late.test", "/panic-late")] {
        let a = Stage::new("a");
        let site = Site::with_stages("", &[(host, &a)]);
        let mut client = site.connect();
        for request in [get(host, path), post(host, path, 3) + "abc"] {
            let response = client.exchange(request);
            assert_eq!(text(&response), (500, "{\"error\":\"Internal server error\"}"), "{path}");
            assert!(!response.says_close(), "{path}");
            assert_eq!(text(&client.exchange(get(host, "/"))), (200, "a"), "{path}");
        }
        // Pipelined between others, and to HEAD.
        client.send(get(host, "/") + &get(host, path) + &get(host, "/"));
        let statuses = [(); 3].map(|()| client.response().status);
        assert_eq!(statuses, [200, 500, 200], "{path}");
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.response_to_head().status, 500, "{path}");
        site.remove_drained(host);
        assert_eq!(client.exchange(get(host, "/")).status, 404, "{path}");
    }
}

#[test]
fn an_app_reads_content() {
    let a = Stage::new("a");
    let site = Site::with_stages("[limits]\nbody_bytes = \"1KiB\"", &[("a.test", &a)]);
    let mut client = site.connect();
    let full = "x".repeat(1024);
    let chunked = "POST /content HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (request, content) in [
        (get("a.test", "/content"), ""),
        (post("a.test", "/content", 0), ""),
        (post("a.test", "/content", 5) + "hello", "hello"),
        (post("a.test", "/content", 1024) + &full, &*full),
        (chunked.to_owned() + "0\r\n\r\n", ""),
        (chunked.to_owned() + "3;x=y\r\nhel\r\n02\r\nlo\r\n0\r\nT: v\r\n\r\n", "hello"),
        (
            format!("{chunked}1ff\r\n{}\r\n201\r\n{}\r\n0\r\n\r\n", &full[..511], &full[511..]),
            &full,
        ),
    ] {
        let expected = format!("a{content}");
        assert_eq!(text(&client.exchange(&request)), (200, &*expected), "{request:?}");
        client.send_in_pieces(request.as_bytes(), 50).expect("send");
        assert_eq!(text(&client.response()), (200, &*expected), "{request:?} in pieces");
    }
    let asked = a.asked();
    let too_much = site.connect().exchange(post("a.test", "/content", 1025));
    assert_eq!((too_much.status, too_much.says_close(), a.asked()), (413, true, asked));
    let mut client = site.connect();
    client.send(format!("{chunked}400\r\n{full}\r\n1\r\n"));
    assert_eq!(client.response().status, 413);
    client.expect_end();
    site.remove_drained("a.test");
}

#[test]
fn a_client_that_expects_100_gets_it() {
    let a = Stage::new("a");
    let site = Site::with_stages("", &[("a.test", &a)]);
    let mut client = site.connect();
    let expects = "Expect: 100-continue\r\n\r\n";
    for (length, content) in
        [("Content-Length: 2", "<>"), ("Transfer-Encoding: chunked", "2\r\n<>\r\n0\r\n\r\n")]
    {
        let fields = format!("POST /content HTTP/1.1\r\nHost: a.test\r\n{length}\r\n");
        assert_eq!(client.exchange(fields + expects).status, 100);
        let response = client.exchange(content);
        assert_eq!((text(&response), response.says_close()), ((200, "a<>"), false));
    }
    let ticket = {
        let head = "POST /content HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n".to_owned();
        assert_eq!(client.exchange(head + expects).status, 100);
        site.remove("a.test")
    };
    assert!(is_running(&ticket), "an exchange with a 100 is in flight");
    assert_eq!(text(&client.exchange("<>")), (200, "a<>"));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
    // A client gets no 100 for content that the app does not need.
    let head = "POST /content HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n".to_owned();
    let response = client.exchange(head + expects);
    assert_eq!((response.status, response.says_close()), (404, true));
}

#[test]
fn a_client_that_leaves_within_its_content_returns_the_count() {
    let a = Stage::new("a");
    let site = Site::with_stages("", &[("a.test", &a)]);
    let mut held = Held::begin_all(&site, "a.test", &a, 3).into_iter().map(|held| held.0);
    let mut next = || held.next().expect("three");
    let ticket = site.remove("a.test");
    next().reset();
    drop(next());
    assert!(is_running(&ticket));
    let mut last = next();
    last.half_close();
    assert_eq!(last.response().status, 400);
    last.expect_end();
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained));
}

#[test]
fn a_client_that_resets_during_a_slow_answer_returns_the_count() {
    let a = Stage::new("a");
    let site = Site::with_stages("", &[("a.test", &a)]);
    for request in [
        get("a.test", "/after/60000"),
        get("a.test", "/after/60000") + &get("a.test", "/"),
        get("a.test", "/") + &get("a.test", "/after/60000"),
        post("a.test", "/after/60000", 1) + "x",
    ] {
        let before = a.asked();
        let mut client = site.connect();
        client.send(&request);
        wait_until(PATIENCE, || a.asked() > before);
        client.reset();
    }
    site.remove_drained("a.test");
}

#[test]
fn a_client_that_only_closes_its_side_gets_its_slow_answer() {
    let a = Stage::new("a");
    let site = Site::with_stages("", &[("a.test", &a)]);
    let mut client = site.connect();
    client.send(get("a.test", "/after/100"));
    client.half_close();
    a.wait_asked(1);
    let mut left = site.connect();
    left.send(get("a.test", "/after/100"));
    a.wait_asked(2);
    drop(left);
    let ticket = site.remove("a.test");
    assert_eq!(text(&client.response()), (200, "a"));
    client.expect_end();
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained), "also for the client that left");
}

#[test]
fn a_client_that_leaves_a_download_returns_the_count() {
    let a = Stage::new("a");
    let site = Site::with_stages("", &[("a.test", &a)]);
    let file = temporary_file(&pattern(Stage::LARGE));
    site.handle.add_app("files.test", large_file(file)).expect("the name is free");
    for host in ["a.test", "files.test"] {
        let mut clients: Vec<Client> = (0..3)
            .map(|_| {
                let mut client = Client::connect_narrow(site.address());
                client.send(get(host, "/large"));
                client.buffer_at_least(1);
                client
            })
            .collect();
        let ticket = site.remove(host);
        clients.remove(0).reset();
        drop(clients.remove(0));
        assert!(is_running(&ticket), "{host}");
        let mut last = clients.remove(0);
        last.half_close();
        assert_eq!(last.response().body.len(), Stage::LARGE, "{host}");
        last.expect_end();
        assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained), "{host}");
    }
}

#[test]
fn a_file_that_shrinks_ends_its_connection_and_returns_the_count() {
    let file = temporary_file(&pattern(10_000));
    let site = Site::start("", |server| {
        let files = move |_: &RequestHead<'_>, _: &Context<'_>| Reply::Files {
            head: http::Response::new(200),
            content: vec![Segment::File { file: Arc::clone(&file), offset: 0, length: 10_001 }],
        };
        server.add_app("a.test", Act(files)).expect("the name is free");
    });
    let mut client = site.connect();
    client.send(get("a.test", "/"));
    assert!(matches!(client.try_response(false), Err(Lost::Ended(_, 10_000..))));
    site.remove_drained("a.test");
}

// --- What replies come to

fn temporary_file(content: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(content).expect("room for it");
    Arc::new(file)
}

/// An app whose every answer is a file of [`Stage::LARGE`] bytes.
fn large_file(file: Arc<File>) -> impl App {
    Act(move |_: &RequestHead<'_>, _: &Context<'_>| Reply::Files {
        head: http::Response::new(200),
        content: vec![Segment::File {
            file: Arc::clone(&file),
            offset: 0,
            length: Stage::LARGE as u64,
        }],
    })
}

#[test]
fn a_reply_of_several_segments_is_sent_in_order() {
    let (content, large) = (pattern(300_000), pattern(Stage::LARGE));
    let (file, large_file) = (temporary_file(&content), temporary_file(&large));
    let part = |file: &Arc<File>, offset: u64, length: u64| Segment::File {
        file: Arc::clone(file),
        offset,
        length,
    };
    let whole = Stage::LARGE as u64;
    let cases: BTreeMap<&str, (Vec<Segment>, Vec<u8>)> = [
        ("/nothing", (vec![], vec![])),
        ("/empty", (vec![Segment::Bytes(vec![].into()), part(&file, 5, 0)], vec![])),
        ("/bytes", (vec![Segment::Bytes(b"one".to_vec().into())], b"one".into())),
        (
            "/mixed",
            (
                vec![
                    Segment::Bytes(vec![].into()),
                    Segment::Bytes(b"one".to_vec().into()),
                    part(&file, 0, 0),
                    part(&file, 299_999, 1),
                    part(&file, 100, 200_000),
                    Segment::Bytes(vec![].into()),
                    Segment::Bytes(b"two".to_vec().into()),
                    part(&file, 300_000, 0),
                ],
                [b"one", &content[299_999..], &content[100..200_100], b"two"].concat(),
            ),
        ),
        (
            "/large",
            (
                vec![
                    part(&large_file, 0, whole),
                    Segment::Bytes(content.clone().into()),
                    part(&large_file, 1, whole - 1),
                ],
                [&large[..], &content, &large[1..]].concat(),
            ),
        ),
    ]
    .into();
    let replies = cases.clone();
    let site = Site::start("", |server| {
        let app = move |request: &RequestHead<'_>, _: &Context<'_>| Reply::Files {
            head: http::Response::new(200).with_content("not sent"),
            content: replies[request.path()].0.clone(),
        };
        server.add_app("a.test", Act(app)).expect("the name is free");
    });
    let mut client = site.connect();
    for (path, (_, expected)) in &cases {
        for _ in 0..2 {
            let response = client.exchange(get("a.test", path));
            assert_eq!(response.field("Content-Length"), Some(&*expected.len().to_string()));
            assert!(response.body == *expected, "{path}: {} bytes", response.body.len());
        }
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        let head = client.response_to_head();
        assert_eq!(head.field("Content-Length"), Some(&*expected.len().to_string()), "{path}");
    }
    // All in one pipeline: answers don't mix.
    client.send(cases.keys().map(|path| get("a.test", path)).collect::<String>());
    for (path, (_, expected)) in &cases {
        assert!(client.response().body == *expected, "{path} in a pipeline");
    }
    site.remove_drained("a.test");
}

#[test]
fn a_delayed_answer_comes_at_its_time_and_in_order() {
    let a = Stage::new("a");
    let site = Site::with_stages("threads = 1", &[("a.test", &a)]);
    let (mut slow, mut quick) = (site.connect(), site.connect());
    let begun = Instant::now();
    slow.send(get("a.test", "/after/300") + &get("a.test", "/after/0") + &get("a.test", "/large"));
    a.wait_asked(1);
    assert_eq!(text(&quick.exchange(get("a.test", "/"))), (200, "a"), "the loop is not blocked");
    assert_eq!(a.asked(), 2, "the pipeline waits");
    assert_eq!(text(&slow.response()), (200, "a"));
    // The loop's clock counts milliseconds.
    assert!(begun.elapsed() >= 299 * MS, "{:?}", begun.elapsed());
    assert_eq!(text(&slow.response()), (200, "a"));
    assert_eq!(slow.response().body.len(), Stage::LARGE);
    site.remove_drained("a.test");
}

// --- The stop

#[test]
fn a_stop_from_the_handle_lets_what_runs_end() {
    let (a, b) = (Stage::new("a"), Stage::new("b"));
    let mut site = Site::with_stages("", &[("a.test", &a), ("b.test", &b)]);
    let idle = site.connect();
    let held = Held::begin_all(&site, "a.test", &a, 3);
    let leaving = Held::begin_all(&site, "b.test", &b, 2);
    let ticket = site.remove("b.test");
    site.handle.stop("test");
    idle.expect_end();
    for held in held {
        held.end("a").expect_end();
    }
    assert!(is_running(&ticket));
    for held in leaving {
        held.end("b").expect_end();
    }
    assert_eq!(site.ended(), Verdict::Drained);
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained), "I2: also in a stop");
}

#[test]
fn a_second_stop_cuts_the_remaining_exchanges() {
    let (a, b) = (Stage::new("a"), Stage::new("b"));
    let mut site = Site::with_stages("", &[("a.test", &a), ("b.test", &b)]);
    let mut idle = site.connect();
    assert_eq!(idle.exchange(get("a.test", "/")).status, 200);
    let mut held = Held::begin_all(&site, "a.test", &a, 3);
    let leaving = Held::begin_all(&site, "b.test", &b, 2);
    let ticket = site.remove("b.test");
    site.handle.stop("test");
    idle.expect_end();
    held.remove(0).end("a").expect_end();
    site.handle.stop("no patience");
    assert_eq!(site.ended(), Verdict::Cut(4));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Cut(2)));
    held.into_iter().chain(leaving).for_each(|held| assert_cut(held.0));
}

#[test]
fn a_stop_with_nothing_in_flight_is_quick() {
    let mut site = Site::with_stages("", &[("a.test", &Stage::new("a"))]);
    assert_eq!(site.connect().exchange(get("a.test", "/")).status, 200);
    let begun = Instant::now();
    site.handle.stop("test");
    assert_eq!(site.ended(), Verdict::Drained);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn the_deadline_of_a_stop_cuts_the_remaining_exchanges() {
    let a = Stage::new("a");
    let mut site = Site::with_stages("drain_timeout = \"250ms\"", &[("a.test", &a)]);
    let held = Held::begin_all(&site, "a.test", &a, 3);
    let begun = Instant::now();
    site.handle.stop("test");
    assert_eq!(site.ended(), Verdict::Cut(3));
    assert!(begun.elapsed() >= 249 * MS, "{:?}", begun.elapsed());
    held.into_iter().for_each(|held| assert_cut(held.0));
}

/// Sends a request that blocks the loop of its connection.
fn block(site: &Site, host: &str, entered: &AtomicUsize) -> Client {
    let mut client = site.connect();
    client.send(get(host, "/"));
    assert!(wait_until(PATIENCE, || entered.load(SeqCst) == 1), "the app is asked");
    client
}

#[test]
fn a_stuck_app_does_not_hold_the_stop_for_ever() {
    let a = Stage::new("a");
    let (stuck, gate, entered) = Stuck::new();
    let mut site = Site::with_stages("drain_timeout = \"250ms\"", &[("a.test", &a)]);
    site.handle.add_app("stuck.test", stuck).expect("the name is free");
    // On both loops: the exchanges of a loop that does not obey are cut when the process ends.
    let held = Held::begin_all(&site, "a.test", &a, 4);
    let _blocked = block(&site, "stuck.test", &entered);
    let begun = Instant::now();
    site.handle.stop("test");
    assert_eq!(site.ended(), Verdict::Cut(5));
    let elapsed = begun.elapsed();
    assert!(elapsed >= 249 * MS && elapsed < Duration::from_secs(8), "I5: {elapsed:?}");
    drop((gate, held));
}

#[test]
fn a_stuck_app_does_not_hold_its_own_drain_for_ever() {
    let a = Stage::new("a");
    let (stuck, gate, entered) = Stuck::new();
    let site = Site::with_stages("drain_timeout = \"250ms\"", &[("a.test", &a)]);
    site.handle.add_app("hang.test", stuck).expect("the name is free");
    let mut blocked = block(&site, "hang.test", &entered);
    let begun = Instant::now();
    let ticket = site.remove("hang.test");
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Cut(1)));
    let elapsed = begun.elapsed();
    assert!(elapsed >= 249 * MS && elapsed < Duration::from_secs(8), "I5: {elapsed:?}");
    // The name is free. When the old life wakes up, it does not affect the new one.
    site.handle.add_app("hang.test", Stage::new("new")).expect("the name is free");
    drop(gate);
    // The loop may have received the cut by then, but it does not cut an exchange that is answered.
    if let Ok(response) = blocked.try_response(false) {
        assert_eq!(text(&response), (200, "freed"));
    }
    let mut clients: Vec<Client> = (0..8).map(|_| site.connect()).collect();
    for client in &mut clients {
        assert_eq!(text(&client.exchange(get("hang.test", "/"))), (200, "new"));
        assert_eq!(text(&client.exchange(get("a.test", "/"))), (200, "a"));
    }
    site.remove_drained("hang.test");
    let events = logged("hang.test");
    let count = |name: &str| events.iter().filter(|event| *event == name).count();
    assert_eq!((count("app_drain_start"), count("app_drain_timeout")), (2, 1), "{events:?}");
    assert_eq!((count("app_drained"), count("app_removed")), (1, 2), "I2: {events:?}");
}

#[test]
fn a_drain_that_a_stuck_app_holds_ends_with_the_stop() {
    let (stuck, gate, entered) = Stuck::new();
    let mut site = Site::with_stages("", &[]);
    site.handle.add_app("stuck.test", stuck).expect("the name is free");
    let _blocked = block(&site, "stuck.test", &entered);
    let ticket = site.remove("stuck.test");
    site.handle.stop("test");
    site.handle.stop("no patience");
    assert_eq!(site.ended(), Verdict::Cut(1));
    assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Cut(1)), "I2");
    drop(gate);
}

#[test]
fn a_stuck_app_holds_up_its_own_loop_only() {
    let (stuck, gate, entered) = Stuck::new();
    let site = Site::start("", |server| {
        server.add_app("stuck.test", stuck).expect("the name is free");
        let app = |_: &RequestHead<'_>, context: &Context<'_>| {
            Reply::Full(http::Response::new(200).with_content(context.loop_index.to_string()))
        };
        server.add_app("loop.test", Act(app)).expect("the name is free");
    });
    let mut by_loop: BTreeMap<String, Client> = BTreeMap::new();
    let both = wait_until(PATIENCE, || {
        let mut client = site.connect();
        let response = client.exchange(get("loop.test", "/"));
        by_loop.insert(response.text().to_owned(), client);
        by_loop.len() == 2
    });
    assert!(both, "one loop gets no connection");
    let (mut first, mut second) =
        (by_loop.remove("0").expect("loop 0"), by_loop.remove("1").expect("loop 1"));
    first.send(get("stuck.test", "/"));
    assert!(wait_until(PATIENCE, || entered.load(SeqCst) == 1), "the app is asked");
    for _ in 0..10 {
        assert_eq!(text(&second.exchange(get("loop.test", "/"))), (200, "1"));
    }
    // Control works too.
    site.handle.add_app("new.test", Stage::new("new")).expect("the name is free");
    assert_eq!(text(&second.exchange(get("new.test", "/"))), (200, "new"));
    site.remove_drained("new.test");
    assert_eq!(second.exchange(get("new.test", "/")).status, 404);
    drop(gate);
    assert_eq!(text(&first.response()), (200, "freed"));
}
