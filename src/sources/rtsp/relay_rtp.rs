//! Makes one RTP stream of what a camera sends in a channel: a client takes one SSRC, and sequence numbers that go on.
//! Encoders that restart, or begin anew with each group of pictures, change both. Single packets of another SSRC are
//! those of an earlier session, and are left out.

/// One channel with RTP packets.
#[derive(Debug, Default)]
pub(super) struct RtpStreamJoiner {
    stream: Option<JoinedStream>,
    /// Packets that may be the start of another stream.
    candidate: Option<CandidateStream>,
}

#[derive(Debug)]
struct JoinedStream {
    /// SSRC that the client knows.
    client_ssrc: [u8; 4],
    camera_ssrc: [u8; 4],
    /// Added to the sequence numbers of the camera, wrapping.
    seq_offset: u16,
    /// Sequence number that the camera would use next.
    next_seq: u16,
    newest_time: u32,
}

#[derive(Debug)]
struct CandidateStream {
    ssrc: [u8; 4],
    next_seq: u16,
    packets: Vec<Vec<u8>>,
}

/// The fixed header (RFC 3550 §5.1).
#[derive(Clone, Copy)]
struct Header {
    seq: u16,
    time: u32,
    ssrc: [u8; 4],
}

/// Packets in a row of another stream after which it is followed.
const PACKETS_TO_FOLLOW_STREAM: usize = 5;

/// Packets of another SSRC continue the stream if their sequence numbers and timestamps are ahead by no more than this.
const MAX_CONTINUED_SEQ_GAP: u16 = 16;
const MAX_CONTINUED_TIME_GAP: u32 = 90_000;

/// A sequence number that is ahead by more is behind.
const MAX_SEQ_GAP: u16 = 0x8000;

/// Longest packet that is held.
const MAX_HELD_PACKET_BYTES: usize = 16 * 1024;

impl RtpStreamJoiner {
    /// Appends what the client gets for a packet. What is no RTP passes as it is.
    pub(super) fn push_packet(&mut self, packet: Vec<u8>, out: &mut Vec<Vec<u8>>) {
        let Some(header) = Header::parse(&packet) else {
            return out.push(packet);
        };
        let stream = self.stream.get_or_insert(JoinedStream {
            client_ssrc: header.ssrc,
            camera_ssrc: header.ssrc,
            seq_offset: 0,
            next_seq: header.seq,
            newest_time: header.time,
        });
        if stream.is_next(header) || stream.is_continued_by(header) {
            self.candidate = None;
            return out.push(stream.join(packet, header));
        }
        let continues = |candidate: &CandidateStream| {
            candidate.ssrc == header.ssrc && header.seq.wrapping_sub(candidate.next_seq) <= MAX_CONTINUED_SEQ_GAP
        };
        let mut candidate = self.candidate.take().filter(continues).unwrap_or(CandidateStream {
            ssrc: header.ssrc,
            next_seq: header.seq,
            packets: Vec::new(),
        });
        if packet.len() > MAX_HELD_PACKET_BYTES {
            return;
        }
        candidate.next_seq = header.seq.wrapping_add(1);
        candidate.packets.push(packet);
        if candidate.packets.len() < PACKETS_TO_FOLLOW_STREAM {
            self.candidate = Some(candidate);
            return;
        }
        for (index, packet) in candidate.packets.into_iter().enumerate() {
            let Some(header) = Header::parse(&packet) else { continue };
            if index == 0 {
                let next = stream.next_seq.wrapping_add(stream.seq_offset);
                stream.seq_offset = next.wrapping_sub(header.seq);
            }
            out.push(stream.join(packet, header));
        }
    }
}

impl JoinedStream {
    /// Whether a packet is one of the present SSRC, behind the newest one.
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
    fn join(&mut self, mut packet: Vec<u8>, header: Header) -> Vec<u8> {
        self.camera_ssrc = header.ssrc;
        self.next_seq = header.seq.wrapping_add(1);
        self.newest_time = header.time;
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
        let &[first, _, seq0, seq1, t0, t1, t2, t3, s0, s1, s2, s3] = packet.first_chunk::<12>()?;
        (first & 0xc0 == 0x80).then_some(Self {
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

    /// SSRC and sequence number of what the client gets.
    fn joined(packets: &[(u8, u16, u32)]) -> Vec<(u8, u16)> {
        let (mut joiner, mut out) = (RtpStreamJoiner::default(), Vec::new());
        for (ssrc, seq, time) in packets {
            joiner.push_packet(packet(*ssrc, *seq, *time), &mut out);
        }
        out.iter()
            .map(|packet| (packet[11], u16::from_be_bytes([packet[2], packet[3]])))
            .collect()
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
    fn what_is_no_rtp_passes() {
        let mut out = Vec::new();
        for odd in [&[][..], &[0x80, 96, 0], &[0; 20]] {
            RtpStreamJoiner::default().push_packet(odd.to_vec(), &mut out);
            assert_eq!(out.pop().as_deref(), Some(odd));
        }
    }
}
