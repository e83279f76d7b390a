//! Transport streams as packagers cut them.

use std::time::Duration;

use bytes::Bytes;

use super::packet::TS_PACKET_LEN;
use super::*;
use crate::media::MediaKind;

/// Writes a transport stream.
struct Writer {
    pid: u16,
    pmt: u16,
    version: u8,
    counters: [u8; 3],
}

const AUD: [u8; 6] = [0, 0, 0, 1, 9, 0xf0];
const STEP: u64 = 3_600;

/// A picture of `size` bytes with one slice.
fn picture(size: usize) -> Vec<u8> {
    [&[0, 0, 0, 1, 0x65, 0x88][..], &vec![0x77; size]].concat()
}

impl Writer {
    fn new() -> Self {
        Self {
            pid: 256,
            pmt: 4_096,
            version: 0,
            counters: [0; 3],
        }
    }

    fn packets(&mut self, pid: u16, mut data: &[u8]) -> Vec<u8> {
        let counter = &mut self.counters[match pid {
            0 => 0,
            pid if pid == self.pmt => 1,
            _ => 2,
        }];
        let mut out = Vec::new();
        let mut begins = 0x40;
        while !data.is_empty() {
            let taken = data.len().min(TS_PACKET_LEN - 4);
            let stuffing = TS_PACKET_LEN - 4 - taken;
            let [high, low] = pid.to_be_bytes();
            let adaptation = if stuffing > 0 { 0x30 } else { 0x10 };
            out.extend([SYNC_BYTE, begins | high, low, adaptation | *counter]);
            match stuffing {
                0 => {}
                1 => out.push(0),
                _ => {
                    out.extend([u8::try_from(stuffing - 1).expect("short"), 0]);
                    out.extend(vec![0xff; stuffing - 2]);
                }
            }
            out.extend(&data[..taken]);
            data = &data[taken..];
            begins = 0;
            *counter = (*counter + 1) & 0xf;
        }
        out
    }

    fn section(&mut self, pid: u16, table: &[u8]) -> Vec<u8> {
        let mut section = table.to_vec();
        let crc = section.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| {
                crc << 1 ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 }
            })
        });
        section.extend(crc.to_be_bytes());
        section.insert(0, 0);
        section.resize(TS_PACKET_LEN - 4, 0xff);
        self.packets(pid, &section)
    }

    fn tables(&mut self) -> Vec<u8> {
        let version = 0xc1 | self.version << 1;
        let [p1, p2] = (self.pmt | 0xe000).to_be_bytes();
        let [s1, s2] = (self.pid | 0xe000).to_be_bytes();
        let pat = self.section(0, &[0, 0xb0, 13, 0, 1, version, 0, 0, 0, 1, p1, p2]);
        let pmt = [2, 0xb0, 18, 0, 1, version, 0, 0, s1, s2, 0xf0, 0, 0x1b, s1, s2, 0xf0, 0];
        let pmt = self.section(self.pmt, &pmt);
        [pat, pmt].concat()
    }

    /// A PES packet with a time, or without one.
    fn pes(&mut self, at: Option<u64>, contents: &[u8]) -> Vec<u8> {
        self.pes_of_stated_length(at, 0, contents)
    }

    fn pes_of_stated_length(&mut self, at: Option<u64>, stated: u16, contents: &[u8]) -> Vec<u8> {
        let [high, low] = stated.to_be_bytes();
        let mut data = vec![0, 0, 1, 0xe0, high, low, 0x80];
        match at {
            Some(at) => {
                let byte = |shift: u32| (at >> shift & 0xff) as u8;
                data.extend([0x80, 5]);
                data.extend([0x21 | byte(29) & 14, byte(22), byte(14) | 1, byte(7), byte(0) << 1 | 1]);
            }
            None => data.extend([0, 0]),
        }
        data.extend(contents);
        let pid = self.pid;
        self.packets(pid, &data)
    }

    /// A PES packet with pictures of one PES time.
    fn frames(&mut self, first: u64, count: usize) -> Vec<u8> {
        let unit = [&AUD[..], &picture(400)].concat();
        self.pes(Some(900_000 + first * STEP), &unit.repeat(count))
    }
}

