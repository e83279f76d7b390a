//! `POST /api/v1/sources/test` with sources that cannot be read: each cause, in words.

use std::time::Duration;

use millstream::Gateway;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::http::client::{Reply, Request, gateway};

const OPERATOR: (&str, &str) = ("MILLSTREAM_AUTH__API_TOKEN", "operator");

async fn test(gateway: &Gateway, settings: &Value) -> Reply {
    let request = Request::new("POST", "/api/v1/sources/test").bearer("operator");
    let request = request
        .header("Content-Type", "application/json")
        .body(settings.to_string());
    request.send(gateway).await
}

async fn result(gateway: &Gateway, settings: &Value) -> Value {
    let reply = test(gateway, settings).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(!reply.text().contains("s3cret"), "{}", reply.text());
    serde_json::from_slice(&reply.body).expect("JSON")
}

/// A server that answers each request with this, after its head has come; `CSEQ` becomes that of the request.
async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut lines = tokio::io::BufReader::new(stream).lines();
                let mut cseq = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.to_ascii_lowercase().starts_with("cseq:") {
                        cseq = line;
                    } else if line.is_empty() {
                        let answer = answer.replace("CSEQ", &cseq);
                        let _ = lines.get_mut().write_all(answer.as_bytes()).await;
                    }
                }
            });
        }
    });
    port
}

/// A camera with a track that no browser and no part of the gateway can play.
const STRANGE_TRACKS: &str = "RTSP/1.0 200 OK\r\nCSEQ\r\nContent-Type: application/sdp\r\nContent-Length: 105\r\n\r\n\
    v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\na=control:0\r\n";

