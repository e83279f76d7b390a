//! H.264 over RTP (RFC 6184) in packetization modes 0 and 1: single NAL units, STAP-A and FU-A.
//!
//! A key frame is an IDR picture with its SPS and PPS. Streams with gradual refresh (recovery points without IDR) have
//! none. Fragmented parameter sets are not supported; at 10 to 100 bytes they do not occur.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bits::{BitReader, cropped, rbsp};
use super::finding::Finding;
use super::h264_slice::{self, OrderRules, SliceHeader};
use super::order::PictureOrder;
use super::parameter_sets::{PacketContents, ParameterSets, SetId, SetKind, SetKinds, aggregated, pack};
use crate::media::{Format, ProfileLevelId};

const NON_IDR: u8 = 1;
const IDR: u8 = 5;
const SPS: u8 = 7;
const PPS: u8 = 8;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// Highest IDs (ITU-T H.264 §7.4.2.1.1, §7.4.2.2).
const MAX_SPS_ID: u32 = 31;
const MAX_PPS_ID: u32 = 255;

/// State of one stream.
pub(super) struct Stream {
    sets: ParameterSets,
    /// What the sequence parameter sets say of the order of pictures, and which of them each picture parameter set refers to.
    rules: BTreeMap<u8, OrderRules>,
    references: BTreeMap<u8, u8>,
    order: PictureOrder,
}

impl Stream {
    pub(super) fn new() -> Self {
        Self {
            sets: ParameterSets::new(SetKinds::of(&[SetKind::Sps, SetKind::Pps])),
            rules: BTreeMap::new(),
            references: BTreeMap::new(),
            order: PictureOrder::default(),
        }
    }

    /// Whether pictures are sent in another order than they are shown.
    pub(super) fn is_reordered(&self) -> bool {
        self.order.is_reordered()
    }

    pub(super) fn inspect(&mut self, time: u32, payload: &[u8]) -> Finding {
        let mut finding = Finding::default();
        let mut contents = PacketContents::default();
        match payload {
            [header, rest @ ..] if header & 0x1f == STAP_A => {
                aggregated(rest).for_each(|nal| self.nal(Some(time), nal, &mut contents, &mut finding));
            }
            // RFC 6184 §5.8: the start bit is the highest bit of the FU header, the NAL unit type is in the low bits.
            [header, fu, body @ ..] if header & 0x1f == FU_A => {
                let starts = fu & 0x80 != 0;
                contents.random_access = starts && fu & 0x1f == IDR;
                if starts {
                    self.slice(time, fu & 0x1f, body);
                }
            }
            nal => self.nal(Some(time), nal, &mut contents, &mut finding),
        }
        let verdict = self.sets.judge(time, &contents);
        finding.key_frame = verdict.key_frame;
        finding.insert = pack(&[stap_a_header(&verdict.missing)], &verdict.missing);
        finding
    }

    /// Stores a parameter set that was signalled separately.
    pub(super) fn seed(&mut self, nal: &[u8], finding: &mut Finding) {
        self.nal(None, nal, &mut PacketContents::default(), finding);
    }

    /// What follows has unrelated timestamps.
    pub(super) fn restart(&mut self) {
        self.sets.forget_units();
        self.order.restart();
    }

    fn nal(&mut self, time: Option<u32>, nal: &[u8], contents: &mut PacketContents, finding: &mut Finding) {
        let Some((header, body)) = nal.split_first() else {
            return;
        };
        if let Some(time) = time {
            self.slice(time, header & 0x9f, body);
        }
        match header & 0x9f {
            IDR => contents.random_access = true,
            SPS => {
                let Some(sps) = Sps::parse(&rbsp(body)) else {
                    return;
                };
                let id = (SetKind::Sps, sps.id);
                contents.sets.push(id);
                self.sets.store(id, None, time, nal);
                if let Some(rules) = sps.order {
                    self.rules.insert(sps.id, rules);
                }
                finding.format = Some(Format::H264 {
                    profile: sps.profile,
                    packetization_mode: 1,
                });
                finding.resolution = sps.resolution.or(finding.resolution);
            }
            PPS => {
                let Some((id, sps)) = pps_ids(body) else {
                    return;
                };
                contents.sets.push(id);
                self.sets.store(id, Some(sps), time, nal);
                self.references.insert(id.1, sps.1);
            }
            _ => {}
        }
    }
}

