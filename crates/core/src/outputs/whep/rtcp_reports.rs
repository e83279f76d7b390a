//! Sender reports, and the round-trip time that receiver reports tell.

use std::time::{Duration, Instant};

use super::{Viewer, ViewerTrack};
use crate::media::rtcp::{self, RtcpMessage, SenderInfo};

impl Viewer {
    /// Returns a compound packet with a sender report for each track that is at the live edge.
    pub(super) fn build_sender_reports(&self, now: Instant, ntp: u64) -> Option<Vec<u8>> {
        let mut compound = Vec::new();
        for ViewerTrack {
            track_sender: track,
            current_stream: from,
            ..
        } in [&self.video, &self.audio].into_iter().flatten()
        {
            let time = from.with_state(|state| state.track(track.kind()).clock().track_time_for_capture_at(now));
            let Some(time) = time.and_then(|time| track.rtp_timestamp_for_sender_report(time)) else {
                continue;
            };
            let sent = track.sender_report_counts();
            let info = SenderInfo {
                ssrc: track.ssrc(),
                ntp_time: ntp,
                rtp_time: time,
                packet_count: sent.packet_count,
                octet_count: sent.octet_count,
            };
            rtcp::write_sender_report_with_cname(&mut compound, &info, &self.cname);
        }
        (!compound.is_empty()).then_some(compound)
    }
}

/// Returns the round-trip times of the report blocks in RTCP messages of a viewer.
pub(crate) fn round_trip_times(ntp_now: u64, messages: &[RtcpMessage]) -> impl Iterator<Item = Duration> + '_ {
    let blocks = messages.iter().flat_map(|message| match message {
        RtcpMessage::ReceiverReport { blocks } | RtcpMessage::SenderReport { blocks, .. } => blocks.as_slice(),
        RtcpMessage::Nack { .. }
        | RtcpMessage::KeyFrameRequest { .. }
        | RtcpMessage::ReceiverEstimate { .. }
        | RtcpMessage::Bye => &[],
    });
    // Without a sender report there is no time to compare with.
    blocks
        .filter(|block| block.last_sr != 0)
        .filter_map(move |block| round_trip_time(ntp_now, block))
}

/// Returns the round-trip time of a report block (RFC 3550 §6.4.1), or `None` if it is 10 s or more.
fn round_trip_time(ntp_now: u64, block: &rtcp::ReportBlock) -> Option<Duration> {
    let middle = (ntp_now >> 16) as u32;
    let units = middle
        .wrapping_sub(block.last_sr)
        .wrapping_sub(block.delay_since_last_sr);
    let rtt = Duration::from_secs_f64(f64::from(units) / 65_536.0);
    (rtt < Duration::from_secs(10)).then_some(rtt)
}
