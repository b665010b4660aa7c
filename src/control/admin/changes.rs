//! What operators change over the API, and what they wait for.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use serde_json::json;

use super::{
    super::{
        Answer, Begun, ChangeError, DrainName, DrainView, DrainWatch, Input, PutError, PutMode,
        ReloadError, ReloadOptions, StopAsker, StopRequest, Task, Tell, UpgradeError,
        UpgradeOptions, Upgraded, send,
    },
    Admin,
    answers::{SERVER, error, json as json_response, put_failed, refused, refused_app},
    call::Call,
    show::{self, Row},
};
use crate::{app::Later, config::TIME_MAX, hosted::AppLife, http::Response};

/// The longest `?wait=`.
const WAIT_MAX: Duration = Duration::from_secs(300);

impl Admin {
    pub(super) fn begin_drain<T: Into<DrainName> + Send + 'static>(
        &self,
        host: &str,
        call: &Call<'_>,
        later: Later,
        input: impl FnOnce(String, Option<Duration>, Answer<T>) -> Input,
    ) {
        let timeout = match call.duration("timeout") {
            Ok(timeout) => timeout,
            Err(refusal) => return later.respond(refusal),
        };
        let (name, control) = (host.to_owned(), self.control.clone());
        let registry = Arc::clone(&self.registry);
        let tell = move |begun: Result<T, ChangeError>| match begun {
            Ok(drain) => tell_drain(&control, drain.into(), Instant::now(), 202, later),
            Err(reason) => later.respond(refused_app(&registry, &name, &reason)),
        };
        send(&self.control, input(host.to_owned(), timeout, Answer::new(tell)));
    }

    /// Answers when the stop has begun; with `wait`, when it is over, at the latest after that
    /// time. A stop has a deadline, so that time has no other limit.
    pub(super) fn stop(&self, call: &Call<'_>, later: Later) {
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
        let cuts = call.value("now") == Some("true");
        let by = StopAsker::Admin { cuts, answer: Answer::new(answer) };
        let reason = "admin request".to_owned();
        send(&self.control, Input::Stop(StopRequest { reason, timeout, by }));
    }

    pub(super) fn watch(&self, id: &str, call: &Call<'_>, later: Later) {
        let name = id.parse().map_err(|_| unknown_drain());
        match name.and_then(|name| Ok((name, call.duration("wait")?))) {
            Ok((name, wait)) => {
                // That of the server is waited for to its end, which its deadline brings:
                // afterwards no request is answered.
                let longest = if name == DrainName::Stop { TIME_MAX } else { WAIT_MAX };
                let until = Instant::now() + wait.unwrap_or_default().min(longest);
                tell_drain(&self.control, name, until, 200, later);
            }
            Err(refusal) => later.respond(refusal),
        }
    }

    pub(super) fn stream_events(&self, call: &Call<'_>, later: Later) {
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

    pub(super) fn reload(&self, call: &Call<'_>, later: Later) {
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
    /// drained, at the latest after that time: its connections end with it. Its
    /// drain has a deadline, so that time has no other limit.
    pub(super) fn upgrade(&self, call: &Call<'_>, later: Later) {
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
                        let show = move |view: Option<DrainView>| {
                            let mut answer = json!(view.as_ref().map(show::Drain::new));
                            (answer["pid"], answer["old_pid"]) = (json!(pid), json!(old_pid));
                            later.respond(json_response(200, &answer));
                        };
                        let until = Instant::now() + wait;
                        let (drain, show) = (DrainName::Stop, Box::new(show));
                        let watch = DrainWatch { drain, until, show };
                        return drop(control.send(Input::Watch(watch)));
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

    pub(super) fn put(&self, host: &str, call: &Call<'_>, later: Later) {
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

    pub(super) fn resume(&self, host: &str, later: Later) {
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
fn tell_drain(
    control: &Sender<Input>,
    drain: DrainName,
    until: Instant,
    status: u16,
    later: Later,
) {
    let show = move |view: Option<DrainView>| {
        let shown = view.map(|view| json_response(status, &show::Drain::new(&view)));
        later.respond(shown.unwrap_or_else(unknown_drain));
    };
    send(control, Input::Watch(DrainWatch { drain, until, show: Box::new(show) }));
}

fn unknown_drain() -> Response<'static> {
    error(404, "no drain has this id; GET /drains lists them")
}
