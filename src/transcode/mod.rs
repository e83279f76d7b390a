//! Transcodes tracks that browsers cannot play, on demand. One worker process per stream and target serves all viewers
//! that need it, and ends after the last one.
//!
//! ```text
//! stream `door` (ring) -> Reader -> Depacketizer -> worker process -> FrameSource -> stream `door#opus` -> viewers
//! ```
//!
//! A viewer that needs a transcode opens the transcoded stream ([`millstream_core::outputs::whep`]), and the hub notifies this
//! module. A transcoded track keeps the timestamps of the original one, so audio and video stay synchronized, whichever
//! of them is transcoded.
//!
//! Not sans-I/O: uses tokio's clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::RngCore as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::pipeline::description::Limits;
use crate::pipeline::library::Library;
use crate::pipeline::process::{self, Process, ProcessError};
use crate::pipeline::programs::WorkerPrograms;
use crate::sources::fetch::attached::{Attached, random_id};
use crate::sources::fetch::backoff::Backoff;
use crate::sources::fetch::pipeline::{Running, announced};
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::reader::Reader;
use millstream_core::hub::stream::{Stream, StreamState};
use millstream_core::hub::tap::{Tap, TapQueue};
use millstream_core::media::clock::{duration, ticks};
use millstream_core::media::depacketizer::{Depacketizer, Frame};
use millstream_core::media::packet::TrackTime;
use millstream_core::media::transcode::TranscodeTarget;
use millstream_core::media::{Codec, Format, Kind};
use millstream_core::sources::frame_source::{FanOut, FrameSource, Framing};
use millstream_worker_runtime::wire::{FromWorker, Input, Job, Media, WireFrame};

/// How long a worker keeps running after its last viewer left, e.g. for a page reload.
const LINGER: Duration = Duration::from_secs(5);

/// Interval of the check for viewers.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A worker that ran for this long resets the restart backoff.
const STEADY: Duration = Duration::from_secs(2);

/// Interval at which the capture time of the original stream is copied to the transcoded one.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Without input for this long, no output is expected.
const IDLE: Duration = Duration::from_millis(500);

/// Minimum interval between key frame requests for the start.
const KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// Supported conversions, with the pipeline for each.
const CONVERSIONS: [(Codec, TranscodeTarget, &str); 15] = [
    (Codec::H264, TranscodeTarget::H264, "h264-to-baseline"),
    (Codec::H265, TranscodeTarget::H264, "h265-to-h264"),
    (Codec::Jpeg, TranscodeTarget::H264, "mjpeg-to-h264"),
    (Codec::Aac, TranscodeTarget::Opus, "aac-to-opus"),
    (Codec::Opus, TranscodeTarget::Opus, "audio-to-opus"),
    (Codec::Pcmu, TranscodeTarget::Opus, "audio-to-opus"),
    (Codec::Pcma, TranscodeTarget::Opus, "audio-to-opus"),
    (Codec::Opus, TranscodeTarget::Aac, "opus-to-aac"),
    (Codec::Pcmu, TranscodeTarget::Aac, "audio-to-aac"),
    (Codec::Pcma, TranscodeTarget::Aac, "audio-to-aac"),
    (Codec::H264, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::H265, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::Vp8, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::Vp9, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::Av1, TranscodeTarget::Jpeg, "to-jpeg"),
];

/// Detects the supported conversions and starts the task that transcodes. Returns `None` if none is supported.
pub async fn start<P: FanOut + Clone + 'static>(
    library: Library,
    programs: WorkerPrograms,
    plane: P,
) -> Option<JoinHandle<()>> {
    let supported = supported_conversions(&library, &programs).await;
    if supported.is_empty() {
        return None;
    }
    let (requested, mut keys) = mpsc::unbounded_channel();
    plane.hub().set_transcoder(supported, move |key| {
        // The number of streams is bounded. On shutdown the receiver may be gone.
        let _ = requested.send(key.clone());
    });
    let library = Arc::new(library);
    Some(tokio::spawn(async move {
        let mut jobs = JoinSet::new();
        while let Some(key) = keys.recv().await {
            jobs.spawn(transcode_stream(key, library.clone(), programs.clone(), plane.clone()));
            while jobs.try_join_next().is_some() {}
        }
    }))
}

