//! Containers as written by encoders, and malformed ones.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::media::MediaKind;
use crate::media::ffmpeg_clip::make_h264_clip;

/// Segments of a two-second file: 25 frames per second with B-frames, and audio.
fn film(options: &[&str]) -> Vec<(String, Bytes)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("millstream-container-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let inputs = ["testsrc=size=160x90:rate=25", "sine=frequency=440:sample_rate=44100"];
    let of_both = ["-bf", "2", "-g", "25", "-c:a", "aac"];
    let of_hls = ["-f", "hls", "-hls_time", "1", "-hls_playlist_type", "vod"];
    let options = [&of_both[..], &of_hls, options, &["list.m3u8"]].concat();
    make_h264_clip(&folder, &inputs, &options);
    let files = std::fs::read_dir(&folder).expect("the folder").map(|file| {
        let path = file.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, Bytes::from(std::fs::read(&path).expect("a file")))
    });
    let mut files: Vec<_> = files.filter(|(name, _)| !name.ends_with("m3u8")).collect();
    files.sort();
    let _ = std::fs::remove_dir_all(&folder);
    files
}

fn of(samples: &[DemuxedSample], kind: MediaKind) -> Vec<&DemuxedSample> {
    samples.iter().filter(|sample| sample.codec.kind() == kind).collect()
}

fn check_film(samples: &[DemuxedSample]) {
    let (video, audio) = (of(samples, MediaKind::Video), of(samples, MediaKind::Audio));
    assert_eq!(video.len(), 50);
    assert!((86..=90).contains(&audio.len()), "{}", audio.len());
    assert!(
        video
            .iter()
            .all(|sample| sample.codec == SampleCodec::H264 && sample.bytes.starts_with(&[0, 0, 0, 1]))
    );
    let SampleCodec::Aac(config) = audio[0].codec else {
        panic!("{:?}", audio[0].codec)
    };
    assert_eq!((config.sample_rate, config.channel_configuration), (44_100, 1));
    for pair in video.windows(2) {
        let step = pair[1].decode_time.saturating_sub(pair[0].decode_time);
        assert!(
            step.abs_diff(Duration::from_millis(40)) < Duration::from_millis(1),
            "{step:?}"
        );
    }
    assert!(
        video
            .windows(2)
            .any(|pair| pair[1].presentation_time < pair[0].presentation_time),
        "B-frames"
    );
    let mut shown: Vec<_> = video.iter().map(|sample| sample.presentation_time).collect();
    shown.sort();
    assert!(
        shown
            .windows(2)
            .all(|pair| (pair[1] - pair[0]).abs_diff(Duration::from_millis(40)) < Duration::from_millis(1))
    );
    for pair in audio.windows(2) {
        let step = pair[1].decode_time.saturating_sub(pair[0].decode_time);
        assert!(
            step.abs_diff(Duration::from_micros(23_220)) < Duration::from_millis(1),
            "{step:?}"
        );
    }
    // Audio and video start together.
    assert!(audio[0].presentation_time.abs_diff(shown[0]) < Duration::from_millis(60));
}

#[test]
fn a_transport_stream_is_demultiplexed() {
    let mut demuxer = HlsSegmentDemuxer::default();
    let mut samples = Vec::new();
    for (_, segment) in film(&[]) {
        samples.extend(demuxer.demux_segment(&segment).expect("frames"));
    }
    samples.extend(demuxer.flush());
    check_film(&samples);
}

/// Audio in several languages beside the video, without renditions of their own.
#[test]
fn one_of_several_audio_tracks_is_played() {
    let tracks = ["-map", "0:v", "-map", "1:a", "-map", "1:a", "-map", "1:a"];
    for options in [&[][..], &["-hls_segment_type", "fmp4"]] {
        let mut demuxer = HlsSegmentDemuxer::default();
        let mut samples = Vec::new();
        for (name, bytes) in film(&[&tracks[..], options].concat()) {
            if name == "init.mp4" {
                demuxer.set_init_section(bytes);
            } else {
                samples.extend(demuxer.demux_segment(&bytes).expect("frames"));
            }
        }
        samples.extend(demuxer.flush());
        check_film(&samples);
    }
}

#[test]
fn fragments_are_demultiplexed_and_need_their_init() {
    let files = film(&["-hls_segment_type", "fmp4"]);
    let mut demuxer = HlsSegmentDemuxer::default();
    let (init, segments) = files.split_first().expect("files");
    assert_eq!(init.0, "init.mp4");
    assert_eq!(
        demuxer.demux_segment(&segments[0].1).map(|_| ()),
        Err(ContainerError::MissingInitSection)
    );
    demuxer.set_init_section(init.1.clone());
    let mut samples = Vec::new();
    for (_, segment) in segments {
        samples.extend(demuxer.demux_segment(segment).expect("frames"));
    }
    check_film(&samples);
    // A key frame contains everything that a decoder needs to start.
    let first = of(&samples, MediaKind::Video)[0];
    let nals = crate::media::packetizer::split_annex_b(&first.bytes).expect("start codes");
    let kinds: Vec<u8> = nals.iter().map(|nal| nal[0] & 0x1f).collect();
    assert!(kinds.starts_with(&[7, 8]) && kinds.contains(&5), "{kinds:?}");
}

