//! How many players a stream has. HLS knows no sessions: who asked for a playlist of late is there.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A player, as far as its requests tell: those behind one address with the same browser are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Player(u64);

impl Player {
    /// `agent` is what the player says that it is.
    pub fn of(address: Option<IpAddr>, agent: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (address, agent).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Who asked for a playlist, and when last.
#[derive(Debug, Default)]
pub(super) struct Audience(HashMap<Player, Instant>);

/// A player asks again with each segment at least, and those are rarely longer than this.
const WITHIN: Duration = Duration::from_secs(12);

/// So many are counted at most; each takes some 30 bytes.
const MOST: usize = 20_000;

impl Audience {
    /// Notes that a player asked for a playlist.
    pub(super) fn note(&mut self, player: Player, now: Instant) {
        if self.0.len() >= MOST && !self.0.contains_key(&player) {
            self.forget(now);
            if self.0.len() >= MOST {
                return;
            }
        }
        self.0.insert(player, now);
    }

    /// Those that asked of late.
    pub(super) fn count(&mut self, now: Instant) -> usize {
        self.forget(now);
        self.0.len()
    }

    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, asked| now.saturating_duration_since(*asked) < WITHIN);
    }
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
        let (mut audience, t) = (Audience::default(), Instant::now());
        for n in [1, 2, 1] {
            audience.note(player(n), t);
        }
        assert_eq!(audience.count(t), 2);
        audience.note(player(2), t + WITHIN / 2);
        assert_eq!(audience.count(t + WITHIN), 1);
    }

    #[test]
    fn it_is_bounded() {
        let (mut audience, t) = (Audience::default(), Instant::now());
        for n in 0..MOST as u32 + 100 {
            audience.note(player(n), t);
        }
        assert_eq!(audience.count(t), MOST);
        audience.note(player(1), t + WITHIN);
        assert_eq!(audience.count(t + WITHIN), 1);
    }
}
