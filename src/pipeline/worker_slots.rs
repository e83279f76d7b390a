//! How many worker processes may run at the same time, and how many of them for whom.
//!
//! Everybody who may publish without a token can make the gateway transcode. So workers for streams that were published
//! without a token are limited in all and per address, all transcoding workers leave some for configured sources, and no
//! more than `pipelines.max_workers` run in all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_core::hub::address::PerAddressBudget;
use millstream_core::hub::name::StreamKey;
use thiserror::Error;

/// Limits of the number of worker processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerSlotLimits {
    /// All workers of the gateway (`pipelines.max_workers`).
    pub max_workers: usize,
    /// Workers for the streams that one address published without a token (`pipelines.max_workers_per_address`).
    pub max_workers_per_address: usize,
}

impl Default for WorkerSlotLimits {
    fn default() -> Self {
        Self {
            max_workers: 64,
            max_workers_per_address: 8,
        }
    }
}

impl WorkerSlotLimits {
    /// Returns how many workers may transcode: a quarter of all, rounded down, is left to configured sources.
    fn max_transcoding_workers(&self) -> usize {
        self.max_workers - self.max_workers / 4
    }

    /// Returns how many workers may transcode streams that were published without a token.
    fn max_workers_for_streams_without_token(&self) -> usize {
        self.max_workers.div_ceil(2)
    }
}

/// For whom a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerOwner {
    /// The source of a stream of the configuration.
    ConfiguredSource,
    /// A transcode of a stream that was published with a valid token, or of a configured stream.
    TokenHolder,
    /// A transcode of a stream that was published without a token from this address, if it is known.
    WithoutToken(Option<IpAddr>),
}

/// Why no further worker may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WorkerSlotLimitReached {
    #[error(
        "{0} workers already run, which is the limit `pipelines.max_workers`: raise it, or configure fewer streams"
    )]
    AllInUse(usize),
    #[error(
        "{0} workers already transcode, and the rest of `pipelines.max_workers` is reserved for configured sources: \
         raise `pipelines.max_workers`, or publish in formats that viewers can play"
    )]
    ReservedForSources(usize),
    #[error(
        "{0} workers already transcode streams published without a token, and the rest of `pipelines.max_workers` is \
         reserved for configured sources and streams published with a token: raise `pipelines.max_workers`, or publish \
         with a token"
    )]
    ReservedForTokenHolders(usize),
    #[error(
        "{0} workers already transcode streams published without a token from the same IP address, which is the limit \
         `pipelines.max_workers_per_address`: raise it, or publish with a token"
    )]
    AddressInUse(usize),
}

/// The worker processes that may run at the same time. Clones share them.
#[derive(Clone, Debug)]
pub struct WorkerSlots {
    shared: Arc<SharedSlots>,
}

#[derive(Debug)]
struct SharedSlots {
    limits: WorkerSlotLimits,
    usage: Mutex<SlotUsage>,
    refusals: AtomicU64,
}

#[derive(Debug)]
struct SlotUsage {
    all: usize,
    transcoding: usize,
    without_token: usize,
    peer_by_address: PerAddressBudget,
    /// Transcoded streams that hold a slot, and how many each.
    transcoded_streams: HashMap<StreamKey, usize>,
}

impl PartialEq for WorkerSlots {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for WorkerSlots {}

impl Default for WorkerSlots {
    fn default() -> Self {
        Self::new(WorkerSlotLimits::default())
    }
}

impl WorkerSlots {
    pub fn new(limits: WorkerSlotLimits) -> Self {
        let usage = SlotUsage {
            all: 0,
            transcoding: 0,
            without_token: 0,
            peer_by_address: PerAddressBudget::new(limits.max_workers_per_address),
            transcoded_streams: HashMap::new(),
        };
        Self {
            shared: Arc::new(SharedSlots {
                limits,
                usage: Mutex::new(usage),
                refusals: AtomicU64::new(0),
            }),
        }
    }

    /// Takes a slot for one worker; it is given back when the last clone of the result is dropped.
    ///
    /// # Errors
    ///
    /// Which limit is reached. It is counted.
    pub fn acquire(&self, owner: WorkerOwner) -> Result<WorkerSlot, WorkerSlotLimitReached> {
        self.acquire_for_optional_transcode(owner, None)
    }

    /// Takes a slot, for the transcode of a stream if one is given.
    fn acquire_for_optional_transcode(
        &self,
        owner: WorkerOwner,
        transcoded: Option<&StreamKey>,
    ) -> Result<WorkerSlot, WorkerSlotLimitReached> {
        let mut usage = self.lock_usage();
        if let Err(reached) = usage.ensure_below_limits(owner, &self.shared.limits) {
            self.shared.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(reached);
        }
        let taken = AcquiredWorkerSlot {
            slots: self.clone(),
            owner,
            transcoded: transcoded.cloned(),
        };
        usage.record_taken_slot(&taken);
        Ok(WorkerSlot(Arc::new(taken)))
    }

    /// Returns whether a transcoded stream holds a slot: its worker runs or is about to.
    pub fn holds_slot_for_transcode(&self, key: &StreamKey) -> bool {
        self.lock_usage().transcoded_streams.contains_key(key)
    }

