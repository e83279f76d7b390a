//! A publisher: from the RTP of its session to the tracks of its stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::arrivals::Arrivals;
use super::encoding::{Change, Encoding, RESUME};
use super::feedback::{Feedback, REPORT_INTERVAL};
use super::incoming::{Incoming, LayerPackets};
use super::layers::Layers;
use super::requests::Requests;
use crate::hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::intake::{CaptureReport, ReceivedPacket};
use crate::hub::name::StreamName;
use crate::hub::ring::Entry;
use crate::hub::stream::{SourceRef, Stream, StreamState};
use crate::hub::traffic;
use crate::media::clock::NtpClock;
use crate::media::rtcp::{self, Message};
use crate::media::rtp::Header;
use crate::media::{Kind, Pt, Ssrc};
use crate::sdp::plan::{Publication, SourceFormats};

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
    /// When its last packet arrived; `None` for one that was only declared.
    last_packet: Option<Instant>,
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

/// Before a packet is asked for again: publishers tell us no round trip, and one of 50 ms is longer than most.
const REPEAT_AFTER: Duration = Duration::from_millis(50);

/// SSRCs of one publisher that are known at a time. The one that is silent for the longest time is forgotten for another.
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
                    by_ssrc.extend(ssrc.map(|ssrc| (ssrc, SsrcRole::new(track, encoding, rtx))));
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
        let feedback = Feedback::new(now, transport, remb, random);
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
        let Some(place) = self.place(now, &header) else { return };
        let Some(track) = self.tracks.get(place.track) else {
            return;
        };
        let wide_seq = track
            .plan
            .extensions
            .transport_cc
            .and_then(|id| header.extension(id)?.first_chunk::<2>().copied());
        self.feedback
            .on_packet(now, header.ssrc, wide_seq.map(u16::from_be_bytes), packet.len());
        if !place.rtx && self.is_of_another_ssrc(header.ssrc, place) {
            let Some(held) = self.resume(now, header.ssrc, place, &packet) else {
                return;
            };
            if let Some(held) = held {
                self.take_media(now, place, &held);
            }
        }
        self.take_media(now, place, &packet);
    }

    /// Hands a packet to its encoding. One of an encoding whose SSRC is not known yet is dropped if it is a retransmission.
    fn take_media(&mut self, now: Instant, place: SsrcRole, packet: &Bytes) {
        let Ok(header) = Header::parse(packet) else { return };
        let Some(track) = self.tracks.get_mut(place.track) else {
            return;
        };
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
        if encoding.ssrc.is_none() || (place.rtx && encoding.is_ahead(seq)) {
            return;
        }
        encoding.take(now, &header, seq, payload, format);
        self.collect(now, place.track, place.encoding);
    }

    /// Keeps the packets that an encoding has released for the end of the tick.
    fn collect(&mut self, now: Instant, track_index: usize, index: usize) {
        let Some(track) = self.tracks.get_mut(track_index) else {
            return;
        };
        let Some(encoding) = track.encodings.get_mut(index) else {
            return;
        };
        for (packet, change) in encoding.released() {
            if packet.key_frame {
                track.key_frames.on_key_frame();
                self.requests.on_key_frame(now);
            }
            self.silent_since = None;
            self.arrivals.on_packet(now, track.plan.kind, packet.key_frame);
            if self.arrived.len() < MAX_ARRIVED {
                self.arrived.push((track_index, index, packet, change));
            }
        }
    }

    /// Whether packets wait for [`Self::publish`].
    pub fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// What an SSRC is: known, or learned from MID, RID or the payload type (RFC 9143 §9.2).
    fn place(&mut self, now: Instant, header: &Header<'_>) -> Option<SsrcRole> {
        if let Some(role) = self.by_ssrc.get_mut(&header.ssrc) {
            let last_packet = role.last_packet.replace(now);
            return Some(SsrcRole { last_packet, ..*role });
        }
        if self.by_ssrc.len() >= MAX_SSRCS && !self.forget_ssrc() {
            return None;
        }
        let by_mid = self.tracks.iter().position(|t| t.has_mid_of(header));
        let track = by_mid.or_else(|| self.only_track_with(header.pt))?;
        let (encoding, rtx) = self.tracks.get_mut(track)?.learn(header)?;
        let place = SsrcRole::new(track, encoding, rtx);
        let last_packet = Some(now);
        self.by_ssrc.insert(header.ssrc, SsrcRole { last_packet, ..place });
        Some(place)
    }

    /// Whether the encoding of an SSRC has another one now. One that has the same goes on.
    fn is_of_another_ssrc(&mut self, ssrc: Ssrc, place: SsrcRole) -> bool {
        let track = self.tracks.get_mut(place.track);
        let encoding = track.and_then(|track| track.encodings.get_mut(place.encoding));
        encoding.is_some_and(|encoding| {
            let is_other = encoding.ssrc != Some(ssrc);
            if !is_other {
                encoding.returning = None;
            }
            is_other
        })
    }

    /// A known SSRC that another one has followed sends again. It is a straggler, unless the other one is silent, or unless
    /// two packets in a row come after a silence: the publisher has come back to it then. Returns the first of them, `None`
    /// for a straggler.
    fn resume(&mut self, now: Instant, ssrc: Ssrc, place: SsrcRole, packet: &Bytes) -> Option<Option<Bytes>> {
        let encoding = self.tracks.get_mut(place.track)?.encodings.get_mut(place.encoding)?;
        let held = encoding.returning.take().filter(|(other, _)| *other == ssrc);
        let was_silent = place
            .last_packet
            .is_none_or(|at| now.saturating_duration_since(at) >= RESUME);
        if held.is_none() && !encoding.is_left(now) {
            encoding.returning = was_silent.then(|| (ssrc, packet.clone()));
            return None;
        }
        encoding.begin(ssrc);
        Some(held.map(|(_, packet)| packet))
    }

    /// Forgets the SSRC that is silent for the longest time, of those that are not in use. Returns whether there is one.
    fn forget_ssrc(&mut self) -> bool {
        let in_use = |ssrc: &Ssrc| {
            let mut encodings = self.tracks.iter().flat_map(|track| &track.encodings);
            encodings.any(|encoding| encoding.ssrc == Some(*ssrc) || encoding.rtx_ssrc == Some(*ssrc))
        };
        let oldest = self.by_ssrc.iter().filter(|(ssrc, _)| !in_use(ssrc));
        let oldest = oldest.min_by_key(|(_, role)| role.last_packet).map(|(ssrc, _)| *ssrc);
        oldest.is_some_and(|oldest| self.by_ssrc.remove(&oldest).is_some())
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
            let encoding = track.encodings.get_mut(place.encoding);
            // A report of an SSRC that another one followed is about its own timestamps.
            let Some(encoding) = encoding.filter(|encoding| encoding.ssrc == Some(*ssrc)) else {
                continue;
            };
            let Some(time) = encoding.on_sender_report(now, *ntp, *rtp_time) else {
                continue;
            };
            let Some(captured) = self.ntp.instant(*ntp, now) else {
                continue;
            };
            let report = CaptureReport {
                epoch: encoding.epoch(),
                time,
                captured,
            };
            if track.plan.kind == Kind::Video {
                self.layers.on_report(place.encoding, self.source.session, report);
            }
            if place.encoding != track.active {
                continue;
            }
            if let Some(stream) = &self.stream {
                let (session, kind) = (self.source.session, track.plan.kind);
                stream.with(|state| {
                    if state.is_source(session) {
                        encoding.intake.on_report(state.track(kind), report);
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
        self.release_held(now);
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
        let media = self.by_ssrc.iter().find(|(_, place)| !place.rtx).map(|(ssrc, _)| *ssrc);
        self.feedback.write_bandwidth(now, media, &mut body);
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

    /// Collects packets that cannot wait longer for the one after them.
    fn release_held(&mut self, now: Instant) {
        for track in 0..self.tracks.len() {
            let encodings = self.tracks.get(track).map_or(0, |track| track.encodings.len());
            for index in 0..encodings {
                let encoding = self.tracks.get_mut(track).and_then(|t| t.encodings.get_mut(index));
                if let Some(encoding) = encoding {
                    encoding.handle_timeout(now);
                    self.collect(now, track, index);
                }
            }
        }
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
        tracks.chain([self.feedback.poll_timeout()]).min()
    }
}

impl SsrcRole {
    fn new(track: usize, encoding: usize, rtx: bool) -> Self {
        Self {
            track,
            encoding,
            rtx,
            last_packet: None,
        }
    }
}
