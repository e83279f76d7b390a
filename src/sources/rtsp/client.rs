//! One RTSP session with a camera, using the crate `retina`. It has no timeouts of its own, so each step has one here.
//!
//! Retina returns packets, and [`assembler`](super::assembler) makes frames of them. Only Motion JPEG, and audio beside
//! it, is depacketized by retina.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream as _;
use retina::client::{Demuxed, Described, PacketItem, Playing, Session, SessionOptions, SetupOptions};
use retina::codec::{CodecItem, FrameFormat, ParameterSetInsertion, aac, h26x};
use retina::rtcp::ReceivedCompoundPacket;
use retina::rtp::ReceivedPacket;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::assembler::{Assembled, Received};
use super::camera::{Camera, CameraError, Step, first_line, other, to_retina};
use super::challenge;
use super::connect::test_connection;
use super::refusal::{PassedOver, Refusal};
use super::silence::Silence;
use super::tracks::{Choice, Track, choose};
use super::trouble::{self, Verdict};
use millstream_core::hub::name::StreamName;
use millstream_core::media::clock::NtpClock;
use millstream_core::media::{Codec, Kind};
use millstream_core::sources::frame_source::{Announced, Framing};

/// A playing session with a camera.
pub(super) struct Client {
    media: Media,
    /// Video first, if there is any.
    tracks: Vec<Track>,
    left_out: Vec<String>,
    ntp: NtpClock,
    /// Events that were read but not returned yet.
    ready: VecDeque<Event>,
    stream: StreamName,
    passed_over: PassedOver,
    /// Errors in a row without an item in between.
    errors: u32,
    /// When the last frame was assembled, or the session began.
    last_frame: Instant,
}

