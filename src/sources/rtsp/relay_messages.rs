//! What the relay changes in the messages that pass it. Sans-IO.
//!
//! Towards the camera: URIs name the camera instead of the relay, requests are numbered and authenticated anew. Towards
//! the client: answers to SETUP are written as retina reads them, and refusals that a fresh nonce overcomes are not passed
//! on. Everything else passes as it is.

use std::collections::VecDeque;

use bytes::BytesMut;
use http_auth::{PasswordClient, PasswordParams};

use super::garbage::{BufferStart, GarbageSkipper};
use super::lenient_challenge::read_challenges;
use super::message::{
    InterleavedFrameOrMessage, InvalidRtspData, find_header_value, parse_interleaved_channel, push_interleaved,
    take_next_frame_or_message,
};

/// What a relay stands between.
pub(super) struct RtspRelayEndpoints {
    /// Scheme, host and port of the relay, as in the URIs of the client.
    pub(super) relay_authority: String,
    pub(super) camera_authority: String,
    /// User name and password.
    pub(super) credentials: Option<(String, String)>,
    /// User agent that the first request must have.
    pub(super) user_agent: String,
}

/// The messages of one connection, in both directions.
pub(super) struct RtspMessageRelay {
    target: RtspRelayEndpoints,
    /// Bytes to send.
    pub(super) to_camera: Vec<u8>,
    pub(super) to_client: Vec<u8>,
    is_client_known: bool,
    challenge: Option<PasswordClient>,
    /// Number of the challenge, from 1.
    challenge_number: u32,
    next_cseq: u32,
    requests: VecDeque<RelayedRequest>,
    /// Channels of the camera and those that the client uses for them, where they differ.
    channels: Vec<(u8, u8)>,
    garbage_skipper: GarbageSkipper,
}

/// A request that waits for its answer.
struct RelayedRequest {
    client_cseq: String,
    cseq: u32,
    method: String,
    uri: String,
    /// Lines of the header that pass unchanged.
    header: String,
    body: Vec<u8>,
    /// First channel that it asked for.
    channel: Option<u8>,
    attempts: u32,
    /// Number of the challenge that it was authenticated with; 0 without.
    challenge_number: u32,
}

/// Requests that wait for an answer at the same time.
const MAX_PENDING_REQUESTS: usize = 16;

/// A request is sent without credentials, with them, and with a fresh nonce.
const MAX_AUTHENTICATION_ATTEMPTS: u32 = 3;

impl RtspMessageRelay {
    pub(super) fn new(target: RtspRelayEndpoints) -> Self {
        Self {
            target,
            to_camera: Vec::new(),
            to_client: Vec::new(),
            is_client_known: false,
            challenge: None,
            challenge_number: 0,
            next_cseq: 1,
            requests: VecDeque::new(),
            channels: Vec::new(),
            garbage_skipper: GarbageSkipper::default(),
        }
    }

    /// Returns how many bytes of the camera were skipped because they are no RTSP.
    pub(super) fn skipped_byte_count(&self) -> u64 {
        self.garbage_skipper.total_bytes()
    }

