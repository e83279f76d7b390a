//! The endpoints `/whip/{stream}` (RFC 9725 §4.2) and `/whep/{stream}` (draft-ietf-wish-whep §4.3).

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::{Rng as _, RngCore as _};
use tracing::debug;

use super::auth::AccessAction;
use super::body::{self, MAX_SDP_BODY_BYTES, SDP_MEDIA_TYPE};
use super::problem::Problem;
use super::request::{client_identity, source_name_from_query, stream_name_from_path};
use super::response::{ACCEPT_PATCH_HEADER_NAME, ACCEPT_POST_HEADER_NAME, add_no_store_header};
use super::state::HttpState;
use super::{alternate_links, cors, link_headers, session_url};
use crate::access::Grant;
use crate::config::CounterOfferMode;
use crate::control::ControlPlane;
use crate::control::client_settings::IceServers;
use crate::control::session_record::{IceSession, SessionRecord};
use crate::control::sessions::{GATEWAY_OFFER_LIFETIME, UnansweredGatewayOffer};
use crate::shard::{SessionId, SessionPlacement, SessionRefusal};
use crate::sources::fetch::attached_source::random_session_id;
use crate::sources::fetch::registry::StartOutcome;
use millstream_core::hub::changes::ChangeTopic;
use millstream_core::hub::name::{SourceName, StreamName};
use millstream_core::media::MediaKind;
use millstream_core::media::track_delivery::{self, SourceTrack, TrackDelivery, TranscodeTarget};
use millstream_core::sdp::negotiation_result::{AvailableTracks, NegotiatedPlayback};
use millstream_core::sdp::{
    LocalTransport, Offer, OfferError, VideoSectionId, answer_whep_offer, answer_whip_offer, create_offer_to_viewer,
    formats_sent_to_offerer,
};
use millstream_core::session::CloseReason;

pub(super) const ALLOW_HEADER_METHODS: &str = "OPTIONS, HEAD, GET, POST";
/// Seconds after which a viewer may retry if the stream is not published.
const NOT_LIVE_RETRY_SECS: u64 = 1;

