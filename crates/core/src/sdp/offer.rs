//! A parsed and validated offer: typed m-sections that also satisfy the rules that span sections (RFC 8829 §5.8, RFC
//! 9143, RFC 9725 §4.4).

use std::collections::HashMap;
use std::collections::HashSet;

use super::codec::{OfferedCodec, OfferedPayloadTypes, Rtpmap};
use super::data_channel::DataChannelSection;
use super::error::OfferError;
use super::extension::{self, Extmap, RtpHeaderExtension};
use super::negotiation_result::{DataPeerRole, DeclaredSsrc, NegotiatedDataChannels, RemoteTransport};
use super::sdp_lines::{
    self, AttributeWithLineNumber, RawSection, SdpDocument, attributes_named, first_attribute_named,
};
use super::transport::{self, SectionTransportAttributes};
use super::{quirks, simulcast, ssrc};
use crate::media::{MediaKind, Mid, Rid, Ssrc};

/// A valid offer with all its m-sections, including those that every answer rejects.
#[derive(Debug)]
pub struct Offer {
    pub(super) sections: Vec<Section>,
    /// Indexes into `sections` in the order of the BUNDLE group; `None` without a BUNDLE group that has media.
    pub(super) bundle_group: Option<Vec<usize>>,
}

/// An m-section.
#[derive(Debug)]
pub(super) struct Section {
    /// Line number of its m-line.
    pub line_number: usize,
    /// Media kind; the answer repeats this, `proto` and, if it rejects the section, `first_format`.
    pub media_kind: String,
    pub proto: String,
    pub first_format: String,
    /// A placeholder if `has_mid` is false.
    pub mid: Mid,
    /// Whether the section has an `a=mid`.
    pub has_mid: bool,
    pub content: SdpSectionContent,
}

/// Content of an m-section.
#[derive(Debug)]
pub(super) enum SdpSectionContent {
    /// Audio or video over DTLS-SRTP.
    Media(Box<MediaSection>),
    /// SCTP over DTLS (RFC 8841).
    DataChannel(DataChannelSection),
    /// Port 0 without `bundle-only`: the peer disabled the section (RFC 3264 §8.2).
    Disabled,
    Unsupported,
}

/// An m-section with audio or video.
#[derive(Debug)]
pub(super) struct MediaSection {
    pub kind: MediaKind,
    pub direction: OfferedDirection,
    /// Supported codecs in the peer's order of preference; may be empty.
    pub codecs: Vec<OfferedCodec>,
    pub extmaps: Vec<Extmap>,
    pub ssrcs: Vec<DeclaredSsrc>,
    /// Every SSRC that the section declares, of media or not, with its line number.
    pub all_declared_ssrcs: Vec<(usize, Ssrc)>,
    /// Simulcast layers that the peer sends; only for video.
    pub rids: Vec<Rid>,
    /// Simulcast layers by SSRC; only for video.
    pub layer_ssrcs: Vec<DeclaredSsrc>,
    pub reduced_size_rtcp: bool,
    transport: SectionTransportAttributes,
    rtpmaps: HashMap<u8, Rtpmap>,
    /// Names of the offered codecs, for error texts.
    offered_codec_names: Vec<String>,
}

/// Maximum number of codec names in an error text.
const MAX_CODEC_NAMES_IN_ERROR: usize = 12;

/// Direction of an m-section, as seen by the peer (RFC 8866 §6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfferedDirection {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

impl Offer {
    /// Parses the body of a request.
    ///
    /// # Errors
    ///
    /// An [`OfferError`] for an offer that neither a WHIP nor a WHEP answer could accept. Rules of WHIP or WHEP alone
    /// are checked when the answer is made.
    pub fn parse(body: &[u8]) -> Result<Self, OfferError> {
        let document = sdp_lines::parse_document(body)?;
        refuse_ice_lite(&document)?;
        let is_single = document.sections.len() == 1;
        let mut sections = Vec::with_capacity(document.sections.len());
        for raw in &document.sections {
            sections.push(Section::parse(raw, &document, is_single)?);
        }
        refuse_duplicate_mids(&document, &sections)?;
        let offer = Self {
            bundle_group: read_bundled_section_indexes(&document.session_attributes, &sections)?,
            sections,
        };
        offer.refuse_duplicate_demux_ids()?;
        let media: Vec<usize> = offer.media_sections().map(|(index, ..)| index).collect();
        if media.is_empty() {
            return Err(offer.no_media_error());
        }
        offer.negotiate_transport(&media)?;
        Ok(offer)
    }

