//! Follows one rendition: loads its playlist, fetches its segments, and passes them to the worker on request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;
use url::Url;

use super::crypt;
use super::cursor::{CursorStep, PlaylistCursor};
use super::decryptor::SegmentDecryptor;
use super::error::{FileKind, HlsError};
use super::files::{PLAYLIST_FETCH_LIMITS, content_hash, fetch_file, parse_playlist};
use super::gap::SharedGap;
use super::http::{FetchLimits, HttpError};
use super::playlist::{InitSection, KeyUriAndIv, MediaPlaylist, OriginSegment, Playlist};
use super::segment_numbers::SegmentNumberCorrector;
use super::variant_resolver::{OpenedVariant, VariantResolver};
use crate::pipeline::worker_process::SegmentChunkSender;
use crate::sources::rtsp::incompatibility::IgnoredInputStats;
use millstream_worker_runtime::wire::{ChunkRole, SegmentChunk};

/// The last fetch error; `None` after a successful fetch.
pub(super) type LastFetchError = Arc<Mutex<Option<HlsError>>>;

/// The segments that were not fetched.
pub(super) type SkippedSegmentStats = Arc<Mutex<IgnoredInputStats>>;

/// What a fetcher shares with the worker and with the other fetchers of its source.
#[derive(Clone)]
pub(super) struct FetcherSharedState {
    pub(super) chunk_sender: SegmentChunkSender,
    /// A permit for each segment that the worker requested.
    pub(super) segment_permits: Arc<Semaphore>,
    pub(super) last_error: LastFetchError,
    pub(super) skipped: SkippedSegmentStats,
    /// The gap in the leading rendition.
    pub(super) gap: SharedGap,
    /// Number of renditions that are fetched.
    pub(super) rendition_count: usize,
    /// Notified if the source must be opened anew: another variant has other renditions.
    pub(super) reopen: Arc<Notify>,
    /// Media sequence numbers were wrong.
    pub(super) has_corrected_numbers: Arc<AtomicBool>,
}

/// One rendition of a source.
pub(super) struct RenditionFetcher {
    resolver: Arc<VariantResolver>,
    /// URL of its media playlist.
    playlist_url: Url,
    rendition_index: u8,
    /// URL of the playlist after redirects, to which the URLs in it are relative.
    base_url: Url,
    cursor: PlaylistCursor,
    numbers: SegmentNumberCorrector,
    links: FetcherSharedState,
    last_init_section: Option<(u64, Arc<InitSection>)>,
    decryptor: SegmentDecryptor,
    /// The URL changed, and its playlist was not read yet.
    has_new_url: bool,
    /// The next playlist is another one than the last.
    has_switched_playlist: bool,
    /// Consecutive files that could not be fetched.
    consecutive_fetch_failures: u32,
    /// When the operator's address was asked again.
    last_variant_resolution_at: Option<Instant>,
    /// The last playlist, with a content_hash of its text.
    last_playlist: Option<(u64, Arc<MediaPlaylist>)>,
    /// Segment and part that the origin waits for, if it supports blocking playlist reload.
    blocking_reload_position: Option<(u64, Option<usize>)>,
    /// Segments without media since the last one with media.
    consecutive_gap_segments: usize,
    /// When another variant was looked for in a gap.
    last_gap_free_variant_search_at: Option<Instant>,
}

/// Limits of a segment.
const SEGMENT_FETCH_LIMITS: FetchLimits = FetchLimits {
    max_bytes: 64 << 20,
    timeout: Duration::from_secs(60),
};

/// Limits of an initialization section, which usually has a few kilobytes and is sent to the worker in one message.
const INIT_SECTION_FETCH_LIMITS: FetchLimits = FetchLimits {
    max_bytes: 1 << 20,
    timeout: Duration::from_secs(10),
};

/// Limits of a key, which has 16 bytes.
const KEY_FETCH_LIMITS: FetchLimits = FetchLimits {
    max_bytes: 1_024,
    timeout: Duration::from_secs(10),
};

