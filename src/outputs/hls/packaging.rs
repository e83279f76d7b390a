//! The task that packages one stream while it has HLS requests: it follows the stream to other sources and to
//! transcoded streams, and requests key frames. Not sans-I/O, like [`service`](super::service).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::live::{Live, Plane};
use super::packager::{Moment, Packager};
use super::rendition::Role;
use millstream_core::hub::Hub;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::reader::Reader;
use millstream_core::hub::stream::{SessionId, StreamState};
use millstream_core::hub::tap::{Tap, TapQueue};
use millstream_core::media::depacketizer::{Depacketizer, Frame};
use millstream_core::media::transcode::{self, SourceTrack, TrackPlan, TranscodeTarget};
use millstream_core::media::{Codec, Format, Kind};

/// Maximum age of the last key frame before another one is requested. It is lower for the first segment, for which
/// players wait.
const MAX_KEY_FRAME_AGE: Duration = Duration::from_secs(2);
const MAX_FIRST_KEY_FRAME_AGE: Duration = Duration::from_secs(1);

/// Minimum interval between key frame requests.
const KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of the check for a new source and for idleness, neither of which is signalled.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Packages a stream until `remove_if_idle` has removed it, because it had no requests for a while.
pub(super) async fn package(
    remove_if_idle: impl Fn() -> bool,
    plane: Arc<dyn Plane>,
    name: StreamName,
    live: Arc<Live>,
) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapQueue> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let mut tracks: Vec<TrackReader<'_>> = Vec::new();
    let mut last_key_frame_request = Instant::now();
    let mut next_poll = Instant::now();
    let mut retry_at: Option<std::time::Instant> = None;
    loop {
        let due = retry_at.map_or(next_poll, |at| next_poll.min(at.into()));
        tokio::select! {
            () = changed.notified() => tap.take(&mut VecDeque::new()),
            () = live.poll_now.notified() => next_poll = Instant::now(),
            () = sleep_until(due) => {}
        }
        let now = Instant::now();
        if now >= next_poll {
            next_poll = now + POLL_INTERVAL;
            if remove_if_idle() {
                info!(stream = %name, "HLS packaging stopped (no viewers)");
                return;
            }
            follow(plane.hub(), &name, &tap, &live, &mut tracks);
            let max_age = if live.packager().has_segment() {
                MAX_KEY_FRAME_AGE
            } else {
                MAX_FIRST_KEY_FRAME_AGE
            };
            if now.duration_since(last_key_frame_request) >= KEY_FRAME_REQUEST_INTERVAL
                && request_key_frame(&*plane, &tracks, max_age)
            {
                last_key_frame_request = now;
            }
        }
        retry_at = read(&live, &mut tracks, now.into_std());
    }
}

