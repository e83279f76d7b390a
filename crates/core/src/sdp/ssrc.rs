//! SSRCs declared by an m-section (RFC 5576).

use super::error::OfferError;
use super::plan::DeclaredSsrc;
use super::text::{Attribute, RawSection, all};
use crate::media::Ssrc;

/// Declared SSRCs of an m-section.
pub(super) struct Declared {
    /// SSRCs of media with their RTX SSRCs, in the order of declaration.
    pub media: Vec<DeclaredSsrc>,
    /// Simulcast layers: the members of a SIM group of several, in its order.
    pub layers: Vec<DeclaredSsrc>,
    /// All SSRCs, of media, RTX or FEC, with the line of their first occurrence.
    pub all: Vec<(usize, Ssrc)>,
}

/// Reads `a=ssrc` and `a=ssrc-group`.
///
/// An SSRC in a group counts as declared: FFmpeg 9.0.2 names an RTX SSRC in a FID group without an `a=ssrc` of its own.
pub(super) fn read(section: &RawSection) -> Result<Declared, OfferError> {
    let mut declared = Declared {
        media: Vec::new(),
        layers: Vec::new(),
        all: Vec::new(),
    };
    let mut rtx_pairs: Vec<(Ssrc, Ssrc)> = Vec::new();
    let mut not_media: Vec<Ssrc> = Vec::new();
    let mut layers: Vec<Ssrc> = Vec::new();
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
            // Libwebrtc's simulcast before RIDs. No RFC defines it.
            ("SIM", [_, _, ..]) if ssrcs.len() <= MAX_LAYERS => layers.clone_from(&ssrcs),
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
    layers.dedup();
    let of_layer = |ssrc: &Ssrc| {
        declared
            .media
            .iter()
            .find(|declared| declared.primary == *ssrc)
            .copied()
    };
    declared.layers = layers.iter().filter_map(of_layer).collect();
    if declared.layers.len() < 2 {
        declared.layers.clear();
    }
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

/// Libwebrtc sends at most three layers.
const MAX_LAYERS: usize = 8;

/// Three simulcast layers with RTX and FEC declare nine SSRCs. SSRCs beyond the limit are ignored.
const MAX_SSRCS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(groups: &[&str]) -> Vec<(u32, Option<u32>)> {
        let attributes = groups.iter().map(|value| Attribute {
            line: 1,
            key: "ssrc-group".to_owned(),
            value: (*value).to_owned(),
        });
        let section = RawSection {
            line: 1,
            media: "video".to_owned(),
            port: 9,
            proto: "UDP/TLS/RTP/SAVPF".to_owned(),
            formats: vec!["96".to_owned()],
            attributes: attributes.collect(),
        };
        let declared = read(&section).expect("sound");
        let layer = |layer: &DeclaredSsrc| (layer.primary.0, layer.rtx.map(|rtx| rtx.0));
        declared.layers.iter().map(layer).collect()
    }

    #[test]
    fn members_of_a_sim_group_are_layers() {
        let fid = ["FID 1 4", "FID 2 5", "FID 3 6"];
        assert_eq!(
            layers(&[&["SIM 1 2 3"][..], &fid].concat()),
            [(1, Some(4)), (2, Some(5)), (3, Some(6))]
        );
        assert_eq!(layers(&["FID 1 4", "SIM 2 1"]), [(2, None), (1, Some(4))]);
        assert_eq!(layers(&["SIM 1"]), [], "a single one is no simulcast");
        assert_eq!(layers(&["SIM 1 1"]), [], "nor is one that is named twice");
        assert_eq!(layers(&["FID 1 4"]), []);
    }
}
