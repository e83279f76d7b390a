//! Builds sources from the section `streams` of the configuration.

use std::sync::Arc;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::address::AllowedNetworks;
use super::pipeline::PipelineSpec;
use super::{SourceConfig, SourceKind};
use crate::config::mistake::{MistakeHint, nearest_name};
use crate::config::{
    ConfigMistake, HlsSourceConfig, MistakeKind, PipelineSourceConfig, RtspConfig, StreamConfig, StreamSourceConfig,
    join_key_path, read_environment_variable,
};
use crate::pipeline::description::ParameterError;
use crate::pipeline::host_access::{HostAccess, HostAccessError};
use crate::pipeline::library::PipelineLibrary;
use crate::pipeline::parameter::UnescapedCredentialsError;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::sources::hls::http::DnsRebindingGuard;
use crate::sources::hls::{FailedVariants, HlsOrigin, VariantLimits};
use crate::sources::rtsp::camera::{Camera, PasswordSource};
use crate::sources::rtsp::fallback::CameraFallback;
use crate::sources::rtsp::policies::{self, CameraQuirkPolicies};

/// What building a source needs besides its own table.
#[derive(Clone, Copy)]
pub struct SourceBuildContext<'a> {
    pub pipeline_library: &'a PipelineLibrary,
    /// The executable of the workers.
    pub worker_programs: &'a WorkerExecutablesAndProcessSlots,
    pub allowed_networks: &'a AllowedNetworks,
    pub host_access: HostAccess<'a>,
}

/// Maximum number of HTTP headers of one source.
const MAX_HTTP_HEADERS: usize = 16;

impl SourceConfig {
    /// Builds a source from its table.
    ///
    /// # Errors
    ///
    /// All mistakes in the table, by key.
    pub fn from_stream_config(
        stream: &StreamConfig,
        context: SourceBuildContext<'_>,
    ) -> Result<Self, Vec<ConfigMistake>> {
        let mut mistakes = Vec::new();
        let kind = match &stream.source {
            StreamSourceConfig::Rtsp(config) => {
                build_camera(config, context, &mut mistakes).map(|camera| SourceKind::Camera(camera.into()))
            }
            StreamSourceConfig::Hls(config) => {
                build_hls_origin(config, context, &mut mistakes).map(|origin| SourceKind::Hls(origin.into()))
            }
            StreamSourceConfig::Pipeline(config) => {
                build_pipeline_spec(config, context, &mut mistakes).map(|spec| SourceKind::Pipeline(spec.into()))
            }
        };
        match kind {
            Some(kind) if mistakes.is_empty() => Ok(Self {
                stream: stream.stream_key(),
                kind,
                on_demand_linger: stream.on_demand_stop_after(),
            }),
            _ => {
                let path = stream.config_table_path();
                Err(mistakes
                    .into_iter()
                    .filter_map(|mistake| add_camera_url_to_mistake(stream, mistake))
                    .map(|mistake| mistake.with_path_prefix(&path))
                    .collect())
            }
        }
    }
}

/// Names the URL of a mistake if a camera has several. Mistakes in what they share are those of the first one.
fn add_camera_url_to_mistake(stream: &StreamConfig, mistake: ConfigMistake) -> Option<ConfigMistake> {
    let layer = stream.failover_source.as_ref().and_then(|source| source.camera_layer);
    match layer {
        Some(layer) if mistake.key == "rtsp" => Some(ConfigMistake {
            key: format!("rtsp[{}]", layer.index),
            ..mistake
        }),
        Some(layer) if layer.index > 0 => None,
        Some(_) | None => Some(mistake),
    }
}

fn build_camera(
    config: &RtspConfig,
    context: SourceBuildContext<'_>,
    mistakes: &mut Vec<ConfigMistake>,
) -> Option<Camera> {
    let password = build_password_source(config, mistakes);
    let username = config.username.clone().map(|username| username.0);
    if username.is_none()
        && password
            .as_ref()
            .is_some_and(|password| !matches!(password, PasswordSource::None))
    {
        mistakes.push(ConfigMistake::new("", "has a password but no `username`"));
    }
    let policies = parse_quirks(&config.quirks.0, mistakes);
    match Camera::new(&config.rtsp.0, username, password?) {
        Ok(mut camera) => {
            camera.transport = config.transport;
            camera.allowed_networks = context.allowed_networks.clone();
            camera.policies = policies;
            camera.silence_timeout = config.silence_timeout;
            camera.fallback = CameraFallback::new(context.pipeline_library, context.worker_programs);
            Some(camera)
        }
        Err(error) => {
            mistakes.push(ConfigMistake::with_kind(
                "rtsp",
                MistakeKind::Sentence(error.to_string()),
            ));
            None
        }
    }
}

