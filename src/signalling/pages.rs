//! Pages and player: the files in `player/`, part of the binary.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::problem::Problem;
use super::{Signalling, stream_of};

/// A file that is served under its own path.
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
    // From npm, by build.rs.
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
    file!("watch.js", SCRIPT),
    file!("whip.js", SCRIPT),
];

const INDEX: File = file!("index.html", PAGE);
const WATCH: File = file!("watch.html", PAGE);
const PUBLISH: File = file!("publish.html", PAGE);

/// Nothing but our own files runs or is loaded, and no foreign page may frame ours.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      media-src 'self' blob: mediastream:; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'self'";

/// Files have no version in their names: a browser asks each time, and a new release shows at once.
const CACHE: &str = "no-cache";

/// Adds the routes of all pages and files.
pub fn add_to(router: Router<Arc<Signalling>>) -> Router<Arc<Signalling>> {
    let router = router
        .route("/", get(async || respond(&INDEX)))
        .route("/watch/{*stream}", get(watch))
        .route("/publish/{*stream}", get(publish));
    FILES.iter().fold(router, |router, file| {
        router.route(file.path, get(async || respond(file)))
    })
}

async fn watch(uri: Uri) -> Result<Response, Problem> {
    stream_of(&uri)?;
    Ok(respond(&WATCH))
}

async fn publish(uri: Uri) -> Result<Response, Problem> {
    stream_of(&uri)?;
    Ok(respond(&PUBLISH))
}

fn respond(file: &File) -> Response {
    let mut response = (StatusCode::OK, file.content).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, file.media_type),
        (header::CACHE_CONTROL, CACHE),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        // The player is an element for pages anywhere.
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
