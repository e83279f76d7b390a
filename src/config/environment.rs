//! Environment variables that set keys: `MILLSTREAM_HTTP__LISTEN` sets `http.listen`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::mistake::{ConfigLocation, ConfigMistake, MistakeHint, MistakeKind, nearest_name};
use super::section::{ConfigKey, ENVIRONMENT_VARIABLE_PREFIX, environment_variable_name};

/// The variables that set keys, and mistakes in them.
#[derive(Default)]
pub(super) struct ConfigEnvironmentVariables {
    /// Variable name and value, by the path of the key.
    pub(super) values_by_key_path: BTreeMap<String, (String, String)>,
    pub(super) mistakes: Vec<ConfigMistake>,
}

/// Variables with our prefix that set no key: those of the command line and of the test programs.
const IGNORED_VARIABLES: [&str; 3] = ["MILLSTREAM_CONFIG", "MILLSTREAM_BIN", "MILLSTREAM_BENCH_BIN"];

impl ConfigEnvironmentVariables {
    /// Reads the variables with our prefix. `keys` are all keys, `renamed` pairs of former and current paths.
    pub(super) fn read(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        keys: &[&ConfigKey],
        renamed: &[(&str, &str)],
    ) -> Self {
        let mut variables = Self::default();
        for (name, value) in environment {
            let name = name.to_string_lossy().into_owned();
            let value = value.into_string();
            let is_ours = name.starts_with(ENVIRONMENT_VARIABLE_PREFIX) && !IGNORED_VARIABLES.contains(&name.as_str());
            if !is_ours || is_container_service_variable(&name, value.as_deref().unwrap_or_default()) {
                continue;
            }
            let upper = name.to_ascii_uppercase();
            let renamed = renamed.iter().map(|(old, _)| *old);
            let known = keys
                .iter()
                .map(|key| key.path)
                .chain(renamed)
                .find(|path| environment_variable_name(path) == upper);
            let mistake = match (known, value) {
                (Some(path), Ok(value)) => {
                    variables.values_by_key_path.insert(path.to_owned(), (name, value));
                    continue;
                }
                (Some(path), Err(_)) => ConfigMistake::with_kind(
                    path,
                    MistakeKind::InvalidValue {
                        shown: None,
                        expected: "expected UTF-8".to_owned(),
                    },
                ),
                (None, _) => ConfigMistake::with_kind("", unknown_variable_mistake_kind(&upper, keys)),
            };
            variables.mistakes.push(ConfigMistake {
                location: Some(ConfigLocation::Variable(name)),
                ..mistake
            });
        }
        variables
    }
}

fn unknown_variable_mistake_kind(name: &str, keys: &[&ConfigKey]) -> MistakeKind {
    let names: Vec<String> = keys.iter().map(|key| environment_variable_name(key.path)).collect();
    let own = |name: &'_ str| {
        name.get(ENVIRONMENT_VARIABLE_PREFIX.len()..)
            .unwrap_or_default()
            .to_owned()
    };
    let parts: Vec<String> = names.iter().map(|name| own(name)).collect();
    let near = nearest_name(&own(name), parts.iter().map(String::as_str));
    let hint = match near {
        Some(near) => MistakeHint::SimilarNames(vec![format!("{ENVIRONMENT_VARIABLE_PREFIX}{near}")]),
        None if name.starts_with("MILLSTREAM_STREAM") => MistakeHint::FreeText(
            "; environment variables cannot configure streams: use the configuration file or the API",
        ),
        None => MistakeHint::FreeText("; `millstream --help` lists all keys"),
    };
    MistakeKind::UnknownName {
        what: "environment variable",
        hint,
    }
}

