//! One RTSP session with a camera, by the crate `retina`, which has no deadlines of its own: each wait for the camera has
//! one here.

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

use super::raw::RawTrack;
use super::{Camera, CameraError, Step, to_retina};
use crate::hub::name::StreamName;
use crate::media::aac::AacConfig;
use crate::media::clock::NtpClock;
use crate::media::{Codec, Format, Kind};
use crate::pipeline::value::TargetHost;
use crate::sources::frame_source::{Announced, Framing};

/// A camera that plays.
pub(super) struct Client {
    media: Media,
    /// The picture first.
    tracks: Vec<Track>,
    ntp: NtpClock,
    /// Read, but not handed out yet.
    ready: VecDeque<Event>,
    stream: StreamName,
}

/// Frames by retina, or packets that are put together here.
enum Media {
    Frames(Box<Demuxed>),
    Packets(Box<Session<Playing>>),
}

/// A track that was set up.
struct Track {
    /// Its place in the description.
    index: usize,
    announced: Announced,
    /// In Hz, by the description.
    rate: u32,
    parameter_sets: Vec<Bytes>,
    raw: RawTrack,
    /// When its last frame came.
    heard: Instant,
    /// The log knows that it fell silent.
    told: bool,
}

/// What a camera says.
pub(super) enum Event {
    Frame(Frame),
    /// What this track has at `time` was captured `at`, on the one clock of the camera (RFC 3550 §6.4.1).
    Captured {
        kind: Kind,
        time: u64,
        at: std::time::Instant,
    },
}

/// A frame that the camera sent.
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// In units of the clock rate of its codec.
    pub(super) time: u64,
    pub(super) bytes: Bytes,
    pub(super) received: std::time::Instant,
}

/// For the TCP connection alone: it is tried again soon, and a network that has come back is noticed then.
const CONNECT_LIMIT: Duration = Duration::from_millis(1_500);

/// For DESCRIBE, for each SETUP, and for PLAY.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Without a picture for so long, a camera is frozen: nothing else would tell, as its TCP connection stays, and its sound
/// may go on.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// How retina puts frames together.
const FRAMES: FrameFormat = FrameFormat {
    h26x_framing: h26x::Framing::FourByteLength,
    parameter_set_insertion: ParameterSetInsertion::EachKeyFrame,
    aac_framing: aac::Framing::Raw,
};

/// Times of retina may be a little below zero.
const TIME_ORIGIN: i64 = 1 << 33;

