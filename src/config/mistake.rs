//! Mistakes in a configuration: where each is, what is wrong, and what is expected.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A mistake. Its text never contains a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMistake {
    /// Path of the key, such as `http.listen` or `streams.door.rtsp`; empty if there is none.
    pub key: String,
    pub location: Option<ConfigLocation>,
    pub kind: MistakeKind,
}

/// Where a key is set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigLocation {
    /// Line and column, from 1; the column counts characters.
    Line { line: usize, column: usize, file: PathBuf },
    /// A whole file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// In the body of a request (RFC 6901).
    JsonPointer(String),
}

/// What is wrong with a key or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MistakeKind {
    /// The file is not TOML, or cannot be read.
    Syntax(String),
    /// The key or table exists already; `first_line_of_error` is its first line, if known.
    Duplicate { is_table: bool, first_line: Option<usize> },
    /// No such `what` exists: a key, a section, an environment variable.
    UnknownName { what: &'static str, hint: MistakeHint },
    /// The value is invalid. `shown` is its text, unless it may be a secret.
    InvalidValue { shown: Option<String>, expected: String },
    /// Another key must be set too. The text follows the key in the message.
    MissingKey(String),
    /// Any other problem, as a sentence with a subject of its own.
    Sentence(String),
    /// Any other problem. The text follows the key in the message.
    Other(String),
}

/// What the operator probably meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MistakeHint {
    /// One of these names.
    SimilarNames(Vec<String>),
    /// One of all valid names.
    ValidNames(Vec<String>),
    /// A text that follows the name in the message.
    FreeText(&'static str),
}

/// The place of each key that is set, by its path.
pub(super) type KeyLocations = std::collections::BTreeMap<String, ConfigLocation>;

/// Returns the place of a key, or of the innermost table around it.
pub(super) fn location_of_key(locations: &KeyLocations, key: &str) -> Option<ConfigLocation> {
    let mut path = key;
    loop {
        if let Some(place) = locations.get(path) {
            return Some(place.clone());
        }
        path = path.get(..path.rfind(['.', '['])?)?;
    }
}

/// An invalid configuration, with all its mistakes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigError {
    /// In the order of the file, followed by those of environment variables.
    pub mistakes: Vec<ConfigMistake>,
}

/// Maximum number of mistakes in the text; the rest are only counted.
const MAX_LISTED_MISTAKES: usize = 100;

impl ConfigMistake {
    /// Creates a mistake without a place. `kind` follows the key in the message.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::with_kind(key, MistakeKind::Other(problem.into()))
    }

    /// Like [`ConfigMistake::new`], for any kind of problem.
    pub fn with_kind(key: impl Into<String>, problem: MistakeKind) -> Self {
        Self {
            key: key.into(),
            location: None,
            kind: problem,
        }
    }

    /// Returns whether another mistake may be a consequence of this one: it has the same key, the table around it, or
    /// the key that was probably meant.
    pub fn may_cause_mistake(&self, other: &Self) -> bool {
        let is_syntax = matches!(self.kind, MistakeKind::Syntax(_));
        let is_inside = self
            .key
            .strip_prefix(&other.key)
            .is_some_and(|rest| rest.starts_with('.'));
        (is_syntax && self.file_path_and_line_number() == other.file_path_and_line_number())
            || is_inside
            || self.concerns_key(&other.key)
    }

    /// Returns whether the mistake is in this key, or in a name that was probably meant to be this key.
    pub fn concerns_key(&self, path: &str) -> bool {
        let MistakeKind::UnknownName {
            hint: MistakeHint::SimilarNames(names),
            ..
        } = &self.kind
        else {
            return self.key == path;
        };
        let section = self.key.rsplit_once('.').map_or("", |(section, _)| section);
        let variable = super::section::environment_variable_name(path);
        let means = |name: &String| {
            let in_section = path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'));
            name == path || *name == variable || in_section == Some(name) || path.starts_with(&format!("{name}."))
        };
        names.iter().any(means)
    }

    fn file_path_and_line_number(&self) -> Option<(&Path, usize)> {
        match &self.location {
            Some(ConfigLocation::Line { line, file, .. }) => Some((file, *line)),
            _ => None,
        }
    }

    /// Puts `path` before the key: the mistake was found in a table that does not know its path.
    pub fn with_path_prefix(mut self, path: &str) -> Self {
        self.key = match self.key.as_str() {
            "" => path.to_owned(),
            key => format!("{path}.{key}"),
        };
        self
    }
}

impl ConfigError {
    /// Sorts the mistakes by place. Those without a place are last.
    pub fn new(mut mistakes: Vec<ConfigMistake>) -> Self {
        mistakes.sort_by_cached_key(|mistake| (mistake.location.is_none(), mistake.location.clone()));
        Self { mistakes }
    }

