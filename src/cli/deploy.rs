//! `tidegate deploy`: a new life of an app takes the old one's place when it has proven ready.
//!
//! One request is held until the switch; beside it the checks are shown, and ^C aborts the deploy.
//! If this process is killed, its connection ends, and the server aborts the deploy by that.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;

use super::{
    DONE, Host, Place,
    admin::{Admin, Answer, ServerOptions, app_path},
    answers::{DeployProgress, Deployed},
    deploy_check::DeployCheck,
    failure::Failure,
    put::{AppOptions, changed},
    show, time_argument,
    wait::{HOLD, LiveLine, finish_all},
};

#[derive(Debug, Args)]
pub(super) struct Deploy {
    #[command(flatten)]
    host: Host,

    #[command(flatten)]
    app: AppOptions,

    /// The path that upstreams must answer with 2xx to be ready. Default: a connection that opens
    #[arg(long, value_name = "PATH")]
    ready: Option<String>,

    /// How long the upstreams may take to become ready. Default: 30s
    #[arg(long, value_name = "TIME", value_parser = time_argument)]
    ready_timeout: Option<String>,

    /// How many upstreams must be ready. Default: all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    quorum: Option<u32>,

    /// Return after the switch; the old life's drain continues
    #[arg(long)]
    no_wait: bool,

    #[command(flatten)]
    server: ServerOptions,
}

impl Deploy {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let table = self.table()?;
        let mut admin = self.server.admin(place)?;
        let quorum = self.quorum.map(|quorum| format!("?quorum={quorum}")).unwrap_or_default();
        let path = app_path(&self.host.name, &format!("/deploy{quorum}"));
        let answer = self.deploy(&mut admin, &path, &table)?;
        admin.print(&answer, deployed)?;
        match answer.value.change.drain {
            Some(drain) if !self.no_wait => finish_all(&mut admin, &[drain]),
            _ => Ok(DONE),
        }
    }

    /// The app's table with the options for its readiness.
    fn table(&self) -> Result<String, Failure> {
        let text = self.app.table()?;
        let options = [("path", &self.ready), ("timeout", &self.ready_timeout)];
        let options = options.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let options: Vec<_> = options.collect();
        if options.is_empty() {
            return Ok(text);
        }
        let mut table: Value = serde_json::from_str(&text).unwrap_or_default();
        let Some(proxy) = table.get_mut("proxy").filter(|proxy| proxy.is_object()) else {
            let error = "--ready and --ready-timeout are for an app that is a proxy";
            return Err(Failure::Usage(error.to_owned()));
        };
        if !proxy["ready"].is_object() {
            proxy["ready"] = json!({});
        }
        for (key, value) in options {
            proxy["ready"][key] = json!(value);
        }
        Ok(table.to_string())
    }

    /// Waits for the switch.
    fn deploy(
        &self,
        admin: &mut Admin,
        path: &str,
        table: &str,
    ) -> Result<Answer<Deployed>, Failure> {
        let (mut beside, line) = (admin.beside(), LiveLine::new());
        let own_path = app_path(&self.host.name, "/deploy");
        let interrupted = Arc::new(AtomicBool::new(false));
        // A second ^C ends the command; without the flag the first one does, and the server aborts
        // the deploy when the connection ends.
        let second =
            signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(&interrupted)).ok();
        let first = signal_hook::flag::register(SIGINT, Arc::clone(&interrupted)).ok();
        let mut is_aborted = false;
        let is_waited_for = || {
            if interrupted.load(Ordering::Relaxed) && !is_aborted {
                // If it is too late, the answer that is waited for says what became of it.
                is_aborted = beside.delete::<Ignored>(&own_path).is_ok();
            } else if line.is_shown()
                && let Ok(progress) = beside.get::<DeployProgress>(&own_path)
            {
                line.show(&under_way(&progress.value));
            }
            true
        };
        let answer = admin.post_held(path, Some(table), HOLD / 5, is_waited_for);
        [first, second].into_iter().flatten().for_each(|id| {
            signal_hook::low_level::unregister(id);
        });
        answer
    }
}

/// An answer that only has to be a success.
#[derive(Debug, Deserialize)]
struct Ignored {}

/// What has come of a deploy.
fn deployed(answer: &Deployed) -> String {
    let host = &answer.change.app.host;
    let line = |check| show::clean(&format!("{host}: {check}")) + "\n";
    answer.checks.iter().map(line).collect::<String>() + &changed(&answer.change)
}

/// The checks so far, on one line.
fn under_way(progress: &DeployProgress) -> String {
    let ready = progress.checks.iter().filter(|check| check.ready).count();
    let others = progress.checks.iter().filter(|check| !check.ready);
    let (host, all) = (&progress.host, progress.checks.len());
    let mut text = format!("{host}: {ready}/{all} ready, {}", show::coarse(progress.elapsed_ms));
    for DeployCheck { url, error, .. } in others {
        text += &format!("; {url}: {}", error.as_deref().unwrap_or("not ready"));
    }
    text
}
