//! One RTSP session with a camera, using the crate `retina`. It has no timeouts of its own, so each step has one here.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream as _;
use retina::client::{Demuxed, Described, PacketItem, Playing, Session, SessionOptions, SetupOptions, Stream};
use retina::codec::{CodecItem, FrameFormat, ParameterSetInsertion, ParametersRef, aac, h26x};
use retina::rtcp::ReceivedCompoundPacket;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::camera::{Camera, CameraError, Step, to_retina};
use super::raw::RawTrack;
use crate::pipeline::value::TargetHost;
use millstream_core::hub::name::StreamName;
use millstream_core::media::aac::AacConfig;
use millstream_core::media::clock::NtpClock;
use millstream_core::media::{Codec, Format, Kind};
use millstream_core::sources::frame_source::{Announced, Framing};

/// A playing session with a camera.
pub(super) struct Client {
    media: Media,
    /// Video first, if there is any.
    tracks: Vec<Track>,
    ntp: NtpClock,
    /// Events that were read but not returned yet.
    ready: VecDeque<Event>,
    stream: StreamName,
}

/// Frames assembled by retina, or packets that are assembled by [`RawTrack`].
enum Media {
    Frames(Box<Demuxed>),
    Packets(Box<Session<Playing>>),
}

/// A track of the session.
struct Track {
    /// Index in the session description.
    index: usize,
    announced: Announced,
    /// Clock rate of the session description, in Hz.
    rate: u32,
    parameter_sets: Vec<Bytes>,
    raw: RawTrack,
    /// When the last frame arrived.
    last_frame: Instant,
    /// Its silence was logged.
    silence_logged: bool,
}

/// A frame or a sender report of a camera.
pub(super) enum Event {
    Frame(Frame),
    /// The media of this track with timestamp `time` was captured `at`, on the clock that all tracks of the camera
    /// share (RFC 3550 §6.4.1).
    Captured {
        kind: Kind,
        time: u64,
        at: std::time::Instant,
    },
}

/// A frame of the camera.
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// In units of the clock rate of its codec.
    pub(super) time: u64,
    pub(super) bytes: Bytes,
    pub(super) received: std::time::Instant,
}

/// Timeout of the TCP connection. It is short because the connection is retried soon.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Timeout of DESCRIBE, each SETUP, and PLAY.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// A camera without video for this long is considered frozen: its TCP connection may stay open and its audio may
/// continue.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// The frame format requested from retina.
const FRAMES: FrameFormat = FrameFormat {
    h26x_framing: h26x::Framing::FourByteLength,
    parameter_set_insertion: ParameterSetInsertion::EachKeyFrame,
    aac_framing: aac::Framing::Raw,
};

/// Offset added to timestamps, because those of retina may be slightly negative.
const TIME_ORIGIN: i64 = 1 << 33;

impl Client {
    /// Connects, selects the tracks, and starts playing.
    pub(super) async fn connect(camera: &Camera, stream: &StreamName) -> Result<Self, CameraError> {
        test_connection(camera).await?;
        let credentials = camera.credentials()?;
        let has_credentials = credentials.is_some();
        let options = SessionOptions::default()
            .creds(credentials)
            .session_group(camera.group.clone())
            .user_agent("millstream".to_owned());
        let describing = Session::describe(camera.url.clone(), camera.policies.session(options));
        let mut session = with_timeout(Step::Describe, has_credentials, describing).await?;
        let (tracks, needs_packets) = choose(stream, &session);
        if tracks.is_empty() {
            return Err(CameraError::NoTracks);
        }
        for track in &tracks {
            let options = SetupOptions::default()
                .transport(to_retina(camera.transport))
                .frame_format(FRAMES);
            with_timeout(Step::Setup, has_credentials, session.setup(track.index, options)).await?;
        }
        let playing = with_timeout(Step::Play, has_credentials, session.play(camera.policies.play())).await?;
        let media = if needs_packets {
            Media::Packets(Box::new(playing))
        } else {
            let demuxed = playing.demuxed();
            Media::Frames(Box::new(
                demuxed.map_err(|error| CameraError::of(Step::Play, &error, has_credentials))?,
            ))
        };
        Ok(Self {
            media,
            tracks,
            ntp: NtpClock::default(),
            ready: VecDeque::new(),
            stream: stream.clone(),
        })
    }

