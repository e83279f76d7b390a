//! The whole gateway: starts its parts in order, and stops them in reverse order.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

use self::background_tasks::{
    release_free_memory_periodically, report_dropped_log_lines, start_event_log_and_webhook_tasks,
};
use self::media_plane::{accept_ice_tcp, start_media_on_same_udp_and_tcp_port};
use self::sources_and_credentials::{SourcesAndCredentials, api_stream_context};
use crate::access::AccessControl;
use crate::config::{Config, Secret};
use crate::control::ControlPlane;
use crate::control::api_streams::ApiStreams;
use crate::control::client_settings::ClientSettings;
use crate::control::failover_groups::run_failover_timeouts;
use crate::control::reload::{ReloadReplySender, ReloadRequestSender};
use crate::control::sessions::SessionTable;
use crate::control::stream_provider::GatewayStreamProvider;
use crate::control::viewer_delay_check::check_viewer_delays_periodically;
use crate::control::worker_limit::find_transcode_worker_owner;
use crate::doctor::ports::{BindFailure, TransportProtocol};
use crate::doctor::{self, FindingLevel};
use crate::http::api::events::EventRecorder;
use crate::http::server::{ListenerLimits, ServerOptions};
use crate::http::tls::{ReloadingCertificate, TlsError};
use crate::http::{self, HttpState, api, server};
use crate::outputs::hls::service::HlsService;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::pipeline::worker_slots::WorkerSlots;
use crate::shard::{MediaPlane, discovery};
use crate::sources::fetch::registry::SourceRegistry;
use crate::transcode::{self, WorkerOwnerLookup};
use millstream_core::session::identity::DtlsIdentity;

pub use self::start_error::GatewayStartError;

mod background_tasks;
pub mod banner;
pub mod config_check;
pub mod discover;
pub mod health;
mod media_plane;
pub mod reload;
mod replace_config;
pub mod run;
pub mod sources_and_credentials;
mod start_error;

/// A running gateway.
pub struct Gateway {
    http_state: HttpState,
    http_address: SocketAddr,
    http_stop_sender: watch::Sender<bool>,
    http_server_task: JoinHandle<()>,
    /// Media over TCP, STUN, token expiry, events of the API, and the report of dropped log lines.
    background_tasks: JoinSet<()>,
    /// Records the events of the API.
    event_recorder: Arc<Mutex<EventRecorder>>,
    /// Starts and stops transcodes on demand.
    transcode_task: Option<JoinHandle<()>>,
    generated_publish_token: Option<Secret>,
    /// The token for publishing if none is configured.
    fallback_publish_token: Secret,
    /// The current configuration.
    config: Config,
    /// The programs of the workers.
    programs: WorkerExecutablesAndProcessSlots,
    reload_request_receiver: Option<mpsc::Receiver<ReloadReplySender>>,
}

