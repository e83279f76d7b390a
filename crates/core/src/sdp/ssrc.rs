//! SSRCs declared by an m-section (RFC 5576).

use super::error::OfferError;
use super::plan::DeclaredSsrc;
use super::text::{Attribute, RawSection, all};
use crate::media::Ssrc;

/// Declared SSRCs of an m-section.
pub(super) struct Declared {
    /// SSRCs of media with their RTX SSRCs, in the order of declaration.
    pub media: Vec<DeclaredSsrc>,
    /// All SSRCs, of media, RTX or FEC, with the line of their first occurrence.
    pub all: Vec<(usize, Ssrc)>,
}

/// Reads `a=ssrc` and `a=ssrc-group`.
///
/// An SSRC in a group counts as declared: FFmpeg 9.0.2 names an RTX SSRC in a FID group without an `a=ssrc` of its own.
pub(super) fn read(section: &RawSection) -> Result<Declared, OfferError> {
    let mut declared = Declared {
        media: Vec::new(),
        all: Vec::new(),
    };
    let mut rtx_pairs: Vec<(Ssrc, Ssrc)> = Vec::new();
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
                rtx_pairs.push((*primary, *rtx));
                not_media.push(*rtx);
            }
            ("FEC" | "FEC-FR", [_, fec, ..]) => not_media.push(*fec),
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
            rtx: rtx_pairs.iter().find(|(p, _)| *p == primary).map(|(_, rtx)| *rtx),
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

/// Three simulcast layers with RTX and FEC declare nine SSRCs. SSRCs beyond the limit are ignored.
const MAX_SSRCS: usize = 32;
