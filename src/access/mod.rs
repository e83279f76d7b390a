//! Authorization: configured tokens, signed tokens (JWT), and an authorization webhook.
//!
//! ```text
//! AccessRequest (token, action, stream, address) -> fixed tokens -> JWT -> hook -> Grant (with expiry) | Denial
//! ```
//!
//! The first that recognizes the token decides. This folder is a shell: it sends HTTP requests and reads the clock.
//! Tokens are never logged.

use crate::config::Secret;
use millstream_core::hub::name::StreamName;

mod admission;
pub mod credentials;
pub mod hook;
pub mod jwt;
pub mod pattern;
mod request;

use self::credentials::Credentials;
use self::hook::Hook;
use self::jwt::Verifier;
use self::pattern::Pattern;
pub use self::request::{AccessRequest, Action, Denial, FixedToken, Grant, Permissions};
use self::request::{Basis, digest};

/// Decides about access.
pub struct Access {
    fixed: Vec<FixedToken>,
    /// Playback requires no token, because nothing is configured that restricts it.
    open: bool,
    /// Something other than publishing to all streams needs a token.
    restricted: bool,
    verifier: Option<Verifier>,
    hook: Option<Hook>,
    in_query: bool,
}

impl Access {
    /// Builds it from the configured credentials; `publish` is the token for publishing to all streams.
    pub fn new(credentials: Credentials, publish: &Secret) -> Self {
        let all = || vec![Pattern::all()];
        let rights = |publish, api| Permissions {
            publish,
            play: all(),
            api,
        };
        let Credentials {
            play,
            api,
            tokens,
            verifier,
            hook,
            in_query,
            ..
        } = credentials;
        let closed = play.is_some() || tokens.iter().any(|token| !token.rights.play.is_empty());
        let open = !closed && verifier.is_none() && hook.is_none();
        let restricted = !open || !tokens.is_empty();
        let mut fixed = vec![FixedToken::new(publish, rights(all(), false))];
        fixed.extend(play.map(|play| FixedToken::new(&play, rights(Vec::new(), false))));
        fixed.extend(api.map(|api| FixedToken::new(&api, rights(Vec::new(), true))));
        fixed.extend(tokens);
        Self {
            fixed,
            open,
            restricted,
            verifier,
            hook,
            in_query,
        }
    }

    /// Whether `?token=` is accepted instead of the header (RFC 9725 §4.7.1).
    pub fn takes_query(&self) -> bool {
        self.in_query
    }

    /// Whether playback requires no token.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether anything is restricted besides publishing to all streams, which always is.
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// Whether any configured credential can give access to the API.
    pub fn has_api(&self) -> bool {
        self.fixed.iter().any(|token| token.rights.api) || self.verifier.is_some() || self.hook.is_some()
    }

    /// Decides about a request.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub async fn check(&self, request: AccessRequest<'_>) -> Result<Grant, Denial> {
        if request.action == Action::Play && self.open {
            return Ok(Grant::default());
        }
        let Some(token) = request.token else {
            return match &self.hook {
                // The hook may decide by address.
                Some(hook) if hook.takes_anonymous() => hook.check(request).await,
                _ => Err(Denial::Missing),
            };
        };
        let mut denial = Denial::Wrong;
        match self.check_fixed(token, request) {
            Err(Denial::Wrong) => {}
            decided => return decided,
        }
        if let Some(verifier) = &self.verifier
            && jwt::looks_like_one(token)
        {
            match verifier.check(token).await {
                Ok(signed) if signed.rights.allow(request.action, request.stream) => {
                    return Ok(Grant {
                        expires: Some(signed.expires),
                        basis: Basis::Signed(signed),
                        by_token: true,
                    });
                }
                Ok(_) => return Err(Denial::Scope),
                Err(wrong) => denial = wrong,
            }
        }
        match &self.hook {
            Some(hook) => hook.check(request).await,
            None => Err(denial),
        }
    }

    /// Whether a grant that was given by an earlier configuration is valid with this one; `stream` is `None` for the API.
    pub fn still_grants(&self, grant: &Grant, action: Action, stream: Option<&StreamName>) -> bool {
        if action == Action::Play && self.open {
            return true;
        }
        match &grant.basis {
            Basis::Open => false,
            Basis::Token(digest) => {
                let mut tokens = self.fixed.iter().filter(|token| token.digest == *digest);
                tokens.any(|token| token.rights.allow(action, stream))
            }
            Basis::Signed(token) => self
                .verifier
                .as_ref()
                .is_some_and(|verifier| verifier.still_accepts(token)),
            Basis::Webhook(url) => {
                let hook = self.hook.as_ref().filter(|hook| hook.url() == &**url);
                hook.is_some_and(|hook| grant.by_token || hook.takes_anonymous())
            }
        }
    }

    /// Compares with all tokens, so that timing does not reveal which one matches.
    fn check_fixed(&self, given: &str, request: AccessRequest<'_>) -> Result<Grant, Denial> {
        let digest = digest(given);
        let mut known = false;
        let mut allowed = false;
        for token in &self.fixed {
            let matches = token.has_digest(&digest);
            known |= matches;
            allowed |= matches && token.rights.allow(request.action, request.stream);
        }
        match (allowed, known) {
            (true, _) => Ok(Grant {
                expires: None,
                basis: Basis::Token(digest),
                by_token: true,
            }),
            (false, true) => Err(Denial::Scope),
            (false, false) => Err(Denial::Wrong),
        }
    }
}
