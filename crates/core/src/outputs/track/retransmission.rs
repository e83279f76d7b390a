//! Packets of a track that are sent once more: requested by NACK, or to probe the path.

use std::time::{Duration, Instant};

use super::{PendingRetransmission, TrackSender};
use crate::congestion::PacketPurpose;
use crate::congestion::ladder::FrameSelection;
use crate::hub::ring::PacketRing;
use crate::outputs::retransmission_limiter::RetransmissionLimiter;
use crate::outputs::transport_cc_egress::{
    OutgoingPayload, TransportCcEgress, has_room_for_transport_sequence_number, wire_len,
};
use crate::session::outbox::{RtpHeader, TransportSequenceNumber};
use crate::session::srtp::SrtpError;

/// Positions that are looked at for packets of a probe, packets that are sent at once, and packets that are kept.
const MAX_PROBE_SEARCH_POSITIONS: u64 = 32;
const MAX_PROBE_PACKETS: usize = 64;
const MAX_PROBE_RESERVE_PACKETS: usize = 16;

/// An RTX packet names its original by 16 bits: one that is further back would be taken for one to come.
const MAX_PROBE_PACKET_DISTANCE: u64 = 0x4000;

impl TrackSender {
    /// Returns the packets that a NACK requests and that may be retransmitted.
    pub fn select_retransmittable_packets(
        &mut self,
        now: Instant,
        rtt: Duration,
        seqs: &[u16],
        ring: &PacketRing,
    ) -> Vec<PendingRetransmission> {
        let Some(newest) = self.sent_end_position.checked_sub(1) else {
            return Vec::new();
        };
        let sent = self.sender_report_counts;
        let history = self
            .retransmission_history
            .get_or_insert_with(|| Box::new(RetransmissionLimiter::new(now, sent)));
        history.refill_budget(now, sent);
        let rewriter = &self.rtp_sequence_rewriter;
        let mut round_trips = None;
        let found = seqs
            .iter()
            .filter_map(|seq| {
                let (out, track) = rewriter.find_position_of_sent_seq(*seq, newest)?;
                let entry = ring.get(track)?.clone();
                let timestamp = rewriter.retransmission_timestamp(out, entry.packet.time)?;
                let needed = history.admit_retransmission(out, entry.payload_and_padding_len(), now, rtt)?;
                round_trips = round_trips.max(Some(needed));
                Some(PendingRetransmission {
                    out_seq: out,
                    timestamp,
                    ring_entry: entry,
                    sent_payload: None,
                })
            })
            .collect();
        if let (Some(control), Some(round_trips)) = (&mut self.playout_delay, round_trips) {
            control.on_retransmission(now, rtt, round_trips);
        }
        found
    }

    /// Retransmits a packet: on the RTX stream if negotiated, else byte for byte as before.
    ///
    /// # Errors
    ///
    /// [`SrtpError`]: the session cannot continue.
    pub fn retransmit(
        &mut self,
        item: &PendingRetransmission,
        egress: &mut TransportCcEgress<'_>,
        purpose: PacketPurpose,
    ) -> Result<(), SrtpError> {
        let packet = &item.ring_entry.packet;
        let rewritten = item.sent_payload.clone().or_else(|| self.rewrite_vp8_payload(packet));
        let payload = rewritten.as_ref().unwrap_or(&packet.payload);
        let Some((pt, rtx_pt)) = self.media_and_rtx_payload_types(packet.codec) else {
            return Ok(());
        };
        let mut header = RtpHeader {
            pt,
            marker: packet.marker,
            ext_seq: item.out_seq,
            timestamp: item.timestamp,
            ssrc: self.ssrc,
            padding_len: item.ring_entry.padding_length,
            transport_sequence_number: None,
            playout_delay: None,
        };
        if let (Some(ssrc), Some(pt)) = (self.rtx_ssrc, rtx_pt) {
            (header.ssrc, header.pt, header.ext_seq) = (ssrc, pt, self.next_rtx_seq);
            self.next_rtx_seq += 1;
            header.playout_delay = self
                .playout_delay
                .as_ref()
                .and_then(|control| control.playout_delay_for_retransmission());
            let payload = OutgoingPayload {
                bytes: payload,
                rtx_original_seq: Some(item.out_seq as u16),
                transport_cc_id: self.transport_cc_id,
            };
            return egress.send(header, payload, purpose).map(|_| ());
        }
        let is_numbered = has_room_for_transport_sequence_number(item.ring_entry.payload_and_padding_len());
        if let Some(extension_id) = self.transport_cc_id.filter(|_| is_numbered) {
            // Without its number it cannot be sent: the header would differ under the same nonce (invariant 6).
            let Some(number) = self.sent_numbers.as_ref().and_then(|sent| sent.get(item.out_seq)) else {
                return Ok(());
            };
            header.transport_sequence_number = Some(TransportSequenceNumber { extension_id, number });
        }
        egress.resend_unchanged(header, payload)
    }

