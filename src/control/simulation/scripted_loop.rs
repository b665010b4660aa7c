//! A loop that obeys as `event_loop` does, when chance lets it, and holds exchanges that end when
//! chance wants it. Its counts are real: the registry's guards and the upstreams' holds.

use std::sync::Arc;

use super::board::Board;
use crate::{
    app::{ChosenUpstream, OneUpstream, Peer, Reply, test_support},
    hosted::{AppGuard, AppLife, Apps, HostedApp},
    message::{ControlEvent, LoopCommand, UpstreamDrainId},
    metrics::Turn,
    registry::{AppId, Refusal, RegistryView},
};

/// An exchange that was admitted.
pub(super) struct Flight {
    guard: AppGuard,
    chosen: Option<ChosenUpstream>,
}

impl Flight {
    pub(super) fn life(&self) -> AppId {
        self.guard.id()
    }

    /// Host of the app, and URL of the upstream that the exchange is with.
    pub(super) fn upstream(&self) -> Option<(&str, &str)> {
        let chosen = self.chosen.as_ref()?;
        Some((self.guard.entry().host(), chosen.endpoint().url()))
    }

    fn cut(self) {
        if let Some(chosen) = &self.chosen {
            chosen.count_cut();
        }
        drop(self.chosen);
        self.guard.cut();
    }
}

/// What the oracle has to know of a loop's obeying.
pub(super) enum Deed {
    /// An exchange was cut: by the drain of its life or upstream, or by the end of all.
    Cut { life: AppId, upstream: Option<(String, String)>, by_all: bool },
    /// All loops have to be gated now, if no deadline has passed.
    Finished,
}

/// What became of a request.
pub(super) enum Asked {
    Admitted { life: AppId, upstream: Option<String> },
    Draining(AppId),
    Unknown,
}

pub(super) struct ScriptedLoop {
    index: usize,
    view: RegistryView<HostedApp>,
    board: Board,
    pub(super) flights: Vec<Flight>,
    watched: Vec<(UpstreamDrainId, OneUpstream)>,
    /// Since the last time it began to serve.
    pub(super) is_gated: bool,
    is_finishing: bool,
    is_emptied: bool,
    pub(super) cut: u64,
    pub(super) is_dead: bool,
    pub(super) has_failed: bool,
}

