//! Cross-origin requests.

use crate::http::client::{OBS, Request, gateway};

fn preflight(target: &str, origin: &str, method: &str) -> Request {
    Request::new("OPTIONS", target)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", method)
        .header("Access-Control-Request-Headers", "authorization,content-type,etag")
}

/// H-09, H-11, H-14, H-15, H-16, H-17.
#[tokio::test]
async fn preflights_pass_without_a_token_and_list_everything_by_name() {
    let gateway = gateway(&[("MILLSTREAM_AUTH__PLAY_TOKEN", "ticket")]).await;
    for (target, method) in [
        ("/whip/live", "POST"),
        ("/whep/live", "POST"),
        ("/session/AAAAAAAAAAAAAAAAAAAAAA", "PATCH"),
        ("/session/AAAAAAAAAAAAAAAAAAAAAA", "DELETE"),
    ] {
        let reply = preflight(target, "https://page.example", method).send(&gateway).await;
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{target}");
        let list = |name: &str| -> Vec<String> {
            let value = reply.header(name).unwrap_or_else(|| panic!("{name} on {target}"));
            value.split(", ").map(str::to_ascii_lowercase).collect()
        };
        let allowed = list("access-control-allow-headers");
        for name in ["authorization", "content-type", "if-match", "etag"] {
            assert!(allowed.iter().any(|allowed| allowed == name), "{name} in {allowed:?}");
        }
        assert!(list("access-control-allow-methods").contains(&method.to_ascii_lowercase()));
        let exposed = list("access-control-expose-headers");
        for name in [
            "location",
            "etag",
            "link",
            "retry-after",
            "accept-patch",
            "access-control-allow-methods",
        ] {
            assert!(exposed.iter().any(|exposed| exposed == name), "{name} in {exposed:?}");
        }
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
        assert_eq!(reply.header("access-control-max-age"), Some("7200"));
        assert_eq!(reply.header("accept-post"), Some("application/sdp"));
        assert_eq!(reply.header("link"), None);
    }
    gateway.stop().await;
}

/// H-13: also on what goes wrong.
#[tokio::test]
async fn every_response_may_be_read_by_pages_elsewhere() {
    let gateway = gateway(&[]).await;
    for (method, target) in [
        ("POST", "/whip/live"),
        ("PUT", "/whip/live"),
        ("POST", "/whep/live"),
        ("DELETE", "/session/unknown"),
        ("GET", "/nowhere"),
        ("POST", "/healthz"),
        ("GET", "/player.js"),
    ] {
        let reply = Request::new(method, target)
            .header("Origin", "https://page.example")
            .send(&gateway)
            .await;
        assert_eq!(
            reply.header("access-control-allow-origin"),
            Some("*"),
            "{method} {target}"
        );
        assert!(
            reply.header("access-control-expose-headers").is_some(),
            "{method} {target}"
        );
    }
    gateway.stop().await;
}

/// B41.
#[tokio::test]
async fn a_list_of_origins_lets_no_other_page_read() {
    let origins = "https://page.example,http://localhost:3000";
    let gateway = gateway(&[("MILLSTREAM_HTTP__CORS_ORIGINS", origins)]).await;
    for (origin, allowed) in [
        ("https://page.example", true),
        ("http://localhost:3000", true),
        ("https://page.example.evil", false),
        ("http://page.example", false),
        ("null", false),
    ] {
        for request in [
            preflight("/whip/live", origin, "POST"),
            Request::publish("/whip/live", OBS).header("Origin", origin),
        ] {
            let reply = request.send(&gateway).await;
            assert_eq!(
                reply.header("access-control-allow-origin"),
                allowed.then_some(origin),
                "{origin}"
            );
            assert_eq!(reply.header("vary"), Some("Origin"), "{origin}");
            assert!(matches!(reply.status, 200 | 201), "the token alone decides");
        }
    }
    gateway.stop().await;
}

/// H-35. Tracing libraries add headers to every request of a page.
#[tokio::test]
async fn a_preflight_allows_the_headers_that_it_asks_for() {
    let asked = "authorization, content-type, traceparent,tracestate, baggage, sentry-trace, x-datadog-trace-id";
    let request = |target: &str, asked: &str| {
        Request::new("OPTIONS", target)
            .header("Origin", "https://page.example")
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", asked)
    };
    let open = gateway(&[]).await;
    for target in [
        "/whip/live",
        "/whep/live",
        "/session/AAAAAAAAAAAAAAAAAAAAAA",
        "/session/AAAAAAAAAAAAAAAAAAAAAA/layer",
        "/hls/live/index.m3u8",
    ] {
        let reply = request(target, asked).send(&open).await;
        let allowed = reply
            .header("access-control-allow-headers")
            .unwrap_or_default()
            .to_ascii_lowercase();
        let allowed: Vec<&str> = allowed.split(", ").collect();
        for name in asked.split(',').map(str::trim) {
            assert_eq!(
                allowed.iter().filter(|allowed| **allowed == name).count(),
                1,
                "{name} on {target}"
            );
        }
    }
    // Names that are none, long ones and too many are not repeated.
    let long = "x".repeat(65);
    let odd = format!("good, b@d, two words, {long}, <script>, \u{e9}");
    let reply = request("/whep/live", &odd).send(&open).await;
    let allowed = reply.header("access-control-allow-headers").unwrap_or_default();
    assert!(
        !allowed.contains('<') && !allowed.contains("b@d") && !allowed.contains(&long),
        "{allowed}"
    );
    let many: Vec<String> = (0..500).map(|number| format!("x-{number}")).collect();
    let reply = request("/whep/live", &many.join(",")).send(&open).await;
    let allowed = reply.header("access-control-allow-headers").unwrap_or_default();
    assert!(allowed.split(", ").count() < 50 && allowed.contains("x-1"), "{allowed}");
    open.stop().await;

    let listed = gateway(&[("MILLSTREAM_HTTP__CORS_ORIGINS", "https://other.example")]).await;
    let reply = request("/whep/live", asked).send(&listed).await;
    let allowed = reply.header("access-control-allow-headers").unwrap_or_default();
    assert!(!allowed.contains("traceparent"), "of another page: {allowed}");
    listed.stop().await;
}
