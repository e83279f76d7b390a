//! Reassembles frames from the packets of a track: H.264 (RFC 6184), H.265 (RFC 7798), VP8 (RFC 7741), single-layer VP9
//! (RFC 9628), AV1, and codecs with one packet per frame.
//!
//! A [`Depacketizer`] reads a track in sequence order, as stored in the ring. A frame with a gap is dropped together
//! with all frames that depend on it: the next output is a key frame. NAL units are output with start codes (Annex B),
//! as decoders and parsers expect.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::codec::av1::Assembler;
use super::codec::vp8::Vp8Descriptor;
use super::codec::vp9;
use super::packet::{Packet, TrackSeq, TrackTime};
use super::packetizer::MAX_ACCESS_UNIT;
use super::{Codec, Kind};

/// A complete frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub codec: Codec,
    pub time: TrackTime,
    /// Whether a decoder can start with it. True for all audio.
    pub key_frame: bool,
    /// Whether packets or frames are missing between the previous frame and this one.
    pub after_gap: bool,
    /// H.264 and H.265 with start codes, AV1 with a size field in each OBU; otherwise the payload of the packet.
    pub bytes: Bytes,
}

/// Reassembles the frames of one track.
#[derive(Debug)]
pub struct Depacketizer {
    kind: Kind,
    next: Option<TrackSeq>,
    unit: Option<Unit>,
    /// Video: frames are dropped until the next key frame.
    awaits_key_frame: bool,
    after_gap: bool,
}

#[derive(Debug)]
struct Unit {
    codec: Codec,
    time: TrackTime,
    key_frame: bool,
    broken: bool,
    /// Whether a fragmented NAL unit is incomplete.
    in_fragment: bool,
    av1: Assembler,
    bytes: BytesMut,
}

const START_CODE: [u8; 4] = [0, 0, 0, 1];

impl Depacketizer {
    /// Creates an empty depacketizer.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            next: None,
            unit: None,
            awaits_key_frame: kind == Kind::Video,
            after_gap: false,
        }
    }

    /// Processes the next packet in sequence order; older packets are ignored. Appends complete frames to `out`.
    pub fn push(&mut self, packet: &Packet, out: &mut Vec<Frame>) {
        if packet.codec.kind() != self.kind || self.next.is_some_and(|next| packet.seq < next) {
            return;
        }
        let gap = self.next.is_some_and(|next| packet.seq != next);
        self.next = Some(packet.seq + 1);
        if self
            .unit
            .as_ref()
            .is_some_and(|unit| (unit.time, unit.codec) != (packet.time, packet.codec))
        {
            // The marker bit was not set, or its packet is part of the gap.
            self.finish(gap, out);
        }
        if gap {
            self.after_gap = true;
            match &mut self.unit {
                Some(unit) => unit.broken = true,
                // The gap may contain the start of this frame.
                None => self.awaits_key_frame |= self.kind == Kind::Video,
            }
        }
        let unit = self.unit.get_or_insert_with(|| Unit {
            codec: packet.codec,
            time: packet.time,
            key_frame: false,
            broken: false,
            in_fragment: false,
            av1: Assembler::default(),
            bytes: BytesMut::new(),
        });
        unit.key_frame |= packet.key_frame;
        unit.take(&packet.payload);
        if packet.marker || !is_fragmented(packet.codec) {
            self.finish(false, out);
        }
    }

    /// Resets the state because the next packets do not continue the previous ones: a new source, or permanent loss.
    pub fn reset(&mut self) {
        *self = Self {
            after_gap: true,
            ..Self::new(self.kind)
        };
    }

    /// Sequence number of the next expected packet; `None` before the first.
    pub fn next(&self) -> Option<TrackSeq> {
        self.next
    }

    fn finish(&mut self, broken: bool, out: &mut Vec<Frame>) {
        let Some(unit) = self.unit.take() else { return };
        let key_frame = unit.key_frame || self.kind == Kind::Audio;
        if broken || unit.broken || unit.in_fragment || unit.bytes.is_empty() {
            self.awaits_key_frame |= self.kind == Kind::Video;
            self.after_gap = true;
        } else if !self.awaits_key_frame || key_frame {
            self.awaits_key_frame = false;
            out.push(Frame {
                codec: unit.codec,
                time: unit.time,
                key_frame,
                after_gap: std::mem::take(&mut self.after_gap),
                bytes: unit.bytes.freeze(),
            });
        }
    }
}

/// Whether a frame may span several packets and ends with the marker bit.
fn is_fragmented(codec: Codec) -> bool {
    matches!(codec, Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 | Codec::Av1)
}

