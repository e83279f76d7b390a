//! RTSP client (RFC 2326) for cameras.
//!
//! [`play`] runs one session with a camera; [`fetch`](super::fetch) reconnects after it has ended. Video is H.264,
//! H.265 or Motion JPEG, audio is Opus, G.711 or AAC. Other tracks are left out and named in the status. A camera that
//! this client cannot read goes by the pipeline `rtsp` ([`fallback`]), which also supports what this client does not:
//! RTSPS, redirects, multicast and a jitter buffer.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use self::camera::{Camera, CameraError};
use self::client::{Client, Event, Frame};
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
    if let Err(error) = camera.allowed.check(&camera.host()).await {
        return error.into();
    }
    let mut client = match Client::connect(camera, &entry.stream).await {
        Ok(client) => client,
        Err(error) => return error.into(),
    };
    note_left_out(entry, &client);
    let mut first = None;
    loop {
        let renew_after = camera.fallback.as_ref().and_then(Fallback::renew_after);
        let renewed = renewal(camera, entry, renew_after);
        let session = Session {
            client: &mut client,
            entry,
            plane,
        };
        (client, first) = match session.play(first.take(), renewed, live).await {
            Ok((next, frame)) => (next, Some(frame)),
            Err(error) => return error,
        };
        debug!(stream = %entry.stream, "RTSP session nears its end: switched to a new one");
    }
}

fn note_left_out(entry: &Entry, client: &Client) {
    if entry.status().left_out != client.left_out() {
        for track in client.left_out() {
            info!(stream = %entry.stream, track, "track of the RTSP camera not forwarded: codec not supported");
        }
    }
    entry.note(|status| {
        status.left_out = client.left_out().to_vec();
        status.passed_over = PassedOver::default();
    });
}

/// Opens another session after a while and waits for its first frame of video. Never returns without `after`, or if the
/// camera does not allow it.
async fn renewal(camera: &Camera, entry: &Entry, after: Option<Duration>) -> (Client, Frame) {
    let Some(after) = after else {
        return std::future::pending().await;
    };
    sleep(after).await;
    let Ok(mut client) = Client::connect(camera, &entry.stream).await else {
        return std::future::pending().await;
    };
    loop {
        match client.next().await {
            Ok(Event::Frame(frame)) if frame.kind == Kind::Video => return (client, frame),
            Ok(_) => {}
            Err(_) => return std::future::pending().await,
        }
    }
}

/// A session that feeds its stream.
struct Session<'a, P: FanOut> {
    client: &'a mut Client,
    entry: &'a Entry,
    plane: &'a P,
}

impl<P: FanOut> Session<'_, P> {
    /// Feeds the stream until the session fails or is replaced. `first` is a frame that was read already.
    async fn play(
        self,
        mut first: Option<Frame>,
        renewed: impl Future<Output = (Client, Frame)>,
        live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
    ) -> Result<(Client, Frame), FetchError> {
        let (client, plane, stream) = (self.client, self.plane, &self.entry.stream);
        let feed =
            FrameSource::new(stream.clone(), random_id(), &client.tracks()).map_err(|_| CameraError::NoTracks)?;
        let mut attached = Attached { feed, plane };
        attached.feed.remember(&client.parameter_sets());
        let (mut playing, mut noted) = (first.is_some(), 0);
        let mut renewed = std::pin::pin!(renewed);
        loop {
            let event = match first.take() {
                Some(frame) => Event::Frame(frame),
                None => tokio::select! {
                    event = client.next() => event?,
                    next = &mut renewed => return Ok(next),
                },
            };
            if client.passed_over().count != noted {
                noted = client.passed_over().count;
                self.entry
                    .note(|status| status.passed_over = client.passed_over().clone());
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
                return Err(FetchError::Displaced);
            }
            if !playing && feed.is_attached() {
                playing = true;
                let names: Vec<&str> = client.tracks().iter().map(|track| track.codec.name()).collect();
                live(&names);
            }
        }
    }
}
