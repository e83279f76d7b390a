//! Makes one RTP stream of what a camera sends in a channel: a client takes one SSRC, and sequence numbers that go on.
//! Encoders that restart, or begin anew with each group of pictures, change both. Packets of another SSRC that come while
//! the present one goes on are those of an earlier session, and are left out.

use std::time::{Duration, Instant};

/// One channel with RTP packets.
#[derive(Debug, Default)]
pub(super) struct RtpStreamJoiner {
    stream: Option<JoinedStream>,
    /// Packets that may be the start of another stream.
    candidate: Option<CandidateStream>,
    /// Packets that were left out since the last one that was not.
    left_out_count: u32,
}

#[derive(Debug)]
struct JoinedStream {
    /// SSRC that the client knows.
    client_ssrc: [u8; 4],
    camera_ssrc: [u8; 4],
    payload_type: u8,
    /// Added to the sequence numbers of the camera, wrapping.
    seq_offset: u16,
    /// Sequence number that the camera would use next.
    next_seq: u16,
    newest_time: u32,
    last_packet_at: Instant,
}

#[derive(Debug)]
struct CandidateStream {
    ssrc: [u8; 4],
    next_seq: u16,
    packets: Vec<Vec<u8>>,
    byte_count: usize,
}

/// The fixed header (RFC 3550 §5.1).
#[derive(Clone, Copy)]
struct Header {
    payload_type: u8,
    seq: u16,
    time: u32,
    ssrc: [u8; 4],
}

/// Packets in a row of another stream after which it is followed.
const PACKETS_TO_FOLLOW_STREAM: usize = 5;

/// Another SSRC is followed only if the present one has sent nothing for this long: cameras also send what is left of an
/// earlier session, in bursts.
const SILENCE_BEFORE_ANOTHER_SSRC: Duration = Duration::from_millis(200);

/// Packets of another SSRC continue the stream if their sequence numbers and timestamps are ahead by no more than this.
const MAX_CONTINUED_SEQ_GAP: u16 = 16;
const MAX_CONTINUED_TIME_GAP: u32 = 90_000;

/// A sequence number that is ahead by more is behind.
const MAX_SEQ_GAP: u16 = 0x8000;

/// Most bytes that are held until a stream is followed: more than a key frame and what comes within the silence.
const MAX_HELD_BYTES: usize = 2 * 1024 * 1024;

/// If nothing was taken for this long, and so many packets were left out, they pass as they are: the client then says
/// what is wrong with them, and the camera is read in another way.
const MAX_TIME_WITHOUT_PACKET: Duration = Duration::from_secs(1);
const MAX_LEFT_OUT_PACKETS: u32 = 16;

