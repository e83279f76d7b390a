//! Datagrams as a session takes them from the socket: STUN, the records of a handshake behind the guard, and anything else.
//!
//! The first byte selects our role in the handshake; then steps, each behind its length: an operation in one byte (see
//! [`World::step`]), and its bytes.
//!
//! * An unauthenticated datagram is never answered: nothing is sent, and nothing is believed, but for a Binding request
//!   with the right username and password. Its answer is one success response with its transaction id.
//! * Everything goes to addresses from which such a request came. Nothing goes out after the end.
//! * What is not for us is counted, once.
//! * The guard lets through whole records of a datagram, in their order. A deadline is never in the past.
#![no_main]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use millstream_core::{
    sdp::negotiation_result::{DtlsRole, Fingerprint, FingerprintHashFunction, IceCredentials, RemoteTransport},
    session::{
        CloseReason, Session, TransportEvent,
        dtls_filter::{DtlsRecordFilter, dtls_record_types_and_epochs},
        ice,
        identity::DtlsIdentity,
        stun::PendingBindingRequest,
    },
};
use millstream_fuzz::{counter, origin, packets};
use rtc_crypto::{RTCCryptoProvider as _, providers::AwsLcRsProvider};
use rtc_stun::{
    attributes::ATTR_USERNAME,
    fingerprint::FINGERPRINT,
    integrity::MessageIntegrity,
    message::{BINDING_REQUEST, BINDING_SUCCESS, Message, Setter as _},
};

const OUR_PWD: &str = "0123456789abcdefghijkl";
const PEER_PWD: &str = "ghijklmnopqrstuvwxyz01";
const USERNAME: &[u8] = b"ours:peer";

/// Steps of one input.
const STEPS: usize = 64;

/// Datagrams that one may cause: a flight, and a check of ours.
const MAX_SENT: usize = 16;

/// Longest datagram of ours.
const MAX_DATAGRAM: usize = 1_500;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((role, rest)) = data.split_first() else { return };
    let mut world = World::new(if role & 1 == 0 {
        DtlsRole::Server
    } else {
        DtlsRole::Client
    });
    for step in packets(rest).take(STEPS) {
        if let Some((operation, bytes)) = step.split_first() {
            world.step(*operation, bytes);
        }
    }
    world.run(Duration::from_secs(60));
    assert!(world.closed.is_some(), "a session without media ends");
});

struct World {
    session: Session,
    now: Instant,
    random: Box<dyn FnMut() -> u32>,
    /// Addresses from which a valid check came.
    authenticated: Vec<SocketAddr>,
    /// Our last check, as it was sent.
    check: Vec<u8>,
    closed: Option<CloseReason>,
}

impl World {
    fn new(role: DtlsRole) -> Self {
        static IDENTITY: OnceLock<Arc<DtlsIdentity>> = OnceLock::new();
        let identity = IDENTITY.get_or_init(|| Arc::new(DtlsIdentity::generate().expect("a certificate")));
        let [local, remote] = [("ours", OUR_PWD), ("peer", PEER_PWD)].map(|(ufrag, pwd)| IceCredentials {
            ufrag: ufrag.to_owned(),
            pwd: pwd.to_owned(),
        });
        let fingerprints = vec![Fingerprint {
            hash_function: FingerprintHashFunction::Sha256,
            digest: vec![7; 32],
        }];
        let session = Session::new(
            origin(),
            identity.clone(),
            local,
            RemoteTransport {
                remote_credentials: remote,
                fingerprints,
                gateway_dtls_role: role,
                data_channels: None,
            },
            millstream_core::session::DEFAULT_CONNECT_TIMEOUT,
        );
        Self {
            session,
            now: origin(),
            random: Box::new(counter()),
            authenticated: Vec::new(),
            check: Vec::new(),
            closed: None,
        }
    }

