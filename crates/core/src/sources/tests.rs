//! What comes from publishers, packet by packet: markers, packets without payload, parameter sets, SSRCs and reports.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::whip::Publisher;
use crate::hub::Hub;
use crate::hub::name::StreamName;
use crate::hub::stream::{SessionId, ShardIndex, SourceRef};
use crate::media::packet::Packet;
use crate::media::rtcp::RtcpMessage;
use crate::media::{Codec, CodecFormat, MediaKind, Mid, PayloadType, ProfileLevelId, Ssrc};
use crate::sdp::negotiation_result::{
    DeclaredSsrc, DtlsRole, IceCredentials, IncomingTrack, NegotiatedCodec, NegotiatedPublication, RemoteTransport,
    RtcpFeedback, RtpHeaderExtensionIds,
};

mod changes;

const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
/// First slices of an IDR picture and of another one, and slices that follow.
const IDR: &[u8] = &[0x65, 0x88, 1];
const P: &[u8] = &[0x41, 0x9a, 2];
const SLICE: &[u8] = &[0x41, 0x42, 3];

const VIDEO: PayloadType = PayloadType(96);
const OPUS: PayloadType = PayloadType(111);
const PCMU: PayloadType = PayloadType(0);
const MS: Duration = Duration::from_millis(1);

struct Source {
    hub: Hub,
    publisher: Publisher,
    now: Instant,
    /// What went to viewers.
    sent: Vec<Packet>,
}

/// One RTP packet.
#[derive(Clone, Copy)]
struct Rtp {
    pt: PayloadType,
    ssrc: u32,
    seq: u16,
    time: u32,
    marker: bool,
}

fn track(kind: MediaKind, codecs: &[(PayloadType, CodecFormat)]) -> IncomingTrack {
    let feedback = RtcpFeedback {
        nack: kind == MediaKind::Video,
        pli: kind == MediaKind::Video,
        ..RtcpFeedback::default()
    };
    let codecs = codecs.iter().map(|(pt, format)| NegotiatedCodec {
        pt: *pt,
        rtx_pt: None,
        format: *format,
        rtcp_feedback: feedback,
    });
    IncomingTrack {
        mid: Mid(kind.to_string().into()),
        kind,
        codecs: codecs.collect(),
        extension_ids: RtpHeaderExtensionIds::default(),
        ssrcs: Vec::new(),
        rids: Vec::new(),
        layer_ssrcs: Vec::new(),
        parameter_sets: Vec::new(),
        reduced_size_rtcp: false,
    }
}

pub(super) fn h264() -> IncomingTrack {
    let format = CodecFormat::H264 {
        profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
        packetization_mode: 1,
    };
    track(MediaKind::Video, &[(VIDEO, format)])
}

fn audio() -> IncomingTrack {
    track(
        MediaKind::Audio,
        &[(OPUS, CodecFormat::Opus { stereo: true }), (PCMU, CodecFormat::Pcmu)],
    )
}

impl Source {
    fn new(tracks: Vec<IncomingTrack>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
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
        let name = StreamName::parse("live").expect("a stream name");
        let publication = NegotiatedPublication { transport, tracks };
        Self {
            hub: Hub::default(),
            publisher: Publisher::new(now, name.into(), source, publication, &mut || 7),
            now,
            sent: Vec::new(),
        }
    }

    /// A tick with one packet. Padding alone has no payload.
    fn send(&mut self, rtp: Rtp, payload: &[u8]) {
        let mut bytes = vec![0x80, u8::from(rtp.marker) << 7 | rtp.pt.0];
        if payload.is_empty() {
            bytes[0] |= 0x20;
        }
        bytes.extend_from_slice(&rtp.seq.to_be_bytes());
        bytes.extend_from_slice(&rtp.time.to_be_bytes());
        bytes.extend_from_slice(&rtp.ssrc.to_be_bytes());
        bytes.extend_from_slice(if payload.is_empty() { &[0, 0, 0, 4] } else { payload });
        self.publisher.handle_rtp(self.now, bytes.into());
        self.publish();
    }

    fn publish(&mut self) {
        let published = self.publisher.publish_arrived_packets(&self.hub);
        let entries = published.batches.iter().flat_map(|batch| batch.packets.iter());
        self.sent.extend(entries.map(|entry| entry.packet.clone()));
    }

