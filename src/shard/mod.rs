//! The media plane: one thread per shard, all on one UDP port. [`MediaPlane`] is the handle that the control plane holds.
//!
//! ```text
//! socket -> Core::handle_datagram -> Session -> Publisher --tick--> hub ring + batch -+-> own viewers
//!                                                                                     +-> mailboxes of other shards
//! mailbox -> Core::handle_message -> Viewer -> outbox -> one send per run of equal-sized packets
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rand::RngCore as _;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

pub mod discovery;
pub mod socket;
pub mod tcp;
pub mod watchdog;

use self::socket::{Receiver, Sender, UdpPort, Waker};
use self::tcp::{PeerSink, TcpConnections};
use self::watchdog::{Phase, Stalled, Ticks, Watchdog};
use crate::sources::fetch::attached::random_id;
use millstream_core::hub::Hub;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::registry::{Full, Registry};
pub use millstream_core::hub::registry::{Requester, SessionLimits, SessionState};
pub use millstream_core::hub::stream::{Layer, LayerSelection, SessionId};
use millstream_core::hub::stream::{ShardIndex, SourceRef};
pub use millstream_core::sdp::plan::SourceFormats;
use millstream_core::sdp::plan::{AvailableTracks, Fingerprint, IceCredentials, Playback, Publication};
use millstream_core::session::CloseReason;
use millstream_core::session::identity::Identity;
use millstream_core::session::outbox::Outbox;
use millstream_core::shard::counters::Counters;
use millstream_core::shard::message::{Message, Opening, OpeningRole};
use millstream_core::shard::tcp::TcpCloseReason;
use millstream_core::shard::{Core, Shared, ufrag};
use millstream_core::sources::frame_source::{FanOut, FrameSource};

/// How the media plane is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The UDP port for all peers; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Addresses to announce, the best first; empty announces the host's own.
    pub announce: Vec<IpAddr>,
    /// Threads; 0 takes one for each processor.
    pub shards: usize,
    pub sessions: SessionLimits,
    /// A shard that stands still for so long ends the process.
    pub fatal_stall: Duration,
}

/// Why the media plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("cannot listen on UDP {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot set up a shard: {0}")]
    Shard(#[source] io::Error),
    #[error("no address to announce: the host has none, and webrtc.announce is empty")]
    NoAddress,
}

/// A place for a session on a shard: its local ICE credentials tell the shard.
#[derive(Clone, Debug)]
pub struct Placement {
    pub shard: usize,
    pub credentials: IceCredentials,
}

/// The media plane refuses a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("the gateway holds as many sessions as it may")]
    Full,
    #[error("as many sessions are being set up as may be at the same time")]
    HalfOpen,
    #[error("as many sessions are being set up from this address as may be at the same time")]
    Address,
    #[error("the gateway is stopping")]
    Stopping,
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        match full {
            Full::Sessions => Self::Full,
            Full::HalfOpen => Self::HalfOpen,
            Full::Address => Self::Address,
        }
    }
}

/// Handle on the running shards. Cheap to clone; every call returns at once, but [`MediaPlane::stop`].
#[derive(Clone)]
pub struct MediaPlane {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    tcp: Arc<TcpConnections>,
    forgotten_sessions: Mutex<Option<mpsc::UnboundedReceiver<SessionId>>>,
    local: SocketAddr,
    next: AtomicUsize,
    stopping: AtomicBool,
    takes_tcp: AtomicBool,
    ticks: Arc<Ticks>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    watchdog: Mutex<Option<Watchdog>>,
}

/// Media batches that may wait for a shard: at a batch per frame and 30 frames a second, some seconds of many streams.
const MAILBOX: usize = 8_192;

