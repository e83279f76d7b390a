//! A bearer token: never printed by accident, compared in constant time.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A token. Its text is shown by [`Secret::reveal`] only.
#[derive(Clone)]
pub struct Secret {
    text: String,
    digest: [u8; 32],
}

impl Secret {
    /// `text` has to be a `b64token` (RFC 6750 §2.1), or it could not be sent in a header.
    pub fn new(text: &str) -> Option<Self> {
        let is_sendable = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        let fits = (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_sendable);
        fits.then(|| Self {
            text: text.to_owned(),
            digest: Sha256::digest(text).into(),
        })
    }

    /// Whether `given` is this token. Digests are compared, so that the time taken tells neither length nor content.
    pub fn matches(&self, given: &str) -> bool {
        Sha256::digest(given).ct_eq(&self.digest).into()
    }

    /// Whether this is the token with that SHA-256, compared in constant time.
    pub fn has_digest(&self, digest: &[u8; 32]) -> bool {
        digest.ct_eq(&self.digest).into()
    }

    /// The SHA-256 of the token.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The text, for the one place that shows it to the operator.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

/// Longest token, in characters: far below the limit for a request's headers.
const MAX_LENGTH: usize = 512;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
