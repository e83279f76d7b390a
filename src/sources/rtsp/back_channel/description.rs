//! The back channels in the session description of a camera.

use millstream_core::media::Codec;

use crate::sources::rtsp::sdp::{self, CameraMediaSection};

/// A track that the camera takes, in a format that the gateway can send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackChannelTrack {
    /// URI of its SETUP.
    pub control: String,
    pub codec: Codec,
    pub payload_type: u8,
}

/// What the camera takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BackChannelTracks {
    /// In the order of the camera.
    pub tracks: Vec<BackChannelTrack>,
    /// The formats that the gateway cannot send.
    pub unsupported: Vec<String>,
}

/// Longest URI, and most formats that are looked at.
const MAX_URI_BYTES: usize = 2_048;
const MAX_FORMATS: usize = 32;
/// Longest name of a format in an error text, in characters.
const MAX_FORMAT_NAME_CHARS: usize = 40;

/// Payload types without `rtpmap` (RFC 3551 §6).
const STATIC_FORMATS: [(u8, &str); 5] = [
    (0, "PCMU/8000"),
    (2, "G726-32/8000"),
    (8, "PCMA/8000"),
    (9, "G722/8000"),
    (18, "G729/8000"),
];

/// Reads the back channels of a description; controls are relative to `base`.
pub(super) fn parse_back_channel_tracks(description: &[u8], base: &str) -> BackChannelTracks {
    let sections = sdp::parse_media_sections(description);
    let mut found = BackChannelTracks::default();
    let back_channels = sections.iter().filter(|section| section.is_back_channel(&sections));
    for (section, payload_type) in back_channels.flat_map(formats_of_section).take(MAX_FORMATS) {
        let format = format_name(section, payload_type);
        let control = resolve_control(base, section.control());
        match (codec_of_format(&format), control) {
            (Some(codec), Some(control)) => found.tracks.push(BackChannelTrack {
                control,
                codec,
                payload_type,
            }),
            _ => found.unsupported.push(format),
        }
    }
    found
}

fn formats_of_section(section: &CameraMediaSection) -> impl Iterator<Item = (&CameraMediaSection, u8)> {
    let payload_types = section.payload_types().iter().filter_map(|text| text.parse().ok());
    payload_types
        .filter(|payload_type| *payload_type < 128)
        .map(move |payload_type| (section, payload_type))
}

/// Returns name, rate and channels, as in an `rtpmap`.
fn format_name(section: &CameraMediaSection, payload_type: u8) -> String {
    let by_number = STATIC_FORMATS.iter().find(|(number, _)| *number == payload_type);
    let name = section
        .rtpmap(payload_type)
        .or(by_number.map(|(_, name)| *name))
        .map_or_else(|| format!("payload type {payload_type}"), str::to_owned);
    let printable = name.chars().filter(|c| !c.is_control());
    printable.take(MAX_FORMAT_NAME_CHARS).collect()
}

fn codec_of_format(format: &str) -> Option<Codec> {
    let format = format.to_ascii_uppercase();
    match format.strip_suffix("/1").unwrap_or(&format) {
        "PCMU/8000" => Some(Codec::Pcmu),
        "PCMA/8000" => Some(Codec::Pcma),
        _ => None,
    }
}

/// Returns the URI that a control attribute means, as cameras mean it (RFC 2326 §C.1.1): it is appended to the base. `None`
/// if it cannot stand in a request.
fn resolve_control(base: &str, control: &str) -> Option<String> {
    let uri = match control {
        "" | "*" => base.to_owned(),
        _ if has_rtsp_scheme(control) => control.to_owned(),
        _ if base.ends_with('/') => format!("{base}{control}"),
        _ => format!("{base}/{control}"),
    };
    is_request_uri(&uri).then_some(uri)
}

/// Whether a text of the camera can stand in the first line of a request.
pub(super) fn is_request_uri(text: &str) -> bool {
    has_rtsp_scheme(text) && text.len() <= MAX_URI_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn has_rtsp_scheme(text: &str) -> bool {
    let scheme = text.get(.."rtsp://".len());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("rtsp://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracks(audio: &str) -> BackChannelTracks {
        let text = format!("v=0\r\nm=video 0 RTP/AVP 96\r\na=recvonly\r\na=control:track0\r\n{audio}");
        parse_back_channel_tracks(text.as_bytes(), "rtsp://cam/live/")
    }

    #[test]
    fn what_the_camera_takes_is_found_in_the_sections_that_clients_send_to() {
        let found = tracks(
            "m=audio 0 RTP/AVP 0\r\na=recvonly\r\na=control:track1\r\n\
             m=audio 0 RTP/AVP 0 8 97 98 107\r\na=rtpmap:97 MPEG4-GENERIC/16000/1\r\na=rtpmap:98 pcma/8000/1\r\n\
             a=control:track2\r\na=sendonly\r\n\
             m=audio 0 RTP/AVP 101\r\na=rtpmap:101 PCMU/16000\r\na=control:rtsp://10.0.0.9/back\r\na=sendonly\r\n",
        );
        let of_camera: Vec<(Codec, u8, &str)> = found
            .tracks
            .iter()
            .map(|track| (track.codec, track.payload_type, track.control.as_str()))
            .collect();
        let control = "rtsp://cam/live/track2";
        let wanted = [
            (Codec::Pcmu, 0, control),
            (Codec::Pcma, 8, control),
            (Codec::Pcma, 98, control),
        ];
        assert_eq!(of_camera, wanted);
        assert_eq!(
            found.unsupported,
            ["MPEG4-GENERIC/16000/1", "payload type 107", "PCMU/16000"]
        );
    }

    #[test]
    fn a_description_without_such_a_section_has_none() {
        for audio in [
            "",
            "m=audio 0 RTP/AVP 0\r\na=control:track1\r\n",
            "m=audio 0 RTP/AVP 0\r\na=recvonly\r\na=control:track1\r\n",
        ] {
            assert_eq!(tracks(audio), BackChannelTracks::default(), "{audio}");
        }
    }

    #[test]
    fn a_control_is_appended_to_the_base_and_has_to_fit_a_request() {
        let long = "x".repeat(MAX_URI_BYTES);
        for (base, control, wanted) in [
            ("rtsp://cam/live", "track2", Some("rtsp://cam/live/track2")),
            ("rtsp://cam/live/", "track2", Some("rtsp://cam/live/track2")),
            ("rtsp://cam/live", "*", Some("rtsp://cam/live")),
            ("rtsp://cam/live", "", Some("rtsp://cam/live")),
            (
                "rtsp://cam/live",
                "RTSP://10.0.0.9/back?a=b",
                Some("RTSP://10.0.0.9/back?a=b"),
            ),
            ("rtsp://cam/live", "a b", None),
            ("rtsp://cam/live", "caf\u{e9}", None),
            ("rtsp://cam/live", long.as_str(), None),
        ] {
            assert_eq!(resolve_control(base, control).as_deref(), wanted, "{control}");
        }
    }
}
