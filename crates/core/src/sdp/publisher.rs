//! The answer to a publisher (RFC 9725 §4.2, §4.4): it accepts every offered track, or the offer is rejected.

use bytes::Bytes;
use rtc_sdp::description::common::Attribute;

use super::answer::{self, AcceptedSection, AnsweredCodec, value_attribute};
use super::codec::{MAX_ANSWERED_CODECS, supported_codec_names};
use super::error::OfferError;
use super::extension::RtpHeaderExtension;
use super::local_description::LocalDescription;
use super::local_transport::LocalTransport;
use super::negotiation_result::{
    DataPeerRole, IncomingTrack, NegotiatedPublication, RtcpFeedback, RtpHeaderExtensionIds,
};
use super::offer::{MediaSection, Offer, OfferedDirection, SdpSectionContent, Section};
use crate::media::{Codec, MediaKind};

/// Answers a WHIP offer. Returns what the session will receive, and the SDP.
///
/// # Errors
///
/// A 422 [`OfferError`] if any section cannot be accepted as offered (RFC 9725 §4.4.3). Only a data channel that cannot be
/// accepted is rejected without rejecting the offer.
pub fn answer_whip_offer(
    offer: &Offer,
    local: &LocalTransport<'_>,
) -> Result<(NegotiatedPublication, LocalDescription), OfferError> {
    refuse_unacceptable_sections(offer)?;
    answer_sections(offer, local, |_| true)
}

/// Returns the first codec of the offered audio among those that a camera takes, in the order of the camera.
///
/// # Errors
///
/// A 422 [`OfferError`] if the offer has video, or no such codec.
pub fn choose_talk_codec(offer: &Offer, codecs_of_camera: &[Codec]) -> Result<Codec, OfferError> {
    refuse_unacceptable_sections(offer)?;
    let video = offer
        .media_sections()
        .find(|(.., media)| media.kind == MediaKind::Video);
    if let Some((_, section, _)) = video {
        return Err(OfferError::VideoToCamera {
            line: section.line_number,
        });
    }
    let (_, section, media) = offer.media_sections().next().ok_or(OfferError::NoMedia)?;
    let is_offered = |codec: &&Codec| media.codecs.iter().any(|offered| offered.format.codec() == **codec);
    let chosen = codecs_of_camera.iter().find(is_offered);
    chosen.copied().ok_or_else(|| OfferError::NoCodecOfCamera {
        line: section.line_number,
        offered: media.offered_codecs_text(),
        accepted: match codecs_of_camera {
            [Codec::Pcmu] => "PCMU",
            [Codec::Pcma] => "PCMA",
            _ => "PCMU and PCMA",
        },
    })
}

/// Answers the offer of a talker with the codec from [`choose_talk_codec`] alone.
///
/// # Errors
///
/// As [`answer_whip_offer`].
pub fn answer_talk_offer(
    offer: &Offer,
    local: &LocalTransport<'_>,
    codec: Codec,
) -> Result<(NegotiatedPublication, LocalDescription), OfferError> {
    refuse_unacceptable_sections(offer)?;
    answer_sections(offer, local, |offered| offered == codec)
}

fn answer_sections(
    offer: &Offer,
    local: &LocalTransport<'_>,
    is_accepted: impl Fn(Codec) -> bool,
) -> Result<(NegotiatedPublication, LocalDescription), OfferError> {
    let mut tracks = Vec::new();
    let mut replies = Vec::new();
    for (index, section, media) in offer.media_sections() {
        let (track, reply) = negotiate_incoming_track(index, section, media, &is_accepted)?;
        tracks.push(track);
        replies.push(reply);
    }
    let (transport, answer) =
        answer::negotiate_transport_and_write_answer(offer, local, DataPeerRole::Publisher, &replies)?;
    Ok((NegotiatedPublication { transport, tracks }, answer))
}

fn refuse_unacceptable_sections(offer: &Offer) -> Result<(), OfferError> {
    let unsupported = |section: &&Section| matches!(section.content, SdpSectionContent::Unsupported);
    if let Some(section) = offer.sections.iter().find(unsupported) {
        return Err(OfferError::UnsupportedSection {
            line: section.line_number,
        });
    }
    let mut kinds: Vec<MediaKind> = Vec::new();
    for (_, section, media) in offer.media_sections() {
        let (line, kind) = (section.line_number, media.kind);
        if kinds.contains(&kind) {
            return Err(OfferError::TooManyTracks { line, kind });
        }
        kinds.push(kind);
        match media.direction {
            OfferedDirection::SendOnly | OfferedDirection::SendRecv => {}
            OfferedDirection::RecvOnly | OfferedDirection::Inactive => {
                return Err(OfferError::BadDirection {
                    line,
                    wanted: "sendonly",
                });
            }
        }
    }
    Ok(())
}

