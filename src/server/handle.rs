//! A way to a running server, for any thread.

use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::{
    app::App,
    control::{
        ChangeError, DrainApp, DrainTicket, Input, PassedStop, Predecessor, PutApp, PutMode,
        ReloadError, ReloadOptions, Reloaded, RemoveApp, ResumeApp, StopAsker, StopReceipt,
        StopRelay, StopRequest, StopSignals, Task, TaskSender, Tell, UpgradeOptions, ask,
    },
    hosted::{HostedApp, Origin},
    registry::{AppId, NewApp},
};

/// A way to a running server, for any thread. Calls wait for
/// [`HttpServer::run`](super::HttpServer::run) to take them up.
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) inputs: Sender<Input>,
    pub(super) tasks: TaskSender,
    pub(super) loops: usize,
    pub(super) predecessor: Option<Arc<Predecessor>>,
    pub(super) relay: StopRelay,
}

impl ServerHandle {
    /// Adds an app under a host name, lower case, or `*.` and a name. It is served at once, also
    /// while an app of that name that was removed is still draining.
    ///
    /// # Errors
    /// When an app serves the name, or the server has ended.
    pub fn add_app(&self, host: &str, app: impl App + 'static) -> Result<AppId, ChangeError> {
        let app = own_app(host, Arc::new(app), self.loops);
        ask(&self.inputs, |answer| {
            Input::Put(PutApp { app, mode: PutMode::Add, certificates: None, answer })
        })
        .map(|begun| begun.life.id())
    }

    /// Begins a new life of an app, from this one: new requests are for it, at once; those in
    /// flight finish on the old life. The ticket is the new life's name.
    ///
    /// # Errors
    /// When no app has this host, or the server has ended.
    pub fn replace_app(&self, host: &str, app: impl App + 'static) -> Result<AppId, ChangeError> {
        let app = own_app(host, Arc::new(app), self.loops);
        ask(&self.inputs, |answer| {
            Input::Put(PutApp { app, mode: PutMode::Replace, certificates: None, answer })
        })
        .map(|begun| begun.life.id())
    }

    /// Begins to remove an app, and returns: new requests get 503, those in flight finish, the
    /// app's deadline cuts what is left. The ticket reports the end.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed already.
    pub fn remove_app(&self, host: &str) -> Result<DrainTicket, ChangeError> {
        let host = host.to_owned();
        ask(&self.inputs, |answer| Input::Remove(RemoveApp { host, timeout: None, answer }))
    }

    /// Begins to drain an app that stays: new requests get 503 until it is resumed.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed.
    pub fn drain_app(&self, host: &str) -> Result<DrainTicket, ChangeError> {
        let host = host.to_owned();
        ask(&self.inputs, |answer| Input::Drain(DrainApp { host, timeout: None, answer }))
    }

    /// Has a drained app serve again, as a new life. A drain that is not over is cancelled.
    ///
    /// # Errors
    /// When there is no such app, or it was not drained.
    pub fn resume_app(&self, host: &str) -> Result<AppId, ChangeError> {
        let host = host.to_owned();
        ask(&self.inputs, |answer| Input::Resume(ResumeApp { host, app: None, answer }))
            .map(|life| life.id())
    }

    /// Reads the config file again, and changes what differs. It returns when the changes hold;
    /// old lives may drain still.
    ///
    /// # Errors
    /// When there is no file, it is wrong, or every app or address would go; then nothing changed.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        self.reload_with(ReloadOptions::default())
    }

    /// As [`ServerHandle::reload`], with these options.
    ///
    /// # Errors
    /// As there.
    pub fn reload_with(&self, options: ReloadOptions) -> Result<Reloaded, ReloadError> {
        let (sender, done) = crossbeam_channel::bounded(1);
        let tell = Tell::new(move |result| drop(sender.send(result)));
        self.tasks.send(Task::Reload(options, tell));
        done.recv().map_err(|_| ReloadError::Change(ChangeError::Ended))?
    }

    /// As [`ServerHandle::reload`], but returns at once; the log shows the outcome.
    pub fn begin_reload(&self) {
        // A server that has ended needs no reload.
        self.tasks.send(Task::Reload(ReloadOptions::default(), Tell::unheard()));
    }

    /// Has a new process take this one's place, and returns; the log shows the outcome.
    pub(crate) fn begin_upgrade(&self) {
        // A server that has ended needs no upgrade.
        self.tasks.send(Task::Upgrade(UpgradeOptions::default(), Tell::unheard()));
    }

    /// Begins to stop the server, and returns; a second call cuts what is in flight. `reason` is
    /// for the log. When an upgrade has handed the server over, it is the new process that stops.
    pub fn stop(&self, reason: &str) {
        self.pass_unread_on(reason);
    }

    /// The last act of a process whose server has ended: a signal to stop that no thread has been
    /// woken for is for the process that serves. Returns when that process has read it.
    ///
    /// To be called by the main thread ([`StopSignals`]). What comes later is lost, until the
    /// process is gone.
    pub(crate) fn pass_last_stop_on(&self, stops: &StopSignals) {
        // A stop that was passed on before is passed on twice: it is one stop.
        if let Some(receipt) = stops.any().and_then(|reason| self.pass_unread_on(reason)) {
            receipt.wait();
        }
    }

    /// Begins to stop the server. If control no longer reads, passes the stop to the process that
    /// serves, and returns what waits until that process has it.
    fn pass_unread_on(&self, reason: &str) -> Option<StopReceipt> {
        let (reason, by) = (reason.to_owned(), StopAsker::Signal);
        let request = StopRequest { reason: reason.clone(), timeout: None, by };
        if self.inputs.send(Input::Stop(request)).is_ok() && !self.relay.is_unread() {
            return None;
        }
        // This process has ended but for the ones around it. Passed on twice, it is one stop.
        let receipt = self.relay.pass_on(PassedStop { reason, cut: false });
        if let Some(before) = &self.predecessor {
            before.cut();
        }
        Some(receipt)
    }
}

/// An app of the program that embeds the server.
pub(super) fn own_app(host: &str, app: Arc<dyn App>, loops: usize) -> NewApp<HostedApp> {
    let app = HostedApp::new(app, Origin::Embedder, loops);
    NewApp { host: host.to_ascii_lowercase(), aliases: Vec::new(), app }
}
