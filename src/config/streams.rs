//! The section `streams`: streams that the gateway fetches by itself, each a table under its name.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};
use url::Url;

use super::{ConfigError, Pipelines};
use crate::hub::name::StreamName;
use crate::sources::fetch::address::Allowed;
use crate::sources::fetch::pipeline::Order;
use crate::sources::fetch::{Fetched, How};
use crate::sources::hls::{Choice, Origin};
use crate::sources::rtsp::{Camera, Password, Transport, policies};

/// Keys of a stream whatever its source.
const COMMON: [&str; 2] = ["on_demand", "stop_after"];
/// Keys of a stream from a camera.
const CAMERA: [&str; 7] = [
    "rtsp",
    "transport",
    "username",
    "password",
    "password_file",
    "password_env",
    "quirks",
];
/// Keys of a stream by HLS.
const HLS: [&str; 5] = ["hls", "max_height", "max_bandwidth", "repeat", "headers"];
/// Keys of a stream from a pipeline.
const PIPELINE: [&str; 2] = ["pipeline", "params"];

/// Keys that say where a stream comes from: one of them.
const SOURCES: [&str; 3] = ["rtsp", "hls", "pipeline"];

/// Lines of HTTP that a source may want.
const MAX_HEADERS: usize = 16;

/// Most streams that may be configured: each holds a connection.
const MAX_STREAMS: usize = 1_000;

/// How long a source that runs on demand outlasts its last viewer.
const STOP_AFTER: Duration = Duration::from_secs(10);

/// What streams need of the rest of the configuration.
pub(super) struct Means<'a> {
    pub(super) pipelines: &'a Pipelines,
    pub(super) allowed: &'a Allowed,
}

/// Reads the whole section.
pub(super) fn read(section: &Table, means: &Means<'_>) -> Result<Vec<Fetched>, ConfigError> {
    if section.len() > MAX_STREAMS {
        let problem = format!("are more than {MAX_STREAMS} streams");
        return Err(ConfigError::Streams {
            key: "streams".to_owned(),
            problem,
        });
    }
    section
        .iter()
        .map(|(name, value)| Reader::new(name, value)?.fetched(means))
        .collect()
}

/// The stream `demo`: a test picture, made while somebody watches. `None` where it cannot be.
pub(super) fn demo(means: &Means<'_>) -> Option<Fetched> {
    let mut table = Table::new();
    table.insert("pipeline".to_owned(), Value::from("test"));
    table.insert("on_demand".to_owned(), Value::from(true));
    let value = Value::Table(table);
    Reader::new(DEMO, &value).and_then(|reader| reader.fetched(means)).ok()
}

/// Name of the stream of `--demo`.
pub(super) const DEMO: &str = "demo";

/// One stream. Values are never shown in errors: an address and a password are secrets.
struct Reader<'a> {
    name: &'a str,
    stream: StreamName,
    table: &'a Table,
}

impl<'a> Reader<'a> {
    fn new(name: &'a str, value: &'a Value) -> Result<Self, ConfigError> {
        let refused = |problem| ConfigError::Streams {
            key: format!("streams.\"{name}\""),
            problem,
        };
        let stream = StreamName::parse(name).map_err(|error| refused(format!("has a bad name: {error}")))?;
        let example = "has to be a table, such as { rtsp = \"rtsp://host/path\" }";
        let table = value.as_table().ok_or_else(|| refused(example.to_owned()))?;
        Ok(Self { name, stream, table })
    }

    fn refused(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::Streams {
            key: format!("streams.\"{}\".{key}", self.name),
            problem: problem.into(),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(self.refused(key, "has to be a text")),
        }
    }

