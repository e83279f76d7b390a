//! Rewrites the sequence numbers and timestamps of one source to the continuous numbering of a track (invariant 3).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ring::Entry;
use super::track::Track;
use super::vp8_rewriter::Vp8Shift;
use crate::media::clock::duration;
use crate::media::packet::{Packet, TrackSeq, TrackTime};
use crate::media::{Codec, Kind};
use crate::session::padding::choose_padding;

/// A packet with the source's own numbering.
#[derive(Clone, Debug)]
pub struct ReceivedPacket {
    /// Counts how often the source started its numbering again, such as with another SSRC. Numbers of different epochs are
    /// unrelated.
    pub epoch: u32,
    /// Extended sequence number of the source.
    pub seq: u64,
    /// Extended RTP timestamp of the source.
    pub time: u64,
    pub marker: bool,
    pub codec: Codec,
    /// Identifies its frame as one that a decoder can start with.
    pub key_frame: bool,
    /// Payloads to insert before this one: parameter sets that the source did not repeat.
    pub insert: Vec<Bytes>,
    pub payload: Bytes,
    pub arrival: Instant,
}

/// A sender report of the source.
#[derive(Clone, Copy, Debug)]
pub struct CaptureReport {
    pub epoch: u32,
    /// Extended RTP timestamp of the source.
    pub time: u64,
    /// When the media with this timestamp was captured, on a clock that all tracks of the source share.
    pub captured: Instant,
}

/// Rewriting state of one source on one track.
#[derive(Debug)]
pub struct Intake {
    state: State,
    /// Sequence number offsets and the first source sequence number of each, oldest first.
    shifts: VecDeque<(u64, u64)>,
    /// Offset added to source timestamps, wrapping.
    time_shift: u64,
    vp8: Vp8Shift,
    newest: Option<Newest>,
    /// Track timestamp and arrival of the packet from which the timestamps were last aligned with the arrivals.
    aligned: Option<(TrackTime, Instant)>,
    /// Highest source sequence number that is numbered on the track.
    mapped: Option<u64>,
    epoch: u32,
    /// Source timestamps are already track timestamps.
    keeps_time: bool,
}

#[derive(Debug)]
enum State {
    /// Video waits for a key frame; the packets of the current frame are buffered in case it proves to be one.
    Waiting {
        frame: Vec<ReceivedPacket>,
    },
    Running,
}

#[derive(Clone, Copy, Debug)]
struct Newest {
    seq: u64,
    time: u64,
    arrival: Instant,
}

struct Placed {
    seq: TrackSeq,
    time: TrackTime,
    packet: ReceivedPacket,
}

/// Maximum number of buffered packets of a frame before the one that identifies it as a key frame, e.g. parameter sets.
const MAX_HELD: usize = 64;

/// A larger step of the sequence number means that the source restarted its numbering.
const MAX_JUMP: u64 = 3_000;

/// A larger deviation between timestamps and arrivals means that the source restarted its timestamps.
const MAX_TIME_JUMP: Duration = Duration::from_secs(5);

/// Timestamps that fall behind the source's own reports by more than this are moved to them.
const MAX_LAG: Duration = Duration::from_millis(200);

/// Number of offsets kept for late packets. Each inserted or removed packet makes one.
const MAX_SHIFTS: usize = 128;

impl Intake {
    /// Creates the state for a source that has not sent anything yet.
    pub fn new() -> Self {
        Self {
            state: State::Waiting { frame: Vec::new() },
            shifts: VecDeque::new(),
            time_shift: 0,
            vp8: Vp8Shift::default(),
            newest: None,
            aligned: None,
            mapped: None,
            epoch: 0,
            keeps_time: false,
        }
    }

    /// Creates the state for a source whose timestamps are already track timestamps, taken from another track.
    pub fn keeping_time() -> Self {
        Self {
            keeps_time: true,
            ..Self::new()
        }
    }

    /// What follows has unrelated sequence numbers and timestamps, and begins with a key frame.
    fn restart(&mut self, epoch: u32) {
        *self = Self {
            epoch,
            keeps_time: self.keeps_time,
            ..Self::new()
        };
    }

