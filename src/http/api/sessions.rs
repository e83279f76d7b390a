//! Sessions in the API: the running ones, and for a minute those that have ended, with the cause.

use std::time::Instant;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::delay::Delay;
use crate::access::AccessAction;
use crate::control::ControlPlane;
use crate::control::session_record::SessionRecord;
use crate::http::problem::Problem;
use crate::shard::{SessionId, SessionState};
use millstream_core::congestion::QualityLimitationReason;
use millstream_core::congestion::ladder::FrameSelection;
use millstream_core::hub::viewer_quality::ViewerQuality;

/// Number of sessions in a page, unless the request says how many.
const DEFAULT_PAGE_LENGTH: usize = 100;
const MAX_PAGE_LENGTH: usize = 1_000;

/// A session of a publisher, of a viewer, or of somebody who talks to a camera.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Session {
    /// Unique id. It is not the id in the session URL, which is a secret.
    pub id: String,
    /// `publisher`, `viewer` or `talker`.
    pub role: &'static str,
    pub stream: String,
    /// The source that a publisher feeds, if the stream has several.
    pub source: Option<String>,
    /// `connecting`, `connected` or `ended`.
    pub state: &'static str,
    /// Why it has ended, as in the metrics.
    pub cause: Option<&'static str>,
    /// The cause in words, with possible remedies, and for a session that was not connected with the addresses that
    /// clients receive.
    pub explanation: Option<String>,
    /// Seconds since its offer was received.
    pub seconds: f64,
    /// Address that sent the offer.
    pub address: Option<String>,
    /// `User-Agent` of the offer.
    pub client: Option<String>,
    /// What a viewer is sent, why it is not more, and what its path is like. About once a second.
    pub quality: Option<Quality>,
    /// The delay of a viewer from capture to display. About once a second.
    pub delay: Option<Delay>,
}

/// What a viewer is sent, why it is not more, and what its path is like.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Quality {
    /// Simulcast layer (RID) that is sent; `null` without simulcast.
    pub layer: Option<String>,
    /// Frames of the video that are sent: `all`, `reference_frames` (without those that nothing refers to), `key_frames` or
    /// `none`.
    pub video: &'static str,
    /// Why no more is sent: `bandwidth`, `codec` if it cannot decode the better streams of a camera, or `none` if it is sent
    /// the best that its selection allows.
    pub limitation: &'static str,
    /// Whether the viewer gives transport-wide congestion feedback.
    pub transport_feedback: bool,
    /// Bits per second that arrive at the viewer, by its feedback.
    pub received_bitrate: Option<u32>,
    /// Delay of its path over the least one, in seconds, by its feedback: what waits in queues.
    pub queue_delay: Option<f64>,
    /// Fraction of the packets that were lost, 0 to 1: in the last second by its feedback, or in its last receiver report.
    pub loss: Option<f64>,
    /// Round-trip time in seconds, by its last receiver report.
    pub rtt: Option<f64>,
    /// Packets that it requested again and was sent.
    pub retransmitted_packets: u64,
    /// Packets that were sent again to find out what its path carries.
    pub probe_packets: u64,
}

impl From<ViewerQuality> for Quality {
    fn from(quality: ViewerQuality) -> Self {
        Self {
            layer: quality.layer.as_ref().map(|rid| rid.0.to_string()),
            video: frame_selection_label(quality.frames),
            limitation: match quality.limitation_reason {
                QualityLimitationReason::None => "none",
                QualityLimitationReason::Bandwidth => "bandwidth",
                QualityLimitationReason::Codec => "codec",
            },
            transport_feedback: quality.gives_transport_feedback,
            received_bitrate: quality.received_bitrate,
            queue_delay: quality.queue_delay.map(|delay| delay.as_secs_f64()),
            loss: quality.fraction_lost.map(|lost| f64::from(lost) / 256.0),
            rtt: quality.rtt.map(|rtt| rtt.as_secs_f64()),
            retransmitted_packets: quality.retransmitted_packet_count,
            probe_packets: quality.probe_packet_count,
        }
    }
}

