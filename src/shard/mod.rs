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
use std::time::{Duration, Instant};

use rand::RngCore as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::{error, warn};

mod addresses;
mod clock;
pub mod data;
pub mod discovery;
mod error;
mod runner;
pub mod system_calls;
pub mod tcp;
pub mod watchdog;

pub use self::addresses::host_addresses_with_loopback_last;
use self::clock::{now, read_monotonic_and_wall_clock};
pub use self::error::{MediaPlaneStartError, SessionRefusal};
use self::runner::ShardRunner;
use self::system_calls::socket::ShardSocket;
use self::system_calls::wait::ShardWaker;
use self::tcp::TcpConnections;
use self::watchdog::{ShardTicks, StalledShard, Watchdog};
use crate::sources::fetch::attached_source::random_session_id;
use millstream_core::congestion::ladder::FrameSelection;
use millstream_core::hub::Hub;
use millstream_core::hub::data_settings::DataSettings;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::session_registry::SessionRegistry;
pub use millstream_core::hub::session_registry::{SessionLimits, SessionRequester, SessionState};
pub use millstream_core::hub::stream::{LayerSelection, SessionId, SimulcastLayer};
use millstream_core::hub::stream::{ShardIndex, SourceRef};
use millstream_core::hub::viewer_quality::{ViewerDelays, ViewerQuality};
pub use millstream_core::sdp::negotiation_result::AudioVideoFormats;
use millstream_core::sdp::negotiation_result::{
    AvailableTracks, Fingerprint, IceCredentials, NegotiatedPlayback, NegotiatedPublication,
};
use millstream_core::session::CloseReason;
use millstream_core::session::identity::DtlsIdentity;
use millstream_core::shard::counters::SharedMediaCounters;
use millstream_core::shard::message::{NegotiatedRole, NewSession, ShardMessage};
use millstream_core::shard::path_capacities::PathCapacities;
use millstream_core::shard::tcp::TcpCloseReason;
use millstream_core::shard::{SharedState, ufrag};
use millstream_core::sources::failover_group::map::SourceFailoverMap;
use millstream_core::sources::frame_source::{FrameSink, FrameSource};

/// Settings of the media plane.
#[derive(Clone, Debug)]
pub struct MediaPlaneSettings {
    /// Address of the UDP port for all peers; with port 0 the kernel chooses.
    pub listen: SocketAddr,
    /// Candidate addresses, the best first; empty for the addresses of the host.
    pub announced_addresses: Vec<IpAddr>,
    /// Number of threads; 0 for one per processor.
    pub shard_count: usize,
    pub session_limits: SessionLimits,
    /// Maximum time from the offer to the end of the DTLS handshake.
    pub connect_timeout: Duration,
    /// Whether viewers are asked for transport-wide congestion feedback.
    pub viewer_congestion_control: bool,
    /// Whether viewers are sent the playout delay that they should have.
    pub viewer_playout_delay: bool,
    pub data_settings: DataSettings,
    /// The process ends when a shard has not ticked for this long.
    pub fatal_stall_timeout: Duration,
}

/// The shard of a new session, and its local ICE credentials, which name the shard.
#[derive(Clone, Debug)]
pub struct SessionPlacement {
    pub shard_index: usize,
    pub ice_credentials: IceCredentials,
}

/// Handle on the running shards. Cheap to clone. No call blocks except [`MediaPlane::stop`].
#[derive(Clone)]
pub struct MediaPlane {
    inner: Arc<MediaPlaneInner>,
}

struct MediaPlaneInner {
    shared: Arc<SharedState>,
    tcp_connections: Arc<TcpConnections>,
    forgotten_session_receiver: Mutex<Option<mpsc::UnboundedReceiver<SessionId>>>,
    local_address: SocketAddr,
    next_shard: AtomicUsize,
    is_stopping: AtomicBool,
    offers_tcp_candidates: AtomicBool,
    viewer_congestion_control: bool,
    viewer_playout_delay: bool,
    shard_ticks: Arc<ShardTicks>,
    shard_threads: Mutex<Vec<JoinHandle<()>>>,
    watchdog: Mutex<Option<Watchdog>>,
}

/// Capacity of a shard's mailbox in batches: at one batch per frame, several seconds of many streams.
const MAILBOX_MEDIA_MESSAGE_CAPACITY: usize = 8_192;

