//! Log output, and what the control plane counts.

mod queue;

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use self::queue::LogQueue;
pub use self::queue::{dropped_lines, flush};
use crate::config::{Log, LogFormat};

/// What is under way to a collector; see [`Exports::finish`].
#[must_use]
#[derive(Default)]
pub struct Exports {
    #[cfg(feature = "otlp")]
    otlp: Option<otlp::Providers>,
}

impl Exports {
    /// Sends and writes what is left. Call it outside of the runtime, at the end.
    pub fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(providers) = self.otlp {
            providers.finish();
        }
        flush();
    }
}

/// Target of the spans of requests. They are for collectors; the log has a line for each request, at `debug`.
pub const SPANS: &str = "millstream::spans";

/// Sends log events to standard error, and to a collector where one is configured, from here on. Only the first call in
/// a process has an effect.
pub fn init(log: &Log) -> Exports {
    // The directives were checked when the configuration was read; they may name the quietened target again.
    let filter = |more: &str| EnvFilter::builder().parse_lossy(format!("{QUIETENED},{}{more}", log.level));
    let queue = LogQueue::start(std::io::stderr());
    queue.install();
    log_panics();
    let layer = tracing_subscriber::fmt::layer()
        // Colours are for people: a log file or the journal gets none.
        .with_ansi(std::io::stderr().is_terminal())
        // Of a line that nobody takes, it would tell by `eprintln!`, which panics when standard error is gone.
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
                // What the export itself says would be exported, and so on.
                let mine =
                    filter(",hyper=off,hyper_util=off,reqwest=off,rustls=off,opentelemetry=off,opentelemetry_sdk=off");
                let spans = EnvFilter::new(format!("off,{SPANS}=info"));
                let registry = registry.with(providers.events().with_filter(mine));
                let _ = registry.with(providers.spans().with_filter(spans)).try_init();
                Exports { otlp: Some(providers) }
            }
            Err(error) => {
                let _ = registry.try_init();
                tracing::error!(%error, "log.otlp: nothing is exported");
                Exports::default()
            }
        };
    }
    let _ = registry.try_init();
    Exports::default()
}

/// Panics go to the log: the hook of the standard library writes to standard error, and waits for who reads it.
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

    use super::{Layer, LookupSpan, Subscriber};

    /// Who gathers events and spans, and sends them in batches from threads of their own.
    pub struct Providers {
        events: SdkLoggerProvider,
        spans: SdkTracerProvider,
    }

    impl Providers {
        /// `url` is that of the collector, without a path.
        pub fn new(url: &str) -> Result<Self, ExporterBuildError> {
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

        /// For events of the log.
        pub fn events<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
            OpenTelemetryTracingBridge::new(&self.events)
        }

        /// For spans.
        pub fn spans<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> {
            tracing_opentelemetry::layer().with_tracer(self.spans.tracer("millstream"))
        }

        /// Sends what is left, for some seconds at most.
        pub fn finish(self) {
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
