//! A source of whole frames that is not a WebRTC peer, such as an RTSP client: packetizes frames into a stream's
//! tracks.
//!
//! It belongs to no shard. It attaches only to a stream without a source. A publisher takes the stream over as it would
//! from another publisher.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::whip::Published;
use crate::hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::intake::{CaptureReport, Intake, ReceivedPacket};
use crate::hub::name::StreamKey;
use crate::hub::ring::Entry;
use crate::hub::stream::{SessionId, ShardIndex, SourceRef, Stream, StreamState};
use crate::media::packetizer::{Packetizer, PacketizerError, Payload, annex_b, length_prefixed};
use crate::media::{Codec, Format, Kind};
use crate::sdp::plan::SourceFormats;

/// The parts of the media plane that a frame source uses.
pub trait FanOut: Send + Sync {
    /// Returns the hub with the streams.
    fn hub(&self) -> &Hub;

    /// Publishes the frames that the source took since the last call. Returns `false` if the stream has another source;
    /// the frame source must then end.
    fn feed(&self, feed: &mut FrameSource) -> bool;

    /// Requests a key frame from the source of a stream, if it accepts requests.
    fn ask_for_key_frame(&self, source: SourceRef);
}

/// A source of whole frames.
pub struct FrameSource {
    key: StreamKey,
    source: SourceRef,
    stream: Option<Arc<Stream>>,
    tracks: Vec<FrameTrack>,
}

/// A track that a source will have. The format is needed only if the bitstream does not carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    pub codec: Codec,
    pub format: Option<Format>,
}

impl From<Codec> for Announced {
    fn from(codec: Codec) -> Self {
        // Opus packets do not announce the channels. Every decoder accepts stereo.
        let format = (codec == Codec::Opus).then_some(Format::Opus { stereo: true });
        Self { codec, format }
    }
}

impl From<Format> for Announced {
    fn from(format: Format) -> Self {
        Self {
            codec: format.codec(),
            format: Some(format),
        }
    }
}

/// How the NAL units of an access unit are delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Each NAL unit follows its length in four bytes.
    Lengths,
    /// Each NAL unit follows a start code (annex B).
    StartCodes,
}

/// One track.
struct FrameTrack {
    packetizer: Packetizer,
    intake: Intake,
    next_seq: u64,
    /// Packets since the last [`FrameSource::publish`].
    arrived: Vec<ReceivedPacket>,
    announced: Option<Format>,
    resolution: Option<(u16, u16)>,
    captured: Option<Captured>,
}

/// A timestamp of a track and its capture time, to synchronize the tracks of a source.
struct Captured {
    time: u64,
    at: Instant,
    /// Reported by the source; otherwise estimated from arrival.
    is_reported: bool,
}

/// Maximum number of packets kept until the next publish; more than the longest access unit has.
const MAX_PENDING: usize = 16_384;

impl FrameSource {
    /// Makes a source that has sent nothing; `id` identifies it among sessions.
    ///
    /// # Errors
    ///
    /// [`PacketizerError::Codec`] for a codec that cannot be packetized.
    pub fn new(key: impl Into<StreamKey>, id: SessionId, tracks: &[Announced]) -> Result<Self, PacketizerError> {
        Self::with(key.into(), id, tracks, Intake::new)
    }

    /// As [`Self::new`], for a source whose timestamps are those of another stream, such as a transcode of it.
    ///
    /// # Errors
    ///
    /// As for [`Self::new`].
    pub fn keeping_time(
        key: impl Into<StreamKey>,
        id: SessionId,
        tracks: &[Announced],
    ) -> Result<Self, PacketizerError> {
        Self::with(key.into(), id, tracks, Intake::keeping_time)
    }

    fn with(
        key: StreamKey,
        id: SessionId,
        tracks: &[Announced],
        intake: fn() -> Intake,
    ) -> Result<Self, PacketizerError> {
        let tracks = tracks
            .iter()
            .map(|announced| FrameTrack::new(*announced, intake()))
            .collect::<Result<_, _>>()?;
        let source = SourceRef {
            session: id,
            shard: ShardIndex::NONE,
            takes_key_frame_requests: false,
        };
        Ok(Self {
            key,
            source,
            stream: None,
            tracks,
        })
    }

