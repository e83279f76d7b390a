//! A publisher: from the RTP of its session to the tracks of its stream.

mod ssrcs;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::feedback::{PublisherFeedback, RECEIVER_REPORT_INTERVAL};
use super::incoming_encoding::{FormatOrResolutionChange, IncomingEncoding};
use super::key_frame_response_detector::KeyFrameResponseDetector;
use super::layers::LayerStreams;
use super::missing_media_detector::MissingMediaDetector;
use super::publisher_track::{EncodingPacketBatch, PublisherTrack};
use crate::hub::Hub;
use crate::hub::name::StreamKey;
use crate::hub::packet_batch::PacketBatchToDeliver;
use crate::hub::ring::RingEntry;
use crate::hub::source_rewriter::{CaptureTimeReport, ReceivedPacket};
use crate::hub::stream::{SourceRef, Stream, StreamState};
use crate::hub::traffic;
use crate::media::clock::SenderNtpMapper;
use crate::media::rtcp::{self, RtcpMessage};
use crate::media::rtp::ParsedRtpHeader;
use crate::media::{MediaKind, Rid, Ssrc};
use crate::sdp::negotiation_result::{AudioVideoFormats, NegotiatedPublication};

/// What a publisher's session feeds to its stream.
pub struct Publisher {
    stream_key: StreamKey,
    source_ref: SourceRef,
    stream: Option<Arc<Stream>>,
    attached: bool,
    tracks: Vec<PublisherTrack>,
    ssrc_roles: HashMap<Ssrc, SsrcRole>,
    /// In order of arrival, since the last turn.
    pending_packets: Vec<(usize, usize, ReceivedPacket, FormatOrResolutionChange)>,
    feedback: PublisherFeedback,
    ntp_clock: SenderNtpMapper,
    key_frame_responses: KeyFrameResponseDetector,
    layer_streams: LayerStreams,
    /// When the transport came up, until media comes or its absence was told.
    awaiting_media_since: Option<Instant>,
    missing_media: MissingMediaDetector,
}

/// What an SSRC is.
#[derive(Clone, Copy, Debug)]
struct SsrcRole {
    track_index: usize,
    encoding_index: usize,
    is_rtx: bool,
    /// When its last packet arrived; `None` for one that was only declared.
    last_packet_at: Option<Instant>,
}

/// The result of publishing what arrived in one tick.
#[derive(Default)]
pub struct PublishedBatchesAndTakeover {
    /// Packets of the stream and, with simulcast, of the stream of each layer.
    pub batches: Vec<PacketBatchToDeliver>,
    /// The previous source of the stream, which must be closed.
    pub replaced_source: Option<SourceRef>,
    /// Another source has taken the stream over; this one must be closed.
    pub displaced: bool,
}

/// A publisher that is connected sends media within this time.
const FIRST_MEDIA_WARNING_DELAY: Duration = Duration::from_secs(10);

/// Before a packet is asked for again: publishers tell us no round trip, and one of 50 ms is longer than most.
const NACK_REPEAT_INTERVAL: Duration = Duration::from_millis(50);

/// SSRCs of one publisher that are known at a time. The one that is silent for the longest time is forgotten for another.
const MAX_KNOWN_SSRCS: usize = 32;

/// Packets of one turn that are kept; a turn takes far fewer.
const MAX_PACKETS_PER_TICK: usize = 4_096;

impl Publisher {
    /// `random` gives the SSRC of our feedback.
    pub fn new(
        now: Instant,
        key: StreamKey,
        source: SourceRef,
        publication: NegotiatedPublication,
        random: &mut dyn FnMut() -> u32,
    ) -> Self {
        let tracks: Vec<PublisherTrack> = publication.tracks.into_iter().map(PublisherTrack::new).collect();
        let mut by_ssrc = HashMap::new();
        for (track, incoming) in tracks.iter().enumerate() {
            for (encoding, known) in incoming.encodings.iter().enumerate() {
                for (ssrc, rtx) in [(known.ssrc, false), (known.rtx_ssrc, true)] {
                    by_ssrc.extend(ssrc.map(|ssrc| (ssrc, SsrcRole::new(track, encoding, rtx))));
                }
            }
        }
        let offers = |wanted: fn(&crate::sdp::negotiation_result::RtcpFeedback) -> bool| {
            tracks
                .iter()
                .flat_map(|t| &t.negotiated_track.codecs)
                .any(|c| wanted(&c.rtcp_feedback))
        };
        let takes_requests = tracks
            .iter()
            .any(|track| track.negotiated_track.accepts_key_frame_requests());
        let arrivals =
            MissingMediaDetector::new(tracks.iter().map(|track| track.negotiated_track.kind), takes_requests);
        let transport = offers(|f| f.transport_cc);
        let remb = !transport && offers(|f| f.remb);
        let feedback = PublisherFeedback::new(now, transport, remb, random);
        Self {
            stream_key: key,
            source_ref: source,
            stream: None,
            attached: false,
            tracks,
            ssrc_roles: by_ssrc,
            pending_packets: Vec::new(),
            feedback,
            ntp_clock: SenderNtpMapper::default(),
            key_frame_responses: KeyFrameResponseDetector::default(),
            layer_streams: LayerStreams::default(),
            awaiting_media_since: None,
            missing_media: arrivals,
        }
    }

