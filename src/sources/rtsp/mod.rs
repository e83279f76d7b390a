//! RTSP client (RFC 2326) for cameras.
//!
//! [`play`] runs one session with a camera; [`fetch`](super::fetch) reconnects after it has ended. Video is H.264,
//! H.265 or Motion JPEG, audio is Opus, G.711 or AAC. Other tracks are left out and named in the status. A camera that
//! this client cannot read goes by the pipeline `rtsp` ([`fallback`]), which also supports what this client does not:
//! RTSPS, redirects, multicast and a jitter buffer.

use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::camera::{Camera, CameraError};
use self::client::{Client, Event};
use self::fallback::{Fallback, PIPELINE};
use self::refusal::{PassedOver, Refusal};
use super::fetch::attached::{Attached, random_id};
use super::fetch::directory::Entry;
use super::fetch::error::FetchError;
use millstream_core::media::Kind;
use millstream_core::sources::frame_source::{FanOut, FrameSource};

mod assembler;
mod by_pipeline;
pub mod camera;
mod challenge;
mod client;
mod connect;
pub mod fallback;
pub mod policies;
pub mod refusal;
mod sdp;
mod silence;
mod tracks;
mod trouble;

/// Runs one session with the camera until it fails. `live` is called once the stream receives frames.
pub async fn play<P: FanOut>(
    camera: &Camera,
    entry: &Entry,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let refusal = camera.fallback.as_ref().and_then(Fallback::refusal);
    entry.note(|status| status.fallback = refusal.map(Refusal::text));
    if let (Some(fallback), Some(refusal)) = (&camera.fallback, refusal) {
        return by_pipeline::play(camera, fallback, refusal, (&entry.stream, plane), live).await;
    }
    let mut since = None;
    let mut on_live = |tracks: &dyn std::fmt::Debug| {
        since = Some(Instant::now());
        live(tracks);
    };
    let error = by_client(camera, entry, plane, &mut on_live).await;
    let (Some(fallback), FetchError::Camera(camera_error)) = (&camera.fallback, &error) else {
        return error;
    };
    let by_camera = matches!(camera_error, CameraError::Ended | CameraError::Failed { .. });
    let lasted = since.filter(|_| by_camera).map(|since: Instant| since.elapsed());
    let is_too_often = fallback.session_ended(lasted);
    let refusal = match camera_error {
        CameraError::Refused(refusal) => Some(*refusal),
        _ => is_too_often.then_some(Refusal::ShortSessions),
    };
    let Some(refusal) = refusal else { return error };
    fallback.choose(refusal);
    let (stream, reason) = (&entry.stream, refusal.text());
    warn!(%stream, reason, pipeline = PIPELINE, "camera is read by a pipeline from now on");
    FetchError::Rerouted
}

async fn by_client<P: FanOut>(
    camera: &Camera,
    entry: &Entry,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let stream = &entry.stream;
    if let Err(error) = camera.allowed.check(&camera.host()).await {
        return error.into();
    }
    let mut client = match Client::connect(camera, stream).await {
        Ok(client) => client,
        Err(error) => return error.into(),
    };
    if entry.status().left_out != client.left_out() {
        for track in client.left_out() {
            info!(%stream, track, "camera track left out: codec not supported");
        }
    }
    entry.note(|status| {
        status.left_out = client.left_out().to_vec();
        status.passed_over = PassedOver::default();
    });
    let Ok(feed) = FrameSource::new(stream.clone(), random_id(), &client.tracks()) else {
        return CameraError::NoTracks.into();
    };
    let mut attached = Attached { feed, plane };
    attached.feed.remember(&client.parameter_sets());
    let (mut playing, mut noted) = (false, 0);
    loop {
        let event = match client.next().await {
            Ok(event) => event,
            Err(error) => return error.into(),
        };
        if client.passed_over().count != noted {
            noted = client.passed_over().count;
            entry.note(|status| status.passed_over = client.passed_over().clone());
        }
        let feed = &mut attached.feed;
        let frame = match event {
            Event::Frame(frame) => frame,
            Event::Captured { kind, time, at } => {
                feed.record_capture_time(kind, time, at);
                continue;
            }
        };
        let taken = match frame.kind {
            Kind::Video => feed.take_video(frame.received, frame.time, &frame.bytes, client.framing()),
            Kind::Audio => feed.take_audio(frame.received, frame.time, &frame.bytes),
        };
        if let Err(error) = taken {
            debug!(%stream, %error, "camera frame dropped");
        }
        if !plane.feed(feed) {
            return FetchError::Displaced;
        }
        if !playing && feed.is_attached() {
            playing = true;
            let names: Vec<&str> = client.tracks().iter().map(|track| track.codec.name()).collect();
            live(&names);
        }
    }
}
