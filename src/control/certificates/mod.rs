//! The certificates of the apps: where they come from, and how they change while the server runs.
//!
//! ```text
//!  Config ─► Wanted ─► Sources (files, read) ─► Held (which app has which certificate) ─► NewTable
//!                         ▲     reload, start: reads all files
//!                         └──── look:          reads files that changed
//! ```
//! - [`Wanted`] is what a config says of certificates. [`Sources`] are the files that it names; it
//!   is the one place that lists and reads them. Each file that can't be used leaves what was read
//!   from it before ([`kept`]).
//! - An app whose certificate can't be used keeps the one before; without one it isn't served over
//!   TLS, and no other app is touched (I8).
//! - A self-signed certificate is made once for an app and its names.
//! - An upgrade hands all of them to the new process ([`handed`]). It keeps a certificate that is
//!   broken on disk by then, or whose key this user can't read.
//! - At the start files are read before the process gives up root's rights, so that keys may be
//!   readable for root alone ([`EarlyCertificates`]). Later it can't read these again: it keeps
//!   what it has, and says so.
//!
//! # Files that change by themselves
//!
//! A thread of its own looks at the files ([`watch`]), so a disk that hangs holds up neither the
//! operator nor a drain nor a loop. The operator decides what holds:
//!
//! ```text
//!  operator                                       watcher
//!  Basis (number, Held) ────────────────────────► waits LOOK_EVERY
//!                                                 reads what changed since the Basis
//!  takes it, if the Basis still holds  ◄───────── Look (number of its Basis, Held)
//!  publishes the table, next Basis ─────────────► waits
//! ```
//! - The operator does one thing after the other, so a look is never taken in the middle of a
//!   reload or an upgrade.
//! - Each reload that holds, and each look that is taken, makes a new Basis with a new number. A
//!   look with an older number is dropped: a reload that came to hold while the look was under way
//!   wins. If the look saw a file that changed after the reload had read it, the next look finds
//!   the same, since it compares with what the reload has read.
//! - A reload that is refused makes no Basis; the look stays valid.
//! - While the server stops, or another process serves in its place, a look is dropped, and the
//!   watcher finds the same change again: so a process that takes up again takes it then. The
//!   new process of an upgrade has read the files itself.
//! - A new certificate doesn't fit an old key. Such a pair is reported, the previous certificate
//!   stays, and each look reads the pair again until it fits.

mod check;
mod expiry;
mod handed;
mod kept;
mod remarks;
mod sources;
mod state;
mod wanted;
mod watch;

pub(crate) use check::certificate_warnings;
pub(crate) use handed::HandedCertificates;
pub(crate) use remarks::Remarks;
pub(crate) use state::{Certificates, EarlyCertificates, NewTable};
pub(crate) use watch::{CertificateWatch, Look, certificate_watch};
