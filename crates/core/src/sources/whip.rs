//! A publisher: from the RTP of its session to the tracks of its stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::arrivals::Arrivals;
use super::encoding::{Change, Encoding};
use super::incoming::{Incoming, LayerPackets};
use super::layers::Layers;
use super::requests::Requests;
use crate::hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::intake::ReceivedPacket;
use crate::hub::name::StreamName;
use crate::hub::ring::Entry;
use crate::hub::stream::{SourceRef, Stream, StreamState};
use crate::hub::traffic;
use crate::media::clock::NtpClock;
use crate::media::rtcp::{self, Message};
use crate::media::rtp::Header;
use crate::media::{Kind, Pt, Ssrc};
use crate::sdp::plan::{Publication, SourceFormats};
use crate::session::feedback::{Bitrate, ReceiverEstimate, TransportFeedback};

/// What a publisher's session feeds to its stream.
pub struct Publisher {
    name: StreamName,
    source: SourceRef,
    stream: Option<Arc<Stream>>,
    attached: bool,
    tracks: Vec<Incoming>,
    by_ssrc: HashMap<Ssrc, SsrcRole>,
    /// In order of arrival, since the last turn.
    arrived: Vec<(usize, usize, ReceivedPacket, Change)>,
    feedback: Feedback,
    ntp: NtpClock,
    requests: Requests,
    layers: Layers,
    /// When the transport came up, until media comes or its absence was told.
    silent_since: Option<Instant>,
    arrivals: Arrivals,
}

/// What an SSRC is.
#[derive(Clone, Copy, Debug)]
struct SsrcRole {
    track: usize,
    encoding: usize,
    rtx: bool,
}

/// RTCP towards the publisher.
struct Feedback {
    ssrc: Ssrc,
    cname: String,
    transport: Option<TransportFeedback>,
    remb: Option<ReceiverEstimate>,
    next_report: Instant,
}

/// The result of publishing what arrived in one tick.
#[derive(Default)]
pub struct Published {
    /// Packets of the stream and, with simulcast, of the stream of each layer.
    pub batches: Vec<Batch>,
    /// The previous source of the stream, which must be closed.
    pub replaced: Option<SourceRef>,
    /// Another source has taken the stream over; this one must be closed.
    pub displaced: bool,
}

/// A publisher that is connected sends media within this time.
const MEDIA_WITHIN: Duration = Duration::from_secs(10);

/// Between receiver reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What a publisher without transport-wide feedback may send at least, and is told at most.
const REMB_FLOOR: Bitrate = Bitrate(500_000);
const REMB_CEILING: Bitrate = Bitrate(50_000_000);

/// Before a packet is asked for again: publishers tell us no round trip, and one of 50 ms is longer than most.
const REPEAT_AFTER: Duration = Duration::from_millis(50);

/// SSRCs that one publisher may use.
const MAX_SSRCS: usize = 32;

/// Packets of one turn that are kept; a turn takes far fewer.
const MAX_ARRIVED: usize = 4_096;

impl Publisher {
    /// `random` gives the SSRC of our feedback.
    pub fn new(
        now: Instant,
        name: StreamName,
        source: SourceRef,
        publication: Publication,
        random: &mut dyn FnMut() -> u32,
    ) -> Self {
        let tracks: Vec<Incoming> = publication.tracks.into_iter().map(Incoming::new).collect();
        let mut by_ssrc = HashMap::new();
        for (track, incoming) in tracks.iter().enumerate() {
            for (encoding, known) in incoming.encodings.iter().enumerate() {
                for (ssrc, rtx) in [(known.ssrc, false), (known.rtx_ssrc, true)] {
                    by_ssrc.extend(ssrc.map(|ssrc| (ssrc, SsrcRole { track, encoding, rtx })));
                }
            }
        }
        let offers = |wanted: fn(&crate::sdp::plan::Feedback) -> bool| {
            tracks.iter().flat_map(|t| &t.plan.codecs).any(|c| wanted(&c.feedback))
        };
        let takes_requests = tracks.iter().any(|track| track.plan.takes_key_frame_requests());
        let arrivals = Arrivals::new(tracks.iter().map(|track| track.plan.kind), takes_requests);
        let transport = offers(|f| f.transport_cc);
        let remb = !transport && offers(|f| f.remb);
        let ssrc = Ssrc(random() | 1);
        let feedback = Feedback {
            ssrc,
            cname: format!("{:08x}", random()),
            transport: transport.then(|| TransportFeedback::new(now, ssrc)),
            remb: remb.then(|| ReceiverEstimate::new(REMB_FLOOR, REMB_CEILING)),
            next_report: now + REPORT_INTERVAL,
        };
        Self {
            name,
            source,
            stream: None,
            attached: false,
            tracks,
            by_ssrc,
            arrived: Vec::new(),
            feedback,
            ntp: NtpClock::default(),
            requests: Requests::default(),
            layers: Layers::default(),
            silent_since: None,
            arrivals,
        }
    }

