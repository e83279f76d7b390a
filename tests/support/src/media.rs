//! Synthetic media that proves its own integrity: every packet carries frame number, packet index, packet count and a
//! CRC, in bytes that can stand inside an H.264 slice (no start code can arise).

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

use crate::sdp::{H264_PT, VP8_PT};

/// What the video pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoCodec {
    H264,
    Vp8,
}

/// Properties of the video.
#[derive(Clone, Copy, Debug)]
pub struct VideoConfig {
    pub codec: VideoCodec,
    pub pt: u8,
    pub ssrc: u32,
    /// First sequence number and RTP time.
    pub first_seq: u16,
    pub first_time: u32,
    pub fps: u32,
    /// Bits per second of RTP payload, on average over a GOP.
    pub bitrate: u32,
    /// Frames from one key frame to the next; 0: only the first is one.
    pub gop: u32,
    /// No frame refers to every second one.
    pub has_non_reference_frames: bool,
    /// Longest RTP payload in bytes.
    pub payload: usize,
    /// Number of the first frame, to distinguish the frames of two sources.
    pub first_number: u32,
    pub seed: u64,
}

impl Default for VideoConfig {
    fn default() -> Self {
        Self {
            codec: VideoCodec::H264,
            pt: H264_PT,
            ssrc: 0x1234_5678,
            first_seq: 1000,
            first_time: 900_000,
            fps: 30,
            bitrate: 2_500_000,
            gop: 60,
            has_non_reference_frames: false,
            payload: 1180,
            first_number: 0,
            seed: 1,
        }
    }
}

impl VideoConfig {
    pub fn vp8() -> Self {
        Self {
            codec: VideoCodec::Vp8,
            pt: VP8_PT,
            ..Self::default()
        }
    }
}

/// One frame as complete RTP packets, no header extensions.
#[derive(Clone, Debug)]
pub struct MediaFrame {
    /// Since the start of the stream.
    pub at: Duration,
    /// What its stamps say.
    pub number: u32,
    pub key: bool,
    /// Other frames may refer to it.
    pub is_reference: bool,
    pub packets: Vec<Vec<u8>>,
}

/// What a packet says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub frame: u32,
    pub index: u16,
    pub count: u16,
    /// The CRC fits.
    pub intact: bool,
}

/// H.264 in FU-A fragments (RFC 6184 §5.8), where a key frame begins with SPS and PPS in one STAP-A; or VP8 with
/// picture ID and TL0PICIDX (RFC 7741 §4.2).
pub struct SyntheticVideo {
    config: VideoConfig,
    rng: StdRng,
    seq: u16,
    frame: u32,
    since_key: u32,
}

/// Constrained Baseline, level 3.1, 640x360.
pub const SPS: [u8; 10] = [0x67, 0x42, 0xe0, 0x1f, 0xda, 0x02, 0x80, 0xbf, 0xe5, 0x40];
pub const PPS: [u8; 4] = [0x68, 0xce, 0x38, 0x80];

/// A key frame is this many times as large as another frame.
const KEY_FACTOR: u64 = 6;
/// Sixteen nibbles of frame, index, count; eight of CRC.
const STAMP_LEN: usize = 24;
/// FU indicator, FU header and the byte in which the slice header begins.
const FU_LEN: usize = 3;
/// Payload descriptor.
const VP8_DESCRIPTOR_LEN: usize = 5;
/// Payload descriptor and frame header (RFC 6386 §9.1), which all packets of a frame carry here.
const VP8_LEN: usize = VP8_DESCRIPTOR_LEN + 10;
const VIDEO_CLOCK: u32 = 90_000;
const AUDIO_CLOCK: u32 = 48_000;

impl SyntheticVideo {
    pub fn new(config: VideoConfig) -> Self {
        Self {
            rng: StdRng::seed_from_u64(config.seed),
            seq: config.first_seq,
            frame: 0,
            since_key: 0,
            config,
        }
    }

    /// The next frame is a key frame, as after a PLI.
    pub fn request_key_frame(&mut self) {
        self.since_key = 0;
    }

    /// When the next frame is due, since the start of the stream.
    pub fn next_at(&self) -> Duration {
        Duration::from_secs(u64::from(self.frame)) / self.config.fps
    }

