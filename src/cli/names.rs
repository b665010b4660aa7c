//! Names of apps as people write them. Case and a trailing dot don't matter, an alias stands for
//! its app, and for a misspelt name the closest one is suggested.

use clap::{Args, builder::NonEmptyStringValueParser};

use super::answers::Row;

/// The argument that names an app.
#[derive(Debug, Args)]
pub(super) struct Host {
    /// The app's host, or one of its aliases
    #[arg(value_name = "HOST", value_parser = NonEmptyStringValueParser::new())]
    pub(super) name: String,
}

/// Whether the app answers this host by its own name, an alias or a wildcard.
pub(super) fn serves(row: &Row, host: &str) -> bool {
    let host = plain(host);
    let mut names = std::iter::once(&row.host).chain(&row.aliases);
    names.any(|name| match name.strip_prefix('*') {
        Some(suffix) => host == *name || (host.len() > suffix.len() && host.ends_with(suffix)),
        None => host == *name,
    })
}

/// The name as the server stores it: in lower case, without a trailing dot.
pub(super) fn plain(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    match lower.strip_suffix('.') {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => lower,
    }
}
