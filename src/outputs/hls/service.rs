//! Packagers that run while somebody asks for them, and requests that wait for what is to come. A shell: it reads the
//! clocks of tokio and of the system.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::info;

use super::packager::Packager;
use super::playlist::{self, Directives};
use super::rendition::Rendition;
use crate::hub::Hub;
use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamName;
use crate::hub::reader::Reader;
use crate::hub::stream::{SessionId, SourceRef, Stream};
use crate::hub::tap::TapMailbox;
use crate::media::depacketizer::{Depacketizer, Frame};
use crate::media::repair::{self, Repair};
use crate::media::{Format, Kind};

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

/// The source is asked for a key frame when the last one is so old; sooner for the first segment, which players wait for.
const KEY_FRAME: Duration = Duration::from_secs(2);
const FIRST_KEY_FRAME: Duration = Duration::from_secs(1);

/// Between two requests.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Between looks at what nobody announces: another source, no more requests.
const LOOK: Duration = Duration::from_millis(250);

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
            tokio::spawn(package(self.clone(), name.clone(), live.clone()));
            live
        });
        Ok(live.clone())
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
            let next = rendition.next();
            // The segment may have ended before it: then the hint was wrong, and the player asks for the next one.
            let may_come = next == (msn, part) || (next.0 == msn + 1 && next.1 == 0 && part == 0);
            (!may_come).then_some(Err(Refusal::Gone))
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
    fn packager(&self) -> MutexGuard<'_, Packager> {
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

/// Whether picture and sound can be expected of a stream, as it is or repaired.
fn wanted(hub: &Hub, name: &StreamName) -> (bool, bool) {
    let Some(stream) = hub.find(name) else {
        return (false, false);
    };
    let state = stream.lock();
    let can = |kind| {
        let format: Option<Format> = state.format(kind);
        let repairable = hub.has_repairer() && format.is_some_and(|format| repair::is_repairable(format.codec()));
        Packager::expects(format) && !needs_repair(&state, kind) || repairable
    };
    (can(Kind::Video), can(Kind::Audio))
}

/// HLS takes AAC as it is, but no G.711; pictures out of order and JPEG it gets repaired, as browsers by WebRTC do.
fn needs_repair(state: &crate::hub::stream::StreamState, kind: Kind) -> bool {
    match kind {
        Kind::Video => state.is_unplayable(Kind::Video),
        Kind::Audio => !Packager::expects(state.format(Kind::Audio)),
    }
}

/// One track on its way from a ring to the packager.
struct Lane {
    kind: Kind,
    stream: Arc<Stream>,
    /// Of the stream that is read.
    source: Option<SessionId>,
    reader: Option<Reader>,
    depacketizer: Depacketizer,
}

impl Lane {
    fn new(kind: Kind, stream: Arc<Stream>) -> Self {
        Self {
            kind,
            stream,
            source: None,
            reader: None,
            depacketizer: Depacketizer::new(kind),
        }
    }

    /// What has come. Returns when to look again for what is missing.
    fn read(&mut self, now: std::time::Instant, frames: &mut Vec<Frame>) -> Option<std::time::Instant> {
        let mut packets = Vec::new();
        let again = {
            let mut state = self.stream.lock();
            let ring = &state.track(self.kind).ring;
            if self.reader.is_none() {
                self.reader = match self.kind {
                    Kind::Video => Reader::at_key_frame(ring),
                    // From before the picture; what is too early is left out later.
                    Kind::Audio => Some(Reader::at_start(ring)),
                };
            }
            self.reader.as_mut()?.read(now, ring, &mut packets)
        };
        for packet in packets {
            self.depacketizer.push(&packet, frames);
        }
        again
    }
}

