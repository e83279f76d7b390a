//! Adaptation of a viewer to its path: feedback goes to the congestion control, and what that decides is done.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Viewer, ViewerTrack};
use crate::congestion::allocator::LayerSwitchTarget;
use crate::congestion::ladder::{FrameSelection, QualityLadder};
use crate::congestion::sent::FlushTimes;
use crate::congestion::{ControllerAction, PacketPurpose, QualityLimitationReason, ReceiverReportSummary};
use crate::hub::name::StreamVariant;
use crate::hub::ring::RingEntry;
use crate::hub::stream::{LayerSelection, SimulcastLayer, StreamId, StreamState};
use crate::hub::viewer_quality::{ViewerDelays, ViewerQuality};
use crate::media::Rid;
use crate::media::rtcp::{self, ReportBlock};
use crate::outputs::adaptation::{BurstRate, QualityLadderInputs, chosen_layer_unless_outdated};
use crate::outputs::transport_cc_egress::TransportCcEgress;
use crate::outputs::viewer_track::{AdaptiveSwitchOptions, has_short_key_frame_interval};
use crate::session::egress::Egress;

/// Feedback packets of one datagram that are read, and packets that one may cover: 40 bytes may claim 65,535. Twenty
/// feedback packets per second cover 2,048 packets each at 400 Mbit/s.
const MAX_FEEDBACKS_PER_DATAGRAM: usize = 4;
const MAX_PACKET_STATUS_COUNT: u16 = 2_048;

/// Actions of one call: a probe and a switch, with some to spare.
const MAX_CONTROLLER_ACTIONS_PER_CALL: usize = 8;

/// How often a viewer checks for a source, which its first key frame shows too, and for the layers of one that has not all of them.
const SOURCE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
const LAYER_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The queue of a TCP connection is read under a lock of all connections.
const TCP_QUEUE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A source with a longer key frame interval is not watched by its key frames alone.
const MAX_KEY_FRAME_INTERVAL_FOR_KEY_FRAMES_ONLY: Duration = Duration::from_secs(10);

/// Where frames to which others refer have more than this share of the bitrate, in percent, leaving out the rest does not
/// help.
const MAX_REFERENCE_FRAME_PERCENT: u64 = 85;

impl Viewer {
    /// Handles the transport-wide feedback of a compound RTCP packet.
    pub fn handle_transport_feedback(&mut self, now: Instant, compound: &[u8], flush_times: &FlushTimes) {
        if !self.adaptation.uses_transport_cc {
            return;
        }
        let is_plausible =
            |body: &&[u8]| packet_status_count(body).is_some_and(|count| count <= MAX_PACKET_STATUS_COUNT);
        let bodies = rtcp::transport_feedback_bodies(compound).take(MAX_FEEDBACKS_PER_DATAGRAM);
        for body in bodies.filter(is_plausible) {
            if !self.adaptation.feedback_limiter.take_feedback_credit(now) {
                break;
            }
            self.pending_work.adapt |= self.adaptation.controller.on_twcc_feedback(now, body, flush_times);
        }
    }

    /// Whether [`Self::handle_tcp_queue_delay`] should be called for a viewer who is connected by TCP: not at each timer.
    pub fn start_tcp_queue_check_if_due(&mut self, now: Instant) -> bool {
        let is_due = self.adaptation.is_enabled && self.tcp_queue_check_at.is_none_or(|at| at <= now);
        if is_due {
            self.tcp_queue_check_at = Some(now + TCP_QUEUE_CHECK_INTERVAL);
        }
        is_due
    }

    /// Handles how long what waits in the viewer's TCP connection has waited.
    pub fn handle_tcp_queue_delay(&mut self, now: Instant, queued: Duration) {
        if self.adaptation.is_enabled {
            self.adaptation.controller.on_tcp_queue_delay(now, queued);
            self.pending_work.adapt = true;
        }
    }

    /// Evaluates what the viewer reports of its video.
    pub(super) fn evaluate_report_blocks(&mut self, now: Instant, blocks: &[ReportBlock]) {
        let Some(video) = &mut self.video else { return };
        let track = &mut video.track_sender;
        let ssrc = track.ssrc();
        for block in blocks.iter().filter(|block| block.media_ssrc == ssrc) {
            let report = ReceiverReportSummary {
                fraction_lost: block.fraction_lost,
                publisher_fraction_lost: track.take_publisher_fraction_lost(),
                rtt: self.reported.rtt.filter(|_| block.last_sr != 0),
            };
            self.reported.fraction_lost = Some(block.fraction_lost);
            self.adaptation.controller.on_receiver_report(now, report);
            self.pending_work.adapt = true;
        }
    }

