//! Pacing without a queue: a credit that says how much may leave now. What may not stays in the ring, and is read from
//! there when the credit allows.

/// The credit of one viewer. An ordinary frame fits into it and leaves at once; key frames, catch-up and probes are
/// sliced. Audio and RTCP do not ask.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    /// Bytes that may leave; negative after a packet that was larger.
    credit_bytes: i32,
    /// Last refill in units of [`REFILL_UNIT_US`], wrapping.
    last_refill: u32,
    /// Nothing leaves at once: what waits before the bottleneck delays the audio.
    is_evenly_paced: bool,
}

/// Largest credit in bytes: an ordinary frame of 2.5 Mbit/s. That of a layer with a higher rate is larger.
pub const BASE_CREDIT_CAP_BYTES: i32 = 14_000;

/// Largest credit of what is paced evenly: two packets.
const EVEN_PACING_CREDIT_CAP_BYTES: i32 = 2_500;

/// Largest credit of faster layers as a part of a second at the pacing rate: an ordinary frame of 30 per second.
const CREDIT_CAP_RATE_DIVISOR: u32 = 75;

/// After so long without video, in units of [`REFILL_UNIT_US`], no queue is left: the frame that comes then may leave at
/// once. It is the first one of a source that returns, and the path is known.
const IDLE_TIME_REFILL_UNITS: u32 = 10_000;

/// Credit after an idle time, in milliseconds at the pacing rate: 175 ms at the rate of the layer.
const PACER_CREDIT_AFTER_IDLE_MS: u32 = 70;

/// The rate is this multiple of the layer's, in halves.
const PACING_FACTOR_IN_HALVES: u32 = 5;

/// Least rate after a step down or of key frames alone, in bits per second.
pub(super) const MIN_PACING_BITRATE: u32 = 150_000;

/// Least rate of a layer in bits per second.
const MIN_LAYER_PACING_BITRATE: u32 = 1_500_000;

/// Time between two slices in microseconds.
pub const PACING_INTERVAL_US: u64 = 5_000;

/// Microseconds.
const REFILL_UNIT_US: u64 = 100;

impl Pacer {
    /// A full credit.
    pub(super) fn new(now: u64) -> Self {
        Self {
            credit_bytes: BASE_CREDIT_CAP_BYTES,
            last_refill: (now / REFILL_UNIT_US) as u32,
            is_evenly_paced: false,
        }
    }

    /// Returns the rate for key frames alone with this payload, beside this audio on a path with this capacity; all are bits
    /// per second. More would wait before the bottleneck, and the audio with it.
    pub(super) fn pacing_bitrate_for_key_frames(payload: u32, audio: u32, capacity: u32) -> u32 {
        let rest = (capacity / 10 * 9).saturating_sub(audio.saturating_mul(3) / 2);
        let least = payload.saturating_add(payload / 8);
        payload.saturating_mul(2).min(rest).max(least).max(MIN_PACING_BITRATE)
    }

    /// Paces all evenly, or lets an ordinary frame leave at once.
    pub(super) fn set_evenly_paced(&mut self, is_evenly_paced: bool) {
        self.is_evenly_paced = is_evenly_paced;
    }

    /// Returns the rate for a layer, both in bits per second.
    pub fn pacing_bitrate_for_layer(layer: u32) -> u32 {
        (layer.saturating_mul(PACING_FACTOR_IN_HALVES) / 2).max(MIN_LAYER_PACING_BITRATE)
    }

    /// Refills at this rate in bits per second; returns whether a packet may leave now.
    #[inline]
    pub(super) fn refill_credit_and_can_send(&mut self, now: u64, rate: u32) -> bool {
        let now = (now / REFILL_UNIT_US) as u32;
        let idle = now.wrapping_sub(self.last_refill);
        let elapsed = u64::from(idle).min(1_000_000 / REFILL_UNIT_US);
        self.last_refill = now;
        let earned = u64::from(rate) * elapsed / (8_000_000 / REFILL_UNIT_US);
        let earned = i32::try_from(earned).unwrap_or(i32::MAX);
        let cap = |bytes: u32| i32::try_from(bytes).unwrap_or(i32::MAX).max(BASE_CREDIT_CAP_BYTES);
        let ordinary = cap(rate / 8 / CREDIT_CAP_RATE_DIVISOR);
        let after_idle = cap(rate / 8_000 * PACER_CREDIT_AFTER_IDLE_MS);
        let refilled = self.credit_bytes.saturating_add(earned);
        self.credit_bytes = if self.is_evenly_paced {
            refilled.min(EVEN_PACING_CREDIT_CAP_BYTES)
        } else if idle >= IDLE_TIME_REFILL_UNITS {
            refilled.min(after_idle)
        } else {
            // What an idle time has given stays until it is spent, unless the rate falls.
            refilled.min(ordinary).max(self.credit_bytes.min(after_idle))
        };
        self.has_credit()
    }

    /// Whether a packet may leave, as of the last refill.
    #[inline]
    pub(super) fn has_credit(&self) -> bool {
        self.credit_bytes > 0
    }

    /// Bytes that may leave, as of the last refill.
    pub(super) fn available_credit_bytes(&self) -> u32 {
        u32::try_from(self.credit_bytes).unwrap_or(0)
    }

    /// Begins anew: debt of what is not sent any more is forgotten, and a burst would not fit into a queue that is
    /// full.
    pub(super) fn reset_credit_to_zero(&mut self) {
        self.credit_bytes = 0;
    }

