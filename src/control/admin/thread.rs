//! The admin thread: it answers the requests that the admin app passes on, and waits for none.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{
    super::{
        Deploys, Input, LifeView, LiveList, Notices, Predecessor, Reloads, Report, TaskSender, ask,
    },
    AdminRequest,
    answers::{SERVER, refused},
};
use crate::{
    app::Later,
    duration::nanoseconds,
    hosted::Apps,
    http::Response,
    logging::{Logging, event},
    message::LoopHandle,
    metrics::LoopGauges,
};

/// What does not change while the server runs.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) started: Instant,
    /// The config file, if there is one.
    pub(crate) config: Option<PathBuf>,
}

impl Facts {
    /// Nanoseconds of the server's epoch, as the loops count.
    pub(super) fn now_ns(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }
}

/// The state of the admin thread.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) registry: Arc<Apps>,
    pub(crate) control: Sender<Input>,
    pub(crate) tasks: TaskSender,
    pub(crate) loops: Vec<LoopHandle>,
    pub(crate) gauges: Vec<Arc<LoopGauges>>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) reloads: Arc<Reloads>,
    pub(crate) certificates: Arc<LiveList>,
    pub(crate) deploys: Arc<Deploys>,
    pub(crate) logging: Option<Logging>,
    pub(crate) facts: Facts,
    /// The process before this one, if an upgrade has started this one.
    pub(crate) predecessor: Option<Arc<Predecessor>>,
}

/// Between two signs of life on a stream of events.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

impl Admin {
    /// Answers until no sender of requests is left.
    pub(crate) fn run(&self, requests: &Receiver<(AdminRequest, Later)>) {
        let mut keep_alive = Instant::now() + KEEP_ALIVE;
        loop {
            match requests.recv_deadline(keep_alive) {
                Ok((request, later)) => {
                    // A bug in one answer is that request's 500: its `Later` is dropped.
                    let answer = AssertUnwindSafe(|| self.answer(&request, later));
                    if catch_unwind(answer).is_err() {
                        event!(Error, "admin_panicked");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.notices.keep_alive();
                    keep_alive = Instant::now() + KEEP_ALIVE;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    pub(super) fn lives(&self) -> Result<Vec<LifeView>, Response<'static>> {
        ask(&self.control, Input::Lives).map_err(|reason| refused(SERVER, &reason))
    }

    pub(super) fn report(&self) -> Result<Report, Response<'static>> {
        ask(&self.control, Input::Report).map_err(|reason| refused(SERVER, &reason))
    }
}
