//! The results as text with targets, as a Markdown table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    floor::Floor,
    load::{Churn, Run},
    procfs,
    stats::{micros_per, ms},
};

/// Viewers at which the targets hold, on a machine with two cores.
const TARGET_VIEWERS: usize = 200;

/// CPU of others, in percent of a core, from which on waiting for a core shows in the tails of all times.
const BUSY_PERCENT: f64 = 25.0;

/// A figure that has a target.
struct Target {
    name: &'static str,
    unit: &'static str,
    limit: f64,
    /// Whether the limit itself still meets the target.
    inclusive: bool,
    value: fn(&Run) -> f64,
}

const TARGETS: [Target; 6] = [
    Target {
        name: "CPU per packet / paced floor",
        unit: "",
        limit: 1.6,
        inclusive: true,
        value: Run::ratio,
    },
    Target {
        name: "RSS per viewer",
        unit: "KiB",
        limit: 40.0,
        inclusive: true,
        value: Run::rss_per_viewer,
    },
    Target {
        name: "CPU per join",
        unit: "ms",
        limit: 1.5,
        inclusive: true,
        value: |run| ms(run.join_cpu),
    },
    Target {
        name: "POST to connected, p99",
        unit: "ms",
        limit: 15.0,
        inclusive: true,
        value: |run| ms(run.connect.p99),
    },
    Target {
        name: "added delay, p99",
        unit: "ms",
        limit: 10.0,
        inclusive: false,
        value: |run| ms(run.delay.p99),
    },
    Target {
        name: "packets lost",
        unit: "",
        limit: 0.0,
        inclusive: true,
        value: |run| run.tally.lost() as f64,
    },
];

impl Target {
    fn met(&self, run: &Run) -> bool {
        let value = (self.value)(run);
        if self.inclusive {
            value <= self.limit
        } else {
            value < self.limit
        }
    }
}

impl Run {
    /// Server CPU per RTP packet that arrived at a viewer, in us.
    fn us_per_packet(&self) -> f64 {
        micros_per(self.server_cpu, self.tally.received)
    }

    fn ratio(&self) -> f64 {
        ratio(self.us_per_packet(), self.floor.paced)
    }

    fn rss_per_viewer(&self) -> f64 {
        self.growth.rss as f64 / 1024.0 / self.viewers.max(1) as f64
    }

    fn heap_per_viewer(&self) -> f64 {
        self.growth.heap as f64 / 1024.0 / self.viewers.max(1) as f64
    }

    fn percent(&self, cpu: std::time::Duration) -> f64 {
        cpu.as_secs_f64() / self.window.as_secs_f64() * 100.0
    }

    /// Whether what arrived is what was sent: nothing lost, changed or doubled, and something arrived at all.
    pub(crate) fn is_valid(&self) -> bool {
        let churn = self
            .churn
            .as_ref()
            .is_none_or(|churn| churn.tally.lost() == 0 && churn.tally.corrupt == 0);
        self.tally.received > 0 && self.tally.audited > 0 && self.tally.lost() == 0 && self.tally.corrupt == 0 && churn
    }
}

fn ratio(value: f64, floor: f64) -> f64 {
    if floor > 0.0 { value / floor } else { 0.0 }
}

/// Whether every target is met by each run that it applies to.
pub(crate) fn targets_met(runs: &[Run]) -> bool {
    runs.iter()
        .filter(|run| run.viewers == TARGET_VIEWERS)
        .all(|run| TARGETS.iter().all(|target| target.met(run)))
}

