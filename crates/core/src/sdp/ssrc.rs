//! SSRCs declared by an m-section (RFC 5576).

use super::error::OfferError;
use super::negotiation_result::DeclaredSsrc;
use super::sdp_lines::{AttributeWithLineNumber, RawSection, attributes_named};
use crate::media::Ssrc;

/// Declared SSRCs of an m-section.
pub(super) struct SectionSsrcs {
    /// SSRCs of media with their RTX SSRCs, in the order of declaration.
    pub media_ssrcs: Vec<DeclaredSsrc>,
    /// Simulcast layers: the members of a SIM group of several, in its order.
    pub layer_ssrcs: Vec<DeclaredSsrc>,
    /// All SSRCs, of media, RTX or FEC, with the line of their first occurrence.
    pub all_declared_ssrcs: Vec<(usize, Ssrc)>,
}

/// Reads `a=ssrc` and `a=ssrc-group`.
///
/// An SSRC in a group counts as declared: FFmpeg 9.0.2 names an RTX SSRC in a FID group without an `a=ssrc` of its own.
pub(super) fn parse_ssrcs(section: &RawSection) -> Result<SectionSsrcs, OfferError> {
    let mut declared = SectionSsrcs {
        media_ssrcs: Vec::new(),
        layer_ssrcs: Vec::new(),
        all_declared_ssrcs: Vec::new(),
    };
    let mut rtx_pairs: Vec<(Ssrc, Ssrc)> = Vec::new();
    let mut rtx_or_fec_ssrcs: Vec<Ssrc> = Vec::new();
    let mut layers: Vec<Ssrc> = Vec::new();
    for attribute in attributes_named(&section.attributes, "ssrc-group").take(MAX_DECLARED_SSRCS) {
        let mut fields = attribute.value.split_whitespace();
        let semantics = fields.next().unwrap_or_default();
        let ssrcs = fields
            .take(MAX_DECLARED_SSRCS)
            .map(|field| parse_ssrc(attribute, field))
            .collect::<Result<Vec<_>, _>>()?;
        match (semantics, ssrcs.as_slice()) {
            ("FID", [primary, rtx, ..]) => {
                rtx_pairs.push((*primary, *rtx));
                rtx_or_fec_ssrcs.push(*rtx);
            }
            ("FEC" | "FEC-FR", [_, fec, ..]) => rtx_or_fec_ssrcs.push(*fec),
            // Libwebrtc's simulcast before RIDs. No RFC defines it.
            ("SIM", [_, _, ..]) if ssrcs.len() <= MAX_SIMULCAST_LAYERS => layers.clone_from(&ssrcs),
            _ => {}
        }
        for ssrc in ssrcs {
            declared.record_ssrc_within_limit(attribute.line_number, ssrc);
        }
    }
    for attribute in attributes_named(&section.attributes, "ssrc") {
        let id = attribute.value.split(' ').next().unwrap_or_default();
        declared.record_ssrc_within_limit(attribute.line_number, parse_ssrc(attribute, id)?);
    }
    declared.media_ssrcs = declared
        .all_declared_ssrcs
        .iter()
        .map(|(_, ssrc)| *ssrc)
        .filter(|ssrc| !rtx_or_fec_ssrcs.contains(ssrc))
        .map(|primary| DeclaredSsrc {
            primary,
            rtx: rtx_pairs.iter().find(|(p, _)| *p == primary).map(|(_, rtx)| *rtx),
        })
        .collect();
    layers.dedup();
    let of_layer = |ssrc: &Ssrc| {
        declared
            .media_ssrcs
            .iter()
            .find(|declared| declared.primary == *ssrc)
            .copied()
    };
    declared.layer_ssrcs = layers.iter().filter_map(of_layer).collect();
    if declared.layer_ssrcs.len() < 2 {
        declared.layer_ssrcs.clear();
    }
    Ok(declared)
}

impl SectionSsrcs {
    fn record_ssrc_within_limit(&mut self, line: usize, ssrc: Ssrc) {
        if self.all_declared_ssrcs.len() < MAX_DECLARED_SSRCS
            && self.all_declared_ssrcs.iter().all(|(_, known)| *known != ssrc)
        {
            self.all_declared_ssrcs.push((line, ssrc));
        }
    }
}

fn parse_ssrc(attribute: &AttributeWithLineNumber, field: &str) -> Result<Ssrc, OfferError> {
    field.parse().map(Ssrc).map_err(|_| OfferError::BadSsrc {
        line: attribute.line_number,
    })
}

/// Libwebrtc sends at most three layers.
const MAX_SIMULCAST_LAYERS: usize = 8;

/// Three simulcast layers with RTX and FEC declare nine SSRCs. SSRCs beyond the limit are ignored.
const MAX_DECLARED_SSRCS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(groups: &[&str]) -> Vec<(u32, Option<u32>)> {
        let attributes = groups.iter().map(|value| AttributeWithLineNumber {
            line_number: 1,
            key: "ssrc-group".to_owned(),
            value: (*value).to_owned(),
        });
        let section = RawSection {
            line_number: 1,
            media_kind: "video".to_owned(),
            port: 9,
            proto: "UDP/TLS/RTP/SAVPF".to_owned(),
            formats: vec!["96".to_owned()],
            attributes: attributes.collect(),
        };
        let declared = parse_ssrcs(&section).expect("valid");
        let layer = |layer: &DeclaredSsrc| (layer.primary.0, layer.rtx.map(|rtx| rtx.0));
        declared.layer_ssrcs.iter().map(layer).collect()
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