    /// Why there is nothing to negotiate.
    fn no_media_error(&self) -> OfferError {
        let is_media =
            |section: &&Section| matches!(section.media_kind.to_ascii_lowercase().as_str(), "audio" | "video");
        let is_enabled = |section: &&Section| !matches!(section.content, SdpSectionContent::Disabled);
        let mut media = self.sections.iter().filter(is_media);
        let disabled = media.clone().next();
        match (media.find(is_enabled), disabled) {
            (Some(section), _) => OfferError::UnsupportedSection {
                line: section.line_number,
            },
            (None, Some(section)) => OfferError::NoEnabledMedia {
                line: section.line_number,
            },
            (None, None) => OfferError::NoMedia,
        }
    }

    /// Returns media kind and mid of each section in order, to compare with an offer of the gateway.
    pub fn section_kinds_and_mids(&self) -> Vec<(String, String)> {
        let sections = self.sections.iter();
        sections
            .map(|section| (section.media_kind.clone(), section.mid.0.to_string()))
            .collect()
    }

    /// Returns the kinds of the audio and video sections in order.
    pub fn media_kinds(&self) -> impl Iterator<Item = MediaKind> + '_ {
        self.media_sections().map(|(_, _, media)| media.kind)
    }

    /// Returns the audio and video sections with their indexes.
    pub(super) fn media_sections(&self) -> impl Iterator<Item = (usize, &Section, &MediaSection)> {
        self.sections
            .iter()
            .enumerate()
            .filter_map(|(index, section)| match &section.content {
                SdpSectionContent::Media(media) => Some((index, section, media.as_ref())),
                SdpSectionContent::DataChannel(_) | SdpSectionContent::Disabled | SdpSectionContent::Unsupported => {
                    None
                }
            })
    }

    /// Returns the index of the data channel section that an answer to a peer of this role accepts, with what is
    /// negotiated. It is the first one that shares its transport with the media, because it is in the same BUNDLE group
    /// (RFC 9143 §7.1).
    pub(super) fn negotiate_data_channels(&self, peer_role: DataPeerRole) -> Option<(usize, NegotiatedDataChannels)> {
        let bundle = self.bundle_group.as_ref()?;
        let mut sections = self.sections.iter().enumerate();
        sections.find_map(|(index, section)| match &section.content {
            SdpSectionContent::DataChannel(data) if data.is_acceptable() && bundle.contains(&index) => {
                Some((index, data.negotiate(peer_role)))
            }
            SdpSectionContent::DataChannel(_)
            | SdpSectionContent::Media(_)
            | SdpSectionContent::Disabled
            | SdpSectionContent::Unsupported => None,
        })
    }

    /// Returns the section whose transport all sections use (RFC 9143 §7.2: the offerer-tagged one).
    pub(super) fn offerer_tagged_section_index(&self) -> Option<usize> {
        self.bundle_group
            .as_ref()
            .map_or(Some(0), |bundle| bundle.first().copied())
    }

    /// Returns the accepted sections in the order of the BUNDLE group, or of the offer if it has none. The first is the
    /// answerer-tagged one (RFC 9143 §7.3.1).
    pub(super) fn accepted_sections_in_bundle_order(&self, accepted: &[usize]) -> Vec<usize> {
        match &self.bundle_group {
            Some(order) => order.iter().copied().filter(|index| accepted.contains(index)).collect(),
            None => accepted.to_vec(),
        }
    }

    /// Returns the transport of an answer that accepts these sections.
    pub(super) fn negotiate_transport(&self, accepted: &[usize]) -> Result<RemoteTransport, OfferError> {
        let bundled = self.accepted_sections_in_bundle_order(accepted);
        let (chosen, rest): (Vec<_>, Vec<_>) = self.media_sections().partition(|(index, ..)| accepted.contains(index));
        let tagged = bundled
            .iter()
            .filter_map(|index| chosen.iter().find(|(i, ..)| i == index));
        let (remote, fingerprints, role) =
            transport::choose_bundle_transport(tagged.chain(&rest).map(|(_, _, media)| &media.transport))?;
        Ok(RemoteTransport {
            remote_credentials: remote,
            fingerprints,
            gateway_dtls_role: role,
            data_channels: None,
        })
    }

    /// Checks that within the transport each SSRC belongs to one section, each payload type to one codec and each
    /// extension id to one extension, as demultiplexing requires (RFC 9143 §9.1, §9.2).
    fn refuse_duplicate_demux_ids(&self) -> Result<(), OfferError> {
        let mut payload_types: HashMap<u8, &Rtpmap> = HashMap::new();
        let mut extensions: HashMap<u8, RtpHeaderExtension> = HashMap::new();
        let mut ssrcs: Vec<Ssrc> = Vec::new();
        for (_, section, media) in self.media_sections() {
            for (pt, map) in &media.rtpmaps {
                if payload_types.insert(*pt, map).is_some_and(|other| other != map) {
                    return Err(OfferError::PayloadTypeReused {
                        line: section.line_number,
                        pt: *pt,
                    });
                }
            }
            for extmap in &media.extmaps {
                let other = extensions.insert(extmap.id, extmap.extension);
                if other.is_some_and(|other| other != extmap.extension) {
                    return Err(OfferError::BadExtmap {
                        line: extmap.line_number,
                        rule: "the extmap id is used by another extension in an earlier section of the BUNDLE group",
                    });
                }
            }
            if let Some((line, _)) = media.all_declared_ssrcs.iter().find(|(_, ssrc)| ssrcs.contains(ssrc)) {
                return Err(OfferError::BadSsrc { line: *line });
            }
            ssrcs.extend(media.all_declared_ssrcs.iter().map(|(_, ssrc)| *ssrc));
        }
        Ok(())
    }
}

