//! `POST /api/v1/streams/{stream}/data`: data channel messages through the API.

use millstream::Gateway;
use serde_json::{Value, json};

use crate::http::client::{PUBLISH, Reply, Request, gateway, make_live};

const PATH: &str = "/api/v1/streams/live/data";

async fn with_api(settings: &[(&str, &str)]) -> Gateway {
    let common = [
        ("MILLSTREAM_AUTH__API_TOKEN", "operator"),
        ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0"),
    ];
    let gateway = gateway(&[common.as_slice(), settings].concat()).await;
    make_live(&gateway, "live");
    gateway
}

fn message(body: impl AsRef<[u8]>) -> Request {
    Request::new("POST", PATH)
        .bearer("operator")
        .header("Content-Type", "application/json")
        .body(body)
}

fn outcome(reply: &Reply) -> (u16, String) {
    (reply.status, reply.problem())
}

#[tokio::test]
async fn a_message_is_taken_counted_and_shown() {
    let gateway = with_api(&[]).await;
    for body in [
        json!({ "label": "score", "text": "1:0" }),
        json!({ "label": "score", "text": "" }),
        json!({ "label": "map", "base64": "AAH/" }),
    ] {
        assert_eq!(message(body.to_string()).send(&gateway).await.status, 202);
    }
    let stream = Request::new("GET", "/api/v1/streams/live").bearer("operator");
    let stream: Value = serde_json::from_slice(&stream.send(&gateway).await.body).expect("JSON");
    let expected = json!([
        { "label": "score", "messages": 2, "bytes": 3 },
        { "label": "map", "messages": 1, "bytes": 3 },
    ]);
    assert_eq!(stream["data"], expected);
    let received = "millstream_data_messages_received_total{origin=\"api\"}";
    let metrics = Request::new("GET", "/metrics").bearer("operator").send(&gateway).await;
    assert!(metrics.text().contains(&format!("{received} 3\n")));
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_no_message_is_refused_by_name() {
    let gateway = with_api(&[]).await;
    let long = "x".repeat((64 << 10) + 1);
    for (body, status, code) in [
        (String::new(), 400, "bad_json"),
        ("[1]".to_owned(), 400, "bad_json"),
        (json!({ "text": "x" }).to_string(), 400, "bad_json"),
        (json!({ "label": "a" }).to_string(), 422, "bad_message"),
        (
            json!({ "label": "a", "text": "x", "base64": "" }).to_string(),
            422,
            "bad_message",
        ),
        (json!({ "label": "a", "text": 1 }).to_string(), 400, "bad_json"),
        (json!({ "label": "a", "txt": "x" }).to_string(), 400, "bad_json"),
        (
            json!({ "label": "two words", "text": "x" }).to_string(),
            422,
            "bad_message",
        ),
        (json!({ "label": "", "text": "x" }).to_string(), 422, "bad_message"),
        (json!({ "label": "a", "base64": "?" }).to_string(), 422, "bad_message"),
        (
            json!({ "label": "a", "text": long }).to_string(),
            413,
            "message_too_long",
        ),
        (
            json!({ "label": "a", "text": "x".repeat(200_000) }).to_string(),
            413,
            "body_too_large",
        ),
    ] {
        let reply = message(&body).send(&gateway).await;
        assert_eq!(
            outcome(&reply),
            (status, code.to_owned()),
            "{}",
            &body[..body.len().min(80)]
        );
    }
    let longest = json!({ "label": "a", "text": &long[1..] });
    assert_eq!(message(longest.to_string()).send(&gateway).await.status, 202);
    let body = json!({ "label": "a", "text": "x" }).to_string();
    let plain = Request::new("POST", PATH)
        .bearer("operator")
        .header("Content-Type", "text/plain");
    assert_eq!(
        outcome(&plain.body(&body).send(&gateway).await),
        (415, "unsupported_media_type".to_owned())
    );
    let nowhere = Request::new("POST", "/api/v1/streams/nothing/data").bearer("operator");
    let nowhere = nowhere.header("Content-Type", "application/json").body(&body);
    assert_eq!(
        outcome(&nowhere.send(&gateway).await),
        (404, "unknown_stream".to_owned())
    );
    for n in 0..7 {
        let body = json!({ "label": n.to_string(), "text": "x" });
        assert_eq!(message(body.to_string()).send(&gateway).await.status, 202);
    }
    let ninth = message(json!({ "label": "ninth", "text": "x" }).to_string());
    assert_eq!(
        outcome(&ninth.send(&gateway).await),
        (409, "too_many_labels".to_owned())
    );
    gateway.stop().await;
}

#[tokio::test]
async fn who_may_publish_the_stream_or_use_the_api_may_send() {
    let gateway = with_api(&[("MILLSTREAM_AUTH__PLAY_TOKEN", "ticket")]).await;
    let body = json!({ "label": "a", "text": "x" }).to_string();
    let with_token = |token: &str| {
        let request = Request::new("POST", PATH).bearer(token);
        request.header("Content-Type", "application/json").body(&body)
    };
    for (token, status) in [("operator", 202), (PUBLISH, 202), ("ticket", 403), ("wrong", 401)] {
        assert_eq!(with_token(token).send(&gateway).await.status, status, "{token}");
    }
    let anonymous = Request::new("POST", PATH).header("Content-Type", "application/json");
    assert_eq!(anonymous.body(&body).send(&gateway).await.status, 401);
    // It gives no other right of the API.
    for (method, path) in [
        ("GET", "/api/v1/streams"),
        ("POST", "/api/v1/streams/live"),
        ("PUT", PATH),
    ] {
        let reply = Request::new(method, path).bearer(PUBLISH).send(&gateway).await;
        assert_eq!(reply.status, 403, "{method} {path}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_where_data_channels_are_switched_off() {
    let gateway = with_api(&[("MILLSTREAM_WEBRTC__DATA_CHANNELS", "false")]).await;
    let reply = message(json!({ "label": "a", "text": "x" }).to_string())
        .send(&gateway)
        .await;
    assert_eq!(outcome(&reply), (409, "data_channels_off".to_owned()));
    gateway.stop().await;
}
