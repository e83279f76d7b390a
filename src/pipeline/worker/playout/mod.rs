//! Segments of HLS become frames at their time. No clock and no IO: time is an argument.
//!
//! ```text
//! pieces -> Rendition (whole segments -> Demuxer) -> Timelines (one line of times) -> Pacer (when each is due) -> frames
//! ```
//!
//! A segment comes at once and lasts for seconds: its frames are held back to their time ([`pacer`]). Discontinuities,
//! and times that jump without one, are joined to one line ([`timelines`]).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use self::pacer::Pacer;
use self::timelines::Timelines;
use crate::media::Kind;
use crate::media::container::{ContainerError, Content, Demuxer, Sample};
use crate::pipeline::wire::{ChunkRole, DemuxJob, SegmentChunk, Tracks};

mod pacer;
mod timelines;

/// Takes pieces, gives frames.
pub struct Playout {
    renditions: Vec<Rendition>,
    timelines: Timelines,
    pacer: Pacer,
    /// How the last segment that could not be played was wrong.
    last_error: Option<ContainerError>,
    failures: u32,
}

/// A frame whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub content: Content,
    /// On the one line of the worker.
    pub present: Duration,
    pub bytes: Bytes,
}

/// Why nothing can be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlayoutError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("a segment has more than {} MiB", MAX_SEGMENT >> 20)]
    TooLong,
}

/// One series of segments.
#[derive(Default)]
struct Rendition {
    demuxer: Demuxer,
    timeline: Option<u64>,
    assembling: BytesMut,
    /// Read, but of a timeline that has no place yet.
    waiting: Vec<Sample>,
    queue: VecDeque<HeldFrame>,
    /// A segment was asked for and has not come.
    asked: bool,
    ended: bool,
}

struct HeldFrame {
    sample: Sample,
    /// When it is due at a decoder, and shown, on the line.
    decode: Duration,
    present: Duration,
}

/// Longest segment, in bytes.
const MAX_SEGMENT: usize = 64 << 20;

/// The next segment is asked for when what is there lasts no longer than this.
const AHEAD: Duration = Duration::from_secs(2);

/// Segments in a row that may be unplayable.
const MAX_FAILURES: u32 = 3;

impl Playout {
    /// Begins with nothing.
    pub fn new(job: DemuxJob) -> Self {
        Self {
            renditions: (0..job.renditions.clamp(1, 2)).map(|_| Rendition::default()).collect(),
            timelines: Timelines::default(),
            pacer: Pacer::new(job.is_live),
            last_error: None,
            failures: 0,
        }
    }

    /// Renditions that a segment is due for.
    pub fn wants(&mut self, now: Instant) -> Vec<u8> {
        let at = self.pacer.position(now);
        let mut wanted = Vec::new();
        for (index, rendition) in (0u8..).zip(&mut self.renditions) {
            let last = rendition.queue.back().map(|held| held.decode);
            let lasts = last.is_some_and(|last| last > at.unwrap_or_default() + AHEAD);
            if !rendition.asked && !rendition.ended && !lasts && rendition.waiting.is_empty() {
                rendition.asked = true;
                wanted.push(index);
            }
        }
        wanted
    }

    /// Takes a piece.
    ///
    /// # Errors
    ///
    /// A [`PlayoutError`] when one segment after the other cannot be played.
    pub fn take(&mut self, now: Instant, piece: SegmentChunk) -> Result<(), PlayoutError> {
        let Some(rendition) = self.renditions.get_mut(usize::from(piece.rendition)) else {
            return Ok(());
        };
        match piece.role {
            ChunkRole::Init => {
                rendition.begin(piece.timeline);
                rendition.demuxer.set_init(piece.bytes);
            }
            ChunkRole::Part | ChunkRole::Last => {
                if rendition.assembling.len() + piece.bytes.len() > MAX_SEGMENT {
                    return Err(PlayoutError::TooLong);
                }
                rendition.assembling.extend_from_slice(&piece.bytes);
                if piece.role == ChunkRole::Last {
                    rendition.asked = false;
                    rendition.begin(piece.timeline);
                    let segment = rendition.assembling.split().freeze();
                    let samples = rendition.demuxer.segment(&segment);
                    self.judge(samples, now, piece.rendition)?;
                }
            }
            ChunkRole::End => rendition.ended = true,
        }
        Ok(())
    }

