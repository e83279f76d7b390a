//! Threads and memory of the process.

/// Returns the kernel's id of the calling thread: its folder in `/proc/self/task`.
pub fn thread_id() -> u32 {
    // SAFETY: the call has no arguments and always succeeds (gettid(2)).
    let id = unsafe { libc::gettid() };
    u32::try_from(id).unwrap_or_default()
}

/// Gives memory that was freed back to the system. The allocator keeps what lies between allocations that live on, in an
/// arena of each thread: after a flood of requests that is most of the process.
pub fn trim_free_heap_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks each arena while it walks its free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Processors for which the allocator has an arena.
const PROCESSORS_PER_ARENA: usize = 4;

/// Returns the number of arenas of the allocator on a machine.
fn allocator_arena_count(processors: usize) -> usize {
    processors.div_ceil(PROCESSORS_PER_ARENA).max(1)
}

/// Limits the arenas of the allocator, unless `MALLOC_ARENA_MAX` does. To be called before other threads are started. By
/// default nearly each thread has an arena: what is free in one of them is not used by another thread, and can be given
/// back only where a whole page is free.
pub fn limit_malloc_arenas() {
    #[cfg(target_env = "gnu")]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = allocator_arena_count(processors).min(libc::c_int::MAX as usize) as libc::c_int;
        // SAFETY: it takes no pointer; the value is positive.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident memory of this process, in MiB.
    #[cfg(target_env = "gnu")]
    fn resident_mib() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
        let pages: usize = text
            .split(' ')
            .nth(1)
            .expect("a second field")
            .parse()
            .expect("a number");
        pages * 4 / 1024
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn memory_between_allocations_that_live_on_is_given_back() {
        let allocate = || {
            // Each block of 32 KiB is followed by one that lives on, so that no end of an arena becomes free.
            let pairs = (0..4_096).map(|_| (vec![1_u8; 32 * 1024], Box::new([1_u8; 64])));
            let (blocks, kept): (Vec<_>, Vec<_>) = pairs.unzip();
            (blocks.len(), kept)
        };
        let (count, kept) = std::thread::spawn(allocate).join().expect("ends");
        let before = resident_mib();
        trim_free_heap_memory();
        let after = resident_mib();
        assert_eq!((count, kept.len()), (4_096, 4_096));
        // 128 MiB were freed; other tests allocate meanwhile.
        assert!(after + 64 < before, "{before} MiB before, {after} MiB after");
    }

    #[test]
    fn small_machines_have_one_arena_and_large_ones_one_for_four_processors() {
        assert_eq!([1, 2, 4, 5, 16, 128].map(allocator_arena_count), [1, 1, 1, 2, 4, 32]);
    }
}
