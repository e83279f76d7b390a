#![expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]

use super::*;
use crate::media::{Format, Mid, ProfileLevelId};
use crate::sdp::plan::{Extensions, Feedback, NegotiatedCodec};
use crate::session::outbox::{Destination, Outbox, Run, Sink};
use crate::session::srtp::{Profile, RtpCipher};
use bytes::Bytes;
use rtc_crypto::RTCCryptoProvider as _;
use rtc_crypto::providers::AwsLcRsProvider;

const HERE: Destination = Destination {
    to: std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9),
    from: None,
};

struct Nowhere;

impl Sink for Nowhere {
    fn send(&mut self, _: &[u8], _: &[Run]) {}
}

fn track() -> OutTrack {
    let format = Format::H264 {
        profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
        packetization_mode: 1,
    };
    let codec = NegotiatedCodec {
        pt: Pt(102),
        rtx_pt: None,
        format,
        feedback: Feedback::default(),
    };
    let plan = OutgoingTrack {
        mid: Mid("0".into()),
        kind: Kind::Video,
        codecs: vec![codec],
        extensions: Extensions::default(),
        ssrc: Ssrc(1),
        rtx_ssrc: None,
    };
    OutTrack::new(plan, &mut || 7)
}

fn insert(ring: &mut Ring, at: Instant, frame: u64) -> Arc<Entry> {
    let packet = Packet {
        seq: 100 + frame,
        time: 1_000_000 + frame * 3_000,
        codec: Codec::H264,
        marker: true,
        key_frame: frame == 0,
        arrival: at,
        payload: Bytes::from_static(&[0; 1_000]),
    };
    ring.insert(packet, 0).expect("new")
}

#[test]
fn what_was_read_from_the_ring_is_not_sent_again_when_its_batch_arrives() {
    let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
    let batches: Vec<Arc<Entry>> = (0..3).map(|frame| insert(&mut ring, t, frame)).collect();
    track.start(t, &ring);
    let mut due = Vec::new();
    track.catch_up(t, &ring, &mut due);
    assert_eq!(due.len(), 3);
    assert!(batches.iter().all(|entry| !track.takes(entry)));
    assert!(track.takes(&insert(&mut ring, t, 3)));
}

#[test]
fn a_viewer_starts_with_the_cached_key_frame_if_none_arrives_in_time() {
    let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
    insert(&mut ring, t, 0);
    track.wait(t + Duration::from_millis(300), &ring);
    assert_eq!(track.poll_catch_up(), Some(t + Duration::from_millis(300)));
    let mut due = Vec::new();
    track.catch_up(t + Duration::from_millis(300), &ring, &mut due);
    assert_eq!(due.len(), 1);
}

#[test]
fn a_viewer_that_waits_timed_out_has_no_timer() {
    let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
    let until = t + Duration::from_millis(300);
    track.wait(until, &ring);
    let mut due = Vec::new();
    track.catch_up(until, &ring, &mut due);
    assert_eq!(track.poll_catch_up(), None);
    insert(&mut ring, until, 0);
    track.catch_up(until, &ring, &mut due);
    assert_eq!(due.len(), 1, "the late key frame");
}

#[test]
fn a_viewer_that_waits_for_a_key_frame_does_not_start_with_the_cached_one() {
    let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
    insert(&mut ring, t, 0);
    track.wait(t + Duration::from_millis(300), &ring);
    let mut due = Vec::new();
    track.catch_up(t, &ring, &mut due);
    assert!(due.is_empty());
}

#[test]
fn skipped_packets_leave_no_gap_in_sequence_numbers() {
    let (t, mut track) = (Instant::now(), track());
    let mut ring = Ring::default();
    track.start(t, &ring);
    insert(&mut ring, t, 0);
    let mut cipher = RtpCipher::new(
        Profile::AeadAes128Gcm,
        &[3; 16],
        &[5; 12],
        AwsLcRsProvider::new().crypto(),
    )
    .expect("lengths fit");
    let mut outbox = Outbox::new(Box::new(Nowhere));
    let mut egress = RtpEgress::new(&mut cipher, HERE, &mut outbox);
    let mut due = Vec::new();
    track.catch_up(t, &ring, &mut due);
    let mut send = |track: &mut OutTrack, seq, codec| {
        let packet = Packet {
            seq,
            time: 1_000_000 + seq * 30,
            codec,
            marker: true,
            key_frame: false,
            arrival: t,
            payload: Bytes::from_static(&[0; 1_000]),
        };
        let entry = Entry {
            packet,
            order: u64::MAX,
            padding: 0,
        };
        track.send(&entry, &mut egress).expect("seals");
        track.rewriter.map(seq, 0).map(|(out, _)| out)
    };
    let last = send(&mut track, 100, Codec::H264).expect("sent");
    for seq in 101..60_000 {
        send(&mut track, seq, Codec::Vp8);
    }
    // A receiver interprets a step of more than 2^15 as one backwards (RFC 3711 §3.3.1).
    assert_eq!(send(&mut track, 60_000, Codec::H264), Some(last + 1));
    assert_eq!(send(&mut track, 60_001, Codec::H264), Some(last + 2));
    assert_eq!(track.rewriter.map(100, 0).map(|(out, _)| out), Some(last));
}

#[test]
fn the_burst_ends_at_a_newer_key_frame_and_time_does_not_go_back() {
    let (mut ring, t, mut track) = (Ring::default(), Instant::now(), track());
    for frame in 0..300 {
        insert(&mut ring, t + Duration::from_millis(frame * 33), frame);
    }
    let now = t + Duration::from_secs(10);
    track.start(now, &ring);
    let mut due = Vec::new();
    track.catch_up(now + Duration::from_millis(10), &ring, &mut due);
    let sent = due.len();
    assert!((1..200).contains(&sent), "{sent}");
    track.sent_until = 100 + sent as u64;
    track.sent_time = track
        .rewriter
        .map(99 + sent as u64, due[sent - 1].packet.time)
        .expect("sent")
        .1;
    // The key frame arrived late: its time is before that of the burst.
    let packet = Packet {
        seq: 400,
        time: track.sent_time - 10,
        codec: Codec::H264,
        marker: true,
        key_frame: true,
        arrival: now,
        payload: Bytes::from_static(&[0; 1_000]),
    };
    let key_frame = ring.insert(packet, 0).expect("new");
    due.clear();
    track.catch_up(now + Duration::from_millis(20), &ring, &mut due);
    assert_eq!(due.iter().map(|entry| entry.packet.seq).collect::<Vec<_>>(), [400]);
    let (_, time) = track.rewriter.map(400, key_frame.packet.time).expect("mapped");
    assert!(time > track.sent_time);
}