fn demux(segments: &[Vec<u8>]) -> Vec<DemuxedSample> {
    let mut stream = TransportStreamDemuxer::default();
    let mut samples = Vec::new();
    for segment in segments {
        samples.extend(stream.push_segment(&Bytes::from(segment.clone())).unwrap_or_default());
    }
    samples.extend(stream.flush());
    samples
}

/// Asserts that there are `count` frames, 40 ms apart.
fn check(samples: &[DemuxedSample], count: usize) {
    assert_eq!(samples.len(), count);
    for pair in samples.windows(2) {
        let step = pair[1].decode_time.saturating_sub(pair[0].decode_time);
        assert!(
            step.abs_diff(Duration::from_millis(40)) < Duration::from_micros(5),
            "{step:?}"
        );
        assert_eq!(pair[1].presentation_time, pair[1].decode_time);
    }
    assert!(
        samples.iter().all(|sample| sample.bytes.len() == AUD.len() + 406),
        "whole frames"
    );
    assert!(samples.iter().all(|sample| sample.codec.kind() == MediaKind::Video));
}

#[test]
fn tables_may_come_late_or_only_once() {
    let mut writer = Writer::new();
    let (tables, again) = (writer.tables(), writer.tables());
    let frames: Vec<Vec<u8>> = (0..6).map(|index| writer.frames(index, 1)).collect();
    let late = [
        [&frames[0][..], &frames[1], &tables, &frames[2]].concat(),
        [&frames[3][..], &again, &frames[4], &frames[5]].concat(),
    ];
    check(&demux(&late), 6);
    let once = [
        [&tables[..], &frames[0], &frames[1], &frames[2]].concat(),
        frames[3..].concat(),
    ];
    check(&demux(&once), 6);
    // None at all: the contents say what it is.
    check(&demux(&[frames[..3].concat(), frames[3..].concat()]), 6);
}

#[test]
fn frames_go_over_the_border_of_segments_cut_at_any_byte() {
    let mut writer = Writer::new();
    let mut whole = writer.tables();
    (0..12).for_each(|index| whole.extend(writer.frames(index, 1)));
    for cut in (TS_PACKET_LEN * 3 + 1..whole.len() - TS_PACKET_LEN * 3).step_by(61) {
        let (first, second) = whole.split_at(cut);
        check(&demux(&[first.to_vec(), second.to_vec()]), 12);
    }
}

#[test]
fn several_frames_in_a_packet_get_times_in_between() {
    for count in [1, 2, 3, 6] {
        let mut writer = Writer::new();
        let mut whole = writer.tables();
        (0..12)
            .step_by(count)
            .for_each(|first| whole.extend(writer.frames(first, count)));
        check(&demux(&[whole]), 12);
    }
}

#[test]
fn a_frame_may_be_spread_over_packets() {
    for is_timed in [true, false] {
        let mut writer = Writer::new();
        let mut whole = writer.tables();
        let unit = [&AUD[..], &picture(400)].concat();
        for index in 0..6 {
            let at = Some(900_000 + index * STEP);
            whole.extend(writer.pes(at, &unit[..100]));
            whole.extend(writer.pes(at.filter(|_| is_timed), &unit[100..300]));
            whole.extend(writer.pes(at.filter(|_| is_timed), &unit[300..]));
        }
        check(&demux(&[whole]), 6);
    }
}

/// Some writers store the low 16 bits of the length of a large frame.
#[test]
fn a_frame_may_be_longer_than_its_packet_says() {
    for size in [400, 65_000, 65_536, 70_000, 200_000] {
        let mut writer = Writer::new();
        let mut whole = writer.tables();
        let unit = [&AUD[..], &picture(size)].concat();
        let stated = ((unit.len() + 8) & 0xffff) as u16;
        for index in 0..3 {
            whole.extend(writer.pes_of_stated_length(Some(900_000 + index * STEP), stated, &unit));
        }
        let sizes: Vec<usize> = demux(&[whole]).iter().map(|sample| sample.bytes.len()).collect();
        assert_eq!(sizes, [unit.len(); 3]);
    }
}

