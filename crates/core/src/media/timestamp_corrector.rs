//! Corrects RTP timestamps that stand still: some senders give each frame the same timestamp, or count seconds. Others have
//! another clock rate than they announce. Timestamps that jump are joined (see [`super::timestamp_jumps`]), and slices with timestamps of their own get that of their picture.
//!
//! Players show such frames at their time of arrival, and so does an [`RtpTimestampCorrector`]: once several frames had one
//! timestamp, it replaces timestamps by arrivals, until they advance with them again. Frames are told apart by their
//! contents, where those cannot say by the marker.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::clock::{duration_to_ticks, ticks_to_duration};
use super::codec::PayloadFraming;
use super::marker::RtpPacketMetadata;
use super::timestamp_jumps::TimestampJumpCorrector;
use super::{Codec, MediaKind};

/// Frames with one timestamp after which it stands still. The two fields of an interlaced picture may have the same one.
const MIN_FRAMES_WITH_ONE_TIMESTAMP: u32 = 3;

/// Two frames with one timestamp suffice if they are this far apart: fields are not.
const MAX_INTERLACED_FIELD_INTERVAL: Duration = Duration::from_secs(1);

/// Where only markers tell frames apart, the frames with one timestamp take at least this long: markers may be wrong, but
/// the packets of one frame follow each other faster.
const MIN_STUCK_DURATION_BY_MARKERS: Duration = Duration::from_millis(200);

/// Video whose timestamps advance more than 1.8 times as fast as it arrives, or as slow, in this many intervals in a row has
/// another clock rate than announced, if they advance as fast in each of these. A burst of frames after a pause of the network
/// is within one, and a path that carries too little does not carry the same part of it for long.
const WRONG_INTERVALS_TO_DISTRUST_CLOCK: usize = 3;
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(4);
const MAX_CLOCK_RATE_ERROR: f64 = 1.8;
const MAX_WRONG_CLOCK_RATE_SPREAD: f64 = 1.15;

/// A clock that is this far from arrivals since the first frame, and a thousandth of that time, was right all along.
const MAX_RIGHT_CLOCK_DEVIATION: Duration = Duration::from_millis(500);

/// Frames in a row with timestamps of their own after which these are believed again.
const FRAMES_TO_TRUST_TIMESTAMPS: u32 = 32;

/// Minimum step between frames that arrive together.
const MIN_FRAME_TIMESTAMP_STEP: Duration = Duration::from_millis(1);

/// Number of frames of which late packets get the timestamp.
const MAX_TRACKED_FRAMES: usize = 16;

/// Corrects the timestamps of one RTP stream.
#[derive(Debug)]
pub struct RtpTimestampCorrector {
    codec: Codec,
    frame_boundaries: FrameBoundarySignal,
    clock_rate: u32,
    jump_corrector: TimestampJumpCorrector,
    newest_packet: Option<NewestPacket>,
    mode: TimestampMode,
    /// Number of frames with the newest source timestamp.
    frames_with_timestamp: u32,
    /// The first of them.
    first_frame_with_timestamp: Option<FrameTimestampAndArrival>,
    recent_frames: VecDeque<RecentFrame>,
    /// Corrected timestamp of the newest frame.
    newest_time: u64,
    /// A marker was followed by more of the same frame.
    has_early_markers: bool,
    arrival_timestamped_frame_count: u64,
    clock_check: ClockCheck,
}

/// Compares source timestamps with arrivals.
#[derive(Debug, Default)]
struct ClockCheck {
    /// The first frame, with its source timestamp.
    first_frame: Option<FrameTimestampAndArrival>,
    /// Where the present interval began.
    start: Option<FrameTimestampAndArrival>,
    /// How fast the clock was in the last intervals, in which it was wrong.
    wrong_rates: VecDeque<f64>,
    /// The offset of source timestamps before the clock was taken for wrong.
    trusted_offset: Option<u64>,
    /// The newest frame, with its corrected timestamp.
    newest_frame: Option<FrameTimestampAndArrival>,
}

/// What starts a frame that has the timestamp of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameBoundarySignal {
    Contents,
    Markers,
    Packets,
}

