//! Assembles the frames of a track from its RTP packets. An odd packet costs itself, not the session.

use std::time::Instant;

use bytes::Bytes;
use retina::rtp::ReceivedPacket;

use millstream_core::media::Codec;
use millstream_core::media::aac_depacketizer::AacDepacketizer;
use millstream_core::media::codec::PayloadFraming;
use millstream_core::media::depacketizer::Frame;
use millstream_core::media::frame_assembler::FrameAssembler;
use millstream_core::media::marker::RtpPacketMetadata;
use millstream_core::media::rtp_packet::RtpPacket;
use millstream_core::media::timestamp_corrector::RtpTimestampCorrector;

/// Assembles the frames of one track.
pub(super) enum TrackFrameAssembler {
    /// Video, and audio with a frame in each packet.
    Generic {
        assembler: Box<FrameAssembler>,
        /// Extended sequence number of the last packet.
        seq: u64,
    },
    Aac {
        depacketizer: Box<AacDepacketizer>,
        timestamps: Box<FrameTimestampCorrector>,
        /// RTP clock rate, in Hz.
        rate: u32,
        invalid: u64,
    },
}

/// Corrects the timestamps of a track of which each item is a frame.
pub(super) struct FrameTimestampCorrector {
    corrector: RtpTimestampCorrector,
    frame_count: u64,
}

/// A packet, as it matters here.
pub(super) struct ReceivedRtpPacket {
    /// Timestamp in units of the RTP clock rate.
    pub(super) rtp_time: u64,
    /// The same in units of the codec's clock rate.
    pub(super) codec_time: u64,
    pub(super) received_at: Instant,
    /// Packets that are missing before it.
    pub(super) packets_lost_before: u16,
    pub(super) marker: bool,
    pub(super) payload: Bytes,
}

/// A complete frame. The unit of its time is that of the codec if it `is_codec_time`, else that of RTP.
pub(super) struct AssembledFrame {
    pub(super) time: u64,
    pub(super) is_codec_time: bool,
    pub(super) bytes: Bytes,
}

impl From<Frame> for AssembledFrame {
    fn from(frame: Frame) -> Self {
        Self {
            time: frame.time,
            is_codec_time: true,
            bytes: frame.bytes,
        }
    }
}

impl ReceivedRtpPacket {
    pub(super) fn new(packet: ReceivedPacket, time: u64, scaled: u64) -> Self {
        Self {
            rtp_time: time,
            codec_time: scaled,
            received_at: packet.ctx().received(),
            packets_lost_before: packet.loss(),
            marker: packet.mark(),
            payload: packet.into_payload_bytes(),
        }
    }
}

impl FrameTimestampCorrector {
    /// `rate` is the clock rate of the timestamps, in Hz.
    pub(super) fn new(codec: Codec, rate: u32) -> Self {
        Self {
            corrector: RtpTimestampCorrector::with_clock_rate(codec, rate),
            frame_count: 0,
        }
    }

    /// Returns the timestamp of the next frame.
    pub(super) fn correct(&mut self, time: u64, arrival: Instant) -> u64 {
        self.frame_count += 1;
        self.corrector.correct_packet_timestamp(&RtpPacketMetadata {
            seq: self.frame_count,
            time,
            marker: true,
            payload_framing: Some(PayloadFraming {
                has_slice: true,
                ..PayloadFraming::default()
            }),
            arrival,
        })
    }

    /// Returns how many frames got the time of their arrival.
    pub(super) fn arrival_timestamped_frame_count(&self) -> u64 {
        self.corrector.arrival_timestamped_frame_count()
    }
}

impl TrackFrameAssembler {
    /// `parse_parameter_sets` are those of the session description: some cameras send them nowhere else.
    pub(super) fn new(codec: Codec, parameter_sets: &[Bytes], has_decoding_order_numbers: bool) -> Self {
        let mut assembler = Box::new(FrameAssembler::new(codec));
        assembler.store_out_of_band_parameter_sets(parameter_sets);
        assembler.enable_continuing_after_gaps();
        if has_decoding_order_numbers {
            assembler.expect_decoding_order_numbers();
        }
        Self::Generic { assembler, seq: 0 }
    }

