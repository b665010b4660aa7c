//! The certificates that a server has, and the table that the loops choose from.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    super::certificate_list::{CertificateList, LiveList, RejectedCertificate},
    expiry::{Expiries, Expiry},
    handed::{AppOnItsWay, HandedCertificates},
    kept::Reading,
    remarks::{Complaint, LoadedRemark, Remarks},
    sources::Sources,
    wanted::{Wanted, WantedApp},
};
use crate::{
    config::{
        self, AppCertificate, AppConfig, AppTls, CertificateFiles, Config, Source, TlsConfig,
        TlsVersion,
    },
    http::Protocol,
    logging::event,
    tls::{
        Certificate, CertificateTable, ClientAuth, LiveTable, MinVersion, Policy, Site, TicketKeys,
        self_signed,
    },
};

/// The certificates of a server: a value, which a reload or a look replaces.
#[derive(Clone)]
pub(crate) struct Certificates {
    live: Arc<LiveTable>,
    /// What operators see of them.
    list: Arc<LiveList>,
    tickets: TicketKeys,
    expiries: Expiries,
    held: Arc<Held>,
}

/// Which app has which certificate, and the files that they come from.
#[derive(Default)]
pub(super) struct Held {
    wanted: Arc<Wanted>,
    sources: Sources,
    served: Vec<ServedApp>,
    /// Hosts of the apps that aren't served over TLS.
    plain: Vec<String>,
    /// What was wrong with the files.
    complaints: Vec<Complaint>,
}

/// An app that is served over TLS.
pub(super) struct ServedApp {
    site: Site,
    source: AppCertificate,
    /// When it took its certificate.
    since: SystemTime,
}

/// The files of a config, read before the process gives up root's rights.
pub(crate) struct EarlyCertificates {
    text: Option<Arc<Source>>,
    sources: Sources,
}