    /// Name of the stream that it feeds.
    pub fn stream_name(&self) -> &StreamName {
        &self.name
    }

    /// The transport is up. A stream without a source takes this one now, so that viewers may come; one with a source
    /// keeps it until the first packet.
    pub fn connected(&mut self, now: Instant, hub: &Hub) {
        self.silent_since = Some(now);
        self.arrivals.on_connected(now);
        let formats = self.formats();
        let source = self.source;
        let mut attached = false;
        let stream = hub.open_with(&self.name, |state| {
            if state.source().is_none() {
                state.attach(source, &formats);
                attached = true;
            }
        });
        if attached {
            self.stream = Some(stream);
            self.attached = true;
        } else {
            hub.release(&stream, |_| {});
        }
    }

    /// Whether it is connected and has sent no media for so long that somebody should know; said once.
    pub fn is_silent_publisher(&mut self, now: Instant) -> bool {
        let is_silent = self.silent_since.is_some_and(|since| now >= since + MEDIA_WITHIN);
        if is_silent {
            self.silent_since = None;
        }
        is_silent
    }

    fn formats(&self) -> SourceFormats {
        let of = |kind| {
            let track = self.tracks.iter().find(|t| t.plan.kind == kind)?;
            let seen = track.encodings.get(track.active).and_then(Encoding::format);
            seen.or_else(|| track.plan.codecs.first().map(|c| c.format))
        };
        SourceFormats {
            video: of(Kind::Video),
            audio: of(Kind::Audio),
        }
    }

    /// Takes a decrypted RTP packet.
    pub fn handle_rtp(&mut self, now: Instant, packet: Bytes) {
        let Ok(header) = Header::parse(&packet) else { return };
        let Some(place) = self.place(&header) else { return };
        let Some(track) = self.tracks.get_mut(place.track) else {
            return;
        };
        let wide_seq = track
            .plan
            .extensions
            .transport_cc
            .and_then(|id| header.extension(id)?.first_chunk::<2>().copied());
        if let (Some(wide_seq), Some(transport)) = (wide_seq, &mut self.feedback.transport) {
            transport.on_packet(now, header.ssrc, u16::from_be_bytes(wide_seq));
        }
        if let Some(remb) = &mut self.feedback.remb {
            remb.on_packet(now, packet.len());
        }
        let payload = packet.slice(header.payload());
        let (seq, payload, pt) = if place.rtx {
            // RFC 4588 §4: the original sequence number, then the original payload.
            let Some((original, _)) = payload.split_first_chunk::<2>() else {
                return;
            };
            let Some(pt) = track.primary_of(header.pt) else { return };
            (u16::from_be_bytes(*original), payload.slice(2..), pt)
        } else {
            (header.seq, payload, header.pt)
        };
        let Some(format) = track.format_of(pt) else { return };
        let Some(encoding) = track.encodings.get_mut(place.encoding) else {
            return;
        };
        // A straggler of an SSRC that another one followed, or a retransmission of an encoding that is not known yet.
        let expected = if place.rtx {
            encoding.ssrc.is_some()
        } else {
            encoding.ssrc == Some(header.ssrc)
        };
        if !expected || self.arrived.len() >= MAX_ARRIVED {
            return;
        }
        if let Some((arrived, change)) = encoding.take(now, &header, seq, payload, format) {
            if arrived.key_frame {
                track.key_frames.on_key_frame();
                self.requests.on_key_frame(now);
            }
            self.silent_since = None;
            self.arrivals.on_packet(now, track.plan.kind, arrived.key_frame);
            self.arrived.push((place.track, place.encoding, arrived, change));
        }
    }

    /// What an SSRC is: known, or learned from MID, RID or the payload type (RFC 9143 §9.2).
    fn place(&mut self, header: &Header<'_>) -> Option<SsrcRole> {
        if let Some(place) = self.by_ssrc.get(&header.ssrc) {
            return Some(*place);
        }
        if self.by_ssrc.len() >= MAX_SSRCS {
            return None;
        }
        let by_mid = self.tracks.iter().position(|t| t.has_mid_of(header));
        let track = by_mid.or_else(|| self.only_track_with(header.pt))?;
        let (encoding, rtx) = self.tracks.get_mut(track)?.learn(header)?;
        let place = SsrcRole { track, encoding, rtx };
        self.by_ssrc.insert(header.ssrc, place);
        Some(place)
    }

