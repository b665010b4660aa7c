//! Per-class values, and how the classes differ.
//!
//! A loop has one acceptor and one set of rules for each class: rows of a table. A new class is a
//! new row.

use std::{
    ops::{Index, IndexMut},
    sync::Arc,
    time::Duration,
};

use crate::{
    app::App,
    config::Limits,
    http::{self, Refused, RequestHead},
    message::Class,
};

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

/// How connections of one class are served.
pub(super) struct ClassRules {
    pub(super) http: http::Limits,
    pub(super) times: Limits,
    /// Answers all their requests; `None` for the public class, and for a class that is off.
    pub(super) app: Option<Arc<dyn App>>,
}

impl ClassRules {
    pub(super) fn new(limits: Limits, app: Option<Arc<dyn App>>) -> Self {
        let http = http::Limits {
            head_bytes: limits.head_bytes,
            fields: limits.headers,
            content_bytes: limits.body_bytes,
        };
        Self { http, times: limits, app }
    }

    /// A class's rules, given the config's limits for public connections.
    pub(super) fn of(class: Class, public: &Limits, app: Option<Arc<dyn App>>) -> Self {
        let limits = match class {
            Class::Public => public.clone(),
            // Whatever the config sets for public connections, the admin stays reachable: 16 KiB of
            // head, 100 fields and 1 MiB of content.
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
        };
        Self::new(limits, app)
    }
}

/// How long each step of a probe may take. Any machine can connect to the health listener, and must
/// not hold the places that load balancers need.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a request of this class doesn't reach its app: a probe has no content, and none is read.
pub(super) fn refusal(class: Class, head: &RequestHead<'_>) -> Option<Refused> {
    let has_content = class == Class::Health && head.content().follows();
    has_content.then_some(Refused { status: 413, reason: "a probe has no content" })
}

/// Further windows of `linger_timeout` for a peer that keeps sending, after the first.
pub(super) fn linger_windows(class: Class) -> u8 {
    match class {
        Class::Public | Class::Admin => 15,
        Class::Health => 0,
    }
}
