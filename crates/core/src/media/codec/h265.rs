//! H.265 over RTP (RFC 7798) without decoding order numbers: single NAL units, aggregation packets and fragments.
//!
//! A key frame is a picture of an IRAP type (IDR, CRA, BLA) with its VPS, SPS and PPS. Decoders skip the leading
//! pictures of a CRA that refer to earlier pictures (ITU-T H.265 §8.1.3).

use std::collections::BTreeMap;

use super::bits::{BitReader, cropped, rbsp};
use super::finding::Finding;
use super::h265_slice::{OrderRules, SliceHeader, SliceRules};
use super::order::PictureOrder;
use super::parameter_sets::{PacketContents, ParameterSets, SetId, SetKind, SetKinds, aggregated, pack};
use crate::media::Format;

const VPS: u8 = 32;
const SPS: u8 = 33;
const PPS: u8 = 34;
const AP: u8 = 48;
const FU: u8 = 49;

/// Payload header of generated aggregation packets: layer 0, temporal ID plus one 1 (RFC 7798 §4.4.2).
const AP_HEADER: [u8; 2] = [AP << 1, 1];

/// Highest IDs (ITU-T H.265 §7.4.3.2.1, §7.4.3.3.1).
const MAX_SPS_ID: u32 = 15;
const MAX_PPS_ID: u32 = 63;

/// State of one stream.
pub(super) struct Stream {
    sets: ParameterSets,
    /// What the sequence and picture parameter sets say of the order of pictures.
    order_rules: BTreeMap<u8, OrderRules>,
    slice_rules: BTreeMap<u8, SliceRules>,
    order: PictureOrder,
}

impl Stream {
    pub(super) fn new() -> Self {
        Self {
            sets: ParameterSets::new(SetKinds::of(&[SetKind::Vps, SetKind::Sps, SetKind::Pps])),
            order_rules: BTreeMap::new(),
            slice_rules: BTreeMap::new(),
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
            [header, _, rest @ ..] if nal_type(*header) == AP => {
                aggregated(rest).for_each(|nal| self.nal(Some(time), nal, &mut contents, &mut finding));
            }
            // RFC 7798 §4.4.3: the start bit is the highest bit of the FU header, the NAL unit type is in the low bits.
            [header, _, fu, body @ ..] if nal_type(*header) == FU => {
                let starts = fu & 0x80 != 0;
                contents.random_access = starts && is_irap(fu & 0x3f);
                if starts {
                    self.slice(time, fu & 0x3f, body);
                }
            }
            nal => self.nal(Some(time), nal, &mut contents, &mut finding),
        }
        let verdict = self.sets.judge(time, &contents);
        finding.key_frame = verdict.key_frame;
        finding.insert = pack(&AP_HEADER, &verdict.missing);
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
        let Some((&[header, _], body)) = nal
            .split_first_chunk::<2>()
            .filter(|([header, _], _)| header & 0x80 == 0)
        else {
            return;
        };
        let set = match nal_type(header) {
            VPS => BitReader::new(body).byte(4).map(|id| ((SetKind::Vps, id), None)),
            SPS => Sps::parse(&rbsp(body)).map(|sps| {
                finding.format = Some(Format::H265 {
                    profile_id: sps.profile_id,
                    tier_flag: sps.tier_flag,
                });
                finding.resolution = sps.resolution.or(finding.resolution);
                if let Some(rules) = sps.order {
                    self.order_rules.insert(sps.id, rules);
                }
                ((SetKind::Sps, sps.id), Some((SetKind::Vps, sps.vps)))
            }),
            PPS => pps_ids(body).map(|(id, sps, rules)| {
                if let Some(rules) = rules {
                    self.slice_rules.insert(id.1, rules);
                }
                (id, sps)
            }),
            other => {
                if let Some(time) = time {
                    self.slice(time, other, body);
                }
                contents.random_access |= is_irap(other);
                None
            }
        };
        if let Some((id, refers_to)) = set {
            contents.sets.push(id);
            self.sets.store(id, refers_to, time, nal);
        }
    }
}

impl Stream {
    /// Notes the order of a picture at its first slice.
    fn slice(&mut self, time: u32, nal_type: u8, body: &[u8]) {
        if nal_type > 31 || self.order.is_reordered() {
            return;
        }
        let Some(header) = SliceHeader::new(nal_type, body) else {
            return;
        };
        let pps = header.pps().and_then(|pps| u8::try_from(pps).ok());
        let Some(slice) = pps.and_then(|pps| self.slice_rules.get(&pps)) else {
            return;
        };
        let rules = self.order_rules.get(&slice.sps).filter(|rules| rules.max_reorder > 0);
        if let Some((count, modulus)) = rules.and_then(|rules| header.picture_order(slice, rules)) {
            self.order.observe(time, header.is_idr(), count, modulus);
        }
    }
}