    /// A packet of this many bytes left.
    #[inline]
    pub(super) fn spend_credit(&mut self, bytes: u32) {
        self.credit_bytes = self
            .credit_bytes
            .saturating_sub(bytes.cast_signed())
            .max(-BASE_CREDIT_CAP_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends packets of 1,200 bytes as fast as the pacer allows; returns how many left in each slice.
    fn run(slices: u64, rate: u32) -> Vec<usize> {
        let mut pacer = Pacer::new(0);
        let slice = |index: u64| {
            let mut packets = 0;
            while pacer.refill_credit_and_can_send(index * PACING_INTERVAL_US, rate) {
                pacer.spend_credit(1_200);
                packets += 1;
            }
            packets
        };
        (0..slices).map(slice).collect()
    }

    #[test]
    fn key_frames_of_any_size_have_a_rate() {
        let rate = Pacer::pacing_bitrate_for_key_frames;
        assert_eq!(rate(200_000, 64_000, 3_000_000), 400_000);
        assert_eq!(rate(240_000, 64_000, 550_000), 399_000);
        assert_eq!(rate(400_000, 64_000, 300_000), 450_000, "or it would never end");
        assert_eq!(rate(10_000, 0, 0), MIN_PACING_BITRATE);
        assert_eq!(rate(u32::MAX, u32::MAX, u32::MAX), u32::MAX);
    }

    #[test]
    fn what_is_paced_evenly_leaves_in_no_burst() {
        let mut pacer = Pacer::new(0);
        pacer.set_evenly_paced(true);
        let sent: Vec<u32> = (1..=200_u64)
            .map(|slice| {
                let mut packets = 0;
                while pacer.refill_credit_and_can_send(slice * PACING_INTERVAL_US, 480_000) {
                    pacer.spend_credit(1_200);
                    packets += 1;
                }
                packets
            })
            .collect();
        assert!(sent.iter().all(|packets| *packets <= 3), "{sent:?}");
        assert!((48..=54).contains(&sent.iter().sum::<u32>()), "{sent:?}");
    }

    #[test]
    fn a_frame_leaves_at_once_and_more_is_sliced() {
        let packets = run(200, Pacer::pacing_bitrate_for_layer(2_500_000));
        assert_eq!(packets[0], 12, "{packets:?}");
        assert!(
            packets[1..].iter().all(|packets| (2..=5).contains(packets)),
            "{packets:?}"
        );
        let bits: usize = packets[1..].iter().sum::<usize>() * 1_200 * 8;
        assert!((6_100_000..6_400_000).contains(&bits), "{bits} in one second");
    }

    #[test]
    fn the_first_frame_after_an_idle_time_leaves_at_once_and_the_next_ones_are_sliced() {
        let rate = Pacer::pacing_bitrate_for_layer(2_500_000);
        let mut pacer = Pacer::new(0);
        let leaves_at_once = |pacer: &mut Pacer, now: u64| {
            let mut packets = 0;
            while pacer.refill_credit_and_can_send(now, rate) {
                pacer.spend_credit(1_200);
                packets += 1;
            }
            packets
        };
        assert_eq!(leaves_at_once(&mut pacer, 0), 12);
        assert_eq!(leaves_at_once(&mut pacer, 900_000), 12);
        // 70 ms at 6.25 Mbit/s, of packets of 1,200 bytes.
        assert_eq!(leaves_at_once(&mut pacer, 2_000_000), 46);
        assert!(leaves_at_once(&mut pacer, 2_005_000) <= 5);
        assert_eq!(leaves_at_once(&mut pacer, 2_500_000), 12);
    }

    #[test]
    fn low_layers_are_paced_at_the_least_rate() {
        assert_eq!(Pacer::pacing_bitrate_for_layer(300_000), 1_500_000);
        assert_eq!(Pacer::pacing_bitrate_for_layer(0), 1_500_000);
        assert_eq!(Pacer::pacing_bitrate_for_layer(u32::MAX), u32::MAX / 2);
    }

    #[test]
    fn credit_and_debt_are_bounded_across_the_wrap_of_the_time() {
        let wrap = u64::from(u32::MAX) * REFILL_UNIT_US;
        let mut pacer = Pacer::new(wrap - 1_000);
        (0..100).for_each(|_| pacer.spend_credit(60_000));
        assert!(!pacer.refill_credit_and_can_send(wrap, 1_500_000));
        assert!(pacer.refill_credit_and_can_send(wrap + 1_000_000, 1_500_000));
        assert!(pacer.credit_bytes <= BASE_CREDIT_CAP_BYTES);
    }

    #[test]
    fn what_an_idle_time_has_given_does_not_outlive_the_rate() {
        let mut pacer = Pacer::new(0);
        assert!(pacer.refill_credit_and_can_send(3_000_000, 20_000_000));
        assert_eq!(pacer.available_credit_bytes(), 175_000);
        assert!(pacer.refill_credit_and_can_send(3_005_000, 20_000_000));
        assert_eq!(pacer.available_credit_bytes(), 175_000, "until it is spent");
        assert!(pacer.refill_credit_and_can_send(3_010_000, 1_500_000));
        assert_eq!(pacer.available_credit_bytes(), BASE_CREDIT_CAP_BYTES.cast_unsigned());
    }
}
