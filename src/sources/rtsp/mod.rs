//! Cameras: RTSP servers (RFC 2326) that the gateway asks for their streams.
//!
//! [`run`] keeps one camera in its stream for as long as it is polled. It is a shell: it reads the clock of tokio and the
//! chance of the operating system. Video is H.264 or H.265, audio is G.711; what else a camera offers is left out, and
//! the log says so. `rtsps:`, redirects and multicast are not supported.

use std::time::Duration;

use rand::RngCore as _;
use retina::client::{Credentials, TcpTransportOptions, UdpTransportOptions};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use url::Url;

use self::backoff::Backoff;
use self::client::Client;
use super::feed::{Announced, FanOut, Feed, Framing};
use crate::hub::name::StreamName;
use crate::hub::stream::SessionId;
use crate::media::Kind;

mod backoff;
mod client;

/// A camera and the stream that it feeds.
#[derive(Clone)]
pub struct Camera {
    pub stream: StreamName,
    /// Without credentials.
    url: Url,
    transport: Transport,
    credentials: Option<Credentials>,
}

/// How a camera sends its RTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Within the RTSP connection (RFC 2326 §10.12).
    #[default]
    Tcp,
    /// To ports of ours; what comes out of order is lost.
    Udp,
}

/// Why an address is not one of a camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CameraUrlError {
    #[error("an address of a camera is rtsp://host[:port]/path")]
    NoUrl,
    #[error("only the scheme rtsp is supported")]
    Scheme,
    #[error("the credentials in an address have to be UTF-8 behind their percent signs")]
    Credentials,
}

/// What the gateway waited for when a camera failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connecting and DESCRIBE.
    Describe,
    Setup,
    Play,
    /// Frames.
    Receive,
}

/// Why a camera is away.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CameraError {
    #[error("{0:?} took too long")]
    Timeout(Step),
    #[error("the camera refused the credentials, or wants some")]
    Credentials,
    #[error("{step:?}: {text}")]
    Failed { step: Step, text: String },
    #[error("the camera offers neither H.264 nor H.265 nor G.711")]
    NoTracks,
    #[error("the camera fell silent")]
    Silent,
    #[error("the camera ended the session")]
    Ended,
    #[error("another source has the stream")]
    Displaced,
}

/// A camera that played for so long is tried again soon.
const STEADY: Duration = Duration::from_secs(10);

/// Between looks at whether a stream has lost its other source.
const STAND_BACK: Duration = Duration::from_secs(1);

impl Camera {
    /// Reads the address; credentials in it are moved out of it unless others are given as name and password.
    ///
    /// # Errors
    ///
    /// A [`CameraUrlError`].
    pub fn new(
        stream: StreamName,
        url: &str,
        transport: Transport,
        credentials: Option<(String, String)>,
    ) -> Result<Self, CameraUrlError> {
        let mut url = Url::parse(url.trim()).map_err(|_| CameraUrlError::NoUrl)?;
        if url.scheme() != "rtsp" {
            return Err(CameraUrlError::Scheme);
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(CameraUrlError::NoUrl);
        }
        let inside = (decoded(url.username())?, decoded(url.password().unwrap_or_default())?);
        let credentials = credentials.or_else(|| (!inside.0.is_empty()).then_some(inside));
        url.set_username("")
            .and_then(|()| url.set_password(None))
            .map_err(|()| CameraUrlError::NoUrl)?;
        Ok(Self {
            stream,
            url,
            transport,
            credentials: credentials.map(|(username, password)| Credentials { username, password }),
        })
    }
}

impl std::fmt::Debug for Camera {
    /// The path of an address may hold a password too: of the address only the host is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Camera({} at {})",
            self.stream,
            self.url.host_str().unwrap_or_default()
        )
    }
}

/// RFC 3986 §2.1.
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

impl Transport {
    fn to_retina(self) -> retina::client::Transport {
        match self {
            Self::Tcp => retina::client::Transport::Tcp(TcpTransportOptions::default()),
            Self::Udp => retina::client::Transport::Udp(UdpTransportOptions::default()),
        }
    }
}

impl CameraError {
    /// The first line only: what follows names the connection, which is another one each time.
    fn of(step: Step, error: &retina::Error) -> Self {
        if error.status_code() == Some(401) {
            return Self::Credentials;
        }
        let text = error.to_string().lines().next().unwrap_or_default().to_owned();
        Self::Failed { step, text }
    }
}

