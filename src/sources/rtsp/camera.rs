//! A camera: its URL, credentials and policies, and why a session with it fails.

use super::fallback::CameraFallback;
use super::incompatibility::CameraIncompatibility;
use super::policies::CameraQuirkPolicies;
use crate::config::RtspTransport;
use crate::pipeline::parameter::{TargetHost, UnescapedCredentialsError, url_with_address};
use crate::sources::fetch::address::{AddressError, AllowedNetworks};
use retina::client::{Credentials, SessionGroup, TcpTransportOptions, UdpTransportOptions};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use url::Url;

/// An RTSP camera.
#[derive(Clone)]
pub struct Camera {
    /// Without credentials.
    pub(super) url: Url,
    /// The address of its host for one session, once that is resolved.
    pub(super) address: Option<IpAddr>,
    pub transport: RtspTransport,
    username: Option<String>,
    password: PasswordSource,
    pub policies: CameraQuirkPolicies,
    /// Networks that the camera may be in.
    pub allowed_networks: AllowedNetworks,
    /// `silence_timeout` of the configuration.
    pub silence_timeout: Option<Duration>,
    /// `None` if there is no pipeline for it.
    pub fallback: Option<CameraFallback>,
    /// Tracks sessions that the camera may still consider open.
    pub(super) session_group: Arc<SessionGroup>,
}

/// Where the password of a camera comes from.
#[derive(Clone, Default)]
pub enum PasswordSource {
    #[default]
    None,
    Inline(String),
    /// Read anew for each session.
    File(PathBuf),
}

/// Why a camera URL is invalid; the text follows the name of the key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CameraUrlError {
    #[error("the URL is not a camera URL: expected rtsp://host[:port]/path")]
    InvalidUrl,
    #[error(
        "the URL does not start with rtsp://; for rtsps:// use `pipeline = \"rtsp\"` with `params = {{ uri = ... }}`"
    )]
    UnsupportedScheme,
    #[error("the URL has credentials that are not UTF-8 after percent-decoding")]
    CredentialsNotUtf8,
    #[error(transparent)]
    UnescapedCredentials(#[from] UnescapedCredentialsError),
}

/// The step of the session at which a camera failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtspStep {
    Connect,
    Describe,
    Setup,
    Play,
    /// Frames.
    Receive,
}

impl std::fmt::Display for RtspStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting to the camera",
            Self::Describe => "RTSP request DESCRIBE",
            Self::Setup => "RTSP request SETUP",
            Self::Play => "RTSP request PLAY",
            Self::Receive => "receiving media from the camera",
        })
    }
}

/// Why a session with a camera failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CameraError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("the camera cannot be reached: the TCP connection to port {0} was refused")]
    ConnectionRefused(u16),
    #[error("the camera cannot be reached: {0}")]
    Unreachable(String),
    #[error("the camera did not respond in time ({0})")]
    Timeout(RtspStep),
    #[error("the camera rejected the credentials")]
    CredentialsRejected,
    #[error("the camera requires credentials: set `username` and `password_file`")]
    CredentialsRequired,
    #[error("the password file of the camera cannot be read: {0}")]
    PasswordFileUnreadable(String),
    #[error("the camera does not know the path of the URL (RTSP status 404): check the URL")]
    NotFound,
    #[error(
        "the camera redirects to another URL (RTSP status {0}), which the gateway does not follow: use the pipeline \
         `rtsp`, which does, or configure the URL that the camera redirects to"
    )]
    Redirected(u16),
    #[error("{step} failed: {text}")]
    StepFailed { step: RtspStep, text: String },
    #[error(
        "the camera offers no supported codec: neither video in H.264, H.265 or JPEG nor audio in Opus, G.711 or AAC{}",
        offered_clause(.0)
    )]
    /// With what it offers instead.
    NoSupportedTracks(Vec<String>),
    #[error("the camera stopped sending video (or audio, if it has no video)")]
    StoppedSendingMedia,
    #[error(
        "the camera sends no media, although it accepted PLAY: change `transport` from \"tcp\" to \"udp\", or from \"udp\" to \"tcp\""
    )]
    NoMedia,
    #[error("the camera sends RTP packets, but no complete frame could be assembled from them")]
    NoDecodableFrames,
    #[error("the camera supports neither RTP over the RTSP connection nor RTP over UDP (RTSP status 461)")]
    UnsupportedTransport,
    #[error("{}", .0.text())]
    Incompatible(CameraIncompatibility),
    /// The pipeline that reads the camera instead failed.
    #[error("{0}")]
    PipelineFailed(String),
    #[error("the camera ended the RTSP session")]
    SessionEnded,
}

