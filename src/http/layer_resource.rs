//! Layer selection: `/session/{id}/layer`, the extension `urn:ietf:params:whep:ext:core:layer`
//! (draft-ietf-wish-webrtc-http-egress-events §4).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::response::add_no_store_header;
use super::session_url::{LAYER_PATH_SUFFIX, find_viewer_session};
use super::{alternate_links, body, cors};
use crate::control::ControlPlane;
use crate::control::session_record::SessionRecord;
use crate::shard::{LayerSelection, SimulcastLayer};
use millstream_core::media::Rid;

const ALLOW_HEADER_METHODS: &str = "OPTIONS, HEAD, GET, POST";
const JSON_MEDIA_TYPE: &str = "application/json";

/// Maximum size of a request body, in bytes.
pub(super) const MAX_JSON_BODY_BYTES: usize = 4 * 1024;

/// The body of a selection. Spatial and temporal layers are not supported; their fields are parsed to reject them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerSelectionRequest {
    /// Index or mid of the m-line. Default: that of the video.
    media_id: Option<Value>,
    /// Name of the layer. The draft calls the field `rid`, Broadcast Box and live777 `encodingId`.
    #[serde(alias = "encodingId")]
    rid: Option<String>,
    spatial_layer_id: Option<u32>,
    temporal_layer_id: Option<u32>,
    max_spatial_layer_id: Option<u32>,
    max_temporal_layer_id: Option<u32>,
    max_width: Option<u16>,
    max_height: Option<u16>,
}

/// Handles `/session/{id}/layer`.
pub async fn serve_layer_resource(
    State(control): State<Arc<ControlPlane>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        Method::OPTIONS => Ok(cors::preflight_response(ALLOW_HEADER_METHODS)),
        Method::GET | Method::HEAD => {
            let (_, record) = find_viewer_session(&control, &parts.uri, LAYER_PATH_SUFFIX)?;
            let mut response = Json(layers_json_by_mline_index(
                &record,
                &simulcast_layers_of_session(&control, &record),
            ))
            .into_response();
            alternate_links::add_hls_link_if_video_missing(&control, &record, response.headers_mut());
            Ok(add_no_store_header(response))
        }
        Method::POST => {
            let (session, record) = find_viewer_session(&control, &parts.uri, LAYER_PATH_SUFFIX)?;
            if !body::has_content_type(&parts.headers, JSON_MEDIA_TYPE) {
                let detail = format!("send the layer selection with `Content-Type: {JSON_MEDIA_TYPE}`");
                return Err(Problem::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    detail,
                ));
            }
            let bytes = body::read_uncompressed_request_body(&parts.headers, body, MAX_JSON_BODY_BYTES).await?;
            let choice = serde_json::from_slice(&bytes)
                .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad_layer", error.to_string()))?;
            let selection =
                layer_selection_from_request(&choice, &record, &simulcast_layers_of_session(&control, &record))?;
            if !control.media_plane.select_layer(session, selection) {
                return Err(Problem::unknown_session());
            }
            Ok(add_no_store_header(StatusCode::OK.into_response()))
        }
        _ => Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
}

/// Returns the layers of a session's stream.
pub(super) fn simulcast_layers_of_session(control: &ControlPlane, record: &SessionRecord) -> Vec<SimulcastLayer> {
    let stream = control.media_plane.hub().find_stream(&record.stream);
    stream
        .map(|stream| stream.with_state(|state| state.layers().to_vec()))
        .unwrap_or_default()
}

/// Returns the layers as JSON, keyed by the index of the m-line, as in the event `simulcast_layers_of_session`.
pub(super) fn layers_json_by_mline_index(record: &SessionRecord, layers: &[SimulcastLayer]) -> Value {
    let described: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let mut entry = json!({
                "rid": *layer.rid.0,
                // 0 means that it cannot be watched. A layer that has just started has no measured bitrate yet.
                "bitrate": if layer.is_available() { layer.measured_bitrate.max(1) } else { 0 },
            });
            if let (Some((width, height)), Some(entry)) = (layer.resolution, entry.as_object_mut()) {
                entry.insert("width".to_owned(), width.into());
                entry.insert("height".to_owned(), height.into());
            }
            entry
        })
        .collect();
    let mut all = Map::new();
    if let Some(video) = &record.video_section {
        all.insert(video.index.to_string(), described.into());
    }
    Value::Object(all)
}

fn layer_selection_from_request(
    choice: &LayerSelectionRequest,
    record: &SessionRecord,
    layers: &[SimulcastLayer],
) -> Result<LayerSelection, Problem> {
    let refuse = |detail: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "layer_unavailable", detail);
    let Some(video) = &record.video_section else {
        return Err(refuse("this session has no video"));
    };
    let is_video = choice.media_id.as_ref().is_none_or(|id| {
        let text = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        text == video.index.to_string() || Some(&*text) == video.mid.as_deref()
    });
    if !is_video {
        return Err(refuse("`mediaId` must be the index or the mid of the video's m-line"));
    }
    let scalable = [
        choice.spatial_layer_id,
        choice.temporal_layer_id,
        choice.max_spatial_layer_id,
        choice.max_temporal_layer_id,
    ];
    if scalable.iter().any(Option::is_some) {
        return Err(refuse(
            "select a simulcast layer by its `rid`: spatial and temporal layer ids are not supported",
        ));
    }
    match (&choice.rid, choice.max_width, choice.max_height) {
        (Some(rid), ..) => {
            let rid = Rid(rid.as_str().into());
            let exists = layers.iter().any(|layer| layer.rid == rid);
            exists
                .then_some(LayerSelection::Named(rid))
                .ok_or_else(|| refuse("the stream has no simulcast layer with this `rid`"))
        }
        (None, None, None) => Ok(LayerSelection::Automatic),
        (None, width, height) => Ok(LayerSelection::WithinSize {
            width: width.unwrap_or(u16::MAX),
            height: height.unwrap_or(u16::MAX),
        }),
    }
}
