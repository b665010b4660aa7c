//! The threads of the loops.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use crossbeam_channel::Sender;

use crate::{
    control::{Input, LoopReport},
    event_loop::{DeadLoop, EventLoop},
    message::{ControlEvent, LoopCommand, LoopHandle},
};

/// Starts a thread for each loop; all or none.
pub(super) fn spawn_loops(
    loops: Vec<EventLoop>,
    handles: &[LoopHandle],
    inputs: &Sender<Input>,
) -> io::Result<()> {
    for (index, event_loop) in loops.into_iter().enumerate() {
        let inputs = inputs.clone();
        let thread = thread::Builder::new().name(format!("loop-{index}"));
        if let Err(error) = thread.spawn(move || run_loop(index, event_loop, &inputs)) {
            for handle in handles {
                handle.send(LoopCommand::CutAll)?;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// A loop's thread: its death reaches control, and before that what it leaves behind.
fn run_loop(index: usize, event_loop: EventLoop, inputs: &Sender<Input>) {
    let run = AssertUnwindSafe(|| event_loop.run());
    let ran = catch_unwind(run).unwrap_or_else(|panic| Err(DeadLoop::panicked(&*panic)));
    if let Err(DeadLoop { error, cut, listeners }) = ran {
        drop(inputs.send(Input::Orphaned(listeners)));
        let event = ControlEvent::Died { error, cut };
        drop(inputs.send(Input::Loop(LoopReport { index, event })));
    }
}
