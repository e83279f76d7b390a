//! Signed tokens (JWT, RFC 7519) that contain their permissions.
//!
//! ```json
//! { "exp": 1900000000, "publish": ["studio/*"], "play": "*", "api": true }
//! ```
//!
//! `exp` is required, as are `iss` and `aud` if they are configured. `publish` and `play` are a pattern or a list of patterns. A key is used with one algorithm only:
//! HS256 for a secret, RS256 for an RSA key, ES256 for a key on P-256. The token's `alg` only selects among them (RFC
//! 8725 §3.1).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use super::pattern::Pattern;
use super::request::{Denial, Permissions, SignedToken, digest, wall};
use crate::config::Auth;

/// A key with its algorithm.
#[derive(Clone)]
pub struct Key {
    id: Option<String>,
    /// Digest of its text, which identifies the key after a reload.
    digest: [u8; 32],
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// Makes a key of a shared secret.
    pub fn secret(secret: &str) -> Self {
        Self {
            id: None,
            digest: digest(secret),
            algorithm: Algorithm::HS256,
            key: DecodingKey::from_secret(secret.as_bytes()).expect("the configuration refuses short secrets"),
        }
    }

    /// Reads public keys: one in PEM, or a JWK set (RFC 7517 §5). Returns `None` if there is no usable key.
    pub fn read(text: &str) -> Option<Vec<Self>> {
        if text.trim_start().starts_with('{') {
            let keys = Self::of_set(&serde_json::from_str(text).ok()?);
            return (!keys.is_empty()).then_some(keys);
        }
        let rsa = DecodingKey::from_rsa_pem(text.as_bytes()).map(|key| (Algorithm::RS256, key));
        let (algorithm, key) = rsa
            .or_else(|_| DecodingKey::from_ec_pem(text.as_bytes()).map(|key| (Algorithm::ES256, key)))
            .ok()?;
        Some(vec![Self {
            id: None,
            digest: digest(text.trim()),
            algorithm,
            key,
        }])
    }

    /// Returns the usable keys of a set. Shared secrets are ignored.
    fn of_set(set: &JwkSet) -> Vec<Self> {
        let keys = set.keys.iter().filter_map(|jwk| {
            let algorithm = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => Algorithm::RS256,
                AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
                _ => return None,
            };
            Some(Self {
                id: jwk.common.key_id.clone(),
                digest: digest(&serde_json::to_string(jwk).ok()?),
                algorithm,
                key: DecodingKey::from_jwk(jwk).ok()?,
            })
        });
        keys.take(MAX_KEYS).collect()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?}, {:?})", self.algorithm, self.id)
    }
}

/// Maximum number of keys of one set.
const MAX_KEYS: usize = 32;

/// Maximum size of a set, in bytes.
const MAX_SET: usize = 256 * 1024;

/// How long a set is used before it is fetched again.
const FRESH: Duration = Duration::from_secs(10 * 60);

/// Minimum interval between fetches, for a key that is not in the set or after a failure.
const REFETCH_INTERVAL: Duration = Duration::from_secs(10);

/// Timeout of a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of cached tokens. The cache avoids checking the signature for each request of an HLS player.
const MAX_CACHED: usize = 10_000;

/// Permitted clock skew in seconds.
const LEEWAY: u64 = 5;

#[derive(Clone, Debug, Deserialize)]
struct Claims {
    exp: u64,
    /// A string in every valid token (RFC 7519 §4.1.1); the library also accepts a list.
    iss: Option<Value>,
    aud: Option<Value>,
    #[serde(default)]
    publish: Patterns,
    #[serde(default)]
    play: Patterns,
    #[serde(default)]
    api: bool,
}

