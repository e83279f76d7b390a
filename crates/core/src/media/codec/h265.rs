//! H.265 over RTP (RFC 7798) without decoding order numbers: single NAL units, aggregation packets and fragments.
//!
//! A key frame is a picture of an IRAP type (IDR, CRA, BLA) with its VPS, SPS and PPS, or a recovery point where a stream
//! has no IRAP pictures (see [`super::h264_recovery_point`]): encoders with intra refresh send one at most. Decoders skip the leading
//! pictures of a CRA that refer to earlier pictures (ITU-T H.265 §8.1.3).

use std::collections::BTreeMap;

use super::bit_reader::{BitReader, cropped_dimension, remove_emulation_prevention};
use super::h264_recovery_point::RecoveryPointTracker;
use super::h265_slice::{H265PictureOrderParams, H265SliceHeaderParser, PpsSliceHeaderFields};
use super::inspection_findings::KeyFrameAndFormatFindings;
use super::parameter_sets::{
    PacketNalSummary, ParameterSetId, ParameterSetKind, ParameterSetKinds, ParameterSetStore, iter_aggregated_nals,
    pack_nals_into_payloads,
};
use super::poc_b_frame_detector::PocBFrameDetector;
use crate::media::CodecFormat;

const NAL_VPS: u8 = 32;
const NAL_SPS: u8 = 33;
const NAL_PPS: u8 = 34;
const NAL_PREFIX_SEI: u8 = 39;
const NAL_AP: u8 = 48;
const NAL_FU: u8 = 49;

/// Payload header of generated aggregation packets: layer 0, temporal ID plus one 1 (RFC 7798 §4.4.2).
const AP_PAYLOAD_HEADER: [u8; 2] = [NAL_AP << 1, 1];

/// Highest IDs (ITU-T H.265 §7.4.3.2.1, §7.4.3.3.1).
const MAX_SPS_ID: u32 = 15;
const MAX_PPS_ID: u32 = 63;

/// State of one stream.
pub(super) struct H265Inspector {
    parameter_sets: ParameterSetStore,
    /// What the sequence and picture parameter sets say of the order of pictures.
    order_params_by_sps: BTreeMap<u8, H265PictureOrderParams>,
    slice_params_by_pps: BTreeMap<u8, PpsSliceHeaderFields>,
    b_frame_detector: PocBFrameDetector,
    recovery_points: RecoveryPointTracker,
}

impl H265Inspector {
    pub(super) fn new() -> Self {
        Self {
            parameter_sets: ParameterSetStore::new(ParameterSetKinds::from_kinds(&[
                ParameterSetKind::Vps,
                ParameterSetKind::Sps,
                ParameterSetKind::Pps,
            ])),
            order_params_by_sps: BTreeMap::new(),
            slice_params_by_pps: BTreeMap::new(),
            b_frame_detector: PocBFrameDetector::default(),
            recovery_points: RecoveryPointTracker::default(),
        }
    }

    /// Whether there are no IRAP pictures, but recovery points that decoders can start with.
    pub(super) fn lacks_irap_pictures(&self) -> bool {
        self.recovery_points.lacks_idr_frames()
    }

    /// Whether pictures are sent in another order than they are shown.
    pub(super) fn found_b_frames(&self) -> bool {
        self.b_frame_detector.found_b_frames()
    }