/// How long requests may take to end when the gateway stops.
const HTTP_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the shards may take to end.
const SHARD_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long webhooks may take to accept the events that are waiting then, and those of the sessions that have just ended.
const WEBHOOK_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Starts media, then HTTP. The ports are bound when this returns.
    ///
    /// # Errors
    ///
    /// A [`GatewayStartError`]; nothing keeps running.
    pub async fn start(config: Config) -> Result<Self, GatewayStartError> {
        Self::start_with_worker_programs(config, WorkerExecutablesAndProcessSlots::find_installed()).await
    }

    /// Like [`Gateway::start`], with other programs for workers.
    ///
    /// # Errors
    ///
    /// As for [`Gateway::start`].
    pub async fn start_with_worker_programs(
        config: Config,
        mut programs: WorkerExecutablesAndProcessSlots,
    ) -> Result<Self, GatewayStartError> {
        programs.slots = WorkerSlots::new(config.pipelines.worker_slot_limits());
        let mut parts = SourcesAndCredentials::build(&config, &programs)?;
        let api_context = api_stream_context(&config, &parts.pipeline_library, &programs);
        let (api_streams, _) = ApiStreams::read(&config)?;
        parts.configured_sources.extend(api_streams.build_sources(&api_context));
        let identity = Arc::new(DtlsIdentity::generate()?);
        let tls = read_certificate(&config)?;
        let listen = config.http.listen;
        let failed = |error: io::Error| BindFailure::new("http.listen", TransportProtocol::Tcp, listen, &error);
        let listener = server::bind_tokio_listener(listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (media, tcp) = start_media_on_same_udp_and_tcp_port(&config, &identity)?;
        let (stop_http, stop) = watch::channel(false);
        let mut tasks = JoinSet::new();
        if let Some(server) = config.webrtc.announce_by_stun.clone() {
            tasks.spawn(discovery::track_and_announce_public_address(media.clone(), server));
        }
        if let Some(listener) = tcp {
            tasks.spawn(accept_ice_tcp(listener, &media, &config.limits, stop.clone()));
        }
        let configured = parts.credentials.publish_token.clone();
        let generated_token = configured.is_none().then(generate_publish_token).flatten();
        let Some(publish) = configured.or_else(|| generated_token.clone()) else {
            unreachable!("a generated token consists of allowed characters");
        };
        tasks.spawn(report_dropped_log_lines());
        tasks.spawn(release_free_memory_periodically());
        let (reloads, reload_requests) = mpsc::channel(1);
        let control = start_control_plane(
            &config,
            media.clone(),
            reloads,
            (&programs.slots, api_streams),
            &mut tasks,
        );
        tasks.spawn(check_viewer_delays_periodically(control.clone()));
        tasks.spawn(run_failover_timeouts(
            media.clone(),
            control.failover_groups_changed.clone(),
        ));
        let transcoding = if config.pipelines.transcode {
            let owners = transcode_owner_lookup(&control);
            transcode::start_transcoding_service(parts.pipeline_library, programs.clone(), media, owners).await
        } else {
            None
        };
        let access = AccessControl::new(parts.credentials, &publish);
        let access = access.with_issued_tokens(control.api_streams.issued_tokens().clone());
        let state = HttpState::new(control.clone(), access, &config);
        control
            .sessions
            .replace_access_control_and_end_revoked(state.authenticator.access_control());
        let log = Arc::new(api::events::EventLog::default());
        let recorder = start_event_log_and_webhook_tasks(&state, &log, parts.webhook_targets, &mut tasks);
        let router = http::router(state.clone(), api::router(&state, log));
        let options = server_options(&config, &state, tls);
        let server = tokio::spawn(server::serve_listener(listener, router, options, stop));
        control.reconcile_failover_groups(&config.failover_groups);
        control.supervisor.reconcile(parts.configured_sources, false).await;
        *control.api_streams.lock().await = Some(api_context);
        log_doctor_findings(&config);
        log_config_warnings(&config);
        info!(http = %address, webrtc = %control.media_plane.local_addr(), "gateway listening");
        Ok(Self {
            http_state: state,
            http_address: address,
            http_stop_sender: stop_http,
            http_server_task: server,
            background_tasks: tasks,
            event_recorder: recorder,
            fallback_publish_token: publish,
            config,
            programs,
            reload_request_receiver: Some(reload_requests),
            transcode_task: transcoding,
            generated_publish_token: generated_token,
        })
    }

    /// Returns the address of the HTTP server.
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Returns the media plane.
    pub fn media_plane(&self) -> &MediaPlane {
        &self.http_state.control.media_plane
    }

    /// Returns the configured streams and their sources.
    pub fn source_registry(&self) -> &SourceRegistry {
        &self.http_state.control.source_registry
    }

    /// The sessions, those that ended within the last minute included.
    pub fn sessions(&self) -> &SessionTable {
        &self.http_state.control.sessions
    }

    /// Returns the publish token that was generated because none is configured.
    pub fn generated_publish_token(&self) -> Option<&Secret> {
        self.generated_publish_token.as_ref()
    }

    /// Returns the receiver of reload requests from the API, at the first call only.
    pub fn take_reload_request_receiver(&mut self) -> Option<mpsc::Receiver<ReloadReplySender>> {
        self.reload_request_receiver.take()
    }

    /// Rejects new sessions from now on. Existing ones continue.
    pub fn start_draining(&self) {
        self.http_state.control.reject_new_sessions();
    }

    /// Rejects new sessions and ends all existing ones. The HTTP server ends last, so that clients still get responses.
    pub async fn stop(mut self) {
        self.start_draining();
        // None is set by the API any more.
        *self.http_state.control.api_streams.lock().await = None;
        self.http_state.control.supervisor.stop_all().await;
        if let Some(transcoding) = self.transcode_task.take() {
            transcoding.abort();
        }
        let media = self.http_state.control.media_plane.clone();
        let stopped = tokio::task::spawn_blocking(move || media.stop());
        if tokio::time::timeout(SHARD_SHUTDOWN_TIMEOUT, stopped).await.is_err() {
            warn!("media threads (shards) did not stop in time; the gateway continues its shutdown without them");
        }
        self.background_tasks.shutdown().await;
        self.deliver_last_events().await;
        let _ = self.http_stop_sender.send(true);
        let abort = self.http_server_task.abort_handle();
        if tokio::time::timeout(HTTP_SHUTDOWN_TIMEOUT, self.http_server_task)
            .await
            .is_err()
        {
            abort.abort();
        }
        info!("gateway stopped");
    }

    /// Records the events of the end, and waits for the webhooks to accept what waits for them.
    async fn deliver_last_events(&self) {
        let webhooks = &self.http_state.webhooks;
        let lost_before = webhooks.lost_event_count();
        webhooks.begin_stop();
        self.event_recorder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .record_changes();
        let _ = tokio::time::timeout(WEBHOOK_SHUTDOWN_TIMEOUT, webhooks.wait_until_idle()).await;
        let lost = webhooks.lost_event_count() - lost_before + webhooks.undelivered_event_count() as u64;
        if lost > 0 {
            warn!(
                events = lost,
                "events for webhooks not delivered before the gateway stopped; they are lost"
            );
        }
    }
}

