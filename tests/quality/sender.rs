//! The gateway's end for one viewer: sends the frames of a layer, as the congestion control says.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use millstream_core::congestion::allocator::LayerSwitchTarget;
use millstream_core::congestion::ladder::{FrameSelection, QualityLadder, QualityRung};
use millstream_core::congestion::pacer::PACING_INTERVAL_US;
use millstream_core::congestion::{
    CongestionController, ControllerAction, DeliveredQuality, NewLayerStartPoint, PacketPurpose,
    choose_new_layer_start_point, sent::FlushTimes,
};

use crate::gcc::Baseline;
use crate::link::VideoPacket;
use crate::receiver::Message;
use crate::rng::Rng;
use crate::source::{Frame, Source};

/// A layer, and which of its frames.
type Choice = (u8, FrameSelection);

/// What decides about the layer.
pub(crate) enum Control {
    Ours(Box<CongestionController>, FlushTimes),
    Gcc(Box<Baseline>),
}

/// A packet that leaves.
pub(crate) struct Outgoing {
    pub(crate) number: u16,
    pub(crate) bytes: u32,
    pub(crate) video: Option<VideoPacket>,
    pub(crate) kind: PacketPurpose,
}

pub(crate) struct Sender {
    origin: Instant,
    pub(crate) control: Control,
    /// What is sent, and what it waits for.
    current: Option<(u8, FrameSelection)>,
    pending: Option<(u8, FrameSelection)>,
    /// Packets and their bytes; 0 for one that the publisher lost.
    queue: VecDeque<(VideoPacket, u32)>,
    next_seq: u32,
    number: u16,
    history: VecDeque<Sent>,
    retransmittable: u64,
    next_audio: u64,
    rtt: u64,
    feedback: Vec<u8>,
    feedbacks: u8,
    degradable: bool,
    publisher_loss: u64,
    /// Choices over time, and events.
    pub(crate) choices: Vec<(u64, Option<(u8, FrameSelection)>)>,
    pub(crate) events: Vec<(u64, DeliveredQuality)>,
    pub(crate) probed: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) audio: u64,
}

struct Sent {
    packet: VideoPacket,
    bytes: u32,
    times: u8,
    last: u64,
}

/// Header, extension, tag; and UDP over IP.
const OVERHEAD: u32 = 36;
const IP: u32 = 28;
const PAYLOAD: u32 = 1_150;
const AUDIO_PAYLOAD: u32 = 160;
const AUDIO_INTERVAL: u64 = 20_000;
const AUDIO_RATE: u32 = (AUDIO_PAYLOAD + OVERHEAD + IP) * 8 * 50;

impl Sender {
    pub(crate) fn new(origin: Instant, control: Control, rtt: u64, seed: u64) -> Self {
        Self {
            origin,
            control,
            current: None,
            pending: None,
            queue: VecDeque::new(),
            next_seq: 0,
            number: 0,
            history: VecDeque::new(),
            retransmittable: 256_000,
            next_audio: seed % AUDIO_INTERVAL,
            rtt,
            feedback: Vec::new(),
            feedbacks: 0,
            degradable: false,
            publisher_loss: 0,
            choices: Vec::new(),
            events: Vec::new(),
            probed: 0,
            sent_bytes: 0,
            audio: 0,
        }
    }

    /// Offers less than the lowest layer too.
    pub(crate) fn degradable(mut self) -> Self {
        self.degradable = true;
        self
    }

    /// What is sent, and what is sent next.
    pub(crate) fn choice(&self) -> (Option<Choice>, Option<Choice>) {
        (self.current, self.pending)
    }

    /// Packets that wait for the pacer.
    pub(crate) fn unsent(&self) -> usize {
        self.queue.len()
    }

    fn at(&self, now: u64) -> Instant {
        self.origin + Duration::from_micros(now)
    }

    fn ladder(&self, source: &Source) -> QualityLadder {
        let mut ladder = QualityLadder::new(AUDIO_RATE);
        if self.degradable {
            let whole = source.rate(0);
            let degraded = [
                (FrameSelection::AudioOnly, 0),
                (FrameSelection::KeyFrames, whole / 12),
                (FrameSelection::ReferenceFrames, whole / 2),
            ];
            for (frames, rate) in degraded {
                ladder.push(QualityRung {
                    layer: 0,
                    frames,
                    payload_bitrate: rate,
                    usable: true,
                });
            }
        }
        for layer in 0..source.config.layers.len() as u8 {
            let rate = source.rate(layer);
            ladder.push(QualityRung {
                layer,
                frames: FrameSelection::All,
                payload_bitrate: rate,
                usable: true,
            });
        }
        ladder
    }

