//! A source of whole frames that is not a WebRTC peer, such as an RTSP client: packetizes frames into a stream's
//! tracks.
//!
//! It belongs to no shard. It attaches only to a stream without a source. A publisher takes the stream over as it would
//! from another publisher.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::whip::PublishedBatchesAndTakeover;
use crate::hub::Hub;
use crate::hub::name::StreamKey;
use crate::hub::packet_batch::PacketBatchToDeliver;
use crate::hub::ring::RingEntry;
use crate::hub::source_rewriter::{CaptureTimeReport, IngestSeqAndTimestampRewriter, ReceivedPacket};
use crate::hub::stream::{SessionId, ShardIndex, SourceRef, Stream, StreamState};
use crate::media::clock::TrackClock;
use crate::media::packet::TrackTime;
use crate::media::packetizer::{Packetizer, PacketizerError, RtpPayload, split_annex_b, split_length_prefixed_nals};
use crate::media::{Codec, CodecFormat, MediaKind};
use crate::sdp::negotiation_result::AudioVideoFormats;

/// The parts of the media plane that a frame source uses.
pub trait FrameSink: Send + Sync {
    /// Returns the hub with the streams.
    fn hub(&self) -> &Hub;

    /// Publishes the frames that the source took since the last call. Returns `false` if the stream has another source;
    /// the frame source must then end.
    fn publish_frames_unless_displaced(&self, feed: &mut FrameSource) -> bool;

    /// Requests a key frame from the source of a stream, if it accepts requests.
    fn request_key_frame_from_source(&self, source: SourceRef);
}

/// A source of whole frames.
pub struct FrameSource {
    stream_key: StreamKey,
    source_ref: SourceRef,
    stream: Option<Arc<Stream>>,
    tracks: Vec<FrameTrack>,
}

/// A track that a source will have. The format is needed only if the bitstream does not carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncedTrack {
    pub codec: Codec,
    pub format: Option<CodecFormat>,
}

impl From<Codec> for AnnouncedTrack {
    fn from(codec: Codec) -> Self {
        // Opus packets do not announce the channels. Every decoder accepts stereo.
        let format = (codec == Codec::Opus).then_some(CodecFormat::Opus { stereo: true });
        Self { codec, format }
    }
}

impl From<CodecFormat> for AnnouncedTrack {
    fn from(format: CodecFormat) -> Self {
        Self {
            codec: format.codec(),
            format: Some(format),
        }
    }
}

/// How the NAL units of an access unit are delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NalFraming {
    /// Each NAL unit follows its length in four bytes.
    LengthPrefixed,
    /// Each NAL unit follows a start code (annex B).
    AnnexB,
}

/// One track.
struct FrameTrack {
    packetizer: Packetizer,
    numbering_rewriter: IngestSeqAndTimestampRewriter,
    next_seq: u64,
    /// Packets since the last [`FrameSource::publish_to_hub`].
    pending_packets: Vec<ReceivedPacket>,
    announced_format: Option<CodecFormat>,
    resolution: Option<(u16, u16)>,
    capture_time: Option<CaptureTime>,
    arrival_timestamped_frame_count: u64,
}

/// A timestamp of a track and its capture time, to synchronize the tracks of a source.
struct CaptureTime {
    timestamp: u64,
    captured_at: Instant,
    /// Of the report of the source, if it reports; otherwise the time is estimated from arrivals.
    standing_delay: Option<Duration>,
}

/// Maximum number of packets kept until the next publish; more than the longest access unit has.
const MAX_PACKETS_KEPT_UNTIL_PUBLISH: usize = 16_384;

impl FrameSource {
    /// Makes a source that has sent nothing; `id` identifies it among sessions.
    ///
    /// # Errors
    ///
    /// [`PacketizerError::UnsupportedCodec`] for a codec that cannot be packetized.
    pub fn new(key: impl Into<StreamKey>, id: SessionId, tracks: &[AnnouncedTrack]) -> Result<Self, PacketizerError> {
        Self::new_with_rewriter_factory(key.into(), id, tracks, IngestSeqAndTimestampRewriter::new)
    }

    /// As [`Self::new`], for a source whose timestamps are those of another stream, such as a transcode of it.
    ///
    /// # Errors
    ///
    /// As for [`Self::new`].
    pub fn new_preserving_timestamps(
        key: impl Into<StreamKey>,
        id: SessionId,
        tracks: &[AnnouncedTrack],
    ) -> Result<Self, PacketizerError> {
        Self::new_with_rewriter_factory(
            key.into(),
            id,
            tracks,
            IngestSeqAndTimestampRewriter::with_track_timestamps,
        )
    }

