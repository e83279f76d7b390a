//! The gateway's offer to a viewer that sends none (the WHEP of 2022) or whose offer cannot be served (WHEP §4.3.2).
//! The viewer's answer is parsed like an offer: it lists what the viewer receives, with the payload types of the
//! gateway.

use std::fmt::Write as _;

use super::data_channel::SCTP_PORT;
use super::ice_restart::IceFragmentTemplate;
use super::local_description::{LocalDescription, VideoSectionId};
use super::local_transport::{LocalTransport, candidate_lines, fingerprint_value};
use super::negotiation_result::{AudioVideoFormats, DataPeerRole};
use crate::media::{CodecFormat, ProfileLevelId};

/// Returns the offer, with a `sendonly` section for each kind, and one for data channels if they are accepted. SSRCs are not declared: the viewer learns them from
/// packets.
pub fn create_offer_to_viewer(source: &AudioVideoFormats, local: &LocalTransport<'_>) -> LocalDescription {
    let mut sections: Vec<(&str, Vec<(u8, CodecFormat)>)> = Vec::new();
    sections.push(("audio", offered_audio_formats(source.audio)));
    if let Some(format) = source.video {
        sections.push(("video", offered_video_formats(format)));
    }
    let data_mid = local.accepts_data_channels.then_some(sections.len());
    let mids: Vec<String> = (0..sections.len()).chain(data_mid).map(|mid| mid.to_string()).collect();
    let mut lines = vec![
        "v=0".to_owned(),
        format!("o=- {} 1 IN IP4 127.0.0.1", local.sdp_session_id & (u64::MAX >> 1)),
        "s=-".to_owned(),
        "t=0 0".to_owned(),
        format!("a=group:BUNDLE {}", mids.join(" ")),
        "a=ice-lite".to_owned(),
        "a=ice-options:trickle ice2".to_owned(),
        "a=msid-semantic:WMS *".to_owned(),
    ];
    for ((kind, codecs), mid) in sections.iter().zip(&mids) {
        let payload_types: Vec<String> = codecs.iter().map(|(pt, _)| pt.to_string()).collect();
        lines.push(format!("m={kind} 9 UDP/TLS/RTP/SAVPF {}", payload_types.join(" ")));
        lines.push("c=IN IP4 0.0.0.0".to_owned());
        lines.push(format!("a=mid:{mid}"));
        lines.push("a=sendonly".to_owned());
        push_transport_lines(&mut lines, local);
        lines.extend(["a=rtcp-mux", "a=rtcp-mux-only", "a=rtcp-rsize"].map(str::to_owned));
        lines.push(format!("a=msid:millstream {kind}"));
        for (pt, format) in codecs {
            push_codec_attribute_lines(&mut lines, *pt, *format);
        }
        if mid == "0" {
            lines.extend(candidate_lines(local).map(|line| format!("a=candidate:{line}")));
            lines.push("a=end-of-candidates".to_owned());
        }
    }
    if let Some(mid) = data_mid {
        push_data_channel_section(&mut lines, mid, local);
    }
    let mut text = lines.join("\r\n");
    text.push_str("\r\n");
    let first_format = sections.first().and_then(|(_, codecs)| Some(codecs.first()?.0));
    let media_line = format!("audio 9 UDP/TLS/RTP/SAVPF {}", first_format.unwrap_or_default());
    let video = sections.iter().position(|(kind, _)| *kind == "video");
    let kinds = sections
        .iter()
        .map(|(kind, _)| *kind)
        .chain(data_mid.map(|_| "application"));
    LocalDescription {
        sdp: text,
        video_section: video.map(|index| VideoSectionId {
            index,
            mid: mids.get(index).cloned(),
        }),
        ice_fragment_template: IceFragmentTemplate::new(
            Some(mids.join(" ")),
            media_line,
            mids.first().map(String::as_str),
        ),
        section_kinds_and_mids: kinds.map(str::to_owned).zip(mids.iter().cloned()).collect(),
    }
}

