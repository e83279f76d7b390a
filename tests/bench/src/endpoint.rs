//! A peer on its own socket: joins by HTTP as a client would, then connects by ICE and DTLS.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{Rng as _, distr::Alphanumeric};

use crate::{
    gateway::PUBLISH_TOKEN,
    http::Request,
    peer::{Identity, Peer},
    sdp::{self, AUDIO_PT, AUDIO_SSRC, Answer, Local, VIDEO_PT, VIDEO_SSRC},
    sys,
    timeline::Track,
};

/// Receive buffer of a viewer: some seconds of the stream, so that what is lost is not lost here.
const RECEIVE_BUFFER: u32 = 4 << 20;

/// Longest time from the POST to the end of the handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Receiver reports of a viewer; browsers send about one per second.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Datagrams of its own that an endpoint keeps as material for `chaos`: the checks and flights of one connection.
const KEPT: usize = 64;

/// The SSRC in a viewer's receiver reports.
const VIEWER_SSRC: u32 = 1;

/// Which side of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Publisher,
    Viewer,
}

/// What can be read of an RTP packet without keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// `None` for a payload type that is neither of the two.
    pub track: Option<Track>,
    pub seq: u16,
    pub ssrc: u32,
}

impl Header {
    /// Reads a datagram; `None` when it is not RTP (RFC 7983, RFC 5761 §4).
    pub(crate) fn read(datagram: &[u8]) -> Option<Self> {
        let (header, _) = datagram.split_first_chunk::<12>()?;
        let [first, second, s1, s2, _, _, _, _, a, b, c, d] = *header;
        if !(128..=191).contains(&first) || (192..=223).contains(&second) {
            return None;
        }
        let track = match second & 0x7f {
            VIDEO_PT => Some(Track::Video),
            AUDIO_PT => Some(Track::Audio),
            _ => None,
        };
        Some(Self {
            track,
            seq: u16::from_be_bytes([s1, s2]),
            ssrc: u32::from_be_bytes([a, b, c, d]),
        })
    }
}

/// A connected peer.
pub(crate) struct Endpoint {
    socket: UdpSocket,
    peer: Peer,
    role: Role,
    reception: [Option<ReceptionReports>; 2],
    report_at: Instant,
    sent: Vec<Vec<u8>>,
}

/// What a receiver report says about a track.
#[derive(Clone, Copy)]
struct ReceptionReports {
    ssrc: u32,
    highest: u32,
}

/// The outcome of a join.
pub(crate) struct Joined {
    pub endpoint: Endpoint,
    /// Path of the session's URL.
    pub session: String,
    /// From before the TCP connection of the POST to the end of the DTLS handshake.
    pub connected_after: Duration,
}

impl Endpoint {
    /// Joins a stream and connects.
    ///
    /// # Errors
    ///
    /// When the gateway refuses, answers what we cannot use, or does not connect in time.
    pub(crate) fn join(http: SocketAddr, role: Role, stream: &str) -> io::Result<Joined> {
        match role {
            Role::Publisher => {
                let path = format!("/whip/{stream}");
                Self::connect_by(http, role, &path, Some(PUBLISH_TOKEN), sdp::publish_offer)
            }
            Role::Viewer => Self::join_with_token(http, stream, None),
        }
    }

    /// Watches a stream with a token, if there is one.
    ///
    /// # Errors
    ///
    /// As [`Self::join`].
    pub(crate) fn join_with_token(http: SocketAddr, stream: &str, token: Option<&str>) -> io::Result<Joined> {
        Self::connect_by(http, Role::Viewer, &format!("/whep/{stream}"), token, sdp::play_offer)
    }

    /// Joins as an encoder that knows no RTX, with the token of a gateway that somebody else has started.
    ///
    /// # Errors
    ///
    /// As [`Self::join`].
    pub(crate) fn join_as_encoder(http: SocketAddr, token: &str, stream: &str) -> io::Result<Joined> {
        let path = format!("/whip/{stream}");
        Self::connect_by(http, Role::Publisher, &path, Some(token), sdp::encoder_offer)
    }

