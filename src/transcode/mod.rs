//! What browsers cannot play is made playable when somebody needs it: a worker for each stream and need, which serves
//! all such viewers and ends after the last.
//!
//! ```text
//! stream `door` (ring) -> Reader -> Depacketizer -> worker process -> Feed -> stream `door#opus` -> viewers
//! ```
//!
//! A viewer who needs it opens the transcoded stream ([`crate::outputs::whep`]); the hub tells us of it. The times of a
//! transcoded track are those of the original one, so sound and picture stay together whichever of them is transcoded.
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
use crate::hub::tap::{Tap, TapQueue};
use crate::media::clock::{duration, ticks};
use crate::media::depacketizer::{Depacketizer, Frame};
use crate::media::packet::TrackTime;
use crate::media::transcode::TranscodeTarget;
use crate::media::{Codec, Format, Kind};
use crate::pipeline::description::Limits;
use crate::pipeline::library::Library;
use crate::pipeline::process::{self, Process, ProcessError};
use crate::pipeline::wire::{FromWorker, Input, Job, Media, WireFrame};
use crate::sources::fetch::backoff::Backoff;
use crate::sources::fetch::pipeline::{Running, announced};
use crate::sources::fetch::{Attached, random_id};
use crate::sources::frame_source::{FanOut, FrameSource, Framing};

/// How long a worker outlasts its last viewer: a page that is loaded again comes back within it.
const LINGER: Duration = Duration::from_secs(5);

/// Between looks at whether anybody watches.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A worker that ran for so long is started again soon.
const STEADY: Duration = Duration::from_secs(2);

/// Between notes of how the times of the stream lie to the clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Without input for so long, no output is due.
const IDLE: Duration = Duration::from_millis(500);

/// Between requests for a key frame to begin with.
const KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// What can be transcoded, and the pipeline for it.
const CONVERSIONS: [(Codec, TranscodeTarget, &str); 15] = [
    (Codec::H264, TranscodeTarget::H264, "h264-to-baseline"),
    (Codec::H265, TranscodeTarget::H264, "h265-to-h264"),
    (Codec::Jpeg, TranscodeTarget::H264, "mjpeg-to-h264"),
    (Codec::Aac, TranscodeTarget::Opus, "aac-to-opus"),
    (Codec::Opus, TranscodeTarget::Opus, "audio-to-opus"),
    (Codec::Pcmu, TranscodeTarget::Opus, "audio-to-opus"),
    (Codec::Pcma, TranscodeTarget::Opus, "audio-to-opus"),
    (Codec::Opus, TranscodeTarget::Aac, "opus-to-aac"),
    (Codec::Pcmu, TranscodeTarget::Aac, "audio-to-aac"),
    (Codec::Pcma, TranscodeTarget::Aac, "audio-to-aac"),
    (Codec::H264, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::H265, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::Vp8, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::Vp9, TranscodeTarget::Jpeg, "to-jpeg"),
    (Codec::Av1, TranscodeTarget::Jpeg, "to-jpeg"),
];

/// Looks what this machine can transcode, and feeds transcoded streams for as long as the task runs. `None` if it is nothing.
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
    plane.hub().set_transcoder(possible, move |name| {
        // There are only so many streams; and if the gateway stops, nobody waits any more.
        let _ = wanted.send(name.clone());
    });
    let library = Arc::new(library);
    Some(tokio::spawn(async move {
        let mut can_transcode = JoinSet::new();
        while let Some(name) = names.recv().await {
            can_transcode.spawn(transcode_stream(name, library.clone(), program.clone(), plane.clone()));
            while can_transcode.try_join_next().is_some() {}
        }
    }))
}

/// What this machine has the plugins for. The check also writes GStreamer's registry of them, which workers only read.
async fn possible(library: &Library, program: &Path) -> Vec<(Codec, TranscodeTarget)> {
    let pipelines = CONVERSIONS
        .iter()
        .filter_map(|(_, _, name)| Some((*name, library.get(name)?)));
    let trials = pipelines
        .map(|(name, description)| (name.to_owned(), description.trial()))
        .collect();
    let findings = match process::check(program, trials).await {
        Ok(findings) => findings,
        Err(error) => {
            warn!(%error, "transcode is off: what browsers cannot play stays so");
            return Vec::new();
        }
    };
    let mut possible = Vec::new();
    for (codec, transcode, name) in CONVERSIONS {
        match findings
            .iter()
            .find(|finding| finding.name == name)
            .map(|finding| &finding.failure)
        {
            Some(None) => possible.push((codec, transcode)),
            Some(Some(failure)) => {
                warn!(
                    codec = codec.name(),
                    transcode = transcode.label(),
                    pipeline = name,
                    problem = process::explain(failure),
                    "cannot be transcoded"
                );
            }
            None => {}
        }
    }
    possible
}

