//! A track of which parts are left out, and how much of it is sent at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{SendState, TrackSender};
use crate::congestion::ladder::FrameSelection;
use crate::hub::ring::{PacketRing, RingEntry};
use crate::outputs::reference_frame_selector::ReferenceFrameSelector;

/// What has waited for longer than this is sent faster: a source that sends more than before is not held up for long, but a
/// large key frame is paced.
const MAX_BACKLOG_AGE_BEFORE_SPEEDUP: Duration = Duration::from_millis(300);

impl TrackSender {
    /// Returns which frames are sent.
    pub fn frame_selection(&self) -> FrameSelection {
        self.frame_selection
    }

    /// Changes which frames are sent. Less is sent at once; more from the next key frame on. Returns whether a key frame
    /// has to come for it.
    pub fn change_frame_selection(&mut self, selection: FrameSelection, ring: &PacketRing) -> bool {
        let before = self.frame_selection;
        let is_running = !self.awaits_key_frame();
        match (before, selection) {
            _ if before == selection => {
                self.continue_reference_frames();
                return false;
            }
            (FrameSelection::All, FrameSelection::ReferenceFrames) if is_running => {
                self.begin_reference_frames(ring);
                self.frame_selection = selection;
                return false;
            }
            (FrameSelection::ReferenceFrames, FrameSelection::All) if is_running => {
                return self.end_reference_frames_at_key_frame();
            }
            (FrameSelection::All, FrameSelection::ReferenceFrames)
            | (FrameSelection::ReferenceFrames, FrameSelection::All) => {
                self.set_frame_selection_before_start(selection);
                return false;
            }
            _ => {}
        }
        if selection < FrameSelection::ReferenceFrames && before >= FrameSelection::ReferenceFrames {
            self.refresh_probe_reserve(ring);
        }
        self.set_frame_selection_before_start(selection);
        self.send_state = self.state_awaiting_next_key_frame(ring);
        selection >= FrameSelection::ReferenceFrames
    }

    /// Changes which frames are sent, before a start.
    pub fn set_frame_selection_before_start(&mut self, selection: FrameSelection) {
        self.frame_selection = selection;
        self.reference_frames = ReferenceFrameSelector::default();
        if selection >= FrameSelection::ReferenceFrames {
            self.probe_reserve = Vec::new();
        }
    }

    /// Sets the rate at which congestion control paces bursts, in bytes per second.
    pub fn set_paced_burst_byte_rate(&mut self, rate: u32) {
        self.paced_burst_rate = Some(rate);
    }

    /// Whether the source should be asked for a key frame: not where every frame but those is left out.
    pub fn should_request_key_frame(&self) -> bool {
        self.frame_selection >= FrameSelection::ReferenceFrames && self.awaits_key_frame()
    }

    /// Sends nothing more, and goes on with the newest key frame.
    pub fn stop_until_any_key_frame(&mut self) {
        self.send_state = SendState::AWAITING_KEY_FRAME;
    }

    /// Sends nothing more, and goes on with the next key frame.
    pub fn stop_until_next_key_frame(&mut self, ring: &PacketRing) {
        self.send_state = self.state_awaiting_next_key_frame(ring);
    }

    /// Whether a packet belongs to a frame that is left out. If it follows a key frame, that is complete.
    pub fn skip_packet_if_frame_unselected(&mut self, entry: &RingEntry) -> bool {
        if !self.is_excluded_by_key_frames_only(entry) {
            return self.frame_selection == FrameSelection::AudioOnly;
        }
        if let SendState::Live { .. } = self.send_state {
            self.mark_probe_reserve_outdated();
            self.send_state = SendState::AwaitingKeyFrame {
                until: None,
                cached: Some(self.key_frame.0),
            };
        }
        true
    }

    /// Returns how many bytes a track that is behind may send now, at least `credit`; up to `of_backlog` if it is far behind.
    pub fn sendable_bytes_given_backlog(
        &self,
        now: Instant,
        credit: u32,
        of_backlog: Option<u32>,
        ring: &PacketRing,
    ) -> u32 {
        let SendState::CatchingUp { cursor, pace: None, .. } = self.send_state else {
            return credit;
        };
        if self.frame_selection < FrameSelection::ReferenceFrames {
            return credit;
        }
        let is_old = |entry: &Arc<RingEntry>| {
            now.saturating_duration_since(entry.packet.arrival) > MAX_BACKLOG_AGE_BEFORE_SPEEDUP
        };
        match of_backlog.filter(|_| ring.get(cursor).is_some_and(is_old)) {
            Some(bytes) => credit.max(bytes),
            None => credit,
        }
    }

    pub(super) fn is_excluded_by_key_frames_only(&self, entry: &RingEntry) -> bool {
        self.frame_selection == FrameSelection::KeyFrames && entry.packet.time != self.key_frame.1
    }

    pub(super) fn state_awaiting_next_key_frame(&self, ring: &PacketRing) -> SendState {
        SendState::AwaitingKeyFrame {
            until: None,
            cached: ring.newest_key_frame_seq(),
        }
    }
}
