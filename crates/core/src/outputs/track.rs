//! One track of one viewer: its position in the stream's track, and the packets that it sends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::forwarding_delay::ForwardingDelay;
use super::playout_delay::PlayoutDelayControl;
use super::reference_frame_selector::ReferenceFrameSelector;
use super::retransmission_limiter::{RetransmissionLimiter, SenderReportCounts};
use super::sent_transport_sequence_numbers::TransportSeqByOutgoingSeq;
use super::seq_and_timestamp_rewriter::RtpSeqAndTimestampRewriter;
use super::transport_cc_egress::{OutgoingPayload, TransportCcEgress};
use crate::congestion::PacketPurpose;
use crate::congestion::ladder::FrameSelection;
use crate::congestion::pacer::PACING_INTERVAL_US;
use crate::hub::ring::{PacketRing, RingEntry};
use crate::hub::vp8_rewriter::{Vp8CounterOffset, Vp8CounterTracker};
use crate::media::clock::{TimestampCompression, duration_to_ticks, ticks_to_duration};
use crate::media::packet::{Packet, TrackSeq, TrackTime};
use crate::media::{Codec, MediaKind, PayloadType, Ssrc};
use crate::sdp::negotiation_result::OutgoingTrack;
use crate::session::outbox::RtpHeader;
use crate::session::srtp::SrtpError;

/// A track that a viewer negotiated.
pub struct TrackSender {
    kind: MediaKind,
    ssrc: Ssrc,
    rtx_ssrc: Option<Ssrc>,
    /// Id of the header extension for transport-wide numbers, if the viewer's packets are numbered.
    transport_cc_id: Option<u8>,
    /// Numbers of what may be retransmitted byte for byte as before; made with the first packet.
    sent_numbers: Option<Box<TransportSeqByOutgoingSeq>>,
    /// Payload type and that of its retransmissions, by [`Codec`].
    payload_types_by_codec: [Option<(PayloadType, Option<PayloadType>)>; CODEC_COUNT],
    rtp_sequence_rewriter: RtpSeqAndTimestampRewriter,
    send_state: SendState,
    /// Track position after the last packet that was sent.
    sent_end_position: TrackSeq,
    /// Track position after the last packet that was skipped because the viewer cannot receive it.
    skipped_end_position: TrackSeq,
    /// Latest rewritten track time that was sent.
    latest_sent_track_time: TrackTime,
    /// Audio before this time was already sent, from another track.
    first_unsent_audio_time: TrackTime,
    /// What is left out.
    frame_selection: FrameSelection,
    reference_frames: ReferenceFrameSelector,
    /// Position and time of the key frame that was begun with last.
    key_frame: (TrackSeq, TrackTime),
    /// Rate of bursts, where congestion control paces them, in bytes per second.
    paced_burst_rate: Option<u32>,
    /// Number of bursts so far. A burst that had to be repeated exceeded the capacity of the path to this viewer.
    burst_count: u32,
    /// The last burst repeated what was sent before.
    last_burst_is_replay: bool,
    next_rtx_seq: u64,
    sender_report_counts: SenderReportCounts,
    /// Highest outgoing sequence number; and that and the number of packets at the last report of the viewer.
    highest_sent_seq: u64,
    counts_at_last_report: (u64, u32),
    /// Offsets of the VP8 picture id and TL0PICIDX of the current track, and the values that the next track continues
    /// from.
    vp8_counter_offsets: Vp8CounterOffset,
    previous_vp8_counter_tracker: Option<Vp8CounterTracker>,
    retransmission_history: Option<Box<RetransmissionLimiter>>,
    /// How long the viewer should hold frames, if it takes that.
    playout_delay: Option<Box<PlayoutDelayControl>>,
    /// Packets for probes while nothing of the video is sent, and whether newer ones were sent.
    probe_reserve: Vec<PendingRetransmission>,
    is_probe_reserve_old: bool,
    forwarding_delay: ForwardingDelay,
}

/// State of a track.
#[derive(Clone, Copy, Debug)]
enum SendState {
    /// No key frame to start with yet, or waiting until `until` for a requested one.
    AwaitingKeyFrame {
        until: Option<Instant>,
        /// The key frame in the ring when a new one was requested.
        cached: Option<TrackSeq>,
    },
    /// Reads from the ring. Packets before `cursor` with an `order` up to `read_order` were sent, or are not needed.
    CatchingUp {
        cursor: TrackSeq,
        read_order: u64,
        started: Instant,
        due: Instant,
        pace: Option<BurstSchedule>,
    },
    /// Forwards packets as they arrive. Packets with an `order` up to this one were sent, or are not needed.
    Live { after_order: u64 },
}

