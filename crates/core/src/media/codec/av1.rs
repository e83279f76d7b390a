//! AV1 over RTP (AOM's "RTP Payload Format For AV1", v1.0.0): detects the start of coded video sequences.

use super::bit_reader::BitReader;
use super::inspection_findings::KeyFrameAndFormatFindings;
use crate::media::CodecFormat;
use crate::media::payload_discard::PayloadDiscardReason;

const OBU_SEQUENCE_HEADER: u8 = 1;

/// Identifies a key frame by the first packet of a coded video sequence: the aggregation header has the N bit, and a
/// complete sequence header is among its OBU elements, without which no decoder can start.
///
/// ```text
///  |Z|Y| W |N|-|-|-|  aggregation header (§4.4)
/// ```
pub(super) fn inspect_rtp_payload(payload: &[u8]) -> KeyFrameAndFormatFindings {
    let Some((&aggregation, elements)) = payload.split_first() else {
        return KeyFrameAndFormatFindings::default();
    };
    // A sequence never starts with a continued OBU (Z).
    if aggregation & 0x88 != 0x08 {
        return KeyFrameAndFormatFindings::default();
    }
    match ObuElements::new(aggregation, elements).find_map(parse_sequence_header) {
        Some(header) => KeyFrameAndFormatFindings {
            identifies_key_frame: true,
            format: Some(CodecFormat::Av1 {
                profile: header.profile,
            }),
            resolution: header.resolution,
            ..KeyFrameAndFormatFindings::default()
        },
        None => KeyFrameAndFormatFindings::default(),
    }
}

/// Iterates over the complete OBU elements of a packet. Each has a length prefix, except the last one if the count (W)
/// is given. The last one is incomplete if it continues in the next packet (Y).
struct ObuElements<'a> {
    remaining_bytes: &'a [u8],
    /// Number of remaining elements, if the packet has a count.
    remaining_element_count: Option<u8>,
    last_is_incomplete: bool,
}

impl<'a> ObuElements<'a> {
    fn new(aggregation: u8, rest: &'a [u8]) -> Self {
        Self {
            remaining_bytes: rest,
            remaining_element_count: Some(aggregation >> 4 & 3).filter(|count| *count > 0),
            last_is_incomplete: aggregation & 0x40 != 0,
        }
    }

    fn next_obu_element(&mut self) -> Option<&'a [u8]> {
        if let Some(remaining) = &mut self.remaining_element_count {
            *remaining = remaining.checked_sub(1)?;
            if *remaining == 0 {
                return Some(std::mem::take(&mut self.remaining_bytes));
            }
        }
        let (length, rest) = parse_leb128(self.remaining_bytes)?;
        let (element, rest) = rest.split_at_checked(length)?;
        self.remaining_bytes = rest;
        Some(element)
    }
}

impl<'a> Iterator for ObuElements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining_bytes.is_empty() {
            return None;
        }
        let element = self.next_obu_element()?;
        let complete = !self.remaining_bytes.is_empty() || !self.last_is_incomplete;
        complete.then_some(element)
    }
}

