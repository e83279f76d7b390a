//! Configuration as plain data: the keys, where their values come from, and the mistakes in them.
//!
//! An environment variable (`MILLSTREAM_HTTP__LISTEN` for `http.listen`) takes precedence over the TOML file, and the
//! file over the default. Nothing is built here: each part of the gateway builds itself from its section.
//!
//! * `sections`, `auth`, `api`, `streams`: the keys, each declared once with its type, default, meaning, and [`ReloadMode`].
//! * `values`: parsers of values, with texts that say what is expected.
//! * `document`, `syntax`, `environment`: the file and the environment, with the place of each value.
//! * `reader`: reads each key by itself, so that all mistakes are found.
//! * `renames`: former names of keys.
//! * `mistake`: mistakes and their texts.
//! * `state_file`, `json`: what was set through the API, read by the same code.
//!
//! To add a key, add a field to its section and a line to `docs/configuration.md`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use self::document::ConfigDocument;
use self::environment::ConfigEnvironmentVariables;
use self::reader::ConfigReader;
use self::renames::RENAMED_KEYS;
use millstream_core::hub::name::StreamName;

mod api;
mod auth;
mod camera_layers;
mod document;
mod environment;
mod failover_group;
pub mod json;
pub mod mistake;
mod reader;
mod renames;
pub mod secret;
pub mod section;
mod sections;
pub mod state_file;
mod streams;
mod syntax;
mod value_parsers;
mod value_types;
mod webhooks;

pub use self::api::ApiConfig;
pub use self::auth::{AuthConfig, TokenConfig};
pub use self::document::join_key_path;
pub use self::environment::read_environment_variable;
pub use self::failover_group::{
    FailoverConfig, FailoverEntryKeys, FailoverGroupKind, FailoverSourceConfig, FailoverSourceKind,
    FailoverTimesConfig, StandbyMode,
};
use self::mistake::KeyLocations;
pub use self::mistake::{ConfigError, ConfigLocation, ConfigMistake, MistakeKind};
pub use self::secret::{Redacted, Secret};
pub use self::section::{ConfigKey, ConfigSection, ReloadMode};
pub use self::sections::{
    AllowedOrigins, CounterOfferMode, HttpConfig, IceConfig, LimitsConfig, LogConfig, LogFormat, PipelineWorkersConfig,
    QualityConfig, SourcesConfig, TurnUser, WebRtcConfig,
};
pub use self::streams::{
    HlsSourceConfig, PipelineSourceConfig, RtspConfig, RtspTransport, StreamConfig, StreamSourceConfig,
};
pub use self::value_types::{ApiScope, WebhookEventType};
pub use self::webhooks::WebhookConfig;

/// The whole configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub http: HttpConfig,
    pub webrtc: WebRtcConfig,
    pub ice: IceConfig,
    pub auth: AuthConfig,
    pub limits: LimitsConfig,
    pub quality: QualityConfig,
    pub pipelines: PipelineWorkersConfig,
    pub sources: SourcesConfig,
    pub api: ApiConfig,
    pub log: LogConfig,
    /// What the gateway pulls from cameras, HLS origins and pipelines.
    pub streams: Vec<StreamConfig>,
    /// URLs that are told of events.
    pub webhooks: Vec<WebhookConfig>,
    /// Streams with several sources.
    pub failover_groups: Vec<FailoverConfig>,
    /// What works but should be changed, such as the former name of a key.
    pub warnings: Vec<ConfigMistake>,
    key_locations: KeyLocations,
    default_state_file: PathBuf,
}

/// The configuration file if none is named. It need not exist.
pub const DEFAULT_CONFIG_FILE: &str = "millstream.toml";

/// The variable in which systemd names the folder for the state of a service.
const STATE_DIRECTORY_VARIABLE: &str = "STATE_DIRECTORY";

/// Returns all keys except those of streams, by section.
pub fn all_keys_except_streams() -> Vec<&'static ConfigKey> {
    let sections = [
        HttpConfig::CONFIG_KEYS,
        WebRtcConfig::CONFIG_KEYS,
        IceConfig::CONFIG_KEYS,
        AuthConfig::CONFIG_KEYS,
        LimitsConfig::CONFIG_KEYS,
        QualityConfig::CONFIG_KEYS,
        PipelineWorkersConfig::CONFIG_KEYS,
        SourcesConfig::CONFIG_KEYS,
        ApiConfig::CONFIG_KEYS,
        LogConfig::CONFIG_KEYS,
    ];
    sections.into_iter().flatten().collect()
}

/// Returns the list of all keys for `--help`.
pub fn config_keys_help_text() -> String {
    let mut text = "Keys of the configuration file. An environment variable takes precedence over the file:\n\
                    MILLSTREAM_HTTP__LISTEN sets http.listen.\n"
        .to_owned();
    for key in all_keys_except_streams() {
        let restart = match key.reload_mode {
            ReloadMode::Live => "",
            ReloadMode::Restart => "; a change needs a restart",
        };
        let default = key.default_text.replace('`', "");
        let _ = write!(
            text,
            "\n  {} (default: {default}{restart})\n      {}\n",
            key.path,
            key.description()
        );
    }
    text + "\nThe tables of `auth.tokens`, of webhooks and of streams are described in docs/configuration.md.\n"
}

