//! Cross-origin resource sharing (Fetch standard §3.2): headers of every response, and preflight requests, which need
//! no authorization.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::config::CorsOrigins;

/// Listed explicitly because `*` does not include `Authorization`. One player sends a request header named `ETag`.
const ALLOW_HEADERS: &str = "Authorization, Content-Type, If-Match, If-None-Match, ETag, Accept, Link";
const EXPOSE_HEADERS: &str = "Location, ETag, Link, Accept-Patch, Accept-Post, Allow, Retry-After, WWW-Authenticate, \
                              Access-Control-Allow-Methods";
/// One player uses trickle ICE only if this list contains PATCH.
const ALLOW_METHODS: &str = "OPTIONS, HEAD, GET, POST, PATCH, DELETE";
/// Seconds that a browser may cache a preflight response; Chromium's maximum is two hours.
const MAX_AGE: &str = "7200";

/// Adds the CORS headers of every response.
pub fn decorate(origins: &CorsOrigins, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let allowed = match origins {
        CorsOrigins::Any => Some(HeaderValue::from_static("*")),
        CorsOrigins::Listed(list) => {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
            origin
                .filter(|origin| list.iter().any(|o| o.as_bytes() == origin.as_bytes()))
                .cloned()
        }
    };
    if let Some(allowed) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(EXPOSE_HEADERS),
        );
    }
}

/// Adds the headers of a preflight response. Responses to other OPTIONS requests have them too, because one player
/// reads the methods from there.
pub fn answer_preflight(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(ALLOW_METHODS),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(ALLOW_HEADERS),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
}
