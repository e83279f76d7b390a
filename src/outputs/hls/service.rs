//! Packagers that run while they have requests, and blocking playlist and part requests. Not sans-I/O: uses the clocks
//! of tokio and of the system.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::packaged_stream::{PackagedStream, StreamProvider, UNWATCHED_TIMEOUT};
use super::packager::Packager;
use super::packaging::{expected_renditions, package_stream, unsupported_video_codec};
use super::playlist::{DeliveryDirectives, MultivariantRenditions};
use super::rendition::{Rendition, RenditionRole};
use super::viewers::HlsPlayerId;
use millstream_core::hub::lock::{LockRank, RankedGuard, RankedMutex};
use millstream_core::hub::name::StreamName;
use millstream_core::media::Codec;

/// All packaged streams.
pub struct HlsService {
    provider: Arc<dyn StreamProvider>,
    packaged_streams: RankedMutex<HashMap<StreamName, Arc<PackagedStream>>>,
    /// Number of blocked requests.
    blocked_request_count: AtomicUsize,
}

/// Reason why a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HlsRequestError {
    /// The stream does not exist, or has nothing that HLS players support.
    NotLive,
    /// The requested part or segment is not available any more.
    Gone,
    /// The requested segment is too far in the future (rfc8216bis §6.2.5.2).
    TooFarAhead,
    /// It did not become available in time, or too many requests are blocked.
    Busy,
}

/// Maximum number of blocked requests.
const MAX_BLOCKED_REQUESTS: usize = 8_192;

/// Maximum number of packaged streams.
const MAX_PACKAGED_STREAMS: usize = 1_000;

/// How long a request may block: three times the usual segment duration, and a margin.
const BLOCKING_REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// How long the multivariant playlist waits for missing renditions.
const MISSING_RENDITION_TIMEOUT: Duration = Duration::from_secs(3);

impl HlsService {
    pub fn new(plane: Arc<dyn StreamProvider>) -> Arc<Self> {
        Arc::new(Self {
            provider: plane,
            packaged_streams: RankedMutex::new(LockRank::PackagerMap, HashMap::new()),
            blocked_request_count: AtomicUsize::new(0),
        })
    }

    /// Returns the packager of a stream, starting it if necessary.
    ///
    /// # Errors
    ///
    /// [`HlsRequestError::NotLive`], or [`HlsRequestError::Busy`] with too many streams.
    pub async fn get_or_start_packaging(
        self: &Arc<Self>,
        name: &StreamName,
    ) -> Result<Arc<PackagedStream>, HlsRequestError> {
        if let Some(live) = self.lock_packaged_streams().get(name) {
            *live.lock_last_request_at() = Instant::now();
            return Ok(live.clone());
        }
        if !self.provider.ensure_source_started(name).await {
            return Err(HlsRequestError::NotLive);
        }
        let mut streams = self.lock_packaged_streams();
        if streams.len() >= MAX_PACKAGED_STREAMS {
            return Err(HlsRequestError::Busy);
        }
        let live = streams.entry(name.clone()).or_insert_with(|| {
            let live = Arc::new(PackagedStream::new());
            info!(stream = %name, "HLS packaging started");
            let (service, stream) = (self.clone(), name.clone());
            let remove_if_idle = move || service.remove_if_unwatched(&stream);
            tokio::spawn(package_stream(
                remove_if_idle,
                self.provider.clone(),
                name.clone(),
                live.clone(),
            ));
            live
        });
        Ok(live.clone())
    }

    /// Number of streams that are being packaged.
    pub fn packaged_stream_count(&self) -> usize {
        self.lock_packaged_streams().len()
    }

    /// Number of players that requested a playlist of the stream within the last twelve seconds.
    pub fn viewer_count(&self, name: &StreamName) -> usize {
        let live = self.lock_packaged_streams().get(name).cloned();
        live.map_or(0, |live| {
            live.lock_viewers().count_active_players(Instant::now().into_std())
        })
    }

    /// Number of blocked requests.
    pub fn blocked_request_count(&self) -> usize {
        self.blocked_request_count.load(Ordering::Acquire)
    }

