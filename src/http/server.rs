//! The HTTP server: a listener, and a task for each connection with its deadlines and limits.

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
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::activity::{Activity, StreamBody};
use super::limits::ConnectionLimit;
use super::tls::{self, Certificate};
use super::write_timeout::{self, WriteTimeout};
use crate::config::Limits;

/// Time that the headers of a request may take, and that a connection may be idle between two requests.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes that the headers of a request may have; more is 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Requests at the same time on one connection of HTTP/2. Players wait for playlists and parts of some renditions.
const MAX_STREAMS: u32 = 64;
/// A connection of HTTP/2 without a stream is closed after so long. A player of LL-HLS always has one.
const IDLE: Duration = Duration::from_secs(10);
/// Time for a client of HTTP/2 to answer to our goodbye (RFC 9113 §6.8).
const GOODBYE: Duration = Duration::from_secs(1);
/// Between two pings to a client of HTTP/2 that is silent; one that does not answer is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Pause after an accept that failed: the process may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long and how much is still read from a connection that we end, so that the client sees our last response and not
/// a reset (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 16 * 1024 * 1024;
/// Connections that may wait for us to accept them.
const BACKLOG: i32 = 1024;

/// What a client is told whose address has too many connections.
const CROWDED: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The address of a client, as an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Binds the listener. `[::]` takes both families; where the kernel has no IPv6 it becomes `0.0.0.0`.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(bind_std(address)?)
}

/// Like [`bind`], without a runtime.
pub fn bind_std(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    listen(address).or_else(|error| match without_ipv6(address) {
        Some(address) => listen(address),
        None => Err(error),
    })
}

/// The address to take instead when binding `[::]` failed because the kernel has no IPv6, which is when it gives no
/// other port of that address either.
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
    // A restart need not wait for old connections to time out. Two listeners at once stay impossible on Linux.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until `stop` changes, then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    tls: Option<Arc<Certificate>>,
    stop: watch::Receiver<bool>,
) {
    let stopped = stop.clone();
    let serve = move |stream, peer| {
        let (router, stop, tls) = (router.clone(), stopped.clone(), tls.clone());
        async move {
            match tls {
                None => handle_connection(stream, peer, router, stop).await,
                Some(certificate) => handle_tls(stream, peer, router, &certificate, stop).await,
            }
        }
    };
    take_connections(listener, limits, CROWDED, stop, serve).await;
}

/// Takes connections within the limits until `stop` changes, then waits for those that run. Who comes from an address
/// that has too many is sent `crowded`.
pub async fn take_connections<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    limits: Limits,
    crowded: &[u8],
    mut stop: watch::Receiver<bool>,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let slots = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let per_address = ConnectionLimit::new(limits.connections_per_address);
    let mut tasks = JoinSet::new();
    loop {
        // With all slots taken, clients wait in the backlog.
        let accepted = tokio::select! {
            _ = stop.changed() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let Some(permit) = per_address.acquire(peer.ip()) else {
                    // It has to make do with what fits into the socket's buffer.
                    let _ = stream.try_write(crowded);
                    debug!(%peer, "a connection more than one address may have");
                    continue;
                };
                let serving = serve(stream, peer);
                tasks.spawn(async move {
                    serving.await;
                    drop((slot, permit));
                });
            }
            Err(error) => {
                debug!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
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

/// HTTPS: HTTP/2 where the client knows it (RFC 9113), else HTTP/1.1.
async fn handle_tls(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    certificate: &Certificate,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(write_timeout::DEADLINE));
    match timeout(HEADER_DEADLINE, tls::begins_with_handshake(&stream)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            let _ = stream.try_write(tls::PLAIN);
            return linger(stream).await;
        }
        Ok(Err(_)) | Err(_) => return,
    }
    let acceptor = TlsAcceptor::from(certificate.current());
    let stream = match timeout(HEADER_DEADLINE, acceptor.accept(WriteTimeout::new(stream))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%peer, %error, "no TLS came about"),
        Err(_) => return debug!(%peer, "the TLS handshake took too long"),
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let result = if is_h2 {
        serve_http2(io, router, peer, stop).await
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
        debug!(%peer, %error, "a connection broke");
    }
}

/// HTTP/2, which has no deadline of its own for the preface and the first request of a client.
async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: TokioIo<S>,
    router: Router,
    peer: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let (activity, service) = (Activity::default(), service(router, peer));
    let streams = activity.clone();
    let service = service_fn(move |request| {
        let (stream, response) = (streams.begin(), service.call(request));
        async move {
            let response = response.await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(StreamBody::new(body, stream))))
        }
    });
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES as u32)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .serve_connection(io, service)
    );
    tokio::select! {
        result = connection.as_mut() => return result,
        () = activity.idle(HEADER_DEADLINE, IDLE) => debug!(%peer, "nothing is asked for"),
        _ = stop.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection.as_mut() => result,
        () = activity.idle(GOODBYE, GOODBYE) => Ok(()),
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(MAX_HEADER_BYTES)
        .half_close(true)
        // Some clients look for `Location:` case and all.
        .title_case_headers(true);
    builder
}

/// The routes, for requests that know who sent them.
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
    // Without these the connection works as well, if less well.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(write_timeout::DEADLINE));
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
        debug!(%peer, %error, "a connection broke");
    }
    linger(connection.into_parts().io.into_inner().into_inner()).await;
}

/// Ends our direction, and reads what still comes for a moment.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = [0; 4096];
    let mut budget = LINGER_BYTES;
    let drain = async {
        while let Ok(count @ 1..) = stream.read(&mut rest).await {
            budget = budget.saturating_sub(count);
            if budget == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}
