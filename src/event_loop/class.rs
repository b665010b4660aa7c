//! What is kept for each class of connections, and in what the classes differ.
//!
//! A loop has one acceptor, one set of limits and, beside the public class, one app for each class:
//! rows of a table. A further class is a further row.

use std::{
    ops::{Index, IndexMut},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use super::{ConnectionBudget, http};
use crate::{
    app::App,
    config::Limits,
    http::{Refused, RequestHead},
    message::Class,
};

/// How a loop serves a class of connections beside the public ones.
pub(crate) struct SideSetup {
    pub(crate) class: Class,
    /// This loop's dup of the one socket.
    pub(crate) listener: OwnedFd,
    /// What answers every request on it.
    pub(crate) app: Arc<dyn App>,
    /// The process's connections of this class.
    pub(crate) budget: ConnectionBudget,
}

/// One value for each class.
#[derive(Debug)]
pub(super) struct PerClass<T>([T; Class::ALL.len()]);

impl<T> PerClass<T> {
    pub(super) fn new(make: impl FnMut(Class) -> T) -> Self {
        Self(Class::ALL.map(make))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Class, &mut T)> {
        Class::ALL.into_iter().zip(&mut self.0)
    }
}

impl<T> Index<Class> for PerClass<T> {
    type Output = T;

    fn index(&self, class: Class) -> &T {
        &self.0[class as usize]
    }
}

impl<T> IndexMut<Class> for PerClass<T> {
    fn index_mut(&mut self, class: Class) -> &mut T {
        &mut self.0[class as usize]
    }
}

/// What connections of one class may take.
pub(super) struct ClassLimits {
    pub(super) http: http::Limits,
    pub(super) times: Limits,
}

impl ClassLimits {
    pub(super) fn new(limits: Limits) -> Self {
        let http = http::Limits {
            head_bytes: limits.head_bytes,
            fields: limits.headers,
            content_bytes: limits.body_bytes,
        };
        Self { http, times: limits }
    }

    /// The limits of a class, where these are the config's for the public.
    pub(super) fn of(class: Class, public: &Limits) -> Self {
        Self::new(match class {
            Class::Public => public.clone(),
            // Whatever a config sets for the public, the admin can be reached: with 16 KiB of head,
            // 100 fields and 1 MiB of content.
            Class::Admin => Limits::default(),
            Class::Health => Limits {
                body_bytes: 0,
                head_timeout: PROBE_TIMEOUT,
                body_timeout: PROBE_TIMEOUT,
                write_timeout: PROBE_TIMEOUT,
                keepalive_timeout: PROBE_TIMEOUT,
                linger_timeout: PROBE_TIMEOUT,
                ..Limits::default()
            },
        })
    }
}

/// How long each step of a probe may take. Any machine can connect to the health listener, and must
/// not hold the places that balancers need.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a request of this class is not for its app: a probe has no content, and none is read.
pub(super) fn refusal(class: Class, head: &RequestHead<'_>) -> Option<Refused> {
    let has_content = class == Class::Health && head.content().follows();
    has_content.then_some(Refused { status: 413, reason: "a probe has no content" })
}

/// Windows of `linger_timeout` that a peer who keeps sending may linger, beside the first.
pub(super) fn linger_windows(class: Class) -> u8 {
    match class {
        Class::Public | Class::Admin => 15,
        Class::Health => 0,
    }
}
