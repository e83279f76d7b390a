//! Offers of our own that wait for their answer (WHEP §4.3.2): a session URL that is no session yet.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::sessions::SessionRecord;
use crate::shard::{Placement, SessionId};

/// How long one is good for, as the draft says where nothing else is said.
pub const GOOD_FOR: Duration = Duration::from_secs(30);

/// Offers that wait at the same time; more are refused.
const MAX_OFFERS: usize = 2_048;

/// An offer of ours.
#[derive(Clone, Debug)]
pub struct Offered {
    pub placement: Placement,
    pub held: SessionRecord,
    /// The SDP.
    pub text: String,
    made: Instant,
}

/// All that wait.
#[derive(Debug, Default)]
pub struct Offers {
    by_id: Mutex<HashMap<SessionId, Offered>>,
}

impl Offers {
    /// Keeps one; `false` if too many wait.
    pub fn keep(&self, id: SessionId, placement: Placement, held: SessionRecord, text: String) -> bool {
        let mut by_id = self.lock();
        by_id.retain(|_, offered| offered.made.elapsed() < GOOD_FOR);
        if by_id.len() >= MAX_OFFERS {
            return false;
        }
        let made = Instant::now();
        let offered = Offered {
            placement,
            held,
            text,
            made,
        };
        by_id.insert(id, offered);
        true
    }

    /// One that is still good.
    pub fn find(&self, id: SessionId) -> Option<Offered> {
        let found = self.lock().get(&id).cloned();
        found.filter(|offered| offered.made.elapsed() < GOOD_FOR)
    }

    /// It is answered, or no longer wanted; whether it was there and good. Of two at the same time one is told so.
    pub fn take(&self, id: SessionId) -> bool {
        let taken = self.lock().remove(&id);
        taken.is_some_and(|offered| offered.made.elapsed() < GOOD_FOR)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Offered>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
