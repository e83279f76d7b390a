//! One RTSP session with a camera, using the crate `retina`. It has no timeouts of its own, so each step has one here.
//!
//! Retina returns packets, and [`assembler`](super::assembler) makes frames of them. Only Motion JPEG, and audio beside
//! it, is depacketized by retina.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream as _;
use retina::client::{Demuxed, Described, PacketItem, Playing, Session, SessionOptions, SetupOptions};
use retina::codec::{CodecItem, FrameFormat, ParameterSetInsertion, aac, h26x};
use retina::rtcp::ReceivedCompoundPacket;
use retina::rtp::ReceivedPacket;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::assembler::{AssembledFrame, ReceivedRtpPacket};
use super::auth_challenge;
use super::camera::{
    Camera, CameraError, RtspStep, alternative_rtsp_transport, first_line_of_error, to_retina_transport,
};
use super::connect::resolve_and_probe_tcp_connection;
use super::incompatibility::{CameraIncompatibility, IgnoredInputStats};
use super::packet_silence::PacketSilenceDetector;
use super::relay::CameraRelayEndpoint;
use super::retina_errors::{self, RetinaErrorVerdict};
use super::tracks::{CameraTrack, TrackSelection, select_best_tracks};
use crate::config::RtspTransport;
use millstream_core::hub::name::StreamKey;
use millstream_core::media::clock::SenderNtpMapper;
use millstream_core::media::{Codec, MediaKind};
use millstream_core::sources::frame_source::{AnnouncedTrack, NalFraming};

/// A playing session with a camera.
pub(super) struct RtspClient {
    media: RetinaMedia,
    /// Video first, if there is any.
    tracks: Vec<CameraTrack>,
    unsupported_tracks: Vec<String>,
    /// Whether a pipeline could convert the audio, which this session leaves out.
    lacks_convertible_audio: bool,
    ntp_clock: SenderNtpMapper,
    /// Events that were read but not returned yet.
    ready_events: VecDeque<CameraEvent>,
    stream: StreamKey,
    ignored_input: IgnoredInputStats,
    /// Errors in a row without an item in between.
    consecutive_retina_errors: u32,
    /// When the last frame was assembled, or the session began.
    last_frame_at: Instant,
}

/// Frames depacketized by retina, or packets.
enum RetinaMedia {
    Frames(Box<Demuxed>),
    Packets(Box<Session<Playing>>),
}

/// A frame or a sender report of a camera.
pub(super) enum CameraEvent {
    Frame(CameraFrame),
    /// The media of this track with timestamp `pts_in_clock_ticks` was captured `at`, on the clock that all tracks of the camera
    /// share (RFC 3550 §6.4.1).
    CaptureTime {
        kind: MediaKind,
        time: u64,
        at: std::time::Instant,
        standing_delay: Duration,
    },
}

/// A frame of the camera.
pub(super) struct CameraFrame {
    pub(super) kind: MediaKind,
    /// In units of the clock rate of its codec.
    pub(super) codec_time: u64,
    pub(super) bytes: Bytes,
    pub(super) received_at: std::time::Instant,
}

/// Timeout of DESCRIBE, each SETUP, and PLAY.
const RTSP_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A session whose packets make no frame for this long ends: longer than any usual key frame interval.
const NO_COMPLETE_FRAME_TIMEOUT: Duration = Duration::from_secs(120);

/// Retina reads a request of the camera without waking its task for what follows, so it is polled at this interval.
const RETINA_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// More errors in a row without reading anything mean that retina makes no progress.
const MAX_CONSECUTIVE_RETINA_ERRORS: u32 = 10_000;

/// The frame format requested from retina.
const LENGTH_PREFIXED_FRAME_FORMAT: FrameFormat = FrameFormat {
    h26x_framing: h26x::Framing::FourByteLength,
    parameter_set_insertion: ParameterSetInsertion::EachKeyFrame,
    aac_framing: aac::Framing::Raw,
};

