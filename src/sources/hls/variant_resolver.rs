//! Finds the media playlists of a source: chooses a variant, leaves one that fails for another, and remembers it in order to
//! return.
//!
//! Addresses that were reached by a redirect or listed by a playlist may be good for a while only. The operator's address
//! leads to new ones.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::info;
use url::Url;

use super::error::{FileKind, HlsError};
use super::failed_variants::{FailedVariants, LeaveReason, ReturnRequirement};
use super::files::{fetch_file, load_playlist};
use super::http::{FetchLimits, HttpError, OriginClient};
use super::playlist::{ByteRange, MediaPlaylist, MultivariantPlaylist, Playlist, PlaylistVariables, Variant};
use super::variants::{VariantLimits, audio_rendition_uri, rank_playable_variants, unplayable_variant_names};

/// Maximum number of variants that are tried for one start.
const MAX_VARIANT_TRIES: usize = 6;

/// Limits of the first byte of a segment, which shows that it is there.
const SEGMENT_PROBE_LIMITS: FetchLimits = FetchLimits {
    max_bytes: 1,
    timeout: Duration::from_secs(3),
};

/// Finds the media playlists of one source.
pub(super) struct VariantResolver {
    pub(super) client: Arc<OriginClient>,
    playlist_url: Url,
    variant_limits: VariantLimits,
    failed_variants: FailedVariants,
    /// What is played.
    current: Mutex<CurrentVariant>,
    /// A variant to return to.
    return_offer: Mutex<Option<OpenedVariant>>,
}

#[derive(Debug, Default)]
struct CurrentVariant {
    /// `None` if there is only one.
    id: Option<String>,
    /// Addresses of its renditions.
    rendition_urls: Vec<Url>,
    /// For its playlists.
    variables: Arc<PlaylistVariables>,
}

/// What is played.
pub(super) struct RenditionUrlsAndFirstPlaylist {
    /// URLs of the media playlists to follow.
    pub(super) rendition_urls: Vec<Url>,
    /// The first of these playlists.
    pub(super) first_playlist: MediaPlaylist,
    /// Variants that cannot be played, by their codecs.
    pub(super) unplayable_variants: Vec<String>,
}

/// A variant whose playlist was loaded.
pub(super) struct OpenedVariant {
    pub(super) id: String,
    pub(super) rendition_urls: Vec<Url>,
    pub(super) variables: Arc<PlaylistVariables>,
    pub(super) playlist: MediaPlaylist,
}

impl VariantResolver {
    /// Makes a resolver for the source at the operator's address.
    pub(super) fn new(client: Arc<OriginClient>, address: Url, choice: VariantLimits, dead: FailedVariants) -> Self {
        Self {
            client,
            playlist_url: address,
            variant_limits: choice,
            failed_variants: dead,
            current: Mutex::default(),
            return_offer: Mutex::default(),
        }
    }

