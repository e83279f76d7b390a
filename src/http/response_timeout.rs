//! Response timeout of HTTP/2: a response whose client leaves it unread is reset, while the other streams of the
//! connection continue. With HTTP/1, the write timeout of the connection does this.
//!
//! A client that opens no window (RFC 9113 §5.2) stops a response without stopping the connection. Hyper then keeps the
//! body and does not poll it, so the task that sends the response is ended from outside.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::http2_idle::OpenHttp2StreamGuard;
use crate::telemetry::{HttpCounters, ReachedHttpLimit};

/// Size of the pieces that a body is sent in. At most one of them is queued for a client that does not read.
const MAX_BODY_CHUNK_BYTES: usize = 16 * 1024;

/// A response that is obsolete after this time, as an extension of it: media of a live stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseObsoleteAfter(pub Duration);

/// How far a response was sent.
#[derive(Clone, Copy, Debug, Default)]
struct ResponseProgress {
    /// Since when a piece waits for the client; `None` if the client waits for the gateway.
    unread_since: Option<Instant>,
    obsolete_at: Option<Instant>,
}

tokio::task_local! {
    /// Progress of the response that the current task sends.
    static RESPONSE_PROGRESS: Arc<watch::Sender<ResponseProgress>>;
}

/// Runs the streams of HTTP/2 connections, each in its own task.
#[derive(Clone, Debug)]
pub(super) struct Http2StreamExecutor {
    pub(super) unread_timeout: Duration,
    pub(super) counters: Arc<HttpCounters>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Http2StreamExecutor {
    fn execute(&self, stream: F) {
        let progress = Arc::new(watch::Sender::new(ResponseProgress::default()));
        let (limit, counters) = (self.unread_timeout, self.counters.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = RESPONSE_PROGRESS.scope(progress.clone(), stream) => {}
                // Dropping the stream resets it (CANCEL).
                () = wait_until_expired(&progress, limit) => counters.count_rejection(ReachedHttpLimit::ResponseUnread),
            }
        });
    }
}

/// Completes when a response was left unread for `limit`, or is unread and obsolete.
async fn wait_until_expired(progress: &watch::Sender<ResponseProgress>, limit: Duration) {
    let mut changes = progress.subscribe();
    loop {
        let ResponseProgress {
            unread_since,
            obsolete_at,
        } = *changes.borrow_and_update();
        // `changed` cannot fail: the caller holds the sender.
        let Some(since) = unread_since else {
            let _ = changes.changed().await;
            continue;
        };
        let deadline = obsolete_at.map_or(since + limit, |at| at.min(since + limit));
        if timeout_at(deadline, changes.changed()).await.is_err() {
            return;
        }
    }
}

/// The body of an HTTP/2 response. It is sent in pieces of at most [`MAX_BODY_CHUNK_BYTES`] bytes, which are copies: what is queued for
/// the client keeps no segment of a stream in memory.
#[derive(Debug)]
pub(super) struct Http2ResponseBody {
    body: Body,
    /// The rest of a frame of `body`.
    unsent: Bytes,
    progress: Option<Arc<watch::Sender<ResponseProgress>>>,
    _open_stream: OpenHttp2StreamGuard,
}

impl Http2ResponseBody {
    /// Makes the body of the response that the current task sends.
    pub(super) fn new(body: Body, obsolete: Option<ResponseObsoleteAfter>, stream: OpenHttp2StreamGuard) -> Self {
        let progress = RESPONSE_PROGRESS.try_with(Arc::clone).ok();
        if let Some(progress) = &progress {
            let now = Instant::now();
            progress.send_replace(ResponseProgress {
                unread_since: Some(now),
                obsolete_at: obsolete.map(|ResponseObsoleteAfter(time)| now + time),
            });
        }
        Self {
            body,
            unsent: Bytes::new(),
            progress,
            _open_stream: stream,
        }
    }

    fn next_chunk(&mut self) -> Frame<Bytes> {
        let piece = self.unsent.split_to(self.unsent.len().min(MAX_BODY_CHUNK_BYTES));
        Frame::data(Bytes::copy_from_slice(&piece))
    }

    fn set_unread_since(&self, unread_since: Option<Instant>) {
        if let Some(progress) = &self.progress {
            progress.send_modify(|progress| progress.unread_since = unread_since);
        }
    }
}

impl hyper::body::Body for Http2ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.unsent.is_empty() {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            if polled.is_pending() {
                self.set_unread_since(None);
            }
            match ready!(polled) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.unsent = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        self.set_unread_since(Some(Instant::now()));
        Poll::Ready(Some(Ok(self.next_chunk())))
    }

    fn is_end_stream(&self) -> bool {
        self.unsent.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.unsent.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const SECOND: Duration = Duration::from_secs(1);

    async fn expires_after(steps: impl AsyncFnOnce(&watch::Sender<ResponseProgress>)) -> Duration {
        let progress = watch::Sender::new(ResponseProgress::default());
        let begun = Instant::now();
        let steps = async {
            steps(&progress).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = wait_until_expired(&progress, LIMIT) => begun.elapsed(),
            () = steps => unreachable!("it never ends"),
        }
    }

    fn unread(progress: &watch::Sender<ResponseProgress>, is_unread: bool) {
        progress.send_modify(|progress| progress.unread_since = is_unread.then(Instant::now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_expires_when_its_client_does_not_read_it() {
        let after = expires_after(async |progress| unread(progress, true)).await;
        assert_eq!(after, LIMIT);
        // A client that waits for events may wait for any time.
        let after = expires_after(async |progress| {
            for _ in 0..10 {
                unread(progress, true);
                sleep(SECOND).await;
                unread(progress, false);
                sleep(SECOND * 100).await;
            }
            unread(progress, true);
        });
        assert_eq!(after.await, SECOND * 1_010 + LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn media_expires_however_slowly_it_is_read() {
        let after = expires_after(async |progress| {
            progress.send_modify(|progress| progress.obsolete_at = Some(Instant::now() + SECOND * 60));
            loop {
                unread(progress, true);
                sleep(SECOND * 7).await;
            }
        });
        assert_eq!(after.await, SECOND * 60);
    }

    #[tokio::test]
    async fn a_body_is_sent_in_copies_of_its_pieces() {
        use http_body_util::BodyExt as _;
        let bytes: Bytes = (0..100_000u32).map(|n| n as u8).collect::<Vec<_>>().into();
        let stream = super::super::http2_idle::OpenHttp2StreamCounter::default().register_http2_stream();
        let mut body = Http2ResponseBody::new(Body::from(bytes.clone()), None, stream);
        assert_eq!(hyper::body::Body::size_hint(&body).exact(), Some(100_000));
        let mut sent = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.expect("no error").into_data().expect("data");
            assert!((1..=MAX_BODY_CHUNK_BYTES).contains(&piece.len()));
            assert!(
                !bytes.as_ptr_range().contains(&piece.as_ptr()),
                "no reference to the original"
            );
            sent.extend_from_slice(&piece);
            assert_eq!(hyper::body::Body::is_end_stream(&body), sent.len() == bytes.len());
        }
        assert_eq!(sent, bytes);
    }
}
