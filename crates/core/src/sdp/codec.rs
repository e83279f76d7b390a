//! Payload types: the supported codecs that an m-section offers, and how well an offered format matches a source's
//! (RFC 8866 §6.6, RFC 6184 §8, RFC 7798 §7, RFC 9628 §6, RFC 7587 §7, RFC 4588 §8).
//!
//! Everything else (RED, FEC, comfort noise, telephone events, G.722) is ignored and never answered.

use std::collections::HashMap;

use bytes::Bytes;

use super::error::OfferError;
use super::negotiation_result::RtcpFeedback;
use super::sdp_lines::{RawSection, attributes_named};
use super::sprop;
use crate::media::{Codec, CodecFormat, H264Profile, MediaKind, PayloadType, ProfileLevelId};

/// A payload type of a supported codec, as offered.
#[derive(Clone, Debug)]
pub(super) struct OfferedCodec {
    pub pt: PayloadType,
    pub rtx_pt: Option<PayloadType>,
    pub format: CodecFormat,
    /// Channels of the `a=rtpmap`, 1 where it names none.
    pub channels: u8,
    /// H.264 whose fmtp does not state the packetization mode.
    pub lacks_packetization_mode: bool,
    /// The offered parameters that the answer repeats, formatted; may be empty.
    pub answer_fmtp: String,
    /// All feedback that the peer offered.
    pub rtcp_feedback: RtcpFeedback,
    /// Parameter sets of H.264 and H.265 that the peer sends, as NAL units. The stream may not repeat them.
    pub parameter_sets: Vec<Bytes>,
}

/// An `a=rtpmap`: encoding name in lower case, clock rate in Hz, channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rtpmap {
    encoding_name: String,
    clock_rate: u32,
    channels: u8,
}

/// The payload types of an m-section.
pub(super) struct OfferedPayloadTypes {
    /// Supported codecs in the peer's order of preference; may be empty.
    pub codecs: Vec<OfferedCodec>,
    /// All payload types with an `a=rtpmap`, supported or not.
    pub rtpmaps: HashMap<u8, Rtpmap>,
    /// Names of the offered codecs in order, with what makes one that is supported otherwise unusable.
    pub offered_codec_names: Vec<String>,
}

impl OfferedPayloadTypes {
    pub(crate) fn from_section(kind: MediaKind, section: &RawSection) -> Result<Self, OfferError> {
        let pts = read_payload_types(section)?;
        let mapped = read_rtpmaps(section, &pts)?;
        let parameters = read_fmtps(section);
        let rtx = read_rtx_payload_types(&pts, &mapped, &parameters);
        let none = FmtpParameters::default();
        let codecs = pts
            .iter()
            .filter(|pt| is_usable_payload_type(**pt))
            .filter_map(|pt| {
                let parameters = parameters.get(pt).unwrap_or(&none);
                let map = mapped.get(pt)?;
                let format = format_from_rtpmap_and_fmtp(map, parameters)?;
                let is_h264 = matches!(format, CodecFormat::H264 { .. });
                (format.codec().kind() == kind).then(|| OfferedCodec {
                    pt: PayloadType(*pt),
                    rtx_pt: rtx.get(pt).copied().map(PayloadType),
                    format,
                    channels: map.channels,
                    lacks_packetization_mode: is_h264 && parameters.get("packetization-mode").is_none(),
                    answer_fmtp: parameters.build_answer_fmtp(format),
                    rtcp_feedback: read_rtcp_feedback_of_pt(section, *pt),
                    parameter_sets: sprop::parse_parameter_sets(format, |key| parameters.get(key)),
                })
            })
            .collect();
        let mut names: Vec<String> = Vec::new();
        for pt in &pts {
            let name = match mapped.get(pt) {
                Some(map) => offered_codec_text(kind, *pt, map, parameters.get(pt).unwrap_or(&none)),
                None => Some(
                    unsupported_static_payload_type_name(*pt)
                        .map_or_else(|| format!("payload type {pt} without rtpmap"), str::to_owned),
                ),
            };
            names.extend(name.filter(|name| !names.contains(name)));
        }
        Ok(Self {
            codecs,
            rtpmaps: mapped,
            offered_codec_names: names,
        })
    }
}