#[test]
fn another_program_map_is_followed() {
    let mut writer = Writer::new();
    let mut whole = writer.tables();
    (0..3).for_each(|index| whole.extend(writer.frames(index, 1)));
    (writer.pid, writer.version, writer.counters[2]) = (300, 1, 9);
    whole.extend(writer.tables());
    (3..6).for_each(|index| whole.extend(writer.frames(index, 1)));
    check(&demux(&[whole]), 6);
}

#[test]
fn counters_may_start_again_with_each_segment() {
    let mut segments = Vec::new();
    for segment in 0..3 {
        let mut writer = Writer::new();
        let mut whole = writer.tables();
        (0..4).for_each(|index| whole.extend(writer.frames(segment * 4 + index, 1)));
        segments.push(whole);
    }
    check(&demux(&segments), 12);
}

#[test]
fn a_lost_packet_costs_one_frame() {
    let mut writer = Writer::new();
    let mut whole = writer.tables();
    let frames: Vec<Vec<u8>> = (0..5).map(|index| writer.frames(index, 1)).collect();
    for (index, frame) in frames.iter().enumerate() {
        // The second packet of a frame.
        let kept = if index == 2 {
            [&frame[..TS_PACKET_LEN], &frame[TS_PACKET_LEN * 2..]].concat()
        } else {
            frame.clone()
        };
        whole.extend(kept);
    }
    let samples = demux(&[whole]);
    assert_eq!(samples.len(), 4);
    let unit = AUD.len() + 406;
    // Its delimiter, which arrived, is of no harm.
    assert!(
        samples
            .iter()
            .all(|sample| (unit..=unit + AUD.len()).contains(&sample.bytes.len()))
    );
}

#[test]
fn packets_with_more_bytes_and_junk_before_them_are_found() {
    let mut writer = Writer::new();
    let mut whole = writer.tables();
    (0..6).for_each(|index| whole.extend(writer.frames(index, 1)));
    let stamped: Vec<u8> = whole
        .chunks(TS_PACKET_LEN)
        .flat_map(|packet| [&[1, 2, 3, 4][..], packet].concat())
        .collect();
    check(&demux(&[stamped]), 6);
    let corrected: Vec<u8> = whole
        .chunks(TS_PACKET_LEN)
        .flat_map(|packet| [packet, &[9; 16][..]].concat())
        .collect();
    check(&demux(&[corrected]), 6);
    check(&demux(&[[&[0, 1, 2][..], &whole].concat()]), 6);
}

#[test]
fn memory_is_bounded_without_tables_or_start_codes() {
    let mut writer = Writer::new();
    let tables = writer.tables();
    let mut stream = TransportStreamDemuxer::default();
    for _ in 0..20 {
        let noise: Vec<u8> = writer.pes(None, &vec![0x55; 1 << 20]);
        let _ = stream.push_segment(&noise.into());
    }
    assert!(
        stream.packets_before_tables.len() <= MAX_BYTES_BEFORE_TABLES + TS_PACKET_LEN,
        "{}",
        stream.packets_before_tables.len()
    );
    let _ = stream.push_segment(&tables.into());
    assert!(stream.packets_before_tables.is_empty());
}

/// Sets the continuity counters of the video; `counter` gets the number of the packet.
fn with_counters(stream: &[u8], counter: fn(usize) -> u8) -> Vec<u8> {
    let (mut out, mut number) = (Vec::new(), 0);
    for packet in stream.chunks_exact(TS_PACKET_LEN) {
        let at = out.len() + 3;
        out.extend(packet);
        if packet[1] & 0x1f == 1 && packet[2] == 0 {
            out[at] = out[at] & 0xf0 | counter(number) & 0xf;
            number += 1;
        }
    }
    out
}

#[test]
fn continuity_counters_that_do_not_count_are_ignored() {
    // One value, one for each PES packet, and any.
    let counters: [fn(usize) -> u8; 3] = [
        |_| 0,
        |number| (number / 3) as u8,
        |number| (number * number / 7 * 11) as u8,
    ];
    for counter in counters {
        let mut writer = Writer::new();
        let mut whole = writer.tables();
        (0..40).for_each(|index| whole.extend(writer.frames(index, 1)));
        let samples = demux(&[with_counters(&whole, counter)]);
        // The first few are damaged.
        assert!(samples.len() >= 36, "{}", samples.len());
        let rest = &samples[samples.len() - 34..];
        check(rest, 34);
    }
}

