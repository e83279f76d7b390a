//! Turns HLS segments into frames that are due at their time. No clock and no IO: time is an argument.
//!
//! ```text
//! chunks -> Rendition (whole segments -> Demuxer) -> Timelines (continuous time) -> Pacer (when each is due) -> frames
//! ```
//!
//! A segment arrives at once but lasts for seconds: its frames are held back until they are due ([`pacer`]).
//! Discontinuities, and timestamp jumps without one, are mapped to continuous playout time ([`timelines`]).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use self::pacer::Pacer;
use self::timelines::Timelines;
use millstream_core::media::Kind;
use millstream_core::media::container::{ContainerError, Content, Demuxer, Sample};
use millstream_worker_runtime::wire::{ChunkRole, DemuxJob, SegmentChunk, Tracks};

mod pacer;
mod timelines;

/// Plays out segment chunks as frames.
pub(super) struct Playout {
    renditions: Vec<Rendition>,
    timelines: Timelines,
    pacer: Pacer,
    /// Consecutive segments that could not be played.
    failures: u32,
    /// Frames were found before, so what cannot be played may be in between.
    has_frames: bool,
}

/// A frame that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub content: Content,
    /// Presentation time in playout time.
    pub present: Duration,
    pub bytes: Bytes,
}

/// Why playout cannot continue.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum PlayoutError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("a segment exceeds {} MiB", MAX_SEGMENT >> 20)]
    TooLong,
}

/// State of one rendition.
#[derive(Default)]
struct Rendition {
    demuxer: Demuxer,
    timeline: Option<u64>,
    assembling: BytesMut,
    /// Samples of a timeline whose position is not known yet.
    waiting: Vec<Sample>,
    queue: VecDeque<QueuedFrame>,
    /// A segment was requested and has not arrived.
    requested: bool,
    ended: bool,
}

struct QueuedFrame {
    sample: Sample,
    /// Decode and presentation time in playout time.
    decode: Duration,
    present: Duration,
}

/// Maximum length of a segment, in bytes.
const MAX_SEGMENT: usize = 64 << 20;

/// The next segment is requested when the buffered ones last no longer than this.
const AHEAD: Duration = Duration::from_secs(2);

/// Number of consecutive segments that may be unplayable.
const MAX_FAILURES: u32 = 3;

impl Playout {
    /// Creates an empty playout.
    pub(super) fn new(job: DemuxJob) -> Self {
        Self {
            renditions: (0..job.renditions.clamp(1, 2)).map(|_| Rendition::default()).collect(),
            timelines: Timelines::default(),
            pacer: Pacer::new(job.is_live),
            failures: 0,
            has_frames: false,
        }
    }

    /// Returns the renditions for which a segment must be requested now.
    pub(super) fn due_requests(&mut self, now: Instant) -> Vec<u8> {
        let at = self.pacer.position(now);
        let mut due = Vec::new();
        for (index, rendition) in (0u8..).zip(&mut self.renditions) {
            let last = rendition.queue.back().map(|frame| frame.decode);
            let is_filled = last.is_some_and(|last| last > at.unwrap_or_default() + AHEAD);
            if !rendition.requested && !rendition.ended && !is_filled && rendition.waiting.is_empty() {
                rendition.requested = true;
                due.push(index);
            }
        }
        due
    }

    /// Handles a chunk.
    ///
    /// # Errors
    ///
    /// A [`PlayoutError`] when several consecutive segments cannot be played.
    pub(super) fn take(&mut self, now: Instant, chunk: SegmentChunk) -> Result<(), PlayoutError> {
        let Some(rendition) = self.renditions.get_mut(usize::from(chunk.rendition)) else {
            return Ok(());
        };
        match chunk.role {
            ChunkRole::Init => {
                let rest = rendition.begin(chunk.timeline);
                rendition.demuxer.set_init(chunk.bytes);
                self.add_rest(now, chunk.rendition, rest);
            }
            ChunkRole::Part | ChunkRole::Last => {
                if rendition.assembling.len() + chunk.bytes.len() > MAX_SEGMENT {
                    return Err(PlayoutError::TooLong);
                }
                rendition.assembling.extend_from_slice(&chunk.bytes);
                if chunk.role == ChunkRole::Last {
                    rendition.requested = false;
                    let rest = rendition.begin(chunk.timeline);
                    let segment = rendition.assembling.split().freeze();
                    self.add_rest(now, chunk.rendition, rest);
                    self.demux(now, chunk.rendition, &segment)?;
                }
            }
            ChunkRole::End => {
                rendition.ended = true;
                let rest = rendition.timeline.zip(Some(rendition.demuxer.flush()));
                self.add_rest(now, chunk.rendition, rest);
            }
        }
        Ok(())
    }

