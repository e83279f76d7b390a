//! Reassembly of packetized frames, with losses and odd payloads.

use super::*;
use crate::media::packetizer::{MAX_ACCESS_UNIT_BYTES, Packetizer, split_annex_b};
use std::time::Instant;

const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
const VPS: &[u8] = &[0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x01];

/// Packetizes frames of these NAL units as packets of a track.
fn packets(codec: Codec, frames: &[&[&[u8]]]) -> Vec<Packet> {
    let mut packetizer = Packetizer::new(codec).expect("a codec of frames");
    let mut packets = Vec::new();
    for (time, nals) in frames.iter().enumerate() {
        let nals: Vec<Bytes> = nals.iter().map(|nal| Bytes::copy_from_slice(nal)).collect();
        for payload in packetizer.packetize_video(&nals).expect("short") {
            packets.push(Packet {
                seq: 100 + packets.len() as u64,
                time: time as u64,
                codec,
                marker: payload.marker,
                identifies_key_frame: payload.identifies_key_frame,
                arrival: Instant::now(),
                payload: payload.bytes,
            });
        }
    }
    packets
}

fn read(depacketizer: &mut Depacketizer, packets: &[Packet]) -> Vec<Frame> {
    let mut out = Vec::new();
    packets
        .iter()
        .for_each(|packet| depacketizer.push_packet(packet, &mut out));
    out
}

fn nals(frame: &Frame) -> Vec<Vec<u8>> {
    let nals = split_annex_b(&frame.bytes).expect("start codes");
    nals.iter().map(|nal| nal.to_vec()).collect()
}

#[test]
fn packetized_frames_are_reassembled() {
    let (idr, p) = ([&[0x65][..], &[7; 5_000]].concat(), [&[0x41][..], &[9; 300]].concat());
    let packets = packets(Codec::H264, &[&[SPS, PPS, &idr], &[&p]]);
    assert!(packets.len() >= 7, "aggregated, fragmented and single");
    let frames = read(&mut Depacketizer::new(MediaKind::Video), &packets);
    assert_eq!(
        frames
            .iter()
            .map(|f| (f.time, f.is_key_frame, f.after_gap))
            .collect::<Vec<_>>(),
        [(0, true, false), (1, false, false)]
    );
    assert_eq!(nals(&frames[0]), [SPS.to_vec(), PPS.to_vec(), idr]);
    assert_eq!(nals(&frames[1]), [p]);
}

#[test]
fn h265_frames_are_reassembled() {
    let (idr, p) = (
        [&[0x26, 1][..], &[7; 5_000]].concat(),
        [&[0x02, 1][..], &[9; 300]].concat(),
    );
    let mut packets = packets(Codec::H265, &[&[VPS, &idr], &[&p]]);
    packets
        .iter_mut()
        .filter(|p| p.time == 0)
        .for_each(|p| p.identifies_key_frame = true);
    let frames = read(&mut Depacketizer::new(MediaKind::Video), &packets);
    assert_eq!(frames.len(), 2);
    assert_eq!(nals(&frames[0]), [VPS.to_vec(), idr]);
    assert_eq!(nals(&frames[1]), [p]);
}

