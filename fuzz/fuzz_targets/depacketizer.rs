//! RTP payloads of every codec: inspection, reassembly of frames, and packetization of what was reassembled.
//!
//! The first byte selects the codec; then RTP packets, each behind its length. A frame is not longer than its packets and
//! the start codes of their NAL units. A frame that is packetized again keeps its NAL units in order; inserted parameter
//! sets and payloads keep the limit of a packet.
#![no_main]

use bytes::Bytes;
use millstream_core::media::{
    Codec, MediaKind,
    codec::{MAX_RTP_PAYLOAD_BYTES, PayloadInspector},
    depacketizer::{Depacketizer, Frame},
    packet::Packet,
    packetizer::{MAX_ACCESS_UNIT_BYTES, Packetizer, split_annex_b},
    rtp::{ParsedRtpHeader, RtpTimestampUnwrapper, SeqUnwrapper},
};
use millstream_fuzz::{origin, packets};

const CODECS: [Codec; 10] = [
    Codec::H264,
    Codec::H265,
    Codec::Vp8,
    Codec::Vp9,
    Codec::Av1,
    Codec::Opus,
    Codec::Pcmu,
    Codec::Pcma,
    Codec::Aac,
    Codec::Jpeg,
];

/// An aggregated NAL unit has two bytes of length, and its start code four; AV1 adds a size to each OBU.
const GROWTH: usize = 8;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let codec = CODECS[usize::from(*first) % CODECS.len()];
    let mut inspector = PayloadInspector::new(codec);
    let mut depacketizer = Depacketizer::new(codec.kind());
    let (mut seqs, mut times) = (
        SeqUnwrapper::with_first_value_at_or_above(0),
        RtpTimestampUnwrapper::with_first_value_at_or_above(0),
    );
    let mut frames = Vec::new();
    for bytes in packets(rest) {
        let Ok(header) = ParsedRtpHeader::parse(bytes) else {
            continue;
        };
        let payload = Bytes::copy_from_slice(&bytes[header.payload_range()]);
        let inspection = inspector.inspect_rtp_payload(header.time, &payload);
        assert!(
            inspection
                .parameter_sets_to_insert
                .iter()
                .all(|set| !set.is_empty() && set.len() <= MAX_RTP_PAYLOAD_BYTES)
        );
        assert!(codec.kind() == MediaKind::Video || !inspection.identifies_key_frame);
        let packet = Packet {
            seq: seqs.extend(header.seq),
            time: times.extend(header.time),
            codec,
            marker: header.marker,
            identifies_key_frame: inspection.identifies_key_frame,
            arrival: origin(),
            payload,
        };
        depacketizer.push_packet(&packet, &mut frames);
    }
    let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
    assert!(bytes <= GROWTH * rest.len(), "{bytes} bytes of {}", rest.len());
    if let Some(frame) = frames.first() {
        assert!(frame.is_key_frame, "begins with a key frame");
    }
    for frame in &frames {
        assert!(!frame.bytes.is_empty() && frame.bytes.len() <= MAX_ACCESS_UNIT_BYTES * 2);
        if matches!(codec, Codec::H264 | Codec::H265) {
            check_round_trip(frame);
        }
    }
});

fn check_round_trip(frame: &Frame) {
    let nals = split_annex_b(&frame.bytes).expect("start codes");
    let mut packetizer = Packetizer::new(frame.codec).expect("a codec of frames");
    let Ok(payloads) = packetizer.packetize_video(&nals) else {
        return;
    };
    let Some(last) = payloads.last() else { return };
    assert!(last.marker && payloads.iter().filter(|payload| payload.marker).count() == 1);
    let mut depacketizer = Depacketizer::new(MediaKind::Video);
    let mut frames = Vec::new();
    for (seq, payload) in (0..).zip(&payloads) {
        assert!(!payload.bytes.is_empty() && payload.bytes.len() <= MAX_RTP_PAYLOAD_BYTES);
        let packet = Packet {
            seq,
            time: 0,
            codec: frame.codec,
            marker: payload.marker,
            identifies_key_frame: true,
            arrival: origin(),
            payload: payload.bytes.clone(),
        };
        depacketizer.push_packet(&packet, &mut frames);
    }
    let [again] = frames.as_slice() else {
        panic!("{} frames of one", frames.len())
    };
    let again = split_annex_b(&again.bytes).expect("start codes");
    // What no receiver needs is left out; nothing is added, changed or moved.
    let mut rest = nals.iter();
    assert!(
        again.iter().all(|nal| rest.any(|original| original == nal)),
        "{nals:?} became {again:?}"
    );
}
