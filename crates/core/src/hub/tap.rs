//! A reader of a stream that is not a viewer, e.g. HLS: it receives the packets of the fan-out and reads missed ones
//! from the rings.

use std::sync::Arc;

use super::Hub;
use super::name::StreamKey;
use super::stream::Stream;
pub use super::tap_queue::{TapQueue, Taps};

/// A tap on a stream. Dropping it releases the stream, which is removed if it is otherwise unused.
pub struct Tap<'a> {
    hub: &'a Hub,
    pub stream: Arc<Stream>,
    mailbox: Arc<TapQueue>,
}

impl<'a> Tap<'a> {
    /// Opens a tap on a stream.
    pub fn open(hub: &'a Hub, key: impl Into<StreamKey>, mailbox: &Arc<TapQueue>) -> Self {
        Self {
            hub,
            stream: hub.open_with(key, |state| state.tap(mailbox)),
            mailbox: mailbox.clone(),
        }
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        self.hub.release(&self.stream, |state| state.untap(&self.mailbox));
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
        let first = Tap::open(&hub, &one, &mailbox);
        let second = Tap::open(&hub, &other, &mailbox);
        assert!(
            [&first, &second]
                .iter()
                .all(|tap| tap.stream.with(|state| state.is_watched()))
        );
        drop(first);
        assert!(hub.find(&one).is_none() && hub.find(&other).is_some());
        drop(second);
        assert!(hub.streams().is_empty());
    }
}
