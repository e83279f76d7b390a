//! Sends the events of one webhook, each until it is accepted or given up.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use reqwest::header::CONTENT_TYPE;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::queue::{EventQueue, WebhookCounters, WebhookEvent};
use super::target::WebhookTarget;
use millstream_core::hub::log_limit::LogRateLimiter;

/// Waits between the attempts of one event. After the last attempt it is given up.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
];

/// Number of these for an event of a session: there may be many, and they soon mean little.
const SESSION_EVENT_RETRIES: usize = 3;

/// Maximum time of one attempt.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Client of one webhook.
pub(super) struct WebhookClient {
    target: WebhookTarget,
    http: reqwest::Client,
    counters: Arc<WebhookCounters>,
    failure_log_limiter: Mutex<LogRateLimiter>,
}

impl WebhookClient {
    pub(super) fn new(target: WebhookTarget, counters: Arc<WebhookCounters>) -> Self {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(DELIVERY_TIMEOUT)
            .user_agent("millstream");
        Self {
            target,
            http: builder.build().unwrap_or_default(),
            counters,
            failure_log_limiter: Mutex::default(),
        }
    }

    /// Sends an event until it is accepted or given up.
    async fn deliver(&self, event: &WebhookEvent) {
        let id = random_message_id();
        let body = json!({
            "type": event.event_type.name(),
            "timestamp": OffsetDateTime::from(event.time).format(&Rfc3339).unwrap_or_default(),
            "data": event.data,
        })
        .to_string();
        let retries = match event.event_type.is_of_session() {
            true => SESSION_EVENT_RETRIES,
            false => RETRY_DELAYS.len(),
        };
        let mut delays = RETRY_DELAYS.iter().take(retries);
        loop {
            let Err(problem) = self.send(&id, &body).await else {
                self.counters.delivered.fetch_add(1, Ordering::Relaxed);
                return;
            };
            self.counters.failed_attempts.fetch_add(1, Ordering::Relaxed);
            self.log_failure(&problem);
            match delays.next() {
                Some(delay) => sleep(*delay).await,
                None => break,
            }
        }
        self.counters.given_up.fetch_add(1, Ordering::Relaxed);
    }

    async fn send(&self, id: &str, body: &str) -> Result<(), String> {
        let since_1970 = wall_clock_now().duration_since(SystemTime::UNIX_EPOCH);
        let timestamp = since_1970.unwrap_or_default().as_secs();
        let request = self
            .http
            .post(&self.target.url.0)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", self.target.signature(id, timestamp, body))
            .body(body.to_owned());
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(format!("it answered with HTTP status {}", response.status())),
            Err(error) => Err(error.without_url().to_string()),
        }
    }

    fn log_failure(&self, problem: &str) {
        let mut log = self.failure_log_limiter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = log.allow(Instant::now().into_std()) {
            let host = self.target.host();
            warn!(
                host,
                problem, suppressed, "event not delivered to a webhook; the gateway retries it"
            );
        }
    }
}

/// Sends the events of a queue in their order.
pub(super) async fn deliver_events(client: Arc<WebhookClient>, queue: Arc<EventQueue>) {
    loop {
        let event = queue.pop().await;
        client.deliver(&event).await;
    }
}

/// Returns the id by which a receiver recognizes an event that it gets twice.
fn random_message_id() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    format!("msg_{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[expect(
    clippy::disallowed_methods,
    reason = "receivers compare the time with their wall clock"
)]
pub(super) fn wall_clock_now() -> SystemTime {
    SystemTime::now()
}
