//! The connections of one loop to upstreams: those in use, and those kept for later.
//!
//! A connection in use belongs to the client's connection, which owns its socket; here is only who
//! that is, for the events. An idle one is owned here, by upstream, last in first out: the one that
//! was used last is the least likely to be closed by its upstream. One that has anything to say
//! while it is idle is closed: nobody asked it.

use std::{collections::BTreeMap, io, os::fd::OwnedFd};

use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    accept::watch,
    clock::milliseconds,
    connection::Ready,
    slots::{KEY_BITS, Slots},
};
use crate::{
    app::{Address, Chosen, KeptLine, PoolKey},
    config::ProxyConfig,
};

/// In the tokens of upstreams' connections, and in no others.
pub(super) const UPSTREAM_BIT: usize = 1 << KEY_BITS;

/// A loop's connections to upstreams.
pub(super) struct UpstreamTable {
    registry: Registry,
    slots: Slots<Slot>,
    /// Few keys, compared faster than hashed.
    idle: BTreeMap<PoolKey, Vec<Token>>,
}

enum Slot {
    /// Used by the client's connection of this token.
    Busy(Token),
    Idle(Idle),
}

struct Idle {
    socket: OwnedFd,
    key: PoolKey,
    kept: KeptLine,
    until_ms: u64,
}

/// A connection to an upstream that is in use.
pub(super) struct Line {
    pub(super) token: Token,
    pub(super) socket: OwnedFd,
    /// It has served an exchange before.
    pub(super) is_used: bool,
    /// The handshake is over.
    pub(super) is_open: bool,
    pub(super) ready: Ready,
}

impl UpstreamTable {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, slots: Slots::new(), idle: BTreeMap::new() }
    }

    /// A connection that was kept, if there is one.
    pub(super) fn take(&mut self, chosen: &Chosen, client: Token, now_ms: u64) -> Option<Line> {
        let tokens = self.idle.get_mut(&chosen.pool_key())?;
        while let Some(token) = tokens.pop() {
            let Some(slot) = self.slots.find(strip(token)) else { continue };
            if let Slot::Idle(idle) = std::mem::replace(slot, Slot::Busy(client)) {
                if idle.until_ms > now_ms {
                    let ready = Ready { writable: true, ..Ready::default() };
                    let socket = idle.socket;
                    return Some(Line { token, socket, is_used: true, is_open: true, ready });
                }
                self.slots.remove(strip(token));
            }
        }
        None
    }

    /// Begins to open a connection.
    ///
    /// # Errors
    /// When it cannot be opened, as far as that is known at once.
    pub(super) fn open(&mut self, address: Address<'_>, client: Token) -> io::Result<Line> {
        let (domain, address) = match address {
            Address::Tcp(address) => (Domain::for_address(address), SockAddr::from(address)),
            Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
        if domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let is_open = match socket.connect(&address) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(IN_PROGRESS) => false,
            Err(error) => return Err(error),
        };
        let socket = OwnedFd::from(socket);
        let registry = &self.registry;
        let token = self.slots.insert(|token| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            watch(registry, &socket, mark(token), interest).map(|()| Slot::Busy(client))
        })?;
        let ready = Ready { writable: is_open, ..Ready::default() };
        Ok(Line { token: mark(token), socket, is_used: false, is_open, ready })
    }

    /// Keeps a connection for later, unless enough are kept.
    pub(super) fn give(&mut self, line: Line, config: &ProxyConfig, chosen: &Chosen, now_ms: u64) {
        let key = chosen.pool_key();
        let tokens = self.idle.entry(key).or_default();
        let Some(slot) = self.slots.find(strip(line.token)) else { return };
        let has_room = tokens.len() < config.idle_connections;
        let Some(kept) = has_room.then(|| chosen.keep_line()).flatten() else {
            self.slots.remove(strip(line.token));
            return;
        };
        tokens.push(line.token);
        *slot = Slot::Idle(Idle {
            socket: line.socket,
            key,
            kept,
            until_ms: now_ms.saturating_add(milliseconds(config.idle_timeout)),
        });
    }

    /// Forgets a connection that is going to be closed.
    pub(super) fn forget(&mut self, line: &Line) {
        self.slots.remove(strip(line.token));
    }

    /// A socket told of changes. Says whose it is, if it is in use.
    pub(super) fn on_event(&mut self, token: Token, ready: Ready) -> Option<Token> {
        match self.slots.find(strip(token))? {
            Slot::Busy(client) => return Some(*client),
            Slot::Idle(_) if !(ready.readable || ready.read_closed || ready.failed) => return None,
            Slot::Idle(idle) => {
                let key = idle.key;
                if let Some(kept) = self.idle.get_mut(&key) {
                    kept.retain(|other| *other != token);
                }
            }
        }
        self.slots.remove(strip(token));
        None
    }

    /// Closes what has been idle too long, or leads nowhere any more.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        let slots = &mut self.slots;
        self.idle.retain(|_, kept| {
            kept.retain(|token| {
                let is_good = matches!(slots.find(strip(*token)), Some(Slot::Idle(idle))
                    if idle.until_ms > now_ms && idle.kept.has_use());
                if !is_good {
                    slots.remove(strip(*token));
                }
                is_good
            });
            !kept.is_empty()
        });
    }
}

/// connect(2): the handshake goes on.
const IN_PROGRESS: i32 = rustix::io::Errno::INPROGRESS.raw_os_error();

fn mark(token: Token) -> Token {
    Token(token.0 | UPSTREAM_BIT)
}

fn strip(token: Token) -> Token {
    Token(token.0 & !UPSTREAM_BIT)
}
