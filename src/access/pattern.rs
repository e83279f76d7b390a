//! Patterns of stream names for permissions.

use std::fmt;

/// A stream name in which each `*` matches any number of characters, including none and `/`.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamNamePattern(String);

/// Maximum length of a pattern, in characters.
const MAX_PATTERN_CHARS: usize = 128;

impl StreamNamePattern {
    /// Parses a pattern. Returns `None` if it contains other characters or is too long.
    pub fn parse(text: &str) -> Option<Self> {
        let is_part = |b: u8| b.is_ascii_alphanumeric() || b"_.~-/*".contains(&b);
        let fits = (1..=MAX_PATTERN_CHARS).contains(&text.len()) && text.bytes().all(is_part);
        fits.then(|| Self(text.to_owned()))
    }

    /// Returns the pattern that matches all streams.
    pub fn matching_all_streams() -> Self {
        Self("*".to_owned())
    }

    /// Returns the text of the pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern matches a name. The cost is at most the product of the two lengths.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            let Some(at) = rest.find(part) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        false
    }
}

impl fmt::Debug for StreamNamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_anything() {
        for (pattern, yes, no) in [
            ("live", &["live"][..], &["live2", "liv", "a/live"][..]),
            ("*", &["live", "a/b/c"], &[]),
            (
                "studio/*",
                &["studio/a", "studio/a/b"],
                &["studio", "studio2/a", "a/studio/b"],
            ),
            ("*/cam", &["a/cam", "a/b/cam"], &["cam", "a/cam2"]),
            ("a*b*c", &["abc", "axbxc", "abcbc"], &["ab", "acb", "abcd"]),
            ("a*a", &["aa", "aba"], &["a"]),
        ] {
            let pattern = StreamNamePattern::parse(pattern).expect("a pattern");
            for name in yes {
                assert!(pattern.matches(name), "{pattern:?} {name}");
            }
            for name in no {
                assert!(!pattern.matches(name), "{pattern:?} {name}");
            }
        }
        assert_eq!(StreamNamePattern::parse(""), None);
        assert_eq!(StreamNamePattern::parse("a b"), None);
    }
}
