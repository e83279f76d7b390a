//! Packages one stream for as long as somebody asks: follows it to other sources and to the transcoded streams beside it,
//! and asks for key frames. A shell, as [`service`](super::service) is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::packager::Packager;
use super::rendition::Role;
use super::service::{Live, Plane, Service};
use crate::hub::Hub;
use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamName;
use crate::hub::reader::Reader;
use crate::hub::stream::{SessionId, StreamState};
use crate::hub::tap::{Tap, TapQueue};
use crate::media::depacketizer::{Depacketizer, Frame};
use crate::media::transcode::TranscodeTarget;
use crate::media::{Codec, Format, Kind};

/// The source is asked for a key frame when the last one is so old; sooner for the first segment, which players wait for.
const KEY_FRAME: Duration = Duration::from_secs(2);
const FIRST_KEY_FRAME: Duration = Duration::from_secs(1);

/// Between two requests.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Between looks at what nobody announces: another source, no more requests.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Packages a stream until nobody has asked for a while.
pub(super) async fn package(service: Arc<Service>, plane: Arc<dyn Plane>, name: StreamName, live: Arc<Live>) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapQueue> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let mut lanes: Vec<TrackReader<'_>> = Vec::new();
    let mut asked_key_frame = Instant::now();
    let mut next_look = Instant::now();
    let mut again: Option<std::time::Instant> = None;
    loop {
        let due = again.map_or(next_look, |again| next_look.min(again.into()));
        tokio::select! {
            () = changed.notified() => tap.take(&mut VecDeque::new()),
            () = live.wanted.notified() => next_look = Instant::now(),
            () = sleep_until(due) => {}
        }
        let now = Instant::now();
        if now >= next_look {
            next_look = now + POLL_INTERVAL;
            if service.forget_if_idle(&name) {
                info!(stream = %name, "nobody asks for HLS any more");
                return;
            }
            follow(plane.hub(), &name, &tap, &live, &mut lanes);
            let oldest = if live.packager().has_segment() {
                KEY_FRAME
            } else {
                FIRST_KEY_FRAME
            };
            if now.duration_since(asked_key_frame) >= ASK_AGAIN && ask(&*plane, &lanes, oldest) {
                asked_key_frame = now;
            }
        }
        again = read(&live, &mut lanes, now.into_std());
    }
}

/// Follows the stream to other sources, and to the transcoded streams beside it.
fn follow<'a>(hub: &'a Hub, name: &StreamName, tap: &Arc<TapQueue>, live: &Live, lanes: &mut Vec<TrackReader<'a>>) {
    let Some(home) = hub.find(name) else { return };
    let (origins, below, aac, source) = {
        let state = home.lock();
        let Some(source) = state.source() else { return };
        let of = |role: Role| Some((role, origin(hub, name, &state, role.kind())?));
        let origins: Vec<(Role, StreamName)> = [Role::Video, Role::Audio].into_iter().filter_map(of).collect();
        (
            origins,
            layers(name, &state),
            aac(hub, name, &state).filter(|_| live.wants_aac()),
            source.session,
        )
    };
    let main = lanes
        .iter()
        .filter(|lane| matches!(lane.role, Role::Video | Role::Audio));
    let is_same = main.clone().count() == origins.len()
        && main.zip(&origins).all(|(lane, (role, name))| {
            lane.role == *role && lane.tapped.stream.name == *name && lane.source == source
        });
    if !is_same {
        if !lanes.is_empty() {
            let mut packager = live.packager();
            packager.restart();
            // What the new source lacks would stay in the playlists, and the sound would wait for it.
            let is_kept = |role: &Role| match role {
                Role::Video | Role::Audio => origins.iter().any(|(kept, _)| kept == role),
                Role::Second | Role::Third => below.iter().any(|(kept, _)| kept == role),
                Role::Aac => aac.is_some(),
            };
            for role in Role::ALL.into_iter().filter(|role| !is_kept(role)) {
                packager.forget(role);
            }
        }
        let lane = |(role, name): (Role, StreamName)| TrackReader::new(role, Tap::open(hub, &name, tap), source);
        *lanes = origins.into_iter().map(lane).collect();
    }
    // Layers come and go beside the others, which go on.
    let is_wanted = |lane: &TrackReader<'_>| {
        let is_layer = matches!(lane.role, Role::Second | Role::Third);
        let wanted = below
            .iter()
            .any(|(role, name)| *role == lane.role && *name == lane.tapped.stream.name);
        !is_layer || wanted
    };
    for lane in lanes.iter().filter(|lane| !is_wanted(lane)) {
        live.packager().forget(lane.role);
    }
    lanes.retain(is_wanted);
    for (role, name) in &below {
        if !lanes.iter().any(|lane| lane.role == *role) {
            lanes.push(TrackReader::new(*role, Tap::open(hub, name, tap), source));
        }
    }
    // So does the AAC.
    let has_aac = lanes.iter().any(|lane| lane.role == Role::Aac);
    match aac {
        Some(name) if !has_aac => lanes.push(TrackReader::new(Role::Aac, Tap::open(hub, &name, tap), source)),
        None if has_aac => {
            lanes.retain(|lane| lane.role != Role::Aac);
            live.packager().forget(Role::Aac);
        }
        Some(_) | None => {}
    }
}

