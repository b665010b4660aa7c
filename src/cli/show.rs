//! Output for people: tables, pairs, durations and colour.
//!
//! Colour is used only on terminals, and not with `NO_COLOR`. Text from elsewhere is cleaned of
//! control and invisible characters. A closed standard output is not an error.

use std::{
    fmt::Write as _,
    io::{self, ErrorKind, IsTerminal, Write as _},
};

use anstyle::{AnsiColor, Style};

use super::failure::Failure;
use crate::logging::is_deceptive;

/// The width if the terminal doesn't report one.
const COLUMNS: usize = 80;

/// Texts in tables are never shortened below this width.
const TEXT_MIN: usize = 10;

/// Whether standard output is still being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    Gone,
}

/// Writes text to standard output.
pub(super) fn print(text: &str) -> Result<Reader, Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::Output(error)),
    }
}

/// Writes a line to standard output.
pub(super) fn print_line(text: &str) -> Result<Reader, Failure> {
    print(&format!("{text}\n"))
}

/// Writes text to standard error, in one write so that other lines can't interleave.
pub(super) fn note(text: &str) {
    // There is nowhere left to report this failure.
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// The text without control characters, which a terminal may obey, and without characters that are
/// invisible or change how others are displayed.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for char in text.chars() {
        if is_deceptive(char) { clean.extend(char.escape_default()) } else { clean.push(char) }
    }
    clean
}

/// Like [`clean`], for a text of several lines.
pub(super) fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// A table cell.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    fn padding(&self, width: usize) -> String {
        " ".repeat(width.saturating_sub(self.width()))
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn styled(&self) -> String {
        let Self { text, style } = self;
        format!("{style}{text}{style:#}")
    }
}

/// A cell without colour.
pub(super) fn plain(text: impl AsRef<str>) -> Cell {
    Cell { text: clean(text.as_ref()), style: Style::new() }
}

/// A number.
pub(super) fn number(value: u64) -> Cell {
    plain(value.to_string())
}

/// A state or kind in its colour.
pub(super) fn state(name: &str) -> Cell {
    let color = match name {
        "serving" | "ok" | "up" => Some(AnsiColor::Green),
        "draining" | "stopping" => Some(AnsiColor::Yellow),
        "unavailable" | "down" | "ejected" | "expired" => Some(AnsiColor::Red),
        _ => None,
    };
    Cell { style: Style::new().fg_color(color.map(Into::into)), ..plain(name) }
}

/// A column's alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A column's title and alignment.
pub(super) type Column = (&'static str, Align);

/// The width of the terminal, if standard output is one.
fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
    Some(if columns == 0 { COLUMNS } else { columns.into() })
}

/// Lays out a table under its titles, with two spaces between columns. A table that is wider than
/// the terminal loses its empty columns, then the ends of its longest texts.
pub(super) fn table(columns: &[Column], rows: Vec<Vec<Cell>>) -> String {
    table_within(terminal_width().unwrap_or(usize::MAX), columns, rows)
}

fn table_within(most: usize, columns: &[Column], rows: Vec<Vec<Cell>>) -> String {
    let bold = Style::new().bold();
    let mut columns = columns.to_vec();
    let heads = columns.iter().map(|(head, _)| Cell { style: bold, ..plain(head) }).collect();
    let mut lines: Vec<Vec<Cell>> = [heads].into_iter().chain(rows).collect();
    while width_of(&lines) > most
        && lines.len() > 1
        && let Some(column) = (0..columns.len()).rev().find(|column| says_nothing(&lines, *column))
    {
        columns.remove(column);
        lines.iter_mut().for_each(|line| drop(line.remove(column)));
    }
    shorten(&mut lines, &columns, most);
    let widths = widths_of(&lines);
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&columns) {
            let (styled, padding) = (cell.styled(), cell.padding(*width));
            let _ = match align {
                Align::Left => write!(shown, "{styled}{padding}  "),
                Align::Right => write!(shown, "{padding}{styled}  "),
            };
        }
        text += shown.trim_end();
        text.push('\n');
    }
    text
}

fn widths_of(lines: &[Vec<Cell>]) -> Vec<usize> {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].width()).max().unwrap_or(0);
    (0..columns).map(width).collect()
}

fn width_of(lines: &[Vec<Cell>]) -> usize {
    let widths = widths_of(lines);
    widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
}

fn says_nothing(lines: &[Vec<Cell>], column: usize) -> bool {
    lines[1..].iter().all(|line| matches!(line[column].text.as_str(), "" | "0"))
}

