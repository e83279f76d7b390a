//! Bearer tokens of requests (RFC 6750, RFC 9725 §4.7) and the responses to requests without access.
//!
//! The header is parsed here rather than by a library: if playback needs no token, any `Authorization` is tolerated,
//! even a malformed one (some players send `Bearer undefined`, or a key without a scheme).

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::limits::PerAddressRateLimit;
use super::problem::Problem;
pub use crate::access::AccessAction;
use crate::access::{AccessControl, AccessRequest, Denial, Grant};
use crate::config::LimitsConfig;
use crate::telemetry::{HttpCounters, ReachedHttpLimit};
use millstream_core::hub::name::{SourceName, StreamName};

/// Authenticates HTTP requests.
pub struct Authenticator {
    access_control: RwLock<Arc<AccessControl>>,
    wrong_token_rate_limit: PerAddressRateLimit,
    counters: Arc<HttpCounters>,
}

/// The parts of a request that identify its sender.
#[derive(Clone, Copy)]
pub struct HttpClientIdentity<'a> {
    pub headers: &'a HeaderMap,
    pub query: Option<&'a str>,
    pub address: Option<IpAddr>,
}

impl Authenticator {
    pub fn new(access: AccessControl, limits: &LimitsConfig, counters: Arc<HttpCounters>) -> Self {
        Self {
            access_control: RwLock::new(Arc::new(access)),
            wrong_token_rate_limit: PerAddressRateLimit::new(limits.failures_per_second, limits.failure_burst),
            counters,
        }
    }