/// Frames depacketized by retina, or packets.
enum Media {
    Frames(Box<Demuxed>),
    Packets(Box<Session<Playing>>),
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

/// Timeout of DESCRIBE, each SETUP, and PLAY.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// A session whose packets make no frame for this long ends: longer than any usual key frame interval.
const FRAME_LIMIT: Duration = Duration::from_secs(120);

/// Retina reads a request of the camera without waking its task for what follows, so it is polled at this interval.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// More errors in a row without reading anything mean that retina makes no progress.
const MAX_ERRORS: u32 = 10_000;

/// The frame format requested from retina.
const FRAMES: FrameFormat = FrameFormat {
    h26x_framing: h26x::Framing::FourByteLength,
    parameter_set_insertion: ParameterSetInsertion::EachKeyFrame,
    aac_framing: aac::Framing::Raw,
};

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
        let described = with_timeout(Step::Describe, has_credentials, describing).await;
        let mut session = match described {
            Err(CameraError::Credentials) if challenge::is_unusual(camera).await => {
                return Err(CameraError::Refused(Refusal::Authentication));
            }
            described => described?,
        };
        let silence = || Silence::new(camera.silence_timeout, now());
        let Choice { mut tracks, left_out } = choose(&session, &silence);
        if tracks.is_empty() {
            return Err(CameraError::NoTracks);
        }
        set_up(camera, &mut session, &mut tracks, has_credentials).await?;
        let playing = with_timeout(Step::Play, has_credentials, session.play(camera.policies.play())).await?;
        let media = if tracks.iter().any(|track| track.announced.codec == Codec::Jpeg) {
            let demuxed = playing.demuxed();
            Media::Frames(Box::new(
                demuxed.map_err(|error| CameraError::of(Step::Play, &error, has_credentials))?,
            ))
        } else {
            Media::Packets(Box::new(playing))
        };
        Ok(Self {
            media,
            tracks,
            left_out,
            ntp: NtpClock::default(),
            ready: VecDeque::new(),
            stream: stream.clone(),
            passed_over: PassedOver::default(),
            errors: 0,
            last_frame: Instant::now(),
        })
    }

    /// Returns the tracks of the session.
    pub(super) fn tracks(&self) -> Vec<Announced> {
        self.tracks.iter().map(|track| track.announced).collect()
    }

    /// Returns the tracks that the session has but that are not read.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Returns what was passed over so far.
    pub(super) fn passed_over(&self) -> &PassedOver {
        &self.passed_over
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
                // Audio goes on where video makes no frame.
                let main = self.tracks.first().map(Track::kind);
                if matches!(&event, Event::Frame(frame) if Some(frame.kind) == main) {
                    self.last_frame = Instant::now();
                }
                return Ok(event);
            }
            // A timeout is handled by the next `check_silence`.
            let mut wake = deadline.min(Instant::now() + POLL_INTERVAL);
            for track in &self.tracks {
                if let Some(due) = track.assembler.poll_timeout() {
                    wake = wake.min(Instant::from_std(due));
                }
            }
            if let Ok(read) = timeout_at(wake, self.read()).await {
                read?;
            }
            self.complete_frames();
        }
    }

    /// Fails if the first track (video, or audio if there is no video) is silent. Missing audio beside video is only
    /// logged, once. Returns when to check again.
    fn check_silence(&mut self) -> Result<Instant, CameraError> {
        let now = Instant::now();
        let mut deadline = self.last_frame + FRAME_LIMIT;
        if now >= deadline {
            return Err(CameraError::NoFrames);
        }
        for (index, track) in self.tracks.iter_mut().enumerate() {
            let silent_at = Instant::from_std(track.silence.deadline());
            match (index, now >= silent_at) {
                (0, true) if track.silence.is_used() => return Err(CameraError::Silent),
                (0, true) => return Err(CameraError::NoMedia),
                (0, false) => deadline = deadline.min(silent_at),
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
                match item.ok_or(CameraError::Ended)? {
                    Ok(item) => self.take_item(item),
                    Err(error) => self.on_error(&error)?,
                }
            }
            Media::Packets(session) => {
                // After a request of the camera, retina returns `Pending` although there may be more to read.
                let item = poll_fn(|context| match Pin::new(&mut **session).poll_next(context) {
                    Poll::Pending => Pin::new(&mut **session).poll_next(context),
                    ready => ready,
                });
                match item.await.ok_or(CameraError::Ended)? {
                    Ok(PacketItem::Rtp(packet)) => self.take_packet(packet),
                    Ok(PacketItem::Rtcp(compound)) => self.take_report(&compound),
                    Ok(_) => {}
                    Err(error) => self.on_error(&error)?,
                }
            }
        }
        Ok(())
    }

    /// Takes a frame that retina depacketized.
    fn take_item(&mut self, item: CodecItem) {
        self.errors = 0;
        let (index, time, received, bytes) = match item {
            CodecItem::VideoFrame(frame) => {
                let (index, time) = (frame.stream_id(), frame.timestamp().timestamp());
                (index, time, frame.end_ctx().received(), frame.into_data().into())
            }
            CodecItem::AudioFrame(frame) => {
                let (index, time) = (frame.stream_id(), frame.timestamp().timestamp());
                (
                    index,
                    time,
                    frame.ctx().received(),
                    Bytes::copy_from_slice(frame.data()),
                )
            }
            CodecItem::Rtcp(compound) => return self.take_report(&compound),
            _ => return,
        };
        let Some(track) = self.tracks.iter_mut().find(|track| track.index == index) else {
            return;
        };
        let time = Track::positive(time);
        track.on_packet(time);
        self.ready.push_back(Event::Frame(Frame {
            kind: track.kind(),
            time: track.scaled(time),
            bytes,
            received,
        }));
    }

    fn take_packet(&mut self, packet: ReceivedPacket) {
        self.errors = 0;
        let index = packet.stream_id();
        let Some(track) = self.tracks.iter_mut().find(|track| track.index == index) else {
            return;
        };
        if packet.header().payload_type() != track.payload_type {
            let what = || "packets of an unannounced payload type".to_owned();
            return pass_over(&mut self.passed_over, &self.stream, 1, &what);
        }
        let time = Track::positive(packet.timestamp().timestamp());
        track.on_packet(time);
        let packet = Received::new(packet, time, track.scaled(time));
        let received = packet.at;
        let before = track.assembler.odd_count();
        let mut frames = Vec::new();
        track.assembler.push(packet, &mut frames);
        let odd = track.assembler.odd_count() - before;
        if odd > 0 {
            pass_over(&mut self.passed_over, &self.stream, odd, &|| track.assembler.odd().1);
        }
        self.ready
            .extend(frames.into_iter().map(|frame| track.event(frame, received)));
    }

    /// Completes frames whose last packet arrived a while ago.
    fn complete_frames(&mut self) {
        let now = now();
        for track in &mut self.tracks {
            if track.assembler.poll_timeout().is_none_or(|due| due > now) {
                continue;
            }
            let mut frames = Vec::new();
            track.assembler.handle_timeout(now, &mut frames);
            self.ready
                .extend(frames.into_iter().map(|frame| track.event(frame, now)));
        }
    }

    /// Passes over what can be passed over.
    fn on_error(&mut self, error: &retina::Error) -> Result<(), CameraError> {
        let line = first_line(error);
        self.errors += 1;
        if self.errors > MAX_ERRORS {
            return Err(CameraError::of(Step::Receive, error, true));
        }
        match trouble::judge(&line) {
            Verdict::Fatal(error) => return Err(error),
            Verdict::PassOver => {}
            Verdict::Refused(refusal) => {
                // The error does not say which track it is of: the first one counts unless it goes on.
                let now = now();
                for track in &mut self.tracks {
                    if track.rejections.add(now) {
                        return Err(CameraError::Refused(refusal));
                    }
                }
            }
        }
        pass_over(&mut self.passed_over, &self.stream, 1, &|| line.clone());
        Ok(())
    }

    fn take_report(&mut self, compound: &ReceivedCompoundPacket) {
        self.errors = 0;
        let report = compound
            .pkts()
            .find_map(|packet| packet.as_sender_report().ok().flatten());
        let track = self.tracks.iter_mut().find(|track| track.index == compound.stream_id());
        if let (Some(report), Some(time), Some(track)) = (report, compound.rtp_timestamp(), track) {
            let ntp = report.ntp_timestamp().0;
            // A clock that is not set, or that stands still, says nothing.
            if track.last_report.replace(ntp) == Some(ntp) {
                return;
            }
            let Some(at) = self.ntp.instant(ntp, compound.ctx().received()) else {
                return;
            };
            self.ready.push_back(Event::Captured {
                kind: track.kind(),
                time: track.scaled(Track::positive(time.timestamp())),
                at,
            });
        }
    }
}

