//! Fragmented MP4: an initialization section, behind its length in two bytes, and a segment.
//!
//! Frames hold no more bytes than the segment, and before each of them the parameter sets of the initialization section.
//! Video has start codes.
#![no_main]

use bytes::Bytes;
use millstream_core::media::{
    container::{HlsSegmentDemuxer, SampleCodec},
    packetizer::split_annex_b,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (init, segment) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let mut demuxer = HlsSegmentDemuxer::default();
    demuxer.set_init_section(Bytes::copy_from_slice(init));
    let segment = Bytes::copy_from_slice(segment);
    // The second time the demuxer has state.
    for _ in 0..2 {
        let Ok(samples) = demuxer.demux_segment(&segment) else {
            return;
        };
        assert!(!samples.is_empty() || !is_mp4(&segment));
        let bytes: usize = samples.iter().map(|sample| sample.bytes.len()).sum();
        // A start code of a parameter set is longer than its length in the initialization section.
        let sets = 4 * if init.is_empty() { segment.len() } else { init.len() };
        // A start code has four bytes, the length before a NAL unit of one byte at least one.
        let most = segment.len() / 2 * 5 + 5 + samples.len() * sets;
        assert!(
            bytes <= most,
            "{bytes} bytes of {} samples of {}",
            samples.len(),
            segment.len()
        );
        assert!(samples.is_sorted_by_key(|sample| sample.decode_time));
        for sample in samples {
            if matches!(sample.codec, SampleCodec::H264 | SampleCodec::H265) {
                split_annex_b(&sample.bytes).expect("start codes");
            }
        }
    }
});

/// Whether a segment is taken for MP4. MPEG-TS and packed audio may go on in the next segment, and need not have a frame in
/// each.
fn is_mp4(segment: &[u8]) -> bool {
    let is_other = segment.starts_with(b"ID3") || matches!(segment.first(), Some(0x47 | 0xff));
    !is_other && segment.get(4..8).is_some_and(|name| name == b"moof" || name == b"styp")
}
