//! Webhooks that are told of events: what they get, how it is signed, and what happens when they fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millstream::Gateway;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::http::client::{OBS, Request, VIEWER, from_text, hurry, make_live};

const SECRET: &str = "a-secret-of-the-test";

/// What a receiver got.
struct Received {
    id: String,
    timestamp: u64,
    event: Value,
}

/// A receiver of webhooks.
struct Receiver {
    url: String,
    received: mpsc::UnboundedReceiver<Received>,
    requests: Arc<AtomicUsize>,
}

impl Receiver {
    /// One that fails the first requests and accepts all others.
    async fn start(failures: usize) -> Self {
        Self::answering(move |number, _| async move {
            if number < failures {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::NO_CONTENT
            }
        })
        .await
    }

    /// One that answers by the number of the request, from 0 on, and the event.
    async fn answering<A, F>(answer: A) -> Self
    where
        A: Fn(usize, Value) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = StatusCode> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/hook?key=s3cret", listener.local_addr().expect("bound"));
        let (sender, received) = mpsc::unbounded_channel();
        let requests = Arc::<AtomicUsize>::default();
        let count = requests.clone();
        let receive = move |headers: HeaderMap, body: String| {
            let (sender, count, answer) = (sender.clone(), count.clone(), answer.clone());
            async move {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let received = checked(&headers, &body);
                let event = received.event.clone();
                let _ = sender.send(received);
                answer(number, event).await
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(receive))).await });
        Self {
            url,
            received,
            requests,
        }
    }

    async fn next(&mut self) -> Received {
        let next = tokio::time::timeout(Duration::from_secs(3_600), self.received.recv()).await;
        next.expect("an event").expect("it runs")
    }
}

/// Checks the signature as a receiver does.
fn checked(headers: &HeaderMap, body: &str) -> Received {
    let header = |name: &str| headers[name].to_str().expect("text");
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let signature = header("webhook-signature").strip_prefix("v1,").expect("a version");
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed = format!("{id}.{timestamp}.{body}");
    hmac::verify(&key, signed.as_bytes(), &STANDARD.decode(signature).expect("base64")).expect("it is ours");
    assert_eq!(header("content-type"), "application/json");
    Received {
        id: id.to_owned(),
        timestamp: timestamp.parse().expect("a number"),
        event: serde_json::from_str(body).expect("JSON"),
    }
}

fn config(receivers: &[(&Receiver, &str)]) -> String {
    let webhook = |(receiver, more): &(&Receiver, &str)| {
        format!(
            "[[webhooks]]\nurl = \"{}\"\nsecret = \"{SECRET}\"\n{more}\n",
            receiver.url
        )
    };
    let webhooks: String = receivers.iter().map(webhook).collect();
    format!("[auth]\napi_token = \"operator\"\n{webhooks}")
}

async fn metrics(gateway: &Gateway) -> String {
    let reply = Request::new("GET", "/metrics").bearer("operator").send(gateway).await;
    reply.text().to_owned()
}

