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

use crate::control::ControlPlane;
use crate::http::problem::Problem;
use millstream_core::hub::Hub;
use millstream_core::hub::changes::ChangeTopic;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::tap::{StreamTap, TapQueue};
use millstream_core::media::track_delivery::{self, TrackDelivery, TranscodeTarget};
use millstream_core::media::{CodecFormat, MediaKind};

/// Limits how many snapshots are made at the same time; others wait.
static SNAPSHOT_PERMITS: Semaphore = Semaphore::const_new(2);

/// Maximum time of a snapshot, which may include the start of a worker and the wait for a key frame.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum width, height and pixels of a snapshot that is converted to PNG: 8K.
const MAX_PNG_SIDE_PIXELS: usize = 8_192;
const MAX_PNG_PIXELS: usize = 7_680 * 4_320;

/// Image format of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotFormat {
    Jpeg,
    Png,
}

impl SnapshotFormat {
    /// All formats.
    pub const ALL_FORMATS: [Self; 2] = [Self::Jpeg, Self::Png];

    /// Returns the path suffix after the name of the stream.
    pub fn path_suffix(self) -> &'static str {
        match self {
            Self::Jpeg => "/snapshot.jpg",
            Self::Png => "/snapshot.png",
        }
    }
}

/// Makes a snapshot.
pub async fn take_snapshot(
    control: &ControlPlane,
    name: &StreamName,
    image: SnapshotFormat,
) -> Result<Response, Problem> {
    let hub = control.media_plane.hub();
    let source = hub.find_stream(name).and_then(|stream| {
        stream.with_state(|state| {
            state
                .source()
                .and_then(|_| state.source_format_and_b_frames(MediaKind::Video))
        })
    });
    let Some(source) = source else {
        let detail = "the stream is not live or has no video: retry while it is published with video";
        return Err(Problem::new(StatusCode::CONFLICT, "no_picture", detail).with_retry_after(2));
    };
    let target = TranscodeTarget::Jpeg;
    let can_transcode = hub.can_transcode_codec_to(source.format.codec(), target);
    let from = match track_delivery::choose_track_delivery(source, target, can_transcode, |track| {
        track.format == CodecFormat::Jpeg
    }) {
        TrackDelivery::Passthrough => StreamKey::from(name),
        TrackDelivery::Transcode(target) => {
            control.check_transcode_slot_and_count_refusal(name, target)?;
            name.transcode_key(target)
        }
        TrackDelivery::Unavailable(_) => {
            let detail = "this host cannot make snapshots of this codec: `millstream doctor` lists what is missing";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no_snapshots", detail));
        }
    };
    let taking = async {
        let slot = SNAPSHOT_PERMITS.acquire().await.ok()?;
        Some((wait_for_newest_jpeg_frame(hub, &from).await?, slot))
    };
    let late = || {
        let detail = "the snapshot was not ready in time: it waits for other snapshots, a worker process and a key frame; try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "snapshot_late", detail).with_retry_after(2)
    };
    let (frame, slot) = timeout(SNAPSHOT_TIMEOUT, taking)
        .await
        .ok()
        .flatten()
        .ok_or_else(late)?;
    let (kind, body) = match image {
        SnapshotFormat::Jpeg => ("image/jpeg", frame),
        SnapshotFormat::Png => {
            // The slot is held until the conversion ends, even if the request was cancelled.
            let made = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                jpeg_to_png(&frame)
            })
            .await;
            let unreadable = || {
                let detail = "the JPEG image of the snapshot cannot be converted to PNG, because it is invalid or too \
                              large: request `/snapshot.jpg`, which returns it unconverted";
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_picture", detail)
            };
            ("image/png", made.ok().flatten().ok_or_else(unreadable)?.into())
        }
    };
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

/// Returns a frame of the video of a stream as a JPEG, as soon as there is one; `None` if it cannot be transcoded.
pub(super) async fn newest_jpeg_of_stream(hub: &Hub, name: &StreamName) -> Option<Bytes> {
    let source = hub.find_stream(name)?;
    let source = source.with_state(|state| state.source_format_and_b_frames(MediaKind::Video))?;
    let can_transcode = hub.can_transcode_codec_to(source.format.codec(), TranscodeTarget::Jpeg);
    let planned = track_delivery::choose_track_delivery(source, TranscodeTarget::Jpeg, can_transcode, |track| {
        track.format == CodecFormat::Jpeg
    });
    match planned {
        TrackDelivery::Passthrough => wait_for_newest_jpeg_frame(hub, &StreamKey::from(name)).await,
        TrackDelivery::Transcode(target) => wait_for_newest_jpeg_frame(hub, &name.transcode_key(target)).await,
        TrackDelivery::Unavailable(_) => None,
    }
}

/// Converts a JPEG to PNG. Returns `None` if the input is not a JPEG or is too large.
fn jpeg_to_png(jpeg: &[u8]) -> Option<Vec<u8>> {
    let options = DecoderOptions::new_safe()
        .set_max_width(MAX_PNG_SIDE_PIXELS)
        .set_max_height(MAX_PNG_SIDE_PIXELS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg), options);
    decoder.decode_headers().ok()?;
    let (width, height) = decoder.dimensions()?;
    if width.saturating_mul(height) > MAX_PNG_PIXELS {
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
async fn wait_for_newest_jpeg_frame(hub: &Hub, key: &StreamKey) -> Option<Bytes> {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapQueue> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let tapped = StreamTap::open(hub, key, &tap);
    let mut changes = hub.change_notifier().listen([ChangeTopic::Stream(key.name.clone())]);
    loop {
        let newest = tapped.stream.with_state(|state| {
            let is_jpeg = matches!(state.format(MediaKind::Video), Some(CodecFormat::Jpeg));
            let ring = state.video.ring();
            let newest = ring.newest_key_frame_seq().and_then(|seq| ring.get(seq));
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
        tap.take_all_messages(&mut VecDeque::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_images_become_none() {
        for bytes in [&b""[..], b"GIF89a", &[0xff, 0xd8, 0xff], &[0xff; 4_096]] {
            assert_eq!(jpeg_to_png(bytes), None);
        }
    }
}
