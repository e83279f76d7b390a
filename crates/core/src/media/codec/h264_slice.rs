//! Slice headers of H.264, as far as the picture order needs them (ITU-T H.264 §7.3.3), and what of it is in the sequence
//! parameter set.

use super::bits::{BitReader, rbsp};

/// What a sequence parameter set says of the order of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OrderRules {
    pub(super) separate_planes: bool,
    /// Length of `frame_num` in bits.
    pub(super) frame_num_bits: u32,
    pub(super) frame_mbs_only: bool,
    /// Length of `pic_order_cnt_lsb` in bits; `None` if the order is coded otherwise.
    pub(super) lsb_bits: Option<u32>,
    /// `max_num_reorder_frames`; `None` if the VUI does not say.
    pub(super) max_reorder: Option<u32>,
    /// The order of decoding is that of output: `pic_order_cnt_type` 2.
    pub(super) is_fixed: bool,
}

/// The start of a slice header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SliceStart {
    pub(super) is_first: bool,
    pub(super) is_b: bool,
    pub(super) pps: u32,
}

/// Maximum number of bytes of a slice that are read.
const MAX_HEADER: usize = 32;

/// A slice whose header is being read.
pub(super) struct SliceHeader {
    bytes: Vec<u8>,
    is_idr: bool,
}

impl SliceHeader {
    /// `body` follows the NAL unit header.
    pub(super) fn new(body: &[u8], is_idr: bool) -> Self {
        let body = body.get(..MAX_HEADER).unwrap_or(body);
        Self {
            bytes: rbsp(body),
            is_idr,
        }
    }

    pub(super) fn start(&self) -> Option<SliceStart> {
        Self::read_start(&mut BitReader::new(&self.bytes))
    }

    /// Returns `pic_order_cnt_lsb` and the modulus of the counter.
    pub(super) fn picture_order(&self, rules: &OrderRules) -> Option<(u32, u32)> {
        let lsb_bits = rules.lsb_bits?;
        let mut bits = BitReader::new(&self.bytes);
        Self::read_start(&mut bits)?;
        if rules.separate_planes {
            bits.skip(2); // colour_plane_id
        }
        bits.bits(rules.frame_num_bits)?;
        // The second field of a frame has the order of the first, or the next.
        if !rules.frame_mbs_only && bits.flag()? {
            bits.skip(1); // bottom_field_flag
        }
        if self.is_idr {
            bits.ue()?; // idr_pic_id
        }
        Some((bits.bits(lsb_bits)?, 1 << lsb_bits))
    }

    fn read_start(bits: &mut BitReader<'_>) -> Option<SliceStart> {
        Some(SliceStart {
            is_first: bits.ue()? == 0,
            is_b: bits.ue()? % 5 == 1,
            pps: bits.ue()?,
        })
    }
}

/// Reads `max_num_reorder_frames` behind the cropping of a sequence parameter set (ITU-T H.264 annex E.1.1); `None` if the VUI
/// does not say.
pub(super) fn max_reorder(bits: &mut BitReader<'_>) -> Option<u32> {
    /// `aspect_ratio_idc` of a ratio that follows.
    const EXTENDED: u32 = 255;
    if !bits.flag()? {
        return None;
    }
    if bits.flag()? && bits.bits(8)? == EXTENDED {
        bits.skip(32); // sar_width, sar_height
    }
    if bits.flag()? {
        bits.skip(1); // overscan_appropriate_flag
    }
    if bits.flag()? {
        bits.skip(4); // video_format, video_full_range_flag
        if bits.flag()? {
            bits.skip(24); // colour description
        }
    }
    if bits.flag()? {
        bits.ue()?; // chroma_sample_loc_type_top_field
        bits.ue()?; // chroma_sample_loc_type_bottom_field
    }
    if bits.flag()? {
        bits.skip(32 + 32 + 1); // timing
    }
    let nal_hrd = bits.flag()?;
    if nal_hrd {
        skip_hrd(bits)?;
    }
    let vcl_hrd = bits.flag()?;
    if vcl_hrd {
        skip_hrd(bits)?;
    }
    if nal_hrd || vcl_hrd {
        bits.skip(1); // low_delay_hrd_flag
    }
    bits.skip(1); // pic_struct_present_flag
    if !bits.flag()? {
        return None;
    }
    bits.skip(1); // motion_vectors_over_pic_boundaries_flag
    for _ in 0..4 {
        bits.ue()?; // two denominators, two lengths of motion vectors
    }
    bits.ue()
}

fn skip_hrd(bits: &mut BitReader<'_>) -> Option<()> {
    let count = bits.ue().filter(|count| *count < 32)?;
    bits.skip(8); // bit_rate_scale, cpb_size_scale
    for _ in 0..=count {
        bits.ue()?; // bit_rate_value_minus1
        bits.ue()?; // cpb_size_value_minus1
        bits.skip(1); // cbr_flag
    }
    bits.skip(20); // four lengths
    Some(())
}
