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

use super::alternate_links;
use super::auth::Authenticator;
use super::cors;
use super::problem::Problem;
use super::request::client_identity;
use super::response_timeout::ResponseObsoleteAfter;
use crate::control::ControlPlane;
use crate::outputs::hls::playlist::DeliveryDirectives;
use crate::outputs::hls::rendition::RenditionRole;
use crate::outputs::hls::service::HlsRequestError;
use crate::outputs::hls::viewers::HlsPlayerId;
use millstream_core::hub::name::StreamName;
use millstream_core::media::track_delivery::TranscodeTarget;

/// A file of an HLS presentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HlsFile {
    MultivariantPlaylist,
    MediaPlaylist(RenditionRole),
    InitSection(RenditionRole, u64),
    Segment(RenditionRole, u64),
    Part(RenditionRole, u64, usize),
}

impl HlsFile {
    fn parse(name: &str) -> Option<Self> {
        if name == "index.m3u8" {
            return Some(Self::MultivariantPlaylist);
        }
        let roles = RenditionRole::ALL_ROLES.into_iter();
        let (role, rest) = roles
            .filter_map(|role| Some((role, name.strip_prefix(role.name())?)))
            .find(|(_, rest)| rest.starts_with(['.', '-']))?;
        if rest == ".m3u8" {
            return Some(Self::MediaPlaylist(role));
        }
        if let Some(number) = rest.strip_prefix("-init-").and_then(|rest| rest.strip_suffix(".mp4")) {
            return Some(Self::InitSection(role, number.parse().ok()?));
        }
        let number = rest.strip_prefix('-')?.strip_suffix(".m4s")?;
        Some(match number.split_once('.') {
            Some((msn, part)) => Self::Part(role, msn.parse().ok()?, part.parse().ok()?),
            None => Self::Segment(role, number.parse().ok()?),
        })
    }
}

const PLAYLIST_MEDIA_TYPE: &str = "application/vnd.apple.mpegurl";
const MP4_MEDIA_TYPE: &str = "video/mp4";

/// A playlist is outdated by the next part. One second in a shared cache is enough to serve many players.
const PLAYLIST_CACHE_CONTROL: &str = "max-age=1";
/// Names of parts and segments are never reused.
const SEGMENT_CACHE_CONTROL: &str = "max-age=3600, immutable";

/// Where a player sends its token, besides the query.
const VARY_BY_CREDENTIALS: HeaderValue = HeaderValue::from_static("Authorization, Cookie");

/// No playlist contains a segment for longer.
const SEGMENT_RESPONSE_OBSOLETE_AFTER: ResponseObsoleteAfter = ResponseObsoleteAfter(Duration::from_secs(60));

const ALLOW_HEADER_METHODS: &str = "GET, HEAD, OPTIONS";

/// Handles `/hls/{stream}/{file}`.
pub async fn serve_hls_file(
    State(control): State<Arc<ControlPlane>>,
    State(authenticator): State<Arc<Authenticator>>,
    request: Request,
) -> Result<Response, Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return Ok(cors::preflight_response(ALLOW_HEADER_METHODS)),
        _ => return Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
    let path = request.uri().path().strip_prefix("/hls/").unwrap_or_default();
    let (stream, file) = path.rsplit_once('/').ok_or_else(Problem::not_found)?;
    let stream = StreamName::parse(stream).map_err(|_| Problem::not_found())?;
    let file = HlsFile::parse(file).ok_or_else(Problem::not_found)?;
    let (parts, _) = request.into_parts();
    let caller = client_identity(&parts);
    let agent = parts.headers.get(header::USER_AGENT);
    let player = HlsPlayerId::from_request(
        caller.address,
        agent.and_then(|agent| agent.to_str().ok()).unwrap_or_default(),
    );
    let is_open = authenticator
        .authorize_hls_player(caller, &stream)
        .await?
        .is_open_to_all();
    let query = parts.uri.query();
    let (directives, token) = parse_directives_and_token(query.unwrap_or_default()).ok_or_else(|| {
        let detail =
            "_HLS_msn and _HLS_part must be numbers, _HLS_part requires _HLS_msn, and _HLS_skip must be YES or v2";
        Problem::new(StatusCode::BAD_REQUEST, "bad_directive", detail)
    })?;
    let is_multivariant = matches!(file, HlsFile::MultivariantPlaylist);
    if file == HlsFile::MediaPlaylist(RenditionRole::AacAudio) {
        control.check_transcode_slot_and_count_refusal(&stream, TranscodeTarget::Aac)?;
    }
    let answered = start_packaging_and_load_file(&control, &stream, file, directives, player, &token).await;
    let (media_type, body) = answered.map_err(refusal_problem)?;
    // A shared cache would serve a public response to everybody, also if its request had a token (RFC 9111 §3.5). URLs
    // in a playlist contain the token of the query.
    let scope = if is_open && token.is_empty() {
        "public"
    } else {
        "private"
    };
    let is_playlist = media_type == PLAYLIST_MEDIA_TYPE;
    let cache = if is_playlist {
        PLAYLIST_CACHE_CONTROL
    } else {
        SEGMENT_CACHE_CONTROL
    };
    let headers = [
        (header::CONTENT_TYPE, media_type.to_owned()),
        (header::CACHE_CONTROL, format!("{scope}, {cache}")),
    ];
    let mut response = (headers, body).into_response();
    if is_multivariant && let Some(codec) = control.hls_service.unsupported_video_codec(&stream) {
        alternate_links::add_whep_link(&stream, codec, response.headers_mut());
    }
    if !is_open {
        response.headers_mut().append(header::VARY, VARY_BY_CREDENTIALS);
    }
    if !is_playlist {
        response.extensions_mut().insert(SEGMENT_RESPONSE_OBSOLETE_AFTER);
    }
    Ok(response)
}

