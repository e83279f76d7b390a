//! Reads sections key by key, from the file and the environment. A mistake in one key does not hide those in others.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::auth::AuthConfig;
use super::document::{ConfigDocument, join_key_path, value_excerpt_unless_url_with_secret};
use super::environment::ConfigEnvironmentVariables;
use super::mistake::KeyLocations;
use super::mistake::{ConfigLocation, ConfigMistake, MistakeHint, MistakeKind, nearest_name};
use super::renames;
use super::section::{ConfigKey, ConfigSection};
use super::section::{STREAMS_SECTION, WEBHOOKS_LIST};

/// Reads a configuration.
pub(super) struct ConfigReader<'a> {
    /// All keys of the configuration, to suggest one for a misspelt one.
    keys: &'a [&'static ConfigKey],
    document: ConfigDocument<'a>,
    variables: ConfigEnvironmentVariables,
    mistakes: Vec<ConfigMistake>,
    warnings: Vec<ConfigMistake>,
}

/// What the reader found besides the values.
pub(super) struct ConfigFindings {
    pub(super) key_locations: KeyLocations,
    pub(super) mistakes: Vec<ConfigMistake>,
    pub(super) warnings: Vec<ConfigMistake>,
}

/// Pairs of keys that set the same thing. If both are set in the file, or both by variables, the second one is used.
const ALTERNATIVE_KEYS_SECOND_PREFERRED: [(&str, &str); 5] = [
    ("ice.turn_secret", "ice.turn_user"),
    ("auth.publish_token", "auth.publish_token_file"),
    ("auth.play_token", "auth.play_token_file"),
    ("auth.talk_token", "auth.talk_token_file"),
    ("auth.api_token", "auth.api_token_file"),
];

