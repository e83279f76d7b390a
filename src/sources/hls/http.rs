//! Fetches files of an origin with limits on size, time and destination.
//!
//! The first URL comes from the operator. URLs reached by redirects or playlists come from the origin
//! ([`AddressOrigin`]): their addresses are checked before connecting. A host name is checked by its resolved
//! addresses, and the connection uses these same addresses.

use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_LENGTH, COOKIE, HeaderMap, HeaderValue, LOCATION, RANGE, SET_COOKIE};
use reqwest::redirect::Policy;
use thiserror::Error;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use url::{Host, Url};

use super::cookies::Cookies;
use super::playlist::ByteRange;
use crate::sources::fetch::address::{AddressError, AddressOrigin, Allowed};

/// An HTTP client for one source.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    guard: Arc<Guard>,
    /// Sent only to the configured host, because they may be secrets.
    headers: HeaderMap,
    cookies: Mutex<Cookies>,
}

/// Why a file could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HttpError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("the URL is not http:// or https://")]
    Scheme,
    #[error("the request was redirected more than {MAX_REDIRECTS} times")]
    Redirects,
    #[error("the server answered {0}")]
    Status(u16),
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    #[error("the request timed out")]
    Timeout,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the server does not have the byte range that the playlist gives for this segment")]
    Range,
    #[error("cannot create the HTTP client: {0}")]
    Client(String),
}

impl HttpError {
    /// Whether the server refuses the address. It may have been good for a while only.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Status(401 | 403 | 404 | 410))
    }

    /// Whether a retry may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status(status) => *status >= 500 || matches!(status, 408 | 425 | 429),
            Self::Timeout | Self::Connect(_) | Self::Broken(_) => true,
            Self::Address(AddressError::Unresolved(_)) => true,
            Self::Address(_) | Self::Scheme | Self::Redirects | Self::TooLong(_) | Self::Range | Self::Client(_) => {
                false
            }
        }
    }
}

/// Limits of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Maximum size in bytes.
    pub(super) most: usize,
    /// Maximum time, redirects included.
    pub(super) within: Duration,
}

const MAX_REDIRECTS: usize = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum time between two reads of a body.
const READ_LIMIT: Duration = Duration::from_secs(6);