impl SendState {
    const AWAITING_KEY_FRAME: Self = Self::AwaitingKeyFrame {
        until: None,
        cached: None,
    };
}

#[derive(Clone, Copy, Debug)]
struct BurstSchedule {
    timestamp_compression: TimestampCompression,
    clock_rate: u32,
    key_frame_seq: TrackSeq,
}

/// A packet to be retransmitted, and its outgoing sequence number and RTP timestamp.
#[derive(Clone)]
pub struct PendingRetransmission {
    out_seq: u64,
    timestamp: u32,
    ring_entry: Arc<RingEntry>,
    /// As it was sent, if it was not as in the ring and the track may be another one since.
    sent_payload: Option<Bytes>,
}

const CODEC_COUNT: usize = 10;

/// Minimum rate of the burst with which a viewer starts, in bytes per second.
const MIN_UNPACED_FIRST_BURST_BYTES_PER_SECOND: usize = 8_000_000;

/// Maximum duration of the first burst, whatever is in the ring.
const MAX_FIRST_BURST_SEND_TIME: Duration = Duration::from_millis(500);

/// Each repeated burst takes twice as long as the one before, for at most this many doublings.
const MAX_BURST_DURATION_DOUBLINGS: u32 = 3;

/// If the cached key frame is younger than this, the burst is sent without timestamp compression.
const MIN_KEY_FRAME_AGE_TO_COMPRESS: Duration = Duration::from_millis(100);

/// Time between two parts of a burst.
const BURST_PART_INTERVAL: Duration = Duration::from_millis(10);

/// The same where congestion control paces it.
const PACED_BURST_PART_INTERVAL: Duration = Duration::from_micros(PACING_INTERVAL_US);

/// Maximum number of packets in one part of a burst: what the socket buffer of a receiver holds.
const MAX_PACKETS_PER_BURST_PART: usize = 128;

impl TrackSender {
    /// `random` seeds the initial sequence numbers and timestamp, which must be unpredictable.
    pub fn new(plan: OutgoingTrack, random: &mut dyn FnMut() -> u32) -> Self {
        let mut payload_types = [None; CODEC_COUNT];
        for codec in plan.codecs.iter().rev() {
            if let Some(slot) = payload_types.get_mut(codec.format.codec() as usize) {
                *slot = Some((codec.pt, codec.rtx_pt));
            }
        }
        Self {
            kind: plan.kind,
            ssrc: plan.ssrc,
            rtx_ssrc: plan.rtx_ssrc,
            transport_cc_id: plan.extension_ids.transport_cc,
            sent_numbers: None,
            payload_types_by_codec: payload_types,
            rtp_sequence_rewriter: RtpSeqAndTimestampRewriter::new(random() as u16, random()),
            send_state: SendState::AWAITING_KEY_FRAME,
            sent_end_position: 0,
            skipped_end_position: 0,
            latest_sent_track_time: 0,
            first_unsent_audio_time: 0,
            frame_selection: FrameSelection::All,
            reference_frames: ReferenceFrameSelector::default(),
            key_frame: (0, 0),
            paced_burst_rate: None,
            burst_count: 0,
            last_burst_is_replay: false,
            next_rtx_seq: u64::from(random() & 0x7fff),
            sender_report_counts: SenderReportCounts::default(),
            highest_sent_seq: 0,
            counts_at_last_report: (0, 0),
            vp8_counter_offsets: Vp8CounterOffset::default(),
            previous_vp8_counter_tracker: None,
            retransmission_history: None,
            playout_delay: plan
                .extension_ids
                .playout_delay
                .map(|id| Box::new(PlayoutDelayControl::new(id))),
            probe_reserve: Vec::new(),
            is_probe_reserve_old: false,
            forwarding_delay: ForwardingDelay::default(),
        }
    }

    /// Returns whether this is audio or video.
    pub fn kind(&self) -> MediaKind {
        self.kind
    }

    /// Returns the SSRC of the media.
    pub fn ssrc(&self) -> Ssrc {
        self.ssrc
    }

    /// Returns what was sent so far, without retransmissions.
    pub fn sender_report_counts(&self) -> SenderReportCounts {
        self.sender_report_counts
    }

    /// Returns how long packets have waited in the gateway of late; `None` if none was sent.
    pub fn recent_forwarding_delay(&self, now: Instant) -> Option<Duration> {
        self.forwarding_delay.recent_mean(now)
    }

    /// Returns whether the track waits for a key frame.
    pub fn awaits_key_frame(&self) -> bool {
        matches!(self.send_state, SendState::AwaitingKeyFrame { .. })
    }

