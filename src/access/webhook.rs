//! Authorization webhook of the operator.
//!
//! It receives a POST with JSON: `action` (`publish`, `play`, `talk` or `api`), `stream`, `token`, `address`, `scope` (`read` or
//! `full`, of the API) and `source` (of a publisher of a stream with several), each `null` if there is none. Any 2xx status grants access, until `expires` (seconds since 1970) if the response is a JSON object
//! with that field. 401 and 403 deny access. Any other status, and a timeout, deny access temporarily.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use super::jwt::{http_client_without_redirects, read_body_rejecting_oversize};
use super::request::{AccessAction, AccessRequest, Denial, Grant, GrantBasis, token_digest, wall_clock_now};
use super::webhook_admission::{WebhookAdmission, WebhookRequestClass};
use crate::config::{AuthConfig, LimitsConfig};
use millstream_core::hub::log_limit::LogRateLimiter;
use millstream_core::hub::name::{SourceName, StreamName};

/// Client of the webhook, with a cache of its answers.
pub struct WebhookClient {
    url: Arc<str>,
    timeout: Duration,
    decides_without_token: bool,
    client: reqwest::Client,
    admission: WebhookAdmission,
    cached_grants: ExpiringCache<WebhookDecisionKey, Grant>,
    cached_denials: ExpiringCache<WebhookDecisionKey, Denial>,
    /// Tokens that were valid.
    known_valid_tokens: ExpiringCache<[u8; 32], ()>,
    /// Of lines about failed requests.
    failure_log_limiter: Mutex<LogRateLimiter>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct WebhookDecisionKey {
    action: AccessAction,
    stream: Option<String>,
    source: Option<SourceName>,
    token_digest: Option<[u8; 32]>,
    address: Option<IpAddr>,
}

#[derive(Serialize)]
struct WebhookRequestBody<'a> {
    action: &'static str,
    stream: Option<&'a str>,
    token: Option<&'a str>,
    address: Option<IpAddr>,
    scope: Option<&'static str>,
    source: Option<&'a str>,
}

#[derive(Default, Deserialize)]
struct WebhookGrantBody {
    expires: Option<u64>,
}

/// How long a grant is cached: an HLS player sends several requests per second.
const GRANT_CACHE_LIFETIME: Duration = Duration::from_secs(10);

/// How long a denial is cached: a flood of the same request is answered from the cache, and nobody waits for long for a
/// permission that was just given.
const DENIAL_CACHE_LIFETIME: Duration = Duration::from_secs(2);

/// How long a token that was valid is asked about ahead of unknown ones.
const KNOWN_TOKEN_PRIORITY_DURATION: Duration = Duration::from_secs(60 * 60);

/// Maximum number of entries of each cache.
const MAX_ENTRIES_PER_CACHE: usize = 10_000;

/// Maximum size of a response, in bytes.
const MAX_WEBHOOK_RESPONSE_BYTES: usize = 16 * 1024;

impl WebhookClient {
    /// Returns `None` if no webhook is configured.
    pub fn new(auth: &AuthConfig, limits: &LimitsConfig) -> Option<Self> {
        Some(Self {
            url: auth.webhook_url.as_deref()?.into(),
            timeout: auth.webhook_timeout,
            decides_without_token: auth.webhook_anonymous,
            client: http_client_without_redirects(),
            admission: WebhookAdmission::new(limits),
            cached_grants: ExpiringCache::new(GRANT_CACHE_LIFETIME),
            cached_denials: ExpiringCache::new(DENIAL_CACHE_LIFETIME),
            known_valid_tokens: ExpiringCache::new(KNOWN_TOKEN_PRIORITY_DURATION),
            failure_log_limiter: Mutex::default(),
        })
    }

    /// Returns the configured URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Whether it decides about requests without a token.
    pub(super) fn decides_without_token(&self) -> bool {
        self.decides_without_token
    }

