//! ICE over TCP for peers whose networks block UDP (RFC 6544): passive candidates on the number of the UDP port.
//!
//! For a session, a connection is another address of the peer. Received frames are passed to the shard that the first
//! connectivity check names; datagrams to the peer are queued here. TCP addresses are marked by a scope id that no UDP
//! address has, so the two are never confused.
//!
//! Frames follow RFC 4571: two bytes of length, then the datagram. A full queue drops datagrams like a UDP socket, and the
//! peer requests retransmissions (invariant 5).
//!
//! Connections that ICE does not authenticate within some seconds are closed, as are those whose peer does not read: see
//! [`TcpCloseReason`]. The session continues and is informed that the address is lost.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

use super::system_calls::sender::DatagramSender;
use millstream_core::hub::lock::{LockRank, RankedGuard, RankedMutex};
use millstream_core::session::ice;
use millstream_core::session::outbox::{DatagramSink, GsoRun};
use millstream_core::shard::counters::SendCounters;
use millstream_core::shard::message::{ShardMailbox, ShardMessage};
use millstream_core::shard::tcp::{TcpCloseReason, TcpConnectionControl, is_tcp_address, to_tcp_marked_address};
use millstream_core::shard::{SharedState, ufrag};

pub mod send_queue;

use self::send_queue::DatagramQueue;

/// Maximum length of a frame in bytes; peers send no datagrams longer than an MTU.
pub const MAX_FRAMED_PACKET_BYTES: usize = 4_096;

/// Time within which ICE must authenticate a check of a connection.
const ICE_AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection on which nothing arrives for this long is closed, as sessions are (RFC 7675 §5.1).
const RECEIVE_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time to send what is queued, such as the DTLS close_notify, after the end of the session.
const SESSION_END_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Size of the kernel's send buffer in bytes: 200 ms of round trip at 8 Mbit/s. By default it could grow to several MiB,
/// which a peer that does not read would occupy.
const TCP_SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes that the kernel accepts ahead of sending. The rest stays in the queue, which is bounded in time.
const TCP_NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;

/// A connection whose data is unacknowledged for this long is closed: the host is unreachable.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns why a connection with this error ended.
fn close_reason_from_io_error(error: &io::Error) -> TcpCloseReason {
    match error.kind() {
        // The queue's, or the kernel's after [`ACKNOWLEDGEMENT_TIMEOUT`].
        io::ErrorKind::TimedOut => TcpCloseReason::PeerNotReading,
        io::ErrorKind::InvalidData => TcpCloseReason::FrameTooLong,
        _ => TcpCloseReason::ByPeer,
    }
}

/// State of a connection, set by the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TcpConnectionState {
    /// Nothing authentic has arrived on it yet.
    New,
    Authenticated,
    /// It must be closed.
    Closing(TcpCloseReason),
}

#[derive(Debug)]
struct TcpConnection {
    send_queue: DatagramQueue,
    state: watch::Sender<TcpConnectionState>,
}

/// The connections of peers to the TCP media port.
#[derive(Debug)]
pub struct TcpConnections {
    connections: RankedMutex<HashMap<SocketAddr, Arc<TcpConnection>>>,
    count: AtomicUsize,
}

impl Default for TcpConnections {
    fn default() -> Self {
        Self {
            connections: RankedMutex::new(LockRank::TcpConnections, HashMap::new()),
            count: AtomicUsize::new(0),
        }
    }
}

impl TcpConnections {
    fn insert_or_replace(&self, address: SocketAddr) -> Arc<TcpConnection> {
        let connection = Arc::new(TcpConnection {
            send_queue: DatagramQueue::default(),
            state: watch::Sender::new(TcpConnectionState::New),
        });
        let mut connections = self.lock_connection_map();
        let former = connections.insert(address, connection.clone());
        self.count.store(connections.len(), Ordering::Release);
        drop(connections);
        if let Some(former) = former {
            former.close(TcpCloseReason::ByPeer);
        }
        connection
    }

    /// Removes a connection. Returns `false` if its address has another connection now.
    fn remove_connection_if_current(&self, address: SocketAddr, connection: &Arc<TcpConnection>) -> bool {
        let mut connections = self.lock_connection_map();
        let is_current = connections.get(&address).is_none_or(|now| Arc::ptr_eq(now, connection));
        if is_current {
            connections.remove(&address);
            self.count.store(connections.len(), Ordering::Release);
        }
        is_current
    }

