//! A stream in virtual time, packaged for HLS.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream::outputs::hls::packager::{MonotonicAndWallTime, Packager};
use millstream::outputs::hls::rendition::{Rendition, RenditionRole};
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::reader::RingReader;
use millstream_core::hub::stream::{SessionId, Stream};
use millstream_core::media::depacketizer::Depacketizer;
use millstream_core::media::{Codec, MediaKind};
use millstream_core::sources::frame_source::{AnnouncedTrack, FrameSource, NalFraming};

const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];

/// Start of the test in seconds since 1970: segment numbers start from it.
pub(super) const BEGUN: u64 = 1_800_000_000;

/// A stream of H.264 and audio that is packaged for players.
pub(super) struct World {
    hub: Hub,
    stream: Arc<Stream>,
    feed: FrameSource,
    readers: [Option<RingReader>; 2],
    depacketizers: [Depacketizer; 2],
    pub(super) packager: Packager,
    pub(super) start: Instant,
    pub(super) now: Instant,
    frame: u64,
    audio_time: u64,
    gop: u64,
    /// Frames per second.
    rate: u64,
    /// Audio goes on, and no video arrives.
    pub(super) video_pauses: bool,
    /// The kind that is not read for now.
    pub(super) late: Option<MediaKind>,
    /// Slices refer to the picture parameter set of the stream.
    pub(super) has_valid_slices: bool,
}

/// Duration of an audio frame in ticks, and its codec.
pub(super) const OPUS: (u64, Codec) = (960, Codec::Opus);

fn name() -> StreamName {
    StreamName::parse("live").expect("a name")
}

impl World {
    pub(super) fn new(rate: u64, gop: u64, audio: AnnouncedTrack) -> Self {
        let hub = Hub::default();
        let stream = hub.open_and_update_stream(name(), |_| ());
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now() + Duration::from_secs(3_600);
        let feed = FrameSource::new(name(), SessionId([1; 16]), &[Codec::H264.into(), audio]).expect("codecs");
        Self {
            hub,
            stream,
            feed,
            readers: [None, None],
            depacketizers: [Depacketizer::new(MediaKind::Video), Depacketizer::new(MediaKind::Audio)],
            packager: Packager::default(),
            start: now,
            now,
            frame: 0,
            audio_time: 0,
            gop,
            rate,
            video_pauses: false,
            late: None,
            has_valid_slices: false,
        }
    }

    /// Another source takes over the stream.
    pub(super) fn another_source(&mut self, audio: AnnouncedTrack) {
        self.feed.detach(&self.hub);
        self.feed = FrameSource::new(name(), SessionId([2; 16]), &[Codec::H264.into(), audio]).expect("codecs");
        self.packager.restart_timeline();
        self.readers = [None, None];
        self.depacketizers = [Depacketizer::new(MediaKind::Video), Depacketizer::new(MediaKind::Audio)];
        self.frame = 0;
    }

    pub(super) fn play(&mut self, seconds: u64, audio_ticks: u64, rate_of_audio: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.play_frame(audio_ticks, rate_of_audio);
        }
    }

    pub(super) fn play_frames(&mut self, frames: u64, audio_ticks: u64, rate_of_audio: u64) {
        for _ in 0..frames {
            self.play_frame(audio_ticks, rate_of_audio);
        }
    }

    pub(super) fn play_frame(&mut self, audio_ticks: u64, rate_of_audio: u64) {
        let mut body = vec![0x55; 500];
        if self.has_valid_slices {
            body[0] = 0x80;
        }
        let frame = if self.frame.is_multiple_of(self.gop) {
            [SPS, PPS, &[0, 0, 0, 1, 0x65, 0x88], &body].concat()
        } else {
            [&[0, 0, 0, 1, 0x41, 0x88], &body[..]].concat()
        };
        let time = self.frame * 90_000 / self.rate;
        if !self.video_pauses {
            self.feed
                .packetize_and_queue_video(self.now, time, &frame.into(), NalFraming::AnnexB)
                .expect("short");
        }
        let audio_until = (self.now - self.start).as_nanos() as u64 * rate_of_audio / 1_000_000_000;
        while self.audio_time <= audio_until {
            self.feed
                .packetize_and_queue_audio(self.now, self.audio_time, &Bytes::from_static(&[7; 60]))
                .expect("short");
            self.audio_time += audio_ticks;
        }
        self.feed.publish_to_hub(&self.hub);
        self.read();
        self.frame += 1;
        self.now =
            self.start + Duration::from_nanos((self.now - self.start).as_nanos() as u64 + 1_000_000_000 / self.rate);
    }

    fn read(&mut self) {
        let wall = Duration::from_secs(BEGUN) + (self.now - self.start);
        for (index, kind) in [MediaKind::Video, MediaKind::Audio].into_iter().enumerate() {
            if self.late == Some(kind) {
                continue;
            }
            // The source attaches to the stream with its first key frame.
            let current = self.hub.find_stream(name()).expect("it is fed");
            self.stream = current;
            let mut entries = Vec::new();
            let (now, reader) = (self.now, &mut self.readers[index]);
            self.stream.with_state(|state| {
                let ring = state.track(kind).ring();
                if reader.is_none() {
                    *reader = match kind {
                        MediaKind::Video => RingReader::starting_at_newest_key_frame(ring),
                        MediaKind::Audio => Some(RingReader::starting_at_oldest_packet(ring)),
                    };
                }
                if let Some(reader) = reader {
                    reader.append_available_packets(now, ring, &mut entries);
                }
            });
            let mut frames = Vec::new();
            for entry in entries {
                self.depacketizers[index].push_packet(&entry.packet, &mut frames);
            }
            let track = self.stream.with_state(|state| state.track(kind).format_and_clock());
            for frame in frames {
                self.packager.push_frame(
                    &track,
                    [RenditionRole::Video, RenditionRole::Audio][index],
                    true,
                    &frame,
                    MonotonicAndWallTime {
                        monotonic_time: self.now,
                        wall_clock_time: wall,
                    },
                );
            }
        }
    }

    pub(super) fn video(&self) -> &Rendition {
        self.packager.rendition(RenditionRole::Video).expect("video")
    }

    pub(super) fn audio(&self) -> &Rendition {
        self.packager.rendition(RenditionRole::Audio).expect("audio")
    }
}
