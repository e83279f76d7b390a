//! Admission of requests to the authorization webhook: how many may be open at the same time, and who waits.
//!
//! Every address (IPv6: /64, and twice as much for a /48) has a share of the open requests, so that the others are not
//! affected by what one address does. Requests above it wait in the order in which they came. Publishing has shares of
//! its own and a reserve: it is not kept out by requests for playback.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::config::Limits;
use millstream_core::hub::address::AddressKey;

/// Kinds of requests, each with its own shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Publishing with a token.
    Publish,
    /// Anything else with a token.
    Token,
    /// Without a token: anybody can send any number of them.
    Anonymous,
    /// With a token that was never valid, from an address that has sent too many wrong ones.
    Suspect,
}

/// Why a request is not admitted: too many requests wait, or it has waited for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Admits requests to the webhook.
pub(super) struct Admission {
    general: Semaphore,
    /// How many of `general` are for requests that anybody can send: half of them.
    unproven: Semaphore,
    /// For publishing only.
    reserved: Semaphore,
    per_address: usize,
    /// Maximum number of requests that are open or waiting, by class.
    most: [usize; CLASSES],
    /// Maximum number of requests of one address that wait in a lane.
    queue_per_address: usize,
    requests: Mutex<Requests>,
}

#[derive(Default)]
struct Requests {
    /// Open and waiting requests, by class.
    total: [usize; CLASSES],
    shares: HashMap<(AddressKey, Lane), Share>,
}

/// What one address may use at the same time.
struct Share {
    slots: Arc<Semaphore>,
    size: usize,
    /// Open and waiting requests.
    requests: usize,
}

/// An admitted request. Dropping it admits the next one.
pub(super) struct Permit<'a> {
    _slot: SemaphorePermit<'a>,
    _unproven: Option<SemaphorePermit<'a>>,
    _share: Vec<OwnedSemaphorePermit>,
    _place: Place<'a>,
}

/// Number of classes: publishing, other requests with a token, and those that anybody can send. Each has a queue.
const CLASSES: usize = 3;

impl Lane {
    fn class(self) -> usize {
        match self {
            Self::Publish => 0,
            Self::Token => 1,
            Self::Anonymous | Self::Suspect => 2,
        }
    }
}

/// Part of the queue that one address may fill.
const QUEUE_PARTS: usize = 8;

