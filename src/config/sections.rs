//! All sections except `auth` and `streams`: each key with its type, default and meaning.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::secret::Secret;
use super::section::section;
use super::value_parsers::{self, ConfigEnum};
pub use super::value_types::{AllowedOrigins, TurnUser};
use crate::pipeline::worker_slots::WorkerSlotLimits;
use millstream_core::hub::data_settings::ViewerMessageRecipients;
use millstream_core::session::DEFAULT_CONNECT_TIMEOUT;

section! {
    /// HTTP: signalling, pages, the API.
    pub struct HttpConfig("http") {
        /// Address of the HTTP server: pages, signalling, HLS and the API.
        #[key("listen", Restart, "`[::]:8080`", "value_parsers::parse_socket_address")]
        pub listen: SocketAddr = unspecified_ipv6_address(8080),

        /// Origins of web pages that may use the gateway (CORS), such as `["https://example.org"]`.
        #[key("cors_origins", Live, "`*`", "value_parsers::parse_origins")]
        pub cors_origins: AllowedOrigins = AllowedOrigins::Any,

        /// Origins of web pages that may show a stream in a frame, from `/embed/NAME`, such as `["https://example.org"]`; `*`
        /// for all. Other pages of the gateway are never framed by other origins.
        #[key("embed_origins", Live, "none", "value_parsers::parse_origins")]
        pub embed_origins: AllowedOrigins = AllowedOrigins::Listed(Vec::new()),

        /// Networks of reverse proxies, such as `["10.0.0.0/8"]`, whose `Forwarded` or `X-Forwarded-For` is believed. See
        /// Behind a proxy.
        #[key("trusted_proxies", Restart, "none", "value_parsers::parse_networks")]
        pub trusted_proxies: Vec<IpNet> = Vec::new(),

        /// File with a certificate and its chain, in PEM. Enables HTTPS with HTTP/2, and disables plain HTTP. Reloaded
        /// when it changes.
        #[key("tls_certificate", Restart, "none: HTTP", "value_parsers::parse_path")]
        pub tls_certificate: Option<PathBuf> = None,

        /// File with the private key of the certificate, in PEM.
        #[key("tls_key", Restart, "none", "value_parsers::parse_path")]
        pub tls_key: Option<PathBuf> = None,

        /// Reject a PATCH without `If-Match` with 428 (RFC 9725 §4.3.1). Several clients omit it with trickled
        /// candidates.
        #[key("strict_preconditions", Live, "`false`", "value_parsers::parse_bool")]
        pub strict_preconditions: bool = false,

        /// When a viewer's offer is answered by 406 with a counter-offer (WHEP §4.3.2): `never`, `when_needed` (the
        /// offer cannot be accepted) or `always`.
        #[key("counter_offer", Live, "`never`", "value_parsers::parse_config_enum")]
        pub counter_offer: CounterOfferMode = CounterOfferMode::Never,

        /// Answer an empty POST of a viewer with an offer, for players that implement the WHEP draft of 2022.
        #[key("legacy_server_offer", Live, "`false`", "value_parsers::parse_bool")]
        pub legacy_server_offer: bool = false,

        /// Seconds that a viewer's POST waits for a publisher, 0 to 60. With 0 the response is an immediate 409.
        #[key("wait_for_publisher", Live, "`0`", "value_parsers::parse_whole_seconds::<0, 60, _, _>")]
        pub wait_for_publisher: Duration = Duration::ZERO,
    }
}

