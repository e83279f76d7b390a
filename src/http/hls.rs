//! HLS playlists and media: `/hls/{stream}/index.m3u8` and the files next to it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::alternate;
use super::auth::Authenticator;
use super::cors;
use super::problem::Problem;
use super::request::caller;
use super::response_timeout::ObsoleteAfter;
use crate::control::Control;
use crate::outputs::hls::playlist::Directives;
use crate::outputs::hls::rendition::Role;
use crate::outputs::hls::service::Refusal;
use crate::outputs::hls::viewers::Player;
use millstream_core::hub::name::StreamName;

/// A file of an HLS presentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Multivariant,
    Media(Role),
    Init(Role, u64),
    Segment(Role, u64),
    Part(Role, u64, usize),
}

impl File {
    fn parse(name: &str) -> Option<Self> {
        if name == "index.m3u8" {
            return Some(Self::Multivariant);
        }
        let roles = Role::ALL.into_iter();
        let (role, rest) = roles
            .filter_map(|role| Some((role, name.strip_prefix(role.name())?)))
            .find(|(_, rest)| rest.starts_with(['.', '-']))?;
        if rest == ".m3u8" {
            return Some(Self::Media(role));
        }
        if let Some(number) = rest.strip_prefix("-init-").and_then(|rest| rest.strip_suffix(".mp4")) {
            return Some(Self::Init(role, number.parse().ok()?));
        }
        let number = rest.strip_prefix('-')?.strip_suffix(".m4s")?;
        Some(match number.split_once('.') {
            Some((msn, part)) => Self::Part(role, msn.parse().ok()?, part.parse().ok()?),
            None => Self::Segment(role, number.parse().ok()?),
        })
    }
}

const PLAYLIST: &str = "application/vnd.apple.mpegurl";
const MP4: &str = "video/mp4";

/// A playlist is outdated by the next part. One second in a shared cache is enough to serve many players.
const CACHE_PLAYLIST: &str = "max-age=1";
/// Names of parts and segments are never reused.
const CACHE_MEDIA: &str = "max-age=3600, immutable";

/// Where a player sends its token, besides the query.
const VARY: HeaderValue = HeaderValue::from_static("Authorization, Cookie");

/// No playlist contains a segment for longer.
const OBSOLETE: ObsoleteAfter = ObsoleteAfter(Duration::from_secs(60));

const ALLOWED_METHODS: &str = "GET, HEAD, OPTIONS";

/// Handles `/hls/{stream}/{file}`.
pub async fn serve(
    State(control): State<Arc<Control>>,
    State(authenticator): State<Arc<Authenticator>>,
    request: Request,
) -> Result<Response, Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => {
            let mut response = [(header::ALLOW, ALLOWED_METHODS)].into_response();
            cors::answer_preflight(response.headers_mut());
            return Ok(response);
        }
        _ => return Err(Problem::method_not_allowed(ALLOWED_METHODS)),
    }
    let path = request.uri().path().strip_prefix("/hls/").unwrap_or_default();
    let (stream, file) = path.rsplit_once('/').ok_or_else(Problem::not_found)?;
    let stream = StreamName::parse(stream).map_err(|_| Problem::not_found())?;
    let file = File::parse(file).ok_or_else(Problem::not_found)?;
    let (parts, _) = request.into_parts();
    let caller = caller(&parts);
    let agent = parts.headers.get(header::USER_AGENT);
    let player = Player::of(
        caller.address,
        agent.and_then(|agent| agent.to_str().ok()).unwrap_or_default(),
    );
    let is_open = authenticator.check_player(caller, &stream).await?.is_open();
    let query = parts.uri.query();
    let (directives, token) = directives(query.unwrap_or_default()).ok_or_else(|| {
        let detail = "_HLS_msn and _HLS_part must be numbers, _HLS_part requires _HLS_msn, _HLS_skip must be YES or v2";
        Problem::new(StatusCode::BAD_REQUEST, "bad_directive", detail)
    })?;
    let is_multivariant = matches!(file, File::Multivariant);
    let answered = answer(&control, &stream, file, directives, player, &token).await;
    let (media_type, body) = answered.map_err(problem)?;
    // A shared cache would serve a public response to everybody, also if its request had a token (RFC 9111 §3.5). URLs
    // in a playlist contain the token of the query.
    let scope = if is_open && token.is_empty() {
        "public"
    } else {
        "private"
    };
    let is_playlist = media_type == PLAYLIST;
    let cache = if is_playlist { CACHE_PLAYLIST } else { CACHE_MEDIA };
    let headers = [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::CACHE_CONTROL, format!("{scope}, {cache}")),
    ];
    let mut response = (headers, body).into_response();
    if is_multivariant && let Some(codec) = control.hls.missing_video(&stream) {
        alternate::add_whep_link(&stream, codec, response.headers_mut());
    }
    if !is_open {
        response.headers_mut().append(header::VARY, VARY);
    }
    if !is_playlist {
        response.extensions_mut().insert(OBSOLETE);
    }
    Ok(response)
}

