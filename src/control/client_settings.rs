//! Settings that apply to clients. A reload of the configuration replaces them while clients are connected.

use std::time::Duration;

use crate::config::{AllowedOrigins, Config, CounterOfferMode, IceConfig, Secret};

/// Settings that apply to clients.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    pub cors_origins: AllowedOrigins,
    /// See [`crate::config::HttpConfig::embed_origins`].
    pub embed_origins: AllowedOrigins,
    pub ice_servers: IceServers,
    /// See [`crate::config::HttpConfig::strict_preconditions`].
    pub strict_preconditions: bool,
    /// See [`crate::config::HttpConfig::counter_offer`].
    pub counter_offer: CounterOfferMode,
    /// See [`crate::config::HttpConfig::legacy_server_offer`].
    pub legacy_server_offer: bool,
    /// Maximum time that a viewer's POST waits for a publisher.
    pub max_publisher_wait: Duration,
    /// Delay of a viewer above which an alarm is raised; `None` for no alarms.
    pub delay_alarm: Option<Duration>,
}

impl ClientSettings {
    /// Takes the settings from the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            cors_origins: config.http.cors_origins.clone(),
            embed_origins: config.http.embed_origins.clone(),
            ice_servers: (&config.ice).into(),
            strict_preconditions: config.http.strict_preconditions,
            counter_offer: config.http.counter_offer,
            legacy_server_offer: config.http.legacy_server_offer,
            max_publisher_wait: config.http.wait_for_publisher,
            delay_alarm: Some(config.quality.delay_alarm).filter(|delay| !delay.is_zero()),
        }
    }
}

/// STUN and TURN servers that are announced to peers (RFC 9725 §4.6).
#[derive(Clone, Debug)]
pub struct IceServers {
    /// `stun:`, `turn:` and `turns:` URLs (RFC 7064, RFC 7065).
    pub urls: Vec<String>,
    pub turn_auth: TurnAuth,
    /// Lifetime of generated credentials.
    pub credential_lifetime: Duration,
}

/// Authentication at the TURN servers.
#[derive(Clone, Debug)]
pub enum TurnAuth {
    /// No credentials.
    NoCredentials,
    /// Credentials are derived from a secret that is shared with the server: coturn's `static-auth-secret`.
    SharedSecret(Secret),
    /// The same credentials for all peers.
    StaticCredentials { username: String, password: Secret },
}

impl From<&IceConfig> for IceServers {
    fn from(ice: &IceConfig) -> Self {
        let auth = match (&ice.turn_user, &ice.turn_secret) {
            (Some(user), _) => TurnAuth::StaticCredentials {
                username: user.username.clone(),
                password: user.password.clone(),
            },
            (None, Some(secret)) => TurnAuth::SharedSecret(secret.clone()),
            (None, None) => TurnAuth::NoCredentials,
        };
        Self {
            urls: ice.servers.clone(),
            turn_auth: auth,
            credential_lifetime: ice.turn_lifetime,
        }
    }
}
