//! The queues of the taps of a stream.

use std::sync::{Arc, Weak};

use super::mailbox::Mailbox;
use super::ring::RingEntries;

/// Bounded queue through which a tap receives packets; writers never block (invariant 5).
pub type TapQueue = Mailbox<RingEntries>;

/// The taps of a stream.
#[derive(Default)]
pub(crate) struct TapList(Vec<Weak<TapQueue>>);

impl TapList {
    /// Adds a tap.
    pub(crate) fn add(&mut self, tap: &Arc<TapQueue>) {
        self.0.push(Arc::downgrade(tap));
    }

    /// Removes a tap.
    pub(crate) fn remove(&mut self, tap: &Arc<TapQueue>) {
        self.0.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(tap)));
    }

    /// Returns the taps that still have a reader.
    pub(crate) fn prune_and_list_queues_with_reader(&mut self) -> Vec<Arc<TapQueue>> {
        let mut open = Vec::new();
        self.0.retain(|tap| tap.upgrade().map(|tap| open.push(tap)).is_some());
        open
    }

    /// Whether no tap has a reader any more.
    pub(crate) fn has_no_reader(&self) -> bool {
        self.0.iter().all(|tap| tap.strong_count() == 0)
    }
}

impl std::fmt::Debug for TapList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} taps", self.0.len())
    }
}
