//! HLS playlists (RFC 8216 §4): what they say. `parser` reads them.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use self::variables::{PlaylistContext, PlaylistVariables, VariableError};

mod attributes;
mod parser;
mod variables;

/// A playlist.
#[derive(Clone, Debug, PartialEq)]
pub enum Playlist {
    Multivariant(MultivariantPlaylist),
    Media(MediaPlaylist),
}

/// A multivariant playlist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MultivariantPlaylist {
    pub variants: Vec<Variant>,
    pub audio_renditions: Vec<AudioRendition>,
    /// For the media playlists, which may import them.
    pub variables: Arc<PlaylistVariables>,
}

/// One variant stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    pub uri: String,
    /// Peak bitrate in bit/s.
    pub bandwidth: u64,
    pub height: Option<u32>,
    pub codecs: Option<String>,
    /// Group of its audio renditions.
    pub audio_group_id: Option<String>,
}

impl Variant {
    /// Returns what its origin says of it: redundant variants have the same.
    pub fn attributes(&self) -> (u64, Option<u32>, Option<&str>) {
        (self.bandwidth, self.height, self.codecs.as_deref())
    }
}

/// An audio rendition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AudioRendition {
    pub group_id: String,
    /// `None` if the audio is part of the variant.
    pub uri: Option<String>,
    pub is_default: bool,
}

/// A media playlist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MediaPlaylist {
    pub target_duration: Duration,
    /// No segments will be added (EXT-X-ENDLIST).
    pub has_ended: bool,
    /// Segments are never removed (EXT-X-PLAYLIST-TYPE is VOD or EVENT).
    pub keeps_all_segments: bool,
    /// The origin supports blocking playlist reload (rfc8216bis §6.2.5.2).
    pub can_block_reload: bool,
    /// Segments are listed in parts (EXT-X-PART-INF).
    pub part_target: Option<Duration>,
    pub segments: Vec<OriginSegment>,
    /// Why segments are gaps, if they are encrypted in a way that is not supported.
    pub encryption: Option<String>,
    /// The segment in progress, of which only parts are listed.
    pub segment_in_progress: Option<OriginSegment>,
    /// Media sequence number of the segment that will be added next.
    pub next_segment_number: u64,
    /// The last line has no end: it may be cut off.
    pub may_be_truncated: bool,
}

/// One segment.
#[derive(Clone, Debug, PartialEq)]
pub struct OriginSegment {
    /// Media sequence number.
    pub media_sequence_number: u64,
    /// The same as the playlist has it, which holds for this playlist only if the origin does not count.
    pub listed_sequence_number: u64,
    /// Date and time of its first frame in milliseconds since 1970, stated or derived from the segments before.
    pub program_date_time: Option<i64>,
    /// Discontinuity sequence number, or the number of discontinuities in the playlist if it states none.
    pub discontinuity_sequence: u64,
    /// Whether the playlist states its discontinuity sequence number.
    pub has_discontinuity_sequence: bool,
    /// A discontinuity precedes the segment.
    pub follows_discontinuity: bool,
    pub duration: Duration,
    /// Empty for the segment in progress.
    pub uri: String,
    pub byte_range: Option<ByteRange>,
    /// Shared by all segments that use it.
    pub init_section: Option<Arc<InitSection>>,
    pub decryption_key: Option<Arc<KeyUriAndIv>>,
    /// Its media is missing (EXT-X-GAP), or it cannot be fetched or decrypted.
    pub is_gap: bool,
    /// Parts of a recent segment (EXT-X-PART).
    pub parts: Vec<OriginPart>,
}

/// A part of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPart {
    pub uri: String,
    pub byte_range: Option<ByteRange>,
    /// It starts with a frame that a decoder can start with.
    pub is_independent: bool,
    pub is_gap: bool,
}

/// A byte range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub begin: u64,
    pub length: u64,
}

/// An initialization section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitSection {
    pub uri: String,
    pub byte_range: Option<ByteRange>,
    /// The key that holds where it is listed, which need not be that of the segments (RFC 8216 §4.3.2.5).
    pub decryption_key: Option<Arc<KeyUriAndIv>>,
}

impl MediaPlaylist {
    /// Checks that there is something to decrypt. The playlist of a source that is played may list nothing but an
    /// advertisement for a while.
    ///
    /// # Errors
    ///
    /// [`PlaylistError::UnsupportedEncryption`].
    pub fn require_supported_encryption(&self) -> Result<(), PlaylistError> {
        match &self.encryption {
            Some(how) if self.segments.iter().all(|segment| segment.is_gap) => {
                Err(PlaylistError::UnsupportedEncryption(how.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the end of a live playlist has media. The gap of a variant may have ended only just before that of another.
    pub fn has_media_at_live_edge(&self) -> bool {
        let mut newest = self.segments.iter().rev().take(2);
        !self.has_ended && !self.segments.is_empty() && newest.all(|segment| !segment.is_gap)
    }
}

impl InitSection {
    /// Whether both are the same bytes once they are decrypted; the key before them changes while a playlist slides.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (&self.uri, self.byte_range) == (&other.uri, other.byte_range)
    }
}

/// How a segment is encrypted: AES-128 in CBC mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUriAndIv {
    pub uri: String,
    pub iv: Option<[u8; 16]>,
}

/// Why a playlist cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlaylistError {
    #[error("the file is not a playlist: its first line is not #EXTM3U")]
    NotPlaylist,
    #[error("the HLS segments have unsupported encryption ({0}): only AES-128 with a key URI is supported")]
    UnsupportedEncryption(String),
    #[error("the playlist lists neither segments nor variants")]
    Empty,
    #[error("the playlist lists more than {MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST} segments or variants")]
    TooManySegments,
    #[error(transparent)]
    Variable(#[from] VariableError),
}

/// Maximum number of segments or variants of a playlist. A recording of a day in segments of two seconds has 43200.
const MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST: usize = 50_000;

#[cfg(test)]
mod tests;
