//! What the parameter sets and slice headers of H.265 say that is needed to repeat a frame (ITU-T H.265 §7.3.2, §7.3.6.1).

use super::bit_reader::{BitReader, remove_emulation_prevention};

/// Maximum number of reference pictures, of sets of them, and of pixels in each direction.
const MAX_REFERENCES: u32 = 16;
const MAX_REFERENCE_SETS: u32 = 64;
const MAX_SIZE: u32 = 16_384;

/// Maximum number of pixels (`MaxLumaPs` of level 6.2, table A.8): in tree blocks of the least size as many blocks as H.264 may have.
const MAX_PIXELS: u32 = 35_651_584;

/// Sizes of tree blocks (§7.4.3.2.1).
const LOG2_TREE_BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4..=6;

/// What a sequence parameter set says.
#[derive(Clone, Debug)]
pub(super) struct SequenceParams {
    pub(super) has_chroma: bool,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) poc_lsb_bits: u32,
    pub(super) max_dec_pic_buffering: usize,
    pub(super) log2_min_block: u32,
    pub(super) log2_tree_block: u32,
    pub(super) has_sample_adaptive_offset: bool,
    pub(super) reference_sets: Vec<ReferenceSet>,
    /// Long-term references may be used, and how many the set itself lists.
    pub(super) long_term_references: Option<u32>,
    pub(super) has_temporal_motion: bool,
}

/// Distances of reference pictures from a picture, in the order in which they are coded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReferenceSet {
    pub(super) negative: Vec<i32>,
    pub(super) positive: Vec<i32>,
}

/// What a picture parameter set says.
#[derive(Clone, Copy, Debug)]
pub(super) struct PictureParams {
    pub(super) sps_id: u32,
    pub(super) has_dependent_slices: bool,
    pub(super) has_output_flag: bool,
    pub(super) extra_slice_header_bits: usize,
    pub(super) has_cabac_init: bool,
    pub(super) initial_qp: i64,
    pub(super) has_chroma_qp_offsets: bool,
    pub(super) has_weighted_prediction: bool,
    pub(super) has_transquant_bypass: bool,
    pub(super) has_wavefronts: bool,
    pub(super) filters_across_slices: bool,
    pub(super) has_deblocking_override: bool,
    pub(super) disables_deblocking: bool,
    pub(super) has_slice_header_extension: bool,
}

/// What the first slice of a picture says.
#[derive(Clone, Debug)]
pub(super) struct FirstSlice {
    pub(super) pps_id: u32,
    pub(super) poc_lsb: u32,
    pub(super) references: ReferenceSet,
}