impl ScriptedLoop {
    pub(super) fn new(index: usize, registry: &Arc<Apps>, board: &Board) -> Self {
        Self {
            index,
            view: RegistryView::new(Arc::clone(registry), index),
            board: board.clone(),
            flights: Vec::new(),
            watched: Vec::new(),
            is_gated: false,
            is_finishing: false,
            is_emptied: false,
            cut: 0,
            is_dead: false,
            has_failed: false,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.board.places()[self.index].has_ended
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.board.places()[self.index].turn.is_some()
    }

    /// Whether it can do anything.
    pub(super) fn is_awake(&self) -> bool {
        !self.has_ended() && !self.is_stuck()
    }

    /// Whether requests reach it: behind its last connection there is no listener either.
    pub(super) fn is_reached(&self) -> bool {
        self.is_awake() && !self.is_emptied
    }

    /// An app holds it up from now on: if it has exchanges, the app of an exchange.
    pub(super) fn stick(&self, now_ns: u64) {
        let life = self.flights.last().map(|flight| flight.life().as_u64());
        self.board.places()[self.index].turn = Some(Turn { since_ns: now_ns, life });
    }

    pub(super) fn recover(&self) {
        self.board.places()[self.index].turn = None;
    }

    /// Its thread panics.
    pub(super) fn die(&mut self, deeds: &mut Vec<Deed>) -> ControlEvent {
        self.recover();
        self.cut_all(deeds);
        let mut places = self.board.places();
        let commands = std::mem::take(&mut places[self.index].commands);
        places[self.index].has_ended = true;
        drop(places);
        // Its commands are lost, and so count as obeyed.
        drop(commands);
        self.is_dead = true;
        self.watched.clear();
        self.view.refresh();
        ControlEvent::Died { error: "panic: a bug".to_owned(), cut: self.cut }
    }

    /// A request comes.
    pub(super) fn ask(&mut self, host: &str) -> Asked {
        // Not only while control is quiet: a connection that was accepted before is served still.
        let guard = match self.view.admit(Some(host)) {
            Ok(guard) => guard,
            Err(Refusal::Draining(life)) => return Asked::Draining(life.id()),
            Err(Refusal::UnknownHost) => return Asked::Unknown,
        };
        let chosen = self.choose(guard.entry());
        let asked = Asked::Admitted {
            life: guard.id(),
            upstream: chosen.as_ref().map(|chosen| chosen.endpoint().url().to_owned()),
        };
        self.flights.push(Flight { guard, chosen });
        asked
    }

    fn choose(&self, life: &AppLife) -> Option<ChosenUpstream> {
        life.app().app.upstreams()?;
        let request = test_support::request("GET", "/", &[]);
        let context = crate::app::Context {
            loop_index: self.index,
            peer: Peer::Unix,
            ..test_support::context()
        };
        match life.app().app.handle(&request, &context) {
            Reply::Forward(forward) => forward.choose(0, &[]).ok(),
            _ => None,
        }
    }

    /// Obeys the next command, if there is one. What it reports.
    pub(super) fn obey(&mut self, deeds: &mut Vec<Deed>) -> Vec<ControlEvent> {
        let command = self.board.places()[self.index].commands.pop_front();
        let mut events = Vec::new();
        if let Some(command) = command {
            self.obey_one(command, deeds, &mut events);
        }
        events.extend(self.end_turn());
        events
    }

    fn obey_one(
        &mut self,
        command: LoopCommand,
        deeds: &mut Vec<Deed>,
        events: &mut Vec<ControlEvent>,
    ) {
        match command {
            LoopCommand::Gate(_) => {
                self.is_gated = true;
                events.push(ControlEvent::Gated);
            }
            LoopCommand::Finish => {
                deeds.push(Deed::Finished);
                self.is_finishing = true;
            }
            LoopCommand::Cut(life) => {
                self.cut(deeds, false, |flight| flight.life() == life);
            }
            LoopCommand::WatchUpstream(drain, upstream) => self.watched.push((drain, upstream)),
            LoopCommand::CutUpstream(upstream) => {
                self.cut(deeds, false, |flight| {
                    let chosen = flight.chosen.as_ref();
                    upstream.is_drained()
                        && chosen.is_some_and(|chosen| upstream.is_that_of(chosen))
                });
            }
            LoopCommand::CutAll => self.cut_all(deeds),
            LoopCommand::TakeUp(..) => {
                (self.is_gated, self.is_finishing, self.is_emptied, self.cut) =
                    (false, false, false, 0);
                events.push(ControlEvent::TookUp);
            }
            LoopCommand::End => {
                self.cut_all(deeds);
                self.board.places()[self.index].has_ended = true;
                events.push(ControlEvent::Ended);
            }
            LoopCommand::Refresh => self.view.refresh(),
            LoopCommand::GateListeners(addresses) => {
                events.push(ControlEvent::ListenersGated(addresses));
            }
            // Its acknowledgement, if it has one, goes with the command.
            LoopCommand::Give(_)
            | LoopCommand::Take(_)
            | LoopCommand::LetGo(..)
            | LoopCommand::Listen(_)
            | LoopCommand::ListenForAdmin(_)
            | LoopCommand::CloseListeners(_)
            | LoopCommand::Configure(..)
            | LoopCommand::ListBusy(..)
            | LoopCommand::CutConnection(..)
            | LoopCommand::Deliver(..) => {}
        }
    }

    /// What a loop reports at the end of each turn.
    fn end_turn(&mut self) -> Vec<ControlEvent> {
        let mut events = Vec::new();
        let index = self.index;
        self.watched.retain(|(drain, upstream)| {
            let is_left = upstream.is_left_by(index);
            if is_left {
                events.push(ControlEvent::UpstreamLeft(*drain));
            }
            !is_left && upstream.is_drained()
        });
        if self.is_finishing && !self.is_emptied && self.flights.is_empty() {
            self.is_emptied = true;
            events.push(ControlEvent::Emptied { cut: self.cut });
        }
        events
    }

    fn cut_all(&mut self, deeds: &mut Vec<Deed>) {
        self.cut += self.cut(deeds, true, |_| true);
        self.is_finishing = true;
    }

    fn cut(&mut self, deeds: &mut Vec<Deed>, by_all: bool, which: impl Fn(&Flight) -> bool) -> u64 {
        let cut: Vec<_> = self.flights.extract_if(.., |flight| which(flight)).collect();
        let count = cut.len() as u64;
        for flight in cut {
            let owned = |(host, url): (&str, &str)| (host.to_owned(), url.to_owned());
            let (life, upstream) = (flight.life(), flight.upstream().map(owned));
            deeds.push(Deed::Cut { life, upstream, by_all });
            flight.cut();
        }
        count
    }
}
