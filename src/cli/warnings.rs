//! Warnings about a valid config that won't work on this machine: missing folders, names that don't
//! resolve, and the like.
//!
//! A warning is not an error: the folder may exist once the server starts, or `check` may run as
//! another user than the server. Changes nothing.

use std::{
    collections::HashSet,
    env, fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::{Access, access};

use crate::{
    app::{self, UpstreamTls},
    config::{
        AccessFormat, AdminListen, AppConfig, AppKind, Config, FilesConfig, ProxyConfig,
        RedirectConfig, UpstreamAddress, Warning,
    },
    control::certificate_warnings,
    http::Host,
};

/// How long resolving all names may take together.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// The most upstream names that are resolved; each needs a thread.
const RESOLVED_MAX: usize = 200;

/// All warnings about a config that was read from `file` and whose paths start from `base`.
pub(super) fn warnings(config: &Config, file: &Path, base: &Path) -> Vec<Warning> {
    let mut found = Vec::new();
    if config.apps.is_empty() {
        let warning = Warning::new(&[], "there is no app, so there is nothing to serve");
        found.push(warning.help("`tidegate serve` needs --allow-empty to start like this"));
    }
    listen(config, &mut found);
    tls_listeners(config, &mut found);
    for (place, text) in certificate_warnings(config, SystemTime::now()) {
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        found.push(Warning::new(&place, text));
    }
    logs(config, &mut found);
    admin(config, file, &mut found);
    for app in &config.apps {
        match &app.kind {
            AppKind::Files(files) => root(app, files, base, &mut found),
            AppKind::Proxy(proxy) => {
                for (index, upstream) in proxy.upstreams.iter().enumerate() {
                    if let UpstreamAddress::Unix(path) = &upstream.address {
                        let place = upstream_place(&app.host, index);
                        found.extend(socket_missing(path).map(|why| place.warning(why)));
                    }
                }
                upstream_tls(&app.host, proxy, &mut found);
            }
            AppKind::Redirect(redirect) => redirect_loop(config, app, redirect, &mut found),
            AppKind::Respond(_) => {}
        }
    }
    names(config, &mut found);
    found
}

/// Listen addresses that this machine doesn't have.
fn listen(config: &Config, found: &mut Vec<Warning>) {
    let mut look = |place: &[&str], ip: IpAddr| {
        // Port 0 takes nothing from other programs.
        let bound = UdpSocket::bind(SocketAddr::new(ip, 0));
        if bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable) {
            let text = format!("this machine does not have the address {ip}");
            found.push(Warning::new(place, text));
        }
    };
    for (index, entry) in config.server.listen.iter().enumerate() {
        look(&["server", "listen", &index.to_string(), "address"], entry.address.ip());
    }
    if let Some(address) = config.admin.health_listen {
        look(&["admin", "health_listen"], address.ip());
    }
}

/// Apps that are to be served over TLS where no address speaks it.
fn tls_listeners(config: &Config, found: &mut Vec<Warning>) {
    if config.server.listen.iter().any(|entry| entry.options.tls) {
        return;
    }
    for app in &config.apps {
        let Some(tls) = &app.tls else { continue };
        let text = match tls.redirect_http {
            true => {
                "requests are redirected to https, but no address of `server.listen` speaks TLS"
            }
            false => "no address of `server.listen` speaks TLS",
        };
        let warning = Warning::new(&["apps", &app.host, "tls"], text);
        found.push(warning.help("write { address = \"0.0.0.0:443\", tls = true }"));
    }
}

fn logs(config: &Config, found: &mut Vec<Warning>) {
    let log = &config.log;
    for (key, path) in [("path", &log.path), ("access_path", &log.access_path)] {
        let Some(path) = path else { continue };
        if let Some(why) = not_writable(path) {
            found.push(Warning::new(&["log", key], format!("the log cannot be written: {why}")));
        }
    }
    if log.access_path.is_some() && log.access == AccessFormat::Off {
        let warning = Warning::new(&["log", "access_path"], "nothing is written to this log");
        found.push(warning.help("add `access = \"combined\"` or `access = \"json\"`"));
    }
}

