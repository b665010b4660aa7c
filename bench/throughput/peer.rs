//! The servers: their configuration, their start on one core, and their end.
//!
//! Each runs with one loop, in the foreground, without an access log, on a free port of 127.0.0.1.
//! A server that is not installed or does not serve is left out with its reason.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::case::{Case, FILES, FILES_HOST, SMALL_BODY, SMALL_HOST};
use crate::kind::Kind;
use crate::layout::Layout;
use crate::machine;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);
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

/// The host of one of the apps.
fn host(kind: Kind, case: &Case, number: usize) -> String {
    match kind {
        Kind::Apps(_) => format!("a{number}.localhost"),
        _ => case.host.to_owned(),
    }
}

/// The folder of the run: what the servers serve, their configurations and their output.
pub(crate) struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    /// Writes the files.
    pub(crate) fn create() -> io::Result<Site> {
        let folder = tempfile::Builder::new().prefix("tidegate-bench-").tempdir()?;
        fs::create_dir_all(folder.path().join("root/files"))?;
        fs::write(folder.path().join("hello.txt"), SMALL_BODY)?;
        for (name, bytes) in FILES {
            let text: Vec<u8> = (0..bytes).map(|index| b'a' + (index % 26) as u8).collect();
            fs::write(folder.path().join("root/files").join(name), text)?;
        }
        Ok(Site { folder })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A running server; dropping it ends its processes.
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Peer {
    /// Starts a server on `cores` and waits until it accepts. The calling thread moves to `home`.
    /// With an upstream, the server forwards every request to it.
    pub(crate) fn start(
        kind: Kind,
        upstream: Option<SocketAddr>,
        site: &Site,
        cores: &[usize],
        home: &[usize],
    ) -> io::Result<Peer> {
        let port = free_port()?;
        let command = match kind {
            Kind::Floor => return Err(io::Error::other("the floor needs its answer first")),
            Kind::Tidegate | Kind::Before | Kind::Logging | Kind::Apps(_) | Kind::Loops(_) => {
                tidegate(kind, site, port, upstream)?
            }
            Kind::Nginx => nginx(site, port, upstream)?,
            Kind::H2o => h2o(site, port, upstream)?,
            Kind::Haproxy => haproxy(site, port, upstream)?,
            Kind::Caddy => caddy(site, port, upstream)?,
            Kind::Hyper => hyper(port)?,
        };
        Peer::launch(kind, command, port, site, cores, home)
    }

    /// Starts Tidegate in callgrind, which writes its counts to `file` when the server has ended.
    pub(crate) fn start_in_callgrind(
        kind: Kind,
        file: &Path,
        upstream: Option<SocketAddr>,
        site: &Site,
        layout: &Layout,
    ) -> io::Result<Peer> {
        let port = free_port()?;
        let server = tidegate(kind, site, port, upstream)?;
        let mut command = Command::new(program("valgrind")?);
        command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
        command.args(["--dump-instr=yes", "--compress-strings=no", "--compress-pos=no"]);
        command.arg(server.get_program()).args(server.get_args());
        Peer::launch(kind, command, port, site, &[layout.server], &layout.load)
    }

    /// Starts the floor of one case: a process of this same program that sends `answer`.
    pub(crate) fn start_floor(
        case: &Case,
        answer: &[u8],
        site: &Site,
        core: usize,
        home: &[usize],
    ) -> io::Result<Peer> {
        let port = free_port()?;
        let file = site.path().join(format!("floor-{}.answer", case.name));
        fs::write(&file, answer)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--floor").arg(port.to_string()).arg(file);
        if case.close {
            command.arg("close");
        }
        Peer::launch(Kind::Floor, command, port, site, &[core], home)
    }

    fn launch(
        kind: Kind,
        mut command: Command,
        port: u16,
        site: &Site,
        cores: &[usize],
        home: &[usize],
    ) -> io::Result<Peer> {
        let output = site.path().join(format!("{}.out", kind.name()));
        let file = File::create(&output)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        machine::pin(cores)?;
        let child = command.spawn();
        machine::pin(home)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut peer = Peer { kind, address, child: child? };
        peer.wait_until_it_accepts(&output)?;
        Ok(peer)
    }

    /// Its processes: our child first, then all that it started.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        machine::process_tree(self.child.id() as i32)
    }

    fn wait_until_it_accepts(&mut self, output: &Path) -> io::Result<()> {
        let begin = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || begin.elapsed() > START_LIMIT {
                let said = fs::read_to_string(output).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing").to_owned();
                let how = ended.map_or("no listener".to_owned(), |status| status.to_string());
                return Err(io::Error::other(format!("{how}: {last}")));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// A request to each app that gives the answer of `case`.
    pub(crate) fn requests(&self, case: &Case) -> Vec<String> {
        (0..self.kind.apps()).map(|number| self.request(case, number)).collect()
    }

    fn request(&self, case: &Case, number: usize) -> String {
        case.request(&host(self.kind, case, number), self.address.port())
    }

    /// Sends a request, and returns the complete answer, head and body, after checks.
    pub(crate) fn answer(&self, case: &Case) -> io::Result<Vec<u8>> {
        self.ask(&mut TcpStream::connect(self.address)?, case)
    }

    /// Like [`Self::answer`], on an open connection, which stays open.
    pub(crate) fn ask(&self, stream: &mut TcpStream, case: &Case) -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(self.request(case, 0).as_bytes())?;
        let mut answer = Vec::new();
        let mut input = vec![0; 64 * 1024];
        loop {
            match stream.read(&mut input)? {
                0 => return Err(io::Error::other("the first answer was cut")),
                received => answer.extend_from_slice(&input[..received]),
            }
            let Some(total) = answer_length(&answer)? else { continue };
            if answer.len() == total.head + total.body {
                if total.body == case.body_bytes {
                    return Ok(answer);
                }
                let (got, due) = (total.body, case.body_bytes);
                return Err(io::Error::other(format!("{got} bytes of body instead of {due}")));
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A process that ends on SIGTERM ends its children too.
        let root = Pid::from_child(&self.child);
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(root, Signal::TERM);
        }
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > STOP_LIMIT {
                let tree = self.processes().unwrap_or_default();
                for pid in tree.into_iter().filter_map(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

struct Length {
    head: usize,
    body: usize,
}

/// The length of the answer that `bytes` begin with, if its head is complete.
fn answer_length(bytes: &[u8]) -> io::Result<Option<Length>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(bytes).map_err(io::Error::other)?;
    let httparse::Status::Complete(head) = parsed else { return Ok(None) };
    if response.code != Some(200) {
        let code = response.code.unwrap_or(0);
        return Err(io::Error::other(format!("status {code} instead of 200")));
    }
    let body = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok())
        .ok_or_else(|| io::Error::other("an answer without Content-Length"))?;
    Ok(Some(Length { head, body }))
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
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

fn tidegate(
    kind: Kind,
    site: &Site,
    port: u16,
    upstream: Option<SocketAddr>,
) -> io::Result<Command> {
    let (name, threads) = (kind.name(), kind.loops());
    let file = site.path().join(format!("{name}.toml"));
    let answer = format!(
        "respond = {{ status = 200, body = \"{SMALL_BODY}\", content_type = \"text/plain\" }}\n"
    );
    let access = if kind == Kind::Logging { "combined" } else { "off" };
    let app = |number| format!("[apps.\"a{number}.localhost\"]\n{answer}");
    let apps = match upstream {
        _ if matches!(kind, Kind::Apps(_)) => (0..kind.apps()).map(app).collect(),
        Some(address) => format!(
            "[apps.\"{SMALL_HOST}\"]\n\
             proxy = {{ upstreams = [\"http://{address}\"] }}\n"
        ),
        None => format!(
            "[apps.\"{SMALL_HOST}\"]\n\
             {answer}\
             [apps.\"{FILES_HOST}\"]\n\
             files = {{ root = \"root\" }}\n"
        ),
    };
    let config = format!(
        "[server]\n\
         listen = [\"127.0.0.1:{port}\"]\n\
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

fn nginx(site: &Site, port: u16, upstream: Option<SocketAddr>) -> io::Result<Command> {
    let folder = site.path();
    let (file, at) = (folder.join("nginx.conf"), folder.display());
    let user = keep_user("user root root;");
    let (group, answer) = match upstream {
        Some(address) => (nginx_upstream(address), "proxy_pass http://upstream".to_owned()),
        None => (String::new(), format!("default_type text/plain; return 200 \"{SMALL_BODY}\"")),
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
         listen 127.0.0.1:{port} backlog=4096;\n\
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
fn h2o(site: &Site, port: u16, upstream: Option<SocketAddr>) -> io::Result<Command> {
    let folder = site.path();
    let (file, at) = (folder.join("h2o.yaml"), folder.display());
    let user = keep_user("user: root");
    let answer = match upstream {
        Some(address) => format!("proxy.reverse.url: http://{address}/"),
        None => format!("file.file: {at}/hello.txt"),
    };
    let config = format!(
        "{user}\n\
         num-threads: 1\n\
         max-connections: {CONNECTIONS_MAX}\n\
         listen: {{ host: 127.0.0.1, port: {port} }}\n\
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

fn haproxy(site: &Site, port: u16, upstream: Option<SocketAddr>) -> io::Result<Command> {
    let file = site.path().join("haproxy.cfg");
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
           bind 127.0.0.1:{port}\n  \
           {answer}\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(program("haproxy")?);
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

/// Caddy with one thread of Go code, because the others have one loop.
fn caddy(site: &Site, port: u16, upstream: Option<SocketAddr>) -> io::Result<Command> {
    let folder = site.path();
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
    let config = format!(
        "{{\n\
         admin off\n\
         auto_https off\n\
         log {{\n\
         level ERROR\n\
         }}\n\
         }}\n\
         http://:{port} {{\n\
         bind 127.0.0.1\n\
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
