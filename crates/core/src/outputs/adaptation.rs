//! What adapts one viewer to its path: its congestion control, and what the layers of the stream are to it.

use std::time::{Duration, Instant};

use super::adaptation_limits::{FeedbackLimiter, QualityLadderCache};
use crate::congestion::allocator::LayerSwitchTarget;
use crate::congestion::ladder::{FrameSelection, QualityLadder, QualityRung};
use crate::congestion::{CongestionController, QualityLimitationReason, UNLIMITED_START_BITRATE_HINT};
use crate::hub::stream::{LayerSelection, SimulcastLayer, Stream, StreamState};
use crate::media::{MediaKind, Rid};
use crate::sdp::negotiation_result::{NegotiatedPlayback, OutgoingTrack};

/// Congestion control of a viewer, and the numbers by which it knows the layers.
pub(super) struct ViewerAdaptation {
    pub(super) controller: CongestionController,
    /// Packets are numbered: the viewer gives transport-wide feedback, and has RTX for probes.
    pub(super) uses_transport_cc: bool,
    /// Congestion control is on; otherwise nothing is ever chosen.
    pub(super) is_enabled: bool,
    /// The viewer's own estimate was negotiated.
    accepts_remb: bool,
    /// Which feedback is evaluated, and the ladder that was made last.
    pub(super) feedback_limiter: FeedbackLimiter,
    pub(super) ladder_cache: QualityLadderCache,
    /// Layers by their number: the lowest first. Empty without simulcast: number 0 is the stream itself then.
    layers: Vec<Rid>,
    /// Highest bitrates of the last seconds, by the number of the layer.
    peaks: [PeakBitrate; MAX_LAYERS],
    /// What the controller chose last.
    choice: Option<LayerSwitchTarget>,
    /// The choice is being sent.
    has_begun: bool,
    /// The rate of the burst that is being sent.
    pub(super) burst: Option<BurstRate>,
    /// Nothing of the stream itself is sent until the first choice among the layers of its source.
    pub(super) awaits_first_choice: bool,
    /// What the viewer can be sent was not known at the last check: it is checked again with the first key frame.
    pub(super) lacks_ladder: bool,
    /// A better layer is avoided because packets of it were lost on the way from the publisher.
    avoids_lossy_layer: bool,
    /// Since when much less arrives than the lowest layer needs.
    starved_since: Option<Instant>,
    /// Why no more is sent.
    pub(super) limitation_reason: QualityLimitationReason,
}

/// The rate of a burst, which grows while all of it arrives.
#[derive(Clone, Copy)]
pub(super) struct BurstRate {
    /// Bits per second of the pacer: a quarter more than the burst has, for retransmissions.
    pub(super) bitrate: u32,
    pub(super) set_at: Instant,
    /// The path took less than the burst had.
    is_limited: bool,
}

/// What a path takes is not known at the start: a burst begins at this multiple of the pacing rate, in halves.
const INITIAL_BURST_PACING_FACTOR_IN_HALVES: u32 = 3;

/// Fastest burst in bits per second: 64 Mbit/s and a quarter.
const MAX_BURST_BITRATE: u32 = 80_000_000;

/// A burst becomes twice as fast, at the earliest after [`BURST_GROWTH_INTERVAL`], while packets wait for at most
/// [`MAX_QUEUE_DELAY_TO_GROW_BURST`], and as slow as what arrives if they wait for more than [`MIN_QUEUE_DELAY_TO_SLOW_BURST`].
const BURST_GROWTH_INTERVAL: Duration = Duration::from_millis(150);
const MAX_QUEUE_DELAY_TO_GROW_BURST: Duration = Duration::from_millis(30);
const MIN_QUEUE_DELAY_TO_SLOW_BURST: Duration = Duration::from_millis(60);

impl BurstRate {
    /// The rate of a burst that begins.
    pub(super) fn initial(now: Instant, controller: &CongestionController) -> Self {
        let pacing = controller.pacing_bitrate();
        let halves = match controller.is_path_at_capacity(now) {
            true => 2,
            false => INITIAL_BURST_PACING_FACTOR_IN_HALVES,
        };
        Self {
            bitrate: (pacing / 2).saturating_mul(halves).min(MAX_BURST_BITRATE),
            set_at: now,
            is_limited: false,
        }
    }

