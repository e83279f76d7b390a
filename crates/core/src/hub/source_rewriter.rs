//! Rewrites the sequence numbers and timestamps of one source to the continuous numbering of a track (invariant 3).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ring::RingEntry;
use super::track::Track;
use super::vp8_rewriter::Vp8CounterOffset;
use crate::media::clock::ticks_to_duration;
use crate::media::codec::FrameReference;
use crate::media::packet::{Packet, TrackSeq, TrackTime};
use crate::media::{Codec, MediaKind};
use crate::session::padding::padding_to_equalize_lengths;

/// A packet with the source's own numbering.
#[derive(Clone, Debug)]
pub struct ReceivedPacket {
    /// Counts how often the source started its numbering again, such as with another SSRC. Numbers of different epochs are
    /// unrelated.
    pub numbering_epoch: u32,
    /// Extended sequence number of the source.
    pub seq: u64,
    /// Extended RTP timestamp of the source.
    pub timestamp: u64,
    pub marker: bool,
    pub codec: Codec,
    /// Identifies its frame as one that a decoder can start with.
    pub identifies_key_frame: bool,
    /// Payloads to insert before this one: parameter sets that the source did not repeat.
    pub parameter_sets_to_insert: Vec<Bytes>,
    pub payload: Bytes,
    pub arrival: Instant,
    /// By its header extension `abs-capture-time`, by the fastest sender report.
    pub captured_at: Option<Instant>,
}

/// A sender report of the source.
#[derive(Clone, Copy, Debug)]
pub struct CaptureTimeReport {
    pub numbering_epoch: u32,
    /// Extended RTP timestamp of the source.
    pub timestamp: u64,
    /// When the media with this timestamp was captured, on a clock that all tracks of the source share.
    pub captured_at: Instant,
    /// [`SenderNtpMapper::standing_delay`](crate::media::clock::SenderNtpMapper::standing_delay).
    pub standing_delay: Duration,
}

/// Rewriting state of one source on one track.
#[derive(Debug)]
pub struct IngestSeqAndTimestampRewriter {
    state: RewriterState,
    /// Sequence number offsets and the first source sequence number of each, oldest first.
    seq_offsets: VecDeque<(u64, u64)>,
    /// Offset added to source timestamps, wrapping.
    timestamp_offset: u64,
    vp8_offset: Vp8CounterOffset,
    newest_packet: Option<NewestPacket>,
    /// Track timestamp and arrival of the packet from which the timestamps were last aligned with the arrivals.
    last_timestamp_alignment: Option<(TrackTime, Instant)>,
    /// Highest source sequence number that is numbered on the track.
    highest_mapped_seq: Option<u64>,
    numbering_epoch: u32,
    /// Offset of all source timestamps, wrapping, if it does not follow from the arrivals.
    fixed_timestamp_offset: Option<u64>,
}

#[derive(Debug)]
enum RewriterState {
    /// Video waits for a key frame; the packets of the current frame are buffered in case it proves to be one.
    WaitingForKeyFrame {
        buffered_packets: Vec<ReceivedPacket>,
    },
    Running,
}

#[derive(Clone, Copy, Debug)]
struct NewestPacket {
    seq: u64,
    timestamp: u64,
    arrival: Instant,
}

struct RewrittenPacket {
    seq: TrackSeq,
    time: TrackTime,
    packet: ReceivedPacket,
}

/// Maximum number of buffered packets of a frame before the one that identifies it as a key frame, e.g. parameter sets.
const MAX_PACKETS_BUFFERED_FOR_KEY_FRAME: usize = 64;

/// A larger step of the sequence number means that the source restarted its numbering.
const MAX_SEQ_JUMP: u64 = 3_000;

/// A larger deviation between timestamps and arrivals means that the source restarted its timestamps.
const MAX_TIMESTAMP_DEVIATION_FROM_ARRIVAL: Duration = Duration::from_secs(5);

/// Timestamps that fall behind the source's own reports by more than this are moved to them.
const MIN_LAG_BEHIND_SENDER_REPORTS_TO_REALIGN: Duration = Duration::from_millis(200);

/// Number of offsets kept for late packets. Each inserted or removed packet makes one.
const MAX_SEQ_OFFSET_COUNT: usize = 128;