impl Claims {
    fn verified(&self, key: [u8; 32], set: Option<String>) -> SignedToken {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let audiences = match &self.aud {
            Some(Value::Array(many)) => many.iter().filter_map(text).collect(),
            one => one.iter().filter_map(text).collect(),
        };
        SignedToken {
            rights: Permissions {
                publish: self.publish.read(),
                play: self.play.read(),
                api: self.api,
            },
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(self.exp.min(MAX_TIME)),
            key,
            set,
            issuer: self.iss.as_ref().and_then(text),
            audiences,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Many(Vec<String>),
}

impl Default for Patterns {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Patterns {
    /// Returns the valid patterns; invalid ones are ignored.
    fn read(&self) -> Vec<Pattern> {
        match self {
            Self::One(text) => Pattern::parse(text).into_iter().collect(),
            Self::Many(texts) => texts.iter().take(64).filter_map(|text| Pattern::parse(text)).collect(),
        }
    }
}

/// Whether a token has the three parts of a signed token (RFC 7515 §7.1).
pub fn looks_like_one(token: &str) -> bool {
    token.split('.').count() == 3 && token.split('.').all(|part| !part.is_empty())
}

/// Verifies signed tokens.
pub struct Verifier {
    keys: Vec<Key>,
    set: Option<RemoteSet>,
    issuer: Option<String>,
    audience: Option<String>,
    verified: Mutex<HashMap<[u8; 32], Arc<SignedToken>>>,
}

/// A key set that is fetched from a URL.
struct RemoteSet {
    url: String,
    client: reqwest::Client,
    state: tokio::sync::Mutex<Fetched>,
}

#[derive(Default)]
struct Fetched {
    keys: Vec<Key>,
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

impl Verifier {
    /// Returns `None` if neither keys nor a key set URL are configured.
    pub fn new(auth: &Auth, keys: Vec<Key>) -> Option<Self> {
        if keys.is_empty() && auth.jwks_url.is_none() {
            return None;
        }
        let set = auth.jwks_url.clone().map(|url| RemoteSet {
            url,
            client: client(),
            state: tokio::sync::Mutex::default(),
        });
        Some(Self {
            keys,
            set,
            issuer: auth.jwt_issuer.clone(),
            audience: auth.jwt_audience.clone(),
            verified: Mutex::default(),
        })
    }

    /// Verifies a token.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub(super) async fn check(&self, token: &str) -> Result<Arc<SignedToken>, Denial> {
        let digest = digest(token);
        if let Some(known) = self.find(&digest) {
            return Ok(known);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Denial::Wrong)?;
        let mut keys = fitting(&self.keys, header.alg, header.kid.as_deref());
        let mut from = None;
        if keys.is_empty()
            && let Some(set) = &self.set
        {
            keys = set.find(header.alg, header.kid.as_deref()).await?;
            from = Some(&set.url);
        }
        let validation = self.validation(header.alg);
        let mut denial = Denial::Wrong;
        for key in keys {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &validation) {
                Ok(decoded) => {
                    let verified = Arc::new(decoded.claims.verified(key.digest, from.cloned()));
                    // The library also accepts a list of issuers.
                    if !self.accepts_claims(&verified) {
                        continue;
                    }
                    self.remember(digest, verified.clone());
                    return Ok(verified);
                }
                Err(error) if *error.kind() == ErrorKind::ExpiredSignature => denial = Denial::Expired,
                Err(_) => {}
            }
        }
        Err(denial)
    }

    /// Whether a token that was verified with an earlier configuration is valid with this one.
    pub(super) fn still_accepts(&self, token: &SignedToken) -> bool {
        let has_key = self.keys.iter().any(|key| key.digest == token.key);
        let has_set = token.set.is_some() && self.set.as_ref().map(|set| &set.url) == token.set.as_ref();
        (has_key || has_set) && self.accepts_claims(token)
    }

    fn accepts_claims(&self, token: &SignedToken) -> bool {
        let has_issuer = self.issuer.is_none() || self.issuer == token.issuer;
        let mut audiences = token.audiences.iter();
        has_issuer
            && self
                .audience
                .as_ref()
                .is_none_or(|wanted| audiences.any(|audience| audience == wanted))
    }

    /// Returns the rules for registered claims. By itself, the library only rejects a wrong `iss` or `aud`, not a token
    /// without one.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.validate_aud = self.audience.is_some();
        let mut required = vec!["exp"];
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn find(&self, digest: &[u8; 32]) -> Option<Arc<SignedToken>> {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(digest).filter(|token| token.expires > wall()).cloned()
    }

    fn remember(&self, digest: [u8; 32], token: Arc<SignedToken>) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_CACHED {
            let now = wall();
            verified.retain(|_, token| token.expires > now);
            if verified.len() >= MAX_CACHED {
                verified.clear();
            }
        }
        verified.insert(digest, token);
    }
}

/// The end of the year 9999, the latest expiry.
const MAX_TIME: u64 = 253_402_300_799;

/// Returns the keys that can have signed a token. A token or key without an id matches any.
fn fitting(keys: &[Key], algorithm: Algorithm, id: Option<&str>) -> Vec<Key> {
    let fits = |key: &&Key| {
        let same = key.id.is_none() || id.is_none() || key.id.as_deref() == id;
        key.algorithm == algorithm && same
    };
    keys.iter().filter(fits).cloned().collect()
}

impl RemoteSet {
    /// Returns the keys of the set that can have signed a token. The set is fetched again if it is old or has no such
    /// key.
    async fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Result<Vec<Key>, Denial> {
        let mut state = self.state.lock().await;
        let is_old = state.fetched.is_none_or(|at| at.elapsed() >= FRESH);
        let found = fitting(&state.keys, algorithm, id);
        let may_try = state.tried.is_none_or(|at| at.elapsed() >= REFETCH_INTERVAL);
        if !(may_try && (is_old || found.is_empty())) {
            let was_fetched = state.fetched.is_some();
            return if was_fetched {
                Ok(found)
            } else {
                Err(Denial::Unavailable)
            };
        }
        state.tried = Some(Instant::now());
        match self.fetch().await {
            Ok(keys) => {
                state.keys = keys;
                state.fetched = Some(Instant::now());
                Ok(fitting(&state.keys, algorithm, id))
            }
            Err(problem) => {
                warn!(url = %self.url, problem, "auth.jwks_url: cannot fetch the keys");
                if state.fetched.is_some() {
                    Ok(found)
                } else {
                    Err(Denial::Unavailable)
                }
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let request = self.client.get(&self.url).timeout(FETCH_TIMEOUT);
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        let text = body(response.map_err(failed)?, MAX_SET).await?;
        let set = serde_json::from_slice(&text).map_err(|_| "the response is not a JWK set".to_owned())?;
        let keys = Key::of_set(&set);
        if keys.is_empty() {
            return Err("the set has no key for RS256 or ES256".to_owned());
        }
        Ok(keys)
    }
}

/// Makes an HTTP client that follows no redirects, so that it connects only to the configured host.
pub(super) fn client() -> reqwest::Client {
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap_or_default()
}

/// Reads a body of at most `most` bytes.
pub(super) async fn body(mut response: reqwest::Response, most: usize) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if text.len() + chunk.len() > most => {
                return Err(format!("the response has more than {most} bytes"));
            }
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => return Ok(text),
            Err(error) => return Err(error.without_url().to_string()),
        }
    }
}