/// Names an offered codec for the error text; `None` for what only accompanies codecs.
fn offered_codec_text(kind: MediaKind, pt: u8, map: &Rtpmap, parameters: &FmtpParameters) -> Option<String> {
    if ["rtx", "red", "ulpfec", "flexfec-03", "cn", "telephone-event"].contains(&map.encoding_name.as_str()) {
        return None;
    }
    let printable = map.encoding_name.chars().filter(|c| !c.is_control());
    let name: String = printable.take(MAX_SHOWN_CODEC_NAME_CHARS).collect();
    let Some((_, codec)) = CODECS_BY_RTPMAP_NAME
        .iter()
        .find(|(known, _)| *known == map.encoding_name)
    else {
        return Some(name);
    };
    let (rate, profile) = (
        codec.clock_rate(),
        parameters.get("profile-id").or(parameters.get("profile")),
    );
    let reason = if codec.kind() != kind {
        format!("in the {kind} section")
    } else if !is_usable_payload_type(pt) {
        format!("on payload type {pt} (64 to 95 are reserved for RTCP)")
    } else if map.clock_rate != rate {
        format!("at {} Hz instead of {rate}", map.clock_rate)
    } else if format_from_rtpmap_and_fmtp(map, parameters).is_some() {
        return Some(name);
    } else {
        match codec {
            Codec::H264 => "in packetization mode 2".to_owned(),
            Codec::H265 => "with a tx-mode other than SRST".to_owned(),
            Codec::Vp9 | Codec::Av1 => format!("of profile {}", profile.unwrap_or_default()),
            _ => format!("with {} channels", map.channels),
        }
    };
    Some(format!("{name} {reason}"))
}

/// Supported codecs by the name in an rtpmap.
const CODECS_BY_RTPMAP_NAME: [(&str, Codec); 8] = [
    ("h264", Codec::H264),
    ("h265", Codec::H265),
    ("vp8", Codec::Vp8),
    ("vp9", Codec::Vp9),
    ("av1", Codec::Av1),
    ("opus", Codec::Opus),
    ("pcmu", Codec::Pcmu),
    ("pcma", Codec::Pcma),
];

/// Name of a payload type that needs no rtpmap (RFC 3551 §6).
fn unsupported_static_payload_type_name(pt: u8) -> Option<&'static str> {
    let name = match pt {
        3 => "gsm",
        4 => "g723",
        5 | 6 | 16 | 17 => "dvi4",
        7 => "lpc",
        9 => "g722",
        10 | 11 => "l16",
        12 => "qcelp",
        14 => "mpa",
        15 => "g728",
        18 => "g729",
        25 => "celb",
        26 => "jpeg",
        28 => "nv",
        31 => "h261",
        32 => "mpv",
        33 => "mp2t",
        34 => "h263",
        _ => return None,
    };
    Some(name)
}

/// Names the supported codecs of a kind, for the error text.
pub(super) fn supported_codec_names(kind: MediaKind) -> &'static str {
    match kind {
        MediaKind::Audio => "opus, PCMU, PCMA",
        MediaKind::Video => "H264, H265, VP8, VP9, AV1",
    }
}

/// Ranks how well a receiver of `offered` can decode a source's format: lower is better, `None` means not at all.
/// The packetization mode of H.264 is handled by [`select_sendable_codecs`].
pub(super) fn format_mismatch_rank(source: CodecFormat, offered: CodecFormat) -> Option<u8> {
    match (source, offered) {
        (CodecFormat::H264 { profile: source, .. }, CodecFormat::H264 { profile, .. }) => {
            Some(h264_profile_mismatch_rank(source.profile(), profile.profile()))
        }
        // A Main 10 decoder decodes Main (RFC 7798 §7.1, H.265 A.3.3), a high tier decoder decodes main tier.
        (
            CodecFormat::H265 {
                profile_id: source,
                tier_flag,
            },
            CodecFormat::H265 {
                profile_id,
                tier_flag: tier,
            },
        ) => match (source, profile_id) {
            _ if tier < tier_flag => None,
            (source, offered) if source == offered => Some(tier - tier_flag),
            (1, 2) => Some(2),
            _ => None,
        },
        (CodecFormat::Vp9 { profile: source }, CodecFormat::Vp9 { profile }) => (source == profile).then_some(0),
        // AV1 profiles are nested: High includes Main, Professional includes both (AV1 A.2).
        (CodecFormat::Av1 { profile: source }, CodecFormat::Av1 { profile }) => profile.checked_sub(source),
        (CodecFormat::Vp8, CodecFormat::Vp8)
        | (CodecFormat::Opus { .. }, CodecFormat::Opus { .. })
        | (CodecFormat::Pcmu, CodecFormat::Pcmu)
        | (CodecFormat::Pcma, CodecFormat::Pcma) => Some(0),
        _ => None,
    }
}

