//! Writes the parts of an answer that publishers and viewers share (RFC 8829 §5.3, RFC 9143 §7.3, RFC 8839 §4.2).

use rtc_sdp::description::common::{Address, Attribute, ConnectionInformation};
use rtc_sdp::description::media::{MediaDescription, MediaName, RangedPort};
use rtc_sdp::description::session::{Origin, SessionDescription, TimeDescription};

use super::codec::OfferedCodec;
use super::data_channel::SCTP_PORT;
use super::error::OfferError;
use super::ice_restart::IceFragmentTemplate;
use super::local_description::{LocalDescription, VideoSectionId};
use super::local_transport::{LocalTransport, candidate_lines, fingerprint_value};
use super::negotiation_result::{
    DataPeerRole, DtlsRole, NegotiatedCodec, NegotiatedDataChannels, RemoteTransport, RtcpFeedback,
    RtpHeaderExtensionIds,
};
use super::offer::{MediaSection, Offer, Section};
use super::{extension::Extmap, extension::RtpHeaderExtension};
use crate::media::CodecFormat;

/// The answer to an accepted section, without its transport.
pub(super) struct AcceptedSection {
    /// Index of the section in the offer.
    pub section_index: usize,
    /// `recvonly` or `sendonly`.
    pub direction: &'static str,
    pub codecs: Vec<AnsweredCodec>,
    /// Attributes written after the codecs.
    pub attributes: Vec<Attribute>,
}

/// The accepted sections of an offer.
#[derive(Clone, Copy)]
pub(super) struct AcceptedSections<'a> {
    pub media: &'a [AcceptedSection],
    /// Index of the accepted data channel section, and what was negotiated.
    pub data_channels: Option<(usize, NegotiatedDataChannels)>,
}

impl AcceptedSections<'_> {
    fn is_accepted(&self, index: usize) -> bool {
        self.data_channels.is_some_and(|(data, _)| data == index) || self.accepted_media_section(index).is_some()
    }

    fn accepted_media_section(&self, index: usize) -> Option<&AcceptedSection> {
        self.media.iter().find(|reply| reply.section_index == index)
    }
}

/// A codec with the parameters written for it.
pub(super) struct AnsweredCodec {
    pub codec: NegotiatedCodec,
    /// As offered: the answer repeats the `a=rtpmap` of the offer.
    channels: u8,
    fmtp: String,
}

impl AnsweredCodec {
    /// Answers an offered codec. `opus_fmtp` is the fmtp of Opus, which differs between publishers and viewers.
    pub(crate) fn new(offered: &OfferedCodec, feedback: RtcpFeedback, opus_fmtp: &str) -> Self {
        Self {
            codec: NegotiatedCodec {
                pt: offered.pt,
                rtx_pt: offered.rtx_pt,
                format: offered.format,
                rtcp_feedback: feedback,
            },
            channels: offered.channels,
            fmtp: match offered.format {
                CodecFormat::Opus { .. } => opus_fmtp.to_owned(),
                _ => offered.answer_fmtp.clone(),
            },
        }
    }
}

/// Negotiates the transport and the data channels of an offer whose media sections are accepted like this, and writes the
/// answer. The peer has `role` in data channels.
///
/// # Errors
///
/// An [`OfferError`] if the accepted sections have no common transport.
pub(super) fn negotiate_transport_and_write_answer(
    offer: &Offer,
    local: &LocalTransport<'_>,
    role: DataPeerRole,
    media: &[AcceptedSection],
) -> Result<(RemoteTransport, LocalDescription), OfferError> {
    let indexes: Vec<usize> = media.iter().map(|section| section.section_index).collect();
    let mut transport = offer.negotiate_transport(&indexes)?;
    let data_channels = local
        .accepts_data_channels
        .then(|| offer.negotiate_data_channels(role))
        .flatten();
    transport.data_channels = data_channels.map(|(_, negotiated)| negotiated);
    let accepted = AcceptedSections { media, data_channels };
    let answer = write_answer(offer, local, transport.gateway_dtls_role, accepted);
    Ok((transport, answer))
}

