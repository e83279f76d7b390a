//! The whole gateway: starts its parts in order, and stops them in reverse order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, info, warn};

use self::parts::Parts;
use crate::access::Access;
use crate::config::{self, Config, ConfigError, Reload, Secret};
use crate::control::Control;
use crate::control::packaging::PackagedStreams;
use crate::control::policy::ClientPolicy;
use crate::control::reload::{ReloadReply, Reloaded, Reloads};
use crate::control::sessions::SessionTable;
use crate::doctor::ports::{BindFailure, Protocol};
use crate::doctor::{self, Level};
use crate::http::forwarded::TrustedProxies;
use crate::http::server::{ListenerLimits, ServerOptions};
use crate::http::tls::{Certificate, TlsError};
use crate::http::{self, HttpState, api, server};
use crate::outputs::hls::service::Service;
use crate::pipeline::programs::WorkerPrograms;
use crate::shard::{MediaPlane, SessionLimits, SessionState, Settings, StartError, discovery, watchdog};
use crate::sources::fetch::directory::Directory;
use crate::telemetry;
use crate::transcode;
use millstream_core::hub::name::StreamName;
use millstream_core::session::identity::Identity;
use millstream_core::session::{CloseReason, SessionError};

pub mod banner;
pub mod check;
pub mod health;
pub mod parts;
pub mod reload;
pub mod run;

/// A running gateway.
pub struct Gateway {
    state: HttpState,
    http: SocketAddr,
    stop_http: watch::Sender<bool>,
    server: JoinHandle<()>,
    /// Media over TCP, STUN, token expiry, events of the API, and the report of dropped log lines.
    tasks: JoinSet<()>,
    /// Starts and stops transcodes on demand.
    transcoding: Option<JoinHandle<()>>,
    generated_token: Option<Secret>,
    /// The token for publishing if none is configured.
    publish: Secret,
    /// The current configuration.
    config: Config,
    /// The programs of the workers.
    programs: WorkerPrograms,
    reload_requests: Option<mpsc::Receiver<ReloadReply>>,
}

/// Why the gateway did not start. Each text contains the configuration key to change.
#[derive(Debug, Error)]
pub enum GatewayError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bind(Box<BindFailure>),
    #[error("webrtc.listen: {0}")]
    Media(#[source] StartError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Identity(#[from] SessionError),
}

impl From<BindFailure> for GatewayError {
    fn from(failure: BindFailure) -> Self {
        Self::Bind(Box::new(failure))
    }
}

/// How long requests may take to end when the gateway stops.
const HTTP_GRACE: Duration = Duration::from_secs(2);
/// How long the shards may take to end.
const MEDIA_GRACE: Duration = Duration::from_secs(3);

impl Gateway {
    /// Starts media, then HTTP. The ports are bound when this returns.
    ///
    /// # Errors
    ///
    /// A [`GatewayError`]; nothing keeps running.
    pub async fn start(config: Config) -> Result<Self, GatewayError> {
        Self::start_with_workers(config, WorkerPrograms::installed()).await
    }

    /// Like [`Gateway::start`], with other programs for workers.
    ///
    /// # Errors
    ///
    /// As for [`Gateway::start`].
    pub async fn start_with_workers(config: Config, programs: WorkerPrograms) -> Result<Self, GatewayError> {
        let parts = Parts::build(&config, &programs)?;
        let identity = Arc::new(Identity::generate()?);
        let tls = match (&config.http.tls_certificate, &config.http.tls_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Arc::new(Certificate::read(certificate, key)?)),
            _ => return Err(TlsError::Half.into()),
        };
        let listen = config.http.listen;
        let failed = |error: io::Error| BindFailure::new("http.listen", Protocol::Tcp, listen, &error);
        let listener = server::bind(listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (media, tcp) = start_media(&config, &identity)?;
        let (stop_http, stop) = watch::channel(false);
        let mut tasks = JoinSet::new();
        if let Some(server) = config.webrtc.announce_by_stun.clone() {
            tasks.spawn(discovery::run(media.clone(), server));
        }
        if let Some(listener) = tcp {
            tasks.spawn(media_by_tcp(listener, &media, &config.limits, stop.clone()));
        }
        let configured = parts.credentials.publish.clone();
        let generated_token = configured.is_none().then(generate_token).flatten();
        let Some(publish) = configured.or_else(|| generated_token.clone()) else {
            unreachable!("a generated token consists of allowed characters");
        };
        tasks.spawn(report_dropped_lines());
        let transcoding = if config.pipelines.transcode {
            transcode::start(parts.library, programs.clone(), media.clone()).await
        } else {
            None
        };
        let (reloads, reload_requests) = mpsc::channel(1);
        let control = control(&config, media, reloads, &mut tasks);
        let access = Access::new(parts.credentials, &publish);
        let state = HttpState::new(control.clone(), access, &config);
        let log = Arc::new(api::events::Log::default());
        tasks.spawn(api::events::run(control.clone(), log.clone()));
        let router = http::router(state.clone(), api::router(&state, log));
        let options = ServerOptions {
            limits: ListenerLimits::new(&config.limits, state.proxies.clone()),
            response_timeout: config.limits.response_timeout,
            counters: state.counters.clone(),
            tls,
        };
        let server = tokio::spawn(server::serve(listener, router, options, stop));
        control.supervisor.reconcile(parts.streams, false).await;
        log_findings(&config);
        log_warnings(&config);
        info!(http = %address, webrtc = %control.media.local_addr(), "listening");
        Ok(Self {
            state,
            http: address,
            stop_http,
            server,
            tasks,
            publish,
            config,
            programs,
            reload_requests: Some(reload_requests),
            transcoding,
            generated_token,
        })
    }

