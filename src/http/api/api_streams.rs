//! Streams that are set through the API: `POST`, `PUT`, `PATCH` and `DELETE /api/v1/streams/{stream}`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value};

use super::extract::Path;
use super::retained_secret_check::find_secrets_for_another_server;
use super::state::ApiState;
use super::stream_settings::{add_entity_tag, describe_stream_with_settings};
use super::stream_subresources::allowed_methods_of_stream_subresource;
use super::streams::Stream;
use crate::config::json::{apply_merge_patch, json_from_table, table_from_json};
use crate::config::state_file::ApiStream;
use crate::config::{ConfigLocation, ConfigMistake};
use crate::control::api_streams::{ApiStreamChange, ApiStreamError, EntityTagPrecondition};
use crate::http::body;
use crate::http::precondition::IfMatchResult;
use crate::http::problem::{Problem, ProblemError};
use millstream_core::hub::name::StreamName;

/// Maximum size of a request body, in bytes: headers and parameters of a source have no other limit.
const MAX_STREAM_SETTINGS_BODY_BYTES: usize = 64 * 1024;

const JSON_MEDIA_TYPE: &str = "application/json";
const MERGE_PATCH_MEDIA_TYPE: &str = "application/merge-patch+json";

/// Adds a stream that the gateway pulls. The members of the body are the keys of `[streams."NAME"]`.
#[utoipa::path(
    post,
    path = "/api/v1/streams/{stream}",
    params(("stream" = String, Path, description = "the name of the stream, which may contain slashes")),
    request_body(content = Object, description = "the keys of `[streams.\"NAME\"]` in the configuration file"),
    responses(
        (status = 201, body = Stream, description = "the stream was added; `ETag` is the tag of its settings"),
        (status = 409, description = "a stream of this name was already set through the API or is in the configuration \
                                      file, or the limit `api.max_streams` is reached"),
        (status = 422, description = "the settings have mistakes, which `errors` lists with their JSON pointers"),
    )
)]
pub(super) async fn add_stream(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name = settable_stream_name(&name)?;
    let settings = read_json_object_body(&headers, body, &[JSON_MEDIA_TYPE]).await?;
    store_stream_and_respond(api, &name, &settings, (false, precondition_from_headers(&headers))).await
}

/// Sets a stream that the gateway pulls: adds it, or replaces its settings. A source whose settings stay the same is not
/// restarted.
#[utoipa::path(
    put,
    path = "/api/v1/streams/{stream}",
    params(
        ("stream" = String, Path, description = "the name of the stream, which may contain slashes"),
        ("If-Match" = Option<String>, Header, description = "change the settings only if this is their `ETag`"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only add a stream, do not replace one"),
    ),
    request_body(content = Object, description = "the keys of `[streams.\"NAME\"]` in the configuration file"),
    responses(
        (status = 200, body = Stream, description = "the settings were replaced, or already had these values"),
        (status = 201, body = Stream, description = "the stream was added"),
        (status = 409, description = "the stream is in the configuration file, so it cannot be set through the API, or \
                                      the limit `api.max_streams` is reached"),
        (status = 412, description = "with `If-None-Match: *`: the stream already exists; with `If-Match`: its \
                                      settings have changed, or it does not exist"),
        (status = 422, description = "the settings have mistakes, which `errors` lists with their JSON pointers"),
    )
)]
pub(super) async fn put_stream(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name = settable_stream_name(&name)?;
    let settings = read_json_object_body(&headers, body, &[JSON_MEDIA_TYPE]).await?;
    store_stream_and_respond(api, &name, &settings, (true, precondition_from_headers(&headers))).await
}

