//! Assembles the frames of a track from its RTP packets. An odd packet costs itself, not the session.

use std::time::Instant;

use bytes::Bytes;
use retina::rtp::ReceivedPacket;

use millstream_core::media::codec::Inspector;
use millstream_core::media::depacketizer::{Depacketizer, Frame};
use millstream_core::media::mpeg4_audio::AacDepacketizer;
use millstream_core::media::packet::Packet;
use millstream_core::media::{Codec, Kind};

/// Assembles the frames of one track.
pub(super) enum Assembler {
    /// Video, and audio with a frame in each packet.
    Frames(Box<FrameAssembler>),
    Aac {
        depacketizer: Box<AacDepacketizer>,
        /// RTP clock rate, in Hz.
        rate: u32,
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

pub(super) struct FrameAssembler {
    codec: Codec,
    depacketizer: Depacketizer,
    inspector: Inspector,
    seq: u64,
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
        let mut inspector = Inspector::new(codec);
        for set in parameter_sets {
            inspector.inspect(0, set);
        }
        Self::Frames(Box::new(FrameAssembler {
            codec,
            depacketizer: Depacketizer::new(codec.kind()),
            inspector,
            seq: 0,
        }))
    }

    pub(super) fn aac(depacketizer: AacDepacketizer, rate: u32) -> Self {
        let depacketizer = Box::new(depacketizer);
        Self::Aac { depacketizer, rate }
    }

    /// Processes the next packet and appends complete frames to `out`. Returns `false` for an invalid payload.
    pub(super) fn push(&mut self, packet: Received, out: &mut Vec<Assembled>) -> bool {
        match self {
            Self::Frames(assembler) => {
                assembler.push(packet, out);
                true
            }
            Self::Aac { depacketizer, rate } => {
                let mut frames = Vec::new();
                let valid = depacketizer.push(&packet.payload, packet.marker, packet.loss > 0, &mut frames);
                let sampling = u64::from(depacketizer.config().rate.max(1));
                out.extend(frames.into_iter().map(|(samples, bytes)| Assembled {
                    time: packet.time + u64::from(samples) * u64::from(*rate) / sampling,
                    is_scaled: false,
                    bytes,
                }));
                valid
            }
        }
    }
}

impl FrameAssembler {
    fn push(&mut self, packet: Received, out: &mut Vec<Assembled>) {
        self.seq += 1 + u64::from(packet.loss);
        if packet.payload.is_empty() {
            return;
        }
        // The inspector only compares timestamps of frames: the low 32 bits are enough.
        let inspection = self.inspector.inspect(packet.scaled as u32, &packet.payload);
        let key_frame = self.codec.kind() == Kind::Video && inspection.key_frame;
        let missing = inspection.insert.into_iter().map(|payload| (payload, false));
        let payloads: Vec<(Bytes, bool)> = missing.chain([(packet.payload, packet.marker)]).collect();
        let inserted = payloads.len() as u64 - 1;
        let mut frames: Vec<Frame> = Vec::new();
        for (index, (payload, marker)) in payloads.into_iter().enumerate() {
            let packet = Packet {
                seq: self.seq + index as u64,
                time: packet.scaled,
                codec: self.codec,
                marker,
                key_frame,
                arrival: packet.at,
                payload,
            };
            self.depacketizer.push(&packet, &mut frames);
        }
        self.seq += inserted;
        out.extend(frames.into_iter().map(|frame| Assembled {
            time: frame.time,
            is_scaled: true,
            bytes: frame.bytes,
        }));
    }
}
