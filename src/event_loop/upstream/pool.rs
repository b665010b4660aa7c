//! A loop's connections to upstreams: those in use, and idle ones kept for reuse.
//!
//! The exchange that uses a connection owns its socket; the pool only maps its events to that
//! exchange. The pool owns idle connections, by upstream, last in first out: the most recently used
//! one is the least likely to have been closed by its upstream. An idle connection on which
//! anything arrives is closed: no request is open on it. Records of TLS without content (tickets, a
//! KeyUpdate) are read, and don't close it. When descriptors run short, idle connections are closed
//! first.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use mio::{Registry, Token, unix::SourceFd};

use super::{
    super::{listener::ConnectionBudget, slots::Slots, tokens::UPSTREAM_BIT},
    conn::UpstreamConn,
};
use crate::{
    app::{ChosenUpstream, FailureCause, KeptConn, PoolKey, UpstreamFailure},
    config::ProxyConfig,
    duration::milliseconds,
    io::{BOTH_WAYS, BufferPool, Io, Ready, watch},
    message::ExchangeId,
};

/// A loop's connections to upstreams.
pub(in super::super) struct UpstreamPool {
    registry: Registry,
    slots: Slots<Slot>,
    /// Few keys, so comparing beats hashing.
    idle: BTreeMap<PoolKey, Vec<Token>>,
    budget: ConnectionBudget,
    /// Events are being handled, so requests are held back.
    pub(in super::super) holds_requests: bool,
}

enum Slot {
    /// In use by this exchange.
    Busy(ExchangeId),
    Idle(Idle),
}

struct Idle {
    io: Io,
    key: PoolKey,
    kept: KeptConn,
    until_ms: u64,
}

impl UpstreamPool {
    /// An empty pool; the budget is shared with the clients' connections.
    pub(in super::super) fn new(registry: Registry, budget: ConnectionBudget) -> Self {
        let (slots, idle) = (Slots::new(), BTreeMap::new());
        Self { registry, slots, idle, budget, holds_requests: false }
    }

    /// A kept connection, if there is one. `must_check`: only if its socket shows that it is
    /// still open. The loop may not have reached the event of its end yet, and a request that can't
    /// be retried has no other protection.
    pub(in super::super) fn take(
        &mut self,
        chosen: &ChosenUpstream,
        exchange: ExchangeId,
        now_ms: u64,
        must_check: bool,
        buffers: &mut BufferPool,
    ) -> Option<UpstreamConn> {
        let tokens = self.idle.get_mut(&chosen.pool_key())?;
        while let Some(token) = tokens.pop() {
            let Some(slot) = self.slots.find(strip(token)) else { continue };
            if let Slot::Idle(mut idle) = std::mem::replace(slot, Slot::Busy(exchange)) {
                if idle.until_ms > now_ms && (!must_check || idle.io.is_silent(buffers)) {
                    return Some(UpstreamConn::kept(token, idle.io));
                }
                self.slots.remove(strip(token));
                idle.close(buffers);
            }
        }
        None
    }

    /// Starts connecting. If descriptors run short, idle connections are closed to make room.
    ///
    /// # Errors
    /// When it fails at once.
    pub(in super::super) fn open(
        &mut self,
        chosen: &ChosenUpstream,
        exchange: ExchangeId,
        buffers: &mut BufferPool,
    ) -> Result<UpstreamConn, UpstreamFailure> {
        let failure = |error: io::Error| UpstreamFailure::connect(&error);
        let mut opened = self.try_open(chosen, exchange, buffers).map_err(failure);
        let is_own = |failure: &UpstreamFailure| failure.cause == FailureCause::NoDescriptors;
        if opened.as_ref().is_err_and(is_own) && self.close_idle(buffers) {
            opened = self.try_open(chosen, exchange, buffers).map_err(failure);
        }
        opened
    }

    fn try_open(
        &mut self,
        chosen: &ChosenUpstream,
        exchange: ExchangeId,
        buffers: &mut BufferPool,
    ) -> io::Result<UpstreamConn> {
        self.budget.note_upstream_conn();
        let (io, opening) = Io::open(chosen.address(), chosen.tls(), buffers)?;
        let registry = &self.registry;
        let token = self.slots.insert(|token| {
            watch(registry, io.socket(), mark(token), BOTH_WAYS).map(|()| Slot::Busy(exchange))
        })?;
        Ok(UpstreamConn::new(mark(token), io, opening))
    }