impl Section {
    fn parse(raw: &RawSection, document: &SdpDocument, is_single: bool) -> Result<Self, OfferError> {
        let mid = first_attribute_named(&raw.attributes, "mid");
        let content = SdpSectionContent::parse(raw, document)?;
        if mid.is_none() && !is_single && !matches!(content, SdpSectionContent::Disabled) {
            return Err(OfferError::MidMissing { line: raw.line_number });
        }
        Ok(Self {
            line_number: raw.line_number,
            media_kind: raw.media_kind.clone(),
            proto: raw.proto.clone(),
            first_format: raw.formats.first().cloned().unwrap_or_default(),
            mid: mid.map_or_else(|| Ok(Mid("0".into())), read_mid)?,
            has_mid: mid.is_some(),
            content,
        })
    }
}

impl SdpSectionContent {
    fn parse(raw: &RawSection, document: &SdpDocument) -> Result<Self, OfferError> {
        // RFC 9143 §6: with bundle-only, port 0 does not disable a section. GStreamer 1.28.8 offers its audio this way.
        if raw.port == 0 && first_attribute_named(&raw.attributes, "bundle-only").is_none() {
            return Ok(SdpSectionContent::Disabled);
        }
        let kind = match raw.media_kind.to_ascii_lowercase().as_str() {
            "audio" => MediaKind::Audio,
            "video" => MediaKind::Video,
            "application" if raw.proto.to_ascii_uppercase().ends_with("DTLS/SCTP") => {
                return Ok(SdpSectionContent::DataChannel(DataChannelSection::parse(raw)));
            }
            _ => return Ok(SdpSectionContent::Unsupported),
        };
        if !quirks::is_rtp_profile(&raw.proto) || lacks_dtls_unlike_other_sections(raw, document) {
            return Ok(SdpSectionContent::Unsupported);
        }
        MediaSection::parse(kind, raw, &document.session_attributes)
            .map(|media| SdpSectionContent::Media(Box::new(media)))
    }
}