    /// The bits per second at which the packets of the burst are scheduled.
    pub(super) fn bitrate_without_retransmission_share(self) -> u32 {
        self.bitrate / 5 * 4
    }

    /// Returns the next rate if what arrives says that it should change.
    pub(super) fn next(self, now: Instant, controller: &CongestionController) -> Option<Self> {
        let (received, delay) = (controller.received_bitrate()?, controller.newest_queue_delay()?);
        if delay > MIN_QUEUE_DELAY_TO_SLOW_BURST && !self.is_limited {
            return Some(Self {
                bitrate: received.max(controller.pacing_bitrate() / 2).min(self.bitrate),
                set_at: now,
                is_limited: true,
            });
        }
        let is_due = now.saturating_duration_since(self.set_at) >= BURST_GROWTH_INTERVAL;
        let may_grow = is_due && !self.is_limited && !controller.is_path_at_capacity(now);
        let bitrate = self.bitrate.saturating_mul(2).min(MAX_BURST_BITRATE);
        let grows = may_grow && delay <= MAX_QUEUE_DELAY_TO_GROW_BURST && bitrate > self.bitrate;
        grows.then_some(Self {
            bitrate,
            set_at: now,
            is_limited: false,
        })
    }
}

/// What a ladder is built from.
pub(super) struct QualityLadderInputs {
    /// Best first.
    pub(super) layers: Vec<SimulcastLayer>,
    pub(super) selection: LayerSelection,
    /// Payload bits per second of the video of the stream itself, and of its audio; 0 if unknown.
    pub(super) video_bitrate: u64,
    pub(super) audio_bitrate: u64,
    /// The viewer receives audio.
    pub(super) has_audio: bool,
    /// Payload bits per second of the key frames of what is sent.
    pub(super) key_frame_bitrate: Option<u32>,
    /// The same of the frames to which others refer; `None` if they are nearly all.
    pub(super) reference_frame_bitrate: Option<u32>,
}

/// Layers that a viewer chooses from; OBS sends at most four.
const MAX_LAYERS: usize = 5;

/// Assumed bitrate of a stream that has not been measured yet: it must not be paced too slowly.
const ASSUMED_BITRATE_OF_UNMEASURED_STREAM: u32 = 8_000_000;

/// With less than this share of what the lowest layer needs, in percent, for [`MIN_STARVATION_DURATION`], parts of it are left out.
const STARVATION_THRESHOLD_PERCENT: u64 = 80;
const MIN_STARVATION_DURATION: Duration = Duration::from_millis(600);

impl ViewerAdaptation {
    /// `random` is for the controller.
    pub(super) fn new(playback: &NegotiatedPlayback, origin: Instant, now: Instant, random: u32) -> Self {
        let uses_transport_cc = uses_transport_cc(playback);
        // Without feedback nothing shows what the path carries: the best layer is sent until reports speak against it.
        let assumed_capacity = (!uses_transport_cc).then_some(UNLIMITED_START_BITRATE_HINT);
        let accepts_remb = |track: &OutgoingTrack| track.codecs.iter().any(|codec| codec.rtcp_feedback.remb);
        Self {
            controller: CongestionController::new(origin, now, assumed_capacity, random),
            uses_transport_cc,
            is_enabled: playback.uses_congestion_control,
            accepts_remb: playback.tracks.iter().any(accepts_remb),
            feedback_limiter: FeedbackLimiter::new(now),
            ladder_cache: QualityLadderCache::default(),
            layers: Vec::new(),
            peaks: [PeakBitrate::default(); MAX_LAYERS],
            choice: None,
            has_begun: false,
            burst: None,
            awaits_first_choice: false,
            lacks_ladder: false,
            avoids_lossy_layer: false,
            starved_since: None,
            limitation_reason: QualityLimitationReason::None,
        }
    }

    /// Handles the viewer's own estimate in bits per second. Returns whether it counts.
    pub(super) fn on_remb(&mut self, now: Instant, bitrate: u64) -> bool {
        if self.accepts_remb {
            self.controller.on_remb(now, saturate_bitrate_to_u32(bitrate));
        }
        self.accepts_remb
    }

