//! Simulcast layers that a publisher offers (RFC 8853 §5.1, RFC 8851 §4). Their order does not indicate quality:
//! Chromium writes low to high, OBS high to low.

use super::error::OfferError;
use super::sdp_lines::{RawSection, attributes_named, first_attribute_named};
use crate::media::Rid;

/// Returns the layers in the order of `a=simulcast:send`; empty without simulcast.
///
/// Of alternatives (`a,b`) the first is used. The mark of an initially paused layer (`~a`) is ignored.
pub(super) fn parse_simulcast(section: &RawSection) -> Result<Vec<Rid>, OfferError> {
    let mut declared = Vec::new();
    for attribute in attributes_named(&section.attributes, "rid") {
        let line = attribute.line_number;
        let mut fields = attribute.value.split_whitespace();
        let (id, direction) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        if !is_valid_rid(id) || declared.contains(&id) || !matches!(direction, "send" | "recv") {
            return Err(OfferError::BadRid { line });
        }
        // Each rid is declared once and in one direction (RFC 8851 §4). Only those with `send` are layers of the
        // publisher.
        if direction == "send" {
            declared.push(id);
        }
        if declared.len() > MAX_SIMULCAST_LAYERS {
            return Err(OfferError::TooManySimulcastLayers {
                line,
                limit: MAX_SIMULCAST_LAYERS,
            });
        }
    }
    let Some(attribute) = first_attribute_named(&section.attributes, "simulcast") else {
        return Ok(Vec::new());
    };
    let mut rids = Vec::new();
    for layer in split_simulcast_send_list(&attribute.value) {
        let first = layer.split(',').next().unwrap_or_default();
        let id = first.strip_prefix('~').unwrap_or(first);
        if !declared.contains(&id) || rids.contains(&id) {
            return Err(OfferError::BadSimulcast {
                line: attribute.line_number,
            });
        }
        rids.push(id);
    }
    Ok(rids.into_iter().map(|id| Rid(id.into())).collect())
}

/// Returns the layers after `send`. The obsolete draft syntax `send rid=a;b` is treated as no simulcast.
fn split_simulcast_send_list(value: &str) -> impl Iterator<Item = &str> {
    let mut fields = value.split_whitespace();
    let mut list = None;
    while let (Some(direction), Some(layers)) = (fields.next(), fields.next()) {
        if direction == "send" {
            list = Some(layers);
        }
    }
    list.filter(|list| !list.starts_with("rid="))
        .into_iter()
        .flat_map(|list| list.split(';'))
}

/// RFC 8851 §10. A one-byte header extension carries at most 16 characters (RFC 8285 §4.2).
fn is_valid_rid(id: &str) -> bool {
    (1..=16).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Chromium sends three layers.
const MAX_SIMULCAST_LAYERS: usize = 8;
