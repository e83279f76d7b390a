//! H.264 over RTP (RFC 6184) in packetization modes 0 and 1: single NAL units, STAP-A and FU-A.
//!
//! A key frame is an IDR picture with its SPS and PPS, or a recovery point where a stream has no IDR pictures (see
//! [`super::h264_recovery_point`]). Fragmented parameter sets are not supported; at 10 to 100 bytes they do not occur.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bit_reader::{BitReader, cropped_dimension, remove_emulation_prevention};
use super::h264_recovery_point::RecoveryPointTracker;
use super::h264_slice::{self, H264PictureOrderParams, H264SliceHeaderParser};
use super::inspection_findings::KeyFrameAndFormatFindings;
use super::parameter_sets::{
    PacketNalSummary, ParameterSetId, ParameterSetKind, ParameterSetKinds, ParameterSetStore, iter_aggregated_nals,
    pack_nals_into_payloads,
};
use super::poc_b_frame_detector::PocBFrameDetector;
use crate::media::{CodecFormat, ProfileLevelId};

const NAL_NON_IDR: u8 = 1;
const NAL_IDR: u8 = 5;
const NAL_SEI: u8 = 6;
const NAL_SPS: u8 = 7;
const NAL_PPS: u8 = 8;
const NAL_STAP_A: u8 = 24;
const NAL_FU_A: u8 = 28;

/// Highest IDs (ITU-T H.264 §7.4.2.1.1, §7.4.2.2).
const MAX_SPS_ID: u32 = 31;
const MAX_PPS_ID: u32 = 255;

/// State of one stream.
pub(super) struct H264Inspector {
    parameter_sets: ParameterSetStore,
    /// What the sequence parameter sets say of the order of pictures, and which of them each picture parameter set refers to.
    order_params_by_sps: BTreeMap<u8, H264PictureOrderParams>,
    sps_id_by_pps_id: BTreeMap<u8, u8>,
    b_frame_detector: PocBFrameDetector,
    frame_nums: FrameNumSequence,
    recovery_points: RecoveryPointTracker,
}

/// `frame_num` of the newest picture (ITU-T H.264 §7.4.3).
#[derive(Clone, Copy, Debug, Default)]
struct FrameNumSequence {
    newest: Option<FrameNum>,
    /// Pictures in a row that followed the one before. Encoders that do not count prove nothing.
    consecutive_count: u8,
}

#[derive(Clone, Copy, Debug)]
struct FrameNum {
    number: u32,
    modulus: u32,
    is_reference: bool,
    is_idr: bool,
}

/// Pictures in a row that followed each other, after which one that does not is a loss.
const MIN_CONSECUTIVE_FRAME_NUMS: u8 = 4;

impl H264Inspector {
    pub(super) fn new() -> Self {
        Self {
            parameter_sets: ParameterSetStore::new(ParameterSetKinds::from_kinds(&[
                ParameterSetKind::Sps,
                ParameterSetKind::Pps,
            ])),
            order_params_by_sps: BTreeMap::new(),
            sps_id_by_pps_id: BTreeMap::new(),
            b_frame_detector: PocBFrameDetector::default(),
            frame_nums: FrameNumSequence::default(),
            recovery_points: RecoveryPointTracker::default(),
        }
    }

    /// Whether a payload starts the picture after the newest one; `None` if that cannot be said.
    pub(super) fn payload_starts_next_picture(&self, payload: &[u8]) -> Option<bool> {
        let (header, body) = match payload {
            [header, fu, body @ ..] if header & 0x1f == NAL_FU_A && fu & 0x80 != 0 => (header & 0x60 | fu & 0x1f, body),
            [header, body @ ..] => (*header, body),
            [] => return None,
        };
        let is_known = self.frame_nums.consecutive_count >= MIN_CONSECUTIVE_FRAME_NUMS;
        let next = self.parse_frame_num(header, body).filter(|_| is_known)?;
        Some(self.frame_nums.newest?.is_consecutive_frame_num(next))
    }

