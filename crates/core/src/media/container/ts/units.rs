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
pub(super) struct Times {
    pub(super) decode: Duration,
    pub(super) present: Duration,
}

/// An access unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AccessUnit {
    pub(super) times: Times,
    pub(super) bytes: BytesMut,
}

/// Access units of one stream.
#[derive(Debug)]
pub(super) struct AccessUnits {
    codec: VideoCodec,
    /// The access unit in progress, from its first start code, and what follows.
    buffer: BytesMut,
    /// Everything before was searched for start codes.
    searched: usize,
    /// Begin of the last NAL unit, with its start code.
    last_nal: usize,
    /// The access unit in progress has a slice.
    has_slice: bool,
    /// It had one before the last NAL unit.
    had_slice: bool,
    /// Bytes are missing: those before the next start code are of no use.
    skips: bool,
    times: Option<Times>,
    /// Times of PES packets, with their begins in `buffer`.
    anchors: VecDeque<(usize, Times)>,
    /// Access units that wait for the next known time; the first one has its own.
    waiting: Vec<AccessUnit>,
    /// Last known distance between two access units.
    step: Duration,
}

/// Maximum length of an access unit in bytes.
const MAX_UNIT: usize = 8 << 20;

/// Maximum number of access units between two times, and of times within one.
const MAX_WAITING: usize = 512;

/// Length of a start code up to its last byte.
const START_CODE: usize = 3;

/// Distance between two access units if nothing is known.
const STEP: Duration = Duration::from_millis(40);

/// Maximum distance between two access units of one PES packet.
const MAX_STEP: Duration = Duration::from_secs(10);

impl AccessUnits {
    pub(super) fn new(codec: VideoCodec) -> Self {
        Self {
            codec,
            buffer: BytesMut::new(),
            searched: 0,
            last_nal: 0,
            has_slice: false,
            had_slice: false,
            skips: true,
            times: None,
            anchors: VecDeque::new(),
            waiting: Vec::new(),
            step: STEP,
        }
    }

    /// Records that a PES packet begins; its times, if it has any.
    pub(super) fn begin(&mut self, times: Option<Times>) {
        if let Some(times) = times.filter(|_| self.anchors.len() < MAX_WAITING) {
            self.anchors.push_back((self.buffer.len(), times));
        }
    }

