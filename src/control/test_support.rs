//! A control without a thread, and loops that only take commands.

use std::{net::TcpListener, sync::Arc, time::Instant};

use crossbeam_channel::Receiver;
use mio::{Poll, Token, Waker};

use super::{Control, Input, LoopReport, LoopThreads, watchdog::LoopWatch};
use crate::{
    app::Unavailable,
    config::ServerConfig,
    hosted::{HostedApp, Origin},
    message::{ControlEvent, ListenGroup, LoopCommand, LoopHandle, PublicSocket},
    registry::{AppRegistry, NewApp},
};

/// A control thread's state with two loops, and their commands.
pub(super) fn control() -> (Control, Receiver<LoopCommand>) {
    let registry = Arc::new(AppRegistry::new(2, None));
    let (notices, config) = (Arc::default(), ServerConfig::default());
    let (mut control, _) = Control::new(registry, notices, Instant::now(), &config, Arc::default());
    let poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
    let (sender, commands) = crossbeam_channel::unbounded();
    let handles = vec![LoopHandle::new(sender, waker); 2];
    control.cx.loops = Box::new(LoopThreads { handles, gauges: vec![Arc::default(); 2] });
    control.watch = LoopWatch::begin(2);
    (control, commands)
}

/// An app that answers 503.
pub(super) fn app(host: &str, origin: Origin) -> NewApp<HostedApp> {
    let app = HostedApp::new(Arc::new(Unavailable), origin, 2);
    NewApp { host: host.to_owned(), aliases: Vec::new(), app }
}

pub(super) fn report(index: usize, event: ControlEvent) -> Input {
    Input::Loop(LoopReport { index, event })
}

pub(super) fn listener() -> PublicSocket {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (socket, options) = (Arc::new(socket.into()), Arc::default());
    let group = Arc::new(ListenGroup { size: 1, ..ListenGroup::default() });
    PublicSocket { address, socket, is_kept: false, group, options }
}