/// Maximum number of bytes in one message to the worker.
const MAX_SEGMENT_BYTES_PER_MESSAGE: usize = 1 << 20;

/// Interval between attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Attempts to fetch a file. A segment that cannot be fetched is skipped.
const MAX_FETCH_ATTEMPTS: u32 = 3;

/// Consecutive failures after which another variant is tried, and the interval at which the operator's address is asked
/// again.
const FETCH_FAILURES_BEFORE_VARIANT_RESOLUTION: u32 = 3;
const MIN_VARIANT_RESOLUTION_INTERVAL: Duration = Duration::from_secs(2);

/// How long a gap lasts until another variant is looked for, how often, and for how long the gap is not followed meanwhile.
const GAP_BEFORE_VARIANT_SEARCH: Duration = Duration::from_secs(6);
const GAP_FREE_VARIANT_SEARCH_INTERVAL: Duration = Duration::from_secs(30);
const GAP_FREE_VARIANT_SEARCH_TIMEOUT: Duration = Duration::from_secs(5);

impl RenditionFetcher {
    pub(super) fn new(
        resolver: Arc<VariantResolver>,
        rendition_index: u8,
        playlist_url: Url,
        cursor: PlaylistCursor,
        links: FetcherSharedState,
    ) -> Self {
        Self {
            resolver,
            base_url: playlist_url.clone(),
            playlist_url,
            rendition_index,
            cursor,
            numbers: SegmentNumberCorrector::default(),
            links,
            last_init_section: None,
            decryptor: SegmentDecryptor::default(),
            has_new_url: false,
            has_switched_playlist: false,
            consecutive_fetch_failures: 0,
            last_variant_resolution_at: None,
            last_playlist: None,
            blocking_reload_position: None,
            consecutive_gap_segments: 0,
            last_gap_free_variant_search_at: None,
        }
    }

    /// Follows the playlist until the source has ended or the worker has exited; `first_playlist` is the playlist if it was
    /// already loaded.
    pub(super) async fn run(mut self, first_playlist: Option<Arc<MediaPlaylist>>) {
        let mut loaded_at = Instant::now();
        let mut playlist = first_playlist;
        loop {
            let list = match playlist.take() {
                Some(list) => list,
                None => {
                    if let Some(opened) = self.take_return_offer() {
                        self.switch_to_variant(opened).await;
                    }
                    loaded_at = Instant::now();
                    match self.load_current_playlist().await {
                        Ok(list) => list,
                        Err(error) => {
                            self.wait_or_switch_playlist_after_failure(error).await;
                            continue;
                        }
                    }
                }
            };
            let list = self.correct_segment_numbers(list);
            if std::mem::take(&mut self.has_new_url) {
                self.cursor.continue_or_restart_on_other_server(&list);
            }
            self.cursor.on_playlist_loaded(&list);
            let mut has_fetched = false;
            let wait = loop {
                match self.cursor.advance_to_next_step(&list) {
                    CursorStep::FetchSegment(segment, _) if segment.is_gap => {
                        if self.pass_over_gap_segment(&list, segment.duration).await {
                            break Duration::ZERO;
                        }
                    }
                    CursorStep::FetchSegment(segment, timeline) => {
                        let is_newest = is_among_newest(&list, &segment);
                        match self.fetch_and_send_segment(&segment, timeline, is_newest).await {
                            Ok(true) => {
                                self.set_last_error(None);
                                self.end_gap();
                                (self.consecutive_fetch_failures, has_fetched) = (0, true);
                            }
                            Ok(false) => return,
                            Err(error) if self.is_uri_cut_off(&list, &segment, &error) => break RETRY_INTERVAL,
                            Err(error) => {
                                debug!(%error, number = segment.media_sequence_number, "segment of the HLS origin skipped: it cannot be fetched or decrypted");
                                self.record_skipped_segment(error.to_string());
                                if self.wait_or_switch_playlist_after_failure(error).await {
                                    break Duration::ZERO;
                                }
                            }
                        }
                    }
                    CursorStep::ReloadPlaylist(wait) => break wait,
                    CursorStep::Ended => {
                        self.send_chunk(ChunkRole::EndOfStream, 0, Bytes::new()).await;
                        return;
                    }
                }
            };
            self.blocking_reload_position = self.next_blocking_reload_position(&list);
            // With blocking playlist reload the origin delays its response instead.
            if self.blocking_reload_position.is_none() {
                sleep_until(loaded_at + wait).await;
            } else if !has_fetched && loaded_at.elapsed() < Duration::from_millis(50) {
                sleep(RETRY_INTERVAL).await;
            }
        }
    }

