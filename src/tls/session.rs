//! One side of a TLS connection, over the caller's buffers.
//!
//! ```text
//!  Handshake ──finished──► Open ──close_notify──► PeerClosed
//!      │                    │                        │
//!      └───── any fault ────┴────────► Failed ◄──────┘
//! ```
//! - `receive` reads whole records from the caller's wire bytes into its plain bytes. What finds no
//!   room there waits in the session, and then no further record is read: at most what the wire
//!   buffer holds.
//! - `send` seals at most one record's content behind what is in the output. It works in `Open` and
//!   `PeerClosed`.
//! - `close` queues close_notify. A second one queues nothing.
//! - In `Failed` the output ends with an alert that says why, if one can be sent.
//! - Everything that rustls queues (handshake, KeyUpdate answers, alerts) is in the output before a
//!   call returns.
//! - I9: content-less records after the handshake (KeyUpdate, empty, tickets) are bounded by bytes
//!   between two pieces of content. rustls bounds them by number, but starts again at each empty
//!   record.

use std::sync::Arc;

use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, ProtocolVersion, client::UnbufferedClientConnection,
    pki_types::ServerName, server::UnbufferedServerConnection,
};

use super::{
    client::ClientTls,
    error::TlsError,
    records::{Conn, Plain, Step, ToSeal},
    sealed::Sealed,
    table::SiteTls,
};

/// The largest record: head, content, and what sealing may add (RFC 8446 §5.2, RFC 5246 §6.2.3).
pub(crate) const WIRE_BYTES: usize = 5 + SEALED_BYTES_MAX + 2048;

/// The most content that one record holds.
pub(crate) const SEALED_BYTES_MAX: usize = 16 * 1024;

const TLS13: &str = "TLSv1.3";

/// Bytes on the wire between two pieces of content: a record's worth. A KeyUpdate has 27.
const BARREN_BYTES_MAX: usize = SEALED_BYTES_MAX;

/// A session of either side.
pub(crate) struct Session {
    conn: Conn,
    stage: Stage,
    /// Content that found no room, from `leftover_start` on.
    leftover: Vec<u8>,
    leftover_start: usize,
    /// Bytes received since the last content, once the handshake is over.
    barren_bytes: usize,
    has_closed: bool,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    Open,
    /// The peer has sent close_notify: its content is complete.
    PeerClosed,
    Failed,
}

/// What a call of [`Session::receive`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes of the wire that are done with.
    pub(crate) consumed: usize,
    /// Bytes written to the plain room.
    pub(crate) produced: usize,
    /// The plain room is full, and there may be more: receive again, also without wire bytes.
    pub(crate) is_full: bool,
    /// The peer has said that nothing more comes.
    pub(crate) is_end: bool,
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated<'a> {
    /// `TLSv1.3` or `TLSv1.2`.
    pub(crate) version: &'static str,
    /// The suite's name, as IANA has it.
    pub(crate) cipher: &'static str,
    /// An earlier session went on.
    pub(crate) is_resumed: bool,
    /// The protocol, if one was chosen.
    pub(crate) protocol: Option<&'a [u8]>,
    /// The peer's certificate, if it has shown one.
    pub(crate) peer_certificate: Option<&'a [u8]>,
}

impl Negotiated<'_> {
    /// Whether it is TLS 1.3.
    pub(crate) fn is_tls13(&self) -> bool {
        self.version == TLS13
    }
}

impl Session {
    /// A server's session for a client whose hello has chosen this site.
    ///
    /// # Errors
    /// rustls refuses its configuration.
    pub(crate) fn accept(site: &SiteTls) -> Result<Self, TlsError> {
        let conn = UnbufferedServerConnection::new(Arc::clone(site.config()))?;
        Ok(Self::new(Conn::Server(conn)))
    }

