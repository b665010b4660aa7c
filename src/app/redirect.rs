//! The `redirect` kind: redirects every request to the same path and query below another URL.
//!
//! The request cannot choose the host: `to` is an absolute URL without a slash at its end, and the
//! path that follows it begins with one, so the authority ends before any byte of the request. The
//! path stays as it was sent, with its percent-encodings and double slashes.

use crate::{
    config::RedirectConfig,
    http::{Bytes, RequestHead, Response, is_field_value},
};

use super::{App, Context, Reply, error_response};

/// An app that redirects.
#[derive(Debug)]
pub struct Redirect {
    to: String,
    status: u16,
}

impl Redirect {
    /// An app that redirects as `config` says.
    pub fn new(config: &RedirectConfig) -> Self {
        Self { to: config.to.clone(), status: config.status }
    }
}

/// A redirect of a request to the same path and query below `to`; 400 if they could split the
/// answer.
pub(super) fn redirect(request: &RequestHead<'_>, to: &str, status: u16) -> Response<'static> {
    // `OPTIONS *` has no path; `https://example.com*` would name another host.
    let path = if request.path().starts_with('/') { request.path() } else { "/" };
    let query = request.query().unwrap_or("");
    if !is_field_value(path) || !is_field_value(query) {
        return error_response(400);
    }
    let mark = if request.query().is_some() { "?" } else { "" };
    let line = ["Location: ", to, path, mark, query, "\r\n"].concat();
    Response::new(status).with_encoded_fields(Bytes::Owned(line.into_bytes()))
}

impl App for Redirect {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        Reply::Full(redirect(request, &self.to, self.status))
    }

    fn kind(&self) -> &'static str {
        "redirect"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::test_support::{context, request};

    fn location(to: &str, target: &str) -> String {
        let app = Redirect::new(&RedirectConfig { to: to.to_owned(), status: 308 });
        let Reply::Full(response) = app.handle(&request("GET", target, &[]), &context()) else {
            panic!("not a complete response")
        };
        assert!(response.content().is_empty() || response.status() == 400);
        format!(
            "{} {}",
            response.status(),
            String::from_utf8_lossy(response.fields().lines()).trim_end()
        )
    }

    #[test]
    fn path_and_query_stay_as_they_were_sent() {
        for (target, there) in [
            ("/", "https://b.example/"),
            ("/a%2Fb%20c?x=%20&y", "https://b.example/a%2Fb%20c?x=%20&y"),
            ("/a?", "https://b.example/a?"),
            ("//evil.example/x", "https://b.example//evil.example/x"),
            ("/\\evil.example", "https://b.example/\\evil.example"),
            ("/@evil.example", "https://b.example/@evil.example"),
            ("/../..", "https://b.example/../.."),
            ("*", "https://b.example/"),
            ("@evil.example", "https://b.example/"),
            (".evil.example", "https://b.example/"),
        ] {
            assert_eq!(location("https://b.example", target), format!("308 Location: {there}"));
        }
        assert_eq!(
            location("http://b.example:81/base", "/x?q"),
            "308 Location: http://b.example:81/base/x?q"
        );
    }

    #[test]
    fn a_target_that_would_split_the_answer_is_refused() {
        for target in ["/a\r\nSet-Cookie: x=1", "/a?b\r\n\r\nc", "/\0"] {
            assert!(location("https://b.example", target).starts_with("400 "), "{target:?}");
        }
    }
}