fn offered_clause(tracks: &[String]) -> String {
    if tracks.is_empty() {
        return String::new();
    }
    format!(" (it offers {})", tracks.join(", "))
}

/// RFC 2326 §3.2.
const DEFAULT_RTSP_PORT: u16 = 554;

impl Camera {
    /// Parses the URL. Credentials in it are removed from it, and used unless others are given.
    ///
    /// # Errors
    ///
    /// A [`CameraUrlError`].
    pub fn new(url: &str, username: Option<String>, password: PasswordSource) -> Result<Self, CameraUrlError> {
        let text = url.trim();
        let parsed = Url::parse(text).ok();
        if let Some(unescaped) = UnescapedCredentialsError::detect_in_url(text, parsed.as_ref()) {
            return Err(unescaped.into());
        }
        let mut url = parsed.ok_or(CameraUrlError::InvalidUrl)?;
        if url.scheme() != "rtsp" {
            return Err(CameraUrlError::UnsupportedScheme);
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(CameraUrlError::InvalidUrl);
        }
        let url_credentials = (
            percent_decode(url.username())?,
            percent_decode(url.password().unwrap_or_default())?,
        );
        let (username, password) = match username {
            None if !url_credentials.0.is_empty() => {
                (Some(url_credentials.0), PasswordSource::Inline(url_credentials.1))
            }
            username => (username, password),
        };
        url.set_username("")
            .and_then(|()| url.set_password(None))
            .map_err(|()| CameraUrlError::InvalidUrl)?;
        Ok(Self {
            url,
            address: None,
            transport: RtspTransport::default(),
            username,
            password,
            policies: CameraQuirkPolicies::default(),
            allowed_networks: AllowedNetworks::default(),
            silence_timeout: None,
            fallback: None,
            session_group: Arc::default(),
        })
    }

    pub(super) fn host(&self) -> TargetHost {
        let name = self.url.host_str().unwrap_or_default();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse()
            .map_or_else(|_| TargetHost::Name(name.to_owned()), TargetHost::Address)
    }

    /// Returns the camera for a session at one of its addresses.
    pub(super) fn with_resolved_address(&self, address: IpAddr) -> Self {
        Self {
            address: Some(address),
            ..self.clone()
        }
    }

