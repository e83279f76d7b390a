//! Webhooks: URLs of the operator that are told of events of streams, sources and sessions.
//!
//! ```text
//! EventLog (the events of the API) -> translator -> queues of each webhook -> delivery: POST, signed, until it succeeds
//! ```
//!
//! Each webhook has two queues: one for events of streams and sources, one for those of sessions, whose number is up to
//! viewers. Each is sent in its order, one event at a time, and bounded: the oldest event is dropped and counted. Neither
//! waits for the other, and nothing waits for a webhook.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use self::delivery::{WebhookClient, deliver_events, wall_clock_now};
use self::event_to_payload::EventTranslator;
use self::queue::{EventQueue, WebhookCounters, WebhookEvent};
use self::target::WebhookTarget;
use crate::config::WebhookEventType;
use millstream_core::hub::log_limit::LogRateLimiter;

mod delivery;
mod event_to_payload;
pub mod queue;
pub mod target;

/// The webhooks of a gateway.
#[derive(Default)]
pub struct EventWebhooks {
    webhooks: RwLock<Vec<RunningWebhook>>,
    translator: Mutex<EventTranslator>,
    pub counters: Arc<WebhookCounters>,
    /// Whether the gateway stops.
    is_stopping: watch::Sender<bool>,
}

/// A webhook and what waits for it.
struct RunningWebhook {
    target: WebhookTarget,
    client: Arc<WebhookClient>,
    stream_events: EventDelivery,
    session_events: EventDelivery,
    drop_log_limiter: Mutex<LogRateLimiter>,
}

/// A queue of a webhook and the task that sends its events, which ends when this is dropped.
struct EventDelivery {
    queue: Arc<EventQueue>,
    task: JoinHandle<()>,
}

impl EventDelivery {
    fn start(client: Arc<WebhookClient>) -> Self {
        let queue = Arc::<EventQueue>::default();
        let task = tokio::spawn(deliver_events(client, queue.clone()));
        Self { queue, task }
    }
}

impl Drop for EventDelivery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RunningWebhook {
    fn start(target: WebhookTarget, counters: Arc<WebhookCounters>, is_stopping: watch::Receiver<bool>) -> Self {
        let client = Arc::new(WebhookClient::new(target.clone(), counters, is_stopping));
        Self {
            target,
            stream_events: EventDelivery::start(client.clone()),
            session_events: EventDelivery::start(client.clone()),
            client,
            drop_log_limiter: Mutex::default(),
        }
    }

    fn queue_for_event_type(&self, event_type: WebhookEventType) -> &EventQueue {
        match event_type.is_session_event() {
            true => &self.session_events.queue,
            false => &self.stream_events.queue,
        }
    }

    fn log_dropped_event(&self) {
        let mut log = self.drop_log_limiter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = log.allow_log_line(Instant::now().into_std()) {
            let host = self.target.host();
            warn!(host, suppressed, "event for a webhook dropped: too many are waiting");
        }
    }
}

impl EventWebhooks {
    /// Replaces the webhooks. Those that stay the same keep what waits for them, and begin anew if they are disabled.
    pub fn replace_targets(&self, targets: Vec<WebhookTarget>) {
        let mut webhooks = self.webhooks.write().unwrap_or_else(PoisonError::into_inner);
        webhooks.retain(|webhook| targets.contains(&webhook.target) && !webhook.client.is_disabled());
        for target in targets {
            if webhooks.iter().all(|webhook| webhook.target != target) {
                let is_stopping = self.is_stopping.subscribe();
                webhooks.push(RunningWebhook::start(target, self.counters.clone(), is_stopping));
            }
        }
    }

    /// Returns the number of events that wait for a webhook.
    pub fn queued_event_count(&self) -> usize {
        self.all_queues().iter().map(|queue| queue.len()).sum()
    }

    /// Returns the number of events that wait for a webhook or are being delivered.
    pub fn undelivered_event_count(&self) -> usize {
        self.all_queues().iter().map(|queue| queue.undelivered()).sum()
    }

    /// Makes room for the events of the end, and tries at once again what failed.
    pub fn begin_stop(&self) {
        self.is_stopping.send_replace(true);
    }

    /// Returns the number of events that were given up or dropped.
    pub fn lost_event_count(&self) -> u64 {
        self.counters.given_up.load(Ordering::Relaxed) + self.counters.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all events are accepted or given up.
    pub async fn wait_until_idle(&self) {
        for queue in self.all_queues() {
            queue.wait_until_idle().await;
        }
    }

    fn all_queues(&self) -> Vec<Arc<EventQueue>> {
        let webhooks = self.webhooks.read().unwrap_or_else(PoisonError::into_inner);
        let queues =
            |webhook: &RunningWebhook| [&webhook.stream_events, &webhook.session_events].map(|it| it.queue.clone());
        webhooks.iter().flat_map(queues).collect()
    }

    /// Passes an event of the log on to the webhooks that want it.
    pub fn forward_event_to_webhooks(&self, name: &str, data: &Value) {
        let mut translator = self.translator.lock().unwrap_or_else(PoisonError::into_inner);
        for (event_type, data) in translator.webhook_events_from_log_entry(name, data) {
            self.enqueue(&WebhookEvent {
                event_type,
                time: wall_clock_now(),
                data,
            });
        }
    }

    fn enqueue(&self, event: &WebhookEvent) {
        let webhooks = self.webhooks.read().unwrap_or_else(PoisonError::into_inner);
        let wanting = webhooks
            .iter()
            .filter(|webhook| webhook.target.is_subscribed_to(event.event_type));
        for webhook in wanting {
            let queue = webhook.queue_for_event_type(event.event_type);
            if !queue.push(event.clone(), *self.is_stopping.borrow()) {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
                webhook.log_dropped_event();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Redacted, Secret, WebhookConfig};

    /// Viewers who come and go by the thousand, and a receiver that takes nothing.
    #[tokio::test]
    async fn sessions_do_not_push_out_what_happens_to_streams() {
        let config = WebhookConfig {
            url: Redacted("http://192.0.2.1/".to_owned()),
            secret: Secret::new("a-secret-of-the-test"),
            ..WebhookConfig::default()
        };
        let webhooks = EventWebhooks::default();
        webhooks.replace_targets(WebhookTarget::build_webhook_targets(&[config]).expect("valid"));
        webhooks.forward_event_to_webhooks("stream", &json!({ "stream": "a", "live": true }));
        for n in 0..3_000 {
            for state in ["connected", "ended"] {
                webhooks.forward_event_to_webhooks(
                    "session",
                    &json!({ "id": n.to_string(), "role": "viewer", "state": state }),
                );
            }
        }
        webhooks.forward_event_to_webhooks("stream", &json!({ "stream": "a", "live": false }));
        let running = webhooks.webhooks.read().expect("not poisoned");
        assert_eq!(running[0].stream_events.queue.len(), 2);
        assert_eq!(webhooks.counters.dropped.load(Ordering::Relaxed), 5_000);
    }
}
