//! The media plane: one thread per shard, all on one UDP port. The control plane uses it by the handle [`MediaPlane`].
//!
//! ```text
//! socket -> Core::handle_datagram -> Session -> Publisher --tick--> hub ring + batch -+-> own viewers
//!                                                                                     +-> mailboxes of other shards
//! mailbox -> Core::handle_message -> Viewer -> outbox -> one send per run of equal-sized packets
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rand::RngCore as _;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::{error, warn};

mod addresses;
mod clock;
pub mod discovery;
mod error;
mod runner;
pub mod socket;
pub mod tcp;
pub mod watchdog;

pub use self::addresses::host_addresses;
use self::clock::now;
pub use self::error::StartError;
use self::runner::Runner;
use self::socket::{UdpPort, Waker};
use self::tcp::TcpConnections;
use self::watchdog::{Stalled, Ticks, Watchdog};
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
use millstream_core::shard::counters::Counters;
use millstream_core::shard::message::{Message, Opening, OpeningRole};
use millstream_core::shard::tcp::TcpCloseReason;
use millstream_core::shard::{Shared, ufrag};
use millstream_core::sources::frame_source::{FanOut, FrameSource};

/// Settings of the media plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address of the UDP port for all peers; with port 0 the kernel chooses.
    pub listen: SocketAddr,
    /// Candidate addresses, the best first; empty for the addresses of the host.
    pub announce: Vec<IpAddr>,
    /// Number of threads; 0 for one per processor.
    pub shards: usize,
    pub sessions: SessionLimits,
    /// The process ends when a shard has not ticked for this long.
    pub fatal_stall: Duration,
}

/// The shard of a new session, and its local ICE credentials, which name the shard.
#[derive(Clone, Debug)]
pub struct Placement {
    pub shard: usize,
    pub credentials: IceCredentials,
}

/// Why the media plane refuses a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("the gateway has reached its maximum number of sessions")]
    Full,
    #[error("too many sessions are being set up")]
    HalfOpen,
    #[error("too many sessions are being set up from this address")]
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

/// Handle on the running shards. Cheap to clone. No call blocks except [`MediaPlane::stop`].
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

/// Capacity of a shard's mailbox in batches: at one batch per frame, several seconds of many streams.
const MAILBOX_CAPACITY: usize = 8_192;

