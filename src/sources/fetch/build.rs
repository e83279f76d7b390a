//! Builds sources from the section `streams` of the configuration.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::address::Allowed;
use super::pipeline::PipelineSpec;
use super::{SourceConfig, SourceKind};
use crate::config::mistake::{Hint, nearest};
use crate::config::{
    HlsConfig, Mistake, PipelineConfig, Problem, RtspConfig, StreamConfig, StreamSource, joined, named,
};
use crate::pipeline::description::ParameterError;
use crate::pipeline::library::Library;
use crate::pipeline::programs::WorkerPrograms;
use crate::pipeline::value::Unescaped;
use crate::sources::hls::{Choice, DeadVariants, Origin};
use crate::sources::rtsp::camera::{Camera, Password};
use crate::sources::rtsp::fallback::Fallback;
use crate::sources::rtsp::policies::{self, Policies};

/// What building a source needs besides its own table.
#[derive(Clone, Copy)]
pub struct BuildContext<'a> {
    pub library: &'a Library,
    /// The executable of the workers.
    pub programs: &'a WorkerPrograms,
    pub allowed: &'a Allowed,
}

/// Maximum number of HTTP headers of one source.
const MAX_HEADERS: usize = 16;

impl SourceConfig {
    /// Builds a source from its table.
    ///
    /// # Errors
    ///
    /// All mistakes in the table, by key.
    pub fn build(stream: &StreamConfig, context: BuildContext<'_>) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let kind = match &stream.source {
            StreamSource::Rtsp(config) => {
                camera(config, context, &mut mistakes).map(|camera| SourceKind::Camera(camera.into()))
            }
            StreamSource::Hls(config) => {
                origin(config, context, &mut mistakes).map(|origin| SourceKind::Hls(origin.into()))
            }
            StreamSource::Pipeline(config) => {
                pipeline(config, context, &mut mistakes).map(|spec| SourceKind::Pipeline(spec.into()))
            }
        };
        match kind {
            Some(kind) if mistakes.is_empty() => Ok(Self {
                stream: stream.name.clone(),
                kind,
                on_demand: stream.on_demand(),
            }),
            _ => {
                let path = stream.path();
                Err(mistakes.into_iter().map(|mistake| mistake.below(&path)).collect())
            }
        }
    }
}

fn camera(config: &RtspConfig, context: BuildContext<'_>, mistakes: &mut Vec<Mistake>) -> Option<Camera> {
    let password = password(config, mistakes);
    let username = config.username.clone().map(|username| username.0);
    if username.is_none()
        && password
            .as_ref()
            .is_some_and(|password| !matches!(password, Password::None))
    {
        mistakes.push(Mistake::new("", "has a password but no `username`"));
    }
    let policies = quirks(&config.quirks.0, mistakes);
    match Camera::new(&config.rtsp.0, username, password?) {
        Ok(mut camera) => {
            camera.transport = config.transport;
            camera.allowed = context.allowed.clone();
            camera.policies = policies;
            camera.silence_timeout = config.silence_timeout;
            camera.fallback = Fallback::new(context.library, context.programs);
            Some(camera)
        }
        Err(error) => {
            mistakes.push(Mistake::new("rtsp", error.to_string()));
            None
        }
    }
}

fn quirks(table: &toml::Table, mistakes: &mut Vec<Mistake>) -> Policies {
    let mut policies = Policies::default();
    for (name, value) in table {
        let key = joined("quirks", name);
        let known = policies::KEYS.iter().find(|(known, _)| known == name);
        let problem = match known {
            None => unknown(name, "key", policies::KEYS.iter().map(|(key, _)| *key)),
            Some(_) if policies.set(name, value).is_some() => continue,
            Some((_, allowed)) => Problem::Value {
                shown: Some(value.to_string()),
                expected: format!("expected {allowed}"),
            },
        };
        mistakes.push(Mistake::of(key, problem));
    }
    policies
}

fn unknown<'a>(name: &str, what: &'static str, known: impl Iterator<Item = &'a str> + Clone) -> Problem {
    let hint = match nearest(name, known.clone()) {
        Some(near) => Hint::Near(vec![near.to_owned()]),
        None => Hint::Known(known.map(str::to_owned).collect()),
    };
    Problem::Unknown { what, hint }
}

