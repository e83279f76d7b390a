//! `/whip/{stream}`.

use crate::http::client::{OBS, PUBLISH, Request, VIEWER, gateway, obs_session_url, recorded};

/// H-01, H-17, P-03, P-06, H-32.
#[tokio::test]
async fn an_offer_is_answered_with_201_and_everything_a_client_needs() {
    let gateway = gateway(&[]).await;
    let reply = Request::publish("/whip/live", OBS).send(&gateway).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/sdp"));
    assert_eq!(reply.header("accept-patch"), Some("application/trickle-ice-sdpfrag"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let tag = reply.header("etag").expect("ETag");
    assert!(tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    let location = reply.location();
    let id = location.strip_prefix("/session/").expect("a path, whatever Host says");
    assert_eq!(id.len(), 22);
    assert!(
        id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
        "{id}"
    );
    let answer = reply.text();
    assert!(answer.starts_with("v=0\r\n") && answer.ends_with("\r\n"));
    assert!(
        answer.contains("a=candidate:") && answer.contains("a=end-of-candidates\r\n"),
        "P-23"
    );
    assert!(
        !answer.contains("sendonly") && answer.matches("a=recvonly\r\n").count() == 2,
        "I-02"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn every_recorded_publisher_is_accepted() {
    let gateway = gateway(&[]).await;
    for (client, offer) in [
        ("aiortc", recorded!("aiortc-1.16.0-sendonly.sdp")),
        ("chromium", recorded!("chromium-156-sendonly.sdp")),
        ("chromium simulcast", recorded!("chromium-156-sendonly-simulcast.sdp")),
        ("ffmpeg", recorded!("ffmpeg-9.0.2-whip-default.sdp")),
        (
            "firefox",
            recorded!("firefox-esr-153.7.0-openh264-recvonly.sdp")
                .replace("recvonly", "sendonly")
                .as_str(),
        ),
        ("gstreamer", recorded!("gst-1.28.8-rswebrtc-0.15.4-whipclientsink.sdp")),
        ("obs simulcast", recorded!("obs-32.2.2-h264-simulcast3.sdp")),
        (
            "simple-whip-client",
            recorded!("simple-whip-client-20240308-gst1.28.8-post.sdp"),
        ),
    ] {
        let reply = Request::publish("/whip/live", offer).send(&gateway).await;
        assert_eq!(reply.status, 201, "{client}: {}", reply.text());
        assert!(reply.body.len() < 8192, "{client}: FFmpeg reads no more");
    }
    gateway.stop().await;
}

/// D-01, D-09: what OBS does from start to end.
#[tokio::test]
async fn obs_finds_its_session_and_ends_it() {
    let gateway = gateway(&[]).await;
    let reply = Request::publish("/whip/live?token=pasted", OBS).send(&gateway).await;
    let endpoint = format!("http://{}/whip/live?token=pasted", gateway.http_address());
    let url = obs_session_url(&endpoint, &reply.location());
    let path = url
        .strip_prefix(&format!("http://{}", gateway.http_address()))
        .expect("same host");
    let deleted = Request::new("DELETE", path).bearer(PUBLISH).send(&gateway).await;
    assert_eq!(deleted.status, 200);
    gateway.stop().await;
}

/// H-03, H-34.
#[tokio::test]
async fn type_and_address_are_read_with_tolerance() {
    let gateway = gateway(&[]).await;
    for media_type in [
        "application/sdp",
        "Application/SDP",
        "application/sdp; charset=utf-8",
        "APPLICATION/SDP ;x",
    ] {
        let request = Request::new("POST", "/whip/a/b/")
            .header("Content-Type", media_type)
            .bearer(PUBLISH)
            .body(OBS);
        assert_eq!(request.send(&gateway).await.status, 201, "{media_type}");
    }
    for target in [
        "/whip/live/",
        "/whip/live?token=x&a=b",
        "/whip/live/?",
        "/whip/a/b.c/d~e/f_-g",
    ] {
        assert_eq!(
            Request::publish(target, OBS).send(&gateway).await.status,
            201,
            "{target}"
        );
    }
    gateway.stop().await;
}

/// H-02, H-04, H-05, B01, B03, B04, B05, B08, B10, B11, B12, B15.
/// H-36.
/// H-06.
#[tokio::test]
async fn bad_offers_are_refused_with_a_reason() {
    let gateway = gateway(&[]).await;
    let nul = OBS.replacen("s=-", "s=\0", 1);
    let cut = &OBS[..OBS.len() / 2];
    let v1 = OBS.replacen("v=0", "v=1", 1);
    let no_media = &OBS[..OBS.find("m=").expect("m-line")];
    let json = serde_json::json!({"type": "offer", "sdp": OBS}).to_string();
    let cases: [(&str, &[u8], u16, &str); 9] = [
        ("empty", b"", 400, "offer_missing"),
        ("no SDP", b"hello", 400, "bad_syntax"),
        ("JSON", json.as_bytes(), 400, "offer_is_json"),
        ("NUL", nul.as_bytes(), 400, "not_text"),
        ("not UTF-8", b"v=0\r\ns=\xff\xfe\r\n", 400, "not_text"),
        ("cut off", cut.as_bytes(), 400, "offer_cut_off"),
        ("v=1", v1.as_bytes(), 400, "bad_version"),
        ("no media", no_media.as_bytes(), 422, "no_media"),
        ("a viewer", VIEWER.as_bytes(), 422, "bad_direction"),
    ];
    for (case, body, status, code) in cases {
        let reply = Request::publish("/whip/live", body).send(&gateway).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (status, code),
            "{case}: {}",
            reply.text()
        );
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"), "{case}");
    }
    for media_type in [
        None,
        Some("text/plain"),
        Some("application/json"),
        Some("application/sdpx"),
        Some(""),
    ] {
        let mut request = Request::new("POST", "/whip/live").bearer(PUBLISH).body(OBS);
        if let Some(media_type) = media_type {
            request = request.header("Content-Type", media_type);
        }
        let reply = request.send(&gateway).await;
        assert_eq!(reply.status, 415, "{media_type:?}");
        assert_eq!(reply.problem(), "unsupported_media_type");
        assert_eq!(reply.header("accept-post"), Some("application/sdp"));
    }
    // RFC 9110 §15.5.16: what would have been taken is said.
    for coding in ["gzip", "br", "identity, deflate"] {
        let request = Request::publish("/whip/live", OBS).header("Content-Encoding", coding);
        let reply = request.send(&gateway).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (415, "unsupported_content_encoding"),
            "{coding}"
        );
        assert_eq!(reply.header("accept-encoding"), Some("identity"));
    }
    assert_eq!(gateway.media_plane().session_count(), 0, "nothing was opened");
    let request = Request::publish("/whip/live", OBS).header("Content-Encoding", "identity");
    assert_eq!(request.send(&gateway).await.status, 201, "no coding");
    gateway.stop().await;
}

/// H-28, B06.
#[tokio::test]
async fn an_offer_beyond_the_limit_is_413_and_the_client_gets_to_read_it() {
    let gateway = gateway(&[]).await;
    let fits = format!("{OBS}a=x:{}\r\n", "y".repeat(65_536 - OBS.len() - 6));
    assert_eq!(fits.len(), 65_536);
    let reply = Request::publish("/whip/live", &fits).send(&gateway).await;
    assert_ne!(reply.status, 413);
    for length in [65_537, 10 << 20] {
        let reply = Request::publish("/whip/live", vec![b'x'; length]).send(&gateway).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (413, "body_too_large"),
            "{length}"
        );
    }
    gateway.stop().await;
}

/// H-18, H-19, B32, B33.
#[tokio::test]
async fn publishing_needs_the_publish_token() {
    let gateway = gateway(&[("MILLSTREAM_AUTH__PLAY_TOKEN", "ticket")]).await;
    for (authorization, status, challenge) in [
        (None, 401, r#"Bearer realm="millstream""#),
        (
            Some("Bearer wrong"),
            401,
            r#"Bearer realm="millstream", error="invalid_token""#,
        ),
        (
            Some("publish-token"),
            401,
            r#"Bearer realm="millstream", error="invalid_token""#,
        ),
        (
            Some("Basic cHVibGlzaC10b2tlbg=="),
            401,
            r#"Bearer realm="millstream", error="invalid_token""#,
        ),
        (
            Some("Bearer undefined"),
            401,
            r#"Bearer realm="millstream", error="invalid_token""#,
        ),
        (
            Some("Bearer ticket"),
            403,
            r#"Bearer realm="millstream", error="insufficient_scope""#,
        ),
    ] {
        let mut request = Request::offer("/whip/live", OBS);
        if let Some(value) = authorization {
            request = request.header("Authorization", value);
        }
        let reply = request.send(&gateway).await;
        assert_eq!(reply.status, status, "{authorization:?}");
        assert_eq!(reply.header("www-authenticate"), Some(challenge), "{authorization:?}");
        reply.problem();
    }
    let mixed = Request::offer("/whip/live", OBS).header("authorization", "bEARER publish-token");
    assert_eq!(mixed.send(&gateway).await.status, 201);
    gateway.stop().await;
}

/// H-20.
#[tokio::test]
async fn a_token_in_the_query_counts_only_where_it_was_switched_on() {
    const ON: (&str, &str) = ("MILLSTREAM_AUTH__TOKEN_IN_QUERY", "true");
    let off = gateway(&[]).await;
    let on = gateway(&[ON, ("MILLSTREAM_AUTH__API_TOKEN", "operator")]).await;
    let named = |token| Request::offer(&format!("/whip/live?token={token}"), OBS);
    let reply = named(PUBLISH).send(&off).await;
    assert_eq!((reply.status, reply.problem().as_str()), (401, "token_missing"));
    let reply = named(PUBLISH).send(&on).await;
    assert!(!reply.location().contains('?'), "the token goes no further");
    for (target, status) in [
        ("/whip/live/?a=b&token=publish%2Dtoken&c", 201),
        ("/whip/live?token=wrong", 401),
        ("/whip/live?token=", 401),
        ("/whip/live?token", 401),
        ("/whip/live?tokens=publish-token", 401),
        ("/whip/live?token=publish-token%", 401),
        ("/whip/live?token=%ff%0", 401),
        ("/whip/live?token=operator", 403),
    ] {
        assert_eq!(Request::offer(target, OBS).send(&on).await.status, status, "{target}");
    }
    // What the header says goes first.
    assert_eq!(named(PUBLISH).bearer("wrong").send(&on).await.status, 401);
    assert_eq!(named("wrong").bearer(PUBLISH).send(&on).await.status, 201);
    // Where there is no client that cannot send a header.
    assert_eq!(
        Request::new("GET", "/metrics?token=operator").send(&on).await.status,
        401
    );
    off.stop().await;
    on.stop().await;
}

/// H-07, H-08, H-10, D-08.
#[tokio::test]
async fn other_methods_on_the_endpoint() {
    let gateway = gateway(&[]).await;
    for method in ["GET", "HEAD"] {
        let reply = Request::new(method, "/whip/live").send(&gateway).await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "{method}");
    }
    for method in ["PUT", "DELETE", "PATCH", "TRACE", "BREW"] {
        let reply = Request::new(method, "/whip/live").send(&gateway).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (405, "method_not_allowed"),
            "{method}"
        );
        assert_eq!(reply.header("allow"), Some("OPTIONS, HEAD, GET, POST"), "{method}");
    }
    let reply = Request::new("OPTIONS", "/whip/live").send(&gateway).await;
    assert_eq!(
        (reply.status, reply.header("accept-post")),
        (200, Some("application/sdp"))
    );
    gateway.stop().await;
}

/// B34, T20.
#[tokio::test]
async fn names_that_break_the_grammar_are_not_found() {
    let gateway = gateway(&[]).await;
    let long = "x".repeat(1024);
    for name in [
        "",
        "..%2f..%2fetc",
        "../etc",
        "a%00",
        "a/b/c/d/e",
        "a//b",
        "%F0%9F%98%80",
        "%ff",
        "a%2Fb",
        "<script>",
        &long,
    ] {
        for prefix in ["/whip/", "/whep/", "/watch/", "/publish/"] {
            let method = if prefix.starts_with("/wh") { "POST" } else { "GET" };
            let reply = Request::new(method, &format!("{prefix}{name}"))
                .header("Content-Type", "application/sdp")
                .bearer(PUBLISH)
                .send(&gateway)
                .await;
            // hyper rejects invalid URLs itself.
            assert!(matches!(reply.status, 404 | 400), "{prefix}{name}: {}", reply.status);
            assert!(!reply.text().contains("<script>"));
        }
    }
    gateway.stop().await;
}

/// H-25.
#[tokio::test]
async fn a_full_and_a_stopping_gateway_say_503_and_when_to_come_back() {
    let full = gateway(&[("MILLSTREAM_WEBRTC__MAX_SESSIONS", "0")]).await;
    let reply = Request::publish("/whip/live", OBS).send(&full).await;
    assert_eq!((reply.status, reply.problem().as_str()), (503, "full"));
    assert!(reply.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok()));
    full.stop().await;

    let draining = gateway(&[]).await;
    let running = Request::publish("/whip/live", OBS).send(&draining).await.location();
    draining.start_draining();
    for endpoint in ["/whip/live", "/whep/live"] {
        let reply = Request::publish(endpoint, OBS).send(&draining).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (503, "stopping"),
            "{endpoint}"
        );
        assert!(reply.header("retry-after").is_some());
    }
    assert_eq!(Request::new("GET", "/readyz").send(&draining).await.status, 503);
    assert_eq!(Request::new("GET", "/healthz").send(&draining).await.status, 200);
    assert_eq!(
        Request::new("GET", &running).send(&draining).await.status,
        204,
        "running sessions go on"
    );
    draining.stop().await;
}