    pub(super) fn inspect_rtp_payload(&mut self, time: u32, payload: &[u8]) -> KeyFrameAndFormatFindings {
        let mut finding = KeyFrameAndFormatFindings::default();
        let mut contents = PacketNalSummary::default();
        match payload {
            [header, _, rest @ ..] if nal_type(*header) == NAL_AP => {
                iter_aggregated_nals(rest)
                    .for_each(|nal| self.inspect_nal(Some(time), nal, &mut contents, &mut finding));
            }
            // RFC 7798 §4.4.3: the start bit is the highest bit of the FU header, the NAL unit type is in the low bits.
            [header, _, fu, body @ ..] if nal_type(*header) == NAL_FU => {
                let starts = fu & 0x80 != 0;
                if starts {
                    contents.starts_random_access_slice = self.is_random_access_slice(time, fu & 0x3f, body);
                    self.observe_picture_order(time, fu & 0x3f, body);
                }
            }
            nal => self.inspect_nal(Some(time), nal, &mut contents, &mut finding),
        }
        self.parameter_sets.increase_insertion_budget(payload.len());
        let verdict = self.parameter_sets.record_packet_and_check_key_frame(time, &contents);
        finding.identifies_key_frame = verdict.is_key_frame;
        finding.parameter_sets_to_insert = pack_nals_into_payloads(&AP_PAYLOAD_HEADER, &verdict.missing_parameter_sets);
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
        let Some((&[header, _], body)) = nal
            .split_first_chunk::<2>()
            .filter(|([header, _], _)| header & 0x80 == 0)
        else {
            return;
        };
        let set = match nal_type(header) {
            NAL_VPS => BitReader::new(body)
                .read_bits_u8(4)
                .map(|id| ((ParameterSetKind::Vps, id), None)),
            NAL_SPS => H265Sps::parse_rbsp(&remove_emulation_prevention(body)).map(|sps| {
                finding.format = Some(CodecFormat::H265 {
                    profile_id: sps.profile_id,
                    tier_flag: sps.tier_flag,
                });
                finding.resolution = sps.resolution.or(finding.resolution);
                if let Some(rules) = sps.order_params {
                    self.order_params_by_sps.insert(sps.id, rules);
                }
                (
                    (ParameterSetKind::Sps, sps.id),
                    Some((ParameterSetKind::Vps, sps.vps_id)),
                )
            }),
            NAL_PPS => parse_pps(body).map(|(id, sps, rules)| {
                if let Some(rules) = rules {
                    self.slice_params_by_pps.insert(id.1, rules);
                }
                (id, sps)
            }),
            other => {
                if let Some(time) = time {
                    self.observe_picture_order(time, other, body);
                    contents.starts_random_access_slice |= self.is_random_access_slice(time, other, body);
                }
                None
            }
        };
        if let Some((id, refers_to)) = set {
            contents.parameter_sets.push(id);
            self.parameter_sets
                .store_parameter_set_and_invalidate_dependents(id, refers_to, time, nal);
        }
    }
}

impl H265Inspector {
    /// Records what a NAL unit says of random access. Returns whether it is a slice that decoders start with.
    fn is_random_access_slice(&mut self, time: u32, nal_type: u8, body: &[u8]) -> bool {
        match nal_type {
            nal_type if is_bla_idr_or_cra(nal_type) => {
                self.recovery_points.observe_idr();
                true
            }
            0..=31 => self.recovery_points.observe_slice_and_check_random_access(time, false),
            NAL_PREFIX_SEI => {
                self.recovery_points.observe_sei(time, body);
                false
            }
            _ => false,
        }
    }

    /// Notes the order of a picture at its first slice.
    fn observe_picture_order(&mut self, time: u32, nal_type: u8, body: &[u8]) {
        if nal_type > 31 || self.b_frame_detector.found_b_frames() {
            return;
        }
        let Some(header) = H265SliceHeaderParser::new(nal_type, body) else {
            return;
        };
        let pps = header.pps_id().and_then(|pps| u8::try_from(pps).ok());
        let Some(slice) = pps.and_then(|pps| self.slice_params_by_pps.get(&pps)) else {
            return;
        };
        let rules = self
            .order_params_by_sps
            .get(&slice.sps_id)
            .filter(|rules| rules.max_num_reorder_pics > 0);
        if let Some((count, modulus)) = rules.and_then(|rules| header.parse_pic_order_cnt_lsb(slice, rules)) {
            self.b_frame_detector
                .observe_picture(time, header.is_idr(), count, modulus);
        }
    }
}

