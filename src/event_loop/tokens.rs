//! What a token of epoll(7) names: the waker, a listener or a line, a connection to an upstream, or
//! a client's connection.

use mio::Token;

use super::slots::KEY_BITS;

pub(super) const WAKER: Token = Token(usize::MAX);

/// In the tokens of connections to upstreams, and in no others.
pub(super) const UPSTREAM_BIT: usize = 1 << KEY_BITS;

/// In the tokens of listeners, and of lines to other processes.
const LISTENER_BIT: usize = UPSTREAM_BIT << 1;

/// The listener's token of this number.
pub(super) fn listener(number: usize) -> Token {
    Token(number << (KEY_BITS + 2) | LISTENER_BIT)
}

pub(super) fn is_listener(token: Token) -> bool {
    token.0 & LISTENER_BIT != 0
}
