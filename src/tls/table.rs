//! Which certificate and which policy a name gets.

use std::{collections::HashMap, fmt, sync::Arc};

use rustls::{ServerConfig, sign::SingleCertAndKey};

use super::{certificate::Certificate, policy::Policy, provider::Digest, tickets::TicketKeys};

/// An app that is served over TLS.
#[derive(Clone)]
pub(crate) struct Site {
    /// The app's first host.
    pub(crate) app: Arc<str>,
    /// All its hosts: lower-case names, addresses, and patterns `*.NAME`.
    pub(crate) hosts: Vec<String>,
    pub(crate) certificate: Arc<Certificate>,
    pub(crate) policy: Policy,
}

/// What a session is made with.
pub(crate) struct SiteTls {
    app: Arc<str>,
    certificate: Arc<Certificate>,
    policy: Digest,
    config: Arc<ServerConfig>,
}

/// A snapshot of all sites. Never changes: a new one takes its place.
///
/// A policy's verifier, tickets and versions are made once, and each of its sites has them with its
/// own certificate. Rustls is given the certificate that the hello chose, and looks none up itself:
/// a second hello with another name can't have another certificate (I12).
#[derive(Default)]
pub(crate) struct CertificateTable {
    /// By host; `None` for those of apps that aren't served over TLS.
    names: HashMap<Box<str>, Option<Arc<SiteTls>>>,
    /// For a client that names no host, or an unknown one.
    default: Option<Arc<SiteTls>>,
}

impl CertificateTable {
    /// A table of these sites, and of the hosts of apps that aren't served over TLS. `default_app`
    /// is a host of the app that unknown names get.
    pub(crate) fn new(
        sites: Vec<Site>,
        plain: &[String],
        default_app: Option<&str>,
        protocols: &[&[u8]],
        tickets: &TicketKeys,
    ) -> Self {
        let mut policies: HashMap<Digest, ServerConfig> = HashMap::new();
        let mut table = Self::default();
        for site in sites {
            let policy = site.policy.digest();
            let base = policies.entry(policy).or_insert_with(|| {
                let mut config = site.policy.server_config(tickets);
                config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
                config
            });
            let mut config = base.clone();
            let certified = Arc::clone(site.certificate.certified());
            config.cert_resolver = Arc::new(SingleCertAndKey::from(certified));
            let Site { app, hosts, certificate, .. } = site;
            let is_default =
                default_app.is_some_and(|default| hosts.iter().any(|it| it == default));
            let tls = Arc::new(SiteTls { app, certificate, policy, config: Arc::new(config) });
            if is_default {
                table.default = Some(Arc::clone(&tls));
            }
            let of_tls = |host: String| (host.into(), Some(Arc::clone(&tls)));
            table.names.extend(hosts.into_iter().map(of_tls));
        }
        table.names.extend(plain.iter().map(|host| (host.as_str().into(), None)));
        table
    }

    /// The site of a host, in any case: its exact name, then the longest wildcard, then the default
    /// app. As requests are routed, so a host of an app without TLS has none.
    pub(crate) fn choose(&self, host: Option<&str>) -> Option<&Arc<SiteTls>> {
        let named = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            self.names.get(host.as_str()).or_else(|| {
                let parents = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
                parents.into_iter().find_map(|pattern| self.names.get(pattern.as_str()))
            })
        });
        named.map_or(self.default.as_ref(), Option::as_ref)
    }
}

impl SiteTls {
    /// The digest of its policy.
    #[cfg(test)]
    pub(crate) fn policy(&self) -> Digest {
        self.policy
    }

    /// The first host of the app.
    pub(crate) fn app(&self) -> &Arc<str> {
        &self.app
    }

    /// The server's certificate and those behind it, as they are on the wire.
    #[cfg(test)]
    pub(crate) fn chain(&self) -> Vec<u8> {
        self.certificate.certified().cert.iter().flat_map(|der| der.to_vec()).collect()
    }

    /// Whether a connection that was made with this may carry a request for a host (lower case)
    /// whose site is `other` (RFC 9110 §15.5.20). It may if both demand the same of a connection,
    /// and the app is the same or the connection's certificate covers the host (I12).
    pub(crate) fn may_serve(&self, host: Option<&str>, other: &Self) -> bool {
        let covers = || host.is_some_and(|host| self.certificate.covers(host));
        self.policy == other.policy && (self.app == other.app || covers())
    }

