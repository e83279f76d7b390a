//! Tokens for particular streams that the API issues (stream keys), and share links.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream::config::Secret;
use millstream::{Config, Gateway};
use serde_json::{Value, json};

use crate::http::access::{Folder, SECRET, in_seconds, signed};
use crate::http::client::{OBS, PUBLISH, Reply, Request, VIEWER, make_live, raw};

fn state_file(name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tokens-{name}-{}.toml", std::process::id()));
    let _ = fs::remove_file(&file);
    file
}

fn config(state_file: &Path, more: &[(&str, &str)]) -> Config {
    let settings = [
        ("MILLSTREAM_HTTP__LISTEN", "127.0.0.1:0"),
        ("MILLSTREAM_WEBRTC__LISTEN", "127.0.0.1:0"),
        ("MILLSTREAM_WEBRTC__SHARDS", "1"),
        ("MILLSTREAM_AUTH__PUBLISH_TOKEN", PUBLISH),
        ("MILLSTREAM_AUTH__PLAY_TOKEN", "play-everything"),
        ("MILLSTREAM_AUTH__API_TOKEN", "operator"),
        ("MILLSTREAM_PIPELINES__TRANSCODE", "false"),
        ("MILLSTREAM_API__STATE_FILE", state_file.to_str().expect("UTF-8")),
    ];
    let environment = settings
        .iter()
        .chain(more)
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::parse("", Path::new("test.toml"), environment).unwrap_or_else(|error| panic!("{error}"))
}

async fn start(state_file: &Path) -> Gateway {
    Gateway::start(config(state_file, &[])).await.expect("starts")
}

async fn issue(gateway: &Gateway, request: &Value) -> Reply {
    let post = Request::new("POST", "/api/v1/tokens").bearer("operator");
    post.header("Content-Type", "application/json")
        .body(request.to_string())
        .send(gateway)
        .await
}

async fn issued(gateway: &Gateway, request: &Value) -> Value {
    let reply = issue(gateway, request).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    serde_json::from_slice(&reply.body).expect("JSON")
}

async fn list(gateway: &Gateway) -> Value {
    let reply = Request::new("GET", "/api/v1/tokens")
        .bearer("operator")
        .send(gateway)
        .await;
    serde_json::from_slice(&reply.body).expect("JSON")
}

async fn revoke(gateway: &Gateway, id: &Value) -> Reply {
    let path = format!("/api/v1/tokens/{}", id.as_str().expect("an id"));
    Request::new("DELETE", &path).bearer("operator").send(gateway).await
}

fn text<'a>(token: &'a Value, member: &str) -> &'a str {
    token[member].as_str().expect(member)
}

#[tokio::test]
async fn a_token_permits_what_it_was_issued_for_and_survives_a_restart() {
    let file = state_file("life");
    let gateway = start(&file).await;
    let publisher = issued(&gateway, &json!({ "publish": "studio/*", "label": "OBS" })).await;
    let viewer = issued(&gateway, &json!({ "play": ["live"], "expires_in": 3600 })).await;
    assert_eq!(publisher["links"], Value::Null, "it is for many streams");
    let token = text(&viewer, "token");
    assert_eq!(
        viewer["links"],
        json!({
            "watch": format!("/watch/live#token={token}"),
            "hls": format!("/hls/live/index.m3u8?token={token}"),
            "publish": null,
        })
    );
    assert_eq!(
        viewer["expires"].as_u64(),
        viewer["issued"].as_u64().map(|issued| issued + 3_600)
    );
    // They are shown once, and kept as digests.
    let listed = list(&gateway).await;
    assert_eq!(listed.as_array().expect("a list").len(), 2);
    let kept = fs::read_to_string(&file).expect("written");
    for token in [&publisher, &viewer] {
        let secret = text(token, "token");
        assert!(!listed.to_string().contains(secret) && !kept.contains(secret));
    }
    gateway.stop().await;

    let gateway = start(&file).await;
    assert_eq!(list(&gateway).await, listed);
    make_live(&gateway, "live");
    make_live(&gateway, "other");
    for (target, offer, token, status) in [
        ("/whip/studio/a", OBS, text(&publisher, "token"), 201),
        ("/whip/live", OBS, text(&publisher, "token"), 403),
        ("/whep/live", VIEWER, text(&publisher, "token"), 403),
        ("/whep/live", VIEWER, token, 201),
        ("/whep/other", VIEWER, token, 403),
        ("/whip/live", OBS, token, 403),
        ("/whep/live", VIEWER, "a-wrong-token", 401),
    ] {
        let reply = Request::offer(target, offer).bearer(token).send(&gateway).await;
        assert_eq!(reply.status, status, "{target} {}", reply.text());
    }
    let page = Request::new("GET", "/hls/live/index.m3u8?token=wrong")
        .send(&gateway)
        .await;
    assert_eq!(page.status, 401);
    for path in ["/api/v1/streams", "/api/v1/tokens", "/metrics"] {
        assert_eq!(
            Request::new("GET", path).bearer(token).send(&gateway).await.status,
            403,
            "{path}"
        );
    }
    gateway.stop().await;
    let _ = fs::remove_file(&file);
}