impl RtpStreamJoiner {
    /// Appends what the client gets for a packet. What is no RTP passes as it is, and so do packets of another payload
    /// type and SSRC, which the client knows how to treat.
    pub(super) fn push_packet(&mut self, now: Instant, packet: Vec<u8>, out: &mut Vec<Vec<u8>>) {
        let Some(header) = Header::parse(&packet) else {
            return out.push(packet);
        };
        let stream = self.stream.get_or_insert(JoinedStream {
            client_ssrc: header.ssrc,
            camera_ssrc: header.ssrc,
            payload_type: header.payload_type,
            seq_offset: 0,
            next_seq: header.seq,
            newest_time: header.time,
            last_packet_at: now,
        });
        if header.payload_type != stream.payload_type && header.ssrc != stream.camera_ssrc {
            return out.push(packet);
        }
        if stream.is_next(header) || stream.is_continued_by(header) {
            self.left_out_count = 0;
            return out.push(stream.join(now, packet, header));
        }
        let continues = |candidate: &CandidateStream| {
            candidate.ssrc == header.ssrc && header.seq.wrapping_sub(candidate.next_seq) <= MAX_CONTINUED_SEQ_GAP
        };
        let is_silent = now.saturating_duration_since(stream.last_packet_at) >= MAX_TIME_WITHOUT_PACKET;
        if is_silent && self.left_out_count >= MAX_LEFT_OUT_PACKETS {
            return out.push(packet);
        }
        let candidate = match self.candidate.take() {
            Some(candidate) if continues(&candidate) && candidate.byte_count + packet.len() <= MAX_HELD_BYTES => {
                candidate
            }
            replaced => {
                let count = replaced.map_or(0, |candidate| candidate.packets.len());
                self.left_out_count = self
                    .left_out_count
                    .saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                CandidateStream::new(header)
            }
        };
        let candidate = self.candidate.insert(candidate);
        candidate.next_seq = header.seq.wrapping_add(1);
        candidate.byte_count += packet.len();
        candidate.packets.push(packet);
        let silence = now.saturating_duration_since(stream.last_packet_at);
        let is_ended = header.ssrc == stream.camera_ssrc || silence >= SILENCE_BEFORE_ANOTHER_SSRC;
        if candidate.packets.len() < PACKETS_TO_FOLLOW_STREAM || !is_ended {
            return;
        }
        self.left_out_count = 0;
        let packets = self.candidate.take().map(|candidate| candidate.packets);
        for (index, packet) in packets.into_iter().flatten().enumerate() {
            let Some(header) = Header::parse(&packet) else { continue };
            if index == 0 {
                let next = stream.next_seq.wrapping_add(stream.seq_offset);
                stream.seq_offset = next.wrapping_sub(header.seq);
            }
            out.push(stream.join(now, packet, header));
        }
    }

    /// Gives a sender report (RFC 3550 §6.4.1) the SSRC that the client knows. Returns whether the client gets the
    /// packet: a report of another stream would place this one on a wrong timeline.
    pub(super) fn correct_rtcp(&self, packet: &mut [u8]) -> bool {
        let (Some(stream), Some(&[first, SENDER_REPORT, _, _, s0, s1, s2, s3])) =
            (&self.stream, packet.first_chunk::<8>())
        else {
            return true;
        };
        let ssrc = [s0, s1, s2, s3];
        if first & 0xc0 != 0x80 || ssrc == stream.client_ssrc && ssrc == stream.camera_ssrc {
            return true;
        }
        if ssrc == stream.camera_ssrc {
            if let Some(bytes) = packet.get_mut(4..8) {
                bytes.copy_from_slice(&stream.client_ssrc);
            }
            return true;
        }
        let is_candidate = self.candidate.as_ref().is_some_and(|candidate| candidate.ssrc == ssrc);
        !is_candidate && stream.client_ssrc == stream.camera_ssrc
    }
}

/// Packet type of sender reports.
const SENDER_REPORT: u8 = 200;

impl CandidateStream {
    fn new(first: Header) -> Self {
        Self {
            ssrc: first.ssrc,
            next_seq: first.seq,
            packets: Vec::new(),
            byte_count: 0,
        }
    }
}

impl JoinedStream {
    /// Whether a packet is one of the present SSRC that is not behind the newest one.
    fn is_next(&self, header: Header) -> bool {
        self.camera_ssrc == header.ssrc && header.seq.wrapping_sub(self.next_seq) < MAX_SEQ_GAP
    }

    /// Whether a packet of another SSRC goes on with numbers and timestamps.
    fn is_continued_by(&self, header: Header) -> bool {
        self.camera_ssrc != header.ssrc
            && header.seq.wrapping_sub(self.next_seq) <= MAX_CONTINUED_SEQ_GAP
            && header.time.wrapping_sub(self.newest_time) <= MAX_CONTINUED_TIME_GAP
    }

    /// Returns the packet with the SSRC and the number that the client expects.
    fn join(&mut self, now: Instant, mut packet: Vec<u8>, header: Header) -> Vec<u8> {
        self.camera_ssrc = header.ssrc;
        self.next_seq = header.seq.wrapping_add(1);
        (self.newest_time, self.last_packet_at) = (header.time, now);
        let seq = header.seq.wrapping_add(self.seq_offset).to_be_bytes();
        if let Some(bytes) = packet.get_mut(2..4) {
            bytes.copy_from_slice(&seq);
        }
        if let Some(bytes) = packet.get_mut(8..12) {
            bytes.copy_from_slice(&self.client_ssrc);
        }
        packet
    }
}

