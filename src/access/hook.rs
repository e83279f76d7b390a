//! Authorization webhook of the operator.
//!
//! It receives a POST with JSON: `action` (`publish`, `play` or `api`), `stream`, `token` and `address`, each `null` if
//! there is none. Any 2xx status grants access, until `expires` (seconds since 1970) if the response is a JSON object
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

use super::admission::{Admission, Lane};
use super::jwt::{body, client};
use super::request::{AccessRequest, Action, Basis, Denial, Grant, digest, wall};
use crate::config::{Auth, Limits};
use millstream_core::hub::log_limit::LogLimit;

/// Client of the webhook, with a cache of its answers.
pub struct Hook {
    url: Arc<str>,
    timeout: Duration,
    takes_anonymous: bool,
    client: reqwest::Client,
    admission: Admission,
    grants: Cache<Question, Grant>,
    denials: Cache<Question, Denial>,
    /// Tokens that were valid.
    known: Cache<[u8; 32], ()>,
    /// Of lines about failed requests.
    log: Mutex<LogLimit>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    action: Action,
    stream: Option<String>,
    token: Option<[u8; 32]>,
    address: Option<IpAddr>,
}

#[derive(Serialize)]
struct Body<'a> {
    action: &'static str,
    stream: Option<&'a str>,
    token: Option<&'a str>,
    address: Option<IpAddr>,
}

#[derive(Default, Deserialize)]
struct Answer {
    expires: Option<u64>,
}

/// How long a grant is cached: an HLS player sends several requests per second.
const GRANTED_FOR: Duration = Duration::from_secs(10);

/// How long a denial is cached: a flood of the same request is answered from the cache, and nobody waits for long for a
/// permission that was just given.
const DENIED_FOR: Duration = Duration::from_secs(2);

/// How long a token that was valid is asked about ahead of unknown ones.
const KNOWN_FOR: Duration = Duration::from_secs(60 * 60);

/// Maximum number of entries of each cache.
const MAX_CACHED: usize = 10_000;

/// Maximum size of a response, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

impl Hook {
    /// Returns `None` if no webhook is configured.
    pub fn new(auth: &Auth, limits: &Limits) -> Option<Self> {
        Some(Self {
            url: auth.webhook_url.as_deref()?.into(),
            timeout: auth.webhook_timeout,
            takes_anonymous: auth.webhook_anonymous,
            client: client(),
            admission: Admission::new(limits),
            grants: Cache::new(GRANTED_FOR),
            denials: Cache::new(DENIED_FOR),
            known: Cache::new(KNOWN_FOR),
            log: Mutex::default(),
        })
    }

    /// Returns the configured URL.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Whether it decides about requests without a token.
    pub(super) fn takes_anonymous(&self) -> bool {
        self.takes_anonymous
    }

    /// Decides about a request, from the cache or by calling the webhook.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub async fn check(&self, access: AccessRequest<'_>) -> Result<Grant, Denial> {
        let question = Question {
            action: access.action,
            stream: access.stream.map(|stream| stream.as_str().to_owned()),
            token: access.token.map(digest),
            address: access.address,
        };
        if let Some(answer) = self.cached(&question) {
            return answer;
        }
        let is_known = question.token.is_some_and(|token| self.known.get(&token).is_some());
        let lane = match access.token {
            None => Lane::Anonymous,
            Some(_) if access.is_suspect && !is_known => Lane::Suspect,
            Some(_) if access.action == Action::Publish => Lane::Publish,
            Some(_) => Lane::Token,
        };
        let entering = self.admission.enter(lane, access.address, self.timeout).await;
        let _permit = entering.map_err(|_| match lane {
            Lane::Suspect => Denial::Suspect,
            Lane::Publish | Lane::Token | Lane::Anonymous => Denial::Busy,
        })?;
        // The same request may have been answered while this one was waiting.
        if let Some(answer) = self.cached(&question) {
            return answer;
        }
        let answer = self.ask(access).await;
        self.remember(question, &answer);
        answer
    }

    async fn ask(&self, access: AccessRequest<'_>) -> Result<Grant, Denial> {
        let sent = Body {
            action: access.action.name(),
            stream: access.stream.map(millstream_core::hub::name::StreamName::as_str),
            token: access.token,
            address: access.address,
        };
        let request = self.client.post(&*self.url).timeout(self.timeout).json(&sent);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                self.report(&error.without_url().to_string());
                return Err(Denial::Unavailable);
            }
        };
        match response.status() {
            status if status.is_success() => {
                let answer = body(response, MAX_ANSWER).await.and_then(|text| read_answer(&text));
                let answer = answer.map_err(|problem| {
                    self.report(&problem);
                    Denial::Unavailable
                })?;
                let expires = answer
                    .expires
                    .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
                if expires.is_some_and(|at| at <= wall()) {
                    return Err(Denial::Expired);
                }
                Ok(Grant {
                    expires,
                    basis: Basis::Webhook(self.url.clone()),
                    by_token: access.token.is_some(),
                })
            }
            StatusCode::UNAUTHORIZED if access.token.is_none() => Err(Denial::Missing),
            StatusCode::UNAUTHORIZED => Err(Denial::Wrong),
            StatusCode::FORBIDDEN => Err(Denial::Scope),
            status => {
                self.report(&format!("unexpected status {status}"));
                Err(Denial::Unavailable)
            }
        }
    }

    /// Logs that the webhook gave no decision.
    fn report(&self, problem: &str) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = log.allow(Instant::now().into_std()) {
            warn!(
                problem,
                suppressed, "auth.webhook_url does not respond as expected, access denied"
            );
        }
    }

    fn cached(&self, question: &Question) -> Option<Result<Grant, Denial>> {
        let is_good = |grant: &Grant| grant.expires.is_none_or(|at| at > wall());
        let grant = self.grants.get(question).filter(is_good);
        grant.map(Ok).or_else(|| self.denials.get(question).map(Err))
    }

    /// Caches an answer. Of the grants, only those for playback: a WebRTC session is checked once.
    fn remember(&self, question: Question, answer: &Result<Grant, Denial>) {
        match answer {
            Ok(grant) => {
                if let Some(token) = question.token {
                    self.known.insert(token, ());
                }
                if question.action == Action::Play {
                    self.grants.insert(question, grant.clone());
                }
            }
            Err(Denial::Unavailable | Denial::Busy | Denial::Suspect) => {}
            Err(denial) => self.denials.insert(question, *denial),
        }
    }
}

/// Reads the body of a permission: a JSON object may have an expiry, anything else has none.
///
/// # Errors
///
/// The object has an expiry that cannot be read: a permission without an end is not what it means.
fn read_answer(text: &[u8]) -> Result<Answer, String> {
    match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(value @ serde_json::Value::Object(_)) => serde_json::from_value(value)
            .map_err(|_| "`expires` of the response is not a whole number of seconds since 1970".to_owned()),
        _ => Ok(Answer::default()),
    }
}

/// A bounded map whose entries expire.
struct Cache<K, V> {
    lifetime: Duration,
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
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
        if entries.len() >= MAX_CACHED {
            entries.retain(|_, (at, _)| at.elapsed() < self.lifetime);
            if entries.len() >= MAX_CACHED {
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
        let expires = |text: &str| read_answer(text.as_bytes()).map(|answer| answer.expires).ok();
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
