//! The drill: a load of many kinds of clients, actions under it, and an account of every request.
//!
//! ```text
//! plan ──requests──► load ─ connections ─ timer ──outcomes──► ledger ─ timeline ► picture
//!   └───actions────► actions (a thread) ──marks──┘
//! ```
//! Plan, ledger, timeline and picture are pure. The load is one thread with one poll; actions run
//! beside it and say when they begin and end. What an action does is up to an [`Actor`], which the
//! command line gives.

mod actions;
mod connection;
mod ledger;
mod load;
mod picture;
mod plan;
mod probe;
mod server;
mod timeline;
mod timer;

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

pub(crate) use actions::{Actor, Pace, Shell};
pub(crate) use ledger::{Booking, Changed, Counts, Group, Ledger, Run, Told, micros};
pub(crate) use load::{LoadSettings, Loaded};
pub(crate) use picture::draw;
pub(crate) use plan::{Action, ClientKind, Target, actions};
pub(crate) use probe::probe;
pub(crate) use server::{OwnServer, apps, is_gone};

use load::Load;

/// The narrowest column of a picture.
const COLUMN_MIN: Duration = Duration::from_millis(50);

/// As many columns as a picture has that is over when it was planned to.
const COLUMNS: u32 = 400;

/// Puts the load on a server while `actor` does the actions. `expected`: the status that each
/// target has before, as far as it is known.
///
/// # Errors
/// When this machine refuses what a load needs.
pub(crate) fn run(
    settings: &LoadSettings,
    expected: &[Option<u16>],
    actions: &[Action],
    pace: Pace,
    actor: &mut dyn Actor,
    interrupted: &AtomicBool,
) -> io::Result<Loaded> {
    let count = u32::try_from(actions.len()).unwrap_or(u32::MAX);
    let planned = pace.every.saturating_mul(count) + pace.lead + settings.settle;
    let mut ledger = Ledger::new(settings.targets.clone(), (planned / COLUMNS).max(COLUMN_MIN));
    for (target, status) in expected.iter().enumerate() {
        if let Some(status) = status {
            ledger.expect(target, *status);
        }
    }
    let (sender, marks) = crossbeam_channel::unbounded();
    let epoch = Instant::now();
    let load = Load::new(settings, epoch, marks, ledger)?;
    thread::scope(|scope| {
        let name = "actions".to_owned();
        let act = || actions::act_all(actor, actions, pace, epoch, &sender, interrupted);
        thread::Builder::new().name(name).spawn_scoped(scope, act)?;
        let loaded = load.run(interrupted);
        // With a load that failed, there is no sense in further actions.
        interrupted.fetch_or(loaded.is_err(), Ordering::Relaxed);
        loaded
    })
}
