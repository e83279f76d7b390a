//! Signed tokens (JWT, RFC 7519) that contain their permissions.
//!
//! ```json
//! { "exp": 1900000000, "publish": ["studio/*"], "play": "*", "api": true }
//! ```
//!
//! `exp` is required, as are `iss` and `aud` if they are configured. `publish`, `play` and `talk` are a pattern or a list of patterns, `api` is `true`, `false` or `"read"`. A key is used with one algorithm only:
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

use super::issuer::JwtProvenanceDigests;
use super::pattern::StreamNamePattern;
use super::request::{Denial, Permissions, VerifiedJwt, token_digest, wall_clock_now};
use crate::config::{ApiScope, AuthConfig};

/// A key with its algorithm.
#[derive(Clone)]
pub struct JwtKey {
    id: Option<String>,
    /// Digest of its text, which identifies the key after a reload.
    key_digest: [u8; 32],
    algorithm: Algorithm,
    decoding_key: DecodingKey,
}

impl JwtKey {
    /// Makes a key of a shared secret.
    pub fn from_secret(secret: &str) -> Self {
        Self {
            id: None,
            key_digest: token_digest(secret),
            algorithm: Algorithm::HS256,
            decoding_key: DecodingKey::from_secret(secret.as_bytes()).expect("the configuration rejects short secrets"),
        }
    }

    /// Reads public keys: one in PEM, or a JWK set (RFC 7517 §5). Returns `None` if there is no usable key.
    pub fn parse_public_keys(text: &str) -> Option<Vec<Self>> {
        if text.trim_start().starts_with('{') {
            let keys = Self::from_jwk_set(&serde_json::from_str(text).ok()?);
            return (!keys.is_empty()).then_some(keys);
        }
        let rsa = DecodingKey::from_rsa_pem(text.as_bytes()).map(|key| (Algorithm::RS256, key));
        let (algorithm, decoding_key) = rsa
            .or_else(|_| DecodingKey::from_ec_pem(text.as_bytes()).map(|key| (Algorithm::ES256, key)))
            .ok()?;
        Some(vec![Self {
            id: None,
            key_digest: token_digest(text.trim()),
            algorithm,
            decoding_key,
        }])
    }

    /// Returns the usable keys of a set. Shared secrets are ignored.
    fn from_jwk_set(set: &JwkSet) -> Vec<Self> {
        let keys = set.keys.iter().filter_map(|jwk| {
            let algorithm = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => Algorithm::RS256,
                AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
                _ => return None,
            };
            Some(Self {
                id: jwk.common.key_id.clone(),
                key_digest: token_digest(&serde_json::to_string(jwk).ok()?),
                algorithm,
                decoding_key: DecodingKey::from_jwk(jwk).ok()?,
            })
        });
        keys.take(MAX_JWK_SET_KEYS).collect()
    }
}

impl std::fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?}, {:?})", self.algorithm, self.id)
    }
}

/// Maximum number of keys of one set.
const MAX_JWK_SET_KEYS: usize = 32;

/// Maximum size of a set, in bytes.
const MAX_JWK_SET_BYTES: usize = 256 * 1024;

/// How long a set is used before it is fetched again.
const JWK_SET_LIFETIME: Duration = Duration::from_secs(10 * 60);

/// Minimum interval between fetches, for a key that is not in the set or after a failure.
const MIN_JWK_SET_FETCH_INTERVAL: Duration = Duration::from_secs(10);

/// Timeout of a fetch.
const JWK_SET_FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of cached tokens. The cache avoids checking the signature for each request of an HLS player.
const MAX_CACHED_TOKENS: usize = 10_000;

/// Permitted clock skew in seconds.
const CLOCK_LEEWAY_SECONDS: u64 = 5;

#[derive(Clone, Debug, Deserialize)]
struct Claims {
    exp: u64,
    /// A string in every valid token (RFC 7519 §4.1.1); the library also accepts a list.
    iss: Option<Value>,
    aud: Option<Value>,
    /// Named in the log where the token changes something.
    sub: Option<Value>,
    #[serde(default)]
    publish: PatternClaim,
    #[serde(default)]
    play: PatternClaim,
    #[serde(default)]
    talk: PatternClaim,
    #[serde(default)]
    api: ApiClaim,
}

impl Claims {
    fn to_verified_jwt(&self, key: [u8; 32], set: Option<String>) -> VerifiedJwt {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let audiences = match &self.aud {
            Some(Value::Array(many)) => many.iter().filter_map(text).collect(),
            one => one.iter().filter_map(text).collect(),
        };
        VerifiedJwt {
            permissions: Permissions {
                publish: self.publish.valid_patterns(),
                play: self.play.valid_patterns(),
                talk: self.talk.valid_patterns(),
                api: self.api.to_api_scope(),
            },
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(self.exp.min(MAX_EXPIRY_UNIX_SECONDS)),
            key_digest: key,
            key_set_url: set,
            issuer: self.iss.as_ref().and_then(text),
            audiences,
            subject: self.sub.as_ref().and_then(text),
        }
    }
}

