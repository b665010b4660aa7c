//! What operators do with single upstreams of a proxy app.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{Answer, ChangeError, DrainUpstream, Input, ResumeUpstream, send},
    Admin,
    answers::{error, json as json_response, refused_app},
    call::Call,
    show,
};
use crate::{app::Later, hosted::AppLife};

impl Admin {
    /// Begins to take one upstream of an app out. A new life of the app has it out too.
    pub(super) fn drain_upstream(&self, host: &str, call: &Call<'_>, later: Later) {
        let Some(url) = call.value("url") else { return later.respond(no_url()) };
        let url = url.to_owned();
        self.begin_drain(host, call, later, |host, timeout, answer| {
            Input::DrainUpstream(DrainUpstream { host, url, timeout, answer })
        });
    }

    /// Takes it back in.
    pub(super) fn resume_upstream(&self, host: &str, call: &Call<'_>, later: Later) {
        let Some(url) = call.value("url") else { return later.respond(no_url()) };
        let (host, url, now_ns) = (host.to_owned(), url.to_owned(), self.facts.now_ns());
        let (name, registry) = (host.clone(), Arc::clone(&self.registry));
        let tell = move |resumed: Result<Arc<AppLife>, ChangeError>| {
            later.respond(match resumed {
                Ok(life) => {
                    let upstreams = HashMap::from([("upstreams", show::upstreams(&life, now_ns))]);
                    json_response(200, &upstreams)
                }
                Err(reason) => refused_app(&registry, &name, &reason),
            });
        };
        let resume = ResumeUpstream { host, url, answer: Answer::new(tell) };
        send(&self.control, Input::ResumeUpstream(resume));
    }
}

fn no_url() -> crate::http::Response<'static> {
    error(400, "`url` names no upstream")
}
