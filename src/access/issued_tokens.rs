//! Tokens that the API issues for particular streams (stream keys), with an expiry, until they are revoked. Only their
//! digests are kept.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use thiserror::Error;

use super::issuer::{TokenIssuer, digest_from_hex, to_hex_digits};
use super::pattern::StreamNamePattern;
use super::request::{Permissions, token_digest, wall_clock_now};
use crate::config::state_file::TokenRecord;
use crate::config::{ApiScope, Secret};

/// A token that was issued.
#[derive(Clone, Debug, PartialEq)]
pub struct IssuedToken {
    /// By which the API names it.
    pub id: String,
    pub label: Option<String>,
    pub permissions: Permissions,
    pub issued_at: SystemTime,
    pub expires_at: Option<SystemTime>,
    /// `None` for a token of a version that did not keep it.
    pub issuer: Option<TokenIssuer>,
    digest: [u8; 32],
}

/// When a token is to expire.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenLifetime {
    /// `None`: as late as possible.
    pub requested: Option<Duration>,
    /// When what issues it expires.
    pub issuer_expires_at: Option<SystemTime>,
}

/// Why a token cannot be issued.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IssueError {
    #[error("`expires_in` is too large: a token can expire in the year 5138 at the latest")]
    NoSuchTime,
    #[error("`expires_in` exceeds the remaining lifetime of the token that authorizes this request: {0} s")]
    LongerThanIssuer(u64),
}

/// Random bytes of a token.
const TOKEN_BYTES: usize = 24;
/// Latest time that the state file can keep, in seconds since 1970.
const MAX_STATE_FILE_UNIX_SECONDS: u64 = 99_999_999_999;
/// Random bytes of its id.
const TOKEN_ID_BYTES: usize = 8;

impl IssuedToken {
    /// Issues a token. Its text is known only to the caller.
    ///
    /// # Errors
    ///
    /// An [`IssueError`].
    pub fn issue(
        permissions: Permissions,
        lifetime: TokenLifetime,
        label: Option<String>,
        issuer: TokenIssuer,
    ) -> Result<(Self, Secret), IssueError> {
        let (mut token, mut id) = ([0; TOKEN_BYTES], [0; TOKEN_ID_BYTES]);
        rand::rng().fill_bytes(&mut token);
        rand::rng().fill_bytes(&mut id);
        let secret = Secret::new(&URL_SAFE_NO_PAD.encode(token)).ok_or(IssueError::NoSuchTime)?;
        // Whole seconds, as the state file has them: a restart must not change the order of the list.
        let issued_at = SystemTime::UNIX_EPOCH + Duration::from_secs(to_unix_seconds(wall_clock_now()));
        let expires_at = lifetime.expires_at(issued_at)?;
        let issued = Self {
            id: to_hex_digits(&id),
            label,
            permissions,
            issued_at,
            expires_at,
            issuer: Some(issuer),
            digest: token_digest(secret.reveal()),
        };
        Ok((issued, secret))
    }

    /// Reads a token of the state file; `None` if it is malformed.
    pub fn from_record(record: &TokenRecord) -> Option<Self> {
        let patterns =
            |texts: &[String]| -> Option<Vec<_>> { texts.iter().map(|text| StreamNamePattern::parse(text)).collect() };
        let time = |seconds: u64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        Some(Self {
            id: record.id.clone(),
            label: record.label.clone(),
            permissions: Permissions {
                publish: patterns(&record.publish)?,
                play: patterns(&record.play)?,
                talk: patterns(&record.talk)?,
                api: ApiScope::None,
            },
            issued_at: time(record.issued)?,
            expires_at: match record.expires {
                Some(seconds) => Some(time(seconds)?),
                None => None,
            },
            issuer: match &record.issued_by {
                Some(name) => Some(TokenIssuer::from_state_file_digests(name.clone(), &record.issuer)?),
                None => None,
            },
            digest: digest_from_hex(&record.digest)?,
        })
    }

    /// Returns what the state file keeps.
    pub fn to_token_record(&self) -> TokenRecord {
        let texts =
            |patterns: &[StreamNamePattern]| patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect();
        TokenRecord {
            id: self.id.clone(),
            label: self.label.clone(),
            publish: texts(&self.permissions.publish),
            play: texts(&self.permissions.play),
            talk: texts(&self.permissions.talk),
            issued: to_unix_seconds(self.issued_at),
            expires: self.expires_at.map(to_unix_seconds),
            issued_by: self.issuer.as_ref().map(|issuer| issuer.name.clone()),
            issuer: self
                .issuer
                .as_ref()
                .map_or_else(Vec::new, TokenIssuer::to_state_file_digests),
            digest: to_hex_digits(&self.digest),
        }
    }

