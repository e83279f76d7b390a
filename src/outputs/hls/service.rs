//! Packagers that run while somebody asks for them, and requests that wait for what is to come. A shell: it reads the
//! clocks of tokio and of the system.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::packager::Packager;
use super::packaging::{package, wanted};
use super::playlist::{self, Directives};
use super::rendition::Rendition;
use crate::hub::Hub;
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
    fn bring<'a>(&'a self, stream: &'a StreamName) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

/// All streams that are packaged.
pub struct Service {
    plane: Arc<dyn Plane>,
    streams: Mutex<HashMap<StreamName, Arc<Live>>>,
    /// Requests that wait.
    parked: AtomicUsize,
}

/// A stream that is packaged.
pub struct Live {
    packager: Mutex<Packager>,
    /// Counts what is new for players.
    version: watch::Sender<u64>,
    asked: Mutex<Instant>,
    /// Playlists of the current version, without a query: most players want the same.
    rendered: Mutex<Rendered>,
}

#[derive(Default)]
struct Rendered {
    version: u64,
    by_kind: HashMap<(Kind, bool), Bytes>,
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

/// A kind that does not come is no longer waited for.
const GATHER: Duration = Duration::from_secs(3);

impl Service {
    pub fn new(plane: Arc<dyn Plane>) -> Arc<Self> {
        Arc::new(Self {
            plane,
            streams: Mutex::default(),
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
        if !self.plane.bring(name).await {
            return Err(Refusal::NotLive);
        }
        let mut streams = self.lock();
        if streams.len() >= MAX_STREAMS {
            return Err(Refusal::Busy);
        }
        let live = streams.entry(name.clone()).or_insert_with(|| {
            let live = Arc::new(Live {
                packager: Mutex::default(),
                version: watch::Sender::new(0),
                asked: Mutex::new(Instant::now()),
                rendered: Mutex::default(),
            });
            info!(stream = %name, "packaging for HLS");
            tokio::spawn(package(self.clone(), self.plane.clone(), name.clone(), live.clone()));
            live
        });
        Ok(live.clone())
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
            if let Some(found) = found(&live.packager()) {
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
        let has = |rendition: &Option<Rendition>| rendition.as_ref().is_some_and(|r| r.bytes() > 0);
        self.wait(live, started + PATIENCE, |packager| {
            let (video, audio) = (has(&packager.video), has(&packager.audio));
            let late = started.elapsed() >= GATHER;
            let complete = (video || !wanted.0) && (audio || !wanted.1) && (video || audio);
            let enough = complete || (late && (video || audio));
            enough.then(|| {
                playlist::multivariant(
                    packager.video.as_ref().filter(|_| video),
                    packager.audio.as_ref().filter(|_| audio),
                    packager.resolution,
                    packager.frame_rate,
                    query,
                )
            })?
        })
        .await
    }

    /// A media playlist, when what it is asked for is there.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn media(&self, live: &Live, kind: Kind, directives: Directives, query: &str) -> Result<Bytes, Refusal> {
        if let (Some(msn), Some(rendition)) = (directives.msn, rendition(&live.packager(), kind))
            && msn > rendition.next().0 + 2
        {
            return Err(Refusal::TooFar);
        }
        self.wait(live, Instant::now() + PATIENCE, |packager| {
            let rendition = rendition(packager, kind)?;
            let (next, _) = rendition.next();
            let first = rendition.segments().next()?;
            let is_there = match (directives.msn, directives.part) {
                (None, _) => first.complete || !first.parts.is_empty(),
                (Some(msn), None) => next > msn,
                (Some(msn), Some(wanted)) => rendition.has_part(msn, wanted),
            };
            is_there.then(|| live.render(packager, kind, directives.skip, query))?
        })
        .await
    }

    /// An initialization section.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn init(&self, live: &Live, kind: Kind, number: u32) -> Result<Bytes, Refusal> {
        let found = rendition(&live.packager(), kind).and_then(|rendition| rendition.init(number));
        found.ok_or(Refusal::Gone)
    }

    /// A whole segment.
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub async fn segment(&self, live: &Live, kind: Kind, msn: u64) -> Result<Vec<Bytes>, Refusal> {
        let packager = live.packager();
        let segment = rendition(&packager, kind).and_then(|rendition| rendition.segment(msn));
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
    pub async fn part(&self, live: &Live, kind: Kind, msn: u64, part: usize) -> Result<Bytes, Refusal> {
        self.wait(live, Instant::now() + PATIENCE, |packager| {
            let rendition = rendition(packager, kind)?;
            if let Some(found) = rendition.segment(msn).and_then(|segment| segment.parts.get(part)) {
                return Some(Ok(found.bytes.clone()));
            }
            // The segment may have ended before it: then the hint was wrong, and the player asks for the next one.
            (rendition.next() != (msn, part)).then_some(Err(Refusal::Gone))
        })
        .await?
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamName, Arc<Live>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rendition(packager: &Packager, kind: Kind) -> Option<&Rendition> {
    match kind {
        Kind::Video => packager.video.as_ref(),
        Kind::Audio => packager.audio.as_ref(),
    }
}

impl Live {
    /// There is something new for players.
    pub(super) fn tell(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(super) fn packager(&self) -> MutexGuard<'_, Packager> {
        self.packager.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Instant> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn render(&self, packager: &Packager, kind: Kind, skip: bool, query: &str) -> Option<Bytes> {
        let write = || {
            let (own, other) = match kind {
                Kind::Video => (&packager.video, &packager.audio),
                Kind::Audio => (&packager.audio, &packager.video),
            };
            let other = other.as_ref().filter(|other| other.segments().len() > 0);
            Some(Bytes::from(playlist::media(own.as_ref()?, other, skip, query)))
        };
        if !query.is_empty() {
            return write();
        }
        let version = *self.version.borrow();
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if rendered.version != version {
            rendered.by_kind.clear();
            rendered.version = version;
        }
        if let Some(found) = rendered.by_kind.get(&(kind, skip)) {
            return Some(found.clone());
        }
        let text = write()?;
        rendered.by_kind.insert((kind, skip), text.clone());
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
