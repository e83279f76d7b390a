//! The text format of Prometheus, 0.0.4, written family by family.

use std::fmt::{Display, Write as _};

use millstream_core::shard::counters::Histogram;

/// The text so far and the current metric family, which samples are added to.
#[derive(Default)]
pub(super) struct MetricsText {
    pub(super) text: String,
    family_name: &'static str,
}

impl MetricsText {
    pub(super) fn begin_metric_family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family_name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Adds a family that had another name before. That one is exported too, and removed in the next version.
    pub(super) fn add_renamed_family(
        &mut self,
        [name, former_name]: [&'static str; 2],
        kind: &str,
        help: &str,
        add_samples: impl Fn(&mut Self),
    ) {
        self.begin_metric_family(name, kind, help);
        add_samples(self);
        self.begin_deprecated_metric_family(former_name, kind, name);
        add_samples(self);
    }

    /// Begins a family whose values are in another one now, and which is removed in the next version.
    pub(super) fn begin_deprecated_metric_family(&mut self, former_name: &'static str, kind: &str, name: &str) {
        self.begin_metric_family(former_name, kind, &format!("Deprecated: use {name}."));
    }

    /// Adds the sum and the number of what was observed, to a family of type `summary`.
    pub(super) fn add_sum_and_count(&mut self, labels: &str, sum: impl Display, count: impl Display) {
        let name = self.family_name;
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(self.text, "{name}_sum{labels} {sum}\n{name}_count{labels} {count}");
    }

    pub(super) fn add_sample_with_label_list(&mut self, labels: &str, sample: impl Display) {
        let _ = writeln!(self.text, "{}{{{labels}}} {sample}", self.family_name);
    }

    pub(super) fn add_sample_with_label(&mut self, label: &str, value: impl Display, sample: impl Display) {
        let _ = writeln!(self.text, "{}{{{label}=\"{value}\"}} {sample}", self.family_name);
    }

    pub(super) fn add_histogram<const N: usize>(&mut self, name: &'static str, help: &str, histogram: &Histogram<N>) {
        self.begin_metric_family(name, "histogram", help);
        self.add_histogram_with_labels("", histogram);
    }

    /// Adds the buckets, the sum and the count of a histogram to a family of type `histogram`.
    pub(super) fn add_histogram_with_labels<const N: usize>(&mut self, labels: &str, histogram: &Histogram<N>) {
        let (name, counts) = (self.family_name, histogram.cumulative_counts());
        let bounds = histogram.bucket_bounds_seconds().map(|bound| bound.to_string());
        let bounds = bounds.chain(["+Inf".to_owned()]);
        let separator = if labels.is_empty() { "" } else { "," };
        for (bound, count) in bounds.zip(&counts) {
            let _ = writeln!(self.text, "{name}_bucket{{{labels}{separator}le=\"{bound}\"}} {count}");
        }
        let count = counts.last().copied().unwrap_or(0);
        self.add_sum_and_count(labels, histogram.sum_seconds(), count);
    }

    pub(super) fn add_sample(&mut self, sample: impl Display) {
        let _ = writeln!(self.text, "{} {sample}", self.family_name);
    }

    /// A gauge without labels.
    pub(super) fn add_gauge(&mut self, name: &'static str, help: &str, sample: impl Display) {
        self.begin_metric_family(name, "gauge", help);
        let _ = writeln!(self.text, "{name} {sample}");
    }

    /// A counter without labels.
    pub(super) fn add_counter(&mut self, name: &'static str, help: &str, sample: impl Display) {
        self.begin_metric_family(name, "counter", help);
        let _ = writeln!(self.text, "{name} {sample}");
    }

    /// Counters of one family, one for each reason.
    pub(super) fn add_counters_by_reason(
        &mut self,
        name: &'static str,
        help: &str,
        counters: impl IntoIterator<Item = (&'static str, u64)>,
    ) {
        self.begin_metric_family(name, "counter", help);
        for (reason, count) in counters {
            self.add_sample_with_label("reason", reason, count);
        }
    }
}