    /// Returns whether [`Self::acquire`] would succeed now. A refusal is not counted.
    pub fn is_free(&self, owner: WorkerOwner) -> bool {
        self.lock_usage()
            .ensure_below_limits(owner, &self.shared.limits)
            .is_ok()
    }

    /// Returns whether [`Self::acquire`] would succeed now.
    ///
    /// # Errors
    ///
    /// Which limit is reached. It is counted.
    pub fn require_free_slot_or_count_refusal(&self, owner: WorkerOwner) -> Result<(), WorkerSlotLimitReached> {
        let checked = self.lock_usage().ensure_below_limits(owner, &self.shared.limits);
        if checked.is_err() {
            self.shared.refusals.fetch_add(1, Ordering::Relaxed);
        }
        checked
    }

    /// Returns the maximum number of workers.
    pub fn max_workers(&self) -> usize {
        self.shared.limits.max_workers
    }

    /// Returns how often a worker was refused.
    pub fn refusal_count(&self) -> u64 {
        self.shared.refusals.load(Ordering::Relaxed)
    }

    fn lock_usage(&self) -> MutexGuard<'_, SlotUsage> {
        self.shared.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotUsage {
    fn ensure_below_limits(&self, owner: WorkerOwner, limits: &WorkerSlotLimits) -> Result<(), WorkerSlotLimitReached> {
        if self.all >= limits.max_workers {
            return Err(WorkerSlotLimitReached::AllInUse(self.all));
        }
        if owner == WorkerOwner::ConfiguredSource {
            return Ok(());
        }
        if self.transcoding >= limits.max_transcoding_workers() {
            return Err(WorkerSlotLimitReached::ReservedForSources(self.transcoding));
        }
        let WorkerOwner::WithoutToken(address) = owner else {
            return Ok(());
        };
        if self.without_token >= limits.max_workers_for_streams_without_token() {
            return Err(WorkerSlotLimitReached::ReservedForTokenHolders(self.without_token));
        }
        match address.and_then(|address| self.peer_by_address.prefix_at_limit(address)) {
            Some(_) => Err(WorkerSlotLimitReached::AddressInUse(limits.max_workers_per_address)),
            None => Ok(()),
        }
    }

    fn record_taken_slot(&mut self, slot: &AcquiredWorkerSlot) {
        self.all += 1;
        self.transcoding += usize::from(slot.owner != WorkerOwner::ConfiguredSource);
        if let WorkerOwner::WithoutToken(address) = slot.owner {
            self.without_token += 1;
            if let Some(address) = address {
                // It was checked under the same lock.
                let _ = self.peer_by_address.try_acquire(address);
            }
        }
        if let Some(key) = &slot.transcoded {
            *self.transcoded_streams.entry(key.clone()).or_default() += 1;
        }
    }

    fn record_released_slot(&mut self, slot: &AcquiredWorkerSlot) {
        self.all -= 1;
        self.transcoding -= usize::from(slot.owner != WorkerOwner::ConfiguredSource);
        if let WorkerOwner::WithoutToken(address) = slot.owner {
            self.without_token -= 1;
            if let Some(address) = address {
                self.peer_by_address.release(address);
            }
        }
        let Some(key) = &slot.transcoded else { return };
        if let Some(count) = self.transcoded_streams.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.transcoded_streams.remove(key);
            }
        }
    }
}

/// The right to run one worker. Dropping the last clone gives it back.
#[derive(Clone, Debug)]
pub struct WorkerSlot(Arc<AcquiredWorkerSlot>);

#[derive(Debug)]
struct AcquiredWorkerSlot {
    slots: WorkerSlots,
    owner: WorkerOwner,
    /// The stream that the worker makes, if it transcodes.
    transcoded: Option<StreamKey>,
}

impl Drop for AcquiredWorkerSlot {
    fn drop(&mut self) {
        self.slots.lock_usage().record_released_slot(self);
    }
}

/// The slot of one source or transcode. It is kept while its worker is restarted: otherwise another one could take it
/// meanwhile, and while the former worker still ends, two would be needed.
#[derive(Debug, Default)]
pub struct WorkerSlotReservation {
    slot: Mutex<Option<WorkerSlot>>,
    /// The stream that the worker makes, if it transcodes.
    transcoded: Option<StreamKey>,
}

impl WorkerSlotReservation {
    /// Makes a reservation for the transcode of a stream. [`Self::default`] is one for a source.
    pub fn new_for_transcode(key: StreamKey) -> Self {
        Self {
            slot: Mutex::default(),
            transcoded: Some(key),
        }
    }

    /// Returns the slot, taking it if it is not reserved yet or if its owner has changed.
    ///
    /// # Errors
    ///
    /// Which limit is reached. It is counted.
    pub fn acquire(&self, slots: &WorkerSlots, owner: WorkerOwner) -> Result<WorkerSlot, WorkerSlotLimitReached> {
        let mut reserved = self.lock_slot_mutex();
        if let Some(slot) = reserved.as_ref().filter(|slot| slot.0.owner == owner) {
            return Ok(slot.clone());
        }
        *reserved = None;
        let slot = slots.acquire_for_optional_transcode(owner, self.transcoded.as_ref())?;
        Ok(reserved.insert(slot).clone())
    }

