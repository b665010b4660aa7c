//! Connections that hold an app: they are listed, and cut, by their loops.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mio::Token;
use serde_json::json;

use super::{
    Admin,
    answers::{error, json as json_response},
    show,
};
use crate::{
    app::Later,
    logging::event,
    message::{BusyConnection, LoopCommand},
    registry::AppId,
};

/// How long loops have to list busy connections; a loop that does not is stuck in an app.
const LOOP_ANSWER_MAX: Duration = Duration::from_millis(500);

impl Admin {
    /// Lists the connections that hold an app. A thread of its own waits for the loops: a stuck one
    /// in an app must not hold up other requests.
    pub(super) fn connections(&self, host: &str, later: Later) {
        let lives: Arc<[AppId]> = match self.lives_of(host) {
            Ok(lives) => lives.iter().map(|view| view.life.id()).collect(),
            Err(refusal) => return later.respond(refusal),
        };
        let (sender, answers) = crossbeam_channel::unbounded();
        for handle in &self.loops {
            // A loop that cannot be woken counts as silent.
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

    pub(super) fn cut_connection(&self, id: &str, later: Later) {
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
}

/// Without a thread the `Later` is dropped, and answered with 500.
fn spawn_waiter(wait: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name("admin-waiter".into());
    if let Err(error) = thread.spawn(wait) {
        event!(Error, "thread_not_started", error:% = error);
    }
}
