//! MPEG-TS and packed audio: two segments of one HLS rendition, cut in the middle of the input.
//!
//! Frames hold no more bytes than their segment and parameter sets, and are presented no earlier than they are decoded.
#![no_main]

use bytes::Bytes;
use millstream_core::media::container::{Content, Demuxer};

/// Length of a packet (ISO/IEC 13818-1 §2.4.3.2).
const PACKET: usize = 188;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let data = Bytes::copy_from_slice(data);
    let half = data.len() / 2 / PACKET * PACKET;
    let mut demuxer = Demuxer::default();
    for segment in [data.slice(..half), data.slice(half..)] {
        let Ok(samples) = demuxer.segment(&segment) else {
            continue;
        };
        assert!(!samples.is_empty());
        let bytes: usize = samples.iter().map(|sample| sample.bytes.len()).sum();
        assert!(bytes <= segment.len(), "{bytes} bytes of {}", segment.len());
        for sample in samples {
            assert!(sample.present >= sample.decode);
            assert!(!sample.bytes.is_empty());
            if let Content::Aac(config) = sample.content {
                assert!(config.rate > 0, "{config:?}");
            }
        }
    }
});
