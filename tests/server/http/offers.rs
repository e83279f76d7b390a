//! Offers of the gateway: the counter-offer of WHEP, and the response to an empty POST (first WHEP draft).

use std::time::Duration;

use millstream::Gateway;

use crate::http::client::{Reply, Request, VIEWER, advance, gateway, make_live, recorded};

const LEGACY: (&str, &str) = ("MILLSTREAM_HTTP__LEGACY_SERVER_OFFER", "true");
const COUNTER: &str = "MILLSTREAM_HTTP__COUNTER_OFFER";

/// What a player makes of an offer: it receives everything, as the first payload type says.
fn answer(offer: &str) -> String {
    let fingerprint = VIEWER
        .lines()
        .find(|line| line.starts_with("a=fingerprint:"))
        .expect("a fingerprint")
        .trim();
    let mut lines = Vec::new();
    for line in offer.lines() {
        let kept = match line {
            "a=sendonly" => "a=recvonly".to_owned(),
            "a=setup:actpass" => "a=setup:active".to_owned(),
            _ if line.starts_with("a=ice-ufrag:") => "a=ice-ufrag:peer".to_owned(),
            _ if line.starts_with("a=ice-pwd:") => "a=ice-pwd:0123456789012345678901".to_owned(),
            _ if line.starts_with("a=fingerprint:") => fingerprint.to_owned(),
            _ if line.starts_with("a=candidate:") || line == "a=ice-lite" => continue,
            _ => line.to_owned(),
        };
        lines.push(kept);
    }
    lines.join("\r\n") + "\r\n"
}

fn patch(session: &str, body: &str) -> Request {
    Request::new("PATCH", session)
        .header("Content-Type", "application/sdp")
        .body(body)
}

fn check_offer(reply: &Reply, status: u16) -> (String, String) {
    assert_eq!(reply.status, status, "{}", reply.text());
    let media_type = reply.header("content-type").expect("a type");
    assert!(
        media_type.starts_with("application/sdp; valid-until=\""),
        "{media_type}"
    );
    assert!(media_type.ends_with(" GMT\""), "{media_type}");
    assert!(reply.header("expires").is_some_and(|until| media_type.contains(until)));
    assert!(reply.header("etag").is_some_and(|tag| tag.starts_with('"')));
    assert!(
        reply
            .header("accept-patch")
            .is_some_and(|types| types.starts_with("application/sdp, "))
    );
    let offer = reply.text().to_owned();
    assert!(offer.contains("a=setup:actpass\r\n") && offer.contains("a=end-of-candidates\r\n"));
    assert_eq!(offer.matches("a=sendonly\r\n").count(), 2, "{offer}");
    (reply.header("location").expect("Location").to_owned(), offer)
}

async fn sessions(gateway: &Gateway) -> usize {
    gateway.media_plane().session_count()
}

/// E-05, E-15, B-02.
#[tokio::test]
async fn an_empty_post_gets_an_offer_where_it_is_switched_on() {
    let off = gateway(&[]).await;
    make_live(&off, "live");
    let reply = Request::offer("/whep/live", "").send(&off).await;
    assert_eq!((reply.status, reply.problem().as_str()), (400, "offer_missing"));
    off.stop().await;

    let gateway = gateway(&[LEGACY]).await;
    let early = Request::offer("/whep/live", "").send(&gateway).await;
    assert_eq!((early.status, early.problem().as_str()), (409, "not_live"));
    make_live(&gateway, "live");
    let reply = Request::new("POST", "/whep/live")
        .header("Accept", "application/sdp")
        .send(&gateway)
        .await;
    let (session, offer) = check_offer(&reply, 201);
    assert_eq!(sessions(&gateway).await, 0, "nothing is held but the offer");
    assert_eq!(Request::new("GET", &session).send(&gateway).await.status, 204);
    let trickled = Request::trickle(
        &session,
        "m=audio 9 RTP/AVP 0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n",
    );
    assert_eq!(trickled.send(&gateway).await.status, 204, "before the answer");
    let answered = patch(&session, &answer(&offer)).send(&gateway).await;
    assert_eq!((answered.status, answered.body.len()), (204, 0), "{}", answered.text());
    assert_eq!(sessions(&gateway).await, 1);
    // A player that offers is answered as ever.
    Request::offer("/whep/live", VIEWER).send(&gateway).await.location();
    gateway.stop().await;
}

