//! Webhooks: URLs of the operator that are told of events of streams, sources and sessions.
//!
//! ```text
//! EventLog (the events of the API) -> translator -> queue of each webhook -> delivery: POST, signed, until it succeeds
//! ```
//!
//! Each webhook gets its events in their order, one at a time. Its queue is bounded: the oldest event is dropped and
//! counted. Nothing waits for a webhook.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde_json::Value;
use tokio::task::JoinHandle;

use self::delivery::{WebhookClient, deliver_events};
use self::queue::{EventQueue, WebhookCounters, WebhookEvent};
use self::target::WebhookTarget;
use self::translator::EventTranslator;

mod delivery;
pub mod queue;
pub mod target;
mod translator;

/// The webhooks of a gateway.
#[derive(Default)]
pub struct EventWebhooks {
    webhooks: RwLock<Vec<RunningWebhook>>,
    translator: Mutex<EventTranslator>,
    pub counters: Arc<WebhookCounters>,
}

/// A webhook and the task that sends its events, which ends when this is dropped.
struct RunningWebhook {
    target: WebhookTarget,
    queue: Arc<EventQueue>,
    task: JoinHandle<()>,
}

impl Drop for RunningWebhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EventWebhooks {
    /// Replaces the webhooks. Those that stay the same keep their queue.
    pub fn replace_targets(&self, targets: Vec<WebhookTarget>) {
        let mut webhooks = self.webhooks.write().unwrap_or_else(PoisonError::into_inner);
        webhooks.retain(|webhook| targets.contains(&webhook.target));
        for target in targets {
            if webhooks.iter().all(|webhook| webhook.target != target) {
                webhooks.push(self.start(target));
            }
        }
    }

    fn start(&self, target: WebhookTarget) -> RunningWebhook {
        let queue = Arc::<EventQueue>::default();
        let client = WebhookClient::new(target.clone(), self.counters.clone());
        let task = tokio::spawn(deliver_events(client, queue.clone()));
        RunningWebhook { target, queue, task }
    }

    /// Returns the number of events that wait for a webhook.
    pub fn queued_event_count(&self) -> usize {
        let webhooks = self.webhooks.read().unwrap_or_else(PoisonError::into_inner);
        webhooks.iter().map(|webhook| webhook.queue.len()).sum()
    }

    /// Passes an event of the log on to the webhooks that want it.
    pub fn forward_event_to_webhooks(&self, name: &str, data: &Value) {
        let mut translator = self.translator.lock().unwrap_or_else(PoisonError::into_inner);
        for (event_type, data) in translator.translate(name, data) {
            self.enqueue(&WebhookEvent { event_type, data });
        }
    }

    fn enqueue(&self, event: &WebhookEvent) {
        let webhooks = self.webhooks.read().unwrap_or_else(PoisonError::into_inner);
        let wanting = webhooks.iter().filter(|webhook| webhook.target.wants(event.event_type));
        for webhook in wanting {
            if !webhook.queue.push(event.clone()) {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
