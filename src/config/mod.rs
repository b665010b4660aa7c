//! The configuration: text → TOML tree with positions → [`Config`].
//!
//! Owns every default and every bound. A [`Config`] from [`Config::parse`] is valid; nothing is
//! checked later. All problems of a file are found in one pass, each with its position. Reads
//! nothing but the config file: a missing folder or a port in use is found by the part that uses it
//! (I8).

mod admin;
mod app_settings;
mod apps;
mod cidr;
pub(crate) mod diff;
mod error;
pub mod filters;
mod foreign;
mod hosts;
mod json;
mod keys;
mod proxy;
mod proxy_settings;
mod punycode;
mod reader;
mod regular;
mod repeats;
mod sections;
mod settings;
mod source;
mod syntax;
mod tls;
mod units;
mod upstream_tls;
mod values;

use std::path::Path;

pub use admin::{AdminConfig, AdminListen};
pub use app_settings::{AppConfig, AppKind, FilesConfig, RedirectConfig, RespondConfig, Tries};
pub use cidr::Cidr;
pub use error::{ConfigError, Problem};
pub use proxy_settings::{
    Balance, ClientCertConfig, DrainTunnels, HashBy, HealthConfig, HostPolicy, ProxyConfig,
    ReadyConfig, UpstreamAddress, UpstreamConfig, UpstreamTlsConfig,
};
pub(crate) use sections::TIME_MAX;
pub use settings::{
    AccessFormat, Limits, ListenConfig, ListenOptions, LogConfig, LogFormat, ServerConfig,
};
pub(crate) use source::{Source, Warning};
pub use tls::{
    AppCertificate, AppTls, CertificateFiles, CertificateSource, ClientAuth, ClientAuthentication,
    TlsConfig, TlsVersion,
};
pub use units::{UnitError, parse_duration, parse_size};
pub(crate) use values::nearest;

use reader::Table;
use syntax::Document;

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[limits]`
    pub limits: Limits,
    /// `[log]`
    pub log: LogConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[tls]`
    pub tls: TlsConfig,
    /// `[apps."host"]`, in the order of the file.
    pub apps: Vec<AppConfig>,
}

impl Config {
    /// Reads a file. Relative paths in it start from its folder.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8, or contains mistakes: all of them at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::of_source(&Source::read(path)?)
    }

    /// Like [`Config::load`], for a running server, which must not block: reads regular files only.
    /// A FIFO or a pipe is refused.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_again(path: &Path) -> Result<Self, ConfigError> {
        Self::of_source(&Source::read_regular(path)?)
    }

    /// Reads `[admin]` of a regular file despite mistakes elsewhere in it, so that a running server
    /// can be found while its config is being edited.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8, or has a mistake in `[admin]`.
    pub fn load_admin(path: &Path) -> Result<AdminConfig, ConfigError> {
        let source = Source::read_regular(path)?;
        let (text, base) = (source.text(), source.base());
        let document = Document::parse(text);
        let tree = document.tree.get_ref();
        let mut findings = Vec::new();
        let admin = Table::read_root(tree, &mut findings, |root| {
            root.in_order().into_iter().for_each(|(key, ..)| root.accept(key));
            admin::read(root, base, &[])
        });
        if findings.is_empty() {
            return Ok(admin);
        }
        Err(ConfigError::new(path, &admin::hide_token(text, tree), findings))
    }

    /// # Errors
    /// If the text contains mistakes: all of them at once.
    pub(crate) fn of_source(source: &Source) -> Result<Self, ConfigError> {
        Self::parse(source.text(), source.name(), source.base())
    }

    /// Parses the text of a file. Messages call it `name`; relative paths start from `base`.
    ///
    /// # Errors
    /// If the text contains mistakes: all of them at once.
    pub fn parse(text: &str, name: &Path, base: &Path) -> Result<Self, ConfigError> {
        let mut document = Document::parse(text);
        let mut findings = Vec::new();
        let config = Table::read_root(document.tree.get_ref(), &mut findings, |root| {
            let server = root.table("server", sections::server);
            let limits = root.table("limits", sections::limits).unwrap_or_default();
            let log = root.table("log", |table| sections::log(table, base)).unwrap_or_default();
            let (mut server, default_app) = server.unwrap_or_default();
            let admin = admin::read(root, base, &server.listen);
            let tls = root.table("tls", |table| tls::read(table, base)).unwrap_or_default();
            let apps = root.table("apps", |table| apps::read(table, base)).unwrap_or_default();
            if let Some((name, span)) = default_app {
                let host = apps.host_of(&name);
                server.default_app = root.keep("server.default_app", span, host);
            }
            Self { server, limits, log, admin, tls, apps: apps.list }
        });
        let mut findings = document.join(findings);
        if findings.is_empty() {
            return Ok(config);
        }
        if document.is_broken()
            && let Some(foreign) = foreign::finding(text)
        {
            findings = vec![foreign];
        }
        let shown = admin::hide_token(text, document.tree.get_ref());
        Err(ConfigError::new(name, &shown, findings))
    }
}

#[cfg(test)]
mod tests;
