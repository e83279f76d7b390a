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

use crate::pipeline::description::WorkerLimits;
use crate::pipeline::library::PipelineLibrary;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::pipeline::worker_process::{WorkerProcess, WorkerProcessError};
use crate::pipeline::worker_slots::{WorkerOwner, WorkerSlotReservation};
use crate::pipeline::{pipeline_check, worker_error};
use crate::sources::fetch::attached_source::{AttachedSource, random_session_id};
use crate::sources::fetch::backoff::Backoff;
use crate::sources::fetch::pipeline::{StopWorkerOnDrop, announced_track};
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::reader::RingReader;
use millstream_core::hub::stream::{Stream, StreamState};
use millstream_core::hub::tap::{StreamTap, TapQueue};
use millstream_core::media::clock::{duration_to_ticks, ticks_to_duration};
use millstream_core::media::depacketizer::{Depacketizer, Frame};
use millstream_core::media::packet::TrackTime;
use millstream_core::media::track_delivery::TranscodeTarget;
use millstream_core::media::{Codec, CodecFormat, MediaKind};
use millstream_core::sources::frame_source::{AnnouncedTrack, FrameSink, FrameSource, NalFraming};
use millstream_worker_runtime::wire::{InputTrack, MessageFromWorker, PipelineJob, TrackFormat, WireFrame};

/// How long a worker keeps running after its last viewer left, e.g. for a page reload.
const TRANSCODE_WORKER_LINGER: Duration = Duration::from_secs(5);

/// Interval of the check for viewers.
const VIEWER_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A worker that ran for this long resets the restart backoff.
const MIN_LIVE_TIME_TO_RESET_BACKOFF: Duration = Duration::from_secs(2);

/// Interval at which the capture time of the original stream is copied to the transcoded one.
const CAPTURE_TIME_COPY_INTERVAL: Duration = Duration::from_secs(1);

/// Without input for this long, no output is expected.
const MIN_INPUT_GAP_EXCUSING_STALL: Duration = Duration::from_millis(500);

/// Minimum interval between key frame requests for the start.
const MIN_KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// Supported conversions, with the pipeline for each.
const TRANSCODE_PIPELINES: [(Codec, TranscodeTarget, &str); 15] = [
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

/// Tells for whom the worker of a stream runs, given the name of the original stream.
pub type WorkerOwnerLookup = Arc<dyn Fn(&StreamName) -> WorkerOwner + Send + Sync>;

/// Detects the supported conversions and starts the task that transcodes. Returns `None` if none is supported.
pub async fn start_transcoding_service<P: FrameSink + Clone + 'static>(
    library: PipelineLibrary,
    programs: WorkerExecutablesAndProcessSlots,
    plane: P,
    find_owner: WorkerOwnerLookup,
) -> Option<JoinHandle<()>> {
    let supported = detect_supported_conversions(&library, &programs).await;
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
            let Some(target) = key.transcoded_to() else { continue };
            let job = TranscodeJob {
                original_stream: key.name.clone(),
                key: key.clone(),
                target,
                pipeline_library: library.clone(),
                worker_programs: programs.clone(),
                find_owner: find_owner.clone(),
                reservation: WorkerSlotReservation::new_for_transcode(key),
            };
            jobs.spawn(transcode_until_unwatched(job, plane.clone()));
            while jobs.try_join_next().is_some() {}
        }
    }))
}

/// Returns the conversions for which the GStreamer plugins are installed. The check also writes the GStreamer plugin
/// registry, which workers only read.
async fn detect_supported_conversions(
    library: &PipelineLibrary,
    programs: &WorkerExecutablesAndProcessSlots,
) -> Vec<(Codec, TranscodeTarget)> {
    let pipelines = TRANSCODE_PIPELINES
        .iter()
        .filter_map(|(_, _, name)| Some((*name, library.get(name)?)));
    let trials = pipelines
        .map(|(name, description)| (name.to_owned(), description.pipeline_check_job()))
        .collect();
    let findings = match pipeline_check::check_pipelines(programs, trials).await {
        Ok(findings) => findings,
        Err(error) => {
            warn!(%error, "transcoding disabled: the conversion pipelines could not be checked");
            return Vec::new();
        }
    };
    let mut supported = Vec::new();
    for (codec, transcode, name) in TRANSCODE_PIPELINES {
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
                    problem = worker_error::describe_failure_with_advice(failure),
                    "transcoding from this codec unavailable: its pipeline cannot run on this host"
                );
            }
            None => {}
        }
    }
    supported
}