    /// Removes a stream without recent requests; returns whether it is removed.
    pub(super) fn remove_if_unwatched(&self, name: &StreamName) -> bool {
        let mut streams = self.lock_packaged_streams();
        let is_idle = streams.get(name).is_none_or(|live| {
            let idle = live.lock_last_request_at().elapsed() >= UNWATCHED_TIMEOUT;
            idle && live.content_version.receiver_count() == 0
        });
        if is_idle {
            streams.remove(name);
        }
        is_idle
    }

    /// Blocks until `find` returns a value.
    async fn block_until_available<T>(
        &self,
        live: &PackagedStream,
        deadline: Instant,
        mut find: impl FnMut(&Packager) -> Option<T>,
    ) -> Result<T, HlsRequestError> {
        let mut version = live.content_version.subscribe();
        if let Some(found) = find(&live.lock_packager()) {
            return Ok(found);
        }
        let _blocked = BlockedRequestGuard::new(&self.blocked_request_count).ok_or(HlsRequestError::Busy)?;
        loop {
            match timeout_at(deadline, version.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(HlsRequestError::NotLive),
                Err(_) => return Err(HlsRequestError::Busy),
            }
            let current = *version.borrow_and_update();
            let found = find(&live.lock_packager());
            if let Some(found) = found {
                sleep(live.take_next_wake_up_delay(current, self.blocked_request_count())).await;
                return Ok(found);
            }
        }
    }

    /// Returns the multivariant playlist. Without `can_transcode_to_aac` it lists no transcoded AAC.
    ///
    /// # Errors
    ///
    /// A [`HlsRequestError`].
    pub async fn multivariant_playlist(
        &self,
        name: &StreamName,
        live: &PackagedStream,
        query: &str,
        can_transcode_to_aac: bool,
    ) -> Result<Bytes, HlsRequestError> {
        let started = Instant::now();
        let expected = expected_renditions(self.provider.all_streams_hub(), name);
        let has = |rendition: Option<&Rendition>| rendition.is_some_and(|rendition| rendition.total_bytes() > 0);
        let rendered = self.block_until_available(live, started + BLOCKING_REQUEST_TIMEOUT, |packager| {
            let (video, audio) = (
                packager.rendition(RenditionRole::Video),
                packager.rendition(RenditionRole::Audio),
            );
            let (has_video, has_audio) = (has(video), has(audio));
            let late = started.elapsed() >= MISSING_RENDITION_TIMEOUT;
            let layers = RenditionRole::VIDEO_LAYERS
                .into_iter()
                .filter(|role| has(packager.rendition(*role)));
            let has_layers = layers.count() >= expected.layer_count;
            let complete = has_layers
                && (has_video || !expected.has_video)
                && (has_audio || !expected.has_audio)
                && (has_video || has_audio);
            let enough = complete || (late && (has_video || has_audio));
            enough.then(|| {
                let layers = RenditionRole::VIDEO_LAYERS.into_iter().filter_map(|role| {
                    let rendition = packager.rendition(role).filter(|found| has(Some(found)))?;
                    Some((rendition, packager.resolution_and_frame_rate(role)))
                });
                let variants = MultivariantRenditions {
                    video_layers: layers.collect(),
                    audio: audio.filter(|_| has_audio),
                    has_aac_transcode: expected.has_aac_transcode && can_transcode_to_aac,
                };
                live.multivariant_playlist(&variants)
            })?
        });
        Ok(rendered.await?.with_query(query))
    }

    /// Returns the codec of the video if the stream has video that cannot be packaged, transcoded or not.
    pub fn unsupported_video_codec(&self, name: &StreamName) -> Option<Codec> {
        unsupported_video_codec(self.provider.all_streams_hub(), name)
    }

