//! Gives a server its apps and their certificates, before it runs.

use std::{path::Path, time::SystemTime};

use super::HttpServer;
use crate::{
    config::{AppConfig, Config},
    control::{EarlyCertificates, load, unavailable},
    hosted::Origin,
    logging::event,
};

impl HttpServer {
    /// Has the apps loaded with the certificates of files that were read already.
    pub(crate) fn use_certificates(&mut self, early: EarlyCertificates) {
        self.early = Some(early);
    }

    /// Loads apps from their config, and their certificates. An app that cannot be loaded is logged
    /// and answers 503 (I8); without its certificate an app isn't served over TLS.
    pub fn load_apps(&mut self, apps: &[AppConfig]) {
        let config = Config { apps: apps.to_vec(), ..self.config.clone() };
        let now = SystemTime::now();
        let (certificates, remarks) = match self.early.take() {
            Some(early) => self.certificates.load_early(&config, early, now),
            None => self.certificates.load((&config, None), now, &|_| {}),
        };
        remarks.log(now);
        self.certificates = certificates;
        let folder = self.source.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
        for app in self.take_over.iter().flat_map(|before| before.put_apps(folder)) {
            let (certificates, remarks) = self.certificates.with_app(&app, now, &|_| {});
            remarks.log(now);
            self.certificates = certificates;
        }
        self.certificates.table().publish();
        let loops = self.registry.loops();
        for config in apps {
            if self.take_over.as_ref().is_some_and(|before| before.has_app(&config.host)) {
                continue;
            }
            let app = load(config, Origin::Config, loops).unwrap_or_else(|error| {
                event!(Error, "app_load_failed", host = &*config.host, error:% = error);
                unavailable(config, error.to_string(), loops)
            });
            self.control.load_app(app);
        }
    }

    /// Has the apps as the process before this one had them.
    ///
    /// # Errors
    /// An app that serves there, and cannot here.
    pub(crate) fn restore_apps(&mut self) -> Result<(), String> {
        let folder = self.source.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
        match &self.take_over {
            Some(before) => before.restore(&mut self.control, folder),
            None => Ok(()),
        }
    }
}
