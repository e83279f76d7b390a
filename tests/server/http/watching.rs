//! `/whep/{stream}`.

use crate::http::client::{OBS, Request, VIEWER, gateway, make_live, recorded};

/// E-01, E-03, B02, B16, B36.
/// E-07.
#[tokio::test]
async fn a_viewer_is_answered_while_the_stream_is_live() {
    let gateway = gateway(&[]).await;
    let early = Request::offer("/whep/live", VIEWER).send(&gateway).await;
    assert_eq!((early.status, early.problem().as_str()), (409, "not_live"));
    assert_eq!(early.header("retry-after"), Some("1"));

    make_live(&gateway, "live");
    let reply = Request::offer("/whep/live", VIEWER).send(&gateway).await;
    assert!(reply.location().starts_with("/session/"));
    assert_eq!(reply.header("content-type"), Some("application/sdp"));
    assert_eq!(reply.header("accept-patch"), Some("application/trickle-ice-sdpfrag"));
    assert!(reply.header("etag").is_some());
    assert_eq!(reply.text().matches("a=sendonly\r\n").count(), 2);
    let firefox = recorded!("firefox-esr-153.7.0-noh264-recvonly.sdp");
    assert_eq!(Request::offer("/whep/live", firefox).send(&gateway).await.status, 201);

    for (offer, status, code) in [("", 400, "offer_missing"), (OBS, 422, "bad_direction")] {
        let reply = Request::offer("/whep/live", offer).send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code));
    }
    gateway.stop().await;
}

/// E-02, H-08.
#[tokio::test]
async fn the_endpoint_says_that_it_speaks_whep() {
    let gateway = gateway(&[]).await;
    for method in ["GET", "HEAD"] {
        let reply = Request::new(method, "/whep/live").send(&gateway).await;
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{method}");
        assert_eq!(reply.header("content-type"), Some("application/sdp"), "{method}");
        assert_eq!(reply.header("content-length"), Some("0"), "{method}");
    }
    let reply = Request::new("DELETE", "/whep/live").send(&gateway).await;
    assert_eq!(
        (reply.status, reply.header("allow")),
        (405, Some("OPTIONS, HEAD, GET, POST"))
    );
    gateway.stop().await;
}

/// H-21.
#[tokio::test]
async fn watching_is_open_unless_there_is_a_play_token() {
    let open = gateway(&[]).await;
    make_live(&open, "live");
    for authorization in [
        "Bearer undefined",
        "key-without-scheme",
        "Basic eDp5",
        "Bearer",
        "\u{7f}",
    ] {
        let reply = Request::offer("/whep/live", VIEWER)
            .header("Authorization", authorization)
            .send(&open)
            .await;
        // A control character is no header at all, and refused by hyper.
        let expected = if authorization == "\u{7f}" { 400 } else { 201 };
        assert_eq!(reply.status, expected, "{authorization:?}");
    }
    open.stop().await;

    let closed = gateway(&[("MILLSTREAM_AUTH__PLAY_TOKEN", "ticket")]).await;
    make_live(&closed, "live");
    let offer = Request::offer("/whep/live", VIEWER);
    assert_eq!(offer.send(&closed).await.status, 401);
    assert_eq!(offer.clone().bearer("wrong").send(&closed).await.status, 401);
    assert_eq!(offer.clone().bearer("ticket").send(&closed).await.status, 201);
    closed.stop().await;
}

/// E-08.
#[tokio::test]
async fn a_viewer_may_wait_for_the_publisher() {
    let gateway = gateway(&[("MILLSTREAM_HTTP__WAIT_FOR_PUBLISHER", "20")]).await;
    let request = Request::offer("/whep/live", VIEWER);
    let (reply, ()) = tokio::join!(request.send(&gateway), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        make_live(&gateway, "live");
    });
    assert!(reply.location().starts_with("/session/"));
    gateway.stop().await;
}

