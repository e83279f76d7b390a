//! Tokens for particular streams (stream keys): `GET` and `POST /api/v1/tokens`, `DELETE /api/v1/tokens/{id}`.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::info;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};

use super::api_streams::read_json_object_body;
use super::extract::Path;
use super::state::{ApiClient, ApiState};
use crate::access::issued_tokens::{IssuedToken, TokenLifetime, to_unix_seconds};
use crate::access::pattern::StreamNamePattern;
use crate::access::{AccessControl, Grant, Permissions};
use crate::config::ApiScope;
use crate::control::api_streams::ApiStreamError;
use crate::http::problem::Problem;
use millstream_core::hub::name::StreamName;

/// Maximum number of patterns of one token and action.
const MAX_STREAM_PATTERNS_PER_ACTION: usize = 16;
/// Maximum length of a label, in characters.
const MAX_LABEL_CHARS: usize = 128;
/// Longest lifetime of a token in seconds: ten years. A token may also have no end.
const MAX_TOKEN_LIFETIME_SECS: u64 = 10 * 365 * 24 * 60 * 60;

/// The schema of patterns of streams: a pattern, a list of them, or none.
fn stream_patterns_schema() -> Schema {
    let schema_of_type = |kind| ObjectBuilder::new().schema_type(SchemaType::Type(kind));
    let pattern = || -> Object { schema_of_type(Type::String).min_length(Some(1)).build() };
    let patterns = ArrayBuilder::new()
        .items(pattern())
        .max_items(Some(MAX_STREAM_PATTERNS_PER_ACTION));
    let forms = OneOfBuilder::new()
        .item(pattern())
        .item(patterns.build())
        .item(schema_of_type(Type::Null).build());
    Schema::OneOf(forms.build())
}

/// What a token is to be issued for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Streams that the token may publish: a name, a pattern such as `studio/*`, or a list.
    #[serde(default)]
    #[schema(schema_with = stream_patterns_schema)]
    publish: Value,
    /// Streams that the token may play.
    #[serde(default)]
    #[schema(schema_with = stream_patterns_schema)]
    play: Value,
    /// Streams whose cameras the token may talk to.
    #[serde(default)]
    #[schema(schema_with = stream_patterns_schema)]
    talk: Value,
    /// Seconds until it expires, 1 to 315360000, and not after the credential of the request. Without it the token expires
    /// when that credential does, if it does.
    #[schema(minimum = 1, maximum = 315_360_000)]
    expires_in: Option<u64>,
    /// For people, up to 128 characters.
    #[schema(max_length = 128)]
    label: Option<String>,
}

/// A token that was issued.
#[derive(Debug, Serialize, ToSchema)]
pub struct Token {
    pub id: String,
    pub label: Option<String>,
    pub publish: Vec<String>,
    pub play: Vec<String>,
    pub talk: Vec<String>,
    /// Seconds since 1970.
    pub issued: u64,
    /// The credential that issued it, such as `auth.api_token`; `null` if that was not kept.
    pub issued_by: Option<String>,
    /// Seconds since 1970.
    pub expires: Option<u64>,
    pub expired: bool,
    /// It has not expired, and the credential that issued it is still in force.
    pub valid: bool,
    /// The token itself. It is shown once, in the response to the POST.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Paths that contain the token, for a token for one stream. Shown once too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<ShareLinks>,
}

/// Paths of this gateway that contain a token: put the address of the gateway before them.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShareLinks {
    /// The page that plays the stream.
    pub watch: Option<String>,
    /// The playlist, for HLS players.
    pub hls: Option<String>,
    /// The page that publishes the stream from a browser.
    pub publish: Option<String>,
}

impl Token {
    fn from_issued_token(token: &IssuedToken, access: &AccessControl) -> Self {
        Self {
            id: token.id.clone(),
            label: token.label.clone(),
            publish: pattern_texts(&token.permissions.publish),
            play: pattern_texts(&token.permissions.play),
            talk: pattern_texts(&token.permissions.talk),
            issued: to_unix_seconds(token.issued_at),
            issued_by: token.issuer.as_ref().map(|issuer| issuer.name.clone()),
            expires: token.expires_at.map(to_unix_seconds),
            expired: token.is_expired(),
            valid: access.is_issued_token_valid(token),
            token: None,
            links: None,
        }
    }
}

fn pattern_texts(patterns: &[StreamNamePattern]) -> Vec<String> {
    patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect()
}

/// All tokens that were issued through the API, without the tokens themselves.
#[utoipa::path(get, path = "/api/v1/tokens", responses((status = 200, body = Vec<Token>, description = "the tokens")))]
pub(super) async fn all_tokens(State(api): State<ApiState>) -> Json<Vec<Token>> {
    let access = api.authenticator.access_control();
    let tokens = api.control.api_streams.issued_tokens().list_all();
    Json(
        tokens
            .iter()
            .map(|token| Token::from_issued_token(token, &access))
            .collect(),
    )
}