    /// Returns what the origin may wait for until it answers the next request for this playlist.
    fn next_blocking_reload_position(&mut self, list: &MediaPlaylist) -> Option<(u64, Option<usize>)> {
        let has_switched = std::mem::take(&mut self.has_switched_playlist);
        let next = self.cursor.next_segment_number()?;
        let is_near = next <= list.next_segment_number.saturating_add(1);
        let part = list.part_target.map(|_| self.cursor.next_part_index());
        let position = (self.numbers.listed_number(next), part);
        (list.can_block_reload && is_near && !has_switched).then_some(position)
    }

    /// Records a failure and waits. Asks the operator's address again if the server refuses an address that it led to, or
    /// if nothing was fetched for a while. Returns whether the playlist is another one now.
    async fn wait_or_switch_playlist_after_failure(&mut self, error: HlsError) -> bool {
        self.consecutive_fetch_failures += 1;
        // An origin that was restarted refuses to wait for a segment far ahead (rfc8216bis §6.2.5.2).
        self.blocking_reload_position = None;
        let is_refused = matches!(&error, HlsError::Fetch { error, what, .. }
            if error.is_url_refused_by_server() && (*what == FileKind::Playlist || *error != HttpError::Status(404)));
        self.set_last_error(Some(error));
        let may_move = self
            .last_variant_resolution_at
            .is_none_or(|moved| moved.elapsed() >= MIN_VARIANT_RESOLUTION_INTERVAL);
        if may_move && (is_refused || self.consecutive_fetch_failures >= FETCH_FAILURES_BEFORE_VARIANT_RESOLUTION) {
            self.last_variant_resolution_at = Some(Instant::now());
            let variant = self.resolver.current_id();
            let has_failed = self.consecutive_fetch_failures >= FETCH_FAILURES_BEFORE_VARIANT_RESOLUTION
                && self.rendition_index == 0;
            match self.resolver.resolve_playlists(has_failed).await {
                Ok(resolved) => {
                    let is_moved =
                        resolved.rendition_urls.first() != Some(&self.playlist_url) && self.rendition_index == 0;
                    // Several renditions have to be on one timeline.
                    let is_apart = self.links.rendition_count > 1
                        && is_moved
                        && !self
                            .numbers
                            .can_continue_in_playlist(&self.cursor, &resolved.first_playlist);
                    if resolved.rendition_urls.len() != self.links.rendition_count || is_apart {
                        self.links.reopen.notify_one();
                        std::future::pending::<()>().await;
                    }
                    if let Some(address) = resolved
                        .rendition_urls
                        .into_iter()
                        .nth(usize::from(self.rendition_index))
                    {
                        if is_moved {
                            self.numbers
                                .continue_on_other_server(&mut self.cursor, &resolved.first_playlist);
                        }
                        if self.resolver.current_id() != variant {
                            self.send_chunk(ChunkRole::VariantSwitch, 0, Bytes::new()).await;
                        }
                        self.follow_playlist_at(address);
                        self.consecutive_fetch_failures = 0;
                        return true;
                    }
                }
                Err(error) => self.set_last_error(Some(error)),
            }
        }
        sleep(RETRY_INTERVAL).await;
        false
    }