    pub fn next_frame(&mut self) -> MediaFrame {
        let (at, number) = (self.next_at(), self.config.first_number + self.frame);
        let key = self.since_key == 0;
        let is_reference = !self.config.has_non_reference_frames || self.since_key.is_multiple_of(2);
        let time = u64::from(self.frame) * u64::from(VIDEO_CLOCK) / u64::from(self.config.fps);
        let time = self.config.first_time.wrapping_add(time as u32);
        let mut packets = Vec::new();
        if key && self.config.codec == VideoCodec::H264 {
            let mut stap = vec![0x78];
            for nal in [&SPS[..], &PPS[..]] {
                stap.extend_from_slice(&(nal.len() as u16).to_be_bytes());
                stap.extend_from_slice(nal);
            }
            packets.push(self.packet(time, false, &stap));
        }
        let room = self.config.payload.max(VP8_LEN + STAMP_LEN + 1);
        // A slice in FU-A needs two fragments at least.
        let count = self.frame_len(key).div_ceil(room).max(2);
        let length = self.frame_len(key).div_ceil(count).clamp(VP8_LEN + STAMP_LEN + 1, room);
        for index in 0..count {
            let mut payload = match self.config.codec {
                VideoCodec::H264 => fu_header(key, index == 0, index + 1 == count),
                VideoCodec::Vp8 => vp8_header(key, index == 0, number),
            };
            if !is_reference {
                // nal_ref_idc 0, or N.
                match self.config.codec {
                    VideoCodec::H264 => payload[0] &= !0x60,
                    VideoCodec::Vp8 => payload[0] |= 0x20,
                }
            }
            stamped(&mut payload, number, (index, count), length, &mut self.rng);
            packets.push(self.packet(time, index + 1 == count, &payload));
        }
        self.frame += 1;
        self.since_key = (self.since_key + 1)
            % if self.config.gop == 0 {
                u32::MAX
            } else {
                self.config.gop
            };
        MediaFrame {
            at,
            number,
            key,
            is_reference,
            packets,
        }
    }

    fn frame_len(&self, key: bool) -> usize {
        let gop = if self.config.gop == 0 {
            300
        } else {
            u64::from(self.config.gop)
        };
        let bytes_per_gop = u64::from(self.config.bitrate) / 8 * gop / u64::from(self.config.fps);
        let unit = bytes_per_gop / (gop - 1 + KEY_FACTOR);
        (if key { unit * KEY_FACTOR } else { unit }) as usize
    }

    fn packet(&mut self, time: u32, marker: bool, payload: &[u8]) -> Vec<u8> {
        let packet = rtp(self.config.pt, self.seq, time, self.config.ssrc, marker, payload);
        self.seq = self.seq.wrapping_add(1);
        packet
    }
}

fn fu_header(key: bool, starts: bool, ends: bool) -> Vec<u8> {
    let (nal, slice) = if key { (5, 0x88) } else { (1, 0x9a) };
    vec![0x7c, u8::from(starts) << 7 | u8::from(ends) << 6 | nal, slice]
}

fn vp8_header(key: bool, starts: bool, number: u32) -> Vec<u8> {
    let [high, low] = (number as u16).to_be_bytes();
    let mut header = vec![0x80 | u8::from(starts) << 4, 0xc0, 0x80 | high, low, number as u8];
    // Not a key frame, shown; start code; 640x360.
    header.extend([0x10 | u8::from(!key), 0, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01]);
    header
}

/// Picture ID and TL0PICIDX of a payload of [`VideoCodec::Vp8`].
pub fn vp8_counters(payload: &[u8]) -> Option<(u16, u8)> {
    let descriptor = payload.first_chunk::<VP8_DESCRIPTOR_LEN>()?;
    Some((u16::from_be_bytes([descriptor[2] & 0x7f, descriptor[3]]), descriptor[4]))
}

/// Opus-like: 50 packets per second, 160 bytes of payload.
pub struct SyntheticAudio {
    pt: u8,
    ssrc: u32,
    rng: StdRng,
    seq: u16,
    frame: u32,
}

impl SyntheticAudio {
    pub fn new(pt: u8, ssrc: u32, seed: u64) -> Self {
        Self {
            pt,
            ssrc,
            rng: StdRng::seed_from_u64(seed),
            seq: 2000,
            frame: 0,
        }
    }

    pub fn next_at(&self) -> Duration {
        Duration::from_millis(20) * self.frame
    }

    pub fn next_frame(&mut self) -> MediaFrame {
        let (at, number) = (self.next_at(), self.frame);
        // Table of contents of Opus: 20 ms, CELT, fullband, mono, one frame (RFC 6716 §3.1).
        let mut payload = vec![0xf8];
        stamped(&mut payload, number, (0, 1), 160, &mut self.rng);
        let time = (AUDIO_CLOCK / 50).wrapping_mul(number);
        let packet = rtp(self.pt, self.seq, time, self.ssrc, number == 0, &payload);
        self.seq = self.seq.wrapping_add(1);
        self.frame += 1;
        MediaFrame {
            at,
            number,
            key: true,
            is_reference: true,
            packets: vec![packet],
        }
    }
}

impl Stamp {
    /// Reads the stamp of a video payload; `None` for a payload without one (SPS and PPS).
    pub fn of_video(codec: VideoCodec, payload: &[u8]) -> Option<Self> {
        match (codec, payload.first()? & 0x1f) {
            (VideoCodec::H264, 28) => Self::read(payload.get(FU_LEN..)?),
            (VideoCodec::H264, _) => None,
            (VideoCodec::Vp8, _) => Self::read(payload.get(VP8_LEN..)?),
        }
    }

