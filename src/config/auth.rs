//! The section `auth`: tokens and other credentials. The folder `access` builds the authorization from it.

use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use super::section::section;
use super::value_parsers;
use super::value_types::ApiScope;

section! {
    /// Authorization.
    pub struct AuthConfig("auth") {
        /// Bearer token for publishing. It also permits watching.
        #[key("publish_token", Live, "a new one at each start", "value_parsers::parse_secret", secret)]
        pub publish_token: Option<Secret> = None,

        /// Bearer token for watching. Without it and without another credential for watching, everyone may watch.
        #[key("play_token", Live, "none: open", "value_parsers::parse_secret", secret)]
        pub play_token: Option<Secret> = None,

        /// Bearer token for talking to all cameras that have a loudspeaker. It also permits watching.
        #[key("talk_token", Live, "none", "value_parsers::parse_secret", secret)]
        pub talk_token: Option<Secret> = None,

        /// Bearer token for the API and `/metrics`. Without it the API is disabled, and `/metrics` is public unless
        /// watching is restricted.
        #[key("api_token", Live, "none", "value_parsers::parse_secret", secret)]
        pub api_token: Option<Secret> = None,

        /// File that contains only `auth.publish_token`.
        #[key("publish_token_file", Live, "none", "value_parsers::parse_path")]
        pub publish_token_file: Option<PathBuf> = None,

        /// File that contains only `auth.play_token`.
        #[key("play_token_file", Live, "none", "value_parsers::parse_path")]
        pub play_token_file: Option<PathBuf> = None,

        /// File that contains only `auth.talk_token`.
        #[key("talk_token_file", Live, "none", "value_parsers::parse_path")]
        pub talk_token_file: Option<PathBuf> = None,

        /// File that contains only `auth.api_token`.
        #[key("api_token_file", Live, "none", "value_parsers::parse_path")]
        pub api_token_file: Option<PathBuf> = None,

        /// Tokens for particular streams: see below.
        #[key("tokens", Live, "none", "value_parsers::reject_value_outside_file", secret)]
        pub tokens: Vec<TokenConfig> = Vec::new(),

        /// Shared secret of signed tokens (HS256), at least 16 characters.
        #[key("jwt_secret", Live, "none", "value_parsers::parse_jwt_secret", secret)]
        pub jwt_secret: Option<Secret> = None,

        /// Files with public keys of signed tokens: PEM (RS256, ES256) or a JWK set.
        #[key("jwt_key_files", Live, "none", "value_parsers::parse_paths")]
        pub jwt_key_files: Vec<PathBuf> = Vec::new(),

        /// URL of a JWK set with public keys of signed tokens; fetched every ten minutes.
        #[key("jwks_url", Live, "none", "value_parsers::parse_http_url")]
        pub jwks_url: Option<String> = None,

        /// Required `iss` of signed tokens, a string. Tokens without it are rejected.
        #[key("jwt_issuer", Live, "any", "value_parsers::parse_short_string")]
        pub jwt_issuer: Option<String> = None,

        /// Required `aud` of signed tokens, alone or in a list. Tokens without it are rejected.
        #[key("jwt_audience", Live, "any", "value_parsers::parse_short_string")]
        pub jwt_audience: Option<String> = None,

        /// URL of an authorization webhook, your service that permits or denies requests; see below.
        #[key("webhook_url", Live, "none", "value_parsers::parse_http_url")]
        pub webhook_url: Option<String> = None,

        /// Timeout of the authorization webhook in seconds, 1 to 30. Without an answer the request is rejected.
        #[key("webhook_timeout", Live, "`3`", "value_parsers::parse_whole_seconds::<1, 30, _, _>")]
        pub webhook_timeout: Duration = Duration::from_secs(3),

        /// Ask the webhook about requests without a token too. With `false` they are denied at once.
        #[key("webhook_anonymous", Live, "`true`", "value_parsers::parse_bool")]
        pub webhook_anonymous: bool = true,

        /// Accept `?token=` in URLs, for clients that cannot send a header. Proxies may log URLs.
        #[key("token_in_query", Live, "`false`", "value_parsers::parse_bool")]
        pub token_in_query: bool = false,
    }
}

section! {
    /// A token for particular streams.
    pub struct TokenConfig("auth.tokens[]") {
        /// The token.
        #[key("token", Live, "one of `token`, `token_file` and `token_env`", "value_parsers::parse_trimmed_secret", secret)]
        pub token: Option<Secret> = None,

        /// File that contains only the token.
        #[key("token_file", Live, "one of `token`, `token_file` and `token_env`", "value_parsers::parse_path")]
        pub token_file: Option<PathBuf> = None,

        /// Environment variable that contains the token.
        #[key("token_env", Live, "one of `token`, `token_file` and `token_env`", "value_parsers::parse_short_string")]
        pub token_env: Option<String> = None,

        /// Streams that the token may publish: a pattern such as `studio/*`, or a list.
        #[key("publish", Live, "none", "value_parsers::parse_stream_name_patterns")]
        pub publish: Vec<String> = Vec::new(),

        /// Streams that the token may play: a pattern, or a list.
        #[key("play", Live, "none", "value_parsers::parse_stream_name_patterns")]
        pub play: Vec<String> = Vec::new(),

        /// Streams whose cameras the token may talk to: a pattern, or a list.
        #[key("talk", Live, "none", "value_parsers::parse_stream_name_patterns")]
        pub talk: Vec<String> = Vec::new(),

        /// Right to use the API: `"read"` for `GET` requests and `/metrics`, `true` for everything, also to issue tokens for
        /// any stream.
        #[key("api", Live, "`false`", "value_parsers::parse_api_scope")]
        pub api: ApiScope = ApiScope::None,
    }
}

impl AuthConfig {
    /// Returns whether a token for publishing is configured. Otherwise one is generated at start.
    pub fn is_publish_token_or_file_set(&self) -> bool {
        self.publish_token.is_some() || self.publish_token_file.is_some()
    }

    /// Returns whether a token for watching all streams is configured.
    pub fn is_play_token_or_file_set(&self) -> bool {
        self.play_token.is_some() || self.play_token_file.is_some()
    }
}
