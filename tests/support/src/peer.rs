//! A WebRTC client without sockets and clocks: controlling ICE agent, DTLS in either role, SRTP both ways.
//!
//! It checks one remote candidate, which is all a client of an ICE-lite server with one port needs. Bytes and time go
//! in by `handle_*`, datagrams, events and the next deadline come out by `poll_*`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rtc_crypto::RTCCryptoProvider;
use rtc_crypto::providers::AwsLcRsProvider;
use rtc_dtls::config::{ClientAuthType, ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig};
use rtc_dtls::crypto::Certificate;
use rtc_dtls::endpoint::{Endpoint, EndpointEvent};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use rtc_shared::TransportProtocol;
use rtc_srtp::config::LABEL_EXTRACTOR_DTLS_SRTP;
use rtc_srtp::context::Context;
use rtc_srtp::option::{srtcp_replay_protection, srtp_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;
use rtc_stun::attributes::{
    ATTR_FINGERPRINT, ATTR_ICE_CONTROLLED, ATTR_ICE_CONTROLLING, ATTR_PRIORITY, ATTR_USE_CANDIDATE, ATTR_USERNAME,
};
use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{BINDING_REQUEST, BINDING_SUCCESS, Message, Setter as _, TransactionId};
use rtc_stun::xoraddr::XorMappedAddress;
use sha2::Digest as _;

mod data;
mod identity;

use data::DataChannels;
pub use data::ReceivedData;
pub use identity::{Credentials, DtlsRole, IceStyle, PeerConfig, PeerIdentity, Profiles};

/// A datagram to be sent.
#[derive(Debug)]
pub struct Transmit {
    pub to: SocketAddr,
    pub payload: Bytes,
}

#[derive(Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Media may flow; the negotiated profile is AES-GCM or not.
    Connected {
        gcm: bool,
    },
    Rtp(Bytes),
    Rtcp(Bytes),
    /// A message of a data channel.
    Data(ReceivedData),
    /// Application data of DTLS, to a peer that does not use data channels.
    ApplicationData(Bytes),
    /// The gateway sent close_notify, or the handshake failed.
    Closed,
}

/// One client.
pub struct Peer {
    config: PeerConfig,
    rng: StdRng,
    /// Transactions of the last checks, the newest last: an answer may take longer than the interval.
    transactions: VecDeque<TransactionId>,
    next_check: Option<Instant>,
    answered: u64,
    dtls: Endpoint,
    /// Handshake fragments that the stack saw already, by message and offset.
    seen: Vec<(u16, u32)>,
    resend_at: Option<Instant>,
    resends: u32,
    srtp: Option<Box<Srtp>>,
    data: Option<Box<DataChannels>>,
    closed: bool,
    rejected: u64,
    transmits: VecDeque<Bytes>,
    events: VecDeque<PeerEvent>,
}

struct Srtp {
    outgoing: Context,
    incoming: Context,
}

/// First wait before a flight is repeated; doubled each time, since the stack below only counts to seven.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(100);
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(2500);
/// Maximum number of pending checks: those of 3 s.
const MAX_TRANSACTIONS: usize = 64;
const REPLAY_WINDOW: usize = 1024;

