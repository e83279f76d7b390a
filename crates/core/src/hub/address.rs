//! What one host may hold of something that there is only so much of, by its address.
//!
//! An IPv4 address is one host, or all hosts behind one NAT. An IPv6 host takes any address of its /64, and a site is
//! assigned up to a /48 of them (RFC 6177), so limits go by these prefixes and not by the address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// A host or a site, as far as its address tells: what limits are kept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressPrefix {
    network: IpAddr,
    /// Bits of the prefix.
    prefix_length: u32,
}

/// Prefix of an IPv6 subnet, whose hosts choose the rest by themselves (RFC 4291 §2.5.1).
const IPV6_SUBNET_PREFIX_LENGTH: u32 = 64;

/// Longest prefix that a site is usually assigned (RFC 6177).
const IPV6_SITE_PREFIX_LENGTH: u32 = 48;

impl AddressPrefix {
    /// The IPv4 address, or the /64 of an IPv6 address. A mapped IPv4 address is the IPv4 address.
    pub fn host_prefix_of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(ip) => Self {
                network: ip.into(),
                prefix_length: 32,
            },
            IpAddr::V6(ip) => Self::from_ipv6(ip, IPV6_SUBNET_PREFIX_LENGTH),
        }
    }

    /// The /48 of an IPv6 address; `None` for IPv4, whose sites are unknown.
    pub fn site_prefix_of(address: IpAddr) -> Option<Self> {
        match address.to_canonical() {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(Self::from_ipv6(ip, IPV6_SITE_PREFIX_LENGTH)),
        }
    }

    /// Whether an address belongs to it.
    pub fn contains(self, address: IpAddr) -> bool {
        Self::host_prefix_of(address) == self || Self::site_prefix_of(address) == Some(self)
    }

    fn from_ipv6(ip: Ipv6Addr, length: u32) -> Self {
        let host_bits = u128::MAX.checked_shr(length).unwrap_or(0);
        Self {
            network: Ipv6Addr::from_bits(ip.to_bits() & !host_bits).into(),
            prefix_length: length,
        }
    }
}

/// Counts what each host and each site holds, within a limit. Its size follows from the number of what is held.
#[derive(Debug)]
pub struct PerAddressBudget {
    limit_per_host: usize,
    used_by_prefix: HashMap<AddressPrefix, usize>,
}

/// What a site may hold, in multiples of what a host may.
const SITE_TO_HOST_LIMIT_RATIO: usize = 2;

impl PerAddressBudget {
    /// A budget of so much for each IPv4 address and each IPv6 /64; an IPv6 /48 has twice as much.
    pub fn new(per_host: usize) -> Self {
        Self {
            limit_per_host: per_host,
            used_by_prefix: HashMap::new(),
        }
    }

    /// The host or the site of an address, if it holds as much as it may.
    pub fn prefix_at_limit(&self, address: IpAddr) -> Option<AddressPrefix> {
        let is_used_up =
            |(key, limit): &(AddressPrefix, usize)| self.used_by_prefix.get(key).is_some_and(|held| held >= limit);
        let mut levels = self.host_and_site_limits(address).into_iter().flatten();
        levels.find(is_used_up).map(|(key, _)| key)
    }

    /// Takes one out of the budget of an address.
    ///
    /// # Errors
    ///
    /// What [`Self::prefix_at_limit`] says; nothing was taken.
    pub fn try_acquire(&mut self, address: IpAddr) -> Result<(), AddressPrefix> {
        if let Some(key) = self.prefix_at_limit(address) {
            return Err(key);
        }
        for (key, _) in self.host_and_site_limits(address).into_iter().flatten() {
            *self.used_by_prefix.entry(key).or_default() += 1;
        }
        Ok(())
    }