    /// A segment with nothing in it may be a gap; if all are so, nothing will ever come.
    fn judge(
        &mut self,
        samples: Result<Vec<Sample>, ContainerError>,
        now: Instant,
        rendition: u8,
    ) -> Result<(), PlayoutError> {
        match samples {
            Ok(samples) => {
                self.failures = 0;
                self.place(now, rendition, samples);
                Ok(())
            }
            Err(error) => {
                self.failures += 1;
                let for_good = matches!(error, ContainerError::Encrypted | ContainerError::Unsupported(_));
                if for_good || self.failures >= MAX_FAILURES {
                    return Err(error.into());
                }
                self.last_error = Some(error);
                Ok(())
            }
        }
    }

    fn place(&mut self, now: Instant, index: u8, samples: Vec<Sample>) {
        let leads = index == 0;
        let Some(rendition) = self.renditions.get_mut(usize::from(index)) else {
            return;
        };
        let timeline = rendition.timeline.unwrap_or_default();
        if leads {
            self.timelines.lead(timeline, &samples);
        } else if !self.timelines.knows(timeline) {
            // What leads is about to say where it begins, or has left it behind.
            if self.timelines.is_coming(timeline) {
                rendition.waiting.extend(samples);
            }
            return;
        }
        let known = rendition.queue.len();
        rendition.hold(&self.timelines, samples);
        if let Some(first) = rendition.queue.get(known) {
            self.pacer.arrived(now, first.decode, leads);
        }
        for other in &mut self.renditions {
            if !other.waiting.is_empty() && other.timeline == Some(timeline) {
                let waiting = std::mem::take(&mut other.waiting);
                other.hold(&self.timelines, waiting);
            }
        }
    }

    /// Tracks that there are, by what has come; sound that comes apart is still to come.
    pub fn tracks(&self) -> Tracks {
        let has = |kind| {
            let mut held = self.renditions.iter().flat_map(|rendition| &rendition.queue);
            held.any(|held| held.sample.content.kind() == kind)
        };
        Tracks {
            video: has(Kind::Video),
            audio: has(Kind::Audio) || self.renditions.len() > 1,
        }
    }

    /// The next frame whose time has come.
    pub fn poll(&mut self, now: Instant) -> Option<Due> {
        self.pacer.tick(now);
        let next = self.next()?;
        if self.pacer.due(next.1)? > now {
            return None;
        }
        let held = self.renditions.get_mut(next.0)?.queue.pop_front()?;
        Some(Due {
            content: held.sample.content,
            present: held.present,
            bytes: held.sample.bytes,
        })
    }

    /// When to poll again.
    pub fn next_due(&self) -> Option<Instant> {
        self.pacer.due(self.next()?.1)
    }

    /// The rendition that comes next, and when on the line.
    fn next(&self) -> Option<(usize, Duration)> {
        let fronts = self.renditions.iter().enumerate();
        let fronts = fronts.filter_map(|(index, rendition)| Some((index, rendition.queue.front()?.decode)));
        fronts.min_by_key(|(_, decode)| *decode)
    }

    /// Whether all has been played that there is.
    pub fn is_over(&self) -> bool {
        let is_over = |rendition: &Rendition| rendition.ended && rendition.queue.is_empty();
        self.renditions.iter().all(is_over)
    }
}

impl Rendition {
    fn begin(&mut self, timeline: u64) {
        if self.timeline != Some(timeline) {
            self.timeline = Some(timeline);
            let mut demuxer = Demuxer::default();
            std::mem::swap(&mut demuxer, &mut self.demuxer);
            // Its initialization section may hold on both sides.
            self.demuxer.set_init(demuxer.take_init());
            self.waiting.clear();
        }
    }

    fn hold(&mut self, timelines: &Timelines, samples: Vec<Sample>) {
        let Some(timeline) = self.timeline else { return };
        for sample in samples {
            let Some(decode) = timelines.at(timeline, sample.decode) else {
                continue;
            };
            let ahead = sample.present.saturating_sub(sample.decode);
            self.queue.push_back(HeldFrame {
                decode,
                present: decode + ahead,
                sample,
            });
        }
    }
}

#[cfg(test)]
mod tests;
