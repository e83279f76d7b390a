//! The state file: what was set through the API, as TOML. Its tables of streams have the keys of the configuration
//! file, and are read by the same code.

use std::collections::BTreeMap;
use std::path::Path;

use super::document::{ConfigDocument, join_key_path};
use super::environment::ConfigEnvironmentVariables;
use super::json::mistake_with_json_pointer;
use super::mistake::{ConfigError, ConfigLocation, ConfigMistake, KeyLocations, MistakeKind, location_of_key};
use super::reader::ConfigReader;
use super::section::{STREAMS_SECTION, section};
use super::streams::{self, SOURCES_KEY, StreamConfig};
use super::value_parsers;
use millstream_core::hub::name::StreamName;

/// What the state file keeps.
#[derive(Clone, Debug, Default)]
pub struct StateFile {
    pub streams: BTreeMap<StreamName, ApiStream>,
    pub tokens: Vec<TokenRecord>,
    key_locations: KeyLocations,
}

/// A stream that was set through the API.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiStream {
    pub config: StreamConfig,
    /// The table that it was read from, which may hold secrets.
    pub settings: toml::Table,
}

section! {
    /// A token that the API has issued.
    pub struct TokenRecord("tokens[]") {
        /// By which the API names it.
        #[key("id", Live, "required", "value_parsers::parse_short_string")]
        pub id: String = String::new(),

        /// For people.
        #[key("label", Live, "none", "value_parsers::parse_optional_short_string")]
        pub label: Option<String> = None,

        /// SHA-256 of the token, in hexadecimal digits.
        #[key("digest", Live, "required", "value_parsers::parse_short_string")]
        pub digest: String = String::new(),

        /// Streams that the token may publish.
        #[key("publish", Live, "none", "value_parsers::parse_stream_name_patterns")]
        pub publish: Vec<String> = Vec::new(),

        /// Streams that the token may play.
        #[key("play", Live, "none", "value_parsers::parse_stream_name_patterns")]
        pub play: Vec<String> = Vec::new(),

        /// Streams whose cameras the token may talk to.
        #[key("talk", Live, "none", "value_parsers::parse_stream_name_patterns")]
        pub talk: Vec<String> = Vec::new(),

        /// When it was issued, in seconds since 1970.
        #[key("issued", Live, "required", "value_parsers::parse_whole_number_within::<0, 99_999_999_999, _, _>")]
        pub issued: u64 = 0,

        /// When it expires, in seconds since 1970.
        #[key("expires", Live, "never", "value_parsers::parse_optional_whole_number::<0, 99_999_999_999, _, _>")]
        pub expires: Option<u64> = None,

        /// Credential that issued it, as the API names it.
        #[key("issued_by", Live, "unknown", "value_parsers::parse_optional_short_string")]
        pub issued_by: Option<String> = None,

        /// SHA-256 of the parts of that credential, each as `PART:DIGITS`.
        #[key("issuer", Live, "none", "value_parsers::parse_strings")]
        pub issuer: Vec<String> = Vec::new(),
    }
}

/// Name of the list of tokens.
const TOKENS_LIST: &str = "tokens";

/// Maximum number of streams in a state file: that of `api.max_streams`.
const MAX_STREAMS_IN_STATE_FILE: usize = 10_000;

/// Ends of paths below a stream that are resources of their own: a stream of such a name would be out of reach.
pub const RESERVED_STREAM_NAME_SUFFIXES: [&str; 4] = ["/source", "/data", "/snapshot.jpg", "/snapshot.png"];

/// Keys that name a secret of this host. Whoever may use the API could have it sent to a server of their own.
const KEYS_OF_HOST_SECRETS: [&str; 2] = ["password_file", "password_env"];

impl StateFile {
    /// Reads the file at `path`; one that does not exist is empty.
    ///
    /// # Errors
    ///
    /// All mistakes, each with its place and key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => {
                let problem = format!("the state file (`api.state_file`) cannot be read: {error}");
                Err(ConfigError::new(vec![ConfigMistake {
                    key: String::new(),
                    location: Some(ConfigLocation::File(path.to_owned())),
                    kind: MistakeKind::Syntax(problem),
                }]))
            }
        }
    }

    /// Reads TOML `text`, which errors call `path`.
    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut reader = ConfigReader::new(
            ConfigDocument::parse(text, path),
            ConfigEnvironmentVariables::default(),
            &[],
            &[],
        );
        let configs = streams::read_streams(&mut reader, MAX_STREAMS_IN_STATE_FILE).pulled;
        let tokens = reader.take_top_level_value(TOKENS_LIST).map(|list| {
            let problem = "has to be a table with the header [[tokens]] in the state file";
            reader.read_list_of_tables(TOKENS_LIST, list, problem)
        });
        let findings = reader.into_findings();
        ConfigError::result_from_mistakes(findings.mistakes)?;
        // Without mistakes this is the same document.
        let mut document: toml::Table = toml::from_str(text).unwrap_or_default();
        let mut tables = match document.remove(STREAMS_SECTION) {
            Some(toml::Value::Table(tables)) => tables,
            _ => toml::Table::new(),
        };
        let streams = configs.into_iter().filter_map(|config| {
            let toml::Value::Table(settings) = tables.remove(config.name.as_str())? else {
                return None;
            };
            Some((config.name.clone(), ApiStream { config, settings }))
        });
        Ok(Self {
            streams: streams.collect(),
            tokens: tokens.unwrap_or_default(),
            key_locations: findings.key_locations,
        })
    }

    /// Adds places to mistakes that a part of the gateway found in what the file sets.
    pub fn add_locations_to_mistakes(&self, mut mistakes: Vec<ConfigMistake>) -> Vec<ConfigMistake> {
        for mistake in mistakes.iter_mut().filter(|mistake| mistake.location.is_none()) {
            mistake.location = location_of_key(&self.key_locations, &mistake.key);
        }
        mistakes
    }
}