    /// Passes over a segment without media. The leading rendition is followed as long as its playlist goes on. Returns whether
    /// another variant is played now.
    async fn pass_over_gap_segment(&mut self, list: &MediaPlaylist, duration: Duration) -> bool {
        let encrypted = (list.encryption.as_ref()).map(|how| format!("the segment is encrypted with {how}"));
        let why = encrypted.unwrap_or_else(|| "the origin marks the segment as missing (EXT-X-GAP)".to_owned());
        self.record_skipped_segment(why.clone());
        self.consecutive_gap_segments = self.consecutive_gap_segments.saturating_add(1);
        if list.has_ended && self.consecutive_gap_segments > list.segments.len() {
            // Avoids a busy loop over a recording that has only gaps, for which nothing is worth waiting.
            sleep(RETRY_INTERVAL).await;
        } else if self.rendition_index == 0 {
            let lasted = self.links.gap.extend(duration, &why);
            if lasted >= GAP_BEFORE_VARIANT_SEARCH && !list.has_ended {
                return self.leave_for_variant_without_gap().await;
            }
        }
        false
    }

    fn end_gap(&mut self) {
        self.consecutive_gap_segments = 0;
        if self.rendition_index == 0 {
            self.links.gap.end();
        }
    }

    /// Takes the variant that the source returns to. The leading rendition leads.
    fn take_return_offer(&self) -> Option<OpenedVariant> {
        let leads = self.rendition_index == 0;
        leads.then(|| self.resolver.take_return_offer()).flatten()
    }

    /// Plays another variant from the next segment on, in the same worker; if its renditions cannot go on where those of the
    /// current one are, the source is opened anew.
    async fn switch_to_variant(&mut self, opened: OpenedVariant) {
        self.resolver.set_current(&opened);
        // Several renditions have to be on one timeline.
        let can_continue =
            self.links.rendition_count == 1 || self.numbers.can_continue_in_playlist(&self.cursor, &opened.playlist);
        let main = opened.rendition_urls.first();
        match main.filter(|_| opened.rendition_urls.len() == self.links.rendition_count && can_continue) {
            Some(address) => {
                self.send_chunk(ChunkRole::VariantSwitch, 0, Bytes::new()).await;
                if self.numbers.has_corrected() {
                    self.cursor.restart();
                }
                self.follow_playlist_at(address.clone());
                (self.blocking_reload_position, self.has_new_url) = (None, true);
            }
            None => {
                self.links.reopen.notify_one();
                std::future::pending::<()>().await;
            }
        }
    }

    fn follow_playlist_at(&mut self, address: Url) {
        self.base_url = address.clone();
        (self.playlist_url, self.last_init_section, self.last_playlist) = (address, None, None);
        self.has_switched_playlist = true;
        self.numbers.forget_names();
    }

    fn correct_segment_numbers(&mut self, list: Arc<MediaPlaylist>) -> Arc<MediaPlaylist> {
        let corrected = self.numbers.correct(list);
        if self.numbers.has_corrected() {
            self.links.has_corrected_numbers.store(true, Ordering::Relaxed);
        }
        corrected
    }

    /// Whether the URI of a segment that cannot be fetched may lack its end: some origins write their playlists while others
    /// read them. If so, the next playlist tells it again.
    fn is_uri_cut_off(&mut self, list: &MediaPlaylist, segment: &OriginSegment, error: &HlsError) -> bool {
        let is_last = segment.media_sequence_number.checked_add(1) == Some(list.next_segment_number);
        let is_refused = matches!(
            error,
            HlsError::Fetch {
                error: HttpError::Status(400..=499),
                ..
            }
        );
        list.may_be_truncated && !list.has_ended && is_last && is_refused && self.cursor.return_last_segment()
    }

    /// Plays another variant if one has media. It is looked for each half minute. Returns whether there is one.
    async fn leave_for_variant_without_gap(&mut self) -> bool {
        let is_due = self
            .last_gap_free_variant_search_at
            .is_none_or(|searched| searched.elapsed() >= GAP_FREE_VARIANT_SEARCH_INTERVAL);
        if !is_due {
            return false;
        }
        self.last_gap_free_variant_search_at = Some(Instant::now());
        let search = self.resolver.find_variant_without_gap();
        match timeout(GAP_FREE_VARIANT_SEARCH_TIMEOUT, search).await {
            Ok(Some(opened)) => {
                self.switch_to_variant(opened).await;
                true
            }
            Ok(None) | Err(_) => false,
        }
    }

