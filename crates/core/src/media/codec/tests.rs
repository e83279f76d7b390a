//! Real bitstreams (`tests/data/rtp`), handcrafted vectors and hostile input, through the public API of [`PayloadInspector`].

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::media::rtp::ParsedRtpHeader;
use crate::media::{H264Profile, ProfileLevelId};

const H264: &[u8] = include_bytes!("../../../../../tests/data/rtp/h264.rtp");
const H265: &[u8] = include_bytes!("../../../../../tests/data/rtp/h265.rtp");
const H264_B_FRAMES: &[u8] = include_bytes!("../../../../../tests/data/rtp/h264-bframes.rtp");
const H265_B_FRAMES: &[u8] = include_bytes!("../../../../../tests/data/rtp/h265-bframes.rtp");
const VP8: &[u8] = include_bytes!("../../../../../tests/data/rtp/vp8.rtp");
const VP9: &[u8] = include_bytes!("../../../../../tests/data/rtp/vp9.rtp");

/// RTP timestamp and payload of each packet of a recording.
fn packets(mut recording: &'static [u8]) -> Vec<(u32, Bytes)> {
    let mut packets = Vec::new();
    while let Some((length, rest)) = recording.split_first_chunk::<2>() {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        let header = ParsedRtpHeader::parse(packet).expect("a recorded packet");
        packets.push((header.time, Bytes::from_static(&packet[header.payload_range()])));
        recording = rest;
    }
    packets
}

/// Indexes of the packets that identify a key frame, with the number of payloads to insert.
fn inspect_all(inspector: &mut PayloadInspector, packets: &[(u32, Bytes)]) -> (Vec<usize>, usize) {
    let (mut key_frames, mut inserted) = (Vec::new(), 0);
    for (index, (time, payload)) in packets.iter().enumerate() {
        let inspection = inspector.inspect_rtp_payload(*time, payload);
        if inspection.identifies_key_frame {
            key_frames.push(index);
        }
        inserted += inspection.parameter_sets_to_insert.len();
    }
    (key_frames, inserted)
}

#[test]
fn x264_key_frames_are_found_and_lack_nothing() {
    let mut inspector = PayloadInspector::new(Codec::H264);
    // Two slices each; only their first packets identify a key frame.
    assert_eq!(inspect_all(&mut inspector, &packets(H264)), (vec![1, 4, 11, 14], 0));
    let profile = ProfileLevelId([0x42, 0xc0, 0x0c]);
    assert_eq!(profile.profile(), H264Profile::ConstrainedBaseline);
    let format = CodecFormat::H264 {
        profile,
        packetization_mode: 1,
    };
    assert_eq!(inspector.format(), Some(format));
    assert_eq!(inspector.resolution(), Some((322, 182)));
}

#[test]
fn x265_key_frames_are_found_and_lack_nothing() {
    let mut inspector = PayloadInspector::new(Codec::H265);
    assert_eq!(inspect_all(&mut inspector, &packets(H265)), (vec![3, 15], 0));
    let format = CodecFormat::H265 {
        profile_id: 1,
        tier_flag: 0,
    };
    assert_eq!(inspector.format(), Some(format));
    assert_eq!(inspector.resolution(), Some((322, 182)));
}

#[test]
fn libvpx_key_frames_are_found() {
    for (codec, recording, format, expected) in [
        (Codec::Vp8, VP8, CodecFormat::Vp8, vec![0, 8]),
        (Codec::Vp9, VP9, CodecFormat::Vp9 { profile: 0 }, vec![0, 12]),
    ] {
        let mut inspector = PayloadInspector::new(codec);
        assert_eq!(inspect_all(&mut inspector, &packets(recording)), (expected, 0));
        assert_eq!(inspector.format(), Some(format));
        assert_eq!(inspector.resolution(), Some((322, 182)));
    }
}

/// Timestamps of decoding never go back: only the bitstream says that pictures are shown in another order.
#[test]
fn b_frames_are_found_whatever_the_timestamps_say() {
    for (codec, recording, expected) in [
        (Codec::H264, H264_B_FRAMES, true),
        (Codec::H265, H265_B_FRAMES, true),
        (Codec::H264, H264, false),
        (Codec::H265, H265, false),
        (Codec::Vp8, VP8, false),
    ] {
        let packets = packets(recording);
        let mut inspector = PayloadInspector::new(codec);
        let found = packets.iter().position(|(time, payload)| {
            inspector.inspect_rtp_payload(*time, payload);
            inspector.found_b_frames()
        });
        assert_eq!(found.is_some(), expected, "{codec:?}");
        let frames = |packets: &[(u32, Bytes)]| {
            let times: std::collections::BTreeSet<u32> = packets.iter().map(|(time, _)| *time).collect();
            times.len()
        };
        if let Some(found) = found {
            assert!(
                frames(&packets[..=found]) <= 8,
                "{codec:?}: within the first group of pictures"
            );
        }
    }
}

