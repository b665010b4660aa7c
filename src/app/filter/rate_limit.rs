//! `rate_limit`: limits the requests of each client of an app, with a token bucket per address.
//!
//! The size of a bucket is the allowed burst; it fills at the allowed rate. Loops share the
//! buckets, so the limit is exact over all loops. Time is a parameter.
//!
//! Memory is bounded (I9): a full bucket means the same as none, so it is dropped when the table
//! needs room. If the table is full nevertheless, requests of further clients pass. If they were
//! refused, an attacker could lock all others out by filling the table; and a limit per address
//! does not stop an attacker with that many addresses anyway.

use std::{
    any::Any,
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    super::client::{Client, PARTS, PerClient},
    contract::{Arrival, Filter},
};
use crate::{
    config::{AppConfig, filters::RateLimit},
    duration::nanoseconds,
    http::{RequestHead, Response},
};

/// The limiter of one life of an app.
#[derive(Debug)]
struct RateLimiter {
    rate: Rate,
    buckets: Arc<PerClient<Buckets>>,
    /// Requests that were refused.
    limited: AtomicU64,
}

/// Most buckets of an app; they take about 4 MiB.
const CLIENTS_MAX: usize = 100_000;

/// A part of the table that has no room is searched for full buckets at most this often, so that
/// not every new client costs a search.
const SWEEP_EVERY_NS: u64 = 1_000_000_000;

/// The filter, if the config has this limit.
pub(super) fn load(config: &AppConfig) -> Option<Box<dyn Filter>> {
    Some(Box::new(RateLimiter::new(config.filters.rate_limit?)))
}

impl RateLimiter {
    fn new(limit: RateLimit) -> Self {
        Self { rate: Rate::new(limit), buckets: Arc::default(), limited: AtomicU64::new(0) }
    }

    /// Admits a request.
    ///
    /// # Errors
    /// The seconds until the next request is allowed, rounded up; at least 1.
    fn admit(&self, arrival: Arrival) -> Result<(), u64> {
        let client = Client::from(arrival.peer);
        // A lock on the request path: buckets per loop would be exact only if each loop had an
        // equal share of a client's connections. The lock is held for one look-up, apps without a
        // limit don't take it, and loops contend only for the same sixteenth of the table.
        let admitted = self.buckets.lock(client).take(client, self.rate, arrival.now_ns);
        admitted.map_err(|wait_ns| {
            self.limited.fetch_add(1, Relaxed);
            wait_ns.div_ceil(1_000_000_000).max(1)
        })
    }
}

impl Filter for RateLimiter {
    fn on_request(&self, _: &RequestHead<'_>, arrival: Arrival) -> Option<Response<'static>> {
        self.admit(arrival).err().map(too_many_requests)
    }

    /// The new life uses the same buckets.
    fn again(&self) -> Box<dyn Filter> {
        let buckets = Arc::clone(&self.buckets);
        Box::new(Self { rate: self.rate, buckets, limited: AtomicU64::new(0) })
    }

    /// Keeps the buckets if their size and rate are unchanged.
    fn take_over(&mut self, before: &dyn Any) {
        if let Some(before) = before.downcast_ref::<Self>()
            && self.rate == before.rate
        {
            self.buckets = Arc::clone(&before.buckets);
        }
    }

    /// The number of refused requests.
    fn count(&self) -> Option<(&'static str, u64)> {
        Some(("limited", self.limited.load(Relaxed)))
    }
}

/// The answer to a client that exceeds its limit; the next request is allowed in this many seconds.
fn too_many_requests(retry_after_s: u64) -> Response<'static> {
    let document = format!("{{\"error\":\"Too many requests\",\"retry_after_s\":{retry_after_s}}}");
    Response::json(429, document).with_field("Retry-After", &retry_after_s.to_string())
}

/// A part of the table.
#[derive(Debug, Default)]
struct Buckets {
    by_client: HashMap<Client, Bucket>,
    /// From when on it may be searched again.
    sweep_ns: u64,
}

