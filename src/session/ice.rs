//! ICE-lite (RFC 8445 §2.5): answers every valid check at once, never sends one, follows each authenticated nomination.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtc_crypto::RTCCryptoProvider;
use rtc_stun::attributes::{ATTR_MESSAGE_INTEGRITY, ATTR_USE_CANDIDATE, ATTR_USERNAME, RawAttribute};
use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{BINDING_REQUEST, BINDING_SUCCESS, Message, Setter as _};
use rtc_stun::xoraddr::XorMappedAddress;

use crate::sdp::plan::IceCredentials;

/// Length of the HMAC-SHA1 in MESSAGE-INTEGRITY (RFC 8489 §14.5).
const INTEGRITY_LEN: u16 = 20;

/// Addresses kept per session. A browser checks from each of its interfaces and may send from two or three of them.
pub const MAX_ADDRESSES: usize = 8;

/// How long an address stays valid without a new check: the consent lifetime of RFC 7675 §5.1.
pub const ADDRESS_LIFETIME: Duration = Duration::from_secs(30);

/// How long an address is kept from other sessions: see [`IceLite::held_until`]. Longer than the usual pause of anybody
/// who sends or plays video, and short enough for a client that starts anew where it was.
pub const HOLD: Duration = Duration::from_secs(2);

/// The local end of one ICE session.
pub struct IceLite {
    local: IceCredentials,
    /// `local:remote`, what USERNAME of a check has to be (RFC 8445 §7.2.2).
    username: String,
    provider: Arc<dyn RTCCryptoProvider>,
    addresses: Vec<Learned>,
    nominated: Option<SocketAddr>,
}

#[derive(Clone, Copy)]
struct Learned {
    address: SocketAddr,
    since: Instant,
    seen: Instant,
    /// The peer receives there what is sent to it.
    proven: bool,
}

impl Learned {
    fn new(now: Instant, address: SocketAddr) -> Self {
        Self {
            address,
            since: now,
            seen: now,
            proven: false,
        }
    }
}

/// An authenticated check was answered.
#[derive(Debug)]
pub struct Answered {
    /// To be sent to the address that the check came from.
    pub response: Vec<u8>,
    /// The check moved the session's destination to that address.
    pub moved: bool,
    /// There was no room: this address is no longer valid.
    pub forgotten: Option<SocketAddr>,
}

/// Why a STUN datagram was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StunRejection {
    Malformed,
    NotARequest,
    WrongUsername,
    BadIntegrity,
}

impl IceLite {
    /// `remote_ufrag` is the peer's half of USERNAME.
    pub fn new(local: IceCredentials, remote_ufrag: &str, provider: Arc<dyn RTCCryptoProvider>) -> Self {
        let username = format!("{}:{remote_ufrag}", local.ufrag);
        Self {
            local,
            username,
            provider,
            addresses: Vec::new(),
            nominated: None,
        }
    }