impl IngestSeqAndTimestampRewriter {
    /// Creates the state for a source that has not sent anything yet.
    pub fn new() -> Self {
        Self {
            state: RewriterState::WaitingForKeyFrame {
                buffered_packets: Vec::new(),
            },
            seq_offsets: VecDeque::new(),
            timestamp_offset: 0,
            vp8_offset: Vp8CounterOffset::default(),
            newest_packet: None,
            last_timestamp_alignment: None,
            highest_mapped_seq: None,
            numbering_epoch: 0,
            fixed_timestamp_offset: None,
        }
    }

    /// Creates the state for a source whose timestamps are already track timestamps, taken from another track.
    pub fn with_track_timestamps() -> Self {
        Self::with_timestamp_offset(0)
    }

    /// Creates the state for a source whose timestamps become track timestamps by adding this, wrapping.
    pub(crate) fn with_timestamp_offset(offset: u64) -> Self {
        Self {
            fixed_timestamp_offset: Some(offset),
            ..Self::new()
        }
    }

    /// What follows has unrelated sequence numbers and timestamps, and begins with a key frame.
    fn restart(&mut self, epoch: u32) {
        *self = Self {
            numbering_epoch: epoch,
            fixed_timestamp_offset: self.fixed_timestamp_offset,
            ..Self::new()
        };
    }

    /// Whether the track needs a key frame from the source.
    pub(crate) fn needs_key_frame(&self) -> bool {
        matches!(self.state, RewriterState::WaitingForKeyFrame { .. })
    }

    /// Maps a source timestamp of an epoch to the track; `None` before its first packet.
    pub(crate) fn to_track_time(&self, epoch: u32, source_time: u64) -> Option<TrackTime> {
        (!self.needs_key_frame() && epoch == self.numbering_epoch)
            .then(|| source_time.wrapping_add(self.timestamp_offset))
    }

    /// Handles a sender report. The timestamps of a source that stood still, such as those of muted audio, are moved forward to
    /// where its reports have them, so that its tracks stay synchronized. Arrivals must agree: some senders report nonsense.
    pub(crate) fn realign_timestamps_and_record_capture_time(&mut self, track: &mut Track, report: CaptureTimeReport) {
        let Some(mut time) = self.to_track_time(report.numbering_epoch, report.timestamp) else {
            return;
        };
        if self.fixed_timestamp_offset.is_none()
            && let Some(expected) = track.clock.reported_track_time_at(report.captured_at)
            && let Some(lag) = expected.checked_sub(time)
            && ticks_to_duration(lag, track.clock.clock_rate()) > MIN_LAG_BEHIND_SENDER_REPORTS_TO_REALIGN
            && self.lag_behind_arrivals(track.clock.clock_rate()) > ticks_to_duration(lag, track.clock.clock_rate()) / 2
        {
            self.timestamp_offset = self.timestamp_offset.wrapping_add(lag);
            time += lag;
            self.set_lag_reference_to_newest_packet();
        }
        track.record_capture_time(time, report.captured_at, report.standing_delay);
    }

    /// How far the timestamps are behind the arrivals since they were last aligned.
    fn lag_behind_arrivals(&self, rate: u32) -> Duration {
        let (Some(newest), Some((time, at))) = (self.newest_packet, self.last_timestamp_alignment) else {
            return Duration::ZERO;
        };
        let media_elapsed = newest
            .timestamp
            .wrapping_add(self.timestamp_offset)
            .saturating_sub(time);
        let elapsed = newest.arrival.saturating_duration_since(at);
        elapsed.saturating_sub(ticks_to_duration(media_elapsed, rate))
    }

    fn set_lag_reference_to_newest_packet(&mut self) {
        let shift = self.timestamp_offset;
        self.last_timestamp_alignment = self
            .newest_packet
            .map(|newest| (newest.timestamp.wrapping_add(shift), newest.arrival));
    }

    /// Rewrites all packets of one tick and inserts them into the ring; appends the new ones to `out`.
    pub fn rewrite_packets_into_ring(
        &mut self,
        track: &mut Track,
        packets: impl Iterator<Item = ReceivedPacket>,
        out: &mut Vec<Arc<RingEntry>>,
    ) {
        let mut rewritten = Vec::new();
        for packet in packets {
            if packet.numbering_epoch < self.numbering_epoch {
                continue;
            }
            if packet.numbering_epoch > self.numbering_epoch || self.is_discontinuity(&packet) {
                // What follows continues where these end.
                insert_packets_by_frame_and_update_track(track, std::mem::take(&mut rewritten), out);
                self.restart(packet.numbering_epoch);
            }
            self.rewrite_or_buffer_packet(track, packet, &mut rewritten);
        }
        insert_packets_by_frame_and_update_track(track, rewritten, out);
    }