    /// Returns the counter of a picture, if this is its first slice. `header` is that of the NAL unit.
    fn parse_frame_num(&self, header: u8, body: &[u8]) -> Option<FrameNum> {
        let nal_type = header & 0x9f;
        if !matches!(nal_type, NAL_NON_IDR | NAL_IDR) {
            return None;
        }
        let slice = H264SliceHeaderParser::new(body, nal_type == NAL_IDR);
        let start = slice.parse_slice_header_start().filter(|start| start.is_first_slice)?;
        let sps = self.sps_id_by_pps_id.get(&u8::try_from(start.pps_id).ok()?)?;
        let (number, modulus) = slice.parse_frame_num(self.order_params_by_sps.get(sps)?)?;
        Some(FrameNum {
            number,
            modulus,
            is_reference: header & 0x60 != 0,
            is_idr: nal_type == NAL_IDR,
        })
    }

    fn observe_frame_num(&mut self, header: u8, body: &[u8]) {
        let Some(next) = self.parse_frame_num(header, body) else {
            return;
        };
        let follows = self
            .frame_nums
            .newest
            .is_none_or(|newest| newest.is_consecutive_frame_num(next));
        self.frame_nums = FrameNumSequence {
            newest: Some(next),
            consecutive_count: if follows {
                self.frame_nums.consecutive_count.saturating_add(1)
            } else {
                0
            },
        };
    }

    /// Whether pictures are sent in another order than they are shown.
    pub(super) fn found_b_frames(&self) -> bool {
        self.b_frame_detector.found_b_frames()
    }

    /// Whether there are no IDR frames, but others that decoders can start with.
    pub(super) fn lacks_idr_frames(&self) -> bool {
        self.recovery_points.lacks_idr_frames()
    }

    pub(super) fn inspect_rtp_payload(&mut self, time: u32, payload: &[u8]) -> KeyFrameAndFormatFindings {
        let mut finding = KeyFrameAndFormatFindings::default();
        let mut contents = PacketNalSummary::default();
        match payload {
            [header, rest @ ..] if header & 0x1f == NAL_STAP_A => {
                iter_aggregated_nals(rest)
                    .for_each(|nal| self.inspect_nal(Some(time), nal, &mut contents, &mut finding));
            }
            // RFC 6184 §5.8: the start bit is the highest bit of the FU header, the NAL unit type is in the low bits.
            [header, fu, body @ ..] if header & 0x1f == NAL_FU_A => {
                let starts = fu & 0x80 != 0;
                if starts {
                    contents.starts_random_access_slice = self.is_random_access_slice(time, fu & 0x1f, body);
                    self.observe_frame_num(header & 0x60 | fu & 0x1f, body);
                    self.observe_picture_order(time, fu & 0x1f, body);
                }
            }
            nal => self.inspect_nal(Some(time), nal, &mut contents, &mut finding),
        }
        self.parameter_sets.increase_insertion_budget(payload.len());
        let verdict = self.parameter_sets.record_packet_and_check_key_frame(time, &contents);
        finding.identifies_key_frame = verdict.is_key_frame;
        finding.parameter_sets_to_insert = pack_nals_into_payloads(
            &[stap_a_header(&verdict.missing_parameter_sets)],
            &verdict.missing_parameter_sets,
        );
        finding
    }

    /// Stores a parameter set that was signalled separately.
    pub(super) fn store_out_of_band_parameter_set(&mut self, nal: &[u8], finding: &mut KeyFrameAndFormatFindings) {
        self.inspect_nal(None, nal, &mut PacketNalSummary::default(), finding);
    }

    /// What follows has unrelated timestamps.
    pub(super) fn on_timestamp_discontinuity(&mut self) {
        self.parameter_sets.on_timestamp_discontinuity();
        self.b_frame_detector.on_timestamp_discontinuity();
    }

    fn inspect_nal(
        &mut self,
        time: Option<u32>,
        nal: &[u8],
        contents: &mut PacketNalSummary,
        finding: &mut KeyFrameAndFormatFindings,
    ) {
        let Some((header, body)) = nal.split_first() else {
            return;
        };
        if let Some(time) = time {
            self.observe_frame_num(*header, body);
            self.observe_picture_order(time, header & 0x9f, body);
            contents.starts_random_access_slice |= self.is_random_access_slice(time, header & 0x9f, body);
        }
        match header & 0x9f {
            NAL_SPS => {
                let Some(sps) = H264Sps::parse_rbsp(&remove_emulation_prevention(body)) else {
                    return;
                };
                let id = (ParameterSetKind::Sps, sps.id);
                contents.parameter_sets.push(id);
                self.parameter_sets
                    .store_parameter_set_and_invalidate_dependents(id, None, time, nal);
                if let Some(rules) = sps.order_params {
                    self.order_params_by_sps.insert(sps.id, rules);
                }
                finding.format = Some(CodecFormat::H264 {
                    profile: sps.profile_level_id,
                    packetization_mode: 1,
                });
                finding.resolution = sps.resolution.or(finding.resolution);
            }
            NAL_PPS => {
                let Some((id, sps)) = parse_pps_ids(body) else {
                    return;
                };
                contents.parameter_sets.push(id);
                self.parameter_sets
                    .store_parameter_set_and_invalidate_dependents(id, Some(sps), time, nal);
                self.sps_id_by_pps_id.insert(id.1, sps.1);
            }
            _ => {}
        }
    }
}

