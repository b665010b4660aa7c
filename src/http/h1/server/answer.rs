//! How a [`Server`] answers: what it writes, and how that changes the state of its connection.

use super::{Reading, Server, Writing};
use crate::http::{
    h1::{
        body_encoder::{BodyEncoder, write_content_length},
        head_template::{HeadTemplate, write_status_line},
    },
    message::{Fields, Response},
};

impl Server {
    /// Writes a 100 if the client waits for it before it sends its content (RFC 9110 §10.1.1).
    pub fn send_continue(&mut self, out: &mut Vec<u8>) {
        if self.awaits_continue {
            self.write_interim(100, &Fields::NONE, out);
        }
    }

    /// Writes an interim response with these fields (RFC 9110 §15.2). Writes nothing to an HTTP/1.0
    /// client, which does not know interim responses, or if no response is owed.
    ///
    /// # Panics
    /// In debug builds, when `status` is not 100 or 102 to 199.
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

    /// Writes a 101 with these fields, which must have an `Upgrade` (RFC 9110 §7.8): the connection
    /// becomes a tunnel. Bytes that the peer sent behind its request stay in the input. Bytes for
    /// the peer are written with [`Server::write_piece`] or directly, until
    /// [`Server::end_response`].
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
    /// the caller has to write the content. The response counts as written: the next request may be
    /// read, and its answer must be written after this content.
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
    /// length, if it is known. Each piece is written with [`Server::write_piece`];
    /// [`Server::end_response`] ends the content. No request is read before that. Returns whether
    /// the client gets the content.
    ///
    /// # Panics
    /// In debug builds, when no response is owed.
    pub fn begin_response(
        &mut self,
        response: &Response<'_>,
        content_length: Option<u64>,
        template: &HeadTemplate,
        out: &mut Vec<u8>,
    ) -> bool {
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
        sends_content
    }

    /// Writes a piece of the response's content. An empty piece writes nothing.
    ///
    /// # Panics
    /// In debug builds, when no response has begun, or its content is longer than announced.
    pub fn write_piece(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        match &mut self.writing {
            Writing::Content(encoder) => encoder.write(piece, out),
            _ => debug_assert!(false, "a piece of content without a response"),
        }
    }

    /// Ends the content: the response is complete, and the next request may be read. A caller whose
    /// content breaks off calls [`Server::break_off`] instead. Trailer fields are written if the
    /// content is chunked (RFC 9110 §6.5.1).
    ///
    /// # Panics
    /// In debug builds, when no response has begun, or its content is shorter than announced.
    pub fn end_response(&mut self, trailers: &Fields<'_>, out: &mut Vec<u8>) {
        match self.writing {
            Writing::Content(encoder) => self.keep_alive &= encoder.end(trailers.lines(), out),
            _ => debug_assert!(false, "an end without a response"),
        }
        self.writing = Writing::Done;
        self.settle();
    }

    /// Decides, when an answer begins, whether anything more is read on this connection.
    fn decide_keep_alive(&mut self) {
        debug_assert_eq!(self.writing, Writing::Owed, "a response without a request");
        // The client gets its answer without a 100. It may send its content or not, so the bytes
        // that follow are ambiguous.
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

    /// Takes back the head of a response, none of which was sent: the response is owed again.
    ///
    /// # Panics
    /// In debug builds, when no response has begun.
    pub fn take_back(&mut self) {
        debug_assert!(matches!(self.writing, Writing::Content(_)), "a head without a response");
        self.writing = Writing::Owed;
    }

    /// Gives up a response that breaks off: nothing more is read or written. If a normal close
    /// would make it look complete (RFC 9112 §8), [`Server::ends_by_reset`] says so.
    ///
    /// # Panics
    /// In debug builds, when no response has begun.
    pub fn break_off(&mut self) {
        debug_assert!(matches!(self.writing, Writing::Content(_)), "an end without a response");
        let end_shows_it = matches!(
            self.writing,
            Writing::Content(BodyEncoder::Chunked | BodyEncoder::Length(1..))
        );
        self.ends_by_reset = !end_shows_it;
        self.writing = Writing::Done;
        self.reading = Reading::Closed;
        (self.keep_alive, self.peer_closes) = (false, false);
    }

    /// Whether the connection has to be reset after the last byte: a response broke off, and a
    /// normal close would make it look complete.
    pub fn ends_by_reset(&self) -> bool {
        self.ends_by_reset
    }
}

/// Whether a response of this status can have content (RFC 9110 §15.3.5, §15.4.5).
fn has_content(status: u16) -> bool {
    !matches!(status, 204 | 304)
}
