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

use super::certificate_list::{CertificateList, LiveList, RejectedCertificate};
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

/// The certificates of a server: a value, which a reload replaces.
#[derive(Clone)]
pub(crate) struct Certificates {
    live: Arc<LiveTable>,
    /// What operators see of them.
    list: Arc<LiveList>,
    tickets: TicketKeys,
    served: Vec<ServedApp>,
    rejected: Vec<RejectedCertificate>,
    /// Hosts of the apps that aren't served over TLS.
    plain: Vec<String>,
    /// The app that unknown names get.
    default_app: Option<String>,
}

/// An app that is served over TLS.
#[derive(Clone)]
struct ServedApp {
    site: Site,
    source: AppCertificate,
    /// When it took its certificate.
    since: SystemTime,
}

/// A table that no loop looks at yet, and the list that operators will see.
pub(crate) struct NewTable {
    live: (Arc<LiveTable>, Arc<LiveList>),
    table: Arc<CertificateTable>,
    list: CertificateList,
}

impl NewTable {
    /// Puts them in the place of those before.
    pub(crate) fn publish(self) {
        let (table, list) = self.live;
        table.publish(self.table);
        list.publish(self.list);
    }
}

impl Certificates {
    /// No certificates, and new ticket keys.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(crate) fn new(now: SystemTime) -> std::io::Result<Self> {
        let tickets = TicketKeys::generate(seconds(now)).map_err(std::io::Error::other)?;
        Ok(Self {
            live: Arc::default(),
            list: Arc::default(),
            tickets,
            served: Vec::new(),
            rejected: Vec::new(),
            plain: Vec::new(),
            default_app: None,
        })
    }

    /// The table that the loops look at.
    pub(crate) fn live(&self) -> &Arc<LiveTable> {
        &self.live
    }

    /// The list that operators see.
    pub(crate) fn list(&self) -> &Arc<LiveList> {
        &self.list
    }

    /// The certificates of another config, and what is wrong with those that can't be used. They
    /// hold when their [`Certificates::table`] is published and this value is replaced.
    pub(crate) fn load(&self, config: &Config, now: SystemTime) -> (Self, Vec<String>) {
        let mut rejected = Vec::new();
        let shared = load_shared(&config.tls, now, &mut rejected);
        let before: HashMap<&str, &ServedApp> =
            self.served.iter().map(|served| (&*served.site.app, served)).collect();
        let (mut served, mut plain) = (Vec::new(), Vec::new());
        for app in &config.apps {
            let names = names_of(app);
            let Some(tls) = &app.tls else {
                plain.extend(names);
                continue;
            };
            let known = before.get(&*app.host).copied();
            let certificate =
                match certificate_of(app, &tls.certificate, &names, known, &shared, now) {
                    Ok(certificate) => {
                        log_loaded(app, &names, &certificate, known, now);
                        certificate
                    }
                    Err(error) => {
                        rejected.push(reject(Some(&app.host), error, known.is_some()));
                        let Some(known) = known else {
                            plain.extend(names);
                            continue;
                        };
                        Arc::clone(&known.site.certificate)
                    }
                };
            let min_version = match tls.min_version.unwrap_or(config.tls.min_version) {
                TlsVersion::V1_2 => MinVersion::Tls12,
                TlsVersion::V1_3 => MinVersion::Tls13,
            };
            let policy = Policy { min_version, client: None };
            let since = known.filter(|known| is_same(&known.site.certificate, &certificate));
            let since = since.map_or(now, |known| known.since);
            let site = Site { app: app.host.as_str().into(), hosts: names, certificate, policy };
            served.push(ServedApp { site, source: tls.certificate.clone(), since });
        }
        let errors = rejected.iter().map(ToString::to_string).collect();
        let default_app = config.server.default_app.clone();
        (Self { served, rejected, plain, default_app, ..self.clone() }, errors)
    }

    /// The table of these certificates.
    pub(crate) fn table(&self) -> NewTable {
        let sites = self.served.iter().map(|served| served.site.clone()).collect();
        let default_app = self.default_app.as_deref();
        let table =
            CertificateTable::new(sites, &self.plain, default_app, PROTOCOLS, &self.tickets);
        let served = self.served.iter();
        let used = served.map(|it| (&it.site.app, &it.site.certificate, it.since));
        NewTable {
            live: (Arc::clone(&self.live), Arc::clone(&self.list)),
            table: Arc::new(table),
            list: CertificateList::new(used, self.rejected.clone()),
        }
    }

    /// Rotates the keys of tickets when they are due, and publishes a table with the new ones.
    pub(crate) fn rotate_tickets(&mut self, now: SystemTime) {
        match self.tickets.rotated(seconds(now)) {
            Ok(None) => {}
            Ok(Some(tickets)) => {
                self.tickets = tickets;
                self.table().publish();
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
}

fn certificate_of(
    app: &AppConfig,
    source: &AppCertificate,
    names: &[String],
    known: Option<&ServedApp>,
    shared: &[Arc<Certificate>],
    now: SystemTime,
) -> Result<Arc<Certificate>, String> {
    match source {
        AppCertificate::Files(files) => load_pair(files, now),
        AppCertificate::Shared => find(shared, &app.host).ok_or_else(|| {
            format!(
                "no certificate of `tls.certificates` is for {}: add one, or name its files in \
                 the app's `tls`",
                app.host
            )
        }),
        AppCertificate::SelfSigned => match known {
            Some(known) if known.source == *source && known.site.hosts == names => {
                Ok(Arc::clone(&known.site.certificate))
            }
            _ => self_signed(names, now).map(Arc::new).map_err(|error| error.to_string()),
        },
    }
}

/// Logs a certificate that the app didn't have before.
fn log_loaded(
    app: &AppConfig,
    names: &[String],
    certificate: &Certificate,
    known: Option<&ServedApp>,
    now: SystemTime,
) {
    if known.is_some_and(|known| is_same(&known.site.certificate, certificate)) {
        return;
    }
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

fn is_same(one: &Certificate, other: &Certificate) -> bool {
    one.fingerprint() == other.fingerprint()
}

/// Logs a certificate that can't be used. `kept`: the one before stays in use.
fn reject(host: Option<&str>, error: String, kept: bool) -> RejectedCertificate {
    event!(Error, "certificate_rejected", host = host, error = &*error, kept = kept);
    RejectedCertificate { host: host.map(str::to_owned), error, kept }
}

fn names_of(app: &AppConfig) -> Vec<String> {
    [&app.host].into_iter().chain(&app.aliases).cloned().collect()
}

/// The certificate that names a host exactly, or else the first that covers it.
fn find(certificates: &[Arc<Certificate>], host: &str) -> Option<Arc<Certificate>> {
    let names_it = |certificate: &&Arc<Certificate>| {
        certificate.names().iter().any(|name| name.to_string() == host)
    };
    let covering = || certificates.iter().filter(|certificate| certificate.covers(host));
    covering().find(names_it).or_else(|| covering().next()).map(Arc::clone)
}

/// Loads the certificates of `[tls]`, without those that can't be used.
fn load_shared(
    config: &TlsConfig,
    now: SystemTime,
    rejected: &mut Vec<RejectedCertificate>,
) -> Vec<Arc<Certificate>> {
    let mut loaded = Vec::new();
    let mut reject = |error| rejected.push(reject(None, error, false));
    for source in &config.certificates {
        let pairs = match source {
            CertificateSource::Files(files) => vec![files.clone()],
            CertificateSource::Folder(folder) => pairs(folder).unwrap_or_else(|error| {
                reject(format!("{}: cannot be read: {error}", folder.display()));
                Vec::new()
            }),
        };
        for files in pairs {
            match load_pair(&files, now) {
                Ok(certificate) => loaded.push(certificate),
                Err(error) => reject(error),
            }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tls::TableView;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// A config of apps with self-signed certificates.
    fn config(hosts: &[&str]) -> Config {
        let app =
            |host: &&str| format!("[apps.{host:?}]\nrespond = {{}}\ntls.self_signed = true\n");
        let text: String = hosts.iter().map(app).collect();
        Config::parse(&text, Path::new("config.toml"), Path::new("/")).expect("a config")
    }

    fn loaded(certificates: &Certificates, hosts: &[&str]) -> Certificates {
        let (next, errors) = certificates.load(&config(hosts), now());
        assert_eq!(errors, Vec::<String>::new());
        next
    }

    #[test]
    fn certificates_of_a_reload_that_is_refused_hold_nowhere() {
        let mut certificates = loaded(&Certificates::new(now()).unwrap(), &["a.test"]);
        certificates.table().publish();
        let mut view = TableView::new(Arc::clone(certificates.live()));
        drop(loaded(&certificates, &["b.test"]));
        let mut serves = |host| view.table().choose(Some(host)).is_some();
        assert!(serves("a.test") && !serves("b.test"));
        // The next table that is published is of the config that holds.
        certificates.rotate_tickets(now() + Duration::from_secs(24 * 60 * 60));
        assert!(serves("a.test") && !serves("b.test"));
    }

    #[test]
    fn the_list_says_since_when_a_certificate_is_in_use_and_how_long_it_holds() {
        let hour = Duration::from_secs(60 * 60);
        let first = loaded(&Certificates::new(now()).unwrap(), &["a.test"]);
        let (config, later) = (config(&["a.test", "b.test"]), now() + hour);
        let (next, _) = first.load(&config, later);
        assert!(first.list().list().in_use.is_empty(), "it isn't published yet");
        next.table().publish();
        let list = first.list().list();
        let seen: Vec<_> = list.in_use.iter().map(|used| (&*used.apps[0], used.since)).collect();
        assert_eq!(seen, [("a.test", now()), ("b.test", later)]);
        let [a, _] = &list.in_use[..] else { panic!("two") };
        let end = a.certificate.not_after();
        for (at, days) in [
            (now(), 396),
            (now() + hour, 395),
            (end - hour, 0),
            (end, 0),
            (end + hour, -1),
            (end + 25 * hour, -2),
        ] {
            assert_eq!(a.days_left(at), days);
        }
    }

    #[test]
    fn a_self_signed_certificate_stays_as_long_as_its_names_do() {
        let first = loaded(&Certificates::new(now()).unwrap(), &["a.test"]);
        let fingerprint = |it: &Certificates| *it.served[0].site.certificate.fingerprint();
        let again = loaded(&first, &["a.test", "b.test"]);
        assert_eq!(fingerprint(&again), fingerprint(&first));
        let gone = loaded(&again, &["b.test"]);
        assert_ne!(fingerprint(&loaded(&gone, &["a.test"])), fingerprint(&first));
    }

    #[test]
    fn what_cannot_be_used_is_reported_and_the_certificate_before_is_kept() {
        let first = loaded(&Certificates::new(now()).unwrap(), &["a.test"]);
        let mut broken = config(&["a.test", "b.test"]);
        let files = CertificateFiles { cert: "/none.pem".into(), key: "/none.key".into() };
        broken.tls.certificates = vec![CertificateSource::Folder("/none".into())];
        for app in &mut broken.apps {
            app.tls.as_mut().unwrap().certificate = AppCertificate::Files(files.clone());
        }
        let (next, errors) = first.load(&broken, now());
        let served: Vec<_> = next.served.iter().map(|served| &*served.site.app).collect();
        assert_eq!(served, ["a.test"], "b.test had none before");
        assert!(errors[0].starts_with("/none: cannot be read: "), "{errors:?}");
        assert!(errors[1].starts_with("a.test: /none.pem: cannot be read: "), "{errors:?}");
        assert!(errors[2].starts_with("b.test: /none.pem: ") && errors.len() == 3, "{errors:?}");
    }
}
