#![expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]

use super::*;
use crate::media::codec::FrameReference;
use crate::media::{CodecFormat, Mid, ProfileLevelId};
use crate::sdp::negotiation_result::{NegotiatedCodec, RtcpFeedback, RtpHeaderExtensionIds};
use crate::session::egress::RtpEgress;
use crate::session::outbox::{DatagramSink, Destination, GsoRun, Outbox};
use crate::session::srtp::{RtpCipher, SrtpProfile};
use bytes::Bytes;
use rtc_crypto::RTCCryptoProvider as _;
use rtc_crypto::providers::AwsLcRsProvider;

const HERE: Destination = Destination {
    to: std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9),
    local_ip: None,
};

struct Nowhere;

impl DatagramSink for Nowhere {
    fn send_gso_runs(&mut self, _: &[u8], _: &[GsoRun]) {}
}

pub(super) fn track() -> TrackSender {
    let format = CodecFormat::H264 {
        profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
        packetization_mode: 1,
    };
    let codec = NegotiatedCodec {
        pt: PayloadType(102),
        rtx_pt: None,
        format,
        rtcp_feedback: RtcpFeedback::default(),
    };
    let plan = OutgoingTrack {
        mid: Mid("0".into()),
        kind: MediaKind::Video,
        codecs: vec![codec],
        extension_ids: RtpHeaderExtensionIds::default(),
        ssrc: Ssrc(1),
        rtx_ssrc: None,
    };
    TrackSender::new(plan, &mut || 7)
}

fn insert(ring: &mut PacketRing, at: Instant, frame: u64) -> Arc<RingEntry> {
    let packet = Packet {
        seq: 100 + frame,
        time: 1_000_000 + frame * 3_000,
        codec: Codec::H264,
        marker: true,
        identifies_key_frame: frame == 0,
        arrival: at,
        payload: Bytes::from_static(&[0; 1_000]),
    };
    ring.insert(packet, 0).expect("new")
}

#[test]
fn what_was_read_from_the_ring_is_not_sent_again_when_its_batch_arrives() {
    let (mut ring, t, mut track) = (PacketRing::default(), Instant::now(), track());
    let batches: Vec<Arc<RingEntry>> = (0..3).map(|frame| insert(&mut ring, t, frame)).collect();
    track.start_at_cached_key_frame(t, &ring);
    let mut due = Vec::new();
    track.collect_due_packets(t, &ring, None, &mut due);
    assert_eq!(due.len(), 3);
    assert!(
        !batches
            .iter()
            .any(|entry| track.mark_handled_and_check_if_sendable(entry))
    );
    assert!(track.mark_handled_and_check_if_sendable(&insert(&mut ring, t, 3)));
}

#[test]
fn a_viewer_starts_with_the_cached_key_frame_if_none_arrives_in_time() {
    let (mut ring, t, mut track) = (PacketRing::default(), Instant::now(), track());
    insert(&mut ring, t, 0);
    track.wait_for_fresh_key_frame_until(t + Duration::from_millis(300), &ring);
    assert_eq!(track.next_catch_up_at(), Some(t + Duration::from_millis(300)));
    let mut due = Vec::new();
    track.collect_due_packets(t + Duration::from_millis(300), &ring, None, &mut due);
    assert_eq!(due.len(), 1);
}

#[test]
fn a_viewer_that_waits_timed_out_has_no_timer() {
    let (mut ring, t, mut track) = (PacketRing::default(), Instant::now(), track());
    let until = t + Duration::from_millis(300);
    track.wait_for_fresh_key_frame_until(until, &ring);
    let mut due = Vec::new();
    track.collect_due_packets(until, &ring, None, &mut due);
    assert_eq!(track.next_catch_up_at(), None);
    insert(&mut ring, until, 0);
    track.collect_due_packets(until, &ring, None, &mut due);
    assert_eq!(due.len(), 1, "the late key frame");
}

