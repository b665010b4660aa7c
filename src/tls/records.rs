//! rustls' records, step by step, and where their content goes.

use rustls::{
    CommonState,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{
        ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    },
};

use super::{error::TlsError, sealed::Sealed};

/// What sealing one record adds at most, with a KeyUpdate before it.
const OVERHEAD_BYTES: usize = 256;

/// Either side of a session, as the library has it.
pub(super) enum Conn {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// Where decrypted content goes.
pub(super) struct Plain<'a> {
    pub(super) room: &'a mut [u8],
    pub(super) filled: usize,
    pub(super) leftover: &'a mut Vec<u8>,
}

/// What is to be sealed once the session allows it.
#[derive(Clone, Copy)]
pub(super) enum ToSeal<'a> {
    Nothing,
    Content(&'a [u8]),
    CloseNotify,
}

/// What one step has come to.
pub(super) enum Step {
    Again,
    /// All whole records are read.
    NeedsWire,
    /// The same, and the handshake is over: what was to be sealed is.
    Writable,
    PeerClosed,
    Closed,
}

impl Conn {
    pub(super) fn state(&self) -> &CommonState {
        match self {
            Self::Server(conn) => conn,
            Self::Client(conn) => conn,
        }
    }

    pub(super) fn step(
        &mut self,
        wire: &mut [u8],
        plain: &mut Plain<'_>,
        to_seal: ToSeal<'_>,
        out: &mut Sealed,
    ) -> (usize, Result<Step, TlsError>) {
        match self {
            Self::Server(conn) => step(conn.process_tls_records(wire), plain, to_seal, out),
            Self::Client(conn) => step(conn.process_tls_records(wire), plain, to_seal, out),
        }
    }

    /// After an error, what rustls still has to say. It wants the same bytes again, for it may have
    /// noted places in them, but must not read them: it would fail a second time.
    pub(super) fn drain_alert(&mut self, wire: &mut [u8], out: &mut Sealed) {
        let (mut nowhere, mut at) = (Vec::new(), 0);
        let mut plain = Plain { room: &mut [], filled: 0, leftover: &mut nowhere };
        while self.state().wants_write() {
            let (discard, step) = self.step(&mut wire[at..], &mut plain, ToSeal::Nothing, out);
            at += discard;
            if step.is_err() || plain.has_leftover() {
                return;
            }
        }
    }
}

fn step<Side>(
    status: UnbufferedStatus<'_, '_, Side>,
    plain: &mut Plain<'_>,
    to_seal: ToSeal<'_>,
    out: &mut Sealed,
) -> (usize, Result<Step, TlsError>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(error) => Err(error.into()),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Step::Again),
                Some(Err(error)) => break Err(error.into()),
                Some(Ok(record)) => {
                    plain.write(record.payload);
                    discard += record.discard;
                }
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            append(out, 0, |room| data.encode(room)).map(|()| Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match to_seal {
            ToSeal::Nothing => Ok(()),
            ToSeal::Content(content) => {
                let len = content.len() + OVERHEAD_BYTES;
                append(out, len, |room| traffic.encrypt(content, room))
            }
            ToSeal::CloseNotify => {
                append(out, OVERHEAD_BYTES, |room| traffic.queue_close_notify(room))
            }
        }
        .map(|()| Step::Writable),
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::NeedsWire),
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerClosed),
        Ok(ConnectionState::Closed) => Ok(Step::Closed),
        // No early data is accepted, so none is delivered.
        Ok(_) => Err(TlsError::Ended),
    };
    (discard, step)
}

/// Appends what `write` puts into the room that it is given. It says when that is too small.
fn append<E: Into<Appended>>(
    out: &mut Sealed,
    len: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), TlsError> {
    let mut len = len;
    loop {
        match write(out.room(len)).map_err(Into::into) {
            Ok(written) => {
                out.fill(written);
                return Ok(());
            }
            Err(Appended::Needs(required)) if required > len => len = required,
            Err(_) => return Err(TlsError::Ended),
        }
    }
}

/// Why nothing was appended.
enum Appended {
    Needs(usize),
    Refused,
}

impl From<EncodeError> for Appended {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => {
                Self::Needs(required_size)
            }
            EncodeError::AlreadyEncoded => Self::Refused,
        }
    }
}

impl From<EncryptError> for Appended {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => {
                Self::Needs(required_size)
            }
            EncryptError::EncryptExhausted => Self::Refused,
        }
    }
}

impl Plain<'_> {
    pub(super) fn has_leftover(&self) -> bool {
        !self.leftover.is_empty()
    }

    fn write(&mut self, content: &[u8]) {
        let room = &mut self.room[self.filled..];
        // Behind what waits already there is no room.
        let len = if self.leftover.is_empty() { content.len().min(room.len()) } else { 0 };
        room[..len].copy_from_slice(&content[..len]);
        self.filled += len;
        self.leftover.extend_from_slice(&content[len..]);
    }
}