/// Returns whether an orchestrator sets the variable for a service called `millstream`. Kubernetes gives every
/// container `MILLSTREAM_SERVICE_HOST`, `MILLSTREAM_SERVICE_PORT`, `MILLSTREAM_PORT=tcp://...` and
/// `MILLSTREAM_PORT_80_TCP_ADDR`. Docker links look the same.
fn is_container_service_variable(name: &str, value: &str) -> bool {
    let has_scheme = || value.starts_with("tcp://") || value.starts_with("udp://") || value.starts_with("sctp://");
    let is_part = |rest: &str| {
        let mut parts = rest.split('_');
        let is_number = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
        is_number
            && parts
                .next()
                .is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
    };
    let is_port = |(_, rest): (&str, &str)| is_part(rest);
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && has_scheme())
        || name.rsplit_once("_PORT_").is_some_and(is_port)
        || (name == "MILLSTREAM_NAME" && value.starts_with('/'))
}

/// Returns the value of an environment variable that the configuration names.
///
/// # Errors
///
/// The problem, as a text that follows the key.
#[expect(clippy::disallowed_methods, reason = "this is config")]
pub fn read_environment_variable(variable: &str) -> Result<String, String> {
    // A value that is not a variable name may be the secret itself, set by mistake.
    let is_name = variable
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let (variable_text, hint) = match is_name {
        true => (format!("the environment variable `{variable}`, which"), ""),
        false => (
            "an environment variable that".to_owned(),
            ": expected the name of a variable, such as `TOKEN`",
        ),
    };
    std::env::var(variable).map_err(|error| match error {
        std::env::VarError::NotPresent => format!("names {variable_text} is not set{hint}"),
        std::env::VarError::NotUnicode(_) => format!("names {variable_text} is not UTF-8"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(name: &str, value: &str) -> Vec<String> {
        let environment = [(name.into(), value.into())];
        let variables = ConfigEnvironmentVariables::read(environment, &super::super::all_keys_except_streams(), &[]);
        variables.mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_variable_that_sets_no_key_is_a_mistake() {
        for (name, hint) in [
            ("MILLSTREAM_HTTP_LISTEN", " (did you mean `MILLSTREAM_HTTP__LISTEN`?)"),
            ("MILLSTREAM_HTTP__LISTN", " (did you mean `MILLSTREAM_HTTP__LISTEN`?)"),
            (
                "MILLSTREAM_WEBRTC_MAX_SESSION",
                " (did you mean `MILLSTREAM_WEBRTC__MAX_SESSIONS`?)",
            ),
            ("MILLSTREAM_HTTP__PORT", "; `millstream --help` lists all keys"),
            ("MILLSTREAM_HTTP_PORT", "; `millstream --help` lists all keys"),
            (
                "MILLSTREAM_STREAMS__DOOR",
                "; environment variables cannot configure streams: use the configuration file or the API",
            ),
        ] {
            assert_eq!(
                mistakes(name, "s3cret"),
                [format!("{name}: unknown environment variable{hint}")]
            );
        }
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        for (name, value) in [
            ("MILLSTREAM_CONFIG", "a.toml"),
            ("MILLSTREAM_BIN", "/bin/true"),
            ("MILLSTREAM_HTTP__LISTEN", "[::]:1"),
            ("MILLSTREAMS_NUMBER", "3"),
            ("PATH", "/bin"),
            ("MILLSTREAM_SERVICE_HOST", "10.0.0.1"),
            ("MILLSTREAM_SERVICE_PORT", "8080"),
            ("MILLSTREAM_SERVICE_PORT_HTTP", "8080"),
            ("MILLSTREAM_PORT", "tcp://10.0.0.1:8080"),
            ("MILLSTREAM_PORT_8189_UDP", "udp://10.0.0.1:8189"),
            ("MILLSTREAM_PORT_8189_UDP_ADDR", "10.0.0.1"),
            ("MILLSTREAM_HTTP_PORT_80_TCP_PROTO", "tcp"),
        ] {
            assert!(mistakes(name, value).is_empty(), "{name}: {:?}", mistakes(name, value));
        }
    }
}
