//! Connections: deadlines, limits, and shapes of requests that proxies and attackers send.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::client::{OBS, PUBLISH, Reply, Request, gateway, hurry, raw};

fn head(extra: &str) -> String {
    format!(
        "POST /whip/live HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {PUBLISH}\r\nContent-Type: application/sdp\r\n{extra}\r\n"
    )
}

/// B07, H-28, T26.
#[tokio::test]
async fn slow_clients_are_cut_off() {
    let gateway = gateway(&[]).await;
    let address = gateway.http_address();
    let slow_body = async {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream
            .write_all(head("Content-Length: 1000\r\n").as_bytes())
            .await
            .expect("sends");
        let (mut reader, mut writer) = stream.split();
        let drip = async {
            while writer.write_all(b"v").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let mut reply = Vec::new();
        tokio::select! {
            () = drip => panic!("the drip ended first"),
            read = reader.read_to_end(&mut reply) => read.expect("reads"),
        };
        let reply = Reply::parse(&reply).expect("a response");
        assert_eq!((reply.status, reply.problem().as_str()), (408, "body_too_slow"));
    };
    let slow_head = async {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream
            .write_all(b"POST /whip/live HTTP/1.1\r\nHost:")
            .await
            .expect("sends");
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.expect("reads");
    };
    let both = async { tokio::join!(slow_body, slow_head) };
    // The deadlines are 5 and 10 s; without them both would wait for ever.
    hurry(tokio::time::timeout(Duration::from_secs(3_600), both))
        .await
        .expect("the gateway closes both");
    assert_eq!(gateway.media_plane().session_count(), 0);
    gateway.stop().await;
}

/// B42.
#[tokio::test]
async fn smuggling_shapes_are_refused_and_the_connection_is_closed() {
    let gateway = gateway(&[]).await;
    let many = (0..1000).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let large = format!("X-Large: {}\r\n", "y".repeat(33 * 1024));
    for (case, extra) in [
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n".to_owned()),
        ("a length that is no number", "Content-Length: +5\r\n".to_owned()),
        (
            "an unknown coding",
            "Transfer-Encoding: identity, nonsense\r\n".to_owned(),
        ),
        ("many headers", many),
        ("large headers", large),
        (
            "a large token",
            format!("Authorization: Bearer {}\r\n", "y".repeat(16 * 1024)),
        ),
        ("a header without a name", ": x\r\n".to_owned()),
        ("a folded header", "X: a\r\n b\r\n".to_owned()),
    ] {
        let bytes = [
            head(&extra).as_bytes(),
            b"hello\r\n\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        ]
        .concat();
        let reply = raw(gateway.http_address(), &bytes).await;
        let text = String::from_utf8_lossy(&reply);
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{case}: {text}");
        let status = Reply::parse(&reply).expect(case).status;
        assert!(matches!(status, 400 | 431), "{case}: {status}");
    }
    // Both framings: the coding wins and the connection ends (RFC 9112 §6.1), so that nothing after it is a request.
    let both = head("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n");
    let bytes = [both.as_bytes(), b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
    let reply = raw(gateway.http_address(), &bytes).await;
    assert!(
        !String::from_utf8_lossy(&reply).contains("HTTP/1.1 2"),
        "{}",
        String::from_utf8_lossy(&reply)
    );
    gateway.stop().await;
}

/// H-33.
#[tokio::test]
async fn chunked_bodies_expectations_and_kept_connections_work() {
    let gateway = gateway(&[]).await;
    let (first, second) = OBS.split_at(500);
    let chunked = format!(
        "{}{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        head("transfer-encoding: chunked\r\nconnection: close\r\n"),
        first.len(),
        second.len()
    );
    let reply = raw(gateway.http_address(), chunked.as_bytes()).await;
    assert_eq!(Reply::parse(&reply).expect("response").status, 201);

    let mut stream = TcpStream::connect(gateway.http_address()).await.expect("connects");
    let expecting = head(&format!("EXPECT: 100-continue\r\nContent-Length: {}\r\n", OBS.len()));
    stream.write_all(expecting.as_bytes()).await.expect("sends");
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.expect("reads");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(OBS.as_bytes()).await.expect("sends");
    // A refusal, and then another request on the same connection.
    let refused = "POST /whip/live HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream
        .write_all(format!("{refused}{last}").as_bytes())
        .await
        .expect("sends");
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).await.expect("reads");
    let text = String::from_utf8_lossy(&replies);
    let statuses: Vec<&str> = text
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &text[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["201", "401", "200"], "{text}");
    gateway.stop().await;
}

/// H-31: any malformed request is answered with a 4xx status.
/// H-22.
#[tokio::test]
async fn no_damaged_request_is_answered_with_5xx() {
    let gateway = gateway(&[]).await;
    let whole = format!(
        "{}{OBS}",
        head(&format!("Content-Length: {}\r\nConnection: close\r\n", OBS.len()))
    );
    let seed = 0x5eed_0001_u64;
    println!("seed {seed:#x}");
    let mut state = seed;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..300 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        let reply = raw_with_end(gateway.http_address(), &bytes).await;
        if let Some(reply) = Reply::parse(&reply) {
            assert!(reply.status < 500, "{:?}\n{}", reply, String::from_utf8_lossy(&bytes));
            assert!(!matches!(reply.status, 301 | 302), "{reply:?}");
        }
    }
    assert_eq!(Request::new("GET", "/healthz").send(&gateway).await.status, 200);
    gateway.stop().await;
}

/// Sends bytes and the end of the stream, so that a body that is too short is no reason to wait.
async fn raw_with_end(address: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut reply = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut reply)).await;
    reply
}

#[tokio::test]
async fn stopping_ends_sessions_and_idle_connections_within_seconds() {
    let gateway = gateway(&[]).await;
    Request::publish("/whip/live", OBS).send(&gateway).await.location();
    let mut idle = TcpStream::connect(gateway.http_address()).await.expect("connects");
    // A response shows that the connection was accepted: those in the backlog are reset when the listener closes.
    idle.write_all(b"HEAD /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")
        .await
        .expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(idle.read_u8().await.expect("an answer"));
    }
    let address = gateway.http_address();
    let media = gateway.media_plane().clone();
    tokio::time::timeout(Duration::from_secs(4), gateway.stop())
        .await
        .expect("stops");
    assert_eq!(media.session_count(), 0);
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.expect("closed in order");
    assert!(rest.is_empty());
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}
