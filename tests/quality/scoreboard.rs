//! The scoreboard: a line for each measure of each case, compared with the committed one.

use std::fmt::Write as _;

/// A case and what is measured of it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) measures: &'static [Measure],
    /// Runs the case with a seed; `true` for the baseline. Returns a value for each measure.
    pub(crate) run: Box<dyn Fn(u64, bool) -> Vec<u64> + Sync>,
}

pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) goal: Goal,
}

#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtMost(u64),
    AtLeast(u64),
}

pub(crate) const fn at_most(name: &'static str, most: u64) -> Measure {
    Measure {
        name,
        goal: Goal::AtMost(most),
    }
}

pub(crate) const fn at_least(name: &'static str, least: u64) -> Measure {
    Measure {
        name,
        goal: Goal::AtLeast(least),
    }
}

/// Median, and the value that 19 of 20 seeds are no worse than.
pub(crate) fn percentiles(goal: Goal, mut values: Vec<u64>) -> (u64, u64) {
    values.sort_unstable();
    if matches!(goal, Goal::AtLeast(_)) {
        values.reverse();
    }
    let at = |percent: usize| values[((values.len() * percent).div_ceil(100)).saturating_sub(1)];
    (at(50), at(95))
}

/// The lines of one case.
pub(crate) fn lines(case: &Case, ours: &[Vec<u64>], baseline: &[Vec<u64>]) -> String {
    let mut text = String::new();
    for (index, measure) in case.measures.iter().enumerate() {
        let column = |runs: &[Vec<u64>]| percentiles(measure.goal, runs.iter().map(|run| run[index]).collect());
        let ((p50, p95), (gcc50, gcc95)) = (column(ours), column(baseline));
        let (sign, goal, is_met, is_better) = match measure.goal {
            Goal::AtMost(goal) => ("<=", goal, p95 <= goal, p95 <= gcc95),
            Goal::AtLeast(goal) => (">=", goal, p95 >= goal, p95 >= gcc95),
        };
        let verdict = if is_met { "met" } else { "MISSED" };
        let than = if is_better { "" } else { ", worse than Gcc" };
        let name = format!("{} {}", case.name, measure.name);
        let _ = writeln!(
            text,
            "{name:<52} {p50:>6} {p95:>6}  {sign}{goal:<6} {gcc50:>6} {gcc95:>6}  {verdict}{than}"
        );
    }
    text
}

pub(crate) const HEAD: &str = "\
Congestion control of viewers on simulated links, made by `SCOREBOARD=write cargo test --test quality`; compared by CI.
Layers 0.3, 1 and 2.5 Mbit/s at 30 fps, RTT 40 ms, queue 300 ms and feedback each 50 ms, unless said. Median and 95th
percentile (in the worse direction) over 20 seeds; beside them `rtc_interceptor::Gcc` with the highest layer that its
estimate covers, over 5 seeds. Numbers of missed goals stay as they are.

case                                                    p50    p95  goal       Gcc    p95
";