    fn only_track_with(&self, pt: Pt) -> Option<usize> {
        let mut owners = self
            .tracks
            .iter()
            .enumerate()
            .filter(|(_, t)| t.has_payload_type(pt))
            .map(|(i, _)| i);
        owners.next().filter(|_| owners.next().is_none())
    }

    /// Acts on the publisher's RTCP.
    pub fn handle_rtcp(&mut self, now: Instant, messages: &[Message]) {
        for message in messages {
            let Message::SenderReport {
                ssrc, ntp, rtp_time, ..
            } = message
            else {
                continue;
            };
            let Some(place) = self.by_ssrc.get(ssrc).filter(|p| !p.rtx).copied() else {
                continue;
            };
            let Some(track) = self.tracks.get_mut(place.track) else {
                continue;
            };
            let Some(encoding) = track.encodings.get_mut(place.encoding) else {
                continue;
            };
            let Some(time) = encoding.on_sender_report(now, *ntp, *rtp_time) else {
                continue;
            };
            let captured = self.ntp.instant(*ntp, now);
            if track.plan.kind == Kind::Video {
                self.layers
                    .on_report(place.encoding, self.source.session, time, captured);
            }
            if place.encoding != track.active {
                continue;
            }
            if let (Some(time), Some(stream)) = (encoding.intake.time(time), &self.stream) {
                let (session, kind) = (self.source.session, track.plan.kind);
                stream.with(|state| {
                    if state.is_source(session) {
                        state.track(kind).record_capture(time, captured);
                    }
                });
            }
        }
    }

    /// A viewer needs a key frame.
    pub fn request_key_frame(&mut self) {
        for track in self.tracks.iter_mut().filter(|t| t.plan.takes_key_frame_requests()) {
            track.key_frames.request();
        }
    }

    /// Puts what arrived in this turn on the line.
    pub fn publish(&mut self, hub: &Hub) -> Published {
        let mut published = Published::default();
        if self.arrived.is_empty() {
            return published;
        }
        let stream = self.attach(hub, &mut published);
        stream.with(|state| {
            if !state.is_source(self.source.session) {
                published.displaced = true;
                return;
            }
            state.answers_requests = self.requests.are_answered();
            self.layers.record(&self.tracks, &self.arrived);
            let mut packets = Vec::new();
            self.publish_tick(state, &mut packets);
            self.layers.notify(&self.tracks, &self.name, state);
            published.batches.extend(Batch::new(&stream, state, packets));
        });
        if published.displaced {
            return published;
        }
        let layers = self.layers.publish(hub, self.source, self.requests.are_answered());
        published.batches.extend(layers);
        published
    }

    fn attach(&mut self, hub: &Hub, published: &mut Published) -> Arc<Stream> {
        if let (true, Some(stream)) = (self.attached, &self.stream) {
            return stream.clone();
        }
        let (source, formats) = (self.source, self.formats());
        let stream = hub.open_with(&self.name, |state| published.replaced = state.attach(source, &formats));
        self.attached = true;
        self.stream = Some(stream.clone());
        stream
    }

    fn publish_tick(&mut self, state: &mut StreamState, out: &mut Vec<Arc<Entry>>) {
        let Some(now) = self.arrived.iter().map(|(.., packet, _)| packet.arrival).max() else {
            return;
        };
        // Video first: an audio packet may then ride as the shorter last segment of its run.
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.sort_by_key(|(track, encoding, ..)| {
            (
                self.tracks.get(*track).is_some_and(|t| t.plan.kind == Kind::Audio),
                *track,
                *encoding,
            )
        });
        let mut rest = arrived.into_iter().peekable();
        while let Some((track, encoding, first, change)) = rest.next() {
            let (mut packets, mut change) = (vec![first], change);
            while let Some((.., next, more)) = rest.next_if(|(t, e, ..)| (*t, *e) == (track, encoding)) {
                packets.push(next);
                change = Change {
                    format: more.format.or(change.format),
                    resolution: more.resolution.or(change.resolution),
                };
            }
            if let Some(incoming) = self.tracks.get_mut(track) {
                let arrived = LayerPackets {
                    index: encoding,
                    packets,
                    change,
                };
                incoming.put(now, arrived, state.track(incoming.plan.kind), out);
            }
        }
        for track in self.tracks.iter_mut().filter(|t| t.plan.takes_key_frame_requests()) {
            if track.awaited_key_frame(now) || track.has_given_up() {
                track.key_frames.request();
            }
        }
    }

