//! Layer selection: `/session/{id}/layer`, the extension `urn:ietf:params:whep:ext:core:layer`
//! (draft-ietf-wish-webrtc-http-egress-events §4).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::problem::Problem;
use super::response::no_store;
use super::session_url::{SUB_LAYER, session_under};
use super::{alternate, body, cors};
use crate::control::Control;
use crate::control::record::SessionRecord;
use crate::shard::{Layer, LayerSelection};
use millstream_core::media::Rid;

const ALLOWED_METHODS: &str = "OPTIONS, HEAD, GET, POST";
const JSON: &str = "application/json";

/// Maximum size of a request body, in bytes.
pub(super) const LIMIT: usize = 4 * 1024;

/// The body of a selection. Spatial and temporal layers are not supported; their fields are parsed to reject them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SelectionRequest {
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
pub async fn layer(State(control): State<Arc<Control>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match parts.method {
        Method::OPTIONS => {
            let mut response = [(header::ALLOW, ALLOWED_METHODS)].into_response();
            cors::answer_preflight(response.headers_mut());
            Ok(response)
        }
        Method::GET | Method::HEAD => {
            let (_, record) = session_under(&control, &parts.uri, SUB_LAYER)?;
            let mut response = Json(describe(&record, &layers(&control, &record))).into_response();
            alternate::add_link(&control, &record, response.headers_mut());
            Ok(no_store(response))
        }
        Method::POST => {
            let (session, record) = session_under(&control, &parts.uri, SUB_LAYER)?;
            if !body::is_of_type(&parts.headers, JSON) {
                let detail = format!("send the selection with `Content-Type: {JSON}`");
                return Err(Problem::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    detail,
                ));
            }
            let bytes = body::read(&parts.headers, body, LIMIT).await?;
            let choice = serde_json::from_slice(&bytes)
                .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad_layer", error.to_string()))?;
            let selection = selection(&choice, &record, &layers(&control, &record))?;
            if !control.media.choose_layer(session, selection) {
                return Err(Problem::unknown_session());
            }
            Ok(no_store(StatusCode::OK.into_response()))
        }
        _ => Err(Problem::method_not_allowed(ALLOWED_METHODS)),
    }
}

/// Returns the layers of a session's stream.
pub(super) fn layers(control: &Control, record: &SessionRecord) -> Vec<Layer> {
    let stream = control.media.hub().find(&record.stream);
    stream
        .map(|stream| stream.with(|state| state.layers().to_vec()))
        .unwrap_or_default()
}

/// Returns the layers as JSON, keyed by the index of the m-line, as in the event `layers`.
pub(super) fn describe(record: &SessionRecord, layers: &[Layer]) -> Value {
    let described: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let mut entry = json!({
                "rid": *layer.rid.0,
                // 0 means inactive. A layer that has just started has no measured bitrate yet.
                "bitrate": if layer.active { layer.bitrate.max(1) } else { 0 },
            });
            if let (Some((width, height)), Some(entry)) = (layer.resolution, entry.as_object_mut()) {
                entry.insert("width".to_owned(), width.into());
                entry.insert("height".to_owned(), height.into());
            }
            entry
        })
        .collect();
    let mut all = Map::new();
    if let Some(video) = &record.video {
        all.insert(video.index.to_string(), described.into());
    }
    Value::Object(all)
}

fn selection(choice: &SelectionRequest, record: &SessionRecord, layers: &[Layer]) -> Result<LayerSelection, Problem> {
    let refuse = |detail: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "layer_unavailable", detail);
    let Some(video) = &record.video else {
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
            "layers of this stream are selected by `rid`; spatial and temporal ids are not supported",
        ));
    }
    match (&choice.rid, choice.max_width, choice.max_height) {
        (Some(rid), ..) => {
            let rid = Rid(rid.as_str().into());
            let exists = layers.iter().any(|layer| layer.rid == rid);
            exists
                .then_some(LayerSelection::Named(rid))
                .ok_or_else(|| refuse("no layer with this `rid`"))
        }
        (None, None, None) => Ok(LayerSelection::Automatic),
        (None, width, height) => Ok(LayerSelection::Within {
            width: width.unwrap_or(u16::MAX),
            height: height.unwrap_or(u16::MAX),
        }),
    }
}
