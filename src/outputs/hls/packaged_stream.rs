//! A packaged stream, as its packaging task and the requests of players share it.

use super::packager::Packager;
use super::playlist::{self, MultivariantRenditions};
use super::rendered_playlist::{PlaylistCache, PlaylistKey, QUERY_PLACEHOLDER, RenderedPlaylist};
use super::rendition::{Msn, Rendition, RenditionRole};
use super::viewers::HlsViewers;
use millstream_core::hub::Hub;
use millstream_core::hub::lock::{LockRank, RankedGuard, RankedMutex};
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::SourceRef;
use millstream_core::media::MediaKind;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long a packager keeps running after the last request.
pub(super) const UNWATCHED_TIMEOUT: Duration = Duration::from_secs(30);

/// The gateway as seen by packagers.
pub trait StreamProvider: Send + Sync {
    /// Returns the hub with all streams.
    fn all_streams_hub(&self) -> &Hub;
    /// Sends a key frame request to a source, if it supports it.
    fn request_key_frame_from_source(&self, source: SourceRef);
    /// Starts an on-demand source; returns whether the stream is live.
    fn ensure_source_started<'a>(&'a self, stream: &'a StreamName) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

/// A packaged stream.
pub struct PackagedStream {
    packager: RankedMutex<Packager>,
    /// Incremented whenever new parts or segments are available.
    pub(super) content_version: watch::Sender<u64>,
    last_request_at: RankedMutex<Instant>,
    /// Time of the last request for transcoded AAC.
    last_aac_request_at: RankedMutex<Option<Instant>>,
    wake_up_spreader: RankedMutex<BlockedRequestWakeUpSpreader>,
    viewers: RankedMutex<HlsViewers>,
    /// The layer that was requested first.
    first_requested_layer: OnceLock<RenditionRole>,
    /// Wakes the packaging task for a poll.
    pub(super) poll_requested: Notify,
    /// Playlists since the last change: all players request the same ones.
    playlist_cache: RankedMutex<PlaylistCache>,
}

/// Spreads the responses to blocked requests over time.
#[derive(Default)]
struct BlockedRequestWakeUpSpreader {
    content_version: u64,
    /// Number of requests woken for this version.
    woken_request_count: u32,
    /// Delay between two of them.
    delay_step: Duration,
}

impl BlockedRequestWakeUpSpreader {
    /// Returns the delay of the next response. `waiting` is the number of blocked requests, of all streams and kinds.
    fn take_next_delay(&mut self, version: u64, waiting: usize) -> Duration {
        // A request that is late for an older version continues the current sequence.
        if version > self.content_version {
            let waiting = u32::try_from(waiting).unwrap_or(u32::MAX).max(1);
            let step = MAX_WAKE_UP_DELAY_STEP.min(MAX_WAKE_UP_DELAY / waiting);
            *self = Self {
                content_version: version,
                woken_request_count: 0,
                delay_step: step,
            };
        }
        self.woken_request_count = self.woken_request_count.saturating_add(1);
        (self.delay_step * self.woken_request_count.saturating_sub(MAX_IMMEDIATE_WAKE_UPS)).min(MAX_WAKE_UP_DELAY)
    }
}

/// All blocked requests become ready when a part is complete. [`MAX_IMMEDIATE_WAKE_UPS`] of them are answered immediately, the
/// others one after the other, the last one after at most [`MAX_WAKE_UP_DELAY`], regardless of their number. A burst for a
/// thousand players would fill the kernel's queues, and delay the packets of WebRTC viewers.
const MAX_IMMEDIATE_WAKE_UPS: u32 = 20;

const MAX_WAKE_UP_DELAY_STEP: Duration = Duration::from_micros(120);

const MAX_WAKE_UP_DELAY: Duration = Duration::from_millis(120);

impl PackagedStream {
    /// A stream without any media yet.
    pub(super) fn new() -> Self {
        Self {
            packager: RankedMutex::new(LockRank::Packager, Packager::default()),
            content_version: watch::Sender::new(0),
            last_request_at: RankedMutex::new(LockRank::PackagerState, Instant::now()),
            last_aac_request_at: RankedMutex::new(LockRank::PackagerState, None),
            wake_up_spreader: RankedMutex::new(LockRank::PackagerState, BlockedRequestWakeUpSpreader::default()),
            viewers: RankedMutex::new(LockRank::PackagerState, HlsViewers::default()),
            first_requested_layer: OnceLock::new(),
            poll_requested: Notify::new(),
            playlist_cache: RankedMutex::new(LockRank::PackagerState, PlaylistCache::default()),
        }
    }

    /// Returns how long to delay the response to a request that waited for a version.
    pub(super) fn take_next_wake_up_delay(&self, version: u64, waiting: usize) -> Duration {
        let mut wake_spread = self.wake_up_spreader.lock();
        wake_spread.take_next_delay(version, waiting)
    }