    /// Keeps a connection for reuse, unless enough are kept.
    pub(in super::super) fn keep(
        &mut self,
        conn: UpstreamConn,
        config: &ProxyConfig,
        chosen: &ChosenUpstream,
        now_ms: u64,
    ) {
        let key = chosen.pool_key();
        let tokens = self.idle.entry(key).or_default();
        let Some(slot) = self.slots.find(strip(conn.token)) else { return };
        let has_room = tokens.len() < config.idle_connections;
        let Some(kept) = has_room.then(|| chosen.keep_conn()).flatten() else {
            self.slots.remove(strip(conn.token));
            return;
        };
        tokens.push(conn.token);
        *slot = Slot::Idle(Idle {
            io: conn.io,
            key,
            kept,
            until_ms: now_ms.saturating_add(milliseconds(config.idle_timeout)),
        });
    }

    /// Closes a connection whose last exchange is complete.
    pub(in super::super) fn close(&mut self, mut conn: UpstreamConn, buffers: &mut BufferPool) {
        end(&mut conn.io, buffers);
        self.forget(&conn);
    }

    /// Forgets a connection that is about to be closed.
    pub(in super::super) fn forget(&mut self, conn: &UpstreamConn) {
        self.slots.remove(strip(conn.token));
    }

    /// Makes epoll report a socket's state again, because edges may be lost.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub(in super::super) fn rewatch(&self, socket: &OwnedFd, token: Token) -> io::Result<()> {
        self.registry.reregister(&mut SourceFd(&socket.as_raw_fd()), token, BOTH_WAYS)
    }

    /// Stops watching a client's socket that another process may hold too, so that closing it here
    /// wouldn't end the watch.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub(in super::super) fn unwatch(&self, socket: &OwnedFd) -> io::Result<()> {
        self.registry.deregister(&mut SourceFd(&socket.as_raw_fd()))
    }

    /// Watches a client's socket again; epoll reports what is ready by now.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub(in super::super) fn watch(&self, socket: &OwnedFd, token: Token) -> io::Result<()> {
        watch(&self.registry, socket, token, BOTH_WAYS)
    }

    /// An event for a connection to an upstream. Returns the exchange that uses it, if any.
    pub(in super::super) fn on_event(
        &mut self,
        token: Token,
        ready: Ready,
        buffers: &mut BufferPool,
    ) -> Option<ExchangeId> {
        match self.slots.find(strip(token))? {
            Slot::Busy(exchange) => return Some(*exchange),
            Slot::Idle(idle) => {
                if idle.stays(ready, buffers) {
                    return None;
                }
                let key = idle.key;
                if let Some(kept) = self.idle.get_mut(&key) {
                    kept.retain(|other| *other != token);
                }
            }
        }
        if let Some(Slot::Idle(idle)) = self.slots.remove(strip(token)) {
            idle.close(buffers);
        }
        None
    }

    /// Closes connections that were idle too long, or lead to an upstream that is no longer used.
    pub(in super::super) fn sweep(&mut self, now_ms: u64, buffers: &mut BufferPool) {
        self.retain(|idle| idle.until_ms > now_ms && idle.kept.has_use(), buffers);
    }

    /// Closes all idle connections. Returns whether there were any.
    pub(in super::super) fn close_idle(&mut self, buffers: &mut BufferPool) -> bool {
        let had_some = !self.idle.is_empty();
        self.retain(|_| false, buffers);
        had_some
    }

    /// Keeps the idle connections for which this is true.
    fn retain(&mut self, is_good: impl Fn(&Idle) -> bool, buffers: &mut BufferPool) {
        let slots = &mut self.slots;
        self.idle.retain(|_, kept| {
            kept.retain(|token| {
                let found = slots.find(strip(*token));
                let stays = matches!(found, Some(Slot::Idle(idle)) if is_good(idle));
                if !stays && let Some(Slot::Idle(idle)) = slots.remove(strip(*token)) {
                    idle.close(buffers);
                }
                stays
            });
            !kept.is_empty()
        });
    }
}

impl Idle {
    /// Whether it stays open after an event.
    fn stays(&mut self, ready: Ready, buffers: &mut BufferPool) -> bool {
        self.io.ready.add(ready);
        if !(ready.readable || ready.read_closed || ready.failed) {
            return true;
        }
        // Without TLS whatever came ends it.
        self.io.is_tls() && !ready.failed && self.io.is_silent(buffers)
    }

    fn close(mut self, buffers: &mut BufferPool) {
        end(&mut self.io, buffers);
    }
}

/// Tells the peer that nothing more comes, if TLS demands that. The socket is closed next, so a
/// peer that is gone, or takes no more, doesn't matter.
fn end(io: &mut Io, buffers: &mut BufferPool) {
    if io.is_tls() {
        let _ = io.shutdown_write(buffers);
    }
}

fn mark(token: Token) -> Token {
    Token(token.0 | UPSTREAM_BIT)
}

fn strip(token: Token) -> Token {
    Token(token.0 & !UPSTREAM_BIT)
}
