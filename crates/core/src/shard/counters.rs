//! Counters of the media plane, for the metrics. Shared by all shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::tcp::TcpCloseReason;
use crate::hub::registry::Full;
use crate::hub::traffic::ReceptionReports;
use crate::session::{CloseReason, guard};

/// Counters of the media plane. They never decrease.
#[derive(Debug)]
pub struct Counters {
    pub received_datagrams: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent: Arc<SendCounters>,
    dropped: [AtomicU64; DropReason::ALL.len()],
    closed: [AtomicU64; CloseReason::ALL.len()],
    in_sessions: [AtomicU64; guard::DropReason::ALL.len()],
    tcp_ended: [AtomicU64; TcpCloseReason::ALL.len()],
    refused: [AtomicU64; Full::ALL.len()],
    evicted: [AtomicU64; Full::ALL.len()],
    /// Time from the offer to the end of the handshake.
    pub connecting: Histogram<{ CONNECTING.len() }>,
    /// Time from the arrival of a packet until it was sent to the viewers of a shard: the maximum of each tick.
    pub forwarding: Histogram<{ FORWARDING.len() }>,
    /// Reception as reported by viewers.
    pub reception: ReceptionReports,
}

/// Counters of sending. Shared by all shards.
#[derive(Debug, Default)]
pub struct SendCounters {
    pub datagrams: AtomicU64,
    pub calls: AtomicU64,
    /// Datagrams dropped because the send buffer of the socket was full.
    pub dropped_full: AtomicU64,
    /// Datagrams that the kernel refused for another reason, e.g. no route.
    pub dropped_refused: AtomicU64,
    /// Datagrams that did not fit into the queue of a TCP connection.
    pub dropped_tcp: AtomicU64,
    /// UDP segmentation offload is not available: each datagram is sent by itself.
    pub without_segmentation: AtomicBool,
}

/// Histogram of durations with `N` upper bounds in microseconds.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    /// Durations above the last bound.
    longer: AtomicU64,
    /// Sum in microseconds.
    sum: AtomicU64,
}

/// Bounds of the connection time: 50 ms to 15 s.
const CONNECTING: [u64; 9] = [
    50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 15_000_000,
];
/// Bounds of the forwarding time: 0.1 ms to 100 ms.
const FORWARDING: [u64; 9] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000];

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            longer: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Returns the upper bounds in seconds.
    pub fn bounds(&self) -> impl Iterator<Item = f64> + '_ {
        self.bounds.iter().map(|bound| *bound as f64 / 1e6)
    }

    /// Counts a duration.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = self.bounds.iter().position(|bound| micros <= *bound);
        let counter = index.and_then(|index| self.counts.get(index)).unwrap_or(&self.longer);
        counter.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns the cumulative counts: for each bound the number of durations up to it, and last the number of all.
    pub fn cumulative(&self) -> Vec<u64> {
        let mut sum = 0;
        let counts = self.counts.iter().chain([&self.longer]);
        counts
            .map(|count| count.load(Ordering::Relaxed))
            .map(|count| {
                sum += count;
                sum
            })
            .collect()
    }

    /// Returns the sum in seconds.
    pub fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / 1_000_000.0
    }
}

/// Why a datagram or a message was dropped before it reached a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// ICE has not authenticated its sender, and it is not a check for a session of this gateway.
    UnknownSender,
    /// The mailbox of its shard was full.
    MailboxFull,
    /// A check from an address that another session holds.
    AddressHeld,
}

impl DropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::UnknownSender, Self::MailboxFull, Self::AddressHeld];

    /// Returns the label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownSender => "unknown_sender",
            Self::MailboxFull => "mailbox_full",
            Self::AddressHeld => "address_held",
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received_datagrams: AtomicU64::default(),
            received_bytes: AtomicU64::default(),
            sent: Arc::default(),
            dropped: Default::default(),
            closed: Default::default(),
            in_sessions: Default::default(),
            tcp_ended: Default::default(),
            refused: Default::default(),
            evicted: Default::default(),
            connecting: Histogram::new(&CONNECTING),
            forwarding: Histogram::new(&FORWARDING),
            reception: ReceptionReports::default(),
        }
    }
}

impl Counters {
    /// Counts a dropped datagram or message.
    pub fn dropped(&self, reason: DropReason) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the end of a session.
    pub fn closed(&self, reason: CloseReason) {
        if let Some(counter) = self.closed.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a session that was refused because this limit was reached.
    pub fn refused(&self, full: Full) {
        if let Some(counter) = self.refused.get(full as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of refused sessions by limit.
    pub fn refusals(&self) -> impl Iterator<Item = (Full, u64)> + '_ {
        let counts = self.refused.iter().map(|n| n.load(Ordering::Relaxed));
        Full::ALL.into_iter().zip(counts)
    }

    /// Counts a half-open session that was evicted because this limit was reached.
    pub fn evicted(&self, full: Full) {
        if let Some(counter) = self.evicted.get(full as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of evicted half-open sessions by limit.
    pub fn evictions(&self) -> impl Iterator<Item = (Full, u64)> + '_ {
        let counts = self.evicted.iter().map(|n| n.load(Ordering::Relaxed));
        Full::ALL.into_iter().zip(counts)
    }

    /// Counts a closed connection to the TCP port.
    pub fn tcp_ended(&self, reason: TcpCloseReason) {
        if let Some(counter) = self.tcp_ended.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of closed connections to the TCP port by reason.
    pub fn tcp_ends(&self) -> impl Iterator<Item = (TcpCloseReason, u64)> + '_ {
        let counts = self.tcp_ended.iter().map(|n| n.load(Ordering::Relaxed));
        TcpCloseReason::ALL.into_iter().zip(counts)
    }

    /// Adds the packets that a session dropped, when it has ended.
    pub fn add_session_drops(&self, drops: &guard::Drops) {
        for (counter, dropped) in self.in_sessions.iter().zip(drops) {
            counter.fetch_add(u64::from(*dropped), Ordering::Relaxed);
        }
    }

    /// Returns the number of packets that ended sessions dropped, by reason.
    pub fn session_drops(&self) -> impl Iterator<Item = (guard::DropReason, u64)> + '_ {
        let counts = self.in_sessions.iter().map(|n| n.load(Ordering::Relaxed));
        guard::DropReason::ALL.into_iter().zip(counts)
    }

    /// Returns the number of dropped datagrams and messages by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .into_iter()
            .zip(&self.dropped)
            .map(|(reason, n)| (reason, n.load(Ordering::Relaxed)))
    }

    /// Returns the number of ended sessions by reason.
    pub fn closes(&self) -> impl Iterator<Item = (CloseReason, u64)> + '_ {
        CloseReason::ALL
            .into_iter()
            .zip(&self.closed)
            .map(|(reason, n)| (reason, n.load(Ordering::Relaxed)))
    }
}
