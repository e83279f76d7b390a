//! Fetches files of an origin with limits on size, time and destination.
//!
//! The first URL comes from the operator. URLs reached by redirects or playlists come from the origin
//! ([`AddressOrigin`]): their addresses are checked before connecting. A host name is checked by its resolved
//! addresses, and the connection uses these same addresses.

use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, COOKIE, HeaderMap, HeaderValue, LOCATION, RANGE, SET_COOKIE};
use reqwest::redirect::Policy;
use thiserror::Error;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use url::{Host, Url};

use super::cookies::{CookieJar, MonotonicAndSystemTime};
use super::playlist::ByteRange;
use crate::sources::fetch::address::{AddressError, AddressOrigin, AllowedNetworks};

/// An HTTP client for one source.
#[derive(Debug)]
pub(super) struct OriginClient {
    http: reqwest::Client,
    address_guard: Arc<AddressRestriction>,
    /// Sent only to the configured scheme, host and port, because they may be secrets.
    configured_headers: HeaderMap,
    configured_url: Url,
    cookies: Mutex<CookieJar>,
}

/// Why a file could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HttpError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("the scheme of the URL is neither http:// nor https://")]
    UnsupportedScheme,
    #[error("the HTTP request was redirected more than {MAX_REDIRECTS} times")]
    TooManyRedirects,
    #[error("the HTTP server answered with status {0}")]
    Status(u16),
    #[error("the HTTP response has no body")]
    EmptyBody,
    #[error("the HTTP response body is larger than the limit of {0} bytes")]
    BodyTooLarge(usize),
    #[error("the HTTP request timed out")]
    Timeout,
    #[error("cannot connect to the HTTP server: {0}")]
    Connect(String),
    #[error("the HTTP connection was lost: {0}")]
    ConnectionLost(String),
    #[error("the HTTP response does not contain the requested byte range")]
    RangeUnavailable,
    #[error("cannot create the HTTP client: {0}")]
    ClientSetup(String),
}

impl HttpError {
    /// Whether the server refuses the address. It may have been good for a while only.
    pub(super) fn is_url_refused_by_server(&self) -> bool {
        matches!(self, Self::Status(401 | 403 | 404 | 410))
    }

    /// Whether a retry may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status(status) => *status >= 500 || matches!(status, 408 | 425 | 429),
            Self::Timeout | Self::Connect(_) | Self::ConnectionLost(_) => true,
            Self::Address(AddressError::Unresolved(_)) => true,
            Self::Address(_)
            | Self::UnsupportedScheme
            | Self::TooManyRedirects
            | Self::EmptyBody
            | Self::BodyTooLarge(_)
            | Self::RangeUnavailable
            | Self::ClientSetup(_) => false,
        }
    }
}

/// Limits of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct FetchLimits {
    /// Maximum size in bytes.
    pub(super) max_bytes: usize,
    /// Maximum time, redirects included.
    pub(super) timeout: Duration,
}

/// As players: ffmpeg follows 8. Content delivery networks with cookies and tokens need four or five.
const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum time between two reads of a body.
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(6);

impl OriginClient {
    /// Makes a client for the source at this URL.
    ///
    /// # Errors
    ///
    /// [`HttpError::ClientSetup`] if TLS cannot be set up.
    pub(super) fn new(
        url: &Url,
        allowed: AllowedNetworks,
        headers: HeaderMap,
        first_resolution: DnsRebindingGuard,
    ) -> Result<Self, HttpError> {
        let guard = Arc::new(AddressRestriction {
            allowed_networks: allowed,
            configured_host: url.host_str().unwrap_or_default().to_owned(),
            first_resolution,
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
            // A proxy would connect to addresses that were not checked.
            .no_proxy()
            .redirect(Policy::none())
            .dns_resolver(guard.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(BODY_READ_TIMEOUT)
            .build()
            .map_err(|error| HttpError::ClientSetup(innermost_cause(&error)))?;
        Ok(Self {
            http,
            address_guard: guard,
            configured_headers: headers,
            configured_url: url.clone(),
            cookies: Mutex::default(),
        })
    }

    /// Fetches a file or a byte range of it. Returns it with its URL after redirects.
    ///
    /// # Errors
    ///
    /// An [`HttpError`].
    pub(super) async fn get(
        &self,
        url: &Url,
        range: Option<ByteRange>,
        limits: FetchLimits,
    ) -> Result<(Url, Bytes), HttpError> {
        let getting = self.get_following_redirects(url, range, limits.max_bytes);
        timeout(limits.timeout, getting)
            .await
            .unwrap_or(Err(HttpError::Timeout))
    }

    async fn get_following_redirects(
        &self,
        url: &Url,
        range: Option<ByteRange>,
        max_bytes: usize,
    ) -> Result<(Url, Bytes), HttpError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            self.address_guard.require_permitted_scheme_and_ip(&url)?;
            let mut request = self.http.get(url.clone()).headers(self.request_headers(&url));
            if let Some(ByteRange { begin, length }) = range {
                let last = begin.saturating_add(length).saturating_sub(1);
                // The positions of the playlist are those of the file, not of its compressed form (RFC 9110 §14.1.2).
                request = request
                    .header(RANGE, format!("bytes={begin}-{last}"))
                    .header(ACCEPT_ENCODING, "identity");
            }
            let response = request.send().await.map_err(|error| to_http_error(&error))?;
            self.store_cookies(&url, response.headers());
            let status = response.status();
            if status.is_redirection() {
                let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| url.join(to).ok());
                url = to.ok_or(HttpError::Status(status.as_u16()))?;
                continue;
            }
            if !status.is_success() {
                return Err(HttpError::Status(status.as_u16()));
            }
            let is_part = status.as_u16() == 206;
            let body = match range {
                None => read_body(response, max_bytes).await?,
                Some(range) => read_range(response, range, is_part, max_bytes).await?,
            };
            return Ok((url, body));
        }
        Err(HttpError::TooManyRedirects)
    }

