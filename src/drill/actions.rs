//! Runs the actions one after the other while the load is on.
//!
//! Each action is marked before it begins and after it has ended. A reader that takes the marks
//! before an outcome therefore knows every action that can have caused it. An [`Actor`] knows how
//! to run an action; a shell command is one way.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::plan::Action;

/// How often a wait checks whether it is over.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The longest time that a command may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Runs actions against a server.
pub(crate) trait Actor: Send {
    /// Runs the action and waits until it is done. `turn` counts all actions.
    ///
    /// # Errors
    /// Why the action failed.
    fn act(&mut self, action: Action, turn: usize) -> Result<(), String>;
}

/// The beginning or end of an action. Times count from the drill's beginning.
#[derive(Debug)]
pub(super) enum Mark {
    Begin(Action, Duration),
    /// With the error if the action failed.
    End(Duration, Option<String>),
    /// All actions are done.
    Over,
}

/// When actions run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From the drill's beginning to the first action.
    pub(crate) lead: Duration,
    /// From one action's beginning to the next. An action that takes longer delays the next one.
    pub(crate) every: Duration,
}

/// Runs all actions, or stops when it is interrupted.
pub(super) fn act_all(
    actor: &mut dyn Actor,
    actions: &[Action],
    pace: Pace,
    epoch: Instant,
    marks: &Sender<Mark>,
    interrupted: &AtomicBool,
) {
    // If the load has failed, the marks have no reader; the run is interrupted then.
    let mark = |mark| drop(marks.send(mark));
    let mut next = pace.lead;
    for (turn, action) in actions.iter().enumerate() {
        while epoch.elapsed() < next && !interrupted.load(Ordering::Relaxed) {
            let left = next.saturating_sub(epoch.elapsed());
            thread::sleep(left.min(10 * LOOK_AGAIN));
        }
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let begun = epoch.elapsed();
        mark(Mark::Begin(*action, begun));
        let error = actor.act(*action, turn).err();
        mark(Mark::End(epoch.elapsed(), error));
        next = begun + pace.every;
    }
    // The last action gets as much time as the others.
    while epoch.elapsed() < next && !interrupted.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_sub(epoch.elapsed()).min(10 * LOOK_AGAIN));
    }
    mark(Mark::Over);
}

/// Runs a shell command as the action.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) command: Option<String>,
}

impl Actor for Shell {
    fn act(&mut self, action: Action, _: usize) -> Result<(), String> {
        match (action, &self.command) {
            (Action::Command, Some(command)) => run(command),
            (Action::Nothing, _) => Ok(()),
            _ => Err(format!("{} needs a Tidegate", action.name())),
        }
    }
}

fn run(command: &str) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = shell.spawn().map_err(|error| format!("sh: {error}"))?;
    // A process that the command leaves behind may hold the pipe, so a thread reads it without a
    // join.
    let said = child.stderr.take().map(|mut stderr| {
        let (sender, said) = crossbeam_channel::bounded(1);
        thread::spawn(move || {
            let mut text = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut buffer) {
                text.extend_from_slice(&buffer[..read]);
                if text.len() > 64 << 10 {
                    break;
                }
            }
            let _ = sender.send(text);
        });
        said
    });
    let status = wait(&mut child).map_err(|error| format!("`{command}` {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said = said.and_then(|said| said.recv_timeout(Duration::from_millis(200)).ok());
    let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
    let last = said.lines().last().unwrap_or_default();
    Err(format!("`{command}`: {status}: {last}"))
}

/// Waits for a child to end.
fn wait(child: &mut Child) -> Result<std::process::ExitStatus, String> {
    let deadline = Instant::now() + COMMAND_MAX;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK_AGAIN),
            Ok(None) => {
                // It may have ended in the meantime.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("has not ended within {} s", COMMAND_MAX.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_says_why() {
        let mut shell = Shell { command: Some("echo oops >&2; exit 3".to_owned()) };
        let error = shell.act(Action::Command, 0).unwrap_err();
        assert!(error.contains("exit status: 3: oops"), "{error}");
        assert!(shell.act(Action::Nothing, 0).is_ok());
        let error = shell.act(Action::Reload, 0).unwrap_err();
        assert_eq!(error, "reload needs a Tidegate");
        assert_eq!(Shell { command: Some("true".to_owned()) }.act(Action::Command, 0), Ok(()));
    }

    #[test]
    fn every_action_has_a_mark_before_and_after_it() {
        let (sender, marks) = crossbeam_channel::unbounded();
        let pace = Pace { lead: Duration::ZERO, every: Duration::from_millis(1) };
        let interrupted = AtomicBool::new(false);
        let actions = [Action::Nothing, Action::Reload];
        let mut shell = Shell { command: None };
        act_all(&mut shell, &actions, pace, Instant::now(), &sender, &interrupted);
        let seen: Vec<String> = marks
            .try_iter()
            .map(|mark| match mark {
                Mark::Begin(action, _) => format!("begin {}", action.name()),
                Mark::End(_, error) => format!("end {}", error.unwrap_or_default()),
                Mark::Over => "over".to_owned(),
            })
            .collect();
        let expected =
            ["begin nothing", "end ", "begin reload", "end reload needs a Tidegate", "over"];
        assert_eq!(seen, expected);
        interrupted.store(true, Ordering::Relaxed);
        act_all(&mut shell, &actions, pace, Instant::now(), &sender, &interrupted);
        assert!(matches!(marks.try_iter().collect::<Vec<_>>()[..], [Mark::Over]));
    }
}
