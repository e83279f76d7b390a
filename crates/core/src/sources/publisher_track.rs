//! One track that a publisher negotiated: its simulcast layers, and which of them the stream carries.

use std::sync::Arc;
use std::time::Instant;

use super::incoming_encoding::{FormatOrResolutionChange, IncomingEncoding, PayloadTypeProperties};
use crate::hub::ring::RingEntry;
use crate::hub::source_rewriter::{IngestSeqAndTimestampRewriter, ReceivedPacket};
use crate::hub::track::Track;
use crate::media::rtp::ParsedRtpHeader;
use crate::media::{PayloadType, Rid};
use crate::sdp::negotiation_result::{DeclaredSsrc, IncomingTrack, RtpHeaderExtensionIds};
use crate::session::feedback::MIN_KEY_FRAME_REQUEST_INTERVAL;

/// One negotiated track.
pub struct PublisherTrack {
    pub negotiated_track: IncomingTrack,
    /// The layers, or a single entry without simulcast.
    pub encodings: Vec<IncomingEncoding>,
    /// Index of the layer that the stream carries.
    pub active_encoding_index: usize,
    /// Number of lost packets for which a key frame was already requested, by layer.
    handled_unrecovered_packet_counts: Vec<u64>,
}

/// Packets of one layer that arrived in one tick.
pub struct EncodingPacketBatch {
    /// Index of the layer.
    pub encoding_index: usize,
    pub packets: Vec<ReceivedPacket>,
    /// What changed with them.
    pub format_change: FormatOrResolutionChange,
}

impl PublisherTrack {
    /// Makes a track that has not received anything yet.
    pub fn new(plan: IncomingTrack) -> Self {
        let declared = |ssrc: &DeclaredSsrc, rid| IncomingEncoding::new(Some(ssrc.primary), ssrc.rtx, rid);
        let mut encodings: Vec<IncomingEncoding> = if !plan.rids.is_empty() {
            let rids = plan.rids.iter().cloned();
            rids.map(|rid| IncomingEncoding::new(None, None, Some(rid))).collect()
        } else if !plan.layer_ssrcs.is_empty() {
            // These layers have no names: they are numbered as in the offer.
            let layers = plan.layer_ssrcs.iter().enumerate();
            layers
                .map(|(index, ssrc)| declared(ssrc, Some(Rid(index.to_string().into()))))
                .collect()
        } else {
            plan.ssrcs.iter().take(1).map(|ssrc| declared(ssrc, None)).collect()
        };
        if encodings.is_empty() {
            encodings.push(IncomingEncoding::new(None, None, None));
        }
        let encodings = encodings
            .into_iter()
            .map(|encoding| encoding.with_offered_parameter_sets(plan.parameter_sets.clone()))
            .collect();
        Self {
            negotiated_track: plan,
            encodings,
            active_encoding_index: 0,
            handled_unrecovered_packet_counts: Vec::new(),
        }
    }

    /// Requests a key frame of one layer; `None` is the one that the stream carries.
    pub fn schedule_key_frame_request(&mut self, layer: Option<&Rid>) {
        let index = layer
            .and_then(|rid| {
                self.encodings
                    .iter()
                    .position(|encoding| encoding.rid.as_ref() == Some(rid))
            })
            .unwrap_or(self.active_encoding_index);
        if let Some(encoding) = self.encodings.get_mut(index) {
            encoding.key_frame_request_scheduler.request_key_frame();
        }
    }

    /// Requests key frames where packets cannot be decoded without.
    pub fn schedule_needed_key_frame_requests(&mut self, now: Instant) {
        if self.active_or_better_encoding_awaits_key_frame(now) {
            let mut next: Vec<usize> = (0..self.encodings.len())
                .filter(|index| *index != self.active_encoding_index && self.encoding_has_ssrc(*index))
                .filter(|index| self.should_become_active_encoding(now, *index))
                .collect();
            let active = self.encodings.get(self.active_encoding_index);
            // One that is silent would not answer.
            if next.is_empty()
                || active.is_some_and(|e| !e.has_no_recent_packets(now) && e.numbering_rewriter.needs_key_frame())
            {
                next.push(self.active_encoding_index);
            }
            for index in next {
                if let Some(encoding) = self.encodings.get_mut(index) {
                    encoding.key_frame_request_scheduler.request_key_frame();
                }
            }
        }
        self.request_key_frames_after_unrecovered_loss(now);
    }

    /// Whether the MID extension of a packet is that of this track.
    pub fn matches_mid(&self, header: &ParsedRtpHeader<'_>) -> bool {
        let mid = self
            .negotiated_track
            .extension_ids
            .mid
            .and_then(|id| header.extension(id));
        mid.is_some_and(|mid| mid == self.negotiated_track.mid.0.as_bytes())
    }

