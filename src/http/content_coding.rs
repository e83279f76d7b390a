//! `Accept-Encoding` (RFC 9110 §12.5.3): the choice among the content codings in which a file is stored.

use axum::http::{HeaderMap, HeaderValue, header};

/// A content coding (RFC 9110 §8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentCoding {
    Brotli,
    Gzip,
    Identity,
}

impl ContentCoding {
    /// The order in which the gateway prefers what a client accepts equally: the smallest first.
    const CODINGS_BY_PREFERENCE: [Self; 3] = [Self::Brotli, Self::Gzip, Self::Identity];

    /// Returns the value of `Content-Encoding`; `None` for identity, which has none.
    pub(super) fn header_value(self) -> Option<HeaderValue> {
        match self {
            Self::Brotli => Some(HeaderValue::from_static("br")),
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Identity => None,
        }
    }

    fn has_name(self, name: &str) -> bool {
        let names: &[&str] = match self {
            Self::Brotli => &["br"],
            // RFC 9110 §8.4.1.3.
            Self::Gzip => &["gzip", "x-gzip"],
            Self::Identity => &["identity"],
        };
        names.iter().any(|known| name.eq_ignore_ascii_case(known))
    }
}

/// Weight in thousandths, doubled: an odd value lies between two that clients can send.
type QualityValue = u16;
const MAX_QVALUE: QualityValue = 2_000;

/// Returns the coding among those that are `available` which the client weights highest; `None` if it accepts none.
/// Without the header the content is sent as it is: clients that say nothing rarely decode anything.
pub(super) fn negotiate(headers: &HeaderMap, available: impl Fn(ContentCoding) -> bool) -> Option<ContentCoding> {
    let mut listed = Vec::new();
    let mut is_present = false;
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        is_present = true;
        listed.extend(
            value
                .to_str()
                .unwrap_or_default()
                .split(',')
                .filter_map(parse_accept_encoding_item),
        );
    }
    if !is_present {
        return Some(ContentCoding::Identity);
    }
    let quality_of = |coding: ContentCoding| {
        let named = listed.iter().find(|(name, _)| coding.has_name(name));
        let any = || listed.iter().find(|(name, _)| *name == "*");
        match named.or_else(any) {
            Some((_, quality)) => *quality,
            // It is acceptable unless it is excluded, but whoever lists others prefers these.
            None if coding == ContentCoding::Identity => 1,
            None => 0,
        }
    };
    let mut best = None;
    for coding in ContentCoding::CODINGS_BY_PREFERENCE {
        let quality = quality_of(coding);
        let is_better = best.is_none_or(|(_, best)| quality > best);
        if quality > 0 && is_better && (coding == ContentCoding::Identity || available(coding)) {
            best = Some((coding, quality));
        }
    }
    best.map(|(coding, _)| coding)
}

/// Parses `gzip` or `gzip;q=0.8`. What is malformed is left out, as if the client had not listed it.
fn parse_accept_encoding_item(item: &str) -> Option<(&str, QualityValue)> {
    let mut parts = item.split(';');
    let name = parts.next()?.trim();
    let quality = match parts.next().map(str::trim) {
        None => MAX_QVALUE,
        Some(weight) => parse_weight(weight)?,
    };
    (!name.is_empty()).then_some((name, quality))
}

/// Parses `q=0.8`, with up to three decimals (RFC 9110 §12.4.2).
fn parse_weight(weight: &str) -> Option<QualityValue> {
    let (name, value) = weight.split_once('=')?;
    if !name.trim_end().eq_ignore_ascii_case("q") {
        return None;
    }
    let (whole, decimals) = value.trim().split_once('.').unwrap_or((value.trim(), ""));
    if decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{decimals:0<3}").parse::<QualityValue>().ok()?;
    match whole {
        "0" => Some(thousandths * 2),
        "1" if thousandths == 0 => Some(MAX_QVALUE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::ContentCoding::{Brotli, Gzip, Identity};
    use super::*;

    fn choice(values: &[&str], available: &[ContentCoding]) -> Option<ContentCoding> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT_ENCODING, HeaderValue::from_str(value).expect("header"));
        }
        negotiate(&headers, |coding| available.contains(&coding))
    }

    #[test]
    fn the_coding_that_the_client_weights_highest_is_chosen() {
        let both = &[Brotli, Gzip];
        for (values, expected) in [
            (&[][..], Some(Identity)),
            (&[""], Some(Identity)),
            (&["gzip, deflate, br, zstd"], Some(Brotli)),
            (&["GZip"], Some(Gzip)),
            (&["x-gzip"], Some(Gzip)),
            (&["gzip", "br"], Some(Brotli)),
            (&["br;q=0.5, gzip;q=0.9"], Some(Gzip)),
            (&["br ; q=0.5 , gzip ; Q=0.501"], Some(Gzip)),
            (&["br;q=0, gzip;q=0.001"], Some(Gzip)),
            (&["gzip;q=0.5, identity"], Some(Identity)),
            (&["deflate"], Some(Identity)),
            (&["*"], Some(Brotli)),
            (&["*;q=0.5, br;q=0"], Some(Gzip)),
            (&["identity;q=0"], None),
            (&["*;q=0"], None),
            (&["identity;q=0, gzip"], Some(Gzip)),
            (&["*;q=0, gzip;q=0.3"], Some(Gzip)),
            (&["identity;q=0, zstd"], None),
            // Malformed weights.
            (&["br;q=2, gzip;q=x, zstd;q=0.1234"], Some(Identity)),
            (&["br;quality=1, gzip;q=1.5"], Some(Identity)),
            (&[";;,=,;q=1,gzip"], Some(Gzip)),
        ] {
            assert_eq!(choice(values, both), expected, "{values:?}");
        }
        assert_eq!(choice(&["br, gzip"], &[Gzip]), Some(Gzip));
        assert_eq!(choice(&["br"], &[]), Some(Identity));
        assert_eq!(choice(&["br, identity;q=0"], &[]), None);
    }
}
