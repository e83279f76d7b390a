//! Counters of the media plane, for the metrics. Shared by all shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::data_counters::DataCounters;
use super::tcp::TcpCloseReason;
use crate::hub::session_registry::ReachedLimit;
use crate::hub::traffic::ViewerRtcpTotals;
use crate::session::{CloseReason, dtls_filter};

/// Counters of the media plane. They never decrease.
#[derive(Debug)]
pub struct SharedMediaCounters {
    pub received_datagrams: AtomicU64,
    pub received_bytes: AtomicU64,
    pub send_counters: Arc<SendCounters>,
    dropped_datagram_counts: [AtomicU64; RoutingDropReason::ALL.len()],
    closed_session_counts: [AtomicU64; CloseReason::ALL.len()],
    session_drops: [AtomicU64; dtls_filter::PacketDropReason::ALL.len()],
    closed_tcp_connection_counts: [AtomicU64; TcpCloseReason::ALL.len()],
    refused_sessions: [AtomicU64; ReachedLimit::ALL_LIMITS.len()],
    evicted_sessions: [AtomicU64; ReachedLimit::ALL_LIMITS.len()],
    /// Time from the offer to the end of the handshake.
    pub connect_time: Histogram<{ CONNECT_TIME_BOUNDS_US.len() }>,
    /// Time from the arrival of a packet until it was sent to the viewers of a shard: the maximum of each tick.
    pub forwarding_delay: Histogram<{ FORWARDING_DELAY_BOUNDS_US.len() }>,
    /// Reception as reported by viewers.
    pub viewer_reception_reports: ViewerRtcpTotals,
    /// Messages of data channels.
    pub data: DataCounters,
    /// Round-trip times to viewers, one for each report block.
    pub viewer_round_trip_time: Histogram<{ ROUND_TRIP_TIME_BOUNDS_US.len() }>,
}

/// Counters of sending. Shared by all shards.
#[derive(Debug, Default)]
pub struct SendCounters {
    pub sent_datagrams: AtomicU64,
    pub send_calls: AtomicU64,
    /// Datagrams dropped because the send buffer of the socket was full.
    pub dropped_buffer_full: AtomicU64,
    /// Datagrams that the kernel refused for another reason, e.g. no route.
    pub dropped_by_kernel: AtomicU64,
    /// Datagrams that did not fit into the queue of a TCP connection.
    pub dropped_tcp_queue_full: AtomicU64,
    /// UDP segmentation offload is not available: each datagram is sent by itself.
    pub gso_unavailable: AtomicBool,
}

/// Histogram of durations with `N` upper bounds in microseconds.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds_us: &'static [u64; N],
    bucket_counts: [AtomicU64; N],
    /// Durations above the last bound.
    overflow_count: AtomicU64,
    /// Sum in microseconds.
    sum_us: AtomicU64,
}

/// Bounds of the connection time: 50 ms to 15 s.
const CONNECT_TIME_BOUNDS_US: [u64; 9] = [
    50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 15_000_000,
];
/// Bounds of the forwarding time: 0.1 ms to 100 ms.
const FORWARDING_DELAY_BOUNDS_US: [u64; 9] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000];
/// Bounds of round-trip times: 5 ms, as in one building, to 1 s, as by satellite.
const ROUND_TRIP_TIME_BOUNDS_US: [u64; 8] = [5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];

impl<const N: usize> Histogram<N> {
    /// Makes an empty histogram with these upper bounds in microseconds, in ascending order.
    pub fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds_us: bounds,
            bucket_counts: std::array::from_fn(|_| AtomicU64::new(0)),
            overflow_count: AtomicU64::new(0),
            sum_us: AtomicU64::new(0),
        }
    }

    /// Returns the upper bounds in seconds.
    pub fn bucket_bounds_seconds(&self) -> impl Iterator<Item = f64> + '_ {
        self.bounds_us.iter().map(|bound| *bound as f64 / 1e6)
    }

    /// Counts a duration.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = self.bounds_us.iter().position(|bound| micros <= *bound);
        let counter = index
            .and_then(|index| self.bucket_counts.get(index))
            .unwrap_or(&self.overflow_count);
        counter.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns the cumulative counts: for each bound the number of durations up to it, and last the number of all.
    pub fn cumulative_counts(&self) -> Vec<u64> {
        let mut sum = 0;
        let counts = self.bucket_counts.iter().chain([&self.overflow_count]);
        counts
            .map(|count| count.load(Ordering::Relaxed))
            .map(|count| {
                sum += count;
                sum
            })
            .collect()
    }

    /// Returns the sum in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_us.load(Ordering::Relaxed) as f64 / 1_000_000.0
    }
}

