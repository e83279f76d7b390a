//! What a viewer is sent, why it is not more, and what its path is like: written by its shard about once a second, read by
//! the control plane.

use std::time::Duration;

use crate::congestion::QualityLimitationReason;
use crate::congestion::ladder::FrameSelection;
use crate::media::Rid;
use crate::media::clock::CaptureTimeSource;

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
    pub delays: ViewerDelays,
}

/// The parts of the delay from capture to display that the gateway measures. What it cannot know is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewerDelays {
    /// From capture to arrival, by the capture times of the source and its fastest sender report. The one-way delay of its fastest sender report is not
    /// included: that would take synchronized clocks.
    pub capture_to_gateway: Option<CaptureDelay>,
    /// From the arrival of the last packet of a frame until it was sent to this viewer.
    pub gateway: Option<Duration>,
    /// To the viewer: half of the round-trip time, and all of what waits on the way, where that is known.
    pub network: Option<Duration>,
}

/// A delay from capture to arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureDelay {
    pub delay: Duration,
    pub source: CaptureTimeSource,
}

impl ViewerQuality {
    /// Whether listeners are notified of the change from `before`: not of measurements.
    pub fn has_selection_or_limitation_changed_since(&self, before: &Self) -> bool {
        let choice = |quality: &Self| (quality.layer.clone(), quality.frames, quality.limitation_reason);
        choice(self) != choice(before)
    }
}
