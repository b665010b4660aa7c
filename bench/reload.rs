//! Reloads: the cost of many apps, and how a reload affects traffic.
//!
//! The real binary, with one loop and two cores, if there are enough; the traffic uses the others.
//! Each request's time counts from when it was due, so a late request does not hide delays.

#[allow(dead_code)]
#[path = "throughput/machine.rs"]
mod machine;
mod support;

use std::{
    fmt, fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Parser;
use serde_json::Value;
use support::{PATIENCE, Server, Sorted, free_address, micros};

/// Start, memory and reload by the number of apps; latency of traffic during reloads.
#[derive(Parser)]
#[command(name = "reload")]
struct Options {
    /// How many apps; the first is what the memory of the others is compared with
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000, 10_000])]
    apps: Vec<usize>,
    /// How many apps that serve files from one folder; 0 leaves them out
    #[arg(long, default_value = "1000")]
    files: usize,
    /// Reloads of each sort that are timed
    #[arg(long, default_value = "9")]
    rounds: usize,
    /// Slices of traffic in each row
    #[arg(long, default_value = "9")]
    slices: usize,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// The time from the start of a reload to the start of the next.
const PERIOD: Duration = Duration::from_millis(200);
/// The slices of the rows take turns, so that a disturbance of the machine affects all alike.
const SLICE: Duration = Duration::from_millis(600);
/// Each connection sends a request per `PACE`: 2,000 a second.
const CONNECTIONS: u32 = 20;
const PACE: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    println!("{}\n", machine::describe());
    let mut costs = String::new();
    let mut latencies = String::new();
    let mut base = None;
    // Before this thread is bound to some of them.
    let cores = machine::allowed_cores()?;
    let respond = options.apps.iter().map(|&apps| Bench { apps, kind: Kind::Respond });
    let files = Some(options.files).filter(|&apps| apps > 0);
    let files = files.map(|apps| Bench { apps, kind: Kind::Files });
    for bench in respond.chain(files) {
        eprintln!("{} apps ({})", bench.apps, bench.kind);
        let site = Site::start(&bench, &cores)?;
        let memory = site.server.memory()?;
        let base = *base.get_or_insert((bench.apps, memory));
        costs += &costs_row(&site, options, memory, base)?;
        latencies += &latency_rows(&site, options.slices)?;
    }
    println!(
        "| apps | start ms | RSS MiB | KiB/app | RSS after | reload none ms | one ms | all ms \
         | GET /apps ms |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n{costs}"
    );
    println!(
        "| apps | reload, each {} ms | reloads | p50 us | p90 us | p99 us | max us |\n\
         |---|---|---:|---:|---:|---:|---:|\n{latencies}",
        PERIOD.as_millis()
    );
    Ok(())
}

/// Start, memory, and the times of reloads, as a line of the table.
fn costs_row(
    site: &Site,
    options: &Options,
    memory: u64,
    base: (usize, u64),
) -> io::Result<String> {
    let Site { bench, server, .. } = site;
    let per_app = match bench.apps.saturating_sub(base.0) {
        0 => "-".to_owned(),
        more => format!("{:.1}", (memory as f64 - base.1 as f64) / more as f64 / 1024.0),
    };
    let mut times = String::new();
    for change in [Change::None, Change::One, Change::All] {
        let mut samples = Vec::new();
        for _ in 0..options.rounds {
            samples.push(micros(site.reload(change)?) / 1e3);
            site.settle()?;
        }
        times += &format!(" {:.1} |", Sorted::new(samples).at(0.5));
    }
    let list = (0..options.rounds).map(|_| server.admin.time("GET", "/apps"));
    let list = list.map(|timed| Ok(micros(timed?.1) / 1e3)).collect::<io::Result<Vec<_>>>()?;
    Ok(format!(
        "| {} {} | {:.1} | {:.1} | {per_app} | {:.1} |{times} {:.1} |\n",
        bench.apps,
        bench.kind,
        micros(server.start) / 1e3,
        mebibytes(memory),
        mebibytes(server.memory()?),
        Sorted::new(list).at(0.5),
    ))
}

