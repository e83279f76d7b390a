//! LogConfig output, export by OTLP, and HTTP counters.

mod log_queue;

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_core::shard::counters::Histogram;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use self::log_queue::LogQueue;
pub use self::log_queue::{dropped_log_line_count, flush_and_stop_logging};
use crate::config::{LogConfig, LogFormat};

/// Exports to a collector; see [`TelemetryExports::flush_and_stop_with_logging`].
#[must_use]
#[derive(Default)]
pub struct TelemetryExports {
    #[cfg(feature = "otlp")]
    otlp: Option<otlp::OtlpProviders>,
}

impl TelemetryExports {
    /// Exports and writes what is queued. Call it at the end, outside of the runtime.
    pub fn flush_and_stop_with_logging(self) {
        #[cfg(feature = "otlp")]
        if let Some(providers) = self.otlp {
            providers.flush_and_stop_otlp();
        }
        flush_and_stop_logging();
    }
}

/// Target of request spans. Only collectors get them; the log has a line per request at `debug`.
pub const REQUEST_SPAN_TARGET: &str = "millstream::spans";

/// Starts logging to standard error, and to a collector if one is configured. Only the first call in a process has an
/// effect.
pub fn init_telemetry(log: &LogConfig) -> TelemetryExports {
    // The configuration has validated the directives. They may override the quietened target.
    let filter =
        |more: &str| EnvFilter::builder().parse_lossy(format!("{PROTOCOL_STACK_LOG_DIRECTIVES},{}{more}", log.level));
    let queue = LogQueue::start(std::io::stderr());
    queue.install();
    install_panic_logger();
    let layer = tracing_subscriber::fmt::layer()
        // Colours for terminals only, not for a log file or the journal.
        .with_ansi(std::io::stderr().is_terminal())
        // It would report a failed write with `eprintln!`, which panics if standard error is closed.
        .log_internal_errors(false)
        .with_writer(queue);
    let without_spans = filter(&format!(",{REQUEST_SPAN_TARGET}=off"));
    let shown = match log.format {
        LogFormat::Text => layer.with_filter(without_spans).boxed(),
        LogFormat::Json => layer.json().with_filter(without_spans).boxed(),
    };
    let registry = tracing_subscriber::registry().with(shown);
    #[cfg(feature = "otlp")]
    if let Some(url) = &log.otlp {
        return match otlp::OtlpProviders::new(url) {
            Ok(providers) => {
                // Events of the export itself would cause further exports.
                let exported =
                    filter(",hyper=off,hyper_util=off,reqwest=off,rustls=off,opentelemetry=off,opentelemetry_sdk=off");
                let spans = EnvFilter::new(format!("off,{REQUEST_SPAN_TARGET}=info"));
                let registry = registry.with(providers.otlp_log_layer().with_filter(exported));
                let _ = registry.with(providers.otlp_span_layer().with_filter(spans)).try_init();
                TelemetryExports { otlp: Some(providers) }
            }
            Err(error) => {
                let _ = registry.try_init();
                tracing::error!(%error, "OTLP export (log.otlp) cannot be started: logs and spans are not exported");
                TelemetryExports::default()
            }
        };
    }
    let _ = registry.try_init();
    TelemetryExports::default()
}

/// Logs panics. The default hook would write to standard error and block if nobody reads it.
fn install_panic_logger() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = message.unwrap_or("panic without a message");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        tracing::error!(
            thread,
            location,
            message,
            "thread panicked: this is a bug in the gateway"
        );
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
    pub(super) struct OtlpProviders {
        log_provider: SdkLoggerProvider,
        span_provider: SdkTracerProvider,
    }

    impl OtlpProviders {
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
                log_provider: SdkLoggerProvider::builder()
                    .with_batch_exporter(events.build()?)
                    .with_resource(resource.clone())
                    .build(),
                span_provider: SdkTracerProvider::builder()
                    .with_batch_exporter(spans.build()?)
                    .with_resource(resource)
                    .build(),
            })
        }

        /// Returns the layer that exports log events.
        pub(super) fn otlp_log_layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
            OpenTelemetryTracingBridge::new(&self.log_provider)
        }

        /// Returns the layer that exports spans.
        pub(super) fn otlp_span_layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
            tracing_opentelemetry::layer().with_tracer(self.span_provider.tracer("millstream"))
        }

        /// Exports what is queued, within a few seconds.
        pub(super) fn flush_and_stop_otlp(self) {
            for result in [self.log_provider.shutdown(), self.span_provider.shutdown()] {
                if let Err(error) = result {
                    tracing::warn!(
                        %error,
                        "OTLP export (log.otlp) failed at shutdown: log events or spans that were queued are lost"
                    );
                }
            }
        }
    }
}

