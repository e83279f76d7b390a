//! A mutex with a rank: locks are taken in one global order, so that threads cannot deadlock.
//!
//! A thread that holds a lock may only take locks of a higher [`Rank`], and never two of the same rank. Builds with
//! debug assertions check this on every lock operation, with or without contention, so every test that nests locks
//! verifies their order. Release builds have no check.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Lock order, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The map of LL-HLS packagers by stream.
    Packagers,
    /// One packager. HTTP requests render playlists under it, so code on a shard must not take it.
    Packager,
    /// The bookkeeping that accompanies one packager.
    PackagerState,
    /// The map of streams by name.
    Streams,
    /// One stream. Two streams are never locked at the same time.
    Stream,
    /// The time of the last request for an on-demand source.
    Demand,
    /// The sessions known to the media plane.
    Sessions,
    /// Those who wait for changes.
    Changes,
    /// The TCP connections of peers.
    Connections,
    /// What waits to be written to one of them.
    ConnectionQueue,
    /// The queue of a mailbox.
    Mailbox,
}

/// A mutex that must be taken in the order of [`Rank`].
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

    /// Takes the lock. Poisoning by a panic in another thread is ignored: the owner of the value must tolerate a
    /// half-completed change.
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

    /// Takes the lock if it is free. Never blocks, so the rank is not checked.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Guard of a [`RankedMutex`]; unlocks on drop.
#[must_use]
pub struct RankedGuard<'a, T> {
    // Dropped first: the lock is released before its rank.
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
        /// Ranks of the locks held by this thread, in the order in which they were taken.
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// Entry of one held lock.
    pub(crate) struct Held(Rank);

    pub(crate) fn enter(rank: Rank) -> Held {
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

    pub(crate) struct Held;

    pub(crate) fn enter(_: Rank) -> Held {
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
        // Guards may be dropped in any order.
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
