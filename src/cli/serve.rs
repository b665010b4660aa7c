//! `tidegate serve`: runs the server until a signal stops it, from a config or from arguments
//! alone.

use std::{
    env,
    fmt::Display,
    io::{ErrorKind, IsTerminal, stderr},
    net::SocketAddr,
    panic::{self, PanicHookInfo},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::fs::{Access, access};

use crate::{
    config::{AppConfig, Config, ConfigError, Source},
    control::{EarlyCertificates, NoTakeOver, TakeOver},
    logging::{self, Logging, LostLines, event},
    server::{
        Account, BindError, EarlySignals, HttpServer, Privileges, ServerError, ServerHandle,
        SignalRequest, StopSignals, Verdict, forward_signals, unblock_all,
    },
};

use super::{CUT, DONE, FAILED, Place, USAGE, failure, running, serve_options::Serve, show};

/// How long flushing the logs may take at the end, unless another signal asks to stop.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How often another signal is checked for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long writing to standard error may take at the end: a pipe's reader may hang.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// The most URLs that are printed at the start.
const URLS_MAX: usize = 10;

/// The help for a missing config.
const NO_CONFIG: &str = "\
tidegate: there is no config.toml here
  tidegate init               writes a first config
  tidegate --config FILE      serves another config
  tidegate serve --files .    serves this folder, without a config
  tidegate serve --help       shows more options; tidegate --help lists the commands";

/// The error for a config on standard input.
const NO_INPUT: &str = "\
tidegate: a server cannot read its config from standard input, because a reload reads it again
  and an upgrade: name a file. `tidegate check -` takes standard input";

/// Why the server failed to start or to continue.
struct Failure {
    code: u8,
    text: String,
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let hint = match &error {
            ServerError::Bind(error) => bind_hint(error),
            _ => None,
        };
        let hint = hint.map(|hint| format!("\n{hint}")).unwrap_or_default();
        Self { code: FAILED, text: format!("tidegate: {error}{}", show::clean_lines(&hint)) }
    }
}

/// A remedy when an address can't be bound.
fn bind_hint(error: &BindError) -> Option<String> {
    let address: SocketAddr = error.place().parse().ok()?;
    match error.kind() {
        ErrorKind::AddrInUse => Some(match running::listener(address) {
            Some(process) => format!("it is in use by {process}"),
            None => format!(
                "it is in use by a process of another user: `sudo ss -ltnp 'sport = :{}'` names it",
                address.port()
            ),
        }),
        ErrorKind::PermissionDenied if address.port() < 1024 => {
            let program = env::current_exe().ok()?;
            Some(format!(
                "a port below 1024 needs the capability CAP_NET_BIND_SERVICE: `sudo setcap \
                 cap_net_bind_service=+ep {}` gives it to the program, AmbientCapabilities= to a \
                 systemd unit; or start the server as root, with server.user",
                program.display()
            ))
        }
        _ => None,
    }
}

impl From<failure::Failure> for Failure {
    fn from(failure: failure::Failure) -> Self {
        Self { code: failure.code(), text: format!("tidegate: {failure}") }
    }
}

impl Failure {
    fn of(error: impl Display) -> Self {
        Self { code: FAILED, text: format!("tidegate: {error}") }
    }
}

/// What to serve.
struct Plan {
    config: Config,
    account: Option<Account>,
    /// The file that a reload reads, if there is one.
    file: Option<PathBuf>,
    /// Its text.
    text: Option<Source>,
    /// Printed at the start, if the app comes from the arguments.
    description: Option<String>,
}

/// Serves until a signal stops it. Takes over from the previous process if there is one.
pub(super) fn run(options: &Serve, place: &Place) -> ExitCode {
    // First of all, because signals may arrive from now on.
    let signals = EarlySignals::keep().and_then(|kept| unblock_all().map(|()| kept));
    let take_over = match TakeOver::receive() {
        Ok(take_over) => take_over,
        Err(why) => {
            show::note(&format!("tidegate: {why}\n"));
            match why {
                NoTakeOver::Alone(_) => None,
                NoTakeOver::Failed(_) => return ExitCode::from(FAILED),
            }
        }
    };
    let before = take_over.as_ref().map(TakeOver::failure_report);
    let mut last_signals = None;
    let started = signals.map_err(Failure::of).and_then(|signals| {
        let plan = plan(options, place, take_over.as_ref())?;
        start(plan, take_over, signals, &mut last_signals)
    });
    let code = match started {
        Ok(code) => code,
        Err(Failure { code, text }) => {
            if let Some(before) = before {
                before.fail(&text);
            }
            // Printed to standard error even if there is a log: the log may be what failed.
            say_at_the_end(format!("{text}\n"));
            code
        }
    };
    // Last: what comes behind this is lost.
    if let Some(last) = last_signals {
        last.pass_on();
    }
    ExitCode::from(code)
}

