//! Web pages and player: the files of `player/`, and the documentation site of `docs/`, embedded in the binary by `build/`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;

use self::web_files::{EMBED_PAGE, INDEX_PAGE, NOT_FOUND_PAGE, PUBLISH_PAGE, STATIC_FILES, STREAM_PAGE, WATCH_PAGE};
use super::problem::Problem;
use super::request::stream_name_from_path;
use super::state::HttpState;
use super::static_file::{CacheRule, StaticFile};
use crate::config::AllowedOrigins;
use crate::control::ControlPlane;

mod web_files {
    use super::StaticFile;

    include!(concat!(env!("OUT_DIR"), "/web_files.rs"));
}

/// Only files of the gateway may be loaded and run.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      media-src 'self' blob: mediastream:; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors ";

/// Only the gateway's own pages may show a page in a frame: others could place their own over its buttons.
const OWN_FRAME_ANCESTORS: &str = "'self'";

/// Adds the routes of all pages and files.
pub fn add_page_routes(router: Router<HttpState>) -> Router<HttpState> {
    let router = router
        .route(
            "/",
            get(async |headers: HeaderMap| respond_with_page(&INDEX_PAGE, &headers)),
        )
        .route("/docs/", get(async || Redirect::permanent("/docs")))
        .route("/watch/{*stream}", get(serve_watch_page))
        .route("/publish/{*stream}", get(serve_publish_page))
        .route("/streams/{*stream}", get(serve_stream_page))
        .route("/embed/{*stream}", get(serve_embed_page));
    STATIC_FILES.iter().fold(router, |router, file| {
        let serve = move |cache| get(async move |headers: HeaderMap| respond_with_file(file, &headers, cache));
        file.immutable_paths
            .iter()
            .fold(router.route(file.path, serve(CacheRule::Revalidate)), |router, path| {
                router.route(path, serve(CacheRule::Immutable))
            })
    })
}

async fn serve_watch_page(uri: Uri, headers: HeaderMap) -> Response {
    respond_with_stream_page(&WATCH_PAGE, &uri, &headers)
}

async fn serve_publish_page(uri: Uri, headers: HeaderMap) -> Response {
    respond_with_stream_page(&PUBLISH_PAGE, &uri, &headers)
}

async fn serve_stream_page(uri: Uri, headers: HeaderMap) -> Response {
    respond_with_stream_page(&STREAM_PAGE, &uri, &headers)
}

/// Serves the page for frames on pages of other origins, where `http.embed_origins` allows any.
async fn serve_embed_page(State(control): State<Arc<ControlPlane>>, uri: Uri, headers: HeaderMap) -> Response {
    let ancestors = match &control.client_settings().embed_origins {
        AllowedOrigins::Any => "*".to_owned(),
        AllowedOrigins::Listed(origins) if origins.is_empty() => {
            let detail = "other sites are not allowed to embed this page (iframe): add their origins to \
                          `http.embed_origins` in the configuration";
            return respond_with_problem_or_404_page(
                Problem::new(StatusCode::NOT_FOUND, "embedding_off", detail),
                &headers,
            );
        }
        AllowedOrigins::Listed(origins) => format!("{OWN_FRAME_ANCESTORS} {}", origins.join(" ")),
    };
    let mut response = respond_with_stream_page(&EMBED_PAGE, &uri, &headers);
    set_content_security_policy(&mut response, &ancestors);
    response
}

fn respond_with_stream_page(page: &StaticFile, uri: &Uri, headers: &HeaderMap) -> Response {
    match stream_name_from_path(uri) {
        Ok(_) => respond_with_page(page, headers),
        Err(problem) => respond_with_problem_or_404_page(problem, headers),
    }
}

/// Handles unknown paths: 404 with the paths that exist.
pub(super) async fn respond_to_unknown_path(uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_end_matches('/');
    let detail = match path {
        "/whip" | "/whep" | "/talk" | "/watch" | "/publish" | "/hls" | "/streams" | "/embed" => {
            format!("the path contains no stream name: use {path}/NAME")
        }
        _ => "not found: publish to /whip/NAME, or in a browser at /publish/NAME; watch at \
              /watch/NAME, /whep/NAME or /hls/NAME/index.m3u8"
            .to_owned(),
    };
    respond_with_problem_or_404_page(Problem::new(StatusCode::NOT_FOUND, "not_found", detail), &headers)
}

/// Responds with a page to browsers and with a problem document to other clients.
fn respond_with_problem_or_404_page(problem: Problem, headers: &HeaderMap) -> Response {
    let accepts = headers.get_all(header::ACCEPT).iter();
    let is_browser = accepts
        .flat_map(|value| value.to_str())
        .any(|value| value.contains("text/html"));
    if !is_browser {
        return problem.into_response();
    }
    // A condition applies to what would be a success (RFC 9110 §13.2.1).
    let mut unconditional = headers.clone();
    unconditional.remove(header::IF_NONE_MATCH);
    let mut response = respond_with_page(&NOT_FOUND_PAGE, &unconditional);
    if response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::NOT_FOUND;
        response.headers_mut().remove(header::ETAG);
    }
    response
}

fn respond_with_page(page: &StaticFile, headers: &HeaderMap) -> Response {
    respond_with_file(page, headers, CacheRule::Revalidate)
}

fn respond_with_file(file: &StaticFile, headers: &HeaderMap, cache: CacheRule) -> Response {
    let mut response = file.respond(headers, cache);
    set_content_security_policy(&mut response, OWN_FRAME_ANCESTORS);
    response
        .headers_mut()
        .insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn set_content_security_policy(response: &mut Response, frame_ancestors: &str) {
    // Origins are checked when the configuration is read, and are visible ASCII.
    if let Ok(policy) = HeaderValue::from_str(&format!("{CONTENT_SECURITY_POLICY}{frame_ancestors}")) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
}