fn refusal_problem(refusal: HlsRequestError) -> Problem {
    match refusal {
        HlsRequestError::NotLive => {
            let detail = "the stream is not live";
            Problem::new(StatusCode::NOT_FOUND, "not_live", detail)
        }
        HlsRequestError::Gone => Problem::not_found(),
        HlsRequestError::TooFarAhead => {
            let detail = "_HLS_msn is more than two segments ahead of the playlist: reload the playlist";
            Problem::new(StatusCode::BAD_REQUEST, "too_far_ahead", detail)
        }
        HlsRequestError::Busy => {
            let detail = "the requested HLS resource did not become available in time, or too many HLS streams or requests are active: retry";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_in_time", detail).with_retry_after(1)
        }
    }
}

/// Returns the media type and the content of a file.
async fn start_packaging_and_load_file(
    control: &ControlPlane,
    stream: &StreamName,
    file: HlsFile,
    directives: DeliveryDirectives,
    player: HlsPlayerId,
    token: &str,
) -> Result<(&'static str, Body), HlsRequestError> {
    let service = &control.hls_service;
    let live = service.get_or_start_packaging(stream).await?;
    Ok(match file {
        HlsFile::MultivariantPlaylist => {
            let has_slot = control.has_transcode_slot(stream, TranscodeTarget::Aac);
            let text = service.multivariant_playlist(stream, &live, token, has_slot).await?;
            (PLAYLIST_MEDIA_TYPE, Body::from(text))
        }
        HlsFile::MediaPlaylist(role) => {
            let text = service
                .serve_media_playlist_and_record_viewer(&live, role, directives, player, token)
                .await?;
            (PLAYLIST_MEDIA_TYPE, Body::from(text))
        }
        HlsFile::InitSection(role, number) => (
            MP4_MEDIA_TYPE,
            Body::from(service.init_section(&live, role, number).await?),
        ),
        HlsFile::Segment(role, msn) => {
            let parts = service.segment(&live, role, msn).await?;
            (MP4_MEDIA_TYPE, Body::new(SegmentBody(parts.into())))
        }
        HlsFile::Part(role, msn, part) => (MP4_MEDIA_TYPE, Body::from(service.part(&live, role, msn, part).await?)),
    })
}

/// A response body of the parts of a segment, without copying them.
struct SegmentBody(VecDeque<Bytes>);

impl HttpBody for SegmentBody {
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
fn parse_directives_and_token(query: &str) -> Option<(DeliveryDirectives, String)> {
    let mut directives = DeliveryDirectives::default();
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
            ("index.m3u8", Some(HlsFile::MultivariantPlaylist)),
            ("audio.m3u8", Some(HlsFile::MediaPlaylist(RenditionRole::Audio))),
            ("video-init-3.mp4", Some(HlsFile::InitSection(RenditionRole::Video, 3))),
            ("video-17.m4s", Some(HlsFile::Segment(RenditionRole::Video, 17))),
            ("video2.m3u8", Some(HlsFile::MediaPlaylist(RenditionRole::VideoLayer2))),
            (
                "video3-17.2.m4s",
                Some(HlsFile::Part(RenditionRole::VideoLayer3, 17, 2)),
            ),
            ("video4.m3u8", None),
            ("audio-17.4.m4s", Some(HlsFile::Part(RenditionRole::Audio, 17, 4))),
            ("video-17.m4v", None),
            ("video--1.m4s", None),
            ("../video.m3u8", None),
            ("video-99999999999999999999.m4s", None),
            ("", None),
        ] {
            assert_eq!(HlsFile::parse(name), file, "{name}");
        }
    }

    #[test]
    fn directives_are_read_and_tokens_kept() {
        let (found, token) =
            parse_directives_and_token("_HLS_msn=7&_HLS_part=2&token=ab%2Bc&x=y&_HLS_skip=YES").expect("valid");
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
            assert_eq!(parse_directives_and_token(bad), None, "{bad}");
        }
        assert_eq!(parse_directives_and_token("token=a\"b").expect("no directive").1, "");
    }
}
