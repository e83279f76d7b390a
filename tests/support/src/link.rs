//! A network path in virtual time, one direction: seeded loss, delay, jitter, reordering, a queue that is polled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Properties of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkConfig {
    /// Probability that a datagram is lost, 0.0 to 1.0.
    pub loss: f64,
    pub delay: Duration,
    /// Added to the delay, uniformly from zero to this.
    pub jitter: Duration,
    /// Jitter may let a datagram overtake another; without, order is kept.
    pub reorder: bool,
    /// Probability that a datagram arrives twice.
    pub duplicate: f64,
    /// Bits per second of UDP over IPv4 that pass; `None`: any number.
    pub rate: Option<u64>,
    /// Longest wait before a bottleneck; what would wait longer is dropped.
    pub queue: Duration,
}

/// Headers of IPv4 and UDP, in bytes.
const HEADERS_LEN: u64 = 28;

impl LinkConfig {
    /// Loses nothing, delays each datagram by `delay`.
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }
}

/// A datagram in transit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Bytes,
}

pub struct LossyLink {
    config: LinkConfig,
    rng: StdRng,
    queue: BinaryHeap<Reverse<Queued>>,
    /// Counts datagrams, so that equal times keep their order.
    count: u64,
    latest: Option<Instant>,
    /// When the bottleneck will have sent what waits before it.
    free_at: Option<Instant>,
    lost: u64,
}

#[derive(PartialEq, Eq)]
struct Queued {
    at: Instant,
    order: u64,
    datagram: Datagram,
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl LossyLink {
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            config,
            rng: StdRng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            count: 0,
            latest: None,
            free_at: None,
            lost: 0,
        }
    }

    /// Changes the properties of the link for datagrams sent from now on.
    pub fn set_config(&mut self, config: LinkConfig) {
        self.config = config;
    }

    /// Datagrams lost so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    pub fn send(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, payload: Bytes) {
        if self.rng.random_bool(self.config.loss) {
            self.lost += 1;
            return;
        }
        let Some(leaves) = self.pass_bottleneck(now, payload.len()) else {
            self.lost += 1;
            return;
        };
        let copies = 1 + u32::from(self.rng.random_bool(self.config.duplicate));
        for _ in 0..copies {
            let jitter = self.config.jitter.mul_f64(self.rng.random());
            let mut at = leaves + self.config.delay + jitter;
            if !self.config.reorder {
                at = at.max(self.latest.unwrap_or(at));
                self.latest = Some(at);
            }
            self.count += 1;
            self.queue.push(Reverse(Queued {
                at,
                order: self.count,
                datagram: Datagram {
                    from,
                    to,
                    payload: payload.clone(),
                },
            }));
        }
    }

    /// Returns when a datagram has left the bottleneck; `None` if it is dropped.
    fn pass_bottleneck(&mut self, now: Instant, length: usize) -> Option<Instant> {
        let Some(rate) = self.config.rate else { return Some(now) };
        let begins = self.free_at.unwrap_or(now).max(now);
        if begins.duration_since(now) > self.config.queue {
            return None;
        }
        let bits = (length as u64 + HEADERS_LEN) * 8;
        let leaves = begins + Duration::from_nanos(bits * 1_000_000_000 / rate.max(1));
        self.free_at = Some(leaves);
        Some(leaves)
    }

    /// The next datagram that has arrived by `now`.
    pub fn poll(&mut self, now: Instant) -> Option<Datagram> {
        if self.queue.peek()?.0.at > now {
            return None;
        }
        self.queue.pop().map(|q| q.0.datagram)
    }

    /// When the next datagram arrives.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.queue.peek().map(|q| q.0.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn a_bottleneck_delays_what_is_more_than_its_rate_and_drops_what_would_wait_too_long() {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let start = Instant::now();
        let config = LinkConfig {
            rate: Some(800_000),
            queue: Duration::from_millis(100),
            ..LinkConfig::delay(Duration::from_millis(20))
        };
        let mut link = LossyLink::new(config, 7);
        // 972 bytes and 28 of headers: 10 ms each.
        for _ in 0..20 {
            link.send(start, address(1), address(2), Bytes::from(vec![0; 972]));
        }
        let arrived = |link: &mut LossyLink, at: u64| {
            let now = start + Duration::from_millis(at);
            std::iter::from_fn(|| link.poll(now)).count()
        };
        assert_eq!([29, 30, 130, 1_000].map(|at| arrived(&mut link, at)), [0, 1, 10, 0]);
        assert_eq!(link.lost(), 9);
    }

    #[test]
    fn the_same_seed_loses_the_same_datagrams_and_order_is_kept() {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let start = Instant::now();
        let run = || {
            let config = LinkConfig {
                loss: 0.2,
                delay: Duration::from_millis(20),
                jitter: Duration::from_millis(10),
                ..LinkConfig::default()
            };
            let mut link = LossyLink::new(config, 7);
            for i in 0..100u8 {
                link.send(
                    start + Duration::from_millis(i.into()),
                    address(1),
                    address(2),
                    Bytes::from(vec![i]),
                );
            }
            assert!(link.poll(start + Duration::from_millis(19)).is_none());
            std::iter::from_fn(|| link.poll(start + Duration::from_secs(1)))
                .map(|d| d.payload[0])
                .collect::<Vec<_>>()
        };
        let first = run();
        assert_eq!(first, run());
        assert!(
            first.is_sorted() && first.len() > 60 && first.len() < 95,
            "{}",
            first.len()
        );
    }
}
