//! Waits for the end of a drain and shows its progress on the terminal.
//!
//! Has no deadline of its own: every drain ends by its deadline, and the server reports the end.

use std::{
    cell::Cell,
    env,
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use signal_hook::consts::SIGINT;

use super::{
    CUT, DONE, FAILED,
    admin::{Admin, Answer, encode},
    answers::{Connection, Drain, DrainId, DrainState, Verdict},
    apps,
    failure::Failure,
    show, time_argument,
};

/// How long the server holds back an answer; the line is updated at this interval.
pub(super) const HOLD: Duration = Duration::from_millis(500);

/// The width if the terminal doesn't report one.
const COLUMNS: u16 = 80;

/// How to wait for a drain that a command begins.
#[derive(Debug, Args)]
pub(super) struct EndOptions {
    /// Return at once; the drain continues
    #[arg(long)]
    no_wait: bool,

    /// How long the drain may take before it cuts exchanges: 500ms, 30s, 2m
    #[arg(long, value_name = "TIME", value_parser = time_argument)]
    timeout: Option<String>,
}

impl EndOptions {
    /// The query part of the target, with these parameters.
    pub(super) fn query(&self, parameters: &[(&str, &str)]) -> String {
        let timeout = self.timeout.iter().map(|timeout| ("timeout", timeout.as_str()));
        let all = parameters.iter().copied().chain(timeout);
        let pairs: Vec<_> = all.map(|(key, value)| format!("{key}={}", encode(value))).collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }

    pub(super) fn patience(&self) -> Patience {
        if self.no_wait { Patience::ReturnAtOnce } else { Patience::Wait }
    }
}

/// Whether to wait for the end of the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    ReturnAtOnce,
}

/// Waits for the drain's end if `patience` says so, and prints it. Returns the exit code.
pub(super) fn finish(
    admin: &mut Admin,
    drain: Answer<Drain>,
    patience: Patience,
) -> Result<u8, Failure> {
    let drain = match patience {
        Patience::Wait => until_ended(admin, drain)?,
        Patience::ReturnAtOnce => drain,
    };
    admin.print(&drain, summary)?;
    Ok(exit_code(&drain.value))
}

/// Waits for the ends of drains that began elsewhere, and prints each. Returns the worst exit code.
pub(super) fn finish_all(admin: &mut Admin, ids: &[DrainId]) -> Result<u8, Failure> {
    let mut worst = DONE;
    for id in ids {
        let drain = admin.get(&drain_path(id))?;
        worst = worst.max(finish(admin, drain, Patience::Wait)?);
    }
    Ok(worst)
}

/// Waits for the drain's end.
pub(super) fn until_ended(
    admin: &mut Admin,
    mut drain: Answer<Drain>,
) -> Result<Answer<Drain>, Failure> {
    let line = LiveLine::new();
    let interrupted = Arc::new(AtomicBool::new(false));
    // Without the flag, ^C ends the command in the usual way.
    let flag = signal_hook::flag::register(SIGINT, Arc::clone(&interrupted)).ok();
    while drain.value.state == DrainState::Draining {
        if line.is_shown {
            let oldest = oldest(admin, &drain.value);
            line.show(&progress(&drain.value, oldest.as_ref()));
        }
        let path = format!("{}?wait={}ms", drain_path(&drain.value.id), HOLD.as_millis());
        drain = admin.poll(&path, HOLD)?;
        if interrupted.load(Ordering::Relaxed) && drain.value.state == DrainState::Draining {
            drop(line);
            return Err(Failure::Unended(goes_on(&drain.value)));
        }
    }
    flag.map(signal_hook::low_level::unregister);
    Ok(drain)
}

