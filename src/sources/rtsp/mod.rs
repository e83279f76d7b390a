//! RTSP client (RFC 2326) for cameras.
//!
//! [`play`] runs one session with a camera; [`fetch`](super::fetch) reconnects after it has ended. Video is H.264,
//! H.265 or Motion JPEG, audio is Opus, G.711 or AAC. Other tracks are ignored and logged. The pipeline `rtsp` supports
//! what this client does not: RTSPS, redirects, multicast and a jitter buffer.

use tracing::debug;

use self::camera::{Camera, CameraError};
use self::client::{Client, Event};
use super::fetch::attached::{Attached, random_id};
use super::fetch::error::FetchError;
use millstream_core::hub::name::StreamName;
use millstream_core::media::Kind;
use millstream_core::sources::frame_source::{FanOut, FrameSource};

pub mod camera;
mod client;
pub mod policies;
mod raw;

/// Runs one session with the camera until it fails. `live` is called once the stream receives frames.
pub async fn play<P: FanOut>(
    camera: &Camera,
    stream: &StreamName,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    if let Err(error) = camera.allowed.check(&camera.host()).await {
        return error.into();
    }
    let mut client = match Client::connect(camera, stream).await {
        Ok(client) => client,
        Err(error) => return error.into(),
    };
    let Ok(feed) = FrameSource::new(stream.clone(), random_id(), &client.tracks()) else {
        return CameraError::NoTracks.into();
    };
    let mut attached = Attached { feed, plane };
    attached.feed.remember(&client.parameter_sets());
    let mut playing = false;
    loop {
        let event = match client.next().await {
            Ok(event) => event,
            Err(error) => return error.into(),
        };
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
