//! Assembles the frames of an RTP stream that does not go through a ring, such as that of a camera.
//!
//! An access unit is what has one RTP timestamp, and its contents: the marker is a hint (see [`super::marker`]). Empty
//! packets, and payloads from which no decoder makes anything, are passed over and counted; they leave no gap.

use std::time::Instant;

use bytes::Bytes;

use super::codec::{PayloadFraming, PayloadInspector, classify_payload};
use super::decoding_order_numbers::remove_decoding_order_numbers;
use super::depacketizer::{Depacketizer, Frame};
use super::marker::{RtpMarkerCorrector, RtpPacketMetadata};
use super::nal_unit_separator::{NalUnitSeparator, SeparatedPacket};
use super::packet::Packet;
use super::payload_discard::PayloadDiscardCounts;
use super::rtp_packet::RtpPacket;
use super::timestamp_corrector::RtpTimestampCorrector;
use super::{Codec, CodecFormat, MediaKind};

/// Assembles the frames of one RTP stream.
pub struct FrameAssembler {
    codec: Codec,
    /// The payloads have decoding order numbers.
    has_decoding_order_numbers: bool,
    nal_unit_separator: NalUnitSeparator,
    payload_inspector: PayloadInspector,
    timestamp_corrector: RtpTimestampCorrector,
    marker_corrector: RtpMarkerCorrector<Packet>,
    depacketizer: Depacketizer,
    /// Sequence number of the newest packet.
    newest_seq: Option<u64>,
    /// Sequence number of the next packet for the depacketizer.
    next_seq: u64,
    discard_counts: PayloadDiscardCounts,
}