    fn new_with_rewriter_factory(
        key: StreamKey,
        id: SessionId,
        tracks: &[AnnouncedTrack],
        intake: fn() -> IngestSeqAndTimestampRewriter,
    ) -> Result<Self, PacketizerError> {
        let tracks = tracks
            .iter()
            .map(|announced| FrameTrack::new(*announced, intake()))
            .collect::<Result<_, _>>()?;
        let source = SourceRef {
            session_id: id,
            shard: ShardIndex::NO_SHARD,
            accepts_key_frame_requests: false,
        };
        Ok(Self {
            stream_key: key,
            source_ref: source,
            stream: None,
            tracks,
        })
    }

    /// Sets the parameter sets of the video that were received out of band, such as in an SDP.
    pub fn set_parameter_sets(&mut self, parameter_sets: &[Bytes]) {
        if let Some(track) = self.track_mut(MediaKind::Video) {
            track.packetizer.store_out_of_band_parameter_sets(parameter_sets);
        }
    }

    /// Packetizes an access unit of H.264 or H.265, or a JPEG frame; `timestamp` in units of 1/90000 s.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`]. The access unit is dropped; later ones are accepted.
    pub fn packetize_and_queue_video(
        &mut self,
        now: Instant,
        time: u64,
        unit: &Bytes,
        framing: NalFraming,
    ) -> Result<(), PacketizerError> {
        let Some(track) = self.track_mut(MediaKind::Video) else {
            return Ok(());
        };
        let payloads = match (track.packetizer.codec(), framing) {
            (Codec::Jpeg, _) => track.packetizer.packetize_jpeg(unit)?,
            (_, NalFraming::LengthPrefixed) => track.packetizer.packetize_video(&split_length_prefixed_nals(unit)?)?,
            (_, NalFraming::AnnexB) => track.packetizer.packetize_video(&split_annex_b(unit)?)?,
        };
        track.push_payloads(now, time, payloads);
        Ok(())
    }

    /// Packetizes an audio frame; `timestamp` in units of the clock rate of its codec.
    ///
    /// # Errors
    ///
    /// A [`PacketizerError`]. The frame is dropped; later ones are accepted.
    pub fn packetize_and_queue_audio(&mut self, now: Instant, time: u64, frame: &Bytes) -> Result<(), PacketizerError> {
        let Some(track) = self.track_mut(MediaKind::Audio) else {
            return Ok(());
        };
        let payloads = track.packetizer.packetize_audio(frame)?;
        track.push_payloads(now, time, payloads);
        Ok(())
    }

    /// Sets how many frames of a track got the time of their arrival, because the timestamps of their sender stood still.
    pub fn set_arrival_timed_frame_count(&mut self, kind: MediaKind, count: u64) {
        if let Some(track) = self.track_mut(kind) {
            track.arrival_timestamped_frame_count = count;
        }
    }

    /// Records that the media with timestamp `timestamp` was captured `captured_at`, on a clock that all tracks of the source share,
    /// and `standing_delay` earlier by the fastest of its reports.
    pub fn record_capture_time(&mut self, kind: MediaKind, time: u64, at: Instant, standing_delay: Duration) {
        let standing_delay = Some(standing_delay);
        self.set_capture_time(
            kind,
            CaptureTime {
                timestamp: time,
                captured_at: at,
                standing_delay,
            },
        );
    }

    /// As [`Self::record_capture_time`], for a source that does not report capture times: `captured_at` is when the media with
    /// timestamp `timestamp` would have arrived with the smallest observed delay.
    pub fn record_estimated_capture_time(&mut self, kind: MediaKind, time: u64, at: Instant) {
        let standing_delay = None;
        self.set_capture_time(
            kind,
            CaptureTime {
                timestamp: time,
                captured_at: at,
                standing_delay,
            },
        );
    }

    /// Gives the output of a conversion of this track the capture time of its input, converted by `to_output_time`: as reported if
    /// it is. Returns `false` before the first packet of the input.
    pub fn copy_capture_time(
        &mut self,
        kind: MediaKind,
        input: &TrackClock,
        now: Instant,
        to_output_time: impl Fn(TrackTime) -> TrackTime,
    ) -> bool {
        let Some(time) = input.track_time_for_capture_at(now).map(to_output_time) else {
            return false;
        };
        match input.reported_standing_delay() {
            Some(standing_delay) => self.record_capture_time(kind, time, now, standing_delay),
            None => self.record_estimated_capture_time(kind, time, now),
        }
        true
    }