impl MediaPlane {
    /// Binds the port and starts the shards.
    ///
    /// # Errors
    ///
    /// A [`MediaPlaneStartError`].
    pub fn start(settings: MediaPlaneSettings, identity: Arc<DtlsIdentity>) -> Result<Self, MediaPlaneStartError> {
        let shards = match settings.shard_count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
        .min(ufrag::MAX_SHARDS);
        let (sockets, address) = bind_sockets(settings.listen, shards)?;
        let wakers = (0..shards)
            .map(|_| ShardWaker::new())
            .collect::<io::Result<Vec<_>>>()
            .map_err(MediaPlaneStartError::ShardSetup)?;
        let mailboxes = wakers
            .iter()
            .map(|waker| {
                let waker = waker.clone();
                Arc::new(Mailbox::new(MAILBOX_MEDIA_MESSAGE_CAPACITY, move || waker.wake()))
            })
            .collect();
        let candidates = addresses::candidate_addresses(&settings.announced_addresses, address)?;
        let (forgotten, forgotten_sessions) = mpsc::unbounded_channel();
        let on_forget = move |id| {
            // The receiver is gone when the gateway is stopping.
            let _ = forgotten.send(id);
        };
        let tcp = Arc::new(TcpConnections::default());
        let hub = Hub::default();
        let shared = Arc::new(SharedState {
            session_registry: SessionRegistry::new(
                settings.session_limits,
                hub.change_notifier().clone(),
                Box::new(on_forget),
            ),
            hub,
            failover_groups: SourceFailoverMap::default(),
            dtls_identity: identity,
            connect_timeout: settings.connect_timeout,
            mailboxes,
            counters: SharedMediaCounters::default(),
            candidate_addresses: RwLock::new(candidates.into()),
            path_capacities: PathCapacities::default(),
            tcp_connections: tcp.clone(),
            data_settings: settings.data_settings,
            wall_clock_origin: read_monotonic_and_wall_clock(),
        });
        let ticks = Arc::new(ShardTicks::new(now(), shards));
        let mut threads = Vec::new();
        for (index, (socket, waker)) in sockets.into_iter().zip(wakers).enumerate() {
            let runner = ShardRunner {
                index: ShardIndex(index as u16),
                socket,
                waker,
                shared: shared.clone(),
                shard_ticks: ticks.clone(),
            };
            threads.push(runner.spawn(tcp.clone()).map_err(MediaPlaneStartError::ShardSetup)?);
        }
        let mailboxes = shared.mailboxes.clone();
        let watchdog = Watchdog::start(
            ticks.clone(),
            mailboxes,
            settings.fatal_stall_timeout,
            now,
            runner::exit_because_of_stall,
        )
        .map_err(MediaPlaneStartError::ShardSetup)?;
        let inner = MediaPlaneInner {
            shared,
            tcp_connections: tcp,
            forgotten_session_receiver: Mutex::new(Some(forgotten_sessions)),
            shard_ticks: ticks,
            watchdog: Mutex::new(Some(watchdog)),
            local_address: address,
            next_shard: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            offers_tcp_candidates: AtomicBool::new(false),
            viewer_congestion_control: settings.viewer_congestion_control,
            viewer_playout_delay: settings.viewer_playout_delay,
            shard_threads: Mutex::new(threads),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the address that the shards listen on.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_address
    }

    /// Returns the candidate addresses for answers, the best first.
    pub fn candidate_addresses(&self) -> Arc<[SocketAddr]> {
        self.inner.shared.candidate_addresses()
    }

    /// Announces an address as the first candidate, in place of `replaced_address`.
    pub fn announce_address(&self, address: IpAddr, replaced_address: Option<IpAddr>) {
        let mut announced = self
            .inner
            .shared
            .candidate_addresses
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let first = SocketAddr::new(address, self.inner.local_address.port());
        let rest = announced
            .iter()
            .filter(|other| **other != first && Some(other.ip()) != replaced_address);
        *announced = std::iter::once(first).chain(rest.copied()).collect();
    }

    /// Returns the number of TCP connections of peers.
    pub fn tcp_connection_count(&self) -> usize {
        self.inner.tcp_connections.count()
    }

    /// Returns the number of queued messages of each shard.
    pub fn mailbox_lengths(&self) -> Vec<usize> {
        let mailboxes = self.inner.shared.mailboxes.iter();
        mailboxes.map(|mailbox| mailbox.queued_count()).collect()
    }

    /// Returns the time since the last tick of each shard.
    pub fn times_since_last_tick(&self) -> Vec<Duration> {
        self.inner.shard_ticks.times_since_last_tick(now())
    }

    /// Returns a shard that has stopped ticking, if any. Does not wait for a shard.
    pub fn stalled_shard(&self) -> Option<StalledShard> {
        self.inner
            .shard_ticks
            .find_stalled_shard(now(), watchdog::UNHEALTHY_STALL_TIMEOUT)
    }

    /// Whether answers offer TCP candidates.
    pub fn offers_tcp_candidates(&self) -> bool {
        self.inner.offers_tcp_candidates.load(Ordering::Acquire)
    }

    /// Whether answers to viewers accept transport-wide congestion feedback.
    pub fn uses_viewer_congestion_control(&self) -> bool {
        self.inner.viewer_congestion_control
    }

    /// Whether answers to viewers accept the header extension for the playout delay.
    pub fn uses_viewer_playout_delay(&self) -> bool {
        self.inner.viewer_playout_delay
    }

    /// Makes answers offer TCP candidates, on the number of the UDP port.
    pub fn enable_tcp_candidates(&self) {
        self.inner.offers_tcp_candidates.store(true, Ordering::Release);
    }

    /// Returns the number of bytes queued for TCP connections.
    pub fn tcp_queued_bytes(&self) -> usize {
        self.inner.tcp_connections.queued_bytes()
    }

    /// Serves a connection to the TCP media port until it ends (RFC 6544).
    pub async fn serve_tcp_connection(&self, stream: TcpStream, peer: SocketAddr) -> TcpCloseReason {
        tcp::serve_connection(
            stream,
            peer,
            self.inner.shared.clone(),
            self.inner.tcp_connections.clone(),
        )
        .await
    }

    /// Returns the fingerprint of the gateway's certificate, for answers.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.inner.shared.dtls_identity.fingerprint
    }

