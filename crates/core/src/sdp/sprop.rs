//! Parameter sets in format parameters: `sprop-parameter-sets` of H.264 (RFC 6184 §8.1), `sprop-vps`, `sprop-sps` and
//! `sprop-pps` of H.265 (RFC 7798 §7.1). GStreamer's payloaders send them nowhere else by default.

use bytes::Bytes;

use crate::media::CodecFormat;

/// Maximum number of NAL units of a payload type.
const MAX_PARAMETER_SETS: usize = 64;

/// Maximum length of the parameters in characters.
const MAX_SPROP_CHARS: usize = 16 << 10;

/// Returns the NAL units in the parameters of a format; what is no base64 (RFC 4648 §4) is left out.
pub(super) fn parse_parameter_sets<'a>(format: CodecFormat, parameter: impl Fn(&str) -> Option<&'a str>) -> Vec<Bytes> {
    let keys: &[&str] = match format {
        CodecFormat::H264 { .. } => &["sprop-parameter-sets"],
        CodecFormat::H265 { .. } => &["sprop-vps", "sprop-sps", "sprop-pps"],
        _ => &[],
    };
    let lists = keys.iter().filter_map(|key| parameter(key));
    lists
        .filter(|list| list.len() <= MAX_SPROP_CHARS)
        .flat_map(|list| list.split(','))
        .filter_map(|set| decode_base64(set.trim()))
        .filter(|nal| !nal.is_empty())
        .take(MAX_PARAMETER_SETS)
        .collect()
}

/// Decodes base64, with or without padding.
fn decode_base64(text: &str) -> Option<Bytes> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut buffer, mut bits) = (0u32, 0);
    for character in text.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        buffer = buffer << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits) as u8);
        }
    }
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_decoded_and_what_is_none_is_left_out() {
        let h264 = CodecFormat::H264 {
            profile: crate::media::ProfileLevelId::CONSTRAINED_BASELINE_3_1,
            packetization_mode: 1,
        };
        let of = |list: &'static str| parse_parameter_sets(h264, |key| (key == "sprop-parameter-sets").then_some(list));
        assert_eq!(
            of("Z0LgH9oR5A==,aM48gA=="),
            [
                &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4][..],
                &[0x68, 0xce, 0x3c, 0x80]
            ]
        );
        assert_eq!(of("Z0LgH9oR5A, !,,aM48gA"), of("Z0LgH9oR5A==,aM48gA=="));
        assert_eq!(of(""), Vec::<Bytes>::new());
        let h265 = CodecFormat::H265 {
            profile_id: 1,
            tier_flag: 0,
        };
        let sets = parse_parameter_sets(h265, |key| Some(if key == "sprop-pps" { "RAE=" } else { "QAE=,QgE=" }));
        assert_eq!(sets.len(), 5);
        assert_eq!(
            parse_parameter_sets(CodecFormat::Vp8, |_| Some("Z0I=")),
            Vec::<Bytes>::new()
        );
    }
}
