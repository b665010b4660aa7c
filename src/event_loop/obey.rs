//! Control's commands, obeyed at the end of a turn.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use crossbeam_channel::Sender;
use mio::Token;

use super::{
    closing::Ending,
    connection::{Connection, Next},
    context::LoopContext,
    exchange::Exchange,
    running::Running,
};
use crate::{
    duration::milliseconds,
    logging::event,
    message::{BusyConnection, Class, ControlEvent, LoopCommand, PublicSocket, StopRules},
    registry::AppId,
};

/// How long admin peers may take to read the answers they are owed at the end.
pub(super) const END_GRACE: Duration = Duration::from_secs(2);

impl Running {
    /// Obeys the commands that are here now, and that needn't wait: a stream of deliveries must not
    /// keep the loop from its sockets. A later send wakes the loop again.
    pub(super) fn obey(&mut self, is_caught_up: bool) {
        for _ in 0..self.commands.count() {
            let Some(command) = self.commands.next(is_caught_up) else { break };
            self.obey_one(command);
        }
    }

    fn obey_one(&mut self, command: LoopCommand) {
        match command {
            LoopCommand::Gate(rules) => self.gate(rules),
            LoopCommand::Give(sockets) => self.begin_hand_over(sockets),
            LoopCommand::Take(socket) => self.begin_taking_over(socket),
            LoopCommand::Finish => self.finish(),
            LoopCommand::Cut(life) => {
                self.cut_exchanges(|exchange| exchange.flight.life() == Some(life));
            }
            LoopCommand::WatchUpstream(drain, upstream) => {
                // Idle connections to it are of no more use.
                self.cx.upstreams.sweep(self.cx.clock.now_ms(), &mut self.cx.buffers);
                self.upstream_drains.watch(drain, upstream);
            }
            LoopCommand::CutUpstream(upstream) => {
                // The upstream may have been resumed meanwhile.
                self.cut_exchanges(|exchange| {
                    upstream.is_drained() && exchange.is_forwarded_to(&upstream)
                });
            }
            LoopCommand::CutAll => self.cut_all(),
            LoopCommand::End => self.end(),
            LoopCommand::LetGo(addresses, beside, _done) => {
                let is_named = |of: Option<_>| of.is_some_and(|of| addresses.contains(&of));
                let mut closed = self.acceptors[Class::Public].take(is_named);
                for class in beside {
                    closed.extend(self.acceptors[class].take(|_| true));
                }
                self.close_listeners(closed);
            }
            LoopCommand::TakeUp(sockets, beside) => self.take_up(sockets, beside),
            LoopCommand::Refresh => {
                self.cx.view.refresh();
                // Lives that have ended no longer use their upstreams.
                self.cx.upstreams.sweep(self.cx.clock.now_ms(), &mut self.cx.buffers);
            }
            LoopCommand::Listen(sockets) => self.listen(sockets),
            LoopCommand::ListenForAdmin(socket) => {
                if let Err(error) = self.add_side_listener(Class::Admin, socket) {
                    let index = self.cx.index;
                    event!(Error, "admin_not_listening", loop_index = index, error:% = error);
                }
            }
            LoopCommand::GateListeners(addresses) => {
                self.gate_listeners(|address| addresses.contains(&address));
                self.cx.reports.send(ControlEvent::ListenersGated(addresses));
            }
            LoopCommand::CloseListeners(addresses) => {
                self.acceptors[Class::Public].begin_closing(|address| addresses.contains(&address));
            }
            LoopCommand::Configure(config, _done) => {
                self.cx.configure(*config);
                self.each_connection(Connection::shorten_deadline);
            }
            LoopCommand::ListBusy(lives, reply) => self.list_busy(&lives, &reply),
            LoopCommand::CutConnection(token, reply) => {
                // The receiver may be gone; the connection is cut all the same.
                let _ = reply.send(self.cut_connection(token));
            }
            LoopCommand::Deliver(id, delivery) => {
                self.with_connection(id.connection, |connection, cx| {
                    connection.deliver(id.number, delivery, cx)
                });
            }
        }
    }

    pub(super) fn report_left_upstreams(&mut self) {
        let Self { upstream_drains, cx, .. } = self;
        upstream_drains.report_left(cx.index, |drain| {
            cx.reports.send(ControlEvent::UpstreamLeft(drain));
        });
    }

    fn gate(&mut self, rules: StopRules) {
        self.gate_listeners(|_| true);
        self.cx.closing.begin(rules, &self.cx.clock);
        self.each_connection(Connection::begin_closing);
        self.cx.reports.send(ControlEvent::Gated);
    }

    pub(super) fn finish(&mut self) {
        self.acceptors[Class::Public].begin_closing(|_| true);
        self.ending.begin();
    }

    /// The drain is cancelled.
    fn take_up(&mut self, sockets: Vec<PublicSocket>, beside: Vec<(Class, OwnedFd)>) {
        self.cx.closing.cancel();
        self.ending = Ending::default();
        self.listen(sockets);
        for (class, socket) in beside {
            if let Err(error) = self.add_side_listener(class, socket) {
                event!(Error, "listener_not_watched", address = class.name(), error:% = error);
            }
        }
        self.cx.reports.send(ControlEvent::TookUp);
    }

    fn cut_all(&mut self) {
        self.ending.cut += self.cut_public();
        let closed = self.acceptors[Class::Public].take(|_| true);
        self.close_listeners(closed);
        self.ending.begin();
    }

