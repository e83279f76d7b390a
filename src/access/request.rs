//! What is asked, and what is granted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::pattern::StreamNamePattern;
use crate::config::{ApiScope, Secret};
use millstream_core::hub::name::{SourceName, StreamName};

/// The action that a request needs permission for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessAction {
    Publish,
    Play,
    /// Send audio to the camera of a stream.
    Talk,
    /// Read through the control API, or read the metrics.
    ApiRead,
    /// Make changes through the control API.
    ApiFull,
}

impl AccessAction {
    /// Returns the name used in claims and in requests to the hook.
    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "play",
            Self::Talk => "talk",
            Self::ApiRead | Self::ApiFull => "api",
        }
    }

    /// Returns the scope of the API that is needed, as in requests to the hook; `None` for other actions.
    pub fn api_scope_name(self) -> Option<&'static str> {
        match self {
            Self::Publish | Self::Play | Self::Talk => None,
            Self::ApiRead => Some(ApiScope::READ_SCOPE_NAME),
            Self::ApiFull => Some("full"),
        }
    }

    /// Returns the error_text_verb used in error texts.
    pub fn error_text_verb(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "watch",
            Self::Talk => "talk to the camera",
            Self::ApiRead => "use the API",
            Self::ApiFull => "make changes through the API",
        }
    }
}

/// The permissions of a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Permissions {
    pub publish: Vec<StreamNamePattern>,
    pub play: Vec<StreamNamePattern>,
    pub talk: Vec<StreamNamePattern>,
    pub api: ApiScope,
}

impl Permissions {
    /// Whether they cover an action on a stream; `stream` is `None` for the API.
    pub fn allows(&self, action: AccessAction, stream: Option<&StreamName>) -> bool {
        let any = |patterns: &[StreamNamePattern]| {
            stream.is_some_and(|stream| patterns.iter().any(|pattern| pattern.matches(stream.as_str())))
        };
        match action {
            AccessAction::Publish => any(&self.publish),
            AccessAction::Play => any(&self.play),
            AccessAction::Talk => any(&self.talk),
            AccessAction::ApiRead => self.api >= ApiScope::Read,
            AccessAction::ApiFull => self.api == ApiScope::Full,
        }
    }
}

/// A configured token and its permissions.
#[derive(Clone)]
pub struct StaticToken {
    /// Path of its key or table, by which the log and the API name it.
    pub(super) config_path: String,
    /// SHA-256 of the token. Comparing digests reveals neither length nor content by timing.
    pub(super) digest: [u8; 32],
    pub(super) permissions: Permissions,
}

impl StaticToken {
    pub(super) fn new(config_path: impl Into<String>, token: &Secret, rights: Permissions) -> Self {
        Self {
            config_path: config_path.into(),
            digest: token_digest(token.reveal()),
            permissions: rights,
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
    pub action: AccessAction,
    /// `None` for the API.
    pub stream: Option<&'a StreamName>,
    /// The source that a publisher feeds, if the stream has several. The webhook is told of it; tokens are for streams.
    pub source: Option<&'a SourceName>,
    pub address: Option<IpAddr>,
    /// Too many tokens from the address were wrong.
    pub is_from_suspect_address: bool,
}

impl<'a> AccessRequest<'a> {
    /// Makes a request without a token, of nobody in particular.
    pub fn new(action: AccessAction, stream: Option<&'a StreamName>) -> Self {
        Self {
            token: None,
            action,
            stream,
            source: None,
            address: None,
            is_from_suspect_address: false,
        }
    }
}

/// Granted access.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// Expiry.
    pub expires_at: Option<SystemTime>,
    /// What it was given for, so that it can be revoked.
    pub(super) basis: GrantBasis,
    /// It was given for a token, and not to everybody.
    pub is_token_based: bool,
}

impl Grant {
    /// Whether it has expired.
    pub fn is_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= wall_clock_now())
    }

    /// Whether everybody has it, because playback is open.
    pub fn is_open_to_all(&self) -> bool {
        self.basis == GrantBasis::OpenPlayback
    }
}

/// What a grant was given for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum GrantBasis {
    /// Playback is open to everybody.
    #[default]
    OpenPlayback,
    /// A configured token, by its SHA-256.
    StaticToken([u8; 32]),
    /// A token that the API has issued, by its SHA-256.
    IssuedToken([u8; 32]),
    VerifiedJwt(Arc<VerifiedJwt>),
    /// The webhook with this URL.
    Webhook(Arc<str>),
}

/// A verified token: its permissions, and what its validity depends on.
#[derive(Debug, PartialEq)]
pub(super) struct VerifiedJwt {
    pub(super) permissions: Permissions,
    pub(super) expires_at: SystemTime,
    /// Digest of the key.
    pub(super) key_digest: [u8; 32],
    /// URL of the key set that the key is from.
    pub(super) key_set_url: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) audiences: Vec<String>,
    /// Who it was made for (`sub`).
    pub(super) subject: Option<String>,
}

/// Denied access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A token is required, but none was sent.
    MissingToken,
    /// The token is unknown or invalid.
    InvalidToken,
    /// The token has expired.
    ExpiredToken,
    /// The token does not permit this action or stream.
    InsufficientScope,
    /// The hook or the key set is unavailable.
    AuthorizationUnavailable,
    /// Too many requests wait for the hook.
    WebhookOverloaded,
    /// As [`Self::WebhookOverloaded`], because too many tokens from the address were wrong.
    TooManyInvalidTokens,
}

/// Returns the digest that represents a token in memory.
pub(super) fn token_digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[expect(clippy::disallowed_methods, reason = "tokens expire by the wall clock")]
pub(super) fn wall_clock_now() -> SystemTime {
    SystemTime::now()
}
