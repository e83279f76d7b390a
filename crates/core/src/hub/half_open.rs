//! Sessions between their offer and the end of their handshake: how many there may be, and which one goes when there are
//! too many.
//!
//! Whoever may watch can POST offers and never send anything else. So a session that has sent no connectivity check gives way
//! to a newer one: a peer in good order sends its first within a round trip of the answer. How many a host may have is
//! bounded, so that a few hosts cannot take all places by sending checks either, and some places are for requests with a
//! token only.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::address::{AddressPrefix, PerAddressBudget};
use super::stream::{SessionId, ShardIndex};

/// Bounds of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions that have not ended.
    pub max_sessions: usize,
    /// Half-open ones, of everybody.
    pub max_half_open: usize,
    /// Further half-open ones, of requests with a token.
    pub half_open_reserved_for_token_holders: usize,
    /// Half-open ones of an IPv4 address or an IPv6 /64, for requests with a token and for others each; an IPv6 /48 may
    /// have twice as many.
    pub max_half_open_per_address: usize,
}

/// Who asks for a session, as far as bounds go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRequester {
    /// Where the request came from; without one no bound of an address holds.
    pub address: Option<IpAddr>,
    /// The request had a token that gave access.
    pub has_token: bool,
}

/// What there is too much of. A label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReachedLimit {
    /// Sessions.
    Sessions,
    /// Half-open sessions.
    HalfOpen,
    /// Half-open sessions of the requester's host or site.
    HalfOpenPerAddress,
}

impl ReachedLimit {
    /// All of them, in the order of their declaration.
    pub const ALL_LIMITS: [Self; 3] = [Self::Sessions, Self::HalfOpen, Self::HalfOpenPerAddress];

    /// Label of the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::HalfOpen => "half_open",
            Self::HalfOpenPerAddress => "half_open_address",
        }
    }
}

/// Place of a half-open session in the order of their offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HalfOpenSequenceNumber(u64);

/// A half-open session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HalfOpenSession {
    pub id: SessionId,
    pub shard: ShardIndex,
    requester: SessionRequester,
    /// A connectivity check of its peer was authentic.
    passed_connectivity_check: bool,
}

/// All half-open sessions.
#[derive(Debug)]
pub(crate) struct HalfOpenSessions {
    limits: SessionLimits,
    /// The oldest first.
    sessions_by_id: BTreeMap<HalfOpenSequenceNumber, HalfOpenSession>,
    /// Those whose requests had no token.
    session_count_without_token: usize,
    last_half_open_id: u64,
    budget_without_token: PerAddressBudget,
    budget_with_token: PerAddressBudget,
}

