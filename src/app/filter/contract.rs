//! The interface of a filter.

use std::any::Any;

use super::stage::Stage;
use crate::{
    app::{Peer, Scheme},
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

    /// Sees a request that all filters let pass. Returns what changes the content of its answer, if
    /// something may. Of an app's filters, the last with a stage has its way.
    fn stage(&self, _request: &RequestHead<'_>) -> Option<Box<dyn Stage>> {
        None
    }

    /// Changes the fields of an answer of this status, to a request of this scheme.
    fn on_response(&self, _status: u16, _scheme: Scheme, _fields: &mut Fields<'_>) {}

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

/// What the head of a request does not have: its connection, and the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The peer of the connection.
    pub(crate) peer: Peer,
    /// The scheme of the request.
    pub(crate) scheme: Scheme,
    /// The client has shown a certificate that the app accepts.
    pub(crate) has_client_certificate: bool,
    /// The port on which the server speaks TLS, if it does.
    pub(crate) tls_port: Option<u16>,
    /// Nanoseconds since a start that is the same for all loops.
    pub(crate) now_ns: u64,
}
