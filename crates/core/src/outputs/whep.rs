//! Playback of one WHEP viewer: forwards packets of the hub with rewritten headers.
//!
//! A viewer is a state machine like [`crate::session::Session`]: `handle_*` calls go in, sealed packets go to the outbox,
//! and [`Viewer::run_pending_work_until_shard_action`] returns what the shard must do. After each `handle_*` call the shard drains it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::adaptation::{ViewerAdaptation, uses_transport_cc};
use super::track::TrackSender;
use super::transport_cc_egress::TransportCcEgress;
use super::viewer_track::{EXPECTED_KEY_FRAME_RESPONSE_TIME, ViewerTrack, is_key_frame_request_cheaper_than_replay};
use crate::congestion::ladder::FrameSelection;
use crate::congestion::pacer::PACING_INTERVAL_US;
use crate::hub::name::StreamKey;
use crate::hub::ring::{PacketRing, RingEntry};
use crate::hub::stream::{LayerSelection, SimulcastLayer, SourceRef, Stream, StreamId, StreamState};
use crate::hub::viewer_quality::ViewerQuality;
use crate::media::rtcp::RtcpMessage;
use crate::media::track_delivery::TrackDelivery;
use crate::media::{Codec, MediaKind, Rid};
use crate::sdp::negotiation_result::NegotiatedPlayback;
use crate::session::egress::Egress;

/// A viewer of a stream. A track whose format it cannot play is taken from a transcoded stream
/// ([`crate::media::track_delivery`]). Switching between the two when the format changes keeps sequence numbers and
/// timestamps continuous.
pub struct Viewer {
    pub stream: Arc<Stream>,
    video: Option<ViewerTrack>,
    audio: Option<ViewerTrack>,
    cname: String,
    playback_started: bool,
    next_sender_report_at: Option<Instant>,
    /// When the viewer requested a key frame that has not arrived yet.
    unanswered_key_frame_request_at: Option<Instant>,
    last_key_frame_replay_at: Option<Instant>,
    rtt: Duration,
    reported: ViewerDeliveryStats,
    layer_selection: LayerSelection,
    adaptation: ViewerAdaptation,
    /// When congestion control has something to do.
    adaptation_due_at: Option<Instant>,
    /// When the queue of a TCP connection is checked again.
    tcp_queue_check_at: Option<Instant>,
    pending_work: PendingWork,
}

/// The origin of the times of a shard, and the present one.
#[derive(Clone, Copy, Debug)]
pub struct ShardTimeOriginAndNow {
    pub origin: Instant,
    pub now: Instant,
}

/// What a viewer reported, and what it was sent again.
#[derive(Clone, Copy, Debug, Default)]
struct ViewerDeliveryStats {
    rtt: Option<Duration>,
    fraction_lost: Option<u8>,
    retransmitted_packet_count: u64,
    probe_packet_count: u64,
}

/// What [`Viewer::run_pending_work_until_shard_action`] has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PendingWork {
    /// Close the session: SRTP protection of a packet failed.
    close_session: bool,
    /// Request a key frame from the source.
    request_key_frame: bool,
    /// Select the stream of each track again, and complete switches.
    reselect_streams: bool,
    /// Send what is due from the rings.
    send_due_packets: bool,
    /// Ask congestion control what to do.
    adapt: bool,
    /// Tell the control plane what the viewer is sent.
    report_quality: bool,
}

/// What the shard must do for a viewer.
pub enum ViewerShardAction {
    /// Request a key frame of this layer from this source; `None` is the layer that the stream carries.
    RequestKeyFrame { source: SourceRef, layer: Option<Rid> },
    /// Subscribe the viewer to this stream and pass the stream to [`Viewer::begin_switch_to_subscribed_stream`].
    Subscribe { kind: MediaKind, stream: StreamKey },
    /// Cancel the subscription to this stream.
    Unsubscribe(Arc<Stream>),
    /// Tell the control plane what the viewer is sent.
    ReportQuality(Box<ViewerQuality>),
    /// Close the session: a packet could not be encrypted.
    Close,
}

/// Time between two slices of what the pacer holds back.
const PACING_INTERVAL: Duration = Duration::from_micros(PACING_INTERVAL_US);

