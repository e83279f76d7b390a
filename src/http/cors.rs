//! Cross-origin resource sharing (Fetch standard §3.2): headers of every response, and preflight requests, which need
//! no authorization.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use crate::config::AllowedOrigins;

/// Listed explicitly because `*` does not include `Authorization`. One player sends a request header named `ETag`.
const CORS_ALLOWED_HEADERS: &str = "Authorization, Content-Type, If-Match, If-None-Match, ETag, Accept, Link";
const CORS_EXPOSED_HEADERS: &str = "Location, ETag, Link, Accept-Patch, Accept-Post, Allow, Retry-After, WWW-Authenticate, \
                              Access-Control-Allow-Methods";
/// One player uses trickle ICE only if this list contains PATCH.
const CORS_ALLOWED_METHODS: &str = "OPTIONS, HEAD, GET, POST, PUT, PATCH, DELETE";
/// Seconds that a browser may cache a preflight response; Chromium's maximum is two hours.
const PREFLIGHT_MAX_AGE_SECS: &str = "7200";

/// What a request says of its page.
pub struct CorsRequestHeaders {
    origin: Option<HeaderValue>,
    /// Header names that a preflight asks for.
    requested_header_names: Vec<String>,
}

impl CorsRequestHeaders {
    pub fn from_headers(headers: &HeaderMap) -> Self {
        Self {
            origin: headers.get(header::ORIGIN).cloned(),
            requested_header_names: requested_header_names(headers),
        }
    }
}

/// Adds the CORS headers of every response.
pub fn add_cors_headers(origins: &AllowedOrigins, request: &CorsRequestHeaders, headers: &mut HeaderMap) {
    let origin = request.origin.as_ref();
    let allowed = match origins {
        AllowedOrigins::Any => Some(HeaderValue::from_static("*")),
        AllowedOrigins::Listed(list) => {
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
            HeaderValue::from_static(CORS_EXPOSED_HEADERS),
        );
        add_requested_names_to_allowed_headers(&request.requested_header_names, headers);
    }
}

/// Allows the header names that a preflight asks for. Tracing libraries add headers of their own to every request of a
/// page, and the page does not know their names.
fn add_requested_names_to_allowed_headers(requested: &[String], headers: &mut HeaderMap) {
    let Some(allowed) = headers.get(header::ACCESS_CONTROL_ALLOW_HEADERS) else {
        return;
    };
    let mut names = allowed.to_str().unwrap_or_default().to_owned();
    for name in requested {
        let is_listed = names.split(", ").any(|listed| listed.eq_ignore_ascii_case(name));
        if !is_listed {
            names.push_str(", ");
            names.push_str(name);
        }
    }
    if let Ok(names) = HeaderValue::from_str(&names) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
}

/// Reads `Access-Control-Request-Headers`. What is no header name is left out, so that nothing else is repeated.
fn requested_header_names(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| name.len() <= MAX_HEADER_NAME_BYTES && HeaderName::from_bytes(name.as_bytes()).is_ok())
        .take(MAX_REQUESTED_HEADER_NAMES)
        .map(str::to_owned)
        .collect()
}

/// Most header names of a preflight that are allowed. Pages with three tracing libraries ask for ten.
const MAX_REQUESTED_HEADER_NAMES: usize = 32;
/// Longest header name of a preflight that is allowed, in bytes.
const MAX_HEADER_NAME_BYTES: usize = 64;

/// Returns the response to OPTIONS of a resource with these methods.
pub fn preflight_response(allowed_methods: &'static str) -> Response {
    let mut response = [(header::ALLOW, allowed_methods)].into_response();
    add_preflight_headers(response.headers_mut());
    response
}

/// Adds the headers of a preflight response. Responses to other OPTIONS requests have them too, because one player
/// reads the methods from there. [`add_cors_headers`] adds the header names that the preflight asks for.
pub fn add_preflight_headers(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(CORS_ALLOWED_METHODS),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(CORS_ALLOWED_HEADERS),
    );
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static(PREFLIGHT_MAX_AGE_SECS),
    );
}
