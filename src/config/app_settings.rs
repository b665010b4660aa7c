//! What a config says of an app.

use std::{path::PathBuf, time::Duration};

use super::{ProxyConfig, filters::FilterConfig};

/// One app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppConfig {
    /// The host as in the table's name, lower case; a name, an IPv6 literal in brackets, or
    /// a wildcard `*.example.com`. No two apps share a host or alias.
    pub host: String,
    /// Further names and wildcards, lower case. Default: none.
    pub aliases: Vec<String>,
    /// Overrides `server.drain_timeout`. Default: none.
    pub drain_timeout: Option<Duration>,
    /// What stands around the app, whatever its kind. Default: nothing.
    pub filters: FilterConfig,
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
    /// Other servers, which requests are passed on to.
    Proxy(Box<ProxyConfig>),
}

/// `respond = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RespondConfig {
    /// Status code, 200 to 599. Default: 200.
    pub status: u16,
    /// The content; empty when the status is 204, 205 or 304, which have none. Default: empty.
    pub body: String,
    /// The content's media type. Default: `text/plain`.
    pub content_type: String,
    /// Further fields; valid, and none that the server writes itself. Default: none.
    pub headers: Vec<(String, String)>,
    /// How long the answer is held back. Default: 0 s.
    pub delay: Duration,
}

/// `redirect = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectConfig {
    /// An absolute `http` or `https` URL without query and fragment, without a slash at its end;
    /// the request's path and query are put behind it.
    pub to: String,
    /// 301, 302, 303, 307 or 308. Default: 308.
    pub status: u16,
}

/// `files = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// The folder, made absolute from the place of the config file. It may not exist: that is found
    /// when the app is loaded.
    pub root: PathBuf,
    /// Names tried in a directory, in order. Default: `index.html`. None with `index = "off"`.
    pub index: Vec<String>,
    /// Whether a directory without such a file is listed, `index = "listing"`.
    pub listing: bool,
    /// `try`: what a path names.
    pub tries: Tries,
    /// The page for 404, relative to the root and inside it. Default: none.
    pub not_found: Option<String>,
    /// Whether precompressed neighbours (`.br`, `.zst`, `.gz`) are sent to who accepts them.
    /// Default: true.
    pub precompressed: bool,
    /// `Cache-Control` for every file. Default: none.
    pub cache_control: Option<String>,
    /// Media types by extension (lower case, no dot), before the built-in ones. Default: none.
    pub types: Vec<(String, String)>,
}

/// `files.try`: what is looked for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tries {
    /// What is put behind the request's path, `"{path}.html"`. Default: nothing, `"{path}"`.
    pub endings: Vec<String>,
    /// The file that is sent for all that is not found, relative to the root. Default: none.
    pub fallback: Option<String>,
}
