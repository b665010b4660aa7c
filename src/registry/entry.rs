//! One life of an app, and what it is to be registered as.

use std::fmt;

use super::AppDrainState;
use crate::sync::Arc;

/// Names one life of an app. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(pub(super) u64);

impl AppId {
    /// The number behind the name.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl std::str::FromStr for AppId {
    type Err = std::num::ParseIntError;

    /// Reads a name back; there may be no such life.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What an app is to be registered as.
#[derive(Debug)]
pub struct NewApp<A> {
    /// The primary name, lower case.
    pub host: String,
    /// Further names, lower case.
    pub aliases: Vec<String>,
    /// The app itself.
    pub app: A,
}

/// A life that begins, alone or in the place of another.
#[derive(Debug)]
pub struct NewLife<A> {
    /// What begins.
    pub app: NewApp<A>,
    /// The life that leaves the map in the same step. It is not drained by that.
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
    /// The life's name.
    pub fn id(&self) -> AppId {
        self.id
    }

    /// The primary host name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Further names.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// The app itself.
    pub fn app(&self) -> &A {
        &self.app
    }

    /// What is in flight, and whether the life is draining.
    pub fn drain(&self) -> &AppDrainState {
        &self.drain
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.host).chain(&self.aliases)
    }
}
