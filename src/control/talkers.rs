//! Which cameras have a talker: one at a time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sources::rtsp::back_channel::BackChannelCounters;
use millstream_core::hub::name::StreamKey;

/// Who talks to the cameras of a gateway.
#[derive(Default)]
pub struct Talkers {
    /// Sources whose camera has a talker, or is getting one.
    reserved_sources: Arc<Mutex<HashSet<StreamKey>>>,
    pub counters: Arc<BackChannelCounters>,
}

/// The right of one talker to a camera, until this is dropped.
pub struct TalkReservation {
    source: StreamKey,
    reserved_sources: Arc<Mutex<HashSet<StreamKey>>>,
}

impl Talkers {
    /// Reserves the camera of a source; `None` if somebody has it.
    pub fn reserve(&self, source: &StreamKey) -> Option<TalkReservation> {
        let is_free = lock_set(&self.reserved_sources).insert(source.clone());
        is_free.then(|| TalkReservation {
            source: source.clone(),
            reserved_sources: self.reserved_sources.clone(),
        })
    }

    /// Returns how many cameras have a talker.
    pub fn count(&self) -> usize {
        lock_set(&self.reserved_sources).len()
    }
}

impl Drop for TalkReservation {
    fn drop(&mut self) {
        lock_set(&self.reserved_sources).remove(&self.source);
    }
}

fn lock_set(set: &Mutex<HashSet<StreamKey>>) -> MutexGuard<'_, HashSet<StreamKey>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
