//! RTCP: parses the messages that a session handles and writes those that it sends (RFC 3550 §6, RFC 4585 §6,
//! RFC 5104 §4.3.1).
//!
//! The parser is written by hand because all input is untrusted and most of a compound packet is skipped. Parsing stops
//! at the first malformed packet; the messages before it are kept.

use super::Ssrc;

/// A message that a session handles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RtcpMessage {
    SenderReport {
        ssrc: Ssrc,
        ntp: u64,
        rtp_time: u32,
        blocks: Vec<ReportBlock>,
    },
    ReceiverReport {
        blocks: Vec<ReportBlock>,
    },
    /// Generic NACK with the requested sequence numbers, at most [`MAX_NACKED_SEQS_PER_COMPOUND`].
    Nack {
        media_ssrc: Ssrc,
        seqs: Vec<u16>,
    },
    /// Picture loss indication or full intra request: the receiver requests a key frame of `media_ssrc`.
    KeyFrameRequest {
        media_ssrc: Ssrc,
    },
    /// The receiver's estimate of what its path carries, in bits per second (draft-alvestrand-rmcat-remb-03).
    ReceiverEstimate {
        bitrate: u64,
    },
    Bye,
}

/// Reception report block (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportBlock {
    pub media_ssrc: Ssrc,
    /// Fraction lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Middle 32 bits of the NTP time of the last sender report received, 0 if none.
    pub last_sr: u32,
    /// Delay since then in 1/65536 s.
    pub delay_since_last_sr: u32,
}

/// Maximum number of sequence numbers in one compound packet; more are ignored. A 1,200-byte packet could name 5,000.
pub const MAX_NACKED_SEQS_PER_COMPOUND: usize = 512;

const SR: u8 = 200;
const RR: u8 = 201;
const SDES: u8 = 202;
const BYE: u8 = 203;
const RTPFB: u8 = 205;
const PSFB: u8 = 206;
const FMT_NACK: u8 = 1;
const FMT_PLI: u8 = 1;
const FMT_FIR: u8 = 4;
const FMT_AFB: u8 = 15;
const FMT_TRANSPORT_CC: u8 = 15;