    /// Sets the parameter sets of the video that were received out of band, such as in an SDP.
    pub fn remember(&mut self, parameter_sets: &[Bytes]) {
        if let Some(track) = self.track(Kind::Video) {
            track.packetizer.remember(parameter_sets);
        }
    }

    /// Packetizes an access unit of H.264 or H.265, or a JPEG frame; `time` in units of 1/90000 s.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`]. The access unit is dropped; later ones are accepted.
    pub fn take_video(
        &mut self,
        now: Instant,
        time: u64,
        unit: &Bytes,
        framing: Framing,
    ) -> Result<(), PacketizerError> {
        let Some(track) = self.track(Kind::Video) else {
            return Ok(());
        };
        let payloads = match (track.packetizer.codec(), framing) {
            (Codec::Jpeg, _) => track.packetizer.packetize_picture(unit)?,
            (_, Framing::Lengths) => track.packetizer.packetize_video(&length_prefixed(unit)?)?,
            (_, Framing::StartCodes) => track.packetizer.packetize_video(&annex_b(unit)?)?,
        };
        track.push(now, time, payloads);
        Ok(())
    }

    /// Packetizes an audio frame; `time` in units of the clock rate of its codec.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`]. The frame is dropped; later ones are accepted.
    pub fn take_audio(&mut self, now: Instant, time: u64, frame: &Bytes) -> Result<(), PacketizerError> {
        let Some(track) = self.track(Kind::Audio) else {
            return Ok(());
        };
        let payloads = track.packetizer.packetize_audio(frame)?;
        track.push(now, time, payloads);
        Ok(())
    }

    /// Records that the media with timestamp `time` was captured `at`, on a clock that all tracks of the source share.
    pub fn record_capture_time(&mut self, kind: Kind, time: u64, at: Instant) {
        let is_reported = true;
        self.record(kind, Captured { time, at, is_reported });
    }

    /// As [`Self::record_capture_time`], for a source that does not report capture times: `at` is when the media with
    /// timestamp `time` would have arrived with the smallest observed delay.
    pub fn record_alignment(&mut self, kind: Kind, time: u64, at: Instant) {
        let is_reported = false;
        self.record(kind, Captured { time, at, is_reported });
    }

    fn record(&mut self, kind: Kind, captured: Captured) {
        if let Some(track) = self.track(kind) {
            track.captured = Some(captured);
        }
    }

    /// Publishes the packets since the last call. The source attaches to its stream once the format of its video is
    /// known, because viewers cannot be answered before.
    pub fn publish(&mut self, hub: &Hub) -> Published {
        let mut published = Published::default();
        if self.tracks.iter().all(|track| track.arrived.is_empty()) {
            return published;
        }
        if self
            .tracks
            .iter()
            .any(|track| track.is_video() && track.format().is_none())
        {
            self.tracks.iter_mut().for_each(|track| track.arrived.clear());
            return published;
        }
        let Some(stream) = self.attach(hub) else {
            published.displaced = true;
            return published;
        };
        stream.with(|state| {
            if !state.is_source(self.source.session) {
                published.displaced = true;
                return;
            }
            let mut packets = Vec::new();
            for track in &mut self.tracks {
                track.put(state, &mut packets);
            }
            published.batches.extend(Batch::new(&stream, state, packets));
        });
        published
    }

    /// Attaches to the stream if it has no source. Returns `None` if it has another one.
    fn attach(&mut self, hub: &Hub) -> Option<Arc<Stream>> {
        if let Some(stream) = &self.stream {
            return Some(stream.clone());
        }
        let (source, formats) = (self.source, self.formats());
        let mut attached = false;
        let stream = hub.open_with(&self.key, |state| {
            if state.source().is_none() {
                state.attach(source, &formats);
                attached = true;
            }
        });
        if !attached {
            hub.release(&stream, |_| {});
            return None;
        }
        self.stream = Some(stream.clone());
        Some(stream)
    }

    /// Sets whether this source makes a key frame on request. The default is `false`: cameras and HLS origins send
    /// media that is already encoded.
    pub fn set_takes_key_frame_requests(&mut self, takes: bool) {
        self.source.takes_key_frame_requests = takes;
        if let Some(stream) = &self.stream {
            stream.with(|state| state.update_source(self.source));
        }
    }

    /// Whether a key frame was requested since the last call.
    pub fn take_key_frame_request(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(|stream| stream.with(StreamState::take_key_frame_request))
    }