/// Feeds the stream from the camera, for ever: comes back when the camera failed, and stands back while another source
/// has the stream.
pub async fn run(camera: Camera, plane: impl FanOut) {
    let mut backoff = Backoff::default();
    let mut told = None;
    let host = camera.url.host_str().unwrap_or_default();
    loop {
        let begun = Instant::now();
        let error = play(&camera, &plane, &mut told).await;
        if begun.elapsed() >= STEADY {
            backoff.reset();
        }
        let random = rand::rng().next_u32();
        let wait = match error {
            CameraError::Displaced => STAND_BACK,
            CameraError::Credentials => backoff.after_refused_credentials(random),
            CameraError::Timeout(_)
            | CameraError::Failed { .. }
            | CameraError::NoTracks
            | CameraError::Silent
            | CameraError::Ended => backoff.after_failure(random),
        };
        if told.as_ref() != Some(&error) {
            match error {
                CameraError::Displaced => info!(stream = %camera.stream, host, "camera stands back"),
                _ => warn!(stream = %camera.stream, host, %error, "camera is away"),
            }
            told = Some(error);
        }
        debug!(stream = %camera.stream, host, ?wait, "waiting for camera");
        tokio::time::sleep(wait).await;
    }
}

/// Takes the feed off its stream whenever it is dropped: also when the task is cancelled.
struct Attached<'a, P: FanOut> {
    feed: Feed,
    plane: &'a P,
}

impl<P: FanOut> Drop for Attached<'_, P> {
    fn drop(&mut self) {
        self.feed.ended(self.plane.hub());
    }
}

/// One session, until it fails. `told` is the failure that the log knows of.
async fn play<P: FanOut>(camera: &Camera, plane: &P, told: &mut Option<CameraError>) -> CameraError {
    let stream = plane.hub().find(&camera.stream);
    if stream.is_some_and(|stream| stream.lock().source().is_some()) {
        return CameraError::Displaced;
    }
    let mut client = match Client::connect(camera).await {
        Ok(client) => client,
        Err(error) => return error,
    };
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    let tracks: Vec<Announced> = client.codecs.iter().map(|codec| Announced::from(*codec)).collect();
    let Ok(feed) = Feed::new(camera.stream.clone(), SessionId(id), &tracks) else {
        return CameraError::NoTracks;
    };
    let mut attached = Attached { feed, plane };
    let mut playing = false;
    loop {
        let frame = match client.next().await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        let feed = &mut attached.feed;
        let taken = match frame.kind {
            Kind::Video => feed.take_video(frame.received, frame.time, &frame.bytes, Framing::Lengths),
            Kind::Audio => feed.take_audio(frame.received, frame.time, &frame.bytes),
        };
        if let Err(error) = taken {
            debug!(stream = %camera.stream, %error, "frame of camera dropped");
        }
        if !plane.feed(feed) {
            return CameraError::Displaced;
        }
        if !playing && feed.is_attached() {
            playing = true;
            *told = None;
            info!(stream = %camera.stream, host = camera.url.host_str(), codecs = ?client.codecs, "camera plays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(url: &str) -> Result<Camera, CameraUrlError> {
        Camera::new(StreamName::parse("door").expect("a name"), url, Transport::Tcp, None)
    }

    #[test]
    fn credentials_leave_the_address_and_are_never_shown() {
        let camera = camera("rtsp://admin:p%40ss%zz@10.0.0.7:554/ch1?x=1").expect("an address");
        assert_eq!(camera.url.as_str(), "rtsp://10.0.0.7:554/ch1?x=1");
        let credentials = camera.credentials.clone().expect("credentials");
        assert_eq!((&*credentials.username, &*credentials.password), ("admin", "p@ss%zz"));
        assert_eq!(format!("{camera:?}"), "Camera(door at 10.0.0.7)");
    }

    #[test]
    fn addresses_that_are_none_are_refused() {
        assert_eq!(camera("10.0.0.7/ch1").err(), Some(CameraUrlError::NoUrl));
        assert_eq!(camera("rtsps://10.0.0.7/ch1").err(), Some(CameraUrlError::Scheme));
        assert_eq!(camera("rtsp://%ff@10.0.0.7/").err(), Some(CameraUrlError::Credentials));
    }
}
