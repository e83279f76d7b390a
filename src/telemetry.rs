//! Log output, and what the control plane counts.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Sends log events to standard error from here on. Only the first call in a process has an effect.
pub fn init(log: &Log) {
    // The directives were checked when the configuration was read; they may name the quietened target again.
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIETENED},{}", log.level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colours are for people: a log file or the journal gets none.
        .with_ansi(std::io::stderr().is_terminal())
        // Of a line that nobody takes, it would tell by `eprintln!`, which panics when standard error is gone.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// The DTLS stack warns about each missing server name, which WebRTC does not use.
const QUIETENED: &str = "rtc_dtls=error";

/// HTTP responses by class of status. All only rise.
#[derive(Debug, Default)]
pub struct HttpCounters {
    classes: [AtomicU64; HttpCounters::CLASSES.len()],
}

impl HttpCounters {
    /// Labels of the classes; the first digit of a status, less one, is the index.
    pub const CLASSES: [&'static str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

    /// Counts a response.
    pub fn responded(&self, status: u16) {
        let class = usize::from(status / 100).checked_sub(1);
        if let Some(counter) = class.and_then(|class| self.classes.get(class)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Responses by class.
    pub fn by_class(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.classes.iter().map(|counter| counter.load(Ordering::Relaxed));
        Self::CLASSES.into_iter().zip(counts)
    }
}
