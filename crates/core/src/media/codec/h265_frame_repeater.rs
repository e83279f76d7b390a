//! Repeats a frame of H.265: a picture of nothing but skipped coding units (ITU-T H.265 §7.3.8.5), which decoders show like
//! the one before.
//!
//! No other picture refers to the repeated one, and the decoder keeps what it had, so that what follows is decoded as
//! without it. Its picture order count is far ahead, where no other picture has it yet: streams that show pictures in the
//! order of decoding, which others are not repeated, are not affected by it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bit_writer::BitWriter;
use super::cabac_encoder::{CabacContext, CabacEncoder};
use super::h264_frame_repeater::build_nal_unit_from_rbsp;
use super::h265_repeater_params::{FirstSlice, PictureParams, SequenceParams};

/// Repeats the frames of one stream.
#[derive(Debug, Default)]
pub(super) struct H265FrameRepeater {
    sequence_params: BTreeMap<u32, SequenceParams>,
    picture_params: BTreeMap<u32, PictureParams>,
    last_frame: Option<LastFrame>,
    /// Repetitions of the last frame so far.
    repetition_count: u32,
}

#[derive(Debug)]
struct LastFrame {
    slice: FirstSlice,
    is_reference: bool,
}

/// `TRAIL_N`: a picture that no other refers to (ITU-T H.265 table 7-1).
const NON_REFERENCE_NAL_HEADER: [u8; 2] = [0, 1];

/// Initialization of P slices: `split_cu_flag`, `cu_transquant_bypass_flag` and `cu_skip_flag` (tables 9-7, 9-8 and 9-10).
const SPLIT_CU_FLAG_INIT: [u8; 3] = [107, 139, 126];
const TRANSQUANT_BYPASS_FLAG_INIT: u8 = 154;
const SKIP_FLAG_INIT: [u8; 3] = [197, 185, 201];

impl H265FrameRepeater {
    /// Records a frame, given as NAL units without start codes.
    pub(super) fn observe_frame(&mut self, nals: &[Bytes]) {
        let mut frame = None;
        for nal in nals {
            let Some((&[header, second], body)) = nal.split_first_chunk::<2>() else {
                continue;
            };
            let is_base_layer = header & 1 == 0 && second >> 3 == 0;
            match header >> 1 & 0x3f {
                33 => {
                    if let Some((id, params)) = SequenceParams::parse(body) {
                        self.sequence_params.insert(id, params);
                    }
                }
                34 => {
                    if let Some((id, params)) = PictureParams::parse(body) {
                        self.picture_params.insert(id, params);
                    }
                }
                nal_type @ 0..=31 if frame.is_none() && is_base_layer => {
                    let slice = FirstSlice::parse(nal_type, body, |pps_id| {
                        let (picture, sequence) = self.params(pps_id)?;
                        Some((*picture, sequence.clone()))
                    });
                    // The types of the lower half alternate: others refer to the odd ones.
                    let is_reference = nal_type >= 16 || nal_type % 2 == 1;
                    frame = slice.map(|slice| LastFrame { slice, is_reference });
                }
                _ => {}
            }
        }
        self.last_frame = frame;
        self.repetition_count = 0;
    }

    fn params(&self, pps_id: u32) -> Option<(&PictureParams, &SequenceParams)> {
        let picture = self.picture_params.get(&pps_id)?;
        Some((picture, self.sequence_params.get(&picture.sps_id)?))
    }

