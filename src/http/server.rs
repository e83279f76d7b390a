//! The HTTP server: a listener, and a task with timeouts and limits for each connection.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::forwarded_headers::TrustedProxies;
use super::http2_idle::OpenHttp2StreamCounter;
use super::limits::PerAddressConnectionLimit;
use super::reserved_descriptors::{self, ReservedDescriptors};
use super::response_timeout::{Http2ResponseBody, Http2StreamExecutor, ResponseObsoleteAfter};
use super::tls::{self, ReloadingCertificate};
use super::write_timeout::WriteTimeoutStream;
use crate::config::LimitsConfig;
use crate::telemetry::{HttpCounters, ReachedHttpLimit};

/// Maximum time for receiving the headers of a request, including the idle time before them.
const REQUEST_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of request headers; above it, the response is 431.
const MAX_REQUEST_HEADER_BYTES: usize = 16 * 1024;
/// Maximum number of concurrent HTTP/2 streams of a connection. Players wait for playlists and parts of several
/// renditions.
const MAX_HTTP2_STREAMS_PER_CONNECTION: u32 = 64;
/// An HTTP/2 connection without an open stream is closed after this time. An LL-HLS player always has an open stream.
const HTTP2_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that an HTTP/2 client has to react to GOAWAY (RFC 9113 §6.8).
const IDLE_TIMEOUT_AFTER_GOAWAY: Duration = Duration::from_secs(1);
/// Interval of HTTP/2 keep-alive pings. A connection whose client does not answer is closed.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Delay after a failed accept: the process may be out of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// How long a connection may have a reserved descriptor, from the accept to the end of the response.
const RESERVED_CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);
/// How long accepted connections must have reserved descriptors before that is logged again.
const OUT_OF_DESCRIPTORS_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long and how much is read from a connection after the server has closed its side, so that the client receives
/// the last response instead of a reset (RFC 9112 §9.6).
const LINGER_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_LINGER_BYTES: usize = 16 * 1024 * 1024;
/// Backlog of the listening socket.
const LISTEN_BACKLOG: i32 = 1024;

/// Response to a connection above the limit of its address.
const TOO_MANY_CONNECTIONS_RESPONSE: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Address of the client, as a request extension.
#[derive(Clone, Copy, Debug)]
pub struct HttpPeerAddress(pub SocketAddr);

/// Binds the listener. `[::]` accepts both address families; if the kernel has no IPv6, it is replaced by `0.0.0.0`.
pub fn bind_tokio_listener(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(bind_std_listener(address)?)
}

/// Like [`bind_tokio_listener`], without a Tokio runtime.
pub fn bind_std_listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    listen_tcp(address).or_else(|error| match ipv4_fallback_if_no_ipv6(address) {
        Some(address) => listen_tcp(address),
        None => Err(error),
    })
}

