//! Values that debug output does not show.

use std::fmt;

/// A bearer token or another secret. Only [`Secret::reveal`] returns its text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns `None` if `text` is not a `b64token` (RFC 6750 §2.1), which a header could not carry.
    pub fn new(text: &str) -> Option<Self> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        let fits = (1..=MAX_SECRET_CHARS).contains(&text.len()) && text.bytes().all(is_allowed);
        fits.then(|| Self(text.to_owned()))
    }

    /// Returns the text, to compare it, to sign with it, or to show it to the operator.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Maximum length in characters, far below the size limit of request headers.
const MAX_SECRET_CHARS: usize = 512;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A value that may contain a secret, such as a URL with a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Redacted<T>(pub T);

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}