/// The value of a target beside its limit.
/// The word for a target that was met, or was not.
pub(crate) fn met_or_missed(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

fn verdict(target: &Target, run: &Run) -> String {
    let sign = if target.inclusive { "<=" } else { "<" };
    let verdict = met_or_missed(target.met(run));
    let (value, unit, limit) = ((target.value)(run), target.unit, target.limit);
    format!("{value:.2} {unit} ({sign} {limit} {unit}): {verdict}")
}

/// One run for the terminal.
pub(crate) fn text(run: &Run) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {name:<28} {value}");
    };
    line(
        "server CPU per packet",
        format!(
            "{:.3} us ({:.1} % of a core)",
            run.us_per_packet(),
            run.percent(run.server_cpu)
        ),
    );
    let floor = &run.floor;
    line(
        "floor (paced)",
        format!("{:.3} us, ratio {:.2}", floor.paced, run.ratio()),
    );
    let back_to_back = ratio(run.us_per_packet(), floor.back_to_back);
    line(
        "floor (back to back)",
        format!("{:.3} us, ratio {back_to_back:.2}", floor.back_to_back),
    );
    line(
        "packets",
        format!(
            "{} of {} arrived, {} lost",
            run.tally.received,
            run.tally.expected,
            run.tally.lost()
        ),
    );
    let tally = &run.tally;
    line(
        "audited bit by bit",
        format!(
            "{}, {} wrong, {} doubled",
            tally.audited, tally.corrupt, tally.duplicates
        ),
    );
    line("added delay", quantiles(&run.delay));
    line("floor's delay (paced)", quantiles(&floor.delay));
    line("POST to connected", quantiles(&run.connect));
    line("CPU per join", format!("{:.2} ms", ms(run.join_cpu)));
    line(
        "RSS per viewer",
        format!(
            "{:.1} KiB (heap {:.1}), {:.1} MiB in all",
            run.rss_per_viewer(),
            run.heap_per_viewer(),
            run.memory.rss as f64 / 1_048_576.0
        ),
    );
    line(
        "dropped at full sockets",
        format!("{} viewers', {} server's", run.tool_drops, run.server_drops),
    );
    line(
        "CPU of others",
        format!(
            "load tool {:.1} %, rest of the machine {:.1} %",
            run.percent(run.tool_cpu),
            run.percent(run.others_cpu)
        ),
    );
    if run.percent(run.others_cpu) > BUSY_PERCENT {
        line(
            "note",
            "the machine was busy with something else: delays and times to connect say little".into(),
        );
    }
    if let Some(churn) = &run.churn {
        line("churn", churn_text(churn));
    }
    if run.viewers == TARGET_VIEWERS {
        for target in &TARGETS {
            line(target.name, format!("target {}", verdict(target, run)));
        }
    }
    out
}

/// The floor alone for the terminal.
pub(crate) fn floor_text(floor: &Floor) -> String {
    format!(
        "  paced {:.3} us per packet, back to back {:.3}; delay {}; {} lost\n",
        floor.paced,
        floor.back_to_back,
        quantiles(&floor.delay),
        floor.lost,
    )
}

fn quantiles(q: &crate::stats::Quantiles) -> String {
    format!(
        "p50 {:.2}, p95 {:.2}, p99 {:.2}, max {:.2} ms",
        ms(q.p50),
        ms(q.p95),
        ms(q.p99),
        ms(q.max)
    )
}

fn churn_text(churn: &Churn) -> String {
    format!(
        "{} joins and leaves in {:.1} s; {}; of those who stayed {} lost, delay p99 {:.2} ms; RSS {:+.1} MiB",
        churn.joins,
        churn.length.as_secs_f64(),
        quantiles(&churn.connect),
        churn.tally.lost(),
        ms(churn.delay.p99),
        churn.rss_growth as f64 / 1_048_576.0,
    )
}

/// All runs as a table for the documentation.
pub(crate) fn markdown(runs: &[Run]) -> String {
    let mut out = String::from(
        "| viewers | us/packet | floor paced (ratio) | floor back to back (ratio) | core % | RSS (heap) KiB/viewer | join CPU ms \
         | connect p50/p99 ms | delay p50/p95/p99 ms | lost | tool % | others % |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for run in runs {
        let _ = writeln!(
            out,
            "| {} | **{:.2}** | {:.2} ({:.2}) | {:.2} ({:.2}) | {:.1} | {:.0} ({:.0}) | {:.2} | {:.1}/{:.1} | {:.2}/{:.2}/{:.2} | {} | {:.1} | {:.0} |",
            run.viewers,
            run.us_per_packet(),
            run.floor.paced,
            run.ratio(),
            run.floor.back_to_back,
            ratio(run.us_per_packet(), run.floor.back_to_back),
            run.percent(run.server_cpu),
            run.rss_per_viewer(),
            run.heap_per_viewer(),
            ms(run.join_cpu),
            ms(run.connect.p50),
            ms(run.connect.p99),
            ms(run.delay.p50),
            ms(run.delay.p95),
            ms(run.delay.p99),
            run.tally.lost(),
            run.percent(run.tool_cpu),
            run.percent(run.others_cpu),
        );
    }
    let _ = writeln!(out, "\nMachine: {}.", procfs::machine());
    out
}

/// All runs for machines.
pub(crate) fn json(runs: &[Run]) -> Value {
    json!({
        "machine": procfs::machine(),
        "targets_met": targets_met(runs),
        "runs": runs.iter().map(run_json).collect::<Vec<_>>(),
    })
}