/// Why a file can't be written or created.
fn not_writable(path: &Path) -> Option<String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Some(format!("{shown} is a directory")),
        Ok(_) if access(path, Access::WRITE_OK).is_err() => {
            Some(format!("{shown} is not writable"))
        }
        Ok(_) => None,
        Err(_) => folder_not_writable(path),
    }
}

/// Why nothing can be created at a path.
fn folder_not_writable(path: &Path) -> Option<String> {
    let folder = path.parent()?;
    let shown = folder.display();
    match fs::metadata(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("there is no folder {shown}"))
        }
        Err(error) => Some(format!("{shown}: {error}")),
        Ok(metadata) if !metadata.is_dir() => Some(format!("{shown} is not a folder")),
        Ok(_) if access(folder, Access::WRITE_OK | Access::EXEC_OK).is_err() => {
            Some(format!("the folder {shown} is not writable"))
        }
        Ok(_) => None,
    }
}

fn admin(config: &Config, file: &Path, found: &mut Vec<Warning>) {
    let admin = &config.admin;
    if !admin.enabled {
        return;
    }
    if let AdminListen::Unix(path) = &admin.listen {
        let is_other = fs::metadata(path).is_ok_and(|there| !there.file_type().is_socket());
        let why = if is_other {
            Some(format!("{} is not a socket", path.display()))
        } else {
            folder_not_writable(path)
        };
        let place = ["admin", "listen"];
        found.extend(
            why.map(|why| {
                Warning::new(&place, format!("the admin socket cannot be created: {why}"))
            }),
        );
    }
    let is_for_all = fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o004 != 0);
    if admin.token.is_some() && is_for_all {
        let text = "every user of this machine can read the token in this file";
        let help = format!("chmod o-r {}", file.display());
        found.push(Warning::new(&["admin", "token"], text).help(help));
    }
}

/// Problems with the folder of a `files` app.
fn root(app: &AppConfig, files: &FilesConfig, base: &Path, found: &mut Vec<Warning>) {
    let place = ["apps", &app.host, "files", "root"];
    if let Err(error) = app::load(&app.kind, 1) {
        let text = format!("{error}; requests for {} would get 503", app.host);
        let warning = Warning::new(&place, text);
        found.push(match at_home(&files.root, base) {
            Some(help) => warning.help(help),
            None => warning,
        });
        return;
    }
    if access(&files.root, Access::READ_OK | Access::EXEC_OK).is_err() {
        found.push(Warning::new(&place, format!("{} is not readable", files.root.display())));
    }
    if let Some(page) = &files.not_found
        && !files.root.join(page).is_file()
    {
        let place = ["apps", &app.host, "files", "not_found"];
        let text = format!("there is no file {} below the root", page.escape_debug());
        found.push(Warning::new(&place, text));
    }
}

/// Problems with the files for TLS to upstreams, and what isn't safe about it.
fn upstream_tls(host: &str, proxy: &ProxyConfig, found: &mut Vec<Warning>) {
    let place = |key| ["apps", host, "proxy", key];
    match UpstreamTls::load(proxy) {
        Ok(tls) => {
            let warnings = tls.warnings.iter();
            found.extend(warnings.map(|it| Warning::new(&place(it.key), it.text.clone())));
        }
        Err(error) => {
            let text = format!("{error}; requests for {host} would get 503");
            found.push(Warning::new(&place(error.key()), text));
        }
    }
}

/// A redirect to the app itself. With https, another server may answer there.
fn redirect_loop(
    config: &Config,
    app: &AppConfig,
    redirect: &RedirectConfig,
    found: &mut Vec<Warning>,
) {
    let Some(rest) = redirect.to.strip_prefix("http://") else { return };
    let authority = rest.split('/').next().unwrap_or_default();
    let Some(target) = Host::parse(authority.as_bytes()) else { return };
    let (name, port) = (target.name().to_ascii_lowercase(), target.port().unwrap_or(80));
    let is_port_ours = config.server.listen.iter().any(|entry| entry.address.port() == port);
    if is_port_ours && (app.host == name || app.aliases.contains(&name)) {
        let text = format!("{name} is this app itself: clients would be redirected in a loop");
        found.push(Warning::new(&["apps", &app.host, "redirect", "to"], text));
    }
}

