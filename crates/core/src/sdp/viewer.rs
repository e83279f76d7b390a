//! The answer to a viewer (WHEP §4.3): the current format of the stream first, then every other supported codec, so
//! that a source with another codec can follow without renegotiation.

use rtc_sdp::description::common::Attribute;

use super::answer::{self, AcceptedSection, AnsweredCodec, value_attribute};
use super::codec::{
    MAX_ANSWERED_CODECS, MIN_DOUBTFUL_MISMATCH_RANK, OfferedCodec, format_mismatch_rank, select_sendable_codecs,
};
use super::error::OfferError;
use super::extension::RtpHeaderExtension;
use super::local_description::LocalDescription;
use super::local_transport::LocalTransport;
use super::negotiation_result::{
    AudioVideoFormats, AvailableTracks, DataPeerRole, NegotiatedPlayback, OutgoingTrack, RtcpFeedback,
    RtpHeaderExtensionIds,
};
use super::offer::{MediaSection, Offer, OfferedDirection, Section};
use crate::media::{CodecFormat, MediaKind, Ssrc};

/// Answers a WHEP offer. Returns what the session will send, and the SDP.
///
/// A section is rejected without rejecting the offer if the viewer cannot receive the stream's codec, or if it is the
/// second of its kind: all tracks belong to one MediaStream (WHEP §4.6.2). A video section is also rejected if the
/// stream has no video, because a player would wait for the first frame and play no audio. An audio section is accepted
/// even if the stream has no audio, because the next source may have it.
///
/// The BUNDLE-tagged section is answered as inactive instead of being rejected: it carries the transport, and Chromium
/// 156 with `max-bundle` does not accept an answer that rejects it ("Failed to setup RTCP mux").
///
/// `random` provides the SSRCs and the CNAME.
///
/// # Errors
///
/// A 422 [`OfferError`] if no media would be sent, or if a section does not receive.
pub fn answer_whep_offer(
    offer: &Offer,
    source: &AudioVideoFormats,
    local: &LocalTransport<'_>,
    random: &mut dyn FnMut() -> u32,
) -> Result<(NegotiatedPlayback, LocalDescription), OfferError> {
    refuse_non_receiving_sections(offer)?;
    let mut ssrcs = SsrcAllocator::new(offer);
    let cname: String = (0..3).map(|_| format!("{:08x}", random())).collect();
    let mut tracks: Vec<OutgoingTrack> = Vec::new();
    let mut replies = Vec::new();
    let mut serves = false;
    for (index, section, media) in offer.media_sections() {
        let format = source.format_of_kind(media.kind);
        let chosen = match format {
            _ if tracks.iter().any(|track| track.kind == media.kind) => None,
            Some(format) => codecs_with_best_match_first(format, media),
            None if media.kind == MediaKind::Audio => {
                Some(select_sendable_codecs(&media.codecs)).filter(|codecs| !codecs.is_empty())
            }
            None => None,
        };
        let Some(codecs) = chosen else {
            if offer.offerer_tagged_section_index() == Some(index) {
                replies.extend(answer_section_as_inactive(index, media));
            }
            continue;
        };
        serves |= format.is_some();
        let accepted = AcceptedCodecsAndExtensions::limit_codecs_and_choose_extensions(media, codecs, local);
        let (track, reply) =
            negotiate_outgoing_track(index, section, media, accepted, &cname, &mut || ssrcs.next(random));
        tracks.push(track);
        replies.push(reply);
    }
    if !serves {
        return Err(OfferError::NothingPlayable {
            carries: describe_stream_formats(source),
            takes: describe_offered_formats(offer, source),
        });
    }
    let (transport, answer) =
        answer::negotiate_transport_and_write_answer(offer, local, DataPeerRole::Viewer, &replies)?;
    let playback = NegotiatedPlayback {
        uses_congestion_control: local.viewer_congestion_control,
        transport,
        tracks,
        cname,
    };
    Ok((playback, answer))
}

/// Returns the formats that the viewer behind an offer is sent.
pub fn formats_sent_to_offerer(offer: &Offer, available: &AvailableTracks) -> AudioVideoFormats {
    available.formats_sent_to_viewer(|format| {
        let sections = offer.media_sections().map(|(_, _, media)| media);
        let mut of_kind = sections.filter(|media| media.kind == format.codec().kind());
        of_kind.any(|media| codecs_with_best_match_first(format, media).is_some())
    })
}