    /// Returns the tracks of the session.
    pub(super) fn tracks(&self) -> Vec<Announced> {
        self.tracks.iter().map(|track| track.announced).collect()
    }

    /// Returns the parameter sets of the session description.
    pub(super) fn parameter_sets(&self) -> Vec<Bytes> {
        self.tracks
            .iter()
            .flat_map(|track| track.parameter_sets.clone())
            .collect()
    }

    /// Returns how NAL units are delimited in its frames.
    pub(super) fn framing(&self) -> Framing {
        match self.media {
            Media::Frames(_) => Framing::Lengths,
            Media::Packets(_) => Framing::StartCodes,
        }
    }

    /// Waits for the next frame or sender report.
    pub(super) async fn next(&mut self) -> Result<Event, CameraError> {
        loop {
            let deadline = self.check_silence()?;
            if let Some(event) = self.ready.pop_front() {
                if let Event::Frame(frame) = &event {
                    self.on_frame(frame.kind);
                }
                return Ok(event);
            }
            // A timeout is handled by the next `check_silence`.
            if let Ok(read) = timeout_at(deadline, self.read()).await {
                read?;
            }
        }
    }

    fn on_frame(&mut self, kind: Kind) {
        let is_of_kind = |track: &&mut Track| track.announced.codec.kind() == kind;
        if let Some(track) = self.tracks.iter_mut().find(is_of_kind) {
            (track.last_frame, track.silence_logged) = (Instant::now(), false);
        }
    }

    /// Fails if no frame of the first track (video, or audio if there is no video) arrived within [`SILENCE_LIMIT`].
    /// Missing audio beside video is only logged, once. Returns when to check again.
    fn check_silence(&mut self) -> Result<Instant, CameraError> {
        let now = Instant::now();
        let mut deadline = now + SILENCE_LIMIT;
        for (index, track) in self.tracks.iter_mut().enumerate() {
            let silent = now.duration_since(track.last_frame) >= SILENCE_LIMIT;
            match (index, silent) {
                (0, true) => return Err(CameraError::Silent),
                (0, false) => deadline = track.last_frame + SILENCE_LIMIT,
                (_, true) if !track.silence_logged => {
                    track.silence_logged = true;
                    let codec = track.announced.codec.name();
                    warn!(stream = %self.stream, codec, "camera stopped sending audio, video continues");
                }
                _ => {}
            }
        }
        Ok(deadline)
    }