#[derive(Clone, Copy, Debug)]
enum TimestampMode {
    /// Source timestamps are right, up to an offset.
    Source { offset: u64 },
    /// Frames get the time of their arrival.
    Arrival {
        /// The frame from which time is counted.
        anchor: FrameTimestampAndArrival,
        /// Frames in a row with a source timestamp of their own, and the first of these.
        advancing: Option<(u32, FrameTimestampAndArrival)>,
    },
}

#[derive(Clone, Copy, Debug)]
struct FrameTimestampAndArrival {
    time: u64,
    arrival: Instant,
}

#[derive(Clone, Copy, Debug)]
struct RecentFrame {
    first_seq: u64,
    /// Its start did not come late.
    has_start: bool,
    /// Corrected timestamp.
    time: u64,
}

#[derive(Clone, Copy, Debug)]
struct NewestPacket {
    seq: u64,
    time: u64,
    marker: bool,
    continues_in_next_packet: bool,
    /// Its frame has picture data so far.
    has_slice: bool,
}

impl RtpTimestampCorrector {
    /// Creates the state of a stream of which nothing was received.
    pub fn new(codec: Codec) -> Self {
        Self::with_clock_rate(codec, codec.clock_rate())
    }

    /// As [`Self::new`], for timestamps of another clock rate than that of the codec, in Hz.
    pub fn with_clock_rate(codec: Codec, clock_rate: u32) -> Self {
        let frame_boundaries = match codec {
            Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 => FrameBoundarySignal::Contents,
            Codec::Av1 => FrameBoundarySignal::Markers,
            // Of JPEG and AAC, whole frames are expected here.
            Codec::Jpeg | Codec::Aac | Codec::Opus | Codec::Pcmu | Codec::Pcma => FrameBoundarySignal::Packets,
        };
        Self {
            codec,
            frame_boundaries,
            clock_rate,
            jump_corrector: TimestampJumpCorrector::new(clock_rate),
            newest_packet: None,
            mode: TimestampMode::Source { offset: 0 },
            frames_with_timestamp: 0,
            first_frame_with_timestamp: None,
            recent_frames: VecDeque::new(),
            newest_time: 0,
            has_early_markers: false,
            arrival_timestamped_frame_count: 0,
            clock_check: ClockCheck::default(),
        }
    }

    /// Returns the codec of the stream.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// What follows has unrelated sequence numbers and timestamps. A sender whose timestamps stood still is expected to
    /// go on like that.
    pub fn on_seq_and_timestamp_discontinuity(&mut self) {
        self.newest_packet = None;
        self.recent_frames.clear();
        self.jump_corrector.on_seq_and_timestamp_discontinuity();
        self.clock_check.forget_source_clock();
        match &mut self.mode {
            TimestampMode::Source { offset } => *offset = 0,
            TimestampMode::Arrival { advancing, .. } => *advancing = None,
        }
    }

    /// Returns the timestamp of a packet. One without payload gets that of the newest packet.
    pub fn correct_packet_timestamp(&mut self, packet: &RtpPacketMetadata) -> u64 {
        let Some(framing) = packet.payload_framing else {
            return self.newest_time;
        };
        if self.newest_packet.is_some_and(|newest| packet.seq <= newest.seq) {
            return self.time_of_late_packet(packet, framing);
        }
        let packet = &RtpPacketMetadata {
            time: self.jump_corrector.join_next_timestamp(packet.time, packet.arrival),
            ..*packet
        };
        let Some(newest) = self.newest_packet else {
            self.begin_frame(packet, packet.seq, true);
            self.set_newest_packet(packet, framing, false);
            return self.newest_time;
        };
        if newest.time != packet.time {
            let leads = !newest.has_slice && matches!(self.mode, TimestampMode::Arrival { .. });
            let continues = leads || self.is_later_slice_of_picture(packet, framing, newest);
            if !continues {
                self.begin_frame(packet, packet.seq, true);
            }
            self.set_newest_packet(packet, framing, continues);
            return self.newest_time;
        }
        self.has_early_markers |= newest.marker
            && newest.has_slice
            && framing.has_slice
            && !framing.starts_picture
            && packet.seq == newest.seq + 1;
        let first_seq = self.first_seq_of_next_frame(packet, framing, newest);
        if let Some(first_seq) = first_seq {
            self.begin_frame(packet, first_seq, false);
        }
        self.set_newest_packet(packet, framing, first_seq.is_none());
        self.newest_time
    }