    /// Loads the operator's playlist, and the best variant of it that can be loaded; another one than the current, if it
    /// failed.
    pub(super) async fn resolve_playlists(
        &self,
        variant_has_failed: bool,
    ) -> Result<RenditionUrlsAndFirstPlaylist, HlsError> {
        let (found, playlist) = load_playlist(&self.client, &self.playlist_url, &Arc::default()).await?;
        // The origin is there, so it is the variant.
        if variant_has_failed {
            self.mark_current_variant_failed();
        }
        let multivariant = match playlist {
            Playlist::Media(first) => {
                first.require_supported_encryption()?;
                let renditions = vec![found];
                return Ok(RenditionUrlsAndFirstPlaylist {
                    rendition_urls: renditions,
                    first_playlist: first,
                    unplayable_variants: Vec::new(),
                });
            }
            Playlist::Multivariant(multivariant) => multivariant,
        };
        let mut variants = rank_playable_variants(&multivariant, self.variant_limits)?;
        variants.sort_by_cached_key(|variant| self.failed_variants.is_demoted(&variant_id(&multivariant, variant)));
        let mut failed = None;
        for variant in variants.into_iter().take(MAX_VARIANT_TRIES) {
            match self.open_variant(&found, &multivariant, variant).await {
                Ok(opened) => {
                    self.set_current(&opened);
                    return Ok(RenditionUrlsAndFirstPlaylist {
                        rendition_urls: opened.rendition_urls,
                        first_playlist: opened.playlist,
                        unplayable_variants: unplayable_variant_names(&multivariant),
                    });
                }
                Err(error) => {
                    self.failed_variants
                        .add(&variant_id(&multivariant, variant), LeaveReason::Failure);
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or(HlsError::NestedMultivariant))
    }

    async fn open_variant(
        &self,
        found: &Url,
        multivariant: &MultivariantPlaylist,
        variant: &Variant,
    ) -> Result<OpenedVariant, HlsError> {
        let join = |uri: &str| {
            found.join(uri).map_err(|_| HlsError::Fetch {
                what: FileKind::Playlist,
                host: found.host_str().unwrap_or_default().to_owned(),
                error: HttpError::UnsupportedScheme,
            })
        };
        let variables = &multivariant.variables;
        let (main, first) = match load_playlist(&self.client, &join(&variant.uri)?, variables).await? {
            (main, Playlist::Media(media)) => (main, media),
            (_, Playlist::Multivariant(_)) => return Err(HlsError::NestedMultivariant),
        };
        first.require_supported_encryption()?;
        let mut renditions = vec![main];
        if let Some(uri) = audio_rendition_uri(multivariant, variant) {
            renditions.push(join(uri)?);
        }
        Ok(OpenedVariant {
            id: variant_id(multivariant, variant),
            rendition_urls: renditions,
            variables: variables.clone(),
            playlist: first,
        })
    }

    /// Plays a variant from now on.
    pub(super) fn set_current(&self, opened: &OpenedVariant) {
        *self.lock_current() = CurrentVariant {
            id: Some(opened.id.clone()),
            rendition_urls: opened.rendition_urls.clone(),
            variables: opened.variables.clone(),
        };
        self.failed_variants.record_return(&opened.id);
    }

    /// Finds a variant that has media while the one that is played has a gap. It is preferred from the next start on.
    pub(super) async fn find_variant_without_gap(&self) -> Option<OpenedVariant> {
        let current = self.current_id()?;
        let (found, multivariant) = self.load_multivariant().await?;
        let mut variants = rank_playable_variants(&multivariant, self.variant_limits).ok()?;
        variants.retain(|variant| variant_id(&multivariant, variant) != current);
        variants.sort_by_cached_key(|variant| self.failed_variants.is_demoted(&variant_id(&multivariant, variant)));
        let mut without_media = vec![(current, LeaveReason::Gap)];
        for variant in variants.into_iter().take(MAX_VARIANT_TRIES) {
            let opened = self.open_variant(&found, &multivariant, variant).await;
            let reason = if opened.is_ok() {
                LeaveReason::Gap
            } else {
                LeaveReason::Failure
            };
            if let Some(opened) = opened.ok().filter(|opened| opened.playlist.has_media_at_live_edge()) {
                info!(
                    host = self.host(),
                    "variant of the HLS origin has a gap; the gateway reads another variant"
                );
                let left = without_media.iter();
                left.for_each(|(id, reason)| self.failed_variants.add(id, *reason));
                return Some(opened);
            }
            without_media.push((variant_id(&multivariant, variant), reason));
        }
        None
    }

    /// Finds a variant that is better than the one that is played, was left, and has media again; and what is required
    /// of it until the source returns to it.
    pub(super) async fn open_better_variant_that_was_left(&self) -> Option<(OpenedVariant, ReturnRequirement)> {
        let current = self.current_id().filter(|_| self.failed_variants.has_left_any())?;
        let (found, multivariant) = self.load_multivariant().await?;
        let ranked = rank_playable_variants(&multivariant, self.variant_limits).ok()?;
        let rank = ranked
            .iter()
            .position(|variant| variant_id(&multivariant, variant) == current)?;
        let (better, rest) = ranked.split_at(rank);
        // A redundant variant is as good.
        let played = rest.first()?.attributes();
        let better = better.iter().filter(|variant| variant.attributes() != played);
        for variant in better.take(MAX_VARIANT_TRIES) {
            let Some(required) = self
                .failed_variants
                .return_requirement(&variant_id(&multivariant, variant))
            else {
                continue;
            };
            if let Ok(opened) = self.open_variant(&found, &multivariant, variant).await
                && opened.playlist.has_media_at_live_edge()
                && self.has_newest_segment(&opened).await
            {
                return Some((opened, required));
            }
        }
        None
    }

    /// Whether the newest segment of a variant can be fetched.
    async fn has_newest_segment(&self, opened: &OpenedVariant) -> bool {
        let newest = opened.playlist.segments.last().zip(opened.rendition_urls.first());
        let Some((segment, Ok(url))) = newest.map(|(segment, url)| (segment, url.join(&segment.uri))) else {
            return false;
        };
        let first_byte = ByteRange {
            begin: segment.byte_range.map_or(0, |range| range.begin),
            length: 1,
        };
        let fetched = fetch_file(
            &self.client,
            FileKind::Segment,
            &url,
            Some(first_byte),
            SEGMENT_PROBE_LIMITS,
        );
        fetched.await.is_ok()
    }

    async fn load_multivariant(&self) -> Option<(Url, MultivariantPlaylist)> {
        match load_playlist(&self.client, &self.playlist_url, &Arc::default()).await {
            Ok((found, Playlist::Multivariant(multivariant))) => Some((found, multivariant)),
            Ok((_, Playlist::Media(_))) | Err(_) => None,
        }
    }

    /// Offers a variant to return to.
    pub(super) fn offer_return(&self, opened: OpenedVariant) {
        *self.return_offer.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
    }

    /// Takes the variant to return to.
    pub(super) fn take_return_offer(&self) -> Option<OpenedVariant> {
        self.return_offer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Host of the operator's address.
    pub(super) fn host(&self) -> &str {
        self.playlist_url.host_str().unwrap_or_default()
    }

    /// Returns the address of a rendition of the variant that is played; `None` if there is only one variant.
    pub(super) fn current_rendition_url(&self, rendition: u8) -> Option<Url> {
        self.lock_current().rendition_urls.get(usize::from(rendition)).cloned()
    }

    /// Returns the variables that the playlists of the variant that is played may import.
    pub(super) fn current_variables(&self) -> Arc<PlaylistVariables> {
        self.lock_current().variables.clone()
    }

    /// Returns the id of the variant that is played; `None` if there is only one.
    pub(super) fn current_id(&self) -> Option<String> {
        self.lock_current().id.clone()
    }

    /// Tries the other variants before the one that is played, from the next start on.
    pub(super) fn mark_current_variant_failed(&self) {
        if let Some(id) = self.lock_current().id.take() {
            info!(
                host = self.host(),
                "variant of the HLS origin failed; the gateway tries another variant"
            );
            self.failed_variants.add(&id, LeaveReason::Failure);
        }
    }

    fn lock_current(&self) -> std::sync::MutexGuard<'_, CurrentVariant> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what identifies a variant each time that the playlist is loaded: the URIs of many origins have a token of each
/// request. Variants with equal attributes, as redundant ones (RFC 8216 §4.3.4.2), are told apart by their URIs.
fn variant_id(multivariant: &MultivariantPlaylist, variant: &Variant) -> String {
    let own = variant.attributes();
    let all = &multivariant.variants;
    match all.iter().filter(|other| other.attributes() == own).count() {
        0 | 1 => format!("{own:?}"),
        _ => variant.uri.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_known_again_by_its_attributes_if_those_are_its_own() {
        let playlist = |token: &str, bandwidths: [u64; 3]| MultivariantPlaylist {
            variants: bandwidths
                .iter()
                .enumerate()
                .map(|(number, bandwidth)| Variant {
                    uri: format!("{number}.m3u8?token={token}"),
                    bandwidth: *bandwidth,
                    height: Some(720),
                    codecs: None,
                    audio_group_id: None,
                })
                .collect(),
            ..MultivariantPlaylist::default()
        };
        let ids = |playlist: &MultivariantPlaylist| -> Vec<String> {
            let variants = playlist.variants.iter();
            variants.map(|variant| variant_id(playlist, variant)).collect()
        };
        let (one, other) = (ids(&playlist("a", [1, 2, 3])), ids(&playlist("b", [1, 2, 3])));
        assert!(one == other && one[0] != one[1]);
        let redundant = ids(&playlist("a", [1, 2, 2]));
        assert!(redundant[1] != redundant[2] && redundant[0] == one[0]);
    }
}
