//! Pipeline files that try to get out of the sandbox, one for each way: none gets at what it is after.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use millstream_test_support::skipped;
use millstream_worker_runtime::sandbox;

use crate::pipeline::{Folder, PATIENCE, gateway, trouble};

/// Ends a launch line: whatever was read is taken for video.
const AS_VIDEO: &str = "video/x-h264,stream-format=byte-stream,alignment=au ! appsink name=video";

/// Runs pipelines by name and returns why each of them failed.
async fn failures(folder: &Folder, pipelines: &[(&str, String)]) -> Vec<String> {
    let mut text = format!("[pipelines]\nfolder = \"{}\"\n", folder.0.display());
    for (name, description) in pipelines {
        folder.write(
            &format!("{name}.toml"),
            &format!("description = \"hostile\"\n{description}\n"),
        );
        text += &format!("[streams.\"{name}\"]\npipeline = \"{name}\"\n");
    }
    let gateway = gateway(&text).await;
    let mut failures = Vec::new();
    for (name, _) in pipelines {
        let failing = async {
            while trouble(&gateway, name).is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, failing).await.expect(name);
        failures.push(trouble(&gateway, name));
    }
    gateway.stop().await;
    failures
}

fn reads(path: &str) -> String {
    format!("launch = \"\"\"filesrc location=\\\"{path}\\\" ! {AS_VIDEO}\"\"\"")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_were_not_declared_are_not_read() {
    if !sandbox::is_landlock_supported() {
        return skipped(
            "files_that_were_not_declared_are_not_read",
            "this kernel has no Landlock",
        );
    }
    let folder = Folder::new("escape-files");
    let secret = folder.write("secret", "token").display().to_string();
    let home = std::env::home_dir().expect("a home folder");
    let home = home.display();
    let own = std::process::id();
    let pipelines = [
        ("other", reads(&secret)),
        ("passwd", reads("/etc/passwd")),
        ("machine", reads("/etc/hostname")),
        ("gateway", reads(&format!("/proc/{own}/cmdline"))),
        ("environment", reads(&format!("/proc/{own}/environ"))),
        ("memory", reads(&format!("/proc/{own}/maps"))),
        ("kernel", reads("/proc/version")),
        (
            "home",
            format!("launch = \"multifilesrc location={home}/.%02d ! {AS_VIDEO}\""),
        ),
    ];
    for (failure, (name, _)) in failures(&folder, &pipelines).await.iter().zip(&pipelines) {
        let is_refused = failure.contains("Permission denied") || (*name == "home" && failure.contains("file"));
        assert!(is_refused, "{name}: {failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_opened_only_for_the_network_and_only_with_it() {
    let folder = Folder::new("escape-sockets");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let socket = folder.0.join("control");
    let control = UnixListener::bind(&socket).expect("a socket");
    for waiting in [listener.set_nonblocking(true), control.set_nonblocking(true)] {
        waiting.expect("a socket");
    }
    datagrams.set_nonblocking(true).expect("a socket");
    let tcp = listener.local_addr().expect("it is bound").port();
    let udp = datagrams.local_addr().expect("it is bound").port();
    let path = socket.display();
    let pipelines = [
        (
            "tcp",
            format!("launch = \"tcpclientsrc host=127.0.0.1 port={tcp} ! {AS_VIDEO}\""),
        ),
        (
            "rtsp-tcp",
            format!("launch = \"rtspsrc location=rtsp://127.0.0.1:{tcp}/a ! {AS_VIDEO}\""),
        ),
        (
            "udp",
            format!("launch = \"udpsrc address=127.0.0.1 port={} ! {AS_VIDEO}\"", udp + 1),
        ),
        ("unix", format!("launch = \"shmsrc socket-path={path} ! {AS_VIDEO}\"")),
        (
            "unix-network",
            format!("network = true\nlaunch = \"shmsrc socket-path={path} ! {AS_VIDEO}\""),
        ),
    ];
    let failures = failures(&folder, &pipelines).await;
    assert!(failures.iter().all(|failure| !failure.is_empty()), "{failures:?}");
    let nobody = |result: std::io::Result<()>| result.map_err(|error| error.kind()) == Err(ErrorKind::WouldBlock);
    assert!(nobody(listener.accept().map(drop)), "connected: {failures:?}");
    assert!(
        nobody(control.accept().map(drop)),
        "connected to a Unix socket: {failures:?}"
    );
    assert!(nobody(datagrams.recv(&mut [0; 1_500]).map(drop)), "sent: {failures:?}");
}
