//! Who may use the API: rights of tokens by method and resource, and the log line of each change.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::info;

use super::data;
use super::state::ApiClient;
use crate::access::Grant;
use crate::http::auth::{AccessAction, Authenticator};
use crate::http::problem::Problem;
use crate::http::request::client_identity;
use millstream_core::hub::name::StreamName;

pub(super) async fn require_api_access(
    State(authenticator): State<Arc<Authenticator>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    // A GET changes nothing.
    let action = match parts.method {
        Method::GET | Method::HEAD => AccessAction::ApiRead,
        _ => AccessAction::ApiFull,
    };
    let grant = authorize_api_request(&authenticator, &parts, action).await?;
    // A message to viewers changes nothing either, and there may be many.
    let is_change =
        action == AccessAction::ApiFull && data::target_stream_of_data_message(&parts.method, &parts.uri).is_none();
    let client = ApiClient {
        credential: authenticator.access_control().credential_name(&grant),
        address: client_identity(&parts).address,
    };
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(grant);
    request.extensions_mut().insert(client.clone());
    let mut response = next.run(request).await;
    if is_change && response.status().is_success() {
        let ApiClient { credential, address } = client;
        info!(%method, path, credential, address = address.map(tracing::field::display), "change requested through the API");
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Who may publish a stream may also send its data channel messages.
async fn authorize_api_request(
    authenticator: &Authenticator,
    parts: &Parts,
    action: AccessAction,
) -> Result<Grant, Problem> {
    if let Some(stream) = data::target_stream_of_data_message(&parts.method, &parts.uri) {
        let publisher = authenticator.authorize_request(client_identity(parts), AccessAction::Publish, Some(&stream));
        match publisher.await {
            Err(problem) if problem.status == StatusCode::FORBIDDEN => {}
            granted_or_refused => return granted_or_refused,
        }
    }
    authenticator
        .authorize_request(client_identity(parts), action, None)
        .await
}

/// A snapshot shows what viewers see: who may only read through the API needs the right to watch the stream.
pub(super) async fn authorize_snapshot(
    authenticator: &Authenticator,
    parts: &Parts,
    stream: &StreamName,
) -> Result<(), Problem> {
    let is_for_all_of_api = authenticator.authorize_request(client_identity(parts), AccessAction::ApiFull, None);
    if is_for_all_of_api.await.is_ok() {
        return Ok(());
    }
    let watching = authenticator.authorize_request(client_identity(parts), AccessAction::Play, Some(stream));
    watching.await.map(|_| ())
}