impl MediaPlane {
    /// Binds the port and starts the shards.
    ///
    /// # Errors
    ///
    /// A [`StartError`] that names what cannot be had.
    pub fn start(settings: Settings, identity: Arc<Identity>) -> Result<Self, StartError> {
        let shards = match settings.shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
        .min(ufrag::MAX_SHARDS);
        let mut address = settings.listen;
        let mut ports = Vec::new();
        for _ in 0..shards {
            let port = UdpPort::bind(address).map_err(|source| StartError::Bind { address, source })?;
            address = port.local();
            ports.push(Arc::new(port));
        }
        let wakers = (0..shards)
            .map(|_| Waker::new())
            .collect::<io::Result<Vec<_>>>()
            .map_err(StartError::Shard)?;
        let mailboxes = wakers
            .iter()
            .map(|waker| {
                let waker = waker.clone();
                Arc::new(Mailbox::new(MAILBOX, move || waker.wake()))
            })
            .collect();
        let candidates = candidates(&settings.announce, address)?;
        let (forgotten, forgotten_sessions) = mpsc::unbounded_channel();
        let on_forget = move |id| {
            // Nobody listens when the gateway is stopping.
            let _ = forgotten.send(id);
        };
        let tcp = Arc::new(TcpConnections::default());
        let shared = Arc::new(Shared {
            hub: Hub::default(),
            registry: Registry::new(settings.sessions, Box::new(on_forget)),
            identity,
            mailboxes,
            counters: Counters::default(),
            announced: RwLock::new(candidates.into()),
            tcp: tcp.clone(),
            epoch: epoch(),
        });
        let ticks = Arc::new(Ticks::new(now(), shards));
        let mut threads = Vec::new();
        for (index, (port, waker)) in ports.into_iter().zip(wakers).enumerate() {
            let index = ShardIndex(index as u16);
            threads.push(
                spawn(index, port, waker, shared.clone(), tcp.clone(), ticks.clone()).map_err(StartError::Shard)?,
            );
        }
        let mailboxes = shared.mailboxes.clone();
        let watchdog = Watchdog::start(ticks.clone(), mailboxes, settings.fatal_stall, now, end_process)
            .map_err(StartError::Shard)?;
        let inner = Inner {
            shared,
            tcp,
            forgotten_sessions: Mutex::new(Some(forgotten_sessions)),
            ticks,
            watchdog: Mutex::new(Some(watchdog)),
            local: address,
            next: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            takes_tcp: AtomicBool::new(false),
            threads: Mutex::new(threads),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where the shards listen.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// Addresses for the answer, the best first.
    pub fn candidates(&self) -> Arc<[SocketAddr]> {
        self.inner.shared.announced()
    }

    /// From here on this address is given to peers first, instead of the one before it that was found so.
    pub fn announce(&self, address: IpAddr, instead_of: Option<IpAddr>) {
        let mut announced = self
            .inner
            .shared
            .announced
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let first = SocketAddr::new(address, self.inner.local.port());
        let rest = announced
            .iter()
            .filter(|known| **known != first && Some(known.ip()) != instead_of);
        *announced = std::iter::once(first).chain(rest.copied()).collect();
    }

    /// Peers whose media goes by TCP.
    pub fn tcp_connections(&self) -> usize {
        self.inner.tcp.count()
    }

    /// Messages that wait in the mailbox of each shard.
    pub fn queues(&self) -> Vec<usize> {
        let mailboxes = self.inner.shared.mailboxes.iter();
        mailboxes.map(|mailbox| mailbox.waiting()).collect()
    }

    /// Time since the last tick of each shard.
    pub fn tick_ages(&self) -> Vec<Duration> {
        self.inner.ticks.ages(now())
    }

    /// A shard that stands still, if there is one. Waits for no shard.
    pub fn stalled(&self) -> Option<Stalled> {
        self.inner.ticks.stalled(now(), watchdog::UNHEALTHY_AFTER)
    }

    /// Whether peers are told that they may come by TCP.
    pub fn takes_tcp(&self) -> bool {
        self.inner.takes_tcp.load(Ordering::Acquire)
    }

    /// From here on peers are told that they may come by TCP, to the number of the UDP port.
    pub fn announce_tcp(&self) {
        self.inner.takes_tcp.store(true, Ordering::Release);
    }

    /// Bytes that wait to be written to them.
    pub fn tcp_queued(&self) -> usize {
        self.inner.tcp.queued()
    }

    /// Serves a connection to the TCP port of media, to its end (RFC 6544).
    pub async fn serve_tcp(&self, stream: TcpStream, peer: SocketAddr) -> TcpCloseReason {
        tcp::serve(stream, peer, self.inner.shared.clone(), self.inner.tcp.clone()).await
    }

    /// Fingerprint of our certificate, for the answer.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.inner.shared.identity.fingerprint
    }

    /// The streams, for the API and the metrics.
    pub fn hub(&self) -> &Hub {
        &self.inner.shared.hub
    }

    /// What the media plane counted, for the metrics.
    pub fn counters(&self) -> &Counters {
        &self.inner.shared.counters
    }

    /// Sessions that have not ended.
    pub fn sessions(&self) -> usize {
        self.inner.shared.registry.live()
    }

    /// Those of them that are not connected.
    pub fn half_open_sessions(&self) -> usize {
        self.inner.shared.registry.half_open()
    }

    /// Returns the ids of sessions as they are forgotten, a minute after their end; given once. Their number is bounded by that of the sessions.
    pub fn forgotten_sessions(&self) -> Option<mpsc::UnboundedReceiver<SessionId>> {
        let mut forgotten = self
            .inner
            .forgotten_sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        forgotten.take()
    }

    /// Chooses a shard and makes ICE credentials for a new session. Nothing is held yet.
    pub fn place(&self) -> Placement {
        let shard = self.inner.next.fetch_add(1, Ordering::Relaxed) % self.inner.shared.mailboxes.len().max(1);
        let credentials = ufrag::credentials(ShardIndex(shard as u16), &mut || rand::rng().next_u32());
        Placement { shard, credentials }
    }

    /// What a stream carries now; `None` while nobody publishes.
    pub fn available_tracks(&self, stream: &StreamName) -> Option<AvailableTracks> {
        let hub = &self.inner.shared.hub;
        hub.find(stream)?
            .with(|state| state.available_tracks(|codec| hub.can_transcode(codec)))
    }

    /// Opens the session of a publisher. It takes the stream over when its first packet arrives.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; nothing was opened.
    pub fn publish(
        &self,
        stream: StreamName,
        placement: Placement,
        publication: Publication,
        requester: Requester,
    ) -> Result<SessionId, Refusal> {
        let role = OpeningRole::Publish(publication);
        self.open(random_id(), stream, placement, role, requester)
    }

    /// Opens the session of a viewer.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; nothing was opened.
    pub fn play(
        &self,
        stream: StreamName,
        placement: Placement,
        playback: Playback,
        requester: Requester,
    ) -> Result<SessionId, Refusal> {
        self.play_as(random_id(), stream, placement, playback, requester)
    }

    /// Opens the session of a viewer whose URL is known already, as it answers an offer of ours.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; nothing was opened.
    pub fn play_as(
        &self,
        id: SessionId,
        stream: StreamName,
        placement: Placement,
        playback: Playback,
        requester: Requester,
    ) -> Result<SessionId, Refusal> {
        self.open(id, stream, placement, OpeningRole::Play(playback), requester)
    }

    fn open(
        &self,
        session: SessionId,
        stream: StreamName,
        placement: Placement,
        role: OpeningRole,
        requester: Requester,
    ) -> Result<SessionId, Refusal> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(Refusal::Stopping);
        }
        let shared = &self.inner.shared;
        let mailbox = shared.mailboxes.get(placement.shard).ok_or(Refusal::Full)?;
        let shard = ShardIndex(placement.shard as u16);
        let evicted = shared
            .registry
            .open(now(), session, shard, requester)
            .inspect_err(|full| shared.counters.refused(*full))?;
        if let Some(evicted) = evicted {
            shared.counters.evicted(evicted.full);
            if let Some(mailbox) = shared.mailboxes.get(usize::from(evicted.shard.0)) {
                // A shard too busy to take this ends the session when its time to connect is over.
                let _ = mailbox.push(Message::Close {
                    session: evicted.id,
                    reason: CloseReason::Evicted,
                });
            }
        }
        let opening = Box::new(Opening {
            session,
            stream,
            local: placement.credentials,
            role,
        });
        mailbox.push(Message::Open(opening)).map_err(|_| {
            shared.registry.ended(now(), session, CloseReason::Internal);
            Refusal::Full
        })?;
        Ok(session)
    }

    /// What became of a session.
    pub fn state(&self, id: SessionId) -> SessionState {
        self.inner.shared.registry.find(id).0
    }

    /// Begins a new ICE session for a session that runs, with these credentials of the peer (RFC 9725 §4.3.3). Returns
    /// ours; `None` if the session does not run or its shard is too busy, and then nothing has changed.
    pub fn restart_ice(&self, id: SessionId, remote: IceCredentials) -> Option<IceCredentials> {
        let (state, shard) = self.inner.shared.registry.find(id);
        let (SessionState::Connecting | SessionState::Connected, Some(shard)) = (state, shard) else {
            return None;
        };
        let local = ufrag::credentials(shard, &mut || rand::rng().next_u32());
        let message = Message::Restart {
            session: id,
            local: local.clone(),
            remote,
        };
        self.inner
            .shared
            .mailboxes
            .get(usize::from(shard.0))?
            .push(message)
            .ok()?;
        Some(local)
    }

    /// A viewer wants this version of the picture from now on; `false` if its session does not run.
    pub fn choose_layer(&self, id: SessionId, selection: LayerSelection) -> bool {
        let (state, shard) = self.inner.shared.registry.find(id);
        let mailbox = shard.and_then(|shard| self.inner.shared.mailboxes.get(usize::from(shard.0)));
        let (SessionState::Connecting | SessionState::Connected, Some(mailbox)) = (state, mailbox) else {
            return false;
        };
        mailbox.push(Message::ChooseLayer { session: id, selection }).is_ok()
    }

    /// Ends a session that its peer deletes: sends close_notify, frees everything. Returns its state before.
    pub fn close(&self, id: SessionId) -> SessionState {
        self.end(id, CloseReason::Deleted)
    }

    /// Ends a session for this reason, in the same way.
    pub fn end(&self, id: SessionId, reason: CloseReason) -> SessionState {
        let (state, shard) = self.inner.shared.registry.find(id);
        let mailbox = shard.and_then(|shard| self.inner.shared.mailboxes.get(usize::from(shard.0)));
        if let (SessionState::Connecting | SessionState::Connected, Some(mailbox)) = (state, mailbox) {
            // A shard too busy to take this ends the session by itself when its peer falls silent.
            let _ = mailbox.push(Message::Close { session: id, reason });
        }
        state
    }

    /// Ends all sessions and stops the shards; returns when their threads have ended.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        for mailbox in &self.inner.shared.mailboxes {
            if mailbox.push(Message::Stop).is_err() {
                warn!("a shard is too busy to be stopped in good order");
            }
        }
        let threads = std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                error!("a shard had panicked");
            }
        }
        let watchdog = self
            .inner
            .watchdog
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(watchdog) = watchdog {
            watchdog.stop();
        }
    }
}

