//! How each server is set up: its configuration, and the command that starts it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::{FILES_HOST, SMALL_BODY, SMALL_HOST};
use crate::kind::Kind;
use crate::tls::Key;

/// Tidegate's program.
pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_tidegate");
/// The other build of Tidegate, below `target`.
const BEFORE: &str = "before/tidegate";
/// More than any case opens.
const CONNECTIONS_MAX: usize = 9000;

/// Whether to measure this server: `before` only takes part if it was built.
pub(crate) fn is_there(kind: Kind) -> bool {
    kind != Kind::Before || built(BEFORE).is_ok()
}

/// How a server is set up.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) kind: Kind,
    /// The server forwards every request to it.
    pub(crate) upstream: Option<SocketAddr>,
    /// It speaks TLS with this key.
    pub(crate) key: Option<Key>,
}

impl Setup {
    /// The command that starts the server on a port; its files go into a folder.
    pub(crate) fn command(self, folder: &Path, port: u16) -> io::Result<Command> {
        match self.kind {
            Kind::Floor => Err(io::Error::other("the floor needs its answer first")),
            Kind::Tidegate | Kind::Before | Kind::Logging | Kind::Apps(_) | Kind::Loops(_) => {
                tidegate(self, folder, port)
            }
            Kind::Nginx => nginx(self, folder, port),
            Kind::H2o => h2o(self, folder, port),
            Kind::Haproxy => haproxy(self, folder, port),
            Kind::Caddy => caddy(self, folder, port),
            Kind::Hyper => hyper(port),
        }
    }
}

/// Finds a program on PATH, and where system services lie.
pub(crate) fn program(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| io::Error::other("not installed"))
}