    /// Returns the number of connections.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Returns the number of bytes queued for all connections.
    pub fn queued_bytes(&self) -> usize {
        let connections: Vec<_> = self.lock_connection_map().values().cloned().collect();
        connections
            .iter()
            .map(|connection| connection.send_queue.queued_bytes())
            .sum()
    }

    fn enqueue_run_datagrams(&self, now: Instant, buffer: &[u8], run: &GsoRun, counters: &SendCounters) {
        let datagrams = buffer.get(run.start..run.end).unwrap_or_default();
        let number = datagrams.len().div_ceil(run.segment_size.max(1)) as u64;
        let Some(connection) = self.find(run.destination.to) else {
            counters.dropped_by_kernel.fetch_add(number, Ordering::Relaxed);
            return;
        };
        let taken = connection.send_queue.push_datagrams(now, datagrams, run.segment_size) as u64;
        counters.sent_datagrams.fetch_add(taken, Ordering::Relaxed);
        counters
            .dropped_tcp_queue_full
            .fetch_add(number - taken, Ordering::Relaxed);
    }

    /// Returns the connection of an address. Takes no lock for a UDP address.
    fn find(&self, address: SocketAddr) -> Option<Arc<TcpConnection>> {
        is_tcp_address(address)
            .then(|| self.lock_connection_map().get(&address).cloned())
            .flatten()
    }

    fn lock_connection_map(&self) -> RankedGuard<'_, HashMap<SocketAddr, Arc<TcpConnection>>> {
        self.connections.lock()
    }
}

impl TcpConnectionControl for TcpConnections {
    fn mark_authenticated(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.compare_and_set_state(TcpConnectionState::New, TcpConnectionState::Authenticated);
        }
    }

    fn close_for_unknown_session(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.compare_and_set_state(
                TcpConnectionState::New,
                TcpConnectionState::Closing(TcpCloseReason::NoSession),
            );
        }
    }

    fn close_after_session_end(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.close(TcpCloseReason::SessionOver);
        }
    }

    fn queue_delay(&self, now: Instant, address: SocketAddr) -> Duration {
        self.find(address).map_or(Duration::ZERO, |connection| {
            connection.send_queue.oldest_datagram_age(now)
        })
    }
}

impl TcpConnection {
    fn compare_and_set_state(&self, from: TcpConnectionState, to: TcpConnectionState) {
        self.state.send_if_modified(|state| {
            let is_due = *state == from;
            if is_due {
                *state = to;
            }
            is_due
        });
    }

    /// Returns why the connection must be closed, if it must.
    fn close_reason(&self) -> Option<TcpCloseReason> {
        match *self.state.borrow() {
            TcpConnectionState::Closing(reason) => Some(reason),
            TcpConnectionState::New | TcpConnectionState::Authenticated => None,
        }
    }

    /// Closes the connection for this reason. What is queued is still sent, if the peer reads.
    fn close(&self, reason: TcpCloseReason) {
        self.send_queue.close();
        self.state.send_replace(TcpConnectionState::Closing(reason));
    }

    /// Waits until the connection must be closed: at `deadline` unless it is authenticated by then.
    async fn wait_until_close_due(&self, deadline: tokio::time::Instant) -> TcpCloseReason {
        let mut state = self.state.subscribe();
        loop {
            let current = *state.borrow_and_update();
            // The sender is in `self`, so the channel stays open.
            let changed = async { state.changed().await.is_ok() };
            match current {
                TcpConnectionState::New => tokio::select! {
                    _ = changed => {}
                    () = sleep_until(deadline) => return TcpCloseReason::Unauthenticated,
                },
                TcpConnectionState::Authenticated => _ = changed.await,
                TcpConnectionState::Closing(reason @ TcpCloseReason::SessionOver) => {
                    sleep(SESSION_END_FLUSH_TIMEOUT).await;
                    return reason;
                }
                TcpConnectionState::Closing(reason) => return reason,
            }
        }
    }
}

/// Sends datagrams by UDP, or by TCP to peers that are connected by TCP.
pub(super) struct UdpOrTcpSender {
    pub(super) udp: DatagramSender,
    pub(super) tcp: Arc<TcpConnections>,
    pub(super) counters: Arc<SendCounters>,
}

