//! A mutex with a rank: locks are taken in one order, so that no two threads ever wait for each other.
//!
//! A thread that holds a lock takes only locks of a higher [`Rank`]; two of the same rank are never held at once. Builds
//! with debug assertions check this at every lock, whether or not another thread is near, so that each test that takes
//! two locks checks their order; release builds lock and nothing else.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Places in the order of locks, the outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The packagers of LL-HLS by stream.
    Packagers,
    /// One packager. HTTP requests render playlists under it: nothing on a shard takes it.
    Packager,
    /// What is kept beside one packager.
    PackagerState,
    /// The streams by name.
    Streams,
    /// One stream. Two streams are never locked at once.
    Stream,
    /// When a source that is fetched on demand was asked for.
    Demand,
    /// The sessions that the media plane knows.
    Sessions,
    /// The connections of peers that came by TCP.
    Connections,
    /// What waits to be written to one of them.
    ConnectionQueue,
    /// The queue of a mailbox.
    Mailbox,
}

/// A mutex that may be taken only in the order of [`Rank`].
#[derive(Debug)]
pub struct RankedMutex<T> {
    rank: Rank,
    inner: Mutex<T>,
}

impl<T> RankedMutex<T> {
    pub const fn new(rank: Rank, value: T) -> Self {
        Self {
            rank,
            inner: Mutex::new(value),
        }
    }

    /// Takes the lock. A panic of another thread while it was held does not close it: whoever owns the value copes with
    /// what that may have left half done.
    ///
    /// # Panics
    ///
    /// With debug assertions, if this thread holds a lock of the same or a higher rank.
    pub fn lock(&self) -> RankedGuard<'_, T> {
        let held = order::enter(self.rank);
        RankedGuard {
            inner: self.inner.lock().unwrap_or_else(PoisonError::into_inner),
            _held: held,
        }
    }

    /// Takes the lock if it is free. Never waits, so the order does not matter.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Holds a [`RankedMutex`] until it is dropped.
#[must_use]
pub struct RankedGuard<'a, T> {
    // Dropped first: the rank is free when the lock is.
    inner: MutexGuard<'a, T>,
    _held: order::Held,
}

impl<T> Deref for RankedGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for RankedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(debug_assertions)]
mod order {
    use std::cell::RefCell;

    use super::Rank;

    thread_local! {
        /// What this thread holds, in the order in which it was taken.
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// A lock that this thread holds.
    pub struct Held(Rank);

    pub fn enter(rank: Rank) -> Held {
        let highest = HELD.with_borrow(|held| held.iter().max().copied());
        if let Some(highest) = highest.filter(|highest| *highest >= rank) {
            panic!("lock order: {rank:?} is taken while {highest:?} is held");
        }
        HELD.with_borrow_mut(|held| held.push(rank));
        Held(rank)
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                if let Some(at) = held.iter().rposition(|rank| *rank == self.0) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(not(debug_assertions))]
mod order {
    use super::Rank;

    pub struct Held;

    pub fn enter(_: Rank) -> Held {
        Held
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_from_the_outermost_to_the_innermost() {
        let (outer, inner) = (RankedMutex::new(Rank::Streams, 1), RankedMutex::new(Rank::Stream, 2));
        let both = *outer.lock() + *inner.lock();
        assert_eq!(both, 3);
        // Guards may go in any order.
        let (first, second) = (outer.lock(), inner.lock());
        drop(first);
        drop(second);
        let _again = outer.lock();
    }

    #[test]
    #[should_panic(expected = "Streams is taken while Stream is held")]
    fn an_outer_lock_is_not_taken_under_an_inner_one() {
        let (outer, inner) = (RankedMutex::new(Rank::Streams, 1), RankedMutex::new(Rank::Stream, 2));
        let _inner = inner.lock();
        let _outer = outer.lock();
    }

    #[test]
    #[should_panic(expected = "Stream is taken while Stream is held")]
    fn two_streams_are_never_locked_at_once() {
        let streams = [RankedMutex::new(Rank::Stream, 1), RankedMutex::new(Rank::Stream, 2)];
        let _both = streams.each_ref().map(RankedMutex::lock);
    }

    #[test]
    fn a_lock_is_open_after_a_panic_under_it() {
        let lock = RankedMutex::new(Rank::Stream, 1);
        let panicked = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _guard = lock.lock();
                panic!("on purpose");
            });
            thread.join().is_err()
        });
        assert!(panicked);
        assert_eq!(*lock.lock(), 1);
    }
}