    /// Decides about a request, from the cache or by calling the webhook.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub async fn authorize(&self, access: AccessRequest<'_>) -> Result<Grant, Denial> {
        let question = WebhookDecisionKey {
            action: access.action,
            stream: access.stream.map(|stream| stream.as_str().to_owned()),
            source: access.source.cloned(),
            token_digest: access.token.map(token_digest),
            address: access.address,
        };
        if let Some(answer) = self.cached_decision(&question) {
            return answer;
        }
        let is_known = question
            .token_digest
            .is_some_and(|token| self.known_valid_tokens.get(&token).is_some());
        let lane = match access.token {
            None => WebhookRequestClass::Anonymous,
            Some(_) if access.is_from_suspect_address && !is_known => WebhookRequestClass::FromSuspectAddress,
            Some(_) if access.action == AccessAction::Publish => WebhookRequestClass::Publish,
            Some(_) => WebhookRequestClass::OtherWithToken,
        };
        let entering = self.admission.wait_for_permit(lane, access.address, self.timeout).await;
        let _permit = entering.map_err(|_| match lane {
            WebhookRequestClass::FromSuspectAddress => Denial::TooManyInvalidTokens,
            WebhookRequestClass::Publish | WebhookRequestClass::OtherWithToken | WebhookRequestClass::Anonymous => {
                Denial::WebhookOverloaded
            }
        })?;
        // The same request may have been answered while this one was waiting.
        if let Some(answer) = self.cached_decision(&question) {
            return answer;
        }
        let answer = self.call_webhook(access).await;
        self.cache_decision(question, &answer);
        answer
    }

    async fn call_webhook(&self, access: AccessRequest<'_>) -> Result<Grant, Denial> {
        let sent = WebhookRequestBody {
            action: access.action.name(),
            stream: access.stream.map(StreamName::as_str),
            token: access.token,
            address: access.address,
            scope: access.action.api_scope_name(),
            source: access.source.map(SourceName::as_str),
        };
        let request = self.client.post(&*self.url).timeout(self.timeout).json(&sent);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                self.log_failure(&error.without_url().to_string());
                return Err(Denial::AuthorizationUnavailable);
            }
        };
        match response.status() {
            status if status.is_success() => {
                let answer = read_body_rejecting_oversize(response, MAX_WEBHOOK_RESPONSE_BYTES)
                    .await
                    .and_then(|text| parse_webhook_grant_body(&text));
                let answer = answer.map_err(|problem| {
                    self.log_failure(&problem);
                    Denial::AuthorizationUnavailable
                })?;
                let expires = answer
                    .expires
                    .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
                if expires.is_some_and(|at| at <= wall_clock_now()) {
                    return Err(Denial::ExpiredToken);
                }
                Ok(Grant {
                    expires_at: expires,
                    basis: GrantBasis::Webhook(self.url.clone()),
                    is_token_based: access.token.is_some(),
                })
            }
            StatusCode::UNAUTHORIZED if access.token.is_none() => Err(Denial::MissingToken),
            StatusCode::UNAUTHORIZED => Err(Denial::InvalidToken),
            StatusCode::FORBIDDEN => Err(Denial::InsufficientScope),
            status => {
                self.log_failure(&format!(
                    "the webhook answered with the unexpected HTTP status {status}"
                ));
                Err(Denial::AuthorizationUnavailable)
            }
        }
    }

    /// Logs that the webhook gave no decision.
    fn log_failure(&self, problem: &str) {
        let mut log = self.failure_log_limiter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = log.allow_log_line(Instant::now().into_std()) {
            warn!(
                problem,
                suppressed, "access denied: the authorization webhook (auth.webhook_url) gave no usable response"
            );
        }
    }

    fn cached_decision(&self, question: &WebhookDecisionKey) -> Option<Result<Grant, Denial>> {
        let is_good = |grant: &Grant| grant.expires_at.is_none_or(|at| at > wall_clock_now());
        let grant = self.cached_grants.get(question).filter(is_good);
        grant.map(Ok).or_else(|| self.cached_denials.get(question).map(Err))
    }

    /// Caches an answer. Of the grants, only those for playback: a WebRTC session is checked once.
    fn cache_decision(&self, question: WebhookDecisionKey, answer: &Result<Grant, Denial>) {
        match answer {
            Ok(grant) => {
                if let Some(token) = question.token_digest {
                    self.known_valid_tokens.insert(token, ());
                }
                if question.action == AccessAction::Play {
                    self.cached_grants.insert(question, grant.clone());
                }
            }
            Err(Denial::AuthorizationUnavailable | Denial::WebhookOverloaded | Denial::TooManyInvalidTokens) => {}
            Err(denial) => self.cached_denials.insert(question, *denial),
        }
    }
}

/// Reads the body of a permission: a JSON object may have an expiry, anything else has none.
///
/// # Errors
///
/// The object has an expiry that cannot be read: a permission without an end is not what it means.
fn parse_webhook_grant_body(text: &[u8]) -> Result<WebhookGrantBody, String> {
    match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(value @ serde_json::Value::Object(_)) => serde_json::from_value(value)
            .map_err(|_| "`expires` in the webhook response is not a whole number of seconds since 1970".to_owned()),
        _ => Ok(WebhookGrantBody::default()),
    }
}

/// A bounded map whose entries expire.
struct ExpiringCache<K, V> {
    lifetime: Duration,
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> ExpiringCache<K, V> {
    fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            entries: Mutex::default(),
        }
    }

    fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, value) = entries.get(key)?;
        (at.elapsed() < self.lifetime).then(|| value.clone())
    }

    fn insert(&self, key: K, value: V) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_ENTRIES_PER_CACHE {
            entries.retain(|_, (at, _)| at.elapsed() < self.lifetime);
            if entries.len() >= MAX_ENTRIES_PER_CACHE {
                entries.clear();
            }
        }
        entries.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_that_cannot_be_read_is_no_permission() {
        let expires = |text: &str| {
            parse_webhook_grant_body(text.as_bytes())
                .map(|answer| answer.expires)
                .ok()
        };
        for (text, wanted) in [
            ("", Some(None)),
            ("OK", Some(None)),
            ("{}", Some(None)),
            (r#"{"expires":1900000000}"#, Some(Some(1_900_000_000))),
            (r#"{"expires":"1900000000"}"#, None),
            (r#"{"expires":1.9e9}"#, None),
            (r#"{"expires":-1}"#, None),
        ] {
            assert_eq!(expires(text), wanted, "{text}");
        }
    }
}