impl EarlyCertificates {
    /// Reads the files. What can't be used is as the process before this one has handed it over.
    pub(crate) fn read(
        (config, text): (&Config, Option<Arc<Source>>),
        handed: Option<&HandedCertificates>,
        now: SystemTime,
    ) -> Self {
        let files = handed.map(|handed| handed.unpack().1).unwrap_or_default();
        let (wanted, before) = (Wanted::of(config, None), Sources::handed(files));
        let sources = Sources::read(&wanted, &before, (Reading::All, now), &|_| {});
        Self { text, sources }
    }
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
        let (live, list) = (Arc::default(), Arc::default());
        let expiries = Expiries::new(now);
        Ok(Self { live, list, tickets, expiries, held: Arc::default() })
    }

    /// The table that the loops look at.
    pub(crate) fn live(&self) -> &Arc<LiveTable> {
        &self.live
    }

    /// The list that operators see.
    pub(crate) fn list(&self) -> &Arc<LiveList> {
        &self.list
    }

    /// The certificates of another config, read from its files, and what there is to say of them.
    /// They hold when their [`Certificates::table`] is published and this value is replaced. `at`
    /// is called with each file before it is read.
    pub(crate) fn load(
        &self,
        (config, text): (&Config, Option<Arc<Source>>),
        now: SystemTime,
        at: &dyn Fn(&Path),
    ) -> (Self, Remarks) {
        let wanted = Arc::new(Wanted::of(config, text));
        let sources = Sources::read(&wanted, &self.held.sources, (Reading::All, now), at);
        self.choose(wanted, sources, now)
    }

    /// These with an app that an operator puts in the place of any other with its host. Files that
    /// haven't changed are not read again.
    pub(crate) fn with_app(
        &self,
        app: &AppConfig,
        now: SystemTime,
        at: &dyn Fn(&Path),
    ) -> (Self, Remarks) {
        let held = &*self.held;
        let wanted = Arc::new(held.wanted.with_app(app));
        let sources = Sources::read(&wanted, &held.sources, (Reading::Changed, now), at);
        let (next, remarks) = self.choose(wanted, sources, now);
        // What is wrong with this app is said again.
        let of_others = |complaint: &&Complaint| {
            complaint.rejected().and_then(|it| it.host.as_deref()) != Some(&*app.host)
        };
        let before: Vec<_> = held.complaints.iter().filter(of_others).cloned().collect();
        (next, remarks.without(&before))
    }

    /// As [`Certificates::load`], with files that were read before.
    pub(crate) fn load_early(
        &self,
        config: &Config,
        early: EarlyCertificates,
        now: SystemTime,
    ) -> (Self, Remarks) {
        let EarlyCertificates { text, sources } = early;
        self.choose(Arc::new(Wanted::of(config, text)), sources, now)
    }

    fn choose(&self, wanted: Arc<Wanted>, sources: Sources, now: SystemTime) -> (Self, Remarks) {
        let unreadable = sources.unreadable();
        let (held, mut remarks) = Held::new(wanted, sources, &self.held.served, now);
        remarks.complaints.extend(unreadable.into_iter().map(Complaint::Unreadable));
        (self.with(Arc::new(held)), remarks)
    }

    /// The table of these certificates.
    pub(crate) fn table(&self) -> NewTable {
        let Held { served, plain, wanted, .. } = &*self.held;
        let sites = served.iter().map(|served| served.site.clone()).collect();
        let default_app = wanted.default_app.as_deref();
        let table = CertificateTable::new(sites, plain, default_app, Protocol::ALPN, &self.tickets);
        let used = served.iter().map(|it| (&it.site.app, &it.site.certificate, it.since));
        NewTable {
            live: (Arc::clone(&self.live), Arc::clone(&self.list)),
            table: Arc::new(table),
            list: CertificateList::new(used, self.held.rejected()),
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

    /// Certificates in use of which it has to be said now that they expire.
    pub(crate) fn due_expiries(&self, now: SystemTime) -> Vec<Expiry> {
        self.expiries.due(&self.list.list(), now)
    }

    /// It is said.
    pub(crate) fn say_expiries(&mut self, due: &[Expiry]) {
        self.expiries.say(due, &self.list.list());
    }

    /// The keys of tickets, for the process that takes over.
    pub(in super::super) fn export_tickets(&self) -> Vec<u8> {
        self.tickets.export()
    }

    /// Goes on with the keys of another process, if it has any.
    pub(crate) fn take_tickets(&mut self, exported: &[u8]) {
        if let Some(tickets) = TicketKeys::import(exported) {
            self.tickets = tickets;
        }
    }

    /// What the process that takes over may not be able to read.
    pub(in super::super) fn export(&self) -> HandedCertificates {
        let app = |served: &ServedApp| AppOnItsWay {
            host: served.site.app.to_string(),
            names: served.site.hosts.clone(),
            is_self_signed: served.source == AppCertificate::SelfSigned,
            certificate: Arc::clone(&served.site.certificate),
            since: served.since,
        };
        HandedCertificates::new(self.held.served.iter().map(app), self.held.sources.good())
    }

    /// Goes on with the certificates of another process, where this one can't read the files that
    /// its config names.
    pub(crate) fn take_handed(&mut self, handed: &HandedCertificates) {
        let (apps, files) = handed.unpack();
        let app = |AppOnItsWay { host, names, is_self_signed, certificate, since }| ServedApp {
            site: Site {
                app: String::into(host),
                hosts: names,
                certificate,
                policy: Policy::default(),
            },
            // Only the names decide whether a self-signed one is made again.
            source: if is_self_signed {
                AppCertificate::SelfSigned
            } else {
                AppCertificate::Shared
            },
            since,
        };
        let (served, sources) = (apps.into_iter().map(app).collect(), Sources::handed(files));
        self.held = Arc::new(Held { served, sources, ..Held::default() });
    }

    /// The same with others in the place of its certificates.
    pub(super) fn with(&self, held: Arc<Held>) -> Self {
        Self { held, ..self.clone() }
    }

    pub(super) fn held(&self) -> &Arc<Held> {
        &self.held
    }
}

impl Held {
    /// Gives each app its certificate from those that were read. An app whose certificate can't be
    /// used keeps the previous certificate, from `before`.
    pub(super) fn new(
        wanted: Arc<Wanted>,
        sources: Sources,
        before: &[ServedApp],
        now: SystemTime,
    ) -> (Self, Remarks) {
        let before: HashMap<&str, &ServedApp> =
            before.iter().map(|served| (&*served.site.app, served)).collect();
        let mut remarks = Remarks::default();
        remarks.complaints.extend(of_sources(&sources, &wanted));
        let (mut served, mut plain) = (Vec::new(), Vec::new());
        for app in &wanted.apps {
            let Some(tls) = &app.tls else {
                plain.extend(app.names.iter().cloned());
                continue;
            };
            let known = before.get(&*app.host).copied();
            let chosen = choose(app, tls, known, &sources, now, &mut remarks);
            let before = known.map(|known| &known.site.certificate);
            let certificate = chosen.or_else(|| before.map(Arc::clone));
            let policy = policy(app, tls, &wanted.tls, &sources, &mut remarks);
            let (Some(certificate), Some(policy)) = (certificate, policy) else {
                plain.extend(app.names.iter().cloned());
                continue;
            };
            let since = known.filter(|known| known.site.certificate == certificate);
            if since.is_none() {
                let (host, names) = (app.host.clone(), app.names.clone());
                let certificate = Arc::clone(&certificate);
                remarks.loaded.push(LoadedRemark { host, names, certificate });
            }
            let since = since.map_or(now, |known| known.since);
            let hosts = app.names.clone();
            let site = Site { app: app.host.as_str().into(), hosts, certificate, policy };
            served.push(ServedApp { site, source: tls.certificate.clone(), since });
        }
        if let Some(text) = &wanted.text {
            remarks.locate(text);
        }
        let complaints = remarks.complaints.clone();
        (Self { wanted, sources, served, plain, complaints }, remarks)
    }

    /// Looks at the files: what is different now, if anything is.
    pub(super) fn look(&self, now: SystemTime, at: &dyn Fn(&Path)) -> Option<(Self, Remarks)> {
        let sources = Sources::read(&self.wanted, &self.sources, (Reading::Changed, now), at);
        if sources.is_same(&self.sources) {
            return None;
        }
        let (held, remarks) = Self::new(Arc::clone(&self.wanted), sources, &self.served, now);
        Some((held, remarks.without(&self.complaints)))
    }

    /// Whether there are files that may change.
    pub(super) fn has_files(&self) -> bool {
        !self.sources.is_empty()
    }

    fn rejected(&self) -> Vec<RejectedCertificate> {
        self.complaints.iter().filter_map(Complaint::rejected).cloned().collect()
    }

    /// Whether neither clients nor operators see a difference to `other`.
    pub(super) fn is_shown_as(&self, other: &Self) -> bool {
        let is_same = |(one, other): (&ServedApp, &ServedApp)| {
            one.site.app == other.site.app
                && Arc::ptr_eq(&one.site.certificate, &other.site.certificate)
                && one.site.policy.digest() == other.site.policy.digest()
        };
        self.served.len() == other.served.len()
            && self.complaints == other.complaints
            && self.served.iter().zip(&other.served).all(is_same)
    }
}

/// What is wrong with the files of `[tls]`, and with keys.
fn of_sources(sources: &Sources, wanted: &Wanted) -> impl Iterator<Item = Complaint> {
    let rejected = |(place, error, kept)| {
        Complaint::Rejected(RejectedCertificate { host: None, error, kept }, place)
    };
    let open = |(files, reason): (&CertificateFiles, &String)| {
        Complaint::OpenKey(files.clone(), reason.clone())
    };
    sources.errors(wanted).into_iter().map(rejected).chain(sources.warnings().map(open))
}

/// The certificate of an app, if it can be used; says why if not.
fn choose(
    app: &WantedApp,
    tls: &AppTls,
    known: Option<&ServedApp>,
    sources: &Sources,
    now: SystemTime,
    remarks: &mut Remarks,
) -> Option<Arc<Certificate>> {
    let (chosen, error) = match &tls.certificate {
        AppCertificate::Files(files) => {
            let kept = sources.pair(files)?;
            (kept.good.clone(), kept.error.clone())
        }
        AppCertificate::Shared => match sources.find(&app.host) {
            Some(certificate) => (Some(Arc::clone(certificate)), None),
            None => {
                let error = format!(
                    "no certificate of `tls.certificates` is for {}: add one, or name its files \
                     in the app's `tls`",
                    app.host
                );
                (None, Some(error))
            }
        },
        AppCertificate::SelfSigned => match known {
            Some(known) if known.source == tls.certificate && known.site.hosts == app.names => {
                (Some(Arc::clone(&known.site.certificate)), None)
            }
            _ => match self_signed(&app.names, now) {
                Ok(made) => (Some(Arc::new(made)), None),
                Err(error) => (None, Some(error.to_string())),
            },
        },
    };
    if let Some(error) = error {
        let (host, kept) = (Some(app.host.clone()), chosen.is_some() || known.is_some());
        let place = match &tls.certificate {
            AppCertificate::Files(files) => app.place_of_error(files, &error),
            AppCertificate::Shared | AppCertificate::SelfSigned => app.place("self_signed"),
        };
        let rejected = RejectedCertificate { host, error, kept };
        remarks.complaints.push(Complaint::Rejected(rejected, place));
    }
    chosen
}

/// What an app demands of its connections; says why if its authorities can't be used. Without any
/// it is served to no one over TLS: its old policy may have demanded less.
fn policy(
    app: &WantedApp,
    tls: &AppTls,
    all: &TlsConfig,
    sources: &Sources,
    remarks: &mut Remarks,
) -> Option<Policy> {
    let min_version = match tls.min_version.unwrap_or(all.min_version) {
        TlsVersion::V1_2 => MinVersion::Tls12,
        TlsVersion::V1_3 => MinVersion::Tls13,
    };
    let Some(client) = &tls.client else { return Some(Policy { min_version, client: None }) };
    let auth = match client.auth {
        config::ClientAuth::Require => ClientAuth::Require,
        config::ClientAuth::Optional => ClientAuth::Optional,
    };
    let ca = sources.client_ca(&client.ca)?;
    if let Some(error) = ca.error.clone() {
        let (host, kept) = (Some(app.host.clone()), ca.good.is_some());
        let rejected = RejectedCertificate { host, error, kept };
        remarks.complaints.push(Complaint::Rejected(rejected, app.place("client_ca")));
    }
    let ca = ca.good.as_deref()?.clone();
    Some(Policy { min_version, client: Some((ca, auth)) })
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{config::CertificateSource, tls::TableView};

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
        let (next, remarks) = certificates.load((&config(hosts), None), now(), &|_| {});
        assert_eq!(remarks.errors(), Vec::<String>::new());
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
        let (next, _) = first.load((&config, None), later, &|_| {});
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
        let certificate = |it: &Certificates| Arc::clone(&it.held.served[0].site.certificate);
        let again = loaded(&first, &["a.test", "b.test"]);
        assert_eq!(certificate(&again), certificate(&first));
        let gone = loaded(&again, &["b.test"]);
        assert_ne!(certificate(&loaded(&gone, &["a.test"])), certificate(&first));
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
        let (next, remarks) = first.load((&broken, None), now(), &|_| {});
        let served: Vec<_> = next.held.served.iter().map(|served| &*served.site.app).collect();
        assert_eq!(served, ["a.test"], "b.test had none before");
        let errors = remarks.errors();
        assert!(errors[0].starts_with("/none: cannot be read: "), "{errors:?}");
        assert!(errors[1].starts_with("a.test: /none.pem: cannot be read: "), "{errors:?}");
        assert!(errors[2].starts_with("b.test: /none.pem: ") && errors.len() == 3, "{errors:?}");
    }
}