impl HalfOpenSessions {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        let budget = || PerAddressBudget::new(limits.max_half_open_per_address);
        Self {
            limits,
            sessions_by_id: BTreeMap::new(),
            session_count_without_token: 0,
            last_half_open_id: 0,
            budget_without_token: budget(),
            budget_with_token: budget(),
        }
    }

    /// Which session has to go so that there is room for another one, and why; `None` if there is room. `max_sessions` counts
    /// all that have not ended.
    ///
    /// # Errors
    ///
    /// There is no room, and no session that gives way.
    pub(crate) fn session_to_evict(
        &self,
        requester: SessionRequester,
        sessions: usize,
    ) -> Result<Option<(HalfOpenSequenceNumber, ReachedLimit)>, ReachedLimit> {
        let Some((full, host)) = self.reached_limit(requester, sessions) else {
            return Ok(None);
        };
        let has_token = requester.has_token;
        let oldest = match host {
            // Only one of the same host makes room there.
            Some(host) => self.oldest_evictable(|waiting| {
                let is_of_host = waiting.requester.address.is_some_and(|address| host.contains(address));
                is_of_host && waiting.requester.has_token == has_token
            }),
            None => self
                .oldest_evictable(|waiting| !waiting.requester.has_token)
                .or_else(|| self.oldest_evictable(|_| has_token)),
        };
        oldest.map(|ticket| Some((ticket, full))).ok_or(full)
    }

    /// What there is too much of, and whose it is where it is a host's.
    fn reached_limit(
        &self,
        requester: SessionRequester,
        sessions: usize,
    ) -> Option<(ReachedLimit, Option<AddressPrefix>)> {
        let budget = if requester.has_token {
            &self.budget_with_token
        } else {
            &self.budget_without_token
        };
        if let Some(host) = requester.address.and_then(|address| budget.prefix_at_limit(address)) {
            return Some((ReachedLimit::HalfOpenPerAddress, Some(host)));
        }
        let all = self
            .limits
            .max_half_open
            .saturating_add(self.limits.half_open_reserved_for_token_holders);
        let is_full = self.sessions_by_id.len() >= all
            || (!requester.has_token && self.session_count_without_token >= self.limits.max_half_open);
        if is_full {
            return Some((ReachedLimit::HalfOpen, None));
        }
        (sessions >= self.limits.max_sessions).then_some((ReachedLimit::Sessions, None))
    }

    fn oldest_evictable(&self, may_be_evicted: impl Fn(&HalfOpenSession) -> bool) -> Option<HalfOpenSequenceNumber> {
        let mut oldest = self
            .sessions_by_id
            .iter()
            .filter(|(_, waiting)| !waiting.passed_connectivity_check);
        oldest
            .find(|(_, waiting)| may_be_evicted(waiting))
            .map(|(ticket, _)| *ticket)
    }

    /// Notes a new session.
    pub(crate) fn insert(
        &mut self,
        id: SessionId,
        shard: ShardIndex,
        requester: SessionRequester,
    ) -> HalfOpenSequenceNumber {
        self.last_half_open_id += 1;
        let ticket = HalfOpenSequenceNumber(self.last_half_open_id);
        self.session_count_without_token += usize::from(!requester.has_token);
        if let Some(address) = requester.address {
            // That there is room was asked before.
            let _ = self.per_address_budget_for(requester).try_acquire(address);
        }
        let waiting = HalfOpenSession {
            id,
            shard,
            requester,
            passed_connectivity_check: false,
        };
        self.sessions_by_id.insert(ticket, waiting);
        ticket
    }

    /// It no longer gives way.
    pub(crate) fn mark_connectivity_check_passed(&mut self, ticket: HalfOpenSequenceNumber) {
        if let Some(waiting) = self.sessions_by_id.get_mut(&ticket) {
            waiting.passed_connectivity_check = true;
        }
    }

    /// It is connected, or has ended.
    pub(crate) fn remove(&mut self, ticket: HalfOpenSequenceNumber) -> Option<HalfOpenSession> {
        let waiting = self.sessions_by_id.remove(&ticket)?;
        self.session_count_without_token -= usize::from(!waiting.requester.has_token);
        if let Some(address) = waiting.requester.address {
            self.per_address_budget_for(waiting.requester).release(address);
        }
        Some(waiting)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.sessions_by_id.len()
    }

    fn per_address_budget_for(&mut self, requester: SessionRequester) -> &mut PerAddressBudget {
        if requester.has_token {
            &mut self.budget_with_token
        } else {
            &mut self.budget_without_token
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SessionLimits = SessionLimits {
        max_sessions: 100,
        max_half_open: 8,
        half_open_reserved_for_token_holders: 2,
        max_half_open_per_address: 4,
    };

    fn stranger(address: &str) -> SessionRequester {
        SessionRequester {
            address: Some(address.parse().expect("address")),
            has_token: false,
        }
    }

    fn with_token(address: &str) -> SessionRequester {
        SessionRequester {
            has_token: true,
            ..stranger(address)
        }
    }

    /// Opens one as the registry does; says who had to go.
    fn open(pool: &mut HalfOpenSessions, number: u8, requester: SessionRequester) -> Result<Option<u8>, ReachedLimit> {
        let gone = pool.session_to_evict(requester, pool.len())?;
        let gone = gone.and_then(|(ticket, _)| pool.remove(ticket));
        pool.insert(SessionId([number; 16]), ShardIndex(0), requester);
        Ok(gone.map(|waiting| waiting.id.0[0]))
    }

    fn check_all(pool: &mut HalfOpenSessions) {
        let tickets: Vec<HalfOpenSequenceNumber> = pool.sessions_by_id.keys().copied().collect();
        tickets
            .into_iter()
            .for_each(|ticket| pool.mark_connectivity_check_passed(ticket));
    }

    #[test]
    fn a_host_beyond_its_share_displaces_its_own_oldest_and_nobody_elses() {
        let mut pool = HalfOpenSessions::new(LIMITS);
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
    fn when_all_places_are_taken_the_oldest_without_a_check_gives_way() {
        let mut pool = HalfOpenSessions::new(LIMITS);
        let (checked, _) = (open(&mut pool, 1, stranger("192.0.2.1")), check_all(&mut pool));
        assert_eq!(checked, Ok(None));
        for number in 2..9 {
            assert_eq!(
                open(&mut pool, number, stranger(&format!("192.0.2.{number}"))),
                Ok(None)
            );
        }
        assert_eq!(open(&mut pool, 9, stranger("192.0.2.9")), Ok(Some(2)));
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 10, stranger("192.0.2.10")), Err(ReachedLimit::HalfOpen));
        assert_eq!(pool.len(), 8, "a refusal changes nothing");
    }

    #[test]
    fn strangers_cannot_take_what_is_reserved_and_displace_nobody_with_a_token() {
        let mut pool = HalfOpenSessions::new(LIMITS);
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
        assert_eq!(open(&mut pool, 12, stranger("192.0.2.12")), Err(ReachedLimit::HalfOpen));

        // Strangers whose checks all came leave the reserve free.
        let mut pool = HalfOpenSessions::new(LIMITS);
        for number in 0..8 {
            assert_eq!(
                open(&mut pool, number, stranger(&format!("192.0.2.{number}"))),
                Ok(None)
            );
        }
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 8, stranger("192.0.2.8")), Err(ReachedLimit::HalfOpen));
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
        let mut pool = HalfOpenSessions::new(LIMITS);
        for number in 0..4 {
            assert_eq!(open(&mut pool, number, stranger("192.0.2.1")), Ok(None));
        }
        check_all(&mut pool);
        assert_eq!(
            open(&mut pool, 4, stranger("192.0.2.1")),
            Err(ReachedLimit::HalfOpenPerAddress)
        );
        assert_eq!(open(&mut pool, 5, with_token("192.0.2.1")), Ok(None));
    }

    #[test]
    fn half_open_sessions_do_not_use_up_the_sessions() {
        let limits = SessionLimits {
            max_sessions: 3,
            ..LIMITS
        };
        let mut pool = HalfOpenSessions::new(limits);
        for number in 0..3 {
            assert_eq!(
                open(&mut pool, number, stranger(&format!("192.0.2.{number}"))),
                Ok(None)
            );
        }
        assert_eq!(open(&mut pool, 3, stranger("192.0.2.3")), Ok(Some(0)));
        check_all(&mut pool);
        assert_eq!(open(&mut pool, 4, with_token("192.0.2.4")), Err(ReachedLimit::Sessions));
    }

    #[test]
    fn an_ipv6_site_has_no_more_than_two_hosts() {
        let mut pool = HalfOpenSessions::new(LIMITS);
        for number in 0..8u8 {
            let subnet = format!("2001:db8:1:{number:x}::1");
            assert_eq!(open(&mut pool, number, stranger(&subnet)), Ok(None));
        }
        let gone = pool.session_to_evict(stranger("2001:db8:1:ff::1"), pool.len());
        assert_eq!(
            gone.map(|gone| gone.map(|(_, full)| full)),
            Ok(Some(ReachedLimit::HalfOpenPerAddress))
        );
        let gone = pool.session_to_evict(stranger("2001:db8:2::1"), pool.len());
        assert_eq!(
            gone.map(|gone| gone.map(|(_, full)| full)),
            Ok(Some(ReachedLimit::HalfOpen))
        );
    }
}
