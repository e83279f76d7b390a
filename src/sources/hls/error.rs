//! Why an HLS source failed.

use thiserror::Error;

use super::http::HttpError;
use super::playlist::PlaylistError;

/// The kind of a fetched file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Playlist,
    InitSection,
    Segment,
    Key,
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Playlist => "the playlist",
            Self::InitSection => "an initialization section",
            Self::Segment => "a segment",
            Self::Key => "a key",
        })
    }
}

/// Why an HLS source failed. Shows only the host of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HlsError {
    #[error("cannot fetch {what} from {host}: {error}")]
    Fetch {
        what: FileKind,
        host: String,
        error: HttpError,
    },
    #[error("the playlist of the HLS origin cannot be used: {0}")]
    Playlist(#[from] PlaylistError),
    #[error("the multivariant playlist refers to another multivariant playlist")]
    NestedMultivariant,
    #[error(
        "each variant of the multivariant playlist has video that is not supported (only H.264 and H.265 are); the \
         codecs of the variants are: {0}"
    )]
    NoPlayableVariant(String),
    #[error("an HLS segment cannot be decrypted: its AES-128 key, its initialization vector or its content is wrong")]
    UndecryptableSegment,
    #[error("the HLS origin has ended its stream")]
    StreamEnded,
}
