//! A track of a viewer and the stream that it reads: the viewer's own stream, a layer of it, or a transcode of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::track::TrackSender;
use crate::congestion::ladder::FrameSelection;
use crate::congestion::{self, NewLayerStartPoint};
use crate::hub::ring::PacketRing;
use crate::hub::stream::{SimulcastLayer, Stream, StreamId, StreamState};
use crate::hub::viewer_quality::CaptureDelay;
use crate::media::packet::TrackSeq;
use crate::media::track_delivery::TrackDelivery;
use crate::media::{Codec, MediaKind};

/// A track and the stream that it reads.
pub(super) struct ViewerTrack {
    pub(super) track_sender: TrackSender,
    pub(super) current_stream: Arc<Stream>,
    pending_stream_switch: Option<PendingStreamSwitch>,
    /// Of the next switch, if congestion control chose it.
    next_switch: Option<AdaptiveSwitchOptions>,
}

/// A switch that congestion control chose.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdaptiveSwitchOptions {
    /// What was sent before is of no use to the viewer.
    pub(super) is_start: bool,
    pub(super) is_step_down: bool,
    /// Bits per second that arrive at the viewer.
    pub(super) received_bitrate: u32,
    /// Nothing more of the current layer is sent.
    pub(super) stops_current: bool,
}

/// The stream that a track switches to once that has a key frame or, for audio, a packet.
struct PendingStreamSwitch {
    target_stream: Arc<Stream>,
    /// Set for a switch between layers, during which the current layer continues: the switch waits for a key frame
    /// newer than this one, at most until this instant.
    key_frame_wait: Option<(Option<TrackSeq>, Instant)>,
    /// Nothing is sent until the switch is complete.
    suspends_current: bool,
    /// A key frame has to be requested.
    requests_key_frame: bool,
    /// When the current stream is sent although it was suspended: better another layer than none.
    suspended_until: Option<Instant>,
}

/// Maximum wait for a new key frame of the next layer, longer than the usual key frame interval. After that the cached
/// key frame is used.
const MAX_LAYER_SWITCH_KEY_FRAME_WAIT: Duration = Duration::from_secs(5);

impl ViewerTrack {
    pub(super) fn new(out: TrackSender, own_stream: &Arc<Stream>) -> Self {
        Self {
            track_sender: out,
            current_stream: own_stream.clone(),
            pending_stream_switch: None,
            next_switch: None,
        }
    }

    /// Returns the delay from capture to the gateway, if it is known, and that in the gateway; `None` if nothing was sent of
    /// late.
    pub(super) fn recent_delays(&self, now: Instant) -> Option<(Option<CaptureDelay>, Duration)> {
        let in_gateway = self.track_sender.recent_forwarding_delay(now)?;
        let kind = self.kind();
        let captured = self
            .current_stream
            .with_state(move |state| state.track(kind).capture_delay_stats().recent_capture_delay(now));
        Some((captured, in_gateway))
    }

    pub(super) fn kind(&self) -> MediaKind {
        self.track_sender.kind()
    }

    /// Returns the stream that the track reads, or will read after a pending switch.
    pub(super) fn target_stream(&self) -> &Arc<Stream> {
        self.pending_stream_switch
            .as_ref()
            .map_or(&self.current_stream, |next| &next.target_stream)
    }

    /// Whether the track reads a transcode, or will after a pending switch.
    pub(super) fn is_target_transcoded(&self) -> bool {
        self.target_stream().key.transcoded_to().is_some()
    }

    /// Whether a switch to this stream is pending.
    pub(super) fn is_switching_to(&self, stream: StreamId) -> bool {
        self.pending_stream_switch
            .as_ref()
            .is_some_and(|next| next.target_stream.id == stream)
    }

    /// Whether a switch to any stream is pending.
    pub(super) fn has_pending_switch(&self) -> bool {
        self.pending_stream_switch.is_some()
    }

    /// Whether nothing is sent until a pending switch is complete.
    pub(super) fn is_suspended_until_switch(&self) -> bool {
        self.pending_stream_switch
            .as_ref()
            .is_some_and(|next| next.suspends_current)
    }

