//! Loads certificates, and makes the table that the loops choose from.
//!
//! - An app whose certificate can't be used keeps the one before; without one it isn't served over
//!   TLS, and no other app is touched (I8).
//! - A self-signed certificate is made once for an app and its names.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    config::{
        AppCertificate, AppConfig, CertificateFiles, CertificateSource, Config, TlsConfig,
        TlsVersion,
    },
    logging::event,
    tls::{
        Certificate, CertificateTable, LiveTable, MinVersion, Policy, Site, TicketKeys, Validity,
        load_certificate, self_signed,
    },
};

/// What this server speaks over TLS.
const PROTOCOLS: &[&[u8]] = &[b"http/1.1"];

/// The certificates of a server.
#[derive(Clone)]
pub(crate) struct Certificates {
    live: Arc<LiveTable>,
    tickets: TicketKeys,
    /// Of the table that holds, and the app that unknown names get.
    sites: Vec<Site>,
    default_app: Option<String>,
    /// The certificates in use, by the app's first host.
    in_use: HashMap<String, InUse>,
}

/// A table that no loop looks at yet.
pub(crate) struct NewTable {
    live: Arc<LiveTable>,
    table: Arc<CertificateTable>,
}

impl NewTable {
    /// Puts it in the place of the one before.
    pub(crate) fn publish(self) {
        self.live.publish(self.table);
    }
}

/// A certificate in use, and what it was loaded for.
#[derive(Clone)]
struct InUse {
    source: AppCertificate,
    names: Vec<String>,
    certificate: Arc<Certificate>,
}

impl Certificates {
    /// No certificates, and new ticket keys.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(crate) fn new(now: SystemTime) -> std::io::Result<Self> {
        let tickets = TicketKeys::generate(seconds(now)).map_err(std::io::Error::other)?;
        let (live, in_use) = (Arc::default(), HashMap::new());
        Ok(Self { live, tickets, sites: Vec::new(), default_app: None, in_use })
    }

    /// The table that the loops look at.
    pub(crate) fn live(&self) -> &Arc<LiveTable> {
        &self.live
    }

    /// Loads the certificates of all apps, and makes their table.
    pub(crate) fn load(&mut self, config: &Config, now: SystemTime) -> NewTable {
        let shared = load_shared(&config.tls, now);
        let mut sites = Vec::new();
        for app in &config.apps {
            let Some(tls) = &app.tls else { continue };
            let names = names_of(app);
            let loaded = self.certificate_of(app, &tls.certificate, &names, &shared, now);
            let certificate = match loaded {
                Ok(certificate) => certificate,
                Err(error) => {
                    let kept = self.in_use.get(&app.host).map(|known| &known.certificate);
                    event!(
                        Error,
                        "certificate_rejected",
                        host = &*app.host,
                        error = &*error,
                        kept = kept.is_some(),
                    );
                    let Some(kept) = kept else { continue };
                    Arc::clone(kept)
                }
            };
            self.note_loaded(app, &tls.certificate, &names, &certificate, now);
            let min_version = match tls.min_version.unwrap_or(config.tls.min_version) {
                TlsVersion::V1_2 => MinVersion::Tls12,
                TlsVersion::V1_3 => MinVersion::Tls13,
            };
            let policy = Policy { min_version, client: None };
            sites.push(Site { app: app.host.as_str().into(), hosts: names, certificate, policy });
        }
        let served: Vec<&str> = sites.iter().map(|site| &*site.app).collect();
        self.in_use.retain(|host, _| served.contains(&host.as_str()));
        self.sites = sites;
        self.default_app.clone_from(&config.server.default_app);
        self.new_table()
    }

    fn new_table(&self) -> NewTable {
        let (sites, default_app) = (self.sites.clone(), self.default_app.as_deref());
        let table = CertificateTable::new(sites, default_app, PROTOCOLS, &self.tickets);
        NewTable { live: Arc::clone(&self.live), table: Arc::new(table) }
    }

    /// Rotates the keys of tickets when they are due, and publishes a table with the new ones.
    pub(crate) fn rotate_tickets(&mut self, now: SystemTime) {
        match self.tickets.rotated(seconds(now)) {
            Ok(None) => {}
            Ok(Some(tickets)) => {
                self.tickets = tickets;
                self.new_table().publish();
            }
            Err(error) => event!(Error, "tickets_not_rotated", error:% = error),
        }
    }

    /// The keys of tickets, for the process that takes over.
    pub(super) fn export_tickets(&self) -> Vec<u8> {
        self.tickets.export()
    }

    /// Goes on with the keys of another process, if it has any.
    pub(crate) fn take_tickets(&mut self, exported: &[u8]) {
        if let Some(tickets) = TicketKeys::import(exported) {
            self.tickets = tickets;
        }
    }

    fn certificate_of(
        &self,
        app: &AppConfig,
        source: &AppCertificate,
        names: &[String],
        shared: &[Arc<Certificate>],
        now: SystemTime,
    ) -> Result<Arc<Certificate>, String> {
        match source {
            AppCertificate::Files(files) => load_pair(files, now),
            AppCertificate::Shared => find(shared, &app.host).ok_or_else(|| {
                format!(
                    "no certificate of `tls.certificates` is for {}: add one, or name its files \
                     in the app's `tls`",
                    app.host
                )
            }),
            AppCertificate::SelfSigned => match self.in_use.get(&app.host) {
                Some(known) if known.source == *source && known.names == names => {
                    Ok(Arc::clone(&known.certificate))
                }
                _ => self_signed(names, now).map(Arc::new).map_err(|error| error.to_string()),
            },
        }
    }

    fn note_loaded(
        &mut self,
        app: &AppConfig,
        source: &AppCertificate,
        names: &[String],
        certificate: &Arc<Certificate>,
        now: SystemTime,
    ) {
        let fingerprint = |known: &InUse| *known.certificate.fingerprint();
        let is_new =
            self.in_use.get(&app.host).map(fingerprint) != Some(*certificate.fingerprint());
        if is_new {
            for name in names.iter().filter(|name| !certificate.covers(name)) {
                event!(Warn, "certificate_without_name", host = &*app.host, name = &**name);
            }
            event!(
                Info,
                "certificate_loaded",
                host = &*app.host,
                issuer = certificate.issuer(),
                key = certificate.key_kind(),
                days_left = days_left(certificate, now),
            );
        }
        let known = InUse {
            source: source.clone(),
            names: names.to_vec(),
            certificate: Arc::clone(certificate),
        };
        self.in_use.insert(app.host.clone(), known);
    }
}