/// Logs the doctor's findings about the host.
fn log_doctor_findings(config: &Config) {
    for finding in doctor::run_startup_checks(config) {
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        match finding.level {
            FindingLevel::Ok => {}
            FindingLevel::Warning => info!(remedy, "{}", finding.description),
            FindingLevel::Failure => warn!(remedy, "{}", finding.description),
        }
    }
}

/// Reads the certificate of the HTTP server, if one is configured.
fn read_certificate(config: &Config) -> Result<Option<Arc<ReloadingCertificate>>, TlsError> {
    match (&config.http.tls_certificate, &config.http.tls_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Arc::new(ReloadingCertificate::read(certificate, key)?))),
        _ => Err(TlsError::IncompletePair),
    }
}

/// Returns what the HTTP server needs beside its router.
fn server_options(config: &Config, state: &HttpState, tls: Option<Arc<ReloadingCertificate>>) -> ServerOptions {
    ServerOptions {
        limits: ListenerLimits::new(&config.limits, state.trusted_proxies.clone()),
        response_timeout: config.limits.response_timeout,
        counters: state.counters.clone(),
        tls,
        health_router: http::out_of_descriptors_router(state.clone()),
    }
}

/// Logs the warnings of a configuration.
fn log_config_warnings(config: &Config) {
    for warning in &config.warnings {
        warn!(%warning, "configuration accepted with a warning (see `warning`)");
    }
}

/// Makes the control plane, and starts the task that keeps its session table.
fn start_control_plane(
    config: &Config,
    media: MediaPlane,
    reloads: ReloadRequestSender,
    (worker_slots, api_streams): (&WorkerSlots, ApiStreams),
    tasks: &mut JoinSet<()>,
) -> Arc<ControlPlane> {
    let forgotten = media.take_forgotten_session_receiver();
    let (sessions, expiries) = SessionTable::new(media.clone());
    let sources = SourceRegistry::default();
    let hls = HlsService::new(Arc::new(GatewayStreamProvider {
        media_plane: media.clone(),
        source_registry: sources.clone(),
    }));
    let control = ControlPlane::new(media, sessions, sources, hls, ClientSettings::new(config), reloads);
    let control = control.with_worker_slots(worker_slots.clone());
    let control = Arc::new(control.with_api_streams(api_streams));
    if let Some(forgotten) = forgotten {
        let control = control.clone();
        tasks.spawn(async move {
            control
                .sessions
                .run_session_removal_and_token_expiry(forgotten, expiries)
                .await
        });
    }
    control
}

/// Returns the function that tells for whom a stream is transcoded.
fn transcode_owner_lookup(control: &Arc<ControlPlane>) -> WorkerOwnerLookup {
    let control = control.clone();
    Arc::new(move |stream| find_transcode_worker_owner(&control.sessions, control.media_plane.hub(), stream))
}

/// Returns 128 random bits as 22 characters.
fn generate_publish_token() -> Option<Secret> {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    Secret::new(&URL_SAFE_NO_PAD.encode(bytes))
}
