//! Viewers who cannot play a stream take it from the transcoded stream beside it, and change between the two without a
//! break (invariant 3), at key frames (invariant 4).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::SessionId;
use millstream_core::media::aac::AacConfig;
use millstream_core::media::track_delivery::TranscodeTarget;
use millstream_core::media::{Codec, CodecFormat, MediaKind};
use millstream_core::sources::frame_source::{AnnouncedTrack, FrameSource, NalFraming};

use crate::fanout::world::World;
use crate::fanout::{SECOND, near};

const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];
const VPS_265: &[u8] = &[0, 0, 0, 1, 0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x01, 0x60];

/// What can be transcoded.
const CODECS: [Codec; 3] = [Codec::H264, Codec::H265, Codec::Aac];

/// Duration of a frame, also in units of 1/90000 s.
const FRAME: Duration = Duration::from_millis(40);
const TICKS: u64 = 3_600;

/// A manually fed source: a video frame every 40 ms, a key frame every second, audio in between.
struct Source {
    feed: FrameSource,
    codec: Codec,
    frames: u64,
    first: u64,
    /// The frames are reordered (B-frames).
    reordered: bool,
    has_audio: bool,
    /// Marks the frames of this source.
    mark: u8,
}

fn name() -> StreamName {
    StreamName::parse("live").expect("a name")
}

fn aac() -> AnnouncedTrack {
    CodecFormat::Aac(AacConfig::parse(&[0x11, 0x90]).expect("AAC-LC")).into()
}

impl Source {
    fn new(id: u8, tracks: &[AnnouncedTrack]) -> Self {
        let feed = FrameSource::new(name(), SessionId([id; 16]), tracks).expect("codecs of frames");
        Self::with(feed, tracks, 1_000_000 * u64::from(id), id)
    }

    /// What a worker would feed: the transcoded stream of one kind.
    fn transcoded(world: &World, id: u8, transcode: TranscodeTarget) -> Self {
        let tracks = [transcode.format().codec().into()];
        let feed =
            FrameSource::new_preserving_timestamps(name().transcode_key(transcode), SessionId([id; 16]), &tracks)
                .expect("codecs of frames");
        let origin = world.shared.hub.find_stream(name()).expect("the stream");
        let newest = origin.with_state(|state| state.track(transcode.kind()).ring().newest_track_time_and_arrival());
        let (newest, _) = newest.expect("it plays");
        Self::with(feed, &tracks, newest, id)
    }

    fn with(feed: FrameSource, tracks: &[AnnouncedTrack], first: u64, mark: u8) -> Self {
        let codec = tracks.iter().find(|track| track.codec.kind() == MediaKind::Video);
        Self {
            feed,
            codec: codec.map_or(Codec::H264, |track| track.codec),
            frames: 0,
            first,
            reordered: false,
            has_audio: tracks.iter().any(|track| track.codec.kind() == MediaKind::Audio),
            mark,
        }
    }

    fn time(&self, frame: u64) -> u64 {
        self.first + frame * TICKS
    }

    fn next_frame(&self) -> Bytes {
        let is_key = self.frames.is_multiple_of(25);
        let body = vec![self.mark; 700];
        let nals: Vec<&[u8]> = match (self.codec, is_key) {
            (Codec::H265, true) => vec![
                VPS_265,
                &[0, 0, 0, 1, 0x42, 1, 1],
                &[0, 0, 0, 1, 0x44, 1, 1],
                &[0, 0, 0, 1, 0x26, 1, 0x80],
            ],
            (Codec::H265, false) => vec![&[0, 0, 0, 1, 0x02, 1, 0x80]],
            (_, true) => vec![SPS, PPS, &[0, 0, 0, 1, 0x65, 0x88]],
            (_, false) => vec![&[0, 0, 0, 1, 0x41, 0x88]],
        };
        [nals.concat(), body].concat().into()
    }

