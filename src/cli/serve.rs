//! `tidegate serve`: the server, steered by signals.

use std::{fmt::Display, fs::File, path::Path, process::ExitCode, time::Duration};

use crate::{
    config::{Config, ConfigError},
    control::{NoTakeOver, TakeOver},
    logging::{self, Logging, event},
    server::{EarlySignals, HttpServer, Privileges, SignalRequest, Verdict, forward_signals},
};

use super::{CUT, DONE, FAILED, USAGE, show};

/// How long the logs may take to be written out at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no server any more, or never was.
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn of(error: impl Display) -> Self {
        Self { code: FAILED, text: format!("tidegate: {error}") }
    }
}

/// Serves until a signal ends it, from where the process before it stands if there is one.
pub(super) fn serve(path: &Path) -> ExitCode {
    // First: whoever knows the process may send some from now on.
    let signals = EarlySignals::keep();
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
    let started = signals.map_err(Failure::of).and_then(|signals| start(path, take_over, signals));
    ExitCode::from(match started {
        Ok(code) => code,
        Err(Failure { code, text }) => {
            if let Some(before) = before {
                before.fail(&text);
            }
            // To standard error, whatever the log is: it may be what failed.
            show::note(&format!("{text}\n"));
            code
        }
    })
}

fn start(path: &Path, take_over: Option<TakeOver>, signals: EarlySignals) -> Result<u8, Failure> {
    let loaded = super::load_config(path);
    let wrong = |error: ConfigError| Failure { code: USAGE, text: error.to_string() };
    let (config, account) = loaded.map_err(wrong)?;
    // Before the logs, which have threads.
    let privileges = Privileges::settle(account).map_err(Failure::of)?;
    let logging = logging::init(&config.log).map_err(Failure::of)?;
    let (version, pid) = (env!("CARGO_PKG_VERSION"), u64::from(std::process::id()));
    event!(Info, "server_start", version = version, pid = pid);
    privileges.log();
    if let Err(error) = File::open(path) {
        // Root could read it; a reload is going to fail.
        event!(Warn, "config_not_readable", config:% = path.display(), error:% = error);
    }
    let ended = run(path, &config, &logging, take_over, signals);
    logging.flush(FLUSH_TIMEOUT);
    ended.map(|verdict| match verdict {
        Verdict::Cut(_) => CUT,
        Verdict::Drained | Verdict::Cancelled => DONE,
    })
}

fn run(
    path: &Path,
    config: &Config,
    logging: &Logging,
    take_over: Option<TakeOver>,
    signals: EarlySignals,
) -> Result<Verdict, Failure> {
    let mut server = HttpServer::take_over(config, take_over).map_err(Failure::of)?;
    server.log_to(logging.clone());
    server.reload_from(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    server.notify_service_manager();
    server.listen_for_admin().map_err(Failure::of)?;
    server.load_apps(&config.apps);
    server.restore_apps().map_err(Failure::of)?;
    let (handle, logging) = (server.handle(), logging.clone());
    let on_signal = move |request, name: &str| match request {
        SignalRequest::Stop => handle.stop(name),
        SignalRequest::ReopenLogs => logging.reopen(),
        SignalRequest::Reload => handle.begin_reload(),
        SignalRequest::Upgrade => handle.begin_upgrade(),
    };
    forward_signals(signals, on_signal).map_err(Failure::of)?;
    server.run().map_err(Failure::of)
}