    fn rewrite_or_buffer_packet(
        &mut self,
        track: &mut Track,
        packet: ReceivedPacket,
        rewritten: &mut Vec<RewrittenPacket>,
    ) {
        if packet.payload.is_empty() {
            return self.rewrite_or_buffer_empty_packet(packet, rewritten);
        }
        if self.newest_packet.is_none_or(|newest| packet.seq > newest.seq) {
            self.newest_packet = Some(NewestPacket {
                seq: packet.seq,
                timestamp: packet.timestamp,
                arrival: packet.arrival,
            });
        }
        match &mut self.state {
            RewriterState::Running => self.rewrite_and_append_packet(packet, rewritten),
            RewriterState::WaitingForKeyFrame {
                buffered_packets: frame,
            } => {
                if frame.first().is_some_and(|first| first.timestamp != packet.timestamp) {
                    if self.newest_packet.is_some_and(|newest| newest.seq > packet.seq) {
                        // Late: the rest of its frame and its followers were dropped.
                        return;
                    }
                    frame.clear();
                }
                let begins = track.kind == MediaKind::Audio || packet.identifies_key_frame;
                if frame.len() < MAX_PACKETS_BUFFERED_FOR_KEY_FRAME {
                    frame.push(packet);
                }
                if begins {
                    let mut frame = std::mem::take(frame);
                    frame.sort_by_key(|p| p.seq);
                    self.start_seq_and_timestamp_mapping(track, frame.first());
                    frame
                        .into_iter()
                        .for_each(|p| self.rewrite_and_append_packet(p, rewritten));
                }
            }
        }
    }

    /// A packet without payload is a probe of its sender, or has nothing that a viewer can use. It leaves no gap.
    fn rewrite_or_buffer_empty_packet(&mut self, packet: ReceivedPacket, rewritten: &mut Vec<RewrittenPacket>) {
        if let Some(newest) = &mut self.newest_packet {
            newest.seq = newest.seq.max(packet.seq);
        }
        match &mut self.state {
            RewriterState::Running => self.rewrite_and_append_packet(packet, rewritten),
            RewriterState::WaitingForKeyFrame {
                buffered_packets: frame,
            } if !frame.is_empty() && frame.len() < MAX_PACKETS_BUFFERED_FOR_KEY_FRAME => frame.push(packet),
            RewriterState::WaitingForKeyFrame { .. } => {}
        }
    }

    fn is_discontinuity(&self, packet: &ReceivedPacket) -> bool {
        let Some(newest) = self.newest_packet else { return false };
        let rate = packet.codec.clock_rate();
        let elapsed = packet.arrival.saturating_duration_since(newest.arrival);
        let time_jump = match packet.timestamp.checked_sub(newest.timestamp) {
            Some(ahead) => ticks_to_duration(ahead, rate).abs_diff(elapsed),
            None => ticks_to_duration(newest.timestamp - packet.timestamp, rate),
        };
        // A packet far behind is late. It is dropped later if it precedes the first packet since the source was attached.
        let ahead = packet.seq.saturating_sub(newest.seq);
        let has_time = !packet.payload.is_empty();
        ahead > MAX_SEQ_JUMP || (ahead > 0 && has_time && time_jump > MAX_TIMESTAMP_DEVIATION_FROM_ARRIVAL)
    }

    fn start_seq_and_timestamp_mapping(&mut self, track: &mut Track, first: Option<&ReceivedPacket>) {
        let Some(first) = first else { return };
        track.reset_clock_if_rate_differs(first.codec.clock_rate());
        self.seq_offsets.clear();
        self.highest_mapped_seq = None;
        self.seq_offsets
            .push_back((first.seq, track.first_seq_of_next_source().wrapping_sub(first.seq)));
        self.timestamp_offset = self.fixed_timestamp_offset.unwrap_or_else(|| {
            track
                .first_timestamp_of_next_source(first.arrival, first.codec.clock_rate())
                .wrapping_sub(first.timestamp)
        });
        if first.codec == Codec::Vp8 {
            self.vp8_offset = track
                .vp8_counter_tracker
                .counter_offset_for_first_payload(&first.payload);
        }
        self.state = RewriterState::Running;
        self.set_lag_reference_to_newest_packet();
    }

