//! ICE over TCP for peers whose networks let no UDP through (RFC 6544): passive candidates on the number of the UDP port.
//!
//! A connection is one more address of a peer. What comes by it is handed to the shard that its first check names, and what
//! goes to it is queued here; sessions do not know the difference. An address of TCP is told from one of UDP by a mark in
//! its scope, which no address of a datagram has: the two of the same number are never taken for each other.
//!
//! Frames are those of RFC 4571: two bytes of length, then what would be a datagram. A queue that is full drops, as a
//! socket of UDP does, and the peer asks again for what it misses (invariant 5).
//!
//! Who is not authenticated by ICE has a connection for some seconds only, and who takes nothing of what is sent to him
//! has one no longer either: see [`TcpCloseReason`]. The session lives on, and is told that this way to its peer is gone.

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

use super::socket::Sender;
use millstream_core::hub::lock::{Rank, RankedGuard, RankedMutex};
use millstream_core::session::ice;
use millstream_core::session::outbox::{Run, Sink};
use millstream_core::shard::counters::SendCounters;
use millstream_core::shard::message::{Message, ShardMailbox};
use millstream_core::shard::tcp::{TcpCloseReason, TcpPeers, is_marked, marked};
use millstream_core::shard::{Shared, ufrag};

pub mod queue;

use self::queue::Queue;

/// Longest frame that is taken, in bytes: no peer sends datagrams longer than an MTU.
pub const MAX_FRAME: usize = 4_096;

/// Within so long a connection has to bring a check that ICE authenticates.
const AUTHENTICATED_WITHIN: Duration = Duration::from_secs(10);

/// A connection that brings nothing for so long is closed, as a session is (RFC 7675 §5.1).
const IDLE: Duration = Duration::from_secs(30);

/// After the end of its session a connection has so long to take what still waits, such as the goodbye of DTLS.
const FLUSH: Duration = Duration::from_secs(2);

/// Bytes in flight that the kernel keeps of one connection: a round trip of 200 ms at 8 Mbit/s. It would grow to some
/// MiB by itself, which a peer that takes nothing would hold.
const SEND_BUFFER: usize = 256 * 1024;

/// Bytes that the kernel takes before it can send them. What waits longer waits in the queue, which is bounded in time.
const NOT_SENT: u32 = 16 * 1024;

/// What the peer's host leaves unacknowledged for so long ends the connection: the host, or the way to it, is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Returns why a connection with this error ended.
fn reason_of(error: &io::Error) -> TcpCloseReason {
    match error.kind() {
        // Ours, or the kernel's after [`UNACKNOWLEDGED`].
        io::ErrorKind::TimedOut => TcpCloseReason::Stalled,
        io::ErrorKind::InvalidData => TcpCloseReason::Malformed,
        _ => TcpCloseReason::ByPeer,
    }
}

/// What the shards say of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing that came by it was authentic so far.
    New,
    Authenticated,
    /// It is to end.
    Ending(TcpCloseReason),
}

#[derive(Debug)]
struct Connection {
    queue: Queue,
    standing: watch::Sender<Standing>,
}

/// The connections that peers have to the media port.
#[derive(Debug)]
pub struct TcpConnections {
    connections: RankedMutex<HashMap<SocketAddr, Arc<Connection>>>,
    count: AtomicUsize,
}

impl Default for TcpConnections {
    fn default() -> Self {
        Self {
            connections: RankedMutex::new(Rank::Connections, HashMap::new()),
            count: AtomicUsize::new(0),
        }
    }
}

impl TcpConnections {
    fn add(&self, address: SocketAddr) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            queue: Queue::default(),
            standing: watch::Sender::new(Standing::New),
        });
        let mut connections = self.lock();
        let former = connections.insert(address, connection.clone());
        self.count.store(connections.len(), Ordering::Release);
        drop(connections);
        if let Some(former) = former {
            former.end(TcpCloseReason::ByPeer);
        }
        connection
    }

    /// Forgets a connection; `false` if there is another one of its address by now.
    fn remove(&self, address: SocketAddr, connection: &Arc<Connection>) -> bool {
        let mut connections = self.lock();
        let is_current = connections.get(&address).is_none_or(|now| Arc::ptr_eq(now, connection));
        if is_current {
            connections.remove(&address);
            self.count.store(connections.len(), Ordering::Release);
        }
        is_current
    }

    /// Connections at this moment.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Bytes that wait for all of them.
    pub fn queued(&self) -> usize {
        let connections: Vec<_> = self.lock().values().cloned().collect();
        connections.iter().map(|connection| connection.queue.bytes()).sum()
    }

    fn send(&self, now: Instant, buffer: &[u8], run: &Run, counters: &SendCounters) {
        let datagrams = buffer.get(run.start..run.end).unwrap_or_default();
        let number = datagrams.len().div_ceil(run.segment.max(1)) as u64;
        let Some(connection) = self.find(run.destination.to) else {
            counters.dropped_refused.fetch_add(number, Ordering::Relaxed);
            return;
        };
        let taken = connection.queue.push(now, datagrams, run.segment) as u64;
        counters.datagrams.fetch_add(taken, Ordering::Relaxed);
        counters.dropped_tcp.fetch_add(number - taken, Ordering::Relaxed);
    }

    /// The connection of an address; addresses of UDP cost no lock.
    fn find(&self, address: SocketAddr) -> Option<Arc<Connection>> {
        is_marked(address).then(|| self.lock().get(&address).cloned()).flatten()
    }

    fn lock(&self) -> RankedGuard<'_, HashMap<SocketAddr, Arc<Connection>>> {
        self.connections.lock()
    }
}

