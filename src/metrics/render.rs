//! The metrics page.
//!
//! The page has two forms: Prometheus's text format, which every reader and `promtool` understands,
//! and OpenMetrics for clients that request it. They differ in the names of counter families, the
//! end line and the content type; series and values are the same. Pure: [`Scrape`] in, text out.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder,
        text::{encode_eof, encode_registry},
    },
    registry::Registry,
};

use super::{
    DrainSeconds, HandshakeCounts, LoopCounts, ProcessUsage, exchanges::OTHER,
    exposition::Exposition, families::Families, ledger::HostReading,
};

/// Everything that the page shows.
#[derive(Clone, Debug)]
pub(crate) struct Scrape {
    /// From [`super::HostLedger::read`].
    pub(crate) hosts: Vec<HostReading>,
    /// The sum of all loops.
    pub(crate) connections: LoopCounts,
    /// TLS handshakes of clients: the sum of all loops.
    pub(crate) handshakes: HandshakeCounts,
    /// When the certificate for a name ends, in seconds since 1970; each name once.
    pub(crate) certificates: Vec<(String, u64)>,
    /// For each loop, whether it makes no progress.
    pub(crate) loops_stuck: Vec<bool>,
    /// When the server started, since 1970.
    pub(crate) start_time: Duration,
    /// The time since the start.
    pub(crate) uptime: Duration,
    /// Tidegate's version.
    pub(crate) version: &'static str,
    /// Lines of the log of events that were lost.
    pub(crate) events_lost: u64,
    /// Lines of the access log that were lost.
    pub(crate) access_lost: u64,
    /// Successful reloads of the config.
    pub(crate) reloads_ok: u64,
    /// Reloads that changed nothing because the config had mistakes.
    pub(crate) reloads_failed: u64,
    /// When a config was last loaded or reloaded, since 1970; none without a config file.
    pub(crate) last_reload_success: Option<Duration>,
    /// Drains in progress.
    pub(crate) drains_running: u64,
    /// The durations of ended drains.
    pub(crate) drain_seconds: DrainSeconds,
    /// The process's resource usage.
    pub(crate) process: ProcessUsage,
}

/// Writes the page.
pub(crate) fn render(scrape: Scrape, exposition: Exposition) -> String {
    let mut page = String::with_capacity(expected_bytes(&scrape));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { scrape, exposition }));
    let written = encode_registry(&mut page, &registry).and_then(|()| match exposition {
        Exposition::Text => Ok(()),
        Exposition::OpenMetrics => encode_eof(&mut page),
    });
    debug_assert!(written.is_ok(), "a string takes all that is written");
    page
}

#[derive(Debug)]
struct Page {
    scrape: Scrape,
    exposition: Exposition,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families { encoder, exposition: self.exposition };
        self.write_hosts(&mut families)?;
        self.write_upstreams(&mut families)?;
        self.write_drains(&mut families)?;
        self.write_connections(&mut families)?;
        self.write_tls(&mut families)?;
        self.write_server(&mut families)?;
        self.write_process(&mut families)
    }
}

impl Page {
    fn write_hosts(&self, families: &mut Families<'_>) -> fmt::Result {
        let hosts = &self.scrape.hosts;
        let apps = || hosts.iter().filter(|host| !host.host.is_empty());
        families.counters(
            "tidegate_requests_total",
            "Requests that were answered, by status; no app: refused before one was found",
            hosts.iter().flat_map(|host| {
                let statuses = host.totals.exchanges.statuses.iter();
                statuses.map(|&(status, count)| (StatusLabels { app: &host.host, status }, count))
            }),
        )?;
        families.histograms(
            "tidegate_request_seconds",
            "Time from the complete request head until the last byte of the response was sent",
            hosts.iter().map(|host| (app(host), &host.totals.exchanges.seconds)),
        )?;
        families.gauges(
            "tidegate_active_connections",
            "Connections with an unfinished exchange",
            hosts.iter().filter_map(|host| Some((app(host), host.active_connections?))),
        )?;
        families.counters(
            "tidegate_refused_total",
            "Requests refused because the app was draining",
            apps().map(|host| (app(host), host.totals.refused)),
        )?;
        families.counters(
            "tidegate_cut_total",
            "Exchanges that the deadline of a drain ended",
            apps().map(|host| (app(host), host.totals.cut)),
        )
    }

