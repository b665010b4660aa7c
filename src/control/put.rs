//! How the operator puts an app under a host: at once, or when its deploy is ready.
//!
//! ```text
//! put:     load ──────────────────────────► certificates ► control
//! deploy:  load ► certificates are looked at
//!                   └ checks (deploys) ready ► certificates ► `Switched` ► control
//! ```

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use serde_json::Value;

use super::{
    certificates::{Certificates, Remarks},
    change_error::{PutError, SwitchError},
    changes::{Base, Begun, PutMode},
    deploys::{Deploy, Loaded},
    input::{Input, PutApp, ask},
    operator::Operator,
};
use crate::{
    config::{AppConfig, AppKind},
    hosted::{HostedApp, Origin},
    registry::NewApp,
};

impl Operator {
    pub(super) fn put(
        &mut self,
        host: &str,
        mode: PutMode,
        table: &Value,
    ) -> Result<Begun, PutError> {
        let (config, app) = self.load_table(host, table)?;
        let certificates = self.certificates_with(&config)?;
        self.put_in_place(certificates, app, mode)
    }

    /// Loads an app for a deploy. Nothing changes yet; whatever would make its switch fail is found
    /// now, as far as that can be known.
    pub(super) fn load_deploy(&mut self, host: &str, table: &Value) -> Result<Loaded, PutError> {
        let report = ask(&self.control, Input::Report).map_err(PutError::Change)?;
        if let Some(refusal) = report.refusal() {
            return Err(PutError::Change(refusal));
        }
        let base = self.base_of(host);
        let (config, app) = self.load_table(host, table)?;
        if let Some(missing) = missing_index(&config) {
            return Err(PutError::Load(missing));
        }
        drop(self.certificates_with(&config)?);
        Ok(Loaded { config, app, base })
    }

    /// Puts the new life of a deploy in place, if it is ready, and if the app has not changed.
    pub(super) fn switch(&mut self, deploy: &Deploy) -> Result<Begun, SwitchError> {
        let certificates = self.certificates_with(&deploy.config).map_err(SwitchError::Put)?;
        let report = ask(&self.control, Input::Report)?;
        if let Some(refusal) = report.refusal() {
            return Err(refusal.into());
        }
        // From here on nothing aborts it, and nothing waits for a disk.
        let app = deploy.switch().ok_or(SwitchError::NotReady)?;
        let mode = PutMode::Since(deploy.base);
        self.put_in_place(certificates, app, mode).map_err(SwitchError::Put)
    }

    fn base_of(&self, host: &str) -> Base {
        let host = host.to_ascii_lowercase();
        let life = self.registry.find(&host).filter(|life| life.host() == host);
        Base::of(life.as_deref())
    }

    fn load_table(
        &self,
        host: &str,
        table: &Value,
    ) -> Result<(AppConfig, NewApp<HostedApp>), PutError> {
        let folder = self.source.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
        let config = AppConfig::from_json(host, table, folder).map_err(PutError::Table)?;
        let mut app = self.load(&config, Origin::Admin).map_err(PutError::Load)?;
        app.app.definition = Some(Arc::new(table.clone()));
        Ok((config, app))
    }

    /// The certificates that hold with this app, if its own can be used.
    fn certificates_with(&self, config: &AppConfig) -> Result<(Certificates, Remarks), PutError> {
        let now = SystemTime::now();
        let step = |file: &Path| self.desk.step(format!("reading {}", file.display()));
        let (certificates, remarks) = self.certificates.with_app(config, now, &step);
        match remarks.error_of(&config.host) {
            Some(error) => Err(PutError::Load(error)),
            None => Ok((certificates, remarks)),
        }
    }

    fn put_in_place(
        &mut self,
        (certificates, remarks): (Certificates, Remarks),
        app: NewApp<HostedApp>,
        mode: PutMode,
    ) -> Result<Begun, PutError> {
        let table = Some(certificates.table());
        let put = |answer| Input::Put(PutApp { app, mode, certificates: table, answer });
        let begun = ask(&self.control, put).map_err(PutError::Change)?;
        self.certificates = certificates;
        self.watch.follow(&self.certificates);
        remarks.log(SystemTime::now());
        Ok(begun)
    }
}

/// A root that has none of the files that stand for a directory is a release that is not there yet.
fn missing_index(config: &AppConfig) -> Option<String> {
    let AppKind::Files(files) = &config.kind else { return None };
    let is_there = |name: &String| -> bool { PathBuf::from(&files.root).join(name).is_file() };
    let is_missing = !files.listing && !files.index.is_empty() && !files.index.iter().any(is_there);
    let names = files.index.join(" or ");
    is_missing.then(|| format!("{} has no {names}", files.root.display()))
}
