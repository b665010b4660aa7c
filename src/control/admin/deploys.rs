//! Deploys over the API: they begin, show how far they are, are aborted, and end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::{
    super::{
        DeployClient, DeployEnding, DeployOutcome, DeployProgress, PutError, Task, Tell,
        UpstreamChecks,
    },
    Admin,
    answers::{Answered, error, json as json_response, ok, put_failed},
    call::Call,
    show::Row,
};
use crate::{app::Later, duration::milliseconds, http::Response, logging::rfc3339};

impl Admin {
    /// Answers when the new life is in place, or why it is not. If the client leaves before, the
    /// deploy is aborted.
    pub(super) fn deploy(&self, host: &str, call: &Call<'_>, later: Later) {
        let quorum = match call.value("quorum").map(str::parse) {
            None => None,
            Some(Ok(quorum)) if quorum > 0 => Some(quorum),
            Some(_) => return later.respond(error(400, "`quorum` is a number, at least 1")),
        };
        let table: Value = match serde_json::from_slice(call.content) {
            Ok(table) => table,
            Err(wrong) => {
                return later.respond(error(400, &format!("the content is not JSON: {wrong}")));
            }
        };
        if let Some(other) = self.deploys.board().find(host) {
            return later.respond(under_way(host, other.began()));
        }
        let (registry, deploys) = (Arc::clone(&self.registry), Arc::clone(&self.deploys));
        let (name, now_ns) = (host.to_owned(), self.facts.now_ns());
        let tell = move |loaded| match loaded {
            Ok(loaded) => {
                let names = Arc::clone(&registry);
                let respond = move |later: Later, outcome: DeployOutcome| {
                    later.respond(shown_outcome(outcome, now_ns, |host, reason| {
                        put_failed(&names, host, reason)
                    }));
                };
                let client = DeployClient { later, respond: Box::new(respond) };
                deploys.begin(loaded, quorum, client);
            }
            Err(reason) => later.respond(put_failed(&registry, &name, reason)),
        };
        self.tasks.send(Task::Deploy(host.to_owned(), table, Tell::new(tell)));
    }

    pub(super) fn deploy_progress(&self, host: &str) -> Answered {
        let deploy = self.deploys.board().find(host).ok_or_else(|| no_deploy(host))?;
        ok(&shown_progress(&deploy.progress()))
    }

    pub(super) fn abort_deploy(&self, host: &str) -> Answered {
        let deploy = self.deploys.board().find(host).ok_or_else(|| no_deploy(host))?;
        if !deploy.abort("an operator has aborted it") {
            return Err(error(409, &format!("{host}: the new life is in place already")));
        }
        ok(&shown_progress(&deploy.progress()))
    }
}

fn no_deploy(host: &str) -> Response<'static> {
    error(404, &format!("{host}: no deploy of this app is under way"))
}

fn under_way(host: &str, since: SystemTime) -> Response<'static> {
    let since = rfc3339(since);
    let error = format!("{host}: a deploy of this app has been under way since {since}");
    json_response(409, &json!({ "error": error, "since": since }))
}

fn shown_outcome(
    outcome: DeployOutcome,
    now_ns: u64,
    failed: impl FnOnce(&str, PutError) -> Response<'static>,
) -> Response<'static> {
    let DeployOutcome { host, progress, ending } = outcome;
    let checks = progress.as_ref().map(shown_checks).unwrap_or_default();
    match ending {
        DeployEnding::Switched(begun, since_check) => {
            let mut answer = json!({
                "result": "deployed",
                "replaced": begun.replaced,
                "app": Row::serving(&begun.life, now_ns),
                "checks": checks,
                "since_check_ms": since_check.map(milliseconds),
            });
            if let Some(drain) = begun.drain {
                answer["drain"] = json!(drain.as_u64());
            }
            json_response(200, &answer)
        }
        DeployEnding::NotReady => {
            let how = progress.as_ref().map(how_far).unwrap_or_default();
            let error = format!("{host}: not deployed, and nothing changed: {how}");
            json_response(424, &json!({ "error": error, "result": "not_ready", "checks": checks }))
        }
        DeployEnding::Aborted(reason) => {
            let error = format!("{host}: the deploy was aborted, and nothing changed: {reason}");
            json_response(409, &json!({ "error": error, "result": "aborted", "checks": checks }))
        }
        DeployEnding::UnderWay(since) => under_way(&host, since),
        DeployEnding::TooMany(upstreams) => {
            let error = format!("{host}: the quorum is more than its {upstreams} upstreams");
            json_response(422, &json!({ "error": error }))
        }
        DeployEnding::Failed(reason) => failed(&host, reason),
    }
}

/// How many upstreams are ready of those that have to be.
fn how_far(progress: &DeployProgress) -> String {
    let DeployProgress { checks, needed, elapsed_ns, .. } = progress;
    let ready = checks.iter().filter(|(_, fault)| fault.is_none()).count();
    let (all, seconds) = (checks.len(), Duration::from_nanos(*elapsed_ns).as_secs_f64());
    format!("after {seconds:.1} s, {ready} of {all} upstreams ready, {needed} needed")
}

fn shown_progress(progress: &DeployProgress) -> Value {
    json!({
        "host": progress.host,
        "since": rfc3339(progress.began),
        "elapsed_ms": milliseconds(Duration::from_nanos(progress.elapsed_ns)),
        "needed": progress.needed,
        "checks": shown_checks(progress),
    })
}

fn shown_checks(progress: &DeployProgress) -> Vec<Value> {
    let shown = |(checks, fault): &(UpstreamChecks, Option<String>)| {
        let last = checks.last.as_ref();
        json!({
            "url": checks.url,
            "ready": fault.is_none(),
            "good_in_row": checks.in_row,
            "checks": checks.count,
            "status": last.and_then(|last| last.status),
            "time_ms": last.map(|last| milliseconds(Duration::from_nanos(last.took_ns))),
            "first_bytes": last.map(|last| &last.first).filter(|first| !first.is_empty()),
            "error": fault,
        })
    };
    progress.checks.iter().map(shown).collect()
}
