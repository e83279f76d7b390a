//! What browsers cannot play is made playable when somebody needs it: a worker for each stream and need, which serves
//! all such viewers and ends after the last.
//!
//! ```text
//! stream `door` (ring) -> Reader -> Depacketizer -> worker process -> Feed -> stream `door#opus` -> viewers
//! ```
//!
//! A viewer who needs it opens the repaired stream ([`crate::outputs::whep`]); the hub tells us of it. The times of a
//! repaired track are those of the original one, so sound and picture stay together whichever of them is repaired.
//!
//! A shell: it reads the clock of tokio.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::RngCore as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamName;
use crate::hub::reader::Reader;
use crate::hub::stream::{Stream, StreamState};
use crate::hub::tap::{TapMailbox, Tapped};
use crate::media::clock::{duration, ticks};
use crate::media::depacketizer::{Depacketizer, Frame};
use crate::media::packet::TrackTime;
use crate::media::repair::Repair;
use crate::media::{Codec, Format, Kind};
use crate::pipeline::description::Limits;
use crate::pipeline::library::Library;
use crate::pipeline::process::{self, Process, ProcessError};
use crate::pipeline::wire::{FromWorker, Input, Job, Media, WireFrame};
use crate::sources::feed::{FanOut, Feed, Framing};
use crate::sources::fetch::backoff::Backoff;
use crate::sources::fetch::pipeline::{Running, announced};
use crate::sources::fetch::{Attached, random_id};

/// How long a worker outlasts its last viewer: a page that is loaded again comes back within it.
const LINGER: Duration = Duration::from_secs(5);

/// Between looks at whether anybody watches.
const LOOK: Duration = Duration::from_millis(250);

/// A worker that ran for so long is started again soon.
const STEADY: Duration = Duration::from_secs(2);

/// Between notes of how the times of the stream lie to the clock.
const NOTE: Duration = Duration::from_secs(1);

/// Without input for so long, no output is due.
const IDLE: Duration = Duration::from_millis(500);

/// Between requests for a key frame to begin with.
const ASK: Duration = Duration::from_secs(1);

/// What can be repaired, and the pipeline for it.
const CONVERSIONS: [(Codec, Repair, &str); 15] = [
    (Codec::H264, Repair::H264, "h264-repair"),
    (Codec::H265, Repair::H264, "h265-to-h264"),
    (Codec::Jpeg, Repair::H264, "mjpeg-to-h264"),
    (Codec::Aac, Repair::Opus, "aac-to-opus"),
    (Codec::Opus, Repair::Opus, "audio-to-opus"),
    (Codec::Pcmu, Repair::Opus, "audio-to-opus"),
    (Codec::Pcma, Repair::Opus, "audio-to-opus"),
    (Codec::Opus, Repair::Aac, "opus-to-aac"),
    (Codec::Pcmu, Repair::Aac, "audio-to-aac"),
    (Codec::Pcma, Repair::Aac, "audio-to-aac"),
    (Codec::H264, Repair::Jpeg, "to-jpeg"),
    (Codec::H265, Repair::Jpeg, "to-jpeg"),
    (Codec::Vp8, Repair::Jpeg, "to-jpeg"),
    (Codec::Vp9, Repair::Jpeg, "to-jpeg"),
    (Codec::Av1, Repair::Jpeg, "to-jpeg"),
];

/// Looks what this machine can repair, and feeds repaired streams for as long as the task runs. `None` if it is nothing.
pub async fn start<P: FanOut + Clone + 'static>(
    library: Library,
    program: PathBuf,
    plane: P,
) -> Option<JoinHandle<()>> {
    let possible = possible(&library, &program).await;
    if possible.is_empty() {
        return None;
    }
    let (wanted, mut names) = mpsc::unbounded_channel();
    plane.hub().set_repairer(possible, move |name| {
        // There are only so many streams; and if the gateway stops, nobody waits any more.
        let _ = wanted.send(name.clone());
    });
    let library = Arc::new(library);
    Some(tokio::spawn(async move {
        let mut repairs = JoinSet::new();
        while let Some(name) = names.recv().await {
            repairs.spawn(mend(name, library.clone(), program.clone(), plane.clone()));
            while repairs.try_join_next().is_some() {}
        }
    }))
}