    /// Headers of a request: cookies of its host, and those of the operator for theirs.
    fn request_headers(&self, url: &Url) -> HeaderMap {
        let mut headers = if is_same_server_or_https_upgrade(&self.configured_url, url) {
            self.configured_headers.clone()
        } else {
            HeaderMap::new()
        };
        let cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cookies) = cookies.cookie_header(Instant::now().into_std(), url) {
            let own = headers.get(COOKIE).and_then(|own| own.to_str().ok());
            let all = own.map_or(cookies.clone(), |own| format!("{own}; {cookies}"));
            if let Ok(mut value) = HeaderValue::from_str(&all) {
                value.set_sensitive(true);
                headers.insert(COOKIE, value);
            }
        }
        headers
    }

    #[expect(clippy::disallowed_methods, reason = "the clock of cookies")]
    fn store_cookies(&self, url: &Url, headers: &HeaderMap) {
        let now = MonotonicAndSystemTime {
            instant: Instant::now().into_std(),
            date: SystemTime::now(),
        };
        let mut cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        for cookie in headers
            .get_all(SET_COOKIE)
            .iter()
            .filter_map(|cookie| cookie.to_str().ok())
        {
            cookies.store(now, url, cookie);
        }
    }
}

/// Whether a URL refers to the configured server: the same scheme, host and port, or HTTPS instead of HTTP, both at their
/// default ports.
fn is_same_server_or_https_upgrade(configured: &Url, url: &Url) -> bool {
    let is_upgrade = (configured.scheme(), url.scheme()) == ("http", "https")
        && (configured.port(), url.port()) == (None, None)
        && configured.host() == url.host();
    configured.origin() == url.origin() || is_upgrade
}