    /// Returns the layer that the viewer should watch; `None` for the stream itself.
    pub(super) fn wanted_layer(&self, layers: &[SimulcastLayer]) -> Option<Rid> {
        let layers = &*self.playable_layers(layers);
        let Some(choice) = self.adaptation.restricting_layer_choice() else {
            // The best layer would be pulled for a moment, before the first choice.
            let is_undecided = self.adaptation.uses_transport_cc && self.layer_selection == LayerSelection::Automatic;
            return self.layer_selection.choose_layer_rid(layers).filter(|_| !is_undecided);
        };
        match &self.layer_selection {
            LayerSelection::Automatic => self.adaptation.chosen_layer_unless_in_main_stream(layers),
            LayerSelection::Named(_) => self.layer_selection.choose_layer_rid(layers),
            LayerSelection::WithinSize { .. } => {
                let chosen = self.adaptation.rid_of_layer(choice.layer);
                chosen_layer_unless_outdated(&self.layer_selection, layers, chosen)
            }
        }
    }

    /// Returns the layers that the viewer can decode.
    fn playable_layers<'l>(&self, layers: &'l [SimulcastLayer]) -> Cow<'l, [SimulcastLayer]> {
        let is_playable = |layer: &&SimulcastLayer| self.video.as_ref().is_none_or(|video| video.can_play_layer(layer));
        if layers.iter().all(|layer| is_playable(&layer)) {
            Cow::Borrowed(layers)
        } else {
            Cow::Owned(layers.iter().filter(is_playable).cloned().collect())
        }
    }

    /// Chooses what the viewer starts with. Returns whether that is a layer of its own.
    pub(super) fn choose_initial_stream(&mut self, now: Instant) -> bool {
        let is_layer = self.choose_initial_layer(now);
        self.begin_with_selected_layer(now) || is_layer
    }

    /// A viewer that selected a layer before it was sent anything begins with that.
    pub(super) fn begin_with_selected_layer(&mut self, now: Instant) -> bool {
        let is_selected = self.playback_started && self.layer_selection != LayerSelection::Automatic;
        let video = self.video.as_mut().filter(|_| is_selected);
        video.is_some_and(|video| video.begin_with_pending_layer(now))
    }

    /// Has congestion control choose what the viewer starts with. Returns whether that is a layer of its own.
    fn choose_initial_layer(&mut self, now: Instant) -> bool {
        if !self.adaptation.is_enabled {
            return false;
        }
        self.pending_work.adapt = true;
        let Ok(ladder) = self.get_or_build_quality_ladder(now) else {
            let holds = self.adaptation.uses_transport_cc && self.video.is_some();
            self.adaptation.awaits_first_choice = holds;
            return holds;
        };
        if let Some(ControllerAction::Switch(switch)) = self.adaptation.controller.poll(now, &ladder) {
            self.begin_layer_switch(switch);
        }
        self.pace_bursts(now);
        let layer = self
            .stream
            .clone()
            .with_state(|state| self.wanted_layer(state.layers()));
        layer.is_some() && self.adaptation.uses_transport_cc && self.video.is_some()
    }

    /// Does what congestion control decides.
    pub(super) fn run_congestion_controller(&mut self, now: Instant, egress: &mut Egress<'_>) {
        if !self.playback_started || !self.adaptation.is_enabled {
            return;
        }
        self.notify_controller_once_layer_switched(now);
        let ladder = match self.get_or_build_quality_ladder(now) {
            Ok(ladder) => ladder,
            Err(interval) => {
                self.adaptation_due_at = Some(now + interval);
                self.adaptation.lacks_ladder = true;
                return;
            }
        };
        self.adaptation.lacks_ladder = false;
        if self.adaptation.awaits_first_choice {
            self.set_initial_layer_switch_options();
        }
        for _ in 0..MAX_CONTROLLER_ACTIONS_PER_CALL {
            match self.adaptation.controller.poll(now, &ladder) {
                Some(ControllerAction::Switch(switch)) => {
                    self.begin_layer_switch(switch);
                    break;
                }
                Some(ControllerAction::SendProbe { bytes }) => self.send_probe(now, bytes, egress),
                Some(ControllerAction::ReportQuality(quality)) => {
                    self.adaptation.limitation_reason = quality.limitation_reason;
                    self.pending_work.report_quality = true;
                }
                None => break,
            }
        }
        self.adaptation_due_at = self.adaptation.controller.poll_timeout(now);
        self.pace_bursts(now);
    }

    /// Has a burst begin at some multiple of the layer's rate, and grow faster while all of it arrives.
    pub(super) fn pace_bursts(&mut self, now: Instant) {
        let adaptation = &mut self.adaptation;
        let Some(video) = self.video.as_mut().filter(|_| adaptation.uses_transport_cc) else {
            return;
        };
        let is_sent = video.track_sender.is_sending_burst();
        let next = match adaptation.burst.filter(|_| is_sent) {
            Some(burst) => burst.next(now, &adaptation.controller),
            None => Some(BurstRate::initial(now, &adaptation.controller)),
        };
        if let Some(burst) = next {
            video
                .track_sender
                .set_paced_burst_byte_rate(burst.bitrate_without_retransmission_share() / 8);
            if is_sent && adaptation.burst.is_some() {
                let track = &mut video.track_sender;
                video
                    .current_stream
                    .with_state(|state| track.reschedule_burst(now, state.video.ring()));
            }
        }
        adaptation.burst = next.or(adaptation.burst).filter(|_| is_sent);
        let bitrate = adaptation.burst.map(|burst| burst.bitrate);
        adaptation.controller.set_burst_bitrate(bitrate);
    }

    /// Whether video of the stream itself, of which these packets have arrived, waits until a layer is chosen.
    pub(super) fn hold_video_if_layer_unchosen(
        &mut self,
        now: Instant,
        stream: StreamId,
        packets: &[Arc<RingEntry>],
    ) -> bool {
        let Some(video) = self.video.as_mut().filter(|_| self.adaptation.uses_transport_cc) else {
            return false;
        };
        if self.stream.id != stream || video.current_stream.id != stream {
            return false;
        }
        let has_key_frame = packets.iter().any(|entry| entry.packet.identifies_key_frame);
        // The pace is that of the new source, not of the one before it.
        self.pending_work.adapt |= has_key_frame && self.adaptation.lacks_ladder;
        if has_key_frame
            && self
                .adaptation
                .must_hold_key_frame_until_layer_chosen(now, &self.layer_selection, &self.stream)
        {
            video.track_sender.stop_until_any_key_frame();
            self.adaptation.awaits_first_choice = true;
            self.pending_work.adapt = true;
        }
        self.adaptation.awaits_first_choice
    }

    /// The layers are there: what is chosen begins as at the start.
    fn set_initial_layer_switch_options(&mut self) {
        if let Some(video) = &mut self.video {
            video.set_options_of_next_switch(AdaptiveSwitchOptions {
                is_start: true,
                is_step_down: false,
                received_bitrate: 0,
                stops_current: true,
            });
        }
        self.adaptation.awaits_first_choice = false;
        self.schedule_stream_reselection();
    }

    fn begin_layer_switch(&mut self, switch: LayerSwitchTarget) {
        let before = self.adaptation.latest_layer_choice();
        self.adaptation.record_layer_choice(switch);
        let is_pinned = matches!(self.layer_selection, LayerSelection::Named(_));
        if let Some(video) = self.video.as_mut().filter(|_| !is_pinned) {
            video.set_options_of_next_switch(AdaptiveSwitchOptions {
                is_start: false,
                is_step_down: before.is_some_and(|before| switch.layer < before.layer),
                received_bitrate: self.adaptation.controller.received_bitrate().unwrap_or(0),
                stops_current: switch.stops_old_layer_at_once,
            });
        }
        self.schedule_stream_reselection();
        self.pending_work.adapt = true;
    }

    /// Tells the congestion control when its choice is being sent.
    fn notify_controller_once_layer_switched(&mut self, now: Instant) {
        let Some(choice) = self.adaptation.pending_layer_choice() else {
            return;
        };
        if let Some(video) = &mut self.video {
            if video.has_pending_switch() {
                return;
            }
            let ViewerTrack {
                track_sender: track,
                current_stream: from,
                ..
            } = video;
            let needs_key_frame = from.with_state(|state| {
                let is_watched = track.frame_selection() >= FrameSelection::ReferenceFrames;
                let needs_key_frame = track.change_frame_selection(choice.frames, state.video.ring());
                // What is watched meanwhile goes on: a request would cost all other viewers one more key frame.
                needs_key_frame && !(is_watched && has_short_key_frame_interval(state))
            });
            self.pending_work.request_key_frame |= needs_key_frame;
            if track.frame_selection() != choice.frames || track.should_request_key_frame() {
                return;
            }
        }
        self.adaptation.on_layer_choice_begun(now);
    }

    /// Sends recent packets once more, on the RTX stream.
    fn send_probe(&mut self, now: Instant, bytes: u32, egress: &mut Egress<'_>) {
        let (Some(video), Some(rtp)) = (&mut self.video, egress.rtp_egress()) else {
            return;
        };
        let mut rtp = TransportCcEgress::new(rtp, Some(&mut self.adaptation.controller), now);
        let ViewerTrack {
            track_sender: track,
            current_stream: from,
            ..
        } = video;
        let recent = from.with_state(|state| track.select_probe_packets(bytes, state.video.ring()));
        self.reported.probe_packet_count += recent.len() as u64;
        for packet in recent {
            self.pending_work.close_session |= track.retransmit(&packet, &mut rtp, PacketPurpose::Probe).is_err();
        }
    }

    /// Returns what the viewer's path is shown to carry, in bits per second; `None` without feedback, and while that changes.
    pub fn proven_path_bitrate(&self, now: Instant) -> Option<u32> {
        self.adaptation.proven_path_bitrate(now)
    }

    /// What the viewer is sent.
    pub(super) fn quality_report(&self, now: Instant) -> ViewerQuality {
        let controller = &self.adaptation.controller;
        let has_feedback = controller.is_twcc_feedback_usable(now);
        let received_bitrate = controller.received_bitrate().filter(|_| has_feedback);
        let best = |state: &mut StreamState| {
            let is_carried = |layer: &&SimulcastLayer| !layer.is_pulled() || layer.is_carried_by_main_stream;
            let mut layers = state.layers().iter().filter(is_carried);
            layers.find(|layer| layer.active).map(|layer| layer.rid.clone())
        };
        let layer = self
            .video
            .as_ref()
            .and_then(|video| match &video.current_stream.key.variant {
                StreamVariant::SimulcastLayer(rid) => Some(rid.clone()),
                StreamVariant::Original => self.stream.with_state(best),
                StreamVariant::FailoverSource(_) | StreamVariant::Transcoded(_) | StreamVariant::BackChannel => None,
            });
        ViewerQuality {
            layer,
            frames: self
                .video
                .as_ref()
                .map_or(FrameSelection::AudioOnly, |video| video.track_sender.frame_selection()),
            limitation_reason: self.limitation_reason(),
            gives_transport_feedback: received_bitrate.is_some(),
            received_bitrate,
            queue_delay: received_bitrate.map(|_| controller.excess_delay()),
            fraction_lost: controller
                .loss_per_256()
                .filter(|_| has_feedback)
                .or(self.reported.fraction_lost),
            rtt: self.reported.rtt,
            retransmitted_packet_count: self.reported.retransmitted_packet_count,
            probe_packet_count: self.reported.probe_packet_count,
            delays: self.measured_delays(now),
        }
    }

    /// Returns half of the round-trip time, but all of what waits on the way to the viewer, where that is known.
    fn delay_to_viewer(&self, rtt: Duration) -> Duration {
        let controller = &self.adaptation.controller;
        let queued = controller.received_bitrate().map(|_| controller.excess_delay());
        let queued = queued.unwrap_or_default().min(rtt);
        (rtt - queued) / 2 + queued
    }

    /// Returns the delays of the video, or of the audio if no video is sent.
    fn measured_delays(&self, now: Instant) -> ViewerDelays {
        let mut played = [&self.video, &self.audio].into_iter().flatten();
        let (capture_to_gateway, gateway) = played.find_map(|track| track.recent_delays(now)).unzip();
        ViewerDelays {
            capture_to_gateway: capture_to_gateway.flatten(),
            gateway,
            network: self.reported.rtt.map(|rtt| self.delay_to_viewer(rtt)),
        }
    }

    /// Why the viewer is not sent the best layer.
    fn limitation_reason(&self) -> QualityLimitationReason {
        let reason = self.adaptation.limitation_reason;
        let is_automatic = !matches!(self.layer_selection, LayerSelection::Named(_));
        let video = self.video.as_ref().filter(|video| !video.is_target_transcoded());
        let Some(video) = video.filter(|_| is_automatic && reason == QualityLimitationReason::None) else {
            return reason;
        };
        let lacks_codec = self.stream.with_state(|state| {
            let best = state.layers().iter().find(|layer| layer.is_available());
            best.is_some_and(|best| !video.can_play_layer(best))
        });
        match lacks_codec {
            true => QualityLimitationReason::Codec,
            false => reason,
        }
    }

    /// Returns what the viewer can be sent.
    ///
    /// # Errors
    ///
    /// That is not known, and has to be checked again after this time.
    fn get_or_build_quality_ladder(&mut self, now: Instant) -> Result<QualityLadder, Duration> {
        if let Some(ladder) = self.adaptation.cached_quality_ladder(now) {
            return Ok(ladder);
        }
        let has_audio = self.audio.is_some();
        let selection = self.layer_selection.clone();
        let uses_transport_cc = self.adaptation.uses_transport_cc;
        let inputs = self.stream.with_state(move |state| {
            if uses_transport_cc && state.source().is_none() {
                return Err(SOURCE_CHECK_INTERVAL);
            }
            if uses_transport_cc && state.may_more_layers_appear(now) {
                // The first key frame ends the wait for it.
                let has_key_frame = state.video.first_key_frame_arrival().is_some();
                return Err(if has_key_frame {
                    LAYER_CHECK_INTERVAL
                } else {
                    SOURCE_CHECK_INTERVAL
                });
            }
            Ok(QualityLadderInputs {
                layers: state.layers().to_vec(),
                selection,
                video_bitrate: state.video.rate_meter().current_rate(now).bitrate,
                audio_bitrate: state.audio.rate_meter().current_rate(now).bitrate,
                has_audio: has_audio && state.audio.format().is_some(),
                key_frame_bitrate: None,
                reference_frame_bitrate: None,
            })
        });
        let mut inputs = inputs?;
        if let Some(video) = &self.video {
            inputs.layers.retain(|layer| video.can_play_layer(layer));
        }
        if let Some(video) = self.video.as_ref().filter(|video| video.is_target_transcoded()) {
            // It has one quality, whatever layers it is made from.
            inputs.layers.clear();
            inputs.video_bitrate = video
                .current_stream
                .with_state(move |state| state.video.rate_meter().current_rate(now).bitrate);
        }
        if let (Some(video), true) = (&self.video, self.adaptation.uses_transport_cc) {
            (inputs.key_frame_bitrate, inputs.reference_frame_bitrate) = video
                .current_stream
                .with_state(move |state| (key_frame_bitrate(state), reference_frame_bitrate(now, state)));
        }
        let ladder = self.adaptation.update_layers_and_build_quality_ladder(now, &inputs);
        self.adaptation.ladder_cache.put(now, ladder);
        Ok(ladder)
    }
}

