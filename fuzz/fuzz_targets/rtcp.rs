//! Compound RTCP of peers, and what we write.
//!
//! A compound packet yields a bounded number of sequence numbers, and no more messages than it has packets. What we write
//! is what we read.
#![no_main]

use millstream_core::media::{
    Ssrc,
    rtcp::{
        MAX_NACKED, Message, Reception, SenderInfo, read, write_nack, write_pli, write_receiver_report, write_remb,
        write_sender_report,
    },
};

const US: Ssrc = Ssrc(1);

libfuzzer_sys::fuzz_target!(|compound: &[u8]| {
    let messages = read(compound);
    assert!(messages.len() <= compound.len() / 4);
    let (mut nacked, mut blocks) = (0, 0);
    for message in &messages {
        match message {
            Message::Nack { seqs, .. } => nacked += seqs.len(),
            Message::SenderReport { blocks: found, .. } | Message::ReceiverReport { blocks: found } => {
                blocks += found.len()
            }
            Message::KeyFrameRequest { .. } | Message::Bye => {}
        }
    }
    assert!(nacked <= MAX_NACKED && blocks * 24 <= compound.len());
    let mut written = Vec::new();
    let expected: Vec<Message> = messages
        .iter()
        .filter_map(|message| write(message, &mut written))
        .collect();
    assert_eq!(read(&written), expected);
});

/// Writes what we can write of a message; returns what has to be read.
fn write(message: &Message, out: &mut Vec<u8>) -> Option<Message> {
    match message {
        Message::Nack { media, seqs } if !seqs.is_empty() => {
            let mut sorted = seqs.clone();
            sorted.sort_unstable();
            sorted.dedup();
            write_nack(out, US, *media, &sorted);
            Some(Message::Nack {
                media: *media,
                seqs: sorted,
            })
        }
        Message::KeyFrameRequest { media } => {
            write_pli(out, US, *media);
            write_remb(out, US, *media, u64::from(media.0));
            Some(message.clone())
        }
        Message::SenderReport {
            ssrc, ntp, rtp_time, ..
        } => {
            write_sender_report(
                out,
                &SenderInfo {
                    ssrc: *ssrc,
                    ntp: *ntp,
                    rtp_time: *rtp_time,
                    packets: 1,
                    octets: 2,
                },
                "cname",
            );
            Some(Message::SenderReport {
                ssrc: *ssrc,
                ntp: *ntp,
                rtp_time: *rtp_time,
                blocks: Vec::new(),
            })
        }
        Message::ReceiverReport { blocks } => {
            let reception = |block: &millstream_core::media::rtcp::ReportBlock| Reception {
                media: block.media,
                fraction_lost: block.fraction_lost,
                lost: u32::MAX,
                highest_seq: 3,
                jitter: 4,
                last_sr: block.last_sr,
                delay_since_last_sr: block.delay_since_last_sr,
            };
            write_receiver_report(out, US, &blocks.iter().map(reception).collect::<Vec<_>>(), "cname");
            Some(message.clone())
        }
        Message::Nack { .. } | Message::Bye => None,
    }
}