    /// Takes the complete items that the client sent. Returns whether the connection may go on.
    pub(super) fn forward_client_messages_and_frames(&mut self, buffer: &mut BytesMut) -> bool {
        loop {
            let (first, headers, body) = match take_next_frame_or_message(buffer) {
                Err(InvalidRtspData) => return false,
                Ok(None) => return true,
                Ok(Some(InterleavedFrameOrMessage::Interleaved { channel, data })) => {
                    let known = self
                        .channels
                        .iter()
                        .find(|(_, client_channel)| *client_channel == channel);
                    let channel = known.map_or(channel, |(camera, _)| *camera);
                    push_interleaved(&mut self.to_camera, channel, &data);
                    continue;
                }
                Ok(Some(InterleavedFrameOrMessage::Message { first, headers, body })) => (first, headers, body),
            };
            if !self.is_client_known && find_header_value(&headers, "user-agent") != Some(&self.target.user_agent) {
                return false;
            }
            self.is_client_known = true;
            if first.starts_with("RTSP/") {
                let lines: String = headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}\r\n"))
                    .collect();
                self.to_camera.extend(format!("{first}\r\n{lines}\r\n").into_bytes());
                self.to_camera.extend(body);
            } else if self.requests.len() >= MAX_PENDING_REQUESTS
                || !self.rewrite_and_send_request(&first, &headers, body)
            {
                return false;
            }
        }
    }

    fn rewrite_and_send_request(&mut self, first: &str, headers: &[(String, String)], body: Vec<u8>) -> bool {
        let mut words = first.split_ascii_whitespace();
        let (Some(method), Some(uri)) = (words.next(), words.next()) else {
            return false;
        };
        let uri = match uri.strip_prefix(&self.target.relay_authority) {
            Some(path) => format!("{}{path}", self.target.camera_authority),
            None => uri.to_owned(),
        };
        let is_own = |name: &str| {
            ["cseq", "authorization", "user-agent"]
                .iter()
                .any(|own| name.eq_ignore_ascii_case(own))
        };
        let kept = headers.iter().filter(|(name, _)| !is_own(name));
        let request = RelayedRequest {
            client_cseq: find_header_value(headers, "cseq").unwrap_or_default().to_owned(),
            cseq: 0,
            method: method.to_owned(),
            uri,
            header: kept.map(|(name, value)| format!("{name}: {value}\r\n")).collect(),
            body,
            channel: find_header_value(headers, "transport").and_then(parse_interleaved_channel),
            attempts: 0,
            challenge_number: 0,
        };
        self.send_request(request)
    }

    /// Sends a request, for the first time or again. Returns whether it could be authenticated.
    fn send_request(&mut self, mut request: RelayedRequest) -> bool {
        let mut authorization = String::new();
        if let (Some(challenge), Some((username, password))) = (&mut self.challenge, &self.target.credentials) {
            let answer = challenge.respond(&PasswordParams {
                username,
                password,
                uri: &request.uri,
                method: &request.method,
                body: Some(&request.body),
            });
            let Ok(answer) = answer else { return false };
            authorization = format!("Authorization: {answer}\r\n");
            request.challenge_number = self.challenge_number;
        }
        (request.cseq, request.attempts) = (self.next_cseq, request.attempts + 1);
        self.next_cseq += 1;
        let RelayedRequest {
            method,
            uri,
            cseq,
            header,
            ..
        } = &request;
        let text =
            format!("{method} {uri} RTSP/1.0\r\nCSeq: {cseq}\r\nUser-Agent: millstream\r\n{authorization}{header}\r\n");
        self.to_camera.extend(text.into_bytes());
        self.to_camera.extend(&request.body);
        self.requests.push_back(request);
        true
    }

    /// Takes the complete items that the camera sent. Returns whether the connection may go on.
    pub(super) fn forward_camera_messages_and_frames(&mut self, buffer: &mut BytesMut) -> bool {
        loop {
            let channels = &self.channels;
            let is_known = |channel| channels.iter().any(|(camera, _)| *camera == channel);
            match self.garbage_skipper.skip_to_item(buffer, is_known) {
                BufferStart::Item => {}
                BufferStart::Incomplete => return true,
                BufferStart::TooMuchGarbage => return false,
            }
            let (first, headers, body) = match take_next_frame_or_message(buffer) {
                Err(InvalidRtspData) => return false,
                Ok(None) => return true,
                Ok(Some(InterleavedFrameOrMessage::Interleaved { channel, data })) => {
                    let known = self.channels.iter().find(|(camera, _)| *camera == channel);
                    let channel = known.map_or(channel, |(_, client_channel)| *client_channel);
                    push_interleaved(&mut self.to_client, channel, &data);
                    continue;
                }
                Ok(Some(InterleavedFrameOrMessage::Message { first, headers, body })) => (first, headers, body),
            };
            let status = first
                .strip_prefix("RTSP/")
                .and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse().ok());
            let Some(status) = status else {
                // A request of the camera; retina answers it.
                let lines: String = headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}\r\n"))
                    .collect();
                self.to_client.extend(format!("{first}\r\n{lines}\r\n").into_bytes());
                self.to_client.extend(body);
                continue;
            };
            let cseq = find_header_value(&headers, "cseq").and_then(|text| text.parse::<u32>().ok());
            let numbered = self.requests.iter().position(|request| Some(request.cseq) == cseq);
            let Some(request) = self.requests.remove(numbered.unwrap_or(0)) else {
                continue;
            };
            if !self.forward_response_or_retry(request, status, &headers, &body) {
                return false;
            }
        }
    }

    fn forward_response_or_retry(
        &mut self,
        request: RelayedRequest,
        status: u16,
        headers: &[(String, String)],
        body: &[u8],
    ) -> bool {
        if status == 401 && self.should_retry_with_new_challenge(&request, headers) {
            return self.send_request(request);
        }
        let is_setup = request.method == "SETUP" && (200..300).contains(&status);
        let mut lines = format!("CSeq: {}\r\n", request.client_cseq);
        let replaced: &[&str] = if is_setup {
            &["cseq", "transport", "session"]
        } else {
            &["cseq"]
        };
        for (name, value) in headers
            .iter()
            .filter(|(name, _)| !replaced.iter().any(|own| name.eq_ignore_ascii_case(own)))
        {
            lines += &format!("{name}: {value}\r\n");
        }
        if is_setup {
            let channel =
                self.assign_interleaved_channel(request.channel.unwrap_or(0), find_header_value(headers, "transport"));
            lines += &format!(
                "Transport: RTP/AVP/TCP;unicast;interleaved={channel}-{}\r\n",
                channel.saturating_add(1)
            );
            lines += &format!(
                "Session: {}\r\n",
                normalize_session_header(find_header_value(headers, "session").unwrap_or("0"))
            );
        }
        let reason = if status < 400 { "OK" } else { "Refused" };
        self.to_client
            .extend(format!("RTSP/1.0 {status} {reason}\r\n{lines}\r\n").into_bytes());
        self.to_client.extend(body);
        true
    }

    /// Returns whether a refused request is to be sent again, with the challenge of the refusal: if it had none that was
    /// given for it, or one that the camera calls stale.
    fn should_retry_with_new_challenge(&mut self, request: &RelayedRequest, headers: &[(String, String)]) -> bool {
        if self.target.credentials.is_none() || request.attempts >= MAX_AUTHENTICATION_ATTEMPTS {
            return false;
        }
        let (challenge, is_stale) = read_challenges(headers);
        let is_old = request.challenge_number == 0 || request.attempts == 1;
        match challenge {
            Some(challenge) if is_stale || is_old => {
                self.challenge = Some(challenge);
                self.challenge_number += 1;
                true
            }
            _ => false,
        }
    }

    /// Returns the channel that the client uses: the one that it asked for. The camera uses that too, unless it named
    /// another (RFC 2326 §12.39).
    fn assign_interleaved_channel(&mut self, asked: u8, transport: Option<&str>) -> u8 {
        let named = transport.and_then(parse_interleaved_channel).unwrap_or(asked);
        self.channels
            .retain(|(_, client_channel)| *client_channel != asked && *client_channel != asked.saturating_add(1));
        self.channels.push((named, asked));
        self.channels.push((named.saturating_add(1), asked.saturating_add(1)));
        asked
    }
}

