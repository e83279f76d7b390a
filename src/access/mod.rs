//! Authorization: configured tokens, signed tokens (JWT), and an authorization webhook.
//!
//! ```text
//! AccessRequest (token, action, stream, address) -> fixed tokens -> JWT -> hook -> Grant (with expiry) | Denial
//! ```
//!
//! The first that recognizes the token decides. This folder is a shell: it sends HTTP requests and reads the clock.
//! Tokens are never logged.

use std::sync::Arc;

use crate::config::{ApiScope, Secret};
use millstream_core::hub::name::StreamName;

pub mod credentials;
pub mod issued_tokens;
pub mod issuer;
pub mod jwt;
pub mod pattern;
mod request;
pub mod webhook;
mod webhook_admission;

use self::credentials::AuthCredentials;
use self::issued_tokens::{IssuedToken, IssuedTokens};
use self::issuer::{IssuingCredentialDigest, TokenIssuer};
use self::jwt::JwtVerifier;
use self::pattern::StreamNamePattern;
pub use self::request::{AccessAction, AccessRequest, Denial, Grant, Permissions, StaticToken};
use self::request::{GrantBasis, token_digest};
use self::webhook::WebhookClient;

/// Maximum length of the subject of a signed token in the log, in characters.
const MAX_SUBJECT_CHARS: usize = 64;

/// Decides about access.
pub struct AccessControl {
    static_tokens: Vec<StaticToken>,
    /// Playback requires no token, because nothing is configured that restricts it.
    is_playback_allowed_without_token: bool,
    /// Something other than publishing to all streams needs a token.
    restricts_more_than_publishing: bool,
    jwt_verifier: Option<JwtVerifier>,
    webhook: Option<WebhookClient>,
    accepts_query_token: bool,
    /// Tokens that the API has issued. They change while these rules are in effect.
    issued_tokens: Arc<IssuedTokens>,
}

impl AccessControl {
    /// Builds it from the configured credentials; `publish` is the token for publishing to all streams.
    pub fn new(credentials: AuthCredentials, publish: &Secret) -> Self {
        let all = || vec![StreamNamePattern::matching_all_streams()];
        // Every token may watch.
        let rights = Permissions {
            play: all(),
            ..Permissions::default()
        };
        let AuthCredentials {
            play_token: play,
            talk_token: talk,
            api_token: api,
            static_tokens: tokens,
            jwt_verifier: verifier,
            webhook: hook,
            accepts_query_token: in_query,
            ..
        } = credentials;
        let closed = play.is_some() || tokens.iter().any(|token| !token.permissions.play.is_empty());
        let open = !closed && verifier.is_none() && hook.is_none();
        let restricted = !open || !tokens.is_empty();
        let to_publish = Permissions {
            publish: all(),
            ..rights.clone()
        };
        let to_talk = Permissions {
            talk: all(),
            ..rights.clone()
        };
        let for_api = Permissions {
            api: ApiScope::Full,
            ..rights.clone()
        };
        let mut fixed = vec![StaticToken::new("auth.publish_token", publish, to_publish)];
        fixed.extend(play.map(|play| StaticToken::new("auth.play_token", &play, rights)));
        fixed.extend(talk.map(|talk| StaticToken::new("auth.talk_token", &talk, to_talk)));
        fixed.extend(api.map(|api| StaticToken::new("auth.api_token", &api, for_api)));
        fixed.extend(tokens);
        Self {
            static_tokens: fixed,
            is_playback_allowed_without_token: open,
            restricts_more_than_publishing: restricted,
            jwt_verifier: verifier,
            webhook: hook,
            accepts_query_token: in_query,
            issued_tokens: Arc::default(),
        }
    }

    /// Accepts the tokens that the API issues.
    #[must_use]
    pub fn with_issued_tokens(mut self, tokens: Arc<IssuedTokens>) -> Self {
        self.issued_tokens = tokens;
        self
    }

    /// Whether `?token=` is accepted instead of the header (RFC 9725 §4.7.1).
    pub fn accepts_query_token(&self) -> bool {
        self.accepts_query_token
    }

    /// Whether playback requires no token.
    pub fn is_playback_allowed_without_token(&self) -> bool {
        self.is_playback_allowed_without_token
    }

    /// Whether anything is restricted besides publishing to all streams, which always is.
    pub fn restricts_more_than_publishing(&self) -> bool {
        self.restricts_more_than_publishing
    }

    /// Whether any configured credential can give access to the API, if only to read.
    pub fn has_api_credential(&self) -> bool {
        self.static_tokens
            .iter()
            .any(|token| token.permissions.api != ApiScope::None)
            || self.jwt_verifier.is_some()
            || self.webhook.is_some()
    }