impl Stream {
    /// Notes the order of a picture at its first slice.
    fn slice(&mut self, time: u32, nal_type: u8, body: &[u8]) {
        if !matches!(nal_type, NON_IDR | IDR) || self.order.is_reordered() {
            return;
        }
        let header = SliceHeader::new(body, nal_type == IDR);
        let Some(start) = header.start().filter(|start| start.is_first) else {
            return;
        };
        let pps = u8::try_from(start.pps).ok();
        let sps = pps.and_then(|pps| self.references.get(&pps));
        let Some(rules) = sps.and_then(|sps| self.rules.get(sps)) else {
            return;
        };
        if rules.is_fixed || rules.max_reorder == Some(0) {
            return;
        }
        if start.is_b && rules.max_reorder.is_some() {
            self.order.observe_announced();
        } else if let Some((count, modulus)) = header.picture_order(rules) {
            self.order.observe(time, nal_type == IDR, count, modulus);
        }
    }
}

/// ID of a picture parameter set, and of the sequence parameter set that it refers to (ITU-T H.264 §7.3.2.2).
fn pps_ids(body: &[u8]) -> Option<(SetId, SetId)> {
    let mut bits = BitReader::new(body);
    let id = bits.ue().filter(|id| *id <= MAX_PPS_ID)?;
    let sps = bits.ue().filter(|id| *id <= MAX_SPS_ID)?;
    let set = |kind, id| u8::try_from(id).ok().map(|id| (kind, id));
    Some((set(SetKind::Pps, id)?, set(SetKind::Sps, sps)?))
}

/// RFC 6184 §5.7: a STAP-A has the highest NRI of its NAL units.
fn stap_a_header(nals: &[Bytes]) -> u8 {
    let nri = nals.iter().filter_map(|nal| nal.first()).map(|header| header & 0x60);
    nri.max().unwrap_or(0) | STAP_A
}

/// The needed fields of a sequence parameter set (ITU-T H.264 §7.3.2.1.1).
#[derive(Debug, PartialEq, Eq)]
struct Sps {
    id: u8,
    profile: ProfileLevelId,
    /// `None` if the size is invalid.
    resolution: Option<(u16, u16)>,
    /// `None` if it is truncated.
    order: Option<OrderRules>,
}

impl Sps {
    /// `None` if it is truncated before its ID.
    fn parse(rbsp: &[u8]) -> Option<Self> {
        let (profile, rest) = rbsp.split_first_chunk::<3>()?;
        let mut bits = BitReader::new(rest);
        let id = bits.ue().filter(|id| *id <= MAX_SPS_ID)?;
        let (resolution, order) = size_and_order(&mut bits, profile[0]).unzip();
        Some(Self {
            id: u8::try_from(id).ok()?,
            profile: ProfileLevelId(*profile),
            resolution: resolution.flatten(),
            order,
        })
    }
}