    /// Demuxes a segment. One that cannot be played is a gap; several in a row are an error.
    fn demux(&mut self, now: Instant, index: u8, segment: &Bytes) -> Result<(), PlayoutError> {
        let Some(rendition) = self.renditions.get_mut(usize::from(index)) else {
            return Ok(());
        };
        match rendition.demuxer.segment(segment) {
            Ok(samples) => {
                self.failures = 0;
                self.has_frames |= !samples.is_empty();
                let timeline = rendition.timeline.unwrap_or_default();
                self.add_samples(now, index, timeline, samples);
                Ok(())
            }
            Err(error) => {
                self.failures += 1;
                let is_final = matches!(error, ContainerError::Encrypted | ContainerError::Unsupported(_));
                if is_final && !self.has_frames || self.failures >= MAX_FAILURES {
                    return Err(error.into());
                }
                Ok(())
            }
        }
    }

    /// Adds the frames that were in progress when a timeline ended.
    fn add_rest(&mut self, now: Instant, index: u8, rest: Option<(u64, Vec<Sample>)>) {
        if let Some((timeline, samples)) = rest.filter(|(_, samples)| !samples.is_empty()) {
            self.add_samples(now, index, timeline, samples);
        }
    }

    fn add_samples(&mut self, now: Instant, index: u8, timeline: u64, samples: Vec<Sample>) {
        let leads = index == 0;
        let Some(rendition) = self.renditions.get_mut(usize::from(index)) else {
            return;
        };
        if leads {
            self.timelines.position_by_leader(timeline, &samples);
        } else if !self.timelines.contains(timeline) {
            // The leading rendition either has not reached this timeline yet, or has already left it.
            if self.timelines.is_coming(timeline) {
                rendition.waiting.extend(samples);
            }
            return;
        }
        let queued = rendition.queue.len();
        rendition.enqueue(&self.timelines, timeline, samples);
        if let Some(first) = rendition.queue.get(queued) {
            if let Some(last) = rendition.queue.back().filter(|_| leads) {
                self.pacer
                    .record_burst_duration(last.decode.saturating_sub(first.decode));
            }
            self.pacer.arrived(now, first.decode, leads);
        }
        for other in &mut self.renditions {
            if !other.waiting.is_empty() && other.timeline == Some(timeline) {
                let waiting = std::mem::take(&mut other.waiting);
                other.enqueue(&self.timelines, timeline, waiting);
            }
        }
    }

    /// Returns the tracks seen so far. A separate audio rendition counts even before its first segment.
    pub(super) fn tracks(&self) -> Tracks {
        let has = |kind| {
            let mut queued = self.renditions.iter().flat_map(|rendition| &rendition.queue);
            queued.any(|frame| frame.sample.content.kind() == kind)
        };
        Tracks {
            video: has(Kind::Video),
            audio: has(Kind::Audio) || self.renditions.len() > 1,
        }
    }

    /// Returns the next frame that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        self.pacer.tick(now);
        let next = self.next()?;
        if self.pacer.due(next.1)? > now {
            return None;
        }
        let frame = self.renditions.get_mut(next.0)?.queue.pop_front()?;
        Some(Due {
            content: frame.sample.content,
            present: frame.present,
            bytes: frame.sample.bytes,
        })
    }

    /// When [`Self::poll`] must be called.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.pacer.due(self.next()?.1)
    }

    /// Returns the rendition with the earliest frame, and the playout time of that frame.
    fn next(&self) -> Option<(usize, Duration)> {
        let fronts = self.renditions.iter().enumerate();
        let fronts = fronts.filter_map(|(index, rendition)| Some((index, rendition.queue.front()?.decode)));
        fronts.min_by_key(|(_, decode)| *decode)
    }

    /// Returns whether all frames were played and no segment follows.
    pub(super) fn is_over(&self) -> bool {
        let is_over = |rendition: &Rendition| rendition.ended && rendition.queue.is_empty();
        self.renditions.iter().all(is_over)
    }
}

impl Rendition {
    /// Begins a timeline. Returns the last frames of the one before.
    fn begin(&mut self, timeline: u64) -> Option<(u64, Vec<Sample>)> {
        if self.timeline == Some(timeline) {
            return None;
        }
        self.waiting.clear();
        let before = self.timeline.replace(timeline)?;
        Some((before, self.demuxer.flush()))
    }

    fn enqueue(&mut self, timelines: &Timelines, timeline: u64, samples: Vec<Sample>) {
        for sample in samples {
            let Some(decode) = timelines.at(timeline, sample.decode) else {
                continue;
            };
            let ahead = sample.present.saturating_sub(sample.decode);
            self.queue.push_back(QueuedFrame {
                decode,
                present: decode + ahead,
                sample,
            });
        }
    }
}

#[cfg(test)]
mod tests;