impl Config {
    /// Reads the file at `path`, or [`DEFAULT_CONFIG_FILE`] in the working directory if there is one, and the `environment`.
    ///
    /// # Errors
    ///
    /// All mistakes, each with its place and key.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let (config, mistakes) = Self::load_with_mistakes(path, environment);
        ConfigError::result_from_mistakes(mistakes).map(|()| config)
    }

    /// Like [`Config::load`], but also returns a configuration if there are mistakes. Keys with a mistake have their
    /// defaults.
    pub fn load_with_mistakes(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> (Self, Vec<ConfigMistake>) {
        let file = path.unwrap_or(Path::new(DEFAULT_CONFIG_FILE));
        let (text, unreadable) = match std::fs::read_to_string(file) {
            Ok(text) => (text, None),
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => (String::new(), None),
            Err(error) => (
                String::new(),
                Some(format!("the configuration file cannot be read: {error}")),
            ),
        };
        let (config, mut mistakes) = Self::parse_with_mistakes(&text, file, environment);
        mistakes.extend(unreadable.map(|problem| ConfigMistake {
            key: String::new(),
            location: Some(ConfigLocation::File(file.to_owned())),
            kind: MistakeKind::Syntax(problem),
        }));
        (config, mistakes)
    }

    /// Reads TOML `text`, which errors call `path`, and the `environment`, which takes precedence.
    ///
    /// # Errors
    ///
    /// As for [`Config::load`].
    pub fn parse(
        text: &str,
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into()));
        let (config, mistakes) = Self::parse_with_mistakes(text, path, environment);
        ConfigError::result_from_mistakes(mistakes).map(|()| config)
    }

    fn parse_with_mistakes(
        text: &str,
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> (Self, Vec<ConfigMistake>) {
        let keys = all_keys_except_streams();
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
        let state_directory = environment.iter().find(|(name, _)| name == STATE_DIRECTORY_VARIABLE);
        let default_state_file =
            api::default_state_file(path, state_directory.and_then(|(_, folders)| folders.to_str()));
        let variables = ConfigEnvironmentVariables::read(environment, &keys, RENAMED_KEYS);
        let mut reader = ConfigReader::new(ConfigDocument::parse(text, path), variables, RENAMED_KEYS, &keys);
        let mut config = Self {
            http: reader.read_section(),
            webrtc: reader.read_section(),
            ice: reader.read_section(),
            auth: reader.read_auth(),
            limits: reader.read_section(),
            quality: reader.read_section(),
            pipelines: reader.read_section(),
            sources: reader.read_section(),
            api: reader.read_section(),
            log: reader.read_section(),
            streams: Vec::new(),
            failover_groups: Vec::new(),
            webhooks: webhooks::read_webhooks(&mut reader),
            warnings: Vec::new(),
            key_locations: KeyLocations::new(),
            default_state_file,
        };
        let configured = streams::read_streams(&mut reader, streams::MAX_CONFIGURED_STREAMS);
        (config.streams, config.failover_groups) = (configured.pulled, configured.failover_groups);
        let findings = reader.into_findings();
        config.key_locations = findings.key_locations;
        config.warnings = findings.warnings;
        (config, findings.mistakes)
    }

    /// Returns the keys whose values differ between two configurations, except those of streams.
    pub fn changed_keys_except_streams(&self, other: &Self) -> Vec<&'static ConfigKey> {
        let sections = [
            self.http.changed_keys(&other.http),
            self.webrtc.changed_keys(&other.webrtc),
            self.ice.changed_keys(&other.ice),
            self.auth.changed_keys(&other.auth),
            self.limits.changed_keys(&other.limits),
            self.quality.changed_keys(&other.quality),
            self.pipelines.changed_keys(&other.pipelines),
            self.sources.changed_keys(&other.sources),
            self.api.changed_keys(&other.api),
            self.log.changed_keys(&other.log),
        ];
        sections.into_iter().flatten().collect()
    }

    /// Returns the names of all streams that are configured, those with several sources included. A name may come twice.
    pub fn stream_names(&self) -> impl Iterator<Item = &StreamName> {
        // A list of publishers has no source that is pulled, and a pulled one may run for another list.
        let of_failover_groups = self.failover_groups.iter().map(|failover_group| &failover_group.stream);
        self.streams.iter().map(|stream| &stream.name).chain(of_failover_groups)
    }

    /// Adds the stream `demo`, unless a stream of that name is configured.
    pub fn add_demo_stream_if_absent(&mut self) {
        let is_free = |demo: &StreamConfig| self.stream_names().all(|name| *name != demo.name);
        let demo = StreamConfig::demo().filter(is_free);
        self.streams.extend(demo);
    }

    /// Returns the place of a key, or of the innermost table around it.
    pub fn location_of_key(&self, key: &str) -> Option<ConfigLocation> {
        mistake::location_of_key(&self.key_locations, key)
    }

    /// Returns the file that keeps what was set through the API.
    pub fn state_file_path(&self) -> &Path {
        let configured = self.api.state_file.as_deref();
        configured.unwrap_or(&self.default_state_file)
    }

    /// Adds places to mistakes that a part of the gateway found in its section.
    pub fn add_locations_to_mistakes(&self, mut mistakes: Vec<ConfigMistake>) -> Vec<ConfigMistake> {
        for mistake in mistakes.iter_mut().filter(|mistake| mistake.location.is_none()) {
            mistake.location = self.location_of_key(&mistake.key);
        }
        mistakes
    }
}

#[cfg(test)]
mod tests;