impl Client {
    /// Connects, chooses the tracks, and has them played.
    pub(super) async fn connect(camera: &Camera, stream: &StreamName) -> Result<Self, CameraError> {
        reach(camera).await?;
        let credentials = camera.credentials()?;
        let has_credentials = credentials.is_some();
        let options = SessionOptions::default()
            .creds(credentials)
            .session_group(camera.group.clone())
            .user_agent("millstream".to_owned());
        let describing = Session::describe(camera.url.clone(), camera.policies.session(options));
        let mut session = within(Step::Describe, has_credentials, describing).await?;
        let (tracks, by_packets) = choose(stream, &session);
        if tracks.is_empty() {
            return Err(CameraError::NoTracks);
        }
        for track in &tracks {
            let options = SetupOptions::default()
                .transport(to_retina(camera.transport))
                .frame_format(FRAMES);
            within(Step::Setup, has_credentials, session.setup(track.index, options)).await?;
        }
        let playing = within(Step::Play, has_credentials, session.play(camera.policies.play())).await?;
        let media = if by_packets {
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

    /// What it plays.
    pub(super) fn tracks(&self) -> Vec<Announced> {
        self.tracks.iter().map(|track| track.announced).collect()
    }

    /// Those of its description.
    pub(super) fn parameter_sets(&self) -> Vec<Bytes> {
        self.tracks
            .iter()
            .flat_map(|track| track.parameter_sets.clone())
            .collect()
    }

    /// How NAL units stand in its frames.
    pub(super) fn framing(&self) -> Framing {
        match self.media {
            Media::Frames(_) => Framing::Lengths,
            Media::Packets(_) => Framing::StartCodes,
        }
    }

    /// The next frame or report.
    pub(super) async fn next(&mut self) -> Result<Event, CameraError> {
        loop {
            let deadline = self.watch()?;
            if let Some(event) = self.ready.pop_front() {
                if let Event::Frame(frame) = &event {
                    self.on_packet_of(frame.kind);
                }
                return Ok(event);
            }
            // Elapsed is found by the next look.
            if let Ok(read) = timeout_at(deadline, self.read()).await {
                read?;
            }
        }
    }

    fn on_packet_of(&mut self, kind: Kind) {
        let heard = |track: &&mut Track| track.announced.codec.kind() == kind;
        if let Some(track) = self.tracks.iter_mut().find(heard) {
            (track.heard, track.told) = (Instant::now(), false);
        }
    }

    /// Gives the camera up when its picture stays away (or its sound, where there is no picture). Sound that stays away
    /// alone is told once: the picture is worth keeping. Returns when to look again.
    fn watch(&mut self) -> Result<Instant, CameraError> {
        let now = Instant::now();
        let mut deadline = now + SILENCE_LIMIT;
        for (index, track) in self.tracks.iter_mut().enumerate() {
            let silent = now.duration_since(track.heard) >= SILENCE_LIMIT;
            match (index, silent) {
                (0, true) => return Err(CameraError::Silent),
                (0, false) => deadline = track.heard + SILENCE_LIMIT,
                (_, true) if !track.told => {
                    track.told = true;
                    let codec = track.announced.codec.name();
                    warn!(stream = %self.stream, codec, "a track of the camera fell silent, the picture goes on");
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
                        track.raw.take(packet, time, received, &mut frames);
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
    /// A time of the description's clock on that of the codec.
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

/// Tries the connection by itself: the errors of retina do not tell a wrong address from a camera that is off.
async fn reach(camera: &Camera) -> Result<(), CameraError> {
    let port = camera.port();
    let connecting = async {
        match camera.host() {
            TargetHost::Address(address) => TcpStream::connect((address, port)).await,
            TargetHost::Name(name) => TcpStream::connect((name.as_str(), port)).await,
        }
    };
    match timeout(CONNECT_LIMIT, connecting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(CameraError::Unreachable(format!(
            "nothing listens on port {port} there"
        ))),
        Ok(Err(error)) => Err(CameraError::Unreachable(error.to_string())),
        Err(_) => Err(CameraError::Timeout(Step::Connect)),
    }
}

async fn within<T>(
    step: Step,
    has_credentials: bool,
    work: impl Future<Output = Result<T, retina::Error>>,
) -> Result<T, CameraError> {
    match timeout(STEP_LIMIT, work).await {
        Ok(result) => result.map_err(|error| CameraError::of(step, &error, has_credentials)),
        Err(_) => Err(CameraError::Timeout(step)),
    }
}

/// The best track of each kind, and whether they have to be read by packets: retina does not know Opus.
fn choose(name: &StreamName, session: &Session<Described>) -> (Vec<Track>, bool) {
    let known: Vec<(usize, &Stream, Announced)> = session
        .streams()
        .iter()
        .enumerate()
        .filter_map(|(index, stream)| match announced(stream) {
            Some(announced) => Some((index, stream, announced)),
            None => {
                let (media, encoding) = (stream.media(), stream.encoding_name());
                info!(stream = %name, media, encoding, "track of camera left out: it is not supported");
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
            heard: Instant::now(),
            told: false,
        })
        .collect();
    let by_packets = tracks.iter().any(|track| track.announced.codec == Codec::Opus);
    (tracks, by_packets)
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

/// Parameter sets of the description. Retina puts them before the frames by itself; packets come without.
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

/// Parameter sets of an AVCDecoderConfigurationRecord (ISO/IEC 14496-15 §5.3.3.1).
fn avc_sets(record: &Bytes) -> Option<Vec<Bytes>> {
    let mut sets = Vec::new();
    let mut at = 5;
    for mask in [0x1f, 0xff] {
        let count = record.get(at)? & mask;
        at = units(record, at + 1, count.into(), &mut sets)?;
    }
    Some(sets)
}

/// Parameter sets of an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15 §8.3.3.1).
fn hevc_sets(record: &Bytes) -> Option<Vec<Bytes>> {
    let mut sets = Vec::new();
    let mut at = 23;
    for _ in 0..*record.get(22)? {
        let count = record.get(at + 1..)?.first_chunk::<2>()?;
        at = units(record, at + 3, u16::from_be_bytes(*count), &mut sets)?;
    }
    Some(sets)
}

/// NAL units that stand behind their length in two bytes; the position behind them.
fn units(record: &Bytes, mut at: usize, count: u16, sets: &mut Vec<Bytes>) -> Option<usize> {
    for _ in 0..count {
        let length = usize::from(u16::from_be_bytes(*record.get(at..)?.first_chunk::<2>()?));
        let end = at + 2 + length;
        sets.push((end <= record.len()).then(|| record.slice(at + 2..end))?);
        at = end;
    }
    Some(at)
}