impl SequenceParams {
    /// Parses the set without its NAL unit header. Returns its ID too; `None` for what is rarely used: reordered pictures,
    /// separate colour planes, and extensions.
    pub(super) fn parse(body: &[u8]) -> Option<(u32, Self)> {
        let rbsp = remove_emulation_prevention(body);
        let mut bits = BitReader::new(&rbsp);
        bits.skip(4); // sps_video_parameter_set_id
        let sub_layers = bits.read_bits(3).filter(|more| *more <= 6)?;
        bits.skip(1 + 88 + 8); // nesting, general profile and level
        skip_sub_layer_profiles(&mut bits, sub_layers)?;
        let id = bits.read_ue().filter(|id| *id <= 15)?;
        let chroma_format = bits.read_ue().filter(|format| *format <= 3)?;
        if chroma_format == 3 && bits.read_flag()? {
            return None; // separate_colour_plane_flag
        }
        let (width, height) = (read_size(&mut bits)?, read_size(&mut bits)?);
        if width * height > MAX_PIXELS {
            return None;
        }
        if bits.read_flag()? {
            (0..4).try_for_each(|_| bits.read_ue().map(|_| ()))?; // conformance window
        }
        bits.read_ue()?; // bit depths
        bits.read_ue()?;
        let poc_lsb_bits = bits.read_ue().filter(|bits| *bits <= 12)? + 4;
        let first = if bits.read_flag()? { 0 } else { sub_layers };
        let mut max_dec_pic_buffering = 0;
        for _ in first..=sub_layers {
            max_dec_pic_buffering = bits.read_ue().filter(|count| *count < MAX_REFERENCES)? as usize + 1;
            bits.read_ue().filter(|reordered| *reordered == 0)?;
            bits.read_ue()?; // sps_max_latency_increase_plus1
        }
        let log2_min_block = bits.read_ue().filter(|log2| *log2 <= 3)? + 3;
        let log2_tree_block = log2_min_block + bits.read_ue().filter(|more| *more <= 3)?;
        if !LOG2_TREE_BLOCK_SIZES.contains(&log2_tree_block) {
            return None;
        }
        (0..4).try_for_each(|_| bits.read_ue().map(|_| ()))?; // transform block sizes and depths
        if bits.read_flag()? && bits.read_flag()? {
            skip_scaling_lists(&mut bits)?;
        }
        bits.skip(1); // amp_enabled_flag
        let has_sample_adaptive_offset = bits.read_flag()?;
        if bits.read_flag()? {
            bits.skip(8); // PCM bit depths
            bits.read_ue()?;
            bits.read_ue()?;
            bits.skip(1); // pcm_loop_filter_disabled_flag
        }
        let set_count = bits.read_ue().filter(|count| *count <= MAX_REFERENCE_SETS)?;
        let mut reference_sets = Vec::new();
        for index in 0..set_count as usize {
            let set = ReferenceSet::read(&mut bits, index, &reference_sets, false)?;
            reference_sets.push(set);
        }
        let mut long_term_references = None;
        if bits.read_flag()? {
            let count = bits.read_ue().filter(|count| *count <= 32)?;
            bits.skip(count as usize * (poc_lsb_bits as usize + 1));
            long_term_references = Some(count);
        }
        let has_temporal_motion = bits.read_flag()?;
        Some((
            id,
            Self {
                has_chroma: chroma_format != 0,
                width,
                height,
                poc_lsb_bits,
                max_dec_pic_buffering,
                log2_min_block,
                log2_tree_block,
                has_sample_adaptive_offset,
                reference_sets,
                long_term_references,
                has_temporal_motion,
            },
        ))
    }
}

fn read_size(bits: &mut BitReader<'_>) -> Option<u32> {
    bits.read_ue().filter(|size| (1..=MAX_SIZE).contains(size))
}

fn skip_sub_layer_profiles(bits: &mut BitReader<'_>, count: u32) -> Option<()> {
    let mut length = 0;
    for _ in 0..count {
        length += if bits.read_flag()? { 88 } else { 0 };
        length += if bits.read_flag()? { 8 } else { 0 };
    }
    if count > 0 {
        bits.skip(2 * (8 - count as usize)); // reserved_zero_2bits
    }
    bits.skip(length);
    Some(())
}

/// ITU-T H.265 §7.3.4.
fn skip_scaling_lists(bits: &mut BitReader<'_>) -> Option<()> {
    for size in 0..4 {
        for _ in (0..6).step_by(if size == 3 { 3 } else { 1 }) {
            if !bits.read_flag()? {
                bits.read_ue()?; // scaling_list_pred_matrix_id_delta
                continue;
            }
            if size > 1 {
                bits.read_signed_exp_golomb()?; // scaling_list_dc_coef_minus8
            }
            for _ in 0..64.min(1 << (4 + (size << 1))) {
                bits.read_signed_exp_golomb()?;
            }
        }
    }
    Some(())
}

