//! A new process, as far as a run knows it, and what has to come of it.

use std::time::Instant;

use crossbeam_channel::Receiver;

use super::super::{
    LifeView, Report,
    upgrade::{HandOver, HandOverPlan, OnItsWay},
};
use crate::acknowledgement::Acknowledgements;

/// The new process.
pub(super) const PID: u32 = 7;

/// How far an upgrade is.
#[derive(Default)]
pub(super) enum Upgrade {
    #[default]
    None,
    /// Control was asked for a report, and then for the lives.
    Asked(Option<Box<Report>>),
    /// The new process is to get ready, or to go.
    Starting(Box<Starting>),
    Serving(Serving),
}

/// A new process that does not serve.
pub(super) struct Starting {
    pub(super) plan: HandOverPlan,
    pub(super) handed: HandOver,
    /// What it does when it gets `HandOver`, and `Go`.
    pub(super) script: (Conduct, Conduct),
    /// Control is asked to hold everything, and answers: with the lives, then with a report.
    pub(super) holding: Option<Vec<LifeView>>,
    pub(super) is_asked_to_hold: bool,
    /// When it got the order to go.
    pub(super) gone_at: Option<Instant>,
}

/// A new process that serves: stops for it come here.
pub(super) struct Serving {
    pub(super) stops: Receiver<OnItsWay>,
    pub(super) let_go: Acknowledgements,
    /// It has spoken out of turn, and is not listened to any more.
    pub(super) is_unheard: bool,
}

/// What a new process does with a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Conduct {
    Obey,
    Fail,
    SpeakOutOfTurn,
    CloseChannel,
    Hang,
}

/// What the way back from an upgrade depends on, as the messages say it.
#[derive(Default)]
pub(super) struct WayBack {
    /// Control holds everything for a new process.
    pub(super) is_held: bool,
    /// A stop that was asked for meanwhile: when, and whether an operator asked for it alone.
    pub(super) stop_waits: Option<(Instant, bool)>,
    /// The old process keeps the sockets of the new one.
    pub(super) keeps: bool,
    pub(super) has_failed_loop: bool,
}

/// What has to come of an input.
pub(super) enum Expected {
    Nothing,
    /// The server stops.
    Stop,
    /// More stops than these are passed on.
    PassedOn(usize),
    /// This process serves again.
    TakenUp,
    /// It does not.
    HandedOver,
}
