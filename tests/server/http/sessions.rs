//! `/session/{id}`.

use std::time::Duration;

use millstream::Gateway;

use crate::http::client::{OBS, Reply, Request, gateway, recorded};

const TRICKLING: &str = recorded!("simple-whip-client-20240308-gst1.28.8-post.sdp");
const CANDIDATES: &str = recorded!("simple-whip-client-20240308-gst1.28.8-patch1.sdpfrag");
const END: &str = recorded!("simple-whip-client-20240308-gst1.28.8-patch2-endofcandidates.sdpfrag");
const UNKNOWN: &str = "/session/AAAAAAAAAAAAAAAAAAAAAA";

async fn publish(gateway: &Gateway, offer: &str) -> (String, String) {
    let reply = Request::publish("/whip/live", offer).send(gateway).await;
    (reply.location(), reply.header("etag").expect("ETag").to_owned())
}

fn credentials(offer: &str) -> (&str, &str) {
    let find = |name| {
        offer
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("in the offer")
            .trim()
    };
    (find("a=ice-ufrag:"), find("a=ice-pwd:"))
}

fn assert_trickled(reply: &Reply, case: &str) {
    assert_eq!((reply.status, reply.body.len()), (204, 0), "{case}: {}", reply.text());
    assert_eq!(reply.header("etag"), None, "{case}: P-10");
}

/// P-02, P-08, P-09, P-10, P-11, P-12, P-13.
#[tokio::test]
async fn fragments_of_real_clients_are_taken() {
    let gateway = gateway(&[]).await;
    let (session, tag) = publish(&gateway, TRICKLING).await;
    let (ufrag, pwd) = credentials(TRICKLING);
    let both = format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\n");
    let whip_js =
        format!("{both}m=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n");
    let eyevinn = format!(
        "{both}m=audio 9 RTP/AVP 0\r\na=mid:0\r\na=candidate:1 0 udp 1 x.local 9 typ host\r\n\
         m=audio 9 RTP/AVP 0\r\na=mid:one\r\na=candidate:garbage\r\n"
    );
    for (client, fragment) in [
        ("simple-whip-client", CANDIDATES),
        ("simple-whip-client, the end", END),
        ("whip.js", &whip_js),
        ("eyevinn", &eyevinn),
        (
            "without credentials",
            "m=audio 9 RTP/AVP 0\na=candidate:1 1 tcp 1 2001:db8::1 9 typ host\n",
        ),
        (
            "group and options",
            "a=group:BUNDLE 0\r\na=ice-options:trickle\r\na=end-of-candidates\r\n",
        ),
    ] {
        let request = Request::trickle(&session, fragment);
        assert_trickled(&request.send(&gateway).await, client);
        for if_match in [
            tag.as_str(),
            "*",
            "\"*\"",
            tag.trim_matches('"'),
            &format!("\"old\", {tag}"),
        ] {
            let reply = request.clone().header("If-Match", if_match).send(&gateway).await;
            assert_trickled(&reply, &format!("{client}, If-Match: {if_match}"));
        }
    }
    let parameters = Request::new("PATCH", &session)
        .header("Content-Type", "Application/Trickle-ICE-sdpfrag; charset=utf-8")
        .body(END);
    assert_trickled(&parameters.send(&gateway).await, "type with parameters");
    gateway.stop().await;
}

