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
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where events come from.
pub(super) trait EventSource: Send + Unpin {
    /// Returns the events since the last call, in the format of the standard; `None` at the end of the stream.
    fn new_events(&mut self) -> Option<String>;

    /// Returns ready when [`Self::new_events`] may return something else than at its last call, also at the end.
    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

/// The body of a response with events.
pub(super) struct EventBody<S> {
    source: S,
    keep_alive: Interval,
    is_first: bool,
}

impl<S: EventSource> EventBody<S> {
    pub(super) fn new(source: S) -> Self {
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once.
        keep_alive.reset();
        Self {
            source,
            keep_alive,
            is_first: true,
        }
    }
}

impl<S: EventSource> HttpBody for EventBody<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            let is_first = std::mem::take(&mut self.is_first);
            let is_silent = self.keep_alive.poll_tick(context).is_ready();
            if !is_first && !is_silent {
                std::task::ready!(self.source.poll_changed(context));
            }
            let Some(mut text) = self.source.new_events() else {
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

    use millstream_core::hub::changes::{Changes, Listener, Topic};
    use tokio::time::Instant;

    use super::*;

    struct Scripted {
        changes: Listener,
        events: VecDeque<Option<String>>,
        /// How often events were asked for.
        asked: usize,
    }

    impl EventSource for Scripted {
        fn new_events(&mut self) -> Option<String> {
            self.asked += 1;
            self.events.pop_front().unwrap_or(Some(String::new()))
        }

        fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
            self.changes.poll_changed(context)
        }
    }

    async fn next(body: &mut EventBody<Scripted>) -> Option<Bytes> {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
        frame.ok().and_then(|frame| frame.into_data().ok())
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_read_after_a_change_and_not_before() {
        let changes = Arc::new(Changes::default());
        let events = [
            Some("first".to_owned()),
            Some(String::new()),
            Some("second".to_owned()),
            None,
        ];
        let mut body = EventBody::new(Scripted {
            changes: changes.listen([Topic::Everything]),
            events: events.into(),
            asked: 0,
        });
        let start = Instant::now();
        assert_eq!(next(&mut body).await.as_deref(), Some(&b"first"[..]));
        assert_eq!(start.elapsed(), Duration::ZERO);
        // Nothing changes: one comment each 15 s, and the source was asked for nothing else.
        assert_eq!(next(&mut body).await.as_deref(), Some(&b":\n\n"[..]));
        assert_eq!((start.elapsed(), body.source.asked), (KEEP_ALIVE, 2));
        changes.notify(&Topic::Everything);
        assert_eq!(next(&mut body).await.as_deref(), Some(&b"second"[..]));
        assert_eq!(start.elapsed(), KEEP_ALIVE);
        changes.notify(&Topic::Everything);
        assert_eq!(next(&mut body).await, None);
        assert_eq!((start.elapsed(), body.source.asked), (KEEP_ALIVE, 4));
    }
}
