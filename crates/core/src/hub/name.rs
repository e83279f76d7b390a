//! The name of a stream, as used in `/whip/NAME` and `/whep/NAME`.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::media::Rid;
use crate::media::transcode::TranscodeTarget;

/// One to four segments of `[A-Za-z0-9_.~-]`, joined by `/`, at most 128 characters in all; no segment is `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName(Arc<str>);

/// Reason why a text is not a valid stream name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamNameError {
    #[error("a stream name has 1 to {MAX_LENGTH} characters")]
    Length,
    #[error("a stream name has 1 to {MAX_SEGMENTS} segments, none of them empty, `.` or `..`")]
    Segments,
    #[error("a stream name is made of letters, digits and `_.~-`")]
    Character,
}

/// Separates the stream name from the label of a derived stream.
const MARK: char = '#';

/// Prefix of layer labels; no transcode label starts with it.
const LAYER: char = '@';

const MAX_LENGTH: usize = 128;
const MAX_SEGMENTS: usize = 4;

impl StreamName {
    /// Parses a name from a decoded URL path.
    ///
    /// # Errors
    ///
    /// A [`StreamNameError`] for the violated rule.
    pub fn parse(text: &str) -> Result<Self, StreamNameError> {
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(StreamNameError::Length);
        }
        let segments = text.split('/');
        if segments.clone().count() > MAX_SEGMENTS || segments.clone().any(|s| matches!(s, "" | "." | "..")) {
            return Err(StreamNameError::Segments);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.~-/".contains(&b);
        if !text.bytes().all(allowed) {
            return Err(StreamNameError::Character);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the transcoded variant of this stream. Clients cannot address it, because [`Self::parse`] rejects it.
    pub fn transcoded(&self, transcode: TranscodeTarget) -> Self {
        Self(format!("{}{MARK}{}", self.0, transcode.label()).into())
    }

    /// For a transcoded stream: the original stream, and the transcode target.
    pub fn transcode(&self) -> Option<(Self, TranscodeTarget)> {
        let (origin, label) = self.0.split_once(MARK)?;
        let transcode = TranscodeTarget::ALL
            .into_iter()
            .find(|transcode| transcode.label() == label)?;
        Some((Self(origin.into()), transcode))
    }

    /// Name of a simulcast layer of this stream. Clients cannot address it, because [`Self::parse`] rejects it.
    pub fn layer(&self, rid: &Rid) -> Self {
        Self(format!("{}{MARK}{LAYER}{}", self.0, rid.0).into())
    }

    /// Whether this is an original stream, i.e. neither transcoded nor a layer.
    pub fn is_whole(&self) -> bool {
        !self.0.contains(MARK)
    }

    /// Whether this is a simulcast layer.
    pub fn is_layer(&self) -> bool {
        self.0
            .split_once(MARK)
            .is_some_and(|(_, label)| label.starts_with(LAYER))
    }
}

impl fmt::Display for StreamName {
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
    fn a_transcoded_stream_cannot_be_named_from_outside() {
        let name = StreamName::parse("yard/gate").expect("a name");
        let transcoded = name.transcoded(TranscodeTarget::Opus);
        assert_eq!(transcoded.as_str(), "yard/gate#opus");
        assert_eq!(transcoded.transcode(), Some((name.clone(), TranscodeTarget::Opus)));
        assert_eq!(name.transcode(), None);
        assert_eq!(StreamName::parse(transcoded.as_str()), Err(StreamNameError::Character));
    }

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "live/cam-1", "a/b/c/d", "A_b.c~d-9"] {
            assert_eq!(StreamName::parse(good).expect(good).as_str(), good);
        }
        let long = "x".repeat(129);
        for (bad, why) in [
            ("", StreamNameError::Length),
            (long.as_str(), StreamNameError::Length),
            ("a/b/c/d/e", StreamNameError::Segments),
            ("a//b", StreamNameError::Segments),
            ("../etc", StreamNameError::Segments),
            ("a b", StreamNameError::Character),
            ("caf\u{e9}", StreamNameError::Character),
            ("a\0", StreamNameError::Character),
        ] {
            assert_eq!(StreamName::parse(bad), Err(why), "{bad:?}");
        }
    }
}