/// Handles `/whip/{stream}`, for publishers.
pub async fn serve_whip_endpoint(State(state): State<HttpState>, request: Request) -> Result<Response, Problem> {
    let control = &state.control;
    let (parts, body) = request.into_parts();
    let stream = stream_name_from_path(&parts.uri)?;
    match parts.method {
        Method::POST => {
            let source = control.publisher_source(&stream, source_name_from_query(&parts.uri).as_deref());
            let grant = state
                .authenticator
                .authorize_publisher(client_identity(&parts), &stream, source.as_ref())
                .await?;
            let offer = read_offer(control, &parts.headers, body).await?;
            accept_publisher(control, (stream, source), grant, &parts, &offer)
        }
        // RFC 9725 §4.1: a 2xx response without content.
        Method::GET | Method::HEAD => Ok(add_no_store_header(StatusCode::NO_CONTENT.into_response())),
        Method::OPTIONS => Ok(options_response(&state, &parts, AccessAction::Publish, &stream).await),
        _ => Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
}

/// Handles `/whep/{stream}`, for viewers.
pub async fn serve_whep_endpoint(State(state): State<HttpState>, request: Request) -> Result<Response, Problem> {
    let control = &state.control;
    let (parts, body) = request.into_parts();
    let stream = stream_name_from_path(&parts.uri)?;
    match parts.method {
        Method::POST => {
            let grant = state
                .authenticator
                .authorize_request(client_identity(&parts), AccessAction::Play, Some(&stream))
                .await?;
            if control.client_settings().legacy_server_offer && is_without_body(&parts.headers) {
                let record = new_session_record(&parts, grant, AccessAction::Play, stream, None);
                return respond_with_offer(control, record, StatusCode::CREATED).await;
            }
            let offer = read_offer(control, &parts.headers, body).await?;
            accept_viewer(control, stream, grant, &parts, &offer).await
        }
        // WHEP §4.2: lets a client discover that this URL is a WHEP endpoint.
        Method::GET | Method::HEAD => {
            let headers = [(header::CONTENT_TYPE, SDP_MEDIA_TYPE), (header::CONTENT_LENGTH, "0")];
            Ok(add_no_store_header(headers.into_response()))
        }
        Method::OPTIONS => Ok(options_response(&state, &parts, AccessAction::Play, &stream).await),
        _ => Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
}

pub(super) async fn read_offer(control: &ControlPlane, headers: &HeaderMap, body: Body) -> Result<Offer, Problem> {
    if control.is_rejecting_new_sessions() {
        return Err(Problem::gateway_stopping());
    }
    if !body::has_content_type(headers, SDP_MEDIA_TYPE) {
        let detail = format!("send the offer with `Content-Type: {SDP_MEDIA_TYPE}`");
        return Err(
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
                .with_header(ACCEPT_POST_HEADER_NAME, HeaderValue::from_static(SDP_MEDIA_TYPE)),
        );
    }
    let bytes = body::read_uncompressed_request_body(headers, body, MAX_SDP_BODY_BYTES).await?;
    Ok(Offer::parse(&bytes)?)
}

/// `source` is the one that the publisher was authorized for, if the stream has several.
fn accept_publisher(
    control: &ControlPlane,
    (stream, source): (StreamName, Option<SourceName>),
    grant: Grant,
    request: &Parts,
    offer: &Offer,
) -> Result<Response, Problem> {
    let named = source.map(|source| source.to_string());
    let named = named.or_else(|| source_name_from_query(&request.uri));
    let key = control.publisher_stream_key(&stream, named.as_deref())?;
    let media = &control.media_plane;
    let placement = media.choose_next_shard_and_make_ice_credentials();
    let (publication, answer) = answer_whip_offer(
        offer,
        &local_transport(control, &placement, &media.candidate_addresses()),
    )?;
    let ice = IceSession::new(
        publication.transport.remote_credentials.clone(),
        &placement.ice_credentials,
        &answer,
    );
    let mut record = new_session_record(request, grant, AccessAction::Publish, stream, None);
    record.failover_source = key.failover_source().cloned();
    let session = media.open_negotiated_publisher_session(key.clone(), placement, publication, record.requester())?;
    debug!(?session, stream = %key, "WHIP publisher accepted, waiting for its ICE connection");
    let response = register_session_and_build_response(control, session, ice, record, answer.sdp);
    // A reload that has just changed the sources did not see this session.
    if !control.is_source_for_publishers(&key.name, key.failover_source()) {
        media.end_session(session, CloseReason::SourceRemoved);
    }
    Ok(response)
}

async fn accept_viewer(
    control: &ControlPlane,
    stream: StreamName,
    grant: Grant,
    request: &Parts,
    offer: &Offer,
) -> Result<Response, Problem> {
    let media = &control.media_plane;
    let available_tracks = start_source_and_wait_for_tracks(control, &stream).await?;
    let client_policy = control.client_settings();
    if client_policy.counter_offer == CounterOfferMode::Always {
        let record = new_session_record(request, grant, AccessAction::Play, stream, None);
        return respond_with_offer(control, record, StatusCode::NOT_ACCEPTABLE).await;
    }
    let placement = media.choose_next_shard_and_make_ice_credentials();
    let random = &mut || rand::rng().next_u32();
    let answered = answer_whep_offer(
        offer,
        &formats_sent_to_offerer(offer, &available_tracks),
        &local_transport(control, &placement, &media.candidate_addresses()),
        random,
    );
    let (playback, answer) = match answered {
        Err(OfferError::NothingPlayable { .. }) if client_policy.counter_offer == CounterOfferMode::WhenNeeded => {
            let record = new_session_record(request, grant, AccessAction::Play, stream, None);
            return respond_with_offer(control, record, StatusCode::NOT_ACCEPTABLE).await;
        }
        answered => answered?,
    };
    reject_if_no_transcode_slot(control, &stream, &available_tracks, &playback)?;
    let ice = IceSession::new(
        playback.transport.remote_credentials.clone(),
        &placement.ice_credentials,
        &answer,
    );
    let mut record = new_session_record(
        request,
        grant,
        AccessAction::Play,
        stream.clone(),
        answer.video_section.clone(),
    );
    record.negotiated_video_codecs = alternate_links::negotiated_video_codecs(offer, &playback);
    let session = media.open_negotiated_viewer_session(stream.clone(), placement, playback, record.requester())?;
    debug!(?session, %stream, "WHEP viewer accepted, waiting for its ICE connection");
    Ok(register_session_and_build_response(
        control, session, ice, record, answer.sdp,
    ))
}

/// Rejects a viewer that needs a transcode for which no worker may run.
fn reject_if_no_transcode_slot(
    control: &ControlPlane,
    stream: &StreamName,
    available: &AvailableTracks,
    playback: &NegotiatedPlayback,
) -> Result<(), Problem> {
    for track in &playback.tracks {
        let source = match track.kind {
            MediaKind::Video => available.video,
            MediaKind::Audio => available.audio,
        };
        let Some(source) = source else { continue };
        let is_accepted = |offered: SourceTrack| {
            let codec = offered.format.codec();
            offered.is_webrtc_playable() && track.codecs.iter().any(|negotiated| negotiated.format.codec() == codec)
        };
        if track.kind == MediaKind::Video && available.video_layers.into_iter().flatten().any(is_accepted) {
            continue;
        }
        let target = TranscodeTarget::webrtc_target_for_kind(track.kind);
        if let TrackDelivery::Transcode(target) =
            track_delivery::choose_track_delivery(source.source_track, target, source.can_transcode, is_accepted)
        {
            control.check_transcode_slot_and_count_refusal(stream, target)?;
        }
    }
    Ok(())
}

/// Returns the tracks of a stream. Waits for its publisher, if configured, and starts its source, if it has one.
async fn start_source_and_wait_for_tracks(
    control: &ControlPlane,
    stream: &StreamName,
) -> Result<AvailableTracks, Problem> {
    let media = &control.media_plane;
    wait_for_publisher(control, stream).await;
    if control
        .source_registry
        .start_and_wait_until_live(stream, media.hub())
        .await
        == StartOutcome::Unavailable
    {
        let detail = "the configured source of this stream was stopped through the API or could not be started: start \
                      it through the API, or retry later";
        return Err(Problem::new(StatusCode::CONFLICT, "source_away", detail).with_retry_after(NOT_LIVE_RETRY_SECS));
    }
    media.available_tracks(stream).ok_or_else(|| {
        let detail = "this stream is not being published";
        Problem::new(StatusCode::CONFLICT, "not_live", detail).with_retry_after(NOT_LIVE_RETRY_SECS)
    })
}

/// Returns whether the headers announce an empty body.
fn is_without_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    let is_empty = length.is_none_or(|length| length == "0");
    is_empty && !headers.contains_key(header::TRANSFER_ENCODING)
}

/// Responds with an offer of the gateway, which the viewer answers by PATCH. The status is 406 if the viewer's own
/// offer is not accepted (WHEP §4.3.2), 201 if it sent none.
async fn respond_with_offer(
    control: &ControlPlane,
    record: SessionRecord,
    status: StatusCode,
) -> Result<Response, Problem> {
    if control.is_rejecting_new_sessions() {
        return Err(Problem::gateway_stopping());
    }
    let available_tracks = start_source_and_wait_for_tracks(control, &record.stream).await?;
    let media = &control.media_plane;
    let placement = media.choose_next_shard_and_make_ice_credentials();
    let source = available_tracks.formats_sent_to_viewer(|_| true);
    let description = create_offer_to_viewer(
        &source,
        &local_transport(control, &placement, &media.candidate_addresses()),
    );
    let session = random_session_id();
    let tag = format!("\"{}\"", placement.ice_credentials.ufrag);
    let path = session_url::session_path(session);
    debug!(?session, stream = %record.stream, "SDP offer sent to WHEP viewer, waiting for its answer");
    if !control.sessions.add_unanswered_gateway_offer(
        session,
        UnansweredGatewayOffer::new(placement, record, description.clone()),
    ) {
        return Err(SessionRefusal::TooManySessions.into());
    }
    let until = time::OffsetDateTime::from(SystemTime::UNIX_EPOCH + unix_time() + GATEWAY_OFFER_LIFETIME);
    let until = until.format(HTTP_DATE_FORMAT).unwrap_or_default();
    let headers = [
        (
            header::CONTENT_TYPE,
            format!("{SDP_MEDIA_TYPE}; valid-until=\"{until}\""),
        ),
        (header::EXPIRES, until),
        (header::LOCATION, path.clone()),
        (header::ETAG, tag),
        (
            ACCEPT_PATCH_HEADER_NAME,
            format!("{SDP_MEDIA_TYPE}, {}", body::TRICKLE_ICE_MEDIA_TYPE),
        ),
    ];
    let mut response = (status, headers, description.sdp).into_response();
    let servers = &control.client_settings().ice_servers;
    match status {
        // A client of the 2022 WHEP draft treats this response as the creation of its session and reads no other.
        StatusCode::CREATED => add_session_ice_server_links(servers, response.headers_mut()),
        // The session does not exist until the viewer has answered.
        _ => link_headers::add_ice_server_links_without_credentials(servers, response.headers_mut()),
    }
    link_headers::add_extension_links(&path, response.headers_mut());
    Ok(add_no_store_header(response))
}

/// Date format of HTTP (RFC 9110 §5.6.7).
const HTTP_DATE_FORMAT: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// Opens the session when the viewer answers the gateway's offer (WHEP §4.3.2): 204.
pub(super) async fn open_session_from_answer(
    control: &ControlPlane,
    session: SessionId,
    bytes: &[u8],
) -> Result<Response, Problem> {
    let offered = control
        .sessions
        .unexpired_offer(session)
        .ok_or_else(Problem::unknown_session)?;
    let answer = Offer::parse(bytes)?;
    if answer.section_kinds_and_mids() != offered.description.section_kinds_and_mids {
        let detail =
            "the SDP answer must have the same media sections as the offer, in the same order and with the same mids";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_answer", detail));
    }
    let media = &control.media_plane;
    let available_tracks = start_source_and_wait_for_tracks(control, &offered.record.stream).await?;
    let random = &mut || rand::rng().next_u32();
    let (playback, _) = answer_whep_offer(
        &answer,
        &formats_sent_to_offerer(&answer, &available_tracks),
        &local_transport(control, &offered.placement, &media.candidate_addresses()),
        random,
    )?;
    // Only one of two concurrent answers opens the session.
    if !control.sessions.remove_unexpired_offer(session) {
        return Err(Problem::unknown_session());
    }
    let remote = playback.transport.remote_credentials.clone();
    let ice = IceSession::new(remote, &offered.placement.ice_credentials, &offered.description);
    let mut record = offered.record;
    record.video_section = offered.description.video_section.clone();
    record.negotiated_video_codecs = alternate_links::negotiated_video_codecs(&answer, &playback);
    let requester = record.requester();
    media.open_viewer_session_from_answer(session, record.stream.clone(), offered.placement, playback, requester)?;
    debug!(?session, stream = %record.stream, "WHEP viewer accepted, waiting for its ICE connection");
    let _ = register_session_and_build_response(control, session, ice, record, String::new());
    let mut response = StatusCode::NO_CONTENT.into_response();
    add_session_ice_server_links(&control.client_settings().ice_servers, response.headers_mut());
    Ok(add_no_store_header(response))
}

/// Maximum length of a stored `User-Agent`, in characters.
const MAX_USER_AGENT_CHARS: usize = 120;

/// Makes the record of a session that this request opens.
pub(super) fn new_session_record(
    request: &Parts,
    grant: Grant,
    action: AccessAction,
    stream: StreamName,
    video: Option<VideoSectionId>,
) -> SessionRecord {
    let agent = request
        .headers
        .get(header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok());
    #[expect(clippy::disallowed_methods, reason = "for the record of the session")]
    let opened = Instant::now();
    SessionRecord {
        grant,
        action,
        stream,
        failover_source: None,
        video_section: video,
        negotiated_video_codecs: None,
        opened_at: opened,
        offer_sender_address: client_identity(request).address,
        user_agent: agent.map(|agent| agent.chars().take(MAX_USER_AGENT_CHARS).collect()),
    }
}

/// Delays a viewer's POST until the stream is published, for at most the configured time, so that a player needs no
/// retry loop. Does nothing for a stream with a configured source.
async fn wait_for_publisher(control: &ControlPlane, stream: &StreamName) {
    let max_wait = control.client_settings().max_publisher_wait;
    if max_wait.is_zero() || control.source_registry.is_pulled_by_gateway(stream) {
        return;
    }
    let Ok(_permit) = control.waiting_viewer_permits.try_acquire() else {
        return;
    };
    let live = async {
        let topic = ChangeTopic::Stream(stream.clone());
        let mut changes = control.media_plane.hub().change_notifier().listen([topic]);
        while control.media_plane.available_tracks(stream).is_none() && !control.is_rejecting_new_sessions() {
            changes.changed().await;
        }
    };
    let _ = tokio::time::timeout(max_wait, live).await;
}

/// Returns the local parameters of an answer or offer.
pub(super) fn local_transport<'a>(
    control: &'a ControlPlane,
    placement: &'a SessionPlacement,
    candidates: &'a [SocketAddr],
) -> LocalTransport<'a> {
    LocalTransport {
        ice_credentials: &placement.ice_credentials,
        fingerprint: control.media_plane.fingerprint(),
        candidate_addresses: candidates,
        accepts_ice_tcp: control.media_plane.offers_tcp_candidates(),
        viewer_congestion_control: control.media_plane.uses_viewer_congestion_control(),
        viewer_playout_delay: control.media_plane.uses_viewer_playout_delay(),
        accepts_data_channels: control.media_plane.accepts_data_channels(),
        sdp_session_id: rand::rng().random(),
    }
}

