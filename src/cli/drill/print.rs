//! The result of a drill, as text and as JSON.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, time::Duration};

use serde_json::{Value, json};

use super::{
    handshakes,
    rows::{action_name, counts_json, failure_json, latency_json, percentiles, run_json, time},
};
use crate::{
    cli::show::{self, Align, Cell, Column, number, plain},
    drill::{
        Booking, ChangedStatus, ClientKind, FailedRequest, Group, Ledger, LoadResult, LoadSettings,
        Run, Tally,
    },
    duration::{microseconds, milliseconds},
};

/// More failures are in the JSON.
const FAILURES_SHOWN: usize = 20;

/// The load generator counts as behind if 1 request of 1,000 is later than this.
const LATE_US: u64 = 5_000;

/// The result to print.
pub(super) struct Report<'a> {
    pub(super) loaded: &'a LoadResult,
    pub(super) settings: &'a LoadSettings,
    pub(super) planned: usize,
    pub(super) interrupted: bool,
    pub(super) is_clean: bool,
    /// The status of each target after the drill.
    pub(super) after: &'a [Option<u16>],
    /// After how many upgrades a client's session was resumed, and how many upgrades were watched.
    pub(super) upgrades: Option<(u64, u64)>,
    /// The server's log, if it was kept.
    pub(super) log: Option<&'a Path>,
}

