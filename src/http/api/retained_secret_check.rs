//! Secrets of a stream that a change would send to another server: the gateway keeps them hidden, and a change that names
//! only another address must not have them sent there.

use serde_json::{Map, Value};
use url::Url;

use crate::config::json::escape_json_pointer_token;
use crate::pipeline::library::PipelineLibrary;
use crate::pipeline::parameter::ParameterType;

/// Returns the JSON pointers of the secrets that `patch` does not contain, if `patched` settings use another server than
/// the `current` ones do, or another way to it.
pub(super) fn find_secrets_for_another_server(
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
    patched: &Map<String, Value>,
    library: &PipelineLibrary,
) -> Vec<String> {
    if source_destination_settings(current, library) == source_destination_settings(patched, library) {
        return Vec::new();
    }
    let patch = Value::Object(patch.clone());
    let mut pointers = secret_json_pointers(patched, library);
    pointers.retain(|pointer| patch.pointer(pointer).is_none());
    pointers
}

/// Returns what decides where the source connects to, and how its peer is verified.
fn source_destination_settings(settings: &Map<String, Value>, library: &PipelineLibrary) -> Vec<(String, String)> {
    let mut parts = Vec::new();
    for key in ["rtsp", "hls"] {
        let url = settings.get(key).and_then(Value::as_str);
        parts.extend(url.map(|url| (key.to_owned(), server_of_url(url))));
    }
    parts.extend(
        settings
            .get("pipeline")
            .map(|name| ("pipeline".to_owned(), name.to_string())),
    );
    // What reads the URL of a pipeline is not the parser of the gateway: it has to stay the same to the letter.
    let decisive = pipeline_parameters_with_types(settings, library).filter(|(_, _, kind)| match kind {
        Some(ParameterType::Secret | ParameterType::Integer | ParameterType::Float | ParameterType::Boolean) => false,
        Some(
            ParameterType::String
            | ParameterType::Enum
            | ParameterType::Url
            | ParameterType::File
            | ParameterType::Device,
        )
        | None => true,
    });
    parts.extend(decisive.map(|(name, value, _)| (format!("params.{name}"), value.to_string())));
    parts
}

/// Returns the JSON pointers of what is hidden and may be sent to the server.
fn secret_json_pointers(settings: &Map<String, Value>, library: &PipelineLibrary) -> Vec<String> {
    let own = ["username", "password"]
        .into_iter()
        .filter(|key| settings.contains_key(*key));
    let mut pointers: Vec<String> = own.map(|key| format!("/{key}")).collect();
    let headers = settings.get("headers").and_then(Value::as_object);
    let names = headers.into_iter().flat_map(Map::keys);
    pointers.extend(names.map(|name| format!("/headers/{}", escape_json_pointer_token(name))));
    let secret = pipeline_parameters_with_types(settings, library).filter(|(_, _, kind)| match kind {
        Some(ParameterType::Secret | ParameterType::String | ParameterType::Url) | None => true,
        Some(
            ParameterType::Integer
            | ParameterType::Float
            | ParameterType::Boolean
            | ParameterType::Enum
            | ParameterType::File
            | ParameterType::Device,
        ) => false,
    });
    pointers.extend(secret.map(|(name, _, _)| format!("/params/{}", escape_json_pointer_token(name))));
    pointers
}

/// Returns the parameters of a pipeline, each with its type if that is known.
fn pipeline_parameters_with_types<'a>(
    settings: &'a Map<String, Value>,
    library: &'a PipelineLibrary,
) -> impl Iterator<Item = (&'a String, &'a Value, Option<ParameterType>)> {
    let pipeline = settings.get("pipeline").and_then(Value::as_str);
    let description = pipeline.and_then(|name| library.get(name));
    let given = settings.get("params").and_then(Value::as_object).into_iter().flatten();
    given.map(move |(name, value)| {
        let parameter = description.and_then(|description| description.params.get(name));
        (name, value, parameter.map(|parameter| parameter.kind))
    })
}

/// Returns scheme, host and port of a URL. Text that is none is returned as it is.
fn server_of_url(text: &str) -> String {
    let Ok(url) = Url::parse(text.trim()) else {
        return text.to_owned();
    };
    let default_port = (url.scheme() == "rtsp").then_some(RTSP_PORT);
    let port = url.port_or_known_default().or(default_port);
    // Not of every scheme is the host in lower case.
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    format!("{}://{host}:{port:?}", url.scheme())
}

/// Port of RTSP (RFC 7826 §4.2).
const RTSP_PORT: u16 = 554;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::json::apply_merge_patch;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_secret_stays_with_the_server_that_it_was_set_for() {
        let camera = json!({ "rtsp": "rtsp://cam.example/a", "username": "u", "password": "p" });
        let playlist = json!({ "hls": "https://origin.example/a", "headers": { "A/b": "c", "D": "e" } });
        let pipeline = json!({ "pipeline": "rtsp", "params": { "uri": "rtsps://cam.example/", "username": "u", "password": "p" } });
        let both = &["/username", "/password"][..];
        let headers = &["/headers/A~1b", "/headers/D"][..];
        for (current, patch, needed) in [
            (&camera, json!({ "stop_after": 7 }), &[][..]),
            (&camera, json!({ "rtsp": "rtsp://CAM.example:554/b" }), &[]),
            (&camera, json!({ "rtsp": "rtsp://cam.example:555/a" }), both),
            (&camera, json!({ "rtsp": "rtsp://other.example/a" }), both),
            (&camera, json!({ "rtsp": "rtsp://cam.example@other.example/a" }), both),
            (
                &camera,
                json!({ "rtsp": "rtsp://other.example/a", "password": "p" }),
                &["/username"],
            ),
            (
                &camera,
                json!({ "rtsp": "rtsp://other.example/a", "username": null, "password": null }),
                &[],
            ),
            (&camera, json!({ "password": "new" }), &[]),
            (&playlist, json!({ "hls": "https://origin.example/b?c" }), &[]),
            (&playlist, json!({ "hls": "http://origin.example/a" }), headers),
            (&playlist, json!({ "hls": "https://other.example/" }), headers),
            (
                &playlist,
                json!({ "hls": "https://other.example/", "headers": { "D": "e" } }),
                &["/headers/A~1b"],
            ),
            (&pipeline, json!({ "params": { "latency": 300 } }), &[]),
            (&pipeline, json!({ "params": { "password": "new" } }), &[]),
            (
                &pipeline,
                json!({ "params": { "uri": "rtsps://other.example/" } }),
                &["/params/password", "/params/username"],
            ),
            (
                &pipeline,
                json!({ "params": { "certificate": "no-flags" } }),
                &["/params/password", "/params/uri", "/params/username"],
            ),
            (
                &pipeline,
                json!({ "pipeline": "own" }),
                &["/params/password", "/params/uri", "/params/username"],
            ),
        ] {
            let (current, patch) = (object(current.clone()), object(patch));
            let mut patched = current.clone();
            apply_merge_patch(&mut patched, &patch);
            let mut found =
                find_secrets_for_another_server(&current, &patch, &patched, &PipelineLibrary::with_shipped_pipelines());
            let mut needed: Vec<&str> = needed.to_vec();
            found.sort();
            needed.sort_unstable();
            assert_eq!(found, needed, "{current:?} {patch:?}");
        }
    }
}