fn negotiate_incoming_track(
    index: usize,
    section: &Section,
    media: &MediaSection,
    is_accepted: impl Fn(Codec) -> bool,
) -> Result<(IncomingTrack, AcceptedSection), OfferError> {
    let line = section.line_number;
    if !media.codecs.iter().any(|codec| is_accepted(codec.format.codec())) {
        return Err(OfferError::NoCommonCodec {
            line,
            kind: media.kind,
            offered: media.offered_codecs_text(),
            accepted: supported_codec_names(media.kind),
        });
    }
    let (extensions, mut attributes) = choose_header_extensions(media);
    if !media.rids.is_empty() {
        // Layers have no SSRCs in the SDP: only the header extension identifies them (RFC 8853 §4).
        if extensions.rid.is_none() {
            return Err(OfferError::RidExtensionMissing { line });
        }
        push_simulcast_attributes(&mut attributes, media);
    }
    let codecs: Vec<AnsweredCodec> = media
        .codecs
        .iter()
        .filter(|codec| is_accepted(codec.format.codec()))
        .take(MAX_ANSWERED_CODECS)
        .map(|codec| AnsweredCodec::new(codec, choose_rtcp_feedback(codec.rtcp_feedback, extensions), OPUS_FMTP))
        .collect();
    let track = IncomingTrack {
        mid: section.mid.clone(),
        kind: media.kind,
        codecs: codecs.iter().map(|answered| answered.codec.clone()).collect(),
        extension_ids: extensions,
        ssrcs: media.ssrcs.clone(),
        rids: media.rids.clone(),
        layer_ssrcs: if media.rids.is_empty() {
            media.layer_ssrcs.clone()
        } else {
            Vec::new()
        },
        parameter_sets: parameter_sets_by_codec(media),
        reduced_size_rtcp: media.reduced_size_rtcp,
    };
    let reply = AcceptedSection {
        section_index: index,
        direction: "recvonly",
        codecs,
        attributes,
    };
    Ok((track, reply))
}

/// The parameter sets of each codec. Those of several payload types of one codec are taken together: an encoder sends one
/// of them, and replaces what differs.
fn parameter_sets_by_codec(media: &MediaSection) -> Vec<(Codec, Vec<Bytes>)> {
    let codecs = media.codecs.iter().filter(|codec| !codec.parameter_sets.is_empty());
    codecs
        .map(|codec| (codec.format.codec(), codec.parameter_sets.clone()))
        .collect()
}

/// Accepts the extensions that identify streams, and capture times. Congestion feedback uses transport-cc if it is offered with its header
/// extension, or else REMB.
fn choose_header_extensions(media: &MediaSection) -> (RtpHeaderExtensionIds, Vec<Attribute>) {
    let offers_transport_cc = media.codecs.iter().any(|codec| codec.rtcp_feedback.transport_cc);
    let has_transport_cc = offers_transport_cc
        && media
            .find_extmap(RtpHeaderExtension::TransportCc)
            .is_some_and(|map| map.peer_may_send_extension());
    let offers_remb = media.codecs.iter().any(|codec| codec.rtcp_feedback.remb);
    answer::answer_header_extensions(media, |extmap| {
        extmap.peer_may_send_extension()
            && match extmap.extension {
                RtpHeaderExtension::Mid | RtpHeaderExtension::Rid | RtpHeaderExtension::RepairedRid => true,
                RtpHeaderExtension::TransportCc => has_transport_cc,
                RtpHeaderExtension::AbsSendTime => offers_remb && !has_transport_cc,
                RtpHeaderExtension::AbsCaptureTime => true,
                RtpHeaderExtension::PlayoutDelay => false,
            }
    })
}

fn choose_rtcp_feedback(offered: RtcpFeedback, extensions: RtpHeaderExtensionIds) -> RtcpFeedback {
    let has_transport_cc = extensions.transport_cc.is_some();
    RtcpFeedback {
        transport_cc: offered.transport_cc && has_transport_cc,
        remb: offered.remb && !has_transport_cc,
        ..offered
    }
}

/// Accepts all layers in the peer's order (RFC 8853 §5.3.2). OBS 32.2.2 fails if one is missing.
fn push_simulcast_attributes(attributes: &mut Vec<Attribute>, media: &MediaSection) {
    let rids: Vec<&str> = media.rids.iter().map(|rid| &*rid.0).collect();
    for rid in &rids {
        attributes.push(value_attribute("rid", format!("{rid} recv")));
    }
    attributes.push(value_attribute("simulcast", format!("recv {}", rids.join(";"))));
}

/// RFC 7587 §6.1: `stereo` is the receiver's preference; Chromium encodes two channels only with it. `sprop-stereo`
/// describes what the sender of the SDP sends, which is nothing here. GStreamer's whipclientsink 0.15.4 treats it as a
/// requirement and aborts if it has one channel.
const OPUS_FMTP: &str = "minptime=10;stereo=1;useinbandfec=1";
