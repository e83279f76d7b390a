//! The answer to a viewer (WHEP §4.3): the current format of the stream first, then every other supported codec, so
//! that a source with another codec can follow without renegotiation.

use super::answer::{self, Accepted, AnsweredCodec, with};
use super::codec::{DOUBTFUL, MAX_CODECS, OfferedCodec, sendable, suitability};
use super::description::LocalDescription;
use super::error::OfferError;
use super::extension::HeaderExtension;
use super::local::Local;
use super::offer::{Direction, MediaSection, Offer, Section};
use super::plan::{AvailableTracks, Feedback, OutgoingTrack, Playback, SourceFormats};
use crate::media::{Format, Kind, Ssrc};

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
pub fn answer_viewer(
    offer: &Offer,
    source: &SourceFormats,
    local: &Local<'_>,
    random: &mut dyn FnMut() -> u32,
) -> Result<(Playback, LocalDescription), OfferError> {
    check_directions(offer)?;
    let mut ssrcs = Ssrcs::new(offer);
    let cname: String = (0..3).map(|_| format!("{:08x}", random())).collect();
    let mut tracks: Vec<OutgoingTrack> = Vec::new();
    let mut replies = Vec::new();
    let mut serves = false;
    for (index, section, media) in offer.media() {
        let format = source.of(media.kind);
        let chosen = match format {
            _ if tracks.iter().any(|track| track.kind == media.kind) => None,
            Some(format) => choose(format, media),
            None if media.kind == Kind::Audio => Some(sendable(&media.codecs)).filter(|codecs| !codecs.is_empty()),
            None => None,
        };
        let Some(codecs) = chosen else {
            if offer.tagged() == Some(index) {
                replies.extend(accept_inactive(index, media));
            }
            continue;
        };
        serves |= format.is_some();
        let (track, reply) = accept(index, section, media, &codecs, &cname, &mut || ssrcs.next(random));
        tracks.push(track);
        replies.push(reply);
    }
    if !serves {
        return Err(OfferError::NothingPlayable {
            carries: describe(source),
            takes: takes(offer, source),
        });
    }
    let indexes: Vec<usize> = replies.iter().map(|reply| reply.index).collect();
    let transport = offer.transport(&indexes)?;
    let answer = answer::write(offer, local, transport.role, &replies);
    let playback = Playback {
        transport,
        tracks,
        cname,
    };
    Ok((playback, answer))
}

/// Returns the formats that the viewer behind an offer is sent.
pub fn formats_for(offer: &Offer, available: &AvailableTracks) -> SourceFormats {
    available.formats_for(|format| {
        let sections = offer.media().map(|(_, _, media)| media);
        let mut of_kind = sections.filter(|media| media.kind == format.codec().kind());
        of_kind.any(|media| choose(format, media).is_some())
    })
}

/// WHEP §4.3.5.
fn check_directions(offer: &Offer) -> Result<(), OfferError> {
    let mut wrong = offer
        .media()
        .filter(|(_, _, media)| matches!(media.direction, Direction::SendOnly | Direction::Inactive));
    match wrong.next() {
        Some((_, section, _)) => Err(OfferError::BadDirection {
            line: section.line,
            wanted: "recvonly",
        }),
        None => Ok(()),
    }
}

/// Returns the codecs to answer, the best match for the source first and the others as offered; `None` if none matches.
fn choose(source: Format, media: &MediaSection) -> Option<Vec<OfferedCodec>> {
    let mut codecs = sendable(&media.codecs);
    let ranked = codecs
        .iter()
        .enumerate()
        .filter_map(|(index, codec)| suitability(source, codec.format).map(|rank| (rank, index)));
    let (rank, best) = ranked.min()?;
    if rank >= DOUBTFUL {
        tracing::debug!(?source, "viewer offers no matching profile, decoding is not guaranteed");
    }
    let chosen = codecs.remove(best);
    codecs.insert(0, chosen);
    Some(codecs)
}