/// Packages a stream until nobody has asked for a while.
async fn package(service: Arc<Service>, name: StreamName, live: Arc<Live>) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapMailbox> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let mut lanes: Vec<Lane> = Vec::new();
    let mut asked_key_frame = Instant::now();
    let mut next_look = Instant::now();
    let mut again: Option<std::time::Instant> = None;
    loop {
        let due = again.map_or(next_look, |again| next_look.min(again.into()));
        tokio::select! {
            () = changed.notified() => tap.take(&mut VecDeque::new()),
            () = sleep_until(due) => {}
        }
        let now = Instant::now();
        if now >= next_look {
            next_look = now + LOOK;
            let idle = now.duration_since(*live.asked()) >= IDLE;
            if idle && live.version.receiver_count() == 0 {
                service.lock().remove(&name);
                info!(stream = %name, "nobody asks for HLS any more");
                release(service.plane.hub(), &lanes);
                return;
            }
            look(&service, &name, &tap, &live, &mut lanes);
            let oldest = if live.packager().has_segment() {
                KEY_FRAME
            } else {
                FIRST_KEY_FRAME
            };
            if now.duration_since(asked_key_frame) >= ASK_AGAIN && ask(&service, &lanes, oldest) {
                asked_key_frame = now;
            }
        }
        again = read(&live, &mut lanes, now.into_std());
    }
}

/// Follows the stream to other sources, and to the repaired streams beside it.
fn look(service: &Service, name: &StreamName, tap: &Arc<TapMailbox>, live: &Live, lanes: &mut Vec<Lane>) {
    let hub = service.plane.hub();
    let Some(home) = hub.find(name) else { return };
    let (wanted, source) = {
        let state = home.lock();
        let Some(source) = state.source() else { return };
        let names = [Kind::Video, Kind::Audio].map(|kind| {
            let format = state.format(kind)?;
            let needs = needs_repair(&state, kind);
            if needs && hub.has_repairer() && repair::is_repairable(format.codec()) {
                Some(name.repaired(Repair::of(kind)))
            } else {
                Packager::expects(Some(format)).then(|| name.clone())
            }
        });
        (names, source.session)
    };
    let names: Vec<(Kind, StreamName)> = [Kind::Video, Kind::Audio]
        .into_iter()
        .zip(wanted)
        .filter_map(|(kind, name)| Some((kind, name?)))
        .collect();
    let same_streams = lanes.len() == names.len()
        && lanes.iter().zip(&names).all(|(lane, (kind, name))| {
            lane.kind == *kind && lane.stream.name == *name && hub.find(name).is_some_and(|s| s.id == lane.stream.id)
        });
    let same_source = lanes.iter().all(|lane| lane.source == Some(source));
    if same_streams && same_source {
        return;
    }
    if !lanes.is_empty() {
        live.packager().restart();
    }
    release(hub, lanes);
    *lanes = names
        .into_iter()
        .map(|(kind, name)| {
            let stream = hub.open_with(&name, |state| state.tap(tap));
            let mut lane = Lane::new(kind, stream);
            lane.source = Some(source);
            lane
        })
        .collect();
}

/// Streams that nobody else uses are forgotten. (A tap that is not read any more keeps nothing.)
fn release(hub: &Hub, lanes: &[Lane]) {
    for lane in lanes {
        hub.release(&lane.stream, |_| {});
    }
}

/// Segments begin at key frames: a source that can be asked is asked for one when the last one is so old.
fn ask(service: &Service, lanes: &[Lane], oldest: Duration) -> bool {
    let Some(video) = lanes.iter().find(|lane| lane.kind == Kind::Video) else {
        return false;
    };
    let mut state = video.stream.lock();
    let ring = &state.video.ring;
    let age = ring.key_frame().and_then(|key_frame| ring.age(key_frame));
    if age.is_none_or(|age| age >= oldest)
        && let Some(source) = state.want_key_frame()
    {
        drop(state);
        service.plane.ask_for_key_frame(source);
        return true;
    }
    false
}

fn read(live: &Live, lanes: &mut [Lane], now: std::time::Instant) -> Option<std::time::Instant> {
    let has_video = lanes.iter().any(|lane| lane.kind == Kind::Video);
    #[expect(clippy::disallowed_methods, reason = "the wall clock that players are told")]
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (mut again, mut news): (Option<std::time::Instant>, bool) = (None, false);
    for lane in lanes {
        let mut frames = Vec::new();
        let due = lane.read(now, &mut frames);
        again = [again, due].into_iter().flatten().min();
        if frames.is_empty() {
            continue;
        }
        let mut state = lane.stream.lock();
        let mut packager = live.packager();
        for frame in frames {
            news |= packager.push(&mut state, has_video, &frame, now, wall);
        }
    }
    if news {
        live.version.send_modify(|version| *version += 1);
    }
    again
}
