//! A source that is a pipeline in a worker process.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::address::{AddressError, AllowedNetworks};
use super::attached_source::{AttachedSource, random_session_id};
use super::error::FetchError;
use crate::pipeline::description::WorkerLimits;
use crate::pipeline::parameter::{TargetHost, TargetUrl};
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::pipeline::worker_process::{WorkerProcess, WorkerProcessError};
use crate::pipeline::worker_slots::{WorkerOwner, WorkerSlotReservation};
use millstream_core::hub::name::StreamKey;
use millstream_core::media::aac::AacConfig;
use millstream_core::media::clock::duration_to_ticks;
use millstream_core::media::{Codec, CodecFormat, MediaKind};
use millstream_core::sources::frame_source::{AnnouncedTrack, FrameSink, FrameSource, NalFraming};
use millstream_worker_runtime::wire::{
    MessageFromWorker, OutputTrackKinds, PipelineJob, TrackFormat, WireFrame, WorkerFailure,
};

/// A pipeline with the parameters of a stream.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// Name in the library.
    pub name: String,
    /// The executable of the worker.
    pub worker_programs: WorkerExecutablesAndProcessSlots,
    pub job: PipelineJob,
    pub limits: WorkerLimits,
    /// What it connects to.
    pub targets: Vec<TargetUrl>,
    pub allowed_networks: AllowedNetworks,
    /// Number of workers that were started, by which they take turns at the addresses of a host.
    pub attempts: Arc<AtomicUsize>,
}

/// Returns the track for the frames of a worker; `None` for codecs that cannot be packetized and for invalid AAC
/// configurations.
pub fn announced_track(media: &TrackFormat) -> Option<AnnouncedTrack> {
    Some(match media {
        TrackFormat::H264 => Codec::H264.into(),
        TrackFormat::H265 => Codec::H265.into(),
        // Workers only receive these codecs. There is no packetizer for them.
        TrackFormat::Vp8 | TrackFormat::Vp9 | TrackFormat::Av1 => return None,
        TrackFormat::Jpeg => Codec::Jpeg.into(),
        TrackFormat::Opus => Codec::Opus.into(),
        TrackFormat::Pcmu => CodecFormat::Pcmu.into(),
        TrackFormat::Pcma => CodecFormat::Pcma.into(),
        TrackFormat::Aac(config) => CodecFormat::Aac(AacConfig::parse(config)?).into(),
    })
}

/// Maximum time after the first frame for which publishing waits for expected audio, and for expected video. A viewer
/// that joins before the video is known is answered without video.
const AUDIO_WAIT_TIMEOUT: Duration = Duration::from_millis(1_000);
const VIDEO_WAIT_TIMEOUT: Duration = Duration::from_millis(5_000);

/// Maximum number and bytes of the frames buffered meanwhile.
const MAX_BUFFERED_FRAMES: usize = 1_024;
const MAX_BUFFERED_BYTES: usize = 16 << 20;

/// Interval at which timestamps are aligned with the clock.
const CAPTURE_TIME_ESTIMATE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the worker until it fails. `live` is called once the stream receives frames.
pub async fn run_pipeline_source<P: FrameSink>(
    spec: &PipelineSpec,
    (stream, plane): (&StreamKey, &P),
    reservation: &WorkerSlotReservation,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let job = match resolve_target_hosts_of_job(spec).await {
        Ok(job) => job,
        Err(error) => return error.into(),
    };
    let programs = &spec.worker_programs;
    let started = reservation
        .acquire(&programs.slots, WorkerOwner::ConfiguredSource)
        .map_err(WorkerProcessError::from)
        .and_then(|slot| WorkerProcess::spawn_pipeline_worker(programs, slot, job, spec.limits));
    let mut running = match started {
        Ok(process) => StopWorkerOnDrop(Some(process)),
        Err(error) => return error.into(),
    };
    let Some(process) = &mut running.0 else {
        return FetchError::StreamOccupied;
    };
    let mut relay = WorkerFrameForwarder::new(stream, plane, true);
    loop {
        let message = match process.read_message_or_kill_worker().await {
            Ok(message) => message,
            Err(error) => return error.into(),
        };
        if let Err(error) = relay.handle_message(message, process, live) {
            return error;
        }
    }
}

