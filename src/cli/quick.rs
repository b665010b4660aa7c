//! One app from the arguments: served by `serve` without a config, or written into a config by
//! `init`.

use std::{
    env,
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{self, Path, PathBuf},
};

use clap::Args;
use serde_json::{Value, json};

use super::{Place, address::Address, failure::Failure, locate, run_dir};
use crate::config::{
    AdminConfig, AdminListen, AppConfig, Config, Limits, LogConfig, ServerConfig, TlsConfig,
};

/// The app's host. As the default app it also answers all other hosts.
pub(super) const HOST: &str = "localhost";

/// The app; at most one kind can be given.
#[derive(Debug, Default, Args)]
#[group(id = "quick", multiple = false)]
pub(super) struct QuickApp {
    /// Serve the files of this folder
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,

    /// Forward requests to this server, http://HOST:PORT or unix:PATH; can be repeated
    #[arg(long, value_name = "URL")]
    proxy: Vec<String>,

    /// Answer with this text
    #[arg(long, value_name = "TEXT")]
    respond: Option<String>,
}

/// The addresses on which it is served.
#[derive(Debug, Default, Args)]
pub(super) struct QuickListen {
    /// Listen on this address: 127.0.0.1:8080, or :8080 or 8080 for all addresses of this machine;
    /// can be repeated. Default: 127.0.0.1:8080
    #[arg(long, value_name = "ADDR", requires = "quick", value_parser = listen_addresses)]
    listen: Vec<ListenAddresses>,
}

/// The addresses that one argument names.
type ListenAddresses = std::sync::Arc<[SocketAddr]>;

impl QuickApp {
    /// Whether an app was given.
    pub(super) fn is_given(&self) -> bool {
        self.files.is_some() || self.respond.is_some() || !self.proxy.is_empty()
    }

    /// A short description of the app.
    pub(super) fn description(&self) -> String {
        if let Some(folder) = &self.files {
            let folder = path::absolute(folder).unwrap_or_else(|_| folder.clone());
            return format!("the files of {}", folder.display());
        }
        match &self.respond {
            Some(_) => "a fixed answer".to_owned(),
            None => self.proxy.join(", "),
        }
    }

    /// A config with this app.
    pub(super) fn config(&self, listen: &QuickListen, place: &Place) -> Result<Config, Failure> {
        if let Some(config) = place.named_config() {
            return Err(Failure::Usage(format!(
                "--config {} cannot be used with --files, --proxy or --respond, which serve \
                 without a config",
                config.display()
            )));
        }
        let app = self.app()?;
        let listen = listen.addresses();
        let admin = admin(listen[0], place)?;
        let server = ServerConfig {
            listen: listen.into_iter().map(Into::into).collect(),
            default_app: Some(HOST.to_owned()),
            ..ServerConfig::default()
        };
        let (limits, log) = (Limits::default(), LogConfig::default());
        Ok(Config { server, limits, log, admin, tls: TlsConfig::default(), apps: vec![app] })
    }

    /// The app. Its paths are relative to the current folder.
    fn app(&self) -> Result<AppConfig, Failure> {
        let here = env::current_dir().map_err(|error| {
            Failure::Usage(format!("the current folder can't be found: {error}"))
        })?;
        if let Some(root) = self.files.as_ref().filter(|root| !here.join(root).is_dir()) {
            return Err(Failure::Usage(format!("--files {}: no such folder", root.display())));
        }
        AppConfig::from_json(HOST, &self.table()?, &here).map_err(|problems| {
            let lines = problems.iter().map(|problem| match &problem.help {
                Some(help) => format!("{} ({help})", problem.message),
                None => problem.message.clone(),
            });
            Failure::Usage(lines.collect::<Vec<_>>().join("\n"))
        })
    }

    /// The app's table.
    fn table(&self) -> Result<Value, Failure> {
        Ok(if let Some(folder) = &self.files {
            let root = folder.to_str().ok_or_else(|| {
                Failure::Usage(format!("--files {}: the path is not UTF-8", folder.display()))
            })?;
            json!({ "files": { "root": root } })
        } else if let Some(body) = &self.respond {
            json!({ "respond": { "body": body } })
        } else {
            json!({ "proxy": { "upstreams": self.proxy } })
        })
    }