    /// The path is known from a session before this one: the first choice is what costs about as much.
    pub(super) fn set_path_bitrate_hint(&mut self, bitrate: Option<u32>) {
        if let Some(bitrate) = bitrate.filter(|_| self.uses_transport_cc) {
            self.controller.set_start_bitrate_hint(bitrate);
        }
    }

    /// Returns what the path is shown to carry, in bits per second, for a later session.
    pub(super) fn proven_path_bitrate(&self, now: Instant) -> Option<u32> {
        let choice = self.choice.filter(|_| self.uses_transport_cc && self.has_begun)?;
        let is_measured = self.peaks.get(usize::from(choice.layer))?.highest() > 0;
        self.controller.proven_bitrate(now).filter(|_| is_measured)
    }

    /// Returns the last choice, if it may differ from what the viewer's selection alone would be: without feedback the
    /// viewer is sent what it would be sent without congestion control, until reports speak against it.
    pub(super) fn restricting_layer_choice(&self) -> Option<LayerSwitchTarget> {
        self.choice
            .filter(|_| self.uses_transport_cc || self.controller.is_limited_by_overload() || self.avoids_lossy_layer)
    }

    /// Returns what the controller chose last.
    pub(super) fn latest_layer_choice(&self) -> Option<LayerSwitchTarget> {
        self.choice
    }

    /// Returns the layer with this number; `None` without simulcast.
    pub(super) fn rid_of_layer(&self, layer: u8) -> Option<&Rid> {
        self.layers.get(usize::from(layer))
    }

    /// Returns the layer of the last choice; `None` if that is the stream itself: it carries the best layer, the first of
    /// `layers`, but for a while after the order has changed.
    pub(super) fn chosen_layer_unless_in_main_stream(&self, layers: &[SimulcastLayer]) -> Option<Rid> {
        let rid = self.rid_of_layer(self.choice?.layer)?;
        let best = layers.first();
        let best = best.filter(|layer| layer.active && layer.is_carried_by_main_stream && !layer.is_pulled());
        let exists = layers.iter().any(|layer| layer.rid == *rid);
        (exists && best.is_none_or(|best| best.rid != *rid)).then(|| rid.clone())
    }

    /// Whether the viewer stays with what it is sent: no layer can be chosen as long as none or not all are there.
    pub(super) fn must_keep_current_layer(
        &self,
        now: Instant,
        selection: &LayerSelection,
        stream: &StreamState,
    ) -> bool {
        let is_chosen = self.uses_transport_cc && !matches!(selection, LayerSelection::Named(_));
        is_chosen && (stream.source().is_none() || stream.may_more_layers_appear(now))
    }

    /// A key frame of the stream itself has come: it carries the best layer that is there. Returns whether the viewer waits
    /// until one is chosen.
    pub(super) fn must_hold_key_frame_until_layer_chosen(
        &self,
        now: Instant,
        selection: &LayerSelection,
        stream: &Stream,
    ) -> bool {
        let is_chosen = !matches!(selection, LayerSelection::Named(_));
        is_chosen && (self.choice.is_none() || stream.with_state(move |state| state.may_more_layers_appear(now)))
    }

    /// Records a choice of the controller.
    pub(super) fn record_layer_choice(&mut self, switch: LayerSwitchTarget) {
        self.choice = Some(switch);
        self.ladder_cache.clear();
        self.has_begun = false;
    }

    /// Returns the choice that has not begun to be sent.
    pub(super) fn pending_layer_choice(&self) -> Option<LayerSwitchTarget> {
        self.choice.filter(|_| !self.has_begun)
    }

    /// The choice is being sent.
    pub(super) fn on_layer_choice_begun(&mut self, now: Instant) {
        if let Some(LayerSwitchTarget { layer, frames, .. }) = self.pending_layer_choice() {
            self.has_begun = true;
            self.ladder_cache.clear();
            self.controller.on_layer_switch_begun(now, layer, frames);
        }
    }

