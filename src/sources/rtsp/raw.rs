//! Assembles frames from the RTP packets of a camera that sends Opus, which retina cannot depacketize. The video of
//! such a camera is assembled here too, because retina returns either packets or frames of a session, not both.

use std::time::Instant;

use bytes::Bytes;
use retina::rtp::ReceivedPacket;

use millstream_core::media::codec::Inspector;
use millstream_core::media::depacketizer::{Depacketizer, Frame};
use millstream_core::media::packet::Packet;
use millstream_core::media::{Codec, Kind};

/// One track.
pub(super) struct RawTrack {
    codec: Codec,
    depacketizer: Depacketizer,
    inspector: Inspector,
    seq: u64,
}

impl RawTrack {
    pub(super) fn new(codec: Codec) -> Self {
        Self {
            codec,
            depacketizer: Depacketizer::new(codec.kind()),
            inspector: Inspector::new(codec),
            seq: 0,
        }
    }

    /// Processes the next packet; `time` is in units of the codec's clock rate. Appends complete frames to `out`.
    pub(super) fn push(&mut self, packet: ReceivedPacket, time: u64, received: Instant, out: &mut Vec<Frame>) {
        self.seq += 1 + u64::from(packet.loss());
        let marker = packet.mark();
        let payload = packet.into_payload_bytes();
        if payload.is_empty() {
            return;
        }
        // The inspector only compares timestamps of frames: the low 32 bits are enough.
        let inspection = self.inspector.inspect(time as u32, &payload);
        let key_frame = self.codec.kind() == Kind::Video && inspection.key_frame;
        let missing = inspection.insert.into_iter().map(|payload| (payload, false));
        let payloads: Vec<(Bytes, bool)> = missing.chain([(payload, marker)]).collect();
        let inserted = payloads.len() as u64 - 1;
        for (index, (payload, marker)) in payloads.into_iter().enumerate() {
            let packet = Packet {
                seq: self.seq + index as u64,
                time,
                codec: self.codec,
                marker,
                key_frame,
                arrival: received,
                payload,
            };
            self.depacketizer.push(&packet, out);
        }
        self.seq += inserted;
    }
}