impl ApiStream {
    /// Reads the settings of a stream. The keys are those of `[streams."NAME"]`.
    ///
    /// # Errors
    ///
    /// All mistakes, each with its JSON pointer.
    pub fn from_settings(name: &StreamName, settings: toml::Table) -> Result<Self, Vec<ConfigMistake>> {
        let path = join_key_path(STREAMS_SECTION, name.as_str());
        let found = |mistakes: Vec<ConfigMistake>| -> Vec<ConfigMistake> {
            let placed = mistakes.into_iter();
            placed
                .map(|mistake| mistake_with_json_pointer(mistake, &path))
                .collect()
        };
        if let Some(end) = RESERVED_STREAM_NAME_SUFFIXES
            .iter()
            .find(|end| name.as_str().ends_with(*end))
        {
            let problem = format!(
                "cannot be set through the API, because `NAME{end}` is an endpoint of the API for the stream `NAME`: use another name"
            );
            return Err(found(vec![ConfigMistake::new(path.clone(), problem)]));
        }
        if let Some(key) = find_key_of_host_secret(&path, &settings) {
            let problem = "cannot be set through the API, because an API client could have a secret of this host sent \
                           to any server: set `password` instead";
            return Err(found(vec![ConfigMistake::new(key, problem)]));
        }
        if settings.contains_key(SOURCES_KEY) {
            let problem = "can be set only in the configuration file: through the API, set `rtsp`, `hls` or `pipeline`";
            let key = join_key_path(&path, SOURCES_KEY);
            return Err(found(vec![ConfigMistake::new(key, problem)]));
        }
        if settings.get("rtsp").is_some_and(toml::Value::is_array) {
            let problem = "can be a list only in the configuration file: through the API, set the URL of one stream of \
                           the camera";
            return Err(found(vec![ConfigMistake::new(join_key_path(&path, "rtsp"), problem)]));
        }
        let text = state_file_text([(name, &settings)], &[]);
        let mut reader = ConfigReader::new(
            ConfigDocument::parse(&text, Path::new("")),
            ConfigEnvironmentVariables::default(),
            &[],
            &[],
        );
        let config = streams::read_streams(&mut reader, 1).pulled.pop();
        let mistakes = reader.into_findings().mistakes;
        match config {
            Some(config) if mistakes.is_empty() => Ok(Self { config, settings }),
            _ => Err(found(mistakes)),
        }
    }

    /// Returns mistakes that a part of the gateway found in the stream, each with its JSON pointer.
    pub fn add_json_pointers(&self, mistakes: Vec<ConfigMistake>) -> Vec<ConfigMistake> {
        let path = self.config.config_table_path();
        let placed = mistakes.into_iter();
        placed
            .map(|mistake| mistake_with_json_pointer(mistake, &path))
            .collect()
    }
}

/// Returns the path of a key that names a secret of this host, in the table at `path` or a table in it.
fn find_key_of_host_secret(path: &str, table: &toml::Table) -> Option<String> {
    let mut keys = table.iter();
    keys.find_map(|(name, value)| {
        let path = join_key_path(path, name);
        match value {
            _ if KEYS_OF_HOST_SECRETS.contains(&name.as_str()) => Some(path),
            toml::Value::Table(table) => find_key_of_host_secret(&path, table),
            toml::Value::Array(items) => {
                let mut tables = items.iter().enumerate();
                tables.find_map(|(index, item)| find_key_of_host_secret(&format!("{path}[{index}]"), item.as_table()?))
            }
            _ => None,
        }
    })
}

