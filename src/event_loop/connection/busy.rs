//! Reports connections that hold an app's life.

use std::time::Duration;

use super::{
    super::{context::LoopContext, exchange::Forwarding},
    state::Connection,
};
use crate::{
    message::{BusyConnection, BusyPhase, BusyTls},
    registry::AppId,
};

impl Connection {
    /// Adds a row for each exchange that holds one of these lives, or any life if none is named.
    pub(in super::super) fn list_busy(
        &self,
        lives: &[AppId],
        cx: &LoopContext,
        rows: &mut Vec<BusyConnection>,
    ) {
        for exchange in &self.exchanges {
            let stream = exchange.stream;
            let reads_content = self.protocol().is_some_and(|known| known.reads_content(stream));
            let flight = &exchange.flight;
            let Some(life) = flight.life() else { continue };
            if !lives.is_empty() && !lives.contains(&life) {
                continue;
            }
            let streams = flight.status != 0 && !self.io.outbox.is_empty();
            rows.push(BusyConnection {
                loop_index: cx.index,
                token: self.token,
                life,
                peer: self.peer,
                request: exchange.request().map(|(method, target)| (method.into(), target.into())),
                age: Duration::from_nanos(cx.clock.now_ns().saturating_sub(flight.started_ns)),
                phase: match () {
                    () if flight.is_answered() || streams => BusyPhase::Sending,
                    () if reads_content => BusyPhase::ReadingBody,
                    () => BusyPhase::WaitingForApp,
                },
                bytes_sent: flight.bytes_sent(self.io.outbox.sent()),
                is_tunnel: exchange.forwarding().is_some_and(Forwarding::is_tunnel),
                tls: self.io.negotiated().map(|tls| BusyTls {
                    version: tls.version,
                    cipher: tls.cipher,
                    server_name: self.io.server_name().map(str::to_owned),
                    is_resumed: tls.is_resumed,
                }),
            });
        }
    }
}