/// Decodes a leb128 number, little-endian groups of seven bits (AV1 §4.10.5); `None` from 2^28 on, which no packet
/// reaches.
fn parse_leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(4) {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

/// Reassembles the OBUs of a temporal unit from its packets and adds a size field to each, as in files and for decoders
/// (AV1 §5.2, and its RTP payload format §5).
#[derive(Debug, Default)]
pub(crate) struct ObuAssembler {
    /// Start of an OBU that continues in the next packet.
    partial_obu: Option<Vec<u8>>,
}

/// OBU types that are meaningless outside the transport: temporal delimiters, tile lists, padding.
const DROPPED_OBU_TYPES: [u8; 3] = [2, 8, 15];

impl ObuAssembler {
    /// Appends the complete OBUs of a packet.
    ///
    /// # Errors
    ///
    /// The reason if a part of the packet was passed over: an OBU without start or end, or what follows a wrong length. The
    /// rest was appended.
    pub(crate) fn append_complete_obus(
        &mut self,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), PayloadDiscardReason> {
        let (&aggregation, elements) = payload.split_first().ok_or(PayloadDiscardReason::EmptyPayload)?;
        let (is_continuation, continues) = (aggregation & 0x80 != 0, aggregation & 0x40 != 0);
        let mut partial = self.partial_obu.take();
        let has_start = partial.is_some();
        let mut elements = ObuElements {
            // The last element is returned even if it is incomplete.
            last_is_incomplete: false,
            ..ObuElements::new(aggregation, elements)
        };
        let mut is_first = true;
        let mut result = if elements.remaining_bytes.is_empty() {
            Err(PayloadDiscardReason::TruncatedPayload)
        } else {
            Ok(())
        };
        while !elements.remaining_bytes.is_empty() {
            let Some(element) = elements.next_obu_element() else {
                return Err(PayloadDiscardReason::TruncatedPayload);
            };
            let continued = if std::mem::take(&mut is_first) {
                is_continuation
            } else {
                false
            };
            let mut obu = partial.take().filter(|_| continued).unwrap_or_default();
            obu.extend_from_slice(element);
            if continued && !has_start {
                continue;
            }
            if continues && elements.remaining_bytes.is_empty() {
                self.partial_obu = Some(obu);
            } else if append_obu_with_size(&obu, out).is_none() {
                result = Err(PayloadDiscardReason::TruncatedPayload);
            }
        }
        if is_continuation == has_start {
            result
        } else {
            Err(PayloadDiscardReason::StrayFragment)
        }
    }

    /// Length of the last OBU so far, if it is incomplete.
    pub(crate) fn partial_obu_len(&self) -> usize {
        self.partial_obu.as_ref().map_or(0, Vec::len)
    }

    /// Whether the last OBU is complete.
    pub(crate) fn is_last_obu_complete(&self) -> bool {
        self.partial_obu.is_none()
    }
}

/// Appends an OBU with a size field.
fn append_obu_with_size(obu: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (&header, mut rest) = obu.split_first()?;
    if DROPPED_OBU_TYPES.contains(&(header >> 3 & 0x0f)) {
        return Some(());
    }
    out.push(header | 0x02);
    if header & 0x04 != 0 {
        let (&extension, body) = rest.split_first()?;
        out.push(extension);
        rest = body;
    }
    if header & 0x02 != 0 {
        let (length, body) = parse_leb128(rest)?;
        rest = body.get(..length)?;
    }
    let mut length = rest.len();
    while length > 0x7f {
        out.push(length as u8 & 0x7f | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(rest);
    Some(())
}

/// The codec configuration for containers (AV1-ISOBMFF §2.3), parsed from the sequence header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Av1Config {
    pub profile: u8,
    pub level: u8,
    pub tier: u8,
    /// The complete OBU with its size field.
    pub sequence_header: Vec<u8>,
}

impl Av1Config {
    /// Finds the sequence header in a temporal unit whose OBUs have size fields, and parses it.
    pub fn find_in_temporal_unit(mut unit: &[u8]) -> Option<Self> {
        while let Some((&header, rest)) = unit.split_first() {
            let rest = if header & 0x04 != 0 { rest.get(1..)? } else { rest };
            let (length, body) = parse_leb128(rest)?;
            let (content, next) = body.split_at_checked(length)?;
            if header >> 3 & 0x0f == OBU_SEQUENCE_HEADER {
                let mut bits = BitReader::new(content);
                let profile = bits.read_bits_u8(3)?;
                bits.skip(1);
                let (level, tier) = parse_level_and_tier(&mut bits)?;
                let end = unit.len() - next.len();
                return Some(Self {
                    profile,
                    level,
                    tier,
                    sequence_header: unit.get(..end)?.to_vec(),
                });
            }
            unit = next;
        }
        None
    }
}

/// Iterates over the OBUs of a temporal unit that have size fields: type and content. Stops at the first one without, and
/// at one that is truncated.
pub(super) fn iter_sized_obus(mut unit: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&header, rest) = unit.split_first().filter(|(header, _)| **header & 0x02 != 0)?;
        let rest = if header & 0x04 != 0 { rest.get(1..)? } else { rest };
        let (length, body) = parse_leb128(rest)?;
        let (content, next) = body.split_at_checked(length)?;
        unit = next;
        Some((header >> 3 & 0x0f, content))
    })
}

/// What frame headers need of the sequence header, to be read up to the slots that they refresh (AV1 §5.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Av1FrameHeaderParams {
    /// `None` if each frame says it.
    pub(super) forced_screen_content_tools: Option<bool>,
    /// Frames with tools for screen content say whether their motion vectors are integers.
    pub(super) selects_integer_motion_vectors: bool,
    pub(super) order_hint_bits: u32,
}