    /// Returns which fraction of the packets since the last call the source itself lacked, in 1/256: the viewer misses them
    /// too, whatever its path is like.
    pub fn take_publisher_fraction_lost(&mut self) -> u8 {
        let now = (self.highest_sent_seq, self.sender_report_counts.packet_count);
        let (seq, count) = std::mem::replace(&mut self.counts_at_last_report, now);
        let expected = now.0.saturating_sub(seq);
        let missing = expected.saturating_sub(u64::from(now.1.wrapping_sub(count)));
        u8::try_from(missing * 256 / expected.max(1)).unwrap_or(u8::MAX)
    }

    /// Starts at the live edge. For audio, where every packet can be decoded on its own.
    pub fn start_at_live_edge(&mut self, ring: &PacketRing) {
        self.rtp_sequence_rewriter
            .continue_from_track_position(self.sent_end_position, ring.end_seq(), None);
        self.sent_end_position = ring.end_seq();
        self.send_state = SendState::Live {
            after_order: ring.insertion_count(),
        };
    }

    /// Returns the position of the last packet that was sent from the current track.
    pub fn last_sent_position(&self) -> Option<TrackSeq> {
        self.sent_end_position
            .checked_sub(1)
            .filter(|_| self.sender_report_counts.packet_count > 0)
    }

    /// Stops reading the current track. The next start is from another track with the same time base. `last` is the
    /// last packet that was sent, if the ring still holds it: VP8 picture ids continue after it.
    pub fn stop_reading_source_track(&mut self, last: Option<&Packet>) {
        if let Some(last) = last.filter(|last| last.codec == Codec::Vp8) {
            let mut anchor = Vp8CounterTracker::default();
            anchor.record_newest_payload(&self.vp8_counter_offsets.rewrite_payload_counters(last.payload.clone()));
            self.previous_vp8_counter_tracker = Some(anchor);
        }
        self.rtp_sequence_rewriter
            .clear_seq_offset_ranges(self.sent_end_position);
        (self.sent_end_position, self.skipped_end_position) = (0, 0);
        self.first_unsent_audio_time = self.latest_sent_track_time + 1;
        self.send_state = SendState::AWAITING_KEY_FRAME;
        self.reference_frames.forget_frames();
    }

    /// Returns whether a codec was negotiated.
    pub fn has_negotiated_codec(&self, codec: Codec) -> bool {
        self.media_and_rtx_payload_types(codec).is_some()
    }

    /// Waits until `until` for the key frame that was requested from the source, then starts at the cached one.
    pub fn wait_for_fresh_key_frame_until(&mut self, until: Instant, ring: &PacketRing) {
        self.send_state = SendState::AwaitingKeyFrame {
            until: Some(until),
            cached: ring.newest_key_frame_seq(),
        };
    }

    /// Starts at the cached key frame. Returns its age, or `None` if there is none and the track waits.
    pub fn start_at_cached_key_frame(&mut self, now: Instant, ring: &PacketRing) -> Option<Duration> {
        if self.frame_selection == FrameSelection::AudioOnly {
            self.send_state = SendState::AWAITING_KEY_FRAME;
            return None;
        }
        let cached = ring
            .newest_key_frame_seq()
            .and_then(|seq| Some((seq, &ring.get(seq)?.packet)));
        let (Some((key_frame, first)), Some((newest, _))) = (cached, ring.newest_track_time_and_arrival()) else {
            self.send_state = SendState::AWAITING_KEY_FRAME;
            return None;
        };
        let rate = first.codec.clock_rate();
        let age = ticks_to_duration(newest.saturating_sub(first.time), rate);
        // What was already sent has the time of the live edge; what follows must be later.
        let begin = newest.max(self.latest_sent_track_time) + 1;
        let key_frame_bytes = ring.frame_byte_count(key_frame);
        let key_frame_duration = burst::key_frame_send_duration(key_frame_bytes, self.paced_burst_rate);
        let compression =
            (age >= MIN_KEY_FRAME_AGE_TO_COMPRESS || first.time <= self.latest_sent_track_time).then(|| {
                let doublings = 1 << self.burst_count.min(MAX_BURST_DURATION_DOUBLINGS);
                let bytes = ring.byte_count_since_key_frame();
                let room = match self.paced_burst_rate {
                    Some(rate) => burst::paced_burst_duration(bytes.saturating_sub(key_frame_bytes), age, rate),
                    None => Duration::from_secs_f64(
                        bytes as f64 / MIN_UNPACED_FIRST_BURST_BYTES_PER_SECOND as f64 * f64::from(doublings),
                    )
                    .min(MAX_FIRST_BURST_SEND_TIME * doublings)
                    .min(age / 2),
                };
                let begin = begin + duration_to_ticks(key_frame_duration, rate);
                TimestampCompression {
                    first_packet_time: first.time,
                    mapped_first_packet_time: begin,
                    live_edge_time: begin + duration_to_ticks(room.max(BURST_PART_INTERVAL), rate),
                }
            });
        self.burst_count += 1;
        self.last_burst_is_replay = false;
        self.forwarding_delay.ignore_arrivals_before(now);
        self.reference_frames.forget_frames();
        self.rtp_sequence_rewriter
            .continue_from_track_position(self.sent_end_position, key_frame, compression);
        self.sent_end_position = key_frame;
        self.key_frame = (key_frame, first.time);
        let pace = compression.map(|compression| BurstSchedule {
            timestamp_compression: compression,
            clock_rate: rate,
            key_frame_seq: key_frame,
        });
        self.send_state = SendState::CatchingUp {
            cursor: key_frame,
            read_order: ring.insertion_count(),
            started: now + key_frame_duration,
            due: now,
            pace,
        };
        Some(age)
    }

