//! Compound RTCP of peers, and what we write.
//!
//! A compound packet yields a bounded number of sequence numbers, and no more messages than it has packets. What we write
//! is what we read.
#![no_main]

use millstream_core::media::{
    Ssrc,
    rtcp::{
        MAX_NACKED_SEQS_PER_COMPOUND, ReceiverReportStats, RtcpMessage, SenderInfo, parse_compound_until_malformed,
        write_nack, write_pli, write_receiver_report_with_cname, write_remb, write_sender_report_with_cname,
    },
};

const US: Ssrc = Ssrc(1);

libfuzzer_sys::fuzz_target!(|compound: &[u8]| {
    let messages = parse_compound_until_malformed(compound);
    assert!(messages.len() <= compound.len() / 4);
    let (mut nacked, mut blocks) = (0, 0);
    for message in &messages {
        match message {
            RtcpMessage::Nack { seqs, .. } => nacked += seqs.len(),
            RtcpMessage::SenderReport { blocks: found, .. } | RtcpMessage::ReceiverReport { blocks: found } => {
                blocks += found.len()
            }
            RtcpMessage::KeyFrameRequest { .. } | RtcpMessage::ReceiverEstimate { .. } | RtcpMessage::Bye => {}
        }
    }
    assert!(nacked <= MAX_NACKED_SEQS_PER_COMPOUND && blocks * 24 <= compound.len());
    let mut written = Vec::new();
    let expected: Vec<RtcpMessage> = messages
        .iter()
        .filter_map(|message| write(message, &mut written))
        .collect();
    assert_eq!(parse_compound_until_malformed(&written), expected);
});

/// Writes what we can write of a message; returns what has to be read.
fn write(message: &RtcpMessage, out: &mut Vec<u8>) -> Option<RtcpMessage> {
    match message {
        RtcpMessage::Nack { media_ssrc, seqs } if !seqs.is_empty() => {
            let mut sorted = seqs.clone();
            sorted.sort_unstable();
            sorted.dedup();
            write_nack(out, US, *media_ssrc, &sorted);
            Some(RtcpMessage::Nack {
                media_ssrc: *media_ssrc,
                seqs: sorted,
            })
        }
        RtcpMessage::KeyFrameRequest { media_ssrc } => {
            write_pli(out, US, *media_ssrc);
            Some(message.clone())
        }
        // What exceeds 64 bits is read as no limit, and cannot be written.
        RtcpMessage::ReceiverEstimate { bitrate } if *bitrate != u64::MAX => {
            write_remb(out, US, US, *bitrate);
            Some(message.clone())
        }
        RtcpMessage::SenderReport {
            ssrc, ntp, rtp_time, ..
        } => {
            write_sender_report_with_cname(
                out,
                &SenderInfo {
                    ssrc: *ssrc,
                    ntp_time: *ntp,
                    rtp_time: *rtp_time,
                    packet_count: 1,
                    octet_count: 2,
                },
                "cname",
            );
            Some(RtcpMessage::SenderReport {
                ssrc: *ssrc,
                ntp: *ntp,
                rtp_time: *rtp_time,
                blocks: Vec::new(),
            })
        }
        RtcpMessage::ReceiverReport { blocks } => {
            let reception = |block: &millstream_core::media::rtcp::ReportBlock| ReceiverReportStats {
                media_ssrc: block.media_ssrc,
                fraction_lost: block.fraction_lost,
                cumulative_lost: u32::MAX,
                highest_seq: 3,
                jitter: 4,
                last_sr: block.last_sr,
                delay_since_last_sr: block.delay_since_last_sr,
            };
            write_receiver_report_with_cname(out, US, &blocks.iter().map(reception).collect::<Vec<_>>(), "cname");
            Some(message.clone())
        }
        RtcpMessage::Nack { .. } | RtcpMessage::ReceiverEstimate { .. } | RtcpMessage::Bye => None,
    }
}
