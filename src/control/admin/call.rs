//! A request of the admin API, taken apart.

use std::{collections::HashMap, time::Duration};

use percent_encoding::percent_decode_str;

use super::{AdminRequest, answers::error};
use crate::{
    config::{TIME_MAX, parse_duration},
    http::Response,
};

/// A request, taken apart.
pub(super) struct Call<'a> {
    method: &'a str,
    /// The pairs behind the question mark.
    query: HashMap<String, String>,
    pub(super) accept: Option<&'a str>,
    pub(super) content: &'a [u8],
    pub(super) is_by_owner: bool,
}

impl<'a> Call<'a> {
    /// The segments of the path, and the rest; none if they are not percent-encoded UTF-8.
    pub(super) fn parse(request: &'a AdminRequest) -> Option<(Vec<String>, Self)> {
        let path: Option<_> = request.path.split('/').skip(1).map(decode).collect();
        let pairs = request.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        });
        let call = Self {
            method: &request.method,
            query: pairs.collect::<Option<_>>()?,
            accept: request.accept.as_deref(),
            content: &request.content,
            is_by_owner: request.is_by_owner,
        };
        Some((path?, call))
    }

    /// Whether only the head of the answer is wanted.
    pub(super) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether it has this method; HEAD counts as GET.
    pub(super) fn is(&self, method: &str) -> bool {
        self.method == method || (self.method == "HEAD" && method == "GET")
    }

    /// The value of this key behind the question mark.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(|value| &**value)
    }

    /// The same, as yes or no; a key that is not there is no.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Response<'static>> {
        match self.value(key) {
            None | Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(_) => Err(error(400, &format!("`{key}` is `true` or `false`"))),
        }
    }

    /// The same, as a time of a week at most.
    pub(super) fn duration(&self, key: &str) -> Result<Option<Duration>, Response<'static>> {
        let Some(text) = self.value(key) else { return Ok(None) };
        let wrong = |reason: &str| error(400, &format!("`{key}`: {reason}"));
        let duration = parse_duration(text).map_err(|error| wrong(&error.to_string()))?;
        if duration > TIME_MAX {
            return Err(wrong("at most a week is possible"));
        }
        Ok(Some(duration))
    }
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Into::into)
}
