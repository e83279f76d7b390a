//! Files that are embedded in the binary: conditional requests (RFC 9110 §13), content codings and caching (RFC 9111).

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::content_coding::{self, ContentCoding};
use super::precondition;
use super::problem::Problem;

/// A file of the web pages, made by `build/`.
pub(super) struct StaticFile {
    /// Path whose content changes with the release.
    pub(super) path: &'static str,
    /// Paths that name their content: by a digest, or by the version of the gateway.
    pub(super) immutable_paths: &'static [&'static str],
    pub(super) media_type: &'static str,
    /// Of the content. With the coding it is the entity tag.
    pub(super) digest: &'static str,
    pub(super) content: &'static [u8],
    pub(super) gzip: Option<&'static [u8]>,
    pub(super) brotli: Option<&'static [u8]>,
}

/// How long caches may keep a file without asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheRule {
    /// The path is the same in the next release, so that each use is revalidated.
    Revalidate,
    /// The path always has this content.
    Immutable,
}

impl CacheRule {
    const fn header_value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Revalidate => "no-cache",
            // One year, the most that caches agree on.
            Self::Immutable => "public, max-age=31536000, immutable",
        })
    }
}

impl StaticFile {
    /// Returns 200 with the content in the coding that the client prefers, 304 if it has that, or 406 if it accepts none.
    pub(super) fn respond(&self, request: &HeaderMap, cache: CacheRule) -> Response {
        let Some(coding) = content_coding::negotiate(request, |coding| self.content_in_coding(coding).is_some()) else {
            return unacceptable_coding();
        };
        let tag = self.entity_tag(coding);
        let is_known = precondition::if_none_match_lists(request, &tag);
        let mut response = match self.content_in_coding(coding) {
            Some(content) if !is_known => (StatusCode::OK, content).into_response(),
            _ => StatusCode::NOT_MODIFIED.into_response(),
        };
        let headers = response.headers_mut();
        if !is_known {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type));
            if let Some(coding) = coding.header_value() {
                headers.insert(header::CONTENT_ENCODING, coding);
            }
        }
        // A digest is hexadecimal.
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{tag}\"")) {
            headers.insert(header::ETAG, tag);
        }
        headers.insert(header::CACHE_CONTROL, cache.header_value());
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        // The player can be embedded by pages of any origin.
        headers.insert(
            HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("cross-origin"),
        );
        response
    }

    fn content_in_coding(&self, coding: ContentCoding) -> Option<&'static [u8]> {
        match coding {
            ContentCoding::Brotli => self.brotli,
            ContentCoding::Gzip => self.gzip,
            ContentCoding::Identity => Some(self.content),
        }
    }

    /// Returns a tag that differs between codings: it is strong, so equal tags mean equal bytes (RFC 9110 §8.8.1).
    fn entity_tag(&self, coding: ContentCoding) -> String {
        match coding {
            ContentCoding::Brotli => format!("{}-br", self.digest),
            ContentCoding::Gzip => format!("{}-gzip", self.digest),
            ContentCoding::Identity => self.digest.to_owned(),
        }
    }
}

fn unacceptable_coding() -> Response {
    let detail = "`Accept-Encoding` excludes every coding of this file: accept br, gzip or identity";
    Problem::new(StatusCode::NOT_ACCEPTABLE, "unacceptable_coding", detail)
        .with_header(header::VARY, HeaderValue::from_static("Accept-Encoding"))
        .into_response()
}
