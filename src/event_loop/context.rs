//! What the connections of a loop share: apps, buffers, time, limits, counts and upstreams.

use std::{sync::Arc, time::Duration};

use super::{
    class::{ClassRules, PerClass},
    clock::{Clock, Throttle},
    closing::Closing,
    setup::LoopSetup,
    timers::Timers,
    upstream::UpstreamPool,
};
use crate::{
    app::{Client, Peer},
    config,
    hosted::HostedApp,
    io::BufferPool,
    logging::{AccessWriter, event},
    message::{Class, ControlEvent, ExchangeNumber, LoopConfig, LoopHandle},
    metrics::{LoopCounts, LoopGauges},
    registry::RegistryView,
};

/// Shortest time between two log lines about clients at their connection limit.
const REFUSED_LOG_EVERY: Duration = Duration::from_secs(60);

/// What the connections of a loop share.
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
    /// Public connections by state. Plain numbers: a turn that changed them publishes them at its
    /// end.
    pub(super) counts: LoopCounts,
    pub(super) gauges: Arc<LoopGauges>,
    /// For refused PROXY headers.
    pub(super) header_log: Throttle,
    /// For connections that were refused because their clients were at the limit.
    pub(super) refused_log: Throttle,
    /// The last exchange number that was assigned.
    pub(super) last_number: u64,
    /// Through which deliveries from outside reach the loop.
    pub(super) handle: LoopHandle,
    pub(super) upstreams: UpstreamPool,
    /// Reports about upstreams, sent to control at the end of the turn.
    pub(super) reports: Vec<ControlEvent>,
    /// Events are being handled, so requests for upstreams are held back.
    pub(super) is_holding_requests: bool,
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
            is_holding_requests: false,
        };
        cx.announce_idle_time();
        cx
    }

    pub(super) fn public_connections(&self) -> u64 {
        let counts = &self.counts;
        counts.fresh + counts.busy + counts.idle + counts.lingering
    }

    /// Announces in answers how long a connection may be idle: nine tenths of the limit, because a
    /// request takes time to arrive. Both classes announce the same, so it is at most the admin's.
    pub(super) fn announce_idle_time(&mut self) {
        let most = config::Limits::default().keepalive_timeout;
        let idle = self.rules[Class::Public].times.keepalive_timeout.min(most);
        self.clock.set_idle_hint(idle.as_secs() * 9 / 10);
    }

    /// The number for a new exchange.
    pub(super) fn next_number(&mut self) -> ExchangeNumber {
        self.last_number += 1;
        ExchangeNumber(self.last_number)
    }

    /// Applies a new config.
    pub(super) fn configure(&mut self, config: LoopConfig) {
        self.buffers.set_input_bytes(input_bytes(&config.limits));
        self.rules[Class::Public] = ClassRules::new(config.limits, None);
        self.idle_grace = config.idle_grace;
        self.announce_idle_time();
        // Dropping the old writer hands over its lines; the new one finishes the records.
        self.access = config.access;
    }

    /// Whether a stop asks connections of this class to end.
    pub(super) fn is_closing(&self, class: Class) -> bool {
        self.closing.begun && class == Class::Public
    }

    /// Whether a connection that becomes idle may go to another process.
    pub(super) fn can_hand_over(&self) -> bool {
        self.closing.hands_over && self.clock.now_ms() < self.closing.close_from_ms
    }

    /// A connection is closed because its client is at the limit.
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

/// Room for an empty line before a head of the largest size, and for the admin's heads.
fn input_bytes(limits: &config::Limits) -> usize {
    limits.head_bytes.max(config::Limits::default().head_bytes) + 2
}
