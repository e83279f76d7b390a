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

use super::activity::OpenStream;
use crate::telemetry::{HttpCounters, Rejection};

/// Size of the pieces that a body is sent in. At most one of them is queued for a client that does not read.
const PIECE: usize = 16 * 1024;

/// A response that is obsolete after this time, as an extension of it: media of a live stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct ObsoleteAfter(pub Duration);

/// How far a response was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Since when a piece waits for the client; `None` if the client waits for the gateway.
    unread_since: Option<Instant>,
    obsolete_at: Option<Instant>,
}

tokio::task_local! {
    /// Progress of the response that the current task sends.
    static PROGRESS: Arc<watch::Sender<Progress>>;
}

/// Runs the streams of HTTP/2 connections, each in its own task.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    pub(super) timeout: Duration,
    pub(super) counters: Arc<HttpCounters>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let progress = Arc::new(watch::Sender::new(Progress::default()));
        let (limit, counters) = (self.timeout, self.counters.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = PROGRESS.scope(progress.clone(), stream) => {}
                // Dropping the stream resets it (CANCEL).
                () = expired(&progress, limit) => counters.rejected(Rejection::ResponseUnread),
            }
        });
    }
}

/// Completes when a response was left unread for `limit`, or is unread and obsolete.
async fn expired(progress: &watch::Sender<Progress>, limit: Duration) {
    let mut changes = progress.subscribe();
    loop {
        let Progress {
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

/// The body of an HTTP/2 response. It is sent in pieces of at most [`PIECE`] bytes, which are copies: what is queued for
/// the client keeps no segment of a stream in memory.
#[derive(Debug)]
pub(super) struct StreamBody {
    body: Body,
    /// The rest of a frame of `body`.
    rest: Bytes,
    progress: Option<Arc<watch::Sender<Progress>>>,
    _stream: OpenStream,
}

impl StreamBody {
    /// Makes the body of the response that the current task sends.
    pub(super) fn new(body: Body, obsolete: Option<ObsoleteAfter>, stream: OpenStream) -> Self {
        let progress = PROGRESS.try_with(Arc::clone).ok();
        if let Some(progress) = &progress {
            let now = Instant::now();
            progress.send_replace(Progress {
                unread_since: Some(now),
                obsolete_at: obsolete.map(|ObsoleteAfter(time)| now + time),
            });
        }
        Self {
            body,
            rest: Bytes::new(),
            progress,
            _stream: stream,
        }
    }

    fn next_piece(&mut self) -> Frame<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Frame::data(Bytes::copy_from_slice(&piece))
    }

    fn record(&self, unread_since: Option<Instant>) {
        if let Some(progress) = &self.progress {
            progress.send_modify(|progress| progress.unread_since = unread_since);
        }
    }
}

impl hyper::body::Body for StreamBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            if polled.is_pending() {
                self.record(None);
            }
            match ready!(polled) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        self.record(Some(Instant::now()));
        Poll::Ready(Some(Ok(self.next_piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
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

    async fn expires_after(steps: impl AsyncFnOnce(&watch::Sender<Progress>)) -> Duration {
        let progress = watch::Sender::new(Progress::default());
        let begun = Instant::now();
        let steps = async {
            steps(&progress).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = expired(&progress, LIMIT) => begun.elapsed(),
            () = steps => unreachable!("it never ends"),
        }
    }

    fn unread(progress: &watch::Sender<Progress>, is_unread: bool) {
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
        let stream = super::super::activity::Activity::default().begin();
        let mut body = StreamBody::new(Body::from(bytes.clone()), None, stream);
        assert_eq!(hyper::body::Body::size_hint(&body).exact(), Some(100_000));
        let mut sent = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.expect("no error").into_data().expect("data");
            assert!((1..=PIECE).contains(&piece.len()));
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
