//! One stream: at most one source, one audio and one video track, and the shards that have viewers of it.

use std::sync::Arc;

use super::lock::{Rank, RankedGuard, RankedMutex};
use super::name::StreamName;
use super::tap::{TapQueue, Taps};
use super::track::Track;
use super::traffic::Traffic;
use crate::media::{Codec, Format, Kind, Rid, transcode};
use crate::sdp::plan::{AvailableFormats, SourceFormats};

/// Number of a stream in this process; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Index of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardIndex(pub u16);

impl ShardIndex {
    /// Where a source lives that is no peer. There is never such a shard, and what is sent to it goes nowhere.
    pub const NONE: Self = Self(u16::MAX);
}

/// Unguessable identifier of a session (RFC 9725 §5): 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl std::fmt::Debug for SessionId {
    /// Three bytes only: the whole identifier is a capability and must not stand in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}")
    }
}

/// The session that feeds a stream, and where it lives: [`ShardIndex::NONE`] for a source that is no peer, which notices
/// by itself that it was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRef {
    pub session: SessionId,
    pub shard: ShardIndex,
    /// It has an encoder that can be asked for a key frame: a publisher that negotiated PLI, or a pipeline whose encoder
    /// takes GstForceKeyUnit. Cameras and HLS origins send what is encoded already.
    pub takes_key_frame_requests: bool,
}

/// One version of the picture of a simulcast (RFC 8853): it has a stream beside the one that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub rid: Rid,
    /// Width and height in pixels.
    pub resolution: Option<(u16, u16)>,
    /// Payload bits per second.
    pub bitrate: u64,
    /// It comes; browsers stop the best ones when their network is too slow.
    pub active: bool,
}

/// Which version of the picture a viewer wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LayerSelection {
    /// The best one.
    #[default]
    Automatic,
    /// This one, while it comes.
    Named(Rid),
    /// The best one that is no larger, in pixels.
    Within { width: u16, height: u16 },
}

impl LayerSelection {
    /// The layer to take; `None` takes what the stream itself has, which is the best one.
    pub fn choose(&self, layers: &[Layer]) -> Option<Rid> {
        let mut active = layers.iter().filter(|layer| layer.active);
        let chosen = match self {
            Self::Automatic => None,
            Self::Named(rid) => active.find(|layer| layer.rid == *rid),
            Self::Within { width, height } => {
                let fits = |layer: &&Layer| layer.resolution.is_some_and(|(w, h)| w <= *width && h <= *height);
                active.clone().find(fits).or_else(|| active.next_back())
            }
        };
        chosen.map(|layer| layer.rid.clone())
    }
}

/// A stream. Its state is behind one short lock, which is never held while anything waits.
#[derive(Debug)]
pub struct Stream {
    pub id: StreamId,
    pub name: StreamName,
    pub traffic: Traffic,
    state: RankedMutex<StreamState>,
}

/// What a stream holds.
#[derive(Debug)]
pub struct StreamState {
    pub video: Track,
    pub audio: Track,
    /// The source sends a key frame soon after it was asked for one; OBS does not.
    pub answers_requests: bool,
    /// Versions of the picture that viewers may choose from, the best first; empty without simulcast.
    layers: Vec<Layer>,
    source: Option<SourceRef>,
    /// A key frame was requested of a source that lives on no shard, and looks here.
    key_frame_requested: bool,
    /// Shards with viewers, and how many.
    subscribers: Vec<(ShardIndex, usize)>,
    taps: Taps,
}

impl Stream {
    pub(super) fn new(id: StreamId, name: StreamName) -> Self {
        let state = StreamState {
            video: Track::new(Kind::Video),
            audio: Track::new(Kind::Audio),
            answers_requests: false,
            layers: Vec::new(),
            source: None,
            key_frame_requested: false,
            subscribers: Vec::new(),
            taps: Taps::default(),
        };
        Self {
            id,
            name,
            traffic: Traffic::default(),
            state: RankedMutex::new(Rank::Stream, state),
        }
    }

    /// Takes the lock; never that of a second stream beside it. A panic elsewhere while it was held may have left a frame half inserted: the ring copes.
    pub fn lock(&self) -> RankedGuard<'_, StreamState> {
        self.state.lock()
    }
}

impl StreamState {
    /// Makes this session the source; new viewers begin with its key frame. The previous one, which has to be closed, is
    /// given back.
    pub fn attach(&mut self, source: SourceRef, formats: &SourceFormats) -> Option<SourceRef> {
        self.answers_requests = false;
        self.key_frame_requested = false;
        self.layers.clear();
        self.video.begin(formats.video);
        self.audio.begin(formats.audio);
        self.source
            .replace(source)
            .filter(|previous| previous.session != source.session)
    }

