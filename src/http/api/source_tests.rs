//! `POST /api/v1/sources/test`: whether a source can be read, what it sends, and what browsers get of it.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use super::api_streams::{config_mistakes_problem, parse_stream_settings, read_json_object_body};
use super::snapshot;
use super::state::ApiState;
use super::streams::{self, Stream};
use crate::control::api_streams::{ApiStreamError, build_source};
use crate::control::source_tests::SourceTestEnvironment;
use crate::http::problem::Problem;
use crate::sources::fetch::address::AddressError;
use crate::sources::fetch::error::FetchError;
use crate::sources::fetch::trial::TrialFailure;
use crate::sources::hls::error::HlsError;
use crate::sources::hls::http::HttpError;
use crate::sources::rtsp::camera::CameraError;
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamName;
use millstream_core::media::MediaKind;
use millstream_core::media::track_delivery::{self, SourceTrack, TrackDelivery, TranscodeTarget};
use millstream_core::sources::frame_source::FrameSink as _;

/// Maximum time of the snapshot of a source that was tested: it may start a worker and wait for a key frame.
const TEST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of a test.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = SourceTest)]
pub struct SourceTestResult {
    /// The source delivers media that the gateway can forward.
    pub ok: bool,
    /// Why it does not: `name_not_resolved`, `refused`, `timeout`, `unreachable`, `not_allowed`, `credentials_required`,
    /// `credentials_rejected`, `not_found`, `no_tracks`, `no_media` or `failed`.
    pub cause: Option<&'static str>,
    /// The cause in words.
    pub detail: Option<String>,
    /// Duration of the test in seconds.
    pub seconds: f64,
    /// What the source sends, as of a stream: codecs, size, key frame interval, warnings.
    pub stream: Option<Stream>,
    /// What browsers get of it by WebRTC.
    pub browsers: Option<BrowserTracks>,
    /// A key frame as a `data:` URL of a JPEG; `null` if this host cannot make one.
    pub snapshot: Option<String>,
}

/// What browsers get of each track: `as_is`, `transcoded`, or `nothing`, because the browsers lack the codec and this host
/// cannot transcode it. `null` if there is no such track.
#[derive(Debug, Serialize, ToSchema)]
pub struct BrowserTracks {
    pub video: Option<&'static str>,
    pub audio: Option<&'static str>,
}