#[test]
fn packed_audio_starts_at_the_time_of_its_tag() {
    // A silent ADTS frame: AAC-LC, 48 kHz, stereo.
    let frame = [
        0xff, 0xf1, 0x4c, 0x80, 0x01, 0xbf, 0xfc, 0x21, 0x10, 0x04, 0x60, 0x8c, 0x1c,
    ];
    let mut tag = b"PRIV".to_vec();
    tag.extend(53u32.to_be_bytes());
    tag.extend([0, 0]);
    tag.extend(b"com.apple.streaming.transportStreamTimestamp\0");
    tag.extend(900_000u64.to_be_bytes());
    let mut segment = b"ID3\x04\0\0\0\0\0".to_vec();
    segment.push(u8::try_from(tag.len()).expect("short"));
    segment.extend(tag);
    segment.extend(frame.repeat(3));
    let samples = HlsSegmentDemuxer::default()
        .demux_segment(&segment.into())
        .expect("frames");
    assert_eq!(samples.len(), 3);
    let begin = mpeg_ts_clock::MpegTimestampUnwrapper::default().unwrap_to_duration(900_000);
    assert_eq!(samples[0].decode_time, begin);
    assert!((samples[2].decode_time - begin).abs_diff(Duration::from_micros(42_666)) < Duration::from_micros(2));
    let SampleCodec::Aac(config) = samples[0].codec else {
        panic!()
    };
    assert_eq!(
        (config.sample_rate, config.channel_configuration, samples[0].bytes.len()),
        (48_000, 2, 6)
    );
}

/// Origins of radio: ADTS frames alone.
#[test]
fn packed_audio_without_tags_is_continuous() {
    let frame = [
        0xff, 0xf1, 0x4c, 0x80, 0x01, 0xbf, 0xfc, 0x21, 0x10, 0x04, 0x60, 0x8c, 0x1c,
    ];
    let mut demuxer = HlsSegmentDemuxer::default();
    let segments = (0..3).map(|_| demuxer.demux_segment(&frame.repeat(47).into()).expect("frames"));
    let samples: Vec<DemuxedSample> = segments.flatten().collect();
    assert_eq!(samples.len(), 3 * 47);
    for pair in samples.windows(2) {
        let step = pair[1].decode_time.saturating_sub(pair[0].decode_time);
        assert!(
            step.abs_diff(Duration::from_micros(21_333)) < Duration::from_micros(2),
            "{step:?}"
        );
    }
}

#[test]
fn times_continue_across_the_33_bit_wrap() {
    let mut clock = mpeg_ts_clock::MpegTimestampUnwrapper::default();
    let last = clock.unwrap_to_duration(mpeg_ts_clock::MPEG_TIMESTAMP_MASK - 45_000);
    let next = clock.unwrap_to_duration(45_000 - 1);
    assert_eq!(next - last, Duration::from_secs(1));
    assert_eq!(
        next - clock.unwrap_to_duration(mpeg_ts_clock::MPEG_TIMESTAMP_MASK - 45_000),
        Duration::from_secs(1),
        "and back"
    );
}

#[test]
fn truncated_or_modified_segments_never_panic() {
    let seed = 7_u64;
    println!("seed {seed}");
    let mut random = seed;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mp4 = film(&["-hls_segment_type", "fmp4"]);
    let ts = film(&[]);
    let mut refused = 0;
    for _ in 0..400 {
        for file in [&mp4[0].1, &mp4[1].1, &ts[0].1] {
            let mut bytes = file.to_vec();
            for _ in 0..1 + next() % 8 {
                let at = usize::try_from(next()).unwrap_or_default() % bytes.len();
                // The structure is in the first bytes.
                let at = if next() % 2 == 0 { at % 700 } else { at };
                bytes[at] = u8::try_from(next() & 0xff).expect("a byte");
            }
            if next() % 4 == 0 {
                let length = usize::try_from(next()).unwrap_or_default() % bytes.len();
                bytes.truncate(length);
            }
            let mut demuxer = HlsSegmentDemuxer::default();
            demuxer.set_init_section(if std::ptr::eq(file, &mp4[0].1) {
                bytes.clone().into()
            } else {
                mp4[0].1.clone()
            });
            let segment = if std::ptr::eq(file, &mp4[0].1) {
                mp4[1].1.clone()
            } else {
                bytes.into()
            };
            refused += u32::from(demuxer.demux_segment(&segment).is_err());
        }
    }
    assert!(refused > 100, "{refused} of 1200 refused");
}

