//! Follows one rendition: loads its playlist, fetches its segments, and passes them to the worker on request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;
use url::Url;

use super::crypt;
use super::cursor::{Cursor, Step};
use super::error::{FileKind, HlsError};
use super::files::{PLAYLIST, checksum, get, parse};
use super::http::{Bounds, HttpError};
use super::playlist::{Init, Key, Media, Playlist, Segment};
use super::resolver::Resolver;
use crate::pipeline::process::Feeder;
use millstream_worker_runtime::wire::{ChunkRole, SegmentChunk};

/// The last fetch error; `None` after a successful fetch.
pub(super) type LastError = Arc<Mutex<Option<HlsError>>>;

/// One rendition of a source.
pub(super) struct Fetcher {
    pub(super) resolver: Arc<Resolver>,
    /// URL of its media playlist.
    pub(super) address: Url,
    pub(super) rendition: u8,
    /// URL of the playlist after redirects, to which the URLs in it are relative.
    pub(super) base: Url,
    pub(super) cursor: Cursor,
    pub(super) feeder: Feeder,
    /// A permit for each segment that the worker requested.
    pub(super) requested: Arc<Semaphore>,
    pub(super) last_error: LastError,
    pub(super) init: Option<(u64, Arc<Init>)>,
    pub(super) key: Option<(Url, [u8; 16])>,
    /// Consecutive files that could not be fetched.
    pub(super) failures: u32,
    /// When the operator's address was asked again.
    pub(super) moved: Option<Instant>,
    /// The last playlist, with a checksum of its text.
    pub(super) loaded: Option<(u64, Arc<Media>)>,
    /// Segment and part that the origin waits for, if it supports blocking playlist reload.
    pub(super) waits_for: Option<(u64, Option<usize>)>,
}

/// Limits of a segment.
const SEGMENT: Bounds = Bounds {
    most: 64 << 20,
    within: Duration::from_secs(60),
};

/// Limits of an initialization section, which usually has a few kilobytes and is sent to the worker in one message.
const INIT: Bounds = Bounds {
    most: 1 << 20,
    within: Duration::from_secs(10),
};

/// Limits of a key, which has 16 bytes.
const KEY: Bounds = Bounds {
    most: 1_024,
    within: Duration::from_secs(10),
};

/// Maximum number of bytes in one message to the worker.
const CHUNK_BYTES: usize = 1 << 20;

/// Interval between attempts.
const RETRY: Duration = Duration::from_millis(500);

/// Attempts to fetch a file. A segment that cannot be fetched is skipped.
const ATTEMPTS: u32 = 3;

/// Consecutive failures after which another variant is tried, and the interval at which the operator's address is asked
/// again.
const MAX_FAILURES: u32 = 3;
const MOVE_INTERVAL: Duration = Duration::from_secs(2);