    /// Returns the corrected time of a source timestamp, such as that of a sender report; `None` while timestamps stand
    /// still.
    pub fn correct_source_timestamp(&self, source_time: u64) -> Option<u64> {
        match self.mode {
            TimestampMode::Source { offset } => Some(
                self.jump_corrector
                    .map_timestamp_to_joined_timeline(source_time)
                    .wrapping_add(offset),
            ),
            TimestampMode::Arrival { .. } => None,
        }
    }

    /// Returns how many frames got the time of their arrival.
    pub fn arrival_timestamped_frame_count(&self) -> u64 {
        self.arrival_timestamped_frame_count
    }

    /// Whether a packet with another timestamp than the newest one goes on with its picture nevertheless: some payloaders
    /// give each slice or fragment a timestamp of its own.
    fn is_later_slice_of_picture(
        &self,
        packet: &RtpPacketMetadata,
        framing: PayloadFraming,
        newest: NewestPacket,
    ) -> bool {
        matches!(self.codec, Codec::H264 | Codec::H265)
            && newest.has_slice
            && framing.has_slice
            && !framing.is_start_of_access_unit()
            // Stray fragments say nothing of the frame that they are of.
            && framing.continues_previous_packet == newest.continues_in_next_packet
            && packet.seq == newest.seq + 1
    }

    /// First sequence number of the frame that starts with this packet, which has the source timestamp of the newest one.
    fn first_seq_of_next_frame(
        &self,
        packet: &RtpPacketMetadata,
        framing: PayloadFraming,
        newest: NewestPacket,
    ) -> Option<u64> {
        if !newest.has_slice {
            return None;
        }
        let after_end = (newest.marker && !newest.continues_in_next_packet).then_some(newest.seq + 1);
        match self.frame_boundaries {
            FrameBoundarySignal::Packets => Some(packet.seq),
            FrameBoundarySignal::Markers => after_end,
            FrameBoundarySignal::Contents => {
                let after_end = after_end.filter(|_| !self.has_early_markers);
                let leads = framing.precedes_picture && !newest.continues_in_next_packet;
                match self.mode {
                    TimestampMode::Source { .. } => framing.starts_picture.then_some(packet.seq),
                    TimestampMode::Arrival { .. } if framing.starts_picture || leads => {
                        Some(after_end.unwrap_or(packet.seq))
                    }
                    TimestampMode::Arrival { .. } => after_end,
                }
            }
        }
    }

    fn begin_frame(&mut self, packet: &RtpPacketMetadata, first_seq: u64, has_new_timestamp: bool) {
        if has_new_timestamp {
            self.frames_with_timestamp = 0;
            self.first_frame_with_timestamp = None;
        }
        self.frames_with_timestamp = self.frames_with_timestamp.saturating_add(1);
        self.switch_timestamp_mode_if_needed(packet, has_new_timestamp);
        self.newest_time = match self.mode {
            TimestampMode::Source { offset } => packet.time.wrapping_add(offset),
            TimestampMode::Arrival { anchor, .. } => {
                self.arrival_timestamped_frame_count += 1;
                self.timestamp_from_arrival(anchor, packet.arrival)
            }
        };
        let frame = FrameTimestampAndArrival {
            time: self.newest_time,
            arrival: packet.arrival,
        };
        self.first_frame_with_timestamp.get_or_insert(frame);
        self.clock_check.newest_frame = Some(frame);
        self.recent_frames.push_back(RecentFrame {
            first_seq,
            has_start: packet
                .payload_framing
                .is_some_and(PayloadFraming::is_start_of_access_unit),
            time: self.newest_time,
        });
        if self.recent_frames.len() > MAX_TRACKED_FRAMES {
            self.recent_frames.pop_front();
        }
    }