    /// Returns the URL with the address of the session in place of a name.
    pub(super) fn url_with_host_replaced(&self) -> Url {
        match (self.host(), self.address) {
            (TargetHost::Name(_), Some(address)) => url_with_address(&self.url, address),
            _ => self.url.clone(),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.url.port().unwrap_or(DEFAULT_RTSP_PORT)
    }

    /// Whether it is read through a relay: with credentials, or if that was found necessary.
    pub(super) fn uses_rtsp_relay(&self) -> bool {
        if self.transport != RtspTransport::Tcp {
            return false;
        }
        self.username.is_some() || self.fallback.as_ref().is_some_and(CameraFallback::uses_relay)
    }

    /// Whether it has credentials.
    pub(super) fn has_credentials(&self) -> bool {
        self.username.is_some()
    }

    pub(super) fn read_credentials(&self) -> Result<Option<Credentials>, CameraError> {
        let Some(username) = self.username.clone() else {
            return Ok(None);
        };
        let password = match &self.password {
            PasswordSource::None => String::new(),
            PasswordSource::Inline(password) => password.clone(),
            PasswordSource::File(path) => read_password(path)?,
        };
        Ok(Some(Credentials { username, password }))
    }

    /// Waits until the content of the password file changes, checking it at the interval `poll`. Never returns without
    /// a password file.
    pub async fn wait_until_password_file_changes(&self, poll: Duration) {
        let PasswordSource::File(path) = &self.password else {
            return std::future::pending().await;
        };
        let now = read_password(path);
        while read_password(path) == now {
            tokio::time::sleep(poll).await;
        }
    }
}

fn read_password(path: &Path) -> Result<String, CameraError> {
    let text = std::fs::read_to_string(path).map_err(|error| CameraError::PasswordFileUnreadable(error.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl std::fmt::Debug for Camera {
    /// Shows only the host, because the path may contain a password too.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Camera(at {})", self.url.host_str().unwrap_or_default())
    }
}

/// Decodes percent-encoding (RFC 3986 §2.1).
fn percent_decode(text: &str) -> Result<String, CameraUrlError> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let escaped = (*first == b'%')
            .then(|| after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        if escaped.is_some() {
            rest = after.get(2..).unwrap_or_default();
        }
    }
    String::from_utf8(bytes).map_err(|_| CameraUrlError::CredentialsNotUtf8)
}

pub(super) fn to_retina_transport(transport: RtspTransport) -> retina::client::Transport {
    match transport {
        RtspTransport::Tcp => retina::client::Transport::Tcp(TcpTransportOptions::default()),
        RtspTransport::Udp => retina::client::Transport::Udp(UdpTransportOptions::default()),
    }
}

pub(super) fn alternative_rtsp_transport(transport: RtspTransport) -> RtspTransport {
    match transport {
        RtspTransport::Tcp => RtspTransport::Udp,
        RtspTransport::Udp => RtspTransport::Tcp,
    }
}

impl CameraError {
    /// Keeps only the first line of retina's error: the rest describes the connection and differs each time.
    pub(super) fn from_retina(step: RtspStep, error: &retina::Error, has_credentials: bool) -> Self {
        match error.status_code() {
            Some(401) if has_credentials => Self::CredentialsRejected,
            Some(401) => Self::CredentialsRequired,
            Some(404) => Self::NotFound,
            Some(461) => Self::UnsupportedTransport,
            Some(status @ 300..=399) => Self::Redirected(status),
            _ => Self::StepFailed {
                step,
                text: first_line_of_error(error),
            },
        }
    }
}

/// Returns the first line of an error: the rest describes the connection, and differs each time.
pub(super) fn first_line_of_error(error: &retina::Error) -> String {
    let text = error.to_string();
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(MAX_ERROR_LINE_CHARS)
        .collect()
}

const MAX_ERROR_LINE_CHARS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(url: &str) -> Result<Camera, CameraUrlError> {
        Camera::new(url, None, PasswordSource::None)
    }

    #[test]
    fn credentials_leave_the_address_and_are_never_shown() {
        let camera = camera("rtsp://admin:p%40ss%zz@10.0.0.7:554/ch1?x=1").expect("an address");
        assert_eq!(camera.url.as_str(), "rtsp://10.0.0.7:554/ch1?x=1");
        let credentials = camera.read_credentials().expect("no file").expect("credentials");
        assert_eq!((&*credentials.username, &*credentials.password), ("admin", "p@ss%zz"));
        assert_eq!(format!("{camera:?}"), "Camera(at 10.0.0.7)");
    }

    /// Retina would resolve a name once more.
    #[test]
    fn a_session_uses_the_address_that_was_checked() {
        for (url, address, expected) in [
            (
                "rtsp://camera.example:8554/ch1?x=1",
                "192.0.2.7",
                "rtsp://192.0.2.7:8554/ch1?x=1",
            ),
            ("rtsp://camera.example/ch1", "2001:db8::7", "rtsp://[2001:db8::7]/ch1"),
            ("rtsp://[2001:db8::8]/ch1", "2001:db8::8", "rtsp://[2001:db8::8]/ch1"),
        ] {
            let camera = camera(url).expect("an address");
            assert_eq!(camera.url_with_host_replaced(), camera.url);
            let address = address.parse().expect("an address");
            assert_eq!(
                camera.with_resolved_address(address).url_with_host_replaced().as_str(),
                expected
            );
        }
    }

    #[test]
    fn invalid_urls_are_refused() {
        assert_eq!(camera("10.0.0.7/ch1").err(), Some(CameraUrlError::InvalidUrl));
        assert_eq!(
            camera("rtsps://10.0.0.7/ch1").err(),
            Some(CameraUrlError::UnsupportedScheme)
        );
        assert_eq!(
            camera("rtsp://%ff@10.0.0.7/").err(),
            Some(CameraUrlError::CredentialsNotUtf8)
        );
        let unescaped = camera("rtsp://admin:12#4@10.0.0.7/ch1").expect_err("no address");
        assert!(
            unescaped.to_string().contains("percent-encode `#` as %23"),
            "{unescaped}"
        );
    }
}