    /// Gives the slot back, once its worker has ended, too.
    pub fn release(&self) {
        *self.lock_slot_mutex() = None;
    }

    fn lock_slot_mutex(&self) -> MutexGuard<'_, Option<WorkerSlot>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> WorkerSlots {
        WorkerSlots::new(WorkerSlotLimits {
            max_workers: 8,
            max_workers_per_address: 2,
        })
    }

    fn stranger(host: u8) -> WorkerOwner {
        WorkerOwner::WithoutToken(Some(IpAddr::from([192, 0, 2, host])))
    }

    /// Takes as many slots as there are for an owner.
    fn take_all_messages(slots: &WorkerSlots, owner: WorkerOwner) -> (Vec<WorkerSlot>, WorkerSlotLimitReached) {
        let mut taken = Vec::new();
        loop {
            match slots.acquire(owner) {
                Ok(slot) => taken.push(slot),
                Err(reached) => return (taken, reached),
            }
        }
    }

    #[test]
    fn strangers_leave_slots_to_token_holders_and_both_to_sources() {
        let slots = slots();
        let (first, reached) = take_all_messages(&slots, stranger(1));
        assert_eq!((first.len(), reached), (2, WorkerSlotLimitReached::AddressInUse(2)));
        let (second, _) = take_all_messages(&slots, stranger(2));
        let (third, reached) = take_all_messages(&slots, stranger(3));
        assert_eq!((second.len(), third.len()), (2, 0));
        assert_eq!(reached, WorkerSlotLimitReached::ReservedForTokenHolders(4));
        let (holders, reached) = take_all_messages(&slots, WorkerOwner::TokenHolder);
        assert_eq!(
            (holders.len(), reached),
            (2, WorkerSlotLimitReached::ReservedForSources(6))
        );
        let (sources, reached) = take_all_messages(&slots, WorkerOwner::ConfiguredSource);
        assert_eq!((sources.len(), reached), (2, WorkerSlotLimitReached::AllInUse(8)));
        assert_eq!(slots.refusal_count(), 5);
        // Whatever ends is free again, for those it is for.
        drop(first);
        assert_eq!(
            slots.require_free_slot_or_count_refusal(stranger(2)),
            Err(WorkerSlotLimitReached::AddressInUse(2))
        );
        assert_eq!(slots.require_free_slot_or_count_refusal(stranger(3)), Ok(()));
    }

    #[test]
    fn one_worker_is_enough_for_anybody() {
        let slots = WorkerSlots::new(WorkerSlotLimits {
            max_workers: 1,
            max_workers_per_address: 1,
        });
        for owner in [WorkerOwner::ConfiguredSource, WorkerOwner::TokenHolder, stranger(1)] {
            assert_eq!(take_all_messages(&slots, owner).0.len(), 1, "{owner:?}");
        }
    }

    #[test]
    fn a_worker_that_is_restarted_keeps_its_slot() {
        let slots = WorkerSlots::new(WorkerSlotLimits {
            max_workers: 1,
            max_workers_per_address: 1,
        });
        let reservation = WorkerSlotReservation::default();
        let owner = WorkerOwner::ConfiguredSource;
        let first = reservation.acquire(&slots, owner).expect("a free slot");
        // The former worker still ends.
        let second = reservation.acquire(&slots, owner).expect("its own slot");
        drop((first, second));
        assert_eq!(slots.acquire(owner).err(), Some(WorkerSlotLimitReached::AllInUse(1)));
        assert!(reservation.acquire(&slots, owner).is_ok());
        reservation.release();
        assert!(slots.acquire(owner).is_ok());
    }

    #[test]
    fn a_transcode_counts_for_its_present_publisher() {
        let slots = slots();
        let name = millstream_core::hub::name::StreamName::parse("door").expect("a name");
        let key = name.transcode_key(millstream_core::media::track_delivery::TranscodeTarget::Opus);
        let reservation = WorkerSlotReservation::new_for_transcode(key.clone());
        assert!(!slots.holds_slot_for_transcode(&key));
        let slot = reservation.acquire(&slots, stranger(1)).expect("a free slot");
        assert!(slots.holds_slot_for_transcode(&key) && !slots.holds_slot_for_transcode(&(&name).into()));
        drop(slot);
        assert_eq!(take_all_messages(&slots, stranger(1)).0.len(), 1);
        // Another publisher took over.
        let slot = reservation
            .acquire(&slots, WorkerOwner::TokenHolder)
            .expect("a free slot");
        assert_eq!(take_all_messages(&slots, stranger(1)).0.len(), 2);
        reservation.release();
        assert!(slots.holds_slot_for_transcode(&key), "its worker still runs");
        drop(slot);
        assert!(!slots.holds_slot_for_transcode(&key));
        assert_eq!(slots.lock_usage().all, 0);
    }
}