/// Returns `None` if the password cannot be read.
fn password(config: &RtspConfig, mistakes: &mut Vec<Mistake>) -> Option<Password> {
    let given = [
        ("password", config.password.is_some()),
        ("password_file", config.password_file.is_some()),
        ("password_env", config.password_env.is_some()),
    ];
    let mut given = given.into_iter().filter_map(|(key, is_given)| is_given.then_some(key));
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        mistakes.push(Mistake::new(second, format!("cannot be combined with `{first}`")));
        return None;
    }
    if let Some(file) = &config.password_file {
        return match std::fs::read_to_string(file) {
            Ok(_) => Some(Password::File(file.clone())),
            Err(error) => {
                let problem = format!("cannot be read: {}: {error}", file.display());
                mistakes.push(Mistake::new("password_file", problem));
                None
            }
        };
    }
    if let Some(variable) = &config.password_env {
        let password = named(variable).map_err(|problem| mistakes.push(Mistake::new("password_env", problem)));
        return password.ok().map(Password::Given);
    }
    Some(match &config.password {
        Some(password) => Password::Given(password.0.clone()),
        None => Password::None,
    })
}

fn origin(config: &HlsConfig, context: BuildContext<'_>, mistakes: &mut Vec<Mistake>) -> Option<Origin> {
    let headers = headers(&config.headers.0, mistakes);
    let address = match playlist(&config.hls.0) {
        Ok(address) => address,
        Err(problem) => {
            mistakes.push(Mistake::new("hls", problem));
            return None;
        }
    };
    Some(Origin {
        address,
        headers,
        choice: Choice {
            max_height: config.max_height,
            max_bandwidth: config.max_bandwidth,
        },
        repeats: config.repeat,
        allowed: context.allowed.clone(),
        programs: context.programs.clone(),
        dead: DeadVariants::default(),
    })
}