    /// A client's session. Its hello is in the output after the first `receive`.
    ///
    /// # Errors
    /// rustls refuses its configuration.
    pub(crate) fn connect(tls: &ClientTls) -> Result<Self, TlsError> {
        let (config, name) = tls.config();
        let conn = UnbufferedClientConnection::new(Arc::clone(config), name.clone())?;
        Ok(Self::new(Conn::Client(conn)))
    }

    /// A client's session of another configuration.
    pub(super) fn connect_with(
        config: ClientConfig,
        name: ServerName<'static>,
    ) -> Result<Self, TlsError> {
        let conn = UnbufferedClientConnection::new(Arc::new(config), name)?;
        Ok(Self::new(Conn::Client(conn)))
    }

    fn new(conn: Conn) -> Self {
        Self {
            conn,
            stage: Stage::Handshake,
            leftover: Vec::new(),
            leftover_start: 0,
            barren_bytes: 0,
            has_closed: false,
        }
    }

    /// Reads records from `wire` into `plain`, until one of them is exhausted. Bytes to be sent are
    /// in `out` afterwards, also after an error.
    ///
    /// `wire` begins where the call before stopped consuming, and holds the same bytes again; it
    /// has to have room for [`WIRE_BYTES`].
    ///
    /// # Errors
    /// The session has failed, and reads nothing more.
    pub(crate) fn receive(
        &mut self,
        wire: &mut [u8],
        plain: &mut [u8],
        out: &mut Sealed,
    ) -> Result<Progress, TlsError> {
        if self.stage == Stage::Failed {
            return Err(TlsError::Ended);
        }
        let from_leftover = self.take_leftover(plain);
        let (mut consumed, mut produced) = (0, from_leftover);
        if !self.has_leftover() {
            (consumed, produced) = self.drive(wire, plain, from_leftover, ToSeal::Nothing, out)?;
            let has_content = produced > from_leftover || self.has_leftover();
            self.count_barren(consumed, has_content, &mut wire[consumed..], out)?;
            let is_stuck = consumed == 0 && wire.len() >= WIRE_BYTES && !self.has_leftover();
            if is_stuck && self.stage != Stage::PeerClosed {
                self.stage = Stage::Failed;
                return Err(TlsError::TooLong);
            }
        }
        let is_full = self.has_leftover();
        let is_end = self.stage == Stage::PeerClosed && !is_full;
        Ok(Progress { consumed, produced, is_full, is_end })
    }

    /// Seals content, at most [`SEALED_BYTES_MAX`]. `wire` is what [`Session::receive`] has left.
    /// Returns how many bytes of the wire are done with.
    ///
    /// # Errors
    /// The session has failed, or isn't open yet.
    pub(crate) fn send(
        &mut self,
        content: &[u8],
        wire: &mut [u8],
        out: &mut Sealed,
    ) -> Result<usize, TlsError> {
        debug_assert!(content.len() <= SEALED_BYTES_MAX, "more than a record");
        if !self.is_open() || self.has_closed {
            return Err(TlsError::Ended);
        }
        self.drive(wire, &mut [], 0, ToSeal::Content(content), out).map(|(consumed, _)| consumed)
    }

    /// Says that nothing more will be sent. Returns how many bytes of the wire are done with.
    ///
    /// # Errors
    /// The session has failed.
    pub(crate) fn close(&mut self, wire: &mut [u8], out: &mut Sealed) -> Result<usize, TlsError> {
        if !self.is_open() || self.has_closed {
            return Ok(0);
        }
        let closed = self.drive(wire, &mut [], 0, ToSeal::CloseNotify, out);
        self.has_closed = true;
        closed.map(|(consumed, _)| consumed)
    }

