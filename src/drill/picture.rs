//! Draws a drill: latency over time on a logarithmic scale, the actions below, losses as crosses.
//!
//! Pure: ledger in, SVG out.

use std::{fmt::Write as _, time::Duration};

use super::{handshakes::HandshakeGroup, ledger::Ledger, plan::Action, svg::Svg, timeline::Column};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 100.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 48.0;
const PLOT: f64 = 300.0;
const ROW: f64 = 18.0;

/// Losses and actions are drawn one by one; more would only overlap.
const MARKS_MAX: usize = 4000;

const LIGHT: &str = "\
.grid{stroke:#ddd;stroke-width:1}\
.line{fill:none;stroke-width:1.5;stroke-linejoin:round}\
.p50{stroke:#2b7a3d}.p99{stroke:#1f5fbf}.max{stroke:#b06000;stroke-width:1}\
.loss{stroke:#d0021b;stroke-width:2}\
.run{fill:#6a4fb3}.failed{fill:#d0021b}";

const DARK: &str = "\
.grid{stroke:#333a42}\
.p50{stroke:#6cc486}.p99{stroke:#78aaf5}.max{stroke:#e0a050}\
.loss{stroke:#ff5c6c}.run{fill:#a994e6}.failed{fill:#ff5c6c}";

/// Draws a drill.
pub(crate) fn draw(ledger: &Ledger, time: Duration) -> String {
    let columns: Vec<Column> = ledger.timeline().columns().collect();
    let scale = Scale::new(&columns, time);
    let kinds = kinds(ledger);
    let height = TOP + PLOT + 34.0 + ROW * kinds.len() as f64 + 12.0;
    let mut svg = Svg::new(WIDTH, height, LIGHT, DARK);
    head(&mut svg, ledger);
    grid(&mut svg, &scale);
    for (name, value) in [
        ("max", (|column| column.max_us) as fn(&Column) -> u64),
        ("p99", |column| column.p99_us),
        ("p50", |column| column.median_us),
    ] {
        let path = path(&columns, ledger.timeline().width(), &scale, value);
        svg.path(&format!("line {name}"), &path);
    }
    for at in ledger.timeline().losses() {
        let x = scale.x(*at);
        let (left, right) = (x - 4.0, x + 4.0);
        let (top, bottom) = (TOP + 2.0, TOP + 10.0);
        let cross =
            format!("M{left:.1} {top}L{right:.1} {bottom}M{left:.1} {bottom}L{right:.1} {top}");
        svg.path("loss", &cross);
    }
    rows(&mut svg, ledger, &kinds, &scale);
    svg.finish()
}

/// A line through the columns, with gaps where nothing was answered.
fn path(columns: &[Column], width: Duration, scale: &Scale, value: fn(&Column) -> u64) -> String {
    let (mut path, mut next) = (String::new(), None);
    for column in columns {
        let command = if next == Some(column.at) { 'L' } else { 'M' };
        let (x, y) = (scale.x(column.at), scale.y(value(column)));
        let _ = write!(path, "{command}{x:.1} {y:.1}h.5");
        next = Some(column.at + width);
    }
    path
}

/// Maps times and latencies to coordinates.
struct Scale {
    seconds: f64,
    /// Powers of ten, in microseconds.
    decades: std::ops::RangeInclusive<u32>,
}

impl Scale {
    fn new(columns: &[Column], time: Duration) -> Self {
        let power = |value: u64| value.max(1).ilog10();
        let least = columns.iter().map(|column| power(column.median_us)).min().unwrap_or(1);
        let most = columns.iter().map(|column| power(column.max_us) + 1).max().unwrap_or(4);
        Self { seconds: time.as_secs_f64().max(0.001), decades: least..=most.max(least + 1) }
    }

    /// Seconds between vertical grid lines.
    fn step(&self) -> f64 {
        let steps = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0];
        let step = steps.into_iter().find(|step| self.seconds / step <= 12.0);
        step.unwrap_or(self.seconds / 10.0)
    }

    fn x(&self, at: Duration) -> f64 {
        LEFT + (at.as_secs_f64() / self.seconds).min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, micros: u64) -> f64 {
        let (least, most) = (f64::from(*self.decades.start()), f64::from(*self.decades.end()));
        let power = (micros.max(1) as f64).log10().clamp(least, most);
        TOP + PLOT * (most - power) / (most - least)
    }
}