impl Fetcher {
    /// Follows the playlist until the source has ended or the worker has exited; `first` is the playlist if it was
    /// already loaded.
    pub(super) async fn run(mut self, first: Option<Arc<Media>>) {
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
                            self.fail(error).await;
                            continue;
                        }
                    }
                }
            };
            self.cursor.loaded(&list);
            let mut has_fetched = false;
            let wait = loop {
                match self.cursor.step(&list) {
                    // The wait avoids a busy loop over a playlist that has only gaps.
                    Step::Fetch(segment, _) if segment.is_gap => sleep(RETRY).await,
                    Step::Fetch(segment, timeline) => match self.fetch_segment(&segment, timeline).await {
                        Ok(true) => {
                            self.record(None);
                            (self.failures, has_fetched) = (0, true);
                        }
                        Ok(false) => return,
                        Err(error) => {
                            debug!(%error, number = segment.number, "segment of the HLS origin skipped");
                            if self.fail(error).await {
                                break Duration::ZERO;
                            }
                        }
                    },
                    Step::Reload(wait) => break wait,
                    Step::Ended => {
                        self.send_to_demuxer(ChunkRole::End, 0, Bytes::new()).await;
                        return;
                    }
                }
            };
            self.waits_for = list
                .can_wait
                .then(|| {
                    let part = list.part_target.map(|_| self.cursor.next_part());
                    Some((self.cursor.next_number()?, part))
                })
                .flatten();
            // With blocking playlist reload the origin delays its response instead.
            if self.waits_for.is_none() {
                sleep_until(loaded_at + wait).await;
            } else if !has_fetched && loaded_at.elapsed() < Duration::from_millis(50) {
                sleep(RETRY).await;
            }
        }
    }

    /// Records a failure and waits. Asks the operator's address again if the server refuses an address that it led to, or
    /// if nothing was fetched for a while. Returns whether the playlist is another one now.
    async fn fail(&mut self, error: HlsError) -> bool {
        self.failures += 1;
        let is_refused = matches!(&error, HlsError::Fetch { error, what, .. }
            if error.is_refusal() && (*what == FileKind::Playlist || *error != HttpError::Status(404)));
        self.record(Some(error));
        let may_move = self.moved.is_none_or(|moved| moved.elapsed() >= MOVE_INTERVAL);
        if may_move && (is_refused || self.failures >= MAX_FAILURES) {
            self.moved = Some(Instant::now());
            let has_failed = self.failures >= MAX_FAILURES && self.rendition == 0;
            match self.resolver.open(has_failed).await {
                Ok(opened) => {
                    if let Some(address) = opened.renditions.into_iter().nth(usize::from(self.rendition)) {
                        if self.rendition == 0 && address != self.address {
                            self.cursor.moved(&opened.first);
                        }
                        self.base = address.clone();
                        (self.address, self.init, self.loaded) = (address, None, None);
                        self.failures = 0;
                        return true;
                    }
                }
                Err(error) => self.record(Some(error)),
            }
        }
        sleep(RETRY).await;
        false
    }

    async fn load(&mut self) -> Result<Arc<Media>, HlsError> {
        let mut address = self.address.clone();
        // `_HLS_msn` is sent only to origins that support it; others may reject the request.
        if let Some((number, part)) = self.waits_for {
            let mut query = address.query_pairs_mut();
            query.append_pair("_HLS_msn", &number.to_string());
            if let Some(part) = part {
                query.append_pair("_HLS_part", &part.to_string());
            }
        }
        let (found, bytes) = get(&self.resolver.client, FileKind::Playlist, &address, None, PLAYLIST).await?;
        self.base = found;
        let sum = checksum(&bytes);
        if let Some((known, media)) = &self.loaded
            && *known == sum
        {
            return Ok(media.clone());
        }
        match parse(bytes).await? {
            Playlist::Media(media) => {
                let media = Arc::new(media);
                self.loaded = Some((sum, media.clone()));
                Ok(media)
            }
            Playlist::Multivariant(_) => Err(HlsError::Nested),
        }
    }

    /// Fetches a segment and sends it to the worker. Returns `false` if the worker has exited.
    async fn fetch_segment(&mut self, segment: &Segment, timeline: u64) -> Result<bool, HlsError> {
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
            let bytes = self.get(FileKind::Init, &init.uri, init.range).await?;
            let bytes = decrypted(bytes, segment.key.as_ref().and_then(|known| known.iv).and(key))?;
            self.init = Some((timeline, init.clone()));
            self.send_to_demuxer(ChunkRole::Init, timeline, bytes).await;
        }
        let bytes = self.get(FileKind::Segment, &segment.uri, segment.range).await?;
        let bytes = decrypted(bytes, key)?;
        let Ok(permit) = self.requested.acquire().await else {
            return Ok(false);
        };
        permit.forget();
        let mut rest = bytes;
        while rest.len() > CHUNK_BYTES {
            let chunk = rest.split_to(CHUNK_BYTES);
            if !self.send_to_demuxer(ChunkRole::Part, timeline, chunk).await {
                return Ok(false);
            }
        }
        Ok(self.send_to_demuxer(ChunkRole::Last, timeline, rest).await)
    }

    async fn send_to_demuxer(&self, role: ChunkRole, timeline: u64, bytes: Bytes) -> bool {
        let chunk = SegmentChunk {
            rendition: self.rendition,
            role,
            timeline,
            bytes,
        };
        self.feeder.send(chunk).await
    }

    async fn key(&mut self, key: &Key) -> Result<[u8; 16], HlsError> {
        let address = self.join(FileKind::Key, &key.uri)?;
        if let Some((known, key)) = &self.key
            && *known == address
        {
            return Ok(*key);
        }
        let bytes = get(&self.resolver.client, FileKind::Key, &address, None, KEY).await?.1;
        let key = <[u8; 16]>::try_from(bytes.as_ref()).map_err(|_| HlsError::Key)?;
        self.key = Some((address, key));
        Ok(key)
    }

    async fn get(
        &self,
        kind: FileKind,
        uri: &str,
        range: Option<super::playlist::ByteRange>,
    ) -> Result<Bytes, HlsError> {
        let address = self.join(kind, uri)?;
        let bounds = match kind {
            FileKind::Init => INIT,
            FileKind::Playlist | FileKind::Segment | FileKind::Key => SEGMENT,
        };
        let mut attempts = 1;
        loop {
            match get(&self.resolver.client, kind, &address, range, bounds).await {
                Ok((_, bytes)) => return Ok(bytes),
                Err(HlsError::Fetch { error, .. }) if error.is_transient() && attempts < ATTEMPTS => {
                    attempts += 1;
                    sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn join(&self, kind: FileKind, uri: &str) -> Result<Url, HlsError> {
        self.base.join(uri).map_err(|_| HlsError::Fetch {
            what: kind,
            host: String::new(),
            error: HttpError::Scheme,
        })
    }

    fn record(&self, error: Option<HlsError>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

fn decrypted(bytes: Bytes, key: Option<([u8; 16], [u8; 16])>) -> Result<Bytes, HlsError> {
    match key {
        None => Ok(bytes),
        Some((key, iv)) => crypt::decrypt(&key, iv, &bytes).ok_or(HlsError::Key),
    }
}
