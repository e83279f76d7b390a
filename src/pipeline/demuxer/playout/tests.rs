//! Playout from chunks to frames, in virtual time.

use super::*;
use millstream_core::media::MediaKind;
use millstream_worker_runtime::wire::OutputTrackKinds;

/// A segment of packed AAC with `frames` frames at 48 kHz, which starts at `ticks` of 1/90000 s.
fn segment(ticks: u64, frames: usize) -> Bytes {
    let mut tag = b"PRIV".to_vec();
    tag.extend(53u32.to_be_bytes());
    tag.extend([0, 0]);
    tag.extend(b"com.apple.streaming.transportStreamTimestamp\0");
    tag.extend(ticks.to_be_bytes());
    let mut bytes = b"ID3\x04\0\0\0\0\0".to_vec();
    bytes.push(u8::try_from(tag.len()).expect("short"));
    bytes.extend(tag);
    let frame = [
        0xff, 0xf1, 0x4c, 0x80, 0x01, 0xbf, 0xfc, 0x21, 0x10, 0x04, 0x60, 0x8c, 0x1c,
    ];
    bytes.extend(frame.repeat(frames));
    bytes.into()
}

fn chunk(role: ChunkRole, timeline: u64, bytes: Bytes) -> SegmentChunk {
    SegmentChunk {
        rendition_index: 0,
        role,
        timeline_id: timeline,
        bytes,
    }
}

fn job(renditions: u8) -> DemuxJob {
    DemuxJob {
        renditions,
        is_live: false,
        memory: 64 << 20,
    }
}

/// Number of frames in one second: 48000 / 1024.
const SECOND: usize = 47;

