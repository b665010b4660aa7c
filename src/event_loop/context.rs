//! What the connections of a loop share: apps, buffers, time, limits, accounting and upstreams.

use std::sync::Arc;

use super::{
    accounting::Accounting,
    class::{ClassRules, PerClass},
    clock::Clock,
    closing::Closing,
    deliveries::Deliveries,
    handshakes::Handshakes,
    reports::Reports,
    setup::LoopSetup,
    timers::Timers,
    upstream::UpstreamPool,
};
use crate::{
    app::App,
    config,
    hosted::HostedApp,
    io::BufferPool,
    message::{Class, LoopConfig, LoopHandle},
    metrics::LoopGauges,
    registry::RegistryView,
};

/// What the connections of a loop share.
pub(super) struct LoopContext {
    pub(super) index: usize,
    pub(super) view: RegistryView<HostedApp>,
    pub(super) buffers: BufferPool,
    pub(super) clock: Clock,
    pub(super) timers: Timers,
    pub(super) rules: PerClass<ClassRules>,
    pub(super) closing: Closing,
    pub(super) accounting: Accounting,
    pub(super) gauges: Arc<LoopGauges>,
    pub(super) deliveries: Deliveries,
    pub(super) upstreams: UpstreamPool,
    pub(super) reports: Reports,
    pub(super) tls: Handshakes,
}

impl LoopContext {
    /// `side_app` has the apps of the classes other than the public one.
    pub(super) fn new(
        setup: LoopSetup,
        side_app: impl Fn(Class) -> Option<Arc<dyn App>>,
        handle: LoopHandle,
        upstreams: UpstreamPool,
    ) -> Self {
        let LoopSetup { index, config, .. } = setup;
        let mut cx = Self {
            index,
            view: RegistryView::new(setup.registry, index),
            buffers: BufferPool::new(input_bytes(&config.limits)),
            clock: Clock::new(setup.epoch),
            timers: Timers::default(),
            rules: PerClass::new(|class| ClassRules::of(class, &config.limits, side_app(class))),
            closing: Closing::new(config.idle_grace),
            accounting: Accounting::new(index, config.access),
            gauges: setup.gauges,
            deliveries: Deliveries::new(handle),
            upstreams,
            reports: Reports::new(setup.report),
            tls: Handshakes::new(setup.certificates),
        };
        cx.announce_idle_time();
        cx
    }

    /// Announces in answers how long a connection may be idle: nine tenths of the limit, because a
    /// request takes time to arrive. Both classes announce the same, so it is at most the admin's.
    pub(super) fn announce_idle_time(&mut self) {
        let most = config::Limits::default().keepalive_timeout;
        let idle = self.rules[Class::Public].times.keepalive_timeout.min(most);
        self.clock.set_idle_hint(idle.as_secs() * 9 / 10);
    }

    /// Applies a new config.
    pub(super) fn configure(&mut self, config: LoopConfig) {
        self.buffers.set_input_bytes(input_bytes(&config.limits));
        self.rules[Class::Public] = ClassRules::new(config.limits, None);
        self.closing.idle_grace = config.idle_grace;
        self.announce_idle_time();
        // Dropping the old writer hands over its lines; the new one finishes the records.
        self.accounting.access = config.access;
    }
}

/// Room for an empty line before a head of the largest size, and for the admin's heads.
fn input_bytes(limits: &config::Limits) -> usize {
    limits.head_bytes.max(config::Limits::default().head_bytes) + 2
}
