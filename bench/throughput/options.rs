//! The command line.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Parser, value_parser};

use crate::case::CASES;
use crate::kind::Kind;

/// CPU time per request of Tidegate, the floor and other servers, side by side.
#[derive(Debug, Parser)]
#[command(name = "throughput")]
pub(crate) struct Options {
    /// Measurements of each server in each case; the result is their median
    #[arg(long, default_value = "15", value_parser = count)]
    pub(crate) rounds: usize,
    /// Measured seconds of each round
    #[arg(long, default_value = "0.1", value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Requests per second in the cases of latency
    #[arg(long, default_value = "20000", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: u32,
    /// Cases to run [default: all]
    #[arg(long, value_delimiter = ',', value_parser = case_names())]
    only: Vec<String>,
    /// Servers to run [default: all that are installed]
    #[arg(long, value_delimiter = ',')]
    servers: Vec<Kind>,
    /// The core the servers run on [default: the last one]
    #[arg(long)]
    pub(crate) core: Option<usize>,
    /// How many cores make the load, at most [default: 1; 2 in the case `close`]
    #[arg(long, value_parser = count)]
    pub(crate) load_cores: Option<usize>,
    /// Print JSON with every sample instead of tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw a chart of each case in this folder, too
    #[arg(long)]
    pub(crate) svg: Option<PathBuf>,
    /// Count system calls per request with strace instead of time
    #[arg(long)]
    pub(crate) syscalls: bool,
    /// Count allocations and instructions per request of Tidegate with valgrind instead of time
    #[arg(long, conflicts_with = "syscalls")]
    pub(crate) allocations: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Whether events are counted, with a tool that slows the server.
    pub(crate) fn counts(&self) -> bool {
        self.syscalls || self.allocations
    }

    pub(crate) fn wants_case(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }

    pub(crate) fn wants(&self, kind: Kind) -> bool {
        self.servers.is_empty() || self.servers.contains(&kind.program())
    }
}

fn case_names() -> PossibleValuesParser {
    CASES.iter().map(|case| case.name).collect::<Vec<_>>().into()
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1000) => Ok(number),
        _ => Err("a number from 1 to 1000".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.02..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds from 0.02 to 60".to_owned()),
    }
}