    /// Key of the stream that it feeds.
    pub fn stream_key(&self) -> &StreamKey {
        &self.stream_key
    }

    /// The transport is up. A stream without a source takes this one now, so that viewers may come; one with a source
    /// keeps it until the first packet.
    pub fn attach_to_stream_if_no_source(&mut self, now: Instant, hub: &Hub) {
        self.awaiting_media_since = Some(now);
        self.missing_media.on_connected(now);
        let formats = self.received_or_negotiated_formats();
        let source = self.source_ref;
        let mut attached = false;
        let stream = hub.open_and_update_stream(&self.stream_key, |state| {
            if state.source().is_none() {
                state.replace_source(source, &formats);
                state.expect_media_since(now);
                attached = true;
            }
        });
        if attached {
            self.stream = Some(stream);
            self.attached = true;
        } else {
            hub.update_stream_and_remove_if_unused(&stream, |_| {});
        }
    }

    /// Whether it is connected and has sent no media for so long that somebody should know; said once.
    pub fn take_no_media_warning(&mut self, now: Instant) -> bool {
        let is_silent = self
            .awaiting_media_since
            .is_some_and(|since| now >= since + FIRST_MEDIA_WARNING_DELAY);
        if is_silent {
            self.awaiting_media_since = None;
        }
        is_silent
    }

    fn received_or_negotiated_formats(&self) -> AudioVideoFormats {
        let of = |kind| {
            let track = self.tracks.iter().find(|t| t.negotiated_track.kind == kind)?;
            let seen = track
                .encodings
                .get(track.active_encoding_index)
                .and_then(IncomingEncoding::format);
            seen.or_else(|| track.negotiated_track.codecs.first().map(|c| c.format))
        };
        AudioVideoFormats {
            video: of(MediaKind::Video),
            audio: of(MediaKind::Audio),
        }
    }

    /// Takes a decrypted RTP packet.
    pub fn handle_rtp(&mut self, now: Instant, packet: Bytes) {
        let Ok(header) = ParsedRtpHeader::parse(&packet) else {
            return;
        };
        let payload = packet.get(header.payload_range()).unwrap_or_default();
        let Some(role) = self.resolve_or_learn_ssrc_role(now, &header, payload) else {
            return;
        };
        let Some(track) = self.tracks.get(role.track_index) else {
            return;
        };
        let wide_seq = track
            .negotiated_track
            .extension_ids
            .transport_cc
            .and_then(|id| header.extension(id)?.first_chunk::<2>().copied());
        self.feedback
            .on_packet(now, header.ssrc, wide_seq.map(u16::from_be_bytes), packet.len());
        if !role.is_rtx && self.drop_held_packet_unless_ssrc_replaced(header.ssrc, role) {
            let Some(held) = self.resume_replaced_ssrc_after_silence(now, header.ssrc, role, &packet) else {
                return;
            };
            if let Some(held) = held {
                self.pass_packet_to_encoding(now, role, &held);
            }
        }
        self.pass_packet_to_encoding(now, role, &packet);
    }

    /// Hands a packet to its encoding. One of an encoding whose SSRC is not known yet is dropped if it is a retransmission.
    fn pass_packet_to_encoding(&mut self, now: Instant, role: SsrcRole, packet: &Bytes) {
        let Ok(header) = ParsedRtpHeader::parse(packet) else {
            return;
        };
        let Some(track) = self.tracks.get_mut(role.track_index) else {
            return;
        };
        let payload = packet.slice(header.payload_range());
        let (seq, payload, pt) = if role.is_rtx {
            // RFC 4588 §4: the original sequence number, then the original payload.
            let Some((original, _)) = payload.split_first_chunk::<2>() else {
                return;
            };
            let Some(pt) = track.media_payload_type_of_rtx(header.pt) else {
                return;
            };
            (u16::from_be_bytes(*original), payload.slice(2..), pt)
        } else {
            (header.seq, payload, header.pt)
        };
        let Some(format) = track.codec_and_nack_of_payload_type(pt) else {
            return;
        };
        let Some(encoding) = track.encodings.get_mut(role.encoding_index) else {
            return;
        };
        if encoding.ssrc.is_none() || (role.is_rtx && encoding.is_newer_than_highest(seq)) {
            return;
        }
        let id = track.negotiated_track.extension_ids.abs_capture_time;
        encoding.next_packet_captured_at = id.and_then(|id| self.ntp_clock.abs_capture_instant(header.extension(id)?));
        encoding.handle_packet(now, &header, seq, payload, format);
        if encoding.take_ssrc_started_mid_gop_flag() && track.negotiated_track.accepts_key_frame_requests() {
            encoding.key_frame_request_scheduler.request_key_frame_at_once(now);
        }
        self.collect_released_packets(now, role.track_index, role.encoding_index);
    }