    /// Lets time pass; timers run.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.publisher.handle_timeout(self.now);
        self.publish();
    }

    fn report(&mut self, ssrc: u32, ntp: u64, rtp_time: u32) {
        let report = RtcpMessage::SenderReport {
            ssrc: Ssrc(ssrc),
            ntp,
            rtp_time,
            blocks: Vec::new(),
        };
        self.publisher.handle_rtcp(self.now, &[report]);
    }

    /// The payloads that went to viewers, once their sequence numbers were found to be continuous.
    fn payloads(&self) -> Vec<&[u8]> {
        let mut sent: Vec<&Packet> = self.sent.iter().collect();
        sent.sort_by_key(|packet| packet.seq);
        assert!(
            sent.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1),
            "{:?}",
            sent.iter().map(|packet| packet.seq).collect::<Vec<_>>()
        );
        sent.iter().map(|packet| &packet.payload[..]).collect()
    }

    fn stream<R: 'static>(&self, work: impl FnOnce(&mut crate::hub::stream::StreamState) -> R) -> R {
        let stream = self.hub.find_stream(self.publisher.stream_key()).expect("published");
        stream.with_state(work)
    }
}

fn video(ssrc: u32, seq: u16, time: u32, marker: bool) -> Rtp {
    Rtp {
        pt: VIDEO,
        ssrc,
        seq,
        time,
        marker,
    }
}

/// RFC 6184 §5.1: the marker ends an access unit, whatever the publisher sets.
#[test]
fn viewers_get_one_marker_for_each_frame() {
    for marker in [true, false] {
        let mut source = Source::new(vec![h264()]);
        let mut seq = 0;
        for frame in 0..60 {
            let first = if frame == 0 { &[SPS, PPS, IDR][..] } else { &[P] };
            for nal in first.iter().chain(&[SLICE, SLICE, SLICE]) {
                source.send(video(1, seq, frame * 3_000, marker), nal);
                seq += 1;
                source.pass(MS);
            }
            source.pass(29 * MS);
        }
        assert_eq!(source.payloads().len(), usize::from(seq));
        let ends = source.sent.windows(2).map(|pair| pair[0].time != pair[1].time);
        let marked = source.sent.iter().map(|packet| packet.marker);
        assert!(ends.chain([true]).eq(marked), "marker: {marker}");
        assert!((source.stream(|state| state.video.rate_meter().last_rate().frames_per_second) - 30.3).abs() < 1.0);
    }
}

#[test]
fn packets_without_payload_and_odd_ones_leave_no_gap() {
    let odd: [&[u8]; 6] = [&[], &[0x00, 9], &[0x1e, 9], &[0x39, 0, 0, 9], &[0xe1, 9], &[0x7c, 0x85]];
    for odd in odd {
        let mut source = Source::new(vec![h264()]);
        let mut seq = 65_530u16;
        for frame in 0..40u32 {
            let nals = if frame % 10 == 0 { &[SPS, PPS, IDR][..] } else { &[P] };
            for (index, nal) in nals.iter().enumerate() {
                source.send(video(1, seq, frame * 3_000, index + 1 == nals.len()), nal);
                // Probes repeat the timestamp; they have no marker.
                source.send(video(1, seq.wrapping_add(1), frame * 3_000, false), odd);
                source.send(video(1, seq.wrapping_add(2), frame * 3_000, false), odd);
                seq = seq.wrapping_add(3);
            }
            source.pass(33 * MS);
        }
        let payloads = source.payloads();
        assert_eq!(payloads.len(), 4 * 12, "{odd:x?}");
        assert!(payloads.iter().all(|payload| [SPS, PPS, IDR, P].contains(payload)));
        let marked = source.sent.iter().filter(|packet| packet.marker).count();
        assert_eq!(marked, 40);
    }
}

#[test]
fn a_lost_packet_before_a_burst_of_probes_has_its_place() {
    let mut source = Source::new(vec![h264()]);
    let mut seq = 1u16;
    let mut send = |source: &mut Source, skip: bool, time, payload: &[u8]| {
        if !skip {
            source.send(video(1, seq, time, !payload.is_empty()), payload);
        }
        seq += 1;
    };
    for nal in [SPS, PPS, IDR] {
        send(&mut source, false, 0, nal);
    }
    send(&mut source, true, 3_000, P);
    for _ in 0..300 {
        send(&mut source, false, 3_000, &[]);
    }
    send(&mut source, false, 6_000, P);
    source.send(video(1, 4, 3_000, true), SLICE);
    source.pass(300 * MS);
    assert_eq!(source.payloads(), [SPS, PPS, IDR, SLICE, P]);
}

