//! Limits per client address: a rate limit for requests, which is a token bucket stored as the time at which it will be
//! full again, and a limit of concurrent connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millstream_core::hub::address::{AddressPrefix, PerAddressBudget};

/// Limits the request rate of each address.
#[derive(Debug)]
pub struct PerAddressRateLimit {
    /// Time in which one token is added to a bucket; `None` means unlimited.
    token_interval: Option<Duration>,
    burst: u32,
    /// When the bucket of each address will be full.
    bucket_full_at: Mutex<HashMap<AddressPrefix, Instant>>,
}

/// Maximum number of buckets, about 2 MiB. Further addresses share one bucket.
const MAX_RATE_LIMIT_BUCKETS: usize = 32_768;
/// Key of the shared bucket.
const SHARED_RATE_LIMIT_BUCKET_KEY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

impl PerAddressRateLimit {
    /// Makes a limit of `per_second` requests on average, 0 for unlimited, and bursts of up to `burst` requests.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self {
            token_interval: Duration::from_secs(1).checked_div(per_second),
            burst: burst.max(1),
            bucket_full_at: Mutex::default(),
        }
    }

    /// Checks whether the bucket of `address` has a token, without taking it.
    ///
    /// # Errors
    ///
    /// The time to wait, if the bucket is empty.
    pub fn peek_rate_limit_token(&self, now: Instant, address: IpAddr) -> Result<(), Duration> {
        let Some(interval) = self.token_interval else {
            return Ok(());
        };
        let full_at = self.bucket_full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = full_at
            .get(&AddressPrefix::host_prefix_of(address))
            .copied()
            .unwrap_or(now);
        let wait = (bucket.max(now) + interval).saturating_duration_since(now + interval * self.burst);
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Takes one token from the bucket of `address`.
    ///
    /// # Errors
    ///
    /// The time to wait, if the bucket is empty.
    pub fn take_rate_limit_token(&self, now: Instant, address: IpAddr) -> Result<(), Duration> {
        let Some(interval) = self.token_interval else {
            return Ok(());
        };
        let mut full_at = self.bucket_full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = AddressPrefix::host_prefix_of(address);
        if full_at.len() >= MAX_RATE_LIMIT_BUCKETS && !full_at.contains_key(&key) {
            full_at.retain(|_, full_at| *full_at > now);
            if full_at.len() >= MAX_RATE_LIMIT_BUCKETS {
                key = AddressPrefix::host_prefix_of(SHARED_RATE_LIMIT_BUCKET_KEY);
            }
        }
        let bucket = full_at.entry(key).or_insert(now);
        let after = (*bucket).max(now) + interval;
        let wait = after.saturating_duration_since(now + interval * self.burst);
        if !wait.is_zero() {
            return Err(wait);
        }
        *bucket = after;
        Ok(())
    }
}

/// Limits the concurrent connections of each address, so that one client cannot use up all connections.
#[derive(Clone, Debug)]
pub struct PerAddressConnectionLimit {
    open_connections: Arc<Mutex<PerAddressBudget>>,
}

/// Permit for one connection. Dropping it allows another connection.
#[derive(Debug)]
pub struct ConnectionPermit {
    limit: PerAddressConnectionLimit,
    address: IpAddr,
}

impl PerAddressConnectionLimit {
    /// Makes a limit of `per_address` connections for each IPv4 address and each IPv6 /64, and twice as many for an
    /// IPv6 /48.
    pub fn new(per_address: usize) -> Self {
        Self {
            open_connections: Arc::new(Mutex::new(PerAddressBudget::new(per_address))),
        }
    }

    /// Returns a permit for one more connection of an address, or `None` if the limit is reached.
    pub fn acquire(&self, address: IpAddr) -> Option<ConnectionPermit> {
        let mut open = self.open_connections.lock().unwrap_or_else(PoisonError::into_inner);
        open.try_acquire(address).ok()?;
        Some(ConnectionPermit {
            limit: self.clone(),
            address,
        })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self
            .limit
            .open_connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.release(self.address);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn parse_ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (limit, t) = (PerAddressRateLimit::new(10, 5), Instant::now());
        for _ in 0..5 {
            assert_eq!(limit.take_rate_limit_token(t, parse_ip("192.0.2.1")), Ok(()));
        }
        let wait = limit
            .take_rate_limit_token(t, parse_ip("192.0.2.1"))
            .expect_err("empty");
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(limit.take_rate_limit_token(t + wait, parse_ip("192.0.2.1")), Ok(()));
        assert!(limit.take_rate_limit_token(t + wait, parse_ip("192.0.2.1")).is_err());
        let later = t + Duration::from_secs(60);
        let passed = (0..10)
            .filter(|_| limit.take_rate_limit_token(later, parse_ip("192.0.2.1")).is_ok())
            .count();
        assert_eq!(passed, 5, "a bucket holds no more than the burst");
    }

    #[test]
    fn addresses_have_buckets_of_their_own_but_a_v6_network_shares_one() {
        let (limit, t) = (PerAddressRateLimit::new(1, 1), Instant::now());
        for (address, passes) in [
            ("192.0.2.1", true),
            ("192.0.2.2", true),
            ("::ffff:192.0.2.2", false),
            ("2001:db8::1", true),
            ("2001:db8::2", false),
            ("2001:db8:0:1::2", true),
        ] {
            assert_eq!(
                limit.take_rate_limit_token(t, parse_ip(address)).is_ok(),
                passes,
                "{address}"
            );
        }
    }

    #[test]
    fn a_flood_of_addresses_shares_a_bucket_and_no_more_memory() {
        let (limit, t) = (PerAddressRateLimit::new(1, 1), Instant::now());
        let address = |n: usize| IpAddr::V4((n as u32).into());
        for n in 0..MAX_RATE_LIMIT_BUCKETS {
            assert_eq!(limit.take_rate_limit_token(t, address(n)), Ok(()));
        }
        assert_eq!(limit.take_rate_limit_token(t, address(MAX_RATE_LIMIT_BUCKETS)), Ok(()));
        assert!(
            limit
                .take_rate_limit_token(t, address(MAX_RATE_LIMIT_BUCKETS + 1))
                .is_err()
        );
        let later = t + Duration::from_secs(2);
        assert_eq!(
            limit.take_rate_limit_token(later, address(MAX_RATE_LIMIT_BUCKETS + 1)),
            Ok(())
        );
        assert_eq!(
            limit.bucket_full_at.lock().expect("lock").len(),
            1,
            "full buckets are forgotten"
        );
    }

    #[test]
    fn connections_per_address_are_limited_and_released() {
        let limit = PerAddressConnectionLimit::new(2);
        let first = limit.acquire(parse_ip("192.0.2.1"));
        let second = limit.acquire(parse_ip("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some() && limit.acquire(parse_ip("192.0.2.1")).is_none());
        assert!(
            limit.acquire(parse_ip("192.0.2.2")).is_some(),
            "other addresses are not affected"
        );
        drop(first);
        assert!(limit.acquire(parse_ip("192.0.2.1")).is_some());
        drop(second);
        assert!(
            limit.open_connections.lock().expect("lock").is_empty(),
            "no state is kept for addresses without connections"
        );
    }

    #[test]
    fn zero_sets_no_bound() {
        let (limit, t) = (PerAddressRateLimit::new(0, 1), Instant::now());
        assert!((0..10_000).all(|_| limit.take_rate_limit_token(t, parse_ip("192.0.2.1")).is_ok()));
    }
}