/// Returns the address to use instead of `[::]` if the kernel has no IPv6. This is detected by binding another port of
/// `[::]`, which fails too.
pub fn ipv4_fallback_if_no_ipv6(address: SocketAddr) -> Option<SocketAddr> {
    let is_any = address.ip() == Ipv6Addr::UNSPECIFIED;
    let is_missing = || std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err();
    (is_any && is_missing()).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

fn listen_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Allows a restart while old connections are in TIME_WAIT. On Linux, two concurrent listeners stay impossible.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// How connections are served.
pub struct ServerOptions {
    pub limits: ListenerLimits,
    /// See [`LimitsConfig::response_timeout`].
    pub response_timeout: Duration,
    pub counters: Arc<HttpCounters>,
    pub tls: Option<Arc<ReloadingCertificate>>,
    /// Routes of connections that have a reserved descriptor.
    pub health_router: Router,
}

/// Limits of the connections of a listener.
#[derive(Clone)]
pub struct ListenerLimits {
    max_connections: usize,
    max_connections_per_address: usize,
    /// Exempt from `max_connections_per_address`: their connections are those of many clients.
    trusted_proxies: TrustedProxies,
}

impl ListenerLimits {
    pub fn new(limits: &LimitsConfig, proxies: TrustedProxies) -> Self {
        Self {
            max_connections: limits.connections,
            max_connections_per_address: limits.connections_per_address,
            trusted_proxies: proxies,
        }
    }
}

/// Serves until `stop` changes, then waits for running requests.
pub async fn serve_listener(
    listener: TcpListener,
    router: Router,
    options: ServerOptions,
    stop: watch::Receiver<bool>,
) {
    let stopped = stop.clone();
    let ServerOptions {
        limits,
        response_timeout,
        counters,
        tls,
        health_router,
    } = options;
    let streams = Http2StreamExecutor {
        unread_timeout: response_timeout,
        counters: counters.clone(),
    };
    let serve_routes = move |router: Router, stream, peer| {
        let (stop, tls, streams) = (stopped.clone(), tls.clone(), streams.clone());
        async move {
            match tls {
                None => serve_http1(stream, peer, router, response_timeout, stop).await,
                Some(certificate) => serve_https(stream, peer, (router, streams), &certificate, stop).await,
            }
        }
    };
    let (serve_health_routes, reserved_counters) = (serve_routes.clone(), counters.clone());
    let serve_reserved = move |stream, peer| {
        reserved_counters.count_rejection(ReachedHttpLimit::OpenFiles);
        serve_health_routes(health_router.clone(), stream, peer)
    };
    let serve = move |stream, peer| serve_routes(router.clone(), stream, peer);
    let reject = move |stream: &TcpStream| {
        counters.count_rejection(ReachedHttpLimit::ConnectionsPerAddress);
        // Whatever does not fit into the socket's buffer is lost.
        let _ = stream.try_write(TOO_MANY_CONNECTIONS_RESPONSE);
    };
    accept_and_serve_connections(listener, limits, reject, stop, (serve, Some(serve_reserved))).await;
}

/// Accepts connections within the limits until `stop` changes, then waits for the open ones. A connection above the
/// limit of its address is passed to `reject` and closed. `serve_reserved` serves connections while the process is out of
/// file descriptors; without it they wait.
pub async fn accept_and_serve_connections<F, R>(
    listener: TcpListener,
    limits: ListenerLimits,
    reject: impl Fn(&TcpStream),
    mut stop: watch::Receiver<bool>,
    (serve, serve_reserved): (
        impl Fn(TcpStream, SocketAddr) -> F,
        Option<impl Fn(TcpStream, SocketAddr) -> R>,
    ),
) where
    F: Future<Output = ()> + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let reserved = serve_reserved.map(|serve| (ReservedDescriptors::new(), serve));
    let mut logged_at: Option<Instant> = None;
    let slots = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let per_address = PerAddressConnectionLimit::new(limits.max_connections_per_address);
    let mut tasks = JoinSet::new();
    loop {
        // While all slots are taken, clients wait in the backlog.
        let accepted = tokio::select! {
            _ = stop.changed() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = accept_when_slot_free(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                if let Some((descriptors, _)) = &reserved {
                    descriptors.refill();
                }
                let is_proxy = limits.trusted_proxies.contains(peer.ip());
                let permit = (!is_proxy).then(|| per_address.acquire(peer.ip()));
                let Some(permit) = permit.map_or(Some(None), |permit| permit.map(Some)) else {
                    reject(&stream);
                    debug!(%peer, "connection rejected: the connection limit of the client address is reached");
                    continue;
                };
                let serving = serve(stream, peer);
                tasks.spawn(async move {
                    serving.await;
                    drop((slot, permit));
                });
            }
            Err(error) => {
                debug!(%error, "cannot accept a TCP connection; the next attempt follows after a short delay");
                let is_exhausted = reserved_descriptors::is_out_of_descriptors_error(&error);
                let Some((descriptors, serve)) = reserved.as_ref().filter(|_| is_exhausted) else {
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                };
                if logged_at.is_none_or(|at| at.elapsed() >= OUT_OF_DESCRIPTORS_LOG_INTERVAL) {
                    logged_at = Some(Instant::now());
                    warn!("all file descriptors are in use, new connections get 503: raise the limit (`ulimit -n`)");
                }
                if let Some((stream, peer)) = accept_with_reserved_descriptor(&listener, descriptors).await {
                    let (serving, descriptors) = (serve(stream, peer), descriptors.clone());
                    tasks.spawn(async move {
                        let _ = timeout(RESERVED_CONNECTION_TIMEOUT, serving).await;
                        descriptors.refill();
                    });
                }
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Accepts a connection with a reserved descriptor, which has to be reserved again when the connection is closed.
async fn accept_with_reserved_descriptor(
    listener: &TcpListener,
    descriptors: &ReservedDescriptors,
) -> Option<(TcpStream, SocketAddr)> {
    let is_released = descriptors.release_one_descriptor();
    if let (true, Ok(Ok(accepted))) = (is_released, timeout(ACCEPT_RETRY_DELAY, listener.accept()).await) {
        return Some(accepted);
    }
    // No descriptor is left, another thread has taken it, or the client has left.
    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
    descriptors.refill();
    None
}

async fn accept_when_slot_free(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, slot))
}

/// Serves HTTPS: HTTP/2 if the client supports it (RFC 9113), else HTTP/1.1.
async fn serve_https(
    stream: TcpStream,
    peer: SocketAddr,
    (router, streams): (Router, Http2StreamExecutor),
    certificate: &ReloadingCertificate,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(streams.unread_timeout));
    match timeout(REQUEST_HEADER_TIMEOUT, tls::begins_with_tls_handshake(&stream)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            let _ = stream.try_write(tls::PLAIN_HTTP_ON_HTTPS_PORT_RESPONSE);
            return linger_close(stream).await;
        }
        Ok(Err(_)) | Err(_) => return,
    }
    let acceptor = TlsAcceptor::from(certificate.refresh_and_get_server_config());
    let stream = WriteTimeoutStream::new(stream, streams.unread_timeout);
    let stream = match timeout(REQUEST_HEADER_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake with HTTPS client failed"),
        Err(_) => return debug!(%peer, "TLS handshake with HTTPS client timed out"),
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let result = if is_h2 {
        serve_http2(io, (router, streams), peer, stop).await
    } else {
        let mut connection = pin!(http1_builder().serve_connection(io, http_service(router, peer)));
        tokio::select! {
            result = connection.as_mut() => result,
            _ = stop.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "HTTP connection of a client ended with an error");
    }
}

/// Serves HTTP/2. The idle timeout covers the preface and the first request, for which hyper has no timeout.
async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: TokioIo<S>,
    (router, executor): (Router, Http2StreamExecutor),
    peer: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let (activity, service) = (OpenHttp2StreamCounter::default(), http_service(router, peer));
    let streams = activity.clone();
    let service = service_fn(move |request| {
        let (stream, response) = (streams.register_http2_stream(), service.call(request));
        async move {
            let response = response.await?;
            let obsolete = response.extensions().get::<ResponseObsoleteAfter>().copied();
            Ok::<_, Infallible>(response.map(|body| Body::new(Http2ResponseBody::new(body, obsolete, stream))))
        }
    });
    let mut connection = pin!(
        http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_HTTP2_STREAMS_PER_CONNECTION)
            .max_header_list_size(MAX_REQUEST_HEADER_BYTES as u32)
            .keep_alive_interval(Some(HTTP2_PING_INTERVAL))
            .serve_connection(io, service)
    );
    tokio::select! {
        result = connection.as_mut() => return result,
        () = activity.wait_for_idle_timeout(REQUEST_HEADER_TIMEOUT, HTTP2_IDLE_TIMEOUT) => debug!(%peer, "HTTP/2 connection closed: no open stream within the idle timeout"),
        _ = stop.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection.as_mut() => result,
        () = activity.wait_for_idle_timeout(IDLE_TIMEOUT_AFTER_GOAWAY, IDLE_TIMEOUT_AFTER_GOAWAY) => Ok(()),
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEADER_TIMEOUT)
        .max_buf_size(MAX_REQUEST_HEADER_BYTES)
        .half_close(true)
        // Some clients compare the header name `Location` case-sensitively.
        .title_case_headers(true);
    builder
}

/// Returns the router as a hyper service that adds [`HttpPeerAddress`] to requests.
fn http_service(
    router: Router,
    peer: SocketAddr,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send + Unpin + 'static,
> + Clone {
    let router = TowerToHyperService::new(router);
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(HttpPeerAddress(peer));
        router.call(request)
    })
}

async fn serve_http1(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    write_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    // Failures are ignored: the connection works without these options.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(write_timeout));
    let mut connection = http1_builder().serve_connection(
        TokioIo::new(WriteTimeoutStream::new(stream, write_timeout)),
        http_service(router, peer),
    );
    let finished = tokio::select! {
        result = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(result),
        _ = stop.changed() => None,
    };
    let result = match finished {
        Some(result) => result,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "HTTP connection of a client ended with an error");
    }
    linger_close(connection.into_parts().io.into_inner().into_inner()).await;
}

/// Closes the sending direction and reads what still arrives, within [`LINGER_TIMEOUT`].
async fn linger_close(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    let mut budget = MAX_LINGER_BYTES;
    let drain = async {
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            budget = budget.saturating_sub(count);
            if budget == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER_TIMEOUT, drain).await;
}
