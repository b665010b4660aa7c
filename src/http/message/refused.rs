//! Why a message is refused.

/// Why a message is refused. A client gets an answer with this status; then its connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong with the message, as the answer's content says it.
    pub reason: &'static str,
}

pub(crate) const fn refused(status: u16, reason: &'static str) -> Refused {
    Refused { status, reason }
}
