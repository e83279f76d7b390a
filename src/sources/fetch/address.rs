//! Where sources may be: an operator can keep the gateway from being led to other networks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::pipeline::value::TargetHost;

/// Networks that sources may be in; empty allows all.
#[derive(Clone, Debug, Default)]
pub struct Allowed(Arc<[IpNet]>);

/// Why a source is not connected to. Only the host is shown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    #[error("the host {0} cannot be found")]
    Unresolved(String),
    #[error("{0} is in none of the networks of `sources.allow`")]
    Forbidden(IpAddr),
}

const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

impl Allowed {
    /// Allows these networks only; an empty list allows all.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into())
    }

    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.is_empty() || self.0.iter().any(|network| network.contains(&address))
    }

    /// Resolves a host and checks all of its addresses.
    ///
    /// # Errors
    ///
    /// An [`AddressError`]; nothing was connected to.
    pub async fn check(&self, host: &TargetHost) -> Result<(), AddressError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let addresses: Vec<IpAddr> = match host {
            TargetHost::Address(address) => vec![*address],
            TargetHost::Name(name) => {
                let unresolved = || AddressError::Unresolved(name.clone());
                let found = timeout(RESOLVE_LIMIT, lookup_host((name.as_str(), 0))).await;
                let found = found.map_err(|_| unresolved())?.map_err(|_| unresolved())?;
                found.map(|address| address.ip()).collect()
            }
        };
        match addresses.into_iter().find(|address| !self.allows(*address)) {
            Some(address) => Err(AddressError::Forbidden(address)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_outside_the_list_are_refused() {
        let allowed = Allowed::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        let check = async |address: &str| {
            allowed
                .check(&TargetHost::Address(address.parse().expect("an address")))
                .await
        };
        assert_eq!(check("10.1.2.3").await, Ok(()));
        assert_eq!(check("::ffff:10.1.2.3").await, Ok(()));
        for other in ["127.0.0.1", "169.254.169.254", "::1", "11.0.0.1"] {
            assert!(matches!(check(other).await, Err(AddressError::Forbidden(_))), "{other}");
        }
        let localhost = TargetHost::Name("localhost".to_owned());
        assert!(matches!(
            allowed.check(&localhost).await,
            Err(AddressError::Forbidden(_))
        ));
        assert_eq!(Allowed::default().check(&localhost).await, Ok(()));
    }
}