fn pass_over(passed_over: &mut PassedOver, stream: &StreamName, count: u64, what: &dyn Fn() -> String) {
    passed_over.count += count;
    if passed_over.what.is_none() {
        let what = passed_over.what.insert(what());
        info!(%stream, what, "camera sent something odd; it is passed over, and more of it is only counted");
    }
}

impl Track {
    fn on_packet(&mut self, time: u64) {
        self.silence.packet(time, now());
        self.silence_logged = false;
        self.rejections.accepted();
    }

    fn event(&self, frame: Assembled, received: std::time::Instant) -> Event {
        let time = if frame.is_scaled {
            frame.time
        } else {
            self.scaled(frame.time)
        };
        Event::Frame(Frame {
            kind: self.kind(),
            time,
            bytes: frame.bytes,
            received,
        })
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Sets up the tracks. Removes audio that the camera refuses beside video.
async fn set_up(
    camera: &Camera,
    session: &mut Session<Described>,
    tracks: &mut Vec<Track>,
    has_credentials: bool,
) -> Result<(), CameraError> {
    let mut transport = camera.transport;
    let mut position = 0;
    while let Some(track) = tracks.get(position) {
        let options = SetupOptions::default()
            .transport(to_retina(transport))
            .frame_format(FRAMES);
        let setup = session.setup(track.index, options);
        match with_timeout(Step::Setup, has_credentials, setup).await {
            Ok(()) => position += 1,
            // Some cameras support one transport only (RFC 2326 §11.3.13).
            Err(CameraError::Transport) if position == 0 && transport == camera.transport => {
                transport = other(transport);
            }
            Err(CameraError::Failed { .. } | CameraError::Transport | CameraError::NotFound) if position > 0 => {
                tracks.remove(position);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn with_timeout<T>(
    step: Step,
    has_credentials: bool,
    work: impl Future<Output = Result<T, retina::Error>>,
) -> Result<T, CameraError> {
    match timeout(STEP_LIMIT, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(match trouble::refused_at(step, &error) {
            Some(refusal) if has_credentials || refusal != Refusal::Authentication => CameraError::Refused(refusal),
            _ => CameraError::of(step, &error, has_credentials),
        }),
        Err(_) => Err(CameraError::Timeout(step)),
    }
}