fn names_of(app: &AppConfig) -> Vec<String> {
    [&app.host].into_iter().chain(&app.aliases).cloned().collect()
}

/// Of the certificates that cover a host the one that names it exactly, or the first.
fn find(certificates: &[Arc<Certificate>], host: &str) -> Option<Arc<Certificate>> {
    let names_it = |certificate: &&Arc<Certificate>| {
        certificate.names().iter().any(|name| name.to_string() == host)
    };
    let covering = || certificates.iter().filter(|certificate| certificate.covers(host));
    covering().find(names_it).or_else(|| covering().next()).map(Arc::clone)
}

/// Loads the certificates of `[tls]`. One that can't be used is logged and left out.
fn load_shared(config: &TlsConfig, now: SystemTime) -> Vec<Arc<Certificate>> {
    let mut loaded = Vec::new();
    let mut keep = |files: &CertificateFiles| match load_pair(files, now) {
        Ok(certificate) => loaded.push(certificate),
        Err(error) => {
            let host: Option<&str> = None;
            event!(Error, "certificate_rejected", host = host, error = &*error, kept = false);
        }
    };
    for source in &config.certificates {
        match source {
            CertificateSource::Files(files) => keep(files),
            CertificateSource::Folder(folder) => match pairs(folder) {
                Ok(pairs) => pairs.iter().for_each(&mut keep),
                Err(error) => {
                    let (host, error): (Option<&str>, _) =
                        (None, format!("{}: cannot be read: {error}", folder.display()));
                    event!(
                        Error,
                        "certificate_rejected",
                        host = host,
                        error = &*error,
                        kept = false
                    );
                }
            },
        }
    }
    loaded
}

/// The pairs `NAME.pem` and `NAME.key` of a folder, in the order of their names.
fn pairs(folder: &Path) -> std::io::Result<Vec<CertificateFiles>> {
    let mut certs: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    certs.retain(|path| path.extension().is_some_and(|extension| extension == "pem"));
    certs.sort();
    let pair = |cert: PathBuf| CertificateFiles { key: cert.with_extension("key"), cert };
    Ok(certs.into_iter().map(pair).collect())
}

/// Loads a certificate that is valid now.
fn load_pair(files: &CertificateFiles, now: SystemTime) -> Result<Arc<Certificate>, String> {
    let loaded = load_certificate(&files.cert, &files.key).map_err(|error| error.to_string())?;
    for warning in &loaded.warnings {
        event!(Warn, "certificate_key_is_open", reason:% = warning);
    }
    let cert = files.cert.display();
    match loaded.certificate.validity(now) {
        Validity::Valid(_) => Ok(Arc::new(loaded.certificate)),
        Validity::Expired(past) => {
            Err(format!("{cert}: expired {} days ago: renew it", past.as_secs() / 86_400))
        }
        Validity::NotYet(left) => Err(format!(
            "{cert}: is valid only in {} days: check this machine's clock",
            left.as_secs().div_ceil(86_400)
        )),
    }
}

fn days_left(certificate: &Certificate, now: SystemTime) -> u64 {
    match certificate.validity(now) {
        Validity::Valid(left) => left.as_secs() / 86_400,
        Validity::NotYet(_) | Validity::Expired(_) => 0,
    }
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
