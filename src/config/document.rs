//! A file as TOML: its values with their places, and what is wrong with its syntax.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, Place, Problem};

/// The text of a file, read as far as that goes.
pub(super) struct Document<'a> {
    text: &'a str,
    path: &'a Path,
    /// Where lines begin.
    lines: Vec<usize>,
    /// What can be read; the reader takes it out.
    pub(super) table: DeTable<'a>,
    /// Places of all keys by their paths.
    pub(super) places: BTreeMap<String, Place>,
    errors: Vec<SyntaxError>,
    duplicates: Vec<Mistake>,
}

struct SyntaxError {
    at: usize,
    mistake: Mistake,
    /// What follows may be read as part of something else.
    is_structural: bool,
}

impl<'a> Document<'a> {
    pub(super) fn parse(text: &'a str, path: &'a Path) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        let mut document = Self {
            text,
            path,
            lines: std::iter::once(0).chain(newlines).collect(),
            table: table.into_inner(),
            places: BTreeMap::new(),
            errors: Vec::new(),
            duplicates: Vec::new(),
        };
        document.take_errors(&errors);
        let mut places = BTreeMap::new();
        document.walk(&document.table, "", &mut places);
        document.places = places;
        document
    }

    /// The mistakes of its syntax.
    pub(super) fn mistakes(&self) -> impl Iterator<Item = Mistake> + use<'_> {
        let errors = self.errors.iter().map(|error| &error.mistake);
        errors.chain(&self.duplicates).cloned()
    }

    /// Whether what was read at a place may be different once the syntax is right.
    pub(super) fn is_doubtful(&self, at: usize, problem: &Problem) -> bool {
        let line = self.line_start(at);
        self.errors.iter().any(|error| {
            let is_here = self.line_start(error.at) == line;
            let is_below = error.is_structural && error.at <= at;
            match problem {
                // What is missing may be what could not be read.
                Problem::Missing(_) => true,
                // It is known by its section, and the value is what stands there.
                Problem::Value { .. } => is_here,
                _ => is_here || is_below,
            }
        })
    }

    pub(super) fn place(&self, at: usize) -> Place {
        let line = self.lines.partition_point(|start| *start <= at);
        let in_line = self.text.get(self.line_start(at)..at).unwrap_or_default();
        Place::Line {
            line,
            column: in_line.chars().count() + 1,
            file: self.path.to_owned(),
        }
    }

    /// A value as it is written; see [`shown`].
    pub(super) fn shown(&self, span: Range<usize>) -> Option<String> {
        shown(self.text.get(span).unwrap_or_default())
    }

    fn line_start(&self, at: usize) -> usize {
        let line = self.lines.partition_point(|start| *start <= at);
        self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn walk(&self, table: &DeTable<'_>, path: &str, places: &mut BTreeMap<String, Place>) {
        for (key, value) in table {
            let path = joined(path, key.get_ref());
            places.insert(path.clone(), self.place(key.span().start));
            match value.get_ref() {
                DeValue::Table(table) => self.walk(table, &path, places),
                DeValue::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        let path = format!("{path}[{index}]");
                        places.insert(path.clone(), self.place(item.span().start));
                        if let DeValue::Table(table) = item.get_ref() {
                            self.walk(table, &path, places);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Takes the first error of each line: what follows it there comes of it.
    fn take_errors(&mut self, errors: &[toml::de::Error]) {
        let mut found: Vec<(usize, &str, Range<usize>)> = errors
            .iter()
            .map(|error| {
                let span = error.span().unwrap_or_default();
                let open = unclosed(error.message()).then(|| self.opening(span.start)).flatten();
                (open.unwrap_or(span.start), error.message(), span)
            })
            .collect();
        found.sort_by_key(|(at, ..)| *at);
        // All the rest of the file was read as part of what is not closed.
        let open = found
            .iter()
            .find(|(at, message, span)| unclosed(message) && *at < span.start);
        let end = open.map_or(usize::MAX, |(at, ..)| *at);
        let mut last = None;
        for (at, message, span) in found.into_iter().filter(|(at, ..)| *at <= end) {
            if last.replace(self.line_start(at)) == Some(self.line_start(at)) {
                continue;
            }
            let place = Some(self.place(at));
            if message == "duplicate key" {
                let mistake = Mistake::of(self.path_at(&span), Problem::Duplicate);
                self.duplicates.push(Mistake { place, ..mistake });
                continue;
            }
            let mistake = Mistake::of("", Problem::Syntax(plain(message, span.is_empty())));
            let line = self
                .text
                .get(self.line_start(at)..)
                .and_then(|rest| rest.lines().next());
            let is_structural = |line: &str| {
                unclosed(message)
                    || line.trim_start().starts_with('[')
                    || line.contains("\"\"\"")
                    || line.contains("'''")
            };
            self.errors.push(SyntaxError {
                at,
                mistake: Mistake { place, ..mistake },
                is_structural: line.is_none_or(is_structural),
            });
        }
        self.drop_repeated_tables();
    }

    /// Keys in a table that is there twice are duplicates because the table is.
    fn drop_repeated_tables(&mut self) {
        let keys: Vec<String> = self.duplicates.iter().map(|mistake| mistake.key.clone()).collect();
        self.duplicates.retain(|mistake| {
            let is_inside = |table: &String| {
                mistake
                    .key
                    .strip_prefix(table)
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            !keys.iter().any(is_inside)
        });
    }

    /// Where the array or table begins that is not closed at `end`.
    fn opening(&self, end: usize) -> Option<usize> {
        fn find(value: &Spanned<DeValue<'_>>, end: usize) -> Option<usize> {
            let inner = match value.get_ref() {
                DeValue::Table(table) => table.iter().find_map(|(_, value)| find(value, end)),
                DeValue::Array(items) => items.iter().find_map(|value| find(value, end)),
                _ => return None,
            };
            let is_it = value.span().end == end && value.span().start < end;
            inner.or_else(|| is_it.then(|| value.span().start))
        }
        self.table.iter().find_map(|(_, value)| find(value, end))
    }

    /// The path of the key at a place, by the header above it.
    fn path_at(&self, key: &Range<usize>) -> String {
        let start = self.line_start(key.start);
        let line = self.text.get(start..key.end).unwrap_or_default().trim();
        if let Some(header) = line.strip_prefix('[') {
            return header.trim_start_matches('[').trim().to_owned();
        }
        // In an inline table what stands before it is no path.
        if line.contains(['=', '{', ',']) {
            return self.text.get(key.clone()).unwrap_or_default().to_owned();
        }
        let above = self.text.get(..start).unwrap_or_default();
        let header = above.lines().rev().map(str::trim).find(|line| line.starts_with('['));
        let header = header.and_then(|line| line.trim_start_matches('[').split(']').next());
        header.map_or_else(|| line.to_owned(), |header| format!("{}.{line}", header.trim()))
    }
}

/// Longest value that is shown, in characters.
const MAX_SHOWN: usize = 60;

/// A value for a message, cut where it is long. `None` for one that may hold a secret: an address with a user or a query.
pub(super) fn shown(text: &str) -> Option<String> {
    if may_hold_secret(text) {
        return None;
    }
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(MAX_SHOWN).collect();
    Some(if short.len() < text.len() {
        format!("{short}...")
    } else {
        short
    })
}

pub(super) fn may_hold_secret(text: &str) -> bool {
    text.contains(['@', '?'])
}

/// `path.key`, with quotes around a key that needs them.
pub fn joined(path: &str, key: &str) -> String {
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    let key = match !key.is_empty() && key.bytes().all(is_bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

fn unclosed(message: &str) -> bool {
    message.starts_with("unclosed array,") || message.starts_with("unclosed inline table")
}

/// The words of the parser, where they are plain enough, or better ones. `is_missing`: there is nothing at the place.
fn plain(message: &str, is_missing: bool) -> String {
    let starts = |words: &[&str]| words.iter().any(|word| message.starts_with(word));
    let plain = if is_missing && starts(&["string values must be quoted"]) {
        "the value is missing"
    } else if starts(&["string values must be quoted", "missing opening quote"]) {
        "text has to be in quotes"
    } else if starts(&[
        "invalid float",
        "invalid integer",
        "invalid datetime",
        "unexpected leading zero",
    ]) {
        "not a number; text has to be in quotes"
    } else if starts(&["invalid boolean"]) {
        "expected `true` or `false`"
    } else if starts(&["invalid basic string", "invalid literal string"]) {
        "the text has no closing quote, or holds a control character"
    } else if starts(&["missing escaped value"]) {
        "unknown escape in a text; write a backslash as `\\\\`, or the text in single quotes"
    } else if starts(&["unclosed array,"]) {
        "the list that begins here has no closing `]`"
    } else if starts(&["unclosed inline table"]) {
        "the table that begins here has no closing `}`"
    } else if starts(&["unclosed table", "unclosed array table"]) {
        "the header has no closing `]`"
    } else if starts(&["key with no value", "invalid unquoted key"]) {
        "expected `key = value`"
    } else {
        message.trim_end_matches(", expected nothing")
    };
    plain.to_owned()
}