/// Returns the first request to a camera, through a relay if the camera needs one.
async fn build_describe_request_with_relay(
    camera: &Camera,
    uses_rtsp_relay: bool,
) -> Result<impl Future<Output = Result<Session<Described>, retina::Error>> + use<>, CameraError> {
    let (url, credentials, user_agent) = if uses_rtsp_relay {
        let relay = CameraRelayEndpoint::start(camera).await?;
        (relay.url, None, relay.user_agent)
    } else {
        (
            camera.url_with_host_replaced(),
            camera.read_credentials()?,
            "millstream".to_owned(),
        )
    };
    let options = SessionOptions::default()
        .creds(credentials)
        .session_group(camera.session_group.clone())
        .user_agent(user_agent);
    Ok(Session::describe(
        url,
        camera.policies.apply_to_session_options(options),
    ))
}

impl RtspClient {
    /// Connects, selects the tracks, and starts playing.
    pub(super) async fn connect_and_play(camera: &Camera, stream: &StreamKey) -> Result<Self, CameraError> {
        let camera = &resolve_and_probe_tcp_connection(camera).await?;
        match Self::connect_and_play_once(camera, stream, camera.uses_rtsp_relay()).await {
            // The relay forwards no datagrams.
            Err(CameraError::UnsupportedTransport) if camera.uses_rtsp_relay() => {
                Self::connect_and_play_once(camera, stream, false).await
            }
            connected => connected,
        }
    }

    async fn connect_and_play_once(
        camera: &Camera,
        stream: &StreamKey,
        uses_rtsp_relay: bool,
    ) -> Result<Self, CameraError> {
        let has_credentials = camera.has_credentials();
        let describing = build_describe_request_with_relay(camera, uses_rtsp_relay).await?;
        let described = with_rtsp_request_timeout(RtspStep::Describe, has_credentials, describing).await;
        let mut session = match described {
            Err(CameraError::CredentialsRejected)
                if auth_challenge::probe_for_unusual_challenge(camera, uses_rtsp_relay).await =>
            {
                return Err(CameraError::Incompatible(CameraIncompatibility::UnusualAuthentication));
            }
            described => described?,
        };
        let silence = || PacketSilenceDetector::new(camera.silence_timeout, now());
        let TrackSelection {
            mut tracks,
            unsupported_tracks: left_out,
            has_convertible_audio,
        } = select_best_tracks(&session, &silence);
        let has_audio = tracks.iter().any(|track| track.kind() == MediaKind::Audio);
        let lacks_convertible_audio = has_convertible_audio && !has_audio;
        let fallback = camera.fallback.as_ref();
        if lacks_convertible_audio && fallback.is_some_and(|fallback| fallback.can_convert_audio(now())) {
            return Err(CameraError::Incompatible(CameraIncompatibility::Audio));
        }
        if tracks.is_empty() {
            return Err(CameraError::NoSupportedTracks(left_out));
        }
        set_up_tracks_dropping_refused(camera, uses_rtsp_relay, &mut session, &mut tracks).await?;
        let playing = with_rtsp_request_timeout(
            RtspStep::Play,
            has_credentials,
            session.play(camera.policies.retina_play_options()),
        )
        .await?;
        let media = if tracks.iter().any(|track| track.announced_track.codec == Codec::Jpeg) {
            let demuxed = playing.demuxed();
            RetinaMedia::Frames(Box::new(
                demuxed.map_err(|error| CameraError::from_retina(RtspStep::Play, &error, has_credentials))?,
            ))
        } else {
            RetinaMedia::Packets(Box::new(playing))
        };
        Ok(Self {
            media,
            tracks,
            unsupported_tracks: left_out,
            lacks_convertible_audio,
            ntp_clock: SenderNtpMapper::default(),
            ready_events: VecDeque::new(),
            stream: stream.clone(),
            ignored_input: IgnoredInputStats::default(),
            consecutive_retina_errors: 0,
            last_frame_at: Instant::now(),
        })
    }

    /// Returns the tracks of the session.
    pub(super) fn selected_tracks(&self) -> Vec<AnnouncedTrack> {
        self.tracks.iter().map(|track| track.announced_track).collect()
    }

    /// Returns the tracks that the session has but that are not read.
    pub(super) fn unsupported_tracks(&self) -> &[String] {
        &self.unsupported_tracks
    }

    /// Returns whether a pipeline could convert the audio, which this session leaves out.
    pub(super) fn leaves_out_convertible_audio(&self) -> bool {
        self.lacks_convertible_audio
    }

    /// Returns what was passed over so far.
    pub(super) fn ignored_input(&self) -> &IgnoredInputStats {
        &self.ignored_input
    }