/// Returns the offered codecs that can be sent to a viewer, whatever the source.
///
/// RFC 6184 §6.2: packetization mode 0 forbids fragmentation units, which nearly every H.264 frame needs, so mode 1 is
/// answered wherever it is offered. Firefox shows no video when an answer has mode 0 alone. An offer without
/// `packetization-mode` means mode 0 (RFC 6184 §8.1) but is sent fragments nevertheless, against §6.2: such offers come
/// from receivers that accept every mode, such as GStreamer's whepclientsrc 0.15.4
/// (`tests/data/offers/gst-1.28.8-rswebrtc-0.15.4-whepclientsrc.sdp`). A payload type with an explicit
/// `packetization-mode=0` is never answered.
pub(super) fn select_sendable_codecs(offered: &[OfferedCodec]) -> Vec<OfferedCodec> {
    let takes_fragments = |codec: &&OfferedCodec| {
        let CodecFormat::H264 { packetization_mode, .. } = codec.format else {
            return true;
        };
        packetization_mode == 1
    };
    let is_h264 = |codec: &&OfferedCodec| matches!(codec.format, CodecFormat::H264 { .. });
    let has_mode_1 = offered.iter().filter(is_h264).any(|codec| takes_fragments(&codec));
    let sendable = offered
        .iter()
        .filter(|codec| takes_fragments(codec) || (codec.lacks_packetization_mode && !has_mode_1));
    sendable.cloned().collect()
}

/// From this rank on the offered profile does not cover the source's, and decoding is not guaranteed.
pub(super) const MIN_DOUBTFUL_MISMATCH_RANK: u8 = 3;

fn h264_profile_mismatch_rank(source: H264Profile, offered: H264Profile) -> u8 {
    use H264Profile as C;
    let is_baseline = |class| matches!(class, C::ConstrainedBaseline | C::Baseline);
    let is_loss_high = |class| matches!(class, C::High | C::ConstrainedHigh);
    match offered {
        same if same == source => 0,
        other if is_baseline(source) && is_baseline(other) => 1,
        other if is_loss_high(other) => 1,
        C::Main => 2,
        // Chromium without a hardware decoder offers no High profile, but its software decoder decodes it.
        C::ConstrainedBaseline => MIN_DOUBTFUL_MISMATCH_RANK,
        _ => MIN_DOUBTFUL_MISMATCH_RANK + 1,
    }
}

fn read_payload_types(section: &RawSection) -> Result<Vec<u8>, OfferError> {
    let line = section.line_number;
    if section.formats.len() > MAX_PAYLOAD_TYPES_PER_SECTION {
        return Err(OfferError::TooManyPayloadTypes {
            line,
            limit: MAX_PAYLOAD_TYPES_PER_SECTION,
        });
    }
    let mut pts = Vec::with_capacity(section.formats.len());
    for format in &section.formats {
        match parse_canonical_number(format) {
            Some(pt) if pts.contains(&pt) => Err("the m-line lists a payload type twice"),
            Some(pt) if pt <= 127 => {
                pts.push(pt);
                Ok(())
            }
            _ => Err("expected payload types from 0 to 127 in the m-line"),
        }
        .map_err(|rule| OfferError::BadPayloadType { line, rule })?;
    }
    Ok(pts)
}

