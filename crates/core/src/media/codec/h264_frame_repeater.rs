//! Repeats a frame of H.264: a frame of nothing but skipped macroblocks (ITU-T H.264 §7.3.4), which decoders show like the
//! one before. Players of segments stop where video pauses and audio goes on; this fills the pause.
//!
//! The repeated frame is no reference frame, so that what follows is decoded as without it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bit_reader::{BitReader, remove_emulation_prevention};
use super::bit_writer::BitWriter;
use super::h264::{parse_high_profile_sps_fields, parse_pic_order_cnt_type};
use super::h264_cabac;

/// Repeats the frames of one stream.
#[derive(Debug, Default)]
pub(super) struct H264FrameRepeater {
    sequence_params: BTreeMap<u32, SequenceParams>,
    picture_params: BTreeMap<u32, PictureParams>,
    last_frame: Option<LastFrame>,
}

#[derive(Clone, Copy, Debug)]
struct SequenceParams {
    frame_num_bits: u32,
    /// `None` if frames are shown in the order in which they are sent.
    poc_lsb_bits: Option<u32>,
    macroblock_count: u32,
    has_chroma: bool,
    separate_planes: bool,
}

#[derive(Clone, Copy, Debug)]
struct PictureParams {
    sps_id: u32,
    has_cabac: bool,
    has_bottom_field_order: bool,
    has_weighted_prediction: bool,
    initial_qp: i64,
    has_deblocking_control: bool,
    has_redundant_count: bool,
}

#[derive(Clone, Copy, Debug)]
struct LastFrame {
    pps_id: u32,
    frame_num: u32,
    is_reference: bool,
    poc_lsb: u32,
}

/// Maximum number of bytes of a slice that are read.
const MAX_SLICE_HEADER_BYTES: usize = 32;

/// Maximum number of macroblocks of a frame: 8192x4320.
const MAX_MACROBLOCKS: u32 = 139_264;

impl H264FrameRepeater {
    /// Records a frame, given as NAL units without start codes.
    pub(super) fn observe_frame(&mut self, nals: &[Bytes]) {
        let mut frame = None;
        for nal in nals {
            let Some((&header, body)) = nal.split_first() else {
                continue;
            };
            match header & 0x1f {
                7 => {
                    if let Some((id, params)) = SequenceParams::parse(&remove_emulation_prevention(body)) {
                        self.sequence_params.insert(id, params);
                    }
                }
                8 => {
                    if let Some((id, params)) = PictureParams::parse(&remove_emulation_prevention(body)) {
                        self.picture_params.insert(id, params);
                    }
                }
                1 | 5 if frame.is_none() => frame = self.parse_first_slice_header(header, body),
                _ => {}
            }
        }
        self.last_frame = frame;
    }

    /// Returns the NAL unit that repeats the last frame; `None` if that cannot be done, such as for interlaced video.
    pub(super) fn build_repeated_frame(&self) -> Option<Bytes> {
        let last = self.last_frame?;
        let picture = self.picture_params.get(&last.pps_id)?;
        let sequence = self.sequence_params.get(&picture.sps_id)?;
        let mut bits = BitWriter::default();
        bits.write_ue(0); // first_mb_in_slice
        bits.write_ue(5); // slice_type: P, as all slices of the frame
        bits.write_ue(last.pps_id);
        if sequence.separate_planes {
            return None;
        }
        // §7.4.3: it counts reference frames.
        let frame_num = last.frame_num.wrapping_add(u32::from(last.is_reference));
        bits.write_bits(
            frame_num & low_bits_mask(sequence.frame_num_bits),
            sequence.frame_num_bits,
        );
        if let Some(length) = sequence.poc_lsb_bits {
            // Between this frame and the next, which usually has the number after.
            bits.write_bits(last.poc_lsb.wrapping_add(1) & low_bits_mask(length), length);
            if picture.has_bottom_field_order {
                bits.write_ue(0); // delta_pic_order_cnt_bottom
            }
        }
        if picture.has_redundant_count {
            bits.write_ue(0); // redundant_pic_cnt
        }
        bits.write_bits(1, 1); // num_ref_idx_active_override_flag
        bits.write_ue(0); // num_ref_idx_l0_active_minus1
        bits.write_bits(0, 1); // ref_pic_list_modification_flag_l0
        if picture.has_weighted_prediction {
            bits.write_ue(0); // luma_log2_weight_denom
            if sequence.has_chroma {
                bits.write_ue(0); // chroma_log2_weight_denom
            }
            bits.write_bits(0, 1); // luma_weight_l0_flag
            if sequence.has_chroma {
                bits.write_bits(0, 1); // chroma_weight_l0_flag
            }
        }
        if picture.has_cabac {
            bits.write_ue(0); // cabac_init_idc
        }
        bits.write_ue(0); // slice_qp_delta
        if picture.has_deblocking_control {
            bits.write_ue(1); // disable_deblocking_filter_idc
        }
        if picture.has_cabac {
            bits.align_with_ones();
            h264_cabac::write_skipped_macroblocks(&mut bits, sequence.macroblock_count, picture.initial_qp);
            bits.align_with_zeros();
        } else {
            bits.write_ue(sequence.macroblock_count); // mb_skip_run
            bits.write_bits(1, 1); // rbsp_stop_one_bit
            bits.align_with_zeros();
        }
        Some(build_nal_unit_from_rbsp(
            &[NON_REFERENCE_SLICE_NAL_HEADER],
            bits.bytes(),
        ))
    }

