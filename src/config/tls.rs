//! `[tls]`, and `tls` of an app.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    error::Finding,
    reader::{ANY_COUNT, Table},
    sections::absolute_path,
    values::{Fault, boolean, choice, long_duration, string},
};

/// `[tls]`: what holds for all apps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// The lowest version of TLS, where an app names none. Default: 1.2.
    pub min_version: TlsVersion,
    /// Certificates for apps with `tls = {}`, found by the names in them. Default: none.
    pub certificates: Vec<CertificateSource>,
}

/// A version of TLS. Older ones are never spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2
    #[default]
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// An entry of `tls.certificates`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// A certificate and its key.
    Files(CertificateFiles),
    /// A folder of pairs `NAME.pem` and `NAME.key`.
    Folder(PathBuf),
}

/// A certificate chain and its key, in PEM. Made absolute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// The chain, the server's certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `tls` of an app: it is served over TLS, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppTls {
    /// Where its certificate comes from.
    pub certificate: AppCertificate,
    /// Overrides `tls.min_version`. Default: none.
    pub min_version: Option<TlsVersion>,
    /// `client_ca` and `client_auth`: the client certificates that are asked for. Default: none.
    pub client: Option<ClientAuthentication>,
    /// Requests over plain HTTP are redirected to https. Default: false.
    pub redirect_http: bool,
    /// For how long browsers use only https, at most 10 years (RFC 6797). Default: none.
    pub hsts: Option<Duration>,
}

/// The client certificates that an app asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuthentication {
    /// The authorities that have to have signed them, in PEM. Made absolute.
    pub ca: PathBuf,
    /// Whether a client has to have a certificate. Default: it has to.
    pub auth: ClientAuth,
}

/// Whether a client has to have a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without one there is no connection.
    #[default]
    Require,
    /// One that is shown has to be good.
    Optional,
}

/// Where an app's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppCertificate {
    /// From `[tls]`, by the app's names.
    Shared,
    /// From files of its own.
    Files(CertificateFiles),
    /// Made at the start, and signed by itself: for `localhost` and first steps.
    SelfSigned,
}

const VERSIONS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];

const CLIENT_AUTH: [(&str, ClientAuth); 2] =
    [("require", ClientAuth::Require), ("optional", ClientAuth::Optional)];

/// The range of `hsts`. 0 ends what was said before (RFC 6797 §6.1.1).
const HSTS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(87_600);

/// Reads `[tls]`.
pub(super) fn read(table: &mut Table<'_, '_>, base: &Path) -> TlsConfig {
    let folder = |text| absolute_path(text, base).map(CertificateSource::Folder);
    let pair = |table: &mut Table<'_, '_>| {
        table.require("cert");
        table.require("key");
        files(table, base).map(CertificateSource::Files)
    };
    let certificates =
        table.strings_or_tables("certificates", ANY_COUNT, folder, pair, |_| CERTIFICATES.into());
    let certificates = certificates.unwrap_or_default();
    TlsConfig {
        min_version: min_version(table).unwrap_or_default(),
        certificates: certificates.into_iter().map(|(source, _)| source).collect(),
    }
}

const CERTIFICATES: &str = "write a folder, or { cert = \"a.pem\", key = \"a.key\" }";

/// Reads `tls` of an app.
pub(super) fn app(table: &mut Table<'_, '_>, base: &Path) -> Option<AppTls> {
    let own = files(table, base);
    let [cert, key] = ["cert", "key"].map(|key| table.key_span(key));
    if cert.is_some() != key.is_some() {
        table.require("cert");
        table.require("key");
    }
    let self_signed = table.or("self_signed", false, boolean);
    if let (true, Some(span)) = (self_signed, cert.or(key)) {
        let message = format!("`{}` has both a certificate and `self_signed`", table.name());
        table.report(Finding::new(span, message).help("keep one of them"));
    }
    let certificate = match own {
        Some(files) => AppCertificate::Files(files),
        None if self_signed => AppCertificate::SelfSigned,
        None => AppCertificate::Shared,
    };
    Some(AppTls {
        certificate,
        min_version: min_version(table),
        client: client(table, base),
        redirect_http: table.or("redirect_http", false, boolean),
        hsts: table.optional("hsts", |value| long_duration(value, HSTS)),
    })
}

fn client(table: &mut Table<'_, '_>, base: &Path) -> Option<ClientAuthentication> {
    let ca = table.optional("client_ca", |value| absolute_path(string(value)?, base));
    let auth = table.optional("client_auth", |value| choice(value, &CLIENT_AUTH));
    if auth.is_some() {
        table.require("client_ca");
    }
    Some(ClientAuthentication { ca: ca?, auth: auth.unwrap_or_default() })
}

fn files(table: &mut Table<'_, '_>, base: &Path) -> Option<CertificateFiles> {
    let cert = table.optional("cert", |value| absolute_path(string(value)?, base));
    let key = table.optional("key", |value| absolute_path(string(value)?, base));
    Some(CertificateFiles { cert: cert?, key: key? })
}

fn min_version(table: &mut Table<'_, '_>) -> Option<TlsVersion> {
    table.optional("min_version", |value| {
        choice(value, &VERSIONS).map_err(|fault: Fault| fault.help("older versions are not safe"))
    })
}
