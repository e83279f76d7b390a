//! Reassembles frames from the packets of a track: H.264 (RFC 6184), H.265 (RFC 7798), VP8 (RFC 7741), VP9 (RFC 9628),
//! AV1, and codecs with one packet per frame.
//!
//! A [`Depacketizer`] reads a track in sequence order, as stored in the ring, where markers are right: see
//! [`super::marker`]. Packets that come from elsewhere go through a [`FrameAssembler`](super::assembler::FrameAssembler).
//! A frame with a gap is dropped together with all frames that depend on it: the next output is a key frame. Payloads
//! from which no decoder makes anything are passed over and counted, and break no frame. NAL units are output with start
//! codes (Annex B), as decoders and parsers expect.

use bytes::{Bytes, BytesMut};

use super::codec::part;
use super::odd::{Odd, OddCounts};
use super::packet::{Packet, TrackSeq, TrackTime};
use super::{Codec, Kind};
use unit::Unit;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests;
mod unit;

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
    /// After a gap, frames are not dropped until the next key frame.
    goes_on: bool,
    /// Codec and timestamp of the last frame that ended with its marker.
    ended: Option<(Codec, TrackTime)>,
    /// NAL units without picture data that had a timestamp of their own: they belong to the next frame.
    prefix: BytesMut,
    odd: OddCounts,
}

/// Maximum length of the NAL units before a frame in bytes.
const MAX_PREFIX: usize = 64 << 10;

impl Depacketizer {
    /// Creates an empty depacketizer.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            next: None,
            unit: None,
            awaits_key_frame: kind == Kind::Video,
            after_gap: false,
            goes_on: false,
            ended: None,
            prefix: BytesMut::new(),
            odd: OddCounts::default(),
        }
    }

    /// After a gap, drops only the frames that it damaged, as players do: those that depend on them may show errors. For
    /// sources that nobody can ask for packets or key frames.
    pub fn go_on_after_gaps(&mut self) {
        self.goes_on = true;
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
        let mut lacks_start = false;
        if gap {
            self.after_gap = true;
            match &mut self.unit {
                Some(unit) => unit.is_broken = true,
                None if self.goes_on => {
                    let part = part(packet.codec, &packet.payload);
                    lacks_start = part.is_ok_and(|part| part.has_slice && !part.starts_picture);
                }
                // The gap may contain the start of this frame.
                None => self.awaits_key_frame |= self.kind == Kind::Video,
            }
        }
        if packet.payload.is_empty() {
            self.odd.add(Odd::Empty);
            return;
        }
        if self.unit.is_none() && self.is_after_end(packet) {
            self.odd.add(Odd::AfterFrame);
            return;
        }
        let unit = self.unit.get_or_insert_with(|| Unit::new(packet.codec, packet.time));
        unit.is_broken |= lacks_start;
        unit.key_frame |= packet.key_frame;
        unit.take(&packet.payload, &mut self.odd);
        if packet.marker || !is_fragmented(packet.codec) {
            self.ended = Some((packet.codec, packet.time));
            self.finish(false, out);
        }
    }

    /// Whether a packet is the rest of a frame that ended with its marker already.
    fn is_after_end(&self, packet: &Packet) -> bool {
        let has_known_start = matches!(packet.codec, Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9);
        has_known_start
            && self.ended == Some((packet.codec, packet.time))
            && part(packet.codec, &packet.payload).is_ok_and(|part| part.has_slice && !part.starts_picture)
    }

    /// Resets the state because the next packets do not continue the previous ones: a new source, or permanent loss.
    pub fn reset(&mut self) {
        *self = Self {
            after_gap: true,
            odd: self.odd,
            goes_on: self.goes_on,
            ..Self::new(self.kind)
        };
    }

    /// Returns what was passed over so far.
    pub fn odd(&self) -> &OddCounts {
        &self.odd
    }

    /// Sequence number of the next expected packet; `None` before the first.
    pub fn next(&self) -> Option<TrackSeq> {
        self.next
    }

    fn finish(&mut self, broken: bool, out: &mut Vec<Frame>) {
        let Some(mut unit) = self.unit.take() else { return };
        let key_frame = unit.key_frame || self.kind == Kind::Audio;
        if broken || unit.is_broken {
            self.prefix.clear();
            self.awaits_key_frame |= self.kind == Kind::Video && !self.goes_on;
            self.after_gap = true;
            return;
        }
        let (codec, time) = (unit.codec, unit.time);
        let has_picture = unit.has_picture();
        let mut bytes = unit.finish(&mut self.odd);
        if !self.prefix.is_empty() {
            self.prefix.extend_from_slice(&bytes);
            bytes = std::mem::take(&mut self.prefix);
        }
        if !has_picture {
            if bytes.len() <= MAX_PREFIX {
                self.prefix = bytes;
            }
        } else if !self.awaits_key_frame || key_frame {
            self.awaits_key_frame = false;
            out.push(Frame {
                codec,
                time,
                key_frame,
                after_gap: std::mem::take(&mut self.after_gap),
                bytes: bytes.freeze(),
            });
        }
    }
}

/// Whether a frame may span several packets and ends with the marker bit.
fn is_fragmented(codec: Codec) -> bool {
    matches!(codec, Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 | Codec::Av1)
}
