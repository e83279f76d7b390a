//! What a viewer is sent once more: packets that it requests by NACK, and the cached key frame if the source ignores its
//! request for a new one.

use std::time::{Duration, Instant};

use super::{
    KEY_FRAME_REPLAY_DELAY, MIN_KEY_FRAME_REPLAY_INTERVAL, TransportCcEgress, Viewer, ViewerTrack, is_source_silent,
};
use crate::congestion::PacketPurpose;
use crate::congestion::ladder::FrameSelection;
use crate::hub::ring::RETRANSMISSION_HISTORY_DURATION;
use crate::hub::traffic;
use crate::media::{MediaKind, Ssrc};
use crate::outputs::track::PendingRetransmission;
use crate::session::egress::Egress;

/// Audio that waits longer before the bottleneck is lost because the path is full: sent once more, it would fill it further
/// and come too late.
const MAX_QUEUE_DELAY_FOR_AUDIO_RETRANSMISSION: Duration = Duration::from_millis(150);

impl Viewer {
    pub(super) fn retransmit_nacked_packets(
        &mut self,
        now: Instant,
        media: Ssrc,
        seqs: &[u16],
        egress: &mut Egress<'_>,
    ) {
        let Some(rtp) = egress.rtp_egress() else { return };
        let uses_transport_cc = self.adaptation.uses_transport_cc;
        let leaves_video_out = self
            .adaptation
            .latest_layer_choice()
            .is_some_and(|choice| choice.frames < FrameSelection::ReferenceFrames);
        let queue_delay = self.adaptation.controller.excess_delay();
        let is_path_at_capacity = leaves_video_out || queue_delay > MAX_QUEUE_DELAY_FOR_AUDIO_RETRANSMISSION;
        let controller = Some(&mut self.adaptation.controller).filter(|_| uses_transport_cc);
        let mut rtp = TransportCcEgress::new(rtp, controller, now);
        let rtt = self.rtt;
        let mut tracks = [&mut self.video, &mut self.audio].into_iter().flatten();
        let Some(ViewerTrack {
            track_sender: track,
            current_stream: from,
            ..
        }) = tracks.find(|played| played.track_sender.ssrc() == media)
        else {
            return;
        };
        if is_path_at_capacity && track.kind() == MediaKind::Audio {
            return;
        }
        let wanted: Vec<PendingRetransmission> = from.with_state(|state| {
            // A receiver no longer waits for packets of a source that has left.
            let has_source = state.source().is_some();
            let ring = state.track(track.kind()).ring();
            let is_recent = |(_, at)| now.saturating_duration_since(at) <= RETRANSMISSION_HISTORY_DURATION;
            if !has_source && !ring.newest_track_time_and_arrival().is_some_and(is_recent) {
                return Vec::new();
            }
            track.select_retransmittable_packets(now, rtt, seqs, ring)
        });
        traffic::add_to_counter(
            &self.stream.transport_stats.retransmitted_packet_count,
            wanted.len() as u64,
        );
        self.reported.retransmitted_packet_count += wanted.len() as u64;
        for item in wanted {
            self.pending_work.close_session |= track
                .retransmit(&item, &mut rtp, PacketPurpose::Retransmission)
                .is_err();
        }
    }

    pub(super) fn replay_if_key_frame_request_ignored(&mut self, now: Instant) {
        let ignored = self
            .unanswered_key_frame_request_at
            .is_some_and(|since| now.duration_since(since) >= KEY_FRAME_REPLAY_DELAY);
        let recent = self
            .last_key_frame_replay_at
            .is_some_and(|at| now.duration_since(at) < MIN_KEY_FRAME_REPLAY_INTERVAL);
        if ignored && !recent {
            self.unanswered_key_frame_request_at = None;
            let Some(ViewerTrack {
                track_sender: out,
                current_stream: from,
                ..
            }) = &mut self.video
            else {
                return;
            };
            if out.frame_selection() < FrameSelection::ReferenceFrames {
                return;
            }
            let replayed = from.with_state(|state| {
                let is_live = state.source().is_some() && !is_source_silent(state.video.ring(), now);
                if is_live {
                    out.replay_from_cached_key_frame(now, state.video.ring());
                }
                is_live
            });
            if replayed {
                self.last_key_frame_replay_at = Some(now);
            }
        }
    }
}
