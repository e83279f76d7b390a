//! A reader of a stream that is no viewer: it gets the packets of the fan-out, and reads from the rings what it missed.

use std::sync::{Arc, Weak};

use super::mailbox::Mailbox;
use crate::media::packet::Packet;

/// The packets of one turn.
pub type Batch = Arc<[Arc<Packet>]>;

/// Where a tap gets its packets: bounded, and never waited for (invariant 5).
pub type TapMailbox = Mailbox<Batch>;

/// The taps of a stream. One that was dropped is forgotten with the next batch.
#[derive(Default)]
pub struct Taps(Vec<Weak<TapMailbox>>);

impl Taps {
    /// One more.
    pub fn add(&mut self, tap: &Arc<TapMailbox>) {
        self.0.push(Arc::downgrade(tap));
    }

    /// Those that are still read.
    pub fn open(&mut self) -> Vec<Arc<TapMailbox>> {
        let mut open = Vec::new();
        self.0.retain(|tap| tap.upgrade().map(|tap| open.push(tap)).is_some());
        open
    }

    /// Whether nobody reads any more.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|tap| tap.strong_count() == 0)
    }
}

impl std::fmt::Debug for Taps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} taps", self.0.len())
    }
}
