//! The interface of a filter.

use std::any::Any;

use crate::{
    app::Peer,
    http::{Fields, RequestHead, Response},
};

/// A policy for the requests and answers of an app. All loops share it.
pub(super) trait Filter: Any + Send + Sync {
    /// Sees a request before the app does. If it returns an answer, the app doesn't get the
    /// request.
    fn on_request(
        &self,
        _request: &RequestHead<'_>,
        _arrival: Arrival,
    ) -> Option<Response<'static>> {
        None
    }

    /// Changes the fields of an answer of this status.
    fn on_response(&self, _status: u16, _fields: &mut Fields<'_>) {}

    /// A copy of this filter for the app's next life.
    fn again(&self) -> Box<dyn Filter>;

    /// Takes over state from a filter of the previous life. Called with each filter of that life;
    /// one of another type is ignored.
    fn take_over(&mut self, _before: &dyn Any) {}

    /// A name and a count for the app's row in the admin API.
    fn count(&self) -> Option<(&'static str, u64)> {
        None
    }
}

/// The peer and the time of a request, which its head does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The peer of the connection.
    pub(crate) peer: Peer,
    /// Nanoseconds since a start that is the same for all loops.
    pub(crate) now_ns: u64,
}