fn plan(options: &Serve, place: &Place, take_over: Option<&TakeOver>) -> Result<Plan, Failure> {
    if options.app.is_given() {
        let config = options.app.config(&options.listen, place)?;
        let description = Some(options.app.description());
        return Ok(Plan { config, account: None, file: None, text: None, description });
    }
    let file = place.config();
    if Source::is_standard_input(file) {
        return Err(Failure { code: USAGE, text: NO_INPUT.to_owned() });
    }
    if place.named_config().is_none() && !file.exists() {
        return Err(Failure { code: USAGE, text: NO_CONFIG.to_owned() });
    }
    let (config, account, text) =
        load_config(file).map_err(|error| Failure { code: USAGE, text: error.to_string() })?;
    if let Some(before) = take_over {
        before.check_left(&config).map_err(Failure::of)?;
    }
    let allow_empty = options.allow_empty || take_over.is_some_and(TakeOver::allows_empty);
    if config.apps.is_empty() && !allow_empty {
        return Err(Failure { code: USAGE, text: nothing_to_serve(file) });
    }
    let (file, text) = (Some(file.to_owned()), Some(text));
    Ok(Plan { config, account, file, text, description: None })
}

/// Loads the config and looks up the user to run as.
fn load_config(path: &Path) -> Result<(Config, Option<Account>, Source), ConfigError> {
    let source = Source::read(path)?;
    let config = Config::of_source(&source)?;
    let account = Account::of(&config.server).map_err(|error| {
        let message = format!("`server.{}` {}", error.key, error.predicate);
        source.error(&["server", error.key], message)
    })?;
    Ok((config, account, source))
}

/// An empty config is more often a mistake or an interrupted write than intended.
fn nothing_to_serve(file: &Path) -> String {
    format!(
        "tidegate: {} has no app, so there is nothing to serve\n  \
         `tidegate init` writes a first config; `tidegate serve --files DIR` needs none\n  \
         `tidegate serve --allow-empty` starts without an app, for `tidegate add`",
        file.display()
    )
}

fn start(
    mut plan: Plan,
    take_over: Option<TakeOver>,
    signals: EarlySignals,
    last_signals: &mut Option<LastSignals>,
) -> Result<u8, Failure> {
    let handed = take_over.as_ref().map(TakeOver::certificates);
    // As root, if the process is: only root may be able to read keys.
    let config = (&plan.config, plan.text.take().map(Arc::new));
    let early = EarlyCertificates::read(config, handed, SystemTime::now());
    // Before the logs start their threads.
    let privileges = Privileges::settle(plan.account.take()).map_err(Failure::of)?;
    let logging = logging::init(&plan.config.log).map_err(Failure::of)?;
    panic::set_hook(Box::new(log_panic));
    let (version, pid) = (env!("CARGO_PKG_VERSION"), u64::from(std::process::id()));
    event!(Info, "server_start", version = version, pid = pid);
    privileges.log();
    // Only checked, not opened: opening a FIFO would wait for a writer.
    if let Some(file) = &plan.file
        && let Err(error) = access(file, Access::READ_OK)
    {
        // Root could read it, but the server's user can't, so a reload will fail.
        event!(Warn, "config_not_readable", config:% = file.display(), error:% = error);
    }
    let stops = Arc::<AtomicU32>::default();
    mark_strays(&logging);
    let signals = (signals, Arc::clone(&stops));
    let ended = set_up(&plan, &logging, (take_over, early), signals).and_then(|(server, last)| {
        *last_signals = Some(last);
        server.run().map_err(Failure::from)
    });
    let lost = close(&logging, &stops);
    // If the log is standard error, this write would hang too.
    if lost.events > 0 && plan.config.log.path.is_some() {
        let lines = show::count(usize::try_from(lost.events).unwrap_or(usize::MAX), "line");
        say_at_the_end(format!("tidegate: {lines} of the log could not be written\n"));
    }
    ended.map(|verdict| match verdict {
        Verdict::Cut(_) => CUT,
        Verdict::Drained | Verdict::Cancelled => DONE,
    })
}

/// The signals that are looked for at the very end.
struct LastSignals {
    handle: ServerHandle,
    stops: StopSignals,
}

impl LastSignals {
    fn pass_on(&self) {
        self.handle.pass_last_stop_on(&self.stops);
    }
}

fn set_up(
    plan: &Plan,
    logging: &Logging,
    (take_over, early): (Option<TakeOver>, EarlyCertificates),
    (signals, stops): (EarlySignals, Arc<AtomicU32>),
) -> Result<(HttpServer, LastSignals), Failure> {
    let config = &plan.config;
    let is_first = take_over.is_none();
    let mut server = HttpServer::take_over(config, take_over)?;
    server.log_to(logging.clone());
    if let Some(file) = &plan.file {
        server.reload_from(std::path::absolute(file).unwrap_or_else(|_| file.clone()));
    }
    server.notify_service_manager();
    server.listen_for_admin()?;
    server.use_certificates(early);
    server.load_apps(&config.apps);
    server.restore_apps().map_err(Failure::of)?;
    if is_first {
        plan.greet(server.addresses());
    }
    let last = LastSignals { handle: server.handle(), stops: signals.stops() };
    let (handle, logging) = (server.handle(), logging.clone());
    let on_signal = move |request, name: &str| match request {
        SignalRequest::Stop => {
            stops.fetch_add(1, Relaxed);
            handle.stop(name);
        }
        SignalRequest::ReopenLogs => logging.reopen(),
        SignalRequest::Reload => handle.begin_reload(),
        SignalRequest::Upgrade => handle.begin_upgrade(),
    };
    forward_signals(signals, on_signal).map_err(Failure::of)?;
    Ok((server, last))
}