impl Report<'_> {
    /// The result as text.
    pub(super) fn text(&self) -> String {
        let ledger = self.ledger();
        let mut text = self.summary();
        text.push('\n');
        text += &actions_table(ledger, self.is_tls());
        text.push('\n');
        text += &self.clients_table();
        if self.is_tls() {
            text.push('\n');
            text += &handshakes::table(ledger);
        }
        text += &self.changes_table();
        text += &self.failed_actions();
        text += &self.failures();
        text += &handshakes::failures(ledger);
        if let Some(log) = self.log {
            let _ = writeln!(text, "\nthe server's log: {}", log.display());
        }
        let _ = writeln!(text, "\n{}", self.verdict());
        text
    }

    /// The result as JSON.
    pub(super) fn json(&self) -> String {
        let LoadResult { ledger, time, idle_closes } = self.loaded;
        let (failures, left_out) = ledger.failures();
        let group = |name: &str, key: &str, group: &Group| {
            let mut row = counts_json(&group.counts);
            row[key] = json!(name);
            row["latency_us"] = latency_json(&group.latency);
            row
        };
        let actions: Vec<Value> = ledger
            .actions()
            .map(|(action, booked)| {
                let mut row = group(action_name(action), "action", booked);
                let (done, failed) = done_and_failed(ledger, action);
                (row["done"], row["failed"]) = (json!(done), json!(failed));
                row
            })
            .collect();
        let kinds = self.settings.kinds.iter();
        let clients = kinds.map(|kind| group(kind.name(), "client", ledger.client(*kind)));
        let runs: Vec<Value> = ledger.runs().iter().map(run_json).collect();
        let not_accepted = ledger.not_accepted().map(
            |(phase, said, count)| json!({ "phase": phase.name(), "socket": said, "count": count }),
        );
        let statuses: BTreeMap<String, u64> =
            ledger.statuses().iter().map(|(status, count)| (status.to_string(), *count)).collect();
        let mut account = counts_json(&ledger.all().counts);
        let more = json!({
            "seed": self.settings.seed,
            "connections": self.settings.connections,
            "distance_ms": milliseconds(self.settings.distance),
            "think_ms": self.think().map(|times| times.map(milliseconds)),
            "address": self.settings.address.to_string(),
            "interrupted": self.interrupted,
            "clean": self.is_clean,
            "duration_ms": milliseconds(*time),
            "rate": { "asked": self.settings.rate, "reached": self.rate_reached() },
            "generator": { "late_us": latency_json(ledger.lateness()), "behind": self.is_behind() },
            "latency_us": latency_json(&ledger.all().latency),
            "statuses": statuses,
            "idle_closes": idle_closes,
            "actions_planned": self.planned,
            "actions": actions,
            "clients": clients.collect::<Vec<_>>(),
            "changes": self.changes_json(),
            "runs": runs,
            "stories": failures.iter().map(|one| failure_json(ledger, one)).collect::<Vec<_>>(),
            "stories_left_out": left_out,
            "not_accepted_because": not_accepted.collect::<Vec<_>>(),
            "tls": self.is_tls().then(|| handshakes::json(ledger, self.upgrades)),
            "log": self.log.map(|path| path.display().to_string()),
        });
        if let (Value::Object(account), Value::Object(more)) = (&mut account, more) {
            account.extend(more);
        }
        format!("{account}\n")
    }

    fn ledger(&self) -> &Ledger {
        &self.loaded.ledger
    }

    fn is_tls(&self) -> bool {
        self.settings.tls.is_some()
    }

    fn summary(&self) -> String {
        let (ledger, settings) = (self.ledger(), self.settings);
        let all = ledger.all();
        let Tally {
            sent,
            answered,
            changed,
            left,
            refused,
            not_accepted,
            failed_handshake,
            lost,
            truncated,
        } = all.counts;
        // Rare outcomes are shown only if there are any.
        let rare = [
            (changed, "changed"),
            (left, "left by the client"),
            (failed_handshake, "with a failed handshake"),
        ];
        let rare: String = rare
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, way)| format!(" + {count} {way}"))
            .collect();
        let statuses = ledger.statuses().iter();
        let statuses: Vec<String> =
            statuses.map(|(status, count)| format!("{status} \u{d7} {count}")).collect();
        let late = ledger.lateness();
        let behind =
            if self.is_behind() { "; IT FELL BEHIND: latencies include its own delay" } else { "" };
        let mut pairs = vec![
            ("server", plain(settings.address.to_string())),
            (
                "load",
                plain(format!(
                    "{} of {} requests/s for {}, seed {}{}",
                    self.rate_reached(),
                    settings.rate,
                    show::fine(milliseconds(self.loaded.time)),
                    settings.seed,
                    if self.interrupted { ", interrupted" } else { "" }
                )),
            ),
            (
                "requests",
                plain(format!(
                    "{sent} sent = {answered} answered + {refused} refused + {not_accepted} not \
                     accepted + {lost} lost + {truncated} truncated{rare}"
                )),
            ),
            ("statuses", plain(statuses.join(", "))),
            ("latency", plain(percentiles(&all.latency))),
            (
                "generator",
                plain(format!(
                    "late by {} for 1 request of 1,000, {} at most{behind}",
                    time(late.value_at_quantile(0.999)),
                    time(late.max()),
                )),
            ),
        ];
        if self.is_tls() {
            pairs.extend(handshakes::summary(ledger, self.upgrades));
        }
        show::pairs(&pairs)
    }

    fn rate_reached(&self) -> u64 {
        let seconds = self.loaded.time.as_secs_f64().max(0.001);
        (self.ledger().all().counts.sent as f64 / seconds).round() as u64
    }

    fn is_behind(&self) -> bool {
        self.ledger().lateness().value_at_quantile(0.999) > LATE_US
    }

    fn failed_actions(&self) -> String {
        let runs = self.ledger().runs().iter();
        let failed: Vec<(&Run, &String)> =
            runs.filter_map(|run| run.error.as_ref().map(|error| (run, error))).collect();
        let mut text = String::new();
        for (run, error) in failed.iter().take(FAILURES_SHOWN) {
            let (at, name) = (seconds(run.begun), run.action.name());
            let _ = write!(text, "\n{at}  {name} failed: {}", show::clean(error));
        }
        text + &more(failed.len(), 0)
    }

    /// One line for each lost or truncated request, and the reasons why others were not accepted.
    fn failures(&self) -> String {
        let (failures, left_out) = self.ledger().failures();
        let mut text = String::new();
        for failed in failures.iter().take(FAILURES_SHOWN) {
            let _ = write!(text, "\n{}", show::clean(&line(self.ledger(), failed)));
        }
        text += &more(failures.len(), left_out);
        for (phase, said, count) in self.ledger().not_accepted() {
            let (phase, said) = (phase.name(), show::clean(said));
            let _ = write!(text, "\n{count} not accepted: {phase}: {said}\n");
        }
        text
    }

    fn verdict(&self) -> String {
        let ledger = self.ledger();
        let counts = ledger.all().counts;
        let failed = ledger.runs().iter().filter(|run| run.error.is_some()).count();
        let Tally { answered, changed, refused, lost, truncated, .. } = counts;
        let handshakes = ledger.handshakes().all().failed;
        let mut verdict = match counts.failed() {
            0 if answered + changed + refused == 0 => "nothing was answered".to_owned(),
            0 => "nothing was lost".to_owned(),
            _ => format!("{lost} lost, {truncated} truncated"),
        };
        if handshakes > 0 {
            verdict += &format!("; {handshakes} handshakes failed");
        }
        if failed > 0 {
            verdict += &format!("; {} failed", show::count(failed, "action"));
        }
        if !self.is_clean && ledger.is_clean() {
            verdict += "; some answers differ from before";
        }
        verdict
    }

    /// The pause of thinking clients, if there are any.
    fn think(&self) -> Option<[Duration; 2]> {
        let thinks = self.settings.kinds.contains(&ClientKind::Thinking);
        thinks.then_some(self.settings.think.into())
    }

    fn clients_table(&self) -> String {
        let columns = columns([("CLIENT", Align::Left)], self.is_tls());
        let row = |kind: &ClientKind| {
            let group = self.ledger().client(*kind);
            [vec![plain(kind.name())], cells(group, self.is_tls())].concat()
        };
        let rows = self.settings.kinds.iter().map(row);
        show::table(&columns, rows.collect())
    }

    /// One row for each status that differs from the target's first one.
    fn changes_table(&self) -> String {
        let columns = [
            ("CHANGED", Align::Left),
            ("BEFORE", Align::Right),
            ("THEN", Align::Right),
            ("ANSWERS", Align::Right),
            ("AT LAST", Align::Right),
        ];
        let status = |status: Option<u16>| plain(status.map_or("-".into(), |it| it.to_string()));
        let row = |changed: ChangedStatus<'_>| {
            let method = if changed.is_post { "POST " } else { "" };
            let at_last = if changed.is_post { None } else { self.after[changed.at] };
            vec![
                plain(format!("{method}{}{}", changed.target.host, changed.target.path)),
                status(changed.before),
                status(Some(changed.status)),
                number(changed.count),
                status(at_last),
            ]
        };
        let rows: Vec<_> = self.ledger().changes().map(row).collect();
        if rows.is_empty() { String::new() } else { format!("\n{}", show::table(&columns, rows)) }
    }

    fn changes_json(&self) -> Vec<Value> {
        let row = |changed: ChangedStatus<'_>| {
            json!({
                "host": changed.target.host, "path": changed.target.path,
                "method": if changed.is_post { "POST" } else { "GET" },
                "before": changed.before, "status": changed.status, "count": changed.count,
                "after": if changed.is_post { None } else { self.after[changed.at] },
            })
        };
        self.ledger().changes().map(row).collect()
    }
}