/// The DTLS stack warns about each missing server name, which WebRTC does not use. The SCTP stack logs an error for each
/// packet that it refuses, and peers decide how many they send.
const PROTOCOL_STACK_LOG_DIRECTIVES: &str = "rtc_dtls=error,sctp_proto=off";

/// Why the HTTP side rejected something, by the limit that was reached. A label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReachedHttpLimit {
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
    /// The limit of the operating system on open files.
    OpenFiles,
}

impl ReachedHttpLimit {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 6] = [
        Self::ConnectionsPerAddress,
        Self::RequestRate,
        Self::FailureRate,
        Self::WebhookQueue,
        Self::ResponseUnread,
        Self::OpenFiles,
    ];

    /// Returns the label.
    pub fn label(self) -> &'static str {
        match self {
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::RequestRate => "request_rate",
            Self::FailureRate => "failure_rate",
            Self::WebhookQueue => "webhook_queue",
            Self::ResponseUnread => "response_unread",
            Self::OpenFiles => "open_files",
        }
    }
}

/// A part of the HTTP interface, by the first segment of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpEndpoint {
    Whip,
    Whep,
    Talk,
    Session,
    Hls,
    Api,
    /// Pages, probes, metrics and unknown paths.
    Other,
}

impl HttpEndpoint {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::Whip,
        Self::Whep,
        Self::Talk,
        Self::Session,
        Self::Hls,
        Self::Api,
        Self::Other,
    ];

    /// Returns the endpoint that serves a path.
    pub fn of_path(path: &str) -> Self {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let endpoint = Self::ALL.into_iter().find(|endpoint| endpoint.label() == first);
        endpoint.unwrap_or(Self::Other)
    }

    /// Returns the label: the first segment of the path, or `other`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Whip => "whip",
            Self::Whep => "whep",
            Self::Talk => "talk",
            Self::Session => "session",
            Self::Hls => "hls",
            Self::Api => "api",
            Self::Other => "other",
        }
    }
}

/// Bounds of the time to a response: 1 ms to 10 s, the longest that a request of LL-HLS waits.
const REQUEST_DURATION_BOUNDS_US: [u64; 9] = [
    1_000, 5_000, 25_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
];

/// Time from requests to their responses.
pub type RequestDurations = Histogram<{ REQUEST_DURATION_BOUNDS_US.len() }>;

/// HTTP responses by class of status, their times, and rejections.
#[derive(Debug)]
pub struct HttpCounters {
    responses_by_class: [AtomicU64; HttpCounters::STATUS_CLASSES.len()],
    request_durations: [RequestDurations; HttpEndpoint::ALL.len()],
    rejections: [AtomicU64; ReachedHttpLimit::ALL.len()],
}

impl Default for HttpCounters {
    fn default() -> Self {
        Self {
            responses_by_class: Default::default(),
            request_durations: std::array::from_fn(|_| Histogram::new(&REQUEST_DURATION_BOUNDS_US)),
            rejections: Default::default(),
        }
    }
}

impl HttpCounters {
    /// Labels of the classes, by the first digit of the status minus one.
    pub const STATUS_CLASSES: [&'static str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

    /// Counts a response, whose header was ready after this time.
    pub fn count_response(&self, endpoint: HttpEndpoint, status: u16, took: Duration) {
        if let Some(durations) = self.request_durations.get(endpoint as usize) {
            durations.record(took);
        }
        let class = usize::from(status / 100).checked_sub(1);
        if let Some(counter) = class.and_then(|class| self.responses_by_class.get(class)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the times from requests to their responses, by endpoint.
    pub fn request_durations(&self) -> impl Iterator<Item = (HttpEndpoint, &RequestDurations)> {
        HttpEndpoint::ALL.into_iter().zip(&self.request_durations)
    }

    /// Returns the responses by class.
    pub fn responses_by_class(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self
            .responses_by_class
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed));
        Self::STATUS_CLASSES.into_iter().zip(counts)
    }

    /// Counts a rejection.
    pub fn count_rejection(&self, rejection: ReachedHttpLimit) {
        if let Some(counter) = self.rejections.get(rejection as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the rejections by reason.
    pub fn rejections(&self) -> impl Iterator<Item = (ReachedHttpLimit, u64)> + '_ {
        let counts = self.rejections.iter().map(|counter| counter.load(Ordering::Relaxed));
        ReachedHttpLimit::ALL.into_iter().zip(counts)
    }
}
