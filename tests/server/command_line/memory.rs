//! What the allocator of a gateway reserves.

use std::fs;

use super::{Running, program};

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
