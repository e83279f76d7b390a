//! Starts the media plane on one port number for UDP and TCP, and accepts media over TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::debug;

use super::start_error::GatewayStartError;
use crate::config::{Config, LimitsConfig};
use crate::doctor::ports::{BindFailure, TransportProtocol};
use crate::http::forwarded_headers::TrustedProxies;
use crate::http::server::{self, ListenerLimits};
use crate::shard::{MediaPlane, MediaPlaneSettings, MediaPlaneStartError, SessionLimits, watchdog};
use millstream_core::hub::data_settings::DataSettings;
use millstream_core::session::identity::DtlsIdentity;

/// Starts media on the same port number for UDP and TCP. If the kernel chooses the number, it may be free for one of
/// them only, so that several attempts are made.
pub(super) fn start_media_on_same_udp_and_tcp_port(
    config: &Config,
    identity: &Arc<DtlsIdentity>,
) -> Result<(MediaPlane, Option<TcpListener>), GatewayStartError> {
    let mut attempts = if config.webrtc.listen.port() == 0 { 16 } else { 1 };
    loop {
        attempts -= 1;
        match bind_and_start_media(config, identity) {
            Err(GatewayStartError::Bind(failure)) if attempts > 0 && failure.is_in_use => {}
            started => return started,
        }
    }
}

fn bind_and_start_media(
    Config {
        webrtc: config, limits, ..
    }: &Config,
    identity: &Arc<DtlsIdentity>,
) -> Result<(MediaPlane, Option<TcpListener>), GatewayStartError> {
    let failed = |error: io::Error| {
        let failure = BindFailure::new("webrtc.listen", TransportProtocol::Tcp, config.listen, &error);
        GatewayStartError::from(failure)
    };
    let bind = || server::bind_tokio_listener(config.listen).map_err(failed);
    let tcp = config.tcp.then(bind).transpose()?;
    let mut listen = config.listen;
    if let Some(tcp) = &tcp {
        listen.set_port(tcp.local_addr().map_err(failed)?.port());
    }
    let settings = |listen| MediaPlaneSettings {
        listen,
        announced_addresses: config.announce.clone(),
        shard_count: config.shards,
        viewer_congestion_control: config.congestion_control,
        viewer_playout_delay: config.playout_delay,
        data_settings: DataSettings {
            is_enabled: config.data_channels,
            retained_messages: config.retained_messages,
            viewer_messages: config.viewer_messages,
        },
        session_limits: SessionLimits {
            max_sessions: config.max_sessions,
            max_half_open: limits.half_open_sessions,
            half_open_reserved_for_token_holders: limits.half_open_reserved,
            max_half_open_per_address: limits.half_open_per_address,
        },
        connect_timeout: config.connect_timeout,
        fatal_stall_timeout: watchdog::FATAL_STALL_TIMEOUT,
    };
    let started = match MediaPlane::start(settings(listen), identity.clone()) {
        Err(MediaPlaneStartError::Bind { address, source }) => match server::ipv4_fallback_if_no_ipv6(address) {
            Some(address) => MediaPlane::start(settings(address), identity.clone()),
            None => Err(MediaPlaneStartError::Bind { address, source }),
        },
        started => started,
    };
    let media = started.map_err(|error| match error {
        MediaPlaneStartError::Bind { address, source } => {
            BindFailure::new("webrtc.listen", TransportProtocol::Udp, address, &source).into()
        }
        error => GatewayStartError::Media(error),
    })?;
    Ok((media, tcp))
}

/// Accepts media over TCP (RFC 6544).
pub(super) fn accept_ice_tcp(
    listener: TcpListener,
    media: &MediaPlane,
    limits: &LimitsConfig,
    stop: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    media.enable_tcp_candidates();
    let media = media.clone();
    let serve = move |stream, peer| {
        let media = media.clone();
        async move {
            let reason = media.serve_tcp_connection(stream, peer).await;
            debug!(%peer, ?reason, "WebRTC media connection over TCP ended");
        }
    };
    let limits = ListenerLimits::new(limits, TrustedProxies::default());
    // Media has no health checks: connections wait until there are descriptors again.
    let serve_reserved = None::<fn(TcpStream, SocketAddr) -> std::future::Ready<()>>;
    server::accept_and_serve_connections(listener, limits, |_| {}, stop, (serve, serve_reserved))
}