/// Round-trip time of a viewer that has not reported yet.
const DEFAULT_RTT: Duration = Duration::from_millis(100);

/// Interval of sender reports (RFC 3550 §6.2 allows less than 5 s if bandwidth permits).
const SENDER_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// If the source ignores a viewer's key frame request, the cached key frame is replayed after this time.
const KEY_FRAME_REPLAY_DELAY: Duration = Duration::from_millis(600);

/// Minimum interval between replays for one viewer.
const MIN_KEY_FRAME_REPLAY_INTERVAL: Duration = Duration::from_secs(3);

/// Video is not replayed if nothing arrived for this long: the viewer has already seen it, and the source may be dead.
/// Longer than [`KEY_FRAME_REPLAY_DELAY`] plus a round trip, so that requests caused by a frame are answered at low frame rates
/// too.
const MAX_SOURCE_SILENCE_FOR_REPLAY: Duration = Duration::from_millis(1_500);

impl Viewer {
    /// `random` seeds sequence numbers and timestamps (RFC 3550 §5.1).
    pub fn new(
        stream: Arc<Stream>,
        playback: NegotiatedPlayback,
        time: ShardTimeOriginAndNow,
        random: &mut dyn FnMut() -> u32,
    ) -> Self {
        let (mut video, mut audio) = (None, None);
        let uses_transport_cc = uses_transport_cc(&playback);
        for mut track in playback.tracks.iter().cloned() {
            track.extension_ids.transport_cc = track.extension_ids.transport_cc.filter(|_| uses_transport_cc);
            match track.kind {
                MediaKind::Video => video = Some(ViewerTrack::new(TrackSender::new(track, random), &stream)),
                MediaKind::Audio => audio = Some(ViewerTrack::new(TrackSender::new(track, random), &stream)),
            }
        }
        let adaptation = ViewerAdaptation::new(&playback, time.origin, time.now, random());
        Self {
            stream,
            video,
            audio,
            cname: playback.cname,
            playback_started: false,
            next_sender_report_at: None,
            unanswered_key_frame_request_at: None,
            last_key_frame_replay_at: None,
            rtt: DEFAULT_RTT,
            reported: ViewerDeliveryStats::default(),
            layer_selection: LayerSelection::default(),
            adaptation,
            adaptation_due_at: None,
            tcp_queue_check_at: None,
            pending_work: PendingWork::default(),
        }
    }

    /// Starts playback when the session is connected: video from the cached key frame if there is one, audio at the live
    /// edge. Without a source, video waits for the next source, because the frames of the previous one are not live.
    /// `path_bitrate` is what a session before this one has shown the path to carry, in bits per second.
    pub fn start_playback(&mut self, now: Instant, path_bitrate: Option<u32>) {
        self.playback_started = true;
        self.adaptation.set_path_bitrate_hint(path_bitrate);
        self.next_sender_report_at = Some(now + SENDER_REPORT_INTERVAL / 4);
        let starts_with_layer = self.choose_initial_stream(now);
        let (video, audio) = (&mut self.video, &mut self.audio);
        let needs_key_frame = self.stream.with_state(|state| {
            if let Some(audio) = audio {
                audio.track_sender.start_at_live_edge(state.audio.ring());
            }
            let Some(video) = video
                .as_mut()
                .filter(|_| state.source().is_some() && !starts_with_layer)
            else {
                return false;
            };
            let request = is_key_frame_request_cheaper_than_replay(state.video.ring(), state.viewer_count());
            if request && state.responds_to_key_frame_requests {
                video
                    .track_sender
                    .wait_for_fresh_key_frame_until(now + EXPECTED_KEY_FRAME_RESPONSE_TIME, state.video.ring());
            } else {
                video.track_sender.start_at_cached_key_frame(now, state.video.ring());
            }
            request
        });
        self.pending_work.request_key_frame |= needs_key_frame;
        self.schedule_stream_reselection();
    }

    /// Handles a change of the layer selection.
    pub fn set_layer_selection(&mut self, selection: LayerSelection) {
        self.layer_selection = selection;
        self.adaptation.ladder_cache.clear();
        self.pending_work.adapt = true;
        self.schedule_stream_reselection();
    }

