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
//! has one no longer either: see [`Ended`]. The session lives on, and is told that this way to its peer is gone.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

use super::core::Shared;
use super::message::{Message, ShardMailbox};
use super::socket::{SendCounters, Sender};
use super::ufrag;
use crate::hub::lock::{Rank, RankedGuard, RankedMutex};
use crate::session::ice;
use crate::session::outbox::{Run, Sink};

mod queue;

use self::queue::Queue;

/// What marks an address as one of TCP: no interface has this number.
const MARK: u32 = u32::MAX;

/// Longest frame that is taken, in bytes: no peer sends datagrams longer than an MTU.
const MAX_FRAME: usize = 4_096;

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

/// An address of TCP, as sessions know it.
fn marked(peer: SocketAddr) -> SocketAddr {
    let ip = match peer.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        std::net::IpAddr::V6(ip) => ip,
    };
    SocketAddrV6::new(ip, peer.port(), 0, MARK).into()
}

fn is_marked(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(address) if address.scope_id() == MARK)
}

/// An address, as logs show it.
pub struct PeerAddress(pub SocketAddr);

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = SocketAddr::new(self.0.ip().to_canonical(), self.0.port());
        let protocol = if is_marked(self.0) { "tcp " } else { "" };
        write!(f, "{protocol}{plain}")
    }
}

/// Why a connection ended. A label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer closed it, or the network did.
    ByPeer,
    /// Its session is over, or no longer believes what comes from its address.
    SessionOver,
    /// Its first frame was no connectivity check, or one for no session.
    NoSession,
    /// No check that ICE authenticates came in time.
    Unauthenticated,
    /// The peer took nothing of what was sent to it.
    Stalled,
    /// Nothing came from the peer.
    Idle,
    /// A frame was too long.
    Malformed,
}

impl Ended {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::ByPeer,
        Self::SessionOver,
        Self::NoSession,
        Self::Unauthenticated,
        Self::Stalled,
        Self::Idle,
        Self::Malformed,
    ];

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::ByPeer => "by_peer",
            Self::SessionOver => "session_over",
            Self::NoSession => "no_session",
            Self::Unauthenticated => "unauthenticated",
            Self::Stalled => "stalled",
            Self::Idle => "idle",
            Self::Malformed => "malformed",
        }
    }

    fn by(error: &io::Error) -> Self {
        match error.kind() {
            // Ours, or the kernel's after [`UNACKNOWLEDGED`].
            io::ErrorKind::TimedOut => Self::Stalled,
            io::ErrorKind::InvalidData => Self::Malformed,
            _ => Self::ByPeer,
        }
    }
}

/// What the shards say of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing that came by it was authentic so far.
    New,
    Authenticated,
    /// It is to end.
    Ending(Ended),
}

#[derive(Debug)]
struct Connection {
    queue: Queue,
    standing: watch::Sender<Standing>,
}

/// The connections that peers have to the media port.
#[derive(Debug)]
pub struct Streams {
    connections: RankedMutex<HashMap<SocketAddr, Arc<Connection>>>,
    count: AtomicUsize,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            connections: RankedMutex::new(Rank::Connections, HashMap::new()),
            count: AtomicUsize::new(0),
        }
    }
}

impl Streams {
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
            former.end(Ended::ByPeer);
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

    /// ICE authenticated what came from this address.
    pub fn authenticated(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.change(Standing::New, Standing::Authenticated);
        }
    }

    /// What came from this address is for no session.
    pub fn refuse(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.change(Standing::New, Standing::Ending(Ended::NoSession));
        }
    }

    /// Closes the connection of a peer that is gone.
    pub fn close(&self, address: SocketAddr) {
        if let Some(connection) = self.find(address) {
            connection.end(Ended::SessionOver);
        }
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
    fn reason(&self) -> Option<Ended> {
        match *self.standing.borrow() {
            Standing::Ending(reason) => Some(reason),
            Standing::New | Standing::Authenticated => None,
        }
    }

    /// What waits is still written, if the peer takes it.
    fn end(&self, reason: Ended) {
        self.queue.close();
        self.standing.send_replace(Standing::Ending(reason));
    }

    /// Comes when it is to end: at the `deadline` if it is not authenticated by then.
    async fn ending(&self, deadline: tokio::time::Instant) -> Ended {
        let mut standing = self.standing.subscribe();
        loop {
            let current = *standing.borrow_and_update();
            // The other end of the channel is `self`.
            let changed = async { standing.changed().await.is_ok() };
            match current {
                Standing::New => tokio::select! {
                    _ = changed => {}
                    () = sleep_until(deadline) => return Ended::Unauthenticated,
                },
                Standing::Authenticated => _ = changed.await,
                Standing::Ending(reason @ Ended::SessionOver) => {
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
    pub(super) tcp: Arc<Streams>,
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
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) -> Ended {
    set_options(&stream);
    let ended = run(stream, marked(peer), &shared).await;
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

async fn run(stream: TcpStream, address: SocketAddr, shared: &Shared) -> Ended {
    let (mut reader, mut writer) = stream.into_split();
    let deadline = tokio::time::Instant::now() + AUTHENTICATED_WITHIN;
    let first = match timeout_at(deadline, read_frame(&mut reader)).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return Ended::by(&error),
        Err(_) => return Ended::Unauthenticated,
    };
    let owner = ice::local_ufrag(&first).filter(|_| ice::is_check(&first));
    let owner = owner.and_then(|ufrag| ufrag::shard_of(&ufrag));
    let Some(mailbox) = owner.and_then(|owner| shared.mailboxes.get(usize::from(owner.0))) else {
        return Ended::NoSession;
    };
    let connection = shared.streams.add(address);
    let ended = tokio::select! {
        ended = read(reader, first, address, mailbox) => ended,
        written = connection.queue.write_to(&mut writer) => match written {
            Ok(()) => connection.reason().unwrap_or(Ended::SessionOver),
            Err(error) => Ended::by(&error),
        },
        ended = connection.ending(deadline) => ended,
    };
    let was_authenticated = *connection.standing.borrow() == Standing::Authenticated;
    if shared.streams.remove(address, &connection) && was_authenticated {
        // A shard too busy to take this ends the session when its peer stays silent.
        let _ = mailbox.push(Message::Disconnected { from: address });
    }
    ended
}

/// Hands on what comes, to the end.
async fn read(mut reader: OwnedReadHalf, first: Vec<u8>, from: SocketAddr, mailbox: &ShardMailbox) -> Ended {
    let mut bytes = first;
    loop {
        // What does not fit is lost, as on a full socket.
        let _ = mailbox.offer(Message::Framed { from, bytes });
        bytes = match timeout(IDLE, read_frame(&mut reader)).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return Ended::by(&error),
            Err(_) => return Ended::Idle,
        };
    }
}

async fn read_frame(reader: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = usize::from(reader.read_u16().await?);
    if length > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame).await?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_tcp_is_no_address_of_udp() {
        let udp: SocketAddr = "192.0.2.1:9".parse().expect("an address");
        let tcp = marked(udp);
        assert!(is_marked(tcp) && !is_marked(udp));
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:9".parse().expect("an address");
        assert_ne!(tcp, mapped);
        assert_eq!(PeerAddress(tcp).to_string(), "tcp 192.0.2.1:9");
        assert_eq!(PeerAddress(udp).to_string(), "192.0.2.1:9");
    }
}