    /// Whether it has expired.
    pub fn is_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= wall_clock_now())
    }
}

impl TokenLifetime {
    /// Returns when a token expires that is issued now: not after what issues it.
    fn expires_at(self, now: SystemTime) -> Result<Option<SystemTime>, IssueError> {
        let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(MAX_STATE_FILE_UNIX_SECONDS);
        let of_issuer = self.issuer_expires_at.map(|at| at.min(latest));
        let Some(requested) = self.requested else {
            return Ok(of_issuer);
        };
        let requested = now.checked_add(requested).filter(|at| *at <= latest);
        let requested = requested.ok_or(IssueError::NoSuchTime)?;
        match of_issuer {
            Some(end) if end < requested => Err(IssueError::LongerThanIssuer(
                end.duration_since(now).unwrap_or_default().as_secs(),
            )),
            _ => Ok(Some(requested)),
        }
    }
}

/// The tokens that are valid, by their digest. What is compared is a digest, so timing reveals nothing of a token.
#[derive(Debug, Default)]
pub struct IssuedTokens {
    by_digest: RwLock<HashMap<[u8; 32], Arc<IssuedToken>>>,
}

impl IssuedTokens {
    /// Makes the set of these tokens.
    pub fn new(tokens: Vec<IssuedToken>) -> Self {
        let set = Self::default();
        set.replace_all(tokens);
        set
    }

    /// Replaces all tokens.
    pub fn replace_all(&self, tokens: Vec<IssuedToken>) {
        let tokens = tokens.into_iter().map(|token| (token.digest, Arc::new(token)));
        *self.by_digest.write().unwrap_or_else(PoisonError::into_inner) = tokens.collect();
    }

    /// Returns all tokens in the order in which they were issued, to the second.
    pub fn list_all(&self) -> Vec<Arc<IssuedToken>> {
        let mut all: Vec<_> = self.read().values().cloned().collect();
        all.sort_by(|a, b| (a.issued_at, &a.id).cmp(&(b.issued_at, &b.id)));
        all
    }

    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Arc<IssuedToken>> {
        self.read().get(digest).cloned()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<[u8; 32], Arc<IssuedToken>>> {
        self.by_digest.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a time in whole seconds since 1970.
pub fn to_unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> TokenIssuer {
        let texts = [format!("token:{}", to_hex_digits(&token_digest("operator")))];
        TokenIssuer::from_state_file_digests("auth.api_token".to_owned(), &texts).expect("valid")
    }

    #[test]
    fn a_token_expires_not_after_what_issued_it() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        let year_9999 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(MAX_STATE_FILE_UNIX_SECONDS);
        for (requested, issuer_expires_at, expected) in [
            (None, None, Ok(None)),
            (Some(60), None, Ok(at(60))),
            (None, at(60), Ok(at(60))),
            (Some(60), at(60), Ok(at(60))),
            (Some(61), at(60), Err(IssueError::LongerThanIssuer(60))),
            (None, Some(year_9999), Ok(Some(latest))),
            (Some(u64::MAX), None, Err(IssueError::NoSuchTime)),
        ] {
            let lifetime = TokenLifetime {
                requested: requested.map(Duration::from_secs),
                issuer_expires_at,
            };
            assert_eq!(lifetime.expires_at(now), expected, "{lifetime:?}");
        }
    }

    #[test]
    fn a_token_is_kept_as_its_digest_and_read_again() {
        let permissions = Permissions {
            publish: vec![StreamNamePattern::parse("studio/*").expect("a pattern")],
            talk: vec![StreamNamePattern::parse("door").expect("a pattern")],
            ..Permissions::default()
        };
        let lifetime = TokenLifetime {
            requested: Some(Duration::from_secs(60)),
            issuer_expires_at: None,
        };
        let label = Some("OBS".to_owned());
        let (token, secret) = IssuedToken::issue(permissions, lifetime, label, issuer()).expect("a token");
        let record = token.to_token_record();
        assert!(!format!("{record:?}").contains(secret.reveal()));
        let read = IssuedToken::from_record(&record).expect("valid");
        assert_eq!(read.to_token_record(), record);
        assert!(!read.is_expired());
        let tokens = IssuedTokens::new(vec![read]);
        assert!(tokens.get(&token_digest(secret.reveal())).is_some());
        assert!(tokens.get(&token_digest("another")).is_none());
        for digest in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            let record = TokenRecord {
                digest: digest.to_owned(),
                ..record.clone()
            };
            assert_eq!(IssuedToken::from_record(&record), None, "{digest}");
        }
    }
}