    /// Whether a payload type, of media or RTX, belongs to this track.
    pub fn has_payload_type(&self, pt: PayloadType) -> bool {
        self.negotiated_track
            .codecs
            .iter()
            .any(|c| c.pt == pt || c.rtx_pt == Some(pt))
    }

    /// Assigns a new SSRC, of whose packets this is the first, to its layer. Returns the index of the layer, and whether the SSRC is one of RTX.
    pub fn assign_ssrc_by_rid(&mut self, header: &ParsedRtpHeader<'_>, payload: &[u8]) -> Option<(usize, bool)> {
        let RtpHeaderExtensionIds { rid, repaired_rid, .. } = self.negotiated_track.extension_ids;
        let named = |id: Option<u8>| id.and_then(|id| header.extension(id));
        let by_rid = |encodings: &[IncomingEncoding], name: &[u8]| {
            encodings
                .iter()
                .position(|e| e.rid.as_ref().is_some_and(|rid| rid.0.as_bytes() == name))
        };
        let rtx = self.negotiated_track.codecs.iter().any(|c| c.rtx_pt == Some(header.pt));
        if !rtx && !self.has_payload_type(header.pt) {
            return None;
        }
        let name = if rtx { named(repaired_rid) } else { named(rid) };
        let index = match (
            name.and_then(|name| by_rid(&self.encodings, name)),
            self.encodings.len(),
        ) {
            (Some(index), _) => index,
            // OBS sends a RID without having offered one. There is only one encoding then.
            (None, 1) if self.negotiated_track.rids.is_empty() => 0,
            (None, _) => return None,
        };
        let encoding = self.encodings.get_mut(index)?;
        if rtx {
            encoding.rtx_ssrc = Some(header.ssrc);
        } else {
            encoding.switch_to_ssrc_of_packet(header, payload);
        }
        Some((index, rtx))
    }

    /// Returns the primary payload type of an RTX payload type.
    pub fn media_payload_type_of_rtx(&self, rtx: PayloadType) -> Option<PayloadType> {
        self.negotiated_track
            .codecs
            .iter()
            .find(|c| c.rtx_pt == Some(rtx))
            .map(|c| c.pt)
    }

    /// Returns the negotiated properties of a media payload type.
    pub fn codec_and_nack_of_payload_type(&self, pt: PayloadType) -> Option<PayloadTypeProperties> {
        let codec = self.negotiated_track.codecs.iter().find(|c| c.pt == pt)?;
        Some(PayloadTypeProperties {
            codec: codec.format.codec(),
            nack: codec.rtcp_feedback.nack,
        })
    }

    /// Appends packets to the stream's track if their layer is the active one or becomes active with these packets.
    pub fn switch_encoding_if_better_and_publish(
        &mut self,
        now: Instant,
        arrived: EncodingPacketBatch,
        track: &mut Track,
        out: &mut Vec<Arc<RingEntry>>,
    ) {
        let EncodingPacketBatch {
            encoding_index: index,
            packets,
            format_change: change,
        } = arrived;
        if index != self.active_encoding_index && !self.should_become_active_encoding(now, index) {
            return;
        }
        let Some(encoding) = self.encodings.get_mut(index) else {
            return;
        };
        encoding
            .numbering_rewriter
            .rewrite_packets_into_ring(track, packets.into_iter(), out);
        track.set_has_b_frames_if_found(encoding.has_b_frames());
        track.set_lacks_idr_frames_if_found(encoding.lacks_idr_frames());
        track.set_discard_counts(*encoding.discarded_payload_counts());
        track.set_arrival_timed_frame_count(encoding.arrival_timestamped_frame_count());
        if index == self.active_encoding_index {
            track.set_format_if_known(change.format);
            track.set_resolution_if_known(change.resolution);
        } else if !encoding.numbering_rewriter.needs_key_frame() {
            track.set_format_if_known(encoding.format());
            track.set_resolution_if_known(encoding.resolution());
            if let Some(previous) = self.encodings.get_mut(self.active_encoding_index) {
                previous.numbering_rewriter = IngestSeqAndTimestampRewriter::new();
            }
            self.active_encoding_index = index;
        }
    }

    /// Whether the active layer, or a better one to switch to, is waiting for a key frame.
    pub fn active_or_better_encoding_awaits_key_frame(&self, now: Instant) -> bool {
        let active_waits = self
            .encodings
            .get(self.active_encoding_index)
            .is_some_and(|e| e.ssrc.is_some() && e.numbering_rewriter.needs_key_frame());
        let mut others = (0..self.encodings.len()).filter(|index| *index != self.active_encoding_index);
        active_waits
            || others.any(|index| self.should_become_active_encoding(now, index) && self.encoding_has_ssrc(index))
    }