#[tokio::test]
async fn webhooks_are_told_of_the_events_that_they_want() {
    let mut all = Receiver::start(0).await;
    let mut sessions = Receiver::start(0).await;
    let gateway = from_text(&config(&[(&all, ""), (&sessions, "events = [\"session.ended\"]")])).await;
    make_live(&gateway, "live");
    let live = all.next().await;
    assert_eq!(live.event["type"], "stream.live");
    assert_eq!(live.event["data"], json!({ "stream": "live", "publisher": "whip" }));
    assert!(
        live.event["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')),
        "{}",
        live.event
    );
    Request::publish("/whip/other", OBS).send(&gateway).await.location();
    let api = |method, path: &str| Request::new(method, path).bearer("operator");
    let listed: Value =
        serde_json::from_slice(&api("GET", "/api/v1/sessions").send(&gateway).await.body).expect("JSON");
    let id = listed["sessions"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(
        api("DELETE", &format!("/api/v1/sessions/{id}"))
            .send(&gateway)
            .await
            .status,
        204
    );
    for receiver in [&mut all, &mut sessions] {
        let ended = receiver.next().await;
        assert_eq!(ended.event["type"], "session.ended", "{}", ended.event);
        let data = &ended.event["data"];
        assert_eq!(
            (&data["id"], &data["cause"], &data["stream"]),
            (&json!(id), &json!("kicked"), &json!("other"))
        );
    }
    assert_eq!(sessions.requests.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn an_event_is_sent_again_until_it_is_accepted() {
    let mut receiver = Receiver::start(2).await;
    let gateway = from_text(&config(&[(&receiver, "events = [\"stream.live\"]")])).await;
    make_live(&gateway, "first");
    let mut attempts = Vec::new();
    hurry(async {
        for _ in 0..3 {
            attempts.push(receiver.next().await);
        }
        while !metrics(&gateway)
            .await
            .contains("millstream_webhook_events_total{result=\"delivered\"} 1")
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(
        attempts.iter().all(|attempt| attempt.id == attempts[0].id),
        "by the id a receiver knows it again"
    );
    assert!(attempts.iter().all(|attempt| attempt.event == attempts[0].event));
    assert!(attempts.iter().all(|attempt| attempt.timestamp > 1_700_000_000));
    make_live(&gateway, "second");
    let next = receiver.next().await;
    assert_ne!(next.id, attempts[0].id);
    assert_eq!(next.event["data"]["stream"], "second");
    let page = metrics(&gateway).await;
    assert!(page.contains("millstream_webhook_failed_attempts_total 2"), "{page}");
    gateway.stop().await;
}

#[tokio::test]
async fn an_event_that_nobody_accepts_is_given_up() {
    let mut receiver = Receiver::start(usize::MAX).await;
    let gateway = from_text(&config(&[(&receiver, "events = [\"stream.live\"]")])).await;
    make_live(&gateway, "live");
    hurry(async {
        for _ in 0..6 {
            receiver.next().await;
        }
        while !metrics(&gateway)
            .await
            .contains("millstream_webhook_events_total{result=\"given_up\"} 1")
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(receiver.requests.load(Ordering::SeqCst), 6);
    gateway.stop().await;
}

#[tokio::test]
async fn neither_sessions_of_strangers_nor_a_receiver_that_hangs_on_them_hold_up_events_of_streams() {
    let mut receiver = Receiver::answering(|_, event| async move {
        if event["type"] == "session.ended" {
            std::future::pending::<()>().await;
        }
        StatusCode::NO_CONTENT
    })
    .await;
    let gateway = from_text(&config(&[(&receiver, "")])).await;
    make_live(&gateway, "live");
    assert_eq!(receiver.next().await.event["type"], "stream.live");
    let leave = async |location: String| Request::new("DELETE", &location).send(&gateway).await;
    for _ in 0..10 {
        // Never connected.
        leave(Request::offer("/whep/live", VIEWER).send(&gateway).await.location()).await;
    }
    leave(Request::publish("/whip/other", OBS).send(&gateway).await.location()).await;
    let ended = receiver.next().await;
    assert_eq!(
        (&ended.event["type"], &ended.event["data"]["role"]),
        (&json!("session.ended"), &json!("publisher"))
    );
    make_live(&gateway, "second");
    let next = receiver.next().await;
    assert_eq!(
        (&next.event["type"], &next.event["data"]["stream"]),
        (&json!("stream.live"), &json!("second"))
    );
    assert_eq!(receiver.requests.load(Ordering::SeqCst), 3);
    gateway.stop().await;
}

/// As a firewall does that finds something in the event.
#[tokio::test]
async fn a_rejected_event_is_not_sent_again_and_holds_up_no_other() {
    let mut receiver = Receiver::answering(|_, event| async move {
        match event["data"]["stream"] == "first" {
            true => StatusCode::FORBIDDEN,
            false => StatusCode::NO_CONTENT,
        }
    })
    .await;
    let gateway = from_text(&config(&[(&receiver, "events = [\"stream.live\"]")])).await;
    make_live(&gateway, "first");
    assert_eq!(receiver.next().await.event["data"]["stream"], "first");
    make_live(&gateway, "second");
    assert_eq!(receiver.next().await.event["data"]["stream"], "second");
    let page = metrics(&gateway).await;
    assert!(
        page.contains("millstream_webhook_events_total{result=\"given_up\"} 1"),
        "{page}"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_gets_nothing_until_a_reload() {
    let mut receiver = Receiver::answering(|number, _| async move {
        match number {
            0 => StatusCode::GONE,
            _ => StatusCode::NO_CONTENT,
        }
    })
    .await;
    let text = config(&[(&receiver, "events = [\"stream.live\"]")]);
    let mut gateway = from_text(&text).await;
    make_live(&gateway, "first");
    assert_eq!(receiver.next().await.event["data"]["stream"], "first");
    make_live(&gateway, "second");
    while !metrics(&gateway)
        .await
        .contains("millstream_webhook_events_total{result=\"given_up\"} 2")
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let config = millstream::Config::parse(&text, "test.toml".as_ref(), []).expect("valid");
    gateway.replace_config(config).await.expect("valid");
    make_live(&gateway, "third");
    assert_eq!(receiver.next().await.event["data"]["stream"], "third");
    assert_eq!(receiver.requests.load(Ordering::SeqCst), 2);
    gateway.stop().await;
}

/// More at once than the event stream of the API keeps.
#[tokio::test]
async fn no_event_of_a_burst_is_missed() {
    let mut receiver = Receiver::start(0).await;
    let gateway = from_text(&config(&[(&receiver, "events = [\"stream.live\"]")])).await;
    (0..300).for_each(|n| make_live(&gateway, &format!("many/{n}")));
    let mut names = std::collections::BTreeSet::new();
    while names.len() < 300 {
        names.insert(receiver.next().await.event["data"]["stream"].to_string());
    }
    assert_eq!(receiver.requests.load(Ordering::SeqCst), 300);
    gateway.stop().await;
}

#[tokio::test]
async fn a_reload_changes_the_webhooks() {
    let (mut first, mut second) = (Receiver::start(0).await, Receiver::start(0).await);
    let mut gateway = from_text(&config(&[(&first, "")])).await;
    make_live(&gateway, "a");
    assert_eq!(first.next().await.event["data"]["stream"], "a");
    let reloaded = |text: String| millstream::Config::parse(&text, "test.toml".as_ref(), []).expect("valid");
    gateway
        .replace_config(reloaded(config(&[(&second, "")])))
        .await
        .expect("valid");
    make_live(&gateway, "b");
    assert_eq!(second.next().await.event["data"]["stream"], "b");
    assert_eq!(first.requests.load(Ordering::SeqCst), 1);
    let wrong = config(&[(&second, "secret_file = \"/dev/null\"")]);
    let error = gateway
        .replace_config(reloaded(wrong))
        .await
        .expect_err("a mistake")
        .to_string();
    assert!(
        error.contains("`webhooks[0]` needs exactly one of `secret` and `secret_file`"),
        "{error}"
    );
    gateway.stop().await;
}

#[test]
fn mistakes_in_webhooks_are_named_without_secrets() {
    let mistakes = |text: &str| {
        let config = millstream::Config::parse(text, "test.toml".as_ref(), []);
        config.expect_err("a mistake").to_string()
    };
    for (text, expected) in [
        (
            "[webhooks]\nurl = \"http://a/\"",
            "`webhooks` has to be a list of tables",
        ),
        (
            "[[webhooks]]\nurl = \"ftp://a/?s3cret\"",
            "`webhooks[0].url` has an invalid value: expected an http://",
        ),
        (
            "[[webhooks]]\nurl = \"http://a/\"\nevents = [\"stream.alive\"]",
            "(did you mean \"stream.live\"?)",
        ),
        (
            "[[webhooks]]\nurl = \"http://a/\"\nsecret = \"s3cret\"",
            "`webhooks[0].secret` has an invalid value: expected 16 to",
        ),
        (
            "[[webhooks]]\nulr = \"http://a/\"",
            "unknown key `webhooks[0].ulr` (did you mean `url`?)",
        ),
        (
            "[[webhook]]\nurl = \"http://a/\"",
            "unknown section `webhook` (did you mean `webhooks`?)",
        ),
    ] {
        let found = mistakes(text);
        assert!(found.contains(expected) && !found.contains("s3cret"), "{text}: {found}");
    }
    let many = "[[webhooks]]\nurl = \"http://a/\"\n".repeat(17);
    assert!(mistakes(&many).contains("`webhooks` has more than 16 webhooks"));
}

/// The sessions that a stop ends are among what receivers bill for.
#[tokio::test]
async fn what_a_stop_ends_is_delivered_before_the_gateway_has_stopped() {
    let mut receiver = Receiver::start(0).await;
    let gateway = from_text(&config(&[(&receiver, "events = [\"session.ended\"]")])).await;
    let publisher = Request::publish("/whip/live", OBS).send(&gateway).await;
    assert_eq!(publisher.status, 201);
    gateway.stop().await;
    let ended = receiver.received.try_recv().expect("an event");
    assert_eq!(ended.event["type"], "session.ended");
    assert_eq!(ended.event["data"]["stream"], "live");
}

/// What waits behind an event that failed is not lost because that one would be sent again in five seconds only.
#[tokio::test]
async fn what_failed_is_sent_again_at_once_when_the_gateway_stops() {
    let mut receiver = Receiver::start(2).await;
    let gateway = from_text(&config(&[(&receiver, "")])).await;
    make_live(&gateway, "live");
    let first = receiver.next().await;
    make_live(&gateway, "behind");
    assert_eq!(receiver.next().await.id, first.id);
    gateway.stop().await;
    let again = receiver.received.try_recv().expect("an event");
    assert_eq!(again.id, first.id);
    let behind = receiver.received.try_recv().expect("the event behind it");
    assert_eq!(behind.event["data"]["stream"], "behind");
}
