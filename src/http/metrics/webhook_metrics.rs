//! Metrics of the webhooks that are told of events.

use std::sync::atomic::Ordering;

use super::metrics_text::MetricsText;
use crate::http::webhooks::EventWebhooks;

/// Writes the metrics, if there are webhooks.
pub(super) fn write_webhook_metrics(page: &mut MetricsText, webhooks: &EventWebhooks) {
    let counters = &webhooks.counters;
    page.begin_metric_family(
        "millstream_webhook_events_total",
        "counter",
        "Events for webhooks, by result: delivered, given_up (the webhook rejected the event, the last attempt failed, \
         or the webhook is disabled after it answered 410), dropped (too many were waiting).",
    );
    for (result, counter) in [
        ("delivered", &counters.delivered),
        ("given_up", &counters.given_up),
        ("dropped", &counters.dropped),
    ] {
        page.add_sample_with_label("result", result, counter.load(Ordering::Relaxed));
    }
    page.add_counter(
        "millstream_webhook_failed_attempts_total",
        "Failed attempts to deliver an event to a webhook.",
        counters.failed_attempts.load(Ordering::Relaxed),
    );
    let queued_events = webhooks.queued_event_count();
    page.add_renamed_family(
        ["millstream_webhook_queued_events", "millstream_webhook_queue"],
        "gauge",
        "Events that are queued for delivery to a webhook.",
        |page| page.add_sample(queued_events),
    );
}
