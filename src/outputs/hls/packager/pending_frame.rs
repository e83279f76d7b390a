//! Frames that wait until their duration is known, and what fills a pause of Opus.

use std::time::Duration;

use millstream_core::media::Codec;
use millstream_core::media::clock::ticks_to_duration;

/// A frame whose duration is known once the next one arrives.
#[derive(Clone, Debug)]
pub(super) struct PendingFrame {
    pub(super) codec: Codec,
    /// Timestamp on the timeline, in ticks of the codec's clock rate.
    pub(super) start_ticks: u64,
    pub(super) key_frame: bool,
    pub(super) bytes: bytes::Bytes,
    /// It repeats the frame before, because video pauses.
    pub(super) is_repeated: bool,
}

impl PendingFrame {
    pub(super) fn start_time(&self) -> Duration {
        ticks_to_duration(self.start_ticks, self.codec.clock_rate())
    }
}

/// Opus frames after which a pause is filled: a sender with DTX sends a frame each 400 ms (RFC 6716 §2.1.9).
const MAX_UNFILLED_OPUS_TICKS: u32 = 48_000 * 150 / 1_000;

/// Duration of a filling frame, in ticks.
const OPUS_FILLER_FRAME_TICKS: u32 = 960;

/// Splits an Opus frame that a pause follows into itself and frames without content, which the decoder conceals as it
/// does in a WebRTC client: no frame is longer than a part may be.
pub(super) fn fill_opus_pause(pending: PendingFrame, ticks: u32) -> Vec<(PendingFrame, u32)> {
    let first_byte = pending.bytes.first().copied();
    let (Codec::Opus, Some(toc), true) = (pending.codec, first_byte, ticks > MAX_UNFILLED_OPUS_TICKS) else {
        return vec![(pending, ticks)];
    };
    // The bandwidth and the mode of the frame, one frame of 20 ms, and no content (RFC 6716 §3.1).
    let config = match toc >> 3 {
        silk @ 0..=11 => silk / 4 * 4 + 1,
        hybrid @ 12..=15 => hybrid / 2 * 2 + 1,
        celt => celt / 4 * 4 + 3,
    };
    let filling = bytes::Bytes::copy_from_slice(&[config << 3 | toc & 0b100]);
    let own_ticks = OPUS_FILLER_FRAME_TICKS * 3;
    let mut frames = Vec::new();
    let begin = pending.start_ticks;
    frames.push((pending, own_ticks));
    let mut at = own_ticks;
    while at < ticks {
        let rest = ticks - at;
        // The last one takes what is left, so that the next frame follows without a gap.
        let frame_ticks = if rest < OPUS_FILLER_FRAME_TICKS * 2 {
            rest
        } else {
            OPUS_FILLER_FRAME_TICKS
        };
        let frame = PendingFrame {
            codec: Codec::Opus,
            start_ticks: begin + u64::from(at),
            key_frame: true,
            bytes: filling.clone(),
            is_repeated: false,
        };
        frames.push((frame, frame_ticks));
        at += frame_ticks;
    }
    frames
}