    /// Returns what the viewer can be sent now.
    pub(super) fn update_layers_and_build_quality_ladder(
        &mut self,
        now: Instant,
        inputs: &QualityLadderInputs,
    ) -> QualityLadder {
        self.renumber_layers_and_reset_choice(now, &inputs.layers);
        let audio = if inputs.has_audio {
            saturate_bitrate_to_u32(inputs.audio_bitrate)
        } else {
            0
        };
        let mut ladder = QualityLadder::new(audio);
        let rungs = self.record_peaks_and_build_layer_rungs(now, inputs);
        let Some(lowest) = rungs.first().copied() else {
            return ladder;
        };
        if self.uses_transport_cc {
            let is_starved = self.detect_starvation(now, lowest, self.measured_bitrate_of_rung(lowest, inputs) + audio);
            let key_frames = inputs.key_frame_bitrate;
            ladder.push(QualityRung {
                frames: FrameSelection::AudioOnly,
                payload_bitrate: 0,
                usable: is_starved && audio > 0,
                ..lowest
            });
            ladder.push(QualityRung {
                frames: FrameSelection::KeyFrames,
                payload_bitrate: key_frames.unwrap_or(lowest.payload_bitrate),
                usable: is_starved && key_frames.is_some_and(|bitrate| bitrate < lowest.payload_bitrate / 2),
                ..lowest
            });
            let reference_frames = inputs.reference_frame_bitrate;
            ladder.push(QualityRung {
                frames: FrameSelection::ReferenceFrames,
                payload_bitrate: reference_frames
                    .map_or(lowest.payload_bitrate, |rate| rate.min(lowest.payload_bitrate)),
                usable: is_starved && reference_frames.is_some(),
                ..lowest
            });
        }
        rungs.into_iter().for_each(|rung| ladder.push(rung));
        ladder
    }

    /// The layers that the selection allows, whole, the lowest first.
    fn record_peaks_and_build_layer_rungs(&mut self, now: Instant, inputs: &QualityLadderInputs) -> Vec<QualityRung> {
        let rung = |layer: usize, bitrate: u32, usable: bool| QualityRung {
            layer: layer as u8,
            frames: FrameSelection::All,
            payload_bitrate: bitrate,
            usable,
        };
        self.avoids_lossy_layer = false;
        if self.layers.is_empty() {
            let peak = self
                .peaks
                .first_mut()
                .map_or(0, |peak| peak.record(now, inputs.video_bitrate));
            let bitrate = if peak == 0 {
                ASSUMED_BITRATE_OF_UNMEASURED_STREAM
            } else {
                peak
            };
            return vec![rung(0, bitrate, true)];
        }
        let ascending = inputs.layers.iter().take(self.layers.len()).rev();
        let lowest_active = ascending.clone().position(|layer| layer.active).unwrap_or(0);
        let mut rungs = Vec::with_capacity(self.layers.len());
        let mut has_whole_layer_below = false;
        for (index, (layer, peak)) in ascending.zip(&mut self.peaks).enumerate() {
            let peak = peak.record(now, layer.measured_bitrate);
            // Without feedback no rate is compared with anything.
            let is_measured = peak > 0 || index == lowest_active || !self.uses_transport_cc;
            let bitrate = if peak == 0 {
                ASSUMED_BITRATE_OF_UNMEASURED_STREAM
            } else {
                peak
            };
            if selection_allows_layer(&inputs.selection, layer) {
                let is_usable = layer.is_available() && is_measured;
                // What is lower needs no more of the path: nobody is sent more than it carries to avoid a loss.
                let is_avoided = is_usable && layer.is_lossy && has_whole_layer_below;
                has_whole_layer_below |= is_usable && !layer.is_lossy;
                self.avoids_lossy_layer |= is_avoided;
                rungs.push(rung(index, bitrate, is_usable && !is_avoided));
            }
        }
        if rungs.iter().all(|rung| !rung.usable) {
            // What the viewer selected is not there: the lowest layer that is.
            let layer = self.peaks.get(lowest_active).map_or(0, |peak| peak.highest());
            rungs = vec![rung(lowest_active, layer.max(1), true)];
        }
        rungs
    }

    /// Numbers the layers from the lowest on. New ones on top change nothing; otherwise the controller begins anew, with
    /// what it sends now.
    fn renumber_layers_and_reset_choice(&mut self, now: Instant, layers: &[SimulcastLayer]) {
        let is_same = |(rid, layer): (&Rid, &SimulcastLayer)| *rid == layer.rid;
        let ascending = || layers.iter().take(MAX_LAYERS).rev();
        let count = layers.len().min(MAX_LAYERS);
        let keeps_numbers = self.layers.iter().zip(ascending()).all(is_same) && self.layers.len() <= count;
        if keeps_numbers && self.layers.len() == count {
            return;
        }
        let was_empty = self.layers.is_empty();
        self.layers = ascending().map(|layer| layer.rid.clone()).collect();
        if self.choice.is_some() && (!keeps_numbers || was_empty) {
            // What is assumed of a layer tells nothing of the path.
            let peak = self.choice.and_then(|choice| self.peaks.get(usize::from(choice.layer)));
            let is_measured = peak.is_some_and(|peak| peak.highest() > 0);
            self.peaks = [PeakBitrate::default(); MAX_LAYERS];
            self.controller.reset_layer_allocation(now, is_measured);
            self.choice = None;
        }
    }