/// Shortens the longest texts until the lines fit or no text is long.
fn shorten(lines: &mut [Vec<Cell>], columns: &[Column], most: usize) {
    while width_of(lines) > most {
        let widths = widths_of(lines);
        let texts = (0..columns.len()).filter(|column| columns[*column].1 == Align::Left);
        let longest = texts.max_by_key(|column| widths[*column]);
        let Some(column) = longest.filter(|column| widths[*column] > TEXT_MIN) else { return };
        let width = (widths[column] - 1).max(TEXT_MIN);
        for cell in lines.iter_mut().map(|line| &mut line[column]) {
            if cell.width() > width {
                cell.text = cell.text.chars().take(width - 1).chain(['\u{2026}']).collect();
            }
        }
    }
}

/// Lays out names and values, one pair per line.
pub(super) fn pairs(pairs: &[(&str, Cell)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let bold = Style::new().bold();
    let mut text = String::new();
    for (name, value) in pairs {
        let name = Cell { style: bold, ..plain(name) };
        let _ = writeln!(text, "{}{}  {}", name.styled(), name.padding(width), value.styled());
    }
    text
}

/// A number of things: `1 app`, `2 apps`; the plural ends in `s`, or `es` after an `s`.
pub(super) fn count(number: usize, thing: &str) -> String {
    let plural = match thing.ends_with('s') {
        _ if number == 1 => "",
        true => "es",
        false => "s",
    };
    format!("{number} {thing}{plural}")
}

/// A precise time: `340 ms`, `12.4 s`, longer times like [`coarse`].
pub(super) fn fine(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => coarse(ms),
    }
}

/// An approximate time: `340 ms`, `41 s`, `3 min 5 s`, `2 h 4 min`, `3 d 4 h`.
pub(super) fn coarse(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_with_fitting_precision() {
        let table = [
            (0, "0 ms", "0 ms"),
            (999, "999 ms", "999 ms"),
            (1_250, "1.2 s", "1 s"),
            (30_000, "30.0 s", "30 s"),
            (99_999, "99.9 s", "1 min 39 s"),
            (100_000, "1 min 40 s", "1 min 40 s"),
            (3_600_000, "1 h 0 min", "1 h 0 min"),
            (273_600_000, "3 d 4 h", "3 d 4 h"),
        ];
        for (ms, as_fine, as_coarse) in table {
            assert_eq!((fine(ms).as_str(), coarse(ms).as_str()), (as_fine, as_coarse));
        }
    }

    #[test]
    fn the_plural_starts_at_two() {
        let counts = [count(0, "app"), count(1, "app"), count(1, "address"), count(2, "address")];
        assert_eq!(counts, ["0 apps", "1 app", "1 address", "2 addresses"]);
    }

    #[test]
    fn tables_are_aligned_and_end_without_spaces() {
        let columns = [("HOST", Align::Left), ("ACTIVE", Align::Right), ("NOTE", Align::Left)];
        let rows = vec![
            vec![plain("a.test"), number(7), plain("")],
            vec![plain("b"), number(12_345_678), plain("x\u{1b}[2J\n")],
        ];
        let text = anstream::adapter::strip_str(&table(&columns, rows)).to_string();
        let expected =
            "HOST      ACTIVE  NOTE\na.test         7\nb       12345678  x\\u{1b}[2J\\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_table_that_is_too_wide_loses_its_empty_columns_first() {
        let columns = [
            ("HOST", Align::Left),
            ("ACTIVE", Align::Right),
            ("REFUSED", Align::Right),
            ("NOTE", Align::Left),
        ];
        let long = "connect: Connection refused";
        let rows = || {
            vec![
                vec![plain("a.test"), number(7), number(0), plain(long)],
                vec![plain("b"), number(1), number(0), plain("")],
            ]
        };
        let shown = |most| {
            let text = table_within(most, &columns, rows());
            anstream::adapter::strip_str(&text).to_string()
        };
        assert!(shown(usize::MAX).starts_with("HOST    ACTIVE  REFUSED  NOTE\na.test       7"));
        let text = shown(45);
        assert!(text.starts_with("HOST    ACTIVE  NOTE\n") && text.contains(long), "{text}");
        let text = shown(30);
        assert!(text.contains("a.test       7  connect: Conn\u{2026}\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 30), "{text}");
    }

    #[test]
    fn pairs_are_aligned() {
        let text = pairs(&[("pid", number(1)), ("last reload", state("ok"))]);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(text, "pid          1\nlast reload  ok\n");
    }
}
