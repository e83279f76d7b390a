//! One access unit while its packets arrive.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::media::Codec;
use crate::media::codec::av1::Assembler;
use crate::media::codec::vp8::Vp8Descriptor;
use crate::media::codec::vp9::{self, Descriptor};
use crate::media::codec::{Part, h264_nal, h265_nal};
use crate::media::odd::{Odd, OddCounts};
use crate::media::packet::TrackTime;
use crate::media::packetizer::MAX_ACCESS_UNIT;

/// An access unit.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) codec: Codec,
    pub(super) time: TrackTime,
    pub(super) key_frame: bool,
    /// Packets are missing, or it is too long.
    pub(super) is_broken: bool,
    /// A fragmented NAL unit is incomplete.
    in_fragment: bool,
    /// H.264 and H.265: it has picture data.
    has_slice: bool,
    av1: Assembler,
    /// VP9: where the frame of each spatial layer starts.
    layers: Vec<usize>,
    bytes: BytesMut,
}

const START_CODE: [u8; 4] = [0, 0, 0, 1];

impl Unit {
    pub(super) fn new(codec: Codec, time: TrackTime) -> Self {
        Self {
            codec,
            time,
            key_frame: false,
            is_broken: false,
            in_fragment: false,
            has_slice: false,
            av1: Assembler::default(),
            layers: Vec::new(),
            bytes: BytesMut::new(),
        }
    }

    /// Bytes that it holds.
    pub(super) fn buffered(&self) -> usize {
        self.bytes.len() + self.av1.partial_len()
    }

    /// Adds the payload of the next packet.
    pub(super) fn take(&mut self, payload: &Bytes, odd: &mut OddCounts) {
        if self.buffered() + payload.len() > MAX_ACCESS_UNIT {
            self.is_broken = true;
            self.av1 = Assembler::default();
        }
        if self.is_broken {
            return;
        }
        let taken = match self.codec {
            Codec::H264 => self.take_h264(payload, odd),
            Codec::H265 => self.take_h265(payload, odd),
            Codec::Av1 => {
                let mut obus = Vec::new();
                let taken = self.av1.take(payload, &mut obus);
                self.bytes.extend_from_slice(&obus);
                taken
            }
            Codec::Vp8 => {
                let body = Vp8Descriptor::parse(payload).and_then(|descriptor| payload.get(descriptor.len..));
                self.take_body(body)
            }
            Codec::Vp9 => {
                let descriptor = Descriptor::parse(payload);
                if descriptor.as_ref().is_some_and(|descriptor| descriptor.starts_frame) {
                    self.layers.push(self.bytes.len());
                }
                self.take_body(descriptor.and_then(|descriptor| payload.get(descriptor.len..)))
            }
            Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac | Codec::Jpeg => self.take_body(Some(payload)),
        };
        if let Err(reason) = taken {
            odd.add(reason);
        }
    }

    /// Whether a decoder gets a picture, or sound, from it.
    pub(super) fn has_picture(&self) -> bool {
        match self.codec {
            Codec::H264 | Codec::H265 => self.has_slice,
            _ => !self.bytes.is_empty(),
        }
    }

    /// Returns its bytes as decoders expect them.
    pub(super) fn finish(&mut self, odd: &mut OddCounts) -> BytesMut {
        self.end_fragment(odd);
        if !self.av1.is_whole() {
            odd.add(Odd::StrayFragment);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        if self.codec == Codec::Vp9 {
            vp9::put_superframe_index(&self.layers, &mut bytes);
        }
        bytes
    }

    fn take_body(&mut self, body: Option<&[u8]>) -> Result<(), Odd> {
        let body = body.filter(|body| !body.is_empty()).ok_or(Odd::Truncated)?;
        self.bytes.extend_from_slice(body);
        Ok(())
    }

    /// RFC 6184 §5.6 to §5.8.
    fn take_h264(&mut self, payload: &[u8], odd: &mut OddCounts) -> Result<(), Odd> {
        let (&first, rest) = payload.split_first().ok_or(Odd::Empty)?;
        match first & 0x1f {
            24 => self.aggregate(rest, h264_nal, odd),
            25..=27 | 29 => Err(Odd::Interleaved),
            28 => {
                let (&header, body) = rest.split_first().ok_or(Odd::Truncated)?;
                let nal_header = [first & 0xe0 | header & 0x1f];
                self.fragment(header, &nal_header, body, h264_nal, odd)
            }
            _ => self.nal(payload, h264_nal, odd),
        }
    }

    /// RFC 7798 §4.4.
    fn take_h265(&mut self, payload: &[u8], odd: &mut OddCounts) -> Result<(), Odd> {
        let (&[first, second], rest) = payload.split_first_chunk::<2>().ok_or(Odd::Truncated)?;
        match first >> 1 & 0x3f {
            48 => self.aggregate(rest, h265_nal, odd),
            49 => {
                let (&header, body) = rest.split_first().ok_or(Odd::Truncated)?;
                let nal_header = [first & 0x81 | (header & 0x3f) << 1, second];
                self.fragment(header, &nal_header, body, h265_nal, odd)
            }
            _ => self.nal(payload, h265_nal, odd),
        }
    }

    fn nal(&mut self, nal: &[u8], part: fn(&[u8]) -> Result<Part, Odd>, odd: &mut OddCounts) -> Result<(), Odd> {
        let part = part(nal)?;
        self.end_fragment(odd);
        self.has_slice |= part.has_slice;
        self.bytes.put_slice(&START_CODE);
        self.bytes.put_slice(nal);
        Ok(())
    }

    /// Takes the sound NAL units of an aggregation packet.
    fn aggregate(
        &mut self,
        mut rest: &[u8],
        part: fn(&[u8]) -> Result<Part, Odd>,
        odd: &mut OddCounts,
    ) -> Result<(), Odd> {
        while let Some((length, body)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let (nal, after) = body.split_at_checked(length).ok_or(Odd::Truncated)?;
            if let Err(reason) = self.nal(nal, part, odd) {
                odd.add(reason);
            }
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(Odd::Truncated) }
    }

    /// The FU header of both codecs has the start and end flags in its two highest bits.
    fn fragment(
        &mut self,
        header: u8,
        nal_header: &[u8],
        body: &[u8],
        part: fn(&[u8]) -> Result<Part, Odd>,
        odd: &mut OddCounts,
    ) -> Result<(), Odd> {
        let (starts, ends) = (header & 0x80 != 0, header & 0x40 != 0);
        if starts {
            self.end_fragment(odd);
            self.nal(nal_header, part, odd)?;
        } else if !self.in_fragment {
            return Err(Odd::StrayFragment);
        }
        self.bytes.put_slice(body);
        self.in_fragment = !ends;
        Ok(())
    }

    /// Nothing is missing in the sequence, so the NAL unit ends here: its sender left the end flag out.
    fn end_fragment(&mut self, odd: &mut OddCounts) {
        if std::mem::take(&mut self.in_fragment) {
            odd.add(Odd::StrayFragment);
        }
    }
}
