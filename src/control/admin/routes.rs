//! The routes of the admin API, and the thread that owns them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use mio::Token;
use serde::Serialize;
use serde_json::json;

use super::{
    super::{
        Answer, Begun, ChangeError, DrainName, DrainView, Input, LifeView, Notices, Predecessor,
        PutError, PutMode, ReloadError, ReloadOptions, Reloads, Report, StopAsker, StopRequest,
        Task, TaskSender, Tell, UpgradeError, UpgradeOptions, Upgraded, ask, send,
    },
    AdminRequest,
    call::Call,
    error, json as json_response,
    show::{self, Row},
};
use crate::{
    app::Later,
    config::{TIME_MAX, nearest},
    http::Response,
    logging::{Logging, event},
    message::{AppLife, Apps, BusyConnection, LoopCommand, LoopHandle},
    metrics::LoopGauges,
    registry::AppId,
};

/// What does not change while the server runs.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) started: Instant,
    /// The config file, if there is one.
    pub(crate) config: Option<PathBuf>,
}

impl Facts {
    /// Nanoseconds of the server's epoch, as the loops count.
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The state of the admin thread.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) registry: Arc<Apps>,
    pub(crate) control: Sender<Input>,
    pub(crate) tasks: TaskSender,
    pub(crate) loops: Vec<LoopHandle>,
    pub(crate) gauges: Vec<Arc<LoopGauges>>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) reloads: Arc<Reloads>,
    pub(crate) logging: Option<Logging>,
    pub(crate) facts: Facts,
    /// The process before this one, if an upgrade has started this one.
    pub(crate) predecessor: Option<Arc<Predecessor>>,
}

/// Between two signs of life on a stream of events.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long loops have to say who is busy; one that does not is stuck in an app.
const LOOP_ANSWER_MAX: Duration = Duration::from_millis(500);

/// The longest `?wait=`.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Of whom an error speaks that is not an app's.
pub(super) const SERVER: &str = "tidegate";

/// The answer to a request, as far as it is known at once.
pub(super) type Answered = Result<Response<'static>, Response<'static>>;