    /// Appends bytes, and returns access units that are complete.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<AccessUnit>) {
        if self.buffer.len() + bytes.len() > MAX_UNIT {
            self.restart();
            return;
        }
        self.buffer.extend_from_slice(bytes);
        while let Some(mut code) = self.next_start_code() {
            let mut first = self.begin_of(code);
            if std::mem::take(&mut self.skips) {
                code -= self.discard(self.last_nal, first);
                first = self.last_nal;
            }
            self.searched = code + 1;
            let Some(nal) = self.buffer.get(code + 1..) else { return };
            let kind = NalKind::of(self.codec, nal);
            if self.begins_unit(code, kind) {
                self.finish(first, out);
                first = 0;
            }
            self.nal(first, kind);
        }
    }

    /// Returns the rest. What follows belongs to another access unit.
    pub(super) fn flush(&mut self, out: &mut Vec<AccessUnit>) {
        if self.has_slice {
            self.finish(self.buffer.len(), out);
        }
        self.release(out);
        self.restart();
    }

    /// Drops the NAL unit in progress after a loss. The complete ones are kept.
    pub(super) fn lose(&mut self) {
        self.buffer.truncate(self.last_nal);
        self.has_slice = self.had_slice;
        let length = self.buffer.len();
        // A start code does not begin before the loss.
        self.searched = length + 2;
        self.anchors.iter_mut().for_each(|(at, _)| *at = (*at).min(length));
        self.skips = true;
    }

    fn restart(&mut self) {
        let (codec, step) = (self.codec, self.step);
        let waiting = std::mem::take(&mut self.waiting);
        *self = Self {
            step,
            waiting,
            ..Self::new(codec)
        };
    }

    /// Position of the byte 1 of the next start code whose NAL unit header has arrived.
    fn next_start_code(&mut self) -> Option<usize> {
        let bytes = &self.buffer[..];
        let mut at = self.searched.max(2);
        // The longest header of a slice that is read has three bytes.
        while at + 3 < bytes.len() {
            match bytes.get(at)? {
                1 if bytes.get(at - 2..at)? == [0, 0] => return Some(at),
                0 | 1 => at += 1,
                _ => at += 3,
            }
        }
        self.searched = at;
        None
    }

    /// Begin of a start code, with the zero byte that may precede it.
    fn begin_of(&self, code: usize) -> usize {
        let zero = code.checked_sub(3).filter(|at| self.buffer.get(*at) == Some(&0));
        zero.unwrap_or(code.saturating_sub(2)).max(self.last_nal)
    }

    /// Removes bytes that belong to no NAL unit, and returns their number.
    fn discard(&mut self, begin: usize, end: usize) -> usize {
        // What is behind it is short, what is before it may be long.
        let length = self.buffer.len();
        self.buffer.copy_within(end..length, begin);
        self.buffer.truncate(length - (end - begin));
        let removed = end - begin;
        for (at, _) in &mut self.anchors {
            *at = (*at).min(begin).max(at.saturating_sub(removed));
        }
        removed
    }

    /// Adds a NAL unit that begins at `first` to the access unit in progress.
    fn nal(&mut self, first: usize, kind: NalKind) {
        self.last_nal = first;
        if first == 0 || self.times.is_none() && !self.has_slice {
            self.times = self.anchor(first).or(self.times);
        }
        self.had_slice = self.has_slice;
        self.has_slice |= matches!(kind, NalKind::FirstSlice | NalKind::Slice);
    }

    /// Takes the time of the PES packet in which a NAL unit at `first` begins. The start code may begin in the packet
    /// before.
    fn anchor(&mut self, first: usize) -> Option<Times> {
        let mut found = None;
        while self.anchors.front().is_some_and(|(at, _)| *at <= first + START_CODE) {
            found = self.anchors.pop_front().map(|(_, times)| times);
        }
        found
    }

    fn begins_unit(&self, code: usize, kind: NalKind) -> bool {
        match kind {
            _ if !self.has_slice => false,
            NalKind::FirstSlice | NalKind::BeforeSlices => true,
            // The first slice was lost, but another time came.
            NalKind::Slice => {
                let times = self.anchors.iter().take_while(|(at, _)| *at <= code);
                times.last().is_some_and(|(_, times)| Some(*times) != self.times)
            }
            NalKind::Other => false,
        }
    }

    /// Ends the access unit in progress at `end`.
    fn finish(&mut self, end: usize, out: &mut Vec<AccessUnit>) {
        let rest = self.buffer.split_off(end);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        self.anchors.iter_mut().for_each(|(at, _)| *at = at.saturating_sub(end));
        self.searched = self.searched.saturating_sub(end);
        (self.has_slice, self.had_slice) = (false, false);
        let own = self.times.take();
        if let Some(own) = own {
            self.settle(own, out);
        }
        // Without a time before it, it cannot be shown.
        if let Some(times) = own.or(self.waiting.first().map(|first| first.times)) {
            self.waiting.push(AccessUnit { times, bytes });
        }
        let mut begun = self.anchors.iter().take_while(|(at, _)| *at <= START_CODE);
        let next = begun.by_ref().last().map(|(_, times)| *times);
        let length: usize = self.waiting.iter().map(|unit| unit.bytes.len()).sum();
        match next {
            // Both begin in packets of one time, so this is the time of the first.
            Some(next) if Some(next) == own => {
                self.anchor(0);
            }
            Some(next) => self.settle(next, out),
            None if self.waiting.len() >= MAX_WAITING || length > MAX_UNIT => self.release(out),
            None => {}
        }
    }

    /// Gives the waiting access units times up to that of the one behind them.
    fn settle(&mut self, next: Times, out: &mut Vec<AccessUnit>) {
        let Some(first) = self.waiting.first() else { return };
        let count = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX).max(1);
        let step = next.decode.saturating_sub(first.times.decode) / count;
        if !step.is_zero() && step <= MAX_STEP {
            self.step = step;
        }
        self.release(out);
    }

    fn release(&mut self, out: &mut Vec<AccessUnit>) {
        for (index, mut unit) in (0u32..).zip(self.waiting.drain(..)) {
            unit.times.decode += self.step * index;
            unit.times.present += self.step * index;
            out.push(unit);
        }
    }
}

/// Position of a NAL unit in its access unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NalKind {
    /// The first slice of a picture.
    FirstSlice,
    Slice,
    /// Comes before the slices, such as a delimiter or a parameter set.
    BeforeSlices,
    Other,
}

impl NalKind {
    fn of(codec: VideoCodec, nal: &[u8]) -> Self {
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