/// Runs the worker of one transcoded stream until it has no viewers.
async fn transcode_until_unwatched<P: FrameSink>(job: TranscodeJob, plane: P) {
    let transcode = job.target;
    let Some(transcoded) = plane.hub().find_stream(&job.key) else {
        return;
    };
    loop {
        tokio::select! {
            () = job.run_workers_forever(&plane) => {}
            () = wait_until_unwatched(&transcoded, worker_linger_duration(transcode)) => {}
        }
        // Opening the stream from here on starts a new job; a viewer that opened it before is found by this check.
        let mut watched = false;
        plane
            .hub()
            .update_stream_and_remove_if_unused(&transcoded, |state| watched = state.has_consumers());
        if !watched {
            info!(stream = %job.original_stream, transcode = transcode.label(), "transcoding stopped: the transcoded stream has no viewers");
            return;
        }
    }
}

/// Linger time of a target. A snapshot is a single frame, so its worker ends sooner.
fn worker_linger_duration(transcode: TranscodeTarget) -> Duration {
    match transcode {
        TranscodeTarget::Jpeg => TRANSCODE_WORKER_LINGER / 5,
        TranscodeTarget::H264 | TranscodeTarget::Opus | TranscodeTarget::Aac => TRANSCODE_WORKER_LINGER,
    }
}

async fn wait_until_unwatched(stream: &Stream, linger: Duration) {
    let mut last = Instant::now();
    while last.elapsed() < linger {
        if stream.with_state(|state| state.has_consumers()) {
            last = Instant::now();
        }
        sleep(VIEWER_POLL_INTERVAL).await;
    }
}

/// One transcoded stream.
struct TranscodeJob {
    key: StreamKey,
    original_stream: StreamName,
    target: TranscodeTarget,
    pipeline_library: Arc<PipelineLibrary>,
    worker_programs: WorkerExecutablesAndProcessSlots,
    find_owner: WorkerOwnerLookup,
    reservation: WorkerSlotReservation,
}

/// The input of a job: the original track.
struct TranscodeInput<'a> {
    tap: StreamTap<'a>,
    format: CodecFormat,
    reader: RingReader,
}

impl TranscodeJob {
    /// Runs workers, restarting them with backoff.
    async fn run_workers_forever<P: FrameSink>(&self, plane: &P) {
        let mut backoff = Backoff::default();
        let mut logged = None;
        loop {
            let mut running_since = None;
            let error = self.run_worker(plane, &mut running_since).await;
            if running_since
                .is_some_and(|running_since: Instant| running_since.elapsed() >= MIN_LIVE_TIME_TO_RESET_BACKOFF)
            {
                backoff.reset();
                logged = None;
            }
            let Some(error) = error.map(|error| error.to_string()) else {
                // The format of the stream has changed, possibly to one that cannot be transcoded.
                sleep(VIEWER_POLL_INTERVAL).await;
                continue;
            };
            if logged.as_ref() != Some(&error) {
                warn!(stream = %self.original_stream, transcode = self.target.label(), error, "transcoding worker failed; the gateway restarts it");
            }
            logged = Some(error);
            let wait = backoff.next_delay_after_failure(rand::rng().next_u32());
            sleep(wait).await;
        }
    }

