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

use crate::config::LimitsConfig;
use millstream_core::hub::address::AddressPrefix;

/// Kinds of requests, each with its own shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum WebhookRequestClass {
    /// Publishing with a token.
    Publish,
    /// Anything else with a token.
    OtherWithToken,
    /// Without a token: anybody can send any number of them.
    Anonymous,
    /// With a token that was never valid, from an address that has sent too many wrong ones.
    FromSuspectAddress,
}

/// Why a request is not admitted: too many requests wait, or it has waited for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AdmissionRefused;

/// Admits requests to the webhook.
pub(super) struct WebhookAdmission {
    general_slots: Semaphore,
    /// How many of `general_slots` are for requests that anybody can send: half of them.
    anonymous_or_suspect_slots: Semaphore,
    /// For publishing only.
    publish_slots: Semaphore,
    slots_per_address: usize,
    /// Maximum number of requests that are open or waiting, by class.
    max_requests_by_queue: [usize; WEBHOOK_QUEUE_COUNT],
    /// Maximum number of requests of one address that wait in a lane.
    max_queued_per_address: usize,
    request_counters: Mutex<RequestCounters>,
}

#[derive(Default)]
struct RequestCounters {
    /// Open and waiting requests, by class.
    request_counts_by_queue: [usize; WEBHOOK_QUEUE_COUNT],
    address_shares: HashMap<(AddressPrefix, WebhookRequestClass), PerAddressRequestShare>,
}

/// What one address may use at the same time.
struct PerAddressRequestShare {
    slots: Arc<Semaphore>,
    slot_count: usize,
    /// Open and waiting requests.
    request_count: usize,
}

/// An admitted request. Dropping it admits the next one.
pub(super) struct WebhookRequestPermit<'a> {
    _request_slot: SemaphorePermit<'a>,
    _anonymous_or_suspect_slot: Option<SemaphorePermit<'a>>,
    _address_slots: Vec<OwnedSemaphorePermit>,
    _counted_request: WebhookRequestCountGuard<'a>,
}

/// Number of classes: publishing, other requests with a token, and those that anybody can send. Each has a queue.
const WEBHOOK_QUEUE_COUNT: usize = 3;

impl WebhookRequestClass {
    fn queue_index(self) -> usize {
        match self {
            Self::Publish => 0,
            Self::OtherWithToken => 1,
            Self::Anonymous | Self::FromSuspectAddress => 2,
        }
    }
}

/// Part of the queue that one address may fill.
const QUEUE_TO_ADDRESS_SHARE_RATIO: usize = 8;

/// Open requests of an address that has sent too many wrong tokens.
const MAX_OPEN_REQUESTS_OF_SUSPECT_ADDRESS: usize = 1;

