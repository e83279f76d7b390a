//! Secrets of streams that are set through the API, and the servers that they are for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::http::api_streams::{Folder, json_of, request, set, with_settings};

/// Answers each request by 404. Returns the address, and what was received.
async fn listen() -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let received = Arc::<Mutex<String>>::default();
    let requests = received.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut bytes = vec![0; 8_192];
            let length = connection.read(&mut bytes).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            requests.lock().expect("not poisoned").push_str(&text);
            let _ = connection
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        }
    });
    (address, received)
}

/// Whoever may set streams, but does not know the password of one, must not have it sent to a server of their own.
#[tokio::test]
async fn a_change_of_the_address_alone_does_not_send_kept_secrets_there() {
    let folder = Folder::new("secrets");
    let gateway = folder.gateway("").await;
    let ((own, of_own), (other, of_other)) = (listen().await, listen().await);
    let settings = json!({ "hls": format!("http://{own}/a.m3u8"), "headers": { "Authorization": "s3cret" } });
    assert_eq!(set(&gateway, "live", &settings).await.status, 201);
    let received = async |requests: &Mutex<String>| {
        let reached = async {
            while requests.lock().expect("not poisoned").is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reached)
            .await
            .expect("a request");
        requests.lock().expect("not poisoned").clone()
    };
    assert!(received(&of_own).await.contains("s3cret"), "it is used");
    let elsewhere = json!({ "hls": format!("http://{other}/a.m3u8") });
    let reply = with_settings("PATCH", "live", &elsewhere).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (422, "secrets_needed"));
    assert_eq!(json_of(&reply)["errors"][0]["pointer"], "/headers/Authorization");
    assert!(!reply.text().contains("s3cret"), "{}", reply.text());
    let settings_now = json_of(&request("GET", "live").send(&gateway).await)["settings"].clone();
    assert_eq!(settings_now["hls"], format!("http://{own}/.."), "nothing has changed");
    // Who knows the secret may move it, and anybody may drop it.
    let mut known = elsewhere.clone();
    known["headers"] = json!({ "Authorization": null, "X-Other": "known" });
    let reply = with_settings("PATCH", "live", &known).send(&gateway).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = received(&of_other).await;
    assert!(seen.contains("known") && !seen.contains("s3cret"), "{seen}");

    let camera = json!({ "rtsp": "rtsp://192.0.2.7/", "username": "admin", "password": "s3cret", "on_demand": true });
    assert_eq!(set(&gateway, "door", &camera).await.status, 201);
    let moved = json!({ "rtsp": "rtsp://192.0.2.8/" });
    let reply = with_settings("PATCH", "door", &moved).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (422, "secrets_needed"));
    let other_path = json!({ "rtsp": "rtsp://192.0.2.7:554/other" });
    assert_eq!(
        with_settings("PATCH", "door", &other_path).send(&gateway).await.status,
        200
    );
    gateway.stop().await;
}