    /// Handles a stream that [`ViewerShardAction::Subscribe`] requested.
    pub fn begin_switch_to_subscribed_stream(&mut self, now: Instant, kind: MediaKind, stream: Arc<Stream>) {
        let is_playing = self.playback_started;
        if let Some(played) = self.viewer_track_mut(kind) {
            played.begin_stream_switch(now, stream, is_playing);
        }
        self.begin_with_selected_layer(now);
    }

    /// Handles batches lost on the way to this shard: packets that are still in the ring are sent from there.
    pub fn handle_mailbox_overflow(&mut self, now: Instant) {
        for played in [&mut self.video, &mut self.audio].into_iter().flatten() {
            played.track_sender.catch_up_after_mailbox_overflow(now);
        }
        // A change of the stream, or the key frame that a switch waits for, may have been lost too.
        self.schedule_stream_reselection();
    }

    /// Handles a change of the formats or the layers of a stream.
    pub fn handle_stream_changed(&mut self, stream: StreamId) {
        if self.stream.id == stream {
            self.adaptation.ladder_cache.clear();
            self.pending_work.adapt = true;
            self.schedule_stream_reselection();
        }
    }

    /// Forwards the packets of a stream that arrived in one tick.
    pub fn forward_stream_packets(
        &mut self,
        now: Instant,
        stream: StreamId,
        packets: &[Arc<RingEntry>],
        egress: &mut Egress<'_>,
    ) {
        let holds_video = self.hold_video_if_layer_unchosen(now, stream, packets);
        let Some(rtp) = egress.rtp_egress() else { return };
        let uses_transport_cc = self.adaptation.uses_transport_cc;
        let controller = Some(&mut self.adaptation.controller).filter(|_| uses_transport_cc);
        let mut rtp = TransportCcEgress::new(rtp, controller, now);
        for entry in packets {
            let packet = &entry.packet;
            let played = match packet.codec.kind() {
                MediaKind::Video => &mut self.video,
                MediaKind::Audio => &mut self.audio,
            };
            let Some(played) = played else { continue };
            if played.current_stream.id != stream {
                if (packet.identifies_key_frame || played.kind() == MediaKind::Audio) && played.is_switching_to(stream)
                {
                    self.pending_work.reselect_streams = true;
                    self.pending_work.send_due_packets = true;
                }
                continue;
            }
            if played.is_suspended_until_switch() {
                continue;
            }
            let track = &mut played.track_sender;
            if holds_video && track.kind() == MediaKind::Video {
                continue;
            }
            let is_left_out = track.skip_packet_if_frame_unselected(entry);
            if track.take_probe_reserve_refresh_request() {
                played
                    .current_stream
                    .with_state(|state| track.refresh_probe_reserve(state.video.ring()));
            }
            if packet.identifies_key_frame {
                self.unanswered_key_frame_request_at = None;
                let begins = track.awaits_key_frame() && track.frame_selection() != FrameSelection::AudioOnly;
                self.pending_work.send_due_packets |= begins;
                self.pending_work.adapt |= begins;
            }
            if is_left_out || !track.mark_handled_and_check_if_sendable(entry) {
                continue;
            }
            let is_deferred = track.kind() == MediaKind::Video
                && if track.selects_frames_in_ring() {
                    self.pending_work.send_due_packets = true;
                    track.defer_packet_to_ring(now, now, entry)
                } else {
                    !rtp.may_send_video() && track.defer_packet_to_ring(now, now + PACING_INTERVAL, entry)
                };
            if !is_deferred {
                self.pending_work.close_session |= track.send_packet(entry, &mut rtp).is_err();
            }
        }
    }

