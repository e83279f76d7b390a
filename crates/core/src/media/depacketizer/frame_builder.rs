//! One access unit while its packets arrive.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::media::Codec;
use crate::media::codec::av1::ObuAssembler;
use crate::media::codec::vp8::Vp8Descriptor;
use crate::media::codec::vp9::{self, Vp9Descriptor};
use crate::media::codec::{PayloadFraming, classify_h264_nal, classify_h265_nal};
use crate::media::packet::TrackTime;
use crate::media::packetizer::MAX_ACCESS_UNIT_BYTES;
use crate::media::payload_discard::{PayloadDiscardCounts, PayloadDiscardReason};

/// An access unit.
#[derive(Debug)]
pub(super) struct FrameBuilder {
    pub(super) codec: Codec,
    pub(super) time: TrackTime,
    pub(super) is_key_frame: bool,
    /// Packets are missing, or it is too long.
    pub(super) must_be_dropped: bool,
    /// A fragmented NAL unit is incomplete.
    in_fragment: bool,
    /// H.264 and H.265: it has picture data.
    has_slice: bool,
    av1_assembler: ObuAssembler,
    /// VP9: where the frame of each spatial layer starts.
    vp9_layer_starts: Vec<usize>,
    bytes: BytesMut,
}

const ANNEX_B_START_CODE: [u8; 4] = [0, 0, 0, 1];

impl FrameBuilder {
    pub(super) fn new(codec: Codec, time: TrackTime) -> Self {
        Self {
            codec,
            time,
            is_key_frame: false,
            must_be_dropped: false,
            in_fragment: false,
            has_slice: false,
            av1_assembler: ObuAssembler::default(),
            vp9_layer_starts: Vec::new(),
            bytes: BytesMut::new(),
        }
    }

    /// Bytes that it holds.
    pub(super) fn buffered_len(&self) -> usize {
        self.bytes.len() + self.av1_assembler.partial_obu_len()
    }

    /// Adds the payload of the next packet.
    pub(super) fn append_complete_obus(&mut self, payload: &Bytes, discards: &mut PayloadDiscardCounts) {
        if self.buffered_len() + payload.len() > MAX_ACCESS_UNIT_BYTES {
            self.must_be_dropped = true;
            self.av1_assembler = ObuAssembler::default();
        }
        if self.must_be_dropped {
            return;
        }
        let taken = match self.codec {
            Codec::H264 => self.push_h264(payload, discards),
            Codec::H265 => self.push_h265(payload, discards),
            Codec::Av1 => {
                let mut obus = Vec::new();
                let taken = self.av1_assembler.append_complete_obus(payload, &mut obus);
                self.bytes.extend_from_slice(&obus);
                taken
            }
            Codec::Vp8 => {
                let body =
                    Vp8Descriptor::parse(payload).and_then(|descriptor| payload.get(descriptor.descriptor_length..));
                self.append_non_nal_payload(body)
            }
            Codec::Vp9 => {
                let descriptor = Vp9Descriptor::parse(payload);
                if descriptor.as_ref().is_some_and(|descriptor| descriptor.starts_frame) {
                    self.vp9_layer_starts.push(self.bytes.len());
                }
                self.append_non_nal_payload(
                    descriptor.and_then(|descriptor| payload.get(descriptor.descriptor_length..)),
                )
            }
            Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac | Codec::Jpeg => {
                self.append_non_nal_payload(Some(payload))
            }
        };
        if let Err(reason) = taken {
            discards.count_discard(reason);
        }
    }

    /// Whether a decoder gets a frame, or audio, from it.
    pub(super) fn has_media_beyond_parameter_sets(&self) -> bool {
        match self.codec {
            Codec::H264 | Codec::H265 => self.has_slice,
            _ => !self.bytes.is_empty(),
        }
    }

