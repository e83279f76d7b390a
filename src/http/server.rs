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
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::activity::Activity;
use super::forwarded::TrustedProxies;
use super::limits::ConnectionLimit;
use super::response_timeout::{ObsoleteAfter, StreamBody, StreamExecutor};
use super::tls::{self, Certificate};
use super::write_timeout::{self, WriteTimeout};
use crate::config::Limits;
use crate::telemetry::{HttpCounters, Rejection};

/// Maximum time for receiving the headers of a request, including the idle time before them.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of request headers; above it, the response is 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Maximum number of concurrent HTTP/2 streams of a connection. Players wait for playlists and parts of several
/// renditions.
const MAX_STREAMS: u32 = 64;
/// An HTTP/2 connection without an open stream is closed after this time. An LL-HLS player always has an open stream.
const HTTP2_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that an HTTP/2 client has to react to GOAWAY (RFC 9113 §6.8).
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of HTTP/2 keep-alive pings. A connection whose client does not answer is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Delay after a failed accept: the process may be out of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// How long and how much is read from a connection after the server has closed its side, so that the client receives
/// the last response instead of a reset (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 16 * 1024 * 1024;
/// Backlog of the listening socket.
const BACKLOG: i32 = 1024;

/// Response to a connection above the limit of its address.
const TOO_MANY_CONNECTIONS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Address of the client, as a request extension.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Binds the listener. `[::]` accepts both address families; if the kernel has no IPv6, it is replaced by `0.0.0.0`.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(bind_std(address)?)
}

/// Like [`bind`], without a Tokio runtime.
pub fn bind_std(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    listen(address).or_else(|error| match without_ipv6(address) {
        Some(address) => listen(address),
        None => Err(error),
    })
}

/// Returns the address to use instead of `[::]` if the kernel has no IPv6. This is detected by binding another port of
/// `[::]`, which fails too.
pub fn without_ipv6(address: SocketAddr) -> Option<SocketAddr> {
    let is_any = address.ip() == Ipv6Addr::UNSPECIFIED;
    let is_missing = || std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err();
    (is_any && is_missing()).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Allows a restart while old connections are in TIME_WAIT. On Linux, two concurrent listeners stay impossible.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// How connections are served.
pub struct ServerOptions {
    pub limits: ListenerLimits,
    /// See [`Limits::response_timeout`].
    pub response_timeout: Duration,
    pub counters: Arc<HttpCounters>,
    pub tls: Option<Arc<Certificate>>,
}

/// Limits of the connections of a listener.
#[derive(Clone)]
pub struct ListenerLimits {
    connections: usize,
    per_address: usize,
    /// Exempt from `per_address`: their connections are those of many clients.
    proxies: TrustedProxies,
}

impl ListenerLimits {
    pub fn new(limits: &Limits, proxies: TrustedProxies) -> Self {
        Self {
            connections: limits.connections,
            per_address: limits.connections_per_address,
            proxies,
        }
    }
}

/// Serves until `stop` changes, then waits for running requests.
pub async fn serve(listener: TcpListener, router: Router, options: ServerOptions, stop: watch::Receiver<bool>) {
    let stopped = stop.clone();
    let ServerOptions {
        limits,
        response_timeout,
        counters,
        tls,
    } = options;
    let streams = StreamExecutor {
        timeout: response_timeout,
        counters: counters.clone(),
    };
    let serve = move |stream, peer| {
        let (router, stop, tls, streams) = (router.clone(), stopped.clone(), tls.clone(), streams.clone());
        async move {
            match tls {
                None => handle_connection(stream, peer, router, stop).await,
                Some(certificate) => handle_tls(stream, peer, (router, streams), &certificate, stop).await,
            }
        }
    };
    let reject = move |stream: &TcpStream| {
        counters.rejected(Rejection::ConnectionsPerAddress);
        // Whatever does not fit into the socket's buffer is lost.
        let _ = stream.try_write(TOO_MANY_CONNECTIONS);
    };
    take_connections(listener, limits, reject, stop, serve).await;
}

/// Accepts connections within the limits until `stop` changes, then waits for the open ones. A connection above the
/// limit of its address is passed to `reject` and closed.
pub async fn take_connections<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    limits: ListenerLimits,
    reject: impl Fn(&TcpStream),
    mut stop: watch::Receiver<bool>,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let slots = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let per_address = ConnectionLimit::new(limits.per_address);
    let mut tasks = JoinSet::new();
    loop {
        // While all slots are taken, clients wait in the backlog.
        let accepted = tokio::select! {
            _ = stop.changed() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let is_proxy = limits.proxies.contains(peer.ip());
                let permit = (!is_proxy).then(|| per_address.acquire(peer.ip()));
                let Some(permit) = permit.map_or(Some(None), |permit| permit.map(Some)) else {
                    reject(&stream);
                    debug!(%peer, "connection limit of the address reached");
                    continue;
                };
                let serving = serve(stream, peer);
                tasks.spawn(async move {
                    serving.await;
                    drop((slot, permit));
                });
            }
            Err(error) => {
                debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, slot))
}