    async fn read(&mut self) -> Result<(), CameraError> {
        match &mut self.media {
            Media::Frames(demuxed) => {
                let item = poll_fn(|context| Pin::new(&mut **demuxed).poll_next(context)).await;
                match received(item)? {
                    CodecItem::VideoFrame(frame) => {
                        let Some(track) = self.tracks.iter().find(|track| track.index == frame.stream_id()) else {
                            return Ok(());
                        };
                        let frame = Frame {
                            kind: Kind::Video,
                            time: track.time(frame.timestamp().timestamp()),
                            received: frame.end_ctx().received(),
                            bytes: frame.into_data().into(),
                        };
                        self.ready.push_back(Event::Frame(frame));
                    }
                    CodecItem::AudioFrame(frame) => {
                        let Some(track) = self.tracks.iter().find(|track| track.index == frame.stream_id()) else {
                            return Ok(());
                        };
                        let frame = Frame {
                            kind: Kind::Audio,
                            time: track.time(frame.timestamp().timestamp()),
                            received: frame.ctx().received(),
                            bytes: Bytes::copy_from_slice(frame.data()),
                        };
                        self.ready.push_back(Event::Frame(frame));
                    }
                    CodecItem::Rtcp(compound) => self.take_report(&compound),
                    _ => {}
                }
            }
            Media::Packets(session) => {
                let item = poll_fn(|context| Pin::new(&mut **session).poll_next(context)).await;
                match received(item)? {
                    PacketItem::Rtp(packet) => {
                        let index = packet.stream_id();
                        let Some(track) = self.tracks.iter_mut().find(|track| track.index == index) else {
                            return Ok(());
                        };
                        let (time, received) = (track.time(packet.timestamp().timestamp()), packet.ctx().received());
                        let mut frames = Vec::new();
                        track.raw.push(packet, time, received, &mut frames);
                        self.ready.extend(frames.into_iter().map(|frame| {
                            Event::Frame(Frame {
                                kind: frame.codec.kind(),
                                time: frame.time,
                                bytes: frame.bytes,
                                received,
                            })
                        }));
                    }
                    PacketItem::Rtcp(compound) => self.take_report(&compound),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn take_report(&mut self, compound: &ReceivedCompoundPacket) {
        let report = compound
            .pkts()
            .find_map(|packet| packet.as_sender_report().ok().flatten());
        let track = self.tracks.iter().find(|track| track.index == compound.stream_id());
        if let (Some(report), Some(time), Some(track)) = (report, compound.rtp_timestamp(), track) {
            let at = self.ntp.instant(report.ntp_timestamp().0, compound.ctx().received());
            self.ready.push_back(Event::Captured {
                kind: track.announced.codec.kind(),
                time: track.time(time.timestamp()),
                at,
            });
        }
    }
}

impl Track {
    /// Converts a timestamp from the clock rate of the session description to that of the codec.
    fn time(&self, time: i64) -> u64 {
        let time = time.saturating_add(TIME_ORIGIN).unsigned_abs();
        let rate = self.announced.codec.clock_rate();
        if rate == self.rate {
            return time;
        }
        let scaled = u128::from(time) * u128::from(rate) / u128::from(self.rate.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

fn received<T>(item: Option<Result<T, retina::Error>>) -> Result<T, CameraError> {
    item.ok_or(CameraError::Ended)?
        .map_err(|error| CameraError::of(Step::Receive, &error, true))
}

/// Tests the TCP connection, because retina's errors do not distinguish a wrong address from a camera that is off.
async fn test_connection(camera: &Camera) -> Result<(), CameraError> {
    let port = camera.port();
    let connecting = async {
        match camera.host() {
            TargetHost::Address(address) => TcpStream::connect((address, port)).await,
            TargetHost::Name(name) => TcpStream::connect((name.as_str(), port)).await,
        }
    };
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(CameraError::Unreachable(format!("connection refused on port {port}")))
        }
        Ok(Err(error)) => Err(CameraError::Unreachable(error.to_string())),
        Err(_) => Err(CameraError::Timeout(Step::Connect)),
    }
}

async fn with_timeout<T>(
    step: Step,
    has_credentials: bool,
    work: impl Future<Output = Result<T, retina::Error>>,
) -> Result<T, CameraError> {
    match timeout(STEP_LIMIT, work).await {
        Ok(result) => result.map_err(|error| CameraError::of(step, &error, has_credentials)),
        Err(_) => Err(CameraError::Timeout(step)),
    }
}

/// Returns the best track of each kind, and whether packets must be read instead of frames, because retina cannot
/// depacketize Opus.
fn choose(name: &StreamName, session: &Session<Described>) -> (Vec<Track>, bool) {
    let known: Vec<(usize, &Stream, Announced)> = session
        .streams()
        .iter()
        .enumerate()
        .filter_map(|(index, stream)| match announced(stream) {
            Some(announced) => Some((index, stream, announced)),
            None => {
                let (media, encoding) = (stream.media(), stream.encoding_name());
                info!(stream = %name, media, encoding, "camera track ignored: codec not supported");
                None
            }
        })
        .collect();
    let video = known
        .iter()
        .find(|(.., announced)| announced.codec.kind() == Kind::Video);
    let can_be_packets = video.is_none_or(|(.., announced)| announced.codec != Codec::Jpeg);
    let rank = |codec| match codec {
        Codec::Opus if can_be_packets => Some(0),
        Codec::Pcmu | Codec::Pcma => Some(1),
        Codec::Aac => Some(2),
        _ => None,
    };
    let audio = known
        .iter()
        .filter_map(|track| Some((rank(track.2.codec)?, track)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, track)| track);
    let tracks: Vec<Track> = video
        .into_iter()
        .chain(audio)
        .map(|(index, stream, announced)| Track {
            index: *index,
            announced: *announced,
            rate: stream.clock_rate_hz(),
            parameter_sets: parameter_sets(stream, announced.codec),
            raw: RawTrack::new(announced.codec),
            last_frame: Instant::now(),
            silence_logged: false,
        })
        .collect();
    let needs_packets = tracks.iter().any(|track| track.announced.codec == Codec::Opus);
    (tracks, needs_packets)
}

fn announced(stream: &Stream) -> Option<Announced> {
    let is_telephone = stream.clock_rate_hz() == 8_000 && stream.channels().is_none_or(|channels| channels.get() == 1);
    Some(match (stream.media(), stream.encoding_name()) {
        ("video", "h264") => Codec::H264.into(),
        ("video", "h265") => Codec::H265.into(),
        ("video", "jpeg") => Codec::Jpeg.into(),
        ("audio", "pcmu") if is_telephone => Format::Pcmu.into(),
        ("audio", "pcma") if is_telephone => Format::Pcma.into(),
        ("audio", "opus") => Codec::Opus.into(),
        ("audio", "mpeg4-generic") => match stream.parameters()? {
            ParametersRef::Audio(parameters) => Format::Aac(AacConfig::parse(parameters.extra_data())?).into(),
            _ => return None,
        },
        _ => return None,
    })
}

/// Returns the parameter sets of the session description. Retina inserts them before frames, but not before packets.
fn parameter_sets(stream: &Stream, codec: Codec) -> Vec<Bytes> {
    let Some(ParametersRef::Video(parameters)) = stream.parameters() else {
        return Vec::new();
    };
    let record = Bytes::copy_from_slice(parameters.extra_data());
    match codec {
        Codec::H264 => avc_sets(&record),
        Codec::H265 => hevc_sets(&record),
        _ => None,
    }
    .unwrap_or_default()
}

/// Returns the parameter sets of an AVCDecoderConfigurationRecord (ISO/IEC 14496-15 §5.3.3.1).
fn avc_sets(record: &Bytes) -> Option<Vec<Bytes>> {
    let mut sets = Vec::new();
    let mut at = 5;
    for mask in [0x1f, 0xff] {
        let count = record.get(at)? & mask;
        at = units(record, at + 1, count.into(), &mut sets)?;
    }
    Some(sets)
}

/// Returns the parameter sets of an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15 §8.3.3.1).
fn hevc_sets(record: &Bytes) -> Option<Vec<Bytes>> {
    let mut sets = Vec::new();
    let mut at = 23;
    for _ in 0..*record.get(22)? {
        let count = record.get(at + 1..)?.first_chunk::<2>()?;
        at = units(record, at + 3, u16::from_be_bytes(*count), &mut sets)?;
    }
    Some(sets)
}

/// Reads `count` NAL units, each after its length in two bytes. Returns the position after them.
fn units(record: &Bytes, mut at: usize, count: u16, sets: &mut Vec<Bytes>) -> Option<usize> {
    for _ in 0..count {
        let length = usize::from(u16::from_be_bytes(*record.get(at..)?.first_chunk::<2>()?));
        let end = at + 2 + length;
        sets.push((end <= record.len()).then(|| record.slice(at + 2..end))?);
        at = end;
    }
    Some(at)
}
