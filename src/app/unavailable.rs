//! Takes the place of an app that could not be loaded: its host stays known and answers 503.

use crate::http::{Bytes, RequestHead, Response};

use super::{App, Context, JSON_FIELDS, Reply};

/// An app that failed to load.
#[derive(Clone, Copy, Debug)]
pub struct Unavailable;

impl App for Unavailable {
    fn handle<'a>(&'a self, _request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        let content = Bytes::Borrowed(br#"{"error":"App failed to load"}"#);
        Reply::Full(
            Response::new(503)
                .with_encoded_fields(Bytes::Borrowed(JSON_FIELDS))
                .with_content_bytes(content),
        )
    }

    fn kind(&self) -> &'static str {
        "unavailable"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::test_support::{context, request};

    #[test]
    fn says_why() {
        let Reply::Full(response) = Unavailable.handle(&request("GET", "/", &[]), &context())
        else {
            panic!("not a complete response")
        };
        assert_eq!(response.status(), 503);
        assert_eq!(response.content(), br#"{"error":"App failed to load"}"#);
        assert_eq!(response.fields().lines(), b"Content-Type: application/json\r\n");
    }
}
