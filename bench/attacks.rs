//! How an attack slows good traffic.
//!
//! Good clients send requests on kept connections at a fixed rate; a request's time begins when it
//! was due. Slices without and with the attack alternate. The table has the latencies of both, and
//! the ratio of their 99th percentiles. The good clients, the attack and the server's loops have
//! cores of their own, if there are four, so that the loops are measured and not the machine; with
//! fewer cores one loop has one, and the clients have the others. A slice consists of windows;
//! windows in which the host took a core away do not count.

#[allow(dead_code)]
#[path = "throughput/machine.rs"]
mod machine;
mod support;

use std::{
    fs, io,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use hdrhistogram::Histogram;
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustls::pki_types::ServerName;
use socket2::{Domain, SockRef, Socket, Type};
use support::{PATIENCE, Server, free_address};

/// Good traffic without and with each attack, microseconds.
#[derive(Parser)]
#[command(name = "attacks")]
struct Options {
    /// Slices without and with each attack
    #[arg(long, default_value = "3")]
    slices: usize,
    /// Length of a slice, seconds
    #[arg(long, default_value = "2")]
    seconds: f64,
    /// Good requests in a second
    #[arg(long, default_value = "1000")]
    rate: u32,
    /// Good connections
    #[arg(long, default_value = "4")]
    connections: u32,
    /// Connections of a slow attack
    #[arg(long, default_value = "5000")]
    slow: usize,
    /// Only attacks whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// An attack: reports when it has begun, and ends on request.
type Run = fn(&Scene<'_>) -> io::Result<()>;

const ATTACKS: &[(&str, Run)] = &[
    ("slow heads", slow_heads),
    ("slow content", slow_content),
    ("slow readers", slow_readers),
    ("connections over the limit", connection_flood),
    ("tiny pipelined requests", tiny_requests),
    ("huge heads", huge_heads),
    ("hosts by the thousand", many_hosts),
    ("ranges by the thousand", many_ranges),
    ("requests over the rate", rate_flood),
    ("half handshakes", half_handshakes),
    ("handshakes, 512 at once (RSA)", handshakes),
];

/// The address of the attackers. The good clients have 127.0.0.1.
const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));

/// The host that is served over TLS.
const TLS_HOST: &str = "tls.test";

/// Handshakes that begin at once.
const HANDSHAKES: usize = 512;

const GOOD: &str = "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n";

/// The segment size of slow readers, in bytes: with the loopback's 64 KiB, the sender's kernel
/// would accept 2.6 MiB of an answer ahead.
const ETHERNET_MSS: u32 = 1460;

/// The size of a file that no socket's buffer holds, in bytes.
const LARGE: usize = 16 << 20;

/// How long the server and the good clients may take to catch up, after an attack and after its
/// connections were opened.
const SETTLE: Duration = Duration::from_millis(300);

/// The length of a window, which counts or is dropped as a whole.
const WINDOW: Duration = Duration::from_millis(100);
/// The most time for enough windows that count, in lengths of a slice.
const TRIES: u32 = 4;

/// A good request: the number of the window in which it was sent, and nanoseconds from when it was
/// due until it was answered.
type Timed = (usize, u64);

/// Commands to the good clients.
#[derive(Default)]
struct Clock {
    /// The number of the current window; 0 while nothing is measured.
    window: AtomicUsize,
    over: AtomicBool,
}

/// What an attack gets: the address, the number of slow connections, and flags for start and end.
struct Scene<'a> {
    address: SocketAddr,
    /// Where TLS is spoken.
    tls: SocketAddr,
    slow: usize,
    begun: &'a AtomicBool,
    over: &'a AtomicBool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attacks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let cores = machine::allowed_cores()?;
    // The server, the good clients, the attack.
    let [serving, good, attack] = match &cores[..] {
        [attack, good, serving @ ..] if serving.len() >= 2 => [serving, &[*good], &[*attack]],
        [clients @ .., serving] if !clients.is_empty() => {
            [std::slice::from_ref(serving), clients, clients]
        }
        all => [all; 3],
    };
    let folder = tempfile::Builder::new().prefix("tidegate-bench-").tempdir()?;
    let (address, tls) = (free_address()?, free_address()?);
    fs::create_dir(folder.path().join("site"))?;
    fs::write(folder.path().join("site/large"), vec![b'x'; LARGE])?;
    fs::write(folder.path().join("site/small"), [b'x'; 2000])?;
    fs::write(
        folder.path().join("config.toml"),
        config(options, serving.len().min(2), address, tls),
    )?;
    write_certificate(folder.path())?;
    let server = Server::start(folder.path(), serving, &cores)?;
    // Two busy loops on one core would take turns of a few milliseconds.
    server.pin_loops(serving)?;
    println!("{}\n", machine::describe());
    println!(
        "{} good requests a second on {} connections, {} slices of {} s each; microseconds, and\n\
         the share of the windows that count:\n",
        options.rate, options.connections, options.slices, options.seconds
    );
    println!(
        "| attack | p50 | p99 | p99.9 | p50 with | p99 with | p99.9 with | ratio | MiB | count |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (name, attack_run) in ATTACKS.iter().filter(|(name, _)| name.contains(&*options.only)) {
        let attack_run = *attack_run;
        let (attacking, cores) = (attack, &cores[..]);
        let bench = Bench { options, address, tls, attack: attack_run, good, attacking, cores };
        let (latencies, counted) = bench.measure()?;
        let [quiet, attacked] = &latencies;
        let ratio = attacked.value_at_quantile(0.99) as f64 / quiet.value_at_quantile(0.99) as f64;
        let memory = server.memory()? >> 20;
        let cells = latencies.each_ref().map(cells).join(" | ");
        println!("| {name} | {cells} | {ratio:.2} | {memory} | {:.0} % |", counted * 100.0);
    }
    Ok(())
}