fn parse_quirks(table: &toml::Table, mistakes: &mut Vec<ConfigMistake>) -> CameraQuirkPolicies {
    let mut policies = CameraQuirkPolicies::default();
    for (name, value) in table {
        let key = join_key_path("quirks", name);
        let known = policies::QUIRK_KEYS_AND_ALLOWED_VALUES
            .iter()
            .find(|(known, _)| known == name);
        let problem = match known {
            None => build_unknown_name_mistake_kind(
                name,
                "key",
                policies::QUIRK_KEYS_AND_ALLOWED_VALUES.iter().map(|(key, _)| *key),
            ),
            Some(_) if policies.set(name, value).is_some() => continue,
            Some((_, allowed)) => MistakeKind::InvalidValue {
                shown: Some(value.to_string()),
                expected: format!("expected {allowed}"),
            },
        };
        mistakes.push(ConfigMistake::with_kind(key, problem));
    }
    policies
}

fn build_unknown_name_mistake_kind<'a>(
    name: &str,
    what: &'static str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> MistakeKind {
    let hint = match nearest_name(name, known.clone()) {
        Some(near) => MistakeHint::SimilarNames(vec![near.to_owned()]),
        None => MistakeHint::ValidNames(known.map(str::to_owned).collect()),
    };
    MistakeKind::UnknownName { what, hint }
}

/// Returns `None` if the password cannot be read.
fn build_password_source(config: &RtspConfig, mistakes: &mut Vec<ConfigMistake>) -> Option<PasswordSource> {
    let given = [
        ("password", config.password.is_some()),
        ("password_file", config.password_file.is_some()),
        ("password_env", config.password_env.is_some()),
    ];
    let mut given = given.into_iter().filter_map(|(key, is_given)| is_given.then_some(key));
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        mistakes.push(ConfigMistake::new(second, format!("cannot be combined with `{first}`")));
        return None;
    }
    if let Some(file) = &config.password_file {
        return match std::fs::read_to_string(file) {
            Ok(_) => Some(PasswordSource::File(file.clone())),
            Err(error) => {
                let problem = format!("names the file {}, which cannot be read: {error}", file.display());
                mistakes.push(ConfigMistake::new("password_file", problem));
                None
            }
        };
    }
    if let Some(variable) = &config.password_env {
        let password = read_environment_variable(variable)
            .map_err(|problem| mistakes.push(ConfigMistake::new("password_env", problem)));
        return password.ok().map(PasswordSource::Inline);
    }
    Some(match &config.password {
        Some(password) => PasswordSource::Inline(password.0.clone()),
        None => PasswordSource::None,
    })
}

fn build_hls_origin(
    config: &HlsSourceConfig,
    context: SourceBuildContext<'_>,
    mistakes: &mut Vec<ConfigMistake>,
) -> Option<HlsOrigin> {
    let headers = parse_http_headers(&config.headers.0, mistakes);
    let address = match parse_playlist_url(&config.hls.0) {
        Ok(address) => address,
        Err(problem) => {
            mistakes.push(ConfigMistake::with_kind("hls", MistakeKind::Sentence(problem)));
            return None;
        }
    };
    Some(HlsOrigin {
        playlist_url: address,
        http_headers: headers,
        variant_limits: VariantLimits {
            max_height: config.max_height,
            max_bandwidth: config.max_bandwidth,
        },
        repeats_recording: config.repeat,
        allowed_networks: context.allowed_networks.clone(),
        worker_programs: context.worker_programs.clone(),
        failed_variants: FailedVariants::default(),
        first_resolution: DnsRebindingGuard::default(),
    })
}

/// Parses the URL of a playlist. The error text does not contain it.
fn parse_playlist_url(text: &str) -> Result<Url, String> {
    let parsed = Url::parse(text).ok();
    if let Some(unescaped) = UnescapedCredentialsError::detect_in_url(text, parsed.as_ref()) {
        return Err(unescaped.to_string());
    }
    let is_web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some();
    let url = parsed.filter(is_web).ok_or_else(|| {
        "the URL is not an HLS playlist URL: expected one such as \"https://example.org/live/index.m3u8\"".to_owned()
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the URL must not contain a user name or password: set an `Authorization` header in `headers`".to_owned(),
        );
    }
    Ok(url)
}

/// Parses the HTTP headers that are sent to the origin. Their values are secrets.
fn parse_http_headers(table: &toml::Table, mistakes: &mut Vec<ConfigMistake>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if table.len() > MAX_HTTP_HEADERS {
        mistakes.push(ConfigMistake::new(
            "headers",
            format!("has more than {MAX_HTTP_HEADERS} headers"),
        ));
        return headers;
    }
    for (name, value) in table {
        let header = HeaderName::from_bytes(name.as_bytes()).ok();
        let text = value.as_str().and_then(|text| HeaderValue::from_str(text).ok());
        let (Some(header), Some(mut text)) = (header, text) else {
            let problem = "is not an HTTP header: expected a valid name, and a string of one line as its value";
            mistakes.push(ConfigMistake::new(join_key_path("headers", name), problem));
            continue;
        };
        text.set_sensitive(true);
        headers.insert(header, text);
    }
    headers
}