impl FanOut for MediaPlane {
    fn hub(&self) -> &Hub {
        &self.inner.shared.hub
    }

    fn feed(&self, feed: &mut FrameSource) -> bool {
        self.inner.shared.publish_frames(feed)
    }

    fn ask_for_key_frame(&self, source: SourceRef) {
        let mailbox = self.inner.shared.mailboxes.get(usize::from(source.shard.0));
        if let Some(mailbox) = mailbox {
            // It is asked again if this is lost.
            let _ = mailbox.offer(Message::RequestKeyFrame {
                session: source.session,
            });
        }
    }
}

fn spawn(
    index: ShardIndex,
    port: Arc<UdpPort>,
    waker: Waker,
    shared: Arc<Shared>,
    tcp: Arc<TcpConnections>,
    ticks: Arc<Ticks>,
) -> io::Result<JoinHandle<()>> {
    let sender = PeerSink {
        udp: Sender::new(port.clone(), shared.counters.sent.clone()),
        tcp,
        counters: shared.counters.sent.clone(),
    };
    let random = Box::new(|| rand::rng().next_u32());
    let core = Core::new(index, shared.clone(), Outbox::new(Box::new(sender)), random);
    std::thread::Builder::new()
        .name(format!("shard-{}", index.0))
        .spawn(move || {
            ticks.begin(index, now(), socket::thread_id());
            run(core, index, &port, &waker, &shared, &ticks);
            ticks.enter(index, Phase::Stopped);
        })
}

