//! Messages of data channels, and the labels by which they are told apart.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

/// Label of a data channel that carries a data track: 1 to 64 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataLabel(Arc<str>);

/// Reason why a text is not a valid label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a data channel label has 1 to {MAX_DATA_LABEL_LENGTH} characters: ASCII letters, digits, `.`, `_` and `-`")]
pub struct DataLabelError;

const MAX_DATA_LABEL_LENGTH: usize = 64;

impl DataLabel {
    /// Parses a label.
    ///
    /// # Errors
    ///
    /// A [`DataLabelError`].
    pub fn parse(text: &str) -> Result<Self, DataLabelError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if text.is_empty() || text.len() > MAX_DATA_LABEL_LENGTH || !text.bytes().all(allowed) {
            return Err(DataLabelError);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DataLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for DataLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Content of a message, as `RTCDataChannel.send` distinguishes it (RFC 8831 §6.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataPayload {
    Text(Arc<str>),
    Binary(Bytes),
}

impl DataPayload {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A message of a data track. Cloning shares the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataMessage {
    pub label: DataLabel,
    pub payload: DataPayload,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_short_and_of_plain_characters() {
        let longest = "x".repeat(64);
        for good in ["chat", "A.b_c-9", longest.as_str()] {
            assert_eq!(
                DataLabel::parse(good).map(|label| label.as_str().to_owned()),
                Ok(good.to_owned())
            );
        }
        let too_long = "x".repeat(65);
        for bad in ["", "two words", "ä", "a/b", "<b>", too_long.as_str()] {
            assert_eq!(DataLabel::parse(bad), Err(DataLabelError), "{bad}");
        }
    }
}