    /// Returns a media playlist, blocking until it contains the requested segment or part.
    ///
    /// # Errors
    ///
    /// A [`HlsRequestError`].
    pub async fn serve_media_playlist_and_record_viewer(
        &self,
        live: &PackagedStream,
        role: RenditionRole,
        directives: DeliveryDirectives,
        player: HlsPlayerId,
        query: &str,
    ) -> Result<Bytes, HlsRequestError> {
        if role == RenditionRole::AacAudio {
            live.record_aac_request();
        }
        if let (Some(msn), Some(rendition)) = (directives.msn, live.lock_packager().rendition(role))
            && msn > rendition.next_part_position().0 + 2
        {
            return Err(HlsRequestError::TooFarAhead);
        }
        let deadline = Instant::now() + BLOCKING_REQUEST_TIMEOUT;
        let rendered = self.block_until_available(live, deadline, |packager| {
            let rendition = packager.rendition(role)?;
            let (next, _) = rendition.next_part_position();
            let first = rendition.segments().next().filter(|first| !first.parts.is_empty())?;
            // A layer that starts late is held back until this much of it is available: its first segment may be
            // complete by then.
            let is_short = !first.is_complete && first.duration() < MISSING_RENDITION_TIMEOUT;
            let is_available = match (directives.msn, directives.part) {
                // A rendition added to a running presentation must not start with a gap, which plain players do not
                // handle.
                (None, _) if role == RenditionRole::AacAudio => first.is_complete,
                // hls.js treats the gap as an error of the layer that it switches to, and keeps the old layer.
                _ if live.differs_from_first_requested_layer(role) && is_short => false,
                (None, _) => rendition.is_ready_for_playback(),
                (Some(msn), None) => next > msn,
                (Some(msn), Some(part)) => rendition.has_part(msn, part),
            };
            // A player that waits for a certain segment gets it even if it is unsettled.
            let is_start = directives.msn.is_none();
            let segment_without_counterpart = is_start.then(|| packager.segment_without_counterpart(role)).flatten();
            is_available.then(|| live.media_playlist(packager, role, directives.skip, segment_without_counterpart))?
        });
        let rendered = rendered.await?;
        live.lock_viewers()
            .record_playlist_request(player, Instant::now().into_std());
        // Not under the packager's lock.
        Ok(rendered.with_query(query))
    }

    /// Returns an initialization section.
    ///
    /// # Errors
    ///
    /// A [`HlsRequestError`].
    pub async fn init_section(
        &self,
        live: &PackagedStream,
        role: RenditionRole,
        number: u64,
    ) -> Result<Bytes, HlsRequestError> {
        let found = live
            .lock_packager()
            .rendition(role)
            .and_then(|rendition| rendition.init_section(number));
        found.ok_or(HlsRequestError::Gone)
    }

    /// Returns a complete segment.
    ///
    /// # Errors
    ///
    /// A [`HlsRequestError`].
    pub async fn segment(
        &self,
        live: &PackagedStream,
        role: RenditionRole,
        msn: u64,
    ) -> Result<Vec<Bytes>, HlsRequestError> {
        let packager = live.lock_packager();
        let segment = packager.rendition(role).and_then(|rendition| rendition.segment(msn));
        segment
            .filter(|segment| segment.is_complete)
            .map(super::rendition::Segment::part_bodies)
            .ok_or(HlsRequestError::Gone)
    }

    /// Returns a part, blocking if it is the next one (rfc8216bis §6.2.6).
    ///
    /// # Errors
    ///
    /// A [`HlsRequestError`].
    pub async fn part(
        &self,
        live: &PackagedStream,
        role: RenditionRole,
        msn: u64,
        part: usize,
    ) -> Result<Bytes, HlsRequestError> {
        self.block_until_available(live, Instant::now() + BLOCKING_REQUEST_TIMEOUT, |packager| {
            let rendition = packager.rendition(role)?;
            if let Some(found) = rendition.segment(msn).and_then(|segment| segment.parts.get(part)) {
                return Some(Ok(found.bytes.clone()));
            }
            // The segment may have ended before this part: the hint was wrong, and the player requests the next part.
            (rendition.next_part_position() != (msn, part)).then_some(Err(HlsRequestError::Gone))
        })
        .await?
    }

    fn lock_packaged_streams(&self) -> RankedGuard<'_, HashMap<StreamName, Arc<PackagedStream>>> {
        self.packaged_streams.lock()
    }
}

/// A blocked request.
struct BlockedRequestGuard<'a>(&'a AtomicUsize);

impl<'a> BlockedRequestGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Option<Self> {
        let blocked = Self(count);
        // The drop decrements the counter again, also in this case.
        (count.fetch_add(1, Ordering::AcqRel) < MAX_BLOCKED_REQUESTS).then_some(blocked)
    }
}

impl Drop for BlockedRequestGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
