//! Sessions between their offer and the end of their handshake: how many there may be, and which one goes when there are
//! too many.
//!
//! Whoever may watch can POST offers and never be heard again. So a session that has sent no connectivity check gives way
//! to a newer one: a peer in good order sends its first within a round trip of the answer. How many a host may have is
//! bounded, so that a few hosts cannot take all places by sending checks either, and some places are for requests with a
//! token only.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::address::{AddressBudget, AddressKey};
use super::stream::{SessionId, ShardIndex};

/// Bounds of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions that have not ended.
    pub sessions: usize,
    /// Half-open ones, of everybody.
    pub half_open: usize,
    /// Further half-open ones, of requests with a token.
    pub half_open_reserved: usize,
    /// Half-open ones of an IPv4 address or an IPv6 /64, for requests with a token and for others each; an IPv6 /48 may
    /// have twice as many.
    pub half_open_per_address: usize,
}

/// Who asks for a session, as far as bounds go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Where the request came from; without one no bound of an address holds.
    pub address: Option<IpAddr>,
    /// The request had a token that gave access.
    pub has_token: bool,
}

/// What there is too much of. A label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Sessions.
    Sessions,
    /// Half-open sessions.
    HalfOpen,
    /// Half-open sessions of the requester's host or site.
    Address,
}

impl Full {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::Sessions, Self::HalfOpen, Self::Address];

    /// Label of the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::HalfOpen => "half_open",
            Self::Address => "half_open_address",
        }
    }
}

/// Place of a half-open session in the order of their offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A half-open session.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub id: SessionId,
    pub shard: ShardIndex,
    requester: Requester,
    /// A connectivity check of its peer was authentic.
    is_checked: bool,
}

/// All half-open sessions.
#[derive(Debug)]
pub struct HalfOpen {
    limits: SessionLimits,
    /// The oldest first.
    waiting: BTreeMap<Ticket, Waiting>,
    /// Those whose requests had no token.
    strangers: usize,
    last: u64,
    of_strangers: AddressBudget,
    with_token: AddressBudget,
}

impl HalfOpen {
    pub fn new(limits: SessionLimits) -> Self {
        let budget = || AddressBudget::new(limits.half_open_per_address);
        Self {
            limits,
            waiting: BTreeMap::new(),
            strangers: 0,
            last: 0,
            of_strangers: budget(),
            with_token: budget(),
        }
    }

    /// Which session has to go so that there is room for another one, and why; `None` if there is room. `sessions` counts
    /// all that have not ended.
    ///
    /// # Errors
    ///
    /// There is no room, and no session that gives way.
    pub fn make_room(&self, requester: Requester, sessions: usize) -> Result<Option<(Ticket, Full)>, Full> {
        let Some((full, host)) = self.shortage(requester, sessions) else {
            return Ok(None);
        };
        let has_token = requester.has_token;
        let oldest = match host {
            // Only one of the same host makes room there.
            Some(host) => self.oldest(|waiting| {
                let is_of_host = waiting.requester.address.is_some_and(|address| host.contains(address));
                is_of_host && waiting.requester.has_token == has_token
            }),
            None => self
                .oldest(|waiting| !waiting.requester.has_token)
                .or_else(|| self.oldest(|_| has_token)),
        };
        oldest.map(|ticket| Some((ticket, full))).ok_or(full)
    }

    /// What there is too much of, and whose it is where it is a host's.
    fn shortage(&self, requester: Requester, sessions: usize) -> Option<(Full, Option<AddressKey>)> {
        let budget = if requester.has_token {
            &self.with_token
        } else {
            &self.of_strangers
        };
        if let Some(host) = requester.address.and_then(|address| budget.used_up(address)) {
            return Some((Full::Address, Some(host)));
        }
        let all = self.limits.half_open.saturating_add(self.limits.half_open_reserved);
        let is_full = self.waiting.len() >= all || (!requester.has_token && self.strangers >= self.limits.half_open);
        if is_full {
            return Some((Full::HalfOpen, None));
        }
        (sessions >= self.limits.sessions).then_some((Full::Sessions, None))
    }

    fn oldest(&self, gives_way: impl Fn(&Waiting) -> bool) -> Option<Ticket> {
        let mut oldest = self.waiting.iter().filter(|(_, waiting)| !waiting.is_checked);
        oldest
            .find(|(_, waiting)| gives_way(waiting))
            .map(|(ticket, _)| *ticket)
    }

