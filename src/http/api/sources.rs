//! Sources of streams in the API: those that the gateway pulls, and the several sources of one stream.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::{FailoverSourceKind, StandbyMode};
use crate::control::ControlPlane;
use crate::http::problem::Problem;
use crate::sources::fetch::registry::{ConfiguredFailoverGroup, RegisteredSource, SourceRegistry};
use crate::sources::fetch::status::SourceGap;
use millstream_core::hub::name::StreamName;

/// A configured source.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Source {
    /// `rtsp`, `hls` or `pipeline`.
    pub kind: &'static str,
    pub on_demand: bool,
    /// `idle`, `starting`, `live`, `failed`, `standing_back` or `stopped`.
    pub state: &'static str,
    /// Seconds in this state.
    pub seconds: Option<f64>,
    /// The last error, if any. It may be long ago.
    pub last_error: Option<String>,
    /// Number of failures.
    pub restarts: u64,
    /// Why the camera is read by the pipeline `rtsp`, or through a relay that corrects its RTSP messages, instead of by
    /// the gateway's own client alone; `None` if it is not.
    pub fallback: Option<&'static str>,
    /// Number of malformed or unexpected packets and messages of a camera in this session, or of segments of an HLS
    /// source, that were ignored.
    pub passed_over: u64,
    /// The first of them.
    pub passed_over_reason: Option<String>,
    /// Tracks that are left out because their codec is not supported, such as `audio L16/44100`, and variants of an HLS
    /// source, such as `variant dvh1.05.06`.
    pub left_out: Vec<String>,
    /// The playlist goes on, but has nothing to play.
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) gap: Option<SourceGap>,
    /// The media sequence numbers of the playlist are wrong.
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) has_corrected_media_sequence: bool,
    /// Input was ignored within the last minute.
    #[serde(skip)]
    #[schema(ignore)]
    pub(super) has_recently_ignored: bool,
}

/// One of several sources of a stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FailoverSource {
    /// Unique within the stream; publishers name it as `?source=NAME`.
    pub name: String,
    /// `whip`, `rtsp`, `hls` or `pipeline`.
    pub kind: &'static str,
    /// `away` (not connected), `starting` (connected, nothing to begin with yet), `live` or `stalled` (connected, its media
    /// has stopped).
    pub state: &'static str,
    /// Seconds in this state.
    pub seconds: Option<f64>,
    /// The stream shows it.
    pub selected: bool,
    /// Of a source that the gateway pulls: `warm` or `cold`. `null` if the sources are streams of one camera.
    pub standby: Option<&'static str>,
    /// Of a source that the gateway pulls: its connection, with the last error.
    pub connection: Option<Source>,
}

/// A change from one source of a stream to another.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SourceSwitch {
    /// Counts the changes of the stream.
    pub number: u64,
    /// `null` if there was none.
    pub from: Option<String>,
    /// `null` if none is left.
    pub to: Option<String>,
    /// `available` (there was none), `ended`, `stalled`, `preferred` (a better one came), `recovered` (a better one is back),
    /// `chosen` (by hand) or `new_session` (of the same source).
    pub reason: &'static str,
    /// Seconds ago.
    pub seconds: f64,
}

/// The sources of a stream that has several.
pub(super) struct DescribedFailoverGroup {
    pub(super) sources: Vec<FailoverSource>,
    pub(super) chosen: Option<String>,
    pub(super) switches: Vec<SourceSwitch>,
}

/// A choice between the sources of a stream.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SourceChoice)]
pub struct ChooseSourceRequest {
    /// Name of a source; `null` leaves the selection to the gateway.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true)]
    pub source: Option<String>,
}

/// How long segments that are missing are warned of.
const MISSING_SEGMENTS_WARNING_SHOWN_FOR: Duration = Duration::from_secs(60);