fn read_rtpmaps(section: &RawSection, pts: &[u8]) -> Result<HashMap<u8, Rtpmap>, OfferError> {
    let mut mapped = HashMap::new();
    for attribute in attributes_named(&section.attributes, "rtpmap") {
        let line = attribute.line_number;
        let (pt, map) = Rtpmap::parse(&attribute.value).ok_or(OfferError::BadPayloadType {
            line,
            rule: "expected `a=rtpmap:<payload type> <name>/<clock rate>[/<channels>]`",
        })?;
        if !pts.contains(&pt) {
            continue;
        }
        match mapped.insert(pt, map.clone()) {
            Some(before) if before != map => return Err(OfferError::PayloadTypeReused { line, pt }),
            _ => {}
        }
    }
    // RFC 3551 §6: static payload types need no rtpmap.
    for (pt, name) in [(0, "pcmu"), (8, "pcma")] {
        if pts.contains(&pt) {
            mapped.entry(pt).or_insert_with(|| Rtpmap {
                encoding_name: name.to_owned(),
                clock_rate: 8_000,
                channels: 1,
            });
        }
    }
    Ok(mapped)
}

impl Rtpmap {
    fn parse(value: &str) -> Option<(u8, Self)> {
        let (pt, map) = value.split_once(' ')?;
        let mut fields = map.trim().split('/');
        let name = fields.next()?.to_ascii_lowercase();
        let clock_rate = parse_canonical_number(fields.next()?)?;
        let channels = fields.next().map_or(Some(1), parse_canonical_number)?;
        Some((
            parse_canonical_number(pt)?,
            Self {
                encoding_name: name,
                clock_rate,
                channels,
            },
        ))
    }
}

/// Format parameters in the order of the text, with keys in lower case.
#[derive(Default)]
struct FmtpParameters(Vec<(String, String)>);

