//! TLS to the upstreams of a life: loaded with the app, from the files that its config names.

use std::path::{Path, PathBuf};

use super::super::LoadError;
use crate::{
    config::{ProxyConfig, UpstreamAddress, UpstreamConfig, UpstreamTlsConfig},
    http::h1,
    tls::{Certificate, ClientTls, FileStamp, Roots, ServerCheck, load_certificate, load_roots},
};

/// The protocols that upstreams are offered.
const PROTOCOLS: &[&[u8]] = &[h1::ALPN];

/// The warning for operators about upstreams whose certificates aren't checked.
const UNVERIFIED: &str = "certificates of https:// upstreams are not checked, so anyone on the \
                          path can read and change requests and answers (insecure_skip_verify)";

/// TLS to the upstreams of a life.
pub(crate) struct UpstreamTls {
    /// For each upstream, in the order of the config; `None` if it speaks plain HTTP.
    pub(super) each: Vec<Option<ClientTls>>,
    /// What an operator should change.
    pub(crate) warnings: Vec<TlsWarning>,
    /// The files that it was loaded from.
    pub(super) files: Vec<LoadedFile>,
}

/// A file as it was before it was read.
#[derive(Clone, Debug)]
pub(super) struct LoadedFile {
    path: PathBuf,
    stamp: Option<FileStamp>,
}

impl LoadedFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stamp: FileStamp::of(path) }
    }

    pub(super) fn has_changed(&self) -> bool {
        FileStamp::of(&self.path) != self.stamp
    }
}

/// Something that works, but isn't safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsWarning {
    /// The key of the proxy that it is about.
    pub(crate) key: &'static str,
    pub(crate) text: String,
}

impl UpstreamTls {
    /// Reads the files. Reads none if no upstream speaks TLS.
    ///
    /// # Errors
    /// When a file can't be read, or isn't what it should be.
    pub(crate) fn load(config: &ProxyConfig) -> Result<Self, LoadError> {
        if !config.has_tls() {
            let each = vec![None; config.upstreams.len()];
            return Ok(Self { each, warnings: Vec::new(), files: Vec::new() });
        }
        let (tls, mut warnings) = (&config.tls, Vec::new());
        let own = tls.client_cert.iter().flat_map(|own| [&own.cert, &own.key]);
        let files = tls.ca.iter().chain(own).map(|path| LoadedFile::new(path)).collect();
        let own = client_certificate(tls, &mut warnings)?;
        let roots = if tls.insecure_skip_verify {
            warnings.push(TlsWarning { key: "insecure_skip_verify", text: UNVERIFIED.to_owned() });
            None
        } else {
            Some(load(tls)?)
        };
        let check = roots.as_ref().map_or(ServerCheck::Insecure, ServerCheck::Roots);
        let upstream = |upstream: &UpstreamConfig| {
            let UpstreamAddress::Tcp { tls: true, host, .. } = &upstream.address else {
                return Ok(None);
            };
            let name = tls.server_name.as_ref().unwrap_or(host);
            let client = ClientTls::new(name, &check, own.as_ref(), PROTOCOLS);
            let client = client.map_err(|error| refused(tls, error))?;
            client.map(Some).ok_or_else(|| LoadError::name(name))
        };
        let each = config.upstreams.iter().map(upstream).collect::<Result<_, _>>()?;
        Ok(Self { each, warnings, files })
    }
}

fn load(tls: &UpstreamTlsConfig) -> Result<Roots, LoadError> {
    load_roots(tls.ca.as_deref()).map_err(|error| refused(tls, error))
}

/// The authorities can't be used.
fn refused(tls: &UpstreamTlsConfig, error: crate::tls::CertificateError) -> LoadError {
    match &tls.ca {
        Some(file) => LoadError::file("ca", file, error),
        None => LoadError::system_roots(error),
    }
}

fn client_certificate(
    tls: &UpstreamTlsConfig,
    warnings: &mut Vec<TlsWarning>,
) -> Result<Option<Certificate>, LoadError> {
    let Some(files) = &tls.client_cert else { return Ok(None) };
    let loaded = load_certificate(&files.cert, &files.key).map_err(|error| {
        let is_key = error.file() == Some(&*files.key) && files.key != files.cert;
        let (key, file) =
            if is_key { ("client_key", &files.key) } else { ("client_cert", &files.cert) };
        LoadError::file(key, file, error)
    })?;
    let warned = loaded.warnings.iter();
    warnings
        .extend(warned.map(|warning| TlsWarning { key: "client_key", text: warning.to_string() }));
    Ok(Some(loaded.certificate))
}
