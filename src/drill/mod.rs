//! The drill: load from many kinds of clients, actions while it runs, and a ledger of every
//! request.
//!
//! ```text
//! plan ──requests──► load ─ connections ─ timer ──outcomes──► ledger ─ timeline ► picture
//!   └───actions────► actions (a thread) ──marks──┘
//!                      └─ witness: a client apart from the load, for what TLS promises
//! ```
//! Plan, ledger, timeline and picture are pure. The load is one thread with one poll. The actions
//! run on a thread of their own and report when they begin and end. The command line provides the
//! [`Actor`] that runs them.

mod actions;
mod connection;
mod handshakes;
mod ledger;
mod load;
mod outcome;
mod picture;
mod plan;
mod pool;
mod probe;
mod request;
mod server;
mod settings;
mod svg;
mod timeline;
mod timer;
mod trust;
mod wire;
mod witness;

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

pub(crate) use actions::{Actor, Pace, Shell};
pub(crate) use handshakes::HandshakeGroup;
pub(crate) use ledger::{ChangedStatus, Group, Ledger, Run};
pub(crate) use load::LoadResult;
pub(crate) use outcome::{Booking, FailedRequest, Tally};
pub(crate) use picture::draw;
pub(crate) use plan::{Action, ClientKind, Target, actions};
pub(crate) use probe::probe;
pub(crate) use server::{OwnServer, apps, is_gone};
pub(crate) use settings::LoadSettings;
pub(crate) use trust::{ClientsTls, Trust};
pub(crate) use witness::Witness;

use load::Load;

/// The narrowest column in a picture.
const COLUMN_MIN: Duration = Duration::from_millis(50);

/// The number of columns in a picture, if the drill takes as long as planned.
const COLUMNS: u32 = 400;

/// Puts the load on a server while `actor` runs the actions. `expected`: each target's status
/// before the drill, where known.
///
/// # Errors
/// If the system denies a resource that the load needs.
pub(crate) fn run(
    settings: &LoadSettings,
    expected: &[Option<u16>],
    actions: &[Action],
    pace: Pace,
    actor: &mut dyn Actor,
    interrupted: &AtomicBool,
) -> io::Result<LoadResult> {
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
        // Without a load, further actions are pointless.
        interrupted.fetch_or(loaded.is_err(), Ordering::Relaxed);
        loaded
    })
}