fn actions_table(ledger: &Ledger, is_tls: bool) -> String {
    let own = [("ACTION", Align::Left), ("DONE", Align::Right), ("FAILED", Align::Right)];
    let columns = columns(own, is_tls);
    let rows = ledger.actions().map(|(action, group)| {
        let (done, failed) = done_and_failed(ledger, action);
        let (done, failed) = match action {
            Booking::Under(_) => (number(done), number(failed)),
            Booking::Before | Booking::Several => (plain(""), plain("")),
        };
        [vec![plain(action_name(action)), done, failed], cells(group, is_tls)].concat()
    });
    show::table(&columns, rows.collect())
}

fn columns<const N: usize>(own: [Column; N], is_tls: bool) -> Vec<Column> {
    let ways = ["SENT", "ANSWERED", "CHANGED", "LEFT", "REFUSED", "NOT ACC."];
    let handshakes = is_tls.then_some("NO HANDSH.");
    let rest = ["LOST", "TRUNC.", "P50", "P99", "P99.9", "WORST"];
    let shared = ways.into_iter().chain(handshakes).chain(rest);
    own.into_iter().chain(shared.map(|name| (name, Align::Right))).collect()
}

/// The cells that all tables share, in the order of [`columns`].
fn cells(group: &Group, is_tls: bool) -> Vec<Cell> {
    let Tally { sent, answered, changed, left, refused, not_accepted, .. } = group.counts;
    let ways = [sent, answered, changed, left, refused, not_accepted];
    let handshakes = is_tls.then_some(group.counts.failed_handshake);
    let rest = [group.counts.lost, group.counts.truncated];
    let latency = &group.latency;
    let quantile = |quantile| latency.value_at_quantile(quantile);
    let times = [quantile(0.5), quantile(0.99), quantile(0.999), latency.max()];
    let counts = ways.into_iter().chain(handshakes).chain(rest).map(number);
    counts.chain(times.map(|micros| plain(time(micros)))).collect()
}

