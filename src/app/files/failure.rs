//! Why a request is not answered with a file.

use rustix::io::Errno;

use crate::{app::error_response, http::Response};

/// When the holder of a lease is likely to have given it up.
const LEASE_RETRY_S: &str = "1";

/// Why a request is not answered with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFailure {
    /// 400: the path can't be read.
    Malformed,
    /// 301: a directory, asked for without the slash at its end.
    IsDirectory,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 503: out of descriptors or memory.
    Exhausted,
    /// 503: another process has a lease on the file, and was asked to give it up.
    Leased,
    /// 500: it changes faster than it can be read.
    Unsteady,
    /// 500: the file system failed.
    Broken(Errno),
}

impl FileFailure {
    pub(super) fn response(self) -> Response<'static> {
        match self {
            Self::Malformed => error_response(400),
            Self::Forbidden => error_response(403),
            Self::NotFound | Self::IsDirectory => error_response(404),
            Self::Exhausted => error_response(503),
            Self::Leased => error_response(503).with_field("Retry-After", LEASE_RETRY_S),
            Self::Unsteady | Self::Broken(_) => error_response(500),
        }
    }

    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "the path can't be read",
            Self::IsDirectory => "it is a directory",
            Self::Forbidden => "permission denied",
            Self::NotFound => "not found",
            Self::Exhausted => "out of descriptors or memory",
            Self::Leased => "another process has a lease on it",
            Self::Unsteady => "it changes while it is read",
            Self::Broken(_) => "the file system failed",
        }
    }
}
