//! Parts of responses that several handlers share.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;

/// `Accept-Post` (RFC 9725 §4.2); <https://www.w3.org/TR/ldp/#header-accept-post>.
pub(super) const ACCEPT_POST_HEADER_NAME: HeaderName = HeaderName::from_static("accept-post");

/// Forbids caching of a response.
pub(super) fn add_no_store_header(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `Accept-Patch` (RFC 5789 §3.1).
pub(super) const ACCEPT_PATCH_HEADER_NAME: HeaderName = HeaderName::from_static("accept-patch");
