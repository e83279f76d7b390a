//! One RTSP session with a camera (RFC 2326), by the crate `retina`, which has no deadlines of its own: each wait for the
//! camera has one here.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::Stream as _;
use retina::client::{
    Demuxed, Described, InitialTimestampPolicy, PlayOptions, Session, SessionOptions, SetupOptions, Stream,
};
use retina::codec::CodecItem;
use tokio::time::timeout;
use tracing::info;

use super::{Camera, CameraError, Step};
use crate::media::{Codec, Kind};

/// A camera that plays.
pub(super) struct Client {
    demuxed: Demuxed,
    pub(super) codecs: Vec<Codec>,
}

/// A frame that the camera sent.
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// In units of the clock rate of its track.
    pub(super) time: u64,
    pub(super) bytes: Bytes,
    pub(super) received: Instant,
}

/// For connecting and DESCRIBE together, for each SETUP, and for PLAY.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Without a frame for so long, a camera is frozen: nothing else would tell, as its TCP connection stays.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// Times of retina may be a little below zero.
const TIME_ORIGIN: i64 = 1 << 33;

impl Client {
    /// Connects, chooses the tracks, and has them played.
    pub(super) async fn connect(camera: &Camera) -> Result<Self, CameraError> {
        let options = SessionOptions::default()
            .creds(camera.credentials.clone())
            .user_agent("millstream".to_owned());
        let describing = Session::describe(camera.url.clone(), options);
        let mut session = within(Step::Describe, describing).await?;
        let tracks = choose(camera, &session);
        if tracks.is_empty() {
            return Err(CameraError::NoTracks);
        }
        for (index, _) in &tracks {
            let options = SetupOptions::default().transport(camera.transport.to_retina());
            within(Step::Setup, session.setup(*index, options)).await?;
        }
        // Many cameras leave out the RTP times that the default insists on.
        let options = PlayOptions::default().initial_timestamp(InitialTimestampPolicy::Permissive);
        let playing = within(Step::Play, session.play(options)).await?;
        let demuxed = playing.demuxed().map_err(|error| CameraError::of(Step::Play, &error))?;
        Ok(Self {
            demuxed,
            codecs: tracks.into_iter().map(|(_, codec)| codec).collect(),
        })
    }

    /// The next frame.
    pub(super) async fn next(&mut self) -> Result<Frame, CameraError> {
        let frame = async {
            loop {
                let item = poll_fn(|context| Pin::new(&mut self.demuxed).poll_next(context)).await;
                let item = item.ok_or(CameraError::Ended)?;
                match item.map_err(|error| CameraError::of(Step::Receive, &error))? {
                    CodecItem::VideoFrame(frame) => {
                        return Ok(Frame {
                            kind: Kind::Video,
                            time: time(frame.timestamp()),
                            received: frame.end_ctx().received(),
                            bytes: frame.into_data().into(),
                        });
                    }
                    CodecItem::AudioFrame(frame) => {
                        return Ok(Frame {
                            kind: Kind::Audio,
                            time: time(frame.timestamp()),
                            received: frame.ctx().received(),
                            bytes: Bytes::copy_from_slice(frame.data()),
                        });
                    }
                    _ => {}
                }
            }
        };
        timeout(SILENCE_LIMIT, frame).await.unwrap_or(Err(CameraError::Silent))
    }
}

async fn within<T>(step: Step, work: impl Future<Output = Result<T, retina::Error>>) -> Result<T, CameraError> {
    match timeout(STEP_LIMIT, work).await {
        Ok(result) => result.map_err(|error| CameraError::of(step, &error)),
        Err(_) => Err(CameraError::Timeout(step)),
    }
}

fn time(timestamp: retina::Timestamp) -> u64 {
    timestamp.timestamp().saturating_add(TIME_ORIGIN).unsigned_abs()
}

/// The first track of each kind that passes through, by its index in the session.
fn choose(camera: &Camera, session: &Session<Described>) -> Vec<(usize, Codec)> {
    let mut tracks: Vec<(usize, Codec)> = Vec::new();
    for (index, stream) in session.streams().iter().enumerate() {
        let (media, encoding) = (stream.media(), stream.encoding_name());
        let Some(codec) = codec(stream) else {
            let why = match encoding {
                "mpeg4-generic" | "mp4a-latm" => "browsers need Opus instead, and this gateway does not transcode",
                _ => "this encoding is not supported",
            };
            info!(stream = %camera.stream, media, encoding, why, "track of camera left out");
            continue;
        };
        if tracks.iter().all(|(_, chosen)| chosen.kind() != codec.kind()) {
            tracks.push((index, codec));
        }
    }
    tracks
}

fn codec(stream: &Stream) -> Option<Codec> {
    let is_telephone = stream.clock_rate_hz() == 8_000 && stream.channels().is_none_or(|channels| channels.get() == 1);
    match (stream.media(), stream.encoding_name()) {
        ("video", "h264") => Some(Codec::H264),
        ("video", "h265") => Some(Codec::H265),
        ("audio", "pcmu") if is_telephone => Some(Codec::Pcmu),
        ("audio", "pcma") if is_telephone => Some(Codec::Pcma),
        _ => None,
    }
}