#[test]
fn a_key_frame_whose_parameter_sets_were_lost_gets_the_known_ones() {
    let mut packets = packets(H264);
    let sets = packets.remove(10).1;
    let mut inspector = PayloadInspector::new(Codec::H264);
    inspect_all(&mut inspector, &packets[..10]);
    let (time, start) = &packets[10];
    let inspection = inspector.inspect_rtp_payload(*time, start);
    assert!(inspection.identifies_key_frame);
    // FFmpeg also sends SPS and PPS as one STAP-A, with an NRI of zero.
    let [inserted] = inspection.parameter_sets_to_insert.as_slice() else {
        panic!("one payload: {inspection:?}");
    };
    assert_eq!(inserted[0], 0x78);
    assert_eq!(inserted[1..], sets[1..]);
    let (key_frames, inserted) = inspect_all(&mut inspector, &packets[11..]);
    assert_eq!((key_frames, inserted), (vec![2], 0), "once per access unit");
}

#[test]
fn an_h265_key_frame_whose_parameter_sets_were_lost_gets_the_known_ones() {
    let mut packets = packets(H265);
    let sets = packets.remove(12).1;
    let mut inspector = PayloadInspector::new(Codec::H265);
    inspect_all(&mut inspector, &packets[..14]);
    let inspection = inspector.inspect_rtp_payload(packets[14].0, &packets[14].1);
    assert!(inspection.identifies_key_frame);
    assert_eq!(inspection.parameter_sets_to_insert, [sets]);
}

#[test]
fn a_key_frame_is_not_identified_before_its_late_start_arrives() {
    let packets = packets(H264);
    let mut inspector = PayloadInspector::new(Codec::H264);
    let without_start = [&packets[..1], &packets[2..4]].concat();
    assert_eq!(inspect_all(&mut inspector, &without_start), (vec![], 0));
    assert!(
        inspector
            .inspect_rtp_payload(packets[1].0, &packets[1].1)
            .identifies_key_frame
    );
}

/// Baseline 3.1, ID 0, 64x48; PPS 0; the start of an IDR slice.
const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
const IDR: &[u8] = &[0x65, 0x88, 0x84, 0x00];

fn h264(inspector: &mut PayloadInspector, time: u32, payload: &[u8]) -> PayloadInspection {
    inspector.inspect_rtp_payload(time, &Bytes::copy_from_slice(payload))
}

/// V-09.
#[test]
fn obs_sends_sps_and_pps_as_packets_of_their_own() {
    let mut inspector = PayloadInspector::new(Codec::H264);
    for time in [1, 2] {
        assert!(!h264(&mut inspector, time, SPS).identifies_key_frame);
        assert!(!h264(&mut inspector, time, PPS).identifies_key_frame);
        let inspection = h264(&mut inspector, time, IDR);
        assert_eq!(
            (
                inspection.identifies_key_frame,
                inspection.parameter_sets_to_insert.len()
            ),
            (true, 0)
        );
    }
}

#[test]
fn an_idr_without_any_known_parameter_sets_is_not_a_key_frame() {
    let mut inspector = PayloadInspector::new(Codec::H264);
    assert_eq!(h264(&mut inspector, 1, IDR), PayloadInspection::default());
    h264(&mut inspector, 1, SPS);
    assert!(h264(&mut inspector, 1, PPS).identifies_key_frame, "they came late");
}

#[test]
fn changes_are_reported_once() {
    let mut inspector = PayloadInspector::new(Codec::H264);
    let first = h264(&mut inspector, 1, SPS);
    assert!(first.new_format.is_some());
    assert_eq!(first.new_resolution, Some((64, 48)));
    let again = h264(&mut inspector, 2, SPS);
    assert_eq!((again.new_format, again.new_resolution), (None, None));
    let mut main = SPS.to_vec();
    (main[1], main[2]) = (0x4d, 0x00);
    let Some(CodecFormat::H264 { profile, .. }) = h264(&mut inspector, 3, &main).new_format else {
        panic!("another profile");
    };
    assert_eq!(profile, ProfileLevelId([0x4d, 0, 0x1f]));
}

