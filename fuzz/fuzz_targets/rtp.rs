//! What a publisher sends once it is connected: decrypted RTP and RTCP, up to the packets that viewers get.
//!
//! The first byte selects what the publisher offered; then RTP packets and compound RTCP packets, each behind its length.
//! A packet of ours has a sequence number of its own on its track, and video starts with a key frame. Feedback is RTCP
//! that fits into a datagram.
#![no_main]

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use millstream_core::{
    hub::{
        Hub,
        name::StreamName,
        stream::{SessionId, ShardIndex, SourceRef},
    },
    media::{MediaKind, rtcp, rtp::ParsedRtpHeader},
    sdp::{
        LocalTransport, Offer, answer_whip_offer,
        negotiation_result::{Fingerprint, FingerprintHashFunction, IceCredentials, NegotiatedPublication},
    },
    sources::whip::{PublishedBatchesAndTakeover, Publisher},
};
use millstream_fuzz::{counter, origin, packets};

/// Between two packets.
const STEP: Duration = Duration::from_millis(3);

/// Packets of one tick.
const TICK: usize = 4;

/// Longest datagram of feedback: an MTU without the headers of IPv6, UDP and SRTCP.
const MAX_FEEDBACK: usize = 1_200;

const VIDEO: [&str; 5] = ["H264/90000", "H265/90000", "VP8/90000", "VP9/90000", "AV1/90000"];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    let (hub, mut now) = (Hub::default(), origin());
    let name = StreamName::parse("fuzz").expect("a name");
    let source = SourceRef {
        session_id: SessionId([7; 16]),
        shard: ShardIndex(0),
        accepts_key_frame_requests: true,
    };
    let mut publisher = Publisher::new(now, name.clone().into(), source, publication(*choice), &mut counter());
    publisher.attach_to_stream_if_no_source(now, &hub);
    let mut seen = Seen::default();
    for (index, packet) in packets(rest).enumerate() {
        now += STEP;
        match packet.get(1) {
            // As the session tells them apart (RFC 5761 §4).
            Some(192..=223) => publisher.handle_rtcp(now, &rtcp::parse_compound_until_malformed(packet)),
            _ => {
                if let Ok(header) = ParsedRtpHeader::parse(packet) {
                    assert!(packet.get(header.payload_range()).is_some());
                }
                publisher.handle_rtp(now, Bytes::copy_from_slice(packet));
            }
        }
        if index % TICK == TICK - 1 {
            seen.check(&hub, &name, &publisher.publish_arrived_packets(&hub));
            // A gap of some seconds now and then: reports are due, and packets are given up.
            now += if packet.len() % 16 == 0 {
                Duration::from_secs(2)
            } else {
                Duration::ZERO
            };
            publisher
                .handle_timeout(now)
                .iter()
                .for_each(|datagram| check_feedback(datagram));
        }
    }
    seen.check(&hub, &name, &publisher.publish_arrived_packets(&hub));
    publisher.schedule_key_frame_request(None);
    now += Duration::from_secs(1);
    publisher
        .handle_timeout(now)
        .iter()
        .for_each(|datagram| check_feedback(datagram));
    publisher.detach_from_stream(&hub);
    assert!(hub.streams().is_empty(), "a stream without source and viewers is gone");
});

/// What viewers got.
#[derive(Default)]
struct Seen {
    numbers: HashSet<(u64, MediaKind, u64)>,
    has_key_frame: bool,
}

impl Seen {
    fn check(&mut self, hub: &Hub, name: &StreamName, published: &PublishedBatchesAndTakeover) {
        assert!(!published.displaced && published.replaced_source.is_none());
        let original = hub.find_stream(name).map(|stream| stream.id);
        for batch in &published.batches {
            let stream = batch.stream_id.0;
            for packet in batch.packets.iter().map(|entry| &entry.packet) {
                let kind = packet.codec.kind();
                assert!(
                    self.numbers.insert((stream, kind, packet.seq)),
                    "{kind} packet {} comes twice",
                    packet.seq
                );
                if Some(batch.stream_id) == original && kind == MediaKind::Video {
                    let of_its_frame = |other: &millstream_core::media::packet::Packet| {
                        other.codec.kind() == kind && other.time == packet.time
                    };
                    self.has_key_frame |= batch
                        .packets
                        .iter()
                        .any(|other| of_its_frame(&other.packet) && other.packet.identifies_key_frame);
                    assert!(self.has_key_frame, "video starts at a key frame");
                }
            }
        }
    }
}

