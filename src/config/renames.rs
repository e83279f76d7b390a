//! Renamed keys: the former name is accepted for one version, with a warning that contains the new one.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{ConfigDocument, join_key_path};
use super::environment::ConfigEnvironmentVariables;
use super::mistake::{ConfigLocation, ConfigMistake};
use super::section::STREAMS_SECTION;

/// Former and new path of each renamed key. `streams.*` is the table of any stream.
pub(super) const RENAMED_KEYS: &[(&str, &str)] = &[
    ("auth.hook_url", "auth.webhook_url"),
    ("auth.hook_timeout", "auth.webhook_timeout"),
    ("pipelines.repair", "pipelines.transcode"),
];

/// Warnings and mistakes about former names.
#[derive(Default)]
pub(super) struct RenamedKeyFindings {
    pub(super) warnings: Vec<ConfigMistake>,
    pub(super) mistakes: Vec<ConfigMistake>,
}

/// A key that has its former name.
struct OldKeyUse {
    old: String,
    new: String,
    /// The new name is set too.
    is_new_key_also_set: bool,
}

/// Renames keys with a former name, in the file and among the variables.
pub(super) fn replace_renamed_keys(
    document: &mut ConfigDocument<'_>,
    variables: &mut ConfigEnvironmentVariables,
    renamed: &[(&str, &str)],
) -> RenamedKeyFindings {
    let mut messages = RenamedKeyFindings::default();
    for (old, new) in renamed {
        for found in replace_old_keys(&mut document.table, old, new) {
            let place = document.key_locations.get(&found.old).cloned();
            messages.record_old_key_use(&found, place.clone());
            if let (false, Some(place)) = (found.is_new_key_also_set, place) {
                document.key_locations.insert(found.new, place);
            }
        }
        if let Some((variable, value)) = variables.values_by_key_path.remove(*old) {
            let found = OldKeyUse {
                old: (*old).to_owned(),
                new: (*new).to_owned(),
                is_new_key_also_set: variables.values_by_key_path.contains_key(*new),
            };
            messages.record_old_key_use(&found, Some(ConfigLocation::Variable(variable.clone())));
            variables
                .values_by_key_path
                .entry(found.new)
                .or_insert((variable, value));
        }
    }
    messages
}

fn replace_old_keys(root: &mut DeTable<'_>, old: &str, new: &str) -> Vec<OldKeyUse> {
    if let (Some(old), Some(new)) = (
        old.strip_prefix(STREAM_KEY_PATH_PREFIX),
        new.strip_prefix(STREAM_KEY_PATH_PREFIX),
    ) {
        return replace_renamed_keys_of_streams(root, old, new);
    }
    let (Some((old_section, old_key)), Some((new_section, new_key))) = (old.split_once('.'), new.split_once('.'))
    else {
        return Vec::new();
    };
    let Some(value) = find_top_level_table_mut(root, old_section).and_then(|table| table.remove(old_key)) else {
        return Vec::new();
    };
    // A section that contained only former names may no longer exist.
    if find_top_level_table_mut(root, old_section).is_some_and(|table| table.is_empty()) {
        root.remove(old_section);
    }
    let section = || Spanned::new(value.span(), DeValue::Table(DeTable::new()));
    let name = Spanned::new(value.span(), new_section.to_owned().into());
    let into = match root.entry(name).or_insert_with(section).get_mut() {
        DeValue::Table(table) => table,
        _ => return Vec::new(),
    };
    let is_new_key_also_set = !insert_if_absent(into, new_key, value);
    vec![OldKeyUse {
        old: old.to_owned(),
        new: new.to_owned(),
        is_new_key_also_set,
    }]
}

fn replace_renamed_keys_of_streams(root: &mut DeTable<'_>, old: &str, new: &str) -> Vec<OldKeyUse> {
    let Some(streams) = find_top_level_table_mut(root, STREAMS_SECTION) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (name, stream) in streams.iter_mut() {
        let path = join_key_path(STREAMS_SECTION, name.get_ref());
        if let DeValue::Table(stream) = stream.get_mut()
            && let Some(value) = stream.remove(old)
        {
            all.push(OldKeyUse {
                old: join_key_path(&path, old),
                new: join_key_path(&path, new),
                is_new_key_also_set: !insert_if_absent(stream, new, value),
            });
        }
    }
    all
}

fn find_top_level_table_mut<'t, 'a>(root: &'t mut DeTable<'a>, name: &str) -> Option<&'t mut DeTable<'a>> {
    match root.get_mut(name)?.get_mut() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// Inserts a value unless the name is set. Returns whether it was inserted.
fn insert_if_absent<'a>(table: &mut DeTable<'a>, name: &str, value: Spanned<DeValue<'a>>) -> bool {
    let is_free = !table.contains_key(name);
    if is_free {
        table.insert(Spanned::new(value.span(), name.to_owned().into()), value);
    }
    is_free
}

