//! How long a viewer should hold frames before it shows them, so that lost packets arrive in time when they are sent once
//! more: the header extension `playout-delay` of libwebrtc.
//!
//! A receiver that is sent no retransmissions shows frames as soon as it can. While packets are lost and sent once more, the
//! least delay is as many round trips as the retransmissions take, and a margin. Ten seconds after the last one it is zero
//! again. The extension is in the packets of a few frames after each change, and in retransmissions: a receiver keeps the
//! last values. Nothing here needs a timer.

use std::time::{Duration, Instant};

use crate::media::packet::TrackTime;
use crate::session::outbox::PlayoutDelay;

/// Playout delay of one viewer.
pub(crate) struct PlayoutDelayControl {
    extension_id: u8,
    /// Least delay, in units of 10 ms.
    min_delay: u16,
    /// When the viewer was last sent lost packets, the newest last.
    recent_losses: [Option<Instant>; LOSSES_TO_RAISE_PLAYOUT_DELAY],
    /// Start of the present interval of [`LOSS_HISTORY_DURATION`], and the longest delay that was needed in it.
    interval: Option<(Instant, u16)>,
    /// Frames that will carry the values.
    frames_to_mark: u8,
    /// The viewer was told a delay: the end of it is told too.
    is_announced: bool,
    /// The frame whose packets are being sent, and whether they carry the values.
    current_frame: Option<(TrackTime, bool)>,
}

/// A viewer that had no loss for this long shows frames as soon as it can.
const LOSS_HISTORY_DURATION: Duration = Duration::from_secs(10);

/// Requests within [`LOSS_HISTORY_DURATION`] with which the delay begins: a packet that is lost now and then is not worth it.
const LOSSES_TO_RAISE_PLAYOUT_DELAY: usize = 3;

/// From the loss of a packet until it is requested, and from its retransmission until the frame is decoded: a frame interval
/// and some processing.
const PLAYOUT_DELAY_MARGIN: Duration = Duration::from_millis(50);

/// Longest delay that is asked for.
const MAX_MIN_PLAYOUT_DELAY: Duration = Duration::from_millis(300);

/// Frames that carry new values. Retransmissions of their packets carry them too.
const FRAMES_CARRYING_NEW_PLAYOUT_DELAY: u8 = 8;

/// A change by less than this, in units of 10 ms, is not worth it: players adapt slowly, and audibly.
const MIN_DELAY_CHANGE_IN_10MS: u16 = 2;

impl PlayoutDelayControl {
    pub(crate) fn new(extension_id: u8) -> Self {
        Self {
            extension_id,
            min_delay: 0,
            recent_losses: [None; LOSSES_TO_RAISE_PLAYOUT_DELAY],
            interval: None,
            frames_to_mark: 0,
            is_announced: false,
            current_frame: None,
        }
    }

    /// The viewer is sent lost packets once more. `round_trips` is how often it had to request one of them: 1 or 2.
    pub(crate) fn on_retransmission(&mut self, now: Instant, rtt: Duration, round_trips: u8) {
        self.reset_playout_delay_if_no_loss(now);
        self.recent_losses.rotate_left(1);
        if let Some(newest) = self.recent_losses.last_mut() {
            *newest = Some(now);
        }
        let needed = (rtt * u32::from(round_trips) + PLAYOUT_DELAY_MARGIN).min(MAX_MIN_PLAYOUT_DELAY);
        let needed = u16::try_from(needed.as_millis().div_ceil(10)).unwrap_or(u16::MAX);
        let is_in_interval = |start: Instant| now.saturating_duration_since(start) < LOSS_HISTORY_DURATION;
        let target = match &mut self.interval {
            Some((start, peak)) if is_in_interval(*start) => {
                *peak = needed.max(*peak);
                self.min_delay.max(*peak)
            }
            Some((start, peak)) => {
                let longest = needed.max(*peak);
                (*start, *peak) = (now, needed);
                longest
            }
            None => {
                self.interval = Some((now, needed));
                needed
            }
        };
        let is_frequent = self.recent_losses.iter().all(|at| at.is_some_and(is_in_interval));
        if is_frequent && target.abs_diff(self.min_delay) >= MIN_DELAY_CHANGE_IN_10MS {
            self.change_min_delay(target);
        }
    }

    /// Returns the values for a packet of a frame that is sent for the first time; `None` if it carries none.
    pub(crate) fn playout_delay_for_new_packet(&mut self, now: Instant, frame: TrackTime) -> Option<PlayoutDelay> {
        self.reset_playout_delay_if_no_loss(now);
        let is_marked = match self.current_frame {
            Some((time, is_marked)) if time == frame => is_marked,
            _ => {
                let is_marked = self.frames_to_mark > 0;
                self.frames_to_mark = self.frames_to_mark.saturating_sub(1);
                self.current_frame = Some((frame, is_marked));
                is_marked
            }
        };
        is_marked.then(|| self.current_playout_delay())
    }

