//! What a viewer gets.

use super::ladder::{FrameSelection, QualityLadder};
use super::overload::OverloadReason;
use super::prober::ProbeResult;

/// What a viewer gets, and why it is not more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveredQuality {
    pub layer: u8,
    pub frames: FrameSelection,
    pub limitation_reason: QualityLimitationReason,
}

/// Why a viewer does not get the best rung of its ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QualityLimitationReason {
    /// It gets it.
    None,
    Bandwidth,
    /// It cannot decode the better layers, which have another codec.
    Codec,
}

/// What the layer was last decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerDecisionCause {
    /// The step down, or its omission, that this overload led to.
    Overload(OverloadReason),
    Probe(ProbeResult),
}

impl DeliveredQuality {
    /// What a choice on a ladder is for the viewer.
    pub(super) fn from_layer_choice((layer, frames): (u8, FrameSelection), ladder: &QualityLadder) -> Self {
        // What the selection no longer allows is left soon, whatever the path carries.
        let index = ladder.rung_index_of(layer, frames);
        let is_top = index.is_none() || index >= ladder.top_usable_index();
        let limitation_reason = match is_top {
            true => QualityLimitationReason::None,
            false => QualityLimitationReason::Bandwidth,
        };
        Self {
            layer,
            frames,
            limitation_reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ladder::QualityRung;
    use super::*;

    #[test]
    fn only_what_is_on_the_ladder_and_below_its_top_is_limited() {
        let mut ladder = QualityLadder::new(0);
        for layer in [1, 2] {
            ladder.push(QualityRung {
                layer,
                frames: FrameSelection::All,
                payload_bitrate: 1_000_000,
                usable: true,
            });
        }
        let reason =
            |layer| DeliveredQuality::from_layer_choice((layer, FrameSelection::All), &ladder).limitation_reason;
        assert_eq!(reason(1), QualityLimitationReason::Bandwidth);
        assert_eq!(reason(2), QualityLimitationReason::None);
        assert_eq!(reason(0), QualityLimitationReason::None, "no longer selected");
    }
}