/// What the watchdog does in the end.
fn end_process() {
    crate::telemetry::flush();
    std::process::exit(watchdog::EXIT_STATUS);
}

/// Batches of datagrams that one turn takes at most, so that timers and messages are not starved.
const BATCHES_PER_TICK: usize = 4;

fn run(mut core: Core, index: ShardIndex, port: &UdpPort, waker: &Waker, shared: &Shared, ticks: &Ticks) {
    let mut receiver = Receiver::new();
    let mut messages = VecDeque::new();
    let Some(mailbox) = shared.mailboxes.get(usize::from(index.0)) else {
        return;
    };
    info!(shard = index.0, "shard started");
    while !core.is_done() {
        let due = core.poll_timeout().map(|at| at.saturating_duration_since(now()));
        let timeout = due.map_or(watchdog::MAX_WAIT, |due| due.min(watchdog::MAX_WAIT));
        ticks.enter(index, Phase::Waiting);
        socket::wait(port, waker, Some(timeout));
        ticks.tick(index, now());
        for _ in 0..BATCHES_PER_TICK {
            ticks.enter(index, Phase::Receiving);
            let count = receiver.receive(port).unwrap_or_else(|error| {
                // An ICMP error of an earlier send; the socket goes on.
                debug!(%error, "receiving");
                0
            });
            // Messages come between receiving and handling: whoever was told of a session, or of a route, before its
            // datagram was sent has left the message by now, and no first datagram is taken for a stranger's.
            ticks.enter(index, Phase::Messages);
            contained(index, "messages", &mut core, |core| {
                handle_messages(core, mailbox, &mut messages)
            });
            messages.clear();
            if count == 0 {
                break;
            }
            let now = now();
            shared
                .counters
                .received_datagrams
                .fetch_add(count as u64, Ordering::Relaxed);
            ticks.enter(index, Phase::Datagrams);
            for datagram in receiver.datagrams() {
                shared
                    .counters
                    .received_bytes
                    .fetch_add(datagram.bytes.len() as u64, Ordering::Relaxed);
                let from = datagram.from;
                let handled = contained(index, "datagram", &mut core, |core| {
                    core.handle_datagram(now, from, datagram.to, datagram.bytes);
                });
                if !handled {
                    contained(index, "abandoning a peer", &mut core, |core| core.abandon(now, from));
                }
            }
        }
        let now = now();
        ticks.enter(index, Phase::Timers);
        contained(index, "timeouts", &mut core, |core| core.handle_timeout(now));
        ticks.enter(index, Phase::Sending);
        contained(index, "end of turn", &mut core, |core| core.finish_tick(now));
        if let Some(oldest) = core.take_oldest() {
            let took = self::now().saturating_duration_since(oldest);
            shared.counters.forwarding.record(took);
        }
    }
    info!(shard = index.0, "shard stopped");
}

