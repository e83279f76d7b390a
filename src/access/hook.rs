//! Authorization webhook of the operator.
//!
//! It receives a POST with JSON: `action` (`publish`, `play` or `api`), `stream`, `token` and `address`, each `null` if
//! there is none. Any 2xx status grants access, until `expires` (seconds since 1970) if the response is a JSON object
//! with that field. 401 and 403 deny access. Any other status, and a timeout, deny access temporarily.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::warn;

use super::jwt::{body, client};
use super::request::{AccessRequest, Action, Denial, Grant, digest, wall};
use crate::config::Auth;

/// Client of the webhook, with a cache of grants.
pub struct Hook {
    url: String,
    timeout: Duration,
    client: reqwest::Client,
    slots: Semaphore,
    grants: Mutex<HashMap<Question, (Instant, Grant)>>,
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

/// Maximum number of concurrent requests; others are denied as unavailable.
const MAX_CONCURRENT: usize = 64;

/// How long a grant is cached: an HLS player sends several requests per second.
const CACHED_FOR: Duration = Duration::from_secs(10);

/// Maximum number of cached grants.
const MAX_CACHED: usize = 10_000;

/// Maximum size of a response, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

impl Hook {
    /// Returns `None` if no webhook is configured.
    pub fn new(auth: &Auth) -> Option<Self> {
        Some(Self {
            url: auth.webhook_url.clone()?,
            timeout: auth.webhook_timeout,
            client: client(),
            slots: Semaphore::new(MAX_CONCURRENT),
            grants: Mutex::default(),
        })
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
        if let Some(grant) = self.find(&question) {
            return Ok(grant);
        }
        let Ok(_slot) = self.slots.try_acquire() else {
            return Err(Denial::Unavailable);
        };
        let sent = Body {
            action: access.action.name(),
            stream: access.stream.map(millstream_core::hub::name::StreamName::as_str),
            token: access.token,
            address: access.address,
        };
        let request = self.client.post(&self.url).timeout(self.timeout).json(&sent);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                warn!(problem = %error.without_url(), "auth.webhook_url does not respond, access denied");
                return Err(Denial::Unavailable);
            }
        };
        match response.status() {
            status if status.is_success() => {
                let text = body(response, MAX_ANSWER).await.unwrap_or_default();
                let answer: Answer = serde_json::from_slice(&text).unwrap_or_default();
                let expires = answer
                    .expires
                    .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
                if expires.is_some_and(|at| at <= wall()) {
                    return Err(Denial::Expired);
                }
                let grant = Grant {
                    expires,
                    fixed: None,
                    by_token: access.token.is_some(),
                };
                self.remember(question, grant);
                Ok(grant)
            }
            StatusCode::UNAUTHORIZED if access.token.is_none() => Err(Denial::Missing),
            StatusCode::UNAUTHORIZED => Err(Denial::Wrong),
            StatusCode::FORBIDDEN => Err(Denial::Scope),
            status => {
                warn!(%status, "auth.webhook_url responded with an unexpected status, access denied");
                Err(Denial::Unavailable)
            }
        }
    }

    fn find(&self, question: &Question) -> Option<Grant> {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, grant) = grants.get(question)?;
        let is_good = at.elapsed() < CACHED_FOR && grant.expires.is_none_or(|at| at > wall());
        is_good.then_some(*grant)
    }

    /// Caches a grant for playback. Only HLS needs it: a WebRTC session is checked once.
    fn remember(&self, question: Question, grant: Grant) {
        if question.action != Action::Play {
            return;
        }
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() >= MAX_CACHED {
            grants.retain(|_, (at, _)| at.elapsed() < CACHED_FOR);
            if grants.len() >= MAX_CACHED {
                grants.clear();
            }
        }
        grants.insert(question, (Instant::now(), grant));
    }
}
