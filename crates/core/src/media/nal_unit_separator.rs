//! Separates NAL units that a sender put into one, with start codes between them. Some cameras send a key frame as one
//! NAL unit, `SPS 00000001 PPS 00000001 IDR`: by its type it has no picture data.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::Codec;
use super::codec::{classify_h264_nal, classify_h265_nal, iter_aggregated_nals};
use super::packetizer::{MAX_NAL_BYTES, find_start_code, split_annex_b};
use super::payload_discard::PayloadDiscardCounts;
use super::rtp_packet::RtpPacket;

/// Fragments of a NAL unit that are held at most, however small they are.
const MAX_HELD_FRAGMENTS: usize = 8_192;

/// Separates the NAL units of one RTP stream. Codecs without NAL units pass unchanged.
pub(super) struct NalUnitSeparator {
    codec: Codec,
    /// Fragments of a NAL unit without picture data, until its end.
    fragments: Vec<RtpPacket>,
    /// The NAL unit of the fragments, behind a start code.
    joined_fragments: BytesMut,
    discard_counts: PayloadDiscardCounts,
}

/// A packet, or several whose NAL units were separated.
pub(super) struct SeparatedPacket {
    pub(super) packet: RtpPacket,
    /// Payloads instead of that of the packet; empty if it has nothing to separate.
    pub(super) nal_units: Vec<Bytes>,
}

/// One fragment of a NAL unit (RFC 6184 §5.8, RFC 7798 §4.4.3).
struct NalFragment<'a> {
    is_first: bool,
    is_last: bool,
    is_slice: bool,
    nal_header: [u8; 2],
    nal_header_length: usize,
    body: &'a [u8],
}

const START_CODE: [u8; 3] = [0, 0, 1];

impl NalUnitSeparator {
    pub(super) fn new(codec: Codec) -> Self {
        Self {
            codec,
            fragments: Vec::new(),
            joined_fragments: BytesMut::new(),
            discard_counts: PayloadDiscardCounts::default(),
        }
    }

    pub(super) fn discard_counts(&self) -> &PayloadDiscardCounts {
        &self.discard_counts
    }

    /// Ends a NAL unit that `next` does not continue. `lost` says that packets are missing before that one.
    pub(super) fn end_unit_before(&mut self, next: &RtpPacket, lost: bool, out: &mut Vec<SeparatedPacket>) {
        let Some(last) = self.fragments.last() else { return };
        let continues = next.payload.is_empty()
            || NalFragment::parse(self.codec, &next.payload)
                .is_some_and(|fragment| !fragment.is_first || fragment.body.is_empty());
        if lost || last.timestamp != next.timestamp || !continues {
            self.end_unit(!lost, out);
        }
    }

    /// Ends the NAL unit of the fragments so far.
    pub(super) fn end_unit(&mut self, is_complete: bool, out: &mut Vec<SeparatedPacket>) {
        let joined = std::mem::take(&mut self.joined_fragments).freeze();
        let fragments = std::mem::take(&mut self.fragments);
        let has_embedded_units = is_complete && find_start_code(&joined, START_CODE.len()).is_some();
        let nal_units = if has_embedded_units {
            self.separate(&joined, 2)
        } else {
            None
        };
        match (nal_units, fragments.last()) {
            (Some(nal_units), Some(last)) => out.push(SeparatedPacket {
                packet: last.clone(),
                nal_units,
            }),
            _ => out.extend(fragments.into_iter().map(SeparatedPacket::unchanged)),
        }
    }