/// Parses the URL of a playlist. The error text does not contain it.
fn playlist(text: &str) -> Result<Url, String> {
    let parsed = Url::parse(text).ok();
    if let Some(unescaped) = Unescaped::find(text, parsed.as_ref()) {
        return Err(unescaped.to_string());
    }
    let is_web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some();
    let url = parsed.filter(is_web).ok_or_else(|| {
        "is not a playlist URL: expected one such as \"https://example.org/live/index.m3u8\"".to_owned()
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user or password: set them in `headers`".to_owned());
    }
    Ok(url)
}

/// Parses the HTTP headers that are sent to the origin. Their values are secrets.
fn headers(table: &toml::Table, mistakes: &mut Vec<Mistake>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if table.len() > MAX_HEADERS {
        mistakes.push(Mistake::new("headers", format!("has more than {MAX_HEADERS} headers")));
        return headers;
    }
    for (name, value) in table {
        let header = HeaderName::from_bytes(name.as_bytes()).ok();
        let text = value.as_str().and_then(|text| HeaderValue::from_str(text).ok());
        let (Some(header), Some(mut text)) = (header, text) else {
            let problem = "is not an HTTP header: expected a header name and a string of one line";
            mistakes.push(Mistake::new(joined("headers", name), problem));
            continue;
        };
        text.set_sensitive(true);
        headers.insert(header, text);
    }
    headers
}

fn pipeline(config: &PipelineConfig, context: BuildContext<'_>, mistakes: &mut Vec<Mistake>) -> Option<PipelineSpec> {
    let name = &config.pipeline;
    let Some(description) = context
        .library
        .get(name)
        .filter(|description| !description.is_conversion())
    else {
        mistakes.push(match context.library.get(name) {
            Some(_) => Mistake::new("pipeline", "is a conversion, which is started automatically on demand"),
            None => unknown_pipeline(name, context.library),
        });
        return None;
    };
    match description.job(&config.params.0, Vec::new()) {
        Ok((job, hosts)) => Some(PipelineSpec {
            name: name.clone(),
            programs: context.programs.clone(),
            job,
            limits: description.limits,
            hosts,
            allowed: context.allowed.clone(),
        }),
        Err(wrong) => {
            mistakes.extend(wrong.into_iter().map(|(name, error)| {
                let problem = match &error {
                    ParameterError::Unknown { known } => unknown(&name, "key", known.iter().map(String::as_str)),
                    ParameterError::Value(error) => Problem::Other(error.to_string()),
                };
                Mistake::of(joined("params", &name), problem)
            }));
            None
        }
    }
}

fn unknown_pipeline(name: &str, library: &Library) -> Mistake {
    let sources = library.iter().filter(|(_, description)| !description.is_conversion());
    let known: Vec<&str> = sources.map(|(name, _)| name).collect();
    let text = match nearest(name, known.iter().copied()) {
        Some(near) => format!("names the unknown pipeline {name:?} (did you mean {near:?}?)"),
        None => format!(
            "names the unknown pipeline {name:?}; expected one of {}",
            known.join(", ")
        ),
    };
    Mistake::new("pipeline", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Builds the first stream of a configuration file.
    fn build(keys: &str) -> Result<SourceConfig, String> {
        let text = format!("[streams.\"far\"]\n{keys}");
        let config = Config::parse(&text, std::path::Path::new("test.toml"), []).map_err(|error| error.to_string())?;
        let context = BuildContext {
            library: &Library::shipped(),
            programs: &WorkerPrograms::installed(),
            allowed: &Allowed::default(),
        };
        let listed = |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        SourceConfig::build(&config.streams[0], context).map_err(listed)
    }

    #[test]
    fn an_hls_source_is_built_from_its_table() {
        let fetched = build(
            "hls = \"https://example.org/a.m3u8?token=s3cret\"\nmax_height = 720\nrepeat = false\n\
             headers = { Referer = \"https://example.org/\" }\non_demand = true",
        )
        .expect("valid");
        let SourceKind::Hls(origin) = &fetched.kind else {
            panic!("{fetched:?}")
        };
        assert_eq!(
            (origin.choice.max_height, origin.choice.max_bandwidth, origin.repeats),
            (Some(720), None, false)
        );
        assert_eq!(origin.headers["referer"], "https://example.org/");
        assert!(!format!("{fetched:?}").contains("s3cret"), "it may be logged");
    }

    #[test]
    fn all_mistakes_of_a_stream_are_reported_without_secrets() {
        for (keys, wanted) in [
            ("hls = \"file:///etc/passwd\"", &["is not a playlist URL"][..]),
            ("hls = \"example.org/a.m3u8\"", &["is not a playlist URL"]),
            ("hls = \"https://a:s3cret@example.org/\"", &["in `headers`"]),
            (
                "hls = \"https://a:s3cret#@example.org/\"",
                &["percent-encode `#` as %23"],
            ),
            (
                "hls = \"https://a/\"\nheaders = { \"a b\" = \"s3cret\", a = \"s3cret\\n\", ok = \"s3cret\" }",
                &[
                    "`streams.far.headers.\"a b\"` is not an HTTP header",
                    "`streams.far.headers.a` is not an HTTP header",
                ],
            ),
            (
                "rtsp = \"rtsp://a:s3cret/x@b/\"\npassword = \"s3cret\"\nquirks = { teardwn = \"auto\", initial_seq = 3 }",
                &[
                    "`streams.far` has a password but no `username`",
                    "unknown key `streams.far.quirks.teardwn` (did you mean `teardown`?)",
                    "`streams.far.quirks.initial_seq` is 3: expected \"default\"",
                    "`streams.far.rtsp` has a user or password that has to be escaped: percent-encode `/` as %2F",
                ],
            ),
            (
                "rtsp = \"rtsp://b/\"\nusername = \"a\"\npassword = \"s3cret\"\npassword_file = \"/b\"",
                &["`streams.far.password_file` cannot be combined with `password`"],
            ),
            (
                "rtsp = \"rtsp://b/\"\nusername = \"a\"\npassword_file = \"/nonexistent\"",
                &["`streams.far.password_file` cannot be read: /nonexistent: "],
            ),
            (
                "pipeline = \"stt\"",
                &["`streams.far.pipeline` names the unknown pipeline \"stt\" (did you mean \"srt\"?)"],
            ),
            ("pipeline = \"aac-to-opus\"", &["is a conversion"]),
            (
                "pipeline = \"srt\"\nparams = { latncy = 3, passphrase = 3 }",
                &[
                    "unknown key `streams.far.params.latncy` (did you mean `latency`?)",
                    "`streams.far.params.passphrase` must be a string",
                    "`streams.far.params.uri` is required",
                ],
            ),
        ] {
            let error = build(keys).expect_err(keys);
            assert!(!error.contains("s3cret"), "{keys}: {error}");
            assert_eq!(error.lines().count(), wanted.len(), "{keys}: {error}");
            for wanted in wanted {
                assert!(error.contains(wanted), "{keys}: {wanted} in {error}");
            }
        }
    }
}
