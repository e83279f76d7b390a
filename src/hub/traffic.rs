//! How a stream gets through, on both of its sides: counts that only rise, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::media::rtcp::Message;

/// What is known of the networks between a source, the gateway, and the viewers of a stream.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Packets that the source sent, by its sequence numbers, as of the last report to it.
    pub expected: AtomicU64,
    /// Those of them that had not come by then. Some come later, when they were asked for.
    pub missing: AtomicU64,
    /// Packets that the source was asked for again, each time counted.
    pub asked: AtomicU64,
    /// Key frames that the source was asked for.
    pub key_frames_asked: AtomicU64,
    /// What viewers say of their reception.
    pub reception: ReceptionReports,
    /// Round trips to viewers that were measured, and their sum in microseconds.
    pub round_trips: AtomicU64,
    pub round_trip_micros: AtomicU64,
    /// Packets that were sent to viewers again.
    pub resent: AtomicU64,
}

/// What viewers say of their reception, of a stream or of all.
#[derive(Debug, Default)]
pub struct ReceptionReports {
    /// Their reports, and the sum of the parts lost that they tell, in 1/256.
    pub reports: AtomicU64,
    pub reported_loss: AtomicU64,
    /// Packets that they asked for again.
    pub nacked: AtomicU64,
    /// Key frames that they asked for.
    pub key_frames_requested: AtomicU64,
}

impl ReceptionReports {
    /// Counts what one of them says.
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
    /// Counts a round trip to a viewer.
    pub fn round_trip(&self, took: Duration) {
        add(&self.round_trips, 1);
        add(
            &self.round_trip_micros,
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        );
    }

    /// Counts what came of a source since the last report to it.
    pub fn received(&self, expected: u64, missing: u64) {
        add(&self.expected, expected);
        add(&self.missing, missing);
    }
}

/// Counts more.
pub fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