/// Writes the answer. Sections without an entry in `accepted` are rejected.
fn write_answer(
    offer: &Offer,
    local: &LocalTransport<'_>,
    role: DtlsRole,
    accepted: AcceptedSections<'_>,
) -> LocalDescription {
    let indexes: Vec<usize> = (0..offer.sections.len())
        .filter(|index| accepted.is_accepted(*index))
        .collect();
    let bundled = offer.accepted_sections_in_bundle_order(&indexes);
    let mut description = SessionDescription {
        origin: Origin {
            username: "-".to_owned(),
            session_id: local.sdp_session_id & (u64::MAX >> 1),
            session_version: 1,
            network_type: "IN".to_owned(),
            address_type: "IP4".to_owned(),
            unicast_address: "127.0.0.1".to_owned(),
        },
        session_name: "-".to_owned(),
        time_descriptions: vec![TimeDescription::default()],
        ..SessionDescription::default()
    };
    let group = offer.bundle_group.is_some().then(|| {
        let sections = bundled.iter().filter_map(|index| offer.sections.get(*index));
        sections.map(|section| &*section.mid.0).collect::<Vec<&str>>().join(" ")
    });
    if let Some(mids) = &group {
        description
            .attributes
            .push(value_attribute("group", format!("BUNDLE {mids}")));
    }
    description.attributes.push(property_attribute("ice-lite"));
    description
        .attributes
        .push(value_attribute("ice-options", "trickle ice2".to_owned()));
    for (index, section) in offer.sections.iter().enumerate() {
        let is_tagged = bundled.first() == Some(&index);
        let data = accepted.data_channels.filter(|(data, _)| *data == index);
        description
            .media_descriptions
            .push(match (accepted.accepted_media_section(index), data) {
                (Some(reply), _) => accept_section(section, reply, local, role, is_tagged),
                (None, Some((_, data))) => accept_data_channel_section(section, &data, local, role, is_tagged),
                (None, None) => reject_section(section, local, role),
            });
    }
    LocalDescription {
        sdp: description.marshal(),
        video_section: find_accepted_video_section_of_offer(offer, accepted.media),
        ice_fragment_template: build_ice_fragment_template(offer, group, bundled.first().copied(), accepted),
        section_kinds_and_mids: offer.section_kinds_and_mids(),
    }
}

fn find_accepted_video_section_of_offer(offer: &Offer, accepted: &[AcceptedSection]) -> Option<VideoSectionId> {
    let mut sections = offer.sections.iter().enumerate();
    let (index, section) = sections.find(|(index, section)| {
        section.media_kind == "video" && accepted.iter().any(|reply| reply.section_index == *index)
    })?;
    Some(VideoSectionId {
        index,
        mid: section.has_mid.then(|| section.mid.0.to_string()),
    })
}

/// The tagged section, which has the candidates.
fn build_ice_fragment_template(
    offer: &Offer,
    group: Option<String>,
    tagged: Option<usize>,
    accepted: AcceptedSections<'_>,
) -> IceFragmentTemplate {
    let Some(section) = tagged.and_then(|index| offer.sections.get(index)) else {
        return IceFragmentTemplate::default();
    };
    let reply = tagged.and_then(|index| accepted.accepted_media_section(index));
    let format = match reply {
        Some(reply) => reply.codecs.first().map(|answered| answered.codec.pt.0.to_string()),
        None => Some(section.first_format.clone()),
    };
    let format = format.unwrap_or_default();
    let media_line = format!("{} 9 {} {format}", section.media_kind, section.proto);
    let mid = section.has_mid.then_some(&*section.mid.0);
    IceFragmentTemplate::new(group, media_line, mid)
}