    /// Whether content can be sent.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::PeerClosed)
    }

    /// Whether it reads and seals nothing more.
    pub(crate) fn has_failed(&self) -> bool {
        self.stage == Stage::Failed
    }

    /// Whether the handshake goes on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.stage == Stage::Handshake
    }

    /// Whether the peer has said that nothing more comes. An end of the connection without that is
    /// a truncation.
    pub(crate) fn peer_has_closed(&self) -> bool {
        self.stage == Stage::PeerClosed
    }

    /// Whether content waits for room.
    pub(crate) fn has_leftover(&self) -> bool {
        self.leftover_start < self.leftover.len()
    }

    /// The first certificate that the peer has shown, verified.
    pub(crate) fn peer_certificate(&self) -> Option<&[u8]> {
        self.conn.state().peer_certificates().and_then(|all| Some(&**all.first()?))
    }

    /// What both sides agreed on, once the handshake is over.
    pub(crate) fn negotiated(&self) -> Option<Negotiated<'_>> {
        let state = self.conn.state();
        if state.is_handshaking() {
            return None;
        }
        let suite = state.negotiated_cipher_suite()?;
        Some(Negotiated {
            version: match state.protocol_version()? {
                ProtocolVersion::TLSv1_3 => TLS13,
                _ => "TLSv1.2",
            },
            cipher: cipher_name(suite.suite()),
            is_resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
            protocol: state.alpn_protocol(),
            peer_certificate: self.peer_certificate(),
        })
    }

    fn take_leftover(&mut self, plain: &mut [u8]) -> usize {
        let waiting = &self.leftover[self.leftover_start..];
        let len = waiting.len().min(plain.len());
        plain[..len].copy_from_slice(&waiting[..len]);
        self.leftover_start += len;
        if !self.has_leftover() {
            (self.leftover, self.leftover_start) = (Vec::new(), 0);
        }
        len
    }

    /// Steps until wire or room is exhausted. Returns the bytes consumed, and those in `room`.
    fn drive(
        &mut self,
        wire: &mut [u8],
        room: &mut [u8],
        filled: usize,
        to_seal: ToSeal<'_>,
        out: &mut Sealed,
    ) -> Result<(usize, usize), TlsError> {
        let mut consumed = 0;
        let mut plain = Plain { room, filled, leftover: &mut self.leftover };
        let failed = loop {
            let (discard, step) = self.conn.step(&mut wire[consumed..], &mut plain, to_seal, out);
            consumed += discard;
            if self.stage == Stage::Handshake && (plain.filled > filled || plain.has_leftover()) {
                // No early data is accepted: a peer that sends content has finished the handshake.
                self.stage = Stage::Open;
            }
            match step {
                // To seal, the records that are here have to be read first: they are few, and
                // their content waits.
                Ok(Step::Again) if !plain.has_leftover() => {}
                Ok(Step::Again) if !matches!(to_seal, ToSeal::Nothing) => {}
                Ok(Step::Again | Step::NeedsWire) => return Ok((consumed, plain.filled)),
                Ok(Step::Closed) => {
                    self.stage = Stage::PeerClosed;
                    return Ok((wire.len(), plain.filled));
                }
                Ok(Step::Writable) => {
                    if self.stage == Stage::Handshake {
                        self.stage = Stage::Open;
                    }
                    // What follows close_notify is ignored (RFC 8446 §6.1).
                    let is_over = self.stage == Stage::PeerClosed;
                    return Ok((if is_over { wire.len() } else { consumed }, plain.filled));
                }
                Ok(Step::PeerClosed) => self.stage = Stage::PeerClosed,
                Err(error) => break error,
            }
        };
        self.conn.drain_alert(&mut wire[consumed..], out);
        self.stage = Stage::Failed;
        Err(failed)
    }

    fn count_barren(
        &mut self,
        consumed: usize,
        has_content: bool,
        wire: &mut [u8],
        out: &mut Sealed,
    ) -> Result<(), TlsError> {
        if has_content || self.stage != Stage::Open {
            self.barren_bytes = 0;
            return Ok(());
        }
        self.barren_bytes += consumed;
        if self.barren_bytes <= BARREN_BYTES_MAX {
            return Ok(());
        }
        self.close(wire, out)?;
        self.stage = Stage::Failed;
        Err(TlsError::NoContent)
    }
}

/// The suite's name, as IANA has it.
fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
