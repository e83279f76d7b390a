//! Publishers packet by packet: layers that stop, SSRCs that come and go, and the feedback they receive.

use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream_core::hub::Hub;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::stream::{SessionId, ShardIndex, SourceRef};
use millstream_core::hub::track::Missing;
use millstream_core::media::rtcp::{self, Message};
use millstream_core::media::{Format, Kind, Mid, Pt, Rid, Ssrc};
use millstream_core::sdp::plan::{
    DtlsRole, Extensions, Feedback, IceCredentials, IncomingTrack, NegotiatedCodec, Publication, Transport,
};
use millstream_core::sources::whip::Publisher;

const MEDIA: Pt = Pt(96);
const RTX: Pt = Pt(97);
const FRAME: Duration = Duration::from_millis(33);

struct Source {
    hub: Hub,
    publisher: Publisher,
    now: Instant,
}

/// One RTP packet of VP8.
struct Sent {
    pt: Pt,
    ssrc: u32,
    seq: u16,
    time: u32,
    /// Extension and its text: 1 for MID, 2 for RID, 3 for the RID that is transcoded.
    named: (u8, &'static str),
    payload: Vec<u8>,
}

impl Source {
    fn new(rids: &[&str]) -> Self {
        let feedback = Feedback {
            nack: true,
            pli: true,
            ..Feedback::default()
        };
        Self::with(rids, feedback, false)
    }

    fn with(rids: &[&str], feedback: Feedback, reduced_size_rtcp: bool) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let codec = NegotiatedCodec {
            pt: MEDIA,
            rtx_pt: Some(RTX),
            format: Format::Vp8,
            feedback,
        };
        let track = IncomingTrack {
            mid: Mid("0".into()),
            kind: Kind::Video,
            codecs: vec![codec],
            extensions: Extensions {
                mid: Some(1),
                rid: Some(2),
                repaired_rid: Some(3),
                ..Extensions::default()
            },
            ssrcs: Vec::new(),
            rids: rids.iter().map(|rid| Rid((*rid).into())).collect(),
            layers: Vec::new(),
            parameter_sets: Vec::new(),
            reduced_size_rtcp,
        };
        let transport = Transport {
            remote: IceCredentials {
                ufrag: "peer".into(),
                pwd: "0123456789abcdefghijkl".into(),
            },
            fingerprints: Vec::new(),
            role: DtlsRole::Server,
        };
        let source = SourceRef {
            session: SessionId([1; 16]),
            shard: ShardIndex(0),
            takes_key_frame_requests: true,
        };
        let publication = Publication {
            transport,
            tracks: vec![track],
        };
        let name = StreamName::parse("live").expect("a stream name");
        Self {
            hub: Hub::default(),
            publisher: Publisher::new(now, name, source, publication, &mut || 7),
            now,
        }
    }

