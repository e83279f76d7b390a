//! What a viewer is sent, why it is not more, and what its path is like: written by its shard about once a second, read by
//! the control plane.

use std::time::Duration;

use crate::congestion::QualityLimitationReason;
use crate::congestion::ladder::FrameSelection;
use crate::media::Rid;

/// The state of one viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewerQuality {
    /// The simulcast layer that is sent; `None` without simulcast.
    pub layer: Option<Rid>,
    /// Which frames of it.
    pub frames: FrameSelection,
    pub limitation_reason: QualityLimitationReason,
    /// The viewer gives transport-wide congestion feedback.
    pub gives_transport_feedback: bool,
    /// Bits per second that arrive, if feedback tells.
    pub received_bitrate: Option<u32>,
    /// Delay of the path over its minimum, if feedback tells.
    pub queue_delay: Option<Duration>,
    /// Loss on the path in 1/256: of the last second by feedback, or of the last receiver report.
    pub fraction_lost: Option<u8>,
    /// Of the last receiver report.
    pub rtt: Option<Duration>,
    /// Packets that were sent again at the request of the viewer.
    pub retransmitted_packet_count: u64,
    /// Packets that were sent again to find out what the path carries.
    pub probe_packet_count: u64,
}

impl ViewerQuality {
    /// Whether listeners are notified of the change from `before`: not of measurements.
    pub fn has_selection_or_limitation_changed_since(&self, before: &Self) -> bool {
        let choice = |quality: &Self| (quality.layer.clone(), quality.frames, quality.limitation_reason);
        choice(self) != choice(before)
    }
}
