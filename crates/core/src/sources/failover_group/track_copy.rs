//! Copies the packets of a source's track to the track of the stream that shows it: one continuous numbering and timeline
//! across switches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hub::ring::RingEntry;
use crate::hub::source_rewriter::{IngestSeqAndTimestampRewriter, ReceivedPacket};
use crate::hub::track::{Track, TrackSourceProperties};
use crate::media::clock::{TimestampCompression, TrackClock, duration_to_ticks};
use crate::media::packet::TrackTime;

/// What a copy begins with: read from the source's track.
#[derive(Debug)]
pub(super) struct TrackCopyStart {
    pub clock: TrackClock,
    /// Timestamp of the newest frame of the source.
    pub newest_time: Option<TrackTime>,
    /// Packets that are there already: of video those since the key frame that the copy begins with.
    pub cached_packets: Vec<Arc<RingEntry>>,
}

/// The copy of one track.
#[derive(Debug)]
pub(super) struct TrackCopy {
    numbering_rewriter: IngestSeqAndTimestampRewriter,
    /// Of the packets that were cached when the copy began.
    timestamp_compression: Option<TimestampCompression>,
    /// [`RingEntry::insertion_order`] of the newest packet that was copied.
    last_copied: u64,
    last_sender_report_or_alignment: Option<(TrackTime, Instant)>,
    /// What was cached arrives at the target when the copy begins.
    arrival_of_cached_packets: Option<Instant>,
}

/// Minimum step from the last frame before a switch to the first one after it.
const MIN_TIMESTAMP_STEP_AT_SWITCH: Duration = Duration::from_millis(10);

/// Minimum step between cached frames. It is this short because a stream may have many of them: at ten seconds of frames
/// it moves the video by 30 ms.
const MIN_CACHED_FRAME_STEP: Duration = Duration::from_micros(100);

impl TrackCopy {
    /// Makes the copy that follows what `target` has carried so far. It copies nothing yet.
    ///
    /// What arrives now goes on where the target's clock is now. The cached frames before it are compressed into the time
    /// that has passed since the last frame of the target: a decoder needs them, and the receiver ends up at the live edge.
    ///
    /// `aligned_offset` is that of a copy of the same track to another stream with this timeline, if there is one.
    pub(super) fn new(now: Instant, target: &Track, start: &TrackCopyStart, aligned_offset: Option<u64>) -> Self {
        let (Some((target_newest, at)), Some(source_newest)) =
            (target.ring().newest_track_time_and_arrival(), start.newest_time)
        else {
            return Self::with_rewriter(IngestSeqAndTimestampRewriter::new());
        };
        let rate = start.clock.clock_rate();
        let ticks = |duration| duration_to_ticks(duration, rate);
        // How old the newest frame is.
        let arriving = start.clock.track_time_for_arrival_at(now).unwrap_or(source_newest);
        let age = arriving.saturating_sub(source_newest);
        let target_now = target
            .clock()
            .track_time_for_arrival_at(now)
            .unwrap_or_else(|| target_newest + ticks(now.saturating_duration_since(at)));
        let earliest = target_newest + ticks(MIN_TIMESTAMP_STEP_AT_SWITCH);
        let first = start
            .cached_packets
            .first()
            .map_or(source_newest, |entry| entry.packet.time);
        let span = source_newest.saturating_sub(first);
        let least = span.min(count_frames(&start.cached_packets) * ticks(MIN_CACHED_FRAME_STEP));
        let live_edge = match aligned_offset {
            Some(offset) => source_newest.wrapping_add(offset),
            None => target_now.saturating_sub(age),
        };
        let end = live_edge.max(earliest + least);
        let room = span.min(end - earliest);
        let compression = (room < span).then_some(TimestampCompression {
            first_packet_time: first,
            mapped_first_packet_time: source_newest - room,
            live_edge_time: source_newest,
        });
        let offset = end.wrapping_sub(source_newest);
        Self {
            timestamp_compression: compression,
            arrival_of_cached_packets: Some(now),
            ..Self::with_rewriter(IngestSeqAndTimestampRewriter::with_timestamp_offset(offset))
        }
    }