    /// Where to send. `None` before the first authenticated check.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.nominated
    }

    /// Whether media and DTLS from this address are believed (invariant 7).
    pub fn is_valid(&self, now: Instant, address: SocketAddr) -> bool {
        self.addresses
            .iter()
            .any(|a| a.address == address && now.duration_since(a.seen) < ADDRESS_LIFETIME)
    }

    /// Until when no other session may have this address: a peer with a session of its own can forge the source of a
    /// check that is authentic otherwise.
    ///
    /// An address that the peer is known to receive at is held by everything authentic from there. Any other is held
    /// once, for the time of a handshake: a forged check takes an address that is free, and no number of them may keep
    /// out the host that it belongs to.
    pub fn held_until(&self, address: SocketAddr) -> Option<Instant> {
        let learned = self.addresses.iter().find(|a| a.address == address)?;
        let last = if learned.proven { learned.seen } else { learned.since };
        Some(last + HOLD)
    }

    /// The handshake is over: whoever finished it has read what was sent to the destination.
    pub fn prove_destination(&mut self) {
        let nominated = self.nominated;
        if let Some(learned) = self.addresses.iter_mut().find(|a| Some(a.address) == nominated) {
            learned.proven = true;
        }
    }

    /// Keeps an address valid: something authentic came from it.
    pub fn refresh(&mut self, now: Instant, address: SocketAddr) {
        if let Some(learned) = self.addresses.iter_mut().find(|a| a.address == address) {
            learned.seen = now;
        }
    }

    /// All addresses learned so far.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses.iter().map(|a| a.address)
    }

    /// Judges a datagram that looks like STUN.
    ///
    /// PRIORITY and ICE-CONTROLLING are not required: a lite agent needs neither, and the WHIP muxer of FFmpeg 8.0 sends
    /// neither.
    ///
    /// # Errors
    ///
    /// A [`StunRejection`]: the datagram is dropped without a reply, so that nothing is reflected to a forged address.
    pub fn handle_check(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Result<Answered, StunRejection> {
        let mut request = decode(datagram)?;
        if request.typ != BINDING_REQUEST {
            return Err(StunRejection::NotARequest);
        }
        let is_ours = |a: &RawAttribute| a.typ == ATTR_USERNAME && a.value == self.username.as_bytes();
        if !signed(&request).any(is_ours) {
            return Err(StunRejection::WrongUsername);
        }
        MessageIntegrity::check(&mut request, self.local.pwd.as_bytes(), self.provider.crypto())
            .map_err(|_| StunRejection::BadIntegrity)?;
        let forgotten = self.learn(now, from);
        let nominates = signed(&request).any(|a| a.typ == ATTR_USE_CANDIDATE);
        // Before the first nomination the first valid pair serves: FFmpeg never nominates.
        let moved = (nominates || self.nominated.is_none()) && self.nominated != Some(from);
        if moved {
            self.nominated = Some(from);
        }
        Ok(Answered {
            response: self.response(&request, from)?,
            moved,
            forgotten,
        })
    }

    /// Returns the address that had to make room.
    fn learn(&mut self, now: Instant, from: SocketAddr) -> Option<SocketAddr> {
        let fresh = Learned::new(now, from);
        if let Some(learned) = self.addresses.iter_mut().find(|a| a.address == from) {
            if now.duration_since(learned.seen) >= ADDRESS_LIFETIME {
                *learned = fresh;
            }
            learned.seen = now;
            return None;
        }
        let mut forgotten = None;
        if self.addresses.len() >= MAX_ADDRESSES {
            let nominated = self.nominated;
            let oldest = self
                .addresses
                .iter()
                .enumerate()
                .filter(|(_, a)| Some(a.address) != nominated);
            if let Some((index, _)) = oldest.min_by_key(|(_, a)| a.seen) {
                forgotten = Some(self.addresses.swap_remove(index).address);
            }
        }
        self.addresses.push(fresh);
        forgotten
    }

    fn response(&self, request: &Message, from: SocketAddr) -> Result<Vec<u8>, StunRejection> {
        let mapped = XorMappedAddress {
            ip: from.ip(),
            port: from.port(),
        };
        let integrity =
            MessageIntegrity::new_short_term_integrity_with_provider(self.local.pwd.clone(), self.provider.crypto());
        let mut response = Message::new();
        response.set_type(BINDING_SUCCESS);
        response.transaction_id = request.transaction_id;
        response.write_header();
        mapped
            .add_to(&mut response)
            .and_then(|()| integrity.add_to(&mut response))
            .and_then(|()| FINGERPRINT.add_to(&mut response))
            .map_err(|_| StunRejection::Malformed)?;
        Ok(response.raw)
    }
}

/// Whether a datagram is a Binding request by its first bytes (RFC 8489 §5): all other STUN belongs to a path that a
/// check has opened.
pub fn is_check(datagram: &[u8]) -> bool {
    datagram.starts_with(&[0, 1])
}

/// Reads the local half of USERNAME, by which a check from an unknown address finds its session. Nothing is
/// authenticated yet.
pub fn local_ufrag(datagram: &[u8]) -> Option<String> {
    let message = decode(datagram).ok()?;
    let username = message.get(ATTR_USERNAME).ok()?;
    let local = username.split(|b| *b == b':').next()?;
    std::str::from_utf8(local).ok().map(str::to_owned)
}

/// The attributes that MESSAGE-INTEGRITY covers. What follows it anybody may have added; it is ignored
/// (RFC 8489 §14.5).
fn signed(message: &Message) -> impl Iterator<Item = &RawAttribute> {
    let attributes = message.attributes.0.iter();
    attributes.take_while(|a| a.typ != ATTR_MESSAGE_INTEGRITY)
}