/// E-01, B-43.
#[tokio::test]
async fn a_counter_offer_comes_when_it_is_needed() {
    let always = gateway(&[(COUNTER, "always")]).await;
    make_live(&always, "live");
    let reply = Request::offer("/whep/live", VIEWER).send(&always).await;
    let (session, offer) = check_offer(&reply, 406);
    let good = answer(&offer);
    for (case, body, status, code) in [
        ("junk", "junk".to_owned(), 400, "bad_syntax"),
        (
            "a mid changed",
            good.replace("a=mid:1", "a=mid:7").replace("BUNDLE 0 1", "BUNDLE 0 7"),
            400,
            "bad_answer",
        ),
        (
            "a section missing",
            good.split("m=video")
                .next()
                .expect("the rest")
                .replace("BUNDLE 0 1", "BUNDLE 0"),
            400,
            "bad_answer",
        ),
        (
            "it would send",
            good.replace("a=recvonly", "a=sendonly"),
            422,
            "bad_direction",
        ),
    ] {
        let reply = patch(&session, &body).send(&always).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code), "{case}");
    }
    // A wrong answer does not invalidate the offer, and only one answer is accepted.
    assert_eq!(patch(&session, &good).send(&always).await.status, 204);
    let again = patch(&session, &good).send(&always).await;
    assert_eq!((again.status, again.problem().as_str()), (409, "no_renegotiation"));
    always.stop().await;

    let needed = gateway(&[(COUNTER, "when_needed")]).await;
    make_live(&needed, "live");
    Request::offer("/whep/live", VIEWER).send(&needed).await.location();
    // Of its codecs the stream carries none.
    let other = VIEWER
        .replace("VP8/90000", "VP7/90000")
        .replace("opus/48000/2", "speex/48000/2");
    let reply = Request::offer("/whep/live", other).send(&needed).await;
    let (session, _) = check_offer(&reply, 406);
    assert_eq!(Request::new("DELETE", &session).send(&needed).await.status, 200);
    assert_eq!(Request::new("GET", &session).send(&needed).await.status, 404);
    needed.stop().await;
}

/// E-15.
#[tokio::test]
async fn credentials_of_turn_come_with_the_session_and_not_with_an_offer_of_ours() {
    let gateway = gateway(&[
        (COUNTER, "always"),
        ("MILLSTREAM_ICE__SERVERS", "stun:stun.example.org,turn:turn.example.org"),
        ("MILLSTREAM_ICE__TURN_SECRET", "shared-with-coturn"),
    ])
    .await;
    make_live(&gateway, "live");
    let has_credentials = |reply: &Reply| reply.all("link").iter().any(|link| link.contains("credential"));
    let reply = Request::offer("/whep/live", VIEWER).send(&gateway).await;
    let (session, offer) = check_offer(&reply, 406);
    assert!(!has_credentials(&reply) && reply.all("link")[0].starts_with("<stun:stun.example.org>"));
    let answered = patch(&session, &answer(&offer)).send(&gateway).await;
    assert_eq!(answered.status, 204);
    assert!(has_credentials(&answered), "{answered:?}");
    gateway.stop().await;
}

/// E-06, B-43.
#[tokio::test]
async fn an_offer_is_good_for_half_a_minute() {
    let gateway = gateway(&[LEGACY]).await;
    make_live(&gateway, "live");
    let reply = Request::offer("/whep/live", "").send(&gateway).await;
    let (session, offer) = check_offer(&reply, 201);
    advance(Duration::from_secs(31)).await;
    let late = patch(&session, &answer(&offer)).send(&gateway).await;
    assert_eq!((late.status, late.problem().as_str()), (404, "unknown_session"));
    assert_eq!(sessions(&gateway).await, 0);
    gateway.stop().await;
}

/// A viewer's offer that was recorded is still answered with 201 where nothing else is needed.
#[tokio::test]
async fn firefox_is_answered_as_ever() {
    let gateway = gateway(&[(COUNTER, "when_needed"), LEGACY]).await;
    make_live(&gateway, "live");
    let firefox = recorded!("firefox-esr-153.7.0-noh264-recvonly.sdp");
    assert_eq!(Request::offer("/whep/live", firefox).send(&gateway).await.status, 201);
    gateway.stop().await;
}
