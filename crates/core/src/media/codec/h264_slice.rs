//! Slice headers of H.264, as far as the picture order needs them (ITU-T H.264 §7.3.3), and what of it is in the sequence
//! parameter set.

use super::bit_reader::{BitReader, remove_emulation_prevention};

/// What a sequence parameter set says of the order of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct H264PictureOrderParams {
    pub(super) separate_planes: bool,
    /// Length of `frame_num` in bits.
    pub(super) frame_num_bits: u32,
    pub(super) frame_mbs_only: bool,
    /// Length of `pic_order_cnt_lsb` in bits; `None` if the order is coded otherwise.
    pub(super) poc_lsb_bits: Option<u32>,
    /// `max_num_reorder_frames`; `None` if the VUI does not say.
    pub(super) max_num_reorder_frames: Option<u32>,
    /// The order of decoding is that of output: `pic_order_cnt_type` 2.
    pub(super) output_order_is_decode_order: bool,
}

/// The start of a slice header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SliceHeaderStart {
    pub(super) is_first_slice: bool,
    pub(super) is_b_slice: bool,
    pub(super) is_i_slice: bool,
    /// All slices of the picture are I slices, as far as the type says (ITU-T H.264 table 7-6).
    pub(super) is_of_i_picture: bool,
    pub(super) pps_id: u32,
}

/// Maximum number of bytes of a slice that are read.
const MAX_SLICE_HEADER_LENGTH: usize = 32;

/// A slice whose header is being read.
pub(super) struct H264SliceHeaderParser {
    bytes: Vec<u8>,
    is_idr: bool,
}

impl H264SliceHeaderParser {
    /// `body` follows the NAL unit header.
    pub(super) fn new(body: &[u8], is_idr: bool) -> Self {
        let body = body.get(..MAX_SLICE_HEADER_LENGTH).unwrap_or(body);
        Self {
            bytes: remove_emulation_prevention(body),
            is_idr,
        }
    }

    pub(super) fn parse_slice_header_start(&self) -> Option<SliceHeaderStart> {
        Self::read_slice_header_start(&mut BitReader::new(&self.bytes))
    }

    /// Returns `pic_order_cnt_lsb` and the modulus of the counter.
    pub(super) fn parse_pic_order_cnt_lsb(&self, rules: &H264PictureOrderParams) -> Option<(u32, u32)> {
        let lsb_bits = rules.poc_lsb_bits?;
        let mut bits = BitReader::new(&self.bytes);
        Self::read_slice_header_start(&mut bits)?;
        if rules.separate_planes {
            bits.skip(2); // colour_plane_id
        }
        bits.read_bits(rules.frame_num_bits)?;
        // The second field of a frame has the order of the first, or the next.
        if !rules.frame_mbs_only && bits.read_flag()? {
            bits.skip(1); // bottom_field_flag
        }
        if self.is_idr {
            bits.read_ue()?; // idr_pic_id
        }
        Some((bits.read_bits(lsb_bits)?, 1 << lsb_bits))
    }

    /// Returns `frame_num` and the modulus of the counter.
    pub(super) fn parse_frame_num(&self, rules: &H264PictureOrderParams) -> Option<(u32, u32)> {
        let mut bits = BitReader::new(&self.bytes);
        Self::read_slice_header_start(&mut bits)?;
        if rules.separate_planes {
            bits.skip(2); // colour_plane_id
        }
        Some((bits.read_bits(rules.frame_num_bits)?, 1 << rules.frame_num_bits))
    }

    fn read_slice_header_start(bits: &mut BitReader<'_>) -> Option<SliceHeaderStart> {
        let is_first_slice = bits.read_ue()? == 0;
        let slice_type_of_picture = bits.read_ue()?;
        let slice_type = slice_type_of_picture % 5;
        Some(SliceHeaderStart {
            is_first_slice,
            is_b_slice: slice_type == 1,
            is_i_slice: slice_type == 2,
            is_of_i_picture: slice_type_of_picture == 7,
            pps_id: bits.read_ue()?,
        })
    }
}

/// Reads `max_num_reorder_frames` behind the cropping of a sequence parameter set (ITU-T H.264 annex E.1.1); `None` if the VUI
/// does not say.
pub(super) fn read_max_num_reorder_frames(bits: &mut BitReader<'_>) -> Option<u32> {
    /// `aspect_ratio_idc` of a ratio that follows.
    const EXTENDED_SAR: u32 = 255;
    if !bits.read_flag()? {
        return None;
    }
    if bits.read_flag()? && bits.read_bits(8)? == EXTENDED_SAR {
        bits.skip(32); // sar_width, sar_height
    }
    if bits.read_flag()? {
        bits.skip(1); // overscan_appropriate_flag
    }
    if bits.read_flag()? {
        bits.skip(4); // video_format, video_full_range_flag
        if bits.read_flag()? {
            bits.skip(24); // colour description
        }
    }
    if bits.read_flag()? {
        bits.read_ue()?; // chroma_sample_loc_type_top_field
        bits.read_ue()?; // chroma_sample_loc_type_bottom_field
    }
    if bits.read_flag()? {
        bits.skip(32 + 32 + 1); // timing
    }
    let nal_hrd = bits.read_flag()?;
    if nal_hrd {
        skip_hrd_parameters(bits)?;
    }
    let vcl_hrd = bits.read_flag()?;
    if vcl_hrd {
        skip_hrd_parameters(bits)?;
    }
    if nal_hrd || vcl_hrd {
        bits.skip(1); // low_delay_hrd_flag
    }
    bits.skip(1); // pic_struct_present_flag
    if !bits.read_flag()? {
        return None;
    }
    bits.skip(1); // motion_vectors_over_pic_boundaries_flag
    for _ in 0..4 {
        bits.read_ue()?; // two denominators, two lengths of motion vectors
    }
    bits.read_ue()
}

fn skip_hrd_parameters(bits: &mut BitReader<'_>) -> Option<()> {
    let count = bits.read_ue().filter(|count| *count < 32)?;
    bits.skip(8); // bit_rate_scale, cpb_size_scale
    for _ in 0..=count {
        bits.read_ue()?; // bit_rate_value_minus1
        bits.read_ue()?; // cpb_size_value_minus1
        bits.skip(1); // cbr_flag
    }
    bits.skip(20); // four lengths
    Some(())
}