/// What this machine has the plugins for. The check also writes GStreamer's registry of them, which workers only read.
async fn possible(library: &Library, program: &Path) -> Vec<(Codec, Repair)> {
    let pipelines = CONVERSIONS
        .iter()
        .filter_map(|(_, _, name)| Some((*name, library.get(name)?)));
    let trials = pipelines
        .map(|(name, description)| (name.to_owned(), description.trial()))
        .collect();
    let findings = match process::check(program, trials).await {
        Ok(findings) => findings,
        Err(error) => {
            warn!(%error, "repair is off: what browsers cannot play stays so");
            return Vec::new();
        }
    };
    let mut possible = Vec::new();
    for (codec, repair, name) in CONVERSIONS {
        match findings
            .iter()
            .find(|finding| finding.name == name)
            .map(|finding| &finding.failure)
        {
            Some(None) => possible.push((codec, repair)),
            Some(Some(failure)) => {
                warn!(
                    codec = codec.name(),
                    repair = repair.label(),
                    pipeline = name,
                    problem = process::explain(failure),
                    "cannot be repaired"
                );
            }
            None => {}
        }
    }
    possible
}

/// Feeds one repaired stream until nobody watches it any more.
async fn mend<P: FanOut>(name: StreamName, library: Arc<Library>, program: PathBuf, plane: P) {
    let Some((origin, repair)) = name.repair() else { return };
    let Some(repaired) = plane.hub().find(&name) else {
        return;
    };
    let bench = Bench {
        name,
        origin,
        repair,
        library,
        program,
    };
    loop {
        tokio::select! {
            () = bench.keep_working(&plane) => {}
            () = unwatched(&repaired, linger(repair)) => {}
        }
        // Whoever opens it from here on tells of it; who did before is seen here.
        let mut watched = false;
        plane.hub().release(&repaired, |state| watched = state.is_watched());
        if !watched {
            info!(stream = %bench.origin, repair = repair.label(), "nobody needs the repair any more");
            return;
        }
    }
}

/// A snapshot is taken and done.
fn linger(repair: Repair) -> Duration {
    match repair {
        Repair::Jpeg => LINGER / 5,
        Repair::H264 | Repair::Opus | Repair::Aac => LINGER,
    }
}

async fn unwatched(stream: &Stream, linger: Duration) {
    let mut last = Instant::now();
    while last.elapsed() < linger {
        if stream.lock().is_watched() {
            last = Instant::now();
        }
        sleep(LOOK).await;
    }
}

/// One stream, one need.
struct Bench {
    name: StreamName,
    origin: StreamName,
    repair: Repair,
    library: Arc<Library>,
    program: PathBuf,
}

/// What is to be repaired at the moment.
struct Damage<'a> {
    tapped: Tapped<'a>,
    format: Format,
    reader: Reader,
}

impl Bench {
    /// One worker after the other, for ever.
    async fn keep_working<P: FanOut>(&self, plane: &P) {
        let mut backoff = Backoff::default();
        let mut told = None;
        loop {
            let mut lived = None;
            let error = self.work(plane, &mut lived).await;
            if lived.is_some_and(|lived: Instant| lived.elapsed() >= STEADY) {
                backoff.reset();
                told = None;
            }
            let Some(error) = error.map(|error| error.to_string()) else {
                // The stream has become another one; perhaps one that nothing can be done about.
                sleep(LOOK).await;
                continue;
            };
            if told.as_ref() != Some(&error) {
                warn!(stream = %self.origin, repair = self.repair.label(), error, "repair failed");
            }
            told = Some(error);
            let wait = backoff.after_failure(rand::rng().next_u32());
            sleep(wait).await;
        }
    }