    /// Reads the first slice of a frame.
    fn parse_first_slice_header(&self, header: u8, body: &[u8]) -> Option<LastFrame> {
        let bytes = remove_emulation_prevention(body.get(..MAX_SLICE_HEADER_BYTES).unwrap_or(body));
        let mut bits = BitReader::new(&bytes);
        let (first, _slice_type, pps_id) = (bits.read_ue()?, bits.read_ue()?, bits.read_ue()?);
        let sequence = self.sequence_params.get(&self.picture_params.get(&pps_id)?.sps_id)?;
        let frame_num = bits.read_bits(sequence.frame_num_bits)?;
        if header & 0x1f == 5 {
            bits.read_ue()?; // idr_pic_id
        }
        let poc_lsb = sequence.poc_lsb_bits.map_or(Some(0), |length| bits.read_bits(length))?;
        (first == 0).then_some(LastFrame {
            pps_id,
            frame_num,
            is_reference: header & 0x60 != 0,
            poc_lsb,
        })
    }
}

/// Header of a slice NAL unit with `nal_ref_idc` 0.
const NON_REFERENCE_SLICE_NAL_HEADER: u8 = 1;

fn low_bits_mask(count: u32) -> u32 {
    (1 << count) - 1
}

impl SequenceParams {
    /// Returns the ID too; `None` for interlaced video, and for a picture order that is rarely used.
    fn parse(rbsp: &[u8]) -> Option<(u32, Self)> {
        let (profile, rest) = rbsp.split_first_chunk::<3>()?;
        let mut bits = BitReader::new(rest);
        let id = bits.read_ue().filter(|id| *id <= 31)?;
        let (chroma_array_type, separate_planes) = parse_high_profile_sps_fields(&mut bits, profile[0])?;
        let frame_num_bits = bits.read_ue().filter(|bits| *bits <= 12)? + 4;
        let (poc_lsb_bits, is_decode_order) = parse_pic_order_cnt_type(&mut bits)?;
        bits.read_ue()?; // max_num_ref_frames
        bits.skip(1); // gaps_in_frame_num_value_allowed_flag
        let (width, height) = (bits.read_ue()?.checked_add(1)?, bits.read_ue()?.checked_add(1)?);
        let is_progressive = bits.read_flag()?;
        let macroblock_count = width.checked_mul(height).filter(|count| *count <= MAX_MACROBLOCKS)?;
        (is_progressive && (poc_lsb_bits.is_some() || is_decode_order)).then_some((
            id,
            Self {
                frame_num_bits,
                poc_lsb_bits,
                macroblock_count,
                has_chroma: chroma_array_type != 0,
                separate_planes,
            },
        ))
    }
}

impl PictureParams {
    /// Returns the ID too.
    fn parse(rbsp: &[u8]) -> Option<(u32, Self)> {
        let mut bits = BitReader::new(rbsp);
        let id = bits.read_ue().filter(|id| *id <= 255)?;
        let sps_id = bits.read_ue()?;
        let has_cabac = bits.read_flag()?;
        let has_bottom_field_order = bits.read_flag()?;
        bits.read_ue().filter(|groups| *groups == 0)?; // num_slice_groups_minus1
        bits.read_ue()?; // num_ref_idx_l0_default_active_minus1
        bits.read_ue()?; // num_ref_idx_l1_default_active_minus1
        let has_weighted_prediction = bits.read_flag()?;
        bits.skip(2); // weighted_bipred_idc
        let initial_qp = 26 + bits.read_signed_exp_golomb()?;
        bits.read_signed_exp_golomb()?; // pic_init_qs_minus26
        bits.read_signed_exp_golomb()?; // chroma_qp_index_offset
        let has_deblocking_control = bits.read_flag()?;
        bits.skip(1); // constrained_intra_pred_flag
        let has_redundant_count = bits.read_flag()?;
        Some((
            id,
            Self {
                sps_id,
                has_cabac,
                has_bottom_field_order,
                has_weighted_prediction,
                initial_qp,
                has_deblocking_control,
                has_redundant_count,
            },
        ))
    }
}