impl H264Inspector {
    /// Records what a NAL unit says of random access. Returns whether it is a slice that decoders start with.
    fn is_random_access_slice(&mut self, time: u32, nal_type: u8, body: &[u8]) -> bool {
        match nal_type {
            NAL_IDR => {
                self.recovery_points.observe_idr();
                true
            }
            NAL_NON_IDR => {
                let has_parameter_set = self.recovery_points.has_sequence_parameter_set(time);
                let expects_idr_frames = self.recovery_points.expects_idr_frames();
                let starts_i_frame = (has_parameter_set || !expects_idr_frames) && {
                    let start = H264SliceHeaderParser::new(body, false).parse_slice_header_start();
                    start.is_some_and(|start| {
                        let is_i_frame = if expects_idr_frames {
                            start.is_i_slice
                        } else {
                            start.is_of_i_picture
                        };
                        start.is_first_slice && (is_i_frame || has_parameter_set && start.is_i_slice)
                    })
                };
                self.recovery_points
                    .observe_slice_and_check_random_access(time, starts_i_frame)
            }
            NAL_SEI => {
                self.recovery_points.observe_sei(time, body);
                false
            }
            NAL_SPS => {
                self.recovery_points.observe_sequence_parameter_set(time);
                false
            }
            _ => false,
        }
    }

    /// Notes the order of a picture at its first slice.
    fn observe_picture_order(&mut self, time: u32, nal_type: u8, body: &[u8]) {
        if !matches!(nal_type, NAL_NON_IDR | NAL_IDR) || self.b_frame_detector.found_b_frames() {
            return;
        }
        let header = H264SliceHeaderParser::new(body, nal_type == NAL_IDR);
        let Some(start) = header.parse_slice_header_start().filter(|start| start.is_first_slice) else {
            return;
        };
        let pps = u8::try_from(start.pps_id).ok();
        let sps = pps.and_then(|pps| self.sps_id_by_pps_id.get(&pps));
        let Some(rules) = sps.and_then(|sps| self.order_params_by_sps.get(sps)) else {
            return;
        };
        if rules.output_order_is_decode_order || rules.max_num_reorder_frames == Some(0) {
            return;
        }
        if start.is_b_slice && rules.max_num_reorder_frames.is_some() {
            self.b_frame_detector.conclude_b_frames_from_b_slice();
        } else if let Some((count, modulus)) = header.parse_pic_order_cnt_lsb(rules) {
            self.b_frame_detector
                .observe_picture(time, nal_type == NAL_IDR, count, modulus);
        }
    }
}

impl FrameNum {
    /// Whether nothing lies between a picture and the next one. It counts reference pictures: those after one have the next
    /// number.
    fn is_consecutive_frame_num(self, next: Self) -> bool {
        let expected = self.number.wrapping_add(u32::from(self.is_reference)) % self.modulus.max(1);
        next.is_idr || next.number == expected
    }
}

/// ID of a picture parameter set, and of the sequence parameter set that it refers to (ITU-T H.264 §7.3.2.2).
fn parse_pps_ids(body: &[u8]) -> Option<(ParameterSetId, ParameterSetId)> {
    let mut bits = BitReader::new(body);
    let id = bits.read_ue().filter(|id| *id <= MAX_PPS_ID)?;
    let sps = bits.read_ue().filter(|id| *id <= MAX_SPS_ID)?;
    let set = |kind, id| u8::try_from(id).ok().map(|id| (kind, id));
    Some((set(ParameterSetKind::Pps, id)?, set(ParameterSetKind::Sps, sps)?))
}