#[test]
fn a_retransmission_of_the_ssrc_before_does_not_move_the_one_after() {
    let mut track = h264();
    track.codecs[0].rtx_pt = Some(PayloadType(97));
    track.ssrcs = vec![DeclaredSsrc {
        primary: Ssrc(1),
        rtx: Some(Ssrc(2)),
    }];
    let mut source = Source::new(vec![track]);
    let frames = |source: &mut Source, ssrc, seq: u16, count: u16| {
        for n in 0..count {
            let nal = if n == 0 { IDR } else { P };
            let time = u32::from(seq + n) * 3_000;
            let payload = if n == 0 {
                let lengths = [
                    &[0x18, 0, SPS.len() as u8][..],
                    SPS,
                    &[0, PPS.len() as u8],
                    PPS,
                    &[0, IDR.len() as u8],
                    IDR,
                ];
                lengths.concat()
            } else {
                nal.to_vec()
            };
            source.send(video(ssrc, seq + n, time, true), &payload);
            source.pass(33 * MS);
        }
    };
    frames(&mut source, 1, 20_000, 30);
    frames(&mut source, 3, 100, 30);
    let before = source.payloads().len();
    let rtx = Rtp {
        pt: PayloadType(97),
        ..video(2, 9, 20_010 * 3_000, true)
    };
    source.send(rtx, &[&20_010u16.to_be_bytes()[..], P].concat());
    frames(&mut source, 3, 130, 30);
    assert_eq!(source.payloads().len(), before + 30);
}

#[test]
fn a_late_probe_fills_the_gap_that_it_left() {
    let mut source = Source::new(vec![h264()]);
    for (seq, time, payload) in [
        (1, 0, SPS),
        (2, 0, PPS),
        (3, 0, IDR),
        (5, 3_000, P),
        (4, 0, &[]),
        (6, 6_000, P),
        (8, 9_000, P),
        (7, 6_000, SLICE),
    ] {
        source.send(video(1, seq, time, payload == P || payload == IDR), payload);
        source.pass(25 * MS);
    }
    assert_eq!(source.payloads(), [SPS, PPS, IDR, &[], P, P, SLICE, P]);
}

#[test]
fn parameter_sets_of_the_offer_make_key_frames() {
    let mut track = h264();
    track.parameter_sets = vec![(Codec::H264, [SPS, PPS].map(Bytes::from_static).into())];
    let mut source = Source::new(vec![track]);
    for frame in 0..3 {
        let nal = if frame == 0 { IDR } else { P };
        source.send(video(1, frame as u16, frame * 3_000, true), nal);
        source.pass(33 * MS);
    }
    let payloads = source.payloads();
    assert_eq!(payloads.len(), 4);
    assert_eq!(payloads[0][..4], [0x78, 0, 7, 0x67], "both in one packet");
    assert_eq!(source.stream(|state| state.video.resolution()), Some((64, 48)));
}

fn group(source: &mut Source, ssrc: u32, seq: &mut u16, time: &mut u32) {
    for frame in 0..15 {
        for nal in if frame == 0 { &[SPS, PPS, IDR][..] } else { &[P] } {
            source.send(video(ssrc, *seq, *time, *nal == IDR || *nal == P), nal);
            *seq = seq.wrapping_add(1);
        }
        *time = time.wrapping_add(3_000);
        source.pass(33 * MS);
    }
}

#[test]
fn an_ssrc_for_each_group_of_pictures_makes_one_line() {
    let mut source = Source::new(vec![h264()]);
    for ssrc in 0..100u32 {
        let (mut seq, mut time) = (ssrc.wrapping_mul(40_503) as u16, ssrc.wrapping_mul(2_654_435_761));
        group(&mut source, 10 + ssrc, &mut seq, &mut time);
    }
    assert_eq!(source.payloads().len(), 100 * 17);
    let steps = source.sent.windows(2).map(|pair| pair[1].time - pair[0].time);
    assert!(
        steps.clone().all(|step| step == 0 || (2_000..5_000).contains(&step)),
        "{:?}",
        steps.max()
    );
}

