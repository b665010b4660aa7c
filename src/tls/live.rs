//! The table that holds now: one for all loops, and each loop's copy of it.
//!
//! As with the routes: a generation says whether a copy is old, and the lock is taken only then.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU16, AtomicU64, Ordering},
};

use super::{
    client_certificate::ClientCertificate,
    table::{CertificateTable, SiteTls},
};

/// The table that holds now.
#[derive(Default)]
pub(crate) struct LiveTable {
    table: RwLock<Arc<CertificateTable>>,
    /// Moves with every new table.
    generation: AtomicU64,
    /// Where TLS is spoken; 0: nowhere.
    port: AtomicU16,
}

impl LiveTable {
    /// Puts a table in the place of the one before, for all hellos and requests from now on.
    pub(crate) fn publish(&self, table: Arc<CertificateTable>) {
        // A table is replaced whole: a panic elsewhere leaves none half made.
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Sets the port on which TLS is spoken.
    pub(crate) fn set_port(&self, port: Option<u16>) {
        self.port.store(port.unwrap_or(0), Ordering::Relaxed);
    }

    /// The table that holds now.
    pub(crate) fn table(&self) -> Arc<CertificateTable> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One loop's copy.
pub(crate) struct TableView {
    live: Arc<LiveTable>,
    generation: u64,
    table: Arc<CertificateTable>,
}

impl TableView {
    pub(crate) fn new(live: Arc<LiveTable>) -> Self {
        let (generation, table) = (0, Arc::default());
        Self { live, generation, table }
    }

    /// The table that holds now.
    pub(crate) fn table(&mut self) -> &CertificateTable {
        self.refresh();
        &self.table
    }

    /// The port on which TLS is spoken, if it is.
    pub(crate) fn port(&self) -> Option<u16> {
        Some(self.live.port.load(Ordering::Relaxed)).filter(|port| *port != 0)
    }

    fn refresh(&mut self) {
        // Read before the table: a table that is published in between is read at the next look.
        let generation = self.live.generation.load(Ordering::Acquire);
        if generation != self.generation {
            (self.generation, self.table) = (generation, self.live.table());
        }
    }
}

/// What a connection was made with, and the last host that it may serve.
pub(crate) struct Served {
    site: Arc<SiteTls>,
    /// What the client has shown in the handshake.
    certificate: Option<ClientCertificate>,
    /// The name that the client asked for (SNI).
    name: Option<Box<str>>,
    /// Most requests of a connection are for one host.
    checked: Option<Checked>,
}

/// A host that a connection may serve.
struct Checked {
    /// Of the table that says so.
    generation: u64,
    /// As it was sent.
    host: Option<Box<[u8]>>,
    /// The first host of its app.
    app: Arc<str>,
}

impl Served {
    pub(crate) fn new(site: Arc<SiteTls>, name: Option<Box<str>>) -> Self {
        Self { site, name, certificate: None, checked: None }
    }

    /// The name that the client asked for (SNI), lower case.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The client's certificate. `None` before the handshake is over, and if it showed none.
    pub(crate) fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }

    /// The handshake is over, with this certificate of the client if it showed one.
    pub(crate) fn set_client_certificate(&mut self, der: &[u8]) {
        self.certificate = ClientCertificate::read(der);
    }

    /// Whether the connection may carry a request for this host, in any case (I12). A request that
    /// names none is for the default app.
    pub(crate) fn may_serve(&mut self, host: Option<&[u8]>, view: &mut TableView) -> bool {
        view.refresh();
        if self.checked.as_ref().is_some_and(|checked| {
            checked.generation == view.generation && checked.host.as_deref() == host
        }) {
            return true;
        }
        let name = host.map(|host| String::from_utf8_lossy(host).to_ascii_lowercase());
        let site = view.table.choose(name.as_deref());
        let site = site.filter(|site| self.site.may_serve(name.as_deref(), site));
        self.checked = site.map(|site| Checked {
            generation: view.generation,
            host: host.map(Into::into),
            app: Arc::clone(site.app()),
        });
        self.checked.is_some()
    }

    /// Whether the host that it may serve is this app's. The table doesn't know the apps that it
    /// has no certificate for and that no config names: there the default app's would do.
    pub(crate) fn is_for(&self, app: &str) -> bool {
        self.checked.as_ref().is_some_and(|checked| *checked.app == *app)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Policy, TicketKeys, authorities::ClientAuth, test_support::Authority},
        *,
    };

    #[test]
    fn a_new_table_holds_for_the_next_hello_and_the_next_request_of_open_connections() {
        let authority = Authority::new();
        let keys = TicketKeys::generate(0).unwrap();
        let live = Arc::new(LiveTable::default());
        let publish = |hosts: &[&str], policy: &Policy| {
            let sites = hosts.iter().map(|host| authority.site(host, policy.clone())).collect();
            live.publish(Arc::new(CertificateTable::new(sites, &[], None, &[], &keys)));
        };
        let mut view = TableView::new(Arc::clone(&live));
        assert!(view.table().choose(Some("a.example")).is_none());
        publish(&["a.example", "b.example"], &Policy::default());
        let site = Arc::clone(view.table().choose(Some("a.example")).unwrap());
        let mut served = Served::new(site, None);
        for host in ["a.example", "A.Example", "a.example"] {
            assert!(served.may_serve(Some(host.as_bytes()), &mut view), "{host}");
        }
        assert!(!served.may_serve(Some(b"b.example"), &mut view), "not covered");
        assert!(!served.may_serve(Some(b"unknown"), &mut view));
        // Renewed: another certificate of the same app.
        publish(&["a.example"], &Policy::default());
        assert!(served.may_serve(Some(b"a.example"), &mut view));
        let client = Some((authority.client_ca(), ClientAuth::Require));
        publish(&["a.example"], &Policy { client, ..Policy::default() });
        assert!(
            !served.may_serve(Some(b"a.example"), &mut view),
            "made without a client certificate"
        );
        publish(&[], &Policy::default());
        assert!(!served.may_serve(Some(b"a.example"), &mut view));
    }
}
