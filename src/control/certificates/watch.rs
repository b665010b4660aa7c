//! The watch over the files of certificates: a thread that looks at them, and the operator's end.
//! The folder's page has the states.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::{
    remarks::Remarks,
    state::{Certificates, Held},
};
use crate::{duration::milliseconds, logging::event};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A look at one file that takes longer is reported: its disk hangs.
const SLOW_AFTER: Duration = Duration::from_secs(60);

/// What a look compares the files with.
struct Basis {
    number: u64,
    held: Arc<Held>,
}

/// What a look found.
pub(crate) struct Look {
    basis: u64,
    held: Arc<Held>,
    remarks: Remarks,
}

/// The operator's end. The thread ends with it.
pub(crate) struct CertificateWatch {
    number: u64,
    bases: Sender<Basis>,
    looks: Receiver<Look>,
    at: Arc<Mutex<Option<At>>>,
}

/// The thread's end.
pub(crate) struct Watcher {
    bases: Receiver<Basis>,
    looks: Sender<Look>,
    at: Arc<Mutex<Option<At>>>,
    basis: Option<Basis>,
}

/// The file that a look is at.
struct At {
    file: PathBuf,
    since: Instant,
    is_reported: bool,
}

/// Both ends of a watch.
pub(crate) fn certificate_watch() -> (CertificateWatch, Watcher) {
    let (bases, of_watcher) = crossbeam_channel::unbounded();
    // One at a time: the next one finds whatever has no place.
    let (to_operator, looks) = crossbeam_channel::bounded(1);
    let at = Arc::<Mutex<Option<At>>>::default();
    let watcher =
        Watcher { bases: of_watcher, looks: to_operator, at: Arc::clone(&at), basis: None };
    (CertificateWatch { number: 0, bases, looks, at }, watcher)
}

impl CertificateWatch {
    /// Has the next looks compare with these certificates; drops those that are under way.
    pub(in super::super) fn follow(&mut self, certificates: &Certificates) {
        self.number += 1;
        let (number, held) = (self.number, Arc::clone(certificates.held()));
        // Without a watcher no file is looked at.
        drop(self.bases.send(Basis { number, held }));
    }

    /// Where looks come in.
    pub(in super::super) fn looks(&self) -> Receiver<Look> {
        self.looks.clone()
    }

    /// Whether what a look has found holds: nothing was changed since it began.
    pub(in super::super) fn is_current(&self, look: &Look) -> bool {
        look.basis == self.number
    }

    /// Reports a file that hangs, once.
    pub(in super::super) fn report_slow(&self, now: Instant) {
        let mut at = lock(&self.at);
        let Some(at) = at.as_mut().filter(|at| !at.is_reported) else { return };
        let time = now.saturating_duration_since(at.since);
        if time >= SLOW_AFTER {
            at.is_reported = true;
            let (file, for_ms) = (at.file.display().to_string(), milliseconds(time));
            event!(Warn, "certificate_file_hangs", file = &*file, for_ms = for_ms);
        }
    }
}

impl Certificates {
    /// Takes what a look has found: the next handshake has it.
    pub(in super::super) fn take(&mut self, look: Look, now: SystemTime) {
        let is_same = look.held.is_shown_as(self.held());
        *self = self.with(look.held);
        if !is_same {
            self.table().publish();
        }
        look.remarks.log(now);
    }
}

