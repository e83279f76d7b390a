//! The part of a failover group that concerns sources which are layers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{FailoverOutput, FailoverState};
use crate::hub::Hub;
use crate::hub::packet_batch::SourceAndTrackProperties;
use crate::hub::ring::RingEntry;
use crate::media::clock::{TrackClock, ticks_to_duration};

/// Sender reports of two sources that differ from their arrivals by more are not believed.
const MAX_REPORT_DEVIATION_FROM_ARRIVAL: Duration = Duration::from_secs(2);

impl FailoverState {
    /// Copies packets of a source to the stream of its layer.
    pub(super) fn copy_to_layer(
        &mut self,
        now: Instant,
        hub: &Hub,
        index: usize,
        (packets, source): (&[Arc<RingEntry>], &SourceAndTrackProperties),
        output: &mut FailoverOutput,
    ) {
        let Some(layers) = &mut self.layers else { return };
        if layers.is_copying(index, source.source.session_id) {
            output
                .batches
                .extend(layers.copy_packets_to_layer(index, packets, source));
            return;
        }
        let start = self.sources.get(index).and_then(|own| own.read_copy_start(packets));
        let Some(start) = start.filter(|start| !start.video.cached_packets.is_empty()) else {
            return;
        };
        let offset = self.layer_timestamp_offset(now, index, &start.video.clock);
        if let (Some(offset), Some(layers)) = (offset, &mut self.layers) {
            output.batches.extend(layers.begin_copy(hub, index, &start, offset));
        }
    }

    /// Returns what has to be added to the timestamps of a source, of which this is the clock, so that they are those of the
    /// stream itself. `None` as long as that has none.
    fn layer_timestamp_offset(&self, now: Instant, index: usize, clock: &TrackClock) -> Option<u64> {
        let shown = self.shown.as_ref()?;
        let shown_offset = shown.video.timestamp_offset();
        if shown.index == index {
            return shown_offset;
        }
        let other = self
            .layers
            .as_ref()
            .and_then(|layers| layers.other_copied_source_and_offset(index));
        let (reference, offset) = match other {
            Some(other) => other,
            None => (shown.index, shown_offset?),
        };
        let reference = self.sources.get(reference)?;
        let reference_clock = reference.stream.with_state(|state| *state.video.clock());
        Some(offset.wrapping_add(clock_difference(now, &reference_clock, clock)?))
    }

    /// Has those layers run that are needed, and tells the viewers of the stream what they can choose from.
    pub(super) fn update_layers(&mut self, now: Instant, hub: &Hub) {
        let hold_off = self.times.hold_off;
        let Some(layers) = &mut self.layers else { return };
        if !layers.update_layers_and_demands(now, hub, &mut self.sources, hold_off) {
            return;
        }
        let Some(shown) = &self.shown else { return };
        let (session, listed) = (shown.session, layers.selectable_layers(Some(shown.index)));
        shown.stream.with_state(|state| {
            if state.is_source_session(session) {
                state.set_layers(listed);
            }
        });
    }
}

/// Returns by how much the timestamps of a clock are ahead of those of another one at the same moment, wrapping: of capture
/// by the sender reports if both have them and the arrivals agree, or else of arrival.
fn clock_difference(now: Instant, reference: &TrackClock, other: &TrackClock) -> Option<u64> {
    let difference =
        |time: fn(&TrackClock, Instant) -> Option<u64>| Some(time(reference, now)?.wrapping_sub(time(other, now)?));
    let by_arrival = difference(TrackClock::track_time_for_arrival_at);
    let by_report = difference(TrackClock::reported_track_time_at);
    let (Some(arrival), Some(report)) = (by_arrival, by_report) else {
        return by_arrival;
    };
    let deviation = (report.wrapping_sub(arrival) as i64).unsigned_abs();
    let is_believable = ticks_to_duration(deviation, reference.clock_rate()) <= MAX_REPORT_DEVIATION_FROM_ARRIVAL;
    Some(if is_believable { report } else { arrival })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const CLOCK_RATE_HZ: u32 = 90_000;

    /// A clock at `time` with packets that arrive now, and a report that `time` was captured `age` ago.
    fn clock(now: Instant, time: u64, age: Option<Duration>) -> TrackClock {
        let mut clock = TrackClock::new(CLOCK_RATE_HZ);
        clock.on_packet(time, now);
        if let Some(age) = age {
            clock.on_sender_report(time, now - age, Duration::ZERO);
        }
        clock
    }

    #[test]
    fn layers_are_aligned_by_capture_where_both_report_it_and_else_by_arrival() {
        let now = Instant::now() + Duration::from_secs(1_000);
        let millis = Duration::from_millis;
        let reference = clock(now, 1_000_000, Some(millis(100)));
        let late = clock(now, 5_000, Some(millis(300)));
        let by_report = clock_difference(now, &reference, &late).expect("both have a clock");
        // What is captured at one moment arrives 200 ms later: its timestamps are those of then.
        assert_eq!(by_report, 995_000_u64.wrapping_sub(18_000));
        let silent = clock(now, 5_000, None);
        assert_eq!(clock_difference(now, &reference, &silent), Some(995_000));
        let wrong = clock(now, 5_000, Some(Duration::from_secs(400)));
        assert_eq!(clock_difference(now, &reference, &wrong), Some(995_000), "nonsense");
        assert_eq!(clock_difference(now, &reference, &TrackClock::new(CLOCK_RATE_HZ)), None);
    }
}