    fn rewrite_and_append_packet(&mut self, mut packet: ReceivedPacket, rewritten: &mut Vec<RewrittenPacket>) {
        let Some((_, shift)) = self
            .seq_offsets
            .iter()
            .rev()
            .find(|(from, _)| *from <= packet.seq)
            .copied()
        else {
            return;
        };
        let is_late = self.highest_mapped_seq.is_some_and(|mapped| mapped > packet.seq);
        if packet.payload.is_empty() && !is_late {
            self.highest_mapped_seq = Some(packet.seq);
            self.skip_empty_packet(packet.seq, shift);
            return;
        }
        let time = packet.timestamp.wrapping_add(self.timestamp_offset);
        let mut seq = packet.seq.wrapping_add(shift);
        if packet.codec == Codec::Vp8 {
            packet.payload = self.vp8_offset.rewrite_payload_counters(packet.payload);
        }
        let mut inserted = std::mem::take(&mut packet.parameter_sets_to_insert);
        if !inserted.is_empty() && is_late {
            // The followers are numbered already: no room is left, and without parameter sets no decoder can start.
            inserted.clear();
            packet.identifies_key_frame = false;
        }
        if !inserted.is_empty() {
            self.push_seq_offset(packet.seq, shift.wrapping_add(inserted.len() as u64));
        }
        self.highest_mapped_seq = self.highest_mapped_seq.max(Some(packet.seq));
        for payload in inserted {
            let packet = ReceivedPacket {
                payload,
                marker: false,
                identifies_key_frame: true,
                parameter_sets_to_insert: Vec::new(),
                ..packet
            };
            rewritten.push(RewrittenPacket { seq, time, packet });
            seq += 1;
        }
        rewritten.push(RewrittenPacket { seq, time, packet });
    }

    /// Leaves a packet without payload out. A run of them makes one offset, so that those of lost packets before it stay.
    fn skip_empty_packet(&mut self, seq: u64, shift: u64) {
        let after = (seq + 1, shift.wrapping_sub(1));
        let is_run = self.seq_offsets.len() > 1 && self.seq_offsets.back().is_some_and(|(from, _)| *from == seq);
        match self.seq_offsets.back_mut().filter(|_| is_run) {
            Some(last) => *last = after,
            None => self.push_seq_offset(after.0, after.1),
        }
    }

    /// From this source sequence number on, others are added to it.
    fn push_seq_offset(&mut self, from: u64, shift: u64) {
        self.seq_offsets.push_back((from, shift));
        if self.seq_offsets.len() > MAX_SEQ_OFFSET_COUNT {
            self.seq_offsets.pop_front();
        }
    }
}

impl Default for IngestSeqAndTimestampRewriter {
    fn default() -> Self {
        Self::new()
    }
}

fn insert_packets_by_frame_and_update_track(
    track: &mut Track,
    rewritten: Vec<RewrittenPacket>,
    out: &mut Vec<Arc<RingEntry>>,
) {
    let mut rest = rewritten.into_iter().peekable();
    while let Some(first) = rest.next() {
        let time = first.time;
        let mut frame = vec![first];
        while let Some(next) = rest.next_if(|next| next.time == time) {
            frame.push(next);
        }
        insert_frame_packets_and_update_track(track, frame, out);
    }
}