/// Returns the job with permitted addresses in place of the host names of its URLs, where the server needs no name:
/// GStreamer would resolve them again.
async fn resolve_target_hosts_of_job(spec: &PipelineSpec) -> Result<PipelineJob, AddressError> {
    let networks = &spec.allowed_networks;
    let mut job = PipelineJob {
        allowed_networks: networks.to_strings(),
        ..spec.job.clone()
    };
    let attempt = spec.attempts.fetch_add(1, Ordering::Relaxed);
    for target in &spec.targets {
        let is_name = matches!(target.host, TargetHost::Name(_));
        if !is_name || !target.allows_address_instead_of_hostname(networks.has_network_restriction()) {
            networks.require_all_addresses_permitted(&target.host).await?;
            continue;
        }
        let addresses = networks.resolve_permitted_addresses(&target.host).await?;
        let Some(address) = choose_address(&addresses, target.tcp_port(), attempt).await else {
            continue;
        };
        let text = target.url_text_with_address(address);
        for (_, value) in job.properties.iter_mut().filter(|(_, value)| value == target.text()) {
            value.clone_from(&text);
        }
    }
    Ok(job)
}

/// Timeout of a connection that is only made to find out which address of several works.
const PROBE_CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Returns the address to use: the first that accepts a connection, or over UDP another one at each attempt.
async fn choose_address(addresses: &[IpAddr], tcp_port: Option<u16>, attempt: usize) -> Option<IpAddr> {
    match (addresses, tcp_port) {
        ([address], _) => Some(*address),
        (_, Some(port)) => {
            for address in addresses {
                let connecting = TcpStream::connect((*address, port));
                if let Ok(Ok(_)) = timeout(PROBE_CONNECT_TIMEOUT, connecting).await {
                    return Some(*address);
                }
            }
            addresses.first().copied()
        }
        (_, None) => addresses.get(attempt % addresses.len().max(1)).copied(),
    }
}

/// Passes the frames of a worker to the frame source of a stream.
pub struct WorkerFrameForwarder<'a, P: FrameSink> {
    stream: &'a StreamKey,
    media_plane: &'a P,
    pending_tracks: PendingTracks,
    attached_source: Option<AttachedSource<'a, P>>,
    is_live: bool,
    clock_origin: ClockOrigin,
    accepts_key_frame_requests: bool,
}

impl<'a, P: FrameSink> WorkerFrameForwarder<'a, P> {
    /// Makes a relay that waits for the tracks of the worker. If `accepts_key_frame_requests` is set, key frame requests
    /// are sent to the worker until it refuses one.
    pub fn new(stream: &'a StreamKey, plane: &'a P, accepts_key_frame_requests: bool) -> Self {
        Self {
            stream,
            media_plane: plane,
            pending_tracks: PendingTracks::default(),
            attached_source: None,
            is_live: false,
            clock_origin: ClockOrigin::default(),
            accepts_key_frame_requests,
        }
    }

