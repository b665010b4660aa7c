//! What the upstreams of a new life begin with: the state of the life before, and what the checks
//! of a deploy have found.

use std::sync::atomic::Ordering::{Acquire, Release};

use super::{Upstreams, later};

impl Upstreams {
    /// Takes over the state of the previous life's upstreams with the same URLs: the results of
    /// checks if this life has checks, ejections if it ejects, and drains. What a deploy has just
    /// found by its own checks is not overwritten. Call it before the loops get this life.
    pub(crate) fn take_over(&self, old: &Self) {
        let is_checked = self.is_checked.load(Acquire);
        let health = self.config.health.is_some() && !is_checked;
        let ejection = self.config.eject_after != 0 && !is_checked;
        for endpoint in &self.endpoints {
            let same = old.endpoints.iter().find(|other| other.url() == endpoint.url());
            // An embedder's app may use the same upstreams in its next life.
            if let Some(same) = same.filter(|same| !std::ptr::eq(*same, endpoint)) {
                endpoint.take_over(same, health, ejection);
            }
        }
    }

    /// Begins with what the checks of a deploy have found: for each upstream why it is not ready,
    /// if it is not. Those that are ready begin their slow start. One that is not ready is down
    /// until health checks find it up; without health checks it is ejected. Call it before the
    /// loops get this life, and before [`Self::take_over`].
    pub(crate) fn begin_checked(&self, not_ready: &[Option<String>], now_ns: u64) {
        for (endpoint, reason) in self.endpoints.iter().zip(not_ready) {
            match reason {
                None => endpoint.resume(now_ns),
                Some(_) if self.config.health.is_some() => {
                    endpoint.set_health(reason.clone(), now_ns);
                }
                Some(_) => endpoint.eject(later(now_ns, self.config.eject_for)),
            }
        }
        self.is_checked.store(true, Release);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        app::{EndpointState, UpstreamTls},
        config::{HealthConfig, ProxyConfig, UpstreamAddress, UpstreamConfig},
    };

    const SECOND: u64 = 1_000_000_000;

    fn upstreams(has_health: bool) -> Upstreams {
        let upstream = |port| UpstreamConfig {
            address: UpstreamAddress::Tcp { tls: false, host: "127.0.0.1".to_owned(), port },
            weight: 1,
        };
        let config = ProxyConfig {
            slow_start: Duration::from_secs(10),
            health: has_health.then(|| HealthConfig::new("/up".to_owned())),
            ..ProxyConfig::new(vec![upstream(9001), upstream(9002)])
        };
        let tls = UpstreamTls::load(&config).unwrap();
        Upstreams::open(config, tls, 1)
    }

    fn states(upstreams: &Upstreams, now_ns: u64) -> Vec<EndpointState> {
        upstreams.rows(now_ns).into_iter().map(|row| row.state).collect()
    }

    #[test]
    fn what_a_deploy_has_found_holds_against_the_life_before() {
        let (old, new) = (upstreams(true), upstreams(true));
        old.set_health(0, Some("status 500".to_owned()), SECOND);
        new.begin_checked(&[None, Some("connect: refused".to_owned())], 2 * SECOND);
        new.take_over(&old);
        assert_eq!(states(&new, 2 * SECOND), [EndpointState::Up, EndpointState::Down]);
        // Without a deploy the state goes on.
        let replaced = upstreams(true);
        replaced.take_over(&old);
        assert_eq!(states(&replaced, 2 * SECOND), [EndpointState::Down, EndpointState::Up]);
    }

    #[test]
    fn without_health_checks_one_that_is_not_ready_is_ejected() {
        let new = upstreams(false);
        new.begin_checked(&[None, Some("connect: refused".to_owned())], SECOND);
        assert_eq!(states(&new, SECOND), [EndpointState::Up, EndpointState::Ejected]);
        assert_eq!(states(&new, 12 * SECOND), [EndpointState::Up, EndpointState::Up]);
    }

    #[test]
    fn those_that_are_ready_start_slowly() {
        let new = upstreams(false);
        let slow_start = new.config().slow_start;
        let weight = |now_ns| new.endpoints()[0].weight(now_ns, slow_start);
        let whole = weight(SECOND);
        new.begin_checked(&[None, None], SECOND);
        assert!(weight(2 * SECOND) < whole / 5);
        assert_eq!(weight(11 * SECOND), whole);
    }
}