section! {
    /// Media of publishers and viewers.
    pub struct WebRtcConfig("webrtc") {
        /// Address of media: UDP, and TCP on the same port.
        #[key("listen", Restart, "`[::]:8189`", "value_parsers::parse_socket_address")]
        pub listen: SocketAddr = unspecified_ipv6_address(8189),

        /// IP addresses of the ICE candidates, at most 16. Set the public address behind NAT.
        #[key("announce", Restart, "the host's own addresses", "value_parsers::parse_announced_ip_addresses")]
        pub announce: Vec<IpAddr> = Vec::new(),

        /// STUN server such as `stun.example.org:3478`. The public address that it reports is announced first, and
        /// updated when it changes.
        #[key("announce_by_stun", Restart, "none", "value_parsers::parse_host_and_port")]
        pub announce_by_stun: Option<String> = None,

        /// Accept media over TCP too, for networks that block UDP.
        #[key("tcp", Restart, "`true`", "value_parsers::parse_bool")]
        pub tcp: bool = true,

        /// Adapt what each viewer is sent to its path, by transport-wide congestion feedback.
        #[key("congestion_control", Restart, "`true`", "value_parsers::parse_bool")]
        pub congestion_control: bool = true,

        /// Have viewers whose packets are lost wait for the retransmissions, by the header extension `playout-delay`. Without
        /// loss they are not delayed.
        #[key("playout_delay", Restart, "`true`", "value_parsers::parse_bool")]
        pub playout_delay: bool = true,

        /// Accept data channels of publishers and viewers (docs/data.md).
        #[key("data_channels", Restart, "`true`", "value_parsers::parse_bool")]
        pub data_channels: bool = true,

        /// Number of data channel messages of each label that viewers get who join, 0 to 1000, and 64 KiB at most.
        #[key("retained_messages", Restart, "`1`", "value_parsers::parse_whole_number_within::<0, 1_000, _, _>")]
        pub retained_messages: usize = 1,

        /// Who gets the data channel messages of viewers: `off` (nobody), `publisher`, or `all` (the publisher and all
        /// viewers of the stream).
        #[key("viewer_messages", Restart, "`off`", "value_parsers::parse_config_enum")]
        pub viewer_messages: ViewerMessageRecipients = ViewerMessageRecipients::Off,

        /// Media threads, 0 to 64. 0 starts one per processor.
        #[key("shards", Restart, "`0`", "value_parsers::parse_whole_number_within::<0, 64, _, _>")]
        pub shards: usize = 0,

        /// Maximum number of publishers and viewers, 0 to 1000000. Further ones get 503.
        #[key("max_sessions", Restart, "`10000`", "value_parsers::parse_whole_number_within::<0, 1_000_000, _, _>")]
        pub max_sessions: usize = 10_000,

        // Half a minute is what a person waits; a peer that works needs less than two seconds, also by a relay.
        /// Seconds from the offer to the end of the DTLS handshake, 1 to 60. A session that is not connected by then
        /// ends.
        #[key("connect_timeout", Restart, "`15`", "value_parsers::parse_whole_seconds::<1, 60, _, _>")]
        pub connect_timeout: Duration = DEFAULT_CONNECT_TIMEOUT,
    }
}

section! {
    /// STUN and TURN servers for peers (RFC 9725 §4.6).
    pub struct IceConfig("ice") {
        /// URLs of STUN and TURN servers for publishers and viewers, at most 8, such as
        /// `["turn:turn.example.org:3478"]` (RFC 7064, RFC 7065).
        #[key("servers", Live, "none", "value_parsers::parse_ice_server_urls")]
        pub servers: Vec<String> = Vec::new(),

        /// Secret shared with the TURN server (coturn: `static-auth-secret`), from which credentials are generated.
        #[key("turn_secret", Live, "none", "value_parsers::parse_secret", secret)]
        pub turn_secret: Option<Secret> = None,

        /// `name:password` for a TURN server with fixed users, instead of a secret.
        #[key("turn_user", Live, "none", "value_parsers::parse_turn_user", secret)]
        pub turn_user: Option<TurnUser> = None,

        /// Lifetime of generated TURN credentials in seconds, 60 to 3600. A relayed connection may last longer.
        #[key("turn_lifetime", Live, "`3600`", "value_parsers::parse_whole_seconds::<60, 3_600, _, _>")]
        pub turn_lifetime: Duration = Duration::from_secs(3_600),
    }
}