/// Writes the session and its timeout as RFC 2326 §12.37 has it.
fn normalize_session_header(session: &str) -> String {
    let mut parts = session.split(';').map(str::trim);
    let id = parts.next().unwrap_or_default();
    let timeout = parts
        .filter_map(|part| part.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse::<u32>().ok());
    match timeout {
        Some(seconds @ 1..) => format!("{id};timeout={seconds}"),
        _ => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::rtsp::message::{MAX_BODY_BYTES, MAX_HEADER_BYTES};

    fn relay() -> RtspMessageRelay {
        RtspMessageRelay::new(RtspRelayEndpoints {
            relay_authority: "rtsp://127.0.0.1:9".to_owned(),
            camera_authority: "rtsp://cam:554".to_owned(),
            credentials: Some(("u".to_owned(), "p".to_owned())),
            user_agent: "secret".to_owned(),
        })
    }

    fn text(bytes: &mut Vec<u8>) -> String {
        String::from_utf8_lossy(&std::mem::take(bytes)).into_owned()
    }

    fn setup(relay: &mut RtspMessageRelay, cseq: u32, channel: u8) -> String {
        let next = channel + 1;
        let request = format!(
            "SETUP rtsp://127.0.0.1:9/a/t0 RTSP/1.0\r\nCSeq: {cseq}\r\nUser-Agent: secret\r\n\
             Transport: RTP/AVP/TCP;unicast;interleaved={channel}-{next}\r\n\r\n"
        );
        assert!(relay.forward_client_messages_and_frames(&mut request.as_bytes().into()));
        text(&mut relay.to_camera)
    }

    fn answer(relay: &mut RtspMessageRelay, answer: &str) -> String {
        assert!(relay.forward_camera_messages_and_frames(&mut answer.as_bytes().into()));
        text(&mut relay.to_client)
    }

    #[test]
    fn every_answer_to_setup_gets_the_channels_that_were_asked_for() {
        for transport in [
            "",
            "Transport: RTP/AVP/TCP;unicast\r\n",
            "Transport: RTP/AVP/TCP;unicast; interleaved = 2 - 3\r\n",
            "Transport: RTP/AVP/TCP;unicast;interleaved=2-7;ssrc=0x12\r\n",
            "transport: RTP/AVP/TCP;unicast;source=camera.local;INTERLEAVED=2\r\n",
            "Transport: RTP/AVP/TCP;interleaved=x-y\r\n",
        ] {
            let mut relay = relay();
            assert!(setup(&mut relay, 7, 2).starts_with("SETUP rtsp://cam:554/a/t0 RTSP/1.0\r\nCSeq: 1\r\n"));
            let answered = answer(
                &mut relay,
                &format!("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 5 ; timeout=0;x\r\n{transport}\r\n"),
            );
            assert!(
                answered.contains("interleaved=2-3\r\n") && answered.contains("CSeq: 7\r\n"),
                "{transport}: {answered}"
            );
            assert!(
                answered.contains("Session: 5\r\n") && !answered.contains("ssrc"),
                "{answered}"
            );
            assert_eq!(answer(&mut relay, "$\u{2}\0\u{1}x"), "$\u{2}\0\u{1}x", "{transport}");
        }
    }

    #[test]
    fn channels_of_the_camera_become_those_that_were_asked_for() {
        let mut relay = relay();
        setup(&mut relay, 1, 0);
        answer(
            &mut relay,
            "RTSP/1.0 200 OK\nCSeq: 1\nSession: 5\nTransport: RTP/AVP/TCP;interleaved=8-9\n\n",
        );
        assert_eq!(
            answer(&mut relay, "\r\n$\u{8}\0\u{1}x$\u{9}\0\u{1}y"),
            "$\0\0\u{1}x$\u{1}\0\u{1}y"
        );
        assert!(relay.forward_client_messages_and_frames(&mut b"$\x01\0\x01r"[..].into()));
        assert_eq!(text(&mut relay.to_camera), "$\u{9}\0\u{1}r");
    }

    #[test]
    fn garbage_between_frames_is_skipped_and_counted() {
        let mut relay = relay();
        setup(&mut relay, 1, 0);
        let accepted = "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 5\r\nTransport: RTP/AVP/TCP;interleaved=4-5\r\n\r\n";
        answer(&mut relay, accepted);
        let mut buffer = BytesMut::new();
        for part in [
            &b"$\x04\0\x08\x80rtprtp!"[..],
            b"\xfejunk $ junk",
            b"$\x05\0\x08\x80rtcprt!\xffjunk$$$\x06\0\x08\x80",
            b"$\x04\0\x08\x80rtprtp!",
        ] {
            buffer.extend_from_slice(part);
            assert!(relay.forward_camera_messages_and_frames(&mut buffer));
        }
        let wanted = b"$\0\0\x08\x80rtprtp!$\x01\0\x08\x80rtcprt!$\0\0\x08\x80rtprtp!";
        assert_eq!(relay.to_client, wanted);
        assert!(buffer.is_empty() && relay.skipped_byte_count() > 0);
    }

    #[test]
    fn challenges_that_are_written_oddly_are_answered() {
        for challenge in [
            "Digest  realm=\"r\",   nonce=\"a\"",
            "Digest realm=\"r\", nonce=\"a\", qop=\"\"",
            "digest realm = \"r\",nonce=\"a\",,algorithm=\"\",qop=auth",
        ] {
            let mut relay = relay();
            setup(&mut relay, 3, 0);
            let refusal = format!("RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\nWWW-Authenticate: {challenge}\r\n\r\n");
            assert_eq!(answer(&mut relay, &refusal), "", "{challenge}");
            let again = text(&mut relay.to_camera);
            assert!(again.contains("nonce=\"a\""), "{challenge}: {again}");
        }
    }

    #[test]
    fn a_refused_nonce_is_replaced_and_a_refused_password_is_passed_on() {
        let mut relay = relay();
        let refusal = |cseq: u32, nonce: &str, stale: bool| {
            format!(
                "RTSP/1.0 401 Unauthorized\r\nCSeq: {cseq}\r\nWWW-Authenticate: Digest realm=\"r\", nonce=\"{nonce}\", \
                 qop=\"auth,auth-int\", stale={stale}\r\n\r\n"
            )
        };
        assert!(!setup(&mut relay, 3, 0).contains("Authorization"));
        assert_eq!(answer(&mut relay, &refusal(1, "a", false)), "");
        let again = text(&mut relay.to_camera);
        assert!(
            again.contains("CSeq: 2\r\n") && again.contains("nonce=\"a\"") && again.contains("qop=auth,"),
            "{again}"
        );
        answer(&mut relay, "RTSP/1.0 200 OK\r\nCSeq: 2\r\nSession: 5\r\n\r\n");
        // The nonce has expired when the next request is sent.
        assert!(setup(&mut relay, 4, 2).contains("nonce=\"a\""));
        assert_eq!(answer(&mut relay, &refusal(3, "b", true)), "");
        assert!(text(&mut relay.to_camera).contains("nonce=\"b\""));
        // The password is wrong.
        let answered = answer(&mut relay, &refusal(4, "c", false));
        assert!(
            answered.starts_with("RTSP/1.0 401 ") && answered.contains("CSeq: 4\r\n"),
            "{answered}"
        );
        assert!(relay.to_camera.is_empty());
    }

    #[test]
    fn only_the_gateway_is_relayed_and_only_rtsp() {
        let stranger = "OPTIONS rtsp://127.0.0.1:9/ RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: x\r\n\r\n";
        assert!(!relay().forward_client_messages_and_frames(&mut stranger.as_bytes().into()));
        assert!(!relay().forward_client_messages_and_frames(&mut b"\xff\xfe"[..].into()));
        let endless = [&b"RTSP/1.0 200 OK\r\nA: "[..], &vec![b'A'; MAX_HEADER_BYTES + 1]].concat();
        assert!(!relay().forward_camera_messages_and_frames(&mut endless[..].into()));
        assert!(!relay().forward_camera_messages_and_frames(&mut vec![b'A'; 1 << 17][..].into()));
        let huge = format!("RTSP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY_BYTES + 1);
        assert!(!relay().forward_camera_messages_and_frames(&mut huge.as_bytes().into()));
        let request = "OPTIONS * RTSP/1.0\r\nUser-Agent: secret\r\n\r\n".repeat(MAX_PENDING_REQUESTS + 1);
        assert!(!relay().forward_client_messages_and_frames(&mut request.as_bytes().into()));
    }
}
