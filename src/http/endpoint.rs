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

use super::auth::Action;
use super::body::{self, OFFER_LIMIT, SDP};
use super::problem::Problem;
use super::request::{caller, stream_of};
use super::response::{ACCEPT_PATCH, ACCEPT_POST, no_store};
use super::state::HttpState;
use super::{alternate, cors, links, session_url};
use crate::access::Grant;
use crate::config::CounterOffer;
use crate::control::Control;
use crate::control::policy::IceServers;
use crate::control::record::{IceSession, SessionRecord};
use crate::control::sessions::{OFFER_LIFETIME, OfferedSession};
use crate::shard::{Placement, Refusal, SessionId};
use crate::sources::fetch::attached::random_id;
use crate::sources::fetch::directory::StartOutcome;
use millstream_core::hub::changes::Topic;
use millstream_core::hub::name::StreamName;
use millstream_core::sdp::plan::AvailableTracks;
use millstream_core::sdp::{
    Local, Offer, OfferError, VideoSection, answer_publisher, answer_viewer, formats_for, offer_viewer,
};

const ALLOWED_METHODS: &str = "OPTIONS, HEAD, GET, POST";
/// Seconds after which a viewer may retry if the stream is not published.
const NOT_LIVE_RETRY: u64 = 1;

/// Handles `/whip/{stream}`, for publishers.
pub async fn whip(State(state): State<HttpState>, request: Request) -> Result<Response, Problem> {
    let control = &state.control;
    let (parts, body) = request.into_parts();
    let stream = stream_of(&parts.uri)?;
    match parts.method {
        Method::POST => {
            let grant = state
                .authenticator
                .check(caller(&parts), Action::Publish, Some(&stream))
                .await?;
            let offer = read_offer(control, &parts.headers, body).await?;
            publish(control, stream, grant, &parts, &offer)
        }
        // RFC 9725 §4.1: a 2xx response without content.
        Method::GET | Method::HEAD => Ok(no_store(StatusCode::NO_CONTENT.into_response())),
        Method::OPTIONS => Ok(options(&state, &parts, Action::Publish, &stream).await),
        _ => Err(Problem::method_not_allowed(ALLOWED_METHODS)),
    }
}

/// Handles `/whep/{stream}`, for viewers.
pub async fn whep(State(state): State<HttpState>, request: Request) -> Result<Response, Problem> {
    let control = &state.control;
    let (parts, body) = request.into_parts();
    let stream = stream_of(&parts.uri)?;
    match parts.method {
        Method::POST => {
            let grant = state
                .authenticator
                .check(caller(&parts), Action::Play, Some(&stream))
                .await?;
            if control.policy().legacy_server_offer && is_without_body(&parts.headers) {
                let record = session_record(&parts, grant, Action::Play, stream, None);
                return offer_session(control, record, StatusCode::CREATED).await;
            }
            let offer = read_offer(control, &parts.headers, body).await?;
            play(control, stream, grant, &parts, &offer).await
        }
        // WHEP §4.2: lets a client discover that this URL is a WHEP endpoint.
        Method::GET | Method::HEAD => {
            let headers = [(header::CONTENT_TYPE, SDP), (header::CONTENT_LENGTH, "0")];
            Ok(no_store(headers.into_response()))
        }
        Method::OPTIONS => Ok(options(&state, &parts, Action::Play, &stream).await),
        _ => Err(Problem::method_not_allowed(ALLOWED_METHODS)),
    }
}

async fn read_offer(control: &Control, headers: &HeaderMap, body: Body) -> Result<Offer, Problem> {
    if control.is_draining() {
        return Err(Problem::stopping());
    }
    if !body::is_of_type(headers, SDP) {
        let detail = format!("send the offer with `Content-Type: {SDP}`");
        return Err(
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
                .with(ACCEPT_POST, HeaderValue::from_static(SDP)),
        );
    }
    let bytes = body::read(headers, body, OFFER_LIMIT).await?;
    Ok(Offer::parse(&bytes)?)
}

fn publish(
    control: &Control,
    stream: StreamName,
    grant: Grant,
    request: &Parts,
    offer: &Offer,
) -> Result<Response, Problem> {
    let media = &control.media;
    let placement = media.place();
    let (publication, answer) = answer_publisher(offer, &local(control, &placement, &media.candidates()))?;
    let ice = IceSession::new(publication.transport.remote.clone(), &placement.credentials, &answer);
    let record = session_record(request, grant, Action::Publish, stream.clone(), None);
    let session = media.publish(stream.clone(), placement, publication, record.requester())?;
    debug!(?session, %stream, "publisher accepted");
    Ok(created(control, session, ice, record, answer.sdp))
}

