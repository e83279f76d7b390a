//! A camera: its URL, credentials and policies, and why a session with it fails.

use super::fallback::Fallback;
use super::policies::Policies;
use super::refusal::Refusal;
use crate::config::Transport;
use crate::pipeline::value::{TargetHost, Unescaped};
use crate::sources::fetch::address::Allowed;
use retina::client::{Credentials, SessionGroup, TcpTransportOptions, UdpTransportOptions};
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
    pub transport: Transport,
    username: Option<String>,
    password: Password,
    pub policies: Policies,
    /// Networks that the camera may be in.
    pub allowed: Allowed,
    /// `silence_timeout` of the configuration.
    pub silence_timeout: Option<Duration>,
    /// `None` if there is no pipeline for it.
    pub fallback: Option<Fallback>,
    /// Tracks sessions that the camera may still consider open.
    pub(super) group: Arc<SessionGroup>,
}

/// Where the password of a camera comes from.
#[derive(Clone, Default)]
pub enum Password {
    #[default]
    None,
    Given(String),
    /// Read anew for each session.
    File(PathBuf),
}

/// Why a camera URL is invalid; the text follows the name of the key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CameraUrlError {
    #[error("is not a camera URL: expected rtsp://host[:port]/path")]
    NoUrl,
    #[error("is not an rtsp:// URL; for rtsps:// use `pipeline = \"rtsp\"` with `params = {{ uri = ... }}`")]
    Scheme,
    #[error("has credentials that are not UTF-8 after percent-decoding")]
    Credentials,
    #[error(transparent)]
    Unescaped(#[from] Unescaped),
}

/// The step of the session at which a camera failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Connect,
    Describe,
    Setup,
    Play,
    /// Frames.
    Receive,
}

/// Why a session with a camera failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CameraError {
    #[error("the camera cannot be reached: {0}")]
    Unreachable(String),
    #[error("the camera did not answer in time ({0:?})")]
    Timeout(Step),
    #[error("the camera rejected the credentials")]
    Credentials,
    #[error("the camera requires credentials: set `username` and `password_file`")]
    NoCredentials,
    #[error("the password file cannot be read: {0}")]
    PasswordFile(String),
    #[error("the camera has no such path (404): check the URL")]
    NotFound,
    #[error("the camera redirects to another URL ({0}): configure that URL, or use the pipeline `rtsp`")]
    Redirected(u16),
    #[error("{step:?}: {text}")]
    Failed { step: Step, text: String },
    #[error("the camera offers neither H.264, H.265 or JPEG nor Opus, G.711 or AAC")]
    NoTracks,
    #[error("the camera stopped sending video")]
    Silent,
    #[error("the camera sends no media, although it agreed to: try `transport = \"udp\"`, or \"tcp\" if that is set")]
    NoMedia,
    #[error("the camera sends packets, but no frame that can be decoded")]
    NoFrames,
    #[error("the camera supports neither RTP in the RTSP connection nor by UDP (461)")]
    Transport,
    #[error("{}", .0.text())]
    Refused(Refusal),
    /// The pipeline that reads the camera instead failed.
    #[error("{0}")]
    Pipeline(String),
    #[error("the camera ended the session")]
    Ended,
}

/// RFC 2326 §3.2.
const DEFAULT_PORT: u16 = 554;

impl Camera {
    /// Parses the URL. Credentials in it are removed from it, and used unless others are given.
    ///
    /// # Errors
    ///
    /// A [`CameraUrlError`].
    pub fn new(url: &str, username: Option<String>, password: Password) -> Result<Self, CameraUrlError> {
        let text = url.trim();
        let parsed = Url::parse(text).ok();
        if let Some(unescaped) = Unescaped::find(text, parsed.as_ref()) {
            return Err(unescaped.into());
        }
        let mut url = parsed.ok_or(CameraUrlError::NoUrl)?;
        if url.scheme() != "rtsp" {
            return Err(CameraUrlError::Scheme);
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(CameraUrlError::NoUrl);
        }
        let inside = (decoded(url.username())?, decoded(url.password().unwrap_or_default())?);
        let (username, password) = match username {
            None if !inside.0.is_empty() => (Some(inside.0), Password::Given(inside.1)),
            username => (username, password),
        };
        url.set_username("")
            .and_then(|()| url.set_password(None))
            .map_err(|()| CameraUrlError::NoUrl)?;
        Ok(Self {
            url,
            transport: Transport::default(),
            username,
            password,
            policies: Policies::default(),
            allowed: Allowed::default(),
            silence_timeout: None,
            fallback: None,
            group: Arc::default(),
        })
    }