/// H-26.
/// P-24.
#[tokio::test]
async fn several_hundred_posts_at_once_pass_and_a_flood_is_429() {
    let open = gateway(&[]).await;
    let mut posts = tokio::task::JoinSet::new();
    let open = std::sync::Arc::new(open);
    for _ in 0..400 {
        let open = open.clone();
        posts.spawn(async move { Request::publish("/whip/live", OBS).send(&open).await.status });
    }
    assert!(posts.join_all().await.iter().all(|status| *status == 201));
    assert_eq!(open.media_plane().session_count(), 400);
    println!("measured: 400 of 400 offers at once got 201; beyond the limit 429");

    let strict = gateway(&[
        ("MILLSTREAM_LIMITS__REQUEST_BURST", "3"),
        ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "1"),
    ])
    .await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let reply = Request::publish("/whip/live", OBS).send(&strict).await;
        statuses.push(reply.status);
        if reply.status == 429 {
            assert_eq!(
                (reply.problem().as_str(), reply.header("retry-after")),
                ("too_many_requests", Some("1"))
            );
        }
    }
    assert_eq!(statuses, [201, 201, 201, 429]);
    assert_eq!(
        Request::new("GET", "/whip/live").send(&strict).await.status,
        204,
        "reading costs nothing"
    );
    strict.stop().await;
}