    /// Returns the address of the HTTP server.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Returns the media plane.
    pub fn media(&self) -> &MediaPlane {
        &self.state.control.media
    }

    /// Returns the configured streams and their sources.
    pub fn fetched(&self) -> &Directory {
        &self.state.control.sources
    }

    /// The sessions, those that ended within the last minute included.
    pub fn sessions(&self) -> &SessionTable {
        &self.state.control.sessions
    }

    /// Returns the publish token that was generated because none is configured.
    pub fn generated_token(&self) -> Option<&Secret> {
        self.generated_token.as_ref()
    }

    /// Returns the receiver of reload requests from the API, at the first call only.
    pub fn reload_requests(&mut self) -> Option<mpsc::Receiver<ReloadReply>> {
        self.reload_requests.take()
    }

    /// Applies another configuration, except for keys that need a restart. Only sources that have changed are
    /// restarted.
    ///
    /// # Errors
    ///
    /// All mistakes in the configuration. Nothing has changed then.
    pub async fn reload(&mut self, config: Config) -> Result<Reloaded, ConfigError> {
        let parts = Parts::build(&config, &self.programs)?;
        let differs = self.config.difference(&config);
        let affects_sources =
            |key: &&config::Key| ["pipelines.", "sources."].iter().any(|part| key.path.starts_with(part));
        let restarts_all = differs
            .iter()
            .any(|key| key.reload == Reload::Live && affects_sources(key));
        let paths = |reload| {
            let keys = differs.iter().filter(move |key| key.reload == reload);
            keys.map(|key| key.path.to_owned()).collect()
        };
        let control = &self.state.control;
        let publish = parts
            .credentials
            .publish
            .clone()
            .unwrap_or_else(|| self.publish.clone());
        self.state
            .authenticator
            .replace(Access::new(parts.credentials, &publish));
        let revoked = control.sessions.revoke(self.state.authenticator.access());
        let ended = revoked.iter().filter(|session| {
            let state = control.media.end(**session, CloseReason::TokenRevoked);
            matches!(state, SessionState::Connecting | SessionState::Connected)
        });
        let sessions_ended = ended.count();
        control.set_policy(ClientPolicy::new(&config));
        let reconciled = control.supervisor.reconcile(parts.streams, restarts_all).await;
        let names = |streams: Vec<StreamName>| streams.iter().map(ToString::to_string).collect();
        let reloaded = Reloaded {
            changed: paths(Reload::Live),
            needs_restart: paths(Reload::Restart),
            started: names(reconciled.started),
            stopped: names(reconciled.stopped),
            restarted: names(reconciled.restarted),
            sessions_ended,
        };
        info!(?reloaded, "the configuration was reloaded");
        if !reloaded.needs_restart.is_empty() {
            warn!(keys = ?reloaded.needs_restart, "changes of these keys take effect after a restart");
        }
        log_warnings(&config);
        self.config = config;
        Ok(reloaded)
    }

    /// Rejects new sessions from now on. Existing ones continue.
    pub fn drain(&self) {
        self.state.control.drain();
    }

    /// Rejects new sessions and ends all existing ones. The HTTP server ends last, so that clients still get responses.
    pub async fn stop(mut self) {
        self.drain();
        self.state.control.supervisor.end().await;
        if let Some(transcoding) = self.transcoding.take() {
            transcoding.abort();
        }
        let media = self.state.control.media.clone();
        let stopped = tokio::task::spawn_blocking(move || media.stop());
        if tokio::time::timeout(MEDIA_GRACE, stopped).await.is_err() {
            warn!("the shards did not stop in time");
        }
        self.tasks.shutdown().await;
        let _ = self.stop_http.send(true);
        let abort = self.server.abort_handle();
        if tokio::time::timeout(HTTP_GRACE, self.server).await.is_err() {
            abort.abort();
        }
        info!("stopped");
    }
}

