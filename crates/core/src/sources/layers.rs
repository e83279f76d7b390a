//! Simulcast layers (RFC 8853): each layer is published as a separate stream with its own ring and key frame cache.
//! Viewers switch between them as between any two streams.
//!
//! The main stream carries the best layer: see [`super::publisher_track`]. The timestamps of all layers are aligned with those
//! of the main stream by arrival time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::incoming_encoding::{FormatOrResolutionChange, IncomingEncoding};
use super::layer_loss::LayerLossDetector;
use super::publisher_track::{PublisherTrack, is_clearly_better_layer};
use crate::hub::Hub;
use crate::hub::name::StreamKey;
use crate::hub::packet_batch::PacketBatchToDeliver;
use crate::hub::source_rewriter::{CaptureTimeReport, IngestSeqAndTimestampRewriter, ReceivedPacket};
use crate::hub::stream::{LayerOrigin, SessionId, SimulcastLayer, SourceRef, Stream, StreamState};
use crate::media::MediaKind;
use crate::media::packet::TrackTime;
use crate::sdp::negotiation_result::AudioVideoFormats;

/// The layer streams of a publisher; empty without simulcast.
#[derive(Default)]
pub struct LayerStreams {
    tracks: Vec<LayerTrack>,
    /// When the list of layers was last updated, and what it was made from.
    last_layer_list_update: Option<Instant>,
    listed: ActiveLayersAndMainEncoding,
    /// Encodings with packets, the best first.
    order: Vec<usize>,
    /// Losses by encoding.
    losses: Vec<LayerLossDetector>,
    /// A timestamp of the main stream, and its arrival time.
    timestamp_anchor: Option<(TrackTime, Instant)>,
}

/// What a list of layers was made from: it is made anew at once when this changes.
#[derive(Clone, Default, PartialEq, Eq)]
struct ActiveLayersAndMainEncoding {
    active_layers: usize,
    lossy_encodings: Vec<bool>,
    main_stream_encoding: usize,
}

/// One layer and its stream.
struct LayerTrack {
    encoding_index: usize,
    stream: Option<Arc<Stream>>,
    numbering_rewriter: IngestSeqAndTimestampRewriter,
    pending_packets: Vec<ReceivedPacket>,
    format_change: FormatOrResolutionChange,
    formats: AudioVideoFormats,
    resolution: Option<(u16, u16)>,
    has_b_frames: bool,
    stream_key: Option<StreamKey>,
}

/// Interval at which the list of layers is updated.
const LAYER_LIST_UPDATE_INTERVAL: Duration = Duration::from_millis(250);

impl LayerStreams {
    /// Collects the packets that arrived in this tick for the layer streams.
    pub fn collect_packets(
        &mut self,
        tracks: &[PublisherTrack],
        arrived: &[(usize, usize, ReceivedPacket, FormatOrResolutionChange)],
    ) {
        let Some(video) = find_simulcast_track(tracks) else {
            return;
        };
        for (track, encoding, packet, change) in arrived {
            if tracks.get(*track).is_none_or(|track| !std::ptr::eq(track, video)) {
                continue;
            }
            let layer = self.get_or_insert_layer(*encoding);
            layer.format_change = FormatOrResolutionChange {
                format: change.format.or(layer.format_change.format),
                resolution: change.resolution.or(layer.format_change.resolution),
            };
            let encoding = video.encodings.get(*encoding);
            layer.formats.video = encoding.and_then(IncomingEncoding::format).or(layer.formats.video);
            layer.resolution = encoding.and_then(IncomingEncoding::resolution);
            layer.has_b_frames = encoding.is_some_and(IncomingEncoding::has_b_frames);
            layer.pending_packets.push(packet.clone());
        }
    }

    fn get_or_insert_layer(&mut self, encoding: usize) -> &mut LayerTrack {
        let index = self.tracks.iter().position(|layer| layer.encoding_index == encoding);
        let index = index.unwrap_or_else(|| {
            self.tracks.push(LayerTrack {
                encoding_index: encoding,
                stream: None,
                numbering_rewriter: IngestSeqAndTimestampRewriter::new(),
                pending_packets: Vec::new(),
                format_change: FormatOrResolutionChange::default(),
                formats: AudioVideoFormats::default(),
                resolution: None,
                has_b_frames: false,
                stream_key: None,
            });
            self.tracks.len() - 1
        });
        &mut self.tracks[index]
    }

    /// Updates the list of layers in the main stream and reads its current timestamp. Called after the packets of the
    /// main stream were published. One of several sources of a stream has no layers: its stream shows the best one.
    pub fn publish_layer_list_and_read_timestamp(
        &mut self,
        tracks: &[PublisherTrack],
        key: &StreamKey,
        state: &mut StreamState,
    ) {
        let Some(video) = find_simulcast_track(tracks).filter(|_| key.is_original_stream()) else {
            return;
        };
        let newest = state.video.ring().newest_track_time_and_arrival();
        let Some((_, now)) = newest else { return };
        self.timestamp_anchor = state
            .video
            .clock()
            .track_time_for_arrival_at(now)
            .map(|time| (time, now));
        let is_active = |encoding: &&IncomingEncoding| encoding.ssrc.is_some() && !encoding.has_no_recent_packets(now);
        let listed = ActiveLayersAndMainEncoding {
            active_layers: video.encodings.iter().filter(is_active).count(),
            lossy_encodings: self.find_lossy_encodings(now, video),
            main_stream_encoding: video.active_encoding_index,
        };
        if self.listed == listed
            && self
                .last_layer_list_update
                .is_some_and(|at| now.saturating_duration_since(at) < LAYER_LIST_UPDATE_INTERVAL)
        {
            return;
        }
        self.last_layer_list_update = Some(now);
        reorder_layers_by_rank(&mut self.order, &video.encodings);
        let layer = |index: &usize| {
            let encoding = video.encodings.get(*index)?;
            Some(SimulcastLayer {
                rid: encoding.rid.clone()?,
                resolution: encoding.resolution(),
                measured_bitrate: encoding.layer_rank().1 * 8,
                active: !encoding.has_no_recent_packets(now),
                is_carried_by_main_stream: *index == video.active_encoding_index,
                is_lossy: listed.lossy_encodings.get(*index).copied().unwrap_or_default(),
                origin: LayerOrigin::Pushed,
            })
        };
        state.negotiated_layer_count = video.encodings.len();
        state.set_layers(self.order.iter().filter_map(layer).collect());
        self.listed = listed;
        for layer in &mut self.tracks {
            let encoding = video.encodings.get(layer.encoding_index);
            let rid = encoding.and_then(|encoding| encoding.rid.as_ref());
            layer.stream_key = rid.map(|rid| key.name.lower_simulcast_layer_key(rid));
        }
    }

