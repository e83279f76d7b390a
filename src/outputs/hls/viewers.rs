//! How many players a stream has. HLS knows no sessions: who asked for a playlist of late is there.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A player, as far as its requests tell: those behind one address with the same browser are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Player {
    address: Option<IpAddr>,
    agent: u64,
}

impl Player {
    /// `agent` is what the player says that it is.
    pub fn of(address: Option<IpAddr>, agent: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        agent.hash(&mut hasher);
        Self {
            address,
            agent: hasher.finish(),
        }
    }
}

/// Who got a playlist, and when last.
#[derive(Debug, Default)]
pub(super) struct HlsViewers {
    /// Of each address, by agent.
    seen: HashMap<Option<IpAddr>, HashMap<u64, Instant>>,
    cleared: Option<Instant>,
}

/// A player asks again with each segment at least, and those are rarely longer than this.
const WITHIN: Duration = Duration::from_secs(12);

/// So many addresses are counted at most, and so many players of one: they may call themselves what they like.
const MOST: usize = 20_000;
const MOST_OF_ADDRESS: usize = 50;

/// Between two looks for those that are gone.
const CLEAR_EVERY: Duration = Duration::from_secs(1);

impl HlsViewers {
    /// Notes that a player got a playlist.
    pub(super) fn record(&mut self, player: Player, now: Instant) {
        if self.seen.len() >= MOST && !self.seen.contains_key(&player.address) {
            self.clear(now);
            if self.seen.len() >= MOST {
                return;
            }
        }
        let agents = self.seen.entry(player.address).or_default();
        if agents.len() >= MOST_OF_ADDRESS && !agents.contains_key(&player.agent) {
            agents.retain(|_, asked| is_recent(*asked, now));
            if agents.len() >= MOST_OF_ADDRESS {
                return;
            }
        }
        agents.insert(player.agent, now);
    }

    /// Those that asked of late.
    pub(super) fn count(&mut self, now: Instant) -> usize {
        self.clear(now);
        let all = self.seen.values().flat_map(HashMap::values);
        all.filter(|asked| is_recent(**asked, now)).count()
    }

    fn clear(&mut self, now: Instant) {
        if self
            .cleared
            .is_some_and(|at| now.saturating_duration_since(at) < CLEAR_EVERY)
        {
            return;
        }
        self.cleared = Some(now);
        self.seen.retain(|_, agents| {
            agents.retain(|_, asked| is_recent(*asked, now));
            !agents.is_empty()
        });
    }
}

fn is_recent(asked: Instant, now: Instant) -> bool {
    now.saturating_duration_since(asked) < WITHIN
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    fn player(n: u32) -> Player {
        Player::of(Some(IpAddr::from(n.to_be_bytes())), "a browser")
    }

    #[test]
    fn who_asks_no_longer_is_gone_and_who_asks_again_is_one() {
        let (mut audience, t) = (HlsViewers::default(), Instant::now());
        for n in [1, 2, 1] {
            audience.record(player(n), t);
        }
        assert_eq!(audience.count(t), 2);
        audience.record(player(2), t + WITHIN / 2);
        assert_eq!(audience.count(t + WITHIN), 1);
    }

    #[test]
    fn it_is_bounded() {
        let (mut audience, t) = (HlsViewers::default(), Instant::now());
        for n in 0..MOST as u32 + 100 {
            audience.record(player(n), t);
        }
        assert_eq!(audience.count(t), MOST);
        audience.record(player(1), t + WITHIN);
        assert_eq!(audience.count(t + WITHIN), 1);
        for n in 0..MOST_OF_ADDRESS * 2 {
            audience.record(Player::of(None, &n.to_string()), t + WITHIN);
        }
        assert_eq!(
            audience.count(t + WITHIN),
            1 + MOST_OF_ADDRESS,
            "an address is one of many"
        );
    }
}