/// Does something to a shard; a panic in it is a bug of ours, or of a library below us, and costs the peer that it was
/// about, not the shard with everybody on it. Returns whether there was none.
fn contained<T>(shard: ShardIndex, what: &str, subject: &mut T, work: impl FnOnce(&mut T)) -> bool {
    let whole = catch_unwind(AssertUnwindSafe(|| work(subject))).is_ok();
    if !whole {
        error!(shard = shard.0, what, "a bug: the shard goes on without it");
    }
    whole
}

fn handle_messages(core: &mut Core, mailbox: &Mailbox<Message>, messages: &mut VecDeque<Message>) {
    let now = now();
    mailbox.take(messages);
    for message in messages.drain(..) {
        core.handle_message(now, message);
    }
    if mailbox.has_overflowed() {
        core.handle_overflow(now);
    }
}

#[expect(clippy::disallowed_methods, reason = "the shell that gives time to the shards")]
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "read once: sender reports follow the monotonic clock from here on"
)]
fn epoch() -> (Instant, std::time::Duration) {
    (
        Instant::now(),
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// Announced addresses with the port: configured ones, or the host's own with public IPv4 first and loopback last.
fn candidates(announce: &[IpAddr], local: SocketAddr) -> Result<Vec<SocketAddr>, StartError> {
    let mut addresses: Vec<IpAddr> = match (announce, local.ip()) {
        ([], ip) if !ip.is_unspecified() => vec![ip],
        ([], _) => host_addresses(local.is_ipv6()),
        (announce, _) => announce.to_vec(),
    };
    addresses.dedup();
    if addresses.is_empty() {
        return Err(StartError::NoAddress);
    }
    Ok(addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, local.port()))
        .collect())
}

/// Addresses of this host that others may reach, the best first.
pub fn host_addresses(with_v6: bool) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .map(|interface| interface.ip())
        .collect();
    addresses.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        // A link-local IPv6 address means nothing without its zone.
        IpAddr::V6(ip) => with_v6 && !ip.is_unicast_link_local(),
    });
    // FFmpeg takes only the first one; IPv4 reaches most, and nobody else's loopback reaches us.
    addresses.sort_by_key(|ip| match ip {
        ip if ip.is_loopback() => 3,
        IpAddr::V4(ip) if ip.is_private() => 1,
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 2,
    });
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_and_told() {
        let mut value = 1;
        assert!(contained(ShardIndex(0), "good work", &mut value, |value| *value += 1));
        assert!(!contained(ShardIndex(0), "bad work", &mut value, |_| panic!(
            "on purpose"
        )));
        assert_eq!(value, 2);
    }
}
