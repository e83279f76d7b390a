//! Configuration: what the operator may set, where it is read from, and what is said about a mistake.
//!
//! A value comes from the environment (`MILLSTREAM_HTTP__LISTEN` is `http.listen`), else from the TOML file, else it is
//! the default. [`keys::KEYS`] lists every key once: its name, how it is read, and what is allowed. Streams from cameras
//! have a table each, in the file only.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

mod access;
pub mod keys;
pub mod secret;
mod streams;

pub use secret::Secret;

use crate::access::FixedToken;
use crate::access::jwt::Key;
use crate::pipeline::library::Library;
use crate::pipeline::process;
use crate::sources::fetch::Fetched;
use crate::sources::fetch::address::Allowed;

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Config {
    pub http: Http,
    pub webrtc: WebRtc,
    pub ice: IceServers,
    pub auth: Auth,
    pub limits: Limits,
    pub log: Log,
    pub pipelines: Pipelines,
    pub sources: Sources,
    /// Streams that the gateway fetches by itself.
    pub streams: Vec<Fetched>,
    /// What was set, to compare it with what is set later.
    set: Given,
}

/// Values as they were given, secrets among them.
#[derive(Clone, Default)]
pub struct Given {
    keys: BTreeMap<String, toml::Value>,
    streams: BTreeMap<String, toml::Value>,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

/// Signalling and pages.
#[derive(Clone, Debug)]
pub struct Http {
    pub listen: SocketAddr,
    pub cors_origins: CorsOrigins,
    /// Whether a PATCH has to have an `If-Match`, as RFC 9725 §4.3.1 says and several clients do not know.
    pub strict_preconditions: bool,
    /// The files of a certificate, with its chain, and of its key, in PEM: HTTPS instead of HTTP.
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// When a viewer whose offer cannot be served gets one of ours, with 406 (WHEP §4.3.2).
    pub counter_offer: CounterOffer,
    /// Whether a POST without an offer gets one of ours, as in the draft of 2022.
    pub legacy_server_offer: bool,
    /// How long a viewer's POST may wait for somebody to publish; zero answers at once that nobody does.
    pub wait_for_publisher: Duration,
}

/// When a viewer gets an offer of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CounterOffer {
    /// Some players take a 406 for something else.
    #[default]
    Never,
    /// Where its own cannot be served.
    WhenNeeded,
    Always,
}

/// STUN and TURN servers that peers are told of (RFC 9725 §4.6).
#[derive(Clone, Debug)]
pub struct IceServers {
    /// `stun:`, `turn:` and `turns:` URLs (RFC 7064, RFC 7065).
    pub urls: Vec<String>,
    pub auth: TurnAuth,
    /// How long made credentials are good for.
    pub lifetime: Duration,
}

/// What opens the TURN servers.
#[derive(Clone, Debug)]
pub enum TurnAuth {
    Open,
    /// Credentials are made with a secret that is shared with the server: coturn's `static-auth-secret`.
    Secret(Secret),
    Fixed {
        username: String,
        password: Secret,
    },
}

/// Which web pages of other origins may use the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    Any,
    /// Origins as browsers write them: `https://example.org`, no path, no trailing slash.
    Listed(Vec<String>),
}

/// The media plane.
#[derive(Clone, Debug)]
pub struct WebRtc {
    pub listen: SocketAddr,
    /// Addresses given to peers; empty gives the host's own.
    pub announce: Vec<IpAddr>,
    /// A STUN server that is asked for the outer address, which is then announced first.
    pub announce_by_stun: Option<String>,
    /// Whether media may come by TCP too, on the number of the UDP port.
    pub tcp: bool,
    /// Threads; 0 takes one for each processor.
    pub shards: usize,
    pub max_sessions: usize,
}

/// Bearer tokens.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// `None`: one is made at start.
    pub publish_token: Option<Secret>,
    /// `None`: everybody may watch.
    pub play_token: Option<Secret>,
    /// `None`: the API is closed.
    pub api_token: Option<Secret>,
    /// Whether `?token=` is taken in place of the header.
    pub token_in_query: bool,
    /// Tokens for some streams.
    pub tokens: Vec<FixedToken>,
    pub jwt: JwtConfig,
    pub hook: Option<HookConfig>,
    /// How long the service at `hook_url` may take.
    pub hook_timeout: Option<Duration>,
}