/// Open requests of an address that has sent too many wrong tokens.
const MAX_REQUESTS_OF_SUSPECT: usize = 1;

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        let (general, reserved) = (limits.webhook_requests, limits.webhook_reserved);
        Self {
            general: Semaphore::new(general),
            unproven: Semaphore::new(general.div_ceil(2)),
            reserved: Semaphore::new(reserved),
            per_address: limits.webhook_per_address,
            most: [
                general + reserved + limits.webhook_queue,
                general + limits.webhook_queue,
                general + limits.webhook_queue,
            ],
            queue_per_address: limits.webhook_queue.div_ceil(QUEUE_PARTS),
            requests: Mutex::default(),
        }
    }

    /// Waits until a request may be sent.
    ///
    /// # Errors
    ///
    /// [`Full`] if the queue is full, or if it takes longer than `patience`.
    pub(super) async fn enter(
        &self,
        lane: Lane,
        address: Option<IpAddr>,
        patience: Duration,
    ) -> Result<Permit<'_>, Full> {
        let (place, shares) = self.queue(lane, address)?;
        let admitted = timeout(patience, async {
            let mut share = Vec::new();
            for slots in shares {
                share.extend(slots.acquire_owned().await.ok());
            }
            let unproven = match lane {
                Lane::Anonymous | Lane::Suspect => self.unproven.acquire().await.ok(),
                Lane::Publish | Lane::Token => None,
            };
            let slot = if lane == Lane::Publish {
                tokio::select! {
                    biased;
                    slot = self.general.acquire() => slot,
                    slot = self.reserved.acquire() => slot,
                }
            } else {
                self.general.acquire().await
            };
            (slot, unproven, share)
        });
        let (slot, unproven, share) = admitted.await.map_err(|_| Full)?;
        Ok(Permit {
            _slot: slot.map_err(|_| Full)?,
            _unproven: unproven,
            _share: share,
            _place: place,
        })
    }

    /// Takes a place in the queue. Returns it with the slots that the request needs.
    fn queue(&self, lane: Lane, address: Option<IpAddr>) -> Result<(Place<'_>, Vec<Arc<Semaphore>>), Full> {
        let size = match lane {
            Lane::Publish | Lane::Token | Lane::Anonymous => self.per_address,
            Lane::Suspect => MAX_REQUESTS_OF_SUSPECT,
        };
        let host = address.map(|address| (AddressKey::host(address), size));
        let site = address.and_then(|address| Some((AddressKey::site(address)?, 2 * size)));
        let class = lane.class();
        let mut requests = self.lock();
        if requests.total.get(class) >= self.most.get(class) {
            return Err(Full);
        }
        let mut place = Place {
            admission: self,
            class,
            shares: Vec::new(),
        };
        let mut slots = Vec::new();
        for (key, size) in [host, site].into_iter().flatten() {
            let share = requests.shares.entry((key, lane)).or_insert_with(|| Share {
                slots: Arc::new(Semaphore::new(size)),
                size,
                requests: 0,
            });
            if share.requests >= share.size + self.queue_per_address {
                // Without the lock, which the place takes when it is dropped.
                drop(requests);
                place.class = usize::MAX;
                return Err(Full);
            }
            share.requests += 1;
            slots.push(share.slots.clone());
            place.shares.push((key, lane));
        }
        if let Some(total) = requests.total.get_mut(class) {
            *total += 1;
        }
        Ok((place, slots))
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the open and waiting requests. Dropping it frees the place.
struct Place<'a> {
    admission: &'a Admission,
    /// Index in [`Requests::total`]; out of range if it was not counted there.
    class: usize,
    shares: Vec<(AddressKey, Lane)>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut requests = self.admission.lock();
        if let Some(total) = requests.total.get_mut(self.class) {
            *total -= 1;
        }
        for key in &self.shares {
            if let Some(share) = requests.shares.get_mut(key) {
                share.requests -= 1;
                if share.requests == 0 {
                    requests.shares.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn admission(requests: usize, per_address: usize, reserved: usize, queue: usize) -> Admission {
        Admission::new(&Limits {
            webhook_requests: requests,
            webhook_per_address: per_address,
            webhook_reserved: reserved,
            webhook_queue: queue,
            ..Limits::default()
        })
    }

    async fn enter<'a>(admission: &'a Admission, lane: Lane, address: &str) -> Result<Permit<'a>, Full> {
        let address = address.parse().expect("an address");
        admission.enter(lane, Some(address), PATIENCE).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_waits_for_its_own_requests_only() {
        let admission = admission(10, 2, 0, 80);
        let first = enter(&admission, Lane::Token, "192.0.2.1").await;
        let second = enter(&admission, Lane::Token, "::ffff:192.0.2.1").await;
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(enter(&admission, Lane::Token, "192.0.2.1").await.err(), Some(Full));
        assert!(
            enter(&admission, Lane::Publish, "192.0.2.1").await.is_ok(),
            "another lane"
        );
        assert!(enter(&admission, Lane::Token, "192.0.2.2").await.is_ok());
        let (waiting, ()) = tokio::join!(enter(&admission, Lane::Token, "192.0.2.1"), async { drop(first) });
        assert!(waiting.is_ok(), "the next one is admitted");
        drop((waiting, second));
        assert!(admission.lock().shares.is_empty(), "nothing is kept of an address");
        assert_eq!(admission.lock().total, [0, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_has_two_shares() {
        let admission = admission(10, 1, 0, 80);
        let one = enter(&admission, Lane::Token, "2001:db8::1").await;
        let two = enter(&admission, Lane::Token, "2001:db8:0:1::1").await;
        assert!(one.is_ok() && two.is_ok());
        assert!(enter(&admission, Lane::Token, "2001:db8:0:2::1").await.is_err());
        assert!(
            enter(&admission, Lane::Token, "2001:db8:1::1").await.is_ok(),
            "another site"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn publishing_has_a_reserve() {
        let admission = admission(3, 1, 2, 80);
        let mut held = Vec::new();
        for n in 0..3 {
            held.push(
                enter(&admission, Lane::Token, &format!("192.0.2.{n}"))
                    .await
                    .expect("free"),
            );
        }
        assert!(enter(&admission, Lane::Token, "192.0.2.10").await.is_err());
        for n in 0..2 {
            held.push(
                enter(&admission, Lane::Publish, &format!("192.0.2.{n}"))
                    .await
                    .expect("reserved"),
            );
        }
        assert!(enter(&admission, Lane::Publish, "192.0.2.11").await.is_err());
        drop(held);
        assert_eq!(admission.lock().total, [0, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_anybody_can_send_keep_no_token_out() {
        let admission = Arc::new(admission(4, 2, 0, 8));
        let mut held = Vec::new();
        for n in 0..2 {
            let permit = enter(&admission, Lane::Anonymous, &format!("192.0.2.{n}")).await;
            held.push(permit.expect("half of the requests"));
        }
        let flood = (2..100).map(|n| {
            let admission = admission.clone();
            let lane = if n % 2 == 0 { Lane::Anonymous } else { Lane::Suspect };
            async move { enter(&admission, lane, &format!("192.0.2.{n}")).await.is_ok() }
        });
        let tokens = async {
            tokio::task::yield_now().await;
            for n in 0..50 {
                let permit = enter(&admission, Lane::Token, &format!("192.0.2.{n}")).await;
                assert!(permit.is_ok(), "{n}");
            }
        };
        let (admitted, ()) = tokio::join!(futures_util::future::join_all(flood), tokens);
        assert!(!admitted.contains(&true), "nobody gave anything back");
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_for_all_and_for_each_address() {
        let admission = Arc::new(admission(1, 1, 0, 16));
        let _open = enter(&admission, Lane::Token, "192.0.2.0").await.expect("free");
        let refused_at_once = async |address: String| {
            let waiting = enter(&admission, Lane::Token, &address);
            tokio::time::timeout(PATIENCE / 2, waiting).await.is_ok()
        };
        let of_one = futures_util::future::join_all((0..10).map(|_| refused_at_once("192.0.2.1".to_owned()))).await;
        // One would be open, and an eighth of the queue waits.
        assert_eq!(of_one.iter().filter(|refused| **refused).count(), 10 - 3);
        let of_all = (0..30).map(|n| refused_at_once(format!("192.0.2.{}", 100 + n)));
        let of_all = futures_util::future::join_all(of_all).await;
        assert_eq!(of_all.iter().filter(|refused| **refused).count(), 30 - 16);
        assert_eq!(
            admission.lock().total,
            [0, 1, 0],
            "those that have given up leave no trace"
        );
    }
}
