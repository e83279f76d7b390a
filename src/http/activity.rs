//! Whether a client of HTTP/2 asks for anything: a connection without a stream is worth nothing, and costs as much as one
//! with some. For HTTP/1 the deadline of the next header says the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::timeout;

/// The streams of one connection that are open: from the header of the request to the end of the response.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    open: Arc<watch::Sender<usize>>,
}

/// A stream; it is over when this is dropped.
#[derive(Debug)]
pub struct OpenStream(Activity);

impl Activity {
    /// A stream begins.
    pub fn begin(&self) -> OpenStream {
        self.open.send_modify(|open| *open += 1);
        OpenStream(self.clone())
    }

    /// Comes when there was no stream for the time of `first` at the beginning, or for the time of `later` after one.
    pub async fn idle(&self, first: Duration, later: Duration) {
        let mut open = self.open.subscribe();
        let mut patience = first;
        loop {
            // The other end of the channel is `self`.
            if *open.borrow_and_update() > 0 {
                let _ = open.changed().await;
            } else if timeout(patience, open.changed()).await.is_err() {
                return;
            }
            patience = later;
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// The body of a response, whose end is that of its stream.
#[derive(Debug)]
pub struct StreamBody {
    body: Body,
    _stream: OpenStream,
}

impl StreamBody {
    pub fn new(body: Body, stream: OpenStream) -> Self {
        Self { body, _stream: stream }
    }
}

impl hyper::body::Body for StreamBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const FIRST: Duration = Duration::from_secs(5);
    const LATER: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    async fn idle_after(activity: &Activity, requests: impl Future<Output = ()>) -> Duration {
        let begun = Instant::now();
        let requests = async {
            requests.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = activity.idle(FIRST, LATER) => begun.elapsed(),
            () = requests => unreachable!("it never ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_without_a_first_request_and_after_the_last() {
        assert_eq!(idle_after(&Activity::default(), async {}).await, FIRST);
        let activity = Activity::default();
        let requests = async {
            for _ in 0..5 {
                sleep(SECOND * 3).await;
                // So short that nobody sees it open.
                drop(activity.begin());
            }
        };
        assert_eq!(idle_after(&activity, requests).await, SECOND * 15 + LATER);
    }

    #[tokio::test(start_paused = true)]
    async fn one_open_stream_is_enough() {
        let activity = Activity::default();
        let requests = async {
            let long = activity.begin();
            for _ in 0..100 {
                drop(activity.begin());
                sleep(SECOND * 30).await;
            }
            drop(long);
        };
        assert_eq!(idle_after(&activity, requests).await, SECOND * 3_000 + LATER);
    }
}
