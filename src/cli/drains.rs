//! `tidegate remove`, `drain` and `resume`: one app leaves, pauses, comes back.

use clap::Args;

use super::{
    DONE, Host,
    admin::{Place, ServerOptions, app_path},
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
    pub(super) fn drain(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let behind = format!("/drain{}", self.end.query());
        let drain = admin.post(&app_path(&self.host.name, &behind))?;
        finish(&mut admin, drain, self.end.patience())
    }
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    host: Host,

    #[command(flatten)]
    server: ServerOptions,
}

impl Resume {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let answer = admin.post(&app_path(&self.host.name, "/resume"))?;
        admin.print(&answer, changed)?;
        Ok(DONE)
    }
}
