//! How a [`Server`] answers: what it writes, and what that means for its connection.

use super::{Reading, Server, Writing};
use crate::http::{
    h1::{
        body_encoder::{BodyEncoder, write_content_length},
        head_template::{HeadTemplate, write_status_line},
    },
    message::{Fields, Response},
};

impl Server {
    /// Lets the client send the content that it holds back (RFC 9110 §10.1.1), if it does.
    pub fn send_continue(&mut self, out: &mut Vec<u8>) {
        if self.awaits_continue {
            self.write_interim(100, &Fields::NONE, out);
        }
    }

    /// Writes an interim response with these fields (RFC 9110 §15.2). Writes nothing to HTTP/1.0,
    /// which knows none, and when no response is owed any more.
    ///
    /// # Panics
    /// In debug builds, when `status` is not interim, or 101.
    pub fn write_interim(&mut self, status: u16, fields: &Fields<'_>, out: &mut Vec<u8>) {
        debug_assert!(matches!(status, 100 | 102..=199), "{status} is no interim response");
        if self.is_http10 || self.writing != Writing::Owed {
            return;
        }
        self.awaits_continue &= status != 100;
        write_status_line(status, "", out);
        out.extend_from_slice(fields.lines());
        out.extend_from_slice(b"\r\n");
    }

    /// Writes a 101 with these fields, of which one is `Upgrade` (RFC 9110 §7.8): the
    /// connection is a tunnel. What the peer sent behind its request stays in the input; bytes for
    /// it go through [`Server::write_piece`] or past it, until [`Server::end_response`].
    ///
    /// # Panics
    /// In debug builds, when no response is owed, or the request is not complete.
    pub fn begin_tunnel(&mut self, fields: &Fields<'_>, out: &mut Vec<u8>) {
        debug_assert!(matches!(self.reading, Reading::Done), "a tunnel within a request");
        debug_assert_eq!(self.writing, Writing::Owed, "a tunnel without a request");
        self.keep_alive = false;
        write_status_line(101, "", out);
        out.extend_from_slice(fields.lines());
        out.extend_from_slice(b"Connection: upgrade\r\n\r\n");
        self.writing = Writing::Content(BodyEncoder::UntilClose);
    }

    /// Writes the head of the response that is owed, for content of this length. Returns whether
    /// the content has to follow. From here on the response counts as written: the next request may
    /// come out, and its answer belongs behind the content of this one.
    ///
    /// # Panics
    /// In debug builds, when no response is owed.
    pub fn respond(
        &mut self,
        response: &Response<'_>,
        content_length: u64,
        template: &HeadTemplate,
        out: &mut Vec<u8>,
    ) -> bool {
        self.decide_keep_alive();
        let has_content = has_content(response.status());
        template.write(response, out);
        out.extend_from_slice(response.fields().lines());
        if has_content {
            write_content_length(content_length, out);
        }
        self.end_head(template, out);
        let send_content = has_content && content_length > 0 && !self.is_head;
        self.writing = Writing::Done;
        self.settle();
        send_content
    }

    /// Writes the head of the response that is owed, for content that follows in pieces: of this
    /// length, if it is known. The pieces come by [`Server::write_piece`], until
    /// [`Server::end_response`]; no request comes out before that.
    ///
    /// # Panics
    /// In debug builds, when no response is owed.
    pub fn begin_response(
        &mut self,
        response: &Response<'_>,
        content_length: Option<u64>,
        template: &HeadTemplate,
        out: &mut Vec<u8>,
    ) {
        let encoder = match content_length {
            Some(length) => BodyEncoder::Length(length),
            None if self.is_http10 => BodyEncoder::UntilClose,
            None => BodyEncoder::Chunked,
        };
        let has_content = has_content(response.status());
        self.keep_alive &= !(has_content && encoder == BodyEncoder::UntilClose);
        self.decide_keep_alive();
        template.write(response, out);
        out.extend_from_slice(response.fields().lines());
        if has_content {
            encoder.write_field(out);
        }
        self.end_head(template, out);
        let sends_content = has_content && !self.is_head;
        self.writing = Writing::Content(if sends_content { encoder } else { BodyEncoder::Omitted });
    }

    /// Writes a piece of the response's content. An empty one writes nothing.
    ///
    /// # Panics
    /// In debug builds, when no response has begun, or its content is longer than it said.
    pub fn write_piece(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        match &mut self.writing {
            Writing::Content(encoder) => encoder.write(piece, out),
            _ => debug_assert!(false, "a piece of content without a response"),
        }
    }

    /// Ends the content: the response is complete, and the next request may come out. A caller that
    /// cannot end it closes the connection instead. The trailer fields are written where the
    /// framing has room for them (RFC 9110 §6.5.1).
    ///
    /// # Panics
    /// In debug builds, when no response has begun, or its content is shorter than it said.
    pub fn end_response(&mut self, trailers: &Fields<'_>, out: &mut Vec<u8>) {
        match self.writing {
            Writing::Content(encoder) => self.keep_alive &= encoder.end(trailers.lines(), out),
            _ => debug_assert!(false, "the end of no response"),
        }
        self.writing = Writing::Done;
        self.settle();
    }

    /// Decides what the answer that begins now means for what is read.
    fn decide_keep_alive(&mut self) {
        debug_assert_eq!(self.writing, Writing::Owed, "a response without a request");
        // The client was answered before a 100. It may send its content or not, so the bytes that
        // follow are ambiguous.
        self.keep_alive &= !self.awaits_continue;
        if !self.keep_alive && !matches!(self.reading, Reading::Done) {
            self.reading = Reading::Closed;
            self.peer_closes = false;
        }
    }

    fn end_head(&self, template: &HeadTemplate, out: &mut Vec<u8>) {
        let end: &[u8] = match (self.keep_alive, self.asks_keep_alive) {
            (true, false) => b"\r\n",
            (true, true) => template.keep_alive(),
            (false, _) => b"Connection: close\r\n\r\n",
        };
        out.extend_from_slice(end);
    }

    /// Takes back the head of a response, of which the peer has no byte: the response is owed
    /// again.
    ///
    /// # Panics
    /// In debug builds, when no response has begun.
    pub fn take_back(&mut self) {
        debug_assert!(matches!(self.writing, Writing::Content(_)), "the head of no response");
        self.writing = Writing::Owed;
    }

    /// Gives up a response that has no end: nothing more is read or written. Where the end of the
    /// connection does not show that the response is not whole (RFC 9112 §8), only a reset does.
    ///
    /// # Panics
    /// In debug builds, when no response has begun.
    pub fn break_off(&mut self) {
        debug_assert!(matches!(self.writing, Writing::Content(_)), "the end of no response");
        let end_shows_it = matches!(
            self.writing,
            Writing::Content(BodyEncoder::Chunked | BodyEncoder::Length(1..))
        );
        self.ends_by_reset = !end_shows_it;
        self.writing = Writing::Done;
        self.reading = Reading::Closed;
        (self.keep_alive, self.peer_closes) = (false, false);
    }

    /// Whether the connection is to be reset behind the last byte: a response broke off, and its
    /// mere end would be taken for the response's.
    pub fn ends_by_reset(&self) -> bool {
        self.ends_by_reset
    }
}

/// Whether a response of this status can have content (RFC 9110 §15.3.5, §15.4.5).
fn has_content(status: u16) -> bool {
    !matches!(status, 204 | 304)
}
