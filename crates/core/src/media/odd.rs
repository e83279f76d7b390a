//! Payloads from which no decoder makes anything: why they are passed over, and how often.

use std::fmt;

/// Why a payload, or a NAL unit in it, is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// No payload, or only padding.
    Empty,
    /// Shorter than its own headers or lengths say.
    Truncated,
    /// The forbidden bit of a NAL unit is set: its sender knows that it has bit errors.
    ForbiddenBit,
    /// A NAL unit type, or a type of packet, that the payload format does not define.
    UndefinedType,
    /// A packet of interleaved mode or with decoding order numbers, which was not negotiated.
    Interleaved,
    /// A fragment of which the start or the end was never sent.
    StrayFragment,
    /// A packet of a frame that was complete already.
    AfterFrame,
}

impl Odd {
    const ALL: [Self; 7] = [
        Self::Empty,
        Self::Truncated,
        Self::ForbiddenBit,
        Self::UndefinedType,
        Self::Interleaved,
        Self::StrayFragment,
        Self::AfterFrame,
    ];
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "packets without payload",
            Self::Truncated => "truncated payloads",
            Self::ForbiddenBit => "NAL units with the forbidden bit set",
            Self::UndefinedType => "undefined NAL unit types",
            Self::Interleaved => "packets of interleaved mode",
            Self::StrayFragment => "fragments without start or end",
            Self::AfterFrame => "packets after the end of their frame",
        })
    }
}

/// How often payloads were passed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OddCounts([u64; Odd::ALL.len()]);

impl OddCounts {
    /// Counts one. Returns whether it is the first of its kind.
    pub fn add(&mut self, odd: Odd) -> bool {
        let Some(count) = self.0.get_mut(odd as usize) else {
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
    pub fn iter(&self) -> impl Iterator<Item = (Odd, u64)> + '_ {
        let counts = Odd::ALL.into_iter().zip(self.0);
        counts.filter(|(_, count)| *count > 0)
    }

    /// Returns how often one kind occurred.
    pub fn of(&self, odd: Odd) -> u64 {
        self.0.get(odd as usize).copied().unwrap_or(0)
    }
}