impl Admin {
    /// Answers until nobody is left who could ask.
    pub(crate) fn run(&self, requests: &Receiver<(AdminRequest, Later)>) {
        let mut keep_alive = Instant::now() + KEEP_ALIVE;
        loop {
            match requests.recv_deadline(keep_alive) {
                Ok((request, later)) => {
                    // A bug in one answer is that request's 500: its `Later` is dropped.
                    let answer = AssertUnwindSafe(|| self.answer(&request, later));
                    if catch_unwind(answer).is_err() {
                        event!(Error, "admin_panicked");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.notices.keep_alive();
                    keep_alive = Instant::now() + KEEP_ALIVE;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn answer(&self, request: &AdminRequest, later: Later) {
        let Some((path, call)) = Call::parse(request) else {
            return later.respond(error(400, "the path or the query is not percent-encoded UTF-8"));
        };
        let mut path: Vec<&str> = path.iter().map(|part| &**part).collect();
        let named;
        if let ["apps", name, ..] = path[..] {
            // A new app has the name that it is given; all else is for the app that has it.
            let is_new = call.is("PUT") && call.value("only") != Some("replace");
            named = if is_new { name.to_owned() } else { self.host_named(name) };
            path[1] = &named;
        }
        let answered = match *path {
            ["drains", id] if call.is("GET") => return self.watch(id, &call, later),
            ["apps", host] if call.is("DELETE") => {
                let remove = |timeout, answer| Input::Remove(host.into(), timeout, answer);
                return self.begin_drain(host, &call, later, remove);
            }
            ["apps", host, "drain"] if call.is("POST") => {
                let drain = |timeout, answer| Input::Drain(host.into(), timeout, answer);
                return self.begin_drain(host, &call, later, drain);
            }
            ["stop"] if call.is("POST") => return self.stop(&call, later),
            ["connections", id] if call.is("DELETE") => return self.cut_connection(id, later),
            ["apps", host, "connections"] if call.is("GET") => {
                return self.connections(host, later);
            }
            ["upgrade"] if call.is("POST") => return self.upgrade(&call, later),
            ["events"] if call.is("GET") => return self.stream_events(&call, later),
            ["reload"] if call.is("POST") => return self.reload(&call, later),
            ["apps", host] if call.is("PUT") => return self.put(host, &call, later),
            ["apps", host, "resume"] if call.is("POST") => return self.resume(host, later),
            ["apps", host, "upstreams", "drain"] if call.is("POST") => {
                return self.drain_upstream(host, &call, later);
            }
            ["apps", host, "upstreams", "resume"] if call.is("POST") => {
                return self.resume_upstream(host, &call, later);
            }
            _ if call.is("GET") => self.look_up(&path, &call),
            _ => Err(no_route(&path)),
        };
        later.respond(answered.unwrap_or_else(|refusal| refusal));
    }

    /// Lists who holds an app. The loops are waited for by a thread of its own: one that is stuck
    /// in an app must not hold up other requests.
    fn connections(&self, host: &str, later: Later) {
        let lives: Arc<[AppId]> = match self.lives_of(host) {
            Ok(lives) => lives.iter().map(|view| view.life.id()).collect(),
            Err(refusal) => return later.respond(refusal),
        };
        let (sender, answers) = crossbeam_channel::unbounded();
        for handle in &self.loops {
            // A loop that cannot be woken counts as one that does not answer.
            drop(handle.send(LoopCommand::ListBusy(Arc::clone(&lives), sender.clone())));
        }
        drop(sender);
        let loops = self.loops.len();
        spawn_waiter(move || {
            let until = Instant::now() + LOOP_ANSWER_MAX;
            let answers = std::iter::from_fn(|| answers.recv_deadline(until).ok());
            let answers: Vec<Vec<BusyConnection>> = answers.take(loops).collect();
            let complete = answers.len() == loops;
            let mut busy: Vec<_> = answers.into_iter().flatten().collect();
            busy.sort_by_key(|busy| std::cmp::Reverse(busy.age));
            let busy: Vec<_> = busy.iter().map(show::connection).collect();
            later
                .respond(json_response(200, &json!({ "connections": busy, "complete": complete })));
        });
    }

    fn cut_connection(&self, id: &str, later: Later) {
        let unknown = || error(404, "no connection has this id; it may have ended");
        let parsed = id.split_once('-').and_then(|(index, token)| {
            let token = usize::from_str_radix(token, 16).ok()?;
            Some((self.loops.get(index.parse::<usize>().ok()?)?, Token(token)))
        });
        let Some((handle, token)) = parsed else { return later.respond(unknown()) };
        let (sender, answer) = crossbeam_channel::bounded(1);
        drop(handle.send(LoopCommand::CutConnection(token, sender)));
        spawn_waiter(move || {
            later.respond(match answer.recv_timeout(LOOP_ANSWER_MAX) {
                Ok(Some(cut)) => json_response(200, &json!({ "cut": cut })),
                Ok(None) => unknown(),
                Err(_) => error(503, "the connection's loop does not answer: an app holds it up"),
            });
        });
    }

    pub(super) fn begin_drain<T: Into<DrainName> + Send + 'static>(
        &self,
        host: &str,
        call: &Call<'_>,
        later: Later,
        input: impl FnOnce(Option<Duration>, Answer<T>) -> Input,
    ) {
        let timeout = match call.duration("timeout") {
            Ok(timeout) => timeout,
            Err(refusal) => return later.respond(refusal),
        };
        let (host, control) = (host.to_owned(), self.control.clone());
        let registry = Arc::clone(&self.registry);
        let tell = move |begun: Result<T, ChangeError>| match begun {
            Ok(drain) => tell_drain(&control, drain.into(), Instant::now(), 202, later),
            Err(reason) => later.respond(refused_app(&registry, &host, &reason)),
        };
        send(&self.control, input(timeout, Box::new(tell)));
    }

    /// Answers when the stop has begun; with `wait`, when it is over, at the latest after that
    /// time. A stop has a deadline, so that time has no other limit.
    fn stop(&self, call: &Call<'_>, later: Later) {
        let times = call.duration("timeout").and_then(|time| Ok((time, call.duration("wait")?)));
        let (timeout, wait) = match times {
            Ok(times) => times,
            Err(refusal) => return later.respond(refusal),
        };
        let control = self.control.clone();
        let answer = move |begun| match (begun, wait) {
            (Ok(_), Some(wait)) => {
                tell_drain(&control, DrainName::Stop, Instant::now() + wait, 200, later);
            }
            (Ok(view), None) => later.respond(json_response(202, &show::Drain::new(&view))),
            (Err(reason), _) => later.respond(refused(SERVER, &reason)),
        };
        let now = call.value("now") == Some("true");
        let by = StopAsker::Admin { now, answer: Box::new(answer) };
        let reason = "admin request".to_owned();
        send(&self.control, Input::Stop(StopRequest { reason, timeout, by }));
    }

    fn watch(&self, id: &str, call: &Call<'_>, later: Later) {
        let name = id.parse().map_err(|_| unknown_drain());
        match name.and_then(|name| Ok((name, call.duration("wait")?))) {
            Ok((name, wait)) => {
                // That of the server is waited for to its end, which its deadline brings:
                // afterwards nobody can ask.
                let longest = if name == DrainName::Stop { TIME_MAX } else { WAIT_MAX };
                let until = Instant::now() + wait.unwrap_or_default().min(longest);
                tell_drain(&self.control, name, until, 200, later);
            }
            Err(refusal) => later.respond(refusal),
        }
    }

    fn stream_events(&self, call: &Call<'_>, later: Later) {
        let head = Response::new(200)
            .with_field("Content-Type", "text/event-stream")
            .with_field("Cache-Control", "no-store");
        if call.is_head() {
            return later.respond(head);
        }
        if let Some(stream) = later.stream(head) {
            self.notices.subscribe(stream);
        }
    }

    fn reload(&self, call: &Call<'_>, later: Later) {
        let options = call.flag("allow_empty").and_then(|allow_empty| {
            Ok(ReloadOptions { allow_empty, dry_run: call.flag("dry_run")? })
        });
        let options = match options {
            Ok(options) => options,
            Err(refusal) => return later.respond(refusal),
        };
        let file = self.facts.config.clone();
        let tell = move |done| {
            later.respond(match done {
                Ok(done) => json_response(200, &show::reload(&done)),
                Err(ReloadError::Config(wrong)) => {
                    json_response(422, &show::config_error(&wrong, file.as_deref()))
                }
                Err(ReloadError::Emptied(lost)) => {
                    json_response(422, &show::emptied(&lost, file.as_deref()))
                }
                Err(ReloadError::NoFile) => error(409, &ReloadError::NoFile.to_string()),
                Err(ReloadError::Change(reason)) => refused(SERVER, &reason),
            });
        };
        self.tasks.send(Task::Reload(options, Tell::new(tell)));
    }

    /// Answers when the new process serves, or why it does not; with `wait`, when this process has
    /// drained, at the latest after that time: its connections end with it, and nobody can ask. Its
    /// drain has a deadline, so that time has no other limit.
    fn upgrade(&self, call: &Call<'_>, later: Later) {
        let (options, wait) = match upgrade_options(call) {
            Ok(options) => options,
            Err(refusal) => return later.respond(refusal),
        };
        let control = self.control.clone();
        if options.binary.is_some() && !call.is_by_owner {
            // A token is for steering the server, not for running programs as its user.
            return later.respond(error(403, "`binary` is taken on the unix socket alone"));
        }
        self.tasks.send(Task::Upgrade(
            options,
            Tell::new(move |done| {
                let old_pid = std::process::id();
                let answer = match (done, wait) {
                    (Ok(Upgraded { pid }), Some(wait)) => {
                        let tell = move |view: Option<DrainView>| {
                            let mut answer = json!(view.as_ref().map(show::Drain::new));
                            (answer["pid"], answer["old_pid"]) = (json!(pid), json!(old_pid));
                            later.respond(json_response(200, &answer));
                        };
                        let until = Instant::now() + wait;
                        let watch = Input::Watch(DrainName::Stop, until, Box::new(tell));
                        return drop(control.send(watch));
                    }
                    (Ok(Upgraded { pid }), None) => {
                        let answer = json!({ "pid": pid, "old_pid": old_pid, "drain": "stop" });
                        json_response(200, &answer)
                    }
                    (Err(UpgradeError::Change(reason)), _) => refused(SERVER, &reason),
                    (Err(UpgradeError::Failed(reason)), _) => {
                        error(500, &format!("no upgrade, and nothing changed: {reason}"))
                    }
                };
                later.respond(answer);
            }),
        ));
    }

    fn put(&self, host: &str, call: &Call<'_>, later: Later) {
        let mode = match call.value("only") {
            None => PutMode::Either,
            Some("add") => PutMode::Add,
            Some("replace") => PutMode::Replace,
            Some(_) => return later.respond(error(400, "`only` is `add` or `replace`")),
        };
        let table = match serde_json::from_slice(call.content) {
            Ok(table) => table,
            Err(wrong) => {
                return later.respond(error(400, &format!("the content is not JSON: {wrong}")));
            }
        };
        let (name, host, now_ns) = (host.to_owned(), host.to_owned(), self.facts.now_ns());
        let registry = Arc::clone(&self.registry);
        let tell = move |done: Result<Begun, PutError>| {
            later.respond(match done {
                Ok(begun) => {
                    let mut answer = json!({
                        "result": if begun.replaced { "replaced" } else { "added" },
                        "app": Row::serving(&begun.life, now_ns),
                    });
                    if let Some(drain) = begun.drain {
                        answer["drain"] = json!(drain.as_u64());
                    }
                    json_response(if begun.replaced { 200 } else { 201 }, &answer)
                }
                Err(reason) => put_failed(&registry, &host, reason),
            });
        };
        self.tasks.send(Task::Put(name, mode, table, Tell::new(tell)));
    }

    fn resume(&self, host: &str, later: Later) {
        let (name, host, now_ns) = (host.to_owned(), host.to_owned(), self.facts.now_ns());
        let registry = Arc::clone(&self.registry);
        let tell = move |done: Result<Arc<AppLife>, PutError>| {
            later.respond(match done {
                Ok(life) => {
                    let app = Row::serving(&life, now_ns);
                    json_response(200, &json!({ "result": "resumed", "app": app }))
                }
                Err(reason) => put_failed(&registry, &host, reason),
            });
        };
        self.tasks.send(Task::Resume(name, Tell::new(tell)));
    }

    pub(super) fn lives(&self) -> Result<Vec<LifeView>, Response<'static>> {
        ask(&self.control, Input::Lives).map_err(|reason| refused(SERVER, &reason))
    }

    pub(super) fn report(&self) -> Result<Report, Response<'static>> {
        ask(&self.control, Input::Report).map_err(|reason| refused(SERVER, &reason))
    }
}

/// How an upgrade is done, and how long its caller waits for the end of the old process.
fn upgrade_options(
    call: &Call<'_>,
) -> Result<(UpgradeOptions, Option<Duration>), Response<'static>> {
    let default = UpgradeOptions::default();
    let options = UpgradeOptions {
        binary: call.value("binary").map(PathBuf::from),
        timeout: call.duration("timeout")?.unwrap_or(default.timeout),
        allow_empty: call.flag("allow_empty")?,
    };
    Ok((options, call.duration("wait")?))
}

/// Has control show a drain when it has ended, at the latest then.
fn tell_drain(control: &Sender<Input>, name: DrainName, until: Instant, status: u16, later: Later) {
    let tell = move |view: Option<DrainView>| {
        let shown = view.map(|view| json_response(status, &show::Drain::new(&view)));
        later.respond(shown.unwrap_or_else(unknown_drain));
    };
    send(control, Input::Watch(name, until, Box::new(tell)));
}

/// Without a thread the `Later` is dropped, and answered with 500.
fn spawn_waiter(wait: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name("admin-waiter".into());
    if let Err(error) = thread.spawn(wait) {
        event!(Error, "thread_not_started", error:% = error);
    }
}

pub(super) fn ok(document: &impl Serialize) -> Answered {
    Ok(json_response(200, document))
}

/// Says of an app, or of the server, why not.
pub(super) fn refused(whose: &str, reason: &ChangeError) -> Response<'static> {
    let status = match reason {
        ChangeError::UnknownHost | ChangeError::UnknownUpstream(_) => 404,
        ChangeError::Ended | ChangeError::Busy { .. } | ChangeError::UnderWay { .. } => 503,
        ChangeError::NameTaken(_)
        | ChangeError::BeingRemoved
        | ChangeError::NotDrained
        | ChangeError::Stopping
        | ChangeError::HandedOver(_) => 409,
    };
    let mut answer = json!({ "error": format!("{whose}: {reason}") });
    if let ChangeError::HandedOver(pid) = reason {
        answer["successor"] = json!(pid);
    }
    json_response(status, &answer)
}

