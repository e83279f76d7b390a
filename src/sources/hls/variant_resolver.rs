//! Finds the media playlists of a source: chooses a variant, leaves one that fails for another, and remembers it.
//!
//! Addresses that were reached by a redirect or listed by a playlist may be good for a while only. The operator's address
//! leads to new ones.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;
use url::Url;

use super::error::{FileKind, HlsError};
use super::files::{PLAYLIST_FETCH_LIMITS, content_hash, load_playlist};
use super::http::{HttpError, OriginClient};
use super::playlist::{MediaPlaylist, MultivariantPlaylist, Playlist, Variant};
use super::variants::{VariantLimits, audio_rendition_uri, rank_playable_variants, unplayable_variant_names};

/// Variants that failed recently, by checksums of what identifies them, which may be long. They outlive a restart of the source.
#[derive(Clone, Debug, Default)]
pub struct FailedVariants(Arc<Mutex<Vec<(u64, Instant)>>>);

/// How long a variant that failed is tried after the others.
const FAILED_VARIANT_DEMOTION_PERIOD: Duration = Duration::from_secs(300);

/// Maximum number of variants that are remembered, and that are tried for one start.
const MAX_FAILED_VARIANTS: usize = 64;
const MAX_VARIANT_TRIES: usize = 6;

impl FailedVariants {
    fn add(&self, id: &str) {
        let id = content_hash(id.as_bytes());
        let mut dead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dead.retain(|(known, _)| *known != id);
        if dead.len() >= MAX_FAILED_VARIANTS {
            dead.remove(0);
        }
        dead.push((id, Instant::now()));
    }

    fn contains(&self, id: &str) -> bool {
        let id = content_hash(id.as_bytes());
        let dead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dead.iter()
            .any(|(known, since)| *known == id && since.elapsed() < FAILED_VARIANT_DEMOTION_PERIOD)
    }
}

/// Finds the media playlists of one source.
pub(super) struct VariantResolver {
    pub(super) client: Arc<OriginClient>,
    playlist_url: Url,
    variant_limits: VariantLimits,
    failed_variants: FailedVariants,
    /// Id of the variant that is played; `None` if there is only one.
    current_variant_id: Mutex<Option<String>>,
    /// Addresses of its renditions.
    rendition_urls: Mutex<Vec<Url>>,
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

impl VariantResolver {
    /// Makes a resolver for the source at the operator's address.
    pub(super) fn new(client: Arc<OriginClient>, address: Url, choice: VariantLimits, dead: FailedVariants) -> Self {
        Self {
            client,
            playlist_url: address,
            variant_limits: choice,
            failed_variants: dead,
            current_variant_id: Mutex::new(None),
            rendition_urls: Mutex::default(),
        }
    }

