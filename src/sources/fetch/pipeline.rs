//! A source that is a pipeline in a worker process.

use std::time::{Duration, Instant};

use tracing::debug;

use super::address::Allowed;
use super::attached::{Attached, random_id};
use super::error::FetchError;
use crate::pipeline::description::Limits;
use crate::pipeline::process::{Process, ProcessError};
use crate::pipeline::programs::WorkerPrograms;
use crate::pipeline::value::TargetHost;
use millstream_core::hub::name::StreamName;
use millstream_core::media::aac::AacConfig;
use millstream_core::media::clock::ticks;
use millstream_core::media::{Codec, Format, Kind};
use millstream_core::sources::frame_source::{Announced, FanOut, FrameSource, Framing};
use millstream_worker_runtime::wire::{Failure, FromWorker, Job, Media, Tracks, WireFrame};

/// A pipeline with the parameters of a stream.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// Name in the library.
    pub name: String,
    /// The executable of the worker.
    pub programs: WorkerPrograms,
    pub job: Job,
    pub limits: Limits,
    /// Hosts that it connects to.
    pub hosts: Vec<TargetHost>,
    pub allowed: Allowed,
}

/// Returns the track for the frames of a worker; `None` for codecs that cannot be packetized and for invalid AAC
/// configurations.
pub fn announced(media: &Media) -> Option<Announced> {
    Some(match media {
        Media::H264 => Codec::H264.into(),
        Media::H265 => Codec::H265.into(),
        // Workers only receive these codecs. There is no packetizer for them.
        Media::Vp8 | Media::Vp9 | Media::Av1 => return None,
        Media::Jpeg => Codec::Jpeg.into(),
        Media::Opus => Codec::Opus.into(),
        Media::Pcmu => Format::Pcmu.into(),
        Media::Pcma => Format::Pcma.into(),
        Media::Aac(config) => Format::Aac(AacConfig::parse(config)?).into(),
    })
}

/// Maximum time after the first frame for which publishing waits for an expected track.
const TRACK_WAIT: Duration = Duration::from_millis(1_000);

/// Maximum number and bytes of the frames buffered meanwhile.
const MAX_BUFFERED: usize = 1_024;
const MAX_BUFFERED_BYTES: usize = 16 << 20;

/// Interval at which timestamps are aligned with the clock.
const ALIGNMENT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the worker until it fails. `live` is called once the stream receives frames.
pub async fn play<P: FanOut>(
    spec: &PipelineSpec,
    stream: &StreamName,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    for host in &spec.hosts {
        if let Err(error) = spec.allowed.check(host).await {
            return error.into();
        }
    }
    let mut running = match Process::start(&spec.programs, spec.job.clone(), spec.limits) {
        Ok(process) => Running(Some(process)),
        Err(error) => return error.into(),
    };
    let Some(process) = &mut running.0 else {
        return FetchError::Displaced;
    };
    let mut relay = Relay::new(stream, plane, true);
    loop {
        let message = match process.next().await {
            Ok(message) => message,
            Err(error) => return error.into(),
        };
        if let Err(error) = relay.handle(message, process, live) {
            return error;
        }
    }
}

/// Passes the frames of a worker to the frame source of a stream.
pub struct Relay<'a, P: FanOut> {
    stream: &'a StreamName,
    plane: &'a P,
    tracks: PendingTracks,
    attached: Option<Attached<'a, P>>,
    playing: bool,
    origin: ClockOrigin,
    takes_key_frame_requests: bool,
}

impl<'a, P: FanOut> Relay<'a, P> {
    /// Makes a relay that waits for the tracks of the worker. If `takes_key_frame_requests` is set, key frame requests
    /// are sent to the worker until it refuses one.
    pub fn new(stream: &'a StreamName, plane: &'a P, takes_key_frame_requests: bool) -> Self {
        Self {
            stream,
            plane,
            tracks: PendingTracks::default(),
            attached: None,
            playing: false,
            origin: ClockOrigin::default(),
            takes_key_frame_requests,
        }
    }