async fn play(
    control: &Control,
    stream: StreamName,
    grant: Grant,
    request: &Parts,
    offer: &Offer,
) -> Result<Response, Problem> {
    let media = &control.media;
    let available_tracks = available_tracks(control, &stream).await?;
    let client_policy = control.policy();
    if client_policy.counter_offer == CounterOffer::Always {
        let record = session_record(request, grant, Action::Play, stream, None);
        return offer_session(control, record, StatusCode::NOT_ACCEPTABLE).await;
    }
    let placement = media.place();
    let random = &mut || rand::rng().next_u32();
    let answered = answer_viewer(
        offer,
        &formats_for(offer, &available_tracks),
        &local(control, &placement, &media.candidates()),
        random,
    );
    let (playback, answer) = match answered {
        Err(OfferError::NothingPlayable { .. }) if client_policy.counter_offer == CounterOffer::WhenNeeded => {
            let record = session_record(request, grant, Action::Play, stream, None);
            return offer_session(control, record, StatusCode::NOT_ACCEPTABLE).await;
        }
        answered => answered?,
    };
    let ice = IceSession::new(playback.transport.remote.clone(), &placement.credentials, &answer);
    let mut record = session_record(request, grant, Action::Play, stream.clone(), answer.video.clone());
    record.video_codecs = alternate::video_codecs(offer, &playback);
    let session = media.play(stream.clone(), placement, playback, record.requester())?;
    debug!(?session, %stream, "viewer accepted");
    Ok(created(control, session, ice, record, answer.sdp))
}

/// Returns the tracks of a stream. Waits for its publisher, if configured, and starts its source, if it has one.
async fn available_tracks(control: &Control, stream: &StreamName) -> Result<AvailableTracks, Problem> {
    let media = &control.media;
    wait_for_publisher(control, stream).await;
    if control.sources.ensure_started(stream, media.hub()).await == StartOutcome::Unavailable {
        let detail = "the source of this stream is unavailable; retrying";
        return Err(Problem::new(StatusCode::CONFLICT, "source_away", detail).retry_after(NOT_LIVE_RETRY));
    }
    media.available_tracks(stream).ok_or_else(|| {
        let detail = "this stream is not being published";
        Problem::new(StatusCode::CONFLICT, "not_live", detail).retry_after(NOT_LIVE_RETRY)
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
async fn offer_session(control: &Control, record: SessionRecord, status: StatusCode) -> Result<Response, Problem> {
    if control.is_draining() {
        return Err(Problem::stopping());
    }
    let available_tracks = available_tracks(control, &record.stream).await?;
    let media = &control.media;
    let placement = media.place();
    let source = available_tracks.formats_for(|_| true);
    let description = offer_viewer(&source, &local(control, &placement, &media.candidates()));
    let session = random_id();
    let tag = format!("\"{}\"", placement.credentials.ufrag);
    let path = session_url::path_of(session);
    debug!(?session, stream = %record.stream, "offer sent to viewer");
    if !control
        .sessions
        .offer(session, OfferedSession::new(placement, record, description.clone()))
    {
        return Err(Refusal::Full.into());
    }
    let until = time::OffsetDateTime::from(SystemTime::UNIX_EPOCH + unix_time() + OFFER_LIFETIME);
    let until = until.format(HTTP_DATE).unwrap_or_default();
    let headers = [
        (header::CONTENT_TYPE, format!("{SDP}; valid-until=\"{until}\"")),
        (header::EXPIRES, until),
        (header::LOCATION, path.clone()),
        (header::ETAG, tag),
        (ACCEPT_PATCH, format!("{SDP}, {}", body::FRAGMENT)),
    ];
    let mut response = (status, headers, description.sdp).into_response();
    let servers = &control.policy().ice_servers;
    match status {
        // A client of the 2022 WHEP draft treats this response as the creation of its session and reads no other.
        StatusCode::CREATED => add_ice_servers(servers, response.headers_mut()),
        // The session does not exist until the viewer has answered.
        _ => links::add_without_credentials(servers, response.headers_mut()),
    }
    links::add_extensions(&path, response.headers_mut());
    Ok(no_store(response))
}

/// Date format of HTTP (RFC 9110 §5.6.7).
const HTTP_DATE: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// Opens the session when the viewer answers the gateway's offer (WHEP §4.3.2): 204.
pub(super) async fn accept_answer(control: &Control, session: SessionId, bytes: &[u8]) -> Result<Response, Problem> {
    let offered = control.sessions.offered(session).ok_or_else(Problem::unknown_session)?;
    let answer = Offer::parse(bytes)?;
    if answer.shape() != offered.description.sections {
        let detail = "the answer must have the same sections as the offer, in the same order and with the same mids";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_answer", detail));
    }
    let media = &control.media;
    let available_tracks = available_tracks(control, &offered.record.stream).await?;
    let random = &mut || rand::rng().next_u32();
    let (playback, _) = answer_viewer(
        &answer,
        &formats_for(&answer, &available_tracks),
        &local(control, &offered.placement, &media.candidates()),
        random,
    )?;
    // Only one of two concurrent answers opens the session.
    if !control.sessions.take_offer(session) {
        return Err(Problem::unknown_session());
    }
    let remote = playback.transport.remote.clone();
    let ice = IceSession::new(remote, &offered.placement.credentials, &offered.description);
    let mut record = offered.record;
    record.video = offered.description.video.clone();
    record.video_codecs = alternate::video_codecs(&answer, &playback);
    let requester = record.requester();
    media.play_as(session, record.stream.clone(), offered.placement, playback, requester)?;
    debug!(?session, stream = %record.stream, "viewer accepted");
    let _ = created(control, session, ice, record, String::new());
    let mut response = StatusCode::NO_CONTENT.into_response();
    add_ice_servers(&control.policy().ice_servers, response.headers_mut());
    Ok(no_store(response))
}

/// Maximum length of a stored `User-Agent`, in characters.
const MAX_AGENT: usize = 120;

/// Makes the record of a session that this request opens.
fn session_record(
    request: &Parts,
    grant: Grant,
    action: Action,
    stream: StreamName,
    video: Option<VideoSection>,
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
        video,
        video_codecs: None,
        opened,
        address: caller(request).address,
        agent: agent.map(|agent| agent.chars().take(MAX_AGENT).collect()),
    }
}

/// Delays a viewer's POST until the stream is published, for at most the configured time, so that a player needs no
/// retry loop. Does nothing for a stream with a configured source.
async fn wait_for_publisher(control: &Control, stream: &StreamName) {
    let max_wait = control.policy().wait_for_publisher;
    if max_wait.is_zero() || control.sources.get(stream).is_some() {
        return;
    }
    let Ok(_permit) = control.waiting.try_acquire() else {
        return;
    };
    let live = async {
        let topic = Topic::Stream(stream.clone());
        let mut changes = control.media.hub().changes().listen([topic]);
        while control.media.available_tracks(stream).is_none() && !control.is_draining() {
            changes.changed().await;
        }
    };
    let _ = tokio::time::timeout(max_wait, live).await;
}

/// Returns the local parameters of an answer or offer.
fn local<'a>(control: &'a Control, placement: &'a Placement, candidates: &'a [SocketAddr]) -> Local<'a> {
    Local {
        credentials: &placement.credentials,
        fingerprint: control.media.fingerprint(),
        candidates,
        tcp: control.media.takes_tcp(),
        session_id: rand::rng().random(),
    }
}