    /// Returns the streams.
    pub fn hub(&self) -> &Hub {
        &self.inner.shared.hub
    }

    /// Returns the failover groups of the streams that have several sources.
    pub fn failover_groups(&self) -> &SourceFailoverMap {
        &self.inner.shared.failover_groups
    }

    /// Lets the failover groups select another source if it is time.
    pub fn run_due_failover_switches(&self) {
        self.inner.shared.run_due_failover_switches(now());
    }

    /// Returns the counters of the media plane.
    pub fn counters(&self) -> &SharedMediaCounters {
        &self.inner.shared.counters
    }

    /// Returns the number of sessions that have not ended.
    pub fn session_count(&self) -> usize {
        self.inner.shared.session_registry.open_session_count()
    }

    /// Returns the number of sessions that have neither connected nor ended.
    pub fn half_open_session_count(&self) -> usize {
        self.inner.shared.session_registry.half_open_count()
    }

    /// Returns the receiver of the ids of forgotten sessions, one minute after their end; only the first call returns it.
    /// Their number is bounded by that of the sessions.
    pub fn take_forgotten_session_receiver(&self) -> Option<mpsc::UnboundedReceiver<SessionId>> {
        let mut forgotten = self
            .inner
            .forgotten_session_receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        forgotten.take()
    }

    /// Chooses a shard and creates ICE credentials for a new session. Reserves nothing.
    pub fn choose_next_shard_and_make_ice_credentials(&self) -> SessionPlacement {
        let shard = self.inner.next_shard.fetch_add(1, Ordering::Relaxed) % self.inner.shared.mailboxes.len().max(1);
        let credentials = ufrag::generate_ice_credentials(ShardIndex(shard as u16), &mut || rand::rng().next_u32());
        SessionPlacement {
            shard_index: shard,
            ice_credentials: credentials,
        }
    }

    /// Returns the tracks of a stream; `None` without a source.
    pub fn available_tracks(&self, stream: &StreamName) -> Option<AvailableTracks> {
        let hub = &self.inner.shared.hub;
        hub.find_stream(stream)?
            .with_state(|state| state.tracks_offerable_to_viewers(|codec| hub.can_transcode_codec_for_browsers(codec)))
    }

