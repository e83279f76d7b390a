//! SSRCs that a section declares (RFC 5576).

use super::error::OfferError;
use super::plan::DeclaredSsrc;
use super::text::{Attribute, RawSection, all};
use crate::media::Ssrc;

/// Declared SSRCs of an m-section.
pub(super) struct Declared {
    /// Media, with its retransmission; in the order of declaration.
    pub media: Vec<DeclaredSsrc>,
    /// All, whatever they carry, with the line of the first mention.
    pub all: Vec<(usize, Ssrc)>,
}

/// Reads `a=ssrc` and `a=ssrc-group`.
///
/// FFmpeg 9.0.2 names an RTX SSRC in a FID group without an `a=ssrc` of its own: the group declares it too.
pub(super) fn read(section: &RawSection) -> Result<Declared, OfferError> {
    let mut declared = Declared {
        media: Vec::new(),
        all: Vec::new(),
    };
    let mut can_transcode: Vec<(Ssrc, Ssrc)> = Vec::new();
    let mut not_media: Vec<Ssrc> = Vec::new();
    for attribute in all(&section.attributes, "ssrc-group").take(MAX_SSRCS) {
        let mut fields = attribute.value.split_whitespace();
        let semantics = fields.next().unwrap_or_default();
        let ssrcs = fields
            .take(MAX_SSRCS)
            .map(|field| parse(attribute, field))
            .collect::<Result<Vec<_>, _>>()?;
        match (semantics, ssrcs.as_slice()) {
            ("FID", [primary, rtx, ..]) => {
                can_transcode.push((*primary, *rtx));
                not_media.push(*rtx);
            }
            ("FEC" | "FEC-FR", [_, transcode, ..]) => not_media.push(*transcode),
            _ => {}
        }
        for ssrc in ssrcs {
            declared.record(attribute.line, ssrc);
        }
    }
    for attribute in all(&section.attributes, "ssrc") {
        let id = attribute.value.split(' ').next().unwrap_or_default();
        declared.record(attribute.line, parse(attribute, id)?);
    }
    declared.media = declared
        .all
        .iter()
        .map(|(_, ssrc)| *ssrc)
        .filter(|ssrc| !not_media.contains(ssrc))
        .map(|primary| DeclaredSsrc {
            primary,
            rtx: can_transcode.iter().find(|(p, _)| *p == primary).map(|(_, rtx)| *rtx),
        })
        .collect();
    Ok(declared)
}

impl Declared {
    fn record(&mut self, line: usize, ssrc: Ssrc) {
        if self.all.len() < MAX_SSRCS && self.all.iter().all(|(_, known)| *known != ssrc) {
            self.all.push((line, ssrc));
        }
    }
}

fn parse(attribute: &Attribute, field: &str) -> Result<Ssrc, OfferError> {
    field
        .parse()
        .map(Ssrc)
        .map_err(|_| OfferError::BadSsrc { line: attribute.line })
}

/// A simulcast of three with retransmission and FEC declares nine; what is beyond is not declared to us.
const MAX_SSRCS: usize = 32;