    fn write_upstreams(&self, families: &mut Families<'_>) -> fmt::Result {
        let all = || {
            self.scrape.hosts.iter().flat_map(|host| {
                let upstreams = host.upstreams.iter();
                upstreams.map(|(url, (now, totals))| {
                    ([("app", &*host.host), ("upstream", &**url)], now.as_ref(), totals)
                })
            })
        };
        let unserved = self.scrape.hosts.iter().flat_map(|host| {
            let labels = move |cause| [("app", &*host.host), ("upstream", ""), ("cause", cause)];
            host.totals.unserved.0.iter().map(move |(cause, count)| (labels(*cause), *count))
        });
        families.gauges(
            "tidegate_upstream_active",
            "Exchanges in flight to the upstream",
            all().filter_map(|(labels, now, _)| Some((labels, now?.active))),
        )?;
        families.gauges(
            "tidegate_upstream_idle",
            "Idle connections to the upstream",
            all().filter_map(|(labels, now, _)| Some((labels, now?.idle))),
        )?;
        families.gauges(
            "tidegate_upstream_state",
            "Whether the upstream is in this state",
            all().flat_map(|([app, upstream], now, _)| {
                let states = now.into_iter().flat_map(|now| &now.states);
                states.map(move |(state, is)| ([app, upstream, ("state", *state)], u64::from(*is)))
            }),
        )?;
        families.counters(
            "tidegate_upstream_requests_total",
            "Exchanges sent to the upstream, including retries",
            all().map(|(labels, _, totals)| (labels, totals.requests)),
        )?;
        families.counters(
            "tidegate_upstream_failures_total",
            "Exchanges to which the upstream gave no complete answer, by cause; without an \
             upstream, those for which no upstream was available",
            all()
                .flat_map(|([app, upstream], _, totals)| {
                    let causes = totals.failures.0.iter();
                    causes.map(move |(cause, count)| ([app, upstream, ("cause", *cause)], *count))
                })
                .chain(unserved),
        )?;
        families.histograms(
            "tidegate_upstream_answer_seconds",
            "Time from the choice of the upstream until the head of its answer",
            all().map(|(labels, _, totals)| (labels, &totals.answer_seconds)),
        )
    }

    fn write_drains(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counters(
            "tidegate_drains_total",
            "Drains that have ended",
            self.scrape.hosts.iter().flat_map(|host| {
                let drains = host.totals.drains.iter();
                drains.map(|drain| {
                    let labels =
                        [("app", &*host.host), ("cause", drain.cause), ("verdict", drain.verdict)];
                    (labels, drain.count)
                })
            }),
        )?;
        families.gauge(
            "tidegate_drains_running",
            "Drains in progress",
            &self.scrape.drains_running,
        )?;
        families.histogram(
            "tidegate_drain_seconds",
            "Time from the beginning of a drain to its end",
            &self.scrape.drain_seconds,
        )
    }

    fn write_connections(&self, families: &mut Families<'_>) -> fmt::Result {
        let connections = &self.scrape.connections;
        families.gauges(
            "tidegate_connections",
            "Open connections",
            [
                ([("state", "fresh")], connections.fresh),
                ([("state", "busy")], connections.busy),
                ([("state", "idle")], connections.idle),
                ([("state", "lingering")], connections.lingering),
            ],
        )?;
        families.counter(
            "tidegate_connections_accepted_total",
            "Connections accepted",
            &connections.accepted,
        )?;
        families.counter(
            "tidegate_connections_handed_over_total",
            "Connections handed over to the next process",
            &connections.handed_over,
        )?;
        families.counter(
            "tidegate_connections_taken_over_total",
            "Connections taken over from the previous process",
            &connections.taken_over,
        )?;
        families.counter(
            "tidegate_proxy_headers_refused_total",
            "Connections dropped because of an invalid PROXY header",
            &connections.proxy_headers_refused,
        )?;
        families.counter(
            "tidegate_connections_refused_total",
            "Connections closed because their client had reached limits.connections_per_ip",
            &connections.connections_refused,
        )
    }

    fn write_tls(&self, families: &mut Families<'_>) -> fmt::Result {
        families.counters(
            "tidegate_tls_handshakes_total",
            "TLS handshakes of clients that are over; those that failed have no version",
            self.scrape.handshakes.samples(),
        )?;
        families.gauges(
            "tidegate_certificate_expiry_seconds",
            "When the certificate in use for the name expires, in seconds since 1970",
            self.scrape.certificates.iter().map(|(name, at)| ([("name", &**name)], *at)),
        )
    }

