//! Streams by name, their tracks, and the packets that all viewers share.
//!
//! The hub is the only place where shards meet: behind short locks that are never held while anything waits.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

pub mod address;
pub mod intake;
pub mod lock;
pub mod mailbox;
pub mod meter;
pub mod name;
pub mod reader;
pub mod registry;
pub mod ring;
pub mod stream;
pub mod tap;
pub mod track;
pub mod traffic;
pub mod vp8_rewriter;

use crate::media::Codec;
use crate::media::transcode::TranscodeTarget;
use lock::{Rank, RankedGuard, RankedMutex};
use name::StreamName;
use stream::{Stream, StreamId};

/// Who feeds transcoded streams.
struct Transcoder {
    /// What can be made of what.
    possible: Vec<(Codec, TranscodeTarget)>,
    wanted: Box<dyn Fn(&StreamName) + Send + Sync>,
}

/// All streams of the gateway.
pub struct Hub {
    streams: RankedMutex<Streams>,
    /// Told of each transcoded stream that is opened: somebody has to feed it.
    transcoder: OnceLock<Transcoder>,
}

#[derive(Debug, Default)]
struct Streams {
    by_name: HashMap<StreamName, Arc<Stream>>,
    last_id: u64,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            streams: RankedMutex::new(Rank::Streams, Streams::default()),
            transcoder: OnceLock::new(),
        }
    }
}

impl Hub {
    /// The stream of a name, if it has a source or a viewer.
    pub fn find(&self, name: &StreamName) -> Option<Arc<Stream>> {
        self.lock().by_name.get(name).cloned()
    }

    /// Changes a stream and forgets it if it is then without source and viewers. Whoever opened it before still shares
    /// it; whoever opens the name later gets a new one.
    pub fn release(&self, stream: &Stream, change: impl FnOnce(&mut stream::StreamState)) {
        let mut streams = self.lock();
        let unused = {
            let mut state = stream.lock();
            change(&mut state);
            state.is_unused()
        };
        if unused && streams.by_name.get(&stream.name).is_some_and(|s| s.id == stream.id) {
            streams.by_name.remove(&stream.name);
        }
    }

    /// Opens a stream and changes it in one step, so that it cannot be forgotten in between.
    pub fn open_with(&self, name: &StreamName, change: impl FnOnce(&mut stream::StreamState)) -> Arc<Stream> {
        let mut streams = self.lock();
        let last_id = &mut streams.last_id;
        let id = *last_id + 1;
        *last_id = id;
        let mut is_new = false;
        let stream = streams
            .by_name
            .entry(name.clone())
            .or_insert_with(|| {
                is_new = true;
                Arc::new(Stream::new(StreamId(id), name.clone()))
            })
            .clone();
        change(&mut stream.lock());
        drop(streams);
        if is_new
            && name.transcode().is_some()
            && let Some(transcoder) = self.transcoder.get()
        {
            (transcoder.wanted)(name);
        }
        stream
    }

    /// Names who feeds transcoded streams: what it can make of what, and what is called with each that is opened anew. Only the first
    /// call counts.
    pub fn set_transcoder(
        &self,
        possible: Vec<(Codec, TranscodeTarget)>,
        wanted: impl Fn(&StreamName) + Send + Sync + 'static,
    ) {
        let wanted = Box::new(wanted);
        let _ = self.transcoder.set(Transcoder { possible, wanted });
    }

    /// Whether something can be done for viewers who cannot play this.
    pub fn can_transcode(&self, codec: Codec) -> bool {
        self.can_transcode_to(codec, TranscodeTarget::of(codec.kind()))
    }

    /// Whether this transcode can be made of this codec.
    pub fn can_transcode_to(&self, codec: Codec, transcode: TranscodeTarget) -> bool {
        let transcoder = self.transcoder.get();
        transcoder.is_some_and(|transcoder| transcoder.possible.contains(&(codec, transcode)))
    }

    /// All streams at this moment.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.lock().by_name.values().cloned().collect()
    }

    fn lock(&self) -> RankedGuard<'_, Streams> {
        self.streams.lock()
    }
}