    fn set_capture_time(&mut self, kind: MediaKind, captured: CaptureTime) {
        if let Some(track) = self.track_mut(kind) {
            track.capture_time = Some(captured);
        }
    }

    /// Publishes the packets since the last call. The source attaches to its stream once the format of its video is
    /// known, because viewers cannot be answered before.
    pub fn publish_to_hub(&mut self, hub: &Hub) -> PublishedBatchesAndTakeover {
        let mut published = PublishedBatchesAndTakeover::default();
        if self.tracks.iter().all(|track| track.pending_packets.is_empty()) {
            return published;
        }
        if self
            .tracks
            .iter()
            .any(|track| track.is_video() && track.format().is_none())
        {
            self.tracks.iter_mut().for_each(|track| track.pending_packets.clear());
            return published;
        }
        let Some(stream) = self.attach_if_no_source(hub) else {
            published.displaced = true;
            return published;
        };
        stream.with_state(|state| {
            if !state.is_source_session(self.source_ref.session_id) {
                published.displaced = true;
                return;
            }
            let mut packets = Vec::new();
            for track in &mut self.tracks {
                track.publish_packets_and_track_state(state, &mut packets);
            }
            published
                .batches
                .extend(PacketBatchToDeliver::new(&stream, state, packets));
        });
        published
    }

    /// Attaches to the stream if it has no source. Returns `None` if it has another one.
    fn attach_if_no_source(&mut self, hub: &Hub) -> Option<Arc<Stream>> {
        if let Some(stream) = &self.stream {
            return Some(stream.clone());
        }
        let (source, formats) = (self.source_ref, self.formats());
        let mut attached = false;
        let stream = hub.open_and_update_stream(&self.stream_key, |state| {
            if state.source().is_none() {
                state.replace_source(source, &formats);
                attached = true;
            }
        });
        if !attached {
            hub.update_stream_and_remove_if_unused(&stream, |_| {});
            return None;
        }
        self.stream = Some(stream.clone());
        Some(stream)
    }

    /// Sets whether this source makes a key frame on request. The default is `false`: cameras and HLS origins send
    /// media that is already encoded.
    pub fn set_accepts_key_frame_requests(&mut self, takes: bool) {
        self.source_ref.accepts_key_frame_requests = takes;
        if let Some(stream) = &self.stream {
            stream.with_state(|state| state.update_source_if_current(self.source_ref));
        }
    }

    /// Whether a key frame was requested since the last call.
    pub fn take_key_frame_request(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(|stream| stream.with_state(StreamState::take_key_frame_request_flag))
    }

    /// Whether the source is attached to its stream.
    pub fn is_attached(&self) -> bool {
        self.stream.is_some()
    }

    /// Detaches the source from its stream.
    pub fn detach(&mut self, hub: &Hub) {
        if let Some(stream) = self.stream.take() {
            hub.update_stream_and_remove_if_unused(&stream, |state| {
                state.detach_source_if_current(self.source_ref.session_id);
            });
        }
    }

    fn formats(&self) -> AudioVideoFormats {
        let of = |kind| {
            let track = self.tracks.iter().find(|t| t.packetizer.codec().kind() == kind)?;
            track.format()
        };
        AudioVideoFormats {
            video: of(MediaKind::Video),
            audio: of(MediaKind::Audio),
        }
    }

    fn track_mut(&mut self, kind: MediaKind) -> Option<&mut FrameTrack> {
        self.tracks.iter_mut().find(|t| t.packetizer.codec().kind() == kind)
    }
}

impl FrameTrack {
    fn new(announced: AnnouncedTrack, intake: IngestSeqAndTimestampRewriter) -> Result<Self, PacketizerError> {
        Ok(Self {
            packetizer: Packetizer::new(announced.codec)?,
            numbering_rewriter: intake,
            next_seq: 0,
            pending_packets: Vec::new(),
            announced_format: announced.format,
            resolution: None,
            capture_time: None,
            arrival_timestamped_frame_count: 0,
        })
    }

    fn is_video(&self) -> bool {
        self.packetizer.codec().kind() == MediaKind::Video
    }