    /// Keeps the packets that an encoding has released for the end of the tick.
    fn collect_released_packets(&mut self, now: Instant, track_index: usize, index: usize) {
        let Some(track) = self.tracks.get_mut(track_index) else {
            return;
        };
        let Some(encoding) = track.encodings.get_mut(index) else {
            return;
        };
        let mut has_key_frame = false;
        for (packet, change) in encoding.take_released_packets() {
            if packet.identifies_key_frame {
                has_key_frame = true;
                self.key_frame_responses.on_key_frame(now);
            }
            self.awaiting_media_since = None;
            self.missing_media
                .on_packet(now, track.negotiated_track.kind, packet.identifies_key_frame);
            if self.pending_packets.len() < MAX_PACKETS_PER_TICK {
                self.pending_packets.push((track_index, index, packet, change));
            }
        }
        if has_key_frame {
            encoding.key_frame_request_scheduler.on_key_frame();
        }
    }

    /// Whether packets wait for [`Self::publish_arrived_packets`].
    pub fn has_packets_to_publish(&self) -> bool {
        !self.pending_packets.is_empty()
    }

    /// Acts on the publisher's RTCP.
    pub fn handle_rtcp(&mut self, now: Instant, messages: &[RtcpMessage]) {
        for message in messages {
            let RtcpMessage::SenderReport {
                ssrc, ntp, rtp_time, ..
            } = message
            else {
                continue;
            };
            let Some(role) = self.ssrc_roles.get(ssrc).filter(|p| !p.is_rtx).copied() else {
                continue;
            };
            let Some(track) = self.tracks.get_mut(role.track_index) else {
                continue;
            };
            let encoding = track.encodings.get_mut(role.encoding_index);
            // A report of an SSRC that another one followed is about its own timestamps.
            let Some(encoding) = encoding.filter(|encoding| encoding.ssrc == Some(*ssrc)) else {
                continue;
            };
            let Some(time) = encoding.record_sender_report_and_extend_timestamp(now, *ntp, *rtp_time) else {
                continue;
            };
            let Some(captured) = self.ntp_clock.observe_ntp_and_convert_to_instant(*ntp, now) else {
                continue;
            };
            let report = CaptureTimeReport {
                numbering_epoch: encoding.numbering_epoch(),
                timestamp: time,
                captured_at: captured,
                standing_delay: self.ntp_clock.standing_delay(),
            };
            if track.negotiated_track.kind == MediaKind::Video {
                self.layer_streams
                    .on_sender_report(role.encoding_index, self.source_ref.session_id, report);
            }
            if role.encoding_index != track.active_encoding_index {
                continue;
            }
            if let Some(stream) = &self.stream {
                let (session, kind) = (self.source_ref.session_id, track.negotiated_track.kind);
                stream.with_state(|state| {
                    if state.is_source_session(session) {
                        encoding
                            .numbering_rewriter
                            .realign_timestamps_and_record_capture_time(state.track(kind), report);
                    }
                });
            }
        }
    }

    /// A viewer needs a key frame of this layer; `None` is the one that the stream carries.
    pub fn schedule_key_frame_request(&mut self, layer: Option<&Rid>) {
        for track in self
            .tracks
            .iter_mut()
            .filter(|t| t.negotiated_track.accepts_key_frame_requests())
        {
            track.schedule_key_frame_request(layer);
        }
    }

