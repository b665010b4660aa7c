//! Request targets (RFC 9112 §3.2).
//!
//! The method decides which forms are allowed. Bytes that no URI may have are refused. So is a
//! fragment: a server that cuts it would read a different target.

use super::{
    host::Host,
    method::Method,
    refused::{Refused, refused},
};

const BAD_TARGET: Refused = refused(400, "malformed request target");

/// A request target in one of its forms (RFC 9112 §3.2).
pub(crate) struct TargetForm<'a> {
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) authority: Option<Host<'a>>,
}

impl<'a> TargetForm<'a> {
    #[inline(always)]
    pub(crate) fn parse(method: Method<'_>, target: &'a str) -> Result<Self, Refused> {
        if target.bytes().any(|byte| byte == b'#' || !byte.is_ascii()) {
            return Err(BAD_TARGET);
        }
        match (method, target) {
            (Method::Connect, authority) => {
                let host = Host::parse(authority.as_bytes()).ok_or(BAD_TARGET)?;
                host.port().ok_or(BAD_TARGET)?;
                Ok(Self { path: "", query: None, authority: Some(host) })
            }
            (_, target) if target.starts_with('/') => {
                let (path, query) = split_query(target);
                Ok(Self { path, query, authority: None })
            }
            (Method::Options, "*") => Ok(Self { path: "*", query: None, authority: None }),
            (_, target) => Self::absolute(target),
        }
    }

    fn absolute(target: &'a str) -> Result<Self, Refused> {
        let (scheme, rest) = target.split_once("://").ok_or(BAD_TARGET)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(BAD_TARGET);
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = split_query(rest);
        Ok(Self {
            path: if path.is_empty() { "/" } else { path },
            query,
            authority: Some(Host::parse(authority.as_bytes()).ok_or(BAD_TARGET)?),
        })
    }
}

#[inline(always)]
fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.bytes().position(|byte| byte == b'?') {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, query and authority.
    type Form = (&'static str, Option<&'static str>, Option<&'static str>);

    #[test]
    fn the_method_decides_which_target_forms_are_valid() {
        let forms: &[(&str, &str, Option<Form>)] = &[
            ("GET", "/", Some(("/", None, None))),
            ("GET", "//a?b?c", Some(("//a", Some("b?c"), None))),
            ("GET", "/?", Some(("/", Some(""), None))),
            ("GET", "/http://b/", Some(("/http://b/", None, None))),
            ("GET", "/%00\\\"<>", Some(("/%00\\\"<>", None, None))),
            ("OPTIONS", "*", Some(("*", None, None))),
            ("GET", "http://b", Some(("/", None, Some("b")))),
            ("GET", "http://b?c", Some(("/", Some("c"), Some("b")))),
            ("GET", "https://b:1/c?d", Some(("/c", Some("d"), Some("b")))),
            ("GET", "HTTP://[::1]/", Some(("/", None, Some("[::1]")))),
            ("GET", "http://b/http://c/", Some(("/http://c/", None, Some("b")))),
            ("CONNECT", "b:443", Some(("", None, Some("b")))),
            ("CONNECT", "b", None),
            ("CONNECT", "b:", None),
            ("CONNECT", "/", None),
            ("CONNECT", "http://b:443/", None),
            ("GET", "*", None),
            ("OPTIONS", "**", None),
            ("GET", "b:443", None),
            ("GET", "ftp://b/", None),
            ("GET", "http:/b", None),
            ("GET", "http:///", None),
            ("GET", "http://?b", None),
            ("GET", "http://u@b/", None),
            ("GET", "http://b\\c/", None),
            ("GET", "/#", None),
            ("GET", "/\u{fc}", None),
            ("GET", "", None),
        ];
        for (method, target, form) in forms {
            let parsed = TargetForm::parse(Method::from_token(method), target).ok();
            let parsed =
                parsed.map(|form| (form.path, form.query, form.authority.map(|host| host.name())));
            assert_eq!(parsed, *form, "{method} {target}");
        }
    }
}
