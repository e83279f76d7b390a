//! The section `auth`: what opens what. The folder `access` makes of it what decides.

use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use super::section::section;
use super::values;

section! {
    /// Who may do what.
    pub struct Auth("auth") {
        /// Bearer token for publishing; it is also good for watching.
        #[key("publish_token", Live, "made at start", "values::secret", secret)]
        pub publish_token: Option<Secret> = None,

        /// Bearer token for watching. Without one, and without any other access key of this section, everybody may watch.
        #[key("play_token", Live, "none: open", "values::secret", secret)]
        pub play_token: Option<Secret> = None,

        /// Bearer token for the API and `/metrics`. Without one the API is closed and `/metrics` is open.
        #[key("api_token", Live, "none", "values::secret", secret)]
        pub api_token: Option<Secret> = None,

        /// File that holds `auth.publish_token` and nothing else.
        #[key("publish_token_file", Live, "none", "values::path")]
        pub publish_token_file: Option<PathBuf> = None,

        /// File that holds `auth.play_token` and nothing else.
        #[key("play_token_file", Live, "none", "values::path")]
        pub play_token_file: Option<PathBuf> = None,

        /// File that holds `auth.api_token` and nothing else.
        #[key("api_token_file", Live, "none", "values::path")]
        pub api_token_file: Option<PathBuf> = None,

        /// Tokens for some streams: see below.
        #[key("tokens", Live, "none", "values::in_file_only", secret)]
        pub tokens: Vec<TokenConfig> = Vec::new(),

        /// Shared secret of signed tokens (HS256), at least 16 characters.
        #[key("jwt_secret", Live, "none", "values::signing_secret", secret)]
        pub jwt_secret: Option<Secret> = None,

        /// Files with public keys of signed tokens: PEM (RS256, ES256), or a set in JSON.
        #[key("jwt_key_files", Live, "none", "values::paths")]
        pub jwt_key_files: Vec<PathBuf> = Vec::new(),

        /// Address of a set of public keys (JWKS); fetched again every ten minutes.
        #[key("jwks_url", Live, "none", "values::web_address")]
        pub jwks_url: Option<String> = None,

        /// Required `iss` of signed tokens.
        #[key("jwt_issuer", Live, "any", "values::text")]
        pub jwt_issuer: Option<String> = None,

        /// Required `aud` of signed tokens.
        #[key("jwt_audience", Live, "any", "values::text")]
        pub jwt_audience: Option<String> = None,

        /// Authorization webhook: a service of yours that is asked who may do what; see below.
        #[key("webhook_url", Live, "none", "values::web_address")]
        pub webhook_url: Option<String> = None,

        /// Seconds that the authorization webhook may take, 1 to 30; no answer refuses.
        #[key("webhook_timeout", Live, "`3`", "values::seconds::<1, 30, _, _>")]
        pub webhook_timeout: Duration = Duration::from_secs(3),

        /// Accept `?token=` in a URL, for clients that cannot send a header; proxies log URLs.
        #[key("token_in_query", Live, "`false`", "values::flag")]
        pub token_in_query: bool = false,
    }
}

section! {
    /// A token for some streams.
    pub struct TokenConfig("auth.tokens[]") {
        /// The token.
        #[key("token", Live, "one of the three", "values::trimmed_secret", secret)]
        pub token: Option<Secret> = None,

        /// File that holds the token and nothing else.
        #[key("token_file", Live, "one of the three", "values::path")]
        pub token_file: Option<PathBuf> = None,

        /// Environment variable that holds the token.
        #[key("token_env", Live, "one of the three", "values::text")]
        pub token_env: Option<String> = None,

        /// Streams that it may publish: a pattern such as `studio/*`, or a list.
        #[key("publish", Live, "none", "values::patterns")]
        pub publish: Vec<String> = Vec::new(),

        /// Streams that it may play: a pattern, or a list.
        #[key("play", Live, "none", "values::patterns")]
        pub play: Vec<String> = Vec::new(),

        /// Whether it opens the API and `/metrics`.
        #[key("api", Live, "`false`", "values::flag")]
        pub api: bool = false,
    }
}

impl Auth {
    /// Whether a token for publishing is configured; otherwise one is made at start.
    pub fn has_publish_token(&self) -> bool {
        self.publish_token.is_some() || self.publish_token_file.is_some()
    }

    /// Whether a token for watching everything is configured.
    pub fn has_play_token(&self) -> bool {
        self.play_token.is_some() || self.play_token_file.is_some()
    }
}
