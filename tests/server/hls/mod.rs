//! LL-HLS in virtual time: frames are packaged, and the output is checked with `hls_m3u8`, `m3u8-rs` and box parsing.

mod world;

use std::time::Duration;

use hls_m3u8::{MasterPlaylist, MediaPlaylist};
use millstream::outputs::hls::packager::ResolutionAndFrameRate;
use millstream::outputs::hls::playlist::{self, MultivariantRenditions};
use millstream::outputs::hls::rendition::{Rendition, RenditionRole};
use millstream_core::media::aac::AacConfig;
use millstream_core::media::{CodecFormat, MediaKind};

use self::world::{BEGUN, OPUS, World};

/// Removes the LL-HLS tags, which `hls_m3u8` does not support.
fn plain(text: &str) -> String {
    let low_latency = [
        "#EXT-X-VERSION",
        "#EXT-X-PART",
        "#EXT-X-SERVER-CONTROL",
        "#EXT-X-PRELOAD",
        "#EXT-X-RENDITION",
        "#EXT-X-SKIP",
    ];
    let lines = text
        .lines()
        .filter(|line| !low_latency.iter().any(|tag| line.starts_with(tag)));
    let mut plain: Vec<&str> = lines.collect();
    // The date of a segment that has only parts so far has no segment to apply to.
    while plain
        .last()
        .is_some_and(|line| line.starts_with('#') && !line.starts_with("#EXTM3U"))
    {
        plain.pop();
    }
    plain.join("\n") + "\n"
}

fn durations(text: &str, tag: &str) -> Vec<f64> {
    let values = text.lines().filter_map(|line| line.strip_prefix(tag));
    values
        .map(|rest| rest.split(',').next().expect("a number").parse().expect("a number"))
        .collect()
}

#[test]
fn segments_begin_at_key_frames_and_parts_are_of_one_length() {
    for (rate, gop) in [(30, 60), (25, 50), (24, 48), (10, 20), (60, 60)] {
        let mut world = World::new(rate, gop, OPUS.1.into());
        world.play(20, OPUS.0, 48_000);
        for rendition in [world.video(), world.audio()] {
            let segments: Vec<_> = rendition.segments().collect();
            assert!(segments.len() >= 8, "{rate} {}", segments.len());
            let target = rendition.part_target();
            for segment in segments.iter().filter(|segment| segment.is_complete) {
                assert!(segment.parts[0].is_independent, "{rate}: {:?}", rendition.role);
                let (last, rest) = segment.parts.split_last().expect("parts");
                assert!(last.duration <= target);
                for part in rest {
                    assert!(
                        part.duration <= target && part.duration >= target.mul_f64(0.85),
                        "{rate}: {part:?} {target:?}"
                    );
                }
            }
            // Each segment starts where the previous one ended.
            for pair in segments.windows(2) {
                let end = pair[0].start_time + pair[0].duration();
                assert!(
                    end.abs_diff(pair[1].start_time) < Duration::from_millis(2),
                    "{rate}: {end:?} {:?}",
                    pair[1].start_time
                );
            }
        }
        // The segments of audio and video are aligned and have the same numbers.
        for segment in world.video().segments() {
            let Some(beside) = world.audio().segment(segment.msn) else {
                continue;
            };
            assert!(
                beside.start_time.abs_diff(segment.start_time) <= Duration::from_millis(40),
                "{rate}: {:?} {:?}",
                beside.start_time,
                segment.start_time
            );
            assert!(beside.program_date_time.abs_diff(segment.program_date_time) <= Duration::from_millis(40));
        }
    }
}

