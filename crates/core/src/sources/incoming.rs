//! One track that a publisher negotiated: its simulcast layers, and which of them the stream carries.

use std::sync::Arc;
use std::time::Instant;

use super::encoding::{Change, Encoding, PacketFormat};
use crate::hub::intake::{Intake, ReceivedPacket};
use crate::hub::ring::Entry;
use crate::hub::track::Track;
use crate::media::rtp::Header;
use crate::media::{Pt, Rid};
use crate::sdp::plan::{DeclaredSsrc, Extensions, IncomingTrack};
use crate::session::feedback::KeyFrameRequests;

/// One negotiated track.
pub struct Incoming {
    pub plan: IncomingTrack,
    /// The layers, or a single entry without simulcast.
    pub encodings: Vec<Encoding>,
    /// Index of the layer that the stream carries.
    pub active: usize,
    pub key_frames: KeyFrameRequests,
    /// Number of lost packets for which a key frame was already requested.
    given_up: u64,
}

/// Packets of one layer that arrived in one tick.
pub struct LayerPackets {
    /// Index of the layer.
    pub index: usize,
    pub packets: Vec<ReceivedPacket>,
    /// What changed with them.
    pub change: Change,
}

impl Incoming {
    /// Makes a track that has not received anything yet.
    pub fn new(plan: IncomingTrack) -> Self {
        let declared = |ssrc: &DeclaredSsrc, rid| Encoding::new(Some(ssrc.primary), ssrc.rtx, rid);
        let mut encodings: Vec<Encoding> = if !plan.rids.is_empty() {
            let rids = plan.rids.iter().cloned();
            rids.map(|rid| Encoding::new(None, None, Some(rid))).collect()
        } else if !plan.layers.is_empty() {
            // These layers have no names: they are numbered as in the offer.
            let layers = plan.layers.iter().enumerate();
            layers
                .map(|(index, ssrc)| declared(ssrc, Some(Rid(index.to_string().into()))))
                .collect()
        } else {
            plan.ssrcs.iter().take(1).map(|ssrc| declared(ssrc, None)).collect()
        };
        if encodings.is_empty() {
            encodings.push(Encoding::new(None, None, None));
        }
        let encodings = encodings
            .into_iter()
            .map(|encoding| encoding.with_parameter_sets(plan.parameter_sets.clone()))
            .collect();
        Self {
            plan,
            encodings,
            active: 0,
            key_frames: KeyFrameRequests::new(),
            given_up: 0,
        }
    }

    /// Whether the MID extension of a packet is that of this track.
    pub fn has_mid_of(&self, header: &Header<'_>) -> bool {
        let mid = self.plan.extensions.mid.and_then(|id| header.extension(id));
        mid.is_some_and(|mid| mid == self.plan.mid.0.as_bytes())
    }

    /// Whether a payload type, of media or RTX, belongs to this track.
    pub fn has_payload_type(&self, pt: Pt) -> bool {
        self.plan.codecs.iter().any(|c| c.pt == pt || c.rtx_pt == Some(pt))
    }

    /// Assigns a new SSRC to its layer. Returns the index of the layer, and whether the SSRC is one of RTX.
    pub fn learn(&mut self, header: &Header<'_>) -> Option<(usize, bool)> {
        let Extensions { rid, repaired_rid, .. } = self.plan.extensions;
        let named = |id: Option<u8>| id.and_then(|id| header.extension(id));
        let by_rid = |encodings: &[Encoding], name: &[u8]| {
            encodings
                .iter()
                .position(|e| e.rid.as_ref().is_some_and(|rid| rid.0.as_bytes() == name))
        };
        let rtx = self.plan.codecs.iter().any(|c| c.rtx_pt == Some(header.pt));
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
            (None, 1) if self.plan.rids.is_empty() => 0,
            (None, _) => return None,
        };
        let encoding = self.encodings.get_mut(index)?;
        if rtx {
            encoding.rtx_ssrc = Some(header.ssrc);
        } else {
            encoding.begin(header.ssrc);
        }
        Some((index, rtx))
    }

    /// Returns the primary payload type of an RTX payload type.
    pub fn primary_of(&self, rtx: Pt) -> Option<Pt> {
        self.plan.codecs.iter().find(|c| c.rtx_pt == Some(rtx)).map(|c| c.pt)
    }

    /// Returns the negotiated properties of a media payload type.
    pub fn format_of(&self, pt: Pt) -> Option<PacketFormat> {
        let codec = self.plan.codecs.iter().find(|c| c.pt == pt)?;
        Some(PacketFormat {
            codec: codec.format.codec(),
            nack: codec.feedback.nack,
        })
    }

    /// Appends packets to the stream's track if their layer is the active one or becomes active with these packets.
    pub fn put(&mut self, now: Instant, arrived: LayerPackets, track: &mut Track, out: &mut Vec<Arc<Entry>>) {
        let LayerPackets { index, packets, change } = arrived;
        if index != self.active && !self.should_replace_active(now, index) {
            return;
        }
        let Some(encoding) = self.encodings.get_mut(index) else {
            return;
        };
        encoding.intake.take(track, packets.into_iter(), out);
        track.set_reordered(encoding.is_reordered());
        track.set_left_out(*encoding.odd());
        if index == self.active {
            track.set_format(change.format);
            track.set_resolution(change.resolution);
        } else if !encoding.intake.is_waiting() {
            track.set_format(encoding.format());
            track.set_resolution(encoding.resolution());
            if let Some(previous) = self.encodings.get_mut(self.active) {
                previous.intake = Intake::new();
            }
            self.active = index;
        }
    }

    /// Whether the active layer, or a better one to switch to, is waiting for a key frame.
    pub fn awaited_key_frame(&self, now: Instant) -> bool {
        let active_waits = self
            .encodings
            .get(self.active)
            .is_some_and(|e| e.ssrc.is_some() && e.intake.is_waiting());
        let mut others = (0..self.encodings.len()).filter(|index| *index != self.active);
        active_waits || others.any(|index| self.should_replace_active(now, index) && self.has_ssrc(index))
    }

    /// Whether a packet of the active layer was given up since the last call, so that a key frame is needed.
    pub fn has_given_up(&mut self) -> bool {
        let given_up = self.encodings.get(self.active).map_or(0, Encoding::given_up);
        std::mem::replace(&mut self.given_up, given_up) != given_up
    }

    fn has_ssrc(&self, index: usize) -> bool {
        self.encodings.get(index).is_some_and(|e| e.ssrc.is_some())
    }

    /// Whether a layer should become the active one: it has more pixels or, at the same resolution, over 1.5 times the
    /// bitrate, so that nearly equal layers do not alternate. Layers that the publisher has stopped sending are
    /// skipped: browsers stop the best layers when their bandwidth estimate falls.
    fn should_replace_active(&self, now: Instant, index: usize) -> bool {
        let (Some(active), Some(other)) = (self.encodings.get(self.active), self.encodings.get(index)) else {
            return false;
        };
        let ((a_pixels, a_bytes), (o_pixels, o_bytes)) = (active.rank(), other.rank());
        if other.is_silent(now) {
            return false;
        }
        active.intake.is_waiting()
            || active.is_silent(now)
            || o_pixels > a_pixels
            || (o_pixels == a_pixels && o_bytes > a_bytes * 3 / 2)
    }
}