    /// Makes the worker's output the source of this job's stream.
    fn build_output_source<'a, P: FrameSink>(
        &self,
        plane: &'a P,
        track: AnnouncedTrack,
    ) -> Option<AttachedSource<'a, P>> {
        let mut output =
            FrameSource::new_preserving_timestamps(self.key.clone(), random_session_id(), &[track]).ok()?;
        output.set_accepts_key_frame_requests(true);
        Some(AttachedSource {
            frame_source: output,
            media_plane: plane,
        })
    }

    /// Runs one worker until it fails; `None` if the stream has changed. `running_since` is set at its first output
    /// frame.
    async fn run_worker<P: FrameSink>(
        &self,
        plane: &P,
        running_since: &mut Option<Instant>,
    ) -> Option<WorkerProcessError> {
        let (tap, changed) = wakeup_tap();
        let mut input = self.wait_for_original_track(plane, &tap).await;
        let (job, limits) = self.build_worker_job(input.format)?;
        let programs = &self.worker_programs;
        let started = self
            .reservation
            .acquire(&programs.slots, (self.find_owner)(&self.original_stream))
            .map_err(WorkerProcessError::from)
            .and_then(|slot| WorkerProcess::spawn_pipeline_worker(programs, slot, job, limits));
        let mut running = match started {
            Ok(process) => StopWorkerOnDrop(Some(process)),
            Err(error) => return Some(error),
        };
        let process = running.0.as_mut()?;
        let (transcode, from) = (self.target.label(), input.format.codec().name());
        info!(stream = %self.original_stream, transcode, from, "transcoding started");
        let mut conversion = WorkerFrameConverter {
            kind: self.target.kind(),
            output_codec: self.target.format().codec(),
            input_clock_rate: input.format.codec().clock_rate(),
            depacketizer: Depacketizer::new(self.target.kind()),
            worker_zero_time: None,
            last_input_at: Instant::now(),
        };
        let mut attached: Option<AttachedSource<'_, P>> = None;
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
                message = process.read_message_or_kill_worker() => message,
                () = changed.notified() => {
                    tap.take_all_messages(&mut VecDeque::new());
                    continue;
                }
                () = gap_timeout => continue,
            };
            let frame = match message {
                Ok(MessageFromWorker::TrackFormat(media)) => {
                    attached = Some(self.build_output_source(plane, announced_track(&media)?)?);
                    continue;
                }
                Ok(MessageFromWorker::Frame(frame)) => frame,
                Ok(_) => continue,
                Err(WorkerProcessError::Stalled(_) | WorkerProcessError::NoFirstFrame(_))
                    if conversion.last_input_at.elapsed() >= MIN_INPUT_GAP_EXCUSING_STALL =>
                {
                    process.restart_frame_timeout();
                    continue;
                }
                Err(error) => return Some(error),
            };
            let Some(AttachedSource {
                frame_source: output, ..
            }) = &mut attached
            else {
                continue;
            };
            running_since.get_or_insert_with(Instant::now);
            conversion.packetize_worker_output(output, &frame);
            if clock_sent.is_none_or(|clock_sent| clock_sent.elapsed() >= CAPTURE_TIME_COPY_INTERVAL) {
                clock_sent = conversion.copy_capture_time(&input, output).or(clock_sent);
            }
            if !plane.publish_frames_unless_displaced(output) {
                // This job is the only source of the stream; another one is about to start.
                return None;
            }
            if output.take_key_frame_request() {
                process.request_key_frame();
            }
        }
    }

    /// Waits until the original track can be read from a suitable start.
    async fn wait_for_original_track<'a, P: FrameSink>(&self, plane: &'a P, tap: &Arc<TapQueue>) -> TranscodeInput<'a> {
        let mut last_request: Option<Instant> = None;
        let tap = StreamTap::open(plane.hub(), &self.original_stream, tap);
        loop {
            let (input, source) = tap.stream.with_state(|state| {
                let input = self.open_reader_of_original_track(state);
                // Audio can be read from any packet on.
                let is_waiting = input.is_none() && self.target.kind() == MediaKind::Video;
                let is_due = last_request.is_none_or(|at| at.elapsed() >= MIN_KEY_FRAME_REQUEST_INTERVAL);
                let request = (is_waiting && is_due).then(|| state.flag_key_frame_request_and_get_source());
                (input, request.flatten())
            });
            if let Some((format, reader)) = input {
                return TranscodeInput { tap, format, reader };
            }
            if let Some(source) = source {
                plane.request_key_frame_from_source(source);
                last_request = Some(Instant::now());
            }
            sleep(VIEWER_POLL_INTERVAL / 10).await;
        }
    }

    fn open_reader_of_original_track(&self, state: &mut StreamState) -> Option<(CodecFormat, RingReader)> {
        let kind = self.target.kind();
        state.source()?;
        let format = state.format(kind)?;
        let ring = state.track(kind).ring();
        let reader = match kind {
            MediaKind::Video => RingReader::starting_at_newest_key_frame(ring)?,
            MediaKind::Audio => RingReader::starting_at_ring_end(ring),
        };
        Some((format, reader))
    }

    fn build_worker_job(&self, format: CodecFormat) -> Option<(PipelineJob, WorkerLimits)> {
        let (_, _, name) = TRANSCODE_PIPELINES
            .iter()
            .find(|(codec, transcode, _)| *codec == format.codec() && *transcode == self.target)?;
        let media = match format {
            CodecFormat::H264 { .. } => TrackFormat::H264,
            CodecFormat::H265 { .. } => TrackFormat::H265,
            CodecFormat::Jpeg => TrackFormat::Jpeg,
            CodecFormat::Aac(config) => TrackFormat::Aac(config.bytes().to_vec()),
            CodecFormat::Opus { .. } => TrackFormat::Opus,
            CodecFormat::Pcmu => TrackFormat::Pcmu,
            CodecFormat::Pcma => TrackFormat::Pcma,
            CodecFormat::Vp8 => TrackFormat::Vp8,
            CodecFormat::Vp9 { .. } => TrackFormat::Vp9,
            CodecFormat::Av1 { .. } => TrackFormat::Av1,
        };
        let description = self.pipeline_library.get(name)?;
        let inputs = vec![InputTrack { media }];
        let (job, _) = description
            .build_job_and_target_urls(&toml::Table::new(), inputs)
            .ok()?;
        Some((job, description.limits))
    }
}

