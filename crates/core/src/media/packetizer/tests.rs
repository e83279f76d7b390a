//! Round trips of recorded and generated access units through a minimal depacketizer.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
const AUD: &[u8] = &[0x09, 0xf0];
const FILLER: &[u8] = &[0x0c, 0xff, 0xff, 0x80];

/// The packets of a recording as timestamp and payload.
fn recording(mut bytes: &'static [u8]) -> Vec<(u32, Bytes)> {
    let mut packets = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        let header = crate::media::rtp::ParsedRtpHeader::parse(packet).expect("an RTP packet");
        packets.push((header.time, Bytes::copy_from_slice(&packet[header.payload_range()])));
        bytes = rest;
    }
    packets
}

/// NAL units of complete payloads in order.
fn depacketize<'a>(codec: Codec, payloads: impl IntoIterator<Item = &'a Bytes>) -> Vec<Bytes> {
    let (header_len, aggregation, fragment) = match codec {
        Codec::H264 => (1, STAP_A, FU_A),
        _ => (2, AP, FU),
    };
    let (mut nals, mut open) = (Vec::new(), None::<Vec<u8>>);
    for payload in payloads {
        let kind = if codec == Codec::H264 {
            payload[0] & 0x1f
        } else {
            payload[0] >> 1 & 0x3f
        };
        if kind == aggregation {
            let mut rest = &payload[header_len..];
            while let Some((length, body)) = rest.split_first_chunk::<2>() {
                let (nal, after) = body.split_at(usize::from(u16::from_be_bytes(*length)));
                nals.push(Bytes::copy_from_slice(nal));
                rest = after;
            }
        } else if kind == fragment {
            let fu = payload[header_len];
            if fu & 0x80 != 0 {
                assert!(open.is_none(), "a fragment begins inside another NAL unit");
                open = Some(match codec {
                    Codec::H264 => vec![payload[0] & 0xe0 | fu & 0x1f],
                    _ => vec![payload[0] & 0x81 | (fu & 0x3f) << 1, payload[1]],
                });
            }
            let nal = open.as_mut().expect("a fragment without a beginning");
            nal.extend_from_slice(&payload[header_len + 1..]);
            if fu & 0x40 != 0 {
                assert_eq!(fu & 0x80, 0, "a fragment that is its own beginning and end");
                nals.extend(open.take().map(Bytes::from));
            }
        } else {
            nals.push(payload.clone());
        }
    }
    assert!(open.is_none(), "a NAL unit without its end");
    nals
}

const STAP_A: u8 = 24;
const FU_A: u8 = 28;
const AP: u8 = 48;
const FU: u8 = 49;

/// The access units of a recording.
fn units(codec: Codec, bytes: &'static [u8]) -> Vec<Vec<Bytes>> {
    let packets = recording(bytes);
    packets
        .chunk_by(|a, b| a.0 == b.0)
        .map(|unit| depacketize(codec, unit.iter().map(|(_, payload)| payload)))
        .collect()
}

fn h264_units() -> Vec<Vec<Bytes>> {
    units(Codec::H264, include_bytes!("../../../../../tests/data/rtp/h264.rtp"))
}

fn h265_units() -> Vec<Vec<Bytes>> {
    units(Codec::H265, include_bytes!("../../../../../tests/data/rtp/h265.rtp"))
}

fn packetizer(codec: Codec) -> Packetizer {
    Packetizer::new(codec).expect("a codec that can be packetized")
}

fn bytes(payloads: &[RtpPayload]) -> impl Iterator<Item = &Bytes> {
    payloads.iter().map(|payload| &payload.bytes)
}

fn nals(list: &[&[u8]]) -> Vec<Bytes> {
    list.iter().map(|nal| Bytes::copy_from_slice(nal)).collect()
}

fn slice(header: u8, length: usize) -> Vec<u8> {
    let mut nal = vec![0x55; length];
    nal[0] = header;
    nal
}

