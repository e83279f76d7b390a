//! A gateway as small as can be, to try the load tool on: it forwards, and it can be set to do it badly.
//!
//! One thread, no cache, no feedback. It shares no code with the gateway under test.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rtc_crypto::{RTCCryptoProvider, providers::AwsLcRsProvider};
use rtc_dtls::{
    config::{ClientAuthType, ConfigBuilder, HandshakeConfig},
    crypto::Certificate,
    endpoint::{Endpoint as DtlsAssociation, EndpointEvent},
    extension::extension_use_srtp::SrtpProtectionProfile,
};
use rtc_shared::TransportProtocol;
use rtc_srtp::{config::LABEL_EXTRACTOR_DTLS_SRTP, context::Context, protection_profile::ProtectionProfile};
use rtc_stun::{
    attributes::ATTR_USERNAME,
    fingerprint::FINGERPRINT,
    integrity::MessageIntegrity,
    message::{BINDING_SUCCESS, Message, Setter as _},
};

use crate::peer::fingerprint;

/// What goes wrong with every 50th packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Drop,
    Change,
    Repeat,
}

const FAULT_STEP: u64 = 50;
const PWD: &str = "0123456789abcdefghijkl";
const PLACEHOLDER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// A running reference gateway; stopped when dropped.
pub(crate) struct Reference {
    pub http: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reference {
    pub(crate) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let http = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || Server::new(socket, fault).run(&listener, &flag));
        Self {
            http,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

struct Server {
    provider: Arc<dyn RTCCryptoProvider>,
    config: Arc<HandshakeConfig>,
    fingerprint: String,
    socket: UdpSocket,
    sessions: Vec<Session>,
    fault: Fault,
    forwarded: u64,
}

struct Session {
    stream: String,
    publisher: bool,
    address: Option<SocketAddr>,
    dtls: DtlsAssociation,
    keys: Option<(Context, Context)>,
    /// What is added to the publisher's sequence numbers.
    offset: u16,
}

impl Server {
    fn new(socket: UdpSocket, fault: Fault) -> Self {
        let provider: Arc<dyn RTCCryptoProvider> = Arc::new(AwsLcRsProvider::new());
        let certificate = Certificate::generate_self_signed(vec!["reference".to_owned()], provider.crypto()).unwrap();
        let fingerprint = fingerprint(certificate.certificate[0].as_ref());
        let config = ConfigBuilder::default()
            .with_crypto_provider(Arc::clone(&provider))
            .with_certificates(vec![certificate])
            .with_srtp_protection_profiles(vec![SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm])
            .with_client_auth(ClientAuthType::RequireAnyClientCert)
            .with_insecure_skip_verify(true)
            .build(false, None)
            .unwrap();
        Self {
            provider,
            config: Arc::new(config),
            fingerprint,
            socket,
            sessions: Vec::new(),
            fault,
            forwarded: 0,
        }
    }

    fn run(&mut self, listener: &TcpListener, stop: &AtomicBool) {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((stream, _)) = listener.accept() {
                self.answer(stream);
            }
            while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
                self.handle(&buffer[..length], from);
            }
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// Reads a POST or DELETE and answers it.
    fn answer(&mut self, mut stream: TcpStream) {
        stream.set_nonblocking(false).unwrap();
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        // The offers end with this line; a DELETE has no body.
        while !request.ends_with(b"apt=96\r\n") && !request.starts_with(b"DELETE") {
            let length = stream.read(&mut chunk).unwrap();
            request.extend_from_slice(&chunk[..length]);
        }
        if request.starts_with(b"DELETE") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
            return;
        }
        let number = self.sessions.len();
        let line = String::from_utf8_lossy(&request);
        let path = line.split(' ').nth(1).unwrap().to_owned();
        self.sessions.push(Session {
            stream: path.split_at(6).1.to_owned(),
            publisher: request.starts_with(b"POST /whip/"),
            address: None,
            dtls: DtlsAssociation::new(PLACEHOLDER, TransportProtocol::UDP, Some(Arc::clone(&self.config))),
            keys: None,
            offset: 65_000u16.wrapping_add(100 * number as u16),
        });
        let body = format!(
            "v=0\r\na=ice-ufrag:{number}\r\na=ice-pwd:{PWD}\r\na=fingerprint:{}\r\na=setup:passive\r\n\
             a=candidate:1 1 udp 1 127.0.0.1 {} typ host\r\n",
            self.fingerprint,
            self.socket.local_addr().unwrap().port()
        );
        let head = format!(
            "HTTP/1.1 201 Created\r\nLocation: /session/{number}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
    }

    fn handle(&mut self, datagram: &[u8], from: SocketAddr) {
        // What is malformed or not for us is passed over.
        let _ = match datagram.first() {
            Some(0..=3) => self.handle_stun(datagram, from),
            Some(20..=63) => self.handle_dtls(datagram, from),
            _ => self.forward(datagram, from),
        };
    }

    fn handle_stun(&mut self, datagram: &[u8], from: SocketAddr) -> Option<()> {
        let mut request = Message::new();
        request.raw = datagram.to_vec();
        request.decode().ok()?;
        MessageIntegrity::check(&mut request, PWD.as_bytes(), self.provider.crypto()).ok()?;
        let username = String::from_utf8(request.get(ATTR_USERNAME).ok()?).ok()?;
        let number: usize = username.split(':').next()?.parse().ok()?;
        // A new viewer may have the port of one that has left.
        self.sessions
            .iter_mut()
            .filter(|session| session.address == Some(from))
            .for_each(|old| old.address = None);
        self.sessions.get_mut(number)?.address = Some(from);
        let mut response = Message::new();
        response.set_type(BINDING_SUCCESS);
        response.transaction_id = request.transaction_id;
        response.write_header();
        MessageIntegrity::new_short_term_integrity_with_provider(PWD.to_owned(), self.provider.crypto())
            .add_to(&mut response)
            .and_then(|()| FINGERPRINT.add_to(&mut response))
            .unwrap();
        self.socket.send_to(&response.raw, from).ok().map(|_| ())
    }

    fn handle_dtls(&mut self, datagram: &[u8], from: SocketAddr) -> Option<()> {
        let session = self.sessions.iter_mut().find(|session| session.address == Some(from))?;
        let events = session
            .dtls
            .read(Instant::now(), PLACEHOLDER, None, BytesMut::from(datagram));
        while let Some(transmit) = session.dtls.poll_transmit() {
            self.socket.send_to(&transmit.message, from).ok()?;
        }
        if events
            .ok()?
            .iter()
            .any(|event| matches!(event, EndpointEvent::HandshakeComplete))
        {
            let profile = ProtectionProfile::AeadAes128Gcm;
            let mut config = rtc_srtp::config::Config {
                profile,
                ..Default::default()
            };
            let state = session.dtls.get_connection_state(PLACEHOLDER).unwrap();
            let material = state
                .export_keying_material(LABEL_EXTRACTOR_DTLS_SRTP, &[], config.keying_material_len())
                .unwrap();
            config
                .set_session_keys_from_keying_material(material.as_ref(), false)
                .unwrap();
            let context =
                |key: &[u8], salt: &[u8]| Context::new(key, salt, profile, None, None, self.provider.crypto()).unwrap();
            let keys = &config.keys;
            session.keys = Some((
                context(&keys.local_master_key, &keys.local_master_salt),
                context(&keys.remote_master_key, &keys.remote_master_salt),
            ));
        }
        Some(())
    }

    fn forward(&mut self, datagram: &[u8], from: SocketAddr) -> Option<()> {
        let publisher = self
            .sessions
            .iter_mut()
            .find(|session| session.publisher && session.address == Some(from));
        let publisher = publisher?;
        let stream = publisher.stream.clone();
        let (_, incoming) = publisher.keys.as_mut()?;
        if (192..=223).contains(datagram.get(1)?) {
            return None;
        }
        let packet = incoming.decrypt_rtp(datagram).ok()?;
        self.forwarded += 1;
        let fault = if self.forwarded.is_multiple_of(FAULT_STEP) {
            self.fault
        } else {
            Fault::None
        };
        let viewers = self
            .sessions
            .iter_mut()
            .filter(|session| !session.publisher && session.stream == stream);
        for session in viewers {
            let (Some(to), Some((outgoing, _))) = (session.address, session.keys.as_mut()) else {
                continue;
            };
            let mut packet = packet.to_vec();
            let seq = u16::from_be_bytes([packet[2], packet[3]]).wrapping_add(session.offset);
            packet[2..4].copy_from_slice(&seq.to_be_bytes());
            if fault == Fault::Change {
                *packet.last_mut()? ^= 1;
            }
            let sealed = outgoing.encrypt_rtp(&packet).ok()?;
            let copies = match fault {
                Fault::Drop => 0,
                Fault::Repeat => 2,
                Fault::None | Fault::Change => 1,
            };
            for _ in 0..copies {
                self.socket.send_to(&sealed, to).ok()?;
            }
        }
        Some(())
    }
}

mod tests {
    use super::*;
    use crate::{
        endpoint::{Endpoint, Role},
        publisher::Publisher,
        receiver::Receiver,
        stats::Quantiles,
        timeline::Timeline,
        viewer::{Tally, Viewer},
    };

    const VIEWERS: usize = 3;

    /// What three viewers, one of them an auditor, see of half a second.
    fn watch(fault: Fault) -> Tally {
        let gateway = Reference::start(fault);
        let timeline = Arc::new(Timeline::new());
        let publisher = Publisher::start(gateway.http, "x", Arc::clone(&timeline)).unwrap();
        let mut receiver = Receiver::start(Arc::clone(&timeline)).unwrap();
        for number in 0..VIEWERS {
            let joined = Endpoint::join(gateway.http, Role::Viewer, "x").unwrap();
            assert_eq!(joined.session, format!("/session/{}", number + 1));
            receiver.add(Viewer::new(joined.endpoint, number == 0)).unwrap();
        }
        let started = Instant::now();
        while !receiver.synchronised().unwrap() {
            assert!(started.elapsed() < Duration::from_secs(60), "never in step");
            thread::sleep(Duration::from_millis(10));
        }
        receiver.open().unwrap();
        thread::sleep(Duration::from_millis(500));
        let end = timeline.position();
        thread::sleep(Duration::from_millis(200));
        let tally = receiver.close(end).unwrap();
        publisher.stop().unwrap();
        receiver.stop().unwrap();
        tally
    }

    #[test]
    fn a_faithful_gateway_loses_and_changes_nothing() {
        let mut tally = watch(Fault::None);
        assert!(tally.expected > 100, "{}", tally.expected);
        assert_eq!((tally.lost(), tally.corrupt, tally.duplicates), (0, 0, 0));
        assert!(tally.audited >= tally.expected / VIEWERS as u64);
        let delay = Quantiles::of(&mut tally.delays);
        assert!(
            delay.p50 > Duration::ZERO && delay.p99 < Duration::from_secs(1),
            "{delay:?}"
        );
    }

    #[test]
    fn dropped_packets_are_counted_at_each_viewer() {
        let tally = watch(Fault::Drop);
        let expected = tally.expected / FAULT_STEP;
        assert!(
            tally.lost().abs_diff(expected) <= VIEWERS as u64,
            "{} of {}",
            tally.lost(),
            tally.expected
        );
        assert_eq!(tally.corrupt, 0);
    }

    #[test]
    fn a_changed_bit_is_seen_by_the_auditor() {
        let tally = watch(Fault::Change);
        assert!(tally.corrupt > 0);
        assert_eq!(tally.lost(), 0);
    }

    #[test]
    fn a_packet_that_comes_twice_is_no_second_packet() {
        let tally = watch(Fault::Repeat);
        assert!(tally.duplicates > 0);
        assert_eq!(tally.received, tally.expected);
    }
}
