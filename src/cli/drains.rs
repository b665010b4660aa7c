//! `tidegate remove`, `drain` and `resume`.

use std::path::Path;

use clap::Args;

use super::{
    DONE, Host, Place,
    admin::{ServerOptions, app_path, encode},
    answers::Upstreams,
    apps,
    failure::Failure,
    put::{absolute_url, changed},
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
    /// Removes the app.
    pub(super) fn remove(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let drain = admin.delete(&app_path(&self.host.name, &self.end.query(&[])))?;
        finish(&mut admin, drain, self.end.patience())
    }

    /// Drains the app but keeps its entry, or drains one upstream.
    fn drain(&self, upstream: Option<&str>, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let behind = match upstream {
            Some(url) => {
                let url = absolute_url("--upstream", url, Path::new(""))?;
                format!("/upstreams/drain{}", self.end.query(&[("url", &url)]))
            }
            None => format!("/drain{}", self.end.query(&[])),
        };
        let drain = admin.post(&app_path(&self.host.name, &behind))?;
        finish(&mut admin, drain, self.end.patience())
    }
}

/// What `drain` takes.
#[derive(Debug, Args)]
pub(super) struct DrainOne {
    #[command(flatten)]
    drain: Drain,

    /// Drain one of the app's upstreams, named by its URL; the app continues with the others
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
}

impl DrainOne {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        self.drain.drain(self.upstream.as_deref(), place)
    }
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    host: Host,

    /// Resume one of the app's upstreams, named by its URL
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    #[command(flatten)]
    server: ServerOptions,
}

impl Resume {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        if let Some(url) = &self.upstream {
            let url = absolute_url("--upstream", url, Path::new(""))?;
            let behind = format!("/upstreams/resume?url={}", encode(&url));
            let answer = admin.post(&app_path(&self.host.name, &behind))?;
            admin.print(&answer, |answer: &Upstreams| apps::upstream_rows(&answer.upstreams))?;
            return Ok(DONE);
        }
        let answer = admin.post(&app_path(&self.host.name, "/resume"))?;
        admin.print(&answer, changed)?;
        Ok(DONE)
    }
}