    /// Loads the operator's playlist, and the best variant of it that can be loaded; another one than the current, if it
    /// failed.
    pub(super) async fn resolve_playlists(
        &self,
        variant_has_failed: bool,
    ) -> Result<RenditionUrlsAndFirstPlaylist, HlsError> {
        let (found, playlist) = load_playlist(&self.client, &self.playlist_url, PLAYLIST_FETCH_LIMITS).await?;
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
        variants.sort_by_cached_key(|variant| self.failed_variants.contains(&variant_id(&multivariant, variant)));
        let mut failed = None;
        for variant in variants.into_iter().take(MAX_VARIANT_TRIES) {
            match self
                .load_variant_playlist_and_urls(&found, &multivariant, variant)
                .await
            {
                Ok(opened) => {
                    *self.lock_current_variant_id() = Some(variant_id(&multivariant, variant));
                    *self.rendition_urls.lock().unwrap_or_else(PoisonError::into_inner) = opened.rendition_urls.clone();
                    return Ok(opened);
                }
                Err(error) => {
                    self.failed_variants.add(&variant_id(&multivariant, variant));
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or(HlsError::NestedMultivariant))
    }

    async fn load_variant_playlist_and_urls(
        &self,
        found: &Url,
        multivariant: &MultivariantPlaylist,
        variant: &Variant,
    ) -> Result<RenditionUrlsAndFirstPlaylist, HlsError> {
        let join = |uri: &str| {
            found.join(uri).map_err(|_| HlsError::Fetch {
                what: FileKind::Playlist,
                host: found.host_str().unwrap_or_default().to_owned(),
                error: HttpError::UnsupportedScheme,
            })
        };
        let (main, first) = match load_playlist(&self.client, &join(&variant.uri)?, PLAYLIST_FETCH_LIMITS).await? {
            (main, Playlist::Media(media)) => (main, media),
            (_, Playlist::Multivariant(_)) => return Err(HlsError::NestedMultivariant),
        };
        first.require_supported_encryption()?;
        let mut renditions = vec![main];
        if let Some(uri) = audio_rendition_uri(multivariant, variant) {
            renditions.push(join(uri)?);
        }
        Ok(RenditionUrlsAndFirstPlaylist {
            rendition_urls: renditions,
            first_playlist: first,
            unplayable_variants: unplayable_variant_names(multivariant),
        })
    }

    /// Finds a variant that has media while the one that is played has a gap. Returns whether there is one; it is preferred
    /// from the next start on.
    pub(super) async fn prefer_variant_without_gap(&self) -> bool {
        let Some(current) = self.lock_current_variant_id().clone() else {
            return false;
        };
        let loaded = load_playlist(&self.client, &self.playlist_url, PLAYLIST_FETCH_LIMITS).await;
        let Ok((found, Playlist::Multivariant(multivariant))) = loaded else {
            return false;
        };
        let Ok(mut variants) = rank_playable_variants(&multivariant, self.variant_limits) else {
            return false;
        };
        variants.retain(|variant| variant_id(&multivariant, variant) != current);
        variants.sort_by_cached_key(|variant| self.failed_variants.contains(&variant_id(&multivariant, variant)));
        let mut without_media = vec![current.clone()];
        for variant in variants.into_iter().take(MAX_VARIANT_TRIES) {
            let opened = self
                .load_variant_playlist_and_urls(&found, &multivariant, variant)
                .await;
            let has_media = opened.is_ok_and(|opened| {
                let playlist = opened.first_playlist;
                let mut newest = playlist.segments.iter().rev().take(2);
                // The gap of this one may have ended only just before that of the other.
                !playlist.has_ended && !playlist.segments.is_empty() && newest.all(|segment| !segment.is_gap)
            });
            if has_media {
                info!(
                    host = self.playlist_url.host_str().unwrap_or_default(),
                    "variant of the HLS origin has a gap; the gateway plays another variant"
                );
                without_media.iter().for_each(|id| self.failed_variants.add(id));
                return true;
            }
            without_media.push(variant_id(&multivariant, variant));
        }
        false
    }

    /// Returns the address of a rendition of the variant that is played; `None` if there is only one variant.
    pub(super) fn current_rendition_url(&self, rendition: u8) -> Option<Url> {
        let renditions = self.rendition_urls.lock().unwrap_or_else(PoisonError::into_inner);
        renditions.get(usize::from(rendition)).cloned()
    }

    /// Tries the other variants before the one that is played, from the next start on.
    pub(super) fn mark_current_variant_failed(&self) {
        if let Some(id) = self.lock_current_variant_id().take() {
            info!(
                host = self.playlist_url.host_str().unwrap_or_default(),
                "variant of the HLS origin failed; the gateway tries another variant"
            );
            self.failed_variants.add(&id);
        }
    }

    fn lock_current_variant_id(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.current_variant_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what identifies a variant each time that the playlist is loaded: the URIs of many origins have a token of each
/// request. Variants with equal attributes, as redundant ones (RFC 8216 §4.3.4.2), are told apart by their URIs.
fn variant_id(multivariant: &MultivariantPlaylist, variant: &Variant) -> String {
    let attributes = |variant: &Variant| (variant.bandwidth, variant.height, variant.codecs.clone());
    let own = attributes(variant);
    let all = &multivariant.variants;
    match all.iter().filter(|other| attributes(other) == own).count() {
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
            audio_renditions: Vec::new(),
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