/// Width and height in pixels, if they are valid, and the rules of the picture order.
fn size_and_order(bits: &mut BitReader<'_>, profile_idc: u8) -> Option<(Option<(u16, u16)>, OrderRules)> {
    let (chroma_array_type, separate_planes) = chroma(bits, profile_idc)?;
    let frame_num_bits = bits.ue().filter(|bits| *bits <= 12)? + 4;
    let (lsb_bits, is_fixed) = picture_order(bits)?;
    bits.ue()?; // max_num_ref_frames
    bits.skip(1); // gaps_in_frame_num_value_allowed_flag
    let width_in_mbs = u64::from(bits.ue()?) + 1;
    let height_in_map_units = u64::from(bits.ue()?) + 1;
    let frame_mbs_only = bits.flag()?;
    if !frame_mbs_only {
        bits.skip(1); // mb_adaptive_frame_field_flag
    }
    bits.skip(1); // direct_8x8_inference_flag
    let mut crop = [0; 4];
    if bits.flag()? {
        for side in &mut crop {
            *side = u64::from(bits.ue()?);
        }
    }
    let [left, right, top, bottom] = crop;
    let fields = if frame_mbs_only { 1 } else { 2 };
    // Table 6-1: in 4:2:0 and 4:2:2 chroma has half the columns, in 4:2:0 half the rows.
    let crop_unit_x = if matches!(chroma_array_type, 1 | 2) { 2 } else { 1 };
    let crop_unit_y = fields * if chroma_array_type == 1 { 2 } else { 1 };
    let width = cropped(width_in_mbs * 16, crop_unit_x * (left + right));
    let height = cropped(height_in_map_units * 16 * fields, crop_unit_y * (top + bottom));
    let order = OrderRules {
        separate_planes,
        frame_num_bits,
        frame_mbs_only,
        lsb_bits,
        max_reorder: h264_slice::max_reorder(bits),
        is_fixed,
    };
    Some((width.zip(height), order))
}

/// Parses the fields that only high profiles have after the ID; returns ChromaArrayType, and whether the color planes are
/// separate.
fn chroma(bits: &mut BitReader<'_>, profile_idc: u8) -> Option<(u32, bool)> {
    if !matches!(
        profile_idc,
        100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135
    ) {
        return Some((1, false));
    }
    let chroma_format_idc = bits.ue().filter(|idc| *idc <= 3)?;
    let separate_planes = chroma_format_idc == 3 && bits.flag()?;
    bits.ue()?; // bit_depth_luma_minus8
    bits.ue()?; // bit_depth_chroma_minus8
    bits.skip(1); // qpprime_y_zero_transform_bypass_flag
    if bits.flag()? {
        let lists = if chroma_format_idc == 3 { 12 } else { 8 };
        for index in 0..lists {
            if bits.flag()? {
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
        let next = (last + bits.se()?).rem_euclid(256);
        if next == 0 {
            break;
        }
        last = next;
    }
    Some(())
}

/// Returns the length of `pic_order_cnt_lsb` in bits, and whether pictures are sent in the order in which they are shown.
fn picture_order(bits: &mut BitReader<'_>) -> Option<(Option<u32>, bool)> {
    match bits.ue()? {
        0 => Some((Some(bits.ue().filter(|bits| *bits <= 12)? + 4), false)),
        1 => {
            bits.skip(1); // delta_pic_order_always_zero_flag
            bits.se()?; // offset_for_non_ref_pic
            bits.se()?; // offset_for_top_to_bottom_field
            let count = bits.ue().filter(|count| *count <= 255)?;
            for _ in 0..count {
                bits.se()?; // offset_for_ref_frame
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
        let sps = Sps::parse(&rbsp(HIGH_1080)).expect("an SPS");
        assert_eq!(sps.profile, ProfileLevelId([0x64, 0, 0x28]));
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
            let sps = Sps::parse(&rbsp(bytes)).expect("an SPS");
            assert_eq!(sps.resolution, Some(size));
        }
    }

    #[test]
    fn a_truncated_sps_never_panics_or_has_a_wrong_size() {
        for length in 0..HIGH_1080.len() {
            if let Some(sps) = Sps::parse(&rbsp(&HIGH_1080[..length])) {
                assert!(matches!(sps.resolution, None | Some((1920, 1080))), "{length}: {sps:?}");
            }
        }
    }

    #[test]
    fn absurd_sizes_are_rejected() {
        assert_eq!(cropped(16, 16), None);
        assert_eq!(cropped(16, 32), None);
        assert_eq!(cropped(1 << 33, 0), None);
    }
}