    /// Returns the values for a retransmission.
    pub(crate) fn playout_delay_for_retransmission(&self) -> Option<PlayoutDelay> {
        self.is_announced.then(|| self.current_playout_delay())
    }

    fn current_playout_delay(&self) -> PlayoutDelay {
        PlayoutDelay {
            extension_id: self.extension_id,
            min_delay: self.min_delay,
        }
    }

    fn reset_playout_delay_if_no_loss(&mut self, now: Instant) {
        let newest = self.recent_losses.last().copied().flatten();
        if newest.is_some_and(|at| now.saturating_duration_since(at) >= LOSS_HISTORY_DURATION) {
            self.recent_losses = [None; LOSSES_TO_RAISE_PLAYOUT_DELAY];
            self.interval = None;
            if self.min_delay > 0 {
                self.change_min_delay(0);
            }
        }
    }

    fn change_min_delay(&mut self, min_delay: u16) {
        self.min_delay = min_delay;
        self.frames_to_mark = FRAMES_CARRYING_NEW_PLAYOUT_DELAY;
        self.is_announced = true;
        self.current_frame = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const RTT: Duration = Duration::from_millis(100);

    struct Viewer {
        control: PlayoutDelayControl,
        start: Instant,
    }

    impl Viewer {
        fn new() -> Self {
            #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
            let start = Instant::now();
            Self {
                control: PlayoutDelayControl::new(5),
                start,
            }
        }

        fn lose(&mut self, at: u32, rtt: Duration, round_trips: u8) {
            self.control.on_retransmission(self.start + at * MS, rtt, round_trips);
        }

        /// The delay that the packets of a frame carry, in milliseconds.
        fn sent(&mut self, at: u32) -> Option<u16> {
            let values = self
                .control
                .playout_delay_for_new_packet(self.start + at * MS, u64::from(at));
            values.map(|values| values.min_delay * 10)
        }
    }

    #[test]
    fn nothing_is_sent_without_loss_or_with_little_of_it() {
        let mut viewer = Viewer::new();
        assert!((0..100).all(|frame| viewer.sent(frame * 40).is_none()));
        for at in [5_000, 11_000, 17_000, 40_000] {
            viewer.lose(at, RTT, 1);
            assert_eq!(viewer.sent(at + 1), None);
            assert_eq!(viewer.control.playout_delay_for_retransmission(), None);
        }
    }

    #[test]
    fn eight_frames_carry_a_change_and_retransmissions_carry_the_values() {
        let mut viewer = Viewer::new();
        (0..3).for_each(|loss| viewer.lose(loss * 100, RTT, 1));
        let marked: Vec<Option<u16>> = (0..20).map(|frame| viewer.sent(1_000 + frame * 40)).collect();
        assert!(marked[..8].iter().all(|delay| *delay == Some(150)), "{marked:?}");
        assert!(marked[8..].iter().all(Option::is_none), "{marked:?}");
        assert_eq!(
            viewer
                .control
                .playout_delay_for_retransmission()
                .map(|values| values.min_delay),
            Some(15)
        );
        // All packets of a frame, also of one that began before the change.
        let frame = 2_000;
        assert_eq!(viewer.sent(frame), None);
        viewer.lose(frame, RTT, 2);
        assert_eq!([viewer.sent(frame), viewer.sent(frame)], [Some(250), Some(250)]);
    }

    #[test]
    fn the_delay_is_bounded_and_ends_ten_seconds_after_the_last_loss() {
        let mut viewer = Viewer::new();
        (0..3).for_each(|loss| viewer.lose(loss, 9 * RTT, 2));
        assert_eq!(viewer.sent(10), Some(300));
        (1..20).for_each(|frame| assert_ne!(viewer.sent(10 + frame * 40), Some(0)));
        assert_eq!(viewer.sent(10_001), None);
        assert_eq!(viewer.sent(10_002), Some(0));
        // The frames that tell it may all be lost.
        let retransmission = viewer.control.playout_delay_for_retransmission();
        assert_eq!(retransmission.map(|values| values.min_delay), Some(0));
        let zeros = (1..20).filter_map(|frame| viewer.sent(10_002 + frame * 40)).count();
        assert_eq!(zeros, 7);
        assert_eq!(viewer.sent(60_000), None);
    }

    #[test]
    fn a_second_round_trip_is_remembered_for_ten_to_twenty_seconds() {
        let mut viewer = Viewer::new();
        let mut seen = Vec::new();
        for at in (0..40_000).step_by(200) {
            viewer.lose(at, RTT, if at == 5_000 { 2 } else { 1 });
            seen.extend(viewer.sent(at + 1).map(|delay| (at, delay)));
        }
        seen.dedup_by_key(|(_, delay)| *delay);
        assert_eq!(seen, [(400, 150), (5_000, 250), (20_000, 150)]);
    }
}
