//! Publishers packet by packet: layers that stop, SSRCs that come and go, and the feedback they receive.

use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_core::hub::Hub;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::stream::{SessionId, ShardIndex, SourceRef};
use millstream_core::hub::track::MissingPacketsOrKeyFrame;
use millstream_core::media::rtcp::{self, RtcpMessage};
use millstream_core::media::{CodecFormat, MediaKind, Mid, PayloadType, Rid, Ssrc};
use millstream_core::sdp::negotiation_result::{
    AudioVideoFormats, DtlsRole, IceCredentials, IncomingTrack, NegotiatedCodec, NegotiatedPublication,
    RemoteTransport, RtcpFeedback, RtpHeaderExtensionIds,
};
use millstream_core::sources::whip::Publisher;

const MEDIA: PayloadType = PayloadType(96);
const RTX: PayloadType = PayloadType(97);
const FRAME: Duration = Duration::from_millis(33);

struct Source {
    hub: Hub,
    publisher: Publisher,
    now: Instant,
}

/// One RTP packet of VP8.
struct Sent {
    pt: PayloadType,
    ssrc: u32,
    seq: u16,
    time: u32,
    /// Extension and its text: 1 for MID, 2 for RID, 3 for the RID that is transcoded.
    named: (u8, &'static str),
    payload: Vec<u8>,
}

impl Source {
    fn new(rids: &[&str]) -> Self {
        let feedback = RtcpFeedback {
            nack: true,
            pli: true,
            ..RtcpFeedback::default()
        };
        Self::with(rids, feedback, false)
    }

    fn with(rids: &[&str], feedback: RtcpFeedback, reduced_size_rtcp: bool) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let codec = NegotiatedCodec {
            pt: MEDIA,
            rtx_pt: Some(RTX),
            format: CodecFormat::Vp8,
            rtcp_feedback: feedback,
        };
        let track = IncomingTrack {
            mid: Mid("0".into()),
            kind: MediaKind::Video,
            codecs: vec![codec],
            extension_ids: RtpHeaderExtensionIds {
                mid: Some(1),
                rid: Some(2),
                repaired_rid: Some(3),
                ..RtpHeaderExtensionIds::default()
            },
            ssrcs: Vec::new(),
            rids: rids.iter().map(|rid| Rid((*rid).into())).collect(),
            layer_ssrcs: Vec::new(),
            parameter_sets: Vec::new(),
            reduced_size_rtcp,
        };
        let transport = RemoteTransport {
            remote_credentials: IceCredentials {
                ufrag: "peer".into(),
                pwd: "0123456789abcdefghijkl".into(),
            },
            fingerprints: Vec::new(),
            gateway_dtls_role: DtlsRole::Server,
            data_channels: None,
        };
        let source = SourceRef {
            session_id: SessionId([1; 16]),
            shard: ShardIndex(0),
            accepts_key_frame_requests: true,
        };
        let publication = NegotiatedPublication {
            transport,
            tracks: vec![track],
        };
        let name = StreamName::parse("live").expect("a stream name");
        Self {
            hub: Hub::default(),
            publisher: Publisher::new(now, name.into(), source, publication, &mut || 7),
            now,
        }
    }

    /// Takes one turn; returns how many packets came on the line.
    fn turn(&mut self, packets: &[Sent]) -> usize {
        self.now += FRAME;
        for packet in packets {
            self.publisher.handle_rtp(self.now, packet.bytes());
        }
        let published = self.publisher.publish_arrived_packets(&self.hub);
        let home = self
            .hub
            .find_stream(self.publisher.stream_key())
            .map(|stream| stream.id);
        let batches = published.batches.iter().filter(|batch| Some(batch.stream_id) == home);
        batches.map(|batch| batch.packets.len()).sum()
    }

    /// Whether a key frame is asked for now.
    fn asks(&mut self) -> bool {
        let compound = self.publisher.handle_timeout(self.now).concat();
        // PT 206, FMT 1.
        compound.windows(2).any(|bytes| bytes == [0x81, 206])
    }
}