impl Peer {
    /// The first check and, as a DTLS client, the first ClientHello go out by the first [`Peer::handle_timeout`] and
    /// the first answered check.
    pub fn new(now: Instant, config: PeerConfig) -> Self {
        let server_config = config.identity.config(DtlsRole::Server, config.profiles);
        let is_server = config.role == DtlsRole::Server;
        Self {
            rng: StdRng::seed_from_u64(config.seed),
            transactions: VecDeque::new(),
            next_check: Some(now),
            answered: 0,
            dtls: Endpoint::new(PLACEHOLDER, TransportProtocol::UDP, is_server.then_some(server_config)),
            seen: Vec::new(),
            resend_at: None,
            resends: 0,
            srtp: None,
            data: None,
            closed: false,
            rejected: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            config,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.srtp.is_some() && !self.closed
    }

    /// Checks that were answered so far.
    pub fn answered_checks(&self) -> u64 {
        self.answered
    }

    /// Received packets that did not authenticate.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Changes the address of the gateway.
    pub fn set_server(&mut self, server: SocketAddr) {
        self.config.server = server;
    }

    pub fn set_ice_style(&mut self, ice: IceStyle) {
        self.config.ice = ice;
    }

    /// The next [`Peer::handle_timeout`] sends a check: the peer's own address has changed.
    pub fn check_now(&mut self, now: Instant) {
        self.next_check = Some(now);
    }

    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if self.closed {
            return;
        }
        match datagram.first() {
            Some(0..=3) => self.handle_stun(now, from, datagram),
            Some(20..=63) => self.handle_dtls(now, datagram),
            Some(128..=191) => self.handle_srtp(datagram),
            _ => self.rejected += 1,
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        if self.next_check.is_some_and(|at| at <= now) {
            let check = self.check();
            self.transmits.push_back(check);
            self.next_check = match (self.is_connected(), self.config.ice.keep_alive) {
                (false, _) if self.answered == 0 => Some(now + CHECK_INTERVAL),
                (false, _) => Some(now + CHECK_INTERVAL * 10),
                (true, true) => Some(now + KEEP_ALIVE_INTERVAL),
                (true, false) => None,
            };
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_flight(now);
        }
        if let Some(data) = &mut self.data {
            data.handle_timeout(now);
        }
        self.drain_data(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let data = self.data.as_ref().and_then(|data| data.poll_timeout());
        [self.next_check, self.resend_at, data].into_iter().flatten().min()
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let payload = self.transmits.pop_front()?;
        Some(Transmit {
            to: self.config.server,
            payload,
        })
    }

    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.events.pop_front()
    }

    /// Seals and queues an RTP packet; false before the handshake is over.
    pub fn send_rtp(&mut self, packet: &[u8]) -> bool {
        let sealed = self.srtp.as_mut().and_then(|s| s.outgoing.encrypt_rtp(packet).ok());
        self.queue(sealed)
    }

    /// Seals and queues a compound RTCP packet; false before the handshake is over.
    pub fn send_rtcp(&mut self, compound: &[u8]) -> bool {
        let sealed = self.srtp.as_mut().and_then(|s| s.outgoing.encrypt_rtcp(compound).ok());
        self.queue(sealed)
    }

    /// Queues bytes as they are: what a hostile client would send.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.transmits.push_back(Bytes::copy_from_slice(bytes));
    }

    /// Opens data channels with these labels when the handshake is over.
    pub fn use_data_channels(&mut self, labels: &[&str]) {
        self.use_data_channels_with_ids_of(self.config.role, labels);
    }

    /// The same with the stream ids of this DTLS role (RFC 8832 §6), which a peer has to guess before the answer.
    pub fn use_data_channels_with_ids_of(&mut self, role: DtlsRole, labels: &[&str]) {
        let first_stream_id = u16::from(role == DtlsRole::Server);
        self.data = Some(Box::new(DataChannels::new(labels, first_stream_id)));
    }

    /// Opens a data channel. Returns its stream id.
    pub fn open_data_channel(&mut self, now: Instant, label: &str) -> u16 {
        let id = self.data.as_mut().expect("data channels").open(label);
        self.drain_data(now);
        id
    }

    /// Closes a data channel.
    pub fn close_data_channel(&mut self, now: Instant, stream_id: u16) {
        self.data.as_mut().expect("data channels").close(stream_id);
        self.drain_data(now);
    }

    /// Sends a message on a data channel; false if there is none with this stream id.
    pub fn send_data_message(&mut self, now: Instant, stream_id: u16, bytes: &[u8], is_text: bool) -> bool {
        let data = self.data.as_mut();
        let sent = data.is_some_and(|data| data.send(stream_id, bytes, is_text));
        self.drain_data(now);
        sent
    }

