//! What players report of their delay, and where it is shown.

use millstream::Gateway;
use serde_json::{Value, json};

use crate::http::client::{OBS, Reply, Request, VIEWER, gateway, make_live};

const API: &str = "api-token-of-the-delays";

async fn viewer(gateway: &Gateway) -> String {
    let reply = Request::offer("/whep/live", VIEWER).send(gateway).await;
    reply.location()
}

fn report(session: &str, body: impl AsRef<[u8]>) -> Request {
    Request::new("POST", &format!("{session}/delay"))
        .header("Content-Type", "application/json")
        .body(body)
}

fn json_of(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice(&reply.body).expect("JSON")
}

#[tokio::test]
async fn what_a_player_reports_is_a_part_of_the_delay_of_its_session() {
    let gateway = gateway(&[("MILLSTREAM_AUTH__API_TOKEN", API)]).await;
    make_live(&gateway, "live");
    let (session, silent) = (viewer(&gateway).await, viewer(&gateway).await);
    let reply = report(&session, r#"{"jitter_buffer": 0.06, "decoding": 0.004}"#)
        .send(&gateway)
        .await;
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(
        reply.header("connection"),
        Some("close"),
        "the next report is half a minute later"
    );
    let expected = json!({ "seconds": 0.064, "source": "player" });
    assert_eq!(json_of(&reply)["player"], expected);

    let list = Request::new("GET", "/api/v1/sessions").bearer(API);
    let listed = json_of(&list.send(&gateway).await);
    let delays: Vec<&Value> = listed["sessions"]
        .as_array()
        .expect("sessions")
        .iter()
        .map(|session| &session["delay"])
        .collect();
    // Nothing is sent to a session that is not connected: it has no delay that could be too high.
    let unknown = json!({
        "capture_to_gateway": null, "gateway": null, "network": null, "player": null, "total": null, "alarm": null,
    });
    let mut reported = unknown.clone();
    reported["player"] = expected.clone();
    assert_eq!(delays.len(), 2);
    assert!(delays.contains(&&unknown) && delays.contains(&&reported), "{delays:?}");
    let id = listed["sessions"]
        .as_array()
        .expect("sessions")
        .iter()
        .find(|session| session["delay"]["player"] == expected)
        .and_then(|session| session["id"].as_str())
        .expect("an id");
    let one = Request::new("GET", &format!("/api/v1/sessions/{id}")).bearer(API);
    assert_eq!(json_of(&one.send(&gateway).await)["delay"], reported);

    // It ends with the session.
    Request::new("DELETE", &session).send(&gateway).await;
    let gone = report(&session, r#"{"jitter_buffer": 0.06}"#).send(&gateway).await;
    assert_eq!((gone.status, gone.problem().as_str()), (404, "unknown_session"));
    assert_eq!(json_of(&one.send(&gateway).await)["delay"], Value::Null);
    assert_eq!(
        report(&silent, r#"{"jitter_buffer": 0}"#).send(&gateway).await.status,
        200,
        "the decoder may be left out"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn wrong_reports_are_refused() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    let session = viewer(&gateway).await;
    for body in [
        "",
        "[]",
        "{}",
        "{\"jitter_buffer\": \"60 ms\"}",
        "{\"jitter_buffer\": null}",
        "{\"jitter_buffer\": -0.001}",
        "{\"jitter_buffer\": 60.1}",
        "{\"jitter_buffer\": 1e400}",
        "{\"jitter_buffer\": 0.1, \"decoding\": -1}",
        "{\"jitter_buffer\": 0.1, \"decoding\": 1e300}",
        "{\"decoding\": 0.1}",
    ] {
        let reply = report(&session, body).send(&gateway).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (400, "bad_delay_report"),
            "{body}"
        );
    }
    let good = "{\"jitter_buffer\": 0.1}";
    let long = format!("{good}{}", " ".repeat(1_024));
    assert_eq!(report(&session, long).send(&gateway).await.problem(), "body_too_large");
    let path = format!("{session}/delay");
    let untyped = Request::new("POST", &path).body(good).send(&gateway).await;
    assert_eq!(
        (untyped.status, untyped.problem().as_str()),
        (415, "unsupported_media_type")
    );
    let get = Request::new("GET", &path).send(&gateway).await;
    assert_eq!((get.status, get.header("allow")), (405, Some("OPTIONS, POST")));
    for unknown in ["/session/AAAAAAAAAAAAAAAAAAAAAA", "/session/x"] {
        assert_eq!(report(unknown, good).send(&gateway).await.problem(), "unknown_session");
    }
    let publisher = Request::publish("/whip/other", OBS).send(&gateway).await.location();
    assert_eq!(
        report(&publisher, good).send(&gateway).await.problem(),
        "unknown_session"
    );

    // None of them counted as a report.
    assert_eq!(report(&session, good).send(&gateway).await.status, 200);
    // Until two of them were less than a second apart.
    let soon = loop {
        let reply = report(&session, good).send(&gateway).await;
        if reply.status != 200 {
            break reply;
        }
    };
    assert_eq!((soon.status, soon.problem().as_str()), (429, "too_many_reports"));
    assert_eq!(soon.header("retry-after"), Some("1"));

    let preflight = Request::new("OPTIONS", &path)
        .header("Origin", "https://page.example")
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", "content-type");
    let preflight = preflight.send(&gateway).await;
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-origin")),
        (200, Some("*"))
    );
    let allowed = preflight.header("access-control-allow-headers").expect("a list");
    assert!(allowed.to_ascii_lowercase().contains("content-type"), "{allowed}");
    gateway.stop().await;
}

/// A class behind one address reports without end, and the next one of it joins.
#[tokio::test]
async fn reports_do_not_use_up_the_requests_of_an_address() {
    let limits = [
        ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "1"),
        ("MILLSTREAM_LIMITS__REQUEST_BURST", "3"),
    ];
    let gateway = gateway(&limits).await;
    make_live(&gateway, "live");
    let session = viewer(&gateway).await;
    for _ in 0..20 {
        let reply = report(&session, "{\"jitter_buffer\": 0.1}").send(&gateway).await;
        assert!(
            reply.status == 200 || reply.problem() == "too_many_reports",
            "{}",
            reply.text()
        );
    }
    viewer(&gateway).await;
    // Those of sessions that there are not do.
    let mut refused = Vec::new();
    for _ in 0..20 {
        let unknown = report("/session/AAAAAAAAAAAAAAAAAAAAAA", "{\"jitter_buffer\": 0.1}");
        refused.push(unknown.send(&gateway).await.problem());
    }
    assert!(refused.iter().any(|code| code == "too_many_requests"), "{refused:?}");
    gateway.stop().await;
}

#[tokio::test]
async fn delays_are_histograms_by_part() {
    let gateway = gateway(&[]).await;
    let metrics = Request::new("GET", "/metrics").send(&gateway).await;
    let text = metrics.text();
    for part in ["capture_to_gateway", "gateway", "network", "player", "total"] {
        let count = format!("millstream_viewer_delay_seconds_count{{part=\"{part}\"}} 0\n");
        assert!(text.contains(&count), "{count}");
    }
    for alarm in ["high", "rising"] {
        let count = format!("millstream_viewers_delayed{{alarm=\"{alarm}\"}} 0\n");
        assert!(text.contains(&count), "{count}");
    }
    gateway.stop().await;
}