    fn write_server(&self, families: &mut Families<'_>) -> fmt::Result {
        let scrape = &self.scrape;
        families.gauge("tidegate_loops", "Event loops", &scrape.loops_stuck.len())?;
        families.gauges(
            "tidegate_loop_stuck",
            "Whether the loop makes no progress because an app blocks it",
            scrape
                .loops_stuck
                .iter()
                .enumerate()
                .map(|(index, is_stuck)| ([("loop", index)], u64::from(*is_stuck))),
        )?;
        families.counters(
            "tidegate_log_lines_lost_total",
            "Log lines lost to a full queue or to write errors",
            [([("log", "events")], scrape.events_lost), ([("log", "access")], scrape.access_lost)],
        )?;
        families.counters(
            "tidegate_config_reloads_total",
            "Reloads of the config",
            [
                ([("result", "ok")], scrape.reloads_ok),
                ([("result", "failed")], scrape.reloads_failed),
            ],
        )?;
        if let Some(at) = scrape.last_reload_success {
            families.gauge(
                "tidegate_config_last_reload_success_timestamp_seconds",
                "When a config was last loaded, in seconds since 1970",
                &at.as_secs_f64(),
            )?;
        }
        families.gauge(
            "tidegate_start_time_seconds",
            "When the server started, in seconds since 1970",
            &scrape.start_time.as_secs_f64(),
        )?;
        families.gauge(
            "tidegate_uptime_seconds",
            "Time since the start of the server",
            &scrape.uptime.as_secs_f64(),
        )?;
        families.gauges(
            "tidegate_build_info",
            "The running version",
            [([("version", scrape.version)], 1)],
        )
    }

    fn write_process(&self, families: &mut Families<'_>) -> fmt::Result {
        let process = &self.scrape.process;
        if let Some(bytes) = process.resident_bytes {
            families.gauge("process_resident_memory_bytes", "Resident memory", &bytes)?;
        }
        if let Some(count) = process.open_fds {
            families.gauge("process_open_fds", "Open file descriptors", &count)?;
        }
        families.counter(
            "process_cpu_seconds_total",
            "User and system time of the process",
            &process.cpu_seconds,
        )
    }
}

struct StatusLabels<'a> {
    app: &'a str,
    status: u16,
}

impl EncodeLabelSet for StatusLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("app", self.app).encode(encoder.encode_label())?;
        match self.status {
            OTHER => ("status", "other").encode(encoder.encode_label()),
            status => ("status", status).encode(encoder.encode_label()),
        }
    }
}

