//! Timestamps that stand still, jump or differ within a frame, and SSRCs that change within a group of pictures.

use super::*;

/// A sender whose RTP timestamps never change, with and without markers: each frame has a time of its own, that of its
/// arrival, and key frames have their parameter sets.
#[test]
fn frames_whose_timestamps_stand_still_are_timed_by_their_arrival() {
    for (has_markers, fixed) in [(true, 0), (false, 0), (true, u32::MAX)] {
        let mut source = Source::new(vec![h264(), audio()]);
        let mut seq = 0u16;
        for frame in 0..100u16 {
            let nals: &[&[u8]] = match frame {
                0 => &[SPS, PPS, IDR, SLICE],
                _ if frame % 25 == 0 => &[IDR, SLICE],
                _ => &[P, SLICE],
            };
            for (index, nal) in nals.iter().enumerate() {
                let marker = has_markers && index + 1 == nals.len();
                source.send(video(10, seq, fixed, marker), nal);
                seq = seq.wrapping_add(1);
            }
            let speech = Rtp {
                pt: OPUS,
                ssrc: 20,
                seq: frame,
                time: fixed,
                marker: false,
            };
            source.send(speech, &[1, 2, 3]);
            // A report of such a clock says nothing.
            source.report(10, (3_900_000_000 << 32) + (u64::from(frame) << 27), fixed);
            source.pass(40 * MS);
        }
        source.pass(Duration::from_secs(1));
        let is_video = |packet: &&Packet| packet.codec == Codec::H264;
        let mut frames: Vec<u64> = source.sent.iter().filter(is_video).map(|packet| packet.time).collect();
        frames.dedup();
        assert_eq!(frames.len(), 99, "the first two have one timestamp");
        assert!(
            frames[1..].windows(2).all(|pair| pair[1] - pair[0] == 3_600),
            "{frames:?}"
        );
        let markers = source
            .sent
            .iter()
            .filter(is_video)
            .filter(|packet| packet.marker)
            .count();
        assert!((99..=100).contains(&markers), "{markers}");
        let sets = source.sent.iter().filter(|packet| packet.payload.len() > 10).count();
        assert_eq!(sets, 3, "before each key frame without parameter sets");
        let speech = source.sent.iter().filter(|packet| packet.codec == Codec::Opus);
        let mut speech: Vec<u64> = speech.map(|packet| packet.time).collect();
        speech.dedup();
        assert_eq!(speech.len(), 99);
        let counts = source.stream(|state| {
            (
                state.video.arrival_timestamped_frame_count(),
                state.audio.arrival_timestamped_frame_count(),
            )
        });
        assert_eq!(counts, (98, 98));
    }
}

impl Source {
    /// Key frame requests that are due, as SSRC and type of feedback message: 1 is PLI, 4 is FIR.
    fn key_frame_requests(&mut self) -> Vec<(u32, u8)> {
        let mut requests = Vec::new();
        for datagram in self.publisher.handle_timeout(self.now) {
            let mut rest = &datagram[..];
            while let &[first, packet_type, l0, l1, ..] = rest {
                let (packet, after) = rest.split_at((usize::from(u16::from_be_bytes([l0, l1])) + 1) * 4);
                let media = if first & 0x1f == 4 { 12 } else { 8 };
                if packet_type == 206 && matches!(first & 0x1f, 1 | 4) {
                    let ssrc = packet[media..media + 4].try_into().expect("4 bytes");
                    requests.push((u32::from_be_bytes(ssrc), first & 0x1f));
                }
                rest = after;
            }
        }
        requests
    }
}

/// Encoders that change their SSRC within a group of pictures and number anew. The frames go on if the timestamps do, and
/// nothing was lost; a key frame is requested at once, by FIR where the publisher takes no PLI.
#[test]
fn an_ssrc_that_numbers_anew_within_a_group_goes_on_if_its_timestamps_do() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Change {
        Nothing,
        FrameMissing,
        EndMissing,
        StartMissing,
        GapBefore,
        OtherTime,
    }
    for (change, goes_on) in [
        (Change::Nothing, true),
        (Change::FrameMissing, false),
        (Change::EndMissing, false),
        (Change::StartMissing, false),
        (Change::GapBefore, false),
        (Change::OtherTime, false),
    ] {
        for takes_pli in [true, false] {
            let mut track = h264();
            for codec in &mut track.codecs {
                (codec.rtcp_feedback.pli, codec.rtcp_feedback.fir) = (takes_pli, true);
            }
            let mut source = Source::new(vec![track]);
            let (mut seq, mut time) = (500, 9_000);
            group(&mut source, 10, &mut seq, &mut time);
            // A key frame was requested a moment before.
            source.publisher.schedule_key_frame_request(None);
            assert_eq!(source.key_frame_requests().len(), 1);
            source.now += 300 * MS;
            if change == Change::GapBefore {
                seq += 1;
            }
            source.send(video(10, seq, time, false), P);
            if change != Change::EndMissing {
                source.send(video(10, seq + 1, time, true), SLICE);
            }
            let before = source.sent.len();
            time += match change {
                Change::FrameMissing => 6_000,
                Change::OtherTime => 900_000,
                _ => 3_000,
            };
            for frame in 0..10u16 {
                let (first, time) = (40_000 + 2 * frame, time + u32::from(frame) * 3_000);
                if frame > 0 || change != Change::StartMissing {
                    source.send(video(11, first, time, false), P);
                }
                source.send(video(11, first + 1, time, true), SLICE);
                if frame == 0 {
                    let format = if takes_pli { 1 } else { 4 };
                    assert_eq!(source.key_frame_requests(), [(11, format)], "{change:?}");
                }
                source.pass(33 * MS);
            }
            // A packet from before the first one of the new SSRC is of no frame that went on.
            source.send(video(11, 39_999, time - 3_000, true), P);
            let sent = source.sent.len() - before;
            assert_eq!(sent, if goes_on { 20 } else { 0 }, "{change:?}");
            if goes_on {
                source.payloads();
                let steps = source.sent.windows(2).map(|pair| pair[1].time - pair[0].time);
                assert!(
                    steps.clone().all(|step| step == 0 || step == 3_000),
                    "{:?}",
                    steps.max()
                );
            }
            let (mut seq, mut time) = (40_020, time + 30_000);
            group(&mut source, 11, &mut seq, &mut time);
            assert_eq!(source.sent.len(), before + sent + 17, "a key frame goes on in any case");
        }
    }
}