fn done_and_failed(ledger: &Ledger, booking: Booking) -> (u64, u64) {
    let of_kind = ledger.runs().iter().filter(|run| Booking::Under(run.action) == booking);
    let (failed, done): (Vec<&Run>, Vec<&Run>) = of_kind.partition(|run| run.error.is_some());
    (done.len() as u64, failed.len() as u64)
}

/// A failed request on one line.
fn line(ledger: &Ledger, failed: &FailedRequest) -> String {
    let details = &failed.details;
    let action = match failed.run.map(|at| &ledger.runs()[at]) {
        None => "before any action".to_owned(),
        Some(run) => format!("{} {}", relative(failed.ended, run.begun), run.action.name()),
    };
    let connection = match (details.served, details.connecting) {
        (0, Some(took)) => format!("new connection, made in {}", time(microseconds(took))),
        (0, None) => "no connection".to_owned(),
        (served, _) => format!("connection with {served} earlier answers"),
    };
    format!(
        "{}  {} ({}): {}, {}, {connection}, {} bytes sent, {} received, port {}: {}",
        seconds(failed.ended),
        failed.result,
        action,
        failed.kind.name(),
        details.phase.name(),
        details.sent,
        details.received,
        details.port,
        details.said
    )
}

/// The time since the action's beginning.
fn relative(at: Duration, begun: Duration) -> String {
    let (sign, apart) = match at.checked_sub(begun) {
        Some(after) => ("after", after),
        None => ("before", begun - at),
    };
    format!("{} {sign}", time(microseconds(apart)))
}

fn more(found: usize, left_out: u64) -> String {
    let hidden = found.saturating_sub(FAILURES_SHOWN) as u64 + left_out;
    match (found, hidden) {
        (0, 0) => String::new(),
        (_, 0) => "\n".to_owned(),
        _ => format!("\n… and {hidden} more, all in --json\n"),
    }
}

/// A time since the drill's beginning, in seconds.
fn seconds(at: Duration) -> String {
    format!("{:9.3} s", at.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_relative_to_the_action() {
        let (early, late) = (Duration::from_millis(5), Duration::from_millis(12));
        assert_eq!(relative(late, early), "7.0 ms after");
        assert_eq!(relative(early, late), "7.0 ms before");
    }

    #[test]
    fn failures_that_are_not_shown_are_counted() {
        assert_eq!(more(0, 0), "");
        assert_eq!(more(3, 0), "\n");
        assert_eq!(more(FAILURES_SHOWN + 2, 5), "\n… and 7 more, all in --json\n");
    }
}
