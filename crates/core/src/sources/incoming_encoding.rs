//! One incoming RTP stream of a publisher: a track, or one simulcast layer of it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::hub::source_rewriter::{IngestSeqAndTimestampRewriter, ReceivedPacket};
use crate::media::clock::duration_to_ticks;
use crate::media::codec::{PayloadFraming, PayloadInspector, classify_payload};
use crate::media::marker::{RtpMarkerCorrector, RtpPacketMetadata};
use crate::media::payload_discard::{PayloadDiscardCounts, PayloadDiscardReason};
use crate::media::rtcp;
use crate::media::rtp::{ParsedRtpHeader, RtpTimestampUnwrapper};
use crate::media::timestamp_corrector::RtpTimestampCorrector;
use crate::media::{Codec, CodecFormat, MediaKind, Rid, Ssrc};
use crate::session::feedback::{ArrivalKind, KeyFrameRequestScheduler, NackGenerator, ReceptionStats};

/// State of one SSRC and its RTX SSRC.
pub struct IncomingEncoding {
    pub ssrc: Option<Ssrc>,
    pub rtx_ssrc: Option<Ssrc>,
    pub rid: Option<Rid>,
    pub numbering_rewriter: IngestSeqAndTimestampRewriter,
    pub key_frame_request_scheduler: KeyFrameRequestScheduler,
    /// A packet of an SSRC that another one has followed, and that sends again after a silence.
    pub returning_ssrc_packet: Option<(Ssrc, Bytes)>,
    reception_stats: Option<ReceptionStats>,
    nack_generator: Option<NackGenerator>,
    timestamp_unwrapper: RtpTimestampUnwrapper,
    timestamp_corrector: RtpTimestampCorrector,
    inspector: Option<(Codec, PayloadInspector)>,
    /// Parameter sets in the offer, by the codec of their payload type.
    parameter_sets: Vec<(Codec, Vec<Bytes>)>,
    marker_filter: RtpMarkerCorrector<(ReceivedPacket, FormatOrResolutionChange)>,
    /// Packets whose marker is known, to be published.
    released_packets: Vec<((ReceivedPacket, FormatOrResolutionChange), bool)>,
    discard_counts: PayloadDiscardCounts,
    /// NTP timestamp of the last sender report.
    last_sender_report_ntp: Option<u64>,
    /// Counts the SSRCs and the codecs so far; see [`ReceivedPacket::numbering_epoch`].
    numbering_epoch: u32,
    byte_rate: ByteRate,
    /// When the last packet arrived.
    last_packet_at: Option<Instant>,
    continuation: SsrcContinuation,
    /// Capture time of the packet that is handled next, if that has one.
    pub next_packet_captured_at: Option<Instant>,
    /// Sequence number of the last FIR.
    fir_seq: u8,
}

/// How the pictures of an SSRC go on with another one.
#[derive(Debug, Default)]
struct SsrcContinuation {
    /// Added to the sequence numbers of the present SSRC, wrapping, and the first of these.
    seq_offset: u64,
    first_seq: u64,
    /// The number that the next packet gets: the first of an SSRC whose sequence numbers started anew.
    next_seq: Option<u64>,
    /// Highest number so far, with the offset.
    highest_seq: Option<u64>,
    /// Timestamp of the newest frame, and its distance from the one before in ticks.
    newest_time: Option<u64>,
    last_frame_step: Option<u64>,
    /// The first picture data of the SSRC is still to come.
    awaits_picture: bool,
    /// It was that of no key frame.
    began_within_gop: bool,
}

/// A layer without packets for this long counts as no longer sent. Longer than the frame interval of static content.
const LAYER_SILENCE_TIMEOUT: Duration = Duration::from_secs(2);

/// An SSRC that was followed by another one and sends again after this time is no straggler: its sender came back to it.
pub const MIN_SILENCE_TO_SWITCH_SSRC: Duration = Duration::from_millis(250);

/// Another SSRC continues the numbering of the one before if it is ahead by no more than this.
const MAX_CONTINUED_SEQ_GAP: u16 = 16;
const MAX_CONTINUED_TIME_GAP: Duration = Duration::from_secs(1);

