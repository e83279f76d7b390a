//! Transport-wide numbers of recent packets. On a track without RTX a packet is retransmitted byte for byte as before: with
//! another number in its header it would be a second packet under the same nonce (invariant 6).

/// Numbers by outgoing sequence number.
pub(super) struct TransportSeqByOutgoingSeq {
    /// Indexed by the outgoing sequence number modulo the length: what that is beyond the index, and the number.
    slots: Box<[(u16, u16)]>,
}

/// Packets that are remembered: two and a half seconds of audio in packets of 20 ms.
const REMEMBERED_PACKET_COUNT: u64 = 128;

/// No packet reaches this before its place was taken.
const EMPTY_SLOT: (u16, u16) = (u16::MAX, 0);

impl TransportSeqByOutgoingSeq {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![EMPTY_SLOT; REMEMBERED_PACKET_COUNT as usize].into(),
        }
    }

    pub(super) fn insert(&mut self, out_seq: u64, number: u16) {
        let (index, wrap_count) = slot_and_wrap_count_of_seq(out_seq);
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = (wrap_count, number);
        }
    }

    /// Returns the number of a packet; `None` if it is too old or has none.
    pub(super) fn get(&self, out_seq: u64) -> Option<u16> {
        let (index, wrap_count) = slot_and_wrap_count_of_seq(out_seq);
        let (sent, number) = self.slots.get(index)?;
        (*sent == wrap_count).then_some(*number)
    }
}

fn slot_and_wrap_count_of_seq(out_seq: u64) -> (usize, u16) {
    (
        (out_seq % REMEMBERED_PACKET_COUNT) as usize,
        (out_seq / REMEMBERED_PACKET_COUNT) as u16,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_until_its_place_is_taken() {
        let mut sent = TransportSeqByOutgoingSeq::new();
        (1_000..1_300).for_each(|seq| sent.insert(seq, seq as u16 ^ 0x5555));
        assert_eq!(sent.get(999), None);
        assert_eq!(sent.get(1_171), None, "its place is taken");
        assert!((1_172..1_300).all(|seq| sent.get(seq) == Some(seq as u16 ^ 0x5555)));
        assert_eq!(sent.get(1_300), None);
    }
}
