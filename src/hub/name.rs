//! The name of a stream: what stands behind `/whip/` and `/whep/`.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// One to four segments of `[A-Za-z0-9_.~-]`, joined by `/`, at most 128 characters in all; no segment is `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName(Arc<str>);

/// Why a text is not a stream name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamNameError {
    #[error("a stream name has 1 to {MAX_LENGTH} characters")]
    Length,
    #[error("a stream name has 1 to {MAX_SEGMENTS} segments, none of them empty, `.` or `..`")]
    Segments,
    #[error("a stream name is made of letters, digits and `_.~-`")]
    Character,
}

const MAX_LENGTH: usize = 128;
const MAX_SEGMENTS: usize = 4;

impl StreamName {
    /// Reads a name as it stands in a decoded URL path.
    ///
    /// # Errors
    ///
    /// A [`StreamNameError`] that names the broken rule.
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
