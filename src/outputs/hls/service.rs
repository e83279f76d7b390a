//! Packagers that run while somebody asks for them, and requests that wait for what is to come. A shell: it reads the
//! clocks of tokio and of the system.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::packager::Packager;
use super::packaging::{package, wanted};
use super::playlist::{self, Directives, Versions};
use super::rendition::{Msn, Rendition, Role};
use super::viewers::{HlsViewers, Player};
use crate::hub::Hub;
use crate::hub::lock::{Rank, RankedGuard, RankedMutex};
use crate::hub::name::StreamName;
use crate::hub::stream::SourceRef;
use crate::media::Kind;

/// What packagers need of the gateway.
pub trait Plane: Send + Sync {
    /// Where streams are.
    fn hub(&self) -> &Hub;
    /// Asks a source for a key frame, if it is one that can be asked.
    fn ask_for_key_frame(&self, source: SourceRef);
    /// Starts a stream that is fetched on demand; whether it is live.
    fn ensure_started<'a>(&'a self, stream: &'a StreamName) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

/// All streams that are packaged.
pub struct Service {
    plane: Arc<dyn Plane>,
    streams: RankedMutex<HashMap<StreamName, Arc<Live>>>,
    /// Requests that wait.
    parked: AtomicUsize,
}

/// A stream that is packaged.
pub struct Live {
    packager: RankedMutex<Packager>,
    /// Counts what is new for players.
    version: watch::Sender<u64>,
    asked: RankedMutex<Instant>,
    /// When somebody asked for AAC that is made for it.
    aac_asked: RankedMutex<Option<Instant>>,
    wake_spread: RankedMutex<WakeSpread>,
    audience: RankedMutex<HlsViewers>,
    /// The version of the picture that was asked for first.
    first_asked: OnceLock<Role>,
    /// The packager has something to look at.
    pub(super) wanted: Notify,
    /// Playlists of the current version, without a query: most players want the same.
    rendered: RankedMutex<Rendered>,
}

/// Whose turn it is.
#[derive(Default)]
struct WakeSpread {
    version: u64,
    /// How many that waited for it have had theirs.
    had: u32,
    /// Between two of them.
    step: Duration,
}

impl WakeSpread {
    /// How long the next one waits. `waiting` is how many there are, of all streams and kinds.
    fn next(&mut self, version: u64, waiting: usize) -> Duration {
        // Who is late for an older version stands in the same line.
        if version > self.version {
            let waiting = u32::try_from(waiting).unwrap_or(u32::MAX).max(1);
            let step = TURN.min(LAST_TURN / waiting);
            *self = Self { version, had: 0, step };
        }
        self.had = self.had.saturating_add(1);
        (self.step * self.had.saturating_sub(AT_ONCE)).min(LAST_TURN)
    }
}

#[derive(Default)]
struct Rendered {
    version: u64,
    by_role: HashMap<(Role, bool, Option<Msn>), Bytes>,
}

/// Why a request gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such stream, or nothing in it that a player could take.
    NotLive,
    /// The address names nothing that is kept.
    Gone,
    /// Asks for what is too far in the future (rfc8216bis §6.2.5.2).
    TooFar,
    /// It did not come in time, or too many requests wait.
    Busy,
}

/// How long a packager outlasts the last request.
const IDLE: Duration = Duration::from_secs(30);

/// Requests that may wait at the same time.
const MAX_PARKED: usize = 8_192;

/// Streams that are packaged at the same time.
const MAX_STREAMS: usize = 1_000;

/// How long a request may wait: three times the usual length of a segment.
const PATIENCE: Duration = Duration::from_secs(8);

/// All who wait want a part at the instant at which it is complete. So many get it then, the others one after the other,
/// the last one at most so long after, whatever their number: a burst for a thousand of them would fill the queues of the kernel, and the packets of
/// viewers by WebRTC would stand behind it.
const AT_ONCE: u32 = 20;
const TURN: Duration = Duration::from_micros(120);
const LAST_TURN: Duration = Duration::from_millis(120);

/// A kind that does not come is no longer waited for.
const GATHER: Duration = Duration::from_secs(3);

impl Service {
    pub fn new(plane: Arc<dyn Plane>) -> Arc<Self> {
        Arc::new(Self {
            plane,
            streams: RankedMutex::new(Rank::Packagers, HashMap::new()),
            parked: AtomicUsize::new(0),
        })
    }