impl Client {
    /// Makes a client for the source at this URL.
    ///
    /// # Errors
    ///
    /// [`HttpError::Client`] if TLS cannot be set up.
    pub(super) fn new(address: &Url, allowed: Allowed, headers: HeaderMap) -> Result<Self, HttpError> {
        let guard = Arc::new(Guard {
            allowed,
            own: address.host_str().unwrap_or_default().to_owned(),
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("millstream/", env!("CARGO_PKG_VERSION")))
            // A proxy would connect to addresses that were not checked.
            .no_proxy()
            .redirect(Policy::none())
            .dns_resolver(guard.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_LIMIT)
            .build()
            .map_err(|error| HttpError::Client(innermost(&error)))?;
        Ok(Self {
            http,
            guard,
            headers,
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
        address: &Url,
        range: Option<ByteRange>,
        bounds: Bounds,
    ) -> Result<(Url, Bytes), HttpError> {
        let getting = self.follow(address, range, bounds.most);
        timeout(bounds.within, getting).await.unwrap_or(Err(HttpError::Timeout))
    }

    async fn follow(&self, address: &Url, range: Option<ByteRange>, most: usize) -> Result<(Url, Bytes), HttpError> {
        let mut address = address.clone();
        for _ in 0..=MAX_REDIRECTS {
            self.guard.check(&address)?;
            let mut request = self.http.get(address.clone()).headers(self.headers(&address));
            if let Some(ByteRange { begin, length }) = range {
                let last = begin.saturating_add(length).saturating_sub(1);
                request = request.header(RANGE, format!("bytes={begin}-{last}"));
            }
            let response = request.send().await.map_err(|error| failure(&error))?;
            self.store_cookies(&address, response.headers());
            let status = response.status();
            if status.is_redirection() {
                let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| address.join(to).ok());
                address = to.ok_or(HttpError::Status(status.as_u16()))?;
                continue;
            }
            if !status.is_success() {
                return Err(HttpError::Status(status.as_u16()));
            }
            let is_part = status.as_u16() == 206;
            return Ok((address, part(body(response, most).await?, range, is_part)?));
        }
        Err(HttpError::Redirects)
    }

    /// Headers of a request: cookies of its host, and those of the operator for theirs.
    fn headers(&self, address: &Url) -> HeaderMap {
        let is_own = self.guard.origin_of(address.host_str().unwrap_or_default()) == AddressOrigin::Operator;
        let mut headers = if is_own { self.headers.clone() } else { HeaderMap::new() };
        let cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cookies) = cookies.header(Instant::now().into_std(), address) {
            let own = headers.get(COOKIE).and_then(|own| own.to_str().ok());
            let all = own.map_or(cookies.clone(), |own| format!("{own}; {cookies}"));
            if let Ok(mut value) = HeaderValue::from_str(&all) {
                value.set_sensitive(true);
                headers.insert(COOKIE, value);
            }
        }
        headers
    }

    fn store_cookies(&self, address: &Url, headers: &HeaderMap) {
        let mut cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        for cookie in headers
            .get_all(SET_COOKIE)
            .iter()
            .filter_map(|cookie| cookie.to_str().ok())
        {
            cookies.store(Instant::now().into_std(), address, cookie);
        }
    }
}

/// Reads a body; `most` bounds what a compressed one is expanded to.
async fn body(mut response: reqwest::Response, most: usize) -> Result<Bytes, HttpError> {
    let announced = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > most)) {
        return Err(HttpError::TooLong(most));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error))? {
        if body.len() + chunk.len() > most {
            return Err(HttpError::TooLong(most));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Extracts the byte range from the response. A server without range support sends the whole file.
fn part(body: Bytes, range: Option<ByteRange>, is_part: bool) -> Result<Bytes, HttpError> {
    let Some(ByteRange { begin, length }) = range else {
        return Ok(body);
    };
    let length = usize::try_from(length).map_err(|_| HttpError::Range)?;
    let begin = if is_part {
        0
    } else {
        usize::try_from(begin).map_err(|_| HttpError::Range)?
    };
    let end = begin.checked_add(length).filter(|end| *end <= body.len());
    Ok(body.slice(begin..end.ok_or(HttpError::Range)?))
}

/// Converts an error without its URL, which may contain a token.
fn failure(error: &reqwest::Error) -> HttpError {
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
        HttpError::Connect(innermost(error))
    } else {
        HttpError::Broken(innermost(error))
    }
}

fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    // The error of reqwest itself contains the URL.
    if innermost.is::<reqwest::Error>() {
        return "the request was rejected".to_owned();
    }
    millstream_worker_runtime::wire::shown(&innermost.to_string())
}

/// Restricts the addresses that are connected to.
#[derive(Debug)]
struct Guard {
    allowed: Allowed,
    /// The configured host.
    own: String,
}

impl Guard {
    fn origin_of(&self, host: &str) -> AddressOrigin {
        if host.eq_ignore_ascii_case(&self.own) {
            AddressOrigin::Operator
        } else {
            AddressOrigin::Origin
        }
    }

    /// Checks the scheme, and the host if it is an IP address.
    fn check(&self, address: &Url) -> Result<(), HttpError> {
        if !matches!(address.scheme(), "http" | "https") {
            return Err(HttpError::Scheme);
        }
        let origin = self.origin_of(address.host_str().unwrap_or_default());
        let literal = match address.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
            Some(Host::Domain(_)) => None,
            None => return Err(HttpError::Scheme),
        };
        Ok(literal.map_or(Ok(()), |literal| self.allowed.permit(literal, origin))?)
    }

    /// Resolves a name and returns the permitted addresses.
    async fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, AddressError> {
        let found = lookup_host((name, 0)).await;
        let found = found.map_err(|_| AddressError::Unresolved(name.to_owned()))?;
        let mut refused = AddressError::Unresolved(name.to_owned());
        let mut permitted = Vec::new();
        for address in found {
            match self.allowed.permit(address.ip(), self.origin_of(name)) {
                Ok(()) => permitted.push(address),
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
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Self {
            allowed: self.allowed.clone(),
            own: self.own.clone(),
        };
        Box::pin(async move {
            let addresses = guard.addresses(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