#[test]
fn audio_has_no_key_frames() {
    for (codec, format) in [
        (Codec::Opus, None),
        (Codec::Pcmu, Some(CodecFormat::Pcmu)),
        (Codec::Pcma, Some(CodecFormat::Pcma)),
    ] {
        let mut inspector = PayloadInspector::new(codec);
        assert_eq!(
            inspector.inspect_rtp_payload(0, &Bytes::from_static(&[0xfc, 1])),
            PayloadInspection::default()
        );
        assert_eq!(inspector.format(), format);
    }
}

/// A packet of the corpus with some bytes changed, truncated or extended.
fn mutate(rng: &mut StdRng, corpus: &[(u32, Bytes)]) -> (u32, Bytes) {
    let (time, payload) = &corpus[rng.random_range(0..corpus.len())];
    // Headers and parameter sets are at the front; mutating the rest only costs time.
    let mut bytes = payload[..payload.len().min(128)].to_vec();
    for _ in 0..rng.random_range(0..8) {
        let at = rng.random_range(0..=bytes.len().min(40));
        match rng.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.random()),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.random();
                }
            }
        }
    }
    (time.wrapping_add(rng.random_range(0..4)), bytes.into())
}

#[test]
fn hostile_packets_never_panic_and_ask_for_no_long_payloads() {
    let av1 = vec![(
        0,
        Bytes::from_static(&[0x28, 12, 8, 0, 0, 0, 4, 0x3d, 6, 0xd4, 0xda, 0xf9, 0, 0x40, 0x30, 1, 2]),
    )];
    let handmade = [SPS, PPS, IDR].map(|payload| (7, Bytes::from_static(payload)));
    for (seed, codec, corpus) in [
        (1, Codec::H264, [&packets(H264)[..], &handmade].concat()),
        (2, Codec::H265, packets(H265)),
        (3, Codec::Vp8, packets(VP8)),
        (4, Codec::Vp9, packets(VP9)),
        (5, Codec::Av1, av1),
    ] {
        println!("{codec:?}: seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut inspector = PayloadInspector::new(codec);
        for _ in 0..100_000 {
            let (time, payload) = mutate(&mut rng, &corpus);
            let inspection = inspector.inspect_rtp_payload(time, &payload);
            assert!(
                inspection
                    .parameter_sets_to_insert
                    .iter()
                    .all(|payload| payload.len() <= MAX_RTP_PAYLOAD_BYTES)
            );
            assert!(
                inspection.parameter_sets_to_insert.len() <= 8
                    && (inspection.identifies_key_frame || inspection.parameter_sets_to_insert.is_empty())
            );
            if let Some(mut descriptor) = vp8::Vp8Descriptor::parse(&payload).filter(|_| codec == Codec::Vp8) {
                let mut copy = payload.to_vec();
                descriptor.overwrite_picture_id_and_tl0picidx(&mut copy, 0x7f, 1);
                descriptor = vp8::Vp8Descriptor::parse(&copy).expect("patched");
                assert!(descriptor.picture_id.is_none_or(|id| id.value() == 0x7f));
            }
        }
    }
}

/// Encoders with open groups of pictures send I frames that are no IDR frames, with or without a recovery point message;
/// with gradual refresh, recovery points alone.
#[test]
fn h264_without_idr_frames_has_key_frames() {
    const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
    const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
    const RECOVERY_POINT: &[u8] = &[0x06, 0x06, 0x01, 0xc4, 0x80];
    const IDR: &[u8] = &[0x65, 0x88, 1, 2];
    // First slices of types 5 (P) and 7 (I) of PPS 0.
    const P: &[u8] = &[0x41, 0x9a, 1, 2];
    const I: &[u8] = &[0x41, 0x88, 0x80, 2];
    let start: [&[&[u8]]; 4] = [
        &[SPS, PPS, I],
        &[RECOVERY_POINT, I],
        &[RECOVERY_POINT, P],
        &[SPS, PPS, P],
    ];
    for (nals, is_start) in start.into_iter().zip([true, true, true, false]) {
        for has_idr in [false, true] {
            let mut inspector = PayloadInspector::new(Codec::H264);
            let (mut found, mut time) = (Vec::new(), 0);
            let mut frame = |inspector: &mut PayloadInspector, nals: &[&[u8]]| {
                time += 3_000;
                nals.iter().fold(false, |is_key, nal| {
                    is_key
                        | inspector
                            .inspect_rtp_payload(time, &Bytes::copy_from_slice(nal))
                            .identifies_key_frame
                })
            };
            assert!(!frame(&mut inspector, &[SPS, PPS]));
            if has_idr {
                assert!(frame(&mut inspector, &[SPS, PPS, IDR]));
            }
            for group in 0..20 {
                found.push(frame(&mut inspector, nals));
                assert_eq!(inspector.lacks_idr_frames(), is_start && group >= 16, "{group}");
                (0..24).for_each(|_| assert!(!frame(&mut inspector, &[P])));
            }
            // Where there were IDR frames they are expected again for 400 frames.
            let begin = if has_idr { 16 } else { 0 };
            let expected: Vec<bool> = (0..20).map(|group| is_start && group >= begin).collect();
            assert_eq!(found, expected, "{nals:x?} {has_idr}");
            assert!(frame(&mut inspector, &[SPS, PPS, IDR]));
            assert!(!inspector.lacks_idr_frames());
        }
    }
}

/// Of a stream whose parameter sets came before, in the description or once, I frames are started with after 400 frames
/// without an IDR frame; slices of type 2 may be the first of a picture with others.
#[test]
fn h264_with_nothing_but_i_frames_has_key_frames_in_the_end() {
    let sets = [
        Bytes::from_static(&[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4]),
        Bytes::from_static(&[0x68, 0xce, 0x3c, 0x80]),
    ];
    const P: &[u8] = &[0x41, 0x9a, 1, 2];
    for (i_frame, is_start) in [(&[0x41, 0x88, 0x80, 2], true), (&[0x41, 0xb8, 0x80, 2], false)] {
        let mut inspector = PayloadInspector::new(Codec::H264);
        inspector.store_out_of_band_parameter_sets(&sets);
        for frame in 0..1_000u32 {
            let nal: &[u8] = if frame.is_multiple_of(25) { i_frame } else { P };
            let found = inspector.inspect_rtp_payload(frame * 3_000, &Bytes::copy_from_slice(nal));
            let wanted = is_start && frame.is_multiple_of(25) && frame >= 400;
            assert_eq!(found.identifies_key_frame, wanted, "{frame}");
            assert_eq!(found.parameter_sets_to_insert.is_empty(), !wanted, "{frame}");
        }
        assert_eq!(inspector.lacks_idr_frames(), is_start);
    }
}

/// Encoders with intra refresh send one IRAP picture at most, and recovery points then.
#[test]
fn h265_without_irap_pictures_has_key_frames() {
    const SETS: [&[u8]; 3] = [
        &[0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x01],
        &[
            0x42, 0x01, 0x01, 0x01, 0x60, 0, 0x03, 0, 0x90, 0, 0x03, 0, 0, 0x03, 0, 0x5d, 0xa0, 0x05, 0x02, 0x01, 0x71,
            0xf2, 0xe5, 0xb2,
        ],
        &[0x44, 0x01, 0xc1, 0x72, 0xb4, 0x62, 0x40],
    ];
    const RECOVERY_POINT: &[u8] = &[0x4e, 0x01, 0x06, 0x01, 0xc4, 0x80];
    const IDR: &[u8] = &[0x26, 0x01, 0xaf, 2];
    const P: &[u8] = &[0x02, 0x01, 0xd0, 3];
    for has_idr in [false, true] {
        let mut inspector = PayloadInspector::new(Codec::H265);
        let sets: Vec<Bytes> = SETS.map(Bytes::from_static).into();
        inspector.store_out_of_band_parameter_sets(&sets);
        let mut time = 0;
        let mut frame = |inspector: &mut PayloadInspector, nals: &[&[u8]]| {
            time += 3_000;
            nals.iter().fold(false, |is_key, nal| {
                is_key
                    | inspector
                        .inspect_rtp_payload(time, &Bytes::copy_from_slice(nal))
                        .identifies_key_frame
            })
        };
        assert_eq!(frame(&mut inspector, &[if has_idr { IDR } else { P }]), has_idr);
        for group in 0..20 {
            let expected = !has_idr || group >= 16;
            assert_eq!(frame(&mut inspector, &[RECOVERY_POINT, P]), expected, "{group}");
            (0..24).for_each(|_| assert!(!frame(&mut inspector, &[P])));
        }
        assert!(inspector.lacks_idr_frames());
        assert!(frame(&mut inspector, &[IDR]) && !inspector.lacks_idr_frames());
    }
}
