//! Changes of the apps that control makes, and what they came to.

use std::sync::Arc;

use crate::{
    hosted::{AppLife, HostedApp},
    registry::{AppId, NameTaken, NewLife},
};

/// What is to be under a host, by an operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutMode {
    /// A new app; an error if there is one.
    Add,
    /// A new life of an app; an error if there is none.
    Replace,
    /// Whichever it comes to.
    Either,
    /// A new life of the app as it was at this moment, or a new app if there was none; an error if
    /// that has changed.
    Since(Base),
}

/// What was under a host at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// The life, and whether it drained.
    life: Option<(AppId, bool)>,
}

impl Base {
    pub(crate) fn of(life: Option<&AppLife>) -> Self {
        Self { life: life.map(|life| (life.id(), life.drain().draining())) }
    }
}

/// What a change came to.
pub(crate) struct Begun {
    pub(crate) life: Arc<AppLife>,
    /// The old life, if it drains now.
    pub(crate) drain: Option<AppId>,
    /// Whether there was an app under the host before.
    pub(crate) replaced: bool,
}

/// What a reload changes of the apps.
pub(crate) struct LifeChanges {
    /// Apps that are new, or changed.
    pub(crate) begin: Vec<NewLife<HostedApp>>,
    /// Apps that are no longer wanted.
    pub(crate) remove: Vec<Arc<AppLife>>,
    pub(crate) default_app: Option<String>,
}

/// What a reload came to.
pub(crate) struct LivesChanged {
    /// For each life that was to begin, in that order; none for an app that stays as it is: it is
    /// drained on demand, or its new life could not be loaded.
    pub(crate) begun: Vec<Option<Result<Arc<AppLife>, NameTaken>>>,
    /// Lives that drain now.
    pub(crate) drains: Vec<AppId>,
}