    /// Whether the source is attached to its stream.
    pub fn is_attached(&self) -> bool {
        self.stream.is_some()
    }

    /// Detaches the source from its stream.
    pub fn ended(&mut self, hub: &Hub) {
        if let Some(stream) = self.stream.take() {
            hub.release(&stream, |state| {
                state.detach(self.source.session);
            });
        }
    }

    fn formats(&self) -> SourceFormats {
        let of = |kind| {
            let track = self.tracks.iter().find(|t| t.packetizer.codec().kind() == kind)?;
            track.format()
        };
        SourceFormats {
            video: of(Kind::Video),
            audio: of(Kind::Audio),
        }
    }

    fn track(&mut self, kind: Kind) -> Option<&mut FrameTrack> {
        self.tracks.iter_mut().find(|t| t.packetizer.codec().kind() == kind)
    }
}

impl FrameTrack {
    fn new(announced: Announced, intake: Intake) -> Result<Self, PacketizerError> {
        Ok(Self {
            packetizer: Packetizer::new(announced.codec)?,
            intake,
            next_seq: 0,
            arrived: Vec::new(),
            announced: announced.format,
            resolution: None,
            captured: None,
        })
    }

    fn is_video(&self) -> bool {
        self.packetizer.codec().kind() == Kind::Video
    }

    fn format(&self) -> Option<Format> {
        self.packetizer.format().or(self.announced.filter(|_| !self.is_video()))
    }

    fn push(&mut self, now: Instant, time: u64, payloads: Vec<Payload>) {
        let codec = self.packetizer.codec();
        let room = MAX_PENDING.saturating_sub(self.arrived.len());
        for payload in payloads.into_iter().take(room) {
            self.arrived.push(ReceivedPacket {
                epoch: 0,
                seq: self.next_seq,
                time: time.wrapping_add(u64::from(payload.delay)),
                marker: payload.marker,
                codec,
                key_frame: payload.key_frame,
                insert: Vec::new(),
                payload: payload.bytes,
                arrival: now,
            });
            self.next_seq += 1;
        }
    }

