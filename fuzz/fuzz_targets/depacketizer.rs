//! RTP payloads of every codec: inspection, reassembly of frames, and packetization of what was reassembled.
//!
//! The first byte selects the codec; then RTP packets, each behind its length. A frame is not longer than its packets and
//! the start codes of their NAL units. A frame that is packetized again keeps its NAL units in order; inserted parameter
//! sets and payloads keep the limit of a packet.
#![no_main]

use bytes::Bytes;
use millstream_core::media::{
    Codec, Kind,
    codec::{Inspector, MAX_PAYLOAD},
    depacketizer::{Depacketizer, Frame},
    packet::Packet,
    packetizer::{MAX_ACCESS_UNIT, Packetizer, annex_b},
    rtp::{Header, SeqUnwrapper, TimeUnwrapper},
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
    let mut inspector = Inspector::new(codec);
    let mut depacketizer = Depacketizer::new(codec.kind());
    let (mut seqs, mut times) = (SeqUnwrapper::starting_at(0), TimeUnwrapper::starting_at(0));
    let mut frames = Vec::new();
    for bytes in packets(rest) {
        let Ok(header) = Header::parse(bytes) else { continue };
        let payload = Bytes::copy_from_slice(&bytes[header.payload()]);
        let inspection = inspector.inspect(header.time, &payload);
        assert!(
            inspection
                .insert
                .iter()
                .all(|set| !set.is_empty() && set.len() <= MAX_PAYLOAD)
        );
        assert!(codec.kind() == Kind::Video || !inspection.key_frame);
        let packet = Packet {
            seq: seqs.extend(header.seq),
            time: times.extend(header.time),
            codec,
            marker: header.marker,
            key_frame: inspection.key_frame,
            arrival: origin(),
            payload,
        };
        depacketizer.push(&packet, &mut frames);
    }
    let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
    assert!(bytes <= GROWTH * rest.len(), "{bytes} bytes of {}", rest.len());
    if let Some(frame) = frames.first() {
        assert!(frame.key_frame, "begins with a key frame");
    }
    for frame in &frames {
        assert!(!frame.bytes.is_empty() && frame.bytes.len() <= MAX_ACCESS_UNIT * 2);
        if matches!(codec, Codec::H264 | Codec::H265) {
            check_round_trip(frame);
        }
    }
});

fn check_round_trip(frame: &Frame) {
    let nals = annex_b(&frame.bytes).expect("start codes");
    let mut packetizer = Packetizer::new(frame.codec).expect("a codec of frames");
    let Ok(payloads) = packetizer.packetize_video(&nals) else {
        return;
    };
    let Some(last) = payloads.last() else { return };
    assert!(last.marker && payloads.iter().filter(|payload| payload.marker).count() == 1);
    let mut depacketizer = Depacketizer::new(Kind::Video);
    let mut frames = Vec::new();
    for (seq, payload) in (0..).zip(&payloads) {
        assert!(!payload.bytes.is_empty() && payload.bytes.len() <= MAX_PAYLOAD);
        let packet = Packet {
            seq,
            time: 0,
            codec: frame.codec,
            marker: payload.marker,
            key_frame: true,
            arrival: origin(),
            payload: payload.bytes.clone(),
        };
        depacketizer.push(&packet, &mut frames);
    }
    let [again] = frames.as_slice() else {
        panic!("{} frames of one", frames.len())
    };
    let again = annex_b(&again.bytes).expect("start codes");
    // What no receiver needs is left out; nothing is added, changed or moved.
    let mut rest = nals.iter();
    assert!(
        again.iter().all(|nal| rest.any(|original| original == nal)),
        "{nals:?} became {again:?}"
    );
}
