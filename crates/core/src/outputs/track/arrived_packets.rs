//! Packets that have just arrived: which are sent at once, and which are read from the ring.

use std::sync::Arc;
use std::time::Instant;

use super::{SendState, TrackSender};
use crate::hub::ring::{PacketRing, RingEntry};
use crate::media::packet::TrackSeq;

impl TrackSender {
    /// Leaves a packet and what follows it to the ring: what has arrived is read from there at `due`. Returns whether that
    /// is so: not for a packet that comes late, which is before all that will be read.
    pub fn defer_packet_to_ring(&mut self, now: Instant, due: Instant, entry: &RingEntry) -> bool {
        let SendState::Live { after_order } = self.send_state else {
            return false;
        };
        if entry.packet.seq < self.sent_end_position {
            return false;
        }
        self.send_state = SendState::CatchingUp {
            cursor: self.sent_end_position,
            read_order: after_order,
            started: now,
            due,
            pace: None,
        };
        true
    }

    /// Returns whether a packet that has just arrived must be sent now. Packets arrive in the order of their insertion: none
    /// up to this one is asked for again, and none of them is read from the ring as a late one.
    pub fn mark_handled_and_check_if_sendable(&mut self, entry: &RingEntry) -> bool {
        let handled_order = match &mut self.send_state {
            SendState::CatchingUp { cursor, read_order, .. } if entry.packet.seq < *cursor => read_order,
            SendState::Live { after_order } => after_order,
            SendState::CatchingUp { .. } | SendState::AwaitingKeyFrame { .. } => return false,
        };
        let is_new = entry.insertion_order > *handled_order;
        *handled_order = entry.insertion_order.max(*handled_order);
        is_new
    }

    /// Reads the packets before `cursor` that came late and are on their way to this shard: when they arrive, they count as
    /// read.
    pub(super) fn collect_late_packets(
        &self,
        cursor: TrackSeq,
        read_order: u64,
        ring: &PacketRing,
        due: &mut Vec<Arc<RingEntry>>,
    ) {
        let late = ring.late_packets_since(read_order);
        let late = late.filter(|entry| entry.packet.seq < cursor && !self.is_excluded_by_key_frames_only(entry));
        due.extend(late.cloned());
    }
}
