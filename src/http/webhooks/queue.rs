//! The events that wait for a webhook.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::Value;
use tokio::sync::Notify;

use crate::config::WebhookEventType;

/// Maximum number of events that wait in one queue.
const MAX_QUEUED_EVENTS: usize = 1_000;

/// The same while the gateway stops, which ends all sessions at once.
const MAX_QUEUED_EVENTS_AT_STOP: usize = 100_000;

/// An event to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WebhookEvent {
    pub(super) event_type: WebhookEventType,
    /// When it happened.
    pub(super) time: SystemTime,
    pub(super) data: Value,
}

/// Counters of all webhooks, for the metrics.
#[derive(Debug, Default)]
pub struct WebhookCounters {
    /// Events that a webhook has accepted.
    pub delivered: AtomicU64,
    /// Attempts that failed; the event was tried again or given up.
    pub failed_attempts: AtomicU64,
    /// Events that were rejected, or given up after the last attempt, or that a disabled webhook did not get.
    pub given_up: AtomicU64,
    /// Events that were dropped because too many were waiting.
    pub dropped: AtomicU64,
}

/// Events that wait for a webhook.
#[derive(Default)]
pub(super) struct EventQueue {
    waiting: Mutex<VecDeque<WebhookEvent>>,
    added: Notify,
    /// Whether an event was taken that is neither accepted nor given up.
    is_delivering: AtomicBool,
    idle: Notify,
}

impl EventQueue {
    /// Adds an event. Returns `false` if the oldest one had to be dropped.
    pub(super) fn push(&self, event: WebhookEvent, is_stopping: bool) -> bool {
        let max = if is_stopping {
            MAX_QUEUED_EVENTS_AT_STOP
        } else {
            MAX_QUEUED_EVENTS
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(event);
        let fits = waiting.len() <= max;
        if !fits {
            waiting.pop_front();
        }
        drop(waiting);
        self.added.notify_one();
        fits
    }

    /// Waits for the oldest event and takes it.
    pub(super) async fn pop(&self) -> WebhookEvent {
        loop {
            if let Some(event) = self.take_oldest() {
                return event;
            }
            self.idle.notify_waiters();
            self.added.notified().await;
        }
    }

    /// Takes the oldest event. It is being delivered until the next call.
    fn take_oldest(&self) -> Option<WebhookEvent> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = waiting.pop_front();
        // Under the lock: an event is always either waiting or being delivered.
        self.is_delivering.store(oldest.is_some(), Ordering::Relaxed);
        oldest
    }

    /// Number of events that wait or are being delivered.
    pub(super) fn undelivered(&self) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.len() + usize::from(self.is_delivering.load(Ordering::Relaxed))
    }

    /// Waits until no event waits or is being delivered.
    pub(super) async fn wait_until_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.undelivered() == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_oldest_event_of_a_full_queue_is_dropped() {
        let queue = EventQueue::default();
        let event = |n: usize| WebhookEvent {
            event_type: WebhookEventType::StreamLive,
            time: SystemTime::UNIX_EPOCH,
            data: json!(n),
        };
        let fitting = (0..MAX_QUEUED_EVENTS + 3)
            .filter(|n| queue.push(event(*n), false))
            .count();
        assert_eq!((fitting, queue.len()), (MAX_QUEUED_EVENTS, MAX_QUEUED_EVENTS));
        assert!(
            queue.push(event(MAX_QUEUED_EVENTS + 3), true),
            "all sessions end at a stop"
        );
        assert_eq!(queue.pop().await, event(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_idle_after_its_last_event_is_delivered() {
        let queue = EventQueue::default();
        queue.wait_until_idle().await;
        queue.push(
            WebhookEvent {
                event_type: WebhookEventType::StreamLive,
                time: SystemTime::UNIX_EPOCH,
                data: json!(0),
            },
            false,
        );
        let is_idle = async || timeout(Duration::from_secs(1), queue.wait_until_idle()).await.is_ok();
        assert!(!is_idle().await, "it waits");
        queue.pop().await;
        assert!(!is_idle().await && queue.undelivered() == 1, "it is being delivered");
        let next = timeout(Duration::from_secs(1), queue.pop());
        let (next, ()) = tokio::join!(next, queue.wait_until_idle());
        assert!(next.is_err());
    }
}