    /// Ends a source, if it is still this one.
    pub fn detach(&mut self, session: SessionId) -> bool {
        let is_source = self.is_source(session);
        if is_source {
            self.source = None;
            self.layers.clear();
        }
        is_source
    }

    /// Whether this session feeds the stream.
    pub fn is_source(&self, session: SessionId) -> bool {
        self.source.is_some_and(|source| source.session == session)
    }

    /// The session that feeds the stream.
    pub fn source(&self) -> Option<SourceRef> {
        self.source
    }

    /// What a viewer would get; `None` without a source.
    pub fn formats(&self) -> Option<SourceFormats> {
        self.source.map(|_| SourceFormats {
            video: self.video.format,
            audio: self.audio.format,
        })
    }

    /// Versions of the picture that viewers may choose from, the best first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What the source sends now; viewers look again where to take their picture from when it is something else.
    pub fn set_layers(&mut self, layers: Vec<Layer>) {
        let choice = |layer: &Layer| (layer.rid.clone(), layer.resolution, layer.active);
        self.video.format_changed |= !self.layers.iter().map(choice).eq(layers.iter().map(choice));
        self.layers = layers;
    }

    /// What the source says of itself has changed, if it is still this one.
    pub fn update_source(&mut self, source: SourceRef) {
        if self.is_source(source.session) {
            self.source = Some(source);
        }
    }

    /// A viewer wants a key frame. Returns whom to ask, `None` where there is nobody who can make one; a source that lives
    /// on no shard finds the request here.
    pub fn request_key_frame_of_source(&mut self) -> Option<SourceRef> {
        let source = self.source.filter(|source| source.takes_key_frame_requests);
        self.key_frame_requested |= source.is_some();
        source
    }

    /// Whether somebody wanted a key frame since the last call.
    pub fn take_key_frame_request(&mut self) -> bool {
        std::mem::take(&mut self.key_frame_requested)
    }

    /// What the stream carries now, for a viewer's answer; `None` without a source. `can_transcode` is whether something can be
    /// done about a codec.
    pub fn available_formats(&self, can_transcode: impl Fn(Codec) -> bool) -> Option<AvailableFormats> {
        let transcodable = |kind| self.format(kind).is_some_and(|format| can_transcode(format.codec()));
        Some(AvailableFormats {
            formats: self.formats()?,
            unplayable_video: self.is_unplayable(Kind::Video),
            unplayable_audio: self.is_unplayable(Kind::Audio),
            transcodable_video: transcodable(Kind::Video),
            transcodable_audio: transcodable(Kind::Audio),
        })
    }

    /// One more viewer on a shard.
    pub fn subscribe(&mut self, shard: ShardIndex) {
        match self.subscribers.iter_mut().find(|(s, _)| *s == shard) {
            Some((_, count)) => *count += 1,
            None => self.subscribers.push((shard, 1)),
        }
    }

    /// One viewer less on a shard.
    pub fn unsubscribe(&mut self, shard: ShardIndex) {
        if let Some((_, count)) = self.subscribers.iter_mut().find(|(s, _)| *s == shard) {
            *count -= 1;
        }
        self.subscribers.retain(|(_, count)| *count > 0);
    }

    /// One more reader that is no viewer: see [`super::tap::Tap`].
    pub(super) fn tap(&mut self, tap: &Arc<TapQueue>) {
        self.taps.add(tap);
    }

    /// One reader less that is no viewer.
    pub(super) fn untap(&mut self, tap: &Arc<TapQueue>) {
        self.taps.remove(tap);
    }

    /// The readers that are no viewers.
    pub fn taps(&mut self) -> Vec<Arc<TapQueue>> {
        self.taps.open()
    }

    /// Whether anybody takes what the stream carries.
    pub fn is_watched(&self) -> bool {
        !self.subscribers.is_empty() || !self.taps.is_empty()
    }

    /// Shards that have viewers.
    pub fn subscribers(&self) -> impl Iterator<Item = ShardIndex> + '_ {
        self.subscribers.iter().map(|(shard, _)| *shard)
    }

    /// Number of viewers.
    pub fn viewers(&self) -> usize {
        self.subscribers.iter().map(|(_, count)| count).sum()
    }

    /// What no browser plays as it is, of one kind: that for which there is a transcoded stream beside this one.
    pub fn is_unplayable(&self, kind: Kind) -> bool {
        self.format(kind).is_some_and(|format| {
            let is_reordered = kind == Kind::Video && self.video.is_reordered();
            transcode::is_unplayable(format, is_reordered)
        })
    }

    /// What one kind carries, or carried last.
    pub fn format(&self, kind: Kind) -> Option<Format> {
        match kind {
            Kind::Video => self.video.format,
            Kind::Audio => self.audio.format,
        }
    }

    /// The track of a kind.
    pub fn track(&mut self, kind: Kind) -> &mut Track {
        match kind {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        self.source.is_none() && !self.is_watched()
    }
}
