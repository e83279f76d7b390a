//! The stream of the load test: what a live encoder sends for 720p30 H.264 at 2.5 Mbit/s with Opus at 64 kbit/s.
//!
//! The bitstream is well formed as far as a gateway looks (parameter sets, NAL unit types, fragmentation of RFC 6184);
//! slice data are noise. All packets of a frame leave at once, as from an encoder without a pacer. No two payloads are
//! equal, so that a payload identifies its packet.

use std::time::Duration;

use crate::timeline::Track;

/// RTP payload per packet, in bytes: an MTU of 1280 with room for IPv6, UDP, SRTP and extensions.
const PAYLOAD_LEN: usize = 1200;

/// 2.5 Mbit/s at 30 frames/s and a key frame of five P frames every 60: 625,000 bytes in 64 shares.
const P_FRAME_LEN: usize = 9_765;
const KEY_FRAME_LEN: usize = 5 * P_FRAME_LEN;
const FRAMES_PER_KEY_FRAME: u64 = 60;
const FRAME_RATE: u64 = 30;

/// 64 kbit/s in packets of 20 ms.
const AUDIO_LEN: usize = 160;
const AUDIO_STEP: Duration = Duration::from_millis(20);

/// Constrained baseline, level 3.1, 1280x720, no reordering.
const SPS: [u8; 9] = [0x67, 0x42, 0xc0, 0x1f, 0xda, 0x01, 0x40, 0x16, 0xe4];
const PPS: [u8; 4] = [0x68, 0xce, 0x3c, 0x80];

/// NAL unit types with their importance, and the first byte of a slice header of that kind.
const IDR: (u8, u8) = (0x65, 0x88);
const NON_IDR: (u8, u8) = (0x41, 0x9a);

/// FU-A with the importance bits of a slice (RFC 6184 §5.8).
const FU_A: u8 = 28;
const FU_START: u8 = 0x80;
const FU_END: u8 = 0x40;

/// Opus TOC: CELT, full band, 20 ms, stereo, one frame (RFC 6716 §3.1).
const OPUS_TOC: u8 = 0xfc;

/// A video frame or an audio packet: what leaves at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Burst {
    /// Since the start of the stream.
    pub at: Duration,
    pub track: Track,
    /// Payload lengths of its packets, in bytes.
    pub lengths: Vec<usize>,
    key_frame: bool,
}

impl Burst {
    /// RTP time in the track's clock: 90 kHz for video, 48 kHz for audio.
    pub(crate) fn rtp_time(&self) -> u32 {
        let rate = match self.track {
            Track::Video => 90_000,
            Track::Audio => 48_000,
        };
        ((self.at.as_nanos() * rate + 500_000_000) / 1_000_000_000) as u32
    }

    /// The payload of packet `index`, which is packet `seq` of its track.
    pub(crate) fn payload(&self, index: usize, seq: u64) -> Vec<u8> {
        let mut payload = Vec::with_capacity(PAYLOAD_LEN);
        let length = self.lengths.get(index).copied().unwrap_or(0);
        let parameter_sets = if self.key_frame { 2 } else { 0 };
        let (nal, slice) = if self.key_frame { IDR } else { NON_IDR };
        match (self.track, index) {
            (Track::Audio, _) => payload.push(OPUS_TOC),
            (Track::Video, 0) if self.key_frame => payload.extend(SPS),
            (Track::Video, 1) if self.key_frame => payload.extend(PPS),
            (Track::Video, _) => {
                let start = if index == parameter_sets { FU_START } else { 0 };
                let end = if index + 1 == self.lengths.len() { FU_END } else { 0 };
                payload.extend([nal & 0xe0 | FU_A, nal & 0x1f | start | end]);
                if start != 0 {
                    payload.push(slice);
                }
            }
        }
        let mut noise = Noise(seq ^ (self.track.index() as u64) << 63);
        payload.extend(std::iter::repeat_with(|| noise.byte()).take(length.saturating_sub(payload.len())));
        payload
    }
}