/// Rejects a section with port 0 (RFC 3264 §6). It lists one format: a line without any is malformed, and Chromium
/// rejects the whole answer.
///
/// Attributes below a rejected m-line have no meaning (RFC 8829 §5.11). The transport is written nevertheless, because
/// webrtcbin of GStreamer 1.28.8 rejects an answer in which a section lacks it, and aiortc 1.16 one in which a section
/// lacks `a=rtcp-mux`. The section is in no BUNDLE group (RFC 9143 §7.3.3) and has no candidates.
fn reject_section(section: &Section, local: &LocalTransport<'_>, role: DtlsRole) -> MediaDescription {
    let mut media = media_description(section, 0, vec![section.first_format.clone()]);
    push_mid(&mut media, section);
    media.attributes.push(property_attribute("inactive"));
    push_transport_attributes(&mut media.attributes, local, role);
    media.attributes.push(property_attribute("rtcp-mux"));
    media
}

fn accept_section(
    section: &Section,
    reply: &AcceptedSection,
    local: &LocalTransport<'_>,
    role: DtlsRole,
    is_tagged: bool,
) -> MediaDescription {
    let formats = reply.codecs.iter().flat_map(|answered| {
        let codec = &answered.codec;
        std::iter::once(codec.pt).chain(codec.rtx_pt)
    });
    // Port 9 is a placeholder: the candidates carry the actual port (RFC 8839 §4.2.1.2).
    let mut media = media_description(section, 9, formats.map(|pt| pt.0.to_string()).collect());
    push_mid(&mut media, section);
    let attributes = &mut media.attributes;
    attributes.push(property_attribute(reply.direction));
    push_transport_attributes(attributes, local, role);
    attributes.push(property_attribute("rtcp-mux"));
    attributes.push(property_attribute("rtcp-mux-only"));
    if let super::offer::SdpSectionContent::Media(media) = &section.content
        && media.reduced_size_rtcp
    {
        attributes.push(property_attribute("rtcp-rsize"));
    }
    for answered in &reply.codecs {
        push_codec_attributes(attributes, answered);
    }
    attributes.extend(reply.attributes.iter().cloned());
    if is_tagged {
        push_candidate_attributes(attributes, local);
    }
    media
}

/// RFC 8841 §10.3. The direction and the attributes of RTP have no meaning here.
fn accept_data_channel_section(
    section: &Section,
    negotiated: &NegotiatedDataChannels,
    local: &LocalTransport<'_>,
    role: DtlsRole,
    is_tagged: bool,
) -> MediaDescription {
    let mut media = media_description(section, 9, vec![section.first_format.clone()]);
    push_mid(&mut media, section);
    let attributes = &mut media.attributes;
    push_transport_attributes(attributes, local, role);
    attributes.push(value_attribute("sctp-port", SCTP_PORT.to_string()));
    attributes.push(value_attribute(
        "max-message-size",
        negotiated.peer_role.max_received_message_size().to_string(),
    ));
    if is_tagged {
        push_candidate_attributes(attributes, local);
    }
    media
}

/// Writes the transport attributes, the same in every section. RFC 9143 §7.1.3 requires them in the tagged section
/// only, but some clients expect them in each, and all clients accept the repetition.
fn push_transport_attributes(attributes: &mut Vec<Attribute>, local: &LocalTransport<'_>, role: DtlsRole) {
    attributes.push(value_attribute("ice-ufrag", local.ice_credentials.ufrag.clone()));
    attributes.push(value_attribute("ice-pwd", local.ice_credentials.pwd.clone()));
    attributes.push(value_attribute("fingerprint", fingerprint_value(local.fingerprint)));
    let setup = match role {
        DtlsRole::Client => "active",
        DtlsRole::Server => "passive",
    };
    attributes.push(value_attribute("setup", setup.to_owned()));
}