    pub(super) fn host(&self) -> TargetHost {
        let name = self.url.host_str().unwrap_or_default();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse()
            .map_or_else(|_| TargetHost::Name(name.to_owned()), TargetHost::Address)
    }

    pub(super) fn port(&self) -> u16 {
        self.url.port().unwrap_or(DEFAULT_PORT)
    }

    pub(super) fn credentials(&self) -> Result<Option<Credentials>, CameraError> {
        let Some(username) = self.username.clone() else {
            return Ok(None);
        };
        let password = match &self.password {
            Password::None => String::new(),
            Password::Given(password) => password.clone(),
            Password::File(path) => read_password(path)?,
        };
        Ok(Some(Credentials { username, password }))
    }

    /// Waits until the content of the password file changes, checking it at the interval `poll`. Never returns without
    /// a password file.
    pub async fn until_password_changes(&self, poll: Duration) {
        let Password::File(path) = &self.password else {
            return std::future::pending().await;
        };
        let now = read_password(path);
        while read_password(path) == now {
            tokio::time::sleep(poll).await;
        }
    }
}

fn read_password(path: &Path) -> Result<String, CameraError> {
    let text = std::fs::read_to_string(path).map_err(|error| CameraError::PasswordFile(error.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl std::fmt::Debug for Camera {
    /// Shows only the host, because the path may contain a password too.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Camera(at {})", self.url.host_str().unwrap_or_default())
    }
}

/// Decodes percent-encoding (RFC 3986 §2.1).
fn decoded(text: &str) -> Result<String, CameraUrlError> {
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
    String::from_utf8(bytes).map_err(|_| CameraUrlError::Credentials)
}

pub(super) fn to_retina(transport: Transport) -> retina::client::Transport {
    match transport {
        Transport::Tcp => retina::client::Transport::Tcp(TcpTransportOptions::default()),
        Transport::Udp => retina::client::Transport::Udp(UdpTransportOptions::default()),
    }
}

pub(super) fn other(transport: Transport) -> Transport {
    match transport {
        Transport::Tcp => Transport::Udp,
        Transport::Udp => Transport::Tcp,
    }
}

impl CameraError {
    /// Keeps only the first line of retina's error: the rest describes the connection and differs each time.
    pub(super) fn of(step: Step, error: &retina::Error, has_credentials: bool) -> Self {
        match error.status_code() {
            Some(401) if has_credentials => Self::Credentials,
            Some(401) => Self::NoCredentials,
            Some(404) => Self::NotFound,
            Some(461) => Self::Transport,
            Some(status @ 300..=399) => Self::Redirected(status),
            _ => Self::Failed {
                step,
                text: first_line(error),
            },
        }
    }
}

/// Returns the first line of an error: the rest describes the connection, and differs each time.
pub(super) fn first_line(error: &retina::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().chars().take(MAX_LINE).collect()
}

const MAX_LINE: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(url: &str) -> Result<Camera, CameraUrlError> {
        Camera::new(url, None, Password::None)
    }

    #[test]
    fn credentials_leave_the_address_and_are_never_shown() {
        let camera = camera("rtsp://admin:p%40ss%zz@10.0.0.7:554/ch1?x=1").expect("an address");
        assert_eq!(camera.url.as_str(), "rtsp://10.0.0.7:554/ch1?x=1");
        let credentials = camera.credentials().expect("no file").expect("credentials");
        assert_eq!((&*credentials.username, &*credentials.password), ("admin", "p@ss%zz"));
        assert_eq!(format!("{camera:?}"), "Camera(at 10.0.0.7)");
    }

    #[test]
    fn invalid_urls_are_refused() {
        assert_eq!(camera("10.0.0.7/ch1").err(), Some(CameraUrlError::NoUrl));
        assert_eq!(camera("rtsps://10.0.0.7/ch1").err(), Some(CameraUrlError::Scheme));
        assert_eq!(camera("rtsp://%ff@10.0.0.7/").err(), Some(CameraUrlError::Credentials));
        let unescaped = camera("rtsp://admin:12#4@10.0.0.7/ch1").expect_err("no address");
        assert!(
            unescaped.to_string().contains("percent-encode `#` as %23"),
            "{unescaped}"
        );
    }
}
