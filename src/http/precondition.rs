//! Conditional requests: `If-Match` (RFC 9110 §13.1.1), as WHIP and WHEP clients send it, and `If-None-Match` (§13.1.2).

use axum::http::{HeaderMap, header};

/// Result of comparing the `If-Match` of a request with the current entity tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMatchResult {
    /// There is no `If-Match` header. RFC 9725 §4.3.1 requires 428, but three client libraries never send the header
    /// with trickle ICE.
    Absent,
    /// `*`, possibly quoted, as in the example of RFC 9725.
    Any,
    /// The current tag is among those listed.
    Current,
    /// The current tag is not among those listed.
    Stale,
}

impl IfMatchResult {
    /// Compares `If-Match` with the current tag, given without quotes. Weak tags never match (RFC 9110 §8.8.3.2).
    /// Unquoted tags can match, because some servers send tags without quotes and clients got used to it.
    pub fn evaluate(headers: &HeaderMap, current: &str) -> Self {
        let mut result = Self::Absent;
        for value in headers.get_all(header::IF_MATCH) {
            // The gateway's tags contain no comma.
            for tag in value.to_str().unwrap_or_default().split(',') {
                let tag = tag.trim();
                let bare = tag
                    .strip_prefix('"')
                    .and_then(|tag| tag.strip_suffix('"'))
                    .unwrap_or(tag);
                match bare {
                    "*" => return Self::Any,
                    bare if bare == current => return Self::Current,
                    _ => result = Self::Stale,
                }
            }
        }
        result
    }
}

/// Returns whether `If-None-Match` lists the current tag, given without quotes, so that the client has the content
/// already. Weak tags match too, as proxies make them of strong ones.
pub fn if_none_match_lists(headers: &HeaderMap, current: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut tags = values.flat_map(|value| value.to_str().unwrap_or_default().split(','));
    tags.any(|tag| {
        let tag = tag.trim();
        let strong = tag.strip_prefix("W/").unwrap_or(tag);
        let opaque = strong.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        tag == "*" || opaque == Some(current)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn tags_are_compared_as_clients_write_them() {
        for (values, expected) in [
            (&[][..], IfMatchResult::Absent),
            (&["*"], IfMatchResult::Any),
            (&["\"*\""], IfMatchResult::Any),
            (&["\"now\""], IfMatchResult::Current),
            (&["now"], IfMatchResult::Current),
            (&["\"old\" , \"now\""], IfMatchResult::Current),
            (&["\"old\"", "\"now\""], IfMatchResult::Current),
            (&["\"old\""], IfMatchResult::Stale),
            (&["W/\"now\""], IfMatchResult::Stale),
            (&["\"now"], IfMatchResult::Stale),
            (&[""], IfMatchResult::Stale),
            (&["\"caf\u{e9}\""], IfMatchResult::Stale),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_MATCH, HeaderValue::from_str(value).expect("header"));
            }
            assert_eq!(IfMatchResult::evaluate(&headers, "now"), expected, "{values:?}");
        }
    }

    #[test]
    fn content_that_the_client_has_is_recognized_by_its_tag() {
        for (values, expected) in [
            (&[][..], false),
            (&["*"], true),
            (&["\"now\""], true),
            (&["W/\"now\""], true),
            (&["\"old\", W/\"older\" ,\"now\""], true),
            (&["\"old\"", "\"now\""], true),
            (&["\"old\""], false),
            (&["now"], false),
            (&["\"now"], false),
            (&["\"*\""], false),
            (&["\"caf\u{e9}\""], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_NONE_MATCH, HeaderValue::from_str(value).expect("header"));
            }
            assert_eq!(if_none_match_lists(&headers, "now"), expected, "{values:?}");
        }
    }
}