/// Plain players start a fixed number of segments before the end of each rendition. When the audio had fewer and longer
/// segments, ffmpeg started with four seconds of audio alone.
#[test]
fn late_tracks_do_not_misalign_the_segments_of_audio_and_video() {
    for late in [MediaKind::Audio, MediaKind::Video] {
        let mut world = World::new(30, 30, OPUS.1.into());
        world.play(3, OPUS.0, 48_000);
        for _ in 0..3 {
            world.late = Some(late);
            world.play(1, OPUS.0, 48_000);
            world.play_frames(20, OPUS.0, 48_000);
            world.late = None;
            world.play_frames(1, OPUS.0, 48_000);
        }
        world.play(1, OPUS.0, 48_000);
        let begins = |rendition: &Rendition| -> Vec<(u64, u64)> {
            let begins = rendition
                .segments()
                .map(|segment| (segment.msn, segment.start_time.as_millis() as u64));
            begins.collect()
        };
        let (video, audio) = (begins(world.video()), begins(world.audio()));
        assert_eq!(video.len(), audio.len(), "{late:?}: {video:?} {audio:?}");
        for (v, a) in video.iter().zip(&audio) {
            let aligned = v.0 == a.0 && v.1.abs_diff(a.1) <= 30;
            assert!(aligned, "{late:?}: {video:?} {audio:?}");
        }
    }
}

/// A rendition that was removed and is requested again is aligned with the others, under URLs that no cache holds with
/// other content.
#[test]
fn a_rendition_that_starts_later_has_the_numbers_of_the_video() {
    let mut world = World::new(30, 30, OPUS.1.into());
    world.play(5, OPUS.0, 48_000);
    let mut numbers = Vec::new();
    for _ in 0..3 {
        world.packager.remove_rendition(RenditionRole::Audio);
        world.play_frames(10, OPUS.0, 48_000);
        let last = world
            .packager
            .rendition(RenditionRole::Audio)
            .and_then(|audio| audio.segments().next_back());
        numbers.extend(last.map(|segment| segment.msn));
        world.play_frames(20, OPUS.0, 48_000);
        let beside = |rendition: &Rendition| rendition.segments().next_back().map(|last| last.msn);
        assert_eq!(beside(world.audio()), beside(world.video()));
    }
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    // Restarted twice within one segment: the rest of the segment is skipped.
    world.play_frames(5, OPUS.0, 48_000);
    world.packager.remove_rendition(RenditionRole::Audio);
    world.play_frames(5, OPUS.0, 48_000);
    assert_eq!(world.audio().segments().len(), 0);
    world.play_frames(30, OPUS.0, 48_000);
    assert_eq!(world.audio().segments().len(), 1);
}

/// While the video is stalled, audio has more segments. A new audio rendition does not wait for the video's numbers.
#[test]
fn a_rendition_starts_while_the_video_is_stalled() {
    let mut world = World::new(30, 30, OPUS.1.into());
    world.play(3, OPUS.0, 48_000);
    world.late = Some(MediaKind::Video);
    world.play(6, OPUS.0, 48_000);
    let last = |world: &World| world.audio().segments().next_back().map(|last| last.msn);
    let before = last(&world);
    world.packager.remove_rendition(RenditionRole::Audio);
    world.play(1, OPUS.0, 48_000);
    assert!(last(&world) > before, "{:?} after {before:?}", last(&world));
}

/// ffmpeg loads the audio playlist first and the video playlist a moment later, and starts three segments before the
/// end of each.
#[test]
fn a_starting_player_sees_both_renditions_end_at_the_same_segment() {
    let mut world = World::new(30, 30, OPUS.1.into());
    world.play(5, OPUS.0, 48_000);
    world.late = Some(MediaKind::Audio);
    world.play_frames(10, OPUS.0, 48_000);
    let packager = &world.packager;
    let listed = |role| {
        let rendition = packager.rendition(role).expect("a rendition");
        let text =
            playlist::render_media_playlist(rendition, &[], false, packager.segment_without_counterpart(role), "");
        let segments = durations(&text, "#EXTINF:").len();
        (segments, text)
    };
    let ((video, text), (audio, _)) = (listed(RenditionRole::Video), listed(RenditionRole::Audio));
    assert_eq!((video, audio), (4, 4), "{text}");
    // The fifth is listed by its parts only.
    let last = world
        .video()
        .segments()
        .rfind(|segment| segment.is_complete)
        .expect("one");
    assert_eq!(
        text.matches(&format!("video-{}.", last.msn)).count(),
        last.parts.len(),
        "{text}"
    );
    assert!(
        text.contains(&format!("TYPE=PART,URI=\"video-{}.0.m4s\"", last.msn + 1)),
        "{text}"
    );
    // A rendition that is behind by more is not waited for.
    world.play(1, OPUS.0, 48_000);
    assert_eq!(world.packager.segment_without_counterpart(RenditionRole::Video), None);
    world.late = None;
    world.play_frames(1, OPUS.0, 48_000);
    assert_eq!(world.packager.segment_without_counterpart(RenditionRole::Video), None);
    assert_eq!(world.packager.segment_without_counterpart(RenditionRole::Audio), None);
}

