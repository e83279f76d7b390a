//! The state machine of a failover group.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::info;

use super::selection::{SourceCondition, SourceSelectionDecision, SourceSelectionInput};
use super::settings::{FailoverSourceSettings, FailoverTimes, SourceLayerSettings};
use super::source::{FailoverSource, SourceCopyStart};
use super::source_layers::SourceLayers;
use super::status::{FailoverSourceState, FailoverSourceStatus, FailoverStatus, SourceSwitch, SwitchReason};
use super::track_copy::TrackCopy;
use crate::hub::Hub;
use crate::hub::failover_input::FailoverInput;
use crate::hub::lock::{LockRank, RankedGuard, RankedMutex};
use crate::hub::name::{SourceName, StreamName};
use crate::hub::packet_batch::{PacketBatchToDeliver, SourceAndTrackProperties};
use crate::hub::ring::RingEntry;
use crate::hub::stream::{SessionId, ShardIndex, SourceRef, Stream};
use crate::media::MediaKind;

/// There is no source of this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the stream has no source {0:?}")]
pub struct UnknownSourceError(pub String);

/// The sources of one stream, and which of them it shows.
#[derive(Debug)]
pub struct FailoverGroup {
    pub stream: StreamName,
    state: RankedMutex<FailoverState>,
}

/// What the shard has to do for a failover group.
#[derive(Default)]
pub struct FailoverOutput {
    /// Packets of the stream that the failover group feeds.
    pub batches: Vec<PacketBatchToDeliver>,
    /// Publishers that should send a key frame.
    pub key_frame_requests: Vec<SourceRef>,
}

impl FailoverOutput {
    pub(super) fn append(&mut self, other: Self) {
        self.batches.extend(other.batches);
        self.key_frame_requests.extend(other.key_frame_requests);
    }
}

#[derive(Debug)]
struct FailoverState {
    stream_name: StreamName,
    times: FailoverTimes,
    sources: Vec<FailoverSource>,
    /// Set if the sources are layers.
    layers: Option<SourceLayers>,
    shown: Option<ShownSource>,
    chosen: Option<usize>,
    is_choice_new: bool,
    /// A switch that waits for a key frame of its source.
    pending: Option<PendingSwitch>,
    next_selection_at: Option<Instant>,
    recent_switches: VecDeque<SourceSwitch>,
    switch_counts: BTreeMap<SwitchReason, u64>,
}

/// The selected source and the copy of its tracks.
#[derive(Debug)]
struct ShownSource {
    index: usize,
    session: SessionId,
    stream: Arc<Stream>,
    video: TrackCopy,
    audio: TrackCopy,
    last_copied_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct PendingSwitch {
    to: usize,
    last_request_at: Option<Instant>,
}

/// Packets of a source that are being delivered.
#[derive(Clone, Copy)]
struct DeliveredSourcePackets<'a> {
    source_index: usize,
    packets: &'a [Arc<RingEntry>],
}

/// How often the sources are looked at.
const SELECTION_INTERVAL: Duration = Duration::from_millis(20);

/// How often a key frame is requested from a source that is to be shown.
const KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// Switches that are remembered.
const MAX_RECENT_SWITCHES: usize = 16;

impl FailoverGroup {
    /// Makes a failover group of these sources, the highest first. They are layers if these have settings. Nothing is shown before one
    /// of them is live.
    pub fn new(
        hub: &Hub,
        stream: StreamName,
        (sources, layers): (Vec<FailoverSourceSettings>, Option<SourceLayerSettings>),
        times: FailoverTimes,
    ) -> Arc<Self> {
        let layers = layers.map(|settings| SourceLayers::new(&stream, settings, &sources));
        let open = |(source_index, settings): (usize, FailoverSourceSettings)| {
            let input = FailoverInput {
                failover_group: stream.clone(),
                source_index,
            };
            let added = input.clone();
            let source_stream = hub.open_and_update_stream(&settings.key, |state| state.add_failover_input(added));
            FailoverSource::new(settings, input, source_stream)
        };
        let state = FailoverState {
            stream_name: stream.clone(),
            times,
            sources: sources.into_iter().enumerate().map(open).collect(),
            layers,
            shown: None,
            chosen: None,
            is_choice_new: false,
            pending: None,
            next_selection_at: None,
            recent_switches: VecDeque::new(),
            switch_counts: BTreeMap::new(),
        };
        Arc::new(Self {
            stream,
            state: RankedMutex::new(LockRank::FailoverGroup, state),
        })
    }

