//! Web pages and player: the files of `player/`, embedded in the binary.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::problem::Problem;
use super::request::stream_of;
use super::state::HttpState;

/// An embedded file and the path it is served at.
struct File {
    path: &'static str,
    media_type: &'static str,
    content: &'static [u8],
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PAGE: &str = "text/html; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! file {
    ($path:literal, $media_type:expr) => {
        File {
            path: concat!("/", $path),
            media_type: $media_type,
            content: include_bytes!(concat!("../../player/", $path)),
        }
    };
}

const FILES: &[File] = &[
    file!("board.js", SCRIPT),
    file!("favicon.svg", SVG),
    file!("hls.js", SCRIPT),
    // Copied from npm by build.rs.
    File {
        path: "/hls.min.js",
        media_type: SCRIPT,
        content: include_bytes!(concat!(env!("OUT_DIR"), "/hls.min.js")),
    },
    file!("index.js", SCRIPT),
    file!("page.js", SCRIPT),
    file!("player.js", SCRIPT),
    file!("publish.js", SCRIPT),
    file!("session.js", SCRIPT),
    file!("style.css", STYLE),
    file!("messages.js", SCRIPT),
    file!("transport.js", SCRIPT),
    file!("watch.js", SCRIPT),
    file!("whep.js", SCRIPT),
    file!("whip.js", SCRIPT),
];

const INDEX: File = file!("index.html", PAGE);
const WATCH: File = file!("watch.html", PAGE);
const PUBLISH: File = file!("publish.html", PAGE);
const NOT_FOUND: File = file!("not-found.html", PAGE);

/// Only files of the gateway may be loaded and run, and only its own pages may frame a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      media-src 'self' blob: mediastream:; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'self'";

/// File names contain no version, so browsers revalidate each time and see a new release at once.
const CACHE: &str = "no-cache";

/// Adds the routes of all pages and files.
pub fn add_to(router: Router<HttpState>) -> Router<HttpState> {
    let router = router
        .route("/", get(async || respond(&INDEX)))
        .route("/watch/{*stream}", get(watch))
        .route("/publish/{*stream}", get(publish));
    FILES.iter().fold(router, |router, file| {
        router.route(file.path, get(async || respond(file)))
    })
}

async fn watch(uri: Uri, headers: HeaderMap) -> Response {
    page_of(&WATCH, &uri, &headers)
}

async fn publish(uri: Uri, headers: HeaderMap) -> Response {
    page_of(&PUBLISH, &uri, &headers)
}

fn page_of(page: &File, uri: &Uri, headers: &HeaderMap) -> Response {
    match stream_of(uri) {
        Ok(_) => respond(page),
        Err(problem) => refuse(problem, headers),
    }
}

/// Handles unknown paths: 404 with the paths that exist.
pub(super) async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_end_matches('/');
    let detail = match path {
        "/whip" | "/whep" | "/watch" | "/publish" | "/hls" => format!("the stream name is missing: {path}/NAME"),
        _ => "not found: publish to /whip/NAME, or in a browser at /publish/NAME; watch at \
              /watch/NAME, /whep/NAME or /hls/NAME/index.m3u8"
            .to_owned(),
    };
    refuse(Problem::new(StatusCode::NOT_FOUND, "not_found", detail), &headers)
}

/// Responds with a page to browsers and with a problem document to other clients.
fn refuse(problem: Problem, headers: &HeaderMap) -> Response {
    let accepts = headers.get_all(header::ACCEPT).iter();
    let is_browser = accepts
        .flat_map(|value| value.to_str())
        .any(|value| value.contains("text/html"));
    if !is_browser {
        return problem.into_response();
    }
    let mut response = respond(&NOT_FOUND);
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn respond(file: &File) -> Response {
    let mut response = (StatusCode::OK, file.content).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, file.media_type),
        (header::CACHE_CONTROL, CACHE),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        // The player can be embedded by pages of any origin.
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