#[tokio::test]
async fn sessions_end_with_their_token() {
    let file = state_file("revoked");
    let mut gateway = start(&file).await;
    make_live(&gateway, "live");
    let revoked = issued(&gateway, &json!({ "play": "live" })).await;
    let kept = issued(&gateway, &json!({ "play": "live" })).await;
    let short = issued(&gateway, &json!({ "play": "live", "expires_in": 5 })).await;
    // The one that expires first.
    for token in [&short, &revoked, &kept] {
        let offer = Request::offer("/whep/live", VIEWER).bearer(text(token, "token"));
        offer.send(&gateway).await.location();
    }
    assert_eq!(revoke(&gateway, &revoked["id"]).await.status, 204);
    let again = revoke(&gateway, &revoked["id"]).await;
    assert_eq!((again.status, again.problem().as_str()), (404, "unknown_token"));
    let causes = async {
        loop {
            let reply = Request::new("GET", "/api/v1/sessions")
                .bearer("operator")
                .send(&gateway)
                .await;
            let shown: Value = serde_json::from_slice(&reply.body).expect("JSON");
            let mut causes: Vec<String> = shown["sessions"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|session| session["cause"].as_str().unwrap_or("none").to_owned())
                .collect();
            causes.sort();
            if causes.iter().filter(|cause| *cause != "none").count() == 2 {
                return causes;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(causes.await, ["none", "token_expired", "token_revoked"]);
    let offer = |token: &Value| Request::offer("/whep/live", VIEWER).bearer(text(token, "token"));
    let reply = offer(&revoked).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (401, "token_wrong"));
    let reply = offer(&short).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (401, "token_expired"));
    // A reload of the configuration does not touch them.
    let reloaded = gateway.replace_config(config(&file, &[])).await.expect("valid");
    assert_eq!(reloaded.sessions_ended, 0);
    assert_eq!(offer(&kept).send(&gateway).await.status, 201);
    gateway.stop().await;
    let _ = fs::remove_file(&file);
}

/// Whoever had a token of the API for a moment does not keep what it was good for.
#[tokio::test]
async fn tokens_end_with_the_credential_that_issued_them() {
    let file = state_file("issuer");
    let with_api_token = |token: &str| {
        let mut config = config(&file, &[]);
        config.auth.api_token = Secret::new(token);
        config
    };
    let mut gateway = start(&file).await;
    make_live(&gateway, "live");
    let token = issued(&gateway, &json!({ "play": "live" })).await;
    assert_eq!(
        (&token["issued_by"], &token["valid"]),
        (&json!("auth.api_token"), &json!(true))
    );
    let offer = Request::offer("/whep/live", VIEWER).bearer(text(&token, "token"));
    offer.send(&gateway).await.location();
    let kept = fs::read_to_string(&file).expect("written");
    assert!(!kept.contains("operator"), "{kept}");

    let reloaded = gateway.replace_config(with_api_token("rotated")).await.expect("valid");
    assert_eq!((reloaded.tokens_ended, reloaded.sessions_ended), (1, 1));
    let refused = offer.send(&gateway).await;
    assert_eq!((refused.status, refused.problem().as_str()), (401, "token_wrong"));
    gateway.stop().await;
    let mut gateway = Gateway::start(with_api_token("rotated")).await.expect("starts");
    make_live(&gateway, "live");
    assert_eq!(
        offer.send(&gateway).await.status,
        401,
        "a restart does not make it valid"
    );
    let list = Request::new("GET", "/api/v1/tokens")
        .bearer("rotated")
        .send(&gateway)
        .await;
    let listed: Value = serde_json::from_slice(&list.body).expect("JSON");
    assert_eq!((&listed[0]["id"], &listed[0]["valid"]), (&token["id"], &json!(false)));

    // A rotation that was a mistake can be taken back.
    let reloaded = gateway.replace_config(with_api_token("operator")).await.expect("valid");
    assert_eq!(reloaded.tokens_ended, 0);
    assert_eq!(offer.send(&gateway).await.status, 201);
    gateway.replace_config(with_api_token("rotated")).await.expect("valid");
    let other = Request::new("POST", "/api/v1/tokens").bearer("rotated");
    let other = other
        .header("Content-Type", "application/json")
        .body(r#"{"play": "live"}"#);
    assert_eq!(other.send(&gateway).await.status, 201);
    let kept = fs::read_to_string(&file).expect("written");
    assert!(
        !kept.contains(text(&token, "id")),
        "what is not valid is forgotten with the next one"
    );
    gateway.stop().await;
    let _ = fs::remove_file(&file);
}

#[tokio::test]
async fn a_signed_token_issues_none_that_is_valid_for_longer() {
    let (file, folder) = (state_file("signed"), Folder::new("issuer"));
    let key = [("MILLSTREAM_AUTH__JWT_SECRET", SECRET)];
    let mut gateway = Gateway::start(config(&file, &key)).await.expect("starts");
    make_live(&gateway, "live");
    let exp = in_seconds(600);
    let claims = json!({ "exp": exp, "api": true, "sub": "alice\n" });
    let issuer = signed(&folder, &json!({ "alg": "HS256" }), &claims, SECRET);
    let issue = async |gateway: &Gateway, request: Value| {
        let post = Request::new("POST", "/api/v1/tokens").bearer(&issuer);
        let post = post
            .header("Content-Type", "application/json")
            .body(request.to_string());
        post.send(gateway).await
    };
    let longer = issue(&gateway, json!({ "publish": "*", "expires_in": 3_600 })).await;
    assert_eq!((longer.status, longer.problem().as_str()), (422, "bad_token_request"));
    assert!(
        longer
            .text()
            .contains("exceeds the remaining lifetime of the token that authorizes this request"),
        "{}",
        longer.text()
    );
    assert_eq!(
        issue(&gateway, json!({ "play": "live", "expires_in": 60 }))
            .await
            .status,
        201
    );
    let without_end = issue(&gateway, json!({ "play": "live" })).await;
    let token: Value = serde_json::from_slice(&without_end.body).expect("JSON");
    assert_eq!(
        (&token["expires"], &token["issued_by"]),
        (&json!(exp), &json!("jwt alice"))
    );
    let offer = Request::offer("/whep/live", VIEWER).bearer(text(&token, "token"));
    assert_eq!(offer.send(&gateway).await.status, 201);
    // The same key, another audience, and another key.
    for (settings, status) in [
        (vec![key[0]], 201),
        (vec![key[0], ("MILLSTREAM_AUTH__JWT_AUDIENCE", "other")], 401),
        (vec![("MILLSTREAM_AUTH__JWT_SECRET", "another-secret-of-sixteen")], 401),
        (vec![key[0]], 201),
    ] {
        gateway.replace_config(config(&file, &settings)).await.expect("valid");
        assert_eq!(offer.send(&gateway).await.status, status, "{settings:?}");
    }
    gateway.stop().await;
    let gateway = Gateway::start(config(&file, &key)).await.expect("starts");
    make_live(&gateway, "live");
    assert_eq!(offer.send(&gateway).await.status, 201, "a restart does not end it");
    gateway.stop().await;
    let _ = fs::remove_file(&file);
}

/// A revocation reads the access rules and applies them to the sessions; a reload may replace them meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_during_a_reload_does_not_bring_back_the_old_rules() {
    let file = state_file("interleaved");
    let mut gateway = start(&file).await;
    let address = gateway.http_address();
    make_live(&gateway, "live");
    for round in 0..50 {
        let token = issued(&gateway, &json!({ "play": "live" })).await;
        let revocation = format!(
            "DELETE /api/v1/tokens/{} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer operator\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n",
            text(&token, "id")
        );
        let revoking = tokio::spawn(async move { raw(address, revocation.as_bytes()).await });
        let mut other = config(&file, &[]);
        let play_token = format!("play-{round}");
        other.auth.play_token = Secret::new(&play_token);
        gateway.replace_config(other).await.expect("valid");
        assert!(revoking.await.expect("runs").starts_with(b"HTTP/1.1 204"));
        let offer = Request::offer("/whep/live", VIEWER).bearer(&play_token);
        let session = offer.send(&gateway).await.location();
        let shown = Request::new("GET", &session).send(&gateway).await;
        assert_eq!(shown.status, 204, "round {round}: {}", shown.text());
        Request::new("DELETE", &session).send(&gateway).await;
    }
    gateway.stop().await;
    let _ = fs::remove_file(&file);
}

#[tokio::test]
async fn requests_with_mistakes_are_refused() {
    let file = state_file("mistakes");
    let gateway = Gateway::start(config(&file, &[("MILLSTREAM_API__MAX_TOKENS", "2")]))
        .await
        .expect("starts");
    for (request, expected) in [
        (json!({}), "no permission"),
        (json!({ "play": [] }), "no permission"),
        (json!({ "play": "a b" }), "`play` is invalid"),
        (json!({ "publish": ["a", 7] }), "`publish` is invalid"),
        (json!({ "play": vec!["a"; 17] }), "more than 16 patterns"),
        (json!({ "play": "a", "expires_in": 0 }), "`expires_in` has to be"),
        (json!({ "play": "a", "expires_in": u64::MAX }), "`expires_in` has to be"),
        (json!({ "play": "a", "expires": 7 }), "unknown field `expires`"),
        (
            json!({ "play": "a", "label": "x".repeat(129) }),
            "`label` has more than 128 characters",
        ),
    ] {
        let reply = issue(&gateway, &request).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (422, "bad_token_request"),
            "{request}"
        );
        assert!(reply.text().contains(expected), "{expected} in {}", reply.text());
    }
    for _ in 0..2 {
        issued(&gateway, &json!({ "play": "a", "expires_in": 4 })).await;
    }
    let full = issue(&gateway, &json!({ "play": "a" })).await;
    assert_eq!((full.status, full.problem().as_str()), (409, "too_many_tokens"));
    // Tokens that have expired take no room.
    while issue(&gateway, &json!({ "play": "a" })).await.status != 201 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(list(&gateway).await.as_array().expect("a list").len() < 3);
    gateway.stop().await;
    let text = fs::read_to_string(&file)
        .expect("written")
        .replace("digest = \"", "digest = \"x");
    fs::write(&file, text).expect("written");
    let error = Gateway::start(config(&file, &[]))
        .await
        .err()
        .expect("a mistake")
        .to_string();
    assert!(
        error.contains("`tokens[0]` is not a token that the API has issued"),
        "{error}"
    );
    let _ = fs::remove_file(&file);
}