/// P-26.
/// P-02, P-07, P-20, P-21, B37.
#[tokio::test]
async fn patches_that_cannot_be_served_leave_the_session_alone() {
    let gateway = gateway(&[]).await;
    let (session, _) = publish(&gateway, TRICKLING).await;
    let json = r#"{"candidate":"candidate:1 1 udp 1 192.0.2.1 9 typ host","sdpMid":"0"}"#;
    let large = "a=x:y\r\n".repeat(16 * 1024 / 7 + 1);
    let other_type = |media_type| {
        Request::new("PATCH", &session)
            .header("Content-Type", media_type)
            .body(OBS)
    };
    for (case, request, status, code) in [
        ("renegotiation", other_type("application/sdp"), 409, "no_renegotiation"),
        ("JSON", other_type("application/json"), 415, "unsupported_media_type"),
        (
            "no type",
            Request::new("PATCH", &session).body(END),
            415,
            "unsupported_media_type",
        ),
        ("junk", Request::trickle(&session, "junk"), 400, "bad_fragment"),
        ("empty", Request::trickle(&session, ""), 400, "bad_fragment"),
        ("react-native", Request::trickle(&session, json), 400, "bad_fragment"),
        (
            "a candidate of no section",
            Request::trickle(
                &session,
                "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\nm=audio 9 RTP/AVP 0\r\n",
            ),
            400,
            "bad_fragment",
        ),
        (
            "compressed",
            Request::trickle(&session, END).header("Content-Encoding", "gzip"),
            415,
            "unsupported_content_encoding",
        ),
        ("too large", Request::trickle(&session, large), 413, "body_too_large"),
        (
            "unknown session",
            Request::trickle(UNKNOWN, END),
            404,
            "unknown_session",
        ),
    ] {
        let reply = request.send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code), "{case}");
        if code == "unsupported_content_encoding" {
            assert_eq!(reply.header("accept-encoding"), Some("identity"));
        } else if status == 415 {
            assert_eq!(
                reply.header("accept-patch"),
                Some("application/trickle-ice-sdpfrag"),
                "{case}"
            );
        }
    }
    assert_trickled(&Request::trickle(&session, END).send(&gateway).await, "afterwards");
    gateway.stop().await;
}

/// P-07, P-15, P-18.
#[tokio::test]
async fn restarts_that_do_not_fit_the_session_leave_it_alone() {
    let gateway = gateway(&[]).await;
    let (session, tag) = publish(&gateway, TRICKLING).await;
    let restart = "a=ice-ufrag:another\r\na=ice-pwd:0123456789012345678901\r\na=end-of-candidates\r\n";
    for (case, request, status, code) in [
        (
            "stale tag",
            Request::trickle(&session, END).header("If-Match", "\"old\""),
            412,
            "stale_ice_session",
        ),
        (
            "weak tag",
            Request::trickle(&session, END).header("If-Match", &format!("W/{tag}")),
            412,
            "stale_ice_session",
        ),
        (
            "restart without If-Match",
            Request::trickle(&session, restart),
            428,
            "if_match_missing",
        ),
        (
            "restart without a password",
            Request::trickle(&session, "a=ice-ufrag:another\r\n").header("If-Match", "*"),
            400,
            "bad_fragment",
        ),
        (
            "restart with a short password",
            Request::trickle(&session, "a=ice-ufrag:another\r\na=ice-pwd:short\r\n").header("If-Match", "*"),
            400,
            "bad_fragment",
        ),
        (
            "restart with two",
            Request::trickle(&session, format!("{restart}a=ice-ufrag:third\r\n")).header("If-Match", "*"),
            400,
            "bad_fragment",
        ),
        (
            "old restart",
            Request::trickle(&session, restart).header("If-Match", "\"old\""),
            412,
            "stale_ice_session",
        ),
    ] {
        let reply = request.send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code), "{case}");
    }
    assert_trickled(&Request::trickle(&session, END).send(&gateway).await, "afterwards");
    gateway.stop().await;
}

/// P-06, P-14, P-15, P-17, P-19, P-23.
/// P-01.
#[tokio::test]
async fn a_restart_gives_new_credentials_and_a_new_tag() {
    let gateway = gateway(&[]).await;
    let reply = Request::publish("/whip/live", TRICKLING).send(&gateway).await;
    let (session, tag) = (reply.location(), reply.header("etag").expect("ETag").to_owned());
    assert!(tag.starts_with('"') && tag.ends_with('"'), "strong and quoted: {tag}");
    let answer = reply.text().to_owned();
    let restart = "a=ice-ufrag:another\r\na=ice-pwd:0123456789012345678901\r\na=end-of-candidates\r\n";
    let reply = Request::trickle(&session, restart)
        .header("If-Match", "*")
        .send(&gateway)
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/trickle-ice-sdpfrag"));
    let new = reply.header("etag").expect("ETag").to_owned();
    assert_ne!(new, tag);
    let fragment = reply.text();
    assert_eq!(fragment.matches('\n').count(), fragment.matches("\r\n").count(), "CRLF");
    assert_ne!(credentials(fragment), credentials(&answer));
    let lines = |text: &str, prefix: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.map(str::to_owned).collect()
    };
    for repeated in [
        "a=ice-lite",
        "a=ice-options:",
        "a=group:",
        "a=candidate:",
        "a=end-of-candidates",
    ] {
        assert_eq!(lines(fragment, repeated), lines(&answer, repeated), "{repeated}");
        assert!(!lines(fragment, repeated).is_empty(), "{repeated}");
    }
    let order: Vec<usize> = ["m=", "a=mid:", "a=ice-ufrag:", "a=ice-pwd:", "a=candidate:"]
        .iter()
        .map(|line| fragment.find(line).expect(line))
        .collect();
    assert!(order.is_sorted(), "under the m-line: {fragment}");
    // The old tag and the old credentials are over, the new ones trickle.
    let stale = Request::trickle(&session, restart).header("If-Match", &tag);
    assert_eq!(stale.send(&gateway).await.status, 412);
    let fresh = Request::trickle(&session, restart).header("If-Match", &new);
    assert_trickled(&fresh.send(&gateway).await, "of the new session");
    println!("measured: new credentials and a new ETag; the old ETag gets 412");
    gateway.stop().await;
}