    /// The packager of a stream, started if need be.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotLive`], or [`Refusal::Busy`] with too many streams.
    pub async fn open(self: &Arc<Self>, name: &StreamName) -> Result<Arc<Live>, Refusal> {
        if let Some(live) = self.lock().get(name) {
            *live.asked() = Instant::now();
            return Ok(live.clone());
        }
        if !self.plane.ensure_started(name).await {
            return Err(Refusal::NotLive);
        }
        let mut streams = self.lock();
        if streams.len() >= MAX_STREAMS {
            return Err(Refusal::Busy);
        }
        let live = streams.entry(name.clone()).or_insert_with(|| {
            let live = Arc::new(Live {
                packager: RankedMutex::new(Rank::Packager, Packager::default()),
                version: watch::Sender::new(0),
                asked: RankedMutex::new(Rank::PackagerState, Instant::now()),
                aac_asked: RankedMutex::new(Rank::PackagerState, None),
                wake_spread: RankedMutex::new(Rank::PackagerState, WakeSpread::default()),
                audience: RankedMutex::new(Rank::PackagerState, HlsViewers::default()),
                first_asked: OnceLock::new(),
                wanted: Notify::new(),
                rendered: RankedMutex::new(Rank::PackagerState, Rendered::default()),
            });
            info!(stream = %name, "packaging for HLS");
            tokio::spawn(package(self.clone(), self.plane.clone(), name.clone(), live.clone()));
            live
        });
        Ok(live.clone())
    }

    /// Streams that are packaged at the moment.
    pub fn packaged(&self) -> usize {
        self.lock().len()
    }

    /// Players of a stream that asked for a playlist within the last twelve seconds.
    pub fn viewers(&self, name: &StreamName) -> usize {
        let live = self.lock().get(name).cloned();
        live.map_or(0, |live| live.audience().count(Instant::now().into_std()))
    }

    /// Requests that wait for what is to come.
    pub fn waiting(&self) -> usize {
        self.parked.load(Ordering::Acquire)
    }

    /// Forgets a stream that nobody has asked for in a while; whether it did.
    pub(super) fn forget_if_idle(&self, name: &StreamName) -> bool {
        let mut streams = self.lock();
        let is_idle = streams.get(name).is_none_or(|live| {
            let idle = live.asked().elapsed() >= IDLE;
            idle && live.version.receiver_count() == 0
        });
        if is_idle {
            streams.remove(name);
        }
        is_idle
    }

    /// Waits for `found` to find something in the packager.
    async fn wait<T>(
        &self,
        live: &Live,
        deadline: Instant,
        mut found: impl FnMut(&Packager) -> Option<T>,
    ) -> Result<T, Refusal> {
        let mut version = live.version.subscribe();
        if let Some(found) = found(&live.packager()) {
            return Ok(found);
        }
        let _parked = Parked::new(&self.parked).ok_or(Refusal::Busy)?;
        loop {
            match timeout_at(deadline, version.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Refusal::NotLive),
                Err(_) => return Err(Refusal::Busy),
            }
            let came = *version.borrow_and_update();
            let found = found(&live.packager());
            if let Some(found) = found {
                sleep(live.turn(came, self.waiting())).await;
                return Ok(found);
            }
        }
    }

    /// The multivariant playlist.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn multivariant(&self, name: &StreamName, live: &Live, query: &str) -> Result<String, Refusal> {
        let started = Instant::now();
        let wanted = wanted(self.plane.hub(), name);
        let has = |rendition: Option<&Rendition>| rendition.is_some_and(|rendition| rendition.bytes() > 0);
        self.wait(live, started + PATIENCE, |packager| {
            let (video, audio) = (packager.rendition(Role::Video), packager.rendition(Role::Audio));
            let (has_video, has_audio) = (has(video), has(audio));
            let late = started.elapsed() >= GATHER;
            let pictures = Role::PICTURES.into_iter().filter(|role| has(packager.rendition(*role)));
            let has_layers = pictures.count() >= wanted.pictures;
            let complete =
                has_layers && (has_video || !wanted.video) && (has_audio || !wanted.audio) && (has_video || has_audio);
            let enough = complete || (late && (has_video || has_audio));
            enough.then(|| {
                let pictures = Role::PICTURES.into_iter().filter_map(|role| {
                    let rendition = packager.rendition(role).filter(|found| has(Some(found)))?;
                    Some((rendition, packager.shown(role)))
                });
                let versions = Versions {
                    pictures: pictures.collect(),
                    audio: audio.filter(|_| has_audio),
                    has_aac: wanted.aac,
                };
                playlist::multivariant(&versions, query)
            })?
        })
        .await
    }

    /// A media playlist, when what it is asked for is there.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn media(
        &self,
        live: &Live,
        role: Role,
        directives: Directives,
        player: Player,
        query: &str,
    ) -> Result<Bytes, Refusal> {
        if role == Role::Aac {
            live.want_aac();
        }
        if let (Some(msn), Some(rendition)) = (directives.msn, live.packager().rendition(role))
            && msn > rendition.next().0 + 2
        {
            return Err(Refusal::TooFar);
        }
        let deadline = Instant::now() + PATIENCE;
        let text = self.wait(live, deadline, |packager| {
            let rendition = packager.rendition(role)?;
            let (next, _) = rendition.next();
            let first = rendition.segments().next().filter(|first| !first.parts.is_empty())?;
            // So much of a layer is waited for: its first segment may be whole by then.
            let is_young = !first.complete && first.duration() < GATHER;
            let is_there = match (directives.msn, directives.part) {
                // What begins beside a rendition that plays is not begun with a gap: plain players stumble over it.
                (None, _) if role == Role::Aac => first.complete,
                // And hls.js takes the gap for a fault of the version that it changes to, and stays where it is.
                _ if live.is_beside(role) && is_young => false,
                (None, _) => true,
                (Some(msn), None) => next > msn,
                (Some(msn), Some(wanted)) => rendition.has_part(msn, wanted),
            };
            // Who waits for a segment is told of it at once.
            let begins = directives.msn.is_none();
            let unsettled = begins.then(|| packager.unsettled(role)).flatten();
            is_there.then(|| live.render(packager, role, directives.skip, unsettled, query))?
        });
        let text = text.await?;
        live.audience().record(player, Instant::now().into_std());
        Ok(text)
    }

    /// An initialization section.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn init(&self, live: &Live, role: Role, number: u64) -> Result<Bytes, Refusal> {
        let found = live
            .packager()
            .rendition(role)
            .and_then(|rendition| rendition.init(number));
        found.ok_or(Refusal::Gone)
    }

    /// A whole segment.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn segment(&self, live: &Live, role: Role, msn: u64) -> Result<Vec<Bytes>, Refusal> {
        let packager = live.packager();
        let segment = packager.rendition(role).and_then(|rendition| rendition.segment(msn));
        segment
            .filter(|segment| segment.complete)
            .map(super::rendition::Segment::bytes)
            .ok_or(Refusal::Gone)
    }

    /// A part; the one that comes next is waited for (rfc8216bis §6.2.6).
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn part(&self, live: &Live, role: Role, msn: u64, part: usize) -> Result<Bytes, Refusal> {
        self.wait(live, Instant::now() + PATIENCE, |packager| {
            let rendition = packager.rendition(role)?;
            if let Some(found) = rendition.segment(msn).and_then(|segment| segment.parts.get(part)) {
                return Some(Ok(found.bytes.clone()));
            }
            // The segment may have ended before it: then the hint was wrong, and the player asks for the next one.
            (rendition.next() != (msn, part)).then_some(Err(Refusal::Gone))
        })
        .await?
    }

    fn lock(&self) -> RankedGuard<'_, HashMap<StreamName, Arc<Live>>> {
        self.streams.lock()
    }
}