    /// Returns the present rate of a whole layer: it may be much less than the highest of the last seconds.
    fn measured_bitrate_of_rung(&self, lowest: QualityRung, inputs: &QualityLadderInputs) -> u32 {
        let rid = self.rid_of_layer(lowest.layer);
        let layer = inputs.layers.iter().find(|layer| Some(&layer.rid) == rid);
        let measured = layer.map_or(inputs.video_bitrate, |layer| layer.measured_bitrate);
        saturate_bitrate_to_u32(measured).min(lowest.payload_bitrate)
    }

    /// Whether the path shows that it takes less than it is sent.
    fn is_path_congested(&self) -> bool {
        self.controller.excess_delay() > MIN_STARVED_EXCESS_DELAY
            || self
                .controller
                .loss_per_256()
                .is_some_and(|loss| loss > MIN_STARVED_FRACTION_LOST)
    }

    /// Returns the last ladder if it is new enough: what a viewer lacks whose path is too small is looked at each time.
    pub(super) fn cached_quality_ladder(&self, now: Instant) -> Option<QualityLadder> {
        let sends_less = self.choice.is_some_and(|choice| choice.frames != FrameSelection::All);
        self.ladder_cache
            .get(now)
            .filter(|_| !sends_less && !self.is_path_congested())
    }

    /// Whether much less arrives than the lowest layer needs, so that parts of it have to be left out; as long as they are,
    /// too.
    fn detect_starvation(&mut self, now: Instant, lowest: QualityRung, needed: u32) -> bool {
        let sends_less = self.choice.is_some_and(|choice| choice.frames != FrameSelection::All);
        let needed = u64::from(needed);
        let is_lowest = self.choice.is_some_and(|choice| choice.layer == lowest.layer) && self.has_begun;
        let is_short = match self.controller.received_bitrate() {
            Some(arrives) => u64::from(arrives) * 100 < needed * STARVATION_THRESHOLD_PERCENT,
            // So little arrives that no rate can be measured.
            None => self
                .controller
                .loss_per_256()
                .is_some_and(|loss| loss > MIN_STARVED_FRACTION_LOST_IF_UNMEASURED),
        };
        self.starved_since =
            (is_lowest && is_short && self.is_path_congested()).then(|| self.starved_since.unwrap_or(now));
        sends_less
            || self
                .starved_since
                .is_some_and(|since| now.saturating_duration_since(since) >= MIN_STARVATION_DURATION)
    }
}

/// A source that sends little is not starvation: the path shows it by a queue, or by loss in 1/256.
const MIN_STARVED_EXCESS_DELAY: Duration = Duration::from_millis(60);
const MIN_STARVED_FRACTION_LOST: u8 = 25;

/// Loss in 1/256 with which a rate that cannot be measured is less than what is needed.
const MIN_STARVED_FRACTION_LOST_IF_UNMEASURED: u8 = 128;

/// Whether the packets of a viewer are numbered: it gives feedback for its video, and has an RTX stream on which its path
/// can be probed.
pub(super) fn uses_transport_cc(playback: &NegotiatedPlayback) -> bool {
    let is_adaptable = |track: &OutgoingTrack| {
        // The first codec is the one that is sent.
        let has_rtx = track.codecs.first().is_some_and(|codec| codec.rtx_pt.is_some());
        track.kind == MediaKind::Video && has_rtx && track.extension_ids.transport_cc.is_some()
    };
    playback.uses_congestion_control && playback.tracks.iter().any(is_adaptable)
}

fn saturate_bitrate_to_u32(bitrate: u64) -> u32 {
    u32::try_from(bitrate).unwrap_or(u32::MAX)
}

