//! Repeats the last frame of video: players of segments stop where video pauses and audio goes on, and this fills the
//! pause. The repeated frame is decoded to the one before, and changes nothing for what follows.

use bytes::Bytes;

use super::av1_frame_repeater::Av1FrameRepeater;
use super::h264_frame_repeater::H264FrameRepeater;
use super::h265_frame_repeater::H265FrameRepeater;
use super::vp9_frame_repeater::Vp9FrameRepeater;
use crate::media::Codec;
use crate::media::depacketizer::Frame;
use crate::media::packetizer::split_annex_b;

/// Repeats the frames of one stream.
#[derive(Debug, Default)]
pub struct FrameRepeater {
    of_codec: CodecFrameRepeater,
}

#[derive(Debug, Default)]
enum CodecFrameRepeater {
    #[default]
    None,
    H264(H264FrameRepeater),
    H265(H265FrameRepeater),
    Vp9(Vp9FrameRepeater),
    Av1(Av1FrameRepeater),
}

impl FrameRepeater {
    /// Records a frame.
    pub fn observe_frame(&mut self, frame: &Frame) {
        match (frame.codec, &mut self.of_codec) {
            (Codec::H264, CodecFrameRepeater::H264(_))
            | (Codec::H265, CodecFrameRepeater::H265(_))
            | (Codec::Vp9, CodecFrameRepeater::Vp9(_))
            | (Codec::Av1, CodecFrameRepeater::Av1(_)) => {}
            (Codec::H264, other) => *other = CodecFrameRepeater::H264(H264FrameRepeater::default()),
            (Codec::H265, other) => *other = CodecFrameRepeater::H265(H265FrameRepeater::default()),
            (Codec::Vp9, other) => *other = CodecFrameRepeater::Vp9(Vp9FrameRepeater::default()),
            (Codec::Av1, other) => *other = CodecFrameRepeater::Av1(Av1FrameRepeater::default()),
            (Codec::Vp8 | Codec::Jpeg | Codec::Opus | Codec::Pcmu | Codec::Pcma | Codec::Aac, other) => {
                *other = CodecFrameRepeater::None
            }
        }
        match &mut self.of_codec {
            CodecFrameRepeater::H264(repeater) => match split_annex_b(&frame.bytes) {
                Ok(nals) => repeater.observe_frame(&nals),
                Err(_) => *repeater = H264FrameRepeater::default(),
            },
            CodecFrameRepeater::H265(repeater) => match split_annex_b(&frame.bytes) {
                Ok(nals) => repeater.observe_frame(&nals),
                Err(_) => *repeater = H265FrameRepeater::default(),
            },
            CodecFrameRepeater::Vp9(repeater) => repeater.observe_frame(&frame.bytes),
            CodecFrameRepeater::Av1(repeater) => repeater.observe_frame(&frame.bytes),
            CodecFrameRepeater::None => {}
        }
    }

    /// Returns the repeated last frame as a sample of MP4; `None` if it cannot be repeated: interlaced H.264, H.265 with
    /// reordered frames, key frames of AV1, and other codecs.
    pub fn build_repeated_sample(&mut self) -> Option<Bytes> {
        match &mut self.of_codec {
            CodecFrameRepeater::H264(repeater) => join_length_prefixed(&[repeater.build_repeated_frame()?]),
            CodecFrameRepeater::H265(repeater) => join_length_prefixed(&repeater.build_repeated_frame()?),
            CodecFrameRepeater::Vp9(repeater) => repeater.build_repeated_frame(),
            CodecFrameRepeater::Av1(repeater) => repeater.build_repeated_frame(),
            CodecFrameRepeater::None => None,
        }
    }
}

