//! Snapshots of a stream: a worker converts the last key frame to JPEG, which can be converted to PNG. The worker exits
//! soon after.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::control::Control;
use crate::http::problem::Problem;
use millstream_core::hub::changes::Topic;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::tap::{Tap, TapQueue};
use millstream_core::media::transcode::{self, TrackPlan, TranscodeTarget};
use millstream_core::media::{Format, Kind};

/// Limits how many snapshots are made at the same time; others wait.
static SLOTS: Semaphore = Semaphore::const_new(2);

/// Maximum time of a snapshot, which may include the start of a worker and the wait for a key frame.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum width, height and pixels of a snapshot that is converted to PNG: 8K.
const MAX_SIDE: usize = 8_192;
const MAX_PIXELS: usize = 7_680 * 4_320;

/// Image format of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    Jpeg,
    Png,
}

impl Image {
    /// All formats.
    pub const ALL: [Self; 2] = [Self::Jpeg, Self::Png];

    /// Returns the path suffix after the name of the stream.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Jpeg => "/snapshot.jpg",
            Self::Png => "/snapshot.png",
        }
    }
}

/// Makes a snapshot.
pub async fn take(control: &Control, name: &StreamName, image: Image) -> Result<Response, Problem> {
    let hub = control.media.hub();
    let source = hub
        .find(name)
        .and_then(|stream| stream.with(|state| state.source().and_then(|_| state.source_track(Kind::Video))));
    let Some(source) = source else {
        let detail = "the stream is not live or has no video";
        return Err(Problem::new(StatusCode::CONFLICT, "no_picture", detail).retry_after(2));
    };
    let target = TranscodeTarget::Jpeg;
    let can_transcode = hub.can_transcode_to(source.format.codec(), target);
    let from = match transcode::plan(source, target, can_transcode, |track| track.format == Format::Jpeg) {
        TrackPlan::AsIs => StreamKey::from(name),
        TrackPlan::Transcode(target) => name.transcoded(target),
        TrackPlan::Nothing(_) => {
            let detail = "this host cannot make snapshots of this codec: `millstream doctor` lists what is missing";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no_snapshots", detail));
        }
    };
    let taking = async {
        let slot = SLOTS.acquire().await.ok()?;
        Some((newest_frame(control, &from).await?, slot))
    };
    let late = || {
        let detail = "no key frame arrived in time";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "snapshot_late", detail).retry_after(2)
    };
    let (frame, slot) = timeout(SNAPSHOT_TIMEOUT, taking)
        .await
        .ok()
        .flatten()
        .ok_or_else(late)?;
    let (kind, body) = match image {
        Image::Jpeg => ("image/jpeg", frame),
        Image::Png => {
            // The slot is held until the conversion ends, even if the request was cancelled.
            let made = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                as_png(&frame)
            })
            .await;
            let unreadable = || {
                let detail = "the frame is not a valid JPEG";
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_picture", detail)
            };
            ("image/png", made.ok().flatten().ok_or_else(unreadable)?.into())
        }
    };
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

/// Converts a JPEG to PNG. Returns `None` if the input is not a JPEG or is too large.
fn as_png(jpeg: &[u8]) -> Option<Vec<u8>> {
    let options = DecoderOptions::new_safe()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg), options);
    decoder.decode_headers().ok()?;
    let (width, height) = decoder.dimensions()?;
    if width.saturating_mul(height) > MAX_PIXELS {
        return None;
    }
    let pixels = decoder.decode().ok()?;
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    encoder.write_header().ok()?.write_image_data(&pixels).ok()?;
    Some(out)
}

/// Waits for a frame of a JPEG stream and returns the newest one.
async fn newest_frame(control: &Control, key: &StreamKey) -> Option<Bytes> {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapQueue> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let hub = control.media.hub();
    let tapped = Tap::open(hub, key, &tap);
    let mut changes = hub.changes().listen([Topic::Stream(key.name.clone())]);
    loop {
        let newest = tapped.stream.with(|state| {
            let is_jpeg = matches!(state.format(Kind::Video), Some(Format::Jpeg));
            let ring = state.video.ring();
            let newest = ring.key_frame().and_then(|seq| ring.get(seq));
            let newest = newest.filter(|_| is_jpeg && state.source().is_some());
            newest.map(|entry| entry.packet.payload.clone())
        });
        if newest.is_some() {
            return newest;
        }
        tokio::select! {
            () = changed.notified() => {}
            () = changes.changed() => {}
        }
        tap.take(&mut VecDeque::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_images_become_none() {
        for bytes in [&b""[..], b"GIF89a", &[0xff, 0xd8, 0xff], &[0xff; 4_096]] {
            assert_eq!(as_png(bytes), None);
        }
    }
}