    /// Whether this is a video layer other than the one that was requested first.
    pub(super) fn differs_from_first_requested_layer(&self, role: RenditionRole) -> bool {
        role.kind() == MediaKind::Video && *self.first_requested_layer.get_or_init(|| role) != role
    }

    /// Wakes blocked requests because new parts or segments are available.
    pub(super) fn notify_waiting_requests(&self) {
        self.content_version.send_modify(|version| *version += 1);
    }

    pub(super) fn lock_packager(&self) -> RankedGuard<'_, Packager> {
        self.packager.lock()
    }

    pub(super) fn lock_viewers(&self) -> RankedGuard<'_, HlsViewers> {
        self.viewers.lock()
    }

    pub(super) fn lock_last_request_at(&self) -> RankedGuard<'_, Instant> {
        self.last_request_at.lock()
    }

    /// Records a request for transcoded AAC.
    pub(super) fn record_aac_request(&self) {
        *self.last_aac_request_at.lock() = Some(Instant::now());
        self.poll_requested.notify_one();
    }

    /// Whether transcoded AAC was requested recently.
    pub(super) fn was_aac_requested_recently(&self) -> bool {
        let last = *self.last_aac_request_at.lock();
        last.is_some_and(|last| last.elapsed() < UNWATCHED_TIMEOUT)
    }

    /// Returns a media playlist. It is rendered once per change, for all requests and their queries.
    pub(super) fn media_playlist(
        &self,
        packager: &Packager,
        role: RenditionRole,
        skip: bool,
        segment_without_counterpart: Option<Msn>,
    ) -> Option<Arc<RenderedPlaylist>> {
        let key = PlaylistKey::Media {
            role,
            skip,
            segment_without_counterpart,
        };
        self.playlist_cache.lock().get_or_render(key, || {
            let others = RenditionRole::ALL_ROLES.into_iter().filter(|other| *other != role);
            let others: Vec<&Rendition> = others
                .filter_map(|other| packager.rendition(other))
                .filter(|other| other.segments().len() > 0)
                .collect();
            let rendition = packager.rendition(role)?;
            Some(playlist::render_media_playlist(
                rendition,
                &others,
                skip,
                segment_without_counterpart,
                QUERY_PLACEHOLDER,
            ))
        })
    }

    /// Returns the multivariant playlist of these renditions. It is rendered once per change, like media playlists.
    pub(super) fn multivariant_playlist(&self, variants: &MultivariantRenditions<'_>) -> Option<Arc<RenderedPlaylist>> {
        let is_listed = |role: RenditionRole| {
            let is_layer = variants.video_layers.iter().any(|(layer, _)| layer.role == role);
            is_layer
                || variants.audio.is_some_and(|audio| audio.role == role)
                || (variants.has_aac_transcode && role == RenditionRole::AacAudio)
        };
        let bits = RenditionRole::ALL_ROLES.into_iter().enumerate();
        let listed_roles = bits.fold(0, |mask, (bit, role)| mask | u8::from(is_listed(role)) << bit);
        let key = PlaylistKey::Multivariant { listed_roles };
        let render = || playlist::render_multivariant_playlist(variants, QUERY_PLACEHOLDER);
        self.playlist_cache.lock().get_or_render(key, render)
    }

    /// Makes the next requests render their playlists anew. Called with the lock of the packager held after each change that
    /// playlists show, so that no request sees a new part and gets an older playlist.
    pub(super) fn discard_rendered_playlists(&self, _changed: &Packager) {
        self.playlist_cache.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_requests_for_a_part_are_answered_one_after_the_other() {
        let mut wake_spread = BlockedRequestWakeUpSpreader::default();
        for (version, waiting) in [(1, 500), (2, 1_000), (3, 8_000)] {
            let waits: Vec<Duration> = (0..waiting)
                .map(|_| wake_spread.take_next_delay(version, waiting))
                .collect();
            assert!(waits.is_sorted());
            assert_eq!(
                waits.iter().filter(|wait| wait.is_zero()).count(),
                MAX_IMMEDIATE_WAKE_UPS as usize
            );
            assert!(
                waits.iter().all(|wait| *wait <= MAX_WAKE_UP_DELAY),
                "no response is delayed to the next part"
            );
            // Timers have a resolution of one millisecond.
            let mut at_one_instant = std::collections::BTreeMap::<_, usize>::new();
            for wait in &waits {
                *at_one_instant.entry(wait.as_millis()).or_default() += 1;
            }
            let most = at_one_instant.into_values().max().unwrap_or_default();
            let even = waiting / MAX_WAKE_UP_DELAY.as_millis() as usize;
            assert!(
                most <= MAX_IMMEDIATE_WAKE_UPS as usize + even + 8,
                "{most} of {waiting}"
            );
        }
        assert_eq!(
            wake_spread.take_next_delay(4, 100),
            Duration::ZERO,
            "the next part starts a new sequence"
        );
        assert_eq!(wake_spread.take_next_delay(3, 100), Duration::ZERO);
        assert_eq!(
            wake_spread.woken_request_count, 2,
            "a late request for the previous part does not restart it"
        );
    }
}