/// Changes some settings of a stream that was set through the API, by a merge patch (RFC 7396): null removes a setting.
#[utoipa::path(
    patch,
    path = "/api/v1/streams/{stream}",
    params(
        ("stream" = String, Path, description = "the name of the stream, which may contain slashes"),
        ("If-Match" = Option<String>, Header, description = "change the settings only if this is their `ETag`"),
    ),
    request_body(content = Object, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, body = Stream, description = "the settings were changed, or already had these values"),
        (status = 404, description = "no stream of this name was set through the API"),
        (status = 409, description = "the stream is in the configuration file, so the API cannot change it"),
        (status = 412, description = "the settings have changed: `If-Match` does not list their current `ETag`"),
        (status = 422, description = "the settings have mistakes, or lack secrets that were set for another server and \
                                      have to be sent again: `errors` lists them with their JSON pointers"),
    )
)]
pub(super) async fn patch_stream(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name = settable_stream_name(&name)?;
    let patch = read_json_object_body(&headers, body, &[MERGE_PATCH_MEDIA_TYPE, JSON_MEDIA_TYPE]).await?;
    let precondition = precondition_from_headers(&headers);
    let Some(current) = api.control.api_streams.get(&name) else {
        return Err(api.control.missing_api_stream_error(&name).await.into());
    };
    let mut settings = json_from_table(&current.settings);
    apply_merge_patch(&mut settings, &patch);
    let context = api
        .control
        .api_streams
        .context()
        .await
        .ok_or(ApiStreamError::Stopping)?;
    let library = &context.pipeline_library;
    let missing = find_secrets_for_another_server(&json_from_table(&current.settings), &patch, &settings, library);
    if !missing.is_empty() {
        return Err(secrets_needed_problem(missing));
    }
    // The patch applies to these settings and no others.
    let tag = current.opaque_tag();
    let is_unchanged: EntityTagPrecondition = Box::new(move |now| now == Some(tag.as_str()) && precondition(now));
    store_stream_and_respond(api, &name, &settings, (true, is_unchanged)).await
}

fn secrets_needed_problem(pointers: Vec<String>) -> Problem {
    let detail = format!(
        "the settings name another server or another way to connect to it, and secrets are used only for the server \
         that they were set for: send {} again, or null to remove them",
        pointers.join(", ")
    );
    let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "secrets_needed", detail);
    let errors = pointers.into_iter().map(|pointer| ProblemError {
        pointer,
        detail: "was set for another server: send it again, or null to remove it".to_owned(),
    });
    problem.errors = errors.collect();
    problem
}

