//! What every handler reads of a request: who sent it, and which stream it is about.

use axum::http::Uri;
use axum::http::request::Parts;

use super::auth::HttpClientIdentity;
use super::forwarded_headers::ClientAddress;
use super::problem::Problem;
use millstream_core::hub::name::StreamName;

/// Returns the parts of a request that identify its sender.
pub(super) fn client_identity(request: &Parts) -> HttpClientIdentity<'_> {
    HttpClientIdentity {
        headers: &request.headers,
        query: request.uri.query(),
        address: request
            .extensions
            .get::<ClientAddress>()
            .map(|ClientAddress(address)| *address),
    }
}

/// Returns the stream name in a path like `/whip/NAME`. The path is not percent-decoded: no character of a name needs
/// escaping, and the grammar rejects `%2F` and the like. One trailing slash is tolerated.
pub(super) fn stream_name_from_path(uri: &Uri) -> Result<StreamName, Problem> {
    let name = uri.path().splitn(3, '/').nth(2).unwrap_or_default();
    Ok(StreamName::parse(name.strip_suffix('/').unwrap_or(name))?)
}

/// Returns the source of the stream that a publisher names in the query: `?source=NAME`.
pub(super) fn source_name_from_query(uri: &Uri) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.find_map(|(key, value)| (key == "source").then(|| value.into_owned()))
}
