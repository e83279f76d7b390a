//! Follows one rendition: loads its playlist, gets its segments, and gives them to the worker when it wants them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;
use url::Url;

use super::crypt;
use super::cursor::{Cursor, Step};
use super::http::{Bounds, Client, HttpError};
use super::playlist::{Init, Key, Media, Playlist, Segment};
use super::{HlsError, What};
use crate::pipeline::process::Feeder;
use crate::pipeline::wire::{ChunkRole, SegmentChunk};

/// What a fetcher could not get last; there is none while all goes well.
pub(super) type LastError = Arc<Mutex<Option<HlsError>>>;

/// One rendition of a source.
pub(super) struct Fetcher {
    pub(super) client: Arc<Client>,
    /// Of its media playlist.
    pub(super) address: Url,
    pub(super) rendition: u8,
    pub(super) cursor: Cursor,
    pub(super) feeder: Feeder,
    /// Segments that the worker wants.
    pub(super) wants: Arc<Semaphore>,
    pub(super) trouble: LastError,
    pub(super) init: Option<(u64, Arc<Init>)>,
    pub(super) key: Option<(Url, [u8; 16])>,
    /// The origin lets a request wait for the next segment.
    pub(super) can_wait: bool,
}

/// Of playlists. Half a day in segments of six seconds has as much.
pub(super) const PLAYLIST: Bounds = Bounds {
    most: 1 << 20,
    within: Duration::from_secs(10),
};

/// Of segments.
const SEGMENT: Bounds = Bounds {
    most: 64 << 20,
    within: Duration::from_secs(60),
};

/// Of initialization sections, which have a few kilobytes: they go to the worker in one message.
const INIT: Bounds = Bounds {
    most: 1 << 20,
    within: Duration::from_secs(10),
};

/// Of keys. They have 16 bytes.
const KEY: Bounds = Bounds {
    most: 1_024,
    within: Duration::from_secs(10),
};

/// Bytes of one message to the worker.
const PIECE: usize = 1 << 20;

/// Between tries.
const RETRY: Duration = Duration::from_millis(500);

/// Tries of a segment. One that cannot be had is left out: what follows is worth more.
const TRIES: u32 = 3;

impl Fetcher {
    /// Follows for ever; `first` is the playlist if it was loaded already. Returns when the source has come to its end
    /// or the worker is gone.
    pub(super) async fn run(mut self, first: Option<Media>) {
        let mut loaded_at = Instant::now();
        let mut playlist = first;
        loop {
            let list = match playlist.take() {
                Some(list) => list,
                None => {
                    loaded_at = Instant::now();
                    match self.load().await {
                        Ok(list) => list,
                        Err(error) => {
                            self.record(Some(error));
                            sleep(RETRY).await;
                            continue;
                        }
                    }
                }
            };
            self.cursor.loaded(&list);
            self.can_wait = list.can_wait;
            let wait = loop {
                match self.cursor.step(&list) {
                    // A list of nothing but gaps would be gone through for ever.
                    Step::Fetch(segment, _) if segment.is_gap => sleep(RETRY).await,
                    Step::Fetch(segment, timeline) => match self.pass_on(&segment, timeline).await {
                        Ok(true) => self.record(None),
                        Ok(false) => return,
                        Err(error) => {
                            debug!(%error, number = segment.number, "segment left out");
                            self.record(Some(error));
                            sleep(RETRY).await;
                        }
                    },
                    Step::Reload(wait) => break wait,
                    Step::Ended => {
                        self.give(ChunkRole::End, 0, Bytes::new()).await;
                        return;
                    }
                }
            };
            // The server itself waits where it can.
            if !list.can_wait {
                sleep_until(loaded_at + wait).await;
            } else if loaded_at.elapsed() < Duration::from_millis(50) {
                sleep(RETRY).await;
            }
        }
    }

    async fn load(&self) -> Result<Media, HlsError> {
        let mut address = self.address.clone();
        // Only origins that said so are asked to wait; others may take it amiss.
        if let Some(awaited) = self.cursor.awaited().filter(|_| self.can_wait) {
            address.query_pairs_mut().append_pair("_HLS_msn", &awaited.to_string());
        }
        match load(&self.client, &address, PLAYLIST).await? {
            (_, Playlist::Media(media)) => Ok(media),
            (_, Playlist::Multivariant(_)) => Err(HlsError::Nested),
        }
    }