/// Removes a stream that was set through the API. Its publisher, if it has one, and its viewers are not affected.
#[utoipa::path(
    delete,
    path = "/api/v1/streams/{stream}",
    params(
        ("stream" = String, Path, description = "the name of the stream, which may contain slashes"),
        ("If-Match" = Option<String>, Header, description = "remove the stream only if this is its `ETag`"),
    ),
    responses(
        (status = 204, description = "the stream was removed"),
        (status = 404, description = "no stream of this name was set through the API"),
        (status = 409, description = "the stream is in the configuration file, so the API cannot remove it"),
        (status = 412, description = "the settings have changed: `If-Match` does not list their current `ETag`"),
    )
)]
pub(super) async fn remove_stream(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let name = settable_stream_name(&name)?;
    let precondition = precondition_from_headers(&headers);
    // A change goes on to its end when the client leaves.
    let removing = tokio::spawn(async move { api.control.remove_api_stream(&name, precondition).await });
    removing.await.unwrap_or(Err(ApiStreamError::Stopping))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Parses the name of a stream that is to be changed. Paths of other resources below a stream are refused: a stream of such
/// a name could not be read.
fn settable_stream_name(path: &str) -> Result<StreamName, Problem> {
    match allowed_methods_of_stream_subresource(path) {
        Some(allow) => Err(Problem::method_not_allowed(allow)),
        None => Ok(StreamName::parse(path)?),
    }
}

async fn store_stream_and_respond(
    api: ApiState,
    name: &StreamName,
    settings: &Map<String, Value>,
    (may_exist, precondition): (bool, EntityTagPrecondition),
) -> Result<Response, Problem> {
    let stream = parse_stream_settings(name, settings)?;
    let control = api.control.clone();
    // A change goes on to its end when the client leaves.
    let setting = tokio::spawn(async move { control.set_api_stream(stream, may_exist, precondition).await });
    let ApiStreamChange { stream, is_new } = setting.await.unwrap_or(Err(ApiStreamError::Stopping))?;
    let shown = describe_stream_with_settings(&api.control, name).unwrap_or_else(|| Stream {
        name: name.to_string(),
        ..Stream::default()
    });
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (status, Json(shown)).into_response();
    add_entity_tag(response.headers_mut(), &stream);
    if is_new && let Ok(location) = HeaderValue::from_str(&format!("/api/v1/streams/{name}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Reads the settings of a stream.
pub(super) fn parse_stream_settings(name: &StreamName, settings: &Map<String, Value>) -> Result<ApiStream, Problem> {
    let table = table_from_json(settings).map_err(|(pointer, what)| {
        let mistake = ConfigMistake {
            location: Some(ConfigLocation::JsonPointer(pointer.clone())),
            ..ConfigMistake::new(pointer, what)
        };
        config_mistakes_problem(&[mistake])
    })?;
    ApiStream::from_settings(name, table).map_err(|mistakes| config_mistakes_problem(&mistakes))
}

/// Reads a JSON object from the body of a request with one of these media types.
pub(super) async fn read_json_object_body(
    headers: &HeaderMap,
    body: Body,
    media_types: &[&str],
) -> Result<Map<String, Value>, Problem> {
    if !media_types
        .iter()
        .any(|media_type| body::has_content_type(headers, media_type))
    {
        let detail = format!(
            "send the request body with `Content-Type: {}`",
            media_types.join("` or `")
        );
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            detail,
        ));
    }
    let bytes = body::read_uncompressed_request_body(headers, body, MAX_STREAM_SETTINGS_BODY_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        // The text of the error may quote a value, which may be a secret.
        let (line, column) = (error.line(), error.column());
        let detail = format!("the request body is not a JSON object: see line {line}, column {column}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail)
    })
}

/// Returns the condition that `If-Match` and `If-None-Match` set (RFC 9110 §13.1).
fn precondition_from_headers(headers: &HeaderMap) -> EntityTagPrecondition {
    let headers = headers.clone();
    Box::new(move |tag| {
        let matches = match (IfMatchResult::evaluate(&headers, tag.unwrap_or_default()), tag) {
            (IfMatchResult::Absent, _) | (IfMatchResult::Any | IfMatchResult::Current, Some(_)) => true,
            (IfMatchResult::Stale, _) | (_, None) => false,
        };
        let is_only_new = headers.get(header::IF_NONE_MATCH).is_some_and(|value| value == "*");
        matches && !(is_only_new && tag.is_some())
    })
}

/// Returns the problem for settings with mistakes.
pub(super) fn config_mistakes_problem(mistakes: &[ConfigMistake]) -> Problem {
    let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let mut problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_stream", texts.join("\n"));
    let errors = mistakes.iter().map(|mistake| ProblemError {
        pointer: match &mistake.location {
            Some(ConfigLocation::JsonPointer(pointer)) => pointer.clone(),
            _ => String::new(),
        },
        detail: ConfigMistake {
            location: None,
            ..mistake.clone()
        }
        .to_string(),
    });
    problem.errors = errors.collect();
    problem
}

impl From<ApiStreamError> for Problem {
    fn from(error: ApiStreamError) -> Self {
        let (status, code) = match &error {
            ApiStreamError::Mistakes(mistakes) => return config_mistakes_problem(mistakes),
            ApiStreamError::InConfigurationFile => (StatusCode::CONFLICT, "in_configuration_file"),
            ApiStreamError::Exists => (StatusCode::CONFLICT, "stream_exists"),
            ApiStreamError::TooMany(_) => (StatusCode::CONFLICT, "too_many_streams"),
            ApiStreamError::TooManyTokens(_) => (StatusCode::CONFLICT, "too_many_tokens"),
            ApiStreamError::NotFound => (StatusCode::NOT_FOUND, "unknown_stream"),
            ApiStreamError::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "precondition_failed"),
            ApiStreamError::NotWritten { .. } => (StatusCode::SERVICE_UNAVAILABLE, "state_file_not_written"),
            ApiStreamError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        };
        Self::new(status, code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_names_the_settings_that_may_be_changed() {
        let check = |name: header::HeaderName, value: &'static str, tag: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            precondition_from_headers(&headers)(tag)
        };
        for (name, value, tag, expected) in [
            (header::IF_MATCH, "\"a\"", Some("a"), true),
            (header::IF_MATCH, "\"b\"", Some("a"), false),
            (header::IF_MATCH, "\"\"", None, false),
            (header::IF_MATCH, "*", Some("a"), true),
            (header::IF_MATCH, "*", None, false),
            (header::IF_NONE_MATCH, "*", None, true),
            (header::IF_NONE_MATCH, "*", Some("a"), false),
            (header::ACCEPT, "*/*", None, true),
        ] {
            assert_eq!(check(name.clone(), value, tag), expected, "{name}: {value} {tag:?}");
        }
    }
}
