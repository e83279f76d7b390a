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
//! * `resolver`: chooses a variant, and another one when it fails (`variants` ranks them).
//! * `cookies`: cookies by host.
//! * `fetcher`: follows one rendition; a source has one, or two if its audio is a separate rendition.
//! * `crypt`: AES-128.
//!
//! Segments are parsed only in a worker process without network and file access ([`crate::pipeline::demuxer`]). Formats
//! that a viewer cannot play are transcoded as for any other source.

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::HeaderMap;
use tokio::sync::Semaphore;
use url::Url;

use self::cursor::Cursor;
use self::error::{FileKind, HlsError};
use self::fetcher::{Fetcher, LastError};
use self::http::{Client, HttpError};
pub use self::resolver::DeadVariants;
use self::resolver::{Opened, Resolver};
pub use self::variants::Choice;
use crate::pipeline::description::Limits;
use crate::pipeline::process::{Process, ProcessError};
use crate::pipeline::programs::WorkerPrograms;
use crate::sources::fetch::address::Allowed;
use crate::sources::fetch::error::FetchError;
use crate::sources::fetch::pipeline::{Relay, Running};
use millstream_core::hub::name::StreamName;
use millstream_core::sources::frame_source::FanOut;
use millstream_worker_runtime::wire::{DemuxJob, FromWorker};

mod cookies;
mod crypt;
pub mod cursor;
pub mod error;
mod fetcher;
mod files;
pub mod http;
pub mod playlist;
mod resolver;
mod variants;

/// An HLS source.
#[derive(Clone)]
pub struct Origin {
    /// URL of its multivariant or media playlist.
    pub address: Url,
    /// Sent only to the host of the URL.
    pub headers: HeaderMap,
    pub choice: Choice,
    /// Whether a recorded source is repeated.
    pub repeats: bool,
    pub allowed: Allowed,
    /// The executable of the worker.
    pub programs: WorkerPrograms,
    /// Variants that failed, which are tried last for a while.
    pub dead: DeadVariants,
}

impl std::fmt::Debug for Origin {
    /// Shows only the host, because URL and headers may contain secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Origin({})", self.address.host_str().unwrap_or_default())
    }
}

/// Limits of the worker. Segments arrive in bursts, so the timeouts are longer than those of a camera.
const LIMITS: Limits = Limits {
    memory: 384,
    processors: 1,
    start_timeout: 20.0,
    stall_timeout: 8.0,
};

/// Plays the source until it fails. `live` is called once the stream receives frames.
pub async fn play<P: FanOut>(
    origin: &Origin,
    stream: &StreamName,
    plane: &P,
    live: &mut (dyn FnMut(&dyn std::fmt::Debug) + Send),
) -> FetchError {
    let client = match Client::new(&origin.address, origin.allowed.clone(), origin.headers.clone()) {
        Ok(client) => client,
        Err(error) => return error_of(origin, error).into(),
    };
    let resolver = Arc::new(Resolver::new(
        Arc::new(client),
        origin.address.clone(),
        origin.choice,
        origin.dead.clone(),
    ));
    let Opened { renditions, first, .. } = match resolver.open(false).await {
        Ok(opened) => opened,
        Err(error) => return error.into(),
    };
    let job = DemuxJob {
        renditions: if renditions.len() > 1 { 2 } else { 1 },
        is_live: !first.has_ended,
        memory: LIMITS.memory_bytes(),
    };
    let mut running = match Process::start_demuxer(&origin.programs, job, LIMITS) {
        Ok(process) => Running(Some(process)),
        Err(error) => return error.into(),
    };
    let Some(process) = &mut running.0 else {
        return FetchError::Displaced;
    };
    let last_error: LastError = Arc::new(Mutex::new(None));
    let requested: Vec<Arc<Semaphore>> = renditions.iter().map(|_| Arc::new(Semaphore::new(0))).collect();
    let mut first = Some(Arc::new(first));
    let mut fetching = tokio::task::JoinSet::new();
    for ((rendition, address), requested) in (0u8..).zip(renditions).zip(&requested) {
        let fetcher = Fetcher {
            resolver: resolver.clone(),
            base: address.clone(),
            address,
            rendition,
            cursor: Cursor::new(origin.repeats),
            feeder: process.feeder(),
            requested: requested.clone(),
            last_error: last_error.clone(),
            init: None,
            key: None,
            failures: 0,
            moved: None,
            loaded: None,
            waits_for: None,
        };
        fetching.spawn(fetcher.run(first.take()));
    }
    // An origin serves encoded media, so it cannot make key frames on request.
    let mut relay = Relay::new(stream, plane, false);
    loop {
        match process.next().await {
            Ok(FromWorker::Want(rendition)) => {
                if let Some(requested) = requested.get(usize::from(rendition)) {
                    requested.add_permits(1);
                }
            }
            Ok(message) => {
                if let Err(error) = relay.handle(message, process, live) {
                    return error;
                }
            }
            Err(error) => {
                // Nothing failed, so its playlist stands still.
                let has_failed = last_error.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                if !has_failed && matches!(error, ProcessError::Stalled(_) | ProcessError::NoOutput(_)) {
                    resolver.leave_current();
                }
                return cause(error, &last_error);
            }
        }
    }
}

/// Returns why no frames arrive: the last fetch error, if there is one.
fn cause(error: ProcessError, last_error: &LastError) -> FetchError {
    let known = last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (error, known) {
        (ProcessError::Stalled(_) | ProcessError::NoOutput(_), Some(known)) => known.into(),
        (ProcessError::Ended, _) => HlsError::Ended.into(),
        (error, _) => error.into(),
    }
}

fn error_of(origin: &Origin, error: HttpError) -> HlsError {
    HlsError::Fetch {
        what: FileKind::Playlist,
        host: origin.address.host_str().unwrap_or_default().to_owned(),
        error,
    }
}