impl WebhookAdmission {
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        let (general, reserved) = (limits.webhook_requests, limits.webhook_reserved);
        Self {
            general_slots: Semaphore::new(general),
            anonymous_or_suspect_slots: Semaphore::new(general.div_ceil(2)),
            publish_slots: Semaphore::new(reserved),
            slots_per_address: limits.webhook_per_address,
            max_requests_by_queue: [
                general + reserved + limits.webhook_queue,
                general + limits.webhook_queue,
                general + limits.webhook_queue,
            ],
            max_queued_per_address: limits.webhook_queue.div_ceil(QUEUE_TO_ADDRESS_SHARE_RATIO),
            request_counters: Mutex::default(),
        }
    }

    /// Waits until a request may be sent.
    ///
    /// # Errors
    ///
    /// [`AdmissionRefused`] if the queue is full, or if it takes longer than `patience`.
    pub(super) async fn wait_for_permit(
        &self,
        kind: WebhookRequestClass,
        address: Option<IpAddr>,
        max_wait: Duration,
    ) -> Result<WebhookRequestPermit<'_>, AdmissionRefused> {
        let (place, shares) = self.reserve_queue_place(kind, address)?;
        let admitted = timeout(max_wait, async {
            let mut share = Vec::new();
            for slots in shares {
                share.extend(slots.acquire_owned().await.ok());
            }
            let unproven = match kind {
                WebhookRequestClass::Anonymous | WebhookRequestClass::FromSuspectAddress => {
                    self.anonymous_or_suspect_slots.acquire().await.ok()
                }
                WebhookRequestClass::Publish | WebhookRequestClass::OtherWithToken => None,
            };
            let slot = if kind == WebhookRequestClass::Publish {
                tokio::select! {
                    biased;
                    slot = self.general_slots.acquire() => slot,
                    slot = self.publish_slots.acquire() => slot,
                }
            } else {
                self.general_slots.acquire().await
            };
            (slot, unproven, share)
        });
        let (slot, unproven, share) = admitted.await.map_err(|_| AdmissionRefused)?;
        Ok(WebhookRequestPermit {
            _request_slot: slot.map_err(|_| AdmissionRefused)?,
            _anonymous_or_suspect_slot: unproven,
            _address_slots: share,
            _counted_request: place,
        })
    }

    /// Takes a place in the queue. Returns it with the slots that the request needs.
    fn reserve_queue_place(
        &self,
        kind: WebhookRequestClass,
        address: Option<IpAddr>,
    ) -> Result<(WebhookRequestCountGuard<'_>, Vec<Arc<Semaphore>>), AdmissionRefused> {
        let size = match kind {
            WebhookRequestClass::Publish | WebhookRequestClass::OtherWithToken | WebhookRequestClass::Anonymous => {
                self.slots_per_address
            }
            WebhookRequestClass::FromSuspectAddress => MAX_OPEN_REQUESTS_OF_SUSPECT_ADDRESS,
        };
        let host = address.map(|address| (AddressPrefix::host_prefix_of(address), size));
        let site = address.and_then(|address| Some((AddressPrefix::site_prefix_of(address)?, 2 * size)));
        let class = kind.queue_index();
        let mut requests = self.lock_request_counters();
        if requests.request_counts_by_queue.get(class) >= self.max_requests_by_queue.get(class) {
            return Err(AdmissionRefused);
        }
        let mut place = WebhookRequestCountGuard {
            admission: self,
            queue_index: class,
            address_share_keys: Vec::new(),
        };
        let mut slots = Vec::new();
        for (key, size) in [host, site].into_iter().flatten() {
            let share = requests
                .address_shares
                .entry((key, kind))
                .or_insert_with(|| PerAddressRequestShare {
                    slots: Arc::new(Semaphore::new(size)),
                    slot_count: size,
                    request_count: 0,
                });
            if share.request_count >= share.slot_count + self.max_queued_per_address {
                // Without the lock, which the place takes when it is dropped.
                drop(requests);
                place.queue_index = usize::MAX;
                return Err(AdmissionRefused);
            }
            share.request_count += 1;
            slots.push(share.slots.clone());
            place.address_share_keys.push((key, kind));
        }
        if let Some(total) = requests.request_counts_by_queue.get_mut(class) {
            *total += 1;
        }
        Ok((place, slots))
    }

    fn lock_request_counters(&self) -> MutexGuard<'_, RequestCounters> {
        self.request_counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the open and waiting requests. Dropping it frees the place.
struct WebhookRequestCountGuard<'a> {
    admission: &'a WebhookAdmission,
    /// Index in [`RequestCounters::request_counts_by_queue`]; out of range if it was not counted there.
    queue_index: usize,
    address_share_keys: Vec<(AddressPrefix, WebhookRequestClass)>,
}