    /// Sends the cached key frame and everything after it once more, with new sequence numbers: the viewer cannot
    /// decode, and the source sends no key frame.
    pub fn replay_from_cached_key_frame(&mut self, now: Instant, ring: &PacketRing) {
        let is_idle = matches!(
            self.send_state,
            SendState::Live { .. } | SendState::AwaitingKeyFrame { until: None, .. }
        );
        if ring.newest_key_frame_seq().is_some() && is_idle {
            self.start_at_cached_key_frame(now, ring);
            self.last_burst_is_replay = true;
        }
    }

    /// Whether a burst is being sent because the viewer could not decode what it was sent before.
    pub fn is_repeating_burst(&self) -> bool {
        self.last_burst_is_replay && matches!(self.send_state, SendState::CatchingUp { .. })
    }

    /// Sends nothing more from the ring, and goes on with the next key frame.
    pub fn stop_burst_until_key_frame(&mut self) {
        if matches!(
            self.send_state,
            SendState::CatchingUp { .. } | SendState::AwaitingKeyFrame { until: Some(_), .. }
        ) {
            self.send_state = SendState::AWAITING_KEY_FRAME;
        }
    }

    /// Reads from the ring what the mailbox of this shard lost.
    pub fn catch_up_after_mailbox_overflow(&mut self, now: Instant) {
        if let SendState::Live { after_order } = self.send_state {
            self.last_burst_is_replay = false;
            let cursor = self.sent_end_position;
            self.send_state = SendState::CatchingUp {
                cursor,
                read_order: after_order,
                started: now,
                due: now,
                pace: None,
            };
        }
    }

    /// When [`Self::collect_due_packets`] must be called.
    pub fn next_catch_up_at(&self) -> Option<Instant> {
        match self.send_state {
            SendState::CatchingUp { due, .. } => Some(due),
            SendState::AwaitingKeyFrame { until, .. } => until,
            SendState::Live { .. } => None,
        }
    }

    /// Whether packets are read from the ring at all: not those of a track that forwards what arrives.
    pub fn reads_from_ring(&self) -> bool {
        !matches!(self.send_state, SendState::Live { .. })
    }

    /// The timestamps of a burst can be slightly ahead of a packet that arrived late; timestamps must not go back.
    fn timestamp_compression_after_last_sent(&self, first: Option<&Packet>) -> Option<TimestampCompression> {
        let first = first.filter(|first| first.time <= self.latest_sent_track_time)?;
        let begin = self.latest_sent_track_time + 1;
        Some(TimestampCompression {
            first_packet_time: first.time,
            mapped_first_packet_time: begin,
            live_edge_time: begin + duration_to_ticks(MIN_KEY_FRAME_AGE_TO_COMPRESS, first.codec.clock_rate()),
        })
    }