/// P-07, P-08.
#[tokio::test]
async fn a_strict_gateway_wants_if_match() {
    let gateway = gateway(&[("MILLSTREAM_HTTP__STRICT_PRECONDITIONS", "true")]).await;
    let (session, tag) = publish(&gateway, TRICKLING).await;
    let reply = Request::trickle(&session, END).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (428, "if_match_missing"));
    for tag in [tag.as_str(), "*"] {
        let request = Request::trickle(&session, END).header("If-Match", tag);
        assert_trickled(&request.send(&gateway).await, tag);
    }
    gateway.stop().await;
}

/// P-22, B38.
#[tokio::test]
async fn restarts_at_the_same_time_go_one_after_the_other() {
    let gateway = gateway(&[]).await;
    let (session, tag) = publish(&gateway, TRICKLING).await;
    let restart = |n: usize, tag: &str| {
        let fragment = format!("a=ice-ufrag:peer{n}\r\na=ice-pwd:0123456789012345678901\r\n");
        Request::trickle(&session, fragment).header("If-Match", tag)
    };
    let requests: Vec<Request> = (0..200).map(|n| restart(n, &tag)).collect();
    let replies = futures_util::future::join_all(requests.iter().map(|request| request.send(&gateway))).await;
    let with = |status| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!(
        (with(200), with(412)),
        (1, 199),
        "one of them names the session that it replaces"
    );
    let any: Vec<Request> = (0..200).map(|n| restart(n, "*")).collect();
    let replies = futures_util::future::join_all(any.iter().map(|request| request.send(&gateway))).await;
    let tags: std::collections::HashSet<&str> = replies.iter().filter_map(|reply| reply.header("etag")).collect();
    // One of them repeats the credentials that are in force.
    assert!(tags.len() >= 199, "{}", tags.len());
    assert_eq!(gateway.media_plane().session_count(), 1);
    gateway.stop().await;
}

/// P-27.
/// D-01, D-02, D-06, D-07, D-09.
#[tokio::test]
async fn delete_ends_the_session_and_may_be_repeated_for_a_while() {
    let gateway = gateway(&[]).await;
    let (session, _) = publish(&gateway, OBS).await;
    assert_eq!(gateway.media_plane().session_count(), 1);
    let delete = Request::new("DELETE", &session).header("If-Match", "\"wrong\"");
    let reply = delete.send(&gateway).await;
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    // RFC 9725 §4.2: from now on, whether or not its shard has closed it.
    for (method, body) in [("GET", ""), ("PATCH", END)] {
        let request = Request::new(method, &session).header("Content-Type", "application/trickle-ice-sdpfrag");
        assert_eq!(request.body(body).send(&gateway).await.status, 404, "{method} at once");
    }
    for _ in 0..1_000 {
        if gateway.media_plane().session_count() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(gateway.media_plane().session_count(), 0);
    assert_eq!(delete.send(&gateway).await.status, 200, "within the grace");
    assert_eq!(Request::new("GET", &session).send(&gateway).await.status, 404);
    assert_eq!(Request::trickle(&session, END).send(&gateway).await.status, 404);
    gateway.stop().await;
}

/// P-21, B39.
#[tokio::test]
async fn what_is_no_session_is_not_found_with_every_method() {
    let gateway = gateway(&[]).await;
    for path in [
        UNKNOWN,
        "/session/short",
        "/session/AAAAAAAAAAAAAAAAAAAAA%00",
        "/session/AAAAAAAAAAAAAAAAAAAAAAA",
    ] {
        for method in ["GET", "DELETE", "PATCH"] {
            let reply = Request::new(method, path).send(&gateway).await;
            assert_eq!(
                (reply.status, reply.problem().as_str()),
                (404, "unknown_session"),
                "{method} {path}"
            );
        }
    }
    gateway.stop().await;
}

/// H-07, H-08, P-03.
#[tokio::test]
async fn other_methods_on_a_session() {
    let gateway = gateway(&[]).await;
    let (session, _) = publish(&gateway, OBS).await;
    for method in ["GET", "HEAD"] {
        let reply = Request::new(method, &session).send(&gateway).await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "{method}");
    }
    for method in ["POST", "PUT"] {
        let reply = Request::new(method, &session).send(&gateway).await;
        assert_eq!(reply.status, 405, "{method}");
        assert_eq!(
            reply.header("allow"),
            Some("OPTIONS, HEAD, GET, PATCH, DELETE"),
            "{method}"
        );
    }
    let reply = Request::new("OPTIONS", &session).send(&gateway).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("accept-patch"), Some("application/trickle-ice-sdpfrag"));
    gateway.stop().await;
}