impl ReferenceSet {
    /// Reads a set (ITU-T H.265 §7.3.7, §7.4.8), one of the sequence or of a slice.
    fn read(bits: &mut BitReader<'_>, index: usize, before: &[Self], is_of_slice: bool) -> Option<Self> {
        if index > 0 && bits.read_flag()? {
            return Self::read_predicted(bits, before, is_of_slice);
        }
        let count = |bits: &mut BitReader<'_>| bits.read_ue().filter(|count| *count <= MAX_REFERENCES);
        let (negative, positive) = (count(bits)?, count(bits)?);
        let read = |bits: &mut BitReader<'_>, count: u32, sign: i32| {
            let mut distance = 0i32;
            (0..count)
                .map(|_| {
                    let step = i32::try_from(bits.read_ue()?).ok().filter(|step| *step < 1 << 15)?;
                    bits.skip(1); // used_by_curr_pic
                    distance += sign * (step + 1);
                    Some(distance)
                })
                .collect::<Option<Vec<i32>>>()
        };
        Some(Self {
            negative: read(bits, negative, -1)?,
            positive: read(bits, positive, 1)?,
        })
    }

    /// A set that is predicted from another one (equations 7-61 and 7-62).
    fn read_predicted(bits: &mut BitReader<'_>, before: &[Self], is_of_slice: bool) -> Option<Self> {
        let back = if is_of_slice { bits.read_ue()? as usize + 1 } else { 1 };
        let base = before.get(before.len().checked_sub(back)?)?;
        let is_negative = bits.read_flag()?;
        let step = i32::try_from(bits.read_ue()?).ok().filter(|step| *step < 1 << 15)? + 1;
        let delta = if is_negative { -step } else { step };
        let mut keeps = Vec::new();
        for _ in 0..=base.negative.len() + base.positive.len() {
            // used_by_curr_pic_flag, or else use_delta_flag
            keeps.push(bits.read_flag()? || bits.read_flag()?);
        }
        let kept = |index: usize| keeps.get(index).copied().unwrap_or(false);
        let first_positive = base.negative.len();
        let itself = keeps.len() - 1;
        let indexed_positive = || {
            base.positive
                .iter()
                .enumerate()
                .map(|(at, poc)| (first_positive + at, *poc))
        };
        let indexed_negative = || base.negative.iter().enumerate().map(|(at, poc)| (at, *poc));
        let moved = |(index, poc): (usize, i32)| kept(index).then_some(poc + delta);
        let own = || kept(itself).then_some(delta);
        let negative = indexed_positive()
            .rev()
            .filter_map(moved)
            .filter(|poc| *poc < 0)
            .chain(own().filter(|poc| *poc < 0))
            .chain(indexed_negative().filter_map(moved).filter(|poc| *poc < 0));
        let positive = indexed_negative()
            .rev()
            .filter_map(moved)
            .filter(|poc| *poc > 0)
            .chain(own().filter(|poc| *poc > 0))
            .chain(indexed_positive().filter_map(moved).filter(|poc| *poc > 0));
        let set = Self {
            negative: negative.collect(),
            positive: positive.collect(),
        };
        (set.negative.len() + set.positive.len() <= MAX_REFERENCES as usize).then_some(set)
    }
}

impl PictureParams {
    /// Parses the set without its NAL unit header. Returns its ID too; `None` for what is rarely used: tiles and extensions.
    pub(super) fn parse(body: &[u8]) -> Option<(u32, Self)> {
        let rbsp = remove_emulation_prevention(body);
        let mut bits = BitReader::new(&rbsp);
        let id = bits.read_ue().filter(|id| *id <= 63)?;
        let sps_id = bits.read_ue().filter(|id| *id <= 15)?;
        let has_dependent_slices = bits.read_flag()?;
        let has_output_flag = bits.read_flag()?;
        let extra_slice_header_bits = bits.read_bits(3)? as usize;
        bits.skip(1); // sign_data_hiding_enabled_flag
        let has_cabac_init = bits.read_flag()?;
        bits.read_ue()?; // default numbers of references
        bits.read_ue()?;
        let initial_qp = 26 + bits.read_signed_exp_golomb()?;
        bits.skip(2); // constrained_intra_pred_flag, transform_skip_enabled_flag
        if bits.read_flag()? {
            bits.read_ue()?; // diff_cu_qp_delta_depth
        }
        bits.read_signed_exp_golomb()?; // chroma QP offsets
        bits.read_signed_exp_golomb()?;
        let has_chroma_qp_offsets = bits.read_flag()?;
        let has_weighted_prediction = bits.read_flag()?;
        bits.skip(1); // weighted_bipred_flag
        let has_transquant_bypass = bits.read_flag()?;
        let (has_tiles, has_wavefronts) = (bits.read_flag()?, bits.read_flag()?);
        let filters_across_slices = bits.read_flag()?;
        let (mut has_deblocking_override, mut disables_deblocking) = (false, false);
        if bits.read_flag()? {
            (has_deblocking_override, disables_deblocking) = (bits.read_flag()?, bits.read_flag()?);
            if !disables_deblocking {
                bits.read_signed_exp_golomb()?; // beta and tc offsets
                bits.read_signed_exp_golomb()?;
            }
        }
        if bits.read_flag()? {
            skip_scaling_lists(&mut bits)?;
        }
        bits.skip(1); // lists_modification_present_flag: there is one reference
        bits.read_ue()?; // log2_parallel_merge_level_minus2
        let has_slice_header_extension = bits.read_flag()?;
        let has_extension = bits.read_flag()?;
        (!has_tiles && !has_extension).then_some((
            id,
            Self {
                sps_id,
                has_dependent_slices,
                has_output_flag,
                extra_slice_header_bits,
                has_cabac_init,
                initial_qp,
                has_chroma_qp_offsets,
                has_weighted_prediction,
                has_transquant_bypass,
                has_wavefronts,
                filters_across_slices,
                has_deblocking_override,
                disables_deblocking,
                has_slice_header_extension,
            },
        ))
    }
}