/// The fix for a path that begins with `~`, which only a shell expands.
fn at_home(path: &Path, base: &Path) -> Option<String> {
    let written = path.strip_prefix(base).ok()?;
    let behind = written.strip_prefix("~").ok()?;
    let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/home/NAME"), PathBuf::from);
    Some(format!("only a shell expands `~`; write \"{}\"", home.join(behind).display()))
}

/// Why a proxy cannot connect to a socket.
fn socket_missing(path: &Path) -> Option<String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(there) if there.file_type().is_socket() => None,
        Ok(_) => Some(format!("{shown} is not a socket")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("there is no socket {shown}"))
        }
        Err(error) => Some(format!("{shown}: {error}")),
    }
}

/// Where the config names an upstream.
struct UpstreamPlace {
    host: String,
    index: String,
}

fn upstream_place(host: &str, index: usize) -> UpstreamPlace {
    UpstreamPlace { host: host.to_owned(), index: index.to_string() }
}

impl UpstreamPlace {
    fn warning(&self, text: String) -> Warning {
        let place = ["apps", &self.host, "proxy", "upstreams", &self.index, "url"];
        Warning::new(&place, text)
    }
}

/// Upstream names that don't resolve, and upstreams that are this server itself.
fn names(config: &Config, found: &mut Vec<Warning>) {
    let mut wanted: Vec<(UpstreamPlace, String, u16)> = Vec::new();
    for app in &config.apps {
        let AppKind::Proxy(proxy) = &app.kind else { continue };
        for (index, upstream) in proxy.upstreams.iter().enumerate() {
            if let UpstreamAddress::Tcp { host, port, .. } = &upstream.address {
                wanted.push((upstream_place(&app.host, index), host.clone(), *port));
            }
        }
    }
    let names: HashSet<&String> = wanted.iter().map(|(_, host, _)| host).collect();
    let resolved = resolve(names.into_iter().take(RESOLVED_MAX));
    for (place, host, port) in &wanted {
        let Some((_, answer)) = resolved.iter().find(|(name, _)| name == host) else { continue };
        match answer {
            Err(why) => found.push(place.warning(format!("{host} has no address: {why}"))),
            Ok(addresses) => {
                let is_self = |ip: &IpAddr| {
                    let is_ours = |own: SocketAddr| is_part(*ip, own.ip()) && own.port() == *port;
                    config.server.listen.iter().any(|entry| is_ours(entry.address))
                };
                if addresses.iter().any(is_self) {
                    let text = format!("{host}:{port} is this server itself: requests would loop");
                    found.push(place.warning(text));
                }
            }
        }
    }
}

/// Whether a connection to `ip` reaches a listener on `own`.
fn is_part(ip: IpAddr, own: IpAddr) -> bool {
    ip == own || own.is_unspecified() && own.is_ipv4() == ip.is_ipv4() && ip.is_loopback()
}

/// Resolves names in parallel. A name that takes too long gets an error.
fn resolve<'a>(
    names: impl Iterator<Item = &'a String>,
) -> Vec<(String, Result<Vec<IpAddr>, String>)> {
    let (sender, answers) = mpsc::channel();
    let mut waiting: HashSet<String> = HashSet::new();
    let mut resolved = Vec::new();
    for name in names {
        // A literal address needs no look-up.
        if let Ok(ip) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            resolved.push((name.clone(), Ok(vec![ip])));
            continue;
        }
        let (sender, asked) = (sender.clone(), name.clone());
        let look_up = move || {
            let found = (asked.as_str(), 0).to_socket_addrs();
            let found = found.map(|found| found.map(|address| address.ip()).collect());
            // The receiver may have given up on this name.
            let _ = sender.send((asked, found.map_err(|error| error.to_string())));
        };
        if thread::Builder::new().spawn(look_up).is_ok() {
            waiting.insert(name.clone());
        }
    }
    let until = Instant::now() + RESOLVE_MAX;
    while !waiting.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        let Ok((name, answer)) = answers.recv_timeout(left) else { break };
        waiting.remove(&name);
        resolved.push((name, answer));
    }
    let slow = format!("no answer within {} s", RESOLVE_MAX.as_secs());
    resolved.extend(waiting.into_iter().map(|name| (name, Err(slow.clone()))));
    resolved
}