/// Marks every descriptor above standard error close-on-exec, so that descriptors leaked by the
/// parent process (a pipe, a lock) reach no process of an upgrade.
///
/// - They stay open in this process: without `unsafe` a descriptor can't be closed by its number,
///   and a number may belong to the log, the config (`--config /dev/fd/3`) or systemd's sockets. A
///   leaked pipe therefore closes at the first upgrade or at the server's exit.
/// - Systemd's sockets (LISTEN_FDS) are marked too: an upgrade passes them through its channel,
///   which is the new process's standard input.
/// - The descriptor of a log is not marked: the new process opens `/dev/fd/3` under the same name.
/// - A reload refuses a log with any other descriptor number: the new process would lack it, or use
///   that number for something else.
fn mark_strays(logging: &Logging) {
    let mut kept = logging.descriptors();
    // With sorted numbers it needs only a few calls.
    kept.sort_unstable();
    // The log threads never start a process; only an upgrade does, and none is under way yet.
    close_fds::set_fds_cloexec_threadsafe(3, &kept);
}

/// Waits for the logs to be flushed. Returns the lines lost if that takes too long.
fn close(logging: &Logging, stops: &AtomicU32) -> LostLines {
    let (begun, before) = (Instant::now(), stops.load(Relaxed));
    while !logging.flush(LOOK_AGAIN) {
        if begun.elapsed() >= FLUSH_TIMEOUT || stops.load(Relaxed) != before {
            return logging.close();
        }
    }
    LostLines::default()
}

/// Writes to standard error, but gives up if that hangs.
fn say_at_the_end(text: String) {
    let (done, is_done) = mpsc::channel();
    let say = move || {
        show::note(&text);
        drop(done);
    };
    // Without a thread, nothing can be written safely.
    if thread::Builder::new().name("last-words".into()).spawn(say).is_ok() {
        // The channel closes when the thread has written; nothing is sent through it.
        let _: Result<(), _> = is_done.recv_timeout(LAST_WORDS_TIMEOUT);
    }
}

/// Logs panics. The log never blocks a thread; standard error may.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let place = panic.location().map(ToString::to_string);
    event!(
        Error,
        "thread_panicked",
        thread = thread.name(),
        place = place.as_deref(),
        message = panic.payload_as_str(),
    );
}

impl Plan {
    /// Prints the URLs on a terminal, and always if the app comes from the arguments.
    fn greet(&self, addresses: &[SocketAddr]) {
        let is_terminal = stderr().is_terminal();
        let mut text = String::new();
        if let Some(description) = &self.description {
            for address in addresses {
                text += &format!("serving http://{}/: {description}\n", reachable(*address));
            }
        } else if is_terminal {
            text += &self.urls(addresses);
        }
        if is_terminal {
            text += "^C drains and stops; ^C twice stops at once\n";
        }
        if !text.is_empty() {
            // Written in one go, because the log may share the terminal.
            show::note(&(show::clean_lines(&text) + "\n"));
        }
    }

    /// The URLs of the apps, unless there are too many.
    fn urls(&self, addresses: &[SocketAddr]) -> String {
        let entries = self.config.server.listen.iter().zip(addresses);
        // An ordinary client can't speak to the other listeners.
        let direct: Vec<_> = entries.filter(|(entry, _)| !entry.options.proxy_protocol).collect();
        let port = |tls| {
            direct.iter().find(|(entry, _)| entry.options.tls == tls).map(|(_, it)| it.port())
        };
        let (plain, tls) = (port(false), port(true));
        let url = |app: &AppConfig| {
            let (scheme, usual, port) = match (tls.filter(|_| app.tls.is_some()), plain) {
                (Some(port), _) => ("https", 443, port),
                (None, Some(port)) => ("http", 80, port),
                (None, None) => return None,
            };
            let port = if port == usual { String::new() } else { format!(":{port}") };
            Some(format!("serving {scheme}://{}{port}/\n", app.host))
        };
        let urls: Vec<_> = self.config.apps.iter().filter_map(url).collect();
        let mut text = urls[..urls.len().min(URLS_MAX)].concat();
        if urls.len() > URLS_MAX {
            let more = urls.len() - URLS_MAX;
            text += &format!("… and {}: `tidegate apps` lists them\n", show::count(more, "app"));
        }
        text
    }
}

/// The address as a client on this machine would write it.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        let name = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        format!("{name}:{}", address.port())
    } else {
        address.to_string()
    }
}
