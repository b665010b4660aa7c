//! What an epoll(7) token names: the waker, a listener or hand-over socket, a connection to an
//! upstream, or a client's connection.

use mio::Token;

use super::slots::KEY_BITS;

pub(super) const WAKER: Token = Token(usize::MAX);

/// Set in the tokens of connections to upstreams, and in no others.
pub(super) const UPSTREAM_BIT: usize = 1 << KEY_BITS;

/// Set in the tokens of listeners and hand-over sockets.
const LISTENER_BIT: usize = UPSTREAM_BIT << 1;

/// The token of the listener with this number.
pub(super) fn listener(number: usize) -> Token {
    Token(number << (KEY_BITS + 2) | LISTENER_BIT)
}

pub(super) fn is_listener(token: Token) -> bool {
    token.0 & LISTENER_BIT != 0
}