    fn switch_timestamp_mode_if_needed(&mut self, packet: &RtpPacketMetadata, has_new_timestamp: bool) {
        let source = FrameTimestampAndArrival {
            time: packet.time,
            arrival: packet.arrival,
        };
        match &mut self.mode {
            TimestampMode::Source { offset } => {
                let trusted = self
                    .clock_check
                    .trusted_offset_if_right(source, self.clock_rate)
                    .filter(|trusted| packet.time.wrapping_add(*trusted) > self.newest_time);
                if let Some(trusted) = trusted {
                    *offset = trusted;
                    self.clock_check.trusted_offset = None;
                }
                let offset = *offset;
                let stuck_since = self
                    .first_frame_with_timestamp
                    .filter(|first| self.are_timestamps_stuck(packet.arrival.saturating_duration_since(first.arrival)));
                let is_video = self.codec.kind() == MediaKind::Video;
                let wrong_since = (is_video && self.clock_check.has_wrong_clock(source, self.clock_rate))
                    .then_some(self.clock_check.newest_frame)
                    .flatten();
                if let Some(anchor) = stuck_since.or(wrong_since) {
                    self.clock_check = ClockCheck {
                        first_frame: self.clock_check.first_frame.filter(|_| stuck_since.is_none()),
                        trusted_offset: stuck_since
                            .is_none()
                            .then(|| self.clock_check.trusted_offset.unwrap_or(offset)),
                        ..ClockCheck::default()
                    };
                    self.mode = TimestampMode::Arrival {
                        anchor,
                        advancing: None,
                    };
                }
            }
            TimestampMode::Arrival { advancing, .. } if !has_new_timestamp => *advancing = None,
            TimestampMode::Arrival { anchor, advancing } => {
                let anchor = *anchor;
                let (count, first) = advancing.map_or((0, source), |(count, first)| (count + 1, first));
                *advancing = Some((count, first));
                if count < FRAMES_TO_TRUST_TIMESTAMPS {
                    return;
                }
                *advancing = Some((0, source));
                let elapsed = packet.arrival.saturating_duration_since(first.arrival);
                let media = packet.time.checked_sub(first.time);
                let media = media.map(|ticks| ticks_to_duration(ticks, self.clock_rate));
                // While frames catch up with arrivals, what is measured now does not last.
                let tolerance = match self.clock_check.trusted_offset {
                    Some(_) => elapsed / 20,
                    None => elapsed / 4,
                };
                if media.is_some_and(|media| media.abs_diff(elapsed) <= tolerance) {
                    let time = self.timestamp_from_arrival(anchor, packet.arrival);
                    let offset = time.wrapping_sub(packet.time);
                    self.mode = TimestampMode::Source { offset };
                }
            }
        }
    }

    /// Time of a frame that arrives after the newest one.
    fn timestamp_from_arrival(&self, anchor: FrameTimestampAndArrival, arrival: Instant) -> u64 {
        let elapsed = arrival.saturating_duration_since(anchor.arrival);
        let min_step = duration_to_ticks(MIN_FRAME_TIMESTAMP_STEP, self.clock_rate).max(1);
        let arrived = anchor.time.wrapping_add(duration_to_ticks(elapsed, self.clock_rate));
        arrived.max(self.newest_time.wrapping_add(min_step))
    }

    /// Whether timestamps stand still, given how long ago the first frame with the newest one arrived.
    fn are_timestamps_stuck(&self, elapsed: Duration) -> bool {
        let has_many = self.frames_with_timestamp >= MIN_FRAMES_WITH_ONE_TIMESTAMP;
        match self.frame_boundaries {
            FrameBoundarySignal::Packets => has_many,
            FrameBoundarySignal::Contents => has_many || elapsed >= MAX_INTERLACED_FIELD_INTERVAL,
            FrameBoundarySignal::Markers => has_many && elapsed >= MIN_STUCK_DURATION_BY_MARKERS,
        }
    }

    fn set_newest_packet(&mut self, packet: &RtpPacketMetadata, framing: PayloadFraming, continues_frame: bool) {
        let had_slice = continues_frame && self.newest_packet.is_some_and(|newest| newest.has_slice);
        self.newest_packet = Some(NewestPacket {
            seq: packet.seq,
            time: packet.time,
            marker: packet.marker,
            continues_in_next_packet: framing.continues_in_next_packet,
            has_slice: had_slice || framing.has_slice,
        });
    }