    fn step(&mut self, operation: u8, bytes: &[u8]) {
        let from = address(operation >> 4);
        match operation & 7 {
            // What anybody may send.
            0..=2 => self.datagram(from, bytes),
            // STUN, signed by somebody who knows our password.
            3 => self.datagram(from, &signed(bytes, OUR_PWD)),
            // A usual check, which nominates.
            4 => self.datagram(from, &check(true)),
            // The response to our last check, by somebody who received it.
            5 => self.datagram(from, &response(&self.check)),
            // Time passes.
            6 => self.run(Duration::from_millis(
                u64::from(bytes.first().copied().unwrap_or(1)) * 20,
            )),
            // The connection by which the peer came is gone.
            _ => {
                self.session.remove_address(from);
                self.authenticated.retain(|address| *address != from);
            }
        }
    }

    fn datagram(&mut self, from: SocketAddr, datagram: &[u8]) {
        check_guard(datagram);
        check_discovery(datagram);
        let is_valid_check = is_valid_check(datagram);
        if is_valid_check && self.closed.is_none() {
            assert!(ice::is_binding_request(datagram) && ice::read_local_ufrag(datagram).as_deref() == Some("ours"));
            self.authenticated.push(from);
        }
        let is_authenticated = self.authenticated.contains(&from);
        let drops = self.drops();
        self.session
            .handle_datagram(self.now, from, &mut datagram.to_vec(), &mut self.random);
        let dropped = self.drops() - drops;
        let (sent, events) = self.collect();
        if is_valid_check && self.closed.is_none() {
            let answers: Vec<_> = sent
                .iter()
                .filter(|(to, payload)| *to == from && is_answer(payload, datagram))
                .collect();
            assert_eq!(answers.len(), 1, "a valid check is answered once");
        } else if !is_authenticated {
            assert!(sent.is_empty(), "an unauthenticated datagram is answered");
            assert_eq!(events, 0, "an unauthenticated datagram is believed");
            assert_eq!(dropped, u32::from(self.closed.is_none()), "it is counted");
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.session.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.session.handle_timeout(self.now);
            self.collect();
            let next = self.session.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "time stands still");
        }
        self.now = end;
    }

    fn drops(&self) -> u32 {
        self.session.drop_counts().iter().sum()
    }

    /// What is to be sent, and the number of events.
    fn collect(&mut self) -> (Vec<(SocketAddr, Vec<u8>)>, usize) {
        let was_closed = self.closed.is_some();
        let sent: Vec<_> = std::iter::from_fn(|| self.session.poll_transmit())
            .map(|transmit| (transmit.to, transmit.payload.to_vec()))
            .collect();
        assert!(sent.len() <= MAX_SENT && sent.iter().all(|(_, payload)| payload.len() <= MAX_DATAGRAM));
        for (to, payload) in &sent {
            assert!(self.authenticated.contains(to), "{to} has authenticated nothing");
            if ice::is_binding_request(payload) {
                self.check.clone_from(payload);
            }
        }
        let mut events = 0;
        while let Some(event) = self.session.poll_event() {
            events += 1;
            assert!(self.closed.is_none(), "nothing follows the end");
            match event {
                TransportEvent::AddressLearned(address) | TransportEvent::DestinationMoved(address) => {
                    assert!(self.authenticated.contains(&address))
                }
                TransportEvent::AddressForgotten(_) => {}
                TransportEvent::Closed(reason) => self.closed = Some(reason),
                TransportEvent::Connected
                | TransportEvent::Rtp(_)
                | TransportEvent::Rtcp(_)
                | TransportEvent::Data(_) => {
                    panic!("nobody has the key of the certificate")
                }
            }
        }
        assert!(!was_closed || sent.is_empty(), "something is sent after the end");
        (sent, events)
    }
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([198, 51, 100, host]), 5_000)
}