fn insert_frame_packets_and_update_track(
    track: &mut Track,
    frame: Vec<RewrittenPacket>,
    out: &mut Vec<Arc<RingEntry>>,
) {
    let lengths: Vec<usize> = frame.iter().map(|p| p.packet.payload.len()).collect();
    for (RewrittenPacket { seq, time, packet }, padding) in frame.into_iter().zip(padding_to_equalize_lengths(&lengths))
    {
        // An empty packet only occupies a sequence number: padding would turn it into probe traffic again.
        let padding = if packet.payload.is_empty() { 0 } else { padding };
        if packet.codec == Codec::Vp8 && seq >= track.ring.end_seq() {
            track.vp8_counter_tracker.record_newest_payload(&packet.payload);
        }
        track.clock.on_packet(time, packet.arrival);
        let newest = track.ring.newest_track_time_and_arrival().map(|(newest, _)| newest);
        track
            .rate_meter
            .on_packet(packet.arrival, packet.payload.len(), newest != Some(time));
        // A frame is complete with its last packet.
        let is_whole = packet.marker || track.kind == MediaKind::Audio;
        if let Some(captured) = packet.captured_at {
            track.clock.on_abs_capture_time(time, captured);
        }
        if is_whole && let Some((delay, source)) = track.clock.capture_to_arrival_delay(time, packet.arrival) {
            track.capture_delay_stats.record(delay, source, packet.arrival);
        }
        if seq >= track.ring.end_seq() && !packet.payload.is_empty() {
            track.observe_frame_order(packet.codec, time);
        }
        if packet.identifies_key_frame && track.kind == MediaKind::Video {
            track.observe_key_frame(time, packet.arrival);
        }
        let packet = Packet {
            seq,
            time,
            codec: packet.codec,
            marker: packet.marker,
            identifies_key_frame: packet.identifies_key_frame,
            arrival: packet.arrival,
            payload: packet.payload,
        };
        let Some(entry) = track.ring.insert(packet, padding) else {
            continue;
        };
        if entry.frame_reference == FrameReference::NonReference {
            track.rate_meter.on_non_reference_packet(entry.packet.payload.len());
        }
        out.push(entry);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn video_packet(seq: u64, time: u64, key_frame: bool, arrival: Instant) -> ReceivedPacket {
        ReceivedPacket {
            numbering_epoch: 0,
            seq,
            timestamp: time,
            marker: false,
            codec: Codec::H264,
            identifies_key_frame: key_frame,
            parameter_sets_to_insert: Vec::new(),
            payload: Bytes::from_static(b"x"),
            arrival,
            captured_at: None,
        }
    }

    fn rewrite_packet(
        intake: &mut IngestSeqAndTimestampRewriter,
        track: &mut Track,
        packet: ReceivedPacket,
    ) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        intake.rewrite_packets_into_ring(track, std::iter::once(packet), &mut out);
        out.iter().map(|p| (p.packet.seq, p.packet.time)).collect()
    }

    #[test]
    fn a_source_begins_with_its_key_frame_parameter_sets_included() {
        let (mut track, mut intake, t) = (
            Track::new(MediaKind::Video),
            IngestSeqAndTimestampRewriter::new(),
            Instant::now(),
        );
        assert!(rewrite_packet(&mut intake, &mut track, video_packet(7, 1, false, t)).is_empty());
        assert!(rewrite_packet(&mut intake, &mut track, video_packet(8, 2, false, t)).is_empty());
        let begun = rewrite_packet(&mut intake, &mut track, video_packet(9, 2, true, t));
        assert_eq!(begun.iter().map(|p| p.0).collect::<Vec<_>>(), [1 << 16, (1 << 16) + 1]);
    }

    #[test]
    fn the_next_source_continues_where_the_last_one_ended() {
        let (mut track, t) = (Track::new(MediaKind::Video), Instant::now());
        let first = rewrite_packet(
            &mut IngestSeqAndTimestampRewriter::new(),
            &mut track,
            video_packet(60_000, 5, true, t),
        );
        let later = t + Duration::from_secs(3);
        let second = rewrite_packet(
            &mut IngestSeqAndTimestampRewriter::new(),
            &mut track,
            video_packet(3, 4_000_000_000, true, later),
        );
        let (&[(s1, t1)], &[(s2, t2)]) = (&first[..], &second[..]) else {
            panic!("{first:?} {second:?}")
        };
        assert_eq!((s2 - s1, t2 - t1), (1, 3 * 90_000));
    }

    #[test]
    fn inserted_parameter_sets_shift_later_packets_but_not_late_ones() {
        let (mut track, mut intake, t) = (
            Track::new(MediaKind::Video),
            IngestSeqAndTimestampRewriter::new(),
            Instant::now(),
        );
        let start = rewrite_packet(&mut intake, &mut track, video_packet(1, 0, true, t))[0].0;
        rewrite_packet(&mut intake, &mut track, video_packet(2, 3000, false, t));
        let mut key = video_packet(4, 6000, true, t);
        key.parameter_sets_to_insert = vec![Bytes::from_static(b"sps"), Bytes::from_static(b"pps")];
        let seqs: Vec<u64> = rewrite_packet(&mut intake, &mut track, key)
            .iter()
            .map(|p| p.0 - start)
            .collect();
        assert_eq!(seqs, [3, 4, 5]);
        assert_eq!(
            rewrite_packet(&mut intake, &mut track, video_packet(3, 3000, false, t))[0].0 - start,
            2
        );
        assert_eq!(
            rewrite_packet(&mut intake, &mut track, video_packet(5, 6000, false, t))[0].0 - start,
            6
        );
    }

    #[test]
    fn late_packet_gets_no_parameter_sets() {
        let (mut track, mut intake, t) = (
            Track::new(MediaKind::Video),
            IngestSeqAndTimestampRewriter::new(),
            Instant::now(),
        );
        let start = rewrite_packet(&mut intake, &mut track, video_packet(1, 0, true, t))[0].0;
        rewrite_packet(&mut intake, &mut track, video_packet(3, 3000, false, t));
        let mut late = video_packet(2, 3000, true, t);
        late.parameter_sets_to_insert = vec![Bytes::from_static(b"sps")];
        let seqs: Vec<u64> = rewrite_packet(&mut intake, &mut track, late)
            .iter()
            .map(|p| p.0 - start)
            .collect();
        assert_eq!(seqs, [1]);
        assert_eq!(track.ring.newest_key_frame_seq(), Some(start));
    }

    #[test]
    fn a_source_that_jumps_begins_again_with_a_key_frame() {
        let (mut track, mut intake, t) = (
            Track::new(MediaKind::Video),
            IngestSeqAndTimestampRewriter::new(),
            Instant::now(),
        );
        let (start, _) = rewrite_packet(&mut intake, &mut track, video_packet(1, 0, true, t))[0];
        assert!(rewrite_packet(&mut intake, &mut track, video_packet(40_000, 0, false, t)).is_empty());
        assert_eq!(
            rewrite_packet(&mut intake, &mut track, video_packet(40_001, 3000, true, t))[0].0,
            start + 1
        );
        let later = t + Duration::from_millis(33);
        assert!(rewrite_packet(&mut intake, &mut track, video_packet(40_002, 900_000_000, false, later)).is_empty());
        let (seq, time) = rewrite_packet(&mut intake, &mut track, video_packet(40_003, 900_003_000, true, later))[0];
        assert_eq!(seq, start + 2);
        assert!(
            time - track_time_of_seq(&track, start) < 90_000,
            "timestamps follow the arrivals"
        );
        println!("measured: sequence numbers go on by 1 across two jumps, each from a key frame on");
    }

    #[test]
    fn a_very_late_packet_is_not_a_jump_of_the_source() {
        let (mut track, mut intake, t) = (
            Track::new(MediaKind::Video),
            IngestSeqAndTimestampRewriter::new(),
            Instant::now(),
        );
        let (start, _) = rewrite_packet(&mut intake, &mut track, video_packet(10_000, 0, true, t))[0];
        for seq in (10_002..14_000).chain([10_001]) {
            rewrite_packet(&mut intake, &mut track, video_packet(seq, 3000, false, t));
        }
        assert!(!intake.needs_key_frame());
        assert_eq!(
            rewrite_packet(&mut intake, &mut track, video_packet(14_000, 3000, false, t))[0].0,
            start + 4_000
        );
    }

    #[test]
    fn a_source_does_not_start_with_a_key_frame_whose_followers_were_dropped() {
        let (mut track, mut intake, t) = (
            Track::new(MediaKind::Video),
            IngestSeqAndTimestampRewriter::new(),
            Instant::now(),
        );
        // The identifying packet arrives late, after the next frame has started.
        assert!(rewrite_packet(&mut intake, &mut track, video_packet(11, 0, false, t)).is_empty());
        assert!(rewrite_packet(&mut intake, &mut track, video_packet(12, 3000, false, t)).is_empty());
        assert!(rewrite_packet(&mut intake, &mut track, video_packet(10, 0, true, t)).is_empty());
        assert!(intake.needs_key_frame());
        assert_eq!(
            rewrite_packet(&mut intake, &mut track, video_packet(13, 6000, true, t)).len(),
            1
        );
    }

    fn track_time_of_seq(track: &Track, seq: u64) -> u64 {
        track.ring.get(seq).map(|entry| entry.packet.time).unwrap_or_default()
    }
}