/// And by fewer than this many frames: the counter of pictures may have no more than 16 values.
const MAX_CONTINUED_FRAME_GAP: u64 = 12;

/// Least time that a bitrate is measured over.
const MIN_BITRATE_INTERVAL: Duration = Duration::from_secs(1);

/// A gap of this many intervals is a pause: it does not count for the bitrate.
const BITRATE_PAUSE_INTERVAL_COUNT: u32 = 3;

/// The negotiated properties of a payload type.
#[derive(Clone, Copy, Debug)]
pub struct PayloadTypeProperties {
    pub codec: Codec,
    pub nack: bool,
}

/// A change of format or resolution, found in the bitstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatOrResolutionChange {
    pub format: Option<CodecFormat>,
    pub resolution: Option<(u16, u16)>,
}

/// Payload bytes per second, to rank layers whose resolution is not known.
#[derive(Debug, Default)]
struct ByteRate {
    interval_start: Option<Instant>,
    interval_bytes: u64,
    last_packet_at: Option<Instant>,
    /// Length of the interval that was measured last.
    last_interval: Duration,
    bytes_per_second: u64,
}

impl IncomingEncoding {
    pub fn new(ssrc: Option<Ssrc>, rtx_ssrc: Option<Ssrc>, rid: Option<Rid>) -> Self {
        Self {
            ssrc,
            rtx_ssrc,
            rid,
            numbering_rewriter: IngestSeqAndTimestampRewriter::new(),
            key_frame_request_scheduler: KeyFrameRequestScheduler::new(),
            returning_ssrc_packet: None,
            reception_stats: None,
            nack_generator: None,
            timestamp_unwrapper: RtpTimestampUnwrapper::with_first_value_at_or_above(0),
            timestamp_corrector: RtpTimestampCorrector::new(Codec::H264),
            inspector: None,
            parameter_sets: Vec::new(),
            marker_filter: RtpMarkerCorrector::new(Codec::H264),
            released_packets: Vec::new(),
            discard_counts: PayloadDiscardCounts::default(),
            last_sender_report_ntp: None,
            numbering_epoch: 0,
            byte_rate: ByteRate::default(),
            last_packet_at: None,
            continuation: SsrcContinuation::default(),
            next_packet_captured_at: None,
            fir_seq: 0,
        }
    }

    /// Sets the parameter sets of the offer.
    pub fn with_offered_parameter_sets(mut self, sets: Vec<(Codec, Vec<Bytes>)>) -> Self {
        self.parameter_sets = sets;
        self
    }

    /// Takes another SSRC for the media, of whose packets this is the first. Some encoders change it and number on, or number
    /// anew between two frames: then the frames go on without a key frame.
    pub fn switch_to_ssrc_of_packet(&mut self, header: &ParsedRtpHeader<'_>, payload: &[u8]) {
        self.continuation.awaits_picture = self.reception_stats.is_some();
        if self.continues_seq_and_timestamp(header)
            && let Some(reception) = &mut self.reception_stats
        {
            reception.continue_numbering_with_ssrc(header.ssrc);
            self.last_sender_report_ntp = None;
            self.ssrc = Some(header.ssrc);
        } else if self.starts_next_frame_without_loss(header, payload) {
            self.continuation.next_seq = self.continuation.highest_seq.map(|highest| highest + 1);
            (self.reception_stats, self.nack_generator, self.last_sender_report_ntp) = (None, None, None);
            self.ssrc = Some(header.ssrc);
        } else {
            self.set_ssrc_and_reset_reception(header.ssrc);
        }
    }