    /// Sends a packet for the first time. A packet of a codec that the viewer did not negotiate is skipped, without a
    /// gap in the sequence numbers.
    ///
    /// # Errors
    ///
    /// [`SrtpError`]: the session cannot continue.
    pub fn send_packet(&mut self, entry: &RingEntry, egress: &mut TransportCcEgress<'_>) -> Result<(), SrtpError> {
        let packet = &entry.packet;
        let already_sent = self.kind == MediaKind::Audio && packet.time < self.first_unsent_audio_time;
        let Some((pt, rtx_pt)) = self.media_and_rtx_payload_types(packet.codec).filter(|_| !already_sent) else {
            self.skipped_end_position = self.skipped_end_position.max(packet.seq + 1);
            return Ok(());
        };
        if self.sent_end_position < self.skipped_end_position && self.skipped_end_position <= packet.seq {
            let compression = self.timestamp_compression_after_last_sent(Some(packet));
            self.rtp_sequence_rewriter.continue_from_track_position(
                self.sent_end_position,
                self.skipped_end_position,
                compression,
            );
        }
        let Some((seq, time)) = self
            .rtp_sequence_rewriter
            .outgoing_seq_and_track_time(packet.seq, packet.time)
        else {
            return Ok(());
        };
        if packet.codec == Codec::Vp8
            && let Some(anchor) = self.previous_vp8_counter_tracker.take()
        {
            self.vp8_counter_offsets = anchor.counter_offset_for_first_payload(&packet.payload);
        }
        self.sent_end_position = self.sent_end_position.max(packet.seq + 1);
        self.latest_sent_track_time = self.latest_sent_track_time.max(time);
        if self.sender_report_counts.packet_count == 0 {
            self.counts_at_last_report = (seq.saturating_sub(1), 0);
        }
        self.highest_sent_seq = self.highest_sent_seq.max(seq);
        self.sender_report_counts.packet_count = self.sender_report_counts.packet_count.wrapping_add(1);
        self.sender_report_counts.octet_count = self
            .sender_report_counts
            .octet_count
            .wrapping_add(packet.payload.len() as u32);
        let header = RtpHeader {
            pt,
            marker: packet.marker,
            ext_seq: seq,
            timestamp: self.rtp_sequence_rewriter.rtp_timestamp(time),
            ssrc: self.ssrc,
            padding_len: entry.padding_length,
            transport_sequence_number: None,
            // Not where a retransmission has to be the same packet.
            playout_delay: self
                .playout_delay
                .as_mut()
                .filter(|_| rtx_pt.is_some() && self.rtx_ssrc.is_some())
                .and_then(|control| control.playout_delay_for_new_packet(egress.now(), packet.time)),
        };
        let rewritten = self.rewrite_vp8_payload(packet);
        let payload = OutgoingPayload {
            bytes: rewritten.as_ref().unwrap_or(&packet.payload),
            rtx_original_seq: None,
            transport_cc_id: self.transport_cc_id,
        };
        let number = egress.send(header, payload, PacketPurpose::Media)?;
        // A frame is complete with its last packet.
        if packet.marker || self.kind == MediaKind::Audio {
            self.forwarding_delay.record(packet.arrival, egress.now());
        }
        if let Some(number) = number.filter(|_| self.rtx_ssrc.is_none() || rtx_pt.is_none()) {
            let sent = self
                .sent_numbers
                .get_or_insert_with(|| Box::new(TransportSeqByOutgoingSeq::new()));
            sent.insert(seq, number);
        }
        Ok(())
    }

    /// Returns the payload with VP8 picture ids rewritten for this viewer; `None` if they need no change.
    fn rewrite_vp8_payload(&self, packet: &Packet) -> Option<Bytes> {
        let needs_rewrite = packet.codec == Codec::Vp8 && self.vp8_counter_offsets != Vp8CounterOffset::default();
        needs_rewrite.then(|| {
            self.vp8_counter_offsets
                .rewrite_payload_counters(packet.payload.clone())
        })
    }

    fn media_and_rtx_payload_types(&self, codec: Codec) -> Option<(PayloadType, Option<PayloadType>)> {
        self.payload_types_by_codec.get(codec as usize).copied().flatten()
    }

    /// Returns the RTP timestamp of a track time for a sender report; `None` during a burst, where time is not steady.
    pub fn rtp_timestamp_for_sender_report(&self, time: TrackTime) -> Option<u32> {
        let is_steady = matches!(
            self.send_state,
            SendState::Live { .. } | SendState::CatchingUp { pace: None, .. }
        );
        (is_steady && self.sender_report_counts.packet_count > 0)
            .then(|| self.rtp_sequence_rewriter.rtp_timestamp(time))
    }
}

impl BurstSchedule {
    /// A burst is sent on the schedule of its compressed timestamps.
    fn is_packet_due(&self, time: TrackTime, elapsed: Duration) -> bool {
        let at = self
            .timestamp_compression
            .compress_time(time)
            .saturating_sub(self.timestamp_compression.mapped_first_packet_time);
        ticks_to_duration(at, self.clock_rate) <= elapsed
    }
}

mod arrived_packets;
mod burst;
mod due_packets;
mod frame_selection;
mod reference_frames;
mod retransmission;
#[cfg(test)]
mod tests;
