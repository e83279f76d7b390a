//! Packets that a track reads from its ring.

use std::sync::Arc;
use std::time::Instant;

use super::{
    BURST_PART_INTERVAL, BurstSchedule, MAX_PACKETS_PER_BURST_PART, PACED_BURST_PART_INTERVAL, SendState, TrackSender,
};
use crate::congestion::ladder::FrameSelection;
use crate::hub::ring::{PacketRing, RingEntry};
use crate::media::MediaKind;
use crate::media::packet::TrackSeq;
use crate::outputs::transport_cc_egress::wire_len;

impl TrackSender {
    /// Reads the packets that are due from the ring, at most `sendable_bytes` of them.
    pub fn collect_due_packets(
        &mut self,
        now: Instant,
        ring: &PacketRing,
        sendable_bytes: Option<u32>,
        due: &mut Vec<Arc<RingEntry>>,
    ) {
        if self.frame_selection == FrameSelection::AudioOnly {
            return;
        }
        if let SendState::AwaitingKeyFrame { until, cached } = self.send_state {
            let timed_out = until.is_some_and(|until| until <= now);
            let fresh = ring
                .newest_key_frame_seq()
                .is_some_and(|key_frame| Some(key_frame) != cached);
            if timed_out || fresh {
                self.start_at_cached_key_frame(now, ring);
            }
        }
        let SendState::CatchingUp {
            mut cursor,
            read_order,
            started,
            mut pace,
            ..
        } = self.send_state
        else {
            return;
        };
        self.collect_late_packets(cursor, read_order, ring, due);
        if let Some(resume) = self.skip_ahead_position(cursor, pace, ring) {
            let compression = self.timestamp_compression_after_last_sent(ring.get(resume).map(|entry| &entry.packet));
            self.rtp_sequence_rewriter
                .continue_from_track_position(cursor, resume, compression);
            (cursor, pace) = (resume, None);
        } else if cursor < ring.first_seq() {
            self.send_state = SendState::AWAITING_KEY_FRAME;
            return;
        }
        let limit = due.len() + MAX_PACKETS_PER_BURST_PART;
        let mut sendable = sendable_bytes.map_or(i64::MAX, i64::from);
        let mut has_ended = false;
        while due.len() < limit && sendable > 0 {
            let is_known = self.skip_non_reference_frames(now, &mut cursor, ring);
            if !is_known || cursor >= ring.end_seq() {
                break;
            }
            if let Some(entry) = ring.get(cursor) {
                if self.is_excluded_by_key_frames_only(entry) {
                    has_ended = true;
                    break;
                }
                if pace.is_some_and(|pace| !pace.is_packet_due(entry.packet.time, now.duration_since(started))) {
                    break;
                }
                sendable -= i64::from(wire_len(entry.payload_and_padding_len()));
                due.push(entry.clone());
            }
            cursor += 1;
        }
        self.send_state = if has_ended {
            self.mark_probe_reserve_outdated();
            self.state_awaiting_next_key_frame(ring)
        } else if cursor < ring.end_seq() {
            let interval = if sendable_bytes.is_some() {
                PACED_BURST_PART_INTERVAL
            } else {
                BURST_PART_INTERVAL
            };
            SendState::CatchingUp {
                cursor,
                read_order: ring.insertion_count(),
                started,
                due: now + interval,
                pace,
            }
        } else {
            SendState::Live {
                after_order: ring.insertion_count(),
            }
        };
    }

    /// Returns where to continue if the ring no longer holds the next packet, or if a newer key frame makes the rest of
    /// the burst unnecessary. `None` if neither applies, and for video without a key frame in the ring.
    fn skip_ahead_position(
        &self,
        cursor: TrackSeq,
        pace: Option<BurstSchedule>,
        ring: &PacketRing,
    ) -> Option<TrackSeq> {
        let lost = cursor < ring.first_seq();
        match (self.kind, ring.newest_key_frame_seq()) {
            (MediaKind::Audio, _) => lost.then(|| ring.first_seq()),
            (MediaKind::Video, Some(key_frame)) => {
                let newer = pace.is_some_and(|pace| key_frame > pace.key_frame_seq && key_frame > cursor);
                (lost || newer).then_some(key_frame)
            }
            (MediaKind::Video, None) => None,
        }
    }
}