    /// Returns for each encoding whether viewers should avoid it.
    fn find_lossy_encodings(&mut self, now: Instant, video: &PublisherTrack) -> Vec<bool> {
        self.losses
            .resize_with(video.encodings.len(), LayerLossDetector::default);
        let updated = video
            .encodings
            .iter()
            .zip(&mut self.losses)
            .map(|(encoding, losses)| losses.update(now, encoding.lacks_packets_since_key_frame()));
        updated.collect()
    }

    /// Publishes the packets of this tick to the layer streams.
    pub fn publish(
        &mut self,
        hub: &Hub,
        source: SourceRef,
        encoder_answers_key_frame_requests: bool,
    ) -> Vec<PacketBatchToDeliver> {
        let anchor = self.timestamp_anchor;
        let batches = self
            .tracks
            .iter_mut()
            .filter_map(|layer| layer.publish(hub, source, encoder_answers_key_frame_requests, anchor));
        batches.collect()
    }

    /// Handles a sender report of a layer.
    pub fn on_sender_report(&mut self, encoding: usize, session: SessionId, report: CaptureTimeReport) {
        let Some(layer) = self.tracks.iter_mut().find(|layer| layer.encoding_index == encoding) else {
            return;
        };
        if let Some(stream) = &layer.stream {
            stream.with_state(|state| {
                if state.is_source_session(session) {
                    layer
                        .numbering_rewriter
                        .realign_timestamps_and_record_capture_time(&mut state.video, report);
                }
            });
        }
    }

    /// Detaches the publisher from the layer streams.
    pub fn detach_publisher(&self, hub: &Hub, session: SessionId) {
        for stream in self.tracks.iter().filter_map(|layer| layer.stream.as_ref()) {
            hub.update_stream_and_remove_if_unused(stream, |state| {
                state.detach_source_if_current(session);
            });
        }
    }
}

impl LayerTrack {
    fn publish(
        &mut self,
        hub: &Hub,
        source: SourceRef,
        encoder_answers_key_frame_requests: bool,
        anchor: Option<(TrackTime, Instant)>,
    ) -> Option<PacketBatchToDeliver> {
        let arrived = std::mem::take(&mut self.pending_packets);
        let change = std::mem::take(&mut self.format_change);
        // Timestamps can be aligned only once the main stream has one.
        let (key, anchor) = (self.stream_key.as_ref()?, anchor?);
        if arrived.is_empty() {
            return None;
        }
        let stream = match &self.stream {
            Some(stream) => stream.clone(),
            None => {
                let formats = self.formats;
                let stream = hub.open_and_update_stream(key, |state| {
                    state.replace_source(source, &formats);
                });
                self.stream.insert(stream).clone()
            }
        };
        stream.with_state(|state| {
            if !state.is_source_session(source.session_id) {
                return None;
            }
            state.responds_to_key_frame_requests = encoder_answers_key_frame_requests;
            let mut packets = Vec::new();
            let video = state.track(MediaKind::Video);
            video.align_next_source_with_main_stream(anchor.0, anchor.1);
            self.numbering_rewriter
                .rewrite_packets_into_ring(video, arrived.into_iter(), &mut packets);
            video.set_format_if_known(change.format.or(self.formats.video));
            video.set_resolution_if_known(self.resolution);
            video.set_has_b_frames_if_found(self.has_b_frames);
            PacketBatchToDeliver::new(&stream, state, packets)
        })
    }
}

/// Orders the encodings that have packets, the best first. Nearly equal ones stay in the order that they have: viewers start
/// anew when it changes.
fn reorder_layers_by_rank(order: &mut Vec<usize>, encodings: &[IncomingEncoding]) {
    let has_packets = |index: &usize| encodings.get(*index).is_some_and(|encoding| encoding.ssrc.is_some());
    let rank = |index: usize| {
        encodings
            .get(index)
            .map(IncomingEncoding::layer_rank)
            .unwrap_or_default()
    };
    let is_complete = (0..encodings.len())
        .filter(has_packets)
        .all(|index| order.contains(&index));
    let is_ordered = order.windows(2).all(|pair| match pair {
        [better, worse] => !is_clearly_better_layer(rank(*worse), rank(*better)),
        _ => true,
    });
    if !is_complete || !is_ordered || !order.iter().all(has_packets) {
        *order = (0..encodings.len()).filter(has_packets).collect();
        order.sort_by_key(|index| std::cmp::Reverse(rank(*index)));
    }
}

/// Returns the video track that has simulcast layers, if any.
fn find_simulcast_track(tracks: &[PublisherTrack]) -> Option<&PublisherTrack> {
    tracks
        .iter()
        .find(|track| track.negotiated_track.kind == MediaKind::Video && track.encodings.len() > 1)
}
