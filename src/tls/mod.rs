//! TLS without a socket and without a clock: certificates, policies, sessions, tickets.
//!
//! The only place that names rustls. Bytes come in, and bytes go out:
//!
//! ```text
//!  wire ──► Hello ──SNI──► CertificateTable ──SiteTls──► Session ──► plain
//!            │ no TLS          │ unknown name              │ ▲
//!            ▼                 ▼                           ▼ │
//!        plain HTTP: 400   unrecognized_name             Sealed ──► wire
//!
//!  Session:  Handshake ──finished──► Open ──close_notify──► PeerClosed
//!                │                    │                        │
//!                └──── any fault ─────┴────────► Failed ◄──────┘
//! ```
//! - [`Hello`] reads the client's first message, without taking it: its name chooses the
//!   certificate and the policy, and the session then reads the same bytes.
//! - [`CertificateTable`] is an immutable snapshot. A reload, a renewal and a rotation of the
//!   ticket keys each build a new one. A session keeps what it was made with (I11).
//! - [`Session`] is either side of a connection: `receive`, `send`, `close`. In `Handshake` it
//!   sends and receives no content. In `PeerClosed` it can still send. In `Failed` its last words,
//!   an alert, are in the output, and nothing more is read or sealed.
//! - A ticket opens only sessions of the policy that it was sealed under (I12): [`TicketKeys`].
//! - No private key, ticket key or session secret has a `Debug`, or gets into an error.
//! - I9: a session holds no more than its buffers. What a peer may send without content is bounded.

#[cfg(test)]
mod attack_tests;
mod authorities;
mod certificate;
mod client;
mod client_certificate;
mod error;
mod files;
pub mod fuzzing;
mod hello;
mod live;
mod names;
mod own_authority;
mod policy;
mod provider;
mod reason;
mod records;
mod sealed;
mod self_signed;
mod session;
mod table;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
mod tickets;

pub(crate) use authorities::{ClientAuth, ClientCa, Roots};
pub(crate) use certificate::{Certificate, ExportedCertificate, Validity};
pub(crate) use client::{ClientTls, ServerCheck};
pub use client_certificate::ClientCertificate;
pub(crate) use error::{CertificateError, TlsError};
pub(crate) use files::{FileStamp, is_chain_of, load_certificate, load_client_ca, load_roots};
pub(crate) use hello::{Hello, HelloRead, UNRECOGNIZED_NAME};
pub(crate) use live::{LiveTable, Served, TableView};
pub(crate) use own_authority::OwnAuthority;
pub(crate) use policy::{MinVersion, Policy};
pub(crate) use reason::Fault;
pub(crate) use sealed::Sealed;
pub(crate) use self_signed::self_signed;
pub(crate) use session::{Negotiated, SEALED_BYTES_MAX, Session, WIRE_BYTES};
#[cfg(test)]
pub(crate) use table::SiteTls;
pub(crate) use table::{CertificateTable, Site};
pub(crate) use tickets::TicketKeys;