fn push_transport_lines(lines: &mut Vec<String>, local: &LocalTransport<'_>) {
    lines.push(format!("a=ice-ufrag:{}", local.ice_credentials.ufrag));
    lines.push(format!("a=ice-pwd:{}", local.ice_credentials.pwd));
    lines.push(format!("a=fingerprint:{}", fingerprint_value(local.fingerprint)));
    lines.push("a=setup:actpass".to_owned());
}

/// RFC 8841 §10.2.
fn push_data_channel_section(lines: &mut Vec<String>, mid: usize, local: &LocalTransport<'_>) {
    lines.push("m=application 9 UDP/DTLS/SCTP webrtc-datachannel".to_owned());
    lines.push("c=IN IP4 0.0.0.0".to_owned());
    lines.push(format!("a=mid:{mid}"));
    push_transport_lines(lines, local);
    lines.push(format!("a=sctp-port:{SCTP_PORT}"));
    let max_size = DataPeerRole::Viewer.max_received_message_size();
    lines.push(format!("a=max-message-size:{max_size}"));
}

/// Returns the stream's format first, then the formats that another source may have.
fn offered_video_formats(source: CodecFormat) -> Vec<(u8, CodecFormat)> {
    let baseline = CodecFormat::H264 {
        profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
        packetization_mode: 1,
    };
    let mut codecs = vec![
        (102, baseline),
        (96, CodecFormat::Vp8),
        (98, CodecFormat::Vp9 { profile: 0 }),
        (45, CodecFormat::Av1 { profile: 0 }),
        (
            49,
            CodecFormat::H265 {
                profile_id: 1,
                tier_flag: 0,
            },
        ),
    ];
    let source = match source {
        CodecFormat::H264 { profile, .. } => CodecFormat::H264 {
            profile,
            packetization_mode: 1,
        },
        source => source,
    };
    let known = codecs.iter().position(|(_, format)| *format == source);
    let first = known.map_or((106, source), |index| codecs.remove(index));
    codecs.insert(0, first);
    codecs
}

fn offered_audio_formats(source: Option<CodecFormat>) -> Vec<(u8, CodecFormat)> {
    let mut codecs = vec![
        (111, CodecFormat::Opus { stereo: true }),
        (0, CodecFormat::Pcmu),
        (8, CodecFormat::Pcma),
    ];
    codecs.sort_by_key(|(_, format)| source.is_none_or(|source| source.codec() != format.codec()));
    codecs
}

fn push_codec_attribute_lines(lines: &mut Vec<String>, pt: u8, format: CodecFormat) {
    let codec = format.codec();
    let channels = if matches!(format, CodecFormat::Opus { .. }) {
        "/2"
    } else {
        ""
    };
    lines.push(format!(
        "a=rtpmap:{pt} {}/{}{channels}",
        codec.name(),
        codec.clock_rate()
    ));
    let mut parameters = String::new();
    let _ = match format {
        CodecFormat::Opus { .. } => write!(parameters, "minptime=10;useinbandfec=1;stereo=1;sprop-stereo=1"),
        CodecFormat::H264 { profile, .. } => write!(
            parameters,
            "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile}"
        ),
        CodecFormat::H265 { profile_id, tier_flag } => {
            write!(parameters, "profile-id={profile_id};tier-flag={tier_flag};tx-mode=SRST")
        }
        CodecFormat::Vp9 { profile } => write!(parameters, "profile-id={profile}"),
        CodecFormat::Av1 { profile } => write!(parameters, "profile={profile}"),
        _ => Ok(()),
    };
    if !parameters.is_empty() {
        lines.push(format!("a=fmtp:{pt} {parameters}"));
    }
    if codec.kind() == crate::media::MediaKind::Video {
        lines.extend(["nack", "nack pli", "ccm fir"].map(|feedback| format!("a=rtcp-fb:{pt} {feedback}")));
    }
}