/// WHEP §4.3.5.
fn refuse_non_receiving_sections(offer: &Offer) -> Result<(), OfferError> {
    let mut wrong = offer
        .media_sections()
        .filter(|(_, _, media)| matches!(media.direction, OfferedDirection::SendOnly | OfferedDirection::Inactive));
    match wrong.next() {
        Some((_, section, _)) => Err(OfferError::BadDirection {
            line: section.line_number,
            wanted: "recvonly",
        }),
        None => Ok(()),
    }
}

/// Returns the codecs to answer, the best match for the source first and the others as offered; `None` if none matches.
fn codecs_with_best_match_first(source: CodecFormat, media: &MediaSection) -> Option<Vec<OfferedCodec>> {
    let mut codecs = select_sendable_codecs(&media.codecs);
    let ranked = codecs
        .iter()
        .enumerate()
        .filter_map(|(index, codec)| format_mismatch_rank(source, codec.format).map(|rank| (rank, index)));
    let (rank, best) = ranked.min()?;
    if rank >= MIN_DOUBTFUL_MISMATCH_RANK {
        tracing::debug!(
            ?source,
            "WHEP offer: no offered codec profile covers the profile of the stream, so the viewer may be unable to decode it"
        );
    }
    let chosen = codecs.remove(best);
    codecs.insert(0, chosen);
    Some(codecs)
}

/// Answers a section as inactive, for its transport alone; `None` if it has no supported codec.
fn answer_section_as_inactive(index: usize, media: &MediaSection) -> Option<AcceptedSection> {
    let codecs: Vec<AnsweredCodec> = select_sendable_codecs(&media.codecs)
        .iter()
        .take(MAX_ANSWERED_CODECS)
        .map(|codec| {
            let feedback = choose_rtcp_feedback(codec.rtcp_feedback, RtpHeaderExtensionIds::default());
            AnsweredCodec::new(codec, feedback, opus_fmtp_for_offered(codec.format))
        })
        .collect();
    (!codecs.is_empty()).then_some(AcceptedSection {
        section_index: index,
        direction: "inactive",
        codecs,
        attributes: Vec::new(),
    })
}

/// The codecs of a section, and the header extensions that are sent with them.
struct AcceptedCodecsAndExtensions {
    codecs: Vec<OfferedCodec>,
    extension_ids: RtpHeaderExtensionIds,
    extmap_attributes: Vec<Attribute>,
}

impl AcceptedCodecsAndExtensions {
    /// Transport-wide congestion control needs both its feedback and its header extension
    /// (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3, §4): whepclientsrc offers the feedback alone. The codec that is
    /// sent, the first one, decides.
    ///
    /// The playout delay is for video with RTX: a packet that is sent once more byte for byte could not have another one, and
    /// the audio of the same MediaStream follows the video.
    fn limit_codecs_and_choose_extensions(
        media: &MediaSection,
        mut codecs: Vec<OfferedCodec>,
        local: &LocalTransport<'_>,
    ) -> Self {
        codecs.truncate(MAX_ANSWERED_CODECS);
        let sent = codecs.first();
        let uses_transport_cc =
            local.viewer_congestion_control && sent.is_some_and(|codec| codec.rtcp_feedback.transport_cc);
        let is_video_with_rtx = media.kind == MediaKind::Video && sent.is_some_and(|codec| codec.rtx_pt.is_some());
        let uses_playout_delay = local.viewer_playout_delay && is_video_with_rtx;
        let (extension_ids, extmap_attributes) = answer::answer_header_extensions(media, |extmap| {
            extmap.peer_accepts_extension()
                && match extmap.extension {
                    RtpHeaderExtension::Mid => true,
                    RtpHeaderExtension::TransportCc => uses_transport_cc,
                    RtpHeaderExtension::PlayoutDelay => uses_playout_delay,
                    RtpHeaderExtension::Rid
                    | RtpHeaderExtension::RepairedRid
                    | RtpHeaderExtension::AbsSendTime
                    | RtpHeaderExtension::AbsCaptureTime => false,
                }
        });
        Self {
            codecs,
            extension_ids,
            extmap_attributes,
        }
    }
}