/// Returns the name of what is sent of the video.
pub fn frame_selection_label(frames: FrameSelection) -> &'static str {
    match frames {
        FrameSelection::All => "all",
        FrameSelection::ReferenceFrames => "reference_frames",
        FrameSelection::KeyFrames => "key_frames",
        FrameSelection::AudioOnly => "none",
    }
}

/// Query parameters of the list of sessions.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SessionListQuery {
    /// Maximum number of entries, 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// Return the sessions after this id.
    pub after: Option<String>,
    /// Return only the sessions of this stream.
    pub stream: Option<String>,
}

/// A page of the list of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sessions {
    pub sessions: Vec<Session>,
    /// Value of `after` for the next page; `null` on the last page.
    pub next: Option<String>,
}

/// Returns the id of a session in the API.
pub fn public_session_id(session: SessionId) -> String {
    let digest: [u8; 32] = Sha256::digest(session.0).into();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns all sessions, sorted by id.
pub fn describe_all_sessions(control: &ControlPlane) -> Vec<(SessionId, Session)> {
    #[expect(clippy::disallowed_methods, reason = "the time of the request")]
    let now = Instant::now();
    let records = control.sessions.open_and_recently_ended_sessions().into_iter();
    let mut shown: Vec<_> = records
        .filter_map(|(id, record)| Some((id, describe_session(control, id, &record, now)?)))
        .collect();
    shown.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    shown
}

fn describe_session(control: &ControlPlane, id: SessionId, record: &SessionRecord, now: Instant) -> Option<Session> {
    let (state, cause) = match control.media_plane.session_state(id) {
        SessionState::Connecting => ("connecting", None),
        SessionState::Connected => ("connected", None),
        SessionState::Ended(reason) => ("ended", Some(reason)),
        SessionState::Unknown => return None,
    };
    let quality = control.media_plane.viewer_quality(id);
    let measured = quality.as_ref().map(|quality| quality.delays).unwrap_or_default();
    let is_live_viewer = record.action == AccessAction::Play && cause.is_none();
    let delays = control.sessions.viewer_delays_and_alarm(now, id, measured);
    let delays = delays.filter(|_| is_live_viewer);
    Some(Session {
        id: public_session_id(id),
        role: match record.action {
            AccessAction::Publish => "publisher",
            AccessAction::Talk => "talker",
            AccessAction::Play | AccessAction::ApiRead | AccessAction::ApiFull => "viewer",
        },
        stream: record.stream.to_string(),
        source: record.failover_source.as_ref().map(ToString::to_string),
        state,
        cause: cause.map(|reason| reason.label()),
        explanation: cause.map(|reason| control.media_plane.explain_close_reason(reason)),
        seconds: now.saturating_duration_since(record.opened_at).as_secs_f64(),
        address: record
            .offer_sender_address
            .map(|address| address.to_canonical().to_string()),
        client: record.user_agent.clone(),
        quality: quality.map(Quality::from),
        delay: delays.map(|(delays, alarm)| Delay::new(&delays, alarm)),
    })
}

/// Returns one page of the sessions.
///
/// # Errors
///
/// 400 `bad_query` if the limit is out of range.
pub fn session_page(control: &ControlPlane, page: &SessionListQuery) -> Result<Sessions, Problem> {
    let limit = page.limit.unwrap_or(DEFAULT_PAGE_LENGTH);
    if !(1..=MAX_PAGE_LENGTH).contains(&limit) {
        let detail = format!("`limit` has to be a whole number from 1 to {MAX_PAGE_LENGTH}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_query", detail));
    }
    let fits = |session: &Session| {
        let is_later = page.after.as_ref().is_none_or(|after| session.id > *after);
        is_later && page.stream.as_ref().is_none_or(|stream| session.stream == *stream)
    };
    let mut sessions = describe_all_sessions(control)
        .into_iter()
        .map(|(_, session)| session)
        .filter(fits);
    let part: Vec<Session> = sessions.by_ref().take(limit).collect();
    let next = sessions.next().and(part.last()).map(|last| last.id.clone());
    Ok(Sessions { sessions: part, next })
}