    /// Returns packets for a probe of about `bytes` on the wire, the newest first; none without an RTX stream.
    pub fn select_probe_packets(&self, bytes: u32, ring: &PacketRing) -> Vec<PendingRetransmission> {
        if self.rtx_ssrc.is_none() {
            return Vec::new();
        }
        let recent = match self.frame_selection {
            FrameSelection::All | FrameSelection::ReferenceFrames => self.recently_sent_packets(ring),
            _ => self.probe_reserve.clone(),
        };
        let is_recent = |packet: &&PendingRetransmission| {
            self.highest_sent_seq.saturating_sub(packet.out_seq) <= MAX_PROBE_PACKET_DISTANCE
        };
        let recent: Vec<&PendingRetransmission> = recent.iter().filter(is_recent).collect();
        let mut left = i64::from(bytes);
        let repeated = recent.into_iter().cycle().take(MAX_PROBE_PACKETS);
        let due = repeated.take_while(|packet| {
            let is_due = left > 0;
            left -= i64::from(wire_len(packet.ring_entry.payload_and_padding_len()));
            is_due
        });
        due.cloned().collect()
    }

    /// A key frame was sent by itself: its packets are newer than those that are kept.
    pub(super) fn mark_probe_reserve_outdated(&mut self) {
        self.is_probe_reserve_old = true;
    }

    /// Whether [`Self::refresh_probe_reserve`] should be called; once.
    pub fn take_probe_reserve_refresh_request(&mut self) -> bool {
        std::mem::take(&mut self.is_probe_reserve_old)
    }

    /// Keeps the packets that were sent last for probes, as long as the ring holds them: it forgets them while little is
    /// sent.
    pub fn refresh_probe_reserve(&mut self, ring: &PacketRing) {
        let mut recent = self.recently_sent_packets(ring);
        if recent.is_empty() {
            return;
        }
        recent.truncate(MAX_PROBE_RESERVE_PACKETS);
        for packet in &mut recent {
            packet.sent_payload = self.rewrite_vp8_payload(&packet.ring_entry.packet);
        }
        self.probe_reserve = recent;
    }

    /// Returns the newest packets that were sent, the newest first.
    fn recently_sent_packets(&self, ring: &PacketRing) -> Vec<PendingRetransmission> {
        let end = self.sent_end_position;
        let positions = (end.saturating_sub(MAX_PROBE_SEARCH_POSITIONS)..end).rev();
        positions
            .filter_map(|position| {
                let entry = ring.get(position)?;
                let (out_seq, time) = self
                    .rtp_sequence_rewriter
                    .outgoing_seq_and_track_time(position, entry.packet.time)?;
                Some(PendingRetransmission {
                    out_seq,
                    timestamp: self.rtp_sequence_rewriter.rtp_timestamp(time),
                    ring_entry: entry.clone(),
                    sent_payload: None,
                })
            })
            .collect()
    }
}
