//! Payloads from which no decoder makes anything: why they are passed over, and how often.

use std::fmt;

/// Why a payload, or a NAL unit in it, is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadDiscardReason {
    /// No payload, or only padding.
    EmptyPayload,
    /// Shorter than its own headers or lengths say.
    TruncatedPayload,
    /// The forbidden bit of a NAL unit is set: its sender knows that it has bit errors.
    ForbiddenBit,
    /// A NAL unit type, or a type of packet, that the payload format does not define.
    UndefinedNalType,
    /// `nuh_temporal_id_plus1` of an H.265 NAL unit is 0, which no NAL unit may have (ITU-T H.265 §7.4.2.2).
    ZeroTemporalId,
    /// A packet of interleaved mode or with decoding order numbers, which was not negotiated.
    InterleavedMode,
    /// A fragment of which the start or the end was never sent.
    StrayFragment,
    /// A packet of a frame that was complete already.
    AfterFrameEnd,
}

impl PayloadDiscardReason {
    const ALL_REASONS: [Self; 8] = [
        Self::EmptyPayload,
        Self::TruncatedPayload,
        Self::ForbiddenBit,
        Self::UndefinedNalType,
        Self::ZeroTemporalId,
        Self::InterleavedMode,
        Self::StrayFragment,
        Self::AfterFrameEnd,
    ];
}

impl fmt::Display for PayloadDiscardReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyPayload => "RTP packets without payload",
            Self::TruncatedPayload => "truncated RTP payloads",
            Self::ForbiddenBit => "NAL units with the forbidden bit set",
            Self::UndefinedNalType => "NAL units of undefined types",
            Self::ZeroTemporalId => "H.265 NAL units without a valid temporal ID",
            Self::InterleavedMode => "RTP packets of the interleaved packetization mode",
            Self::StrayFragment => "fragmented NAL units or AV1 OBUs whose first or last fragment was not sent",
            Self::AfterFrameEnd => "RTP packets of a frame that a marker bit had already ended",
        })
    }
}

/// How often payloads were passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadDiscardCounts([u64; PayloadDiscardReason::ALL_REASONS.len()]);

impl PayloadDiscardCounts {
    /// Counts one. Returns whether it is the first of its kind.
    pub fn count_discard(&mut self, reason: PayloadDiscardReason) -> bool {
        let Some(count) = self.0.get_mut(reason as usize) else {
            return false;
        };
        *count += 1;
        *count == 1
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// Returns how often each kind occurred, without those that did not.
    pub fn iter(&self) -> impl Iterator<Item = (PayloadDiscardReason, u64)> + '_ {
        let counts = PayloadDiscardReason::ALL_REASONS.into_iter().zip(self.0);
        counts.filter(|(_, count)| *count > 0)
    }

    /// Returns how often one kind occurred.
    pub fn discard_count_of_reason(&self, reason: PayloadDiscardReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }
}