impl MediaPlane {
    /// Binds the port and starts the shards.
    ///
    /// # Errors
    ///
    /// A [`StartError`].
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
                Arc::new(Mailbox::new(MAILBOX_CAPACITY, move || waker.wake()))
            })
            .collect();
        let candidates = addresses::candidates(&settings.announce, address)?;
        let (forgotten, forgotten_sessions) = mpsc::unbounded_channel();
        let on_forget = move |id| {
            // The receiver is gone when the gateway is stopping.
            let _ = forgotten.send(id);
        };
        let tcp = Arc::new(TcpConnections::default());
        let hub = Hub::default();
        let shared = Arc::new(Shared {
            registry: Registry::new(settings.sessions, hub.changes().clone(), Box::new(on_forget)),
            hub,
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
            let runner = Runner {
                index: ShardIndex(index as u16),
                port,
                waker,
                shared: shared.clone(),
                ticks: ticks.clone(),
            };
            threads.push(runner.spawn(tcp.clone()).map_err(StartError::Shard)?);
        }
        let mailboxes = shared.mailboxes.clone();
        let watchdog = Watchdog::start(ticks.clone(), mailboxes, settings.fatal_stall, now, runner::end_process)
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

    /// Returns the address that the shards listen on.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// Returns the candidate addresses for answers, the best first.
    pub fn candidates(&self) -> Arc<[SocketAddr]> {
        self.inner.shared.announced()
    }

    /// Announces an address as the first candidate, in place of `instead_of`.
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
            .filter(|other| **other != first && Some(other.ip()) != instead_of);
        *announced = std::iter::once(first).chain(rest.copied()).collect();
    }

    /// Returns the number of TCP connections of peers.
    pub fn tcp_connections(&self) -> usize {
        self.inner.tcp.count()
    }

    /// Returns the number of queued messages of each shard.
    pub fn queues(&self) -> Vec<usize> {
        let mailboxes = self.inner.shared.mailboxes.iter();
        mailboxes.map(|mailbox| mailbox.waiting()).collect()
    }

    /// Returns the time since the last tick of each shard.
    pub fn tick_ages(&self) -> Vec<Duration> {
        self.inner.ticks.ages(now())
    }

    /// Returns a shard that has stopped ticking, if any. Does not wait for a shard.
    pub fn stalled(&self) -> Option<Stalled> {
        self.inner.ticks.stalled(now(), watchdog::UNHEALTHY_AFTER)
    }

    /// Whether answers offer TCP candidates.
    pub fn takes_tcp(&self) -> bool {
        self.inner.takes_tcp.load(Ordering::Acquire)
    }

    /// Makes answers offer TCP candidates, on the number of the UDP port.
    pub fn announce_tcp(&self) {
        self.inner.takes_tcp.store(true, Ordering::Release);
    }

    /// Returns the number of bytes queued for TCP connections.
    pub fn tcp_queued(&self) -> usize {
        self.inner.tcp.queued()
    }

    /// Serves a connection to the TCP media port until it ends (RFC 6544).
    pub async fn serve_tcp(&self, stream: TcpStream, peer: SocketAddr) -> TcpCloseReason {
        tcp::serve(stream, peer, self.inner.shared.clone(), self.inner.tcp.clone()).await
    }

    /// Returns the fingerprint of the gateway's certificate, for answers.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.inner.shared.identity.fingerprint
    }

    /// Returns the streams.
    pub fn hub(&self) -> &Hub {
        &self.inner.shared.hub
    }

    /// Returns the counters of the media plane.
    pub fn counters(&self) -> &Counters {
        &self.inner.shared.counters
    }

    /// Returns the number of sessions that have not ended.
    pub fn sessions(&self) -> usize {
        self.inner.shared.registry.live()
    }

    /// Returns the number of sessions that have neither connected nor ended.
    pub fn half_open_sessions(&self) -> usize {
        self.inner.shared.registry.half_open()
    }

    /// Returns the receiver of the ids of forgotten sessions, one minute after their end; only the first call returns it.
    /// Their number is bounded by that of the sessions.
    pub fn forgotten_sessions(&self) -> Option<mpsc::UnboundedReceiver<SessionId>> {
        let mut forgotten = self
            .inner
            .forgotten_sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        forgotten.take()
    }

    /// Chooses a shard and creates ICE credentials for a new session. Reserves nothing.
    pub fn place(&self) -> Placement {
        let shard = self.inner.next.fetch_add(1, Ordering::Relaxed) % self.inner.shared.mailboxes.len().max(1);
        let credentials = ufrag::credentials(ShardIndex(shard as u16), &mut || rand::rng().next_u32());
        Placement { shard, credentials }
    }

    /// Returns the tracks of a stream; `None` without a source.
    pub fn available_tracks(&self, stream: &StreamName) -> Option<AvailableTracks> {
        let hub = &self.inner.shared.hub;
        hub.find(stream)?
            .with(|state| state.available_tracks(|codec| hub.can_transcode(codec)))
    }

    /// Opens the session of a publisher. It becomes the source of the stream with its first packet.
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

    /// Opens the session of a viewer that answered an offer of the gateway, so that its id is already in use.
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
                // If the mailbox is full, the session ends by its connection timeout.
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

    /// Returns the state of a session.
    pub fn state(&self, id: SessionId) -> SessionState {
        self.inner.shared.registry.find(id).0
    }

    /// Returns what a reason means in words, with the addresses that clients receive if it was not connected.
    pub fn explain(&self, reason: CloseReason) -> String {
        let explanation = reason.explanation();
        if !reason.is_not_connected() {
            return explanation.to_owned();
        }
        let addresses: Vec<String> = self.candidates().iter().map(SocketAddr::to_string).collect();
        format!("{explanation}; announced: {}", addresses.join(", "))
    }

    /// Restarts ICE of a session with the peer's new credentials (RFC 9725 §4.3.3). Returns the new local credentials;
    /// `None` without any change if the session has ended or the mailbox of its shard is full.
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

    /// Sets the layer selection of a viewer. Returns `false` if its session has ended.
    pub fn choose_layer(&self, id: SessionId, selection: LayerSelection) -> bool {
        let (state, shard) = self.inner.shared.registry.find(id);
        let mailbox = shard.and_then(|shard| self.inner.shared.mailboxes.get(usize::from(shard.0)));
        let (SessionState::Connecting | SessionState::Connected, Some(mailbox)) = (state, mailbox) else {
            return false;
        };
        mailbox.push(Message::ChooseLayer { session: id, selection }).is_ok()
    }

    /// Ends a session that its peer deletes, with a close_notify. Returns its previous state.
    pub fn close(&self, id: SessionId) -> SessionState {
        self.end(id, CloseReason::Deleted)
    }

    /// Ends a session for this reason. Returns its previous state.
    pub fn end(&self, id: SessionId, reason: CloseReason) -> SessionState {
        let (state, shard) = self.inner.shared.registry.find(id);
        let mailbox = shard.and_then(|shard| self.inner.shared.mailboxes.get(usize::from(shard.0)));
        if let (SessionState::Connecting | SessionState::Connected, Some(mailbox)) = (state, mailbox) {
            // If the mailbox is full, the session ends by its timeout once the peer is silent.
            let _ = mailbox.push(Message::Close { session: id, reason });
        }
        state
    }

    /// Ends all sessions and stops the shards. Returns when their threads have ended.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        for mailbox in &self.inner.shared.mailboxes {
            if mailbox.push(Message::Stop).is_err() {
                warn!("the mailbox of a shard is full: the shard cannot be stopped");
            }
        }
        let threads = std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                error!("the thread of a shard panicked");
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
            // If the message is lost, the request is repeated.
            let _ = mailbox.offer(Message::RequestKeyFrame {
                session: source.session,
            });
        }
    }
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