/// The latency of traffic without reloads, and during reloads of each sort.
fn latency_rows(site: &Site, slices: usize) -> io::Result<String> {
    let sorts = [None, Some(Change::None), Some(Change::One), Some(Change::All)];
    let mut rows = sorts.map(|sort| (sort, 0, Vec::new()));
    for _ in 0..slices {
        for (sort, reloads, samples) in &mut rows {
            let (done, slice) = slice(site, *sort)?;
            *reloads += done;
            samples.push(slice);
        }
    }
    let Bench { apps, kind } = site.bench;
    let lines = rows.map(|(sort, reloads, samples)| {
        let what = sort.map_or("no reload", Change::name);
        format!("| {apps} {kind} | {what} | {reloads} | {} |\n", Sorted::cells(&samples))
    });
    Ok(lines.concat())
}

/// Runs a slice of traffic. Returns the number of reloads, and the time of each request.
fn slice(site: &Site, sort: Option<Change>) -> io::Result<(usize, Sorted)> {
    let traffic = Traffic::start(site.address, &site.load_cores)?;
    let until = Instant::now() + SLICE;
    let mut reloads = 0;
    while Instant::now() < until {
        let next = Instant::now() + PERIOD;
        if let Some(change) = sort {
            site.reload(change)?;
            reloads += 1;
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let samples = traffic.finish()?;
    site.settle()?;
    Ok((reloads, Sorted::new(samples)))
}

/// The kind of the apps.
#[derive(Clone, Copy)]
enum Kind {
    Respond,
    /// Files of one folder.
    Files,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Respond => "respond",
            Self::Files => "files",
        })
    }
}

/// What differs from one config to the next.
#[derive(Clone, Copy)]
enum Change {
    None,
    /// A change of one app without traffic.
    One,
    All,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::None => "nothing changed",
            Self::One => "one app changed",
            Self::All => "all apps changed",
        }
    }
}

#[derive(Clone, Copy)]
struct Bench {
    apps: usize,
    kind: Kind,
}

impl Bench {
    /// A config; `odd` decides which of two forms an app has.
    fn config(&self, address: SocketAddr, odd: impl Fn(usize) -> bool) -> String {
        let app = |number| {
            let what = match self.kind {
                Kind::Respond => format!("respond.body = \"app {number}\""),
                Kind::Files => "files.root = \"root\"".to_owned(),
            };
            let seconds = 30 + u32::from(odd(number));
            format!("[apps.\"a{number}.localhost\"]\ndrain_timeout = \"{seconds}s\"\n{what}\n")
        };
        let server = format!(
            "[server]\nlisten = [\"{address}\"]\nthreads = 1\nidle_grace = \"0s\"\n\
             [log]\naccess = \"off\"\n"
        );
        server + &(0..self.apps).map(app).collect::<String>()
    }
}

/// A server with its folder.
struct Site {
    bench: Bench,
    server: Server,
    address: SocketAddr,
    load_cores: Vec<usize>,
    folder: tempfile::TempDir,
    /// Configs that differ from the first in no app, in one app, and in all apps. The server starts
    /// with the first.
    configs: [String; 3],
    /// Whether the last reload was of another config than the first.
    is_changed: AtomicBool,
}