#[test]
fn a_viewer_that_waits_for_a_key_frame_does_not_start_with_the_cached_one() {
    let (mut ring, t, mut track) = (PacketRing::default(), Instant::now(), track());
    insert(&mut ring, t, 0);
    track.wait_for_fresh_key_frame_until(t + Duration::from_millis(300), &ring);
    let mut due = Vec::new();
    track.collect_due_packets(t, &ring, None, &mut due);
    assert!(due.is_empty());
}

#[test]
fn skipped_packets_leave_no_gap_in_sequence_numbers() {
    let (t, mut track) = (Instant::now(), track());
    let mut ring = PacketRing::default();
    track.start_at_cached_key_frame(t, &ring);
    insert(&mut ring, t, 0);
    let mut cipher = RtpCipher::new(
        SrtpProfile::AeadAes128Gcm,
        &[3; 16],
        &[5; 12],
        AwsLcRsProvider::new().crypto(),
    )
    .expect("lengths fit");
    let mut outbox = Outbox::new(Box::new(Nowhere));
    let mut egress = TransportCcEgress::new(RtpEgress::new(&mut cipher, HERE, &mut outbox), None, t);
    let mut due = Vec::new();
    track.collect_due_packets(t, &ring, None, &mut due);
    let mut send = |track: &mut TrackSender, seq, codec| {
        let packet = Packet {
            seq,
            time: 1_000_000 + seq * 30,
            codec,
            marker: true,
            identifies_key_frame: false,
            arrival: t,
            payload: Bytes::from_static(&[0; 1_000]),
        };
        let entry = RingEntry {
            packet,
            insertion_order: u64::MAX,
            padding_length: 0,
            frame_reference: FrameReference::Unknown,
        };
        track.send_packet(&entry, &mut egress).expect("seals");
        track
            .rtp_sequence_rewriter
            .outgoing_seq_and_track_time(seq, 0)
            .map(|(out, _)| out)
    };
    let last = send(&mut track, 100, Codec::H264).expect("sent");
    assert_eq!(track.take_publisher_fraction_lost(), 0, "numbers begin at random");
    for seq in 101..60_000 {
        send(&mut track, seq, Codec::Vp8);
    }
    // A receiver interprets a step of more than 2^15 as one backwards (RFC 3711 §3.3.1).
    assert_eq!(send(&mut track, 60_000, Codec::H264), Some(last + 1));
    assert_eq!(send(&mut track, 60_001, Codec::H264), Some(last + 2));
    assert_eq!(
        track
            .rtp_sequence_rewriter
            .outgoing_seq_and_track_time(100, 0)
            .map(|(out, _)| out),
        Some(last)
    );
}

#[test]
fn the_burst_ends_at_a_newer_key_frame_and_time_does_not_go_back() {
    let (mut ring, t, mut track) = (PacketRing::default(), Instant::now(), track());
    for frame in 0..300 {
        insert(&mut ring, t + Duration::from_millis(frame * 33), frame);
    }
    let now = t + Duration::from_secs(10);
    track.start_at_cached_key_frame(now, &ring);
    let mut due = Vec::new();
    track.collect_due_packets(now + Duration::from_millis(10), &ring, None, &mut due);
    let sent = due.len();
    assert!((1..200).contains(&sent), "{sent}");
    track.sent_end_position = 100 + sent as u64;
    track.latest_sent_track_time = track
        .rtp_sequence_rewriter
        .outgoing_seq_and_track_time(99 + sent as u64, due[sent - 1].packet.time)
        .expect("sent")
        .1;
    // The key frame arrived late: its time is before that of the burst.
    let packet = Packet {
        seq: 400,
        time: track.latest_sent_track_time - 10,
        codec: Codec::H264,
        marker: true,
        identifies_key_frame: true,
        arrival: now,
        payload: Bytes::from_static(&[0; 1_000]),
    };
    let key_frame = ring.insert(packet, 0).expect("new");
    due.clear();
    track.collect_due_packets(now + Duration::from_millis(20), &ring, None, &mut due);
    assert_eq!(due.iter().map(|entry| entry.packet.seq).collect::<Vec<_>>(), [400]);
    let (_, time) = track
        .rtp_sequence_rewriter
        .outgoing_seq_and_track_time(400, key_frame.packet.time)
        .expect("mapped");
    assert!(time > track.latest_sent_track_time);
}

