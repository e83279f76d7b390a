//! Sessions whose access ends with a reload of the configuration.

use std::time::Duration;

use millstream::{Config, Gateway};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::access::{Folder, SECRET, http, in_seconds, play, serve, signed};
use crate::http::client::{OBS, PUBLISH, Request, VIEWER, from_text, make_live};

async fn reload(gateway: &mut Gateway, text: &str) -> usize {
    let environment = [("MILLSTREAM_AUTH__PUBLISH_TOKEN".to_owned(), PUBLISH.to_owned())];
    let config = Config::parse(text, "test.toml".as_ref(), environment);
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    gateway.replace_config(config).await.expect("valid").sessions_ended
}

/// Waits until so many sessions are open; fails before half-open ones time out.
async fn until_sessions(gateway: &Gateway, wanted: usize) {
    let waiting = async {
        while gateway.media_plane().session_count() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(8), waiting).await;
    assert!(reached.is_ok(), "{} sessions", gateway.media_plane().session_count());
}

#[tokio::test]
async fn viewers_without_a_token_leave_when_watching_needs_one() {
    let mut gateway = from_text("[http]\ncounter_offer = \"always\"\n").await;
    make_live(&gateway, "live");
    let offered = Request::offer("/whep/live", VIEWER).send(&gateway).await;
    let offered = offered.header("location").expect("a counter-offer").to_owned();
    assert_eq!(reload(&mut gateway, "").await, 0);
    Request::offer("/whep/live", VIEWER).send(&gateway).await.location();
    play(&gateway, "live", PUBLISH).await.location();
    let publisher = Request::publish("/whip/other", OBS).send(&gateway).await.location();
    // That token was not needed: the session was open to everybody.
    let ended = reload(&mut gateway, "[auth]\nplay_token = \"now-closed\"\n").await;
    assert_eq!(ended, 2);
    until_sessions(&gateway, 1).await;
    assert_eq!(
        Request::new("GET", &publisher).send(&gateway).await.status,
        204,
        "it goes on"
    );
    let answer = Request::new("GET", &offered).send(&gateway).await;
    assert_eq!(answer.status, 404, "nobody opens an offer from before");
    let with_token = play(&gateway, "live", "now-closed").await;
    with_token.location();
    assert_eq!(reload(&mut gateway, "").await, 0, "opening ends nobody");
    gateway.stop().await;
}

#[tokio::test]
async fn a_session_by_a_signed_token_lasts_as_long_as_its_key_and_claims_are_valid() {
    let folder = Folder::new("revoked");
    let one = format!("[auth]\njwt_secret = \"{SECRET}\"\n");
    let mut gateway = from_text(&one).await;
    make_live(&gateway, "live");
    let claims = json!({"exp": in_seconds(600), "play": "*", "iss": "us", "aud": ["a", "b"]});
    let token = signed(&folder, &json!({"alg": "HS256"}), &claims, SECRET);
    play(&gateway, "live", &token).await.location();
    let more = |keys: &str| format!("{one}{keys}\n");
    for (text, ended) in [
        (more("jwt_issuer = \"us\""), 0),
        (more("jwt_audience = \"b\""), 0),
        (more("play_token = \"another-way\""), 0),
        (more("jwt_audience = \"c\""), 1),
    ] {
        assert_eq!(reload(&mut gateway, &text).await, ended, "{text}");
        until_sessions(&gateway, 1 - ended).await;
    }
    for (text, ended) in [
        (more("jwt_issuer = \"them\""), 1),
        ("[auth]\njwt_secret = \"another-secret-of-sixteen\"\n".to_owned(), 1),
        ("[auth]\nplay_token = \"another-way\"\n".to_owned(), 1),
    ] {
        assert_eq!(reload(&mut gateway, &one).await, 0);
        play(&gateway, "live", &token).await.location();
        assert_eq!(reload(&mut gateway, &text).await, ended, "{text}");
        until_sessions(&gateway, 1 - ended).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_session_by_the_webhook_lasts_as_long_as_the_webhook_is_configured() {
    let (address, _) = serve(|_| http("204 No Content", "")).await;
    let hook = format!("[auth]\nwebhook_url = \"http://{address}/\"\n");
    let mut gateway = from_text(&hook).await;
    make_live(&gateway, "live");
    play(&gateway, "live", "anything").await.location();
    assert_eq!(reload(&mut gateway, &format!("{hook}webhook_timeout = 5\n")).await, 0);
    let closed = "[auth]\nplay_token = \"play\"\n";
    assert_eq!(reload(&mut gateway, closed).await, 1);
    until_sessions(&gateway, 0).await;
    assert_eq!(reload(&mut gateway, &hook).await, 0);
    play(&gateway, "live", "anything").await.location();
    let other = hook.replace("/\"", "/other\"");
    assert_eq!(reload(&mut gateway, &other).await, 1, "another service decides");
    gateway.stop().await;
}

/// A request that was permitted before the reload and opens its session after it.
#[tokio::test]
async fn a_viewer_that_waits_for_the_publisher_is_not_let_in_after_access_was_closed() {
    let mut gateway = from_text("[http]\nwait_for_publisher = 60\n").await;
    let address = gateway.http_address();
    let waiting = tokio::spawn(async move {
        let request = format!(
            "POST /whep/live HTTP/1.1\r\nHost: h\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{VIEWER}",
            VIEWER.len()
        );
        crate::http::client::raw(address, request.as_bytes()).await
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    reload(&mut gateway, "[auth]\nplay_token = \"now-closed\"\n").await;
    make_live(&gateway, "live");
    waiting.await.expect("runs");
    // Sooner than a half-open session times out.
    until_sessions(&gateway, 0).await;
    gateway.stop().await;
}

#[tokio::test]
async fn events_of_the_api_end_with_the_token_that_opened_them() {
    let mut gateway = from_text("[auth]\napi_token = \"old\"\n").await;
    let mut stream = TcpStream::connect(gateway.http_address()).await.expect("connects");
    let request = b"GET /api/v1/events HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer old\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("sends");
    let mut bytes = [0; 15];
    stream.read_exact(&mut bytes).await.expect("a response");
    assert!(bytes.starts_with(b"HTTP/1.1 200"));
    reload(&mut gateway, "[auth]\napi_token = \"new\"\n").await;
    make_live(&gateway, "after-the-reload");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
    ended.expect("it ends").expect("reads");
    assert!(!String::from_utf8_lossy(&rest).contains("after-the-reload"));
    gateway.stop().await;
}
