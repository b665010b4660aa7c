//! What the connections of one loop share: its apps, buffers, time, limits, counts and upstreams.

use std::{sync::Arc, time::Duration};

use super::{
    class::{ClassRules, PerClass},
    clock::{Clock, Throttle},
    closing::Closing,
    io::BufferPool,
    setup::LoopSetup,
    timers::Timers,
    upstream::UpstreamPool,
};
use crate::{
    app::{Client, Peer},
    config,
    hosted::HostedApp,
    logging::{AccessWriter, event},
    message::{Class, ControlEvent, ExchangeNumber, LoopConfig, LoopHandle},
    metrics::{LoopCounts, LoopGauges},
    registry::RegistryView,
};

/// How often a loop logs at most that a client has as many connections as it may.
const REFUSED_LOG_EVERY: Duration = Duration::from_secs(60);

/// What connections of one loop share.
pub(super) struct LoopContext {
    pub(super) index: usize,
    pub(super) view: RegistryView<HostedApp>,
    pub(super) buffers: BufferPool,
    pub(super) clock: Clock,
    pub(super) timers: Timers,
    pub(super) rules: PerClass<ClassRules>,
    pub(super) idle_grace: Duration,
    pub(super) closing: Closing,
    pub(super) access: Option<AccessWriter>,
    /// Public connections by state. Plain numbers: a turn that changed them shows them at its end.
    pub(super) counts: LoopCounts,
    pub(super) gauges: Arc<LoopGauges>,
    /// Of PROXY headers that were refused.
    pub(super) header_log: Throttle,
    /// Of connections that were refused because their clients have as many as they may.
    pub(super) refused_log: Throttle,
    /// The last number that an exchange was given.
    pub(super) last_number: u64,
    /// By which the loop is told what comes from outside.
    pub(super) handle: LoopHandle,
    pub(super) upstreams: UpstreamPool,
    /// What control is to know of upstreams, sent at the end of the turn.
    pub(super) reports: Vec<ControlEvent>,
    /// Events are being handled: a request for an upstream waits for the others.
    pub(super) holds_requests: bool,
}

impl LoopContext {
    pub(super) fn new(setup: &mut LoopSetup, handle: LoopHandle, upstreams: UpstreamPool) -> Self {
        let LoopSetup { config, beside, .. } = setup;
        let app = |class| beside.iter().find(|side| side.class == class).map(|side| &side.app);
        let mut cx = Self {
            index: setup.index,
            view: RegistryView::new(Arc::clone(&setup.registry), setup.index),
            buffers: BufferPool::new(input_bytes(&config.limits)),
            clock: Clock::new(setup.epoch),
            timers: Timers::default(),
            rules: PerClass::new(|class| {
                ClassRules::of(class, &config.limits, app(class).map(Arc::clone))
            }),
            idle_grace: config.idle_grace,
            closing: Closing::default(),
            access: config.access.take(),
            counts: LoopCounts::default(),
            gauges: Arc::clone(&setup.gauges),
            header_log: Throttle::default(),
            refused_log: Throttle::default(),
            last_number: 0,
            handle,
            upstreams,
            reports: Vec::new(),
            holds_requests: false,
        };
        cx.announce_idle_time();
        cx
    }

    pub(super) fn public_connections(&self) -> u64 {
        let counts = &self.counts;
        counts.fresh + counts.busy + counts.idle + counts.lingering
    }

    /// Lets answers say how long a connection may be idle: nine tenths of it, for a request takes
    /// its time. Both classes say the same, so it is no more than the admin's.
    pub(super) fn announce_idle_time(&mut self) {
        let most = config::Limits::default().keepalive_timeout;
        let idle = self.rules[Class::Public].times.keepalive_timeout.min(most);
        self.clock.set_idle_hint(idle.as_secs() * 9 / 10);
    }

    /// A name for an exchange that is parked.
    pub(super) fn next_number(&mut self) -> ExchangeNumber {
        self.last_number += 1;
        ExchangeNumber(self.last_number)
    }

    /// What a new config says holds from here on.
    pub(super) fn configure(&mut self, config: LoopConfig) {
        self.buffers.set_input_bytes(input_bytes(&config.limits));
        self.rules[Class::Public] = ClassRules::new(config.limits, None);
        self.idle_grace = config.idle_grace;
        self.announce_idle_time();
        // The old one hands its lines over when it is dropped; the new one finishes the records.
        self.access = config.access;
    }

    /// Whether a stop asks connections of this class to end.
    pub(super) fn is_closing(&self, class: Class) -> bool {
        self.closing.begun && class == Class::Public
    }

    /// Whether a connection that comes to rest may be another process's then.
    pub(super) fn gives_on(&self) -> bool {
        self.closing.gives && self.clock.now_ms() < self.closing.close_from_ms
    }

    /// A connection is closed because its client has as many as it may.
    pub(super) fn count_refused(&mut self, peer: Peer) {
        self.counts.connections_refused += 1;
        let now_ms = self.clock.now_ms();
        if self.refused_log.passes(now_ms, REFUSED_LOG_EVERY) {
            event!(
                Warn,
                "connection_refused",
                client:% = Client::from(peer),
                loop_index = self.index,
                refused_total = self.counts.connections_refused,
            );
        }
    }
}

/// A blank line before a head of the largest size has to fit too, and so have the admin's heads.
fn input_bytes(limits: &config::Limits) -> usize {
    limits.head_bytes.max(config::Limits::default().head_bytes) + 2
}
