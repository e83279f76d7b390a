//! ICE-lite (RFC 8445 §2.5): answers every valid check at once, follows each authenticated nomination, and sends a check of
//! its own only before media goes to another address.
//!
//! # Proof of the return path
//!
//! The source of a check can be forged by the very peer whose check it is: it may nominate the address of somebody else,
//! who would get the whole stream. So nothing but STUN goes to an address before somebody there has shown to receive.
//!
//! The first address shows it by the handshake, whose secrets nobody can compute without our flights. Until the first of
//! them is sent the destination follows each nomination at once; from then on it stays where it is, and a nomination of
//! another address begins a trial: a check of ours with a transaction id that only who receives it can repeat. The success
//! response moves the destination, one round trip after the nomination. The newest nomination counts: one of the present
//! destination ends the trial. What was proven once is tried again when it is nominated again; that costs a round trip,
//! and nothing has to be remembered that might have become wrong.
//!
//! A lite agent only answers (RFC 8445 §2.5), but whoever can nominate is a full agent, and a full agent answers each
//! valid request (§7.3), whatever the other side is: libwebrtc, Firefox, libjuice and aioice do. Firefox 153 also checks
//! in return; that repeats the nomination and sends no further check of ours, so that the two keep nobody busy. FFmpeg
//! never nominates.
//!
//! A peer that leaves our checks unanswered loses nothing: media stays on the path that it has proven, and what it sends
//! from the new address is taken. No weaker proof is accepted in its place. A report that repeats the time of a sender
//! report is one in name only: that time is known to within some units of 1/65536 s, and one packet can hold 31 guesses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtc_crypto::RTCCryptoProvider;
use rtc_stun::attributes::{
    ATTR_ICE_CONTROLLED, ATTR_MESSAGE_INTEGRITY, ATTR_PRIORITY, ATTR_USE_CANDIDATE, ATTR_USERNAME, RawAttribute,
};
use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{BINDING_REQUEST, BINDING_SUCCESS, Message, Setter as _, TransactionId};
use rtc_stun::xoraddr::XorMappedAddress;

use crate::sdp::negotiation_result::IceCredentials;

/// Length of the HMAC-SHA1 in MESSAGE-INTEGRITY (RFC 8489 §14.5).
const MESSAGE_INTEGRITY_HMAC_LEN: u16 = 20;

/// Addresses kept per session. A browser checks from each of its interfaces and may send from two or three of them.
pub const MAX_LEARNED_ADDRESSES: usize = 8;

/// How long an address stays valid without a new check: the consent lifetime of RFC 7675 §5.1.
pub(crate) const ADDRESS_CONSENT_LIFETIME: Duration = Duration::from_secs(30);

/// How long an address is kept from other sessions: see [`IceLite::address_reserved_until`]. Longer than the usual pause of anybody
/// who sends or plays video, and short enough for a client that starts anew where it was.
pub(crate) const ADDRESS_RESERVATION_TIME: Duration = Duration::from_secs(2);

/// Checks of ours for one nomination: enough for a path that loses a fifth both ways, and some hundred bytes for the host
/// behind a forged address.
const MAX_ICE_CHECKS_PER_NOMINATION: u32 = 4;

/// First wait before a check is sent again; doubled each time.
const INITIAL_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Of a peer-reflexive candidate with the highest local preference (RFC 8445 §5.1.2.1, §7.1.1). It decides nothing: only
/// the peer compares pairs.
const PEER_REFLEXIVE_PRIORITY: u32 = 110 << 24 | 65_535 << 8 | 255;

/// The lowest there is: a peer that takes itself for the controlled agent has to give way to a lite one (RFC 8445 §6.1.1,
/// §7.3.1.1). Not zero, which libjuice takes for a missing attribute.
const TIE_BREAKER: u64 = 1;

/// The local end of one ICE session, which restarts may replace by another one (RFC 8445 §9).
pub(crate) struct IceLite {
    current_credentials: CredentialPair,
    /// What came before the last restart: it serves until the peer has nominated with the new one, so that a restart
    /// that comes to nothing costs nothing (RFC 9725 §4.3.3).
    previous_credentials: Option<CredentialPair>,
    crypto_provider: Arc<dyn RTCCryptoProvider>,
    learned_addresses: Vec<LearnedAddress>,
    /// Where to send.
    destination: Option<SocketAddr>,
    /// Something was sent there that makes it matter where it is.
    requires_path_validation: bool,
    path_validation: Option<NominatedAddressValidation>,
    /// A check was authentic.
    has_received_check: bool,
}