fn problem(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::NotLive => {
            let detail = "the stream is not live";
            Problem::new(StatusCode::NOT_FOUND, "not_live", detail)
        }
        Refusal::Gone => Problem::not_found(),
        Refusal::TooFar => {
            let detail = "_HLS_msn is more than two segments ahead";
            Problem::new(StatusCode::BAD_REQUEST, "too_far_ahead", detail)
        }
        Refusal::Busy => {
            let detail = "the requested segment or part was not available in time";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_in_time", detail).retry_after(1)
        }
    }
}

/// Returns the media type and the content of a file.
async fn answer(
    control: &Control,
    stream: &StreamName,
    file: File,
    directives: Directives,
    player: Player,
    token: &str,
) -> Result<(&'static str, Body), Refusal> {
    let service = &control.hls;
    let live = service.open(stream).await?;
    Ok(match file {
        File::Multivariant => {
            let text = service.multivariant(stream, &live, token).await?;
            (PLAYLIST, Body::from(text))
        }
        File::Media(role) => {
            let text = service.media_playlist(&live, role, directives, player, token).await?;
            (PLAYLIST, Body::from(text))
        }
        File::Init(role, number) => (MP4, Body::from(service.init(&live, role, number).await?)),
        File::Segment(role, msn) => {
            let parts = service.segment(&live, role, msn).await?;
            (MP4, Body::new(Parts(parts.into())))
        }
        File::Part(role, msn, part) => (MP4, Body::from(service.part(&live, role, msn, part).await?)),
    })
}

/// A response body of the parts of a segment, without copying them.
struct Parts(VecDeque<Bytes>);

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

/// Parses a query: returns the delivery directives (rfc8216bis §6.2.5), and the token as a query that is appended to
/// every URL in playlists. Returns `None` if a directive is invalid.
fn directives(query: &str) -> Option<(Directives, String)> {
    let mut directives = Directives::default();
    let mut token = String::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "_HLS_msn" => directives.msn = Some(value.parse().ok()?),
            "_HLS_part" => directives.part = Some(value.parse().ok()?),
            "_HLS_skip" => directives.skip = matches!(value, "YES" | "v2").then_some(true)?,
            // The token is inserted into playlists, so it must not contain line ends or quotes.
            "token"
                if value
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._~+/=%".contains(&b)) =>
            {
                token = format!("?token={value}");
            }
            _ => {}
        }
    }
    (directives.part.is_none() || directives.msn.is_some()).then_some((directives, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_files() {
        for (name, file) in [
            ("index.m3u8", Some(File::Multivariant)),
            ("audio.m3u8", Some(File::Media(Role::Audio))),
            ("video-init-3.mp4", Some(File::Init(Role::Video, 3))),
            ("video-17.m4s", Some(File::Segment(Role::Video, 17))),
            ("video2.m3u8", Some(File::Media(Role::Layer2))),
            ("video3-17.2.m4s", Some(File::Part(Role::Layer3, 17, 2))),
            ("video4.m3u8", None),
            ("audio-17.4.m4s", Some(File::Part(Role::Audio, 17, 4))),
            ("video-17.m4v", None),
            ("video--1.m4s", None),
            ("../video.m3u8", None),
            ("video-99999999999999999999.m4s", None),
            ("", None),
        ] {
            assert_eq!(File::parse(name), file, "{name}");
        }
    }

    #[test]
    fn directives_are_read_and_tokens_kept() {
        let (found, token) = directives("_HLS_msn=7&_HLS_part=2&token=ab%2Bc&x=y&_HLS_skip=YES").expect("sound");
        assert_eq!(
            (found.msn, found.part, found.skip, token.as_str()),
            (Some(7), Some(2), true, "?token=ab%2Bc")
        );
        for bad in [
            "_HLS_msn=-1",
            "_HLS_msn=x",
            "_HLS_part=1",
            "_HLS_skip=no",
            "_HLS_msn=1&_HLS_part=1e9",
        ] {
            assert_eq!(directives(bad), None, "{bad}");
        }
        assert_eq!(directives("token=a\"b").expect("no directive").1, "");
    }
}
