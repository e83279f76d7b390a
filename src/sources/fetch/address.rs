//! Restricts the addresses of sources, so that a source cannot lead the gateway into other networks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::pipeline::parameter::TargetHost;
use millstream_worker_runtime::addresses::is_link_local;

/// The networks of `sources.allow`; empty allows all.
#[derive(Clone, Debug, Default)]
pub struct AllowedNetworks(Arc<[IpNet]>);

/// Why an address is not connected to. Shows only the host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    #[error("cannot resolve the host name {0}")]
    Unresolved(String),
    #[error("the address {0} is not in a network of `sources.allow`")]
    OutsideAllowedNetworks(IpAddr),
    #[error(
        "the HLS origin refers to {0}, which is not a public address; to permit it, set `sources.allow` to the networks of \
         all sources: addresses in other networks are refused then"
    )]
    NotPublic(IpAddr),
    #[error(
        "the address {0} is not accepted as that of a source: it is link-local, multicast, broadcast or unspecified; to permit it, \
         set `sources.allow` to the networks of all sources: addresses in other networks are refused then"
    )]
    NotServerAddress(IpAddr),
}

/// Who supplied an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOrigin {
    /// The configuration.
    Operator,
    /// A server, by redirect or in a playlist. It must not refer to networks that only the gateway can reach.
    OriginServer,
}

const DNS_RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

impl AllowedNetworks {
    /// Allows only these networks; an empty list allows all.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into())
    }

    /// Returns whether some addresses are not allowed.
    pub fn has_network_restriction(&self) -> bool {
        !self.0.is_empty()
    }

    /// Returns the networks as text, such as `10.0.0.0/8`.
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.is_empty() || self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether an address may be connected to.
    ///
    /// # Errors
    ///
    /// An [`AddressError`].
    pub fn require_permitted_address(&self, address: IpAddr, origin: AddressOrigin) -> Result<(), AddressError> {
        let address = address.to_canonical();
        if !self.0.is_empty() {
            return if self.allows(address) {
                Ok(())
            } else {
                Err(AddressError::OutsideAllowedNetworks(address))
            };
        }
        match origin {
            // Cloud metadata services return credentials at link-local addresses.
            AddressOrigin::Operator if cannot_be_server_address(address) => {
                Err(AddressError::NotServerAddress(address))
            }
            AddressOrigin::OriginServer if cannot_be_server_address(address) || !is_public(address) => {
                Err(AddressError::NotPublic(address))
            }
            AddressOrigin::Operator | AddressOrigin::OriginServer => Ok(()),
        }
    }

    /// Resolves a host of the configuration. Returns its addresses that may be connected to, for the caller to connect to
    /// these: another resolution may have another result.
    ///
    /// # Errors
    ///
    /// An [`AddressError`] if there is none.
    pub async fn resolve_permitted_addresses(&self, host: &TargetHost) -> Result<Vec<IpAddr>, AddressError> {
        let mut error = AddressError::Unresolved(host.to_string());
        let mut permitted = resolve_target_host(host).await?;
        permitted.retain(
            |address| match self.require_permitted_address(*address, AddressOrigin::Operator) {
                Ok(()) => true,
                Err(refused) => {
                    error = refused;
                    false
                }
            },
        );
        if permitted.is_empty() {
            Err(error)
        } else {
            Ok(permitted)
        }
    }

    /// Resolves a host of the configuration, for what resolves it once more before it connects.
    ///
    /// # Errors
    ///
    /// An [`AddressError`] if any of its addresses may not be connected to.
    pub async fn require_all_addresses_permitted(&self, host: &TargetHost) -> Result<(), AddressError> {
        let addresses = resolve_target_host(host).await?;
        addresses
            .into_iter()
            .try_for_each(|address| self.require_permitted_address(address, AddressOrigin::Operator))
    }
}

async fn resolve_target_host(host: &TargetHost) -> Result<Vec<IpAddr>, AddressError> {
    match host {
        TargetHost::Address(address) => Ok(vec![*address]),
        TargetHost::Name(name) => {
            let unresolved = || AddressError::Unresolved(name.clone());
            let found = timeout(DNS_RESOLVE_TIMEOUT, lookup_host((name.as_str(), 0))).await;
            let found = found.map_err(|_| unresolved())?.map_err(|_| unresolved())?;
            Ok(found.map(|address| address.ip()).collect())
        }
    }
}