impl Live {
    /// How long the next one of those who waited for a version waits for its turn.
    fn turn(&self, version: u64, waiting: usize) -> Duration {
        let mut wake_spread = self.wake_spread.lock();
        wake_spread.next(version, waiting)
    }

    /// Whether a version of the picture is asked for that is not the one that was asked for first.
    fn is_beside(&self, role: Role) -> bool {
        role.kind() == Kind::Video && *self.first_asked.get_or_init(|| role) != role
    }

    /// There is something new for players.
    pub(super) fn notify(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(super) fn packager(&self) -> RankedGuard<'_, Packager> {
        self.packager.lock()
    }

    fn audience(&self) -> RankedGuard<'_, HlsViewers> {
        self.audience.lock()
    }

    fn asked(&self) -> RankedGuard<'_, Instant> {
        self.asked.lock()
    }

    /// Somebody plays the AAC that is made.
    fn want_aac(&self) {
        *self.aac_asked.lock() = Some(Instant::now());
        self.wanted.notify_one();
    }

    /// Whether somebody has played the AAC lately.
    pub(super) fn wants_aac(&self) -> bool {
        let asked = *self.aac_asked.lock();
        asked.is_some_and(|asked| asked.elapsed() < IDLE)
    }

    fn render(
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

/// A request that waits.
struct Parked<'a>(&'a AtomicUsize);

impl<'a> Parked<'a> {
    fn new(count: &'a AtomicUsize) -> Option<Self> {
        let parked = Self(count);
        // Counted down again when it is dropped, also here.
        (count.fetch_add(1, Ordering::AcqRel) < MAX_PARKED).then_some(parked)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_wait_for_a_part_get_it_in_turn() {
        let mut wake_spread = WakeSpread::default();
        for (version, waiting) in [(1, 500), (2, 1_000), (3, 8_000)] {
            let waits: Vec<Duration> = (0..waiting).map(|_| wake_spread.next(version, waiting)).collect();
            assert!(waits.is_sorted());
            assert_eq!(waits.iter().filter(|wait| wait.is_zero()).count(), AT_ONCE as usize);
            assert!(
                waits.iter().all(|wait| *wait <= LAST_TURN),
                "nobody waits for the part after it"
            );
            // Timers have steps of a millisecond.
            let mut at_one_instant = std::collections::BTreeMap::<_, usize>::new();
            for wait in &waits {
                *at_one_instant.entry(wait.as_millis()).or_default() += 1;
            }
            let most = at_one_instant.into_values().max().unwrap_or_default();
            let even = waiting / LAST_TURN.as_millis() as usize;
            assert!(most <= AT_ONCE as usize + even + 8, "{most} of {waiting}");
        }
        assert_eq!(wake_spread.next(4, 100), Duration::ZERO, "the next part begins anew");
        assert_eq!(wake_spread.next(3, 100), Duration::ZERO);
        assert_eq!(
            wake_spread.had, 2,
            "who is late for the part before does not begin it anew"
        );
    }
}
