//! How many requests each client of an app may make: a token bucket for every address.
//!
//! A bucket holds the requests that may come at once, and fills at the rate that may last. Exact
//! over all loops: they share the buckets. Pure but for their lock: the time is given.
//!
//! Memory is bounded (I9): a bucket that is full again means the same as a missing one, and is
//! dropped when its place is needed. A client without a place passes: if it were refused, an
//! attacker could lock all others out by filling the table, and an attacker with that many
//! addresses is not stopped by a limit for each of them.

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
    config::filters::{FilterConfig, RateLimit},
    http::{RequestHead, Response},
};

/// The limit of one life of an app.
#[derive(Debug)]
struct RateLimiter {
    rate: Rate,
    buckets: Arc<PerClient<Buckets>>,
    limited: AtomicU64,
}

/// Clients that an app has buckets for at most; about 4 MiB of them.
const CLIENTS_MAX: usize = 100_000;

/// How often a full part of the table is searched at most for buckets that are full again, so that
/// not every new client pays for a search.
const SWEEP_EVERY_NS: u64 = 1_000_000_000;

/// The filter of an app that has such a limit.
pub(super) fn load(config: &FilterConfig) -> Option<Box<dyn Filter>> {
    Some(Box::new(RateLimiter::new(config.rate_limit?)))
}

impl RateLimiter {
    fn new(limit: RateLimit) -> Self {
        Self { rate: Rate::new(limit), buckets: Arc::default(), limited: AtomicU64::new(0) }
    }

    /// Admits a request.
    ///
    /// # Errors
    /// The whole seconds until there is a place for one more, at least 1.
    fn admit(&self, arrival: Arrival) -> Result<(), u64> {
        let client = Client::from(arrival.peer);
        // A lock on the request path: a count for each loop would be exact only if the loops had
        // equal shares of a client's connections. It is held for one look-up, apps without a limit
        // have none, and loops meet only at one sixteenth of the table.
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

    /// The clients of the new life have what they had.
    fn again(&self) -> Box<dyn Filter> {
        let buckets = Arc::clone(&self.buckets);
        Box::new(Self { rate: self.rate, buckets, limited: AtomicU64::new(0) })
    }

    /// Buckets of the same size and rate are kept.
    fn take_over(&mut self, before: &dyn Any) {
        if let Some(before) = before.downcast_ref::<Self>()
            && self.rate == before.rate
        {
            self.buckets = Arc::clone(&before.buckets);
        }
    }

    /// How many requests were refused.
    fn count(&self) -> Option<(&'static str, u64)> {
        Some(("limited", self.limited.load(Relaxed)))
    }
}

/// The client has used up what the app allows it, for so many seconds more.
fn too_many_requests(retry_after_s: u64) -> Response<'static> {
    let document = format!("{{\"error\":\"Too many requests\",\"retry_after_s\":{retry_after_s}}}");
    Response::json(429, document).with_field("Retry-After", &retry_after_s.to_string())
}

/// A part of the table.
#[derive(Debug, Default)]
struct Buckets {
    by_client: HashMap<Client, Bucket>,
    /// When it may be searched again.
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

/// Size and filling of a bucket, in drops: so many that both a request and a nanosecond are a whole
/// number of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    drops_per_ns: u64,
    drops_per_request: u64,
    /// What a full bucket holds.
    drops_max: u64,
}

impl Rate {
    /// The bounds of the config keep it far from overflowing.
    fn new(limit: RateLimit) -> Self {
        let per_ns = u64::try_from(limit.per.as_nanos()).unwrap_or(u64::MAX);
        let drops_max = u64::from(limit.burst).saturating_mul(per_ns);
        Self { drops_per_ns: limit.requests.into(), drops_per_request: per_ns, drops_max }
    }
}

/// What one client has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    drops: u64,
    /// When it held that much.
    at_ns: u64,
}

impl Bucket {
    fn full(rate: Rate, now_ns: u64) -> Self {
        Self { drops: rate.drops_max, at_ns: now_ns }
    }

    /// Takes one request out.
    ///
    /// # Errors
    /// The nanoseconds until one is in.
    fn take(&mut self, rate: Rate, now_ns: u64) -> Result<(), u64> {
        self.drops = self.drops_at(rate, now_ns);
        // The turns of loops begin at different times: one loop's may be before another's.
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
    use crate::app::Peer;

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

    /// A request of this client.
    fn from(number: u32, now_ns: u64) -> Arrival {
        Arrival { peer: Peer::Tcp((IpAddr::from(Ipv4Addr::from(number)), 1).into()), now_ns }
    }

    /// How many requests a bucket gives in a row.
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
        // No drop is lost: after a whole number of periods it is the whole number of requests.
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
        // One second after the last search all but one are full again.
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
        assert_eq!(again.admit(from(1, 2_500 * MS)), Err(1), "half a second is one of whole ones");
        let mut same = RateLimiter::new(limit(1, Duration::from_secs(3), 100));
        same.take_over(&one);
        assert_eq!(same.admit(from(1, 2_500 * MS)), Err(1));
        let mut other = RateLimiter::new(limit(1, Duration::from_secs(3), 99));
        other.take_over(&one);
        assert_eq!(other.admit(from(1, 0)), Ok(()));
    }
}