    /// Counts a segment that is left out.
    fn record_skipped_segment(&self, why: String) {
        let mut skipped = self.links.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.count += 1;
        skipped.last_at = Some(Instant::now().into_std());
        skipped.first_description.get_or_insert(why);
    }

    /// Follows the audio of the variant that is played now.
    fn switch_to_current_variant_audio(&mut self) {
        let address = self.resolver.current_rendition_url(self.rendition_index);
        if let Some(address) = address.filter(|address| self.rendition_index > 0 && *address != self.playlist_url) {
            self.follow_playlist_at(address);
            (self.blocking_reload_position, self.has_new_url) = (None, true);
        }
    }

    async fn load_current_playlist(&mut self) -> Result<Arc<MediaPlaylist>, HlsError> {
        self.switch_to_current_variant_audio();
        let mut url = self.playlist_url.clone();
        // `_HLS_msn` is sent only to origins that support it; others may reject the request.
        if let Some((number, part)) = self.blocking_reload_position {
            let mut query = url.query_pairs_mut();
            query.append_pair("_HLS_msn", &number.to_string());
            if let Some(part) = part {
                query.append_pair("_HLS_part", &part.to_string());
            }
        }
        let (found, bytes) = fetch_file(
            &self.resolver.client,
            FileKind::Playlist,
            &url,
            None,
            PLAYLIST_FETCH_LIMITS,
        )
        .await?;
        // Variables may come from the URL.
        let sum = content_hash(&bytes) ^ content_hash(found.as_str().as_bytes());
        self.base_url = found;
        if let Some((known, media)) = &self.last_playlist
            && *known == sum
        {
            return Ok(media.clone());
        }
        let variables = self.resolver.current_variables();
        match parse_playlist(bytes, &self.base_url, &variables).await? {
            Playlist::Media(media) => {
                let media = Arc::new(media);
                self.last_playlist = Some((sum, media.clone()));
                Ok(media)
            }
            Playlist::Multivariant(_) => Err(HlsError::NestedMultivariant),
        }
    }

    /// Fetches a segment and sends it to the worker. Returns `false` if the worker has exited.
    async fn fetch_and_send_segment(
        &mut self,
        segment: &OriginSegment,
        timeline: u64,
        is_newest: bool,
    ) -> Result<bool, HlsError> {
        if let Some(init) = &segment.init_section
            && !(self.last_init_section.as_ref())
                .is_some_and(|(last, known)| *last == timeline && known.is_same_file(init))
        {
            let bytes = self.fetch_init_section(init, segment).await?;
            self.last_init_section = Some((timeline, init.clone()));
            self.send_chunk(ChunkRole::InitSection, timeline, bytes).await;
        }
        let bytes = self
            .fetch_with_retries(FileKind::Segment, &segment.uri, segment.byte_range, is_newest)
            .await?;
        let bytes = match &segment.decryption_key {
            None => bytes,
            Some(key) => {
                let iv = crypt::iv_from_media_sequence_number(segment.listed_sequence_number);
                self.decrypt(&bytes, key, key.iv.unwrap_or(iv)).await?
            }
        };
        let Ok(permit) = self.links.segment_permits.acquire().await else {
            return Ok(false);
        };
        permit.forget();
        let mut rest = bytes;
        while rest.len() > MAX_SEGMENT_BYTES_PER_MESSAGE {
            let chunk = rest.split_to(MAX_SEGMENT_BYTES_PER_MESSAGE);
            if !self.send_chunk(ChunkRole::SegmentData, timeline, chunk).await {
                return Ok(false);
            }
        }
        Ok(self.send_chunk(ChunkRole::LastSegmentData, timeline, rest).await)
    }