    /// New frames of all layers.
    pub(crate) fn on_frames(&mut self, now: u64, frames: &[Frame]) {
        for frame in frames {
            if let Some((layer, wanted)) = self.pending.filter(|(layer, _)| *layer == frame.layer && frame.key) {
                self.begin(now, layer, wanted);
            }
            let takes = |(layer, wanted): (u8, FrameSelection)| {
                let is_wanted = match wanted {
                    FrameSelection::All => true,
                    FrameSelection::ReferenceFrames => !frame.droppable,
                    FrameSelection::KeyFrames => frame.key,
                    FrameSelection::AudioOnly => false,
                };
                layer == frame.layer && is_wanted
            };
            if self.current.is_some_and(takes) {
                self.enqueue(frame);
            }
        }
    }

    fn begin(&mut self, now: u64, layer: u8, frames: FrameSelection) {
        self.queue.clear();
        // What another layer was sent as is not sent again.
        self.history.clear();
        self.pending = None;
        self.current = Some((layer, frames));
        self.choices.push((now, self.current));
        let at = self.at(now);
        match &mut self.control {
            Control::Ours(controller, _) => controller.on_layer_switch_begun(at, layer, frames),
            Control::Gcc(baseline) => baseline.on_switched(layer),
        }
    }

    fn enqueue(&mut self, frame: &Frame) {
        let count = frame.bytes.div_ceil(PAYLOAD).max(1);
        for index in 0..count {
            let place = u64::from(frame.id) << 16 | u64::from(frame.layer) << 12 | u64::from(index);
            let is_lost = Rng::new(place).chance(self.publisher_loss);
            let bytes = if is_lost { 0 } else { frame.bytes.div_ceil(count) };
            let packet = VideoPacket {
                seq: 0,
                frame: frame.id,
                layer: frame.layer,
                count: count as u16,
                key: frame.key,
            };
            self.queue.push_back((packet, bytes));
        }
    }

    /// Sends what is due.
    pub(crate) fn poll(&mut self, now: u64, source: &mut Source, out: &mut Vec<Outgoing>) {
        if now >= self.next_audio {
            self.next_audio += AUDIO_INTERVAL;
            self.audio += 1;
            self.send(now, None, AUDIO_PAYLOAD, PacketPurpose::Media, out);
        }
        self.publisher_loss = source.config.loss;
        if now.is_multiple_of(PACING_INTERVAL_US) {
            self.act(now, source, out);
        }
        self.drain(now, out);
    }

    /// Sends what the pacer allows of the queue.
    fn drain(&mut self, now: u64, out: &mut Vec<Outgoing>) {
        let at = self.at(now);
        while let Some((packet, bytes)) = self.queue.front().copied() {
            let allowed = match &mut self.control {
                Control::Ours(controller, _) => {
                    let time = controller.send_time(at);
                    controller.may_send_video_now(time)
                }
                Control::Gcc(baseline) => baseline.allows(now),
            };
            if !allowed {
                break;
            }
            self.queue.pop_front();
            let packet = VideoPacket {
                seq: self.next_seq,
                ..packet
            };
            self.next_seq += 1;
            if bytes == 0 {
                continue;
            }
            self.history.push_back(Sent {
                packet,
                bytes,
                times: 0,
                last: now,
            });
            if self.history.len() > 1_024 {
                self.history.pop_front();
            }
            self.retransmittable = (self.retransmittable + u64::from(bytes) / 4).min(256_000);
            self.send(now, Some(packet), bytes, PacketPurpose::Media, out);
        }
    }

    fn send(
        &mut self,
        now: u64,
        video: Option<VideoPacket>,
        payload: u32,
        kind: PacketPurpose,
        out: &mut Vec<Outgoing>,
    ) {
        let (at, bytes) = (self.at(now), payload + OVERHEAD + IP);
        let number = match &mut self.control {
            Control::Ours(controller, flushes) => {
                let batch = (now / 1_000) as u32;
                flushes.record_batch_flush_time(batch, at);
                let number = controller.peek_next_transport_sequence_number();
                let time = controller.send_time(at);
                controller.on_packet_sent(time, batch, bytes, kind);
                number
            }
            Control::Gcc(baseline) => {
                self.number = self.number.wrapping_add(1);
                baseline.on_packet_sent(now, self.number, bytes);
                self.number
            }
        };
        self.sent_bytes += u64::from(bytes);
        if kind == PacketPurpose::Probe {
            self.probed += u64::from(bytes);
        }
        out.push(Outgoing {
            number,
            bytes,
            video,
            kind,
        });
    }

    /// Does what the congestion control wants.
    fn act(&mut self, now: u64, source: &mut Source, out: &mut Vec<Outgoing>) {
        let (at, ladder) = (self.at(now), self.ladder(source));
        if let Control::Gcc(baseline) = &mut self.control {
            if let Some(layer) = baseline.poll(now, &ladder) {
                let stop = self.current.is_some_and(|(current, _)| current > layer);
                let switch = LayerSwitchTarget {
                    layer,
                    frames: FrameSelection::All,
                    stops_old_layer_at_once: stop,
                };
                self.switch(now, switch, 0, source);
            }
            return;
        }
        loop {
            let Control::Ours(controller, _) = &mut self.control else {
                return;
            };
            let received = controller.received_bitrate().unwrap_or(0);
            match controller.poll(at, &ladder) {
                Some(ControllerAction::Switch(switch)) => {
                    self.switch(now, switch, received, source);
                }
                Some(ControllerAction::SendProbe { bytes }) => self.probe(now, bytes, out),
                Some(ControllerAction::ReportQuality(quality)) => self.events.push((now, quality)),
                None => return,
            }
        }
    }