    /// Handles RTCP of the viewer.
    pub fn handle_rtcp(&mut self, now: Instant, ntp_now: u64, messages: &[RtcpMessage], egress: &mut Egress<'_>) {
        self.stream.transport_stats.viewer_report_totals.record_rtcp(messages);
        for rtt in rtcp_reports::round_trip_times(ntp_now, messages) {
            self.rtt = rtt;
            self.reported.rtt = Some(rtt);
            self.stream.transport_stats.record_viewer_rtt(rtt);
        }
        for message in messages {
            match message {
                RtcpMessage::Nack {
                    media_ssrc: media,
                    seqs,
                } => self.retransmit_nacked_packets(now, *media, seqs, egress),
                RtcpMessage::ReceiverEstimate { bitrate } => {
                    self.pending_work.adapt |= self.adaptation.on_remb(now, *bitrate);
                }
                RtcpMessage::KeyFrameRequest { media_ssrc: media } => {
                    if self.video.as_ref().is_some_and(|v| v.track_sender.ssrc() == *media) {
                        self.unanswered_key_frame_request_at.get_or_insert(now);
                        self.pending_work.request_key_frame = true;
                    }
                }
                RtcpMessage::ReceiverReport { blocks } | RtcpMessage::SenderReport { blocks, .. } => {
                    self.evaluate_report_blocks(now, blocks);
                }
                RtcpMessage::Bye => {}
            }
        }
    }

    /// Handles timers: replays, sender reports, and what is due from the rings.
    pub fn handle_timeout(&mut self, now: Instant, ntp_now: u64, egress: &mut Egress<'_>) {
        if !self.playback_started {
            return;
        }
        self.replay_if_key_frame_request_ignored(now);
        if self.next_sender_report_at.is_some_and(|at| at <= now) {
            self.next_sender_report_at = Some(now + SENDER_REPORT_INTERVAL);
            if let Some(report) = self.build_sender_reports(now, ntp_now) {
                egress.send_rtcp(&report);
            }
            self.pending_work.report_quality = true;
            // The request for a key frame, or the key frame, may have been lost.
            self.pending_work.request_key_frame |=
                self.video.as_ref().is_some_and(ViewerTrack::is_suspended_until_switch);
        }
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if is_due(self.layer_switch_key_frame_deadline()) {
            self.schedule_stream_reselection();
        }
        self.pending_work.send_due_packets |= is_due(self.next_due_packets_at());
        self.pending_work.adapt |= is_due(self.adaptation_due_at);
    }

