//! Draws a case as a chart: a bar for each server.
//!
//! Pure: rows of the report in, SVG out.

use crate::kind::Kind;
use crate::row::{Outcome, Row, median};
use crate::svg::Svg;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 150.0;
/// Room for the number behind the longest bar.
const RIGHT: f64 = 80.0;
const TOP: f64 = 56.0;
const BAR: f64 = 16.0;
const GAP: f64 = 10.0;
/// A whisker that is longer than this many times the longest bar ends at the edge.
const WHISKER_MAX: f64 = 1.25;

const LIGHT: &str = "\
.bar{fill:#9db4cc}.own{fill:#1f5fbf}.p99{opacity:.7}.p999{opacity:.45}\
.whisker{stroke:#333;stroke-width:1;fill:none}";

const DARK: &str = ".bar{fill:#4a5f77}.own{fill:#78aaf5}.whisker{stroke:#ccc}";

/// Draws the rows of a case.
pub(crate) fn draw(title: &str, rows: &[Row]) -> String {
    let latency = rows.iter().any(Row::is_latency);
    let servers: Vec<Server> = rows.iter().map(|row| Server::of(row, latency)).collect();
    let bars = || servers.iter().flat_map(|server| &server.bars);
    let longest = bars().map(|bar| bar.value).fold(0.0, f64::max);
    let reached = bars().map(|bar| bar.highest.min(longest * WHISKER_MAX)).fold(longest, f64::max);
    let pixels = (WIDTH - LEFT - RIGHT) / reached.max(f64::MIN_POSITIVE);
    let height = TOP + servers.iter().map(Server::height).sum::<f64>();
    let subtitle = if latency {
        "µs from when a request was due until its answer was read: p50, p99, p99.9 (medians)"
    } else {
        "CPU µs per request: median, lowest and highest round"
    };
    let mut svg = Svg::new(WIDTH, height, LIGHT, DARK);
    svg.heading(GAP, 22.0, title);
    svg.text(GAP, 40.0, "start", subtitle);
    let mut y = TOP;
    for server in &servers {
        server.draw(&mut svg, y, pixels);
        y += server.height();
    }
    svg.finish()
}

/// The bars of one server.
struct Server {
    name: String,
    /// Why there is no bar.
    missing: Option<String>,
    bars: Vec<Bar>,
}

struct Bar {
    class: &'static str,
    value: f64,
    lowest: f64,
    highest: f64,
}

impl Server {
    fn of(row: &Row, latency: bool) -> Server {
        let name = row.kind.name().to_owned();
        let (missing, bars) = match &row.outcome {
            Outcome::Missing(reason) => (Some(reason.clone()), Vec::new()),
            Outcome::Measured { .. } if latency => (None, latency_bars(row)),
            Outcome::Measured { .. } => (None, vec![cpu_bar(row)]),
        };
        Server { name, missing, bars }
    }

    fn height(&self) -> f64 {
        self.bars.len().max(1) as f64 * BAR + GAP
    }

    fn draw(&self, svg: &mut Svg, mut y: f64, pixels: f64) {
        let base = y + BAR - 4.0;
        svg.text(LEFT - GAP, base, "end", &self.name);
        if let Some(reason) = &self.missing {
            svg.text(LEFT, base, "start", reason);
        }
        for bar in &self.bars {
            bar.draw(svg, y, pixels);
            y += BAR;
        }
    }
}

impl Bar {
    fn draw(&self, svg: &mut Svg, y: f64, pixels: f64) {
        let Bar { class, value, lowest, highest } = *self;
        let x = |value: f64| (LEFT + value * pixels).min(WIDTH - RIGHT);
        let (begin, end) = (x(lowest), x(highest));
        let (middle, top, foot) = (y + BAR / 2.0, y + 4.0, y + BAR - 4.0);
        let (text, base) = (end.max(x(value)) + 6.0, y + BAR - 4.0);
        let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
        svg.rectangle(&format!("bar {class}"), LEFT, y, x(value) - LEFT, BAR - 2.0);
        svg.text(text, base, "start", &format!("{value:.digits$}"));
        if lowest < highest {
            let whisker = format!(
                "M{begin:.1} {top}V{foot}M{begin:.1} {middle}H{end:.1}M{end:.1} {top}V{foot}"
            );
            svg.path("whisker", &whisker);
        }
    }
}

fn cpu_bar(row: &Row) -> Bar {
    let cpu = row.column(|sample| sample.cpu_us);
    let lowest = cpu.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = cpu.iter().copied().fold(0.0, f64::max);
    let class = if row.kind.program() == Kind::Tidegate { "own" } else { "" };
    Bar { class, value: median(cpu), lowest, highest }
}

fn latency_bars(row: &Row) -> Vec<Bar> {
    let classes = match row.kind.program() {
        Kind::Tidegate => ["own", "own p99", "own p999"],
        _ => ["", "p99", "p999"],
    };
    let bar = |(at, class)| {
        let value = row.latency(|latency| latency.us[at]);
        Bar { class, value, lowest: value, highest: value }
    };
    classes.into_iter().enumerate().map(bar).collect()
}