    /// Plays on for a while.
    fn play(world: &mut World, sources: &mut [&mut Self], duration: Duration) {
        let end = world.now + duration;
        while world.now < end {
            for source in &mut *sources {
                let now = world.now;
                let frame = source.frames;
                // I P b b P b b: shown as I b b P b b P.
                let shown = match (source.reordered, frame % 3) {
                    (false, _) => frame,
                    (true, 1) => frame + 2,
                    (true, _) => frame - u64::from(frame > 0),
                };
                let has_video = source.feed_has(MediaKind::Video);
                if has_video {
                    let access_unit = source.next_frame();
                    let time = source.time(shown);
                    source
                        .feed
                        .packetize_and_queue_video(now, time, &access_unit, NalFraming::AnnexB)
                        .expect("short");
                }
                if source.has_audio {
                    let time = if has_video {
                        frame * 1_920
                    } else {
                        source.first + frame * 1_920
                    };
                    source
                        .feed
                        .packetize_and_queue_audio(now, time, &Bytes::from(vec![source.mark; 80]))
                        .expect("short");
                }
                world.feed(&mut source.feed);
                source.frames += 1;
            }
            world.run(FRAME);
        }
    }

    fn feed_has(&self, kind: MediaKind) -> bool {
        kind == MediaKind::Audio || !self.has_audio || self.mark < 100
    }
}

/// Transcoded streams that viewers opened, in order.
fn watch_transcodes(world: &World) -> Arc<Mutex<Vec<String>>> {
    let opened = Arc::new(Mutex::new(Vec::new()));
    let list = opened.clone();
    world.shared.hub.set_transcoder(
        CODECS
            .map(|codec| (codec, TranscodeTarget::webrtc_target_for_kind(codec.kind())))
            .to_vec(),
        move |name| list.lock().expect("not poisoned").push(name.to_string()),
    );
    opened
}

/// One line without a hole whose times do not go back.
fn assert_unbroken(world: &mut World, index: usize) {
    let viewer = world.viewer(index);
    assert_eq!((viewer.video.holes(), viewer.audio.holes()), (0, 0));
    for track in [&viewer.video, &viewer.audio] {
        let times: Vec<u64> = track.packets.values().map(|seen| seen.time).collect();
        assert!(times.windows(2).all(|w| w[0] <= w[1]), "{times:?}");
    }
}

fn names(world: &World) -> Vec<String> {
    let mut names: Vec<String> = world.shared.hub.streams().iter().map(|s| s.key.to_string()).collect();
    names.sort();
    names
}

#[test]
fn audio_that_no_browser_plays_comes_from_the_transcoded_stream() {
    let mut world = World::new(601, 2, 8192);
    let opened = watch_transcodes(&world);
    let mut home = Source::new(1, &[Codec::H264.into(), aac()]);
    Source::play(&mut world, &mut [&mut home], SECOND);
    let index = world.watch("live", 1, near());
    Source::play(&mut world, &mut [&mut home], SECOND);
    assert_eq!(*opened.lock().expect("not poisoned"), ["live#opus"]);
    assert!(
        world.viewer(index).video.packets.len() > 20,
        "the video does not wait for the audio"
    );
    assert_eq!(world.viewer(index).audio.packets.len(), 0, "AAC is never sent");

    let mut opus = Source::transcoded(&world, 101, TranscodeTarget::Opus);
    Source::play(&mut world, &mut [&mut home, &mut opus], SECOND);
    assert!(world.viewer(index).audio.packets.len() >= 20);
    let second = world.watch("live", 0, near());
    Source::play(&mut world, &mut [&mut home, &mut opus], SECOND);
    assert!(
        world.viewer(second).audio.packets.len() >= 15,
        "who comes later has audio at once"
    );
    assert_eq!(opened.lock().expect("not poisoned").len(), 1, "one worker for both");
    assert_unbroken(&mut world, index);
    let stream = world.shared.hub.find_stream(name()).expect("it is there");
    assert_eq!(
        stream.with_state(|state| state.viewer_count()),
        2,
        "nobody is counted twice"
    );

    // The worker dies, and another one takes over.
    opus.feed.detach(&world.shared.hub);
    Source::play(&mut world, &mut [&mut home], SECOND);
    let before = world.viewer(index).audio.packets.len();
    let mut opus = Source::transcoded(&world, 102, TranscodeTarget::Opus);
    Source::play(&mut world, &mut [&mut home, &mut opus], SECOND);
    assert!(world.viewer(index).audio.packets.len() > before + 15);
    assert_unbroken(&mut world, index);

    world.delete(index);
    world.delete(second);
    Source::play(&mut world, &mut [&mut home], SECOND);
    opus.feed.detach(&world.shared.hub);
    home.feed.detach(&world.shared.hub);
    assert_eq!(names(&world), [""; 0], "nothing is left");
}

