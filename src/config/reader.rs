//! Reads sections key by key, from the file and the environment. A mistake in one key does not hide those in others.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::auth::{Auth, TokenConfig};
use super::document::{Document, joined, shown};
use super::environment::Variables;
use super::mistake::Places;
use super::mistake::{Hint, Mistake, Place, Problem, nearest};
use super::renames;
use super::section::STREAMS;
use super::section::{Key, Section};

/// Reads a configuration.
pub(super) struct Reader<'a> {
    /// All keys of the configuration, to suggest one for a misspelt one.
    keys: &'a [&'static Key],
    document: Document<'a>,
    variables: Variables,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

/// What the reader found besides the values.
pub(super) struct Findings {
    pub(super) places: Places,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
}

/// Pairs of keys that set the same thing. If both are set in the file, or both by variables, the second one is used.
const EXCLUSIVE_KEYS: [(&str, &str); 4] = [
    ("ice.turn_secret", "ice.turn_user"),
    ("auth.publish_token", "auth.publish_token_file"),
    ("auth.play_token", "auth.play_token_file"),
    ("auth.api_token", "auth.api_token_file"),
];

impl<'a> Reader<'a> {
    pub(super) fn new(
        mut document: Document<'a>,
        mut variables: Variables,
        renamed: &[(&str, &str)],
        keys: &'a [&'static Key],
    ) -> Self {
        let messages = renames::apply(&mut document, &mut variables, renamed);
        let mut mistakes = std::mem::take(&mut variables.mistakes);
        mistakes.extend(document.mistakes());
        mistakes.extend(messages.mistakes);
        Self {
            document,
            variables,
            mistakes,
            warnings: messages.warnings,
            keys,
        }
    }

    /// Reads a section.
    pub(super) fn section<S: Section>(&mut self) -> S {
        let table = self.take(S::NAME);
        self.merged(table)
    }

    /// Reads the section `auth`, with its list of tokens.
    pub(super) fn auth(&mut self) -> Auth {
        let mut table = self.take(Auth::NAME);
        let tokens = table.remove("tokens").map(|tokens| self.tokens(tokens));
        let auth = self.merged::<Auth>(table);
        Auth {
            tokens: tokens.unwrap_or_default(),
            ..auth
        }
    }

    /// Returns the findings. What is left in the document is unknown.
    pub(super) fn finish(mut self) -> Findings {
        let keys = self.keys;
        for (name, value) in std::mem::take(&mut self.document.table) {
            let is_section = matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            let problem = if is_section {
                unknown_section(name.get_ref(), keys)
            } else {
                unknown_key(name.get_ref(), &[], keys)
            };
            self.mistake(name.span().start, Mistake::of(joined("", name.get_ref()), problem));
        }
        let mut places = std::mem::take(&mut self.document.places);
        for (path, (variable, _)) in self.variables.values {
            places.insert(path, Place::Variable(variable));
        }
        Findings {
            places,
            mistakes: self.mistakes,
            warnings: self.warnings,
        }
    }

    /// Takes a section's table out of the document.
    pub(super) fn take(&mut self, name: &str) -> DeTable<'a> {
        let Some(value) = self.document.table.remove(name) else {
            return DeTable::new();
        };
        self.table(name, value, &format!("has to be a table, [{name}]"))
            .unwrap_or_default()
    }

    /// Returns the table that a value must be. Otherwise adds a mistake with the text `problem`.
    pub(super) fn table(&mut self, path: &str, value: Spanned<DeValue<'a>>, problem: &str) -> Option<DeTable<'a>> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.mistake(span.start, Mistake::new(path, problem));
                None
            }
        }
    }

    /// Adds a mistake at a place in the file.
    pub(super) fn mistake(&mut self, at: usize, mistake: Mistake) {
        if !self.document.is_doubtful(at, &mistake.problem) {
            let place = Some(self.document.place(at));
            self.mistakes.push(Mistake { place, ..mistake });
        }
    }

    /// Returns whether a key has a mistake.
    pub(super) fn is_mistaken(&self, path: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.key == path)
    }

    /// Reads a table of the file that variables cannot set.
    pub(super) fn file_table<S: Section>(&mut self, path: &str, table: DeTable<'a>) -> S {
        let good = self.checked::<S>(path, table);
        build(good).unwrap_or_default()
    }

    /// Adds the mistake that a key is not one of `own`.
    pub(super) fn unknown(&mut self, path: &str, name: &Spanned<DeString<'_>>, own: &[&str]) {
        let problem = unknown_key(name.get_ref(), own, &[]);
        self.mistake(name.span().start, Mistake::of(joined(path, name.get_ref()), problem));
    }

    fn tokens(&mut self, value: Spanned<DeValue<'a>>) -> Vec<TokenConfig> {
        let path = "auth.tokens";
        let span = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            self.mistake(span.start, Mistake::new(path, "has to be a list of tables"));
            return Vec::new();
        };
        let mut tokens = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let problem = "has to be a table, such as { token_file = \"...\", play = \"*\" }";
            // An invalid entry keeps its index, so that the paths of the others stay right.
            let table = self.table(&path, item, problem);
            tokens.push(table.map(|table| self.file_table(&path, table)).unwrap_or_default());
        }
        tokens
    }

    /// Reads a section from its table and from variables, which take precedence.
    fn merged<S: Section>(&mut self, table: DeTable<'a>) -> S {
        let mut good = self.checked::<S>(S::NAME, table);
        let set = self.set_by_variables::<S>();
        self.drop_alternatives(S::NAME, &mut good, &set);
        good.extend(set);
        build(good).unwrap_or_default()
    }

    /// Returns the valid keys of a table. The others become mistakes.
    fn checked<S: Section>(&mut self, path: &str, table: DeTable<'a>) -> DeTable<'a> {
        let mut good = DeTable::new();
        for (name, value) in table {
            let Some(key) = S::KEYS.iter().find(|key| key.name == name.get_ref()) else {
                let own: Vec<&str> = S::KEYS.iter().map(|key| key.name).collect();
                let problem = unknown_key(name.get_ref(), &own, self.keys);
                self.mistake(name.span().start, Mistake::of(joined(path, name.get_ref()), problem));
                continue;
            };
            if let Err(expected) = probe::<S>(&name, &value) {
                let shown = match value.get_ref() {
                    DeValue::String(text) if text.is_empty() => Some("\"\"".to_owned()),
                    _ if key.is_secret => None,
                    DeValue::Table(_) => Some("a table".to_owned()),
                    _ => self.document.shown(value.span()),
                };
                let problem = Problem::Value { shown, expected };
                self.mistake(value.span().start, Mistake::of(joined(path, key.name), problem));
                continue;
            }
            good.insert(name, value);
        }
        good
    }

    fn set_by_variables<S: Section>(&mut self) -> DeTable<'a> {
        let mut good = DeTable::new();
        for key in S::KEYS {
            let Some((variable, text)) = self.variables.values.get(key.path) else {
                continue;
            };
            let name = Spanned::new(0..0, key.name.into());
            let value = Spanned::new(0..0, DeValue::String(text.clone().into()));
            if let Err(mut expected) = probe::<S>(&name, &value) {
                let is_shown = !key.is_secret || text.is_empty();
                let shown = is_shown.then(|| shown(&format!("{text:?}"))).flatten();
                if expected.contains(" a list of ") {
                    expected += "; in a variable, separate the items by commas";
                }
                let place = Some(Place::Variable(variable.clone()));
                let mistake = Mistake::of(key.path, Problem::Value { shown, expected });
                self.mistakes.push(Mistake { place, ..mistake });
                continue;
            }
            good.insert(name, value);
        }
        good
    }

    /// Drops the key that is overridden by its alternative: a variable takes precedence over the file.
    fn drop_alternatives(&mut self, section: &str, file: &mut DeTable<'a>, variables: &DeTable<'a>) {
        for (first, second) in EXCLUSIVE_KEYS {
            let name = |path: &'static str| path.strip_prefix(section)?.strip_prefix('.');
            let (Some(a), Some(b)) = (name(first), name(second)) else {
                continue;
            };
            let has = |table: &DeTable<'a>, name: &str| table.contains_key(name);
            if has(variables, a) && !has(variables, b) {
                file.remove(b);
            }
            if has(file, a) && has(file, b) {
                let at = file.get_key_value(a).map_or(0, |(key, _)| key.span().start);
                let warning = Mistake::new(first, format!("is ignored: `{second}` is set too"));
                let place = Some(self.document.place(at));
                self.warnings.push(Mistake { place, ..warning });
            }
            // Only the second one is used.
            if has(file, b) || has(variables, b) {
                file.remove(a);
            }
        }
    }
}

