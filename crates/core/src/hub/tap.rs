//! A reader of a stream that is not a viewer, e.g. HLS: it receives the packets of the fan-out and reads missed ones
//! from the rings.

use std::sync::{Arc, Weak};

use super::Hub;
use super::mailbox::Mailbox;
use super::name::StreamKey;
use super::ring::Entries;
use super::stream::Stream;

/// Bounded queue through which a tap receives packets; writers never block (invariant 5).
pub type TapQueue = Mailbox<Entries>;

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

/// The taps of a stream.
#[derive(Default)]
pub struct Taps(Vec<Weak<TapQueue>>);

impl Taps {
    /// Adds a tap.
    pub fn add(&mut self, tap: &Arc<TapQueue>) {
        self.0.push(Arc::downgrade(tap));
    }

    /// Removes a tap.
    pub fn remove(&mut self, tap: &Arc<TapQueue>) {
        self.0.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(tap)));
    }

    /// Returns the taps that still have a reader.
    pub fn open(&mut self) -> Vec<Arc<TapQueue>> {
        let mut open = Vec::new();
        self.0.retain(|tap| tap.upgrade().map(|tap| open.push(tap)).is_some());
        open
    }

    /// Whether no tap has a reader any more.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|tap| tap.strong_count() == 0)
    }
}

impl std::fmt::Debug for Taps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} taps", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