impl Header {
    /// `None` if it is no RTP packet of version 2.
    fn parse(packet: &[u8]) -> Option<Self> {
        let &[first, second, seq0, seq1, t0, t1, t2, t3, s0, s1, s2, s3] = packet.first_chunk::<12>()?;
        (first & 0xc0 == 0x80).then_some(Self {
            payload_type: second & 0x7f,
            seq: u16::from_be_bytes([seq0, seq1]),
            time: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: [s0, s1, s2, s3],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(ssrc: u8, seq: u16, time: u32) -> Vec<u8> {
        let mut packet = vec![0x80, 96];
        packet.extend(seq.to_be_bytes());
        packet.extend(time.to_be_bytes());
        packet.extend([0, 0, 0, ssrc, 7]);
        packet
    }

    /// SSRC and sequence number of what the client gets for packets that come at these times, in ms.
    fn joined_at(packets: &[(u64, u8, u16, u32)]) -> Vec<(u8, u16)> {
        let (mut joiner, mut out, start) = (
            RtpStreamJoiner::default(),
            Vec::new(),
            tokio::time::Instant::now().into_std(),
        );
        for (at, ssrc, seq, time) in packets {
            joiner.push_packet(start + Duration::from_millis(*at), packet(*ssrc, *seq, *time), &mut out);
        }
        out.iter()
            .map(|packet| (packet[11], u16::from_be_bytes([packet[2], packet[3]])))
            .collect()
    }

    /// The same, for packets that come each 20 ms.
    fn joined(packets: &[(u8, u16, u32)]) -> Vec<(u8, u16)> {
        let timed = packets.iter().zip(0..);
        joined_at(
            &timed
                .map(|((ssrc, seq, time), n)| (n * 20, *ssrc, *seq, *time))
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_stream_goes_on_with_another_ssrc_at_once_if_it_numbers_on() {
        let wanted = [(1, 65_535), (1, 0), (1, 1), (1, 3)];
        assert_eq!(joined(&[(1, 65_535, 0), (1, 0, 10), (2, 1, 20), (3, 3, 40)]), wanted);
    }

    #[test]
    fn an_encoder_that_restarts_loses_no_packet() {
        for ssrc in [1, 2] {
            let mut sent = vec![(1, 500, 9_000), (1, 501, 9_010)];
            sent.extend((0..20).map(|n| (ssrc, 40_000 + n, 1_000_000 + u32::from(n))));
            let wanted: Vec<(u8, u16)> = (500..522).map(|seq| (1, seq)).collect();
            assert_eq!(joined(&sent), wanted);
        }
    }

    #[test]
    fn packets_of_an_earlier_session_are_left_out() {
        let mut sent = Vec::new();
        for n in 0..50u16 {
            sent.push((1, n, u32::from(n) * 10));
            sent.push((9, 30_000 + n, 7));
        }
        let wanted: Vec<(u8, u16)> = (0..50).map(|seq| (1, seq)).collect();
        assert_eq!(joined(&sent), wanted);
        assert_eq!(
            joined(&[(1, 5, 0), (1, 5, 0), (1, 4, 0), (1, 6, 0)]),
            [(1, 5), (1, 6)],
            "late ones, too"
        );
    }

    #[test]
    fn bursts_of_an_earlier_session_are_left_out_too() {
        let mut sent = Vec::new();
        let mut wanted = Vec::new();
        for n in 0..50u16 {
            let at = u64::from(n) * 40;
            sent.push((at, 1, n, u32::from(n) * 3_600));
            wanted.push((1, n));
            // 20 packets of a key frame, and later single ones.
            let count = if n == 10 { 20 } else { u16::from(n > 10) };
            sent.extend((0..count).map(|k| (at, 9, 30_000 + n * 20 + k, 7)));
        }
        assert_eq!(joined_at(&sent), wanted);
    }

    #[test]
    fn large_packets_of_an_encoder_that_restarts_are_kept() {
        let (mut joiner, mut out, start) = (
            RtpStreamJoiner::default(),
            Vec::new(),
            tokio::time::Instant::now().into_std(),
        );
        joiner.push_packet(start, packet(1, 1, 0), &mut out);
        for n in 0..20u16 {
            let mut large = packet(2, 900 + n, 7);
            large.resize(60_000, 0);
            joiner.push_packet(start + Duration::from_millis(300 + u64::from(n)), large, &mut out);
        }
        assert_eq!(out.len(), 21);
        // What never becomes a stream is bounded.
        for n in 0..1_000u16 {
            let mut large = packet(3, 20_000 + n, 7);
            large.resize(60_000, 0);
            joiner.push_packet(start + Duration::from_millis(320), large, &mut out);
            let held = joiner.candidate.as_ref().map_or(0, |candidate| candidate.byte_count);
            assert!(held <= MAX_HELD_BYTES, "{held} bytes");
        }
        assert_eq!(out.len(), 21);
    }

    #[test]
    fn what_makes_no_stream_reaches_the_client_in_the_end() {
        let mut sent = vec![(0, 1, 500, 0)];
        // Each frame of four packets begins with the same number.
        sent.extend((1..100u64).flat_map(|frame| (0..4u16).map(move |k| (frame * 40, 1, 100 + k, 7))));
        let passed = joined_at(&sent).len();
        assert!((250..350).contains(&passed), "{passed}");
    }

    #[test]
    fn other_payload_types_of_other_sources_pass_as_they_are() {
        let (mut joiner, mut out, now) = (
            RtpStreamJoiner::default(),
            Vec::new(),
            tokio::time::Instant::now().into_std(),
        );
        joiner.push_packet(now, packet(1, 1, 0), &mut out);
        for n in 0..20u16 {
            let mut other = packet(2, 700 + n, 0);
            other[1] = 107;
            joiner.push_packet(now + Duration::from_secs(1), other.clone(), &mut out);
            assert_eq!(out.pop(), Some(other));
        }
        joiner.push_packet(now + Duration::from_secs(1), packet(1, 2, 9), &mut out);
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn sender_reports_name_the_ssrc_that_the_client_knows() {
        let report = |ssrc: u8| [0x80, 200, 0, 6, 0, 0, 0, ssrc, 1, 2, 3, 4];
        let (mut joiner, mut out, now) = (
            RtpStreamJoiner::default(),
            Vec::new(),
            tokio::time::Instant::now().into_std(),
        );
        let corrected = |joiner: &RtpStreamJoiner, ssrc| {
            let mut packet = report(ssrc);
            joiner.correct_rtcp(&mut packet).then_some(packet[7])
        };
        assert_eq!(corrected(&joiner, 5), Some(5), "before media");
        joiner.push_packet(now, packet(1, 1, 0), &mut out);
        assert_eq!((corrected(&joiner, 1), corrected(&joiner, 5)), (Some(1), Some(5)));
        joiner.push_packet(now, packet(2, 9_000, 0), &mut out);
        assert_eq!(corrected(&joiner, 2), None, "not followed yet");
        for n in 1..6 {
            joiner.push_packet(now + SILENCE_BEFORE_ANOTHER_SSRC, packet(2, 9_000 + n, 0), &mut out);
        }
        assert_eq!((corrected(&joiner, 2), corrected(&joiner, 1)), (Some(1), None));
    }

    #[test]
    fn what_is_no_rtp_passes() {
        let mut out = Vec::new();
        for odd in [&[][..], &[0x80, 96, 0], &[0; 20]] {
            RtpStreamJoiner::default().push_packet(tokio::time::Instant::now().into_std(), odd.to_vec(), &mut out);
            assert_eq!(out.pop().as_deref(), Some(odd));
        }
    }
}