/// What an interrupted command reports about the drain.
fn goes_on(drain: &Drain) -> String {
    let text = summary(drain);
    let host = drain.host.as_deref().unwrap_or_default();
    let upstream = match &drain.upstream {
        Some(url) => format!(" --upstream {url}"),
        None => String::new(),
    };
    let further = match drain.cause.as_str() {
        "stop" => "`tidegate stop` waits for it again, `tidegate stop --now` cuts the rest".into(),
        "drain" => format!(
            "`tidegate drain {host}{upstream}` waits for it again, `tidegate resume \
             {host}{upstream}` cancels it"
        ),
        _ => "`tidegate status` shows its progress".to_owned(),
    };
    format!("interrupted, but the drain continues: {}\n{further}", text.trim_end())
}

/// How a drain ended, or its progress.
pub(super) fn summary(drain: &Drain) -> String {
    let elapsed = show::fine(drain.elapsed_ms);
    let mut text = match drain.verdict {
        Some(Verdict::Drained) => format!("drained in {elapsed}"),
        Some(Verdict::Cut) => format!("cut {} after {elapsed}", drain.cut),
        Some(Verdict::Cancelled) => "cancelled".to_owned(),
        None => {
            let left = show::fine(drain.remaining_ms);
            format!("draining, {} active, {left} left", drain.active_connections)
        }
    };
    if drain.refused > 0 {
        text += &format!(", {} refused", drain.refused);
    }
    if let (Some(_), Some(older_ms)) = (drain.verdict, drain.older_ms) {
        let left = show::fine(older_ms);
        text += &format!("; exits after earlier processes, which have up to {left}");
    }
    format!("{}: {text}\n", show::clean(&drain.name()))
}

pub(super) fn exit_code(drain: &Drain) -> u8 {
    match drain.verdict {
        None | Some(Verdict::Drained) => DONE,
        Some(Verdict::Cut) => CUT,
        Some(Verdict::Cancelled) => FAILED,
    }
}

fn drain_path(id: &DrainId) -> String {
    format!("/drains/{id}")
}

pub(super) fn progress(drain: &Drain, oldest: Option<&Connection>) -> String {
    let (name, active) = (drain.name(), drain.active_connections);
    let mut text =
        format!("draining {name}: {active} active, {} left", show::fine(drain.remaining_ms));
    if let Some(oldest) = oldest {
        text += &format!(", oldest {} {}", oldest.request(), show::coarse(oldest.age_ms));
    }
    text
}

/// The oldest connection of the draining life.
fn oldest(admin: &mut Admin, drain: &Drain) -> Option<Connection> {
    let (Some(host), DrainId::Life(life)) = (&drain.host, &drain.id) else { return None };
    if drain.active_connections == 0 {
        return None;
    }
    // Optional: without it the line is shorter. If there is an error, the next call meets it too.
    let answer = apps::connections(admin, host).ok()?;
    answer.value.connections.into_iter().find(|connection| connection.app == *life)
}

/// A line on standard error that is rewritten in place, if that is a terminal.
pub(super) struct LiveLine {
    is_shown: bool,
    has_text: Cell<bool>,
}

impl LiveLine {
    pub(super) fn new() -> Self {
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { is_shown: io::stderr().is_terminal() && !is_dumb, has_text: Cell::new(false) }
    }

    /// Whether there is a terminal to show it on.
    pub(super) fn is_shown(&self) -> bool {
        self.is_shown
    }

    pub(super) fn show(&self, text: &str) {
        if !self.is_shown {
            return;
        }
        let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
        let columns = if columns == 0 { COLUMNS } else { columns };
        // A line that wraps can't be overwritten.
        let text: String = show::clean(text).chars().take(usize::from(columns) - 1).collect();
        Self::write(&format!("\r{text}\u{1b}[K"));
        self.has_text.set(true);
    }

    /// Writes past the filter that strips colour, because it would strip these sequences too.
    fn write(text: &str) {
        // If the line can't be shown, the drain continues anyway.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        if self.has_text.get() {
            Self::write("\r\u{1b}[K");
        }
    }
}
