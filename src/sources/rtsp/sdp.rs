//! Reads what retina does not expose of a session description.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use millstream_core::media::Codec;
use millstream_core::media::aac_depacketizer::fmtp_parameter_values;

/// A media section of a session description.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CameraMediaSection {
    media: String,
    /// The first payload type.
    payload_type: String,
    payload_types: Vec<String>,
    control: String,
    /// Payload type, and name with rate and channels.
    rtpmap: Vec<(String, String)>,
    /// Payload type and parameters.
    fmtp: Vec<(String, String)>,
    is_sendonly: bool,
}

/// Returns the media sections.
pub(super) fn parse_media_sections(description: &[u8]) -> Vec<CameraMediaSection> {
    let text: Cow<'_, str> = String::from_utf8_lossy(description);
    let mut sections: Vec<CameraMediaSection> = Vec::new();
    for line in text.lines().map(|line| line.trim_matches([' ', '\0', '\r'])) {
        if let Some(line) = line.strip_prefix("m=") {
            let mut words = line.split_ascii_whitespace();
            let media = words.next().unwrap_or_default().to_owned();
            let payload_types: Vec<String> = words.skip(2).map(str::to_owned).collect();
            sections.push(CameraMediaSection {
                media,
                payload_type: payload_types.first().cloned().unwrap_or_default(),
                payload_types,
                ..CameraMediaSection::default()
            });
            continue;
        }
        let Some(section) = sections.last_mut() else { continue };
        if let Some(control) = line.strip_prefix("a=control:") {
            section.control = control.trim().to_owned();
        } else if let Some(rtpmap) = line.strip_prefix("a=rtpmap:") {
            let rtpmap = rtpmap.trim_start().split_once([' ', '\t']);
            section
                .rtpmap
                .extend(rtpmap.map(|(of, name)| (of.to_owned(), name.trim().to_owned())));
        } else if let Some(fmtp) = line.strip_prefix("a=fmtp:") {
            let fmtp = fmtp.trim_start().split_once([' ', '\t']);
            section
                .fmtp
                .extend(fmtp.map(|(of, text)| (of.to_owned(), text.trim().to_owned())));
        } else if line == "a=sendonly" {
            section.is_sendonly = true;
        }
    }
    sections
}

impl CameraMediaSection {
    /// Whether this is the section of a track with this media, payload type and control URL.
    pub(super) fn matches_track(&self, media: &str, payload_type: u8, control: Option<&str>) -> bool {
        let is_control = control.is_none_or(|control| self.control == "*" || control.ends_with(&self.control));
        self.media == media && self.payload_type == payload_type.to_string() && is_control
    }

    /// Returns the parameters of the payload type, of all its lines. Some cameras number them wrongly: then those of the
    /// first payload type of the section.
    pub(super) fn fmtp_parameters(&self) -> String {
        let is_own = |(of, _): &&(String, String)| *of == self.payload_type;
        let Some((payload_type, _)) = self.fmtp.iter().find(is_own).or(self.fmtp.first()) else {
            return String::new();
        };
        let lines = self.fmtp.iter().filter(|(of, _)| of == payload_type);
        lines.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(";")
    }

    /// Returns the payload types in the order of the camera.
    pub(super) fn payload_types(&self) -> &[String] {
        &self.payload_types
    }

    /// Returns name, rate and channels of a payload type.
    pub(super) fn rtpmap(&self, payload_type: u8) -> Option<&str> {
        let payload_type = payload_type.to_string();
        let found = self.rtpmap.iter().find(|(of, _)| *of == payload_type);
        found.map(|(_, name)| name.as_str())
    }

    /// Returns the control URI, which may be relative.
    pub(super) fn control(&self) -> &str {
        &self.control
    }

    /// Whether the camera receives this audio: its direction is that of the client (ONVIF Streaming Specification
    /// §5.3.1). Where everything is `sendonly`, it is that of the camera.
    pub(super) fn is_back_channel(&self, all: &[Self]) -> bool {
        self.is_sendonly && self.media == "audio" && all.iter().any(|section| !section.is_sendonly)
    }
}