    fn connect_by(
        http: SocketAddr,
        role: Role,
        path: &str,
        bearer: Option<&str>,
        offer: impl Fn(&Local) -> String,
    ) -> io::Result<Joined> {
        let (ufrag, pwd) = (random_text(8), random_text(24));
        let offer = offer(&Local {
            ufrag: &ufrag,
            pwd: &pwd,
            fingerprint: &Identity::shared()?.fingerprint,
        });
        let socket = socket()?;
        let started = Instant::now();
        let response = Request {
            method: "POST",
            path,
            bearer,
            sdp: Some(&offer),
        }
        .send(http)?;
        if response.status != 201 {
            return Err(io::Error::other(format!(
                "POST {path}: {} {}",
                response.status, response.body
            )));
        }
        let session = session_path(response.header("location").unwrap_or_default())
            .ok_or_else(|| io::Error::other(format!("POST {path}: no Location")))?;
        let answer = Answer::parse(&response.body).map_err(io::Error::other)?;
        socket.connect(answer.address)?;
        let peer = Peer::new(started, &ufrag, answer)?;
        let mut endpoint = Self {
            socket,
            peer,
            role,
            reception: [None; 2],
            report_at: started,
            sent: Vec::new(),
        };
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("connecting to {path}: {error}"));
        endpoint.connect(started).map_err(failed)?;
        Ok(Joined {
            endpoint,
            session,
            connected_after: started.elapsed(),
        })
    }

    fn connect(&mut self, started: Instant) -> io::Result<()> {
        let mut buffer = [0; 2048];
        while !self.peer.connected() {
            let now = Instant::now();
            if now - started > CONNECT_LIMIT {
                return Err(io::Error::other("not connected in time"));
            }
            self.handle_timeout(now)?;
            sys::wait_readable(&self.socket, self.peer.poll_timeout().saturating_duration_since(now))?;
            // One at a time: what follows the handshake is media and belongs to the owner.
            if let Some(length) = receive(&self.socket, &mut buffer)? {
                self.handle_control(buffer.get(..length).unwrap_or_default(), Instant::now())?;
            }
        }
        Ok(())
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Takes all that waits at the socket and is not media.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], now: Instant) -> io::Result<()> {
        while let Some(length) = receive(&self.socket, buffer)? {
            self.handle_control(buffer.get(..length).unwrap_or_default(), now)?;
        }
        Ok(())
    }

    /// As [`Self::receive`]; compound RTCP packets are handed to `on_rtcp`, decrypted.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub(crate) fn receive_rtcp(
        &mut self,
        buffer: &mut [u8],
        now: Instant,
        mut on_rtcp: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        while let Some(length) = receive(&self.socket, buffer)? {
            let datagram = buffer.get(..length).unwrap_or_default();
            match self.peer.open_rtcp(datagram) {
                Some(compound) => on_rtcp(&compound),
                None => self.handle_control(datagram, now)?,
            }
        }
        Ok(())
    }

    /// Takes a datagram that is not RTP.
    ///
    /// # Errors
    ///
    /// Those of the handshake and the socket.
    pub(crate) fn handle_control(&mut self, datagram: &[u8], now: Instant) -> io::Result<()> {
        self.peer.handle_datagram(now, datagram)?;
        self.flush()
    }

    /// Sends the checks and reports that are due.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> io::Result<()> {
        if now >= self.peer.poll_timeout() {
            self.peer.handle_timeout(now)?;
            self.flush()?;
        }
        if self.role == Role::Viewer && self.peer.connected() && now >= self.report_at {
            self.report_at = now + REPORT_INTERVAL;
            let report = self.receiver_report();
            self.send_plain_rtcp(&report)?;
        }
        Ok(())
    }

    /// Remembers what the next receiver report has to say.
    pub(crate) fn record(&mut self, header: &Header) {
        let Some(track) = header.track else { return };
        let reception = &mut self.reception[track.index()];
        let highest = match *reception {
            Some(ReceptionReports { ssrc, highest }) if ssrc == header.ssrc => {
                let ahead = header.seq.wrapping_sub(highest as u16);
                if ahead < 0x8000 {
                    highest + u32::from(ahead)
                } else {
                    highest
                }
            }
            _ => u32::from(header.seq),
        };
        *reception = Some(ReceptionReports {
            ssrc: header.ssrc,
            highest,
        });
    }

    /// The payload of an RTP packet; `None` when it is not authentic.
    pub(crate) fn decrypt(&mut self, datagram: &[u8]) -> Option<Bytes> {
        let packet = self.peer.open_rtp(datagram)?;
        let (start, end) = payload_range(&packet)?;
        (start <= end).then(|| packet.slice(start..end))
    }

    /// Sends one packet of the publisher.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub(crate) fn send_rtp(
        &mut self,
        track: Track,
        seq: u64,
        time: u32,
        marker: bool,
        payload: &[u8],
    ) -> io::Result<()> {
        let (pt, ssrc) = match track {
            Track::Video => (VIDEO_PT, VIDEO_SSRC),
            Track::Audio => (AUDIO_PT, AUDIO_SSRC),
        };
        // The marker of audio begins a talk spurt (RFC 7587 §4.2); this one never pauses.
        let marker = if marker && track == Track::Video { 0x80 } else { 0 };
        let mut packet = Vec::with_capacity(12 + payload.len());
        packet.extend([0x80, marker | pt]);
        packet.extend((seq as u16).to_be_bytes());
        packet.extend(time.to_be_bytes());
        packet.extend(ssrc.to_be_bytes());
        packet.extend_from_slice(payload);
        self.send_plain_rtp(&packet)
    }

    /// Seals and sends an RTP packet as it is.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] when it cannot be sealed; those of the socket.
    pub(crate) fn send_plain_rtp(&mut self, packet: &[u8]) -> io::Result<()> {
        let sealed = self.peer.seal_rtp(packet)?;
        self.send(&sealed)
    }

    /// Seals and sends a compound RTCP packet as it is.
    ///
    /// # Errors
    ///
    /// As [`Self::send_plain_rtp`].
    pub(crate) fn send_plain_rtcp(&mut self, packet: &[u8]) -> io::Result<()> {
        let sealed = self.peer.seal_rtcp(packet)?;
        self.send(&sealed)
    }

    /// The first datagrams that this endpoint has sent.
    pub(crate) fn take_sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(datagram) = self.peer.poll_transmit() {
            self.send(&datagram)?;
        }
        Ok(())
    }

    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        if self.sent.len() < KEPT {
            self.sent.push(datagram.to_vec());
        }
        match self.socket.send(datagram) {
            // The gateway is gone: whoever watches its process says so better.
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => Err(error),
            _ => Ok(()),
        }
    }

    /// A report without complaints (RFC 3550 §6.4.2), then SDES with a CNAME, as every compound packet has to have.
    fn receiver_report(&self) -> Vec<u8> {
        let blocks = self.reception.iter().flatten().count();
        let mut packet = vec![0x80 | blocks as u8, 201, 0, 1 + 6 * blocks as u8];
        packet.extend(VIEWER_SSRC.to_be_bytes());
        for reception in self.reception.iter().flatten() {
            packet.extend(reception.ssrc.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend(reception.highest.to_be_bytes());
            packet.extend([0; 12]);
        }
        packet.extend([0x81, 202, 0, 3]);
        packet.extend(VIEWER_SSRC.to_be_bytes());
        packet.extend(*b"\x01\x05bench\0");
        packet
    }
}

