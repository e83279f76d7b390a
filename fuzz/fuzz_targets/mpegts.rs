//! MPEG-TS and packed audio: two segments of one HLS rendition, cut in the middle of the input.
//!
//! Frames hold no more bytes than the segments so far, and are presented no earlier than they are decoded.
#![no_main]

use bytes::Bytes;
use millstream_core::media::container::{DemuxedSample, HlsSegmentDemuxer, SampleCodec};

/// Length of a packet (ISO/IEC 13818-1 §2.4.3.2).
const PACKET: usize = 188;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // MP4 has a target of its own, and frames that are longer than in their segment.
    if data.windows(4).any(|name| name == b"moof") {
        return;
    }
    let data = Bytes::copy_from_slice(data);
    let half = data.len() / 2 / PACKET * PACKET;
    let mut demuxer = HlsSegmentDemuxer::default();
    let (mut pushed, mut returned) = (0, 0);
    for segment in [data.slice(..half), data.slice(half..)] {
        let samples = demuxer.demux_segment(&segment).unwrap_or_default();
        // The last frame of a segment may come with the next one.
        pushed += segment.len();
        returned += check(&samples);
        assert!(returned <= pushed, "{returned} bytes of {pushed}");
    }
    returned += check(&demuxer.flush());
    assert!(returned <= pushed, "{returned} bytes of {pushed}");
    assert!(demuxer.flush().is_empty());
});

/// Returns the bytes of all frames.
fn check(samples: &[DemuxedSample]) -> usize {
    for sample in samples {
        assert!(sample.presentation_time >= sample.decode_time);
        assert!(!sample.bytes.is_empty());
        if let SampleCodec::Aac(config) = sample.codec {
            assert!(config.sample_rate > 0, "{config:?}");
        }
    }
    samples.iter().map(|sample| sample.bytes.len()).sum()
}