fn frames(playout: &mut Playout, now: Instant) -> Vec<Duration> {
    std::iter::from_fn(|| playout.poll(now))
        .map(|due| due.presentation_time)
        .collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn frames_are_due_at_their_time_and_segments_are_requested_before() {
    let t = Instant::now();
    let mut playout = Playout::new(job(1));
    assert_eq!(playout.take_due_segment_requests(t), [0]);
    assert!(playout.take_due_segment_requests(t).is_empty(), "once");
    let bytes = segment(90_000, 5 * SECOND);
    let half = bytes.len() / 2;
    playout
        .push_chunk(t, chunk(ChunkRole::SegmentData, 0, bytes.slice(..half)))
        .expect("a part");
    assert_eq!(playout.next_frame_due_at(), None);
    playout
        .push_chunk(t, chunk(ChunkRole::LastSegmentData, 0, bytes.slice(half..)))
        .expect("a segment");
    assert_eq!(
        playout.track_kinds(),
        OutputTrackKinds {
            video: false,
            audio: true
        }
    );
    assert!(
        playout.take_due_segment_requests(t).is_empty(),
        "five seconds are there"
    );
    let first = frames(&mut playout, t);
    assert_eq!(first.len(), 1);
    let second = t + Duration::from_secs(1);
    assert_eq!(frames(&mut playout, second).len(), SECOND - 1);
    let late = t + Duration::from_millis(3_100);
    frames(&mut playout, late);
    assert_eq!(
        playout.take_due_segment_requests(late),
        [0],
        "less than two seconds are left"
    );
    playout
        .push_chunk(late, chunk(ChunkRole::EndOfStream, 0, Bytes::new()))
        .expect("the end");
    assert!(!playout.has_playout_finished());
    frames(&mut playout, t + Duration::from_secs(6));
    assert!(playout.has_playout_finished());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn times_are_continuous_across_a_discontinuity() {
    let t = Instant::now();
    let mut playout = Playout::new(job(1));
    for (timeline, ticks) in [(0, 900_000), (1, 5), (2, 77_000_000)] {
        let bytes = segment(ticks, SECOND);
        playout
            .push_chunk(t, chunk(ChunkRole::LastSegmentData, timeline, bytes))
            .expect("a segment");
    }
    let times = frames(&mut playout, t + Duration::from_secs(9));
    assert_eq!(times.len(), 3 * SECOND);
    for pair in times.windows(2) {
        let step = pair[1] - pair[0];
        assert!(
            step.abs_diff(Duration::from_micros(21_333)) < Duration::from_micros(30),
            "{step:?}"
        );
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn separate_audio_waits_for_the_position_of_the_video() {
    let t = Instant::now();
    let mut playout = Playout::new(job(2));
    assert_eq!(playout.take_due_segment_requests(t), [0, 1]);
    let mut audio = chunk(ChunkRole::LastSegmentData, 0, segment(90_000 + 900, SECOND));
    audio.rendition_index = 1;
    playout.push_chunk(t, audio).expect("a segment");
    assert!(frames(&mut playout, t).is_empty());
    playout
        .push_chunk(t, chunk(ChunkRole::LastSegmentData, 0, segment(90_000, SECOND)))
        .expect("a segment");
    let times = frames(&mut playout, t + Duration::from_secs(2));
    assert_eq!(times.len(), 2 * SECOND);
    assert_eq!(times[1] - times[0], Duration::from_millis(10));
    assert_eq!(SampleCodec::Opus.kind(), MediaKind::Audio);
}

/// Samples of one second from a time on: video each 40 ms, and audio each 20 ms with its first byte.
fn video_and_audio(begin: Duration, audio: u8) -> Vec<DemuxedSample> {
    let sample = |codec, ms, first| DemuxedSample {
        codec,
        decode_time: begin + Duration::from_millis(ms),
        presentation_time: begin + Duration::from_millis(ms),
        bytes: Bytes::copy_from_slice(&[first]),
    };
    let video = (0..1_000).step_by(40).map(|ms| sample(SampleCodec::H264, ms, 0));
    let audio = (0..1_000).step_by(20).map(|ms| sample(SampleCodec::Opus, ms, audio));
    video.chain(audio).collect()
}

/// The variants have audio in their segments for old players, and the rendition of the audio lists segments with video.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn audio_is_played_of_one_rendition() {
    let t = Instant::now();
    for has_separate in [true, false] {
        let mut playout = Playout::new(job(2));
        for second in 0..6 {
            let begin = Duration::from_secs(10 + second);
            playout.add_samples(t, 0, 0, video_and_audio(begin, 1));
            if has_separate {
                playout.add_samples(t, 1, 0, video_and_audio(begin, 2));
            }
        }
        let due = std::iter::from_fn(|| playout.poll(t + Duration::from_secs(9)));
        let (video, audio): (Vec<_>, Vec<_>) = due.partition(|due| due.codec == SampleCodec::H264);
        assert_eq!(video.len(), 6 * 25);
        let (source, seconds) = if has_separate { (2, 6) } else { (1, 3) };
        assert_eq!(
            audio.len(),
            seconds * 50,
            "without the first seconds, in which it may still come"
        );
        assert!(audio.iter().all(|frame| frame.bytes[0] == source));
    }
}

/// The playlists of the renditions count discontinuities from different numbers, on one clock.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn separate_audio_whose_discontinuities_are_numbered_otherwise_is_played() {
    let t = Instant::now();
    for (video, audio) in [(5, 3), (3, 5)] {
        for is_audio_first in [true, false] {
            let mut playout = Playout::new(job(2));
            for second in 0..6 {
                let begin = Duration::from_secs(100 + second);
                let segment = video_and_audio(begin, 2);
                if is_audio_first {
                    playout.add_samples(t, 1, audio, segment.clone());
                }
                playout.add_samples(t, 0, video, video_and_audio(begin, 1));
                if !is_audio_first {
                    playout.add_samples(t, 1, audio, segment);
                }
            }
            let due = std::iter::from_fn(|| playout.poll(t + Duration::from_secs(9)));
            let (video_frames, audio_frames): (Vec<_>, Vec<_>) = due.partition(|due| due.codec == SampleCodec::H264);
            assert_eq!(
                (video_frames.len(), audio_frames.len()),
                (6 * 25, 6 * 50),
                "{video} {audio}"
            );
            assert!(audio_frames.iter().all(|frame| frame.bytes[0] == 2));
            assert_eq!(
                video_frames.first().map(|frame| frame.presentation_time),
                audio_frames.first().map(|frame| frame.presentation_time)
            );
        }
    }
}

/// A source begins among advertisements of one segment each, whose clocks begin anew; its audio is one segment ahead or
/// behind.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn audio_of_advertisements_is_played_with_their_video() {
    let t = Instant::now();
    for ahead in [true, false] {
        let mut playout = Playout::new(job(2));
        let ad = |number: u64| video_and_audio(Duration::from_secs(1), u8::try_from(number).expect("small"));
        for number in 5..9 {
            let audio = if ahead { number + 1 } else { number - 1 };
            playout.add_samples(t, 0, number, ad(number));
            playout.add_samples(t, 1, audio, ad(audio));
        }
        let due: Vec<DueFrame> = std::iter::from_fn(|| playout.poll(t + Duration::from_secs(9))).collect();
        let mut played: Vec<(u8, Duration)> = Vec::new();
        for frame in due.iter().filter(|due| due.codec == SampleCodec::Opus) {
            if played.last().is_none_or(|(ad, _)| *ad != frame.bytes[0]) {
                played.push((frame.bytes[0], frame.presentation_time));
            }
        }
        let ads: Vec<u8> = played.iter().map(|(ad, _)| *ad).collect();
        assert_eq!(ads, if ahead { [6, 7, 8] } else { [5, 6, 7] });
        for (ad, begin) in played {
            // The first one is shown from one second on, and each for a second.
            let shown = Duration::from_secs(u64::from(ad) - 4);
            assert!(
                begin.abs_diff(shown) < Duration::from_millis(50),
                "{ad}: {begin:?}, {shown:?}"
            );
        }
    }
}

/// The last frames before missing segments come with the next one, when it is known where they end.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn a_gap_adds_no_latency() {
    let t = Instant::now();
    let mut playout = Playout::new(job(1));
    let is_held_back = |sample: &DemuxedSample| sample.decode_time >= Duration::from_millis(10_940);
    let (held_back, first): (Vec<_>, Vec<_>) = video_and_audio(Duration::from_secs(10), 1)
        .into_iter()
        .partition(is_held_back);
    assert_eq!(held_back.len(), 4);
    playout.add_samples(t, 0, 0, first);
    let later = t + Duration::from_secs(15);
    let next = video_and_audio(Duration::from_secs(25), 1);
    playout.add_samples(later, 0, 0, [held_back, next].concat());
    assert_eq!(std::iter::from_fn(|| playout.poll(later)).count(), 25 + 50 + 1);
    assert_eq!(playout.next_frame_due_at(), Some(later + Duration::from_millis(40)));
    // Few frames are no gap.
    let ms = |times: &[u64]| times.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
    assert_eq!(first_time_of_segment(&ms(&[0, 5_000, 10_000])), Some(Duration::ZERO));
    assert_eq!(
        first_time_of_segment(&ms(&[40, 0, 5_040, 5_000])),
        Some(Duration::from_secs(5))
    );
    assert_eq!(first_time_of_segment(&ms(&[0, 5_000])), Some(Duration::ZERO));
    assert_eq!(first_time_of_segment(&[]), None);
}