    /// Handles a message of the worker. `live` is called once the stream receives frames.
    ///
    /// # Errors
    ///
    /// A [`FetchError`] if the stream has another source, or if the frames cannot be sent.
    pub fn handle(
        &mut self,
        message: FromWorker,
        process: &Process,
        live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
    ) -> Result<(), FetchError> {
        let now = tokio::time::Instant::now().into_std();
        match message {
            FromWorker::Ready(expected) => self.tracks.expected = Some(expected),
            FromWorker::Media(media) => {
                self.tracks.media.retain(|known| known.kind() != media.kind());
                self.tracks.media.push(media);
                // A new set of tracks is a new source of the stream.
                self.attached = None;
            }
            FromWorker::Frame(frame) => self.tracks.buffer(now, frame),
            FromWorker::KeyFrameRefused => {
                self.takes_key_frame_requests = false;
                if let Some(attached) = &mut self.attached {
                    attached.feed.set_takes_key_frame_requests(false);
                }
            }
            FromWorker::Want(_)
            | FromWorker::Alive
            | FromWorker::Failed(_)
            | FromWorker::Ended
            | FromWorker::Checked(_) => {}
        }
        if !self.tracks.are_complete(now) {
            return Ok(());
        }
        let attached = match &mut self.attached {
            Some(attached) => attached,
            None => {
                let announced: Vec<Announced> = self.tracks.media.iter().filter_map(announced).collect();
                let Ok(mut feed) = FrameSource::new(self.stream.clone(), random_id(), &announced) else {
                    let failure = Failure::Stream("its frames cannot be sent: codec not supported".to_owned());
                    return Err(ProcessError::Failed(failure).into());
                };
                feed.set_takes_key_frame_requests(self.takes_key_frame_requests);
                let plane = self.plane;
                self.attached.insert(Attached { feed, plane })
            }
        };
        for (arrived, frame) in self.tracks.buffered.drain(..) {
            feed_frame(&mut attached.feed, arrived, &frame, &self.tracks.media);
            if let Some(captured) = self.origin.record(arrived, &frame) {
                let time = rtp_time(&frame, &self.tracks.media);
                attached.feed.record_alignment(frame.kind, time, captured);
            }
        }
        self.tracks.buffered_bytes = 0;
        if !self.plane.feed(&mut attached.feed) {
            return Err(FetchError::Displaced);
        }
        if attached.feed.take_key_frame_request() {
            process.request_key_frame_of_source();
        }
        if !self.playing && attached.feed.is_attached() {
            self.playing = true;
            live(&self.tracks.media.iter().map(label).collect::<Vec<_>>());
        }
        Ok(())
    }
}

fn label(media: &Media) -> &'static str {
    announced(media).map_or("AAC", |announced| announced.codec.name())
}

fn feed_frame(feed: &mut FrameSource, now: Instant, frame: &WireFrame, media: &[Media]) {
    let time = rtp_time(frame, media);
    let taken = match frame.kind {
        Kind::Video => feed.take_video(now, time, &frame.bytes, Framing::StartCodes),
        Kind::Audio => feed.take_audio(now, time, &frame.bytes),
    };
    if let Err(error) = taken {
        debug!(%error, "worker frame dropped");
    }
}

/// Returns the timestamp of a frame in units of its codec's clock rate.
fn rtp_time(frame: &WireFrame, media: &[Media]) -> u64 {
    let media = media.iter().find(|media| media.kind() == frame.kind);
    let rate = media
        .and_then(announced)
        .map_or(90_000, |announced| announced.codec.clock_rate());
    ticks(Duration::from_nanos(frame.time), rate)
}

/// The tracks and frames received before publishing starts.
#[derive(Default)]
struct PendingTracks {
    expected: Option<Tracks>,
    media: Vec<Media>,
    buffered: Vec<(Instant, WireFrame)>,
    buffered_bytes: usize,
    first: Option<Instant>,
}

impl PendingTracks {
    fn buffer(&mut self, now: Instant, frame: WireFrame) {
        self.first.get_or_insert(now);
        if self.buffered.len() < MAX_BUFFERED && self.buffered_bytes < MAX_BUFFERED_BYTES {
            self.buffered_bytes += frame.bytes.len();
            self.buffered.push((now, frame));
        }
    }

    fn are_complete(&self, now: Instant) -> bool {
        let has = |kind| self.media.iter().any(|media| media.kind() == kind);
        let expected = self
            .expected
            .is_some_and(|expected| (has(Kind::Video) || !expected.video) && (has(Kind::Audio) || !expected.audio));
        let waited = self.first.is_some_and(|first| now.duration_since(first) >= TRACK_WAIT);
        !self.buffered.is_empty() && (expected || (waited && !self.media.is_empty()))
    }
}

/// Estimates the wall-clock instant of a worker's timestamp 0 from its least delayed frames, so that different encoder
/// delays of the tracks do not shift them against each other.
#[derive(Default)]
struct ClockOrigin {
    at: Option<Instant>,
    last_alignment: [Option<Instant>; 2],
}

/// A later frame moves the estimate by this fraction of its delay, to follow clock drift.
const LEAK: u32 = 1_024;

impl ClockOrigin {
    /// Updates the estimate. Returns the estimated capture time of the frame once per [`ALIGNMENT_INTERVAL`] and kind.
    fn record(&mut self, now: Instant, frame: &WireFrame) -> Option<Instant> {
        let begin = now.checked_sub(Duration::from_nanos(frame.time))?;
        let at = match self.at {
            Some(at) if begin > at => at + (begin - at) / LEAK,
            _ => begin,
        };
        self.at = Some(at);
        let last = self.last_alignment.get_mut(usize::from(frame.kind == Kind::Audio))?;
        if last.is_some_and(|last| now.duration_since(last) < ALIGNMENT_INTERVAL) {
            return None;
        }
        *last = Some(now);
        Some(at + Duration::from_nanos(frame.time))
    }
}

/// Stops its worker gracefully when dropped.
pub struct Running(pub Option<Process>);

impl Drop for Running {
    fn drop(&mut self) {
        if let (Some(process), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(process.stop());
        }
    }
}