fn read_fmtps(section: &RawSection) -> HashMap<u8, FmtpParameters> {
    let mut fmtps: HashMap<u8, FmtpParameters> = HashMap::new();
    for attribute in attributes_named(&section.attributes, "fmtp") {
        let Some((pt, parameters)) = attribute.value.split_once(' ') else {
            continue;
        };
        let Some(pt) = parse_canonical_number(pt) else { continue };
        let parameters = parameters
            .split(';')
            .filter_map(|parameter| parameter.split_once('='))
            .map(|(key, value)| (key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        // Some clients write a line for each parameter.
        fmtps.entry(pt).or_default().0.extend(parameters);
    }
    fmtps
}

impl FmtpParameters {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Returns a numeric parameter, or `default` if it is absent or not a number.
    fn numeric_parameter_or(&self, key: &str, default: u8) -> u8 {
        self.get(key).and_then(parse_canonical_number).unwrap_or(default)
    }

    fn parse_profile_level_id(&self) -> Option<ProfileLevelId> {
        let text = self.get("profile-level-id")?;
        if text.len() != 6 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let [_, bytes @ ..] = u32::from_str_radix(text, 16).ok()?.to_be_bytes();
        Some(ProfileLevelId(bytes))
    }

    /// Returns the parameters that must be the same in offer and answer. The level is repeated as offered, because any
    /// level is accepted.
    fn build_answer_fmtp(&self, format: CodecFormat) -> String {
        let keys: &[&str] = match format {
            CodecFormat::H264 { .. } => &["level-asymmetry-allowed", "packetization-mode", "profile-level-id"],
            CodecFormat::H265 { .. } => &["profile-id", "tier-flag", "level-id", "tx-mode"],
            CodecFormat::Vp9 { .. } => &["profile-id"],
            CodecFormat::Av1 { .. } => &["profile", "level-idx", "tier"],
            // The parameters of Opus differ between publishers and viewers: see `AnsweredCodec::new`.
            CodecFormat::Vp8
            | CodecFormat::Opus { .. }
            | CodecFormat::Pcmu
            | CodecFormat::Pcma
            | CodecFormat::Aac(_)
            | CodecFormat::Jpeg => &[],
        };
        let is_valid = |key: &str, value: &str| match key {
            "profile-level-id" => self.parse_profile_level_id().is_some(),
            "tx-mode" => true,
            _ => parse_canonical_number::<u8>(value).is_some(),
        };
        keys.iter()
            .filter_map(|key| self.get(key).map(|value| (key, value)))
            .filter(|(key, value)| is_valid(key, value))
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(";")
    }
}

/// Returns the format of a payload type, or `None` if it is not supported.
fn format_from_rtpmap_and_fmtp(map: &Rtpmap, parameters: &FmtpParameters) -> Option<CodecFormat> {
    let format = match map.encoding_name.as_str() {
        "h264" => CodecFormat::H264 {
            // Without it RFC 6184 §8.1 assumes Baseline, level 1. Clients mean libwebrtc's default, which is this one.
            profile: parameters
                .parse_profile_level_id()
                .unwrap_or(ProfileLevelId::CONSTRAINED_BASELINE_3_1),
            // Mode 2 is interleaved and not supported.
            packetization_mode: Some(parameters.numeric_parameter_or("packetization-mode", 0))
                .filter(|mode| *mode <= 1)?,
        },
        "h265"
            if parameters
                .get("tx-mode")
                .is_none_or(|mode| mode.eq_ignore_ascii_case("SRST")) =>
        {
            CodecFormat::H265 {
                profile_id: parameters.numeric_parameter_or("profile-id", 1),
                tier_flag: parameters.numeric_parameter_or("tier-flag", 0).min(1),
            }
        }
        "vp8" => CodecFormat::Vp8,
        "vp9" => CodecFormat::Vp9 {
            profile: Some(parameters.numeric_parameter_or("profile-id", 0)).filter(|profile| *profile <= 3)?,
        },
        "av1" => CodecFormat::Av1 {
            profile: Some(parameters.numeric_parameter_or("profile", 0)).filter(|profile| *profile <= 2)?,
        },
        // RFC 7587 §7 requires two channels, also for mono. GStreamer 1.28.8 writes `OPUS/48000` where it receives,
        // which means the same.
        "opus" if matches!(map.channels, 1 | 2) => CodecFormat::Opus {
            stereo: parameters.numeric_parameter_or("stereo", 0) == 1
                || parameters.numeric_parameter_or("sprop-stereo", 0) == 1,
        },
        "pcmu" if map.channels == 1 => CodecFormat::Pcmu,
        "pcma" if map.channels == 1 => CodecFormat::Pcma,
        _ => return None,
    };
    (map.clock_rate == format.codec().clock_rate()).then_some(format)
}

/// Returns the RTX payload types by their primary payload type. An `apt` that names no payload type of the section is
/// ignored.
fn read_rtx_payload_types(
    pts: &[u8],
    mapped: &HashMap<u8, Rtpmap>,
    parameters: &HashMap<u8, FmtpParameters>,
) -> HashMap<u8, u8> {
    let mut rtx = HashMap::new();
    for pt in pts.iter().filter(|pt| is_usable_payload_type(**pt)) {
        let Some(map) = mapped.get(pt).filter(|map| map.encoding_name == "rtx") else {
            continue;
        };
        let apt = parameters
            .get(pt)
            .and_then(|parameters| parse_canonical_number(parameters.get("apt")?));
        // RFC 4588 §4.2: RTX has the clock rate of its primary payload type.
        let has_same_clock = |apt: &u8| {
            mapped
                .get(apt)
                .is_some_and(|primary| primary.clock_rate == map.clock_rate)
        };
        if let Some(apt) = apt.filter(|apt| pts.contains(apt) && has_same_clock(apt)) {
            rtx.entry(apt).or_insert(*pt);
        }
    }
    rtx
}

fn read_rtcp_feedback_of_pt(section: &RawSection, pt: u8) -> RtcpFeedback {
    let mut feedback = RtcpFeedback::default();
    for attribute in attributes_named(&section.attributes, "rtcp-fb") {
        // RFC 4585 §4.2: one space; `*` means every payload type of the section.
        let Some((payload_type, rest)) = attribute.value.split_once(' ') else {
            continue;
        };
        let is_ours = payload_type == "*" || parse_canonical_number(payload_type) == Some(pt);
        if !is_ours {
            continue;
        }
        // More words than these make another kind of feedback.
        match rest.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["nack"] => feedback.nack = true,
            ["nack", "pli"] => feedback.pli = true,
            ["ccm", "fir"] => feedback.fir = true,
            ["transport-cc"] => feedback.transport_cc = true,
            ["goog-remb"] => feedback.remb = true,
            _ => {}
        }
    }
    feedback
}

/// Parses a number in its canonical form, so that the answer repeats exactly what was read.
fn parse_canonical_number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

/// RFC 5761 §4: with rtcp-mux, payload types 64 to 95 collide with RTCP. Chromium rejects an answer that uses them.
fn is_usable_payload_type(pt: u8) -> bool {
    !(64..=95).contains(&pt)
}

/// Chromium 156 lists 34 in its longest m-line.
const MAX_PAYLOAD_TYPES_PER_SECTION: usize = 64;
/// Most codecs that are answered. Keeps the answer below the 8 KiB that FFmpeg reads. Chromium 156 offers 15 supported
/// payload types.
pub(super) const MAX_ANSWERED_CODECS: usize = 20;
/// Maximum length of a codec's name in an error text, in characters.
const MAX_SHOWN_CODEC_NAME_CHARS: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_profile_takes_a_smaller_one_but_not_the_reverse() {
        let h265 = |profile_id, tier_flag| CodecFormat::H265 { profile_id, tier_flag };
        assert_eq!(format_mismatch_rank(h265(1, 0), h265(1, 0)), Some(0));
        assert_eq!(format_mismatch_rank(h265(1, 0), h265(1, 1)), Some(1));
        assert_eq!(format_mismatch_rank(h265(1, 0), h265(2, 0)), Some(2));
        assert_eq!(format_mismatch_rank(h265(2, 0), h265(1, 0)), None);
        assert_eq!(format_mismatch_rank(h265(1, 1), h265(1, 0)), None);
        let av1 = |profile| CodecFormat::Av1 { profile };
        assert_eq!(format_mismatch_rank(av1(0), av1(1)), Some(1));
        assert_eq!(format_mismatch_rank(av1(1), av1(0)), None);
        assert_eq!(
            format_mismatch_rank(CodecFormat::Vp9 { profile: 0 }, CodecFormat::Vp9 { profile: 2 }),
            None
        );
        assert_eq!(
            format_mismatch_rank(CodecFormat::Vp8, CodecFormat::Vp9 { profile: 0 }),
            None
        );
    }

    #[test]
    fn the_source_may_use_either_packetization_mode_the_viewer_needs_mode_1_or_an_unstated_one() {
        let h264 = |packetization_mode| CodecFormat::H264 {
            profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
            packetization_mode,
        };
        assert_eq!(format_mismatch_rank(h264(0), h264(1)), Some(0));
        let offered = |pt, packetization_mode, is_mode_unstated| OfferedCodec {
            pt: PayloadType(pt),
            rtx_pt: None,
            format: h264(packetization_mode),
            channels: 1,
            lacks_packetization_mode: is_mode_unstated,
            answer_fmtp: String::new(),
            rtcp_feedback: RtcpFeedback::default(),
            parameter_sets: Vec::new(),
        };
        let (mode_1, mode_0, unstated) = (offered(1, 1, false), offered(2, 0, false), offered(3, 0, true));
        let sent = |offered: &[&OfferedCodec]| {
            let offered: Vec<OfferedCodec> = offered.iter().copied().cloned().collect();
            select_sendable_codecs(&offered)
                .iter()
                .map(|codec| codec.pt.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(sent(&[&unstated, &mode_0, &mode_1]), [1]);
        assert_eq!(sent(&[&mode_0, &unstated]), [3]);
        assert_eq!(sent(&[&mode_0]), [0u8; 0]);
    }

    #[test]
    fn h264_profiles_follow_the_source_then_high_then_main() {
        use H264Profile as C;
        for source in [
            C::High,
            C::ConstrainedHigh,
            C::Main,
            C::ConstrainedBaseline,
            C::Baseline,
        ] {
            assert_eq!(h264_profile_mismatch_rank(source, source), 0);
        }
        assert!(h264_profile_mismatch_rank(C::High, C::ConstrainedHigh) < h264_profile_mismatch_rank(C::High, C::Main));
        assert!(h264_profile_mismatch_rank(C::High, C::Main) < MIN_DOUBTFUL_MISMATCH_RANK);
        assert_eq!(
            h264_profile_mismatch_rank(C::High, C::ConstrainedBaseline),
            MIN_DOUBTFUL_MISMATCH_RANK
        );
        assert_eq!(h264_profile_mismatch_rank(C::ConstrainedBaseline, C::Baseline), 1);
        assert!(
            h264_profile_mismatch_rank(C::Baseline, C::ConstrainedBaseline)
                < h264_profile_mismatch_rank(C::Baseline, C::Main)
        );
    }
}