    /// Returns how many frames of a track got the time of their arrival, because the camera's timestamps stood still.
    pub(super) fn arrival_timestamped_frame_count(&self, kind: MediaKind) -> u64 {
        let track = self.tracks.iter().find(|track| track.kind() == kind);
        track.map_or(0, |track| {
            track.assembler.arrival_timestamped_frame_count() + track.frame_timestamps.arrival_timestamped_frame_count()
        })
    }

    /// Returns the parameter sets of the session description.
    pub(super) fn sdp_parameter_sets(&self) -> Vec<Bytes> {
        self.tracks
            .iter()
            .flat_map(|track| track.parameter_sets.clone())
            .collect()
    }

    /// Returns how NAL units are delimited in its frames.
    pub(super) fn nal_framing(&self) -> NalFraming {
        match self.media {
            RetinaMedia::Frames(_) => NalFraming::LengthPrefixed,
            RetinaMedia::Packets(_) => NalFraming::AnnexB,
        }
    }

    /// Waits for the next frame or sender report.
    pub(super) async fn next_frame_or_capture_time(&mut self) -> Result<CameraEvent, CameraError> {
        loop {
            let deadline = self.enforce_media_timeouts()?;
            if let Some(event) = self.ready_events.pop_front() {
                // Audio goes on where video makes no frame.
                let main = self.tracks.first().map(CameraTrack::kind);
                if matches!(&event, CameraEvent::Frame(frame) if Some(frame.kind) == main) {
                    self.last_frame_at = Instant::now();
                }
                return Ok(event);
            }
            // A timeout is handled by the next `enforce_media_timeouts`.
            let mut wake = deadline.min(Instant::now() + RETINA_POLL_INTERVAL);
            for track in &self.tracks {
                if let Some(due) = track.assembler.poll_timeout() {
                    wake = wake.min(Instant::from_std(due));
                }
            }
            if let Ok(read) = timeout_at(wake, self.read_retina_item_into_events()).await {
                read?;
            }
            self.complete_timed_out_frames();
        }
    }

    /// Fails if the first track (video, or audio if there is no video) is silent. Missing audio beside video is only
    /// logged, once. Returns when to check again.
    fn enforce_media_timeouts(&mut self) -> Result<Instant, CameraError> {
        let now = Instant::now();
        let mut deadline = self.last_frame_at + NO_COMPLETE_FRAME_TIMEOUT;
        if now >= deadline {
            return Err(CameraError::NoDecodableFrames);
        }
        for (index, track) in self.tracks.iter_mut().enumerate() {
            let silent_at = Instant::from_std(track.packet_silence.deadline());
            match (index, now >= silent_at) {
                (0, true) if track.packet_silence.has_received_packet() => {
                    return Err(CameraError::StoppedSendingMedia);
                }
                (0, true) => return Err(CameraError::NoMedia),
                (0, false) => deadline = deadline.min(silent_at),
                (_, true) if !track.packet_silence_logged => {
                    track.packet_silence_logged = true;
                    let codec = track.announced_track.codec.name();
                    warn!(stream = %self.stream, codec, "RTSP camera stopped sending audio; its video continues");
                }
                _ => {}
            }
        }
        Ok(deadline)
    }

    async fn read_retina_item_into_events(&mut self) -> Result<(), CameraError> {
        match &mut self.media {
            RetinaMedia::Frames(demuxed) => {
                let item = poll_fn(|context| Pin::new(&mut **demuxed).poll_next(context)).await;
                match item.ok_or(CameraError::SessionEnded)? {
                    Ok(item) => self.queue_depacketized_frame(item),
                    Err(error) => self.tolerate_or_return_retina_error(&error)?,
                }
            }
            RetinaMedia::Packets(session) => {
                // After a request of the camera, retina returns `Pending` although there may be more to read.
                let item = poll_fn(|context| match Pin::new(&mut **session).poll_next(context) {
                    Poll::Pending => Pin::new(&mut **session).poll_next(context),
                    ready => ready,
                });
                match item.await.ok_or(CameraError::SessionEnded)? {
                    Ok(PacketItem::Rtp(packet)) => self.assemble_rtp_packet(packet),
                    Ok(PacketItem::Rtcp(compound)) => self.handle_rtcp(&compound),
                    Ok(_) => {}
                    Err(error) => self.tolerate_or_return_retina_error(&error)?,
                }
            }
        }
        Ok(())
    }