    /// Says how the next switch begins. What is to begin as at the start does so, whatever is chosen then.
    pub(super) fn set_options_of_next_switch(&mut self, switch: AdaptiveSwitchOptions) {
        let is_start = self.next_switch.is_some_and(|prepared| prepared.is_start);
        self.next_switch = self.next_switch.filter(|_| is_start).or(Some(switch));
    }

    /// Discards the switch that was prepared, which is not needed.
    pub(super) fn clear_options_of_next_switch(&mut self) {
        self.next_switch = None;
    }

    /// Returns when a pending switch between layers stops waiting: for a key frame that is not the cached one, or for any.
    pub(super) fn layer_switch_key_frame_deadline(&self) -> Option<Instant> {
        let next = self.pending_stream_switch.as_ref()?;
        next.key_frame_wait.map(|(_, until)| until).or(next.suspended_until)
    }

    /// Has a viewer that was sent nothing so far begin with the layer that it waits for, if there is one: what the stream
    /// itself carries may be larger than the viewer wants. Returns whether that is so.
    pub(super) fn begin_with_pending_layer(&mut self, now: Instant) -> bool {
        if self.track_sender.sender_report_counts().packet_count > 0 {
            return false;
        }
        let Some(next) = &mut self.pending_stream_switch else {
            return false;
        };
        if !next.target_stream.key.is_lower_simulcast_layer() || next.suspends_current {
            return next.suspends_current;
        }
        let key_frame_wait = next.target_stream.with_state(|state| {
            let is_live = state.source().is_some();
            is_live.then(|| key_frame_wait_for_start(now, state))
        });
        let Some(key_frame_wait) = key_frame_wait else {
            return false;
        };
        next.key_frame_wait = key_frame_wait;
        next.requests_key_frame = key_frame_wait.is_some();
        next.suspends_current = true;
        next.suspended_until = Some(now + MAX_LAYER_SWITCH_KEY_FRAME_WAIT);
        let out = &mut self.track_sender;
        self.current_stream
            .with_state(|state| out.stop_until_next_key_frame(state.video.ring()));
        true
    }