    /// Puts what arrived in this turn on the line.
    pub fn publish_arrived_packets(&mut self, hub: &Hub) -> PublishedBatchesAndTakeover {
        let mut published = PublishedBatchesAndTakeover::default();
        if self.pending_packets.is_empty() {
            return published;
        }
        let stream = self.ensure_attached_as_stream_source(hub, &mut published);
        stream.with_state(|state| {
            if !state.is_source_session(self.source_ref.session_id) {
                published.displaced = true;
                return;
            }
            state.responds_to_key_frame_requests = self.key_frame_responses.encoder_answers_key_frame_requests();
            self.layer_streams.collect_packets(&self.tracks, &self.pending_packets);
            let mut packets = Vec::new();
            self.write_arrived_packets_to_stream(state, &mut packets);
            self.layer_streams
                .publish_layer_list_and_read_timestamp(&self.tracks, &self.stream_key, state);
            published
                .batches
                .extend(PacketBatchToDeliver::new(&stream, state, packets));
        });
        if published.displaced {
            return published;
        }
        let layers = self.layer_streams.publish(
            hub,
            self.source_ref,
            self.key_frame_responses.encoder_answers_key_frame_requests(),
        );
        published.batches.extend(layers);
        published
    }

    fn ensure_attached_as_stream_source(
        &mut self,
        hub: &Hub,
        published: &mut PublishedBatchesAndTakeover,
    ) -> Arc<Stream> {
        if let (true, Some(stream)) = (self.attached, &self.stream) {
            return stream.clone();
        }
        let (source, formats) = (self.source_ref, self.received_or_negotiated_formats());
        let first_arrival = self.pending_packets.iter().map(|(.., packet, _)| packet.arrival).min();
        let mut attached = false;
        let stream = hub.open_and_update_stream(&self.stream_key, |state| {
            // It was accepted before the stream had several sources.
            if state.is_fed_by_failover_group() {
                return;
            }
            published.replaced_source = state.replace_source(source, &formats);
            if let Some(arrival) = first_arrival {
                state.expect_media_since(arrival);
            }
            attached = true;
        });
        if attached {
            self.attached = true;
            self.stream = Some(stream.clone());
        }
        stream
    }

    fn write_arrived_packets_to_stream(&mut self, state: &mut StreamState, out: &mut Vec<Arc<RingEntry>>) {
        let Some(now) = self.pending_packets.iter().map(|(.., packet, _)| packet.arrival).max() else {
            return;
        };
        // Video first: an audio packet may then ride as the shorter last segment of its run.
        let mut arrived = std::mem::take(&mut self.pending_packets);
        arrived.sort_by_key(|(track, encoding, ..)| {
            (
                self.tracks
                    .get(*track)
                    .is_some_and(|t| t.negotiated_track.kind == MediaKind::Audio),
                *track,
                *encoding,
            )
        });
        let mut rest = arrived.into_iter().peekable();
        while let Some((track, encoding, first, change)) = rest.next() {
            let (mut packets, mut change) = (vec![first], change);
            while let Some((.., next, more)) = rest.next_if(|(t, e, ..)| (*t, *e) == (track, encoding)) {
                packets.push(next);
                change = FormatOrResolutionChange {
                    format: more.format.or(change.format),
                    resolution: more.resolution.or(change.resolution),
                };
            }
            if let Some(incoming) = self.tracks.get_mut(track) {
                let arrived = EncodingPacketBatch {
                    encoding_index: encoding,
                    packets,
                    format_change: change,
                };
                incoming.switch_encoding_if_better_and_publish(
                    now,
                    arrived,
                    state.track(incoming.negotiated_track.kind),
                    out,
                );
            }
        }
        for track in self
            .tracks
            .iter_mut()
            .filter(|t| t.negotiated_track.accepts_key_frame_requests())
        {
            track.schedule_needed_key_frame_requests(now);
        }
    }

    /// The session is over.
    pub fn detach_from_stream(&self, hub: &Hub) {
        if let Some(stream) = &self.stream {
            hub.update_stream_and_remove_if_unused(stream, |state| {
                state.detach_source_if_current(self.source_ref.session_id);
            });
        }
        self.layer_streams.detach_publisher(hub, self.source_ref.session_id);
    }

