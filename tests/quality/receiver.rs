//! The viewer's end: decodes frames whose packets are complete, asks for what is missing, and gives feedback.

use std::collections::VecDeque;

use crate::link::VideoPacket;

/// What the viewer sends back.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// First number, and the arrival of each from there in microseconds of the receiver's clock.
    Feedback {
        base: u16,
        arrivals: Vec<Option<i64>>,
    },
    Nack(Vec<u32>),
    KeyFrame,
    TcpAck(u32),
}

pub(crate) struct Receiver {
    /// Arrivals since the last feedback, and the number after the last reported one.
    arrivals: Vec<(u16, i64)>,
    reported_until: Option<u16>,
    next_feedback: u64,
    /// Video packets from the first that is not decoded on.
    pending: VecDeque<Option<VideoPacket>>,
    base: u32,
    bytes: VecDeque<u32>,
    missing: Vec<Missing>,
    last_decoded: Option<u64>,
    last_key_request: u64,
    rtt: u64,
    pub(crate) freezes: Vec<(u64, u64)>,
    /// Decoded frames: when, which layer, how many bytes.
    pub(crate) decoded: Vec<(u64, u8, u32)>,
    pub(crate) audio: u64,
}

struct Missing {
    seq: u32,
    due: u64,
    requests: u8,
}

const FEEDBACK_INTERVAL: u64 = 50_000;
const REORDER_TIME: u64 = 10_000;
const MOST_REQUESTS: u8 = 10;
const STUCK: u64 = 300_000;
const FRAME_TIME: u64 = 33_333;

/// A longer gap between two frames is a freeze, as browsers count it.
const FREEZE: u64 = 150_000;

impl Receiver {
    pub(crate) fn new(rtt: u64) -> Self {
        Self {
            arrivals: Vec::new(),
            reported_until: None,
            next_feedback: 0,
            pending: VecDeque::new(),
            base: 0,
            bytes: VecDeque::new(),
            missing: Vec::new(),
            last_decoded: None,
            last_key_request: 0,
            rtt,
            freezes: Vec::new(),
            decoded: Vec::new(),
            audio: 0,
        }
    }

    /// A numbered packet arrives; `clock` is the time on the receiver's clock.
    pub(crate) fn on_packet(&mut self, number: u16, clock: i64) {
        self.arrivals.push((number, clock));
    }

    pub(crate) fn on_video(&mut self, now: u64, packet: VideoPacket, bytes: u32) {
        let Some(index) = packet.seq.checked_sub(self.base).map(|index| index as usize) else {
            return;
        };
        for missing in self.pending.len()..index {
            self.missing.push(Missing {
                seq: self.base + missing as u32,
                due: now + REORDER_TIME,
                requests: 0,
            });
        }
        if index >= self.pending.len() {
            self.pending.resize(index + 1, None);
            self.bytes.resize(index + 1, 0);
        }
        self.pending[index] = Some(packet);
        self.bytes[index] = bytes;
        self.missing.retain(|missing| missing.seq != packet.seq);
        if packet.key {
            self.skip_to_key_frame(index);
        }
        while let Some(layer) = self.complete(0) {
            self.decode(now, layer);
        }
    }

    /// Returns the layer and the packets of a frame that begins at this index and is complete.
    fn complete(&self, index: usize) -> Option<(u8, usize)> {
        let first = (*self.pending.get(index)?)?;
        let count = usize::from(first.count);
        let is_complete = (index..index + count).all(|index| {
            let packet = self.pending.get(index).copied().flatten();
            packet.is_some_and(|packet| (packet.frame, packet.layer) == (first.frame, first.layer))
        });
        is_complete.then_some((first.layer, count))
    }

    /// Gives up what is before a complete key frame.
    fn skip_to_key_frame(&mut self, index: usize) {
        let is_of = |other: &Option<VideoPacket>, packet: VideoPacket| {
            other.is_some_and(|other| (other.frame, other.layer) == (packet.frame, packet.layer))
        };
        let Some(packet) = self.pending[index] else { return };
        let mut first = index;
        while first > 0 && is_of(&self.pending[first - 1], packet) {
            first -= 1;
        }
        if first > 0 && self.complete(first).is_some() {
            self.drop_packets(first);
        }
    }

    fn drop_packets(&mut self, count: usize) {
        self.pending.drain(..count);
        self.bytes.drain(..count);
        self.base += count as u32;
        let base = self.base;
        self.missing.retain(|missing| missing.seq >= base);
    }

    fn decode(&mut self, now: u64, (layer, count): (u8, usize)) {
        let bytes = self.bytes.iter().take(count).sum();
        self.drop_packets(count);
        self.decoded.push((now, layer, bytes));
        if let Some(last) = self.last_decoded.replace(now)
            && now - last > FREEZE + FRAME_TIME
        {
            self.freezes.push((now, now - last - FRAME_TIME));
        }
    }

    /// Returns what is to be sent now.
    pub(crate) fn poll(&mut self, now: u64) -> Option<Message> {
        if now >= self.next_feedback && !self.arrivals.is_empty() {
            self.next_feedback = now + FEEDBACK_INTERVAL;
            return Some(self.feedback());
        }
        let seqs = self.requests(now);
        if !seqs.is_empty() {
            return Some(Message::Nack(seqs));
        }
        let is_stuck = self.last_decoded.is_none_or(|at| now >= at + STUCK) && !self.pending.is_empty();
        if is_stuck && now >= self.last_key_request + STUCK {
            self.last_key_request = now;
            return Some(Message::KeyFrame);
        }
        None
    }

    fn feedback(&mut self) -> Message {
        let base = self.reported_until.unwrap_or(self.arrivals[0].0);
        let newest = self
            .arrivals
            .iter()
            .map(|(number, _)| number.wrapping_sub(base))
            .filter(|ahead| *ahead < 30_000);
        let count = newest.max().map_or(0, |newest| usize::from(newest) + 1);
        let mut arrivals = vec![None; count];
        for (number, clock) in self.arrivals.drain(..) {
            if let Some(slot) = arrivals.get_mut(usize::from(number.wrapping_sub(base))) {
                *slot = Some(clock);
            }
        }
        self.reported_until = Some(base.wrapping_add(count as u16));
        Message::Feedback { base, arrivals }
    }

    fn requests(&mut self, now: u64) -> Vec<u32> {
        let spacing = self.rtt.max(20_000) + 20_000;
        self.missing.retain(|missing| missing.requests < MOST_REQUESTS);
        let due = self.missing.iter_mut().filter(|missing| missing.due <= now).take(200);
        due.map(|missing| {
            (missing.due, missing.requests) = (now + spacing, missing.requests + 1);
            missing.seq
        })
        .collect()
    }

    /// Nothing is sent for now, which is no freeze.
    pub(crate) fn pause(&mut self) {
        self.last_decoded = None;
    }

    /// Freezes within a period, with one that has not ended.
    pub(crate) fn frozen(&self, from: u64, until: u64) -> u64 {
        let ended = self
            .freezes
            .iter()
            .filter(|(at, _)| (from..until + 5_000_000).contains(at));
        ended.map(|(at, length)| (*length).min(at.saturating_sub(from))).sum()
    }
}
