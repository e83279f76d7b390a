//! An RTSP connection on which one request is sent after the other, authenticated where the camera asks for that.

use std::time::Duration;

use bytes::BytesMut;
use http_auth::{PasswordClient, PasswordParams};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sources::rtsp::camera::{Camera, CameraError, RtspStep};
use crate::sources::rtsp::connect::open_connection;
use crate::sources::rtsp::garbage::{BufferStart, GarbageSkipper};
use crate::sources::rtsp::lenient_challenge::read_challenges;
use crate::sources::rtsp::message::{InterleavedFrameOrMessage, take_next_frame_or_message};

/// Timeout of a request, with what it takes to authenticate it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A request is sent without credentials, with them, and with a fresh nonce.
pub(super) const MAX_AUTHENTICATION_ATTEMPTS: u32 = 3;

/// Messages and frames of the camera that may come before the response to a request.
const MAX_ITEMS_BEFORE_RESPONSE: usize = 1_000;

/// The camera is given up when it acknowledges nothing for this long.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Send buffer of the kernel: what waits there is too late to be dropped.
const SEND_BUFFER_BYTES: usize = 4 * 1024;

/// A response of the camera.
pub(super) struct RtspResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A connection on which requests are written and authenticated.
pub(super) struct RtspConnection {
    pub stream: TcpStream,
    pub received: BytesMut,
    garbage_skipper: GarbageSkipper,
    /// URI of the stream, without credentials: the base that the camera names, once it has.
    pub uri: String,
    credentials: Option<(String, String)>,
    challenge: Option<PasswordClient>,
    next_cseq: u32,
    pub session_id: Option<String>,
}

impl RtspConnection {
    /// Connects to the camera, at an address that `sources.allow` permits.
    pub(super) async fn open(camera: &Camera) -> Result<Self, CameraError> {
        let credentials = camera.read_credentials()?;
        let stream = open_connection(camera).await?;
        // Without these options the connection works too.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES);
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
        Ok(Self {
            stream,
            received: BytesMut::new(),
            garbage_skipper: GarbageSkipper::default(),
            uri: camera.url.to_string(),
            credentials: credentials.map(|credentials| (credentials.username, credentials.password)),
            challenge: None,
            next_cseq: 1,
            session_id: None,
        })
    }

    /// Writes a request, authenticated if the camera has asked for that.
    pub(super) fn write_request(&mut self, method: &str, uri: &str, headers: &str) -> Vec<u8> {
        let cseq = self.next_cseq;
        self.next_cseq += 1;
        let mut text = format!("{method} {uri} RTSP/1.0\r\nCSeq: {cseq}\r\nUser-Agent: millstream\r\n");
        if let (Some(challenge), Some((username, password))) = (&mut self.challenge, &self.credentials) {
            let answer = challenge.respond(&PasswordParams {
                username,
                password,
                uri,
                method,
                body: Some(&[]),
            });
            // Without an answer, the camera refuses the request.
            text += &answer.map_or_else(|_| String::new(), |answer| format!("Authorization: {answer}\r\n"));
        }
        if let Some(session) = &self.session_id {
            text += &format!("Session: {session}\r\n");
        }
        text += headers;
        text += "\r\n";
        text.into_bytes()
    }

    /// Takes the challenge of a refusal. Returns whether the request is worth another attempt.
    pub(super) fn take_challenge(&mut self, response: &RtspResponse) -> bool {
        if self.credentials.is_none() {
            return false;
        }
        let (challenge, _) = read_challenges(&response.headers);
        let is_readable = challenge.is_some();
        self.challenge = challenge;
        is_readable
    }

    /// Sends a request and waits for its response.
    pub(super) async fn request(
        &mut self,
        method: &str,
        uri: &str,
        headers: &str,
        step: RtspStep,
    ) -> Result<RtspResponse, CameraError> {
        let asking = async {
            let mut attempts = 1;
            loop {
                let bytes = self.write_request(method, uri, headers);
                let lost = |error: std::io::Error| CameraError::StepFailed {
                    step,
                    text: error.to_string(),
                };
                self.stream.write_all(&bytes).await.map_err(lost)?;
                let response = self.read_response(step).await?;
                let is_refused = response.status == 401 && attempts < MAX_AUTHENTICATION_ATTEMPTS;
                if !is_refused || !self.take_challenge(&response) {
                    return Ok(response);
                }
                attempts += 1;
            }
        };
        timeout(REQUEST_TIMEOUT, asking)
            .await
            .unwrap_or(Err(CameraError::Timeout(step)))
    }

    /// Removes the next message or frame from what was received; `None` if it is not complete.
    pub(super) fn take_next_item(&mut self) -> Result<Option<InterleavedFrameOrMessage>, &'static str> {
        const NOT_RTSP: &str = "the camera sent data that is not RTSP, or an RTSP message that is too long";
        // SETUP requests the channels 0 and 1.
        let start = self
            .garbage_skipper
            .skip_to_item(&mut self.received, |channel| channel <= 1);
        match start {
            BufferStart::Item => take_next_frame_or_message(&mut self.received).map_err(|_| NOT_RTSP),
            BufferStart::Incomplete => Ok(None),
            BufferStart::TooMuchGarbage => Err(NOT_RTSP),
        }
    }

    async fn read_response(&mut self, step: RtspStep) -> Result<RtspResponse, CameraError> {
        let failed = |text: &str| CameraError::StepFailed {
            step,
            text: text.to_owned(),
        };
        for _ in 0..MAX_ITEMS_BEFORE_RESPONSE {
            let item = loop {
                if let Some(item) = self.take_next_item().map_err(failed)? {
                    break item;
                }
                let read = self.stream.read_buf(&mut self.received).await;
                if read.map_err(|error| failed(&error.to_string()))? == 0 {
                    return Err(failed("the camera closed the connection"));
                }
            };
            // Whatever its number is: some cameras number their responses wrongly, and nothing else is asked meanwhile.
            if let Some(response) = RtspResponse::from_item(item) {
                return Ok(response);
            }
        }
        Err(failed("the camera does not respond to the request"))
    }

    /// Returns the error of a refusal.
    pub(super) fn require_success(&self, response: &RtspResponse, step: RtspStep) -> Result<(), CameraError> {
        Err(match response.status {
            200..=299 => return Ok(()),
            401 | 403 if self.credentials.is_some() => CameraError::CredentialsRejected,
            401 => CameraError::CredentialsRequired,
            404 => CameraError::NotFound,
            461 => CameraError::UnsupportedTransport,
            status @ 300..=399 => CameraError::Redirected(status),
            status => CameraError::StepFailed {
                step,
                text: format!("the camera answered with RTSP status {status}"),
            },
        })
    }
}

impl RtspResponse {
    /// Returns a response; `None` for everything else.
    pub(super) fn from_item(item: InterleavedFrameOrMessage) -> Option<Self> {
        let InterleavedFrameOrMessage::Message { first, headers, body } = item else {
            return None;
        };
        let rest = first.strip_prefix("RTSP/")?;
        let status = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(Self { status, headers, body })
    }
}
