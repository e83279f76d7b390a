//! Runs a gateway until a signal ends it.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Gateway;
use super::reload::{ConfigLoader, ReloadTrigger, Reloader};

/// The signals that a gateway handles. From their creation on none of them kills the process.
pub struct ProcessSignals {
    /// Stops the gateway once its sessions have ended, or after `limits.drain_seconds`.
    terminate: Signal,
    /// Stops the gateway at once.
    interrupt: Signal,
    /// Reloads the configuration.
    hang_up: Signal,
}

impl ProcessSignals {
    /// # Errors
    ///
    /// If a handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// How often the number of sessions is checked while the gateway drains.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a gateway and reloads its configuration from `source`, until SIGTERM or SIGINT. Then stops the gateway.
pub async fn run_gateway_until_signal(mut gateway: Gateway, source: ConfigLoader, mut signals: ProcessSignals) {
    let drain = gateway.config.limits.drain;
    let mut reloader = Reloader::new(&mut gateway, source);
    let drains = loop {
        let trigger = tokio::select! {
            _ = signals.terminate.recv() => break true,
            _ = signals.interrupt.recv() => break false,
            _ = signals.hang_up.recv() => ReloadTrigger::Signal,
            trigger = reloader.next_file_change_or_api_request() => trigger,
        };
        reloader.reload(&mut gateway, trigger).await;
    };
    if drains {
        gateway.start_draining();
        let sessions_ended = async {
            while gateway.media_plane().session_count() > 0 {
                tokio::time::sleep(DRAIN_CHECK_INTERVAL).await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(drain, sessions_ended) => {}
            // A second signal stops the gateway at once.
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
        }
    }
    gateway.stop().await;
}
