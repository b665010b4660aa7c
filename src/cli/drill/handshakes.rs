//! The handshakes of a drill over TLS, as text and as JSON.

use serde_json::{Value, json};

use super::rows::{action_name, latency_json, percentiles, time};
use crate::{
    cli::show::{self, Align, Cell, number, plain},
    drill::{HandshakeGroup, Ledger},
};

/// The lines of the summary. `upgrades`: after how many a client's session was resumed, and how
/// many there were.
pub(super) fn summary(ledger: &Ledger, upgrades: Option<(u64, u64)>) -> Vec<(&'static str, Cell)> {
    let all = ledger.handshakes().all();
    let HandshakeGroup { full, resumed, failed, took } = &all;
    let suites: String = ledger
        .handshakes()
        .suites()
        .map(|(version, cipher, count)| format!("; {version} {cipher} \u{d7} {count}"))
        .collect();
    let counts = format!("{} = {full} full + {resumed} resumed + {failed} failed", all.count());
    let mut pairs = vec![
        ("handshakes", plain(format!("{counts}{suites}"))),
        ("handshake", plain(percentiles(took))),
    ];
    if let Some((resumed, upgrades)) = upgrades {
        pairs.push(("resumed after upgrade", plain(format!("{resumed} of {upgrades}"))));
    }
    pairs
}

/// The handshakes by action.
pub(super) fn table(ledger: &Ledger) -> String {
    let numbers = ["HANDSHAKES", "FULL", "RESUMED", "FAILED", "P50", "P99", "WORST"];
    let columns: Vec<_> = [("ACTION", Align::Left)]
        .into_iter()
        .chain(numbers.map(|name| (name, Align::Right)))
        .collect();
    let rows = ledger.handshakes().by_action().map(|(action, group)| {
        let counts = [group.count(), group.full, group.resumed, group.failed].map(number);
        let took = &group.took;
        let times = [took.value_at_quantile(0.5), took.value_at_quantile(0.99), took.max()];
        let times = times.map(|micros| plain(time(micros)));
        [plain(action_name(action))].into_iter().chain(counts).chain(times).collect()
    });
    show::table(&columns, rows.collect())
}

/// Why handshakes failed.
pub(super) fn failures(ledger: &Ledger) -> String {
    let failures = ledger.handshakes().failures();
    failures
        .map(|(why, count)| {
            format!("\n{} failed: {}\n", show::count(count as usize, "handshake"), show::clean(why))
        })
        .collect()
}

pub(super) fn json(ledger: &Ledger, upgrades: Option<(u64, u64)>) -> Value {
    let handshakes = ledger.handshakes();
    let suite =
        |(version, cipher, count)| json!({ "version": version, "cipher": cipher, "count": count });
    let actions = handshakes.by_action().map(|(action, group)| {
        let mut row = group_json(group);
        row["action"] = json!(action_name(action));
        row
    });
    let mut all = group_json(&handshakes.all());
    all["actions"] = actions.collect();
    all["suites"] = handshakes.suites().map(suite).collect();
    all["failed_because"] = handshakes
        .failures()
        .map(|(why, count)| json!({ "reason": why, "count": count }))
        .collect();
    all["upgrades"] = json!(upgrades.map_or(0, |(_, upgrades)| upgrades));
    all["resumed_after_upgrade"] = json!(upgrades.map_or(0, |(resumed, _)| resumed));
    all
}

fn group_json(group: &HandshakeGroup) -> Value {
    json!({
        "handshakes": group.count(), "full": group.full, "resumed": group.resumed,
        "failed": group.failed, "took_us": latency_json(&group.took),
    })
}
