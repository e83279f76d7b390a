//! Sandbox of a worker, entered before it loads any native library.
//!
//! * Process: no new privileges, no core dumps, a preferred victim of the OOM killer, killed together with the gateway.
//! * Memory: the gateway watches the resident memory. The limit set here is on data mappings, for growth faster than
//!   the gateway polls.
//! * System calls (seccomp): those that start programs or processes, signal or inspect other processes, or change the
//!   system are rejected; so are all sockets other than Unix sockets if the pipeline needs no network.
//! * Files (Landlock, if the kernel has it): no writes; reads only of the files that the pipeline declared and of those
//!   that libraries need.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _,
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::wire::Job;

/// Maximum number of open files and sockets of one worker.
const MAX_FILES: u64 = 256;

/// Ratio of the limit on data mappings to that on resident memory: stacks and arenas are mostly empty.
const MAPPED: u64 = 4;

/// Paths that libraries read, such as fonts, codec tables and certificates.
const LIBRARIES: [&str; 8] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc",
    "/proc",
    "/sys",
    "/run",
    "/var/cache/fontconfig",
];

/// Devices that every program may use.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/urandom", "/dev/random", "/dev/zero"];

/// Restricts this process irrevocably.
///
/// # Errors
///
/// The first restriction that the kernel rejects. Landlock is skipped where it is not available.
pub fn enter(job: &Job) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, MAX_FILES)?;
    limit(Resource::Data, job.memory.saturating_mul(MAPPED))?;
    // Media of other streams takes priority.
    let _ = rustix::process::nice(5);
    let _ = fs::write("/proc/self/oom_score_adj", "800");
    bind_to_processors(job.processors)?;
    restrict_files(job)?;
    restrict_system_calls(job.network)
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let bounds = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    Ok(setrlimit(resource, bounds)?)
}

/// Binds to `count` processors; the first one depends on the process id, to spread the workers.
fn bind_to_processors(count: u32) -> io::Result<()> {
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

fn restrict_files(job: &Job) -> io::Result<()> {
    let abi = ABI::V3;
    let read = AccessFs::from_read(abi);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let registry = ["GST_REGISTRY", "XDG_CACHE_HOME", "HOME"]
        .iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from);
    let own = std::env::current_exe().ok();
    let readable = LIBRARIES.iter().map(PathBuf::from).chain(registry).chain(own);
    let usable = DEVICES.iter().map(PathBuf::from).chain(job.files.iter().cloned());
    let rules = readable
        .map(|path| (path, read))
        .chain(usable.map(|path| (path, read | AccessFs::WriteFile)))
        .filter_map(|(path, access)| {
            let access = if path.is_dir() {
                access
            } else {
                access & AccessFs::from_file(abi)
            };
            Some(Ok::<_, landlock::RulesetError>(PathBeneath::new(
                PathFd::new(path).ok()?,
                access,
            )))
        });
    ruleset
        .add_rules(rules)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(io::Error::other)?;
    Ok(())
}

/// System calls that are rejected whatever their arguments: exec, other processes, the system.
const REFUSED: [i64; 42] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_tkill,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_io_uring_setup,
    libc::SYS_quotactl,
    libc::SYS_personality,
    libc::SYS_syslog,
];

fn restrict_system_calls(network: bool) -> io::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    // It may signal itself, to abort, but no other process: the gateway runs as the same user.
    let own = u64::from(std::process::id());
    for call in [
        libc::SYS_kill,
        libc::SYS_tgkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
    ] {
        rules.insert(call, vec![rule(0, SeccompCmpOp::Ne, own)?]);
    }
    // Threads are allowed, processes are not.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(thread), 0)?]);
    #[cfg(target_arch = "x86_64")]
    rules.extend([(libc::SYS_fork, Vec::new()), (libc::SYS_vfork, Vec::new())]);
    if !network {
        rules.insert(libc::SYS_socket, vec![rule(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?]);
    }
    // The flags of clone3 are behind a pointer, which a filter cannot follow; on ENOSYS the C library falls back to
    // clone.
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)?;
    apply(rules, libc::EPERM)
}

/// Returns a rule that matches if an argument of the call compares with `value` as given.
fn rule(argument: u8, operation: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)
}

/// Makes the calls that match `rules` fail with `error`.
fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> io::Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let refuse = SeccompAction::Errno(error.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)
}