/// H-27.
#[tokio::test]
async fn session_urls_and_tags_never_repeat() {
    let gateway = gateway(&[]).await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let (session, tag) = publish(&gateway, OBS).await;
        assert!(seen.insert(session) && seen.insert(tag));
    }
    gateway.stop().await;
}

/// H-29, and that the cause is said.
#[tokio::test]
async fn a_session_that_nobody_comes_to_ends_and_says_why() {
    let gateway = gateway(&[("MILLSTREAM_WEBRTC__CONNECT_TIMEOUT", "1")]).await;
    let (session, _) = publish(&gateway, OBS).await;
    let ended = async {
        while gateway.media_plane().session_count() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended)
        .await
        .expect("after a second");
    let reply = Request::new("GET", &session).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (404, "no_checks"));
    assert!(reply.text().contains("webrtc.announce"), "{}", reply.text());
    gateway.stop().await;
}

/// A player that gives up and deletes its session gets the cause and the addresses, as does the operator.
#[tokio::test]
async fn a_session_that_is_deleted_before_it_is_connected_says_why() {
    let gateway = gateway(&[]).await;
    let (session, _) = publish(&gateway, OBS).await;
    assert_eq!(Request::new("DELETE", &session).send(&gateway).await.status, 200);
    let ended = async {
        while gateway.media_plane().session_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended)
        .await
        .expect("at once");
    let reply = Request::new("GET", &session).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (404, "no_checks"));
    let address = gateway.media_plane().candidate_addresses()[0].to_string();
    assert!(reply.text().contains(&address), "{}", reply.text());
    gateway.stop().await;
}

/// C-07: what a STUN server sees is announced first.
#[tokio::test]
async fn the_outer_address_is_found_by_stun() {
    let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let name = server.local_addr().expect("bound").to_string();
    let gateway = gateway(&[("MILLSTREAM_WEBRTC__ANNOUNCE_BY_STUN", &name)]).await;
    let mut request = [0; 100];
    let (length, from) = server.recv_from(&mut request).await.expect("a question");
    assert_eq!((length, &request[..2]), (20, &[0, 1][..]), "a binding request");
    // XOR-MAPPED-ADDRESS 203.0.113.7:9 (RFC 8489 section 14.2).
    let mut answer = vec![1, 1, 0, 12];
    answer.extend_from_slice(&request[4..20]);
    answer.extend([0, 0x20, 0, 8, 0, 1, 0x21, 0x1b, 203 ^ 0x21, 0x12, 113 ^ 0xa4, 7 ^ 0x42]);
    server.send_to(&answer, from).await.expect("sent");
    let first = async {
        loop {
            let reply = Request::publish("/whip/live", OBS).send(&gateway).await;
            let candidate = reply.text().lines().find(|line| line.starts_with("a=candidate:"));
            if candidate.is_some_and(|line| line.contains(" udp ") && line.contains(" 203.0.113.7 ")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), first)
        .await
        .expect("it is announced");
    gateway.stop().await;
}