/// ID of a picture parameter set, the one of the sequence parameter set that it refers to, and what it says of slices
/// (ITU-T H.265 §7.3.2.3.1).
fn pps_ids(body: &[u8]) -> Option<(SetId, Option<SetId>, Option<SliceRules>)> {
    let mut bits = BitReader::new(body);
    let id = bits.ue().filter(|id| *id <= MAX_PPS_ID)?;
    let sps = bits.ue().filter(|id| *id <= MAX_SPS_ID)?;
    let set = |kind, id| u8::try_from(id).ok().map(|id| (kind, id));
    let rules = SliceRules::read(&mut bits, u8::try_from(sps).ok()?);
    Some((set(SetKind::Pps, id)?, set(SetKind::Sps, sps), rules))
}

fn nal_type(header: u8) -> u8 {
    header >> 1 & 0x3f
}

/// BLA, IDR and CRA (ITU-T H.265 table 7-1). 22 and 23 are reserved.
fn is_irap(nal_type: u8) -> bool {
    (16..=21).contains(&nal_type)
}

/// The needed fields of a sequence parameter set (ITU-T H.265 §7.3.2.2.1).
#[derive(Debug, PartialEq, Eq)]
struct Sps {
    id: u8,
    vps: u8,
    profile_id: u8,
    tier_flag: u8,
    /// `None` if the size is invalid.
    resolution: Option<(u16, u16)>,
    /// `None` if it is truncated.
    order: Option<OrderRules>,
}

impl Sps {
    /// `None` if it is truncated before its ID.
    fn parse(rbsp: &[u8]) -> Option<Self> {
        let mut bits = BitReader::new(rbsp);
        let vps = bits.byte(4)?;
        let sub_layers = bits.byte(3).filter(|more| *more <= 6)?;
        bits.skip(1); // sps_temporal_id_nesting_flag
        bits.skip(2); // general_profile_space
        let tier_flag = bits.byte(1)?;
        let profile_id = bits.byte(5)?;
        bits.skip(32 + 48); // compatibility and constraint flags
        bits.skip(8); // general_level_idc
        skip_sub_layers(&mut bits, sub_layers)?;
        let id = bits.ue().filter(|id| *id <= MAX_SPS_ID)?;
        let (resolution, order) = size_and_order(&mut bits, sub_layers).unzip();
        Some(Self {
            id: u8::try_from(id).ok()?,
            vps,
            profile_id,
            tier_flag,
            resolution: resolution.flatten(),
            order: order.flatten(),
        })
    }
}

/// Skips profiles and levels of the lower temporal layers (ITU-T H.265 §7.3.3).
fn skip_sub_layers(bits: &mut BitReader<'_>, count: u8) -> Option<()> {
    let mut length = 0;
    for _ in 0..count {
        if bits.flag()? {
            length += 88;
        }
        if bits.flag()? {
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
fn size_and_order(bits: &mut BitReader<'_>, sub_layers: u8) -> Option<(Option<(u16, u16)>, Option<OrderRules>)> {
    let chroma_format_idc = bits.ue().filter(|idc| *idc <= 3)?;
    let separate_planes = chroma_format_idc == 3 && bits.flag()?;
    let width = u64::from(bits.ue()?);
    let height = u64::from(bits.ue()?);
    let mut crop = [0; 4];
    if bits.flag()? {
        for side in &mut crop {
            *side = u64::from(bits.ue()?);
        }
    }
    let [left, right, top, bottom] = crop;
    // Table 6-1: in 4:2:0 and 4:2:2 chroma has half the columns, in 4:2:0 half the rows.
    let unit_x = if matches!(chroma_format_idc, 1 | 2) { 2 } else { 1 };
    let unit_y = if chroma_format_idc == 1 { 2 } else { 1 };
    let width = cropped(width, unit_x * (left + right));
    let height = cropped(height, unit_y * (top + bottom));
    Some((width.zip(height), OrderRules::read(bits, separate_planes, sub_layers)))
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
        let sps = Sps::parse(&sps).expect("an SPS");
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
            let sps = Sps::parse(&rbsp(bytes)).expect("an SPS");
            assert_eq!((sps.profile_id, sps.tier_flag), (4, 1));
            assert_eq!(sps.resolution, Some(size));
        }
    }

    #[test]
    fn only_random_access_types_are_irap() {
        let irap: Vec<u8> = (0..64).filter(|nal_type| is_irap(*nal_type)).collect();
        assert_eq!(irap, [16, 17, 18, 19, 20, 21]);
    }
}
