//! What a site demands of a connection: the lowest version, and client certificates.

use std::sync::Arc;

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use super::{
    authorities::{ClientAuth, ClientCa},
    provider::{Digest, provider, sha256},
    tickets::TicketKeys,
};

/// What a site demands of a connection.
#[derive(Clone, Default)]
pub(crate) struct Policy {
    pub(crate) min_version: MinVersion,
    /// Client certificates, if any are asked for.
    pub(crate) client: Option<(ClientCa, ClientAuth)>,
}

/// The lowest version of TLS that is accepted. Older ones than 1.2 never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MinVersion {
    #[default]
    Tls12,
    Tls13,
}

impl Policy {
    /// What the policy demands, as a digest: whatever decides who gets in is in it. Two policies
    /// with one digest demand the same.
    pub(crate) fn digest(&self) -> Digest {
        let mut said = b"tidegate tls policy 1".to_vec();
        said.push(match self.min_version {
            MinVersion::Tls12 => 2,
            MinVersion::Tls13 => 3,
        });
        if let Some((ca, auth)) = &self.client {
            said.push(match auth {
                ClientAuth::Require => 1,
                ClientAuth::Optional => 2,
            });
            said.extend_from_slice(ca.digest());
        }
        sha256(&said)
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static FROM_12: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
        match self.min_version {
            MinVersion::Tls12 => FROM_12,
            MinVersion::Tls13 => &FROM_12[..1],
        }
    }

    /// The part of a session's configuration that comes from the policy; it has no certificate.
    ///
    /// Early data is refused: it can be replayed. Sessions are kept in tickets alone, one for each
    /// handshake: no store, and no lock. There are none where client certificates are asked for:
    /// a certificate is verified only in a full handshake, and may have expired since.
    pub(super) fn server_config(&self, tickets: &TicketKeys) -> ServerConfig {
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(self.versions())
            .expect("the provider has suites for both versions");
        let verifier = match &self.client {
            None => WebPkiClientVerifier::no_client_auth(),
            Some((ca, auth)) => ca.verifier(*auth).expect("checked when the authorities were read"),
        };
        let mut config =
            config.with_client_cert_verifier(verifier).with_cert_resolver(Arc::new(NoCertificate));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if self.client.is_none() {
            config.ticketer = tickets.for_policy(self.digest());
            config.send_tls13_tickets = 1;
        }
        config.max_early_data_size = 0;
        config
    }
}

/// Stands where a site's certificate will.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(
        &self,
        _hello: rustls::server::ClientHello<'_>,
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}
