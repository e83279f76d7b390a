//! The answer to a publisher (RFC 9725 §4.2, §4.4): it accepts every offered track, or the offer is rejected.

use bytes::Bytes;
use rtc_sdp::description::common::Attribute;

use super::answer::{self, Accepted, AnsweredCodec, with};
use super::codec::{MAX_CODECS, accepted};
use super::description::LocalDescription;
use super::error::OfferError;
use super::extension::HeaderExtension;
use super::local::Local;
use super::offer::{Content, Direction, MediaSection, Offer, Section};
use super::plan::{Extensions, Feedback, IncomingTrack, Publication};
use crate::media::{Codec, Kind};

/// Answers a WHIP offer. Returns what the session will receive, and the SDP.
///
/// # Errors
///
/// A 422 [`OfferError`] if any section cannot be accepted as offered (RFC 9725 §4.4.3). Only a data channel is rejected
/// without rejecting the offer.
pub fn answer_publisher(offer: &Offer, local: &Local<'_>) -> Result<(Publication, LocalDescription), OfferError> {
    check_sections(offer)?;
    let mut tracks = Vec::new();
    let mut replies = Vec::new();
    for (index, section, media) in offer.media() {
        let (track, reply) = accept(index, section, media)?;
        tracks.push(track);
        replies.push(reply);
    }
    let indexes: Vec<usize> = replies.iter().map(|reply| reply.index).collect();
    let transport = offer.transport(&indexes)?;
    let answer = answer::write(offer, local, transport.role, &replies);
    Ok((Publication { transport, tracks }, answer))
}

fn check_sections(offer: &Offer) -> Result<(), OfferError> {
    let unsupported = |section: &&Section| matches!(section.content, Content::Unsupported);
    if let Some(section) = offer.sections.iter().find(unsupported) {
        return Err(OfferError::UnsupportedSection { line: section.line });
    }
    let mut kinds: Vec<Kind> = Vec::new();
    for (_, section, media) in offer.media() {
        let (line, kind) = (section.line, media.kind);
        if kinds.contains(&kind) {
            return Err(OfferError::TooManyTracks { line, kind });
        }
        kinds.push(kind);
        match media.direction {
            Direction::SendOnly | Direction::SendRecv => {}
            Direction::RecvOnly | Direction::Inactive => {
                return Err(OfferError::BadDirection {
                    line,
                    wanted: "sendonly",
                });
            }
        }
    }
    Ok(())
}

fn accept(index: usize, section: &Section, media: &MediaSection) -> Result<(IncomingTrack, Accepted), OfferError> {
    let line = section.line;
    if media.codecs.is_empty() {
        return Err(OfferError::NoCommonCodec {
            line,
            kind: media.kind,
            offered: media.offered(),
            accepted: accepted(media.kind),
        });
    }
    let (extensions, mut attributes) = choose_extensions(media);
    if !media.rids.is_empty() {
        // Layers have no SSRCs in the SDP: only the header extension identifies them (RFC 8853 §4).
        if extensions.rid.is_none() {
            return Err(OfferError::RidExtensionMissing { line });
        }
        push_simulcast(&mut attributes, media);
    }
    let codecs: Vec<AnsweredCodec> = media
        .codecs
        .iter()
        .take(MAX_CODECS)
        .map(|codec| AnsweredCodec::new(codec, choose_feedback(codec.feedback, extensions), OPUS))
        .collect();
    let track = IncomingTrack {
        mid: section.mid.clone(),
        kind: media.kind,
        codecs: codecs.iter().map(|answered| answered.codec.clone()).collect(),
        extensions,
        ssrcs: media.ssrcs.clone(),
        rids: media.rids.clone(),
        layers: if media.rids.is_empty() {
            media.layers.clone()
        } else {
            Vec::new()
        },
        parameter_sets: parameter_sets(media),
        reduced_size_rtcp: media.reduced_size_rtcp,
    };
    let reply = Accepted {
        index,
        direction: "recvonly",
        codecs,
        attributes,
    };
    Ok((track, reply))
}

/// The parameter sets of each codec. Those of several payload types of one codec are taken together: an encoder sends one
/// of them, and replaces what differs.
fn parameter_sets(media: &MediaSection) -> Vec<(Codec, Vec<Bytes>)> {
    let codecs = media.codecs.iter().filter(|codec| !codec.parameter_sets.is_empty());
    codecs
        .map(|codec| (codec.format.codec(), codec.parameter_sets.clone()))
        .collect()
}

/// Accepts the extensions that identify streams. Congestion feedback uses transport-cc if it is offered with its header
/// extension, or else REMB.
fn choose_extensions(media: &MediaSection) -> (Extensions, Vec<Attribute>) {
    let offers_transport_cc = media.codecs.iter().any(|codec| codec.feedback.transport_cc);
    let has_transport_cc = offers_transport_cc
        && media
            .extension(HeaderExtension::TransportCc)
            .is_some_and(|map| map.is_sent());
    let offers_remb = media.codecs.iter().any(|codec| codec.feedback.remb);
    answer::extensions(media, |extmap| {
        extmap.is_sent()
            && match extmap.known {
                HeaderExtension::Mid | HeaderExtension::Rid | HeaderExtension::RepairedRid => true,
                HeaderExtension::TransportCc => has_transport_cc,
                HeaderExtension::AbsSendTime => offers_remb && !has_transport_cc,
            }
    })
}

fn choose_feedback(offered: Feedback, extensions: Extensions) -> Feedback {
    let has_transport_cc = extensions.transport_cc.is_some();
    Feedback {
        transport_cc: offered.transport_cc && has_transport_cc,
        remb: offered.remb && !has_transport_cc,
        ..offered
    }
}

/// Accepts all layers in the peer's order (RFC 8853 §5.3.2). OBS 32.2.2 fails if one is missing.
fn push_simulcast(attributes: &mut Vec<Attribute>, media: &MediaSection) {
    let rids: Vec<&str> = media.rids.iter().map(|rid| &*rid.0).collect();
    for rid in &rids {
        attributes.push(with("rid", format!("{rid} recv")));
    }
    attributes.push(with("simulcast", format!("recv {}", rids.join(";"))));
}

/// RFC 7587 §6.1: `stereo` is the receiver's preference; Chromium encodes two channels only with it. `sprop-stereo`
/// describes what the sender of the SDP sends, which is nothing here. GStreamer's whipclientsink 0.15.4 treats it as a
/// requirement and aborts if it has one channel.
const OPUS: &str = "minptime=10;stereo=1;useinbandfec=1";
