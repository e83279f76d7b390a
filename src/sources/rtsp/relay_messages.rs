//! What the relay changes in the messages that pass it. Sans-IO.
//!
//! Towards the camera: URIs name the camera instead of the relay, requests are numbered and authenticated anew, and its
//! own requests are answered. Towards the client: answers are written as retina reads them ([`super::relay_corrections`]),
//! keepalives are answered at once, whatever the camera makes of them, and refusals that a fresh nonce overcomes are not
//! passed on. Media keeps one SSRC and its numbering ([`super::relay_rtp`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::BytesMut;
use http_auth::{PasswordClient, PasswordParams};
use url::Position;

use super::garbage::{BufferStart, GarbageSkipper};
use super::lenient_challenge::read_challenges;
use super::message::{
    InterleavedFrameOrMessage, InvalidRtspData, find_header_value, parse_interleaved_channel, push_interleaved,
    take_next_frame_or_message,
};
use super::relay_corrections::{correct_content_base, correct_description, is_valid_header, is_valid_rtp_info};
use super::relay_rtp::RtpStreamJoiner;

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
    /// Channels of the camera and those that the client uses for them, and what comes in those with RTP.
    channels: Vec<(u8, u8)>,
    rtp_streams: BTreeMap<u8, RtpStreamJoiner>,
    garbage_skipper: GarbageSkipper,
    is_playing: bool,
    /// The method of keepalives.
    keepalive_method: &'static str,
    /// Methods of keepalives that the camera refused.
    refused_keepalive_methods: Vec<&'static str>,
    /// Scheme, host and port that the camera names as the base of its control URLs, instead of those that it was asked by.
    named_authority: Option<String>,
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
    /// It was answered already.
    is_keepalive: bool,
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
            rtp_streams: BTreeMap::new(),
            garbage_skipper: GarbageSkipper::default(),
            is_playing: false,
            keepalive_method: "OPTIONS",
            refused_keepalive_methods: Vec::new(),
            named_authority: None,
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
            Some(path) => {
                let authority = self.named_authority.as_ref().unwrap_or(&self.target.camera_authority);
                format!("{authority}{path}")
            }
            None => uri.to_owned(),
        };
        let is_own = |name: &str| {
            ["cseq", "authorization", "user-agent"]
                .iter()
                .any(|own| name.eq_ignore_ascii_case(own))
        };
        let kept = headers.iter().filter(|(name, _)| !is_own(name));
        let client_cseq = find_header_value(headers, "cseq").unwrap_or_default().to_owned();
        let is_keepalive = self.is_playing && matches!(method, "OPTIONS" | "GET_PARAMETER" | "SET_PARAMETER");
        let mut method = method;
        if is_keepalive {
            self.to_client
                .extend(format!("RTSP/1.0 200 OK\r\nCSeq: {client_cseq}\r\n\r\n").into_bytes());
            // Those that the camera left unanswered.
            self.requests.retain(|request| !request.is_keepalive);
            method = self.keepalive_method;
        }
        let request = RelayedRequest {
            client_cseq,
            cseq: 0,
            method: method.to_owned(),
            uri,
            header: kept.map(|(name, value)| format!("{name}: {value}\r\n")).collect(),
            body,
            channel: find_header_value(headers, "transport").and_then(parse_interleaved_channel),
            attempts: 0,
            challenge_number: 0,
            is_keepalive,
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
    pub(super) fn forward_camera_messages_and_frames(&mut self, now: Instant, buffer: &mut BytesMut) -> bool {
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
                    self.forward_packet_of_camera(now, channel, data);
                    continue;
                }
                Ok(Some(InterleavedFrameOrMessage::Message { first, headers, body })) => (first, headers, body),
            };
            let status = first
                .strip_prefix("RTSP/")
                .and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse().ok());
            let Some(status) = status else {
                if first.starts_with("RTSP/") {
                    // The client refuses it, and the camera is read in another way.
                    self.to_client.extend(format!("{first}\r\n\r\n").into_bytes());
                } else {
                    self.answer_request_of_camera(&first, &headers);
                }
                continue;
            };
            if (100..200).contains(&status) {
                continue;
            }
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

    fn forward_packet_of_camera(&mut self, now: Instant, channel: u8, mut data: Vec<u8>) {
        let known = self.channels.iter().find(|(camera, _)| *camera == channel);
        let client_channel = known.map_or(channel, |(_, client_channel)| *client_channel);
        let mut packets = Vec::new();
        if let Some(stream) = self.rtp_streams.get_mut(&channel) {
            stream.push_packet(now, data, &mut packets);
        } else {
            // RTCP has the channel after that of its RTP packets.
            let stream = channel.checked_sub(1).and_then(|rtp| self.rtp_streams.get(&rtp));
            if stream.is_none_or(|stream| stream.correct_rtcp(&mut data)) {
                packets.push(data);
            }
        }
        for packet in packets {
            push_interleaved(&mut self.to_client, client_channel, &packet);
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
        if request.is_keepalive {
            self.learn_keepalive_method(&request, status, headers);
            return true;
        }
        let is_accepted = (200..300).contains(&status);
        let is_setup = request.method == "SETUP" && is_accepted;
        let is_description = request.method == "DESCRIBE" && is_accepted;
        self.is_playing |= request.method == "PLAY" && is_accepted;
        let mut lines = format!("CSeq: {}\r\n", request.client_cseq);
        let replaced: &[&str] = if is_setup {
            &["cseq", "transport", "session", "content-length"]
        } else if is_description {
            &[
                "cseq",
                "content-type",
                "content-base",
                "content-location",
                "content-length",
            ]
        } else {
            &["cseq", "content-length"]
        };
        for (name, value) in headers
            .iter()
            .filter(|(name, _)| !replaced.iter().any(|own| name.eq_ignore_ascii_case(own)))
            .filter(|(name, value)| is_valid_header(name, value))
            .filter(|(name, value)| !name.eq_ignore_ascii_case("rtp-info") || is_valid_rtp_info(value))
        {
            lines += &format!("{name}: {value}\r\n");
        }
        let mut body = Cow::Borrowed(body);
        if is_description {
            body = Cow::Owned(correct_description(&body));
            lines += "Content-Type: application/sdp\r\n";
            let named = ["content-base", "content-location"].map(|name| find_header_value(headers, name));
            let base = named
                .into_iter()
                .find_map(|named| correct_content_base(named, &request.uri));
            if let Some(base) = base {
                // The client knows the relay alone, and may open a connection to what is named here.
                self.named_authority = Some(base[..Position::BeforePath].to_owned());
                let path = &base[Position::BeforePath..];
                lines += &format!("Content-Base: {}{path}\r\n", self.target.relay_authority);
            }
        }
        if !body.is_empty() {
            lines += &format!("Content-Length: {}\r\n", body.len());
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
        self.to_client.extend(&*body);
        true
    }

    /// Learns from the answer to a keepalive how the next one is sent: by a method that the camera names and has not
    /// refused. Some renew the session by GET_PARAMETER or SET_PARAMETER alone.
    fn learn_keepalive_method(&mut self, request: &RelayedRequest, status: u16, headers: &[(String, String)]) {
        let methods = ["GET_PARAMETER", "SET_PARAMETER"];
        if let Some(method) = methods.into_iter().find(|method| *method == request.method) {
            if status >= 400 {
                self.refused_keepalive_methods.push(method);
                self.keepalive_method = "OPTIONS";
            }
            return;
        }
        let public = find_header_value(headers, "public").unwrap_or_default();
        let is_named = |method: &&str| public.split(',').any(|named| named.trim() == *method);
        let usable = methods.into_iter().filter(is_named);
        let first = usable
            .into_iter()
            .find(|method| !self.refused_keepalive_methods.contains(method));
        self.keepalive_method = first.unwrap_or("OPTIONS");
    }

    /// Answers a request of the camera (RFC 2326 §10): it may ask whether the client is still there.
    fn answer_request_of_camera(&mut self, first: &str, headers: &[(String, String)]) {
        let method = first.split_ascii_whitespace().next().unwrap_or_default();
        let status = match method {
            "OPTIONS" | "GET_PARAMETER" | "SET_PARAMETER" | "ANNOUNCE" => "200 OK",
            _ => "501 Not Implemented",
        };
        let kept = ["CSeq", "Session"].map(|name| (name, find_header_value(headers, name)));
        let kept: String = kept
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}: {}\r\n", value?)))
            .collect();
        self.to_camera
            .extend(format!("RTSP/1.0 {status}\r\n{kept}\r\n").into_bytes());
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
        self.rtp_streams.insert(named, RtpStreamJoiner::default());
        self.channels.push((named, asked));
        self.channels.push((named.saturating_add(1), asked.saturating_add(1)));
        asked
    }
}

/// Writes the session and its timeout as RFC 2326 §12.37 has it.
fn normalize_session_header(session: &str) -> String {
    let mut parts = session.split(';').map(str::trim);
    // A client cannot send back an empty one.
    let is_valid = |id: &&str| !id.is_empty() && id.chars().all(|c| c.is_ascii_graphic());
    let id = parts.next().filter(is_valid).unwrap_or("0");
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
mod tests;
