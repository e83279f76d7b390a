//! A flow like TCP, with the growth of Reno and the backoff of CUBIC: it fills a queue until something is dropped.

use std::collections::VecDeque;

use crate::rng::Rng;

#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpConfig {
    pub(crate) start: u64,
    /// Sizes of transfers, and the mean pause between two; a long flow if absent.
    pub(crate) short: Option<(u64, u64, u64)>,
}

pub(crate) struct Tcp {
    config: TcpConfig,
    rng: Rng,
    window: f64,
    threshold: f64,
    next: u32,
    /// Sequence numbers in flight and when they were sent.
    flight: VecDeque<(u32, u64)>,
    /// Losses up to this one are one event.
    recover: u32,
    /// Packets left of the transfer.
    left: u64,
    /// Whether a transfer runs, and when the next begins.
    busy: bool,
    resume: u64,
}

pub(crate) const TCP_PACKET: u32 = 1_500;

const TIMEOUT: u64 = 1_000_000;

impl Tcp {
    pub(crate) fn new(config: TcpConfig, seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x7c9);
        let resume = config.start + config.short.map_or(0, |(_, _, pause)| rng.exponential(pause));
        Self {
            config,
            rng,
            window: 10.0,
            threshold: f64::MAX,
            next: 0,
            flight: VecDeque::new(),
            recover: 0,
            left: 0,
            busy: false,
            resume,
        }
    }

    /// Returns the sequence numbers to send now.
    pub(crate) fn poll(&mut self, now: u64) -> Vec<u32> {
        if !self.busy {
            if now < self.resume {
                return Vec::new();
            }
            self.begin();
        }
        if self.flight.front().is_some_and(|(_, sent)| now > sent + TIMEOUT) {
            self.flight.clear();
            self.threshold = (self.window / 2.0).max(2.0);
            self.window = 2.0;
            self.recover = self.next;
        }
        let mut seqs = Vec::new();
        while self.left > 0 && (self.flight.len() as f64) < self.window {
            seqs.push(self.next);
            self.flight.push_back((self.next, now));
            self.next += 1;
            self.left -= 1;
        }
        if self.left == 0 && self.flight.is_empty() {
            let pause = self.config.short.map_or(0, |(_, _, pause)| pause);
            self.busy = false;
            self.resume = now + self.rng.exponential(pause);
        }
        seqs
    }

    fn begin(&mut self) {
        self.busy = true;
        self.left = u64::MAX;
        if let Some((least, most, _)) = self.config.short {
            self.left = (least + self.rng.below(most - least)).div_ceil(u64::from(TCP_PACKET));
            (self.window, self.threshold) = (10.0, f64::MAX);
        }
    }

    /// An acknowledgement arrives. The path keeps the order: what was sent before and is not acknowledged is lost.
    pub(crate) fn on_ack(&mut self, seq: u32) {
        let Some(index) = self.flight.iter().position(|(flight, _)| *flight == seq) else {
            return;
        };
        self.flight.drain(..=index);
        if index > 0 && seq >= self.recover {
            self.left = self.left.saturating_add(index as u64);
            self.window = (self.window * 0.7).max(2.0);
            self.threshold = self.window;
            self.recover = self.next;
        } else if self.window < self.threshold {
            self.window += 1.0;
        } else {
            self.window += 1.0 / self.window;
        }
    }
}