    /// One worker, until it fails; `None` when the stream has become another one. `lived` becomes the time of its first
    /// frame.
    async fn work<P: FanOut>(&self, plane: &P, lived: &mut Option<Instant>) -> Option<ProcessError> {
        let (tap, changed) = tap();
        let mut damage = self.look_at(plane, &tap).await;
        let (job, limits) = self.job(damage.format)?;
        let mut running = match Process::start(&self.program, job, limits) {
            Ok(process) => Running(Some(process)),
            Err(error) => return Some(error),
        };
        let process = running.0.as_mut()?;
        info!(stream = %self.origin, repair = self.repair.label(), from = damage.format.codec().name(), "repairing");
        let mut work = Work {
            kind: self.repair.kind(),
            made: self.repair.format().codec(),
            rate: damage.format.codec().clock_rate(),
            depacketizer: Depacketizer::new(self.repair.kind()),
            base: None,
            given: Instant::now(),
        };
        let mut attached: Option<Attached<'_, P>> = None;
        let mut noted: Option<Instant> = None;
        loop {
            let again = work.give(&mut damage, process)?;
            let next_hole = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = process.next() => message,
                () = changed.notified() => {
                    tap.take(&mut VecDeque::new());
                    continue;
                }
                () = next_hole => continue,
            };
            let frame = match message {
                Ok(FromWorker::Media(media)) => {
                    let announced = announced(&media)?;
                    let mut feed = Feed::keeping_time(self.name.clone(), random_id(), &[announced]).ok()?;
                    feed.set_takes_key_frame_requests(true);
                    attached = Some(Attached { feed, plane });
                    continue;
                }
                Ok(FromWorker::Frame(frame)) => frame,
                Ok(_) => continue,
                Err(ProcessError::Stalled(_) | ProcessError::NothingCame(_)) if work.given.elapsed() >= IDLE => {
                    process.expect_no_frame();
                    continue;
                }
                Err(error) => return Some(error),
            };
            let Some(Attached { feed, .. }) = &mut attached else {
                continue;
            };
            lived.get_or_insert_with(Instant::now);
            work.take(feed, &frame);
            if noted.is_none_or(|noted| noted.elapsed() >= NOTE) {
                let now = Instant::now();
                let time = damage
                    .tapped
                    .stream
                    .lock()
                    .track(work.kind)
                    .clock
                    .time_at(now.into_std());
                if let Some(time) = time {
                    feed.note_captured(work.kind, work.outgoing(time), now.into_std());
                    noted = Some(now);
                }
            }
            if !plane.feed(feed) {
                // Only we feed it: somebody else is about to.
                return None;
            }
            if feed.take_key_frame_request() {
                process.want_key_frame();
            }
        }
    }

    /// Waits until there is something to begin with.
    async fn look_at<'a, P: FanOut>(&self, plane: &'a P, tap: &Arc<TapMailbox>) -> Damage<'a> {
        let mut asked: Option<Instant> = None;
        let tapped = Tapped::open(plane.hub(), &self.origin, tap);
        loop {
            let (begun, source) = {
                let mut state = tapped.stream.lock();
                let begun = self.begin(&mut state);
                // Audio begins anywhere.
                let is_waiting = begun.is_none() && self.repair.kind() == Kind::Video;
                let ask = is_waiting && asked.is_none_or(|asked| asked.elapsed() >= ASK);
                (begun, ask.then(|| state.want_key_frame()).flatten())
            };
            if let Some((format, reader)) = begun {
                return Damage { tapped, format, reader };
            }
            if let Some(source) = source {
                plane.ask_for_key_frame(source);
                asked = Some(Instant::now());
            }
            sleep(LOOK / 10).await;
        }
    }

    fn begin(&self, state: &mut StreamState) -> Option<(Format, Reader)> {
        let kind = self.repair.kind();
        state.source()?;
        let format = state.format(kind)?;
        let ring = &state.track(kind).ring;
        let reader = match kind {
            Kind::Video => Reader::at_key_frame(ring)?,
            Kind::Audio => Reader::at_end(ring),
        };
        Some((format, reader))
    }

    fn job(&self, format: Format) -> Option<(Job, Limits)> {
        let (_, _, name) = CONVERSIONS
            .iter()
            .find(|(codec, repair, _)| *codec == format.codec() && *repair == self.repair)?;
        let media = match format {
            Format::H264 { .. } => Media::H264,
            Format::H265 { .. } => Media::H265,
            Format::Jpeg => Media::Jpeg,
            Format::Aac(config) => Media::Aac(config.bytes().to_vec()),
            Format::Opus { .. } => Media::Opus,
            Format::Pcmu => Media::Pcmu,
            Format::Pcma => Media::Pcma,
            Format::Vp8 => Media::Vp8,
            Format::Vp9 { .. } => Media::Vp9,
            Format::Av1 { .. } => Media::Av1,
        };
        let description = self.library.get(name)?;
        let inputs = vec![Input { media }];
        let (job, _) = description.job(&toml::Table::new(), inputs).ok()?;
        Some((job, description.limits))
    }
}

