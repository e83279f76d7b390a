//! Reports of a player about its own delay: `POST /session/{id}/delay`.
//!
//! A page cannot write RTCP, and data channels may be switched off; so it is a request. Its place is below the session URL, as
//! that of the layers and events: the URL is the capability that the player has already, and what it reports is forgotten with
//! the session. The response has the other parts of the delay, for the statistics of the player. Other players need not
//! report anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::api::delay::Delay;
use super::problem::Problem;
use super::response::add_no_store_header;
use super::session_url::{DELAY_PATH_SUFFIX, find_viewer_session};
use super::{body, cors};
use crate::control::ControlPlane;
use crate::control::viewer_delays::{MIN_PLAYER_REPORT_INTERVAL, PlayerDelay};

const ALLOW_HEADER_METHODS: &str = "OPTIONS, POST";
const JSON_MEDIA_TYPE: &str = "application/json";

/// Maximum size of a report, in bytes.
const MAX_REPORT_BYTES: usize = 1024;

/// No player has a longer jitter buffer, in seconds.
const MAX_REPORTED_SECONDS: f64 = 60.0;

/// The body of a report. Each time is the mean of the frames since the last report, in seconds.
#[derive(Deserialize)]
struct DelayReport {
    /// In the jitter buffer.
    jitter_buffer: f64,
    /// From there until the frame is decoded.
    #[serde(default)]
    decoding: f64,
}

impl DelayReport {
    fn player_delay(&self) -> Result<PlayerDelay, Problem> {
        let duration = |name: &str, seconds: f64| {
            let duration = Duration::try_from_secs_f64(seconds).ok();
            duration.filter(|_| seconds <= MAX_REPORTED_SECONDS).ok_or_else(|| {
                bad_report(format!(
                    "`{name}` is {seconds}, and has to be a number of seconds from 0 to {MAX_REPORTED_SECONDS}"
                ))
            })
        };
        Ok(PlayerDelay {
            jitter_buffer: duration("jitter_buffer", self.jitter_buffer)?,
            decoding: duration("decoding", self.decoding)?,
        })
    }
}

fn bad_report(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_delay_report", detail)
}

/// Handles `/session/{id}/delay`.
pub async fn serve_delay_resource(State(control): State<Arc<ControlPlane>>, request: Request) -> Response {
    let version = request.version();
    let mut response = answer_delay_request(&control, request).await.into_response();
    // The next report comes after the connection would have been closed as idle; meanwhile it would count as one of the address.
    if version <= Version::HTTP_11 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

async fn answer_delay_request(control: &ControlPlane, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        Method::OPTIONS => Ok(cors::preflight_response(ALLOW_HEADER_METHODS)),
        Method::POST => {
            let (session, _) = find_viewer_session(control, &parts.uri, DELAY_PATH_SUFFIX)?;
            require_json(&parts.headers)?;
            let bytes = body::read_uncompressed_request_body(&parts.headers, body, MAX_REPORT_BYTES).await?;
            let report: DelayReport = serde_json::from_slice(&bytes).map_err(|error| bad_report(error.to_string()))?;
            let (report, now) = (report.player_delay()?, monotonic_now());
            let is_taken = control.sessions.record_player_delay(now, session, report);
            if !is_taken.ok_or_else(Problem::unknown_session)? {
                return Err(too_many_reports_problem());
            }
            let measured = control.media_plane.viewer_quality(session);
            let measured = measured.map(|quality| quality.delays).unwrap_or_default();
            let delays = control.sessions.viewer_delays_and_alarm(now, session, measured);
            let (delays, alarm) = delays.ok_or_else(Problem::unknown_session)?;
            Ok(add_no_store_header(Json(Delay::new(&delays, alarm)).into_response()))
        }
        _ => Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    if body::has_content_type(headers, JSON_MEDIA_TYPE) {
        return Ok(());
    }
    let (status, detail) = (
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        format!("send the report with `Content-Type: {JSON_MEDIA_TYPE}`"),
    );
    Err(Problem::new(status, "unsupported_media_type", detail))
}

fn too_many_reports_problem() -> Problem {
    let seconds = MIN_PLAYER_REPORT_INTERVAL.as_secs();
    let detail = format!("a session reports its delay at most every {seconds} s");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_reports", detail).with_retry_after(seconds)
}

#[expect(clippy::disallowed_methods, reason = "the time of the report")]
fn monotonic_now() -> Instant {
    Instant::now()
}