impl Buckets {
    fn take(&mut self, client: Client, rate: Rate, now_ns: u64) -> Result<(), u64> {
        if self.by_client.len() >= CLIENTS_MAX / PARTS && now_ns >= self.sweep_ns {
            self.sweep_ns = now_ns + SWEEP_EVERY_NS;
            self.by_client.retain(|_, bucket| !bucket.is_full(rate, now_ns));
        }
        let is_full = self.by_client.len() >= CLIENTS_MAX / PARTS;
        match self.by_client.entry(client) {
            Entry::Occupied(bucket) => bucket.into_mut().take(rate, now_ns),
            Entry::Vacant(_) if is_full => Ok(()),
            Entry::Vacant(place) => place.insert(Bucket::full(rate, now_ns)).take(rate, now_ns),
        }
    }
}

/// The size and the rate of a bucket, in drops. The unit is chosen so that both a request and a
/// nanosecond are a whole number of drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    drops_per_ns: u64,
    drops_per_request: u64,
    /// The drops of a full bucket.
    drops_max: u64,
}

impl Rate {
    /// The limits of the config keep all values far from an overflow.
    fn new(limit: RateLimit) -> Self {
        let per_ns = nanoseconds(limit.per);
        let drops_max = u64::from(limit.burst).saturating_mul(per_ns);
        Self { drops_per_ns: limit.requests.into(), drops_per_request: per_ns, drops_max }
    }
}

/// The bucket of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    drops: u64,
    /// When it held this many drops.
    at_ns: u64,
}

impl Bucket {
    fn full(rate: Rate, now_ns: u64) -> Self {
        Self { drops: rate.drops_max, at_ns: now_ns }
    }

    /// Takes the drops of one request.
    ///
    /// # Errors
    /// The nanoseconds until the bucket holds enough drops.
    fn take(&mut self, rate: Rate, now_ns: u64) -> Result<(), u64> {
        self.drops = self.drops_at(rate, now_ns);
        // Loops read the clock at different times, so `now_ns` may be less than another loop's.
        self.at_ns = self.at_ns.max(now_ns);
        match self.drops.checked_sub(rate.drops_per_request) {
            Some(left) => {
                self.drops = left;
                Ok(())
            }
            None => Err((rate.drops_per_request - self.drops).div_ceil(rate.drops_per_ns)),
        }
    }

    fn is_full(&self, rate: Rate, now_ns: u64) -> bool {
        self.drops_at(rate, now_ns) == rate.drops_max
    }

    fn drops_at(&self, rate: Rate, now_ns: u64) -> u64 {
        let came = now_ns.saturating_sub(self.at_ns).saturating_mul(rate.drops_per_ns);
        self.drops.saturating_add(came).min(rate.drops_max)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        thread,
        time::Duration,
    };

    use super::*;
    use crate::app::{Peer, Scheme};

    const MS: u64 = 1_000_000;

    fn limit(requests: u32, per: Duration, burst: u32) -> RateLimit {
        RateLimit { requests, per, burst }
    }

    fn rate(requests: u32, per_ms: u64, burst: u32) -> Rate {
        Rate::new(limit(requests, Duration::from_millis(per_ms), burst))
    }

    fn client(number: usize) -> Client {
        Client::V4(Ipv4Addr::from(u32::try_from(number).unwrap()))
    }

    /// A request of the client with this number.
    fn from(number: u32, now_ns: u64) -> Arrival {
        Arrival {
            peer: Peer::Tcp((IpAddr::from(Ipv4Addr::from(number)), 1).into()),
            scheme: Scheme::Http,
            has_client_certificate: false,
            tls_port: None,
            now_ns,
        }
    }