#[test]
fn other_formats_are_rejected() {
    for other in [&b""[..], b"WEBVTT\n", b"<html>", &[0; 400], b"\x47"] {
        let refused = HlsSegmentDemuxer::default().demux_segment(&Bytes::copy_from_slice(other));
        assert!(refused.is_err(), "{other:?}");
    }
}

/// Why the segment of an input of the fuzzer is refused: the length of the initialization section in two bytes, the section
/// and the segment.
fn refusal_of_fuzz_input(input: &[u8]) -> String {
    let (init, segment) = input.split_at(usize::from(u16::from_be_bytes([input[0], input[1]])) + 2);
    let mut demuxer = HlsSegmentDemuxer::default();
    demuxer.set_init_section(Bytes::copy_from_slice(&init[2..]));
    let error = demuxer
        .demux_segment(&Bytes::copy_from_slice(segment))
        .expect_err("refused");
    error.to_string()
}

/// Found by fuzzing: a box of some bytes that states millions of samples took half a gigabyte.
#[test]
fn samples_without_a_byte_each_are_bounded() {
    let input = include_bytes!("../../../../../tests/data/fuzz/mp4/many-samples");
    let error = refusal_of_fuzz_input(input);
    assert!(error.contains("more than 65536 samples"), "{error}");
}

/// Samples that share bytes could make gigabytes of a segment.
#[test]
fn samples_that_overlap_are_refused() {
    let input = include_bytes!("../../../../../tests/data/fuzz/mp4/overlapping-samples");
    let error = refusal_of_fuzz_input(input);
    assert!(error.contains("longer than its media data (mdat)"), "{error}");
}

/// streamlink/streamlink#7055 (two packets of something else), selsta/hlsdl#53 and #109 (headers of images).
#[test]
fn a_transport_stream_behind_something_else_is_demultiplexed() {
    let segments = film(&[]);
    for length in [70, 188, 190, 376, 5_000, 60_000] {
        let mut demuxer = HlsSegmentDemuxer::default();
        let mut samples = Vec::new();
        for (_, segment) in &segments {
            let mut garbage = vec![0xff_u8; length];
            garbage[..8].copy_from_slice(b"\x89PNG\r\n\x1a\n");
            // One that happens to look like a sync byte.
            garbage[20] = 0x47;
            garbage.extend_from_slice(segment);
            samples.extend(demuxer.demux_segment(&garbage.into()).expect("frames"));
        }
        samples.extend(demuxer.flush());
        check_film(&samples);
    }
}

#[test]
fn packed_audio_of_other_codecs_is_named() {
    let id3 = b"ID3\x04\0\0\0\0\0\x02ab".as_slice();
    let mp3 = [&[0xff, 0xfb, 0x90, 0x64][..], &[0; 413]].concat().repeat(10);
    let mp2 = [&[0xff, 0xfd, 0x90, 0x04][..], &[0; 413]].concat().repeat(10);
    let ac3 = [&[0x0b, 0x77, 0x12, 0x34, 0x14, 0x40][..], &[0; 200]].concat();
    let eac3 = [&[0x0b, 0x77, 0x01, 0xff, 0x34, 0x86][..], &[0; 200]].concat();
    for (audio, codec) in [(mp3, "MP3"), (mp2, "MPEG"), (ac3, "AC-3"), (eac3, "E-AC-3")] {
        for tag in [&b""[..], id3] {
            let refused = HlsSegmentDemuxer::default().demux_segment(&[tag, &audio].concat().into());
            assert_eq!(refused, Err(ContainerError::UnsupportedCodec(format!("audio {codec}"))));
        }
    }
    let refused = HlsSegmentDemuxer::default().demux_segment(&Bytes::from_static(b"ID3\x04\0\0\0\0\0\x02abnone"));
    assert_eq!(refused, Err(ContainerError::NoFrames));
}

#[test]
fn key_frames_are_told_from_others() {
    for options in [&[][..], &["-hls_segment_type", "fmp4"]] {
        let mut demuxer = HlsSegmentDemuxer::default();
        let mut samples = Vec::new();
        for (name, bytes) in film(options) {
            if name == "init.mp4" {
                demuxer.set_init_section(bytes);
            } else {
                samples.extend(demuxer.demux_segment(&bytes).expect("frames"));
            }
        }
        samples.extend(demuxer.flush());
        let video = of(&samples, MediaKind::Video);
        let keys: Vec<usize> = (0..video.len()).filter(|at| video[*at].is_key_frame()).collect();
        assert_eq!(keys, [0, 25], "{options:?}");
    }
}
