//! Bad input of every kind leaves nothing behind: no session, no task.

use std::time::Duration;

use serde_json::json;

use crate::http::access::{Folder, SECRET, in_seconds, signed};
use crate::http::client::{OBS, PUBLISH, Request, VIEWER, gateway, hurry, make_live, raw};

/// The rows of bad input, as requests.
fn bad() -> Vec<Request> {
    let offers = [
        "",
        "hello",
        "v=1\r\n",
        "{\"type\":\"offer\"}",
        "v=0\r\n\0",
        &OBS.replace("a=sendonly", "a=recvonly"),
        &OBS.replace("a=fingerprint", "a=nothing"),
        &OBS.replace("a=rtcp-mux", "a=nothing"),
        &OBS.replace("a=setup:actpass", "a=setup:holdconn"),
        &OBS.replace("a=mid:1", "a=mid:0"),
        &OBS.replace("H264/90000", "theora/90000"),
        &OBS[..OBS.len() / 2],
        &"a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n".repeat(20_000),
    ]
    .map(str::to_owned);
    let mut all: Vec<Request> = offers
        .iter()
        .map(|offer| Request::publish("/whip/bad", offer))
        .collect();
    all.extend([
        Request::offer("/whep/bad", OBS),
        Request::offer("/whep/none", VIEWER),
        Request::offer("/whip/bad", OBS).bearer("wrong"),
        Request::offer("/whip/bad", OBS).header("Authorization", "Nonsense"),
        Request::publish("/whip/..%2fetc", OBS),
        Request::new("POST", "/whip/bad").bearer(PUBLISH).body(OBS),
        Request::new("PUT", "/whip/bad").body(OBS),
        Request::new("DELETE", "/session/AAAAAAAAAAAAAAAAAAAAAA"),
        Request::trickle("/session/AAAAAAAAAAAAAAAAAAAAAA", "a=x:y\r\n"),
        Request::new("POST", "/session/AAAAAAAAAAAAAAAAAAAAAA/events").body("[1]"),
        Request::new("POST", "/session/AAAAAAAAAAAAAAAAAAAAAA/layer").body("{"),
        Request::new("GET", "/hls/bad/index.m3u8?_HLS_msn=99999999999999999999"),
        Request::new("GET", "/hls/../../etc/passwd"),
        Request::new("GET", "/api/v1/streams").bearer("wrong"),
    ]);
    all
}

/// Failing requests, a hundred times each, while a healthy session runs: no resources leak.
#[tokio::test]
async fn bad_input_leaves_no_session_and_no_task() {
    let gateway = gateway(&[
        ("MILLSTREAM_AUTH__API_TOKEN", "operator"),
        ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0"),
    ])
    .await;
    make_live(&gateway, "good");
    let well = Request::offer("/whep/good", VIEWER).send(&gateway).await.location();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..100 {
        for request in bad() {
            let reply = request.send(&gateway).await;
            assert!((400..500).contains(&reply.status), "{request:?}: {}", reply.status);
        }
        raw(gateway.http_address(), b"\x16\x03\x01\r\n\r\n").await;
    }
    assert_eq!(gateway.media_plane().session_count(), 1, "the one that is well");
    assert_eq!(Request::new("GET", &well).send(&gateway).await.status, 204);
    let settled = async {
        while tasks() > before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(20), settled).await;
    assert!(settled.is_ok(), "{} tasks, {before} before", tasks());
    gateway.stop().await;
}

/// Tokens that the API issues may be valid for years, and most sessions last for minutes.
#[tokio::test]
async fn the_expiry_of_a_token_is_not_kept_longer_than_the_sessions_that_it_opened() {
    const SESSIONS: usize = 1_100;
    let gateway = gateway(&[
        ("MILLSTREAM_AUTH__PLAY_TOKEN", "play"),
        ("MILLSTREAM_AUTH__JWT_SECRET", SECRET),
        ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0"),
    ])
    .await;
    make_live(&gateway, "live");
    let folder = Folder::new("expiries");
    let claims = json!({ "exp": in_seconds(365 * 24 * 60 * 60), "play": "live" });
    let token = signed(&folder, &json!({ "alg": "HS256" }), &claims, SECRET);
    let offer = Request::offer("/whep/live", VIEWER).bearer(&token);
    for _ in 0..SESSIONS {
        let session = offer.send(&gateway).await.location();
        assert_eq!(Request::new("DELETE", &session).send(&gateway).await.status, 200);
    }
    let kept = || gateway.sessions().pending_token_expiry_count();
    let counted = async {
        while kept() < SESSIONS {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        while kept() == SESSIONS {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let counted = hurry(tokio::time::timeout(Duration::from_secs(600), counted)).await;
    assert!(counted.is_ok(), "{} are kept", kept());
    gateway.stop().await;
}

/// What is known of ended sessions goes after its minute, also while no other session begins or ends.
#[tokio::test]
async fn sessions_that_ended_are_forgotten_although_no_other_client_comes() {
    let gateway = gateway(&[("MILLSTREAM_AUTH__API_TOKEN", "operator")]).await;
    make_live(&gateway, "live");
    for _ in 0..20 {
        let session = Request::offer("/whep/live", VIEWER).send(&gateway).await.location();
        assert_eq!(Request::new("DELETE", &session).send(&gateway).await.status, 200);
    }
    let listed = async || {
        let reply = Request::new("GET", "/api/v1/sessions")
            .bearer("operator")
            .send(&gateway)
            .await;
        assert_eq!(reply.status, 200);
        reply.text().matches("\"id\"").count()
    };
    assert_eq!(listed().await, 20, "ended ones are listed for a minute");
    let forgotten = async {
        while listed().await > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let forgotten = hurry(tokio::time::timeout(Duration::from_secs(600), forgotten)).await;
    assert!(forgotten.is_ok(), "{} sessions are still known", listed().await);
    gateway.stop().await;
}
