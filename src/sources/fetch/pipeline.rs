//! A stream from a pipeline in a worker process.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::debug;

use super::address::Allowed;
use super::{Attached, FetchError, random_id};
use crate::hub::name::StreamName;
use crate::media::aac::AacConfig;
use crate::media::clock::ticks;
use crate::media::{Codec, Format, Kind};
use crate::pipeline::description::Limits;
use crate::pipeline::process::{Process, ProcessError};
use crate::pipeline::value::TargetHost;
use crate::pipeline::wire::{Failure, FromWorker, Job, Media, Tracks, WireFrame};
use crate::sources::frame_source::{Announced, FanOut, FrameSource, Framing};

/// A pipeline with the values that a stream gives it.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// As in the library.
    pub name: String,
    /// The program that becomes a worker.
    pub program: PathBuf,
    pub job: Job,
    pub limits: Limits,
    /// Hosts that it will connect to.
    pub hosts: Vec<TargetHost>,
    pub allowed: Allowed,
}

/// What a feed announces for frames of a worker; `None` for AAC that cannot be read.
pub fn announced(media: &Media) -> Option<Announced> {
    Some(match media {
        Media::H264 => Codec::H264.into(),
        Media::H265 => Codec::H265.into(),
        // They are given to workers, and none gives them back: there is no packetizer for them.
        Media::Vp8 | Media::Vp9 | Media::Av1 => return None,
        Media::Jpeg => Codec::Jpeg.into(),
        Media::Opus => Codec::Opus.into(),
        Media::Pcmu => Format::Pcmu.into(),
        Media::Pcma => Format::Pcma.into(),
        Media::Aac(config) => Format::Aac(AacConfig::parse(config)?).into(),
    })
}

/// A track that is announced in vain keeps the others waiting so long after the first frame.
const TRACK_WAIT: Duration = Duration::from_millis(1_000);

/// Frames that are kept meanwhile, and their bytes.
const MAX_HELD: usize = 1_024;
const MAX_HELD_BYTES: usize = 16 << 20;

/// Between notes of how the times of a source lie to the clock.
const NOTE: Duration = Duration::from_secs(1);

/// Runs the worker until it fails; `live` is called when its stream gets frames.
pub async fn play<P: FanOut>(
    order: &PipelineSpec,
    stream: &StreamName,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    for host in &order.hosts {
        if let Err(error) = order.allowed.check(host).await {
            return error.into();
        }
    }
    let mut running = match Process::start(&order.program, order.job.clone(), order.limits) {
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
        if let Err(error) = relay.take(message, process, live) {
            return error;
        }
    }
}

/// From the messages of a worker to the feed of a stream.
pub struct Relay<'a, P: FanOut> {
    stream: &'a StreamName,
    plane: &'a P,
    tracks: Gathering,
    attached: Option<Attached<'a, P>>,
    playing: bool,
    origin: Origin,
    takes_key_frame_requests: bool,
}

impl<'a, P: FanOut> Relay<'a, P> {
    /// Begins with nothing known of the tracks. A worker that takes requests for key frames is sent them until it refuses
    /// one.
    pub fn new(stream: &'a StreamName, plane: &'a P, takes_key_frame_requests: bool) -> Self {
        Self {
            stream,
            plane,
            tracks: Gathering::default(),
            attached: None,
            playing: false,
            origin: Origin::default(),
            takes_key_frame_requests,
        }
    }

    /// Takes what a worker says; `live` is called when the stream gets frames.
    ///
    /// # Errors
    ///
    /// A [`FetchError`]: the stream has another source, or the frames are none that can be sent.
    pub fn take(
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
                // Another set of tracks is another source on the same line.
                self.attached = None;
            }
            FromWorker::Frame(frame) => self.tracks.hold(now, frame),
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
                    let failure = Failure::Stream("its frames are none that can be sent".to_owned());
                    return Err(ProcessError::Failed(failure).into());
                };
                feed.set_takes_key_frame_requests(self.takes_key_frame_requests);
                let plane = self.plane;
                self.attached.insert(Attached { feed, plane })
            }
        };
        for (arrived, frame) in self.tracks.held.drain(..) {
            take(&mut attached.feed, arrived, &frame, &self.tracks.media);
            if let Some(captured) = self.origin.record(arrived, &frame) {
                let time = rtp_time(&frame, &self.tracks.media);
                attached.feed.record_alignment(frame.kind, time, captured);
            }
        }
        self.tracks.held_bytes = 0;
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

fn take(feed: &mut FrameSource, now: Instant, frame: &WireFrame, media: &[Media]) {
    let time = rtp_time(frame, media);
    let taken = match frame.kind {
        Kind::Video => feed.take_video(now, time, &frame.bytes, Framing::StartCodes),
        Kind::Audio => feed.take_audio(now, time, &frame.bytes),
    };
    if let Err(error) = taken {
        debug!(%error, "frame of a worker dropped");
    }
}

/// In units of the clock rate of its codec.
fn rtp_time(frame: &WireFrame, media: &[Media]) -> u64 {
    let media = media.iter().find(|media| media.kind() == frame.kind);
    let rate = media
        .and_then(announced)
        .map_or(90_000, |announced| announced.codec.clock_rate());
    ticks(Duration::from_nanos(frame.time), rate)
}

/// What is known of the tracks before the feed begins.
#[derive(Default)]
struct Gathering {
    expected: Option<Tracks>,
    media: Vec<Media>,
    held: Vec<(Instant, WireFrame)>,
    held_bytes: usize,
    first: Option<Instant>,
}

impl Gathering {
    fn hold(&mut self, now: Instant, frame: WireFrame) {
        self.first.get_or_insert(now);
        if self.held.len() < MAX_HELD && self.held_bytes < MAX_HELD_BYTES {
            self.held_bytes += frame.bytes.len();
            self.held.push((now, frame));
        }
    }

    fn are_complete(&self, now: Instant) -> bool {
        let has = |kind| self.media.iter().any(|media| media.kind() == kind);
        let expected = self
            .expected
            .is_some_and(|expected| (has(Kind::Video) || !expected.video) && (has(Kind::Audio) || !expected.audio));
        let waited = self.first.is_some_and(|first| now.duration_since(first) >= TRACK_WAIT);
        !self.held.is_empty() && (expected || (waited && !self.media.is_empty()))
    }
}

/// When the beginning of a worker's times was, by its least delayed frames: tracks that take longer through their
/// encoders are not late for that.
#[derive(Default)]
struct Origin {
    at: Option<Instant>,
    noted: [Option<Instant>; 2],
}

/// One in so many parts of a later frame is believed.
const LEAK: u32 = 1_024;

impl Origin {
    /// When a frame was captured, now and then.
    fn record(&mut self, now: Instant, frame: &WireFrame) -> Option<Instant> {
        let begin = now.checked_sub(Duration::from_nanos(frame.time))?;
        let at = match self.at {
            Some(at) if begin > at => at + (begin - at) / LEAK,
            _ => begin,
        };
        self.at = Some(at);
        let noted = self.noted.get_mut(usize::from(frame.kind == Kind::Audio))?;
        if noted.is_some_and(|noted| now.duration_since(noted) < NOTE) {
            return None;
        }
        *noted = Some(now);
        Some(at + Duration::from_nanos(frame.time))
    }
}

/// Ends its worker in good order when it is dropped.
pub struct Running(pub Option<Process>);

impl Drop for Running {
    fn drop(&mut self) {
        if let (Some(process), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(process.stop());
        }
    }
}
