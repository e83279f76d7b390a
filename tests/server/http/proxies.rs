//! Requests through a reverse proxy: limits, the API and the webhook see the address of the client. And what wrong tokens
//! do to others behind the same address.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::access::{Folder, SECRET, http, in_seconds, play, serve, signed};
use crate::http::client::{OBS, Request, VIEWER, from_text, make_live, metric};

const TRUSTED: &str = "[http]\ntrusted_proxies = [\"127.0.0.0/8\"]\n";

fn via(request: Request, client: &str) -> Request {
    request.header("X-Forwarded-For", client)
}

#[tokio::test]
async fn each_client_of_a_trusted_proxy_has_limits_of_its_own() {
    let limits = "[limits]\nrequests_per_second = 1\nrequest_burst = 2\n";
    for (config, is_trusted) in [(TRUSTED, true), ("", false)] {
        let gateway = from_text(&format!("{config}{limits}")).await;
        // The rightmost address counts, whatever the client itself has sent.
        let limited_at = async |client: &str| {
            for n in 0..100 {
                let request = Request::new("DELETE", "/session/nothing");
                let reply = via(request, &format!("198.51.100.{n}, {client}")).send(&gateway).await;
                if reply.status == 429 {
                    return n;
                }
            }
            100
        };
        let first = limited_at("203.0.113.1").await;
        assert!((2..100).contains(&first), "{first}");
        let second = limited_at("203.0.113.2").await;
        match is_trusted {
            true => assert!((2..100).contains(&second), "{second}"),
            // A slow machine may refill the bucket by one.
            false => assert!(second < 2, "{second}"),
        }
        let rejected = metric(&gateway, "millstream_http_rejected_total{reason=\"request_rate\"}").await;
        assert_eq!(rejected, 2);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn half_open_sessions_are_counted_by_the_clients_of_a_proxy() {
    let gateway = from_text(&format!("{TRUSTED}[limits]\nhalf_open_per_address = 1\n")).await;
    make_live(&gateway, "live");
    let offer = |client: &str| via(Request::offer("/whep/live", VIEWER), client);
    let first = offer("203.0.113.1").send(&gateway).await.location();
    offer("203.0.113.2").send(&gateway).await.location();
    assert_eq!(Request::new("GET", &first).send(&gateway).await.status, 204);
    offer("203.0.113.1").send(&gateway).await.location();
    assert_eq!(
        Request::new("GET", &first).send(&gateway).await.status,
        404,
        "it was evicted"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn the_api_and_the_webhook_see_the_address_of_the_client() {
    let (address, _) = serve(|question: Value| match question["address"].as_str() {
        Some("203.0.113.9" | "2001:db8::9") => http("200 OK", ""),
        _ => http("401 Unauthorized", ""),
    })
    .await;
    let access = format!("[auth]\napi_token = \"api\"\nwebhook_url = \"http://{address}/\"\n");
    let gateway = from_text(&format!("{TRUSTED}{access}")).await;
    make_live(&gateway, "live");
    let offer = Request::offer("/whep/live", VIEWER);
    via(offer.clone(), "203.0.113.9").send(&gateway).await.location();
    let forwarded = offer
        .clone()
        .header("Forwarded", "for=203.0.113.5, for=\"[2001:db8::9]:80\"");
    forwarded.send(&gateway).await.location();
    assert_eq!(
        via(offer.clone(), "203.0.113.9, 203.0.113.8")
            .send(&gateway)
            .await
            .status,
        401
    );
    let disagree = via(offer.clone(), "203.0.113.9").header("Forwarded", "for=203.0.113.8");
    assert_eq!(disagree.send(&gateway).await.status, 401);
    let sessions = Request::new("GET", "/api/v1/sessions")
        .bearer("api")
        .send(&gateway)
        .await;
    for address in ["\"203.0.113.9\"", "\"2001:db8::9\""] {
        assert!(sessions.text().contains(address), "{}", sessions.text());
    }
    gateway.stop().await;
    // The same from somebody who is no proxy.
    let gateway = from_text(&access).await;
    make_live(&gateway, "live");
    assert_eq!(via(offer, "203.0.113.9").send(&gateway).await.status, 401);
    gateway.stop().await;
}

#[tokio::test]
async fn a_trusted_proxy_may_open_many_connections() {
    for (config, open) in [(TRUSTED, 5), ("", 2)] {
        let gateway = from_text(&format!("{config}[limits]\nconnections_per_address = 2\n")).await;
        let mut connections = Vec::new();
        let mut accepted = 0;
        for _ in 0..5 {
            let mut stream = TcpStream::connect(gateway.http_address()).await.expect("connects");
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
                .await
                .expect("sends");
            let mut bytes = [0; 15];
            stream.read_exact(&mut bytes).await.expect("a response");
            accepted += usize::from(bytes.starts_with(b"HTTP/1.1 200"));
            connections.push(stream);
        }
        assert_eq!(accepted, open);
        drop(connections);
        gateway.stop().await;
    }
}

/// Wrong tokens of one user behind an address, and right ones of another one.
#[tokio::test]
async fn wrong_tokens_lock_nobody_out_who_has_a_right_one() {
    let folder = Folder::new("shared");
    let (address, asked) = serve(|question: Value| match question["token"].as_str() {
        Some(token) if token.starts_with("good") => http("200 OK", ""),
        _ => http("401 Unauthorized", ""),
    })
    .await;
    let jwt = format!("[auth]\njwt_secret = \"{SECRET}\"\n");
    let hook = format!("[auth]\nwebhook_url = \"http://{address}/\"\n");
    for (config, is_hook) in [(jwt, false), (hook, true)] {
        let gateway = from_text(&config).await;
        make_live(&gateway, "live");
        let mut limited = 0;
        for n in 0..80 {
            let wrong = play(&gateway, "live", &format!("wrong.token.{n}")).await;
            limited += usize::from(wrong.status == 429 && wrong.problem() == "too_many_failures");
            if n < 40 {
                continue;
            }
            let token = match is_hook {
                true => format!("good{n}"),
                // Another token each time, so that none is known.
                false => {
                    let claims = json!({"exp": in_seconds(600), "play": "*", "jti": n});
                    signed(&folder, &json!({"alg": "HS256"}), &claims, SECRET)
                }
            };
            let right = play(&gateway, "live", &token).await;
            assert_eq!(right.status, 201, "{}", right.text());
        }
        assert!(limited > 0);
        gateway.stop().await;
    }
    assert!(asked.load(std::sync::atomic::Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn the_limit_of_wrong_tokens_is_configurable() {
    for (keys, wanted) in [
        ("failures_per_second = 0\n", 0),
        ("failure_burst = 5\n", 25),
        ("failures_per_second = 1\nfailure_burst = 30\n", 0),
    ] {
        let gateway = from_text(&format!("[limits]\n{keys}")).await;
        let mut limited = 0;
        for n in 0..30 {
            let reply = Request::offer("/whip/live", OBS)
                .bearer(&format!("wrong{n}"))
                .send(&gateway)
                .await;
            limited += usize::from(reply.status == 429);
        }
        // One token per second is added on a slow machine.
        assert!((wanted / 2..=wanted).contains(&limited), "{keys}: {limited}");
        let rejected = metric(&gateway, "millstream_http_rejected_total{reason=\"failure_rate\"}").await;
        assert_eq!(rejected as usize, limited);
        gateway.stop().await;
    }
}