    /// Processes a packet, after [`Self::end_unit_before`].
    pub(super) fn push_packet(&mut self, packet: RtpPacket, out: &mut Vec<SeparatedPacket>) {
        if !matches!(self.codec, Codec::H264 | Codec::H265) {
            return out.push(SeparatedPacket::unchanged(packet));
        }
        let Some(fragment) = NalFragment::parse(self.codec, &packet.payload) else {
            let nal_units = self.join_units_with_start_codes(&packet.payload);
            let min_count = if starts_with_start_code(&packet.payload) { 1 } else { 2 };
            let nal_units = nal_units.and_then(|joined| self.separate(&joined, min_count));
            let nal_units = nal_units.unwrap_or_default();
            return out.push(SeparatedPacket { packet, nal_units });
        };
        let must_be_held = if fragment.is_first {
            !fragment.is_slice
        } else {
            !self.fragments.is_empty()
        };
        // An empty one is counted where packets are classified.
        if !must_be_held || fragment.body.is_empty() {
            if fragment.is_last {
                self.end_unit(true, out);
            }
            return out.push(SeparatedPacket::unchanged(packet));
        }
        if fragment.is_first {
            self.joined_fragments.put_slice(&START_CODE);
            let header = fragment.nal_header.get(..fragment.nal_header_length);
            self.joined_fragments.put_slice(header.unwrap_or_default());
        }
        self.joined_fragments.put_slice(fragment.body);
        let is_last = fragment.is_last;
        self.fragments.push(packet);
        let is_too_long = self.joined_fragments.len() > MAX_NAL_BYTES || self.fragments.len() >= MAX_HELD_FRAGMENTS;
        if is_last || is_too_long {
            self.end_unit(!is_too_long, out);
        }
    }

    /// Returns the NAL units of a payload that is no fragment, each behind a start code; `None` if there are none within
    /// a NAL unit without picture data.
    fn join_units_with_start_codes(&self, payload: &Bytes) -> Option<Bytes> {
        if starts_with_start_code(payload) {
            return Some(payload.clone());
        }
        let header_length = nal_header_length(self.codec);
        let (header, rest) = payload.split_at_checked(header_length)?;
        let (nal_type, aggregation_type) = match self.codec {
            Codec::H264 => (header.first()? & 0x1f, 24),
            _ => (header.first()? >> 1 & 0x3f, 48),
        };
        let nals: Vec<&[u8]> = if nal_type == aggregation_type {
            iter_aggregated_nals(rest).collect()
        } else {
            vec![payload]
        };
        let has_embedded_units = nals.iter().any(|nal| {
            let first = nal.first().copied().unwrap_or_default();
            starts_with_start_code(nal) || !is_slice_header(self.codec, first) && find_start_code(nal, 0).is_some()
        });
        has_embedded_units.then(|| {
            let mut joined = BytesMut::with_capacity(payload.len() + START_CODE.len() * nals.len());
            for nal in nals {
                joined.put_slice(&START_CODE);
                joined.put_slice(nal);
            }
            joined.freeze()
        })
    }

    /// Splits at start codes, and drops what is no NAL unit. Returns `None` if fewer are left than `min_count`: bytes of one NAL
    /// unit may look like a start code where an encoder does not escape them.
    fn separate(&mut self, joined: &Bytes, min_count: usize) -> Option<Vec<Bytes>> {
        let mut nals = split_annex_b(joined).ok()?;
        nals.retain(|nal| {
            let valid = match self.codec {
                Codec::H264 => classify_h264_nal(nal),
                _ => classify_h265_nal(nal),
            };
            if let Err(reason) = valid {
                self.discard_counts.count_discard(reason);
            }
            valid.is_ok()
        });
        (nals.len() >= min_count).then_some(nals)
    }
}

impl SeparatedPacket {
    fn unchanged(packet: RtpPacket) -> Self {
        Self {
            packet,
            nal_units: Vec::new(),
        }
    }
}

