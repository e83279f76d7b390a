//! The TCP port of media: what is no peer is let go (RFC 6544, RFC 4571).

use std::net::SocketAddr;

use millstream::Gateway;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::{OBS, Request, gateway};

async fn port(gateway: &Gateway) -> SocketAddr {
    let reply = Request::publish("/whip/live", OBS).send(gateway).await;
    let candidate = reply.text().lines().find(|line| line.contains(" tcp "));
    let parts: Vec<&str> = candidate.expect("a candidate of TCP").trim().split(' ').collect();
    assert_eq!(parts[6..], ["typ", "host", "tcptype", "passive"]);
    format!("{}:{}", parts[4], parts[5]).parse().expect("an address")
}

/// C-08, C-05.
#[tokio::test]
async fn the_number_is_that_of_udp_and_comes_after_it() {
    let gateway = gateway(&[]).await;
    assert_eq!(port(&gateway).await, gateway.media().local_addr());
    let reply = Request::publish("/whip/live", OBS).send(&gateway).await;
    let first = reply.text().lines().find(|line| line.starts_with("a=candidate:"));
    assert!(first.expect("a candidate").contains(" udp "));
    gateway.stop().await;
    let without = crate::client::gateway(&[("MILLSTREAM_WEBRTC__TCP", "false")]).await;
    let reply = Request::publish("/whip/live", OBS).send(&without).await;
    assert!(!reply.text().contains(" tcp "));
    assert!(TcpStream::connect(without.media().local_addr()).await.is_err());
    without.stop().await;
}

#[tokio::test]
async fn who_is_no_peer_is_let_go() {
    let gateway = gateway(&[]).await;
    let port = port(&gateway).await;
    let frame = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let mut check = vec![
        0, 1, 0, 16, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
    ];
    // USERNAME `~nobody:peer1`: of no shard.
    check.extend([0, 6, 0, 12]);
    check.extend(b"~nobody:peer");
    let cases = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        ("an empty frame", frame(b"")),
        ("a frame that is too long", vec![0xff; 100]),
        ("junk", frame(&[0x7f; 100])),
        ("RTP before a check", frame(&[0x80; 100])),
        ("a check for nobody", frame(&check)),
        ("nothing within the deadline", Vec::new()),
        ("half a frame within the deadline", vec![0, 100, 0]),
    ];
    let each = cases.into_iter().map(async |(case, bytes)| {
        let mut stream = TcpStream::connect(port).await.expect("connects");
        let _ = stream.write_all(&bytes).await;
        let closed = async {
            let mut rest = [0; 64];
            while matches!(stream.read(&mut rest).await, Ok(1..)) {}
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), closed).await;
        assert!(waited.is_ok(), "{case}");
    });
    futures_util::future::join_all(each).await;
    assert_eq!(Request::new("GET", "/healthz").send(&gateway).await.status, 200);
    gateway.stop().await;
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let gateway = gateway(&[("MILLSTREAM_LIMITS__CONNECTIONS_PER_ADDRESS", "50")]).await;
    let port = port(&gateway).await;
    let mut streams = Vec::new();
    for _ in 0..60 {
        streams.push(TcpStream::connect(port).await.expect("connects"));
    }
    let mut closed = 0;
    for stream in streams.iter_mut().skip(50) {
        let mut byte = [0];
        let read = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read(&mut byte)).await;
        closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert_eq!(closed, 10);
    assert_eq!(Request::new("GET", "/healthz").send(&gateway).await.status, 200);
    gateway.stop().await;
}