    /// Makes the copy to a track that has the timeline of another one. Adding `offset`, wrapping, makes timestamps of the
    /// source timestamps of that timeline.
    pub(super) fn with_timestamp_offset(offset: u64) -> Self {
        Self::with_rewriter(IngestSeqAndTimestampRewriter::with_timestamp_offset(offset))
    }

    /// Returns what is added to timestamps of the source, wrapping; `None` before the first packet.
    pub(super) fn timestamp_offset(&self) -> Option<u64> {
        self.numbering_rewriter.to_track_time(0, 0)
    }

    fn with_rewriter(numbering_rewriter: IngestSeqAndTimestampRewriter) -> Self {
        Self {
            numbering_rewriter,
            timestamp_compression: None,
            last_copied: 0,
            last_sender_report_or_alignment: None,
            arrival_of_cached_packets: None,
        }
    }

    /// Skips what the source's ring has held for longer: a copy of audio begins with what arrives now.
    pub(super) fn skip_packets_up_to(&mut self, insertion_order: u64) {
        self.last_copied = self.last_copied.max(insertion_order);
    }

    /// Writes those of these packets of the source that were not copied yet to the target, and what is known of the
    /// source's track. Appends the packets to `out`.
    pub(super) fn copy_packets_and_properties(
        &mut self,
        target: &mut Track,
        packets: &[Arc<RingEntry>],
        source: &TrackSourceProperties,
        out: &mut Vec<Arc<RingEntry>>,
    ) {
        target.copy_source_properties(source);
        self.copy_packets(target, packets, out);
        self.copy_capture_time(target, source);
    }

    fn copy_packets(&mut self, target: &mut Track, packets: &[Arc<RingEntry>], out: &mut Vec<Arc<RingEntry>>) {
        let (kind, copied) = (target.kind(), self.last_copied);
        let is_new = |entry: &&Arc<RingEntry>| entry.packet.codec.kind() == kind && entry.insertion_order > copied;
        let new = packets.iter().filter(is_new);
        let newest = new.clone().map(|entry| entry.insertion_order).max();
        let (compression, arrival) = (self.timestamp_compression, self.arrival_of_cached_packets.take());
        let received = new.map(|entry| {
            let packet = &entry.packet;
            ReceivedPacket {
                numbering_epoch: 0,
                seq: packet.seq,
                timestamp: compression.map_or(packet.time, |compression| compression.compress_time(packet.time)),
                marker: packet.marker,
                codec: packet.codec,
                identifies_key_frame: packet.identifies_key_frame,
                parameter_sets_to_insert: Vec::new(),
                payload: packet.payload.clone(),
                arrival: arrival.unwrap_or(packet.arrival),
                captured_at: None,
            }
        });
        self.numbering_rewriter.rewrite_packets_into_ring(target, received, out);
        self.last_copied = newest.unwrap_or(copied);
    }

    /// Capture times relate audio to video.
    fn copy_capture_time(&mut self, target: &mut Track, source: &TrackSourceProperties) {
        let Some((time, at, standing_delay)) = source.clock.last_sender_report_or_alignment() else {
            return;
        };
        if self.last_sender_report_or_alignment == Some((time, at)) {
            return;
        }
        let Some(target_time) = self.numbering_rewriter.to_track_time(0, time) else {
            return;
        };
        self.last_sender_report_or_alignment = Some((time, at));
        match standing_delay {
            Some(standing_delay) => target.record_capture_time(target_time, at, standing_delay),
            None => target.align_clock_without_sender_reports(target_time, at),
        }
    }
}

fn count_frames(packets: &[Arc<RingEntry>]) -> u64 {
    let steps = packets.windows(2).filter(|pair| match pair {
        [a, b] => a.packet.time != b.packet.time,
        _ => false,
    });
    1 + steps.count() as u64
}
