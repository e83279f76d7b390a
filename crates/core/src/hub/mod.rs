//! StreamTable by name, their tracks, and the packet rings shared by all viewers.
//!
//! Shards share state only through the hub. Its locks are held briefly and never across a blocking operation.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

pub mod address;
pub mod changes;
pub mod data_settings;
pub mod data_tracks;
pub mod failover_input;
pub mod half_open;
pub mod id;
pub mod layer;
pub mod lock;
pub mod log_limit;
pub mod mailbox;
pub mod meter;
pub mod name;
pub mod packet_batch;
pub(crate) mod rate_limit;
pub mod reader;
pub mod ring;
pub mod session_registry;
pub mod shrink_sparse;
pub mod source_rewriter;
pub mod stream;
pub mod tap;
mod tap_queue;
pub mod track;
pub mod traffic;
pub mod viewer_quality;
pub(crate) mod vp8_rewriter;

use crate::media::Codec;
use crate::media::track_delivery::TranscodeTarget;
use changes::ChangeNotifier;
use lock::{LockRank, RankedGuard, RankedMutex};
use name::StreamKey;
use stream::{Stream, StreamId};

/// The component that produces transcoded streams.
struct TranscodeStarter {
    /// Supported pairs of input codec and transcode target.
    supported_conversions: Vec<(Codec, TranscodeTarget)>,
    on_transcoded_stream_opened: Box<dyn Fn(&StreamKey) + Send + Sync>,
}

/// All streams of the gateway.
pub struct Hub {
    streams: RankedMutex<StreamTable>,
    /// Called for every transcoded stream that is opened, so that a transcode is started for it.
    transcoder: OnceLock<TranscodeStarter>,
    change_notifier: Arc<ChangeNotifier>,
}

#[derive(Debug, Default)]
struct StreamTable {
    by_key: HashMap<StreamKey, Arc<Stream>>,
    last_stream_id: u64,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            streams: RankedMutex::new(LockRank::StreamMap, StreamTable::default()),
            transcoder: OnceLock::new(),
            change_notifier: Arc::default(),
        }
    }
}

impl Hub {
    /// Returns a stream that has a source or a viewer.
    pub fn find_stream(&self, key: impl Into<StreamKey>) -> Option<Arc<Stream>> {
        self.lock_streams().by_key.get(&key.into()).cloned()
    }

    /// Applies a change to a stream and removes the stream if it then has neither source nor viewers. Holders of the
    /// old `Arc` keep sharing it; a later open of the name creates a new stream.
    pub fn update_stream_and_remove_if_unused(&self, stream: &Stream, change: impl FnOnce(&mut stream::StreamState)) {
        let mut streams = self.lock_streams();
        let unused = stream.with_state(|state| {
            change(state);
            state.is_unused()
        });
        if unused && streams.by_key.get(&stream.key).is_some_and(|s| s.id == stream.id) {
            streams.by_key.remove(&stream.key);
        }
    }

    /// Opens or creates a stream and applies a change to it atomically, so that it cannot be removed in between.
    pub fn open_and_update_stream(
        &self,
        key: impl Into<StreamKey>,
        change: impl FnOnce(&mut stream::StreamState),
    ) -> Arc<Stream> {
        let key = key.into();
        let changes = &self.change_notifier;
        let mut streams = self.lock_streams();
        let last_id = &mut streams.last_stream_id;
        let id = *last_id + 1;
        *last_id = id;
        let mut is_new = false;
        let stream = streams
            .by_key
            .entry(key.clone())
            .or_insert_with(|| {
                is_new = true;
                Arc::new(Stream::new(StreamId(id), key.clone(), changes.clone()))
            })
            .clone();
        stream.with_state(change);
        drop(streams);
        if is_new
            && key.transcoded_to().is_some()
            && let Some(transcoder) = self.transcoder.get()
        {
            (transcoder.on_transcoded_stream_opened)(&key);
        }
        stream
    }

    /// Registers the transcoder: the supported pairs of input codec and target, and a callback for each newly opened
    /// transcoded stream. Only the first call has an effect.
    pub fn set_transcoder(
        &self,
        supported_conversions: Vec<(Codec, TranscodeTarget)>,
        on_stream_opened: impl Fn(&StreamKey) + Send + Sync + 'static,
    ) {
        let wanted = Box::new(on_stream_opened);
        let _ = self.transcoder.set(TranscodeStarter {
            supported_conversions,
            on_transcoded_stream_opened: wanted,
        });
    }

    /// Whether this codec can be transcoded to the default browser-playable target of its kind.
    pub fn can_transcode_codec_for_browsers(&self, codec: Codec) -> bool {
        self.can_transcode_codec_to(codec, TranscodeTarget::webrtc_target_for_kind(codec.kind()))
    }

    /// Whether this codec can be transcoded to this target.
    pub fn can_transcode_codec_to(&self, codec: Codec, transcode: TranscodeTarget) -> bool {
        let transcoder = self.transcoder.get();
        transcoder.is_some_and(|transcoder| transcoder.supported_conversions.contains(&(codec, transcode)))
    }

    /// Notification of changes of streams and sessions.
    pub fn change_notifier(&self) -> &Arc<ChangeNotifier> {
        &self.change_notifier
    }

    /// Returns a snapshot of all streams.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.lock_streams().by_key.values().cloned().collect()
    }

    fn lock_streams(&self) -> RankedGuard<'_, StreamTable> {
        self.streams.lock()
    }
}