impl RenamedKeyFindings {
    fn record_old_key_use(&mut self, found: &OldKeyUse, place: Option<ConfigLocation>) {
        let (list, text) = match found.is_new_key_also_set {
            true => (
                &mut self.mistakes,
                format!(
                    "is the old name of `{}`, which is set too: remove the old one",
                    found.new
                ),
            ),
            false => (
                &mut self.warnings,
                format!(
                    "was renamed to `{}`; the next version will not accept the old name",
                    found.new
                ),
            ),
        };
        let mistake = ConfigMistake::new(found.old.clone(), text);
        list.push(ConfigMistake {
            location: place,
            ..mistake
        });
    }
}

/// Prefix of the paths of streams.
const STREAM_KEY_PATH_PREFIX: &str = "streams.*.";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::environment::ConfigEnvironmentVariables;

    fn applied<'a>(
        text: &'a str,
        variables: &[(&str, &str)],
        renamed: &[(&str, &str)],
    ) -> (ConfigDocument<'a>, ConfigEnvironmentVariables, Vec<String>, Vec<String>) {
        let mut document = ConfigDocument::parse(text, Path::new("test.toml"));
        let environment = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let mut variables =
            ConfigEnvironmentVariables::read(environment, &crate::config::all_keys_except_streams(), renamed);
        let messages = replace_renamed_keys(&mut document, &mut variables, renamed);
        let texts = |mistakes: Vec<ConfigMistake>| mistakes.iter().map(ToString::to_string).collect();
        (document, variables, texts(messages.warnings), texts(messages.mistakes))
    }

    #[test]
    fn an_old_name_is_read_as_the_new_one_with_a_warning() {
        let renamed = [
            ("old.place", "log.level"),
            ("streams.*.url", "streams.*.rtsp"),
            ("log.kind", "log.format"),
        ];
        let text = "[old]\nplace = \"info\"\n[streams.a]\nurl = \"rtsp://a/\"\n[streams.b]\nrtsp = \"rtsp://b/\"\n";
        let (document, variables, warnings, mistakes) = applied(text, &[("MILLSTREAM_LOG__KIND", "json")], &renamed);
        assert_eq!(
            document.table["log"].get_ref()["level"].get_ref().as_str(),
            Some("info")
        );
        let stream = document.table["streams"].get_ref()["a"].get_ref();
        assert_eq!(stream["rtsp"].get_ref().as_str(), Some("rtsp://a/"));
        assert_eq!(variables.values_by_key_path["log.format"].1, "json");
        assert!(document.key_locations.contains_key("streams.a.rtsp"));
        let rest = "the next version will not accept the old name";
        assert_eq!(
            warnings,
            [
                format!("test.toml, line 2, column 1: `old.place` was renamed to `log.level`; {rest}"),
                format!("test.toml, line 4, column 1: `streams.a.url` was renamed to `streams.a.rtsp`; {rest}"),
                format!("MILLSTREAM_LOG__KIND: `log.kind` was renamed to `log.format`; {rest}"),
            ]
        );
        assert!(mistakes.is_empty(), "{mistakes:?}");
    }

    #[test]
    fn both_names_at_once_are_a_mistake() {
        let renamed = [("log.kind", "log.format")];
        let variables = [("MILLSTREAM_LOG__KIND", "json"), ("MILLSTREAM_LOG__FORMAT", "text")];
        let (_, variables, warnings, mistakes) =
            applied("[log]\nkind = \"json\"\nformat = \"text\"", &variables, &renamed);
        let problem = "`log.kind` is the old name of `log.format`, which is set too: remove the old one";
        assert_eq!(
            mistakes,
            [
                format!("test.toml, line 2, column 1: {problem}"),
                format!("MILLSTREAM_LOG__KIND: {problem}"),
            ]
        );
        assert!(warnings.is_empty());
        assert_eq!(variables.values_by_key_path["log.format"].1, "text");
    }

    /// A rename that leads to no key would make the old name a mistake.
    #[test]
    fn new_names_are_keys_and_old_ones_are_not() {
        let known = |path: &str| {
            crate::config::all_keys_except_streams()
                .iter()
                .any(|key| key.path == path)
        };
        for (old, new) in RENAMED_KEYS {
            assert!(known(new) && !known(old), "{old} {new}");
        }
        let text = "[auth]\nhook_url = \"https://a/\"\nhook_timeout = 5\n[pipelines]\nrepair = false";
        let config = crate::config::Config::parse(text, Path::new("test.toml"), []).expect("valid");
        assert!(config.auth.webhook_url.is_some() && !config.pipelines.transcode);
        assert_eq!(config.warnings.len(), RENAMED_KEYS.len());
    }
}
