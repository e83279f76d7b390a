//! Transport statistics of a stream, from its source and to its viewers: monotonic counters for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::media::rtcp::RtcpMessage;

/// Packet loss, retransmissions and round-trip times between the source, the gateway and the viewers of a stream.
#[derive(Debug, Default)]
pub struct StreamTransportStats {
    /// Packets sent by the source according to its sequence numbers, as of the last receiver report to it.
    pub expected_packet_count: AtomicU64,
    /// Expected packets that had not arrived by then. Some arrive later by retransmission.
    pub missing_packet_count: AtomicU64,
    /// Packets requested again from the source by NACK; repeated requests count.
    pub packet_count_nacked_to_source: AtomicU64,
    /// Key frame requests sent to the source.
    pub key_frame_request_count_to_source: AtomicU64,
    /// Reception reports of the viewers.
    pub viewer_report_totals: ViewerRtcpTotals,
    /// Number of round-trip time measurements to viewers, and their sum in microseconds.
    pub rtt_measurement_count: AtomicU64,
    pub rtt_sum_micros: AtomicU64,
    /// Packets retransmitted to viewers.
    pub retransmitted_packet_count: AtomicU64,
}

/// Reception reports of viewers, of one stream or of all streams.
#[derive(Debug, Default)]
pub struct ViewerRtcpTotals {
    /// Number of report blocks, and the sum of their fraction lost in 1/256.
    pub report_block_count: AtomicU64,
    pub fraction_lost_sum: AtomicU64,
    /// Packets requested by NACK.
    pub nacked_packet_count: AtomicU64,
    /// Key frame requests.
    pub key_frame_request_count: AtomicU64,
}

impl ViewerRtcpTotals {
    /// Counts the RTCP messages of a viewer.
    pub(crate) fn record_rtcp(&self, messages: &[RtcpMessage]) {
        for message in messages {
            match message {
                RtcpMessage::Nack { seqs, .. } => add_to_counter(&self.nacked_packet_count, seqs.len() as u64),
                RtcpMessage::KeyFrameRequest { .. } => add_to_counter(&self.key_frame_request_count, 1),
                RtcpMessage::ReceiverReport { blocks } | RtcpMessage::SenderReport { blocks, .. } => {
                    let lost = blocks.iter().map(|block| u64::from(block.fraction_lost)).sum();
                    add_to_counter(&self.fraction_lost_sum, lost);
                    add_to_counter(&self.report_block_count, blocks.len() as u64);
                }
                RtcpMessage::ReceiverEstimate { .. } | RtcpMessage::Bye => {}
            }
        }
    }
}

impl StreamTransportStats {
    /// Records a round-trip time to a viewer.
    pub(crate) fn record_viewer_rtt(&self, rtt: Duration) {
        add_to_counter(&self.rtt_measurement_count, 1);
        add_to_counter(&self.rtt_sum_micros, u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
    }

    /// Records the expected and missing packets since the last receiver report to the source.
    pub(crate) fn record_expected_and_missing_packets(&self, expected: u64, missing: u64) {
        add_to_counter(&self.expected_packet_count, expected);
        add_to_counter(&self.missing_packet_count, missing);
    }
}

/// Adds to a counter.
pub(crate) fn add_to_counter(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
