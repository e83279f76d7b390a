//! Loads playlists and other files of an origin.

use std::hash::Hasher as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use url::Url;

use super::error::{FileKind, HlsError};
use super::http::{FetchLimits, OriginClient};
use super::playlist::{ByteRange, Playlist, PlaylistContext, PlaylistVariables};

/// Limits of a playlist. Some list hours of segments whose signed addresses have a kilobyte each.
pub(super) const PLAYLIST_FETCH_LIMITS: FetchLimits = FetchLimits {
    max_bytes: 16 << 20,
    timeout: Duration::from_secs(10),
};

/// Fetches a file. Errors name its kind and host.
pub(super) async fn fetch_file(
    client: &OriginClient,
    kind: FileKind,
    url: &Url,
    range: Option<ByteRange>,
    limits: FetchLimits,
) -> Result<(Url, Bytes), HlsError> {
    client.get(url, range, limits).await.map_err(|error| HlsError::Fetch {
        what: kind,
        host: url.host_str().unwrap_or_default().to_owned(),
        error,
    })
}

/// Loads a playlist that may import these variables. Returns it with its URL after redirects, to which the URLs in it are
/// relative.
pub(super) async fn load_playlist(
    client: &OriginClient,
    url: &Url,
    variables: &Arc<PlaylistVariables>,
) -> Result<(Url, Playlist), HlsError> {
    let (found, bytes) = fetch_file(client, FileKind::Playlist, url, None, PLAYLIST_FETCH_LIMITS).await?;
    let playlist = parse_playlist(bytes, &found, variables).await?;
    Ok((found, playlist))
}

/// Parses a playlist; a long one on a thread that may be blocked.
pub(super) async fn parse_playlist(
    bytes: Bytes,
    url: &Url,
    variables: &Arc<PlaylistVariables>,
) -> Result<Playlist, HlsError> {
    let context = PlaylistContext {
        url: Some(url.clone()),
        multivariant_variables: variables.clone(),
    };
    let is_short = bytes.len() <= MAX_PLAYLIST_BYTES_PARSED_INLINE;
    let parse = move || Playlist::parse_in_context(&String::from_utf8_lossy(&bytes), &context);
    if is_short {
        return Ok(parse()?);
    }
    match tokio::task::spawn_blocking(parse).await {
        Ok(parsed) => Ok(parsed?),
        // It was cancelled, with the source.
        Err(_) => Err(HlsError::StreamEnded),
    }
}

/// Length of a playlist that is parsed at once, in bytes.
const MAX_PLAYLIST_BYTES_PARSED_INLINE: usize = 256 << 10;

pub(super) fn content_hash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
