//! What a token may do through the API: only read, or everything.

use std::sync::{Arc, Mutex};

use millstream::Gateway;
use serde_json::{Value, json};

use crate::http::access::{Folder, SECRET, http, in_seconds, serve, signed};
use crate::http::client::{Reply, Request, from_text, make_live};

async fn send(gateway: &Gateway, method: &str, path: &str, token: &str) -> Reply {
    let request = Request::new(method, path).bearer(token);
    let request = if method == "GET" {
        request
    } else {
        request.header("Content-Type", "application/json").body("{}")
    };
    request.send(gateway).await
}

/// Each request that the OpenAPI document describes, for things that do not exist.
async fn described_requests(gateway: &Gateway) -> Vec<(String, String)> {
    let reply = Request::new("GET", "/api/v1/openapi.json").send(gateway).await;
    let document: Value = serde_json::from_slice(&reply.body).expect("JSON");
    let mut requests = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{stream}", "nothing").replace("{id}", "nothing");
        let methods = methods.as_object().expect("methods").keys();
        requests.extend(methods.map(|method| (method.to_ascii_uppercase(), path.clone())));
    }
    assert!(requests.len() > 15, "{requests:?}");
    requests
}

#[tokio::test]
async fn a_token_that_may_only_read_changes_nothing() {
    let gateway =
        from_text("[auth]\ntokens = [{ token = \"monitoring\", api = \"read\" }, { token = \"all\", api = true }]\n")
            .await;
    for (method, path) in described_requests(&gateway).await {
        if path.ends_with("/events") {
            // Endless.
            continue;
        }
        let reply = send(&gateway, &method, &path, "monitoring").await;
        if method == "GET" {
            assert!(![401, 403].contains(&reply.status), "{method} {path}: {}", reply.text());
        } else {
            let refused = (reply.status, reply.problem());
            assert_eq!(refused, (403, "insufficient_scope".to_owned()), "{method} {path}");
            // Nobody serves reloads in this process.
            if !path.ends_with("/reload") {
                let other = send(&gateway, &method, &path, "all").await;
                assert!(![401, 403].contains(&other.status), "{method} {path}: {}", other.text());
            }
        }
    }
    for path in ["/metrics", "/api/v1/streams", "/api/v1/sessions", "/api/v1/tokens"] {
        assert_eq!(send(&gateway, "GET", path, "monitoring").await.status, 200, "{path}");
        assert_eq!(send(&gateway, "GET", path, "another").await.status, 401, "{path}");
    }
    gateway.stop().await;
}

/// A snapshot shows what only viewers may see.
#[tokio::test]
async fn a_snapshot_needs_the_right_to_watch_or_all_of_the_api() {
    let gateway = from_text(
        "[auth]\ntokens = [\n{ token = \"monitoring\", api = \"read\" },\n{ token = \"wall\", api = \"read\", play = \"lobby\" },\n\
         { token = \"all\", api = true },\n]\n",
    )
    .await;
    for stream in ["lobby", "vault"] {
        make_live(&gateway, stream);
    }
    for (token, stream, permitted) in [
        ("monitoring", "lobby", false),
        ("wall", "lobby", true),
        ("wall", "vault", false),
        ("all", "vault", true),
    ] {
        for image in ["jpg", "png"] {
            let path = format!("/api/v1/streams/{stream}/snapshot.{image}");
            let reply = send(&gateway, "GET", &path, token).await;
            assert_eq!(reply.status != 403, permitted, "{token} {path}: {}", reply.text());
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn signed_tokens_and_the_webhook_tell_the_scopes_apart() {
    let folder = Folder::new("scopes");
    let gateway = from_text(&format!("[auth]\njwt_secret = \"{SECRET}\"\n")).await;
    for (api, reads, changes) in [
        (json!("read"), 200, 403),
        (json!(true), 200, 404),
        (json!(false), 403, 403),
        (json!("write"), 401, 401),
        (json!(1), 401, 401),
    ] {
        let claims = json!({ "exp": in_seconds(600), "api": api });
        let token = signed(&folder, &json!({ "alg": "HS256" }), &claims, SECRET);
        assert_eq!(
            send(&gateway, "GET", "/api/v1/streams", &token).await.status,
            reads,
            "{api}"
        );
        let change = send(&gateway, "DELETE", "/api/v1/tokens/nothing", &token).await;
        assert_eq!(change.status, changes, "{api}: {}", change.text());
    }
    gateway.stop().await;

    let asked = Arc::new(Mutex::new(Vec::new()));
    let questions = asked.clone();
    let (address, _) = serve(move |question| {
        let is_read = question["scope"] == "read";
        questions
            .lock()
            .expect("not poisoned")
            .push((question["action"].clone(), question["scope"].clone()));
        if is_read {
            http("204 No Content", "")
        } else {
            http("403 Forbidden", "")
        }
    })
    .await;
    let gateway = from_text(&format!("[auth]\nwebhook_url = \"http://{address}/\"\n")).await;
    assert_eq!(send(&gateway, "GET", "/api/v1/streams", "some").await.status, 200);
    assert_eq!(send(&gateway, "GET", "/metrics", "some").await.status, 200);
    assert_eq!(send(&gateway, "POST", "/api/v1/tokens", "some").await.status, 403);
    let expected = [("api", "read"), ("api", "read"), ("api", "full")];
    let expected = expected.map(|(action, scope)| (json!(action), json!(scope)));
    assert_eq!(*asked.lock().expect("not poisoned"), expected);
    gateway.stop().await;
}
