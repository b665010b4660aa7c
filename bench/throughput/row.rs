//! What was measured of one server: windows, and the row of a case that they make.

use crate::kind::Kind;

/// The measurement of one window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// CPU time of the server per request, microseconds.
    pub(crate) cpu_us: f64,
    /// CPU time of the load per request, microseconds.
    pub(crate) load_cpu_us: f64,
    pub(crate) requests_per_second: f64,
    /// Share of the window the server was on its cores, 0 to 1.
    pub(crate) busy: f64,
    /// Whether the host took a core away.
    pub(crate) stolen: bool,
    /// Whether no core was taken away, and the server was saturated. At a fixed rate, the load must
    /// have been in time instead; several loops need not be saturated.
    pub(crate) quiet: bool,
    /// The latency, in cases at a fixed rate.
    pub(crate) latency: Option<Latency>,
}

/// Percentiles of one slice, microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// From when a request was due until its answer was in: p50, p99, p99.9.
    pub(crate) us: [f64; 3],
    /// How late the load sent requests, p99.9.
    pub(crate) late_us: f64,
}

/// The result of one server in one case.
pub(crate) enum Outcome {
    Measured {
        answer_bytes: usize,
        samples: Vec<Sample>,
    },
    /// Not measured, and why.
    Missing(String),
}

/// One line of a case's table.
pub(crate) struct Row {
    pub(crate) kind: Kind,
    /// Bytes per idle connection, in cases about idle connections.
    pub(crate) memory: Option<f64>,
    pub(crate) outcome: Outcome,
}

impl Row {
    pub(crate) fn samples(&self) -> &[Sample] {
        match &self.outcome {
            Outcome::Measured { samples, .. } => samples,
            Outcome::Missing(_) => &[],
        }
    }

    /// One figure of the quiet rounds, or of all rounds if none was quiet.
    pub(crate) fn column(&self, value: impl Fn(&Sample) -> f64) -> Vec<f64> {
        let all = self.quiet() == 0;
        self.samples().iter().filter(|sample| all || sample.quiet).map(value).collect()
    }

    /// The median of one figure of the latency; `NaN` if none was measured.
    pub(crate) fn latency(&self, value: impl Fn(&Latency) -> f64) -> f64 {
        median(self.column(|sample| sample.latency.as_ref().map_or(f64::NAN, &value)))
    }

    pub(crate) fn is_latency(&self) -> bool {
        self.samples().iter().any(|sample| sample.latency.is_some())
    }

    pub(crate) fn quiet_of_all(&self) -> String {
        format!("{} of {}", self.quiet(), self.samples().len())
    }

    pub(crate) fn quiet(&self) -> usize {
        self.samples().iter().filter(|sample| sample.quiet).count()
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}
