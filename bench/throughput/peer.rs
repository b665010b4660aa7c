//! The servers: their configuration, their start on one core, and their end.
//!
//! Each runs with one loop, in the foreground, without an access log, on a free port of 127.0.0.1.
//! A server that is not installed or does not serve is left out with its reason.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::case::{Case, FILES, FILES_HOST, SMALL_BODY, SMALL_HOST};
use crate::kind::Kind;
use crate::layout::Layout;
use crate::machine;
use crate::setup::{Setup, program};
use crate::tls::{KEYS, Secured, Stream};

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);
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
        KEYS.iter().try_for_each(|key| key.write(folder.path(), &[SMALL_HOST, FILES_HOST]))?;
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
    pub(crate) fn start(
        setup: Setup,
        site: &Site,
        cores: &[usize],
        home: &[usize],
    ) -> io::Result<Peer> {
        let port = free_port()?;
        let command = setup.command(site.path(), port)?;
        Peer::launch(setup.kind, command, port, site, cores, home)
    }

    /// Starts Tidegate in callgrind, which writes its counts to `file` when the server has ended.
    pub(crate) fn start_in_callgrind(
        setup: Setup,
        file: &Path,
        site: &Site,
        layout: &Layout,
    ) -> io::Result<Peer> {
        let port = free_port()?;
        let server = setup.command(site.path(), port)?;
        let mut command = Command::new(program("valgrind")?);
        command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
        command.args(["--dump-instr=yes", "--compress-strings=no", "--compress-pos=no"]);
        command.arg(server.get_program()).args(server.get_args());
        Peer::launch(setup.kind, command, port, site, &[layout.server], &layout.load)
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

    pub(crate) fn connect(&self, secured: Option<&Secured>) -> io::Result<Stream<TcpStream>> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        Stream::new(socket, secured)
    }

    /// Sends a request, and returns the complete answer, head and body, after checks.
    pub(crate) fn answer(&self, case: &Case) -> io::Result<Vec<u8>> {
        self.ask(&mut self.connect(case.secured()?.as_ref())?, case)
    }

    /// Like [`Self::answer`], on an open connection, which stays open.
    pub(crate) fn ask(&self, stream: &mut Stream<TcpStream>, case: &Case) -> io::Result<Vec<u8>> {
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