fn decode(datagram: &[u8]) -> Result<Message, StunRejection> {
    let mut message = Message::new();
    message.raw = datagram.to_vec();
    message.decode().map_err(|_| StunRejection::Malformed)?;
    // The integrity check computes with the length of the attribute as it must be.
    let integrity = message.attributes.0.iter().filter(|a| a.typ == ATTR_MESSAGE_INTEGRITY);
    if integrity.clone().any(|a| a.length != INTEGRITY_LEN) || integrity.count() > 1 {
        return Err(StunRejection::Malformed);
    }
    Ok(message)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use rtc_crypto::providers::AwsLcRsProvider;
    use rtc_stun::attributes::ATTR_PRIORITY;
    use rtc_stun::message::TransactionId;

    const PWD: &str = "0123456789abcdefghijkl";

    fn agent() -> IceLite {
        let local = IceCredentials {
            ufrag: "local".into(),
            pwd: PWD.into(),
        };
        IceLite::new(local, "peer", Arc::new(AwsLcRsProvider::new()))
    }

    fn check(username: &str, pwd: &str, nominate: bool, priority: bool) -> Vec<u8> {
        let provider = AwsLcRsProvider::new();
        let mut m = Message::new();
        m.set_type(BINDING_REQUEST);
        m.transaction_id = TransactionId([7; 12]);
        m.write_header();
        m.add(ATTR_USERNAME, username.as_bytes());
        if priority {
            m.add(ATTR_PRIORITY, &[0, 0, 0, 1]);
        }
        if nominate {
            m.add(ATTR_USE_CANDIDATE, &[]);
        }
        MessageIntegrity::new_short_term_integrity_with_provider(pwd.into(), provider.crypto())
            .add_to(&mut m)
            .unwrap();
        FINGERPRINT.add_to(&mut m).unwrap();
        m.raw
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn a_valid_check_is_answered_at_once_with_the_address_it_came_from() {
        let mut ice = agent();
        let now = Instant::now();
        let answered = ice
            .handle_check(now, address(9), &check("local:peer", PWD, true, true))
            .unwrap();
        assert!(answered.moved);
        assert_eq!(ice.destination(), Some(address(9)));
        let mut response = decode(&answered.response).unwrap();
        assert_eq!(response.typ, BINDING_SUCCESS);
        MessageIntegrity::check(&mut response, PWD.as_bytes(), AwsLcRsProvider::new().crypto()).unwrap();
        let mut mapped = XorMappedAddress::default();
        rtc_stun::message::Getter::get_from(&mut mapped, &response).unwrap();
        assert_eq!((mapped.ip, mapped.port), (address(9).ip(), 9));
    }

    #[test]
    fn a_check_without_priority_and_role_is_answered() {
        let mut ice = agent();
        assert!(
            ice.handle_check(Instant::now(), address(9), &check("local:peer", PWD, false, false))
                .is_ok()
        );
        assert_eq!(ice.destination(), Some(address(9)));
    }

    #[test]
    fn the_destination_moves_only_on_an_authenticated_nomination() {
        let mut ice = agent();
        let now = Instant::now();
        ice.handle_check(now, address(1), &check("local:peer", PWD, true, true))
            .unwrap();
        ice.handle_check(now, address(2), &check("local:peer", PWD, false, true))
            .unwrap();
        assert_eq!(ice.destination(), Some(address(1)));
        let forged = ice.handle_check(
            now,
            address(3),
            &check("local:peer", "wrongwrongwrongwrongwrong", true, true),
        );
        assert_eq!(forged.unwrap_err(), StunRejection::BadIntegrity);
        assert!(!ice.is_valid(now, address(3)));
        ice.handle_check(now, address(2), &check("local:peer", PWD, true, true))
            .unwrap();
        assert_eq!(ice.destination(), Some(address(2)));
    }

    #[test]
    fn a_nomination_that_was_added_behind_the_integrity_moves_nothing() {
        let mut ice = agent();
        let now = Instant::now();
        ice.handle_check(now, address(1), &check("local:peer", PWD, false, true))
            .unwrap();
        let mut added = decode(&check("local:peer", PWD, false, true)).unwrap();
        added.add(ATTR_USE_CANDIDATE, &[]);
        assert!(!ice.handle_check(now, address(2), &added.raw).unwrap().moved);
        assert_eq!(ice.destination(), Some(address(1)));
    }

    #[test]
    fn an_address_expires_without_checks_and_the_number_is_bounded() {
        let mut ice = agent();
        let now = Instant::now();
        for port in 1..100 {
            ice.handle_check(now, address(port), &check("local:peer", PWD, port == 1, true))
                .unwrap();
        }
        assert_eq!(ice.addresses().count(), MAX_ADDRESSES);
        assert!(ice.is_valid(now, address(1)));
        assert!(!ice.is_valid(now + ADDRESS_LIFETIME, address(1)));
    }

    #[test]
    fn truncated_and_lying_checks_are_refused_without_a_panic() {
        let mut ice = agent();
        let good = check("local:peer", PWD, true, true);
        for length in 0..good.len() {
            assert!(ice.handle_check(Instant::now(), address(1), &good[..length]).is_err());
        }
        for position in 0..good.len() {
            for flip in [1u8, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[position] ^= flip;
                let _ = ice.handle_check(Instant::now(), address(1), &bad);
                let _ = local_ufrag(&bad);
            }
        }
        // MESSAGE-INTEGRITY that claims to be empty.
        let mut m = Message::new();
        m.set_type(BINDING_REQUEST);
        m.write_header();
        m.add(ATTR_USERNAME, b"local:peer");
        m.add(ATTR_MESSAGE_INTEGRITY, &[]);
        assert_eq!(
            ice.handle_check(Instant::now(), address(1), &m.raw).unwrap_err(),
            StunRejection::Malformed
        );
    }
}