/// Reads a body; `max_bytes` bounds what a compressed one is expanded to.
async fn read_body(mut response: reqwest::Response, max_bytes: usize) -> Result<Bytes, HttpError> {
    let announced = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > max_bytes)) {
        return Err(HttpError::BodyTooLarge(max_bytes));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| to_http_error(&error))? {
        if body.len() + chunk.len() > max_bytes {
            return Err(HttpError::BodyTooLarge(max_bytes));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Maximum number of bytes before a range that are read from a server without range support.
const MAX_DISCARDED_BYTES: u64 = 256 << 20;

/// Reads a byte range. A server without range support sends the whole file: what is before the range is discarded, and
/// what follows it is not read.
async fn read_range(
    mut response: reqwest::Response,
    ByteRange { begin, length }: ByteRange,
    is_partial: bool,
    max_bytes: usize,
) -> Result<Bytes, HttpError> {
    let length = usize::try_from(length).map_err(|_| HttpError::RangeUnavailable)?;
    if length > max_bytes {
        return Err(HttpError::BodyTooLarge(max_bytes));
    }
    let mut discarded = if is_partial { 0 } else { begin };
    if discarded > MAX_DISCARDED_BYTES {
        return Err(HttpError::RangeUnavailable);
    }
    let mut body = BytesMut::new();
    while body.len() < length {
        let chunk = response.chunk().await.map_err(|error| to_http_error(&error))?;
        let mut chunk = chunk.ok_or(HttpError::RangeUnavailable)?;
        let before = usize::try_from(discarded).unwrap_or(usize::MAX).min(chunk.len());
        discarded -= before as u64;
        chunk.advance(before);
        chunk.truncate(length - body.len());
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Converts an error without its URL, which may contain a token.
fn to_http_error(error: &reqwest::Error) -> HttpError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<AddressError>() {
            return HttpError::Address(refused.clone());
        }
        source = cause.source();
    }
    if error.is_timeout() {
        HttpError::Timeout
    } else if error.is_connect() {
        HttpError::Connect(innermost_cause(error))
    } else {
        HttpError::ConnectionLost(innermost_cause(error))
    }
}

fn innermost_cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    // The error of reqwest itself contains the URL.
    if innermost.is::<reqwest::Error>() {
        return "the HTTP client reports no cause".to_owned();
    }
    millstream_worker_runtime::wire::sanitize_worker_text(&innermost.to_string())
}

/// Restricts the addresses that are connected to.
#[derive(Debug)]
struct AddressRestriction {
    allowed_networks: AllowedNetworks,
    /// The configured host.
    configured_host: String,
    first_resolution: DnsRebindingGuard,
}

/// Whether the configured host was public when it was first resolved. If so, its name may not refer to private addresses
/// later, which only the gateway can reach (DNS rebinding), unless it has moved there: after a day without any public
/// address the next resolution counts as the first one, as it would after a restart of the gateway.
#[derive(Clone, Debug, Default)]
pub struct DnsRebindingGuard(Arc<Mutex<DnsResolutionState>>);

#[derive(Debug, Default)]
struct DnsResolutionState {
    /// `None` while the name was never resolved to an address.
    was_public: Option<bool>,
    /// Since when a name that was public is resolved to addresses of which none is.
    private_since: Option<Instant>,
}

/// How long a name that was public refers to private addresses before they are accepted.
const PRIVATE_ADDRESS_ACCEPTANCE_DELAY: Duration = Duration::from_secs(24 * 3_600);

impl DnsRebindingGuard {
    /// Records a resolution. Returns whether the name may refer to public addresses only.
    fn record_resolution_and_require_public(
        &self,
        now: Instant,
        found: &[SocketAddr],
        is_public: impl Fn(&SocketAddr) -> bool,
    ) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_empty() {
            return state.was_public.unwrap_or(false);
        }
        if found.iter().any(&is_public) {
            state.private_since = None;
        } else if state.was_public == Some(true) {
            let since = *state.private_since.get_or_insert(now);
            if now - since >= PRIVATE_ADDRESS_ACCEPTANCE_DELAY {
                *state = DnsResolutionState::default();
            }
        }
        *state.was_public.get_or_insert_with(|| found.iter().all(is_public))
    }
}

impl AddressRestriction {
    fn address_origin_of(&self, host: &str) -> AddressOrigin {
        if host.eq_ignore_ascii_case(&self.configured_host) {
            AddressOrigin::Operator
        } else {
            AddressOrigin::OriginServer
        }
    }

    /// Checks the scheme, and the host if it is an IP address.
    fn require_permitted_scheme_and_ip(&self, url: &Url) -> Result<(), HttpError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(HttpError::UnsupportedScheme);
        }
        let origin = self.address_origin_of(url.host_str().unwrap_or_default());
        let literal = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
            Some(Host::Domain(_)) => None,
            None => return Err(HttpError::UnsupportedScheme),
        };
        Ok(literal.map_or(Ok(()), |literal| {
            self.allowed_networks.require_permitted_address(literal, origin)
        })?)
    }

    /// Resolves a name and returns the permitted addresses.
    async fn resolve_permitted_addresses(&self, name: &str) -> Result<Vec<SocketAddr>, AddressError> {
        let found = lookup_host((name, 0)).await;
        let found = found.map_err(|_| AddressError::Unresolved(name.to_owned()))?;
        self.filter_permitted_resolved_addresses(name, &found.collect::<Vec<_>>())
    }

    /// Returns the permitted addresses of those that a name was resolved to.
    fn filter_permitted_resolved_addresses(
        &self,
        name: &str,
        found: &[SocketAddr],
    ) -> Result<Vec<SocketAddr>, AddressError> {
        let mut origin = self.address_origin_of(name);
        if origin == AddressOrigin::Operator {
            let is_public = |address: &SocketAddr| {
                let checked = self
                    .allowed_networks
                    .require_permitted_address(address.ip(), AddressOrigin::OriginServer);
                checked.is_ok()
            };
            if self
                .first_resolution
                .record_resolution_and_require_public(Instant::now(), found, is_public)
            {
                origin = AddressOrigin::OriginServer;
            }
        }
        let mut refused = AddressError::Unresolved(name.to_owned());
        let mut permitted = Vec::new();
        for address in found {
            match self.allowed_networks.require_permitted_address(address.ip(), origin) {
                Ok(()) => permitted.push(*address),
                Err(error) => refused = error,
            }
        }
        if permitted.is_empty() {
            Err(refused)
        } else {
            Ok(permitted)
        }
    }
}

/// The future outlives the call, so it gets its own copy of the guard.
impl Resolve for AddressRestriction {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Self {
            allowed_networks: self.allowed_networks.clone(),
            configured_host: self.configured_host.clone(),
            first_resolution: self.first_resolution.clone(),
        };
        Box::pin(async move {
            let addresses = guard.resolve_permitted_addresses(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
