//! Apps: what a host name serves. A new kind is a file or folder here, an arm in `load`, and its
//! keys in `config`.
//!
//! An app gets a checked request head and answers with a [`Reply`]. It runs on a loop's thread and
//! must not block: a reply can describe work that takes time, and the loop waits for it.

mod client;
mod contract;
mod errors;
mod files;
mod filter;
mod later;
mod load;
mod load_error;
mod per_loop;
mod proxy;
mod redirect;
mod respond;
#[cfg(test)]
pub(crate) mod test_support;
mod unavailable;

pub use crate::tls::ClientCertificate;
pub(crate) use client::{Client, PerClient};
pub(crate) use contract::COPIED_BYTES_MAX;
pub use contract::{App, Context, OnContent, Peer, Reply, Scheme, Segment};
use errors::{JSON_FIELDS, error_response};
pub use files::Files;
#[cfg(test)]
pub(crate) use filter::test_support::{marks, upper_case};
pub(crate) use filter::{Arrival, Filters, Stage};
pub(crate) use later::{Deliver, Delivery, Waiting};
pub use later::{Later, Stream};
pub use load::load;
pub use load_error::LoadError;

pub(crate) use proxy::{
    ChosenUpstream, ConnectAddress, Endpoint, EndpointRow, EndpointState, FailureCause, HealthPlan,
    KeptConn, LastFailure, OneUpstream, PoolKey, UpstreamFailure, UpstreamTls,
    write_request_trailers, write_response_fields, write_response_trailers,
};
pub use proxy::{Forward, Proxy, Upstreams};
pub use redirect::Redirect;
pub use respond::Respond;
pub use unavailable::Unavailable;
