//! Splits the bytes of a video stream into access units, by their content (ITU-T H.264 §7.4.1.2.3, H.265 §7.4.2.4.4).
//!
//! A PES packet may hold one access unit, several, or a part of one. Its timestamp is that of the first access unit that
//! begins in it; the others get times in between.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VideoCodec {
    H264,
    H265,
}

/// Unwrapped times of a PES packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DecodeAndPresentationTimes {
    pub(super) decode_time: Duration,
    pub(super) presentation_time: Duration,
}

/// An access unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AccessUnit {
    pub(super) times: DecodeAndPresentationTimes,
    pub(super) bytes: BytesMut,
}

/// Access units of one stream.
#[derive(Debug)]
pub(super) struct AccessUnitSplitter {
    codec: VideoCodec,
    /// The access unit in progress, from its first start code, and what follows.
    buffer: BytesMut,
    /// Everything before was searched for start codes.
    searched_len: usize,
    /// Begin of the last NAL unit, with its start code.
    last_nal_start: usize,
    /// The access unit in progress has a slice.
    has_slice: bool,
    /// It had one before the last NAL unit.
    had_slice_before_last_nal: bool,
    /// Bytes are missing: those before the next start code are of no use.
    skips_to_start_code: bool,
    unit_times: Option<DecodeAndPresentationTimes>,
    /// Times of PES packets, with their begins in `buffer`.
    pes_times: VecDeque<(usize, DecodeAndPresentationTimes)>,
    /// Access units that wait for the next known time; the first one has its own.
    units_awaiting_time: Vec<AccessUnit>,
    /// Last known distance between two access units.
    frame_interval: Duration,
}

/// Maximum length of an access unit in bytes.
const MAX_ACCESS_UNIT_BYTES: usize = 8 << 20;

/// Maximum number of access units between two times, and of times within one.
const MAX_QUEUED_ACCESS_UNITS_OR_PES_TIMES: usize = 512;

/// Length of a start code up to its last byte.
const START_CODE_LEN: usize = 3;

/// Distance between two access units if nothing is known.
const DEFAULT_FRAME_INTERVAL: Duration = Duration::from_millis(40);

/// Maximum distance between two access units of one PES packet.
const MAX_FRAME_INTERVAL: Duration = Duration::from_secs(10);

impl AccessUnitSplitter {
    pub(super) fn new(codec: VideoCodec) -> Self {
        Self {
            codec,
            buffer: BytesMut::new(),
            searched_len: 0,
            last_nal_start: 0,
            has_slice: false,
            had_slice_before_last_nal: false,
            skips_to_start_code: true,
            unit_times: None,
            pes_times: VecDeque::new(),
            units_awaiting_time: Vec::new(),
            frame_interval: DEFAULT_FRAME_INTERVAL,
        }
    }

    /// Records that a PES packet begins; its times, if it has any.
    pub(super) fn begin_pes_packet(&mut self, times: Option<DecodeAndPresentationTimes>) {
        if let Some(times) = times.filter(|_| self.pes_times.len() < MAX_QUEUED_ACCESS_UNITS_OR_PES_TIMES) {
            self.pes_times.push_back((self.buffer.len(), times));
        }
    }

    /// Appends bytes, and returns access units that are complete.
    pub(super) fn push_bytes_and_split(&mut self, bytes: &[u8], out: &mut Vec<AccessUnit>) {
        if self.buffer.len() + bytes.len() > MAX_ACCESS_UNIT_BYTES {
            self.reset_keeping_units();
            return;
        }
        self.buffer.extend_from_slice(bytes);
        while let Some(mut code) = self.find_start_code_last_byte() {
            let mut first = self.start_code_offset(code);
            if std::mem::take(&mut self.skips_to_start_code) {
                code -= self.remove_byte_range(self.last_nal_start, first);
                first = self.last_nal_start;
            }
            self.searched_len = code + 1;
            let Some(nal) = self.buffer.get(code + 1..) else { return };
            let kind = NalKindInAccessUnit::classify(self.codec, nal);
            if self.begins_access_unit(code, kind) {
                self.finish_access_unit(first, out);
                first = 0;
            }
            self.add_nal_start_to_access_unit(first, kind);
        }
    }