/// Describes a source that the gateway pulls.
pub(super) fn describe_source(entry: &RegisteredSource) -> Source {
    let status = entry.status();
    Source {
        kind: entry.source_kind,
        on_demand: entry.on_demand,
        state: status.state.label(),
        seconds: status.state_since.map(|since| since.elapsed().as_secs_f64()),
        last_error: status.last_error,
        restarts: status.restart_count,
        fallback: status.fallback_reason,
        has_recently_ignored: status
            .ignored_input
            .last_at
            .is_some_and(|last| last.elapsed() < MISSING_SEGMENTS_WARNING_SHOWN_FOR),
        passed_over: status.ignored_input.count,
        passed_over_reason: status.ignored_input.first_description,
        left_out: status.unsupported_tracks,
        gap: status.gap,
        has_corrected_media_sequence: status.has_corrected_media_sequence,
    }
}

impl Source {
    /// Whether there is a connection, or one is being made.
    fn is_connected_or_starting(&self) -> bool {
        matches!(self.state, "starting" | "live")
    }
}

/// Counts the connections to sources that the gateway pulls.
pub(super) fn count_connections(source: Option<&Source>, sources: &[FailoverSource]) -> usize {
    let pulled = sources.iter().filter_map(|source| source.connection.as_ref());
    pulled
        .chain(source)
        .filter(|source| source.is_connected_or_starting())
        .count()
}

/// Describes the sources of a stream that has several.
pub(super) fn describe_failover_group(
    configured: &ConfiguredFailoverGroup,
    registry: &SourceRegistry,
) -> DescribedFailoverGroup {
    let status = configured.failover_group.status();
    let by_source = configured.config.sources.iter().zip(&status.sources);
    let sources = by_source.map(|(config, status)| {
        let entry = registry.get(configured.config.source_key(config));
        FailoverSource {
            name: config.name.to_string(),
            kind: entry.as_ref().map_or("whip", |entry| entry.source_kind),
            state: status.state.label(),
            seconds: status.since.map(seconds_since),
            selected: status.is_selected,
            standby: match config.kind {
                _ if configured.config.has_camera_layers() => None,
                FailoverSourceKind::Whip => None,
                FailoverSourceKind::Pulled(StandbyMode::Warm) => Some("warm"),
                FailoverSourceKind::Pulled(StandbyMode::Cold) => Some("cold"),
            },
            connection: entry.map(|entry| describe_source(&entry)),
        }
    });
    let sources = sources.collect();
    let switches = status.recent_switches.iter().map(|switch| SourceSwitch {
        number: switch.number,
        from: switch.from.as_ref().map(ToString::to_string),
        to: switch.to.as_ref().map(ToString::to_string),
        reason: switch.reason.label(),
        seconds: seconds_since(switch.at),
    });
    DescribedFailoverGroup {
        sources,
        chosen: status.chosen.map(|name| name.to_string()),
        switches: switches.collect(),
    }
}

/// Chooses between the sources of a stream.
pub(super) fn choose_source(control: &ControlPlane, stream: &StreamName, body: &[u8]) -> Result<StatusCode, Problem> {
    let choice: ChooseSourceRequest = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("send {{\"source\": \"NAME\"}}, or {{\"source\": null}} for automatic selection: {error}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_source_choice", detail)
    })?;
    let Some(configured) = control.source_registry.failover_group(stream) else {
        let detail = "this stream does not have several sources: set `sources` of the stream in the configuration";
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_source", detail));
    };
    if configured.config.has_camera_layers() {
        let detail = "the sources of this stream are layers of one camera: the gateway selects a layer for each \
                      viewer, so no source can be chosen for all";
        return Err(Problem::new(StatusCode::CONFLICT, "camera_layers", detail));
    }
    let chosen = configured.failover_group.choose_source(choice.source.as_deref());
    chosen.map_err(|error| Problem::new(StatusCode::NOT_FOUND, "unknown_source", error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

fn seconds_since(at: Instant) -> f64 {
    at.elapsed().as_secs_f64()
}