/// Updates the track readers to the current source, layers and transcoded streams of the stream.
fn follow<'a>(hub: &'a Hub, name: &StreamName, tap: &Arc<TapQueue>, live: &Live, tracks: &mut Vec<TrackReader<'a>>) {
    let Some(stream) = hub.find(name) else { return };
    let has_aac_players = live.has_aac_players();
    let followed = stream.with(|state| {
        let source = state.source()?;
        let of = |role: Role| Some((role, origin(hub, name, state, role.kind())?));
        let origins: Vec<(Role, StreamKey)> = [Role::Video, Role::Audio].into_iter().filter_map(of).collect();
        let aac = aac(hub, name, state).filter(|_| has_aac_players);
        Some((origins, layers(name, state), aac, source.session))
    });
    let Some((origins, lower_layers, aac, source)) = followed else {
        return;
    };
    let main = tracks
        .iter()
        .filter(|track| matches!(track.role, Role::Video | Role::Audio));
    let is_same = main.clone().count() == origins.len()
        && main
            .zip(&origins)
            .all(|(track, (role, key))| track.role == *role && track.tap.stream.key == *key && track.source == source);
    if !is_same {
        if !tracks.is_empty() {
            let mut packager = live.packager();
            packager.restart();
            // Remove renditions that the new source lacks: they would stay in the playlists, and audio would wait for
            // them.
            let is_kept = |role: &Role| match role {
                Role::Video | Role::Audio => origins.iter().any(|(kept, _)| kept == role),
                Role::Layer2 | Role::Layer3 => lower_layers.iter().any(|(kept, _)| kept == role),
                Role::Aac => aac.is_some(),
            };
            for role in Role::ALL.into_iter().filter(|role| !is_kept(role)) {
                packager.remove(role);
            }
        }
        let track = |(role, key): (Role, StreamKey)| TrackReader::new(role, Tap::open(hub, key, tap), source);
        *tracks = origins.into_iter().map(track).collect();
    }
    // Layers are added and removed without restarting the other tracks.
    let is_current = |track: &TrackReader<'_>| {
        let is_layer = matches!(track.role, Role::Layer2 | Role::Layer3);
        let is_active = lower_layers
            .iter()
            .any(|(role, key)| *role == track.role && *key == track.tap.stream.key);
        !is_layer || is_active
    };
    for track in tracks.iter().filter(|track| !is_current(track)) {
        live.packager().remove(track.role);
    }
    tracks.retain(is_current);
    for (role, key) in &lower_layers {
        if !tracks.iter().any(|track| track.role == *role) {
            tracks.push(TrackReader::new(*role, Tap::open(hub, key, tap), source));
        }
    }
    // The same applies to transcoded AAC.
    let has_aac = tracks.iter().any(|track| track.role == Role::Aac);
    match aac {
        Some(key) if !has_aac => tracks.push(TrackReader::new(Role::Aac, Tap::open(hub, key, tap), source)),
        None if has_aac => {
            tracks.retain(|track| track.role != Role::Aac);
            live.packager().remove(Role::Aac);
        }
        Some(_) | None => {}
    }
}

/// Requests a key frame from the source if the last one is older than `max_age`, because segments start at key frames.
/// An old key frame of a single layer is sufficient, since players could not switch to it. The source responds with key
/// frames of all layers, which keeps their segments aligned.
fn request_key_frame(plane: &dyn Plane, tracks: &[TrackReader<'_>], max_age: Duration) -> bool {
    let mut video = tracks.iter().filter(|track| track.role.kind() == Kind::Video);
    let source = video.find_map(|track| {
        track.tap.stream.with(|state| {
            let ring = state.video.ring();
            let age = ring.key_frame().and_then(|key_frame| ring.age(key_frame));
            age.is_none_or(|age| age >= max_age)
                .then(|| state.request_key_frame_of_source())?
        })
    });
    if let Some(source) = source {
        plane.ask_for_key_frame(source);
    }
    source.is_some()
}

/// Reads one track from its ring for the packager.
struct TrackReader<'a> {
    role: Role,
    tap: Tap<'a>,
    /// Source of the stream when the reader was created.
    source: SessionId,
    reader: Option<Reader>,
    depacketizer: Depacketizer,
}

impl<'a> TrackReader<'a> {
    fn new(role: Role, tap: Tap<'a>, source: SessionId) -> Self {
        Self {
            role,
            tap,
            source,
            reader: None,
            depacketizer: Depacketizer::new(role.kind()),
        }
    }

    /// Appends new frames. Returns when to retry if packets are missing.
    fn read(&mut self, now: std::time::Instant, frames: &mut Vec<Frame>) -> Option<std::time::Instant> {
        let mut entries = Vec::new();
        let retry_at = self.tap.stream.with(|state| {
            let ring = state.track(self.role.kind()).ring();
            if self.reader.is_none() {
                self.reader = match self.role.kind() {
                    // With the oldest one, players often find a complete segment at once.
                    Kind::Video => Reader::at_oldest_key_frame(ring),
                    // Starts before the video; the packager drops audio that is too early.
                    Kind::Audio => Some(Reader::at_start(ring)),
                };
            }
            self.reader.as_mut()?.read(now, ring, &mut entries)
        });
        for entry in entries {
            self.depacketizer.push(&entry.packet, frames);
        }
        retry_at
    }
}

/// Renditions that a stream is expected to have, as they are or transcoded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expected {
    pub(super) video: bool,
    /// Number of simulcast layers.
    pub(super) layers: usize,
    pub(super) audio: bool,
    /// AAC transcode in addition to the original audio.
    pub(super) aac: bool,
}