/// Whole packets of version 2 (RFC 3550 §6.4).
fn check_feedback(datagram: &[u8]) {
    assert!(datagram.len() <= MAX_FEEDBACK, "{} bytes of feedback", datagram.len());
    let mut rest = datagram;
    assert!(!rest.is_empty());
    while !rest.is_empty() {
        let (&[first, _, l0, l1], body) = rest.split_first_chunk::<4>().expect("a header");
        assert_eq!(first >> 6, 2);
        let length = 4 * usize::from(u16::from_be_bytes([l0, l1]));
        rest = body.get(length..).expect("as long as it says");
    }
}

/// Bits of `choice`: 0 to 2 the codec, 3 simulcast, 4 declared SSRCs, 5 no transport-cc, 6 reduced-size RTCP.
fn publication(choice: u8) -> NegotiatedPublication {
    let codec = VIDEO[usize::from(choice & 7) % VIDEO.len()];
    let has = |bit: u8, text: &'static str| if choice >> bit & 1 == 1 { text } else { "" };
    let feedback = if choice >> 5 & 1 == 1 {
        "goog-remb"
    } else {
        "transport-cc"
    };
    let simulcast = has(3, "a=rid:h send\r\na=rid:l send\r\na=simulcast:send h;l\r\n");
    let ssrcs = if simulcast.is_empty() {
        has(
            4,
            "a=ssrc-group:FID 4660 4661\r\na=ssrc:4660 cname:c\r\na=ssrc:4661 cname:c\r\n",
        )
    } else {
        ""
    };
    let reduced = has(6, "a=rtcp-rsize\r\n");
    let offer = format!(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=ice-ufrag:ufrag\r\na=ice-pwd:0123456789abcdefghijkl\r\n\
         a=fingerprint:sha-256 {digest}\r\na=setup:actpass\r\n\
         m=video 9 UDP/TLS/RTP/SAVPF 96 97 98\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=sendonly\r\na=rtcp-mux\r\n{reduced}\
         a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\na=extmap:2 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id\r\n\
         a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id\r\n\
         a=extmap:4 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\n\
         a=rtpmap:96 {codec}\r\na=fmtp:96 packetization-mode=1;profile-level-id=42e01f\r\na=rtcp-fb:96 nack\r\na=rtcp-fb:96 nack pli\r\na=rtcp-fb:96 {feedback}\r\n\
         a=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\na=rtpmap:98 VP8/90000\r\n{simulcast}{ssrcs}\
         m=audio 9 UDP/TLS/RTP/SAVPF 111 0\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=sendonly\r\na=rtcp-mux\r\n\
         a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\na=rtpmap:111 opus/48000/2\r\n",
        digest = ["AB"; 32].join(":"),
    );
    let fingerprint = Fingerprint {
        hash_function: FingerprintHashFunction::Sha256,
        digest: vec![0; 32],
    };
    let credentials = IceCredentials {
        ufrag: "ours".to_owned(),
        pwd: "0123456789abcdefghijkl".to_owned(),
    };
    let candidates = [([127, 0, 0, 1], 8189).into()];
    let local = LocalTransport {
        ice_credentials: &credentials,
        fingerprint: &fingerprint,
        candidate_addresses: &candidates,
        accepts_ice_tcp: false,
        viewer_congestion_control: true,
        viewer_playout_delay: true,
        accepts_data_channels: true,
        sdp_session_id: 1,
    };
    let offer = Offer::parse(offer.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    answer_whip_offer(&offer, &local)
        .unwrap_or_else(|error| panic!("{error}"))
        .0
}