fn join_length_prefixed(nals: &[Bytes]) -> Option<Bytes> {
    let mut sample = Vec::new();
    for nal in nals {
        sample.extend(u32::try_from(nal.len()).ok()?.to_be_bytes());
        sample.extend_from_slice(nal);
    }
    Some(sample.into())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("millstream-repeat-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    /// Returns the frames of two seconds of a test pattern, encoded by ffmpeg with these options.
    pub(crate) fn encode_ivf(name: &str, options: &[&str]) -> Vec<Vec<u8>> {
        let folder = folder(name);
        let path = folder.join("clip.ivf");
        let made = Command::new("ffmpeg")
            .args(["-loglevel", "error", "-y", "-f", "lavfi", "-i"])
            .args(["testsrc2=size=320x180:rate=25", "-t", "2", "-pix_fmt", "yuv420p"])
            .args(options)
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("ffmpeg is installed").success(), "{name}");
        let bytes = std::fs::read(&path).expect("a file");
        let mut rest = bytes.get(IVF_HEADER_LENGTH..).expect("a header");
        let mut frames = Vec::new();
        while let Some((header, body)) = rest.split_first_chunk::<12>() {
            let [a, b, c, d, ..] = *header;
            let (frame, after) = body.split_at(u32::from_le_bytes([a, b, c, d]) as usize);
            frames.push(frame.to_vec());
            rest = after;
        }
        let _ = std::fs::remove_dir_all(&folder);
        frames
    }

    /// As [`encode_ivf`], for H.265 with access unit delimiters: the NAL units of each frame without these.
    pub(crate) fn encode_annex_b(name: &str, options: &[&str]) -> Vec<Vec<Bytes>> {
        let folder = folder(name);
        let path = folder.join("clip.hevc");
        let made = Command::new("ffmpeg")
            .args(["-loglevel", "error", "-y", "-f", "lavfi", "-i"])
            .args(["testsrc2=size=328x184:rate=25", "-t", "2", "-pix_fmt", "yuv420p"])
            .args(options)
            .arg(&path)
            .status();
        assert!(made.expect("ffmpeg is installed").success(), "{name}");
        let bytes = Bytes::from(std::fs::read(&path).expect("a file"));
        let _ = std::fs::remove_dir_all(&folder);
        let mut units: Vec<Vec<Bytes>> = Vec::new();
        for nal in split_annex_b(&bytes).expect("start codes") {
            if nal[0] >> 1 & 0x3f == 35 {
                units.push(Vec::new());
            } else {
                units.last_mut().expect("a delimiter first").push(nal);
            }
        }
        units
    }

    /// As [`decode_ivf`], for H.265.
    pub(crate) fn decode_annex_b(name: &str, units: &[Vec<Bytes>]) -> Vec<String> {
        let mut bytes = Vec::new();
        for unit in units {
            bytes.extend([0, 0, 0, 1, 0x46, 1, 0x50]);
            unit.iter()
                .for_each(|nal| bytes.extend([&[0, 0, 0, 1][..], nal].concat()));
        }
        decode(name, "decoded.hevc", &bytes)
    }

    const IVF_HEADER_LENGTH: usize = 32;

    /// Checksums of the decoded frames.
    pub(crate) fn decode_ivf(name: &str, codec: [u8; 4], frames: &[Vec<u8>]) -> Vec<String> {
        let mut bytes = b"DKIF\0\0\x20\0".to_vec();
        bytes.extend(codec);
        bytes.extend([64, 1, 180, 0, 25, 0, 0, 0, 1, 0, 0, 0]);
        bytes.extend((frames.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        for (time, frame) in frames.iter().enumerate() {
            bytes.extend((frame.len() as u32).to_le_bytes());
            bytes.extend((time as u64).to_le_bytes());
            bytes.extend(frame);
        }
        decode(name, "decoded.ivf", &bytes)
    }

    fn decode(name: &str, file: &str, bytes: &[u8]) -> Vec<String> {
        let folder = folder(name);
        let path = folder.join(file);
        std::fs::write(&path, bytes).expect("a file");
        let output = Command::new("ffmpeg")
            .args(["-loglevel", "warning", "-i"])
            .arg(&path)
            .args(["-fps_mode", "passthrough", "-f", "framemd5", "-"])
            .stderr(Stdio::piped())
            .output()
            .expect("ffmpeg is installed");
        let (text, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(!errors.to_ascii_lowercase().contains("error"), "{name}: {errors}");
        let _ = std::fs::remove_dir_all(&folder);
        let sums = text.lines().filter(|line| !line.starts_with('#'));
        sums.map(|line| line.rsplit(',').next().expect("a sum").trim().to_owned())
            .collect()
    }

    #[test]
    fn the_last_frame_is_repeated_by_the_rules_of_its_codec() {
        let frame = |codec, bytes: &[u8]| Frame {
            codec,
            time: 0,
            is_key_frame: true,
            after_gap: false,
            bytes: Bytes::copy_from_slice(bytes),
        };
        let mut repeater = FrameRepeater::default();
        assert_eq!(repeater.build_repeated_sample(), None);
        repeater.observe_frame(&frame(Codec::Vp9, &[0x82, 0x49, 0x83, 0x42]));
        assert_eq!(repeater.build_repeated_sample().as_deref(), Some(&[0x88][..]));
        repeater.observe_frame(&frame(Codec::Vp8, &[0]));
        assert_eq!(repeater.build_repeated_sample(), None);
        repeater.observe_frame(&frame(Codec::H264, &[9, 9]));
        assert_eq!(repeater.build_repeated_sample(), None);
    }
}