/// Of the kind whose signature takes longest.
fn write_certificate(folder: &Path) -> io::Result<()> {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048);
    let key = key.map_err(io::Error::other)?;
    let params = CertificateParams::new(vec![TLS_HOST.to_owned()]).map_err(io::Error::other)?;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    fs::write(folder.join("tls.pem"), certificate.pem() + &key.serialize_pem())
}

fn config(options: &Options, loops: usize, address: SocketAddr, tls: SocketAddr) -> String {
    format!(
        "[server]\nthreads = {loops}\nidle_grace = \"0s\"\n\
         listen = [\"{address}\", {{ address = \"{tls}\", tls = true }}]\n\
         [limits]\nconnections_per_ip = {}\n\
         head_timeout = \"60s\"\nbody_timeout = \"60s\"\nwrite_timeout = \"60s\"\n\
         [apps.\"good.test\"]\nrespond.body = \"good\"\n\
         [apps.\"a.test\"]\nrespond.body = \"attacked\"\n\
         [apps.\"limited.test\"]\nrespond.body = \"limited\"\n\
         rate_limit = {{ requests = 100, per = \"1s\" }}\n\
         [apps.\"{TLS_HOST}\"]\nrespond.body = \"tls\"\n\
         tls = {{ cert = \"tls.pem\", key = \"tls.pem\" }}\n\
         [apps.\"files.test\"]\nfiles.root = \"site\"\n",
        options.slow + 100
    )
}

fn cells(latencies: &Histogram<u64>) -> String {
    let nanos = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    [0.5, 0.99, 0.999].map(|quantile| format!("{:.0}", nanos(quantile))).join(" | ")
}

/// One attack, and the `cores` of each process.
struct Bench<'a> {
    options: &'a Options,
    address: SocketAddr,
    tls: SocketAddr,
    attack: Run,
    good: &'a [usize],
    attacking: &'a [usize],
    cores: &'a [usize],
}

impl Bench<'_> {
    /// Latencies of the good clients without and with the attack, nanoseconds, and the share of the
    /// windows that count.
    fn measure(&self) -> io::Result<([Histogram<u64>; 2], f64)> {
        let clock = Clock::default();
        let mut windows =
            Windows { clock: &clock, cores: self.cores, numbers: [vec![], vec![]], tried: 0 };
        let period = Duration::from_secs(1) * self.options.connections / self.options.rate;
        let times = thread::scope(|scope| {
            let good = (0..self.options.connections).map(|nth| {
                let first = Instant::now() + period * nth / self.options.connections;
                let clock = &clock;
                scope.spawn(move || {
                    machine::pin(self.good)?;
                    ask(self.address, first, period, clock)
                })
            });
            let good: Vec<_> = good.collect();
            let outcome = (0..self.options.slices).try_for_each(|_| self.turn(&mut windows));
            clock.over.store(true, SeqCst);
            let times = good.into_iter().map(joined).collect::<io::Result<Vec<_>>>();
            outcome.and(times)
        })?;
        let mut latencies = [0; 2].map(|_| {
            Histogram::<u64>::new_with_bounds(1000, 100_000_000_000, 3).expect("sane bounds")
        });
        for (window, nanos) in times.into_iter().flatten() {
            for (latencies, numbers) in latencies.iter_mut().zip(&windows.numbers) {
                if numbers.contains(&window) {
                    latencies.saturating_record(nanos);
                }
            }
        }
        let counted = windows.numbers.iter().map(Vec::len).sum::<usize>();
        Ok((latencies, counted as f64 / windows.tried as f64))
    }

    /// A slice without the attack, and one with it.
    fn turn(&self, windows: &mut Windows<'_>) -> io::Result<()> {
        let slice = Duration::from_secs_f64(self.options.seconds);
        thread::sleep(SETTLE);
        windows.slice(0, slice)?;
        let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let scene = Scene {
                address: self.address,
                tls: self.tls,
                slow: self.options.slow,
                begun: &begun,
                over: &over,
            };
            let attack = scope.spawn(move || {
                machine::pin(self.attacking)?;
                // Where they share a core, the good clients come first.
                setpriority_process(None, 19)?;
                (self.attack)(&scene)
            });
            while !begun.load(SeqCst) && !attack.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(SETTLE);
            let outcome = windows.slice(1, slice);
            over.store(true, SeqCst);
            joined(attack).and(outcome)
        })
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// The windows so far.
struct Windows<'a> {
    clock: &'a Clock,
    cores: &'a [usize],
    /// Of those that count, without and with the attack.
    numbers: [Vec<usize>; 2],
    tried: usize,
}

