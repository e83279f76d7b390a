//! Streams with the settings that the API has set, as the API shows them: without secrets, and with their entity tag.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value};

use super::streams::{self, Stream};
use crate::config::json::json_from_toml;
use crate::config::state_file::ApiStream;
use crate::config::{ConfigKey, ConfigSection as _, HlsSourceConfig, PipelineSourceConfig, RtspConfig};
use crate::control::ControlPlane;
use millstream_core::hub::name::StreamName;

/// What is shown in place of a secret.
const HIDDEN_SECRET_TEXT: &str = "(hidden)";

/// Describes all streams, with the settings that the API has set.
pub(super) fn list_streams_with_settings(control: &ControlPlane) -> Vec<Stream> {
    let mut all = streams::list_streams(control.media_plane.hub(), &control.source_registry, |name| {
        control.hls_service.viewer_count(name)
    });
    for stream in &mut all {
        let set = StreamName::parse(&stream.name)
            .ok()
            .and_then(|name| control.api_streams.get(&name));
        stream.settings = set.map(|set| settings_without_secrets(&set));
    }
    all
}

/// Describes a stream, with the settings that the API has set.
pub(super) fn describe_stream_with_settings(control: &ControlPlane, name: &StreamName) -> Option<Stream> {
    let mut stream = streams::describe_stream(name, control.media_plane.hub(), &control.source_registry, |name| {
        control.hls_service.viewer_count(name)
    })?;
    let set = control.api_streams.get(name);
    stream.settings = set.map(|set| settings_without_secrets(&set));
    Some(stream)
}

/// Adds the entity tag of the settings to a response.
pub(super) fn add_entity_tag(headers: &mut HeaderMap, stream: &ApiStream) {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", stream.opaque_tag())) {
        headers.insert(header::ETAG, tag);
    }
}

/// Returns settings without secrets: of a URL only scheme, host and port.
fn settings_without_secrets(stream: &Arc<ApiStream>) -> Map<String, Value> {
    let keys: Vec<&ConfigKey> = [
        RtspConfig::CONFIG_KEYS,
        HlsSourceConfig::CONFIG_KEYS,
        PipelineSourceConfig::CONFIG_KEYS,
    ]
    .into_iter()
    .flatten()
    .collect();
    let settings = stream.settings.iter();
    let shown = settings.map(|(name, value)| {
        let is_public = keys.iter().any(|key| key.name == name && !key.is_secret);
        let value = if is_public {
            json_from_toml(value)
        } else {
            hide_secrets(value)
        };
        (name.clone(), value)
    });
    shown.collect()
}

/// Returns a value with its structure, without its texts.
fn hide_secrets(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => redacted_url_origin(text)
            .unwrap_or_else(|| HIDDEN_SECRET_TEXT.to_owned())
            .into(),
        toml::Value::Array(items) => items.iter().map(hide_secrets).collect(),
        toml::Value::Table(table) => {
            let members = table.iter();
            Value::Object(
                members
                    .map(|(name, value)| (name.clone(), hide_secrets(value)))
                    .collect(),
            )
        }
        other => json_from_toml(other),
    }
}

/// Returns scheme, host and port of a URL. User, path and query may be secrets.
fn redacted_url_origin(text: &str) -> Option<String> {
    let url = url::Url::parse(text.trim()).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    Some(format!("{}://{host}{port}/..", url.scheme()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::api_streams::parse_stream_settings;
    use super::*;

    #[test]
    fn settings_are_shown_without_secrets() {
        let name = StreamName::parse("door").expect("a name");
        let settings = json!({
            "hls": "https://user@origin.example:8443/s3cret/a.m3u8?token=s3cret",
            "headers": { "Authorization": "Bearer s3cret", "n": 1 },
            "max_height": 720,
            "on_demand": true,
            "stop_after": 5,
        });
        let Value::Object(settings) = settings else { panic!() };
        let stream = Arc::new(
            parse_stream_settings(&name, &settings)
                .map_err(|p| p.detail)
                .expect("valid"),
        );
        assert_eq!(
            Value::Object(settings_without_secrets(&stream)),
            json!({
                "hls": "https://origin.example:8443/..",
                "headers": { "Authorization": "(hidden)", "n": 1 },
                "max_height": 720,
                "on_demand": true,
                "stop_after": 5,
            })
        );
    }
}