fn check_guard(datagram: &[u8]) {
    let Ok(admitted) = DtlsRecordFilter::default().filter_datagram(datagram) else {
        return;
    };
    let mut offered = dtls_record_types_and_epochs(datagram).into_iter();
    let passed = dtls_record_types_and_epochs(&admitted);
    assert!(admitted.len() <= datagram.len());
    assert!(
        passed.iter().all(|kind| offered.any(|other| other == *kind)),
        "another order"
    );
    assert_eq!(
        DtlsRecordFilter::default().filter_datagram(&admitted).as_ref(),
        Ok(&admitted),
        "not whole records"
    );
}

/// The response to a request for our public address has its transaction id (RFC 8489 §6.3.1).
fn check_discovery(datagram: &[u8]) {
    let request = PendingBindingRequest::new(&mut || 7);
    if request.parse_mapped_address(datagram).is_some() {
        assert_eq!(datagram.get(8..20), request.encoded_message.get(8..20));
    }
}

fn decode(datagram: &[u8]) -> Option<Message> {
    let mut message = Message::new();
    message.raw = datagram.to_vec();
    message.decode().ok().map(|()| message)
}

/// By the STUN stack alone: a Binding request with one MESSAGE-INTEGRITY of our password, and our username before it.
///
/// The stack ignores the two most significant bits of the type, which are zero in every STUN message (RFC 8489 §5).
fn is_valid_check(datagram: &[u8]) -> bool {
    const MESSAGE_INTEGRITY: u16 = 8;
    let is_stun = datagram.first().is_some_and(|byte| byte >> 6 == 0);
    let Some(mut message) = decode(datagram).filter(|message| is_stun && message.typ == BINDING_REQUEST) else {
        return false;
    };
    let attributes = &message.attributes.0;
    let mut integrity = attributes
        .iter()
        .enumerate()
        .filter(|(_, attribute)| attribute.typ.value() == MESSAGE_INTEGRITY);
    let (Some((at, found)), None) = (integrity.next(), integrity.next()) else {
        return false;
    };
    let is_named = attributes
        .iter()
        .take(at)
        .any(|attribute| attribute.typ == ATTR_USERNAME && attribute.value == USERNAME);
    let is_whole = found.value.len() == 20;
    is_whole
        && is_named
        && MessageIntegrity::check(&mut message, OUR_PWD.as_bytes(), AwsLcRsProvider::new().crypto()).is_ok()
}

fn is_answer(payload: &[u8], request: &[u8]) -> bool {
    decode(payload).is_some_and(|answer| answer.typ == BINDING_SUCCESS) && payload.get(8..20) == request.get(8..20)
}

/// Adds MESSAGE-INTEGRITY and FINGERPRINT to a message; anything else stays as it is.
fn signed(bytes: &[u8], pwd: &str) -> Vec<u8> {
    decode(bytes)
        .and_then(|message| sign(message, pwd))
        .unwrap_or_else(|| bytes.to_vec())
}

fn sign(mut message: Message, pwd: &str) -> Option<Vec<u8>> {
    MessageIntegrity::new_short_term_integrity_with_provider(pwd.to_owned(), AwsLcRsProvider::new().crypto())
        .add_to(&mut message)
        .ok()?;
    FINGERPRINT.add_to(&mut message).ok()?;
    Some(message.raw)
}

fn check(nominates: bool) -> Vec<u8> {
    let mut message = Message::new();
    message.set_type(BINDING_REQUEST);
    message.write_header();
    message.add(ATTR_USERNAME, USERNAME);
    if nominates {
        message.add(rtc_stun::attributes::ATTR_USE_CANDIDATE, &[]);
    }
    sign(message, OUR_PWD).expect("fits")
}

fn response(request: &[u8]) -> Vec<u8> {
    let mut message = Message::new();
    message.set_type(BINDING_SUCCESS);
    if let Some(request) = decode(request) {
        message.transaction_id = request.transaction_id;
    }
    message.write_header();
    sign(message, PEER_PWD).expect("fits")
}