/// Encoders that change their SSRC at any frame, and number on.
#[test]
fn an_ssrc_that_continues_the_numbering_needs_no_key_frame() {
    for (seq_step, time_step, is_continued) in [
        (1, 3_000, true),
        (3, 3_000, true),
        (1, 500_000, false),
        (500, 3_000, true),
        (500, 9_000, false),
    ] {
        let mut source = Source::new(vec![h264()]);
        let (mut seq, mut time) = (65_530, u32::MAX - 20_000);
        group(&mut source, 10, &mut seq, &mut time);
        for ssrc in 11..60 {
            seq = seq.wrapping_add(seq_step - 1);
            time = time.wrapping_add(time_step - 3_000);
            source.send(video(ssrc, seq, time, true), P);
            (seq, time) = (seq.wrapping_add(1), time.wrapping_add(3_000));
            source.pass(33 * MS);
        }
        assert_eq!(
            source.sent.len(),
            if is_continued { 17 + 49 } else { 17 },
            "{seq_step} {time_step}"
        );
    }
}

#[test]
fn a_publisher_comes_back_to_an_earlier_ssrc() {
    let mut source = Source::new(vec![h264()]);
    let mut counters = [(500u16, 7_000u32), (60_000, 4_000_000_000)];
    for turn in 0..8 {
        let (seq, time) = &mut counters[turn % 2];
        group(&mut source, 10 + turn as u32 % 2, seq, time);
    }
    assert_eq!(source.payloads().len(), 8 * 17);
    // A single packet of the other one is a straggler, however late it is.
    let before = source.sent.len();
    let (seq, time) = counters[0];
    source.send(video(10, seq, time, true), P);
    let (seq, time) = counters[1];
    source.send(video(11, seq, time, true), P);
    source.pass(33 * MS);
    assert_eq!(source.sent.len(), before + 1);
}

#[test]
fn layers_by_ssrc_are_simulcast_layers() {
    let mut track = track(MediaKind::Video, &[(VIDEO, CodecFormat::Vp8)]);
    let declared = |primary| DeclaredSsrc {
        primary: Ssrc(primary),
        rtx: None,
    };
    track.layer_ssrcs = [1, 2, 3].map(declared).into();
    track.ssrcs = track.layer_ssrcs.clone();
    let mut source = Source::new(vec![track]);
    for frame in 0..60u32 {
        for (ssrc, width) in [(1u32, 320u16), (2, 640), (3, 1_280)] {
            let mut payload = vec![0x10, u8::from(frame > 0), 0, 0, 0x9d, 0x01, 0x2a];
            payload.extend_from_slice(&width.to_le_bytes());
            payload.extend_from_slice(&(width / 16 * 9).to_le_bytes());
            source.send(video(ssrc, frame as u16, frame * 3_000, true), &payload);
        }
        source.pass(33 * MS);
    }
    let layers = source.stream(|state| state.layers().to_vec());
    let shown: Vec<_> = layers
        .iter()
        .map(|layer| (&*layer.rid.0, layer.resolution.map(|(width, _)| width), layer.active))
        .collect();
    assert_eq!(
        shown,
        [("2", Some(1_280), true), ("1", Some(640), true), ("0", Some(320), true)]
    );
    assert_eq!(source.stream(|state| state.video.resolution()), Some((1_280, 720)));
    assert_eq!(source.hub.streams().len(), 4, "the stream and one for each layer");
}

/// NTP timestamp of a time since an arbitrary start.
fn ntp(time: Duration) -> u64 {
    crate::media::clock::unix_to_ntp(Duration::from_secs(1_700_000_000) + time)
}

/// Sends 20 ms of audio in each of these steps; returns how much media passed on the track.
fn talk(source: &mut Source, pt: PayloadType, ssrc: u32, first: (u16, u32), steps: u32) -> u64 {
    let samples = if pt == OPUS { 960 } else { 160 };
    let time = |source: &Source| {
        source.stream(|state| {
            state
                .audio
                .ring()
                .newest_track_time_and_arrival()
                .map_or(0, |(time, _)| time)
        })
    };
    let mut begin = None;
    for step in 0..steps {
        let rtp = Rtp {
            pt,
            ssrc,
            seq: first.0.wrapping_add(step as u16),
            time: first.1.wrapping_add(step * samples),
            marker: false,
        };
        source.send(rtp, &[1, 2, 3]);
        begin.get_or_insert_with(|| time(source));
        source.pass(20 * MS);
    }
    time(source) - begin.unwrap_or_default()
}

