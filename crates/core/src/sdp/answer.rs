//! Writes the parts of an answer that publishers and viewers share (RFC 8829 §5.3, RFC 9143 §7.3, RFC 8839 §4.2).

use rtc_sdp::description::common::{Address, Attribute, ConnectionInformation};
use rtc_sdp::description::media::{MediaDescription, MediaName, RangedPort};
use rtc_sdp::description::session::{Origin, SessionDescription, TimeDescription};

use super::codec::OfferedCodec;
use super::description::{LocalDescription, VideoSection};
use super::local::{Local, candidate_lines, fingerprint};
use super::offer::{MediaSection, Offer, Section};
use super::plan::{DtlsRole, Extensions, Feedback, NegotiatedCodec};
use super::restart::IceSection;
use super::{extension::Extmap, extension::HeaderExtension};
use crate::media::Format;

/// The answer to an accepted section, without its transport.
pub(super) struct Accepted {
    /// Index of the section in the offer.
    pub index: usize,
    /// `recvonly` or `sendonly`.
    pub direction: &'static str,
    pub codecs: Vec<AnsweredCodec>,
    /// Attributes written after the codecs.
    pub attributes: Vec<Attribute>,
}

/// A codec with the parameters written for it.
pub(super) struct AnsweredCodec {
    pub codec: NegotiatedCodec,
    /// As offered: the answer repeats the `a=rtpmap` of the offer.
    channels: u8,
    fmtp: String,
}

impl AnsweredCodec {
    /// Answers an offered codec. `opus` is the fmtp of Opus, which differs between publishers and viewers.
    pub(crate) fn new(offered: &OfferedCodec, feedback: Feedback, opus: &str) -> Self {
        Self {
            codec: NegotiatedCodec {
                pt: offered.pt,
                rtx_pt: offered.rtx_pt,
                format: offered.format,
                feedback,
            },
            channels: offered.channels,
            fmtp: match offered.format {
                Format::Opus { .. } => opus.to_owned(),
                _ => offered.fmtp.clone(),
            },
        }
    }
}

/// Writes the answer. Sections without an entry in `accepted` are rejected.
pub(super) fn write(offer: &Offer, local: &Local<'_>, role: DtlsRole, accepted: &[Accepted]) -> LocalDescription {
    let indexes: Vec<usize> = accepted.iter().map(|section| section.index).collect();
    let bundled = offer.bundled(&indexes);
    let mut description = SessionDescription {
        origin: Origin {
            username: "-".to_owned(),
            session_id: local.session_id & (u64::MAX >> 1),
            session_version: 1,
            network_type: "IN".to_owned(),
            address_type: "IP4".to_owned(),
            unicast_address: "127.0.0.1".to_owned(),
        },
        session_name: "-".to_owned(),
        time_descriptions: vec![TimeDescription::default()],
        ..SessionDescription::default()
    };
    let group = offer.bundle.is_some().then(|| {
        let sections = bundled.iter().filter_map(|index| offer.sections.get(*index));
        sections.map(|section| &*section.mid.0).collect::<Vec<&str>>().join(" ")
    });
    if let Some(mids) = &group {
        description.attributes.push(with("group", format!("BUNDLE {mids}")));
    }
    description.attributes.push(flag("ice-lite"));
    description
        .attributes
        .push(with("ice-options", "trickle ice2".to_owned()));
    for (index, section) in offer.sections.iter().enumerate() {
        let reply = accepted.iter().find(|reply| reply.index == index);
        description.media_descriptions.push(match reply {
            Some(reply) => accept(section, reply, local, role, bundled.first() == Some(&index)),
            None => reject(section, local, role),
        });
    }
    LocalDescription {
        sdp: description.marshal(),
        video: video_section(offer, accepted),
        ice: ice_section(offer, group, bundled.first().copied(), accepted),
        sections: offer.shape(),
    }
}

fn video_section(offer: &Offer, accepted: &[Accepted]) -> Option<VideoSection> {
    let mut sections = offer.sections.iter().enumerate();
    let (index, section) = sections
        .find(|(index, section)| section.media == "video" && accepted.iter().any(|reply| reply.index == *index))?;
    Some(VideoSection {
        index,
        mid: section.has_mid.then(|| section.mid.0.to_string()),
    })
}

/// The tagged section, which has the candidates.
fn ice_section(offer: &Offer, group: Option<String>, tagged: Option<usize>, accepted: &[Accepted]) -> IceSection {
    let Some(section) = tagged.and_then(|index| offer.sections.get(index)) else {
        return IceSection::default();
    };
    let reply = accepted.iter().find(|reply| Some(reply.index) == tagged);
    let format = reply
        .and_then(|reply| reply.codecs.first())
        .map(|answered| answered.codec.pt.0);
    let media_line = format!("{} 9 {} {}", section.media, section.proto, format.unwrap_or_default());
    let mid = section.has_mid.then_some(&*section.mid.0);
    IceSection::new(group, media_line, mid)
}

