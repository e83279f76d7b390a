//! A packaged stream, as its packaging task and the requests of players share it.

use super::packager::Packager;
use super::playlist::{self};
use super::rendition::{Msn, Rendition, Role};
use super::viewers::HlsViewers;
use bytes::Bytes;
use millstream_core::hub::Hub;
use millstream_core::hub::lock::{Rank, RankedGuard, RankedMutex};
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::SourceRef;
use millstream_core::media::Kind;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long a packager keeps running after the last request.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// The gateway as seen by packagers.
pub trait Plane: Send + Sync {
    /// Returns the hub with all streams.
    fn hub(&self) -> &Hub;
    /// Sends a key frame request to a source, if it supports it.
    fn ask_for_key_frame(&self, source: SourceRef);
    /// Starts an on-demand source; returns whether the stream is live.
    fn ensure_started<'a>(&'a self, stream: &'a StreamName) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

/// A packaged stream.
pub struct Live {
    packager: RankedMutex<Packager>,
    /// Incremented whenever new parts or segments are available.
    pub(super) version: watch::Sender<u64>,
    last_request: RankedMutex<Instant>,
    /// Time of the last request for transcoded AAC.
    last_aac_request: RankedMutex<Option<Instant>>,
    wake_spread: RankedMutex<WakeSpread>,
    viewers: RankedMutex<HlsViewers>,
    /// The layer that was requested first.
    first_layer: OnceLock<Role>,
    /// Wakes the packaging task for a poll.
    pub(super) poll_now: Notify,
    /// Playlists of the current version without a query: most players request the same ones.
    rendered: RankedMutex<Rendered>,
}

/// Spreads the responses to blocked requests over time.
#[derive(Default)]
struct WakeSpread {
    version: u64,
    /// Number of requests woken for this version.
    woken: u32,
    /// Delay between two of them.
    step: Duration,
}

impl WakeSpread {
    /// Returns the delay of the next response. `waiting` is the number of blocked requests, of all streams and kinds.
    fn next(&mut self, version: u64, waiting: usize) -> Duration {
        // A request that is late for an older version continues the current sequence.
        if version > self.version {
            let waiting = u32::try_from(waiting).unwrap_or(u32::MAX).max(1);
            let step = WAKE_STEP.min(MAX_WAKE_DELAY / waiting);
            *self = Self {
                version,
                woken: 0,
                step,
            };
        }
        self.woken = self.woken.saturating_add(1);
        (self.step * self.woken.saturating_sub(WOKEN_AT_ONCE)).min(MAX_WAKE_DELAY)
    }
}

#[derive(Default)]
struct Rendered {
    version: u64,
    by_role: HashMap<(Role, bool, Option<Msn>), Bytes>,
}

/// All blocked requests become ready when a part is complete. [`WOKEN_AT_ONCE`] of them are answered immediately, the
/// others one after the other, the last one after at most [`MAX_WAKE_DELAY`], regardless of their number. A burst for a
/// thousand players would fill the kernel's queues, and delay the packets of WebRTC viewers.
const WOKEN_AT_ONCE: u32 = 20;

const WAKE_STEP: Duration = Duration::from_micros(120);

const MAX_WAKE_DELAY: Duration = Duration::from_millis(120);

impl Live {
    /// A stream without any media yet.
    pub(super) fn new() -> Self {
        Self {
            packager: RankedMutex::new(Rank::Packager, Packager::default()),
            version: watch::Sender::new(0),
            last_request: RankedMutex::new(Rank::PackagerState, Instant::now()),
            last_aac_request: RankedMutex::new(Rank::PackagerState, None),
            wake_spread: RankedMutex::new(Rank::PackagerState, WakeSpread::default()),
            viewers: RankedMutex::new(Rank::PackagerState, HlsViewers::default()),
            first_layer: OnceLock::new(),
            poll_now: Notify::new(),
            rendered: RankedMutex::new(Rank::PackagerState, Rendered::default()),
        }
    }

