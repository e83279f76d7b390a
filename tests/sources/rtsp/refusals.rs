//! Cameras that reject requests: what is retried, how often, and what is reported.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};

use crate::rtsp::{PATIENCE, gateway, poll, trouble};

/// A camera that refuses everything with this status, and counts requests: all, and those with credentials.
async fn refusing(status: &'static str) -> (u16, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let (all, authorized) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (all.clone(), authorized.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut lines = tokio::io::BufReader::new(stream).lines();
            let mut cseq = String::new();
            while let Ok(Some(line)) = lines.next_line().await {
                let lower = line.to_ascii_lowercase();
                if lower.starts_with("cseq:") {
                    cseq = line;
                } else if lower.starts_with("authorization:") {
                    counts.1.fetch_add(1, Ordering::SeqCst);
                } else if line.is_empty() {
                    counts.0.fetch_add(1, Ordering::SeqCst);
                    let challenge =
                        "WWW-Authenticate: Digest realm=\"camera\", nonce=\"1\"\r\nLocation: rtsp://other/cam";
                    let answer = format!("RTSP/1.0 {status}\r\n{cseq}\r\n{challenge}\r\n\r\n");
                    let _ = lines.get_mut().write_all(answer.as_bytes()).await;
                }
            }
        }
    });
    (port, all, authorized)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_tried_three_times_while_other_refusals_are_tried_on() {
    let (unauthorized, _, wrong) = refusing("401 Unauthorized").await;
    let (missing, other, _) = refusing("404 Not Found").await;
    let first = gateway(&format!("rtsp = \"rtsp://u:wrong@127.0.0.1:{unauthorized}/cam\"")).await;
    let second = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{missing}/cam\"")).await;
    let tried = async {
        // By then the other camera could have been tried a dozen times.
        while wrong.load(Ordering::SeqCst) < 3 || other.load(Ordering::SeqCst) < 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tried)
        .await
        .expect("both are tried again");
    assert_eq!(wrong.load(Ordering::SeqCst), 3);
    assert!(poll(first.media_plane().hub()).is_none() && poll(second.media_plane().hub()).is_none());
    assert_eq!(trouble(&first), "the camera rejected the credentials");
    assert_eq!(
        trouble(&second),
        "the camera does not know the path of the URL (RTSP status 404): check the URL"
    );
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_that_takes_connections_and_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = silent.local_addr().expect("it is bound").port();
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"")).await;
    let said = async {
        while trouble(&gateway) != "the camera did not respond in time (RTSP request DESCRIBE)" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = tokio::time::timeout(PATIENCE, said).await;
    assert!(said.is_ok(), "{}", trouble(&gateway));
    gateway.stop().await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_says_what_to_do() {
    // Bound, so that nobody else gets the port, and without a listener.
    let nobody = TcpSocket::new_v4().expect("a socket");
    nobody
        .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .expect("a free port");
    let closed = nobody.local_addr().expect("it is bound").port();
    let (moved, ..) = refusing("302 Moved Temporarily").await;
    let (locked, ..) = refusing("401 Unauthorized").await;
    for (port, wanted) in [
        (closed, format!("the TCP connection to port {closed} was refused")),
        (moved, "the camera redirects to another URL".to_owned()),
        (locked, "the camera requires credentials: set `username`".to_owned()),
    ] {
        let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"")).await;
        let said = async {
            while !trouble(&gateway).contains(&wanted) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let said = tokio::time::timeout(PATIENCE, said).await;
        assert!(said.is_ok(), "{wanted}: {}", trouble(&gateway));
        gateway.stop().await;
    }
}
