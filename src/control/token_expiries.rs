//! When the tokens of sessions expire. Most sessions end long before, and issued tokens may be valid for years: what is
//! kept of sessions that are gone is bounded.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokio::time::Instant;

use crate::shard::SessionId;

/// The sessions whose token expires, the next one first.
#[derive(Default)]
pub(super) struct TokenExpiries {
    due: BinaryHeap<Reverse<(Instant, SessionId)>>,
}

/// Number of entries that may be those of sessions that are gone, besides as many as there are sessions.
const STALE_ENTRY_ALLOWANCE: usize = 1_024;

impl TokenExpiries {
    pub(super) fn add_token_expiry(&mut self, expires_at: Instant, session: SessionId) {
        self.due.push(Reverse((expires_at, session)));
    }

    /// Returns the number of sessions that are kept.
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// Returns when the next token expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Removes the session whose token expires next.
    pub(super) fn pop(&mut self) -> Option<SessionId> {
        self.due.pop().map(|Reverse((_, session))| session)
    }

    /// Returns whether more than half of the entries are those of sessions that are gone, and worth removing.
    pub(super) fn has_many_stale_entries(&self, session_count: usize) -> bool {
        self.due.len() > 2 * session_count + STALE_ENTRY_ALLOWANCE
    }

    /// Removes all sessions but those that are known.
    pub(super) fn retain(&mut self, is_known: impl Fn(SessionId) -> bool) {
        self.due.retain(|Reverse((_, session))| is_known(*session));
        self.due.shrink_to(2 * self.due.len());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn session(number: u64) -> SessionId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        SessionId(id)
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_are_gone_are_not_kept_until_their_token_expires() {
        let mut expiries = TokenExpiries::default();
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let (open, now) = (session(7), Instant::now());
        let mut most = 0;
        for number in 0..100_000 {
            expiries.add_token_expiry(now + year + Duration::from_secs(number % 100), session(number));
            if number % 500 == 0 && expiries.has_many_stale_entries(1) {
                expiries.retain(|known| known == open);
            }
            most = most.max(expiries.due.len());
        }
        assert!(most < 2_000, "{most} entries");
        assert!(expiries.due.capacity() < 4_000, "{}", expiries.due.capacity());
        expiries.retain(|known| known == open);
        assert_eq!(expiries.next_expiry(), Some(now + year + Duration::from_secs(7)));
        assert_eq!((expiries.pop(), expiries.pop()), (Some(open), None));
    }
}