/// Whether a selection allows a layer.
fn selection_allows_layer(selection: &LayerSelection, layer: &SimulcastLayer) -> bool {
    match selection {
        LayerSelection::Automatic => true,
        LayerSelection::Named(rid) => layer.rid == *rid,
        LayerSelection::WithinSize { width, height } => {
            layer.resolution.is_some_and(|(w, h)| w <= *width && h <= *height)
        }
    }
}

/// Returns the layer that congestion control chose, if it is available and the selection allows it; otherwise the one that
/// the selection leaves, whatever the path carries. The choice may be older than the selection, or than a change of the
/// layers.
pub(super) fn chosen_layer_unless_outdated(
    selection: &LayerSelection,
    layers: &[SimulcastLayer],
    chosen: Option<&Rid>,
) -> Option<Rid> {
    let holds = |layer: &SimulcastLayer| {
        Some(&layer.rid) == chosen && layer.is_available() && selection_allows_layer(selection, layer)
    };
    let chosen = chosen.filter(|_| layers.iter().any(holds)).cloned();
    chosen.or_else(|| selection.choose_layer_rid(layers))
}

/// The highest of the last five samples, one each second.
#[derive(Clone, Copy, Debug, Default)]
struct PeakBitrate {
    samples: [u32; PEAK_BITRATE_SAMPLE_COUNT],
    next: u8,
    sampled_at: Option<Instant>,
}

const PEAK_BITRATE_SAMPLE_COUNT: usize = 5;
const PEAK_BITRATE_SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

impl PeakBitrate {
    /// Records the present rate in bits per second. Returns the highest.
    fn record(&mut self, now: Instant, bitrate: u64) -> u32 {
        let age = self.sampled_at.map(|at| now.saturating_duration_since(at));
        let bitrate = saturate_bitrate_to_u32(bitrate);
        if age.is_some_and(|age| age >= PEAK_BITRATE_SAMPLE_INTERVAL * PEAK_BITRATE_SAMPLE_COUNT as u32) {
            // Nothing was sent for so long: the source that begins now may be another one.
            self.samples = [0; PEAK_BITRATE_SAMPLE_COUNT];
        }
        if age.is_none_or(|age| age >= PEAK_BITRATE_SAMPLE_INTERVAL) {
            self.sampled_at = Some(now);
            self.next = (self.next + 1) % PEAK_BITRATE_SAMPLE_COUNT as u8;
            self.samples[usize::from(self.next) % PEAK_BITRATE_SAMPLE_COUNT] = bitrate;
        }
        let newest = &mut self.samples[usize::from(self.next) % PEAK_BITRATE_SAMPLE_COUNT];
        *newest = bitrate.max(*newest);
        self.highest()
    }

    fn highest(&self) -> u32 {
        self.samples.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::layer::LayerOrigin;

    #[test]
    fn a_choice_that_is_older_than_a_selection_by_size_does_not_count() {
        let layer = |rid: &str, size: (u16, u16), active| SimulcastLayer {
            rid: Rid(rid.into()),
            resolution: Some(size),
            measured_bitrate: 0,
            active,
            is_carried_by_main_stream: false,
            is_lossy: false,
            origin: LayerOrigin::Pushed,
        };
        let layers = |is_middle_active| {
            [
                layer("h", (1_280, 720), true),
                layer("m", (640, 360), is_middle_active),
                layer("l", (320, 180), true),
            ]
        };
        let within = |width, height| LayerSelection::WithinSize { width, height };
        for (selection, is_middle_active, chosen, wanted) in [
            (within(640, 360), true, Some("l"), "l"),
            (within(640, 360), true, Some("m"), "m"),
            // It was chosen for a larger size, before there was a choice, or from other layers.
            (within(640, 360), true, Some("h"), "m"),
            (within(640, 360), true, None, "m"),
            (within(640, 360), true, Some("gone"), "m"),
            (within(640, 360), false, Some("m"), "l"),
            (within(640, 179), true, Some("m"), "l"),
            (within(1_280, 720), true, Some("m"), "m"),
        ] {
            let chosen = chosen.map(|rid| Rid(rid.into()));
            let found = chosen_layer_unless_outdated(&selection, &layers(is_middle_active), chosen.as_ref());
            assert_eq!(found, Some(Rid(wanted.into())), "{selection:?} {chosen:?}");
        }
    }
}
