//! Histograms of the delays of all viewers, for the metrics.

use super::viewer_delays::{DelayPart, KnownDelays};
use millstream_core::shard::counters::Histogram;

/// Bounds of the histograms: 1 ms, as in the gateway, to 10 s.
const DELAY_BOUNDS_US: [u64; 12] = [
    1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// The delays of all viewers, observed once a second, by part; the last one is the sum of the known parts.
pub struct ViewerDelayHistograms {
    parts: [Histogram<{ DELAY_BOUNDS_US.len() }>; DelayPart::ALL.len()],
    total: Histogram<{ DELAY_BOUNDS_US.len() }>,
}

/// Label of the sum.
const TOTAL_LABEL: &str = "total";

impl Default for ViewerDelayHistograms {
    fn default() -> Self {
        Self {
            parts: std::array::from_fn(|_| Histogram::new(&DELAY_BOUNDS_US)),
            total: Histogram::new(&DELAY_BOUNDS_US),
        }
    }
}

impl ViewerDelayHistograms {
    /// Counts the known parts of one delay, and their sum.
    pub fn record(&self, delays: &KnownDelays) {
        let Some(total) = delays.total() else { return };
        self.total.record(total);
        for (part, histogram) in DelayPart::ALL.into_iter().zip(&self.parts) {
            if let Some(delay) = delays.part(part) {
                histogram.record(delay);
            }
        }
    }

    /// Returns the histograms with the labels of their parts.
    pub fn by_label(&self) -> impl Iterator<Item = (&'static str, &Histogram<{ DELAY_BOUNDS_US.len() }>)> {
        let parts = DelayPart::ALL.into_iter().map(DelayPart::label).zip(&self.parts);
        parts.chain([(TOTAL_LABEL, &self.total)])
    }
}
