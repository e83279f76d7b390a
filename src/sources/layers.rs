//! The layers of a simulcast (RFC 8853): each is fed to a stream of its own beside the one that it belongs to, with a ring
//! and so with a key frame cache of its own. Viewers change between them as between any two streams.
//!
//! The stream itself carries the best layer: see [`super::incoming`]. All lines have one time, as far as arrivals tell it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::encoding::{Change, Encoding};
use super::incoming::Incoming;
use super::whip::LayerBatch;
use crate::hub::Hub;
use crate::hub::intake::{Intake, ReceivedPacket};
use crate::hub::name::StreamName;
use crate::hub::stream::{Layer, SessionId, SourceRef, Stream, StreamState};
use crate::media::Kind;
use crate::media::packet::TrackTime;
use crate::sdp::plan::SourceFormats;

/// What a publisher feeds beside its stream; nothing without simulcast.
#[derive(Default)]
pub struct Layers {
    feeds: Vec<LayerTrack>,
    /// When the list of them was looked through last.
    looked: Option<Instant>,
    /// A time of the stream itself, and when it arrived.
    anchor: Option<(TrackTime, Instant)>,
}

/// One layer on its way.
struct LayerTrack {
    encoding: usize,
    stream: Option<Arc<Stream>>,
    intake: Intake,
    arrived: Vec<ReceivedPacket>,
    change: Change,
    formats: SourceFormats,
    resolution: Option<(u16, u16)>,
    name: Option<StreamName>,
}

/// Between looks at which layers there are.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

impl Layers {
    /// Keeps what arrived in this turn for the layers.
    pub fn record(&mut self, tracks: &[Incoming], arrived: &[(usize, usize, ReceivedPacket, Change)]) {
        let Some(video) = simulcast(tracks) else { return };
        for (track, encoding, packet, change) in arrived {
            if tracks.get(*track).is_none_or(|track| !std::ptr::eq(track, video)) {
                continue;
            }
            let feed = self.feed(*encoding);
            feed.change = Change {
                format: change.format.or(feed.change.format),
                resolution: change.resolution.or(feed.change.resolution),
            };
            let known = video.encodings.get(*encoding);
            feed.formats.video = known.and_then(Encoding::format).or(feed.formats.video);
            feed.resolution = known.and_then(Encoding::resolution);
            feed.arrived.push(packet.clone());
        }
    }

    fn feed(&mut self, encoding: usize) -> &mut LayerTrack {
        let index = self.feeds.iter().position(|feed| feed.encoding == encoding);
        let index = index.unwrap_or_else(|| {
            self.feeds.push(LayerTrack {
                encoding,
                stream: None,
                intake: Intake::new(),
                arrived: Vec::new(),
                change: Change::default(),
                formats: SourceFormats::default(),
                resolution: None,
                name: None,
            });
            self.feeds.len() - 1
        });
        &mut self.feeds[index]
    }

    /// Says in the stream itself which layers there are, and learns its time. Called behind its own packets.
    pub fn notify(&mut self, tracks: &[Incoming], name: &StreamName, state: &mut StreamState) {
        let Some(video) = simulcast(tracks) else { return };
        let newest = state.video.ring.newest();
        let Some((_, now)) = newest else { return };
        self.anchor = state.video.clock.time_of_arrival(now).map(|time| (time, now));
        if self
            .looked
            .is_some_and(|at| now.saturating_duration_since(at) < POLL_INTERVAL)
        {
            return;
        }
        self.looked = Some(now);
        let mut ranked: Vec<&Encoding> = video
            .encodings
            .iter()
            .filter(|encoding| encoding.ssrc.is_some())
            .collect();
        ranked.sort_by_key(|encoding| std::cmp::Reverse(encoding.rank()));
        let layer = |encoding: &Encoding| {
            Some(Layer {
                rid: encoding.rid.clone()?,
                resolution: encoding.resolution(),
                bitrate: encoding.rank().1 * 8,
                active: !encoding.is_silent(now),
            })
        };
        state.set_layers(ranked.into_iter().filter_map(layer).collect());
        for feed in &mut self.feeds {
            let rid = video.encodings.get(feed.encoding).and_then(|known| known.rid.as_ref());
            feed.name = rid.map(|rid| name.layer(rid));
        }
    }

    /// Puts the packets of this turn on the lines of the layers.
    pub fn publish(&mut self, hub: &Hub, source: SourceRef, answers_requests: bool) -> Vec<LayerBatch> {
        let anchor = self.anchor;
        let batches = self
            .feeds
            .iter_mut()
            .filter_map(|feed| feed.publish(hub, source, answers_requests, anchor));
        batches.collect()
    }

    /// A sender report of a layer: `time` was captured at that instant.
    pub fn on_report(&self, encoding: usize, session: SessionId, time: u64, captured: Instant) {
        let Some(feed) = self.feeds.iter().find(|feed| feed.encoding == encoding) else {
            return;
        };
        if let (Some(time), Some(stream)) = (feed.intake.time(time), &feed.stream) {
            let mut state = stream.lock();
            if state.is_source(session) {
                state.video.clock.on_report(time, captured);
            }
        }
    }

    /// The publisher is gone.
    pub fn end(&self, hub: &Hub, session: SessionId) {
        for stream in self.feeds.iter().filter_map(|feed| feed.stream.as_ref()) {
            hub.release(stream, |state| {
                state.detach(session);
            });
        }
    }
}

impl LayerTrack {
    fn publish(
        &mut self,
        hub: &Hub,
        source: SourceRef,
        answers_requests: bool,
        anchor: Option<(TrackTime, Instant)>,
    ) -> Option<LayerBatch> {
        let arrived = std::mem::take(&mut self.arrived);
        let change = std::mem::take(&mut self.change);
        // Before the stream itself has a time there is none to go by.
        let (name, anchor) = (self.name.as_ref()?, anchor?);
        if arrived.is_empty() {
            return None;
        }
        let stream = match &self.stream {
            Some(stream) => stream.clone(),
            None => {
                let formats = self.formats;
                let stream = hub.open_with(name, |state| {
                    state.attach(source, &formats);
                });
                self.stream.insert(stream).clone()
            }
        };
        let mut state = stream.lock();
        if !state.is_source(source.session) {
            return None;
        }
        state.answers_requests = answers_requests;
        let mut packets = Vec::new();
        let video = state.track(Kind::Video);
        video.anchor = Some(anchor);
        self.intake.take(video, arrived.into_iter(), &mut packets);
        video.set_format(change.format.or(self.formats.video));
        video.resolution = self.resolution.or(video.resolution);
        let subscribers = state.subscribers().collect();
        Some(LayerBatch {
            stream: stream.id,
            packets,
            subscribers,
        })
        .filter(|batch| !batch.packets.is_empty())
    }
}

/// The track of which several versions come.
fn simulcast(tracks: &[Incoming]) -> Option<&Incoming> {
    tracks
        .iter()
        .find(|track| track.plan.kind == Kind::Video && track.encodings.len() > 1)
}