    /// Takes one turn; returns how many packets came on the line.
    fn turn(&mut self, packets: &[Sent]) -> usize {
        self.now += FRAME;
        for packet in packets {
            self.publisher.handle_rtp(self.now, packet.bytes());
        }
        let published = self.publisher.publish(&self.hub);
        let home = self.hub.find(self.publisher.stream_name()).map(|stream| stream.id);
        let batches = published.batches.iter().filter(|batch| Some(batch.stream) == home);
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
    let stream = streams.find(|stream| stream.key.is_original()).expect("published");
    assert_eq!(stream.with(|state| state.video.resolution()), Some((1280, 720)));
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
    let find = |key: StreamKey| source.hub.find(key).expect("fed");
    let name = StreamName::parse("live").expect("a name");
    let home = find((&name).into());
    let layers = home.with(|state| state.layers().to_vec());
    let shown: Vec<_> = layers.iter().map(|l| (&*l.rid.0, l.resolution, l.active)).collect();
    assert_eq!(shown, [("h", Some((1280, 720)), true), ("l", Some((320, 180)), true)]);
    let newest = |key: StreamKey| {
        find(key.clone()).with(|state| {
            assert!(
                state.video.ring().key_frame().is_some(),
                "{key}: a key frame of its own"
            );
            state.video.ring().newest().expect("packets").0
        })
    };
    let time = newest((&name).into());
    for layer in &layers {
        let apart = newest(name.layer(&layer.rid)).abs_diff(time);
        assert!(apart < 90, "{apart} ticks of 90 kHz");
    }
    // They go with the publisher.
    source.publisher.ended(&source.hub);
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
fn feedback_datagrams(feedback: Feedback, reduced_size_rtcp: bool) -> Vec<Vec<u8>> {
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
fn feedback_bytes(feedback: Feedback) -> Vec<u8> {
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
    let nack = Feedback {
        nack: true,
        ..Feedback::default()
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
    let both = Feedback {
        nack: true,
        pli: true,
        ..Feedback::default()
    };
    let mut source = Source::with(&[], both, true);
    source.turn(&[media(1, 1, 0, (1, "0"), Some((640, 360)))]);
    for seq in [3, 4] {
        source.turn(&[media(1, seq, u32::from(seq), (1, "0"), None)]);
    }
    source.publisher.request_key_frame();
    let datagrams = source.publisher.handle_timeout(source.now);
    let datagrams: Vec<Vec<(u8, u8)>> = datagrams.iter().map(|datagram| packets(datagram)).collect();
    assert_eq!(datagrams, [[NACK], [PLI]]);
}

#[test]
fn a_publisher_is_told_what_was_lost_and_asked_for_it() {
    let nack = Feedback {
        nack: true,
        ..Feedback::default()
    };
    let messages = rtcp::read(&feedback_bytes(nack));
    let asked: Vec<u16> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Nack { seqs, .. } => Some(seqs.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    for lost in [1_005, 1_015, 1_025, 1_035, 1_045] {
        assert!(asked.contains(&lost), "{lost} was not asked for");
    }
    let lost = messages.iter().find_map(|message| match message {
        Message::ReceiverReport { blocks } => blocks.first().map(|block| block.fraction_lost),
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
            Feedback {
                nack: true,
                pli,
                ..Feedback::default()
            },
            false,
        );
        // No key frame to begin with, and a viewer who asks.
        assert_eq!(source.turn(&[media(1, 1, 0, (1, "0"), None)]), 0);
        source.publisher.request_key_frame();
        let datagrams = source.publisher.handle_timeout(source.now).concat();
        let requests = rtcp::read(&datagrams);
        let requests = requests
            .iter()
            .filter(|message| matches!(message, Message::KeyFrameRequest { .. }));
        assert_eq!(requests.count(), wanted, "pli: {pli}");
    }
}

/// T-11.
#[test]
fn a_publisher_that_knows_only_remb_is_told_a_bitrate_and_others_are_not() {
    let has = |bytes: &[u8]| bytes.windows(4).any(|window| window == b"REMB");
    let remb = Feedback {
        remb: true,
        ..Feedback::default()
    };
    assert!(has(&feedback_bytes(remb)));
    assert!(!has(&feedback_bytes(Feedback::default())));
    let both = Feedback {
        transport_cc: true,
        ..remb
    };
    assert!(!has(&feedback_bytes(both)));
}

/// I-13.
#[test]
fn a_publisher_that_is_connected_and_sends_nothing_is_found_once() {
    let mut source = Source::new(&[]);
    source.publisher.connected(source.now, &source.hub);
    let seconds = |count| source.now + std::time::Duration::from_secs(count);
    let (early, late, later) = (seconds(9), seconds(10), seconds(20));
    assert!(!source.publisher.is_silent_publisher(early));
    assert!(source.publisher.is_silent_publisher(late));
    assert!(!source.publisher.is_silent_publisher(later), "said once");
    let mut other = Source::new(&[]);
    other.publisher.connected(other.now, &other.hub);
    other.turn(&[media(1, 1, 1, (1, "0"), Some((320, 180)))]);
    assert!(!other.publisher.is_silent_publisher(late));
}

/// I-13.
#[test]
fn video_that_was_negotiated_and_does_not_begin_is_noted_in_its_stream() {
    let mut source = Source::new(&[]);
    source.publisher.connected(source.now, &source.hub);
    let start = source.now;
    let mut missing = |second: u64, packet: Option<Sent>| {
        source.now = start + Duration::from_secs(second);
        source.turn(&packet.into_iter().collect::<Vec<_>>());
        source.publisher.handle_timeout(source.now);
        let stream = source.hub.find(source.publisher.stream_name()).expect("connected");
        stream.with(|state| (state.video.missing(), state.audio.missing()))
    };
    assert_eq!(missing(9, None), (None, None));
    assert_eq!(
        missing(11, None),
        (Some(Missing::Packets), None),
        "audio was not negotiated"
    );
    let packet = |seq: u16, size| Some(media(1, seq, u32::from(seq), (1, "0"), size));
    assert_eq!(missing(12, packet(1, None)), (None, None));
    assert_eq!(missing(23, packet(2, None)), (Some(Missing::KeyFrame), None));
    assert_eq!(missing(24, packet(3, Some((640, 360)))), (None, None));
}