impl Sent {
    fn bytes(&self) -> Bytes {
        let (id, text) = self.named;
        // Each packet is a whole frame and has the marker.
        let mut bytes = vec![0x90, 0x80 | self.pt.0];
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.time.to_be_bytes());
        bytes.extend_from_slice(&self.ssrc.to_be_bytes());
        bytes.extend_from_slice(&[0xbe, 0xde, 0, 1, id << 4 | (text.len() as u8 - 1)]);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(20, 0);
        bytes.extend_from_slice(&self.payload);
        bytes.into()
    }
}

/// VP8 payload (RFC 7741 §4.2, RFC 6386 §9.1); with a size it begins a key frame.
fn vp8(size: Option<(u16, u16)>) -> Vec<u8> {
    match size {
        None => vec![0x10, 0x01, 0, 0, 9, 9, 9],
        Some((width, height)) => {
            let mut payload = vec![0x10, 0, 0, 0, 0x9d, 0x01, 0x2a];
            payload.extend_from_slice(&width.to_le_bytes());
            payload.extend_from_slice(&height.to_le_bytes());
            payload
        }
    }
}

fn media(ssrc: u32, seq: u16, frame: u32, named: (u8, &'static str), size: Option<(u16, u16)>) -> Sent {
    Sent {
        pt: MEDIA,
        ssrc,
        seq,
        time: frame * 3_000,
        named,
        payload: vp8(size),
    }
}

const LOW: (u8, &str) = (2, "l");
const HIGH: (u8, &str) = (2, "h");

/// R-05, T-13.
#[test]
fn viewers_get_the_next_best_layer_when_the_best_one_stops() {
    let mut source = Source::new(&["h", "l"]);
    let both = |frame: u32, key: bool| {
        [
            media(1, frame as u16, frame, HIGH, key.then_some((1280, 720))),
            media(2, frame as u16, frame, LOW, key.then_some((320, 180))),
        ]
    };
    assert_eq!(source.turn(&both(0, true)), 1);
    for frame in 1..90 {
        assert_eq!(source.turn(&both(frame, false)), 1, "{frame}");
    }
    assert!(!source.asks());
    // A browser drops the highest layer when its estimate falls. Asked, it sends a key frame of what is left.
    let mut asked = None;
    let mut resumed = None;
    for frame in 90..300u32 {
        let key = asked == Some(frame - 1);
        let low = media(2, frame as u16, frame, LOW, key.then_some((320, 180)));
        if source.turn(&[low]) > 0 {
            resumed.get_or_insert(frame);
        }
        if source.asks() {
            assert_eq!(asked, None, "asked once");
            asked = Some(frame);
        }
    }
    let resumed = resumed.expect("the lower layer is sent on") - 90;
    assert!(resumed < 100, "after {resumed} frames");
    // The highest one returns.
    assert_eq!(source.turn(&both(300, true)), 1);
    assert_eq!(source.turn(&both(301, false)), 1);
    let mut streams = source.hub.streams().into_iter();
    let stream = streams
        .find(|stream| stream.key.is_original_stream())
        .expect("published");
    assert_eq!(stream.with_state(|state| state.video.resolution()), Some((1280, 720)));
}

#[test]
fn each_layer_is_on_a_line_of_its_own_with_the_time_of_the_stream() {
    let mut source = Source::new(&["h", "l"]);
    for frame in 0..60u32 {
        let key = frame % 30 == 0;
        // The clocks of the layers have nothing to do with each other.
        let mut low = media(2, frame as u16 + 900, frame, LOW, key.then_some((320, 180)));
        low.time = low.time.wrapping_add(0x8765_4321);
        source.turn(&[media(1, frame as u16, frame, HIGH, key.then_some((1280, 720))), low]);
    }
    let find = |key: StreamKey| source.hub.find_stream(key).expect("fed");
    let name = StreamName::parse("live").expect("a name");
    let home = find((&name).into());
    let layers = home.with_state(|state| state.layers().to_vec());
    let shown: Vec<_> = layers.iter().map(|l| (&*l.rid.0, l.resolution, l.active)).collect();
    assert_eq!(shown, [("h", Some((1280, 720)), true), ("l", Some((320, 180)), true)]);
    let newest = |key: StreamKey| {
        find(key.clone()).with_state(|state| {
            assert!(
                state.video.ring().newest_key_frame_seq().is_some(),
                "{key}: a key frame of its own"
            );
            state.video.ring().newest_track_time_and_arrival().expect("packets").0
        })
    };
    let time = newest((&name).into());
    for layer in &layers {
        let apart = newest(name.lower_simulcast_layer_key(&layer.rid)).abs_diff(time);
        assert!(apart < 90, "{apart} ticks of 90 kHz");
    }
    // They go with the publisher.
    source.publisher.detach_from_stream(&source.hub);
    assert!(source.hub.streams().is_empty(), "{:?}", source.hub.streams().len());
}

#[test]
fn a_publisher_that_changes_its_ssrc_is_seen_on() {
    let mut source = Source::new(&[]);
    let mid = (1, "0");
    for (frame, seq) in (40_000..40_100u16).enumerate() {
        let size = (frame == 0).then_some((640, 360));
        assert_eq!(source.turn(&[media(1, seq, frame as u32, mid, size)]), 1);
    }
    // Sequence numbers begin anew, behind those that were; so do times.
    for (frame, seq) in (20_000..20_100u16).enumerate() {
        let size = (frame == 0).then_some((640, 360));
        assert_eq!(source.turn(&[media(2, seq, frame as u32, mid, size)]), 1, "{frame}");
    }
    assert_eq!(source.turn(&[media(1, 40_100, 100, mid, None)]), 0, "a straggler");
    assert_eq!(source.turn(&[media(2, 20_100, 100, mid, None)]), 1);
}

#[test]
fn a_retransmission_before_the_first_packet_is_not_taken_for_the_media() {
    let mut source = Source::new(&["h"]);
    let mut rtx = media(9, 1, 0, (3, "h"), None);
    rtx.pt = RTX;
    rtx.payload = [&[0, 9][..], &vp8(Some((640, 360)))].concat();
    assert_eq!(source.turn(&[rtx]), 0);
    assert_eq!(source.turn(&[media(1, 10, 0, HIGH, Some((640, 360)))]), 1);
    source.now += Duration::from_secs(1);
    let datagrams = source.publisher.handle_timeout(source.now);
    let [report] = &datagrams[..] else {
        panic!("a report is due: {datagrams:?}")
    };
    // RFC 3550 §6.4.2: the SSRC of the first block stands behind the header and our own.
    assert_eq!(report[8..12], Ssrc(1).0.to_be_bytes());
}

/// Sends frames for two seconds, of which the publisher loses one in ten; returns the datagrams that it is sent.
fn feedback_datagrams(feedback: RtcpFeedback, reduced_size_rtcp: bool) -> Vec<Vec<u8>> {
    let mut source = Source::with(&[], feedback, reduced_size_rtcp);
    let mut datagrams = Vec::new();
    for frame in 0..60u16 {
        if frame % 10 != 5 {
            let size = (frame == 0).then_some((640, 360));
            source.turn(&[media(1, 1_000 + frame, u32::from(frame), (1, "0"), size)]);
        }
        datagrams.extend(source.publisher.handle_timeout(source.now));
    }
    datagrams
}

/// All of it, one behind the other.
fn feedback_bytes(feedback: RtcpFeedback) -> Vec<u8> {
    feedback_datagrams(feedback, false).concat()
}

/// RTCP packets of a datagram: payload type and format.
fn packets(datagram: &[u8]) -> Vec<(u8, u8)> {
    let (mut rest, mut packets) = (datagram, Vec::new());
    while let [first, kind, high, low, ..] = rest {
        packets.push((*kind, first & 0x1f));
        rest = &rest[4 * (1 + usize::from(u16::from_be_bytes([*high, *low])))..];
    }
    packets
}

const NACK: (u8, u8) = (205, 1);
const PLI: (u8, u8) = (206, 1);
const RECEIVER_REPORT: u8 = 201;

/// RFC 5506 §4.1: what is no report is a packet of its own where that was agreed; RFC 3550 §6.1: else it comes behind a
/// report.
#[test]
fn a_nack_is_a_datagram_of_its_own_with_reduced_size_rtcp_alone() {
    let nack = RtcpFeedback {
        nack: true,
        ..RtcpFeedback::default()
    };
    for reduced_size_rtcp in [true, false] {
        let datagrams = feedback_datagrams(nack, reduced_size_rtcp);
        let datagrams: Vec<Vec<(u8, u8)>> = datagrams.iter().map(|datagram| packets(datagram)).collect();
        let with_nack: Vec<_> = datagrams.iter().filter(|packets| packets.contains(&NACK)).collect();
        assert!(with_nack.len() >= 5, "{datagrams:?}");
        for packets in with_nack {
            match reduced_size_rtcp {
                true => assert_eq!(packets[..], [NACK]),
                false => assert_eq!(packets[0].0, RECEIVER_REPORT, "{packets:?}"),
            }
        }
        let reports = datagrams.iter().filter(|packets| packets[0].0 == RECEIVER_REPORT);
        assert!(reports.count() >= 1, "reports come all the same");
    }
}

#[test]
fn a_request_for_a_key_frame_is_no_part_of_a_nack() {
    let both = RtcpFeedback {
        nack: true,
        pli: true,
        ..RtcpFeedback::default()
    };
    let mut source = Source::with(&[], both, true);
    source.turn(&[media(1, 1, 0, (1, "0"), Some((640, 360)))]);
    for seq in [3, 4] {
        source.turn(&[media(1, seq, u32::from(seq), (1, "0"), None)]);
    }
    source.publisher.schedule_key_frame_request(None);
    let datagrams = source.publisher.handle_timeout(source.now);
    let datagrams: Vec<Vec<(u8, u8)>> = datagrams.iter().map(|datagram| packets(datagram)).collect();
    assert_eq!(datagrams, [[NACK], [PLI]]);
}

#[test]
fn lost_packets_are_reported_to_the_publisher_and_requested_from_it() {
    let nack = RtcpFeedback {
        nack: true,
        ..RtcpFeedback::default()
    };
    let messages = rtcp::parse_compound_until_malformed(&feedback_bytes(nack));
    let asked: Vec<u16> = messages
        .iter()
        .filter_map(|message| match message {
            RtcpMessage::Nack { seqs, .. } => Some(seqs.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    for lost in [1_005, 1_015, 1_025, 1_035, 1_045] {
        assert!(asked.contains(&lost), "{lost} was not asked for");
    }
    let lost = messages.iter().find_map(|message| match message {
        RtcpMessage::ReceiverReport { blocks } => blocks.first().map(|block| block.fraction_lost),
        _ => None,
    });
    // One in ten, in 1/256 (RFC 3550 §6.4.1).
    assert!(lost.is_some_and(|lost| (20..32).contains(&lost)), "{lost:?}");
}

/// RFC 4585 §4.2: only what was negotiated is sent. FFmpeg negotiates NACK alone.
#[test]
fn a_publisher_without_pli_is_never_asked_for_a_key_frame() {
    for (pli, wanted) in [(false, 0), (true, 1)] {
        let mut source = Source::with(
            &[],
            RtcpFeedback {
                nack: true,
                pli,
                ..RtcpFeedback::default()
            },
            false,
        );
        // No key frame to begin with, and a viewer who asks.
        assert_eq!(source.turn(&[media(1, 1, 0, (1, "0"), None)]), 0);
        source.publisher.schedule_key_frame_request(None);
        let datagrams = source.publisher.handle_timeout(source.now).concat();
        let requests = rtcp::parse_compound_until_malformed(&datagrams);
        let requests = requests
            .iter()
            .filter(|message| matches!(message, RtcpMessage::KeyFrameRequest { .. }));
        assert_eq!(requests.count(), wanted, "pli: {pli}");
    }
}

/// T-11.
#[test]
fn only_a_publisher_that_knows_nothing_but_remb_gets_a_bitrate_by_it() {
    let has = |bytes: &[u8]| bytes.windows(4).any(|window| window == b"REMB");
    let remb = RtcpFeedback {
        remb: true,
        ..RtcpFeedback::default()
    };
    assert!(has(&feedback_bytes(remb)));
    assert!(!has(&feedback_bytes(RtcpFeedback::default())));
    let both = RtcpFeedback {
        transport_cc: true,
        ..remb
    };
    assert!(!has(&feedback_bytes(both)));
}

/// I-13.
#[test]
fn a_publisher_that_is_connected_and_sends_nothing_is_found_once() {
    let mut source = Source::new(&[]);
    source.publisher.attach_to_stream_if_no_source(source.now, &source.hub);
    let seconds = |count| source.now + std::time::Duration::from_secs(count);
    let (early, late, later) = (seconds(9), seconds(10), seconds(20));
    assert!(!source.publisher.take_no_media_warning(early));
    assert!(source.publisher.take_no_media_warning(late));
    assert!(!source.publisher.take_no_media_warning(later), "said once");
    let mut other = Source::new(&[]);
    other.publisher.attach_to_stream_if_no_source(other.now, &other.hub);
    other.turn(&[media(1, 1, 1, (1, "0"), Some((320, 180)))]);
    assert!(!other.publisher.take_no_media_warning(late));
}

/// F5.
#[test]
fn a_publisher_is_stalled_five_seconds_after_its_last_packet_until_the_next() {
    let mut source = Source::new(&[]);
    let connected_at = source.now;
    source
        .publisher
        .attach_to_stream_if_no_source(connected_at, &source.hub);
    let is_stalled_at = |source: &Source, milliseconds: u64| {
        let stream = source.hub.find_stream(source.publisher.stream_key());
        let at = connected_at + Duration::from_millis(milliseconds);
        stream
            .expect("connected")
            .with_state(|state| state.is_source_stalled(at))
    };
    let is_stalled = |source: &Source, seconds: u64| is_stalled_at(source, seconds * 1_000);
    assert!(!is_stalled(&source, 4));
    assert!(is_stalled(&source, 5), "it has sent nothing at all");
    source.now = connected_at + Duration::from_secs(20);
    source.turn(&[media(1, 1, 1, (1, "0"), Some((320, 180)))]);
    assert!(!is_stalled(&source, 24));
    assert!(is_stalled(&source, 26));
    let stalled_at = (200..400).find(|tenths| is_stalled_at(&source, tenths * 100));
    let stalled_after = stalled_at.map(|tenths| (tenths - 200) as f64 / 10.0);
    println!(
        "measured: stalled {:.1} s after its last packet",
        stalled_after.expect("it is")
    );
}

/// F5.
#[test]
fn a_publisher_that_takes_over_from_a_silent_one_is_not_stalled() {
    let mut source = Source::new(&[]);
    let start = source.now;
    source.publisher.attach_to_stream_if_no_source(start, &source.hub);
    source.turn(&[media(1, 1, 1, (1, "0"), Some((320, 180)))]);
    let stream = source
        .hub
        .find_stream(source.publisher.stream_key())
        .expect("connected");
    let successor = SourceRef {
        session_id: SessionId([9; 16]),
        shard: ShardIndex(0),
        accepts_key_frame_requests: true,
    };
    let later = start + Duration::from_secs(29);
    let (as_camera, as_peer) = stream.with_state(|state| {
        assert!(state.is_source_stalled(later));
        state.replace_source(
            successor,
            &AudioVideoFormats {
                video: None,
                audio: None,
            },
        );
        let as_camera = state.source_inactivity_duration(later);
        state.expect_media_since(later);
        (as_camera, state.source_inactivity_duration(later))
    });
    assert_eq!(as_camera, None, "a source that is no peer detects silence itself");
    assert_eq!(as_peer, Some(Duration::ZERO));
}

/// I-13.
#[test]
fn video_that_was_negotiated_and_does_not_begin_is_noted_in_its_stream() {
    let mut source = Source::new(&[]);
    source.publisher.attach_to_stream_if_no_source(source.now, &source.hub);
    let start = source.now;
    let mut missing = |second: u64, packet: Option<Sent>| {
        source.now = start + Duration::from_secs(second);
        source.turn(&packet.into_iter().collect::<Vec<_>>());
        source.publisher.handle_timeout(source.now);
        let stream = source
            .hub
            .find_stream(source.publisher.stream_key())
            .expect("connected");
        stream.with_state(|state| (state.video.missing_media(), state.audio.missing_media()))
    };
    assert_eq!(missing(9, None), (None, None));
    assert_eq!(
        missing(11, None),
        (Some(MissingPacketsOrKeyFrame::Packets), None),
        "audio was not negotiated"
    );
    let packet = |seq: u16, size| Some(media(1, seq, u32::from(seq), (1, "0"), size));
    assert_eq!(missing(12, packet(1, None)), (None, None));
    assert_eq!(
        missing(23, packet(2, None)),
        (Some(MissingPacketsOrKeyFrame::KeyFrame), None)
    );
    assert_eq!(missing(24, packet(3, Some((640, 360)))), (None, None));
}

/// A request costs all viewers of a layer: those of the others get no key frame for it.
#[test]
fn a_key_frame_is_requested_of_one_layer_alone() {
    let mut source = Source::new(&["l", "h"]);
    for seq in 1..40 {
        let size = |w, h| (seq == 1).then_some((w, h));
        source.turn(&[
            media(1, seq, u32::from(seq), LOW, size(320, 180)),
            media(2, seq, u32::from(seq), HIGH, size(640, 360)),
        ]);
    }
    let mut requested = |layer: Option<&str>| -> Vec<u32> {
        source.now += Duration::from_secs(2);
        source.publisher.handle_timeout(source.now);
        source
            .publisher
            .schedule_key_frame_request(layer.map(|rid| Rid(rid.into())).as_ref());
        let messages = rtcp::parse_compound_until_malformed(&source.publisher.handle_timeout(source.now).concat());
        let requests = messages.iter().filter_map(|message| match message {
            RtcpMessage::KeyFrameRequest { media_ssrc } => Some(media_ssrc.0),
            _ => None,
        });
        requests.collect()
    };
    assert_eq!(requested(Some("l")), [1]);
    // The first is not answered, and is repeated.
    let both = requested(Some("h"));
    assert!(both.contains(&2), "{both:?}");
    let mut source = Source::new(&["l", "h"]);
    for seq in 1..40 {
        let size = |w, h| (seq == 1).then_some((w, h));
        source.turn(&[
            media(1, seq, u32::from(seq), LOW, size(320, 180)),
            media(2, seq, u32::from(seq), HIGH, size(640, 360)),
        ]);
    }
    source.publisher.schedule_key_frame_request(None);
    let messages = rtcp::parse_compound_until_malformed(&source.publisher.handle_timeout(source.now).concat());
    let asked = messages
        .iter()
        .filter(|message| matches!(message, RtcpMessage::KeyFrameRequest { .. }));
    assert_eq!(asked.count(), 1, "the layer that the stream carries");
}
