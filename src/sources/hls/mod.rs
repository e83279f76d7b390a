//! HLS sources (RFC 8216): live and recorded, MPEG-TS and fragmented MP4, with AES-128 and byte ranges.
//!
//! ```text
//! origin --HTTP--> Client -> Playlist -> Cursor (which segment) -> Fetcher --segments--> worker (demuxes, paces)
//!                                                                  Relay <---frames----
//! ```
//!
//! * `http`: an HTTP client that restricts destination, size and time.
//! * [`playlist`]: parses playlists.
//! * [`cursor`]: selects the next segment, without IO or clock.
//! * `segment_numbers`: corrects media sequence numbers that cannot be believed.
//! * `variant_resolver`: chooses a variant, and another one when it fails (`variants` ranks them, `failed_variants` remembers
//!   them, `variant_return` returns to them).
//! * `cookies`: cookies by host.
//! * `fetcher`: follows one rendition; a source has one, or two if its audio is a separate rendition.
//! * `gap`: what lasts while the origin goes on without media.
//! * `crypt`: AES-128 (`decryptor` keeps the key).
//!
//! Segments are parsed only in a worker process without network and file access ([`crate::pipeline::demuxer`]). Formats
//! that a viewer cannot play are transcoded as for any other source.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::HeaderMap;
use tokio::sync::{Notify, Semaphore};
use url::Url;

use self::cursor::PlaylistCursor;
use self::error::{FileKind, HlsError};
pub use self::failed_variants::FailedVariants;
use self::fetcher::{FetcherSharedState, LastFetchError, RenditionFetcher, SkippedSegmentStats};
use self::gap::SharedGap;
use self::http::{DnsRebindingGuard, HttpError, OriginClient};
use self::left_out_report::LeftOutMediaReport;
use self::playlist::MediaPlaylist;
use self::variant_resolver::VariantResolver;
use self::variant_return::watch_for_return;
pub use self::variants::VariantLimits;
use crate::pipeline::description::WorkerLimits;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::pipeline::worker_process::{WorkerProcess, WorkerProcessError};
use crate::pipeline::worker_slots::{WorkerOwner, WorkerSlotReservation};
use crate::sources::fetch::address::AllowedNetworks;
use crate::sources::fetch::error::FetchError;
use crate::sources::fetch::pipeline::{StopWorkerOnDrop, WorkerFrameForwarder};
use crate::sources::fetch::registry::RegisteredSource;
use millstream_core::sources::frame_source::FrameSink;
use millstream_worker_runtime::wire::{DemuxJob, MessageFromWorker};

mod cookie_date;

mod cookies;
mod crypt;
pub mod cursor;
mod decryptor;
pub mod error;
mod failed_variants;
mod fetcher;
mod files;
mod gap;
pub mod http;
mod left_out_report;
pub mod playlist;
mod segment_numbers;
mod variant_resolver;
mod variant_return;
mod variants;

/// An HLS source.
#[derive(Clone)]
pub struct HlsOrigin {
    /// URL of its multivariant or media playlist.
    pub playlist_url: Url,
    /// Sent only to the scheme, host and port of the URL.
    pub http_headers: HeaderMap,
    pub variant_limits: VariantLimits,
    /// Whether a recorded source is repeated.
    pub repeats_recording: bool,
    pub allowed_networks: AllowedNetworks,
    /// The executable of the worker.
    pub worker_programs: WorkerExecutablesAndProcessSlots,
    /// Variants that failed, which are tried last for a while.
    pub failed_variants: FailedVariants,
    pub first_resolution: DnsRebindingGuard,
}

impl std::fmt::Debug for HlsOrigin {
    /// Shows only the host, because URL and headers may contain secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Origin({})", self.playlist_url.host_str().unwrap_or_default())
    }
}

/// Limits of the worker. Segments arrive in bursts, so the timeouts are longer than those of a camera.
const DEMUXER_WORKER_LIMITS: WorkerLimits = WorkerLimits {
    memory: 384,
    processors: 1,
    start_timeout: 20.0,
    stall_timeout: 8.0,
};

