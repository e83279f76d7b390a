//! What the media plane counts, for the metrics. Shared by all shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::socket::SendCounters;
use crate::session::{CloseReason, guard};

/// Counters of the media plane; all only rise.
#[derive(Debug, Default)]
pub struct Counters {
    pub received_datagrams: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent: Arc<SendCounters>,
    dropped: [AtomicU64; DropReason::ALL.len()],
    closed: [AtomicU64; CloseReason::ALL.len()],
    in_sessions: [AtomicU64; guard::DropReason::ALL.len()],
}

/// Why a datagram or a message was dropped before it reached a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its sender was not authenticated by ICE and it is no check for a session of ours.
    UnknownSender,
    /// The shard that it was for is too busy.
    MailboxFull,
    /// A check from an address that another session was heard at just now.
    AddressHeld,
}

impl DropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::UnknownSender, Self::MailboxFull, Self::AddressHeld];

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownSender => "unknown_sender",
            Self::MailboxFull => "mailbox_full",
            Self::AddressHeld => "address_held",
        }
    }
}

impl Counters {
    /// Counts a drop.
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

    /// Counts what a session that has ended had left out.
    pub fn add_session_drops(&self, drops: &guard::Drops) {
        for (counter, dropped) in self.in_sessions.iter().zip(drops) {
            counter.fetch_add(u64::from(*dropped), Ordering::Relaxed);
        }
    }

    /// What ended sessions had left out, by reason.
    pub fn session_drops(&self) -> impl Iterator<Item = (guard::DropReason, u64)> + '_ {
        let counts = self.in_sessions.iter().map(|n| n.load(Ordering::Relaxed));
        guard::DropReason::ALL.into_iter().zip(counts)
    }

    /// Drops by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .into_iter()
            .zip(&self.dropped)
            .map(|(reason, n)| (reason, n.load(Ordering::Relaxed)))
    }

    /// Ended sessions by reason.
    pub fn closes(&self) -> impl Iterator<Item = (CloseReason, u64)> + '_ {
        CloseReason::ALL
            .into_iter()
            .zip(&self.closed)
            .map(|(reason, n)| (reason, n.load(Ordering::Relaxed)))
    }
}