/// Returns the conversions for which the GStreamer plugins are installed. The check also writes the GStreamer plugin
/// registry, which workers only read.
async fn supported_conversions(library: &Library, programs: &WorkerPrograms) -> Vec<(Codec, TranscodeTarget)> {
    let pipelines = CONVERSIONS
        .iter()
        .filter_map(|(_, _, name)| Some((*name, library.get(name)?)));
    let trials = pipelines
        .map(|(name, description)| (name.to_owned(), description.trial()))
        .collect();
    let findings = match process::check(programs, trials).await {
        Ok(findings) => findings,
        Err(error) => {
            warn!(%error, "transcoding disabled: no pipeline can run");
            return Vec::new();
        }
    };
    let mut supported = Vec::new();
    for (codec, transcode, name) in CONVERSIONS {
        match findings
            .iter()
            .find(|finding| finding.name == name)
            .map(|finding| &finding.failure)
        {
            Some(None) => supported.push((codec, transcode)),
            Some(Some(failure)) => {
                warn!(
                    codec = codec.name(),
                    transcode = transcode.label(),
                    pipeline = name,
                    problem = process::explain(failure),
                    "transcoding unavailable: streams of this codec are sent as they are"
                );
            }
            None => {}
        }
    }
    supported
}

/// Runs the worker of one transcoded stream until it has no viewers.
async fn transcode_stream<P: FanOut>(key: StreamKey, library: Arc<Library>, programs: WorkerPrograms, plane: P) {
    let Some(transcode) = key.transcode_target() else {
        return;
    };
    let Some(transcoded) = plane.hub().find(&key) else {
        return;
    };
    let job = TranscodeJob {
        original: key.name.clone(),
        key,
        transcode,
        library,
        programs,
    };
    loop {
        tokio::select! {
            () = job.run(&plane) => {}
            () = unwatched(&transcoded, linger(transcode)) => {}
        }
        // Opening the stream from here on starts a new job; a viewer that opened it before is found by this check.
        let mut watched = false;
        plane.hub().release(&transcoded, |state| watched = state.is_watched());
        if !watched {
            info!(stream = %job.original, transcode = transcode.label(), "transcode stopped (no viewers)");
            return;
        }
    }
}

/// Linger time of a target. A snapshot is a single frame, so its worker ends sooner.
fn linger(transcode: TranscodeTarget) -> Duration {
    match transcode {
        TranscodeTarget::Jpeg => LINGER / 5,
        TranscodeTarget::H264 | TranscodeTarget::Opus | TranscodeTarget::Aac => LINGER,
    }
}