/// Audio that waited for the video has not come late: the video is shown when it is due.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn waiting_audio_does_not_move_the_pacer() {
    let t = Instant::now();
    let mut playout = Playout::new(job(2));
    // It begins shortly before the video.
    playout.add_samples(t, 1, 0, video_and_audio(Duration::from_millis(9_900), 2));
    assert_eq!(playout.next_frame_due_at(), None);
    let later = t + Duration::from_secs(5);
    playout.add_samples(later, 0, 0, video_and_audio(Duration::from_secs(10), 1));
    let before = Duration::from_millis(100);
    assert_eq!(
        playout.next_frame_due_at(),
        Some(later - before),
        "the first audio frame"
    );
    let due = std::iter::from_fn(|| playout.poll(later));
    let video = due.filter(|due| due.codec == SampleCodec::H264).count();
    assert_eq!(video, 1, "the first frame is due when it comes");
}

/// Audio that has neither the number nor the clock of the video does not replace the audio beside the video.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn separate_audio_that_has_no_place_does_not_silence_the_video() {
    let t = Instant::now();
    for number in [3, 7] {
        let mut playout = Playout::new(job(2));
        for second in 0..6 {
            playout.add_samples(t, 1, number, video_and_audio(Duration::from_secs(9_000 + second), 2));
            playout.add_samples(t, 0, 5, video_and_audio(Duration::from_secs(10 + second), 1));
        }
        let due = std::iter::from_fn(|| playout.poll(t + Duration::from_secs(9)));
        let audio = due.filter(|due| due.codec == SampleCodec::Opus).count();
        assert_eq!(
            audio,
            3 * 50,
            "{number}: after the first seconds, in which it may still come"
        );
    }
}