/// V-10.
#[test]
fn b_frames_that_show_themselves_move_viewers_to_the_transcoded_stream_and_back() {
    let mut world = World::new(611, 2, 8192);
    let opened = watch_transcodes(&world);
    let mut home = Source::new(1, &[Codec::H264.into()]);
    Source::play(&mut world, &mut [&mut home], SECOND);
    let index = world.watch("live", 1, near());
    Source::play(&mut world, &mut [&mut home], SECOND);
    assert!(opened.lock().expect("not poisoned").is_empty());

    home.feed.detach(&world.shared.hub);
    let mut home = Source::new(2, &[Codec::H264.into()]);
    home.reordered = true;
    Source::play(&mut world, &mut [&mut home], SECOND / 2);
    assert_eq!(
        *opened.lock().expect("not poisoned"),
        ["live#h264"],
        "within the first frames"
    );
    let marks = |world: &mut World, from: usize| -> Vec<u8> {
        let packets = world.viewer(index).video.packets.values();
        let payloads = packets.skip(from).map(|seen| seen.last);
        payloads.filter(|mark| *mark != 0x80 && *mark != 0xe4).collect()
    };
    let before = world.viewer(index).video.packets.len();
    Source::play(&mut world, &mut [&mut home], SECOND / 2);
    assert!(
        marks(&mut world, before).contains(&2),
        "the video does not go black meanwhile"
    );

    let mut h264 = Source::transcoded(&world, 101, TranscodeTarget::H264);
    Source::play(&mut world, &mut [&mut home, &mut h264], SECOND);
    let before = world.viewer(index).video.packets.len();
    Source::play(&mut world, &mut [&mut home, &mut h264], SECOND);
    let seen = marks(&mut world, before);
    assert!(!seen.is_empty() && seen.iter().all(|mark| *mark == 101), "{seen:?}");

    // The encoder was set right: the stream itself again, from its key frame.
    home.feed.detach(&world.shared.hub);
    let mut home = Source::new(3, &[Codec::H264.into()]);
    Source::play(&mut world, &mut [&mut home, &mut h264], SECOND);
    let before = world.viewer(index).video.packets.len();
    Source::play(&mut world, &mut [&mut home, &mut h264], SECOND);
    let seen = marks(&mut world, before);
    assert!(!seen.is_empty() && seen.iter().all(|mark| *mark == 3), "{seen:?}");
    assert_eq!(world.viewer(index).video.holes(), 0);
    assert_eq!(world.reason(index), None, "one session all the time");
    let transcoded = world
        .shared
        .hub
        .find_stream(name().transcode_key(TranscodeTarget::H264))
        .expect("still fed");
    assert!(
        !transcoded.with_state(|state| state.has_consumers()),
        "nobody reads it any more"
    );
}