/// Rejects a section with port 0 (RFC 3264 §6). It lists one format: a line without any is malformed, and Chromium
/// rejects the whole answer.
///
/// Attributes below a rejected m-line have no meaning (RFC 8829 §5.11). The transport is written nevertheless, because
/// webrtcbin of GStreamer 1.28.8 rejects an answer in which a section lacks it. The section is in no BUNDLE group
/// (RFC 9143 §7.3.3) and has no candidates.
fn reject(section: &Section, local: &Local<'_>, role: DtlsRole) -> MediaDescription {
    let mut media = media_description(section, 0, vec![section.first_format.clone()]);
    push_mid(&mut media, section);
    media.attributes.push(flag("inactive"));
    push_transport(&mut media.attributes, local, role);
    media
}

fn accept(section: &Section, reply: &Accepted, local: &Local<'_>, role: DtlsRole, is_tagged: bool) -> MediaDescription {
    let formats = reply.codecs.iter().flat_map(|answered| {
        let codec = &answered.codec;
        std::iter::once(codec.pt).chain(codec.rtx_pt)
    });
    // Port 9 is a placeholder: the candidates carry the actual port (RFC 8839 §4.2.1.2).
    let mut media = media_description(section, 9, formats.map(|pt| pt.0.to_string()).collect());
    push_mid(&mut media, section);
    let attributes = &mut media.attributes;
    attributes.push(flag(reply.direction));
    push_transport(attributes, local, role);
    attributes.push(flag("rtcp-mux"));
    attributes.push(flag("rtcp-mux-only"));
    if let super::offer::Content::Media(media) = &section.content
        && media.reduced_size_rtcp
    {
        attributes.push(flag("rtcp-rsize"));
    }
    for answered in &reply.codecs {
        push_codec(attributes, answered);
    }
    attributes.extend(reply.attributes.iter().cloned());
    if is_tagged {
        push_candidates(attributes, local);
    }
    media
}

/// Writes the transport attributes, the same in every section. RFC 9143 §7.1.3 requires them in the tagged section
/// only, but some clients expect them in each, and all clients accept the repetition.
fn push_transport(attributes: &mut Vec<Attribute>, local: &Local<'_>, role: DtlsRole) {
    attributes.push(with("ice-ufrag", local.credentials.ufrag.clone()));
    attributes.push(with("ice-pwd", local.credentials.pwd.clone()));
    attributes.push(with("fingerprint", fingerprint(local.fingerprint)));
    let setup = match role {
        DtlsRole::Client => "active",
        DtlsRole::Server => "passive",
    };
    attributes.push(with("setup", setup.to_owned()));
}

fn media_description(section: &Section, port: isize, formats: Vec<String>) -> MediaDescription {
    MediaDescription {
        media_name: MediaName {
            media: section.media.clone(),
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
        media.attributes.push(with("mid", section.mid.0.to_string()));
    }
}

fn push_codec(attributes: &mut Vec<Attribute>, answered: &AnsweredCodec) {
    let NegotiatedCodec {
        pt: crate::media::Pt(pt),
        rtx_pt,
        format,
        feedback,
    } = answered.codec;
    let codec = format.codec();
    let channels = match answered.channels {
        1 => String::new(),
        channels => format!("/{channels}"),
    };
    let clock_rate = codec.clock_rate();
    attributes.push(with("rtpmap", format!("{pt} {}/{clock_rate}{channels}", codec.name())));
    for (is_used, name) in [
        (feedback.nack, "nack"),
        (feedback.pli, "nack pli"),
        (feedback.fir, "ccm fir"),
        (feedback.transport_cc, "transport-cc"),
        (feedback.remb, "goog-remb"),
    ] {
        if is_used {
            attributes.push(with("rtcp-fb", format!("{pt} {name}")));
        }
    }
    if !answered.fmtp.is_empty() {
        attributes.push(with("fmtp", format!("{pt} {}", answered.fmtp)));
    }
    if let Some(rtx) = rtx_pt {
        attributes.push(with("rtpmap", format!("{} rtx/{clock_rate}", rtx.0)));
        attributes.push(with("fmtp", format!("{} apt={pt}", rtx.0)));
    }
}

/// Writes all candidates and `end-of-candidates`: the gateway does not trickle (RFC 9725 §4.3.2).
fn push_candidates(attributes: &mut Vec<Attribute>, local: &Local<'_>) {
    attributes.extend(candidate_lines(local).map(|candidate| with("candidate", candidate)));
    attributes.push(flag("end-of-candidates"));
}

/// Answers the offered header extensions that `is_used` selects. Returns their ids and their `a=extmap` attributes.
pub(super) fn extensions(media: &MediaSection, is_used: impl Fn(&Extmap) -> bool) -> (Extensions, Vec<Attribute>) {
    let mut ids = Extensions::default();
    let mut attributes = Vec::new();
    for extmap in media.extensions.iter().filter(|extmap| is_used(extmap)) {
        let id = match extmap.known {
            HeaderExtension::Mid => &mut ids.mid,
            HeaderExtension::Rid => &mut ids.rid,
            HeaderExtension::RepairedRid => &mut ids.repaired_rid,
            HeaderExtension::TransportCc => &mut ids.transport_cc,
            HeaderExtension::AbsSendTime => &mut ids.abs_send_time,
        };
        *id = Some(extmap.id);
        attributes.push(with("extmap", extmap.answer()));
    }
    (ids, attributes)
}

/// `a=key:value`.
pub(super) fn with(key: &str, value: String) -> Attribute {
    Attribute::new(key.to_owned(), Some(value))
}

/// `a=key`.
fn flag(key: &str) -> Attribute {
    Attribute::new(key.to_owned(), None)
}
