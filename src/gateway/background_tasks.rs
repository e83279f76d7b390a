//! Tasks that run beside the server until the gateway stops: housekeeping of the process, and events for the API and webhooks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::warn;

use crate::http::api::events::EventRecorder;
use crate::http::webhooks::target::WebhookTarget;
use crate::http::{HttpState, api};
use crate::shard::system_calls::process;
use crate::telemetry;

/// How often dropped log lines are reported.
const DROPPED_LOG_LINES_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Logs how many lines were dropped, as soon as the queue has room.
pub(super) async fn report_dropped_log_lines() {
    let mut reported = telemetry::dropped_log_line_count();
    loop {
        tokio::time::sleep(DROPPED_LOG_LINES_REPORT_INTERVAL).await;
        let dropped = telemetry::dropped_log_line_count();
        if dropped > reported {
            warn!(
                lines = dropped - reported,
                "log lines dropped: standard error is read too slowly"
            );
            reported = dropped;
        }
    }
}

/// How often memory that was freed is given back to the system.
const FREE_MEMORY_RETURN_INTERVAL: Duration = Duration::from_secs(15);

/// Gives memory that was freed back to the system, now and then. It takes some microseconds per MiB of free memory.
pub(super) async fn release_free_memory_periodically() {
    loop {
        tokio::time::sleep(FREE_MEMORY_RETURN_INTERVAL).await;
        let _ = tokio::task::spawn_blocking(process::trim_free_heap_memory).await;
    }
}

/// Starts the tasks that record events, and pass them on to webhooks.
pub(super) fn start_event_log_and_webhook_tasks(
    state: &HttpState,
    log: &Arc<api::events::EventLog>,
    targets: Vec<WebhookTarget>,
    tasks: &mut JoinSet<()>,
) -> Arc<Mutex<EventRecorder>> {
    state.webhooks.replace_targets(targets);
    let webhooks = state.webhooks.clone();
    log.set_event_observer(Box::new(move |name, data| {
        webhooks.forward_event_to_webhooks(name, data)
    }));
    let recorder = Arc::new(Mutex::new(EventRecorder::new(state.control.clone(), log.clone())));
    let changes = state.control.media_plane.hub().change_notifier().clone();
    tasks.spawn(api::events::record_events_on_change(recorder.clone(), changes));
    recorder
}