    /// Makes a source of the tracks that the worker announced.
    fn attach_source_for_announced_tracks(&self) -> Result<AttachedSource<'a, P>, FetchError> {
        let formats = &self.pending_tracks.track_formats;
        let announced: Vec<AnnouncedTrack> = formats.iter().filter_map(announced_track).collect();
        let Ok(mut frame_source) = FrameSource::new(self.stream.clone(), random_session_id(), &announced) else {
            let failure = "the gateway cannot forward to viewers what the pipeline delivers: the codec or the AAC \
                           configuration of its frames is not supported";
            let failure = WorkerFailure::Stream(failure.to_owned());
            return Err(WorkerProcessError::WorkerFailed(failure).into());
        };
        frame_source.set_accepts_key_frame_requests(self.accepts_key_frame_requests);
        Ok(AttachedSource {
            frame_source,
            media_plane: self.media_plane,
        })
    }

    /// Handles a message of the worker. `live` is called once the stream receives frames.
    ///
    /// # Errors
    ///
    /// A [`FetchError`] if the stream has another source, or if the frames cannot be sent.
    pub fn handle_message(
        &mut self,
        message: MessageFromWorker,
        process: &WorkerProcess,
        live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
    ) -> Result<(), FetchError> {
        let now = tokio::time::Instant::now().into_std();
        match message {
            MessageFromWorker::Ready(expected) => self.pending_tracks.expected = Some(expected),
            MessageFromWorker::TrackFormat(media) => {
                self.pending_tracks
                    .track_formats
                    .retain(|known| known.kind() != media.kind());
                self.pending_tracks.track_formats.push(media);
                // A new set of tracks is a new source of the stream.
                self.attached_source = None;
            }
            MessageFromWorker::Frame(frame) => self.pending_tracks.buffer_frame_if_room(now, frame),
            MessageFromWorker::KeyFrameRefused => {
                self.accepts_key_frame_requests = false;
                if let Some(attached) = &mut self.attached_source {
                    attached.frame_source.set_accepts_key_frame_requests(false);
                }
            }
            MessageFromWorker::SegmentRequest(_)
            | MessageFromWorker::Heartbeat
            | MessageFromWorker::Failed(_)
            | MessageFromWorker::Ended
            | MessageFromWorker::CheckResults(_)
            | MessageFromWorker::LeftOut(_) => {}
        }
        if !self.pending_tracks.are_ready_to_publish(now) {
            return Ok(());
        }
        let attached = match &mut self.attached_source {
            Some(attached) => attached,
            None => {
                let source = self.attach_source_for_announced_tracks()?;
                self.attached_source.insert(source)
            }
        };
        for (arrived, frame) in self.pending_tracks.buffered_frames.drain(..) {
            packetize_worker_frame(
                &mut attached.frame_source,
                arrived,
                &frame,
                &self.pending_tracks.track_formats,
            );
            if let Some(captured) = self.clock_origin.update_and_estimate_capture_time(arrived, &frame) {
                let time = pts_in_clock_ticks(&frame, &self.pending_tracks.track_formats);
                attached
                    .frame_source
                    .record_estimated_capture_time(frame.kind, time, captured);
            }
        }
        self.pending_tracks.buffered_bytes = 0;
        if !self
            .media_plane
            .publish_frames_unless_displaced(&mut attached.frame_source)
        {
            return Err(FetchError::StreamOccupied);
        }
        if attached.frame_source.take_key_frame_request() {
            process.request_key_frame();
        }
        if !self.is_live && attached.frame_source.is_attached() {
            self.is_live = true;
            live(
                &self
                    .pending_tracks
                    .track_formats
                    .iter()
                    .map(codec_name)
                    .collect::<Vec<_>>(),
            );
        }
        Ok(())
    }
}

fn codec_name(media: &TrackFormat) -> &'static str {
    announced_track(media).map_or("AAC", |announced| announced.codec.name())
}

fn packetize_worker_frame(feed: &mut FrameSource, now: Instant, frame: &WireFrame, media: &[TrackFormat]) {
    let time = pts_in_clock_ticks(frame, media);
    let taken = match frame.kind {
        MediaKind::Video => feed.packetize_and_queue_video(now, time, &frame.bytes, NalFraming::AnnexB),
        MediaKind::Audio => feed.packetize_and_queue_audio(now, time, &frame.bytes),
    };
    if let Err(error) = taken {
        debug!(%error, "frame of a pipeline or demuxer worker dropped: it cannot be packetized");
    }
}

