//! Server-sent events (HTML standard §9.2): a response body that asks for new events at an interval.

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
}

/// The body of a response with events.
pub(super) struct EventBody<S> {
    source: S,
    ticks: Interval,
    keep_alive_ticks: u32,
    silent_ticks: u32,
}

impl<S: EventSource> EventBody<S> {
    /// Asks `source` for events at each `period`.
    pub(super) fn new(source: S, period: Duration) -> Self {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            source,
            ticks,
            keep_alive_ticks: KEEP_ALIVE.div_duration_f64(period) as u32,
            silent_ticks: 0,
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
            std::task::ready!(self.ticks.poll_tick(context));
            let Some(mut text) = self.source.new_events() else {
                return Poll::Ready(None);
            };
            self.silent_ticks += 1;
            if text.is_empty() && self.silent_ticks >= self.keep_alive_ticks {
                text.push_str(":\n\n");
            }
            if !text.is_empty() {
                self.silent_ticks = 0;
                return Poll::Ready(Some(Ok(Frame::data(text.into()))));
            }
        }
    }
}