/// The same of an app, with the name that was probably meant if there is none of this name.
pub(super) fn refused_app(registry: &Apps, host: &str, reason: &ChangeError) -> Response<'static> {
    if *reason != ChangeError::UnknownHost {
        return refused(host, reason);
    }
    let entries = registry.entries();
    let names = entries.iter().flat_map(|life| {
        std::iter::once(life.host()).chain(life.aliases().iter().map(String::as_str))
    });
    match nearest(host, names) {
        Some(near) => error(404, &format!("{host}: {reason} (did you mean `{near}`?)")),
        None => refused(host, reason),
    }
}

fn put_failed(registry: &Apps, host: &str, reason: PutError) -> Response<'static> {
    match reason {
        PutError::Table(wrong) => {
            let error = format!("{host}: the app's table is wrong, and nothing changed");
            json_response(422, &json!({ "error": error, "problems": show::problems(&wrong, None) }))
        }
        PutError::Load(reason) => {
            error(500, &format!("{host}: the app cannot be loaded, and nothing changed: {reason}"))
        }
        PutError::Change(reason) => refused_app(registry, host, &reason),
    }
}

fn unknown_drain() -> Response<'static> {
    error(404, "no drain has this id; GET /drains lists them")
}

/// The path is not known, or not with this method.
pub(super) fn no_route(path: &[&str]) -> Response<'static> {
    let allow = match *path {
        ["healthz" | "readyz" | "status" | "apps" | "drains" | "events" | "metrics"]
        | ["apps", _, "connections"]
        | ["drains", _] => "GET",
        ["apps", _] => "GET, PUT, DELETE",
        ["apps", _, "drain" | "resume"]
        | ["apps", _, "upstreams", "drain" | "resume"]
        | ["reload" | "stop" | "upgrade"] => "POST",
        ["connections", _] => "DELETE",
        _ => return error(404, "the admin API has no such path"),
    };
    error(405, &format!("this path takes {allow}")).with_field("Allow", allow)
}