/// The stream from its start, in order of time, without end.
pub(crate) fn endless() -> impl Iterator<Item = Burst> {
    let video = |number: u64| Burst {
        at: Duration::from_nanos(number * 1_000_000_000 / FRAME_RATE),
        track: Track::Video,
        lengths: frame_lengths(number),
        key_frame: number.is_multiple_of(FRAMES_PER_KEY_FRAME),
    };
    let audio = |number: u32| Burst {
        at: AUDIO_STEP * number,
        track: Track::Audio,
        lengths: vec![AUDIO_LEN],
        key_frame: false,
    };
    let mut frames = (0..).map(video).peekable();
    let mut audio_frames = (0..).map(audio).peekable();
    std::iter::from_fn(move || match (frames.peek(), audio_frames.peek()) {
        (Some(frame), Some(audio_frame)) if audio_frame.at < frame.at => audio_frames.next(),
        _ => frames.next(),
    })
}

/// The first `length` of the stream.
pub(crate) fn bursts(length: Duration) -> Vec<Burst> {
    endless().take_while(|burst| burst.at < length).collect()
}

/// Payload lengths of a frame's packets: parameter sets of a key frame, then fragments, all full but the last.
fn frame_lengths(number: u64) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut left = KEY_FRAME_LEN;
    if number.is_multiple_of(FRAMES_PER_KEY_FRAME) {
        lengths.extend([SPS.len(), PPS.len()]);
    } else {
        // A quarter up or down, alternating, so that the mean holds.
        let swing = P_FRAME_LEN * (Noise(number / 2).byte() as usize) / 1024;
        left = if number.is_multiple_of(2) {
            P_FRAME_LEN + swing
        } else {
            P_FRAME_LEN - swing
        };
    }
    // Two bytes of each packet are the fragment's header.
    while left > 0 {
        let part = left.min(PAYLOAD_LEN - 2);
        lengths.push(part + 2);
        left -= part;
    }
    lengths
}

/// Bytes without zeroes, so that no start code and no emulation of one can occur (ITU-T H.264 §7.4.1). SplitMix64.
struct Noise(u64);

impl Noise {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % 255) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_stream_has_the_rates_it_claims() {
        let bursts = bursts(Duration::from_secs(10));
        let sum = |track| -> (usize, usize) {
            let of_track = bursts.iter().filter(|burst| burst.track == track);
            of_track.fold((0, 0), |(count, bytes), burst| {
                (count + burst.lengths.len(), bytes + burst.lengths.iter().sum::<usize>())
            })
        };
        let (packets, bytes) = sum(Track::Video);
        assert!((2700..=3000).contains(&packets), "{packets}");
        assert!((3_050_000..=3_200_000).contains(&bytes), "{bytes}");
        assert_eq!(sum(Track::Audio), (500, 80_000));
        assert!(bursts.is_sorted_by_key(|burst| burst.at));
    }

    #[test]
    fn no_two_payloads_of_a_track_are_equal_beside_the_parameter_sets() {
        let mut seen = HashSet::new();
        let mut seq = [0; 2];
        for burst in bursts(Duration::from_secs(5)) {
            for (index, &length) in burst.lengths.iter().enumerate() {
                let seq = &mut seq[burst.track.index()];
                let payload = burst.payload(index, *seq);
                assert_eq!(payload.len(), length);
                *seq += 1;
                assert!(seen.insert(payload) || length <= SPS.len(), "packet {seq}");
            }
        }
    }

    #[test]
    fn a_key_frame_is_fragmented_after_its_parameter_sets() {
        let burst = &bursts(Duration::from_millis(1))[0];
        assert_eq!(burst.payload(0, 0), SPS);
        assert_eq!(burst.payload(1, 1), PPS);
        assert_eq!(burst.payload(2, 2)[..3], [0x7c, 0x85, 0x88]);
        assert_eq!(burst.payload(3, 3)[..2], [0x7c, 0x05]);
        let last = burst.lengths.len() - 1;
        assert_eq!(burst.payload(last, last as u64)[..2], [0x7c, 0x45]);
    }
}
