//! The keys of `proxy` for TLS to upstreams.
//!
//! Knows that files are named, never what is in them: they are read when the app is loaded.

use std::{net::IpAddr, path::Path};

use super::{
    proxy_settings::{ClientCertConfig, UpstreamTlsConfig},
    reader::Table,
    sections::absolute_path,
    values::{Fault, boolean, string},
};
use crate::http::Host;

const KEYS: [&str; 5] = ["ca", "server_name", "client_cert", "client_key", "insecure_skip_verify"];

/// Reads the keys.
pub(super) fn read(table: &mut Table<'_, '_>, base: &Path) -> UpstreamTlsConfig {
    let insecure_skip_verify = table.or("insecure_skip_verify", false, boolean);
    let ca = table.optional("ca", |value| absolute_path(string(value)?, base));
    if insecure_skip_verify && table.key_span("ca").is_some() {
        let fault = Fault::new("is not used with `insecure_skip_verify = true`");
        report(table, "ca", fault.help("remove one of the two"));
    }
    let server_name = table.optional("server_name", |value| server_name(string(value)?));
    let cert = table.optional("client_cert", |value| absolute_path(string(value)?, base));
    let key = table.optional("client_key", |value| absolute_path(string(value)?, base));
    let has = |key| table.key_span(key).is_some();
    match (has("client_cert"), has("client_key")) {
        (true, false) => {
            let fault = Fault::new("needs its private key");
            let help = "add `client_key`; it may be the same file, if that holds both";
            report(table, "client_cert", fault.help(help));
        }
        (false, true) => {
            let fault = Fault::new("needs its certificate");
            report(table, "client_key", fault.help("add `client_cert`"));
        }
        _ => {}
    }
    let client_cert = cert.zip(key).map(|(cert, key)| ClientCertConfig { cert, key });
    UpstreamTlsConfig { ca, server_name, client_cert, insecure_skip_verify }
}

/// Reports keys for TLS in a proxy without an upstream that speaks it.
pub(super) fn report_unused(table: &mut Table<'_, '_>) {
    for key in KEYS {
        if table.key_span(key).is_some() {
            let fault = Fault::new("is for upstreams with https:// only").fragile();
            report(table, key, fault.help("remove it, or write \"https://…\" in `upstreams`"));
        }
    }
}

fn report(table: &mut Table<'_, '_>, key: &str, fault: Fault) {
    if let Some(span) = table.key_span(key) {
        table.report(fault.into_finding(&table.path_of(key), span));
    }
}

/// A host name, or an address with or without brackets.
fn server_name(text: &str) -> Result<String, Fault> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let host = Host::parse(text.as_bytes()).filter(|host| host.port().is_none());
    // Brackets are around an address of the future (RFC 3986 §3.2.2), which no certificate names.
    let name = host.map(|host| host.name().to_ascii_lowercase()).filter(|it| !it.contains('['));
    name.ok_or_else(|| {
        let fault = Fault::new("must be a host name or an IP address, without a port");
        fault.help("write a name of the upstream's certificate, such as \"app.internal\"")
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{AppKind, Config};

    fn parse(lines: &str) -> Result<UpstreamTlsConfig, Vec<String>> {
        let text = format!("[apps.a.proxy]\n{lines}");
        let config = Config::parse(&text, Path::new("config.toml"), Path::new("/etc/tidegate"));
        match config.map(|mut config| config.apps.remove(0).kind) {
            Ok(AppKind::Proxy(proxy)) => Ok(proxy.tls),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error
                .problems()
                .iter()
                .map(|it| format!("{}:{} {} {:?}", it.line, it.column, it.message, it.help))
                .collect()),
        }
    }

    #[test]
    fn every_key_is_read_and_paths_start_at_the_config() {
        let found = parse(
            "upstreams = ['http://a', 'https://b']\nca = 'ca.pem'\nserver_name = 'App.Internal'\n\
             client_cert = '/x/me.pem'\nclient_key = 'me.key'",
        );
        let expected = UpstreamTlsConfig {
            ca: Some(PathBuf::from("/etc/tidegate/ca.pem")),
            server_name: Some("app.internal".to_owned()),
            client_cert: Some(ClientCertConfig {
                cert: PathBuf::from("/x/me.pem"),
                key: PathBuf::from("/etc/tidegate/me.key"),
            }),
            insecure_skip_verify: false,
        };
        assert_eq!(found.unwrap(), expected);
        assert_eq!(parse("upstreams = ['https://b']").unwrap(), UpstreamTlsConfig::default());
        let found = parse("upstreams = ['https://b']\ninsecure_skip_verify = true").unwrap();
        assert!(found.insecure_skip_verify);
        for (name, expected) in [("'[::1]'", "::1"), ("'::1'", "::1"), ("'10.0.0.1'", "10.0.0.1")] {
            let found = parse(&format!("upstreams = ['https://b']\nserver_name = {name}")).unwrap();
            assert_eq!(found.server_name.as_deref(), Some(expected));
        }
    }

    #[test]
    fn mistakes_have_a_place_and_a_suggestion() {
        for (lines, place, words) in [
            ("client_cert = 'a'", "3:1", "`apps.a.proxy.client_cert` needs its private key"),
            ("client_key = 'a'", "3:1", "`apps.a.proxy.client_key` needs its certificate"),
            ("ca = ''", "3:6", "`apps.a.proxy.ca` is not a path"),
            ("ca = 1", "3:6", "must be a string, not an integer"),
            ("ca = 'a'\ninsecure_skip_verify = true", "3:1", "is not used with `insecure_skip_ve"),
            ("insecure_skip_verify = 'yes'", "3:24", "write true"),
            ("server_name = 'a:443'", "3:15", "without a port"),
            ("server_name = ''", "3:15", "must be a host name or an IP address"),
            ("server_name = '[v1.x]'", "3:15", "must be a host name or an IP address"),
        ] {
            let found = parse(&format!("upstreams = ['https://a']\n{lines}")).unwrap_err();
            let right = found.len() == 1
                && found[0].split(' ').next() == Some(place)
                && found[0].contains(words);
            assert!(right, "{lines}\nexpected {place} {words}\nfound {found:#?}");
        }
        for key in ["ca = 'a'", "server_name = 'a'", "insecure_skip_verify = false"] {
            let found = parse(&format!("upstreams = ['http://a', 'unix:b']\n{key}")).unwrap_err();
            let said = "is for upstreams with https:// only";
            assert!(found.len() == 1 && found[0].contains(said), "{found:#?}");
        }
    }
}
