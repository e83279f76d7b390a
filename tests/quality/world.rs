//! Flows over links, in steps of a millisecond of virtual time.

use std::collections::VecDeque;
use std::time::Instant;

use millstream_core::congestion::{CongestionController, PacketPurpose, sent::FlushTimes};

use crate::gcc::Baseline;
use crate::link::{Content, Link, LinkConfig, Packet};
use crate::receiver::{Message, Receiver};
use crate::rng::Rng;
use crate::sender::{Control, Outgoing, Sender};
use crate::source::{Source, SourceConfig};
use crate::tcp::{TCP_PACKET, Tcp, TcpConfig};

/// The way of a flow; times in microseconds, chances in 1/10,000.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// Links in order.
    pub(crate) links: Vec<usize>,
    /// The link that feedback goes through, if any.
    pub(crate) back: Option<usize>,
    pub(crate) one_way: u64,
    /// Deviation of the jitter; it is cut at three times this, and keeps the order.
    pub(crate) jitter: i64,
    pub(crate) loss: u64,
    /// Gilbert-Elliott: chances to begin and to end a period in which all is lost.
    pub(crate) bursts: Option<(u64, u64)>,
    pub(crate) feedback_loss: u64,
    /// Drift of the receiver's clock in parts per million.
    pub(crate) drift: i64,
}

