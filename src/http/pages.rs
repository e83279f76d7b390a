//! Web pages and player: the files of `player/`, embedded in the binary.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::problem::Problem;
use super::request::stream_name_from_path;
use super::state::HttpState;

/// An embedded file and the path it is served at.
struct EmbeddedFile {
    path: &'static str,
    media_type: &'static str,
    content: &'static [u8],
}

const JAVASCRIPT_MEDIA_TYPE: &str = "text/javascript; charset=utf-8";
const CSS_MEDIA_TYPE: &str = "text/css; charset=utf-8";
const HTML_MEDIA_TYPE: &str = "text/html; charset=utf-8";
const SVG_MEDIA_TYPE: &str = "image/svg+xml";

macro_rules! file {
    ($path:literal, $media_type:expr) => {
        EmbeddedFile {
            path: concat!("/", $path),
            media_type: $media_type,
            content: include_bytes!(concat!("../../player/", $path)),
        }
    };
}

const EMBEDDED_FILES: &[EmbeddedFile] = &[
    file!("board.js", JAVASCRIPT_MEDIA_TYPE),
    file!("favicon.svg", SVG_MEDIA_TYPE),
    file!("hls.js", JAVASCRIPT_MEDIA_TYPE),
    // Copied from npm by build.rs.
    EmbeddedFile {
        path: "/hls.min.js",
        media_type: JAVASCRIPT_MEDIA_TYPE,
        content: include_bytes!(concat!(env!("OUT_DIR"), "/hls.min.js")),
    },
    file!("index.js", JAVASCRIPT_MEDIA_TYPE),
    file!("limit.js", JAVASCRIPT_MEDIA_TYPE),
    file!("page.js", JAVASCRIPT_MEDIA_TYPE),
    file!("player.js", JAVASCRIPT_MEDIA_TYPE),
    file!("publish.js", JAVASCRIPT_MEDIA_TYPE),
    file!("quality.js", JAVASCRIPT_MEDIA_TYPE),
    file!("session.js", JAVASCRIPT_MEDIA_TYPE),
    file!("statistics.js", JAVASCRIPT_MEDIA_TYPE),
    file!("style.css", CSS_MEDIA_TYPE),
    file!("messages.js", JAVASCRIPT_MEDIA_TYPE),
    file!("template.js", JAVASCRIPT_MEDIA_TYPE),
    file!("transport.js", JAVASCRIPT_MEDIA_TYPE),
    file!("watch.js", JAVASCRIPT_MEDIA_TYPE),
    file!("whep.js", JAVASCRIPT_MEDIA_TYPE),
    file!("whip.js", JAVASCRIPT_MEDIA_TYPE),
];

const INDEX_PAGE: EmbeddedFile = file!("index.html", HTML_MEDIA_TYPE);
const WATCH_PAGE: EmbeddedFile = file!("watch.html", HTML_MEDIA_TYPE);
const PUBLISH_PAGE: EmbeddedFile = file!("publish.html", HTML_MEDIA_TYPE);
const NOT_FOUND_PAGE: EmbeddedFile = file!("not-found.html", HTML_MEDIA_TYPE);

/// Only files of the gateway may be loaded and run, and only its own pages may frame a page.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      media-src 'self' blob: mediastream:; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'self'";

/// File names contain no version, so browsers revalidate each time and see a new release at once.
const PAGE_CACHE_CONTROL: &str = "no-cache";

/// Adds the routes of all pages and files.
pub fn add_page_routes(router: Router<HttpState>) -> Router<HttpState> {
    let router = router
        .route("/", get(async || respond_with_file(&INDEX_PAGE)))
        .route("/watch/{*stream}", get(serve_watch_page))
        .route("/publish/{*stream}", get(serve_publish_page));
    EMBEDDED_FILES.iter().fold(router, |router, file| {
        router.route(file.path, get(async || respond_with_file(file)))
    })
}

async fn serve_watch_page(uri: Uri, headers: HeaderMap) -> Response {
    respond_with_stream_page(&WATCH_PAGE, &uri, &headers)
}

async fn serve_publish_page(uri: Uri, headers: HeaderMap) -> Response {
    respond_with_stream_page(&PUBLISH_PAGE, &uri, &headers)
}

fn respond_with_stream_page(page: &EmbeddedFile, uri: &Uri, headers: &HeaderMap) -> Response {
    match stream_name_from_path(uri) {
        Ok(_) => respond_with_file(page),
        Err(problem) => respond_with_problem_or_404_page(problem, headers),
    }
}

/// Handles unknown paths: 404 with the paths that exist.
pub(super) async fn respond_to_unknown_path(uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_end_matches('/');
    let detail = match path {
        "/whip" | "/whep" | "/watch" | "/publish" | "/hls" => {
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
    let mut response = respond_with_file(&NOT_FOUND_PAGE);
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn respond_with_file(file: &EmbeddedFile) -> Response {
    let mut response = (StatusCode::OK, file.content).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, file.media_type),
        (header::CACHE_CONTROL, PAGE_CACHE_CONTROL),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        // The player can be embedded by pages of any origin.
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
