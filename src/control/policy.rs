//! How clients are treated, as the configuration says. A reload replaces it while they are connected.

use std::time::Duration;

use crate::config::{Config, CorsOrigins, CounterOffer, Ice, Secret};

/// How clients are treated.
#[derive(Clone, Debug)]
pub struct ClientPolicy {
    pub cors_origins: CorsOrigins,
    pub ice_servers: IceServers,
    /// See [`crate::config::Http::strict_preconditions`].
    pub strict: bool,
    /// See [`crate::config::Http::counter_offer`] and what follows there.
    pub counter_offer: CounterOffer,
    pub legacy_server_offer: bool,
    /// How long a viewer's POST may wait for a publisher.
    pub wait_for_publisher: Duration,
}

impl ClientPolicy {
    /// As the configuration says.
    pub fn new(config: &Config) -> Self {
        Self {
            cors_origins: config.http.cors_origins.clone(),
            ice_servers: (&config.ice).into(),
            strict: config.http.strict_preconditions,
            counter_offer: config.http.counter_offer,
            legacy_server_offer: config.http.legacy_server_offer,
            wait_for_publisher: config.http.wait_for_publisher,
        }
    }
}

/// STUN and TURN servers that peers are told of (RFC 9725 §4.6).
#[derive(Clone, Debug)]
pub struct IceServers {
    /// `stun:`, `turn:` and `turns:` URLs (RFC 7064, RFC 7065).
    pub urls: Vec<String>,
    pub auth: TurnAuth,
    /// How long made credentials are good for.
    pub lifetime: Duration,
}

/// What opens the TURN servers.
#[derive(Clone, Debug)]
pub enum TurnAuth {
    Open,
    /// Credentials are made with a secret that is shared with the server: coturn's `static-auth-secret`.
    Secret(Secret),
    Fixed {
        username: String,
        password: Secret,
    },
}

impl From<&Ice> for IceServers {
    fn from(ice: &Ice) -> Self {
        let auth = match (&ice.turn_user, &ice.turn_secret) {
            (Some(user), _) => TurnAuth::Fixed {
                username: user.username.clone(),
                password: user.password.clone(),
            },
            (None, Some(secret)) => TurnAuth::Secret(secret.clone()),
            (None, None) => TurnAuth::Open,
        };
        Self {
            urls: ice.servers.clone(),
            auth,
            lifetime: ice.turn_lifetime,
        }
    }
}
