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

use self::pacer::PlayoutPacer;
use self::timelines::{OtherRenditionTimeline, Timelines, split_at_timestamp_jumps};
use millstream_core::media::MediaKind;
use millstream_core::media::container::{ContainerError, DemuxedSample, HlsSegmentDemuxer, SampleCodec};
use millstream_worker_runtime::wire::{ChunkRole, DemuxJob, LeftOutTracksAndSegments, OutputTrackKinds, SegmentChunk};

mod pacer;
mod timelines;

/// Plays out segment chunks as frames.
pub(super) struct Playout {
    renditions: Vec<DemuxedRendition>,
    timelines: Timelines,
    pacer: PlayoutPacer,
    /// Consecutive segments of the leading rendition that could not be played.
    consecutive_unplayable_segments: u32,
    /// Segments that could not be played, and why the first one could not.
    unplayable: (u64, Option<String>),
    /// Frames were found before, so what cannot be played may be in between.
    has_found_frames: bool,
    /// Segments with video so far, while no separate audio has come.
    segments_without_separate_audio: u32,
    /// The video is of another variant, which has shown no key frame yet.
    awaits_key_frame: bool,
}

/// A frame that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DueFrame {
    pub codec: SampleCodec,
    /// Presentation time in playout time.
    pub presentation_time: Duration,
    pub bytes: Bytes,
}

/// Why playout cannot continue.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum PlayoutError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("a segment of the HLS source is larger than the limit of {} MiB", MAX_SEGMENT_BYTES >> 20)]
    SegmentTooLarge,
}

/// State of one rendition.
#[derive(Default)]
struct DemuxedRendition {
    demuxer: HlsSegmentDemuxer,
    timeline_id: Option<u64>,
    incomplete_segment_bytes: BytesMut,
    /// Samples of a timeline whose position is not known yet, with its number in this rendition.
    unpositioned_samples: Vec<(u64, DemuxedSample)>,
    frame_queue: VecDeque<QueuedFrame>,
    /// A segment was requested and has not arrived.
    segment_requested: bool,
    ended: bool,
    /// Audio of it was given a playout time.
    has_delivered_audio: bool,
    /// Playout time of its last frame.
    queued_end: Option<Duration>,
}

struct QueuedFrame {
    sample: DemuxedSample,
    /// Decode and presentation time in playout time.
    decode_time: Duration,
    presentation_time: Duration,
}

/// Maximum length of a segment, in bytes.
const MAX_SEGMENT_BYTES: usize = 64 << 20;

/// The next segment is requested when the buffered ones last no longer than this.
const SEGMENT_REQUEST_BUFFER_THRESHOLD: Duration = Duration::from_secs(2);

/// Maximum number of tracks that are named as left out.
const MAX_LISTED_UNSUPPORTED_TRACKS: usize = 8;

/// Segments with video after which their own audio is played if the separate one has not come.
const MAX_SEGMENTS_WITHOUT_SEPARATE_AUDIO: u32 = 3;

/// A longer step between frames, if it is the only one, is a missing segment.
const MAX_STEP_WITHIN_SEGMENT: Duration = Duration::from_secs(1);

/// Number of consecutive segments that may be unplayable.
const UNPLAYABLE_SEGMENTS_UNTIL_ERROR: u32 = 3;

impl Playout {
    /// Creates an empty playout.
    pub(super) fn new(job: DemuxJob) -> Self {
        Self {
            renditions: (0..job.renditions.clamp(1, 2))
                .map(|_| DemuxedRendition::default())
                .collect(),
            timelines: Timelines::default(),
            pacer: PlayoutPacer::new(job.is_live),
            consecutive_unplayable_segments: 0,
            unplayable: (0, None),
            has_found_frames: false,
            segments_without_separate_audio: 0,
            awaits_key_frame: false,
        }
    }

