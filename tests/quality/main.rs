//! Congestion control of viewers on simulated links: a scoreboard of cases, and the reader of feedback against another.

mod cases;
mod feedback;
mod gcc;
mod heap;
mod link;
mod measures;
mod reader;
mod receiver;
mod rfc8867;
mod rng;
mod scoreboard;
mod sender;
mod source;
mod tcp;
mod trace;
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use scoreboard::Case;

const SEEDS: u64 = 20;

/// The baseline is for comparison only.
const BASELINE_SEEDS: u64 = 5;

/// A case, whether it was run with the baseline, and its values.
type Run = (usize, bool, Vec<u64>);

/// Runs all cases with all seeds, on as many threads as there are processors.
fn run(cases: &[Case]) -> Vec<Run> {
    let seeds = (0..SEEDS)
        .map(|seed| (seed, false))
        .chain((0..BASELINE_SEEDS).map(|seed| (seed, true)));
    let jobs: Vec<(usize, u64, bool)> = seeds
        .flat_map(|(seed, is_baseline)| (0..cases.len()).map(move |case| (case, seed, is_baseline)))
        .collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(vec![None; jobs.len()]));
    let work = || {
        while let Some((index, (case, seed, is_baseline))) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            jobs.get(index).map(|job| (index, *job))
        } {
            let values = (cases[case].run)(seed, is_baseline);
            done.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some((case, is_baseline, values));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    done.into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_iter()
        .flatten()
        .collect()
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the environment says whether the scoreboard is written"
)]
fn the_scoreboard_is_as_committed() {
    let filter = std::env::var("CASE").unwrap_or_default();
    let cases: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| case.name.contains(&filter))
        .collect();
    let runs = run(&cases);
    let mut text = scoreboard::HEAD.to_owned();
    for (index, case) in cases.iter().enumerate() {
        let of = |baseline| {
            let runs = runs
                .iter()
                .filter(|(case, is_baseline, _)| (*case, *is_baseline) == (index, baseline));
            runs.map(|(_, _, values)| values.clone()).collect::<Vec<_>>()
        };
        text += &scoreboard::lines(case, &of(false), &of(true));
    }
    println!("{text}");
    if !filter.is_empty() {
        return;
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quality/scoreboard.txt");
    if std::env::var("SCOREBOARD").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &text).expect("written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differing: Vec<&str> = text
        .lines()
        .filter(|line| !committed.lines().any(|other| other == *line))
        .collect();
    assert!(
        text == committed,
        "the scoreboard has changed; if that is intended: SCOREBOARD=write\n{}",
        differing.join("\n")
    );
}
