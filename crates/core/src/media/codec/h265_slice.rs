//! Slice headers of H.265, as far as the picture order needs them (ITU-T H.265 §7.3.6.1), and what of it is in the parameter
//! sets.

use super::bit_reader::{BitReader, remove_emulation_prevention};

/// What a sequence parameter set says of the order of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct H265PictureOrderParams {
    pub(super) separate_planes: bool,
    /// Length of `slice_pic_order_cnt_lsb` in bits.
    pub(super) poc_lsb_bits: u32,
    /// `sps_max_num_reorder_pics` of the highest sub-layer.
    pub(super) max_num_reorder_pics: u32,
}

impl H265PictureOrderParams {
    /// Reads the fields behind the cropping of a sequence parameter set.
    pub(super) fn read(bits: &mut BitReader<'_>, separate_planes: bool, sub_layers: u8) -> Option<Self> {
        bits.read_ue()?; // bit_depth_luma_minus8
        bits.read_ue()?; // bit_depth_chroma_minus8
        let lsb_bits = bits.read_ue().filter(|bits| *bits <= 12)? + 4;
        let first = if bits.read_flag()? { 0 } else { sub_layers };
        let mut max_reorder = 0;
        for _ in first..=sub_layers {
            bits.read_ue()?; // sps_max_dec_pic_buffering_minus1
            max_reorder = bits.read_ue()?;
            bits.read_ue()?; // sps_max_latency_increase_plus1
        }
        Some(Self {
            separate_planes,
            poc_lsb_bits: lsb_bits,
            max_num_reorder_pics: max_reorder,
        })
    }
}

/// The needed fields of a picture parameter set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PpsSliceHeaderFields {
    pub(super) sps_id: u8,
    has_output_flag: bool,
    num_extra_slice_header_bits: u8,
}

impl PpsSliceHeaderFields {
    /// Reads the fields behind the IDs.
    pub(super) fn read(bits: &mut BitReader<'_>, sps: u8) -> Option<Self> {
        bits.skip(1); // dependent_slice_segments_enabled_flag
        Some(Self {
            sps_id: sps,
            has_output_flag: bits.read_flag()?,
            num_extra_slice_header_bits: bits.read_bits_u8(3)?,
        })
    }
}

/// Maximum number of bytes of a slice that are read.
const MAX_SLICE_HEADER_LENGTH: usize = 32;

/// The header of the first slice of a picture.
pub(super) struct H265SliceHeaderParser {
    bytes: Vec<u8>,
    nal_type: u8,
}

impl H265SliceHeaderParser {
    /// `body` follows the NAL unit header; `None` if the slice is not the first one.
    pub(super) fn new(nal_type: u8, body: &[u8]) -> Option<Self> {
        body.first().filter(|first| **first & 0x80 != 0)?;
        let body = body.get(..MAX_SLICE_HEADER_LENGTH).unwrap_or(body);
        Some(Self {
            bytes: remove_emulation_prevention(body),
            nal_type,
        })
    }

    /// Whether the picture is an IDR picture, which restarts the order.
    pub(super) fn is_idr(&self) -> bool {
        matches!(self.nal_type, 19 | 20)
    }

    pub(super) fn pps_id(&self) -> Option<u32> {
        self.read_pps_id(&mut BitReader::new(&self.bytes))
    }

    fn read_pps_id(&self, bits: &mut BitReader<'_>) -> Option<u32> {
        bits.skip(1); // first_slice_segment_in_pic_flag
        if (16..=23).contains(&self.nal_type) {
            bits.skip(1); // no_output_of_prior_pics_flag
        }
        bits.read_ue()
    }

    /// Returns `slice_pic_order_cnt_lsb` and the modulus of the counter.
    pub(super) fn parse_pic_order_cnt_lsb(
        &self,
        slice: &PpsSliceHeaderFields,
        order: &H265PictureOrderParams,
    ) -> Option<(u32, u32)> {
        let modulus = 1 << order.poc_lsb_bits;
        if self.is_idr() {
            return Some((0, modulus));
        }
        let mut bits = BitReader::new(&self.bytes);
        self.read_pps_id(&mut bits)?;
        bits.skip(usize::from(slice.num_extra_slice_header_bits));
        bits.read_ue()?; // slice_type
        if slice.has_output_flag {
            bits.skip(1); // pic_output_flag
        }
        if order.separate_planes {
            bits.skip(2); // colour_plane_id
        }
        Some((bits.read_bits(order.poc_lsb_bits)?, modulus))
    }
}