/// The credentials of both sides.
struct CredentialPair {
    local: IceCredentials,
    remote: IceCredentials,
    /// `local:remote`, what USERNAME of a check has to be (RFC 8445 §7.2.2).
    username: String,
    /// A check came with them.
    has_received_check: bool,
}

impl CredentialPair {
    fn new(local: IceCredentials, remote: IceCredentials) -> Self {
        let username = format!("{}:{}", local.ufrag, remote.ufrag);
        Self {
            local,
            remote,
            username,
            has_received_check: false,
        }
    }
}

/// A nominated address that has to answer before it becomes the destination.
struct NominatedAddressValidation {
    address: SocketAddr,
    transaction_id: TransactionId,
    binding_request: Vec<u8>,
    /// What the response is signed with.
    remote_pwd: String,
    /// When the check is to be sent, again or for the first time; `None` when that was often enough.
    next_check_at: Option<Instant>,
    checks_sent: u32,
}

#[derive(Clone, Copy)]
struct LearnedAddress {
    address: SocketAddr,
    learned_at: Instant,
    last_seen_at: Instant,
    /// The peer receives there what is sent to it.
    is_validated: bool,
}

impl LearnedAddress {
    fn new(now: Instant, address: SocketAddr) -> Self {
        Self {
            address,
            learned_at: now,
            last_seen_at: now,
            is_validated: false,
        }
    }
}

/// An authenticated check was answered.
#[derive(Debug)]
pub(crate) struct AnsweredConnectivityCheck {
    /// To be sent to the address that the check came from.
    pub response: Vec<u8>,
    /// The check moved the session's destination to that address.
    pub destination_moved: bool,
    /// There was no room: this address is no longer valid.
    pub evicted_address: Option<SocketAddr>,
}

/// Why a STUN datagram was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StunRejection {
    Malformed,
    NotARequest,
    /// No response to a check of ours that is on its way, or not from where that was sent.
    UnexpectedResponse,
    WrongUsername,
    BadIntegrity,
}

impl IceLite {
    /// Makes an agent that has received nothing yet.
    pub(crate) fn new(local: IceCredentials, remote: IceCredentials, provider: Arc<dyn RTCCryptoProvider>) -> Self {
        Self {
            current_credentials: CredentialPair::new(local, remote),
            previous_credentials: None,
            crypto_provider: provider,
            learned_addresses: Vec::new(),
            destination: None,
            requires_path_validation: false,
            path_validation: None,
            has_received_check: false,
        }
    }

    /// Begins a new ICE session (RFC 8445 §9, RFC 9725 §4.3.3). Media goes on where it went until the peer nominates with
    /// the new credentials. Returns our username fragment that is no longer valid: of the two sessions before this one,
    /// the peer that never used the newer one still has the older.
    pub(crate) fn restart(&mut self, local: IceCredentials, remote: IceCredentials) -> Option<String> {
        let replaced = std::mem::replace(&mut self.current_credentials, CredentialPair::new(local, remote));
        let gone = match replaced.has_received_check || self.previous_credentials.is_none() {
            true => self.previous_credentials.replace(replaced),
            false => Some(replaced),
        };
        gone.map(|pair| pair.local.ufrag)
    }

    /// Where to send. `None` before the first authenticated check.
    pub(crate) fn remote_destination(&self) -> Option<SocketAddr> {
        self.destination
    }

    /// Whether a check was authentic so far.
    pub(crate) fn has_received_check(&self) -> bool {
        self.has_received_check
    }

    /// The way to an address is gone, as when a connection was closed: nothing is sent there or believed from there until
    /// another check comes from it. Without the destination the next check names one, as the first did, or by a trial.
    pub(crate) fn remove_address(&mut self, address: SocketAddr) {
        self.learned_addresses.retain(|learned| learned.address != address);
        self.destination = self.destination.filter(|destination| *destination != address);
        self.path_validation = self.path_validation.take().filter(|trial| trial.address != address);
    }