    /// The session is over.
    pub fn ended(&self, hub: &Hub) {
        if let Some(stream) = &self.stream {
            hub.release(stream, |state| {
                state.detach(self.source.session);
            });
        }
        self.layers.end(hub, self.source.session);
    }

    /// RTCP that is due, a datagram each: reports and bandwidth feedback in one compound packet, and with it the NACKs
    /// and key frame requests about tracks that take nothing but compound packets (RFC 3550 §6.1). About a track with
    /// reduced-size RTCP each of them is a packet of its own (RFC 5506 §4.1), and goes first: FFmpeg 9.0.2 looks at the
    /// first packet of a datagram alone, and drops a NACK that anything follows.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        let mut body = Vec::new();
        for track in &mut self.tracks {
            let awaited_key_frame = track.key_frames.poll(now);
            if awaited_key_frame {
                self.requests.on_request(now);
                self.arrivals.on_request(now);
            }
            for encoding in &mut track.encodings {
                let Some(ssrc) = encoding.ssrc else { continue };
                let nacks = encoding.poll_nacks(now, REPEAT_AFTER);
                if let Some(stream) = &self.stream {
                    traffic::add(&stream.traffic.asked, nacks.len() as u64);
                    traffic::add(&stream.traffic.key_frames_asked, u64::from(awaited_key_frame));
                }
                let from = self.feedback.ssrc;
                let (mut nack, mut pli) = (Vec::new(), Vec::new());
                rtcp::write_nack(&mut nack, from, ssrc, &nacks);
                if awaited_key_frame {
                    rtcp::write_pli(&mut pli, from, ssrc);
                }
                if track.plan.reduced_size_rtcp {
                    datagrams.extend([nack, pli].into_iter().filter(|packet| !packet.is_empty()));
                } else {
                    body.extend([nack, pli].concat());
                }
            }
        }
        self.feedback.write_bandwidth(now, &self.by_ssrc, &mut body);
        let blocks = if self.feedback.next_report <= now {
            self.reports(now)
        } else {
            Vec::new()
        };
        if !body.is_empty() || !blocks.is_empty() {
            let mut compound = Vec::new();
            rtcp::write_receiver_report(&mut compound, self.feedback.ssrc, &blocks, &self.feedback.cname);
            compound.extend(body);
            datagrams.push(compound);
        }
        datagrams
    }

    fn reports(&mut self, now: Instant) -> Vec<rtcp::Reception> {
        self.feedback.next_report = now + REPORT_INTERVAL;
        if let Some(stream) = &self.stream {
            let (session, arrivals) = (self.source.session, &self.arrivals);
            stream.with(|state| {
                if state.is_source(session) {
                    arrivals.record(now, state);
                }
            });
        }
        let encodings = self.tracks.iter_mut().flat_map(|t| &mut t.encodings);
        let traffic = self.stream.as_ref().map(|stream| &stream.traffic);
        let blocks: Vec<rtcp::Reception> = encodings
            .filter_map(|encoding| {
                let block = encoding.report(now)?;
                let (expected, missing) = encoding.interval();
                if let Some(traffic) = traffic {
                    traffic.received(expected, missing);
                }
                Some(block)
            })
            .collect();
        if let (Some(remb), Some(worst)) = (&mut self.feedback.remb, blocks.iter().map(|b| b.fraction_lost).max()) {
            remb.on_report(worst);
        }
        blocks
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let tracks = self.tracks.iter().flat_map(|t| {
            let nacks = t.encodings.iter().filter_map(Encoding::poll_timeout);
            nacks.chain(t.key_frames.poll_timeout(now))
        });
        let transport = self
            .feedback
            .transport
            .as_ref()
            .and_then(TransportFeedback::poll_timeout);
        let remb = self.feedback.remb.as_ref().and_then(ReceiverEstimate::poll_timeout);
        tracks
            .chain(transport)
            .chain(remb)
            .chain([self.feedback.next_report])
            .min()
    }
}

impl Feedback {
    fn write_bandwidth(&mut self, now: Instant, by_ssrc: &HashMap<Ssrc, SsrcRole>, body: &mut Vec<u8>) {
        let media = by_ssrc.iter().find(|(_, place)| !place.rtx).map(|(ssrc, _)| *ssrc);
        let Some(media) = media else { return };
        if let Some(packets) = self.transport.as_mut().and_then(|t| t.poll(now)) {
            body.extend(packets);
        }
        if let Some(bitrate) = self.remb.as_mut().and_then(|r| r.poll(now)) {
            rtcp::write_remb(body, self.ssrc, media, bitrate.0);
        }
    }
}