    fn put(&mut self, state: &mut StreamState, out: &mut Vec<Arc<Entry>>) {
        let track = state.track(self.packetizer.codec().kind());
        track.set_format(self.packetizer.format());
        track.set_reordered(self.packetizer.is_reordered());
        let resolution = self.packetizer.resolution();
        if resolution != self.resolution {
            self.resolution = resolution;
            track.set_resolution(resolution);
        }
        self.intake.take(track, self.arrived.drain(..), out);
        let Some(Captured { time, at, is_reported }) = self.captured.take() else {
            return;
        };
        if is_reported {
            let report = CaptureReport {
                epoch: 0,
                time,
                captured: at,
            };
            self.intake.on_report(track, report);
        } else if let Some(time) = self.intake.time(0, time) {
            track.record_alignment(time, at);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::hub::name::StreamName;
    use std::time::Duration;

    const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
    const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];

    fn unit(nals: &[&[u8]]) -> Bytes {
        let mut unit = Vec::new();
        for nal in nals {
            unit.extend_from_slice(&(nal.len() as u32).to_be_bytes());
            unit.extend_from_slice(nal);
        }
        unit.into()
    }

    fn key_frame() -> Bytes {
        unit(&[SPS, PPS, &[0x65; 3000]])
    }

    fn name() -> StreamName {
        StreamName::parse("door").expect("a name")
    }

    fn feed(id: u8) -> FrameSource {
        FrameSource::new(name(), SessionId([id; 16]), &[Codec::H264.into(), Codec::Pcma.into()])
            .expect("codecs that can be packetized")
    }

    #[test]
    fn a_camera_takes_the_stream_with_its_first_key_frame_and_says_what_it_is() {
        let (hub, t) = (Hub::default(), Instant::now());
        let mut feed = feed(1);
        feed.take_audio(t, 0, &Bytes::from_static(&[0xd5; 160]))
            .expect("a frame");
        feed.take_video(t, 0, &unit(&[&[0x41; 20]]), Framing::Lengths)
            .expect("a frame");
        let early = feed.publish(&hub);
        assert!(early.batches.is_empty() && !early.displaced && hub.find(name()).is_none());
        feed.take_video(t, 3000, &key_frame(), Framing::Lengths)
            .expect("a frame");
        feed.take_audio(t, 160, &Bytes::from_static(&[0xd5; 160]))
            .expect("a frame");
        let published = feed.publish(&hub);
        let lengths: Vec<usize> = published.batches.iter().map(|batch| batch.packets.len()).collect();
        assert_eq!(lengths, [1 + 3 + 1], "parameter sets, three fragments, audio");
        let state = hub.find(name()).expect("a stream");
        let formats = state.with(|state| state.formats().expect("a source"));
        assert!(matches!(formats.video, Some(Format::H264 { .. })));
        assert_eq!(formats.audio, Some(Format::Pcma));
        assert!(state.with(|state| state.video.ring().key_frame().is_some()));
        feed.ended(&hub);
        assert!(hub.find(name()).is_none());
    }

    #[test]
    fn a_publisher_takes_over_and_the_camera_does_not_take_back() {
        let (hub, t) = (Hub::default(), Instant::now());
        let mut camera = feed(1);
        camera
            .take_video(t, 0, &key_frame(), Framing::Lengths)
            .expect("a frame");
        assert!(!camera.publish(&hub).displaced);
        let publisher = SourceRef {
            session: SessionId([9; 16]),
            shard: ShardIndex(0),
            takes_key_frame_requests: true,
        };
        let formats = camera.formats();
        let stream = hub.open_with(name(), |state| {
            let replaced = state.attach(publisher, &formats);
            assert_eq!(replaced.map(|source| source.shard), Some(ShardIndex::NONE));
        });
        for mut camera in [camera, feed(2)] {
            camera
                .take_video(t, 3000, &key_frame(), Framing::Lengths)
                .expect("a frame");
            assert!(camera.publish(&hub).displaced);
            camera.ended(&hub);
        }
        assert!(stream.with(|state| state.is_source(publisher.session)));
    }

    #[test]
    fn a_feed_is_asked_for_key_frames_only_while_it_makes_them() {
        let (hub, t) = (Hub::default(), Instant::now());
        let mut camera = feed(1);
        camera
            .take_video(t, 0, &key_frame(), Framing::Lengths)
            .expect("a frame");
        camera.publish(&hub);
        let stream = hub.find(name()).expect("a stream");
        assert_eq!(stream.with(StreamState::request_key_frame_of_source), None);
        assert!(!camera.take_key_frame_request());

        camera.set_takes_key_frame_requests(true);
        let requested = stream
            .with(StreamState::request_key_frame_of_source)
            .map(|source| source.session);
        assert_eq!(requested, Some(camera.source.session));
        assert!(camera.take_key_frame_request() && !camera.take_key_frame_request());

        // A request to one source is not passed on to the next.
        stream.with(StreamState::request_key_frame_of_source);
        camera.ended(&hub);
        let mut pipeline = feed(2);
        pipeline.set_takes_key_frame_requests(true);
        pipeline
            .take_video(t, 0, &key_frame(), Framing::Lengths)
            .expect("a frame");
        let _viewer = hub.open_with(name(), |state| state.subscribe(ShardIndex(0)));
        pipeline.publish(&hub);
        assert!(!pipeline.take_key_frame_request());
        pipeline.set_takes_key_frame_requests(false);
        let stream = hub.find(name()).expect("a stream");
        assert_eq!(stream.with(StreamState::request_key_frame_of_source), None);
    }

    #[test]
    fn a_camera_that_comes_back_continues_the_sequence() {
        let (hub, t) = (Hub::default(), Instant::now());
        let stream = hub.open_with(name(), |state| state.subscribe(ShardIndex(0)));
        let mut last = None;
        for (id, at) in [(1, t), (2, t + Duration::from_secs(20))] {
            let mut camera = feed(id);
            camera
                .take_video(at, 77, &key_frame(), Framing::Lengths)
                .expect("a frame");
            let published = camera.publish(&hub);
            let batch = published.batches.first().expect("one batch");
            assert_eq!(
                (batch.stream, &batch.subscribers[..]),
                (stream.id, &[ShardIndex(0)][..])
            );
            let first = batch.packets.first().expect("packets").packet.seq;
            assert!(last.is_none_or(|last| first == last + 1));
            last = batch.packets.last().map(|entry| entry.packet.seq);
            camera.ended(&hub);
        }
    }
}