    /// Returns the streams that the track reads or waits for.
    pub(super) fn current_and_target_streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        std::iter::once(&self.current_stream).chain(self.pending_stream_switch.as_ref().map(|next| &next.target_stream))
    }

    /// Returns how the track reaches the viewer; `None` as long as the stream has no such track.
    pub(super) fn choose_delivery(
        &self,
        own_state: &StreamState,
        can_transcode: impl Fn(Codec) -> bool,
    ) -> Option<TrackDelivery> {
        let track = own_state.track_offerable_to_viewers(self.kind(), can_transcode)?;
        Some(track.choose_passthrough_or_transcode(|format| self.track_sender.has_negotiated_codec(format.codec())))
    }

    /// Whether the viewer can decode a layer.
    pub(super) fn can_play_layer(&self, layer: &SimulcastLayer) -> bool {
        layer.pulled_source_track().is_none_or(|track| {
            track.is_webrtc_playable() && self.track_sender.has_negotiated_codec(track.format.codec())
        })
    }

    /// Begins a switch to another stream. `is_playing` is false before playback, when there is nothing to continue.
    pub(super) fn begin_stream_switch(&mut self, now: Instant, to: Arc<Stream>, is_playing: bool) {
        let is_between_layers = to.key.is_lower_simulcast_layer() || self.current_stream.key.is_lower_simulcast_layer();
        let continues = is_between_layers && self.current_stream.with_state(|state| state.source().is_some());
        let is_smooth = is_playing && self.kind() == MediaKind::Video && continues;
        let adaptive = self.next_switch.take().filter(|_| is_smooth);
        let is_start = adaptive.is_some_and(|switch| switch.is_start);
        let has_sent = self.track_sender.last_sent_position().is_some() && !is_start;
        let key_frame_wait = match adaptive {
            _ if !is_smooth => None,
            Some(_) if !has_sent => to.with_state(|state| key_frame_wait_for_start(now, state)),
            Some(switch) if switch.is_step_down => {
                to.with_state(move |state| key_frame_wait_for_step_down(now, state, switch.received_bitrate))
            }
            _ => to.with_state(|state| {
                Some((
                    state.video.ring().newest_key_frame_seq(),
                    now + MAX_LAYER_SWITCH_KEY_FRAME_WAIT,
                ))
            }),
        };
        let suspends_current = adaptive.is_some_and(|switch| switch.stops_current || !has_sent);
        if suspends_current {
            let out = &mut self.track_sender;
            self.current_stream
                .with_state(|state| out.stop_until_next_key_frame(state.video.ring()));
        }
        let is_patient = adaptive.is_some_and(|switch| !switch.is_step_down) && has_sent;
        let comes_unasked = is_patient && to.with_state(|state| has_short_key_frame_interval(state));
        self.pending_stream_switch = Some(PendingStreamSwitch {
            target_stream: to,
            key_frame_wait,
            suspends_current,
            requests_key_frame: key_frame_wait.is_some() && !comes_unasked,
            suspended_until: None,
        });
    }

    /// Cancels a pending switch. Returns its stream. A stream that was suspended goes on at its cached key frame.
    pub(super) fn cancel_stream_switch(&mut self, now: Instant) -> Option<Arc<Stream>> {
        let cancelled = self.pending_stream_switch.take()?;
        if cancelled.suspends_current {
            let out = &mut self.track_sender;
            self.current_stream.with_state(|state| {
                if state.source().is_some() {
                    out.start_at_cached_key_frame(now, state.video.ring());
                }
            });
        }
        Some(cancelled.target_stream)
    }

    /// Whether a key frame has to be requested for a pending switch; once.
    pub(super) fn take_key_frame_request(&mut self) -> bool {
        let pending = self.pending_stream_switch.as_mut();
        pending.is_some_and(|next| std::mem::take(&mut next.requests_key_frame))
    }

    /// Completes a pending switch whose stream has media to start with; video is sent with these `frames` from there on.
    /// Returns the stream that the track has left.
    pub(super) fn complete_stream_switch_if_ready(
        &mut self,
        now: Instant,
        frames: Option<FrameSelection>,
    ) -> Option<Arc<Stream>> {
        let PendingStreamSwitch {
            target_stream: next,
            key_frame_wait: after,
            ..
        } = self.pending_stream_switch.as_ref()?;
        let (next, after) = (next.clone(), *after);
        let kind = self.kind();
        // Read before the next stream is locked: two viewers that switch in opposite directions would deadlock.
        let out = &mut self.track_sender;
        let last = out.last_sent_position().and_then(|seq| {
            self.current_stream.with_state(|state| {
                let ring = state.track(kind).ring();
                if kind == MediaKind::Video && frames.is_some_and(|frames| frames < FrameSelection::ReferenceFrames) {
                    out.refresh_probe_reserve(ring);
                }
                ring.get(seq).cloned()
            })
        });
        let has_begun = next.with_state(|state| {
            let has_source = state.source().is_some();
            let ring = state.track(kind).ring();
            let can_begin = match kind {
                MediaKind::Video => {
                    let is_new =
                        after.is_none_or(|(cached, until)| ring.newest_key_frame_seq() != cached || now >= until);
                    ring.newest_key_frame_seq().is_some() && is_new
                }
                MediaKind::Audio => ring.newest_track_time_and_arrival().is_some(),
            };
            if has_source && can_begin {
                out.stop_reading_source_track(last.as_ref().map(|entry| &entry.packet));
                match kind {
                    MediaKind::Video => {
                        out.set_frame_selection_before_start(frames.unwrap_or(out.frame_selection()));
                        out.start_at_cached_key_frame(now, ring);
                    }
                    MediaKind::Audio => out.start_at_live_edge(ring),
                }
            }
            has_source && can_begin
        });
        if has_begun {
            self.pending_stream_switch = None;
            return Some(std::mem::replace(&mut self.current_stream, next));
        }
        if let Some(next) = &mut self.pending_stream_switch
            && after.is_some_and(|(_, until)| until <= now)
        {
            // The wait is over and there is no cached key frame: switch at the next one.
            next.key_frame_wait = None;
        }
        self.end_suspension_if_due(now);
        None
    }

    /// The layer that the viewer was to begin with has sent no key frame for too long.
    fn end_suspension_if_due(&mut self, now: Instant) {
        let out = &mut self.track_sender;
        if let Some(next) = &mut self.pending_stream_switch
            && next.suspended_until.is_some_and(|until| until <= now)
        {
            next.suspended_until = None;
            next.suspends_current = false;
            self.current_stream.with_state(|state| {
                if state.source().is_some() {
                    out.start_at_cached_key_frame(now, state.video.ring());
                }
            });
        }
    }
}

