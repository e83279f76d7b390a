//! Asks a camera for its back channel and sets it up: DESCRIBE, SETUP and PLAY.

use std::time::Duration;

use rand::Rng as _;

use super::audio_queue::AudioQueue;
use super::connection::RtspConnection;
use super::description::{BackChannelTrack, BackChannelTracks, is_request_uri, parse_back_channel_tracks};
use super::error::BackChannelError;
use super::sender::BackChannelSender;
use crate::sources::rtsp::camera::{Camera, CameraError, RtspStep};
use crate::sources::rtsp::message::{find_header_value, parse_interleaved_channel};
use millstream_core::media::Codec;

/// Feature tag by which a camera is asked for its back channel.
const BACK_CHANNEL_FEATURE: &str = "www.onvif.org/ver20/backchannel";

/// Timeout of a session whose camera names none (RFC 2326 §12.37), and the least that is believed.
const DEFAULT_SESSION_TIMEOUT_SECS: u64 = 60;
const MIN_SESSION_TIMEOUT_SECS: u64 = 10;

/// Longest session id.
const MAX_SESSION_ID_BYTES: usize = 256;

/// A connection to a camera that has said what it takes.
pub struct BackChannel {
    connection: RtspConnection,
    found: BackChannelTracks,
}

impl BackChannel {
    /// Connects to the camera, at an address that `sources.allow` permits, and asks for its back channel.
    ///
    /// # Errors
    ///
    /// A [`BackChannelError`] if the camera cannot be reached, or takes no audio that the gateway can send.
    pub async fn connect(camera: &Camera) -> Result<Self, BackChannelError> {
        let mut connection = RtspConnection::open(camera).await?;
        let uri = connection.uri.clone();
        let headers = format!("Accept: application/sdp\r\nRequire: {BACK_CHANNEL_FEATURE}\r\n");
        let response = connection
            .request("DESCRIBE", &uri, &headers, RtspStep::Describe)
            .await?;
        // Option not supported (RFC 2326 §11.3.14); some cameras answer that they do not implement it.
        if matches!(response.status, 501 | 551) {
            return Err(BackChannelError::Missing);
        }
        connection.require_success(&response, RtspStep::Describe)?;
        let base = find_header_value(&response.headers, "content-base")
            .or(find_header_value(&response.headers, "content-location"))
            .filter(|base| is_request_uri(base))
            .unwrap_or(&uri)
            .to_owned();
        let found = parse_back_channel_tracks(&response.body, &base);
        connection.uri = base;
        match (found.tracks.is_empty(), found.unsupported.is_empty()) {
            (true, true) => Err(BackChannelError::Missing),
            (true, false) => Err(BackChannelError::UnsupportedCodec(found.unsupported.join(", "))),
            (false, _) => Ok(Self { connection, found }),
        }
    }

    /// Returns the codecs that the camera takes and the gateway can send, in the order of the camera.
    pub fn codecs(&self) -> Vec<Codec> {
        let mut codecs: Vec<Codec> = Vec::new();
        for track in &self.found.tracks {
            if !codecs.contains(&track.codec) {
                codecs.push(track.codec);
            }
        }
        codecs
    }

    /// Sets up the back channel alone, for one of its codecs, and starts it.
    ///
    /// # Errors
    ///
    /// A [`BackChannelError`] if the camera refuses, or does not take the codec.
    pub async fn start(self, codec: Codec) -> Result<BackChannelSender, BackChannelError> {
        let Self { mut connection, found } = self;
        let track = found.tracks.iter().find(|track| track.codec == codec);
        let track = track.ok_or_else(|| BackChannelError::UnsupportedCodec(found.unsupported.join(", ")))?;
        let (channel, session_timeout) = set_up_track(&mut connection, track).await?;
        let uri = connection.uri.clone();
        let headers = format!("Require: {BACK_CHANNEL_FEATURE}\r\n");
        let response = connection.request("PLAY", &uri, &headers, RtspStep::Play).await?;
        connection.require_success(&response, RtspStep::Play)?;
        let queue = AudioQueue::new(track.payload_type, channel, rand::rng().random());
        Ok(BackChannelSender::new(connection, queue, session_timeout))
    }
}

/// Returns the channel of the track, and the timeout of the session.
async fn set_up_track(
    connection: &mut RtspConnection,
    track: &BackChannelTrack,
) -> Result<(u8, Duration), BackChannelError> {
    let headers = format!("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nRequire: {BACK_CHANNEL_FEATURE}\r\n");
    let response = connection
        .request("SETUP", &track.control, &headers, RtspStep::Setup)
        .await?;
    connection.require_success(&response, RtspStep::Setup)?;
    let session = find_header_value(&response.headers, "session").unwrap_or_default();
    let mut parts = session.split(';').map(str::trim);
    let id = parts.next().unwrap_or_default();
    if id.is_empty() || id.len() > MAX_SESSION_ID_BYTES {
        let text = "the response has no session id".to_owned();
        let step = RtspStep::Setup;
        return Err(CameraError::StepFailed { step, text }.into());
    }
    connection.session_id = Some(id.to_owned());
    let seconds = parts
        .filter_map(|part| part.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse::<u64>().ok())
        .unwrap_or(DEFAULT_SESSION_TIMEOUT_SECS)
        .clamp(MIN_SESSION_TIMEOUT_SECS, DEFAULT_SESSION_TIMEOUT_SECS);
    let transport = find_header_value(&response.headers, "transport").unwrap_or_default();
    let channel = parse_interleaved_channel(transport).unwrap_or(0);
    Ok((channel, Duration::from_secs(seconds)))
}