    /// Gets a segment and gives it to the worker; `false` when that is gone.
    async fn pass_on(&mut self, segment: &Segment, timeline: u64) -> Result<bool, HlsError> {
        let key = match &segment.key {
            None => None,
            Some(key) => Some((
                self.key(key).await?,
                key.iv.unwrap_or_else(|| crypt::iv_of(segment.number)),
            )),
        };
        if let Some(init) = &segment.init
            && self.init.as_ref() != Some(&(timeline, init.clone()))
        {
            let bytes = self.get(What::Init, &init.uri, init.range).await?;
            let bytes = decrypted(bytes, segment.key.as_ref().and_then(|known| known.iv).and(key))?;
            self.init = Some((timeline, init.clone()));
            self.give(ChunkRole::Init, timeline, bytes).await;
        }
        let bytes = self.get(What::Segment, &segment.uri, segment.range).await?;
        let bytes = decrypted(bytes, key)?;
        let Ok(permit) = self.wants.acquire().await else {
            return Ok(false);
        };
        permit.forget();
        let mut rest = bytes;
        while rest.len() > PIECE {
            let piece = rest.split_to(PIECE);
            if !self.give(ChunkRole::Part, timeline, piece).await {
                return Ok(false);
            }
        }
        Ok(self.give(ChunkRole::Last, timeline, rest).await)
    }

    async fn give(&self, role: ChunkRole, timeline: u64, bytes: Bytes) -> bool {
        let piece = SegmentChunk {
            rendition: self.rendition,
            role,
            timeline,
            bytes,
        };
        self.feeder.give(piece).await
    }

    async fn key(&mut self, key: &Key) -> Result<[u8; 16], HlsError> {
        let address = self.join(What::Key, &key.uri)?;
        if let Some((known, key)) = &self.key
            && *known == address
        {
            return Ok(*key);
        }
        let bytes = get(&self.client, What::Key, &address, None, KEY).await?.1;
        let key = <[u8; 16]>::try_from(bytes.as_ref()).map_err(|_| HlsError::Key)?;
        self.key = Some((address, key));
        Ok(key)
    }

    async fn get(&self, what: What, uri: &str, range: Option<super::playlist::ByteRange>) -> Result<Bytes, HlsError> {
        let address = self.join(what, uri)?;
        let bounds = match what {
            What::Init => INIT,
            What::Playlist | What::Segment | What::Key => SEGMENT,
        };
        let mut tries = 1;
        loop {
            match get(&self.client, what, &address, range, bounds).await {
                Ok((_, bytes)) => return Ok(bytes),
                Err(HlsError::Fetch { error, .. }) if error.may_pass() && tries < TRIES => {
                    tries += 1;
                    sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn join(&self, what: What, uri: &str) -> Result<Url, HlsError> {
        self.address.join(uri).map_err(|_| HlsError::Fetch {
            what,
            host: String::new(),
            error: HttpError::Scheme,
        })
    }

    fn record(&self, trouble: Option<HlsError>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

fn decrypted(bytes: Bytes, key: Option<([u8; 16], [u8; 16])>) -> Result<Bytes, HlsError> {
    match key {
        None => Ok(bytes),
        Some((key, iv)) => crypt::decrypt(&key, iv, &bytes).ok_or(HlsError::Key),
    }
}

/// Gets a file; errors say from where.
pub(super) async fn get(
    client: &Client,
    what: What,
    address: &Url,
    range: Option<super::playlist::ByteRange>,
    bounds: Bounds,
) -> Result<(Url, Bytes), HlsError> {
    client
        .get(address, range, bounds)
        .await
        .map_err(|error| HlsError::Fetch {
            what,
            host: address.host_str().unwrap_or_default().to_owned(),
            error,
        })
}

/// Loads a playlist, and tells where it was found in the end: addresses in it count from there.
pub(super) async fn load(client: &Client, address: &Url, bounds: Bounds) -> Result<(Url, Playlist), HlsError> {
    let (found, bytes) = get(client, What::Playlist, address, None, bounds).await?;
    let parsed = Playlist::parse(&String::from_utf8_lossy(&bytes))?;
    Ok((found, parsed))
}
