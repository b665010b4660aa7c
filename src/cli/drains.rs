//! `tidegate remove`, `drain` and `resume`: one app leaves, pauses, comes back.

use clap::Args;

use super::{
    DONE, Host,
    admin::{Admin, Answer, Place, ServerOptions, app_path, encode},
    answers::Upstreams,
    apps,
    failure::Failure,
    put::changed,
    wait::{EndOptions, finish},
};

/// What `remove` and `drain` take.
#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    host: Host,

    #[command(flatten)]
    end: EndOptions,

    #[command(flatten)]
    server: ServerOptions,
}

impl Drain {
    /// Takes the app away.
    pub(super) fn remove(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let drain = admin.delete(&app_path(&self.host.name, &self.end.query()))?;
        finish(&mut admin, drain, self.end.patience())
    }

    /// Keeps the app's place.
    fn drain(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let behind = format!("/drain{}", self.end.query());
        let drain = admin.post(&app_path(&self.host.name, &behind))?;
        finish(&mut admin, drain, self.end.patience())
    }
}

/// What `drain` takes.
#[derive(Debug, Args)]
pub(super) struct DrainOne {
    #[command(flatten)]
    drain: Drain,

    /// Drain one of its upstreams instead, by its URL; the app goes on with the others
    #[arg(long, value_name = "URL", conflicts_with_all = ["no_wait", "timeout"])]
    upstream: Option<String>,
}

impl DrainOne {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let Some(url) = &self.upstream else { return self.drain.drain(place) };
        let (mut admin, host) = (self.drain.server.admin(place)?, &self.drain.host.name);
        let answer = set_upstream(&mut admin, host, "drain", url)?;
        admin.print(&answer, |answer| apps::upstream_rows(&answer.upstreams))?;
        Ok(DONE)
    }
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    host: Host,

    /// Bring one of its upstreams back instead, by its URL
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    #[command(flatten)]
    server: ServerOptions,
}

impl Resume {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        if let Some(url) = &self.upstream {
            let answer = set_upstream(&mut admin, &self.host.name, "resume", url)?;
            admin.print(&answer, |answer| apps::upstream_rows(&answer.upstreams))?;
            return Ok(DONE);
        }
        let answer = admin.post(&app_path(&self.host.name, "/resume"))?;
        admin.print(&answer, changed)?;
        Ok(DONE)
    }
}

/// Takes an upstream out, or back in; the upstreams then.
fn set_upstream(
    admin: &mut Admin,
    host: &str,
    what: &str,
    url: &str,
) -> Result<Answer<Upstreams>, Failure> {
    admin.post(&app_path(host, &format!("/upstreams/{what}?url={}", encode(url))))
}