/// What signed tokens are checked with.
#[derive(Clone, Debug, Default)]
pub struct JwtConfig {
    pub keys: Vec<Key>,
    /// Where a set of keys is fetched from.
    pub jwks_url: Option<String>,
    /// What `iss` and `aud` have to be.
    pub issuer: Option<String>,
    pub audience: Option<String>,
}

/// A service that is asked who may do what.
#[derive(Clone, Debug)]
pub struct HookConfig {
    pub url: String,
    pub timeout: Duration,
}

/// How long the service may take if nothing else is set.
const HOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// Bounds against floods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// POST, PATCH and DELETE requests that one address may make per second in the long run; 0 sets no bound.
    pub requests_per_second: u32,
    /// Requests that one address may make at once.
    pub request_burst: u32,
    /// Open HTTP connections.
    pub connections: usize,
    /// Of one address.
    pub connections_per_address: usize,
    /// How long sessions may go on after the gateway was told to stop.
    pub drain: Duration,
}

/// GStreamer pipelines.
#[derive(Clone, Debug)]
pub struct Pipelines {
    /// Where the operator's own are.
    pub folder: Option<PathBuf>,
    /// Whether viewers who cannot play a stream get what a worker makes of it.
    pub repair: bool,
    /// All there are.
    pub library: Library,
    /// What becomes a worker: this program, but in tests.
    pub program: PathBuf,
}

/// Where streams may be fetched from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub allow: Allowed,
}

/// Log output.
#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter`: `info`, or `info,millstream::session=debug`.
    pub level: String,
    /// Collector of OpenTelemetry that gets the log and spans of requests too, by OTLP over HTTP.
    pub otlp: Option<String>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Http {
    /// Of the addresses of pages: `https` with a certificate.
    pub fn scheme(&self) -> &'static str {
        match self.tls_certificate {
            Some(_) => "https",
            None => "http",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self {
            http: Http {
                listen: any(8080),
                cors_origins: CorsOrigins::Any,
                strict_preconditions: false,
                counter_offer: CounterOffer::Never,
                legacy_server_offer: false,
                tls_certificate: None,
                tls_key: None,
                wait_for_publisher: Duration::ZERO,
            },
            ice: IceServers {
                urls: Vec::new(),
                auth: TurnAuth::Open,
                lifetime: Duration::from_secs(12 * 60 * 60),
            },
            webrtc: WebRtc {
                listen: any(8189),
                announce: Vec::new(),
                announce_by_stun: None,
                tcp: true,
                shards: 0,
                max_sessions: 10_000,
            },
            auth: Auth::default(),
            // A classroom behind one address comes at once when the stream begins; a flood goes on.
            limits: Limits {
                requests_per_second: 200,
                request_burst: 2_000,
                connections: 4_096,
                // Half of them: an office or a proxy has many viewers behind it, and nobody may take them all.
                connections_per_address: 2_048,
                drain: Duration::from_secs(5),
            },
            log: Log {
                format: LogFormat::Text,
                level: "info".to_owned(),
                otlp: None,
            },
            pipelines: Pipelines {
                folder: None,
                repair: true,
                library: Library::shipped(),
                program: process::own_program(),
            },
            sources: Sources::default(),
            streams: Vec::new(),
            set: Given::default(),
        }
    }
}

/// Why there is no usable configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The line itself is not shown: it may hold a token.
    #[error("{}, line {line}, is not TOML: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("unknown key `{key}`{}; known are: {}", origin(variable.as_deref()), keys::names())]
    UnknownKey { key: String, variable: Option<String> },
    /// The value is not shown: it may be a token.
    #[error("the environment variable {variable} is not UTF-8")]
    NotText { variable: String },
    #[error("`{key}`{} is {value}, but has to be {allowed}", origin(variable.as_deref()))]
    BadValue {
        key: &'static str,
        variable: Option<String>,
        value: String,
        allowed: &'static str,
    },
    #[error("`{key}` {problem}")]
    Streams { key: String, problem: String },
}

