//! `tidegate serve`: the server, steered by signals.

use std::{fmt::Display, path::Path, process::ExitCode, time::Duration};

use crate::{
    config::Config,
    logging::{self, Logging, event},
    server::{HttpServer, ServerError, SignalRequest, Verdict, forward_signals},
};

use super::{CUT, FAILED, show};

/// How long the logs may take to be written out at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until a signal ends it.
pub(super) fn serve(path: &Path) -> ExitCode {
    let config = match super::load_config(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let logging = match logging::init(&config.log) {
        Ok(logging) => logging,
        Err(error) => return failed(&error),
    };
    let code = match run(path, &config, &logging) {
        Ok(Verdict::Cut(_)) => ExitCode::from(CUT),
        Ok(Verdict::Drained | Verdict::Cancelled) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    };
    logging.flush(FLUSH_TIMEOUT);
    code
}

fn run(path: &Path, config: &Config, logging: &Logging) -> Result<Verdict, ServerError> {
    let (version, pid) = (env!("CARGO_PKG_VERSION"), u64::from(std::process::id()));
    event!(Info, "server_start", version = version, pid = pid);
    let mut server = HttpServer::bind(config)?;
    server.log_to(logging.clone());
    server.reload_from(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    server.notify_service_manager();
    server.listen_for_admin()?;
    server.load_apps(&config.apps);
    let (handle, logging) = (server.handle(), logging.clone());
    let on_signal = move |request, name: &str| match request {
        SignalRequest::Stop => handle.stop(name),
        SignalRequest::ReopenLogs => logging.reopen(),
        SignalRequest::Reload => handle.begin_reload(),
        SignalRequest::Upgrade => {
            event!(Warn, "signal_ignored", signal = name, reason = "not in this version");
        }
    };
    forward_signals(on_signal).map_err(ServerError::Setup)?;
    server.run()
}

/// To standard error, whatever the log is: it may be what failed.
fn failed(error: &dyn Display) -> ExitCode {
    show::note(&format!("tidegate: {error}\n"));
    ExitCode::from(FAILED)
}
