//! The `respond` kind: a fixed answer to every request, whatever its method and path.
//!
//! The answer is built once, when the app is loaded. Each request borrows it, without an allocation
//! or a reference count that loops would contend for. Only content that is too large to be copied
//! is counted: so a slow reader does not hold a copy of its own (I9).

use std::time::Duration;

use crate::{
    config::RespondConfig,
    http::{Bytes, RequestHead, Response},
};

use super::{App, COPIED_BYTES_MAX, Context, Reply};

/// An app with one fixed answer.
#[derive(Debug)]
pub struct Respond {
    response: Response<'static>,
    delay: Duration,
}

impl Respond {
    /// Builds the answer. `Content-Type` is sent only with content (RFC 9110 §8.3).
    pub fn new(config: &RespondConfig) -> Self {
        let mut response = Response::new(config.status);
        if !config.body.is_empty() {
            response = response.with_field("Content-Type", &config.content_type);
        }
        for (name, value) in &config.headers {
            response = response.with_field(name, value);
        }
        let body = config.body.as_bytes();
        let content = if body.len() < COPIED_BYTES_MAX {
            Bytes::Owned(body.to_vec())
        } else {
            Bytes::Shared(body.into())
        };
        Self { response: response.with_content_bytes(content), delay: config.delay }
    }
}

impl App for Respond {
    fn handle<'a>(&'a self, _request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        let response = self.response.borrowed();
        if self.delay.is_zero() {
            Reply::Full(response)
        } else {
            Reply::After(self.delay, response)
        }
    }

    fn kind(&self) -> &'static str {
        "respond"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::test_support::{context, request};

    fn config() -> RespondConfig {
        RespondConfig {
            status: 200,
            body: "Hello, World!".to_owned(),
            content_type: "text/plain".to_owned(),
            headers: vec![("X-Tide".to_owned(), "out".to_owned())],
            delay: Duration::ZERO,
        }
    }

    #[test]
    fn answers_every_method_the_same() {
        let app = Respond::new(&config());
        for method in ["GET", "HEAD", "POST", "OPTIONS", "BREW"] {
            let Reply::Full(response) = app.handle(&request(method, "/any", &[]), &context())
            else {
                panic!("{method}: not a complete response")
            };
            assert_eq!(response.status(), 200);
            assert_eq!(response.fields().lines(), b"Content-Type: text/plain\r\nX-Tide: out\r\n");
            assert_eq!(response.content(), b"Hello, World!");
            assert_eq!(response.content().as_ptr(), app.response.content().as_ptr());
        }
    }

    #[test]
    fn all_answers_share_large_content() {
        let body = "x".repeat(COPIED_BYTES_MAX);
        for delay in [Duration::ZERO, Duration::from_millis(1)] {
            let app = Respond::new(&RespondConfig { body: body.clone(), delay, ..config() });
            let (Reply::Full(response) | Reply::After(_, response)) =
                app.handle(&request("GET", "/", &[]), &context()).into_owned()
            else {
                panic!("not a complete response")
            };
            let sent = response.into_content().into_owned();
            assert_eq!(sent.as_slice(), body.as_bytes());
            assert_eq!(sent.as_slice().as_ptr(), app.response.content().as_ptr());
        }
    }

    #[test]
    fn delays_the_answer() {
        let delay = Duration::from_millis(20);
        let app = Respond::new(&RespondConfig { delay, ..config() });
        let Reply::After(held, response) = app.handle(&request("GET", "/", &[]), &context()) else {
            panic!("not delayed")
        };
        assert_eq!((held, response.status()), (delay, 200));
    }

    #[test]
    fn no_content_has_no_type() {
        let headers = Vec::new();
        let app =
            Respond::new(&RespondConfig { status: 204, body: String::new(), headers, ..config() });
        assert_eq!(app.response.fields().lines(), b"");
    }
}