/// How often dropped log lines are reported.
const DROPPED_LINES_INTERVAL: Duration = Duration::from_secs(10);

/// Logs how many lines were dropped, as soon as the queue has room.
async fn report_dropped_lines() {
    let mut reported = telemetry::dropped_lines();
    loop {
        tokio::time::sleep(DROPPED_LINES_INTERVAL).await;
        let dropped = telemetry::dropped_lines();
        if dropped > reported {
            warn!(
                lines = dropped - reported,
                "log lines were dropped: standard error is read too slowly"
            );
            reported = dropped;
        }
    }
}

/// Logs the doctor's findings about the host.
fn log_findings(config: &Config) {
    for finding in doctor::at_start(config) {
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        match finding.level {
            Level::Ok => {}
            Level::Warning => info!(remedy, "{}", finding.what),
            Level::Failure => warn!(remedy, "{}", finding.what),
        }
    }
}

/// Logs the warnings of a configuration.
fn log_warnings(config: &Config) {
    for warning in &config.warnings {
        warn!(%warning, "the configuration should be changed");
    }
}

/// Starts media on the same port number for UDP and TCP. If the kernel chooses the number, it may be free for one of
/// them only, so that several attempts are made.
fn start_media(config: &Config, identity: &Arc<Identity>) -> Result<(MediaPlane, Option<TcpListener>), GatewayError> {
    let mut attempts = if config.webrtc.listen.port() == 0 { 16 } else { 1 };
    loop {
        attempts -= 1;
        match try_start_media(config, identity) {
            Err(GatewayError::Bind(failure)) if attempts > 0 && failure.is_in_use => {}
            started => return started,
        }
    }
}

fn try_start_media(
    Config {
        webrtc: config, limits, ..
    }: &Config,
    identity: &Arc<Identity>,
) -> Result<(MediaPlane, Option<TcpListener>), GatewayError> {
    let failed = |error: io::Error| {
        let failure = BindFailure::new("webrtc.listen", Protocol::Tcp, config.listen, &error);
        GatewayError::from(failure)
    };
    let bind = || server::bind(config.listen).map_err(failed);
    let tcp = config.tcp.then(bind).transpose()?;
    let mut listen = config.listen;
    if let Some(tcp) = &tcp {
        listen.set_port(tcp.local_addr().map_err(failed)?.port());
    }
    let settings = |listen| Settings {
        listen,
        announce: config.announce.clone(),
        shards: config.shards,
        sessions: SessionLimits {
            sessions: config.max_sessions,
            half_open: limits.half_open_sessions,
            half_open_reserved: limits.half_open_reserved,
            half_open_per_address: limits.half_open_per_address,
        },
        fatal_stall: watchdog::FATAL_AFTER,
    };
    let started = match MediaPlane::start(settings(listen), identity.clone()) {
        Err(StartError::Bind { address, source }) => match server::without_ipv6(address) {
            Some(address) => MediaPlane::start(settings(address), identity.clone()),
            None => Err(StartError::Bind { address, source }),
        },
        started => started,
    };
    let media = started.map_err(|error| match error {
        StartError::Bind { address, source } => {
            BindFailure::new("webrtc.listen", Protocol::Udp, address, &source).into()
        }
        error => GatewayError::Media(error),
    })?;
    Ok((media, tcp))
}

/// Accepts media over TCP (RFC 6544).
fn media_by_tcp(
    listener: TcpListener,
    media: &MediaPlane,
    limits: &config::Limits,
    stop: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    media.announce_tcp();
    let media = media.clone();
    let serve = move |stream, peer| {
        let media = media.clone();
        async move {
            let reason = media.serve_tcp(stream, peer).await;
            debug!(%peer, ?reason, "media connection over TCP ended");
        }
    };
    let limits = ListenerLimits::new(limits, TrustedProxies::default());
    server::take_connections(listener, limits, |_| {}, stop, serve)
}

/// Makes the control plane, and starts the task that keeps its session table.
fn control(config: &Config, media: MediaPlane, reloads: Reloads, tasks: &mut JoinSet<()>) -> Arc<Control> {
    let forgotten = media.forgotten_sessions();
    let (sessions, expiries) = SessionTable::new(media.clone());
    let sources = Directory::default();
    let hls = Service::new(Arc::new(PackagedStreams {
        media: media.clone(),
        sources: sources.clone(),
    }));
    let control = Control::new(media, sessions, sources, hls, ClientPolicy::new(config), reloads);
    let control = Arc::new(control);
    if let Some(forgotten) = forgotten {
        let control = control.clone();
        tasks.spawn(async move { control.sessions.run(forgotten, expiries).await });
    }
    control
}

/// Returns 128 random bits as 22 characters.
fn generate_token() -> Option<Secret> {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    Secret::new(&URL_SAFE_NO_PAD.encode(bytes))
}
