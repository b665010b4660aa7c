//! How fast an upstream has to send what it owes.
//!
//! Silence is up to the deadline (`answer_timeout`). This judges upstreams that send too little:
//!
//! | what comes | limit |
//! |---|---|
//! | a head, interim or final | complete within `answer_timeout` of its first byte |
//! | interim responses | for at most `interim_timeout`, and at most `limits.head_bytes` a second |
//! | content of announced length | 1 KiB in each `answer_timeout`, or the rest of it |
//! | content without a length | the same if `slow_streams` is off; otherwise no limit |
//!
//! A stream without a length (events, progress, a watch) owes no bytes. Time in which the client
//! reads nothing, or the request is still being sent, doesn't count against an upstream. Judged
//! only when bytes come: no timer, and no clock but the turn's.

use crate::{
    app::{FailureCause, UpstreamFailure},
    config::ProxyConfig,
    duration::milliseconds,
    http::ResponseContent,
};

/// Bytes that have to come in a window: an upstream with fewer trickles. The same as for clients.
const WINDOW_BYTES_MIN: u64 = 1024;

/// The window for interim responses, in milliseconds.
const INTERIM_WINDOW_MS: u64 = 1000;

/// What came, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Pace {
    /// When the first byte of a head came, or a window of content began.
    begun_ms: Option<u64>,
    /// Content in this window.
    bytes: u64,
    /// Bytes of content are owed.
    is_due: bool,
    /// When the first interim response came after the request was sent.
    interim_since_ms: Option<u64>,
    /// When the window of interim responses began, and their bytes in it.
    interim_window: (u64, usize),
}

impl Pace {
    /// The head is complete, and content of this kind follows.
    pub(super) fn begin_content(
        &mut self,
        content: ResponseContent,
        config: &ProxyConfig,
        now_ms: u64,
    ) {
        let is_stream = matches!(content, ResponseContent::Chunked | ResponseContent::UntilClose);
        self.is_due = !is_stream || !config.slow_streams;
        self.restart(now_ms);
    }

    /// Begins a new window of content.
    pub(super) fn restart(&mut self, now_ms: u64) {
        (self.begun_ms, self.bytes) = (Some(now_ms), 0);
    }

    /// Bytes of a head came.
    ///
    /// # Errors
    /// When it takes too long.
    pub(super) fn take_head(
        &mut self,
        config: &ProxyConfig,
        now_ms: u64,
    ) -> Result<(), UpstreamFailure> {
        let begun_ms = *self.begun_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(begun_ms) >= milliseconds(config.answer_timeout) {
            return Err(slow("the head of the answer takes longer than answer_timeout"));
        }
        Ok(())
    }

    /// This many bytes of content came.
    ///
    /// # Errors
    /// When that is too little for the time.
    pub(super) fn take_content(
        &mut self,
        bytes: usize,
        config: &ProxyConfig,
        now_ms: u64,
    ) -> Result<(), UpstreamFailure> {
        if !self.is_due {
            return Ok(());
        }
        self.bytes += bytes as u64;
        if self.passed_ms(now_ms) >= milliseconds(config.answer_timeout) {
            if self.bytes < WINDOW_BYTES_MIN {
                return Err(slow("less than 1 KiB of content in answer_timeout"));
            }
            self.restart(now_ms);
        }
        Ok(())
    }

    /// An interim response of this many bytes came. `is_sent`: the whole request was sent before.
    ///
    /// # Errors
    /// When there are too many, or for too long.
    pub(super) fn take_interim(
        &mut self,
        (bytes, bytes_max): (usize, usize),
        is_sent: bool,
        config: &ProxyConfig,
        now_ms: u64,
    ) -> Result<(), UpstreamFailure> {
        self.begun_ms = None;
        if !is_sent {
            self.interim_since_ms = None;
        }
        let since_ms = *self.interim_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= milliseconds(config.interim_timeout) {
            return Err(slow("interim responses, and no answer for interim_timeout"));
        }
        let (window_ms, so_far) = &mut self.interim_window;
        if now_ms.saturating_sub(*window_ms) >= INTERIM_WINDOW_MS {
            (*window_ms, *so_far) = (now_ms, 0);
        }
        *so_far += bytes;
        if *so_far > bytes_max {
            let text = "more than limits.head_bytes of interim responses in a second";
            return Err(UpstreamFailure::new(FailureCause::HeadTooLarge, text));
        }
        Ok(())
    }

    fn passed_ms(&self, now_ms: u64) -> u64 {
        self.begun_ms.map_or(0, |begun_ms| now_ms.saturating_sub(begun_ms))
    }
}

fn slow(text: &'static str) -> UpstreamFailure {
    UpstreamFailure::new(FailureCause::AnswerTooSlow, text)
}