/// Feeds one transcoded stream until nobody watches it any more.
async fn transcode_stream<P: FanOut>(name: StreamName, library: Arc<Library>, program: PathBuf, plane: P) {
    let Some((origin, transcode)) = name.transcode() else {
        return;
    };
    let Some(transcoded) = plane.hub().find(&name) else {
        return;
    };
    let job = TranscodeJob {
        name,
        origin,
        transcode,
        library,
        program,
    };
    loop {
        tokio::select! {
            () = job.run(&plane) => {}
            () = unwatched(&transcoded, linger(transcode)) => {}
        }
        // Whoever opens it from here on tells of it; who did before is seen here.
        let mut watched = false;
        plane.hub().release(&transcoded, |state| watched = state.is_watched());
        if !watched {
            info!(stream = %job.origin, transcode = transcode.label(), "nobody needs the transcode any more");
            return;
        }
    }
}

/// A snapshot is taken and done.
fn linger(transcode: TranscodeTarget) -> Duration {
    match transcode {
        TranscodeTarget::Jpeg => LINGER / 5,
        TranscodeTarget::H264 | TranscodeTarget::Opus | TranscodeTarget::Aac => LINGER,
    }
}

async fn unwatched(stream: &Stream, linger: Duration) {
    let mut last = Instant::now();
    while last.elapsed() < linger {
        if stream.lock().is_watched() {
            last = Instant::now();
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// One stream, one need.
struct TranscodeJob {
    name: StreamName,
    origin: StreamName,
    transcode: TranscodeTarget,
    library: Arc<Library>,
    program: PathBuf,
}

/// What is to be transcoded at the moment.
struct TranscodeInput<'a> {
    tapped: Tap<'a>,
    format: Format,
    reader: Reader,
}

impl TranscodeJob {
    /// One worker after the other, for ever.
    async fn run<P: FanOut>(&self, plane: &P) {
        let mut backoff = Backoff::default();
        let mut logged = None;
        loop {
            let mut running_since = None;
            let error = self.work(plane, &mut running_since).await;
            if running_since.is_some_and(|running_since: Instant| running_since.elapsed() >= STEADY) {
                backoff.reset();
                logged = None;
            }
            let Some(error) = error.map(|error| error.to_string()) else {
                // The stream has become another one; perhaps one that nothing can be done about.
                sleep(POLL_INTERVAL).await;
                continue;
            };
            if logged.as_ref() != Some(&error) {
                warn!(stream = %self.origin, transcode = self.transcode.label(), error, "transcode failed");
            }
            logged = Some(error);
            let wait = backoff.after_failure(rand::rng().next_u32());
            sleep(wait).await;
        }
    }

    /// One worker, until it fails; `None` when the stream has become another one. `running_since` becomes the time of its first
    /// frame.
    async fn work<P: FanOut>(&self, plane: &P, running_since: &mut Option<Instant>) -> Option<ProcessError> {
        let (tap, changed) = tap();
        let mut input = self.wait_for_input(plane, &tap).await;
        let (job, limits) = self.job(input.format)?;
        let mut running = match Process::start(&self.program, job, limits) {
            Ok(process) => Running(Some(process)),
            Err(error) => return Some(error),
        };
        let process = running.0.as_mut()?;
        info!(stream = %self.origin, transcode = self.transcode.label(), from = input.format.codec().name(), "transcoding");
        let mut work = FrameConversion {
            kind: self.transcode.kind(),
            output_codec: self.transcode.format().codec(),
            rate: input.format.codec().clock_rate(),
            depacketizer: Depacketizer::new(self.transcode.kind()),
            base: None,
            last_input: Instant::now(),
        };
        let mut attached: Option<Attached<'_, P>> = None;
        let mut clock_sent: Option<Instant> = None;
        loop {
            let again = work.give(&mut input, process)?;
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
                    let mut feed = FrameSource::keeping_time(self.name.clone(), random_id(), &[announced]).ok()?;
                    feed.set_takes_key_frame_requests(true);
                    attached = Some(Attached { feed, plane });
                    continue;
                }
                Ok(FromWorker::Frame(frame)) => frame,
                Ok(_) => continue,
                Err(ProcessError::Stalled(_) | ProcessError::NothingCame(_)) if work.last_input.elapsed() >= IDLE => {
                    process.expect_no_frame();
                    continue;
                }
                Err(error) => return Some(error),
            };
            let Some(Attached { feed, .. }) = &mut attached else {
                continue;
            };
            running_since.get_or_insert_with(Instant::now);
            work.take(feed, &frame);
            if clock_sent.is_none_or(|clock_sent| clock_sent.elapsed() >= CLOCK_INTERVAL) {
                let now = Instant::now();
                let time = input
                    .tapped
                    .stream
                    .lock()
                    .track(work.kind)
                    .clock
                    .time_at(now.into_std());
                if let Some(time) = time {
                    feed.record_capture_time(work.kind, work.outgoing(time), now.into_std());
                    clock_sent = Some(now);
                }
            }
            if !plane.feed(feed) {
                // Only we feed it: somebody else is about to.
                return None;
            }
            if feed.take_key_frame_request() {
                process.request_key_frame_of_source();
            }
        }
    }

    /// Waits until there is something to begin with.
    async fn wait_for_input<'a, P: FanOut>(&self, plane: &'a P, tap: &Arc<TapQueue>) -> TranscodeInput<'a> {
        let mut asked: Option<Instant> = None;
        let tapped = Tap::open(plane.hub(), &self.origin, tap);
        loop {
            let (begun, source) = {
                let mut state = tapped.stream.lock();
                let begun = self.begin(&mut state);
                // Audio begins anywhere.
                let is_waiting = begun.is_none() && self.transcode.kind() == Kind::Video;
                let ask = is_waiting && asked.is_none_or(|asked| asked.elapsed() >= KEY_FRAME_REQUEST_INTERVAL);
                (begun, ask.then(|| state.request_key_frame_of_source()).flatten())
            };
            if let Some((format, reader)) = begun {
                return TranscodeInput { tapped, format, reader };
            }
            if let Some(source) = source {
                plane.ask_for_key_frame(source);
                asked = Some(Instant::now());
            }
            sleep(POLL_INTERVAL / 10).await;
        }
    }

    fn begin(&self, state: &mut StreamState) -> Option<(Format, Reader)> {
        let kind = self.transcode.kind();
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
            .find(|(codec, transcode, _)| *codec == format.codec() && *transcode == self.transcode)?;
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
fn tap() -> (Arc<TapQueue>, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    (Arc::new(Mailbox::new(1, move || notify.notify_one())), changed)
}

/// Between ring, worker and feed.
struct FrameConversion {
    kind: Kind,
    /// What comes out.
    output_codec: Codec,
    /// Of the original, in Hz.
    rate: u32,
    depacketizer: Depacketizer,
    /// Time of the first frame: where the worker's times begin.
    base: Option<TrackTime>,
    last_input: Instant,
}

impl FrameConversion {
    /// Gives the worker what is new. `None` when the stream is another one now, else when to look again.
    fn give(&mut self, input: &mut TranscodeInput<'_>, process: &Process) -> Option<Option<std::time::Instant>> {
        let now = Instant::now();
        let mut packets = Vec::new();
        let again = {
            let mut state = input.tapped.stream.lock();
            if state
                .format(self.kind)
                .is_some_and(|format| !is_same(format, input.format))
            {
                return None;
            }
            input
                .reader
                .read(now.into_std(), &state.track(self.kind).ring, &mut packets)
        };
        let mut frames = Vec::new();
        for packet in packets {
            self.depacketizer.push(&packet, &mut frames);
        }
        for frame in frames {
            self.last_input = now;
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

    fn take(&self, feed: &mut FrameSource, frame: &WireFrame) {
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
            debug!(%error, "transcoded frame dropped");
        }
    }

    /// A time of the original on the clock of what comes out.
    fn outgoing(&self, time: TrackTime) -> TrackTime {
        let rate = self.output_codec.clock_rate();
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