/// Packets without payload have the counter of the one before (§2.4.3.3). Some writers count them.
#[test]
fn packets_without_payload_may_be_counted() {
    for is_counted in [false, true] {
        let mut writer = Writer::new();
        let mut whole = writer.tables();
        for index in 0..12 {
            let frame = writer.frames(index, 1);
            let (first, rest) = frame.split_at(TS_PACKET_LEN);
            whole.extend(first);
            if is_counted {
                // All that follow have the next number.
                let counter = (first[3] + 1) & 0xf;
                writer.counters[2] = (writer.counters[2] + 1) & 0xf;
                whole.extend([SYNC_BYTE, 1, 0, 0x20 | counter, 183, 0]);
                whole.extend([0xff; TS_PACKET_LEN - 6]);
                whole.extend(rest.chunks(TS_PACKET_LEN).flat_map(|packet| {
                    let mut packet = packet.to_vec();
                    packet[3] = packet[3] & 0xf0 | ((packet[3] + 1) & 0xf);
                    packet
                }));
            } else {
                whole.extend([SYNC_BYTE, 1, 0, 0x20 | first[3] & 0xf, 183, 0]);
                whole.extend([0xff; TS_PACKET_LEN - 6]);
                whole.extend(rest);
            }
        }
        check(&demux(&[whole]), 12);
    }
}

/// After 26.5 hours, in the middle of a segment.
#[test]
fn times_go_on_where_the_clock_wraps() {
    let mut writer = Writer::new();
    let mut whole = writer.tables();
    let unit = [&AUD[..], &picture(400)].concat();
    let first = (1_u64 << 33) - 5 * STEP;
    for index in 0..12 {
        whole.extend(writer.pes(Some((first + index * STEP) & ((1 << 33) - 1)), &unit));
    }
    check(&demux(&[whole]), 12);
}

/// Some writers state presentation times alone, also of B-frames.
#[test]
fn b_frames_without_decoding_times_keep_their_presentation_times() {
    let mut writer = Writer::new();
    let mut whole = writer.tables();
    let unit = [&AUD[..], &picture(400)].concat();
    let order = [0_u64, 3, 1, 2, 6, 4, 5];
    for index in order {
        whole.extend(writer.pes(Some(900_000 + index * STEP), &unit));
    }
    let samples = demux(&[whole]);
    let first = samples[0].presentation_time;
    let shown: Vec<u128> = samples
        .iter()
        .map(|sample| (sample.presentation_time - first).as_millis() / 40)
        .collect();
    assert_eq!(shown, order.map(u128::from));
}

/// Timed ID3 and AAC in LATM beside the video.
#[test]
fn streams_that_are_not_played_do_not_matter() {
    let mut writer = Writer::new();
    let mut whole = writer.tables();
    let [s1, s2] = (writer.pid | 0xe000).to_be_bytes();
    let entries = [
        0x15, 0xe1, 0x44, 0xf0, 0, 0x11, 0xe1, 0x45, 0xf0, 0, 0x1b, s1, s2, 0xf0, 0,
    ];
    let pmt = [&[2, 0xb0, 28, 0, 1, 0xc3, 0, 0, s1, s2, 0xf0, 0][..], &entries].concat();
    let pid = writer.pmt;
    whole.extend(writer.section(pid, &pmt));
    for index in 0..6 {
        whole.extend(writer.packets(0x144, &[0, 0, 1, 0xbd, 0, 0, 0x80, 0, 0, b'I', b'D', b'3']));
        whole.extend(writer.packets(0x145, &[0, 0, 1, 0xc0, 0, 0, 0x80, 0, 0, 0x56, 0xe0, 1]));
        writer.counters[2] = writer.counters[2].wrapping_sub(2) & 0xf;
        whole.extend(writer.frames(index, 1));
    }
    let mut stream = TransportStreamDemuxer::default();
    let mut samples = stream.push_segment(&whole.into()).expect("frames");
    samples.extend(stream.flush());
    check(&samples, 6);
    assert_eq!(stream.unsupported_tracks(), ["audio AAC in LATM"]);
}