    /// A late packet belongs to the frame around its sequence number, or starts the frame after it.
    fn time_of_late_packet(&self, packet: &RtpPacketMetadata, framing: PayloadFraming) -> u64 {
        if let Some(time) = self.correct_source_timestamp(packet.time) {
            return time;
        }
        let next = self
            .recent_frames
            .partition_point(|frame| frame.first_seq <= packet.seq);
        let own = next.checked_sub(1).and_then(|index| self.recent_frames.get(index));
        let starts_next = self.frame_boundaries == FrameBoundarySignal::Contents
            && framing.is_start_of_access_unit()
            && own.is_some_and(|own| own.has_start && own.first_seq < packet.seq);
        let next = self.recent_frames.get(next).filter(|_| starts_next || own.is_none());
        next.or(own).map_or(self.newest_time, |frame| frame.time)
    }
}

impl ClockCheck {
    /// Takes a frame with its source timestamp. Returns whether the clock of the sender has another rate than announced.
    fn has_wrong_clock(&mut self, frame: FrameTimestampAndArrival, clock_rate: u32) -> bool {
        self.first_frame.get_or_insert(frame);
        let start = *self.start.get_or_insert(frame);
        let elapsed = frame.arrival.saturating_duration_since(start.arrival);
        if elapsed < CLOCK_CHECK_INTERVAL {
            return false;
        }
        let media = ticks_to_duration(frame.time.saturating_sub(start.time), clock_rate);
        self.start = Some(frame);
        let rate = media.as_secs_f64() / elapsed.as_secs_f64();
        if (1.0 / MAX_CLOCK_RATE_ERROR..=MAX_CLOCK_RATE_ERROR).contains(&rate) {
            self.wrong_rates.clear();
            return false;
        }
        self.wrong_rates.push_back(rate);
        if self.wrong_rates.len() > WRONG_INTERVALS_TO_DISTRUST_CLOCK {
            self.wrong_rates.pop_front();
        }
        let slowest = self.wrong_rates.iter().copied().fold(rate, f64::min);
        let fastest = self.wrong_rates.iter().copied().fold(rate, f64::max);
        self.wrong_rates.len() == WRONG_INTERVALS_TO_DISTRUST_CLOCK && fastest <= slowest * MAX_WRONG_CLOCK_RATE_SPREAD
    }

    /// Takes a frame with its source timestamp. Returns the offset before the clock was taken for wrong, if it agrees with
    /// arrivals since the first frame: then frames came late, or early, and other tracks go on with that offset.
    fn trusted_offset_if_right(&self, frame: FrameTimestampAndArrival, clock_rate: u32) -> Option<u64> {
        let (first, offset) = (self.first_frame?, self.trusted_offset?);
        let elapsed = frame.arrival.saturating_duration_since(first.arrival);
        let media = ticks_to_duration(frame.time.checked_sub(first.time)?, clock_rate);
        (media.abs_diff(elapsed) <= MAX_RIGHT_CLOCK_DEVIATION + elapsed / 1_000).then_some(offset)
    }

