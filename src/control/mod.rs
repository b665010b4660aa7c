//! The control side of the server: threads that decide what is served, and until when.
//!
//! - `control`: the thread that changes the registry and sees every drain to its end. It waits for
//!   nothing but its channel. Its parts: `lives` (apps and their drains), `listeners`, `stop`,
//!   `succession` (the process after this one), and the watches over loops, logs and the operator.
//!   They act through `context`.
//! - `operator`: what may wait for a disk (reading the config, loading apps, starting a new
//!   process), one task after the other. It gives control what is ready.
//! - `admin`: answers requests for what only has to be looked up, and passes the others on.
//! - `upstreams`: checks of upstreams, and the look-up of their names.
//!
//! A `life` is one loaded instance of an app: [`crate::registry`] says more. All of this knows the
//! loops only by [`crate::message`].

mod admin;
mod answer;
mod certificate_list;
mod certificates;
mod change_error;
mod changes;
mod context;
#[expect(clippy::module_inception, reason = "the folder is named for its thread")]
mod control;
mod deploys;
mod drain_log;
mod drain_plan;
mod drain_view;
mod drains;
mod emptied;
mod forecast;
mod gate_plan;
mod hand_over;
mod handshakes;
mod history;
mod input;
mod kept_sockets;
mod listeners;
mod listening;
mod lives;
mod load;
mod log_watch;
mod loops;
mod notices;
mod operator;
mod put;
mod reload;
mod reloaded;
mod service_manager;
mod signals;
#[cfg(test)]
mod simulation;
mod stop;
mod stop_plan;
mod stopping;
mod stuck_loop;
mod succession;
mod tasks;
#[cfg(test)]
mod test_support;
mod totals;
mod upgrade;
mod upstreams;
mod views;
mod watchdog;
mod watchers;

pub(crate) use admin::{Admin, AdminApp, AdminRequest, Facts, HealthApp};
pub(crate) use answer::Answer;
pub(crate) use certificate_list::LiveList;
pub(crate) use certificates::{
    Certificates, EarlyCertificates, certificate_warnings, certificate_watch,
};
pub use change_error::ChangeError;
pub(crate) use change_error::PutError;
pub(crate) use changes::{Begun, PutMode};
pub(crate) use control::{Control, Ended};
pub(crate) use deploys::{
    Board, Client as DeployClient, DeployParts, Deploys, Ending as DeployEnding,
    Outcome as DeployOutcome, Progress as DeployProgress, UpstreamChecks,
};
pub(crate) use drain_view::{DrainName, DrainView};
pub use drain_view::{DrainTicket, Verdict};
pub use emptied::Emptied;
pub(crate) use input::{
    DrainApp, DrainUpstream, Input, LifeView, LoopReport, PutApp, RemoveApp, Report, ResumeApp,
    ResumeUpstream, StopAsker, StopRequest, ask, send,
};
pub(crate) use listening::{Listening, tls_port};
pub(crate) use load::{load, unavailable};
pub(crate) use loops::LoopThreads;
pub(crate) use notices::Notices;
pub(crate) use operator::{Operator, OperatorHost, RenewedAdmin};
pub(crate) use reloaded::Reloads;
pub use reloaded::{ReloadError, ReloadOptions, Reloaded};
pub(crate) use service_manager::{ServiceManager, is_stored};
pub(crate) use signals::StopSignals;
pub use signals::{EarlySignals, SignalRequest, forward_signals, unblock_all};
pub(crate) use stuck_loop::StuckLoop;
pub(crate) use tasks::{Task, TaskReceiver, TaskSender, Tell, tasks};
pub(crate) use upgrade::{
    Generation, HandedAdmin, HandedHealth, Inherited, InheritedSockets, LAUNCH, NoTakeOver,
    PassedStop, Predecessor, StopReceipt, StopRelay, TakeOver, UpgradeError, UpgradeOptions,
    Upgraded, Upgrader, launch,
};
pub(crate) use watchers::DrainWatch;
