//! Why a message is not served.

/// Why a message is refused. Its connection is closed; a client gets its answer before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong, for the answer's content.
    pub reason: &'static str,
}

pub(crate) const fn refused(status: u16, reason: &'static str) -> Refused {
    Refused { status, reason }
}
