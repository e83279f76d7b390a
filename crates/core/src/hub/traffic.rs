//! Transport statistics of a stream, from its source and to its viewers: monotonic counters for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::media::rtcp::Message;

/// Packet loss, retransmissions and round-trip times between the source, the gateway and the viewers of a stream.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Packets sent by the source according to its sequence numbers, as of the last receiver report to it.
    pub expected: AtomicU64,
    /// Expected packets that had not arrived by then. Some arrive later by retransmission.
    pub missing: AtomicU64,
    /// Packets requested again from the source by NACK; repeated requests count.
    pub asked: AtomicU64,
    /// Key frame requests sent to the source.
    pub key_frames_asked: AtomicU64,
    /// Reception reports of the viewers.
    pub reception: ReceptionReports,
    /// Number of round-trip time measurements to viewers, and their sum in microseconds.
    pub round_trips: AtomicU64,
    pub round_trip_micros: AtomicU64,
    /// Packets retransmitted to viewers.
    pub resent: AtomicU64,
}

/// Reception reports of viewers, of one stream or of all streams.
#[derive(Debug, Default)]
pub struct ReceptionReports {
    /// Number of report blocks, and the sum of their fraction lost in 1/256.
    pub reports: AtomicU64,
    pub reported_loss: AtomicU64,
    /// Packets requested by NACK.
    pub nacked: AtomicU64,
    /// Key frame requests.
    pub key_frames_requested: AtomicU64,
}

impl ReceptionReports {
    /// Counts the RTCP messages of a viewer.
    pub fn record(&self, messages: &[Message]) {
        for message in messages {
            match message {
                Message::Nack { seqs, .. } => add(&self.nacked, seqs.len() as u64),
                Message::KeyFrameRequest { .. } => add(&self.key_frames_requested, 1),
                Message::ReceiverReport { blocks } | Message::SenderReport { blocks, .. } => {
                    let lost = blocks.iter().map(|block| u64::from(block.fraction_lost)).sum();
                    add(&self.reported_loss, lost);
                    add(&self.reports, blocks.len() as u64);
                }
                Message::Bye => {}
            }
        }
    }
}

impl Traffic {
    /// Records a round-trip time to a viewer.
    pub fn round_trip(&self, took: Duration) {
        add(&self.round_trips, 1);
        add(
            &self.round_trip_micros,
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        );
    }

    /// Records the expected and missing packets since the last receiver report to the source.
    pub fn received(&self, expected: u64, missing: u64) {
        add(&self.expected, expected);
        add(&self.missing, missing);
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
