//! Settings in JSON, as the API receives and shows them: tables of TOML, and JSON pointers (RFC 6901) for mistakes.

use serde_json::{Map, Value as Json};
use toml::Value as Toml;

use super::mistake::{ConfigLocation, ConfigMistake};

/// Converts a JSON object to a table.
///
/// # Errors
///
/// The pointer to what has no counterpart in TOML, and what it is.
pub fn table_from_json(object: &Map<String, Json>) -> Result<toml::Table, (String, &'static str)> {
    let convert = |(name, value): (&String, &Json)| match toml_from_json(value) {
        Ok(value) => Ok((name.clone(), value)),
        Err((pointer, what)) => Err((format!("/{}{pointer}", escape_json_pointer_token(name)), what)),
    };
    object.iter().map(convert).collect()
}

fn toml_from_json(value: &Json) -> Result<Toml, (String, &'static str)> {
    let refused = |what| Err((String::new(), what));
    match value {
        Json::Null => refused("is null: leave the member out"),
        Json::Bool(flag) => Ok(Toml::Boolean(*flag)),
        Json::String(text) => Ok(Toml::String(text.clone())),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Ok(Toml::Integer(whole)),
            (None, Some(float)) if !number.is_u64() => Ok(Toml::Float(float)),
            _ => refused(
                "is a number out of range: expected a signed 64-bit integer, from -9223372036854775808 to \
                 9223372036854775807",
            ),
        },
        Json::Array(items) => {
            let convert = |(index, item)| match toml_from_json(item) {
                Err((pointer, what)) => Err((format!("/{index}{pointer}"), what)),
                item => item,
            };
            items
                .iter()
                .enumerate()
                .map(convert)
                .collect::<Result<_, _>>()
                .map(Toml::Array)
        }
        Json::Object(object) => table_from_json(object).map(Toml::Table),
    }
}

/// Converts a table to a JSON object.
pub fn json_from_table(table: &toml::Table) -> Map<String, Json> {
    let members = table.iter();
    members
        .map(|(name, value)| (name.clone(), json_from_toml(value)))
        .collect()
}

/// Converts a value. Dates become strings, and numbers that JSON lacks null.
pub fn json_from_toml(value: &Toml) -> Json {
    match value {
        Toml::Boolean(flag) => (*flag).into(),
        Toml::String(text) => text.as_str().into(),
        Toml::Integer(number) => (*number).into(),
        Toml::Float(number) => (*number).into(),
        Toml::Datetime(date) => date.to_string().into(),
        Toml::Array(items) => items.iter().map(json_from_toml).collect(),
        Toml::Table(table) => Json::Object(json_from_table(table)),
    }
}

/// Applies a merge patch (RFC 7396) to an object: null removes a member.
pub fn apply_merge_patch(target: &mut Map<String, Json>, patch: &Map<String, Json>) {
    for (name, value) in patch {
        match (value, target.get_mut(name)) {
            (Json::Null, _) => {
                target.remove(name);
            }
            (Json::Object(patch), Some(Json::Object(inner))) => apply_merge_patch(inner, patch),
            (Json::Object(patch), _) => {
                let mut inner = Map::new();
                apply_merge_patch(&mut inner, patch);
                target.insert(name.clone(), Json::Object(inner));
            }
            (value, _) => {
                target.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Returns the mistake with its place in a JSON document whose root is the table at `table_path`.
pub(super) fn mistake_with_json_pointer(mut mistake: ConfigMistake, table_path: &str) -> ConfigMistake {
    let rest = mistake.key.strip_prefix(table_path).unwrap_or_default();
    mistake.location = Some(ConfigLocation::JsonPointer(json_pointer_of_key_path(rest)));
    mistake
}

/// Returns the JSON pointer for `.a."b c"[0]`.
fn json_pointer_of_key_path(path: &str) -> String {
    let mut pointer = String::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let part = match first {
            '.' => {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            '[' => {
                let end = rest.find(']').unwrap_or(rest.len());
                let part = rest.get(1..end).unwrap_or_default();
                rest = rest.get(end + 1..).unwrap_or_default();
                part.to_owned()
            }
            '"' => {
                let (part, after) = split_quoted_key(rest.get(1..).unwrap_or_default());
                rest = after;
                part
            }
            _ => {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let part = rest.get(..end).unwrap_or_default();
                rest = rest.get(end..).unwrap_or_default();
                part.to_owned()
            }
        };
        pointer.push('/');
        pointer.push_str(&escape_json_pointer_token(&part));
    }
    pointer
}

/// Returns a quoted key, which begins after its quote, and what follows it.
fn split_quoted_key(text: &str) -> (String, &str) {
    let (mut key, mut is_escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            '"' if !is_escaped => return (key, text.get(at + 1..).unwrap_or_default()),
            '\\' if !is_escaped => is_escaped = true,
            c => {
                is_escaped = false;
                key.push(c);
            }
        }
    }
    (key, "")
}

/// Returns a name as a part of a JSON pointer (RFC 6901 §3).
pub fn escape_json_pointer_token(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Json) -> Map<String, Json> {
        match value {
            Json::Object(object) => object,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn json_and_tables_are_converted_into_each_other() {
        let shown = object(json!({ "a": "b", "c": 1, "d": 1.5, "e": [true, "x"], "f": { "g": -3 } }));
        let table = table_from_json(&shown).expect("has a counterpart");
        assert_eq!(json_from_table(&table), shown);
        for (value, pointer) in [
            (json!({ "a": null }), "/a"),
            (json!({ "a/b": { "c~": [1, null] } }), "/a~1b/c~0/1"),
            (json!({ "a": u64::MAX }), "/a"),
        ] {
            assert_eq!(table_from_json(&object(value)).expect_err("none").0, pointer);
        }
    }

    /// The examples of RFC 7396.
    #[test]
    fn a_merge_patch_replaces_and_removes_members() {
        for (target, patch, expected) in [
            (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
            (json!({ "a": "b", "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
            (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
            (
                json!({ "a": { "b": "c" } }),
                json!({ "a": { "b": "d", "c": null } }),
                json!({ "a": { "b": "d" } }),
            ),
            (
                json!({}),
                json!({ "a": { "bb": { "ccc": null } } }),
                json!({ "a": { "bb": {} } }),
            ),
        ] {
            let mut merged = object(target);
            apply_merge_patch(&mut merged, &object(patch));
            assert_eq!(Json::Object(merged), expected);
        }
    }

    #[test]
    fn keys_become_json_pointers() {
        for (key, pointer) in [
            ("", ""),
            (".rtsp", "/rtsp"),
            (".headers.\"X Y\"", "/headers/X Y"),
            (".headers.\"a.b/c~d\\\"e\".f", "/headers/a.b~1c~0d\"e/f"),
            (".sources[2].rtsp", "/sources/2/rtsp"),
            (".\"broken", "/broken"),
        ] {
            assert_eq!(json_pointer_of_key_path(key), pointer, "{key}");
        }
    }
}