    pub(super) fn new_aac(depacketizer: AacDepacketizer, rate: u32) -> Self {
        Self::Aac {
            depacketizer: Box::new(depacketizer),
            timestamps: Box::new(FrameTimestampCorrector::new(Codec::Aac, rate)),
            rate,
            invalid: 0,
        }
    }

    /// Processes the next packet and appends complete frames to `out`.
    pub(super) fn push_packet(&mut self, packet: ReceivedRtpPacket, out: &mut Vec<AssembledFrame>) {
        match self {
            Self::Generic { assembler, seq } => {
                *seq += 1 + u64::from(packet.packets_lost_before);
                let packet = RtpPacket {
                    seq: *seq,
                    timestamp: packet.codec_time,
                    marker: packet.marker,
                    arrival: packet.received_at,
                    payload: packet.payload,
                };
                let mut frames = Vec::new();
                assembler.push_packet(packet, &mut frames);
                out.extend(frames.into_iter().map(AssembledFrame::from));
            }
            Self::Aac {
                depacketizer,
                timestamps,
                rate,
                invalid,
            } => {
                let mut frames = Vec::new();
                if !depacketizer.push_packet(
                    &packet.payload,
                    packet.marker,
                    packet.packets_lost_before > 0,
                    &mut frames,
                ) {
                    *invalid += 1;
                }
                if frames.is_empty() {
                    return;
                }
                let time = timestamps.correct(packet.rtp_time, packet.received_at);
                let sampling = u64::from(depacketizer.config().sample_rate.max(1));
                out.extend(frames.into_iter().map(|(samples, bytes)| AssembledFrame {
                    time: time + u64::from(samples) * u64::from(*rate) / sampling,
                    is_codec_time: false,
                    bytes,
                }));
            }
        }
    }

    /// Completes a frame whose last packet arrived a while ago.
    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<AssembledFrame>) {
        if let Self::Generic { assembler, .. } = self {
            let mut frames = Vec::new();
            assembler.handle_timeout(now, &mut frames);
            out.extend(frames.into_iter().map(AssembledFrame::from));
        }
    }

    /// When [`Self::handle_timeout`] must be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Generic { assembler, .. } => assembler.poll_timeout(),
            Self::Aac { .. } => None,
        }
    }

    /// Returns the corrected time of a timestamp in units of the RTP clock rate, which is `pts_in_clock_ticks` in those of the codec,
    /// and whether the result is in units of the codec. `None` while timestamps stand still.
    pub(super) fn correct_source_timestamp(&self, rtp_time: u64, codec_time: u64) -> Option<(u64, bool)> {
        match self {
            Self::Generic { assembler, .. } => Some((assembler.correct_source_timestamp(codec_time)?, true)),
            Self::Aac { timestamps, .. } => Some((timestamps.corrector.correct_source_timestamp(rtp_time)?, false)),
        }
    }

    /// Returns how many frames got the time of their arrival, because the timestamps of the camera stood still.
    pub(super) fn arrival_timestamped_frame_count(&self) -> u64 {
        match self {
            Self::Generic { assembler, .. } => assembler.arrival_timestamped_frame_count(),
            Self::Aac { timestamps, .. } => timestamps.arrival_timestamped_frame_count(),
        }
    }

    /// Returns how many payloads were passed over, and what they were.
    pub(super) fn ignored_payload_summary(&self) -> (u64, String) {
        match self {
            Self::Generic { assembler, .. } => {
                let kinds: Vec<(String, u64)> = assembler
                    .discard_counts()
                    .iter()
                    .map(|(odd, n)| (odd.to_string(), n))
                    .collect();
                let names: Vec<&str> = kinds.iter().map(|(name, _)| name.as_str()).collect();
                (kinds.iter().map(|(_, count)| count).sum(), names.join(", "))
            }
            Self::Aac { invalid, .. } => (*invalid, "invalid AAC packets".to_owned()),
        }
    }

    /// Returns how many payloads were passed over.
    pub(super) fn ignored_payload_count(&self) -> u64 {
        match self {
            Self::Generic { assembler, .. } => assembler.discard_counts().iter().map(|(_, count)| count).sum(),
            Self::Aac { invalid, .. } => *invalid,
        }
    }
}