/// Answers a section as inactive, for its transport alone; `None` if it has no supported codec.
fn accept_inactive(index: usize, media: &MediaSection) -> Option<Accepted> {
    let codecs: Vec<AnsweredCodec> = sendable(&media.codecs)
        .iter()
        .take(MAX_CODECS)
        .map(|codec| AnsweredCodec::new(codec, choose_feedback(codec.feedback), opus(codec.format)))
        .collect();
    (!codecs.is_empty()).then_some(Accepted {
        index,
        direction: "inactive",
        codecs,
        attributes: Vec::new(),
    })
}

fn accept(
    index: usize,
    section: &Section,
    media: &MediaSection,
    offered: &[OfferedCodec],
    cname: &str,
    next_ssrc: &mut dyn FnMut() -> Ssrc,
) -> (OutgoingTrack, Accepted) {
    let codecs: Vec<AnsweredCodec> = offered
        .iter()
        .take(MAX_CODECS)
        .map(|codec| AnsweredCodec::new(codec, choose_feedback(codec.feedback), opus(codec.format)))
        .collect();
    let (extensions, mut attributes) = answer::extensions(media, |extmap| {
        extmap.known == HeaderExtension::Mid && extmap.is_received()
    });
    let ssrc = next_ssrc();
    let has_rtx = codecs.iter().any(|answered| answered.codec.rtx_pt.is_some());
    let rtx_ssrc = has_rtx.then(next_ssrc);

    // Both tracks are in one MediaStream. Chromium rejects a FID group with an `a=ssrc` line for only one of its
    // members.
    attributes.push(with("msid", format!("{STREAM_ID} {}", media.kind)));
    if let Some(rtx) = rtx_ssrc {
        attributes.push(with("ssrc-group", format!("FID {} {}", ssrc.0, rtx.0)));
    }
    for ssrc in std::iter::once(ssrc).chain(rtx_ssrc) {
        attributes.push(with("ssrc", format!("{} cname:{cname}", ssrc.0)));
    }

    let track = OutgoingTrack {
        mid: section.mid.clone(),
        kind: media.kind,
        codecs: codecs.iter().map(|answered| answered.codec.clone()).collect(),
        extensions,
        ssrc,
        rtx_ssrc,
    };
    let reply = Accepted {
        index,
        direction: "sendonly",
        codecs,
        attributes,
    };
    (track, reply)
}

/// Accepts feedback about packet loss and key frames. Bandwidth estimates are declined, because nothing is encoded per
/// viewer.
fn choose_feedback(offered: Feedback) -> Feedback {
    Feedback {
        transport_cc: false,
        remb: false,
        ..offered
    }
}

/// RFC 7587 §6.1: `sprop-stereo` is what the gateway is likely to send; `stereo` repeats the viewer's preference.
fn opus(offered: Format) -> &'static str {
    match offered {
        Format::Opus { stereo: true } => "minptime=10;stereo=1;sprop-stereo=1;useinbandfec=1",
        _ => "minptime=10;sprop-stereo=1;useinbandfec=1",
    }
}

fn takes(offer: &Offer, source: &SourceFormats) -> String {
    let sections = offer.media().map(|(_, _, media)| {
        let format = source.of(media.kind);
        let is_carried = |codec: &OfferedCodec| format.is_some_and(|format| format.codec() == codec.format.codec());
        // The offer has the codec, but not the packetization mode or the profile.
        let lacks = match format {
            _ if !media.codecs.iter().any(is_carried) => "",
            Some(Format::H264 { .. }) => ", but H264 not in packetization mode 1",
            _ => ", but not in this profile",
        };
        format!("{} {}{lacks}", media.kind, media.offered())
    });
    sections.take(4).collect::<Vec<_>>().join("; ")
}

fn describe(source: &SourceFormats) -> String {
    let formats = [Kind::Video, Kind::Audio]
        .into_iter()
        .filter_map(|kind| source.of(kind));
    let named = |format: Format| {
        let name = format.codec().name();
        match format {
            Format::H265 { profile_id, tier_flag } => format!("{name} (profile {profile_id}, tier {tier_flag})"),
            Format::Vp9 { profile } | Format::Av1 { profile } => format!("{name} (profile {profile})"),
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
struct Ssrcs(Vec<Ssrc>);

impl Ssrcs {
    fn new(offer: &Offer) -> Self {
        Self(
            offer
                .media()
                .flat_map(|(_, _, media)| &media.claimed)
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
const STREAM_ID: &str = "millstream";
