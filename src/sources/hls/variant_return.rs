//! Returns to a variant that was left because it had a gap or failed, once it has had media again for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use super::failed_variants::{LeaveReason, ReturnRequirement};
use super::playlist::MediaPlaylist;
use super::variant_resolver::{OpenedVariant, VariantResolver};

/// Interval at which variants that were left are looked at; it doubles up to the longest one while none has media.
const RETURN_PROBE_INTERVAL: Duration = Duration::from_secs(4);
const MAX_RETURN_PROBE_INTERVAL: Duration = Duration::from_secs(16);
const RETURN_PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks at the variants that were left for as long as the source runs. What can be returned to is taken by the fetcher of the
/// leading rendition.
pub(super) async fn watch_for_return(resolver: Arc<VariantResolver>) {
    let mut recovery: Option<VariantRecovery> = None;
    let mut interval = RETURN_PROBE_INTERVAL;
    loop {
        sleep(interval).await;
        let probe = timeout(RETURN_PROBE_TIMEOUT, resolver.open_better_variant_that_was_left());
        let Ok(Some((opened, required))) = probe.await else {
            recovery = None;
            interval = (interval * 2).min(MAX_RETURN_PROBE_INTERVAL);
            continue;
        };
        interval = RETURN_PROBE_INTERVAL;
        let now = Instant::now();
        let is_same = |recovery: &VariantRecovery| recovery.id == opened.id;
        let known = recovery.take().filter(is_same);
        let current = known.unwrap_or_else(|| VariantRecovery::new(now, &opened));
        if current.has_recovered(now, &opened.playlist, required) {
            info!(
                host = resolver.host(),
                "variant of the HLS origin has media again; the gateway returns to it"
            );
            resolver.offer_return(opened);
        } else {
            recovery = Some(current);
        }
    }
}

/// A variant that has media again.
struct VariantRecovery {
    id: String,
    since: Instant,
    /// End of its playlist then.
    first_end: PlaylistEnd,
}

/// Number and URI of the last segment: origins may not count.
type PlaylistEnd = (u64, Option<String>);

impl VariantRecovery {
    fn new(now: Instant, opened: &OpenedVariant) -> Self {
        Self {
            id: opened.id.clone(),
            since: now,
            first_end: playlist_end(&opened.playlist),
        }
    }

    /// Whether it goes on, and has had media for long enough: since it was first seen, or as far as its playlist tells.
    fn has_recovered(&self, now: Instant, playlist: &MediaPlaylist, required: ReturnRequirement) -> bool {
        let goes_on = playlist_end(playlist) != self.first_end;
        // The playlist of one that failed listed segments all the time.
        let is_told_by_playlist =
            required.reason == LeaveReason::Gap && media_duration_at_end(playlist) >= required.media;
        goes_on && (is_told_by_playlist || now - self.since >= required.media)
    }
}

fn playlist_end(playlist: &MediaPlaylist) -> PlaylistEnd {
    let last = playlist.segments.last();
    (playlist.next_segment_number, last.map(|segment| segment.uri.clone()))
}

/// How long the segments after the last gap last.
fn media_duration_at_end(playlist: &MediaPlaylist) -> Duration {
    let newest = playlist.segments.iter().rev();
    newest
        .take_while(|segment| !segment.is_gap)
        .fold(Duration::ZERO, |sum, segment| sum.saturating_add(segment.duration))
}

#[cfg(test)]
mod tests {
    use super::super::playlist::Playlist;
    use super::*;

    /// A playlist of ten segments of one second; those from a number on are gaps up to another one.
    fn live(first: u64, gap: std::ops::Range<u64>) -> MediaPlaylist {
        let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{first}\n");
        for number in first..first + 10 {
            text += if gap.contains(&number) { "#EXT-X-GAP\n" } else { "" };
            text += &format!("#EXTINF:1,\n{number}.ts\n");
        }
        match Playlist::parse(&text) {
            Ok(Playlist::Media(media)) => media,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_variant_has_recovered_when_it_goes_on_with_media_for_long_enough() {
        let required = |reason| ReturnRequirement {
            media: Duration::from_secs(10),
            reason,
        };
        let needed = required(LeaveReason::Gap);
        let opened = |playlist| OpenedVariant {
            id: "a".to_owned(),
            rendition_urls: Vec::new(),
            variables: Arc::default(),
            playlist,
        };
        let begin = Instant::now();
        let recovery = VariantRecovery::new(begin, &opened(live(2, 3..10)));
        let after = |secs| begin + Duration::from_secs(secs);
        assert!(
            !recovery.has_recovered(after(60), &live(2, 3..10), needed),
            "it stands still"
        );
        assert!(
            !recovery.has_recovered(after(4), &live(6, 3..10), needed),
            "six seconds of media"
        );
        assert!(
            recovery.has_recovered(after(8), &live(10, 3..10), needed),
            "ten seconds of media"
        );
        // A playlist that is shorter than ten seconds tells by its age.
        let mut short = live(6, 3..10);
        short.segments.drain(..4);
        assert!(!recovery.has_recovered(after(9), &short, needed));
        assert!(recovery.has_recovered(after(10), &short, needed));
        // One that failed listed its segments meanwhile.
        let failed = required(LeaveReason::Failure);
        let recovery = VariantRecovery::new(begin, &opened(live(2, 0..0)));
        assert!(!recovery.has_recovered(after(9), &live(11, 0..0), failed));
        assert!(
            !recovery.has_recovered(after(60), &live(2, 0..0), failed),
            "it stands still"
        );
        assert!(recovery.has_recovered(after(10), &live(12, 0..0), failed));
    }
}