/// Audio does not wait forever for video that has ended.
#[test]
fn audio_continues_without_video() {
    let mut world = World::new(30, 30, OPUS.1.into());
    world.play(3, OPUS.0, 48_000);
    world.late = Some(MediaKind::Video);
    world.play(6, OPUS.0, 48_000);
    let last = world.audio().segments().next_back().expect("audio");
    let behind = (world.now - world.start).saturating_sub(last.start_time + last.duration());
    assert!(behind < Duration::from_millis(300), "{behind:?}");
    assert_eq!(world.audio().target_duration_secs(), 2);
}

#[test]
fn a_part_behind_the_last_of_its_segment_is_the_first_of_the_next() {
    let mut world = World::new(30, 60, OPUS.1.into());
    world.play(4, OPUS.0, 48_000);
    let (msn, part) = world.video().next_part_position();
    assert!(part > 0 && world.video().has_part(msn, part - 1) && !world.video().has_part(msn, part));
    let before = world.video().segment(msn - 1).expect("it is kept").parts.len();
    assert!(
        world.video().has_part(msn - 1, before),
        "the first part of the segment in progress is available"
    );
    assert!(!world.video().has_part(msn + 1, 0));
    // A segment without a part is not available yet.
    while world.video().next_part_position().1 != 0 {
        world.play_frame(OPUS.0, 48_000);
    }
    let (msn, _) = world.video().next_part_position();
    let last = world.video().segment(msn - 1).expect("it is kept").parts.len();
    assert!(!world.video().has_part(msn - 1, last));
}

#[test]
fn aac_of_any_rate_is_cut_too() {
    let config = AacConfig::parse(&[0x12, 0x10]).expect("44.1 kHz");
    let mut world = World::new(30, 60, CodecFormat::Aac(config).into());
    // 1024 samples at 44.1 kHz in ticks of 48 kHz.
    world.play(12, 1_114, 48_000);
    assert_eq!(world.audio().codecs(), "mp4a.40.2");
    let init = world.audio().init_section(BEGUN).expect("an init section");
    assert!(init.windows(4).any(|four| four == b"esds"));
    assert!(world.audio().segments().len() >= 5);
}

