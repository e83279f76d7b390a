//! Server-sent events (HTML standard §9.2): a response body whose source is asked for new events when something changed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// A comment is sent after this time without an event, so that proxies keep the connection open.
const SSE_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Where events come from.
pub(super) trait SseEventProducer: Send + Unpin {
    /// Returns the events since the last call, in the format of the standard; `None` at the end of the stream.
    fn drain_new_events_as_sse_text(&mut self) -> Option<String>;

    /// Returns ready when [`Self::drain_new_events_as_sse_text`] may return something else than at its last call, also at the end.
    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

/// The body of a response with events.
pub(super) struct SseBody<S> {
    event_producer: S,
    keep_alive: Interval,
    is_first_poll: bool,
}

impl<S: SseEventProducer> SseBody<S> {
    pub(super) fn new(source: S) -> Self {
        let mut keep_alive = interval(SSE_KEEP_ALIVE_INTERVAL);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once.
        keep_alive.reset();
        Self {
            event_producer: source,
            keep_alive,
            is_first_poll: true,
        }
    }
}

impl<S: SseEventProducer> HttpBody for SseBody<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            let is_first = std::mem::take(&mut self.is_first_poll);
            let is_silent = self.keep_alive.poll_tick(context).is_ready();
            if !is_first && !is_silent {
                std::task::ready!(self.event_producer.poll_changed(context));
            }
            let Some(mut text) = self.event_producer.drain_new_events_as_sse_text() else {
                return Poll::Ready(None);
            };
            if text.is_empty() && is_silent {
                text.push_str(":\n\n");
            }
            if !text.is_empty() {
                self.keep_alive.reset();
                return Poll::Ready(Some(Ok(Frame::data(text.into()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::sync::Arc;

    use millstream_core::hub::changes::{ChangeListener, ChangeNotifier, ChangeTopic};
    use tokio::time::Instant;

    use super::*;

    struct Scripted {
        changes: ChangeListener,
        events: VecDeque<Option<String>>,
        /// How often events were asked for.
        asked: usize,
    }

    impl SseEventProducer for Scripted {
        fn drain_new_events_as_sse_text(&mut self) -> Option<String> {
            self.asked += 1;
            self.events.pop_front().unwrap_or(Some(String::new()))
        }

        fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
            self.changes.poll_changed(context)
        }
    }

    async fn next(body: &mut SseBody<Scripted>) -> Option<Bytes> {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        frame.ok().and_then(|frame| frame.into_data().ok())
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_read_after_a_change_and_not_before() {
        let changes = Arc::new(ChangeNotifier::default());
        let events = [
            Some("first".to_owned()),
            Some(String::new()),
            Some("second".to_owned()),
            None,
        ];
        let mut body = SseBody::new(Scripted {
            changes: changes.listen([ChangeTopic::Everything]),
            events: events.into(),
            asked: 0,
        });
        let start = Instant::now();
        assert_eq!(next(&mut body).await.as_deref(), Some(&b"first"[..]));
        assert_eq!(start.elapsed(), Duration::ZERO);
        // Nothing changes: one comment each 15 s, and the source was asked for nothing else.
        assert_eq!(next(&mut body).await.as_deref(), Some(&b":\n\n"[..]));
        assert_eq!(
            (start.elapsed(), body.event_producer.asked),
            (SSE_KEEP_ALIVE_INTERVAL, 2)
        );
        changes.notify(&ChangeTopic::Everything);
        assert_eq!(next(&mut body).await.as_deref(), Some(&b"second"[..]));
        assert_eq!(start.elapsed(), SSE_KEEP_ALIVE_INTERVAL);
        changes.notify(&ChangeTopic::Everything);
        assert_eq!(next(&mut body).await, None);
        assert_eq!(
            (start.elapsed(), body.event_producer.asked),
            (SSE_KEEP_ALIVE_INTERVAL, 4)
        );
    }
}