    /// Returns the NAL units that repeat the last frame; `None` if that cannot be done, such as after a picture that no
    /// other refers to.
    pub(super) fn build_repeated_frame(&mut self) -> Option<Vec<Bytes>> {
        let last = self.last_frame.as_ref().filter(|last| last.is_reference)?;
        let (picture, sequence) = self.params(last.slice.pps_id)?;
        // With wavefronts each row begins with bytes of its own: here it is a slice of its own.
        let tree_size = 1 << sequence.log2_tree_block;
        let columns = sequence.width.div_ceil(tree_size);
        let rows = sequence.height.div_ceil(tree_size);
        let rows_of_slice = if picture.has_wavefronts { 1 } else { rows };
        let poc_distance = poc_distance(sequence.poc_lsb_bits, self.repetition_count);
        let mut nals = Vec::new();
        let units = |size: u32| size.div_ceil(1 << sequence.log2_min_block) as usize;
        // A slice reads none but those that it has written.
        let mut depths = vec![0; units(sequence.width) * units(sequence.height)];
        for first_row in (0..rows).step_by(rows_of_slice as usize) {
            let mut bits = BitWriter::default();
            let address = first_row * columns;
            write_slice_header(&mut bits, (picture, sequence), &last.slice, poc_distance, address);
            let area = SliceArea {
                first_row,
                end_row: first_row + rows_of_slice,
                columns,
            };
            write_skipped_tree_blocks(&mut bits, (picture, sequence), &area, &mut depths);
            bits.align_with_zeros();
            nals.push(build_nal_unit_from_rbsp(&NON_REFERENCE_NAL_HEADER, bits.bytes()));
        }
        self.repetition_count = self.repetition_count.wrapping_add(1);
        Some(nals)
    }
}

/// Distance of the picture order count from that of the last frame. Two repetitions in a row have different ones.
fn poc_distance(lsb_bits: u32, repetition: u32) -> i32 {
    let quarter = 1 << (lsb_bits - 2);
    quarter + (repetition % quarter as u32) as i32
}

/// ITU-T H.265 §7.3.6.1.
fn write_slice_header(
    bits: &mut BitWriter,
    (picture, sequence): (&PictureParams, &SequenceParams),
    last: &FirstSlice,
    poc_distance: i32,
    address: u32,
) {
    bits.write_bits(u32::from(address == 0), 1); // first_slice_segment_in_pic_flag
    bits.write_ue(last.pps_id);
    if address > 0 {
        if picture.has_dependent_slices {
            bits.write_bits(0, 1); // dependent_slice_segment_flag
        }
        let tree_size = 1 << sequence.log2_tree_block;
        let count = sequence.width.div_ceil(tree_size) * sequence.height.div_ceil(tree_size);
        bits.write_bits(address, u32::BITS - (count - 1).leading_zeros());
    }
    bits.write_bits(0, picture.extra_slice_header_bits as u32);
    bits.write_ue(1); // slice_type: P
    if picture.has_output_flag {
        bits.write_bits(1, 1); // pic_output_flag
    }
    let poc_lsb = last.poc_lsb.wrapping_add_signed(poc_distance) & ((1 << sequence.poc_lsb_bits) - 1);
    bits.write_bits(poc_lsb, sequence.poc_lsb_bits);
    write_references(bits, sequence, last, poc_distance);
    if let Some(listed) = sequence.long_term_references {
        if listed > 0 {
            bits.write_ue(0); // num_long_term_sps
        }
        bits.write_ue(0); // num_long_term_pics
    }
    if sequence.has_temporal_motion {
        bits.write_bits(0, 1); // slice_temporal_mvp_enabled_flag
    }
    if sequence.has_sample_adaptive_offset {
        bits.write_bits(0, if sequence.has_chroma { 2 } else { 1 }); // slice_sao_luma_flag, slice_sao_chroma_flag
    }
    bits.write_bits(1, 1); // num_ref_idx_active_override_flag
    bits.write_ue(0); // num_ref_idx_l0_active_minus1
    if picture.has_cabac_init {
        bits.write_bits(0, 1); // cabac_init_flag
    }
    if picture.has_weighted_prediction {
        bits.write_ue(0); // luma_log2_weight_denom
        if sequence.has_chroma {
            bits.write_ue(0); // delta_chroma_log2_weight_denom
        }
        bits.write_bits(0, if sequence.has_chroma { 2 } else { 1 }); // luma_weight_l0_flag, chroma_weight_l0_flag
    }
    bits.write_ue(4); // five_minus_max_num_merge_cand: one candidate
    bits.write_ue(0); // slice_qp_delta
    if picture.has_chroma_qp_offsets {
        bits.write_ue(0); // slice_cb_qp_offset
        bits.write_ue(0); // slice_cr_qp_offset
    }
    if picture.has_deblocking_override {
        bits.write_bits(0, 1); // deblocking_filter_override_flag
    }
    if picture.filters_across_slices && !picture.disables_deblocking {
        bits.write_bits(0, 1); // slice_loop_filter_across_slices_enabled_flag
    }
    if picture.has_wavefronts {
        bits.write_ue(0); // num_entry_point_offsets
    }
    if picture.has_slice_header_extension {
        bits.write_ue(0); // slice_segment_header_extension_length
    }
    bits.write_bits(1, 1);
    bits.align_with_zeros();
}

