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
use super::files::{PLAYLIST, checksum, load_playlist};
use super::http::{Client, HttpError};
use super::playlist::{Media, Multivariant, Playlist, Variant};
use super::variants::{Choice, audio_uri, ranked};

/// Variants that failed recently, by checksums of their URIs, which may be long. They outlive a restart of the source.
#[derive(Clone, Debug, Default)]
pub struct DeadVariants(Arc<Mutex<Vec<(u64, Instant)>>>);

/// How long a variant that failed is tried after the others.
const DEAD_FOR: Duration = Duration::from_secs(300);

/// Maximum number of variants that are remembered, and that are tried for one start.
const MAX_DEAD: usize = 64;
const MAX_TRIES: usize = 6;

impl DeadVariants {
    fn add(&self, uri: &str) {
        let uri = checksum(uri.as_bytes());
        let mut dead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dead.retain(|(known, _)| *known != uri);
        if dead.len() >= MAX_DEAD {
            dead.remove(0);
        }
        dead.push((uri, Instant::now()));
    }

    fn contains(&self, uri: &str) -> bool {
        let uri = checksum(uri.as_bytes());
        let dead = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        dead.iter()
            .any(|(known, since)| *known == uri && since.elapsed() < DEAD_FOR)
    }
}

/// Finds the media playlists of one source.
pub(super) struct Resolver {
    pub(super) client: Arc<Client>,
    address: Url,
    choice: Choice,
    dead: DeadVariants,
    /// URI of the variant that is played; `None` if there is only one.
    current: Mutex<Option<String>>,
}

/// What is played.
pub(super) struct Opened {
    /// URLs of the media playlists to follow.
    pub(super) renditions: Vec<Url>,
    /// The first of these playlists.
    pub(super) first: Media,
}

impl Resolver {
    /// Makes a resolver for the source at the operator's address.
    pub(super) fn new(client: Arc<Client>, address: Url, choice: Choice, dead: DeadVariants) -> Self {
        Self {
            client,
            address,
            choice,
            dead,
            current: Mutex::new(None),
        }
    }

    /// Loads the operator's playlist, and the best variant of it that can be loaded; another one than the current, if it
    /// failed.
    pub(super) async fn open(&self, has_failed: bool) -> Result<Opened, HlsError> {
        let (found, playlist) = load_playlist(&self.client, &self.address, PLAYLIST).await?;
        // The origin is there, so it is the variant.
        if has_failed {
            self.leave_current();
        }
        let multivariant = match playlist {
            Playlist::Media(first) => {
                let renditions = vec![found];
                return Ok(Opened { renditions, first });
            }
            Playlist::Multivariant(multivariant) => multivariant,
        };
        let mut variants = ranked(&multivariant, self.choice)?;
        variants.sort_by_cached_key(|variant| self.dead.contains(&variant.uri));
        let mut failed = None;
        for variant in variants.into_iter().take(MAX_TRIES) {
            match self.open_variant(&found, &multivariant, variant).await {
                Ok(opened) => {
                    *self.current() = Some(variant.uri.clone());
                    return Ok(opened);
                }
                Err(error) => {
                    self.dead.add(&variant.uri);
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or(HlsError::Nested))
    }

    async fn open_variant(
        &self,
        found: &Url,
        multivariant: &Multivariant,
        variant: &Variant,
    ) -> Result<Opened, HlsError> {
        let join = |uri: &str| {
            found.join(uri).map_err(|_| HlsError::Fetch {
                what: FileKind::Playlist,
                host: found.host_str().unwrap_or_default().to_owned(),
                error: HttpError::Scheme,
            })
        };
        let (main, first) = match load_playlist(&self.client, &join(&variant.uri)?, PLAYLIST).await? {
            (main, Playlist::Media(media)) => (main, media),
            (_, Playlist::Multivariant(_)) => return Err(HlsError::Nested),
        };
        let mut renditions = vec![main];
        if let Some(uri) = audio_uri(multivariant, variant) {
            renditions.push(join(uri)?);
        }
        Ok(Opened { renditions, first })
    }

    /// Tries the other variants before the one that is played, from the next start on.
    pub(super) fn leave_current(&self) {
        if let Some(uri) = self.current().take() {
            info!(
                host = self.address.host_str().unwrap_or_default(),
                "variant of the HLS origin failed, trying others"
            );
            self.dead.add(&uri);
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