    /// Takes a frame that retina depacketized.
    fn queue_depacketized_frame(&mut self, item: CodecItem) {
        self.consecutive_retina_errors = 0;
        let (index, time, received, bytes) = match item {
            CodecItem::VideoFrame(frame) => {
                let (index, time) = (frame.stream_id(), frame.timestamp().timestamp());
                (index, time, frame.end_ctx().received(), frame.into_data().into())
            }
            CodecItem::AudioFrame(frame) => {
                let (index, time) = (frame.stream_id(), frame.timestamp().timestamp());
                (
                    index,
                    time,
                    frame.ctx().received(),
                    Bytes::copy_from_slice(frame.data()),
                )
            }
            CodecItem::Rtcp(compound) => return self.handle_rtcp(&compound),
            _ => return,
        };
        let Some(track) = self.tracks.iter_mut().find(|track| track.index == index) else {
            return;
        };
        let time = CameraTrack::to_unsigned_timestamp(time);
        track.record_packet_arrival(time);
        let time = track.frame_timestamps.correct(time, received);
        self.ready_events.push_back(CameraEvent::Frame(CameraFrame {
            kind: track.kind(),
            codec_time: track.to_codec_clock_rate(time),
            bytes,
            received_at: received,
        }));
    }

    fn assemble_rtp_packet(&mut self, packet: ReceivedPacket) {
        self.consecutive_retina_errors = 0;
        let index = packet.stream_id();
        let Some(track) = self.tracks.iter_mut().find(|track| track.index == index) else {
            return;
        };
        if packet.header().payload_type() != track.payload_type {
            let what = || "RTP packets of an unannounced payload type".to_owned();
            return count_ignored_input(&mut self.ignored_input, &self.stream, 1, &what);
        }
        let time = CameraTrack::to_unsigned_timestamp(packet.timestamp().timestamp());
        track.record_packet_arrival(time);
        let packet = ReceivedRtpPacket::new(packet, time, track.to_codec_clock_rate(time));
        let received = packet.received_at;
        let before = track.assembler.ignored_payload_count();
        let mut frames = Vec::new();
        track.assembler.push_packet(packet, &mut frames);
        let odd = track.assembler.ignored_payload_count() - before;
        if odd > 0 {
            count_ignored_input(&mut self.ignored_input, &self.stream, odd, &|| {
                track.assembler.ignored_payload_summary().1
            });
        }
        self.ready_events
            .extend(frames.into_iter().map(|frame| track.to_frame_event(frame, received)));
    }

    /// Completes frames whose last packet arrived a while ago.
    fn complete_timed_out_frames(&mut self) {
        let now = now();
        for track in &mut self.tracks {
            if track.assembler.poll_timeout().is_none_or(|due| due > now) {
                continue;
            }
            let mut frames = Vec::new();
            track.assembler.handle_timeout(now, &mut frames);
            self.ready_events
                .extend(frames.into_iter().map(|frame| track.to_frame_event(frame, now)));
        }
    }

    /// Passes over what can be passed over.
    fn tolerate_or_return_retina_error(&mut self, error: &retina::Error) -> Result<(), CameraError> {
        let line = first_line_of_error(error);
        self.consecutive_retina_errors += 1;
        if self.consecutive_retina_errors > MAX_CONSECUTIVE_RETINA_ERRORS {
            return Err(CameraError::from_retina(RtspStep::Receive, error, true));
        }
        match retina_errors::classify_retina_error(&line) {
            RetinaErrorVerdict::Fatal(error) => return Err(error),
            RetinaErrorVerdict::Ignore => {}
            RetinaErrorVerdict::PacketRefused(refusal) => {
                // The error does not say which track it is of: the first one counts unless it goes on.
                let now = now();
                for track in &mut self.tracks {
                    if track.packet_rejections.record_rejection(now) {
                        return Err(CameraError::Incompatible(refusal));
                    }
                }
            }
        }
        count_ignored_input(&mut self.ignored_input, &self.stream, 1, &|| line.clone());
        Ok(())
    }