    /// The server ends. Public connections have ended by now, or are cut.
    fn end(&mut self) {
        self.cut_all();
        let beside = self.acceptors.iter_mut().flat_map(|(_, acceptor)| acceptor.take(|_| true));
        let closed = beside.collect();
        self.close_listeners(closed);
        self.ending.end_ms = Some(self.cx.clock.now_ms() + milliseconds(END_GRACE));
    }

    /// At the end, drops connections that are owed nothing.
    pub(super) fn drop_settled(&mut self) {
        for token in self.connections.tokens() {
            if self
                .connections
                .find(token)
                .is_some_and(|connection| connection.is_settled(&self.cx))
            {
                self.drop_connection(token);
            }
        }
    }

    /// Serves further addresses, also while a stop runs.
    fn listen(&mut self, sockets: Vec<PublicSocket>) {
        if self.ending.is_emptied() {
            return;
        }
        self.serve(sockets);
        if self.cx.closing.begun {
            self.gate_listeners(|_| true);
        }
        if self.ending.has_begun() {
            self.acceptors[Class::Public].begin_closing(|_| true);
        }
    }

    fn gate_listeners(&mut self, which: impl Fn(SocketAddr) -> bool) {
        let sinks = self.acceptors[Class::Public].gate(which);
        self.serve(sinks);
    }

    fn serve(&mut self, sockets: Vec<PublicSocket>) {
        for socket in sockets {
            let address = socket.address;
            if let Err(error) = self.add_public(socket) {
                event!(Error, "listener_not_watched", address:% = address, error:% = error);
            }
        }
    }

    fn list_busy(&mut self, lives: &Arc<[AppId]>, reply: &Sender<Vec<BusyConnection>>) {
        let mut busy = Vec::new();
        self.each_connection(|connection, cx| connection.list_busy(lives, cx, &mut busy));
        let _ = reply.send(busy);
    }

    fn each_connection(&mut self, mut work: impl FnMut(&mut Connection, &mut LoopContext)) {
        for token in self.connections.tokens() {
            self.with_connection(token, |connection, cx| {
                work(connection, cx);
                Next::Wait
            });
        }
    }

    /// Cuts the exchanges that match.
    fn cut_exchanges(&mut self, which: impl Fn(&Exchange) -> bool) {
        for token in self.connections.tokens() {
            self.with_connection(token, |connection, cx| connection.cut_exchanges(&which, cx));
        }
    }

    /// Cuts all public connections. Returns how many exchanges that cut.
    pub(super) fn cut_public(&mut self) -> u64 {
        let tokens = self.connections.tokens();
        tokens.into_iter().filter_map(|token| self.cut_connection(token)).sum()
    }

    /// Cuts a public connection, if it still exists. Returns how many exchanges that cut.
    fn cut_connection(&mut self, token: Token) -> Option<u64> {
        self.connections.find(token).filter(|found| found.class == Class::Public)?;
        let connection = self.connections.remove(token)?;
        self.end_pauses();
        Some(connection.cut(&mut self.cx))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        app::{App, ChosenUpstream, Context, OneUpstream, Peer, Proxy, Reply, test_support},
        config::{AppKind, Config},
        event_loop::{reports::Reports, test_support::running},
        message::UpstreamDrainId,
    };

    fn proxy() -> Proxy {
        let text = "[apps.a]\nproxy = { upstreams = ['http://127.0.0.1:9'] }";
        let mut config = Config::parse(text, Path::new("a.toml"), Path::new("/")).unwrap();
        let AppKind::Proxy(config) = config.apps.remove(0).kind else { panic!("not a proxy") };
        Proxy::open(*config, 1).unwrap()
    }

    fn choose(proxy: &Proxy) -> Option<ChosenUpstream> {
        let request = test_support::request("GET", "/", &[]);
        let context = Context { peer: Peer::Unix, ..test_support::context() };
        let Reply::Forward(forward) = proxy.handle(&request, &context) else {
            panic!("not forwarded")
        };
        forward.choose(0, &[]).ok()
    }

    #[test]
    fn a_loop_reports_once_that_it_left_an_upstream_and_chooses_it_no_more() {
        let mut running = running(Vec::new(), None);
        let (reports, reported) = crossbeam_channel::unbounded();
        running.cx.reports = Reports::new(Box::new(move |event| reports.send(event).unwrap()));
        let proxy = proxy();
        let upstream = OneUpstream::find(proxy.upstreams().unwrap(), "http://127.0.0.1:9").unwrap();
        let left = |number| ControlEvent::UpstreamLeft(UpstreamDrainId(number));
        let watch = |running: &mut Running, number| {
            running.upstream_drains.watch(UpstreamDrainId(number), upstream.clone());
            running.end_turn();
        };

        let (first, second) = (choose(&proxy), choose(&proxy));
        upstream.drain(1);
        watch(&mut running, 1);
        assert!(choose(&proxy).is_none());
        drop(first);
        running.end_turn();
        assert!(reported.is_empty(), "one exchange is left");
        drop(second);
        running.end_turn();
        running.end_turn();
        assert_eq!(reported.try_iter().collect::<Vec<_>>(), [left(1)]);

        // Without an exchange it is reported at once. A resumed upstream is no longer watched.
        watch(&mut running, 2);
        assert_eq!(reported.try_iter().collect::<Vec<_>>(), [left(2)]);
        upstream.resume(2);
        let busy = choose(&proxy);
        upstream.drain(3);
        watch(&mut running, 3);
        upstream.resume(4);
        running.end_turn();
        drop(busy);
        running.end_turn();
        assert!(running.upstream_drains.is_empty() && reported.is_empty());
    }
}
