//! Reassembles frames from the packets of a track: H.264 (RFC 6184), H.265 (RFC 7798), VP8 (RFC 7741), VP9 (RFC 9628),
//! AV1, and codecs with one packet per frame.
//!
//! A [`Depacketizer`] reads a track in sequence order, as stored in the ring, where markers are right: see
//! [`super::marker`]. Packets that come from elsewhere go through a [`FrameAssembler`](super::frame_assembler::FrameAssembler).
//! A frame with a gap is dropped together with all frames that depend on it: the next output is a key frame. Payloads
//! from which no decoder makes anything are passed over and counted, and break no frame. NAL units are output with start
//! codes (Annex B), as decoders and parsers expect.

use bytes::{Bytes, BytesMut};

use super::codec::classify_payload;
use super::packet::{Packet, TrackSeq, TrackTime};
use super::payload_discard::{PayloadDiscardCounts, PayloadDiscardReason};
use super::{Codec, MediaKind};
use frame_builder::FrameBuilder;

mod frame_builder;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests;

/// A complete frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub codec: Codec,
    pub time: TrackTime,
    /// Whether a decoder can start with it. True for all audio.
    pub is_key_frame: bool,
    /// Whether packets or frames are missing between the previous frame and this one.
    pub after_gap: bool,
    /// H.264 and H.265 with start codes, AV1 with a size field in each OBU; otherwise the payload of the packet.
    pub bytes: Bytes,
}

/// Reassembles the frames of one track.
#[derive(Debug)]
pub struct Depacketizer {
    kind: MediaKind,
    next_seq: Option<TrackSeq>,
    access_unit: Option<FrameBuilder>,
    /// Video: frames are dropped until the next key frame.
    awaits_key_frame: bool,
    after_gap: bool,
    /// After a gap, frames are not dropped until the next key frame.
    continues_after_gaps: bool,
    /// Codec and timestamp of the last frame that ended with its marker.
    last_ended_frame: Option<(Codec, TrackTime)>,
    /// NAL units without picture data that had a timestamp of their own: they belong to the next frame.
    next_frame_prefix: BytesMut,
    discard_counts: PayloadDiscardCounts,
}

/// Maximum length of the NAL units before a frame in bytes.
const MAX_PRE_FRAME_NAL_BYTES: usize = 64 << 10;

impl Depacketizer {
    /// Creates an empty depacketizer.
    pub fn new(kind: MediaKind) -> Self {
        Self {
            kind,
            next_seq: None,
            access_unit: None,
            awaits_key_frame: kind == MediaKind::Video,
            after_gap: false,
            continues_after_gaps: false,
            last_ended_frame: None,
            next_frame_prefix: BytesMut::new(),
            discard_counts: PayloadDiscardCounts::default(),
        }
    }

    /// After a gap, drops only the frames that it damaged, as players do: those that depend on them may show errors. For
    /// sources that nobody can ask for packets or key frames.
    pub fn enable_continuing_after_gaps(&mut self) {
        self.continues_after_gaps = true;
    }

    /// Processes the next packet in sequence order; older packets are ignored. Appends complete frames to `out`.
    pub fn push_packet(&mut self, packet: &Packet, out: &mut Vec<Frame>) {
        if packet.codec.kind() != self.kind || self.next_seq.is_some_and(|next| packet.seq < next) {
            return;
        }
        let gap = self.next_seq.is_some_and(|next| packet.seq != next);
        self.next_seq = Some(packet.seq + 1);
        if self
            .access_unit
            .as_ref()
            .is_some_and(|unit| (unit.time, unit.codec) != (packet.time, packet.codec))
        {
            // The marker bit was not set, or its packet is part of the gap.
            self.finish_or_drop_frame(gap, out);
        }
        let mut lacks_start = false;
        if gap {
            self.after_gap = true;
            match &mut self.access_unit {
                Some(unit) => unit.must_be_dropped = true,
                None if self.continues_after_gaps => {
                    let part = classify_payload(packet.codec, &packet.payload);
                    lacks_start = part.is_ok_and(|part| part.has_slice && !part.starts_picture);
                }
                // The gap may contain the start of this frame.
                None => self.awaits_key_frame |= self.kind == MediaKind::Video,
            }
        }
        if packet.payload.is_empty() {
            self.discard_counts.count_discard(PayloadDiscardReason::EmptyPayload);
            return;
        }
        if self.access_unit.is_none() && self.is_rest_of_ended_frame(packet) {
            self.discard_counts.count_discard(PayloadDiscardReason::AfterFrameEnd);
            return;
        }
        let unit = self
            .access_unit
            .get_or_insert_with(|| FrameBuilder::new(packet.codec, packet.time));
        unit.must_be_dropped |= lacks_start;
        unit.is_key_frame |= packet.identifies_key_frame;
        unit.append_complete_obus(&packet.payload, &mut self.discard_counts);
        if packet.marker || !may_frame_span_packets(packet.codec) {
            self.last_ended_frame = Some((packet.codec, packet.time));
            self.finish_or_drop_frame(false, out);
        }
    }

    /// Whether a packet is the rest of a frame that ended with its marker already.
    fn is_rest_of_ended_frame(&self, packet: &Packet) -> bool {
        let has_known_start = matches!(packet.codec, Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9);
        has_known_start
            && self.last_ended_frame == Some((packet.codec, packet.time))
            && classify_payload(packet.codec, &packet.payload).is_ok_and(|part| part.has_slice && !part.starts_picture)
    }

    /// Resets the state because the next packets do not continue the previous ones: a new source, or permanent loss.
    pub fn reset(&mut self) {
        *self = Self {
            after_gap: true,
            discard_counts: self.discard_counts,
            continues_after_gaps: self.continues_after_gaps,
            ..Self::new(self.kind)
        };
    }

    /// Returns what was passed over so far.
    pub fn discard_counts(&self) -> &PayloadDiscardCounts {
        &self.discard_counts
    }

    /// Sequence number of the next expected packet; `None` before the first.
    pub fn next_expected_seq(&self) -> Option<TrackSeq> {
        self.next_seq
    }

    fn finish_or_drop_frame(&mut self, broken: bool, out: &mut Vec<Frame>) {
        let Some(mut unit) = self.access_unit.take() else {
            return;
        };
        let key_frame = unit.is_key_frame || self.kind == MediaKind::Audio;
        if broken || unit.must_be_dropped {
            self.next_frame_prefix.clear();
            self.awaits_key_frame |= self.kind == MediaKind::Video && !self.continues_after_gaps;
            self.after_gap = true;
            return;
        }
        let (codec, time) = (unit.codec, unit.time);
        let has_picture = unit.has_media_beyond_parameter_sets();
        let mut bytes = unit.finish(&mut self.discard_counts);
        if !self.next_frame_prefix.is_empty() {
            self.next_frame_prefix.extend_from_slice(&bytes);
            bytes = std::mem::take(&mut self.next_frame_prefix);
        }
        if !has_picture {
            if bytes.len() <= MAX_PRE_FRAME_NAL_BYTES {
                self.next_frame_prefix = bytes;
            }
        } else if !self.awaits_key_frame || key_frame {
            self.awaits_key_frame = false;
            out.push(Frame {
                codec,
                time,
                is_key_frame: key_frame,
                after_gap: std::mem::take(&mut self.after_gap),
                bytes: bytes.freeze(),
            });
        }
    }
}

/// Whether a frame may span several packets and ends with the marker bit.
fn may_frame_span_packets(codec: Codec) -> bool {
    matches!(codec, Codec::H264 | Codec::H265 | Codec::Vp8 | Codec::Vp9 | Codec::Av1)
}
