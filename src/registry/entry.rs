//! One life of an app.

use std::fmt;

use super::AppDrainState;
use crate::sync::Arc;

/// The id of one life of an app. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(pub(super) u64);

impl AppId {
    /// The id as a number.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl std::str::FromStr for AppId {
    type Err = std::num::ParseIntError;

    /// Parses an id. A life with this id need not exist.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An app to register.
#[derive(Debug)]
pub struct NewApp<A> {
    /// The primary host name, in lower case.
    pub host: String,
    /// Further host names, in lower case.
    pub aliases: Vec<String>,
    /// The app itself.
    pub app: A,
}

/// A life to begin.
#[derive(Debug)]
pub struct NewLife<A> {
    /// The app.
    pub app: NewApp<A>,
    /// The life that it replaces in the map, in the same step. That does not drain the old life.
    pub instead_of: Option<Arc<AppEntry<A>>>,
}

/// One life of an app.
#[derive(Debug)]
pub struct AppEntry<A> {
    pub(super) id: AppId,
    pub(super) host: String,
    pub(super) aliases: Vec<String>,
    pub(super) app: A,
    pub(super) drain: AppDrainState,
}

impl<A> AppEntry<A> {
    /// The life's id.
    pub fn id(&self) -> AppId {
        self.id
    }

    /// The primary host name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Further host names.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// The app itself.
    pub fn app(&self) -> &A {
        &self.app
    }

    /// The count of what is in flight, and the state of the drain.
    pub fn drain(&self) -> &AppDrainState {
        &self.drain
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.host).chain(&self.aliases)
    }
}
