//! Detects idle HTTP/2 connections: those without an open stream. HTTP/1 connections have the header read timeout
//! instead.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Counts the open streams of one connection. A stream is open from the request header to the end of the response.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenHttp2StreamCounter {
    open_stream_count: Arc<watch::Sender<usize>>,
}

/// An open stream. Dropping it closes the stream.
#[derive(Debug)]
pub(super) struct OpenHttp2StreamGuard(OpenHttp2StreamCounter);

impl OpenHttp2StreamCounter {
    /// Counts a new stream.
    pub(super) fn register_http2_stream(&self) -> OpenHttp2StreamGuard {
        self.open_stream_count.send_modify(|open| *open += 1);
        OpenHttp2StreamGuard(self.clone())
    }

    /// Completes when the first stream was not opened within `first_stream_timeout`, or when no stream was open for `later_stream_timeout` after
    /// that.
    pub(super) async fn wait_for_idle_timeout(&self, first_stream_timeout: Duration, later_stream_timeout: Duration) {
        let mut open = self.open_stream_count.subscribe();
        let mut idle_timeout = first_stream_timeout;
        loop {
            // `changed` cannot fail: `self` holds the sender.
            if *open.borrow_and_update() > 0 {
                let _ = open.changed().await;
            } else if timeout(idle_timeout, open.changed()).await.is_err() {
                return;
            }
            idle_timeout = later_stream_timeout;
        }
    }
}

impl Drop for OpenHttp2StreamGuard {
    fn drop(&mut self) {
        self.0.open_stream_count.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const FIRST: Duration = Duration::from_secs(5);
    const LATER: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    async fn idle_after(activity: &OpenHttp2StreamCounter, requests: impl Future<Output = ()>) -> Duration {
        let begun = Instant::now();
        let requests = async {
            requests.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = activity.wait_for_idle_timeout(FIRST, LATER) => begun.elapsed(),
            () = requests => unreachable!("it never ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_without_a_first_request_and_after_the_last() {
        assert_eq!(idle_after(&OpenHttp2StreamCounter::default(), async {}).await, FIRST);
        let activity = OpenHttp2StreamCounter::default();
        let requests = async {
            for _ in 0..5 {
                sleep(SECOND * 3).await;
                // Too short to be observed as open.
                drop(activity.register_http2_stream());
            }
        };
        assert_eq!(idle_after(&activity, requests).await, SECOND * 15 + LATER);
    }

    #[tokio::test(start_paused = true)]
    async fn one_open_stream_is_enough() {
        let activity = OpenHttp2StreamCounter::default();
        let requests = async {
            let long = activity.register_http2_stream();
            for _ in 0..100 {
                drop(activity.register_http2_stream());
                sleep(SECOND * 30).await;
            }
            drop(long);
        };
        assert_eq!(idle_after(&activity, requests).await, SECOND * 3_000 + LATER);
    }
}