    /// Opens the session of a publisher. It becomes the source of the stream with its first packet.
    ///
    /// # Errors
    ///
    /// A [`SessionRefusal`]; nothing was opened.
    pub fn open_negotiated_publisher_session(
        &self,
        stream: StreamKey,
        placement: SessionPlacement,
        publication: NegotiatedPublication,
        requester: SessionRequester,
    ) -> Result<SessionId, SessionRefusal> {
        let role = NegotiatedRole::Publish(publication);
        self.register_session_and_notify_shard(random_session_id(), stream, placement, role, requester)
    }

    /// Opens the session of a viewer.
    ///
    /// # Errors
    ///
    /// A [`SessionRefusal`]; nothing was opened.
    pub fn open_negotiated_viewer_session(
        &self,
        stream: StreamName,
        placement: SessionPlacement,
        playback: NegotiatedPlayback,
        requester: SessionRequester,
    ) -> Result<SessionId, SessionRefusal> {
        self.open_viewer_session_from_answer(random_session_id(), stream, placement, playback, requester)
    }

    /// Opens the session of a viewer that answered an offer of the gateway, so that its id is already in use.
    ///
    /// # Errors
    ///
    /// A [`SessionRefusal`]; nothing was opened.
    pub fn open_viewer_session_from_answer(
        &self,
        id: SessionId,
        stream: StreamName,
        placement: SessionPlacement,
        playback: NegotiatedPlayback,
        requester: SessionRequester,
    ) -> Result<SessionId, SessionRefusal> {
        self.register_session_and_notify_shard(id, stream.into(), placement, NegotiatedRole::Play(playback), requester)
    }

    fn register_session_and_notify_shard(
        &self,
        session: SessionId,
        stream: StreamKey,
        placement: SessionPlacement,
        role: NegotiatedRole,
        requester: SessionRequester,
    ) -> Result<SessionId, SessionRefusal> {
        if self.inner.is_stopping.load(Ordering::Acquire) {
            return Err(SessionRefusal::Stopping);
        }
        let shared = &self.inner.shared;
        let mailbox = shared
            .mailboxes
            .get(placement.shard_index)
            .ok_or(SessionRefusal::TooManySessions)?;
        let shard = ShardIndex(placement.shard_index as u16);
        let evicted = shared
            .session_registry
            .open_session(now(), session, shard, requester)
            .inspect_err(|full| shared.counters.count_session_refused_by_limit(*full))?;
        if let Some(evicted) = evicted {
            shared.counters.count_session_evicted_by_limit(evicted.reached_limit);
            if let Some(mailbox) = shared.mailboxes.get(usize::from(evicted.shard.0)) {
                // If the mailbox is full, the session ends by its connection timeout.
                let _ = mailbox.push_control(ShardMessage::CloseSession {
                    session: evicted.id,
                    reason: CloseReason::Evicted,
                });
            }
        }
        let opening = Box::new(NewSession {
            session_id: session,
            stream_key: stream,
            local_credentials: placement.ice_credentials,
            role,
        });
        mailbox.push_control(ShardMessage::OpenSession(opening)).map_err(|_| {
            shared
                .session_registry
                .on_session_ended(now(), session, CloseReason::Internal);
            SessionRefusal::TooManySessions
        })?;
        Ok(session)
    }

    /// Returns the state of a session.
    pub fn session_state(&self, id: SessionId) -> SessionState {
        self.inner.shared.session_registry.session_state_and_shard(id).0
    }

    /// Forgets the sessions that ended more than a minute ago, and reports them to the receiver of forgotten sessions.
    pub fn forget_expired_sessions(&self, now: Instant) {
        self.inner.shared.session_registry.forget_expired_ended_sessions(now);
    }

    /// Returns what a viewer is sent; `None` for publishers, and before anything is.
    pub fn viewer_quality(&self, id: SessionId) -> Option<ViewerQuality> {
        self.inner.shared.session_registry.viewer_quality(id)
    }

    /// Returns the measured delays of all viewers.
    pub fn all_viewer_delays(&self) -> Vec<(SessionId, ViewerDelays)> {
        self.inner.shared.session_registry.all_viewer_delays()
    }

    /// Returns the number of viewers whose path is too small for more than they are sent, by what is sent of the video.
    pub fn path_limited_viewer_counts(&self) -> [(FrameSelection, usize); 4] {
        self.inner
            .shared
            .session_registry
            .bandwidth_limited_viewer_counts_by_frames()
    }