    /// Whether the track needs a key frame from the source.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Maps a source timestamp of an epoch to the track; `None` before its first packet.
    pub fn time(&self, epoch: u32, source_time: u64) -> Option<TrackTime> {
        (!self.is_waiting() && epoch == self.epoch).then(|| source_time.wrapping_add(self.time_shift))
    }

    /// Handles a sender report. The timestamps of a source that stood still, such as those of muted audio, are moved forward to
    /// where its reports have them, so that its tracks stay synchronized. Arrivals must agree: some senders report nonsense.
    pub fn on_report(&mut self, track: &mut Track, report: CaptureReport) {
        let Some(mut time) = self.time(report.epoch, report.time) else {
            return;
        };
        if !self.keeps_time
            && let Some(expected) = track.clock.reported_time_at(report.captured)
            && let Some(lag) = expected.checked_sub(time)
            && duration(lag, track.clock.rate()) > MAX_LAG
            && self.lag_of_arrivals(track.clock.rate()) > duration(lag, track.clock.rate()) / 2
        {
            self.time_shift = self.time_shift.wrapping_add(lag);
            time += lag;
            self.align();
        }
        track.record_capture(time, report.captured);
    }

    /// How far the timestamps are behind the arrivals since they were last aligned.
    fn lag_of_arrivals(&self, rate: u32) -> Duration {
        let (Some(newest), Some((time, at))) = (self.newest, self.aligned) else {
            return Duration::ZERO;
        };
        let passed = newest.time.wrapping_add(self.time_shift).saturating_sub(time);
        let elapsed = newest.arrival.saturating_duration_since(at);
        elapsed.saturating_sub(duration(passed, rate))
    }

    fn align(&mut self) {
        let shift = self.time_shift;
        self.aligned = self
            .newest
            .map(|newest| (newest.time.wrapping_add(shift), newest.arrival));
    }

    /// Rewrites all packets of one tick and inserts them into the ring; appends the new ones to `out`.
    pub fn take(
        &mut self,
        track: &mut Track,
        arrived: impl Iterator<Item = ReceivedPacket>,
        out: &mut Vec<Arc<Entry>>,
    ) {
        let mut placed = Vec::new();
        for packet in arrived {
            if packet.epoch < self.epoch {
                continue;
            }
            if packet.epoch > self.epoch || self.is_broken_by(&packet) {
                // What follows continues where these end.
                insert_frames(track, std::mem::take(&mut placed), out);
                self.restart(packet.epoch);
            }
            self.place(track, packet, &mut placed);
        }
        insert_frames(track, placed, out);
    }

    fn place(&mut self, track: &mut Track, packet: ReceivedPacket, placed: &mut Vec<Placed>) {
        if packet.payload.is_empty() {
            return self.place_empty(packet, placed);
        }
        if self.newest.is_none_or(|newest| packet.seq > newest.seq) {
            self.newest = Some(Newest {
                seq: packet.seq,
                time: packet.time,
                arrival: packet.arrival,
            });
        }
        match &mut self.state {
            State::Running => self.map(packet, placed),
            State::Waiting { frame } => {
                if frame.first().is_some_and(|first| first.time != packet.time) {
                    if self.newest.is_some_and(|newest| newest.seq > packet.seq) {
                        // Late: the rest of its frame and its followers were dropped.
                        return;
                    }
                    frame.clear();
                }
                let begins = track.kind == Kind::Audio || packet.key_frame;
                if frame.len() < MAX_HELD {
                    frame.push(packet);
                }
                if begins {
                    let mut frame = std::mem::take(frame);
                    frame.sort_by_key(|p| p.seq);
                    self.anchor(track, frame.first());
                    frame.into_iter().for_each(|p| self.map(p, placed));
                }
            }
        }
    }