impl Av1FrameHeaderParams {
    /// `None` if frame headers have fields that are rarely used: timing information and frame IDs.
    pub(super) fn parse(content: &[u8]) -> Option<Self> {
        let mut flags = BitReader::new(content);
        flags.skip(4); // seq_profile, still_picture
        let (is_reduced, has_timing) = (flags.read_flag()?, flags.read_flag()?);
        if is_reduced || has_timing {
            return None;
        }
        let mut bits = BitReader::new(content);
        bits.skip(4);
        skip_to_frame_size(&mut bits)?;
        parse_resolution(&mut bits)?;
        if bits.read_flag()? {
            return None; // frame_id_numbers_present_flag
        }
        bits.skip(3 + 4); // superblock size, filters of intra prediction, and compound prediction tools
        let has_order_hints = bits.read_flag()?;
        if has_order_hints {
            bits.skip(2); // enable_jnt_comp, enable_ref_frame_mvs
        }
        // seq_choose_screen_content_tools, seq_force_screen_content_tools
        let forced_screen_content_tools = if bits.read_flag()? {
            None
        } else {
            Some(bits.read_flag()?)
        };
        let mut selects_integer_motion_vectors = true;
        if forced_screen_content_tools != Some(false) {
            selects_integer_motion_vectors = bits.read_flag()?;
            if !selects_integer_motion_vectors {
                bits.skip(1); // seq_force_integer_mv
            }
        }
        Some(Self {
            forced_screen_content_tools,
            selects_integer_motion_vectors,
            order_hint_bits: if has_order_hints { bits.read_bits(3)? + 1 } else { 0 },
        })
    }
}

/// Level and tier of the first operating point. Timing information is not parsed: WebRTC encoders do not write it.
fn parse_level_and_tier(bits: &mut BitReader<'_>) -> Option<(u8, u8)> {
    if bits.read_flag()? {
        return Some((bits.read_bits_u8(5)?, 0));
    }
    if bits.read_flag()? {
        // The highest level: a player that supports it can play any stream.
        return Some((31, 0));
    }
    bits.skip(1 + 5 + 12);
    let level = bits.read_bits_u8(5)?;
    let tier = if level > 7 { bits.read_bits_u8(1)? } else { 0 };
    Some((level, tier))
}

/// The needed fields of a sequence header (AV1 §5.5).
#[derive(Debug, PartialEq, Eq)]
struct Av1ProfileAndResolution {
    profile: u8,
    resolution: Option<(u16, u16)>,
}

/// Parses an OBU element if it is a sequence header (AV1 §5.3).
fn parse_sequence_header(element: &[u8]) -> Option<Av1ProfileAndResolution> {
    let (&header, mut rest) = element.split_first()?;
    if header >> 3 & 0x0f != OBU_SEQUENCE_HEADER {
        return None;
    }
    if header & 0x04 != 0 {
        rest = rest.get(1..)?; // obu_extension_header
    }
    if header & 0x02 != 0 {
        let (length, body) = parse_leb128(rest)?;
        rest = body.get(..length)?;
    }
    let mut bits = BitReader::new(rest);
    let profile = bits.read_bits_u8(3).filter(|profile| *profile <= 2)?;
    bits.skip(1); // still_picture
    let size = skip_to_frame_size(&mut bits).and_then(|()| parse_resolution(&mut bits));
    Some(Av1ProfileAndResolution {
        profile,
        resolution: size,
    })
}

/// Skips the fields between profile and size.
fn skip_to_frame_size(bits: &mut BitReader<'_>) -> Option<()> {
    let reduced = bits.read_flag()?;
    if reduced {
        bits.skip(5); // seq_level_idx
        return Some(());
    }
    let mut delay_length = None;
    if bits.read_flag()? {
        bits.skip(64); // num_units_in_display_tick, time_scale
        if bits.read_flag()? {
            bits.read_ue()?; // num_ticks_per_picture_minus_1: uvlc() is the same code
        }
        if bits.read_flag()? {
            delay_length = Some(usize::from(bits.read_bits_u8(5)?) + 1);
            bits.skip(32 + 5 + 5); // num_units_in_decoding_tick and two lengths
        }
    }
    let initial_display_delay = bits.read_flag()?;
    for _ in 0..=bits.read_bits(5)? {
        bits.skip(12); // operating_point_idc
        if bits.read_bits(5)? > 7 {
            bits.skip(1); // seq_tier
        }
        match delay_length {
            // decoder and encoder buffer delay, low_delay_mode_flag
            Some(length) if bits.read_flag()? => bits.skip(2 * length + 1),
            _ => {}
        }
        if initial_display_delay && bits.read_flag()? {
            bits.skip(4); // initial_display_delay_minus_1
        }
    }
    Some(())
}