/// Segments begin at key frames: a source that can be asked is asked for one when the last one is so old, be it that of a
/// layer alone, which players could not change to. It sends one of all layers, whose segments thus lie beside each other.
fn ask(plane: &dyn Plane, lanes: &[TrackReader<'_>], oldest: Duration) -> bool {
    let mut pictures = lanes.iter().filter(|lane| lane.role.kind() == Kind::Video);
    let source = pictures.find_map(|lane| {
        let mut state = lane.tapped.stream.lock();
        let ring = &state.video.ring;
        let age = ring.key_frame().and_then(|key_frame| ring.age(key_frame));
        age.is_none_or(|age| age >= oldest)
            .then(|| state.request_key_frame_of_source())?
    });
    if let Some(source) = source {
        plane.ask_for_key_frame(source);
    }
    source.is_some()
}

/// One track on its way from a ring to the packager.
struct TrackReader<'a> {
    role: Role,
    tapped: Tap<'a>,
    /// What the stream was fed by.
    source: SessionId,
    reader: Option<Reader>,
    depacketizer: Depacketizer,
}

impl<'a> TrackReader<'a> {
    fn new(role: Role, tapped: Tap<'a>, source: SessionId) -> Self {
        Self {
            role,
            tapped,
            source,
            reader: None,
            depacketizer: Depacketizer::new(role.kind()),
        }
    }

    /// What has come. Returns when to look again for what is missing.
    fn read(&mut self, now: std::time::Instant, frames: &mut Vec<Frame>) -> Option<std::time::Instant> {
        let mut packets = Vec::new();
        let again = {
            let mut state = self.tapped.stream.lock();
            let ring = &state.track(self.role.kind()).ring;
            if self.reader.is_none() {
                self.reader = match self.role.kind() {
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

/// What can be expected of a stream, as it is or transcoded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expected {
    pub(super) video: bool,
    /// Versions of the picture.
    pub(super) pictures: usize,
    pub(super) audio: bool,
    /// AAC beside the sound as it is.
    pub(super) aac: bool,
}

/// What can be expected of a stream.
pub(super) fn wanted(hub: &Hub, name: &StreamName) -> Expected {
    let Some(stream) = hub.find(name) else {
        return Expected::default();
    };
    let state = stream.lock();
    let has = |kind| origin(hub, name, &state, kind).is_some();
    Expected {
        video: has(Kind::Video),
        pictures: 1 + layers(name, &state).len(),
        audio: has(Kind::Audio),
        aac: aac(hub, name, &state).is_some(),
    }
}

/// The layers below the best one, which the stream itself has; none of a picture that is transcoded.
fn layers(name: &StreamName, state: &StreamState) -> Vec<(Role, StreamName)> {
    let plays = state.format(Kind::Video).is_some_and(Packager::expects) && !state.is_unplayable(Kind::Video);
    let active = state.layers().iter().filter(|layer| plays && layer.active);
    let below = active.skip(1).map(|layer| name.layer(&layer.rid));
    [Role::Second, Role::Third].into_iter().zip(below).collect()
}

/// Where AAC is taken from that is made of the sound; `None` where the sound is AAC already, where it cannot be made, and
/// beside a picture that players of Apple do not take either.
fn aac(hub: &Hub, name: &StreamName, state: &StreamState) -> Option<StreamName> {
    let format = state.format(Kind::Audio)?;
    let video = state.format(Kind::Video).map(Format::codec);
    let takes_picture = !matches!(video, Some(Codec::Vp8 | Codec::Vp9 | Codec::Av1));
    (takes_picture && hub.can_transcode_to(format.codec(), TranscodeTarget::Aac))
        .then(|| name.transcoded(TranscodeTarget::Aac))
}

/// Where a kind is taken from: the stream itself, or what a transcode makes of it; `None` where players can be given
/// neither. HLS takes AAC as it is, but no G.711; pictures out of order and JPEG it gets transcoded, as WebRTC does.
fn origin(hub: &Hub, name: &StreamName, state: &StreamState, kind: Kind) -> Option<StreamName> {
    let format = state.format(kind)?;
    let plays = Packager::expects(format) && !(kind == Kind::Video && state.is_unplayable(kind));
    if plays {
        return Some(name.clone());
    }
    hub.can_transcode(format.codec())
        .then(|| name.transcoded(TranscodeTarget::of(kind)))
}

fn read(live: &Live, lanes: &mut [TrackReader<'_>], now: std::time::Instant) -> Option<std::time::Instant> {
    let has_video = lanes.iter().any(|lane| lane.role == Role::Video);
    #[expect(clippy::disallowed_methods, reason = "the wall clock that players are told")]
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (mut again, mut format_changed): (Option<std::time::Instant>, bool) = (None, false);
    for lane in lanes {
        let mut frames = Vec::new();
        let due = lane.read(now, &mut frames);
        again = [again, due].into_iter().flatten().min();
        if frames.is_empty() {
            continue;
        }
        // A copy: HTTP requests hold the packager's lock while they render, and no shard may wait for them.
        let track = lane.tapped.stream.lock().track(lane.role.kind()).view();
        let mut packager = live.packager();
        for frame in frames {
            format_changed |= packager.push(&track, lane.role, has_video, &frame, now, wall);
        }
    }
    if format_changed {
        live.notify();
    }
    again
}
