//! Who may use `/talk/{stream}`: a right of its own. What becomes of the audio is in `tests/sources/rtsp/talk.rs`.

use std::path::Path;

use millstream::Gateway;
use serde_json::{Value, json};

use crate::http::access::{Folder, SECRET, http, in_seconds, serve, signed};
use crate::http::client::{OBS, PUBLISH, Reply, Request, from_text};

/// A camera that is never asked in these tests.
const DOOR: &str = "[streams.door]\nrtsp = \"rtsp://192.0.2.1/cam\"\non_demand = true\n";

async fn ask(gateway: &Gateway, stream: &str, token: Option<&str>) -> Reply {
    let request = Request::new("GET", &format!("/talk/{stream}"));
    let request = token.into_iter().fold(request, Request::bearer);
    request.send(gateway).await
}

#[tokio::test]
async fn each_kind_of_token_may_carry_the_right_to_talk_and_no_other_right_includes_it() {
    let state_file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("talk-{}.toml", std::process::id()));
    let _ = std::fs::remove_file(&state_file);
    let text = format!(
        "[auth]\ntalk_token = \"talk-to-all\"\nplay_token = \"play\"\napi_token = \"operator\"\njwt_secret = \"{SECRET}\"\n\
         tokens = [{{ token = \"desk\", talk = \"door\" }}, {{ token = \"gate\", talk = \"gate/*\" }}]\n\
         [api]\nstate_file = {state_file:?}\n{DOOR}"
    );
    let gateway = from_text(&text).await;
    let folder = Folder::new("talk");
    let jwt = |claims: Value| signed(&folder, &json!({ "alg": "HS256" }), &claims, SECRET);
    let claims = |name: &str, patterns: &str| json!({ "exp": in_seconds(60), name: patterns });
    let issue = Request::new("POST", "/api/v1/tokens")
        .bearer("operator")
        .header("Content-Type", "application/json")
        .body(json!({ "talk": "door", "play": "door" }).to_string());
    let issued = issue.send(&gateway).await;
    assert_eq!(issued.status, 201, "{}", issued.text());
    let issued: Value = serde_json::from_slice(&issued.body).expect("JSON");
    assert_eq!(issued["talk"], json!(["door"]));
    for (token, status) in [
        ("talk-to-all", 204),
        ("desk", 204),
        ("gate", 403),
        (PUBLISH, 403),
        ("play", 403),
        ("operator", 403),
        ("wrong", 401),
        (&jwt(claims("talk", "door")), 204),
        (&jwt(claims("talk", "gate")), 403),
        (&jwt(claims("publish", "*")), 403),
        (issued["token"].as_str().expect("a token"), 204),
    ] {
        assert_eq!(ask(&gateway, "door", Some(token)).await.status, status, "{token}");
    }
    let nobody = ask(&gateway, "door", None).await;
    assert_eq!((nobody.status, nobody.problem().as_str()), (401, "token_missing"));
    // It permits nothing else, but to watch.
    let published = Request::offer("/whip/live", OBS)
        .bearer("talk-to-all")
        .send(&gateway)
        .await;
    assert_eq!(
        (published.status, published.problem().as_str()),
        (403, "insufficient_scope")
    );
    let watched = Request::new("GET", "/hls/live/index.m3u8")
        .bearer("talk-to-all")
        .send(&gateway)
        .await;
    assert_eq!(
        watched.status, 404,
        "there is no such stream, and the token may watch it"
    );
    gateway.stop().await;

    // A token that was issued keeps its right over a restart.
    let gateway = from_text(&text).await;
    let token = issued["token"].as_str().expect("a token");
    assert_eq!(ask(&gateway, "door", Some(token)).await.status, 204);
    gateway.stop().await;
    let _ = std::fs::remove_file(&state_file);
}

#[tokio::test]
async fn the_webhook_is_asked_for_the_action_talk() {
    let (address, _) = serve(|asked| match asked["action"] == "talk" && asked["stream"] == "door" {
        true => http("204 No Content", ""),
        false => http("403 Forbidden", ""),
    })
    .await;
    let gateway = from_text(&format!("[auth]\nwebhook_url = \"http://{address}\"\n{DOOR}")).await;
    assert_eq!(ask(&gateway, "door", Some("desk")).await.status, 204);
    assert_eq!(ask(&gateway, "gate", Some("desk")).await.status, 403);
    gateway.stop().await;
}

#[tokio::test]
async fn a_stream_without_a_camera_and_other_methods_are_refused() {
    let text = format!(
        "[auth]\ntalk_token = \"talk\"\n{DOOR}[streams.film]\nhls = \"http://192.0.2.1/index.m3u8\"\non_demand = true\n"
    );
    let gateway = from_text(&text).await;
    for stream in ["film", "nothing"] {
        let reply = ask(&gateway, stream, Some("talk")).await;
        assert_eq!((reply.status, reply.problem().as_str()), (409, "no_camera"), "{stream}");
    }
    let bad_name = ask(&gateway, "a//b", Some("talk")).await;
    assert_eq!((bad_name.status, bad_name.problem().as_str()), (404, "bad_stream_name"));
    let put = Request::new("PUT", "/talk/door").bearer("talk").send(&gateway).await;
    assert_eq!((put.status, put.problem().as_str()), (405, "method_not_allowed"));
    let options = Request::new("OPTIONS", "/talk/door").send(&gateway).await;
    assert_eq!(
        (options.status, options.header("accept-post")),
        (200, Some("application/sdp"))
    );
    let video = Request::offer("/talk/door", OBS).bearer("talk").send(&gateway).await;
    assert_eq!((video.status, video.problem().as_str()), (422, "audio_only"));
    let json = Request::new("POST", "/talk/door")
        .bearer("talk")
        .body("{}")
        .send(&gateway)
        .await;
    assert_eq!((json.status, json.problem().as_str()), (415, "unsupported_media_type"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_talk_token_is_read_from_a_file_too() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("talk-token-{}", std::process::id()));
    std::fs::write(&file, "from-a-file\n").expect("written");
    let gateway = from_text(&format!("[auth]\ntalk_token_file = {file:?}\n{DOOR}")).await;
    assert_eq!(ask(&gateway, "door", Some("from-a-file")).await.status, 204);
    gateway.stop().await;
    let _ = std::fs::remove_file(&file);
}
