//! What a config says of certificates.

use std::{path::Path, sync::Arc};

use crate::config::{
    AppCertificate, AppConfig, AppTls, CertificateFiles, CertificateSource, Config, Source,
    TlsConfig,
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

/// An app of the config, or of the admin API.
#[derive(Clone)]
pub(super) struct WantedApp {
    pub(super) host: String,
    /// It is named in the config.
    is_in_text: bool,
    /// Its host and its aliases.
    pub(super) names: Vec<String>,
    /// None if it isn't served over TLS.
    pub(super) tls: Option<AppTls>,
}

impl Wanted {
    pub(super) fn of(config: &Config, text: Option<Arc<Source>>) -> Self {
        let apps = config.apps.iter().map(|app| WantedApp::of(app, true));
        Self {
            tls: config.tls.clone(),
            apps: apps.collect(),
            default_app: config.server.default_app.clone(),
            text,
        }
    }

    /// The same with an app that is put in the place of any other with its host.
    pub(super) fn with_app(&self, app: &AppConfig) -> Self {
        let mut apps = self.apps.clone();
        apps.retain(|known| known.host != app.host);
        apps.push(WantedApp::of(app, false));
        let (tls, default_app) = (self.tls.clone(), self.default_app.clone());
        Self { tls, apps, default_app, text: self.text.clone() }
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
    fn of(app: &AppConfig, is_in_text: bool) -> Self {
        Self {
            host: app.host.clone(),
            is_in_text,
            names: [&app.host].into_iter().chain(&app.aliases).cloned().collect(),
            tls: app.tls.clone(),
        }
    }

    /// The place of a key of its `tls`, or of that itself if it has no such key. Empty if it isn't
    /// in the config.
    pub(super) fn place(&self, key: &str) -> Place {
        if !self.is_in_text {
            return Place::new();
        }
        ["apps", &self.host, "tls", key].map(str::to_owned).to_vec()
    }

    /// The place that an error about a pair of files is about.
    pub(super) fn place_of_error(&self, files: &CertificateFiles, error: &str) -> Place {
        let is_of_key =
            files.cert != files.key && error.starts_with(&format!("{}: ", files.key.display()));
        self.place(if is_of_key { "key" } else { "cert" })
    }
}