/// ID of a picture parameter set, the one of the sequence parameter set that it refers to, and what it says of slices
/// (ITU-T H.265 §7.3.2.3.1).
fn parse_pps(body: &[u8]) -> Option<(ParameterSetId, Option<ParameterSetId>, Option<PpsSliceHeaderFields>)> {
    let mut bits = BitReader::new(body);
    let id = bits.read_ue().filter(|id| *id <= MAX_PPS_ID)?;
    let sps = bits.read_ue().filter(|id| *id <= MAX_SPS_ID)?;
    let set = |kind, id| u8::try_from(id).ok().map(|id| (kind, id));
    let rules = PpsSliceHeaderFields::read(&mut bits, u8::try_from(sps).ok()?);
    Some((set(ParameterSetKind::Pps, id)?, set(ParameterSetKind::Sps, sps), rules))
}

fn nal_type(header: u8) -> u8 {
    header >> 1 & 0x3f
}

/// BLA, IDR and CRA (ITU-T H.265 table 7-1). 22 and 23 are reserved.
fn is_bla_idr_or_cra(nal_type: u8) -> bool {
    (16..=21).contains(&nal_type)
}

/// The needed fields of a sequence parameter set (ITU-T H.265 §7.3.2.2.1).
#[derive(Debug, PartialEq, Eq)]
struct H265Sps {
    id: u8,
    vps_id: u8,
    profile_id: u8,
    tier_flag: u8,
    /// `None` if the size is invalid.
    resolution: Option<(u16, u16)>,
    /// `None` if it is truncated.
    order_params: Option<H265PictureOrderParams>,
}

impl H265Sps {
    /// `None` if it is truncated before its ID.
    fn parse_rbsp(rbsp: &[u8]) -> Option<Self> {
        let mut bits = BitReader::new(rbsp);
        let vps = bits.read_bits_u8(4)?;
        let sub_layers = bits.read_bits_u8(3).filter(|more| *more <= 6)?;
        bits.skip(1); // sps_temporal_id_nesting_flag
        bits.skip(2); // general_profile_space
        let tier_flag = bits.read_bits_u8(1)?;
        let profile_id = bits.read_bits_u8(5)?;
        bits.skip(32 + 48); // compatibility and constraint flags
        bits.skip(8); // general_level_idc
        skip_sub_layer_profile_tier_level(&mut bits, sub_layers)?;
        let id = bits.read_ue().filter(|id| *id <= MAX_SPS_ID)?;
        let (resolution, order) = parse_resolution_and_poc_params(&mut bits, sub_layers).unzip();
        Some(Self {
            id: u8::try_from(id).ok()?,
            vps_id: vps,
            profile_id,
            tier_flag,
            resolution: resolution.flatten(),
            order_params: order.flatten(),
        })
    }
}

/// Skips profiles and levels of the lower temporal layers (ITU-T H.265 §7.3.3).
fn skip_sub_layer_profile_tier_level(bits: &mut BitReader<'_>, count: u8) -> Option<()> {
    let mut length = 0;
    for _ in 0..count {
        if bits.read_flag()? {
            length += 88;
        }
        if bits.read_flag()? {
            length += 8;
        }
    }
    if count > 0 {
        bits.skip(2 * usize::from(8 - count)); // reserved_zero_2bits
    }
    bits.skip(length);
    Some(())
}

