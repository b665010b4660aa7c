//! `tidegate status`: the server's state at a glance.

use clap::Args;

use super::{
    DONE, Place,
    admin::ServerOptions,
    answers::{CertificateCounts, Drain, Generation, Operator, ServerStatus, StuckLoop},
    failure::Failure,
    show::{self, Align, Cell, number, plain},
};

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    server: ServerOptions,
}

impl Status {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let answer = admin.get("/status")?;
        admin.print(&answer, status)?;
        Ok(DONE)
    }
}

fn status(status: &ServerStatus) -> String {
    let counts = &status.connections;
    let connections = format!(
        "{} fresh, {} busy, {} idle, {} lingering",
        counts.fresh, counts.busy, counts.idle, counts.lingering
    );
    let reload = status.last_reload.as_ref().map(|reload| {
        let outcome = if reload.ok { "ok" } else { reload.error.as_deref().unwrap_or("failed") };
        format!("{} {outcome}", reload.at)
    });
    let lost = &status.log_lines_lost;
    let stuck: Vec<String> = status.stuck_loops.iter().map(stuck_loop).collect();
    let mut pairs = vec![
        ("state", show::state(&status.state)),
        ("version", plain(&status.version)),
        ("pid", plain(status.pid.to_string())),
        ("uptime", plain(show::coarse(status.uptime_ms))),
        ("config", plain(status.config.as_deref().unwrap_or("none"))),
        ("listen", plain(listen(status))),
        ("threads", number(status.threads)),
        ("apps", number(status.apps)),
        ("active", number(status.active_connections)),
        ("connections", plain(connections)),
        ("requests", number(status.requests_total)),
        ("cut", number(status.cut_total)),
        ("last reload", plain(reload.as_deref().unwrap_or("none"))),
        ("log lines lost", plain(format!("{} events, {} access", lost.events, lost.access))),
    ];
    if let Some(certificates) = certificates(&status.certificates) {
        pairs.push(("certificates", certificates));
    }
    if let Some(busy) = operator(&status.operator) {
        pairs.push(("busy with", plain(busy)));
    }
    if !stuck.is_empty() {
        pairs.push(("stuck loops", plain(stuck.join(", "))));
    }
    if !status.failed_loops.is_empty() {
        let failed: Vec<String> = status.failed_loops.iter().map(ToString::to_string).collect();
        pairs.push(("failed loops", plain(failed.join(", "))));
    }
    let mut text = show::pairs(&pairs);
    if !status.previous.is_empty() {
        text.push('\n');
        text += &generations(&status.previous);
    }
    if !status.drains.is_empty() {
        text.push('\n');
        text += &drains(&status.drains);
    }
    text
}

/// The addresses, each with what is spoken there if that isn't plain HTTP.
fn listen(status: &ServerStatus) -> String {
    if status.listeners.is_empty() {
        return status.listen.join(", ");
    }
    let marked = status.listeners.iter().map(|listener| match listener.tls {
        true => format!("{} (TLS)", listener.address),
        false => listener.address.clone(),
    });
    marked.collect::<Vec<_>>().join(", ")
}

/// How many certificates there are, and which one expires first; none without TLS.
fn certificates(counts: &CertificateCounts) -> Option<Cell> {
    if counts.in_use + counts.rejected == 0 {
        return None;
    }
    let mut text = format!("{} in use", counts.in_use);
    if counts.rejected > 0 {
        text += &format!(", {} rejected", counts.rejected);
    }
    if let Some(next) = &counts.next_expiry {
        let name = next.names.first().map_or("no name", |name| name);
        text += &match next.days_left {
            ..0 => format!("; {name} has expired"),
            days => format!("; next expiry: {name}, {} left", show::count(days as usize, "day")),
        };
    }
    Some(plain(text))
}

fn generations(previous: &[Generation]) -> String {
    let mut columns = vec![
        ("OLD PID", Align::Left),
        ("VERSION", Align::Left),
        ("ACTIVE", Align::Right),
        ("SINCE", Align::Right),
        ("LEFT", Align::Right),
    ];
    let some_are_silent = previous.iter().any(|old| old.silent_ms.is_some());
    if some_are_silent {
        columns.push(("NOTE", Align::Left));
    }
    let row = |old: &Generation| {
        let silent = old.silent_ms.map(|ms| format!("silent for {}", show::coarse(ms)));
        let mut row = vec![
            plain(old.pid.to_string()),
            plain(&old.version),
            number(old.active_connections),
            plain(show::fine(old.elapsed_ms)),
            plain(show::fine(old.remaining_ms)),
        ];
        row.extend(some_are_silent.then(|| plain(silent.unwrap_or_default())));
        row
    };
    show::table(&columns, previous.iter().map(row).collect())
}

/// What the operator thread is busy with, so that changes wait.
fn operator(operator: &Operator) -> Option<String> {
    let Operator { busy_with, since, for_ms, waiting } = operator;
    let mut text = busy_with.clone()?;
    if let (Some(since), Some(for_ms)) = (since, for_ms) {
        text += &format!(" for {}, since {since}", show::fine(*for_ms));
    }
    if *waiting > 0 {
        text += &format!("; waiting: {waiting}");
    }
    Some(text)
}

fn stuck_loop(stuck: &StuckLoop) -> String {
    let host = stuck.host.as_ref().map(|host| format!(" in {host}")).unwrap_or_default();
    format!("{}{host} for {}", stuck.index, show::coarse(stuck.for_ms))
}

fn drains(drains: &[Drain]) -> String {
    let columns = [
        ("DRAIN", Align::Left),
        ("HOST", Align::Left),
        ("CAUSE", Align::Left),
        ("ACTIVE", Align::Right),
        ("REFUSED", Align::Right),
        ("SINCE", Align::Right),
        ("LEFT", Align::Right),
    ];
    let row = |drain: &Drain| {
        vec![
            plain(drain.id.to_string()),
            plain(drain.name()),
            plain(&drain.cause),
            number(drain.active_connections),
            number(drain.refused),
            plain(show::fine(drain.elapsed_ms)),
            plain(show::fine(drain.remaining_ms)),
        ]
    };
    show::table(&columns, drains.iter().map(row).collect())
}
