//! A picture of a stream: its last key frame, as a JPEG that a worker makes of it, or that as a PNG. The worker ends soon
//! after.

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

use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamName;
use crate::hub::tap::{Tap, TapQueue};
use crate::media::transcode::TranscodeTarget;
use crate::media::{Codec, Format, Kind};
use crate::signalling::Signalling;
use crate::signalling::problem::Problem;

/// Snapshots that are made at the same time; more wait their turn.
static SLOTS: Semaphore = Semaphore::const_new(2);

/// How long one may take: a worker starts, and a key frame may have to come.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between looks, should nothing wake us.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Width, height and pixels of a picture that is made a PNG, at most: 8K.
const MAX_SIDE: usize = 8_192;
const MAX_PIXELS: usize = 7_680 * 4_320;

/// How a picture is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    Jpeg,
    Png,
}

impl Image {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Jpeg, Self::Png];

    /// What follows the name of a stream.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Jpeg => "/snapshot.jpg",
            Self::Png => "/snapshot.png",
        }
    }
}

/// Makes one.
pub async fn take(signalling: &Signalling, name: &StreamName, image: Image) -> Result<Response, Problem> {
    let hub = signalling.media.hub();
    let format = hub.find(name).and_then(|stream| {
        let state = stream.lock();
        state.source()?;
        state.format(Kind::Video)
    });
    let Some(format) = format else {
        let detail = "the stream is not live, or has no picture";
        return Err(Problem::new(StatusCode::CONFLICT, "no_picture", detail).retry_after(2));
    };
    let codec = format.codec();
    let from = if codec == Codec::Jpeg {
        name.clone()
    } else {
        name.transcoded(TranscodeTarget::Jpeg)
    };
    if codec != Codec::Jpeg && !hub.can_transcode_to(codec, TranscodeTarget::Jpeg) {
        let detail = "this machine cannot make pictures of this codec: `millstream doctor` says what is missing";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no_snapshots", detail));
    }
    let taking = async {
        let slot = SLOTS.acquire().await.ok()?;
        Some((picture(signalling, &from).await?, slot))
    };
    let late = || {
        let detail = "no picture came in time";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "snapshot_late", detail).retry_after(2)
    };
    let (picture, slot) = timeout(PATIENCE, taking).await.ok().flatten().ok_or_else(late)?;
    let (kind, picture) = match image {
        Image::Jpeg => ("image/jpeg", picture),
        Image::Png => {
            // The slot is kept until it is made, also where nobody waits for it any more.
            let made = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                as_png(&picture)
            })
            .await;
            let unreadable = || {
                let detail = "the picture that came cannot be read";
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_picture", detail)
            };
            ("image/png", made.ok().flatten().ok_or_else(unreadable)?.into())
        }
    };
    Ok(([(header::CONTENT_TYPE, kind)], picture).into_response())
}

/// The same picture as a PNG. `None` for what is no JPEG, or too large: a camera may send anything.
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

/// The newest picture of a stream of JPEG, when there is one.
async fn picture(signalling: &Signalling, name: &StreamName) -> Option<Bytes> {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapQueue> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let tapped = Tap::open(signalling.media.hub(), name, &tap);
    loop {
        {
            let state = tapped.stream.lock();
            let is_jpeg = matches!(state.format(Kind::Video), Some(Format::Jpeg));
            let ring = &state.video.ring;
            let newest = ring.key_frame().and_then(|seq| ring.get(seq));
            if let Some(packet) = newest.filter(|_| is_jpeg && state.source().is_some()) {
                return Some(packet.payload.clone());
            }
        }
        let _ = timeout(POLL_INTERVAL, changed.notified()).await;
        tap.take(&mut VecDeque::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_picture_becomes_none() {
        for bytes in [&b""[..], b"GIF89a", &[0xff, 0xd8, 0xff], &[0xff; 4_096]] {
            assert_eq!(as_png(bytes), None);
        }
    }
}
