//! What the clients of a drill send, and what becomes of the connection then.

use std::collections::VecDeque;

use super::plan::{ClientKind, Target};
use crate::http::{
    FieldTable, Limits, RequestContent,
    h1::{self, ClientRequest},
};

/// Limits for the head of an answer.
pub(super) const LIMITS: Limits =
    Limits { head_bytes: 64 << 10, fields: FieldTable::LEN, content_bytes: 0 };

/// Half of a POST's content.
pub(super) const HALF: [u8; 4096] = [b'x'; 4096];

/// When a leaving client closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaveAt {
    /// After it has sent the request.
    BeforeAnswer,
    /// After the answer has begun. The answer may be complete by then.
    WithinAnswer,
}

/// Requests that are sent at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub(super) kind: ClientKind,
    pub(super) target: &'a Target,
    pub(super) leaves: Option<LeaveAt>,
}

/// What happens to the connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterRequest {
    Keep,
    /// Wait for the answer to the next pipelined request.
    GoOn,
    /// Let the server close first.
    Close,
    Drop,
}

/// Writes requests. Returns the parser for the first answer and those for the answers after it.
pub(super) fn write_batch(
    kind: ClientKind,
    target: &Target,
    out: &mut Vec<u8>,
) -> (h1::Client, VecDeque<h1::Client>) {
    let mut write = || {
        let mut one = Vec::new();
        let exchange = write_head(kind, target, &mut one);
        out.append(&mut one);
        exchange
    };
    (write(), (1..kind.batch()).map(|_| write()).collect())
}

/// Writes a request's head and, for a POST, the first half of its content.
fn write_head(kind: ClientKind, target: &Target, out: &mut Vec<u8>) -> h1::Client {
    let is_post = kind == ClientKind::Post;
    let method = if is_post { "POST" } else { "GET" };
    let Target { host, path, .. } = target;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-drill\r\n\
         Accept: */*\r\n"
    );
    out.extend_from_slice(head.as_bytes());
    let length = 2 * HALF.len() as u64;
    let request = ClientRequest {
        content: if is_post { RequestContent::Length(length) } else { RequestContent::None },
        is_head: false,
        upgrade: false,
        expects_continue: false,
        close: matches!(kind, ClientKind::Fresh | ClientKind::Leaving),
    };
    let mut exchange = h1::Client::begin(&request, out);
    if is_post {
        exchange.write_content(&HALF, out);
    }
    exchange
}