    pub(super) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

impl fmt::Debug for SiteTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SiteTls").field("app", &self.app).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{authorities::ClientAuth, policy::MinVersion, test_support::Authority},
        *,
    };

    fn table(hosts: &[&str], default_app: Option<&str>) -> CertificateTable {
        let authority = Authority::new();
        let sites = hosts.iter().map(|host| authority.site(host, Policy::default())).collect();
        CertificateTable::new(
            sites,
            &["plain.example".to_owned()],
            default_app,
            &[],
            &TicketKeys::generate(0).unwrap(),
        )
    }

    #[test]
    fn an_exact_name_comes_before_the_longest_wildcard_and_that_before_the_default() {
        let hosts = ["a.example", "*.example", "*.b.example", "other"];
        let with_default = table(&hosts, Some("other"));
        let without = table(&hosts, None);
        let app =
            |table: &CertificateTable, host| table.choose(host).map(|site| site.app().to_string());
        for (host, expected) in [
            ("a.example", "a.example"),
            ("A.EXAMPLE", "a.example"),
            ("c.example", "*.example"),
            ("c.b.example", "*.b.example"),
            ("d.c.b.example", "*.b.example"),
        ] {
            assert_eq!(app(&with_default, Some(host)).as_deref(), Some(expected), "{host}");
            assert_eq!(app(&without, Some(host)).as_deref(), Some(expected), "{host}");
        }
        // Its app isn't served over TLS, so neither a wildcard nor the default is asked.
        assert_eq!(app(&with_default, Some("Plain.example")), None);
        for host in [None, Some("example"), Some("unknown"), Some("127.0.0.1"), Some("")] {
            assert_eq!(app(&with_default, host).as_deref(), Some("other"), "{host:?}");
            assert_eq!(app(&without, host), None, "{host:?}");
        }
    }

    #[test]
    fn a_connection_serves_hosts_that_its_certificate_covers_and_whose_policy_is_its_own() {
        let authority = Authority::new();
        let required = || Policy {
            client: Some((authority.client_ca(), ClientAuth::Require)),
            ..Policy::default()
        };
        let both = Arc::new(authority.certificate(&["a.example", "b.example", "strict.example"]));
        let site = |host: &str, policy| Site {
            certificate: Arc::clone(&both),
            ..authority.site(host, policy)
        };
        let sites = vec![
            site("a.example", Policy::default()),
            site("b.example", Policy::default()),
            site("strict.example", required()),
            authority.site("c.example", Policy::default()),
            authority
                .site("strict13.example", Policy { min_version: MinVersion::Tls13, ..required() }),
        ];
        let table = CertificateTable::new(sites, &[], None, &[], &TicketKeys::generate(0).unwrap());
        let serves = |connected: &str, host: &str| {
            let connected = table.choose(Some(connected)).unwrap();
            connected.may_serve(Some(host), table.choose(Some(host)).unwrap())
        };
        assert!(serves("a.example", "a.example") && serves("a.example", "b.example"));
        assert!(!serves("a.example", "c.example"), "not covered");
        assert!(!serves("a.example", "strict.example"), "it wants a client certificate");
        assert!(!serves("strict.example", "a.example"), "it is not the same policy");
        assert!(serves("strict.example", "strict.example"));
        assert!(!serves("strict.example", "strict13.example"));
    }

    #[test]
    fn policies_are_the_same_if_they_demand_the_same() {
        let (one, other) = (Authority::new(), Authority::new());
        let policy = |authority: &Authority, auth, min_version| {
            Policy { client: Some((authority.client_ca(), auth)), min_version }.digest()
        };
        let required = policy(&one, ClientAuth::Require, MinVersion::Tls12);
        assert_eq!(required, policy(&one, ClientAuth::Require, MinVersion::Tls12));
        for different in [
            policy(&other, ClientAuth::Require, MinVersion::Tls12),
            policy(&one, ClientAuth::Optional, MinVersion::Tls12),
            policy(&one, ClientAuth::Require, MinVersion::Tls13),
            Policy::default().digest(),
        ] {
            assert_ne!(required, different);
        }
    }
}