    /// Notes a new session.
    pub fn insert(&mut self, id: SessionId, shard: ShardIndex, requester: Requester) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.strangers += usize::from(!requester.has_token);
        if let Some(address) = requester.address {
            // That there is room was asked before.
            let _ = self.budget(requester).take(address);
        }
        let waiting = Waiting {
            id,
            shard,
            requester,
            is_checked: false,
        };
        self.waiting.insert(ticket, waiting);
        ticket
    }

    /// It no longer gives way.
    pub fn checked(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.is_checked = true;
        }
    }

    /// It is connected, or has ended.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        self.strangers -= usize::from(!waiting.requester.has_token);
        if let Some(address) = waiting.requester.address {
            self.budget(waiting.requester).give_back(address);
        }
        Some(waiting)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn budget(&mut self, requester: Requester) -> &mut AddressBudget {
        if requester.has_token {
            &mut self.with_token
        } else {
            &mut self.of_strangers
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SessionLimits = SessionLimits {
        sessions: 100,
        half_open: 8,
        half_open_reserved: 2,
        half_open_per_address: 4,
    };

    fn stranger(address: &str) -> Requester {
        Requester {
            address: Some(address.parse().expect("address")),
            has_token: false,
        }
    }

    fn with_token(address: &str) -> Requester {
        Requester {
            has_token: true,
            ..stranger(address)
        }
    }

    /// Opens one as the registry does; says who had to go.
    fn open(pool: &mut HalfOpen, number: u8, requester: Requester) -> Result<Option<u8>, Full> {
        let gone = pool.make_room(requester, pool.len())?;
        let gone = gone.and_then(|(ticket, _)| pool.remove(ticket));
        pool.insert(SessionId([number; 16]), ShardIndex(0), requester);
        Ok(gone.map(|waiting| waiting.id.0[0]))
    }

    fn check_all(pool: &mut HalfOpen) {
        let tickets: Vec<Ticket> = pool.waiting.keys().copied().collect();
        tickets.into_iter().for_each(|ticket| pool.checked(ticket));
    }

    #[test]
    fn a_host_beyond_its_share_displaces_its_own_oldest_and_nobody_elses() {
        let mut pool = HalfOpen::new(LIMITS);
        assert_eq!(open(&mut pool, 1, stranger("192.0.2.9")), Ok(None));
        for number in 10..14 {
            assert_eq!(open(&mut pool, number, stranger("192.0.2.1")), Ok(None));
        }
        for number in 14..100 {
            let gone = open(&mut pool, number, stranger("192.0.2.1"));
            assert_eq!(gone, Ok(Some(number - 4)));
        }
        assert_eq!(pool.len(), 5);
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_that_was_not_heard_gives_way() {
        let mut pool = HalfOpen::new(LIMITS);
        let (heard, _) = (open(&mut pool, 1, stranger("192.0.2.1")), check_all(&mut pool));
        assert_eq!(heard, Ok(None));
        for number in 2..9 {
            assert_eq!(
                open(&mut pool, number, stranger(&format!("192.0.2.{number}"))),
                Ok(None)
            );
        }
        assert_eq!(open(&mut pool, 9, stranger("192.0.2.9")), Ok(Some(2)));
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 10, stranger("192.0.2.10")), Err(Full::HalfOpen));
        assert_eq!(pool.len(), 8, "a refusal changes nothing");
    }

    #[test]
    fn strangers_cannot_take_what_is_reserved_and_displace_nobody_with_a_token() {
        let mut pool = HalfOpen::new(LIMITS);
        for number in 0..4 {
            assert_eq!(open(&mut pool, number, with_token("192.0.2.1")), Ok(None));
        }
        for number in 4..10 {
            assert_eq!(
                open(&mut pool, number, stranger(&format!("192.0.2.{number}"))),
                Ok(None)
            );
        }
        // All ten are taken. Of those without a token the oldest goes, whoever comes.
        assert_eq!(open(&mut pool, 10, stranger("192.0.2.10")), Ok(Some(4)));
        assert_eq!(open(&mut pool, 11, with_token("192.0.2.11")), Ok(Some(5)));
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 12, stranger("192.0.2.12")), Err(Full::HalfOpen));

        // Strangers who were all heard leave the reserve free.
        let mut pool = HalfOpen::new(LIMITS);
        for number in 0..8 {
            assert_eq!(
                open(&mut pool, number, stranger(&format!("192.0.2.{number}"))),
                Ok(None)
            );
        }
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 8, stranger("192.0.2.8")), Err(Full::HalfOpen));
        assert_eq!(open(&mut pool, 9, with_token("192.0.2.8")), Ok(None));
        assert_eq!(open(&mut pool, 10, with_token("192.0.2.8")), Ok(None));
        assert_eq!(
            open(&mut pool, 11, with_token("192.0.2.8")),
            Ok(Some(9)),
            "its own, in turn"
        );
    }

    #[test]
    fn a_token_counts_for_itself_where_strangers_share_its_address() {
        let mut pool = HalfOpen::new(LIMITS);
        for number in 0..4 {
            assert_eq!(open(&mut pool, number, stranger("192.0.2.1")), Ok(None));
        }
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 4, stranger("192.0.2.1")), Err(Full::Address));
        assert_eq!(open(&mut pool, 5, with_token("192.0.2.1")), Ok(None));
    }

    #[test]
    fn half_open_sessions_do_not_use_up_the_sessions() {
        let limits = SessionLimits { sessions: 3, ..LIMITS };
        let mut pool = HalfOpen::new(limits);
        for number in 0..3 {
            assert_eq!(
                open(&mut pool, number, stranger(&format!("192.0.2.{number}"))),
                Ok(None)
            );
        }
        assert_eq!(open(&mut pool, 3, stranger("192.0.2.3")), Ok(Some(0)));
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 4, with_token("192.0.2.4")), Err(Full::Sessions));
    }

    #[test]
    fn an_ipv6_site_has_no_more_than_two_hosts() {
        let mut pool = HalfOpen::new(LIMITS);
        for number in 0..8u8 {
            let subnet = format!("2001:db8:1:{number:x}::1");
            assert_eq!(open(&mut pool, number, stranger(&subnet)), Ok(None));
        }
        let gone = pool.make_room(stranger("2001:db8:1:ff::1"), pool.len());
        assert_eq!(gone.map(|gone| gone.map(|(_, full)| full)), Ok(Some(Full::Address)));
        let gone = pool.make_room(stranger("2001:db8:2::1"), pool.len());
        assert_eq!(gone.map(|gone| gone.map(|(_, full)| full)), Ok(Some(Full::HalfOpen)));
    }
}