    /// Returns how long to delay the response to a request that waited for a version.
    pub(super) fn wake_delay(&self, version: u64, waiting: usize) -> Duration {
        let mut wake_spread = self.wake_spread.lock();
        wake_spread.next(version, waiting)
    }

    /// Whether this is a video layer other than the one that was requested first.
    pub(super) fn is_additional_layer(&self, role: Role) -> bool {
        role.kind() == Kind::Video && *self.first_layer.get_or_init(|| role) != role
    }

    /// Wakes blocked requests because new parts or segments are available.
    pub(super) fn notify(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(super) fn packager(&self) -> RankedGuard<'_, Packager> {
        self.packager.lock()
    }

    pub(super) fn viewers(&self) -> RankedGuard<'_, HlsViewers> {
        self.viewers.lock()
    }

    pub(super) fn last_request(&self) -> RankedGuard<'_, Instant> {
        self.last_request.lock()
    }

    /// Records a request for transcoded AAC.
    pub(super) fn record_aac_request(&self) {
        *self.last_aac_request.lock() = Some(Instant::now());
        self.poll_now.notify_one();
    }

    /// Whether transcoded AAC was requested recently.
    pub(super) fn has_aac_players(&self) -> bool {
        let last = *self.last_aac_request.lock();
        last.is_some_and(|last| last.elapsed() < IDLE)
    }

    pub(super) fn render(
        &self,
        packager: &Packager,
        role: Role,
        skip: bool,
        unsettled: Option<Msn>,
        query: &str,
    ) -> Option<Bytes> {
        let write = || {
            let others = Role::ALL.into_iter().filter(|other| *other != role);
            let others: Vec<&Rendition> = others
                .filter_map(|other| packager.rendition(other))
                .filter(|other| other.segments().len() > 0)
                .collect();
            Some(Bytes::from(playlist::media(
                packager.rendition(role)?,
                &others,
                skip,
                unsettled,
                query,
            )))
        };
        if !query.is_empty() {
            return write();
        }
        let version = *self.version.borrow();
        let mut rendered = self.rendered.lock();
        if rendered.version != version {
            rendered.by_role.clear();
            rendered.version = version;
        }
        if let Some(found) = rendered.by_role.get(&(role, skip, unsettled)) {
            return Some(found.clone());
        }
        let text = write()?;
        rendered.by_role.insert((role, skip, unsettled), text.clone());
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_requests_for_a_part_are_answered_one_after_the_other() {
        let mut wake_spread = WakeSpread::default();
        for (version, waiting) in [(1, 500), (2, 1_000), (3, 8_000)] {
            let waits: Vec<Duration> = (0..waiting).map(|_| wake_spread.next(version, waiting)).collect();
            assert!(waits.is_sorted());
            assert_eq!(
                waits.iter().filter(|wait| wait.is_zero()).count(),
                WOKEN_AT_ONCE as usize
            );
            assert!(
                waits.iter().all(|wait| *wait <= MAX_WAKE_DELAY),
                "no response is delayed to the next part"
            );
            // Timers have a resolution of one millisecond.
            let mut at_one_instant = std::collections::BTreeMap::<_, usize>::new();
            for wait in &waits {
                *at_one_instant.entry(wait.as_millis()).or_default() += 1;
            }
            let most = at_one_instant.into_values().max().unwrap_or_default();
            let even = waiting / MAX_WAKE_DELAY.as_millis() as usize;
            assert!(most <= WOKEN_AT_ONCE as usize + even + 8, "{most} of {waiting}");
        }
        assert_eq!(
            wake_spread.next(4, 100),
            Duration::ZERO,
            "the next part starts a new sequence"
        );
        assert_eq!(wake_spread.next(3, 100), Duration::ZERO);
        assert_eq!(
            wake_spread.woken, 2,
            "a late request for the previous part does not restart it"
        );
    }
}
