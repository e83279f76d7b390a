//! Loads playlists and other files of an origin.

use std::hash::Hasher as _;
use std::time::Duration;

use bytes::Bytes;
use url::Url;

use super::error::{FileKind, HlsError};
use super::http::{Bounds, Client};
use super::playlist::{ByteRange, Playlist};

/// Limits of a playlist. Some list hours of segments whose signed addresses have a kilobyte each.
pub(super) const PLAYLIST: Bounds = Bounds {
    most: 16 << 20,
    within: Duration::from_secs(10),
};

/// Fetches a file. Errors name its kind and host.
pub(super) async fn get(
    client: &Client,
    kind: FileKind,
    address: &Url,
    range: Option<ByteRange>,
    bounds: Bounds,
) -> Result<(Url, Bytes), HlsError> {
    client
        .get(address, range, bounds)
        .await
        .map_err(|error| HlsError::Fetch {
            what: kind,
            host: address.host_str().unwrap_or_default().to_owned(),
            error,
        })
}

/// Loads a playlist. Returns it with its URL after redirects, to which the URLs in it are relative.
pub(super) async fn load_playlist(client: &Client, address: &Url, bounds: Bounds) -> Result<(Url, Playlist), HlsError> {
    let (found, bytes) = get(client, FileKind::Playlist, address, None, bounds).await?;
    Ok((found, parse(bytes).await?))
}

/// Parses a playlist; a long one on a thread that may be blocked.
pub(super) async fn parse(bytes: Bytes) -> Result<Playlist, HlsError> {
    let is_short = bytes.len() <= SHORT;
    let parse = move || Playlist::parse(&String::from_utf8_lossy(&bytes));
    if is_short {
        return Ok(parse()?);
    }
    match tokio::task::spawn_blocking(parse).await {
        Ok(parsed) => Ok(parsed?),
        // It was cancelled, with the source.
        Err(_) => Err(HlsError::Ended),
    }
}

/// Length of a playlist that is parsed at once, in bytes.
const SHORT: usize = 256 << 10;

pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