    /// A packet without payload is a probe of its sender, or has nothing that a viewer can use. It leaves no gap.
    fn place_empty(&mut self, packet: ReceivedPacket, placed: &mut Vec<Placed>) {
        if let Some(newest) = &mut self.newest {
            newest.seq = newest.seq.max(packet.seq);
        }
        match &mut self.state {
            State::Running => self.map(packet, placed),
            State::Waiting { frame } if !frame.is_empty() && frame.len() < MAX_HELD => frame.push(packet),
            State::Waiting { .. } => {}
        }
    }

    fn is_broken_by(&self, packet: &ReceivedPacket) -> bool {
        let Some(newest) = self.newest else { return false };
        let rate = packet.codec.clock_rate();
        let elapsed = packet.arrival.saturating_duration_since(newest.arrival);
        let time_jump = match packet.time.checked_sub(newest.time) {
            Some(ahead) => duration(ahead, rate).abs_diff(elapsed),
            None => duration(newest.time - packet.time, rate),
        };
        // A packet far behind is late. It is dropped later if it precedes the first packet of this intake.
        let ahead = packet.seq.saturating_sub(newest.seq);
        let has_time = !packet.payload.is_empty();
        ahead > MAX_JUMP || (ahead > 0 && has_time && time_jump > MAX_TIME_JUMP)
    }

    fn anchor(&mut self, track: &mut Track, first: Option<&ReceivedPacket>) {
        let Some(first) = first else { return };
        track.set_clock_rate(first.codec.clock_rate());
        self.shifts.clear();
        self.mapped = None;
        self.shifts
            .push_back((first.seq, track.next_seq().wrapping_sub(first.seq)));
        self.time_shift = if self.keeps_time {
            0
        } else {
            track
                .next_time(first.arrival, first.codec.clock_rate())
                .wrapping_sub(first.time)
        };
        if first.codec == Codec::Vp8 {
            self.vp8 = track.vp8.counter_offset_for(&first.payload);
        }
        self.state = State::Running;
        self.align();
    }

    fn map(&mut self, mut packet: ReceivedPacket, placed: &mut Vec<Placed>) {
        let Some((_, shift)) = self.shifts.iter().rev().find(|(from, _)| *from <= packet.seq).copied() else {
            return;
        };
        let is_late = self.mapped.is_some_and(|mapped| mapped > packet.seq);
        if packet.payload.is_empty() && !is_late {
            self.mapped = Some(packet.seq);
            self.remove_from_line(packet.seq, shift);
            return;
        }
        let time = packet.time.wrapping_add(self.time_shift);
        let mut seq = packet.seq.wrapping_add(shift);
        if packet.codec == Codec::Vp8 {
            packet.payload = self.vp8.apply(packet.payload);
        }
        let mut inserted = std::mem::take(&mut packet.insert);
        if !inserted.is_empty() && is_late {
            // The followers are numbered already: no room is left, and without parameter sets no decoder can start.
            inserted.clear();
            packet.key_frame = false;
        }
        if !inserted.is_empty() {
            self.push_shift(packet.seq, shift.wrapping_add(inserted.len() as u64));
        }
        self.mapped = self.mapped.max(Some(packet.seq));
        for payload in inserted {
            let packet = ReceivedPacket {
                payload,
                marker: false,
                key_frame: true,
                insert: Vec::new(),
                ..packet
            };
            placed.push(Placed { seq, time, packet });
            seq += 1;
        }
        placed.push(Placed { seq, time, packet });
    }

    /// Leaves a packet without payload out. A run of them makes one offset, so that those of lost packets before it stay.
    fn remove_from_line(&mut self, seq: u64, shift: u64) {
        let after = (seq + 1, shift.wrapping_sub(1));
        let is_run = self.shifts.len() > 1 && self.shifts.back().is_some_and(|(from, _)| *from == seq);
        match self.shifts.back_mut().filter(|_| is_run) {
            Some(last) => *last = after,
            None => self.push_shift(after.0, after.1),
        }
    }

    /// From this source sequence number on, others are added to it.
    fn push_shift(&mut self, from: u64, shift: u64) {
        self.shifts.push_back((from, shift));
        if self.shifts.len() > MAX_SHIFTS {
            self.shifts.pop_front();
        }
    }
}