    /// Returns what a reason means in words, with the addresses that clients receive if it was not connected.
    pub fn explain_close_reason(&self, reason: CloseReason) -> String {
        let explanation = reason.explanation();
        if !reason.is_setup_timed_out_or_abandoned() {
            return explanation.to_owned();
        }
        let addresses: Vec<String> = self.candidate_addresses().iter().map(SocketAddr::to_string).collect();
        format!(
            "{explanation}; announced ICE candidate addresses: {}",
            addresses.join(", ")
        )
    }

    /// Restarts ICE of a session with the peer's new credentials (RFC 9725 §4.3.3). Returns the new local credentials;
    /// `None` without any change if the session has ended or the mailbox of its shard is full.
    pub fn restart_ice(&self, id: SessionId, remote: IceCredentials) -> Option<IceCredentials> {
        let (state, shard) = self.inner.shared.session_registry.session_state_and_shard(id);
        let (SessionState::Connecting | SessionState::Connected, Some(shard)) = (state, shard) else {
            return None;
        };
        let local = ufrag::generate_ice_credentials(shard, &mut || rand::rng().next_u32());
        let message = ShardMessage::RestartIce {
            session: id,
            local: local.clone(),
            remote,
        };
        self.inner
            .shared
            .mailboxes
            .get(usize::from(shard.0))?
            .push_control(message)
            .ok()?;
        Some(local)
    }

    /// Sets the layer selection of a viewer. Returns `false` if its session has ended.
    pub fn select_layer(&self, id: SessionId, selection: LayerSelection) -> bool {
        let (state, shard) = self.inner.shared.session_registry.session_state_and_shard(id);
        let mailbox = shard.and_then(|shard| self.inner.shared.mailboxes.get(usize::from(shard.0)));
        let (SessionState::Connecting | SessionState::Connected, Some(mailbox)) = (state, mailbox) else {
            return false;
        };
        mailbox
            .push_control(ShardMessage::SelectLayer { session: id, selection })
            .is_ok()
    }

    /// Ends a session that its peer deletes, with a close_notify. Returns its previous state.
    pub fn delete_session(&self, id: SessionId) -> SessionState {
        self.end_session(id, CloseReason::Deleted)
    }

    /// Ends a session for this reason. Returns its previous state.
    pub fn end_session(&self, id: SessionId, reason: CloseReason) -> SessionState {
        let (state, shard) = self.inner.shared.session_registry.session_state_and_shard(id);
        let mailbox = shard.and_then(|shard| self.inner.shared.mailboxes.get(usize::from(shard.0)));
        if let (SessionState::Connecting | SessionState::Connected, Some(mailbox)) = (state, mailbox) {
            // If the mailbox is full, the session ends by its timeout once the peer is silent.
            let _ = mailbox.push_control(ShardMessage::CloseSession { session: id, reason });
        }
        state
    }

    /// Ends all sessions and stops the shards. Returns when their threads have ended.
    pub fn stop(&self) {
        self.inner.is_stopping.store(true, Ordering::Release);
        for mailbox in &self.inner.shared.mailboxes {
            if mailbox.push_control(ShardMessage::Stop).is_err() {
                warn!(
                    "shutdown: the queue of a media thread (shard) is full, and the command to stop was not delivered"
                );
            }
        }
        let threads = std::mem::take(&mut *self.inner.shard_threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                error!("a media thread (shard) panicked");
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

impl FrameSink for MediaPlane {
    fn hub(&self) -> &Hub {
        &self.inner.shared.hub
    }

    fn publish_frames_unless_displaced(&self, feed: &mut FrameSource) -> bool {
        self.inner.shared.publish_frames_unless_displaced(now(), feed)
    }

    fn request_key_frame_from_source(&self, source: SourceRef) {
        let mailbox = self.inner.shared.mailboxes.get(usize::from(source.shard.0));
        if let Some(mailbox) = mailbox {
            // If the message is lost, the request is repeated.
            let _ = mailbox.push_low_priority(ShardMessage::RequestKeyFrame {
                session: source.session_id,
                layer: None,
            });
        }
    }
}

/// Binds a socket for each shard, all to one port, and returns the address with that port.
fn bind_sockets(
    mut address: SocketAddr,
    count: usize,
) -> Result<(Vec<Arc<ShardSocket>>, SocketAddr), MediaPlaneStartError> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = ShardSocket::bind(address).map_err(|source| MediaPlaneStartError::Bind { address, source })?;
        address = socket.local_addr();
        sockets.push(Arc::new(socket));
    }
    Ok((sockets, address))
}
