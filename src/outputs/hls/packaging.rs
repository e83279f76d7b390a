//! Packages one stream for as long as somebody asks: follows it to other sources and to the repaired streams beside it,
//! and asks for key frames. A shell, as [`service`](super::service) is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::packager::Packager;
use super::service::{Live, Plane, Service};
use crate::hub::Hub;
use crate::hub::mailbox::Mailbox;
use crate::hub::name::StreamName;
use crate::hub::reader::Reader;
use crate::hub::stream::{SessionId, StreamState};
use crate::hub::tap::{TapMailbox, Tapped};
use crate::media::Kind;
use crate::media::depacketizer::{Depacketizer, Frame};
use crate::media::repair::Repair;

/// The source is asked for a key frame when the last one is so old; sooner for the first segment, which players wait for.
const KEY_FRAME: Duration = Duration::from_secs(2);
const FIRST_KEY_FRAME: Duration = Duration::from_secs(1);

/// Between two requests.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Between looks at what nobody announces: another source, no more requests.
const LOOK: Duration = Duration::from_millis(250);

/// Packages a stream until nobody has asked for a while.
pub(super) async fn package(service: Arc<Service>, plane: Arc<dyn Plane>, name: StreamName, live: Arc<Live>) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapMailbox> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let mut lanes: Vec<Lane<'_>> = Vec::new();
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

/// Follows the stream to other sources, and to the repaired streams beside it.
fn follow<'a>(hub: &'a Hub, name: &StreamName, tap: &Arc<TapMailbox>, live: &Live, lanes: &mut Vec<Lane<'a>>) {
    let Some(home) = hub.find(name) else { return };
    let (origins, source) = {
        let state = home.lock();
        let Some(source) = state.source() else { return };
        let of = |kind| Some((kind, origin(hub, name, &state, kind)?));
        let origins: Vec<(Kind, StreamName)> = [Kind::Video, Kind::Audio].into_iter().filter_map(of).collect();
        (origins, source.session)
    };
    let is_same = lanes.len() == origins.len()
        && lanes.iter().zip(&origins).all(|(lane, (kind, name))| {
            lane.kind == *kind && lane.tapped.stream.name == *name && lane.source == source
        });
    if is_same {
        return;
    }
    if !lanes.is_empty() {
        live.packager().restart();
    }
    *lanes = origins
        .into_iter()
        .map(|(kind, name)| Lane::new(kind, Tapped::open(hub, &name, tap), source))
        .collect();
}

/// Segments begin at key frames: a source that can be asked is asked for one when the last one is so old.
fn ask(plane: &dyn Plane, lanes: &[Lane<'_>], oldest: Duration) -> bool {
    let Some(video) = lanes.iter().find(|lane| lane.kind == Kind::Video) else {
        return false;
    };
    let source = {
        let mut state = video.tapped.stream.lock();
        let ring = &state.video.ring;
        let age = ring.key_frame().and_then(|key_frame| ring.age(key_frame));
        if age.is_some_and(|age| age < oldest) {
            return false;
        }
        state.want_key_frame()
    };
    if let Some(source) = source {
        plane.ask_for_key_frame(source);
    }
    source.is_some()
}

/// One track on its way from a ring to the packager.
struct Lane<'a> {
    kind: Kind,
    tapped: Tapped<'a>,
    /// What the stream was fed by.
    source: SessionId,
    reader: Option<Reader>,
    depacketizer: Depacketizer,
}

impl<'a> Lane<'a> {
    fn new(kind: Kind, tapped: Tapped<'a>, source: SessionId) -> Self {
        Self {
            kind,
            tapped,
            source,
            reader: None,
            depacketizer: Depacketizer::new(kind),
        }
    }

    /// What has come. Returns when to look again for what is missing.
    fn read(&mut self, now: std::time::Instant, frames: &mut Vec<Frame>) -> Option<std::time::Instant> {
        let mut packets = Vec::new();
        let again = {
            let mut state = self.tapped.stream.lock();
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

/// Whether picture and sound can be expected of a stream, as it is or repaired.
pub(super) fn wanted(hub: &Hub, name: &StreamName) -> (bool, bool) {
    let Some(stream) = hub.find(name) else {
        return (false, false);
    };
    let state = stream.lock();
    let has = |kind| origin(hub, name, &state, kind).is_some();
    (has(Kind::Video), has(Kind::Audio))
}

/// Where a kind is taken from: the stream itself, or what a repair makes of it; `None` where players can be given
/// neither. HLS takes AAC as it is, but no G.711; pictures out of order and JPEG it gets repaired, as WebRTC does.
fn origin(hub: &Hub, name: &StreamName, state: &StreamState, kind: Kind) -> Option<StreamName> {
    let format = state.format(kind)?;
    let plays = Packager::expects(format) && !(kind == Kind::Video && state.is_unplayable(kind));
    if plays {
        return Some(name.clone());
    }
    hub.repairs(format.codec()).then(|| name.repaired(Repair::of(kind)))
}

fn read(live: &Live, lanes: &mut [Lane<'_>], now: std::time::Instant) -> Option<std::time::Instant> {
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
        let mut state = lane.tapped.stream.lock();
        let mut packager = live.packager();
        for frame in frames {
            news |= packager.push(&mut state, has_video, &frame, now, wall);
        }
    }
    if news {
        live.tell();
    }
    again
}