    /// Returns its bytes as decoders expect them.
    pub(super) fn finish(&mut self, discards: &mut PayloadDiscardCounts) -> BytesMut {
        self.end_unfinished_fragment(discards);
        if !self.av1_assembler.is_last_obu_complete() {
            discards.count_discard(PayloadDiscardReason::StrayFragment);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        if self.codec == Codec::Vp9 {
            vp9::append_superframe_index(&self.vp9_layer_starts, &mut bytes);
        }
        bytes
    }

    fn append_non_nal_payload(&mut self, body: Option<&[u8]>) -> Result<(), PayloadDiscardReason> {
        let body = body
            .filter(|body| !body.is_empty())
            .ok_or(PayloadDiscardReason::TruncatedPayload)?;
        self.bytes.extend_from_slice(body);
        Ok(())
    }

    /// RFC 6184 §5.6 to §5.8.
    fn push_h264(&mut self, payload: &[u8], discards: &mut PayloadDiscardCounts) -> Result<(), PayloadDiscardReason> {
        let (&first, rest) = payload.split_first().ok_or(PayloadDiscardReason::EmptyPayload)?;
        match first & 0x1f {
            24 => self.push_aggregation_packet(rest, classify_h264_nal, discards),
            25..=27 | 29 => Err(PayloadDiscardReason::InterleavedMode),
            28 => {
                let (&header, body) = rest.split_first().ok_or(PayloadDiscardReason::TruncatedPayload)?;
                let nal_header = [first & 0xe0 | header & 0x1f];
                self.push_fragment(header, &nal_header, body, classify_h264_nal, discards)
            }
            _ => self.append_nal(payload, classify_h264_nal, discards),
        }
    }

    /// RFC 7798 §4.4.
    fn push_h265(&mut self, payload: &[u8], discards: &mut PayloadDiscardCounts) -> Result<(), PayloadDiscardReason> {
        let (&[first, second], rest) = payload
            .split_first_chunk::<2>()
            .ok_or(PayloadDiscardReason::TruncatedPayload)?;
        match first >> 1 & 0x3f {
            48 => self.push_aggregation_packet(rest, classify_h265_nal, discards),
            49 => {
                let (&header, body) = rest.split_first().ok_or(PayloadDiscardReason::TruncatedPayload)?;
                let nal_header = [first & 0x81 | (header & 0x3f) << 1, second];
                self.push_fragment(header, &nal_header, body, classify_h265_nal, discards)
            }
            _ => self.append_nal(payload, classify_h265_nal, discards),
        }
    }

    fn append_nal(
        &mut self,
        nal: &[u8],
        part: fn(&[u8]) -> Result<PayloadFraming, PayloadDiscardReason>,
        discards: &mut PayloadDiscardCounts,
    ) -> Result<(), PayloadDiscardReason> {
        let part = part(nal)?;
        self.end_unfinished_fragment(discards);
        self.has_slice |= part.has_slice;
        self.bytes.put_slice(&ANNEX_B_START_CODE);
        self.bytes.put_slice(nal);
        Ok(())
    }

    /// Takes the valid NAL units of an aggregation packet.
    fn push_aggregation_packet(
        &mut self,
        mut rest: &[u8],
        part: fn(&[u8]) -> Result<PayloadFraming, PayloadDiscardReason>,
        discards: &mut PayloadDiscardCounts,
    ) -> Result<(), PayloadDiscardReason> {
        while let Some((length, body)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let (nal, after) = body
                .split_at_checked(length)
                .ok_or(PayloadDiscardReason::TruncatedPayload)?;
            if let Err(reason) = self.append_nal(nal, part, discards) {
                discards.count_discard(reason);
            }
            rest = after;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(PayloadDiscardReason::TruncatedPayload)
        }
    }

    /// The FU header of both codecs has the start and end flags in its two highest bits.
    fn push_fragment(
        &mut self,
        header: u8,
        nal_header: &[u8],
        body: &[u8],
        part: fn(&[u8]) -> Result<PayloadFraming, PayloadDiscardReason>,
        discards: &mut PayloadDiscardCounts,
    ) -> Result<(), PayloadDiscardReason> {
        let (starts, ends) = (header & 0x80 != 0, header & 0x40 != 0);
        if starts {
            self.end_unfinished_fragment(discards);
            self.append_nal(nal_header, part, discards)?;
        } else if !self.in_fragment {
            return Err(PayloadDiscardReason::StrayFragment);
        }
        self.bytes.put_slice(body);
        self.in_fragment = !ends;
        Ok(())
    }

    /// Nothing is missing in the sequence, so the NAL unit ends here: its sender left the end flag out.
    fn end_unfinished_fragment(&mut self, discards: &mut PayloadDiscardCounts) {
        if std::mem::take(&mut self.in_fragment) {
            discards.count_discard(PayloadDiscardReason::StrayFragment);
        }
    }
}