impl Windows<'_> {
    /// Measures windows until as many count as fit into `length`, or too many were tried.
    fn slice(&mut self, phase: usize, length: Duration) -> io::Result<()> {
        let end = Instant::now() + length * TRIES;
        let wanted = self.numbers[phase].len() + length.div_duration_f64(WINDOW) as usize;
        while self.numbers[phase].len() < wanted && Instant::now() < end {
            self.tried += 1;
            let stolen = machine::stolen_ticks(self.cores)?;
            self.clock.window.store(self.tried, SeqCst);
            thread::sleep(WINDOW);
            self.clock.window.store(0, SeqCst);
            if machine::stolen_ticks(self.cores)? == stolen {
                self.numbers[phase].push(self.tried);
            }
        }
        Ok(())
    }
}

/// A good client: one request per period, sent when it is due and the previous one is answered.
fn ask(
    address: SocketAddr,
    first: Instant,
    period: Duration,
    clock: &Clock,
) -> io::Result<Vec<Timed>> {
    let mut times = Vec::new();
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let (mut due, mut answer) = (first, [0; 1024]);
    while !clock.over.load(SeqCst) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let window = clock.window.load(SeqCst);
        client.write_all(GOOD.as_bytes())?;
        let length = client.read(&mut answer)?;
        let is_right =
            answer[..length].starts_with(b"HTTP/1.1 200 ") && answer[..length].ends_with(b"good");
        if !is_right {
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            return Err(io::Error::other(format!("a good request got {answer:?}")));
        }
        times.push((window, due.elapsed().as_nanos() as u64));
        due += period;
    }
    Ok(times)
}

