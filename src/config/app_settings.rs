//! The settings of an app.

use std::{path::PathBuf, time::Duration};

use super::{AppTls, ProxyConfig, filters::FilterConfig};

/// One app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppConfig {
    /// The table's name in lower case: a host name, an IPv6 literal in brackets, or a wildcard
    /// `*.example.com`. No two apps share a host or alias.
    pub host: String,
    /// More names and wildcards, in lower case. Default: none.
    pub aliases: Vec<String>,
    /// Overrides `server.drain_timeout`. Default: none.
    pub drain_timeout: Option<Duration>,
    /// The filters around the app, for any kind. Default: none.
    pub filters: FilterConfig,
    /// Whether and how it is served over TLS. Default: none, by plain HTTP only.
    pub tls: Option<AppTls>,
    /// What the app does.
    pub kind: AppKind,
}

/// What an app does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppKind {
    /// A fixed answer.
    Respond(RespondConfig),
    /// A redirect to another place.
    Redirect(RedirectConfig),
    /// A folder of files.
    Files(FilesConfig),
    /// Requests are forwarded to other servers.
    Proxy(Box<ProxyConfig>),
}

/// `respond = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RespondConfig {
    /// Status code, 200 to 599. Default: 200.
    pub status: u16,
    /// The content; empty if the status is 204, 205 or 304, which have no content. Default: empty.
    pub body: String,
    /// The content's media type. Default: `text/plain`.
    pub content_type: String,
    /// Additional header fields, valid and none that the server writes itself. Default: none.
    pub headers: Vec<(String, String)>,
    /// How long the answer is delayed. Default: 0 s.
    pub delay: Duration,
}

/// `redirect = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectConfig {
    /// An absolute `http` or `https` URL without query, fragment or trailing slash. The request's
    /// path and query are appended.
    pub to: String,
    /// 301, 302, 303, 307 or 308. Default: 308.
    pub status: u16,
}

/// `files = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// The folder, made absolute from the config file's folder. It may not exist; loading the app
    /// finds out.
    pub root: PathBuf,
    /// Names tried in a directory, in order. Default: `index.html`. None with `index = "off"`.
    pub index: Vec<String>,
    /// Whether a directory without an index file is listed, `index = "listing"`.
    pub listing: bool,
    /// `try`: the files to look for.
    pub tries: Tries,
    /// The page for 404, relative to the root and inside it. Default: none.
    pub not_found: Option<String>,
    /// Whether precompressed files beside the requested one (`.br`, `.zst`, `.gz`) are sent to
    /// clients that accept them. Default: true.
    pub precompressed: bool,
    /// `Cache-Control` for every file. Default: none.
    pub cache_control: Option<String>,
    /// Media types by extension (lower case, no dot); they override the built-in ones. Default:
    /// none.
    pub types: Vec<(String, String)>,
}

/// `files.try`: the files to look for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Endings for the request's path, as in `"{path}.html"`. Default: one empty ending,
    /// `"{path}"`.
    pub endings: Vec<String>,
    /// The file to send if nothing else is found, relative to the root. Default: none.
    pub fallback: Option<String>,
}
