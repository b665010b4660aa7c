//! `tidegate reload`: makes the server read its config again.

use clap::Args;

use super::{
    DONE, FAILED, Place, admin::ServerOptions, answers::ReloadAnswer, failure::Failure, show,
    wait::finish_all,
};

#[derive(Debug, Args)]
pub(super) struct Reload {
    /// Wait until the old apps have answered all their requests
    #[arg(long)]
    wait: bool,

    /// Report what a reload would do, and change nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,

    /// Reload even if no app or no address would be left
    #[arg(long)]
    allow_empty: bool,

    #[command(flatten)]
    server: ServerOptions,
}

impl Reload {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let options = [("dry_run=true", self.dry_run), ("allow_empty=true", self.allow_empty)];
        let options: Vec<_> =
            options.into_iter().filter_map(|(option, is_set)| is_set.then_some(option)).collect();
        let path = format!("/reload?{}", options.join("&"));
        let answer = admin.post(path.trim_end_matches('?'))?;
        admin.print(&answer, summary)?;
        let code = if failures(&answer.value).is_empty() { DONE } else { FAILED };
        let drains = &answer.value.drains;
        let waited = if self.wait { finish_all(&mut admin, drains)? } else { DONE };
        Ok(code.max(waited))
    }
}

fn summary(answer: &ReloadAnswer) -> String {
    let ReloadAnswer { added, changed, removed, listeners, .. } = answer;
    let failures = failures(answer);
    let done = if answer.dry_run { "a reload would do this" } else { "reloaded" };
    let mut text = format!(
        "{done}: {} added, {} changed, {} removed, {} unchanged, {} failed\n",
        added.len(),
        changed.len(),
        removed.len(),
        answer.unchanged,
        failures.len()
    );
    let lists = [
        ("added", added),
        ("changed", changed),
        ("removed", removed),
        ("listening on", &listeners.added),
        ("no longer listening on", &listeners.removed),
        ("set", &answer.settings),
        ("needs a restart", &answer.needs_restart),
    ];
    for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        text += &show::clean(&format!("  {name}: {}", list.join(", ")));
        text.push('\n');
    }
    for failure in failures {
        text += &show::clean(&format!("  failed: {failure}"));
        text.push('\n');
    }
    text
}

/// What failed and why: apps, addresses, certificates, logs.
fn failures(answer: &ReloadAnswer) -> Vec<String> {
    let ReloadAnswer { failed, listeners, certificate_errors, log_errors, .. } = answer;
    let apps = failed.iter().map(|app| format!("{}: {}", app.host, app.error));
    let addresses = listeners.failed.iter();
    let addresses = addresses.map(|failed| format!("{}: {}", failed.address, failed.error));
    let others = certificate_errors.iter().chain(log_errors);
    apps.chain(addresses).chain(others.cloned()).collect()
}