/// Makes the 201 response and adds the session to the table. OBS compares the status with `==` and concatenates host
/// and `Location`, so the path has to begin with a slash.
fn created(control: &Control, session: SessionId, ice: IceSession, record: SessionRecord, answer: String) -> Response {
    let tag = ice.entity_tag();
    let path = session_url::path_of(session);
    let is_viewer = record.action == Action::Play;
    let headers = [
        (header::CONTENT_TYPE, SDP.to_owned()),
        (header::LOCATION, path.clone()),
        (header::ETAG, tag),
        (ACCEPT_PATCH, body::FRAGMENT.to_owned()),
    ];
    let mut response = (StatusCode::CREATED, headers, answer).into_response();
    alternate::add_link(control, &record, response.headers_mut());
    control.sessions.insert(session, ice, record);
    add_ice_servers(&control.policy().ice_servers, response.headers_mut());
    if is_viewer {
        links::add_extensions(&path, response.headers_mut());
    }
    no_store(response)
}

/// Adds the STUN and TURN servers for a session, with TURN credentials for this session only.
fn add_ice_servers(servers: &IceServers, headers: &mut HeaderMap) {
    let name = URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 9]>());
    links::add(servers, unix_time(), &name, headers);
}

/// Answers OPTIONS, including Accept-Post (RFC 9725 §4.2). No authorization is required, because preflight requests
/// carry none. An authorized request that is not a preflight also gets the ICE servers that need no credentials (§4.6).
async fn options(state: &HttpState, request: &Parts, action: Action, stream: &StreamName) -> Response {
    let mut response = [(ACCEPT_POST, SDP), (header::ALLOW, ALLOWED_METHODS)].into_response();
    cors::answer_preflight(response.headers_mut());
    let is_preflight = request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let policy = state.control.policy();
    if is_preflight || policy.ice_servers.urls.is_empty() {
        return response;
    }
    let checked = state.authenticator.check(caller(request), action, Some(stream)).await;
    if checked.is_ok() {
        links::add_without_credentials(&policy.ice_servers, response.headers_mut());
        return no_store(response);
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