impl<'a> ConfigReader<'a> {
    pub(super) fn new(
        mut document: ConfigDocument<'a>,
        mut variables: ConfigEnvironmentVariables,
        renamed: &[(&str, &str)],
        keys: &'a [&'static ConfigKey],
    ) -> Self {
        let messages = renames::replace_renamed_keys(&mut document, &mut variables, renamed);
        let mut mistakes = std::mem::take(&mut variables.mistakes);
        mistakes.extend(document.syntax_and_duplicate_key_mistakes());
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
    pub(super) fn read_section<S: ConfigSection>(&mut self) -> S {
        let table = self.take_section_table(S::TABLE_PATH);
        self.read_table_and_variables(table)
    }

    /// Reads the section `read_auth`, with its list of tokens.
    pub(super) fn read_auth(&mut self) -> AuthConfig {
        let mut table = self.take_section_table(AuthConfig::TABLE_PATH);
        let problem = "has to be a table, such as { token_file = \"...\", play = \"*\" }";
        let tokens = table
            .remove("tokens")
            .map(|tokens| self.read_list_of_tables("auth.tokens", tokens, problem));
        let auth = self.read_table_and_variables::<AuthConfig>(table);
        AuthConfig {
            tokens: tokens.unwrap_or_default(),
            ..auth
        }
    }

    /// Returns the findings. What is left in the document is unknown.
    pub(super) fn into_findings(mut self) -> ConfigFindings {
        let keys = self.keys;
        for (name, value) in std::mem::take(&mut self.document.table) {
            let is_section = matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            let problem = if is_section {
                unknown_section_mistake_kind(name.get_ref(), keys)
            } else {
                unknown_key_mistake_kind(name.get_ref(), &[], keys)
            };
            self.add_mistake_unless_caused_by_syntax_error(
                name.span().start,
                ConfigMistake::with_kind(join_key_path("", name.get_ref()), problem),
            );
        }
        let mut places = std::mem::take(&mut self.document.key_locations);
        for (path, (variable, _)) in self.variables.values_by_key_path {
            places.insert(path, ConfigLocation::Variable(variable));
        }
        ConfigFindings {
            key_locations: places,
            mistakes: self.mistakes,
            warnings: self.warnings,
        }
    }

    /// Takes a value out of the document that is not in a section.
    pub(super) fn take_top_level_value(&mut self, name: &str) -> Option<Spanned<DeValue<'a>>> {
        self.document.table.remove(name)
    }

    /// Takes a section's table out of the document.
    pub(super) fn take_section_table(&mut self, name: &str) -> DeTable<'a> {
        let Some(value) = self.document.table.remove(name) else {
            return DeTable::new();
        };
        self.require_table_or_add_mistake(name, value, &format!("has to be a table with the header [{name}]"))
            .unwrap_or_default()
    }

    /// Returns the table that a value must be. Otherwise adds a mistake with the text `problem`.
    pub(super) fn require_table_or_add_mistake(
        &mut self,
        path: &str,
        value: Spanned<DeValue<'a>>,
        problem: &str,
    ) -> Option<DeTable<'a>> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.add_mistake_unless_caused_by_syntax_error(span.start, ConfigMistake::new(path, problem));
                None
            }
        }
    }

    /// Adds a mistake at a place in the file.
    pub(super) fn add_mistake_unless_caused_by_syntax_error(&mut self, offset: usize, mistake: ConfigMistake) {
        if !self.document.may_be_caused_by_syntax_error(offset, &mistake.kind) {
            let place = Some(self.document.location_at_offset(offset));
            self.mistakes.push(ConfigMistake {
                location: place,
                ..mistake
            });
        }
    }

    /// Returns whether a key has a mistake.
    pub(super) fn has_mistake(&self, path: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.key == path)
    }

    /// Reads a table of the file that variables cannot set.
    pub(super) fn read_file_only_table<S: ConfigSection>(&mut self, path: &str, table: DeTable<'a>) -> S {
        let good = self.keep_valid_keys::<S>(path, table);
        deserialize_section(good).unwrap_or_default()
    }

    /// Adds the mistake that a key is not one of `own`.
    pub(super) fn add_unknown_key_mistake(&mut self, path: &str, name: &Spanned<DeString<'_>>, own: &[&str]) {
        let problem = unknown_key_mistake_kind(name.get_ref(), own, &[]);
        self.add_mistake_unless_caused_by_syntax_error(
            name.span().start,
            ConfigMistake::with_kind(join_key_path(path, name.get_ref()), problem),
        );
    }

    /// Reads a list of tables, each of which is a section. Another item is a mistake with the text `problem`.
    pub(super) fn read_list_of_tables<S: ConfigSection>(
        &mut self,
        path: &str,
        value: Spanned<DeValue<'a>>,
        problem: &str,
    ) -> Vec<S> {
        let span = value.span();
        let DeValue::Array(items) = value.into_inner() else {
            self.add_mistake_unless_caused_by_syntax_error(
                span.start,
                ConfigMistake::new(path, "has to be a list of tables"),
            );
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            // An invalid entry keeps its index, so that the paths of the others stay right.
            let table = self.require_table_or_add_mistake(&path, item, problem);
            sections.push(
                table
                    .map(|table| self.read_file_only_table(&path, table))
                    .unwrap_or_default(),
            );
        }
        sections
    }

    /// Reads a section from its table and from variables, which take precedence.
    fn read_table_and_variables<S: ConfigSection>(&mut self, table: DeTable<'a>) -> S {
        let mut good = self.keep_valid_keys::<S>(S::TABLE_PATH, table);
        let set = self.table_from_variables::<S>();
        self.drop_overridden_alternatives_and_warn(S::TABLE_PATH, &mut good, &set);
        good.extend(set);
        deserialize_section(good).unwrap_or_default()
    }

    /// Returns the valid keys of a table. The others become mistakes.
    fn keep_valid_keys<S: ConfigSection>(&mut self, path: &str, table: DeTable<'a>) -> DeTable<'a> {
        let mut good = DeTable::new();
        for (name, value) in table {
            let Some(key) = S::CONFIG_KEYS.iter().find(|key| key.name == name.get_ref()) else {
                let own: Vec<&str> = S::CONFIG_KEYS.iter().map(|key| key.name).collect();
                let problem = unknown_key_mistake_kind(name.get_ref(), &own, self.keys);
                self.add_mistake_unless_caused_by_syntax_error(
                    name.span().start,
                    ConfigMistake::with_kind(join_key_path(path, name.get_ref()), problem),
                );
                continue;
            };
            if let Err(expected) = validate_key_value::<S>(&name, &value) {
                let shown = match value.get_ref() {
                    DeValue::String(text) if text.is_empty() => Some("\"\"".to_owned()),
                    _ if key.is_secret => None,
                    DeValue::Table(_) => Some("a table".to_owned()),
                    _ => self.document.value_excerpt_unless_url_with_secret(value.span()),
                };
                let problem = MistakeKind::InvalidValue { shown, expected };
                self.add_mistake_unless_caused_by_syntax_error(
                    value.span().start,
                    ConfigMistake::with_kind(join_key_path(path, key.name), problem),
                );
                continue;
            }
            good.insert(name, value);
        }
        good
    }

    fn table_from_variables<S: ConfigSection>(&mut self) -> DeTable<'a> {
        let mut good = DeTable::new();
        for key in S::CONFIG_KEYS {
            let Some((variable, text)) = self.variables.values_by_key_path.get(key.path) else {
                continue;
            };
            let name = Spanned::new(0..0, key.name.into());
            let value = Spanned::new(0..0, DeValue::String(text.clone().into()));
            if let Err(mut expected) = validate_key_value::<S>(&name, &value) {
                let is_shown = !key.is_secret || text.is_empty();
                let shown = is_shown
                    .then(|| value_excerpt_unless_url_with_secret(&format!("{text:?}")))
                    .flatten();
                if expected.contains(" a list of ") {
                    expected += "; in an environment variable, separate the items with commas";
                }
                let place = Some(ConfigLocation::Variable(variable.clone()));
                let mistake = ConfigMistake::with_kind(key.path, MistakeKind::InvalidValue { shown, expected });
                self.mistakes.push(ConfigMistake {
                    location: place,
                    ..mistake
                });
                continue;
            }
            good.insert(name, value);
        }
        good
    }

    /// Drops the key that is overridden by its alternative: a variable takes precedence over the file.
    fn drop_overridden_alternatives_and_warn(
        &mut self,
        section: &str,
        file: &mut DeTable<'a>,
        variables: &DeTable<'a>,
    ) {
        for (first, second) in ALTERNATIVE_KEYS_SECOND_PREFERRED {
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
                let warning = ConfigMistake::new(first, format!("is ignored: `{second}` is set too"));
                let place = Some(self.document.location_at_offset(at));
                self.warnings.push(ConfigMistake {
                    location: place,
                    ..warning
                });
            }
            // Only the second one is used.
            if has(file, b) || has(variables, b) {
                file.remove(a);
            }
        }
    }
}