/// A viewer that is paced: what it may not be sent yet is read from the ring later.
fn paced_cipher() -> RtpCipher {
    let provider = AwsLcRsProvider::new();
    RtpCipher::new(SrtpProfile::AeadAes128Gcm, &[3; 16], &[5; 12], provider.crypto()).expect("lengths fit")
}

/// Sends packets, and returns their positions.
fn send_all(track: &mut TrackSender, cipher: &mut RtpCipher, entries: &[Arc<RingEntry>]) -> Vec<u64> {
    let mut outbox = Outbox::new(Box::new(Nowhere));
    let mut egress = TransportCcEgress::new(RtpEgress::new(cipher, HERE, &mut outbox), None, Instant::now());
    for entry in entries {
        track.send_packet(entry, &mut egress).expect("seals");
    }
    entries.iter().map(|entry| entry.packet.seq - 100).collect()
}

#[test]
fn a_packet_that_comes_late_is_sent_although_the_pacer_holds_back_the_others() {
    let (mut ring, t, mut track, mut cipher) = (PacketRing::default(), Instant::now(), track(), paced_cipher());
    let first: Vec<_> = [0, 1, 2].map(|frame| insert(&mut ring, t, frame)).into();
    track.start_at_cached_key_frame(t, &ring);
    let mut due = Vec::new();
    track.collect_due_packets(t, &ring, None, &mut due);
    assert_eq!(send_all(&mut track, &mut cipher, &due), [0, 1, 2]);
    assert!(
        !first
            .iter()
            .any(|entry| track.mark_handled_and_check_if_sendable(entry))
    );

    let newest = insert(&mut ring, t, 4);
    assert!(track.mark_handled_and_check_if_sendable(&newest));
    send_all(&mut track, &mut cipher, &[newest]);
    let (late, next) = (insert(&mut ring, t, 3), insert(&mut ring, t, 5));
    // Out of credit from here on.
    assert!(track.mark_handled_and_check_if_sendable(&late));
    assert!(!track.defer_packet_to_ring(t, t, &late), "the ring is read from 5 on");
    send_all(&mut track, &mut cipher, &[late]);
    assert!(track.mark_handled_and_check_if_sendable(&next) && track.defer_packet_to_ring(t, t, &next));
    due.clear();
    track.collect_due_packets(t, &ring, Some(14_000), &mut due);
    assert_eq!(send_all(&mut track, &mut cipher, &due), [5], "and none twice");
}

#[test]
fn a_late_packet_before_what_is_read_from_the_ring_is_sent_once() {
    let (mut ring, t, mut track, mut cipher) = (PacketRing::default(), Instant::now(), track(), paced_cipher());
    insert(&mut ring, t, 0);
    insert(&mut ring, t, 3);
    track.start_at_cached_key_frame(t, &ring);
    let mut due = Vec::new();
    track.collect_due_packets(t + Duration::from_secs(1), &ring, None, &mut due);
    assert_eq!(send_all(&mut track, &mut cipher, &due), [0, 3]);
    let deferred: Vec<_> = [4, 5, 6].map(|frame| insert(&mut ring, t, frame)).into();
    assert!(track.mark_handled_and_check_if_sendable(&deferred[0]) && track.defer_packet_to_ring(t, t, &deferred[0]));

    // The first arrives before the ring is read, the second is on its way then, the third comes afterwards.
    let arrived = insert(&mut ring, t, 1);
    assert!(track.mark_handled_and_check_if_sendable(&arrived));
    send_all(&mut track, &mut cipher, &[arrived]);
    let on_its_way = insert(&mut ring, t, 2);
    due.clear();
    track.collect_due_packets(t, &ring, Some(1_500), &mut due);
    assert_eq!(send_all(&mut track, &mut cipher, &due), [2, 4, 5]);
    assert!(!track.mark_handled_and_check_if_sendable(&on_its_way), "it was read");
    insert(&mut ring, t, 8);
    due.clear();
    track.collect_due_packets(t, &ring, None, &mut due);
    assert_eq!(send_all(&mut track, &mut cipher, &due), [6, 8]);
    let afterwards = insert(&mut ring, t, 7);
    assert!(track.mark_handled_and_check_if_sendable(&afterwards));
    assert!(!track.mark_handled_and_check_if_sendable(&afterwards), "once");
}