impl Drop for WebhookRequestCountGuard<'_> {
    fn drop(&mut self) {
        let mut requests = self.admission.lock_request_counters();
        if let Some(total) = requests.request_counts_by_queue.get_mut(self.queue_index) {
            *total -= 1;
        }
        for key in &self.address_share_keys {
            if let Some(share) = requests.address_shares.get_mut(key) {
                share.request_count -= 1;
                if share.request_count == 0 {
                    requests.address_shares.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn admission(requests: usize, per_address: usize, reserved: usize, queue: usize) -> WebhookAdmission {
        WebhookAdmission::new(&LimitsConfig {
            webhook_requests: requests,
            webhook_per_address: per_address,
            webhook_reserved: reserved,
            webhook_queue: queue,
            ..LimitsConfig::default()
        })
    }

    async fn enter<'a>(
        admission: &'a WebhookAdmission,
        lane: WebhookRequestClass,
        address: &str,
    ) -> Result<WebhookRequestPermit<'a>, AdmissionRefused> {
        let address = address.parse().expect("an address");
        admission.wait_for_permit(lane, Some(address), PATIENCE).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_waits_for_its_own_requests_only() {
        let admission = admission(10, 2, 0, 80);
        let first = enter(&admission, WebhookRequestClass::OtherWithToken, "192.0.2.1").await;
        let second = enter(&admission, WebhookRequestClass::OtherWithToken, "::ffff:192.0.2.1").await;
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(
            enter(&admission, WebhookRequestClass::OtherWithToken, "192.0.2.1")
                .await
                .err(),
            Some(AdmissionRefused)
        );
        assert!(
            enter(&admission, WebhookRequestClass::Publish, "192.0.2.1")
                .await
                .is_ok(),
            "another lane"
        );
        assert!(
            enter(&admission, WebhookRequestClass::OtherWithToken, "192.0.2.2")
                .await
                .is_ok()
        );
        let (waiting, ()) = tokio::join!(
            enter(&admission, WebhookRequestClass::OtherWithToken, "192.0.2.1"),
            async { drop(first) }
        );
        assert!(waiting.is_ok(), "the next one is admitted");
        drop((waiting, second));
        assert!(
            admission.lock_request_counters().address_shares.is_empty(),
            "nothing is kept of an address"
        );
        assert_eq!(admission.lock_request_counters().request_counts_by_queue, [0, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_has_two_shares() {
        let admission = admission(10, 1, 0, 80);
        let one = enter(&admission, WebhookRequestClass::OtherWithToken, "2001:db8::1").await;
        let two = enter(&admission, WebhookRequestClass::OtherWithToken, "2001:db8:0:1::1").await;
        assert!(one.is_ok() && two.is_ok());
        assert!(
            enter(&admission, WebhookRequestClass::OtherWithToken, "2001:db8:0:2::1")
                .await
                .is_err()
        );
        assert!(
            enter(&admission, WebhookRequestClass::OtherWithToken, "2001:db8:1::1")
                .await
                .is_ok(),
            "another site"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn publishing_has_a_reserve() {
        let admission = admission(3, 1, 2, 80);
        let mut held = Vec::new();
        for n in 0..3 {
            held.push(
                enter(&admission, WebhookRequestClass::OtherWithToken, &format!("192.0.2.{n}"))
                    .await
                    .expect("free"),
            );
        }
        assert!(
            enter(&admission, WebhookRequestClass::OtherWithToken, "192.0.2.10")
                .await
                .is_err()
        );
        for n in 0..2 {
            held.push(
                enter(&admission, WebhookRequestClass::Publish, &format!("192.0.2.{n}"))
                    .await
                    .expect("reserved"),
            );
        }
        assert!(
            enter(&admission, WebhookRequestClass::Publish, "192.0.2.11")
                .await
                .is_err()
        );
        drop(held);
        assert_eq!(admission.lock_request_counters().request_counts_by_queue, [0, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_anybody_can_send_keep_no_token_out() {
        let admission = Arc::new(admission(4, 2, 0, 8));
        let mut held = Vec::new();
        for n in 0..2 {
            let permit = enter(&admission, WebhookRequestClass::Anonymous, &format!("192.0.2.{n}")).await;
            held.push(permit.expect("half of the requests"));
        }
        let flood = (2..100).map(|n| {
            let admission = admission.clone();
            let lane = if n % 2 == 0 {
                WebhookRequestClass::Anonymous
            } else {
                WebhookRequestClass::FromSuspectAddress
            };
            async move { enter(&admission, lane, &format!("192.0.2.{n}")).await.is_ok() }
        });
        let tokens = async {
            tokio::task::yield_now().await;
            for n in 0..50 {
                let permit = enter(&admission, WebhookRequestClass::OtherWithToken, &format!("192.0.2.{n}")).await;
                assert!(permit.is_ok(), "{n}");
            }
        };
        let (admitted, ()) = tokio::join!(futures_util::future::join_all(flood), tokens);
        assert!(!admitted.contains(&true), "nobody gave anything back");
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_for_all_and_for_each_address() {
        let admission = Arc::new(admission(1, 1, 0, 16));
        let _open = enter(&admission, WebhookRequestClass::OtherWithToken, "192.0.2.0")
            .await
            .expect("free");
        let refused_at_once = async |address: String| {
            let waiting = enter(&admission, WebhookRequestClass::OtherWithToken, &address);
            tokio::time::timeout(PATIENCE / 2, waiting).await.is_ok()
        };
        let of_one = futures_util::future::join_all((0..10).map(|_| refused_at_once("192.0.2.1".to_owned()))).await;
        // One would be open, and an eighth of the queue waits.
        assert_eq!(of_one.iter().filter(|refused| **refused).count(), 10 - 3);
        let of_all = (0..30).map(|n| refused_at_once(format!("192.0.2.{}", 100 + n)));
        let of_all = futures_util::future::join_all(of_all).await;
        assert_eq!(of_all.iter().filter(|refused| **refused).count(), 30 - 16);
        assert_eq!(
            admission.lock_request_counters().request_counts_by_queue,
            [0, 1, 0],
            "those that have given up leave no trace"
        );
    }
}