/// The kinds of actions that ran, in order.
fn kinds(ledger: &Ledger) -> Vec<Action> {
    let mut kinds: Vec<Action> = ledger.runs().iter().map(|run| run.action).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

fn head(svg: &mut Svg, ledger: &Ledger) {
    let counts = ledger.all().counts;
    let text = format!(
        "{} requests, {} actions: {} lost, {} truncated, {} refused, {} not accepted",
        counts.sent,
        ledger.runs().len(),
        counts.lost,
        counts.truncated,
        counts.refused,
        counts.not_accepted
    );
    svg.heading(LEFT, 20.0, &text);
    for (at, (name, label)) in
        [("p50", "median"), ("p99", "99th percentile"), ("max", "maximum")].iter().enumerate()
    {
        let x = LEFT + 130.0 * at as f64;
        svg.path(&format!("line {name}"), &format!("M{x} 34h20"));
        svg.text(x + 26.0, 38.0, "start", label);
    }
    let HandshakeGroup { full, resumed, failed, .. } = ledger.handshakes().all();
    if full + resumed + failed > 0 {
        let text = format!("handshakes: {full} full, {resumed} resumed, {failed} failed");
        svg.text(WIDTH - RIGHT, 38.0, "end", &text);
    }
}

fn grid(svg: &mut Svg, scale: &Scale) {
    let (right, label) = (WIDTH - RIGHT, LEFT - 8.0);
    for decade in scale.decades.clone() {
        let micros = 10_u64.saturating_pow(decade);
        let y = scale.y(micros);
        let name = match decade {
            0..3 => format!("{micros} \u{b5}s"),
            3..6 => format!("{} ms", micros / 1000),
            _ => format!("{} s", micros / 1_000_000),
        };
        svg.path("grid", &format!("M{LEFT} {y:.1}H{right}"));
        svg.text(label, y + 4.0, "end", &name);
    }
    let (foot, label) = (TOP + PLOT, TOP + PLOT + 16.0);
    let step = scale.step();
    let digits = usize::from(step < 1.0);
    for tick in 0..=(scale.seconds / step) as u32 {
        let seconds = f64::from(tick) * step;
        let x = scale.x(Duration::from_secs_f64(seconds));
        svg.path("grid", &format!("M{x:.1} {TOP}V{foot}"));
        svg.text(x, label, "middle", &format!("{seconds:.digits$} s"));
    }
}

/// The actions, one row per kind.
fn rows(svg: &mut Svg, ledger: &Ledger, kinds: &[Action], scale: &Scale) {
    for (row, kind) in kinds.iter().enumerate() {
        let y = TOP + PLOT + 30.0 + ROW * row as f64;
        let of_kind = ledger.runs().iter().filter(|run| run.action == *kind);
        for run in of_kind.take(MARKS_MAX) {
            let x = scale.x(run.begun);
            let width = (scale.x(run.ended.unwrap_or(run.begun)) - x).max(1.0);
            let class = if run.error.is_some() { "run failed" } else { "run" };
            svg.rectangle(class, x, y, width, 8.0);
        }
        svg.text(LEFT - 8.0, y + 8.0, "end", kind.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{
        outcome::{EndedRequest, FailureDetails, RequestOutcome, RequestPhase},
        plan::{ClientKind, Target},
    };

    const MS: Duration = Duration::from_millis(1);

    fn drilled() -> Ledger {
        let target = Target {
            host: "a.test".to_owned(),
            path: "/".to_owned(),
            is_large: false,
            delay: Duration::ZERO,
        };
        let mut ledger = Ledger::new(vec![target], 100 * MS);
        let story = FailureDetails {
            phase: RequestPhase::Waiting,
            sent: 1,
            received: 0,
            served: 0,
            connecting: None,
            said: "<reset>".to_owned(),
            port: 1,
        };
        for at in 0..1000_u32 {
            if at % 100 == 50 {
                ledger.begin(Action::Reload, at * MS);
                ledger.end((at + 5) * MS, (at == 950).then(|| "why".to_owned()));
            }
            let outcome = match at {
                500 => RequestOutcome::Lost(story.clone()),
                _ => RequestOutcome::Answered(200),
            };
            let (due, ended) = (at * MS, at * MS + MS / 4 * (at % 7 + 1));
            let (kind, target, pause) = (ClientKind::Kept, 0, Duration::ZERO);
            ledger.send(kind, Duration::ZERO);
            ledger.record(EndedRequest { due, begun: due, ended, pause, kind, target, outcome });
        }
        ledger
    }

    #[test]
    fn the_picture_shows_actions_and_losses() {
        let svg = draw(&drilled(), 1000 * MS);
        assert!(svg.contains(">1000 requests, 10 actions: 1 lost, 0 truncated"), "{svg}");
        assert_eq!(svg.matches("<path class=\"line p99\" d=\"M100.0 ").count(), 1, "{svg}");
        assert_eq!(svg.matches("class=\"loss\"").count(), 1);
        assert_eq!(svg.matches("class=\"run\"").count(), 9);
        assert_eq!(svg.matches("class=\"run failed\"").count(), 1);
        assert!(svg.contains(">reload</text>"), "{svg}");
        assert!(!svg.contains("http") || svg.matches("http").count() == 1, "the name space alone");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn a_line_has_a_gap_where_nothing_was_answered() {
        let column = |at| Column { at: at * MS, median_us: 10, p99_us: 100, max_us: 1000 };
        let columns = [column(0), column(100), column(300)];
        let scale = Scale::new(&columns, 400 * MS);
        let drawn = path(&columns, 100 * MS, &scale, |column| column.p99_us);
        assert_eq!(drawn.replace(|char: char| !"ML".contains(char), ""), "MLM", "{drawn}");
    }

    #[test]
    fn an_empty_drill_can_be_drawn() {
        let svg = draw(&Ledger::new(Vec::new(), 100 * MS), Duration::ZERO);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