section! {
    /// Limits against floods of requests.
    #[derive(Copy)]
    pub struct LimitsConfig("limits") {
        // A classroom behind one address comes at once when the stream begins; a flood goes on.
        /// Average rate of POST, PUT, PATCH and DELETE requests from one address, per second, 0 to 1000000. 0 sets no limit.
        #[key("requests_per_second", Restart, "`200`", "value_parsers::parse_whole_number_within::<0, 1_000_000, _, _>")]
        pub requests_per_second: u32 = 200,

        /// Burst of such requests from one address, 1 to 1000000.
        #[key("request_burst", Restart, "`2000`", "value_parsers::parse_whole_number_within::<1, 1_000_000, _, _>")]
        pub request_burst: u32 = 2_000,

        // The burst is that of a person who tries several.
        /// Average rate of requests with a wrong or expired token from one address, per second, 0 to 1000000. Further
        /// ones get 429; right tokens pass. 0 sets no limit.
        #[key("failures_per_second", Restart, "`1`", "value_parsers::parse_whole_number_within::<0, 1_000_000, _, _>")]
        pub failures_per_second: u32 = 1,

        /// Burst of such requests from one address, 1 to 1000000.
        #[key("failure_burst", Restart, "`20`", "value_parsers::parse_whole_number_within::<1, 1_000_000, _, _>")]
        pub failure_burst: u32 = 20,

        /// Maximum number of open HTTP connections, 1 to 1000000. Further ones wait.
        #[key("connections", Restart, "`4096`", "value_parsers::parse_whole_number_within::<1, 1_000_000, _, _>")]
        pub connections: usize = 4_096,

        // An office or a proxy has many viewers behind one address, but no address may use up the limit.
        /// Maximum number of open HTTP connections from one address (IPv6: /64; twice as many from a /48), 1 to
        /// 1000000. Further ones get 503. Trusted proxies are exempt.
        #[key("connections_per_address", Restart, "`512`", "value_parsers::parse_whole_number_within::<1, 1_000_000, _, _>")]
        pub connections_per_address: usize = 512,

        // A well-behaved peer is half-open for a fraction of a second. Each such session takes about 10 kB.
        /// Maximum number of sessions between offer and DTLS handshake (half-open), 1 to 100000. See Floods of offers.
        #[key("half_open_sessions", Restart, "`4096`", "value_parsers::parse_whole_number_within::<1, 100_000, _, _>")]
        pub half_open_sessions: usize = 4_096,

        // An eighth of all, and more than join at the same time behind one NAT.
        /// Maximum number of half-open sessions from one address (IPv6: /64; twice as many from a /48), 1 to 100000,
        /// counted separately with and without a token.
        #[key("half_open_per_address", Restart, "`512`", "value_parsers::parse_whole_number_within::<1, 100_000, _, _>")]
        pub half_open_per_address: usize = 512,

        /// Additional half-open sessions that are reserved for requests with a token, 0 to 100000.
        #[key("half_open_reserved", Restart, "`512`", "value_parsers::parse_whole_number_within::<0, 100_000, _, _>")]
        pub half_open_reserved: usize = 512,

        /// Seconds that an HTTP client may leave a response unread, 1 to 600. Then HTTP/2 resets the response, and other
        /// connections are closed. A client that reads less than 32 KiB in that time counts as one that does not read.
        #[key("response_timeout", Restart, "`20`", "value_parsers::parse_whole_seconds::<1, 600, _, _>")]
        pub response_timeout: Duration = Duration::from_secs(20),

        /// Maximum number of open requests to the authorization webhook, 1 to 10000. Further ones wait, at most for
        /// `auth.webhook_timeout`.
        #[key("webhook_requests", Live, "`64`", "value_parsers::parse_whole_number_within::<1, 10_000, _, _>")]
        pub webhook_requests: usize = 64,

        /// Additional such requests that are reserved for publishing with a token, 0 to 10000.
        #[key("webhook_reserved", Live, "`16`", "value_parsers::parse_whole_number_within::<0, 10_000, _, _>")]
        pub webhook_reserved: usize = 16,

        /// Maximum number of open requests to the webhook for one address (IPv6: /64; twice as many for a /48), 1 to
        /// 10000, counted separately for publishing.
        #[key("webhook_per_address", Live, "`8`", "value_parsers::parse_whole_number_within::<1, 10_000, _, _>")]
        pub webhook_per_address: usize = 8,

        /// Maximum number of requests that wait for the webhook, 0 to 100000, an eighth of them for one address. Further
        /// ones get 503.
        #[key("webhook_queue", Live, "`1024`", "value_parsers::parse_whole_number_within::<0, 100_000, _, _>")]
        pub webhook_queue: usize = 1_024,

        /// Seconds that sessions may continue after SIGTERM, 0 to 30. New ones get 503, and players are asked to
        /// reconnect.
        #[key("drain_seconds", Restart, "`5`", "value_parsers::parse_whole_seconds::<0, 30, _, _>")]
        pub drain: Duration = Duration::from_secs(5),
    }
}