/// A socket on loopback that is ready to receive a stream, with a large buffer and time stamps.
///
/// # Errors
///
/// When the system has none left.
pub(crate) fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    sys::prepare_receiver(&socket, RECEIVE_BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match socket.recv(buffer) {
        Ok(length) => Ok(Some(length)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The path of a `Location`, which may be absolute or relative (RFC 9110 §10.2.2).
fn session_path(location: &str) -> Option<String> {
    let path = match location.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => location,
    };
    path.starts_with('/').then(|| path.to_owned())
}

/// Where the payload of an RTP packet begins and ends (RFC 3550 §5.1). The end is the first byte of padding, which a
/// gateway may add to make packets of a frame equally long.
fn payload_range(packet: &[u8]) -> Option<(usize, usize)> {
    let first = packet.first()?;
    let padding = if first & 0x20 == 0 {
        0
    } else {
        usize::from(*packet.last()?)
    };
    let end = packet.len().checked_sub(padding)?;
    let csrcs = 12 + 4 * usize::from(first & 0x0f);
    if first & 0x10 == 0 {
        return Some((csrcs, end));
    }
    let (_, length) = packet.get(csrcs..)?.split_first_chunk::<2>()?;
    let (length, _) = length.split_first_chunk::<2>()?;
    Some((csrcs + 4 + 4 * usize::from(u16::from_be_bytes(*length)), end))
}

/// Letters and digits, which ICE credentials may have.
fn random_text(length: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(length)
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, second: u8) -> Vec<u8> {
        vec![first, second, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0, 7, 0xaa]
    }

    #[test]
    fn rtp_is_distinguished_from_everything_else() {
        let header = Header::read(&packet(0x80, 0x80 | VIDEO_PT)).unwrap();
        assert_eq!(
            header,
            Header {
                track: Some(Track::Video),
                seq: 0x1234,
                ssrc: 7
            }
        );
        assert_eq!(Header::read(&packet(0x90, AUDIO_PT)).unwrap().track, Some(Track::Audio));
        assert_eq!(Header::read(&packet(0x80, 97)).unwrap().track, None);
        for other in [
            packet(0x80, 201),
            packet(0, 1),
            packet(22, 254),
            packet(0x80, 96)[..11].to_vec(),
        ] {
            assert_eq!(Header::read(&other), None);
        }
    }

    #[test]
    fn the_payload_lies_between_the_extension_and_the_padding() {
        assert_eq!(payload_range(&packet(0x80, 96)), Some((12, 13)));
        assert_eq!(payload_range(&packet(0x81, 96)), Some((16, 13)));
        let extension = [&packet(0x90, 96)[..12], &[0xbe, 0xde, 0, 1, 0, 0, 0, 0, 0xaa]].concat();
        assert_eq!(payload_range(&extension), Some((20, 21)));
        let padded = [&packet(0xa0, 96)[..], &[0, 2]].concat();
        assert_eq!(payload_range(&padded), Some((12, 13)));
        assert_eq!(payload_range(&packet(0xa0, 96)), None, "more padding than packet");
        assert_eq!(payload_range(&packet(0x9f, 96)), None);
    }

    #[test]
    fn a_location_is_absolute_or_relative() {
        assert_eq!(session_path("/session/1").as_deref(), Some("/session/1"));
        assert_eq!(
            session_path("http://[::1]:8080/session/1").as_deref(),
            Some("/session/1")
        );
        assert_eq!(session_path(""), None);
        assert_eq!(session_path("http://nowhere"), None);
    }
}