    /// Returns when [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.playback_started {
            return None;
        }
        let replay = self.unanswered_key_frame_request_at.map(|since| {
            let due = since + KEY_FRAME_REPLAY_DELAY;
            self.last_key_frame_replay_at
                .map_or(due, |last| due.max(last + MIN_KEY_FRAME_REPLAY_INTERVAL))
        });
        [
            self.next_sender_report_at,
            replay,
            self.next_due_packets_at(),
            self.layer_switch_key_frame_deadline(),
            self.adaptation_due_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether [`Self::run_pending_work_until_shard_action`] has something to do.
    pub fn has_pending_work(&self) -> bool {
        self.pending_work != PendingWork::default()
    }

    /// Returns the next thing that the shard must do, and sends what is due from the rings. `can_transcode_codec_for_browsers` tells whether
    /// a codec can be transcoded.
    pub fn run_pending_work_until_shard_action(
        &mut self,
        now: Instant,
        egress: &mut Egress<'_>,
        can_transcode: impl Fn(Codec) -> bool,
    ) -> Option<ViewerShardAction> {
        loop {
            if std::mem::take(&mut self.pending_work.close_session) {
                return Some(ViewerShardAction::Close);
            }
            if std::mem::take(&mut self.pending_work.request_key_frame)
                && let Some((source, layer)) = self.record_key_frame_request_and_get_source()
            {
                return Some(ViewerShardAction::RequestKeyFrame { source, layer });
            }
            if self.pending_work.reselect_streams {
                let output = self.select_streams(now, &can_transcode);
                let output = output.or_else(|| self.complete_ready_stream_switches(now));
                if output.is_some() {
                    return output;
                }
                self.pending_work.reselect_streams = false;
                self.video
                    .iter_mut()
                    .for_each(ViewerTrack::clear_options_of_next_switch);
                // A switch between layers waits for a key frame, which a request brings sooner.
                let mut switching = self.video.iter_mut();
                self.pending_work.request_key_frame |= switching.any(ViewerTrack::take_key_frame_request);
                self.pending_work.adapt |= self.adaptation.pending_layer_choice().is_some();
            } else if std::mem::take(&mut self.pending_work.send_due_packets) {
                self.send_due_packets(now, egress);
            } else if std::mem::take(&mut self.pending_work.adapt) {
                self.run_congestion_controller(now, egress);
            } else if std::mem::take(&mut self.pending_work.report_quality) {
                return Some(ViewerShardAction::ReportQuality(Box::new(self.quality_report(now))));
            } else {
                return None;
            }
        }
    }

    /// Returns the streams other than its own that the viewer reads or waits for.
    pub fn current_and_target_streams_except_own(&self) -> Vec<Arc<Stream>> {
        let played = [&self.video, &self.audio].into_iter().flatten();
        let streams = played.flat_map(ViewerTrack::current_and_target_streams);
        streams.filter(|stream| stream.id != self.stream.id).cloned().collect()
    }

    fn schedule_stream_reselection(&mut self) {
        self.pending_work.reselect_streams = true;
        self.pending_work.send_due_packets = true;
    }

    /// Selects the stream of each track. Returns a subscription to be changed first, `None` when all are as they should be.
    fn select_streams(&mut self, now: Instant, can_transcode: impl Fn(Codec) -> bool) -> Option<ViewerShardAction> {
        let (home, is_playing) = (self.stream.clone(), self.playback_started);
        let wanted = home.with_state(|state| self.wanted_streams_by_kind(now, state, can_transcode));
        for (kind, key) in wanted {
            let Some(played) = self
                .viewer_track_mut(kind)
                .filter(|played| played.target_stream().key != key)
            else {
                continue;
            };
            let (was_suspended, is_current) = (played.is_suspended_until_switch(), played.current_stream.key == key);
            let replaced = played.cancel_stream_switch(now);
            self.pending_work.request_key_frame |= was_suspended && is_current;
            if let Some(replaced) = replaced.filter(|replaced| replaced.id != home.id) {
                return Some(ViewerShardAction::Unsubscribe(replaced));
            }
            if is_current {
                continue;
            }
            let Some(played) = self.viewer_track_mut(kind) else {
                continue;
            };
            if key != home.key {
                return Some(ViewerShardAction::Subscribe { kind, stream: key });
            }
            played.begin_stream_switch(now, home.clone(), is_playing);
        }
        None
    }

    /// Returns for each kind the stream that the viewer should take it from. `own_state` is the state of the stream itself.
    fn wanted_streams_by_kind(
        &self,
        now: Instant,
        own_state: &StreamState,
        can_transcode: impl Fn(Codec) -> bool,
    ) -> Vec<(MediaKind, StreamKey)> {
        let keeps_layer = self
            .adaptation
            .must_keep_current_layer(now, &self.layer_selection, own_state);
        [&self.video, &self.audio]
            .into_iter()
            .flatten()
            .map(|played| {
                let kind = played.kind();
                let own = &self.stream.key;
                let layer = || match kind {
                    MediaKind::Video if keeps_layer => played.target_stream().key.lower_simulcast_rid().cloned(),
                    MediaKind::Video => self.wanted_layer(own_state.layers()),
                    MediaKind::Audio => None,
                };
                let layer = || layer().map(|rid| own.name.lower_simulcast_layer_key(&rid));
                // Of layers in formats of their own one may need no transcoding.
                let have_own_formats = own_state.layers().iter().all(SimulcastLayer::is_pulled);
                let wanted = match played.choose_delivery(own_state, &can_transcode) {
                    Some(TrackDelivery::Transcode(target)) => layer()
                        .filter(|_| have_own_formats)
                        .or_else(|| Some(own.name.transcode_key(target))),
                    Some(TrackDelivery::Passthrough | TrackDelivery::Unavailable(_)) | None => layer(),
                };
                (kind, wanted.unwrap_or_else(|| own.clone()))
            })
            .collect()
    }

    /// Completes pending switches whose stream has media to start with.
    fn complete_ready_stream_switches(&mut self, now: Instant) -> Option<ViewerShardAction> {
        if !self.playback_started {
            return None;
        }
        let home = self.stream.id;
        let frames = self.adaptation.latest_layer_choice().map(|choice| choice.frames);
        let mut played = [&mut self.video, &mut self.audio].into_iter().flatten();
        let left = played.find_map(|played| {
            played
                .complete_stream_switch_if_ready(now, frames)
                .filter(|left| left.id != home)
        });
        left.map(ViewerShardAction::Unsubscribe)
    }

    /// Returns when a switch between layers stops waiting and uses the cached key frame.
    fn layer_switch_key_frame_deadline(&self) -> Option<Instant> {
        self.video.as_ref()?.layer_switch_key_frame_deadline()
    }

    /// Records a key frame request of the viewer. Returns the source to send it to, if any, and the layer.
    fn record_key_frame_request_and_get_source(&self) -> Option<(SourceRef, Option<Rid>)> {
        let stream = self.video.as_ref()?.target_stream();
        let source = stream.with_state(StreamState::flag_key_frame_request_and_get_source)?;
        Some((source, stream.key.lower_simulcast_rid().cloned()))
    }

    fn viewer_track_mut(&mut self, kind: MediaKind) -> Option<&mut ViewerTrack> {
        match kind {
            MediaKind::Video => self.video.as_mut(),
            MediaKind::Audio => self.audio.as_mut(),
        }
    }

    /// Sends the packets that are due from the rings. A key frame is requested if the packets to send, including their key
    /// frame, are no longer in the ring.
    fn send_due_packets(&mut self, now: Instant, egress: &mut Egress<'_>) {
        if !self.playback_started {
            return;
        }
        let waits = |video: &Option<ViewerTrack>| {
            video
                .as_ref()
                .is_some_and(|video| video.track_sender.should_request_key_frame())
        };
        let waited = waits(&self.video);
        let paced = self.adaptation.uses_transport_cc;
        let holds_video = self.adaptation.awaits_first_choice;
        let controller = &mut self.adaptation.controller;
        let credit = paced.then(|| controller.sendable_video_bytes(now));
        let of_backlog = controller.sendable_bytes_of_backlog(now);
        let mut due = [Vec::new(), Vec::new()];
        for (played, due) in [&mut self.video, &mut self.audio].into_iter().zip(&mut due) {
            let is_held = |played: &ViewerTrack| holds_video && played.kind() == MediaKind::Video;
            let played = played
                .as_mut()
                .filter(|played| played.track_sender.reads_from_ring())
                .filter(|played| !played.is_suspended_until_switch() && !is_held(played));
            if let Some(ViewerTrack {
                track_sender: out,
                current_stream: from,
                ..
            }) = played
            {
                let credit = credit.filter(|_| out.kind() == MediaKind::Video);
                from.with_state(|state| {
                    let is_dead = state.source().is_none()
                        || (out.is_repeating_burst() && is_source_silent(state.video.ring(), now));
                    if is_dead && out.kind() == MediaKind::Video {
                        out.stop_burst_until_key_frame();
                    } else {
                        let ring = state.track(out.kind()).ring();
                        let credit =
                            credit.map(|credit| out.sendable_bytes_given_backlog(now, credit, of_backlog, ring));
                        out.collect_due_packets(now, ring, credit, due);
                        if out.take_probe_reserve_refresh_request() {
                            out.refresh_probe_reserve(ring);
                        }
                    }
                });
            }
        }
        self.pending_work.request_key_frame |= !waited && waits(&self.video);
        let Some(rtp) = egress.rtp_egress() else { return };
        let mut rtp = TransportCcEgress::new(rtp, Some(controller).filter(|_| paced), now);
        // Audio first: it is little, and waits for nothing.
        for (played, due) in [&mut self.video, &mut self.audio].into_iter().zip(due).rev() {
            let Some(played) = played else { continue };
            for entry in due {
                self.pending_work.close_session |= played.track_sender.send_packet(&entry, &mut rtp).is_err();
            }
        }
    }

    /// Returns when packets are due from a ring.
    fn next_due_packets_at(&self) -> Option<Instant> {
        [&self.video, &self.audio]
            .into_iter()
            .flatten()
            .filter_map(|played| played.track_sender.next_catch_up_at())
            .min()
    }
}

/// Whether nothing arrived within [`MAX_SOURCE_SILENCE_FOR_REPLAY`].
fn is_source_silent(ring: &PacketRing, now: Instant) -> bool {
    ring.newest_track_time_and_arrival()
        .is_none_or(|(_, arrival)| now.saturating_duration_since(arrival) >= MAX_SOURCE_SILENCE_FOR_REPLAY)
}

mod layer_adaptation;
mod retransmission_and_replay;
pub(crate) mod rtcp_reports;
