//! Workers that are started and stopped over and over leave nothing behind.

use std::collections::BTreeMap;

use millstream::pipeline::library::PipelineLibrary;
use millstream::pipeline::worker_process::WorkerProcess;
use millstream::pipeline::worker_slots::{WorkerOwner, WorkerSlots};
use millstream_worker_runtime::wire::MessageFromWorker;

use crate::pipeline::programs;

/// In CI; `make source-faults` runs a thousand.
const SHORT: usize = 40;

/// Descriptors, threads, children and resident memory of this process.
fn holdings() -> BTreeMap<&'static str, usize> {
    let count = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a line");
    let kib = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    BTreeMap::from([
        ("descriptors", count("/proc/self/fd")),
        ("threads", count("/proc/self/task")),
        ("workers", crate::pipeline::workers().len()),
        ("resident KiB", kib),
    ])
}

/// In a process of its own: other tests start workers too.
#[test]
fn workers_leave_nothing_behind() {
    crate::pipeline::alone(&["pipeline::cycles::cycles"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn cycles() {
    let asked = std::env::var_os("WORKER_CYCLES").and_then(|count| count.to_str()?.parse().ok());
    let rounds = asked.unwrap_or(SHORT);
    let library = PipelineLibrary::with_shipped_pipelines();
    let description = library.get("slate").expect("it is shipped");
    let (job, _) = description
        .build_job_and_target_urls(&toml::Table::new(), Vec::new())
        .expect("defaults");
    let mut before = None;
    let slots = WorkerSlots::default();
    for round in 0..rounds {
        let mut process = WorkerProcess::spawn_pipeline_worker(
            &programs(),
            slots.acquire(WorkerOwner::ConfiguredSource).expect("a free slot"),
            job.clone(),
            description.limits,
        )
        .expect("starts");
        while !matches!(
            process.read_message_or_kill_worker().await.expect("it runs"),
            MessageFromWorker::Frame(_)
        ) {}
        // All other ways of ending: graceful stop, kill, drop.
        match round % 3 {
            0 => process.stop().await,
            1 => process.kill().await,
            _ => drop(process),
        }
        if round == rounds / 10 {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            before = Some(holdings());
        }
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let (before, after) = (before.expect("enough rounds"), holdings());
    println!("measured: {rounds} cycles: {before:?} before, {after:?} after");
    for what in ["descriptors", "threads", "workers"] {
        assert!(after[what] <= before[what] + 1, "{what}: {before:?} {after:?}");
    }
    assert!(
        after["resident KiB"] < before["resident KiB"] + 4_096,
        "{before:?} {after:?}"
    );
}