fn run_json(run: &Run) -> Value {
    let targets: Vec<Value> = TARGETS
        .iter()
        .map(|target| {
            let applies = run.viewers == TARGET_VIEWERS;
            json!({
                "name": target.name, "unit": target.unit, "limit": target.limit, "value": (target.value)(run),
                "met": applies.then(|| target.met(run)),
            })
        })
        .collect();
    json!({
        "viewers": run.viewers,
        "seconds": run.window.as_secs_f64(),
        "us_per_packet": run.us_per_packet(),
        "floor_paced_us": run.floor.paced,
        "floor_back_to_back_us": run.floor.back_to_back,
        "floor_delay": run.floor.delay.json(),
        "ratio_paced": run.ratio(),
        "ratio_back_to_back": ratio(run.us_per_packet(), run.floor.back_to_back),
        "server_cpu_percent": run.percent(run.server_cpu),
        "tool_cpu_percent": run.percent(run.tool_cpu),
        "others_cpu_percent": run.percent(run.others_cpu),
        "packets_expected": run.tally.expected,
        "packets_received": run.tally.received,
        "packets_lost": run.tally.lost(),
        "packets_doubled": run.tally.duplicates,
        "packets_audited": run.tally.audited,
        "packets_corrupt": run.tally.corrupt,
        "packets_other": run.tally.other,
        "delay": run.delay.json(),
        "connect": run.connect.json(),
        "join_cpu_ms": ms(run.join_cpu),
        "rss_bytes": run.memory.rss,
        "heap_bytes": run.memory.heap,
        "rss_per_viewer_kib": run.rss_per_viewer(),
        "heap_per_viewer_kib": run.heap_per_viewer(),
        "viewer_socket_drops": run.tool_drops,
        "server_socket_drops": run.server_drops,
        "targets": targets,
        "churn": run.churn.as_ref().map(|churn| json!({
            "joins": churn.joins, "seconds": churn.length.as_secs_f64(), "connect": churn.connect.json(),
            "packets_lost": churn.tally.lost(), "delay": churn.delay.json(), "rss_growth_bytes": churn.rss_growth,
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{stats::Quantiles, viewer::Tally};
    use std::time::Duration;

    fn sample(viewers: usize, received: u64) -> Run {
        Run {
            viewers,
            window: Duration::from_secs(10),
            floor: Floor {
                paced: 1.0,
                back_to_back: 0.5,
                ..Floor::default()
            },
            server_cpu: Duration::from_secs(1),
            tool_cpu: Duration::from_secs(1),
            others_cpu: Duration::ZERO,
            tally: Tally {
                expected: 1_000_000,
                received,
                audited: 9,
                ..Tally::default()
            },
            delay: Quantiles::default(),
            connect: Quantiles::default(),
            join_cpu: Duration::from_millis(1),
            memory: procfs::Memory {
                rss: 9 << 20,
                heap: 5 << 20,
            },
            growth: procfs::Memory {
                rss: 4 << 20,
                heap: 3 << 20,
            },
            tool_drops: 0,
            server_drops: 0,
            churn: None,
        }
    }

    #[test]
    fn a_run_at_the_target_size_is_judged() {
        let good = sample(200, 1_000_000);
        assert!(
            good.is_valid() && targets_met(std::slice::from_ref(&good)),
            "{}",
            text(&good)
        );
        assert!(!text(&good).contains("MISSED"));
        let lossy = sample(200, 999_999);
        assert!(!lossy.is_valid() && !targets_met(std::slice::from_ref(&lossy)));
        assert!(text(&lossy).contains("MISSED"));
    }

    #[test]
    fn a_smaller_run_has_no_verdict() {
        let run = sample(10, 999_999);
        assert!(targets_met(std::slice::from_ref(&run)));
        assert!(!text(&run).contains("target"));
        assert_eq!(json(&[run])["runs"][0]["targets"][0]["met"], Value::Null);
    }

    #[test]
    fn a_busy_machine_is_named_beside_the_times_it_spoils() {
        let mut run = sample(200, 1_000_000);
        assert!(!text(&run).contains("busy"));
        run.others_cpu = Duration::from_secs(5);
        assert!(text(&run).contains("busy"));
    }

    #[test]
    fn the_table_has_a_cell_for_each_column() {
        let table = markdown(&[sample(200, 1_000_000)]);
        let bars: Vec<usize> = table.lines().take(3).map(|line| line.matches('|').count()).collect();
        assert_eq!(bars, [13, 13, 13]);
    }
}
