//! Types of values that several keys or other folders use.

use super::secret::Secret;

/// Origins of web pages that may use the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    Any,
    /// In the form that browsers send: `https://example.org`, without a path or trailing slash.
    Listed(Vec<String>),
}

/// A user of a TURN server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnUser {
    pub username: String,
    pub password: Secret,
}