fn app(host: &HostReading) -> [(&'static str, &str); 1] {
    [("app", &host.host)]
}

/// The approximate length of the page, so that its buffer rarely grows.
fn expected_bytes(scrape: &Scrape) -> usize {
    let lines = |host: &HostReading| {
        let histogram = if host.totals.exchanges.statuses.is_empty() { 0 } else { 22 };
        let upstreams = 12 * host.upstreams.len();
        let apps = 3 + histogram + host.totals.exchanges.statuses.len() + host.totals.drains.len();
        (apps + upstreams) * (62 + host.host.len()) + upstreams * 42
    };
    9216 + 80 * scrape.certificates.len() + scrape.hosts.iter().map(lines).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Write},
        process::{Command, Stdio},
    };

    use super::*;
    use crate::metrics::{
        AnswerSeconds, ExchangeCounters, FailureCounts, HostLedger, LifeReading, UpstreamNow,
        UpstreamReading, UpstreamTotals,
    };

    fn life<'a>(host: &'a str, statuses: &[(u16, Duration)]) -> LifeReading<'a> {
        let counters = ExchangeCounters::new(1);
        for &(status, duration) in statuses {
            counters.record(0, status, duration.as_nanos() as u64);
        }
        let exchanges = counters.snapshot();
        let upstreams = Vec::new();
        let unserved = FailureCounts(vec![("no_upstream_up", 2)]);
        LifeReading {
            host,
            active_connections: 2,
            exchanges,
            refused: 3,
            cut: 1,
            unserved,
            upstreams,
        }
    }

    fn scrape(hosts: Vec<HostReading>) -> Scrape {
        let mut drain_seconds = DrainSeconds::default();
        drain_seconds.observe(Duration::from_millis(1500));
        Scrape {
            hosts,
            connections: LoopCounts {
                fresh: 1,
                busy: 2,
                idle: 3,
                lingering: 4,
                accepted: 10,
                handed_over: 8,
                taken_over: 9,
                proxy_headers_refused: 5,
                connections_refused: 6,
            },
            handshakes: HandshakeCounts::default(),
            certificates: vec![("a.test".to_owned(), 1_800_000_000)],
            loops_stuck: vec![false, true, false, false],
            start_time: Duration::from_millis(1_700_000_000_250),
            uptime: Duration::from_secs(90),
            version: "0.1.0",
            events_lost: 5,
            access_lost: 6,
            reloads_ok: 7,
            reloads_failed: 8,
            last_reload_success: Some(Duration::from_secs(1_700_000_050)),
            drains_running: 1,
            drain_seconds,
            process: ProcessUsage {
                resident_bytes: Some(5_000_000),
                open_fds: Some(12),
                cpu_seconds: 1.25,
            },
        }
    }

    /// Three apps, of which one serves, one has never served and one was removed; and a host that
    /// needs escapes.
    fn sample() -> Scrape {
        let mut ledger = HostLedger::default();
        for host in ["shop.test", "new.test", "gone.test", "odd\"\\\n.test"] {
            ledger.begin(host);
        }
        ledger.drain_ended("shop.test", "replace", "drained");
        ledger.drain_ended("gone.test", "remove", "cut");
        ledger.retire(&life("gone.test", &[(200, Duration::from_secs(70))]));
        let statuses = [
            (200, Duration::from_micros(500)),
            (200, Duration::from_millis(30)),
            (404, Duration::from_micros(500)),
            (2000, Duration::from_micros(500)),
        ];
        let upstreams = ["http://a:80", "unix:/\"x"].map(|url| UpstreamReading {
            url: url.to_owned(),
            now: UpstreamNow { active: 2, idle: 3, states: vec![("up", true), ("down", false)] },
            totals: UpstreamTotals {
                requests: 9,
                failures: FailureCounts(vec![("answer_timeout", 1)]),
                answer_seconds: AnswerSeconds::of(8, Duration::from_millis(20)),
            },
        });
        let [known, left] = upstreams;
        ledger.begin("proxy.test");
        ledger.begin("proxy.test");
        ledger.retire(&LifeReading { upstreams: vec![left], ..life("proxy.test", &[]) });
        let proxy = LifeReading { upstreams: vec![known], ..life("proxy.test", &[]) };
        let idle = LifeReading { refused: 0, cut: 0, ..life("new.test", &[]) };
        let lives = [
            life("shop.test", &statuses),
            idle,
            proxy,
            life("odd\"\\\n.test", &[(304, Duration::ZERO)]),
        ];
        scrape(ledger.read(lives))
    }

    fn has_line(page: &str, line: &str) {
        assert!(page.lines().any(|known| known == line), "no line {line} in\n{page}");
    }

    const FAILED: &str = "tidegate_upstream_failures_total{app=\"proxy.test\",upstream=";

    #[test]
    fn both_forms_have_the_same_series() {
        let text = render(sample(), Exposition::Text);
        let open = render(sample(), Exposition::OpenMetrics);
        for page in [&text, &open] {
            for line in [
                r#"tidegate_requests_total{app="shop.test",status="200"} 2"#,
                r#"tidegate_requests_total{app="shop.test",status="other"} 1"#,
                r#"tidegate_requests_total{app="gone.test",status="200"} 1"#,
                r#"tidegate_requests_total{app="odd\"\\\n.test",status="304"} 1"#,
                r#"tidegate_request_seconds_sum{app="shop.test"} 0.0315"#,
                r#"tidegate_request_seconds_count{app="shop.test"} 4"#,
                r#"tidegate_request_seconds_bucket{le="0.001",app="shop.test"} 3"#,
                r#"tidegate_request_seconds_bucket{le="0.05",app="shop.test"} 4"#,
                r#"tidegate_request_seconds_bucket{le="60.0",app="gone.test"} 0"#,
                r#"tidegate_request_seconds_bucket{le="+Inf",app="gone.test"} 1"#,
                r#"tidegate_active_connections{app="new.test"} 2"#,
                r#"tidegate_refused_total{app="shop.test"} 3"#,
                r#"tidegate_cut_total{app="gone.test"} 1"#,
                r#"tidegate_drains_total{app="gone.test",cause="remove",verdict="cut"} 1"#,
                r#"tidegate_upstream_active{app="proxy.test",upstream="http://a:80"} 2"#,
                r#"tidegate_upstream_idle{app="proxy.test",upstream="http://a:80"} 3"#,
                r#"tidegate_upstream_state{app="proxy.test",upstream="http://a:80",state="up"} 1"#,
                r#"tidegate_upstream_requests_total{app="proxy.test",upstream="http://a:80"} 9"#,
                &format!("{FAILED}\"unix:/\\\"x\",cause=\"answer_timeout\"}} 1"),
                &format!("{FAILED}\"\",cause=\"no_upstream_up\"}} 4"),
                "tidegate_drains_running 1",
                r#"tidegate_drain_seconds_bucket{le="2.5"} 1"#,
                "tidegate_drain_seconds_sum 1.5",
                r#"tidegate_connections{state="lingering"} 4"#,
                "tidegate_connections_accepted_total 10",
                "tidegate_connections_handed_over_total 8",
                "tidegate_connections_taken_over_total 9",
                "tidegate_proxy_headers_refused_total 5",
                "tidegate_connections_refused_total 6",
                r#"tidegate_log_lines_lost_total{log="access"} 6"#,
                r#"tidegate_config_reloads_total{result="failed"} 8"#,
                "tidegate_config_last_reload_success_timestamp_seconds 1700000050.0",
                "tidegate_start_time_seconds 1700000000.25",
                "tidegate_uptime_seconds 90.0",
                r#"tidegate_build_info{version="0.1.0"} 1"#,
                "tidegate_loops 4",
                r#"tidegate_loop_stuck{loop="0"} 0"#,
                r#"tidegate_loop_stuck{loop="1"} 1"#,
                "process_resident_memory_bytes 5000000",
                "process_open_fds 12",
                "process_cpu_seconds_total 1.25",
            ] {
                has_line(page, line);
            }
            let answers = "tidegate_upstream_answer_seconds";
            let labels = r#"app="proxy.test",upstream="http://a:80""#;
            has_line(page, &format!("{answers}_sum{{{labels}}} 0.02"));
            has_line(page, &format!("{answers}_count{{{labels}}} 8"));
            has_line(page, &format!("{answers}_bucket{{le=\"+Inf\",{labels}}} 8"));
            let down = r#"tidegate_upstream_state{app="proxy.test",upstream="http://a:80",state="#;
            has_line(page, &format!("{down}\"down\"}} 0"));
            assert!(!page.contains(r#"tidegate_upstream_active{app="proxy.test",upstream="unix"#));
            assert!(!page.contains(r#"tidegate_active_connections{app="gone.test"}"#));
            assert!(!page.contains(r#"tidegate_request_seconds_count{app="new.test"}"#));
        }
        has_line(&text, "# TYPE tidegate_requests_total counter");
        has_line(&text, "# TYPE process_cpu_seconds_total counter");
        has_line(&open, "# TYPE tidegate_requests counter");
        let series = |page: &str| -> Vec<String> {
            page.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(series(&text), series(&open));
        assert!(open.ends_with("\n# EOF\n"));
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn what_is_unknown_gives_no_series() {
        let mut scrape = scrape(Vec::new());
        scrape.last_reload_success = None;
        scrape.process.resident_bytes = None;
        scrape.process.open_fds = None;
        let page = render(scrape, Exposition::Text);
        for name in ["success_timestamp", "process_resident", "process_open_fds", "app="] {
            assert!(!page.contains(name), "{name} in\n{page}");
        }
    }

    #[test]
    fn open_metrics_go_to_clients_that_name_them() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,\
                          text/plain;version=0.0.4;q=0.7,*/*;q=0.1";
        for (accept, exposition) in [
            (Some(prometheus), Exposition::OpenMetrics),
            (Some("text/plain, Application/OpenMetrics-Text"), Exposition::OpenMetrics),
            (Some("application/openmetrics-text; q=0.0, text/plain"), Exposition::Text),
            (Some("*/*"), Exposition::Text),
            (Some("text/plain;version=0.0.4"), Exposition::Text),
            (Some(""), Exposition::Text),
            (
                Some("text/plain;version=0.0.4;q=1,application/openmetrics-text;q=0.1"),
                Exposition::Text,
            ),
            (
                Some("application/openmetrics-text;q=0.5,text/plain;q=0.4,*/*;q=1"),
                Exposition::OpenMetrics,
            ),
            (Some("application/openmetrics-text;q=0.5,*/*;q=1"), Exposition::Text),
            (Some("application/openmetrics-text;q=x,text/plain;q=0.1"), Exposition::Text),
            (None, Exposition::Text),
        ] {
            assert_eq!(Exposition::accepted(accept), exposition, "{accept:?}");
        }
    }

    #[test]
    fn promtool_accepts_the_page() {
        let mut child = match Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("skipped: promtool is not installed");
                return;
            }
            Err(error) => panic!("promtool: {error}"),
        };
        let page = render(sample(), Exposition::Text);
        child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}\n{page}", String::from_utf8_lossy(&said));
        assert_eq!(String::from_utf8_lossy(&said), "", "{page}");
    }
}
