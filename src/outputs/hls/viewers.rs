//! Counts the players of a stream. HLS has no sessions: a player is counted while it requests playlists.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A player as identified by its requests: address and user agent. Players with the same pair count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Player {
    address: Option<IpAddr>,
    agent: u64,
}

impl Player {
    /// `agent` is the user agent.
    pub fn of(address: Option<IpAddr>, agent: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        agent.hash(&mut hasher);
        Self {
            address,
            agent: hasher.finish(),
        }
    }
}

/// Players by their last playlist request.
#[derive(Debug, Default)]
pub(super) struct HlsViewers {
    /// Time of the last playlist request by address and user agent.
    last_requests: HashMap<Option<IpAddr>, HashMap<u64, Instant>>,
    cleared: Option<Instant>,
}

/// A player counts for this long after a request. It reloads a playlist at least once per segment, and segments are
/// rarely longer.
const ACTIVE_WINDOW: Duration = Duration::from_secs(12);

/// Maximum number of counted addresses, and of players per address: clients choose their user agent freely.
const MAX_ADDRESSES: usize = 20_000;
const MAX_PLAYERS_PER_ADDRESS: usize = 50;

/// Minimum interval between cleanups.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(1);

impl HlsViewers {
    /// Records a playlist request of a player.
    pub(super) fn record(&mut self, player: Player, now: Instant) {
        if self.last_requests.len() >= MAX_ADDRESSES && !self.last_requests.contains_key(&player.address) {
            self.clear(now);
            if self.last_requests.len() >= MAX_ADDRESSES {
                return;
            }
        }
        let agents = self.last_requests.entry(player.address).or_default();
        if agents.len() >= MAX_PLAYERS_PER_ADDRESS && !agents.contains_key(&player.agent) {
            agents.retain(|_, last| is_recent(*last, now));
            if agents.len() >= MAX_PLAYERS_PER_ADDRESS {
                return;
            }
        }
        agents.insert(player.agent, now);
    }

    /// Returns the number of active players.
    pub(super) fn count(&mut self, now: Instant) -> usize {
        self.clear(now);
        let all = self.last_requests.values().flat_map(HashMap::values);
        all.filter(|last| is_recent(**last, now)).count()
    }

    fn clear(&mut self, now: Instant) {
        if self
            .cleared
            .is_some_and(|at| now.saturating_duration_since(at) < CLEANUP_INTERVAL)
        {
            return;
        }
        self.cleared = Some(now);
        self.last_requests.retain(|_, agents| {
            agents.retain(|_, last| is_recent(*last, now));
            !agents.is_empty()
        });
    }
}

fn is_recent(last: Instant, now: Instant) -> bool {
    now.saturating_duration_since(last) < ACTIVE_WINDOW
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn player(n: u32) -> Player {
        Player::of(Some(IpAddr::from(n.to_be_bytes())), "a browser")
    }

    #[test]
    fn idle_players_are_not_counted_and_repeated_requests_count_once() {
        let (mut viewers, t) = (HlsViewers::default(), Instant::now());
        for n in [1, 2, 1] {
            viewers.record(player(n), t);
        }
        assert_eq!(viewers.count(t), 2);
        viewers.record(player(2), t + ACTIVE_WINDOW / 2);
        assert_eq!(viewers.count(t + ACTIVE_WINDOW), 1);
    }

    #[test]
    fn the_number_of_players_is_bounded() {
        let (mut viewers, t) = (HlsViewers::default(), Instant::now());
        for n in 0..MAX_ADDRESSES as u32 + 100 {
            viewers.record(player(n), t);
        }
        assert_eq!(viewers.count(t), MAX_ADDRESSES);
        viewers.record(player(1), t + ACTIVE_WINDOW);
        assert_eq!(viewers.count(t + ACTIVE_WINDOW), 1);
        for n in 0..MAX_PLAYERS_PER_ADDRESS * 2 {
            viewers.record(Player::of(None, &n.to_string()), t + ACTIVE_WINDOW);
        }
        assert_eq!(
            viewers.count(t + ACTIVE_WINDOW),
            1 + MAX_PLAYERS_PER_ADDRESS,
            "players per address are bounded"
        );
    }
}