    /// How many requests in a row a bucket allows.
    fn taken(bucket: &mut Bucket, rate: Rate, now_ns: u64) -> usize {
        std::iter::repeat_with(|| bucket.take(rate, now_ns)).take_while(Result::is_ok).count()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_the_rate() {
        let rate = rate(3, 1000, 5);
        let mut bucket = Bucket::full(rate, 7);
        assert_eq!(taken(&mut bucket, rate, 7), 5);
        let wait = bucket.take(rate, 7).unwrap_err();
        assert_eq!(wait, 333_333_334, "a third of a second, rounded up");
        assert_eq!(bucket.take(rate, 7 + wait - 1), Err(1));
        assert_eq!(bucket.take(rate, 7 + wait), Ok(()));
        // No drop is lost: after n periods it has allowed exactly n times the requests of a period.
        let mut count = 6;
        for ms in 0..=10_000 {
            count += taken(&mut bucket, rate, 7 + ms * MS);
        }
        assert_eq!(count, 5 + 30);
        assert_eq!(taken(&mut bucket, rate, 100_000 * MS), 5, "no more than the burst");
    }

    #[test]
    fn a_refused_request_costs_nothing_and_time_never_goes_back() {
        let rate = rate(1, 100, 1);
        let mut bucket = Bucket::full(rate, 500 * MS);
        assert_eq!(bucket.take(rate, 500 * MS), Ok(()));
        assert_eq!(bucket.take(rate, 490 * MS), Err(100 * MS), "a loop that is behind");
        for ms in [590, 490, 590] {
            assert_eq!(bucket.take(rate, ms * MS), Err(10 * MS));
        }
        assert_eq!(bucket.take(rate, 600 * MS), Ok(()));
    }

    #[test]
    fn the_greatest_numbers_of_a_config_do_not_overflow() {
        let rate = Rate::new(limit(1_000_000, Duration::from_secs(3600), 1_000_000));
        let mut bucket = Bucket::full(rate, 0);
        assert_eq!(taken(&mut bucket, rate, 0), 1_000_000);
        assert_eq!(bucket.take(rate, 0), Err(3_600_000));
        assert!(bucket.is_full(rate, u64::MAX));
        assert_eq!(taken(&mut bucket, rate, u64::MAX), 1_000_000);
    }

    #[test]
    fn full_buckets_make_room_and_without_room_a_new_client_passes() {
        let rate = rate(1, 10_000, 1);
        let (mut buckets, room) = (Buckets::default(), CLIENTS_MAX / PARTS);
        for number in 0..room {
            assert_eq!(buckets.take(client(number), rate, 0), Ok(()));
        }
        for _ in 0..3 {
            assert_eq!(buckets.take(client(room), rate, 5000 * MS), Ok(()), "it passes");
        }
        assert_eq!(buckets.take(client(7), rate, 5000 * MS), Err(5000 * MS));
        assert_eq!(buckets.by_client.len(), room);
        // One second after the last search, all buckets but one are full.
        assert_eq!(buckets.take(client(7), rate, 9999 * MS), Err(MS));
        assert_eq!(buckets.take(client(7), rate, 10_000 * MS), Ok(()));
        assert_eq!(buckets.take(client(room), rate, 11_000 * MS), Ok(()));
        assert!(buckets.take(client(room), rate, 11_000 * MS).is_err());
        assert!(buckets.take(client(7), rate, 11_000 * MS).is_err());
        assert_eq!(buckets.by_client.len(), 2);
    }

    #[test]
    fn loops_share_the_buckets_and_so_do_lives_of_one_rate() {
        let one = RateLimiter::new(limit(1, Duration::from_secs(3), 100));
        let admitted: usize = thread::scope(|scope| {
            let ask = || (0..1000).filter(|_| one.admit(from(1, 0)).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((admitted, one.limited.load(Relaxed)), (100, 3900));
        assert_eq!(one.admit(from(2, 0)), Ok(()));
        let again: Box<dyn Any> = one.again();
        let again = again.downcast::<RateLimiter>().unwrap();
        assert_eq!((again.admit(from(1, 0)), again.limited.load(Relaxed)), (Err(3), 1));
        assert_eq!(again.admit(from(1, 2_500 * MS)), Err(1), "half a second, rounded up");
        let mut same = RateLimiter::new(limit(1, Duration::from_secs(3), 100));
        same.take_over(&one);
        assert_eq!(same.admit(from(1, 2_500 * MS)), Err(1));
        let mut other = RateLimiter::new(limit(1, Duration::from_secs(3), 99));
        other.take_over(&one);
        assert_eq!(other.admit(from(1, 0)), Ok(()));
    }
}
