//! Parts of a drill's result, as text and as JSON.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{
    drill::{Booking, FailedRequest, Ledger, Run, Tally},
    duration::microseconds,
};

pub(super) fn counts_json(counts: &Tally) -> Value {
    json!({
        "sent": counts.sent, "answered": counts.answered, "changed": counts.changed,
        "left": counts.left, "refused": counts.refused, "not_accepted": counts.not_accepted,
        "failed_handshake": counts.failed_handshake, "lost": counts.lost,
        "truncated": counts.truncated,
    })
}

pub(super) fn latency_json(latency: &Histogram<u64>) -> Value {
    json!({
        "p50": latency.value_at_quantile(0.5), "p99": latency.value_at_quantile(0.99),
        "p999": latency.value_at_quantile(0.999), "max": latency.max(),
    })
}

pub(super) fn run_json(run: &Run) -> Value {
    let mut row = counts_json(&run.counts);
    row["action"] = json!(run.action.name());
    row["at_us"] = json!(microseconds(run.begun));
    row["took_us"] = json!(run.ended.map(|ended| microseconds(ended.saturating_sub(run.begun))));
    row["worst_us"] = json!(run.worst_us);
    row["error"] = json!(run.error);
    row
}

pub(super) fn failure_json(ledger: &Ledger, failed: &FailedRequest) -> Value {
    let FailedRequest { result, due, begun, ended, kind, target, run, details } = failed;
    json!({
        "result": result, "client": kind.name(), "host": ledger.host(*target),
        "due_us": microseconds(*due), "begun_us": microseconds(*begun),
        "ended_us": microseconds(*ended),
        "connect_us": details.connecting.map(microseconds),
        "run": run, "action": run.map(|at| ledger.runs()[at].action.name()),
        "phase": details.phase.name(), "bytes_sent": details.sent,
        "bytes_received": details.received, "answered_before": details.served,
        "socket": details.said, "local_port": details.port,
    })
}

pub(super) fn action_name(booking: Booking) -> &'static str {
    match booking {
        Booking::Before => "(before)",
        Booking::Under(action) => action.name(),
        Booking::Several => "(several)",
    }
}

pub(super) fn percentiles(latency: &Histogram<u64>) -> String {
    let quantile = |quantile| time(latency.value_at_quantile(quantile));
    format!(
        "p50 {}, p99 {}, p99.9 {}, worst {}",
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        time(latency.max())
    )
}

/// `840 µs`, `1.2 ms`, `140 ms`, `1.25 s`.
pub(super) fn time(micros: u64) -> String {
    let (ms, s) = (micros as f64 / 1e3, micros as f64 / 1e6);
    match micros {
        0..1000 => format!("{micros} \u{b5}s"),
        1000..10_000 => format!("{ms:.1} ms"),
        10_000..1_000_000 => format!("{ms:.0} ms"),
        _ => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_their_unit() {
        for (micros, shown) in [
            (0, "0 \u{b5}s"),
            (999, "999 \u{b5}s"),
            (1_240, "1.2 ms"),
            (140_400, "140 ms"),
            (1_250_000, "1.25 s"),
        ] {
            assert_eq!(time(micros), shown);
        }
    }
}
