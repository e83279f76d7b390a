//! Simulcast layers (RFC 8853): each layer is published as a separate stream with its own ring and key frame cache.
//! Viewers switch between them as between any two streams.
//!
//! The main stream carries the best layer: see [`super::incoming`]. The timestamps of all layers are aligned with those
//! of the main stream by arrival time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::encoding::{Change, Encoding};
use super::incoming::Incoming;
use crate::hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::intake::{CaptureReport, Intake, ReceivedPacket};
use crate::hub::name::{StreamKey, StreamName};
use crate::hub::stream::{Layer, SessionId, SourceRef, Stream, StreamState};
use crate::media::Kind;
use crate::media::packet::TrackTime;
use crate::sdp::plan::SourceFormats;

/// The layer streams of a publisher; empty without simulcast.
#[derive(Default)]
pub struct Layers {
    tracks: Vec<LayerTrack>,
    /// When the list of layers was last updated.
    last_update: Option<Instant>,
    /// A timestamp of the main stream, and its arrival time.
    anchor: Option<(TrackTime, Instant)>,
}

/// One layer and its stream.
struct LayerTrack {
    encoding: usize,
    stream: Option<Arc<Stream>>,
    intake: Intake,
    arrived: Vec<ReceivedPacket>,
    change: Change,
    formats: SourceFormats,
    resolution: Option<(u16, u16)>,
    is_reordered: bool,
    key: Option<StreamKey>,
}

/// Interval at which the list of layers is updated.
const UPDATE_INTERVAL: Duration = Duration::from_millis(250);

impl Layers {
    /// Collects the packets that arrived in this tick for the layer streams.
    pub fn record(&mut self, tracks: &[Incoming], arrived: &[(usize, usize, ReceivedPacket, Change)]) {
        let Some(video) = simulcast(tracks) else { return };
        for (track, encoding, packet, change) in arrived {
            if tracks.get(*track).is_none_or(|track| !std::ptr::eq(track, video)) {
                continue;
            }
            let layer = self.layer(*encoding);
            layer.change = Change {
                format: change.format.or(layer.change.format),
                resolution: change.resolution.or(layer.change.resolution),
            };
            let encoding = video.encodings.get(*encoding);
            layer.formats.video = encoding.and_then(Encoding::format).or(layer.formats.video);
            layer.resolution = encoding.and_then(Encoding::resolution);
            layer.is_reordered = encoding.is_some_and(Encoding::is_reordered);
            layer.arrived.push(packet.clone());
        }
    }

    fn layer(&mut self, encoding: usize) -> &mut LayerTrack {
        let index = self.tracks.iter().position(|layer| layer.encoding == encoding);
        let index = index.unwrap_or_else(|| {
            self.tracks.push(LayerTrack {
                encoding,
                stream: None,
                intake: Intake::new(),
                arrived: Vec::new(),
                change: Change::default(),
                formats: SourceFormats::default(),
                resolution: None,
                is_reordered: false,
                key: None,
            });
            self.tracks.len() - 1
        });
        &mut self.tracks[index]
    }

    /// Updates the list of layers in the main stream and reads its current timestamp. Called after the packets of the
    /// main stream were published.
    pub fn notify(&mut self, tracks: &[Incoming], name: &StreamName, state: &mut StreamState) {
        let Some(video) = simulcast(tracks) else { return };
        let newest = state.video.ring().newest();
        let Some((_, now)) = newest else { return };
        self.anchor = state.video.clock().time_of_arrival(now).map(|time| (time, now));
        if self
            .last_update
            .is_some_and(|at| now.saturating_duration_since(at) < UPDATE_INTERVAL)
        {
            return;
        }
        self.last_update = Some(now);
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
        for layer in &mut self.tracks {
            let encoding = video.encodings.get(layer.encoding);
            let rid = encoding.and_then(|encoding| encoding.rid.as_ref());
            layer.key = rid.map(|rid| name.layer(rid));
        }
    }

    /// Publishes the packets of this tick to the layer streams.
    pub fn publish(&mut self, hub: &Hub, source: SourceRef, answers_requests: bool) -> Vec<Batch> {
        let anchor = self.anchor;
        let batches = self
            .tracks
            .iter_mut()
            .filter_map(|layer| layer.publish(hub, source, answers_requests, anchor));
        batches.collect()
    }

    /// Handles a sender report of a layer.
    pub fn on_report(&mut self, encoding: usize, session: SessionId, report: CaptureReport) {
        let Some(layer) = self.tracks.iter_mut().find(|layer| layer.encoding == encoding) else {
            return;
        };
        if let Some(stream) = &layer.stream {
            stream.with(|state| {
                if state.is_source(session) {
                    layer.intake.on_report(&mut state.video, report);
                }
            });
        }
    }

    /// Detaches the publisher from the layer streams.
    pub fn end(&self, hub: &Hub, session: SessionId) {
        for stream in self.tracks.iter().filter_map(|layer| layer.stream.as_ref()) {
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
    ) -> Option<Batch> {
        let arrived = std::mem::take(&mut self.arrived);
        let change = std::mem::take(&mut self.change);
        // Timestamps can be aligned only once the main stream has one.
        let (key, anchor) = (self.key.as_ref()?, anchor?);
        if arrived.is_empty() {
            return None;
        }
        let stream = match &self.stream {
            Some(stream) => stream.clone(),
            None => {
                let formats = self.formats;
                let stream = hub.open_with(key, |state| {
                    state.attach(source, &formats);
                });
                self.stream.insert(stream).clone()
            }
        };
        stream.with(|state| {
            if !state.is_source(source.session) {
                return None;
            }
            state.answers_requests = answers_requests;
            let mut packets = Vec::new();
            let video = state.track(Kind::Video);
            video.align(anchor.0, anchor.1);
            self.intake.take(video, arrived.into_iter(), &mut packets);
            video.set_format(change.format.or(self.formats.video));
            video.set_resolution(self.resolution);
            video.set_reordered(self.is_reordered);
            Batch::new(&stream, state, packets)
        })
    }
}

/// Returns the video track that has simulcast layers, if any.
fn simulcast(tracks: &[Incoming]) -> Option<&Incoming> {
    tracks
        .iter()
        .find(|track| track.plan.kind == Kind::Video && track.encodings.len() > 1)
}