impl Unit {
    fn take(&mut self, payload: &Bytes) {
        if self.bytes.len() + payload.len() > MAX_ACCESS_UNIT {
            self.broken = true;
        }
        if self.broken {
            return;
        }
        let whole = match self.codec {
            Codec::H264 => self.take_h264(payload),
            Codec::H265 => self.take_h265(payload),
            Codec::Av1 => {
                let mut obus = Vec::new();
                let taken = self.av1.take(payload, &mut obus);
                self.bytes.extend_from_slice(&obus);
                self.in_fragment = !self.av1.is_whole();
                taken
            }
            Codec::Vp8 => Vp8Descriptor::parse(payload).and_then(|descriptor| {
                self.bytes.extend_from_slice(payload.get(descriptor.len..)?);
                Some(())
            }),
            Codec::Vp9 => vp9::descriptor_len(payload).and_then(|length| {
                self.bytes.extend_from_slice(payload.get(length..)?);
                Some(())
            }),
            _ => {
                self.bytes.extend_from_slice(payload);
                Some(())
            }
        };
        self.broken |= whole.is_none();
    }

    /// RFC 6184 §5.6 to §5.8; `None` for an unsupported payload.
    fn take_h264(&mut self, payload: &[u8]) -> Option<()> {
        let (&first, rest) = payload.split_first()?;
        match first & 0x1f {
            1..=23 => self.nal(payload),
            24 => self.aggregate(rest)?,
            28 => {
                let (&header, body) = rest.split_first()?;
                let nal_header = [first & 0xe0 | header & 0x1f];
                self.fragment(header & 0x80 != 0, header & 0x40 != 0, &nal_header, body)?;
            }
            _ => return None,
        }
        Some(())
    }

    /// RFC 7798 §4.4.
    fn take_h265(&mut self, payload: &[u8]) -> Option<()> {
        let (&[first, second], rest) = payload.split_first_chunk::<2>()?;
        match first >> 1 & 0x3f {
            0..=47 => self.nal(payload),
            48 => self.aggregate(rest)?,
            49 => {
                let (&header, body) = rest.split_first()?;
                let nal_header = [first & 0x81 | (header & 0x3f) << 1, second];
                self.fragment(header & 0x80 != 0, header & 0x40 != 0, &nal_header, body)?;
            }
            _ => return None,
        }
        Some(())
    }

    fn nal(&mut self, nal: &[u8]) {
        self.bytes.put_slice(&START_CODE);
        self.bytes.put_slice(nal);
    }

    fn aggregate(&mut self, mut rest: &[u8]) -> Option<()> {
        while let Some((length, body)) = rest.split_first_chunk::<2>() {
            let (nal, after) = body.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            self.nal(nal);
            rest = after;
        }
        rest.is_empty().then_some(())
    }

    fn fragment(&mut self, starts: bool, ends: bool, nal_header: &[u8], body: &[u8]) -> Option<()> {
        if starts == self.in_fragment {
            return None;
        }
        if starts {
            self.nal(nal_header);
        }
        self.bytes.put_slice(body);
        self.in_fragment = !ends;
        Some(())
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::packetizer::{Packetizer, annex_b};
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
                    key_frame: payload.key_frame,
                    arrival: Instant::now(),
                    payload: payload.bytes,
                });
            }
        }
        packets
    }

    fn read(depacketizer: &mut Depacketizer, packets: &[Packet]) -> Vec<Frame> {
        let mut out = Vec::new();
        packets.iter().for_each(|packet| depacketizer.push(packet, &mut out));
        out
    }

    fn nals(frame: &Frame) -> Vec<Vec<u8>> {
        let nals = annex_b(&frame.bytes).expect("start codes");
        nals.iter().map(|nal| nal.to_vec()).collect()
    }

    #[test]
    fn packetized_frames_are_reassembled() {
        let (idr, p) = ([&[0x65][..], &[7; 5_000]].concat(), [&[0x41][..], &[9; 300]].concat());
        let packets = packets(Codec::H264, &[&[SPS, PPS, &idr], &[&p]]);
        assert!(packets.len() >= 7, "aggregated, fragmented and single");
        let frames = read(&mut Depacketizer::new(Kind::Video), &packets);
        assert_eq!(
            frames
                .iter()
                .map(|f| (f.time, f.key_frame, f.after_gap))
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
            .for_each(|p| p.key_frame = true);
        let frames = read(&mut Depacketizer::new(Kind::Video), &packets);
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
            let frames = read(&mut Depacketizer::new(Kind::Video), &left);
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
                    packets[0].key_frame = true;
                    packets[0].payload = payload.into();
                    read(&mut Depacketizer::new(Kind::Video), &packets);
                }
            }
        }
    }
}