fn negotiate_outgoing_track(
    index: usize,
    section: &Section,
    media: &MediaSection,
    accepted: AcceptedCodecsAndExtensions,
    cname: &str,
    next_ssrc: &mut dyn FnMut() -> Ssrc,
) -> (OutgoingTrack, AcceptedSection) {
    let AcceptedCodecsAndExtensions {
        codecs: offered,
        extension_ids: extensions,
        extmap_attributes: mut attributes,
    } = accepted;
    let codecs: Vec<AnsweredCodec> = offered
        .iter()
        .map(|codec| {
            let feedback = choose_rtcp_feedback(codec.rtcp_feedback, extensions);
            AnsweredCodec::new(codec, feedback, opus_fmtp_for_offered(codec.format))
        })
        .collect();
    let ssrc = next_ssrc();
    let has_rtx = codecs.iter().any(|answered| answered.codec.rtx_pt.is_some());
    let rtx_ssrc = has_rtx.then(next_ssrc);

    // Both tracks are in one MediaStream. Chromium rejects a FID group with an `a=ssrc` line for only one of its
    // members.
    attributes.push(value_attribute("msid", format!("{MEDIA_STREAM_ID} {}", media.kind)));
    if let Some(rtx) = rtx_ssrc {
        attributes.push(value_attribute("ssrc-group", format!("FID {} {}", ssrc.0, rtx.0)));
    }
    for ssrc in std::iter::once(ssrc).chain(rtx_ssrc) {
        attributes.push(value_attribute("ssrc", format!("{} cname:{cname}", ssrc.0)));
    }

    let track = OutgoingTrack {
        mid: section.mid.clone(),
        kind: media.kind,
        codecs: codecs.iter().map(|answered| answered.codec.clone()).collect(),
        extension_ids: extensions,
        ssrc,
        rtx_ssrc,
    };
    let reply = AcceptedSection {
        section_index: index,
        direction: "sendonly",
        codecs,
        attributes,
    };
    (track, reply)
}

/// Accepts feedback about packet loss and key frames, and transport-wide feedback where its header extension is sent. The
/// viewer's own estimate (REMB) is declined: it needs a header extension with the time of sending.
fn choose_rtcp_feedback(offered: RtcpFeedback, extensions: RtpHeaderExtensionIds) -> RtcpFeedback {
    RtcpFeedback {
        transport_cc: offered.transport_cc && extensions.transport_cc.is_some(),
        remb: false,
        ..offered
    }
}

/// RFC 7587 §6.1: `sprop-stereo` is what the gateway is likely to send; `stereo` repeats the viewer's preference.
fn opus_fmtp_for_offered(offered: CodecFormat) -> &'static str {
    match offered {
        CodecFormat::Opus { stereo: true } => "minptime=10;stereo=1;sprop-stereo=1;useinbandfec=1",
        _ => "minptime=10;sprop-stereo=1;useinbandfec=1",
    }
}

fn describe_offered_formats(offer: &Offer, source: &AudioVideoFormats) -> String {
    let sections = offer.media_sections().map(|(_, _, media)| {
        let format = source.format_of_kind(media.kind);
        let is_carried = |codec: &OfferedCodec| format.is_some_and(|format| format.codec() == codec.format.codec());
        // The offer has the codec, but not the packetization mode or the profile.
        let lacks = match format {
            _ if !media.codecs.iter().any(is_carried) => "",
            Some(CodecFormat::H264 { .. }) => ", but H264 not in packetization mode 1",
            _ => ", but not in the profile of the stream",
        };
        format!("{} {}{lacks}", media.kind, media.offered_codecs_text())
    });
    sections.take(4).collect::<Vec<_>>().join("; ")
}

fn describe_stream_formats(source: &AudioVideoFormats) -> String {
    let formats = [MediaKind::Video, MediaKind::Audio]
        .into_iter()
        .filter_map(|kind| source.format_of_kind(kind));
    let named = |format: CodecFormat| {
        let name = format.codec().name();
        match format {
            CodecFormat::H265 { profile_id, tier_flag } => format!("{name} (profile {profile_id}, tier {tier_flag})"),
            CodecFormat::Vp9 { profile } | CodecFormat::Av1 { profile } => format!("{name} (profile {profile})"),
            _ => name.to_owned(),
        }
    };
    let names: Vec<String> = formats.map(named).collect();
    if names.is_empty() {
        "no media yet".to_owned()
    } else {
        names.join(" and ")
    }
}

/// Allocates SSRCs that are not zero and not in use in the session.
struct SsrcAllocator(Vec<Ssrc>);

impl SsrcAllocator {
    fn new(offer: &Offer) -> Self {
        Self(
            offer
                .media_sections()
                .flat_map(|(_, _, media)| &media.all_declared_ssrcs)
                .map(|(_, ssrc)| *ssrc)
                .collect(),
        )
    }

    fn next(&mut self, random: &mut dyn FnMut() -> u32) -> Ssrc {
        let mut ssrc = Ssrc(random());
        // Terminates, because few SSRCs are in use.
        while ssrc.0 == 0 || self.0.contains(&ssrc) {
            ssrc = Ssrc(ssrc.0.wrapping_add(1));
        }
        self.0.push(ssrc);
        ssrc
    }
}

/// Id of the MediaStream at the viewer.
const MEDIA_STREAM_ID: &str = "millstream";
