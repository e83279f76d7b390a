//! Counts the players of a stream. HLS has no sessions: a player is counted while it requests playlists.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A player as identified by its requests: address and user agent. Players with the same pair count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HlsPlayerId {
    address: Option<IpAddr>,
    user_agent_hash: u64,
}

impl HlsPlayerId {
    /// `user_agent_hash` is the user agent.
    pub fn from_request(address: Option<IpAddr>, agent: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        agent.hash(&mut hasher);
        Self {
            address,
            user_agent_hash: hasher.finish(),
        }
    }
}

/// Players by their last playlist request.
#[derive(Debug, Default)]
pub(super) struct HlsViewers {
    /// Time of the last playlist request by address and user agent.
    last_request_times: HashMap<Option<IpAddr>, HashMap<u64, Instant>>,
    last_cleanup_at: Option<Instant>,
}

/// A player counts for this long after a request. It reloads a playlist at least once per segment, and segments are
/// rarely longer.
const VIEWER_TIMEOUT: Duration = Duration::from_secs(12);

/// Maximum number of counted addresses, and of players per address: clients choose their user agent freely.
const MAX_COUNTED_ADDRESSES: usize = 20_000;
const MAX_PLAYERS_PER_ADDRESS: usize = 50;

/// Minimum interval between cleanups.
const INACTIVE_PLAYER_CLEANUP_INTERVAL: Duration = Duration::from_secs(1);

impl HlsViewers {
    /// Records a playlist request of a player.
    pub(super) fn record_playlist_request(&mut self, player: HlsPlayerId, now: Instant) {
        if self.last_request_times.len() >= MAX_COUNTED_ADDRESSES
            && !self.last_request_times.contains_key(&player.address)
        {
            self.remove_inactive_if_due(now);
            if self.last_request_times.len() >= MAX_COUNTED_ADDRESSES {
                return;
            }
        }
        let agents = self.last_request_times.entry(player.address).or_default();
        if agents.len() >= MAX_PLAYERS_PER_ADDRESS && !agents.contains_key(&player.user_agent_hash) {
            agents.retain(|_, last| is_recent_request(*last, now));
            if agents.len() >= MAX_PLAYERS_PER_ADDRESS {
                return;
            }
        }
        agents.insert(player.user_agent_hash, now);
    }

    /// Returns the number of active players.
    pub(super) fn count_active_players(&mut self, now: Instant) -> usize {
        self.remove_inactive_if_due(now);
        let all = self.last_request_times.values().flat_map(HashMap::values);
        all.filter(|last| is_recent_request(**last, now)).count()
    }

    fn remove_inactive_if_due(&mut self, now: Instant) {
        if self
            .last_cleanup_at
            .is_some_and(|at| now.saturating_duration_since(at) < INACTIVE_PLAYER_CLEANUP_INTERVAL)
        {
            return;
        }
        self.last_cleanup_at = Some(now);
        self.last_request_times.retain(|_, agents| {
            agents.retain(|_, last| is_recent_request(*last, now));
            !agents.is_empty()
        });
    }
}

fn is_recent_request(last: Instant, now: Instant) -> bool {
    now.saturating_duration_since(last) < VIEWER_TIMEOUT
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn player(n: u32) -> HlsPlayerId {
        HlsPlayerId::from_request(Some(IpAddr::from(n.to_be_bytes())), "a browser")
    }

    #[test]
    fn idle_players_are_not_counted_and_repeated_requests_count_once() {
        let (mut viewers, t) = (HlsViewers::default(), Instant::now());
        for n in [1, 2, 1] {
            viewers.record_playlist_request(player(n), t);
        }
        assert_eq!(viewers.count_active_players(t), 2);
        viewers.record_playlist_request(player(2), t + VIEWER_TIMEOUT / 2);
        assert_eq!(viewers.count_active_players(t + VIEWER_TIMEOUT), 1);
    }

    #[test]
    fn the_number_of_players_is_bounded() {
        let (mut viewers, t) = (HlsViewers::default(), Instant::now());
        for n in 0..MAX_COUNTED_ADDRESSES as u32 + 100 {
            viewers.record_playlist_request(player(n), t);
        }
        assert_eq!(viewers.count_active_players(t), MAX_COUNTED_ADDRESSES);
        viewers.record_playlist_request(player(1), t + VIEWER_TIMEOUT);
        assert_eq!(viewers.count_active_players(t + VIEWER_TIMEOUT), 1);
        for n in 0..MAX_PLAYERS_PER_ADDRESS * 2 {
            viewers.record_playlist_request(HlsPlayerId::from_request(None, &n.to_string()), t + VIEWER_TIMEOUT);
        }
        assert_eq!(
            viewers.count_active_players(t + VIEWER_TIMEOUT),
            1 + MAX_PLAYERS_PER_ADDRESS,
            "players per address are bounded"
        );
    }
}