impl Scene<'_> {
    fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    fn begin(&self) {
        self.begun.store(true, SeqCst);
    }

    /// A connection that is reset when it is dropped, so that nothing of it stays in the kernel.
    fn connect(&self, receive_bytes: Option<usize>) -> io::Result<TcpStream> {
        self.connect_to(self.address, receive_bytes)
    }

    fn connect_to(
        &self,
        address: SocketAddr,
        receive_bytes: Option<usize>,
    ) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
            socket.set_tcp_mss(ETHERNET_MSS)?;
        }
        socket.bind(&SocketAddr::new(ATTACKER, 0).into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        Ok(stream)
    }

    /// Opens connections that all begin with `bytes`, and sends one byte per second on each.
    fn trickle(&self, address: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let mut clients = Vec::new();
        for _ in 0..self.slow {
            let mut client = self.connect_to(address, None)?;
            client.write_all(bytes)?;
            clients.push(client);
        }
        self.begin();
        while !self.is_over() {
            for client in &mut clients {
                client.write_all(b"x")?;
                thread::sleep(Duration::from_secs(1) / self.slow as u32);
                if self.is_over() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Sends `bytes` repeatedly on a few connections, and reads the answers.
    fn flood(&self, bytes: &[u8]) -> io::Result<()> {
        const CONNECTIONS: usize = 4;
        let clients: io::Result<Vec<TcpStream>> =
            (0..CONNECTIONS).map(|_| self.connect(None)).collect();
        let mut clients: Vec<_> = clients?.into_iter().map(|client| (client, 0)).collect();
        clients.iter().try_for_each(|(client, _)| client.set_nonblocking(true))?;
        let mut answers = vec![0; 256 * 1024];
        self.begin();
        while !self.is_over() {
            for (client, sent) in &mut clients {
                *sent += now(client.write(&bytes[*sent..]))?;
                *sent %= bytes.len();
                now(client.read(&mut answers))?;
            }
        }
        Ok(())
    }
}

/// The number of bytes that were moved; 0 if that would block.
fn now(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        moved => moved,
    }
}

fn slow_heads(scene: &Scene<'_>) -> io::Result<()> {
    scene.trickle(scene.address, b"GET / HTTP/1.1\r\nHost: a.test\r\nX: ")
}

fn slow_content(scene: &Scene<'_>) -> io::Result<()> {
    let head = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n";
    scene.trickle(scene.address, head)
}

fn slow_readers(scene: &Scene<'_>) -> io::Result<()> {
    let mut clients = Vec::new();
    for _ in 0..scene.slow {
        let mut client = scene.connect(Some(4096))?;
        client.write_all(b"GET /large HTTP/1.1\r\nHost: files.test\r\n\r\n")?;
        clients.push(client);
    }
    // The rush of 5,000 requests at once is over when all answers have begun.
    for client in &mut clients {
        client.set_read_timeout(Some(PATIENCE))?;
        client.read_exact(&mut [0; 64])?;
        client.set_nonblocking(true)?;
    }
    scene.begin();
    while !scene.is_over() {
        for client in &mut clients {
            if scene.is_over() {
                break;
            }
            now(client.read(&mut [0; 64]))?;
            thread::sleep(Duration::from_secs(1) / scene.slow as u32);
        }
    }
    Ok(())
}

/// Opens as many connections as the client may have, and then one after the other, which are
/// refused.
fn connection_flood(scene: &Scene<'_>) -> io::Result<()> {
    let held: io::Result<Vec<TcpStream>> =
        (0..scene.slow + 100).map(|_| scene.connect(None)).collect();
    let held = held?;
    scene.begin();
    while !scene.is_over() {
        let mut one_more = scene.connect(None)?;
        one_more.set_read_timeout(Some(PATIENCE))?;
        let refused = one_more.read(&mut [0]);
        if !matches!(refused, Ok(0)) && !scene.is_over() {
            let what = format!("one above {} got {refused:?}", held.len());
            return Err(io::Error::other(what));
        }
    }
    Ok(())
}

fn tiny_requests(scene: &Scene<'_>) -> io::Result<()> {
    scene.flood("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".repeat(4096).as_bytes())
}

fn huge_heads(scene: &Scene<'_>) -> io::Result<()> {
    let head = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {}", "x".repeat(1 << 20));
    scene.begin();
    while !scene.is_over() {
        let mut client = scene.connect(None)?;
        // The server closes before it has read everything.
        let _ = client.write_all(head.as_bytes());
        let _ = client.read(&mut [0; 1024]);
    }
    Ok(())
}

fn many_hosts(scene: &Scene<'_>) -> io::Result<()> {
    let request = |number: u32| format!("GET / HTTP/1.1\r\nHost: h{number:x}.test\r\n\r\n");
    scene.flood((0..10_000).map(request).collect::<String>().as_bytes())
}

fn many_ranges(scene: &Scene<'_>) -> io::Result<()> {
    let ranges: Vec<String> = (0..1500).map(|at| format!("{at}-{at}")).collect();
    let request = format!(
        "GET /small HTTP/1.1\r\nHost: files.test\r\nRange: bytes={}\r\n\r\n",
        ranges.join(",")
    );
    scene.flood(request.repeat(16).as_bytes())
}

fn rate_flood(scene: &Scene<'_>) -> io::Result<()> {
    scene.flood("GET / HTTP/1.1\r\nHost: limited.test\r\n\r\n".repeat(4096).as_bytes())
}

/// The first message of a client, in its record.
fn hello() -> io::Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(TLS_HOST).map_err(io::Error::other)?;
    let client = rustls::ClientConnection::new(Arc::new(config), name);
    let mut hello = Vec::new();
    client.map_err(io::Error::other)?.write_tls(&mut hello)?;
    Ok(hello)
}

/// All but the end of a hello, which comes byte by byte. Its last byte would take minutes.
fn half_handshakes(scene: &Scene<'_>) -> io::Result<()> {
    let hello = hello()?;
    // A byte that trickles in belongs to the record; it needn't be right.
    scene.trickle(scene.tls, &hello[..hello.len() / 2])
}

/// Hellos of many clients at once, again and again; each costs the server a signature.
fn handshakes(scene: &Scene<'_>) -> io::Result<()> {
    let hello = hello()?;
    scene.begin();
    while !scene.is_over() {
        let clients: io::Result<Vec<TcpStream>> =
            (0..HANDSHAKES).map(|_| scene.connect_to(scene.tls, None)).collect();
        let mut clients = clients?;
        for client in &mut clients {
            client.write_all(&hello)?;
        }
        for client in &mut clients {
            client.set_read_timeout(Some(PATIENCE))?;
            client.read_exact(&mut [0; 1024])?;
            if scene.is_over() {
                break;
            }
        }
    }
    Ok(())
}
