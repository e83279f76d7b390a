//! Sends the events of one webhook, each until it is accepted or given up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
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

/// Wait between two attempts while the gateway stops.
const RETRY_DELAY_AT_STOP: Duration = Duration::from_millis(100);

/// Number of these for an event of a session: there may be many, and they soon mean little.
const SESSION_EVENT_RETRIES: usize = 3;

/// Maximum time of one attempt.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Client of one webhook.
pub(super) struct WebhookClient {
    target: WebhookTarget,
    /// Or why there is none. Another client would follow redirects, or wait for ever.
    http: Result<reqwest::Client, String>,
    counters: Arc<WebhookCounters>,
    failure_log_limiter: Mutex<LogRateLimiter>,
    is_disabled: AtomicBool,
    is_stopping: watch::Receiver<bool>,
}

impl WebhookClient {
    pub(super) fn new(
        target: WebhookTarget,
        counters: Arc<WebhookCounters>,
        is_stopping: watch::Receiver<bool>,
    ) -> Self {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(DELIVERY_TIMEOUT)
            .no_proxy()
            .user_agent("millstream");
        Self {
            target,
            http: builder
                .build()
                .map_err(|error| format!("the HTTP client cannot be created: {error}")),
            counters,
            failure_log_limiter: Mutex::default(),
            is_disabled: AtomicBool::new(false),
            is_stopping,
        }
    }

    /// Whether its receiver has said that it is gone.
    pub(super) fn is_disabled(&self) -> bool {
        self.is_disabled.load(Ordering::Relaxed)
    }

    /// Sends an event until it is accepted, rejected or given up.
    async fn deliver(&self, event: &WebhookEvent) {
        let id = random_message_id();
        let body = json!({
            "type": event.event_type.name(),
            "timestamp": OffsetDateTime::from(event.time).format(&Rfc3339).unwrap_or_default(),
            "data": event.data,
        })
        .to_string();
        let retries = match event.event_type.is_session_event() {
            true => SESSION_EVENT_RETRIES,
            false => RETRY_DELAYS.len(),
        };
        let mut delays = RETRY_DELAYS.iter().take(retries);
        while !self.is_disabled() {
            let failure = match self.send(&id, &body).await {
                Ok(()) => {
                    self.counters.delivered.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(failure) => failure,
            };
            self.counters.failed_attempts.fetch_add(1, Ordering::Relaxed);
            self.log_failure(&failure);
            match failure {
                DeliveryFailure::Gone => {
                    self.is_disabled.store(true, Ordering::Relaxed);
                    break;
                }
                DeliveryFailure::Rejected(_) => break,
                DeliveryFailure::Temporary(_) => match delays.next() {
                    Some(delay) => self.wait_before_retry(*delay).await,
                    None => break,
                },
            }
        }
        self.counters.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits between two attempts: shortly while the gateway stops, for what waits behind the event would be lost.
    async fn wait_before_retry(&self, delay: Duration) {
        let mut is_stopping = self.is_stopping.clone();
        if timeout(delay, is_stopping.wait_for(|stops| *stops)).await.is_ok() {
            sleep(RETRY_DELAY_AT_STOP).await;
        }
    }

    async fn send(&self, id: &str, body: &str) -> Result<(), DeliveryFailure> {
        let since_1970 = wall_clock_now().duration_since(SystemTime::UNIX_EPOCH);
        let timestamp = since_1970.unwrap_or_default().as_secs();
        let http = self
            .http
            .as_ref()
            .map_err(|problem| DeliveryFailure::Temporary(problem.clone()))?;
        let request = http
            .post(&self.target.url.0)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", self.target.signature(id, timestamp, body))
            .body(body.to_owned());
        match request.send().await {
            Ok(response) => DeliveryFailure::of_status(response.status()).map_or(Ok(()), Err),
            Err(error) => Err(DeliveryFailure::Temporary(error.without_url().to_string())),
        }
    }

    fn log_failure(&self, failure: &DeliveryFailure) {
        let host = self.target.host();
        if let DeliveryFailure::Gone = failure {
            warn!(
                host,
                "webhook disabled until a reload or restart: it answered with HTTP status 410 Gone"
            );
            return;
        }
        let mut log = self.failure_log_limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(suppressed) = log.allow_log_line(Instant::now().into_std()) else {
            return;
        };
        match failure {
            DeliveryFailure::Temporary(problem) => warn!(
                host,
                problem, suppressed, "event not delivered to a webhook; the gateway retries it"
            ),
            DeliveryFailure::Rejected(status) => {
                let status = status.as_u16();
                warn!(
                    host,
                    status, suppressed, "event rejected by a webhook; the gateway does not send it again"
                );
            }
            DeliveryFailure::Gone => {}
        }
    }
}

/// Why a webhook did not accept an event.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DeliveryFailure {
    /// Another attempt may succeed.
    Temporary(String),
    /// The receiver refuses this event, and would again: another attempt would hold up those that wait.
    Rejected(StatusCode),
    /// The receiver wants no events any more, as Standard Webhooks understand status 410.
    Gone,
}

impl DeliveryFailure {
    /// Returns what a status means; `None` if the event was accepted. Of the statuses that blame the request, some are about
    /// the moment: Request Timeout, Conflict, Too Early, Too Many Requests.
    fn of_status(status: StatusCode) -> Option<Self> {
        let is_about_the_moment = matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
        match status {
            status if status.is_success() => None,
            StatusCode::GONE => Some(Self::Gone),
            status if status.is_client_error() && !is_about_the_moment => Some(Self::Rejected(status)),
            status => Some(Self::Temporary(format!(
                "the webhook answered with HTTP status {status}"
            ))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_blames_the_event_is_final() {
        let failure = |status: u16| DeliveryFailure::of_status(StatusCode::from_u16(status).expect("a status"));
        for status in [200, 202, 204] {
            assert_eq!(failure(status), None);
        }
        for status in [400, 401, 403, 404, 405, 413, 415, 422, 451] {
            assert!(
                matches!(failure(status), Some(DeliveryFailure::Rejected(_))),
                "{status}"
            );
        }
        for status in [301, 302, 304, 408, 409, 425, 429, 500, 502, 503, 504] {
            assert!(
                matches!(failure(status), Some(DeliveryFailure::Temporary(_))),
                "{status}"
            );
        }
        assert_eq!(failure(410), Some(DeliveryFailure::Gone));
    }
}