/// Creates a tap that only wakes the task: packets are read from the ring, in sequence order.
fn wakeup_tap() -> (Arc<TapQueue>, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    (Arc::new(Mailbox::new(1, move || notify.notify_one())), changed)
}

/// Converts between track packets and worker frames.
struct WorkerFrameConverter {
    kind: MediaKind,
    /// Codec of the output.
    output_codec: Codec,
    /// Clock rate of the original track in Hz.
    input_clock_rate: u32,
    depacketizer: Depacketizer,
    /// Track timestamp that is time zero for the worker.
    worker_zero_time: Option<TrackTime>,
    last_input_at: Instant,
}

impl WorkerFrameConverter {
    /// Gives the output the capture time of the input. Returns when it did, `None` if the input's is not known.
    fn copy_capture_time(&self, input: &TranscodeInput<'_>, output: &mut FrameSource) -> Option<Instant> {
        let now = Instant::now();
        let stream = &input.tap.stream;
        let clock = stream.with_state(|state| *state.track(self.kind).clock());
        let to_output_time = |time| self.to_output_clock_rate(time);
        let is_known = output.copy_capture_time(self.kind, &clock, now.into_std(), to_output_time);
        is_known.then_some(now)
    }

    /// Sends new frames to the worker. Returns `None` if the stream has changed, else when to retry after a gap.
    fn send_new_frames(
        &mut self,
        input: &mut TranscodeInput<'_>,
        process: &WorkerProcess,
    ) -> Option<Option<std::time::Instant>> {
        let now = Instant::now();
        let mut entries = Vec::new();
        let TranscodeInput { tap, format, reader } = input;
        let retry_at = tap.stream.with_state(|state| {
            if state
                .format(self.kind)
                .is_some_and(|now| !is_same_worker_input_format(now, *format))
            {
                return None;
            }
            let ring = state.track(self.kind).ring();
            Some(reader.append_available_packets(now.into_std(), ring, &mut entries))
        })?;
        let mut frames = Vec::new();
        for entry in entries {
            self.depacketizer.push_packet(&entry.packet, &mut frames);
        }
        for frame in frames {
            self.last_input_at = now;
            if let Some(frame) = self.make_worker_frame(frame)
                && !process.send_frame(frame)
            {
                debug!("transcoding worker overloaded: frame dropped");
                self.depacketizer.reset();
            }
        }
        Some(retry_at)
    }

    /// Converts a frame for the worker; `None` before time zero.
    fn make_worker_frame(&mut self, frame: Frame) -> Option<WireFrame> {
        // With B-frames, frames may be presented before the first one: leave room for them.
        let base = *self
            .worker_zero_time
            .get_or_insert(frame.time.saturating_sub(u64::from(self.input_clock_rate)));
        let time = ticks_to_duration(frame.time.checked_sub(base)?, self.input_clock_rate);
        Some(WireFrame {
            kind: self.kind,
            pts_ns: u64::try_from(time.as_nanos()).ok()?,
            after_gap: frame.after_gap,
            bytes: frame.bytes,
        })
    }

    fn packetize_worker_output(&self, output: &mut FrameSource, frame: &WireFrame) {
        let Some(base) = self.worker_zero_time else { return };
        // Round to nearest: the input timestamp was rounded down.
        let half = Duration::from_nanos(500_000_000 / u64::from(self.input_clock_rate.max(1)));
        let since = duration_to_ticks(
            Duration::from_nanos(frame.pts_ns).saturating_add(half),
            self.input_clock_rate,
        );
        let time = self.to_output_clock_rate(base.saturating_add(since));
        let now = Instant::now().into_std();
        let taken = match self.kind {
            MediaKind::Video => output.packetize_and_queue_video(now, time, &frame.bytes, NalFraming::AnnexB),
            MediaKind::Audio => output.packetize_and_queue_audio(now, time, &frame.bytes),
        };
        if let Err(error) = taken {
            debug!(%error, "transcoded frame dropped: it cannot be packetized");
        }
    }

    /// Converts a timestamp of the original track to the clock rate of the output.
    fn to_output_clock_rate(&self, time: TrackTime) -> TrackTime {
        let rate = self.output_codec.clock_rate();
        let time = u128::from(time) * u128::from(rate) / u128::from(self.input_clock_rate.max(1));
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

/// Whether a worker for one format can process the other.
fn is_same_worker_input_format(one: CodecFormat, other: CodecFormat) -> bool {
    match (one, other) {
        (CodecFormat::Aac(one), CodecFormat::Aac(other)) => one == other,
        _ => one.codec() == other.codec(),
    }
}