impl TcpPeers for TcpConnections {
    fn authenticated(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.change(Standing::New, Standing::Authenticated);
        }
    }

    fn refuse(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.change(Standing::New, Standing::Ending(TcpCloseReason::NoSession));
        }
    }

    fn close(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.end(TcpCloseReason::SessionOver);
        }
    }
}

impl Connection {
    fn change(&self, from: Standing, to: Standing) {
        self.standing.send_if_modified(|standing| {
            let is_due = *standing == from;
            if is_due {
                *standing = to;
            }
            is_due
        });
    }

    /// Why it is to end, if it is.
    fn reason(&self) -> Option<TcpCloseReason> {
        match *self.standing.borrow() {
            Standing::Ending(reason) => Some(reason),
            Standing::New | Standing::Authenticated => None,
        }
    }

    /// What waits is still written, if the peer takes it.
    fn end(&self, reason: TcpCloseReason) {
        self.queue.close();
        self.standing.send_replace(Standing::Ending(reason));
    }

    /// Comes when it is to end: at the `deadline` if it is not authenticated by then.
    async fn ending(&self, deadline: tokio::time::Instant) -> TcpCloseReason {
        let mut standing = self.standing.subscribe();
        loop {
            let current = *standing.borrow_and_update();
            // The other end of the channel is `self`.
            let changed = async { standing.changed().await.is_ok() };
            match current {
                Standing::New => tokio::select! {
                    _ = changed => {}
                    () = sleep_until(deadline) => return TcpCloseReason::Unauthenticated,
                },
                Standing::Authenticated => _ = changed.await,
                Standing::Ending(reason @ TcpCloseReason::SessionOver) => {
                    sleep(FLUSH).await;
                    return reason;
                }
                Standing::Ending(reason) => return reason,
            }
        }
    }
}

/// Sends by UDP, and by TCP to those who came so.
pub(super) struct PeerSink {
    pub(super) udp: Sender,
    pub(super) tcp: Arc<TcpConnections>,
    pub(super) counters: Arc<SendCounters>,
}

impl Sink for PeerSink {
    fn send(&mut self, buffer: &[u8], runs: &[Run]) {
        if self.tcp.count() == 0 && !runs.iter().any(|run| is_marked(run.destination.to)) {
            return self.udp.send(buffer, runs);
        }
        let now = now();
        for runs in runs.chunk_by(|a, b| is_marked(a.destination.to) == is_marked(b.destination.to)) {
            match runs {
                [first, ..] if is_marked(first.destination.to) => {
                    for run in runs {
                        self.tcp.send(now, buffer, run, &self.counters);
                    }
                }
                runs => self.udp.send(buffer, runs),
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

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    connections: Arc<TcpConnections>,
) -> TcpCloseReason {
    set_options(&stream);
    let ended = run(stream, marked(peer), &shared, &connections).await;
    shared.counters.tcp_ended(ended);
    ended
}

/// Without these a connection works as well, and its memory is bounded less.
fn set_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    let _ = socket.set_tcp_notsent_lowat(NOT_SENT);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
}

async fn run(stream: TcpStream, address: SocketAddr, shared: &Shared, connections: &TcpConnections) -> TcpCloseReason {
    let (mut reader, mut writer) = stream.into_split();
    let deadline = tokio::time::Instant::now() + AUTHENTICATED_WITHIN;
    let first = match timeout_at(deadline, read_frame(&mut reader)).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return reason_of(&error),
        Err(_) => return TcpCloseReason::Unauthenticated,
    };
    let owner = ice::local_ufrag(&first).filter(|_| ice::is_check(&first));
    let owner = owner.and_then(|ufrag| ufrag::shard_of(&ufrag));
    let Some(mailbox) = owner.and_then(|owner| shared.mailboxes.get(usize::from(owner.0))) else {
        return TcpCloseReason::NoSession;
    };
    let connection = connections.add(address);
    let ended = tokio::select! {
        ended = read(reader, first, address, mailbox) => ended,
        written = connection.queue.write_to(&mut writer) => match written {
            Ok(()) => connection.reason().unwrap_or(TcpCloseReason::SessionOver),
            Err(error) => reason_of(&error),
        },
        ended = connection.ending(deadline) => ended,
    };
    let was_authenticated = *connection.standing.borrow() == Standing::Authenticated;
    if connections.remove(address, &connection) && was_authenticated {
        // A shard too busy to take this ends the session when its peer stays silent.
        let _ = mailbox.push(Message::Disconnected { from: address });
    }
    ended
}

/// Hands on what comes, to the end.
async fn read(mut reader: OwnedReadHalf, first: Vec<u8>, from: SocketAddr, mailbox: &ShardMailbox) -> TcpCloseReason {
    let mut bytes = first;
    loop {
        // What does not fit is lost, as on a full socket.
        let _ = mailbox.offer(Message::Framed { from, bytes });
        bytes = match timeout(IDLE, read_frame(&mut reader)).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return reason_of(&error),
            Err(_) => return TcpCloseReason::Idle,
        };
    }
}

/// Reads one frame (RFC 4571 §2).
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] for a frame longer than [`MAX_FRAME`]; what the connection says.
pub async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::from(reader.read_u16().await?);
    if length > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame).await?;
    Ok(frame)
}