/// Returns the text of a state file.
pub fn state_file_text<'a>(
    streams: impl IntoIterator<Item = (&'a StreamName, &'a toml::Table)>,
    tokens: &[TokenRecord],
) -> String {
    let tables = streams
        .into_iter()
        .map(|(name, settings)| (name.to_string(), toml::Value::Table(settings.clone())));
    let mut document = toml::Table::new();
    document.insert(STREAMS_SECTION.to_owned(), toml::Value::Table(tables.collect()));
    if !tokens.is_empty() {
        let tables = tokens.iter().map(|token| toml::Value::Table(table_of_token(token)));
        document.insert(TOKENS_LIST.to_owned(), toml::Value::Array(tables.collect()));
    }
    // Every table of TOML can be written.
    toml::to_string(&document).unwrap_or_default()
}

fn table_of_token(token: &TokenRecord) -> toml::Table {
    let text = |text: &String| toml::Value::String(text.clone());
    let texts = |texts: &[String]| toml::Value::Array(texts.iter().map(text).collect());
    let number = |number: u64| toml::Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    let mut members = vec![
        ("id", text(&token.id)),
        ("digest", text(&token.digest)),
        ("publish", texts(&token.publish)),
        ("play", texts(&token.play)),
        ("issued", number(token.issued)),
    ];
    // An older gateway refuses the key: it is written only where it is needed.
    if !token.talk.is_empty() {
        members.push(("talk", texts(&token.talk)));
    }
    members.extend(token.label.as_ref().map(|label| ("label", text(label))));
    members.extend(token.expires.map(|expires| ("expires", number(expires))));
    members.extend(token.issued_by.as_ref().map(|issuer| ("issued_by", text(issuer))));
    if !token.issuer.is_empty() {
        members.push(("issuer", texts(&token.issuer)));
    }
    members
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(settings: &str) -> Result<ApiStream, Vec<String>> {
        let name = StreamName::parse("hall/a").expect("a name");
        let settings: toml::Table = toml::from_str(settings).expect("TOML");
        ApiStream::from_settings(&name, settings).map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn settings_are_those_of_the_configuration_file_with_the_same_messages() {
        for (settings, expected) in [
            (
                "rtsp = \"rtsp://a/\"\ntransport = \"tpc\"",
                "/transport: `streams.\"hall/a\".transport` is \"tpc\": expected \"tcp\" or \"udp\" (did you mean \"tcp\"?)",
            ),
            (
                "rtps = \"rtsp://a/\"",
                "/rtps: unknown key `streams.\"hall/a\".rtps` (did you mean `rtsp`?)",
            ),
            (
                "on_demand = true",
                "the request body: `streams.\"hall/a\"` has no source: set `rtsp`, `hls` or `pipeline`",
            ),
            (
                "rtsp = \"rtsp://a/\"\nusername = \"a\"\npassword_file = \"/etc/shadow\"",
                "/password_file: `streams.\"hall/a\".password_file` cannot be set through the API, because an API \
                 client could have a secret of this host sent to any server: set `password` instead",
            ),
        ] {
            assert_eq!(stream(settings).expect_err(settings), [expected]);
        }
        let stream = stream("hls = \"https://a/\"\nheaders = { \"X Y\" = \"b\" }").expect("valid");
        assert_eq!(stream.config.name.as_str(), "hall/a");
    }

    #[test]
    fn what_was_written_is_read_again() {
        let stream =
            stream("hls = \"https://a/?b=\\\"c\\n\"\nheaders = { \"X.Y\" = \"b\" }\non_demand = true").expect("valid");
        let token = TokenRecord {
            id: "1".to_owned(),
            label: Some("a \"b\"".to_owned()),
            digest: "00".to_owned(),
            play: vec!["hall/*".to_owned()],
            issued: 1_700_000_000,
            issued_by: Some("auth.api_token".to_owned()),
            issuer: vec!["token:00".to_owned()],
            ..TokenRecord::default()
        };
        let text = state_file_text([(&stream.config.name, &stream.settings)], std::slice::from_ref(&token));
        let read = StateFile::parse(&text, Path::new("state.toml")).expect("valid");
        assert_eq!(read.streams[&stream.config.name], stream);
        assert_eq!(read.tokens, [token]);
        assert!(
            StateFile::parse("", Path::new("state.toml"))
                .expect("valid")
                .streams
                .is_empty()
        );
    }

    #[test]
    fn a_file_with_mistakes_is_refused_with_their_places() {
        let text = "[streams.\"a\"]\nrtsp = \"rtsp://a/\"\n[streams.\"b\"]\nrtsp = 1\n";
        let error = StateFile::parse(text, Path::new("state.toml")).expect_err("a mistake");
        assert_eq!(
            error.to_string(),
            "state.toml, line 4, column 8: `streams.b.rtsp` has an invalid value: expected a string"
        );
        // The end is missing.
        let error = StateFile::parse("[streams.\"a\"]\nrtsp = \"rts", Path::new("state.toml")).expect_err("no TOML");
        assert!(error.to_string().starts_with("state.toml, line 2,"), "{error}");
    }
}
