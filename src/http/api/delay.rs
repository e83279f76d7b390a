//! The delay of a viewer from capture to display, by its parts.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::control::viewer_delays::{DelayAlarm, KnownDelays};
use millstream_core::media::clock::CaptureTimeSource;

/// The delay of a viewer from capture to display, by its parts. A part that is not known is `null`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Delay {
    /// From capture until the last packet of a frame arrives at the gateway. The network delay of the source's fastest sender
    /// report is not in it. `source` is `sender_reports`, or `abs_capture_time` where the publisher sends that header extension.
    pub capture_to_gateway: Option<DelayPart>,
    /// From there until it is sent to this viewer: forwarding, and waiting where the gateway paces. `source` is `measured`.
    pub gateway: Option<DelayPart>,
    /// To the viewer: half of the round-trip time. `source` is `receiver_reports`.
    pub network: Option<DelayPart>,
    /// In the player: jitter buffer and decoder. `source` is `player`: it has reported that within the last 75 s.
    pub player: Option<DelayPart>,
    /// Sum of the known parts, in seconds; `null` while the viewer is sent nothing.
    pub total: Option<f64>,
    /// `high` if `total` is above `quality.delay_alarm_ms`, `rising` if it has risen above its own minimum.
    pub alarm: Option<&'static str>,
}

/// One part of a delay.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = DelayPart)]
pub struct DelayPart {
    pub seconds: f64,
    /// Where it comes from.
    pub source: &'static str,
}

impl Delay {
    /// Describes the known parts.
    pub fn new(delays: &KnownDelays, alarm: Option<DelayAlarm>) -> Self {
        let part = |delay: Duration, source| DelayPart {
            seconds: delay.as_secs_f64(),
            source,
        };
        let measured = &delays.measured;
        Self {
            capture_to_gateway: measured.capture_to_gateway.map(|captured| {
                let source = match captured.source {
                    CaptureTimeSource::SenderReports => "sender_reports",
                    CaptureTimeSource::AbsCaptureTime => "abs_capture_time",
                };
                part(captured.delay, source)
            }),
            gateway: measured.gateway.map(|delay| part(delay, "measured")),
            network: measured.network.map(|delay| part(delay, "receiver_reports")),
            player: delays.player.map(|delay| part(delay, "player")),
            total: delays.total().map(|total| total.as_secs_f64()),
            alarm: alarm.map(DelayAlarm::label),
        }
    }
}
