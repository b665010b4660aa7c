//! The report: a table and charts for people, JSON for programs.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::case::Case;
use crate::chart;
use crate::kind::Kind;
use crate::layout::Layout;
use crate::options::Options;
use crate::row::{Outcome, Row, Sample, median};

/// All that was measured.
pub(crate) struct Report {
    machine: String,
    setting: String,
    cases: Vec<(&'static str, &'static str, Kind, Vec<Row>)>,
}

impl Report {
    pub(crate) fn new(machine: String, layout: &Layout, options: &Options) -> Report {
        let (rounds, seconds) = (options.rounds, options.seconds);
        let (server, others) = (layout.server, &layout.load);
        let load = options.load_cores.map_or("as the case says".to_owned(), |n| n.to_string());
        let setting = format!(
            "one loop on core {server}, load on the first of cores {others:?} (how many: {load}), \
             medians of {rounds} interleaved rounds of {seconds} s"
        );
        Report { machine, setting, cases: Vec::new() }
    }

    pub(crate) fn add(&mut self, case: &Case, rows: Vec<Row>) {
        self.cases.push((case.name, case.title, case.base, rows));
    }

    pub(crate) fn to_markdown(&self) -> String {
        let mut text = format!("{}; {}\n", self.machine, self.setting);
        for (name, title, base, rows) in &self.cases {
            let _ = write!(text, "\n**{title}** (`{name}`)\n\n");
            text += &if rows.iter().any(Row::is_latency) {
                latency_table(rows)
            } else {
                cpu_table(*base, rows)
            };
            text += &memory_line(rows);
        }
        text
    }

    /// A chart for each case, named after it.
    pub(crate) fn write_charts(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, title, _, rows) in &self.cases {
            fs::write(folder.join(format!("{name}.svg")), chart::draw(title, rows))?;
        }
        Ok(())
    }

    pub(crate) fn to_json(&self) -> String {
        let cases: Vec<Value> = self
            .cases
            .iter()
            .map(|(name, title, base, rows)| {
                let samples = base_samples(*base, rows);
                let servers: Vec<Value> = rows.iter().map(|row| object(row, samples)).collect();
                json!({ "case": name, "title": title, "base": base.name(), "servers": servers })
            })
            .collect();
        let report = json!({ "machine": self.machine, "setting": self.setting, "cases": cases });
        format!("{report:#}\n")
    }
}

fn base_samples(base: Kind, rows: &[Row]) -> &[Sample] {
    rows.iter().find(|row| row.kind == base).map_or(&[], Row::samples)
}

/// The memory of an idle connection of each server, if it was measured.
fn memory_line(rows: &[Row]) -> String {
    let each = rows
        .iter()
        .filter_map(|row| row.memory.map(|bytes| format!("{} {bytes:.0}", row.kind.name())));
    match each.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => none,
        each => format!("\nResident bytes per idle connection: {each}.\n"),
    }
}

fn cpu_table(base: Kind, rows: &[Row]) -> String {
    let base_name = base.name();
    let head = format!(
        "| server | CPU µs/request | lowest - highest | ratio to {base_name} \
         | requests/s | server core busy | quiet rounds | load's CPU µs/request \
         | answer bytes |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    let base = base_samples(base, rows);
    head + &rows.iter().map(|row| line(row, base)).collect::<String>()
}

fn latency_table(rows: &[Row]) -> String {
    let head = "| server | p50 µs | p99 µs | p99.9 µs | CPU µs/request | requests/s \
                | server core busy | quiet slices | sent late, p99.9 µs | answer bytes |\n\
                |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    head.to_owned() + &rows.iter().map(latency_line).collect::<String>()
}

fn latency_line(row: &Row) -> String {
    let name = row.kind.name();
    let bytes = match &row.outcome {
        Outcome::Measured { answer_bytes, .. } => answer_bytes,
        Outcome::Missing(reason) => return format!("| {name} | {reason} | | | | | | | | |\n"),
    };
    let [p50, p99, p999] = [0, 1, 2].map(|at| row.latency(|latency| latency.us[at]));
    let late = row.latency(|latency| latency.late_us);
    let cpu = median(row.column(|sample| sample.cpu_us));
    let rate = median(row.column(|sample| sample.requests_per_second));
    let busy = 100.0 * median(row.column(|sample| sample.busy));
    let slices = row.quiet_of_all();
    format!(
        "| {name} | {p50:.0} | {p99:.0} | {p999:.0} | {cpu:.3} | {rate:.0} | {busy:.0} % \
         | {slices} | {late:.0} | {bytes} |\n"
    )
}

fn line(row: &Row, base: &[Sample]) -> String {
    let name = row.kind.name();
    let bytes = match &row.outcome {
        Outcome::Measured { answer_bytes, .. } => answer_bytes,
        Outcome::Missing(reason) => return format!("| {name} | {reason} | | | | | | | |\n"),
    };
    let cpu = row.column(|sample| sample.cpu_us);
    let lowest = cpu.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = cpu.iter().copied().fold(0.0, f64::max);
    let ratio = ratio(row.samples(), base).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let rounds = row.quiet_of_all();
    let rate = median(row.column(|sample| sample.requests_per_second));
    let busy = 100.0 * median(row.column(|sample| sample.busy));
    let load = median(row.column(|sample| sample.load_cpu_us));
    let cpu = median(cpu);
    format!(
        "| {name} | {cpu:.3} | {lowest:.3} - {highest:.3} | {ratio} | {rate:.0} \
         | {busy:.0} % | {rounds} | {load:.3} | {bytes} |\n"
    )
}

fn object(row: &Row, base: &[Sample]) -> Value {
    let (bytes, samples) = match &row.outcome {
        Outcome::Measured { answer_bytes, samples } => (answer_bytes, samples),
        Outcome::Missing(reason) => {
            return json!({ "server": row.kind.name(), "missing": reason });
        }
    };
    let each: Vec<Value> = samples
        .iter()
        .map(|sample| {
            json!({
                "cpu_us": sample.cpu_us,
                "load_cpu_us": sample.load_cpu_us,
                "requests_per_second": sample.requests_per_second,
                "busy": sample.busy,
                "quiet": sample.quiet,
                "latency_us": sample.latency.map(|latency| latency.us),
                "sent_late_us": sample.latency.map(|latency| latency.late_us),
            })
        })
        .collect();
    let latency_us = [0, 1, 2].map(|at| row.latency(|latency| latency.us[at]));
    json!({
        "server": row.kind.name(),
        "answer_bytes": bytes,
        "memory_per_connection": row.memory,
        "cpu_us": median(row.column(|sample| sample.cpu_us)),
        "ratio": ratio(samples, base),
        "load_cpu_us": median(row.column(|sample| sample.load_cpu_us)),
        "requests_per_second": median(row.column(|sample| sample.requests_per_second)),
        "busy": median(row.column(|sample| sample.busy)),
        "latency_us": row.is_latency().then_some(latency_us),
        "samples": each,
    })
}

/// The median of the rounds' ratios, of the rounds that were quiet for both (of all, if none was):
/// what slows a round slows both sides of its ratio.
fn ratio(samples: &[Sample], base: &[Sample]) -> Option<f64> {
    if samples.is_empty() || samples.len() != base.len() {
        return None;
    }
    let pairs = || samples.iter().zip(base);
    let all = !pairs().any(|(own, base)| own.quiet && base.quiet);
    let quiet = pairs().filter(|(own, base)| all || own.quiet && base.quiet);
    Some(median(quiet.map(|(own, base)| own.cpu_us / base.cpu_us).collect()))
}