/// A tap that only wakes: what is new is read from the ring, where it stands in order.
fn tap() -> (Arc<TapMailbox>, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    (Arc::new(Mailbox::new(1, move || notify.notify_one())), changed)
}

/// Between ring, worker and feed.
struct Work {
    kind: Kind,
    /// What comes out.
    made: Codec,
    /// Of the original, in Hz.
    rate: u32,
    depacketizer: Depacketizer,
    /// Time of the first frame: where the worker's times begin.
    base: Option<TrackTime>,
    given: Instant,
}

impl Work {
    /// Gives the worker what is new. `None` when the stream is another one now, else when to look again.
    fn give(&mut self, damage: &mut Damage<'_>, process: &Process) -> Option<Option<std::time::Instant>> {
        let now = Instant::now();
        let mut packets = Vec::new();
        let again = {
            let mut state = damage.tapped.stream.lock();
            if state
                .format(self.kind)
                .is_some_and(|format| !is_same(format, damage.format))
            {
                return None;
            }
            damage
                .reader
                .read(now.into_std(), &state.track(self.kind).ring, &mut packets)
        };
        let mut frames = Vec::new();
        for packet in packets {
            self.depacketizer.push(&packet, &mut frames);
        }
        for frame in frames {
            self.given = now;
            if let Some(frame) = self.wire_frame(frame)
                && !process.give(frame)
            {
                debug!("a worker does not keep up: frame dropped");
                self.depacketizer.reset();
            }
        }
        Some(again)
    }

    /// `None` for what is before the beginning.
    fn wire_frame(&mut self, frame: Frame) -> Option<WireFrame> {
        // Pictures may be shown before the first that came: leave room for them.
        let base = *self.base.get_or_insert(frame.time.saturating_sub(u64::from(self.rate)));
        let time = duration(frame.time.checked_sub(base)?, self.rate);
        Some(WireFrame {
            kind: self.kind,
            time: u64::try_from(time.as_nanos()).ok()?,
            after_gap: frame.after_gap,
            bytes: frame.bytes,
        })
    }

    fn take(&self, feed: &mut Feed, frame: &WireFrame) {
        let Some(base) = self.base else { return };
        // Rounded, for what went in was rounded down.
        let half = Duration::from_nanos(500_000_000 / u64::from(self.rate.max(1)));
        let since = ticks(Duration::from_nanos(frame.time).saturating_add(half), self.rate);
        let time = self.outgoing(base.saturating_add(since));
        let now = Instant::now().into_std();
        let taken = match self.kind {
            Kind::Video => feed.take_video(now, time, &frame.bytes, Framing::StartCodes),
            Kind::Audio => feed.take_audio(now, time, &frame.bytes),
        };
        if let Err(error) = taken {
            debug!(%error, "repaired frame dropped");
        }
    }

    /// A time of the original on the clock of what comes out.
    fn outgoing(&self, time: TrackTime) -> TrackTime {
        let rate = self.made.clock_rate();
        let time = u128::from(time) * u128::from(rate) / u128::from(self.rate.max(1));
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

/// Whether a worker that was made for the one can go on with the other.
fn is_same(one: Format, other: Format) -> bool {
    match (one, other) {
        (Format::Aac(one), Format::Aac(other)) => one == other,
        _ => one.codec() == other.codec(),
    }
}