/// The transcoder of a stream has died and was not replaced yet.
#[test]
fn a_new_viewer_is_not_shown_what_a_transcoder_that_is_gone_made_last() {
    let mut world = World::new(631, 2, 8192);
    watch_transcodes(&world);
    let mut home = Source::new(1, &[Codec::H264.into()]);
    home.reordered = true;
    Source::play(&mut world, &mut [&mut home], SECOND);
    let early = world.watch("live", 1, near());
    Source::play(&mut world, &mut [&mut home], SECOND);
    let mut gone = Source::transcoded(&world, 101, TranscodeTarget::H264);
    Source::play(&mut world, &mut [&mut home, &mut gone], SECOND);
    gone.feed.detach(&world.shared.hub);
    let late = world.watch("live", 0, near());
    Source::play(&mut world, &mut [&mut home], SECOND);
    let marks = |world: &mut World, index: usize| -> Vec<u8> {
        let packets = world.viewer(index).video.packets.values();
        packets.map(|seen| seen.last).collect()
    };
    assert!(marks(&mut world, early).contains(&101));
    let seen = marks(&mut world, late);
    assert!(!seen.contains(&101));
    // Until there is another one it gets the stream as it is.
    assert!(seen.len() > 15, "{seen:?}");
    let mut next = Source::transcoded(&world, 102, TranscodeTarget::H264);
    Source::play(&mut world, &mut [&mut home, &mut next], SECOND);
    for index in [early, late] {
        assert!(marks(&mut world, index).contains(&102));
        assert_eq!(world.viewer(index).video.holes(), 0);
    }
}

#[test]
fn without_a_repairer_nothing_is_opened() {
    let mut world = World::new(621, 1, 8192);
    let mut home = Source::new(1, &[Codec::H264.into(), aac()]);
    Source::play(&mut world, &mut [&mut home], SECOND);
    let index = world.watch("live", 0, near());
    Source::play(&mut world, &mut [&mut home], SECOND);
    assert!(world.viewer(index).video.packets.len() > 20);
    assert_eq!(names(&world), ["live"]);
}

/// The capture delay of what comes from a worker must not be invented.
#[test]
fn a_transcoded_stream_has_capture_times_only_if_its_source_reports_them() {
    let mut world = World::new(617, 1, 8192);
    let mut home = Source::new(1, &[aac()]);
    Source::play(&mut world, &mut [&mut home], SECOND);
    let mut opus = Source::transcoded(&world, 101, TranscodeTarget::Opus);
    let original = world.shared.hub.find_stream(name()).expect("it plays");
    let transcoded = name().transcode_key(TranscodeTarget::Opus);
    let clock = |world: &World, is_original: bool| {
        let other = || world.shared.hub.find_stream(transcoded.clone()).expect("it plays");
        let stream = if is_original { original.clone() } else { other() };
        stream.with_state(|state| {
            let track = state.track(MediaKind::Audio);
            let delay = track.capture_delay_stats().recent_capture_delay(world.now);
            (*track.clock(), delay)
        })
    };
    let standing_delay = Duration::from_millis(300);
    for is_reported in [false, true] {
        if is_reported {
            let time = home.first + home.frames * 1_920;
            home.feed
                .record_capture_time(MediaKind::Audio, time, world.now, standing_delay);
            Source::play(&mut world, &mut [&mut home], SECOND);
        }
        let (input, _) = clock(&world, true);
        let is_known = opus
            .feed
            .copy_capture_time(MediaKind::Audio, &input, world.now, |time| time);
        assert!(is_known);
        Source::play(&mut world, &mut [&mut home, &mut opus], SECOND);
        let (output, delay) = clock(&world, false);
        assert_eq!(output.reported_standing_delay(), is_reported.then_some(standing_delay));
        assert_eq!(delay.is_some(), is_reported, "{delay:?}");
        assert_eq!(
            output.track_time_for_capture_at(world.now),
            clock(&world, true).0.track_time_for_capture_at(world.now),
            "both have the same times in either case"
        );
    }
}