impl<'a> NalFragment<'a> {
    fn parse(codec: Codec, payload: &'a [u8]) -> Option<Self> {
        let (nal_header, fu, body) = match (codec, payload) {
            (Codec::H264, &[header, fu, ref body @ ..]) if header & 0x9f == 28 => {
                ([header & 0xe0 | fu & 0x1f, 0], fu, body)
            }
            (Codec::H265, &[header, second, fu, ref body @ ..]) if header >> 1 == 49 => {
                ([header & 0x81 | (fu & 0x3f) << 1, second], fu, body)
            }
            _ => return None,
        };
        Some(Self {
            is_first: fu & 0x80 != 0,
            is_last: fu & 0x40 != 0,
            is_slice: is_slice_header(codec, nal_header[0]),
            nal_header,
            nal_header_length: nal_header_length(codec),
            body,
        })
    }
}

fn nal_header_length(codec: Codec) -> usize {
    if codec == Codec::H264 { 1 } else { 2 }
}

/// Whether a NAL unit with this first byte has picture data.
fn is_slice_header(codec: Codec, first: u8) -> bool {
    match codec {
        Codec::H264 => matches!(first & 0x1f, 1..=5 | 19..=21),
        _ => first >> 1 & 0x3f < 32,
    }
}

fn starts_with_start_code(bytes: &[u8]) -> bool {
    bytes.starts_with(&START_CODE) || bytes.starts_with(&[0, 0, 0, 1])
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::depacketizer::Frame;
    use crate::media::frame_assembler::FrameAssembler;
    use std::time::Instant;

    const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
    const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
    const IDR: &[u8] = &[0x65, 0x88, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    const P_SLICE: &[u8] = &[0x41, 0x9a, 3];
    const HEVC_VPS: &[u8] = &[0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x01];
    const HEVC_IDR: &[u8] = &[0x26, 0x01, 0xaf, 2, 3, 4, 5, 6, 7, 8, 9];
    const HEVC_P_SLICE: &[u8] = &[0x02, 0x01, 0xd0, 3];

    fn behind_start_codes(nals: &[&[u8]]) -> Vec<u8> {
        nals.join(&[0, 0, 0, 1][..])
    }

    fn fragments(codec: Codec, nal: &[u8]) -> Vec<Vec<u8>> {
        let (header, nal_type) = match codec {
            Codec::H264 => (vec![nal[0] & 0xe0 | 28], nal[0] & 0x1f),
            _ => (vec![nal[0] & 0x81 | 49 << 1, nal[1]], nal[0] >> 1 & 0x3f),
        };
        let chunks: Vec<&[u8]> = nal[header.len()..].chunks(5).collect();
        let last = chunks.len() - 1;
        let payload = |(index, chunk): (usize, &&[u8])| {
            let fu = nal_type | u8::from(index == 0) << 7 | u8::from(index == last) << 6;
            [&header[..], &[fu], chunk].concat()
        };
        chunks.iter().enumerate().map(payload).collect()
    }

    /// Sends frames of these payloads; `lost` is a packet that does not arrive.
    fn assemble(codec: Codec, frames: &[Vec<Vec<u8>>], lost: Option<u64>) -> Vec<(u64, bool, Vec<Vec<u8>>)> {
        let mut assembler = FrameAssembler::new(codec);
        assembler.enable_continuing_after_gaps();
        let (mut seq, mut out, start) = (0, Vec::new(), Instant::now());
        for (time, payloads) in (0..).zip(frames) {
            for (index, payload) in payloads.iter().enumerate() {
                let packet = RtpPacket {
                    seq,
                    timestamp: time * 3_000,
                    marker: index + 1 == payloads.len(),
                    arrival: start,
                    payload: Bytes::copy_from_slice(payload),
                };
                if lost != Some(seq) {
                    assembler.push_packet(packet, &mut out);
                }
                seq += 1;
            }
        }
        assembler.handle_timeout(start + super::super::marker::MARKER_HOLD_TIME, &mut out);
        let nals = |frame: &Frame| split_annex_b(&frame.bytes).expect("start codes");
        out.iter()
            .map(|frame| {
                let nals = nals(frame).iter().map(|nal| nal.to_vec()).collect();
                (frame.time, frame.is_key_frame, nals)
            })
            .collect()
    }

    fn owned(nals: &[&[u8]]) -> Vec<Vec<u8>> {
        nals.iter().map(|nal| nal.to_vec()).collect()
    }

    #[test]
    fn a_key_frame_within_a_parameter_set_is_found() {
        let joined = behind_start_codes(&[SPS, PPS, IDR]);
        let mut without_end = fragments(Codec::H264, &joined);
        if let Some(fu) = without_end.last_mut() {
            fu[1] &= !0x40;
        }
        let mut with_empty_fragments = fragments(Codec::H264, &joined);
        with_empty_fragments.insert(2, vec![0x7c, 0x07]);
        with_empty_fragments.insert(2, Vec::new());
        let stap = |nals: &[&[u8]]| {
            let sized = nals
                .iter()
                .map(|nal| [&(nal.len() as u16).to_be_bytes()[..], nal].concat());
            [vec![0x78], sized.collect::<Vec<_>>().concat()].concat()
        };
        for key in [
            fragments(Codec::H264, &joined),
            without_end,
            vec![joined.clone()],
            vec![stap(&[&joined])],
            vec![stap(&[SPS, &behind_start_codes(&[PPS, IDR])])],
            vec![behind_start_codes(&[&[], SPS, PPS, IDR])],
            vec![
                [&[0, 0, 1], SPS].concat(),
                [&[0, 0, 0, 1], PPS].concat(),
                [&[0, 0, 1], IDR].concat(),
            ],
            vec![SPS.to_vec(), behind_start_codes(&[PPS, IDR])],
            with_empty_fragments,
        ] {
            let p = vec![P_SLICE.to_vec()];
            let frames = assemble(Codec::H264, &[p.clone(), key.clone(), p.clone(), key.clone(), p], None);
            let whole = owned(&[SPS, PPS, IDR]);
            let expected = [
                (3_000, true, whole.clone()),
                (6_000, false, owned(&[P_SLICE])),
                (9_000, true, whole),
                (12_000, false, owned(&[P_SLICE])),
            ];
            assert_eq!(frames, expected, "{key:x?}");
        }
    }

    #[test]
    fn a_delimiter_with_a_whole_frame_behind_it_is_no_prefix() {
        let frame = |nals: &[&[u8]]| vec![behind_start_codes(&[&[&[0x09, 0xf0][..]], nals].concat())];
        let frames = assemble(Codec::H264, &[frame(&[SPS, PPS, IDR]), frame(&[P_SLICE])], None);
        let times: Vec<(u64, bool)> = frames.iter().map(|(time, key, _)| (*time, *key)).collect();
        assert_eq!(times, [(0, true), (3_000, false)]);
    }

    #[test]
    fn h265_units_are_separated_too() {
        let joined = behind_start_codes(&[HEVC_VPS, HEVC_IDR]);
        for key in [fragments(Codec::H265, &joined), vec![joined.clone()]] {
            let p = vec![HEVC_P_SLICE.to_vec()];
            let frames = assemble(Codec::H265, &[key, p], None);
            let nals: Vec<_> = frames.iter().map(|(_, _, nals)| nals.clone()).collect();
            assert_eq!(
                nals,
                Vec::<Vec<Vec<u8>>>::new(),
                "no decoder starts without all three sets"
            );
            let sets: [&[u8]; 3] = [
                HEVC_VPS,
                &[
                    0x42, 0x01, 0x01, 0x01, 0x60, 0, 0x03, 0, 0x90, 0, 0x03, 0, 0, 0x03, 0, 0x5d, 0xa0, 0x05, 0x02,
                    0x01, 0x71, 0xf2, 0xe5, 0xb2,
                ],
                &[0x44, 0x01, 0xc1, 0x72, 0xb4, 0x62, 0x40],
            ];
            let joined = behind_start_codes(&[sets[0], sets[1], sets[2], HEVC_IDR]);
            let frames = assemble(
                Codec::H265,
                &[fragments(Codec::H265, &joined), vec![HEVC_P_SLICE.to_vec()]],
                None,
            );
            let expected = [
                (0, true, owned(&[sets[0], sets[1], sets[2], HEVC_IDR])),
                (3_000, false, owned(&[HEVC_P_SLICE])),
            ];
            assert_eq!(frames, expected);
        }
    }

    #[test]
    fn a_long_message_in_fragments_passes_unchanged() {
        let sei = [&[0x06, 5, 12][..], &[7; 12], &[0x80]].concat();
        let mut key = owned(&[SPS, PPS]);
        key.extend(fragments(Codec::H264, &sei));
        key.push(IDR.to_vec());
        let frames = assemble(Codec::H264, &[key, vec![P_SLICE.to_vec()]], None);
        assert_eq!(frames[0].2, owned(&[SPS, PPS, &sei, IDR]));
        assert_eq!(frames.len(), 2);
    }

    #[test]
    fn a_lost_fragment_costs_its_frame_and_no_more() {
        let key = fragments(Codec::H264, &behind_start_codes(&[SPS, PPS, IDR]));
        let p = vec![P_SLICE.to_vec()];
        let sent = [key.clone(), p.clone(), key.clone(), p];
        let second = key.len() as u64 + 1;
        for lost in second..second + key.len() as u64 {
            let times: Vec<u64> = assemble(Codec::H264, &sent, Some(lost))
                .iter()
                .map(|(time, ..)| *time)
                .collect();
            assert_eq!(times, [0, 3_000, 9_000], "without {lost}");
        }
    }

    #[test]
    fn held_fragments_are_bounded() {
        let mut separator = NalUnitSeparator::new(Codec::H264);
        let (mut out, start) = (Vec::new(), Instant::now());
        for seq in 0..200 {
            let mut payload = vec![7; 60_000];
            payload[..2].copy_from_slice(&[0x7c, if seq == 0 { 0x87 } else { 0x07 }]);
            let packet = RtpPacket {
                seq,
                timestamp: 0,
                marker: false,
                arrival: start,
                payload: payload.into(),
            };
            separator.end_unit_before(&packet, false, &mut out);
            separator.push_packet(packet, &mut out);
            assert!(separator.joined_fragments.len() <= MAX_NAL_BYTES);
        }
        assert_eq!(out.len(), 200, "unchanged");
        assert!(separator.fragments.is_empty());
    }

    #[test]
    fn held_fragments_of_one_byte_are_bounded() {
        let mut separator = NalUnitSeparator::new(Codec::H264);
        let mut out = Vec::new();
        for seq in 0..20_000 {
            let packet = RtpPacket {
                seq,
                timestamp: 0,
                marker: false,
                arrival: Instant::now(),
                payload: Bytes::copy_from_slice(&[0x7c, if seq == 0 { 0x87 } else { 0x07 }, 1]),
            };
            separator.push_packet(packet, &mut out);
            assert!(separator.fragments.len() < MAX_HELD_FRAGMENTS);
        }
        assert!(out.len() >= MAX_HELD_FRAGMENTS);
    }

    #[test]
    fn a_start_code_within_a_parameter_set_does_not_cut_it() {
        let mut separator = NalUnitSeparator::new(Codec::H264);
        let mut out = Vec::new();
        // Timing in an SPS whose encoder escapes nothing.
        let sps = [0x67, 0x42, 0xc0, 0x1f, 0, 0, 0, 1, 0, 0, 0, 0x32, 0x80];
        let packet = RtpPacket {
            seq: 0,
            timestamp: 0,
            marker: false,
            arrival: Instant::now(),
            payload: Bytes::copy_from_slice(&sps),
        };
        separator.push_packet(packet, &mut out);
        assert!(out.iter().all(|separated| separated.nal_units.is_empty()));
        assert_eq!(
            out.first().map(|separated| &separated.packet.payload[..]),
            Some(&sps[..])
        );
    }
}