/// Whether a section is RTP without DTLS in an offer whose other sections have fingerprints. An offer without any is
/// refused for their absence.
fn lacks_dtls_unlike_other_sections(raw: &RawSection, document: &SdpDocument) -> bool {
    let has_fingerprint = |level: &[AttributeWithLineNumber]| first_attribute_named(level, "fingerprint").is_some();
    let mid = first_attribute_named(&raw.attributes, "mid").map(|mid| mid.value.as_str());
    let mut groups = attributes_named(&document.session_attributes, "group");
    let is_bundled = groups.any(|group| group.value.split_whitespace().skip(1).any(|member| Some(member) == mid));
    let is_named = raw.proto.to_ascii_uppercase().contains("TLS/");
    let others = document
        .sections
        .iter()
        .any(|section| has_fingerprint(&section.attributes));
    others
        && !is_named
        && !is_bundled
        && !has_fingerprint(&raw.attributes)
        && !has_fingerprint(&document.session_attributes)
}

impl MediaSection {
    /// Names the offered codecs, supported or not, for the error text.
    pub(crate) fn offered_codecs_text(&self) -> String {
        match self.offered_codec_names.as_slice() {
            [] => "no codec".to_owned(),
            names => names.get(..MAX_CODEC_NAMES_IN_ERROR).unwrap_or(names).join(", "),
        }
    }

    fn parse(kind: MediaKind, raw: &RawSection, session: &[AttributeWithLineNumber]) -> Result<Self, OfferError> {
        let has = |key| first_attribute_named(&raw.attributes, key).is_some();
        let payload_types = OfferedPayloadTypes::from_section(kind, raw)?;
        let declared = ssrc::parse_ssrcs(raw)?;
        let rids = simulcast::parse_simulcast(raw)?;
        let transport = SectionTransportAttributes::parse(raw.line_number, session, &raw.attributes)?;
        // RFC 9725 §4.4.1 requires `rtcp-mux-only` too, but of the tested clients only GStreamer sends it.
        if !has("rtcp-mux") && !has("rtcp-mux-only") {
            return Err(OfferError::RtcpMuxMissing { line: raw.line_number });
        }
        Ok(Self {
            kind,
            direction: read_direction(session, &raw.attributes),
            codecs: payload_types.codecs,
            extmaps: extension::parse_extmaps(session, &raw.attributes)?,
            ssrcs: declared.media_ssrcs,
            all_declared_ssrcs: declared.all_declared_ssrcs,
            // Audio layers are ignored: without `a=simulcast` in the answer the peer sends a single layer.
            layer_ssrcs: if kind == MediaKind::Video {
                declared.layer_ssrcs
            } else {
                Vec::new()
            },
            rids: if kind == MediaKind::Video { rids } else { Vec::new() },
            reduced_size_rtcp: has("rtcp-rsize"),
            transport,
            rtpmaps: payload_types.rtpmaps,
            offered_codec_names: payload_types.offered_codec_names,
        })
    }

    /// Returns the extmap of an extension, if offered.
    pub(crate) fn find_extmap(&self, known: RtpHeaderExtension) -> Option<&Extmap> {
        self.extmaps.iter().find(|extmap| extmap.extension == known)
    }
}

/// RFC 8445 §6.1.1: of two lite agents neither sends checks. RFC 9725 §4.4 has clients use full ICE.
fn refuse_ice_lite(document: &SdpDocument) -> Result<(), OfferError> {
    let levels = document.sections.iter().map(|section| &section.attributes);
    let mut found = std::iter::once(&document.session_attributes)
        .chain(levels)
        .filter_map(|level| first_attribute_named(level, "ice-lite"));
    match found.next() {
        Some(attribute) => Err(OfferError::IceLite {
            line: attribute.line_number,
        }),
        None => Ok(()),
    }
}