/// Why a datagram or a message was dropped before it reached a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingDropReason {
    /// ICE has not authenticated its sender, and it is not a check for a session of this gateway.
    UnknownSender,
    /// The mailbox of its shard was full.
    MailboxFull,
    /// A check from an address that another session holds.
    AddressHeld,
}

impl RoutingDropReason {
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

impl Default for SharedMediaCounters {
    fn default() -> Self {
        Self {
            received_datagrams: AtomicU64::default(),
            received_bytes: AtomicU64::default(),
            send_counters: Arc::default(),
            dropped_datagram_counts: Default::default(),
            closed_session_counts: Default::default(),
            session_drops: Default::default(),
            closed_tcp_connection_counts: Default::default(),
            refused_sessions: Default::default(),
            evicted_sessions: Default::default(),
            connect_time: Histogram::new(&CONNECT_TIME_BOUNDS_US),
            forwarding_delay: Histogram::new(&FORWARDING_DELAY_BOUNDS_US),
            viewer_reception_reports: ViewerRtcpTotals::default(),
            data: DataCounters::default(),
            viewer_round_trip_time: Histogram::new(&ROUND_TRIP_TIME_BOUNDS_US),
        }
    }
}

impl SharedMediaCounters {
    /// Counts a dropped datagram or message.
    pub(crate) fn count_dropped_datagram(&self, reason: RoutingDropReason) {
        if let Some(counter) = self.dropped_datagram_counts.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the end of a session.
    pub(crate) fn count_closed_session(&self, reason: CloseReason) {
        if let Some(counter) = self.closed_session_counts.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a session that was refused because this limit was reached.
    pub fn count_session_refused_by_limit(&self, full: ReachedLimit) {
        if let Some(counter) = self.refused_sessions.get(full as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of refused sessions by limit.
    pub fn refused_session_counts_by_limit(&self) -> impl Iterator<Item = (ReachedLimit, u64)> + '_ {
        let counts = self.refused_sessions.iter().map(|n| n.load(Ordering::Relaxed));
        ReachedLimit::ALL_LIMITS.into_iter().zip(counts)
    }

    /// Counts a half-open session that was evicted because this limit was reached.
    pub fn count_session_evicted_by_limit(&self, full: ReachedLimit) {
        if let Some(counter) = self.evicted_sessions.get(full as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of evicted half-open sessions by limit.
    pub fn evicted_session_counts_by_limit(&self) -> impl Iterator<Item = (ReachedLimit, u64)> + '_ {
        let counts = self.evicted_sessions.iter().map(|n| n.load(Ordering::Relaxed));
        ReachedLimit::ALL_LIMITS.into_iter().zip(counts)
    }

    /// Counts a closed connection to the TCP port.
    pub fn count_closed_tcp_connection(&self, reason: TcpCloseReason) {
        if let Some(counter) = self.closed_tcp_connection_counts.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of closed connections to the TCP port by reason.
    pub fn closed_tcp_connection_counts(&self) -> impl Iterator<Item = (TcpCloseReason, u64)> + '_ {
        let counts = self
            .closed_tcp_connection_counts
            .iter()
            .map(|n| n.load(Ordering::Relaxed));
        TcpCloseReason::ALL.into_iter().zip(counts)
    }

    /// Adds the packets that a session dropped, when it has ended.
    pub(crate) fn add_packets_dropped_by_session(&self, drops: &dtls_filter::PacketDropCounts) {
        for (counter, dropped) in self.session_drops.iter().zip(drops) {
            counter.fetch_add(u64::from(*dropped), Ordering::Relaxed);
        }
    }

    /// Returns the number of packets that ended sessions dropped, by reason.
    pub fn packets_dropped_by_ended_sessions(&self) -> impl Iterator<Item = (dtls_filter::PacketDropReason, u64)> + '_ {
        let counts = self.session_drops.iter().map(|n| n.load(Ordering::Relaxed));
        dtls_filter::PacketDropReason::ALL.into_iter().zip(counts)
    }

    /// Returns the number of dropped datagrams and messages by reason.
    pub fn dropped_datagram_counts(&self) -> impl Iterator<Item = (RoutingDropReason, u64)> + '_ {
        RoutingDropReason::ALL
            .into_iter()
            .zip(&self.dropped_datagram_counts)
            .map(|(reason, n)| (reason, n.load(Ordering::Relaxed)))
    }

    /// Returns the number of ended sessions by reason.
    pub fn closed_session_counts(&self) -> impl Iterator<Item = (CloseReason, u64)> + '_ {
        CloseReason::ALL
            .into_iter()
            .zip(&self.closed_session_counts)
            .map(|(reason, n)| (reason, n.load(Ordering::Relaxed)))
    }
}