/// Time in which a source usually answers a key frame request: a round trip and a frame.
pub(super) const EXPECTED_KEY_FRAME_RESPONSE_TIME: Duration = Duration::from_millis(300);

/// A cached key frame younger than this is used instead of requesting a new one: requests are limited to one per
/// second.
const MAX_FRESH_KEY_FRAME_AGE: Duration = Duration::from_secs(1);

/// How much longer than expected a switch waits for a key frame.
const LATE_KEY_FRAME_TOLERANCE: Duration = Duration::from_millis(300);

/// Longest wait of a step down for a key frame: every moment of it makes the queue longer.
const MAX_STEP_DOWN_KEY_FRAME_WAIT: Duration = Duration::from_secs(2);

/// The key frame that is in the ring, and until when a newer one is waited for; `None` begins with the one in the ring.
type KeyFrameWait = Option<(Option<TrackSeq>, Instant)>;

/// A step up waits for the next key frame of a source that sends them at least this often: a request costs all viewers of
/// the layer.
const MAX_UNREQUESTED_KEY_FRAME_INTERVAL: Duration = Duration::from_millis(1_500);

pub(super) fn has_short_key_frame_interval(state: &StreamState) -> bool {
    let interval = state.video.key_frame_interval();
    interval.is_some_and(|interval| interval <= MAX_UNREQUESTED_KEY_FRAME_INTERVAL)
}

/// How a viewer begins to watch a layer.
fn key_frame_wait_for_start(now: Instant, state: &StreamState) -> KeyFrameWait {
    let ring = state.video.ring();
    let waits =
        state.responds_to_key_frame_requests && is_key_frame_request_cheaper_than_replay(ring, state.viewer_count());
    (waits || ring.newest_key_frame_seq().is_none())
        .then(|| (ring.newest_key_frame_seq(), now + EXPECTED_KEY_FRAME_RESPONSE_TIME))
}

/// How a viewer whose path carries `received` bits per second begins with a lower layer.
fn key_frame_wait_for_step_down(now: Instant, state: &StreamState, received: u32) -> KeyFrameWait {
    let ring = state.video.ring();
    let newest = ring.newest_key_frame_seq();
    let age = newest
        .and_then(|seq| ring.packet_age_behind_newest(seq))
        .unwrap_or_default();
    let next = if state.responds_to_key_frame_requests {
        Some(EXPECTED_KEY_FRAME_RESPONSE_TIME)
    } else {
        state
            .video
            .key_frame_interval()
            .map(|interval| interval.saturating_sub(age))
    };
    let cached = newest.map(|_| ring.byte_count_since_key_frame() as u64);
    match congestion::choose_new_layer_start_point(next, cached, received) {
        NewLayerStartPoint::CachedInterval => None,
        NewLayerStartPoint::NextKeyFrame => {
            let wait = next.unwrap_or(MAX_STEP_DOWN_KEY_FRAME_WAIT) + LATE_KEY_FRAME_TOLERANCE;
            Some((newest, now + wait.min(MAX_STEP_DOWN_KEY_FRAME_WAIT)))
        }
    }
}

/// Whether requesting a key frame, which is sent to every viewer, costs less than sending the cached packets to one
/// viewer.
pub(super) fn is_key_frame_request_cheaper_than_replay(ring: &PacketRing, viewers: usize) -> bool {
    let Some(key_frame) = ring.newest_key_frame_seq() else {
        return true;
    };
    let age = ring.packet_age_behind_newest(key_frame).unwrap_or_default();
    age > MAX_FRESH_KEY_FRAME_AGE
        && ring.byte_count_since_key_frame() > ring.frame_byte_count(key_frame).saturating_mul(viewers)
}
