//! The configuration file: its TOML values with their places, and its syntax errors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{ConfigLocation, ConfigMistake, MistakeKind};
use super::syntax::{explain_syntax_error, is_unclosed_list_or_table_error};

/// A parsed file. Parsing continues after a syntax error.
pub(super) struct ConfigDocument<'a> {
    text: &'a str,
    path: &'a Path,
    /// Offset of the start of each line.
    line_starts: Vec<usize>,
    /// The values that could be parsed. The reader takes them out.
    pub(super) table: DeTable<'a>,
    /// The place of each key, by its path.
    pub(super) key_locations: BTreeMap<String, ConfigLocation>,
    syntax_errors: Vec<SyntaxError>,
    duplicate_key_mistakes: Vec<ConfigMistake>,
}

struct SyntaxError {
    offset: usize,
    mistake: ConfigMistake,
    /// The lines below may have been parsed as part of something else.
    affects_following_lines: bool,
}

impl<'a> ConfigDocument<'a> {
    pub(super) fn parse(text: &'a str, path: &'a Path) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        let mut document = Self {
            text,
            path,
            line_starts: std::iter::once(0).chain(newlines).collect(),
            table: table.into_inner(),
            key_locations: BTreeMap::new(),
            syntax_errors: Vec::new(),
            duplicate_key_mistakes: Vec::new(),
        };
        document.record_syntax_and_duplicate_key_errors(&errors);
        let mut places = BTreeMap::new();
        document.collect_key_locations(&document.table, "", &mut places);
        document.key_locations = places;
        document.record_first_occurrences_of_duplicate_keys();
        document
    }

    /// Returns syntax errors and duplicates.
    pub(super) fn syntax_and_duplicate_key_mistakes(&self) -> impl Iterator<Item = ConfigMistake> + use<'_> {
        let errors = self.syntax_errors.iter().map(|error| &error.mistake);
        errors.chain(&self.duplicate_key_mistakes).cloned()
    }

    /// Returns whether a problem at an offset may disappear once the syntax errors are corrected.
    pub(super) fn may_be_caused_by_syntax_error(&self, at: usize, problem: &MistakeKind) -> bool {
        let line = self.line_start_offset(at);
        self.syntax_errors.iter().any(|error| {
            let is_here = self.line_start_offset(error.offset) == line;
            let is_below = error.affects_following_lines && error.offset <= at;
            match problem {
                // The missing key may be in a line that could not be parsed.
                MistakeKind::MissingKey(_) => true,
                // Key and value are in this line.
                MistakeKind::InvalidValue { .. } => is_here,
                _ => is_here || is_below,
            }
        })
    }

    pub(super) fn location_at_offset(&self, at: usize) -> ConfigLocation {
        let line = self.line_starts.partition_point(|start| *start <= at);
        let in_line = self.text.get(self.line_start_offset(at)..at).unwrap_or_default();
        ConfigLocation::Line {
            line,
            column: in_line.chars().count() + 1,
            file: self.path.to_owned(),
        }
    }

    /// Returns a value as the file has it; see [`value_excerpt_unless_url_with_secret`].
    pub(super) fn value_excerpt_unless_url_with_secret(&self, span: Range<usize>) -> Option<String> {
        value_excerpt_unless_url_with_secret(self.text.get(span).unwrap_or_default())
    }

    fn line_start_offset(&self, at: usize) -> usize {
        let line = self.line_starts.partition_point(|start| *start <= at);
        self.line_starts
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    fn line_text_at(&self, at: usize) -> &'a str {
        let rest = self.text.get(self.line_start_offset(at)..).unwrap_or_default();
        rest.lines().next().unwrap_or_default()
    }

    fn collect_key_locations(&self, table: &DeTable<'_>, path: &str, places: &mut BTreeMap<String, ConfigLocation>) {
        for (key, value) in table {
            let path = join_key_path(path, key.get_ref());
            places.insert(path.clone(), self.location_at_offset(key.span().start));
            match value.get_ref() {
                DeValue::Table(table) => self.collect_key_locations(table, &path, places),
                DeValue::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        let path = format!("{path}[{index}]");
                        places.insert(path.clone(), self.location_at_offset(item.span().start));
                        if let DeValue::Table(table) = item.get_ref() {
                            self.collect_key_locations(table, &path, places);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Keeps the first error of each line: others in it are its consequences.
    fn record_syntax_and_duplicate_key_errors(&mut self, errors: &[toml::de::Error]) {
        let mut found: Vec<(usize, &str, Range<usize>)> = errors
            .iter()
            .map(|error| {
                let span = error.span().unwrap_or_default();
                let open = is_unclosed_list_or_table_error(error.message())
                    .then(|| self.start_of_unclosed_list_or_table(span.start))
                    .flatten();
                (open.unwrap_or(span.start), error.message(), span)
            })
            .collect();
        found.sort_by_key(|(at, ..)| *at);
        // The rest of the file was parsed as part of the unclosed list or table.
        let open = found
            .iter()
            .find(|(at, message, span)| is_unclosed_list_or_table_error(message) && *at < span.start);
        let end = open.map_or(usize::MAX, |(at, ..)| *at);
        let mut last = None;
        for (at, message, span) in found.into_iter().filter(|(at, ..)| *at <= end) {
            if last.replace(self.line_start_offset(at)) == Some(self.line_start_offset(at)) {
                continue;
            }
            let place = Some(self.location_at_offset(at));
            let line = self.line_text_at(at);
            let is_header = line.trim_start().starts_with('[');
            if message == "duplicate key" {
                let problem = MistakeKind::Duplicate {
                    is_table: is_header,
                    first_line: None,
                };
                let mistake = ConfigMistake::with_kind(self.key_path_at(&span), problem);
                self.duplicate_key_mistakes.push(ConfigMistake {
                    location: place,
                    ..mistake
                });
                continue;
            }
            let problem = MistakeKind::Syntax(explain_syntax_error(message, line, span.is_empty()));
            let mistake = ConfigMistake::with_kind(self.key_path_of_value(at), problem);
            let is_structural = is_unclosed_list_or_table_error(message)
                || is_header
                || line.contains("\"\"\"")
                || line.contains("'''");
            self.syntax_errors.push(SyntaxError {
                offset: at,
                mistake: ConfigMistake {
                    location: place,
                    ..mistake
                },
                affects_following_lines: is_structural,
            });
        }
        self.drop_duplicates_in_duplicate_tables();
    }

    /// Drops duplicate keys in a duplicate table: they are its consequences.
    fn drop_duplicates_in_duplicate_tables(&mut self) {
        let keys: Vec<String> = self
            .duplicate_key_mistakes
            .iter()
            .map(|mistake| mistake.key.clone())
            .collect();
        self.duplicate_key_mistakes.retain(|mistake| {
            let is_inside = |table: &String| {
                mistake
                    .key
                    .strip_prefix(table)
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            !keys.iter().any(is_inside)
        });
    }

    /// Adds to each duplicate the line that it repeats.
    fn record_first_occurrences_of_duplicate_keys(&mut self) {
        for index in 0..self.duplicate_key_mistakes.len() {
            let line = self
                .duplicate_key_mistakes
                .get(index)
                .and_then(|mistake| self.first_occurrence_line_number(mistake));
            if let Some(ConfigMistake {
                kind: MistakeKind::Duplicate { first_line, .. },
                ..
            }) = self.duplicate_key_mistakes.get_mut(index)
            {
                *first_line = line;
            }
        }
    }

    fn first_occurrence_line_number(&self, duplicate: &ConfigMistake) -> Option<usize> {
        let is_header = |line: &str| {
            let header = line
                .trim_start()
                .strip_prefix('[')
                .and_then(|rest| rest.split(']').next());
            header.is_some_and(|header| canonical_key_path(header.trim()) == duplicate.key)
        };
        // The places of tables are those of their last headers.
        let line = match (&duplicate.kind, self.key_locations.get(&duplicate.key)) {
            (MistakeKind::Duplicate { is_table: true, .. }, _) => self.text.lines().position(is_header)? + 1,
            (_, Some(ConfigLocation::Line { line, .. })) => *line,
            _ => return None,
        };
        let is_before = !matches!(&duplicate.location, Some(ConfigLocation::Line { line: own, .. }) if *own <= line);
        is_before.then_some(line)
    }

    /// Returns the start of the unclosed list or inline table that ends at `end`.
    fn start_of_unclosed_list_or_table(&self, end: usize) -> Option<usize> {
        fn innermost_unclosed_start(value: &Spanned<DeValue<'_>>, end: usize) -> Option<usize> {
            let inner = match value.get_ref() {
                DeValue::Table(table) => table.iter().find_map(|(_, value)| innermost_unclosed_start(value, end)),
                DeValue::Array(items) => items.iter().find_map(|value| innermost_unclosed_start(value, end)),
                _ => return None,
            };
            let is_unclosed = value.span().end == end && value.span().start < end;
            inner.or_else(|| is_unclosed.then(|| value.span().start))
        }
        self.table
            .iter()
            .find_map(|(_, value)| innermost_unclosed_start(value, end))
    }

    /// Returns the path of a key by the header above it.
    fn key_path_at(&self, key: &Range<usize>) -> String {
        let start = self.line_start_offset(key.start);
        let line = self.text.get(start..key.end).unwrap_or_default().trim();
        if let Some(header) = line.strip_prefix('[') {
            return canonical_key_path(header.trim_start_matches('[').trim());
        }
        // Within an inline table the path is not known.
        if line.contains(['=', '{', ',']) {
            return self.text.get(key.clone()).unwrap_or_default().to_owned();
        }
        let above = self.text.get(..start).unwrap_or_default();
        let header = above.lines().rev().map(str::trim).find(|line| line.starts_with('['));
        let header = header.and_then(|line| line.trim_start_matches('[').split(']').next());
        header.map_or_else(
            || canonical_key_path(line),
            |header| canonical_key_path(&format!("{}.{line}", header.trim())),
        )
    }

    /// Returns the path of the key whose value begins or ends at a position, if the line sets one.
    fn key_path_of_value(&self, at: usize) -> String {
        let start = self.line_start_offset(at);
        let before = self.text.get(start..at).unwrap_or_default();
        let Some((name, _)) = before.split_once('=') else {
            return String::new();
        };
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.\"".contains(c);
        let is_key = !name.trim().is_empty() && name.trim().chars().all(is_part);
        match is_key {
            true => self.key_path_at(&(start..start + name.len())),
            false => String::new(),
        }
    }
}

/// Returns a path of TOML as [`join_key_path`] writes it, without quotes around names that need none.
fn canonical_key_path(path: &str) -> String {
    let text = format!("{path} = 0");
    let Ok(table) = DeTable::parse(&text) else {
        return path.to_owned();
    };
    let (mut path, mut table) = (String::new(), table.get_ref());
    while let Some((name, value)) = table.iter().next() {
        path = join_key_path(&path, name.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    path
}

/// Maximum length of a value in a message, in characters.
const MAX_EXCERPT_CHARS: usize = 60;

/// Returns a value for a message, truncated if it is long. `None` if it may contain a secret: a URL with a user or
/// query.
pub(super) fn value_excerpt_unless_url_with_secret(text: &str) -> Option<String> {
    if may_be_url_with_secret(text) {
        return None;
    }
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(MAX_EXCERPT_CHARS).collect();
    Some(if short.len() < text.len() {
        format!("{short}...")
    } else {
        short
    })
}

/// Returns whether a value looks like a URL with a user or a query.
pub(super) fn may_be_url_with_secret(text: &str) -> bool {
    text.contains(['@', '?'])
}

/// Returns `path.key`, with quotes around a key that needs them.
pub fn join_key_path(path: &str, key: &str) -> String {
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    let key = match !key.is_empty() && key.bytes().all(is_bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
