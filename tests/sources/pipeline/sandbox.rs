//! What a worker may do, tried from within.

use std::io;
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;

use millstream_test_support::skipped;
use millstream_worker_runtime::sandbox::{self, FileRestriction};
use millstream_worker_runtime::wire::PipelineJob;

use crate::pipeline::{Folder, gateway, plays, workers};

#[test]
fn limits_in_a_process_of_their_own() {
    crate::pipeline::alone(&[
        "pipeline::sandbox::without_network",
        "pipeline::sandbox::with_network",
        "pipeline::sandbox::as_the_kernel_reports",
    ]);
}

fn job(network: bool, files: Vec<PathBuf>) -> PipelineJob {
    PipelineJob {
        launch: String::new(),
        properties: Vec::new(),
        inputs: Vec::new(),
        repeats: false,
        network,
        allowed_networks: Vec::new(),
        files,
        memory: 64 << 20,
        processors: 1,
    }
}

fn is_refused<T>(result: io::Result<T>) -> bool {
    matches!(
        result.map_err(|error| error.kind()),
        Err(io::ErrorKind::PermissionDenied)
    )
}

/// What no worker may do, whatever its job.
fn assert_limited() {
    assert!(is_refused(Command::new("true").spawn().map(drop)), "starts a program");
    let gateway = rustix::process::getppid().expect("there is one");
    let sent = rustix::process::test_kill_process(gateway);
    assert_eq!(sent, Err(rustix::io::Errno::PERM), "signals the gateway");
    let own_limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    for process in [Some(gateway), None] {
        let limited = rustix::process::prlimit(process, rustix::process::Resource::Nofile, own_limits);
        assert_eq!(
            limited.map(drop),
            Err(rustix::io::Errno::PERM),
            "changes limits of {process:?}"
        );
    }
    assert!(
        is_refused(std::os::unix::net::UnixStream::connect("/run/dbus/system_bus_socket")),
        "asks a service"
    );
    assert!(
        is_refused(std::os::unix::net::UnixDatagram::unbound()),
        "opens a Unix socket"
    );
    // Its own threads are what codecs are made of.
    assert_eq!(std::thread::spawn(|| 7).join().expect("a thread"), 7);
    let threads = std::fs::read_to_string("/proc/self/status").expect("Linux");
    for wanted in ["NoNewPrivs:\t1", "Seccomp:\t2", "Cpus_allowed_list:"] {
        assert!(threads.contains(wanted), "{wanted}");
    }
    // The limit of mapped memory is four times the memory limit.
    let too_much: Result<(), _> = Vec::<u8>::new().try_reserve_exact(300 << 20);
    assert!(too_much.is_err(), "maps more than it may");
}

#[test]
#[ignore = "runs in a process of its own"]
fn without_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let folder = Folder::new("sandbox");
    let (declared, other) = (folder.write("declared", "x"), folder.write("other", "x"));
    let restriction = sandbox::sandbox_this_process(&job(false, vec![declared.clone()])).expect("limits itself");
    assert!(is_refused(TcpStream::connect(address)), "connects");
    assert!(is_refused(UdpSocket::bind("127.0.0.1:0")), "binds");
    assert_limited();
    assert!(std::fs::read(&declared).is_ok());
    if restriction == FileRestriction::NotSupported {
        return skipped("sandbox::without_network (files)", "this kernel has no Landlock");
    }
    assert!(is_refused(std::fs::read(&other)) && is_refused(std::fs::write(&other, "y")));
    // What was declared is read; only devices are written to.
    assert!(is_refused(std::fs::write(&declared, "y")));
    let home = std::env::home_dir().expect("a home folder");
    for folder in [
        "/run",
        "/etc",
        "/etc/ssl/private",
        "/var",
        "/proc",
        "/sys/class",
        "/",
        home.to_str().expect("UTF-8"),
    ] {
        let listed = std::fs::read_dir(folder).map(drop);
        let is_absent = listed
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        assert!(is_refused(listed) || is_absent, "{folder}");
    }
    let gateway = std::os::unix::process::parent_id();
    for file in [
        "/etc/passwd",
        "/etc/hostname",
        "/proc/version",
        &format!("/proc/{gateway}/cmdline"),
    ] {
        assert!(is_refused(std::fs::read(file)), "{file}");
    }
    for needed in ["/proc/self/status", "/proc/cpuinfo", "/dev/urandom", "/dev/null"] {
        assert!(std::fs::File::open(needed).is_ok(), "{needed}");
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn with_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    sandbox::sandbox_this_process(&job(true, Vec::new())).expect("limits itself");
    assert!(TcpStream::connect(address).is_ok());
    assert_limited();
}

/// The worker of a stream, as the kernel shows it from outside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn as_the_kernel_reports() {
    let gateway = gateway("[streams.\"pattern\"]\npipeline = \"test\"\n").await;
    plays(&gateway, "pattern").await;
    let worker = workers().into_iter().next().expect("there is one");
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{worker}/{file}")).expect("it runs");
    let (status, limits) = (read("status"), read("limits"));
    assert!(
        status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"),
        "{status}"
    );
    assert_eq!(read("oom_score_adj").trim(), "800");
    let limit = |name: &str| {
        limits
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(limit("Max core file size").contains(" 0 "), "{limits}");
    assert!(limit("Max open files").contains(" 256 "), "{limits}");
    assert!(
        limit("Max data size").contains(&(4u64 * (400 << 20)).to_string()),
        "{limits}"
    );
    // No variable of the gateway's environment.
    let environment = std::fs::read(format!("/proc/{worker}/environ")).expect("it runs");
    assert!(!environment.windows(10).any(|text| text == b"MILLSTREAM"));
    gateway.stop().await;
}
