//! Fragments as packagers write them.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::*;

fn boxed(name: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = u32::try_from(length + 8).expect("short").to_be_bytes().to_vec();
    out.extend(name);
    parts.iter().for_each(|part| out.extend(*part));
    out
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// An initialization section whose video has this sample entry, NAL lengths of `length_size` bytes, and parameter sets
/// only if `has_sets`.
fn init(entry: &[u8; 4], length_size: u8, has_sets: bool) -> Bytes {
    let sets: &[u8] = if has_sets {
        &[0xe1, 0, 2, 0x67, 1, 1, 0, 2, 0x68, 1]
    } else {
        &[0xe0, 0]
    };
    init_with(entry, length_size, sets)
}

fn init_with(entry: &[u8; 4], length_size: u8, sets: &[u8]) -> Bytes {
    let avcc = boxed(b"avcC", &[&[1, 66, 0xc0, 30, 0xfc | (length_size - 1)], sets]);
    let entry = boxed(entry, &[&[0; 78], &avcc]);
    let stsd = boxed(b"stsd", &[&words(&[0, 1]), &entry]);
    let mdia = boxed(
        b"mdia",
        &[
            &boxed(b"mdhd", &[&words(&[0, 0, 0, 1_000, 0, 0])]),
            &boxed(b"minf", &[&boxed(b"stbl", &[&stsd])]),
        ],
    );
    let trak = boxed(b"trak", &[&boxed(b"tkhd", &[&words(&[0, 0, 0, 7])]), &mdia]);
    let mvex = boxed(b"mvex", &[&boxed(b"trex", &[&words(&[0, 7, 1, 40, 0, 0])])]);
    boxed(b"moov", &[&trak, &mvex]).into()
}

/// How a fragment says where its samples are.
#[derive(Clone, Copy, Debug)]
enum Positions {
    FromFragment,
    /// From the begin of a file in which this many bytes precede the segment.
    FromFile(u64),
    Unstated,
}

/// A fragment of three samples of a slice each, the first one a key frame.
fn fragment(decode: u32, length_size: usize, positions: Positions, before: usize) -> Vec<u8> {
    let mut data = BytesMut::new();
    let mut sizes = Vec::new();
    for first in [0x65_u8, 0x41, 0x41] {
        // Slices of the types 7 (I) and 5 (P).
        let slice = if first == 0x65 { 0x88 } else { 0x9a };
        let nal = [first, slice, decode as u8];
        data.put_uint(nal.len() as u64, length_size);
        data.put_slice(&nal);
        sizes.push(u32::try_from(nal.len() + length_size).expect("short"));
    }
    let make = |offset: u32| {
        let (tfhd, with_offset) = match positions {
            Positions::FromFragment => (words(&[0x2_0000, 7]), true),
            Positions::FromFile(skipped) => {
                let base = skipped + before as u64;
                ([words(&[1, 7]), base.to_be_bytes().to_vec()].concat(), true)
            }
            Positions::Unstated => (words(&[0, 7]), false),
        };
        let trun = if with_offset {
            words(&[0x201, 3, offset])
        } else {
            words(&[0x200, 3])
        };
        let traf = boxed(
            b"traf",
            &[
                &boxed(b"tfhd", &[&tfhd]),
                &boxed(b"tfdt", &[&words(&[0, decode])]),
                &boxed(b"trun", &[&trun, &words(&sizes)]),
            ],
        );
        boxed(b"moof", &[&boxed(b"mfhd", &[&words(&[0, 1])]), &traf])
    };
    let length = u32::try_from(make(0).len()).expect("short");
    [make(length + 8), boxed(b"mdat", &[&data])].concat()
}

fn demux(init: &Bytes, segment: &[u8]) -> Vec<DemuxedSample> {
    let mut fragments = Mp4Demuxer::new(init).expect("an initialization section");
    fragments
        .demux_segment(&Bytes::copy_from_slice(segment))
        .expect("frames")
}

#[test]
fn positions_may_count_from_the_fragment_the_file_or_not_at_all() {
    let init = init(b"avc1", 4, true);
    for positions in [
        Positions::FromFragment,
        Positions::FromFile(0),
        // Short enough for the positions to be in the media data of the segment, too.
        Positions::FromFile(1),
        Positions::FromFile(7),
        Positions::FromFile(123_456),
        Positions::Unstated,
    ] {
        // Two fragments in one segment, behind a box that players pass over.
        let mut segment = boxed(b"free", &[&[0; 5]]);
        for decode in [0, 120] {
            let next = fragment(decode, 4, positions, segment.len());
            segment.extend(next);
        }
        let samples = demux(&init, &segment);
        let times: Vec<u128> = samples
            .iter()
            .map(|sample| (sample.decode_time - MP4_TIMESTAMP_OFFSET).as_millis())
            .collect();
        assert_eq!(times, [0, 40, 80, 120, 160, 200], "{positions:?}");
        let last = &samples[5].bytes[..];
        assert_eq!(last, [0, 0, 0, 1, 0x41, 0x9a, 120], "{positions:?}");
        assert_eq!(samples[0].bytes[4] & 0x1f, 7, "{positions:?}: parameter sets");
    }
}

#[test]
fn parameter_sets_may_be_in_the_samples_only() {
    for entry in [b"avc1", b"avc3"] {
        let samples = demux(&init(entry, 4, false), &fragment(0, 4, Positions::FromFragment, 0));
        assert_eq!(samples.len(), 3);
        assert_eq!((samples[0].codec, samples[0].bytes[4]), (SampleCodec::H264, 0x65));
    }
}

/// Open GOPs: I frames that are no IDR frames.
#[test]
fn parameter_sets_are_put_before_i_frames_too() {
    let mut segment = fragment(0, 4, Positions::FromFragment, 0);
    let key = segment.windows(2).position(|pair| pair == [0x65, 0x88]);
    segment[key.expect("the first slice")] = 0x41;
    let samples = demux(&init(b"avc1", 4, true), &segment);
    let first: Vec<u8> = samples.iter().map(|sample| sample.bytes[4] & 0x1f).collect();
    assert_eq!(first, [7, 1, 1]);
}

#[test]
fn nal_lengths_may_have_one_to_four_bytes() {
    for size in 1..=4 {
        let samples = demux(
            &init(b"avc1", size, true),
            &fragment(0, usize::from(size), Positions::FromFragment, 0),
        );
        assert_eq!(samples.len(), 3, "{size}");
        assert_eq!(samples[1].bytes[..], [0, 0, 0, 1, 0x41, 0x9a, 0], "{size}");
    }
}

#[test]
fn a_broken_fragment_does_not_hide_the_others() {
    let init = init(b"avc1", 4, true);
    let good = fragment(0, 4, Positions::FromFragment, 0);
    let cut = boxed(b"moof", &[&[1, 2, 3]]);
    assert_eq!(demux(&init, &[good.clone(), cut].concat()).len(), 3);
    let mut fragments = Mp4Demuxer::new(&init).expect("an initialization section");
    let error = fragments
        .demux_segment(&boxed(b"moof", &[&[1, 2, 3]]).into())
        .expect_err("nothing");
    assert!(error.to_string().contains("no media data"), "{error}");
}

/// Key frames of a few bytes each, and parameter sets of 64 KiB.
#[test]
fn long_parameter_sets_do_not_multiply_a_segment() {
    let sets = [&[0xe1, 0xff, 0xff, 0x67][..], &[1; 0xfffe], &[1, 0, 2, 0x68, 1]].concat();
    let count = 60_000_u32;
    let traf = boxed(
        b"traf",
        &[
            &boxed(b"tfhd", &[&words(&[0x2_0010, 7, 7])]),
            &boxed(b"trun", &[&words(&[0, count])]),
        ],
    );
    let data = [0, 0, 0, 3, 0x65, 0x88, 1].repeat(count as usize);
    let segment = [boxed(b"moof", &[&traf]), boxed(b"mdat", &[&data])].concat();
    let samples = demux(&init_with(b"avc1", 4, &sets), &segment);
    assert_eq!(samples.len(), count as usize);
    assert!(samples[0].bytes.len() > 0xffff, "the first one has them");
    let total: usize = samples.iter().map(|sample| sample.bytes.len()).sum();
    assert!(total < 3 * segment.len() + (128 << 10), "{total} of {}", segment.len());
}

/// Video (7) and audio (8) in one fragment, without a flag that says what their positions count from, and without times and
/// flags of the samples.
fn fragment_of_two_tracks() -> (Bytes, Vec<u8>) {
    let trak = |id: u32, kind: &[u8; 4], entry: &[u8]| {
        let stsd = boxed(b"stsd", &[&words(&[0, 1]), entry]);
        let mdia = boxed(
            b"mdia",
            &[
                &boxed(b"mdhd", &[&words(&[0, 0, 0, 1_000, 0, 0])]),
                &boxed(b"hdlr", &[&words(&[0, 0]), kind]),
                &boxed(b"minf", &[&boxed(b"stbl", &[&stsd])]),
            ],
        );
        boxed(b"trak", &[&boxed(b"tkhd", &[&words(&[1, 0, 0, id])]), &mdia])
    };
    let avcc = boxed(
        b"avcC",
        &[&[1, 66, 0xc0, 30, 0xff, 0xe1, 0, 2, 0x67, 1, 1, 0, 2, 0x68, 1]],
    );
    let video = trak(7, b"vide", &boxed(b"avc1", &[&[0; 78], &avcc]));
    let audio = trak(8, b"soun", &boxed(b"Opus", &[&[0; 28]]));
    let trex = |id: u32, duration: u32| boxed(b"trex", &[&words(&[0, id, 1, duration, 0, 0])]);
    let init = boxed(
        b"moov",
        &[&video, &audio, &boxed(b"mvex", &[&trex(7, 40), &trex(8, 20)])],
    );
    let traf = |id: u32, trun: &[u32]| {
        boxed(
            b"traf",
            &[&boxed(b"tfhd", &[&words(&[0, id])]), &boxed(b"trun", &[&words(trun)])],
        )
    };
    let pictures = [
        0, 0, 0, 3, 0x65, 0x88, 1, 0, 0, 0, 3, 0x41, 0x9a, 1, 0, 0, 0, 3, 0x41, 0x9a, 2,
    ];
    let make = |offset: u32| {
        // Version 1: the last two pictures are shown 40 ms earlier and as they are decoded.
        let video = [0x0100_0a01, 3, offset, 7, 40, 7, (-40_i32).cast_unsigned(), 7, 0];
        // Behind the samples of the track before.
        let audio = [0x200, 2, 3, 3];
        boxed(
            b"moof",
            &[&boxed(b"mfhd", &[&words(&[0, 1])]), &traf(7, &video), &traf(8, &audio)],
        )
    };
    let length = u32::try_from(make(0).len()).expect("short");
    let data = [&pictures[..], &[0xf8, 1, 1, 0xf8, 2, 2]].concat();
    (init.into(), [make(length + 8), boxed(b"mdat", &[&data])].concat())
}

#[test]
fn several_tracks_of_a_fragment_follow_each_other_without_times_and_flags() {
    let (init, fragment) = fragment_of_two_tracks();
    // What packagers put before a fragment.
    let styp = boxed(b"styp", &[b"msdh\0\0\0\0msdhmsix"]);
    let others = [
        styp,
        boxed(b"emsg", &[&[0; 40]]),
        boxed(b"sidx", &[&[0; 44]]),
        boxed(b"prft", &[&[0; 24]]),
    ]
    .concat();
    let mut demuxer = Mp4Demuxer::new(&init).expect("an initialization section");
    for round in 0_u128..3 {
        let segment = Bytes::from([&others[..], &fragment].concat());
        let samples = demuxer.demux_segment(&segment).expect("frames");
        let of = |kind| {
            let samples = samples.iter().filter(move |sample| sample.codec.kind() == kind);
            let times = samples.map(|sample| {
                let milliseconds = |time: Duration| (time - MP4_TIMESTAMP_OFFSET).as_millis();
                (
                    milliseconds(sample.decode_time),
                    milliseconds(sample.presentation_time),
                    sample.bytes.last().copied(),
                )
            });
            times.collect::<Vec<_>>()
        };
        let (video, audio) = (round * 120, round * 40);
        let expected = [
            (video, video + 40, Some(1)),
            (video + 40, video, Some(1)),
            (video + 80, video + 80, Some(2)),
        ];
        assert_eq!(of(crate::media::MediaKind::Video), expected);
        let expected = [(audio, audio, Some(1)), (audio + 20, audio + 20, Some(2))];
        assert_eq!(of(crate::media::MediaKind::Audio), expected);
    }
}