/// Issues a token for publishing, watching or talking to particular streams. Its text is shown only in this response. It is valid no
/// longer than the credential that the request was made with.
#[utoipa::path(
    post,
    path = "/api/v1/tokens",
    request_body = TokenRequest,
    responses(
        (status = 201, body = Token, description = "the token"),
        (status = 403, description = "the token that the request was sent with cannot issue tokens"),
        (status = 409, description = "the limit `api.max_tokens` is reached"),
        (status = 422, description = "the request is invalid"),
    )
)]
pub(super) async fn issue_token(
    State(api): State<ApiState>,
    Extension(grant): Extension<Grant>,
    Extension(client): Extension<ApiClient>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_json_object_body(&headers, body, &["application/json"]).await?;
    let request: TokenRequest =
        serde_json::from_value(Value::Object(body)).map_err(|error| bad_token_request_problem(&error.to_string()))?;
    let access = api.authenticator.access_control();
    let issuer = access.issuer_of_grant(&grant).ok_or_else(|| {
        let detail = "only a token of the configuration, a signed token (JWT) or one that the authorization webhook \
                      permits can issue tokens";
        Problem::new(StatusCode::FORBIDDEN, "insufficient_scope", detail)
    })?;
    let (permissions, requested, label) = parse_token_request(request)?;
    let lifetime = TokenLifetime {
        requested,
        issuer_expires_at: grant.expires_at,
    };
    let (issued, secret) = IssuedToken::issue(permissions, lifetime, label, issuer)
        .map_err(|error| bad_token_request_problem(&error.to_string()))?;
    let mut shown = Token::from_issued_token(&issued, &access);
    let (id, permissions, expires) = (shown.id.clone(), issued.permissions.clone(), shown.expires);
    shown.links = share_links(&shown, secret.reveal());
    shown.token = Some(secret.reveal().to_owned());
    // A change goes on to its end when the client leaves.
    let adding = tokio::spawn(async move {
        api.control.add_issued_token(issued, &access).await?;
        let ApiClient { credential, address } = client;
        let address = address.map(tracing::field::display);
        info!(
            token = id,
            issued_by = credential,
            address,
            publish = ?pattern_texts(&permissions.publish),
            play = ?pattern_texts(&permissions.play),
            talk = ?pattern_texts(&permissions.talk),
            expires,
            "token issued through the API"
        );
        Ok(())
    });
    adding.await.unwrap_or(Err(ApiStreamError::Stopping))?;
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

/// Returns permissions, lifetime and label of the token that a request is for.
fn parse_token_request(request: TokenRequest) -> Result<(Permissions, Option<Duration>, Option<String>), Problem> {
    let permissions = Permissions {
        publish: parse_patterns("publish", &request.publish)?,
        play: parse_patterns("play", &request.play)?,
        talk: parse_patterns("talk", &request.talk)?,
        api: ApiScope::None,
    };
    if permissions.publish.is_empty() && permissions.play.is_empty() && permissions.talk.is_empty() {
        return Err(bad_token_request_problem(
            "the new token would have no permission: set `publish`, `play` or `talk`",
        ));
    }
    if request
        .expires_in
        .is_some_and(|seconds| !(1..=MAX_TOKEN_LIFETIME_SECS).contains(&seconds))
    {
        let problem = format!("`expires_in` has to be a whole number of seconds from 1 to {MAX_TOKEN_LIFETIME_SECS}");
        return Err(bad_token_request_problem(&problem));
    }
    if request
        .label
        .as_ref()
        .is_some_and(|label| label.chars().count() > MAX_LABEL_CHARS)
    {
        let problem = format!("`label` has more than {MAX_LABEL_CHARS} characters");
        return Err(bad_token_request_problem(&problem));
    }
    let label = request.label.filter(|label| !label.trim().is_empty());
    Ok((permissions, request.expires_in.map(Duration::from_secs), label))
}

/// Revokes a token. Sessions that were opened with it end.
#[utoipa::path(
    delete,
    path = "/api/v1/tokens/{id}",
    params(("id" = String, Path, description = "the id in the list of tokens")),
    responses(
        (status = 204, description = "the token was revoked"),
        (status = 404, description = "no token has this id"),
    )
)]
pub(super) async fn revoke_token(
    State(api): State<ApiState>,
    Extension(client): Extension<ApiClient>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let revoking = tokio::spawn(async move {
        let revoked = api.control.remove_issued_token(&id).await?;
        if revoked {
            let sessions_ended = api.control.sessions.end_sessions_of_revoked_tokens();
            info!(
                token = id,
                revoked_by = client.credential,
                sessions_ended,
                "token revoked through the API"
            );
        }
        Ok::<bool, ApiStreamError>(revoked)
    });
    match revoking.await.unwrap_or(Err(ApiStreamError::Stopping))? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_token",
            "no token has this id",
        )),
    }
}

fn bad_token_request_problem(problem: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_token_request", problem)
}

/// Reads a pattern, or a list of them.
fn parse_patterns(member: &str, value: &Value) -> Result<Vec<StreamNamePattern>, Problem> {
    let texts: Vec<&Value> = match value {
        Value::Null => Vec::new(),
        Value::Array(texts) => texts.iter().collect(),
        text => vec![text],
    };
    if texts.len() > MAX_STREAM_PATTERNS_PER_ACTION {
        return Err(bad_token_request_problem(&format!(
            "`{member}` has more than {MAX_STREAM_PATTERNS_PER_ACTION} patterns"
        )));
    }
    let parse = |text: &Value| {
        text.as_str().and_then(StreamNamePattern::parse).ok_or_else(|| {
            let expected = "expected a name or pattern of streams, such as \"studio/*\", or a list of them";
            bad_token_request_problem(&format!("`{member}` is invalid: {expected}"))
        })
    };
    texts.into_iter().map(parse).collect()
}

/// Returns the links with a token, if it is for one stream.
fn share_links(token: &Token, secret: &str) -> Option<ShareLinks> {
    let only = |names: &[String]| match names {
        [name] => StreamName::parse(name).ok(),
        _ => None,
    };
    let (play, publish) = (only(&token.play), only(&token.publish));
    if play.is_none() && publish.is_none() {
        return None;
    }
    Some(ShareLinks {
        // A fragment is not sent to servers, and so not logged by them.
        watch: play.as_ref().map(|name| format!("/watch/{name}#token={secret}")),
        hls: play.map(|name| format!("/hls/{name}/index.m3u8?token={secret}")),
        publish: publish.map(|name| format!("/publish/{name}#token={secret}")),
    })
}
