//! How fast a burst is sent where congestion control paces it.

use std::time::{Duration, Instant};

use super::{BURST_PART_INTERVAL, BurstSchedule, SendState, TrackSender};
use crate::hub::ring::PacketRing;
use crate::media::clock::{TimestampCompression, duration_to_ticks, ticks_to_duration};

/// Maximum duration of a burst that congestion control paces.
const MAX_PACED_BURST_DURATION: Duration = Duration::from_secs(3);

impl TrackSender {
    /// Whether a burst is being sent: what is since the last key frame, on a schedule of its own.
    pub fn is_sending_burst(&self) -> bool {
        matches!(self.send_state, SendState::CatchingUp { pace: Some(_), .. })
    }

    /// Schedules the rest of a burst by the rate that is set now. The timestamps go on where they are.
    pub fn reschedule_burst(&mut self, now: Instant, ring: &PacketRing) {
        let SendState::CatchingUp {
            cursor,
            read_order,
            pace: Some(schedule),
            ..
        } = self.send_state
        else {
            return;
        };
        let (Some(rate), Some(next), Some((newest, _))) = (
            self.paced_burst_rate,
            ring.get(cursor),
            ring.newest_track_time_and_arrival(),
        ) else {
            return;
        };
        let time = next.packet.time;
        let mapped = schedule.timestamp_compression.compress_time(time);
        let age = ticks_to_duration(newest.saturating_sub(time), schedule.clock_rate);
        let entries = (cursor..ring.end_seq()).filter_map(|seq| ring.get(seq));
        let bytes: usize = entries.map(|entry| entry.payload_and_padding_len()).sum();
        let room = paced_burst_duration(bytes, age, rate).max(BURST_PART_INTERVAL);
        let timestamp_compression = TimestampCompression {
            first_packet_time: time,
            mapped_first_packet_time: mapped,
            live_edge_time: newest.max(mapped) + duration_to_ticks(room, schedule.clock_rate),
        };
        self.rtp_sequence_rewriter
            .continue_from_track_position(cursor, cursor, Some(timestamp_compression));
        self.send_state = SendState::CatchingUp {
            cursor,
            read_order,
            started: now,
            due: now,
            pace: Some(BurstSchedule {
                timestamp_compression,
                ..schedule
            }),
        };
    }
}

/// How long the key frame of a burst takes at a rate in bytes per second: what follows is scheduled after it, or would be
/// late and have the viewer buffer for longer. Nothing where congestion control does not pace.
pub(super) fn key_frame_send_duration(bytes: usize, rate: Option<u32>) -> Duration {
    rate.map_or(Duration::ZERO, |rate| {
        Duration::from_secs_f64(bytes as f64 / f64::from(rate.max(1))).min(MAX_PACED_BURST_DURATION)
    })
}

/// How long a burst takes at a rate in bytes per second. What arrives in the meantime belongs to it: the `bytes` that are
/// there arrived during `age`.
pub(super) fn paced_burst_duration(bytes: usize, age: Duration, rate: u32) -> Duration {
    let bytes = bytes as f64;
    let live_rate = bytes / age.as_secs_f64().max(0.001);
    let duration = Duration::try_from_secs_f64(bytes / (f64::from(rate) - live_rate).max(1.0));
    duration.map_or(MAX_PACED_BURST_DURATION, |duration| {
        duration.min(MAX_PACED_BURST_DURATION)
    })
}
