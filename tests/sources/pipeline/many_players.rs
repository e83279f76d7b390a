//! HLS players that request much and read little, over real connections: they are limited and do not affect others.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::pipeline::{PATIENCE, gateway, plays, poll};

/// Concurrent blocking playlist reloads from one address.
const RELOADS: usize = 3_000;
/// Maximum number of connections per address.
const PER_ADDRESS: usize = 2_500;
/// Playlists that another player requests meanwhile, one after the other.
const WATCHED: usize = 10;

const STREAM: &str = "[streams.cam]\npipeline = \"test\"\n";

async fn connect(from: [u8; 4], to: SocketAddr, buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(size) = buffer {
        socket.set_recv_buffer_size(size).expect("sizes");
    }
    socket.bind(SocketAddr::from((from, 0))).expect("binds");
    socket.connect(to).await.expect("connects")
}

/// Sends a request and returns the whole response.
async fn get(from: [u8; 4], to: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = connect(from, to, None).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    // A rejected client may find the connection closed before its request is sent.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

fn last_msn(playlist: &str) -> u64 {
    let first = playlist
        .lines()
        .find_map(|line| line.strip_prefix("#EXT-X-MEDIA-SEQUENCE:"));
    let first: u64 = first.expect("a playlist").parse().expect("a number");
    first + playlist.matches("#EXTINF").count() as u64
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux").count()
}

/// Raises the limit of open files to its maximum.
fn take_all_files() {
    let raised = std::process::Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), "--nofile=16384:"])
        .status();
    assert!(
        raised.expect("prlimit starts").success(),
        "this test needs 16384 open files"
    );
}

#[test]
fn thousands_of_waiting_reloads_are_bounded_and_another_address_is_served() {
    crate::pipeline::alone(&["pipeline::many_players::reloads_alone"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "counts the files of its process"]
async fn reloads_alone() {
    take_all_files();
    let gateway = gateway(&format!("[limits]\nconnections_per_address = {PER_ADDRESS}\n{STREAM}")).await;
    let address = gateway.http_address();
    plays(&gateway, "cam").await;
    let (status, playlist) = get([127, 0, 0, 2], address, "/hls/cam/index.m3u8").await;
    assert_eq!(status, 200, "{playlist}");
    let (_, playlist) = get([127, 0, 0, 2], address, "/hls/cam/video.m3u8").await;
    let files = open_files();
    // The next but one segment: all requests block at the same time.
    let path = format!("/hls/cam/video.m3u8?_HLS_msn={}", last_msn(&playlist) + 2);
    let mut reloads = JoinSet::new();
    for _ in 0..RELOADS {
        let path = path.clone();
        reloads.spawn(async move { get([127, 0, 0, 1], address, &path).await.0 });
    }
    let before = poll(gateway.media_plane().hub(), "cam").expect("live");
    let mut msn = last_msn(&playlist);
    for _ in 0..WATCHED {
        let path = format!("/hls/cam/video.m3u8?_HLS_msn={msn}&_HLS_part=0");
        let (status, playlist) = get([127, 0, 0, 2], address, &path).await;
        assert_eq!(status, 200, "{playlist}");
        msn = last_msn(&playlist) + 1;
    }
    let mut answers = std::collections::BTreeMap::<u16, usize>::new();
    while let Some(answer) = reloads.join_next().await {
        *answers.entry(answer.expect("ends")).or_default() += 1;
    }
    let waited = answers.get(&200).copied().unwrap_or(0);
    println!(
        "{RELOADS} reloads from one address: {answers:?}; {WATCHED} playlists for another one, each with its next segment"
    );
    // On a slow machine the first are answered before the last are sent, so that more wait in all than at one time.
    assert!((PER_ADDRESS / 2..RELOADS).contains(&waited), "{answers:?}");
    // 503, or a connection that was closed before the request had been sent.
    let refused: usize = [0, 503].iter().filter_map(|status| answers.get(status)).sum();
    assert_eq!(waited + refused, RELOADS, "{answers:?}");
    let after = poll(gateway.media_plane().hub(), "cam").expect("live");
    assert!(after.video > before.video);
    let settled = async {
        while open_files() > files + 8 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("all are closed");
    gateway.stop().await;
}

/// A player that reads one byte per second after many requests.
#[tokio::test]
async fn who_reads_a_byte_a_second_is_let_go() {
    let gateway = gateway(&format!("{STREAM}[limits]\nresponse_timeout = 2\n")).await;
    let address = gateway.http_address();
    plays(&gateway, "cam").await;
    let (status, index) = get([127, 0, 0, 2], address, "/hls/cam/index.m3u8").await;
    assert_eq!(status, 200, "{index}");
    let (_, playlist) = get([127, 0, 0, 2], address, "/hls/cam/video.m3u8").await;
    let path = format!("/hls/cam/video.m3u8?_HLS_msn={}", last_msn(&playlist));
    let (_, playlist) = get([127, 0, 0, 2], address, &path).await;
    let segment = playlist
        .lines()
        .find(|line| !line.starts_with('#') && line.contains(".m4s"))
        .unwrap_or_else(|| panic!("{playlist}"))
        .to_owned();
    let (mut reader, mut writer) = connect([127, 0, 0, 3], address, Some(4_096)).await.into_split();
    let asking = tokio::spawn(async move {
        let request = format!("GET /hls/cam/{segment} HTTP/1.1\r\nHost: h\r\n\r\n");
        while writer.write_all(request.as_bytes()).await.is_ok() {}
    });
    let reading = async {
        let mut byte = [0];
        while matches!(reader.read(&mut byte).await, Ok(1)) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    // Buffered data can still be read: the close shows on writing.
    let closed = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            asked = asking => asked.expect("ends"),
            () = reading => {}
        }
    });
    closed.await.expect("the gateway lets go of it");
    gateway.stop().await;
}