#[test]
fn recorded_streams_survive_the_round_trip_with_the_key_frames_of_an_inspector() {
    for (codec, units) in [(Codec::H264, h264_units()), (Codec::H265, h265_units())] {
        let (mut packetizer, mut inspector) = (packetizer(codec), PayloadInspector::new(codec));
        let mut key_frames = Vec::new();
        for (index, unit) in units.iter().enumerate() {
            let payloads = packetizer.packetize_video(unit).expect("a small access unit");
            assert_eq!(&depacketize(codec, bytes(&payloads)), unit, "{codec:?} {index}");
            assert!(payloads.iter().all(|p| p.bytes.len() <= MAX_RTP_PAYLOAD_BYTES));
            let markers: Vec<bool> = payloads.iter().map(|p| p.marker).collect();
            assert_eq!(markers.iter().position(|m| *m), Some(markers.len() - 1));
            for payload in &payloads {
                let inspection = inspector.inspect_rtp_payload(index as u32, &payload.bytes);
                assert_eq!(
                    inspection.identifies_key_frame, payload.identifies_key_frame,
                    "{codec:?} {index}"
                );
                assert!(inspection.parameter_sets_to_insert.is_empty());
            }
            key_frames.extend(payloads.iter().any(|p| p.identifies_key_frame).then_some(index));
        }
        assert_eq!(key_frames, [0, 4], "{codec:?}");
        assert_eq!(packetizer.resolution(), Some((322, 182)));
        assert_eq!(packetizer.format(), inspector.format());
    }
}

#[test]
fn a_key_frame_without_parameter_sets_gets_the_latest_in_front() {
    for (codec, units) in [(Codec::H264, h264_units()), (Codec::H265, h265_units())] {
        let is_set = |nal: &Bytes| match codec {
            Codec::H264 => matches!(nal[0] & 0x1f, 7 | 8),
            _ => matches!(nal[0] >> 1 & 0x3f, 32..=34),
        };
        let (sets, rest): (Vec<Bytes>, Vec<Bytes>) = units[0].iter().cloned().partition(is_set);
        let mut packetizer = packetizer(codec);
        let without_sets = packetizer.packetize_video(&rest).expect("a small access unit");
        assert!(
            without_sets.iter().all(|p| !p.identifies_key_frame),
            "no parameter sets are stored yet"
        );
        packetizer.store_out_of_band_parameter_sets(&sets);
        for _ in 0..2 {
            let payloads = packetizer.packetize_video(&rest).expect("a small access unit");
            let expected: Vec<Bytes> = sets.iter().chain(&rest).cloned().collect();
            assert_eq!(depacketize(codec, bytes(&payloads)), expected, "{codec:?}");
            let mut inspector = PayloadInspector::new(codec);
            let seen = payloads
                .iter()
                .any(|p| inspector.inspect_rtp_payload(1, &p.bytes).identifies_key_frame);
            assert!(seen && payloads.iter().any(|p| p.identifies_key_frame), "{codec:?}");
        }
    }
}

#[test]
fn parameter_sets_share_a_payload_and_delimiters_and_filler_are_dropped() {
    let unit = nals(&[AUD, SPS, PPS, &slice(0x65, 900), FILLER]);
    let payloads = packetizer(Codec::H264).packetize_video(&unit).expect("a small unit");
    let [sets, idr] = &payloads[..] else {
        panic!("{payloads:?}")
    };
    assert_eq!(sets.bytes[..3], [0x78, 0, 7], "STAP-A with the NRI of its parts");
    assert_eq!((sets.marker, idr.marker), (false, true));
    assert_eq!(idr.bytes, unit[3]);
}

#[test]
fn long_slices_are_split_into_equal_fragments_and_a_shorter_one() {
    let lengths = |codec, length| -> Vec<usize> {
        let unit = nals(&[&slice(if codec == Codec::H264 { 0x41 } else { 0x02 }, length)]);
        let payloads = packetizer(codec).packetize_video(&unit).expect("a small unit");
        assert_eq!(depacketize(codec, bytes(&payloads)), unit);
        payloads.iter().map(|p| p.bytes.len()).collect()
    };
    assert_eq!(lengths(Codec::H264, 1184), [1184]);
    assert_eq!(lengths(Codec::H264, 1185), [1184, 4]);
    assert_eq!(lengths(Codec::H264, 1 + 2 * 1182), [1184, 1184]);
    assert_eq!(lengths(Codec::H265, 1184), [1184]);
    assert_eq!(lengths(Codec::H265, 1185), [1184, 5]);
    assert_eq!(lengths(Codec::H265, 2 + 2 * 1181), [1184, 1184]);
}

