//! Packagers that run while they have requests, and blocking playlist and part requests. Not sans-I/O: uses the clocks
//! of tokio and of the system.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::live::{IDLE, Live, Plane};
use super::packager::Packager;
use super::packaging::{expected, missing_video, package};
use super::playlist::{self, Directives, Variants};
use super::rendition::{Rendition, Role};
use super::viewers::Player;
use millstream_core::hub::lock::{Rank, RankedGuard, RankedMutex};
use millstream_core::hub::name::StreamName;
use millstream_core::media::Codec;

/// All packaged streams.
pub struct Service {
    plane: Arc<dyn Plane>,
    streams: RankedMutex<HashMap<StreamName, Arc<Live>>>,
    /// Number of blocked requests.
    blocked: AtomicUsize,
}

/// Reason why a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The stream does not exist, or has nothing that HLS players support.
    NotLive,
    /// The requested part or segment is not available any more.
    Gone,
    /// The requested segment is too far in the future (rfc8216bis §6.2.5.2).
    TooFar,
    /// It did not become available in time, or too many requests are blocked.
    Busy,
}

/// Maximum number of blocked requests.
const MAX_BLOCKED: usize = 8_192;

/// Maximum number of packaged streams.
const MAX_STREAMS: usize = 1_000;

/// How long a request may block: three times the usual segment duration, and a margin.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// How long the multivariant playlist waits for missing renditions.
const GATHER_TIMEOUT: Duration = Duration::from_secs(3);

impl Service {
    pub fn new(plane: Arc<dyn Plane>) -> Arc<Self> {
        Arc::new(Self {
            plane,
            streams: RankedMutex::new(Rank::Packagers, HashMap::new()),
            blocked: AtomicUsize::new(0),
        })
    }