/// Parses a decrypted compound packet.
pub fn parse_compound_until_malformed(mut bytes: &[u8]) -> Vec<RtcpMessage> {
    let mut messages = Vec::new();
    let mut left = MAX_NACKED_SEQS_PER_COMPOUND;
    while let Some((&[first, packet_type, l0, l1], rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([l0, l1])) * 4;
        let (Some(body), true) = (rest.get(..length), first >> 6 == 2) else {
            break;
        };
        if let Some(mut message) = parse_rtcp_packet(first & 0x1f, packet_type, body) {
            if let RtcpMessage::Nack { seqs, .. } = &mut message {
                seqs.truncate(left);
                left -= seqs.len();
            }
            messages.push(message);
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    messages
}

fn parse_rtcp_packet(count: u8, packet_type: u8, body: &[u8]) -> Option<RtcpMessage> {
    match (packet_type, count) {
        (SR, _) => {
            let ntp = u64::from(read_u32(body, 4)?) << 32 | u64::from(read_u32(body, 8)?);
            let blocks = parse_report_blocks(count, body.get(24..)?);
            Some(RtcpMessage::SenderReport {
                ssrc: Ssrc(read_u32(body, 0)?),
                ntp,
                rtp_time: read_u32(body, 12)?,
                blocks,
            })
        }
        (RR, _) => Some(RtcpMessage::ReceiverReport {
            blocks: parse_report_blocks(count, body.get(4..)?),
        }),
        (RTPFB, FMT_NACK) => Some(RtcpMessage::Nack {
            media_ssrc: Ssrc(read_u32(body, 4)?),
            seqs: parse_nacked_seqs(body.get(8..)?),
        }),
        (PSFB, FMT_PLI) => Some(RtcpMessage::KeyFrameRequest {
            media_ssrc: Ssrc(read_u32(body, 4)?),
        }),
        // RFC 5104 §4.3.1.2: the media SSRC of a FIR is in its FCI entry.
        (PSFB, FMT_FIR) => Some(RtcpMessage::KeyFrameRequest {
            media_ssrc: Ssrc(read_u32(body, 8)?),
        }),
        (PSFB, FMT_AFB) => parse_remb_bitrate(body).map(|bitrate| RtcpMessage::ReceiverEstimate { bitrate }),
        (BYE, _) => Some(RtcpMessage::Bye),
        _ => None,
    }
}

/// Returns the bodies of the transport-wide feedback packets of a compound packet
/// (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1), in place: there are many of them.
pub(crate) fn transport_feedback_bodies(compound: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = compound;
    let packets = std::iter::from_fn(move || {
        let (&[first, packet_type, l0, l1], after) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([l0, l1])) * 4;
        let body = after.get(..length).filter(|_| first >> 6 == 2)?;
        rest = after.get(length..).unwrap_or_default();
        Some((packet_type, first & 0x1f, body))
    });
    packets
        .filter(|(packet_type, format, _)| (*packet_type, *format) == (RTPFB, FMT_TRANSPORT_CC))
        .map(|(_, _, body)| body)
}

/// The bitrate of a REMB packet; `None` for other application layer feedback.
fn parse_remb_bitrate(body: &[u8]) -> Option<u64> {
    if body.get(8..12)? != b"REMB" {
        return None;
    }
    let word = read_u32(body, 12)?;
    let (exponent, mantissa) = (word >> 18 & 0x3f, u64::from(word & 0x3_ffff));
    // More than 64 bits: no limit.
    Some(
        mantissa
            .checked_shl(exponent)
            .filter(|rate| rate >> exponent == mantissa)
            .unwrap_or(u64::MAX),
    )
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}

fn parse_report_blocks(count: u8, bytes: &[u8]) -> Vec<ReportBlock> {
    let block = |b: &[u8]| {
        Some(ReportBlock {
            media_ssrc: Ssrc(read_u32(b, 0)?),
            fraction_lost: *b.get(4)?,
            last_sr: read_u32(b, 16)?,
            delay_since_last_sr: read_u32(b, 20)?,
        })
    };
    bytes
        .chunks_exact(24)
        .take(usize::from(count))
        .filter_map(block)
        .collect()
}

fn parse_nacked_seqs(bytes: &[u8]) -> Vec<u16> {
    let mut seqs = Vec::new();
    for pair in bytes.chunks_exact(4) {
        let &[p0, p1, b0, b1] = pair else { break };
        let (pid, mask) = (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([b0, b1]));
        seqs.push(pid);
        seqs.extend(
            (0..16)
                .filter(|bit| mask >> bit & 1 == 1)
                .map(|bit| pid.wrapping_add(bit + 1)),
        );
        if seqs.len() >= MAX_NACKED_SEQS_PER_COMPOUND {
            seqs.truncate(MAX_NACKED_SEQS_PER_COMPOUND);
            break;
        }
    }
    seqs
}

/// Contents of a sender report for one outgoing stream.
#[derive(Clone, Copy, Debug)]
pub struct SenderInfo {
    pub ssrc: Ssrc,
    /// 64-bit NTP timestamp.
    pub ntp_time: u64,
    pub rtp_time: u32,
    pub packet_count: u32,
    pub octet_count: u32,
}

/// Appends a sender report without report blocks and the required SDES CNAME (RFC 3550 §6.1).
pub fn write_sender_report_with_cname(out: &mut Vec<u8>, info: &SenderInfo, cname: &str) {
    write_rtcp_header(out, 0, SR, 6);
    write_u32(out, info.ssrc.0);
    out.extend_from_slice(&info.ntp_time.to_be_bytes());
    write_u32(out, info.rtp_time);
    write_u32(out, info.packet_count);
    write_u32(out, info.octet_count);
    write_sdes_cname(out, info.ssrc, cname);
}

/// Reception statistics of one incoming stream for a receiver report.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverReportStats {
    pub media_ssrc: Ssrc,
    pub fraction_lost: u8,
    /// Cumulative number lost, clamped to 24 bits by the writer.
    pub cumulative_lost: u32,
    /// Extended highest sequence number.
    pub highest_seq: u32,
    /// Interarrival jitter in timestamp units.
    pub jitter: u32,
    pub last_sr: u32,
    pub delay_since_last_sr: u32,
}