/// H-11, H-12, I-08, I-09, E-13.
#[tokio::test]
async fn ice_servers_need_authorization_and_turn_credentials_a_session() {
    let gateway = gateway(&[
        (
            "MILLSTREAM_ICE__SERVERS",
            "stun:stun.example.org:3478,turn:turn.example.org:3478?transport=udp",
        ),
        ("MILLSTREAM_ICE__TURN_SECRET", "shared-with-coturn"),
        ("MILLSTREAM_AUTH__PLAY_TOKEN", "play-token"),
    ])
    .await;
    make_live(&gateway, "live");
    let created = Request::offer("/whep/live", VIEWER)
        .bearer("play-token")
        .send(&gateway)
        .await;
    let published = Request::publish("/whip/other", OBS).send(&gateway).await;
    assert_eq!((created.status, published.status), (201, 201));
    let mut names = Vec::new();
    for reply in [created, published] {
        let mut links = reply.all("link");
        links.retain(|link| link.contains("ice-server"));
        assert_eq!(links.len(), 2, "a line each: {links:?}");
        assert_eq!(links[0], "<stun:stun.example.org:3478>; rel=\"ice-server\"");
        let parts: Vec<&str> = links[1].split("; ").collect();
        let keys: Vec<&str> = parts.iter().skip(1).filter_map(|part| part.split('=').next()).collect();
        assert_eq!(keys, ["rel", "username", "credential", "credential-type"]);
        assert!(!links[1].contains("shared-with-coturn"));
        let username = parts[2].trim_start_matches("username=").trim_matches('"');
        let (until, name) = username.split_once(':').expect("a time and a name");
        let left = until.parse::<u64>().expect("seconds") - seconds_since_1970();
        assert!((3_500..=3_600).contains(&left), "{left} s");
        names.push(name.to_owned());
    }
    assert!(
        names[0] != names[1] && names.iter().all(|name| name.len() == 12),
        "{names:?}"
    );
    // An authorized viewer without a session gets the servers that need no credentials.
    let asked = Request::new("OPTIONS", "/whep/live").bearer("play-token");
    let asked = asked.send(&gateway).await;
    let refused = Request::offer("/whep/nothing", VIEWER).bearer("play-token");
    let refused = refused.send(&gateway).await;
    let bad = Request::offer("/whep/live", "v=0\r\n").bearer("play-token");
    let bad = bad.send(&gateway).await;
    assert_eq!((asked.status, refused.status, bad.status), (200, 409, 400));
    assert_eq!(asked.all("link"), ["<stun:stun.example.org:3478>; rel=\"ice-server\""]);
    assert!(refused.all("link").is_empty() && bad.all("link").is_empty());
    for anybody in [
        Request::new("OPTIONS", "/whep/live"),
        Request::new("OPTIONS", "/whep/live").bearer("wrong"),
        Request::new("OPTIONS", "/whep/live")
            .bearer("play-token")
            .header("Origin", "https://example.org")
            .header("Access-Control-Request-Method", "POST"),
    ] {
        let reply = anybody.send(&gateway).await;
        assert_eq!((reply.status, reply.all("link").len()), (200, 0));
    }
    gateway.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "credentials expire at a wall-clock time")]
fn seconds_since_1970() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// E-11.
#[tokio::test]
async fn a_viewers_session_trickles_and_restarts_as_a_publishers() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    let reply = Request::offer("/whep/live", VIEWER).send(&gateway).await;
    let (session, tag) = (reply.location(), reply.header("etag").expect("ETag").to_owned());
    let end = "a=end-of-candidates\r\n";
    let trickled = Request::trickle(&session, end).header("If-Match", &tag);
    assert_eq!(trickled.send(&gateway).await.status, 204);
    let fragment = "a=ice-ufrag:another\r\na=ice-pwd:0123456789012345678901\r\n";
    let restart = Request::trickle(&session, fragment).header("If-Match", "*");
    let restarted = restart.send(&gateway).await;
    assert_eq!(restarted.status, 200, "{}", restarted.text());
    assert_ne!(restarted.header("etag"), Some(tag.as_str()));
    assert_eq!(trickled.send(&gateway).await.status, 412);
    gateway.stop().await;
}
