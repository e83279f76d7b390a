//! RTSP client (RFC 2326) for cameras.
//!
//! [`run_camera_source`] runs one session with a camera; [`fetch`](super::fetch) reconnects after it has ended. Video is H.264,
//! H.265 or Motion JPEG, audio is Opus, G.711 or AAC. Other tracks are left out and named in the status. A camera that
//! this client cannot read goes by the pipeline `rtsp` ([`fallback`]), which also supports what this client does not:
//! RTSPS, redirects, multicast and a jitter buffer. The [`relay`] authenticates, and corrects a few RTSP messages that
//! retina cannot cope with.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use self::camera::{Camera, CameraError};
use self::client::{CameraEvent, CameraFrame, RtspClient};
use self::fallback::CameraFallback;
use self::incompatibility::{CameraIncompatibility, IgnoredInputStats};
use super::fetch::attached_source::{AttachedSource, random_session_id};
use super::fetch::error::FetchError;
use super::fetch::registry::RegisteredSource;
use crate::config::RtspTransport;
use crate::pipeline::worker_slots::WorkerSlotReservation;
use millstream_core::hub::name::StreamKey;
use millstream_core::media::MediaKind;
use millstream_core::sources::frame_source::{FrameSink, FrameSource};

mod assembler;
mod auth_challenge;
pub mod back_channel;
mod by_pipeline;
pub mod camera;
mod client;
mod connect;
pub mod fallback;
mod garbage;
pub mod incompatibility;
mod lenient_challenge;
mod message;
mod packet_silence;
pub mod policies;
mod relay;
mod relay_corrections;
mod relay_messages;
mod relay_rtp;
mod retina_errors;
mod sdp;
mod tracks;

/// Runs one session with the camera until it fails. `live` is called once the stream receives frames.
pub async fn run_camera_source<P: FrameSink>(
    camera: &Camera,
    entry: &RegisteredSource,
    plane: &P,
    reservation: &WorkerSlotReservation,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let incompatibility = camera.fallback.as_ref().and_then(CameraFallback::reason);
    entry.modify_status_without_notifying(|status| {
        status.fallback_reason = incompatibility.map(CameraIncompatibility::text)
    });
    let uses_pipeline = camera.fallback.as_ref().is_some_and(CameraFallback::uses_pipeline);
    let by_pipeline = incompatibility.filter(|_| uses_pipeline);
    if let (Some(fallback), Some(incompatibility)) = (&camera.fallback, by_pipeline) {
        entry.modify_status_without_notifying(|status| status.unsupported_tracks.clear());
        let target = (&entry.stream, plane);
        return by_pipeline::run_camera_pipeline(camera, fallback, incompatibility, target, reservation, live).await;
    }
    reservation.release();
    let mut since = None;
    let mut on_live = |tracks: &dyn std::fmt::Debug| {
        since = Some(Instant::now());
        live(tracks);
    };
    let error = catch_panic(
        &entry.stream,
        run_rtsp_client_session(camera, entry, plane, &mut on_live),
    )
    .await;
    let (Some(fallback), FetchError::Camera(camera_error)) = (&camera.fallback, &error) else {
        return error;
    };
    // The relay answers keepalives: a camera that does not take them stops sending instead of refusing them.
    let is_stopped_behind_relay = camera.uses_rtsp_relay() && matches!(camera_error, CameraError::StoppedSendingMedia);
    let by_camera =
        is_stopped_behind_relay || matches!(camera_error, CameraError::SessionEnded | CameraError::StepFailed { .. });
    let lasted = since.filter(|_| by_camera).map(|since: Instant| since.elapsed());
    let is_too_often = fallback.record_session_end_and_check_short_session_limit(lasted);
    // One that was read through the relay already gets nothing new by it.
    let can_relay = !camera.uses_rtsp_relay() && camera.transport == RtspTransport::Tcp;
    let incompatibility = match camera_error {
        CameraError::Incompatible(found) => Some(*found),
        _ if is_too_often => Some(CameraIncompatibility::ShortSessions),
        CameraError::Timeout(_)
        | CameraError::StepFailed { .. }
        | CameraError::NoMedia
        | CameraError::StoppedSendingMedia
        | CameraError::NoDecodableFrames
        | CameraError::SessionEnded
            if fallback.uses_relay() =>
        {
            fallback.record_relay_session(since.is_some())
        }
        _ => None,
    };
    let Some(incompatibility) = incompatibility else {
        return error;
    };
    let by_relay = can_relay && incompatibility.is_corrected_by_relay();
    fallback.activate_fallback(incompatibility, by_relay);
    let (stream, reason) = (&entry.stream, incompatibility.text());
    if by_relay {
        warn!(%stream, reason, "RTSP camera is now read through a relay inside the gateway, which corrects what the camera sends");
    } else {
        let (_, pipeline) = fallback.pipeline_for_incompatibility(incompatibility);
        warn!(%stream, reason, pipeline, "RTSP camera is now read by a GStreamer pipeline: the built-in RTSP client cannot read it");
    }
    FetchError::ReaderSwitched
}

/// Runs a session. The library panics at some answers, such as a `Session` header with a space behind the identifier.
async fn catch_panic(stream: &StreamKey, session: impl Future<Output = FetchError>) -> FetchError {
    let mut session = pin!(session);
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| session.as_mut().poll(context))).unwrap_or_else(|_| {
            error!(%stream, "RTSP client panicked at an answer of the camera, a bug: please report it with this log");
            Poll::Ready(CameraError::Incompatible(CameraIncompatibility::NonstandardResponse).into())
        })
    })
    .await
}

