//! A reader of a stream that is not a viewer, e.g. HLS: it receives the packets of the fan-out and reads missed ones
//! from the rings.

use std::sync::Arc;

use super::Hub;
use super::name::StreamKey;
use super::stream::Stream;
pub use super::tap_queue::TapQueue;

/// A tap on a stream. Dropping it releases the stream, which is removed if it is otherwise unused.
pub struct StreamTap<'a> {
    hub: &'a Hub,
    pub stream: Arc<Stream>,
    queue: Arc<TapQueue>,
}

impl<'a> StreamTap<'a> {
    /// Opens a tap on a stream.
    pub fn open(hub: &'a Hub, key: impl Into<StreamKey>, queue: &Arc<TapQueue>) -> Self {
        Self {
            hub,
            stream: hub.open_and_update_stream(key, |state| state.add_tap(queue)),
            queue: queue.clone(),
        }
    }
}

impl Drop for StreamTap<'_> {
    fn drop(&mut self) {
        self.hub
            .update_stream_and_remove_if_unused(&self.stream, |state| state.remove_tap(&self.queue));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::mailbox::Mailbox;
    use crate::hub::name::StreamName;

    #[test]
    fn a_stream_that_is_no_longer_tapped_is_forgotten() {
        let hub = Hub::default();
        let (one, other) = (
            StreamName::parse("one").expect("a name"),
            StreamName::parse("other").expect("a name"),
        );
        // One mailbox reads two streams and releases one of them.
        let mailbox = Arc::new(Mailbox::new(1, || {}));
        let first = StreamTap::open(&hub, &one, &mailbox);
        let second = StreamTap::open(&hub, &other, &mailbox);
        assert!(
            [&first, &second]
                .iter()
                .all(|tap| tap.stream.with_state(|state| state.has_consumers()))
        );
        drop(first);
        assert!(hub.find_stream(&one).is_none() && hub.find_stream(&other).is_some());
        drop(second);
        assert!(hub.streams().is_empty());
    }
}
