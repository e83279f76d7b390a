//! What is asked, and what is granted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::pattern::Pattern;
use crate::config::Secret;
use millstream_core::hub::name::StreamName;

/// The action that a request needs permission for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Publish,
    Play,
    /// Use the control API and read the metrics.
    Api,
}

impl Action {
    /// Returns the name used in claims and in requests to the hook.
    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "play",
            Self::Api => "api",
        }
    }

    /// Returns the verb used in error texts.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "watch",
            Self::Api => "use the API",
        }
    }
}

/// The permissions of a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Permissions {
    pub publish: Vec<Pattern>,
    pub play: Vec<Pattern>,
    pub api: bool,
}

impl Permissions {
    /// Whether they cover an action on a stream; `stream` is `None` for the API.
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

/// A configured token and its permissions.
#[derive(Clone)]
pub struct FixedToken {
    /// SHA-256 of the token. Comparing digests reveals neither length nor content by timing.
    pub(super) digest: [u8; 32],
    pub(super) rights: Permissions,
}

impl FixedToken {
    pub(super) fn new(token: &Secret, rights: Permissions) -> Self {
        Self {
            digest: digest(token.reveal()),
            rights,
        }
    }

    /// Whether this is the token with that SHA-256, compared in constant time.
    pub(super) fn has_digest(&self, digest: &[u8; 32]) -> bool {
        digest.ct_eq(&self.digest).into()
    }
}

/// The parts of a request that authorization depends on.
#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    pub token: Option<&'a str>,
    pub action: Action,
    /// `None` for the API.
    pub stream: Option<&'a StreamName>,
    pub address: Option<IpAddr>,
    /// Too many tokens from the address were wrong.
    pub is_suspect: bool,
}

/// Granted access.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// Expiry.
    pub expires: Option<SystemTime>,
    /// What it was given for, so that it can be revoked.
    pub(super) basis: Basis,
    /// It was given for a token, and not to everybody.
    pub by_token: bool,
}

impl Grant {
    /// Whether it has expired.
    pub fn is_expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= wall())
    }

    /// Whether everybody has it, because playback is open.
    pub fn is_open(&self) -> bool {
        self.basis == Basis::Open
    }
}

/// What a grant was given for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Basis {
    /// Playback is open to everybody.
    #[default]
    Open,
    /// A configured token, by its SHA-256.
    Token([u8; 32]),
    Signed(Arc<SignedToken>),
    /// The webhook with this URL.
    Webhook(Arc<str>),
}

/// A verified token: its permissions, and what its validity depends on.
#[derive(Debug, PartialEq)]
pub(super) struct SignedToken {
    pub(super) rights: Permissions,
    pub(super) expires: SystemTime,
    /// Digest of the key.
    pub(super) key: [u8; 32],
    /// URL of the key set that the key is from.
    pub(super) set: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) audiences: Vec<String>,
}

/// Denied access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A token is required, but none was sent.
    Missing,
    /// The token is unknown or invalid.
    Wrong,
    /// The token has expired.
    Expired,
    /// The token does not permit this action or stream.
    Scope,
    /// The hook or the key set is unavailable.
    Unavailable,
    /// Too many requests wait for the hook.
    Busy,
    /// As [`Self::Busy`], because too many tokens from the address were wrong.
    Suspect,
}

/// Returns the digest that represents a token in memory.
pub(super) fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[expect(clippy::disallowed_methods, reason = "tokens expire by the wall clock")]
pub(super) fn wall() -> SystemTime {
    SystemTime::now()
}
