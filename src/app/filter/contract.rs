//! What a filter is, and what it may know of a request.

use std::any::Any;

use crate::{
    app::Peer,
    http::{Fields, RequestHead, Response},
};

/// A policy that stands around an app. All loops share it.
pub(super) trait Filter: Any + Send + Sync {
    /// Looks at a request before the app does; an answer stops it here.
    fn on_request(
        &self,
        _request: &RequestHead<'_>,
        _arrival: Arrival,
    ) -> Option<Response<'static>> {
        None
    }

    /// Changes the fields of an answer of this status.
    fn on_response(&self, _status: u16, _fields: &mut Fields<'_>) {}

    /// The same filter for a further life of the app.
    fn again(&self) -> Box<dyn Filter>;

    /// Goes on with what the same filter of the life before has. Called with every filter of that
    /// life: others are of another type.
    fn take_over(&mut self, _before: &dyn Any) {}

    /// What the app's row in the admin API shows of it: a name and a count.
    fn count(&self) -> Option<(&'static str, u64)> {
        None
    }
}

/// How a request came: what its head does not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The peer of the connection.
    pub(crate) peer: Peer,
    /// Nanoseconds since the epoch that all loops share.
    pub(crate) now_ns: u64,
}