#[tokio::test]
async fn each_cause_is_named_in_plain_words() {
    let gateway = gateway(&[OPERATOR]).await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("bound").port()
    };
    let unauthorized = "RTSP/1.0 401 Unauthorized\r\nCSEQ\r\nWWW-Authenticate: Digest realm=\"a\", nonce=\"1\"\r\n\r\n";
    let locked = server(unauthorized).await;
    let missing = server("RTSP/1.0 404 Not Found\r\nCSEQ\r\n\r\n").await;
    let strange = server(STRANGE_TRACKS).await;
    let playlist = server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    let private = server("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    for (settings, cause, text) in [
        (
            json!({ "url": "rtsp://admin:s3cret@camera.invalid/s3cret" }),
            "name_not_resolved",
            "cannot resolve the host name camera.invalid".to_owned(),
        ),
        (
            json!({ "url": format!("rtsp://127.0.0.1:{closed}/") }),
            "refused",
            format!("the TCP connection to port {closed} was refused"),
        ),
        (
            json!({ "url": format!("rtsp://127.0.0.1:{locked}/") }),
            "credentials_required",
            "the camera requires credentials".to_owned(),
        ),
        (
            json!({ "rtsp": format!("rtsp://admin:s3cret@127.0.0.1:{locked}/") }),
            "credentials_rejected",
            "the camera rejected the credentials".to_owned(),
        ),
        (
            json!({ "rtsp": format!("rtsp://127.0.0.1:{missing}/cam"), "snapshot": false }),
            "not_found",
            "does not know the path of the URL".to_owned(),
        ),
        (
            json!({ "url": format!("rtsp://127.0.0.1:{strange}/") }),
            "no_tracks",
            "(it offers video MP4V-ES/90000)".to_owned(),
        ),
        (
            json!({ "url": format!("http://127.0.0.1:{playlist}/a.m3u8?token=s3cret") }),
            "not_found",
            "answered with status 404".to_owned(),
        ),
        (
            json!({ "hls": format!("http://127.0.0.1:{private}/a.m3u8"), "headers": { "Authorization": "s3cret" } }),
            "credentials_required",
            "answered with status 401".to_owned(),
        ),
        (
            json!({ "url": "http://origin.invalid/a.m3u8" }),
            "name_not_resolved",
            "cannot resolve the host name origin.invalid".to_owned(),
        ),
    ] {
        let shown = result(&gateway, &settings).await;
        assert_eq!(
            (&shown["ok"], &shown["cause"]),
            (&json!(false), &json!(cause)),
            "{shown}"
        );
        assert!(
            shown["detail"].as_str().is_some_and(|detail| detail.contains(&text)),
            "{text} in {shown}"
        );
    }
    // Nothing of a test is left.
    assert!(gateway.source_registry().all().is_empty() && gateway.media_plane().hub().streams().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn settings_with_mistakes_are_refused_before_anything_is_connected_to() {
    let gateway = gateway(&[OPERATOR]).await;
    for (settings, pointer) in [
        (json!({ "url": "ftp://a/" }), Value::Null),
        (json!({ "url": 7 }), Value::Null),
        (json!({}), json!("")),
        (json!({ "url": "rtsps://a/" }), json!("/rtsp")),
        (json!({ "rtsp": "rtsp://a/", "hls": "http://a/" }), json!("/hls")),
        (json!({ "rtsp": "rtsp://a/", "transport": "x" }), json!("/transport")),
    ] {
        let reply = test(&gateway, &settings).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (422, "bad_stream"),
            "{settings}"
        );
        let problem: Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_test_keeps_to_the_allowed_networks() {
    let gateway = gateway(&[OPERATOR, ("MILLSTREAM_SOURCES__ALLOW", "192.0.2.0/24")]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    for url in [
        format!("rtsp://127.0.0.1:{port}/"),
        format!("http://127.0.0.1:{port}/a.m3u8"),
    ] {
        let shown = result(&gateway, &json!({ "url": url })).await;
        assert_eq!(shown["cause"], "not_allowed", "{shown}");
        let detail = shown["detail"].as_str().expect("a text");
        assert!(
            detail.contains("the address 127.0.0.1 is not in a network of `sources.allow`"),
            "{detail}"
        );
    }
    let connected = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(connected.is_err(), "nothing was connected to");
    gateway.stop().await;
}

/// Cloud services answer there with the credentials of the host.
#[tokio::test]
async fn no_source_is_at_a_link_local_address_unless_it_is_allowed() {
    let gateway = gateway(&[OPERATOR]).await;
    let pipeline = |name: &str, uri: &str| json!({ "pipeline": name, "params": { "uri": uri } });
    for settings in [
        json!({ "url": "rtsp://169.254.169.254/" }),
        json!({ "url": "rtsp://[fe80::1]/" }),
        json!({ "url": "http://169.254.169.254/a.m3u8" }),
        pipeline("rtmp", "rtmp://169.254.169.254:80/a/b"),
        pipeline("srt", "srt://[fd00:ec2::254]:80"),
        pipeline("rtsp", "rtsps://[::ffff:169.254.169.254]/"),
    ] {
        let shown = result(&gateway, &settings).await;
        assert_eq!(shown["cause"], "not_allowed", "{settings}: {shown}");
        let detail = shown["detail"].as_str().expect("a text");
        assert!(detail.contains("link-local"), "{detail}");
    }
    gateway.stop().await;
}

/// Whoever resolves a name once more may get an address that was not checked.
#[tokio::test]
async fn a_camera_is_asked_at_the_address_that_its_name_was_resolved_to() {
    let gateway = gateway(&[OPERATOR, ("MILLSTREAM_SOURCES__ALLOW", "127.0.0.0/8")]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                if let Ok(length @ 1..) = stream.read(&mut request).await {
                    let _ = sender.send(String::from_utf8_lossy(&request[..length]).into_owned());
                }
            });
        }
    });
    let shown = result(&gateway, &json!({ "url": format!("rtsp://localhost:{port}/cam") })).await;
    assert_eq!(shown["ok"], false, "{shown}");
    let request = requests.recv().await.expect("a request");
    let expected = format!("DESCRIBE rtsp://127.0.0.1:{port}/cam ");
    assert!(request.starts_with(&expected), "{request}");
    gateway.stop().await;
}

/// Servers that take connections and never answer: the time of a test is bounded, and how many run at once.
#[tokio::test]
async fn tests_are_bounded_in_time_and_number() {
    let gateway = gateway(&[OPERATOR, ("MILLSTREAM_API__SOURCE_TEST_TIMEOUT", "2")]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let settings = json!({ "url": format!("rtsp://127.0.0.1:{}/", listener.local_addr().expect("bound").port()) });
    let silent = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            connections.push(tokio::spawn(
                async move { connection.read_to_end(&mut Vec::new()).await },
            ));
        }
    });
    let replies = futures_util::future::join_all((0..6).map(|_| test(&gateway, &settings))).await;
    let busy: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 503).collect();
    assert_eq!(busy.len(), 2);
    assert!(busy.iter().all(|reply| reply.problem() == "too_many_source_tests"));
    for reply in replies.iter().filter(|reply| reply.status == 200) {
        let shown: Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(shown["cause"], "timeout", "{shown}");
    }
    assert_eq!(
        result(&gateway, &settings).await["cause"],
        "timeout",
        "there is room again"
    );
    silent.abort();
    gateway.stop().await;
}