/// Returns the parameter sets in an `fmtp` attribute (RFC 6184 §8.1, RFC 7798 §7.1) without start codes, and without what
/// is no parameter set: cameras put both there.
pub(super) fn parse_parameter_sets(fmtp: &str, codec: Codec) -> Vec<Bytes> {
    let names: &[&str] = match codec {
        Codec::H264 => &["sprop-parameter-sets"],
        Codec::H265 => &["sprop-vps", "sprop-sps", "sprop-pps"],
        _ => &[],
    };
    let is_set = |nal: &Bytes| match (codec, nal.first()) {
        (Codec::H264, Some(first)) => matches!(first & 0x1f, 7 | 8 | 13 | 15),
        (Codec::H265, Some(first)) => matches!(first >> 1 & 0x3f, 32..=34),
        _ => false,
    };
    let values = names.iter().flat_map(|name| fmtp_parameter_values(fmtp, name));
    values
        .flat_map(|value| value.split(','))
        .take(MAX_PARAMETER_SETS)
        .filter_map(|text| LENIENT_BASE64.decode(text.trim()).ok())
        .map(|bytes| {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let start_code = if zeros >= 2 && bytes.get(zeros) == Some(&1) {
                zeros + 1
            } else {
                0
            };
            Bytes::from(bytes).slice(start_code..)
        })
        .filter(is_set)
        .collect()
}

const MAX_PARAMETER_SETS: usize = 32;

const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_have_their_parameters_and_direction() {
        let text = b"v=0\r\nm=video 0 RTP/AVP 97\r\na=fmtp:97 a=1\r\na=control:t=0\r\n\
            m=audio 0 RTP/AVP 97\na=fmtp:98 b=2\na=fmtp:97  c=3; d=\xfc\na=control: rtsp://a/t=1\n\
            m=audio 0 RTP/AVP 104 0\na=fmtp:97 e=4\na=sendonly\na=control:t=2\n\0";
        let sections = parse_media_sections(text);
        let parameters: Vec<String> = sections.iter().map(CameraMediaSection::fmtp_parameters).collect();
        assert_eq!(parameters, ["a=1", "c=3; d=\u{fffd}", "e=4"]);
        let back: Vec<bool> = sections
            .iter()
            .map(|section| section.is_back_channel(&sections))
            .collect();
        assert_eq!(back, [false, false, true]);
        let of = |media, pt, control| {
            sections
                .iter()
                .position(|section| section.matches_track(media, pt, control))
        };
        assert_eq!(of("audio", 104, Some("rtsp://a/b/t=2")), Some(2));
        assert_eq!(of("audio", 97, Some("rtsp://a/t=1")), Some(1));
        assert_eq!((of("video", 97, None), of("video", 98, None)), (Some(0), None));
    }

    #[test]
    fn several_lines_of_a_payload_type_are_read_together() {
        let parameters = |lines: &str| {
            let sections = parse_media_sections(format!("m=video 0 RTP/AVP 96\n{lines}").as_bytes());
            sections.first().map(CameraMediaSection::fmtp_parameters)
        };
        for (lines, wanted) in [
            (
                "a=fmtp:96 packetization-mode=1\r\na=fmtp:96 sprop-parameter-sets=Z0Lg,aM4=\r\n",
                "packetization-mode=1;sprop-parameter-sets=Z0Lg,aM4=",
            ),
            ("a=fmtp:96 a=1;\na=fmtp:97 b=2\na=fmtp:96\tc=3\n", "a=1;;c=3"),
            ("a=fmtp:98 a=1\na=fmtp:97 b=2\na=fmtp:98 c=3\n", "a=1;c=3"),
            ("a=fmtp:96\n", ""),
        ] {
            assert_eq!(parameters(lines).as_deref(), Some(wanted), "{lines}");
        }
        let sets = parse_parameter_sets("sprop-parameter-sets=Z0Lg;a=1;sprop-parameter-sets=aM4=", Codec::H264);
        assert_eq!(sets.len(), 2, "each in a parameter of its own");
    }

    #[test]
    fn parameter_sets_are_found_among_what_is_none() {
        let sets = |fmtp: &str, codec| parse_parameter_sets(fmtp, codec);
        let (sps, pps) = (
            Bytes::from_static(&[0x67, 0x42, 0xe0]),
            Bytes::from_static(&[0x68, 0xce]),
        );
        let both = vec![sps.clone(), pps];
        assert_eq!(
            sets("packetization-mode=1; sprop-parameter-sets=Z0Lg,aM4=", Codec::H264),
            both
        );
        // Without padding, with start codes, and in another case.
        assert_eq!(sets("Sprop-Parameter-Sets=AAAAAWdC4A==,AAAAAWjO", Codec::H264), both);
        for half in ["sprop-parameter-sets=Z0Lg,", "sprop-parameter-sets=Z0Lg,????,IA=="] {
            assert_eq!(sets(half, Codec::H264), std::slice::from_ref(&sps), "{half}");
        }
        assert_eq!(sets("sprop-parameter-sets=", Codec::H264), Vec::<Bytes>::new());
        let hevc = sets(
            "sprop-vps=QAEM; sprop-sps=QgEB; sprop-pps=RAHA; sprop-sei=TgE=",
            Codec::H265,
        );
        assert_eq!(hevc.len(), 3);
    }
}