    /// Whether a packet of another SSRC, whose sequence numbers say nothing, starts the picture after the last one:
    /// timestamps go on, and nothing was lost as far as both can tell.
    fn starts_next_frame_without_loss(&self, header: &ParsedRtpHeader<'_>, payload: &[u8]) -> bool {
        let (Some(newest_time), Some((codec, inspector))) = (self.timestamp_unwrapper.highest(), &self.inspector)
        else {
            return false;
        };
        let is_start = || classify_payload(*codec, payload).is_ok_and(PayloadFraming::is_start_of_access_unit);
        let is_complete = || {
            let has_lost = |reception: &ReceptionStats| reception.has_lost_since_last_report();
            let has_missing = |nacks: &NackGenerator| nacks.has_missing_packets();
            self.marker_filter.is_newest_frame_complete()
                && !self.reception_stats.as_ref().is_some_and(has_lost)
                && !self.nack_generator.as_ref().is_some_and(has_missing)
        };
        let ticks = u64::from(header.time.wrapping_sub(newest_time as u32));
        let max_ticks = duration_to_ticks(MAX_CONTINUED_TIME_GAP, codec.clock_rate());
        let usual_step = self.continuation.last_frame_step;
        // Pictures of other codecs carry counters of their own, which start anew with the encoder.
        matches!(codec, Codec::H264 | Codec::H265)
            && (1..=max_ticks).contains(&ticks)
            && usual_step.is_none_or(|usual| ticks <= usual * MAX_CONTINUED_FRAME_GAP)
            && is_start()
            && is_complete()
            && inspector
                .payload_starts_next_picture(payload)
                .unwrap_or_else(|| usual_step.is_some_and(|usual| ticks <= usual + usual / 2))
    }

    /// Whether the present SSRC was found to begin within a group of pictures, since the last call.
    pub fn take_ssrc_started_mid_gop_flag(&mut self) -> bool {
        std::mem::take(&mut self.continuation.began_within_gop)
    }

    /// Returns the sequence number of the next FIR (RFC 5104 §4.3.1.1).
    pub fn increment_fir_seq(&mut self) -> u8 {
        self.fir_seq = self.fir_seq.wrapping_add(1);
        self.fir_seq
    }

    /// Whether sequence number and timestamp of a packet follow those of the last one. Unrelated ones do so by chance once
    /// in 10⁸ times.
    fn continues_seq_and_timestamp(&self, header: &ParsedRtpHeader<'_>) -> bool {
        let ahead = self
            .reception_stats
            .as_ref()
            .and_then(|reception| reception.seqs_ahead_of_highest(header.seq));
        let (Some(ahead), Some(newest_time), Some((codec, _))) =
            (ahead, self.timestamp_unwrapper.highest(), &self.inspector)
        else {
            return false;
        };
        let ticks = header.time.wrapping_sub(newest_time as u32);
        (1..=MAX_CONTINUED_SEQ_GAP).contains(&ahead)
            && u64::from(ticks) <= duration_to_ticks(MAX_CONTINUED_TIME_GAP, codec.clock_rate())
    }

    /// Sets the SSRC of the media. If packets of another SSRC were received before, sequence numbers and timestamps start
    /// again: those of different SSRCs are unrelated (RFC 3550 §8.2). Parameter sets are kept, because encoders that change
    /// their SSRC with each key frame send them only once.
    pub fn set_ssrc_and_reset_reception(&mut self, ssrc: Ssrc) {
        let awaits_picture = self.reception_stats.is_some();
        self.continuation = SsrcContinuation {
            awaits_picture,
            ..SsrcContinuation::default()
        };
        if self.reception_stats.take().is_some() {
            self.nack_generator = None;
            self.timestamp_unwrapper = RtpTimestampUnwrapper::with_first_value_at_or_above(0);
            self.timestamp_corrector.on_seq_and_timestamp_discontinuity();
            self.marker_filter
                .flush_on_seq_and_timestamp_discontinuity(&mut self.released_packets);
            self.numbering_epoch += 1;
            self.last_sender_report_ntp = None;
            if let Some((_, inspector)) = &mut self.inspector {
                inspector.on_timestamp_discontinuity();
            }
        }
        self.ssrc = Some(ssrc);
    }

    /// Whether a sequence number is newer than all that arrived.
    pub fn is_newer_than_highest(&self, seq: u16) -> bool {
        self.reception_stats
            .as_ref()
            .is_none_or(|reception| reception.is_newer_than_highest(seq))
    }