fn build_pipeline_spec(
    config: &PipelineSourceConfig,
    context: SourceBuildContext<'_>,
    mistakes: &mut Vec<ConfigMistake>,
) -> Option<PipelineSpec> {
    let name = &config.pipeline;
    let Some(description) = context
        .pipeline_library
        .get(name)
        .filter(|description| !description.is_conversion())
    else {
        mistakes.push(match context.pipeline_library.get(name) {
            Some(_) => ConfigMistake::new(
                "pipeline",
                "names a conversion pipeline, which the gateway starts by itself on demand; expected a source pipeline",
            ),
            None => build_unknown_pipeline_mistake(name, context.pipeline_library),
        });
        return None;
    };
    // Before the values are validated, which looks for files.
    let values = match context
        .host_access
        .check_and_resolve_files(description, &config.params.0)
    {
        Ok(values) => values,
        Err(refused) => {
            let mistake = |(name, error): (Option<String>, HostAccessError)| {
                let key = name.map_or_else(|| "pipeline".to_owned(), |name| join_key_path("params", &name));
                ConfigMistake::with_kind(key, MistakeKind::Sentence(error.to_string()))
            };
            mistakes.extend(refused.into_iter().map(mistake));
            return None;
        }
    };
    match description.build_job_and_target_urls(&values, Vec::new()) {
        Ok((job, targets)) => Some(PipelineSpec {
            name: name.clone(),
            worker_programs: context.worker_programs.clone(),
            job,
            limits: description.limits,
            targets,
            attempts: Arc::default(),
            allowed_networks: context.allowed_networks.clone(),
        }),
        Err(wrong) => {
            mistakes.extend(wrong.into_iter().map(|(name, error)| {
                let problem = match &error {
                    ParameterError::UnknownParameter { known } => {
                        build_unknown_name_mistake_kind(&name, "key", known.iter().map(String::as_str))
                    }
                    ParameterError::InvalidValue(error) => MistakeKind::Sentence(error.to_string()),
                };
                ConfigMistake::with_kind(join_key_path("params", &name), problem)
            }));
            None
        }
    }
}

fn build_unknown_pipeline_mistake(name: &str, library: &PipelineLibrary) -> ConfigMistake {
    let sources = library.iter().filter(|(_, description)| !description.is_conversion());
    let known: Vec<&str> = sources.map(|(name, _)| name).collect();
    let text = match nearest_name(name, known.iter().copied()) {
        Some(near) => format!("names the unknown pipeline {name:?} (did you mean {near:?}?)"),
        None => format!(
            "names the unknown pipeline {name:?}; expected one of {}",
            known.join(", ")
        ),
    };
    ConfigMistake::new("pipeline", text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Builds the first stream of a configuration file.
    fn build(keys: &str) -> Result<SourceConfig, String> {
        let text = format!("[streams.\"far\"]\n{keys}");
        let config = Config::parse(&text, std::path::Path::new("test.toml"), []).map_err(|error| error.to_string())?;
        let context = SourceBuildContext {
            pipeline_library: &PipelineLibrary::with_shipped_pipelines(),
            worker_programs: &WorkerExecutablesAndProcessSlots::find_installed(),
            allowed_networks: &AllowedNetworks::default(),
            host_access: HostAccess::Everything,
        };
        let listed =
            |mistakes: Vec<ConfigMistake>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        SourceConfig::from_stream_config(&config.streams[0], context).map_err(listed)
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
            (
                origin.variant_limits.max_height,
                origin.variant_limits.max_bandwidth,
                origin.repeats_recording
            ),
            (Some(720), None, false)
        );
        assert_eq!(origin.http_headers["referer"], "https://example.org/");
        assert!(!format!("{fetched:?}").contains("s3cret"), "it may be logged");
    }

    #[test]
    fn all_mistakes_of_a_stream_are_reported_without_secrets() {
        for (keys, wanted) in [
            (
                "hls = \"file:///etc/passwd\"",
                &["the URL is not an HLS playlist URL"][..],
            ),
            ("hls = \"example.org/a.m3u8\"", &["the URL is not an HLS playlist URL"]),
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
                    "`streams.far.quirks.initial_seq` is 3: expected \"ignore\"",
                    "`streams.far.rtsp`: the URL has a user name or password with reserved characters: percent-encode `/` as %2F",
                ],
            ),
            (
                "rtsp = \"rtsp://b/\"\nusername = \"a\"\npassword = \"s3cret\"\npassword_file = \"/b\"",
                &["`streams.far.password_file` cannot be combined with `password`"],
            ),
            (
                "rtsp = \"rtsp://b/\"\nusername = \"a\"\npassword_file = \"/nonexistent\"",
                &["`streams.far.password_file` names the file /nonexistent, which cannot be read: "],
            ),
            (
                "pipeline = \"stt\"",
                &["`streams.far.pipeline` names the unknown pipeline \"stt\" (did you mean \"srt\"?)"],
            ),
            ("pipeline = \"aac-to-opus\"", &["names a conversion pipeline"]),
            (
                "pipeline = \"srt\"\nparams = { latncy = 3, passphrase = 3 }",
                &[
                    "unknown key `streams.far.params.latncy` (did you mean `latency`?)",
                    "`streams.far.params.passphrase`: the value must be a string",
                    "`streams.far.params.uri`: the pipeline requires this parameter: set it in `params` of the stream",
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