    /// Returns the packager of a stream, starting it if necessary.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotLive`], or [`Refusal::Busy`] with too many streams.
    pub async fn open(self: &Arc<Self>, name: &StreamName) -> Result<Arc<Live>, Refusal> {
        if let Some(live) = self.lock().get(name) {
            *live.last_request() = Instant::now();
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
            let live = Arc::new(Live::new());
            info!(stream = %name, "packaging for HLS");
            let (service, stream) = (self.clone(), name.clone());
            let remove_if_idle = move || service.remove_if_idle(&stream);
            tokio::spawn(package(remove_if_idle, self.plane.clone(), name.clone(), live.clone()));
            live
        });
        Ok(live.clone())
    }

    /// Number of streams that are being packaged.
    pub fn packaged(&self) -> usize {
        self.lock().len()
    }

    /// Number of players that requested a playlist of the stream within the last twelve seconds.
    pub fn viewers(&self, name: &StreamName) -> usize {
        let live = self.lock().get(name).cloned();
        live.map_or(0, |live| live.viewers().count(Instant::now().into_std()))
    }

    /// Number of blocked requests.
    pub fn waiting(&self) -> usize {
        self.blocked.load(Ordering::Acquire)
    }

    /// Removes a stream without recent requests; returns whether it is removed.
    pub(super) fn remove_if_idle(&self, name: &StreamName) -> bool {
        let mut streams = self.lock();
        let is_idle = streams.get(name).is_none_or(|live| {
            let idle = live.last_request().elapsed() >= IDLE;
            idle && live.version.receiver_count() == 0
        });
        if is_idle {
            streams.remove(name);
        }
        is_idle
    }

    /// Blocks until `find` returns a value.
    async fn wait<T>(
        &self,
        live: &Live,
        deadline: Instant,
        mut find: impl FnMut(&Packager) -> Option<T>,
    ) -> Result<T, Refusal> {
        let mut version = live.version.subscribe();
        if let Some(found) = find(&live.packager()) {
            return Ok(found);
        }
        let _blocked = BlockedRequest::new(&self.blocked).ok_or(Refusal::Busy)?;
        loop {
            match timeout_at(deadline, version.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Refusal::NotLive),
                Err(_) => return Err(Refusal::Busy),
            }
            let current = *version.borrow_and_update();
            let found = find(&live.packager());
            if let Some(found) = found {
                sleep(live.wake_delay(current, self.waiting())).await;
                return Ok(found);
            }
        }
    }

    /// Returns the multivariant playlist.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn multivariant(&self, name: &StreamName, live: &Live, query: &str) -> Result<String, Refusal> {
        let started = Instant::now();
        let expected = expected(self.plane.hub(), name);
        let has = |rendition: Option<&Rendition>| rendition.is_some_and(|rendition| rendition.bytes() > 0);
        self.wait(live, started + REQUEST_TIMEOUT, |packager| {
            let (video, audio) = (packager.rendition(Role::Video), packager.rendition(Role::Audio));
            let (has_video, has_audio) = (has(video), has(audio));
            let late = started.elapsed() >= GATHER_TIMEOUT;
            let layers = Role::VIDEO.into_iter().filter(|role| has(packager.rendition(*role)));
            let has_layers = layers.count() >= expected.layers;
            let complete = has_layers
                && (has_video || !expected.video)
                && (has_audio || !expected.audio)
                && (has_video || has_audio);
            let enough = complete || (late && (has_video || has_audio));
            enough.then(|| {
                let layers = Role::VIDEO.into_iter().filter_map(|role| {
                    let rendition = packager.rendition(role).filter(|found| has(Some(found)))?;
                    Some((rendition, packager.video_info(role)))
                });
                let variants = Variants {
                    layers: layers.collect(),
                    audio: audio.filter(|_| has_audio),
                    has_aac: expected.aac,
                };
                playlist::multivariant(&variants, query)
            })?
        })
        .await
    }

    /// Returns the codec of the video if the stream has video that cannot be packaged, transcoded or not.
    pub fn missing_video(&self, name: &StreamName) -> Option<Codec> {
        missing_video(self.plane.hub(), name)
    }

    /// Returns a media playlist, blocking until it contains the requested segment or part.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn media_playlist(
        &self,
        live: &Live,
        role: Role,
        directives: Directives,
        player: Player,
        query: &str,
    ) -> Result<Bytes, Refusal> {
        if role == Role::Aac {
            live.record_aac_request();
        }
        if let (Some(msn), Some(rendition)) = (directives.msn, live.packager().rendition(role))
            && msn > rendition.next().0 + 2
        {
            return Err(Refusal::TooFar);
        }
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let text = self.wait(live, deadline, |packager| {
            let rendition = packager.rendition(role)?;
            let (next, _) = rendition.next();
            let first = rendition.segments().next().filter(|first| !first.parts.is_empty())?;
            // A layer that starts late is held back until this much of it is available: its first segment may be
            // complete by then.
            let is_short = !first.complete && first.duration() < GATHER_TIMEOUT;
            let is_available = match (directives.msn, directives.part) {
                // A rendition added to a running presentation must not start with a gap, which plain players do not
                // handle.
                (None, _) if role == Role::Aac => first.complete,
                // hls.js treats the gap as an error of the layer that it switches to, and keeps the old layer.
                _ if live.is_additional_layer(role) && is_short => false,
                (None, _) => rendition.is_startable(),
                (Some(msn), None) => next > msn,
                (Some(msn), Some(part)) => rendition.has_part(msn, part),
            };
            // A player that waits for a certain segment gets it even if it is unsettled.
            let is_start = directives.msn.is_none();
            let unsettled = is_start.then(|| packager.unsettled(role)).flatten();
            is_available.then(|| live.render(packager, role, directives.skip, unsettled, query))?
        });
        let text = text.await?;
        live.viewers().record(player, Instant::now().into_std());
        Ok(text)
    }

    /// Returns an initialization section.
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

    /// Returns a complete segment.
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

    /// Returns a part, blocking if it is the next one (rfc8216bis §6.2.6).
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn part(&self, live: &Live, role: Role, msn: u64, part: usize) -> Result<Bytes, Refusal> {
        self.wait(live, Instant::now() + REQUEST_TIMEOUT, |packager| {
            let rendition = packager.rendition(role)?;
            if let Some(found) = rendition.segment(msn).and_then(|segment| segment.parts.get(part)) {
                return Some(Ok(found.bytes.clone()));
            }
            // The segment may have ended before this part: the hint was wrong, and the player requests the next part.
            (rendition.next() != (msn, part)).then_some(Err(Refusal::Gone))
        })
        .await?
    }

    fn lock(&self) -> RankedGuard<'_, HashMap<StreamName, Arc<Live>>> {
        self.streams.lock()
    }
}

/// A blocked request.
struct BlockedRequest<'a>(&'a AtomicUsize);

impl<'a> BlockedRequest<'a> {
    fn new(count: &'a AtomicUsize) -> Option<Self> {
        let blocked = Self(count);
        // The drop decrements the counter again, also in this case.
        (count.fetch_add(1, Ordering::AcqRel) < MAX_BLOCKED).then_some(blocked)
    }
}

impl Drop for BlockedRequest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