/// A large key frame is paced as the rest is; what a source sends beyond its rate is not held up for long.
#[test]
fn what_waits_in_the_ring_is_sent_faster_only_once_it_is_old() {
    let (mut ring, t, mut track) = (PacketRing::default(), Instant::now(), track());
    insert(&mut ring, t, 0);
    track.start_at_cached_key_frame(t, &ring);
    track.collect_due_packets(t, &ring, None, &mut Vec::new());
    let first = insert(&mut ring, t, 1);
    assert!(track.defer_packet_to_ring(t, t, &first));
    (2..400).for_each(|frame| drop(insert(&mut ring, t, frame)));
    let sendable = |after: u64, of_backlog| {
        track.sendable_bytes_given_backlog(t + Duration::from_millis(after), 1_000, of_backlog, &ring)
    };
    assert_eq!(sendable(300, Some(7_800)), 1_000);
    assert_eq!(sendable(301, Some(7_800)), 7_800);
    assert_eq!(sendable(301, None), 1_000, "the path takes no more");
    assert_eq!(sendable(301, Some(500)), 1_000);
}

/// The number of an RTX packet's original has 16 bits: packets that were kept for long would be taken for later ones.
#[test]
fn packets_that_are_kept_for_probes_are_not_used_once_their_numbers_are_too_far_back() {
    let (mut ring, t, mut track) = (PacketRing::default(), Instant::now(), track());
    track.rtx_ssrc = Some(Ssrc(2));
    (0..5).for_each(|frame| drop(insert(&mut ring, t, frame)));
    track.start_at_cached_key_frame(t, &ring);
    track.sent_end_position = ring.end_seq();
    track.change_frame_selection(FrameSelection::KeyFrames, &ring);
    let kept = track.select_probe_packets(2_000, &ring);
    let newest = kept.first().expect("packets are kept").out_seq;
    track.highest_sent_seq = newest + 0x4000;
    assert!(!track.select_probe_packets(2_000, &ring).is_empty());
    track.highest_sent_seq += 5;
    assert!(track.select_probe_packets(2_000, &ring).is_empty());
    track.mark_probe_reserve_outdated();
    assert!(track.take_probe_reserve_refresh_request() && !track.take_probe_reserve_refresh_request());
}

/// Switches between streams that congestion control chooses.
mod switches {
    use super::*;
    use crate::hub::Hub;
    use crate::hub::id::ShardIndex;
    use crate::hub::name::StreamName;
    use crate::hub::source_rewriter::{IngestSeqAndTimestampRewriter, ReceivedPacket};
    use crate::hub::stream::{SessionId, SourceRef, Stream};
    use crate::media::Rid;
    use crate::outputs::viewer_track::{AdaptiveSwitchOptions, ViewerTrack};
    use crate::sdp::negotiation_result::AudioVideoFormats;