#[test]
fn playlists_are_parsed_by_other_libraries() {
    let mut world = World::new(30, 60, OPUS.1.into());
    world.play(30, OPUS.0, 48_000);
    let info = ResolutionAndFrameRate {
        resolution: Some((64, 48)),
        frame_rate: 30.0,
    };
    let variants = |has_aac| MultivariantRenditions {
        video_layers: vec![(world.video(), info)],
        audio: Some(world.audio()),
        has_aac_transcode: has_aac,
    };
    let both = playlist::render_multivariant_playlist(&variants(true), "?token=a").expect("both are there");
    let read = MasterPlaylist::try_from(both.as_str()).expect("a multivariant playlist");
    assert_eq!((read.media.len(), read.variant_streams.len()), (2, 2));
    assert!(m3u8_rs::parse_master_playlist_res(both.as_bytes()).is_ok());
    // The variant without transcode is first, and its bandwidth gives players no reason to switch.
    let bandwidths: Vec<u64> = durations(&both, "#EXT-X-STREAM-INF:BANDWIDTH=")
        .into_iter()
        .map(|n| n as u64)
        .collect();
    assert!(bandwidths[0] >= bandwidths[1], "{both}");
    let lines: Vec<&str> = both
        .lines()
        .filter(|line| line.starts_with("#EXT-X-STREAM-INF"))
        .collect();
    assert!(
        lines[0].contains("opus\"") && lines[0].contains("AUDIO=\"audio\""),
        "{both}"
    );
    assert!(
        lines[1].contains("mp4a.40.2\"") && lines[1].contains("AUDIO=\"aac\""),
        "{both}"
    );
    let master = playlist::render_multivariant_playlist(&variants(false), "?token=a").expect("both are there");
    let read = MasterPlaylist::try_from(master.as_str()).expect("a multivariant playlist");
    assert!(read.has_independent_segments);
    assert_eq!((read.media.len(), read.variant_streams.len()), (1, 1));
    assert!(
        master.contains("CODECS=\"avc1.42e01f,opus\"") && master.contains("video.m3u8?token=a"),
        "{master}"
    );
    assert!(m3u8_rs::parse_master_playlist_res(master.as_bytes()).is_ok());
    for (own, other) in [(world.video(), world.audio()), (world.audio(), world.video())] {
        let text = playlist::render_media_playlist(own, &[other], false, None, "");
        let read = plain(&text);
        let media = MediaPlaylist::try_from(read.as_str()).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(media.segments.num_elements(), 6);
        let (rest, media) = m3u8_rs::parse_media_playlist(text.as_bytes()).expect("a media playlist");
        assert!(rest.is_empty() && media.segments.len() >= 6);
        assert_eq!(media.target_duration, 2);
        for tag in [
            "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES",
            "#EXT-X-PRELOAD-HINT:TYPE=PART",
            "#EXT-X-RENDITION-REPORT:URI=",
            "#EXT-X-PROGRAM-DATE-TIME:2027-01-15T08:00:",
        ] {
            assert!(text.contains(tag), "{tag}\n{text}");
        }
        // No listed part exceeds the part target.
        let target: f64 = durations(&text, "#EXT-X-PART-INF:PART-TARGET=")[0];
        assert!(
            durations(&text, "#EXT-X-PART:DURATION=")
                .iter()
                .all(|part| *part <= target)
        );
    }
}

#[test]
fn a_delta_update_omits_segments_that_the_player_has() {
    let mut world = World::new(30, 120, OPUS.1.into());
    world.play(43, OPUS.0, 48_000);
    let (all, update) = (
        playlist::render_media_playlist(world.video(), &[], false, None, ""),
        playlist::render_media_playlist(world.video(), &[], true, None, ""),
    );
    // Six segments of four seconds and one in progress: the first one is older than six target durations.
    assert!(update.len() < all.len());
    let skipped = update
        .lines()
        .find_map(|line| line.strip_prefix("#EXT-X-SKIP:SKIPPED-SEGMENTS="));
    let listed = |text: &str| text.lines().filter(|line| line.starts_with("#EXTINF")).count();
    let skipped: usize = skipped.map_or(0, |count| count.parse().expect("a number"));
    assert_eq!(listed(&update) + skipped, listed(&all));
}

#[test]
fn another_source_begins_a_discontinuity_in_both_renditions() {
    let mut world = World::new(30, 60, OPUS.1.into());
    world.play(10, OPUS.0, 48_000);
    let before = world.video().segments().next_back().expect("segments").msn;
    world.another_source(OPUS.1.into());
    world.play(6, OPUS.0, 48_000);
    for rendition in [world.video(), world.audio()] {
        let marked: Vec<u64> = rendition
            .segments()
            .filter(|s| s.follows_discontinuity)
            .map(|s| s.msn)
            .collect();
        assert_eq!(marked.len(), 1, "{:?}", rendition.role);
        assert!(marked[0] > before - 1);
        let text = playlist::render_media_playlist(rendition, &[], false, None, "");
        assert_eq!(text.matches("#EXT-X-DISCONTINUITY\n").count(), 1, "{text}");
        assert!(MediaPlaylist::try_from(plain(&text).as_str()).is_ok());
    }
    // Once the tag has left the playlist, the discontinuity sequence is incremented.
    world.play(30, OPUS.0, 48_000);
    let text = playlist::render_media_playlist(world.video(), &[], false, None, "");
    assert!(
        text.contains("#EXT-X-DISCONTINUITY-SEQUENCE:1\n") && !text.contains("#EXT-X-DISCONTINUITY\n"),
        "{text}"
    );
}

