//! Audio that waits for the connection to the camera, and its RTP packets. Sans-IO.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::sources::rtsp::message::push_interleaved;
use millstream_core::media::packet::Packet;

/// Most audio that waits: 200 ms. In G.711 a byte is a sample of 8 kHz (RFC 3551 §4.5.14).
const MAX_QUEUED_BYTES: usize = 1_600;

/// First octet of an RTP packet: version 2, without padding, extension and CSRCs.
const RTP_VERSION_OCTET: u8 = 0x80;

/// Audio for one back channel. Its packets have numbers and times of their own.
pub(super) struct AudioQueue {
    packets: VecDeque<QueuedPacket>,
    queued_bytes: usize,
    /// Sequence number, timestamp and SSRC are random at the start (RFC 3550 §5.1).
    first_seq: u16,
    first_time: u32,
    ssrc: u32,
    payload_type: u8,
    /// Channel of the interleaved frames.
    channel: u8,
    /// Sequence number and timestamp of the track at the first packet.
    origin: Option<(u64, u64)>,
    newest_seq: Option<u64>,
    /// The next packet begins a talkspurt.
    is_marker_due: bool,
    dropped_count: u64,
}

struct QueuedPacket {
    seq: u64,
    time: u64,
    payload: Bytes,
}

impl AudioQueue {
    /// Makes an empty queue; `random` is 64 random bits.
    pub(super) fn new(payload_type: u8, channel: u8, random: [u32; 3]) -> Self {
        let [seq, time, ssrc] = random;
        Self {
            packets: VecDeque::new(),
            queued_bytes: 0,
            first_seq: seq as u16,
            first_time: time,
            ssrc,
            payload_type,
            channel,
            origin: None,
            newest_seq: None,
            is_marker_due: true,
            dropped_count: 0,
        }
    }

    /// Adds a packet of the track. The oldest audio that is too much is dropped, and so is what comes late: many cameras play
    /// packets as they come.
    pub(super) fn push(&mut self, packet: &Packet) {
        if packet.payload.is_empty() {
            return;
        }
        if self.newest_seq.is_some_and(|newest| packet.seq <= newest) {
            self.dropped_count += 1;
            return;
        }
        self.newest_seq = Some(packet.seq);
        self.queued_bytes += packet.payload.len();
        self.packets.push_back(QueuedPacket {
            seq: packet.seq,
            time: packet.time,
            payload: packet.payload.clone(),
        });
        while self.queued_bytes > MAX_QUEUED_BYTES && self.packets.len() > 1 {
            if let Some(oldest) = self.packets.pop_front() {
                self.queued_bytes -= oldest.payload.len();
                self.dropped_count += 1;
                self.is_marker_due = true;
            }
        }
    }

    /// Takes the oldest packet as an interleaved frame.
    pub(super) fn pop_frame(&mut self) -> Option<Vec<u8>> {
        let QueuedPacket { seq, time, payload } = self.packets.pop_front()?;
        self.queued_bytes -= payload.len();
        let (first_seq, first_time) = *self.origin.get_or_insert((seq, time));
        let rtp_seq = self.first_seq.wrapping_add(seq.wrapping_sub(first_seq) as u16);
        let rtp_time = self.first_time.wrapping_add(time.wrapping_sub(first_time) as u32);
        let marker = u8::from(std::mem::take(&mut self.is_marker_due)) << 7;
        let mut rtp = vec![RTP_VERSION_OCTET, self.payload_type | marker];
        rtp.extend(rtp_seq.to_be_bytes());
        rtp.extend(rtp_time.to_be_bytes());
        rtp.extend(self.ssrc.to_be_bytes());
        rtp.extend(&payload);
        let mut frame = Vec::new();
        push_interleaved(&mut frame, self.channel, &rtp);
        Some(frame)
    }

    /// Returns how many packets were dropped since the last call.
    pub(super) fn take_dropped_count(&mut self) -> u64 {
        std::mem::take(&mut self.dropped_count)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use std::time::Instant;

    use super::*;
    use millstream_core::media::Codec;

    const SAMPLES: usize = 160;

    fn packet(number: u64) -> Packet {
        Packet {
            seq: 70_000 + number,
            time: 9_000_000_000 + number * SAMPLES as u64,
            codec: Codec::Pcmu,
            marker: false,
            identifies_key_frame: false,
            arrival: Instant::now(),
            payload: vec![number as u8; SAMPLES].into(),
        }
    }

    fn queue() -> AudioQueue {
        AudioQueue::new(8, 2, [u32::from(u16::MAX), u32::MAX, 0x0102_0304])
    }

    #[test]
    fn payloads_are_unchanged_and_numbers_and_times_go_on_across_their_ends() {
        let mut queue = queue();
        queue.push(&packet(0));
        queue.push(&packet(2));
        let first = queue.pop_frame().expect("a packet");
        let header = [0x80, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert_eq!(first[..4], [b'$', 2, 0, 172]);
        assert_eq!(first[4..16], header);
        assert_eq!(first[16..], [0; SAMPLES]);
        let second = queue.pop_frame().expect("a packet");
        let (seq, time) = (1_u16, 2 * SAMPLES as u32 - 1);
        assert_eq!(second[5], 8, "the marker is of the first packet");
        assert_eq!(second[6..8], seq.to_be_bytes(), "a lost packet leaves its number out");
        assert_eq!(second[8..12], time.to_be_bytes());
        assert_eq!(second[16..], [2; SAMPLES]);
        assert!(queue.pop_frame().is_none());
    }

    #[test]
    fn the_oldest_audio_beyond_200_ms_is_dropped() {
        let mut queue = queue();
        for number in 0..25 {
            queue.push(&packet(number));
        }
        assert_eq!(queue.take_dropped_count(), 15);
        assert_eq!(queue.take_dropped_count(), 0);
        let frames: Vec<Vec<u8>> = std::iter::from_fn(|| queue.pop_frame()).collect();
        let numbers: Vec<u8> = frames.iter().map(|frame| frame[16]).collect();
        assert_eq!(numbers, (15..25).collect::<Vec<u8>>());
        assert_eq!(frames[0][5], 0x88, "what follows a gap begins a talkspurt");
        queue.push(&packet(25));
        assert_eq!(queue.pop_frame().expect("a packet")[5], 8);
    }

    #[test]
    fn packets_that_come_late_or_are_empty_are_left_out() {
        let mut queue = queue();
        for number in [1, 3, 2, 3] {
            queue.push(&packet(number));
        }
        queue.push(&Packet {
            payload: Bytes::new(),
            ..packet(4)
        });
        let numbers: Vec<u8> = std::iter::from_fn(|| queue.pop_frame())
            .map(|frame| frame[16])
            .collect();
        assert_eq!((numbers, queue.take_dropped_count()), (vec![1, 3], 2));
    }
}