/// Writes a reference picture set of the slice (§7.3.7): the last frame, which is used, and what it kept.
fn write_references(bits: &mut BitWriter, sequence: &SequenceParams, last: &FirstSlice, poc_distance: i32) {
    bits.write_bits(0, 1); // short_term_ref_pic_set_sps_flag
    if !sequence.reference_sets.is_empty() {
        bits.write_bits(0, 1); // inter_ref_pic_set_prediction_flag
    }
    let kept = last.references.negative.iter().map(|distance| distance - poc_distance);
    let capacity = sequence.max_dec_pic_buffering.saturating_sub(1).max(1);
    let distances: Vec<i32> = std::iter::once(-poc_distance).chain(kept).take(capacity).collect();
    bits.write_ue(distances.len() as u32); // num_negative_pics
    bits.write_ue(0); // num_positive_pics
    let mut before = 0;
    for (index, distance) in distances.into_iter().enumerate() {
        bits.write_ue((before - distance - 1).unsigned_abs()); // delta_poc_s0_minus1
        bits.write_bits(u32::from(index == 0), 1); // used_by_curr_pic_s0_flag
        before = distance;
    }
}

/// The rows of tree blocks of a slice.
struct SliceArea {
    first_row: u32,
    end_row: u32,
    columns: u32,
}

/// Writes skipped coding units, as large as they can be.
struct SkippedBlocks<'a> {
    encoder: CabacEncoder<'a>,
    split: [CabacContext; 3],
    bypass: Option<CabacContext>,
    skip: [CabacContext; 3],
    width: u32,
    height: u32,
    log2_min_block: u32,
    /// First row of pixels of the slice.
    top: u32,
    /// Depths of the coding units, in units of the smallest.
    depths: &'a mut [u8],
}

fn write_skipped_tree_blocks(
    bits: &mut BitWriter,
    (picture, sequence): (&PictureParams, &SequenceParams),
    area: &SliceArea,
    depths: &mut [u8],
) {
    let context = |value: u8| {
        let (slope, offset) = (i64::from(value >> 4) * 5 - 45, (i64::from(value & 15) << 3) - 16);
        CabacContext::new(slope, offset, picture.initial_qp)
    };
    let mut blocks = SkippedBlocks {
        encoder: CabacEncoder::new(bits),
        split: SPLIT_CU_FLAG_INIT.map(context),
        bypass: picture
            .has_transquant_bypass
            .then(|| context(TRANSQUANT_BYPASS_FLAG_INIT)),
        skip: SKIP_FLAG_INIT.map(context),
        width: sequence.width,
        height: sequence.height,
        log2_min_block: sequence.log2_min_block,
        top: area.first_row << sequence.log2_tree_block,
        depths,
    };
    for row in area.first_row..area.end_row {
        for column in 0..area.columns {
            let (x, y) = (column << sequence.log2_tree_block, row << sequence.log2_tree_block);
            blocks.write_quadtree(x, y, sequence.log2_tree_block, 0);
            let is_end = row + 1 == area.end_row && column + 1 == area.columns;
            blocks.encoder.encode_end_of_slice(is_end);
        }
    }
}

