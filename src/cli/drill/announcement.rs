//! What a drill will do, as text.

use std::time::Duration;

use crate::{
    cli::show,
    drill::{Action, ClientKind, LoadSettings, Target, Trust},
    duration::milliseconds,
};

/// More targets are only counted.
const TARGETS_SHOWN: usize = 10;

/// What is printed before the drill.
pub(super) struct Announcement<'a> {
    pub(super) settings: &'a LoadSettings,
    pub(super) trust: Option<&'a Trust>,
    pub(super) before: &'a [Result<u16, String>],
    pub(super) actions: &'a [Action],
    pub(super) count: usize,
    pub(super) least: Duration,
    pub(super) unknown_to_config: &'a [String],
}

impl Announcement<'_> {
    pub(super) fn text(&self) -> String {
        let LoadSettings { address, rate, seed, targets, kinds, .. } = self.settings;
        let least = show::coarse(milliseconds(self.least));
        let mut lines = vec![format!("drilling {address}: {rate} requests/s for at least {least}")];
        let asked = targets.iter().zip(self.before).take(TARGETS_SHOWN);
        lines.extend(asked.map(|(Target { host, path, .. }, status)| match status {
            Ok(status) => format!("  requests {host}{path}, which answers {status}"),
            Err(why) => format!("  requests {host}{path}, which does not answer: {why}"),
        }));
        if targets.len() > TARGETS_SHOWN {
            lines.push(format!("  and {} more", targets.len() - TARGETS_SHOWN));
        }
        if let Some(trust) = self.trust {
            lines.push(format!("  TLS; certificates are checked against {trust}"));
        }
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let no_post =
            if kinds.contains(&ClientKind::Post) { "" } else { "; no POST without --post" };
        lines.push(format!("  clients: {}{no_post}", names.join(", ")));
        let times = |action: &Action| format!("{} \u{d7} {}", self.count, action.name());
        let actions: Vec<String> = self.actions.iter().map(times).collect();
        lines.push(format!("  actions: {}", actions.join(", ")));
        if self.actions.contains(&Action::Reload) && !self.unknown_to_config.is_empty() {
            lines.push(format!(
                "  a reload removes apps that commands made, or resets them: {}",
                self.unknown_to_config.join(", ")
            ));
        }
        lines.push(format!("  --seed {seed} repeats this drill; ^C ends it early\n"));
        lines.iter().map(|line| show::clean(line.trim_end())).collect::<Vec<_>>().join("\n") + "\n"
    }
}