    /// Returns the access rules in effect.
    pub fn access_control(&self) -> Arc<AccessControl> {
        self.access_control
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the access rules.
    pub fn replace_access_control(&self, access: Arc<AccessControl>) {
        *self.access_control.write().unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// Authorizes a request.
    ///
    /// # Errors
    ///
    /// 401 without a token or with an unknown one, 403 with a token for something else, 429 after too many wrong
    /// tokens, 503 if access cannot be decided because the authorization webhook or the JWK set is unavailable or gave an invalid response: retry later.
    pub async fn authorize_request(
        &self,
        caller: HttpClientIdentity<'_>,
        action: AccessAction,
        stream: Option<&StreamName>,
    ) -> Result<Grant, Problem> {
        let access = self.access_control();
        if action == AccessAction::Play && access.is_playback_allowed_without_token() {
            return Ok(Grant::default());
        }
        self.authorize_by_token(&access, caller, AccessRequest::new(action, stream))
            .await
    }

    /// Like [`Self::authorize_request`], for publishing to a stream; `source` is the one that the publisher feeds, if the
    /// stream has several.
    pub async fn authorize_publisher(
        &self,
        caller: HttpClientIdentity<'_>,
        stream: &StreamName,
        source: Option<&SourceName>,
    ) -> Result<Grant, Problem> {
        let request = AccessRequest {
            source,
            ..AccessRequest::new(AccessAction::Publish, Some(stream))
        };
        self.authorize_by_token(&self.access_control(), caller, request).await
    }

    async fn authorize_by_token(
        &self,
        access: &AccessControl,
        caller: HttpClientIdentity<'_>,
        request: AccessRequest<'_>,
    ) -> Result<Grant, Problem> {
        let token = token_from_request(caller, access.accepts_query_token())?;
        let token = token.as_deref();
        self.authorize_and_limit_wrong_tokens(access, caller, AccessRequest { token, ..request })
            .await
    }

    /// Whether a grant to read through the API has not expired and is valid with the access rules in effect.
    pub fn still_grants_api_read(&self, grant: &Grant) -> bool {
        !grant.is_expired()
            && self
                .access_control()
                .is_grant_still_valid(grant, AccessAction::ApiRead, None)
    }

    /// Like [`Self::authorize_request`], for playback over HLS. Media elements cannot send an `Authorization` header, so the token
    /// may also be in the query or in the cookie [`PLAYBACK_TOKEN_COOKIE`]. The cookie grants read access only, so cross-site requests
    /// gain nothing from it.
    pub async fn authorize_hls_player(
        &self,
        caller: HttpClientIdentity<'_>,
        stream: &StreamName,
    ) -> Result<Grant, Problem> {
        let access = self.access_control();
        if access.is_playback_allowed_without_token() {
            return Ok(Grant::default());
        }
        let token = token_from_request(caller, true)?;
        let token = token.or_else(|| cookie_token(caller.headers).map(Cow::Borrowed));
        let request = AccessRequest {
            token: token.as_deref(),
            ..AccessRequest::new(AccessAction::Play, Some(stream))
        };
        self.authorize_and_limit_wrong_tokens(&access, caller, request).await
    }

    async fn authorize_and_limit_wrong_tokens(
        &self,
        access: &AccessControl,
        caller: HttpClientIdentity<'_>,
        request: AccessRequest<'_>,
    ) -> Result<Grant, Problem> {
        let now = monotonic_now();
        let failure_limit = caller.address.map_or(Ok(()), |address| {
            self.wrong_token_rate_limit.peek_rate_limit_token(now, address)
        });
        let request = AccessRequest {
            address: caller.address,
            is_from_suspect_address: failure_limit.is_err(),
            ..request
        };
        // A right token is accepted however many wrong ones came from its address.
        let denial = match access.authorize(request).await {
            Ok(grant) => return Ok(grant),
            Err(denial) => denial,
        };
        let mut wait = match denial {
            Denial::TooManyInvalidTokens => failure_limit.err().or(Some(Duration::from_secs(1))),
            _ => None,
        };
        if let (Denial::InvalidToken | Denial::ExpiredToken, Some(address)) = (denial, caller.address) {
            wait = self.wrong_token_rate_limit.take_rate_limit_token(now, address).err();
        }
        if let Some(wait) = wait {
            self.counters.count_rejection(ReachedHttpLimit::FailureRate);
            return Err(too_many_wrong_tokens_problem(wait));
        }
        if denial == Denial::WebhookOverloaded {
            self.counters.count_rejection(ReachedHttpLimit::WebhookQueue);
        }
        Err(denial_problem(denial, request.action, request.stream))
    }
}

fn too_many_wrong_tokens_problem(wait: Duration) -> Problem {
    let detail = "too many wrong tokens from this address: retry later with a valid token";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", detail).with_retry_after(wait.as_secs() + 1)
}

fn denial_problem(denial: Denial, action: AccessAction, stream: Option<&StreamName>) -> Problem {
    match denial {
        Denial::MissingToken => {
            let detail = format!("a bearer token is needed to {}", action.error_text_verb());
            unauthorized_problem("token_missing", detail, r#"Bearer realm="millstream""#)
        }
        Denial::InvalidToken => unauthorized_problem(
            "token_wrong",
            "the bearer token is unknown or invalid: send a valid one",
            INVALID_TOKEN_CHALLENGE,
        ),
        Denial::ExpiredToken => unauthorized_problem(
            "token_expired",
            "the bearer token has expired: send a new one",
            INVALID_TOKEN_CHALLENGE,
        ),
        Denial::InsufficientScope => {
            let what = stream.map_or_else(String::new, |stream| format!(" `{stream}`"));
            let detail = format!(
                "this token does not grant permission to {}{what}: send a token that does",
                action.error_text_verb()
            );
            Problem::new(StatusCode::FORBIDDEN, "insufficient_scope", detail).with_header(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(INSUFFICIENT_SCOPE_CHALLENGE),
            )
        }
        Denial::AuthorizationUnavailable => {
            let detail = "access cannot be decided because the authorization webhook or the JWK set is unavailable or gave an invalid response: retry later";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "access_undecided", detail).with_retry_after(2)
        }
        Denial::WebhookOverloaded => {
            let detail =
                "too many requests are waiting for the authorization webhook, or this one waited too long: retry later";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "access_busy", detail).with_retry_after(1)
        }
        Denial::TooManyInvalidTokens => too_many_wrong_tokens_problem(Duration::from_secs(1)),
    }
}

/// Returns the token of a request. The header takes precedence over the query.
fn token_from_request(caller: HttpClientIdentity<'_>, accepts_query: bool) -> Result<Option<Cow<'_, str>>, Problem> {
    if let Some(value) = caller.headers.get(header::AUTHORIZATION) {
        let detail = "the Authorization header holds no bearer token: send `Authorization: Bearer TOKEN`";
        let token = parse_bearer_token(value)
            .ok_or_else(|| unauthorized_problem("token_malformed", detail, INVALID_TOKEN_CHALLENGE))?;
        return Ok(Some(Cow::Borrowed(token)));
    }
    let query = caller.query.filter(|_| accepts_query);
    Ok(query.and_then(token_from_query).map(Cow::Owned))
}

/// Name of the cookie that holds a playback token.
pub const PLAYBACK_TOKEN_COOKIE: &str = "millstream-play";

/// Returns the playback token in the cookies (RFC 6265 §4.2).
fn cookie_token(headers: &HeaderMap) -> Option<&str> {
    let lines = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let mut pairs = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, token) = pairs.find(|(name, _)| *name == PLAYBACK_TOKEN_COOKIE)?;
    (!token.is_empty()).then_some(token)
}

const INVALID_TOKEN_CHALLENGE: &str = r#"Bearer realm="millstream", error="invalid_token""#;
const INSUFFICIENT_SCOPE_CHALLENGE: &str = r#"Bearer realm="millstream", error="insufficient_scope""#;

fn unauthorized_problem(code: &'static str, detail: impl Into<String>, challenge: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

/// Returns the token in `Bearer TOKEN`; the scheme is case-insensitive (RFC 9110 §11.1).
fn parse_bearer_token(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
}

/// Returns the first `token` parameter of a query, unless it is empty.
fn token_from_query(query: &str) -> Option<String> {
    let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.find(|(name, _)| *name == "token")?;
    (!value.is_empty()).then(|| decode_percent_leniently(value))
}

/// Decodes percent encoding (RFC 3986 §2.1). A `+` is kept, because tokens contain no spaces and people paste them
/// unescaped. Malformed escapes are kept; invalid UTF-8 becomes U+FFFD, which no token contains.
fn decode_percent_leniently(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.split_first_chunk::<2>()).flatten();
        let byte = escaped
            .and_then(|(&[high, low], after)| Some((hex_digit_value(high)? << 4 | hex_digit_value(low)?, after)));
        let (byte, after) = byte.unwrap_or((first, after));
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex_digit_value(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the HTTP side passes the time to the limit of failures"
)]
fn monotonic_now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::credentials::AuthCredentials;
    use crate::config::{ApiScope, AuthConfig, Secret, TokenConfig};

