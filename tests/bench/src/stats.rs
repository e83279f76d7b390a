//! Order statistics of a set of measurements.

use std::time::Duration;

use serde_json::{Value, json};

/// Median and tails of a set of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quantiles {
    pub count: usize,
    pub p50: Duration,
    pub p95: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Quantiles {
    /// Nearest-rank quantiles; all zero for an empty set. Sorts in place.
    pub(crate) fn of(samples: &mut [Duration]) -> Self {
        samples.sort_unstable();
        let rank = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100);
            samples.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self {
            count: samples.len(),
            p50: rank(50),
            p95: rank(95),
            p99: rank(99),
            max: rank(100),
        }
    }

    /// In ms, for the machine-readable report.
    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.count, "p50_ms": ms(self.p50), "p95_ms": ms(self.p95), "p99_ms": ms(self.p99),
            "max_ms": ms(self.max),
        })
    }
}

/// A duration as a number of ms.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// CPU time per item in us; zero when there is none.
pub(crate) fn micros_per(cpu: Duration, items: u64) -> f64 {
    if items == 0 {
        0.0
    } else {
        cpu.as_secs_f64() * 1e6 / items as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let mut samples: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let quantiles = Quantiles::of(&mut samples);
        let expected = [100, 190, 198, 200].map(Duration::from_millis);
        assert_eq!([quantiles.p50, quantiles.p95, quantiles.p99, quantiles.max], expected);
        assert_eq!(Quantiles::of(&mut []), Quantiles::default());
        assert_eq!(
            Quantiles::of(&mut [Duration::from_millis(3)]).p99,
            Duration::from_millis(3)
        );
    }

    #[test]
    fn nothing_received_costs_nothing_per_packet() {
        assert_eq!(micros_per(Duration::from_secs(1), 0), 0.0);
        assert_eq!(micros_per(Duration::from_secs(1), 1_000_000), 1.0);
    }
}