    /// Gives back what [`Self::try_acquire`] took.
    pub fn release(&mut self, address: IpAddr) {
        for (key, _) in self.host_and_site_limits(address).into_iter().flatten() {
            if let Some(held) = self.used_by_prefix.get_mut(&key) {
                *held = held.saturating_sub(1);
                if *held == 0 {
                    self.used_by_prefix.remove(&key);
                }
            }
        }
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.used_by_prefix.is_empty()
    }

    fn host_and_site_limits(&self, address: IpAddr) -> [Option<(AddressPrefix, usize)>; 2] {
        let site = AddressPrefix::site_prefix_of(address)
            .map(|site| (site, self.limit_per_host.saturating_mul(SITE_TO_HOST_LIMIT_RATIO)));
        [
            Some((AddressPrefix::host_prefix_of(address), self.limit_per_host)),
            site,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn an_ipv4_address_is_a_host_and_an_ipv6_host_is_its_subnet() {
        assert_eq!(
            AddressPrefix::host_prefix_of(ip("192.0.2.1")),
            AddressPrefix::host_prefix_of(ip("::ffff:192.0.2.1"))
        );
        assert_ne!(
            AddressPrefix::host_prefix_of(ip("192.0.2.1")),
            AddressPrefix::host_prefix_of(ip("192.0.2.2"))
        );
        let host = AddressPrefix::host_prefix_of(ip("2001:db8:1:2::3"));
        assert!(host.contains(ip("2001:db8:1:2:ffff::1")) && !host.contains(ip("2001:db8:1:3::3")));
        let site = AddressPrefix::site_prefix_of(ip("2001:db8:1:2::3")).expect("IPv6");
        assert!(site.contains(ip("2001:db8:1:ffff::1")) && !site.contains(ip("2001:db8:2:2::3")));
        assert_eq!(AddressPrefix::site_prefix_of(ip("192.0.2.1")), None);
        assert_ne!(
            AddressPrefix::host_prefix_of(ip("2001:db8:1::")),
            AddressPrefix::site_prefix_of(ip("2001:db8:1::")).expect("IPv6")
        );
    }

    #[test]
    fn a_host_gets_its_share_and_no_other_address_of_the_subnet_gets_more() {
        let mut budget = PerAddressBudget::new(2);
        for address in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(budget.try_acquire(ip(address)), Ok(()));
            assert_eq!(budget.try_acquire(ip(address)), Ok(()));
            assert_eq!(
                budget.try_acquire(ip(address)),
                Err(AddressPrefix::host_prefix_of(ip(address)))
            );
        }
        assert_eq!(budget.try_acquire(ip("192.0.2.2")), Ok(()));
        assert_eq!(
            budget.try_acquire(ip("2001:db8::ffff")),
            Err(AddressPrefix::host_prefix_of(ip("2001:db8::1")))
        );
        budget.release(ip("2001:db8::1"));
        assert_eq!(budget.try_acquire(ip("2001:db8::ffff")), Ok(()));
    }

    #[test]
    fn a_site_has_no_more_than_two_hosts_whatever_its_subnets() {
        let mut budget = PerAddressBudget::new(2);
        let subnets = (0..100).map(|n| ip(&format!("2001:db8:1:{n:x}::1")));
        let taken = subnets.filter(|address| budget.try_acquire(*address).is_ok()).count();
        assert_eq!(taken, 4);
        let full = budget.try_acquire(ip("2001:db8:1:ff::1")).expect_err("used up");
        assert_eq!(Some(full), AddressPrefix::site_prefix_of(ip("2001:db8:1::")));
        assert_eq!(budget.try_acquire(ip("2001:db8:2::1")), Ok(()));
    }

    #[test]
    fn nothing_is_kept_of_who_gave_everything_back() {
        let mut budget = PerAddressBudget::new(1);
        for address in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(budget.try_acquire(ip(address)), Ok(()));
            assert!(budget.try_acquire(ip(address)).is_err(), "a refusal takes nothing");
            budget.release(ip(address));
        }
        assert!(budget.is_empty());
    }
}
