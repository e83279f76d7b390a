//! ICE over TCP for peers whose networks let no UDP through (RFC 6544): passive candidates on the number of the UDP port.
//!
//! A connection is one more address of a peer. What comes by it is handed to the shard that its first check names, and what
//! goes to it is queued here; sessions do not know the difference. An address of TCP is told from one of UDP by a mark in
//! its scope, which no address of a datagram has: the two of the same number are never taken for each other.
//!
//! Frames are those of RFC 4571: two bytes of length, then what would be a datagram. A queue that is full drops, as a
//! socket of UDP does, and the peer asks again for what it misses (invariant 5).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::core::Shared;
use super::message::Message;
use super::socket::{SendCounters, Sender};
use super::ufrag;
use crate::hub::lock::{Rank, RankedGuard, RankedMutex};
use crate::session::ice;
use crate::session::outbox::{Run, Sink};

/// What marks an address as one of TCP: no interface has this number.
const MARK: u32 = u32::MAX;

/// Runs that may wait for one connection: about a second of a stream.
const QUEUE: usize = 256;

/// Longest frame that is taken, in bytes: no peer sends datagrams longer than an MTU.
const MAX_FRAME: usize = 4_096;

/// Within so long a connection has to bring its first check.
const FIRST: Duration = Duration::from_secs(10);

/// A connection that brings nothing for so long is closed, as a session is (RFC 7675 §5.1).
const IDLE: Duration = Duration::from_secs(30);

/// Bytes that are written at once.
const WRITE: usize = 64 * 1024;

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
pub struct Way(pub SocketAddr);

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = SocketAddr::new(self.0.ip().to_canonical(), self.0.port());
        let protocol = if is_marked(self.0) { "tcp " } else { "" };
        write!(f, "{protocol}{plain}")
    }
}

/// The connections that peers have to the media port.
#[derive(Debug)]
pub struct Streams {
    queues: RankedMutex<HashMap<SocketAddr, mpsc::Sender<Bytes>>>,
    count: AtomicUsize,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            queues: RankedMutex::new(Rank::Connections, HashMap::new()),
            count: AtomicUsize::new(0),
        }
    }
}

impl Streams {
    fn add(&self, address: SocketAddr, queue: mpsc::Sender<Bytes>) {
        let mut queues = self.lock();
        queues.insert(address, queue);
        self.count.store(queues.len(), Ordering::Release);
    }

    /// Closes the connection of a peer that is gone.
    pub fn remove(&self, address: SocketAddr) {
        if is_marked(address) {
            let mut queues = self.lock();
            queues.remove(&address);
            self.count.store(queues.len(), Ordering::Release);
        }
    }

    /// Connections at this moment.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    fn send(&self, buffer: &[u8], run: &Run, counters: &SendCounters) {
        let datagrams = buffer.get(run.start..run.end).unwrap_or_default();
        let datagrams = datagrams.chunks(run.segment.max(1));
        let number = datagrams.len() as u64;
        let mut framed = BytesMut::with_capacity(run.end - run.start + 2 * datagrams.len());
        for datagram in datagrams {
            framed.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
            framed.extend_from_slice(datagram);
        }
        let sent = match self.lock().get(&run.destination.to) {
            Some(queue) => queue.try_send(framed.freeze()).map_err(|_| &counters.dropped_full),
            None => Err(&counters.dropped_refused),
        };
        let counter = sent.err().unwrap_or(&counters.datagrams);
        counter.fetch_add(number, Ordering::Relaxed);
    }

    fn lock(&self) -> RankedGuard<'_, HashMap<SocketAddr, mpsc::Sender<Bytes>>> {
        self.queues.lock()
    }
}

/// Sends by UDP, and by TCP to those who came so.
pub(super) struct Ways {
    pub(super) udp: Sender,
    pub(super) tcp: Arc<Streams>,
    pub(super) counters: Arc<SendCounters>,
}

impl Sink for Ways {
    fn send(&mut self, buffer: &[u8], runs: &[Run]) {
        if self.tcp.count() == 0 && !runs.iter().any(|run| is_marked(run.destination.to)) {
            return self.udp.send(buffer, runs);
        }
        for runs in runs.chunk_by(|a, b| is_marked(a.destination.to) == is_marked(b.destination.to)) {
            match runs {
                [first, ..] if is_marked(first.destination.to) => {
                    for run in runs {
                        self.tcp.send(buffer, run, &self.counters);
                    }
                }
                runs => self.udp.send(buffer, runs),
            }
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let address = marked(peer);
    let (mut reader, writer) = stream.into_split();
    let first = timeout(FIRST, read_frame(&mut reader)).await??;
    let owner = ice::local_ufrag(&first).filter(|_| ice::is_check(&first));
    let owner = owner.and_then(|ufrag| ufrag::shard_of(&ufrag));
    let mailbox = owner.and_then(|owner| shared.mailboxes.get(usize::from(owner.0)));
    let Some(mailbox) = mailbox else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (queue, frames) = mpsc::channel(QUEUE);
    shared.streams.add(address, queue);
    let reading = async {
        let mut bytes = first;
        loop {
            // What does not fit is lost, as on a full socket.
            let _ = mailbox.offer(Message::Framed { from: address, bytes });
            bytes = timeout(IDLE, read_frame(&mut reader)).await??;
        }
    };
    let ended = tokio::select! {
        ended = reading => ended,
        written = write(writer, frames) => written,
    };
    shared.streams.remove(address);
    ended
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

/// Writes until the session is gone.
async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Bytes>) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    while let Some(first) = frames.recv().await {
        buffer.clear();
        buffer.extend_from_slice(&first);
        while buffer.len() < WRITE
            && let Ok(more) = frames.try_recv()
        {
            buffer.extend_from_slice(&more);
        }
        writer.write_all(&buffer).await?;
    }
    writer.shutdown().await
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
        assert_eq!(Way(tcp).to_string(), "tcp 192.0.2.1:9");
        assert_eq!(Way(udp).to_string(), "192.0.2.1:9");
    }
}