    /// The app's line in a config whose paths are relative to `folder`.
    pub(super) fn line(&self, folder: &Path) -> Result<String, Failure> {
        self.app()?;
        let from_config = |text: &str| -> String {
            let is_here = folder.as_os_str().is_empty();
            let absolute = path::absolute(text).ok().filter(|_| !is_here);
            absolute.map_or_else(|| text.to_owned(), |path| path.display().to_string())
        };
        Ok(if let Some(root) = &self.files {
            format!("files = {{ root = {} }}", quoted(&from_config(&root.to_string_lossy())))
        } else if let Some(body) = &self.respond {
            format!("respond = {{ body = {} }}", quoted(body))
        } else {
            let url = |url: &String| match url.strip_prefix("unix:") {
                Some(path) => quoted(&format!("unix:{}", from_config(path))),
                None => quoted(url),
            };
            let urls: Vec<String> = self.proxy.iter().map(url).collect();
            format!("proxy = {{ upstreams = [{}] }}", urls.join(", "))
        })
    }
}

impl QuickListen {
    /// All addresses; never empty.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> = self.listen.iter().flat_map(|some| some.to_vec()).collect();
        if all.is_empty() {
            all = ServerConfig::default().listen.iter().map(|entry| entry.address).collect();
        }
        let mut seen = Vec::new();
        all.retain(|address| {
            let is_new = !seen.contains(address);
            seen.push(*address);
            is_new
        });
        all
    }
}

/// The admin address: from `--admin` or the environment, else a socket of its own.
fn admin(first: SocketAddr, place: &Place) -> Result<AdminConfig, Failure> {
    let named = locate::named(place.admin.as_deref())?;
    let listen = match named {
        Some(Address::Unix(path)) => AdminListen::Unix(path::absolute(&path).unwrap_or(path)),
        Some(Address::Tcp(address)) => AdminListen::Tcp(address),
        None => AdminListen::Unix(run_dir::socket_for(first).map_err(|error| {
            Failure::Unended(format!(
                "cannot create the admin socket: {error}; choose a path with --admin unix:PATH"
            ))
        })?),
    };
    let token = match &listen {
        AdminListen::Unix(_) => None,
        AdminListen::Tcp(address) => {
            let address = Address::Tcp(*address);
            let token = locate::find_token(&address, place.token_file.as_deref(), None)?;
            let Some(token) = token else {
                return Err(Failure::Usage(
                    "--admin with a TCP address requires a token: --token-file FILE, or \
                     TIDEGATE_TOKEN"
                        .to_owned(),
                ));
            };
            Some(token.text)
        }
    };
    let (token_file, mode, group, health_listen) = (None, AdminConfig::MODE, None, None);
    Ok(AdminConfig { enabled: true, listen, token, token_file, mode, group, health_listen })
}

/// Reads the value of one `--listen`.
fn listen_addresses(text: &str) -> Result<ListenAddresses, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok([address].into());
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("localhost", text));
    let everywhere = [
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    ];
    let places: Vec<SocketAddr> = match host {
        "localhost" => vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        // On a machine without IPv6, only IPv4.
        "" | "*" => {
            everywhere.into_iter().filter(|place| TcpListener::bind(place).is_ok()).collect()
        }
        _ => Vec::new(),
    };
    match port.parse::<u16>() {
        Ok(port) if !places.is_empty() => {
            Ok(places.iter().map(|place| SocketAddr::new(place.ip(), port)).collect())
        }
        _ => Err("write 127.0.0.1:8080, or :8080 for all addresses of this machine".to_owned()),
    }
}

/// The text as a basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            char if char.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(char));
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_common_forms_of_addresses_are_accepted() {
        let read = |text| listen_addresses(text).map(|some| some.to_vec());
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8000));
        for text in ["127.0.0.1:8000", "8000", "localhost:8000"] {
            assert_eq!(read(text), Ok(vec![local]), "{text}");
        }
        for text in [":8000", "*:8000"] {
            let all = read(text).expect(text);
            assert!(all.contains(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8000))), "{all:?}");
        }
        for text in ["", ":", "shop.example:80", "1.2.3.4", "70000", "::1:80", "unix:/x"] {
            assert!(read(text).is_err_and(|error| error.contains("127.0.0.1:8080")), "{text}");
        }
    }

    #[test]
    fn quoted_text_is_valid_toml() {
        let text = "a \"b\" \\ \n\t\u{1}\u{7f} ü";
        let table: toml::Table = format!("x = {}", quoted(text)).parse().expect("TOML");
        assert_eq!(table["x"].as_str(), Some(text));
    }
}