/// Width and height in pixels, if they are valid, and the rules of the picture order.
#[expect(clippy::type_complexity, reason = "both are read in one pass")]
fn parse_resolution_and_poc_params(
    bits: &mut BitReader<'_>,
    sub_layers: u8,
) -> Option<(Option<(u16, u16)>, Option<H265PictureOrderParams>)> {
    let chroma_format_idc = bits.read_ue().filter(|idc| *idc <= 3)?;
    let separate_planes = chroma_format_idc == 3 && bits.read_flag()?;
    let width = u64::from(bits.read_ue()?);
    let height = u64::from(bits.read_ue()?);
    let mut crop = [0; 4];
    if bits.read_flag()? {
        for side in &mut crop {
            *side = u64::from(bits.read_ue()?);
        }
    }
    let [left, right, top, bottom] = crop;
    // Table 6-1: in 4:2:0 and 4:2:2 chroma has half the columns, in 4:2:0 half the rows.
    let unit_x = if matches!(chroma_format_idc, 1 | 2) { 2 } else { 1 };
    let unit_y = if chroma_format_idc == 1 { 2 } else { 1 };
    let width = cropped_dimension(width, unit_x * (left + right));
    let height = cropped_dimension(height, unit_y * (top + bottom));
    Some((
        width.zip(height),
        H265PictureOrderParams::read(bits, separate_planes, sub_layers),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_profiles_of_their_own_are_skipped() {
        // Two more sub-layers, the first with profile and level; Main, 64x32 with 2 rows cropped.
        let mut sps = vec![0x04, 0x01];
        sps.extend_from_slice(&[0; 11]);
        sps.extend_from_slice(&[0b1100_0000, 0]);
        sps.extend_from_slice(&[0xff; 12]);
        // id 1: 010, chroma 1: 010, width 64: 0000001000001, height 32: 00000100001, window 1,
        // left 0: 1, right 0: 1, top 0: 1, bottom 1: 010.
        sps.extend_from_slice(&[0b0100_1000, 0b0000_1000, 0b0010_0000, 0b1000_0111, 0b1101_0000]);
        let sps = H265Sps::parse_rbsp(&sps).expect("an SPS");
        assert_eq!((sps.id, sps.profile_id, sps.tier_flag), (1, 1, 0));
        assert_eq!(sps.resolution, Some((64, 30)));
    }

    /// x265, range extensions in the high tier: 4:2:2 with 10 bits, 322x186.
    const REXT_422: &[u8] = &[
        0x01, 0x24, 0x08, 0x00, 0x00, 0x03, 0x00, 0x9d, 0x08, 0x00, 0x00, 0x03, 0x00, 0x00, 0x96, 0xb0, 0x0a, 0x48,
        0x0c, 0x1c, 0x93, 0xb6, 0x59, 0x59, 0xa4, 0x93, 0x2b, 0xc0, 0x5a, 0x02, 0x00, 0x00, 0x03, 0x00, 0x02, 0x00,
        0x00, 0x03, 0x00, 0x14, 0x10,
    ];

    /// The same with 4:4:4, 1918x1078.
    const REXT_444: &[u8] = &[
        0x01, 0x24, 0x08, 0x00, 0x00, 0x03, 0x00, 0x9e, 0x08, 0x00, 0x00, 0x03, 0x00, 0x00, 0x96, 0x90, 0x00, 0x78,
        0x10, 0x02, 0x1c, 0xee, 0xf2, 0xca, 0xcd, 0x24, 0x99, 0x5e, 0x02, 0xd0, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10,
        0x00, 0x00, 0x03, 0x00, 0xa0, 0x80,
    ];

    #[test]
    fn range_extensions_have_their_own_profile_and_cropping() {
        for (bytes, size) in [(REXT_422, (322, 186)), (REXT_444, (1918, 1078))] {
            let sps = H265Sps::parse_rbsp(&remove_emulation_prevention(bytes)).expect("an SPS");
            assert_eq!((sps.profile_id, sps.tier_flag), (4, 1));
            assert_eq!(sps.resolution, Some(size));
        }
    }

    #[test]
    fn only_random_access_types_are_irap() {
        let irap: Vec<u8> = (0..64).filter(|nal_type| is_bla_idr_or_cra(*nal_type)).collect();
        assert_eq!(irap, [16, 17, 18, 19, 20, 21]);
    }
}