/// RFC 6184 §5.7: a STAP-A has the highest NRI of its NAL units.
fn stap_a_header(nals: &[Bytes]) -> u8 {
    let nri = nals.iter().filter_map(|nal| nal.first()).map(|header| header & 0x60);
    nri.max().unwrap_or(0) | NAL_STAP_A
}

/// The needed fields of a sequence parameter set (ITU-T H.264 §7.3.2.1.1).
#[derive(Debug, PartialEq, Eq)]
struct H264Sps {
    id: u8,
    profile_level_id: ProfileLevelId,
    /// `None` if the size is invalid.
    resolution: Option<(u16, u16)>,
    /// `None` if it is truncated.
    order_params: Option<H264PictureOrderParams>,
}

impl H264Sps {
    /// `None` if it is truncated before its ID.
    fn parse_rbsp(rbsp: &[u8]) -> Option<Self> {
        let (profile, rest) = rbsp.split_first_chunk::<3>()?;
        let mut bits = BitReader::new(rest);
        let id = bits.read_ue().filter(|id| *id <= MAX_SPS_ID)?;
        let (resolution, order) = parse_resolution_and_poc_params(&mut bits, profile[0]).unzip();
        Some(Self {
            id: u8::try_from(id).ok()?,
            profile_level_id: ProfileLevelId(*profile),
            resolution: resolution.flatten(),
            order_params: order,
        })
    }
}

/// Width and height in pixels, if they are valid, and the rules of the picture order.
fn parse_resolution_and_poc_params(
    bits: &mut BitReader<'_>,
    profile_idc: u8,
) -> Option<(Option<(u16, u16)>, H264PictureOrderParams)> {
    let (chroma_array_type, separate_planes) = parse_high_profile_sps_fields(bits, profile_idc)?;
    let frame_num_bits = bits.read_ue().filter(|bits| *bits <= 12)? + 4;
    let (lsb_bits, is_fixed) = parse_pic_order_cnt_type(bits)?;
    bits.read_ue()?; // max_num_ref_frames
    bits.skip(1); // gaps_in_frame_num_value_allowed_flag
    let width_in_mbs = u64::from(bits.read_ue()?) + 1;
    let height_in_map_units = u64::from(bits.read_ue()?) + 1;
    let frame_mbs_only = bits.read_flag()?;
    if !frame_mbs_only {
        bits.skip(1); // mb_adaptive_frame_field_flag
    }
    bits.skip(1); // direct_8x8_inference_flag
    let mut crop = [0; 4];
    if bits.read_flag()? {
        for side in &mut crop {
            *side = u64::from(bits.read_ue()?);
        }
    }
    let [left, right, top, bottom] = crop;
    let fields = if frame_mbs_only { 1 } else { 2 };
    // Table 6-1: in 4:2:0 and 4:2:2 chroma has half the columns, in 4:2:0 half the rows.
    let crop_unit_x = if matches!(chroma_array_type, 1 | 2) { 2 } else { 1 };
    let crop_unit_y = fields * if chroma_array_type == 1 { 2 } else { 1 };
    let width = cropped_dimension(width_in_mbs * 16, crop_unit_x * (left + right));
    let height = cropped_dimension(height_in_map_units * 16 * fields, crop_unit_y * (top + bottom));
    let order = H264PictureOrderParams {
        separate_planes,
        frame_num_bits,
        frame_mbs_only,
        poc_lsb_bits: lsb_bits,
        max_num_reorder_frames: h264_slice::read_max_num_reorder_frames(bits),
        output_order_is_decode_order: is_fixed,
    };
    Some((width.zip(height), order))
}

/// Parses the fields that only high profiles have after the ID; returns ChromaArrayType, and whether the color planes are
/// separate.
pub(super) fn parse_high_profile_sps_fields(bits: &mut BitReader<'_>, profile_idc: u8) -> Option<(u32, bool)> {
    if !matches!(
        profile_idc,
        100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135
    ) {
        return Some((1, false));
    }
    let chroma_format_idc = bits.read_ue().filter(|idc| *idc <= 3)?;
    let separate_planes = chroma_format_idc == 3 && bits.read_flag()?;
    bits.read_ue()?; // bit_depth_luma_minus8
    bits.read_ue()?; // bit_depth_chroma_minus8
    bits.skip(1); // qpprime_y_zero_transform_bypass_flag
    if bits.read_flag()? {
        let lists = if chroma_format_idc == 3 { 12 } else { 8 };
        for index in 0..lists {
            if bits.read_flag()? {
                skip_scaling_list(bits, if index < 6 { 16 } else { 64 })?;
            }
        }
    }
    Some((if separate_planes { 0 } else { chroma_format_idc }, separate_planes))
}