/// Maximum number of bytes of a slice that are read.
const MAX_SLICE_HEADER_BYTES: usize = 96;

impl FirstSlice {
    /// Reads a slice without its NAL unit header; `None` if it is not the first of its picture, or has long-term references.
    pub(super) fn parse(
        nal_type: u8,
        body: &[u8],
        params: impl Fn(u32) -> Option<(PictureParams, SequenceParams)>,
    ) -> Option<Self> {
        let bytes = remove_emulation_prevention(body.get(..MAX_SLICE_HEADER_BYTES).unwrap_or(body));
        let mut bits = BitReader::new(&bytes);
        if !bits.read_flag()? {
            return None; // first_slice_segment_in_pic_flag
        }
        if (16..=23).contains(&nal_type) {
            bits.skip(1); // no_output_of_prior_pics_flag
        }
        let pps_id = bits.read_ue()?;
        if matches!(nal_type, 19 | 20) {
            return Some(Self {
                pps_id,
                poc_lsb: 0,
                references: ReferenceSet::default(),
            });
        }
        let (picture, sequence) = params(pps_id)?;
        bits.skip(picture.extra_slice_header_bits);
        bits.read_ue()?; // slice_type
        if picture.has_output_flag {
            bits.skip(1); // pic_output_flag
        }
        let poc_lsb = bits.read_bits(sequence.poc_lsb_bits)?;
        let sets = &sequence.reference_sets;
        let references = if !bits.read_flag()? {
            ReferenceSet::read(&mut bits, sets.len(), sets, true)?
        } else {
            let length = usize::BITS - sets.len().saturating_sub(1).leading_zeros();
            sets.get(bits.read_bits(length)? as usize)?.clone()
        };
        if let Some(listed) = sequence.long_term_references {
            if listed > 0 {
                bits.read_ue().filter(|count| *count == 0)?;
            }
            bits.read_ue().filter(|count| *count == 0)?;
        }
        Some(Self {
            pps_id,
            poc_lsb,
            references,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::bit_writer::BitWriter;
    use super::*;

    fn sequence_parameter_set(width: u32, height: u32, log2_min_block: u32, log2_tree_block: u32) -> Vec<u8> {
        let mut bits = BitWriter::default();
        bits.write_bits(1, 8); // one sub-layer
        (0..3).for_each(|_| bits.write_bits(u32::MAX, 32)); // profile and level
        // ID, chroma format, size
        [0, 1, width, height].into_iter().for_each(|value| bits.write_ue(value));
        bits.write_bits(0, 1); // conformance_window_flag
        [0, 0, 4].into_iter().for_each(|value| bits.write_ue(value)); // bit depths and length of picture order counts
        bits.write_bits(1, 1); // sps_sub_layer_ordering_info_present_flag
        [1, 0, 0].into_iter().for_each(|value| bits.write_ue(value));
        bits.write_ue(log2_min_block - 3);
        bits.write_ue(log2_tree_block - log2_min_block);
        (0..4).for_each(|_| bits.write_ue(0)); // transform blocks
        bits.write_bits(0, 4); // scaling lists, amp_enabled_flag, SAO, PCM
        bits.write_ue(0); // num_short_term_ref_pic_sets
        bits.write_bits(0, 2); // long-term references, sps_temporal_mvp_enabled_flag
        bits.write_bits(1, 1);
        bits.align_with_zeros();
        bits.bytes().to_vec()
    }

    #[test]
    fn pictures_of_more_blocks_than_a_level_allows_are_refused() {
        let parses = |width, height, min_block, tree_block| {
            SequenceParams::parse(&sequence_parameter_set(width, height, min_block, tree_block)).is_some()
        };
        assert!(parses(1_920, 1_080, 3, 6));
        assert!(parses(8_192, 4_352, 3, 4));
        assert!(!parses(8_192, 4_360, 3, 4));
        assert!(!parses(16_384, 16_384, 3, 6));
        assert!(!parses(1_920, 1_080, 3, 3));
    }
}
