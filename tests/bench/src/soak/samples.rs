//! What the gateway occupies at one time, and how memory changes over many of these.

use std::{fmt, io, time::Duration};

use super::clients::Target;
use crate::gateway::Gateway;

/// What the gateway occupies at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Since the start of the load.
    pub at: Duration,
    /// Resident set of the gateway's own process, in bytes.
    pub rss: u64,
    pub descriptors: usize,
    pub threads: usize,
    pub sessions: u64,
    pub half_open: u64,
    /// Streams that the API lists.
    pub streams: u64,
    pub packaged_streams: u64,
    pub workers: u64,
    pub waiting_hls_requests: u64,
}

impl Sample {
    pub(super) const CSV_HEADER: &str = "seconds,rss_bytes,descriptors,threads,sessions,half_open_sessions,streams,\
                                         packaged_streams,workers,waiting_hls_requests";

    /// # Errors
    ///
    /// When the gateway is gone or does not answer.
    pub(super) fn take(gateway: &Gateway, target: Target, at: Duration) -> io::Result<Self> {
        let page = target.get("/metrics")?;
        let metric = |name: &str| metric_value(&page, name);
        let streams: Vec<serde_json::Value> = serde_json::from_str(&target.get("/api/v1/streams")?)
            .map_err(|error| io::Error::other(format!("/api/v1/streams: {error}")))?;
        // The connections of these requests are closed on both sides by now, or will be: see `has_same_counts`.
        let footprint = gateway.footprint()?;
        Ok(Self {
            at,
            rss: footprint.rss,
            descriptors: footprint.descriptors,
            threads: footprint.threads,
            sessions: metric("millstream_sessions"),
            half_open: metric("millstream_half_open_sessions"),
            streams: streams.len() as u64,
            packaged_streams: metric("millstream_hls_streams"),
            workers: metric("millstream_workers"),
            waiting_hls_requests: metric("millstream_hls_waiting_requests"),
        })
    }

    /// Whether nothing runs that somebody has to have asked for.
    pub(super) fn is_idle(&self) -> bool {
        self.sessions + self.half_open + self.packaged_streams + self.workers + self.waiting_hls_requests == 0
    }

    /// Whether everything but memory is the same.
    pub(super) fn has_same_counts(&self, other: &Self) -> bool {
        let counts = |sample: &Self| {
            let Self {
                descriptors, threads, ..
            } = *sample;
            let in_gateway = [
                sample.sessions,
                sample.half_open,
                sample.streams,
                sample.packaged_streams,
            ];
            (
                descriptors,
                threads,
                in_gateway,
                sample.workers,
                sample.waiting_hls_requests,
            )
        };
        counts(self) == counts(other)
    }

    pub(super) fn csv(&self) -> String {
        format!(
            "{:.0},{},{},{},{},{},{},{},{},{}",
            self.at.as_secs_f64(),
            self.rss,
            self.descriptors,
            self.threads,
            self.sessions,
            self.half_open,
            self.streams,
            self.packaged_streams,
            self.workers,
            self.waiting_hls_requests
        )
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RSS {:.1} MiB, {} descriptors, {} threads, {} sessions ({} half open), {} streams, {} packaged, {} workers, \
             {} HLS requests waiting",
            self.rss as f64 / 1_048_576.0,
            self.descriptors,
            self.threads,
            self.sessions,
            self.half_open,
            self.streams,
            self.packaged_streams,
            self.workers,
            self.waiting_hls_requests
        )
    }
}

/// The value of a metric without labels; 0 if the page does not have it.
fn metric_value(page: &str, name: &str) -> u64 {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Bytes per hour by which the resident set grows, by least squares; 0 for fewer than two samples.
pub(super) fn slope_per_hour(samples: &[&Sample]) -> f64 {
    let count = samples.len() as f64;
    let points = || {
        samples
            .iter()
            .map(|sample| (sample.at.as_secs_f64() / 3_600.0, sample.rss as f64))
    };
    let (mean_at, mean_rss) = points().fold((0.0, 0.0), |(at, rss), point| {
        (at + point.0 / count, rss + point.1 / count)
    });
    let covariance: f64 = points().map(|(at, rss)| (at - mean_at) * (rss - mean_rss)).sum();
    let variance: f64 = points().map(|(at, _)| (at - mean_at).powi(2)).sum();
    if variance > 0.0 { covariance / variance } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_a_line_is_found() {
        let samples: Vec<Sample> = (0..10)
            .map(|n| Sample {
                at: Duration::from_secs(n * 360),
                rss: 1_000 + n * 5,
                ..Sample::default()
            })
            .collect();
        let all: Vec<&Sample> = samples.iter().collect();
        assert!((slope_per_hour(&all) - 50.0).abs() < 1e-6);
        assert!(slope_per_hour(&all[..1]).abs() < 1e-6);
        assert!(slope_per_hour(&[]).abs() < 1e-6);
    }

    #[test]
    fn a_metric_is_not_taken_for_another_that_begins_alike() {
        let page = "# TYPE a gauge\na_b 3\na{x=\"y\"} 4\na 5\n";
        assert_eq!(metric_value(page, "a"), 5);
        assert_eq!(metric_value(page, "c"), 0);
    }
}