    /// Reads the stamp of an audio payload.
    pub fn of_audio(payload: &[u8]) -> Option<Self> {
        Self::read(payload.get(1..)?)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (stamp, filler) = bytes.split_at_checked(STAMP_LEN)?;
        if stamp.iter().any(|b| b & 0xf0 != 0x40) {
            return None;
        }
        let number = |nibbles: &[u8]| nibbles.iter().fold(0u32, |n, b| n << 4 | u32::from(b & 0x0f));
        Some(Self {
            frame: number(&stamp[..8]),
            index: number(&stamp[8..12]) as u16,
            count: number(&stamp[12..16]) as u16,
            intact: number(&stamp[16..]) == crc32(&[&stamp[..16], filler]),
        })
    }
}

/// Collects stamps and determines which frames arrived completely.
#[derive(Default)]
pub struct FrameCheck {
    /// Packet count and packets seen, by frame.
    frames: BTreeMap<u32, (u16, Vec<bool>)>,
    corrupt: u64,
    duplicates: u64,
}

impl FrameCheck {
    pub fn push(&mut self, stamp: Stamp) {
        if !stamp.intact || stamp.index >= stamp.count {
            self.corrupt += 1;
            return;
        }
        let (_, seen) = self
            .frames
            .entry(stamp.frame)
            .or_insert_with(|| (stamp.count, vec![false; usize::from(stamp.count)]));
        match seen.get_mut(usize::from(stamp.index)) {
            Some(true) => self.duplicates += 1,
            Some(seen) => *seen = true,
            None => self.corrupt += 1,
        }
    }

    /// Packets whose CRC did not fit.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Numbers of the frames that are whole.
    pub fn whole(&self) -> impl Iterator<Item = u32> + '_ {
        self.frames
            .iter()
            .filter(|(_, (_, seen))| seen.iter().all(|s| *s))
            .map(|(number, _)| *number)
    }

    /// Numbers of the frames of which something arrived.
    pub fn seen(&self) -> impl Iterator<Item = u32> + '_ {
        self.frames.keys().copied()
    }
}

fn stamped(payload: &mut Vec<u8>, frame: u32, (index, count): (usize, usize), length: usize, rng: &mut StdRng) {
    let from = payload.len();
    let nibbles = |payload: &mut Vec<u8>, value: u32, n: u32| {
        payload.extend((0..n).rev().map(|i| 0x40 | (value >> (4 * i)) as u8 & 0x0f));
    };
    nibbles(payload, frame, 8);
    nibbles(payload, index as u32, 4);
    nibbles(payload, count as u32, 4);
    let mut filler = vec![0; length.saturating_sub(from + STAMP_LEN)];
    rng.fill_bytes(&mut filler);
    // Never zero: no start code can arise.
    filler.iter_mut().for_each(|b| *b |= 1);
    let crc = crc32(&[&payload[from..], &filler]);
    nibbles(payload, crc, 8);
    payload.extend_from_slice(&filler);
}

fn rtp(pt: u8, seq: u16, time: u32, ssrc: u32, marker: bool, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(12 + payload.len());
    packet.extend_from_slice(&[0x80, u8::from(marker) << 7 | pt]);
    packet.extend_from_slice(&seq.to_be_bytes());
    packet.extend_from_slice(&time.to_be_bytes());
    packet.extend_from_slice(&ssrc.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// The CRC of IEEE 802.3.
fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in parts.iter().copied().flatten() {
        crc = CRC_TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    }
    !crc
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut bit = 0;
        while bit < 8 {
            c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_the_usual_one() {
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xcbf4_3926);
    }

    #[test]
    fn frames_keep_the_bitrate_and_every_packet_is_intact() {
        for config in [VideoConfig::default(), VideoConfig::vp8()] {
            let mut video = SyntheticVideo::new(config);
            let (mut bytes, mut check) = (0, FrameCheck::default());
            for number in 0..300 {
                let frame = video.next_frame();
                assert_eq!((frame.number, frame.key), (number, number % 60 == 0));
                for packet in &frame.packets {
                    assert!(packet.len() <= 12 + 1180);
                    bytes += packet.len() - 12;
                    let stamp = Stamp::of_video(config.codec, &packet[12..]);
                    stamp.into_iter().for_each(|s| check.push(s));
                }
            }
            assert_eq!((check.whole().count(), check.corrupt()), (300, 0));
            let bitrate = bytes * 8 / 10;
            assert!((2_400_000..2_700_000).contains(&bitrate), "{bitrate}");
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let mut audio = SyntheticAudio::new(111, 1, 1);
        let mut packet = audio.next_frame().packets.remove(0);
        assert_eq!(packet.len(), 12 + 160);
        assert!(Stamp::of_audio(&packet[12..]).is_some_and(|s| s.intact));
        packet[100] ^= 0x10;
        assert!(Stamp::of_audio(&packet[12..]).is_some_and(|s| !s.intact));
    }
}