    /// Decides about a request.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub async fn authorize(&self, request: AccessRequest<'_>) -> Result<Grant, Denial> {
        if request.action == AccessAction::Play && self.is_playback_allowed_without_token {
            return Ok(Grant::default());
        }
        let Some(token) = request.token else {
            return match &self.webhook {
                // The hook may decide by address.
                Some(hook) if hook.decides_without_token() => hook.authorize(request).await,
                _ => Err(Denial::MissingToken),
            };
        };
        let mut denial = Denial::InvalidToken;
        match self.authorize_by_static_token(token, request) {
            Err(Denial::InvalidToken) => {}
            decided => return decided,
        }
        match self.authorize_by_issued_token(token, request) {
            Err(Denial::InvalidToken) => {}
            decided => return decided,
        }
        if let Some(verifier) = &self.jwt_verifier
            && jwt::looks_like_jwt(token)
        {
            match verifier.verify_token(token).await {
                Ok(signed) if signed.permissions.allows(request.action, request.stream) => {
                    return Ok(Grant {
                        expires_at: Some(signed.expires_at),
                        basis: GrantBasis::VerifiedJwt(signed),
                        is_token_based: true,
                    });
                }
                Ok(_) => return Err(Denial::InsufficientScope),
                Err(wrong) => denial = wrong,
            }
        }
        match &self.webhook {
            Some(hook) => hook.authorize(request).await,
            None => Err(denial),
        }
    }

    /// Whether a grant that was given by an earlier configuration is valid with this one; `stream` is `None` for the API.
    pub fn is_grant_still_valid(&self, grant: &Grant, action: AccessAction, stream: Option<&StreamName>) -> bool {
        if action == AccessAction::Play && self.is_playback_allowed_without_token {
            return true;
        }
        match &grant.basis {
            GrantBasis::OpenPlayback => false,
            GrantBasis::StaticToken(digest) => {
                let mut tokens = self.static_tokens.iter().filter(|token| token.digest == *digest);
                tokens.any(|token| token.permissions.allows(action, stream))
            }
            GrantBasis::IssuedToken(digest) => {
                let token = self.issued_tokens.get(digest);
                token
                    .is_some_and(|token| self.is_issued_token_valid(&token) && token.permissions.allows(action, stream))
            }
            GrantBasis::VerifiedJwt(token) => self
                .jwt_verifier
                .as_ref()
                .is_some_and(|verifier| verifier.still_accepts_verified_token(token)),
            GrantBasis::Webhook(url) => {
                let hook = self.webhook.as_ref().filter(|hook| hook.url() == &**url);
                hook.is_some_and(|hook| grant.is_token_based || hook.decides_without_token())
            }
        }
    }

    /// Whether a token that the API has issued is valid: it has not expired, and what issued it is still in force and may
    /// use all of the API.
    pub fn is_issued_token_valid(&self, token: &IssuedToken) -> bool {
        !token.is_expired() && token.issuer.as_ref().is_none_or(|issuer| self.has_credential(issuer))
    }

    fn has_credential(&self, issuer: &TokenIssuer) -> bool {
        match &issuer.credential {
            IssuingCredentialDigest::StaticToken(digest) => {
                let mut tokens = self.static_tokens.iter().filter(|token| token.digest == *digest);
                tokens.any(|token| token.permissions.allows(AccessAction::ApiFull, None))
            }
            IssuingCredentialDigest::Webhook(digest) => {
                let hook = self.webhook.as_ref();
                hook.is_some_and(|hook| token_digest(hook.url()) == *digest)
            }
            IssuingCredentialDigest::Jwt(origin) => {
                let verifier = self.jwt_verifier.as_ref();
                verifier.is_some_and(|verifier| verifier.still_accepts_provenance(origin))
            }
        }
    }

    /// Returns the credential of a grant as the issuer of tokens; `None` if it may not issue any.
    pub fn issuer_of_grant(&self, grant: &Grant) -> Option<TokenIssuer> {
        TokenIssuer::from_grant(grant, self.credential_name(grant))
    }

    /// Returns the name of the credential that a grant was given for. It contains nothing secret.
    pub fn credential_name(&self, grant: &Grant) -> String {
        match &grant.basis {
            GrantBasis::OpenPlayback => "nobody".to_owned(),
            GrantBasis::StaticToken(digest) => {
                let tokens = self.static_tokens.iter().filter(|token| token.digest == *digest);
                let token = tokens.max_by_key(|token| token.permissions.api);
                token.map_or_else(|| "a removed token".to_owned(), |token| token.config_path.clone())
            }
            GrantBasis::IssuedToken(digest) => {
                let token = self.issued_tokens.get(digest);
                token.map_or_else(|| "a revoked token".to_owned(), |token| format!("token {}", token.id))
            }
            GrantBasis::VerifiedJwt(token) => match &token.subject {
                Some(subject) => {
                    let subject = subject.chars().filter(|c| !c.is_control());
                    format!("jwt {}", subject.take(MAX_SUBJECT_CHARS).collect::<String>())
                }
                None => "jwt".to_owned(),
            },
            GrantBasis::Webhook(_) => "auth.webhook_url".to_owned(),
        }
    }

    fn authorize_by_issued_token(&self, given: &str, request: AccessRequest<'_>) -> Result<Grant, Denial> {
        let digest = token_digest(given);
        match self.issued_tokens.get(&digest) {
            None => Err(Denial::InvalidToken),
            Some(token) if token.is_expired() => Err(Denial::ExpiredToken),
            Some(token) if !self.is_issued_token_valid(&token) => Err(Denial::InvalidToken),
            Some(token) if token.permissions.allows(request.action, request.stream) => Ok(Grant {
                expires_at: token.expires_at,
                basis: GrantBasis::IssuedToken(digest),
                is_token_based: true,
            }),
            Some(_) => Err(Denial::InsufficientScope),
        }
    }

    /// Compares with all tokens, so that timing does not reveal which one matches.
    fn authorize_by_static_token(&self, given: &str, request: AccessRequest<'_>) -> Result<Grant, Denial> {
        let digest = token_digest(given);
        let mut known = false;
        let mut allowed = false;
        for token in &self.static_tokens {
            let matches = token.has_digest(&digest);
            known |= matches;
            allowed |= matches && token.permissions.allows(request.action, request.stream);
        }
        match (allowed, known) {
            (true, _) => Ok(Grant {
                expires_at: None,
                basis: GrantBasis::StaticToken(digest),
                is_token_based: true,
            }),
            (false, true) => Err(Denial::InsufficientScope),
            (false, false) => Err(Denial::InvalidToken),
        }
    }
}
