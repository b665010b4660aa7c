//! What a config says of certificates.

use std::{path::Path, sync::Arc};

use crate::config::{
    AppCertificate, AppTls, CertificateFiles, CertificateSource, Config, Source, TlsConfig,
};

/// The path of a key in the config.
pub(super) type Place = Vec<String>;

/// What a config says of certificates.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) tls: TlsConfig,
    pub(super) apps: Vec<WantedApp>,
    /// The app that unknown names get.
    pub(super) default_app: Option<String>,
    /// The text that it comes from, for the lines of its keys.
    pub(super) text: Option<Arc<Source>>,
}

/// An app of the config.
pub(super) struct WantedApp {
    pub(super) host: String,
    /// Its host and its aliases.
    pub(super) names: Vec<String>,
    /// None if it isn't served over TLS.
    pub(super) tls: Option<AppTls>,
}

impl Wanted {
    pub(super) fn of(config: &Config, text: Option<Arc<Source>>) -> Self {
        let apps = config.apps.iter().map(|app| WantedApp {
            host: app.host.clone(),
            names: [&app.host].into_iter().chain(&app.aliases).cloned().collect(),
            tls: app.tls.clone(),
        });
        Self {
            tls: config.tls.clone(),
            apps: apps.collect(),
            default_app: config.server.default_app.clone(),
            text,
        }
    }

    /// The place of a folder of `[tls]`.
    pub(super) fn place_of_folder(&self, folder: &Path) -> Place {
        self.shared_place(|source| matches!(source, CertificateSource::Folder(it) if it == folder))
            .unwrap_or_default()
    }

    /// The place where a pair of files is named.
    pub(super) fn place_of_pair(&self, files: &CertificateFiles) -> Place {
        let of_app = |app: &WantedApp| match &app.tls.as_ref()?.certificate {
            AppCertificate::Files(own) if own == files => Some(app.place("key")),
            _ => None,
        };
        let named = |source: &CertificateSource| match source {
            CertificateSource::Files(own) => own == files,
            CertificateSource::Folder(folder) => files.cert.parent() == Some(folder),
        };
        let place = self.shared_place(named);
        place.or_else(|| self.apps.iter().find_map(of_app)).unwrap_or_default()
    }

    fn shared_place(&self, is_meant: impl Fn(&CertificateSource) -> bool) -> Option<Place> {
        let index = self.tls.certificates.iter().position(is_meant)?;
        Some(vec!["tls".to_owned(), "certificates".to_owned(), index.to_string()])
    }
}

impl WantedApp {
    /// The place of a key of its `tls`, or of that itself if it has no such key.
    pub(super) fn place(&self, key: &str) -> Place {
        ["apps", &self.host, "tls", key].map(str::to_owned).to_vec()
    }

    /// The place that an error about a pair of files is about.
    pub(super) fn place_of_error(&self, files: &CertificateFiles, error: &str) -> Place {
        let is_of_key =
            files.cert != files.key && error.starts_with(&format!("{}: ", files.key.display()));
        self.place(if is_of_key { "key" } else { "cert" })
    }
}
