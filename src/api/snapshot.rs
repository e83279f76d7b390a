//! A picture of a stream: its last key frame, as a JPEG that a worker makes of it. The worker ends soon after.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamName;
use crate::hub::tap::{TapMailbox, Tapped};
use crate::media::repair::Repair;
use crate::media::{Codec, Format, Kind};
use crate::signalling::Signalling;
use crate::signalling::problem::Problem;

/// Snapshots that are made at the same time; more wait their turn.
static SLOTS: Semaphore = Semaphore::const_new(2);

/// How long one may take: a worker starts, and a key frame may have to come.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between looks, should nothing wake us.
const LOOK: Duration = Duration::from_millis(200);

/// Makes one.
pub async fn take(signalling: &Signalling, name: &StreamName) -> Result<Response, Problem> {
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
        name.repaired(Repair::Jpeg)
    };
    if codec != Codec::Jpeg && !hub.can_repair(codec, Repair::Jpeg) {
        let detail = "this machine cannot make pictures of this codec: `millstream doctor` says what is missing";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no_snapshots", detail));
    }
    let taking = async {
        let _slot = SLOTS.acquire().await.ok()?;
        picture(signalling, &from).await
    };
    let late = || {
        let detail = "no picture came in time";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "snapshot_late", detail).retry_after(2)
    };
    let picture = timeout(PATIENCE, taking).await.ok().flatten().ok_or_else(late)?;
    Ok(([(header::CONTENT_TYPE, "image/jpeg")], picture).into_response())
}

/// The newest picture of a stream of JPEG, when there is one.
async fn picture(signalling: &Signalling, name: &StreamName) -> Option<Bytes> {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapMailbox> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let tapped = Tapped::open(signalling.media.hub(), name, &tap);
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
        let _ = timeout(LOOK, changed.notified()).await;
        tap.take(&mut VecDeque::new());
    }
}
