//! Keeps the picture ID and TL0PICIDX of VP8 payloads continuous across sources, like sequence numbers and timestamps:
//! libwebrtc orders frames by them (RFC 7741 §4.2).

use bytes::Bytes;

use crate::media::codec::vp8::Vp8Descriptor;

/// The last counters sent on a track.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Vp8CounterTracker {
    last_sent: Option<Vp8Counters>,
}

/// Offset added to the counters of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vp8CounterOffset(Vp8Counters);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vp8Counters {
    picture_id: u16,
    tl0_pic_idx: u8,
}

impl Vp8CounterTracker {
    /// Returns the offset for a source with this first payload: its first frame follows the last one of the track.
    pub(crate) fn counter_offset_for_first_payload(&self, first: &[u8]) -> Vp8CounterOffset {
        let (Some(last), Some(first)) = (self.last_sent, parse_vp8_counters(first)) else {
            return Vp8CounterOffset::default();
        };
        Vp8CounterOffset(Vp8Counters {
            picture_id: last.picture_id.wrapping_add(1).wrapping_sub(first.picture_id),
            tl0_pic_idx: last.tl0_pic_idx.wrapping_add(1).wrapping_sub(first.tl0_pic_idx),
        })
    }

    /// Records the newest payload of the track, after rewriting.
    pub(crate) fn record_newest_payload(&mut self, payload: &[u8]) {
        self.last_sent = parse_vp8_counters(payload).or(self.last_sent);
    }
}

impl Vp8CounterOffset {
    /// Rewrites the counters of a payload. The payload is copied only if the offset is not zero.
    pub(crate) fn rewrite_payload_counters(self, payload: Bytes) -> Bytes {
        if self == Self::default() {
            return payload;
        }
        let (Some(own), Some(descriptor)) = (parse_vp8_counters(&payload), Vp8Descriptor::parse(&payload)) else {
            return payload;
        };
        let mut moved = payload.to_vec();
        let picture_id = own.picture_id.wrapping_add(self.0.picture_id);
        descriptor.overwrite_picture_id_and_tl0picidx(
            &mut moved,
            picture_id,
            own.tl0_pic_idx.wrapping_add(self.0.tl0_pic_idx),
        );
        moved.into()
    }
}

fn parse_vp8_counters(payload: &[u8]) -> Option<Vp8Counters> {
    let descriptor = Vp8Descriptor::parse(payload)?;
    Some(Vp8Counters {
        picture_id: descriptor.picture_id?.value(),
        tl0_pic_idx: descriptor.tl0_pic_idx.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(picture_id: u16, tl0: u8) -> Bytes {
        let [high, low] = picture_id.to_be_bytes();
        Bytes::from(vec![0x90, 0xc0, 0x80 | high, low, tl0, 0xaa])
    }

    #[test]
    fn the_counters_continue_across_sources() {
        let mut rewriter = Vp8CounterTracker::default();
        assert_eq!(
            rewriter.counter_offset_for_first_payload(&payload(5, 5)),
            Vp8CounterOffset::default()
        );
        rewriter.record_newest_payload(&payload(0x7fff, 255));
        let shift = rewriter.counter_offset_for_first_payload(&payload(100, 7));
        assert_eq!(shift.rewrite_payload_counters(payload(100, 7)), payload(0, 0));
        assert_eq!(shift.rewrite_payload_counters(payload(103, 9)), payload(3, 2));
    }

    #[test]
    fn payloads_without_counters_are_left_alone() {
        let mut rewriter = Vp8CounterTracker::default();
        rewriter.record_newest_payload(&payload(9, 9));
        let plain = Bytes::from_static(&[0x10, 0xaa]);
        assert_eq!(
            rewriter
                .counter_offset_for_first_payload(&plain)
                .rewrite_payload_counters(plain.clone()),
            plain
        );
    }
}