#[test]
fn the_clock_of_a_track_follows_its_codec() {
    let mut source = Source::new(vec![audio()]);
    for (seq, (pt, ssrc, rate)) in (1..).zip([(OPUS, 1, 48_000), (PCMU, 2, 8_000), (OPUS, 3, 48_000), (PCMU, 3, 8_000)])
    {
        let passed = talk(&mut source, pt, ssrc, (1_000 * seq, ssrc * 77_777), 100);
        assert_eq!(source.stream(|state| state.audio.clock().clock_rate()), rate);
        assert_eq!(passed, u64::from(rate) * 99 / 50);
        let now = source.now;
        let (newest, clock) =
            source.stream(|state| (state.audio.ring().newest_track_time_and_arrival(), *state.audio.clock()));
        let (time, at) = newest.expect("audio");
        let ahead = clock
            .track_time_for_capture_at(now)
            .expect("anchored")
            .saturating_sub(time);
        assert!(ahead.abs_diff(crate::media::clock::duration_to_ticks(now - at, rate)) < u64::from(rate) / 50);
    }
}

/// Under load one tick has packets of both.
#[test]
fn a_change_within_one_tick_keeps_the_line() {
    let mut source = Source::new(vec![audio()]);
    for (seq, pt, ssrc, time) in [
        (1, OPUS, 1, 960),
        (2, OPUS, 1, 1_920),
        (9, PCMU, 2, 7),
        (10, PCMU, 2, 167),
    ] {
        let mut bytes = vec![0x80, pt.0, 0, seq, 0, 0];
        bytes.extend_from_slice(&u16::to_be_bytes(time));
        bytes.extend_from_slice(&u32::to_be_bytes(ssrc));
        bytes.push(7);
        source.publisher.handle_rtp(source.now, bytes.into());
    }
    source.publish();
    assert_eq!(source.payloads().len(), 4);
    assert!(source.sent.windows(2).all(|pair| pair[0].time < pair[1].time));
}

/// Muted audio may stand still in RTP time; its reports say how long it was muted.
#[test]
fn the_line_follows_the_reports_after_a_pause_in_which_time_stood() {
    let mut source = Source::new(vec![audio()]);
    let start = source.now;
    talk(&mut source, OPUS, 1, (0, 1_000), 100);
    source.report(1, ntp(source.now - start), 1_000 + 100 * 960);
    source.pass(4_000 * MS);
    // It goes on as if nothing had been.
    talk(&mut source, OPUS, 1, (100, 1_000 + 100 * 960), 10);
    let before = source.stream(|state| state.audio.ring().newest_track_time_and_arrival().expect("audio").0);
    source.report(1, ntp(source.now - start), 1_000 + 110 * 960);
    talk(&mut source, OPUS, 1, (110, 1_000 + 110 * 960), 10);
    let passed = source.stream(|state| state.audio.ring().newest_track_time_and_arrival().expect("audio").0) - before;
    assert!(passed.abs_diff(48_000 * 4 + 9_600) < 4_800, "{passed}");
}

#[test]
fn reports_whose_rtp_time_is_nonsense_do_not_move_the_line() {
    let mut source = Source::new(vec![audio()]);
    let start = source.now;
    let mut passed = 0;
    for second in 0..10u16 {
        passed += talk(&mut source, OPUS, 1, (50 * second, u32::from(second) * 48_000), 50);
        source.report(1, ntp(source.now - start), 0);
    }
    assert_eq!(passed, 10 * 49 * 960);
    let newest = source.stream(|state| state.audio.ring().newest_track_time_and_arrival().expect("audio").0);
    let first = source.sent.first().expect("sent").time;
    assert_eq!(newest - first, 499 * 960);
}

#[test]
fn reports_without_wall_clock_say_nothing() {
    for ntp in [0, 7 << 32] {
        let mut source = Source::new(vec![h264(), audio()]);
        for second in 0..5u16 {
            talk(&mut source, OPUS, 1, (50 * second, u32::from(second) * 48_000), 50);
            source.report(1, ntp, u32::from(second + 1) * 48_000);
        }
        let now = source.now;
        let time = source.stream(|state| state.audio.clock().track_time_for_capture_at(now));
        let newest = source.stream(|state| state.audio.ring().newest_track_time_and_arrival().expect("audio").0);
        assert!(
            time.expect("anchored").abs_diff(newest) < 4_800,
            "{ntp}: {time:?}, {newest}"
        );
    }
}