fn media_description(section: &Section, port: isize, formats: Vec<String>) -> MediaDescription {
    MediaDescription {
        media_name: MediaName {
            media: section.media_kind.clone(),
            port: RangedPort {
                value: port,
                range: None,
            },
            protos: vec![section.proto.clone()],
            formats,
        },
        connection_information: Some(ConnectionInformation {
            network_type: "IN".to_owned(),
            address_type: "IP4".to_owned(),
            address: Some(Address {
                address: "0.0.0.0".to_owned(),
                ttl: None,
                range: None,
            }),
        }),
        ..MediaDescription::default()
    }
}

fn push_mid(media: &mut MediaDescription, section: &Section) {
    if section.has_mid {
        media.attributes.push(value_attribute("mid", section.mid.0.to_string()));
    }
}

fn push_codec_attributes(attributes: &mut Vec<Attribute>, answered: &AnsweredCodec) {
    let NegotiatedCodec {
        pt: crate::media::PayloadType(pt),
        rtx_pt,
        format,
        rtcp_feedback: feedback,
    } = answered.codec;
    let codec = format.codec();
    let channels = match answered.channels {
        1 => String::new(),
        channels => format!("/{channels}"),
    };
    let clock_rate = codec.clock_rate();
    attributes.push(value_attribute(
        "rtpmap",
        format!("{pt} {}/{clock_rate}{channels}", codec.name()),
    ));
    for (is_used, name) in [
        (feedback.nack, "nack"),
        (feedback.pli, "nack pli"),
        (feedback.fir, "ccm fir"),
        (feedback.transport_cc, "transport-cc"),
        (feedback.remb, "goog-remb"),
    ] {
        if is_used {
            attributes.push(value_attribute("rtcp-fb", format!("{pt} {name}")));
        }
    }
    if !answered.fmtp.is_empty() {
        attributes.push(value_attribute("fmtp", format!("{pt} {}", answered.fmtp)));
    }
    if let Some(rtx) = rtx_pt {
        attributes.push(value_attribute("rtpmap", format!("{} rtx/{clock_rate}", rtx.0)));
        attributes.push(value_attribute("fmtp", format!("{} apt={pt}", rtx.0)));
    }
}

/// Writes all candidates and `end-of-candidates`: the gateway does not trickle (RFC 9725 §4.3.2).
fn push_candidate_attributes(attributes: &mut Vec<Attribute>, local: &LocalTransport<'_>) {
    attributes.extend(candidate_lines(local).map(|candidate| value_attribute("candidate", candidate)));
    attributes.push(property_attribute("end-of-candidates"));
}

/// Answers the offered header extensions that `is_used` selects. Returns their ids and their `a=extmap` attributes.
pub(super) fn answer_header_extensions(
    media: &MediaSection,
    is_used: impl Fn(&Extmap) -> bool,
) -> (RtpHeaderExtensionIds, Vec<Attribute>) {
    let mut ids = RtpHeaderExtensionIds::default();
    let mut attributes = Vec::new();
    for extmap in media.extmaps.iter().filter(|extmap| is_used(extmap)) {
        let id = match extmap.extension {
            RtpHeaderExtension::Mid => &mut ids.mid,
            RtpHeaderExtension::Rid => &mut ids.rid,
            RtpHeaderExtension::RepairedRid => &mut ids.repaired_rid,
            RtpHeaderExtension::TransportCc => &mut ids.transport_cc,
            RtpHeaderExtension::AbsSendTime => &mut ids.abs_send_time,
            RtpHeaderExtension::AbsCaptureTime => &mut ids.abs_capture_time,
            RtpHeaderExtension::PlayoutDelay => &mut ids.playout_delay,
        };
        *id = Some(extmap.id);
        attributes.push(value_attribute("extmap", extmap.answer_value()));
    }
    (ids, attributes)
}

/// `a=key:value`.
pub(super) fn value_attribute(key: &str, value: String) -> Attribute {
    Attribute::new(key.to_owned(), Some(value))
}

/// `a=key`.
fn property_attribute(key: &str) -> Attribute {
    Attribute::new(key.to_owned(), None)
}