async fn run_rtsp_client_session<P: FrameSink>(
    camera: &Camera,
    entry: &RegisteredSource,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let mut client = match RtspClient::connect_and_play(camera, &entry.stream).await {
        Ok(client) => client,
        Err(error) => return error.into(),
    };
    report_unsupported_tracks_and_reset_ignored_input(entry, &client);
    let mut first = None;
    loop {
        let renew_after = camera
            .fallback
            .as_ref()
            .and_then(CameraFallback::camera_session_renewal_age);
        let renewed = open_replacement_session(camera, entry, renew_after);
        let audio_retry = wait_for_audio_retry(camera, &client);
        let session = CameraSession {
            client: &mut client,
            registered_source: entry,
            media_plane: plane,
        };
        let played = tokio::select! {
            played = session.forward_frames(first.take(), renewed, live) => played,
            () = audio_retry => Err(CameraError::Incompatible(CameraIncompatibility::Audio).into()),
        };
        (client, first) = match played {
            Ok((next, frame)) => (next, Some(frame)),
            Err(error) => return error,
        };
        debug!(stream = %entry.stream, "RTSP session replaced by a new one, before the camera ends it");
    }
}

/// Waits until a session that leaves out audio has to end so that converting it is tried again, if ever.
fn wait_for_audio_retry(camera: &Camera, client: &RtspClient) -> impl Future<Output = ()> + use<> {
    let fallback = camera
        .fallback
        .as_ref()
        .filter(|_| client.leaves_out_convertible_audio());
    let after = fallback.and_then(|fallback| fallback.time_until_audio_retry(Instant::now().into_std()));
    async move {
        match after {
            Some(after) => sleep(after).await,
            None => std::future::pending().await,
        }
    }
}

fn report_unsupported_tracks_and_reset_ignored_input(entry: &RegisteredSource, client: &RtspClient) {
    if entry.status().unsupported_tracks != client.unsupported_tracks() {
        for track in client.unsupported_tracks() {
            info!(stream = %entry.stream, track, "track of the RTSP camera not forwarded: its codec or its parameters are not supported");
        }
    }
    entry.modify_status_without_notifying(|status| {
        status.unsupported_tracks = client.unsupported_tracks().to_vec();
        status.ignored_input = IgnoredInputStats::default();
    });
}

/// Opens another session after a while and waits for its first frame of video. Never returns without `after`, or if the
/// camera does not allow it.
async fn open_replacement_session(
    camera: &Camera,
    entry: &RegisteredSource,
    after: Option<Duration>,
) -> (RtspClient, CameraFrame) {
    let Some(after) = after else {
        return std::future::pending().await;
    };
    sleep(after).await;
    let Ok(mut client) = RtspClient::connect_and_play(camera, &entry.stream).await else {
        return std::future::pending().await;
    };
    loop {
        match client.next_frame_or_capture_time().await {
            Ok(CameraEvent::Frame(frame)) if frame.kind == MediaKind::Video => return (client, frame),
            Ok(_) => {}
            Err(_) => return std::future::pending().await,
        }
    }
}

/// A session that feeds its stream.
struct CameraSession<'a, P: FrameSink> {
    client: &'a mut RtspClient,
    registered_source: &'a RegisteredSource,
    media_plane: &'a P,
}

impl<P: FrameSink> CameraSession<'_, P> {
    /// Feeds the stream until the session fails or is replaced. `first` is a frame that was read already.
    async fn forward_frames(
        self,
        mut first: Option<CameraFrame>,
        renewed: impl Future<Output = (RtspClient, CameraFrame)>,
        live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
    ) -> Result<(RtspClient, CameraFrame), FetchError> {
        let (client, plane, stream) = (self.client, self.media_plane, &self.registered_source.stream);
        let feed = FrameSource::new(stream.clone(), random_session_id(), &client.selected_tracks())
            .map_err(|_| CameraError::NoSupportedTracks(Vec::new()))?;
        let mut attached = AttachedSource {
            frame_source: feed,
            media_plane: plane,
        };
        attached.frame_source.set_parameter_sets(&client.sdp_parameter_sets());
        let (mut playing, mut noted) = (first.is_some(), 0);
        let mut renewed = std::pin::pin!(renewed);
        loop {
            let event = match first.take() {
                Some(frame) => CameraEvent::Frame(frame),
                None => tokio::select! {
                    event = client.next_frame_or_capture_time() => event?,
                    next = &mut renewed => return Ok(next),
                },
            };
            if client.ignored_input().count != noted {
                noted = client.ignored_input().count;
                self.registered_source
                    .modify_status_without_notifying(|status| status.ignored_input = client.ignored_input().clone());
            }
            let feed = &mut attached.frame_source;
            let frame = match event {
                CameraEvent::Frame(frame) => frame,
                CameraEvent::CaptureTime {
                    kind,
                    time,
                    at,
                    standing_delay,
                } => {
                    feed.record_capture_time(kind, time, at, standing_delay);
                    continue;
                }
            };
            feed.set_arrival_timed_frame_count(frame.kind, client.arrival_timestamped_frame_count(frame.kind));
            let taken = match frame.kind {
                MediaKind::Video => feed.packetize_and_queue_video(
                    frame.received_at,
                    frame.codec_time,
                    &frame.bytes,
                    client.nal_framing(),
                ),
                MediaKind::Audio => feed.packetize_and_queue_audio(frame.received_at, frame.codec_time, &frame.bytes),
            };
            if let Err(error) = taken {
                debug!(%stream, %error, "frame of the RTSP camera dropped: it cannot be packetized");
            }
            if !plane.publish_frames_unless_displaced(feed) {
                return Err(FetchError::StreamOccupied);
            }
            if !playing && feed.is_attached() {
                playing = true;
                let names: Vec<&str> = client
                    .selected_tracks()
                    .iter()
                    .map(|track| track.codec.name())
                    .collect();
                live(&names);
            }
        }
    }
}