    fn authenticator(play: Option<&str>) -> Authenticator {
        let auth = AuthConfig {
            play_token: play.and_then(Secret::new),
            api_token: Secret::new("api"),
            token_in_query: true,
            tokens: vec![TokenConfig {
                token: Secret::new("monitoring"),
                api: ApiScope::Read,
                ..TokenConfig::default()
            }],
            ..AuthConfig::default()
        };
        let limits = LimitsConfig::default();
        let credentials = AuthCredentials::read(&auth, &limits).expect("no files");
        let access = AccessControl::new(credentials, &Secret::new("pub").expect("valid"));
        Authenticator::new(access, &limits, Arc::default())
    }

    fn live() -> StreamName {
        StreamName::parse("live").expect("a name")
    }

    async fn status(authenticator: &Authenticator, action: AccessAction, authorization: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).expect("header"));
        }
        let stream = action.api_scope_name().is_none().then(live);
        let checked = authenticator
            .authorize_request(caller(&headers, None), action, stream.as_ref())
            .await;
        checked.map_or_else(|problem| problem.status.as_u16(), |_| 200)
    }

    fn caller<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> HttpClientIdentity<'a> {
        HttpClientIdentity {
            headers,
            query,
            address: None,
        }
    }

    #[tokio::test]
    async fn a_token_opens_what_it_is_for_and_nothing_else() {
        use AccessAction::{ApiFull, ApiRead, Play, Publish};
        let authenticator = authenticator(Some("play"));
        for (action, authorization, expected) in [
            (Publish, Some("Bearer pub"), 200),
            (Publish, Some("bearer pub"), 200),
            (Publish, Some("BEARER   pub "), 200),
            (Publish, None, 401),
            (Publish, Some("Bearer wrong"), 401),
            (Publish, Some("Bearer"), 401),
            (Publish, Some("Bearer "), 401),
            (Publish, Some("pub"), 401),
            (Publish, Some("Basic pub"), 401),
            (Publish, Some("Bearer pub pub"), 401),
            (Publish, Some("Bearer caf\u{e9}"), 401),
            (Publish, Some("Bearer play"), 403),
            (Publish, Some("Bearer api"), 403),
            (Play, Some("Bearer play"), 200),
            (Play, Some("Bearer pub"), 200),
            (Play, Some("Bearer api"), 200),
            (Play, None, 401),
            (Play, Some("Bearer undefined"), 401),
            (ApiRead, Some("Bearer api"), 200),
            (ApiFull, Some("Bearer api"), 200),
            (ApiRead, Some("Bearer pub"), 403),
            (ApiFull, Some("Bearer pub"), 403),
            (ApiRead, Some("Bearer monitoring"), 200),
            (ApiFull, Some("Bearer monitoring"), 403),
            (Play, Some("Bearer monitoring"), 403),
        ] {
            assert_eq!(
                status(&authenticator, action, authorization).await,
                expected,
                "{action:?} {authorization:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_player_may_send_its_token_as_a_cookie() {
        let authenticator = authenticator(Some("play"));
        let status = async |line: &str, query: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, HeaderValue::from_str(line).expect("header"));
            let checked = authenticator
                .authorize_hls_player(caller(&headers, query), &live())
                .await;
            checked.map_or_else(|problem| problem.status.as_u16(), |_| 200)
        };
        assert_eq!(status("a=b; millstream-play=play; c=d", None).await, 200);
        assert_eq!(status("millstream-play=wrong", None).await, 401);
        assert_eq!(status("other=play", None).await, 401);
        assert_eq!(
            status("millstream-play=wrong", Some("token=play")).await,
            200,
            "the query takes precedence over the cookie"
        );
        // A cookie grants access to HLS playback only.
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static("millstream-play=play"));
        let checked = authenticator
            .authorize_request(caller(&headers, None), AccessAction::Play, Some(&live()))
            .await;
        assert!(checked.is_err());
    }

    #[test]
    fn a_query_is_read_as_people_paste_tokens_into_it() {
        for (query, token) in [
            ("token=abc", Some("abc")),
            ("a=b&token=abc&token=other", Some("abc")),
            ("token=a+b/c~=", Some("a+b/c~=")),
            ("token=a%2Bb%2fc%7E%3D", Some("a+b/c~=")),
            ("token=%", Some("%")),
            ("token=%2", Some("%2")),
            ("token=%zz", Some("%zz")),
            ("token=%+1", Some("%+1")),
            ("token=%ff", Some("\u{fffd}")),
            ("token=", None),
            ("token", None),
            ("Token=abc", None),
            ("", None),
        ] {
            assert_eq!(token_from_query(query).as_deref(), token, "{query}");
        }
    }

    #[tokio::test]
    async fn without_a_play_token_any_authorization_is_tolerated() {
        let authenticator = authenticator(None);
        for authorization in [None, Some("Bearer undefined"), Some("key"), Some("Basic eDp5")] {
            assert_eq!(status(&authenticator, AccessAction::Play, authorization).await, 200);
        }
    }

    #[tokio::test]
    async fn too_many_wrong_tokens_are_limited_and_the_right_token_still_passes() {
        let authenticator = authenticator(Some("play"));
        let address = Some(IpAddr::from([192, 0, 2, 1]));
        let status = async |token: &str, address| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("header");
            headers.insert(header::AUTHORIZATION, value);
            let caller = HttpClientIdentity {
                address,
                ..caller(&headers, None)
            };
            let checked = authenticator
                .authorize_request(caller, AccessAction::Play, Some(&live()))
                .await;
            checked.map_or_else(|problem| problem.status.as_u16(), |_| 200)
        };
        let mut answers = Vec::new();
        for n in 0..30 {
            answers.push(status(&format!("wrong{n}"), address).await);
        }
        assert_eq!(answers.iter().filter(|status| **status == 401).count(), 20);
        assert_eq!(answers.iter().filter(|status| **status == 429).count(), 10);
        assert_eq!(status("play", address).await, 200);
        assert_eq!(status("wrong", Some(IpAddr::from([192, 0, 2, 2]))).await, 401);
    }
}