    /// Processes a packet; [`Self::take_released_packets`] returns it, or earlier ones. `seq` is its sequence number or, for a
    /// retransmission, the original one. A duplicate or a packet that is too old is dropped.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        header: &ParsedRtpHeader<'_>,
        seq: u16,
        payload: Bytes,
        format: PayloadTypeProperties,
    ) {
        let captured_at = self.next_packet_captured_at.take();
        let ssrc = self.ssrc.unwrap_or(header.ssrc);
        let reception = self
            .reception_stats
            .get_or_insert_with(|| ReceptionStats::new(ssrc, format.codec.clock_rate()));
        let arrival = reception.on_packet(now, seq, header.time);
        match arrival.kind {
            ArrivalKind::New | ArrivalKind::Late => {}
            ArrivalKind::Duplicate | ArrivalKind::TooOld => return,
        }
        if format.nack {
            self.nack_generator
                .get_or_insert_with(|| NackGenerator::new(format.codec.kind()))
                .on_packet(now, arrival);
        }
        self.byte_rate.add_payload_bytes(now, payload.len());
        self.last_packet_at = Some(now);
        let part = classify_payload(format.codec, &payload);
        if let Err(odd) = part
            && self.discard_counts.count_discard(odd)
            && odd != PayloadDiscardReason::EmptyPayload
        {
            tracing::warn!(
                ssrc = ssrc.0,
                codec = format.codec.name(),
                "publisher sends {odd}, which the gateway drops: they are invalid or not supported"
            );
        }
        let Some(seq) = self.continuation.map_to_continued_seq(arrival.ext_seq) else {
            return;
        };
        let mut mark = RtpPacketMetadata {
            seq,
            // Probes and odd packets may have any timestamp.
            time: match part {
                Ok(_) => self.timestamp_unwrapper.extend(header.time),
                Err(_) => 0,
            },
            marker: header.marker,
            payload_framing: part.ok(),
            arrival: now,
        };
        mark.time = self.corrected_timestamp(format.codec, &mark);
        let mut packet = ReceivedPacket {
            numbering_epoch: self.numbering_epoch,
            seq: mark.seq,
            timestamp: mark.time,
            marker: header.marker,
            codec: format.codec,
            identifies_key_frame: false,
            parameter_sets_to_insert: Vec::new(),
            payload: if part.is_ok() { payload } else { Bytes::new() },
            arrival: now,
            captured_at,
        };
        let change = self.inspect_payload_and_annotate_packet(&mut packet);
        if packet.identifies_key_frame
            && let Some(nacks) = &mut self.nack_generator
        {
            nacks.on_key_frame_packet(arrival.ext_seq, packet.timestamp);
        }
        self.continuation.on_packet(&mark, packet.identifies_key_frame);
        if format.codec.kind() == MediaKind::Audio {
            let marker = packet.marker;
            self.released_packets.push(((packet, change), marker));
        } else {
            self.marker_filter
                .push(mark, (packet, change), &mut self.released_packets);
        }
    }

    /// Returns the timestamp of a packet, by its arrival if the sender's timestamps stand still.
    fn corrected_timestamp(&mut self, codec: Codec, packet: &RtpPacketMetadata) -> u64 {
        if self.timestamp_corrector.codec() != codec && packet.payload_framing.is_some() {
            self.timestamp_corrector = RtpTimestampCorrector::new(codec);
        }
        self.timestamp_corrector.correct_packet_timestamp(packet)
    }

    /// Finds key frames and changes of the format; a packet that was emptied has none.
    fn inspect_payload_and_annotate_packet(&mut self, packet: &mut ReceivedPacket) -> FormatOrResolutionChange {
        if packet.payload.is_empty() {
            return FormatOrResolutionChange::default();
        }
        let codec = packet.codec;
        if self.inspector.as_ref().is_none_or(|(other, _)| *other != codec) {
            // RFC 3264 lets a publisher switch between negotiated payload types at any time.
            let mut inspector = PayloadInspector::new(codec);
            let sets = self.parameter_sets.iter().filter(|(other, _)| *other == codec);
            sets.for_each(|(_, sets)| inspector.store_out_of_band_parameter_sets(sets));
            if self.inspector.replace((codec, inspector)).is_some() {
                self.marker_filter
                    .flush_on_seq_and_timestamp_discontinuity(&mut self.released_packets);
                self.numbering_epoch += 1;
            }
            self.marker_filter = RtpMarkerCorrector::new(codec);
        }
        packet.numbering_epoch = self.numbering_epoch;
        let inspection = self
            .inspector
            .as_mut()
            // It only compares timestamps: the low 32 bits are enough.
            .map(|(_, i)| i.inspect_rtp_payload(packet.timestamp as u32, &packet.payload));
        let inspection = inspection.unwrap_or_default();
        packet.identifies_key_frame = inspection.identifies_key_frame;
        packet.parameter_sets_to_insert = inspection.parameter_sets_to_insert;
        FormatOrResolutionChange {
            format: inspection.new_format,
            resolution: inspection.new_resolution,
        }
    }

    /// Releases a packet whose marker is not known yet, but which cannot wait longer.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.marker_filter.handle_timeout(now, &mut self.released_packets);
    }

    /// Returns the packets to be published, and what changed with each of them.
    pub fn take_released_packets(&mut self) -> impl Iterator<Item = (ReceivedPacket, FormatOrResolutionChange)> + '_ {
        self.released_packets
            .drain(..)
            .map(|((packet, change), marker)| (ReceivedPacket { marker, ..packet }, change))
    }

    /// Returns the epoch of the packets that arrive now.
    pub fn numbering_epoch(&self) -> u32 {
        self.numbering_epoch
    }

    /// Whether no packet arrived for [`MIN_SILENCE_TO_SWITCH_SSRC`], or ever: another SSRC may take its place.
    pub fn is_ssrc_replaceable(&self, now: Instant) -> bool {
        self.last_packet_at
            .is_none_or(|at| now.saturating_duration_since(at) >= MIN_SILENCE_TO_SWITCH_SSRC)
    }

    /// Returns how many frames got the time of their arrival, because the timestamps of their sender stood still.
    pub fn arrival_timestamped_frame_count(&self) -> u64 {
        self.timestamp_corrector.arrival_timestamped_frame_count()
    }

    /// Returns what was passed over so far.
    pub fn discarded_payload_counts(&self) -> &PayloadDiscardCounts {
        &self.discard_counts
    }

    /// Records a sender report. Returns its extended RTP timestamp. A report without wall clock (RFC 3550 §6.4.1), or with one
    /// that stands still, says nothing; nor do reports of a sender whose RTP timestamps stand still.
    pub fn record_sender_report_and_extend_timestamp(&mut self, now: Instant, ntp: u64, rtp_time: u32) -> Option<u64> {
        self.reception_stats.as_mut()?.on_sender_report(now, ntp);
        if ntp == 0 || self.last_sender_report_ntp.replace(ntp) == Some(ntp) {
            return None;
        }
        let highest = self.timestamp_unwrapper.highest()?;
        let time = crate::media::rtp::extend_rtp_timestamp(highest, rtp_time);
        self.timestamp_corrector.correct_source_timestamp(time)
    }

    /// Returns the report block for a receiver report.
    pub fn take_report_block(&mut self, now: Instant) -> Option<rtcp::ReceiverReportStats> {
        self.reception_stats.as_mut()?.take_report_block(now)
    }

    /// Returns the packets expected in the interval of the last report, and how many of them were missing at its end.
    pub fn last_report_expected_and_lost(&self) -> (u64, u64) {
        self.reception_stats
            .as_ref()
            .map_or((0, 0), ReceptionStats::last_report_expected_and_lost)
    }

    /// Returns the sequence numbers to NACK now.
    pub fn poll_nacks(&mut self, now: Instant, rtt: Duration) -> Vec<u16> {
        self.nack_generator
            .as_mut()
            .map(|n| n.poll(now, rtt))
            .unwrap_or_default()
    }

    /// Returns how many lost packets were given up after NACKs without retransmission.
    pub fn unrecovered_packet_count(&self) -> u64 {
        self.nack_generator
            .as_ref()
            .map_or(0, NackGenerator::unrecovered_packet_count)
    }

    /// Whether a packet of the newest key frame or after it was given up: viewers see what is wrong until the next one.
    pub fn lacks_packets_since_key_frame(&self) -> bool {
        self.nack_generator
            .as_ref()
            .is_some_and(NackGenerator::lacks_packets_since_key_frame)
    }

    /// Returns when [`Self::poll_nacks`] and [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let nacks = self.nack_generator.as_ref().and_then(NackGenerator::poll_timeout);
        [nacks, self.marker_filter.poll_timeout()].into_iter().flatten().min()
    }

    /// Returns the format found in the bitstream.
    pub fn format(&self) -> Option<CodecFormat> {
        self.inspector.as_ref()?.1.format()
    }

    /// Whether the bitstream has B-frames.
    pub fn has_b_frames(&self) -> bool {
        self.inspector
            .as_ref()
            .is_some_and(|(_, inspector)| inspector.found_b_frames())
    }

    /// Whether H.264 has no IDR frames, but others that most decoders can start with.
    pub fn lacks_idr_frames(&self) -> bool {
        self.inspector
            .as_ref()
            .is_some_and(|(_, inspector)| inspector.lacks_idr_frames())
    }

    /// Returns width and height in pixels.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.inspector.as_ref()?.1.resolution()
    }

    /// Whether no packet arrived within [`LAYER_SILENCE_TIMEOUT`], or ever.
    pub fn has_no_recent_packets(&self, now: Instant) -> bool {
        self.last_packet_at
            .is_none_or(|at| now.saturating_duration_since(at) >= LAYER_SILENCE_TIMEOUT)
    }

    /// Returns the rank among the layers of a track: pixels, then bytes per second. The order of the offer is not used.
    pub fn layer_rank(&self) -> (u32, u64) {
        let pixels = self.resolution().map_or(0, |(w, h)| u32::from(w) * u32::from(h));
        (pixels, self.byte_rate.bytes_per_second)
    }
}