#[test]
fn a_gap_costs_everything_up_to_the_next_key_frame() {
    let (idr, p) = ([&[0x65][..], &[7; 5_000]].concat(), [&[0x41][..], &[9; 3_000]].concat());
    let key: &[&[u8]] = &[SPS, PPS, &idr];
    let all = packets(Codec::H264, &[key, &[&p], &[&p], key, &[&p]]);
    for lost in all.iter().map(|p| p.seq) {
        let time = all.iter().find(|p| p.seq == lost).map(|p| p.time).expect("it is there");
        let is_parameter_sets = all.iter().any(|p| p.seq == lost && p.payload[0] & 0x1f == 24);
        let left: Vec<Packet> = packets(Codec::H264, &[key, &[&p], &[&p], key, &[&p]])
            .into_iter()
            .filter(|p| p.seq != lost)
            .collect();
        let frames = read(&mut Depacketizer::new(MediaKind::Video), &left);
        let times: Vec<u64> = frames.iter().map(|f| f.time).collect();
        // A loss before the first packet cannot be detected, but without parameter sets there is no key frame
        // either.
        let expected: &[u64] = match time {
            0 if lost == 100 => &times,
            0 => &[3, 4],
            1 => &[0, 3, 4],
            2 => &[0, 1, 3, 4],
            // The decoder has these parameter sets from the first key frame.
            3 if is_parameter_sets => &[0, 1, 2, 3, 4],
            3 => &[0, 1, 2],
            _ => &[0, 1, 2, 3],
        };
        assert_eq!(times, expected, "without {lost}");
        if (1..3).contains(&time) {
            assert!(frames.iter().any(|f| f.time == 3 && f.after_gap));
        }
    }
}

#[test]
fn no_payload_causes_a_panic() {
    for length in 0..6usize {
        for first in 0..=255u8 {
            for codec in [Codec::H264, Codec::H265, Codec::Jpeg] {
                let mut payload = vec![0xff; length];
                if let Some(byte) = payload.first_mut() {
                    *byte = first;
                }
                let mut packets = packets(Codec::H264, &[&[SPS]]);
                packets[0].codec = codec;
                packets[0].identifies_key_frame = true;
                packets[0].payload = payload.into();
                read(&mut Depacketizer::new(MediaKind::Video), &packets);
            }
        }
    }
}

#[test]
fn an_obu_without_end_has_a_bound() {
    let mut depacketizer = Depacketizer::new(MediaKind::Video);
    let mut packet = packets(Codec::H264, &[&[SPS]]).remove(0);
    (packet.codec, packet.identifies_key_frame, packet.marker) = (Codec::Av1, true, false);
    // Y in the first, Z and Y in all others, one element each: the OBU goes on.
    for aggregation in std::iter::once(0x50).chain(std::iter::repeat_n(0xd0, 2 * MAX_ACCESS_UNIT_BYTES / 60_000)) {
        let mut payload = vec![0x10; 60_000];
        payload[0] = aggregation;
        packet.payload = payload.into();
        depacketizer.push_packet(&packet, &mut Vec::new());
        packet.seq += 1;
    }
    let unit = depacketizer.access_unit.as_ref().expect("it goes on");
    assert!(
        unit.must_be_dropped && unit.buffered_len() <= MAX_ACCESS_UNIT_BYTES,
        "{}",
        unit.buffered_len()
    );
}

/// H.265: decoders refuse NAL units without a temporal ID, and `00 00` before `01` would even read as a start code.
#[test]
fn nal_units_without_a_temporal_id_are_passed_over() {
    let slice = [&[0x26, 0x01, 0x80][..], &[7; 60]].concat();
    let without_id: [&[u8]; 3] = [
        &[0x00, 0x00, 0x01, 0x42, 0x3a, 9],
        // An aggregation packet of two, and fragments of one.
        &[0x60, 0x01, 0, 3, 0x02, 0x00, 0x80, 0, 3, 0x02, 0xf8, 0x80],
        &[0x62, 0x00, 0xc1, 0x80, 9],
    ];
    let mut packets = packets(Codec::H265, &[&[VPS, &slice], &[&slice], &[&slice], &[&slice]]);
    for (packet, payload) in packets.iter_mut().rev().zip(without_id) {
        packet.payload = Bytes::copy_from_slice(payload);
    }
    packets[0].identifies_key_frame = true;
    let mut depacketizer = Depacketizer::new(MediaKind::Video);
    let frames = read(&mut depacketizer, &packets);
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!(nals(&frames[0]), [VPS.to_vec(), slice]);
    assert_eq!(
        depacketizer
            .discard_counts()
            .discard_count_of_reason(PayloadDiscardReason::ZeroTemporalId),
        4
    );
}
