//! Who may do what: tokens of the configuration, signed tokens that say it themselves, and a service that is asked.
//!
//! ```text
//! Ask (token, action, stream, address) -> fixed tokens -> JWT -> hook -> Grant (until when) | Denial
//! ```
//!
//! The first that knows the token decides. A shell: it asks others by HTTP and reads the clock. Nothing here is logged
//! that a token could be read from.

use std::net::IpAddr;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::Secret;
use crate::hub::name::StreamName;

pub mod credentials;
pub mod hook;
pub mod jwt;
pub mod pattern;

use self::credentials::Credentials;
use self::hook::Hook;
use self::jwt::Verifier;
use self::pattern::Pattern;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Publish,
    Play,
    /// Use the control API and read the metrics.
    Api,
}

impl Action {
    /// As it is called in claims and in questions to the hook.
    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "play",
            Self::Api => "api",
        }
    }

    /// As a person would say it.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "watch",
            Self::Api => "use the API",
        }
    }
}

/// What a token is good for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Permissions {
    pub publish: Vec<Pattern>,
    pub play: Vec<Pattern>,
    pub api: bool,
}

impl Permissions {
    /// Whether they cover an action on a stream; the API has none.
    pub fn allow(&self, action: Action, stream: Option<&StreamName>) -> bool {
        let any = |patterns: &[Pattern]| {
            stream.is_some_and(|stream| patterns.iter().any(|pattern| pattern.matches(stream.as_str())))
        };
        match action {
            Action::Publish => any(&self.publish),
            Action::Play => any(&self.play),
            Action::Api => self.api,
        }
    }
}

/// A token of the configuration, and what it is good for.
#[derive(Clone)]
pub struct FixedToken {
    /// Its SHA-256: digests are compared, so that the time taken tells neither length nor content.
    digest: [u8; 32],
    rights: Permissions,
}

impl FixedToken {
    fn new(token: &Secret, rights: Permissions) -> Self {
        Self {
            digest: digest(token.reveal()),
            rights,
        }
    }

    /// Whether this is the token with that SHA-256, compared in constant time.
    fn has_digest(&self, digest: &[u8; 32]) -> bool {
        digest.ct_eq(&self.digest).into()
    }
}

/// A request, as far as access is concerned.
#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    pub token: Option<&'a str>,
    pub action: Action,
    /// `None` for the API.
    pub stream: Option<&'a StreamName>,
    pub address: Option<IpAddr>,
    /// Signatures are not checked and nobody is asked: the address has been wrong too often.
    pub cheaply: bool,
}

/// Access was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// When it ends.
    pub expires: Option<SystemTime>,
    /// The SHA-256 of the token of the configuration that it was given for, so that it can be taken back.
    pub fixed: Option<[u8; 32]>,
    /// It was given for a token, and not to everybody.
    pub by_token: bool,
}

/// Access was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// No token came, and one is needed.
    Missing,
    /// Nobody knows the token.
    Wrong,
    /// It was good once.
    Expired,
    /// It is good for something else, or for another stream.
    Scope,
    /// Who would have to be asked does not answer.
    Unavailable,
    /// It would have to be looked at more closely than [`AccessRequest::cheaply`] allows.
    Unjudged,
}

/// What decides.
pub struct Access {
    fixed: Vec<FixedToken>,
    /// Nothing says who may watch, so everybody may.
    open: bool,
    verifier: Option<Verifier>,
    hook: Option<Hook>,
    in_query: bool,
}

impl Access {
    /// Makes it of what the configuration names; `publish` is the token for publishing everywhere.
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
        let mut fixed = vec![FixedToken::new(publish, rights(all(), false))];
        fixed.extend(play.map(|play| FixedToken::new(&play, rights(Vec::new(), false))));
        fixed.extend(api.map(|api| FixedToken::new(&api, rights(Vec::new(), true))));
        fixed.extend(tokens);
        Self {
            fixed,
            open: !closed && verifier.is_none() && hook.is_none(),
            verifier,
            hook,
            in_query,
        }
    }

    /// Whether `?token=` stands for the header (RFC 9725 §4.7.1).
    pub fn takes_query(&self) -> bool {
        self.in_query
    }

    /// Whether everybody may watch.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether anything could give access to the API.
    pub fn has_api(&self) -> bool {
        self.fixed.iter().any(|token| token.rights.api) || self.verifier.is_some() || self.hook.is_some()
    }

    /// Decides.
    ///
    /// # Errors
    ///
    /// A [`Denial`].
    pub async fn check(&self, ask: AccessRequest<'_>) -> Result<Grant, Denial> {
        if ask.action == Action::Play && self.open {
            return Ok(Grant::default());
        }
        let Some(token) = ask.token else {
            return match &self.hook {
                // It may know the address.
                Some(hook) if !ask.cheaply => hook.ask(ask).await,
                _ => Err(Denial::Missing),
            };
        };
        let mut denial = Denial::Wrong;
        match self.check_fixed(token, ask) {
            Err(Denial::Wrong) => {}
            decided => return decided,
        }
        if let Some(verifier) = &self.verifier
            && jwt::looks_like_one(token)
        {
            match verifier.check(token, ask.cheaply).await {
                Ok((rights, expires)) if rights.allow(ask.action, ask.stream) => {
                    return Ok(Grant {
                        expires: Some(expires),
                        fixed: None,
                        by_token: true,
                    });
                }
                Ok(_) => return Err(Denial::Scope),
                Err(wrong) => denial = wrong,
            }
        }
        match &self.hook {
            Some(_) if ask.cheaply => Err(Denial::Unjudged),
            Some(hook) => hook.ask(ask).await,
            None => Err(denial),
        }
    }

    /// Whether what a token of the configuration gave is still given.
    pub fn still_grants(&self, grant: &Grant, action: Action, stream: &StreamName) -> bool {
        let Some(digest) = grant.fixed else { return true };
        let mut tokens = self.fixed.iter().filter(|token| token.digest == digest);
        tokens.any(|token| token.rights.allow(action, Some(stream)))
    }

    /// Compares with all of them, so that the time taken does not tell which one it is.
    fn check_fixed(&self, given: &str, ask: AccessRequest<'_>) -> Result<Grant, Denial> {
        let digest = digest(given);
        let mut known = false;
        let mut allowed = false;
        for token in &self.fixed {
            let matches = token.has_digest(&digest);
            known |= matches;
            allowed |= matches && token.rights.allow(ask.action, ask.stream);
        }
        match (allowed, known) {
            (true, _) => Ok(Grant {
                expires: None,
                fixed: Some(digest),
                by_token: true,
            }),
            (false, true) => Err(Denial::Scope),
            (false, false) => Err(Denial::Wrong),
        }
    }
}

/// What stands for a token in memory.
fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[expect(clippy::disallowed_methods, reason = "tokens end at a time of the wall clock")]
fn wall() -> SystemTime {
    SystemTime::now()
}