async fn unwatched(stream: &Stream, linger: Duration) {
    let mut last = Instant::now();
    while last.elapsed() < linger {
        if stream.with(|state| state.is_watched()) {
            last = Instant::now();
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// One transcoded stream.
struct TranscodeJob {
    key: StreamKey,
    original: StreamName,
    transcode: TranscodeTarget,
    library: Arc<Library>,
    programs: WorkerPrograms,
}

/// The input of a job: the original track.
struct TranscodeInput<'a> {
    tap: Tap<'a>,
    format: Format,
    reader: Reader,
}

impl TranscodeJob {
    /// Runs workers, restarting them with backoff.
    async fn run<P: FanOut>(&self, plane: &P) {
        let mut backoff = Backoff::default();
        let mut logged = None;
        loop {
            let mut running_since = None;
            let error = self.run_worker(plane, &mut running_since).await;
            if running_since.is_some_and(|running_since: Instant| running_since.elapsed() >= STEADY) {
                backoff.reset();
                logged = None;
            }
            let Some(error) = error.map(|error| error.to_string()) else {
                // The format of the stream has changed, possibly to one that cannot be transcoded.
                sleep(POLL_INTERVAL).await;
                continue;
            };
            if logged.as_ref() != Some(&error) {
                warn!(stream = %self.original, transcode = self.transcode.label(), error, "transcode failed");
            }
            logged = Some(error);
            let wait = backoff.after_failure(rand::rng().next_u32());
            sleep(wait).await;
        }
    }

    /// Runs one worker until it fails; `None` if the stream has changed. `running_since` is set at its first output
    /// frame.
    async fn run_worker<P: FanOut>(&self, plane: &P, running_since: &mut Option<Instant>) -> Option<ProcessError> {
        let (tap, changed) = tap();
        let mut input = self.wait_for_input(plane, &tap).await;
        let (job, limits) = self.job(input.format)?;
        let mut running = match Process::start(&self.programs, job, limits) {
            Ok(process) => Running(Some(process)),
            Err(error) => return Some(error),
        };
        let process = running.0.as_mut()?;
        let (transcode, from) = (self.transcode.label(), input.format.codec().name());
        info!(stream = %self.original, transcode, from, "transcoding");
        let mut conversion = FrameConversion {
            kind: self.transcode.kind(),
            output_codec: self.transcode.format().codec(),
            rate: input.format.codec().clock_rate(),
            depacketizer: Depacketizer::new(self.transcode.kind()),
            base: None,
            last_input: Instant::now(),
        };
        let mut attached: Option<Attached<'_, P>> = None;
        let mut clock_sent: Option<Instant> = None;
        loop {
            let retry_at = conversion.send_new_frames(&mut input, process)?;
            let gap_timeout = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = process.next() => message,
                () = changed.notified() => {
                    tap.take(&mut VecDeque::new());
                    continue;
                }
                () = gap_timeout => continue,
            };
            let frame = match message {
                Ok(FromWorker::Media(media)) => {
                    let announced = announced(&media)?;
                    let mut output = FrameSource::keeping_time(self.key.clone(), random_id(), &[announced]).ok()?;
                    output.set_takes_key_frame_requests(true);
                    attached = Some(Attached { feed: output, plane });
                    continue;
                }
                Ok(FromWorker::Frame(frame)) => frame,
                Ok(_) => continue,
                Err(ProcessError::Stalled(_) | ProcessError::NoOutput(_))
                    if conversion.last_input.elapsed() >= IDLE =>
                {
                    process.expect_no_frame();
                    continue;
                }
                Err(error) => return Some(error),
            };
            let Some(Attached { feed: output, .. }) = &mut attached else {
                continue;
            };
            running_since.get_or_insert_with(Instant::now);
            conversion.publish_frame(output, &frame);
            if clock_sent.is_none_or(|clock_sent| clock_sent.elapsed() >= CLOCK_INTERVAL) {
                let now = Instant::now();
                let (kind, stream) = (conversion.kind, &input.tap.stream);
                let time = stream.with(|state| state.track(kind).clock().time_at(now.into_std()));
                if let Some(time) = time {
                    output.record_capture_time(conversion.kind, conversion.output_time(time), now.into_std());
                    clock_sent = Some(now);
                }
            }
            if !plane.feed(output) {
                // This job is the only source of the stream; another one is about to start.
                return None;
            }
            if output.take_key_frame_request() {
                process.request_key_frame_of_source();
            }
        }
    }

    /// Waits until the original track can be read from a suitable start.
    async fn wait_for_input<'a, P: FanOut>(&self, plane: &'a P, tap: &Arc<TapQueue>) -> TranscodeInput<'a> {
        let mut last_request: Option<Instant> = None;
        let tap = Tap::open(plane.hub(), &self.original, tap);
        loop {
            let (input, source) = tap.stream.with(|state| {
                let input = self.open_input(state);
                // Audio can be read from any packet on.
                let is_waiting = input.is_none() && self.transcode.kind() == Kind::Video;
                let is_due = last_request.is_none_or(|at| at.elapsed() >= KEY_FRAME_REQUEST_INTERVAL);
                let request = (is_waiting && is_due).then(|| state.request_key_frame_of_source());
                (input, request.flatten())
            });
            if let Some((format, reader)) = input {
                return TranscodeInput { tap, format, reader };
            }
            if let Some(source) = source {
                plane.ask_for_key_frame(source);
                last_request = Some(Instant::now());
            }
            sleep(POLL_INTERVAL / 10).await;
        }
    }

    fn open_input(&self, state: &mut StreamState) -> Option<(Format, Reader)> {
        let kind = self.transcode.kind();
        state.source()?;
        let format = state.format(kind)?;
        let ring = state.track(kind).ring();
        let reader = match kind {
            Kind::Video => Reader::at_key_frame(ring)?,
            Kind::Audio => Reader::at_end(ring),
        };
        Some((format, reader))
    }

    fn job(&self, format: Format) -> Option<(Job, Limits)> {
        let (_, _, name) = CONVERSIONS
            .iter()
            .find(|(codec, transcode, _)| *codec == format.codec() && *transcode == self.transcode)?;
        let media = match format {
            Format::H264 { .. } => Media::H264,
            Format::H265 { .. } => Media::H265,
            Format::Jpeg => Media::Jpeg,
            Format::Aac(config) => Media::Aac(config.bytes().to_vec()),
            Format::Opus { .. } => Media::Opus,
            Format::Pcmu => Media::Pcmu,
            Format::Pcma => Media::Pcma,
            Format::Vp8 => Media::Vp8,
            Format::Vp9 { .. } => Media::Vp9,
            Format::Av1 { .. } => Media::Av1,
        };
        let description = self.library.get(name)?;
        let inputs = vec![Input { media }];
        let (job, _) = description.job(&toml::Table::new(), inputs).ok()?;
        Some((job, description.limits))
    }
}