/// Serves HTTPS: HTTP/2 if the client supports it (RFC 9113), else HTTP/1.1.
async fn handle_tls(
    stream: TcpStream,
    peer: SocketAddr,
    (router, streams): (Router, StreamExecutor),
    certificate: &Certificate,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(write_timeout::TIMEOUT));
    match timeout(HEADER_TIMEOUT, tls::begins_with_handshake(&stream)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            let _ = stream.try_write(tls::PLAIN_HTTP_RESPONSE);
            return linger(stream).await;
        }
        Ok(Err(_)) | Err(_) => return,
    }
    let acceptor = TlsAcceptor::from(certificate.current());
    let stream = match timeout(HEADER_TIMEOUT, acceptor.accept(WriteTimeout::new(stream))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return debug!(%peer, "TLS handshake timed out"),
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let result = if is_h2 {
        serve_http2(io, (router, streams), peer, stop).await
    } else {
        let mut connection = pin!(http1().serve_connection(io, service(router, peer)));
        tokio::select! {
            result = connection.as_mut() => result,
            _ = stop.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "connection failed");
    }
}

/// Serves HTTP/2. The idle timeout covers the preface and the first request, for which hyper has no timeout.
async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: TokioIo<S>,
    (router, executor): (Router, StreamExecutor),
    peer: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let (activity, service) = (Activity::default(), service(router, peer));
    let streams = activity.clone();
    let service = service_fn(move |request| {
        let (stream, response) = (streams.begin(), service.call(request));
        async move {
            let response = response.await?;
            let obsolete = response.extensions().get::<ObsoleteAfter>().copied();
            Ok::<_, Infallible>(response.map(|body| Body::new(StreamBody::new(body, obsolete, stream))))
        }
    });
    let mut connection = pin!(
        http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .serve_connection(io, service)
    );
    tokio::select! {
        result = connection.as_mut() => return result,
        () = activity.idle(HEADER_TIMEOUT, HTTP2_IDLE_TIMEOUT) => debug!(%peer, "idle HTTP/2 connection closed"),
        _ = stop.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection.as_mut() => result,
        () = activity.idle(GOAWAY_TIMEOUT, GOAWAY_TIMEOUT) => Ok(()),
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .half_close(true)
        // Some clients compare the header name `Location` case-sensitively.
        .title_case_headers(true);
    builder
}

/// Returns the router as a hyper service that adds [`Peer`] to requests.
fn service(
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
        request.extensions_mut().insert(Peer(peer));
        router.call(request)
    })
}

async fn handle_connection(stream: TcpStream, peer: SocketAddr, router: Router, mut stop: watch::Receiver<bool>) {
    // Failures are ignored: the connection works without these options.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(write_timeout::TIMEOUT));
    let mut connection = http1().serve_connection(TokioIo::new(WriteTimeout::new(stream)), service(router, peer));
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
        debug!(%peer, %error, "connection failed");
    }
    linger(connection.into_parts().io.into_inner().into_inner()).await;
}

/// Closes the sending direction and reads what still arrives, within [`LINGER`].
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    let mut budget = LINGER_BYTES;
    let drain = async {
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            budget = budget.saturating_sub(count);
            if budget == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}