    /// Returns `Ok` if there are none.
    ///
    /// # Errors
    ///
    /// All of them.
    pub fn result_from_mistakes(mistakes: Vec<ConfigMistake>) -> Result<(), Self> {
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(Self::new(mistakes))
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [mistake] = self.mistakes.as_slice() {
            return mistake.fmt(f);
        }
        write!(f, "the configuration has {} mistakes:", self.mistakes.len())?;
        for mistake in self.mistakes.iter().take(MAX_LISTED_MISTAKES) {
            write!(f, "\n  {mistake}")?;
        }
        match self.mistakes.len().saturating_sub(MAX_LISTED_MISTAKES) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more mistakes"),
        }
    }
}

impl fmt::Display for ConfigMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.location {
            write!(f, "{place}: ")?;
        }
        let key = &self.key;
        match &self.kind {
            MistakeKind::Syntax(problem) if key.is_empty() => f.write_str(problem),
            MistakeKind::Syntax(problem) => write!(f, "`{key}`: {problem}"),
            MistakeKind::Duplicate { is_table, first_line } => {
                write_duplicate_key_mistake_text(f, key, *is_table, *first_line)
            }
            MistakeKind::UnknownName { what, hint } if key.is_empty() => write!(f, "unknown {what}{hint}"),
            MistakeKind::UnknownName { what, hint } => write!(f, "unknown {what} `{key}`{hint}"),
            MistakeKind::InvalidValue { shown, expected } => match shown {
                Some(shown) => write!(f, "`{key}` is {shown}: {expected}"),
                None => write!(f, "`{key}` has an invalid value: {expected}"),
            },
            MistakeKind::Sentence(problem) => write!(f, "`{key}`: {problem}"),
            MistakeKind::MissingKey(problem) | MistakeKind::Other(problem) => write!(f, "`{key}` {problem}"),
        }
    }
}

fn write_duplicate_key_mistake_text(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    is_table: bool,
    first_line: Option<usize>,
) -> fmt::Result {
    let what = if is_table { "table" } else { "key" };
    write!(f, "duplicate {what} `{key}`: ")?;
    if let Some(line) = first_line {
        let verb = if is_table { "begins" } else { "is set" };
        write!(f, "it already {verb} on line {line}; ")?;
    }
    f.write_str(match is_table {
        true if key.starts_with("streams.") => "merge the two tables, or rename one of them",
        true => "merge the two tables",
        false => "remove one of the two",
    })
}

impl fmt::Display for ConfigLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { line, column, file } => write!(f, "{}, line {line}, column {column}", file.display()),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Variable(name) => f.write_str(name),
            Self::JsonPointer(pointer) if pointer.is_empty() => f.write_str("the request body"),
            Self::JsonPointer(pointer) => f.write_str(pointer),
        }
    }
}

impl fmt::Display for MistakeHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SimilarNames(names) => write!(f, " (did you mean {}?)", quoted_list(names, "or")),
            Self::ValidNames(names) if names.is_empty() => Ok(()),
            Self::ValidNames(names) if names.len() == 1 => write!(f, "; expected {}", quoted_list(names, "or")),
            Self::ValidNames(names) => write!(f, "; expected one of {}", quoted_list(names, "or")),
            Self::FreeText(text) => f.write_str(text),
        }
    }
}

/// Returns "`a`, `b` and `c`", where `last` is "and".
pub fn quoted_list(names: &[impl AsRef<str>], last: &str) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.split_last() {
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
        None => String::new(),
    }
}

/// Returns the name that `word` was probably meant to be; `None` if all are too different.
pub fn nearest_name<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = normalize_name_for_comparison(word);
    let allowed = (word.chars().count() / 3).max(1);
    let distance = |name: &'a str| {
        let known = normalize_name_for_comparison(name);
        // The start of a name, or a name with a suffix.
        let is_start = word.len() >= MIN_NAME_PREFIX_BYTES && (known.starts_with(&word) || word.starts_with(&known));
        let distance = if is_start {
            1
        } else {
            strsim::osa_distance(&word, &known)
        };
        (distance <= allowed).then_some((distance, name))
    };
    let near = names.into_iter().filter_map(distance);
    near.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Minimum length of a prefix that counts as the name.
const MIN_NAME_PREFIX_BYTES: usize = 4;

/// Returns a name without case and separators: `corsOrigins`, `cors-origins` and `CORS__ORIGINS` are the same name.
fn normalize_name_for_comparison(name: &str) -> String {
    let is_part = |c: &char| c.is_alphanumeric() || *c == '.';
    name.chars().filter(is_part).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let names = ["listen", "cors_origins", "tls_certificate", "tls_key", "srt", "test"];
        for (word, wanted) in [
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("lsiten", Some("listen")),
            ("corsOrigins", Some("cors_origins")),
            ("cors-origin", Some("cors_origins")),
            ("tls_cert", Some("tls_certificate")),
            ("stt", Some("srt")),
            ("port", None),
            ("", None),
        ] {
            assert_eq!(nearest_name(word, names), wanted, "{word}");
        }
    }

    #[test]
    fn mistakes_beyond_the_limit_are_counted() {
        let mistakes = vec![ConfigMistake::new("a", "is wrong"); 103];
        let text = ConfigError { mistakes }.to_string();
        assert!(text.starts_with("the configuration has 103 mistakes:") && text.ends_with("and 3 more mistakes"));
        assert_eq!(text.lines().count(), 102);
    }
}