/// Tests a source: connects to it, reads it for some seconds, and describes what it sends. The members of the body are the
/// keys of `[streams."NAME"]`; `url` may take the place of `rtsp` or `hls`. `snapshot: false` leaves out the snapshot.
#[utoipa::path(
    post,
    path = "/api/v1/sources/test",
    request_body(content = Object, description = "the keys of `[streams.\"NAME\"]`; `url` may take the place of \
                                                         `rtsp` or `hls`, which its scheme decides"),
    responses(
        (status = 200, body = SourceTestResult, description = "the result of the test. If the source cannot be read, \
                                                             `ok` is false, and `cause` and `detail` say why"),
        (status = 422, description = "the settings have mistakes, which `errors` lists with their JSON pointers"),
        (status = 503, description = "too many sources are being tested"),
    )
)]
pub(super) async fn test_source(
    State(api): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SourceTestResult>, Problem> {
    let mut settings = read_json_object_body(&headers, body, &["application/json"]).await?;
    let takes_snapshot = settings
        .remove("snapshot")
        .is_none_or(|value| value != Value::Bool(false));
    replace_url_with_source_kind_key(&mut settings)?;
    let tests = &api.control.source_tests;
    let name = tests.next_stream_name()?;
    let stream = parse_stream_settings(&name, &settings)?;
    let Some(_permit) = tests.try_acquire_test_permit() else {
        let detail = "too many sources are being tested: retry when these tests have ended";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_source_tests", detail).with_retry_after(5));
    };
    let context = api
        .control
        .api_streams
        .context()
        .await
        .ok_or(ApiStreamError::Stopping)?;
    let source = build_source(&stream, &context)
        .map_err(|mistakes| config_mistakes_problem(&stream.add_json_pointers(mistakes)))?;
    let started = Instant::now();
    let bench = tests.environment_for_config(&context);
    let (trial, known) = bench.run_source_trial(source, context.source_test_timeout).await;
    if let Err(failure) = known {
        let (cause, detail) = describe_trial_failure(&failure, context.source_test_timeout);
        return Ok(Json(SourceTestResult {
            cause: Some(cause),
            detail: Some(detail),
            seconds: started.elapsed().as_secs_f64(),
            ..SourceTestResult::default()
        }));
    }
    let hub = bench.trial_source_hub().hub();
    let mut result = SourceTestResult {
        ok: true,
        stream: streams::describe_stream(&name, hub, &trial.registry, |_| 0),
        browsers: Some(describe_browser_tracks(&api, hub, &name)),
        ..SourceTestResult::default()
    };
    if let Some(stream) = &mut result.stream {
        // Its name is that of the test.
        stream.name.clear();
    }
    if takes_snapshot {
        let taking = jpeg_data_url_of_tested_source(&api, &bench, &name);
        result.snapshot = timeout(TEST_SNAPSHOT_TIMEOUT, taking).await.ok().flatten();
    }
    result.seconds = started.elapsed().as_secs_f64();
    Ok(Json(result))
}

/// Replaces `url` by the key of its kind.
fn replace_url_with_source_kind_key(settings: &mut Map<String, Value>) -> Result<(), Problem> {
    let Some(url) = settings.remove("url") else {
        return Ok(());
    };
    let scheme = url
        .as_str()
        .and_then(|url| url.trim().split_once("://"))
        .map(|(scheme, _)| scheme);
    let kind = match scheme.map(str::to_ascii_lowercase).as_deref() {
        Some("rtsp" | "rtsps") => "rtsp",
        Some("http" | "https") => "hls",
        _ => {
            let detail = "`url` has to begin with rtsp://, http:// or https://: set `pipeline` and `params` for others";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_stream", detail));
        }
    };
    settings.insert(kind.to_owned(), url);
    Ok(())
}

async fn jpeg_data_url_of_tested_source(
    api: &ApiState,
    bench: &SourceTestEnvironment,
    name: &StreamName,
) -> Option<String> {
    let hub = bench.trial_source_hub().hub();
    let track = find_source_track(hub, name, MediaKind::Video)?;
    // The hub of the gateway knows what this host can transcode.
    let can_transcode = api
        .control
        .media_plane
        .hub()
        .can_transcode_codec_to(track.format.codec(), TranscodeTarget::Jpeg);
    if can_transcode {
        bench.start_snapshot_transcoding().await;
    }
    let jpeg = snapshot::newest_jpeg_of_stream(hub, name).await?;
    Some(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}

fn find_source_track(hub: &Hub, name: &StreamName, kind: MediaKind) -> Option<SourceTrack> {
    let stream = hub.find_stream(name)?;
    stream.with_state(|state| state.source_format_and_b_frames(kind))
}

/// Returns what browsers get of the tracks of a tested stream.
fn describe_browser_tracks(api: &ApiState, hub: &Hub, name: &StreamName) -> BrowserTracks {
    let gateway_hub = api.control.media_plane.hub();
    let planned = |kind| {
        let track = find_source_track(hub, name, kind)?;
        let can_transcode = gateway_hub.can_transcode_codec_for_browsers(track.format.codec());
        let target = TranscodeTarget::webrtc_target_for_kind(kind);
        Some(
            match track_delivery::choose_track_delivery(track, target, can_transcode, SourceTrack::is_webrtc_playable) {
                TrackDelivery::Passthrough => "as_is",
                TrackDelivery::Transcode(_) => "transcoded",
                TrackDelivery::Unavailable(_) => "nothing",
            },
        )
    };
    BrowserTracks {
        video: planned(MediaKind::Video),
        audio: planned(MediaKind::Audio),
    }
}

/// Returns the code of a cause and its text.
fn describe_trial_failure(failure: &TrialFailure, limit: Duration) -> (&'static str, String) {
    let error = match failure {
        TrialFailure::Source(error) => error,
        TrialFailure::Timeout => {
            let seconds = limit.as_secs();
            let detail = format!("no media came from the source within {seconds} s (`api.source_test_timeout`)");
            return ("timeout", detail);
        }
    };
    let cause = match error {
        FetchError::Address(error) => address_error_code(error),
        FetchError::Camera(error) => match error {
            CameraError::Address(error) => address_error_code(error),
            CameraError::ConnectionRefused(_) => "refused",
            CameraError::Unreachable(_) => "unreachable",
            CameraError::Timeout(_) => "timeout",
            CameraError::CredentialsRejected => "credentials_rejected",
            CameraError::CredentialsRequired => "credentials_required",
            CameraError::NotFound => "not_found",
            CameraError::NoSupportedTracks(_) => "no_tracks",
            CameraError::StoppedSendingMedia | CameraError::NoMedia | CameraError::NoDecodableFrames => "no_media",
            _ => "failed",
        },
        FetchError::Hls(HlsError::Fetch { error, .. }) => match error {
            HttpError::Address(error) => address_error_code(error),
            HttpError::Status(401) => "credentials_required",
            HttpError::Status(403) => "credentials_rejected",
            HttpError::Status(404 | 410) => "not_found",
            HttpError::Timeout => "timeout",
            HttpError::Connect(_) => "unreachable",
            _ => "failed",
        },
        FetchError::Hls(HlsError::NoPlayableVariant(_)) => "no_tracks",
        _ => "failed",
    };
    (cause, error.to_string())
}

fn address_error_code(error: &AddressError) -> &'static str {
    match error {
        AddressError::Unresolved(_) => "name_not_resolved",
        AddressError::OutsideAllowedNetworks(_) | AddressError::NotPublic(_) | AddressError::NotServerAddress(_) => {
            "not_allowed"
        }
    }
}
