//! What the allocator of a gateway reserves.

use std::fs;
use std::time::Duration;

use super::{PATIENCE, Running, program};

/// Size and alignment of what glibc reserves for each arena but the first.
#[cfg(target_env = "gnu")]
const ARENA_BYTES: u64 = 64 * 1024 * 1024;

/// The arenas of a process but the first: what is in use at their begin, and what is reserved behind it.
#[cfg(target_env = "gnu")]
fn further_arenas(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let ranges: Vec<(u64, u64)> = maps
        .lines()
        .filter_map(|line| {
            let (range, _) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        })
        .collect();
    let is_arena = |pair: &&[(u64, u64)]| {
        let (start, used_end, reserved_start, end) = (pair[0].0, pair[0].1, pair[1].0, pair[1].1);
        start % ARENA_BYTES == 0 && used_end == reserved_start && end - start == ARENA_BYTES
    };
    ranges.windows(2).filter(is_arena).count()
}

/// Memory of a process that is in use, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Streams that the API has removed leave nothing behind.
#[expect(clippy::disallowed_methods, reason = "the program is another process")]
#[test]
fn a_thousand_streams_that_come_and_go_give_their_memory_back() {
    let state_file = format!("{}/memory.state.toml", env!("CARGO_TARGET_TMPDIR"));
    let mut command = program(&["serve"]);
    command
        .env("MILLSTREAM_AUTH__API_TOKEN", "operator")
        .env("MILLSTREAM_API__STATE_FILE", &state_file)
        .env("MILLSTREAM_PIPELINES__TRANSCODE", "false")
        .env("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0");
    let gateway = Running::start(command);
    let send = |method: &str, n: usize, body: &str| {
        let head = format!(
            "{method} /api/v1/streams/many/{n} HTTP/1.0\r\nAuthorization: Bearer operator\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let reply = gateway.request(&(head + body));
        assert!(reply.starts_with("HTTP/1.0 20"), "{method} {n}: {reply}");
    };
    let round = || {
        (0..1_000).for_each(|n| send("PUT", n, r#"{"rtsp":"rtsp://192.0.2.7/","on_demand":true}"#));
        (0..1_000).for_each(|n| send("DELETE", n, ""));
    };
    round();
    // What is free is given back to the system every 15 s. It is back when less is in use than at the end of the round.
    let pid = gateway.child.id();
    let given_back = |limit: u64| {
        for _ in 0..PATIENCE.as_secs() {
            if resident_kib(pid) < limit {
                return resident_kib(pid);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        resident_kib(pid)
    };
    let first = given_back(resident_kib(pid) - 4_096);
    round();
    let last = given_back(first + 2_048);
    assert!(
        last < first + 2_048,
        "{first} KiB after the first thousand, {last} KiB after the second"
    );
    assert_eq!(gateway.end("-TERM").0, Some(0));
    let _ = fs::remove_file(state_file);
}

#[cfg(target_env = "gnu")]
#[test]
fn threads_share_the_arenas_of_the_allocator() {
    let mut command = program(&["serve"]);
    command.env_remove("MALLOC_ARENA_MAX");
    let gateway = Running::start(command);
    for _ in 0..20 {
        gateway.request("GET /healthz HTTP/1.0\r\n\r\n");
    }
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let found = further_arenas(gateway.child.id());
    assert!(
        found < processors.div_ceil(4).max(1),
        "{found} further arenas, {processors} processors"
    );
    assert_eq!(gateway.end("-TERM").0, Some(0));
}
