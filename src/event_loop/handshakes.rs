//! TLS as a loop needs it: which certificate a name gets, and how much of a turn handshakes take.

use std::sync::Arc;

use crate::tls::{LiveTable, TableView};

/// Flights of handshakes that are answered in one turn. With RSA one takes up to 1 ms: the others
/// wait behind the connections that have requests.
const FLIGHTS_PER_TURN: u32 = 4;

/// Certificates, and the handshakes of this turn.
pub(super) struct Handshakes {
    pub(super) view: TableView,
    flights_left: u32,
}

impl Handshakes {
    pub(super) fn new(certificates: Arc<LiveTable>) -> Self {
        Self { view: TableView::new(certificates), flights_left: FLIGHTS_PER_TURN }
    }

    /// A turn of the loop begins.
    pub(super) fn begin_turn(&mut self) {
        self.flights_left = FLIGHTS_PER_TURN;
    }

    /// Whether one more flight may be answered in this turn.
    pub(super) fn take_flight(&mut self) -> bool {
        let may = self.flights_left > 0;
        self.flights_left = self.flights_left.saturating_sub(1);
        may
    }
}