/// Returns how many packets a feedback packet covers.
fn packet_status_count(body: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*body.get(10..12)?.first_chunk()?))
}

/// Payload bits per second of the key frames of a stream that sends them regularly.
fn key_frame_bitrate(state: &StreamState) -> Option<u32> {
    let interval = state
        .video
        .key_frame_interval()
        .filter(|interval| *interval <= MAX_KEY_FRAME_INTERVAL_FOR_KEY_FRAMES_ONLY)?;
    let ring = state.video.ring();
    let bytes = ring.frame_byte_count(ring.newest_key_frame_seq()?) as u64;
    u32::try_from(bytes * 8_000 / u64::try_from(interval.as_millis()).ok()?.max(1)).ok()
}

/// Returns the payload bits per second of the frames to which others refer; `None` where leaving out the rest does not help.
fn reference_frame_bitrate(now: Instant, state: &StreamState) -> Option<u32> {
    let rate = state.video.rate_meter().current_rate(now);
    let bitrate = rate.mean_bitrate.saturating_sub(rate.mean_non_reference_bitrate);
    let helps = bitrate * 100 <= rate.mean_bitrate * MAX_REFERENCE_FRAME_PERCENT && bitrate > 0;
    u32::try_from(bitrate).ok().filter(|_| helps)
}