#[tokio::test]
async fn a_token_is_made_when_none_is_configured() {
    let mut config = millstream::Config::default();
    config.http.listen = "127.0.0.1:0".parse().expect("address");
    config.webrtc.listen = config.http.listen;
    config.webrtc.shards = 1;
    config.pipelines.transcode = false;
    let gateway = millstream::Gateway::start(config).await.expect("starts");
    let token = gateway.generated_publish_token().expect("made").reveal().to_owned();
    assert_eq!(token.len(), 22);
    let offer = Request::offer("/whip/live", OBS);
    assert_eq!(offer.send(&gateway).await.status, 401);
    assert_eq!(offer.clone().bearer(&token).send(&gateway).await.status, 201);
    gateway.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_the_key() {
    let gateway = gateway(&[]).await;
    let mut config = millstream::Config::default();
    config.http.listen = gateway.http_address();
    config.webrtc.listen = "127.0.0.1:0".parse().expect("address");
    let error = millstream::Gateway::start(config)
        .await
        .err()
        .expect("in use")
        .to_string();
    assert!(
        error.starts_with("`http.listen` cannot be bound: TCP 127.0.0.1:"),
        "{error}"
    );
    let advice = "is using this port; stop that process, or choose another port";
    assert!(error.contains(advice), "{error}");
    gateway.stop().await;
}