    /// More than STUN was sent to the destination: from now on it moves by proof only.
    pub(crate) fn require_validation_of_new_destination(&mut self) {
        self.requires_path_validation = true;
    }

    /// Whether media and DTLS from this address are believed (invariant 7).
    pub(crate) fn is_address_valid(&self, now: Instant, address: SocketAddr) -> bool {
        self.learned_addresses
            .iter()
            .any(|a| a.address == address && now.duration_since(a.last_seen_at) < ADDRESS_CONSENT_LIFETIME)
    }

    /// Until when no other session may have this address: a peer with a session of its own can forge the source of a
    /// check that is authentic otherwise.
    ///
    /// An address that the peer is known to receive at is held by everything authentic from there. Any other is held
    /// once, for the time of a handshake: a forged check takes an address that is free, and no number of them may keep
    /// out the host that it belongs to.
    pub(crate) fn address_reserved_until(&self, address: SocketAddr) -> Option<Instant> {
        let learned = self.learned_addresses.iter().find(|a| a.address == address)?;
        let last = if learned.is_validated {
            learned.last_seen_at
        } else {
            learned.learned_at
        };
        Some(last + ADDRESS_RESERVATION_TIME)
    }

    /// The handshake is over: whoever finished it has read what was sent to the destination.
    pub(crate) fn mark_destination_validated(&mut self) {
        let destination = self.destination;
        if let Some(learned) = self
            .learned_addresses
            .iter_mut()
            .find(|a| Some(a.address) == destination)
        {
            learned.is_validated = true;
        }
    }

    /// Keeps an address valid: something authentic came from it.
    pub(crate) fn refresh_address_lifetime(&mut self, now: Instant, address: SocketAddr) {
        if let Some(learned) = self.learned_addresses.iter_mut().find(|a| a.address == address) {
            learned.last_seen_at = now;
        }
    }

    /// Judges a datagram that looks like STUN.
    ///
    /// PRIORITY and ICE-CONTROLLING are not required: a lite agent needs neither, and the WHIP muxer of FFmpeg 8.0 sends
    /// neither.
    ///
    /// `random` makes the transaction ids of our own checks and has to be unpredictable.
    ///
    /// # Errors
    ///
    /// A [`StunRejection`]: the datagram is dropped without a reply, so that nothing is reflected to a forged address.
    pub(crate) fn handle_connectivity_check(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        random: &mut dyn FnMut() -> u32,
    ) -> Result<AnsweredConnectivityCheck, StunRejection> {
        let mut request = decode_stun_message(datagram)?;
        if request.typ != BINDING_REQUEST {
            return Err(StunRejection::NotARequest);
        }
        let names = |pair: &CredentialPair| {
            let is_username = |a: &RawAttribute| a.typ == ATTR_USERNAME && a.value == pair.username.as_bytes();
            integrity_protected_attributes(&request).any(is_username)
        };
        let former = self.previous_credentials.as_ref().filter(|former| names(former));
        let is_current = names(&self.current_credentials);
        let pair = former.filter(|_| !is_current).unwrap_or(&self.current_credentials);
        if !is_current && former.is_none() {
            return Err(StunRejection::WrongUsername);
        }
        let (local_pwd, ours, theirs) = (pair.local.pwd.clone(), pair.local.ufrag.clone(), pair.remote.clone());
        MessageIntegrity::check(&mut request, local_pwd.as_bytes(), self.crypto_provider.crypto())
            .map_err(|_| StunRejection::BadIntegrity)?;
        self.has_received_check = true;
        let forgotten = self.learn_address(now, from);
        let nominates = integrity_protected_attributes(&request).any(|a| a.typ == ATTR_USE_CANDIDATE);
        if is_current {
            self.current_credentials.has_received_check = true;
        }
        // Who has begun with the new session decides with it; the former one is answered until it is over.
        let may_nominate = is_current || !self.current_credentials.has_received_check;
        // Before the first nomination the first valid pair serves: FFmpeg never nominates.
        let moved = may_nominate
            && (nominates || self.destination.is_none())
            && self.handle_nomination(now, from, (&ours, &theirs), random)?;
        if is_current && nominates && self.destination == Some(from) {
            self.previous_credentials = None;
        }
        Ok(AnsweredConnectivityCheck {
            response: self.build_binding_response(&request, from, &local_pwd)?,
            destination_moved: moved,
            evicted_address: forgotten,
        })
    }

