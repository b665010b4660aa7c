//! What operators do with single upstreams of a proxy app.

use std::collections::HashMap;

use super::{
    super::{Input, ask},
    call::Call,
    error,
    routes::{Admin, Answered, ok, refused},
    show,
};
use crate::app::Later;

impl Admin {
    /// Begins to take one upstream of an app out. A new life of the app has it out too.
    pub(super) fn drain_upstream(&self, host: &str, call: &Call<'_>, later: Later) {
        let Some(url) = call.value("url") else { return later.respond(no_url()) };
        self.begin_drain(host, call, later, |timeout, answer| {
            Input::DrainUpstream(host.to_owned(), url.to_owned(), timeout, answer)
        });
    }

    /// Takes it back in.
    pub(super) fn resume_upstream(&self, host: &str, call: &Call<'_>) -> Answered {
        let url = call.value("url").ok_or_else(no_url)?;
        let resume = |answer| Input::ResumeUpstream(host.to_owned(), url.to_owned(), answer);
        let life = ask(&self.control, resume).map_err(|reason| refused(host, &reason))?;
        ok(&HashMap::from([("upstreams", show::upstreams(&life, self.facts.now_ns()))]))
    }
}

fn no_url() -> crate::http::Response<'static> {
    error(400, "`url` names no upstream")
}
