//! Counters of data channel messages, for the metrics. Shared by all shards.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::session::data::{DataSendError, IgnoredMessageReason, SctpDropReason};

/// Counters of messages. They never decrease.
#[derive(Debug, Default)]
pub struct DataCounters {
    received: [AtomicU64; DataOrigin::ALL.len()],
    /// Messages sent to viewers and publishers, each counted.
    pub sent_messages: AtomicU64,
    pub sent_bytes: AtomicU64,
    dropped: [AtomicU64; DataDropReason::ALL.len()],
    dropped_packets: [AtomicU64; SctpDropReason::ALL.len()],
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOrigin {
    Publisher,
    Viewer,
    Api,
}

impl DataOrigin {
    /// All origins, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Publisher, Self::Viewer, Self::Api];

    /// Returns the label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Viewer => "viewer",
            Self::Api => "api",
        }
    }
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDropReason {
    /// It came on a channel without a valid label, or its text is not UTF-8.
    Invalid,
    /// A viewer sent more than it may.
    Rate,
    /// A viewer sent it, and the configuration does not let viewers send.
    NotAllowed,
    /// Its publisher is not the source of the stream.
    NotSource,
    /// The stream has as many labels as it may.
    TooManyLabels,
    /// The mailbox of the shard with the receivers was full.
    MailboxFull,
    /// Too much waits to be sent to the receiver.
    SlowReceiver,
    /// It is longer than the receiver takes.
    TooLong,
    /// The receiver has as many channels as it may.
    TooManyChannels,
}

impl DataDropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Invalid,
        Self::Rate,
        Self::NotAllowed,
        Self::NotSource,
        Self::TooManyLabels,
        Self::MailboxFull,
        Self::SlowReceiver,
        Self::TooLong,
        Self::TooManyChannels,
    ];

    /// Returns the label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Rate => "rate",
            Self::NotAllowed => "not_allowed",
            Self::NotSource => "not_source",
            Self::TooManyLabels => "too_many_labels",
            Self::MailboxFull => "mailbox_full",
            Self::SlowReceiver => "slow_receiver",
            Self::TooLong => "too_long",
            Self::TooManyChannels => "too_many_channels",
        }
    }
}

impl From<IgnoredMessageReason> for DataDropReason {
    fn from(reason: IgnoredMessageReason) -> Self {
        match reason {
            IgnoredMessageReason::Invalid => Self::Invalid,
            IgnoredMessageReason::Rate => Self::Rate,
        }
    }
}

impl DataCounters {
    /// Counts a message that was received.
    pub fn count_received(&self, origin: DataOrigin) {
        add_to_counter(self.received.get(origin as usize), 1);
    }

    /// Counts a message that was dropped.
    pub(crate) fn count_dropped(&self, reason: DataDropReason) {
        add_to_counter(self.dropped.get(reason as usize), 1);
    }

    /// Counts an SCTP packet that was dropped.
    pub(crate) fn count_dropped_packet(&self, reason: SctpDropReason) {
        add_to_counter(self.dropped_packets.get(reason as usize), 1);
    }

    /// Counts a message of so many bytes that was sent to one receiver, or not. A receiver without data channels misses
    /// nothing.
    pub(crate) fn count_send_result(&self, length: usize, result: Result<(), DataSendError>) {
        match result {
            Ok(()) => {
                add_to_counter(Some(&self.sent_messages), 1);
                add_to_counter(Some(&self.sent_bytes), length as u64);
            }
            Err(DataSendError::NotConnected) => {}
            Err(DataSendError::TooLong) => self.count_dropped(DataDropReason::TooLong),
            Err(DataSendError::TooManyChannels) => self.count_dropped(DataDropReason::TooManyChannels),
            Err(DataSendError::TooSlow) => self.count_dropped(DataDropReason::SlowReceiver),
        }
    }

    /// Returns the number of received messages by origin.
    pub fn received_message_counts(&self) -> impl Iterator<Item = (DataOrigin, u64)> + '_ {
        let counts = self.received.iter().map(|n| n.load(Ordering::Relaxed));
        DataOrigin::ALL.into_iter().zip(counts)
    }

    /// Returns the number of dropped messages by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (DataDropReason, u64)> + '_ {
        let counts = self.dropped.iter().map(|n| n.load(Ordering::Relaxed));
        DataDropReason::ALL.into_iter().zip(counts)
    }

    /// Returns the number of dropped SCTP packets by reason.
    pub fn dropped_packets(&self) -> impl Iterator<Item = (SctpDropReason, u64)> + '_ {
        let counts = self.dropped_packets.iter().map(|n| n.load(Ordering::Relaxed));
        SctpDropReason::ALL.into_iter().zip(counts)
    }
}

fn add_to_counter(counter: Option<&AtomicU64>, amount: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
