//! Configuration as data: what the operator may set, where it is read from, and what is said about mistakes.
//!
//! A value comes from the environment (`MILLSTREAM_HTTP__LISTEN` is `http.listen`), else from the TOML file, else it is
//! the default. Nothing is built here: each part of the gateway makes what it needs of its section.
//!
//! * `sections`, `auth`, `streams`: the keys, each declared once with its type, default, meaning, and [`Reload`].
//! * `values`: how values are read, and what is expected instead of another one.
//! * `document`, `syntax`, `environment`: where values come from, with their places.
//! * `reader`: reads key by key, so that all mistakes are found.
//! * `renames`: old names of keys.
//!
//! A new key is a field in its section, and its line in `docs/configuration.md`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use self::document::Document;
use self::environment::Variables;
use self::reader::Reader;
use self::renames::RENAMED;

mod auth;
mod document;
mod environment;
pub mod mistake;
mod reader;
mod renames;
pub mod secret;
pub mod section;
mod sections;
mod streams;
mod syntax;
mod values;

pub use self::auth::{Auth, TokenConfig};
pub use self::document::joined;
pub use self::environment::named;
pub use self::mistake::{ConfigError, Mistake, Place, Problem};
pub use self::secret::{Hidden, Secret};
pub use self::section::{Key, Reload, Section};
pub use self::sections::{
    CorsOrigins, CounterOffer, Http, Ice, Limits, Log, LogFormat, Pipelines, Sources, TurnUser, WebRtc,
};
pub use self::streams::{HlsConfig, PipelineConfig, RtspConfig, StreamConfig, StreamSource, Transport};

/// Everything that can be configured.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub http: Http,
    pub webrtc: WebRtc,
    pub ice: Ice,
    pub auth: Auth,
    pub limits: Limits,
    pub pipelines: Pipelines,
    pub sources: Sources,
    pub log: Log,
    /// Streams that the gateway fetches by itself.
    pub streams: Vec<StreamConfig>,
    /// What is no mistake yet, such as the old name of a key.
    pub warnings: Vec<Mistake>,
    places: Places,
}

/// Where each key is set, by its path.
type Places = BTreeMap<String, Place>;

/// The file that is read when it exists and no other is named.
pub const DEFAULT_FILE: &str = "millstream.toml";

/// The section of streams, which has tables and no keys.
const STREAMS: &str = "streams";

/// All keys but those of streams, by section.
pub fn keys() -> Vec<&'static Key> {
    let sections = [
        Http::KEYS,
        WebRtc::KEYS,
        Ice::KEYS,
        Auth::KEYS,
        Limits::KEYS,
        Pipelines::KEYS,
        Sources::KEYS,
        Log::KEYS,
    ];
    sections.into_iter().flatten().collect()
}

/// A list of all keys for the command line.
pub fn help() -> String {
    let mut text = "Keys of the configuration file. An environment variable takes precedence over the file:\n\
                    MILLSTREAM_HTTP__LISTEN sets http.listen.\n"
        .to_owned();
    for key in keys() {
        let restart = match key.reload {
            Reload::Live => "",
            Reload::Restart => "; a change needs a restart",
        };
        let default = key.default.replace('`', "");
        let _ = write!(
            text,
            "\n  {} (default: {default}{restart})\n      {}\n",
            key.path,
            key.meaning()
        );
    }
    text + "\nTables of streams, and of tokens for some streams, are described in docs/configuration.md.\n"
}

impl Config {
    /// Reads the file at `path`, or [`DEFAULT_FILE`] in the working directory if there is one, and the `environment`.
    ///
    /// # Errors
    ///
    /// All mistakes, each with its place and its key.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let (config, mistakes) = Self::read(path, environment);
        ConfigError::unless_empty(mistakes).map(|()| config)
    }

    /// As [`Config::load`], but returns also what can be used of a configuration with mistakes: keys that have one have
    /// their defaults.
    pub fn read(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> (Self, Vec<Mistake>) {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let (text, unreadable) = match std::fs::read_to_string(file) {
            Ok(text) => (text, None),
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => (String::new(), None),
            Err(error) => (String::new(), Some(format!("cannot be read: {error}"))),
        };
        let (config, mut mistakes) = Self::from_text(&text, file, environment);
        mistakes.extend(unreadable.map(|problem| Mistake {
            key: String::new(),
            place: Some(Place::File(file.to_owned())),
            problem: Problem::Syntax(problem),
        }));
        (config, mistakes)
    }

    /// Reads TOML `text`, which `path` stands for in errors, and the `environment` on top of it.
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
        let (config, mistakes) = Self::from_text(text, path, environment);
        ConfigError::unless_empty(mistakes).map(|()| config)
    }

    fn from_text(
        text: &str,
        path: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> (Self, Vec<Mistake>) {
        let keys = keys();
        let variables = Variables::read(environment, &keys, RENAMED);
        let mut reader = Reader::new(Document::parse(text, path), variables, RENAMED);
        let mut config = Self {
            http: reader.section(),
            webrtc: reader.section(),
            ice: reader.section(),
            auth: reader.auth(),
            limits: reader.section(),
            pipelines: reader.section(),
            sources: reader.section(),
            log: reader.section(),
            streams: streams::read(&mut reader),
            warnings: Vec::new(),
            places: Places::new(),
        };
        let remarks = reader.finish(&keys);
        config.places = remarks.places;
        config.warnings = remarks.warnings;
        (config, remarks.mistakes)
    }

    /// Keys that are set otherwise here than there, but for those of streams.
    pub fn difference(&self, other: &Self) -> Vec<&'static Key> {
        let sections = [
            self.http.differences(&other.http),
            self.webrtc.differences(&other.webrtc),
            self.ice.differences(&other.ice),
            self.auth.differences(&other.auth),
            self.limits.differences(&other.limits),
            self.pipelines.differences(&other.pipelines),
            self.sources.differences(&other.sources),
            self.log.differences(&other.log),
        ];
        sections.into_iter().flatten().collect()
    }

    /// Adds the stream `demo`, unless there is one of that name.
    pub fn add_demo(&mut self) {
        let demo = StreamConfig::demo().filter(|demo| self.streams.iter().all(|stream| stream.name != demo.name));
        self.streams.extend(demo);
    }

    /// Where a key is set, or the innermost table around it.
    pub fn place(&self, key: &str) -> Option<Place> {
        let mut path = key;
        loop {
            if let Some(place) = self.places.get(path) {
                return Some(place.clone());
            }
            path = path.get(..path.rfind(['.', '['])?)?;
        }
    }

    /// Gives mistakes that a part of the gateway found in its section their places.
    pub fn locate(&self, mut mistakes: Vec<Mistake>) -> Vec<Mistake> {
        for mistake in mistakes.iter_mut().filter(|mistake| mistake.place.is_none()) {
            mistake.place = self.place(&mistake.key);
        }
        mistakes
    }
}

#[cfg(test)]
mod tests;