impl FrameAssembler {
    /// Creates an assembler with nothing received.
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            has_decoding_order_numbers: false,
            nal_unit_separator: NalUnitSeparator::new(codec),
            payload_inspector: PayloadInspector::new(codec),
            timestamp_corrector: RtpTimestampCorrector::new(codec),
            marker_corrector: RtpMarkerCorrector::new(codec),
            depacketizer: Depacketizer::new(codec.kind()),
            newest_seq: None,
            next_seq: 0,
            discard_counts: PayloadDiscardCounts::default(),
        }
    }

    /// After lost packets, drops only the frames that lack them: see [`Depacketizer::enable_continuing_after_gaps`].
    pub fn enable_continuing_after_gaps(&mut self) {
        self.depacketizer.enable_continuing_after_gaps();
    }

    /// The payloads have decoding order numbers, as their sender announced.
    pub fn expect_decoding_order_numbers(&mut self) {
        self.has_decoding_order_numbers = true;
    }

    /// Stores parameter sets that were signalled separately, such as in an SDP: NAL units without start code. They are put
    /// before key frames that lack them, until the stream sends others with the same IDs.
    pub fn store_out_of_band_parameter_sets(&mut self, parameter_sets: &[Bytes]) {
        self.payload_inspector.store_out_of_band_parameter_sets(parameter_sets);
    }

    /// Processes the next packet in sequence order; older packets are ignored. Appends complete frames to `out`.
    pub fn push_packet(&mut self, mut packet: RtpPacket, out: &mut Vec<Frame>) {
        let lost = match self.newest_seq {
            Some(newest) if packet.seq <= newest => return,
            Some(newest) => packet.seq - newest - 1,
            None => 0,
        };
        self.newest_seq = Some(packet.seq);
        if self.has_decoding_order_numbers {
            packet.payload = remove_decoding_order_numbers(self.codec, packet.payload);
        }
        let mut separated = Vec::new();
        self.nal_unit_separator
            .end_unit_before(&packet, lost > 0, &mut separated);
        self.assemble_separated_packets(separated, out);
        self.next_seq += lost;
        let mut separated = Vec::new();
        self.nal_unit_separator.push_packet(packet, &mut separated);
        self.assemble_separated_packets(separated, out);
    }

    fn assemble_separated_packets(&mut self, separated: Vec<SeparatedPacket>, out: &mut Vec<Frame>) {
        for SeparatedPacket { packet, nal_units } in separated {
            let payloads = if nal_units.is_empty() {
                vec![packet.payload.clone()]
            } else {
                nal_units
            };
            let mut parts = Vec::new();
            for payload in payloads {
                match classify_payload(self.codec, &payload) {
                    Ok(part) => parts.push((payload, part)),
                    Err(odd) => _ = self.discard_counts.count_discard(odd),
                }
            }
            let Some(framing) = parts.iter().map(|(_, part)| *part).reduce(PayloadFraming::merge) else {
                continue;
            };
            let received = RtpPacketMetadata {
                seq: packet.seq,
                time: packet.timestamp,
                marker: packet.marker,
                payload_framing: Some(framing),
                arrival: packet.arrival,
            };
            let time = self.timestamp_corrector.correct_packet_timestamp(&received);
            let last = parts.len() - 1;
            for (index, (payload, part)) in parts.into_iter().enumerate() {
                let received = RtpPacketMetadata {
                    time,
                    marker: packet.marker && index == last,
                    payload_framing: Some(part),
                    ..received
                };
                self.inspect_and_depacketize(received, part, payload, out);
            }
        }
    }

    /// `received` has the corrected time of the packet.
    fn inspect_and_depacketize(
        &mut self,
        received: RtpPacketMetadata,
        part: PayloadFraming,
        payload: Bytes,
        out: &mut Vec<Frame>,
    ) {
        let time = received.time;
        // The inspector only compares timestamps of frames: the low 32 bits are enough.
        let inspection = self.payload_inspector.inspect_rtp_payload(time as u32, &payload);
        let key_frame = self.codec.kind() == MediaKind::Video && inspection.identifies_key_frame;
        let missing = inspection
            .parameter_sets_to_insert
            .into_iter()
            .map(|set| (set, false, PayloadFraming::default()));
        for (payload, marker, part) in missing.chain([(payload, received.marker, part)]) {
            let track_packet = Packet {
                seq: self.next_seq,
                time,
                codec: self.codec,
                marker,
                identifies_key_frame: key_frame,
                arrival: received.arrival,
                payload,
            };
            self.next_seq += 1;
            let mark = RtpPacketMetadata {
                seq: track_packet.seq,
                marker,
                payload_framing: Some(part),
                ..received
            };
            self.correct_marker_and_depacketize(mark, track_packet, out);
        }
    }

    /// Completes a frame whose last packet arrived a while ago.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Frame>) {
        let mut released = Vec::new();
        self.marker_corrector.handle_timeout(now, &mut released);
        self.depacketize_with_corrected_markers(released, out);
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.marker_corrector.poll_timeout()
    }

    /// What follows has other sequence numbers and timestamps: the sender started again. The next frame is a key frame;
    /// parameter sets are kept.
    pub fn flush_and_restart_frame_assembly(&mut self, out: &mut Vec<Frame>) {
        let mut separated = Vec::new();
        self.nal_unit_separator.end_unit(true, &mut separated);
        self.assemble_separated_packets(separated, out);
        let mut released = Vec::new();
        self.marker_corrector
            .flush_on_seq_and_timestamp_discontinuity(&mut released);
        self.depacketize_with_corrected_markers(released, out);
        self.timestamp_corrector.on_seq_and_timestamp_discontinuity();
        self.payload_inspector.on_timestamp_discontinuity();
        self.depacketizer.reset();
        self.newest_seq = None;
    }

    /// Returns the corrected time of an RTP timestamp of the sender; `None` while these stand still.
    pub fn correct_source_timestamp(&self, timestamp: u64) -> Option<u64> {
        self.timestamp_corrector.correct_source_timestamp(timestamp)
    }

    /// Returns how many frames got the time of their arrival, because the timestamps of their sender stood still.
    pub fn arrival_timestamped_frame_count(&self) -> u64 {
        self.timestamp_corrector.arrival_timestamped_frame_count()
    }

    /// Returns the format from the parameter sets or the bitstream; `None` before the first.
    pub fn format(&self) -> Option<CodecFormat> {
        self.payload_inspector.format()
    }

    /// Returns width and height in pixels; `None` until they are known.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.payload_inspector.resolution()
    }

    /// Returns what was passed over so far.
    pub fn discard_counts(&self) -> PayloadDiscardCounts {
        let mut odd = self.discard_counts;
        odd.merge(self.nal_unit_separator.discard_counts());
        odd.merge(self.depacketizer.discard_counts());
        odd
    }

    fn correct_marker_and_depacketize(&mut self, mark: RtpPacketMetadata, packet: Packet, out: &mut Vec<Frame>) {
        if self.codec.kind() == MediaKind::Audio {
            self.depacketizer.push_packet(&packet, out);
            return;
        }
        let mut released = Vec::new();
        self.marker_corrector.push(mark, packet, &mut released);
        self.depacketize_with_corrected_markers(released, out);
    }

    fn depacketize_with_corrected_markers(&mut self, released: Vec<(Packet, bool)>, out: &mut Vec<Frame>) {
        for (packet, marker) in released {
            self.depacketizer.push_packet(&Packet { marker, ..packet }, out);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::packetizer::split_annex_b;
    use crate::media::payload_discard::PayloadDiscardReason;

    const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
    /// IDs 0 and 1, both of SPS 0.
    const PPS: [&[u8]; 2] = [&[0x68, 0xce, 0x3c, 0x80], &[0x68, 0x5f, 0x20]];
    const IDR: &[u8] = &[0x65, 0x88, 1];
    const NON_FIRST_IDR_SLICE: &[u8] = &[0x65, 0x42, 2];
    const P_SLICE: &[u8] = &[0x41, 0x9a, 3];

    struct TestCamera {
        assembler: FrameAssembler,
        start: Instant,
        seq: u64,
        frames: Vec<Frame>,
    }

    impl TestCamera {
        fn new(codec: Codec) -> Self {
            Self {
                assembler: FrameAssembler::new(codec),
                start: Instant::now(),
                seq: 0,
                frames: Vec::new(),
            }
        }

        fn send_packet(&mut self, time: u64, marker: bool, payload: &[u8]) {
            let packet = RtpPacket {
                seq: self.seq,
                timestamp: time,
                marker,
                arrival: self.start,
                payload: Bytes::copy_from_slice(payload),
            };
            self.assembler.push_packet(packet, &mut self.frames);
            self.seq += 1;
        }

        /// Timestamp and NAL units of the frames, the last one included.
        fn flush_and_take_frames(&mut self) -> Vec<(u64, Vec<Vec<u8>>)> {
            let late = self.start + super::super::marker::MARKER_HOLD_TIME;
            self.assembler.handle_timeout(late, &mut self.frames);
            let nals = |frame: &Frame| split_annex_b(&frame.bytes).expect("start codes");
            let frames = std::mem::take(&mut self.frames).into_iter();
            frames
                .map(|frame| (frame.time, nals(&frame).iter().map(|nal| nal.to_vec()).collect()))
                .collect()
        }
    }

    fn to_owned_nals(nals: &[&[u8]]) -> Vec<Vec<u8>> {
        nals.iter().map(|nal| nal.to_vec()).collect()
    }

    #[test]
    fn after_a_gap_only_the_damaged_frames_are_dropped_if_so_configured() {
        for (goes_on, wanted) in [(false, &[0, 1][..]), (true, &[0, 1, 3, 5])] {
            let mut camera = TestCamera::new(Codec::H264);
            if goes_on {
                camera.assembler.enable_continuing_after_gaps();
            }
            for nal in [SPS, PPS[0], IDR] {
                camera.send_packet(0, nal == IDR, nal);
            }
            camera.send_packet(1, true, P_SLICE);
            // Frame 2 lacks its end, frame 4 its start.
            camera.send_packet(2, false, P_SLICE);
            camera.seq += 1;
            camera.send_packet(3, true, P_SLICE);
            camera.seq += 1;
            camera.send_packet(4, true, &[0x7c, 0x41, 1]);
            camera.send_packet(5, true, P_SLICE);
            let times: Vec<u64> = camera.flush_and_take_frames().iter().map(|(time, _)| *time).collect();
            assert_eq!(times, wanted);
        }
    }

    #[test]
    fn frames_end_at_timestamp_change_not_marker() {
        for marker in [|_: usize| true, |_: usize| false, |last: usize| last == 3] {
            let mut camera = TestCamera::new(Codec::H264);
            for time in [0, 3_000, 6_000] {
                for (index, nal) in [SPS, PPS[0], IDR, NON_FIRST_IDR_SLICE].into_iter().enumerate() {
                    camera.send_packet(time, marker(index), nal);
                }
            }
            let whole = to_owned_nals(&[SPS, PPS[0], IDR, NON_FIRST_IDR_SLICE]);
            // Without any marker only the next frame ends the last one.
            let frames = camera.flush_and_take_frames();
            assert_eq!(frames[..2], [(0, whole.clone()), (3_000, whole)]);
        }
    }

    #[test]
    fn unusable_payloads_are_counted_and_cost_no_frame() {
        let odd: [(&[u8], PayloadDiscardReason); 8] = [
            (&[], PayloadDiscardReason::EmptyPayload),
            (&[0x00, 9], PayloadDiscardReason::UndefinedNalType),
            (&[0x1e, 9], PayloadDiscardReason::UndefinedNalType),
            (&[0x1f, 9], PayloadDiscardReason::UndefinedNalType),
            (&[0x19, 0, 0, 0, 2, 0x41, 9], PayloadDiscardReason::InterleavedMode),
            (&[0x1a, 0, 0, 9], PayloadDiscardReason::InterleavedMode),
            (&[0xe1, 0x9a, 9], PayloadDiscardReason::ForbiddenBit),
            (&[0x7c, 0x05, 9], PayloadDiscardReason::StrayFragment),
        ];
        for (payload, reason) in odd {
            let mut camera = TestCamera::new(Codec::H264);
            for (time, nals) in [(0, &[SPS, PPS[0], IDR][..]), (3_000, &[P_SLICE]), (6_000, &[P_SLICE])] {
                for (index, nal) in nals.iter().enumerate() {
                    camera.send_packet(time, false, payload);
                    camera.send_packet(time, index + 1 == nals.len(), nal);
                }
            }
            let expected = [
                (0, to_owned_nals(&[SPS, PPS[0], IDR])),
                (3_000, to_owned_nals(&[P_SLICE])),
                (6_000, to_owned_nals(&[P_SLICE])),
            ];
            assert_eq!(camera.flush_and_take_frames(), expected, "{payload:x?}");
            assert_eq!(
                camera.assembler.discard_counts().discard_count_of_reason(reason),
                5,
                "{payload:x?}"
            );
        }
    }

    /// What senders of H.264 and H.265 do wrong, or seldom, and decoders make whole frames of.
    #[test]
    fn odd_units_and_fragments_make_whole_frames() {
        type PayloadsAndUnits<'a> = (Codec, &'a [&'a [u8]], &'a [&'a [u8]]);
        const HEVC_P_SLICE: &[u8] = &[0x02, 0x01, 0xd0, 3, 4, 5];
        let sized = |nal: &[u8]| [&(nal.len() as u16).to_be_bytes()[..], nal].concat();
        let stap = [&[0x78][..], &sized(&[]), &sized(P_SLICE), &sized(&[])].concat();
        let cases: [PayloadsAndUnits<'_>; 6] = [
            // Units of no length in an aggregation packet.
            (Codec::H264, &[&stap], &[P_SLICE]),
            // One fragment that is the whole unit.
            (Codec::H264, &[&[0x5c, 0xc1, 0x9a, 3]], &[P_SLICE]),
            // Fragments with another type than the first, and without an end.
            (
                Codec::H264,
                &[&[0x5c, 0x81, 0x9a], &[0x5c, 0x05, 3], &[0x5c, 0x47, 4]],
                &[&[0x41, 0x9a, 3, 4]],
            ),
            (Codec::H264, &[&[0x5c, 0x81, 0x9a], &[0x5c, 0x01, 3]], &[P_SLICE]),
            (
                Codec::H265,
                &[&[0x62, 1, 0x81, 0xd0, 3], &[0x62, 1, 0x13, 4], &[0x62, 1, 0x41, 5]],
                &[HEVC_P_SLICE],
            ),
            // Filler data and messages behind the picture.
            (
                Codec::H264,
                &[P_SLICE, &[0x0c, 0xff, 0xff, 0x80]],
                &[P_SLICE, &[0x0c, 0xff, 0xff, 0x80]],
            ),
        ];
        for (codec, payloads, wanted) in cases {
            let mut camera = TestCamera::new(codec);
            camera.assembler.enable_continuing_after_gaps();
            let key: Vec<&[u8]> = match codec {
                Codec::H264 => vec![SPS, PPS[0], IDR],
                _ => vec![
                    &[0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x01],
                    &[
                        0x42, 0x01, 0x01, 0x01, 0x60, 0, 0x03, 0, 0x90, 0, 0x03, 0, 0, 0x03, 0, 0x5d, 0xa0, 0x05, 0x02,
                        0x01, 0x71, 0xf2, 0xe5, 0xb2,
                    ],
                    &[0x44, 0x01, 0xc1, 0x72, 0xb4, 0x62, 0x40],
                    &[0x26, 0x01, 0xaf, 2, 3, 4, 5, 6],
                ],
            };
            for (index, nal) in key.iter().enumerate() {
                camera.send_packet(0, index + 1 == key.len(), nal);
            }
            for time in [3_000, 6_000, 9_000] {
                for (index, payload) in payloads.iter().enumerate() {
                    camera.send_packet(time, index + 1 == payloads.len(), payload);
                }
            }
            let frames = camera.flush_and_take_frames();
            let times: Vec<u64> = frames.iter().map(|frame| frame.0).collect();
            assert_eq!(times, [0, 3_000, 6_000, 9_000], "{payloads:x?}");
            assert_eq!(frames[2].1, to_owned_nals(wanted), "{payloads:x?}");
        }
    }

    /// `packetization-mode=2`: units in STAP-B, FU-B and FU-A, sent in decoding order.
    #[test]
    fn announced_decoding_order_numbers_are_passed_over() {
        let mut camera = TestCamera::new(Codec::H264);
        camera.assembler.expect_decoding_order_numbers();
        let sized = |nal: &[u8]| [&(nal.len() as u16).to_be_bytes()[..], nal].concat();
        let mut sets = vec![0x79, 0, 1];
        [SPS, PPS[0]].iter().for_each(|nal| sets.extend(sized(nal)));
        camera.send_packet(0, false, &sets);
        camera.send_packet(0, false, &[0x7d, 0x85, 0, 3, 0x88]);
        camera.send_packet(0, true, &[0x7c, 0x45, 1]);
        camera.send_packet(3_000, true, &[&[0x59, 0, 4][..], &sized(P_SLICE)].concat());
        camera.send_packet(6_000, true, &[&[0x59, 0, 5][..], &sized(P_SLICE)].concat());
        let expected = [
            (0, to_owned_nals(&[SPS, PPS[0], IDR])),
            (3_000, to_owned_nals(&[P_SLICE])),
            (6_000, to_owned_nals(&[P_SLICE])),
        ];
        assert_eq!(camera.flush_and_take_frames(), expected);
        assert_eq!(camera.assembler.discard_counts().iter().count(), 0);
    }

    #[test]
    fn parameter_sets_of_every_id_are_kept_and_those_of_the_sdp_too() {
        let mut camera = TestCamera::new(Codec::H264);
        let seeds: Vec<Bytes> = [SPS, PPS[0], PPS[1]].map(Bytes::from_static).into();
        camera.assembler.store_out_of_band_parameter_sets(&seeds);
        assert!(camera.assembler.format().is_some() && camera.assembler.resolution().is_some());
        camera.send_packet(0, true, IDR);
        camera.send_packet(3_000, true, P_SLICE);
        camera.send_packet(6_000, false, PPS[1]);
        camera.send_packet(6_000, true, IDR);
        camera.send_packet(9_000, true, P_SLICE);
        let frames = camera.flush_and_take_frames();
        assert_eq!(frames[0], (0, to_owned_nals(&[SPS, PPS[0], PPS[1], IDR])));
        assert_eq!(frames[2], (6_000, to_owned_nals(&[PPS[1], SPS, PPS[0], PPS[1], IDR])));
    }

    #[test]
    fn parameter_sets_with_a_time_of_their_own_belong_to_the_next_frame() {
        let mut camera = TestCamera::new(Codec::H264);
        for time in [0, 6_000] {
            camera.send_packet(time, true, SPS);
            camera.send_packet(time, true, PPS[0]);
            camera.send_packet(time + 10, true, IDR);
            camera.send_packet(time + 3_000, true, P_SLICE);
        }
        let frames = camera.flush_and_take_frames();
        assert_eq!(
            frames.iter().map(|frame| frame.0).collect::<Vec<_>>(),
            [10, 3_000, 6_010, 9_000]
        );
        assert!(
            frames[0].1.starts_with(&to_owned_nals(&[SPS, PPS[0]])) && frames[0].1.ends_with(&to_owned_nals(&[IDR]))
        );
    }

    #[test]
    fn a_restart_keeps_the_parameter_sets() {
        let mut camera = TestCamera::new(Codec::H264);
        for nal in [SPS, PPS[0], IDR] {
            camera.send_packet(0, nal == IDR, nal);
        }
        camera.assembler.flush_and_restart_frame_assembly(&mut camera.frames);
        camera.seq = 7;
        camera.send_packet(900_000, true, P_SLICE);
        camera.send_packet(903_000, true, IDR);
        camera.send_packet(906_000, true, P_SLICE);
        let times: Vec<u64> = camera.flush_and_take_frames().iter().map(|frame| frame.0).collect();
        assert_eq!(times, [0, 903_000, 906_000]);
    }

    #[test]
    fn spatial_layers_of_vp9_become_a_superframe() {
        let mut camera = TestCamera::new(Codec::Vp9);
        // Profile 0 key frame of 322x182, then a layer that refers to it; one descriptor byte with L, then SID and TL0PICIDX.
        let key = [
            0xac, 1, 0, 0, 0x82, 0x49, 0x83, 0x42, 0x00, 0x14, 0x10, 0x0b, 0x56, 0x06,
        ];
        camera.send_packet(0, false, &key);
        camera.send_packet(0, true, &[0xac, 1, 0x02, 0, 0x86, 7, 7]);
        camera.send_packet(3_000, true, &[0xec, 2, 0, 1, 0x86, 1]);
        camera.send_packet(6_000, true, &[0xec, 3, 0, 1, 0x86, 1]);
        let late = camera.start + super::super::marker::MARKER_HOLD_TIME;
        camera.assembler.handle_timeout(late, &mut camera.frames);
        let bytes: Vec<&[u8]> = camera.frames.iter().map(|frame| &frame.bytes[..]).collect();
        let index = [0xd9, 10, 0, 0, 0, 3, 0, 0, 0, 0xd9];
        assert_eq!(bytes[0], [&key[4..], &[0x86, 7, 7], &index].concat());
        assert_eq!(bytes[1], [0x86, 1], "a single frame needs no index");
    }
}
