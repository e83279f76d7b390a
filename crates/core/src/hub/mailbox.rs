//! Messages to a shard from other shards and the control plane: a bounded queue that never blocks its writers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock::{LockRank, RankedGuard, RankedMutex};

/// A queue with one reader. `wake_reader` is called when it becomes non-empty.
pub struct Mailbox<T> {
    queue: RankedMutex<VecDeque<T>>,
    capacity: usize,
    overflowed: AtomicBool,
    wake_reader: Box<dyn Fn() + Send + Sync>,
}

/// Extra capacity for control messages; their number is bounded by the number of sessions.
const RESERVED_CONTROL_MESSAGE_SLOTS: usize = 1 << 16;

impl<T> Mailbox<T> {
    /// Creates an empty mailbox for at most `capacity` media messages.
    pub fn new(capacity: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            queue: RankedMutex::new(LockRank::Mailbox, VecDeque::new()),
            capacity,
            overflowed: AtomicBool::new(false),
            wake_reader: Box::new(wake),
        }
    }

    /// Enqueues a control message.
    ///
    /// # Errors
    ///
    /// Returns the message if the mailbox and its control reserve are full (invariant 5).
    pub fn push_control(&self, message: T) -> Result<(), T> {
        self.push_if_below_limit(self.capacity + RESERVED_CONTROL_MESSAGE_SLOTS, message)
    }

    /// Enqueues a best-effort message. Anybody may cause any number of these, so they may use only half of the
    /// capacity; the rest is reserved for media.
    ///
    /// # Errors
    ///
    /// Returns the message if that half is full.
    pub fn push_low_priority(&self, message: T) -> Result<(), T> {
        self.push_if_below_limit(self.capacity / 2, message)
    }

    /// Enqueues a message that may be lost, as long as the reader learns of the loss.
    ///
    /// # Errors
    ///
    /// Returns the message if the mailbox is full; [`Self::take_overflow_flag`] then reports it to the reader.
    pub(crate) fn push_or_flag_overflow(&self, message: T) -> Result<(), T> {
        self.push_if_below_limit(self.capacity, message)
            .inspect_err(|_| self.overflowed.store(true, Ordering::Release))
    }

    /// Whether a lossy message was dropped since the last call.
    pub fn take_overflow_flag(&self) -> bool {
        self.overflowed.swap(false, Ordering::AcqRel)
    }

    fn push_if_below_limit(&self, limit: usize, message: T) -> Result<(), T> {
        let was_empty = {
            let mut queue = self.lock_queue();
            if queue.len() >= limit {
                return Err(message);
            }
            queue.push_back(message);
            queue.len() == 1
        };
        if was_empty {
            (self.wake_reader)();
        }
        Ok(())
    }

    /// Number of queued messages.
    pub fn queued_count(&self) -> usize {
        self.lock_queue().len()
    }

    /// Number of queued messages; `None` while another thread holds the lock.
    pub fn try_queued_count(&self) -> Option<usize> {
        self.queue.try_lock().map(|queue| queue.len())
    }

    /// Takes all messages, swapping in an empty queue so that its memory is reused.
    pub fn take_all_messages(&self, into: &mut VecDeque<T>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.lock_queue(), into);
    }

    fn lock_queue(&self) -> RankedGuard<'_, VecDeque<T>> {
        // Ignoring a poisoned lock is safe: no operation on the queue can be left half done.
        self.queue.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn best_effort_messages_leave_room_for_the_rest() {
        let mailbox = Mailbox::new(4, || {});
        assert_eq!((0..9).filter(|n| mailbox.push_low_priority(*n).is_ok()).count(), 2);
        assert_eq!((0..9).filter(|n| mailbox.push_or_flag_overflow(*n).is_ok()).count(), 2);
        assert_eq!(mailbox.push_control(9), Ok(()));
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back_and_wakes_once() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = wakes.clone();
        let mailbox = Mailbox::new(2, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(mailbox.push_or_flag_overflow(1), Ok(()));
        assert_eq!(mailbox.push_or_flag_overflow(2), Ok(()));
        assert!(!mailbox.take_overflow_flag());
        assert_eq!(mailbox.push_or_flag_overflow(3), Err(3));
        assert!(mailbox.take_overflow_flag() && !mailbox.take_overflow_flag());
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        let mut taken = VecDeque::new();
        mailbox.take_all_messages(&mut taken);
        assert_eq!(taken, [1, 2]);
        assert_eq!(mailbox.push_control(4), Ok(()));
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
    }
}