    /// Timestamps that follow are unrelated.
    fn forget_source_clock(&mut self) {
        (self.first_frame, self.start, self.trusted_offset) = (None, None, None);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const FIRST_SLICE_FRAMING: PayloadFraming = PayloadFraming {
        starts_picture: true,
        precedes_picture: false,
        has_slice: true,
        continues_in_next_packet: false,
        continues_previous_packet: false,
    };
    const SLICE_FRAMING: PayloadFraming = PayloadFraming {
        starts_picture: false,
        ..FIRST_SLICE_FRAMING
    };
    const PARAMETER_SET_FRAMING: PayloadFraming = PayloadFraming {
        precedes_picture: true,
        starts_picture: false,
        has_slice: false,
        continues_in_next_packet: false,
        continues_previous_packet: false,
    };

    /// A sender of a frame each 40 ms.
    struct SimulatedRtpSender {
        corrector: RtpTimestampCorrector,
        now: Instant,
        seq: u64,
    }

    impl SimulatedRtpSender {
        fn new(codec: Codec) -> Self {
            Self {
                corrector: RtpTimestampCorrector::new(codec),
                now: Instant::now(),
                seq: 0,
            }
        }

        fn send(&mut self, time: u64, marker: bool, framing: PayloadFraming) -> u64 {
            self.seq += 1;
            self.send_at(self.seq, time, marker, framing)
        }

        fn send_at(&mut self, seq: u64, time: u64, marker: bool, framing: PayloadFraming) -> u64 {
            self.corrector.correct_packet_timestamp(&RtpPacketMetadata {
                seq,
                time,
                marker,
                payload_framing: Some(framing),
                arrival: self.now,
            })
        }

        /// A frame of three slices. Returns their timestamps.
        fn send_three_slice_frame(&mut self, time: u64, marker: fn(usize) -> bool) -> [u64; 3] {
            self.now += 40 * MS;
            [FIRST_SLICE_FRAMING, SLICE_FRAMING, SLICE_FRAMING]
                .into_iter()
                .enumerate()
                .map(|(index, framing)| self.send(time, marker(index), framing))
                .collect::<Vec<_>>()
                .try_into()
                .expect("three")
        }
    }

    #[test]
    fn timestamps_that_stand_still_follow_arrivals() {
        for marker in [|slice: usize| slice == 2, |_| true, |_| false] {
            let mut sender = SimulatedRtpSender::new(Codec::H264);
            let frames: Vec<_> = (0..50).map(|_| sender.send_three_slice_frame(0, marker)).collect();
            for (index, frame) in frames.into_iter().enumerate() {
                let wanted = if index < 2 { 0 } else { index as u64 * 3_600 };
                assert_eq!(frame, [wanted; 3], "{index}");
            }
            assert_eq!(sender.corrector.arrival_timestamped_frame_count(), 48);
            assert_eq!(sender.corrector.correct_source_timestamp(0), None);
        }
    }

    #[test]
    fn timestamps_that_advance_are_kept() {
        // B-frames, two fields with one timestamp, and slices that each have a marker.
        for times in [[0, 3, 1, 2, 6, 4], [0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]] {
            let mut sender = SimulatedRtpSender::new(Codec::H264);
            for time in times {
                assert_eq!(sender.send_three_slice_frame(time * 3_600, |_| true), [time * 3_600; 3]);
            }
            assert_eq!(sender.corrector.arrival_timestamped_frame_count(), 0);
        }
    }

    /// Each slice, or each fragment of one, has a timestamp of its own.
    #[test]
    fn slices_get_the_timestamp_of_their_picture() {
        const FRAGMENT_FRAMING: PayloadFraming = PayloadFraming {
            continues_in_next_packet: true,
            ..FIRST_SLICE_FRAMING
        };
        const LAST_FRAGMENT_FRAMING: PayloadFraming = PayloadFraming {
            continues_previous_packet: true,
            ..SLICE_FRAMING
        };
        for codec in [Codec::H264, Codec::H265] {
            let mut sender = SimulatedRtpSender::new(codec);
            for frame in 0..10 {
                sender.now += 40 * MS;
                let time = frame * 3_600;
                let slices = [(FRAGMENT_FRAMING, 0), (LAST_FRAGMENT_FRAMING, 10), (SLICE_FRAMING, 20)];
                let times = slices.map(|(framing, step)| sender.send(time + step, true, framing));
                assert_eq!(times, [time; 3], "{frame}");
            }
            // The first slice of this one was lost.
            sender.seq += 1;
            assert_eq!(sender.send(36_010, true, SLICE_FRAMING), 36_010);
            assert_eq!(sender.corrector.arrival_timestamped_frame_count(), 0);
        }
    }

    #[test]
    fn a_frame_that_is_stamped_hours_away_is_timed_by_its_arrival() {
        let mut sender = SimulatedRtpSender::new(Codec::H264);
        for frame in 0..100 {
            let time = 1_000_000_000 + frame * 3_600;
            let stamped = if frame % 10 == 5 { 900_000 } else { time };
            assert_eq!(sender.send_three_slice_frame(stamped, |slice| slice == 2), [time; 3]);
        }
        assert_eq!(
            sender.corrector.correct_source_timestamp(1_000_000_000),
            Some(1_000_000_000)
        );
    }

    #[test]
    fn a_clock_that_counts_seconds_follows_arrivals_too() {
        let mut sender = SimulatedRtpSender::new(Codec::H264);
        let frames: Vec<u64> = (0..200)
            .map(|frame| sender.send_three_slice_frame(frame / 25 * 90_000, |slice| slice == 2)[0])
            .collect();
        assert!(
            frames[2..].windows(2).all(|pair| pair[1] - pair[0] == 3_600),
            "{frames:?}"
        );
    }

    /// A clock of 1 kHz that is announced as 90 kHz, and one that runs ten times as fast (AlexxIT/go2rtc#2398).
    #[test]
    fn a_clock_of_another_rate_than_announced_follows_arrivals() {
        for ticks in [40, 1_800, 7_200, 37_800] {
            let mut sender = SimulatedRtpSender::new(Codec::H264);
            let frames: Vec<u64> = (0..1_000)
                .map(|frame| sender.send_three_slice_frame(frame * ticks, |slice| slice == 2)[0])
                .collect();
            let steps: Vec<u64> = frames.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(steps[320..].iter().all(|step| *step == 3_600), "{ticks}: {steps:?}");
            assert!(steps[..250].iter().all(|step| *step == ticks), "{ticks}: {steps:?}");
            assert_eq!(sender.corrector.correct_source_timestamp(0), None);
        }
    }

    /// A pause of the network is followed by all that was sent meanwhile; a recorder plays half a minute too fast.
    #[test]
    fn frames_that_come_late_and_together_keep_their_timestamps() {
        let mut sender = SimulatedRtpSender::new(Codec::H264);
        let start = sender.now;
        for frame in 0..3_000u64 {
            sender.now = match frame % 600 {
                200..300 => start + (frame / 600 * 600 + 300) as u32 * 40 * MS,
                _ => start + frame as u32 * 40 * MS,
            };
            assert_eq!(sender.send(frame * 3_600, true, FIRST_SLICE_FRAMING), frame * 3_600);
        }
        let mut fast = SimulatedRtpSender::new(Codec::H264);
        for frame in 0..750u64 {
            fast.now += 25 * MS;
            assert_eq!(fast.send(frame * 3_600, true, FIRST_SLICE_FRAMING), frame * 3_600);
        }
    }

    /// A path carries a part of the video that changes, and then all that has waited.
    #[test]
    fn frames_of_a_path_that_carries_too_little_keep_their_timestamps() {
        let mut sender = SimulatedRtpSender::new(Codec::H264);
        let start = sender.now;
        for frame in 0..1_000u64 {
            let since_start = sender.now - start;
            let step = match since_start.as_secs() / 4 {
                0..4 if frame < 400 => [80, 130, 90, 110][since_start.as_secs() as usize / 4] * MS,
                _ => 5 * MS,
            };
            sender.now = (sender.now + step).max(start + frame as u32 * 40 * MS);
            assert_eq!(sender.send(frame * 3_600, true, FIRST_SLICE_FRAMING), frame * 3_600);
        }
        assert_eq!(sender.corrector.arrival_timestamped_frame_count(), 0);
    }

    /// A path carries half of the video for some time, and then all that has waited, at once or slightly faster than it is sent.
    #[test]
    fn frames_that_were_late_for_long_return_to_the_offset_before() {
        for catching_up_step in [5, 35] {
            let mut sender = SimulatedRtpSender::new(Codec::H264);
            let start = sender.now;
            let mut times = Vec::new();
            for frame in 0..4_000u64 {
                let step = if frame < 250 { 80 } else { catching_up_step };
                sender.now = (sender.now + step * MS).max(start + frame as u32 * 40 * MS);
                times.push(sender.send(frame * 3_600, true, FIRST_SLICE_FRAMING));
            }
            assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
            assert!(sender.corrector.arrival_timestamped_frame_count() > 0);
            assert_eq!(times[3_999], 3_999 * 3_600, "{catching_up_step}");
            assert_eq!(sender.corrector.correct_source_timestamp(90_000), Some(90_000));
        }
    }

    #[test]
    fn advancing_timestamps_are_trusted_again() {
        let mut sender = SimulatedRtpSender::new(Codec::H264);
        (0..10).for_each(|_| _ = sender.send_three_slice_frame(7, |slice| slice == 2));
        let mut frames = Vec::new();
        for frame in 0..100 {
            frames.push(sender.send_three_slice_frame(1_000_000 + frame * 3_600, |slice| slice == 2)[0]);
        }
        assert!(frames.windows(2).all(|pair| pair[1] - pair[0] == 3_600), "{frames:?}");
        let counted = sender.corrector.arrival_timestamped_frame_count();
        assert!((10..60).contains(&counted), "{counted}");
        let last = frames[99];
        assert_eq!(
            sender.corrector.correct_source_timestamp(1_000_000 + 99 * 3_600),
            Some(last)
        );
    }

    #[test]
    fn parameter_sets_belong_to_the_frame_after_them_and_late_packets_to_theirs() {
        let mut sender = SimulatedRtpSender::new(Codec::H264);
        let before: Vec<u64> = (0..4)
            .map(|_| sender.send_three_slice_frame(0, |slice| slice == 2)[0])
            .collect();
        sender.now += 40 * MS;
        // The sets and the first slice come late.
        sender.seq += 3;
        let slice = sender.send(0, true, SLICE_FRAMING);
        assert_eq!(slice, before[3] + 3_600);
        let next = sender.send_three_slice_frame(0, |slice| slice == 2)[0];
        assert_eq!(next, slice + 3_600);
        for (seq, framing) in [
            (13, PARAMETER_SET_FRAMING),
            (14, PARAMETER_SET_FRAMING),
            (15, FIRST_SLICE_FRAMING),
        ] {
            assert_eq!(sender.send_at(seq, 0, false, framing), slice);
        }
        assert_eq!(sender.send_at(11, 0, false, SLICE_FRAMING), before[3]);
        sender.now += 40 * MS;
        let sets = sender.send(0, false, PARAMETER_SET_FRAMING);
        assert_eq!(sets, next + 3_600);
        assert_eq!(sender.send(0, false, FIRST_SLICE_FRAMING), sets);
    }

    #[test]
    fn slow_frames_and_frames_that_arrive_together_are_told_apart() {
        let mut slow = SimulatedRtpSender::new(Codec::H265);
        slow.send(0, true, FIRST_SLICE_FRAMING);
        slow.now += 8_000 * MS;
        assert_eq!(slow.send(0, true, FIRST_SLICE_FRAMING), 8 * 90_000);
        let mut burst = SimulatedRtpSender::new(Codec::H265);
        let times: Vec<u64> = (0..6).map(|_| burst.send(0, true, FIRST_SLICE_FRAMING)).collect();
        assert_eq!(times, [0, 0, 90, 180, 270, 360]);
    }

    #[test]
    fn frames_of_other_codecs_are_told_apart_by_packet_or_by_marker() {
        let mut audio = SimulatedRtpSender::new(Codec::Opus);
        let mut av1 = SimulatedRtpSender::new(Codec::Av1);
        let (mut packets, mut frames) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            (audio.now, av1.now) = (audio.now + 20 * MS, av1.now + 40 * MS);
            packets.push(audio.send(5, false, SLICE_FRAMING));
            frames.push([av1.send(5, false, SLICE_FRAMING), av1.send(5, true, SLICE_FRAMING)]);
        }
        assert!(
            packets[2..].windows(2).all(|pair| pair[1] - pair[0] == 960),
            "{packets:?}"
        );
        assert!(frames.iter().all(|frame| frame[0] == frame[1]), "{frames:?}");
        assert!(
            frames[7..].windows(2).all(|pair| pair[1][0] - pair[0][0] == 3_600),
            "{frames:?}"
        );
    }

    #[test]
    fn restarted_numbering_keeps_arrival_times() {
        let mut sender = SimulatedRtpSender::new(Codec::H264);
        let last = (0..5)
            .map(|_| sender.send_three_slice_frame(0, |slice| slice == 2)[0])
            .last();
        sender.corrector.on_seq_and_timestamp_discontinuity();
        sender.seq = 0;
        assert_eq!(
            Some(sender.send_three_slice_frame(0, |slice| slice == 2)[0] - 3_600),
            last
        );
    }
}