fn cannot_be_server_address(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    address.is_unspecified() || address.is_multicast() || is_broadcast || is_link_local(address)
}

/// Whether an address is public according to the IANA registries of special-purpose addresses.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            let is_special = matches!(
                (a, b, c),
                (0 | 10 | 127, ..)
                    | (100, 64..=127, _)
                    | (169, 254, _)
                    | (172, 16..=31, _)
                    | (192, 0, 0 | 2)
                    | (192, 168, _)
                    | (198, 18..=19, _)
                    | (198, 51, 100)
                    | (203, 0, 113)
                    | (224..=255, ..)
            );
            !is_special
        }
        IpAddr::V6(address) => {
            let [a, b, ..] = address.segments();
            // Global unicast without Teredo and 6to4, which embed IPv4 addresses, and without documentation.
            let is_special = a == 0x2002 || (a == 0x2001 && (b == 0 || b == 0xdb8));
            (0x2000..=0x3fff).contains(&a) && !is_special
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_outside_the_list_are_refused() {
        let allowed = AllowedNetworks::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        let check = async |address: &str| {
            allowed
                .resolve_permitted_addresses(&TargetHost::Address(address.parse().expect("an address")))
                .await
                .map(|_| ())
        };
        assert_eq!(check("10.1.2.3").await, Ok(()));
        assert_eq!(check("::ffff:10.1.2.3").await, Ok(()));
        for other in ["127.0.0.1", "169.254.169.254", "::1", "11.0.0.1"] {
            assert!(
                matches!(check(other).await, Err(AddressError::OutsideAllowedNetworks(_))),
                "{other}"
            );
        }
        let localhost = TargetHost::Name("localhost".to_owned());
        for refused in [
            allowed.resolve_permitted_addresses(&localhost).await.map(|_| ()),
            allowed.require_all_addresses_permitted(&localhost).await,
        ] {
            assert!(matches!(refused, Err(AddressError::OutsideAllowedNetworks(_))));
        }
        let all = AllowedNetworks::default();
        let found = all
            .resolve_permitted_addresses(&localhost)
            .await
            .expect("all are allowed");
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
        assert_eq!(all.require_all_addresses_permitted(&localhost).await, Ok(()));
        let link_local = TargetHost::Address([169, 254, 169, 254].into());
        for refused in [
            all.resolve_permitted_addresses(&link_local).await.map(|_| ()),
            all.require_all_addresses_permitted(&link_local).await,
        ] {
            assert!(matches!(refused, Err(AddressError::NotServerAddress(_))));
        }
        let listed = AllowedNetworks::new(vec!["169.254.0.0/16".parse().expect("a network")]);
        assert!(listed.resolve_permitted_addresses(&link_local).await.is_ok());
    }

    #[test]
    fn an_origin_leads_to_public_addresses_only() {
        let permit = |address: &str, origin| {
            AllowedNetworks::default().require_permitted_address(address.parse().expect("an address"), origin)
        };
        for public in ["93.184.216.34", "172.32.0.1", "2606:4700::1", "::ffff:93.184.216.34"] {
            assert_eq!(permit(public, AddressOrigin::OriginServer), Ok(()), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(
                matches!(
                    permit(private, AddressOrigin::OriginServer),
                    Err(AddressError::NotPublic(_))
                ),
                "{private}"
            );
        }
        for own in ["127.0.0.1", "192.168.1.1", "fd00::1"] {
            assert_eq!(permit(own, AddressOrigin::Operator), Ok(()), "{own}");
        }
        for none in [
            "169.254.169.254",
            "0.0.0.0",
            "fe80::1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fd00:ec2::254",
        ] {
            assert!(
                matches!(
                    permit(none, AddressOrigin::Operator),
                    Err(AddressError::NotServerAddress(_))
                ),
                "{none}"
            );
        }
        let listed = AllowedNetworks::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        for origin in [AddressOrigin::Operator, AddressOrigin::OriginServer] {
            assert_eq!(
                listed.require_permitted_address("10.1.1.1".parse().expect("an address"), origin),
                Ok(())
            );
            assert!(
                listed
                    .require_permitted_address("93.184.216.34".parse().expect("an address"), origin)
                    .is_err()
            );
        }
    }
}