/// No frame for this many target durations means that the source has stalled, up to a maximum: some origins add two segments
/// at a time.
const STALL_TIMEOUT_TARGET_DURATIONS: u32 = 2;
const MAX_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the limits of the worker for segments of this target duration.
fn demuxer_worker_limits(target_duration: Duration) -> WorkerLimits {
    let stall_timeout = (target_duration * STALL_TIMEOUT_TARGET_DURATIONS).min(MAX_STALL_TIMEOUT);
    WorkerLimits {
        stall_timeout: DEMUXER_WORKER_LIMITS.stall_timeout.max(stall_timeout.as_secs_f64()),
        ..DEMUXER_WORKER_LIMITS
    }
}

/// Returns what finds the media playlists of the source.
fn new_variant_resolver(origin: &HlsOrigin) -> Result<VariantResolver, HttpError> {
    let client = OriginClient::new(
        &origin.playlist_url,
        origin.allowed_networks.clone(),
        origin.http_headers.clone(),
        origin.first_resolution.clone(),
    )?;
    Ok(VariantResolver::new(
        Arc::new(client),
        origin.playlist_url.clone(),
        origin.variant_limits,
        origin.failed_variants.clone(),
    ))
}

/// Starts a worker in the slot of the source.
fn start_demuxer_worker(
    origin: &HlsOrigin,
    reservation: &WorkerSlotReservation,
    job: DemuxJob,
    target_duration: Duration,
) -> Result<WorkerProcess, WorkerProcessError> {
    let programs = &origin.worker_programs;
    let slot = reservation.acquire(&programs.slots, WorkerOwner::ConfiguredSource)?;
    WorkerProcess::spawn_demuxer_worker(programs, slot, job, demuxer_worker_limits(target_duration))
}

/// Starts a fetcher for each rendition; the first one has its first playlist. `requested` has permits for the segments that the
/// worker requests of each.
fn spawn_fetchers(
    origin: &HlsOrigin,
    resolver: &Arc<VariantResolver>,
    (renditions, first): (Vec<Url>, MediaPlaylist),
    shared: &FetcherSharedState,
    requested: &[Arc<Semaphore>],
) -> tokio::task::JoinSet<()> {
    let mut first = Some(Arc::new(first));
    let mut fetching = tokio::task::JoinSet::new();
    for ((rendition_index, url), segment_permits) in (0u8..).zip(renditions).zip(requested) {
        let links = FetcherSharedState {
            segment_permits: segment_permits.clone(),
            ..shared.clone()
        };
        let cursor = PlaylistCursor::new(origin.repeats_recording);
        let fetcher = RenditionFetcher::new(resolver.clone(), rendition_index, url, cursor, links);
        fetching.spawn(fetcher.run(first.take()));
    }
    fetching
}