fn origin(variable: Option<&str>) -> String {
    variable.map_or_else(String::new, |name| format!(" (environment variable {name})"))
}

/// The file that is read when it exists and no other is named.
pub const DEFAULT_FILE: &str = "millstream.toml";

const PREFIX: &str = "MILLSTREAM_";

impl Config {
    /// Reads the file at `path`, or [`DEFAULT_FILE`] in the working directory if there is one, and the `environment`.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] that names file, key and value.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: file.to_owned(),
                    source,
                });
            }
        };
        Self::parse(&text, file, keys_of(environment)?)
    }

    /// Names of the keys that are set otherwise here than there.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (&self.set.keys, &other.set.keys);
        let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let differs = |name: &&String| ours.get(*name) != theirs.get(*name);
        names.into_iter().filter(differs).cloned().collect()
    }

    /// The streams to be fetched, each with what was said about it.
    pub fn ordered(&self) -> Vec<(Fetched, Option<toml::Value>)> {
        let streams = self.streams.iter();
        let table = |fetched: &Fetched| self.set.streams.get(fetched.stream.as_str()).cloned();
        streams.map(|fetched| (fetched.clone(), table(fetched))).collect()
    }

    /// Adds the stream `demo`, unless there is one of that name.
    pub fn add_demo(&mut self) {
        let is_there = self
            .streams
            .iter()
            .any(|fetched| fetched.stream.as_str() == streams::DEMO);
        let means = streams::Means {
            pipelines: &self.pipelines,
            allowed: &self.sources.allow,
        };
        if !is_there && let Some(demo) = streams::demo(&means) {
            self.streams.push(demo);
        }
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
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            ConfigError::Syntax {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        let mut config = Self::default();
        for (section, value) in &table {
            match value {
                // Last: streams use what is set elsewhere.
                toml::Value::Table(_) if section == "streams" => {}
                toml::Value::Table(keys) => {
                    for (key, value) in keys {
                        keys::set(&mut config, &format!("{section}.{key}"), value, None)?;
                    }
                }
                value => keys::set(&mut config, section, value, None)?,
            }
        }
        for (variable, value) in environment {
            let Some((section, key)) = key_of(&variable) else {
                continue;
            };
            let key = format!("{section}.{key}").to_ascii_lowercase();
            keys::set(&mut config, &key, &toml::Value::String(value), Some(variable))?;
        }
        if let Some(hook) = &mut config.auth.hook {
            hook.timeout = config.auth.hook_timeout.unwrap_or(HOOK_TIMEOUT);
        }
        if let Some(folder) = &config.pipelines.folder {
            let added = config.pipelines.library.add_folder(folder);
            added.map_err(|error| ConfigError::Streams {
                key: "pipelines.folder".to_owned(),
                problem: format!("is not usable: {error}"),
            })?;
        }
        if let Some(toml::Value::Table(section)) = table.get("streams") {
            let means = streams::Means {
                pipelines: &config.pipelines,
                allowed: &config.sources.allow,
            };
            config.streams = streams::read(section, &means)?;
            config.set.streams = section.clone().into_iter().collect();
        }
        Ok(config)
    }
}

/// The variables that stand for keys, as text. Others may hold anything.
fn keys_of(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>, ConfigError> {
    environment
        .into_iter()
        .map(|(variable, value)| (variable.to_string_lossy().into_owned(), value))
        .filter(|(variable, _)| key_of(variable).is_some())
        .map(|(variable, value)| match value.into_string() {
            Ok(value) => Ok((variable, value)),
            Err(_) => Err(ConfigError::NotText { variable }),
        })
        .collect()
}

/// Section and key that a variable stands for. Names without `__` are no keys: MILLSTREAM_CONFIG, and what other
/// programs may call theirs.
fn key_of(variable: &str) -> Option<(&str, &str)> {
    variable.strip_prefix(PREFIX)?.split_once("__")
}

#[cfg(test)]
mod tests;