/// Tries to read a single key.
fn probe<'a, S: Section>(name: &Spanned<DeString<'a>>, value: &Spanned<DeValue<'a>>) -> Result<(), String> {
    let mut table = DeTable::new();
    table.insert(name.clone(), value.clone());
    match S::deserialize(toml::Deserializer::from(Spanned::new(0..0, table))) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.message().to_owned()),
    }
}

/// Reads a section from valid keys.
fn build<S: Section>(table: DeTable<'_>) -> Option<S> {
    S::deserialize(toml::Deserializer::from(Spanned::new(0..0, table))).ok()
}

/// Returns the problem of an unknown key. `own` are the keys of its table, `others` those of all sections.
fn unknown_key(name: &str, own: &[&str], others: &[&Key]) -> Problem {
    let same = |key: &&&Key| key.name == name;
    let elsewhere: Vec<String> = others.iter().filter(same).map(|key| key.path.to_owned()).collect();
    let hint = match nearest(name, own.iter().copied()) {
        Some(near) => Hint::Near(vec![near.to_owned()]),
        None if !elsewhere.is_empty() => Hint::Near(elsewhere),
        None if own.is_empty() => match nearest(name, others.iter().map(|key| key.name)) {
            Some(near) => {
                let same = others.iter().filter(|key| key.name == near);
                Hint::Near(same.map(|key| key.path.to_owned()).collect())
            }
            None => Hint::Text("; keys belong to sections such as [http]"),
        },
        None => Hint::Known(own.iter().map(|name| (*name).to_owned()).collect()),
    };
    Problem::Unknown { what: "key", hint }
}

fn unknown_section(name: &str, keys: &[&Key]) -> Problem {
    let mut sections: Vec<&str> = keys.iter().filter_map(|key| key.path.split('.').next()).collect();
    sections.push(STREAMS);
    sections.dedup();
    let hint = match nearest(name, sections.iter().copied()) {
        Some(near) => Hint::Near(vec![near.to_owned()]),
        None => Hint::Known(sections.iter().map(|name| (*name).to_owned()).collect()),
    };
    Problem::Unknown { what: "section", hint }
}