section! {
    /// What is told of the quality that viewers get.
    #[derive(Copy)]
    pub struct QualityConfig("quality") {
        /// Known delay of a viewer in milliseconds, from capture to display, above which an alarm is raised for it, 0 to 60000.
        /// 0 raises none. See docs/quality.md.
        #[key("delay_alarm_ms", Live, "`1000`", "value_parsers::parse_milliseconds_within::<0, 60_000, _, _>")]
        pub delay_alarm: Duration = Duration::from_secs(1),
    }
}

section! {
    /// GStreamer pipelines.
    pub struct PipelineWorkersConfig("pipelines") {
        /// Folder with your own pipeline files. They take precedence over the built-in ones of the same name.
        #[key("folder", Live, "none", "value_parsers::parse_path")]
        pub folder: Option<PathBuf> = None,

        /// Transcode on demand for viewers that cannot play the original format.
        #[key("transcode", Restart, "`true`", "value_parsers::parse_bool")]
        pub transcode: bool = true,

        // A worker takes 60 MB, an encoder at work 100 to 200 MB and much of a processor.
        /// Maximum number of worker processes, 1 to 1000: a configured pipeline or HLS origin has one, and each codec that
        /// a stream is transcoded to. A quarter is left to configured sources, and at most half transcode streams that
        /// were published without a token. Viewers who need a further one get 503.
        #[key("max_workers", Restart, "`64`", "value_parsers::parse_whole_number_within::<1, 1_000, _, _>")]
        pub max_workers: usize = 64,

        /// Maximum number of worker processes that transcode the streams that one address (IPv6: /64; twice as many for a
        /// /48) published without a token, 1 to 1000.
        #[key("max_workers_per_address", Restart, "`8`", "value_parsers::parse_whole_number_within::<1, 1_000, _, _>")]
        pub max_workers_per_address: usize = 8,
    }
}

impl PipelineWorkersConfig {
    /// Returns the limits of the number of worker processes.
    pub fn worker_slot_limits(&self) -> WorkerSlotLimits {
        WorkerSlotLimits {
            max_workers: self.max_workers,
            max_workers_per_address: self.max_workers_per_address,
        }
    }
}

section! {
    /// Networks that streams may be pulled from.
    pub struct SourcesConfig("sources") {
        /// Networks that cameras and other sources must be in, such as `["192.168.0.0/16"]`, also where a camera
        /// redirects to or names another address for its media. Link-local addresses, such as 169.254.0.0/16, only if
        /// they are listed. See docs/sources.md.
        #[key("allow", Live, "all but link-local", "value_parsers::parse_networks")]
        pub allow: Vec<IpNet> = Vec::new(),
    }
}

section! {
    /// LogConfig output.
    pub struct LogConfig("log") {
        /// Format of log lines: `text` or `json`.
        #[key("format", Restart, "`text`", "value_parsers::parse_config_enum")]
        pub format: LogFormat = LogFormat::Text,

        /// Level, or directives such as `info,millstream_core::session=debug`.
        #[key("level", Restart, "`info`", "value_parsers::parse_log_directives")]
        pub level: String = "info".to_owned(),

        /// URL of an OpenTelemetry collector such as `http://localhost:4318`. It receives the log, and a span for each
        /// HTTP request, by OTLP over HTTP.
        #[key("otlp", Restart, "none", "value_parsers::parse_otlp_collector_url")]
        pub otlp: Option<String> = None,
    }
}

fn unspecified_ipv6_address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

impl HttpConfig {
    /// Returns the scheme of the gateway's URLs: `https` if a certificate is configured.
    pub fn scheme(&self) -> &'static str {
        match self.tls_certificate {
            Some(_) => "https",
            None => "http",
        }
    }
}

/// When a viewer gets a counter-offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CounterOfferMode {
    /// Some players misinterpret a 406.
    #[default]
    Never,
    /// If its own offer cannot be accepted.
    WhenNeeded,
    Always,
}

impl ConfigEnum for CounterOfferMode {
    const VALUES_BY_NAME: &'static [(&'static str, Self)] = &[
        ("never", Self::Never),
        ("when_needed", Self::WhenNeeded),
        ("always", Self::Always),
    ];
}

impl ConfigEnum for ViewerMessageRecipients {
    const VALUES_BY_NAME: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("publisher", Self::Publisher), ("all", Self::All)];
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl ConfigEnum for LogFormat {
    const VALUES_BY_NAME: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}