    fn check_keys(&self, own: &[&str]) -> Result<(), ConfigError> {
        let known: Vec<&str> = own.iter().chain(&COMMON).copied().collect();
        match self.table.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => Err(self.refused(unknown, format!("is unknown; known are: {}", known.join(", ")))),
            None => Ok(()),
        }
    }

    fn fetched(&self, means: &Means<'_>) -> Result<Fetched, ConfigError> {
        let given = SOURCES.map(|key| self.table.contains_key(key));
        if let [first, second, ..] = SOURCES
            .iter()
            .zip(given)
            .filter_map(|(key, given)| given.then_some(*key))
            .collect::<Vec<_>>()[..]
        {
            return Err(self.refused(first, format!("and `{second}` exclude each other")));
        }
        let how = if let Some(url) = self.text("rtsp")? {
            How::Camera(Box::new(self.camera(url, means)?))
        } else if let Some(name) = self.text("pipeline")? {
            How::Pipeline(Box::new(self.pipeline(name, means)?))
        } else if let Some(address) = self.text("hls")? {
            How::Hls(Box::new(self.hls(address, means)?))
        } else {
            // A misspelt key is the likely reason.
            let all: Vec<&str> = CAMERA.iter().chain(&PIPELINE).chain(&HLS).copied().collect();
            self.check_keys(&all)?;
            return Err(self.refused("rtsp", "or `hls` or `pipeline` is missing: where the stream comes from"));
        };
        let on_demand = match self.table.get("on_demand") {
            None | Some(Value::Boolean(false)) => None,
            Some(Value::Boolean(true)) => Some(self.stop_after()?),
            Some(_) => return Err(self.refused("on_demand", "has to be true or false")),
        };
        if on_demand.is_none() && self.table.contains_key("stop_after") {
            return Err(self.refused("stop_after", "means nothing without `on_demand = true`"));
        }
        Ok(Fetched {
            stream: self.stream.clone(),
            how,
            on_demand,
        })
    }

    fn stop_after(&self) -> Result<Duration, ConfigError> {
        let Some(value) = self.table.get("stop_after") else {
            return Ok(STOP_AFTER);
        };
        let seconds = value.as_integer().filter(|seconds| (1..=86_400).contains(seconds));
        let seconds = seconds.ok_or_else(|| self.refused("stop_after", "has to be 1 to 86400 (seconds)"))?;
        Ok(Duration::from_secs(seconds.unsigned_abs()))
    }

    fn camera(&self, url: &str, means: &Means<'_>) -> Result<Camera, ConfigError> {
        self.check_keys(&CAMERA)?;
        let transport = match self.text("transport")? {
            None | Some("tcp") => Transport::Tcp,
            Some("udp") => Transport::Udp,
            Some(_) => return Err(self.refused("transport", "has to be \"tcp\" or \"udp\"")),
        };
        let username = self.text("username")?.map(str::to_owned);
        let password = self.password()?;
        if username.is_none() && !matches!(password, Password::None) {
            return Err(self.refused("username", "is missing where a password is given"));
        }
        let mut camera = Camera::new(url, username, password)
            .map_err(|error| self.refused("rtsp", format!("is not usable: {error}")))?;
        camera.transport = transport;
        camera.allowed = means.allowed.clone();
        match self.table.get("quirks") {
            None => {}
            Some(Value::Table(quirks)) => {
                for (key, value) in quirks {
                    let place = format!("quirks.{key}");
                    let Some((_, allowed)) = policies::KEYS.iter().find(|(known, _)| known == key) else {
                        let known: Vec<&str> = policies::KEYS.iter().map(|(key, _)| *key).collect();
                        return Err(self.refused(&place, format!("is unknown; known are: {}", known.join(", "))));
                    };
                    let set = camera.policies.set(key, value);
                    set.ok_or_else(|| self.refused(&place, format!("has to be {allowed}")))?;
                }
            }
            Some(_) => return Err(self.refused("quirks", "has to be a table")),
        }
        Ok(camera)
    }

    fn password(&self) -> Result<Password, ConfigError> {
        let given = [
            ("password", self.text("password")?),
            ("password_file", self.text("password_file")?),
            ("password_env", self.text("password_env")?),
        ];
        let mut given = given.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let Some((key, value)) = given.next() else {
            return Ok(Password::None);
        };
        if let Some((other, _)) = given.next() {
            return Err(self.refused(key, format!("and `{other}` exclude each other")));
        }
        match key {
            "password" => Ok(Password::Given(value.to_owned())),
            "password_file" => match std::fs::read_to_string(value) {
                Ok(_) => Ok(Password::File(PathBuf::from(value))),
                Err(error) => Err(self.refused(key, format!("cannot be read: {error}"))),
            },
            _ => match std::env::var_os(value).map(std::ffi::OsString::into_string) {
                Some(Ok(password)) => Ok(Password::Given(password)),
                Some(Err(_)) => Err(self.refused(key, "names a variable that is not UTF-8")),
                None => Err(self.refused(key, "names a variable that is not set")),
            },
        }
    }

    fn hls(&self, address: &str, means: &Means<'_>) -> Result<Origin, ConfigError> {
        self.check_keys(&HLS)?;
        let example = "has to be an address such as \"https://example.org/live/index.m3u8\"";
        let address = Url::parse(address).map_err(|_| self.refused("hls", example))?;
        if !matches!(address.scheme(), "http" | "https") || address.host_str().is_none() {
            return Err(self.refused("hls", example));
        }
        if !address.username().is_empty() || address.password().is_some() {
            return Err(self.refused("hls", "must not hold a password: give it in `headers`"));
        }
        let repeats = match self.table.get("repeat") {
            None => true,
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.refused("repeat", "has to be true or false"))?,
        };
        Ok(Origin {
            address,
            headers: self.headers()?,
            choice: Choice {
                max_height: self
                    .number("max_height", 16, 8_640)?
                    .and_then(|height| u32::try_from(height).ok()),
                max_bandwidth: self.number("max_bandwidth", 1_000, 1_000_000_000)?,
            },
            repeats,
            allowed: means.allowed.clone(),
            program: means.pipelines.program.clone(),
        })
    }

    fn number(&self, key: &str, least: u64, most: u64) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.table.get(key) else {
            return Ok(None);
        };
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refused(key, format!("has to be {least} to {most}"))),
        }
    }

    /// Lines that the origin wants with each request; their values are secrets.
    fn headers(&self) -> Result<HeaderMap, ConfigError> {
        let mut headers = HeaderMap::new();
        let Some(value) = self.table.get("headers") else {
            return Ok(headers);
        };
        let table = value.as_table().filter(|table| table.len() <= MAX_HEADERS);
        let table = table.ok_or_else(|| self.refused("headers", "has to be a table of at most 16 lines"))?;
        for (name, value) in table {
            let place = format!("headers.{name}");
            let refused = || self.refused(&place, "is no line of HTTP: name and text");
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
            let mut value = HeaderValue::from_str(value.as_str().ok_or_else(refused)?).map_err(|_| refused())?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(headers)
    }

    fn pipeline(&self, name: &str, means: &Means<'_>) -> Result<Order, ConfigError> {
        self.check_keys(&PIPELINE)?;
        let description = means.pipelines.library.get(name).ok_or_else(|| {
            self.refused(
                "pipeline",
                format!("is none that there is; there are: {}", means.pipelines.library.names()),
            )
        })?;
        if description.is_conversion() {
            return Err(self.refused(
                "pipeline",
                "is a conversion, which runs by itself where viewers need it",
            ));
        }
        let empty = Table::new();
        let values = match self.table.get("params") {
            None => &empty,
            Some(Value::Table(values)) => values,
            Some(_) => return Err(self.refused("params", "has to be a table")),
        };
        let (job, hosts) = description
            .job(values, Vec::new())
            .map_err(|(parameter, error)| self.refused(&format!("params.{parameter}"), error.to_string()))?;
        Ok(Order {
            name: name.to_owned(),
            program: means.pipelines.program.clone(),
            job,
            limits: description.limits,
            hosts,
            allowed: means.allowed.clone(),
        })
    }
}
