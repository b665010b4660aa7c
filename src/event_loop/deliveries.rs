//! How an answer from outside the loop finds its exchange.

use crate::{
    app::Deliver,
    logging::event,
    message::{ExchangeId, ExchangeNumber, LoopCommand, LoopHandle},
};

/// The way into the loop, and the numbers of its exchanges: no two have the same, so a late
/// delivery reaches no other exchange.
pub(super) struct Deliveries {
    handle: LoopHandle,
    last_number: u64,
}

impl Deliveries {
    pub(super) fn new(handle: LoopHandle) -> Self {
        Self { handle, last_number: 0 }
    }

    /// The number for a new exchange.
    pub(super) fn next_number(&mut self) -> ExchangeNumber {
        self.last_number += 1;
        ExchangeNumber(self.last_number)
    }

    /// The way to this exchange.
    pub(super) fn way_to(&self, id: ExchangeId) -> Deliver {
        let handle = self.handle.clone();
        Box::new(move |delivery| {
            let sent = handle.send(LoopCommand::Deliver(id, delivery));
            sent.unwrap_or_else(|error| {
                event!(Error, "loop_not_woken", error:% = error);
                false
            })
        })
    }
}
