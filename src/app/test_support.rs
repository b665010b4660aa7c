//! Request heads and contexts for the tests of all kinds.

use std::time::{Instant, SystemTime};

use crate::http::{Host, Method, RequestContent, RequestHead, Version};

use super::Context;

/// A head with this method, target and fields, which are leaked.
pub(crate) fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> RequestHead<'static> {
    let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let target = leak(target);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let length = fields.iter().find(|(name, _)| *name == "Content-Length");
    let content = length.map_or(RequestContent::None, |(_, length)| {
        RequestContent::Length(length.parse().expect("a number"))
    });
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| httparse::Header { name: leak(name), value: leak(value).as_bytes() })
        .collect();
    RequestHead {
        method: Method::from_token(leak(method)),
        target,
        path,
        query,
        version: Version::Http11,
        host: Host::parse(b"www.example.com"),
        content,
        expects_continue: false,
        fields: fields.leak(),
    }
}

/// A context of loop 0, now.
pub(crate) fn context() -> Context<'static> {
    Context {
        loop_index: 0,
        now: Instant::now(),
        wall: SystemTime::now(),
        peer: super::Peer::Tcp(([127, 0, 0, 1], 40000).into()),
        scheme: super::Scheme::Http,
        client_certificate: None,
        request_id: None,
    }
}