    /// Ends the failover_group: its stream has no source any more. Returns the sources that were connected.
    pub(crate) fn close(&self, hub: &Hub) -> Vec<SourceRef> {
        let mut state = self.lock_state();
        let mut connected = Vec::new();
        for source in std::mem::take(&mut state.sources) {
            connected.extend(source.stream.with_state(|state| state.source()));
            hub.update_stream_and_remove_if_unused(&source.stream, |state| {
                state.remove_from_failover_group(&self.stream)
            });
        }
        state.detach_shown_source(hub);
        if let Some(mut layers) = state.layers.take() {
            layers.end_all_copies(hub);
        }
        connected
    }

    /// Sets the times of the failover group.
    pub fn set_failover_times(&self, times: FailoverTimes) {
        self.lock_state().times = times;
    }

    /// Chooses a source by hand; `None` leaves the selection to the failover group. The choice takes effect at the next key frame of
    /// the source, once that is live.
    ///
    /// # Errors
    ///
    /// [`UnknownSourceError`].
    pub fn choose_source(&self, source: Option<&str>) -> Result<(), UnknownSourceError> {
        let mut state = self.lock_state();
        let index = match source {
            Some(name) => {
                let found = state
                    .sources
                    .iter()
                    .position(|source| source.settings.name.as_str() == name);
                Some(found.ok_or_else(|| UnknownSourceError(name.to_owned()))?)
            }
            None => None,
        };
        state.chosen = index;
        state.is_choice_new = index.is_some();
        state.next_selection_at = None;
        Ok(())
    }

    /// Returns the state of the failover group.
    pub fn status(&self) -> FailoverStatus {
        let state = self.lock_state();
        let shown = state.shown.as_ref().map(|shown| shown.index);
        let sources = state
            .sources
            .iter()
            .enumerate()
            .map(|(index, source)| FailoverSourceStatus {
                name: source.settings.name.clone(),
                state: source.condition.state,
                since: source.state_since,
                is_selected: shown == Some(index),
            });
        FailoverStatus {
            sources: sources.collect(),
            chosen: state.chosen.and_then(|index| state.name_of_source(index)),
            recent_switches: state.recent_switches.iter().cloned().collect(),
            switch_counts: state
                .switch_counts
                .iter()
                .map(|(reason, count)| (*reason, *count))
                .collect(),
        }
    }

    /// Takes a batch of a source: copies it if the source is selected, and selects another source if it is time.
    pub(crate) fn handle_batch(
        &self,
        now: Instant,
        hub: &Hub,
        input: &FailoverInput,
        (batch, source): (&PacketBatchToDeliver, &SourceAndTrackProperties),
    ) -> FailoverOutput {
        let mut state = self.lock_state();
        let mut output = FailoverOutput::default();
        let index = input.source_index;
        // A batch of an earlier failover group of this stream.
        if state
            .sources
            .get(index)
            .is_none_or(|own| own.stream.id != batch.stream_id)
        {
            return output;
        }
        // Before the selection, so that what is shown then has the timeline of the layer.
        state.copy_to_layer(now, hub, index, (&batch.packets, source), &mut output);
        let is_shown = |shown: &ShownSource| shown.index == index && shown.session == source.source.session_id;
        if state.shown.as_ref().is_some_and(is_shown) {
            state.copy_batch(now, &batch.packets, source, &mut output);
        } else if state.shown.as_ref().is_some_and(|shown| shown.index == index) {
            // The same source with another session.
            state.update_source_conditions(now);
            if state.is_live(index) {
                state.switch_to_source(now, hub, (index, SwitchReason::NewSession), &batch.packets, &mut output);
            }
        }
        let is_awaited = state.pending.is_some_and(|pending| pending.to == index);
        let delivered = DeliveredSourcePackets {
            source_index: index,
            packets: &batch.packets,
        };
        if (is_awaited && state.can_start_with_packets(delivered)) || state.next_selection_at.is_none_or(|at| now >= at)
        {
            state.select_source(now, hub, Some(delivered), &mut output);
        }
        output
    }

    /// Selects another source if it is time. To be called every few tens of milliseconds: sources may all be silent.
    pub(crate) fn handle_timeout(&self, now: Instant, hub: &Hub) -> FailoverOutput {
        let mut output = FailoverOutput::default();
        self.lock_state().select_source(now, hub, None, &mut output);
        output
    }

    fn lock_state(&self) -> RankedGuard<'_, FailoverState> {
        self.state.lock()
    }
}

impl FailoverState {
    fn name_of_source(&self, index: usize) -> Option<SourceName> {
        self.sources.get(index).map(|source| source.settings.name.clone())
    }

    fn is_live(&self, index: usize) -> bool {
        let source = self.sources.get(index);
        source.is_some_and(|source| source.condition.state == FailoverSourceState::Live)
    }