    fn switch(&mut self, now: u64, switch: LayerSwitchTarget, received: u32, source: &mut Source) {
        self.pending = None;
        let (layer, frames) = (switch.layer, switch.frames);
        let to = (layer, frames);
        let is_within = self
            .current
            .is_some_and(|(current, whole)| current == layer && frames <= whole);
        if is_within {
            if self.current != Some(to) {
                self.current = Some(to);
                self.choices.push((now, self.current));
                if frames < FrameSelection::ReferenceFrames {
                    self.queue.clear();
                }
            }
            let at = self.at(now);
            if let Control::Ours(controller, _) = &mut self.control {
                controller.on_layer_switch_begun(at, layer, frames);
            }
            return;
        }
        self.pending = Some(to);
        if switch.stops_old_layer_at_once {
            self.queue.clear();
            self.history.clear();
            self.choices.push((now, None));
            self.current = None;
        }
        source.request(now, layer);
        let cached: u64 = source.cached(layer).iter().map(|frame| u64::from(frame.bytes)).sum();
        let wait = Duration::from_micros(source.next_key_frame(layer));
        let is_start = self.choices.is_empty();
        // A step up waits for the next key frame: the viewer has the old layer until then.
        let is_step_up = self.current.is_some_and(|current| current < to);
        let start = match is_step_up {
            true => NewLayerStartPoint::NextKeyFrame,
            false => choose_new_layer_start_point(Some(wait), (cached > 0).then_some(cached), received),
        };
        if cached > 0 && (start == NewLayerStartPoint::CachedInterval || is_start) {
            self.begin(now, layer, frames);
            let frames: Vec<Frame> = source.cached(layer).to_vec();
            frames.iter().for_each(|frame| self.enqueue(frame));
        }
    }

    /// Sends recent packets once more.
    fn probe(&mut self, now: u64, bytes: u32, out: &mut Vec<Outgoing>) {
        let mut left = i64::from(bytes);
        while left > 0 {
            let payload = left.clamp(400, i64::from(PAYLOAD)) as u32;
            self.send(now, None, payload, PacketPurpose::Probe, out);
            left -= i64::from(payload + OVERHEAD + IP);
        }
    }

    /// Handles what the viewer sent.
    pub(crate) fn on_message(&mut self, now: u64, message: &Message, source: &mut Source, out: &mut Vec<Outgoing>) {
        match message {
            Message::Feedback { base, arrivals } => self.on_feedback(now, *base, arrivals, source, out),
            Message::Nack(seqs) => self.retransmit(now, seqs, out),
            Message::KeyFrame => {
                if let Some((layer, _)) = self.pending.or(self.current) {
                    source.request(now, layer);
                }
            }
            Message::TcpAck(_) => {}
        }
    }

    fn on_feedback(
        &mut self,
        now: u64,
        base: u16,
        arrivals: &[Option<i64>],
        source: &mut Source,
        out: &mut Vec<Outgoing>,
    ) {
        let at = self.at(now);
        match &mut self.control {
            Control::Ours(controller, flushes) => {
                let ticks: Vec<Option<i64>> = arrivals.iter().map(|at| at.map(|at| at / 250)).collect();
                crate::feedback::write(base, &ticks, self.feedbacks, &mut self.feedback);
                self.feedbacks = self.feedbacks.wrapping_add(1);
                assert!(controller.on_twcc_feedback(at, &self.feedback, flushes));
            }
            Control::Gcc(baseline) => baseline.on_feedback(at, self.origin, base, arrivals),
        }
        self.act(now, source, out);
    }

    fn retransmit(&mut self, now: u64, seqs: &[u32], out: &mut Vec<Outgoing>) {
        for seq in seqs {
            let Some(first) = self.history.front().map(|sent| sent.packet.seq) else {
                return;
            };
            let index = seq.checked_sub(first).map(|index| index as usize);
            let Some(sent) = index.and_then(|index| self.history.get_mut(index)) else {
                continue;
            };
            let spacing = (self.rtt / 2).max(20_000);
            let is_soon = sent.times > 0 && now < sent.last + spacing;
            if sent.times >= 3 || is_soon || self.retransmittable < u64::from(sent.bytes) {
                continue;
            }
            (sent.times, sent.last) = (sent.times + 1, now);
            let (packet, bytes) = (sent.packet, sent.bytes);
            self.retransmittable -= u64::from(bytes);
            self.send(now, Some(packet), bytes, PacketPurpose::Retransmission, out);
        }
    }
}