    /// Returns whether the destination moved.
    fn handle_nomination(
        &mut self,
        now: Instant,
        address: SocketAddr,
        (ours, theirs): (&str, &IceCredentials),
        random: &mut dyn FnMut() -> u32,
    ) -> Result<bool, StunRejection> {
        if self.destination == Some(address) {
            self.path_validation = None;
            return Ok(false);
        }
        if !self.requires_path_validation {
            self.destination = Some(address);
            return Ok(true);
        }
        let is_same =
            |trial: &&mut NominatedAddressValidation| trial.address == address && trial.remote_pwd == theirs.pwd;
        match self.path_validation.as_mut().filter(is_same) {
            // Sent as often as it may be: whoever nominates again may have missed it.
            Some(trial) if trial.next_check_at.is_none() => (trial.next_check_at, trial.checks_sent) = (Some(now), 0),
            Some(_) => {}
            None => {
                let transaction = random_transaction_id(random);
                self.path_validation = Some(NominatedAddressValidation {
                    address,
                    transaction_id: transaction,
                    binding_request: self.build_connectivity_check(transaction, ours, theirs)?,
                    remote_pwd: theirs.pwd.clone(),
                    next_check_at: Some(now),
                    checks_sent: 0,
                });
            }
        }
        Ok(false)
    }

    /// Judges a datagram that looks like STUN and is no request: only the response to a check of ours has a meaning. It
    /// proves that its sender receives, and makes its address the destination.
    ///
    /// # Errors
    ///
    /// A [`StunRejection`]: the datagram is dropped.
    pub(crate) fn handle_check_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), StunRejection> {
        let mut response = decode_stun_message(datagram)?;
        let asked = |trial: &&NominatedAddressValidation| {
            trial.address == from && trial.transaction_id == response.transaction_id
        };
        let Some(trial) = self
            .path_validation
            .as_ref()
            .filter(asked)
            .filter(|_| response.typ == BINDING_SUCCESS)
        else {
            return Err(StunRejection::UnexpectedResponse);
        };
        MessageIntegrity::check(
            &mut response,
            trial.remote_pwd.as_bytes(),
            self.crypto_provider.crypto(),
        )
        .map_err(|_| StunRejection::BadIntegrity)?;
        if trial.remote_pwd == self.current_credentials.remote.pwd {
            self.previous_credentials = None;
        }
        let learned = self.learned_addresses.iter_mut().find(|a| a.address == from);
        let learned = learned.ok_or(StunRejection::UnexpectedResponse)?;
        (learned.last_seen_at, learned.is_validated) = (now, true);
        self.destination = Some(from);
        self.path_validation = None;
        Ok(())
    }

    /// The check of ours that is due, and where it goes.
    pub(crate) fn poll_connectivity_check(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        let trial = self
            .path_validation
            .as_mut()
            .filter(|trial| trial.next_check_at.is_some_and(|due| due <= now))?;
        trial.next_check_at = (trial.checks_sent + 1 < MAX_ICE_CHECKS_PER_NOMINATION)
            .then(|| now + INITIAL_CHECK_INTERVAL * (1 << trial.checks_sent));
        trial.checks_sent += 1;
        Some((trial.address, trial.binding_request.clone()))
    }

    /// When [`Self::poll_connectivity_check`] will have one.
    pub(crate) fn poll_connectivity_check_timeout(&self) -> Option<Instant> {
        self.path_validation.as_ref()?.next_check_at
    }

    /// Returns the address that had to make room.
    fn learn_address(&mut self, now: Instant, from: SocketAddr) -> Option<SocketAddr> {
        let fresh = LearnedAddress::new(now, from);
        if let Some(learned) = self.learned_addresses.iter_mut().find(|a| a.address == from) {
            if now.duration_since(learned.last_seen_at) >= ADDRESS_CONSENT_LIFETIME {
                *learned = fresh;
            }
            learned.last_seen_at = now;
            return None;
        }
        let mut forgotten = None;
        if self.learned_addresses.len() >= MAX_LEARNED_ADDRESSES {
            let destination = self.destination;
            let oldest = self
                .learned_addresses
                .iter()
                .enumerate()
                .filter(|(_, a)| Some(a.address) != destination);
            if let Some((index, _)) = oldest.min_by_key(|(_, a)| a.last_seen_at) {
                forgotten = Some(self.learned_addresses.swap_remove(index).address);
            }
        }
        self.learned_addresses.push(fresh);
        forgotten
    }

    fn build_binding_response(
        &self,
        request: &Message,
        from: SocketAddr,
        local_pwd: &str,
    ) -> Result<Vec<u8>, StunRejection> {
        let mapped = XorMappedAddress {
            ip: from.ip().to_canonical(),
            port: from.port(),
        };
        let mut response = Message::new();
        response.set_type(BINDING_SUCCESS);
        response.transaction_id = request.transaction_id;
        response.write_header();
        mapped.add_to(&mut response).map_err(|_| StunRejection::Malformed)?;
        self.sign_stun_message(response, local_pwd)
    }

    /// A check of ours (RFC 8445 §7.1, §7.2.2).
    fn build_connectivity_check(
        &self,
        transaction: TransactionId,
        own_ufrag: &str,
        remote_credentials: &IceCredentials,
    ) -> Result<Vec<u8>, StunRejection> {
        let username = format!("{}:{own_ufrag}", remote_credentials.ufrag);
        let mut check = Message::new();
        check.set_type(BINDING_REQUEST);
        check.transaction_id = transaction;
        check.write_header();
        check.add(ATTR_USERNAME, username.as_bytes());
        check.add(ATTR_PRIORITY, &PEER_REFLEXIVE_PRIORITY.to_be_bytes());
        check.add(ATTR_ICE_CONTROLLED, &TIE_BREAKER.to_be_bytes());
        self.sign_stun_message(check, &remote_credentials.pwd)
    }

    fn sign_stun_message(&self, mut message: Message, pwd: &str) -> Result<Vec<u8>, StunRejection> {
        MessageIntegrity::new_short_term_integrity_with_provider(pwd.to_owned(), self.crypto_provider.crypto())
            .add_to(&mut message)
            .and_then(|()| FINGERPRINT.add_to(&mut message))
            .map_err(|_| StunRejection::Malformed)?;
        Ok(message.raw)
    }
}