/// Appends a receiver report and the required SDES CNAME.
pub fn write_receiver_report_with_cname(out: &mut Vec<u8>, from: Ssrc, blocks: &[ReceiverReportStats], cname: &str) {
    let count = blocks.len().min(31) as u8;
    write_rtcp_header(out, count, RR, 1 + 6 * u16::from(count));
    write_u32(out, from.0);
    for block in blocks.iter().take(usize::from(count)) {
        write_u32(out, block.media_ssrc.0);
        write_u32(
            out,
            u32::from(block.fraction_lost) << 24 | block.cumulative_lost.min(0x7f_ffff),
        );
        write_u32(out, block.highest_seq);
        write_u32(out, block.jitter);
        write_u32(out, block.last_sr);
        write_u32(out, block.delay_since_last_sr);
    }
    write_sdes_cname(out, from, cname);
}

/// Appends a generic NACK for `seqs`, which must be in ascending order (modulo wrap). Writes nothing if it is empty.
pub fn write_nack(out: &mut Vec<u8>, from: Ssrc, media: Ssrc, seqs: &[u16]) {
    let mut pairs: Vec<(u16, u16)> = Vec::new();
    for &seq in seqs {
        match pairs.last_mut() {
            Some((pid, mask)) if (1..=16).contains(&seq.wrapping_sub(*pid)) => {
                *mask |= 1 << (seq.wrapping_sub(*pid) - 1);
            }
            _ => pairs.push((seq, 0)),
        }
    }
    if pairs.is_empty() {
        return;
    }
    write_rtcp_header(out, FMT_NACK, RTPFB, 2 + pairs.len() as u16);
    write_u32(out, from.0);
    write_u32(out, media.0);
    for (pid, mask) in pairs {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(&mask.to_be_bytes());
    }
}

/// Appends a picture loss indication (RFC 4585 §6.3.1).
pub fn write_pli(out: &mut Vec<u8>, from: Ssrc, media: Ssrc) {
    write_rtcp_header(out, FMT_PLI, PSFB, 2);
    write_u32(out, from.0);
    write_u32(out, media.0);
}

/// Appends a full intra request (RFC 5104 §4.3.1). `seq` differs from that of the request before.
pub fn write_fir(out: &mut Vec<u8>, from: Ssrc, media: Ssrc, seq: u8) {
    write_rtcp_header(out, FMT_FIR, PSFB, 4);
    write_u32(out, from.0);
    write_u32(out, 0);
    write_u32(out, media.0);
    write_u32(out, u32::from(seq) << 24);
}

/// Appends a receiver estimated maximum bitrate (draft-alvestrand-rmcat-remb-03 §2.2); `bitrate` in bit/s.
pub fn write_remb(out: &mut Vec<u8>, from: Ssrc, media: Ssrc, bitrate: u64) {
    let exponent = (64 - bitrate.leading_zeros()).saturating_sub(18);
    let mantissa = (bitrate >> exponent) as u32;
    write_rtcp_header(out, FMT_AFB, PSFB, 5);
    write_u32(out, from.0);
    write_u32(out, 0);
    out.extend_from_slice(b"REMB");
    write_u32(out, 1 << 24 | exponent << 18 | mantissa & 0x3_ffff);
    write_u32(out, media.0);
}

fn write_sdes_cname(out: &mut Vec<u8>, ssrc: Ssrc, cname: &str) {
    let text = cname.as_bytes().get(..cname.len().min(255)).unwrap_or_default();
    // SSRC, item header and text, one or more null octets up to a word boundary.
    let words = 1 + (2 + text.len()) / 4 + 1;
    write_rtcp_header(out, 1, SDES, words as u16);
    write_u32(out, ssrc.0);
    out.extend_from_slice(&[1, text.len() as u8]);
    out.extend_from_slice(text);
    let padding = 4 - (2 + text.len()) % 4;
    out.resize(out.len() + padding, 0);
}

fn write_rtcp_header(out: &mut Vec<u8>, count: u8, packet_type: u8, words: u16) {
    out.extend_from_slice(&[0x80 | count, packet_type]);
    out.extend_from_slice(&words.to_be_bytes());
}

