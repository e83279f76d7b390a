//! Sandbox of a worker, entered before it loads any native library.
//!
//! * Process: no new privileges, no core dumps, a preferred victim of the OOM killer, killed together with the gateway.
//! * Memory: the gateway watches the resident memory. The limit set here is on data mappings, for growth faster than
//!   the gateway polls.
//! * [`system_calls`]: an allow-list (seccomp). Sockets only if the pipeline needs the network, and then no Unix sockets;
//!   `ioctl` requests of devices only for the classes of devices that the pipeline declares ([`devices`]).
//! * [`files`]: an allow-list (Landlock, if the kernel has it). No writes; reads only of the files that the pipeline
//!   declared and of the named files that libraries need. Signals and abstract Unix sockets do not leave the sandbox.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use crate::wire::PipelineJob;

mod devices;
mod files;
mod system_calls;

pub use devices::is_device_or_device_folder;
pub use files::{FileRestriction, is_landlock_supported};

/// Maximum number of open files and sockets of one worker.
const MAX_OPEN_FILES: u64 = 256;

/// Ratio of the limit on data mappings to that on resident memory: stacks and arenas are mostly empty.
const DATA_TO_RESIDENT_MEMORY_RATIO: u64 = 4;

/// Restricts this process irrevocably.
///
/// # Errors
///
/// The first restriction that the kernel rejects. Landlock is skipped where it is not available.
pub fn sandbox_this_process(job: &PipelineJob) -> io::Result<FileRestriction> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    set_resource_limit(Resource::Core, 0)?;
    set_resource_limit(Resource::Nofile, MAX_OPEN_FILES)?;
    set_resource_limit(Resource::Data, job.memory.saturating_mul(DATA_TO_RESIDENT_MEMORY_RATIO))?;
    let _ = fs::write("/proc/self/oom_score_adj", "800");
    pin_to_processor_count(job.processors)?;
    let restriction = files::restrict_file_access(job)?;
    system_calls::restrict_system_calls(job.network, &devices::device_classes(job))?;
    Ok(restriction)
}

fn set_resource_limit(resource: Resource, max: u64) -> io::Result<()> {
    let bounds = Rlimit {
        current: Some(max),
        maximum: Some(max),
    };
    Ok(setrlimit(resource, bounds)?)
}

/// Binds to `count` processors; the first one depends on the process id, to spread the workers.
fn pin_to_processor_count(count: u32) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let all = rustix::thread::sched_getaffinity(None)?;
    let usable: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| all.is_set(*cpu))
        .collect();
    let mut set = rustix::thread::CpuSet::new();
    let first = std::process::id() as usize;
    for offset in 0..(count as usize).min(usable.len()) {
        if let Some(cpu) = usable.get((first + offset) % usable.len()) {
            set.set(*cpu);
        }
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
