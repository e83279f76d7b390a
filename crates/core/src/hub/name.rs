//! The name of a stream, as used in `/whip/NAME` and `/whep/NAME`.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::media::Rid;
use crate::media::track_delivery::TranscodeTarget;

/// One to four segments of `[A-Za-z0-9_.~-]`, joined by `/`, at most 128 characters in all; no segment is `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName(Arc<str>);

/// Reason why a text is not a valid stream name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamNameError {
    #[error("a stream name has 1 to {MAX_STREAM_NAME_LENGTH} characters")]
    InvalidLength,
    #[error("a stream name has 1 to {MAX_STREAM_NAME_PARTS} parts separated by `/`, and no part is empty, `.` or `..`")]
    InvalidParts,
    #[error("each part of a stream name is made of ASCII letters, digits, `_`, `.`, `~` and `-`")]
    InvalidCharacter,
}

const MAX_STREAM_NAME_LENGTH: usize = 128;
const MAX_STREAM_NAME_PARTS: usize = 4;

impl StreamName {
    /// Parses a name from a decoded URL path.
    ///
    /// # Errors
    ///
    /// A [`StreamNameError`] for the violated rule.
    pub fn parse(text: &str) -> Result<Self, StreamNameError> {
        if text.is_empty() || text.len() > MAX_STREAM_NAME_LENGTH {
            return Err(StreamNameError::InvalidLength);
        }
        let segments = text.split('/');
        if segments.clone().count() > MAX_STREAM_NAME_PARTS || segments.clone().any(|s| matches!(s, "" | "." | "..")) {
            return Err(StreamNameError::InvalidParts);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.~-/".contains(&b);
        if !text.bytes().all(allowed) {
            return Err(StreamNameError::InvalidCharacter);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key of a transcode of this stream.
    pub fn transcode_key(&self, target: TranscodeTarget) -> StreamKey {
        self.variant_key(StreamVariant::Transcoded(target))
    }

    /// Returns the key of what one of several sources of this stream sends.
    pub fn failover_source_key(&self, source: &SourceName) -> StreamKey {
        self.variant_key(StreamVariant::FailoverSource(source.clone()))
    }

    /// Returns the key of a simulcast layer of this stream.
    pub fn lower_simulcast_layer_key(&self, rid: &Rid) -> StreamKey {
        self.variant_key(StreamVariant::SimulcastLayer(rid.clone()))
    }

    /// Returns the key of what a talker sends to the camera of this stream.
    pub fn back_channel_key(&self) -> StreamKey {
        self.variant_key(StreamVariant::BackChannel)
    }

    fn variant_key(&self, variant: StreamVariant) -> StreamKey {
        StreamKey {
            name: self.clone(),
            variant,
        }
    }
}

/// Name of one of the sources of a stream that has several, such as `backup`: unique within its stream.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(Arc<str>);

/// Reason why a text is not a valid source name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a source name has 1 to {MAX_SOURCE_NAME_LENGTH} characters: lower-case ASCII letters, digits, `_` and `-`")]
pub struct SourceNameError;

const MAX_SOURCE_NAME_LENGTH: usize = 32;

impl SourceName {
    /// Parses a name.
    ///
    /// # Errors
    ///
    /// A [`SourceNameError`].
    pub fn parse(text: &str) -> Result<Self, SourceNameError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        if text.is_empty() || text.len() > MAX_SOURCE_NAME_LENGTH || !text.bytes().all(allowed) {
            return Err(SourceNameError);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identifies a stream in the hub: the name by which clients know it, and which variant of it this is. Clients can only
/// address originals.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    pub name: StreamName,
    pub variant: StreamVariant,
}

/// What a stream in the hub carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamVariant {
    /// What the source sends; of a simulcast, the best layer. With several sources, what the selected one sends.
    Original,
    /// What one of several sources sends, whether it is selected or stands by.
    FailoverSource(SourceName),
    /// A lower layer of a simulcast.
    SimulcastLayer(Rid),
    /// One track of the original, transcoded.
    Transcoded(TranscodeTarget),
    /// What a talker sends to the camera of the original.
    BackChannel,
}

impl StreamKey {
    /// Returns whether this is the stream that clients address.
    pub fn is_original_stream(&self) -> bool {
        self.variant == StreamVariant::Original
    }

    /// Returns whether this is a lower layer of a simulcast.
    pub(crate) fn is_lower_simulcast_layer(&self) -> bool {
        matches!(self.variant, StreamVariant::SimulcastLayer(_))
    }

    /// Returns the layer of a simulcast that this is, if it is a lower one.
    pub(crate) fn lower_simulcast_rid(&self) -> Option<&Rid> {
        match &self.variant {
            StreamVariant::SimulcastLayer(rid) => Some(rid),
            StreamVariant::Original
            | StreamVariant::FailoverSource(_)
            | StreamVariant::Transcoded(_)
            | StreamVariant::BackChannel => None,
        }
    }

    /// Returns the source whose media this is, if the stream has several.
    pub fn failover_source(&self) -> Option<&SourceName> {
        match &self.variant {
            StreamVariant::FailoverSource(source) => Some(source),
            StreamVariant::Original
            | StreamVariant::SimulcastLayer(_)
            | StreamVariant::Transcoded(_)
            | StreamVariant::BackChannel => None,
        }
    }

    /// Returns what a transcoded stream was transcoded to; `None` for other streams.
    pub fn transcoded_to(&self) -> Option<TranscodeTarget> {
        match self.variant {
            StreamVariant::Transcoded(target) => Some(target),
            StreamVariant::Original
            | StreamVariant::FailoverSource(_)
            | StreamVariant::SimulcastLayer(_)
            | StreamVariant::BackChannel => None,
        }
    }

    /// Returns whether this is what a talker sends to a camera.
    pub fn is_back_channel(&self) -> bool {
        self.variant == StreamVariant::BackChannel
    }
}

impl From<StreamName> for StreamKey {
    fn from(name: StreamName) -> Self {
        Self {
            name,
            variant: StreamVariant::Original,
        }
    }
}

impl From<&StreamName> for StreamKey {
    fn from(name: &StreamName) -> Self {
        name.clone().into()
    }
}

impl From<&StreamKey> for StreamKey {
    fn from(key: &StreamKey) -> Self {
        key.clone()
    }
}

/// For logs: `door`, `door#opus`, `door#@low`, `door#=backup`, `door#talk`. No stream name contains `#`.
impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variant {
            StreamVariant::Original => write!(f, "{}", self.name),
            StreamVariant::SimulcastLayer(rid) => write!(f, "{}#@{}", self.name, rid.0),
            StreamVariant::FailoverSource(source) => write!(f, "{}#={source}", self.name),
            StreamVariant::Transcoded(target) => write!(f, "{}#{}", self.name, target.label()),
            StreamVariant::BackChannel => write!(f, "{}#talk", self.name),
        }
    }
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_another_stream_than_its_original_and_cannot_be_addressed_by_clients() {
        let name = StreamName::parse("yard/gate").expect("a name");
        let original = StreamKey::from(&name);
        let variants = [
            name.transcode_key(TranscodeTarget::Opus),
            name.lower_simulcast_layer_key(&Rid("low".into())),
            name.failover_source_key(&SourceName::parse("backup").expect("a name")),
            name.back_channel_key(),
        ];
        for variant in variants {
            assert_ne!(variant, original);
            assert_eq!(variant.name, name);
            assert_eq!(
                StreamName::parse(&variant.to_string()),
                Err(StreamNameError::InvalidCharacter)
            );
        }
        assert_eq!(original.to_string(), "yard/gate");
    }

    #[test]
    fn source_names_fit_a_query_and_a_label() {
        for good in ["backup", "obs-2", "a_1"] {
            assert_eq!(
                SourceName::parse(good).map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in ["", "Backup", "a b", "a&b", "a/b", &"x".repeat(33)] {
            assert_eq!(SourceName::parse(bad), Err(SourceNameError), "{bad:?}");
        }
    }

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "live/cam-1", "a/b/c/d", "A_b.c~d-9"] {
            assert_eq!(StreamName::parse(good).expect(good).as_str(), good);
        }
        let long = "x".repeat(129);
        for (bad, why) in [
            ("", StreamNameError::InvalidLength),
            (long.as_str(), StreamNameError::InvalidLength),
            ("a/b/c/d/e", StreamNameError::InvalidParts),
            ("a//b", StreamNameError::InvalidParts),
            ("../etc", StreamNameError::InvalidParts),
            ("a b", StreamNameError::InvalidCharacter),
            ("caf\u{e9}", StreamNameError::InvalidCharacter),
            ("a\0", StreamNameError::InvalidCharacter),
        ] {
            assert_eq!(StreamName::parse(bad), Err(why), "{bad:?}");
        }
    }
}
