//! Asks the gateway that runs on this host whether it is healthy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

use crate::config::Config;

/// Why no healthy gateway was found.
#[derive(Debug, Error)]
pub enum HealthError {
    #[error("cannot create the HTTP client for the health check: {0}")]
    HttpClient(#[from] reqwest::Error),
    /// What each address answered.
    #[error("{}", .0.join("; "))]
    NoHealthyAnswer(Vec<String>),
}

/// How long the gateway may take to answer.
const HEALTH_PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests `/healthz` at the address that a configuration listens on. Containers have no other program that could.
///
/// # Errors
///
/// A [`HealthError`] if no gateway answers there, or one that is not healthy.
pub async fn probe_health(config: &Config) -> Result<(), HealthError> {
    let listen = config.http.listen;
    let addresses: Vec<IpAddr> = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into()],
        // On a host without IPv6, the gateway listens on IPv4 only.
        IpAddr::V6(ip) if ip.is_unspecified() => vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()],
        ip => vec![ip],
    };
    let scheme = config.http.scheme();
    let client = reqwest::Client::builder()
        .timeout(HEALTH_PROBE_TIMEOUT)
        .no_proxy()
        // The certificate is for the public name, not for this address.
        .tls_danger_accept_invalid_certs(true)
        .build()?;
    let mut failures = Vec::new();
    for ip in addresses {
        let url = format!("{scheme}://{}/healthz", SocketAddr::new(ip, listen.port()));
        match client.get(&url).send().await {
            Ok(response) if response.status().is_success() => return Ok(()),
            Ok(response) => failures.push(format!("{url} answered with HTTP status {}", response.status())),
            Err(error) => failures.push(error_with_causes(&error)),
        }
    }
    Err(HealthError::NoHealthyAnswer(failures))
}

/// Returns the text of an error and of all its causes.
fn error_with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