#[test]
fn the_memory_of_a_stream_is_bounded() {
    let mut world = World::new(30, 60, OPUS.1.into());
    world.play(60, OPUS.0, 48_000);
    let after_a_minute = world.video().total_bytes();
    world.play(240, OPUS.0, 48_000);
    assert!(world.video().total_bytes() < after_a_minute * 11 / 10);
    assert!(world.video().segments().len() <= 9 && world.audio().segments().len() <= 9);
    assert!(world.video().init_section(BEGUN).is_some());
}

/// A player that starts in the gap in front of the first segment waits for a second, with an error.
#[test]
fn a_player_that_starts_starts_with_media() {
    for (rate, gop) in [(30, 60), (25, 50), (10, 20), (60, 120)] {
        let mut world = World::new(rate, gop, OPUS.1.into());
        for _ in 0..rate * 3 {
            world.play_frames(1, OPUS.0, 48_000);
            for rendition in [RenditionRole::Video, RenditionRole::Audio] {
                let Some(rendition) = world
                    .packager
                    .rendition(rendition)
                    .filter(|found| found.is_ready_for_playback())
                else {
                    continue;
                };
                let text = playlist::render_media_playlist(rendition, &[], false, None, "");
                let attribute = |name: &str| {
                    let (_, rest) = text.split_once(name).expect("an attribute");
                    let end = rest.find(['\n', ',']).expect("a line end");
                    rest[..end].parse::<f64>().expect("a number")
                };
                let (hold_back, target) = (attribute("PART-HOLD-BACK="), attribute("PART-TARGET="));
                assert!(hold_back >= 2.0 * target, "rfc8216bis §4.4.3.8: {text}");
                let available: f64 = rendition
                    .segments()
                    .map(|segment| segment.duration().as_secs_f64())
                    .sum();
                assert!(available >= hold_back, "{text}");
            }
        }
        assert!(
            world.video().is_ready_for_playback() && world.audio().is_ready_for_playback(),
            "{rate}"
        );
    }
}

#[test]
fn a_player_that_starts_immediately_gets_a_gap_segment_first() {
    let mut world = World::new(30, 60, OPUS.1.into());
    world.play(1, OPUS.0, 48_000);
    let text = playlist::render_media_playlist(world.video(), &[], false, None, "");
    // hls.js loads the parts of a segment in progress only if the playlist lists a part in front of it.
    let gap = format!(
        "#EXT-X-GAP\n#EXT-X-PART:DURATION=0.20500,URI=\"video-{BEGUN}.0.m4s\",GAP=YES\n#EXTINF:0.20500,\nvideo-{BEGUN}.m4s\n"
    );
    assert!(
        text.contains(&gap) && text.contains(&format!("#EXT-X-MEDIA-SEQUENCE:{BEGUN}\n")),
        "{text}"
    );
    assert!(text.contains(&format!("video-{}.0.m4s", BEGUN + 1)));
    world.play(4, OPUS.0, 48_000);
    let text = playlist::render_media_playlist(world.video(), &[], false, None, "");
    assert!(
        !text.contains("#EXT-X-GAP") && text.contains(&format!("#EXT-X-MEDIA-SEQUENCE:{}\n", BEGUN + 1)),
        "{text}"
    );
}

