//! What of an HLS source is not passed on, in its status and in the log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use tracing::info;

use super::fetcher::{FetcherSharedState, SkippedSegmentStats};
use super::gap::SharedGap;
use crate::pipeline::worker_process::WorkerProcessError;
use crate::sources::fetch::registry::RegisteredSource;
use crate::sources::rtsp::incompatibility::IgnoredInputStats;
use millstream_worker_runtime::wire::{LeftOutTracksAndSegments, MessageFromWorker};

/// What of a source is left out, for its status.
pub(super) struct LeftOutMediaReport<'a> {
    entry: &'a RegisteredSource,
    variants: Vec<String>,
    skipped: SkippedSegmentStats,
    by_worker: LeftOutTracksAndSegments,
    shown_count: u64,
    has_corrected_numbers: Arc<AtomicBool>,
    has_shown_corrected_numbers: bool,
}

impl<'a> LeftOutMediaReport<'a> {
    pub(super) fn new(entry: &'a RegisteredSource, variants: Vec<String>, fetchers: &FetcherSharedState) -> Self {
        entry.modify_status_without_notifying(|status| {
            status.unsupported_tracks.clone_from(&variants);
            status.ignored_input = IgnoredInputStats::default();
            status.gap = None;
            status.has_corrected_media_sequence = false;
        });
        Self {
            entry,
            variants,
            skipped: fetchers.skipped.clone(),
            by_worker: LeftOutTracksAndSegments::default(),
            shown_count: 0,
            has_corrected_numbers: fetchers.has_corrected_numbers.clone(),
            has_shown_corrected_numbers: false,
        }
    }

    /// Shows what changed; tracks, and the first segment, are logged once.
    pub(super) fn update(&mut self, message: &Result<MessageFromWorker, WorkerProcessError>) {
        let stream = &self.entry.stream;
        if let Ok(MessageFromWorker::LeftOut(left_out)) = message {
            let shown = |text: &String| millstream_worker_runtime::wire::sanitize_worker_text(text);
            let tracks: Vec<String> = left_out.tracks.iter().take(MAX_LISTED_TRACKS).map(shown).collect();
            for track in tracks.iter().filter(|track| !self.by_worker.tracks.contains(track)) {
                info!(%stream, track, "track of the HLS source not forwarded: codec not supported");
            }
            self.by_worker = LeftOutTracksAndSegments {
                tracks,
                segments: left_out.segments,
                reason: left_out.reason.as_ref().map(shown),
            };
            let all = self.variants.iter().chain(&self.by_worker.tracks).cloned().collect();
            self.entry
                .modify_status_without_notifying(|status| status.unsupported_tracks = all);
        }
        self.update_skipped_segments();
        self.update_corrected_numbers();
    }

    fn update_corrected_numbers(&mut self) {
        if self.has_shown_corrected_numbers || !self.has_corrected_numbers.load(Ordering::Relaxed) {
            return;
        }
        // It is logged as a warning of the stream.
        self.has_shown_corrected_numbers = true;
        self.entry
            .modify_status_without_notifying(|status| status.has_corrected_media_sequence = true);
    }

    /// Shows that a gap has begun or ended.
    pub(super) fn update_gap(&mut self, gap: &SharedGap) {
        let (gap, stream) = (gap.get(), &self.entry.stream);
        match &gap {
            Some(gap) => {
                info!(%stream, why = gap.reason, "HLS source has nothing to play: the gateway has to skip each new segment of its playlist (see `why`)");
            }
            None => info!(%stream, "HLS source resumed: its playlist lists playable segments again"),
        }
        self.entry.modify_status_without_notifying(|status| status.gap = gap);
        self.update_skipped_segments();
    }

    fn update_skipped_segments(&mut self) {
        let stream = &self.entry.stream;
        let skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = skipped.count.saturating_add(self.by_worker.segments);
        if count == self.shown_count {
            return;
        }
        let what = skipped.first_description.or_else(|| self.by_worker.reason.clone());
        if self.shown_count == 0 {
            info!(%stream, what, "segment of the HLS source skipped; further skipped segments are counted, but not logged");
        }
        self.shown_count = count;
        self.entry.modify_status_without_notifying(|status| {
            status.ignored_input = IgnoredInputStats {
                count,
                first_description: what.map(|what| format!("segment: {what}")),
                last_at: Some(tokio::time::Instant::now().into_std()),
            };
        });
    }
}

impl Drop for LeftOutMediaReport<'_> {
    /// A source that has ended waits for nothing.
    fn drop(&mut self) {
        self.entry.modify_status_without_notifying(|status| status.gap = None);
    }
}

/// Maximum number of tracks that are named as left out.
const MAX_LISTED_TRACKS: usize = 8;