/// Makes the 201 response and adds the session to the table. OBS compares the status with `==` and concatenates host
/// and `Location`, so the path has to begin with a slash.
pub(super) fn register_session_and_build_response(
    control: &ControlPlane,
    session: SessionId,
    ice: IceSession,
    record: SessionRecord,
    answer: String,
) -> Response {
    let tag = ice.entity_tag();
    let path = session_url::session_path(session);
    let is_viewer = record.action == AccessAction::Play;
    let headers = [
        (header::CONTENT_TYPE, SDP_MEDIA_TYPE.to_owned()),
        (header::LOCATION, path.clone()),
        (header::ETAG, tag),
        (ACCEPT_PATCH_HEADER_NAME, body::TRICKLE_ICE_MEDIA_TYPE.to_owned()),
    ];
    let mut response = (StatusCode::CREATED, headers, answer).into_response();
    alternate_links::add_hls_link_if_video_missing(control, &record, response.headers_mut());
    control.sessions.insert_session_and_end_if_revoked(session, ice, record);
    add_session_ice_server_links(&control.client_settings().ice_servers, response.headers_mut());
    if is_viewer {
        link_headers::add_extension_links(&path, response.headers_mut());
    }
    add_no_store_header(response)
}

/// Adds the STUN and TURN servers for a session, with TURN credentials for this session only.
fn add_session_ice_server_links(servers: &IceServers, headers: &mut HeaderMap) {
    let name = URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 9]>());
    link_headers::add_ice_server_links(servers, unix_time(), &name, headers);
}

/// Answers OPTIONS, including Accept-Post (RFC 9725 §4.2). No authorization is required, because preflight requests
/// carry none. An authorized request that is not a preflight also gets the ICE servers that need no credentials (§4.6).
pub(super) async fn options_response(
    state: &HttpState,
    request: &Parts,
    action: AccessAction,
    stream: &StreamName,
) -> Response {
    let mut response = [
        (ACCEPT_POST_HEADER_NAME, SDP_MEDIA_TYPE),
        (header::ALLOW, ALLOW_HEADER_METHODS),
    ]
    .into_response();
    cors::add_preflight_headers(response.headers_mut());
    let is_preflight = request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let policy = state.control.client_settings();
    if is_preflight || policy.ice_servers.urls.is_empty() {
        return response;
    }
    let checked = state
        .authenticator
        .authorize_request(client_identity(request), action, Some(stream))
        .await;
    if checked.is_ok() {
        link_headers::add_ice_server_links_without_credentials(&policy.ice_servers, response.headers_mut());
        return add_no_store_header(response);
    }
    response
}

#[expect(
    clippy::disallowed_methods,
    reason = "TURN credentials expire at a time of the wall clock"
)]
fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
