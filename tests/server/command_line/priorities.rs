//! Which threads run first when processors are short.

use std::collections::BTreeMap;
use std::fs;

use super::{Running, program};

/// Nice values of the threads of a process, by the name of the thread.
fn nice_by_thread(pid: u32) -> BTreeMap<String, Vec<i32>> {
    let mut found = BTreeMap::<String, Vec<i32>>::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).expect("threads") {
        // A thread may end meanwhile.
        let Ok(stat) = fs::read_to_string(entry.expect("thread").path().join("stat")) else {
            continue;
        };
        let (name, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let name = name.split_once('(').expect("a name in parentheses").1;
        // proc(5): nice is the 19th field, the state after the name is the third.
        let nice = fields.split(' ').nth(16).expect("nice").parse().expect("a number");
        found.entry(name.to_owned()).or_default().push(nice);
    }
    found
}

/// F27.
#[test]
fn shards_run_before_the_control_plane_and_before_workers() {
    let gateway = Running::start(program(&["serve"]));
    gateway.request("GET /healthz HTTP/1.0\r\n\r\n");
    let own = nice_by_thread(std::process::id());
    let own = own.values().flatten().min().expect("this thread");
    let threads = nice_by_thread(gateway.child.id());
    let shard = threads["shard-0"][0];
    assert!(shard <= *own, "{threads:?}");
    for (name, nice) in &threads {
        if name.starts_with("tokio") {
            assert!(nice.iter().all(|nice| *nice > shard), "{threads:?}");
            // Also where the gateway itself was started with another value; 19 is the highest.
            let control = (threads["millstream"][0] + 5).min(19);
            assert!(nice.iter().all(|nice| *nice == control), "{threads:?}");
        }
    }
    assert!(threads.keys().any(|name| name.starts_with("tokio")), "{threads:?}");
    println!("measured: nice values of threads: {threads:?}");
    assert_eq!(gateway.end("-TERM").0, Some(0));
}

/// The pipeline workers of a gateway.
fn workers_of(gateway: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("processes");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_worker = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((name, fields)) = stat.rsplit_once(") ") else {
            return false;
        };
        // Until the program is loaded, it is a copy of the gateway.
        let parent = fields.split(' ').nth(1).and_then(|parent| parent.parse().ok());
        name.contains("(millstream-gst") && parent == Some(gateway)
    };
    pids.filter(is_worker).collect()
}

/// How often, and how long after another, a worker is looked for.
const MAX_TRIES: usize = 1_000;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// F27, with a worker that encodes.
#[test]
fn workers_run_after_the_control_plane() {
    let gateway = Running::start(program(&["serve", "--demo"]));
    // The test pattern is made while it is watched.
    gateway.request("GET /hls/demo/index.m3u8 HTTP/1.0\r\n\r\n");
    let started = (0..MAX_TRIES).find_map(|_| match workers_of(gateway.child.id())[..] {
        [worker] => Some(worker),
        // Whatever is logged meanwhile is read, or the time passes.
        _ => {
            let _ = gateway.log.recv_timeout(PAUSE);
            None
        }
    });
    let worker = started.expect("a worker has started");
    let threads = nice_by_thread(gateway.child.id());
    let control = threads.iter().filter(|(name, _)| name.starts_with("tokio"));
    let control = *control.flat_map(|(_, nice)| nice).max().expect("threads of tokio");
    let shard = threads["shard-0"][0];
    let worker = nice_by_thread(worker);
    let first = *worker.values().flatten().min().expect("a thread");
    assert!(shard < control && control < first, "{threads:?}, worker: {worker:?}");
    assert_eq!(gateway.end("-TERM").0, Some(0));
}
