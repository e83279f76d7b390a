//! A mutex with a rank: locks are taken in one global order, so that threads cannot deadlock.
//!
//! A thread that holds a lock may only take locks of a higher [`LockRank`], and never two of the same rank. Builds with
//! debug assertions check this on every lock operation, with or without contention, so every test that nests locks
//! verifies their order. Release builds have no check.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Lock order, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockRank {
    /// The map of LL-HLS packagers by stream.
    PackagerMap,
    /// One packager. HTTP requests render playlists under it, so code on a shard must not take it.
    Packager,
    /// The bookkeeping that accompanies one packager.
    PackagerState,
    /// The map of failover groups by stream.
    SourceFailoverMap,
    /// One failover group. It writes to the stream that it feeds.
    FailoverGroup,
    /// The map of streams by name.
    StreamMap,
    /// One stream. Two streams are never locked at the same time.
    Stream,
    /// The time of the last request for an on-demand source.
    OnDemandSource,
    /// The sessions known to the media plane.
    SessionRegistry,
    /// Those who wait for changes.
    ChangeListeners,
    /// The TCP connections of peers.
    TcpConnections,
    /// What waits to be written to one of them.
    TcpWriteQueue,
    /// The queue of a mailbox.
    Mailbox,
}

/// A mutex that must be taken in the order of [`LockRank`].
#[derive(Debug)]
pub struct RankedMutex<T> {
    rank: LockRank,
    inner: Mutex<T>,
}

impl<T> RankedMutex<T> {
    pub const fn new(rank: LockRank, value: T) -> Self {
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
        let held = lock_order::record_held_lock_rank(self.rank);
        RankedGuard {
            inner: self.inner.lock().unwrap_or_else(PoisonError::into_inner),
            _held_rank: held,
        }
    }

    /// Takes the lock if it is free. Never blocks, so the rank is not checked.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
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
    _held_rank: lock_order::HeldRank,
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
mod lock_order {
    use std::cell::RefCell;

    use super::LockRank;

    thread_local! {
        /// Ranks of the locks held by this thread, in the order in which they were taken.
        static HELD_LOCK_RANKS: RefCell<Vec<LockRank>> = const { RefCell::new(Vec::new()) };
    }

    /// Entry of one held lock.
    pub(crate) struct HeldRank(LockRank);

    pub(crate) fn record_held_lock_rank(rank: LockRank) -> HeldRank {
        let highest = HELD_LOCK_RANKS.with_borrow(|held| held.iter().max().copied());
        if let Some(highest) = highest.filter(|highest| *highest >= rank) {
            panic!("lock order violated: {rank:?} is taken while {highest:?} is held");
        }
        HELD_LOCK_RANKS.with_borrow_mut(|held| held.push(rank));
        HeldRank(rank)
    }

    impl Drop for HeldRank {
        fn drop(&mut self) {
            HELD_LOCK_RANKS.with_borrow_mut(|held| {
                if let Some(at) = held.iter().rposition(|rank| *rank == self.0) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(not(debug_assertions))]
mod lock_order {
    use super::LockRank;

    pub(crate) struct HeldRank;

    pub(crate) fn record_held_lock_rank(_: LockRank) -> HeldRank {
        HeldRank
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_from_the_outermost_to_the_innermost() {
        let (outer, inner) = (
            RankedMutex::new(LockRank::StreamMap, 1),
            RankedMutex::new(LockRank::Stream, 2),
        );
        let both = *outer.lock() + *inner.lock();
        assert_eq!(both, 3);
        // Guards may be dropped in any order.
        let (first, second) = (outer.lock(), inner.lock());
        drop(first);
        drop(second);
        let _again = outer.lock();
    }

    #[test]
    #[should_panic(expected = "lock order violated: StreamMap is taken while Stream is held")]
    fn an_outer_lock_is_not_taken_under_an_inner_one() {
        let (outer, inner) = (
            RankedMutex::new(LockRank::StreamMap, 1),
            RankedMutex::new(LockRank::Stream, 2),
        );
        let _inner = inner.lock();
        let _outer = outer.lock();
    }

    #[test]
    #[should_panic(expected = "lock order violated: Stream is taken while Stream is held")]
    fn two_streams_are_never_locked_at_once() {
        let streams = [
            RankedMutex::new(LockRank::Stream, 1),
            RankedMutex::new(LockRank::Stream, 2),
        ];
        let _both = streams.each_ref().map(RankedMutex::lock);
    }

    #[test]
    fn lock_is_usable_after_panic_while_held() {
        let lock = RankedMutex::new(LockRank::Stream, 1);
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