/// The config line that keeps root: otherwise a server would become a user who can't read the
/// folder.
fn keep_user(line: &'static str) -> &'static str {
    if rustix::process::geteuid().is_root() { line } else { "" }
}

fn tidegate(setup: Setup, folder: &Path, port: u16) -> io::Result<Command> {
    let Setup { kind, upstream, key } = setup;
    let (name, threads) = (kind.name(), kind.loops());
    let file = folder.join(format!("{name}.toml"));
    let answer = format!(
        "respond = {{ status = 200, body = \"{SMALL_BODY}\", content_type = \"text/plain\" }}\n"
    );
    let access = if kind == Kind::Logging { "combined" } else { "off" };
    let tls = key.map_or(String::new(), |key| {
        let (cert, key) = (key.certificate(folder), key.key(folder));
        format!("tls = {{ cert = {cert:?}, key = {key:?} }}\n")
    });
    // An older build may know no TLS.
    let listen = match key {
        None => format!("\"127.0.0.1:{port}\""),
        Some(_) => format!("{{ address = \"127.0.0.1:{port}\", tls = true }}"),
    };
    let app = |number| format!("[apps.\"a{number}.localhost\"]\n{answer}");
    let apps = match upstream {
        _ if matches!(kind, Kind::Apps(_)) => (0..kind.apps()).map(app).collect(),
        Some(address) => format!(
            "[apps.\"{SMALL_HOST}\"]\n\
             {tls}proxy = {{ upstreams = [\"http://{address}\"] }}\n"
        ),
        None => format!(
            "[apps.\"{SMALL_HOST}\"]\n\
             {tls}{answer}\
             [apps.\"{FILES_HOST}\"]\n\
             {tls}files = {{ root = \"root\" }}\n"
        ),
    };
    let config = format!(
        "[server]\n\
         listen = [{listen}]\n\
         threads = {threads}\n\
         [admin]\n\
         listen = \"unix:{name}.sock\"\n\
         [log]\n\
         level = \"warn\"\n\
         access = \"{access}\"\n\
         access_path = \"access.log\"\n\
         {apps}"
    );
    fs::write(&file, config)?;
    let program = match kind {
        Kind::Before => built(BEFORE)?,
        _ => SERVER.into(),
    };
    let mut command = Command::new(program);
    command.arg("serve").arg("--config").arg(file);
    Ok(command)
}

fn nginx(setup: Setup, folder: &Path, port: u16) -> io::Result<Command> {
    let Setup { upstream, key, .. } = setup;
    let (file, at) = (folder.join("nginx.conf"), folder.display());
    let user = keep_user("user root root;");
    let (group, answer) = match upstream {
        Some(address) => (nginx_upstream(address), "proxy_pass http://upstream".to_owned()),
        None => (String::new(), format!("default_type text/plain; return 200 \"{SMALL_BODY}\"")),
    };
    let (ssl, certificate) = match key {
        None => ("", String::new()),
        Some(key) => {
            let (cert, key) = (key.certificate(folder), key.key(folder));
            let (cert, key) = (cert.display(), key.display());
            let versions = "ssl_protocols TLSv1.2 TLSv1.3;";
            (" ssl", format!("{versions} ssl_certificate {cert}; ssl_certificate_key {key};"))
        }
    };
    let config = format!(
        "{user}\n\
         daemon off;\n\
         worker_processes 1;\n\
         pid {at}/nginx.pid;\n\
         error_log stderr error;\n\
         events {{ worker_connections {CONNECTIONS_MAX}; }}\n\
         http {{\n\
         types {{ text/plain txt; }}\n\
         access_log off;\n\
         sendfile on;\n\
         tcp_nopush on;\n\
         tcp_nodelay on;\n\
         keepalive_timeout 60s;\n\
         keepalive_requests 1000000000;\n\
         open_file_cache max=1024 inactive=60s;\n\
         open_file_cache_valid 60s;\n\
         open_file_cache_min_uses 1;\n\
         client_body_temp_path {at}/nginx-body;\n\
         proxy_temp_path {at}/nginx-proxy;\n\
         fastcgi_temp_path {at}/nginx-fastcgi;\n\
         uwsgi_temp_path {at}/nginx-uwsgi;\n\
         scgi_temp_path {at}/nginx-scgi;\n\
         {group}\
         server {{\n\
         listen 127.0.0.1:{port}{ssl} backlog=4096;\n\
         {certificate}\n\
         root {at}/root;\n\
         location = / {{ {answer}; }}\n\
         }}\n\
         }}\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(program("nginx")?);
    command.arg("-p").arg(folder).arg("-c").arg(file).arg("-e").arg("stderr");
    Ok(command)
}

/// Keep-alive to the upstream, and buffers for an answer of 64 KiB.
fn nginx_upstream(address: SocketAddr) -> String {
    format!(
        "upstream upstream {{\n\
         server {address};\n\
         keepalive 256;\n\
         keepalive_requests 1000000000;\n\
         }}\n\
         proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\n\
         proxy_buffers 8 16k;\n\
         proxy_max_temp_file_size 0;\n"
    )
}

/// h2o cannot configure a fixed answer: its small answer is a file of 13 bytes.
fn h2o(setup: Setup, folder: &Path, port: u16) -> io::Result<Command> {
    let Setup { upstream, key, .. } = setup;
    let (file, at) = (folder.join("h2o.yaml"), folder.display());
    let user = keep_user("user: root");
    let answer = match upstream {
        Some(address) => format!("proxy.reverse.url: http://{address}/"),
        None => format!("file.file: {at}/hello.txt"),
    };
    let ssl = key.map_or(String::new(), |key| {
        let (cert, key) = (key.certificate(folder), key.key(folder));
        let (cert, key) = (cert.display(), key.display());
        format!(", ssl: {{ certificate-file: {cert}, key-file: {key} }}")
    });
    let config = format!(
        "{user}\n\
         num-threads: 1\n\
         max-connections: {CONNECTIONS_MAX}\n\
         listen: {{ host: 127.0.0.1, port: {port}{ssl} }}\n\
         hosts:\n  \
           default:\n    \
             paths:\n      \
               /files:\n        \
                 file.dir: {at}/root/files\n      \
               /:\n        \
                 {answer}\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(program("h2o")?);
    command.arg("-m").arg("worker").arg("-c").arg(file);
    Ok(command)
}

fn haproxy(setup: Setup, folder: &Path, port: u16) -> io::Result<Command> {
    let Setup { upstream, key, .. } = setup;
    let file = folder.join("haproxy.cfg");
    let answer = match upstream {
        Some(address) => format!(
            "default_backend upstream\n\
             backend upstream\n  \
               http-reuse always\n  \
               server floor {address}"
        ),
        None => {
            format!(
                "http-request return status 200 content-type text/plain string \"{SMALL_BODY}\""
            )
        }
    };
    let ssl = key.map(|key| format!(" ssl crt {}", key.both(folder).display()));
    let ssl = ssl.unwrap_or_default();
    let config = format!(
        "global\n  \
           nbthread 1\n  \
           maxconn {CONNECTIONS_MAX}\n\
         defaults\n  \
           mode http\n  \
           timeout connect 60s\n  \
           timeout client 60s\n  \
           timeout server 60s\n\
         frontend bench\n  \
           bind 127.0.0.1:{port}{ssl}\n  \
           {answer}\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(program("haproxy")?);
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

/// Caddy with one thread of Go code, because the others have one loop.
fn caddy(setup: Setup, folder: &Path, port: u16) -> io::Result<Command> {
    let Setup { upstream, key, .. } = setup;
    let (file, at) = (folder.join("Caddyfile"), folder.display());
    let answer = match upstream {
        Some(address) => format!(
            "reverse_proxy http://{address} {{\n\
             transport http {{\n\
             keepalive_idle_conns_per_host 256\n\
             }}\n\
             }}"
        ),
        None => format!(
            "root * {at}/root\n\
             file_server\n\
             header / Content-Type text/plain\n\
             respond / \"{SMALL_BODY}\""
        ),
    };
    let (names, tls) = match key {
        None => (format!("http://:{port}"), String::new()),
        Some(key) => {
            let (cert, key) = (key.certificate(folder), key.key(folder));
            let names = format!("https://{SMALL_HOST}:{port}, https://{FILES_HOST}:{port}");
            (names, format!("tls {} {}", cert.display(), key.display()))
        }
    };
    let config = format!(
        "{{\n\
         admin off\n\
         auto_https off\n\
         log {{\n\
         level ERROR\n\
         }}\n\
         }}\n\
         {names} {{\n\
         bind 127.0.0.1\n\
         {tls}\n\
         {answer}\n\
         }}\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(program("caddy")?);
    command.arg("run").arg("--config").arg(file).arg("--adapter").arg("caddyfile");
    command.env("GOMAXPROCS", "1");
    // It stores a copy of its configuration in these folders.
    command.env("XDG_CONFIG_HOME", folder).env("XDG_DATA_HOME", folder);
    Ok(command)
}

fn hyper(port: u16) -> io::Result<Command> {
    let mut command = Command::new(built("hyper/release/hyper-server")?);
    command.arg(port.to_string());
    Ok(command)
}

/// A program that is built by hand.
fn built(path: &str) -> io::Result<PathBuf> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(path);
    if program.is_file() {
        return Ok(program);
    }
    Err(io::Error::other("not built (bench/README.md)"))
}