    /// Fetches an initialization section. It is encrypted with the key before it, if that has an initialization vector, or
    /// not at all; some packagers list it before its key.
    async fn fetch_init_section(&mut self, init: &InitSection, segment: &OriginSegment) -> Result<Bytes, HlsError> {
        let bytes = self
            .fetch_with_retries(FileKind::InitSection, &init.uri, init.byte_range, false)
            .await?;
        let key = init.decryption_key.as_ref().or(segment.decryption_key.as_ref());
        match key.and_then(|key| Some((key, key.iv?))) {
            Some((key, iv)) if !begins_with_mp4_box(&bytes) => self.decrypt(&bytes, key, iv).await,
            _ => Ok(bytes),
        }
    }

    async fn decrypt(&mut self, bytes: &Bytes, key: &KeyUriAndIv, iv: [u8; 16]) -> Result<Bytes, HlsError> {
        let address = self.resolve_url(FileKind::Key, &key.uri)?;
        let client = &self.resolver.client;
        let fetch = async {
            let fetched = fetch_file(client, FileKind::Key, &address, None, KEY_FETCH_LIMITS).await;
            fetched.map(|(_, file)| file)
        };
        self.decryptor.decrypt(bytes, iv, &address, fetch).await
    }

    async fn send_chunk(&self, role: ChunkRole, timeline: u64, bytes: Bytes) -> bool {
        let chunk = SegmentChunk {
            rendition_index: self.rendition_index,
            role,
            timeline_id: timeline,
            bytes,
        };
        self.links.chunk_sender.send(chunk).await
    }

    async fn fetch_with_retries(
        &self,
        kind: FileKind,
        uri: &str,
        range: Option<super::playlist::ByteRange>,
        may_come_later: bool,
    ) -> Result<Bytes, HlsError> {
        let address = self.resolve_url(kind, uri)?;
        let bounds = match kind {
            FileKind::InitSection => INIT_SECTION_FETCH_LIMITS,
            FileKind::Playlist | FileKind::Segment | FileKind::Key => SEGMENT_FETCH_LIMITS,
        };
        let mut attempts = 1;
        loop {
            match fetch_file(&self.resolver.client, kind, &address, range, bounds).await {
                Ok((_, bytes)) if bytes.is_empty() && attempts < MAX_FETCH_ATTEMPTS => {
                    // Content delivery networks answer so while the file is on its way to them.
                    attempts += 1;
                    sleep(RETRY_INTERVAL).await;
                }
                Ok((_, bytes)) if bytes.is_empty() => {
                    return Err(HlsError::Fetch {
                        what: kind,
                        host: address.host_str().unwrap_or_default().to_owned(),
                        error: HttpError::EmptyBody,
                    });
                }
                Ok((_, bytes)) => return Ok(bytes),
                Err(HlsError::Fetch { error, .. })
                    if (error.is_transient() || may_come_later && error == HttpError::Status(404))
                        && attempts < MAX_FETCH_ATTEMPTS =>
                {
                    attempts += 1;
                    sleep(RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn resolve_url(&self, kind: FileKind, uri: &str) -> Result<Url, HlsError> {
        self.base_url.join(uri).map_err(|_| HlsError::Fetch {
            what: kind,
            host: String::new(),
            error: HttpError::UnsupportedScheme,
        })
    }

    fn set_last_error(&self, error: Option<HlsError>) {
        *self.links.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// Whether a segment may be listed before all servers of the origin have it. Players do not notice: they stay three
/// segments behind (rfc8216bis §6.3.3).
fn is_among_newest(playlist: &MediaPlaylist, segment: &OriginSegment) -> bool {
    !playlist.has_ended && segment.media_sequence_number.saturating_add(2) >= playlist.next_segment_number
}

/// Whether an initialization section is in the clear.
fn begins_with_mp4_box(bytes: &[u8]) -> bool {
    matches!(bytes.get(4..8), Some(b"ftyp" | b"styp" | b"moov" | b"free" | b"skip"))
}