/// With `frame_num` a lost frame is seen at any frame rate.
#[test]
fn a_frame_that_is_missing_at_a_change_of_the_ssrc_is_found_by_its_number() {
    // Baseline: frame_num has 4 bits. P slices of the first macroblock, type 5, of PPS 0, with their frame_num.
    let sps: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
    let slice = |number: u8| [0x41, 0b1001_1010 | (number >> 3 & 1), (number & 7) << 5 | 0x10];
    // All 16 values passed over look like none.
    for (skipped, step, goes_on) in [(0, 12_000, true), (1, 3_000, false), (16, 51_000, false)] {
        let mut source = Source::new(vec![h264()]);
        for (index, nal) in [sps, PPS, IDR].into_iter().enumerate() {
            source.send(video(10, index as u16, 0, nal == IDR), nal);
        }
        for frame in 1..10u8 {
            source.pass(33 * MS);
            source.send(
                video(10, 2 + u16::from(frame), u32::from(frame) * 3_000, true),
                &slice(frame),
            );
        }
        source.pass(33 * MS);
        let before = source.sent.len();
        for frame in 0..5u8 {
            let time = 27_000 + step + u32::from(frame) * 3_000;
            source.send(
                video(11, 7_000 + u16::from(frame), time, true),
                &slice((10 + skipped + frame) % 16),
            );
            source.pass(33 * MS);
        }
        assert_eq!(source.sent.len() - before, if goes_on { 5 } else { 0 }, "{skipped}");
    }
}

/// A frame every second is stamped hours away from the others: it costs no frame, and no key frame is needed.
#[test]
fn frames_that_are_stamped_hours_away_go_on_in_their_place() {
    for (stray, kind) in [
        (9_800 * 90_000, MediaKind::Video),
        (u32::MAX - 9_800 * 90_000, MediaKind::Video),
        (9_800 * 48_000, MediaKind::Audio),
    ] {
        let mut source = Source::new(vec![h264(), audio()]);
        for frame in 0..100u16 {
            let add = if frame % 25 == 12 { stray } else { 0 };
            let rtp = match kind {
                MediaKind::Video => video(10, 3 + frame, u32::from(frame) * 3_600, true),
                MediaKind::Audio => Rtp {
                    pt: OPUS,
                    ssrc: 20,
                    seq: frame,
                    time: u32::from(frame) * 1_920,
                    marker: false,
                },
            };
            if frame == 0 && kind == MediaKind::Video {
                for (index, nal) in [SPS, PPS, IDR].into_iter().enumerate() {
                    source.send(video(10, index as u16, 0, nal == IDR), nal);
                }
            } else {
                let time = rtp.time.wrapping_add(add);
                source.send(Rtp { time, ..rtp }, P);
            }
            source.pass(40 * MS);
        }
        let mut times: Vec<u64> = source.sent.iter().map(|packet| packet.time).collect();
        times.dedup();
        assert_eq!(times.len(), 100, "{kind}");
        let step = if kind == MediaKind::Video { 3_600 } else { 1_920 };
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == step), "{times:?}");
    }
}

/// The clock of the publisher is set: what follows goes on without a key frame.
#[test]
fn a_clock_that_is_set_costs_no_frame() {
    let mut source = Source::new(vec![h264()]);
    let (mut seq, mut time) = (0, 5_000);
    group(&mut source, 10, &mut seq, &mut time);
    let before = source.sent.len();
    for frame in 0..20u32 {
        let time = time.wrapping_sub(3_600 * 90_000).wrapping_add(frame * 3_000);
        source.send(video(10, seq, time, true), P);
        seq += 1;
        source.pass(33 * MS);
    }
    assert_eq!(source.sent.len() - before, 20);
    assert!(source.sent.windows(2).all(|pair| pair[1].time - pair[0].time <= 3_100));
}

/// Payloaders that give each slice a timestamp of its own: viewers get one for each frame.
#[test]
fn slices_with_timestamps_of_their_own_are_one_frame() {
    let mut source = Source::new(vec![h264()]);
    let mut seq = 0;
    for frame in 0..30u32 {
        let sets: &[&[u8]] = if frame == 0 { &[SPS, PPS] } else { &[] };
        let first = if frame == 0 { IDR } else { P };
        let mut step = 0;
        for nal in sets.iter().chain(&[first, SLICE, SLICE]) {
            source.send(video(1, seq, frame * 3_000 + step, true), nal);
            (seq, step) = (seq + 1, step + if sets.is_empty() { 750 } else { 0 });
        }
        source.pass(33 * MS);
    }
    source.pass(Duration::from_secs(1));
    assert_eq!(source.payloads().len(), usize::from(seq));
    let mut times: Vec<u64> = source.sent.iter().map(|packet| packet.time).collect();
    times.dedup();
    assert_eq!(times.len(), 30);
    let marked = source.sent.iter().filter(|packet| packet.marker).count();
    assert_eq!(marked, 30);
}