    /// Returns the rest. What follows belongs to another access unit.
    pub(super) fn flush(&mut self, out: &mut Vec<AccessUnit>) {
        if self.has_slice {
            self.finish_access_unit(self.buffer.len(), out);
        }
        self.release_units_awaiting_time(out);
        self.reset_keeping_units();
    }

    /// Drops the NAL unit in progress after a loss. The complete ones are kept.
    pub(super) fn drop_damaged_nal(&mut self) {
        self.buffer.truncate(self.last_nal_start);
        self.has_slice = self.had_slice_before_last_nal;
        let length = self.buffer.len();
        // A start code does not begin before the loss.
        self.searched_len = length + 2;
        self.pes_times.iter_mut().for_each(|(at, _)| *at = (*at).min(length));
        self.skips_to_start_code = true;
    }

    fn reset_keeping_units(&mut self) {
        let (codec, step) = (self.codec, self.frame_interval);
        let waiting = std::mem::take(&mut self.units_awaiting_time);
        *self = Self {
            frame_interval: step,
            units_awaiting_time: waiting,
            ..Self::new(codec)
        };
    }

    /// Position of the byte 1 of the next start code whose NAL unit header has arrived.
    fn find_start_code_last_byte(&mut self) -> Option<usize> {
        let bytes = &self.buffer[..];
        let mut at = self.searched_len.max(2);
        // The longest header of a slice that is read has three bytes.
        while at + 3 < bytes.len() {
            match bytes.get(at)? {
                1 if bytes.get(at - 2..at)? == [0, 0] => return Some(at),
                0 | 1 => at += 1,
                _ => at += 3,
            }
        }
        self.searched_len = at;
        None
    }

    /// Begin of a start code, with the zero byte that may precede it.
    fn start_code_offset(&self, code: usize) -> usize {
        let zero = code.checked_sub(3).filter(|at| self.buffer.get(*at) == Some(&0));
        zero.unwrap_or(code.saturating_sub(2)).max(self.last_nal_start)
    }

    /// Removes bytes that belong to no NAL unit, and returns their number.
    fn remove_byte_range(&mut self, begin: usize, end: usize) -> usize {
        // What is behind it is short, what is before it may be long.
        let length = self.buffer.len();
        self.buffer.copy_within(end..length, begin);
        self.buffer.truncate(length - (end - begin));
        let removed = end - begin;
        for (at, _) in &mut self.pes_times {
            *at = (*at).min(begin).max(at.saturating_sub(removed));
        }
        removed
    }

    /// Adds a NAL unit that begins at `first` to the access unit in progress.
    fn add_nal_start_to_access_unit(&mut self, first: usize, kind: NalKindInAccessUnit) {
        self.last_nal_start = first;
        if first == 0 || self.unit_times.is_none() && !self.has_slice {
            self.unit_times = self.take_pes_times(first).or(self.unit_times);
        }
        self.had_slice_before_last_nal = self.has_slice;
        self.has_slice |= matches!(kind, NalKindInAccessUnit::FirstSlice | NalKindInAccessUnit::Slice);
    }

    /// Takes the time of the PES packet in which a NAL unit at `first` begins. The start code may begin in the packet
    /// before.
    fn take_pes_times(&mut self, first: usize) -> Option<DecodeAndPresentationTimes> {
        let mut found = None;
        while self
            .pes_times
            .front()
            .is_some_and(|(at, _)| *at <= first + START_CODE_LEN)
        {
            found = self.pes_times.pop_front().map(|(_, times)| times);
        }
        found
    }

    fn begins_access_unit(&self, code: usize, kind: NalKindInAccessUnit) -> bool {
        match kind {
            _ if !self.has_slice => false,
            NalKindInAccessUnit::FirstSlice | NalKindInAccessUnit::BeforeSlices => true,
            // The first slice was lost, but another time came.
            NalKindInAccessUnit::Slice => {
                let times = self.pes_times.iter().take_while(|(at, _)| *at <= code);
                times.last().is_some_and(|(_, times)| Some(*times) != self.unit_times)
            }
            NalKindInAccessUnit::Other => false,
        }
    }