/// Plays the source until it fails. `live` is called once the stream receives frames.
pub async fn run_hls_source<P: FrameSink>(
    origin: &HlsOrigin,
    entry: &RegisteredSource,
    plane: &P,
    reservation: &WorkerSlotReservation,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let resolver = match new_variant_resolver(origin) {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => return playlist_fetch_error(origin, error).into(),
    };
    let resolved = match resolver.resolve_playlists(false).await {
        Ok(resolved) => resolved,
        Err(error) => return error.into(),
    };
    let (renditions, first) = (resolved.rendition_urls, resolved.first_playlist);
    let job = DemuxJob {
        renditions: if renditions.len() > 1 { 2 } else { 1 },
        is_live: !first.has_ended,
        memory: DEMUXER_WORKER_LIMITS.memory_bytes(),
    };
    let mut running = match start_demuxer_worker(origin, reservation, job, first.target_duration) {
        Ok(process) => StopWorkerOnDrop(Some(process)),
        Err(error) => return error.into(),
    };
    let Some(process) = &mut running.0 else {
        return FetchError::StreamOccupied;
    };
    let requested: Vec<Arc<Semaphore>> = renditions.iter().map(|_| Arc::new(Semaphore::new(0))).collect();
    let shared = FetcherSharedState {
        chunk_sender: process.segment_chunk_sender(),
        segment_permits: Arc::new(Semaphore::new(0)),
        last_error: Arc::new(Mutex::new(None)),
        skipped: SkippedSegmentStats::default(),
        gap: SharedGap::new(process.expected_silence()),
        rendition_count: renditions.len(),
        reopen: Arc::new(Notify::new()),
        has_corrected_numbers: Arc::default(),
    };
    let mut report = LeftOutMediaReport::new(entry, resolved.unplayable_variants, &shared);
    let mut fetching = spawn_fetchers(origin, &resolver, (renditions, first), &shared, &requested);
    if job.is_live {
        fetching.spawn(watch_for_return(resolver.clone()));
    }
    // An origin serves encoded media, so it cannot make key frames on request.
    let mut relay = WorkerFrameForwarder::new(&entry.stream, plane, false);
    loop {
        let Some(message) = read_message_and_report_gaps(process, &shared, &mut report).await else {
            return FetchError::Reopened;
        };
        report.update(&message);
        match message {
            Ok(MessageFromWorker::SegmentRequest(rendition)) => {
                if let Some(requested) = requested.get(usize::from(rendition)) {
                    requested.add_permits(1);
                }
            }
            Ok(message) => {
                if let Err(error) = relay.handle_message(message, process, live) {
                    return error;
                }
            }
            Err(error) => {
                let has_failed = shared
                    .last_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_some();
                if !has_failed && is_no_frames_error(&error) {
                    resolver.mark_current_variant_failed();
                }
                return prefer_last_fetch_error(error, &shared.last_error);
            }
        }
    }
}

/// Returns the next message of the worker; `None` if the source must be opened anew.
async fn read_message_and_report_gaps(
    process: &mut WorkerProcess,
    shared: &FetcherSharedState,
    report: &mut LeftOutMediaReport<'_>,
) -> Option<Result<MessageFromWorker, WorkerProcessError>> {
    // It is not begun again: the timeout for the exit of a worker would be.
    let mut reading = std::pin::pin!(process.read_message_or_kill_worker());
    loop {
        tokio::select! {
            message = &mut reading => return Some(message),
            () = shared.reopen.notified() => return None,
            () = shared.gap.changed() => report.update_gap(&shared.gap),
        }
    }
}

/// Whether no frame came although nothing failed: the playlist stands still.
fn is_no_frames_error(error: &WorkerProcessError) -> bool {
    matches!(
        error,
        WorkerProcessError::Stalled(_) | WorkerProcessError::NoFirstFrame(_)
    )
}

/// Returns why no frames arrive: the last fetch error, if there is one.
fn prefer_last_fetch_error(error: WorkerProcessError, last_error: &LastFetchError) -> FetchError {
    let known = last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (error, known) {
        (WorkerProcessError::Stalled(_) | WorkerProcessError::NoFirstFrame(_), Some(known)) => known.into(),
        (WorkerProcessError::SourceEnded, _) => HlsError::StreamEnded.into(),
        (error, _) => error.into(),
    }
}

fn playlist_fetch_error(origin: &HlsOrigin, error: HttpError) -> HlsError {
    HlsError::Fetch {
        what: FileKind::Playlist,
        host: origin.playlist_url.host_str().unwrap_or_default().to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_two_target_durations_for_the_next_segment() {
        for (target_secs, expected) in [(0, 8.0), (2, 8.0), (6, 12.0), (10, 20.0), (3_600, 60.0)] {
            let limits = demuxer_worker_limits(Duration::from_secs(target_secs));
            assert!(
                (limits.stall_timeout - expected).abs() < 0.001,
                "{target_secs}: {limits:?}"
            );
        }
    }
}
