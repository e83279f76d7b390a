//! Assembles the frames of a track from its RTP packets. An odd packet costs itself, not the session.

use std::time::Instant;

use bytes::Bytes;
use retina::rtp::ReceivedPacket;

use millstream_core::media::Codec;
use millstream_core::media::assembler::{FrameAssembler, RtpPacket};
use millstream_core::media::depacketizer::Frame;
use millstream_core::media::mpeg4_audio::AacDepacketizer;

/// Assembles the frames of one track.
pub(super) enum Assembler {
    /// Video, and audio with a frame in each packet.
    Frames {
        assembler: Box<FrameAssembler>,
        /// Extended sequence number of the last packet.
        seq: u64,
    },
    Aac {
        depacketizer: Box<AacDepacketizer>,
        /// RTP clock rate, in Hz.
        rate: u32,
        invalid: u64,
    },
}

/// A packet, as it matters here.
pub(super) struct Received {
    /// Timestamp in units of the RTP clock rate.
    pub(super) time: u64,
    /// The same in units of the codec's clock rate.
    pub(super) scaled: u64,
    pub(super) at: Instant,
    /// Packets that are missing before it.
    pub(super) loss: u16,
    pub(super) marker: bool,
    pub(super) payload: Bytes,
}

/// A complete frame. The unit of its time is that of the codec if it `is_scaled`, else that of RTP.
pub(super) struct Assembled {
    pub(super) time: u64,
    pub(super) is_scaled: bool,
    pub(super) bytes: Bytes,
}

impl From<Frame> for Assembled {
    fn from(frame: Frame) -> Self {
        Self {
            time: frame.time,
            is_scaled: true,
            bytes: frame.bytes,
        }
    }
}

impl Received {
    pub(super) fn new(packet: ReceivedPacket, time: u64, scaled: u64) -> Self {
        Self {
            time,
            scaled,
            at: packet.ctx().received(),
            loss: packet.loss(),
            marker: packet.mark(),
            payload: packet.into_payload_bytes(),
        }
    }
}

impl Assembler {
    /// `parameter_sets` are those of the session description: some cameras send them nowhere else.
    pub(super) fn new(codec: Codec, parameter_sets: &[Bytes]) -> Self {
        let mut assembler = Box::new(FrameAssembler::new(codec));
        assembler.seed(parameter_sets);
        assembler.go_on_after_gaps();
        Self::Frames { assembler, seq: 0 }
    }

    pub(super) fn aac(depacketizer: AacDepacketizer, rate: u32) -> Self {
        Self::Aac {
            depacketizer: Box::new(depacketizer),
            rate,
            invalid: 0,
        }
    }

    /// Processes the next packet and appends complete frames to `out`.
    pub(super) fn push(&mut self, packet: Received, out: &mut Vec<Assembled>) {
        match self {
            Self::Frames { assembler, seq } => {
                *seq += 1 + u64::from(packet.loss);
                let packet = RtpPacket {
                    seq: *seq,
                    time: packet.scaled,
                    marker: packet.marker,
                    arrival: packet.at,
                    payload: packet.payload,
                };
                let mut frames = Vec::new();
                assembler.push(packet, &mut frames);
                out.extend(frames.into_iter().map(Assembled::from));
            }
            Self::Aac {
                depacketizer,
                rate,
                invalid,
            } => {
                let mut frames = Vec::new();
                if !depacketizer.push(&packet.payload, packet.marker, packet.loss > 0, &mut frames) {
                    *invalid += 1;
                }
                let sampling = u64::from(depacketizer.config().rate.max(1));
                out.extend(frames.into_iter().map(|(samples, bytes)| Assembled {
                    time: packet.time + u64::from(samples) * u64::from(*rate) / sampling,
                    is_scaled: false,
                    bytes,
                }));
            }
        }
    }

    /// Completes a frame whose last packet arrived a while ago.
    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Assembled>) {
        if let Self::Frames { assembler, .. } = self {
            let mut frames = Vec::new();
            assembler.handle_timeout(now, &mut frames);
            out.extend(frames.into_iter().map(Assembled::from));
        }
    }

    /// When [`Self::handle_timeout`] must be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Frames { assembler, .. } => assembler.poll_timeout(),
            Self::Aac { .. } => None,
        }
    }

    /// Returns how many payloads were passed over, and what they were.
    pub(super) fn odd(&self) -> (u64, String) {
        match self {
            Self::Frames { assembler, .. } => {
                let kinds: Vec<(String, u64)> = assembler.odd().iter().map(|(odd, n)| (odd.to_string(), n)).collect();
                let names: Vec<&str> = kinds.iter().map(|(name, _)| name.as_str()).collect();
                (kinds.iter().map(|(_, count)| count).sum(), names.join(", "))
            }
            Self::Aac { invalid, .. } => (*invalid, "invalid AAC packets".to_owned()),
        }
    }

    /// Returns how many payloads were passed over.
    pub(super) fn odd_count(&self) -> u64 {
        match self {
            Self::Frames { assembler, .. } => assembler.odd().iter().map(|(_, count)| count).sum(),
            Self::Aac { invalid, .. } => *invalid,
        }
    }
}