    fn handle_rtcp(&mut self, compound: &ReceivedCompoundPacket) {
        self.consecutive_retina_errors = 0;
        let report = compound
            .pkts()
            .find_map(|packet| packet.as_sender_report().ok().flatten());
        let track = self.tracks.iter_mut().find(|track| track.index == compound.stream_id());
        if let (Some(report), Some(time), Some(track)) = (report, compound.rtp_timestamp(), track) {
            let ntp = report.ntp_timestamp().0;
            // A clock that is not set, or that stands still, says nothing.
            if track.last_sender_report_ntp.replace(ntp) == Some(ntp) {
                return;
            }
            let Some(at) = self
                .ntp_clock
                .observe_ntp_and_convert_to_instant(ntp, compound.ctx().received())
            else {
                return;
            };
            let time = CameraTrack::to_unsigned_timestamp(time.timestamp());
            let corrected = track
                .assembler
                .correct_source_timestamp(time, track.to_codec_clock_rate(time));
            if let Some((time, is_codec_time)) = corrected {
                self.ready_events.push_back(CameraEvent::CaptureTime {
                    kind: track.kind(),
                    time: if is_codec_time {
                        time
                    } else {
                        track.to_codec_clock_rate(time)
                    },
                    at,
                    standing_delay: self.ntp_clock.standing_delay(),
                });
            }
        }
    }
}

fn count_ignored_input(passed_over: &mut IgnoredInputStats, stream: &StreamKey, count: u64, what: &dyn Fn() -> String) {
    passed_over.count += count;
    passed_over.last_at = Some(now());
    if passed_over.first_description.is_none() {
        let what = passed_over.first_description.insert(what());
        info!(%stream, what, "unusable data of the RTSP camera ignored; further occurrences are counted, but not logged");
    }
}

impl CameraTrack {
    fn record_packet_arrival(&mut self, time: u64) {
        self.packet_silence.on_packet(time, now());
        self.packet_silence_logged = false;
        self.packet_rejections.reset();
    }

    fn to_frame_event(&self, frame: AssembledFrame, received: std::time::Instant) -> CameraEvent {
        let time = if frame.is_codec_time {
            frame.time
        } else {
            self.to_codec_clock_rate(frame.time)
        };
        CameraEvent::Frame(CameraFrame {
            kind: self.kind(),
            codec_time: time,
            bytes: frame.bytes,
            received_at: received,
        })
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Sets up the tracks. Removes audio that the camera refuses beside video.
async fn set_up_tracks_dropping_refused(
    camera: &Camera,
    uses_rtsp_relay: bool,
    session: &mut Session<Described>,
    tracks: &mut Vec<CameraTrack>,
) -> Result<(), CameraError> {
    let has_credentials = camera.has_credentials();
    let mut transport = camera.transport;
    let mut position = 0;
    while let Some(track) = tracks.get(position) {
        if transport == RtspTransport::Udp && camera.allowed_networks.has_network_restriction() {
            return Err(CameraError::Incompatible(CameraIncompatibility::UncheckedUdpAddress));
        }
        let options = SetupOptions::default()
            .transport(to_retina_transport(transport))
            .frame_format(LENGTH_PREFIXED_FRAME_FORMAT);
        let setup = session.setup(track.index, options);
        match with_rtsp_request_timeout(RtspStep::Setup, has_credentials, setup).await {
            Ok(()) => position += 1,
            // Some cameras support one transport only (RFC 2326 §11.3.13).
            Err(CameraError::UnsupportedTransport)
                if position == 0 && transport == camera.transport && !uses_rtsp_relay =>
            {
                transport = alternative_rtsp_transport(transport);
            }
            Err(CameraError::StepFailed { .. } | CameraError::UnsupportedTransport | CameraError::NotFound)
                if position > 0 =>
            {
                tracks.remove(position);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn with_rtsp_request_timeout<T>(
    step: RtspStep,
    has_credentials: bool,
    work: impl Future<Output = Result<T, retina::Error>>,
) -> Result<T, CameraError> {
    match timeout(RTSP_REQUEST_TIMEOUT, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(match retina_errors::incompatibility_from_setup_error(step, &error) {
            Some(refusal) if has_credentials || refusal != CameraIncompatibility::UnusualAuthentication => {
                CameraError::Incompatible(refusal)
            }
            _ => CameraError::from_retina(step, &error, has_credentials),
        }),
        Err(_) => Err(CameraError::Timeout(step)),
    }
}
