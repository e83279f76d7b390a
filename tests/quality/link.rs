//! A bottleneck: capacity that changes, a queue that drops its tail, or a policer.

use std::collections::VecDeque;

/// A datagram of one of the flows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) flow: usize,
    /// Transport-wide number.
    pub(crate) number: u16,
    /// With headers of UDP and IP.
    pub(crate) bytes: u32,
    pub(crate) content: Content,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    Audio,
    Video(VideoPacket),
    Probe,
    Tcp {
        seq: u32,
    },
    /// Feedback that takes the way back through a link; an index.
    Feedback {
        index: usize,
    },
}

/// One packet of a video frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VideoPacket {
    pub(crate) seq: u32,
    pub(crate) frame: u32,
    pub(crate) layer: u8,
    /// Packets of the frame.
    pub(crate) count: u16,
    pub(crate) key: bool,
}

/// What a link is like; times in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct LinkConfig {
    /// Bits per second from these times on.
    pub(crate) capacity: Vec<(u64, u64)>,
    /// Longest wait in the queue.
    pub(crate) queue: u64,
    /// Bytes that pass at once if the link drops what exceeds its rate, instead of queueing it.
    pub(crate) policer: Option<u64>,
}

impl LinkConfig {
    pub(crate) fn new(bits_per_second: u64) -> Self {
        Self {
            capacity: vec![(0, bits_per_second)],
            queue: 300_000,
            policer: None,
        }
    }

    pub(crate) fn capacity_at(&self, now: u64) -> u64 {
        let current = self.capacity.iter().rev().find(|(from, _)| *from <= now);
        current.map_or(1, |(_, capacity)| *capacity)
    }
}

pub(crate) struct Link {
    pub(crate) config: LinkConfig,
    queue: VecDeque<(u64, Packet)>,
    queued: u64,
    /// When the packet that is being sent will have left.
    free: u64,
    /// Bytes that a policer lets pass.
    tokens: u64,
    refilled: u64,
    /// The wait of a packet that would arrive, each 10 ms, in units of 100 microseconds.
    pub(crate) waits: Vec<u16>,
    measured: (u64, u64),
    /// Bits that left in the measured period: all, and those of viewers.
    pub(crate) passed_bits: u64,
    pub(crate) viewer_bits: u64,
}

impl Link {
    pub(crate) fn new(config: LinkConfig, measured: (u64, u64)) -> Self {
        Self {
            tokens: config.policer.unwrap_or(0),
            config,
            queue: VecDeque::new(),
            queued: 0,
            free: 0,
            refilled: 0,
            waits: Vec::new(),
            measured,
            passed_bits: 0,
            viewer_bits: 0,
        }
    }

    /// A packet arrives at the link. It is dropped if the queue is full, or the policer says so.
    pub(crate) fn push(&mut self, at: u64, packet: Packet) {
        let capacity = self.config.capacity_at(at);
        let is_full = match self.config.policer {
            None => (self.queued + u64::from(packet.bytes)) * 8_000_000 > self.config.queue * capacity,
            Some(depth) => {
                let earned = (at - self.refilled) * capacity / 8_000_000;
                self.tokens = (self.tokens + earned).min(depth);
                self.refilled = at;
                self.tokens < u64::from(packet.bytes)
            }
        };
        if is_full {
            return;
        }
        if self.config.policer.is_some() {
            self.tokens -= u64::from(packet.bytes);
        }
        self.queued += u64::from(packet.bytes);
        self.queue.push_back((at, packet));
    }

    /// Notes the present wait.
    pub(crate) fn sample(&mut self, now: u64) {
        if (self.measured.0..self.measured.1).contains(&now) && self.config.policer.is_none() {
            self.waits.push(u16::try_from(self.wait(now) / 100).unwrap_or(u16::MAX));
        }
    }

    /// How long a packet that would arrive waits, in microseconds.
    pub(crate) fn wait(&self, now: u64) -> u64 {
        self.queued * 8_000_000 / self.config.capacity_at(now)
    }

    /// Returns the next packet that leaves before `end`, and when.
    pub(crate) fn pop(&mut self, end: u64) -> Option<(u64, Packet)> {
        let (arrived, packet) = *self.queue.front()?;
        let begin = self.free.max(arrived);
        if begin >= end {
            return None;
        }
        self.queue.pop_front();
        self.queued -= u64::from(packet.bytes);
        let bits = u64::from(packet.bytes) * 8;
        let leaves = match self.config.policer {
            None => begin + bits * 1_000_000 / self.config.capacity_at(begin),
            Some(_) => begin,
        };
        self.free = leaves;
        if (self.measured.0..self.measured.1).contains(&arrived) {
            self.passed_bits += bits;
            if !matches!(packet.content, Content::Tcp { .. }) {
                self.viewer_bits += bits;
            }
        }
        Some((leaves, packet))
    }
}
