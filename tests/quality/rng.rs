//! Seeded chance that gives the same numbers on every machine and with every version of every crate.

pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// SplitMix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end`, without it.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// True in `parts` of 10,000 cases.
    pub(crate) fn chance(&mut self, parts: u64) -> bool {
        parts > 0 && self.below(10_000) < parts
    }

    /// About normal, as the sum of twelve uniform numbers; cut at three deviations.
    pub(crate) fn normal(&mut self, deviation: i64) -> i64 {
        let sum: i64 = (0..3)
            .map(|_| self.next())
            .map(|bits| {
                (0..4)
                    .map(|part| (bits >> (16 * part) & 0xffff).cast_signed())
                    .sum::<i64>()
            })
            .sum();
        ((sum - 6 * 65_536) * deviation / 65_536).clamp(-3 * deviation, 3 * deviation)
    }

    /// Exponential with this mean: time until an event of a Poisson process.
    pub(crate) fn exponential(&mut self, mean: u64) -> u64 {
        // By halvings, in integers: the bits of a uniform number until the first one, and the rest linear in between.
        let bits = self.next();
        let halvings = u64::from(bits.leading_zeros());
        let rest = bits << (halvings + 1).min(63) >> 32;
        let units = halvings * 1_000 + 1_000 - ((rest * 1_000) >> 32);
        mean * units * 693 / 1_000_000
    }
}
