//! What the paths of viewers carried, by their address: a session that comes from there within ten minutes begins with a
//! layer that fits, instead of the lowest one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::hub::address::AddressPrefix;

/// Bitrates that paths carried, by IPv4 address or IPv6 /64.
#[derive(Debug, Default)]
pub struct PathCapacities {
    by_host: Mutex<HashMap<AddressPrefix, MeasuredCapacity>>,
}

#[derive(Clone, Copy, Debug)]
struct MeasuredCapacity {
    /// Bits per second.
    bitrate: u32,
    measured_at: Instant,
}

/// How long a measurement counts.
const CAPACITY_LIFETIME: Duration = Duration::from_secs(600);

/// Hosts that are remembered; one more replaces the one that was measured the longest time ago.
const MAX_REMEMBERED_HOSTS: usize = 4_096;

impl PathCapacities {
    /// Records what the path to a host carries now, in bits per second. The last measurement counts: viewers of one host
    /// have one path.
    pub fn record(&self, now: Instant, host: IpAddr, bitrate: u32) {
        let host = AddressPrefix::host_prefix_of(host);
        let mut by_host = self.lock_hosts();
        if by_host.len() >= MAX_REMEMBERED_HOSTS && !by_host.contains_key(&host) {
            by_host.retain(|_, capacity| capacity.is_recent(now));
            let oldest = by_host.iter().min_by_key(|(_, capacity)| capacity.measured_at);
            if let Some(oldest) = oldest
                .map(|(host, _)| *host)
                .filter(|_| by_host.len() >= MAX_REMEMBERED_HOSTS)
            {
                by_host.remove(&oldest);
            }
        }
        let capacity = MeasuredCapacity {
            bitrate,
            measured_at: now,
        };
        by_host.insert(host, capacity);
    }

    /// Returns what the path to a host carried within the last ten minutes, in bits per second.
    pub fn recent_bitrate(&self, now: Instant, host: IpAddr) -> Option<u32> {
        let by_host = self.lock_hosts();
        let capacity = by_host.get(&AddressPrefix::host_prefix_of(host))?;
        capacity.is_recent(now).then_some(capacity.bitrate)
    }

    fn lock_hosts(&self) -> MutexGuard<'_, HashMap<AddressPrefix, MeasuredCapacity>> {
        self.by_host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MeasuredCapacity {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.measured_at) < CAPACITY_LIFETIME
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn host(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn the_last_measurement_of_a_host_counts_for_ten_minutes() {
        let (start, capacities) = (Instant::now(), PathCapacities::default());
        assert_eq!(capacities.recent_bitrate(start, host(1)), None);
        capacities.record(start, host(1), 5_000_000);
        capacities.record(start + Duration::from_secs(1), host(1), 800_000);
        let after = |seconds: u64| capacities.recent_bitrate(start + Duration::from_secs(seconds), host(1));
        assert_eq!((after(2), after(600), after(601)), (Some(800_000), Some(800_000), None));
        assert_eq!(capacities.recent_bitrate(start, host(2)), None);
        let (subnet, same, other) = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1");
        let parsed = |text: &str| text.parse().expect("an address");
        capacities.record(start, parsed(subnet), 7);
        assert_eq!(capacities.recent_bitrate(start, parsed(same)), Some(7));
        assert_eq!(capacities.recent_bitrate(start, parsed(other)), None);
    }

    #[test]
    fn as_many_hosts_are_remembered_as_there_is_room_for_the_newest_ones() {
        let (start, capacities) = (Instant::now(), PathCapacities::default());
        let at = |number: u32| start + Duration::from_millis(u64::from(number));
        let count = MAX_REMEMBERED_HOSTS as u32 + 100;
        (0..count).for_each(|number| capacities.record(at(number), host(number), number));
        assert_eq!(capacities.lock_hosts().len(), MAX_REMEMBERED_HOSTS);
        assert_eq!(capacities.recent_bitrate(at(count), host(99)), None);
        assert_eq!(capacities.recent_bitrate(at(count), host(100)), Some(100));
        // All of them are old: none is kept for a new one.
        capacities.record(start + Duration::from_secs(3_600), host(count), 1);
        assert_eq!(capacities.lock_hosts().len(), 1);
    }
}