    /// Copies packets of the selected source.
    fn copy_batch(
        &mut self,
        now: Instant,
        packets: &[Arc<RingEntry>],
        source: &SourceAndTrackProperties,
        output: &mut FailoverOutput,
    ) {
        let Some(shown) = &mut self.shown else { return };
        let batch = shown.copy_packets(now, (packets, packets), source);
        output.batches.extend(batch);
        let is_requested = source.source.shard == ShardIndex::NO_SHARD
            && shown.stream.with_state(|state| state.take_key_frame_request_flag());
        if is_requested && let Some(own) = self.sources.get(shown.index) {
            // It finds the request in its own stream.
            own.stream
                .with_state(|state| state.flag_key_frame_request_and_get_source());
        }
    }

    fn update_source_conditions(&mut self, now: Instant) {
        for source in &mut self.sources {
            source.update_source_condition(now, self.times.stall_timeout);
        }
    }

    fn select_source(
        &mut self,
        now: Instant,
        hub: &Hub,
        delivered: Option<DeliveredSourcePackets<'_>>,
        output: &mut FailoverOutput,
    ) {
        self.next_selection_at = Some(now + SELECTION_INTERVAL);
        self.update_source_conditions(now);
        match self.decide_source_switch(now) {
            SourceSelectionDecision::Keep => self.pending = None,
            SourceSelectionDecision::SwitchAtOnce { to, reason } if self.can_start_from_cache(to) => {
                let own = delivered.filter(|delivered| delivered.source_index == to);
                self.switch_to_source(now, hub, (to, reason), own.map_or(&[], |own| own.packets), output);
            }
            SourceSelectionDecision::SwitchAtOnce { to, reason }
            | SourceSelectionDecision::SwitchAtKeyFrame { to, reason } => {
                let own = delivered.filter(|own| own.source_index == to && self.can_start_with_packets(*own));
                match own {
                    Some(own) => self.switch_to_source(now, hub, (to, reason), own.packets, output),
                    None => self.schedule_switch_at_key_frame(now, to, output),
                }
            }
            SourceSelectionDecision::Release(reason) => {
                self.record_source_switch(now, None, reason);
                self.detach_shown_source(hub);
            }
        }
        if self.chosen.is_some() && self.chosen == self.shown.as_ref().map(|shown| shown.index) {
            self.is_choice_new = false;
        }
        self.update_source_demands();
        self.update_layers(now, hub);
    }

    fn decide_source_switch(&self, now: Instant) -> SourceSelectionDecision {
        let order = match &self.layers {
            Some(layers) => layers.sources_largest_first().to_vec(),
            None => (0..self.sources.len()).collect(),
        };
        let rank_of = |index: usize| order.iter().position(|other| *other == index);
        let ranked = order.iter().filter_map(|index| self.sources.get(*index));
        let conditions: Vec<SourceCondition> = ranked.map(|source| source.condition).collect();
        let shown = self.shown.as_ref();
        let timeout = self.times.stall_timeout;
        let input = SourceSelectionInput {
            now,
            conditions: &conditions,
            selected: shown.and_then(|shown| rank_of(shown.index)),
            is_selected_silent: shown
                .is_some_and(|shown| now.saturating_duration_since(shown.last_copied_at) >= timeout),
            chosen: self.chosen.and_then(rank_of),
            is_choice_new: self.is_choice_new,
            hold_off: self.times.hold_off,
        };
        input.decide_source_switch().map_ranks_to_sources(&order)
    }

    fn can_start_from_cache(&self, index: usize) -> bool {
        self.sources
            .get(index)
            .is_some_and(FailoverSource::can_start_from_cache)
    }

    fn can_start_with_packets(&self, delivered: DeliveredSourcePackets<'_>) -> bool {
        let source = self.sources.get(delivered.source_index);
        source.is_some_and(|source| source.can_start_with_packets(delivered.packets))
    }

    /// Waits for a key frame of a source, and requests one if it takes requests.
    fn schedule_switch_at_key_frame(&mut self, now: Instant, to: usize, output: &mut FailoverOutput) {
        let before = self.pending.filter(|pending| pending.to == to);
        let mut pending = PendingSwitch {
            to,
            last_request_at: before.and_then(|pending| pending.last_request_at),
        };
        let is_due = |last: Instant| now.saturating_duration_since(last) >= KEY_FRAME_REQUEST_INTERVAL;
        if pending.last_request_at.is_none_or(is_due) {
            pending.last_request_at = Some(now);
            let asked = self.sources.get(to).and_then(|source| {
                source
                    .stream
                    .with_state(|state| state.flag_key_frame_request_and_get_source())
            });
            output.key_frame_requests.extend(asked);
        }
        self.pending = Some(pending);
    }

