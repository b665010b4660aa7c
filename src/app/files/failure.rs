//! Why a request is not answered with a file.

use rustix::io::Errno;

use crate::{app::error_response, http::Response};

/// `Retry-After` in seconds: by then the holder has probably given the lease up.
const LEASE_RETRY_S: &str = "1";

/// Why a request is not answered with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFailure {
    /// 400: the path is malformed.
    Malformed,
    /// 301: a directory whose path was requested without a slash at its end.
    IsDirectory,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 503: out of descriptors or memory.
    Exhausted,
    /// 503: another process has a lease on the file and was asked to give it up.
    Leased,
    /// 500: the file or the tree changes faster than it can be read.
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
            Self::Malformed => "malformed path",
            Self::IsDirectory => "is a directory",
            Self::Forbidden => "permission denied",
            Self::NotFound => "not found",
            Self::Exhausted => "out of descriptors or memory",
            Self::Leased => "another process has a lease on the file",
            Self::Unsteady => "the file changes while it is read",
            Self::Broken(_) => "the file system failed",
        }
    }
}