impl Default for Intake {
    fn default() -> Self {
        Self::new()
    }
}

fn insert_frames(track: &mut Track, placed: Vec<Placed>, out: &mut Vec<Arc<Entry>>) {
    let mut rest = placed.into_iter().peekable();
    while let Some(first) = rest.next() {
        let time = first.time;
        let mut frame = vec![first];
        while let Some(next) = rest.next_if(|next| next.time == time) {
            frame.push(next);
        }
        insert_frame(track, frame, out);
    }
}

fn insert_frame(track: &mut Track, frame: Vec<Placed>, out: &mut Vec<Arc<Entry>>) {
    let lengths: Vec<usize> = frame.iter().map(|p| p.packet.payload.len()).collect();
    for (Placed { seq, time, packet }, padding) in frame.into_iter().zip(choose_padding(&lengths)) {
        // An empty packet only occupies a sequence number: padding would turn it into probe traffic again.
        let padding = if packet.payload.is_empty() { 0 } else { padding };
        if packet.codec == Codec::Vp8 && seq >= track.ring.end() {
            track.vp8.follow(&packet.payload);
        }
        track.clock.on_packet(time, packet.arrival);
        let newest = track.ring.newest().map(|(newest, _)| newest);
        track
            .meter
            .on_packets(packet.arrival, packet.payload.len(), newest != Some(time));
        // A frame is complete with its last packet.
        let is_whole = packet.marker || track.kind == Kind::Audio;
        if is_whole && let Some(delay) = track.clock.delay(time, packet.arrival) {
            track.delays.record(delay, packet.arrival);
        }
        if seq >= track.ring.end() && !packet.payload.is_empty() {
            track.observe_order(packet.codec, time);
        }
        if packet.key_frame && track.kind == Kind::Video {
            track.observe_key_frame(time);
        }
        let packet = Packet {
            seq,
            time,
            codec: packet.codec,
            marker: packet.marker,
            key_frame: packet.key_frame,
            arrival: packet.arrival,
            payload: packet.payload,
        };
        out.extend(track.ring.insert(packet, padding));
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn video(seq: u64, time: u64, key_frame: bool, arrival: Instant) -> ReceivedPacket {
        ReceivedPacket {
            epoch: 0,
            seq,
            time,
            marker: false,
            codec: Codec::H264,
            key_frame,
            insert: Vec::new(),
            payload: Bytes::from_static(b"x"),
            arrival,
        }
    }

    fn run(intake: &mut Intake, track: &mut Track, packet: ReceivedPacket) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        intake.take(track, std::iter::once(packet), &mut out);
        out.iter().map(|p| (p.packet.seq, p.packet.time)).collect()
    }

    #[test]
    fn a_source_begins_with_its_key_frame_parameter_sets_included() {
        let (mut track, mut intake, t) = (Track::new(Kind::Video), Intake::new(), Instant::now());
        assert!(run(&mut intake, &mut track, video(7, 1, false, t)).is_empty());
        assert!(run(&mut intake, &mut track, video(8, 2, false, t)).is_empty());
        let begun = run(&mut intake, &mut track, video(9, 2, true, t));
        assert_eq!(begun.iter().map(|p| p.0).collect::<Vec<_>>(), [1 << 16, (1 << 16) + 1]);
    }

    #[test]
    fn the_next_source_continues_where_the_last_one_ended() {
        let (mut track, t) = (Track::new(Kind::Video), Instant::now());
        let first = run(&mut Intake::new(), &mut track, video(60_000, 5, true, t));
        let later = t + Duration::from_secs(3);
        let second = run(&mut Intake::new(), &mut track, video(3, 4_000_000_000, true, later));
        let (&[(s1, t1)], &[(s2, t2)]) = (&first[..], &second[..]) else {
            panic!("{first:?} {second:?}")
        };
        assert_eq!((s2 - s1, t2 - t1), (1, 3 * 90_000));
    }

    #[test]
    fn inserted_parameter_sets_shift_later_packets_but_not_late_ones() {
        let (mut track, mut intake, t) = (Track::new(Kind::Video), Intake::new(), Instant::now());
        let start = run(&mut intake, &mut track, video(1, 0, true, t))[0].0;
        run(&mut intake, &mut track, video(2, 3000, false, t));
        let mut key = video(4, 6000, true, t);
        key.insert = vec![Bytes::from_static(b"sps"), Bytes::from_static(b"pps")];
        let seqs: Vec<u64> = run(&mut intake, &mut track, key).iter().map(|p| p.0 - start).collect();
        assert_eq!(seqs, [3, 4, 5]);
        assert_eq!(run(&mut intake, &mut track, video(3, 3000, false, t))[0].0 - start, 2);
        assert_eq!(run(&mut intake, &mut track, video(5, 6000, false, t))[0].0 - start, 6);
    }

    #[test]
    fn a_late_packet_gets_no_parameter_sets_because_its_followers_are_placed() {
        let (mut track, mut intake, t) = (Track::new(Kind::Video), Intake::new(), Instant::now());
        let start = run(&mut intake, &mut track, video(1, 0, true, t))[0].0;
        run(&mut intake, &mut track, video(3, 3000, false, t));
        let mut late = video(2, 3000, true, t);
        late.insert = vec![Bytes::from_static(b"sps")];
        let seqs: Vec<u64> = run(&mut intake, &mut track, late).iter().map(|p| p.0 - start).collect();
        assert_eq!(seqs, [1]);
        assert_eq!(track.ring.key_frame(), Some(start));
    }

    #[test]
    fn a_source_that_jumps_begins_again_with_a_key_frame() {
        let (mut track, mut intake, t) = (Track::new(Kind::Video), Intake::new(), Instant::now());
        let (start, _) = run(&mut intake, &mut track, video(1, 0, true, t))[0];
        assert!(run(&mut intake, &mut track, video(40_000, 0, false, t)).is_empty());
        assert_eq!(
            run(&mut intake, &mut track, video(40_001, 3000, true, t))[0].0,
            start + 1
        );
        let later = t + Duration::from_millis(33);
        assert!(run(&mut intake, &mut track, video(40_002, 900_000_000, false, later)).is_empty());
        let (seq, time) = run(&mut intake, &mut track, video(40_003, 900_003_000, true, later))[0];
        assert_eq!(seq, start + 2);
        assert!(
            time - track_time(&track, start) < 90_000,
            "timestamps follow the arrivals"
        );
    }

    #[test]
    fn a_very_late_packet_is_not_a_jump_of_the_source() {
        let (mut track, mut intake, t) = (Track::new(Kind::Video), Intake::new(), Instant::now());
        let (start, _) = run(&mut intake, &mut track, video(10_000, 0, true, t))[0];
        for seq in (10_002..14_000).chain([10_001]) {
            run(&mut intake, &mut track, video(seq, 3000, false, t));
        }
        assert!(!intake.is_waiting());
        assert_eq!(
            run(&mut intake, &mut track, video(14_000, 3000, false, t))[0].0,
            start + 4_000
        );
    }

    #[test]
    fn a_source_does_not_start_with_a_key_frame_whose_followers_were_dropped() {
        let (mut track, mut intake, t) = (Track::new(Kind::Video), Intake::new(), Instant::now());
        // The identifying packet arrives late, after the next frame has started.
        assert!(run(&mut intake, &mut track, video(11, 0, false, t)).is_empty());
        assert!(run(&mut intake, &mut track, video(12, 3000, false, t)).is_empty());
        assert!(run(&mut intake, &mut track, video(10, 0, true, t)).is_empty());
        assert!(intake.is_waiting());
        assert_eq!(run(&mut intake, &mut track, video(13, 6000, true, t)).len(), 1);
    }

    fn track_time(track: &Track, seq: u64) -> u64 {
        track.ring.get(seq).map(|entry| entry.packet.time).unwrap_or_default()
    }
}