/// Makes a NAL unit, with emulation prevention bytes (ITU-T H.264 §7.4.1).
pub(super) fn build_nal_unit_from_rbsp(header: &[u8], rbsp: &[u8]) -> Bytes {
    let mut nal = header.to_vec();
    let mut zeros = 0;
    for byte in rbsp {
        if zeros >= 2 && *byte <= 3 {
            nal.push(3);
            zeros = 0;
        }
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        nal.push(*byte);
    }
    nal.into()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::media::ffmpeg_clip::make_h264_clip;
    use crate::media::packetizer::split_annex_b;

    /// Frames of a test pattern as access units, each with a delimiter first.
    fn encode(folder: &std::path::Path, options: &[&str]) -> Vec<Vec<Bytes>> {
        const CLIP: &str = "clip.h264";
        let options = [&["-bf", "0", "-g", "30"], options, &[CLIP]].concat();
        make_h264_clip(folder, &["testsrc2=size=320x180:rate=25"], &options);
        let bytes = Bytes::from(std::fs::read(folder.join(CLIP)).expect("a file"));
        let mut units: Vec<Vec<Bytes>> = Vec::new();
        for nal in split_annex_b(&bytes).expect("start codes") {
            if nal[0] & 0x1f == 9 {
                units.push(Vec::new());
            } else {
                units.last_mut().expect("a delimiter first").push(nal);
            }
        }
        units
    }

    /// Checksums of the decoded frames.
    fn decode(folder: &std::path::Path, units: &[Vec<Bytes>]) -> Vec<String> {
        let path = folder.join("decoded.h264");
        let mut bytes = Vec::new();
        for unit in units {
            bytes.extend([0, 0, 0, 1, 9, 0xf0]);
            unit.iter()
                .for_each(|nal| bytes.extend([&[0, 0, 0, 1][..], nal].concat()));
        }
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
        assert!(!errors.contains("error"), "{errors}");
        let sums = text.lines().filter(|line| !line.starts_with('#'));
        sums.map(|line| line.rsplit(',').next().expect("a sum").trim().to_owned())
            .collect()
    }

    /// Decoders show the frame before again, and what follows as without.
    #[test]
    fn a_repeated_frame_is_that_before() {
        let folder = std::env::temp_dir().join(format!("millstream-repeat-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        for options in [
            &["-profile:v", "baseline", "-x264-params", "aud=1"][..],
            &["-profile:v", "main", "-x264-params", "aud=1:weightp=2:ref=3"],
            &["-profile:v", "high", "-x264-params", "aud=1:slices=4"],
            &["-profile:v", "high", "-x264-params", "aud=1:qp=40:no-deblock=1"],
            &[
                "-profile:v",
                "main",
                "-preset",
                "ultrafast",
                "-tune",
                "zerolatency",
                "-x264-params",
                "aud=1:cabac=1",
            ],
        ] {
            let units = encode(&folder, options);
            assert_eq!(units.len(), 50);
            let (mut repeater, mut with, mut repeats) = (H264FrameRepeater::default(), Vec::new(), Vec::new());
            for (index, unit) in units.iter().enumerate() {
                repeater.observe_frame(unit);
                let count = if index % 7 == 3 || index == 0 { 5 } else { 0 };
                with.push(unit.clone());
                repeats.push(1 + count);
                for _ in 0..count {
                    with.push(vec![repeater.build_repeated_frame().expect("progressive video")]);
                }
            }
            let expected = decode(&folder, &units);
            let expected = expected
                .iter()
                .zip(repeats)
                .flat_map(|(sum, count)| std::iter::repeat_n(sum, count));
            let found = decode(&folder, &with);
            assert!(expected.eq(found.iter()), "{options:?}: {found:?}");
        }
        let _ = std::fs::remove_dir_all(&folder);
    }

    #[test]
    fn nothing_is_repeated_without_parameter_sets_or_a_frame() {
        let mut repeater = H264FrameRepeater::default();
        assert_eq!(repeater.build_repeated_frame(), None);
        for length in 0..8 {
            let nal = |header: u8| Bytes::from([&[header][..], &vec![0x88; length]].concat());
            repeater.observe_frame(&[nal(0x67), nal(0x68), nal(0x65)]);
            assert_eq!(repeater.build_repeated_frame(), None);
        }
    }
}
