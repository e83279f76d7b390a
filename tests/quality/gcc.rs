//! The baseline: `rtc_interceptor::Gcc`, and the highest layer that its estimate covers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use millstream_core::congestion::ladder::QualityLadder;
use rtc_interceptor::{BandwidthEstimator as _, Gcc, PacketReport};

pub(crate) struct Baseline {
    gcc: Gcc,
    sent: VecDeque<(u16, u64, u32)>,
    ids: u64,
    current: Option<u8>,
    wanted: Option<u8>,
    changed: u64,
    credit: i64,
    refilled: u64,
    pace: u64,
}

/// The estimate must exceed a layer by this before it is taken, in percent.
const MARGIN: u64 = 110;

/// Least time between two steps up.
const HOLD: u64 = 1_000_000;

impl Baseline {
    pub(crate) fn new() -> Self {
        Self {
            gcc: Gcc::new(500_000.0, 100_000.0, 50_000_000.0),
            sent: VecDeque::new(),
            ids: 0,
            current: None,
            wanted: None,
            changed: 0,
            credit: 14_000,
            refilled: 0,
            pace: 1_500_000,
        }
    }

    pub(crate) fn on_packet_sent(&mut self, now: u64, number: u16, bytes: u32) {
        self.credit = (self.credit - i64::from(bytes)).max(-14_000);
        self.sent.push_back((number, now, bytes));
        if self.sent.len() > 2_000 {
            self.sent.pop_front();
        }
    }

    /// The same pacing as ours.
    pub(crate) fn allows(&mut self, now: u64) -> bool {
        let earned = (now - self.refilled) * self.pace / 8_000_000;
        self.refilled = now;
        self.credit = (self.credit + earned.cast_signed()).min(14_000);
        self.credit > 0
    }

    pub(crate) fn on_feedback(&mut self, now: Instant, origin: Instant, base: u16, arrivals: &[Option<i64>]) {
        let mut reports = Vec::with_capacity(arrivals.len());
        for (index, arrival) in arrivals.iter().enumerate() {
            let number = base.wrapping_add(index as u16);
            while self
                .sent
                .front()
                .is_some_and(|(sent, ..)| number.wrapping_sub(*sent).cast_signed() > 0)
            {
                self.sent.pop_front();
            }
            let Some((_, sent, bytes)) = self.sent.front().copied().filter(|(sent, ..)| *sent == number) else {
                continue;
            };
            self.sent.pop_front();
            self.ids += 1;
            reports.push(PacketReport {
                ssrc: 1,
                id: self.ids,
                rtp_sequence_number: number,
                is_twcc: true,
                twcc_sequence_number: number,
                size: bytes as usize,
                arrived: arrival.is_some(),
                departure: origin + Duration::from_micros(sent),
                arrival: arrival.map(|at| Duration::from_micros((at / 250 * 250).cast_unsigned())),
                ecn: Default::default(),
            });
        }
        self.gcc.on_reports(now, &reports);
    }

    pub(crate) fn on_switched(&mut self, layer: u8) {
        self.current = Some(layer);
    }

    pub(crate) fn poll(&mut self, now: u64, ladder: &QualityLadder) -> Option<u8> {
        let estimate = self.gcc.target_bitrate() as u64;
        let fits = |share: u64| {
            let rungs = 0..ladder.rungs().len();
            rungs
                .rev()
                .find(|rung| u64::from(ladder.wire_bitrate_with_audio(*rung)) * share / 100 <= estimate)
                .unwrap_or(0)
        };
        let before = self.wanted.map(usize::from);
        let rung = match before {
            None => 0,
            Some(before) if fits(100) < before => fits(100),
            Some(before) if fits(MARGIN) > before && now >= self.changed + HOLD => fits(MARGIN),
            Some(before) => before,
        };
        self.pace = (u64::from(ladder.get(rung)?.payload_bitrate) * 5 / 2).max(1_500_000);
        let layer = ladder.get(rung)?.layer;
        if before == Some(rung) {
            return None;
        }
        self.changed = now;
        self.wanted = Some(layer);
        Some(layer)
    }
}