    /// A layer with a key frame and four frames after it; without frames it has a source alone.
    fn layer(hub: &Hub, rid: &str, t: Instant, frames: u64) -> Arc<Stream> {
        let name = StreamName::parse("live").expect("a stream name");
        let source = SourceRef {
            session_id: SessionId([1; 16]),
            shard: ShardIndex(0),
            accepts_key_frame_requests: false,
        };
        let packets = (0..frames).map(move |frame| ReceivedPacket {
            numbering_epoch: 0,
            seq: 100 + frame,
            timestamp: 1_000_000 + frame * 3_000,
            marker: true,
            codec: Codec::H264,
            identifies_key_frame: frame == 0,
            parameter_sets_to_insert: Vec::new(),
            payload: Bytes::from_static(&[0; 1_000]),
            arrival: t,
            captured_at: None,
        });
        hub.open_and_update_stream(name.lower_simulcast_layer_key(&Rid(rid.into())), |state| {
            state.replace_source(source, &AudioVideoFormats::default());
            IngestSeqAndTimestampRewriter::with_track_timestamps().rewrite_packets_into_ring(
                &mut state.video,
                packets,
                &mut Vec::new(),
            );
        })
    }

    fn watch(t: Instant, stream: &Arc<Stream>) -> ViewerTrack {
        let mut video = ViewerTrack::new(track(), stream);
        start(t, &mut video);
        video.track_sender.sent_end_position = stream.with_state(|state| state.video.ring().end_seq());
        video.track_sender.sender_report_counts.packet_count = 5;
        video
    }

    fn start(t: Instant, video: &mut ViewerTrack) {
        let out = &mut video.track_sender;
        video.current_stream.with_state(|state| {
            out.start_at_cached_key_frame(t, state.video.ring());
        });
    }

    fn begin_switch(t: Instant, video: &mut ViewerTrack, to: &Arc<Stream>) {
        video.set_options_of_next_switch(AdaptiveSwitchOptions {
            is_start: false,
            is_step_down: true,
            received_bitrate: 500_000,
            stops_current: true,
        });
        video.begin_stream_switch(t, to.clone(), true);
    }

    /// Packets that are due, whatever the rate.
    fn due(t: Instant, video: &mut ViewerTrack) -> usize {
        let out = &mut video.track_sender;
        let mut due = Vec::new();
        video.current_stream.with_state(|state| {
            out.collect_due_packets(t, state.video.ring(), None, &mut due);
            due.len()
        })
    }

    /// The layer that was stopped for a step down goes on if the step is taken back before it begins.
    #[test]
    fn a_step_down_that_is_taken_back_leaves_no_track_dead() {
        let (hub, t) = (Hub::default(), Instant::now());
        let (high, low) = (layer(&hub, "h", t, 5), layer(&hub, "l", t, 0));
        let mut video = watch(t, &high);
        begin_switch(t, &mut video, &low);
        assert!(video.is_suspended_until_switch());
        assert_eq!(due(t, &mut video), 0);
        let cancelled = video.cancel_stream_switch(t).expect("it was pending");
        assert_eq!(cancelled.id, low.id);
        assert!(!video.is_suspended_until_switch());
        assert_eq!(due(t + Duration::from_secs(1), &mut video), 5);
    }

    /// A viewer of key frames alone that moves to another layer, whole, begins with all that follows its cached key frame.
    #[test]
    fn a_layer_that_is_whole_again_begins_with_its_cached_frames() {
        let (hub, t) = (Hub::default(), Instant::now());
        let (high, low) = (layer(&hub, "h", t, 5), layer(&hub, "l", t, 5));
        for frames in [FrameSelection::KeyFrames, FrameSelection::AudioOnly] {
            let mut video = watch(t, &high);
            let out = &mut video.track_sender;
            out.set_frame_selection_before_start(frames);
            begin_switch(t, &mut video, &low);
            let left = video.complete_stream_switch_if_ready(t + Duration::from_secs(3), Some(FrameSelection::All));
            assert_eq!(left.map(|left| left.id), Some(high.id));
            assert_eq!(video.track_sender.frame_selection(), FrameSelection::All);
            assert_eq!(due(t + Duration::from_secs(6), &mut video), 5, "{frames:?}");
        }
    }
}
