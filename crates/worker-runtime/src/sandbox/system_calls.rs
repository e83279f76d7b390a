//! The system calls that a worker may make, by seccomp. Whatever is not listed fails with `EPERM`.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::devices::DeviceClass;

type RulesBySystemCall = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls on open files, memory, threads, time and this process itself. What they open is the matter of Landlock.
const ALLOWED_SYSTEM_CALLS: [i64; 108] = [
    // Files that are open, and opening some.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_sendfile,
    libc::SYS_splice,
    // Waiting for them.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    // The socket to the gateway, and those that the pipeline may open.
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    libc::SYS_get_mempolicy,
    // Threads. `clone` is below; on `ENOSYS` of `clone3` the C library falls back to it.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals that it receives.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_times,
    // Facts about this process and the host.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_getpriority,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    libc::SYS_umask,
];

/// Former calls that the C library still makes on this architecture.
#[cfg(target_arch = "x86_64")]
const LEGACY_ALLOWED_SYSTEM_CALLS: [i64; 16] = [
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE_SPECIFIC_ALLOWED_SYSCALLS: [i64; 0] = [];

/// Calls that open connections and ports.
const NETWORK_ALLOWED_SYSTEM_CALLS: [i64; 5] = [
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Commands of `fcntl`. `F_SETOWN` is not among them: it would have the kernel signal another process.
const ALLOWED_FCNTL_COMMANDS: [i32; 10] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETPIPE_SZ,
    libc::F_SETPIPE_SZ,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// Requests of `ioctl` on files and sockets. `FIOSETOWN` and `TIOCSTI` are not among them.
const ALLOWED_IOCTL_REQUESTS: [u64; 9] = [
    libc::TCGETS,
    libc::FIONREAD,
    libc::FIONBIO,
    libc::FIOCLEX,
    libc::FIONCLEX,
    libc::SIOCGIFCONF,
    libc::SIOCGIFADDR,
    libc::SIOCGIFINDEX,
    libc::SIOCGIFFLAGS,
];

/// Operations of `prctl`: names of threads and of mappings.
const ALLOWED_PRCTL_OPERATIONS: [i32; 3] = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];

/// The bits of a socket type that are not flags.
const SOCKET_TYPE_MASK: u64 = 0xf;

/// Restricts all threads of this process to the calls that its job needs.
pub(super) fn restrict_system_calls(network: bool, devices: &[&DeviceClass]) -> io::Result<()> {
    // The flags of `clone3` are behind a pointer, which a filter cannot follow.
    let unknown = RulesBySystemCall::from([(libc::SYS_clone3, Vec::new())]);
    install_seccomp_filter(unknown, SeccompAction::Allow, errno_action(libc::ENOSYS))?;
    install_seccomp_filter(
        allowed_system_call_rules(network, devices)?,
        errno_action(libc::EPERM),
        SeccompAction::Allow,
    )
}

fn allowed_system_call_rules(network: bool, devices: &[&DeviceClass]) -> io::Result<RulesBySystemCall> {
    let mut rules: RulesBySystemCall = ALLOWED_SYSTEM_CALLS
        .iter()
        .chain(&LEGACY_ALLOWED_SYSTEM_CALLS)
        .chain(NETWORK_ALLOWED_SYSTEM_CALLS.iter().filter(|_| network))
        .map(|call| (*call, Vec::new()))
        .collect();
    let own = u64::from(std::process::id());
    // It may signal itself, to abort, but no other process: the gateway runs as the same user.
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(call, vec![argument_equals_rule(0, own)?]);
    }
    // Threads are allowed, processes are not.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![masked_argument_equals_rule(0, thread, thread)?]);
    // Limits of this process are read, by zero or by its number, and not set.
    let reads_limit = |pid| {
        seccomp_rule(vec![
            low_32_bits_condition(0, SeccompCmpOp::Eq, pid)?,
            full_argument_equals_condition(2, 0)?,
        ])
    };
    rules.insert(libc::SYS_prlimit64, vec![reads_limit(0)?, reads_limit(own)?]);
    let commands = ALLOWED_FCNTL_COMMANDS
        .iter()
        .map(|command| argument_equals_rule(1, u64::from(command.unsigned_abs())));
    rules.insert(libc::SYS_fcntl, commands.collect::<io::Result<_>>()?);
    let operations = ALLOWED_PRCTL_OPERATIONS
        .iter()
        .map(|operation| argument_equals_rule(0, u64::from(operation.unsigned_abs())));
    rules.insert(libc::SYS_prctl, operations.collect::<io::Result<_>>()?);
    let mut requests = ALLOWED_IOCTL_REQUESTS
        .iter()
        .map(|request| argument_equals_rule(1, *request))
        .collect::<io::Result<Vec<_>>>()?;
    for pattern in devices.iter().flat_map(|class| class.ioctl_patterns) {
        requests.push(masked_argument_equals_rule(1, pattern.mask, pattern.value)?);
    }
    rules.insert(libc::SYS_ioctl, requests);
    // A datagram socket could send to any path.
    let stream = low_32_bits_condition(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), libc::SOCK_STREAM as u64)?;
    let unix = low_32_bits_condition(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
    rules.insert(libc::SYS_socketpair, vec![seccomp_rule(vec![unix, stream])?]);
    if network {
        rules.insert(libc::SYS_socket, socket_rules()?);
    }
    Ok(rules)
}

/// TCP and UDP sockets, and those by which the C library reads the addresses of this host.
fn socket_rules() -> io::Result<Vec<SeccompRule>> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let masked_type = SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK);
            rules.push(seccomp_rule(vec![
                low_32_bits_condition(0, SeccompCmpOp::Eq, family as u64)?,
                low_32_bits_condition(1, masked_type, kind as u64)?,
            ])?);
        }
    }
    rules.push(seccomp_rule(vec![
        low_32_bits_condition(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?,
        low_32_bits_condition(2, SeccompCmpOp::Eq, libc::NETLINK_ROUTE as u64)?,
    ])?);
    Ok(rules)
}

fn argument_equals_rule(argument: u8, value: u64) -> io::Result<SeccompRule> {
    seccomp_rule(vec![low_32_bits_condition(argument, SeccompCmpOp::Eq, value)?])
}

fn masked_argument_equals_rule(argument: u8, mask: u64, value: u64) -> io::Result<SeccompRule> {
    seccomp_rule(vec![low_32_bits_condition(
        argument,
        SeccompCmpOp::MaskedEq(mask),
        value,
    )?])
}

/// Compares the lower half of an argument.
fn low_32_bits_condition(argument: u8, operation: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value).map_err(io::Error::other)
}

/// Compares a whole argument, such as a pointer.
fn full_argument_equals_condition(argument: u8, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value).map_err(io::Error::other)
}

fn seccomp_rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn errno_action(error: i32) -> SeccompAction {
    SeccompAction::Errno(error.unsigned_abs())
}

fn install_seccomp_filter(
    rules: RulesBySystemCall,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)
}