fn read_mid(attribute: &AttributeWithLineNumber) -> Result<Mid, OfferError> {
    let mid = attribute.value.as_str();
    if mid.len() > MAX_MID_LEN || !sdp_lines::is_sdp_token(mid) {
        return Err(OfferError::BadMid {
            line: attribute.line_number,
            limit: MAX_MID_LEN,
        });
    }
    Ok(Mid(mid.into()))
}

fn refuse_duplicate_mids(document: &SdpDocument, sections: &[Section]) -> Result<(), OfferError> {
    for (index, section) in sections.iter().enumerate() {
        let earlier = sections.get(..index).unwrap_or_default();
        let is_same = |other: &Section| other.has_mid && section.has_mid && other.mid == section.mid;
        if earlier.iter().any(is_same) {
            let attribute = document
                .sections
                .get(index)
                .and_then(|raw| first_attribute_named(&raw.attributes, "mid"));
            return Err(OfferError::DuplicateMid {
                line: attribute.map_or(section.line_number, |attribute| attribute.line_number),
            });
        }
    }
    Ok(())
}

/// RFC 8866 §6.7: a section without a direction has that of the session, or else `sendrecv`.
fn read_direction(session: &[AttributeWithLineNumber], section: &[AttributeWithLineNumber]) -> OfferedDirection {
    let direction = |attribute: &AttributeWithLineNumber| match attribute.key.to_ascii_lowercase().as_str() {
        "sendrecv" => Some(OfferedDirection::SendRecv),
        "sendonly" => Some(OfferedDirection::SendOnly),
        "recvonly" => Some(OfferedDirection::RecvOnly),
        "inactive" => Some(OfferedDirection::Inactive),
        _ => None,
    };
    let mut levels = section.iter().chain(session).filter_map(direction);
    levels.next().unwrap_or(OfferedDirection::SendRecv)
}

/// Returns the BUNDLE group that contains all audio and video sections. A single section needs none.
fn read_bundled_section_indexes(
    session: &[AttributeWithLineNumber],
    sections: &[Section],
) -> Result<Option<Vec<usize>>, OfferError> {
    let is_media = |index: &usize| {
        let content = sections.get(*index).map(|section| &section.content);
        matches!(content, Some(SdpSectionContent::Media(_)))
    };
    let media: Vec<usize> = (0..sections.len()).filter(is_media).collect();
    let group = attributes_named(session, "group")
        .filter_map(|attribute| attribute.value.split_once([' ', '\t']))
        .filter(|(semantics, _)| semantics.eq_ignore_ascii_case("BUNDLE"))
        .map(|(_, mids)| sections_of_bundle_group(mids, sections))
        .find(|group| media.iter().any(|index| group.contains(index)));
    let outsider = match &group {
        Some(group) => media.iter().find(|index| !group.contains(index)),
        None => media.get(1),
    };
    match outsider.and_then(|index| sections.get(*index)) {
        Some(section) => Err(OfferError::BundleRequired {
            line: section.line_number,
        }),
        None => Ok(group),
    }
}

/// RFC 9143 sets no limit. GStreamer writes `video0`; the longest known mid is a UUID without hyphens. The mid is
/// repeated in the answer and in every packet to a viewer that negotiates the extension.
const MAX_MID_LEN: usize = 32;

/// Returns the indexes of the sections that a BUNDLE group names, in its order, each once.
///
/// FFmpeg 9.0.2 (`tests/data/offers/ffmpeg-9.0.2-whip-default.sdp`) always writes `a=group:BUNDLE 0 1`, also when it
/// sends only one of the two. A mid without an m-section violates RFC 9143 §7.1 and is ignored.
fn sections_of_bundle_group(mids: &str, sections: &[Section]) -> Vec<usize> {
    let mut seen = HashSet::new();
    mids.split_whitespace()
        .filter_map(|mid| {
            sections
                .iter()
                .position(|section| section.has_mid && &*section.mid.0 == mid)
        })
        .filter(|index| seen.insert(*index))
        .collect()
}