impl Site {
    fn start(bench: &Bench, cores: &[usize]) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tidegate-bench-").tempdir()?;
        fs::create_dir(folder.path().join("root"))?;
        fs::write(folder.path().join("root/index.html"), "Hello, World!")?;
        let address = free_address()?;
        let configs = [
            bench.config(address, |_| false),
            bench.config(address, |number| number == 1),
            bench.config(address, |_| true),
        ];
        write_config(folder.path(), &configs[0])?;
        let (load_cores, server_cores) = cores.split_at(cores.len().saturating_sub(2).max(1));
        let server_cores = if server_cores.is_empty() { load_cores } else { server_cores };
        let server = Server::start(folder.path(), server_cores, load_cores)?;
        let is_changed = AtomicBool::new(false);
        let (bench, load_cores) = (*bench, load_cores.to_vec());
        Ok(Self { bench, server, address, load_cores, folder, configs, is_changed })
    }

    /// Changes the config, reloads it, and checks the result. Returns how long the reload took.
    fn reload(&self, change: Change) -> io::Result<Duration> {
        let (config, due) = match change {
            Change::None => (None, 0),
            Change::One => (Some(&self.configs[1]), 1),
            Change::All => (Some(&self.configs[2]), self.bench.apps),
        };
        if let Some(config) = config {
            let was_changed = self.is_changed.fetch_xor(true, Ordering::Relaxed);
            let config = if was_changed { &self.configs[0] } else { config };
            write_config(self.folder.path(), config)?;
        }
        let (text, took) = self.server.admin.time("POST", "/reload")?;
        let outcome: Value = serde_json::from_str(&text)?;
        match outcome["changed"].as_array() {
            Some(changed) if changed.len() == due => Ok(took),
            _ => Err(io::Error::other(format!("{due} apps had to change: {outcome}"))),
        }
    }

    /// Goes back to the first config, and waits until no drain is left.
    fn settle(&self) -> io::Result<()> {
        if self.is_changed.swap(false, Ordering::Relaxed) {
            write_config(self.folder.path(), &self.configs[0])?;
            self.server.admin.call("POST", "/reload", "")?;
        }
        let begun = Instant::now();
        loop {
            let status = self.server.admin.call("GET", "/status", "")?;
            if status["drains"].as_array().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other("the drains don't end"));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Replaces the config in one step, so that no reload reads half of it.
fn write_config(folder: &Path, text: &str) -> io::Result<()> {
    let file = folder.join("config.new");
    fs::write(&file, text)?;
    fs::rename(file, folder.join("config.toml"))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

/// Requests at a steady pace, each connection with a thread of its own.
struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<Vec<f64>>>>,
}

impl Traffic {
    fn start(address: SocketAddr, cores: &[usize]) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now() + PACE;
        let threads = (0..CONNECTIONS).map(|index| {
            let (stop, cores) = (Arc::clone(&stop), cores.to_vec());
            let begin = begin + PACE * index / CONNECTIONS;
            thread::spawn(move || {
                machine::pin(&cores)?;
                pace(address, begin, &stop)
            })
        });
        let threads = threads.collect();
        Ok(Self { stop, threads })
    }

    /// Microseconds of every request.
    fn finish(self) -> io::Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut samples = Vec::new();
        for thread in self.threads {
            let ended = thread.join().map_err(|_| io::Error::other("the traffic panicked"))?;
            samples.extend(ended?);
        }
        Ok(samples)
    }
}

/// The requests of one connection. The first only shows how long an answer is.
fn pace(address: SocketAddr, begin: Instant, stop: &AtomicBool) -> io::Result<Vec<f64>> {
    let request = b"GET / HTTP/1.1\r\nHost: a0.localhost\r\n\r\n";
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(request)?;
    let mut bytes = [0; 1024];
    let length = client.read(&mut bytes)?;
    let (mut samples, mut due) = (Vec::new(), begin);
    while !stop.load(Ordering::Relaxed) {
        let early = due.saturating_duration_since(Instant::now());
        thread::sleep(early);
        // A sleep that was too long is not the server's delay.
        let counts_from = if early.is_zero() { due } else { Instant::now() };
        client.write_all(request)?;
        client.read_exact(&mut bytes[..length])?;
        samples.push(micros(counts_from.elapsed()));
        if !bytes.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other("not the 200 that was due"));
        }
        due += PACE;
    }
    Ok(samples)
}