/// The encoder of the origin restarts, and the segment goes on with other timestamps.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn timestamps_that_jump_within_a_segment_are_continued() {
    let t = Instant::now();
    for second in [10, 5_000] {
        let mut playout = Playout::new(job(1));
        let first = video_and_audio(Duration::from_secs(1_000), 1);
        let then = video_and_audio(Duration::from_secs(second), 1);
        playout.add_samples(t, 0, 0, [first, then].concat());
        playout.add_samples(t, 0, 0, video_and_audio(Duration::from_secs(second + 1), 1));
        let due = std::iter::from_fn(|| playout.poll(t + Duration::from_secs(9)));
        let video = due.filter(|due| due.codec == SampleCodec::H264);
        let times: Vec<Duration> = video.map(|due| due.presentation_time).collect();
        assert_eq!(times.len(), 75);
        let longest = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max();
        // The last audio frame ends 20 ms after the last video frame.
        assert!(longest <= Some(Duration::from_millis(60)), "{longest:?}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn a_broken_segment_is_a_gap_and_three_are_an_error() {
    let t = Instant::now();
    let mut playout = Playout::new(job(1));
    let broken = || {
        chunk(
            ChunkRole::LastSegmentData,
            0,
            Bytes::from_static(b"<html>not found</html>"),
        )
    };
    for _ in 0..2 {
        playout.push_chunk(t, broken()).expect("a gap");
    }
    playout
        .push_chunk(t, chunk(ChunkRole::LastSegmentData, 0, segment(0, 1)))
        .expect("a segment");
    for _ in 0..2 {
        playout.push_chunk(t, broken()).expect("a gap");
    }
    assert_eq!(
        playout.push_chunk(t, broken()),
        Err(ContainerError::UnrecognisedFormat.into())
    );
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn a_segment_without_end_is_refused() {
    let t = Instant::now();
    let mut playout = Playout::new(job(1));
    let part = Bytes::from(vec![0; 8 << 20]);
    let mut taken = 0;
    let refused = loop {
        match playout.push_chunk(t, chunk(ChunkRole::SegmentData, 0, part.clone())) {
            Ok(()) => taken += part.len(),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, taken), (PlayoutError::SegmentTooLarge, MAX_SEGMENT_BYTES));
}

/// The frames of another variant refer to its own key frames.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
fn another_variant_begins_with_a_key_frame() {
    let sample = |nal_type: u8, time: u64| DemuxedSample {
        codec: SampleCodec::H264,
        decode_time: Duration::from_millis(time),
        presentation_time: Duration::from_millis(time),
        bytes: Bytes::copy_from_slice(&[0, 0, 0, 1, nal_type, 0x88, 0x80]),
    };
    let t = Instant::now();
    let played = |segments: [&[u8]; 2]| {
        let mut playout = Playout::new(job(1));
        playout.add_samples(t, 0, 0, vec![sample(0x65, 0), sample(0x41, 40)]);
        playout
            .push_chunk(t, chunk(ChunkRole::VariantSwitch, 0, Bytes::new()))
            .expect("no segment");
        for (number, types) in (0_u64..).zip(segments) {
            let times = (1_000 + number * 1_000..).step_by(40);
            let samples = types.iter().zip(times).map(|(nal_type, time)| sample(*nal_type, time));
            playout.add_samples(t, 0, 0, samples.collect());
        }
        let due = std::iter::from_fn(|| playout.poll(t + Duration::from_secs(60)));
        due.map(|due| due.bytes[4]).collect::<Vec<u8>>()
    };
    assert_eq!(played([&[0x65, 0x41], &[0x41]]), [0x65, 0x41, 0x65, 0x41, 0x41]);
    assert_eq!(
        played([&[0x41, 0x41, 0x65, 0x41], &[0x41]]),
        [0x65, 0x41, 0x65, 0x41, 0x41]
    );
    // Where no key frame is known as such, the next segment is played.
    assert_eq!(played([&[0x41, 0x41], &[0x41]]), [0x65, 0x41, 0x41]);
}