impl SkippedBlocks<'_> {
    /// ITU-T H.265 §7.3.8.4: blocks that reach beyond the picture are split.
    fn write_quadtree(&mut self, x: u32, y: u32, log2_size: u32, depth: u8) {
        let size = 1 << log2_size;
        let is_inside = x + size <= self.width && y + size <= self.height;
        let can_split = log2_size > self.log2_min_block;
        if is_inside && can_split {
            let deeper = [self.depth_at_left(x, y), self.depth_above(x, y)];
            let context = deeper
                .into_iter()
                .flatten()
                .filter(|neighbour| *neighbour > depth)
                .count();
            if let Some(context) = self.split.get_mut(context) {
                self.encoder.encode(context, false);
            }
        }
        if is_inside || !can_split {
            return self.write_coding_unit(x, y, log2_size, depth);
        }
        let half = size / 2;
        for (x, y) in [(x, y), (x + half, y), (x, y + half), (x + half, y + half)] {
            if x < self.width && y < self.height {
                self.write_quadtree(x, y, log2_size - 1, depth + 1);
            }
        }
    }

    fn write_coding_unit(&mut self, x: u32, y: u32, log2_size: u32, depth: u8) {
        if let Some(context) = &mut self.bypass {
            self.encoder.encode(context, false);
        }
        let neighbours = [self.depth_at_left(x, y), self.depth_above(x, y)];
        if let Some(context) = self.skip.get_mut(neighbours.into_iter().flatten().count()) {
            self.encoder.encode(context, true);
        }
        let columns = self.columns();
        let (first_x, first_y) = (x >> self.log2_min_block, y >> self.log2_min_block);
        let count = 1 << (log2_size - self.log2_min_block);
        for row in first_y..first_y + count {
            let start = row as usize * columns + first_x as usize;
            if let Some(depths) = self.depths.get_mut(start..start + count as usize) {
                depths.fill(depth);
            }
        }
    }

    fn columns(&self) -> usize {
        self.width.div_ceil(1 << self.log2_min_block) as usize
    }

    fn depth_at_left(&self, x: u32, y: u32) -> Option<u8> {
        self.depth_at(x.checked_sub(1)?, y)
    }

    /// `None` above the slice.
    fn depth_above(&self, x: u32, y: u32) -> Option<u8> {
        self.depth_at(x, y.checked_sub(1).filter(|above| *above >= self.top)?)
    }

    fn depth_at(&self, x: u32, y: u32) -> Option<u8> {
        let index = (y >> self.log2_min_block) as usize * self.columns() + (x >> self.log2_min_block) as usize;
        self.depths.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame_repeater::tests::{decode_annex_b, encode_annex_b};
    use super::*;

    /// Decoders show the frame before again, and what follows as without.
    #[test]
    fn a_repeated_frame_is_that_before() {
        for (name, options) in [
            ("plain", "wpp=0:bframes=0"),
            ("wavefronts", "wpp=1:bframes=0:ref=4"),
            ("small", "wpp=0:bframes=0:ctu=16:min-cu-size=16:weightp=0"),
            ("unfiltered", "wpp=0:bframes=0:sao=0:deblock=0"),
            ("lossless", "wpp=0:bframes=0:cu-lossless=1:scaling-list=default"),
            ("no-temporal-motion", "wpp=0:bframes=0:temporal-mvp=0:qp=40"),
        ] {
            let options = format!("log-level=none:aud=1:keyint=30:{options}");
            let units = encode_annex_b(&format!("h265-{name}"), &["-c:v", "libx265", "-x265-params", &options]);
            assert_eq!(units.len(), 50, "{name}");
            let (mut repeater, mut with, mut repeats) = (H265FrameRepeater::default(), Vec::new(), Vec::new());
            for (index, unit) in units.iter().enumerate() {
                repeater.observe_frame(unit);
                let count = if index % 7 == 3 || index == 0 { 5 } else { 0 };
                with.push(unit.clone());
                repeats.push(1 + count);
                for _ in 0..count {
                    with.push(repeater.build_repeated_frame().expect("it can be repeated"));
                }
            }
            let expected: Vec<String> = decode_annex_b(&format!("h265-{name}"), &units)
                .into_iter()
                .zip(repeats)
                .flat_map(|(sum, count)| std::iter::repeat_n(sum, count))
                .collect();
            assert_eq!(decode_annex_b(&format!("h265-{name}"), &with), expected, "{name}");
        }
    }

    #[test]
    fn reordered_frames_and_unknown_streams_are_not_repeated() {
        let units = encode_annex_b(
            "h265-b",
            &["-c:v", "libx265", "-x265-params", "log-level=none:aud=1:bframes=3"],
        );
        let mut repeater = H265FrameRepeater::default();
        for unit in &units {
            repeater.observe_frame(unit);
            assert_eq!(repeater.build_repeated_frame(), None);
        }
        for length in 0..40 {
            let nal = |header: u8| Bytes::from([&[header, 1][..], &vec![0x88; length]].concat());
            repeater.observe_frame(&[nal(0x42), nal(0x44), nal(0x26), nal(0x02)]);
            assert_eq!(repeater.build_repeated_frame(), None);
        }
    }
}