    /// RTCP that is due, a datagram each: reports and bandwidth feedback in one compound packet, and with it the NACKs
    /// and key frame requests about tracks that take nothing but compound packets (RFC 3550 §6.1). About a track with
    /// reduced-size RTCP each of them is a packet of its own (RFC 5506 §4.1), and goes first: FFmpeg 9.0.2 looks at the
    /// first packet of a datagram alone, and drops a NACK that anything follows.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.release_packets_held_for_marker(now);
        let mut datagrams = Vec::new();
        let mut body = Vec::new();
        for track in &mut self.tracks {
            let mut has_requested_key_frame = false;
            for encoding in &mut track.encodings {
                let Some(ssrc) = encoding.ssrc else { continue };
                let awaited_key_frame = encoding.key_frame_request_scheduler.poll(now);
                has_requested_key_frame |= awaited_key_frame;
                let nacks = encoding.poll_nacks(now, NACK_REPEAT_INTERVAL);
                if let Some(stream) = &self.stream {
                    traffic::add_to_counter(
                        &stream.transport_stats.packet_count_nacked_to_source,
                        nacks.len() as u64,
                    );
                    traffic::add_to_counter(
                        &stream.transport_stats.key_frame_request_count_to_source,
                        u64::from(awaited_key_frame),
                    );
                }
                let from = self.feedback.sender_ssrc;
                let (mut nack, mut pli) = (Vec::new(), Vec::new());
                rtcp::write_nack(&mut nack, from, ssrc, &nacks);
                if awaited_key_frame && track.negotiated_track.accepts_picture_loss_indications() {
                    rtcp::write_pli(&mut pli, from, ssrc);
                } else if awaited_key_frame {
                    rtcp::write_fir(&mut pli, from, ssrc, encoding.increment_fir_seq());
                }
                if track.negotiated_track.reduced_size_rtcp {
                    datagrams.extend([nack, pli].into_iter().filter(|packet| !packet.is_empty()));
                } else {
                    body.extend([nack, pli].concat());
                }
            }
            if has_requested_key_frame {
                self.key_frame_responses.on_key_frame_request(now);
                self.missing_media.on_key_frame_request(now);
            }
        }
        let media = self
            .ssrc_roles
            .iter()
            .find(|(_, place)| !place.is_rtx)
            .map(|(ssrc, _)| *ssrc);
        self.feedback.write_bandwidth_feedback(now, media, &mut body);
        let blocks = if self.feedback.next_report_at <= now {
            self.end_receiver_report_interval(now)
        } else {
            Vec::new()
        };
        if !body.is_empty() || !blocks.is_empty() {
            let mut compound = Vec::new();
            rtcp::write_receiver_report_with_cname(
                &mut compound,
                self.feedback.sender_ssrc,
                &blocks,
                &self.feedback.cname,
            );
            compound.extend(body);
            datagrams.push(compound);
        }
        datagrams
    }

    /// Collects packets that cannot wait longer for the one after them.
    fn release_packets_held_for_marker(&mut self, now: Instant) {
        for track in 0..self.tracks.len() {
            let encodings = self.tracks.get(track).map_or(0, |track| track.encodings.len());
            for index in 0..encodings {
                let encoding = self.tracks.get_mut(track).and_then(|t| t.encodings.get_mut(index));
                if let Some(encoding) = encoding {
                    encoding.handle_timeout(now);
                    self.collect_released_packets(now, track, index);
                }
            }
        }
    }

    fn end_receiver_report_interval(&mut self, now: Instant) -> Vec<rtcp::ReceiverReportStats> {
        self.feedback.next_report_at = now + RECEIVER_REPORT_INTERVAL;
        if let Some(stream) = &self.stream {
            let (session, arrivals) = (self.source_ref.session_id, &self.missing_media);
            stream.with_state(|state| {
                if state.is_source_session(session) {
                    arrivals.record_missing_media_in_stream(now, state);
                }
            });
        }
        let encodings = self.tracks.iter_mut().flat_map(|t| &mut t.encodings);
        let traffic = self.stream.as_ref().map(|stream| &stream.transport_stats);
        let blocks: Vec<rtcp::ReceiverReportStats> = encodings
            .filter_map(|encoding| {
                let block = encoding.take_report_block(now)?;
                let (expected, missing) = encoding.last_report_expected_and_lost();
                if let Some(traffic) = traffic {
                    traffic.record_expected_and_missing_packets(expected, missing);
                }
                Some(block)
            })
            .collect();
        if let (Some(remb), Some(worst)) = (&mut self.feedback.remb, blocks.iter().map(|b| b.fraction_lost).max()) {
            remb.record_fraction_lost(worst);
        }
        blocks
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let tracks = self.tracks.iter().flat_map(|t| {
            let nacks = t.encodings.iter().filter_map(IncomingEncoding::poll_timeout);
            let known = t.encodings.iter().filter(|encoding| encoding.ssrc.is_some());
            nacks.chain(known.filter_map(move |encoding| encoding.key_frame_request_scheduler.poll_timeout(now)))
        });
        tracks.chain([self.feedback.poll_timeout()]).min()
    }
}

impl SsrcRole {
    fn new(track: usize, encoding: usize, rtx: bool) -> Self {
        Self {
            track_index: track,
            encoding_index: encoding,
            is_rtx: rtx,
            last_packet_at: None,
        }
    }
}
