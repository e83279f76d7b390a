//! Values that are never printed by accident.

use std::fmt;

/// A bearer token. Its text is shown by [`Secret::reveal`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// `text` has to be a `b64token` (RFC 6750 §2.1), or it could not be sent in a header.
    pub fn new(text: &str) -> Option<Self> {
        let is_sendable = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        let fits = (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_sendable);
        fits.then(|| Self(text.to_owned()))
    }

    /// The text, for the places that compare it, sign with it, or show it to the operator.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Longest token, in characters: far below the limit for a request's headers.
const MAX_LENGTH: usize = 512;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A value that may hold a secret, such as an address with a password in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hidden<T>(pub T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}