/// rfc8216bis §4.4.3.7: no part is longer than PART-TARGET. A frame that is shown for longer is in a segment that is
/// listed as a whole.
#[test]
fn no_part_is_longer_than_its_target() {
    // Video pauses; then audio does, as with DTX.
    for (rate, video_pauses, audio_ticks) in [(30, true, 960), (10, true, 960), (25, false, 19_200)] {
        let mut world = World::new(rate, rate * 2, OPUS.1.into());
        let mut seen = 0;
        for second in 0..24 {
            world.video_pauses = video_pauses && matches!(second % 8, 4..=6);
            let ticks = if (4..16).contains(&second) { audio_ticks } else { 960 };
            for _ in 0..rate {
                world.play_frames(1, ticks, 48_000);
                for rendition in [RenditionRole::Video, RenditionRole::Audio] {
                    let Some(rendition) = world.packager.rendition(rendition) else {
                        continue;
                    };
                    let text = playlist::render_media_playlist(rendition, &[], false, None, "");
                    let (_, target) = text.split_once("PART-TARGET=").expect("a target");
                    let target: f64 = target.lines().next().expect("a line").parse().expect("a number");
                    let parts = durations(&text, "#EXT-X-PART:DURATION=");
                    assert!(parts.iter().all(|part| *part <= target + 0.000_01), "{text}");
                    seen += parts.len();
                }
            }
        }
        assert!(seen > 1_000, "{seen}");
        let long = |rendition: &Rendition| {
            rendition
                .segments()
                .filter(|segment| segment.has_oversized_part)
                .count()
        };
        assert_eq!(long(world.video()) > 0, video_pauses, "{rate}");
        assert_eq!(long(world.audio()), 0, "the pauses of Opus are filled");
        for rendition in [world.video(), world.audio()] {
            let segments: Vec<_> = rendition.segments().collect();
            for pair in segments.windows(2) {
                let end = pair[0].start_time + pair[0].duration();
                assert!(
                    end.abs_diff(pair[1].start_time) < Duration::from_millis(2),
                    "{rate} {end:?}"
                );
            }
            // A player that waits for the first part of a segment that is listed as a whole waits for its end.
            let (next, part) = rendition.next_part_position();
            assert!(!rendition.has_part(next, part));
            assert!(
                rendition
                    .segments()
                    .filter(|segment| segment.is_complete)
                    .all(|segment| rendition.has_part(segment.msn, 0))
            );
        }
    }
}

/// rfc8216bis §4.4.3.1: the target duration does not change. That of a source whose key frame interval is known is right from
/// the start, and otherwise it is doubled.
#[test]
fn the_target_duration_follows_the_key_frame_interval_known_at_the_start() {
    for (gop_seconds, is_known, wanted) in [
        (1, true, &[2][..]),
        (2, true, &[2]),
        (8, true, &[9]),
        (8, false, &[2, 4, 8]),
        (40, false, &[2, 4, 8, 16, 32]),
    ] {
        let mut world = World::new(25, gop_seconds * 25, OPUS.1.into());
        if is_known {
            world.late = Some(MediaKind::Video);
            world.play(2 * gop_seconds + 1, OPUS.0, 48_000);
            world.late = None;
        }
        let (mut video, mut audio) = (Vec::new(), Vec::new());
        for _ in 0..3 * gop_seconds {
            world.play(1, OPUS.0, 48_000);
            video.push(world.video().target_duration_secs());
            audio.push(world.audio().target_duration_secs());
        }
        let longest = world
            .video()
            .segments()
            .map(|segment| segment.duration().as_secs_f64().round() as u64);
        assert!(longest.max() <= video.last().copied());
        for mut targets in [video, audio] {
            targets.dedup();
            assert_eq!(targets, wanted, "{gop_seconds} {is_known}");
        }
    }
}

/// A camera that is switched off while its microphone goes on: players stop where one of the two ends.
#[test]
fn the_last_frame_is_repeated_while_video_pauses_and_audio_goes_on() {
    for rate in [30, 10, 1] {
        let mut world = World::new(rate, rate, OPUS.1.into());
        world.has_valid_slices = true;
        for second in 0..40 {
            world.video_pauses = matches!(second, 6..26 | 30..32);
            world.play(1, OPUS.0, 48_000);
            if second < 3 {
                continue;
            }
            let end = |rendition: &Rendition| {
                let last = rendition.segments().next_back().expect("segments");
                last.start_time + last.duration()
            };
            let behind = (world.now - world.start).saturating_sub(end(world.video()));
            assert!(behind <= Duration::from_millis(2_400), "{rate} {second}: {behind:?}");
            assert!(
                end(world.audio()).abs_diff(end(world.video())) <= Duration::from_millis(1_400),
                "{rate} {second}"
            );
        }
        let video = world.video();
        assert_eq!(video.target_duration_secs(), 2, "{rate}");
        let text = playlist::render_media_playlist(video, &[], false, None, "");
        assert!(
            durations(&text, "#EXT-X-PART:DURATION=")
                .iter()
                .all(|part| *part <= video.part_target().as_secs_f64())
        );
        let segments: Vec<_> = video.segments().collect();
        for pair in segments.windows(2) {
            let step = pair[1].start_time.abs_diff(pair[0].start_time + pair[0].duration());
            assert!(step <= Duration::from_millis(1), "{rate}: {step:?}");
        }
    }
}
