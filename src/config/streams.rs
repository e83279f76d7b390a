//! The section `streams`: streams that the gateway fetches by itself, each a table under its name.

use toml::{Table, Value};

use super::ConfigError;
use crate::hub::name::StreamName;
use crate::sources::rtsp::{Camera, Transport};

/// Keys of one stream.
const KEYS: [&str; 5] = ["rtsp", "transport", "username", "password", "password_file"];

/// Most streams that may be configured: each holds a connection.
const MAX_STREAMS: usize = 1_000;

/// Reads the whole section.
pub(super) fn read(section: &Table) -> Result<Vec<Camera>, ConfigError> {
    if section.len() > MAX_STREAMS {
        let problem = format!("are more than {MAX_STREAMS} streams");
        return Err(ConfigError::Streams {
            key: "streams".to_owned(),
            problem,
        });
    }
    section.iter().map(|(name, value)| camera(name, value)).collect()
}

fn camera(name: &str, value: &Value) -> Result<Camera, ConfigError> {
    // Values are never shown: an address and a password are secrets.
    let refused = |key: &str, problem: String| ConfigError::Streams {
        key: if key.is_empty() {
            format!("streams.\"{name}\"")
        } else {
            format!("streams.\"{name}\".{key}")
        },
        problem,
    };
    let stream = StreamName::parse(name).map_err(|error| refused("", format!("has a bad name: {error}")))?;
    let table = value.as_table().ok_or_else(|| {
        refused(
            "",
            "has to be a table, such as { rtsp = \"rtsp://host/path\" }".to_owned(),
        )
    })?;
    if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(refused(unknown, format!("is unknown; known are: {}", KEYS.join(", "))));
    }
    let text = |key: &str| match table.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(refused(key, "has to be a text".to_owned())),
    };
    let url = text("rtsp")?.ok_or_else(|| refused("rtsp", "is missing: where the stream comes from".to_owned()))?;
    let transport = match text("transport")? {
        None | Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        Some(_) => return Err(refused("transport", "has to be \"tcp\" or \"udp\"".to_owned())),
    };
    let password = match (text("password")?, text("password_file")?) {
        (Some(_), Some(_)) => return Err(refused("password", "and `password_file` exclude each other".to_owned())),
        (given, None) => given.map(str::to_owned),
        (None, Some(path)) => {
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|error| refused("password_file", format!("cannot be read: {error}")))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let credentials = match (text("username")?, password) {
        (Some(username), password) => Some((username.to_owned(), password.unwrap_or_default())),
        (None, Some(_)) => return Err(refused("username", "is missing where a password is given".to_owned())),
        (None, None) => None,
    };
    Camera::new(stream, url, transport, credentials).map_err(|error| refused("rtsp", format!("is not usable: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Camera>, String> {
        let table: Table = toml::from_str(text).expect("TOML");
        read(&table).map_err(|error| error.to_string())
    }

    #[test]
    fn cameras_are_read_and_never_shown() {
        let text = "[\"yard/gate\"]\nrtsp = \"rtsp://u:secret@cam/1?token=secret\"\ntransport = \"udp\"\n\
                    [door]\nrtsp = \"rtsp://cam2\"\nusername = \"u\"\npassword = \"secret\"";
        let cameras = parse(text).expect("valid");
        assert_eq!(cameras.len(), 2);
        assert!(!format!("{cameras:?}").contains("secret"));
    }

    #[test]
    fn mistakes_are_named_without_the_value() {
        for (text, name) in [
            ("[\"a b\"]\nrtsp = \"rtsp://secret\"", "`streams.\"a b\"`"),
            ("[a]\nrtps = \"rtsp://secret\"", "`streams.\"a\".rtps` is unknown"),
            ("[a]\ntransport = \"tcp\"", "`streams.\"a\".rtsp` is missing"),
            ("[a]\nrtsp = \"http://secret\"", "`streams.\"a\".rtsp` is not usable"),
            (
                "[a]\nrtsp = \"rtsp://h\"\ntransport = \"secret\"",
                "`streams.\"a\".transport`",
            ),
            (
                "[a]\nrtsp = \"rtsp://h\"\npassword = \"secret\"",
                "`streams.\"a\".username`",
            ),
            ("[a]\nrtsp = \"rtsp://h\"\npassword = 7", "`streams.\"a\".password`"),
            (
                "[a]\nrtsp = \"rtsp://h\"\nusername = \"u\"\npassword_file = \"/nowhere\"",
                "password_file",
            ),
            ("a = 1", "has to be a table"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
    }
}