/// Creates a tap that only wakes the task: packets are read from the ring, in sequence order.
fn tap() -> (Arc<TapQueue>, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    (Arc::new(Mailbox::new(1, move || notify.notify_one())), changed)
}

/// Converts between track packets and worker frames.
struct FrameConversion {
    kind: Kind,
    /// Codec of the output.
    output_codec: Codec,
    /// Clock rate of the original track in Hz.
    rate: u32,
    depacketizer: Depacketizer,
    /// Track timestamp that is time zero for the worker.
    base: Option<TrackTime>,
    last_input: Instant,
}

impl FrameConversion {
    /// Sends new frames to the worker. Returns `None` if the stream has changed, else when to retry after a gap.
    fn send_new_frames(
        &mut self,
        input: &mut TranscodeInput<'_>,
        process: &Process,
    ) -> Option<Option<std::time::Instant>> {
        let now = Instant::now();
        let mut entries = Vec::new();
        let TranscodeInput { tap, format, reader } = input;
        let retry_at = tap.stream.with(|state| {
            if state.format(self.kind).is_some_and(|now| !is_same(now, *format)) {
                return None;
            }
            let ring = state.track(self.kind).ring();
            Some(reader.read(now.into_std(), ring, &mut entries))
        })?;
        let mut frames = Vec::new();
        for entry in entries {
            self.depacketizer.push(&entry.packet, &mut frames);
        }
        for frame in frames {
            self.last_input = now;
            if let Some(frame) = self.wire_frame(frame)
                && !process.send(frame)
            {
                debug!("transcoder overloaded: frame dropped");
                self.depacketizer.reset();
            }
        }
        Some(retry_at)
    }

    /// Converts a frame for the worker; `None` before time zero.
    fn wire_frame(&mut self, frame: Frame) -> Option<WireFrame> {
        // With B-frames, frames may be presented before the first one: leave room for them.
        let base = *self.base.get_or_insert(frame.time.saturating_sub(u64::from(self.rate)));
        let time = duration(frame.time.checked_sub(base)?, self.rate);
        Some(WireFrame {
            kind: self.kind,
            time: u64::try_from(time.as_nanos()).ok()?,
            after_gap: frame.after_gap,
            bytes: frame.bytes,
        })
    }

    fn publish_frame(&self, output: &mut FrameSource, frame: &WireFrame) {
        let Some(base) = self.base else { return };
        // Round to nearest: the input timestamp was rounded down.
        let half = Duration::from_nanos(500_000_000 / u64::from(self.rate.max(1)));
        let since = ticks(Duration::from_nanos(frame.time).saturating_add(half), self.rate);
        let time = self.output_time(base.saturating_add(since));
        let now = Instant::now().into_std();
        let taken = match self.kind {
            Kind::Video => output.take_video(now, time, &frame.bytes, Framing::StartCodes),
            Kind::Audio => output.take_audio(now, time, &frame.bytes),
        };
        if let Err(error) = taken {
            debug!(%error, "transcoded frame dropped");
        }
    }

    /// Converts a timestamp of the original track to the clock rate of the output.
    fn output_time(&self, time: TrackTime) -> TrackTime {
        let rate = self.output_codec.clock_rate();
        let time = u128::from(time) * u128::from(rate) / u128::from(self.rate.max(1));
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

/// Whether a worker for one format can process the other.
fn is_same(one: Format, other: Format) -> bool {
    match (one, other) {
        (Format::Aac(one), Format::Aac(other)) => one == other,
        _ => one.codec() == other.codec(),
    }
}
