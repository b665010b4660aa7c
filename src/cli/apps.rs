//! `tidegate apps`, `app` and `cut`: the apps, their lives, and their connections.

use clap::Args;

use super::{
    DONE, Host, Place,
    admin::{Admin, ServerOptions, app_path, encode},
    answers::{
        App as AppAnswer, Apps as AppsAnswer, Connection, ConnectionTls, Connections, CutAnswer,
        Row, Upstream,
    },
    failure::Failure,
    show::{self, Align, Cell, number, plain},
};

#[derive(Debug, Args)]
pub(super) struct Apps {
    #[command(flatten)]
    server: ServerOptions,
}

impl Apps {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let answer = admin.get("/apps")?;
        admin.print(&answer, |answer: &AppsAnswer| rows(&answer.apps))?;
        Ok(DONE)
    }
}

#[derive(Debug, Args)]
pub(super) struct App {
    #[command(flatten)]
    host: Host,

    /// List the app's connections, oldest first
    #[arg(long)]
    connections: bool,

    #[command(flatten)]
    server: ServerOptions,
}

impl App {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        if self.connections {
            let answer = connections(&mut admin, &self.host.name)?;
            admin.print(&answer, |answer| connection_rows(&answer.connections))?;
        } else {
            let answer = admin.get(&app_path(&self.host.name, ""))?;
            admin.print(&answer, app)?;
        }
        Ok(DONE)
    }
}

#[derive(Debug, Args)]
pub(super) struct Cut {
    /// The connection's id, as `tidegate app HOST --connections` shows it
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,

    #[command(flatten)]
    server: ServerOptions,
}

impl Cut {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let answer = admin.delete(&format!("/connections/{}", encode(&self.id)))?;
        admin.print(&answer, |answer: &CutAnswer| {
            format!("{}: cut {}\n", show::clean(&self.id), answer.cut)
        })?;
        Ok(DONE)
    }
}

/// The connections of a host, oldest first.
pub(super) fn connections(
    admin: &mut Admin,
    host: &str,
) -> Result<super::admin::Answer<Connections>, Failure> {
    admin.get(&app_path(host, "/connections"))
}

fn rows(rows: &[Row]) -> String {
    let columns = [
        ("HOST", Align::Left),
        ("ID", Align::Right),
        ("KIND", Align::Left),
        ("ORIGIN", Align::Left),
        ("STATE", Align::Left),
        ("ACTIVE", Align::Right),
        ("REQUESTS", Align::Right),
        ("REFUSED", Align::Right),
        ("CUT", Align::Right),
        ("NOTE", Align::Left),
    ];
    let row = |row: &Row| -> Vec<Cell> {
        vec![
            plain(&row.host),
            number(row.id),
            show::state(&row.kind),
            plain(&row.origin),
            state(row),
            number(row.active_connections),
            number(row.requests_total),
            number(row.refused),
            number(row.cut),
            plain(note(row)),
        ]
    };
    show::table(&columns, rows.iter().map(row).collect())
}

/// The state as text. A serving app that can answer no request is down.
fn state(row: &Row) -> Cell {
    let is_down = row.state == "serving" && (row.problem.is_some() || row.error.is_some());
    show::state(if is_down { "down" } else { &row.state })
}

/// A remark about a life: its drain, or why it can answer no request.
fn note(row: &Row) -> String {
    let left = row.remaining_ms.filter(|_| row.state == "draining");
    let left = left.map(|left| format!("{} left", show::fine(left)));
    let process = row.pid.map(|pid| format!("old process, pid {pid}"));
    let problem = row.problem.clone().or_else(|| row.error.clone());
    let parts = [process, row.cause.clone(), left, problem];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn app(app: &AppAnswer) -> String {
    let row = &app.row;
    let mut pairs = vec![
        ("host", plain(&row.host)),
        (
            "aliases",
            plain(if row.aliases.is_empty() { "none".into() } else { row.aliases.join(", ") }),
        ),
        ("id", number(row.id)),
        ("kind", show::state(&row.kind)),
        ("origin", plain(&row.origin)),
        ("state", state(row)),
        ("active", number(row.active_connections)),
        ("requests", number(row.requests_total)),
        ("refused", number(row.refused)),
        ("cut", number(row.cut)),
    ];
    let further = [
        ("limited", row.limited.map(|limited| limited.to_string())),
        ("cause", row.cause.clone()),
        ("since", row.elapsed_ms.map(show::fine)),
        ("left", row.remaining_ms.map(show::fine)),
        ("problem", row.problem.clone().or_else(|| row.error.clone())),
    ];
    pairs.extend(further.into_iter().filter_map(|(name, text)| Some((name, plain(text?)))));
    let mut text = show::pairs(&pairs);
    if let Some(upstreams) = &row.upstreams {
        text.push('\n');
        text += &upstream_rows(upstreams);
    }
    // The row above is one of these lives.
    if app.lives.len() > 1 {
        text.push('\n');
        text += &rows(&app.lives);
    }
    text
}

pub(super) fn upstream_rows(upstreams: &[Upstream]) -> String {
    let columns = [
        ("UPSTREAM", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
        ("ACTIVE", Align::Right),
        ("IDLE", Align::Right),
        ("REQUESTS", Align::Right),
        ("FAILURES", Align::Right),
        ("LATENCY", Align::Right),
        ("NOTE", Align::Left),
    ];
    let row = |upstream: &Upstream| {
        let latency = upstream.latency_us.map(|us| format!("{us} µs"));
        vec![
            plain(&upstream.url),
            number(upstream.weight),
            show::state(&upstream.state),
            number(upstream.active),
            number(upstream.idle),
            number(upstream.requests),
            number(upstream.failures),
            plain(latency.unwrap_or_default()),
            plain(upstream_note(upstream)),
        ]
    };
    show::table(&columns, upstreams.iter().map(row).collect())
}

/// Why the upstream isn't up, and its last failure.
fn upstream_note(upstream: &Upstream) -> String {
    let last = upstream
        .last_failure
        .as_ref()
        .map(|last| format!("{} {} ago: {}", last.cause, show::coarse(last.age_ms), last.error));
    [upstream.reason.clone(), last].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn connection_rows(connections: &[Connection]) -> String {
    let mut columns = vec![
        ("CONNECTION", Align::Left),
        ("APP", Align::Right),
        ("PEER", Align::Left),
        ("AGE", Align::Right),
        ("SENT", Align::Right),
        ("PHASE", Align::Left),
        ("REQUEST", Align::Left),
    ];
    let some_have_tls = connections.iter().any(|connection| connection.tls.is_some());
    if some_have_tls {
        columns.push(("TLS", Align::Left));
    }
    let row = |connection: &Connection| {
        let phase = if connection.tunnel { "tunnel" } else { &connection.phase };
        let mut row = vec![
            plain(&connection.id),
            number(connection.app),
            plain(&connection.peer),
            plain(show::coarse(connection.age_ms)),
            number(connection.bytes_sent),
            plain(phase),
            plain(connection.request()),
        ];
        row.extend(
            some_have_tls.then(|| plain(connection.tls.as_ref().map_or_else(String::new, tls))),
        );
        row
    };
    show::table(&columns, connections.iter().map(row).collect())
}

fn tls(tls: &ConnectionTls) -> String {
    let name = tls.server_name.as_deref().unwrap_or("no SNI");
    format!("{} {} {name}", tls.version, tls.cipher)
}
