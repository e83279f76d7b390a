//! What one shard is told by the others and by the control plane: a bounded queue that never blocks its writer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock::{Rank, RankedGuard, RankedMutex};

/// A queue with one reader. `wake` is called when it stops being empty.
pub struct Mailbox<T> {
    queue: RankedMutex<VecDeque<T>>,
    capacity: usize,
    overflowed: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// Messages beyond the capacity that are not media: there are only so many sessions that could cause them.
const CONTROL_RESERVE: usize = 1 << 16;

impl<T> Mailbox<T> {
    /// Makes an empty mailbox for at most `capacity` messages.
    pub fn new(capacity: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            queue: RankedMutex::new(Rank::Mailbox, VecDeque::new()),
            capacity,
            overflowed: AtomicBool::new(false),
            wake: Box::new(wake),
        }
    }

    /// Leaves a message.
    ///
    /// # Errors
    ///
    /// Gives the message back when the mailbox is full, its reserve included (invariant 5).
    pub fn push(&self, message: T) -> Result<(), T> {
        self.push_below(self.capacity + CONTROL_RESERVE, message)
    }

    /// Leaves a message that nobody misses: anybody may cause any number of them, so they get half of the room and the
    /// rest is left to media.
    ///
    /// # Errors
    ///
    /// Gives the message back when the mailbox is full.
    pub fn offer(&self, message: T) -> Result<(), T> {
        self.push_below(self.capacity / 2, message)
    }

    /// Leaves a message that the reader can do without, if it learns that it missed some.
    ///
    /// # Errors
    ///
    /// Gives the message back when the mailbox is full; [`Self::has_overflowed`] will tell the reader.
    pub fn push_lossy(&self, message: T) -> Result<(), T> {
        self.push_below(self.capacity, message)
            .inspect_err(|_| self.overflowed.store(true, Ordering::Release))
    }

    /// Whether a lossy message was lost since the last call.
    pub fn has_overflowed(&self) -> bool {
        self.overflowed.swap(false, Ordering::AcqRel)
    }

    fn push_below(&self, limit: usize, message: T) -> Result<(), T> {
        let was_empty = {
            let mut queue = self.lock();
            if queue.len() >= limit {
                return Err(message);
            }
            queue.push_back(message);
            queue.len() == 1
        };
        if was_empty {
            (self.wake)();
        }
        Ok(())
    }

    /// Messages that nobody has taken yet.
    pub fn waiting(&self) -> usize {
        self.lock().len()
    }

    /// The same; `None` while somebody has the lock.
    pub fn try_waiting(&self) -> Option<usize> {
        self.queue.try_lock().map(|queue| queue.len())
    }

    /// Takes all messages at once, in exchange for an empty queue whose memory is used again.
    pub fn take(&self, into: &mut VecDeque<T>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.lock(), into);
    }

    fn lock(&self) -> RankedGuard<'_, VecDeque<T>> {
        // The queue is whole after a panic of another thread: no operation on it can be left half done.
        self.queue.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn what_nobody_misses_leaves_room_for_the_rest() {
        let mailbox = Mailbox::new(4, || {});
        assert_eq!((0..9).filter(|n| mailbox.offer(*n).is_ok()).count(), 2);
        assert_eq!((0..9).filter(|n| mailbox.push_lossy(*n).is_ok()).count(), 2);
        assert_eq!(mailbox.push(9), Ok(()));
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back_and_wakes_once() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = wakes.clone();
        let mailbox = Mailbox::new(2, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(mailbox.push_lossy(1), Ok(()));
        assert_eq!(mailbox.push_lossy(2), Ok(()));
        assert!(!mailbox.has_overflowed());
        assert_eq!(mailbox.push_lossy(3), Err(3));
        assert!(mailbox.has_overflowed() && !mailbox.has_overflowed());
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        let mut taken = VecDeque::new();
        mailbox.take(&mut taken);
        assert_eq!(taken, [1, 2]);
        assert_eq!(mailbox.push(4), Ok(()));
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
    }
}