fn write_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtc_shared::marshal::Unmarshal as _;

    #[test]
    fn a_nack_survives_the_round_trip_across_the_wrap() {
        let mut bytes = Vec::new();
        write_nack(&mut bytes, Ssrc(1), Ssrc(2), &[65534, 65535, 0, 9, 40]);
        let expected = RtcpMessage::Nack {
            media_ssrc: Ssrc(2),
            seqs: vec![65534, 65535, 0, 9, 40],
        };
        assert_eq!(parse_compound_until_malformed(&bytes), [expected]);
    }

    #[test]
    fn reports_are_read_by_an_independent_parser() {
        let mut bytes = Vec::new();
        let info = SenderInfo {
            ssrc: Ssrc(7),
            ntp_time: 0x0102_0304_0506_0708,
            rtp_time: 9,
            packet_count: 10,
            octet_count: 11,
        };
        write_sender_report_with_cname(&mut bytes, &info, "millstream");
        let packets = rtc_rtcp::packet::unmarshal(&mut bytes.as_slice()).expect("valid RTCP");
        assert_eq!(packets.len(), 2);
        assert_eq!(bytes.len() % 4, 0);
        let mut remb = Vec::new();
        write_remb(&mut remb, Ssrc(1), Ssrc(2), 50_000_000);
        let parsed =
            rtc_rtcp::payload_feedbacks::receiver_estimated_maximum_bitrate::ReceiverEstimatedMaximumBitrate::unmarshal(
                &mut remb.as_slice(),
            )
            .expect("valid REMB");
        assert!((parsed.bitrate - 50_000_000.0).abs() < 500_000.0, "{}", parsed.bitrate);
        assert_eq!(parsed.ssrcs, [2]);
        let [RtcpMessage::ReceiverEstimate { bitrate }] = parse_compound_until_malformed(&remb)[..] else {
            panic!("not an estimate")
        };
        assert!(bitrate.abs_diff(50_000_000) < 500_000, "{bitrate}");
        // As much as fits into the format is no limit.
        remb[17..20].copy_from_slice(&[0xff; 3]);
        assert_eq!(
            parse_compound_until_malformed(&remb),
            [RtcpMessage::ReceiverEstimate { bitrate: u64::MAX }]
        );
    }

    #[test]
    fn a_nack_for_thousands_of_packets_is_truncated() {
        let mut bytes = vec![0x81, RTPFB];
        bytes.extend_from_slice(&(2u16 + 290).to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        for index in 0..290u16 {
            bytes.extend_from_slice(&(index * 17).to_be_bytes());
            bytes.extend_from_slice(&[0xff, 0xff]);
        }
        let messages = parse_compound_until_malformed(&bytes);
        let [RtcpMessage::Nack { seqs, .. }] = messages.as_slice() else {
            panic!("not a NACK")
        };
        assert_eq!(seqs.len(), MAX_NACKED_SEQS_PER_COMPOUND);
    }

    #[test]
    fn many_nacks_in_one_compound_packet_are_truncated_together() {
        let mut bytes = Vec::new();
        let all: Vec<u16> = (0..400).collect();
        for _ in 0..20 {
            write_nack(&mut bytes, Ssrc(1), Ssrc(2), &all);
        }
        let requested = |message: &RtcpMessage| match message {
            RtcpMessage::Nack { seqs, .. } => seqs.len(),
            _ => 0,
        };
        assert_eq!(
            parse_compound_until_malformed(&bytes)
                .iter()
                .map(requested)
                .sum::<usize>(),
            MAX_NACKED_SEQS_PER_COMPOUND
        );
    }

    #[test]
    fn transport_wide_feedback_is_found_among_other_packets() {
        let mut bytes = Vec::new();
        write_pli(&mut bytes, Ssrc(1), Ssrc(2));
        for body in [[7; 16].as_slice(), &[9; 20]] {
            write_rtcp_header(&mut bytes, FMT_TRANSPORT_CC, RTPFB, body.len() as u16 / 4);
            bytes.extend_from_slice(body);
            write_nack(&mut bytes, Ssrc(1), Ssrc(2), &[3]);
        }
        let bodies: Vec<&[u8]> = transport_feedback_bodies(&bytes).collect();
        assert_eq!(bodies, [[7; 16].as_slice(), &[9; 20]]);
        bytes.truncate(bytes.len() - 17);
        assert_eq!(transport_feedback_bodies(&bytes).count(), 1, "one is cut off");
    }

    #[test]
    fn invalid_lengths_stop_the_parser() {
        let mut bytes = Vec::new();
        write_pli(&mut bytes, Ssrc(1), Ssrc(2));
        bytes.extend_from_slice(&[0x81, PSFB, 0xff, 0xff, 1, 2, 3]);
        assert_eq!(
            parse_compound_until_malformed(&bytes),
            [RtcpMessage::KeyFrameRequest { media_ssrc: Ssrc(2) }]
        );
    }
}
