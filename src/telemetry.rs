//! Log output, export by OTLP, and HTTP counters.

mod queue;

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use self::queue::LogQueue;
pub use self::queue::{dropped_lines, flush};
use crate::config::{Log, LogFormat};

/// Exports to a collector; see [`Exports::finish`].
#[must_use]
#[derive(Default)]
pub struct Exports {
    #[cfg(feature = "otlp")]
    otlp: Option<otlp::Providers>,
}

impl Exports {
    /// Exports and writes what is queued. Call it at the end, outside of the runtime.
    pub fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(providers) = self.otlp {
            providers.finish();
        }
        flush();
    }
}

/// Target of request spans. Only collectors get them; the log has a line per request at `debug`.
pub const SPANS: &str = "millstream::spans";

/// Starts logging to standard error, and to a collector if one is configured. Only the first call in a process has an
/// effect.
pub fn init(log: &Log) -> Exports {
    // The configuration has validated the directives. They may override the quietened target.
    let filter = |more: &str| EnvFilter::builder().parse_lossy(format!("{QUIETENED},{}{more}", log.level));
    let queue = LogQueue::start(std::io::stderr());
    queue.install();
    log_panics();
    let layer = tracing_subscriber::fmt::layer()
        // Colours for terminals only, not for a log file or the journal.
        .with_ansi(std::io::stderr().is_terminal())
        // It would report a failed write with `eprintln!`, which panics if standard error is closed.
        .log_internal_errors(false)
        .with_writer(queue);
    let without_spans = filter(&format!(",{SPANS}=off"));
    let shown = match log.format {
        LogFormat::Text => layer.with_filter(without_spans).boxed(),
        LogFormat::Json => layer.json().with_filter(without_spans).boxed(),
    };
    let registry = tracing_subscriber::registry().with(shown);
    #[cfg(feature = "otlp")]
    if let Some(url) = &log.otlp {
        return match otlp::Providers::new(url) {
            Ok(providers) => {
                // Events of the export itself would cause further exports.
                let exported =
                    filter(",hyper=off,hyper_util=off,reqwest=off,rustls=off,opentelemetry=off,opentelemetry_sdk=off");
                let spans = EnvFilter::new(format!("off,{SPANS}=info"));
                let registry = registry.with(providers.events().with_filter(exported));
                let _ = registry.with(providers.spans().with_filter(spans)).try_init();
                Exports { otlp: Some(providers) }
            }
            Err(error) => {
                let _ = registry.try_init();
                tracing::error!(%error, "log.otlp: the export cannot be started");
                Exports::default()
            }
        };
    }
    let _ = registry.try_init();
    Exports::default()
}

/// Logs panics. The default hook would write to standard error and block if nobody reads it.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = message.unwrap_or("no message");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        tracing::error!(thread, location, message, "panic: this is a bug");
    }));
}

/// Export by OTLP over HTTP.
#[cfg(feature = "otlp")]
mod otlp {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
    use opentelemetry_otlp::{ExporterBuildError, LogExporter, SpanExporter, WithExportConfig as _};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::logs::SdkLoggerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::Subscriber;
    use tracing_subscriber::registry::LookupSpan;

    use super::Layer;

    /// Collects events and spans, and exports them in batches from their own threads.
    pub(super) struct Providers {
        events: SdkLoggerProvider,
        spans: SdkTracerProvider,
    }

    impl Providers {
        /// `url` is the URL of the collector, without a path.
        pub(super) fn new(url: &str) -> Result<Self, ExporterBuildError> {
            let url = url.trim_end_matches('/');
            let resource = Resource::builder().with_service_name("millstream").build();
            let events = LogExporter::builder()
                .with_http()
                .with_endpoint(format!("{url}/v1/logs"));
            let spans = SpanExporter::builder()
                .with_http()
                .with_endpoint(format!("{url}/v1/traces"));
            Ok(Self {
                events: SdkLoggerProvider::builder()
                    .with_batch_exporter(events.build()?)
                    .with_resource(resource.clone())
                    .build(),
                spans: SdkTracerProvider::builder()
                    .with_batch_exporter(spans.build()?)
                    .with_resource(resource)
                    .build(),
            })
        }

        /// Returns the layer that exports log events.
        pub(super) fn events<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
            OpenTelemetryTracingBridge::new(&self.events)
        }

        /// Returns the layer that exports spans.
        pub(super) fn spans<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
            tracing_opentelemetry::layer().with_tracer(self.spans.tracer("millstream"))
        }

        /// Exports what is queued, within a few seconds.
        pub(super) fn finish(self) {
            for result in [self.events.shutdown(), self.spans.shutdown()] {
                if let Err(error) = result {
                    tracing::warn!(%error, "log.otlp: the last events or spans were not exported");
                }
            }
        }
    }
}

/// The DTLS stack warns about each missing server name, which WebRTC does not use.
const QUIETENED: &str = "rtc_dtls=error";

/// Why the HTTP side rejected something, by the limit that was reached. A label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// `limits.connections_per_address`.
    ConnectionsPerAddress,
    /// `limits.requests_per_second`.
    RequestRate,
    /// `limits.failures_per_second`.
    FailureRate,
    /// `limits.webhook_queue`.
    WebhookQueue,
    /// `limits.response_timeout`.
    ResponseUnread,
}

impl Rejection {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 5] = [
        Self::ConnectionsPerAddress,
        Self::RequestRate,
        Self::FailureRate,
        Self::WebhookQueue,
        Self::ResponseUnread,
    ];

    /// Returns the label.
    pub fn label(self) -> &'static str {
        match self {
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::RequestRate => "request_rate",
            Self::FailureRate => "failure_rate",
            Self::WebhookQueue => "webhook_queue",
            Self::ResponseUnread => "response_unread",
        }
    }
}

/// HTTP responses by class of status, and rejections.
#[derive(Debug, Default)]
pub struct HttpCounters {
    classes: [AtomicU64; HttpCounters::CLASSES.len()],
    rejections: [AtomicU64; Rejection::ALL.len()],
}

impl HttpCounters {
    /// Labels of the classes, by the first digit of the status minus one.
    pub const CLASSES: [&'static str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

    /// Counts a response.
    pub fn responded(&self, status: u16) {
        let class = usize::from(status / 100).checked_sub(1);
        if let Some(counter) = class.and_then(|class| self.classes.get(class)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the responses by class.
    pub fn by_class(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.classes.iter().map(|counter| counter.load(Ordering::Relaxed));
        Self::CLASSES.into_iter().zip(counts)
    }

    /// Counts a rejection.
    pub fn rejected(&self, rejection: Rejection) {
        if let Some(counter) = self.rejections.get(rejection as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the rejections by reason.
    pub fn rejections(&self) -> impl Iterator<Item = (Rejection, u64)> + '_ {
        let counts = self.rejections.iter().map(|counter| counter.load(Ordering::Relaxed));
        Rejection::ALL.into_iter().zip(counts)
    }
}