    /// Shows another source from its newest key frame on. `packets` are those of it that are being delivered.
    fn switch_to_source(
        &mut self,
        now: Instant,
        hub: &Hub,
        (to, reason): (usize, SwitchReason),
        packets: &[Arc<RingEntry>],
        output: &mut FailoverOutput,
    ) {
        let Some(start) = self.sources.get(to).and_then(|source| source.read_copy_start(packets)) else {
            return;
        };
        let SourceCopyStart {
            state: source,
            video,
            audio,
            ..
        } = start;
        let mut copies = None;
        let layers = self.layers.as_ref();
        let aligned_offset = layers.and_then(|layers| layers.timestamp_offset_of_session(to, source.source.session_id));
        let listed = layers.map(|layers| layers.selectable_layers(Some(to)));
        let stream = hub.open_and_update_stream(&self.stream_name, |state| {
            let copy_video = TrackCopy::new(now, &state.video, &video, aligned_offset);
            let mut copy_audio = TrackCopy::new(now, &state.audio, &audio, None);
            copy_audio.skip_packets_up_to(start.skipped_audio_insertions);
            copies = Some((copy_video, copy_audio));
            state.replace_source_by_failover_group(source.source, &start.formats);
            if let Some(layers) = listed {
                state.set_layers(layers);
            }
            if source.source.shard != ShardIndex::NO_SHARD {
                state.expect_media_since(now);
            }
        });
        let Some((copy_video, copy_audio)) = copies else { return };
        let mut shown = ShownSource {
            index: to,
            session: source.source.session_id,
            stream,
            video: copy_video,
            audio: copy_audio,
            last_copied_at: now,
        };
        let cached = (&video.cached_packets[..], &audio.cached_packets[..]);
        output.batches.extend(shown.copy_packets(now, cached, &source));
        self.record_source_switch(now, Some(to), reason);
        self.shown = Some(shown);
        self.pending = None;
    }

    fn record_source_switch(&mut self, now: Instant, to: Option<usize>, reason: SwitchReason) {
        if matches!(reason, SwitchReason::Ended | SwitchReason::Stalled)
            && let Some(failed) = self.shown.as_ref().and_then(|shown| self.sources.get_mut(shown.index))
        {
            failed.condition.has_failed = true;
        }
        let from = self.shown.as_ref().and_then(|shown| self.name_of_source(shown.index));
        let to = to.and_then(|index| self.name_of_source(index));
        let number = self.recent_switches.back().map_or(0, |last| last.number) + 1;
        let show = |name: &Option<SourceName>| name.as_ref().map_or("none".to_owned(), ToString::to_string);
        let why = reason.label();
        info!(stream = %self.stream_name, from = show(&from), to = show(&to), reason = why, "source of the stream switched");
        self.recent_switches.push_back(SourceSwitch {
            number,
            at: now,
            from,
            to,
            reason,
        });
        if self.recent_switches.len() > MAX_RECENT_SWITCHES {
            self.recent_switches.pop_front();
        }
        *self.switch_counts.entry(reason).or_default() += 1;
    }

    fn detach_shown_source(&mut self, hub: &Hub) {
        if let Some(shown) = self.shown.take() {
            hub.update_stream_and_remove_if_unused(&shown.stream, |state| {
                state.detach_source_if_current(shown.session);
            });
        }
        self.pending = None;
    }

    /// Has the sources that run on demand run while no higher one is live, or while they are shown or chosen.
    fn update_source_demands(&mut self) {
        if self.layers.is_some() {
            // Layers run for those who watch them.
            return;
        }
        let shown = self.shown.as_ref().map(|shown| shown.index);
        let highest_live = (0..self.sources.len()).find(|index| self.is_live(*index));
        let pending = self.pending.map(|pending| pending.to);
        for (index, source) in self.sources.iter_mut().enumerate() {
            let is_in_use = [shown, pending, self.chosen].contains(&Some(index));
            source.set_source_demand(is_in_use || highest_live.is_none_or(|live| live >= index));
        }
    }
}

impl ShownSource {
    /// Copies packets of the video and the audio of the source.
    fn copy_packets(
        &mut self,
        now: Instant,
        (video, audio): (&[Arc<RingEntry>], &[Arc<RingEntry>]),
        source: &SourceAndTrackProperties,
    ) -> Option<PacketBatchToDeliver> {
        self.last_copied_at = now;
        let (stream, session) = (self.stream.clone(), self.session);
        stream.with_state(|state| {
            if !state.is_source_session(session) {
                return None;
            }
            state.update_source_if_current(source.source);
            state.responds_to_key_frame_requests = source.responds_to_key_frame_requests;
            let mut packets = Vec::new();
            self.video
                .copy_packets_and_properties(state.track(MediaKind::Video), video, &source.video, &mut packets);
            self.audio
                .copy_packets_and_properties(state.track(MediaKind::Audio), audio, &source.audio, &mut packets);
            PacketBatchToDeliver::new(&stream, state, packets)
        })
    }
}

mod layering;
