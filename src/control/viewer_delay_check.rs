//! Observes the delays of all viewers once a second: for the metrics, and for alarms, which are logged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::ControlPlane;
use super::viewer_delays::{DelayAlarmChange, DelayPart};
use millstream_core::hub::changes::ChangeTopic;

/// The media plane renews what it has measured as often.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Alarms of one check that are logged with their viewers; of more only the number is. All viewers of a publisher may be late
/// at the same time.
const MAX_LOGGED_ALARMS_PER_CHECK: usize = 20;

/// Checks all viewers until the gateway stops.
pub async fn check_viewer_delays_periodically(control: Arc<ControlPlane>) {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        check_viewer_delays(&control, now.into_std());
    }
}

fn check_viewer_delays(control: &ControlPlane, now: Instant) {
    let measured = control.media_plane.all_viewer_delays();
    let threshold = control.client_settings().delay_alarm;
    let histograms = &control.viewer_delay_histograms;
    let changes = control
        .sessions
        .observe_viewer_delays(now, &measured, threshold, |delays| histograms.record(delays));
    for change in changes.iter().take(MAX_LOGGED_ALARMS_PER_CHECK) {
        log_alarm_change(change);
    }
    let others = changes.len().saturating_sub(MAX_LOGGED_ALARMS_PER_CHECK);
    if others > 0 {
        warn!(
            viewers = others,
            "delay alarms of further viewers began or ended at the same time"
        );
    }
    for change in changes {
        let changed = ChangeTopic::Session(change.session);
        control.media_plane.hub().change_notifier().notify(&changed);
    }
}

fn log_alarm_change(change: &DelayAlarmChange) {
    let milliseconds = |part| change.delays.part(part).map(|delay| delay.as_millis());
    let (capture_to_gateway, gateway) = (
        milliseconds(DelayPart::CaptureToGateway),
        milliseconds(DelayPart::Gateway),
    );
    let (network, player) = (milliseconds(DelayPart::Network), milliseconds(DelayPart::Player));
    let total = change.delays.total().map(|total| total.as_millis());
    let (session, stream) = (change.session, &change.stream);
    match change.alarm {
        Some(alarm) => {
            let alarm = alarm.label();
            warn!(
                ?session, %stream, alarm, total, capture_to_gateway, gateway, network, player,
                "the delay of a viewer is high or has risen; its known parts are in milliseconds"
            );
        }
        None => info!(?session, %stream, total, "the delay alarm of a viewer has ended"),
    }
}