/// The claim `api`: `true`, `false` or `"read"`. A token with another value is rejected.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum ApiClaim {
    AllOrNone(bool),
    Scope(NamedApiScope),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NamedApiScope {
    Read,
}

impl Default for ApiClaim {
    fn default() -> Self {
        Self::AllOrNone(false)
    }
}

impl ApiClaim {
    fn to_api_scope(self) -> ApiScope {
        match self {
            Self::AllOrNone(is_all) => ApiScope::full_or_none(is_all),
            Self::Scope(NamedApiScope::Read) => ApiScope::Read,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PatternClaim {
    One(String),
    Many(Vec<String>),
}

impl Default for PatternClaim {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl PatternClaim {
    /// Returns the valid patterns; invalid ones are ignored.
    fn valid_patterns(&self) -> Vec<StreamNamePattern> {
        match self {
            Self::One(text) => StreamNamePattern::parse(text).into_iter().collect(),
            Self::Many(texts) => texts
                .iter()
                .take(64)
                .filter_map(|text| StreamNamePattern::parse(text))
                .collect(),
        }
    }
}

/// Whether a token has the three parts of a signed token (RFC 7515 §7.1).
pub fn looks_like_jwt(token: &str) -> bool {
    token.split('.').count() == 3 && token.split('.').all(|part| !part.is_empty())
}

/// Verifies signed tokens.
pub struct JwtVerifier {
    configured_keys: Vec<JwtKey>,
    remote_key_set: Option<RemoteKeySet>,
    issuer: Option<String>,
    audience: Option<String>,
    verified_tokens: Mutex<HashMap<[u8; 32], Arc<VerifiedJwt>>>,
}

/// A key set that is fetched from a URL.
struct RemoteKeySet {
    url: String,
    client: reqwest::Client,
    fetch_state: tokio::sync::Mutex<FetchedKeySet>,
}

#[derive(Default)]
struct FetchedKeySet {
    keys: Vec<JwtKey>,
    fetched_at: Option<Instant>,
    attempted_at: Option<Instant>,
}

impl JwtVerifier {
    /// Returns `None` if neither keys nor a key set URL are configured.
    pub fn new(auth: &AuthConfig, keys: Vec<JwtKey>) -> Option<Self> {
        if keys.is_empty() && auth.jwks_url.is_none() {
            return None;
        }
        let set = auth.jwks_url.clone().map(|url| RemoteKeySet {
            url,
            client: http_client_without_redirects(),
            fetch_state: tokio::sync::Mutex::default(),
        });
        Some(Self {
            configured_keys: keys,
            remote_key_set: set,
            issuer: auth.jwt_issuer.clone(),
            audience: auth.jwt_audience.clone(),
            verified_tokens: Mutex::default(),
        })
    }

    /// Verifies a token.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub(super) async fn verify_token(&self, token: &str) -> Result<Arc<VerifiedJwt>, Denial> {
        let digest = token_digest(token);
        if let Some(known) = self.cached_token(&digest) {
            return Ok(known);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Denial::InvalidToken)?;
        let mut keys = matching_keys(&self.configured_keys, header.alg, header.kid.as_deref());
        let mut from = None;
        if keys.is_empty()
            && let Some(set) = &self.remote_key_set
        {
            keys = set.find_or_fetch_keys(header.alg, header.kid.as_deref()).await?;
            from = Some(&set.url);
        }
        let validation = self.registered_claim_validation(header.alg);
        let mut denial = Denial::InvalidToken;
        for key in keys {
            match jsonwebtoken::decode::<Claims>(token, &key.decoding_key, &validation) {
                Ok(decoded) => {
                    let verified = Arc::new(decoded.claims.to_verified_jwt(key.key_digest, from.cloned()));
                    // The library also accepts a list of issuers.
                    if !self.accepts_issuer_and_audience(&verified) {
                        continue;
                    }
                    self.cache_token(digest, verified.clone());
                    return Ok(verified);
                }
                Err(error) if *error.kind() == ErrorKind::ExpiredSignature => denial = Denial::ExpiredToken,
                Err(_) => {}
            }
        }
        Err(denial)
    }

    /// Whether a token that was verified with an earlier configuration is valid with this one.
    pub(super) fn still_accepts_verified_token(&self, token: &VerifiedJwt) -> bool {
        let has_key = self
            .configured_keys
            .iter()
            .any(|key| key.key_digest == token.key_digest);
        let has_set = token.key_set_url.is_some()
            && self.remote_key_set.as_ref().map(|set| &set.url) == token.key_set_url.as_ref();
        (has_key || has_set) && self.accepts_issuer_and_audience(token)
    }

    /// Whether a signed token of this origin is valid with this configuration, but for its expiry.
    pub(super) fn still_accepts_provenance(&self, origin: &JwtProvenanceDigests) -> bool {
        let has_key = self.configured_keys.iter().any(|key| key.key_digest == origin.key);
        let set = self.remote_key_set.as_ref().map(|set| token_digest(&set.url));
        let has_set = origin.key_set.is_some() && origin.key_set == set;
        let has_issuer = self
            .issuer
            .as_ref()
            .is_none_or(|wanted| origin.issuer == Some(token_digest(wanted)));
        let has_audience = self
            .audience
            .as_ref()
            .is_none_or(|wanted| origin.audiences.contains(&token_digest(wanted)));
        (has_key || has_set) && has_issuer && has_audience
    }

    fn accepts_issuer_and_audience(&self, token: &VerifiedJwt) -> bool {
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
    fn registered_claim_validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = CLOCK_LEEWAY_SECONDS;
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

    fn cached_token(&self, digest: &[u8; 32]) -> Option<Arc<VerifiedJwt>> {
        let verified = self.verified_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        verified
            .get(digest)
            .filter(|token| token.expires_at > wall_clock_now())
            .cloned()
    }

    fn cache_token(&self, digest: [u8; 32], token: Arc<VerifiedJwt>) {
        let mut verified = self.verified_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_CACHED_TOKENS {
            let now = wall_clock_now();
            verified.retain(|_, token| token.expires_at > now);
            if verified.len() >= MAX_CACHED_TOKENS {
                verified.clear();
            }
        }
        verified.insert(digest, token);
    }
}

/// The end of the year 9999, the latest expiry.
const MAX_EXPIRY_UNIX_SECONDS: u64 = 253_402_300_799;

/// Returns the keys that can have signed a token. A token or key without an id matches any.
fn matching_keys(keys: &[JwtKey], algorithm: Algorithm, id: Option<&str>) -> Vec<JwtKey> {
    let fits = |key: &&JwtKey| {
        let same = key.id.is_none() || id.is_none() || key.id.as_deref() == id;
        key.algorithm == algorithm && same
    };
    keys.iter().filter(fits).cloned().collect()
}

impl RemoteKeySet {
    /// Returns the keys of the set that can have signed a token. The set is fetched again if it is old or has no such
    /// key.
    async fn find_or_fetch_keys(&self, algorithm: Algorithm, id: Option<&str>) -> Result<Vec<JwtKey>, Denial> {
        let mut state = self.fetch_state.lock().await;
        let is_old = state.fetched_at.is_none_or(|at| at.elapsed() >= JWK_SET_LIFETIME);
        let found = matching_keys(&state.keys, algorithm, id);
        let may_try = state
            .attempted_at
            .is_none_or(|at| at.elapsed() >= MIN_JWK_SET_FETCH_INTERVAL);
        if !(may_try && (is_old || found.is_empty())) {
            let was_fetched = state.fetched_at.is_some();
            return if was_fetched {
                Ok(found)
            } else {
                Err(Denial::AuthorizationUnavailable)
            };
        }
        state.attempted_at = Some(Instant::now());
        match self.download_keys().await {
            Ok(keys) => {
                state.keys = keys;
                state.fetched_at = Some(Instant::now());
                Ok(matching_keys(&state.keys, algorithm, id))
            }
            Err(problem) => {
                warn!(url = %self.url, problem, "cannot fetch the JWK set of auth.jwks_url; if it was fetched before, the earlier keys remain in use");
                if state.fetched_at.is_some() {
                    Ok(found)
                } else {
                    Err(Denial::AuthorizationUnavailable)
                }
            }
        }
    }

    async fn download_keys(&self) -> Result<Vec<JwtKey>, String> {
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let request = self.client.get(&self.url).timeout(JWK_SET_FETCH_TIMEOUT);
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        let text = read_body_rejecting_oversize(response.map_err(failed)?, MAX_JWK_SET_BYTES).await?;
        let set = serde_json::from_slice(&text).map_err(|_| "the HTTP response is not a JWK set".to_owned())?;
        let keys = JwtKey::from_jwk_set(&set);
        if keys.is_empty() {
            return Err("the JWK set has no key for RS256 or ES256".to_owned());
        }
        Ok(keys)
    }
}

/// Makes an HTTP client that follows no redirects, so that it connects only to the configured host.
pub(super) fn http_client_without_redirects() -> reqwest::Client {
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap_or_default()
}

/// Reads a body of at most `most` bytes.
pub(super) async fn read_body_rejecting_oversize(
    mut response: reqwest::Response,
    most: usize,
) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if text.len() + chunk.len() > most => {
                return Err(format!("the HTTP response body has more than {most} bytes"));
            }
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => return Ok(text),
            Err(error) => return Err(error.without_url().to_string()),
        }
    }
}
