//! RTCP from the gateway to one publisher: its identity, and the bandwidth feedback that was negotiated.

use std::time::{Duration, Instant};

use crate::media::Ssrc;
use crate::media::rtcp;
use crate::session::feedback::{BitsPerSecond, RembEstimator, TransportFeedbackGenerator};

/// RTCP towards the publisher.
pub(crate) struct PublisherFeedback {
    pub sender_ssrc: Ssrc,
    pub cname: String,
    transport_feedback: Option<TransportFeedbackGenerator>,
    pub remb: Option<RembEstimator>,
    pub next_report_at: Instant,
}

/// Between receiver reports.
pub(crate) const RECEIVER_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What a publisher without transport-wide feedback may send at least, and is told at most.
const REMB_FLOOR: BitsPerSecond = BitsPerSecond(500_000);
const REMB_CEILING: BitsPerSecond = BitsPerSecond(50_000_000);

impl PublisherFeedback {
    /// `transport_feedback` and `remb` say which bandwidth feedback was negotiated; `random` gives our SSRC and CNAME.
    pub(crate) fn new(now: Instant, transport: bool, remb: bool, random: &mut dyn FnMut() -> u32) -> Self {
        let ssrc = Ssrc(random() | 1);
        Self {
            sender_ssrc: ssrc,
            cname: format!("{:08x}", random()),
            transport_feedback: transport.then(|| TransportFeedbackGenerator::new(now, ssrc)),
            remb: remb.then(|| RembEstimator::new(REMB_FLOOR, REMB_CEILING)),
            next_report_at: now + RECEIVER_REPORT_INTERVAL,
        }
    }

    /// Records a packet and its transport-wide sequence number.
    pub(crate) fn on_packet(&mut self, now: Instant, ssrc: Ssrc, wide_seq: Option<u16>, length: usize) {
        if let (Some(wide_seq), Some(transport)) = (wide_seq, &mut self.transport_feedback) {
            transport.on_packet(now, ssrc, wide_seq);
        }
        if let Some(remb) = &mut self.remb {
            remb.on_packet(now, length);
        }
    }

    /// Appends the bandwidth feedback that is due; `media` is any SSRC of the publisher.
    pub(crate) fn write_bandwidth_feedback(&mut self, now: Instant, media: Option<Ssrc>, body: &mut Vec<u8>) {
        let Some(media) = media else { return };
        if let Some(packets) = self.transport_feedback.as_mut().and_then(|t| t.poll(now)) {
            body.extend(packets);
        }
        if let Some(bitrate) = self.remb.as_mut().and_then(|r| r.poll(now)) {
            rtcp::write_remb(body, self.sender_ssrc, media, bitrate.0);
        }
    }

    /// When feedback is due.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let transport = self
            .transport_feedback
            .as_ref()
            .and_then(TransportFeedbackGenerator::poll_timeout);
        let remb = self.remb.as_ref().and_then(RembEstimator::poll_timeout);
        let due = [transport, remb].into_iter().flatten().min();
        due.map_or(self.next_report_at, |due| due.min(self.next_report_at))
    }
}