    /// Ends the access unit in progress at `end`.
    fn finish_access_unit(&mut self, end: usize, out: &mut Vec<AccessUnit>) {
        let rest = self.buffer.split_off(end);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        self.pes_times
            .iter_mut()
            .for_each(|(at, _)| *at = at.saturating_sub(end));
        self.searched_len = self.searched_len.saturating_sub(end);
        (self.has_slice, self.had_slice_before_last_nal) = (false, false);
        let own = self.unit_times.take();
        if let Some(own) = own {
            self.set_frame_interval_and_release_units(own, out);
        }
        // Without a time before it, it cannot be shown.
        if let Some(times) = own.or(self.units_awaiting_time.first().map(|first| first.times)) {
            self.units_awaiting_time.push(AccessUnit { times, bytes });
        }
        let mut begun = self.pes_times.iter().take_while(|(at, _)| *at <= START_CODE_LEN);
        let next = begun.by_ref().last().map(|(_, times)| *times);
        let length: usize = self.units_awaiting_time.iter().map(|unit| unit.bytes.len()).sum();
        match next {
            // Both begin in packets of one time, so this is the time of the first.
            Some(next) if Some(next) == own => {
                self.take_pes_times(0);
            }
            Some(next) => self.set_frame_interval_and_release_units(next, out),
            None if self.units_awaiting_time.len() >= MAX_QUEUED_ACCESS_UNITS_OR_PES_TIMES
                || length > MAX_ACCESS_UNIT_BYTES =>
            {
                self.release_units_awaiting_time(out)
            }
            None => {}
        }
    }

    /// Gives the waiting access units times up to that of the one behind them.
    fn set_frame_interval_and_release_units(&mut self, next: DecodeAndPresentationTimes, out: &mut Vec<AccessUnit>) {
        let Some(first) = self.units_awaiting_time.first() else {
            return;
        };
        let count = u32::try_from(self.units_awaiting_time.len()).unwrap_or(u32::MAX).max(1);
        let step = next.decode_time.saturating_sub(first.times.decode_time) / count;
        if !step.is_zero() && step <= MAX_FRAME_INTERVAL {
            self.frame_interval = step;
        }
        self.release_units_awaiting_time(out);
    }

    fn release_units_awaiting_time(&mut self, out: &mut Vec<AccessUnit>) {
        for (index, mut unit) in (0u32..).zip(self.units_awaiting_time.drain(..)) {
            unit.times.decode_time += self.frame_interval * index;
            unit.times.presentation_time += self.frame_interval * index;
            out.push(unit);
        }
    }
}

/// Position of a NAL unit in its access unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NalKindInAccessUnit {
    /// The first slice of a picture.
    FirstSlice,
    Slice,
    /// Comes before the slices, such as a delimiter or a parameter set.
    BeforeSlices,
    Other,
}

impl NalKindInAccessUnit {
    fn classify(codec: VideoCodec, nal: &[u8]) -> Self {
        let byte = |at: usize| nal.get(at).copied().unwrap_or_default();
        match codec {
            VideoCodec::H264 => match byte(0) & 0x1f {
                // `first_mb_in_slice` is 0.
                1 | 2 | 5 if byte(1) & 0x80 != 0 => Self::FirstSlice,
                1..=5 => Self::Slice,
                6..=9 | 14..=18 => Self::BeforeSlices,
                _ => Self::Other,
            },
            VideoCodec::H265 => {
                let is_base_layer = byte(0) & 1 == 0 && byte(1) & 0xf8 == 0;
                match byte(0) >> 1 & 0x3f {
                    0..=31 if is_base_layer && byte(2) & 0x80 != 0 => Self::FirstSlice,
                    0..=31 => Self::Slice,
                    32..=35 | 39 | 41..=44 | 48..=55 if is_base_layer => Self::BeforeSlices,
                    _ => Self::Other,
                }
            }
        }
    }
}