/// Tries to read a single key.
fn validate_key_value<'a, S: ConfigSection>(
    name: &Spanned<DeString<'a>>,
    value: &Spanned<DeValue<'a>>,
) -> Result<(), String> {
    let mut table = DeTable::new();
    table.insert(name.clone(), value.clone());
    match S::deserialize(toml::Deserializer::from(Spanned::new(0..0, table))) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.message().to_owned()),
    }
}

/// Reads a section from valid keys.
fn deserialize_section<S: ConfigSection>(table: DeTable<'_>) -> Option<S> {
    S::deserialize(toml::Deserializer::from(Spanned::new(0..0, table))).ok()
}

/// Returns the problem of an unknown key. `own` are the keys of its table, `others` those of all sections.
fn unknown_key_mistake_kind(name: &str, own: &[&str], others: &[&ConfigKey]) -> MistakeKind {
    let same = |key: &&&ConfigKey| key.name == name;
    let elsewhere: Vec<String> = others.iter().filter(same).map(|key| key.path.to_owned()).collect();
    let hint = match nearest_name(name, own.iter().copied()) {
        Some(near) => MistakeHint::SimilarNames(vec![near.to_owned()]),
        None if !elsewhere.is_empty() => MistakeHint::SimilarNames(elsewhere),
        None if own.is_empty() => match nearest_name(name, others.iter().map(|key| key.name)) {
            Some(near) => {
                let same = others.iter().filter(|key| key.name == near);
                MistakeHint::SimilarNames(same.map(|key| key.path.to_owned()).collect())
            }
            None => MistakeHint::FreeText("; keys belong to sections such as [http]"),
        },
        None => MistakeHint::ValidNames(own.iter().map(|name| (*name).to_owned()).collect()),
    };
    MistakeKind::UnknownName { what: "key", hint }
}

fn unknown_section_mistake_kind(name: &str, keys: &[&ConfigKey]) -> MistakeKind {
    let mut sections: Vec<&str> = keys.iter().filter_map(|key| key.path.split('.').next()).collect();
    sections.extend([STREAMS_SECTION, WEBHOOKS_LIST]);
    sections.dedup();
    let hint = match nearest_name(name, sections.iter().copied()) {
        Some(near) => MistakeHint::SimilarNames(vec![near.to_owned()]),
        None => MistakeHint::ValidNames(sections.iter().map(|name| (*name).to_owned()).collect()),
    };
    MistakeKind::UnknownName { what: "section", hint }
}