/// Returns the renditions that a stream is expected to have.
pub(super) fn expected(hub: &Hub, name: &StreamName) -> Expected {
    let Some(stream) = hub.find(name) else {
        return Expected::default();
    };
    stream.with(|state| {
        let has = |kind| origin(hub, name, state, kind).is_some();
        Expected {
            video: has(Kind::Video),
            layers: 1 + layers(name, state).len(),
            audio: has(Kind::Audio),
            aac: aac(hub, name, state).is_some(),
        }
    })
}

/// Returns the codec of the video of a stream that has video and no video rendition.
pub(super) fn missing_video(hub: &Hub, name: &StreamName) -> Option<Codec> {
    hub.find(name)?.with(|state| {
        let is_packaged = origin(hub, name, state, Kind::Video).is_some();
        let video = state.source_track(Kind::Video).filter(|_| !is_packaged);
        video.map(|track| track.format.codec())
    })
}

/// Returns whether HLS players play a track without transcoding. They have AAC, and no G.711; B-frames are transcoded, so
/// that one transcode serves them and WebRTC.
fn is_playable(track: SourceTrack) -> bool {
    Packager::supports(track.format) && (track.format.codec().kind() == Kind::Audio || track.is_webrtc())
}

/// Returns the active layers below the best one, which the stream itself carries. Empty if the video must be transcoded.
fn layers(name: &StreamName, state: &StreamState) -> Vec<(Role, StreamKey)> {
    let is_playable = state.source_track(Kind::Video).is_some_and(is_playable);
    let active = state.layers().iter().filter(|layer| is_playable && layer.active);
    let lower_layers = active.skip(1).map(|layer| name.layer(&layer.rid));
    [Role::Layer2, Role::Layer3].into_iter().zip(lower_layers).collect()
}

/// Returns the stream with the audio transcoded to AAC. `None` if the audio is AAC already, if the transcode is unavailable,
/// or if the video codec is not supported by Apple players either.
fn aac(hub: &Hub, name: &StreamName, state: &StreamState) -> Option<StreamKey> {
    let source = state.source_track(Kind::Audio)?;
    let video = state.format(Kind::Video).map(Format::codec);
    let supports_video = !matches!(video, Some(Codec::Vp8 | Codec::Vp9 | Codec::Av1));
    let target = TranscodeTarget::Aac;
    let can_transcode = hub.can_transcode_to(source.format.codec(), target);
    let plan = transcode::plan(source, target, can_transcode, |track| {
        track.format.codec() == Codec::Aac
    });
    match plan {
        TrackPlan::Transcode(target) if supports_video => Some(name.transcoded(target)),
        TrackPlan::Transcode(_) | TrackPlan::AsIs | TrackPlan::Nothing(_) => None,
    }
}

/// Returns the stream that a kind is read from: the stream itself or its transcode; `None` if neither is playable.
fn origin(hub: &Hub, name: &StreamName, state: &StreamState, kind: Kind) -> Option<StreamKey> {
    let source = state.source_track(kind)?;
    let can_transcode = hub.can_transcode(source.format.codec());
    match transcode::plan(source, TranscodeTarget::of(kind), can_transcode, is_playable) {
        TrackPlan::AsIs => Some(name.into()),
        TrackPlan::Transcode(target) => Some(name.transcoded(target)),
        TrackPlan::Nothing(_) => None,
    }
}

fn read(live: &Live, tracks: &mut [TrackReader<'_>], now: std::time::Instant) -> Option<std::time::Instant> {
    let has_video = tracks.iter().any(|track| track.role == Role::Video);
    #[expect(clippy::disallowed_methods, reason = "the wall clock for EXT-X-PROGRAM-DATE-TIME")]
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (mut retry_at, mut updated): (Option<std::time::Instant>, bool) = (None, false);
    for track in tracks {
        let mut frames = Vec::new();
        let due = track.read(now, &mut frames);
        retry_at = [retry_at, due].into_iter().flatten().min();
        if frames.is_empty() {
            continue;
        }
        // A copy: HTTP requests hold the packager's lock while they render, and a shard must not wait for them.
        let view = track.tap.stream.with(|state| state.track(track.role.kind()).view());
        let mut packager = live.packager();
        for frame in frames {
            updated |= packager.push(&view, track.role, has_video, &frame, Moment { now, wall });
        }
    }
    if updated {
        live.notify();
    }
    retry_at
}