    /// Returns the renditions for which a segment must be requested now.
    pub(super) fn take_due_segment_requests(&mut self, now: Instant) -> Vec<u8> {
        let at = self.pacer.current_playout_time(now);
        let mut due = Vec::new();
        for (index, rendition) in (0u8..).zip(&mut self.renditions) {
            let last = rendition.frame_queue.back().map(|frame| frame.decode_time);
            let is_filled = last.is_some_and(|last| last > at.unwrap_or_default() + SEGMENT_REQUEST_BUFFER_THRESHOLD);
            if !rendition.segment_requested
                && !rendition.ended
                && !is_filled
                && rendition.unpositioned_samples.is_empty()
            {
                rendition.segment_requested = true;
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
    pub(super) fn push_chunk(&mut self, now: Instant, chunk: SegmentChunk) -> Result<(), PlayoutError> {
        let Some(rendition) = self.renditions.get_mut(usize::from(chunk.rendition_index)) else {
            return Ok(());
        };
        match chunk.role {
            ChunkRole::InitSection => {
                let rest = rendition.begin_timeline_and_flush(chunk.timeline_id);
                rendition.demuxer.set_init_section(chunk.bytes);
                self.add_last_samples_of_timeline(now, chunk.rendition_index, rest);
            }
            ChunkRole::SegmentData | ChunkRole::LastSegmentData => {
                if rendition.incomplete_segment_bytes.len() + chunk.bytes.len() > MAX_SEGMENT_BYTES {
                    return Err(PlayoutError::SegmentTooLarge);
                }
                rendition.incomplete_segment_bytes.extend_from_slice(&chunk.bytes);
                if chunk.role == ChunkRole::LastSegmentData {
                    rendition.segment_requested = false;
                    let rest = rendition.begin_timeline_and_flush(chunk.timeline_id);
                    let segment = rendition.incomplete_segment_bytes.split().freeze();
                    self.add_last_samples_of_timeline(now, chunk.rendition_index, rest);
                    self.demux_segment(now, chunk.rendition_index, &segment)?;
                }
            }
            ChunkRole::EndOfStream => {
                rendition.ended = true;
                let rest = rendition.timeline_id.zip(Some(rendition.demuxer.flush()));
                self.add_last_samples_of_timeline(now, chunk.rendition_index, rest);
            }
            ChunkRole::VariantSwitch => {
                let rest = rendition.timeline_id.zip(Some(rendition.demuxer.flush_keeping_clock()));
                self.add_last_samples_of_timeline(now, chunk.rendition_index, rest);
                self.awaits_key_frame = true;
            }
        }
        Ok(())
    }

    /// Demuxes a segment. One that cannot be played is a gap; several in a row are an error.
    fn demux_segment(&mut self, now: Instant, index: u8, segment: &Bytes) -> Result<(), PlayoutError> {
        let Some(rendition) = self.renditions.get_mut(usize::from(index)) else {
            return Ok(());
        };
        match rendition.demuxer.demux_segment(segment) {
            Ok(samples) => {
                if index == 0 {
                    self.consecutive_unplayable_segments = 0;
                }
                self.has_found_frames |= !samples.is_empty();
                let timeline = rendition.timeline_id.unwrap_or_default();
                self.add_samples(now, index, timeline, samples);
                Ok(())
            }
            Err(error) => {
                self.unplayable.0 += 1;
                self.unplayable.1.get_or_insert_with(|| error.to_string());
                // Video goes on without its separate audio.
                if index > 0 {
                    return Ok(());
                }
                self.consecutive_unplayable_segments += 1;
                let is_final = matches!(error, ContainerError::Encrypted | ContainerError::UnsupportedCodec(_));
                if is_final && !self.has_found_frames
                    || self.consecutive_unplayable_segments >= UNPLAYABLE_SEGMENTS_UNTIL_ERROR
                {
                    return Err(error.into());
                }
                Ok(())
            }
        }
    }

    /// Adds the frames that were in progress when a timeline ended.
    fn add_last_samples_of_timeline(&mut self, now: Instant, index: u8, rest: Option<(u64, Vec<DemuxedSample>)>) {
        if let Some((timeline, samples)) = rest.filter(|(_, samples)| !samples.is_empty()) {
            self.add_samples(now, index, timeline, samples);
        }
    }

    fn add_samples(&mut self, now: Instant, index: u8, timeline: u64, mut samples: Vec<DemuxedSample>) {
        self.drop_media_of_other_rendition(index, &mut samples);
        if index == 0 && self.awaits_key_frame {
            self.drop_video_before_key_frame(&mut samples);
        }
        for run in split_at_timestamp_jumps(samples) {
            self.add_continuous_samples(Some(now), index, timeline, run);
        }
    }

    /// Drops the frames that refer to a key frame which was not played: up to the first one, or all of a segment. Where a whole
    /// segment has none, the next one is likely to have none that is known as such.
    fn drop_video_before_key_frame(&mut self, samples: &mut Vec<DemuxedSample>) {
        let is_video = |sample: &DemuxedSample| sample.codec.kind() == MediaKind::Video;
        if !samples.iter().any(is_video) {
            return;
        }
        self.awaits_key_frame = false;
        let mut has_begun = false;
        samples.retain(|sample| {
            has_begun |= is_video(sample) && sample.is_key_frame();
            has_begun || !is_video(sample)
        });
    }

    /// Samples that waited for the leading rendition have no time of arrival.
    fn add_continuous_samples(
        &mut self,
        arrived_at: Option<Instant>,
        index: u8,
        timeline: u64,
        samples: Vec<DemuxedSample>,
    ) {
        let leads = index == 0;
        if leads {
            self.timelines.position_timeline_and_advance_end(timeline, &samples);
            self.enqueue(arrived_at, index, timeline, samples);
            self.retry_unpositioned_samples();
            return;
        }
        let Some(rendition) = self.renditions.get_mut(usize::from(index)) else {
            return;
        };
        let Some(first) = samples.iter().map(|sample| sample.decode_time).min() else {
            return;
        };
        let queued_end = rendition.queued_end;
        match self
            .timelines
            .find_timeline_of_other_rendition(timeline, first, queued_end)
        {
            OtherRenditionTimeline::Positioned(position) => self.enqueue(arrived_at, index, position, samples),
            OtherRenditionTimeline::Awaited => {
                let samples = samples.into_iter().map(|sample| (timeline, sample));
                rendition.unpositioned_samples.extend(samples);
            }
            OtherRenditionTimeline::Passed => {}
        }
    }

    fn enqueue(&mut self, arrived_at: Option<Instant>, index: u8, timeline: u64, samples: Vec<DemuxedSample>) {
        let Some(rendition) = self.renditions.get_mut(usize::from(index)) else {
            return;
        };
        let leads = index == 0;
        let queued = rendition.frame_queue.len();
        rendition.enqueue(&self.timelines, timeline, samples);
        let arrived: Vec<Duration> = rendition
            .frame_queue
            .iter()
            .skip(queued)
            .map(|frame| frame.decode_time)
            .collect();
        if let Some(first) = first_time_of_segment(&arrived) {
            if let Some(last) = rendition.frame_queue.back().filter(|_| leads) {
                self.pacer.record_burst_duration(last.decode_time.saturating_sub(first));
            }
            if let Some(arrived_at) = arrived_at {
                self.pacer.on_segment_arrival(arrived_at, first, leads);
            }
        }
    }

    /// The leading rendition has gone on: others may wait for what it has reached.
    fn retry_unpositioned_samples(&mut self) {
        for index in 1..self.renditions.len() {
            let Some(rendition) = self.renditions.get_mut(index) else {
                return;
            };
            let mut waiting = std::mem::take(&mut rendition.unpositioned_samples)
                .into_iter()
                .peekable();
            while let Some((timeline, first)) = waiting.next() {
                let mut samples = vec![first];
                while let Some((_, sample)) = waiting.next_if(|(next, _)| *next == timeline) {
                    samples.push(sample);
                }
                let index = u8::try_from(index).unwrap_or(u8::MAX);
                self.add_continuous_samples(None, index, timeline, samples);
            }
        }
    }

    /// Separate audio replaces that of the video rendition, unless it does not come; video is that of the video rendition
    /// (RFC 8216 §4.3.4.1).
    fn drop_media_of_other_rendition(&mut self, index: u8, samples: &mut Vec<DemuxedSample>) {
        let is = |kind| move |sample: &DemuxedSample| sample.codec.kind() == kind;
        let Some(separate) = self.renditions.get_mut(1) else {
            return;
        };
        if index > 0 {
            samples.retain(is(MediaKind::Audio));
        } else if samples.iter().any(is(MediaKind::Video)) {
            let count = &mut self.segments_without_separate_audio;
            *count = count.saturating_add(1);
            if separate.has_delivered_audio || *count <= MAX_SEGMENTS_WITHOUT_SEPARATE_AUDIO {
                samples.retain(is(MediaKind::Video));
            }
        }
    }

    /// Returns the tracks seen so far. A separate audio rendition counts even before its first segment.
    pub(super) fn track_kinds(&self) -> OutputTrackKinds {
        let has = |kind| {
            let mut queued = self.renditions.iter().flat_map(|rendition| &rendition.frame_queue);
            queued.any(|frame| frame.sample.codec.kind() == kind)
        };
        OutputTrackKinds {
            video: has(MediaKind::Video),
            audio: has(MediaKind::Audio) || self.renditions.len() > 1,
        }
    }

    /// Returns what of the input is not played.
    pub(super) fn left_out_tracks_and_segments(&self) -> LeftOutTracksAndSegments {
        let mut tracks: Vec<String> = Vec::new();
        for track in self
            .renditions
            .iter()
            .flat_map(|rendition| rendition.demuxer.unsupported_tracks())
        {
            if tracks.len() < MAX_LISTED_UNSUPPORTED_TRACKS && !tracks.contains(&track) {
                tracks.push(track);
            }
        }
        LeftOutTracksAndSegments {
            tracks,
            segments: self.unplayable.0,
            reason: self.unplayable.1.clone(),
        }
    }

    /// Returns the next frame that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<DueFrame> {
        self.pacer.reduce_latency(now);
        let next = self.earliest_frame_rendition_and_time()?;
        if self.pacer.playout_due_at(next.1)? > now {
            return None;
        }
        let frame = self.renditions.get_mut(next.0)?.frame_queue.pop_front()?;
        Some(DueFrame {
            codec: frame.sample.codec,
            presentation_time: frame.presentation_time,
            bytes: frame.sample.bytes,
        })
    }

    /// When [`Self::poll`] must be called.
    pub(super) fn next_frame_due_at(&self) -> Option<Instant> {
        self.pacer.playout_due_at(self.earliest_frame_rendition_and_time()?.1)
    }

    /// Returns the rendition with the earliest frame, and the playout time of that frame.
    fn earliest_frame_rendition_and_time(&self) -> Option<(usize, Duration)> {
        let fronts = self.renditions.iter().enumerate();
        let fronts = fronts.filter_map(|(index, rendition)| Some((index, rendition.frame_queue.front()?.decode_time)));
        fronts.min_by_key(|(_, decode)| *decode)
    }

    /// Returns whether all frames were played and no segment follows.
    pub(super) fn has_playout_finished(&self) -> bool {
        let is_over = |rendition: &DemuxedRendition| rendition.ended && rendition.frame_queue.is_empty();
        self.renditions.iter().all(is_over)
    }
}

/// Returns when a segment begins, of the times of the frames that came with it. Where segments before it are missing, the
/// last frames before those come with it too, because their end was not known: they have not come late.
fn first_time_of_segment(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let first = times.first().copied();
    let steps = || {
        times
            .windows(2)
            .filter_map(|pair| Some((*pair.first()?, *pair.last()?)))
    };
    let longest = steps().map(|(from, to)| (to - from, to)).max();
    let Some((gap, behind)) = longest.filter(|(gap, _)| *gap > MAX_STEP_WITHIN_SEGMENT) else {
        return first;
    };
    let mut others = steps()
        .filter(|(_, to)| *to != behind)
        .map(|(from, to)| to - from)
        .peekable();
    // A source with few frames has long steps everywhere, or no other one.
    if others.peek().is_some() && others.all(|step| step < gap / 3) {
        Some(behind)
    } else {
        first
    }
}

impl DemuxedRendition {
    /// Begins a timeline. Returns the last frames of the one before.
    fn begin_timeline_and_flush(&mut self, timeline: u64) -> Option<(u64, Vec<DemuxedSample>)> {
        if self.timeline_id == Some(timeline) {
            return None;
        }
        self.unpositioned_samples.clear();
        let before = self.timeline_id.replace(timeline)?;
        Some((before, self.demuxer.flush()))
    }

    fn enqueue(&mut self, timelines: &Timelines, timeline: u64, samples: Vec<DemuxedSample>) {
        for sample in samples {
            let Some(decode) = timelines.to_playout_time(timeline, sample.decode_time) else {
                continue;
            };
            let ahead = sample.presentation_time.saturating_sub(sample.decode_time);
            self.has_delivered_audio |= sample.codec.kind() == MediaKind::Audio;
            self.queued_end = self.queued_end.max(Some(decode));
            self.frame_queue.push_back(QueuedFrame {
                decode_time: decode,
                presentation_time: decode + ahead,
                sample,
            });
        }
    }
}

#[cfg(test)]
mod tests;