impl DatagramSink for UdpOrTcpSender {
    fn send_gso_runs(&mut self, buffer: &[u8], runs: &[GsoRun]) {
        if self.tcp.count() == 0 && !runs.iter().any(|run| is_tcp_address(run.destination.to)) {
            return self.udp.send_gso_runs(buffer, runs);
        }
        let now = now();
        for runs in runs.chunk_by(|a, b| is_tcp_address(a.destination.to) == is_tcp_address(b.destination.to)) {
            match runs {
                [first, ..] if is_tcp_address(first.destination.to) => {
                    for run in runs {
                        self.tcp.enqueue_run_datagrams(now, buffer, run, &self.counters);
                    }
                }
                runs => self.udp.send_gso_runs(buffer, runs),
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a shell: how long datagrams wait for a connection"
)]
fn now() -> Instant {
    Instant::now()
}

/// Serves one connection until it ends.
pub(super) async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<SharedState>,
    connections: Arc<TcpConnections>,
) -> TcpCloseReason {
    set_tcp_socket_options(&stream);
    let ended = run_connection(stream, to_tcp_marked_address(peer), &shared, &connections).await;
    shared.counters.count_closed_tcp_connection(ended);
    ended
}

/// Sets options that bound memory and delay. Errors are ignored: the connection works without them.
fn set_tcp_socket_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let _ = socket.set_send_buffer_size(TCP_SEND_BUFFER_BYTES);
    let _ = socket.set_tcp_notsent_lowat(TCP_NOTSENT_LOWAT_BYTES);
    let _ = socket.set_tcp_user_timeout(Some(ACKNOWLEDGEMENT_TIMEOUT));
}

async fn run_connection(
    stream: TcpStream,
    address: SocketAddr,
    shared: &SharedState,
    connections: &TcpConnections,
) -> TcpCloseReason {
    let (mut reader, mut writer) = stream.into_split();
    let deadline = tokio::time::Instant::now() + ICE_AUTHENTICATION_TIMEOUT;
    let first_frame = match timeout_at(deadline, read_framed_packet(&mut reader)).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return close_reason_from_io_error(&error),
        Err(_) => return TcpCloseReason::Unauthenticated,
    };
    let owner = ice::read_local_ufrag(&first_frame).filter(|_| ice::is_binding_request(&first_frame));
    let owner = owner.and_then(|ufrag| ufrag::shard_of_ufrag(&ufrag));
    let Some(mailbox) = owner.and_then(|owner| shared.mailboxes.get(usize::from(owner.0))) else {
        return TcpCloseReason::NoSession;
    };
    let connection = connections.insert_or_replace(address);
    let ended = tokio::select! {
        ended = read_framed_packets(reader, first_frame, address, mailbox) => ended,
        written = connection.send_queue.write_until_closed_and_empty(&mut writer) => match written {
            Ok(()) => connection.close_reason().unwrap_or(TcpCloseReason::SessionOver),
            Err(error) => close_reason_from_io_error(&error),
        },
        ended = connection.wait_until_close_due(deadline) => ended,
    };
    let was_authenticated = *connection.state.borrow() == TcpConnectionState::Authenticated;
    if connections.remove_connection_if_current(address, &connection) && was_authenticated {
        // If the mailbox is full, the session ends by its timeout once the peer is silent.
        let _ = mailbox.push_control(ShardMessage::TcpDisconnected { from: address });
    }
    ended
}

/// Passes received frames to the shard until the connection ends.
async fn read_framed_packets(
    mut reader: OwnedReadHalf,
    first_frame: Vec<u8>,
    from: SocketAddr,
    mailbox: &ShardMailbox,
) -> TcpCloseReason {
    let mut bytes = first_frame;
    loop {
        // Dropped if the mailbox is full, like on a full UDP socket.
        let _ = mailbox.push_low_priority(ShardMessage::TcpFrame { from, bytes });
        bytes = match timeout(RECEIVE_IDLE_TIMEOUT, read_framed_packet(&mut reader)).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return close_reason_from_io_error(&error),
            Err(_) => return TcpCloseReason::PeerSentNothing,
        };
    }
}

/// Reads one frame (RFC 4571 §2).
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] for a frame longer than [`MAX_FRAMED_PACKET_BYTES`]; what the connection says.
pub async fn read_framed_packet(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::from(reader.read_u16().await?);
    if length > MAX_FRAMED_PACKET_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame).await?;
    Ok(frame)
}