/// `random` has to be unpredictable: it alone distinguishes an answer from a forged one.
pub(super) fn random_transaction_id(random: &mut dyn FnMut() -> u32) -> TransactionId {
    let mut id = [0; 12];
    for bytes in id.chunks_exact_mut(4) {
        bytes.copy_from_slice(&random().to_be_bytes());
    }
    TransactionId(id)
}

/// Whether a datagram is a Binding request by its first bytes (RFC 8489 §5): all other STUN belongs to a path that a
/// check has opened.
pub fn is_binding_request(datagram: &[u8]) -> bool {
    datagram.starts_with(&[0, 1])
}

/// Reads the local half of USERNAME, by which a check from an unknown address finds its session. Nothing is
/// authenticated yet.
pub fn read_local_ufrag(datagram: &[u8]) -> Option<String> {
    let message = decode_stun_message(datagram).ok()?;
    let username = message.get(ATTR_USERNAME).ok()?;
    let local = username.split(|b| *b == b':').next()?;
    std::str::from_utf8(local).ok().map(str::to_owned)
}

/// The attributes that MESSAGE-INTEGRITY covers. What follows it anybody may have added; it is ignored
/// (RFC 8489 §14.5).
fn integrity_protected_attributes(message: &Message) -> impl Iterator<Item = &RawAttribute> {
    let attributes = message.attributes.0.iter();
    attributes.take_while(|a| a.typ != ATTR_MESSAGE_INTEGRITY)
}

fn decode_stun_message(datagram: &[u8]) -> Result<Message, StunRejection> {
    let mut message = Message::new();
    message.raw = datagram.to_vec();
    message.decode().map_err(|_| StunRejection::Malformed)?;
    // The integrity check computes with the length of the attribute as it must be.
    let integrity = message.attributes.0.iter().filter(|a| a.typ == ATTR_MESSAGE_INTEGRITY);
    if integrity.clone().any(|a| a.length != MESSAGE_INTEGRITY_HMAC_LEN) || integrity.count() > 1 {
        return Err(StunRejection::Malformed);
    }
    Ok(message)
}

#[cfg(test)]
mod tests;