    fn format(&self) -> Option<CodecFormat> {
        self.packetizer
            .format()
            .or(self.announced_format.filter(|_| !self.is_video()))
    }

    fn push_payloads(&mut self, now: Instant, time: u64, payloads: Vec<RtpPayload>) {
        let codec = self.packetizer.codec();
        let room = MAX_PACKETS_KEPT_UNTIL_PUBLISH.saturating_sub(self.pending_packets.len());
        for payload in payloads.into_iter().take(room) {
            self.pending_packets.push(ReceivedPacket {
                numbering_epoch: 0,
                seq: self.next_seq,
                timestamp: time.wrapping_add(u64::from(payload.timestamp_offset)),
                marker: payload.marker,
                codec,
                identifies_key_frame: payload.identifies_key_frame,
                parameter_sets_to_insert: Vec::new(),
                payload: payload.bytes,
                arrival: now,
                captured_at: None,
            });
            self.next_seq += 1;
        }
    }

    fn publish_packets_and_track_state(&mut self, state: &mut StreamState, out: &mut Vec<Arc<RingEntry>>) {
        let track = state.track(self.packetizer.codec().kind());
        track.set_format_if_known(self.packetizer.format());
        track.set_has_b_frames_if_found(self.packetizer.has_b_frames());
        track.set_lacks_idr_frames_if_found(self.packetizer.lacks_idr_frames());
        track.set_arrival_timed_frame_count(self.arrival_timestamped_frame_count);
        let resolution = self.packetizer.resolution();
        if resolution != self.resolution {
            self.resolution = resolution;
            track.set_resolution_if_known(resolution);
        }
        self.numbering_rewriter
            .rewrite_packets_into_ring(track, self.pending_packets.drain(..), out);
        let Some(CaptureTime {
            timestamp: time,
            captured_at: at,
            standing_delay,
        }) = self.capture_time.take()
        else {
            return;
        };
        if let Some(standing_delay) = standing_delay {
            let report = CaptureTimeReport {
                numbering_epoch: 0,
                timestamp: time,
                captured_at: at,
                standing_delay,
            };
            self.numbering_rewriter
                .realign_timestamps_and_record_capture_time(track, report);
        } else if let Some(time) = self.numbering_rewriter.to_track_time(0, time) {
            track.align_clock_without_sender_reports(time, at);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::hub::name::StreamName;

    const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
    const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];

    fn length_prefixed_access_unit(nals: &[&[u8]]) -> Bytes {
        let mut unit = Vec::new();
        for nal in nals {
            unit.extend_from_slice(&(nal.len() as u32).to_be_bytes());
            unit.extend_from_slice(nal);
        }
        unit.into()
    }

    fn key_frame() -> Bytes {
        length_prefixed_access_unit(&[SPS, PPS, &[0x65; 3000]])
    }

    fn test_stream_name() -> StreamName {
        StreamName::parse("door").expect("a name")
    }

    fn new_unattached_source(id: u8) -> FrameSource {
        FrameSource::new(
            test_stream_name(),
            SessionId([id; 16]),
            &[Codec::H264.into(), Codec::Pcma.into()],
        )
        .expect("codecs that can be packetized")
    }

    #[test]
    fn source_attaches_at_first_key_frame_with_formats() {
        let (hub, t) = (Hub::default(), Instant::now());
        let mut feed = new_unattached_source(1);
        feed.packetize_and_queue_audio(t, 0, &Bytes::from_static(&[0xd5; 160]))
            .expect("a frame");
        feed.packetize_and_queue_video(
            t,
            0,
            &length_prefixed_access_unit(&[&[0x41; 20]]),
            NalFraming::LengthPrefixed,
        )
        .expect("a frame");
        let early = feed.publish_to_hub(&hub);
        assert!(early.batches.is_empty() && !early.displaced && hub.find_stream(test_stream_name()).is_none());
        feed.packetize_and_queue_video(t, 3000, &key_frame(), NalFraming::LengthPrefixed)
            .expect("a frame");
        feed.packetize_and_queue_audio(t, 160, &Bytes::from_static(&[0xd5; 160]))
            .expect("a frame");
        let published = feed.publish_to_hub(&hub);
        let lengths: Vec<usize> = published.batches.iter().map(|batch| batch.packets.len()).collect();
        assert_eq!(lengths, [1 + 3 + 1], "parameter sets, three fragments, audio");
        let state = hub.find_stream(test_stream_name()).expect("a stream");
        let formats = state.with_state(|state| state.formats().expect("a source"));
        assert!(matches!(formats.video, Some(CodecFormat::H264 { .. })));
        assert_eq!(formats.audio, Some(CodecFormat::Pcma));
        assert!(state.with_state(|state| state.video.ring().newest_key_frame_seq().is_some()));
        feed.detach(&hub);
        assert!(hub.find_stream(test_stream_name()).is_none());
    }

    #[test]
    fn a_publisher_takes_over_and_the_camera_does_not_take_back() {
        let (hub, t) = (Hub::default(), Instant::now());
        let mut camera = new_unattached_source(1);
        camera
            .packetize_and_queue_video(t, 0, &key_frame(), NalFraming::LengthPrefixed)
            .expect("a frame");
        assert!(!camera.publish_to_hub(&hub).displaced);
        let publisher = SourceRef {
            session_id: SessionId([9; 16]),
            shard: ShardIndex(0),
            accepts_key_frame_requests: true,
        };
        let formats = camera.formats();
        let stream = hub.open_and_update_stream(test_stream_name(), |state| {
            let replaced = state.replace_source(publisher, &formats);
            assert_eq!(replaced.map(|source| source.shard), Some(ShardIndex::NO_SHARD));
        });
        for mut camera in [camera, new_unattached_source(2)] {
            camera
                .packetize_and_queue_video(t, 3000, &key_frame(), NalFraming::LengthPrefixed)
                .expect("a frame");
            assert!(camera.publish_to_hub(&hub).displaced);
            camera.detach(&hub);
        }
        assert!(stream.with_state(|state| state.is_source_session(publisher.session_id)));
    }

    #[test]
    fn source_gets_key_frame_requests_only_if_accepting() {
        let (hub, t) = (Hub::default(), Instant::now());
        let mut camera = new_unattached_source(1);
        camera
            .packetize_and_queue_video(t, 0, &key_frame(), NalFraming::LengthPrefixed)
            .expect("a frame");
        camera.publish_to_hub(&hub);
        let stream = hub.find_stream(test_stream_name()).expect("a stream");
        assert_eq!(
            stream.with_state(StreamState::flag_key_frame_request_and_get_source),
            None
        );
        assert!(!camera.take_key_frame_request());

        camera.set_accepts_key_frame_requests(true);
        let requested = stream
            .with_state(StreamState::flag_key_frame_request_and_get_source)
            .map(|source| source.session_id);
        assert_eq!(requested, Some(camera.source_ref.session_id));
        assert!(camera.take_key_frame_request() && !camera.take_key_frame_request());

        // A request to one source is not passed on to the next.
        stream.with_state(StreamState::flag_key_frame_request_and_get_source);
        camera.detach(&hub);
        let mut pipeline = new_unattached_source(2);
        pipeline.set_accepts_key_frame_requests(true);
        pipeline
            .packetize_and_queue_video(t, 0, &key_frame(), NalFraming::LengthPrefixed)
            .expect("a frame");
        let _viewer = hub.open_and_update_stream(test_stream_name(), |state| state.add_viewer(ShardIndex(0)));
        pipeline.publish_to_hub(&hub);
        assert!(!pipeline.take_key_frame_request());
        pipeline.set_accepts_key_frame_requests(false);
        let stream = hub.find_stream(test_stream_name()).expect("a stream");
        assert_eq!(
            stream.with_state(StreamState::flag_key_frame_request_and_get_source),
            None
        );
    }

    #[test]
    fn a_camera_that_comes_back_continues_the_sequence() {
        let (hub, t) = (Hub::default(), Instant::now());
        let stream = hub.open_and_update_stream(test_stream_name(), |state| state.add_viewer(ShardIndex(0)));
        let mut last = None;
        for (id, at) in [(1, t), (2, t + Duration::from_secs(20))] {
            let mut camera = new_unattached_source(id);
            camera
                .packetize_and_queue_video(at, 77, &key_frame(), NalFraming::LengthPrefixed)
                .expect("a frame");
            let published = camera.publish_to_hub(&hub);
            let batch = published.batches.first().expect("one batch");
            assert_eq!(
                (batch.stream_id, &batch.shards_with_viewers[..]),
                (stream.id, &[ShardIndex(0)][..])
            );
            let first = batch.packets.first().expect("packets").packet.seq;
            assert!(last.is_none_or(|last| first == last + 1));
            last = batch.packets.last().map(|entry| entry.packet.seq);
            camera.detach(&hub);
        }
    }
}