/// Returns the timestamp of a frame in units of its codec's clock rate.
fn pts_in_clock_ticks(frame: &WireFrame, media: &[TrackFormat]) -> u64 {
    let media = media.iter().find(|media| media.kind() == frame.kind);
    let rate = media
        .and_then(announced_track)
        .map_or(90_000, |announced| announced.codec.clock_rate());
    duration_to_ticks(Duration::from_nanos(frame.pts_ns), rate)
}

/// The tracks and frames received before publishing starts.
#[derive(Default)]
struct PendingTracks {
    expected: Option<OutputTrackKinds>,
    track_formats: Vec<TrackFormat>,
    buffered_frames: Vec<(Instant, WireFrame)>,
    buffered_bytes: usize,
    first_frame_at: Option<Instant>,
}

impl PendingTracks {
    fn buffer_frame_if_room(&mut self, now: Instant, frame: WireFrame) {
        self.first_frame_at.get_or_insert(now);
        if self.buffered_frames.len() < MAX_BUFFERED_FRAMES && self.buffered_bytes < MAX_BUFFERED_BYTES {
            self.buffered_bytes += frame.bytes.len();
            self.buffered_frames.push((now, frame));
        }
    }

    fn are_ready_to_publish(&self, now: Instant) -> bool {
        let has = |kind| self.track_formats.iter().any(|media| media.kind() == kind);
        let expected = self.expected.is_some_and(|expected| {
            (has(MediaKind::Video) || !expected.video) && (has(MediaKind::Audio) || !expected.audio)
        });
        let lacks_video = self.expected.is_none_or(|expected| expected.video) && !has(MediaKind::Video);
        let wait_timeout = if lacks_video {
            VIDEO_WAIT_TIMEOUT
        } else {
            AUDIO_WAIT_TIMEOUT
        };
        let waited = self
            .first_frame_at
            .is_some_and(|first| now.duration_since(first) >= wait_timeout);
        !self.buffered_frames.is_empty() && (expected || (waited && !self.track_formats.is_empty()))
    }
}

/// Estimates the wall-clock instant of a worker's timestamp 0 from its least delayed frames, so that different encoder
/// delays of the tracks do not shift them against each other.
#[derive(Default)]
struct ClockOrigin {
    origin_at: Option<Instant>,
    last_alignment_at: [Option<Instant>; 2],
}

/// A later frame moves the estimate by this fraction of its delay, to follow clock drift.
const DRIFT_CORRECTION_DIVISOR: u32 = 1_024;

impl ClockOrigin {
    /// Updates the estimate. Returns the estimated capture time of the frame once per [`CAPTURE_TIME_ESTIMATE_INTERVAL`] and kind.
    fn update_and_estimate_capture_time(&mut self, now: Instant, frame: &WireFrame) -> Option<Instant> {
        let begin = now.checked_sub(Duration::from_nanos(frame.pts_ns))?;
        let at = match self.origin_at {
            Some(at) if begin > at => at + (begin - at) / DRIFT_CORRECTION_DIVISOR,
            _ => begin,
        };
        self.origin_at = Some(at);
        let last = self
            .last_alignment_at
            .get_mut(usize::from(frame.kind == MediaKind::Audio))?;
        if last.is_some_and(|last| now.duration_since(last) < CAPTURE_TIME_ESTIMATE_INTERVAL) {
            return None;
        }
        *last = Some(now);
        Some(at + Duration::from_nanos(frame.pts_ns))
    }
}

/// Stops its worker gracefully when dropped.
pub struct StopWorkerOnDrop(pub Option<WorkerProcess>);

