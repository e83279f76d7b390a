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

/// Alarms that are logged with their viewers in each [`LOG_WINDOW`]; of more only the number is. All viewers of a publisher may
/// be late at the same time, and players may report what they like.
const MAX_LOGGED_ALARMS_PER_WINDOW: usize = 20;

const LOG_WINDOW: Duration = Duration::from_secs(60);

/// Limits the log lines about alarms.
#[derive(Debug, Default)]
struct AlarmLogLimit {
    /// Since when alarms are counted.
    window_start: Option<Instant>,
    alarm_count: usize,
}

impl AlarmLogLimit {
    /// Returns how many alarms were left out of a window that has ended.
    fn start_window_if_due(&mut self, now: Instant) -> usize {
        let is_running = |start| now.saturating_duration_since(start) < LOG_WINDOW;
        if self.window_start.is_some_and(is_running) {
            return 0;
        }
        self.window_start = Some(now);
        std::mem::take(&mut self.alarm_count).saturating_sub(MAX_LOGGED_ALARMS_PER_WINDOW)
    }

    /// Whether one more alarm may be logged.
    fn allow_alarm(&mut self) -> bool {
        self.alarm_count += 1;
        self.alarm_count <= MAX_LOGGED_ALARMS_PER_WINDOW
    }
}

/// Checks all viewers until the gateway stops.
pub async fn check_viewer_delays_periodically(control: Arc<ControlPlane>) {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut log_limit = AlarmLogLimit::default();
    loop {
        let now = ticks.tick().await;
        check_viewer_delays(&control, now.into_std(), &mut log_limit);
    }
}

fn check_viewer_delays(control: &ControlPlane, now: Instant, log_limit: &mut AlarmLogLimit) {
    let measured = control.media_plane.all_viewer_delays();
    let threshold = control.client_settings().delay_alarm;
    let histograms = &control.viewer_delay_histograms;
    let changes = control
        .sessions
        .observe_viewer_delays(now, &measured, threshold, |delays| histograms.record(delays));
    let left_out = log_limit.start_window_if_due(now);
    if left_out > 0 {
        warn!(
            alarms = left_out,
            "further delay alarms of viewers began or ended within a minute, and are not logged one by one"
        );
    }
    for change in changes.iter().filter(|_| log_limit.allow_alarm()) {
        log_alarm_change(change);
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    #[test]
    fn alarms_that_come_without_end_are_counted_and_not_all_logged() {
        let (mut limit, t) = (AlarmLogLimit::default(), Instant::now());
        let (mut logged, mut left_out) = (0, 0);
        for second in 0..=120 {
            left_out += limit.start_window_if_due(t + second * CHECK_INTERVAL);
            logged += (0..10).filter(|_| limit.allow_alarm()).count();
        }
        assert_eq!((logged, left_out), (50, 1_160));
        assert_eq!(
            limit.start_window_if_due(t + 10 * LOG_WINDOW),
            0,
            "the last ten had a line"
        );
    }
}
