//! A service of the operator's that is asked who may do what.
//!
//! It gets a POST with JSON: `action` (`publish`, `play` or `api`), `stream`, `token` and `address`, each `null` where there
//! is none. Any 2xx gives access, until `expires` (seconds since 1970) if the answer is a JSON object that has it; 401 and
//! 403 refuse. Whatever else comes, or nothing in time, refuses too, as something that may be better later.

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
use super::{AccessRequest, Action, Denial, Grant, digest, wall};
use crate::config::Auth;

/// Asks, and remembers for a moment.
pub struct Hook {
    url: String,
    timeout: Duration,
    client: reqwest::Client,
    slots: Semaphore,
    known: Mutex<HashMap<Question, (Instant, Grant)>>,
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

/// Questions at the same time; more are refused.
const AT_ONCE: usize = 64;

/// How long a yes is remembered: a player of HLS asks several times a second.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Answers that are remembered.
const MAX_KNOWN: usize = 10_000;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

impl Hook {
    /// `None` if none is configured.
    pub fn new(auth: &Auth) -> Option<Self> {
        Some(Self {
            url: auth.webhook_url.clone()?,
            timeout: auth.webhook_timeout,
            client: client(),
            slots: Semaphore::new(AT_ONCE),
            known: Mutex::default(),
        })
    }

    /// Asks.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub async fn ask(&self, ask: AccessRequest<'_>) -> Result<Grant, Denial> {
        let question = Question {
            action: ask.action,
            stream: ask.stream.map(|stream| stream.as_str().to_owned()),
            token: ask.token.map(digest),
            address: ask.address,
        };
        if let Some(grant) = self.find(&question) {
            return Ok(grant);
        }
        let Ok(_slot) = self.slots.try_acquire() else {
            return Err(Denial::Unavailable);
        };
        let sent = Body {
            action: ask.action.name(),
            stream: ask.stream.map(crate::hub::name::StreamName::as_str),
            token: ask.token,
            address: ask.address,
        };
        let request = self.client.post(&self.url).timeout(self.timeout).json(&sent);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                warn!(problem = %error.without_url(), "auth.webhook_url does not answer: access is refused");
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
                    by_token: ask.token.is_some(),
                };
                self.remember(question, grant);
                Ok(grant)
            }
            StatusCode::UNAUTHORIZED if ask.token.is_none() => Err(Denial::Missing),
            StatusCode::UNAUTHORIZED => Err(Denial::Wrong),
            StatusCode::FORBIDDEN => Err(Denial::Scope),
            status => {
                warn!(%status, "auth.webhook_url answers neither yes nor no: access is refused");
                Err(Denial::Unavailable)
            }
        }
    }

    fn find(&self, question: &Question) -> Option<Grant> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, grant) = known.get(question)?;
        let is_good = asked.elapsed() < REMEMBERED && grant.expires.is_none_or(|at| at > wall());
        is_good.then_some(*grant)
    }

    /// A session of WebRTC is asked for once; it is for HLS that answers are kept.
    fn remember(&self, question: Question, grant: Grant) {
        if question.action != Action::Play {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.retain(|_, (asked, _)| asked.elapsed() < REMEMBERED);
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
        }
        known.insert(question, (Instant::now(), grant));
    }
}
