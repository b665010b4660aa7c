//! Upstreams that drain, as one loop sees them.

use crate::{app::OneUpstream, message::UpstreamDrainId};

/// Draining upstreams that exchanges of this loop may still use.
#[derive(Default)]
pub(in super::super) struct UpstreamDrains {
    watched: Vec<(UpstreamDrainId, OneUpstream)>,
}

impl UpstreamDrains {
    pub(in super::super) fn watch(&mut self, drain: UpstreamDrainId, upstream: OneUpstream) {
        self.watched.push((drain, upstream));
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Reports each upstream that this loop has left, once. Forgets resumed ones.
    pub(in super::super) fn report_left(
        &mut self,
        loop_index: usize,
        mut report: impl FnMut(UpstreamDrainId),
    ) {
        self.watched.retain(|(drain, upstream)| {
            let is_left = upstream.is_left_by(loop_index);
            if is_left {
                report(*drain);
            }
            !is_left && upstream.is_drained()
        });
    }
}