/// ITU-T H.264 §7.3.2.1.1.1.
fn skip_scaling_list(bits: &mut BitReader<'_>, size: usize) -> Option<()> {
    let mut last = 8;
    for _ in 0..size {
        let next = (last + bits.read_signed_exp_golomb()?).rem_euclid(256);
        if next == 0 {
            break;
        }
        last = next;
    }
    Some(())
}

/// Returns the length of `pic_order_cnt_lsb` in bits, and whether pictures are sent in the order in which they are shown.
pub(super) fn parse_pic_order_cnt_type(bits: &mut BitReader<'_>) -> Option<(Option<u32>, bool)> {
    match bits.read_ue()? {
        0 => Some((Some(bits.read_ue().filter(|bits| *bits <= 12)? + 4), false)),
        1 => {
            bits.skip(1); // delta_pic_order_always_zero_flag
            bits.read_signed_exp_golomb()?; // offset_for_non_ref_pic
            bits.read_signed_exp_golomb()?; // offset_for_top_to_bottom_field
            let count = bits.read_ue().filter(|count| *count <= 255)?;
            for _ in 0..count {
                bits.read_signed_exp_golomb()?; // offset_for_ref_frame
            }
            Some((None, false))
        }
        2 => Some((None, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x264, High 4.0, 1920x1080 with cropping and VUI.
    const HIGH_1080: &[u8] = &[
        0x64, 0x00, 0x28, 0xac, 0xd9, 0x40, 0x78, 0x02, 0x27, 0xe5, 0xc0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04, 0x00,
        0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc6, 0x58,
    ];

    #[test]
    fn cropped_high_profile_is_1080_lines() {
        let sps = H264Sps::parse_rbsp(&remove_emulation_prevention(HIGH_1080)).expect("an SPS");
        assert_eq!(sps.profile_level_id, ProfileLevelId([0x64, 0, 0x28]));
        assert_eq!(sps.resolution, Some((1920, 1080)));
    }

    /// x264, 4:2:2 interlaced, 322x186, flat scaling matrices replaced by the JVT ones.
    const INTERLACED_422: &[u8] = &[
        0x7a, 0x00, 0x15, 0xbc, 0xd9, 0x41, 0x53, 0x3c, 0x44, 0x98, 0x08, 0x80, 0x00, 0x00, 0x03, 0x00, 0x80, 0x00,
        0x00, 0x0a, 0x0f, 0x8a, 0x14, 0xcb,
    ];

    /// x264, 4:4:4, 1918x1078.
    const HIGH_444: &[u8] = &[
        0xf4, 0x00, 0x28, 0x91, 0x9b, 0x28, 0x0f, 0x00, 0x44, 0xf7, 0x17, 0x80, 0x88, 0x00, 0x00, 0x03, 0x00, 0x08,
        0x00, 0x00, 0x03, 0x00, 0xa0, 0x78, 0xc1, 0x8c, 0xb0,
    ];

    #[test]
    fn cropping_counts_in_units_of_chroma_and_fields() {
        for (bytes, size) in [(INTERLACED_422, (322, 186)), (HIGH_444, (1918, 1078))] {
            let sps = H264Sps::parse_rbsp(&remove_emulation_prevention(bytes)).expect("an SPS");
            assert_eq!(sps.resolution, Some(size));
        }
    }

    #[test]
    fn a_truncated_sps_never_panics_or_has_a_wrong_size() {
        for length in 0..HIGH_1080.len() {
            if let Some(sps) = H264Sps::parse_rbsp(&remove_emulation_prevention(&HIGH_1080[..length])) {
                assert!(matches!(sps.resolution, None | Some((1920, 1080))), "{length}: {sps:?}");
            }
        }
    }

    #[test]
    fn absurd_sizes_are_rejected() {
        assert_eq!(cropped_dimension(16, 16), None);
        assert_eq!(cropped_dimension(16, 32), None);
        assert_eq!(cropped_dimension(1 << 33, 0), None);
    }
}
