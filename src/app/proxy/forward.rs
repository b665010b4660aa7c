//! A request to forward.

use std::sync::Arc;

use super::{
    endpoint::Endpoint,
    failure::UpstreamFailure,
    no_upstream::NoUpstream,
    upstreams::{ChosenUpstream, LoopShare},
};
use crate::config::ProxyConfig;

/// A request to forward, with everything that the loop needs for it.
#[derive(Debug)]
pub struct Forward {
    pub(super) share: Arc<LoopShare>,
    pub(super) head: Vec<u8>,
    pub(super) host_gap: Option<usize>,
    pub(super) key: Option<u64>,
    pub(super) is_head: bool,
    pub(super) is_idempotent: bool,
    pub(super) asks_upgrade: bool,
}

impl Forward {
    /// The app's config, with the timeouts and limits for the loop.
    pub(crate) fn config(&self) -> &ProxyConfig {
        self.share.upstreams().config()
    }

    /// Chooses an upstream other than `tried`, which failed for this request. `now_ns` is in
    /// nanoseconds since the process's epoch.
    pub(crate) fn choose(
        &self,
        now_ns: u64,
        tried: &[usize],
    ) -> Result<ChosenUpstream, NoUpstream> {
        self.share.choose(self.key, now_ns, tried)
    }

    /// Counts a request without an upstream. If it should be logged, returns how many were not
    /// logged since the last logged one.
    pub(crate) fn note_unserved(&self, failure: UpstreamFailure, now_ns: u64) -> Option<u64> {
        self.share.note_unserved(failure, now_ns)
    }

    /// Method and target, as the upstream gets them.
    pub(crate) fn request(&self) -> Option<(&str, &str)> {
        let line = self.head.split(|byte| *byte == b'\r').next()?;
        let (method, rest) = str::from_utf8(line).ok()?.split_once(' ')?;
        Some((method, rest.split_once(' ')?.0))
    }

    /// Writes the request line and the fields for this upstream, each line ended by CRLF, without
    /// `Content-Length`, `Transfer-Encoding`, `Connection`, `Expect` and the empty line.
    pub(crate) fn write_head(&self, chosen: &ChosenUpstream, out: &mut Vec<u8>) {
        let Some(gap) = self.host_gap else { return out.extend_from_slice(&self.head) };
        let authority = chosen.endpoint().authority().as_bytes();
        for part in [&self.head[..gap], b"Host: ", authority, b"\r\n", &self.head[gap..]] {
            out.extend_from_slice(part);
        }
    }

    /// The request line and the fields as the first upstream would get them, each line ended by
    /// CRLF, without `Content-Length`, `Transfer-Encoding`, `Connection`, `Expect` and the empty
    /// line.
    pub fn upstream_head(&self) -> Vec<u8> {
        let Some(gap) = self.host_gap else { return self.head.clone() };
        let endpoints = self.share.upstreams().endpoints();
        let authority = endpoints.first().map_or("", Endpoint::authority).as_bytes();
        [&self.head[..gap], b"Host: ", authority, b"\r\n", &self.head[gap..]].concat()
    }

    /// Whether the method is HEAD, whose answer has no content (RFC 9110 §9.3.2).
    pub(crate) fn is_head(&self) -> bool {
        self.is_head
    }

    /// Whether the method is idempotent, so that the request may be sent twice (RFC 9110 §9.2.2). A
    /// request whose content was already sent may not.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.is_idempotent
    }

    /// Whether the request asks for an upgrade: then its head has an `Upgrade`, and the answer may
    /// be a 101.
    pub fn asks_upgrade(&self) -> bool {
        self.asks_upgrade
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.share.give_head(std::mem::take(&mut self.head));
    }
}
