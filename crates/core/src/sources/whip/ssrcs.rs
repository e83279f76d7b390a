//! Which track and layer an SSRC belongs to: by the offer, by the extensions of its packets, or by its payload type.

use std::time::Instant;

use bytes::Bytes;

use super::{MAX_KNOWN_SSRCS, Publisher, SsrcRole};
use crate::media::rtp::ParsedRtpHeader;
use crate::media::{PayloadType, Ssrc};
use crate::sources::incoming_encoding::MIN_SILENCE_TO_SWITCH_SSRC;

impl Publisher {
    /// Returns the role of an SSRC: known, or learned from MID, RID or the payload type (RFC 9143 §9.2).
    pub(super) fn resolve_or_learn_ssrc_role(
        &mut self,
        now: Instant,
        header: &ParsedRtpHeader<'_>,
        payload: &[u8],
    ) -> Option<SsrcRole> {
        if let Some(role) = self.ssrc_roles.get_mut(&header.ssrc) {
            let last_packet = role.last_packet_at.replace(now);
            return Some(SsrcRole {
                last_packet_at: last_packet,
                ..*role
            });
        }
        if self.ssrc_roles.len() >= MAX_KNOWN_SSRCS && !self.forget_idle_ssrc() {
            return None;
        }
        let by_mid = self.tracks.iter().position(|t| t.matches_mid(header));
        let track = by_mid.or_else(|| self.only_track_with_payload_type(header.pt))?;
        let (encoding, rtx) = self.tracks.get_mut(track)?.assign_ssrc_by_rid(header, payload)?;
        let role = SsrcRole::new(track, encoding, rtx);
        let last_packet = Some(now);
        self.ssrc_roles.insert(
            header.ssrc,
            SsrcRole {
                last_packet_at: last_packet,
                ..role
            },
        );
        Some(role)
    }

    /// Whether the layer of `role` has switched to another SSRC.
    pub(super) fn drop_held_packet_unless_ssrc_replaced(&mut self, ssrc: Ssrc, role: SsrcRole) -> bool {
        let track = self.tracks.get_mut(role.track_index);
        let encoding = track.and_then(|track| track.encodings.get_mut(role.encoding_index));
        encoding.is_some_and(|encoding| {
            let is_other = encoding.ssrc != Some(ssrc);
            if !is_other {
                encoding.returning_ssrc_packet = None;
            }
            is_other
        })
    }

    /// Handles a packet of an SSRC that was replaced by another one. The layer returns to it if its present SSRC is silent,
    /// or if two packets in a row arrive after a silence; returns the first of them then. Otherwise the packet is late:
    /// `None`.
    pub(super) fn resume_replaced_ssrc_after_silence(
        &mut self,
        now: Instant,
        ssrc: Ssrc,
        role: SsrcRole,
        packet: &Bytes,
    ) -> Option<Option<Bytes>> {
        let encoding = self
            .tracks
            .get_mut(role.track_index)?
            .encodings
            .get_mut(role.encoding_index)?;
        let held = encoding
            .returning_ssrc_packet
            .take()
            .filter(|(other, _)| *other == ssrc);
        let was_silent = role
            .last_packet_at
            .is_none_or(|at| now.saturating_duration_since(at) >= MIN_SILENCE_TO_SWITCH_SSRC);
        if held.is_none() && !encoding.is_ssrc_replaceable(now) {
            encoding.returning_ssrc_packet = was_silent.then(|| (ssrc, packet.clone()));
            return None;
        }
        encoding.set_ssrc_and_reset_reception(ssrc);
        Some(held.map(|(_, packet)| packet))
    }

    /// Forgets the SSRC that is silent for the longest time, of those that are not in use. Returns whether there is one.
    fn forget_idle_ssrc(&mut self) -> bool {
        let in_use = |ssrc: &Ssrc| {
            let mut encodings = self.tracks.iter().flat_map(|track| &track.encodings);
            encodings.any(|encoding| encoding.ssrc == Some(*ssrc) || encoding.rtx_ssrc == Some(*ssrc))
        };
        let oldest = self.ssrc_roles.iter().filter(|(ssrc, _)| !in_use(ssrc));
        let oldest = oldest
            .min_by_key(|(_, role)| role.last_packet_at)
            .map(|(ssrc, _)| *ssrc);
        oldest.is_some_and(|oldest| self.ssrc_roles.remove(&oldest).is_some())
    }

    fn only_track_with_payload_type(&self, pt: PayloadType) -> Option<usize> {
        let mut owners = self
            .tracks
            .iter()
            .enumerate()
            .filter(|(_, t)| t.has_payload_type(pt))
            .map(|(i, _)| i);
        owners.next().filter(|_| owners.next().is_none())
    }
}