impl SsrcContinuation {
    /// Returns the number of a packet in the numbering that began with an SSRC before; `None` if it is of a frame that
    /// came before the pictures went on.
    fn map_to_continued_seq(&mut self, ext_seq: u64) -> Option<u64> {
        if let Some(next) = self.next_seq.take() {
            (self.seq_offset, self.first_seq) = (next.wrapping_sub(ext_seq), ext_seq);
        }
        let seq = (ext_seq >= self.first_seq).then(|| ext_seq.wrapping_add(self.seq_offset))?;
        self.highest_seq = self.highest_seq.max(Some(seq));
        Some(seq)
    }

    fn on_packet(&mut self, packet: &RtpPacketMetadata, identifies_key_frame: bool) {
        let Some(framing) = packet.payload_framing else { return };
        if let Some(step) = self.newest_time.and_then(|newest| packet.time.checked_sub(newest))
            && step > 0
        {
            self.last_frame_step = Some(step);
        }
        self.newest_time = self.newest_time.max(Some(packet.time));
        if framing.has_slice && std::mem::take(&mut self.awaits_picture) {
            self.began_within_gop = !identifies_key_frame;
        }
    }
}

impl ByteRate {
    fn add_payload_bytes(&mut self, now: Instant, bytes: usize) {
        let gap = self.last_packet_at.replace(now).map(|at| now.duration_since(at));
        if gap.is_some_and(|gap| gap >= self.last_interval.max(MIN_BITRATE_INTERVAL) * BITRATE_PAUSE_INTERVAL_COUNT) {
            (self.interval_start, self.interval_bytes) = (None, 0);
        }
        let since = *self.interval_start.get_or_insert(now);
        self.interval_bytes += bytes as u64;
        let elapsed = now.duration_since(since);
        if elapsed >= MIN_BITRATE_INTERVAL {
            self.bytes_per_second = (self.interval_bytes as f64 / elapsed.as_secs_f64()) as u64;
            (self.interval_start, self.interval_bytes) = (Some(now), 0);
            self.last_interval = elapsed;
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_pause_does_not_count_for_the_bitrate_and_rare_frames_do() {
        let mut now = Instant::now();
        let mut rate = ByteRate::default();
        let mut send = |packets: u32, interval: Duration| {
            for _ in 0..packets {
                now += interval;
                rate.add_payload_bytes(now, 1_000);
            }
            rate.bytes_per_second
        };
        let before = send(500, 10 * MS);
        assert!((99_000..=101_000).contains(&before), "{before}");
        send(1, 5_000 * MS);
        let after = send(99, 10 * MS);
        assert_eq!(after, before, "no interval with the pause");
        let after = send(500, 10 * MS);
        assert!((99_000..=101_000).contains(&after), "{after}");
        // One frame in two seconds, from the first one on.
        let rare = send(20, 2_000 * MS);
        assert_eq!(rare, 500);
    }
}
