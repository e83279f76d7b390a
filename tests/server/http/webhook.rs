//! The authorization webhook under load.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};

use crate::http::client::{OBS, Request, from_text};

/// A webhook that answers each request after `delay` and permits the token `good`.
struct Webhook {
    url: String,
    requests: Arc<AtomicUsize>,
    /// Most requests that were open at the same time.
    most: Arc<AtomicUsize>,
}

impl Webhook {
    async fn start(delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let (requests, open, most) = (
            Arc::<AtomicUsize>::default(),
            Arc::<AtomicUsize>::default(),
            Arc::default(),
        );
        let hook = Self {
            url,
            requests: requests.clone(),
            most: Arc::clone(&most),
        };
        let answer = move |Json(question): Json<Value>| {
            let (requests, open, most) = (requests.clone(), open.clone(), most.clone());
            async move {
                requests.fetch_add(1, Ordering::Relaxed);
                most.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(delay).await;
                open.fetch_sub(1, Ordering::Relaxed);
                let is_good = question["token"]
                    .as_str()
                    .is_some_and(|token| token.starts_with("good"));
                if is_good {
                    StatusCode::OK
                } else {
                    StatusCode::UNAUTHORIZED
                }
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/", post(answer))).await });
        Self { ..hook }
    }
}

/// Sends one GET after another on a connection from an address until `stop`.
async fn flood(address: std::net::SocketAddr, from: Ipv4Addr, path: String, stop: Arc<AtomicBool>) -> usize {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((from, 0).into()).expect("an address of this host");
        let Ok(mut stream) = socket.connect(address).await else {
            continue;
        };
        let mut bytes = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let request = format!("GET {path}-{answered}/index.m3u8 HTTP/1.1\r\nHost: h\r\n\r\n");
            if stream.write_all(request.as_bytes()).await.is_err() || stream.read(&mut bytes).await.unwrap_or(0) == 0 {
                break;
            }
            answered += 1;
        }
    }
    answered
}

/// A hundred connections without a token, each of which asks about another stream at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_a_token_do_not_keep_publishers_out() {
    let webhook = Webhook::start(Duration::from_millis(150)).await;
    let gateway = from_text(&format!("[auth]\nwebhook_url = \"{}\"\n", webhook.url)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..100)
        .map(|n| {
            let path = format!("/hls/x{n}");
            tokio::spawn(flood(gateway.http_address(), Ipv4Addr::LOCALHOST, path, stop.clone()))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // From the address of the flood, and from another one.
    for from in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 8)] {
        let mut accepted = 0;
        for n in 0..50 {
            let offer = Request::offer("/whip/live", OBS).bearer(&format!("good{n}"));
            accepted += usize::from(offer.send_from(from, &gateway).await.status == 201);
        }
        assert_eq!(accepted, 50, "from {from}");
    }
    let most = webhook.most.load(Ordering::Relaxed);
    assert!(most <= 16, "{most} requests of two addresses at the same time");
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        assert!(flood.await.expect("runs") > 0);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_denial_is_remembered_for_a_moment() {
    let webhook = Webhook::start(Duration::from_millis(20)).await;
    let gateway = from_text(&format!("[auth]\nwebhook_url = \"{}\"\n", webhook.url)).await;
    let request = Request::new("GET", "/hls/live/index.m3u8");
    let all = futures_util::future::join_all((0..30).map(|_| request.send(&gateway))).await;
    assert!(
        all.iter()
            .all(|reply| reply.status == 401 && reply.problem() == "token_missing")
    );
    for _ in 0..10 {
        assert_eq!(request.send(&gateway).await.status, 401);
    }
    let asked = webhook.requests.load(Ordering::Relaxed);
    assert!(asked <= 20, "asked {asked} times");
    crate::http::client::advance(Duration::from_secs(10)).await;
    assert_eq!(request.send(&gateway).await.status, 401);
    assert!(
        webhook.requests.load(Ordering::Relaxed) > asked,
        "it is not remembered for ever"
    );
    gateway.stop().await;
}