impl Watcher {
    /// Looks, until the operator is gone.
    pub(crate) fn run(mut self) {
        loop {
            let due = Instant::now() + LOOK_EVERY;
            loop {
                match self.bases.recv_deadline(due) {
                    Ok(basis) => self.basis = Some(basis),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            let look = catch_unwind(AssertUnwindSafe(|| self.look(SystemTime::now())));
            *lock(&self.at) = None;
            match look.map(|look| look.map_or(Ok(()), |look| self.looks.try_send(look))) {
                Ok(Ok(()) | Err(TrySendError::Full(_))) => {}
                Ok(Err(TrySendError::Disconnected(_))) => return,
                Err(_) => event!(Error, "certificate_look_panicked"),
            }
        }
    }

    fn look(&self, now: SystemTime) -> Option<Look> {
        let Basis { number, held } = self.basis.as_ref().filter(|basis| basis.held.has_files())?;
        let at = |file: &Path| {
            let (file, since) = (file.to_owned(), Instant::now());
            *lock(&self.at) = Some(At { file, since, is_reported: false });
        };
        let (held, remarks) = held.look(now, &at)?;
        Some(Look { basis: *number, held: Arc::new(held), remarks })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::{
        config::Config,
        tls::{TableView, test_support::Authority},
    };

    /// A server with certificates of a folder, without its threads.
    struct Site {
        folder: tempfile::TempDir,
        authority: Authority,
        certificates: Certificates,
        watch: CertificateWatch,
        watcher: Watcher,
        now: SystemTime,
        view: TableView,
    }

    impl Site {
        /// Puts these pairs of files into the folder, and loads the config.
        fn new(pairs: &[(&str, &str)], config: &str) -> Self {
            // Long after the files were made.
            let now = SystemTime::now() + Duration::from_secs(60);
            let certificates = Certificates::new(now).unwrap();
            let view = TableView::new(Arc::clone(certificates.live()));
            let (watch, watcher) = certificate_watch();
            let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
            let mut site = Self { folder, authority, certificates, watch, watcher, now, view };
            for (file, name) in pairs {
                site.put(file, name);
            }
            site.reload(config);
            site
        }

        fn reload(&mut self, text: &str) -> Vec<String> {
            let base = self.folder.path();
            let config = Config::parse(text, Path::new("config.toml"), base).expect("a config");
            let (certificates, remarks) =
                self.certificates.load((&config, None), self.now, &|_| {});
            certificates.table().publish();
            self.certificates = certificates;
            self.watch.follow(&self.certificates);
            remarks.errors()
        }

        fn write(&self, file: &str, content: &str) {
            let new = self.folder.path().join("new");
            fs::write(&new, content).unwrap();
            fs::rename(new, self.folder.path().join(file)).unwrap();
        }

        /// A new pair `FILE.pem` and `FILE.key` for a name.
        fn put(&self, file: &str, name: &str) {
            let (certificate, key) = self.authority.issue(&[name]);
            self.write(&format!("{file}.pem"), &certificate.pem());
            self.write(&format!("{file}.key"), &key.serialize_pem());
        }

        fn begin_look(&mut self) -> Option<Look> {
            self.now += LOOK_EVERY;
            if let Some(basis) = self.watcher.bases.try_iter().last() {
                self.watcher.basis = Some(basis);
            }
            self.watcher.look(self.now)
        }

        /// Looks at the files; what it found is taken. How many certificates were loaded, and what
        /// can't be used.
        fn look(&mut self) -> (usize, Vec<String>) {
            let Some(look) = self.begin_look() else { return (0, Vec::new()) };
            let said = (look.remarks.loaded.len(), look.remarks.errors());
            assert!(self.watch.is_current(&look));
            self.certificates.take(look, self.now);
            self.watch.follow(&self.certificates);
            said
        }

        /// What the loops serve a host with.
        fn served(&mut self, host: &str) -> Vec<u8> {
            self.view.table().choose(Some(host)).expect("it is served").chain()
        }
    }

    const OWN: &str = "[apps.'a.test']\nrespond = {}\ntls = { cert = 'a.pem', key = 'a.key' }\n";
    const SHARED: &str = "[tls]\ncertificates = ['.']\n[apps.'a.test']\nrespond = {}\ntls = {}\n";

    fn none() -> (usize, Vec<String>) {
        (0, Vec::new())
    }

    #[test]
    fn a_pair_of_which_one_file_is_still_old_is_reported_once_and_taken_when_it_is_whole() {
        let mut site = Site::new(&[("a", "a.test")], OWN);
        let before = site.served("a.test");
        assert_eq!(site.look(), none(), "nothing has changed");
        let (certificate, key) = site.authority.issue(&["a.test"]);
        site.write("a.pem", &certificate.pem());
        let (loaded, errors) = site.look();
        assert_eq!((loaded, errors.len()), (0, 1));
        assert!(errors[0].contains("a.key: the private key belongs to another"), "{errors:?}");
        assert_eq!(site.look(), none(), "it is reported once");
        assert_eq!(site.served("a.test"), before);
        site.write("a.key", &key.serialize_pem());
        assert_eq!(site.look(), (1, vec![]));
        assert_ne!(site.served("a.test"), before);
        assert_eq!(site.look(), none());
        // Each change is reported, also the second one of its kind.
        for _ in 0..2 {
            site.write("a.pem", "");
            assert_eq!(site.look().1.len(), 1);
            site.put("a", "a.test");
            assert_eq!(site.look(), (1, vec![]));
        }
    }

    #[test]
    fn a_look_that_ends_after_a_reload_does_not_overwrite_what_the_reload_has_read() {
        let mut site = Site::new(&[("a", "a.test")], OWN);
        site.put("a", "a.test");
        let late = site.begin_look().expect("a change");
        site.put("a", "a.test");
        assert_eq!(site.reload(OWN), Vec::<String>::new());
        let reloaded = site.served("a.test");
        assert!(!site.watch.is_current(&late), "it would bring back an older certificate");
        assert_eq!(site.look(), none(), "the reload has read the newest");
        // The file changes after the reload has read it, and before the reload holds.
        site.put("a", "a.test");
        assert_eq!(site.look(), (1, vec![]));
        assert_ne!(site.served("a.test"), reloaded);
    }

    #[test]
    fn a_file_that_was_read_just_after_it_changed_is_read_again() {
        let mut site = Site::new(&[("a", "a.test")], OWN);
        site.put("a", "a.test");
        site.now = SystemTime::now();
        assert_eq!(site.reload(OWN), Vec::<String>::new());
        let table = site.certificates.live().table();
        let look = site.begin_look().expect("it is read again");
        site.certificates.take(look, site.now);
        assert!(Arc::ptr_eq(&table, &site.certificates.live().table()), "it is the same");
        site.watch.follow(&site.certificates);
        assert!(site.begin_look().is_none());
    }

    #[test]
    fn a_broken_pair_of_a_folder_keeps_its_certificate_although_a_wildcard_would_do() {
        let mut site = Site::new(&[("0", "*.test"), ("a", "a.test")], SHARED);
        let before = site.served("a.test");
        let (certificate, _) = site.authority.issue(&["a.test"]);
        site.write("a.pem", &certificate.pem());
        assert_eq!(site.look().1.len(), 1);
        assert_eq!(site.served("a.test"), before);
        assert_eq!(site.reload(SHARED).len(), 1);
        assert_eq!(site.served("a.test"), before);
    }

    #[test]
    fn authorities_of_clients_are_looked_at_and_never_lost() {
        let asks = OWN.replace("'a.key'", "'a.key', client_ca = 'ca.pem'");
        let mut site = Site::new(&[("a", "a.test")], OWN);
        let policy = |site: &mut Site| site.view.table().choose(Some("a.test")).unwrap().policy();
        let open = policy(&mut site);
        // Without authorities the app isn't served with the policy before, which asks for less.
        assert_eq!(site.reload(&asks).len(), 1);
        assert!(site.view.table().choose(Some("a.test")).is_none());
        site.write("ca.pem", &Authority::new().certificate.pem());
        assert_eq!(site.look().1, Vec::<String>::new());
        let one = policy(&mut site);
        assert_ne!(one, open);
        site.write("ca.pem", &Authority::new().certificate.pem());
        assert_eq!(site.look(), none());
        let other = policy(&mut site);
        assert_ne!(other, one);
        site.write("ca.pem", "");
        assert_eq!(site.look().1.len(), 1);
        assert_eq!(policy(&mut site), other);
    }

    #[test]
    fn a_new_process_keeps_authorities_of_clients_that_are_broken_on_disk_by_then() {
        let asks = OWN.replace("'a.key'", "'a.key', client_ca = 'ca.pem'");
        let mut site = Site::new(&[("a", "a.test")], OWN);
        site.write("ca.pem", &site.authority.certificate.pem());
        assert_eq!(site.reload(&asks), Vec::<String>::new());
        let policy = |site: &mut Site| site.view.table().choose(Some("a.test")).unwrap().policy();
        let (before, handed) = (policy(&mut site), site.certificates.export());
        site.write("ca.pem", "");
        site.certificates = Certificates::new(site.now).unwrap();
        site.certificates.take_handed(&handed);
        site.view = TableView::new(Arc::clone(site.certificates.live()));
        assert_eq!(site.reload(&asks).len(), 1);
        assert_eq!(policy(&mut site), before);
    }

    #[test]
    fn a_new_pair_in_a_folder_and_a_link_that_leads_elsewhere_are_noticed() {
        let mut site = Site::new(&[("0", "*.test")], SHARED);
        let wild = site.served("a.test");
        site.put("a", "a.test");
        assert_eq!(site.look(), (1, vec![]));
        let exact = site.served("a.test");
        assert_ne!(exact, wild);
        // As certbot does it: live/a.pem is a link to archive/a2.pem.
        fs::create_dir(site.folder.path().join("archive")).unwrap();
        site.put("archive/a2", "a.test");
        for kind in ["pem", "key"] {
            let link = site.folder.path().join("link");
            symlink(format!("archive/a2.{kind}"), &link).unwrap();
            fs::rename(link, site.folder.path().join(format!("a.{kind}"))).unwrap();
        }
        assert_eq!(site.look(), (1, vec![]));
        assert_ne!(site.served("a.test"), exact);
        // A folder that can't be read any more.
        let linked = site.served("a.test");
        let [folder, away] = ["", "away"].map(|name| site.folder.path().with_extension(name));
        fs::rename(site.folder.path(), &away).unwrap();
        let (loaded, errors) = site.look();
        assert!(loaded == 0 && errors[0].contains("cannot be read"), "{errors:?}");
        assert_eq!(site.served("a.test"), linked);
        fs::rename(away, folder).unwrap();
        assert_eq!(site.look(), none());
    }
}