impl Drop for StopWorkerOnDrop {
    fn drop(&mut self) {
        if let (Some(process), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(process.stop());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::library::PipelineLibrary;

    fn spec(pipeline: &str, uri: &str, networks: &[&str]) -> PipelineSpec {
        let library = PipelineLibrary::with_shipped_pipelines();
        let description = library.get(pipeline).expect("a shipped pipeline");
        let values = toml::Table::from_iter([("uri".to_owned(), uri.into())]);
        let built = description.build_job_and_target_urls(&values, Vec::new());
        let (job, targets) = built.expect("valid");
        let networks = networks.iter().map(|network| network.parse().expect("a network"));
        PipelineSpec {
            name: pipeline.to_owned(),
            worker_programs: WorkerExecutablesAndProcessSlots::find_installed(),
            job,
            limits: description.limits,
            targets,
            allowed_networks: AllowedNetworks::new(networks.collect()),
            attempts: Arc::default(),
        }
    }

    /// GStreamer would resolve the name once more.
    #[tokio::test]
    async fn a_worker_gets_the_address_that_was_checked() {
        let loopback = &["127.0.0.0/8"][..];
        for (pipeline, uri, networks, expected) in [
            (
                "srt",
                "srt://localhost:9?latency=9",
                loopback,
                "srt://127.0.0.1:9?latency=9",
            ),
            ("rtsp", "rtsp://a:b@localhost:9/c", loopback, "rtsp://a:b@127.0.0.1:9/c"),
            ("rtmp", "rtmp://localhost:9/a/b", loopback, "rtmp://127.0.0.1:9/a/b"),
            ("rtmp", "rtmp://localhost:9/a/b", &[], "rtmp://localhost:9/a/b"),
            ("rtsp", "rtsps://localhost:9/c", &[], "rtsps://localhost:9/c"),
        ] {
            let job = resolve_target_hosts_of_job(&spec(pipeline, uri, networks))
                .await
                .expect("allowed");
            let set: Vec<&str> = job.properties.iter().map(|(_, value)| value.as_str()).collect();
            assert!(set.contains(&expected), "{uri}: {set:?}");
            assert!(!set.contains(&uri) || uri == expected, "{uri}: {set:?}");
        }
        for uri in ["srt://localhost:9", "srt://10.0.0.1:9"] {
            let refused = resolve_target_hosts_of_job(&spec("srt", uri, &["192.0.2.0/24"])).await;
            assert!(matches!(refused, Err(AddressError::OutsideAllowedNetworks(_))), "{uri}");
        }
        let refused = resolve_target_hosts_of_job(&spec("rtmp", "rtmp://169.254.169.254/a/b", &[])).await;
        assert!(matches!(refused, Err(AddressError::NotServerAddress(_))));
    }

    /// A name with addresses of both families, of which the server has one.
    #[tokio::test]
    async fn the_address_that_accepts_a_connection_is_chosen() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|address| address.parse::<IpAddr>().expect("an address"));
        assert_eq!(choose_address(&addresses, Some(port), 0).await, Some(addresses[1]));
        assert_eq!(choose_address(&addresses, None, 0).await, Some(addresses[0]));
        assert_eq!(choose_address(&addresses, None, 3).await, Some(addresses[1]));
        assert_eq!(choose_address(&[], None, 0).await, None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
    fn expected_video_is_waited_for_longer_than_audio() {
        let begin = Instant::now();
        for (expected, known, wanted) in [
            ((true, true), TrackFormat::Opus, VIDEO_WAIT_TIMEOUT),
            ((true, true), TrackFormat::H264, AUDIO_WAIT_TIMEOUT),
            ((false, true), TrackFormat::Opus, Duration::ZERO),
        ] {
            let mut tracks = PendingTracks {
                expected: Some(OutputTrackKinds {
                    video: expected.0,
                    audio: expected.1,
                }),
                ..PendingTracks::default()
            };
            let frame = WireFrame {
                kind: known.kind(),
                pts_ns: 0,
                after_gap: false,
                bytes: vec![0; 4].into(),
            };
            tracks.track_formats.push(known);
            tracks.buffer_frame_if_room(begin, frame);
            assert!(tracks.are_ready_to_publish(begin + wanted));
            let before = wanted.checked_sub(Duration::from_millis(1));
            assert!(!before.is_some_and(|before| tracks.are_ready_to_publish(begin + before)));
        }
    }
}