    /// Requests a key frame of each layer of which a packet was given up since the last call: nothing else makes it whole
    /// again. One layer per second, the active one first: many encoders answer with key frames of all layers.
    fn request_key_frames_after_unrecovered_loss(&mut self, now: Instant) {
        self.handled_unrecovered_packet_counts.resize(self.encodings.len(), 0);
        let active = self.active_encoding_index;
        let others = (0..self.encodings.len()).filter(|index| *index != active);
        for index in std::iter::once(active).chain(others) {
            let known = self.encodings.iter().filter(|encoding| encoding.ssrc.is_some());
            let newest = known.filter_map(|encoding| encoding.key_frame_request_scheduler.newest_request_at(now));
            let earliest = newest
                .max()
                .map_or(now, |newest| newest + MIN_KEY_FRAME_REQUEST_INTERVAL);
            let (Some(encoding), Some(handled)) = (
                self.encodings.get_mut(index),
                self.handled_unrecovered_packet_counts.get_mut(index),
            ) else {
                continue;
            };
            let given_up = encoding.unrecovered_packet_count();
            if std::mem::replace(handled, given_up) != given_up {
                encoding
                    .key_frame_request_scheduler
                    .request_key_frame_not_before(earliest);
            }
        }
    }

    fn encoding_has_ssrc(&self, index: usize) -> bool {
        self.encodings.get(index).is_some_and(|e| e.ssrc.is_some())
    }

    /// Whether a layer should become the active one: it has more pixels or, at the same resolution, over 1.5 times the
    /// bitrate, so that nearly equal layers do not alternate. Layers that the publisher has stopped sending are
    /// skipped: browsers stop the best layers when their bandwidth estimate falls.
    fn should_become_active_encoding(&self, now: Instant, index: usize) -> bool {
        let (Some(active), Some(other)) = (
            self.encodings.get(self.active_encoding_index),
            self.encodings.get(index),
        ) else {
            return false;
        };
        if other.has_no_recent_packets(now) {
            return false;
        }
        active.numbering_rewriter.needs_key_frame()
            || active.has_no_recent_packets(now)
            || is_clearly_better_layer(other.layer_rank(), active.layer_rank())
    }
}

/// Whether a layer with this rank has more pixels or, at the same resolution, over 1.5 times the bitrate of another one: nearly
/// equal layers must not alternate.
pub(super) fn is_clearly_better_layer((pixels, bytes): (u32, u64), other: (u32, u64)) -> bool {
    pixels > other.0 || (pixels == other.0 && bytes > other.1 * 3 / 2)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;
    use crate::media::Ssrc;
    use crate::sources::tests::h264;

    /// Requests that are sent while packets of three layers are lost all the time.
    fn requests_after_loss_in_all_layers(answers_with_all_layers: bool) -> Vec<(usize, u64)> {
        let rids = ["q", "h", "f"].map(|rid| Rid(rid.into())).to_vec();
        let mut track = PublisherTrack::new(IncomingTrack { rids, ..h264() });
        for (encoding, ssrc) in track.encodings.iter_mut().zip(1..) {
            encoding.ssrc = Some(Ssrc(ssrc));
        }
        track.active_encoding_index = 2;
        let (start, mut sent) = (Instant::now(), Vec::new());
        for ms in (0..2_900).step_by(100) {
            let now = start + std::time::Duration::from_millis(ms);
            // As if more had been lost since.
            track.handled_unrecovered_packet_counts = vec![1; 3];
            track.request_key_frames_after_unrecovered_loss(now);
            for index in 0..3 {
                if track.encodings[index].key_frame_request_scheduler.poll(now) {
                    sent.push((index, ms));
                    let answering = track.encodings.iter_mut().enumerate();
                    answering
                        .filter(|(other, _)| answers_with_all_layers || *other == index)
                        .for_each(|(_, encoding)| encoding.key_frame_request_scheduler.on_key_frame());
                }
            }
        }
        sent
    }

    #[test]
    fn lost_packets_of_all_layers_cost_one_key_frame_request_per_second() {
        assert_eq!(
            requests_after_loss_in_all_layers(true),
            [(2, 0), (2, 1_000), (2, 2_000)]
        );
        assert_eq!(
            requests_after_loss_in_all_layers(false),
            [(2, 0), (0, 1_000), (1, 2_000)]
        );
    }
}