fn parse_resolution(bits: &mut BitReader<'_>) -> Option<(u16, u16)> {
    let width_bits = bits.read_bits(4)? + 1;
    let height_bits = bits.read_bits(4)? + 1;
    let (width, height) = (bits.read_bits(width_bits)? + 1, bits.read_bits(height_bits)? + 1);
    Some((u16::try_from(width).ok()?, u16::try_from(height).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libaom, profile 0, 322x182: sequence header OBU with and without its size field.
    const SIZED: [u8; 13] = [
        0x0a, 0x0b, 0x00, 0x00, 0x00, 0x04, 0x3d, 0x06, 0xd4, 0xda, 0xf9, 0x00, 0x40,
    ];
    const UNSIZED: [u8; 12] = [0x08, 0x00, 0x00, 0x00, 0x04, 0x3d, 0x06, 0xd4, 0xda, 0xf9, 0x00, 0x40];

    #[test]
    fn the_level_of_a_reduced_header_is_read_behind_two_flags() {
        // Profile 0, a still picture with a reduced header, level 8.
        let unit = [0x0a, 2, 0b0001_1010, 0b0000_0000];
        let config = Av1Config::find_in_temporal_unit(&unit).expect("a sequence header");
        assert_eq!((config.profile, config.level, config.tier), (0, 8, 0));
        assert_eq!(config.sequence_header, unit);
    }

    #[test]
    fn a_sequence_header_behind_the_n_bit_is_a_key_frame() {
        let frame = [0x30, 1, 2, 3];
        let two = [&[0x28, 12], &UNSIZED[..], &frame].concat();
        let unknown_count = [&[0x08, 13], &SIZED[..], &[4], &frame].concat();
        let alone = [&[0x18], &UNSIZED[..]].concat();
        for packet in [two, unknown_count, alone] {
            let finding = inspect_rtp_payload(&packet);
            assert!(finding.identifies_key_frame, "{packet:x?}");
            assert_eq!(finding.format, Some(CodecFormat::Av1 { profile: 0 }));
            assert_eq!(finding.resolution, Some((322, 182)));
        }
    }

    #[test]
    fn without_n_bit_or_sequence_header_there_is_no_key_frame() {
        let without_n = [&[0x10], &UNSIZED[..]].concat();
        let continued = [&[0x98], &UNSIZED[..]].concat();
        let frame_only = [0x18, 0x30, 1, 2, 3].to_vec();
        let continues = [&[0x58], &UNSIZED[..]].concat();
        let cut_off = [0x28, 12, 0x08, 0].to_vec();
        for packet in [without_n, continued, continues, frame_only, cut_off, vec![0x18], vec![]] {
            assert_eq!(
                inspect_rtp_payload(&packet),
                KeyFrameAndFormatFindings::default(),
                "{packet:x?}"
            );
        }
    }

    #[test]
    fn obus_are_reassembled_with_size_fields() {
        let (mut assembler, mut out) = (ObuAssembler::default(), Vec::new());
        let long: Vec<u8> = std::iter::once(0x30).chain((0..300).map(|n| n as u8)).collect();
        // A temporal delimiter, a sequence header, and the first third of a frame.
        let first = [&[0x78, 1, 0x10, 12][..], &UNSIZED, &long[..100]].concat();
        let second = [&[0xd0][..], &long[100..200]].concat();
        let third = [&[0x90][..], &long[200..]].concat();
        for (packet, whole) in [(first, false), (second, false), (third, true)] {
            assembler.append_complete_obus(&packet, &mut out).expect("follows");
            assert_eq!(assembler.is_last_obu_complete(), whole);
        }
        let expected = [&SIZED[..], &[0x32, 0xac, 0x02], &long[1..]].concat();
        assert_eq!(out, expected);
        let config = Av1Config::find_in_temporal_unit(&out).expect("a sequence header");
        assert_eq!(
            (config.profile, config.level, config.sequence_header),
            (0, 0, SIZED.to_vec())
        );
        assert_eq!(
            ObuAssembler::default().append_complete_obus(&[0x10], &mut Vec::new()),
            Err(PayloadDiscardReason::TruncatedPayload)
        );
        assert_eq!(
            ObuAssembler::default().append_complete_obus(&[], &mut Vec::new()),
            Err(PayloadDiscardReason::EmptyPayload)
        );
    }

    #[test]
    fn obus_without_start_or_end_are_passed_over_alone() {
        let mut assembler = ObuAssembler::default();
        for (packet, is_valid) in [
            (&[0xa0, 2, 7, 7, 0x30, 1][..], false),
            (&[0x50, 0x30, 5][..], true),
            (&[0x10, 0x30, 2], false),
            (&[0x00, 2, 0x30, 3, 9, 0x30], false),
        ] {
            let mut out = Vec::new();
            assert_eq!(
                assembler.append_complete_obus(packet, &mut out).is_ok(),
                is_valid,
                "{packet:x?}"
            );
            let expected: &[u8] = match packet {
                [0xa0, ..] => &[0x32, 1, 1],
                [0x10, ..] => &[0x32, 1, 2],
                [0x00, ..] => &[0x32, 1, 3],
                _ => &[],
            };
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn overlong_lengths_are_rejected() {
        assert_eq!(parse_leb128(&[0x80, 0x80, 0x80, 0x80, 0]), None);
        assert_eq!(parse_leb128(&[0x80]), None);
        assert_eq!(parse_leb128(&[0xe5, 0x8e, 0x26, 7]), Some((624_485, &[7][..])));
    }
}
