//! Pages, probes and metrics.

use std::time::Duration;

use millstream::hub::name::StreamName;

use crate::client::{OBS, Request, VIEWER, gateway, make_live};

#[tokio::test]
async fn pages_and_files_come_with_their_type_and_a_strict_policy() {
    let gateway = gateway(&[]).await;
    for (path, media_type, content) in [
        ("/", "text/html; charset=utf-8", include_str!("../../player/index.html")),
        (
            "/watch/hall/stage-1",
            "text/html; charset=utf-8",
            include_str!("../../player/watch.html"),
        ),
        (
            "/watch/live/",
            "text/html; charset=utf-8",
            include_str!("../../player/watch.html"),
        ),
        (
            "/publish/live",
            "text/html; charset=utf-8",
            include_str!("../../player/publish.html"),
        ),
        (
            "/player.js",
            "text/javascript; charset=utf-8",
            include_str!("../../player/player.js"),
        ),
        (
            "/style.css",
            "text/css; charset=utf-8",
            include_str!("../../player/style.css"),
        ),
        (
            "/favicon.svg",
            "image/svg+xml",
            include_str!("../../player/favicon.svg"),
        ),
    ] {
        let reply = Request::new("GET", path).send(&gateway).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("content-type"), Some(media_type), "{path}");
        assert_eq!(reply.text(), content, "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert!(reply.header("cache-control").is_some(), "{path}");
        let policy = reply.header("content-security-policy").expect("policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
            "{policy}"
        );
    }
    let reply = Request::new("POST", "/player.js").send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (405, "method_not_allowed"));
    assert_eq!(
        Request::new("GET", "/nowhere").send(&gateway).await.problem(),
        "not_found"
    );
    gateway.stop().await;
}

/// Every file in `player/` is served: one that is added there has to be listed in `pages.rs`.
#[tokio::test]
async fn no_file_of_the_player_is_forgotten() {
    let gateway = gateway(&[]).await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/player");
    for entry in std::fs::read_dir(folder).expect("player/") {
        let name = entry.expect("entry").file_name().into_string().expect("name");
        // `npm` names what build.rs takes from there.
        if !name.ends_with(".html") && name != "npm" {
            assert_eq!(
                Request::new("GET", &format!("/{name}")).send(&gateway).await.status,
                200,
                "{name}"
            );
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn probes_and_metrics_tell_what_happens() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "hall/stage-1");
    Request::publish("/whip/live", OBS).send(&gateway).await.location();
    Request::offer("/whep/hall/stage-1", VIEWER)
        .send(&gateway)
        .await
        .location();
    Request::offer("/whip/live", OBS).send(&gateway).await;
    // The shard opens the viewer after the answer.
    let name = StreamName::parse("hall/stage-1").expect("name");
    let stream = gateway.media().hub().find(&name).expect("live");
    for _ in 0..100 {
        if stream.lock().viewers() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for probe in ["/healthz", "/readyz"] {
        assert_eq!(Request::new("GET", probe).send(&gateway).await.status, 200);
    }
    let reply = Request::new("GET", "/metrics").send(&gateway).await;
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    for line in [
        "millstream_http_responses_total{class=\"2xx\"} 4",
        "millstream_http_responses_total{class=\"4xx\"} 1",
        "millstream_http_responses_total{class=\"5xx\"} 0",
        "millstream_sessions 2",
        "millstream_streams_live 1",
        "millstream_stream_viewers{stream=\"hall/stage-1\"} 1",
        "millstream_dropped_total{reason=\"unknown_sender\"} 0",
        "millstream_dropped_total{reason=\"send_buffer_full\"} 0",
        "millstream_sessions_closed_total{reason=\"deleted\"} 0",
        "# TYPE millstream_received_datagrams_total counter",
    ] {
        assert!(reply.text().lines().any(|l| l == line), "{line} in\n{}", reply.text());
    }
    let names: Vec<&str> = reply.text().lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let unique: std::collections::HashSet<&&str> = names.iter().collect();
    assert_eq!(names.len(), unique.len(), "each family stands once");
    gateway.stop().await;
}

#[tokio::test]
async fn metrics_are_closed_when_there_is_an_api_token() {
    let gateway = gateway(&[("MILLSTREAM_AUTH__API_TOKEN", "operator")]).await;
    let metrics = Request::new("GET", "/metrics");
    assert_eq!(metrics.send(&gateway).await.status, 401);
    assert_eq!(
        metrics
            .clone()
            .bearer(crate::client::PUBLISH)
            .send(&gateway)
            .await
            .status,
        403
    );
    assert_eq!(metrics.clone().bearer("operator").send(&gateway).await.status, 200);
    gateway.stop().await;
}

#[tokio::test]
async fn the_api_is_closed_without_its_token_and_shows_streams_with_it() {
    let closed = gateway(&[]).await;
    let reply = Request::new("GET", "/api/v1/streams").send(&closed).await;
    assert_eq!(reply.status, 401);
    closed.stop().await;

    let gateway = gateway(&[("MILLSTREAM_AUTH__API_TOKEN", "api")]).await;
    for (token, status) in [("wrong", 401), ("api", 200)] {
        let request = Request::new("GET", "/api/v1/streams").header("authorization", &format!("Bearer {token}"));
        assert_eq!(request.send(&gateway).await.status, status, "{token}");
    }
    let get = async |path: &str| {
        Request::new("GET", path)
            .header("authorization", "Bearer api")
            .send(&gateway)
            .await
    };
    assert_eq!(get("/api/v1/streams").await.text(), "[]");
    let missing = get("/api/v1/streams/hall/stage-1").await;
    assert_eq!((missing.status, missing.problem().as_str()), (404, "unknown_stream"));
    make_live(&gateway, "hall/stage-1");
    let reply = get("/api/v1/streams/hall/stage-1").await;
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let stream: serde_json::Value = serde_json::from_str(reply.text()).expect("JSON");
    assert_eq!(stream["live"], true);
    assert_eq!(stream["publisher"], "whip");
    assert_eq!(stream["video"]["codec"], "VP8");
    gateway.stop().await;
}
