//! What operators do with single upstreams of a proxy app.

use std::collections::HashMap;

use super::{
    super::{ChangeError, notices::notice},
    call::Call,
    error,
    routes::{Admin, Answered, ok, refused},
    show,
};

impl Admin {
    /// Takes one upstream of an app out, or back in. The count of its exchanges tells when it is
    /// drained. A new life of the app has all of its upstreams.
    pub(super) fn set_upstream(&self, host: &str, is_drained: bool, call: &Call<'_>) -> Answered {
        let url = call.value("url").ok_or_else(|| error(400, "`url` names no upstream"))?;
        let life = self.registry.find(&host.to_ascii_lowercase());
        let life = life.ok_or_else(|| refused(host, &ChangeError::UnknownHost))?;
        let now_ns = self.facts.now_ns();
        let upstreams = life.app().app.upstreams();
        if !upstreams.is_some_and(|upstreams| upstreams.set_drained(url, is_drained, now_ns)) {
            let message = format!("{host}: no upstream has this URL: {url}");
            return Err(error(404, &message));
        }
        let (id, host) = (life.id().as_u64(), life.host());
        if is_drained {
            notice!(self.notices, Info, "upstream_drained", host = host, id = id, upstream = url);
        } else {
            notice!(self.notices, Info, "upstream_resumed", host = host, id = id, upstream = url);
        }
        ok(&HashMap::from([("upstreams", show::upstreams(&life, now_ns))]))
    }
}