#[test]
fn both_framings_have_the_same_nal_units() {
    let units = nals(&[SPS, PPS, &slice(0x65, 30)]);
    let (mut stream, mut prefixed) = (vec![0], Vec::new());
    for nal in &units {
        stream.extend_from_slice(&[0, 0, 1]);
        stream.extend_from_slice(nal);
        stream.push(0);
        prefixed.extend_from_slice(&(nal.len() as u32).to_be_bytes());
        prefixed.extend_from_slice(nal);
    }
    assert_eq!(split_annex_b(&stream.into()), Ok(units.clone()));
    assert_eq!(split_length_prefixed_nals(&prefixed.into()), Ok(units));
    assert_eq!(split_annex_b(&Bytes::new()), Ok(Vec::new()));
}

#[test]
fn too_long_or_truncated_input_has_a_typed_error() {
    let long = Bytes::from(vec![0x65; MAX_NAL_BYTES + 1]);
    let mut video = packetizer(Codec::H264);
    let refused = |video: &mut Packetizer, unit: &[Bytes]| video.packetize_video(unit).expect_err("too long");
    assert_eq!(
        refused(&mut video, std::slice::from_ref(&long)),
        PacketizerError::NalTooLong(MAX_NAL_BYTES + 1)
    );
    let most = long.slice(..MAX_NAL_BYTES);
    assert_eq!(
        refused(&mut video, &[most.clone(), most, Bytes::from_static(PPS)]),
        PacketizerError::AccessUnitTooLong(MAX_ACCESS_UNIT_BYTES + PPS.len())
    );
    let many = vec![Bytes::from_static(PPS); MAX_NALS_PER_ACCESS_UNIT + 1];
    assert_eq!(refused(&mut video, &many), PacketizerError::TooManyNals);
    let cut = Bytes::from_static(&[0, 0, 0, 9, 0x65]);
    assert_eq!(
        split_length_prefixed_nals(&cut),
        Err(PacketizerError::TruncatedNal { length: 9, left: 1 })
    );
    assert_eq!(split_annex_b(&cut), Err(PacketizerError::NoStartCode(5)));
    assert!(Packetizer::new(Codec::Vp8).is_err());
}

#[test]
fn opus_is_unchanged_and_long_g711_is_split() {
    let frame = Bytes::from(vec![0xd5; 1700]);
    let parts = packetizer(Codec::Pcma).packetize_audio(&frame).expect("0.2 s");
    let shape: Vec<(u32, usize)> = parts.iter().map(|p| (p.timestamp_offset, p.bytes.len())).collect();
    assert_eq!(shape, [(0, 800), (800, 800), (1600, 100)]);
    let mut opus = packetizer(Codec::Opus);
    assert_eq!(opus.packetize_audio(&frame), Err(PacketizerError::OpusTooLong(1700)));
    let passed = opus.packetize_audio(&frame.slice(..300)).expect("a usual packet");
    assert_eq!((passed.len(), &passed[0].bytes), (1, &frame.slice(..300)));
}

#[test]
fn hostile_access_units_never_panic_and_come_out_within_bounds() {
    let seed = 0x6d69_6c6c;
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for (codec, corpus) in [(Codec::H264, h264_units()), (Codec::H265, h265_units())] {
        let mut packetizer = packetizer(codec);
        for _ in 0..2_000 {
            let mut stream = Vec::new();
            for nal in &corpus[rng.random_range(0..corpus.len())] {
                if rng.random_bool(0.2) {
                    continue;
                }
                stream.extend_from_slice(&[0, 0, 1]);
                stream.extend_from_slice(&nal[..rng.random_range(0..=nal.len())]);
            }
            for _ in 0..rng.random_range(0..8) {
                if let Some(index) = stream.len().checked_sub(1).map(|last| rng.random_range(0..=last)) {
                    stream[index] = rng.random();
                }
            }
            let stream = Bytes::from(stream);
            let _ = split_length_prefixed_nals(&stream);
            let Ok(unit) = split_annex_b(&stream) else { continue };
            let payloads = packetizer.packetize_video(&unit).expect("a small unit");
            assert!(
                payloads
                    .iter()
                    .all(|p| (1..=MAX_RTP_PAYLOAD_BYTES).contains(&p.bytes.len()))
            );
            assert_eq!(payloads.iter().filter(|p| p.marker).count(), payloads.len().min(1));
            let kept: Vec<Bytes> = unit
                .into_iter()
                .filter(|n| packetizer.nal_packetization(n) != NalPacketization::Dropped)
                .collect();
            let out = depacketize(codec, bytes(&payloads));
            assert!(out.ends_with(&kept), "only parameter sets are added, in front");
        }
    }
}