    /// The open data channels, whoever opened them: stream id and label.
    pub fn data_channels(&self) -> Vec<(u16, String)> {
        self.data.as_ref().map(|data| data.labels()).unwrap_or_default()
    }

    /// Whether the SCTP association is there.
    pub fn has_data_association(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.is_established())
    }

    /// Whether the gateway aborted the SCTP association.
    pub fn is_data_aborted(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.is_aborted())
    }

    /// Ignores the SCTP packets of the gateway from now on, and so acknowledges nothing.
    pub fn ignore_data_packets(&mut self) {
        self.data.as_mut().expect("data channels").is_deaf = true;
    }

    fn drain_data(&mut self, now: Instant) {
        let Some(data) = &mut self.data else { return };
        for packet in data.packets(now) {
            let _ = self.dtls.write(now, PLACEHOLDER, &packet);
        }
        self.events
            .extend(std::iter::from_fn(|| data.poll_received()).map(PeerEvent::Data));
        self.drain_dtls();
    }

    /// Sends application data through DTLS: an SCTP packet, or anything else.
    pub fn send_dtls_data(&mut self, now: Instant, data: &[u8]) {
        let _ = self.dtls.write(now, PLACEHOLDER, data);
        self.drain_dtls();
    }

    /// Sends close_notify.
    pub fn close(&mut self, now: Instant) {
        self.dtls.stop(now, PLACEHOLDER);
        self.drain_dtls();
        self.closed = true;
    }

    fn queue(&mut self, sealed: Option<BytesMut>) -> bool {
        let queued = sealed.is_some();
        self.transmits.extend(sealed.map(BytesMut::freeze));
        queued
    }

    fn check(&mut self) -> Bytes {
        let username = format!("{}:{}", self.config.remote.ufrag, self.config.local.ufrag);
        let transaction = TransactionId(self.rng.random());
        if self.transactions.len() >= MAX_TRANSACTIONS {
            self.transactions.pop_front();
        }
        self.transactions.push_back(transaction);
        let mut request = Message::new();
        request.set_type(BINDING_REQUEST);
        request.transaction_id = transaction;
        request.write_header();
        request.add(ATTR_USERNAME, username.as_bytes());
        if self.config.ice.priority {
            request.add(ATTR_PRIORITY, &0x6e7f_00ff_u32.to_be_bytes());
            request.add(ATTR_ICE_CONTROLLING, &self.config.seed.to_be_bytes());
        }
        if self.config.ice.nominate {
            request.add(ATTR_USE_CANDIDATE, &[]);
        }
        let pwd = self.config.remote.pwd.clone();
        MessageIntegrity::new_short_term_integrity_with_provider(pwd, self.config.identity.provider.crypto())
            .add_to(&mut request)
            .and_then(|()| FINGERPRINT.add_to(&mut request))
            .expect("a check has room for its attributes");
        request.raw.into()
    }

    /// Answers a check as strictly as the strictest clients do (libwebrtc, libjuice).
    fn answer(&self, request: &mut Message, from: SocketAddr) -> Option<Bytes> {
        let username = format!("{}:{}", self.config.local.ufrag, self.config.remote.ufrag);
        let crypto = self.config.identity.provider.crypto();
        let names_us = request
            .get(ATTR_USERNAME)
            .is_ok_and(|value| value == username.as_bytes());
        let is_controlled = request
            .get(ATTR_ICE_CONTROLLED)
            .is_ok_and(|value| value.len() == 8 && value.iter().any(|byte| *byte > 0));
        let well_formed = request.contains(ATTR_PRIORITY)
            && request.contains(ATTR_FINGERPRINT)
            && !request.contains(ATTR_ICE_CONTROLLING)
            && !request.contains(ATTR_USE_CANDIDATE);
        let pwd = &self.config.local.pwd;
        let authentic = MessageIntegrity::check(request, pwd.as_bytes(), crypto).is_ok();
        if !(self.config.ice.answers && names_us && is_controlled && well_formed && authentic) {
            return None;
        }
        let mapped = XorMappedAddress {
            ip: from.ip(),
            port: from.port(),
        };
        let mut response = Message::new();
        response.set_type(BINDING_SUCCESS);
        response.transaction_id = request.transaction_id;
        response.write_header();
        mapped
            .add_to(&mut response)
            .and_then(|()| {
                MessageIntegrity::new_short_term_integrity_with_provider(pwd.clone(), crypto).add_to(&mut response)
            })
            .and_then(|()| FINGERPRINT.add_to(&mut response))
            .expect("a response has room for its attributes");
        Some(response.raw.into())
    }

    fn handle_stun(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let mut message = Message::new();
        message.raw = datagram.to_vec();
        let decoded = message.decode().is_ok();
        if decoded && message.typ == BINDING_REQUEST {
            match self.answer(&mut message, from) {
                Some(response) => self.transmits.push_back(response),
                None => self.rejected += 1,
            }
            return;
        }
        let authentic = decoded
            && message.typ == BINDING_SUCCESS
            && self.transactions.contains(&message.transaction_id)
            && MessageIntegrity::check(
                &mut message,
                self.config.remote.pwd.as_bytes(),
                self.config.identity.provider.crypto(),
            )
            .is_ok();
        if !authentic {
            self.rejected += 1;
            return;
        }
        self.answered += 1;
        if self.answered == 1 && self.config.role == DtlsRole::Client {
            let config = self.config.identity.config(DtlsRole::Client, self.config.profiles);
            if self.dtls.connect(now, PLACEHOLDER, config, None).is_err() {
                self.fail();
            }
            self.drain_dtls();
            self.arm(now);
        }
    }

    fn handle_dtls(&mut self, now: Instant, datagram: &[u8]) {
        if self.config.role == DtlsRole::Client && self.answered == 0 {
            return;
        }
        if self.srtp.is_none() && self.is_repeat(datagram) {
            // The stack would stop its timer for a message it has seen. Our flight was lost: send it again.
            self.resend_flight(now);
            return;
        }
        let before = self.dtls.poll_timeout(&PLACEHOLDER);
        let result = self.dtls.read(now, PLACEHOLDER, None, BytesMut::from(datagram));
        self.drain_dtls();
        if self.dtls.poll_timeout(&PLACEHOLDER) != before {
            self.resends = 0;
        }
        self.arm(now);
        match result {
            Ok(events) => events.into_iter().for_each(|event| match (event, &mut self.data) {
                (EndpointEvent::HandshakeComplete, _) => self.connected(),
                (EndpointEvent::PeerClosed, _) => self.fail(),
                (EndpointEvent::ApplicationData(packet), Some(data)) => data.handle_packet(now, packet.freeze()),
                (EndpointEvent::ApplicationData(packet), None) => {
                    self.events.push_back(PeerEvent::ApplicationData(packet.freeze()));
                }
                _ => {}
            }),
            Err(_) if self.srtp.is_none() => self.fail(),
            Err(_) => self.rejected += 1,
        }
        self.drain_data(now);
    }

    /// Whether the datagram holds nothing but plaintext handshake fragments that were seen before. A repeated first
    /// ClientHello is not one: the stack answers it itself.
    fn is_repeat(&mut self, datagram: &[u8]) -> bool {
        let mut rest = datagram;
        let mut repeat = true;
        while let Some((header, body)) = rest.split_at_checked(13) {
            let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
            let Some((record, next)) = body.split_at_checked(length) else {
                return false;
            };
            rest = next;
            let plaintext_handshake = header[0] == 22 && header[3..5] == [0, 0] && record.len() >= 12;
            if !plaintext_handshake {
                repeat = false;
                continue;
            }
            let message = u16::from_be_bytes([record[4], record[5]]);
            let offset = u32::from_be_bytes([0, record[6], record[7], record[8]]);
            let is_first = |(m, _): &(u16, u32)| *m == 0;
            let first_hello = self.config.role == DtlsRole::Server && message == 0 && self.seen.iter().all(is_first);
            if self.seen.contains(&(message, offset)) && !first_hello {
                continue;
            }
            self.seen.push((message, offset));
            repeat = false;
        }
        repeat
    }

    fn resend_flight(&mut self, now: Instant) {
        let Some(at) = self.dtls.poll_timeout(&PLACEHOLDER) else {
            self.resend_at = None;
            return;
        };
        self.resends += 1;
        if self.dtls.handle_timeout(PLACEHOLDER, now.max(at)).is_err() {
            self.fail();
        }
        self.drain_dtls();
        self.arm(now);
    }

    fn arm(&mut self, now: Instant) {
        let waiting = self.dtls.poll_timeout(&PLACEHOLDER).is_some() && self.srtp.is_none();
        self.resend_at = waiting.then(|| now + FLIGHT_INTERVAL * (1 << self.resends.min(6)));
    }

    fn drain_dtls(&mut self) {
        while let Some(transmit) = self.dtls.poll_transmit() {
            self.transmits.push_back(transmit.message.freeze());
        }
    }

    fn connected(&mut self) {
        match self.export() {
            Some((srtp, gcm)) => {
                self.srtp = Some(Box::new(srtp));
                self.resend_at = None;
                self.events.push_back(PeerEvent::Connected { gcm });
                if let Some(data) = &mut self.data {
                    data.connect();
                }
            }
            None => self.fail(),
        }
    }

    fn export(&self) -> Option<(Srtp, bool)> {
        let state = self.dtls.get_connection_state(PLACEHOLDER)?;
        let profile = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => ProtectionProfile::AeadAes128Gcm,
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
            _ => return None,
        };
        let mut config = rtc_srtp::config::Config {
            profile,
            ..Default::default()
        };
        let material = state
            .export_keying_material(LABEL_EXTRACTOR_DTLS_SRTP, &[], config.keying_material_len())
            .ok()?;
        config
            .set_session_keys_from_keying_material(material.as_ref(), self.config.role == DtlsRole::Client)
            .ok()?;
        let (keys, crypto) = (&config.keys, self.config.identity.provider.crypto());
        let outgoing = Context::new(
            &keys.local_master_key,
            &keys.local_master_salt,
            profile,
            None,
            None,
            crypto,
        )
        .ok()?;
        let incoming = Context::new(
            &keys.remote_master_key,
            &keys.remote_master_salt,
            profile,
            Some(srtp_replay_protection(REPLAY_WINDOW)),
            Some(srtcp_replay_protection(REPLAY_WINDOW)),
            crypto,
        )
        .ok()?;
        let gcm = matches!(profile, ProtectionProfile::AeadAes128Gcm);
        Some((Srtp { outgoing, incoming }, gcm))
    }

    fn handle_srtp(&mut self, datagram: &[u8]) {
        let Some(srtp) = &mut self.srtp else {
            self.rejected += 1;
            return;
        };
        let rtcp = datagram.get(1).is_some_and(|b| (192..=223).contains(b));
        let opened = match (self.config.decrypt, rtcp) {
            (false, _) => Ok(BytesMut::from(datagram)),
            (true, true) => srtp.incoming.decrypt_rtcp(datagram),
            (true, false) => srtp.incoming.decrypt_rtp(datagram),
        };
        match (opened, rtcp) {
            (Ok(bytes), true) => self.events.push_back(PeerEvent::Rtcp(bytes.freeze())),
            (Ok(bytes), false) => self.events.push_back(PeerEvent::Rtp(bytes.freeze())),
            (Err(_), _) => self.rejected += 1,
        }
    }

    fn fail(&mut self) {
        self.closed = true;
        self.events.push_back(PeerEvent::Closed);
    }
}

/// Address by which the DTLS stack knows the gateway; moves of the real one are invisible to it.
const PLACEHOLDER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