impl Path {
    pub(crate) fn through(link: usize, one_way: u64) -> Self {
        Self {
            links: vec![link],
            back: None,
            one_way,
            jitter: 0,
            loss: 0,
            bursts: None,
            feedback_loss: 0,
            drift: 0,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct ViewerConfig {
    pub(crate) path: Path,
    /// Index of its source.
    pub(crate) source: usize,
    pub(crate) start: u64,
    /// When nothing is sent.
    pub(crate) pause: Option<(u64, u64)>,
    pub(crate) degradable: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct WorldConfig {
    pub(crate) links: Vec<LinkConfig>,
    pub(crate) sources: Vec<SourceConfig>,
    pub(crate) viewers: Vec<ViewerConfig>,
    pub(crate) tcp: Vec<(Path, TcpConfig)>,
    pub(crate) length: u64,
    /// Period of which the links note the waits.
    pub(crate) measured: (u64, u64),
}

pub(crate) struct Viewer {
    pub(crate) config: ViewerConfig,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// A flow's packets behind the last link, and its messages on the way back.
struct Transit {
    path: Path,
    rng: Rng,
    arriving: VecDeque<(u64, Packet)>,
    latest: u64,
    in_burst: bool,
    back: VecDeque<(u64, Message)>,
}

pub(crate) struct World {
    config: WorldConfig,
    pub(crate) links: Vec<Link>,
    sources: Vec<Source>,
    pub(crate) viewers: Vec<Viewer>,
    tcp: Vec<Tcp>,
    transit: Vec<Transit>,
    /// Feedback that is in a link.
    in_link: Vec<Option<(usize, Message)>>,
    is_traced: bool,
}

const STEP: u64 = 1_000;

/// Size of a message in a link, with headers of UDP and IP.
const FEEDBACK_BYTES: u32 = 120;

impl World {
    pub(crate) fn new(config: WorldConfig, seed: u64, is_baseline: bool) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let origin = Instant::now();
        let viewers = config.viewers.iter().enumerate().map(|(index, viewer)| {
            let random = Rng::new(seed * 100 + index as u64).next();
            let control = match is_baseline {
                true => Control::Gcc(Box::new(Baseline::new())),
                false => {
                    let controller = CongestionController::new(origin, origin, None, random as u32);
                    Control::Ours(Box::new(controller), FlushTimes::new(origin))
                }
            };
            let rtt = 2 * viewer.path.one_way;
            let sender = Sender::new(origin, control, rtt, random % 1_000 * 20);
            Viewer {
                config: viewer.clone(),
                sender: if viewer.degradable && !is_baseline {
                    sender.degradable()
                } else {
                    sender
                },
                receiver: Receiver::new(rtt),
            }
        });
        let viewers: Vec<Viewer> = viewers.collect();
        let paths = viewers
            .iter()
            .map(|viewer| &viewer.config.path)
            .chain(config.tcp.iter().map(|(path, _)| path));
        let transit = paths.enumerate().map(|(index, path)| Transit {
            path: path.clone(),
            rng: Rng::new(seed * 1_000 + index as u64 + 500),
            arriving: VecDeque::new(),
            latest: 0,
            in_burst: false,
            back: VecDeque::new(),
        });
        Self {
            links: config
                .links
                .iter()
                .cloned()
                .map(|link| Link::new(link, config.measured))
                .collect(),
            sources: (0..)
                .zip(&config.sources)
                .map(|(index, source)| Source::new(source.clone(), seed * 10 + index))
                .collect(),
            transit: transit.collect(),
            tcp: (0..)
                .zip(&config.tcp)
                .map(|(index, (_, tcp))| Tcp::new(*tcp, seed * 77 + index))
                .collect(),
            viewers,
            in_link: Vec::new(),
            is_traced: crate::trace::is_on(seed, is_baseline),
            config,
        }
    }

    pub(crate) fn run(mut self) -> Self {
        let mut now = 0;
        while now < self.config.length {
            self.step(now);
            now += STEP;
        }
        self
    }

    fn step(&mut self, now: u64) {
        let mut out = Vec::new();
        let frames: Vec<_> = self.sources.iter_mut().map(|source| source.poll(now)).collect();
        for flow in 0..self.transit.len() {
            self.deliver(now, flow, &mut out);
            if let Some(viewer) = self.viewers.get_mut(flow) {
                let config = &viewer.config;
                let pauses = config.pause.is_some_and(|(from, until)| (from..until).contains(&now));
                if pauses {
                    viewer.receiver.pause();
                }
                if now >= config.start && !pauses {
                    if let Some(frames) = frames.get(config.source).and_then(|frames| frames.as_deref()) {
                        viewer.sender.on_frames(now, frames);
                    }
                    let source = self.sources.get_mut(config.source).expect("a source");
                    viewer.sender.poll(now, source, &mut out);
                }
                self.send(now, flow, &mut out);
                self.feed_back(now, flow);
            } else {
                let seqs = self.tcp[flow - self.viewers.len()].poll(now);
                for seq in seqs {
                    let packet = Packet {
                        flow,
                        number: 0,
                        bytes: TCP_PACKET,
                        content: Content::Tcp { seq },
                    };
                    self.enter(now, packet);
                }
            }
        }
        self.forward(now + STEP);
        if now.is_multiple_of(10_000) {
            self.links.iter_mut().for_each(|link| link.sample(now));
        }
        if self.is_traced {
            crate::trace::note(now, &self.viewers, &self.links);
        }
    }

    fn send(&mut self, now: u64, flow: usize, out: &mut Vec<Outgoing>) {
        for Outgoing {
            number,
            bytes,
            video,
            kind,
        } in out.drain(..)
        {
            let content = match (video, kind) {
                (Some(video), _) => Content::Video(video),
                (None, PacketPurpose::Probe) => Content::Probe,
                (None, _) => Content::Audio,
            };
            self.enter(
                now,
                Packet {
                    flow,
                    number,
                    bytes,
                    content,
                },
            );
        }
    }

    /// A packet enters the first link of its way.
    fn enter(&mut self, now: u64, packet: Packet) {
        match self.transit[packet.flow].path.links.first() {
            Some(link) => self.links[*link].push(now, packet),
            None => self.arrive(now, packet),
        }
    }

    /// Moves packets through the links until `end`.
    fn forward(&mut self, end: u64) {
        for index in 0..self.links.len() {
            while let Some((leaves, packet)) = self.links[index].pop(end) {
                let links = &self.transit[packet.flow].path.links;
                let position = links.iter().position(|link| *link == index);
                match position.and_then(|position| links.get(position + 1)) {
                    Some(next) if !matches!(packet.content, Content::Feedback { .. }) => {
                        let next = *next;
                        self.links[next].push(leaves, packet);
                    }
                    _ => self.arrive(leaves, packet),
                }
            }
        }
    }

    /// A packet has left its last link.
    fn arrive(&mut self, at: u64, packet: Packet) {
        let transit = &mut self.transit[packet.flow];
        let path = &transit.path;
        if let Content::Feedback { index } = packet.content {
            if let Some((flow, message)) = self.in_link[index].take() {
                let at = at + self.transit[flow].path.one_way;
                self.transit[flow].back.push_back((at, message));
            }
            return;
        }
        if let Some((begin, end)) = path.bursts {
            let turns = transit.rng.chance(if transit.in_burst { end } else { begin });
            transit.in_burst ^= turns;
        }
        if transit.rng.chance(path.loss) || transit.in_burst {
            return;
        }
        let jitter = if path.jitter > 0 {
            transit.rng.normal(path.jitter).unsigned_abs()
        } else {
            0
        };
        let at = (at + path.one_way + jitter).max(transit.latest);
        transit.latest = at;
        transit.arriving.push_back((at, packet));
    }

    /// Packets reach the viewer, and its messages the gateway.
    fn deliver(&mut self, now: u64, flow: usize, out: &mut Vec<Outgoing>) {
        let transit = &mut self.transit[flow];
        while let Some((at, packet)) = transit.arriving.front().copied().filter(|(at, _)| *at <= now) {
            transit.arriving.pop_front();
            if let Content::Tcp { seq } = packet.content {
                transit
                    .back
                    .push_back((at + transit.path.one_way, Message::TcpAck(seq)));
                continue;
            }
            let receiver = &mut self.viewers[flow].receiver;
            let clock = at.cast_signed() + at.cast_signed() * transit.path.drift / 1_000_000 + 5_000_000;
            receiver.on_packet(packet.number, clock);
            match packet.content {
                Content::Video(video) => receiver.on_video(at, video, packet.bytes),
                Content::Audio => receiver.audio += 1,
                _ => {}
            }
        }
        while transit.back.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, message)) = transit.back.pop_front() else {
                break;
            };
            match (self.viewers.get_mut(flow), message) {
                (Some(viewer), message) => {
                    let source = &mut self.sources[viewer.config.source];
                    viewer.sender.on_message(now, &message, source, out);
                }
                (None, Message::TcpAck(seq)) => self.tcp[flow - self.viewers.len()].on_ack(seq),
                _ => {}
            }
        }
    }

    /// The viewer sends its messages.
    fn feed_back(&mut self, now: u64, flow: usize) {
        if !now.is_multiple_of(5_000) {
            return;
        }
        while let Some(message) = self.viewers[flow].receiver.poll(now) {
            let transit = &mut self.transit[flow];
            if transit.rng.chance(transit.path.feedback_loss) {
                continue;
            }
            match transit.path.back {
                None => transit.back.push_back((now + transit.path.one_way, message)),
                Some(link) => {
                    let index = self.in_link.len();
                    self.in_link.push(Some((flow, message)));
                    let content = Content::Feedback { index };
                    self.links[link].push(
                        now,
                        Packet {
                            flow,
                            number: 0,
                            bytes: FEEDBACK_BYTES,
                            content,
                        },
                    );
                }
            }
        }
    }
}
